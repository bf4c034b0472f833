//! Activations: which features are outliers, and the codes of everything else
//! (`int8_vectorwise_quant` of bitsandbytes with a threshold).

use crate::rowwise::{largest_bits, quantize_row};
use crate::simd::for_every_width;
use crate::{AlignedVec, Element, Isa, MatRef};
use half::f16;
use rayon::prelude::*;
use std::ops::Range;

/// Rows from which quantising is spread over threads.
const PARALLEL_ROWS: usize = 16;

/// Where an outlier counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OutlierScope {
    /// A column is an outlier for every row when any row has one there (bitsandbytes): a row's
    /// result depends on its batch.
    #[default]
    Batch,
    /// Each row by itself: a row's result is the same, bit for bit, alone and in any batch.
    Row,
}

/// The outlier features of each row with their original values.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outliers {
    /// Row r owns `starts[r]..starts[r + 1]` of the two lists.
    starts: Vec<usize>,
    columns: Vec<u32>,
    values: Vec<f32>,
}

impl Outliers {
    /// Columns, ascending, and original activations of a row.
    ///
    /// ```
    /// use llm_int8_kernels::{Isa, MatRef, OutlierScope, quantize_activations};
    /// let a = quantize_activations(Isa::detect(), MatRef::new(&[7.0f32, 1.0], 1, 2)?, 6.0, OutlierScope::Row);
    /// assert_eq!(a.outliers().row(0), (&[0u32][..], &[7.0f32][..]));
    /// # Ok::<(), llm_int8_kernels::KernelError>(())
    /// ```
    pub fn row(&self, row: usize) -> (&[u32], &[f32]) {
        let range = self.range(row);
        (&self.columns[range.clone()], &self.values[range])
    }

    /// Where the outliers of a row lie in [`Outliers::columns`].
    pub(crate) fn range(&self, row: usize) -> Range<usize> {
        self.starts[row]..self.starts[row + 1]
    }

    /// The columns of all rows, row after row.
    pub(crate) fn columns(&self) -> &[u32] {
        &self.columns
    }

    /// Every column that is an outlier somewhere, ascending.
    ///
    /// ```
    /// use llm_int8_kernels::{Isa, MatRef, OutlierScope, quantize_activations};
    /// let a = MatRef::new(&[1.0f32, 7.0, 9.0, 1.0], 2, 2)?;
    /// let a = quantize_activations(Isa::detect(), a, 6.0, OutlierScope::Row);
    /// assert_eq!(a.outliers().distinct_columns(), [0, 1]);
    /// # Ok::<(), llm_int8_kernels::KernelError>(())
    /// ```
    pub fn distinct_columns(&self) -> Vec<u32> {
        distinct([&self.columns[..]].into_iter())
    }

    /// Whether there is none.
    ///
    /// ```
    /// use llm_int8_kernels::{Isa, MatRef, OutlierScope, quantize_activations};
    /// let a = quantize_activations(Isa::detect(), MatRef::new(&[1.0f32], 1, 1)?, 6.0, OutlierScope::Batch);
    /// assert!(a.outliers().is_empty());
    /// # Ok::<(), llm_int8_kernels::KernelError>(())
    /// ```
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }
}

/// Rows of activations, quantised: codes, absmax and what stays in floating point.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct QuantizedActivations {
    codes: AlignedVec<i8>,
    absmax: Vec<f32>,
    outliers: Outliers,
    cols: usize,
}

impl QuantizedActivations {
    /// Number of rows, M.
    pub fn rows(&self) -> usize {
        self.absmax.len()
    }

    /// Number of columns, K.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The codes, M × K; 0 at outliers.
    pub fn codes(&self) -> MatRef<'_, i8> {
        MatRef::trusted(&self.codes, self.rows(), self.cols)
    }

    /// Largest magnitude of each row among what is not an outlier; NaN or infinite where the row
    /// holds such a value, so that its outputs become NaN and nothing is hidden.
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// What is multiplied in floating point.
    pub fn outliers(&self) -> &Outliers {
        &self.outliers
    }
}

