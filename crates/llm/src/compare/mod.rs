//! What 8 bit costs: a model's distributions of the next token under several rules, compared with
//! those of the unquantised model.

mod paper;
mod tally;

pub use paper::{PaperRule, Quantizer, Scales};

use crate::accuracy::Accuracy;
use crate::error::{LlmError, Result};
use crate::load::LoadConfig;
use crate::memory;
use crate::model::AutoModelForCausalLM;
use crate::perplexity::PerplexityOptions;
use llm_int8_decoder::{
    Decoder, DecoderError, LinearHook, LinearInput, LogitPositions, Placement, SequenceInput,
};
use llm_int8_hub::{NoProgress, Progress};
use llm_int8_kernels::{MatRef, QuantizedActivations};
use llm_int8_nn::linear::{Int8Config, Linear, OutlierRule};
use llm_int8_nn::module::ModulePath;
use llm_int8_nn::{CacheDtype, FloatDtype, NnError};
use paper::{Dequantized, Simulation};
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use tally::{Tally, log_softmax};

/// A way to compute a model's linear layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ComparedRule {
    /// Unquantised.
    Float,
    /// The 8-bit weights as floats, and float activations: what the weights alone lose.
    FloatActivations,
    /// A preset of this library.
    Preset(Accuracy),
    /// A rule of the LLM.int8() paper's Table 1, without outliers.
    Paper(PaperRule),
    /// The baseline with keys and values in this dtype.
    Cache(CacheDtype),
}

impl ComparedRule {
    /// The rule's name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::FloatActivations => "float activations",
            Self::Preset(accuracy) => accuracy.name(),
            Self::Paper(rule) => rule.name(),
            Self::Cache(CacheDtype::Float(FloatDtype::F16)) => "float16 cache",
            Self::Cache(CacheDtype::Float(FloatDtype::BF16)) => "bfloat16 cache",
            Self::Cache(CacheDtype::Float(FloatDtype::F32)) => "float32 cache",
            Self::Cache(CacheDtype::Int8) => "int8 cache",
        }
    }
}

/// What a model loses under one rule.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleResult {
    /// The rule.
    pub rule: ComparedRule,
    /// Bytes of the model: parameters, scales and kept columns.
    pub bytes: u64,
    /// `exp` of the mean negative log-likelihood of the text's tokens.
    pub perplexity: f64,
    /// Mean Kullback-Leibler divergence of the next token's distribution from that of the baseline, in
    /// nats.
    pub kl: f64,
    /// The standard error of `kl`, as if tokens were independent.
    pub kl_standard_error: f64,
    /// The largest divergence of a single position.
    pub worst_kl: f64,
    /// The position in the text with that divergence.
    pub worst_position: usize,
    /// The share of positions with the same most likely token as the baseline.
    pub agreement: f64,
    /// The share of activations that were multiplied in floating point.
    pub outlier_share: f64,
    /// Time of the forward passes.
    pub duration: Duration,
}

/// The results of all rules on one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// What divergences are measured from: [`ComparedRule::Float`], or
    /// [`ComparedRule::FloatActivations`] if there is no unquantised model or no memory for it.
    pub baseline: ComparedRule,
    /// Number of positions compared.
    pub tokens: usize,
    /// One result per rule, the baseline first.
    pub rules: Vec<RuleResult>,
}

/// A model, unquantised and in 8 bit, whose rules can be compared. It runs on the CPU.
#[derive(Debug)]
pub struct AccuracyComparison {
    /// `None` if the checkpoint holds 8-bit weights, or if there is not enough memory.
    float: Option<AutoModelForCausalLM>,
    int8: AutoModelForCausalLM,
    /// The layers that are int8.
    layers: HashSet<ModulePath>,
}

impl AccuracyComparison {
    /// Loads a model twice, in 8 bit and, if there is memory for it, unquantised. The `int8` and
    /// `placement` options of `config` have no effect.
    ///
    /// # Errors
    /// As [`AutoModelForCausalLM::from_pretrained`].
    pub fn load(name: &str, config: &LoadConfig, download: &dyn Progress) -> Result<Self> {
        let mut config = config.clone();
        config.options.placement = Placement::cpu();
        let accuracy = match AutoModelForCausalLM::can_keep_columns(name, &config, download)? {
            true => Accuracy::Best,
            false => Accuracy::Better,
        };
        config.options.int8 = Some(accuracy.int8_config());
        let int8 =
            AutoModelForCausalLM::from_pretrained_with(name, &config, download, &mut |_| ())?;

        config.options.int8 = None;
        config.options.quantize_head = false;
        config.options.skip_modules = Default::default();
        let float = match int8.is_prequantized() || !has_room(name, &config)? {
            true => None,
            false => Some(AutoModelForCausalLM::from_pretrained(name, &config)?),
        };

        let layers = int8.load_report().layers.replaced.iter().cloned().collect();
        Ok(Self {
            float,
            int8,
            layers,
        })
    }

