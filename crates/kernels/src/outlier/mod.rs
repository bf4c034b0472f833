//! Quantised activations: which features are outliers, and the codes of all others (bitsandbytes'
//! `int8_vectorwise_quant` with a threshold).

mod rule;

use crate::rowwise::{largest_bits, quantize_row};
use crate::simd::for_every_width;
use crate::{AlignedVec, Element, Isa, MatRef};
use half::f16;
use rayon::prelude::*;
use std::ops::Range;

pub(crate) use rule::RMS_CHUNK;
pub use rule::{OutlierRule, OutlierScope, row_rms, smallest_outlier};

/// Rows from which on quantisation runs on several threads.
const PARALLEL_ROWS: usize = 16;

/// The outlier columns of each row, with the original activations.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outliers {
    /// Row r owns `starts[r]..starts[r + 1]` of `columns` and `values`.
    starts: Vec<usize>,
    columns: Vec<u32>,
    values: Vec<f32>,
}

impl Outliers {
    /// The outlier columns of a row, ascending, and its activations there.
    ///
    /// ```
    /// use llm_int8_kernels::{Isa, MatRef, OutlierRule, quantize_activations};
    /// let a = quantize_activations(Isa::detect(), MatRef::new(&[7.0f32, 1.0], 1, 2)?, OutlierRule::row(6.0));
    /// assert_eq!(a.outliers().row(0), (&[0u32][..], &[7.0f32][..]));
    /// # Ok::<(), llm_int8_kernels::KernelError>(())
    /// ```
    pub fn row(&self, row: usize) -> (&[u32], &[f32]) {
        let range = self.range(row);
        (&self.columns[range.clone()], &self.values[range])
    }

    /// The range of a row's outliers in [`Outliers::columns`].
    pub(crate) fn range(&self, row: usize) -> Range<usize> {
        self.starts[row]..self.starts[row + 1]
    }

    /// The outlier columns of all rows, concatenated.
    pub(crate) fn columns(&self) -> &[u32] {
        &self.columns
    }

    /// Every column that is an outlier column of any row, ascending.
    ///
    /// ```
    /// use llm_int8_kernels::{Isa, MatRef, OutlierRule, quantize_activations};
    /// let a = MatRef::new(&[1.0f32, 7.0, 9.0, 1.0], 2, 2)?;
    /// let a = quantize_activations(Isa::detect(), a, OutlierRule::row(6.0));
    /// assert_eq!(a.outliers().distinct_columns(), [0, 1]);
    /// # Ok::<(), llm_int8_kernels::KernelError>(())
    /// ```
    pub fn distinct_columns(&self) -> Vec<u32> {
        if self.rows() == 1 {
            return self.columns.clone();
        }
        distinct_columns([&self.columns[..]].into_iter())
    }

    /// The number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Number of activations that are multiplied in floating point.
    pub fn count(&self) -> usize {
        self.columns.len()
    }

    /// Whether no row has an outlier.
    ///
    /// ```
    /// use llm_int8_kernels::{Isa, MatRef, OutlierRule, quantize_activations};
    /// let a = quantize_activations(Isa::detect(), MatRef::new(&[1.0f32], 1, 1)?, OutlierRule::batch(6.0));
    /// assert!(a.outliers().is_empty());
    /// # Ok::<(), llm_int8_kernels::KernelError>(())
    /// ```
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }
}

/// Quantised activations: codes, absmax, and the outliers, which stay in floating point.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct QuantizedActivations {
    codes: AlignedVec<i8>,
    absmax: Vec<f32>,
    outliers: Outliers,
    cols: usize,
}

impl QuantizedActivations {
    /// The number of rows, M.
    pub fn rows(&self) -> usize {
        self.absmax.len()
    }