/// Quantises activations `a` `[M, K]` row by row.
///
/// Values go through f16. Where `threshold > 0`, a value whose f16 magnitude reaches it is an
/// outlier: its code is 0, it does not count for `absmax`, and it is listed with its original
/// value; with [`OutlierScope::Batch`] its whole column is. A value below the threshold counts for
/// its row's `absmax` even in an outlier column, as in bitsandbytes.
///
/// ```
/// use llm_int8_kernels::{Isa, MatRef, OutlierScope, quantize_activations};
/// let a = MatRef::new(&[2.0f32, 1.0, 6.0, 4.0], 2, 2)?;
/// let pooled = quantize_activations(Isa::detect(), a, 6.0, OutlierScope::Batch);
/// assert_eq!(pooled.codes().data(), [0, 64, 0, 127]); // 6.0 takes column 0 from both rows
/// assert_eq!(pooled.absmax(), [2.0, 4.0]);
/// assert_eq!(pooled.outliers().row(0), (&[0u32][..], &[2.0f32][..]));
/// let alone = quantize_activations(Isa::detect(), a, 6.0, OutlierScope::Row);
/// assert_eq!(alone.codes().data(), [127, 64, 0, 127]);
/// # Ok::<(), llm_int8_kernels::KernelError>(())
/// ```
pub fn quantize_activations<T: Element>(
    isa: Isa,
    a: MatRef<'_, T>,
    threshold: f32,
    scope: OutlierScope,
) -> QuantizedActivations {
    let mut activations = QuantizedActivations::default();
    activations.refill(isa, a, threshold, scope);
    activations
}

impl QuantizedActivations {
    /// [`quantize_activations`] into memory that is there already.
    ///
    /// ```
    /// use llm_int8_kernels::{Isa, MatRef, OutlierScope, QuantizedActivations};
    /// let mut a = QuantizedActivations::default();
    /// for x in [4.0f32, 2.0] {
    ///     a.refill(Isa::detect(), MatRef::new(&[x, 1.0], 1, 2)?, 6.0, OutlierScope::Row);
    ///     assert_eq!((a.absmax(), a.codes().data()[0]), (&[x][..], 127));
    /// }
    /// # Ok::<(), llm_int8_kernels::KernelError>(())
    /// ```
    pub fn refill<T: Element>(
        &mut self,
        isa: Isa,
        a: MatRef<'_, T>,
        threshold: f32,
        scope: OutlierScope,
    ) {
        let rows = a.rows();
        let cols = a.cols();
        self.cols = cols;
        self.codes.reset(rows * cols, 0);
        self.absmax.clear();
        self.absmax.resize(rows, 0.0);
        let mut own = vec![Vec::new(); rows];

        if cols > 0 {
            let quantize =
                |row16: &mut Vec<f16>, row: usize, codes: &mut [i8], absmax: &mut f32| {
                    T::to_f16_slice(a.row(row), row16);
                    quantize_row_apart(isa, row16, threshold, codes, absmax)
                };
            let scratch = || vec![f16::ZERO; cols];
            let codes = &mut self.codes;
            let absmax = &mut self.absmax;

            if rows >= PARALLEL_ROWS {
                (codes
                    .par_chunks_mut(cols)
                    .zip(absmax)
                    .zip(&mut own)
                    .enumerate())
                .with_min_len(PARALLEL_ROWS / 2)
                .for_each_init(scratch, |row16, (row, ((codes, absmax), own))| {
                    *own = quantize(row16, row, codes, absmax)
                });
            } else {
                let mut row16 = scratch();
                for (row, ((codes, absmax), own)) in
                    codes.chunks_mut(cols).zip(absmax).zip(&mut own).enumerate()
                {
                    *own = quantize(&mut row16, row, codes, absmax);
                }
            }
        }

        self.outliers = match scope {
            OutlierScope::Row => listed(a, own.iter().map(Vec::as_slice)),
            OutlierScope::Batch => {
                let pooled = distinct(own.iter().map(Vec::as_slice));
                if !pooled.is_empty() {
                    self.codes
                        .par_chunks_mut(cols)
                        .with_min_len(PARALLEL_ROWS)
                        .for_each(|codes| {
                            pooled.iter().for_each(|&column| codes[column as usize] = 0);
                        });
                }

                listed(a, std::iter::repeat_n(&pooled[..], rows))
            }
        };
    }
}