    /// The model in 8 bit.
    pub fn model(&self) -> &AutoModelForCausalLM {
        &self.int8
    }

    /// The rules that can be compared, the baseline first.
    pub fn rules(&self) -> Vec<ComparedRule> {
        use Accuracy::{Best, Better, Bitsandbytes};
        let presets = |list: &[Accuracy]| list.iter().copied().map(ComparedRule::Preset).collect();
        let mut rules: Vec<ComparedRule> = match self.int8.decoder().kept_bytes() {
            0 => presets(&[Bitsandbytes, Better]),
            _ => presets(&[Bitsandbytes, Better, Best]),
        };
        rules.insert(0, self.baseline());
        if self.float.is_some() {
            rules.push(ComparedRule::FloatActivations);
        }
        rules.push(ComparedRule::Paper(PaperRule::VECTOR_WISE));
        if self.float.is_some() {
            rules.extend(PaperRule::SIMULATED.map(ComparedRule::Paper));
        }

        let decoder = self.int8.decoder();
        let caches = [decoder.dtype().into(), CacheDtype::Int8].into_iter();
        let others = caches.filter(|dtype| *dtype != decoder.cache_dtype());
        rules.extend(others.map(ComparedRule::Cache));
        rules
    }

    fn baseline(&self) -> ComparedRule {
        match self.float {
            Some(_) => ComparedRule::Float,
            None => ComparedRule::FloatActivations,
        }
    }

