//! The float types of weights and activations.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod plain;

use bytemuck::Zeroable;
use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use avx2 as vectors;
#[cfg(target_arch = "aarch64")]
use neon as vectors;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
use plain as vectors;

pub(crate) use vectors::Load;

/// f32, f16 or bf16. Not meant to be implemented elsewhere.
pub trait Element: Load + Zeroable + Copy + Default + Send + Sync + 'static {
    /// The value in f32; exact.
    ///
    /// ```
    /// use llm_int8_kernels::Element;
    /// assert_eq!(half::f16::from_f32(1.5).to_f32(), 1.5);
    /// ```
    fn to_f32(self) -> f32;

    /// The nearest f16, ties to even; infinite from 65,520 on.
    ///
    /// ```
    /// use llm_int8_kernels::Element;
    /// assert_eq!(Element::to_f16(2049.0f32).to_f32(), 2048.0); // a tie: 2048 is even
    /// assert!(Element::to_f16(70000.0f32).is_infinite());
    /// ```
    fn to_f16(self) -> f16;

    /// The nearest value of this type, ties to even.
    ///
    /// ```
    /// use llm_int8_kernels::Element;
    /// assert_eq!(<half::f16 as Element>::of(2049.0).to_f32(), 2048.0);
    /// ```
    fn of(x: f32) -> Self;

    /// [`Element::of`] for a slice; both slices have the same length.
    ///
    /// ```
    /// use llm_int8_kernels::Element;
    /// let mut out = [half::bf16::ZERO; 1];
    /// Element::of_slice(&[1.0], &mut out);
    /// assert_eq!(out, [half::bf16::ONE]);
    /// ```
    fn of_slice(source: &[f32], out: &mut [Self]) {
        out.iter_mut()
            .zip(source)
            .for_each(|(y, x)| *y = Self::of(*x));
    }

    /// [`Element::to_f32`] for a slice; both slices have the same length.
    ///
    /// ```
    /// use llm_int8_kernels::Element;
    /// let mut out = [0f32; 2];
    /// Element::to_f32_slice(&[half::bf16::ONE, half::bf16::ZERO], &mut out);
    /// assert_eq!(out, [1.0, 0.0]);
    /// ```
    fn to_f32_slice(source: &[Self], out: &mut [f32]) {
        let done = vectors::to_f32(source, out);
        out.iter_mut()
            .zip(source)
            .skip(done)
            .for_each(|(y, x)| *y = x.to_f32());
    }

    /// [`Element::to_f16`] for a slice; both slices have the same length.
    ///
    /// ```
    /// use llm_int8_kernels::Element;
    /// let mut out = [half::f16::ZERO; 1];
    /// Element::to_f16_slice(&[1.0f32], &mut out);
    /// assert_eq!(out, [half::f16::ONE]);
    /// ```
    fn to_f16_slice(source: &[Self], out: &mut [f16]) {
        let done = vectors::to_f16(source, out);
        out.iter_mut()
            .zip(source)
            .skip(done)
            .for_each(|(y, x)| *y = Element::to_f16(*x));
    }
}

impl Element for f32 {
    fn of(x: f32) -> Self {
        x
    }

    fn to_f32(self) -> f32 {
        self
    }

    fn to_f16(self) -> f16 {
        f16::from_f32(self)
    }

    fn to_f32_slice(source: &[Self], out: &mut [f32]) {
        out.copy_from_slice(source);
    }
}

impl Element for f16 {
    fn of(x: f32) -> Self {
        f16::from_f32(x)
    }

    fn of_slice(source: &[f32], out: &mut [Self]) {
        Element::to_f16_slice(source, out);
    }

    fn to_f32(self) -> f32 {
        // The half crate converts in software, or checks for an extension at every single value.
        #[cfg(target_arch = "aarch64")]
        return neon::one_to_f32(self);
        #[cfg(not(target_arch = "aarch64"))]
        f16::to_f32(self)
    }

    fn to_f16(self) -> f16 {
        self
    }

    fn to_f16_slice(source: &[Self], out: &mut [f16]) {
        out.copy_from_slice(source);
    }
}

impl Element for bf16 {
    fn of(x: f32) -> Self {
        bf16::from_f32(x)
    }

    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    fn to_f16(self) -> f16 {
        f16::from_f32(bf16::to_f32(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slice conversions give the bits of single conversions; NaN stays NaN (its payload may
    /// differ).
    fn check<T: Element>(values: &[T]) {
        for length in [0, 1, 7, 8, 9, values.len()] {
            let source = &values[..length];
            let mut floats = vec![0f32; length];
            let mut halves = vec![f16::ZERO; length];
            T::to_f32_slice(source, &mut floats);
            T::to_f16_slice(source, &mut halves);

            for (i, x) in source.iter().enumerate() {
                let float = x.to_f32();
                let half = Element::to_f16(*x);
                assert!(
                    float.to_bits() == floats[i].to_bits() || float.is_nan() && floats[i].is_nan()
                );
                assert!(
                    half.to_bits() == halves[i].to_bits() || half.is_nan() && halves[i].is_nan()
                );
            }
        }
    }

    #[test]
    fn every_f16_has_the_value_that_the_half_crate_gives() {
        for x in (0..=u16::MAX).map(f16::from_bits) {
            let float = Element::to_f32(x);
            let expected = f16::to_f32_const(x);
            assert!(float.to_bits() == expected.to_bits() || float.is_nan() && expected.is_nan());
        }
    }

    #[test]
    fn slice_conversions_match_single_conversions() {
        let all = 0..=u16::MAX;
        check(&all.clone().map(f16::from_bits).collect::<Vec<_>>());
        check(&all.clone().map(bf16::from_bits).collect::<Vec<_>>());

        // Ties and their neighbours, overflow and subnormals of f16.
        let floats = all.flat_map(|bits| {
            let x = f16::from_bits(bits).to_f32().to_bits();
            [x, x ^ 0x1000, x ^ 0x1001, x ^ 0x0fff].map(f32::from_bits)
        });

        check(&floats.collect::<Vec<_>>());
    }
}
