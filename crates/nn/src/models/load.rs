//! From a checkpoint to a decoder, one tensor at a time.

use super::decoder::{Decoder, Part};
use super::device::{Placement, Scratch, Target};
use super::spec::{DecoderSpec, ModelSlot, Slot};
use crate::checkpoint::{
    Checkpoint, CheckpointColumns, float_tensor, int8_weight, is_float, read_linear_state,
};
use crate::config::ModelConfig;
use crate::dtype::FloatDtype;
use crate::error::{NnError, Result};
use crate::linear::{
    CodeMemory, FloatLinear, HasLinears, Int8Config, Int8Linear, Linear, LinearClass, OriginalWeights,
    OutlierWeights, replace_linear,
};
use crate::module::{KeptLinear, ModulePath, ReplaceReport, SkipList};
use crate::parameter::FloatParameter;
use llm_int8_kernels::Isa;
use safetensors::Dtype;
use std::collections::BTreeSet;
use std::sync::Arc;

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
    /// The threshold of outliers, whatever a saved 8-bit checkpoint says. None: that of the checkpoint's
    /// `quantization_config`, and `int8.threshold` where there is none.
    pub threshold: Option<f32>,
    /// Modules to leave as they are, beside those that always are.
    pub skip_modules: SkipList,
    /// Also make the output head and the token table int8, which bitsandbytes never does: a model smaller by
    /// half of both, which cannot be exchanged with transformers. Without `int8` it does nothing.
    pub quantize_head: bool,
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
    ) -> Result<(Self, ReplaceReport)> {
        let spec = DecoderSpec::from_config(config)?;
        let dtype = float_dtype(config, checkpoint, options.dtype);
        let mut decoder = Self::declared(spec, dtype, options.isa);
        let keys = Keys { checkpoint, prefix: decoder.spec().optional_prefix };
        let int8 = match options.int8 {
            Some(int8) => Some(Int8Config { threshold: threshold(config, options, int8)?, ..int8 }),
            None => None,
        };
        let mut report = match (Self::is_prequantized(config, checkpoint)?, int8) {
            (true, Some(int8)) => declare_quantised(&mut decoder, &keys, options, int8)?,
            (true, None) => {
                let reason =
                    "these weights are int8 already (quantization_config.load_in_8bit) and cannot be \
                              loaded unquantised; leave --no-quantize away"
                        .to_owned();
                return Err(NnError::Config { reason });
            }
            (false, Some(int8)) => replace_linear(&mut decoder, &options.skip_modules, int8)?,
            (false, None) => ReplaceReport::default(),
        };
        if let (true, Some(int8)) = (options.quantize_head, int8) {
            declare_int8_head(&mut decoder, &mut report, int8);
        }
        check_tensors(&mut decoder, &keys)?;
        Ok((decoder, report))
    }

    /// Whether the checkpoint holds bitsandbytes' int8 weights.
    ///
    /// # Errors
    /// [`NnError::Config`] for weights that another method quantised.
    pub fn is_prequantized(config: &ModelConfig, checkpoint: &Checkpoint) -> Result<bool> {
        let Some(quantization) = config.quantization() else {
            return Ok(checkpoint.entries().any(|(name, _)| name.ends_with(".SCB")));
        };
        if quantization["load_in_8bit"].as_bool() == Some(true) {
            return Ok(true);
        }
        let method = quantization["quant_method"].as_str().unwrap_or("unknown");
        Err(NnError::Config {
            reason: format!(
                "the weights are quantised already, by `{method}` and not in bitsandbytes' 8 bit; \
                 load the model's unquantised checkpoint"
            ),
        })
    }

    /// Loads a model: each tensor is read from the checkpoint, cast or quantised, and dropped.
    ///
    /// # Errors
    /// [`NnError::UnsupportedFamily`], [`NnError::Config`]; [`NnError::MissingTensor`],
    /// [`NnError::UnexpectedTensors`], [`NnError::WrongShape`], [`NnError::WrongDtype`] where the
    /// checkpoint is not the one `config.json` speaks of; [`NnError::Quantise`] for weights that are not
    /// finite in f16; [`NnError::UnknownModule`] for the skip list.
    pub fn load(
        config: &ModelConfig,
        checkpoint: &Arc<Checkpoint>,
        options: &LoadOptions,
        observe: &mut dyn FnMut(LoadEvent<'_>),
    ) -> Result<(Self, ReplaceReport)> {
        let (mut decoder, report) = Self::plan(config, checkpoint, options)?;
        let slots = decoder.paths();
        let prefix = decoder.spec().optional_prefix;
        let tied = decoder.spec().tied_head;
        decoder.place(&options.placement)?;
        let here = slots.iter().filter(|(_, slot)| decoder.stage_of(*slot).is_none());
        let memory = CodeMemory::for_weights(here.map(|(_, slot)| decoder.own_codes(*slot)));
        let keys = Keys { checkpoint, prefix };
        let (isa, scratch) = (options.isa, Scratch::default());
        let mut reader = Reader { keys, checkpoint, isa, memory, scratch };
        for (done, (path, slot)) in slots.iter().enumerate() {
            let target = decoder.stage_of(*slot).and_then(|stage| stage.target(*slot, tied));
            match decoder.part_mut(*slot) {
                // Its weight is that of the token table.
                Some(Part::Linear(head)) if tied && *slot == HEAD => reader.bias(path, head)?,
                Some(part) => reader.fill(path, part, target.as_ref())?,
                None => {}
            }
            observe(LoadEvent { module: path, done: done + 1, total: slots.len() });
        }
        decoder.tie_head()?;
        drop(reader);
        decoder.finish_stages()?;
        Ok((decoder, report))
    }
}

