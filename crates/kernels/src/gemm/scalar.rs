//! The dot products in plain Rust.

/// `sums[n][m] = Σ a[m][k] · w[n][k]`, exact.
pub(super) fn dot<const M: usize, const N: usize>(a: [&[i16]; M], w: [&[i8]; N]) -> [[i32; M]; N] {
    w.map(|w| a.map(|a| a.iter().zip(w).map(|(&a, &w)| i32::from(a) * i32::from(w)).sum()))
}
