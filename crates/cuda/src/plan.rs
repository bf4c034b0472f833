//! Shapes of launches: pure functions of sizes, tested without a device. The numbers they choose by are of the
//! hardware (warps of 32, blocks that fill a multiprocessor) and of `kernels/`.

/// Lanes of a warp.
pub const WARP: usize = 32;
/// Rows of codes begin at multiples of this many bytes, as loads of 16 bytes need.
pub const ALIGNMENT: usize = 16;
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
/// Positions that a block of `attend_one` and `attend_new` computes in one round.
const ROUND: usize = 256;
/// Blocks that can share the positions of a row at most: what shared memory has room for when their parts are joined.
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

/// Threads of a block of `quantize.cu`, which works on rows of `cols` values. Of few rows each has eight values, so that none
/// is waited for long; of many twice as many, which costs less for a value.
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

/// Blocks of `quantize.cu`: those that are on the device together, by the registers of its threads, and not more than there
/// are rows.
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
    /// Bytes of shared memory for a row of `cols` values: the pieces that are copied ahead, the codes of the row, two lists of
    /// outliers, and a sum for each warp of a weight row.
    pub fn shared_bytes(&self, cols: usize) -> usize {
        let stages = GEMV_STAGES.min(self.pieces as usize);
        let sums = self.rows as usize * (self.lanes as usize).div_ceil(WARP);
        stages * GEMV_THREADS * 16 + pitch(cols) + 16 * GEMV_OUTLIERS + 4 * sums
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
    let has_room = |lanes: &usize| chunks.div_ceil(*lanes) <= GEMV_LOADS || *lanes == GEMV_THREADS;
    let all = [16, 32, 64, 128, 256, 512].into_iter().filter(has_room).map(candidate);
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

/// Tiles of `gemm.cu` and `wgmma.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tile {
    /// 256 rows by 128 columns, 512 threads, by `wgmma.cu`, where the device has that instruction.
    HopperTall,
    /// 128 by 128, 256 threads, as well; two on a multiprocessor.
    Hopper,
    /// The same with a multiprocessor for itself, and more copies ahead.
    HopperDeep,
    /// 64 by 128, 128 threads, likewise.
    HopperFlat,
    /// 128 by 128, 256 threads.
    Large,
    /// 64 by 64, 128 threads.
    Small,
}

/// What a tile costs, in nanoseconds.
struct Costs {
    /// 128 bytes of K for a block that has a multiprocessor for itself.
    alone: usize,
    /// The same where several blocks keep it busy.
    busy: usize,
    /// The first stages and the outputs.
    once: usize,
    /// What of that is left for every further block, while others multiply.
    again: usize,
    /// Blocks that are on a multiprocessor together.
    together: usize,
}

impl Tile {
    /// Those that multiply by `wgmma`.
    pub const HOPPER: [Self; 4] = [Self::HopperTall, Self::Hopper, Self::HopperDeep, Self::HopperFlat];

    /// Rows and columns.
    pub const fn size(self) -> [usize; 2] {
        match self {
            Self::HopperTall => [256, 128],
            Self::Hopper | Self::HopperDeep | Self::Large => [128, 128],
            Self::HopperFlat => [64, 128],
            Self::Small => [64, 64],
        }
    }

    /// Its outputs.
    pub const fn outputs(self) -> usize {
        let [rows, columns] = self.size();
        rows * columns
    }

    /// Threads of a block.
    pub const fn threads(self) -> u32 {
        match self {
            Self::HopperTall => 512,
            Self::Hopper | Self::HopperDeep | Self::Large => 256,
            Self::HopperFlat | Self::Small => 128,
        }
    }

    /// Bytes of shared memory: four stages of both tiles, 64 bytes a row; for `wgmma.cu` three to eight, 128 bytes a row,
    /// which begin at a multiple of 1024 bytes. The epilogue reuses them.
    pub const fn shared_bytes(self) -> u32 {
        let [rows, columns] = self.size();
        let both = (rows + columns) as u32;
        match self {
            Self::HopperTall => 4 * both * 128 + 1024,
            Self::Hopper => 3 * both * 128 + 1024,
            Self::HopperDeep => 6 * both * 128 + 1024,
            Self::HopperFlat => 8 * both * 128 + 1024,
            Self::Large | Self::Small => 4 * both * 64,
        }
    }

    /// Tiles along M and N.
    pub fn grid(self, rows: usize, out_features: usize) -> [usize; 2] {
        let [high, wide] = self.size();
        [rows.div_ceil(high), out_features.div_ceil(wide)]
    }

    /// Tiles of a matmul.
    pub fn count(self, rows: usize, out_features: usize) -> usize {
        let [blocks_m, blocks_n] = self.grid(rows, out_features);
        blocks_m * blocks_n
    }

    /// Whether several blocks may share the K of tiles: where there is memory for the sums.
    fn may_share(self, rows: usize, out_features: usize, multiprocessors: usize) -> bool {
        let tiles = self.count(rows, out_features);
        let has_counters = tiles <= gemm_counters(rows, multiprocessors);
        has_counters && self != Self::HopperTall && tiles * self.outputs() <= gemm_sums(rows, multiprocessors)
    }

