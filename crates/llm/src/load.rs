//! Finding and opening a model's files: built in, a folder, a `.gguf` file, or the hub.

use crate::builtin;
use crate::companion::Companion;
use crate::error::{LlmError, Result};
use crate::generate::GenerationConfig;
use crate::tokenizer::{LazyTokenizer, gguf};
use crate::warning::Warning;
use llm_int8_decoder::spec::with_model_type;
use llm_int8_decoder::{LoadOptions, ModelConfig, open_gguf};
use llm_int8_hub::{
    Hub, HubConfig, KEPT_COLUMNS, ModelFiles, ModelRef, Progress, TokenizerFiles, WeightFiles,
};
use llm_int8_nn::checkpoint::{Checkpoint, GgufFile};
use llm_int8_nn::lora::Adapter;
use std::path::{Path, PathBuf};

/// How a model is found and loaded. The default does not read the environment;
/// [`LoadConfig::from_env`] does.
///
/// ```
/// use llm_int8::LoadConfig;
/// let mut config = LoadConfig::default(); // 8 bit, threshold 6, the rest in f16
/// config.options.int8 = None;             // load without quantising
/// ```
#[derive(Debug, Clone, Default)]
pub struct LoadConfig {
    /// Dtypes, int8 settings, modules to skip, devices.
    pub options: LoadOptions,
    /// Endpoint, cache, token, retries.
    pub hub: HubConfig,
    /// A LoRA adapter of PEFT to apply: a folder, or a repository of the hub. It takes the place of
    /// `options.adapter`, which is one that is open already.
    pub adapter: Option<String>,
}

impl LoadConfig {
    /// The default, with the hub settings from the environment (`HF_HOME`, `HF_TOKEN`, …), as
    /// huggingface_hub reads them.
    pub fn from_env() -> Self {
        Self {
            hub: HubConfig::from_env(),
            ..Self::default()
        }
    }

    /// The options, with the adapter opened.
    ///
    /// # Errors
    /// [`LlmError::Hub`] if it cannot be found or downloaded, [`LlmError::Nn`] if it cannot be used.
    pub(crate) fn opened(&self, progress: &dyn Progress) -> Result<LoadOptions> {
        let mut options = self.options.clone();
        if let Some(name) = &self.adapter {
            let folder = Hub::new(self.hub.clone()).resolve_adapter(&name.parse()?, progress)?;
            options.adapter = Some(Adapter::open(&folder)?.into());
        }
        Ok(options)
    }
}

/// Upper bound of `config.json` and `generation_config.json` in bytes: far more than any real one.
const LONGEST_CONFIG: u64 = 16 << 20;

/// A model's opened files, before its weights are read.
pub(crate) struct Source {
    pub(crate) config: ModelConfig,
    pub(crate) checkpoint: Checkpoint,
    /// The file of kept columns beside an 8-bit checkpoint.
    pub(crate) kept: Option<PathBuf>,
    pub(crate) tokenizer: LazyTokenizer,
    pub(crate) generation: GenerationConfig,
    pub(crate) companions: Vec<Companion>,
    /// What these files ask for that this library does not do.
    pub(crate) warnings: Vec<Warning>,
}

impl Source {
    /// Finds a model by name and downloads what is not on disk.
    pub(crate) fn find(name: &str, hub: &HubConfig, progress: &dyn Progress) -> Result<Self> {
        if builtin::is_name(name) {
            return Self::builtin();
        }

        if is_gguf(name) {
            return Self::from_gguf(Path::new(name));
        }

        let model: ModelRef = name.parse()?;
        Self::from_files(&Hub::new(hub.clone()).resolve(&model, progress)?)
    }

