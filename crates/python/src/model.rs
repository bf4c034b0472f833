//! The model, and what a model would be.

use crate::arrays::{ids_of, json_of, prompt_of};
use crate::error::{of_llm, of_model};
use crate::generated::Generated;
use crate::generation::config_of;
use crate::options::Options;
use crate::parameter::{self, Parameter};
use crate::plan::{footer, layers};
use crate::runtime::{self, Signals};
use crate::stream::{self, Stream};
use crate::tokenizer::{self, Tokenizer};
use crate::{batch, html, load};
use llm_int8::decoder::{KvCache, LogitPositions, SavedLayers, SequenceInput};
use llm_int8::{AutoModelForCausalLM, GenerationConfig, Prompt, Request, SaveOptions};
use numpy::{PyArray1, PyArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

/// A causal language model in 8 bit, with its tokenizer. `print(model)` prints PyTorch's module tree.
#[pyclass(frozen, module = "llm_int8")]
pub(crate) struct Model(pub(crate) Arc<AutoModelForCausalLM>);

/// Loads a model; see `llm_int8.AutoModelForCausalLM.from_pretrained`.
#[pyfunction]
#[pyo3(signature = (name, options, progress=None))]
pub(crate) fn load_model(
    py: Python<'_>,
    name: String,
    options: Options,
    progress: Option<Bound<'_, PyAny>>,
) -> PyResult<Model> {
    runtime::start(py, options.num_threads)?;
    let config = options.config()?;
    let model = load::model(py, name, config, progress.as_ref())?;
    Ok(Model(Arc::new(model)))
}

impl Model {
    fn settings(&self, arguments: Option<&Bound<'_, PyDict>>) -> PyResult<GenerationConfig> {
        config_of(self.0.generation_config(), arguments)
    }

    /// The prompt of a conversation: a text that holds its special tokens, as ids.
    fn chat_prompt(
        &self,
        messages: &Bound<'_, PyAny>,
        tools: Option<&Bound<'_, PyAny>>,
        variables: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Prompt> {
        let messages = tokenizer::messages_of(messages)?;
        let inputs = tokenizer::inputs_of(true, tools, variables)?;
        let template = self.0.chat_template().map_err(of_llm)?;
        let text = template.apply_with(&messages, &inputs).map_err(of_llm)?;
        let ids = self.0.tokenizer().and_then(|t| t.encode_templated(&text));
        Ok(Prompt::Ids(ids.map_err(of_llm)?))
    }

    fn run(&self, py: Python<'_>, prompt: Prompt, config: GenerationConfig) -> PyResult<Generated> {
        py.detach(|| {
            let generation = self.0.generation(prompt).config(config);
            let mut pieces = generation.pieces().map_err(of_llm)?;
            let mut signals = Signals::new();
            for piece in &mut pieces {
                piece.map_err(of_llm)?;
                signals.check()?;
            }
            Ok(Generated::from(pieces.finish().map_err(of_llm)?))
        })
    }
}

#[pymethods]
impl Model {
    fn __str__(&self) -> String {
        self.0.to_string()
    }

    fn __repr__(&self) -> String {
        self.0.to_string()
    }

    fn _repr_html_(&self) -> String {
        html::of_tree(&self.0.to_string(), &footer(self.0.tree()))
    }

    /// The name the model was loaded by.
    #[getter]
    fn name_or_path(&self) -> &str {
        self.0.name()
    }

    /// The model's `config.json` as a dict.
    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let text = self.0.config().values().to_string();
        py.import("json")?.call_method1("loads", (text,))
    }

    /// Every parameter with its name, in PyTorch's order. Values are read with `Parameter.numpy()`.
    fn named_parameters(&self) -> Vec<(String, Parameter)> {
        parameter::all(&self.0)
    }

    /// Every parameter, in PyTorch's order.
    fn parameters(&self) -> Vec<Parameter> {
        let named = parameter::all(&self.0).into_iter();
        named.map(|(_, parameter)| parameter).collect()
    }

    /// Every module with its path and PyTorch's class name, parents first.
    fn named_modules(&self) -> Vec<(String, String)> {
        let modules = self.0.tree().named_modules().into_iter();
        let named = modules.map(|(path, node)| (path.to_string(), node.class.clone()));
        named.collect()
    }

    /// Bytes of parameters and buffers, as transformers counts them.
    fn get_memory_footprint(&self) -> u64 {
        self.0.memory_footprint().transformers()
    }

    /// Bytes that are held here: parameters and the absmax of int8 rows.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.0.memory_footprint().actual()
    }

    /// The paths of linear layers: {"int8": [...], "float": [...]}.
    #[getter]
    fn layers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        layers(py, &self.0.load_report().layers)
    }

    /// What the model's files ask for that this library does not do.
    #[getter]
    fn warnings(&self) -> Vec<String> {
        let warnings = &self.0.load_report().warnings;
        warnings.iter().map(ToString::to_string).collect()
    }

    /// Seconds from opened files to a usable model.
    #[getter]
    fn load_seconds(&self) -> f64 {
        self.0.load_report().duration.as_secs_f64()
    }

    /// Tokens that a sequence may have.
    #[getter]
    fn max_positions(&self) -> usize {
        self.0.decoder().spec().positions
    }

    /// Whether the result of a prompt is the same, bit for bit, alone and in any batch. It is on the
    /// CPU with `outliers="row"`, a threshold in rms, or without 8 bit.
    #[getter]
    fn is_batch_invariant(&self) -> bool {
        self.0.decoder().is_batch_invariant()
    }

    /// The tokenizer.
    #[getter]
    fn tokenizer(&self) -> PyResult<Tokenizer> {
        self.0.tokenizer().map_err(of_llm)?;
        Ok(Tokenizer(Arc::clone(&self.0)))
    }

    /// Generates text after a prompt, which is a text or token ids.
    ///
    /// Settings that are not given are those of the model's files, else greedy decoding of up to 64
    /// tokens. They have transformers' names: `max_new_tokens`, `max_length`, `min_new_tokens`,
    /// `min_length`, `max_time`, `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`, `typical_p`,
    /// `epsilon_cutoff`, `eta_cutoff`, `repetition_penalty`, `encoder_repetition_penalty`,
    /// `no_repeat_ngram_size`, `encoder_no_repeat_ngram_size`, `bad_words_ids`, `sequence_bias`,
    /// `suppress_tokens`, `begin_suppress_tokens`, `forced_bos_token_id`, `forced_eos_token_id`,
    /// `exponential_decay_length_penalty`, `remove_invalid_values`, `eos_token_id`, `bos_token_id`,
    /// `prompt_lookup_num_tokens`. OpenAI's: `seed`, `stop`, `logit_bias`, `presence_penalty`,
    /// `frequency_penalty`. Our own: `truncate` (cut off the beginning of a prompt that is too long),
    /// `speculate` (the same as `prompt_lookup_num_tokens`).
    ///
    /// Without `do_sample`, a `temperature` above 0 or any of `top_k`, `top_p`, `min_p`, `typical_p`
    /// turns sampling on; `temperature=0` is greedy. The same `seed` (default 0) gives the same text.
    ///
    /// Raises ValueError for an invalid setting or a prompt that is too long, TypeError for an unknown
    /// setting, KeyboardInterrupt on ctrl-C.
    #[pyo3(signature = (prompt, **settings))]
    fn generate(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Generated> {
        runtime::start(py, None)?;
        let prompt = prompt_of(prompt)?;
        self.run(py, prompt, self.settings(settings)?)
    }

    /// Generates text after several prompts, `batch_size` of them at once: one read of the weights gives
    /// each running sequence a token, and when one ends, the next takes its place.
    ///
    /// `seeds` gives each prompt its own seed; the other settings are those of `generate`. The results
    /// have the order of the prompts. With `return_exceptions`, a prompt that fails gives its exception
    /// instead of ending all of them.
    #[pyo3(signature = (prompts, *, seeds=None, batch_size=8, return_exceptions=false, **settings))]
    fn generate_batch<'py>(
        &self,
        py: Python<'py>,
        prompts: Vec<Bound<'py, PyAny>>,
        seeds: Option<Vec<u64>>,
        batch_size: usize,
        return_exceptions: bool,
        settings: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyList>> {
        runtime::start(py, None)?;
        let config = self.settings(settings)?;
        if let Some(seeds) = &seeds
            && seeds.len() != prompts.len()
        {
            let text = format!("{} seeds for {} prompts", seeds.len(), prompts.len());
            return Err(PyValueError::new_err(text));
        }

        let mut requests = Vec::new();
        for (number, prompt) in prompts.iter().enumerate() {
            let mut config = config.clone();
            if let Some(seeds) = &seeds {
                config.seed = seeds[number];
            }
            requests.push(Request::new(prompt_of(prompt)?).config(config));
        }

        let results = py.detach(|| batch::run(&self.0, requests, batch_size))?;
        let list = PyList::empty(py);
        for (number, result) in results.into_iter().enumerate() {
            match result {
                Ok(generated) => list.append(Py::new(py, Generated::from(generated))?)?,
                Err(error) if return_exceptions => list.append(of_llm(error))?,
                Err(error) => {
                    let source = Box::new(error);
                    let number = number + 1;
                    return Err(of_llm(llm_int8::LlmError::Prompt { number, source }));
                }
            }
        }
        Ok(list)
    }

    /// An iterator over the text of `generate`, piece by piece.
    #[pyo3(signature = (prompt, **settings))]
    fn stream(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Stream> {
        runtime::start(py, None)?;
        let prompt = prompt_of(prompt)?;
        stream::start(Arc::clone(&self.0), prompt, self.settings(settings)?)
    }

    /// The model's reply to a conversation: a text, or messages as `{"role": "user", "content": "Hi"}`,
    /// written as a prompt by the model's chat template. `tools` and `template_variables` go to the
    /// template; with `stream`, an iterator over pieces of text. Further settings as for `generate`.
    #[pyo3(signature = (messages, *, tools=None, template_variables=None, stream=false, **settings))]
    fn chat<'py>(
        &self,
        py: Python<'py>,
        messages: &Bound<'py, PyAny>,
        tools: Option<&Bound<'py, PyAny>>,
        template_variables: Option<&Bound<'py, PyDict>>,
        stream: bool,
        settings: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        runtime::start(py, None)?;
        let prompt = self.chat_prompt(messages, tools, template_variables)?;
        let config = self.settings(settings)?;
        if stream {
            let stream = stream::start(Arc::clone(&self.0), prompt, config)?;
            return Ok(Bound::new(py, stream)?.into_any());
        }
        Ok(Bound::new(py, self.run(py, prompt, config)?)?.into_any())
    }

    /// The logits of every position: int `[B, T]` or `[T]` to float32 `[B, T, V]` or `[T, V]`. The
    /// array takes over the memory in which they were computed.
    fn logits<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        runtime::start(py, None)?;
        let (rows, has_batch) = ids_of(ids)?;
        let (batch, tokens) = (rows.len(), rows.first().map_or(0, Vec::len));
        if tokens == 0 {
            return Err(of_llm(llm_int8::LlmError::EmptyPrompt));
        }

        let decoder = self.0.decoder();
        let logits = py.detach(|| {
            let mut caches: Vec<KvCache> = rows.iter().map(|_| decoder.new_cache()).collect();
            let mut sequences: Vec<SequenceInput<'_>> = rows
                .iter()
                .zip(&mut caches)
                .map(|(ids, cache)| SequenceInput {
                    ids,
                    cache,
                    logits: LogitPositions::All,
                })
                .collect();
            decoder.forward(&mut sequences).map_err(of_model)
        })?;

        let vocabulary = decoder.spec().vocab_size();
        let flat = PyArray1::from_vec(py, logits);
        Ok(match has_batch {
            true => flat.reshape([batch, tokens, vocabulary])?.into_any(),
            false => flat.reshape([tokens, vocabulary])?.into_any(),
        })
    }

    /// Saves the model into a new folder, as transformers and bitsandbytes load it: int8 codes, or
    /// floats with `dequantize`. Files are split at `max_shard_size` bytes. The folder appears only
    /// when it is complete; ctrl-C leaves nothing behind.
    ///
    /// Raises FileExistsError for a folder that exists and is not empty.
    #[pyo3(signature = (folder, *, max_shard_size=5_000_000_000, dequantize=false))]
    fn save_pretrained(
        &self,
        py: Python<'_>,
        folder: PathBuf,
        max_shard_size: u64,
        dequantize: bool,
    ) -> PyResult<()> {
        runtime::start(py, None)?;
        let layers = match dequantize {
            true => SavedLayers::Dequantized,
            false => SavedLayers::Int8,
        };
        let options = SaveOptions {
            max_shard_size,
            layers,
        };
        py.detach(|| {
            let mut signals = Signals::new();
            let mut raised = None;
            let outcome =
                self.0
                    .save_pretrained(&folder, &options, &mut |_| match signals.check() {
                        Ok(()) => ControlFlow::Continue(()),
                        Err(error) => {
                            raised = Some(error);
                            ControlFlow::Break(())
                        }
                    });
            match raised {
                Some(error) => Err(error),
                None => outcome.map_err(of_llm),
            }
        })
    }

    /// The settings of generation in the model's files, as a dict of those that differ from greedy
    /// decoding.
    #[getter]
    fn generation_config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let config = self.0.generation_config();
        let dict = PyDict::new(py);
        dict.set_item("do_sample", config.do_sample)?;
        if config.do_sample {
            dict.set_item("temperature", config.temperature)?;
            dict.set_item("top_k", config.top_k)?;
            dict.set_item("top_p", config.top_p)?;
        }
        dict.set_item("max_new_tokens", config.max_new_tokens)?;
        dict.set_item("max_length", config.max_length)?;
        dict.set_item("eos_token_id", config.eos_token_ids)?;
        dict.set_item("bos_token_id", config.bos_token_id)?;
        Ok(dict)
    }
}

/// Template variables as JSON.
pub(crate) fn variables_of(
    variables: Option<&Bound<'_, PyDict>>,
) -> PyResult<serde_json::Map<String, serde_json::Value>> {
    let Some(variables) = variables else {
        return Ok(serde_json::Map::new());
    };
    match json_of(variables)? {
        serde_json::Value::Object(map) => Ok(map),
        _ => Ok(serde_json::Map::new()),
    }
}
