//! The dot products in plain Rust.

/// `sums[n][m] = Σ a[m][k] · w[n][k]`, exact.
pub(super) fn dot<const M: usize, const N: usize>(a: [&[i16]; M], w: [&[i8]; N]) -> [[i32; M]; N] {
    w.map(|w| a.map(|a| a.iter().zip(w).map(|(&a, &w)| i32::from(a) * i32::from(w)).sum()))
}

/// One row of activations against the rows of `w`, which lie one after the other.
pub(super) fn dot_rows(a: &[i16], w: &[i8], sums: &mut [i32]) {
    for (sum, row) in sums.iter_mut().zip(w.chunks(a.len().max(1))) {
        *sum = a.iter().zip(row).map(|(&x, &y)| i32::from(x) * i32::from(y)).sum();
    }
}
