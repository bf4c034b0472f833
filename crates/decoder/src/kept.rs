//! Which columns of a model's weights are kept in floating point
//! ([`OutlierWeights::Kept`]): those of the input features with the largest activations on a sample.

use crate::decoder::{Decoder, LogitPositions, SequenceInput};
use crate::error::{DecoderError, Result};
use crate::hook::{LinearHook, LinearInput};
use crate::slot::Part;
use llm_int8_nn::checkpoint::{Checkpoint, NewTensor, kept_state, read_kept_state};
use llm_int8_nn::linear::{HasLinears, Int8Config, KeptColumns, Linear, OutlierWeights};
use llm_int8_nn::module::ModulePath;
use std::collections::HashMap;

/// The sums of squares of the inputs of layers that share them.
struct Energies {
    layers: Vec<ModulePath>,
    /// For each input feature, over all rows of the sample.
    sums: Vec<f64>,
}

impl Energies {
    fn of(input: &LinearInput<'_>) -> Self {
        let width = input.values.len() / input.rows.max(1);
        let mut sums = vec![0f64; width];
        for row in input.values.chunks_exact(width.max(1)) {
            for (sum, x) in sums.iter_mut().zip(row) {
                *sum += f64::from(*x) * f64::from(*x);
            }
        }

        let layers = input.layers.iter().map(|layer| layer.path().clone());
        Self {
            layers: layers.collect(),
            sums,
        }
    }

    /// The features with the largest sums, ascending: `share` of all, and at least one. Where sums
    /// are equal, the first.
    fn largest(&self, share: f64) -> Vec<u32> {
        let count = (share * self.sums.len() as f64).round() as usize;
        let mut columns: Vec<u32> = (0..self.sums.len() as u32).collect();
        let sum = |column: &u32| self.sums[*column as usize];
        columns.sort_by(|a, b| sum(b).total_cmp(&sum(a)));
        columns.truncate(count.max(1));
        columns.sort_unstable();
        columns
    }
}

/// The energies of the inputs of one pass.
#[derive(Default)]
struct Sample(Vec<Energies>);

impl LinearHook for Sample {
    fn input(&mut self, input: &LinearInput<'_>) -> Result<()> {
        self.0.push(Energies::of(input));
        Ok(())
    }
}

impl Decoder {
    /// Whether layers are configured with [`OutlierWeights::Kept`] and have no such columns yet.
    pub fn needs_kept_columns(&self) -> bool {
        self.all_parts().any(|part| match part {
            Part::Linear(Linear::Int8(layer)) => {
                layer.config().outlier_weights == OutlierWeights::Kept
                    && layer.kept_columns().is_none()
            }
            _ => false,
        })
    }

    /// Bytes of the kept columns of all layers.
    pub fn kept_bytes(&self) -> u64 {
        self.all_parts()
            .map(|part| match part {
                Part::Linear(Linear::Int8(layer)) => {
                    layer.kept_columns().map_or(0, KeptColumns::bytes)
                }
                _ => 0,
            })
            .sum()
    }

    /// The tensors of the kept columns of all layers, under the layers' paths.
    pub fn kept_state(&self) -> Vec<NewTensor<'_>> {
        let layers = self.all_parts().filter_map(|part| match part {
            Part::Linear(Linear::Int8(layer)) => Some(layer),
            _ => None,
        });
        layers
            .filter_map(|layer| Some(kept_state(layer.kept_columns()?, layer.path().as_str())))
            .flatten()
            .collect()
    }

    /// Takes the kept columns of all int8 layers from what [`Self::kept_state`] gave.
    ///
    /// # Errors
    /// Those of [`read_kept_state`], for a layer without columns too.
    pub fn load_kept_columns(&mut self, saved: &Checkpoint) -> Result<()> {
        self.for_each_linear(&mut |path, linear| match linear {
            Linear::Int8(layer) => {
                let outputs = layer.out_features();
                let kept = read_kept_state(saved, path.as_str(), outputs)?;
                layer.set_kept_columns(kept)
            }
            Linear::Float(_) => Ok(()),
        })
        .map_err(DecoderError::from)
    }

    /// Changes how all int8 layers treat outliers. The weights stay.
    ///
    /// # Errors
    /// None; a model gives access to its layers through a fallible visitor.
    pub fn set_int8_config(&mut self, config: Int8Config) -> Result<()> {
        self.for_each_linear(&mut |_, linear| {
            if let Linear::Int8(layer) = linear {
                layer.set_config(config);
            }
            Ok(())
        })
        .map_err(DecoderError::from)
    }

    /// Chooses and reads the columns that are kept in f16 beside the codes, for all layers with
    /// [`OutlierWeights::Kept`]: the `share` of each layer's input features that have the largest mean
    /// square on the token ids `sample`, and at least one. Layers with the same input keep the same
    /// features.
    ///
    /// # Errors
    /// Those of a pass over the sample ([`Decoder::forward_hooked`]) and of
    /// [`Int8Linear::keep_columns`](llm_int8_nn::linear::Int8Linear::keep_columns).
    pub fn keep_columns(&mut self, sample: &[u32], share: f64) -> Result<()> {
        let mut found = Sample::default();
        // Which columns are kept does not depend on how keys and values will be stored.
        let mut cache = self.new_cache_in(self.dtype().into());
        let sequence = SequenceInput {
            ids: sample,
            cache: &mut cache,
            logits: LogitPositions::Last,
        };
        self.forward_hooked(&mut [sequence], &mut found)?;

        let mut columns = HashMap::new();
        for energies in &found.0 {
            let largest = energies.largest(share);
            for layer in &energies.layers {
                columns.insert(layer.clone(), largest.clone());
            }
        }

        self.for_each_linear(&mut |path, linear| match (linear, columns.get(path)) {
            (Linear::Int8(layer), Some(columns)) => layer.keep_columns(columns),
            _ => Ok(()),
        })
        .map_err(DecoderError::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_features_are_kept_and_at_least_one() {
        let energies = Energies {
            layers: Vec::new(),
            sums: vec![1.0, 5.0, 3.0, 5.0, 0.0],
        };
        assert_eq!(energies.largest(0.0), [1]);
        assert_eq!(energies.largest(0.4), [1, 3]);
        assert_eq!(energies.largest(0.6), [1, 2, 3]);
        assert_eq!(energies.largest(1.0), [0, 1, 2, 3, 4]);
    }
}
