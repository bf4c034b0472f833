//! [`AutoModelForCausalLM`]: a model with its tokenizer, to load, print, inspect and generate with.

use crate::accuracy;
use crate::chat::ChatTemplate;
use crate::companion::Companion;
use crate::error::{LlmError, Result};
use crate::generate::{Batch, Engine, Generation, GenerationConfig, Prompt, Request};
use crate::load::{LoadConfig, Source, headers};
use crate::memory::MemoryUse;
use crate::tokenizer::{LazyTokenizer, Tokenizer};
use crate::warning::Warning;
use candle_core::{Device, Tensor};
use llm_int8_decoder::{Decoder, LoadEvent, ModelConfig, PlacedPart, Plan};
use llm_int8_hub::{NoProgress, Progress};
use llm_int8_nn::CacheDtype;
use llm_int8_nn::linear::ReplaceReport;
use llm_int8_nn::module::{Footprint, Module, NamedParameter, Node};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What loading did: quantised layers, warnings, time and memory.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadReport {
    /// Layers that became int8, and layers that stayed float.
    pub layers: ReplaceReport,
    /// What the model's files ask for that this library does not do.
    pub warnings: Vec<Warning>,
    /// Time from opened files to a usable model, without downloads.
    pub duration: Duration,
    /// The largest memory use seen while loading; `None` where the system does not report it.
    pub peak_memory: Option<MemoryUse>,
}

/// What loading a model would give, found out without reading its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelPlan {
    /// The module tree.
    pub tree: Node,
    /// Layers that would become int8, and layers that would stay float.
    pub layers: ReplaceReport,
    /// What the model's weights ask for that this library would not do.
    pub warnings: Vec<Warning>,
    /// Which part of the model would be on which device.
    pub placed: Vec<PlacedPart>,
    /// The steps of a forward pass. Printed, it is one line per step.
    pub steps: Plan,
    /// The dtype of keys and values.
    pub cache_dtype: CacheDtype,
    /// Bytes of the keys and values of one position, on the CPU.
    pub cache_bytes_per_position: u64,
}

/// A causal language model with its tokenizer, in 8 bit unless configured otherwise.
#[derive(Debug)]
pub struct AutoModelForCausalLM {
    name: String,
    config: ModelConfig,
    decoder: Decoder,
    tree: Node,
    tokenizer: LazyTokenizer,
    generation: GenerationConfig,
    companions: Vec<Companion>,
    is_prequantized: bool,
    report: LoadReport,
}

impl AutoModelForCausalLM {
    /// Loads a model: the built-in `tiny-gpt2`, a folder, a `.gguf` file, or a model of the hub
    /// (`gpt2-large`, `org/name@revision`).
    ///
    /// # Errors
    /// [`LlmError::Hub`] if the model or its adapter cannot be found or downloaded,
    /// [`LlmError::Nn`] or [`LlmError::Decoder`] if it cannot be loaded.
    pub fn from_pretrained(name: &str, config: &LoadConfig) -> Result<Self> {
        Self::from_pretrained_with(name, config, &NoProgress, &mut |_| ())
    }

