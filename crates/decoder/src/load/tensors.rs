//! Checks a checkpoint's tensors against a model: those that it needs, and those that it has no
//! place for.

use super::outcome::{LISTED, LoadWarning};
use super::quantization::StoredQuantization;
use super::{HEAD, LoadOptions};
use crate::decoder::Decoder;
use crate::error::{DecoderError, Result};
use crate::slot::Part;
use llm_int8_nn::NnError;
use llm_int8_nn::checkpoint::{Checkpoint, is_float};
use llm_int8_nn::linear::LinearClass;
use llm_int8_nn::module::ModulePath;
use llm_int8_nn::near_names::near_names;
use safetensors::Dtype;
use std::collections::BTreeSet;

/// Suffixes of buffers that transformers computes itself and therefore ignores without a warning,
/// in addition to [`DecoderSpec::ignored_suffixes`](crate::DecoderSpec).
const BUFFERS: &[&str] = &[
    ".rotary_emb_local.inv_freq",
    ".embed_tokens.embed_scale",
    "transformer.bias",
];

/// Looks tensors up in a checkpoint, with or without the family's prefix.
pub(super) struct Keys<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) prefix: &'static str,
}

impl Keys<'_> {
    /// The name of a module's tensor in the checkpoint. If there is none, the name with the prefix.
    pub(super) fn key(&self, path: &ModulePath, name: &str) -> String {
        let full = path.join(name).to_string();
        match full.strip_prefix(self.prefix) {
            Some(short)
                if self.checkpoint.entry(&full).is_none()
                    && self.checkpoint.entry(short).is_some() =>
            {
                short.to_owned()
            }
            _ => full,
        }
    }

    /// The path of a module, with or without the prefix as in the checkpoint.
    pub(super) fn module(&self, path: &ModulePath) -> String {
        let key = self.key(path, "weight");
        key.strip_suffix(".weight").unwrap_or(&key).to_owned()
    }

    /// Whether a layer's weight is stored as int8 codes.
    pub(super) fn is_quantised(&self, path: &ModulePath) -> bool {
        let weight = self.checkpoint.entry(&self.key(path, "weight"));
        weight.is_some_and(|entry| entry.dtype == Dtype::I8)
    }

    /// Whether the checkpoint has an absmax (`SCB`) for a layer, with or without codes.
    pub(super) fn has_absmax(&self, path: &ModulePath) -> bool {
        self.checkpoint
            .entry(&format!("{}.SCB", self.module(path)))
            .is_some()
    }

    /// Checks that a tensor exists with the expected shape and a readable dtype. Returns its name.
    fn check(
        &self,
        path: &ModulePath,
        name: &str,
        expected: Expected,
        context: &Context<'_>,
    ) -> Result<String> {
        let key = self.key(path, name);
        let Some(entry) = self.checkpoint.entry(&key) else {
            return Err(self.missing(key, context));
        };
        let file = || self.checkpoint.file_of(&key).unwrap_or_default().to_owned();

        if entry.shape != expected.shape {
            return Err(NnError::WrongShape {
                file: file(),
                found: entry.shape.clone(),
                expected: expected.shape,
                name: key,
            }
            .into());
        }

        let is_readable = if expected.is_codes {
            entry.dtype == Dtype::I8
        } else {
            is_float(entry.dtype)
        };
        if !is_readable {
            return Err(NnError::WrongDtype {
                file: file(),
                found: format!("{:?}", entry.dtype),
                expected: "F16, BF16, F32 or F64",
                name: key,
            }
            .into());
        }
        Ok(key)
    }

    fn missing(&self, key: String, context: &Context<'_>) -> DecoderError {
        if let Some(error) = self.checkpoint.foreign_error(&key) {
            return error.into();
        }

        let all = self.checkpoint.entries().map(|(name, _)| name);
        let mut hint = self
            .checkpoint
            .why_missing(&key)
            .unwrap_or_else(|| near_names(&key, all));
        if let Some(method) = &context.stored.unknown {
            hint.push_str(&format!(
                "; config.json says that the weights are quantised by `{method}`"
            ));
        }

        DecoderError::MissingTensor {
            checkpoint: self.checkpoint.description(),
            hint,
            name: key,
            family: context.family.into(),
        }
    }
}

/// What error messages say about the model.
struct Context<'a> {
    family: &'static str,
    stored: &'a StoredQuantization,
}

/// What a tensor must look like.
struct Expected {
    shape: Vec<usize>,
    is_codes: bool,
}

