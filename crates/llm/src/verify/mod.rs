//! Whether the files of an 8-bit model are sound: values that are not numbers, int8 rows that no
//! quantiser writes, tensors that are missing, and differences from the float weights.
//!
//! Tensors are read one by one, so a model need not fit into memory.

mod report;
mod side;

pub use llm_int8_nn::checkpoint::verify::Fault;
pub use report::{Finding, Note, Report};

use crate::error::{LlmError, Result};
use llm_int8_decoder::{ModelTensor, TensorRole};
use llm_int8_hub::{HubConfig, Progress};
use llm_int8_nn::NnError;
use llm_int8_nn::checkpoint::verify::{code_faults, compare_floats, compare_weight, float_faults};
use llm_int8_nn::checkpoint::{TensorView, check_layout, is_float};
use report::list;
use safetensors::Dtype;
use side::Side;
use std::ops::ControlFlow;

/// What to verify a model against, and where models are found.
#[derive(Debug, Clone, Default)]
pub struct VerifyOptions {
    /// The model with the float weights that the 8-bit model was made from.
    pub against: Option<String>,
    /// Endpoint, cache, token, retries.
    pub hub: HubConfig,
}

/// Progress of a verification.
#[derive(Debug, Clone, Copy)]
pub struct VerifyEvent<'a> {
    /// The tensor that was just checked.
    pub tensor: &'a str,
    /// Bytes checked so far.
    pub done: u64,
    /// Bytes to check in all.
    pub total: u64,
}

/// Verifies the weights of a model, which is named as for
/// [`from_pretrained`](crate::AutoModelForCausalLM::from_pretrained).
///
/// An int8 layer is checked for codes and absmax that bitsandbytes cannot have written, a float
/// weight for what quantising it would meet. With a float source, every layer is quantised again by
/// bitsandbytes' rule and compared, and what stayed float is compared after the cast to its dtype.
/// `observe` is called after each tensor and may stop the verification.
///
/// ```
/// use llm_int8::hub::NoProgress;
/// use llm_int8::verify::{VerifyOptions, verify};
/// use std::ops::ControlFlow;
/// let go_on = &mut |_: llm_int8::verify::VerifyEvent<'_>| ControlFlow::Continue(());
/// let report = verify("tiny-gpt2", &VerifyOptions::default(), &NoProgress, go_on)?;
/// assert!(report.is_sound());
/// assert_eq!((report.int8_layers, report.float_layers), (0, 16));
/// # Ok::<(), llm_int8::LlmError>(())
/// ```
///
/// # Errors
/// [`LlmError::Hub`], [`LlmError::Nn`] or [`LlmError::Decoder`] if the files of one of the models
/// cannot be found or opened, inside of [`LlmError::Against`] if it is the source;
/// [`LlmError::Setting`] if `against` is not a model with float weights;
/// [`LlmError::Interrupted`] if `observe` stops it.
pub fn verify(
    name: &str,
    options: &VerifyOptions,
    download: &dyn Progress,
    observe: &mut dyn FnMut(VerifyEvent<'_>) -> ControlFlow<()>,
) -> Result<Report> {
    let mut report = Report {
        model: name.to_owned(),
        against: options.against.clone(),
        tensors: 0,
        int8_layers: 0,
        float_layers: 0,
        bytes: 0,
        findings: Vec::new(),
        notes: Vec::new(),
    };

    let mut model = Side::open(name, &options.hub, download)?;
    let mut source = match &options.against {
        Some(against) => Some(float_source(against, &options.hub, download)?),
        None => None,
    };
    if model.is_broken() && source.take().is_some() {
        let detail = "not compared with the source, as a layer contradicts itself";
        report.note(None, detail.to_owned());
    }
    if let Some(source) = &mut source {
        // Names of the tree and names of a file cannot be compared with each other.
        if model.is_by_name() || source.is_by_name() {
            model.use_names();
            source.use_names();
        }
    }
    model.explain(&mut report);

    let total = model.bytes();
    for tensor in &model.tensors.needed {
        let mut check = TensorCheck {
            model: &model,
            source: source.as_ref(),
            tensor,
            report: &mut report,
        };
        check.run()?;

        let event = VerifyEvent {
            tensor: &tensor.key,
            done: report.bytes,
            total,
        };
        if observe(event).is_break() {
            return Err(LlmError::Interrupted);
        }
    }

    if let Some(source) = &source {
        report_extra(&model, source, &mut report);
    }
    Ok(report)
}

/// Opens the model to compare with.
fn float_source(name: &str, hub: &HubConfig, download: &dyn Progress) -> Result<Side> {
    let source = Side::open(name, hub, download).map_err(|error| LlmError::Against {
        model: name.to_owned(),
        source: Box::new(error),
    })?;
    if source.is_prequantized() {
        return Err(LlmError::Setting {
            name: "the model to verify against",
            value: name.to_owned(),
            expected: "it is 8-bit itself; a model with float weights was expected",
        });
    }
    Ok(source)
}

/// Adds the tensors that only the source needs: `config.json` of the two do not agree.
fn report_extra(model: &Side, source: &Side, report: &mut Report) {
    for tensor in &source.tensors.needed {
        let is_there = source.checkpoint.entry(&tensor.key).is_some();
        if !is_there || model.tensor(&tensor.name).is_some() {
            continue;
        }
        let detail = "the source has this tensor, and the model does not";
        if model.is_by_name() {
            report.note(Some(&tensor.key), detail.to_owned());
        } else {
            report.add(&tensor.key, Fault::Missing, detail.to_owned());
        }
    }
}

/// The check of one tensor.
struct TensorCheck<'a> {
    model: &'a Side,
    source: Option<&'a Side>,
    tensor: &'a ModelTensor,
    report: &'a mut Report,
}