    fn builtin() -> Result<Self> {
        let what = |file: &str| format!("{}/{file} (built in)", builtin::NAME);
        let config = ModelConfig::parse(builtin::CONFIG)?;
        Ok(Self {
            checkpoint: Checkpoint::from_static(&what("model.safetensors"), builtin::WEIGHTS)?,
            kept: None,
            tokenizer: LazyTokenizer::new(
                Companion::of_builtin(),
                config.values().clone(),
                format!("of {}", builtin::NAME),
            ),
            generation: GenerationConfig::from_json(
                builtin::GENERATION_CONFIG,
                &what("generation_config.json"),
            )?,
            companions: Companion::of_builtin(),
            warnings: Vec::new(),
            config,
        })
    }

    fn from_gguf(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let converted = gguf::companions(&file);
        let (config, checkpoint) = open_gguf(file)?;
        let (companions, tokenizer) = match converted {
            Ok(companions) => {
                let what = format!("in {}", path.display());
                let tokenizer =
                    LazyTokenizer::new(companions.clone(), serde_json::Value::Null, what);
                (companions, tokenizer)
            }
            // The model still runs on token ids.
            Err(error) => (Vec::new(), LazyTokenizer::failed(error)),
        };

        let generation = match companions
            .iter()
            .find(|companion| companion.name == "generation_config.json")
        {
            Some(companion) => GenerationConfig::from_json(&companion.read()?, &companion.name)?,
            None => GenerationConfig {
                eos_token_ids: config.token_ids("eos_token_id"),
                bos_token_id: config.token_ids("bos_token_id").first().copied(),
                ..GenerationConfig::default()
            },
        };

        Ok(Self {
            config,
            checkpoint,
            kept: None,
            tokenizer,
            generation,
            companions,
            warnings: Vec::new(),
        })
    }

    fn from_files(files: &ModelFiles) -> Result<Self> {
        let config = with_model_type(
            ModelConfig::parse(&read(&files.config)?)?,
            model_name(&files.config),
        );

        let checkpoint = match &files.weights {
            WeightFiles::Safetensors { files, index } => {
                Checkpoint::open_safetensors(files, index.as_deref())?
            }
            WeightFiles::PytorchBin { files, index } => {
                Checkpoint::open_pickle(files, index.as_deref())?
            }
        };

        let kept = files.root.join(KEPT_COLUMNS);
        let kept = kept.is_file().then_some(kept);

        let mut warnings = Vec::new();
        let generation = generation_config(files, &config, &mut warnings)?;
        let companions = companions(&files.root, &files.companions);
        let what = format!("of {}", files.root.display());
        let sources = tokenizer_sources(&companions, &files.tokenizer);
        let tokenizer = LazyTokenizer::new(sources, config.values().clone(), what);

        Ok(Self {
            config,
            checkpoint,
            kept,
            tokenizer,
            generation,
            companions,
            warnings,
        })
    }
}

/// Reads the generation settings from a model's files.
fn generation_config(
    files: &ModelFiles,
    config: &ModelConfig,
    warnings: &mut Vec<Warning>,
) -> Result<GenerationConfig> {
    let name = |path: &Path| path.display().to_string();
    let json = match &files.generation_config {
        Some(path) => Some((read(path)?, name(path))),
        None => None,
    };
    let json = json
        .as_ref()
        .map(|(bytes, name)| (bytes.as_slice(), name.as_str()));
    GenerationConfig::of_files(json, (config, &name(&files.config)), warnings)
}

fn companions(root: &Path, paths: &[PathBuf]) -> Vec<Companion> {
    paths
        .iter()
        .map(|path| Companion::file(root, path.clone()))
        .collect()
}

/// The files a tokenizer is built from: those beside the weights. If there are several versions of
/// `tokenizer.json`, it is the one written for our version of transformers.
fn tokenizer_sources(companions: &[Companion], files: &TokenizerFiles) -> Vec<Companion> {
    let preferred = files
        .tokenizer_json
        .as_ref()
        .filter(|path| !path.ends_with("tokenizer.json"));
    let Some(preferred) = preferred else {
        return companions.to_vec();
    };

    let others = companions
        .iter()
        .filter(|companion| companion.name != "tokenizer.json")
        .cloned();
    let renamed = Companion::file(Path::new(""), preferred.clone()).named("tokenizer.json");
    others.chain([renamed]).collect()
}

