//! Loads a decoder from a checkpoint, one tensor at a time: read, cast or quantised, dropped.

mod adapter;
mod float_source;
mod inventory;
mod outcome;
mod quantization;
mod reader;
mod tensors;

pub use inventory::{ModelTensor, ModelTensors, TensorRole};
pub use outcome::{LoadOutcome, LoadWarning};

use crate::decoder::Decoder;
use crate::error::{DecoderError, Result};
use crate::execute::gpu::Scratch;
use crate::placement::Placement;
use crate::slot::{ModelSlot, Part, Slot};
use crate::spec::DecoderSpec;
use llm_int8_kernels::Isa;
use llm_int8_nn::checkpoint::Checkpoint;
use llm_int8_nn::config::ModelConfig;
use llm_int8_nn::dtype::{CacheDtype, FloatDtype};
use llm_int8_nn::linear::{CodeMemory, Int8Config, ReplaceReport};
use llm_int8_nn::lora::Adapter;
use llm_int8_nn::module::{ModulePath, SkipList};
use quantization::{StoredQuantization, declare, declare_int8_head};
use reader::Reader;
use safetensors::Dtype;
use std::sync::Arc;
use tensors::{Keys, check_tensors};

/// The dtype of the parameters outside the int8 layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightDtype {
    /// f16, the default of transformers 4.x for models with int8 layers.
    #[default]
    Float16,
    /// bf16.
    BFloat16,
    /// f32.
    Float32,
    /// The checkpoint's (`dtype="auto"`, the default of transformers 5.x).
    Auto,
}

/// How a checkpoint is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The dtype of the parameters outside the int8 layers.
    pub dtype: WeightDtype,
    /// The dtype of keys and values. None: that of the float parameters, as in transformers. Another
    /// one is for the CPU only.
    pub cache_dtype: Option<CacheDtype>,
    /// How int8 layers compute; none: no layer becomes int8.
    pub int8: Option<Int8Config>,
    /// The outlier threshold, which overrides a saved 8-bit checkpoint's. None: that of the
    /// checkpoint's `quantization_config`, otherwise that of `int8.outliers`. It has no effect on
    /// [`OutlierRule::RowRms`](llm_int8_nn::linear::OutlierRule::RowRms).
    pub threshold: Option<f32>,
    /// Modules to keep in floats, in addition to those that transformers always keeps.
    pub skip_modules: SkipList,
    /// Also make the head and the token table int8, which bitsandbytes never does. It halves the
    /// size of both, but transformers cannot load such a model. Ignored without `int8`.
    pub quantize_head: bool,
    /// Refuse a checkpoint with tensors that the model has no place for, instead of ignoring them
    /// with a warning as transformers does.
    pub strict: bool,
    /// The instruction set of the kernels on the CPU.
    pub isa: Isa,
    /// On which devices the model is put.
    pub placement: Placement,
    /// The LoRA adapter that is applied. The module tree, the parameters and the footprint stay
    /// those of the model alone.
    pub adapter: Option<Arc<Adapter>>,
}

impl Default for LoadOptions {
    /// 8 bit as bitsandbytes does it, f16 for the rest, the fastest instruction set of this CPU.
    fn default() -> Self {
        Self {
            dtype: WeightDtype::default(),
            cache_dtype: None,
            int8: Some(Int8Config::default()),
            threshold: None,
            skip_modules: SkipList::default(),
            quantize_head: false,
            strict: false,
            isa: Isa::detect(),
            placement: Placement::cpu(),
            adapter: None,
        }
    }
}

/// Progress of loading.
#[derive(Debug, Clone, Copy)]
pub struct LoadEvent<'a> {
    /// The module that was just loaded.
    pub module: &'a ModulePath,
    /// Modules loaded so far, this one included.
    pub done: usize,
    /// All modules to load.
    pub total: usize,
}

const HEAD: Slot = Slot::Model(ModelSlot::Head);

