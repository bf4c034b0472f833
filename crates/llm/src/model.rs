//! The model: load, print, list, generate.

use crate::chat::ChatTemplate;
use crate::companion::Companion;
use crate::error::{LlmError, Result};
use crate::generate::{Batch, Engine, Generation, GenerationConfig, Prompt, Request};
use crate::load::{LoadConfig, Source, headers};
use crate::memory::MemoryUse;
use crate::tokenizer::Tokenizer;
use crate::warning::Warning;
use candle_core::{Device, Tensor};
use llm_int8_decoder::{Decoder, LoadEvent, ModelConfig, PlacedPart, Plan};
use llm_int8_hub::{NoProgress, Progress};
use llm_int8_nn::linear::ReplaceReport;
use llm_int8_nn::module::{Footprint, Module, NamedParameter, Node};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What loading did and cost.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadReport {
    /// Layers that are int8 and layers that were kept.
    pub layers: ReplaceReport,
    /// What the model's files ask for and do not get.
    pub warnings: Vec<Warning>,
    /// Time from opened files to a usable model; downloading not counted.
    pub duration: Duration,
    /// The largest memory use seen while loading, where the system tells.
    pub peak_memory: Option<MemoryUse>,
}

/// A model looked at without reading its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelPlan {
    /// The module tree.
    pub tree: Node,
    /// Layers that would be int8 and layers that would be kept.
    pub layers: ReplaceReport,
    /// What the model's weights ask for and would not get.
    pub warnings: Vec<Warning>,
    /// What would lie where.
    pub placed: Vec<PlacedPart>,
    /// What the decoder does with tokens; printed, one line a step.
    pub steps: Plan,
}

/// A causal language model with its tokenizer, in 8 bit unless configured otherwise.
#[derive(Debug)]
pub struct AutoModelForCausalLM {
    name: String,
    config: ModelConfig,
    decoder: Decoder,
    tree: Node,
    tokenizer: Result<Option<Tokenizer>>,
    generation: GenerationConfig,
    companions: Vec<Companion>,
    is_prequantized: bool,
    report: LoadReport,
}

impl AutoModelForCausalLM {
    /// Loads a model: the built-in `tiny-gpt2`, a folder, or one of the hub (`gpt2-large`,
    /// `org/name@revision`).
    ///
    /// # Errors
    /// [`LlmError::Hub`] where it cannot be found or fetched, [`LlmError::Decoder`] where it cannot
    /// be loaded.
    pub fn from_pretrained(name: &str, config: &LoadConfig) -> Result<Self> {
        Self::from_pretrained_with(name, config, &NoProgress, &mut |_| ())
    }

    /// [`from_pretrained`](Self::from_pretrained), telling what it does: `download` while fetching,
    /// `load` after each module.
    ///
    /// # Errors
    /// As there.
    pub fn from_pretrained_with(
        name: &str,
        config: &LoadConfig,
        download: &dyn Progress,
        load: &mut dyn FnMut(LoadEvent<'_>),
    ) -> Result<Self> {
        let source = Source::find(name, &config.hub, download)?;
        let is_prequantized = Decoder::is_prequantized(&source.checkpoint);
        let started = Instant::now();
        let mut peak_memory = MemoryUse::now();
        let checkpoint = Arc::new(source.checkpoint);
        let (decoder, outcome) =
            Decoder::load(&source.config, &checkpoint, &config.options, &mut |event| {
                peak_memory = peak_memory.zip(MemoryUse::now()).map(|(a, b)| a.max(b));
                load(event);
            })?;
        let mut warnings = source.warnings;
        warnings.extend(outcome.warnings.into_iter().map(Warning::Weights));
        Ok(Self {
            name: name.to_owned(),
            tree: decoder.describe(),
            decoder,
            config: source.config,
            tokenizer: source.tokenizer,
            generation: source.generation,
            companions: source.companions,
            is_prequantized,
            report: LoadReport {
                layers: outcome.layers,
                warnings,
                duration: started.elapsed(),
                peak_memory,
            },
        })
    }

    /// The tree, parameters and footprint a model would have, from `config.json` and the headers of
    /// its weights alone.
    ///
    /// # Errors
    /// As [`from_pretrained`](Self::from_pretrained).
    pub fn plan(name: &str, config: &LoadConfig, download: &dyn Progress) -> Result<ModelPlan> {
        let (model, checkpoint) = headers(name, &config.hub, download)?;
        let (decoder, outcome) = Decoder::plan(&model, &checkpoint, &config.options)?;
        let placed = decoder.planned(&config.options.placement)?;
        let warnings = outcome.warnings.into_iter().map(Warning::Weights).collect();
        let (tree, steps) = (decoder.describe(), decoder.execution_plan().clone());
        Ok(ModelPlan {
            tree,
            layers: outcome.layers,
            warnings,
            placed,
            steps,
        })
    }

    /// Every parameter with name, dtype and shape, as `named_parameters()` of PyTorch.
    pub fn named_parameters(&self) -> Vec<NamedParameter> {
        self.tree.named_parameters()
    }

    /// Bytes of the model, by transformers' rule (`get_memory_footprint()`) and by truth.
    pub fn memory_footprint(&self) -> Footprint {
        self.tree.footprint()
    }

    /// The module tree as data.
    pub fn tree(&self) -> &Node {
        &self.tree
    }

    /// What loading did and cost.
    pub fn load_report(&self) -> &LoadReport {
        &self.report
    }

    /// The name it was loaded by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its `config.json`.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What lies where, in the order in which a token goes through it.
    pub fn placed(&self) -> Vec<PlacedPart> {
        self.decoder.placed()
    }

    /// Decodes on devices by graphs recorded once, or by single launches; results are the same.
    pub fn set_graphs(&mut self, uses_graphs: bool) {
        self.decoder.set_graphs(uses_graphs);
    }

    /// The decoder itself.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Whether its checkpoint held int8 layers already.
    pub fn is_prequantized(&self) -> bool {
        self.is_prequantized
    }

    /// The small files beside its weights.
    pub(crate) fn companions(&self) -> &[Companion] {
        &self.companions
    }

    /// The settings its `generation_config.json` asks for.
    pub fn generation_config(&self) -> GenerationConfig {
        self.generation.clone()
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// [`LlmError::NoTokenizer`] where the checkpoint has none, [`LlmError::Tokenizer`] where it
    /// cannot be used.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        match &self.tokenizer {
            Ok(Some(tokenizer)) => Ok(tokenizer),
            Ok(None) => Err(LlmError::NoTokenizer {
                model: self.name.clone(),
            }),
            Err(LlmError::Tokenizer { what, reason }) => Err(LlmError::Tokenizer {
                what: what.clone(),
                reason: reason.clone(),
            }),
            Err(other) => {
                let what = format!("of {} cannot be read", self.name);
                Err(LlmError::Tokenizer {
                    what,
                    reason: other.to_string(),
                })
            }
        }
    }

