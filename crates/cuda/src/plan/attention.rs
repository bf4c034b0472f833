//! Attention (`attention.cu`, `attend_many.cu`).

use super::WARP;

/// Positions that a block of `attend_one` and `attend_new` computes in one round.
const ROUND: usize = 256;
/// Blocks that can share the positions of a row at most: what shared memory has room for when their
/// parts are joined.
pub const MOST_SPLITS: usize = 1024;
/// Values of a head up to which attention computes.
pub const WIDEST_HEAD: usize = 1024;
/// Queries of a tile of prompts.
pub const TILE_QUERIES: usize = 64;
/// Queries that a block of `attend_many` takes; others take a whole tile.
const BLOCK_QUERIES: usize = 32;
/// Positions that blocks for prompts have in shared memory.
pub const TILE_KEYS: usize = 64;
/// Values of a head up to which prompts are computed in tiles.
pub const MOST_DIMS: usize = 128;

/// Blocks that may share the positions of one row and head of keys in `attend_one` and
/// `attend_new`: what the whole cache would need, but not more than the device can hold at once.
/// How many of them work is decided on the device, by the positions that are there.
pub fn splits(capacity: usize, rows: usize, kv_heads: usize, multiprocessors: usize) -> usize {
    let useful = capacity.div_ceil(ROUND).max(1);
    useful
        .min(
            (2 * multiprocessors)
                .div_ceil((rows * kv_heads).max(1))
                .max(1),
        )
        .min(MOST_SPLITS)
}

/// How `attend_one` and `attend_new` divide heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Few {
    /// Heads of queries that a block takes together: 1, or up to 4 of those that share keys.
    pub at_once: usize,
    /// Blocks that take the heads of queries of one head of keys.
    pub sets: usize,
    /// 65536 / lanes + 1, where `lanes` lanes hold a head, 8 values each. It replaces a division by
    /// `lanes`: multiply, shift by 16.
    pub inverse: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: usize,
}

/// How `attend_one` and `attend_new` divide `group` heads of queries, of `padded` values each, that
/// share keys.
pub fn few(group: usize, padded: usize) -> Few {
    /// Warps of a block.
    const WARPS: usize = 8;
    let at_once = if group > 1 { 4 } else { 1 };
    let lanes = (padded / 8).clamp(1, WARP);
    let sums = WARPS * (WARP / lanes) * lanes * 8;
    Few {
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

/// How prompts are computed in tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Many {
    /// `attend_many`: f32 multiply-adds.
    Plain,
    /// `attend_many64`: tensor cores, heads of up to 64 values.
    Tensor64,
    /// `attend_many128`: tensor cores, heads of up to 128 values.
    Tensor128,
}

impl Many {
    /// For heads of `padded` values, in a cache of values of `bytes` bytes: tensor cores from
    /// capability 8.0 on, where the cache has 16 bits.
    pub fn of(padded: usize, bytes: usize, capability: u32) -> Self {
        match (bytes == 2 && capability >= 80, padded <= 64) {
            (false, _) => Self::Plain,
            (true, true) => Self::Tensor64,
            (true, false) => Self::Tensor128,
        }
    }

    /// Blocks for a tile and head.
    pub fn blocks_a_tile(self) -> usize {
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

    /// Bytes of dynamic shared memory: of tensor cores two stages of keys and values, 16 bits each.
    pub fn shared_bytes(self, padded: usize) -> usize {
        match self {
            Self::Plain => attend_many_shared_bytes(padded),
            Self::Tensor64 => 2 * 2 * TILE_KEYS * 64 * 2,
            Self::Tensor128 => 2 * 2 * TILE_KEYS * 128 * 2,
        }
    }
}

/// Tiles of queries for prompts: first row and number of rows of each, for sequences of `lengths`
/// new positions, one after the other. No tile holds rows of two texts.
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
    fn heads_fit_into_the_smallest_shared_memory() {
        // 99 KB: what a block may have on 8.6 and 8.9; 64 KB on 7.5.
        assert!(attend_many_shared_bytes(MOST_DIMS) <= 99 << 10);
        assert!(Many::Tensor128.shared_bytes(128) <= 99 << 10);
        assert!(few(4, 256).shared_bytes <= 48 << 10);
        assert!(few(4, WIDEST_HEAD).shared_bytes <= 64 << 10);
    }

    #[test]
    fn positions_are_shared_by_as_many_blocks_as_are_useful() {
        assert_eq!(splits(1024, 1, 20, 132), 4);
        assert_eq!(splits(1024, 32, 20, 132), 1);
        assert_eq!(splits(131_072, 1, 8, 132), 33);
        assert_eq!(splits(1 << 20, 1, 1, 1000), MOST_SPLITS);
        assert_eq!(splits(0, 1, 1, 132), 1);
    }

    #[test]
    fn every_head_of_queries_has_a_block_and_every_lane_its_place() {
        for group in 1..20 {
            let cut = few(group, 64);
            assert!(
                cut.sets * cut.at_once >= group && (cut.sets - 1) * cut.at_once < group,
                "{cut:?}"
            );
        }
        for padded in (8..=WIDEST_HEAD).step_by(8) {
            let (cut, lanes) = (few(4, padded), (padded / 8).min(WARP));
            for lane in 0..=WARP {
                assert_eq!(
                    (lane * cut.inverse as usize) >> 16,
                    lane / lanes,
                    "{padded}"
                );
            }
            // Where sums were, a factor for each part finds room.
            assert!(8 * (WARP / lanes) * lanes * 8 >= MOST_SPLITS, "{padded}");
        }
    }

    #[test]
    fn tensor_cores_are_used_where_there_are_some() {
        assert_eq!(
            [75, 80, 90].map(|capability| Many::of(64, 2, capability)),
            [Many::Plain, Many::Tensor64, Many::Tensor64]
        );
        assert_eq!(
            [Many::of(72, 2, 90), Many::of(64, 4, 90)],
            [Many::Tensor128, Many::Plain]
        );
    }
}
