//! How the keys and values of a head lie in memory, and what they are stored as.

use crate::element::Load;
use crate::simd::for_every_width;
use crate::{Element, Isa};
use bytemuck::Zeroable;

/// Positions of a panel of keys. The number of positions in a cache is a multiple of it.
pub const PANEL: usize = 16;

/// Keys and values of one head.
#[derive(Debug, Clone, Copy)]
pub struct HeadCache<'a, T> {
    pub(super) keys: &'a [T],
    pub(super) values: &'a [T],
    /// The scale of each position's key; empty if [`CacheElement::IS_SCALED`] is false.
    pub(super) key_scales: &'a [f32],
    /// The same of the values.
    pub(super) value_scales: &'a [f32],
    pub(super) size: usize,
}

/// Components per position of the values in memory: the head's size, padded to a multiple of
/// [`PANEL`].
///
/// ```
/// assert_eq!([1, 16, 20].map(llm_int8_kernels::attention::padded), [16, 16, 32]);
/// ```
pub fn padded(size: usize) -> usize {
    size.next_multiple_of(PANEL)
}

/// The index of component `d` of a position's key in the keys of a head of `size` components.
///
/// ```
/// use llm_int8_kernels::attention::key_place;
/// assert_eq!((key_place(3, 0, 64), key_place(3, 1, 64), key_place(16, 0, 64)), (3, 19, 1024));
/// ```
pub fn key_place(position: usize, d: usize, size: usize) -> usize {
    (position / PANEL * size + d) * PANEL + position % PANEL
}

impl<'a, T: Element> HeadCache<'a, T> {
    /// The cache of a head of `size` components in floats. Both slices hold the same number of
    /// positions, a multiple of [`PANEL`]: keys laid out by [`key_place`], values as `[positions,
    /// padded(size)]`.
    ///
    /// # Panics
    /// If the lengths do not match this layout.
    pub fn new(keys: &'a [T], values: &'a [T], size: usize) -> Self {
        Self::scaled(keys, values, [&[]; 2], size)
    }
}

impl<'a, T: CacheElement> HeadCache<'a, T> {
    /// [`HeadCache::new`] for any element. `scales` are those of the keys and of the values, one for
    /// each position; for floats both are empty.
    ///
    /// # Panics
    /// If the lengths do not match this layout.
    pub fn scaled(keys: &'a [T], values: &'a [T], scales: [&'a [f32]; 2], size: usize) -> Self {
        let positions = values.len() / padded(size).max(1);
        assert!(positions.is_multiple_of(PANEL) && values.len() == positions * padded(size));
        assert!(keys.len() == positions * size);
        let expected = if T::IS_SCALED { positions } else { 0 };
        assert!(scales.iter().all(|scales| scales.len() == expected));

        let [key_scales, value_scales] = scales;
        Self {
            keys,
            values,
            key_scales,
            value_scales,
            size,
        }
    }
}

/// What keys and values are stored as: f32, f16, bf16, or int8 codes with a scale for each vector
/// (the key or the value of one head at one position). Not meant to be implemented elsewhere.
pub trait CacheElement: Load + Zeroable + Copy + Default + Send + Sync + 'static {
    /// Whether vectors have scales, by which what is stored has to be multiplied.
    const IS_SCALED: bool;

    /// What is stored, in f32; exact.
    fn widened(self) -> f32;

    /// The scale of a vector; 1 for floats. For int8 `absmax / 127` in f32, 0 if that is not a normal
    /// number, and NaN if a component is not finite, so that attention gives NaN as it does with
    /// floats.
    fn scale_of(isa: Isa, vector: &[f32]) -> f32;

    /// Stores a vector, or a part of it, whose scale is `scale`: in int8 `rint(x · (1 / scale))`,
    /// halves to even, and zeros unless `scale` is above 0. Both slices have the same length.
    ///
    /// ```
    /// use llm_int8_kernels::{Isa, attention::CacheElement};
    /// let vector = [-254.0f32, 3.0, 5.0, 100.0];
    /// let scale = i8::scale_of(Isa::detect(), &vector);
    /// let mut codes = [0i8; 4];
    /// i8::store(Isa::detect(), &vector, scale, &mut codes);
    /// assert_eq!((scale, codes), (2.0, [-127, 2, 2, 50]));
    /// ```
    fn store(isa: Isa, vector: &[f32], scale: f32, out: &mut [Self]);
}

impl<T: Element> CacheElement for T {
    const IS_SCALED: bool = false;

    #[inline(always)]
    fn widened(self) -> f32 {
        self.to_f32()
    }

    fn scale_of(_: Isa, _: &[f32]) -> f32 {
        1.0
    }

    fn store(_: Isa, vector: &[f32], _: f32, out: &mut [Self]) {
        T::of_slice(vector, out);
    }
}

impl CacheElement for i8 {
    const IS_SCALED: bool = true;

    #[inline(always)]
    fn widened(self) -> f32 {
        f32::from(self)
    }

    fn scale_of(isa: Isa, vector: &[f32]) -> f32 {
        let absmax = absmax(isa, vector);
        let scale = absmax / 127.0;
        if !absmax.is_finite() {
            f32::NAN
        } else if scale < f32::MIN_POSITIVE {
            0.0
        } else {
            scale
        }
    }

    fn store(isa: Isa, vector: &[f32], scale: f32, out: &mut [Self]) {
        if scale > 0.0 {
            codes(isa, vector, scale.recip(), out);
        } else {
            out.fill(0);
        }
    }
}

for_every_width! {
    /// The largest magnitude; NaN if there is one, 0 for no values.
    fn absmax(values: &[f32]) -> f32 = absmax_of
}

for_every_width! {
    fn codes(values: &[f32], inverse: f32, out: &mut [i8]) = codes_of
}

#[inline(always)]
fn absmax_of(values: &[f32]) -> f32 {
    // Without the sign, floats are ordered as their bits are, and NaN comes last.
    let magnitude = |x: &f32| x.to_bits() & (u32::MAX >> 1);
    let (chunks, rest) = values.as_chunks::<16>();
    let mut lanes = [0u32; 16];
    for chunk in chunks {
        lanes
            .iter_mut()
            .zip(chunk)
            .for_each(|(lane, x)| *lane = magnitude(x).max(*lane));
    }

    let lanes = lanes.into_iter().chain(rest.iter().map(magnitude));
    f32::from_bits(lanes.max().unwrap_or(0))
}

#[inline(always)]
fn codes_of(values: &[f32], inverse: f32, out: &mut [i8]) {
    // Added to a small number, 1.5 · 2²³ leaves its nearest integer in the lowest bits, halves to
    // even. Unlike a rounding and a saturating cast this vectorises everywhere.
    const ROUNDS: f32 = 12_582_912.0;
    out.iter_mut()
        .zip(values)
        .for_each(|(code, x)| *code = (x * inverse + ROUNDS).to_bits() as i8);
}
