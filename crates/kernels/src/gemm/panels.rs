//! Matmul of many rows (prefill, batches).
//!
//! Sixteen rows of activations are packed into a panel, in which four codes of each row stand side
//! by side: a 512-bit register holds one step of four codes for sixteen rows, and a dword of
//! weights is broadcast to all of them. Weights stay row-major in memory; the sums of a tile come
//! out with outputs as rows and are transposed. Nothing is added across a register, and packing
//! costs M · K, which is small.
//!
//! | | step of a panel | weights | in registers |
//! |---|---|---|---|
//! | AVX2 | 2 codes as i16, `vpmaddwd` | widened tile by tile | 6 outputs × 16 rows |
//! | AVX-VNNI | 4 codes + 128, `vpdpbusd` | as they are | 6 outputs × 16 rows |
//! | AVX-512 VNNI | the same | as they are | 8 outputs × 48 rows |
//! | AMX | 4 codes, `tdpbssd` | as they are, 16 × 64 at once | 32 outputs × 32 rows |
//! | NEON | 4 codes, `smull` and `sadalp` | as they are | 3 outputs × 16 rows |
//! | NEON with `sdot` | 4 codes, `sdot` | as they are | 6 outputs × 16 rows |
//!
//! VNNI multiplies unsigned by signed codes, so activations are offset by 128, and sums start with
//! `-128 · Σ w` of their weight row.

#[cfg(target_arch = "aarch64")]
use super::neon;
use super::weight::row_sum;
use super::{Part, Scratch, WeightCodes};
#[cfg(target_arch = "x86_64")]
use super::{amx, avx2, vnni};
use crate::isa::Kind;
use crate::{AlignedVec, Isa, MatRef, team};
use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Rows of a panel.
pub(super) const LANES: usize = 16;
/// Bytes of a step: one 512-bit register.
pub(super) const STEP_BYTES: usize = 64;
/// Output features of a tile of sums.
pub(super) const TILE: usize = 32;
/// Most panels that a weight is multiplied with while it is in a register.
pub(super) const MAX_PANELS: usize = 3;
/// Columns are zero-padded to a multiple of this.
const DEPTH: usize = 64;

/// Activations packed for the matmuls of one instruction set. Layers with the same input share
/// them, and the next input reuses their memory.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    panels: OnceLock<Panels>,
    spare: Mutex<AlignedVec<u8>>,
}

impl Packed {
    /// The panels of these codes, packed if nobody has done it yet; `None` if they are packed for
    /// another instruction set.
    pub(super) fn panels(&self, isa: Isa, codes: MatRef<'_, i8>) -> Option<&Panels> {
        let panels = self.panels.get_or_init(|| {
            let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            Panels::new(isa, codes, std::mem::take(&mut *spare))
        });
        (panels.isa == isa).then_some(panels)
    }

    /// Forgets the panels and keeps their memory.
    pub(crate) fn clear(&mut self) {
        let spare = self.spare.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(panels) = self.panels.take() {
            *spare = panels.data;
        }
    }
}

/// A copy has nothing packed.
impl Clone for Packed {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// What is packed follows from the codes.
impl PartialEq for Packed {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Packed activations.
#[derive(Debug)]
pub(super) struct Panels {
    isa: Isa,
    /// Panel after panel.
    data: AlignedVec<u8>,
    rows: usize,
    columns: usize,
    /// Bytes of a panel.
    panel: usize,
}

/// Sums of up to 32 outputs × 48 rows of activations: `tile[output][row]`.
pub(super) type Tile = [[i32; LANES * MAX_PANELS]; TILE];

impl Panels {
    /// Packs codes, reusing the memory of `data`.
    pub(super) fn new(isa: Isa, codes: MatRef<'_, i8>, mut data: AlignedVec<u8>) -> Self {
        let rows = codes.rows();
        let columns = codes.cols();
        let panel = columns.next_multiple_of(DEPTH) / codes_per_step(isa) * STEP_BYTES;
        data.reset(rows.div_ceil(LANES) * panel, 0);

        if panel > 0 {
            team::for_each_chunk(&mut data, panel, |_: &mut (), i, panel| {
                let rows = i * LANES..rows.min((i + 1) * LANES);
                pack(isa, codes, rows, panel);
            });
        }

        Self {
            isa,
            data,
            rows,
            columns,
            panel,
        }
    }

    /// Writes the sums of some rows and outputs, row-major. The rows start with a panel.
    pub(super) fn multiply(
        &self,
        w: WeightCodes<'_>,
        Part {
            rows: m,
            outputs: n,
        }: Part<'_>,
        sums: &mut [i32],
        scratch: &mut Scratch,
    ) {
        let isa = self.isa;
        debug_assert!(
            m.start.is_multiple_of(LANES) && m.end <= self.rows && w.codes.cols() == self.columns
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

            let mut next = next_weights(isa, w.codes, outputs.end, m.len().div_ceil(group));
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
                    Kind::Neon | Kind::NeonDot => {
                        neon::tile(isa, a, self.panel, &weights, &mut tile)
                    }
                }

                let target = &mut sums[(row - m.start) * width + (first - n.start)..];
                let filled = Filled {
                    rows: rows.len(),
                    outputs: outputs.len(),
                };
                transpose(isa, &tile, filled, target, width);
            }
        }
    }
}

