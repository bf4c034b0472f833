//! Int8 layers of a few rows (`quantize.cu`, `gemv.cu`, `thin.cu`).

use super::{WARP, pitch};

/// Warps of a block of `thin.cu`.
const BLOCK_WARPS: usize = 8;
/// Threads of a block of `gemv.cu`.
const GEMV_THREADS: usize = 512;
/// Pieces of weights that a thread of `gemv.cu` copies ahead, at most.
const GEMV_STAGES: usize = 10;
/// Pieces of a weight row that a thread of `gemv.cu` has, at most.
const GEMV_LOADS: usize = 5;
/// Outliers that `gemv.cu` lists.
const GEMV_OUTLIERS: usize = 256;
/// The widest row of codes that `gemv.cu` takes.
pub const GEMV_MOST_PITCH: usize = GEMV_LOADS * GEMV_THREADS * 16;
/// Steps of 64 columns that a lane of `thin.cu` copies ahead, at most.
const THIN_STAGES: usize = 4;
/// Threads of `quantize.cu` that a multiprocessor holds.
const QUANTIZE_THREADS: usize = 1024;
/// Weight rows that a warp of `thin.cu` holds.
const THIN_ROWS: usize = 16;
/// Rows of activations up to which `thin.cu` computes.
pub const THIN_MOST: usize = 16;

/// Threads of a block of `quantize.cu`, which works on rows of `cols` values. Of few rows each has
/// eight values, so that none is waited for long; of many twice as many, which costs less for a
/// value.
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

/// Blocks of `quantize.cu`: those that are on the device together, by the registers of its threads,
/// and not more than there are rows.
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
    /// Pieces of 16 bytes that each thread multiplies.
    pub pieces: u32,
}

impl Gemv {
    /// Bytes of shared memory for a row of `cols` values: the pieces that are copied ahead, the
    /// codes of the row, two lists of outliers, and a sum for each warp of a weight row.
    pub fn shared_bytes(&self, cols: usize) -> usize {
        let stages = GEMV_STAGES.min(self.pieces as usize);
        let sums = self.rows as usize * (self.lanes as usize).div_ceil(WARP);
        stages * GEMV_THREADS * 16 + pitch(cols) + 16 * GEMV_OUTLIERS + 4 * sums
    }
}

/// How `gemv.cu` divides a layer of `out_features` rows of `pitch` codes, of [`GEMV_MOST_PITCH`] at
/// most.
///
/// The division with the least work for a thread: pieces, each of which costs it some ten
/// instructions, and sums of weight rows, which cost about as much as two pieces; with as few
/// blocks as that takes, one a multiprocessor at most, because each quantises the row for itself
/// and none shall wait for another.
pub fn gemv(out_features: usize, pitch: usize, multiprocessors: usize) -> Gemv {
    /// Pieces whose multiplication takes as long as summing over the threads of a row.
    const SUMMED: usize = 2;
    let chunks = (pitch / 16).max(1);

    let candidate = |lanes: usize| {
        let together = GEMV_THREADS / lanes;
        let sets = out_features
            .div_ceil(together)
            .div_ceil(multiprocessors.max(1))
            .max(1);
        let (rows, pieces) = (sets * together, sets * chunks.div_ceil(lanes));
        let blocks = out_features.div_ceil(rows);
        let cut = Gemv {
            lanes: lanes as u32,
            rows: rows as u32,
            blocks: blocks as u32,
            pieces: pieces as u32,
        };
        (pieces + SUMMED * sets, blocks, cut)
    };
    let has_room = |lanes: &usize| chunks.div_ceil(*lanes) <= GEMV_LOADS || *lanes == GEMV_THREADS;
    let all = [16, 32, 64, 128, 256, 512]
        .into_iter()
        .filter(has_room)
        .map(candidate);
    let best = all.min_by_key(|(cost, blocks, _)| (*cost, *blocks));
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
    /// Warps that share weight rows, K split among them.
    pub warps_k: u32,
    /// Blocks.
    pub blocks: u32,
    /// Bytes of shared memory: weights that are copied ahead.
    pub shared_bytes: u32,
}

/// How `thin.cu` divides a layer: as few warps along K as fill the device twice over, since joining
/// them costs a barrier, but never more than there is K for (a warp takes 64 bytes of it).
pub fn thin(out_features: usize, pitch: usize, multiprocessors: usize) -> Thin {
    let blocks = |warps_k: usize| out_features.div_ceil(BLOCK_WARPS / warps_k * THIN_ROWS);
    let mut warps_k = 1;
    while warps_k < BLOCK_WARPS && blocks(warps_k) < 2 * multiprocessors && warps_k * 64 < pitch {
        warps_k *= 2;
    }
    let stages = pitch.div_ceil(warps_k * 64).min(THIN_STAGES);
    let shared_bytes = (stages * 2 * 16 * BLOCK_WARPS * WARP) as u32;
    Thin {
        warps_k: warps_k as u32,
        blocks: blocks(warps_k) as u32,
        shared_bytes,
    }
}

/// Static shared memory of `gemv.cu` in bytes, at most: it counts towards what a block may have.
pub const GEMV_STATIC_BYTES: usize = 1 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_weight_row_has_threads_and_no_block_is_without_rows() {
        for out_features in [1usize, 3, 64, 1280, 5120, 50257] {
            for in_features in [1usize, 16, 511, 1280, 5120, 28672] {
                for multiprocessors in [4, 68, 132] {
                    let pitch = pitch(in_features);
                    let cut = gemv(out_features, pitch, multiprocessors);
                    let (lanes, rows, blocks) =
                        (cut.lanes as usize, cut.rows as usize, cut.blocks as usize);
                    assert!(GEMV_THREADS.is_multiple_of(lanes) && lanes >= 16);
                    assert!(
                        rows * blocks >= out_features && rows * (blocks - 1) < out_features,
                        "{cut:?}"
                    );
                    assert!(blocks <= multiprocessors && rows.is_multiple_of(GEMV_THREADS / lanes));
                    assert!(cut.pieces as usize * GEMV_THREADS * 16 >= rows * pitch);

                    let cut = thin(out_features, pitch, multiprocessors);
                    let (warps_k, blocks) = (cut.warps_k as usize, cut.blocks as usize);
                    assert!(BLOCK_WARPS.is_multiple_of(warps_k));
                    let covered = blocks * (BLOCK_WARPS / warps_k) * THIN_ROWS;
                    assert!(
                        covered >= out_features && covered - out_features < BLOCK_WARPS * THIN_ROWS
                    );
                    assert!(
                        warps_k == 1 || (warps_k / 2) * 64 < pitch,
                        "{cut:?} for K = {in_features}"
                    );
                }
            }
        }
    }

    #[test]
    fn layers_of_gpt2_large_leave_few_lanes_without_work_and_are_copied_ahead_whole() {
        for [out_features, in_features] in [[3840, 1280], [1280, 1280], [5120, 1280], [1280, 5120]]
        {
            let cut = gemv(out_features, in_features, 132);
            let (chunks, lanes) = (in_features / 16, cut.lanes as usize);
            assert!(10 * chunks >= 8 * chunks.next_multiple_of(lanes), "{cut:?}");
            assert!(
                cut.pieces as usize <= GEMV_STAGES && cut.blocks >= 80,
                "{cut:?}"
            );
            // Blocks of two layers fit into a multiprocessor of an H100 together.
            assert!(
                2 * (cut.shared_bytes(in_features) + (1 << 10)) <= 228 << 10,
                "{cut:?}"
            );
        }
    }
}
