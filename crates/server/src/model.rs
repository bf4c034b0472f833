//! A loaded model, and what a server knows about it.

use crate::config::ServerConfig;
use crate::error::{Result, ServerError};
use crate::template::Template;
use llm_int8::decoder::{Decoder, LogitPositions, SequenceInput};
use llm_int8::generate::{EngineConfig, Service};
use llm_int8::nn::ParameterDtype;
use llm_int8::nn::linear::{Int8Config, OutlierRule, OutlierScope, OutlierWeights};
use llm_int8::{AutoModelForCausalLM, LlmError, Tokenizer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// A model that can be asked.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) model: Arc<AutoModelForCausalLM>,
    pub(crate) service: Service,
    pub(crate) template: Template,
    /// Its name in answers.
    pub(crate) id: String,
    /// When it was loaded, in seconds since 1970.
    pub(crate) created: u64,
    pub(crate) fingerprint: String,
    /// Positions that a request may use.
    pub(crate) context: usize,
    #[cfg(feature = "grammar")]
    grammars: std::sync::OnceLock<Result<crate::grammar::Grammars, String>>,
}

impl Loaded {
    /// Starts the engine.
    ///
    /// # Errors
    /// [`ServerError::Model`] if the model cannot compute or its chat template cannot be used;
    /// [`ServerError::Setting`] if the memory for keys and values is too small for any request.
    pub(crate) fn new(model: AutoModelForCausalLM, config: &ServerConfig) -> Result<Self> {
        let context = context(model.decoder(), config.cache_bytes)?;
        let template = Template::new(&model, config.chat_template.as_deref())?;
        let fingerprint = fingerprint(&model)?;
        let engine = EngineConfig {
            at_once: config.parallel,
            cache_bytes: config.cache_bytes,
            prefix_cache_bytes: config.prefix_cache_bytes,
            ..EngineConfig::default()
        };
        let model = Arc::new(model);
        let service = Service::start(Arc::clone(&model), engine, config.max_queue)?;
        let name = config.model_name.clone();

        Ok(Self {
            id: name.unwrap_or_else(|| public_name(model.name())),
            template,
            service,
            created: now(),
            fingerprint,
            context,
            #[cfg(feature = "grammar")]
            grammars: std::sync::OnceLock::new(),
            model,
        })
    }

    /// The grammars for this model's tokenizer, which the first call prepares.
    #[cfg(feature = "grammar")]
    pub(crate) fn grammars(&self) -> Result<&crate::grammar::Grammars, String> {
        let made = self.grammars.get_or_init(|| {
            let tokenizer = self.model.tokenizer().map_err(|error| error.to_string())?;
            let marks = self.template.special_marks(tokenizer);
            crate::grammar::Grammars::new(tokenizer, &self.model.generation_config(), marks)
        });
        made.as_ref().map_err(Clone::clone)
    }

    pub(crate) fn tokenizer(&self) -> llm_int8::Result<&Tokenizer> {
        self.model.tokenizer()
    }