/// Values looked at together: most chunks have no outlier.
const CHUNK: usize = 64;

/// The bits of the smallest f16 that is an outlier. For magnitudes the order of the bits is that of
/// the values.
fn smallest_outlier(threshold: f32) -> u16 {
    let nearest = f16::from_f32(threshold);
    if nearest.to_f32() >= threshold {
        nearest.to_bits()
    } else {
        nearest.to_bits() + 1
    }
}

/// NaN is none: it is to be seen in `absmax`.
#[inline(always)]
fn is_outlier(x: f16, limit: u16) -> bool {
    let bits = x.to_bits() & 0x7fff;
    bits >= limit && bits <= f16::INFINITY.to_bits()
}

for_every_width! {
    fn any_outlier(row16: &[f16], limit: u16) -> bool = any_of
}

#[inline(always)]
fn any_of(row16: &[f16], limit: u16) -> bool {
    // No early end: a loop over all is vectorised.
    row16
        .iter()
        .fold(false, |any, x| any | is_outlier(*x, limit))
}

/// Quantises one row and returns its outlier columns.
fn quantize_row_apart(
    isa: Isa,
    row16: &mut [f16],
    threshold: f32,
    codes: &mut [i8],
    absmax: &mut f32,
) -> Vec<u32> {
    let mut columns = Vec::new();
    let mut largest = f16::from_bits(largest_bits(isa, row16));

    // Most rows have no outlier, and their largest value shows it (a NaN hides the others).
    if threshold > 0.0 && (largest.is_nan() || largest.to_f32() >= threshold) {
        let limit = smallest_outlier(threshold);
        let mut first = 0;
        for row16 in row16.chunks_mut(CHUNK) {
            if any_outlier(isa, row16, limit) {
                for (column, x) in (first..).zip(row16.iter_mut()) {
                    if is_outlier(*x, limit) {
                        columns.push(column);
                        *x = f16::ZERO;
                    }
                }
            }

            first += CHUNK as u32;
        }

        largest = f16::from_bits(largest_bits(isa, row16));
    }

    *absmax = largest.to_f32();
    quantize_row(isa, row16, *absmax, codes);
    columns
}

/// The columns of all lists, each once, ascending. Lists may be long (every row repeats a pooled
/// column), so they are marked, not sorted.
fn distinct<'a>(lists: impl Iterator<Item = &'a [u32]> + Clone) -> Vec<u32> {
    let mut marks = vec![
        false;
        lists
            .clone()
            .flatten()
            .max()
            .map_or(0, |&last| last as usize + 1)
    ];
    lists
        .flatten()
        .for_each(|&column| marks[column as usize] = true);
    (0..)
        .zip(marks)
        .filter_map(|(column, marked)| marked.then_some(column))
        .collect()
}

