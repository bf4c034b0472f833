//! Shapes of launches: pure functions of sizes, tested without a device. The numbers they choose by are of the
//! hardware (warps of 32, blocks that fill a multiprocessor) and of `kernels/`.

/// Lanes of a warp.
pub const WARP: usize = 32;
/// Rows of codes begin at multiples of this many bytes, as loads of 16 bytes need.
pub const ALIGNMENT: usize = 16;
/// Warps of a block of `gemv.cu` and `thin.cu`.
const BLOCK_WARPS: usize = 8;
/// Weight rows that a warp of `gemv.cu` holds.
const GEMV_ROWS: usize = 4;
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

/// Threads of a block that works on one row of so many values: each has about eight.
///
/// ```
/// use llm_int8_cuda::plan::row_threads;
/// assert_eq!([1, 1280, 5120, 53248].map(row_threads), [128, 256, 1024, 1024]);
/// ```
pub fn row_threads(cols: usize) -> u32 {
    (cols / 8).next_power_of_two().clamp(128, 1024) as u32
}

/// How a product with one or a few rows is cut into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streaming {
    /// Warps that share weight rows, K split among them.
    pub warps_k: u32,
    /// Blocks.
    pub blocks: u32,
}

/// The cut for `rows_a_warp` weight rows a warp: as few warps along K as fill the device twice over, since
/// joining them costs a barrier, but never more than there is K for (a warp takes `bytes_a_step` of it).
fn streaming(
    out_features: usize,
    pitch: usize,
    multiprocessors: usize,
    rows: usize,
    bytes: usize,
) -> Streaming {
    let blocks = |warps_k: usize| out_features.div_ceil(BLOCK_WARPS / warps_k * rows);
    let mut warps_k = 1;
    while warps_k < BLOCK_WARPS && blocks(warps_k) < 2 * multiprocessors && warps_k * bytes < pitch {
        warps_k *= 2;
    }
    Streaming { warps_k: warps_k as u32, blocks: blocks(warps_k) as u32 }
}

/// How `gemv.cu` cuts a layer.
pub fn gemv(out_features: usize, pitch: usize, multiprocessors: usize) -> Streaming {
    streaming(out_features, pitch, multiprocessors, GEMV_ROWS, WARP * 16)
}

/// How `thin.cu` cuts a layer.
pub fn thin(out_features: usize, pitch: usize, multiprocessors: usize) -> Streaming {
    streaming(out_features, pitch, multiprocessors, THIN_ROWS, 4 * 16)
}

/// Static shared memory of `gemv.cu` in bytes, at most: it counts towards what a block may have.
pub const GEMV_STATIC_BYTES: usize = 1 << 10;

/// Bytes of dynamic shared memory of `gemv.cu`: the codes of the row and a list of its outlier columns, in 16
/// bits each; none where a column does not fit into those.
pub fn gemv_shared_bytes(cols: usize) -> Option<usize> {
    (cols <= 1 << 16).then(|| pitch(cols) + 2 * cols)
}

/// Tiles of `gemm.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tile {
    /// 128 by 128, 256 threads.
    Large,
    /// 64 by 64, 128 threads.
    Small,
}

impl Tile {
    /// The tile for a product: large ones where they give every multiprocessor work.
    pub fn of(rows: usize, out_features: usize, multiprocessors: usize) -> Self {
        match rows.div_ceil(128) * out_features.div_ceil(128) >= multiprocessors {
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
    fn every_weight_row_has_a_warp_and_no_warp_is_without_k() {
        for out_features in [1usize, 3, 64, 1280, 5120, 50257] {
            for in_features in [1usize, 16, 511, 1280, 5120, 28672] {
                for multiprocessors in [4, 68, 132] {
                    let pitch = pitch(in_features);
                    for (cut, rows, bytes) in [
                        (gemv(out_features, pitch, multiprocessors), GEMV_ROWS, 512),
                        (thin(out_features, pitch, multiprocessors), THIN_ROWS, 64),
                    ] {
                        let (warps_k, blocks) = (cut.warps_k as usize, cut.blocks as usize);
                        assert!(BLOCK_WARPS.is_multiple_of(warps_k));
                        let covered = blocks * (BLOCK_WARPS / warps_k) * rows;
                        assert!(covered >= out_features && covered - out_features < BLOCK_WARPS * rows);
                        assert!(
                            warps_k == 1 || (warps_k / 2) * bytes < pitch,
                            "{cut:?} for K = {in_features}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn few_outputs_share_k_and_many_do_not() {
        // gpt2-large on 132 multiprocessors: the second product of an MLP, and the head of a 7B model.
        assert_eq!(gemv(1280, 5120, 132), Streaming { warps_k: 8, blocks: 320 });
        assert_eq!(gemv(32000, 4096, 132).warps_k, 1);
    }

    #[test]
    fn tiles_fit_into_the_smallest_shared_memory() {
        // 99 KB: what a block may have on 8.6 and 8.9; 64 KB on 7.5.
        assert!(Tile::Large.shared_bytes() <= 64 << 10);
        assert!(attend_many_shared_bytes(MOST_DIMS) <= 99 << 10);
        assert!(attend_one_shared_bytes(256) <= 48 << 10);
        // The epilogue's outliers: two tiles of 17 floats a row.
        for tile in [Tile::Large, Tile::Small] {
            assert!(2 * tile.side() * 17 * 4 <= tile.shared_bytes() as usize);
        }
        assert_eq!(Tile::of(512, 5120, 132), Tile::Large);
        assert_eq!(Tile::of(128, 1280, 132), Tile::Small);
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