/// The threshold the caller, the checkpoint or the settings ask for, in this order.
fn threshold(config: &ModelConfig, options: &LoadOptions, int8: Int8Config) -> Result<f32> {
    let stored = config.quantization().map(|quantization| &quantization["llm_int8_threshold"]);
    match (options.threshold, stored) {
        (Some(threshold), _) => Ok(threshold),
        (None, None | Some(serde_json::Value::Null)) => Ok(int8.threshold),
        (None, Some(value)) => {
            value.as_f64().filter(|x| *x >= 0.0).map(|x| x as f32).ok_or_else(|| NnError::Config {
                reason: format!("`llm_int8_threshold` is {value}; a number from 0 up was expected"),
            })
        }
    }
}

fn float_dtype(config: &ModelConfig, checkpoint: &Checkpoint, wanted: WeightDtype) -> FloatDtype {
    match wanted {
        WeightDtype::Float16 => FloatDtype::F16,
        WeightDtype::BFloat16 => FloatDtype::BF16,
        WeightDtype::Float32 => FloatDtype::F32,
        WeightDtype::Auto => config.stored_dtype().unwrap_or_else(|| {
            let first = checkpoint.entries().map(|(_, entry)| entry.dtype).find(|dtype| is_float(*dtype));
            match first {
                Some(Dtype::F16) => FloatDtype::F16,
                Some(Dtype::BF16) => FloatDtype::BF16,
                _ => FloatDtype::F32,
            }
        }),
    }
}

/// The head and the token table become int8 too.
fn declare_int8_head(decoder: &mut Decoder, report: &mut ReplaceReport, int8: Int8Config) {
    for (path, slot) in decoder.paths() {
        match decoder.part_mut(slot) {
            Some(Part::Embedding(table)) if slot == Slot::Model(ModelSlot::Tokens) => table.declare_int8(),
            Some(Part::Linear(head)) if slot == HEAD => {
                let Linear::Float(float) = &*head else { continue };
                *head = Linear::Int8(Int8Linear::declared(float, int8));
            }
            _ => continue,
        }
        report.kept.retain(|kept| kept.path != path);
        report.replaced.push(path);
    }
}

/// In a quantised checkpoint the file decides which layers are int8.
fn declare_quantised(
    decoder: &mut Decoder,
    keys: &Keys<'_>,
    options: &LoadOptions,
    int8: Int8Config,
) -> Result<ReplaceReport> {
    use crate::module::Module;
    options.skip_modules.check(&decoder.describe())?;
    let mut report = ReplaceReport::default();
    decoder.for_each_linear(&mut |path, linear| {
        let Linear::Float(float) = &*linear else { return Ok(()) };
        if !keys.is_quantised(path) {
            report.kept.push(KeptLinear { path: path.clone(), because: "the checkpoint".into() });
        } else if let Some(name) = options.skip_modules.matching(path) {
            let reason = format!("--skip-modules {name}: the checkpoint holds this layer in int8 only");
            return Err(NnError::QuantisationState { layer: path.to_string(), reason });
        } else {
            *linear = Linear::Int8(Int8Linear::declared(float, int8));
            report.replaced.push(path.clone());
        }
        Ok(())
    })?;
    Ok(report)
}

/// Names of tensors in the checkpoint, with and without the family's prefix.
struct Keys<'a> {
    checkpoint: &'a Checkpoint,
    prefix: &'static str,
}

