//! Rotary position embedding (Su et al. 2021) and its stretched forms, as transformers computes
//! them (`modeling_rope_utils.py`): in f32, frequencies first.

mod scaling;

/// Which values of a head form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// Value i and value i + dims/2 (GPT-NeoX, Llama).
    Halves,
    /// Neighbours (GPT-J).
    Neighbours,
}

/// Rotations of positions.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// How many values of a head are rotated, from the first on.
    dims: usize,
    /// Which values form a pair.
    pairs: RopePairs,
    frequencies: Frequencies,
    /// What cosines and sines are multiplied with (YaRN, LongRoPE).
    scale: f32,
    /// How far positions may go beyond `max_position_embeddings`.
    stretch: f64,
}

#[derive(Debug, Clone, PartialEq)]
enum Frequencies {
    Fixed(Vec<f32>),
    /// Beyond `limit` positions the base grows with the length (dynamic NTK).
    Dynamic {
        base: f64,
        factor: f64,
        limit: usize,
    },
    /// Up to `limit` positions the first, beyond them the second (LongRoPE).
    Long {
        short: Vec<f32>,
        long: Vec<f32>,
        limit: usize,
    },
}

/// Cosines and sines of some positions.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    dims: usize,
    pairs: RopePairs,
}

/// `1 / base^(2i / dims)`, the power in f32 as PyTorch takes it.
fn inverse_frequencies(base: f64, dims: usize) -> Vec<f32> {
    let power = |i: usize| (base as f32).powf((2 * i) as f32 / dims as f32);
    (0..dims / 2).map(|i| 1.0 / power(i)).collect()
}

impl Rope {
    /// Without stretching.
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

    /// The same rotation of other pairs.
    pub fn with_pairs(self, pairs: RopePairs) -> Self {
        Self { pairs, ..self }
    }

    /// How many values of a head are rotated.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// Whether neighbours form a pair.
    pub fn rotates_neighbours(&self) -> bool {
        self.pairs == RopePairs::Neighbours
    }

    /// How far positions may go beyond `max_position_embeddings`, as a factor.
    pub fn stretch(&self) -> f64 {
        self.stretch
    }

    /// Whether a position is rotated the same whatever the length of the text.
    pub fn is_fixed(&self) -> bool {
        matches!(self.frequencies, Frequencies::Fixed(_))
    }

    /// Whether there are frequencies for long texts beside those for short ones.
    pub fn has_long(&self) -> bool {
        matches!(self.frequencies, Frequencies::Long { .. })
    }

    /// Whether a text of this length is rotated by the frequencies for long ones. What is cached
    /// was rotated by one kind and does not fit to the other, so transformers computes it again
    /// where that changes.
    pub fn is_long(&self, length: usize) -> bool {
        matches!(self.frequencies, Frequencies::Long { limit, .. } if length > limit)
    }

    /// Cosines and sines of the positions `start..start + count`, when those are the last.
    pub fn table(&self, start: usize, count: usize) -> RopeTable {
        let length = start + count;
        let grown;
        let frequencies = match &self.frequencies {
            Frequencies::Fixed(frequencies) => frequencies,
            Frequencies::Long { short, long, limit } => {
                if length > *limit {
                    long
                } else {
                    short
                }
            }
            Frequencies::Dynamic {
                base,
                factor,
                limit,
            } => {
                let ratio = factor * length.max(*limit) as f64 / *limit as f64 - (factor - 1.0);
                let exponent = self.dims as f64 / (self.dims as f64 - 2.0);
                grown = inverse_frequencies(base * ratio.powf(exponent), self.dims);
                &grown
            }
        };
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

impl RopeTable {
    /// Cosines, half of the rotated values a position.
    pub fn cos(&self) -> &[f32] {
        &self.cos
    }

    /// Sines.
    pub fn sin(&self) -> &[f32] {
        &self.sin
    }

    /// Rotates the values of one head at the `index`-th position of the table.
    pub fn rotate(&self, index: usize, head: &mut [f32]) {
        let half = self.dims / 2;
        let (cos, sin) = (
            &self.cos[index * half..][..half],
            &self.sin[index * half..][..half],
        );
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
    fn both_ways_of_pairing_turn_by_the_same_angle() {
        let rope = Rope::plain(100.0, 4);
        let (mut halves, mut neighbours) =
            ([1.0f32, 2.0, 3.0, 4.0, 9.0], [1.0f32, 3.0, 2.0, 4.0, 9.0]);
        rope.table(3, 1).rotate(0, &mut halves);
        rope.with_pairs(RopePairs::Neighbours)
            .table(3, 1)
            .rotate(0, &mut neighbours);
        let [a, b, c, d, rest] = halves;
        assert_eq!(neighbours, [a, c, b, d, rest]);
        assert_eq!(rest, 9.0, "values beyond the rotated ones stay");
    }
}
