//! A float parameter: declared by shape and dtype, filled later from the checkpoint.

use crate::dtype::FloatDtype;
use crate::error::{NnError, Result};
use crate::module::Parameter;
use candle_core::{CpuStorage, DType, Storage, Tensor};
use half::slice::HalfFloatSliceExt;
use std::sync::{Arc, OnceLock};

/// A float tensor of a layer.
///
/// A layer is first declared, so that a model can be inspected from `config.json` alone (like
/// PyTorch's meta device), and filled once its tensor has been read.
#[derive(Debug, Clone)]
pub struct FloatParameter {
    shape: Vec<usize>,
    dtype: FloatDtype,
    tensor: Option<Tensor>,
    /// The values in f32, converted at first use. Only for small parameters.
    floats: OnceLock<Arc<[f32]>>,
}

impl FloatParameter {
    /// A parameter without values.
    pub fn declared(shape: impl Into<Vec<usize>>, dtype: FloatDtype) -> Self {
        Self {
            shape: shape.into(),
            dtype,
            tensor: None,
            floats: OnceLock::new(),
        }
    }

    /// A parameter with values.
    ///
    /// # Errors
    /// [`NnError::Input`] if the tensor is not f16, bf16 or f32; [`NnError::Candle`] if it cannot
    /// be made contiguous.
    pub fn loaded(tensor: Tensor) -> Result<Self> {
        let dtype = FloatDtype::from_candle(tensor.dtype()).ok_or_else(|| NnError::Input {
            layer: "a parameter".into(),
            reason: format!(
                "its values are {:?}; f16, bf16 or f32 is needed",
                tensor.dtype()
            ),
        })?;

        let shape = tensor.dims().to_vec();
        Ok(Self {
            shape,
            dtype,
            tensor: Some(tensor.contiguous()?),
            floats: OnceLock::new(),
        })
    }

    /// Sets the values of a declared parameter, and its dtype to theirs.
    ///
    /// # Errors
    /// [`NnError::Input`] if the shape is not the declared one.
    pub fn fill(&mut self, tensor: Tensor) -> Result<()> {
        if tensor.dims() != self.shape {
            return Err(NnError::Input {
                layer: "a parameter".into(),
                reason: format!(
                    "its values are {:?}; {:?} is needed",
                    tensor.dims(),
                    self.shape
                ),
            });
        }

        *self = Self::loaded(tensor)?;
        Ok(())
    }

    /// The values.
    ///
    /// # Errors
    /// [`NnError::NotLoaded`] if it has not been filled.
    pub fn tensor(&self) -> Result<&Tensor> {
        self.tensor.as_ref().ok_or(NnError::NotLoaded)
    }

    /// The values converted to f32, in row-major order.
    ///
    /// # Errors
    /// [`NnError::NotLoaded`] if it has not been filled.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        let tensor = self.tensor()?;
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets())
        else {
            return Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?);
        };

        // half converts slices eight values at a time; candle's to_dtype goes element by element.
        let mut out = vec![0f32; end - start];
        match storage {
            CpuStorage::F16(values) => values[start..end].convert_to_f32_slice(&mut out),
            CpuStorage::BF16(values) => values[start..end].convert_to_f32_slice(&mut out),
            _ => out.copy_from_slice(&storage.as_slice::<f32>()?[start..end]),
        }

        Ok(out)
    }

    /// The values in f32, converted once and cached: for biases and norms, which are small and
    /// needed for every token.
    ///
    /// # Errors
    /// As [`FloatParameter::to_f32_vec`].
    pub fn f32_values(&self) -> Result<&[f32]> {
        if let Some(values) = self.floats.get() {
            return Ok(values);
        }
        let values = self.to_f32_vec()?.into();
        Ok(self.floats.get_or_init(|| values))
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The dtype of the values.
    pub fn dtype(&self) -> FloatDtype {
        self.dtype
    }

    /// Whether it has been filled.
    pub fn is_loaded(&self) -> bool {
        self.tensor.is_some()
    }

    /// Name, dtype and shape, for the module tree.
    pub fn describe(&self, name: &str) -> Parameter {
        Parameter::new(name, self.dtype.into(), self.shape.clone())
    }
}