    /// From measurements on an H100, of what can be told apart in them.
    const fn costs(self) -> Costs {
        match self {
            Self::HopperTall => Costs { alone: 650, busy: 650, once: 3000, again: 2500, together: 1 },
            Self::Hopper => Costs { alone: 450, busy: 330, once: 2200, again: 500, together: 2 },
            Self::HopperDeep => Costs { alone: 390, busy: 390, once: 2200, again: 2000, together: 1 },
            Self::HopperFlat => Costs { alone: 300, busy: 300, once: 1700, again: 1500, together: 1 },
            Self::Large => Costs { alone: 600, busy: 500, once: 2500, again: 600, together: 2 },
            Self::Small => Costs { alone: 300, busy: 130, once: 1500, again: 250, together: 4 },
        }
    }
}

/// How `gemm.cu` and `wgmma.cu` divide a matmul.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gemm {
    /// The tile of a block.
    pub tile: Tile,
    /// Blocks that share the K of a tile.
    pub splits: u32,
}

/// Blocks that share the K of a tile, at most.
const MOST_K_SPLITS: usize = 16;

/// How `gemm.cu` and `wgmma.cu` divide a matmul: what takes the busiest multiprocessor, or the second cache, the least time by
/// estimate. Large tiles read less shared memory for each multiply-add, small ones and a K that several blocks share give all
/// multiprocessors work. The matmul is given as M, N and the pitch of K.
///
/// ```
/// use llm_int8_cuda::plan::{Gemm, Tile, gemm};
/// // 40 tiles, and 5120 codes to go through: each by several blocks.
/// let cut = gemm([512, 1280, 5120], 132, true);
/// assert!(cut.tile == Tile::HopperDeep && cut.splits > 1);
/// assert_eq!(gemm([4096, 4096, 4096], 132, true), Gemm { tile: Tile::HopperTall, splits: 1 });
/// assert_eq!(gemm([4096, 4096, 4096], 108, false), Gemm { tile: Tile::Large, splits: 1 });
/// ```
pub fn gemm([rows, out_features, pitch]: [usize; 3], multiprocessors: usize, has_wgmma: bool) -> Gemm {
    /// What the second cache gives all multiprocessors in a nanosecond.
    const CACHE_BYTES: usize = 7000;
    /// Sums that are added in it in a nanosecond.
    const ADDED: usize = 1300;
    /// Until the last block of a tile knows that it is the last one and has the sums.
    const JOINING: usize = 1200;
    let (steps, units) = (pitch.div_ceil(128).max(1), multiprocessors.max(1));

    let candidate = |tile: Tile, splits: usize| {
        let Costs { alone, busy, once, again, together } = tile.costs();
        let ([high, wide], blocks) = (tile.size(), tile.count(rows, out_features) * splits);
        let (share, in_turn) = (steps.div_ceil(splits), blocks.div_ceil(units));
        let read = blocks * share * (high + wide) * 128 / CACHE_BYTES;
        let multiplied = (in_turn.div_ceil(together) * share * alone).max(in_turn * share * busy);
        let joined = if splits > 1 { JOINING + blocks * tile.outputs() / ADDED } else { 0 };
        let cost = read.max(multiplied) + once + in_turn.saturating_sub(1) * again + joined;
        (cost, Gemm { tile, splits: splits as u32 })
    };
    let tiles: &[Tile] = if has_wgmma {
        &[Tile::HopperTall, Tile::Hopper, Tile::HopperDeep, Tile::HopperFlat, Tile::Small]
    } else {
        &[Tile::Large, Tile::Small]
    };
    let all = tiles.iter().flat_map(|&tile| {
        let may_share = tile.may_share(rows, out_features, units);
        let most = if may_share { MOST_K_SPLITS.min(steps) } else { 1 };
        // No block without steps.
        let useful = (1..=most).filter(|splits| (splits - 1) * steps.div_ceil(*splits) < steps);
        useful.map(move |splits| candidate(tile, splits))
    });
    let best = all.min_by_key(|(cost, _)| *cost);
    best.map_or(Gemm { tile: Tile::Small, splits: 1 }, |(_, best)| best)
}

/// Counters of tiles whose K is shared, and sums of those tiles, that a matmul of so many rows can need.
///
/// ```
/// use llm_int8_cuda::plan::{gemm_counters, gemm_sums};
/// assert_eq!([gemm_counters(16, 132), gemm_sums(16, 132)], [0, 0]);
/// assert_eq!([gemm_counters(64, 132), gemm_sums(64, 132)], [132, 132 * 64 * 128]);
/// assert_eq!([gemm_counters(512, 132), gemm_sums(512, 132)], [132, 132 * 128 * 128]);
/// ```
pub fn gemm_counters(rows: usize, multiprocessors: usize) -> usize {
    if rows > THIN_MOST { multiprocessors } else { 0 }
}