impl Decoder {
    /// The model without values: module tree, parameters and footprint, from `config.json` and the
    /// checkpoint's headers. Checks everything that can be checked without reading values, except
    /// those of an adapter, which are read.
    ///
    /// # Errors
    /// As [`Decoder::load`], except those of reading values.
    pub fn plan(
        config: &ModelConfig,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
    ) -> Result<(Self, LoadOutcome)> {
        Self::plan_described(
            DecoderSpec::from_config(config)?,
            config,
            checkpoint,
            options,
        )
    }

    /// [`Decoder::plan`] with a description that was not made from the configuration.
    fn plan_described(
        spec: DecoderSpec,
        config: &ModelConfig,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
    ) -> Result<(Self, LoadOutcome)> {
        let stored = StoredQuantization::of(config)?;
        let (dtype, narrowed) = float_dtype(config, checkpoint, options.dtype);
        let mut decoder = Self::declared(spec, dtype, options.isa)?;
        if let Some(dtype) = options.cache_dtype {
            decoder.set_cache_dtype(dtype)?;
        }
        let keys = Keys {
            checkpoint,
            prefix: decoder.spec().optional_prefix,
        };

        let layers = match options.int8 {
            Some(int8) => {
                let int8 = Int8Config {
                    outliers: stored.outliers(options, int8.outliers),
                    ..int8
                };
                let mut layers = declare(&mut decoder, &keys, options, &stored, int8)?;
                if options.quantize_head {
                    declare_int8_head(&mut decoder, &mut layers, int8);
                }
                layers
            }
            None if Self::is_prequantized(checkpoint) => {
                let reason = "these weights are int8 already and cannot be loaded as floats; load them in 8 bit";
                return Err(DecoderError::Config {
                    reason: reason.into(),
                });
            }
            None => ReplaceReport::default(),
        };

        let unused = check_tensors(&decoder, &keys, options, &stored)?;
        if let Some(adapter) = &options.adapter {
            decoder.apply_adapter(adapter)?;
        }

        let copies = checkpoint.copies();
        let copied = (!copies.is_empty()).then(|| LoadWarning::CopiedTensors {
            names: copies.to_vec(),
        });
        let warnings = [stored.warning(), narrowed, unused, copied]
            .into_iter()
            .flatten()
            .collect();
        Ok((decoder, LoadOutcome { layers, warnings }))
    }

    /// Whether the checkpoint holds int8 weights of bitsandbytes: codes with their absmax.
    pub fn is_prequantized(checkpoint: &Checkpoint) -> bool {
        checkpoint.entries().any(|(name, entry)| {
            let module = name
                .strip_suffix(".weight")
                .filter(|_| entry.dtype == Dtype::I8);
            module.is_some_and(|module| checkpoint.entry(&format!("{module}.SCB")).is_some())
        })
    }

