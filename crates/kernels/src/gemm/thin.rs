//! The outlier part of the product: few columns, in floating point.
//!
//! For each row, `y[n] += value · weight[column, n]`, column after column. The vector lanes are
//! output features, so each output is summed in ascending order of the columns with a rounding
//! after every product and every sum, whatever the instruction set.

use super::{Int8WeightRef, OutlierWeights};
use crate::matrix::expect;
use crate::outlier::Outliers;
use crate::rowwise::dequantized;
use crate::simd::for_every_width;
use crate::{Isa, KernelError};
use std::ops::Range;

/// The outliers of all rows and where their weights come from.
pub(super) struct ThinProduct<'a> {
    outliers: &'a Outliers,
    weights: OutlierWeights<'a>,
    /// The distinct columns, and with original weights the rows of `values` that hold them.
    columns: Vec<u32>,
    sources: Vec<usize>,
    /// For each listed outlier the place of its column among the distinct ones.
    places: Vec<u32>,
}

impl<'a> ThinProduct<'a> {
    pub(super) fn new(
        outliers: &'a Outliers,
        weights: OutlierWeights<'a>,
        outputs: usize,
    ) -> Result<Self, KernelError> {
        let columns = outliers.distinct_columns();
        let mut sources = Vec::new();
        if let OutlierWeights::Original {
            columns: given,
            values,
        } = weights
        {
            expect(
                "rows of the original outlier weights",
                given.len(),
                values.rows(),
            )?;
            expect(
                "columns of the original outlier weights",
                outputs,
                values.cols(),
            )?;
            for &column in &columns {
                let missing = |_| KernelError::MissingOutlierColumn {
                    column,
                    given: given.len(),
                };

                sources.push(given.binary_search(&column).map_err(missing)?);
            }
        }

        // A table instead of searches: with hundreds of outlier columns those cost as much as the
        // product.
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

    /// The weights of the distinct columns for some outputs, `[columns, outputs]`.
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
            OutlierWeights::Dequantized => {
                into.resize(self.columns.len() * width, 0.0);
                #[cfg(target_arch = "x86_64")]
                if isa.width() == crate::isa::Width::V512 && width.is_multiple_of(16) {
                    return super::vnni::v512::gather(
                        isa,
                        w.codes,
                        &self.columns,
                        outputs,
                        w.absmax,
                        into,
                    );
                }
                #[cfg(not(target_arch = "x86_64"))]
                let _ = isa;

                for (i, n) in outputs.enumerate() {
                    let row = w.codes.row(n);
                    let absmax = w.absmax[n];
                    for (line, &column) in into.chunks_exact_mut(width).zip(&self.columns) {
                        line[i] = dequantized(row[column as usize], absmax);
                    }
                }
            }
            OutlierWeights::Original { values, .. } => {
                for &source in &self.sources {
                    into.extend(&values.row(source)[outputs.clone()]);
                }
            }
        }
    }

    /// Adds to `y` what the outliers of row `m` give.
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

for_every_width! {
    /// `y[n] += Σ values[i] · weights[places[i], n]`, one after the other.
    fn add_scaled(places: &[u32], values: &[f32], weights: &[f32], y: &mut [f32]) = add_each
}

#[inline(always)]
fn add_each(places: &[u32], values: &[f32], weights: &[f32], y: &mut [f32]) {
    let width = y.len();
    let mut first = 0;

    // Sums of 64 outputs do not wait for each other's additions; the rest of a block is narrower.
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
        add_chunk(
            places,
            values,
            weights,
            width,
            first,
            std::array::from_mut(y),
        );

        first += 1;
    }
}

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
