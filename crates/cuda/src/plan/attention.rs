//! Attention: of rows one by one (`attention.cu`), of tiles of rows (`attend_many.cu`).

use super::WARP;

/// Positions that a block of `attend_one` or `attend_new` computes in one round.
const ROUND: usize = 256;
/// Maximum number of blocks that share the positions of a row, limited by the shared memory in which
/// their partial results are combined.
pub const MAX_SPLITS: usize = 1024;
/// The widest head of attention row by row, padding included.
pub const MAX_HEAD_SIZE: usize = 1024;
/// Queries of a tile of a prompt.
pub const TILE_QUERIES: usize = 64;
/// Queries of a block of `attend_many`; a block of the other kernels takes a whole tile.
const BLOCK_QUERIES: usize = 32;
/// Positions that a block of the tile kernels holds in shared memory.
pub const TILE_KEYS: usize = 64;
/// The widest head of attention in tiles, padding included.
pub const MAX_TILED_HEAD_SIZE: usize = 128;

/// Blocks of `attend_one` and `attend_new` that share the positions of one row and key/value head:
/// as many as a full cache has use for, but no more than the device runs at once.
///
/// How many of them have work is decided on the device, by the actual number of positions, so that
/// a recorded graph stays valid while the cache fills.
pub fn splits(capacity: usize, rows: usize, kv_heads: usize, multiprocessors: usize) -> usize {
    let useful = capacity.div_ceil(ROUND).max(1);
    let available = (2 * multiprocessors)
        .div_ceil((rows * kv_heads).max(1))
        .max(1);
    useful.min(available).min(MAX_SPLITS)
}

/// How `attend_one` and `attend_new` divide heads among blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowAttention {
    /// Query heads that a block computes at once: 1, or up to 4 that share a key/value head.
    pub at_once: usize,
    /// Blocks for the query heads that share a key/value head.
    pub sets: usize,
    /// 65536 / lanes + 1, where `lanes` lanes hold a head, 8 values each. It replaces a division by
    /// `lanes`: multiply, shift right by 16.
    pub inverse: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: usize,
}

/// Divides heads for `attend_one` and `attend_new`: `group` query heads, of `padded` values each,
/// share a key/value head.
pub fn row_attention(group: usize, padded: usize) -> RowAttention {
    /// Warps of a block.
    const WARPS: usize = 8;
    let at_once = if group > 1 { 4 } else { 1 };
    let lanes = (padded / 8).clamp(1, WARP);
    let sums = WARPS * (WARP / lanes) * lanes * 8;

    RowAttention {
        at_once,
        sets: group.div_ceil(at_once).max(1),
        inverse: (65536 / lanes + 1) as u32,
        shared_bytes: 4
            * ((at_once + 2) * padded.next_multiple_of(64) + at_once * sums + 2 * at_once * WARPS),
    }
}

/// Bytes of dynamic shared memory of `attend_many`.
pub fn attend_many_shared_bytes(padded: usize) -> usize {
    4 * ((BLOCK_QUERIES + 2 * TILE_KEYS) * (padded + 1) + BLOCK_QUERIES * (TILE_KEYS + 1))
}

/// A kernel for attention in tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TileKernel {
    /// `attend_many`: f32 multiply-adds.
    Plain,
    /// `attend_many64`: tensor cores, heads of up to 64 values.
    Tensor64,
    /// `attend_many128`: tensor cores, heads of up to 128 values.
    Tensor128,
}

impl TileKernel {
    /// The kernel for heads of `padded` values, in a cache whose values have `bytes` bytes. Tensor
    /// cores need a 16-bit cache and capability 8.0.
    pub fn choose(padded: usize, bytes: usize, capability: u32) -> Self {
        if bytes != 2 || capability < 80 {
            Self::Plain
        } else if padded <= 64 {
            Self::Tensor64
        } else {
            Self::Tensor128
        }
    }

    /// Blocks for each tile and head.
    pub fn blocks_per_tile(self) -> usize {
        match self {
            Self::Plain => TILE_QUERIES / BLOCK_QUERIES,
            Self::Tensor64 | Self::Tensor128 => 1,
        }
    }

    /// Threads of a block.
    pub fn threads(self) -> u32 {
        match self {
            Self::Plain => 256,
            Self::Tensor64 | Self::Tensor128 => 128,
        }
    }

    /// Bytes of dynamic shared memory; with tensor cores, two stages of 16-bit keys and values.
    pub fn shared_bytes(self, padded: usize) -> usize {
        match self {
            Self::Plain => attend_many_shared_bytes(padded),
            Self::Tensor64 => 2 * 2 * TILE_KEYS * 64 * 2,
            Self::Tensor128 => 2 * 2 * TILE_KEYS * 128 * 2,
        }
    }
}

/// Divides prompts into tiles of queries: for each, its first row and number of rows. The rows of
/// the sequences, `lengths` new ones each, are in order; no tile has rows of two sequences.
///
/// ```
/// assert_eq!(llm_int8_cuda::plan::query_tiles(&[80, 1]), [[0, 64], [64, 16], [80, 1]]);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_fit_in_shared_memory_of_every_capability() {
        // The limit of a block is 99 KB on 8.6 and 8.9, 64 KB on 7.5.
        assert!(attend_many_shared_bytes(MAX_TILED_HEAD_SIZE) <= 99 << 10);
        assert!(TileKernel::Tensor128.shared_bytes(128) <= 99 << 10);
        assert!(row_attention(4, 256).shared_bytes <= 48 << 10);
        assert!(row_attention(4, MAX_HEAD_SIZE).shared_bytes <= 64 << 10);
    }

    #[test]
    fn splits_follow_the_cache_up_to_what_the_device_runs_at_once() {
        assert_eq!(splits(1024, 1, 20, 132), 4);
        assert_eq!(splits(1024, 32, 20, 132), 1);
        assert_eq!(splits(131_072, 1, 8, 132), 33);
        assert_eq!(splits(1 << 20, 1, 1, 1000), MAX_SPLITS);
        assert_eq!(splits(0, 1, 1, 132), 1);
    }

    #[test]
    fn every_query_head_has_a_block() {
        for group in 1..20 {
            let found = row_attention(group, 64);
            assert!(
                found.sets * found.at_once >= group && (found.sets - 1) * found.at_once < group,
                "{found:?}"
            );
        }
    }

    #[test]
    fn the_inverse_divides_every_lane_exactly() {
        for padded in (8..=MAX_HEAD_SIZE).step_by(8) {
            let inverse = row_attention(4, padded).inverse as usize;
            let lanes = (padded / 8).min(WARP);
            for lane in 0..=WARP {
                assert_eq!((lane * inverse) >> 16, lane / lanes, "{padded}");
            }

            // The memory of the sums is reused for a factor of each split.
            assert!(8 * (WARP / lanes) * lanes * 8 >= MAX_SPLITS, "{padded}");
        }
    }

    #[test]
    fn tensor_cores_need_a_16_bit_cache_and_capability_8() {
        let choose = TileKernel::choose;
        assert_eq!(
            [75, 80, 90].map(|capability| choose(64, 2, capability)),
            [
                TileKernel::Plain,
                TileKernel::Tensor64,
                TileKernel::Tensor64
            ]
        );
        assert_eq!(choose(72, 2, 90), TileKernel::Tensor128);
        assert_eq!(choose(64, 4, 90), TileKernel::Plain);
    }
}
