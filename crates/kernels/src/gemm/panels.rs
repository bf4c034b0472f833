//! Many rows (prefill, batches): sixteen rows of activations are packed into a panel, in which four
//! codes of each row stand side by side, so that a register holds one step of sixteen rows and a
//! weight is broadcast to all of them. Weights stay as they are, row after row; the sums of a tile
//! come out with outputs as rows and are turned. Nothing is added across a register, and packing
//! costs M · K, which is small.
//!
//! | | step of a panel | weights | in registers |
//! |---|---|---|---|
//! | AVX2 | 2 codes as i16, `vpmaddwd` | widened tile by tile | 6 outputs × 16 rows |
//! | AVX-VNNI | 4 codes + 128, `vpdpbusd` | as they are | 6 outputs × 16 rows |
//! | AVX-512 VNNI | the same | as they are | 8 outputs × 48 rows |
//! | AMX | 4 codes, `tdpbssd` | as they are, 16 × 64 at once | 32 outputs × 32 rows |
//! | NEON | 4 codes, `sdot` | as they are | 6 outputs × 16 rows |
//!
//! VNNI's offset is taken off with `128 · Σ w`, summed over each weight row in passing.

use super::Scratch;
#[cfg(target_arch = "aarch64")]
use super::neon;
#[cfg(target_arch = "x86_64")]
use super::{amx, avx2, vnni};
use crate::isa::Kind;
use crate::{AlignedVec, Isa, MatRef};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a panel.
pub(super) const LANES: usize = 16;
/// Bytes of a step: all that a 512-bit register holds.
pub(super) const STEP_BYTES: usize = 64;
/// Outputs of a tile of sums.
pub(super) const TILE: usize = 32;
/// Most panels that a weight is multiplied with while it is in a register.
pub(super) const MAX_PANELS: usize = 3;
/// Columns are filled up to a multiple of this with zeros.
const DEPTH: usize = 64;

/// Activations, packed.
pub(super) struct Panels {
    /// Panel after panel.
    data: AlignedVec<u8>,
    rows: usize,
    columns: usize,
    /// Bytes of a panel.
    panel: usize,
}

/// Sums of up to 32 outputs × 48 rows, outputs outside.
pub(super) type Tile = [[i32; LANES * MAX_PANELS]; TILE];

impl Panels {
    pub(super) fn new(isa: Isa, codes: MatRef<'_, i8>) -> Self {
        let rows = codes.rows();
        let columns = codes.cols();
        let panel = columns.next_multiple_of(DEPTH) / codes_a_step(isa) * STEP_BYTES;
        let mut data = AlignedVec::filled(rows.div_ceil(LANES) * panel, 0u8);

        if panel > 0 {
            data.par_chunks_mut(panel)
                .enumerate()
                .for_each(|(i, panel)| {
                    let rows = i * LANES..rows.min((i + 1) * LANES);
                    pack(isa, codes, rows, panel);
                });
        }

        Self {
            data,
            rows,
            columns,
            panel,
        }
    }

