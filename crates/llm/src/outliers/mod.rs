//! Which activations of a model are outliers on a text, and what quantising costs each layer.

mod count;
mod measure;
mod recurring;

pub use recurring::{RecurringFeature, RecurringFeatures};

use crate::error::{LlmError, Result};
use crate::model::AutoModelForCausalLM;
use llm_int8_decoder::{LogitPositions, SequenceInput};
use llm_int8_nn::ParameterDtype;
use llm_int8_nn::checkpoint::Checkpoint;
use llm_int8_nn::linear::OutlierRule;
use llm_int8_nn::module::ModulePath;
use measure::Measure;
use std::ops::ControlFlow;

/// How outliers are looked for.
#[derive(Debug, Clone, Copy)]
pub struct OutlierOptions<'a> {
    /// Tokens per window; each window is one forward pass.
    pub window: usize,
    /// The checkpoint that the model was loaded from
    /// ([`load::checkpoint`](crate::load::checkpoint)), for its float weights. Without it the error
    /// of the weights is not known, and outputs are compared with those of the dequantised weights
    /// on float activations.
    pub checkpoint: Option<&'a Checkpoint>,
}

impl Default for OutlierOptions<'_> {
    /// Windows of 512 tokens, no float weights.
    fn default() -> Self {
        Self {
            window: 512,
            checkpoint: None,
        }
    }
}

/// The outliers of a model's 8-bit linear layers on a text.
#[derive(Debug, Clone, PartialEq)]
pub struct OutlierReport {
    /// Tokens of the text.
    pub tokens: usize,
    /// Tokens per window; the last one may be shorter.
    pub window: usize,
    /// Which activations are outliers in the model as it is loaded.
    pub rule: OutlierRule,
    /// The thresholds at which outliers are counted.
    pub ladders: Ladders,
    /// The inputs of 8-bit layers, in the order in which they run.
    pub inputs: Vec<InputReport>,
    /// All linear layers, in the order in which they run.
    pub layers: Vec<LayerReport>,
    /// Features of the residual stream that are outliers in several layers.
    pub recurring: RecurringFeatures,
}

/// Thresholds at which outliers are counted, ascending. That of the model's own rule is among them.
#[derive(Debug, Clone, PartialEq)]
pub struct Ladders {
    /// Magnitudes.
    pub absolute: Vec<f32>,
    /// Multiples of the root mean square of a row.
    pub rms: Vec<f32>,
}

impl Ladders {
    fn new(rule: OutlierRule) -> Self {
        let mut ladders = Self {
            absolute: vec![
                0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 16.0, 20.0,
                24.0, 32.0, 48.0, 64.0,
            ],
            rms: vec![
                1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 16.0,
            ],
        };

        if !rule.finds_none() {
            let (steps, limit) = match rule {
                OutlierRule::Absolute { threshold, .. } => (&mut ladders.absolute, threshold),
                OutlierRule::RowRms { factor } => (&mut ladders.rms, factor),
            };
            let place = steps.partition_point(|step| *step < limit);
            if steps.get(place) != Some(&limit) {
                steps.insert(place, limit);
            }
        }
        ladders
    }
}

/// Outliers of an input at each step of a ladder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepCounts {
    /// Values that are outliers: those handled in float if each row is judged by itself.
    pub values: Vec<u64>,
    /// Features with an outlier in some row of the text.
    pub columns: Vec<u64>,
    /// Values handled in float if a feature with an outlier in some row of a window is taken out of
    /// all rows of that window ([`OutlierScope::Batch`](llm_int8_nn::linear::OutlierScope)).
    pub pooled_values: Vec<u64>,
}

/// An activation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Largest {
    /// Its value, with its sign.
    pub value: f32,
    /// Its column.
    pub feature: usize,
    /// Which token of the text it belongs to, counted from 0.
    pub position: usize,
}

/// The outliers of an input, which one or more 8-bit layers share.
#[derive(Debug, Clone, PartialEq)]
pub struct InputReport {
    /// The 8-bit layers that read it.
    pub layers: Vec<ModulePath>,
    /// Values of a row.
    pub features: usize,
    /// Rows seen, one for each token.
    pub rows: usize,
    /// Whether it is the residual stream, through a norm if there is one.
    pub reads_stream: bool,
    /// Values that are outliers by the model's rule.
    pub outlier_values: u64,
    /// Features that are outliers by the model's rule in some row.
    pub outlier_columns: usize,
    /// Share of the layers' multiplications that were done in float, 0 to 1: outliers, the rest of
    /// their columns if the rule takes out whole columns, and columns with float weights.
    pub float_share: f64,
    /// The largest activation; none if all are 0 or NaN.
    pub largest: Option<Largest>,
    /// The largest magnitude of each feature, f32 `[features]`.
    pub maxima: Vec<f32>,
    /// Counts at [`Ladders::absolute`].
    pub absolute: StepCounts,
    /// Counts at [`Ladders::rms`].
    pub rms: StepCounts,
}

impl InputReport {
    /// Outliers of a row by the model's rule, on average.
    pub fn outliers_per_row(&self) -> f64 {
        self.outlier_values as f64 / self.rows.max(1) as f64
    }
}

/// A linear layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerReport {
    /// Its path in the model.
    pub path: ModulePath,
    /// Its PyTorch class.
    pub class: String,
    /// The dtype of its weights.
    pub dtype: ParameterDtype,
    /// Length of an input row.
    pub in_features: usize,
    /// Length of an output row.
    pub out_features: usize,
    /// Bytes that it holds; 0 for the weight of a tied head, which the token table holds.
    pub bytes: u64,
    /// Index of its input in [`OutlierReport::inputs`], and its errors; none for a float layer.
    pub int8: Option<Int8LayerReport>,
}

