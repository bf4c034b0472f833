//! A tensor of a checkpoint: its bytes, and its elements as numbers.

use crate::error::{NnError, Result};
use bytemuck::Pod;
use safetensors::Dtype;
use std::borrow::Cow;

/// A tensor as stored in its file.
#[derive(Debug)]
pub struct TensorView<'a> {
    /// Its name in the checkpoint.
    pub name: String,
    /// The file it is in, for error messages.
    pub file: &'a str,
    /// Its dtype.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: &'a [usize],
    /// Its bytes, little-endian, row-major.
    pub data: Cow<'a, [u8]>,
}

/// The float dtypes that can be read, for error messages.
pub(super) const FLOATS: &str = "F16, BF16, F32 or F64";

/// Whether a dtype is one of the float dtypes that can be read.
pub fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
}

impl TensorView<'_> {
    /// The elements: borrowed if the bytes are aligned, else copied (files written before
    /// safetensors 0.3.2 may be unaligned).
    ///
    /// # Errors
    /// [`NnError::MalformedFile`] if the length is not a multiple of the element size.
    pub fn elements<T: Pod>(&self) -> Result<Cow<'_, [T]>> {
        match bytemuck::try_cast_slice::<u8, T>(&self.data) {
            Ok(elements) => Ok(Cow::Borrowed(elements)),
            Err(bytemuck::PodCastError::TargetAlignmentGreaterAndInputNotAligned) => Ok(
                Cow::Owned(bytemuck::allocation::pod_collect_to_vec(&self.data)),
            ),
            Err(cause) => Err(NnError::MalformedFile {
                file: self.file.to_owned(),
                reason: format!(
                    "tensor `{}` has {} bytes: {cause}",
                    self.name,
                    self.data.len()
                ),
            }),
        }
    }

    /// Checks the shape.
    ///
    /// # Errors
    /// [`NnError::WrongShape`] if it is not the expected one.
    pub fn check_shape(&self, expected: &[usize]) -> Result<()> {
        if self.shape == expected {
            return Ok(());
        }

        Err(NnError::WrongShape {
            name: self.name.clone(),
            file: self.file.to_owned(),
            found: self.shape.to_vec(),
            expected: expected.to_vec(),
        })
    }

    pub(super) fn wrong_dtype(&self, expected: &'static str) -> NnError {
        NnError::WrongDtype {
            name: self.name.clone(),
            file: self.file.to_owned(),
            found: format!("{:?}", self.dtype),
            expected,
        }
    }
}