    /// `sums[m][n]`, row-major, of some rows, from the beginning of a panel on, and outputs.
    pub(super) fn multiply(
        &self,
        isa: Isa,
        w: MatRef<'_, i8>,
        [m, n]: [&Range<usize>; 2],
        sums: &mut [i32],
        scratch: &mut Scratch,
    ) {
        debug_assert!(
            m.start.is_multiple_of(LANES) && m.end <= self.rows && w.cols() == self.columns
        );
        let width = n.len();

        if self.panel == 0 {
            return sums.fill(0);
        }
        let group = LANES * panels_at_once(isa);

        let mut tile: Tile = [[0; LANES * MAX_PANELS]; TILE];
        for first in n.clone().step_by(TILE) {
            let outputs = first..n.end.min(first + TILE);
            let weights = scratch.weights(isa, w, outputs.clone());

            let mut next = next_weights(w, outputs.end, m.len().div_ceil(group));
            for row in m.clone().step_by(group) {
                next.next().into_iter().for_each(crate::simd::prefetch);
                let rows = row..m.end.min(row + group);
                let panels = rows.len().div_ceil(LANES);
                let a = &self.data[row / LANES * self.panel..][..panels * self.panel];

                match isa.kind() {
                    Kind::Scalar => scalar(a, self.panel, &weights, &mut tile),
                    #[cfg(target_arch = "x86_64")]
                    Kind::Avx2 => avx2::tile(isa, a, self.panel, &weights, &mut tile),
                    #[cfg(target_arch = "x86_64")]
                    Kind::AvxVnni => vnni::v256::tile(isa, a, self.panel, &weights, &mut tile),
                    #[cfg(target_arch = "x86_64")]
                    Kind::Avx512Vnni => vnni::v512::tile(isa, a, self.panel, &weights, &mut tile),
                    #[cfg(target_arch = "x86_64")]
                    Kind::Amx => amx::tile(isa, a, self.panel, &weights, &mut tile),
                    #[cfg(target_arch = "aarch64")]
                    Kind::NeonDot => neon::tile(isa, a, self.panel, &weights, &mut tile),
                }

                let target = &mut sums[(row - m.start) * width + (first - n.start)..];
                turn(isa, &tile, [rows.len(), outputs.len()], target, width);
            }
        }
    }
}

/// The weights that follow, in so many parts: each is fetched while this tile meets a group of
/// rows, because the processor does not foresee tiles.
fn next_weights(w: MatRef<'_, i8>, first: usize, parts: usize) -> std::slice::Chunks<'_, i8> {
    let last = w.rows().min(first + TILE);
    let weights = &w.data()[first.min(last) * w.cols()..last * w.cols()];
    weights.chunks(weights.len().div_ceil(parts).max(1))
}

/// Codes of one row in a step.
fn codes_a_step(isa: Isa) -> usize {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => 2,
        _ => 4,
    }
}

/// Panels that a weight is multiplied with while it is in a register.
fn panels_at_once(isa: Isa) -> usize {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Amx => 2,
        _ => MAX_PANELS,
    }
}

/// What is added to the codes of activations, as bits.
fn offset(isa: Isa) -> u8 {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::AvxVnni | Kind::Avx512Vnni => 0x80,
        _ => 0,
    }
}

/// Fills a panel with up to sixteen rows; what is missing counts as zeros.
fn pack(isa: Isa, codes: MatRef<'_, i8>, rows: Range<usize>, panel: &mut [u8]) {
    let size = codes_a_step(isa);
    let offset = offset(isa);
    #[cfg(target_arch = "x86_64")]
    if isa.width() == crate::isa::Width::V512
        && rows.len() == LANES
        && codes.cols().is_multiple_of(DEPTH)
    {
        let codes = &codes.data()[rows.start * codes.cols()..rows.end * codes.cols()];
        return vnni::v512::pack(isa, codes, offset, panel);
    }

    panel.fill(offset);

    for (lane, row) in rows.enumerate() {
        let row = codes.row(row);
        let steps = panel
            .chunks_exact_mut(STEP_BYTES)
            .map(|step| &mut step[lane * 4..lane * 4 + 4]);
        if size == 2 {
            for (place, pair) in steps.zip(row.chunks(2)) {
                for (place, &code) in place.chunks_exact_mut(2).zip(pair) {
                    place.copy_from_slice(&i16::from(code).to_ne_bytes());
                }
            }
        } else {
            let (whole, rest) = row.as_chunks::<4>();
            let mut steps = steps;

            // In this order: the other way round a step would be lost at the end.
            for (four, place) in whole.iter().zip(steps.by_ref()) {
                let four = u32::from_ne_bytes(four.map(|code| code as u8));
                place.copy_from_slice(&(four ^ u32::from_ne_bytes([offset; 4])).to_ne_bytes());
            }

            if let Some(place) = steps.next() {
                place
                    .iter_mut()
                    .zip(rest)
                    .for_each(|(place, &code)| *place = code as u8 ^ offset);
            }
        }
    }
}