/// The lists of each row's columns with the original activations.
fn listed<'a, T: Element>(a: MatRef<'_, T>, lists: impl Iterator<Item = &'a [u32]>) -> Outliers {
    let mut outliers = Outliers {
        starts: vec![0],
        ..Outliers::default()
    };

    for (row, columns) in lists.enumerate() {
        outliers.columns.extend(columns);
        outliers.values.extend(
            columns
                .iter()
                .map(|&column| a.row(row)[column as usize].to_f32()),
        );
        outliers.starts.push(outliers.columns.len());
    }

    outliers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    fn check<T: Element>(values: &[T], rows: usize, threshold: f32) {
        let a = MatRef::new(values, rows, values.len() / rows.max(1)).unwrap();
        for scope in [OutlierScope::Batch, OutlierScope::Row] {
            let expected = reference::quantize_activations(a, threshold, scope);
            for isa in Isa::available() {
                let found = quantize_activations(isa, a, threshold, scope);
                assert_eq!(found.codes().data(), expected.codes, "{isa:?} {scope:?}");
                for (x, y) in found.absmax().iter().zip(&expected.absmax) {
                    assert!(x == y || (x.is_nan() && y.is_nan()), "{isa:?} {x} {y}");
                }
                for (row, expected) in expected.outliers.iter().enumerate() {
                    let (columns, values) = found.outliers().row(row);
                    let pairs: Vec<_> = columns
                        .iter()
                        .copied()
                        .zip(values.iter().copied())
                        .collect();
                    assert_eq!(&pairs, expected);
                }
            }
        }
    }

    #[test]
    fn the_boundary_belongs_to_the_outliers() {
        check(&[6.0f32, 5.996, -6.0, -5.996, 1.0], 1, 6.0);
        let a = MatRef::new(&[6.0f32, 5.996], 1, 2).unwrap();
        let a = quantize_activations(Isa::detect(), a, 6.0, OutlierScope::Row);
        assert_eq!(a.outliers().distinct_columns(), [0]);
    }

    #[test]
    fn a_row_of_outliers_only_has_absmax_zero() {
        check(&[8.0f32, -9.0, 7.0], 1, 6.0);
        let a = MatRef::new(&[8.0f32, -9.0], 1, 2).unwrap();
        let a = quantize_activations(Isa::detect(), a, 6.0, OutlierScope::Batch);
        assert_eq!(
            (a.absmax(), a.codes().data()),
            (&[0.0f32][..], &[0i8, 0][..])
        );
    }

    #[test]
    fn not_a_number_shows_in_absmax_and_infinity_is_an_outlier() {
        let a = MatRef::new(&[1.0f32, f32::NAN, 8.0], 1, 3).unwrap();
        let a = quantize_activations(Isa::detect(), a, 6.0, OutlierScope::Batch);
        assert!(a.absmax()[0].is_nan());

        // 70,000 is infinite in f16: an outlier, with its original value.
        let b = MatRef::new(&[1.0f32, 70_000.0], 1, 2).unwrap();
        let apart = quantize_activations(Isa::detect(), b, 6.0, OutlierScope::Batch);
        assert_eq!(
            (apart.absmax(), apart.outliers().row(0).1),
            (&[1.0f32][..], &[70_000.0f32][..])
        );
        let not_apart = quantize_activations(Isa::detect(), b, 0.0, OutlierScope::Batch);
        assert!(not_apart.absmax()[0].is_infinite());
    }

    #[test]
    fn empty_matrices_are_fine() {
        for (rows, cols) in [(0, 0), (0, 3), (2, 0)] {
            let a = MatRef::new(&[0f32; 0][..], rows, cols).unwrap();
            let found = quantize_activations(Isa::detect(), a, 6.0, OutlierScope::Batch);
            assert_eq!((found.rows(), found.cols()), (rows, cols));
        }
    }

    proptest::proptest! {
        #[test]
        fn every_path_is_the_reference(
            values in proptest::collection::vec(-9.0f32..9.0, 0..400),
            rows in 1usize..20,
            threshold in proptest::sample::select(vec![0.0f32, 3.0, 6.0]),
        ) {
            let kept = values.len() / rows * rows;
            check(&values[..kept], rows, threshold);
            let halves: Vec<f16> = values[..kept].iter().map(|&x| f16::from_f32(x)).collect();
            check(&halves, rows, threshold);
            let brains: Vec<half::bf16> = values[..kept].iter().map(|&x| half::bf16::from_f32(x)).collect();
            check(&brains, rows, threshold);
        }
    }
}