/// See [`gemm_counters`].
pub fn gemm_sums(rows: usize, multiprocessors: usize) -> usize {
    let tile = if rows > 64 { Tile::HopperDeep } else { Tile::HopperFlat };
    if rows > THIN_MOST { multiprocessors * tile.outputs() } else { 0 }
}

/// Blocks that may share the positions of one row and head of keys in `attend_one` and `attend_new`: what the whole cache
/// would need, but not more than the device can hold at once. How many of them work is decided on the device, by the
/// positions that are there.
pub fn splits(capacity: usize, rows: usize, kv_heads: usize, multiprocessors: usize) -> usize {
    let useful = capacity.div_ceil(ROUND).max(1);
    useful.min((2 * multiprocessors).div_ceil((rows * kv_heads).max(1)).max(1)).min(MOST_SPLITS)
}

/// How `attend_one` and `attend_new` divide heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Few {
    /// Heads of queries that a block takes together: 1, or up to 4 of those that share keys.
    pub at_once: usize,
    /// Blocks that take the heads of queries of one head of keys.
    pub sets: usize,
    /// 65536 / lanes + 1, where each of so many lanes has 8 values of a head: a division by them is a product and a shift.
    pub inverse: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: usize,
}

/// How `attend_one` and `attend_new` divide `group` heads of queries, of `padded` values each, that share keys.
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
    /// For heads of `padded` values, in a cache of values of `bytes` bytes: tensor cores from capability 8.0 on, where the
    /// cache has 16 bits.
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

/// Tiles of queries for prompts: first row and number of rows of each, for texts of so many new positions
/// one after the other. No tile holds rows of two texts.
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
    fn layers_of_gpt2_large_leave_few_lanes_without_work_and_are_copied_ahead_whole() {
        for [out_features, in_features] in [[3840, 1280], [1280, 1280], [5120, 1280], [1280, 5120]] {
            let cut = gemv(out_features, in_features, 132);
            let (chunks, lanes) = (in_features / 16, cut.lanes as usize);
            assert!(10 * chunks >= 8 * chunks.next_multiple_of(lanes), "{cut:?}");
            assert!(cut.pieces as usize <= GEMV_STAGES && cut.blocks >= 80, "{cut:?}");
            // Blocks of two layers fit into a multiprocessor of an H100 together.
            assert!(2 * (cut.shared_bytes(in_features) + (1 << 10)) <= 228 << 10, "{cut:?}");
        }
    }

    #[test]
    fn tiles_fit_into_the_smallest_shared_memory() {
        // 99 KB: what a block may have on 8.6 and 8.9; 64 KB on 7.5.
        assert!(Tile::Large.shared_bytes() <= 64 << 10);
        assert!(attend_many_shared_bytes(MOST_DIMS) <= 99 << 10);
        assert!(thin(5120, 5120, 68).shared_bytes + (9 << 10) <= 64 << 10);
        assert!(Many::Tensor128.shared_bytes(128) <= 99 << 10);
        assert!(few(4, 256).shared_bytes <= 48 << 10);
        assert!(few(4, WIDEST_HEAD).shared_bytes <= 64 << 10);
        // Two blocks, or one, on a multiprocessor of 9.0.
        assert!(2 * (Tile::Hopper.shared_bytes() + 1024) <= 228 << 10);
        assert!(Tile::HOPPER.iter().all(|tile| tile.shared_bytes() <= 227 << 10));
        assert!(Tile::Small.shared_bytes() <= Tile::Large.shared_bytes());
    }

    #[test]
    fn matmuls_give_multiprocessors_work() {
        for (rows, out_features, in_features) in
            [(64, 1280, 1280), (64, 1280, 5120), (512, 5120, 1280), (512, 1280, 5120), (17, 50257, 1280)]
        {
            let cut = gemm([rows, out_features, in_features], 132, true);
            let tiles = cut.tile.count(rows, out_features);
            assert!(tiles * cut.splits as usize >= 66, "{cut:?} for {rows} x {out_features} x {in_features}");
            if cut.splits > 1 {
                assert!(tiles <= gemm_counters(rows, 132));
                assert!(tiles * cut.tile.outputs() <= gemm_sums(rows, 132));
            }
        }
        // Nothing to share.
        assert_eq!(gemm([64, 1280, 16], 132, true).splits, 1);
        assert_eq!(gemm([100, 0, 0], 132, true).splits, 1);
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
            assert!(cut.sets * cut.at_once >= group && (cut.sets - 1) * cut.at_once < group, "{cut:?}");
        }
        for padded in (8..=WIDEST_HEAD).step_by(8) {
            let (cut, lanes) = (few(4, padded), (padded / 8).min(WARP));
            for lane in 0..=WARP {
                assert_eq!((lane * cut.inverse as usize) >> 16, lane / lanes, "{padded}");
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
        assert_eq!([Many::of(72, 2, 90), Many::of(64, 4, 90)], [Many::Tensor128, Many::Plain]);
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
