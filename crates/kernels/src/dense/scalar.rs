//! The dot products in plain Rust: 8 partial sums, as the vector versions have them.

const LANES: usize = 8;

/// `sums[n][m] = Σ a[m][k] · w[n][k]`.
pub(super) fn dot<const M: usize, const N: usize>(a: [&[f32]; M], w: [&[f32]; N]) -> [[f32; M]; N] {
    w.map(|w| a.map(|a| one(a, w)))
}

fn one(a: &[f32], w: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (a_whole, a_tail) = a.as_chunks::<LANES>();
    let (w_whole, w_tail) = w.as_chunks::<LANES>();
    for (a, w) in a_whole.iter().zip(w_whole) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * w[lane];
        }
    }
    let tail: f32 = a_tail.iter().zip(w_tail).map(|(a, w)| a * w).sum();
    sums.iter().sum::<f32>() + tail
}