    /// How it wants conversations written down.
    ///
    /// # Errors
    /// [`LlmError::NoChatTemplate`], [`LlmError::ChatTemplate`].
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        ChatTemplate::from_companions(&self.companions, self.special_tokens()?, &self.name)
    }

    /// Another template, with this model's special tokens.
    ///
    /// # Errors
    /// [`LlmError::ChatTemplate`].
    pub fn chat_template_of(&self, text: &str) -> Result<ChatTemplate> {
        ChatTemplate::new(text, self.special_tokens()?.into())
    }

    /// What chat templates see of the special tokens.
    fn special_tokens(&self) -> Result<serde_json::Map<String, serde_json::Value>> {
        Ok(self.tokenizer()?.special_tokens().clone())
    }

    /// Text after a prompt, which is a text or token ids: to be set up, and to be run or iterated
    /// over.
    ///
    /// ```
    /// use llm_int8::{AutoModelForCausalLM, LoadConfig};
    /// let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::default())?;
    /// println!("{}", model.generation("In the beginning").run()?.text);
    /// for piece in model.generation("ROMEO:").max_new_tokens(32).temperature(0.8).seed(1) {
    ///     print!("{}", piece?.text);
    /// }
    /// # Ok::<(), llm_int8::LlmError>(())
    /// ```
    pub fn generation(&self, prompt: impl Into<Prompt>) -> Generation<'_> {
        Generation::new(self, prompt.into())
    }

    /// Text after several prompts, some of them at once: the weights are read once for a token of
    /// each. A request is a prompt, a [`Request`] or a [`Generation`].
    ///
    /// ```
    /// use llm_int8::{AutoModelForCausalLM, LoadConfig};
    /// let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::default())?;
    /// let all = model.generate_batch(["And it came", "ROMEO:"]).run()?;
    /// assert_eq!(all.len(), 2);
    /// # Ok::<(), llm_int8::LlmError>(())
    /// ```
    pub fn generate_batch(&self, requests: impl IntoIterator<Item: Into<Request>>) -> Batch<'_> {
        Batch::new(self, requests.into_iter().map(Into::into).collect())
    }

    /// Runs requests as they come, at most `at_once` of them at a time.
    ///
    /// # Errors
    /// [`LlmError::Setting`] where `at_once` is 0.
    pub fn engine(&self, at_once: usize) -> Result<Engine<'_>> {
        Engine::new(self, at_once)
    }

    /// The ids of a prompt; an empty text begins where a text begins.
    pub(crate) fn prompt_ids(&self, prompt: Prompt, config: &GenerationConfig) -> Result<Vec<u32>> {
        let ids = match prompt {
            Prompt::Ids(ids) => return Ok(ids),
            Prompt::Text(text) => self.tokenizer()?.encode(&text)?,
        };
        if !ids.is_empty() {
            return Ok(ids);
        }
        match config.bos_token_id.or(self.generation.bos_token_id) {
            Some(bos) => Ok(vec![bos]),
            None => Ok(self.config.token_ids("bos_token_id")),
        }
    }

    /// Logits of every position: f32 `[1, tokens, vocabulary]`.
    ///
    /// # Errors
    /// [`LlmError::EmptyPrompt`]; [`LlmError::Decoder`] for ids beyond the vocabulary or too many
    /// of them.
    pub fn logits(&self, ids: &[u32]) -> Result<Tensor> {
        if ids.is_empty() {
            return Err(LlmError::EmptyPrompt);
        }
        let input = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        Ok(self.decoder.logits(&input)?)
    }
}

impl fmt::Display for AutoModelForCausalLM {
    /// PyTorch's text of the tree.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tree.fmt(f)
    }
}
