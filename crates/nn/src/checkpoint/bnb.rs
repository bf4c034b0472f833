//! The state of an int8 layer as bitsandbytes saves it: `weight` I8, `SCB` F32 and `weight_format`
//! U8 (0 = row) beside an optional `bias`.

use super::writer::{NewTensor, write_safetensors};
use super::{Checkpoint, Foreign, float_tensor};
use crate::dtype::FloatDtype;
use crate::error::{NnError, Result};
use crate::linear::{CodeMemory, Int8Config, Int8Linear, Int8Weight};
use crate::parameter::FloatParameter;
use bytemuck::cast_slice;
use candle_core::{DType, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;
use std::path::Path;

/// Reads codes and absmax of the layer `prefix`, of shape `[out, in]`, the codes into `memory`.
///
/// # Errors
/// [`NnError::QuantisationState`] where `SCB` is missing, of the wrong length or not finite, where
/// the layout is not `row`, or where `weight` is a float beside an `SCB`; what reading a tensor
/// gives.
pub fn read_linear_state(
    checkpoint: &Checkpoint,
    prefix: &str,
    shape: [usize; 2],
    memory: &mut CodeMemory,
) -> Result<Int8Weight> {
    let error = |reason: String| NnError::QuantisationState {
        layer: prefix.to_owned(),
        reason,
    };
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
        return Err(error(
            "missing quantisation component `SCB` beside the I8 weight".into(),
        ));
    }
    let scb = checkpoint.tensor(&format!("{prefix}.SCB"))?;
    if scb.dtype != Dtype::F32 {
        return Err(error(format!("`SCB` is {:?}; F32 was expected", scb.dtype)));
    }
    check_format(checkpoint, prefix)?;
    Int8Weight::from_codes_in(
        memory,
        &weight.elements::<i8>()?,
        &scb.elements::<f32>()?,
        shape,
    )
    .map_err(|cause| match cause {
        NnError::QuantisationState { reason, .. } => error(reason),
        other => other,
    })
}

/// Only the row layout can be read; the three others were made for GPUs of 2022.
fn check_format(checkpoint: &Checkpoint, prefix: &str) -> Result<()> {
    let name = format!("{prefix}.weight_format");
    if let Some(Foreign::Text(layout)) = checkpoint.foreign(&name) {
        // Before 0.43.1 it was a text in a pickle.
        let reason = format!("only 'row' weight format is supported, got {layout}");
        let error = NnError::QuantisationState {
            layer: prefix.to_owned(),
            reason,
        };
        return if layout == "row" { Ok(()) } else { Err(error) };
    }
    if checkpoint.entry(&name).is_none() {
        return Ok(());
    }
    let format = checkpoint.tensor(&name)?;
    let reason = match (format.dtype, format.data.first()) {
        (Dtype::U8, Some(0)) => return Ok(()),
        (Dtype::U8, Some(1)) => "only 'row' weight format is supported, got col32".into(),
        (Dtype::U8, Some(2)) => "only 'row' weight format is supported, got col_turing".into(),
        (Dtype::U8, Some(3)) => "only 'row' weight format is supported, got col_ampere".into(),
        (dtype, first) => {
            format!("`weight_format` is {dtype:?} {first:?}; U8 0 (row) was expected")
        }
    };
    Err(NnError::QuantisationState {
        layer: prefix.to_owned(),
        reason,
    })
}

impl Int8Linear {
    /// Reads the layer `prefix` of a checkpoint written by bitsandbytes or by
    /// [`write_linear_state`], its bias in f32.
    ///
    /// # Errors
    /// [`NnError::QuantisationState`] where `SCB` is missing, of the wrong length or not finite,
    /// where the layout is not `row`, or where `weight` is a float beside an `SCB`; what reading a
    /// tensor gives.
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        prefix: &str,
        config: Int8Config,
    ) -> Result<Self> {
        let name = format!("{prefix}.weight");
        let [out_features, in_features] = *checkpoint.tensor(&name)?.shape else {
            let reason = "`weight` is not a matrix".to_owned();
            return Err(NnError::QuantisationState {
                layer: prefix.to_owned(),
                reason,
            });
        };
        let weight = read_linear_state(
            checkpoint,
            prefix,
            [out_features, in_features],
            &mut CodeMemory::default(),
        )?;
        let bias = format!("{prefix}.bias");
        let bias = match checkpoint.entry(&bias) {
            Some(_) => Some(float_tensor(
                &checkpoint.tensor(&bias)?,
                FloatDtype::F32,
                false,
            )?),
            None => None,
        };
        Self::new(weight, bias, config)
    }
}

/// The tensors bitsandbytes saves of a layer: `weight` I8, `bias`, `SCB` F32, `weight_format` U8 0
/// (row).
///
/// # Errors
/// [`NnError::NotLoaded`].
pub fn linear_state<'a>(layer: &'a Int8Linear, prefix: &str) -> Result<Vec<NewTensor<'a>>> {
    let weight = layer.weight()?;
    let shape = [layer.out_features(), layer.in_features()];
    let name = |part: &str| format!("{prefix}.{part}");
    let mut tensors = vec![NewTensor::new(name("weight"), Dtype::I8, &shape, || {
        Ok(cast_slice(weight.codes()).into())
    })];
    if let Some(bias) = layer.bias() {
        tensors.push(float_state(bias, name("bias"), false));
    }
    tensors.push(NewTensor::new(name("SCB"), Dtype::F32, &shape[..1], || {
        Ok(cast_slice(weight.absmax()).into())
    }));
    tensors.push(NewTensor::new(
        name("weight_format"),
        Dtype::U8,
        &[],
        || Ok((&[0u8]).into()),
    ));
    Ok(tensors)
}

/// A float parameter to be written; with `transposed`, `[out, in]` becomes `[in, out]` (`Conv1D`).
pub fn float_state(parameter: &FloatParameter, name: String, transposed: bool) -> NewTensor<'_> {
    let mut shape = parameter.shape().to_vec();
    if transposed {
        shape.reverse();
    }
    NewTensor::new(name, parameter.dtype().stored(), &shape, move || {
        Ok(float_bytes(parameter.tensor()?, transposed)?.into())
    })
}

/// The bytes of a float tensor, row-major, after transposing it where that is asked for.
pub fn float_bytes(tensor: &Tensor, transposed: bool) -> Result<Vec<u8>> {
    let tensor = if transposed {
        tensor.t()?
    } else {
        tensor.clone()
    };
    let flat = tensor.flatten_all()?;
    Ok(match tensor.dtype() {
        DType::F16 => cast_slice(&flat.to_vec1::<f16>()?).to_vec(),
        DType::BF16 => cast_slice(&flat.to_vec1::<bf16>()?).to_vec(),
        _ => cast_slice(&flat.to_vec1::<f32>()?).to_vec(),
    })
}

/// Writes one layer as bitsandbytes would, into a safetensors file of its own: beside the target,
/// synced, then renamed, so that no half-written file is ever there under its name.
///
/// # Errors
/// [`NnError::Write`]; [`NnError::NotLoaded`].
pub fn write_linear_state(layer: &Int8Linear, prefix: &str, path: &Path) -> Result<()> {
    write_safetensors(path, &linear_state(layer, prefix)?)
}