impl Keys<'_> {
    /// The key a module's tensor has, or the full one where it has none.
    fn key(&self, path: &ModulePath, name: &str) -> String {
        let full = path.join(name).to_string();
        match full.strip_prefix(self.prefix) {
            Some(short)
                if self.checkpoint.entry(&full).is_none() && self.checkpoint.entry(short).is_some() =>
            {
                short.to_owned()
            }
            _ => full,
        }
    }

    /// The path of a module as the checkpoint has it.
    fn module(&self, path: &ModulePath) -> String {
        let key = self.key(path, "weight");
        key.strip_suffix(".weight").unwrap_or(&key).to_owned()
    }

    fn is_quantised(&self, path: &ModulePath) -> bool {
        let module = self.module(path);
        let weight = self.checkpoint.entry(&format!("{module}.weight"));
        weight.is_some_and(|entry| !is_float(entry.dtype))
            || self.checkpoint.entry(&format!("{module}.SCB")).is_some()
    }
}

/// Checks that every tensor the model needs is there in the right shape, and nothing else is.
fn check_tensors(decoder: &mut Decoder, keys: &Keys<'_>) -> Result<()> {
    let (family, tied, ignored) =
        (decoder.spec().family, decoder.spec().tied_head, decoder.spec().ignored_suffixes);
    let mut known = BTreeSet::new();
    for (path, slot) in decoder.paths() {
        let Some(part) = decoder.part_mut(slot) else { continue };
        let mut expected = expected(part, keys.is_quantised(&path));
        if tied && slot == HEAD {
            known.insert(keys.key(&path, "weight"));
            expected.retain(|(name, _)| name != "weight");
        }
        for (name, shape) in expected {
            let key = keys.key(&path, &name);
            let Some(entry) = keys.checkpoint.entry(&key) else {
                let all = keys.checkpoint.entries().map(|(name, _)| name);
                return Err(NnError::MissingTensor {
                    checkpoint: keys.checkpoint.description(),
                    hint: crate::module::replace::near_names(&key, all),
                    name: key,
                    family: family.into(),
                });
            };
            if entry.shape != shape {
                return Err(NnError::WrongShape {
                    file: keys.checkpoint.file_of(&key).unwrap_or_default().to_owned(),
                    found: entry.shape.clone(),
                    expected: shape,
                    name: key,
                });
            }
            known.insert(key);
        }
        if keys.is_quantised(&path) {
            let module = keys.module(&path);
            known.extend(["SCB", "weight_format"].map(|name| format!("{module}.{name}")));
        }
    }
    let extra: Vec<&str> = (keys.checkpoint.entries().map(|(name, _)| name))
        .filter(|name| !known.contains(*name))
        .filter(|name| !ignored.iter().any(|suffix| name.ends_with(suffix)))
        .collect();
    if extra.is_empty() {
        return Ok(());
    }
    Err(NnError::UnexpectedTensors {
        checkpoint: keys.checkpoint.description(),
        count: extra.len(),
        names: extra.iter().take(5).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
        family: family.into(),
    })
}

/// Names and stored shapes of a part's tensors.
fn expected(part: &Part, quantised: bool) -> Vec<(String, Vec<usize>)> {
    let weight = |shape: Vec<usize>| ("weight".to_owned(), shape);
    match part {
        Part::Embedding(embedding) => vec![weight(embedding.shape().to_vec())],
        Part::Norm(norm) => {
            norm.parameters().map(|(name, parameter)| (name.to_owned(), parameter.shape().to_vec())).collect()
        }
        Part::HeadNorms(norms) => {
            norms.parameters().map(|(name, parameter)| (name, parameter.shape().to_vec())).collect()
        }
        Part::Linear(linear) => {
            let mut shape = vec![linear.out_features(), linear.in_features()];
            if linear.class() == LinearClass::Conv1D && !quantised {
                shape.reverse();
            }
            let bias = linear.has_bias().then(|| ("bias".to_owned(), vec![linear.out_features()]));
            std::iter::once(weight(shape)).chain(bias).collect()
        }
    }
}

/// Fills the parts of a decoder.
struct Reader<'a> {
    keys: Keys<'a>,
    checkpoint: &'a Arc<Checkpoint>,
    isa: Isa,
    memory: CodeMemory,
    /// What travels to devices.
    scratch: Scratch,
}

