//! From a checkpoint to a decoder, one tensor at a time.

mod outcome;
mod quantization;
mod reader;
mod tensors;

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
use llm_int8_nn::dtype::FloatDtype;
use llm_int8_nn::linear::ReplaceReport;
use llm_int8_nn::linear::{CodeMemory, Int8Config};
use llm_int8_nn::module::{ModulePath, SkipList};
use quantization::{StoredQuantization, declare, declare_int8_head};
use reader::Reader;
use safetensors::Dtype;
use std::sync::Arc;
use tensors::{Keys, check_tensors};

/// What the parameters outside the int8 layers are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightDtype {
    /// f16, as transformers 4.x does by default beside int8.
    #[default]
    Float16,
    /// bf16.
    BFloat16,
    /// f32.
    Float32,
    /// What the checkpoint is in (`dtype="auto"`, the default of transformers 5.x).
    Auto,
}

/// How a checkpoint becomes a decoder.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// What the parameters outside the int8 layers are stored in.
    pub dtype: WeightDtype,
    /// How int8 layers compute; none loads every layer as it is.
    pub int8: Option<Int8Config>,
    /// The threshold of outliers, whatever a saved 8-bit checkpoint says. None: that of the
    /// checkpoint's `quantization_config`, and `int8.threshold` where there is none.
    pub threshold: Option<f32>,
    /// Modules to leave as they are, beside those that always are.
    pub skip_modules: SkipList,
    /// Also make the output head and the token table int8, which bitsandbytes never does: a model
    /// smaller by half of both, which cannot be exchanged with transformers. Without `int8` it does
    /// nothing.
    pub quantize_head: bool,
    /// Refuse a checkpoint with tensors that the model has no place for, instead of ignoring them
    /// with a warning as transformers does.
    pub strict: bool,
    /// The instruction set of the products on the CPU.
    pub isa: Isa,
    /// Where the model goes.
    pub placement: Placement,
}

impl Default for LoadOptions {
    /// 8 bit as bitsandbytes does it, f16 beside it, the fastest instruction set.
    fn default() -> Self {
        Self {
            dtype: WeightDtype::default(),
            int8: Some(Int8Config::default()),
            threshold: None,
            skip_modules: SkipList::default(),
            quantize_head: false,
            strict: false,
            isa: Isa::detect(),
            placement: Placement::cpu(),
        }
    }
}

/// Progress of loading.
#[derive(Debug, Clone, Copy)]
pub struct LoadEvent<'a> {
    /// The module just filled.
    pub module: &'a ModulePath,
    /// Modules filled.
    pub done: usize,
    /// Modules to fill.
    pub total: usize,
}

const HEAD: Slot = Slot::Model(ModelSlot::Head);

impl Decoder {
    /// The model without its weights: tree, parameters and footprint from `config.json` and the
    /// checkpoint's headers, everything checked that can be checked without reading values.
    ///
    /// # Errors
    /// As [`Decoder::load`], but for those that reading values gives.
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

    /// [`Decoder::plan`] for a description that did not come from the configuration.
    fn plan_described(
        spec: DecoderSpec,
        config: &ModelConfig,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
    ) -> Result<(Self, LoadOutcome)> {
        let stored = StoredQuantization::of(config)?;
        let (dtype, narrowed) = float_dtype(config, checkpoint, options.dtype);
        let mut decoder = Self::declared(spec, dtype, options.isa)?;
        let keys = Keys {
            checkpoint,
            prefix: decoder.spec().optional_prefix,
        };
        let layers = match options.int8 {
            Some(int8) => {
                let int8 = Int8Config {
                    threshold: stored.threshold(options, int8),
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
        let unused = check_tensors(&mut decoder, &keys, options, &stored)?;
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
    ///
    /// # Errors
    /// [`DecoderError::UnsupportedFamily`], [`DecoderError::Config`];
    /// [`DecoderError::MissingTensor`], [`DecoderError::UnexpectedTensors`],
    /// [`NnError::WrongShape`](llm_int8_nn::NnError), [`NnError::WrongDtype`](llm_int8_nn::NnError)
    /// where the checkpoint is not the one `config.json` speaks of;
    /// [`NnError::Quantise`](llm_int8_nn::NnError) for weights that are not finite in f16;
    /// [`NnError::UnknownModule`](llm_int8_nn::NnError) for the skip list. Tensors without a place
    /// are an error only where the options are strict.
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

    /// [`Decoder::load`] for a description that did not come from the configuration, which still
    /// says how the weights are stored.
    ///
    /// # Errors
    /// As there.
    pub fn load_described(
        spec: DecoderSpec,
        config: &ModelConfig,
        checkpoint: &Arc<Checkpoint>,
        options: &LoadOptions,
        observe: &mut dyn FnMut(LoadEvent<'_>),
    ) -> Result<(Self, LoadOutcome)> {
        let (mut decoder, outcome) = Self::plan_described(spec, config, checkpoint, options)?;
        let slots = decoder.paths();
        let prefix = decoder.spec().optional_prefix;
        let tied = decoder.spec().tied_head;
        decoder.place(&options.placement)?;
        let here = slots
            .iter()
            .filter(|(_, slot)| decoder.stage_of(*slot).is_none());
        let memory = CodeMemory::for_weights(here.map(|(_, slot)| decoder.own_codes(*slot)));
        let keys = Keys { checkpoint, prefix };
        let (dtype, isa, scratch) = (decoder.dtype(), options.isa, Scratch::default());
        let mut reader = Reader {
            keys,
            checkpoint,
            dtype,
            isa,
            memory,
            scratch,
        };
        for (done, (path, slot)) in slots.iter().enumerate() {
            let target = decoder
                .stage_of(*slot)
                .and_then(|stage| stage.target(*slot, tied));
            match decoder.part_mut(*slot) {
                // Its weight is that of the token table.
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
        drop(reader);
        decoder.finish_stages()?;
        Ok((decoder, outcome))
    }
}

/// The dtype to hold floats in, and a warning where it is not the one asked for.
fn float_dtype(
    config: &ModelConfig,
    checkpoint: &Checkpoint,
    requested: WeightDtype,
) -> (FloatDtype, Option<LoadWarning>) {
    match requested {
        WeightDtype::Float16 => (FloatDtype::F16, None),
        WeightDtype::BFloat16 => (FloatDtype::BF16, None),
        WeightDtype::Float32 => (FloatDtype::F32, None),
        WeightDtype::Auto => {
            // As `_get_dtype` of transformers: what config.json says, else the first float
            // tensor's.
            let name = config
                .value("dtype")
                .as_str()
                .or(config.value("torch_dtype").as_str());
            let name = name.map(|name| name.strip_prefix("torch.").unwrap_or(name));
            match (
                name,
                name.and_then(FloatDtype::from_name),
                checkpoint.first_float(),
            ) {
                (_, Some(dtype), _) => (dtype, None),
                (Some("float64" | "double"), ..) | (_, _, Some(Dtype::F64)) => {
                    (FloatDtype::F32, Some(LoadWarning::Float64))
                }
                (_, _, Some(Dtype::F16)) => (FloatDtype::F16, None),
                (_, _, Some(Dtype::BF16)) => (FloatDtype::BF16, None),
                _ => (FloatDtype::F32, None),
            }
        }
    }
}
