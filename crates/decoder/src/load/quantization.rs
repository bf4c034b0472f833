//! Reads `quantization_config` of config.json, and decides which layers are int8.
//!
//! The config is interpreted as transformers does (`quantizers/auto.py`,
//! `quantizer_bnb_8bit.py`). Whether a layer's weight is stored as codes or floats is read from the
//! checkpoint itself.

use super::outcome::LoadWarning;
use super::tensors::Keys;
use super::{HEAD, LoadOptions};
use crate::decoder::Decoder;
use crate::error::{DecoderError, Result};
use crate::slot::{ModelSlot, Part, Slot};
use llm_int8_nn::NnError;
use llm_int8_nn::config::ModelConfig;
use llm_int8_nn::linear::{
    HasLinears, Int8Config, Int8Linear, KeptLinear, Linear, OutlierRule, ReplaceReport,
};
use llm_int8_nn::module::{Module, ModulePath};
use serde_json::Value;

/// The quantisation methods of transformers 4.57 (`AUTO_QUANTIZATION_CONFIG_MAPPING`), without
/// 8-bit bitsandbytes.
const OTHER_METHODS: &[&str] = &[
    "aqlm",
    "auto-round",
    "awq",
    "bitnet",
    "bitsandbytes_4bit",
    "compressed-tensors",
    "eetq",
    "fbgemm_fp8",
    "fp8",
    "fp_quant",
    "gptq",
    "higgs",
    "hqq",
    "mxfp4",
    "quanto",
    "quark",
    "spqr",
    "torchao",
    "vptq",
];

/// `quantization_config`, as far as it is about 8 bit.
#[derive(Debug, Default)]
pub(super) struct StoredQuantization {
    /// `load_in_8bit`: layers are stored as int8, or are to be quantised.
    pub(super) is_int8: bool,
    /// `llm_int8_threshold`.
    threshold: Option<f32>,
    /// `llm_int8_skip_modules`, which replaces the default list.
    skip: Option<Vec<String>>,
    /// `quant_method`, if it is unknown.
    pub(super) unknown: Option<String>,
}

impl StoredQuantization {
    /// Reads `quantization_config`.
    ///
    /// # Errors
    /// [`DecoderError::Config`] for a known method that is not supported, or for settings that are
    /// invalid or contradict each other.
    pub(super) fn of(config: &ModelConfig) -> Result<Self> {
        let Some(stored) = config.quantization() else {
            return Ok(Self::default());
        };
        let error = |reason: String| DecoderError::Config { reason };
        let flag = |key: &str| match &stored[key] {
            Value::Null => Ok(None),
            Value::Bool(flag) => Ok(Some(*flag)),
            other => Err(error(format!(
                "`{key}` is {other}; true or false was expected"
            ))),
        };
        let in_8bit = flag("load_in_8bit")?;
        let in_4bit = flag("load_in_4bit")?;
        let method = stored["quant_method"].as_str();
        match (in_8bit, in_4bit, method) {
            (Some(true), Some(true), _) => {
                Err(error("`load_in_8bit` and `load_in_4bit` are both true; only one of them can be".into()))
            }
            (_, Some(true), _) => Err(unsupported("bitsandbytes in 4 bit")),
            (Some(true), ..) | (_, _, Some("bitsandbytes_8bit")) => Self::int8(stored),
            (_, _, Some(method)) if OTHER_METHODS.contains(&method) => Err(unsupported(&format!("`{method}`"))),
            (_, _, Some(method)) => Ok(Self { unknown: Some(method.to_owned()), ..Self::default() }),
            (Some(false), ..) | (_, Some(false), _) => {
                Ok(Self { unknown: Some("bitsandbytes".into()), ..Self::default() })
            }
            (None, None, None) => Err(error(
                "its `quantization_config` has no `quant_method`, so the weights cannot be understood; load the \
                 model's unquantised checkpoint"
                    .into(),
            )),
        }
    }

    fn int8(stored: &Value) -> Result<Self> {
        let error = |reason: String| DecoderError::Config { reason };

        let threshold = match &stored["llm_int8_threshold"] {
            Value::Null => None,
            value => Some(
                value
                    .as_f64()
                    .filter(|x| *x >= 0.0)
                    .map(|x| x as f32)
                    .ok_or_else(|| {
                        error(format!(
                            "`llm_int8_threshold` is {value}; a number from 0 up was expected"
                        ))
                    })?,
            ),
        };

        let skip = match &stored["llm_int8_skip_modules"] {
            Value::Null => None,
            value => {
                let names = value
                    .as_array()
                    .map(|names| names.iter().map(|name| Some(name.as_str()?.to_owned())));
                Some(names.and_then(Iterator::collect).ok_or_else(|| {
                    error(format!(
                        "`llm_int8_skip_modules` is {value}; a list of names was expected"
                    ))
                })?)
            }
        };

        Ok(Self {
            is_int8: true,
            threshold,
            skip,
            unknown: None,
        })
    }