    /// [`from_pretrained`](Self::from_pretrained) with progress: `download` is called while files
    /// are fetched, `load` after each module is loaded.
    ///
    /// # Errors
    /// As [`from_pretrained`](Self::from_pretrained).
    pub fn from_pretrained_with(
        name: &str,
        config: &LoadConfig,
        download: &dyn Progress,
        load: &mut dyn FnMut(LoadEvent<'_>),
    ) -> Result<Self> {
        let options = config.opened(download)?;
        let source = Source::find(name, &config.hub, download)?;
        let is_prequantized = Decoder::is_prequantized(&source.checkpoint);

        let started = Instant::now();
        let mut peak_memory = MemoryUse::now();
        let checkpoint = Arc::new(source.checkpoint);
        let (mut decoder, outcome) =
            Decoder::load(&source.config, &checkpoint, &options, &mut |event| {
                peak_memory = peak_memory.zip(MemoryUse::now()).map(|(a, b)| a.max(b));
                load(event);
            })?;

        accuracy::keep_columns(&mut decoder, source.kept, &source.tokenizer)?;

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

    /// The tree, parameters and footprint that a model would have. Reads only `config.json` and the
    /// headers of the weight files.
    ///
    /// # Errors
    /// As [`from_pretrained`](Self::from_pretrained).
    pub fn plan(name: &str, config: &LoadConfig, download: &dyn Progress) -> Result<ModelPlan> {
        let options = config.opened(download)?;
        let (model, checkpoint) = headers(name, &config.hub, download)?;
        let (decoder, outcome) = Decoder::plan(&model, &checkpoint, &options)?;
        let placed = decoder.planned(&options.placement)?;
        let warnings = outcome.warnings.into_iter().map(Warning::Weights).collect();

        Ok(ModelPlan {
            tree: decoder.describe(),
            layers: outcome.layers,
            warnings,
            placed,
            steps: decoder.execution_plan().clone(),
            cache_dtype: decoder.cache_dtype(),
            cache_bytes_per_position: decoder.cache_bytes_per_position(),
        })
    }

    /// Name, dtype and shape of every parameter, in the order of PyTorch's `named_parameters()`.
    pub fn named_parameters(&self) -> Vec<NamedParameter> {
        self.tree.named_parameters()
    }

    /// The size of the model in bytes: by transformers' rule (`get_memory_footprint()`) and what it
    /// really holds.
    pub fn memory_footprint(&self) -> Footprint {
        self.tree.footprint()
    }

    /// The module tree as data.
    pub fn tree(&self) -> &Node {
        &self.tree
    }

    /// What loading did: quantised layers, warnings, time and memory.
    pub fn load_report(&self) -> &LoadReport {
        &self.report
    }

    /// The name the model was loaded by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model's `config.json`.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Which part of the model is on which device, in the order of the forward pass.
    pub fn placed(&self) -> Vec<PlacedPart> {
        self.decoder.placed()
    }

    /// Sets whether GPUs decode with CUDA graphs that are recorded once, or launch each kernel. The
    /// results are the same.
    pub fn set_graphs(&mut self, uses_graphs: bool) {
        self.decoder.set_graphs(uses_graphs);
    }

    /// The decoder: the layers, without tokenizer or generation settings.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The decoder, to change how it computes.
    pub(crate) fn decoder_mut(&mut self) -> &mut Decoder {
        &mut self.decoder
    }

    /// Whether columns can be kept for a model: its checkpoint is not quantised, or was saved with such
    /// columns. Reads headers only.
    pub(crate) fn can_keep_columns(
        name: &str,
        config: &LoadConfig,
        download: &dyn Progress,
    ) -> Result<bool> {
        let source = Source::find(name, &config.hub, download)?;
        Ok(source.kept.is_some() || !Decoder::is_prequantized(&source.checkpoint))
    }

    /// Whether the checkpoint already held int8 layers.
    pub fn is_prequantized(&self) -> bool {
        self.is_prequantized
    }

    /// The small files beside the weights.
    pub(crate) fn companions(&self) -> &[Companion] {
        &self.companions
    }

    /// The generation settings of the model's files (`generation_config.json`, or `config.json` for
    /// older models).
    pub fn generation_config(&self) -> GenerationConfig {
        self.generation.clone()
    }

    /// The tokenizer. It is built by the first call.
    ///
    /// # Errors
    /// [`LlmError::NoTokenizer`] if the checkpoint has none, [`LlmError::Tokenizer`] if it cannot
    /// be used.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        match self.tokenizer.get() {
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

    /// The model's chat template, which turns a conversation into a prompt.
    ///
    /// # Errors
    /// [`LlmError::NoChatTemplate`], [`LlmError::ChatTemplate`].
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        ChatTemplate::from_companions(&self.companions, self.special_tokens()?, &self.name)
    }

    /// A chat template from `text`, with this model's special tokens.
    ///
    /// # Errors
    /// [`LlmError::ChatTemplate`].
    pub fn chat_template_of(&self, text: &str) -> Result<ChatTemplate> {
        ChatTemplate::new(text, self.special_tokens()?.into())
    }

    /// The special tokens that chat templates can use.
    fn special_tokens(&self) -> Result<serde_json::Map<String, serde_json::Value>> {
        Ok(self.tokenizer()?.special_tokens().clone())
    }

    /// Generates text after a prompt, which is a string or token ids. The result is a builder: set
    /// it up, then run it or iterate over it.
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

    /// Generates text after several prompts, batched: one read of the weights gives each running
    /// sequence a token. A request is a prompt, a [`Request`] or a [`Generation`].
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

    /// An engine with continuous batching: it takes requests at any time and runs at most `at_once`
    /// of them together.
    ///
    /// # Errors
    /// [`LlmError::Setting`] if `at_once` is 0.
    pub fn engine(&self, at_once: usize) -> Result<Engine<'_>> {
        Engine::new(self, at_once)
    }

    /// The token ids of a prompt. An empty text becomes the begin-of-sequence token.
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

    /// The logits of every position: f32 `[1, tokens, vocabulary]`.
    ///
    /// # Errors
    /// [`LlmError::EmptyPrompt`]; [`LlmError::Decoder`] for ids beyond the vocabulary or more ids
    /// than the model has positions.
    pub fn logits(&self, ids: &[u32]) -> Result<Tensor> {
        if ids.is_empty() {
            return Err(LlmError::EmptyPrompt);
        }

        let input = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        Ok(self.decoder.logits(&input)?)
    }
}

impl fmt::Display for AutoModelForCausalLM {
    /// Prints the module tree as PyTorch does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tree.fmt(f)
    }
}