    /// The number of columns, K.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The codes `[M, K]`; 0 at outliers.
    pub fn codes(&self) -> MatRef<'_, i8> {
        MatRef::trusted(&self.codes, self.rows(), self.cols)
    }

    /// The absmax of each row without its outliers. NaN or infinite if the row holds such a value,
    /// which makes its outputs NaN rather than hiding it.
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// The outliers, which are multiplied in floating point.
    pub fn outliers(&self) -> &Outliers {
        &self.outliers
    }
}

/// Quantises activations `a` `[M, K]` row by row.
///
/// Values are rounded to f16 first. The code of an outlier is 0, `absmax` ignores it, and it is listed
/// with its original value. With [`OutlierScope::Batch`] its whole column is listed; a value that is
/// no outlier in such a column still counts for its row's `absmax`, as in bitsandbytes.
///
/// ```
/// use llm_int8_kernels::{Isa, MatRef, OutlierRule, quantize_activations};
/// let a = MatRef::new(&[2.0f32, 1.0, 6.0, 4.0], 2, 2)?;
/// let pooled = quantize_activations(Isa::detect(), a, OutlierRule::batch(6.0));
/// assert_eq!(pooled.codes().data(), [0, 64, 0, 127]); // 6.0 makes column 0 an outlier column for both rows
/// assert_eq!(pooled.absmax(), [2.0, 4.0]);
/// assert_eq!(pooled.outliers().row(0), (&[0u32][..], &[2.0f32][..]));
/// let alone = quantize_activations(Isa::detect(), a, OutlierRule::row(6.0));
/// assert_eq!(alone.codes().data(), [127, 64, 0, 127]);
/// # Ok::<(), llm_int8_kernels::KernelError>(())
/// ```
pub fn quantize_activations<T: Element>(
    isa: Isa,
    a: MatRef<'_, T>,
    rule: OutlierRule,
) -> QuantizedActivations {
    let mut activations = QuantizedActivations::default();
    activations.refill(isa, a, rule, &[]);
    activations
}

impl QuantizedActivations {
    /// [`quantize_activations`], reusing this value's memory, and with columns that are outlier
    /// columns in every row whatever their values, ascending: those whose weights a layer keeps in
    /// floating point. Their values count for nothing else.
    ///
    /// ```
    /// use llm_int8_kernels::{Isa, MatRef, OutlierRule, QuantizedActivations};
    /// let mut a = QuantizedActivations::default();
    /// for x in [4.0f32, 2.0] {
    ///     a.refill(Isa::detect(), MatRef::new(&[x, 1.0], 1, 2)?, OutlierRule::row(6.0), &[]);
    ///     assert_eq!((a.absmax(), a.codes().data()[0]), (&[x][..], 127));
    /// }
    /// a.refill(Isa::detect(), MatRef::new(&[4.0f32, 1.0], 1, 2)?, OutlierRule::row(6.0), &[0]);
    /// assert_eq!((a.absmax(), a.outliers().row(0)), (&[1.0][..], (&[0u32][..], &[4.0f32][..])));
    /// # Ok::<(), llm_int8_kernels::KernelError>(())
    /// ```
    ///
    /// # Panics
    /// If a kept column is not less than K.
    pub fn refill<T: Element>(
        &mut self,
        isa: Isa,
        a: MatRef<'_, T>,
        rule: OutlierRule,
        kept: &[u32],
    ) {
        let rows = a.rows();
        let cols = a.cols();
        self.cols = cols;
        self.codes.reset(rows * cols, 0);
        self.absmax.clear();
        self.absmax.resize(rows, 0.0);

        let row_outliers = self.quantize_rows(isa, a, rule, kept);
        let lists = row_outliers.iter().map(Vec::as_slice);
        self.outliers = match rule.scope() {
            OutlierScope::Row => collect_outliers(a, lists),
            OutlierScope::Batch => {
                let pooled = distinct_columns(lists);
                self.zero_columns(&pooled);
                collect_outliers(a, std::iter::repeat_n(&pooled[..], rows))
            }
        };
    }

