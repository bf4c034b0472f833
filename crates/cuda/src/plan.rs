//! Shapes of launches: pure functions of sizes, tested without a device. The numbers they choose by are of the
//! hardware (warps of 32, blocks that fill a multiprocessor) and of `kernels/`.

/// Lanes of a warp.
pub const WARP: usize = 32;
/// Rows of codes begin at multiples of this many bytes, as loads of 16 bytes need.
pub const ALIGNMENT: usize = 16;
/// Warps of a block of `thin.cu`.
const BLOCK_WARPS: usize = 8;
/// Threads of a block of `gemv.cu`.
const GEMV_THREADS: usize = 256;
/// Pieces of weights that a thread of `gemv.cu` copies ahead, at most.
const GEMV_STAGES: usize = 16;
/// Pieces of a weight row that a thread of `gemv.cu` has, at most.
const GEMV_LOADS: usize = 8;
/// The widest row of codes that `gemv.cu` takes.
pub const GEMV_MOST_PITCH: usize = GEMV_LOADS * GEMV_THREADS * 16;
/// Steps of 64 columns that a lane of `thin.cu` copies ahead, at most.
const THIN_STAGES: usize = 4;
/// Weight rows that a warp of `thin.cu` holds.
const THIN_ROWS: usize = 16;
/// Rows of activations up to which `thin.cu` computes.
pub const THIN_MOST: usize = 16;
/// Positions of a chunk of `attend_one`.
pub const CHUNK: usize = 128;
/// Queries of a tile of `attend_many`.
pub const TILE_QUERIES: usize = 32;
/// Positions of a tile of `attend_many`.
pub const TILE_KEYS: usize = 64;
/// Values of a head up to which `attend_many` computes.
pub const MOST_DIMS: usize = 128;
/// Heads of queries that `attend_one` takes together.
pub const AT_ONCE: usize = 4;

/// Bytes from one row of codes to the next.
///
/// ```
/// assert_eq!(llm_int8_cuda::plan::pitch(499), 512);
/// ```
pub fn pitch(in_features: usize) -> usize {
    in_features.next_multiple_of(ALIGNMENT)
}

/// Threads of a block that works on one row of `cols` values: each has about eight, which it keeps in registers (`HELD` in
/// `source.cuh`); more than 512 threads would leave too few registers for that.
///
/// ```
/// use llm_int8_cuda::plan::row_threads;
/// assert_eq!([1, 1280, 5120, 53248].map(row_threads), [128, 256, 512, 512]);
/// ```
pub fn row_threads(cols: usize) -> u32 {
    (cols / 8).next_power_of_two().clamp(128, 512) as u32
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
    /// Bytes of shared memory for a row of `cols` values: the pieces that are copied ahead, the codes of the row, a byte for
    /// four of its columns, two sums for each warp of a weight row, and, if `keeps_values`, the row itself.
    pub fn shared_bytes(&self, cols: usize, keeps_values: bool) -> usize {
        let stages = GEMV_STAGES.min(self.pieces as usize);
        let sums = self.rows as usize * (self.lanes as usize).div_ceil(WARP);
        let values = if keeps_values { 4 * cols } else { 0 };
        stages * GEMV_THREADS * 16 + pitch(cols) / 4 * 5 + 8 * sums + values
    }
}

