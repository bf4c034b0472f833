//! Quantised activations: which features are outliers, and the codes of all others (bitsandbytes'
//! `int8_vectorwise_quant` with a threshold).

mod rule;

use crate::gemm::Packed;
use crate::rowwise::{largest_bits, largest_magnitude, quantize_row};
use crate::simd::for_every_width;
use crate::{AlignedVec, Element, Isa, MatRef, team};
use half::f16;
use std::ops::Range;

pub(crate) use rule::RMS_CHUNK;
pub use rule::{OutlierRule, OutlierScope, row_rms, smallest_outlier};

/// Rows from which on quantisation runs on several threads.
const PARALLEL_ROWS: usize = 16;
/// Rows that a task quantises.
const TASK_ROWS: usize = 8;

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
    #[inline]
    pub fn row(&self, row: usize) -> (&[u32], &[f32]) {
        let range = self.range(row);
        (&self.columns[range.clone()], &self.values[range])
    }

    /// The range of a row's outliers in [`Outliers::columns`].
    #[inline]
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

    fn clear(&mut self) {
        self.starts.clear();
        self.starts.push(0);
        self.columns.clear();
        self.values.clear();
    }

    /// Appends the outlier columns of each row of `a`, one list for each, and the activations there.
    fn collect<'a, T: Element>(
        &mut self,
        a: MatRef<'_, T>,
        lists: impl Iterator<Item = &'a [u32]>,
    ) {
        for (row, columns) in lists.enumerate() {
            let values = a.row(row);
            let at = |&column: &u32| values[column as usize].to_f32();
            self.columns.extend(columns);
            self.values.extend(columns.iter().map(at));
            self.starts.push(self.columns.len());
        }
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
    packed: Packed,
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

    /// The codes packed for matmuls of many rows.
    pub(crate) fn packed(&self) -> &Packed {
        &self.packed
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
        self.packed.clear();
        self.codes.reset(rows * cols, 0);
        self.absmax.clear();
        self.absmax.resize(rows, 0.0);

        let is_by_row = rows == 1 || rule.scope() == OutlierScope::Row;
        if cols > 0 && rows < PARALLEL_ROWS && is_by_row {
            self.quantize_few_rows(isa, a, rule, kept);
            return;
        }

        let row_outliers = self.quantize_rows(isa, a, rule, kept);
        let lists = row_outliers.iter().map(Vec::as_slice);
        self.outliers.clear();
        match rule.scope() {
            OutlierScope::Row => self.outliers.collect(a, lists),
            OutlierScope::Batch => {
                let pooled = distinct_columns(lists);
                self.zero_columns(&pooled);
                self.outliers
                    .collect(a, std::iter::repeat_n(&pooled[..], rows));
            }
        };
    }

    /// Quantises rows one after the other, and lists the outliers of each.
    fn quantize_few_rows<T: Element>(
        &mut self,
        isa: Isa,
        a: MatRef<'_, T>,
        rule: OutlierRule,
        kept: &[u32],
    ) {
        let outliers = &mut self.outliers;
        outliers.clear();

        let mut row16 = vec![f16::ZERO; a.cols()];
        let rows = self.codes.chunks_mut(a.cols()).zip(&mut self.absmax);
        for (row, (codes, absmax)) in rows.enumerate() {
            let values = a.row(row);
            let start = outliers.columns.len();
            T::to_f16_slice(values, &mut row16);
            *absmax = quantize_keeping(isa, &mut row16, rule, kept, codes, &mut outliers.columns);

            let columns = &outliers.columns[start..];
            let at = |&column: &u32| values[column as usize].to_f32();
            outliers.values.extend(columns.iter().map(at));
            outliers.starts.push(outliers.columns.len());
        }
    }

    /// Writes codes and absmax of every row, on several threads if there are many; returns the
    /// columns of each row's own outliers.
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

        let groups = self
            .codes
            .chunks_mut(TASK_ROWS * cols)
            .zip(self.absmax.chunks_mut(TASK_ROWS))
            .zip(row_outliers.chunks_mut(TASK_ROWS))
            .enumerate()
            .collect();
        team::for_each(
            groups,
            |row16: &mut Vec<f16>, (group, ((codes, absmax), outliers))| {
                row16.resize(cols, f16::ZERO);
                let rows = codes.chunks_mut(cols).zip(absmax).zip(outliers);
                for (i, ((codes, absmax), columns)) in rows.enumerate() {
                    T::to_f16_slice(a.row(group * TASK_ROWS + i), row16);
                    *absmax = quantize_keeping(isa, row16, rule, kept, codes, columns);
                }
            },
        );

        row_outliers
    }

    /// Sets the codes of these columns to 0 in every row.
    fn zero_columns(&mut self, columns: &[u32]) {
        if columns.is_empty() {
            return;
        }

        team::for_each_chunk(
            &mut self.codes,
            TASK_ROWS * self.cols,
            |_: &mut (), _, codes| {
                for codes in codes.chunks_mut(self.cols) {
                    for &column in columns {
                        codes[column as usize] = 0;
                    }
                }
            },
        );
    }
}

/// Values searched for outliers together: most chunks have none.
const CHUNK: usize = 64;

/// Quantises one row without its outliers and the `kept` columns, which it sets to 0 in `row16`;
/// appends their columns to `columns`, ascending. Returns the absmax.
fn quantize_keeping(
    isa: Isa,
    row16: &mut [f16],
    rule: OutlierRule,
    kept: &[u32],
    codes: &mut [i8],
    columns: &mut Vec<u32>,
) -> f32 {
    let start = columns.len();
    for &column in kept {
        row16[column as usize] = f16::ZERO;
    }

    let largest = match rule.limit(isa, row16) {
        None => largest_bits(isa, row16),
        Some(limit) => take_outliers(isa, row16, limit, columns),
    };
    let absmax = f16::from_bits(largest).to_f32();
    quantize_row(isa, row16, absmax, codes);

    if !kept.is_empty() {
        columns.extend(kept);
        columns[start..].sort_unstable();
    }
    absmax
}

for_every_width! {
    /// Sets the outliers of a row to 0 and appends their columns. Returns the bits of the largest
    /// magnitude that is left.
    fn take_outliers(row16: &mut [f16], limit: u16, columns: &mut Vec<u32>) -> u16 = take_each
}

#[inline(always)]
fn take_each(row16: &mut [f16], limit: u16, columns: &mut Vec<u32>) -> u16 {
    let mut largest = 0;
    let mut first = 0;
    for chunk in row16.chunks_mut(CHUNK) {
        // A NaN is above every limit, so its chunk may have no outlier.
        let mut largest_here = largest_magnitude(chunk);
        if largest_here >= limit {
            largest_here = 0;
            for (column, x) in (first..).zip(chunk) {
                let bits = x.to_bits() & 0x7fff;
                if is_outlier(bits, limit) {
                    columns.push(column);
                    *x = f16::ZERO;
                } else {
                    largest_here = largest_here.max(bits);
                }
            }
        }

        largest = largest_here.max(largest);
        first += CHUNK as u32;
    }

    largest
}

/// Whether the magnitude's bits are from `limit` to infinity. A NaN is no outlier, so that it shows
/// up in `absmax`.
#[inline(always)]
fn is_outlier(bits: u16, limit: u16) -> bool {
    bits >= limit && bits <= f16::INFINITY.to_bits()
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

#[cfg(test)]
mod tests;
