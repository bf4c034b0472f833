//! Int8 layers of many rows (`gemm.cu`, `wgmma.cu`).

use super::THIN_MAX_ROWS;

/// The output tile of a block of `gemm.cu` or `wgmma.cu`, M by N.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tile {
    /// `wgmma.cu`: 256 by 128, 512 threads. One block on a multiprocessor.
    HopperTall,
    /// `wgmma.cu`: 128 by 128, 256 threads. Two blocks on a multiprocessor.
    Hopper,
    /// `wgmma.cu`: 128 by 128, 256 threads, more stages. One block on a multiprocessor.
    HopperDeep,
    /// `wgmma.cu`: 64 by 128, 128 threads, more stages. One block on a multiprocessor.
    HopperFlat,
    /// `gemm.cu`: 128 by 128, 256 threads.
    Large,
    /// `gemm.cu`: 64 by 64, 128 threads.
    Small,
}

/// The time a tile takes, in nanoseconds.
struct Costs {
    /// 128 columns of K, for a block alone on its multiprocessor.
    alone: usize,
    /// The same per block, when several blocks keep the multiprocessor busy.
    busy: usize,
    /// Filling the first stages, and the epilogue.
    once: usize,
    /// What remains of `once` for each further block, hidden in part behind the others.
    again: usize,
    /// Blocks that fit on a multiprocessor.
    together: usize,
}

impl Tile {
    /// The tiles of `wgmma.cu`.
    pub const HOPPER: [Self; 4] = [
        Self::HopperTall,
        Self::Hopper,
        Self::HopperDeep,
        Self::HopperFlat,
    ];

    /// Its rows and columns, along M and N.
    pub const fn size(self) -> [usize; 2] {
        match self {
            Self::HopperTall => [256, 128],
            Self::Hopper | Self::HopperDeep | Self::Large => [128, 128],
            Self::HopperFlat => [64, 128],
            Self::Small => [64, 64],
        }
    }

    /// Its number of outputs.
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

    /// Bytes of dynamic shared memory, which the epilogue reuses.
    ///
    /// A stage holds a tile of activations and one of weights: 64 bytes of each row in `gemm.cu`
    /// (four stages); 128 in `wgmma.cu` (three to eight stages), aligned to 1024 bytes.
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

    /// The number of tiles of a matmul.
    pub fn count(self, rows: usize, out_features: usize) -> usize {
        let [blocks_m, blocks_n] = self.grid(rows, out_features);
        blocks_m * blocks_n
    }

    /// Whether several blocks may share the K of each tile (split-K): there must be memory for the
    /// sums. `HopperTall` does not support it.
    fn may_split_k(self, rows: usize, out_features: usize, multiprocessors: usize) -> bool {
        let tiles = self.count(rows, out_features);
        let has_counters = tiles <= gemm_counters(rows, multiprocessors);
        let has_sums = tiles * self.outputs() <= gemm_sums(rows, multiprocessors);
        has_counters && has_sums && self != Self::HopperTall
    }

    /// Fitted to measurements on an H100; only as precise as those could tell the terms apart.
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

/// The size of an int8 matmul.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatmulShape {
    /// Rows of activations, M.
    pub rows: usize,
    /// N.
    pub out_features: usize,
    /// Bytes of a row of codes: K, padded.
    pub pitch: usize,
}

/// How `gemm.cu` and `wgmma.cu` divide a matmul.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gemm {
    /// The tile of a block.
    pub tile: Tile,
    /// Blocks that share the K of a tile (split-K).
    pub splits: u32,
}

impl Gemm {
    /// An estimate of the time it takes, in nanoseconds: of the busiest multiprocessor, or of L2 if
    /// that limits.
    fn cost(self, shape: MatmulShape, multiprocessors: usize) -> usize {
        /// Bytes that L2 delivers to all multiprocessors in a nanosecond.
        const L2_BYTES: usize = 7000;
        /// Split-K sums that are added in L2 in a nanosecond.
        const L2_ADDITIONS: usize = 1300;
        /// Until the last block of a tile knows that it is the last and has read the sums.
        const JOINING: usize = 1200;

        let Costs {
            alone,
            busy,
            once,
            again,
            together,
        } = self.tile.costs();
        let [tile_rows, tile_columns] = self.tile.size();
        let splits = self.splits as usize;
        let blocks = self.tile.count(shape.rows, shape.out_features) * splits;
        let steps_of_block = shape.k_steps().div_ceil(splits);
        let blocks_of_multiprocessor = blocks.div_ceil(multiprocessors);

        let reading = blocks * steps_of_block * (tile_rows + tile_columns) * 128 / L2_BYTES;
        let rounds = blocks_of_multiprocessor.div_ceil(together);
        let multiplying =
            (rounds * steps_of_block * alone).max(blocks_of_multiprocessor * steps_of_block * busy);
        let joining = if splits > 1 {
            JOINING + blocks * self.tile.outputs() / L2_ADDITIONS
        } else {
            0
        };

        reading.max(multiplying)
            + once
            + blocks_of_multiprocessor.saturating_sub(1) * again
            + joining
    }
}

impl MatmulShape {
    /// Steps of 128 columns along K.
    fn k_steps(self) -> usize {
        self.pitch.div_ceil(128).max(1)
    }
}

