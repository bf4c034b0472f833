//! `llm-int8 affine`: show what INT8 affine quantisation does to numbers.

mod histogram;
mod notebook;
mod number_line;
mod picture;
mod report;

use super::{explain as explain_load, hub_config};
use crate::args::{AffineArgs, AffineDtype, Numbers, Scheme, UsageError};
use crate::display::Downloads;
use anyhow::Context;
use llm_int8::nn::FloatDtype;
use llm_int8::nn::checkpoint::{Checkpoint, float_tensor};
use llm_int8_affine::{
    AffineError, Observer, ObserverConfig, ObserverKind, QScheme, QuantizedDtype, QuantizedTensor,
    TensorRef,
};
use std::io::Write;

/// Tensors with up to this many numbers are shown number by number.
const FEW: usize = 64;

/// A tensor, and its name if it comes from a file.
struct Input {
    name: Option<String>,
    values: Vec<f32>,
    shape: Vec<usize>,
}

impl Input {
    fn tensor(&self) -> Result<TensorRef<'_>, AffineError> {
        TensorRef::new(&self.values, &self.shape)
    }

    fn is_small(&self) -> bool {
        self.values.len() <= FEW
    }
}

/// The tensor, quantised with one scheme.
struct Quantized {
    scheme: QScheme,
    tensor: QuantizedTensor,
}

impl Quantized {
    /// The scheme's name, without `torch.`.
    fn name(&self) -> String {
        self.scheme
            .to_string()
            .trim_start_matches("torch.")
            .to_owned()
    }
}

pub(crate) fn affine(args: &AffineArgs) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if args.notebook {
        out.write_all(notebook::text()?.as_bytes())?;
        return Ok(());
    }

    let input = read(args)?;
    let results = quantize(&input, args).map_err(|error| explain(error, &input))?;
    let text = if args.json {
        report::json(&input, &results)?
    } else {
        report::text(&input, &results)?
    };

    out.write_all(text.as_bytes())?;
    if let Some(path) = &args.plot {
        let svg = if input.is_small() {
            number_line::draw(&input, &results)?
        } else {
            histogram::draw(&input, &results)?
        };

        picture::write(&svg, path).with_context(|| format!("cannot write {}", path.display()))?;
    }

    Ok(())
}

/// Adds the tensor's name to an error. An error that other arguments avoid is a usage error.
fn explain(error: AffineError, input: &Input) -> anyhow::Error {
    match (&error, &input.name) {
        (AffineError::AxisOutOfRange { .. }, _) | (AffineError::NotFinite { .. }, None) => {
            UsageError(error.to_string()).into()
        }
        (_, Some(name)) => {
            anyhow::Error::from(error).context(format!("{name} cannot be quantised"))
        }
        (_, None) => error.into(),
    }
}

fn read(args: &AffineArgs) -> anyhow::Result<Input> {
    let Some(tensor) = &args.tensor else {
        let Numbers { values, shape } = Numbers::read(&args.values)?;
        return Ok(Input {
            name: None,
            values,
            shape,
        });
    };

    let checkpoint = match (&args.file, &args.model) {
        (Some(file), _) if file.extension().is_some_and(|extension| extension == "bin") => {
            Checkpoint::open_pickle(std::slice::from_ref(file), None)?
        }
        (Some(file), _) => Checkpoint::open_safetensors(std::slice::from_ref(file), None)?,
        (None, Some(model)) => {
            let hub = hub_config(args.offline);
            llm_int8::load::checkpoint(model, &hub, &Downloads::new(&hub))
                .map_err(|error| explain_load(error, model))?
        }
        (None, None) => return Err(UsageError("--tensor needs --file or --model".into()).into()),
    };
    let tensor = float_tensor(&checkpoint.find(tensor)?, FloatDtype::F32, false)?;
    let shape = tensor.dims().to_vec();

    Ok(Input {
        name: args.tensor.clone(),
        values: tensor.flatten_all()?.to_vec1()?,
        shape,
    })
}

fn quantize(input: &Input, args: &AffineArgs) -> Result<Vec<Quantized>, AffineError> {
    let x = input.tensor()?;
    x.min_max()?; // rejects empty tensors, which observers ignore
    let dtype = match args.dtype {
        AffineDtype::Qint8 => QuantizedDtype::Qint8,
        AffineDtype::Quint8 => QuantizedDtype::Quint8,
    };
    let chosen = |scheme| args.scheme == Scheme::All || args.scheme == scheme;
    let affine = chosen(Scheme::PerTensorAffine);
    let symmetric = chosen(Scheme::PerTensorSymmetric);

    let mut schemes = Vec::new();
    schemes.extend(affine.then_some((ObserverKind::MinMax, QScheme::PerTensorAffine)));
    schemes.extend(symmetric.then_some((ObserverKind::MinMax, QScheme::PerTensorSymmetric)));
    if let Some(axis) = args.per_channel {
        let kind = ObserverKind::PerChannelMinMax(axis);
        schemes.extend(affine.then_some((kind, QScheme::PerChannelAffine)));
        schemes.extend(symmetric.then_some((kind, QScheme::PerChannelSymmetric)));
    }

    let quantized = |(kind, scheme)| {
        let mut observer = ObserverConfig::new(kind, dtype, scheme).build()?;
        observer.observe(x)?;
        Ok(Quantized {
            scheme,
            tensor: QuantizedTensor::quantize(x, dtype, &observer.qparams()?)?,
        })
    };
    schemes.into_iter().map(quantized).collect()
}