/// What quantising costs a layer. Errors are relative root mean squares: the norm of the difference
/// over the norm of the exact values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Int8LayerReport {
    /// Index of its input in [`OutlierReport::inputs`].
    pub input: usize,
    /// Error of the dequantised weights; none if the float weights are not known.
    pub weight_error: Option<f64>,
    /// Error of the outputs, bias included, on the same inputs: against float weights, or against
    /// dequantised ones if the float weights are not known. None if all outputs are 0.
    pub output_error: Option<f64>,
}

impl OutlierReport {
    /// Share of the multiplications in 8-bit layers that were done in float, 0 to 1.
    pub fn float_share(&self) -> f64 {
        let mut all = 0.0;
        let mut float = 0.0;
        for (layer, int8) in self.int8_layers() {
            let work = (layer.in_features * layer.out_features) as f64;
            all += work;
            float += work * self.inputs[int8.input].float_share;
        }
        if all > 0.0 { float / all } else { 0.0 }
    }

    /// The layers that are 8 bit.
    pub fn int8_layers(&self) -> impl Iterator<Item = (&LayerReport, &Int8LayerReport)> {
        self.layers
            .iter()
            .filter_map(|layer| Some((layer, layer.int8.as_ref()?)))
    }

    /// Whether the errors are against the checkpoint's float weights.
    pub fn knows_float_weights(&self) -> bool {
        self.int8_layers()
            .any(|(_, int8)| int8.weight_error.is_some())
    }
}

impl AutoModelForCausalLM {
    /// Which activations are outliers on the token ids of a text, and what quantising costs each
    /// layer. The model must be on the CPU. After each window `observe` gets the number of tokens
    /// done and in total, and may stop it.
    ///
    /// Each layer is computed twice, in 8 bit and in float, on the inputs that the 8-bit model has.
    /// Only one layer at a time is in float, so memory grows by the largest layer.
    ///
    /// ```
    /// use llm_int8::outliers::OutlierOptions;
    /// use llm_int8::{AutoModelForCausalLM, LoadConfig};
    /// use std::ops::ControlFlow;
    /// let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::default())?;
    /// let ids = model.tokenizer()?.encode("And it came to pass, that the king of the land said")?;
    /// let report = model.outliers(&ids, &OutlierOptions::default(), &mut |_, _| ControlFlow::Continue(()))?;
    /// assert_eq!(report.inputs[0].layers[0].to_string(), "transformer.h.0.attn.c_attn");
    /// assert_eq!(report.inputs[0].rows, ids.len());
    /// # Ok::<(), llm_int8::LlmError>(())
    /// ```
    ///
    /// # Errors
    /// [`LlmError::Setting`] for a window of 0 or longer than the model's positions, no tokens, or
    /// a model without 8-bit layers; [`LlmError::Decoder`] for a model on a GPU; [`LlmError::Nn`] if
    /// the checkpoint is not the model's; [`LlmError::Interrupted`].
    pub fn outliers(
        &self,
        ids: &[u32],
        options: &OutlierOptions<'_>,
        observe: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<OutlierReport> {
        let decoder = self.decoder();
        let rule = self.check_outliers(ids, options.window)?;
        let ladders = Ladders::new(rule);
        let mut measure = Measure::new(decoder, ladders.clone(), rule, options.checkpoint);

        // A float head reports nothing, and its logits are the largest rows of all.
        let logits = match decoder.has_int8_head() {
            true => LogitPositions::All,
            false => LogitPositions::Last,
        };
        let mut done = 0;
        for window in ids.chunks(options.window) {
            measure.begin_window(done);
            let mut cache = decoder.new_cache();
            let sequence = SequenceInput {
                ids: window,
                cache: &mut cache,
                logits,
            };
            decoder.forward_hooked(&mut [sequence], &mut measure)?;

            done += window.len();
            if observe(done, ids.len()).is_break() {
                return Err(LlmError::Interrupted);
            }
        }

        let (inputs, layers, recurring) = measure.finish(self.tree());
        Ok(OutlierReport {
            tokens: ids.len(),
            window: options.window,
            rule,
            ladders,
            inputs,
            layers,
            recurring,
        })
    }

    /// Checks the arguments of [`outliers`](Self::outliers). Returns the model's rule.
    fn check_outliers(&self, ids: &[u32], window: usize) -> Result<OutlierRule> {
        let refuse = |name, value: usize, expected| {
            Err(LlmError::Setting {
                name,
                value: value.to_string(),
                expected,
            })
        };
        if window == 0 || window > self.decoder().spec().positions {
            return refuse(
                "window",
                window,
                "it must be at least 1 and at most the number of the model's positions",
            );
        }
        if ids.is_empty() {
            return refuse("the number of tokens", 0, "one or more are needed");
        }
        match self.decoder().int8_config() {
            Some(config) => Ok(config.outliers),
            None => refuse(
                "the number of 8-bit layers",
                0,
                "outliers are those of 8-bit layers; load the model in 8 bit",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_of_the_rule_is_a_step_of_its_ladder() {
        let plain = Ladders::new(OutlierRule::batch(6.0));
        assert_eq!(plain, Ladders::new(OutlierRule::row_rms(4.0)));
        assert_eq!(plain, Ladders::new(OutlierRule::batch(0.0)));

        let other = Ladders::new(OutlierRule::row(5.5));
        assert_eq!(other.absolute[8..11], [5.0, 5.5, 6.0]);
        assert_eq!(other.rms, plain.rms);
        let other = Ladders::new(OutlierRule::row_rms(99.0));
        assert_eq!(other.rms.last(), Some(&99.0));
    }
}