/// The most blocks that share the K of a tile.
const MAX_K_SPLITS: usize = 16;

/// Divides a matmul for `gemm.cu` or, with `has_wgmma`, `wgmma.cu`: the tile and splits with the
/// least estimated time.
///
/// Large tiles read less shared memory for each multiply-add; small tiles and splits keep more
/// multiprocessors busy.
///
/// ```
/// use llm_int8_cuda::plan::{Gemm, MatmulShape, Tile, gemm};
/// // Only 40 tiles, but a long K: several blocks share each tile.
/// let shape = MatmulShape { rows: 512, out_features: 1280, pitch: 5120 };
/// let found = gemm(shape, 132, true);
/// assert!(found.tile == Tile::HopperDeep && found.splits > 1);
///
/// let square = MatmulShape { rows: 4096, out_features: 4096, pitch: 4096 };
/// assert_eq!(gemm(square, 132, true), Gemm { tile: Tile::HopperTall, splits: 1 });
/// assert_eq!(gemm(square, 108, false), Gemm { tile: Tile::Large, splits: 1 });
/// ```
pub fn gemm(shape: MatmulShape, multiprocessors: usize, has_wgmma: bool) -> Gemm {
    let multiprocessors = multiprocessors.max(1);
    let steps = shape.k_steps();
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

    let candidates = tiles.iter().flat_map(|&tile| {
        let may_split = tile.may_split_k(shape.rows, shape.out_features, multiprocessors);
        let max_splits = if may_split {
            MAX_K_SPLITS.min(steps)
        } else {
            1
        };
        // Every block must have at least one step.
        let splits =
            (1..=max_splits).filter(move |splits| (splits - 1) * steps.div_ceil(*splits) < steps);
        splits.map(move |splits| Gemm {
            tile,
            splits: splits as u32,
        })
    });
    let best = candidates.min_by_key(|gemm| gemm.cost(shape, multiprocessors));

    best.unwrap_or(Gemm {
        tile: Tile::Small,
        splits: 1,
    })
}

/// The most tiles with a split K that a matmul of `rows` rows can have; each needs a counter.
///
/// ```
/// use llm_int8_cuda::plan::{gemm_counters, gemm_sums};
/// assert_eq!([gemm_counters(16, 132), gemm_sums(16, 132)], [0, 0]);
/// assert_eq!([gemm_counters(64, 132), gemm_sums(64, 132)], [132, 132 * 64 * 128]);
/// assert_eq!([gemm_counters(512, 132), gemm_sums(512, 132)], [132, 132 * 128 * 128]);
/// ```
pub fn gemm_counters(rows: usize, multiprocessors: usize) -> usize {
    if rows > THIN_MAX_ROWS {
        multiprocessors
    } else {
        0
    }
}

/// The most outputs of tiles with a split K that a matmul of `rows` rows can have; each needs a
/// sum. See [`gemm_counters`].
pub fn gemm_sums(rows: usize, multiprocessors: usize) -> usize {
    let tile = if rows > 64 {
        Tile::HopperDeep
    } else {
        Tile::HopperFlat
    };

    if rows > THIN_MAX_ROWS {
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
    fn tiles_fit_in_shared_memory_of_every_capability() {
        // The limit of a block is 99 KB on 8.6 and 8.9, 64 KB on 7.5.
        assert!(Tile::Large.shared_bytes() <= 64 << 10);
        assert!(thin(5120, 5120, 68).shared_bytes + (9 << 10) <= 64 << 10);

        // On 9.0, two blocks of `Hopper` fit on a multiprocessor, one of the others.
        assert!(2 * (Tile::Hopper.shared_bytes() + 1024) <= 228 << 10);
        assert!(
            Tile::HOPPER
                .iter()
                .all(|tile| tile.shared_bytes() <= 227 << 10)
        );

        assert!(Tile::Small.shared_bytes() <= Tile::Large.shared_bytes());
    }

    #[test]
    fn matmuls_keep_at_least_half_of_the_multiprocessors_busy() {
        for (rows, out_features, in_features) in [
            (64, 1280, 1280),
            (64, 1280, 5120),
            (512, 5120, 1280),
            (512, 1280, 5120),
            (17, 50257, 1280),
        ] {
            let shape = MatmulShape {
                rows,
                out_features,
                pitch: in_features,
            };
            let found = gemm(shape, 132, true);

            let tiles = found.tile.count(rows, out_features);
            assert!(
                tiles * found.splits as usize >= 66,
                "{found:?} for {shape:?}"
            );
            if found.splits > 1 {
                assert!(tiles <= gemm_counters(rows, 132));
                assert!(tiles * found.tile.outputs() <= gemm_sums(rows, 132));
            }
        }
    }

    #[test]
    fn k_of_one_step_or_none_is_not_split() {
        let one_step = MatmulShape {
            rows: 64,
            out_features: 1280,
            pitch: 16,
        };
        assert_eq!(gemm(one_step, 132, true).splits, 1);

        let empty = MatmulShape {
            rows: 100,
            out_features: 0,
            pitch: 0,
        };
        assert_eq!(gemm(empty, 132, true).splits, 1);
    }
}
