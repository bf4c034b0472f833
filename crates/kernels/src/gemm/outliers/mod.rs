//! The outlier part of a linear layer: few columns, in floating point.
//!
//! - For each row, `y[n] += value · weight[column, n]`, column by column, in ascending order,
//!   rounding after every multiplication and every addition, whatever the instruction set.
//! - The weights of a column are `K` bytes apart. A single row reads them where they are, right
//!   after its matmul, while they are in L1 (`Single`).
//! - If rows share their columns, as with bitsandbytes' rule for a batch, each weight is
//!   dequantised once for all rows (`Shared`), and outliers are added in the same pass as scale and
//!   bias.
//! - If every row has its own, nearly all columns are needed. Then codes are first packed into
//!   panels, where those of sixteen outputs lie in a register (AVX-512 only). If each column is used
//!   by few rows, its weights are dequantised for each of them (`Packed`).

#[cfg(target_arch = "x86_64")]
mod avx512;

use super::{Int8WeightRef, OutlierWeights};
#[cfg(target_arch = "x86_64")]
use crate::isa::Width;
use crate::matrix::expect;
use crate::outlier::Outliers;
use crate::rowwise::dequantized;
use crate::{Element, Isa, KernelError};
use half::f16;
use std::ops::Range;

/// In [`OutlierMatmul::sources`]: the weights of this outlier are dequantised.
const DEQUANTIZED: u32 = u32::MAX;
/// Codes are packed if at least one column in this many is needed; for fewer, packing all columns
/// costs more than reading the needed ones from the rows of the weight.
#[cfg(target_arch = "x86_64")]
const PACKED_COLUMNS: usize = 32;
/// Packed codes are dequantised for each row if a column is used by at most this many rows, on
/// average.
#[cfg(target_arch = "x86_64")]
const PACKED_ROWS: usize = 6;
/// And also if there are more columns than this: dequantised for all rows, they would not fit L2
/// beside the activations.
#[cfg(target_arch = "x86_64")]
const MOST_SHARED: usize = 2048;

/// The outliers of all rows and the source of their weights.
pub(super) struct OutlierMatmul<'a> {
    isa: Isa,
    outliers: &'a Outliers,
    weights: OutlierWeights<'a>,
    /// For each outlier of each row, the row of the given weights that belongs to its column, or
    /// [`DEQUANTIZED`]. Empty: all are dequantised.
    sources: Vec<u32>,
    access: Access,
}

/// How the weights of outlier columns are read.
enum Access {
    None,
    /// By one row, where they are.
    Single,
    /// From f32 lines of all columns that any row needs.
    Shared(Shared),
    /// From panels of all columns.
    #[cfg(target_arch = "x86_64")]
    Packed,
}

/// Columns whose weights are dequantised once for all rows.
struct Shared {
    /// The distinct columns, ascending, each with its source as in [`OutlierMatmul::sources`].
    columns: Vec<(u32, u32)>,
    /// For each outlier of each row, the index of its column in `columns`.
    places: Vec<u32>,
}

/// Weights of outlier columns for some outputs, reused from task to task.
#[derive(Default)]
pub(super) struct Gathered {
    /// f32 `[columns, outputs]`, of [`Access::Shared`].
    lines: Vec<f32>,
    /// Packed codes, a panel for each sixteen outputs.
    #[cfg(target_arch = "x86_64")]
    panels: Vec<u8>,
}

/// Outliers whose weights all rows share.
pub(super) struct SharedOutliers<'a> {
    outliers: &'a Outliers,
    /// For each outlier of each row its line.
    places: &'a [u32],
    /// f32 `[columns, outputs]`.
    lines: &'a [f32],
}

/// The shared outliers of one row.
#[derive(Clone, Copy, Default)]
pub(super) struct SharedTerms<'a> {
    /// For each outlier its line.
    places: &'a [u32],
    values: &'a [f32],
    /// `[columns, outputs]`.
    lines: &'a [f32],
    /// Outputs of a line.
    outputs: usize,
}

/// Where a row finds the weights of its outlier columns.
#[derive(Clone, Copy)]
struct Terms<'a> {
    /// Ascending.
    columns: &'a [u32],
    values: &'a [f32],
    /// As [`OutlierMatmul::sources`].
    sources: &'a [u32],
    weights: OutlierWeights<'a>,
}

impl<'a> OutlierMatmul<'a> {
    pub(super) fn new(
        isa: Isa,
        outliers: &'a Outliers,
        weights: OutlierWeights<'a>,
        w: &Int8WeightRef<'_>,
    ) -> Result<Self, KernelError> {
        check_shape(weights, w.codes.rows())?;
        let all = outliers.columns();
        let sources = match weights {
            OutlierWeights::Dequantized => Vec::new(),
            _ => all
                .iter()
                .map(|&column| source(weights, column))
                .collect::<Result<_, _>>()?,
        };

        let access = match outliers.rows() {
            _ if all.is_empty() => Access::None,
            1 => Access::Single,
            _ => shared_or_packed(isa, outliers, &sources, w.codes.cols()),
        };

        Ok(Self {
            isa,
            outliers,
            weights,
            sources,
            access,
        })
    }