impl Reader<'_> {
    /// Reads a part; its weight goes to `target` where it lies on a device. Norms and biases, which are small,
    /// come to the CPU first.
    fn fill(&mut self, path: &ModulePath, part: &mut Part, target: Option<&Target>) -> Result<()> {
        match part {
            Part::Embedding(embedding) if target.is_some() => {
                self.send(path, embedding.weight().dtype(), false, target)
            }
            Part::Linear(linear) if target.is_some() => {
                self.send_linear(path, linear, target)?;
                self.bias(path, linear)
            }
            Part::Embedding(embedding) if embedding.is_int8() => {
                let view = self.checkpoint.tensor(&self.keys.key(path, "weight"))?;
                embedding.fill_int8(int8_weight(&view, false, self.isa, &mut self.memory)?);
                Ok(())
            }
            Part::Embedding(embedding) => self.float(path, "weight", embedding.weight_mut(), false),
            Part::Norm(norm) => {
                for (name, parameter) in norm.parameters_mut() {
                    self.float(path, name, parameter, false)?;
                }
                Ok(())
            }
            Part::HeadNorms(norms) => {
                for (name, parameter) in norms.parameters_mut() {
                    self.float(path, &name, parameter, false)?;
                }
                Ok(())
            }
            Part::Linear(Linear::Float(linear)) => self.float_linear(path, linear),
            Part::Linear(Linear::Int8(linear)) => self.int8_linear(path, linear),
        }
    }

    fn float(
        &self,
        path: &ModulePath,
        name: &str,
        into: &mut FloatParameter,
        transposed: bool,
    ) -> Result<()> {
        let view = self.checkpoint.tensor(&self.keys.key(path, name))?;
        into.fill(float_tensor(&view, into.dtype(), transposed)?)
    }

    fn send(
        &mut self,
        path: &ModulePath,
        dtype: FloatDtype,
        transposed: bool,
        target: Option<&Target>,
    ) -> Result<()> {
        let view = self.checkpoint.tensor(&self.keys.key(path, "weight"))?;
        target.ok_or(NnError::NotLoaded)?.fill(&view, dtype, transposed, &mut self.scratch)
    }

    fn send_linear(&mut self, path: &ModulePath, linear: &Linear, target: Option<&Target>) -> Result<()> {
        let (shape, transposed) =
            ([linear.out_features(), linear.in_features()], linear.class() == LinearClass::Conv1D);
        if linear.is_int8() && self.keys.is_quantised(path) {
            let module = self.keys.module(path);
            // Through memory of its own, which is gone after it.
            let codes = read_linear_state(self.checkpoint, &module, shape, &mut CodeMemory::default())?;
            return target.ok_or(NnError::NotLoaded)?.fill_codes(&codes);
        }
        let dtype = match linear {
            Linear::Float(linear) => linear.weight().dtype(),
            Linear::Int8(_) => FloatDtype::F32,
        };
        self.send(path, dtype, transposed, target)
    }

    fn float_linear(&self, path: &ModulePath, linear: &mut FloatLinear) -> Result<()> {
        let transposed = linear.class() == LinearClass::Conv1D;
        self.float(path, "weight", linear.weight_mut(), transposed)?;
        match linear.bias_mut() {
            Some(bias) => self.float(path, "bias", bias, false),
            None => Ok(()),
        }
    }

    fn bias(&self, path: &ModulePath, linear: &mut Linear) -> Result<()> {
        let bias = match linear {
            Linear::Float(linear) => linear.bias_mut(),
            Linear::Int8(linear) => linear.bias_mut(),
        };
        match bias {
            Some(bias) => self.float(path, "bias", bias, false),
            None => Ok(()),
        }
    }

    fn int8_linear(&mut self, path: &ModulePath, linear: &mut Int8Linear) -> Result<()> {
        let shape = [linear.out_features(), linear.in_features()];
        if self.keys.is_quantised(path) {
            linear.fill(
                read_linear_state(self.checkpoint, &self.keys.module(path), shape, &mut self.memory)?,
                None,
            )?;
        } else {
            let transposed = linear.class() == LinearClass::Conv1D;
            let key = self.keys.key(path, "weight");
            let weight = int8_weight(&self.checkpoint.tensor(&key)?, transposed, self.isa, &mut self.memory)?;
            let original = (linear.config().outlier_weights == OutlierWeights::Original).then(|| {
                Arc::new(CheckpointColumns::new(Arc::clone(self.checkpoint), key, transposed))
                    as Arc<dyn OriginalWeights>
            });
            linear.fill(weight, original)?;
        }
        match linear.bias_mut() {
            Some(bias) => self.float(path, "bias", bias, false),
            None => Ok(()),
        }
    }
}