/// Opens a model's checkpoint, to read single tensors without loading the model.
///
/// ```
/// use llm_int8::{LoadConfig, load, hub::NoProgress};
/// let checkpoint = load::checkpoint("tiny-gpt2", &LoadConfig::default().hub, &NoProgress)?;
/// assert_eq!(checkpoint.find("transformer.ln_f.bias")?.shape, [256]);
/// # Ok::<(), llm_int8::LlmError>(())
/// ```
///
/// # Errors
/// [`LlmError::Hub`] if the model cannot be found or downloaded, [`LlmError::Nn`] if its weight
/// files cannot be opened.
pub fn checkpoint(name: &str, hub: &HubConfig, progress: &dyn Progress) -> Result<Checkpoint> {
    Ok(Source::find(name, hub, progress)?.checkpoint)
}

/// A model's small files and its `config.json` (null if there is none), to read its tokenizer
/// without its weights.
pub(crate) fn small_files(
    name: &str,
    hub: &HubConfig,
    progress: &dyn Progress,
) -> Result<(Vec<Companion>, serde_json::Value)> {
    if builtin::is_name(name) {
        return Ok((
            Companion::of_builtin(),
            ModelConfig::parse(builtin::CONFIG)?.values().clone(),
        ));
    }

    if is_gguf(name) {
        return Ok((
            gguf::companions(&GgufFile::open(Path::new(name))?)?,
            serde_json::Value::Null,
        ));
    }

    let files = Hub::new(hub.clone()).resolve_small(&name.parse()?, progress)?;
    let config = match &files.config {
        Some(path) => with_model_type(ModelConfig::parse(&read(path)?)?, model_name(path))
            .values()
            .clone(),
        None => serde_json::Value::Null,
    };

    let companions = companions(&files.root, &files.companions);
    Ok((tokenizer_sources(&companions, &files.tokenizer), config))
}

/// A model's config and the headers of its weight files, to inspect it without downloading weights.
pub(crate) fn headers(
    name: &str,
    hub: &HubConfig,
    progress: &dyn Progress,
) -> Result<(ModelConfig, Checkpoint)> {
    if !builtin::is_name(name) && !is_gguf(name) {
        let model = name.parse()?;
        if let ModelRef::Hub { .. } = model {
            let found = Hub::new(hub.clone()).resolve_metadata(&model, progress)?;
            let config = with_model_type(ModelConfig::parse(&read(&found.config)?)?, name);
            let headers = found
                .headers
                .iter()
                .map(|h| (h.file_name.as_str(), h.json.as_slice(), h.file_len));
            return Ok((config, Checkpoint::from_headers(headers)?));
        }
    }

    // Opening a checkpoint on disk reads headers only.
    let source = Source::find(name, hub, progress)?;
    Ok((source.config, source.checkpoint))
}

/// The name of the folder that holds `config.json`; in the hub's cache, that of the repository
/// (`models--org--name`).
fn model_name(config: &Path) -> &str {
    let names = || {
        config
            .parent()
            .into_iter()
            .flat_map(Path::iter)
            .filter_map(|name| name.to_str())
    };
    names()
        .find(|name| name.starts_with("models--"))
        .or(names().next_back())
        .unwrap_or_default()
}

/// Whether `name` is a local `.gguf` file. URLs are left to the hub, which rejects them.
fn is_gguf(name: &str) -> bool {
    !name.contains("://")
        && Path::new(name)
            .extension()
            .is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    llm_int8_files::read(path, LONGEST_CONFIG).map_err(|source| LlmError::Read {
        path: path.to_owned(),
        source,
    })
}