/// The weights of the next tile, cut into `parts`: one part is prefetched with each group of rows,
/// because hardware prefetchers do not predict a jump between tiles. Empty if the kernel prefetches
/// them itself.
fn next_weights(
    isa: Isa,
    w: MatRef<'_, i8>,
    first: usize,
    parts: usize,
) -> std::slice::Chunks<'_, i8> {
    let last = match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512Vnni => first,
        _ => w.rows().min(first + TILE),
    };
    let weights = &w.data()[first.min(last) * w.cols()..last * w.cols()];
    weights.chunks(weights.len().div_ceil(parts).max(1))
}

/// Codes of one row in one step.
fn codes_per_step(isa: Isa) -> usize {
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

/// XORed into the codes of activations: 0x80 adds 128 and makes them unsigned, as VNNI requires.
fn offset(isa: Isa) -> u8 {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::AvxVnni | Kind::Avx512Vnni => 0x80,
        _ => 0,
    }
}

/// Packs up to sixteen rows into a panel; missing rows and columns become zeros.
fn pack(isa: Isa, codes: MatRef<'_, i8>, rows: Range<usize>, panel: &mut [u8]) {
    let size = codes_per_step(isa);
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

            // `whole` comes first: `zip` would otherwise consume one step too many before it ends.
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

/// Up to 32 rows of weights, with one dword for each step of a panel.
pub(super) struct Weights<'a> {
    /// The rows' bytes.
    pub(super) data: &'a [u8],
    /// Bytes from one row to the next.
    pub(super) stride: usize,
    /// Rows whose sums are needed. For AMX, `data` holds 32 rows in any case.
    pub(super) rows: usize,
    /// Steps of a row, each a dword.
    pub(super) steps: usize,
    /// What the sums of each row start with: with VNNI, minus what the offset of the activations
    /// adds to them.
    pub(super) first_sums: [i32; TILE],
}

/// What the sums of each row of weights start with.
fn first_sums(isa: Isa, codes: &[i8], columns: usize, row_sums: Option<&[i32]>) -> [i32; TILE] {
    let mut first_sums = [0; TILE];
    if offset(isa) != 0 {
        for (n, row) in codes.chunks(columns.max(1)).enumerate() {
            let sum = row_sums.map_or_else(|| row_sum(isa, row), |sums| sums[n]);
            first_sums[n] = sum.wrapping_mul(-128);
        }
    }
    first_sums
}

impl Scratch {
    /// The weights of some outputs, repacked only if the instruction set cannot read them in place.
    fn weights<'a>(
        &'a mut self,
        isa: Isa,
        w: WeightCodes<'a>,
        outputs: Range<usize>,
    ) -> Weights<'a> {
        let columns = w.codes.cols();
        let rows = outputs.len();
        let row_sums = w.row_sums.map(|sums| &sums[outputs.clone()]);
        let source = &w.codes.data()[outputs.start * columns..outputs.end * columns];
        let size = codes_per_step(isa);
        let first_sums = first_sums(isa, source, columns, row_sums);
        let in_place = match isa.kind() {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => false,
            #[cfg(target_arch = "x86_64")]
            Kind::Amx => columns.is_multiple_of(DEPTH) && rows == TILE,
            _ => columns.is_multiple_of(4),
        };

        if in_place {
            let data = bytemuck::cast_slice(source);
            return Weights {
                data,
                stride: columns,
                rows,
                steps: columns / 4,
                first_sums,
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
            first_sums,
        }
    }
}

/// The sums of panels `a` with weights, in plain Rust.
fn scalar(a: &[u8], panel: usize, w: &Weights<'_>, tile: &mut Tile) {
    for (p, panel) in a.chunks_exact(panel).enumerate() {
        for (n, sums) in tile.iter_mut().enumerate().take(w.rows) {
            let row = &w.data[n * w.stride..][..w.steps * 4];
            sums[p * LANES..][..LANES].fill(w.first_sums[n]);
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

/// The part of a tile that holds sums.
#[derive(Clone, Copy)]
struct Filled {
    rows: usize,
    outputs: usize,
}

/// `sums[row · width + output] = tile[output][row]`.
fn transpose(isa: Isa, tile: &Tile, filled: Filled, sums: &mut [i32], width: usize) {
    let Filled { rows, outputs } = filled;

    match isa.width() {
        #[cfg(target_arch = "x86_64")]
        crate::isa::Width::V512 if outputs == TILE => {
            for first in (0..rows).step_by(LANES) {
                let rows = LANES.min(rows - first);
                for half in (0..TILE).step_by(LANES) {
                    let target = &mut sums[first * width + half..];
                    vnni::v512::transpose(isa, &tile[half..], first, rows, target, width);
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
