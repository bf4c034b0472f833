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
/// Outliers of a row for which there is room before memory grows.
const EXPECTED: usize = 16;

/// The outlier columns of each row, with the original activations.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outliers {
    /// Row r owns `starts[r]..starts[r + 1]` of `columns` and `values`.
    starts: Vec<usize>,
    columns: Vec<u32>,
    values: Vec<f32>,
    /// Every column that is listed, ascending.
    distinct: Vec<u32>,
    /// For each of `columns` its place in `distinct`.
    places: Vec<u32>,
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

    /// The range of a row's outliers among all of them.
    #[inline]
    pub(crate) fn range(&self, row: usize) -> Range<usize> {
        self.starts[row]..self.starts[row + 1]
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
        self.distinct().to_vec()
    }

    /// [`Self::distinct_columns`].
    pub(crate) fn distinct(&self) -> &[u32] {
        match self.rows() {
            1 => &self.columns,
            _ => &self.distinct,
        }
    }

    /// For each outlier of each row the place of its column among the distinct ones, if there are
    /// several rows.
    pub(crate) fn places(&self) -> &[u32] {
        &self.places
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
        self.distinct.clear();
        self.places.clear();
    }

    /// Makes room for this many outliers.
    fn reserve(&mut self, count: usize) {
        self.columns.reserve(count);
        self.values.reserve(count);
    }

    /// Ends a row, whose columns have been added, and adds its activations there.
    fn end_row<T: Element>(&mut self, row: &[T]) {
        let start = self.values.len();
        let at = |&column: &u32| row[column as usize].to_f32();
        self.values.extend(self.columns[start..].iter().map(at));
        self.starts.push(self.columns.len());
    }

    /// Adds the rows of another list.
    fn append(&mut self, rows: &Self) {
        let start = self.count();
        self.columns.extend_from_slice(&rows.columns);
        self.values.extend_from_slice(&rows.values);
        self.starts
            .extend(rows.starts[1..].iter().map(|end| start + end));
    }

    /// Finds the distinct columns of all rows, of K `cols`. Returns for each column its place among
    /// them: there may be many outliers, so columns are looked up in a table, not sorted.
    fn find_distinct(&mut self, cols: usize) -> Vec<u32> {
        if self.is_empty() {
            return Vec::new();
        }

        let mut places = vec![u32::MAX; cols];
        for &column in &self.columns {
            places[column as usize] = 0;
        }
        for (column, place) in (0..).zip(&mut places) {
            if *place == 0 {
                *place = self.distinct.len() as u32;
                self.distinct.push(column);
            }
        }

        places
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

        self.outliers.clear();
        if cols == 0 {
            self.outliers.starts.resize(rows + 1, 0);
            return;
        }

        let is_by_row = rows == 1 || rule.scope() == OutlierScope::Row;
        let quantizer = Quantizer { isa, a, rule, kept };
        if rows < PARALLEL_ROWS && is_by_row {
            let row16 = &mut Vec::new();
            quantizer.run(
                0,
                &mut self.codes,
                &mut self.absmax,
                &mut self.outliers,
                row16,
            );
        } else {
            let groups = self.quantize_groups(&quantizer);
            groups.iter().for_each(|rows| self.outliers.append(rows));
        }

        if rows > 1 {
            let places = self.outliers.find_distinct(cols);
            if is_by_row {
                let place_of = |&column: &u32| places[column as usize];
                let columns = self.outliers.columns.iter();
                self.outliers.places.extend(columns.map(place_of));
            } else {
                self.pool(a);
            }
        }
    }

    /// Writes codes and absmax of every row, on several threads; returns the outliers of groups of
    /// rows.
    fn quantize_groups<T: Element>(&mut self, quantizer: &Quantizer<'_, T>) -> Vec<Outliers> {
        let rows = self.absmax.len();
        let mut found = vec![Outliers::default(); rows.div_ceil(TASK_ROWS)];
        let groups = self
            .codes
            .chunks_mut(TASK_ROWS * self.cols)
            .zip(self.absmax.chunks_mut(TASK_ROWS))
            .zip(&mut found)
            .enumerate()
            .collect();
        team::for_each(
            groups,
            |row16: &mut Vec<f16>, (group, ((codes, absmax), outliers))| {
                outliers.clear();
                outliers.reserve(absmax.len() * (quantizer.kept.len() + EXPECTED));
                quantizer.run(group * TASK_ROWS, codes, absmax, outliers, row16);
            },
        );

        found
    }

    /// Makes every column with an outlier an outlier column of every row.
    fn pool<T: Element>(&mut self, a: MatRef<'_, T>) {
        let pooled = std::mem::take(&mut self.outliers.distinct);
        self.zero_columns(&pooled);

        self.outliers.clear();
        for row in 0..a.rows() {
            self.outliers.columns.extend_from_slice(&pooled);
            self.outliers.end_row(a.row(row));
            self.outliers.places.extend(0..pooled.len() as u32);
        }
        self.outliers.distinct = pooled;
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
/// If a chunk has one, its parts are searched: most parts have none.
const PART: usize = 8;

/// Rows to quantise, and the rule for their outliers.
struct Quantizer<'a, T> {
    isa: Isa,
    a: MatRef<'a, T>,
    rule: OutlierRule,
    /// Columns that are outlier columns in every row.
    kept: &'a [u32],
}

impl<T: Element> Quantizer<'_, T> {
    /// Quantises rows from `first` on, one for each `absmax`, and adds the outliers of each.
    fn run(
        &self,
        first: usize,
        codes: &mut [i8],
        absmax: &mut [f32],
        outliers: &mut Outliers,
        row16: &mut Vec<f16>,
    ) {
        let cols = self.a.cols();
        row16.resize(cols, f16::ZERO);
        let rows = codes.chunks_mut(cols).zip(absmax);
        for (row, (codes, absmax)) in (first..).zip(rows) {
            let values = self.a.row(row);
            T::to_f16_slice(values, row16);
            let columns = &mut outliers.columns;
            *absmax = quantize_keeping(self.isa, row16, self.rule, self.kept, codes, columns);
            outliers.end_row(values);
        }
    }
}

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
            let (parts, rest) = chunk.as_chunks_mut::<PART>();
            let mut first = first;
            for part in parts {
                let mut largest_of_part = largest_magnitude(part);
                if largest_of_part >= limit {
                    largest_of_part = take_scalar(part, first, limit, columns);
                }
                largest_here = largest_of_part.max(largest_here);
                first += PART as u32;
            }
            largest_here = take_scalar(rest, first, limit, columns).max(largest_here);
        }

        largest = largest_here.max(largest);
        first += CHUNK as u32;
    }

    largest
}

/// [`take_each`] for a few values, one by one; the column of the first is `first`.
#[inline(always)]
fn take_scalar(part: &mut [f16], first: u32, limit: u16, columns: &mut Vec<u32>) -> u16 {
    let mut largest = 0;
    for (column, x) in (first..).zip(part) {
        let bits = x.to_bits() & 0x7fff;
        if is_outlier(bits, limit) {
            columns.push(column);
            *x = f16::ZERO;
        } else {
            largest = bits.max(largest);
        }
    }

    largest
}

/// Whether the magnitude's bits are from `limit` to infinity. A NaN is no outlier, so that it shows
/// up in `absmax`.
#[inline(always)]
fn is_outlier(bits: u16, limit: u16) -> bool {
    bits >= limit && bits <= f16::INFINITY.to_bits()
}

#[cfg(test)]
mod tests;