    /// Compares `rules`, some of [`Self::rules`], with the baseline on a text, window by window: one
    /// window's logits of the baseline are in memory at a time. After each pass `observe` gets the
    /// number of passes done and in total, and may stop the comparison.
    ///
    /// # Errors
    /// As [`AutoModelForCausalLM::perplexity`]; [`LlmError::Setting`] for a rule that is not among
    /// [`Self::rules`].
    pub fn run(
        &mut self,
        rules: &[ComparedRule],
        ids: &[u32],
        options: PerplexityOptions,
        observe: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Comparison> {
        let possible = self.rules();
        if let Some(rule) = rules.iter().find(|rule| !possible.contains(rule)) {
            return Err(LlmError::Setting {
                name: "the rule",
                value: rule.name().to_owned(),
                expected: "it needs the unquantised weights, or columns kept beside the codes",
            });
        }

        let windows = self.int8.checked_windows(ids, options)?;
        let others = rules.iter().filter(|rule| **rule != self.baseline());
        let rules: Vec<_> = [self.baseline()].iter().chain(others).copied().collect();
        let vocabulary = self.int8.decoder().spec().vocab_size();

        let mut tallies = vec![Tally::default(); rules.len()];
        let mut baseline = Vec::new();
        for (number, window) in windows.iter().enumerate() {
            for (i, (rule, tally)) in rules.iter().zip(&mut tallies).enumerate() {
                let mut logits = self.logits(*rule, &ids[window.start..window.end], tally)?;
                logits.drain(..window.first_row() * vocabulary);
                logits.truncate(window.scored().len() * vocabulary);
                log_softmax(&mut logits, vocabulary);

                let scored = &ids[window.scored()];
                if i == 0 {
                    baseline = logits.clone();
                }
                if !tally.add(&baseline, &logits, scored, window.scored().start) {
                    return Err(LlmError::BadLogits);
                }

                let done = number * rules.len() + i + 1;
                if observe(done, windows.len() * rules.len()).is_break() {
                    return Err(LlmError::Interrupted);
                }
            }
        }

        let results = rules.iter().zip(&tallies);
        let results = results.map(|(rule, tally)| tally.result(*rule, self.bytes(*rule)));
        Ok(Comparison {
            baseline: self.baseline(),
            tokens: windows.iter().map(|window| window.scored().len()).sum(),
            rules: results.collect(),
        })
    }

    /// The logits of every position of a window under a rule.
    fn logits(
        &mut self,
        rule: ComparedRule,
        window: &[u32],
        tally: &mut Tally,
    ) -> Result<Vec<f32>> {
        let config = match rule {
            ComparedRule::Float => None,
            ComparedRule::FloatActivations => {
                let mut hook = Dequantized;
                return pass(self.int8.decoder(), window, &mut hook, tally);
            }
            ComparedRule::Preset(accuracy) => Some(accuracy.int8_config()),
            ComparedRule::Paper(PaperRule::VECTOR_WISE) => Some(Int8Config {
                outliers: OutlierRule::batch(0.0),
                ..Int8Config::default()
            }),
            ComparedRule::Paper(rule) => {
                let Some(float) = &self.float else {
                    return Err(LlmError::Decoder(DecoderError::Nn(NnError::NotLoaded)));
                };
                let mut hook = Simulation {
                    rule,
                    layers: &self.layers,
                };
                return pass(float.decoder(), window, &mut hook, tally);
            }
            ComparedRule::Cache(dtype) => return self.with_cache(dtype, window, tally),
        };

        let model = match (config, &self.float) {
            (Some(config), _) => {
                self.int8.decoder_mut().set_int8_config(config)?;
                &self.int8
            }
            (None, Some(float)) => float,
            (None, None) => return Err(LlmError::Decoder(DecoderError::Nn(NnError::NotLoaded))),
        };
        let mut hook = OutlierCount::default();
        let logits = pass(model.decoder(), window, &mut hook, tally)?;
        tally.duration -= hook.duration;
        tally.outliers += hook.outliers;
        tally.activations += hook.activations;
        Ok(logits)
    }

    /// The logits of the baseline with keys and values in another dtype.
    fn with_cache(
        &mut self,
        dtype: CacheDtype,
        window: &[u32],
        tally: &mut Tally,
    ) -> Result<Vec<f32>> {
        let usual = self.int8.decoder().cache_dtype();
        self.set_baseline_cache(dtype)?;
        let logits = self.logits(self.baseline(), window, tally);
        self.set_baseline_cache(usual)?;
        logits
    }

    fn set_baseline_cache(&mut self, dtype: CacheDtype) -> Result<()> {
        let model = self.float.as_mut().unwrap_or(&mut self.int8);
        Ok(model.decoder_mut().set_cache_dtype(dtype)?)
    }

    /// The bytes of the model under a rule.
    fn bytes(&self, rule: ComparedRule) -> u64 {
        let footprint = self.int8.memory_footprint();
        let kept = self.int8.decoder().kept_bytes();
        let scales = footprint.absmax - kept;
        match rule {
            ComparedRule::Cache(_) => self.bytes(self.baseline()),
            ComparedRule::Float => match &self.float {
                Some(float) => float.memory_footprint().actual(),
                None => footprint.actual(),
            },
            ComparedRule::Preset(Accuracy::Best) => footprint.actual(),
            ComparedRule::FloatActivations | ComparedRule::Preset(_) => {
                footprint.parameters + scales
            }
            ComparedRule::Paper(rule) => {
                footprint.parameters + rule.scale_bytes(scales, self.layers.len() as u64)
            }
        }
    }
}

/// Whether a model loaded with these options fits into the memory that is left.
fn has_room(name: &str, config: &LoadConfig) -> Result<bool> {
    let needed = AutoModelForCausalLM::plan(name, config, &NoProgress)?
        .tree
        .footprint()
        .actual();
    // A twentieth more for activations and what the system needs.
    Ok(memory::available().is_none_or(|free| needed.saturating_add(needed / 20) < free))
}

/// Runs a window through a model, and adds the time to the tally.
fn pass(
    decoder: &Decoder,
    window: &[u32],
    hook: &mut dyn LinearHook,
    tally: &mut Tally,
) -> Result<Vec<f32>> {
    let mut cache = decoder.new_cache();
    let sequence = SequenceInput {
        ids: window,
        cache: &mut cache,
        logits: LogitPositions::All,
    };
    let started = Instant::now();
    let logits = decoder.forward_hooked(&mut [sequence], hook)?;
    tally.duration += started.elapsed();
    Ok(logits)
}

/// Counts the activations that int8 layers multiply in floating point.
#[derive(Default)]
struct OutlierCount {
    outliers: u64,
    activations: u64,
    /// Time of the counting.
    duration: Duration,
    memory: QuantizedActivations,
}

impl LinearHook for OutlierCount {
    fn input(&mut self, input: &LinearInput<'_>) -> Result<(), DecoderError> {
        let int8 = input.layers.iter().find_map(|layer| match layer {
            Linear::Int8(layer) => Some(layer),
            Linear::Float(_) => None,
        });
        let Some(layer) = int8 else {
            return Ok(());
        };

        let started = Instant::now();
        let x =
            MatRef::new(input.values, input.rows, layer.in_features()).map_err(NnError::from)?;
        let config = layer.config();
        let isa = layer.isa();
        self.memory
            .refill(isa, x, config.outliers, layer.kept_indices());

        let outliers = self.memory.outliers();
        let count = |row| outliers.row(row).0.len() as u64;
        self.outliers += (0..input.rows).map(count).sum::<u64>();
        self.activations += input.values.len() as u64;
        self.duration += started.elapsed();
        Ok(())
    }
}
