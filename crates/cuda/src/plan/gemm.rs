//! Int8 layers of many rows (`gemm.cu`, `wgmma.cu`).

use super::THIN_MOST;

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
    pub const HOPPER: [Self; 4] = [
        Self::HopperTall,
        Self::Hopper,
        Self::HopperDeep,
        Self::HopperFlat,
    ];

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

    /// Bytes of shared memory: four stages of both tiles, 64 bytes a row; for `wgmma.cu` three to
    /// eight, 128 bytes a row, which begin at a multiple of 1024 bytes. The epilogue reuses them.
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
        has_counters
            && self != Self::HopperTall
            && tiles * self.outputs() <= gemm_sums(rows, multiprocessors)
    }

    /// From measurements on an H100, of what can be told apart in them.
    const fn costs(self) -> Costs {
        match self {
            Self::HopperTall => Costs {
                alone: 650,
                busy: 650,
                once: 3000,
                again: 2500,
                together: 1,
            },
            Self::Hopper => Costs {
                alone: 450,
                busy: 330,
                once: 2200,
                again: 500,
                together: 2,
            },
            Self::HopperDeep => Costs {
                alone: 390,
                busy: 390,
                once: 2200,
                again: 2000,
                together: 1,
            },
            Self::HopperFlat => Costs {
                alone: 300,
                busy: 300,
                once: 1700,
                again: 1500,
                together: 1,
            },
            Self::Large => Costs {
                alone: 600,
                busy: 500,
                once: 2500,
                again: 600,
                together: 2,
            },
            Self::Small => Costs {
                alone: 300,
                busy: 130,
                once: 1500,
                again: 250,
                together: 4,
            },
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

/// How `gemm.cu` and `wgmma.cu` divide a matmul: what takes the busiest multiprocessor, or L2, the
/// least time by estimate. Large tiles read less shared memory for each multiply-add, small ones
/// and a K that several blocks share give all multiprocessors work. The matmul is given as M, N and
/// the pitch of K.
///
/// ```
/// use llm_int8_cuda::plan::{Gemm, Tile, gemm};
/// // 40 tiles, and 5120 codes to go through: each by several blocks.
/// let cut = gemm([512, 1280, 5120], 132, true);
/// assert!(cut.tile == Tile::HopperDeep && cut.splits > 1);
/// assert_eq!(gemm([4096, 4096, 4096], 132, true), Gemm { tile: Tile::HopperTall, splits: 1 });
/// assert_eq!(gemm([4096, 4096, 4096], 108, false), Gemm { tile: Tile::Large, splits: 1 });
/// ```
pub fn gemm(
    [rows, out_features, pitch]: [usize; 3],
    multiprocessors: usize,
    has_wgmma: bool,
) -> Gemm {
    /// What L2 gives all multiprocessors in a nanosecond.
    const CACHE_BYTES: usize = 7000;
    /// Sums that are added in it in a nanosecond.
    const ADDED: usize = 1300;
    /// Until the last block of a tile knows that it is the last one and has the sums.
    const JOINING: usize = 1200;
    let (steps, units) = (pitch.div_ceil(128).max(1), multiprocessors.max(1));

    let candidate = |tile: Tile, splits: usize| {
        let Costs {
            alone,
            busy,
            once,
            again,
            together,
        } = tile.costs();
        let ([high, wide], blocks) = (tile.size(), tile.count(rows, out_features) * splits);
        let (share, in_turn) = (steps.div_ceil(splits), blocks.div_ceil(units));
        let read = blocks * share * (high + wide) * 128 / CACHE_BYTES;
        let multiplied = (in_turn.div_ceil(together) * share * alone).max(in_turn * share * busy);
        let joined = if splits > 1 {
            JOINING + blocks * tile.outputs() / ADDED
        } else {
            0
        };
        let cost = read.max(multiplied) + once + in_turn.saturating_sub(1) * again + joined;
        (
            cost,
            Gemm {
                tile,
                splits: splits as u32,
            },
        )
    };
    let tiles: &[Tile] = if has_wgmma {
        &[
            Tile::HopperTall,
            Tile::Hopper,
            Tile::HopperDeep,
            Tile::HopperFlat,
            Tile::Small,
        ]
    } else {
        &[Tile::Large, Tile::Small]
    };
    let all = tiles.iter().flat_map(|&tile| {
        let may_share = tile.may_share(rows, out_features, units);
        let most = if may_share {
            MOST_K_SPLITS.min(steps)
        } else {
            1
        };
        // No block without steps.
        let useful = (1..=most).filter(|splits| (splits - 1) * steps.div_ceil(*splits) < steps);
        useful.map(move |splits| candidate(tile, splits))
    });
    let best = all.min_by_key(|(cost, _)| *cost);
    best.map_or(
        Gemm {
            tile: Tile::Small,
            splits: 1,
        },
        |(_, best)| best,
    )
}

/// Counters of tiles whose K is shared, and sums of those tiles, that a matmul of `rows` rows can
/// need.
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
    let tile = if rows > 64 {
        Tile::HopperDeep
    } else {
        Tile::HopperFlat
    };
    if rows > THIN_MOST {
        multiprocessors * tile.outputs()
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::super::thin;
    use super::*;

    #[test]
    fn tiles_fit_into_the_smallest_shared_memory() {
        // 99 KB: what a block may have on 8.6 and 8.9; 64 KB on 7.5.
        assert!(Tile::Large.shared_bytes() <= 64 << 10);
        assert!(thin(5120, 5120, 68).shared_bytes + (9 << 10) <= 64 << 10);
        // Two blocks, or one, on a multiprocessor of 9.0.
        assert!(2 * (Tile::Hopper.shared_bytes() + 1024) <= 228 << 10);
        assert!(
            Tile::HOPPER
                .iter()
                .all(|tile| tile.shared_bytes() <= 227 << 10)
        );
        assert!(Tile::Small.shared_bytes() <= Tile::Large.shared_bytes());
    }

    #[test]
    fn matmuls_give_multiprocessors_work() {
        for (rows, out_features, in_features) in [
            (64, 1280, 1280),
            (64, 1280, 5120),
            (512, 5120, 1280),
            (512, 1280, 5120),
            (17, 50257, 1280),
        ] {
            let cut = gemm([rows, out_features, in_features], 132, true);
            let tiles = cut.tile.count(rows, out_features);
            assert!(
                tiles * cut.splits as usize >= 66,
                "{cut:?} for {rows} x {out_features} x {in_features}"
            );
            if cut.splits > 1 {
                assert!(tiles <= gemm_counters(rows, 132));
                assert!(tiles * cut.tile.outputs() <= gemm_sums(rows, 132));
            }
        }
        // Nothing to share.
        assert_eq!(gemm([64, 1280, 16], 132, true).splits, 1);
        assert_eq!(gemm([100, 0, 0], 132, true).splits, 1);
    }
}