/// Up to 32 rows of weights, each with a dword for every step of a panel.
pub(super) struct Weights<'a> {
    /// Row after row.
    pub(super) data: &'a [u8],
    /// Bytes from one row to the next.
    pub(super) stride: usize,
    /// Rows that count; there are 32 in `data` all the same where the instruction set wants so.
    pub(super) rows: usize,
    /// Steps of a row.
    pub(super) steps: usize,
}

impl Scratch {
    /// The rows of some outputs, copied where the instruction set cannot take them as they are.
    fn weights<'a>(
        &'a mut self,
        isa: Isa,
        w: MatRef<'a, i8>,
        outputs: Range<usize>,
    ) -> Weights<'a> {
        let columns = w.cols();
        let rows = outputs.len();
        let source = &w.data()[outputs.start * columns..outputs.end * columns];
        let size = codes_a_step(isa);
        let as_it_is = match isa.kind() {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => false,
            #[cfg(target_arch = "x86_64")]
            Kind::Amx => columns.is_multiple_of(DEPTH) && rows == TILE,
            _ => columns.is_multiple_of(4),
        };

        if as_it_is {
            let data = bytemuck::cast_slice(source);
            return Weights {
                data,
                stride: columns,
                rows,
                steps: columns / 4,
            };
        }

        let padded = columns.next_multiple_of(DEPTH);
        let stride = padded * 4 / size;
        self.weights.clear();
        self.weights.resize(TILE * stride, 0);

        for (row, codes) in self
            .weights
            .chunks_exact_mut(stride)
            .zip(source.chunks_exact(columns.max(1)))
        {
            if size == 2 {
                for (place, &code) in row.chunks_exact_mut(2).zip(codes) {
                    place.copy_from_slice(&i16::from(code).to_ne_bytes());
                }
            } else {
                row[..columns].copy_from_slice(bytemuck::cast_slice(codes));
            }
        }

        Weights {
            data: &self.weights,
            stride,
            rows,
            steps: padded / size,
        }
    }
}

/// The sums in plain Rust.
fn scalar(a: &[u8], panel: usize, w: &Weights<'_>, tile: &mut Tile) {
    for (p, panel) in a.chunks_exact(panel).enumerate() {
        for (n, sums) in tile.iter_mut().enumerate().take(w.rows) {
            let row = &w.data[n * w.stride..][..w.steps * 4];
            sums[p * LANES..][..LANES].fill(0);
            for (step, four) in panel.chunks_exact(STEP_BYTES).zip(row.chunks_exact(4)) {
                for (sum, codes) in sums[p * LANES..].iter_mut().zip(step.chunks_exact(4)) {
                    let products = codes
                        .iter()
                        .zip(four)
                        .map(|(&x, &y)| i32::from(x as i8) * i32::from(y as i8));
                    *sum += products.sum::<i32>();
                }
            }
        }
    }
}

/// Writes the sums of `[rows, outputs]` with rows outside, `width` apart.
fn turn(isa: Isa, tile: &Tile, [rows, outputs]: [usize; 2], sums: &mut [i32], width: usize) {
    match isa.width() {
        #[cfg(target_arch = "x86_64")]
        crate::isa::Width::V512 if outputs == TILE => {
            for first in (0..rows).step_by(LANES) {
                let rows = LANES.min(rows - first);
                for half in (0..TILE).step_by(LANES) {
                    let target = &mut sums[first * width + half..];
                    vnni::v512::turn(isa, &tile[half..], first, rows, target, width);
                }
            }
        }
        _ => {
            for (m, sums) in sums.chunks_mut(width).enumerate().take(rows) {
                sums[..outputs]
                    .iter_mut()
                    .zip(tile)
                    .for_each(|(sum, tile)| *sum = tile[m]);
            }
        }
    }
}