impl<'a> TensorCheck<'a> {
    fn run(&mut self) -> Result<()> {
        match self.tensor.role {
            TensorRole::Codes => self.report.int8_layers += 1,
            TensorRole::Quantized => self.report.float_layers += 1,
            TensorRole::Float => {}
        }
        if !self.is_usable() {
            return Ok(());
        }

        let view = self.model.checkpoint.tensor(&self.tensor.key)?;
        self.report.tensors += 1;
        self.report.bytes += view.data.len() as u64;
        match self.tensor.role {
            TensorRole::Codes => self.int8(&view),
            _ => self.float(&view),
        }
    }

    /// Whether the tensor is there with its shape and dtype; else adds what is wrong.
    fn is_usable(&mut self) -> bool {
        let key = &self.tensor.key;
        let checkpoint = &self.model.checkpoint;
        let Some(entry) = checkpoint.entry(key) else {
            let cause = checkpoint.foreign_error(key).map(|error| error.to_string());
            let why = checkpoint.why_missing(key).unwrap_or_default();
            let detail = cause.unwrap_or_else(|| format!("the model needs this tensor{why}"));
            self.report.add(key, Fault::Missing, detail);
            return false;
        };

        let needed = &self.tensor.shape;
        if entry.shape != *needed {
            let detail = format!("shape {:?}; the model needs {needed:?}", entry.shape);
            self.report.add(key, Fault::Shape, detail);
            return false;
        }

        let is_codes = self.tensor.role == TensorRole::Codes;
        if !is_codes && !is_float(entry.dtype) {
            let detail = format!("{:?}; the model needs a float", entry.dtype);
            self.report.add(key, Fault::Dtype, detail);
            return false;
        }
        true
    }

    fn float(&mut self, view: &TensorView<'_>) -> Result<()> {
        let is_weight = self.tensor.role == TensorRole::Quantized;
        for (fault, rows) in float_faults(view, is_weight, self.tensor.transposed)? {
            self.report.add_rows(&self.tensor.key, fault, rows);
        }

        let Some((_, source)) = self.of_source(&self.tensor.shape, None)? else {
            return Ok(());
        };
        let rows = compare_floats(view, &source)?;
        if rows.count > 0 {
            self.report
                .add_rows(&self.tensor.key, Fault::ValuesDiffer, rows);
        }
        Ok(())
    }

    fn int8(&mut self, codes: &TensorView<'_>) -> Result<()> {
        let Some(absmax) = self.absmax()? else {
            return Ok(());
        };
        self.report.tensors += 1;
        self.report.bytes += absmax.data.len() as u64;

        let [_, in_features] = self.tensor.shape[..] else {
            let reason = "the codes are not a matrix".to_owned();
            self.report.add(&self.tensor.key, Fault::State, reason);
            return Ok(());
        };
        let values = absmax.elements::<f32>()?;
        let codes = codes.elements::<i8>()?;
        let (of_codes, of_absmax) = code_faults(&codes, &values, in_features);
        for (fault, rows) in of_codes {
            self.report.add_rows(&self.tensor.key, fault, rows);
        }
        for (fault, rows) in of_absmax {
            self.report.add_rows(&absmax.name, fault, rows);
        }
        self.int8_source(&codes, &values, &absmax.name)
    }