/// Checks that every tensor of the model exists with the right shape and a readable dtype. Returns
/// a warning if there are tensors that the model has no place for.
///
/// # Errors
/// [`DecoderError::MissingTensor`], [`NnError::WrongShape`], [`NnError::WrongDtype`];
/// [`DecoderError::UnexpectedTensors`] instead of the warning if `options.strict`.
pub(super) fn check_tensors(
    decoder: &Decoder,
    keys: &Keys<'_>,
    options: &LoadOptions,
    stored: &StoredQuantization,
) -> Result<Option<LoadWarning>> {
    let context = Context {
        family: decoder.spec().family,
        stored,
    };
    let known = check_parts(decoder, keys, &context)?;

    let unlisted = keys.checkpoint.unlisted_names().filter(|_| options.strict);
    let extra = unused_names(decoder, keys, &known, stored, unlisted);
    unused(extra, keys.checkpoint, options, context.family)
}

/// The names in the checkpoint, and `more` of them, that are not `known` to the model, without those
/// that transformers ignores silently.
pub(super) fn unused_names<'a>(
    decoder: &Decoder,
    keys: &Keys<'a>,
    known: &BTreeSet<String>,
    stored: &StoredQuantization,
    more: impl Iterator<Item = &'a str>,
) -> BTreeSet<&'a str> {
    let ignored = decoder.spec().ignored_suffixes;
    let is_int8 = stored.is_int8 || Decoder::is_prequantized(keys.checkpoint);
    let is_silent = |name: &str| {
        let state = [".SCB", ".weight_format"];
        let suffixes = ignored
            .iter()
            .chain(BUFFERS)
            .chain(state.iter().filter(|_| is_int8));
        suffixes.into_iter().any(|suffix| name.ends_with(suffix))
    };

    let names = keys.checkpoint.entries().map(|(name, _)| name);
    names
        .chain(keys.checkpoint.other_names())
        .chain(more)
        .filter(|name| !known.contains(*name) && !is_silent(name))
        .collect()
}

/// Checks the tensors of every part. Returns the names of all tensors that the model uses.
fn check_parts(
    decoder: &Decoder,
    keys: &Keys<'_>,
    context: &Context<'_>,
) -> Result<BTreeSet<String>> {
    let tied = decoder.spec().tied_head;
    let mut known = BTreeSet::new();
    for (path, slot) in decoder.paths() {
        let Some(part) = decoder.part(slot) else {
            continue;
        };
        let is_codes = keys.is_quantised(&path);
        let mut tensors = expected(part, is_codes);
        if tied && slot == HEAD {
            known.insert(keys.key(&path, "weight"));
            tensors.retain(|(name, _)| name != "weight");
        }

        for (name, shape) in tensors {
            let is_codes = is_codes
                && name == "weight"
                && matches!(part, Part::Linear(linear) if linear.is_int8());
            known.insert(keys.check(&path, &name, Expected { shape, is_codes }, context)?);
        }
        if is_codes {
            let module = keys.module(&path);
            known.extend(["SCB", "weight_format"].map(|name| format!("{module}.{name}")));
        }
    }
    Ok(known)
}

/// The warning or the error for tensors that the model has no place for.
fn unused(
    extra: BTreeSet<&str>,
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    family: &'static str,
) -> Result<Option<LoadWarning>> {
    let count = extra.len();
    let checkpoint = checkpoint.description();
    let family = family.to_owned();
    let names: Vec<String> = extra.into_iter().take(LISTED).map(str::to_owned).collect();
    match (count, options.strict) {
        (0, _) => Ok(None),
        (_, false) => Ok(Some(LoadWarning::UnusedTensors {
            checkpoint,
            family,
            count,
            names,
        })),
        (_, true) => {
            let names = names
                .iter()
                .map(|name| format!("`{name}`"))
                .collect::<Vec<_>>()
                .join(", ");
            Err(DecoderError::UnexpectedTensors {
                checkpoint,
                count,
                names,
                family,
            })
        }
    }
}

/// Names and shapes of a part's tensors, as stored. A float Conv1D is stored transposed;
/// bitsandbytes stores its codes as `[out_features, in_features]`.
pub(super) fn expected(part: &Part, is_codes: bool) -> Vec<(String, Vec<usize>)> {
    let weight = |shape: Vec<usize>| ("weight".to_owned(), shape);
    match part {
        Part::Embedding(embedding) => vec![weight(embedding.shape().to_vec())],
        Part::Norm(norm) => norm
            .parameters()
            .map(|(name, parameter)| (name.to_owned(), parameter.shape().to_vec()))
            .collect(),
        Part::HeadNorms(norms) => norms
            .parameters()
            .map(|(name, parameter)| (name, parameter.shape().to_vec()))
            .collect(),
        Part::Linear(linear) => {
            let mut shape = vec![linear.out_features(), linear.in_features()];
            if linear.class() == LinearClass::Conv1D && !is_codes {
                shape.reverse();
            }
            let bias = linear
                .has_bias()
                .then(|| ("bias".to_owned(), vec![linear.out_features()]));
            std::iter::once(weight(shape)).chain(bias).collect()
        }
    }
}