/// How `gemv.cu` divides a layer of `out_features` rows of `pitch` codes, of [`GEMV_MOST_PITCH`] at most.
///
/// The division with the least work for a thread: pieces, each of which costs it some ten instructions, and sums of weight
/// rows, which cost about as much as two pieces; with as few blocks as that takes, one a multiprocessor at most, because
/// each quantises the row for itself and none shall wait for another.
pub fn gemv(out_features: usize, pitch: usize, multiprocessors: usize) -> Gemv {
    /// Pieces whose multiplication takes as long as summing over the threads of a row.
    const SUMMED: usize = 2;
    let chunks = (pitch / 16).max(1);

    let candidate = |lanes: usize| {
        let together = GEMV_THREADS / lanes;
        let sets = out_features.div_ceil(together).div_ceil(multiprocessors.max(1)).max(1);
        let (rows, pieces) = (sets * together, sets * chunks.div_ceil(lanes));
        let blocks = out_features.div_ceil(rows);
        let cut =
            Gemv { lanes: lanes as u32, rows: rows as u32, blocks: blocks as u32, pieces: pieces as u32 };
        (pieces + SUMMED * sets, blocks, cut)
    };
    let has_room = |lanes: &usize| chunks.div_ceil(*lanes) <= GEMV_LOADS || *lanes == 256;
    let all = [16, 32, 64, 128, 256].into_iter().filter(has_room).map(candidate);
    let best = all.min_by_key(|(cost, blocks, _)| (*cost, *blocks));
    best.map_or(Gemv { lanes: 16, rows: 16, blocks: 0, pieces: 0 }, |(_, _, best)| best)
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

/// How `thin.cu` divides a layer: as few warps along K as fill the device twice over, since joining them costs a
/// barrier, but never more than there is K for (a warp takes 64 bytes of it).
pub fn thin(out_features: usize, pitch: usize, multiprocessors: usize) -> Thin {
    let blocks = |warps_k: usize| out_features.div_ceil(BLOCK_WARPS / warps_k * THIN_ROWS);
    let mut warps_k = 1;
    while warps_k < BLOCK_WARPS && blocks(warps_k) < 2 * multiprocessors && warps_k * 64 < pitch {
        warps_k *= 2;
    }
    let stages = pitch.div_ceil(warps_k * 64).min(THIN_STAGES);
    let shared_bytes = (stages * 2 * 16 * BLOCK_WARPS * WARP) as u32;
    Thin { warps_k: warps_k as u32, blocks: blocks(warps_k) as u32, shared_bytes }
}

/// Static shared memory of `gemv.cu` in bytes, at most: it counts towards what a block may have.
pub const GEMV_STATIC_BYTES: usize = 1 << 10;

/// Tiles of `gemm.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tile {
    /// 128 by 128, 256 threads.
    Large,
    /// 64 by 64, 128 threads.
    Small,
}

impl Tile {
    /// The tile for a matmul: large ones where they give 6 of 10 multiprocessors work. A large one does a third more
    /// multiply-adds for each byte that it reads from shared memory, which is what limits both.
    pub fn of(rows: usize, out_features: usize, multiprocessors: usize) -> Self {
        match 10 * rows.div_ceil(128) * out_features.div_ceil(128) >= 6 * multiprocessors {
            true => Self::Large,
            false => Self::Small,
        }
    }

    /// Rows and columns.
    pub fn side(self) -> usize {
        match self {
            Self::Large => 128,
            Self::Small => 64,
        }
    }

    /// Threads of a block.
    pub fn threads(self) -> u32 {
        match self {
            Self::Large => 256,
            Self::Small => 128,
        }
    }

    /// Bytes of shared memory: four stages of both tiles, 64 bytes a row. The epilogue reuses them.
    pub fn shared_bytes(self) -> u32 {
        (4 * 2 * self.side() * 64) as u32
    }
}

/// Blocks that share the positions of one row and head of keys in `attend_one`: one for each chunk of the cache,
/// but not more than fill the device four times.
pub fn splits(capacity: usize, rows: usize, kv_heads: usize, multiprocessors: usize) -> usize {
    let chunks = capacity.div_ceil(CHUNK).max(1);
    chunks.min((4 * multiprocessors).div_ceil((rows * kv_heads).max(1)).max(1))
}

/// Bytes of dynamic shared memory of `attend_one`.
pub fn attend_one_shared_bytes(padded: usize) -> usize {
    4 * (AT_ONCE * padded + AT_ONCE * CHUNK + CHUNK * 8)
}

/// Bytes of dynamic shared memory of `attend_many`.
pub fn attend_many_shared_bytes(padded: usize) -> usize {
    4 * ((TILE_QUERIES + 2 * TILE_KEYS) * (padded + 1) + TILE_QUERIES * (TILE_KEYS + 1))
}

/// Tiles of queries for `attend_many`: first row and number of rows of each, for texts of so many new positions
/// one after the other. No tile holds rows of two texts.
///
/// ```
/// assert_eq!(llm_int8_cuda::plan::query_tiles(&[40, 1]), [[0, 32], [32, 8], [40, 1]]);
/// ```
pub fn query_tiles(lengths: &[usize]) -> Vec<[u32; 2]> {
    let mut tiles = Vec::new();
    let mut first = 0;
    for &length in lengths {
        let starts = (first..first + length).step_by(TILE_QUERIES);
        tiles.extend(starts.map(|row| [row as u32, TILE_QUERIES.min(first + length - row) as u32]));
        first += length;
    }
    tiles
}

