//! Quantising, and int8 layers of a few rows (`quantize.cu`, `gemv.cu`, `thin.cu`).

use super::{WARP, pitch};

/// Threads of `quantize.cu` that fit on a multiprocessor.
const QUANTIZE_THREADS: usize = 1024;

/// Threads of a block of `gemv.cu`.
const GEMV_THREADS: usize = 512;
/// Pieces of 16 weights that a thread of `gemv.cu` prefetches, at most.
const GEMV_STAGES: usize = 10;
/// Pieces of one weight row that a thread of `gemv.cu` multiplies, at most.
const GEMV_LOADS: usize = 5;
/// Outliers that fit in the list of `gemv.cu`.
const GEMV_OUTLIERS: usize = 256;
/// The widest row of codes that `gemv.cu` takes.
pub const GEMV_MAX_PITCH: usize = GEMV_LOADS * GEMV_THREADS * 16;
/// An upper bound for the static shared memory of `gemv.cu`, in bytes. It counts towards a block's
/// limit like the dynamic one.
pub const GEMV_STATIC_BYTES: usize = 1 << 11;

/// Warps of a block of `thin.cu`.
const THIN_WARPS: usize = 8;
/// Steps of 64 columns that a warp of `thin.cu` prefetches, at most.
const THIN_STAGES: usize = 4;
/// Weight rows of a warp of `thin.cu`.
const THIN_WEIGHT_ROWS: usize = 16;
/// Up to this many rows of activations `thin.cu` is used.
pub const THIN_MAX_ROWS: usize = 16;

/// Threads of a block of `quantize.cu` for rows of `cols` values.
///
/// With few rows each thread has eight values, for low latency; with many it has twice as many,
/// which takes less time for each value.
///
/// ```
/// use llm_int8_cuda::plan::quantize_threads;
/// assert_eq!([1280, 4096, 53248].map(|cols| quantize_threads(8, cols, 132)), [160, 512, 512]);
/// assert_eq!([1280, 4096, 53248].map(|cols| quantize_threads(4096, cols, 132)), [96, 256, 512]);
/// ```
pub fn quantize_threads(rows: usize, cols: usize, multiprocessors: usize) -> u32 {
    let values = if rows <= 2 * multiprocessors { 8 } else { 16 };
    cols.div_ceil(values).next_multiple_of(WARP).clamp(64, 512) as u32
}

/// Blocks of `quantize.cu`: as many as run on the device at once, which registers limit, but no
/// more than there are rows.
///
/// ```
/// use llm_int8_cuda::plan::quantize_blocks;
/// assert_eq!([64, 4096].map(|rows| quantize_blocks(rows, 4096, 132)), [64, 4 * 132]);
/// ```
pub fn quantize_blocks(rows: usize, cols: usize, multiprocessors: usize) -> usize {
    let blocks = QUANTIZE_THREADS / quantize_threads(rows, cols, multiprocessors) as usize;
    rows.min(blocks * multiprocessors.max(1))
}

/// How `gemv.cu` divides a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gemv {
    /// Threads that share a weight row.
    pub lanes: u32,
    /// Weight rows of a block.
    pub rows: u32,
    /// Blocks.
    pub blocks: u32,
    /// Pieces of 16 weights that each thread multiplies.
    pub pieces: u32,
}

impl Gemv {
    /// Bytes of dynamic shared memory for a row of `cols` values: the prefetched pieces, the row's
    /// codes, two lists of outliers, and for each weight row the sums of its warps.
    pub fn shared_bytes(&self, cols: usize) -> usize {
        let stages = GEMV_STAGES.min(self.pieces as usize);
        let sums = self.rows as usize * (self.lanes as usize).div_ceil(WARP);
        stages * GEMV_THREADS * 16 + pitch(cols) + 16 * GEMV_OUTLIERS + 4 * sums
    }
}

/// Divides a layer of `out_features` rows of `pitch` codes (at most [`GEMV_MAX_PITCH`]) for
/// `gemv.cu`.
///
/// Of the possible numbers of lanes, it takes the one with the least work for a thread. Work is
/// pieces, each some ten instructions, and reductions over the threads of a weight row, each as
/// much as about two pieces. Ties go to fewer blocks, since each block quantises the row again.
/// There is at most one block on a multiprocessor, so that none waits for another to finish.
pub fn gemv(out_features: usize, pitch: usize, multiprocessors: usize) -> Gemv {
    /// The cost of a reduction over the threads of a weight row, in pieces.
    const REDUCTION: usize = 2;
    let chunks = (pitch / 16).max(1);

    let candidate = |lanes: usize| {
        let rows_at_once = GEMV_THREADS / lanes;
        let sets = out_features
            .div_ceil(rows_at_once)
            .div_ceil(multiprocessors.max(1))
            .max(1);
        let rows = sets * rows_at_once;
        let pieces = sets * chunks.div_ceil(lanes);
        let blocks = out_features.div_ceil(rows);

        let gemv = Gemv {
            lanes: lanes as u32,
            rows: rows as u32,
            blocks: blocks as u32,
            pieces: pieces as u32,
        };
        (pieces + REDUCTION * sets, blocks, gemv)
    };

    let is_possible =
        |lanes: &usize| chunks.div_ceil(*lanes) <= GEMV_LOADS || *lanes == GEMV_THREADS;
    let candidates = [16, 32, 64, 128, 256, 512]
        .into_iter()
        .filter(is_possible)
        .map(candidate);
    let best = candidates.min_by_key(|(cost, blocks, _)| (*cost, *blocks));

    // There is always a candidate: 512 lanes are possible for any row.
    best.map_or(
        Gemv {
            lanes: 16,
            rows: 16,
            blocks: 0,
            pieces: 0,
        },
        |(_, _, best)| best,
    )
}