    /// The entry of `/v1/models`.
    pub(crate) fn card(&self) -> Value {
        let decoder = self.model.decoder();
        let reason = variance(decoder);
        let device = self.model.placed();
        let device: Vec<&str> = device.iter().map(|part| part.device.as_str()).collect();
        json!({
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "llm-int8",
            "max_model_len": self.context,
            "llm_int8": {
                "version": env!("CARGO_PKG_VERSION"),
                "rule": decoder.int8_config().map_or("no layer is in 8 bit".to_owned(), |c| rule(&c)),
                "dtype": ParameterDtype::from(decoder.dtype()).name(),
                "cache_dtype": decoder.cache_dtype().name(),
                "device": device.join(", "),
                "isa": decoder.isa().name(),
                "reproducible": reason.is_none(),
                "reason": reason,
                "system_fingerprint": self.fingerprint,
                "tools": self.template.format().map(|format| format!("{format:?}").to_lowercase()),
            },
        })
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// The name that clients see: paths stay private.
fn public_name(name: &str) -> String {
    let path = Path::new(name);
    let last = path.file_name().and_then(|name| name.to_str());
    match last {
        Some(last) if path.exists() => last.to_owned(),
        _ => name.to_owned(),
    }
}

/// The most positions that one request may use.
fn context(decoder: &Decoder, budget: Option<u64>) -> Result<usize> {
    let positions = decoder.spec().positions;
    let Some(budget) = budget else {
        return Ok(positions);
    };
    let (mut fits, mut too_many) = (0, positions.saturating_add(1));
    while too_many - fits > 1 {
        let middle = fits + (too_many - fits) / 2;
        if decoder.cache_bytes(middle) <= budget {
            fits = middle;
        } else {
            too_many = middle;
        }
    }
    if fits < 2 {
        return Err(ServerError::Setting {
            name: "cache_bytes",
            value: budget.to_string(),
            expected: "the keys and values of two tokens do not fit into it",
        });
    }

    Ok(fits)
}

/// Why the text of a request may depend on others; `None` if it does not.
fn variance(decoder: &Decoder) -> Option<&'static str> {
    if decoder.is_batch_invariant() {
        None
    } else if decoder
        .int8_config()
        .is_some_and(|config| !config.outliers.is_by_row())
    {
        Some("outlier columns are those of the whole batch")
    } else if decoder.placed().iter().any(|part| part.device != "cpu") {
        Some("on a GPU sums depend on the batch")
    } else {
        Some("the rotary embeddings change with the length of the sequence")
    }
}

/// Which activations are outliers, in words.
fn rule(config: &Int8Config) -> String {
    let which = match config.outliers {
        rule if rule.finds_none() => "no outliers".to_owned(),
        OutlierRule::RowRms { factor } => {
            format!("outliers of {factor} times their row's root mean square and more")
        }
        OutlierRule::Absolute { threshold, scope } => {
            let scope = match scope {
                OutlierScope::Row => "each row by itself",
                OutlierScope::Batch => "in the whole batch",
            };
            format!("outliers of magnitude {threshold} and more, {scope}")
        }
    };
    match config.outlier_weights {
        OutlierWeights::Dequantized => which,
        _ => format!("{which}, with original weights"),
    }
}

/// Tokens of the text whose logits identify a model.
const PROBE: usize = 8;

/// A hash of all that the text of a request depends on beside the request: version, settings of 8
/// bit, dtypes, instruction set, devices, and the weights. These are known by what they compute: the
/// logits of a few tokens, in which every layer and every row of the head takes part.
fn fingerprint(model: &AutoModelForCausalLM) -> Result<String> {
    let decoder = model.decoder();
    let vocabulary = decoder.spec().vocab_size();
    let ids: Vec<u32> = (1..=PROBE.min(decoder.spec().positions))
        .map(|i| u32::try_from(i * vocabulary / (PROBE + 1)).unwrap_or_default())
        .collect();
    let mut cache = decoder.new_cache();
    let mut input = [SequenceInput {
        ids: &ids,
        cache: &mut cache,
        logits: LogitPositions::All,
    }];
    let logits = decoder.logits_of(&mut input).map_err(LlmError::from)?;

    let mut hash = Sha256::new();
    let settings = format!(
        "{} {:?} {} {} {} {:?}",
        env!("CARGO_PKG_VERSION"),
        decoder.int8_config(),
        ParameterDtype::from(decoder.dtype()),
        decoder.cache_dtype(),
        decoder.isa().name(),
        model
            .placed()
            .iter()
            .map(|part| &part.hardware)
            .collect::<Vec<_>>(),
    );
    hash.update(settings.as_bytes());
    for row in 0..ids.len() {
        let row = logits.row(row).map_err(LlmError::from)?;
        row.iter()
            .for_each(|logit| hash.update(logit.to_le_bytes()));
    }
    let digest = hash.finalize();
    let digits: String = digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();

    Ok(format!("fp_{digits}"))
}