    /// Loads a model: each tensor is read from the checkpoint, cast or quantised, and dropped.
    /// `observe` is called after each module.
    ///
    /// # Errors
    /// - [`DecoderError::UnsupportedFamily`], [`DecoderError::Config`];
    /// - [`DecoderError::MissingTensor`], [`NnError::WrongShape`](llm_int8_nn::NnError) or
    ///   [`NnError::WrongDtype`](llm_int8_nn::NnError) if the checkpoint does not fit
    ///   `config.json`;
    /// - [`DecoderError::UnexpectedTensors`] if `options.strict` and the checkpoint has tensors
    ///   that the model has no place for;
    /// - [`NnError::Quantise`](llm_int8_nn::NnError) for weights that are not finite in f16;
    /// - [`NnError::UnknownModule`](llm_int8_nn::NnError) for a skipped module that does not exist;
    /// - [`NnError::AdapterTensor`](llm_int8_nn::NnError) for an adapter of another model;
    /// - [`DecoderError::Placement`], [`DecoderError::OriginalWeightsOnDevice`],
    ///   [`DecoderError::AdapterOnDevice`], [`DecoderError::CacheDtypeOnDevice`],
    ///   [`DecoderError::Cuda`] for a placement that is impossible or fails.
    pub fn load(
        config: &ModelConfig,
        checkpoint: &Arc<Checkpoint>,
        options: &LoadOptions,
        observe: &mut dyn FnMut(LoadEvent<'_>),
    ) -> Result<(Self, LoadOutcome)> {
        Self::load_described(
            DecoderSpec::from_config(config)?,
            config,
            checkpoint,
            options,
            observe,
        )
    }

    /// [`Decoder::load`] with a description that was not made from the configuration. The
    /// configuration still says how the weights are stored.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_described(
        spec: DecoderSpec,
        config: &ModelConfig,
        checkpoint: &Arc<Checkpoint>,
        options: &LoadOptions,
        observe: &mut dyn FnMut(LoadEvent<'_>),
    ) -> Result<(Self, LoadOutcome)> {
        let (mut decoder, outcome) = Self::plan_described(spec, config, checkpoint, options)?;
        let slots = decoder.paths();
        let tied = decoder.spec().tied_head;
        decoder.place(&options.placement)?;

        let on_cpu = slots
            .iter()
            .filter(|(_, slot)| decoder.stage_of(*slot).is_none());
        let codes = on_cpu.map(|(_, slot)| decoder.own_codes(*slot));
        let mut reader = Reader {
            keys: Keys {
                checkpoint,
                prefix: decoder.spec().optional_prefix,
            },
            checkpoint,
            dtype: decoder.dtype(),
            isa: options.isa,
            memory: CodeMemory::for_weights(codes),
            scratch: Scratch::default(),
        };

        for (done, (path, slot)) in slots.iter().enumerate() {
            let target = decoder
                .stage_of(*slot)
                .and_then(|stage| stage.target(*slot, tied));
            match decoder.part_mut(*slot) {
                // A tied head has only a bias of its own.
                Some(Part::Linear(head)) if tied && *slot == HEAD => reader.bias(path, head)?,
                Some(part) => reader.fill(path, part, target.as_ref())?,
                None => {}
            }
            observe(LoadEvent {
                module: path,
                done: done + 1,
                total: slots.len(),
            });
        }

        decoder.tie_head()?;
        // Frees the scratch memory on devices.
        drop(reader);
        decoder.finish_stages()?;
        Ok((decoder, outcome))
    }
}

/// The dtype of float parameters, and a warning if it is not the requested one.
fn float_dtype(
    config: &ModelConfig,
    checkpoint: &Checkpoint,
    requested: WeightDtype,
) -> (FloatDtype, Option<LoadWarning>) {
    match requested {
        WeightDtype::Float16 => (FloatDtype::F16, None),
        WeightDtype::BFloat16 => (FloatDtype::BF16, None),
        WeightDtype::Float32 => (FloatDtype::F32, None),
        WeightDtype::Auto => checkpoint_dtype(config, checkpoint),
    }
}

/// The checkpoint's dtype, by the rule of `_get_dtype` in transformers: that of config.json,
/// otherwise that of the first float tensor.
fn checkpoint_dtype(
    config: &ModelConfig,
    checkpoint: &Checkpoint,
) -> (FloatDtype, Option<LoadWarning>) {
    let name = config
        .value("dtype")
        .as_str()
        .or(config.value("torch_dtype").as_str())
        .map(|name| name.strip_prefix("torch.").unwrap_or(name));
    let named = name.and_then(FloatDtype::from_name);

    match (name, named, checkpoint.first_float()) {
        (_, Some(dtype), _) => (dtype, None),
        (Some("float64" | "double"), ..) | (_, _, Some(Dtype::F64)) => {
            (FloatDtype::F32, Some(LoadWarning::Float64))
        }
        (_, _, Some(Dtype::F16)) => (FloatDtype::F16, None),
        (_, _, Some(Dtype::BF16)) => (FloatDtype::BF16, None),
        _ => (FloatDtype::F32, None),
    }
}