/// How `thin.cu` divides a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thin {
    /// Warps that share weight rows, each with a part of K.
    pub warps_k: u32,
    /// Blocks.
    pub blocks: u32,
    /// Bytes of dynamic shared memory: the prefetched weights.
    pub shared_bytes: u32,
}

/// Divides a layer for `thin.cu`: as few warps along K as give each multiprocessor two blocks,
/// since adding up their sums costs a barrier, but no more than K has steps of 64.
pub fn thin(out_features: usize, pitch: usize, multiprocessors: usize) -> Thin {
    let blocks = |warps_k: usize| out_features.div_ceil(THIN_WARPS / warps_k * THIN_WEIGHT_ROWS);

    let mut warps_k = 1;
    while warps_k < THIN_WARPS && blocks(warps_k) < 2 * multiprocessors && warps_k * 64 < pitch {
        warps_k *= 2;
    }

    let stages = pitch.div_ceil(warps_k * 64).min(THIN_STAGES);
    Thin {
        warps_k: warps_k as u32,
        blocks: blocks(warps_k) as u32,
        shared_bytes: (stages * 2 * 16 * THIN_WARPS * WARP) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(mut check: impl FnMut(usize, usize, usize)) {
        for out_features in [1usize, 3, 64, 1280, 5120, 50257] {
            for in_features in [1usize, 16, 511, 1280, 5120, 28672] {
                for multiprocessors in [4, 68, 132] {
                    check(out_features, pitch(in_features), multiprocessors);
                }
            }
        }
    }

    #[test]
    fn gemv_covers_every_weight_row_and_has_no_empty_block() {
        layers(|out_features, pitch, multiprocessors| {
            let gemv = gemv(out_features, pitch, multiprocessors);
            let lanes = gemv.lanes as usize;
            let rows = gemv.rows as usize;
            let blocks = gemv.blocks as usize;

            assert!(GEMV_THREADS.is_multiple_of(lanes) && lanes >= 16);
            assert!(
                rows * blocks >= out_features && rows * (blocks - 1) < out_features,
                "{gemv:?}"
            );
            assert!(blocks <= multiprocessors && rows.is_multiple_of(GEMV_THREADS / lanes));
            assert!(gemv.pieces as usize * GEMV_THREADS * 16 >= rows * pitch);
        });
    }

    #[test]
    fn thin_covers_every_weight_row_and_has_no_warp_without_columns() {
        layers(|out_features, pitch, multiprocessors| {
            let thin = thin(out_features, pitch, multiprocessors);
            let warps_k = thin.warps_k as usize;
            assert!(THIN_WARPS.is_multiple_of(warps_k));

            let covered = thin.blocks as usize * (THIN_WARPS / warps_k) * THIN_WEIGHT_ROWS;
            assert!(
                covered >= out_features && covered - out_features < THIN_WARPS * THIN_WEIGHT_ROWS
            );
            assert!(
                warps_k == 1 || (warps_k / 2) * 64 < pitch,
                "{thin:?} for a pitch of {pitch}"
            );
        });
    }

    #[test]
    fn gpt2_large_layers_idle_few_lanes_and_are_prefetched_whole() {
        for [out_features, in_features] in [[3840, 1280], [1280, 1280], [5120, 1280], [1280, 5120]]
        {
            let gemv = gemv(out_features, in_features, 132);
            let chunks = in_features / 16;
            let lanes = gemv.lanes as usize;
            assert!(
                10 * chunks >= 8 * chunks.next_multiple_of(lanes),
                "{gemv:?}"
            );
            assert!(
                gemv.pieces as usize <= GEMV_STAGES && gemv.blocks >= 80,
                "{gemv:?}"
            );

            // Blocks of two successive layers fit on a multiprocessor of an H100 together.
            let block_bytes = gemv.shared_bytes(in_features) + (1 << 10);
            assert!(2 * block_bytes <= 228 << 10, "{gemv:?}");
        }
    }
}
