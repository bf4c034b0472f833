//! Rotary position embedding (RoPE, Su et al. 2021) and its scaled variants, computed as in
//! transformers (`modeling_rope_utils.py`): in f32, frequencies first.

mod scaling;

use std::borrow::Cow;

/// Which values of a head vector are rotated as a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// Value i and value i + dims/2 (GPT-NeoX, Llama).
    Halves,
    /// Value 2i and value 2i + 1 (GPT-J).
    Neighbours,
}

/// The rotary embedding of a model: it makes tables of rotations for ranges of positions.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// How many values of a head vector are rotated, from the first on.
    dims: usize,
    pairs: RopePairs,
    frequencies: Frequencies,
    /// Factor of cosines and sines (YaRN, LongRoPE).
    scale: f32,
    /// By which factor positions may exceed `max_position_embeddings`.
    stretch: f64,
}

/// One frequency for each pair, perhaps depending on the length of the sequence.
#[derive(Debug, Clone, PartialEq)]
enum Frequencies {
    Fixed(Vec<f32>),
    /// Past `limit` positions the base grows with the length (dynamic NTK).
    Dynamic {
        base: f64,
        factor: f64,
        limit: usize,
    },
    /// `short` up to `limit` positions, `long` past them (LongRoPE).
    Long {
        short: Vec<f32>,
        long: Vec<f32>,
        limit: usize,
    },
}

/// Cosines and sines for a range of positions: `[positions, dims / 2]` each.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    dims: usize,
    pairs: RopePairs,
}

/// `1 / base^(2i / dims)` for each pair `i`, with the power in f32 as in PyTorch.
fn inverse_frequencies(base: f64, dims: usize) -> Vec<f32> {
    let power = |i: usize| (base as f32).powf((2 * i) as f32 / dims as f32);
    (0..dims / 2).map(|i| 1.0 / power(i)).collect()
}

impl Rope {
    /// RoPE without scaling, over the first `dims` values of a head, paired as halves.
    ///
    /// ```
    /// use llm_int8_nn::layers::Rope;
    /// let table = Rope::plain(10000.0, 4).table(1, 1);
    /// let mut head = [1.0f32, 0.0, 0.0, 0.0];
    /// table.rotate(0, &mut head);
    /// assert!((head[0] - 1f32.cos()).abs() < 1e-6 && (head[2] - 1f32.sin()).abs() < 1e-6);
    /// ```
    pub fn plain(base: f64, dims: usize) -> Self {
        let frequencies = Frequencies::Fixed(inverse_frequencies(base, dims));
        Self {
            dims,
            pairs: RopePairs::Halves,
            frequencies,
            scale: 1.0,
            stretch: 1.0,
        }
    }

    /// The same rotations with another pairing.
    pub fn with_pairs(self, pairs: RopePairs) -> Self {
        Self { pairs, ..self }
    }

    /// How many values of a head vector are rotated, from the first on.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// Whether neighbours form a pair ([`RopePairs::Neighbours`]).
    pub fn rotates_neighbours(&self) -> bool {
        self.pairs == RopePairs::Neighbours
    }

    /// By which factor positions may exceed `max_position_embeddings`.
    pub fn stretch(&self) -> f64 {
        self.stretch
    }

    /// Whether a position's rotation is independent of the length of its sequence.
    pub fn is_fixed(&self) -> bool {
        matches!(self.frequencies, Frequencies::Fixed(_))
    }

    /// Whether long sequences have their own frequencies (LongRoPE).
    pub fn has_long(&self) -> bool {
        matches!(self.frequencies, Frequencies::Long { .. })
    }

    /// Whether a sequence of this length uses the frequencies for long ones. Keys in a cache were
    /// rotated with one set of frequencies and cannot be mixed with the other, so transformers
    /// recomputes the whole sequence when it crosses the limit.
    pub fn is_long(&self, length: usize) -> bool {
        matches!(self.frequencies, Frequencies::Long { limit, .. } if length > limit)
    }

    /// The table for positions `start..start + count` of a sequence that ends there.
    pub fn table(&self, start: usize, count: usize) -> RopeTable {
        let length = start + count;
        let frequencies = self.frequencies_for(length);
        let angles = (start..length)
            .flat_map(|position| frequencies.iter().map(move |f| position as f32 * f));
        let (cos, sin) = angles
            .map(|angle| (angle.cos() * self.scale, angle.sin() * self.scale))
            .unzip();

        RopeTable {
            cos,
            sin,
            dims: self.dims,
            pairs: self.pairs,
        }
    }
}

impl Rope {
    /// The frequencies for a sequence of this length.
    fn frequencies_for(&self, length: usize) -> Cow<'_, [f32]> {
        match &self.frequencies {
            Frequencies::Fixed(frequencies) => frequencies.into(),
            Frequencies::Long { short, long, limit } => {
                let frequencies = if length > *limit { long } else { short };
                frequencies.into()
            }
            Frequencies::Dynamic {
                base,
                factor,
                limit,
            } => {
                let ratio = factor * length.max(*limit) as f64 / *limit as f64 - (factor - 1.0);
                let exponent = self.dims as f64 / (self.dims as f64 - 2.0);
                inverse_frequencies(base * ratio.powf(exponent), self.dims).into()
            }
        }
    }
}

impl RopeTable {
    /// Cosines, `[positions, dims / 2]`.
    pub fn cos(&self) -> &[f32] {
        &self.cos
    }

    /// Sines, `[positions, dims / 2]`.
    pub fn sin(&self) -> &[f32] {
        &self.sin
    }

    /// Rotates one head vector by the `index`-th position of the table.
    pub fn rotate(&self, index: usize, head: &mut [f32]) {
        let half = self.dims / 2;
        let cos = &self.cos[index * half..][..half];
        let sin = &self.sin[index * half..][..half];

        match self.pairs {
            RopePairs::Halves => {
                let (first, second) = head[..self.dims].split_at_mut(half);
                for (((x, y), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    (*x, *y) = (*x * c - *y * s, *y * c + *x * s);
                }
            }
            RopePairs::Neighbours => {
                for ((pair, c), s) in head[..self.dims].chunks_exact_mut(2).zip(cos).zip(sin) {
                    (pair[0], pair[1]) = (pair[0] * c - pair[1] * s, pair[1] * c + pair[0] * s);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_pairings_rotate_by_the_same_angle() {
        let rope = Rope::plain(100.0, 4);
        let mut halves = [1.0f32, 2.0, 3.0, 4.0, 9.0];
        let mut neighbours = [1.0f32, 3.0, 2.0, 4.0, 9.0];
        rope.table(3, 1).rotate(0, &mut halves);
        rope.with_pairs(RopePairs::Neighbours)
            .table(3, 1)
            .rotate(0, &mut neighbours);
        let [a, b, c, d, rest] = halves;
        assert_eq!(neighbours, [a, c, b, d, rest]);
        assert_eq!(rest, 9.0, "values past the rotated ones stay");
    }
}
