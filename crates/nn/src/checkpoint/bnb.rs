//! The state of an int8 layer as bitsandbytes saves it: `weight` I8, `SCB` F32 and `weight_format`
//! U8 (0 = row) beside an optional `bias`.

use super::{Checkpoint, float_tensor};
use crate::dtype::FloatDtype;
use crate::error::{NnError, Result};
use crate::linear::{Int8Config, Int8Linear, Int8Weight};
use bytemuck::cast_slice;
use candle_core::DType;
use safetensors::Dtype;
use safetensors::tensor::TensorView as Stored;
use std::path::Path;

/// Reads codes and absmax of the layer `prefix`, of shape `[out, in]`.
///
/// # Errors
/// [`NnError::QuantisationState`] where `SCB` is missing, of the wrong length or not finite, where the
/// layout is not `row`, or where `weight` is a float beside an `SCB`; what reading a tensor gives.
pub fn read_linear_state(checkpoint: &Checkpoint, prefix: &str, shape: [usize; 2]) -> Result<Int8Weight> {
    let error = |reason: String| NnError::QuantisationState { layer: prefix.to_owned(), reason };
    let weight = checkpoint.tensor(&format!("{prefix}.weight"))?;
    if weight.dtype != Dtype::I8 {
        return Err(error(format!(
            "there is an `SCB`, but `weight` is {:?} and not I8: a quantised state cannot be loaded into a \
             layer that is not quantised",
            weight.dtype
        )));
    }
    weight.check_shape(&shape)?;
    if checkpoint.entry(&format!("{prefix}.SCB")).is_none() {
        return Err(error("missing quantisation component `SCB` beside the I8 weight".into()));
    }
    let scb = checkpoint.tensor(&format!("{prefix}.SCB"))?;
    if scb.dtype != Dtype::F32 {
        return Err(error(format!("`SCB` is {:?}; F32 was expected", scb.dtype)));
    }
    check_format(checkpoint, prefix)?;
    Int8Weight::from_codes(weight.elements::<i8>()?.into_owned(), scb.elements::<f32>()?.into_owned(), shape)
        .map_err(|cause| match cause {
            NnError::QuantisationState { reason, .. } => error(reason),
            other => other,
        })
}

/// Only the row layout can be read; the three others were made for GPUs of 2022.
fn check_format(checkpoint: &Checkpoint, prefix: &str) -> Result<()> {
    let name = format!("{prefix}.weight_format");
    if checkpoint.entry(&name).is_none() {
        return Ok(());
    }
    let format = checkpoint.tensor(&name)?;
    let reason = match (format.dtype, format.data.first()) {
        (Dtype::U8, Some(0)) => return Ok(()),
        (Dtype::U8, Some(1)) => "only 'row' weight format is supported, got col32".into(),
        (Dtype::U8, Some(2)) => "only 'row' weight format is supported, got col_turing".into(),
        (Dtype::U8, Some(3)) => "only 'row' weight format is supported, got col_ampere".into(),
        (dtype, first) => format!("`weight_format` is {dtype:?} {first:?}; U8 0 (row) was expected"),
    };
    Err(NnError::QuantisationState { layer: prefix.to_owned(), reason })
}

impl Int8Linear {
    /// Reads the layer `prefix` of a checkpoint written by bitsandbytes or by [`write_linear_state`],
    /// its bias in f32.
    ///
    /// # Errors
    /// As [`read_linear_state`].
    pub fn from_checkpoint(checkpoint: &Checkpoint, prefix: &str, config: Int8Config) -> Result<Self> {
        let name = format!("{prefix}.weight");
        let [out_features, in_features] = *checkpoint.tensor(&name)?.shape else {
            let reason = "`weight` is not a matrix".to_owned();
            return Err(NnError::QuantisationState { layer: prefix.to_owned(), reason });
        };
        let weight = read_linear_state(checkpoint, prefix, [out_features, in_features])?;
        let bias = format!("{prefix}.bias");
        let bias = match checkpoint.entry(&bias) {
            Some(_) => Some(float_tensor(&checkpoint.tensor(&bias)?, FloatDtype::F32, false)?),
            None => None,
        };
        Self::new(weight, bias, config)
    }
}

/// Writes one layer as bitsandbytes would, into a safetensors file of its own: beside the target,
/// synced, then renamed, so that no half-written file is ever there under its name.
///
/// # Errors
/// [`NnError::Write`]; [`NnError::NotLoaded`].
pub fn write_linear_state(layer: &Int8Linear, prefix: &str, path: &Path) -> Result<()> {
    let weight = layer.weight()?;
    let shape = vec![layer.out_features(), layer.in_features()];
    let malformed = |cause: safetensors::SafeTensorError| NnError::Write {
        path: path.to_owned(),
        source: std::io::Error::other(cause.to_string()),
    };
    let view = |dtype, shape, bytes| Stored::new(dtype, shape, bytes).map_err(malformed);
    let bias = layer
        .bias()
        .map(|bias| bias.tensor()?.to_dtype(DType::F16)?.to_vec1::<half::f16>().map_err(NnError::from));
    let bias = bias.transpose()?;
    let mut tensors = vec![
        (format!("{prefix}.weight"), view(Dtype::I8, shape, cast_slice(weight.codes()))?),
        (format!("{prefix}.SCB"), view(Dtype::F32, vec![layer.out_features()], cast_slice(weight.absmax()))?),
        (format!("{prefix}.weight_format"), view(Dtype::U8, vec![], &[0u8])?),
    ];
    if let Some(bias) = &bias {
        tensors.push((format!("{prefix}.bias"), view(Dtype::F16, vec![bias.len()], cast_slice(bias))?));
    }
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(malformed)?;
    write_atomically(path, &bytes)
}

fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let error = |source| NnError::Write { path: path.to_owned(), source };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    let beside = path.with_file_name(name);
    let written = std::fs::File::create(&beside)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|cause| {
        // The error to report is the first one; a file that cannot be removed either says nothing new.
        let _ = std::fs::remove_file(&beside);
        error(cause)
    })
}