    /// Writes codes and absmax of every row; returns the columns of each row's own outliers.
    fn quantize_rows<T: Element>(
        &mut self,
        isa: Isa,
        a: MatRef<'_, T>,
        rule: OutlierRule,
        kept: &[u32],
    ) -> Vec<Vec<u32>> {
        let cols = a.cols();
        let mut row_outliers = vec![Vec::new(); a.rows()];
        if cols == 0 {
            return row_outliers;
        }

        let quantize = |row16: &mut Vec<f16>, row: usize, codes: &mut [i8], absmax: &mut f32| {
            T::to_f16_slice(a.row(row), row16);
            kept.iter()
                .for_each(|&column| row16[column as usize] = f16::ZERO);
            let mut columns = quantize_row_without_outliers(isa, row16, rule, codes, absmax);
            if !kept.is_empty() {
                columns.extend(kept);
                columns.sort_unstable();
            }
            columns
        };
        let scratch = || vec![f16::ZERO; cols];
        let codes = &mut self.codes;
        let absmax = &mut self.absmax;

        if a.rows() >= PARALLEL_ROWS {
            (codes
                .par_chunks_mut(cols)
                .zip(absmax)
                .zip(&mut row_outliers)
                .enumerate())
            .with_min_len(PARALLEL_ROWS / 2)
            .for_each_init(scratch, |row16, (row, ((codes, absmax), outliers))| {
                *outliers = quantize(row16, row, codes, absmax)
            });
        } else {
            let mut row16 = scratch();
            let rows = codes.chunks_mut(cols).zip(absmax).zip(&mut row_outliers);
            for (row, ((codes, absmax), outliers)) in rows.enumerate() {
                *outliers = quantize(&mut row16, row, codes, absmax);
            }
        }

        row_outliers
    }

    /// Sets the codes of these columns to 0 in every row.
    fn zero_columns(&mut self, columns: &[u32]) {
        if columns.is_empty() {
            return;
        }

        let zero = |codes: &mut [i8]| {
            columns
                .iter()
                .for_each(|&column| codes[column as usize] = 0);
        };
        self.codes
            .par_chunks_mut(self.cols)
            .with_min_len(PARALLEL_ROWS)
            .for_each(zero);
    }
}

/// Values searched for outliers together: most chunks have none.
const CHUNK: usize = 64;

/// Whether the magnitude's bits are from `limit` to infinity. A NaN is no outlier, so that it shows
/// up in `absmax`.
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
    // No early exit, so that the loop vectorises.
    row16
        .iter()
        .fold(false, |any, x| any | is_outlier(*x, limit))
}

/// Quantises one row without its outliers, which it sets to 0 in `row16`; returns their columns.
fn quantize_row_without_outliers(
    isa: Isa,
    row16: &mut [f16],
    rule: OutlierRule,
    codes: &mut [i8],
    absmax: &mut f32,
) -> Vec<u32> {
    let mut columns = Vec::new();
    let mut largest = f16::from_bits(largest_bits(isa, row16));

    if let Some(limit) = rule.limit(isa, row16, largest) {
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

/// The distinct columns of all lists, ascending. Lists may be long (every row repeats a pooled
/// column), so columns are marked in a table, not sorted.
fn distinct_columns<'a>(lists: impl Iterator<Item = &'a [u32]> + Clone) -> Vec<u32> {
    let end = lists
        .clone()
        .flatten()
        .max()
        .map_or(0, |&last| last as usize + 1);
    let mut marks = vec![false; end];
    lists
        .flatten()
        .for_each(|&column| marks[column as usize] = true);
    (0..)
        .zip(marks)
        .filter_map(|(column, marked)| marked.then_some(column))
        .collect()
}

/// Looks up each row's activations at its outlier columns; `lists` has one list of columns per row.
fn collect_outliers<'a, T: Element>(
    a: MatRef<'_, T>,
    lists: impl Iterator<Item = &'a [u32]>,
) -> Outliers {
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
mod tests;