    /// Whether no row has an outlier.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self.access, Access::None)
    }

    /// Gathers what all rows need of the weights of some outputs.
    pub(super) fn gather(
        &self,
        w: &Int8WeightRef<'_>,
        outputs: Range<usize>,
        gathered: &mut Gathered,
    ) {
        match &self.access {
            Access::None | Access::Single => {}
            Access::Shared(shared) => {
                shared.gather(self.isa, w, self.weights, outputs, gathered);
            }
            #[cfg(target_arch = "x86_64")]
            Access::Packed => avx512::pack(self.isa, w.codes, outputs, &mut gathered.panels),
        }
    }

    /// The outliers if all rows share their weights; `gathered` is what [`Self::gather`] wrote.
    pub(super) fn shared<'b>(&'b self, gathered: &'b Gathered) -> Option<SharedOutliers<'b>> {
        match &self.access {
            Access::Shared(Shared { places, .. }) => Some(SharedOutliers {
                outliers: self.outliers,
                places,
                lines: &gathered.lines,
            }),
            _ => None,
        }
    }

    /// Whether there are outliers to [`Self::add`] row by row.
    pub(super) fn must_be_added(&self) -> bool {
        !matches!(self.access, Access::None | Access::Shared(_))
    }

    /// Adds the outliers of row `m` to its outputs `y`, except for [shared](Self::shared) ones;
    /// `gathered` is what [`Self::gather`] wrote.
    pub(super) fn add(
        &self,
        m: usize,
        w: &Int8WeightRef<'_>,
        outputs: Range<usize>,
        gathered: &Gathered,
        y: &mut [f32],
    ) {
        #[cfg(not(target_arch = "x86_64"))]
        let _ = gathered; // Only AVX-512 packs weights.
        let (columns, values) = self.outliers.row(m);
        let terms = Terms {
            columns,
            values,
            sources: self.sources.get(self.outliers.range(m)).unwrap_or_default(),
            weights: self.weights,
        };

        match &self.access {
            Access::None | Access::Shared(_) => {}
            #[cfg(target_arch = "x86_64")]
            Access::Packed => {
                avx512::add_packed(self.isa, terms, w, outputs, &gathered.panels, y);
            }
            #[cfg(target_arch = "x86_64")]
            Access::Single if self.isa.width() == Width::V512 => {
                let whole = y.len() / avx512::OUTPUTS * avx512::OUTPUTS;
                let (y, rest) = y.split_at_mut(whole);
                let middle = outputs.start + whole;
                avx512::add_strided(self.isa, terms, w, outputs.start..middle, y);
                terms.add(w, middle..outputs.end, rest);
            }
            Access::Single => terms.add(w, outputs, y),
        }
    }
}

/// Whether packing the codes of all `columns` is less work than reading `needed` ones from the rows
/// of the weight.
#[cfg(target_arch = "x86_64")]
fn packs(isa: Isa, columns: usize, needed: usize) -> bool {
    isa.width() == Width::V512
        && columns.is_multiple_of(avx512::DEPTH)
        && needed * PACKED_COLUMNS >= columns
}

/// Shared columns, or packed ones where that is less work.
fn shared_or_packed(isa: Isa, outliers: &Outliers, sources: &[u32], columns: usize) -> Access {
    let all = outliers.columns();
    let distinct = outliers.distinct_columns();

    #[cfg(target_arch = "x86_64")]
    if packs(isa, columns, distinct.len())
        && (all.len() <= PACKED_ROWS * distinct.len() || distinct.len() > MOST_SHARED)
    {
        return Access::Packed;
    }
    let _ = (isa, columns);

    // Lookup tables, because with hundreds of outlier columns binary searches cost as much as the
    // matmul.
    let end = distinct.last().map_or(0, |&last| last as usize + 1);
    let mut source_of = vec![DEQUANTIZED; end];
    for (&column, &source) in all.iter().zip(sources) {
        source_of[column as usize] = source;
    }
    let mut place_of = vec![0u32; end];
    for (place, &column) in (0..).zip(&distinct) {
        place_of[column as usize] = place;
    }

    Access::Shared(Shared {
        columns: distinct
            .iter()
            .map(|&column| (column, source_of[column as usize]))
            .collect(),
        places: all
            .iter()
            .map(|&column| place_of[column as usize])
            .collect(),
    })
}

