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

/// In [`OutlierMatmul::sources`]: the weights of this column are dequantised.
const DEQUANTIZED: u32 = u32::MAX;
/// Codes are packed if at least one column in this many is needed; for fewer, packing all columns
/// costs more than reading the needed ones from the rows of the weight.
#[cfg(target_arch = "x86_64")]
const PACKED_COLUMNS: usize = 32;
/// If codes are packed, and columns are outlier columns of at most this many rows, on average, each
/// row dequantises them for itself.
#[cfg(target_arch = "x86_64")]
const PACKED_ROWS: usize = 6;
/// Each row does so too if there are more distinct columns than this: dequantised for all rows, they
/// would not fit L2 beside the activations.
#[cfg(target_arch = "x86_64")]
const MOST_SHARED: usize = 2048;

/// The outliers of all rows and the source of their weights.
pub(super) struct OutlierMatmul<'a> {
    isa: Isa,
    outliers: &'a Outliers,
    weights: OutlierWeights<'a>,
    /// For each column, the row of the given weights that belongs to it, or [`DEQUANTIZED`]. Empty:
    /// all are dequantised.
    sources: Vec<u32>,
    access: Access,
}

/// How the weights of outlier columns are read.
#[derive(Clone, Copy)]
enum Access {
    None,
    /// By one row, where they are.
    Single,
    /// From f32 lines of all columns that any row needs.
    Shared,
    /// From panels of all columns.
    #[cfg(target_arch = "x86_64")]
    Packed,
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
    sources: Sources<'a>,
}

/// Where the weights of columns come from.
#[derive(Clone, Copy)]
struct Sources<'a> {
    /// As [`OutlierMatmul::sources`].
    rows: &'a [u32],
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
        let access = match outliers.rows() {
            _ if outliers.is_empty() => Access::None,
            1 => Access::Single,
            _ => shared_or_packed(isa, outliers, w.codes.cols()),
        };

        Ok(Self {
            isa,
            outliers,
            weights,
            sources: sources(weights, outliers.distinct(), w.codes.cols())?,
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
        match self.access {
            Access::None | Access::Single => {}
            Access::Shared => self.gather_lines(w, outputs, gathered),
            #[cfg(target_arch = "x86_64")]
            Access::Packed => avx512::pack(self.isa, w.codes, outputs, &mut gathered.panels),
        }
    }

    /// Writes the weights of all distinct columns for some outputs to the lines of `gathered`.
    fn gather_lines(&self, w: &Int8WeightRef<'_>, outputs: Range<usize>, gathered: &mut Gathered) {
        let isa = self.isa;
        let columns = self.outliers.distinct();
        #[cfg(target_arch = "x86_64")]
        let panels = packs(isa, w.codes.cols(), columns.len()).then(|| {
            avx512::pack(isa, w.codes, outputs.clone(), &mut gathered.panels);
            &gathered.panels[..]
        });
        #[cfg(not(target_arch = "x86_64"))]
        let panels = None;

        let lines = &mut gathered.lines;
        lines.resize(columns.len() * outputs.len(), 0.0);
        for (&column, line) in columns.iter().zip(lines.chunks_mut(outputs.len())) {
            match self.all_sources().of(column) {
                DEQUANTIZED => {
                    dequantize_line(isa, w, panels, column as usize, outputs.clone(), line);
                }
                source => given_line(self.weights, source, outputs.clone(), line),
            }
        }
    }

    fn all_sources(&self) -> Sources<'_> {
        Sources {
            rows: &self.sources,
            weights: self.weights,
        }
    }

    /// The outliers if all rows share their weights; `gathered` is what [`Self::gather`] wrote.
    pub(super) fn shared<'b>(&'b self, gathered: &'b Gathered) -> Option<SharedOutliers<'b>> {
        match self.access {
            Access::Shared => Some(SharedOutliers {
                outliers: self.outliers,
                lines: &gathered.lines,
            }),
            _ => None,
        }
    }

    /// Whether there are outliers to [`Self::add`] row by row.
    pub(super) fn must_be_added(&self) -> bool {
        !matches!(self.access, Access::None | Access::Shared)
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
            sources: self.all_sources(),
        };

        match self.access {
            Access::None | Access::Shared => {}
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
fn shared_or_packed(isa: Isa, outliers: &Outliers, columns: usize) -> Access {
    #[cfg(target_arch = "x86_64")]
    {
        let distinct = outliers.distinct().len();
        let is_for_few_rows = outliers.count() <= PACKED_ROWS * distinct;
        if packs(isa, columns, distinct) && (is_for_few_rows || distinct > MOST_SHARED) {
            return Access::Packed;
        }
    }
    let _ = (isa, outliers, columns);

    Access::Shared
}

impl Terms<'_> {
    /// Adds one row's outliers to its outputs `y`.
    fn add(&self, w: &Int8WeightRef<'_>, outputs: Range<usize>, y: &mut [f32]) {
        for (y, n) in y.iter_mut().zip(outputs) {
            let codes = w.codes.row(n);
            for (&column, value) in self.columns.iter().zip(self.values) {
                let weight = match self.sources.of(column) {
                    DEQUANTIZED => dequantized(codes[column as usize], w.absmax[n]),
                    source => given(self.sources.weights, source, n),
                };
                *y += value * weight;
            }
        }
    }
}

impl Sources<'_> {
    /// The row of the given weights for a column, or [`DEQUANTIZED`].
    #[inline(always)]
    fn of(self, column: u32) -> u32 {
        let known = self.rows.get(column as usize);
        known.copied().unwrap_or(DEQUANTIZED)
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

/// [`OutlierMatmul::sources`], for weights with K `cols`.
///
/// # Errors
/// [`KernelError::MissingOutlierColumn`] if original weights are given, but not those of a `needed`
/// column.
fn sources(
    weights: OutlierWeights<'_>,
    needed: &[u32],
    cols: usize,
) -> Result<Vec<u32>, KernelError> {
    let (OutlierWeights::Original { columns, .. } | OutlierWeights::Kept { columns, .. }) = weights
    else {
        return Ok(Vec::new());
    };

    let mut sources = vec![DEQUANTIZED; cols];
    for (row, &column) in (0..).zip(columns) {
        if let Some(source) = sources.get_mut(column as usize) {
            *source = row;
        }
    }

    let is_missing = |&&column: &&u32| sources[column as usize] == DEQUANTIZED;
    match (weights, needed.iter().find(is_missing)) {
        (OutlierWeights::Original { .. }, Some(&column)) => {
            Err(KernelError::MissingOutlierColumn {
                column,
                given: columns.len(),
            })
        }
        _ => Ok(sources),
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

/// Dequantises the weights of a column for some outputs, with codes from `panels` if there are any.
fn dequantize_line(
    isa: Isa,
    w: &Int8WeightRef<'_>,
    panels: Option<&[u8]>,
    column: usize,
    outputs: Range<usize>,
    line: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if isa.width() == Width::V512 && line.len().is_multiple_of(avx512::OUTPUTS) {
        return avx512::dequantize_column(isa, w, panels, column, outputs, line);
    }
    let _ = (isa, panels); // Only AVX-512 packs weights.

    for (y, n) in line.iter_mut().zip(outputs) {
        *y = dequantized(w.codes.row(n)[column], w.absmax[n]);
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
            places: &self.outliers.places()[self.outliers.range(m)],
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