    /// The absmax of an int8 layer; `None` if the state of the layer is broken, which is added.
    fn absmax(&mut self) -> Result<Option<TensorView<'a>>> {
        let key = &self.tensor.key;
        let module = key.strip_suffix(".weight").unwrap_or(key);
        let checkpoint = &self.model.checkpoint;
        let name = format!("{module}.SCB");
        if let Err(NnError::QuantisationState { reason, .. }) = check_layout(checkpoint, module) {
            self.report.add(key, Fault::State, reason);
            return Ok(None);
        }
        if checkpoint
            .entry(&format!("{module}.weight_format"))
            .is_some()
        {
            self.report.tensors += 1;
        }

        let Some(entry) = checkpoint.entry(&name) else {
            let detail = "the absmax of the int8 codes is missing".to_owned();
            self.report.add(&name, Fault::Missing, detail);
            return Ok(None);
        };
        if entry.dtype != Dtype::F32 {
            let detail = format!("{:?}; an absmax is F32", entry.dtype);
            self.report.add(&name, Fault::Dtype, detail);
            return Ok(None);
        }
        let rows = self.tensor.shape.first().copied().unwrap_or(0);
        if entry.shape.iter().product::<usize>() != rows {
            let detail = format!("shape {:?} for {rows} rows of codes", entry.shape);
            self.report.add(&name, Fault::Shape, detail);
            return Ok(None);
        }
        Ok(Some(checkpoint.tensor(&name)?))
    }

    fn int8_source(&mut self, codes: &[i8], absmax: &[f32], absmax_name: &str) -> Result<()> {
        let shape = &self.tensor.shape;
        let reversed: Vec<usize> = shape.iter().rev().copied().collect();
        let Some((tensor, source)) = self.of_source(shape, Some(&reversed))? else {
            return Ok(());
        };
        let dtype = self.model.dtype();
        let found = match compare_weight(codes, absmax, source, dtype, tensor.transposed) {
            Ok(found) => found,
            Err(error @ (NnError::Quantise { .. } | NnError::Input { .. })) => {
                let detail = format!("the source cannot be quantised: {error}");
                self.report.add(&self.tensor.key, Fault::Source, detail);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };

        if found.absmax.count > 0 {
            let percent = 100.0 * found.largest;
            let detail = format!("not the absmax of the source: off by up to {percent:.3} %");
            self.report
                .add_counted(absmax_name, Fault::AbsmaxDiffers, found.absmax, detail);
        }
        let by_one = found.by_one.count;
        let by_more = found.by_more.count;
        if by_one + by_more > 0 {
            let rows = found.by_one.merged(found.by_more);
            let detail =
                format!("not the codes of the source: {by_one} off by 1, {by_more} by more");
            self.report
                .add_counted(&self.tensor.key, Fault::CodesDiffer, rows, detail);
        }
        if found.at_ties.count > 0 {
            let detail = format!(
                "{}: {} of the values lie halfway between two codes and were rounded the other way, as another \
                 processor may",
                list(&found.at_ties),
                found.at_ties.count
            );
            self.report.note(Some(&self.tensor.key), detail);
        }
        Ok(())
    }

    /// The tensor of the source with this shape, or `reversed` if it is stored as `[in, out]`;
    /// `None` if there is no source or it cannot be compared, which is added.
    fn of_source(
        &mut self,
        shape: &[usize],
        reversed: Option<&[usize]>,
    ) -> Result<Option<(ModelTensor, TensorView<'a>)>> {
        let Some(source) = self.source else {
            return Ok(None);
        };
        let key = &self.tensor.key;
        let entry = source
            .tensor(&self.tensor.name)
            .and_then(|tensor| Some((tensor, source.checkpoint.entry(&tensor.key)?)));
        let Some((tensor, entry)) = entry else {
            let detail = "the source has no such tensor".to_owned();
            self.report.add(key, Fault::Source, detail);
            return Ok(None);
        };

        let mut tensor = tensor.clone();
        if source.is_by_name() {
            // The class of the layer is unknown, so the shape has to tell.
            tensor.transposed = entry.shape != shape && Some(entry.shape.as_slice()) == reversed;
        }
        let expected = match reversed {
            Some(reversed) if tensor.transposed => reversed,
            _ => shape,
        };
        if entry.shape != expected {
            let detail = format!("the source has shape {:?}, not {expected:?}", entry.shape);
            self.report.add(key, Fault::Shape, detail);
            return Ok(None);
        }
        if !is_float(entry.dtype) {
            let detail = format!("the source has {:?} here and not a float", entry.dtype);
            self.report.add(key, Fault::Source, detail);
            return Ok(None);
        }
        let view = source.checkpoint.tensor(&tensor.key)?;
        Ok(Some((tensor, view)))
    }
}