impl Shared {
    /// Writes the weights of all columns for some outputs to the lines of `gathered`.
    fn gather(
        &self,
        isa: Isa,
        w: &Int8WeightRef<'_>,
        weights: OutlierWeights<'_>,
        outputs: Range<usize>,
        gathered: &mut Gathered,
    ) {
        #[cfg(target_arch = "x86_64")]
        let panels = packs(isa, w.codes.cols(), self.columns.len()).then(|| {
            avx512::pack(isa, w.codes, outputs.clone(), &mut gathered.panels);
            &gathered.panels[..]
        });

        let lines = &mut gathered.lines;
        lines.resize(self.columns.len() * outputs.len(), 0.0);
        let columns = self.columns.iter().zip(lines.chunks_mut(outputs.len()));
        for (&(column, source), line) in columns {
            if source != DEQUANTIZED {
                given_line(weights, source, outputs.clone(), line);
                continue;
            }

            let column = column as usize;
            #[cfg(target_arch = "x86_64")]
            if isa.width() == Width::V512 && line.len().is_multiple_of(avx512::OUTPUTS) {
                avx512::dequantize_column(isa, w, panels, column, outputs.clone(), line);
                continue;
            }
            let _ = isa;

            for (y, n) in line.iter_mut().zip(outputs.clone()) {
                *y = dequantized(w.codes.row(n)[column], w.absmax[n]);
            }
        }
    }
}

impl Terms<'_> {
    /// Adds one row's outliers to its outputs `y`.
    fn add(&self, w: &Int8WeightRef<'_>, outputs: Range<usize>, y: &mut [f32]) {
        for (y, n) in y.iter_mut().zip(outputs) {
            let codes = w.codes.row(n);
            for (i, (&column, value)) in self.columns.iter().zip(self.values).enumerate() {
                let weight = match self.source(i) {
                    DEQUANTIZED => dequantized(codes[column as usize], w.absmax[n]),
                    source => given(self.weights, source, n),
                };
                *y += value * weight;
            }
        }
    }

    /// The row of the given weights for the `i`-th outlier, or [`DEQUANTIZED`].
    #[inline(always)]
    fn source(&self, i: usize) -> u32 {
        self.sources.get(i).copied().unwrap_or(DEQUANTIZED)
    }
}

/// Checks the shape of given weights for a layer of `outputs` output features.
fn check_shape(weights: OutlierWeights<'_>, outputs: usize) -> Result<(), KernelError> {
    let (given, rows, cols) = match weights {
        OutlierWeights::Dequantized => return Ok(()),
        OutlierWeights::Original { columns, values } => {
            (columns.len(), values.rows(), values.cols())
        }
        OutlierWeights::Kept { columns, values } => (columns.len(), values.rows(), values.cols()),
    };
    expect("rows of the original outlier weights", given, rows)?;
    expect("columns of the original outlier weights", outputs, cols)
}

/// The row of the given weights that belongs to a column, or [`DEQUANTIZED`].
fn source(weights: OutlierWeights<'_>, column: u32) -> Result<u32, KernelError> {
    match weights {
        OutlierWeights::Dequantized => Ok(DEQUANTIZED),
        OutlierWeights::Original { columns: given, .. } => match given.binary_search(&column) {
            Ok(source) => Ok(source as u32),
            Err(_) => Err(KernelError::MissingOutlierColumn {
                column,
                given: given.len(),
            }),
        },
        OutlierWeights::Kept { columns: given, .. } => Ok(given
            .binary_search(&column)
            .map_or(DEQUANTIZED, |source| source as u32)),
    }
}

/// The given weight of output `n` in row `source`.
fn given(weights: OutlierWeights<'_>, source: u32, n: usize) -> f32 {
    match weights {
        OutlierWeights::Dequantized => 0.0,
        OutlierWeights::Original { values, .. } => values.row(source as usize)[n],
        OutlierWeights::Kept { values, .. } => Element::to_f32(values.row(source as usize)[n]),
    }
}

/// The given weights of some outputs in row `source`.
fn given_line(weights: OutlierWeights<'_>, source: u32, outputs: Range<usize>, line: &mut [f32]) {
    match weights {
        OutlierWeights::Dequantized => {}
        OutlierWeights::Original { values, .. } => {
            line.copy_from_slice(&values.row(source as usize)[outputs]);
        }
        OutlierWeights::Kept { values, .. } => {
            f16::to_f32_slice(&values.row(source as usize)[outputs], line);
        }
    }
}

impl<'a> SharedOutliers<'a> {
    /// The outliers of row `m`, for a block of this many outputs.
    #[inline(always)]
    pub(super) fn row(&self, m: usize, outputs: usize) -> SharedTerms<'a> {
        SharedTerms {
            places: &self.places[self.outliers.range(m)],
            values: self.outliers.row(m).1,
            lines: self.lines,
            outputs,
        }
    }
}

impl SharedTerms<'_> {
    /// Adds the outliers, one after the other, to `N` outputs of the block from `first` on.
    #[inline(always)]
    pub(super) fn added_to<const N: usize>(&self, mut y: [f32; N], first: usize) -> [f32; N] {
        for (&place, &value) in self.places.iter().zip(self.values) {
            let line = &self.lines[place as usize * self.outputs + first..][..N];
            for n in 0..N {
                y[n] += value * line[n];
            }
        }
        y
    }
}
