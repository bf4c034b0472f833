//! The state of an int8 layer as bitsandbytes saves it: `weight` (I8 codes), `SCB` (F32 absmax of
//! each row), `weight_format` (U8, 0 = row-major) and an optional `bias`.

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

/// What bitsandbytes calls the absmax of a weight's rows.
pub(crate) const ABSMAX: &str = "SCB";

/// Reads the int8 weight of the layer `prefix`, of `shape` `[out, in]`. Its codes go into `memory`.
///
/// # Errors
/// [`NnError::QuantisationState`] if `SCB` is missing, of the wrong length or not finite, if the
/// layout is not `row`, or if `weight` is a float; the errors of [`Checkpoint::tensor`].
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

    check_layout(checkpoint, prefix)?;
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

/// Checks that the codes of the layer `prefix` are row-major. The three other layouts were for the
/// int8 tensor cores of GPUs of 2022.
///
/// # Errors
/// [`NnError::QuantisationState`] if `weight_format` names another layout.
pub fn check_layout(checkpoint: &Checkpoint, prefix: &str) -> Result<()> {
    let error = |reason: String| NnError::QuantisationState {
        layer: prefix.to_owned(),
        reason,
    };
    let unsupported = |layout: &str| {
        error(format!(
            "only 'row' weight format is supported, got {layout}"
        ))
    };

    let name = format!("{prefix}.weight_format");
    // Before 0.43.1 it was a string in a pickle.
    if let Some(Foreign::Text(layout)) = checkpoint.foreign(&name) {
        return match layout.as_str() {
            "row" => Ok(()),
            other => Err(unsupported(other)),
        };
    }

    if checkpoint.entry(&name).is_none() {
        return Ok(());
    }

    let format = checkpoint.tensor(&name)?;
    match (format.dtype, format.data.first()) {
        (Dtype::U8, Some(0)) => Ok(()),
        (Dtype::U8, Some(1)) => Err(unsupported("col32")),
        (Dtype::U8, Some(2)) => Err(unsupported("col_turing")),
        (Dtype::U8, Some(3)) => Err(unsupported("col_ampere")),
        (dtype, first) => Err(error(format!(
            "`weight_format` is {dtype:?} {first:?}; U8 0 (row) was expected"
        ))),
    }
}

impl Int8Linear {
    /// Reads the layer `prefix` from a checkpoint written by bitsandbytes or by
    /// [`write_linear_state`]. The bias is converted to f32.
    ///
    /// # Errors
    /// [`NnError::QuantisationState`] if `SCB` is missing, of the wrong length or not finite, if
    /// the layout is not `row`, or if `weight` is a float; the errors of [`Checkpoint::tensor`].
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

/// The tensors that bitsandbytes saves for a layer: `weight`, `bias` (if there is one), `SCB` and
/// `weight_format`.
///
/// # Errors
/// [`NnError::NotLoaded`] if the layer has no weight.
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

/// A float parameter as a tensor to write. With `transposed`, `[out, in]` becomes `[in, out]`
/// (`Conv1D`).
pub fn float_state(parameter: &FloatParameter, name: String, transposed: bool) -> NewTensor<'_> {
    let mut shape = parameter.shape().to_vec();
    if transposed {
        shape.reverse();
    }

    NewTensor::new(name, parameter.dtype().stored(), &shape, move || {
        Ok(float_bytes(parameter.tensor()?, transposed)?.into())
    })
}

/// The bytes of a float tensor, row-major; with `transposed`, of its transpose.
///
/// # Errors
/// [`NnError::Candle`] if it is not a matrix and `transposed` is set.
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

/// Writes one layer in bitsandbytes' format to a safetensors file. The file is written under a
/// temporary name, synced and renamed, so `path` never holds a partial file.
///
/// # Errors
/// [`NnError::Write`], [`NnError::DiskFull`]; [`NnError::NotLoaded`] if the layer has no values.
pub fn write_linear_state(layer: &Int8Linear, prefix: &str, path: &Path) -> Result<()> {
    write_safetensors(path, &linear_state(layer, prefix)?)
}
