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
    /// The columns whose weights are original: their place in `columns`, and the row of `values` that
    /// holds them.
    sources: Vec<(usize, usize)>,
    /// The columns whose weights are dequantised, after their place in `columns`.
    dequantized: Vec<(u32, u32)>,
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
        let mut is_original = vec![false; columns.len()];
        sources
            .iter()
            .for_each(|&(place, _)| is_original[place] = true);
        let dequantized = (0..).zip(&columns).zip(&is_original);
        let dequantized = dequantized
            .filter_map(|((place, &column), original)| (!original).then_some((place, column)))
            .collect();

        let places = places(outliers, &columns);
        Ok(Self {
            outliers,
            weights,
            columns,
            sources,
            dequantized,
            places,
        })
    }

    /// Whether no row has an outlier.
    pub(super) fn is_empty(&self) -> bool {
        self.columns.is_empty()
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
        into.resize(self.columns.len() * width, 0.0);
        self.gather_dequantized(isa, w, outputs.clone(), into);

        for &(place, source) in &self.sources {
            let line = &mut into[place * width..][..width];
            match self.weights {
                OutlierWeights::Dequantized => {}
                OutlierWeights::Original { values, .. } => {
                    line.copy_from_slice(&values.row(source)[outputs.clone()]);
                }
                OutlierWeights::Kept { values, .. } => {
                    f16::to_f32_slice(&values.row(source)[outputs.clone()], line);
                }
            }
        }
    }

    /// Gathers those that are dequantised.
    fn gather_dequantized(
        &self,
        isa: Isa,
        w: &Int8WeightRef<'_>,
        outputs: Range<usize>,
        into: &mut [f32],
    ) {
        let width = outputs.len();
        #[cfg(target_arch = "x86_64")]
        if isa.width() == crate::isa::Width::V512 && width.is_multiple_of(16) {
            let columns = &self.dequantized;
            return super::vnni::v512::gather(isa, w.codes, columns, outputs, w.absmax, into);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = isa;

        for (i, n) in outputs.enumerate() {
            let row = w.codes.row(n);
            let absmax = w.absmax[n];
            for &(place, column) in &self.dequantized {
                into[place as usize * width + i] = dequantized(row[column as usize], absmax);
            }
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

/// For each outlier of each row, the index of its column in `columns`, which are ascending.
fn places(outliers: &Outliers, columns: &[u32]) -> Vec<u32> {
    if outliers.rows() == 1 {
        return (0..columns.len() as u32).collect();
    }

    // A lookup table, because with hundreds of outlier columns binary searches cost as much as the
    // matmul.
    let mut table = vec![0u32; columns.last().map_or(0, |&last| last as usize + 1)];
    (0..)
        .zip(columns)
        .for_each(|(place, &column)| table[column as usize] = place);
    let all = outliers.columns().iter();
    all.map(|&column| table[column as usize]).collect()
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

    let (narrow, rest) = rest.as_chunks_mut::<16>();
    for y in narrow {
        add_chunk(places, values, weights, width, first, y);
        first += 16;
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
