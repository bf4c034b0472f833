//! The dot products in plain Rust: 8 partial sums, as the vector versions have them.

use crate::Element;

const LANES: usize = 8;

/// `sums[n][m] = Σ a[m][k] · w[n][k]`.
pub(super) fn dot<W: Element, const M: usize, const N: usize>(a: [&[f32]; M], w: [&[W]; N]) -> [[f32; M]; N] {
    w.map(|w| a.map(|a| one(a, w)))
}

fn one<W: Element>(a: &[f32], w: &[W]) -> f32 {
    let mut sums = [0f32; LANES];
    let (a_whole, a_tail) = a.as_chunks::<LANES>();
    let (w_whole, w_tail) = w.as_chunks::<LANES>();
    for (a, w) in a_whole.iter().zip(w_whole) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * w[lane].to_f32();
        }
    }
    let tail: f32 = a_tail.iter().zip(w_tail).map(|(a, w)| a * w.to_f32()).sum();
    sums.iter().sum::<f32>() + tail
}