    /// The rule with the threshold that the caller gives, otherwise the checkpoint.
    pub(super) fn outliers(&self, options: &LoadOptions, rule: OutlierRule) -> OutlierRule {
        match (rule, options.threshold.or(self.threshold)) {
            (OutlierRule::Absolute { scope, .. }, Some(threshold)) => {
                OutlierRule::Absolute { threshold, scope }
            }
            _ => rule,
        }
    }

    pub(super) fn warning(&self) -> Option<LoadWarning> {
        let method = self.unknown.clone()?;
        Some(LoadWarning::UnknownQuantization { method })
    }
}

fn unsupported(method: &str) -> DecoderError {
    let reason = format!(
        "the weights are quantised by {method}, which is not supported; load the model's unquantised checkpoint, \
         which can be quantised here, or one of bitsandbytes in 8 bit"
    );
    DecoderError::Config { reason }
}

/// The entry of `llm_int8_skip_modules` that covers a layer, by the rule of
/// `_replace_with_bnb_linear`: it is the layer's own name or its path, or occurs in the path
/// followed by a dot.
fn stored_skip<'a>(names: &'a [String], path: &ModulePath) -> Option<&'a str> {
    let covers = |name: &&String| {
        path.name() == name.as_str()
            || path.as_str() == name.as_str()
            || path.as_str().contains(&format!("{name}."))
    };
    names.iter().find(covers).map(String::as_str)
}

/// Makes layers int8: those whose weights are stored as codes, and those with float weights that no
/// skip list covers.
pub(super) fn declare(
    decoder: &mut Decoder,
    keys: &Keys<'_>,
    options: &LoadOptions,
    stored: &StoredQuantization,
    int8: Int8Config,
) -> Result<ReplaceReport> {
    let user = &options.skip_modules;
    user.check(&decoder.describe())?;
    let default = decoder.default_skip_list();

    let tied_head = decoder
        .spec()
        .tied_head
        .then(|| decoder.paths().into_iter().find(|(_, slot)| *slot == HEAD));
    let tied_head = tied_head.flatten().map(|(path, _)| path);

    // Codes without a config: the file itself says which layers were quantised, so its float layers
    // stay floats.
    let keeps_floats = Decoder::is_prequantized(keys.checkpoint) && !stored.is_int8;

    let mut report = ReplaceReport::default();
    decoder.for_each_linear(&mut |path, linear| {
        let Linear::Float(float) = &*linear else { return Ok(()) };
        let named = user.matching(path).map(str::to_owned);

        if keys.is_quantised(path) {
            if let Some(name) = named {
                let reason = format!(
                    "`{name}` of the option `skip_modules` covers it, but the checkpoint holds it in int8 only"
                );
                return Err(NnError::QuantisationState { layer: path.to_string(), reason });
            }
        } else {
            if stored.is_int8 && keys.has_absmax(path) {
                let reason = "there is an `SCB`, but `weight` is a float and not I8";
                return Err(NnError::QuantisationState { layer: path.to_string(), reason: reason.into() });
            }
            let listed = || match &stored.skip {
                Some(names) if tied_head.as_ref() != Some(path) => stored_skip(names, path).map(str::to_owned),
                _ => default.matching(path).map(str::to_owned),
            };
            let because = if keeps_floats { Some("the checkpoint".to_owned()) } else { named.or_else(listed) };
            if let Some(because) = because {
                report.kept.push(KeptLinear { path: path.clone(), because });
                return Ok(());
            }
        }

        *linear = Linear::Int8(Int8Linear::declared(float, int8));
        report.replaced.push(path.clone());
        Ok(())
    })?;
    Ok(report)
}

/// Makes the head and the token table int8 too.
pub(super) fn declare_int8_head(
    decoder: &mut Decoder,
    report: &mut ReplaceReport,
    int8: Int8Config,
) {
    for (path, slot) in decoder.paths() {
        match decoder.part_mut(slot) {
            Some(Part::Embedding(table)) if slot == Slot::Model(ModelSlot::Tokens) => {
                table.declare_int8()
            }
            Some(Part::Linear(head)) if slot == HEAD => {
                let Linear::Float(float) = &*head else {
                    continue;
                };
                *head = Linear::Int8(Int8Linear::declared(float, int8));
            }
            _ => continue,
        }
        report.kept.retain(|kept| kept.path != path);
        report.replaced.push(path);
    }
}
