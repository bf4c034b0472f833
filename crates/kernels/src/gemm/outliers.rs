//! The outlier part of a linear layer: few columns, in floating point.
//!
//! For each row, `y[n] += value · weight[column, n]`, column by column. Vector lanes are output
//! features, so each output is summed in ascending order of columns, rounding after every
//! multiplication and every addition, whatever the instruction set.

use super::{Int8WeightRef, OutlierWeights};
use crate::matrix::expect;
use crate::outlier::Outliers;
use crate::rowwise::dequantized;
use crate::simd::for_every_width;
use crate::{Element, Isa, KernelError};
use half::f16;
use std::ops::Range;

/// The outliers of all rows and the source of their weights.
pub(super) struct OutlierMatmul<'a> {
    outliers: &'a Outliers,
    weights: OutlierWeights<'a>,
    /// The distinct outlier columns, ascending.
    columns: Vec<u32>,
    /// With original weights: for each distinct column, the row of `values` that holds it. With kept
    /// weights: for those distinct columns that are kept, their place and that row.
    sources: Vec<(usize, usize)>,
    /// For each outlier of each row, the index of its column in `columns`.
    places: Vec<u32>,
}

impl<'a> OutlierMatmul<'a> {
    pub(super) fn new(
        outliers: &'a Outliers,
        weights: OutlierWeights<'a>,
        outputs: usize,
    ) -> Result<Self, KernelError> {
        let columns = outliers.distinct_columns();
        let sources = sources(weights, &columns, outputs)?;

        // A lookup table, because with hundreds of outlier columns binary searches cost as much as
        // the matmul.
        let mut table = vec![0u32; columns.last().map_or(0, |&last| last as usize + 1)];
        columns
            .iter()
            .zip(0..)
            .for_each(|(&column, place)| table[column as usize] = place);
        let places = outliers
            .columns()
            .iter()
            .map(|&column| table[column as usize])
            .collect();
        Ok(Self {
            outliers,
            weights,
            columns,
            sources,
            places,
        })
    }

    /// Gathers the weights of the distinct columns for some outputs: f32 `[columns, outputs]`.
    pub(super) fn gather(
        &self,
        isa: Isa,
        w: &Int8WeightRef<'_>,
        outputs: Range<usize>,
        into: &mut Vec<f32>,
    ) {
        let width = outputs.len();
        into.clear();
        match self.weights {
            OutlierWeights::Dequantized | OutlierWeights::Kept { .. } => {
                into.resize(self.columns.len() * width, 0.0);
                #[cfg(target_arch = "x86_64")]
                if isa.width() == crate::isa::Width::V512 && width.is_multiple_of(16) {
                    super::vnni::v512::gather(
                        isa,
                        w.codes,
                        &self.columns,
                        outputs.clone(),
                        w.absmax,
                        into,
                    );
                    return self.overwrite_kept(outputs, into);
                }
                #[cfg(not(target_arch = "x86_64"))]
                let _ = isa;

                for (i, n) in outputs.clone().enumerate() {
                    let row = w.codes.row(n);
                    let absmax = w.absmax[n];
                    for (line, &column) in into.chunks_exact_mut(width).zip(&self.columns) {
                        line[i] = dequantized(row[column as usize], absmax);
                    }
                }
                self.overwrite_kept(outputs, into);
            }
            OutlierWeights::Original { values, .. } => {
                for &(_, source) in &self.sources {
                    into.extend(&values.row(source)[outputs.clone()]);
                }
            }
        }
    }

    /// Replaces the weights of kept columns by those in f16.
    fn overwrite_kept(&self, outputs: Range<usize>, into: &mut [f32]) {
        let OutlierWeights::Kept { values, .. } = self.weights else {
            return;
        };
        let width = outputs.len();
        for &(place, source) in &self.sources {
            let line = &mut into[place * width..][..width];
            f16::to_f32_slice(&values.row(source)[outputs.clone()], line);
        }
    }

    /// Adds the outliers of row `m` to its outputs `y`; `weights` are those that [`Self::gather`]
    /// wrote.
    pub(super) fn add(&self, isa: Isa, m: usize, weights: &[f32], y: &mut [f32]) {
        if self.columns.is_empty() {
            return;
        }

        let range = self.outliers.range(m);
        let places = &self.places[range];
        let values = self.outliers.row(m).1;
        add_scaled(isa, places, values, weights, y);
    }
}

/// See [`OutlierMatmul::sources`].
fn sources(
    weights: OutlierWeights<'_>,
    columns: &[u32],
    outputs: usize,
) -> Result<Vec<(usize, usize)>, KernelError> {
    let expect_shape = |given: usize, rows: usize, cols: usize| {
        expect("rows of the original outlier weights", given, rows)?;
        expect("columns of the original outlier weights", outputs, cols)
    };
    let places = columns.iter().enumerate();
    match weights {
        OutlierWeights::Dequantized => Ok(Vec::new()),
        OutlierWeights::Original {
            columns: given,
            values,
        } => {
            expect_shape(given.len(), values.rows(), values.cols())?;
            places
                .map(|(place, &column)| match given.binary_search(&column) {
                    Ok(source) => Ok((place, source)),
                    Err(_) => Err(KernelError::MissingOutlierColumn {
                        column,
                        given: given.len(),
                    }),
                })
                .collect()
        }
        OutlierWeights::Kept {
            columns: given,
            values,
        } => {
            expect_shape(given.len(), values.rows(), values.cols())?;
            Ok(places
                .filter_map(|(place, column)| Some((place, given.binary_search(column).ok()?)))
                .collect())
        }
    }
}

for_every_width! {
    /// `y[n] += values[i] · weights[places[i], n]` for each `i` in order.
    fn add_scaled(places: &[u32], values: &[f32], weights: &[f32], y: &mut [f32]) = add_each
}

#[inline(always)]
fn add_each(places: &[u32], values: &[f32], weights: &[f32], y: &mut [f32]) {
    let width = y.len();
    let mut first = 0;

    // 64 independent sums hide the latency of an addition; what is left of a block is narrower.
    let (wide, rest) = y.as_chunks_mut::<64>();
    for y in wide {
        add_chunk(places, values, weights, width, first, y);
        first += 64;
    }

    let (narrow, rest) = rest.as_chunks_mut::<8>();
    for y in narrow {
        add_chunk(places, values, weights, width, first, y);
        first += 8;
    }

    for y in rest {
        let y = std::array::from_mut(y);
        add_chunk(places, values, weights, width, first, y);
        first += 1;
    }
}

/// The `N` outputs `y` from `first` on, of `width` in a line of `weights`.
#[inline(always)]
fn add_chunk<const N: usize>(
    places: &[u32],
    values: &[f32],
    weights: &[f32],
    width: usize,
    first: usize,
    y: &mut [f32; N],
) {
    let mut sums = *y;
    for (&place, &value) in places.iter().zip(values) {
        if let Some(line) = weights[place as usize * width + first..].first_chunk::<N>() {
            for n in 0..N {
                sums[n] += value * line[n];
            }
        }
    }

    *y = sums;
}