/// The bits of the smallest f16 magnitude that is an outlier; of none where `threshold` is 0. NaN is never one.
///
/// ```
/// use llm_int8_cuda::plan::outlier_limit;
/// assert_eq!(outlier_limit(6.0), half::f16::from_f32(6.0).to_bits().into());
/// assert_eq!(outlier_limit(0.0), 0xffff);
/// ```
pub fn outlier_limit(threshold: f32) -> u32 {
    if threshold <= 0.0 {
        return 0xffff;
    }
    let nearest = half::f16::from_f32(threshold);
    u32::from(nearest.to_bits()) + u32::from(nearest.to_f32() < threshold)
}

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
                    let (lanes, rows, blocks) = (cut.lanes as usize, cut.rows as usize, cut.blocks as usize);
                    assert!(GEMV_THREADS.is_multiple_of(lanes) && lanes >= 16);
                    assert!(rows * blocks >= out_features && rows * (blocks - 1) < out_features, "{cut:?}");
                    assert!(blocks <= multiprocessors && rows.is_multiple_of(GEMV_THREADS / lanes));
                    assert!(cut.pieces as usize * GEMV_THREADS * 16 >= rows * pitch);

                    let cut = thin(out_features, pitch, multiprocessors);
                    let (warps_k, blocks) = (cut.warps_k as usize, cut.blocks as usize);
                    assert!(BLOCK_WARPS.is_multiple_of(warps_k));
                    let covered = blocks * (BLOCK_WARPS / warps_k) * THIN_ROWS;
                    assert!(covered >= out_features && covered - out_features < BLOCK_WARPS * THIN_ROWS);
                    assert!(warps_k == 1 || (warps_k / 2) * 64 < pitch, "{cut:?} for K = {in_features}");
                }
            }
        }
    }

    #[test]
    fn layers_of_gpt2_large_leave_no_lane_without_work_and_are_copied_ahead_whole() {
        for [out_features, in_features] in [[3840, 1280], [1280, 1280], [5120, 1280], [1280, 5120]] {
            let cut = gemv(out_features, in_features, 132);
            assert!((in_features / 16).is_multiple_of(cut.lanes as usize), "{cut:?}");
            assert!(cut.pieces as usize <= GEMV_STAGES && cut.blocks >= 66, "{cut:?}");
            // Blocks of two layers fit into a multiprocessor of an H100 together.
            assert!(2 * (cut.shared_bytes(in_features, true) + (1 << 10)) <= 228 << 10, "{cut:?}");
        }
    }

    #[test]
    fn tiles_fit_into_the_smallest_shared_memory() {
        // 99 KB: what a block may have on 8.6 and 8.9; 64 KB on 7.5.
        assert!(Tile::Large.shared_bytes() <= 64 << 10);
        assert!(attend_many_shared_bytes(MOST_DIMS) <= 99 << 10);
        assert!(attend_one_shared_bytes(256) <= 48 << 10);
        assert!(thin(5120, 5120, 68).shared_bytes + (9 << 10) <= 64 << 10);
        // The epilogue's outliers: two tiles of 17 floats a row.
        for tile in [Tile::Large, Tile::Small] {
            assert!(2 * tile.side() * 17 * 4 <= tile.shared_bytes() as usize);
        }
        assert_eq!(Tile::of(512, 5120, 132), Tile::Large);
        // 128 and 120 tiles on 132 multiprocessors.
        assert_eq!([4096, 3840].map(|n| Tile::of(512, n, 132)), [Tile::Large; 2]);
        assert_eq!([128, 512].map(|rows| Tile::of(rows, 1280, 132)), [Tile::Small; 2]);
    }

    #[test]
    fn chunks_are_shared_by_as_many_blocks_as_are_useful() {
        assert_eq!(splits(1024, 1, 20, 132), 8);
        assert_eq!(splits(1024, 32, 20, 132), 1);
        assert_eq!(splits(131_072, 1, 8, 132), 66);
        assert_eq!(splits(0, 1, 1, 132), 1);
    }

    #[test]
    fn limits_are_the_smallest_outliers() {
        let above = |x: f32| half::f16::from_bits(outlier_limit(x) as u16).to_f32();
        assert_eq!(above(6.0), 6.0);
        assert!(above(6.001) >= 6.001 && above(6.001) < 6.01);
        // Nothing finite reaches it, infinity does.
        assert_eq!(above(1e6), f32::INFINITY);
    }
}
