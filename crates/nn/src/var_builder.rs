//! A candle `VarBuilder` over any checkpoint, so that a candle model reads what candle alone
//! cannot: bitsandbytes' 8-bit files, shards with copies, strided `.bin` files, GGUF.

use crate::checkpoint::{ABSMAX, Checkpoint, float_tensor};
use crate::dtype::FloatDtype;
use crate::error::{NnError, Result};
use crate::linear::{CodeMemory, Int8Weight};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use llm_int8_kernels::Isa;
use safetensors::Dtype;
use std::sync::Arc;

/// A `VarBuilder` that reads a checkpoint's tensors one by one, as they are asked for.
///
/// A weight that bitsandbytes saved in 8 bit (`weight` in I8 beside `SCB`) is dequantised where a
/// float tensor is asked for, so every candle model loads such a checkpoint, with float memory and
/// speed. The constructors of [`drop_in`](crate::drop_in) ask for the codes instead and keep them:
/// no rounding, a quarter of the memory of f32.
///
/// ```
/// use candle_core::{DType, Device};
/// use llm_int8_nn::{checkpoint::Checkpoint, var_builder};
/// # let folder = tempfile::tempdir()?;
/// # let file = folder.path().join("model.safetensors");
/// # candle_core::safetensors::save(&std::collections::HashMap::from([("fc.weight", candle_core::Tensor::ones((2, 3), DType::F16, &Device::Cpu)?)]), &file)?;
/// let checkpoint = Checkpoint::open_safetensors(&[file], None)?;
/// let vb = var_builder::var_builder(checkpoint.into(), DType::F32, &Device::Cpu);
/// let weight = vb.pp("fc").get((2, 3), "weight")?;
/// assert_eq!(weight.dtype(), DType::F32);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn var_builder(
    checkpoint: Arc<Checkpoint>,
    dtype: DType,
    device: &Device,
) -> VarBuilder<'static> {
    VarBuilder::from_backend(
        Box::new(CheckpointBackend(checkpoint)),
        dtype,
        device.clone(),
    )
}

/// [`var_builder`]'s backend.
struct CheckpointBackend(Arc<Checkpoint>);

impl CheckpointBackend {
    /// The module of a weight that is stored as int8 codes.
    fn int8_module<'a>(&self, name: &'a str) -> Option<&'a str> {
        let module = name.strip_suffix(".weight")?;
        let is_codes = self.0.entry(name)?.dtype == Dtype::I8;
        (is_codes && self.0.entry(&format!("{module}.{ABSMAX}")).is_some()).then_some(module)
    }

    fn tensor(&self, name: &str, dtype: DType) -> Result<Tensor> {
        if let Some(module) = self.int8_module(name) {
            return self.int8_tensor(name, module, dtype);
        }

        let view = self.0.tensor(name)?;
        if crate::checkpoint::is_float(view.dtype) {
            let float = FloatDtype::from_candle(dtype).unwrap_or(FloatDtype::F32);
            return Ok(float_tensor(&view, float, false)?.to_dtype(dtype)?);
        }

        let stored = DType::try_from(view.dtype).map_err(NnError::from)?;
        let tensor = Tensor::from_raw_buffer(&view.data, stored, view.shape, &Device::Cpu)?;
        Ok(tensor.to_dtype(dtype)?)
    }

    /// The codes of an int8 weight as bytes where U8 is asked for, else its dequantised values.
    fn int8_tensor(&self, name: &str, module: &str, dtype: DType) -> Result<Tensor> {
        let view = self.0.tensor(name)?;
        let shape = view.shape.to_vec();
        if dtype == DType::U8 {
            return Ok(Tensor::from_raw_buffer(
                &view.data,
                DType::U8,
                &shape,
                &Device::Cpu,
            )?);
        }

        let [out_features, in_features] = shape[..] else {
            return Err(NnError::QuantisationState {
                layer: module.to_owned(),
                reason: format!("`weight` has shape {shape:?}; a matrix was expected"),
            });
        };
        let weight = crate::checkpoint::read_linear_state(
            &self.0,
            module,
            [out_features, in_features],
            &mut CodeMemory::default(),
        )?;
        let values = weight.dequantize(Isa::detect())?;
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
        Ok(tensor.to_dtype(dtype)?)
    }
}

impl SimpleBackend for CheckpointBackend {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _init: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() != &shape {
            return Err(candle_core::Error::UnexpectedShape {
                msg: format!("shape mismatch for {name} in {}", self.0.description()),
                expected: shape,
                got: tensor.shape().clone(),
            }
            .bt());
        }
        Ok(tensor)
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = self.tensor(name, dtype).map_err(NnError::into_candle)?;
        tensor.to_device(device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.entry(name).is_some()
    }
}

/// The codes and absmax of `weight` `[out, in]` under a `VarBuilder` that has them (that of
/// [`var_builder`]); none where it holds floats.
pub(crate) fn int8_weight(
    vb: &VarBuilder<'_>,
    shape: [usize; 2],
) -> candle_core::Result<Option<Int8Weight>> {
    if !vb.contains_tensor(ABSMAX) || !vb.contains_tensor("weight") {
        return Ok(None);
    }

    let codes = vb.get_unchecked_dtype("weight", DType::U8)?;
    let absmax = vb.get_unchecked_dtype(ABSMAX, DType::F32)?;
    let codes: Vec<u8> = codes.flatten_all()?.to_vec1()?;
    let absmax: Vec<f32> = absmax.flatten_all()?.to_vec1()?;
    let weight = Int8Weight::from_codes(bytemuck::cast_slice(&codes), &absmax, shape);

    weight.map(Some).map_err(|cause| {
        let cause = match cause {
            NnError::QuantisationState { reason, .. } => NnError::QuantisationState {
                layer: vb.prefix(),
                reason,
            },
            other => other,
        };
        cause.into_candle()
    })
}
