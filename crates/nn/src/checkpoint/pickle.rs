//! `pytorch_model.bin` through candle's reader, which understands the opcodes that describe tensors
//! and executes nothing.

use super::Entry;
use crate::error::{NnError, Result};
use candle_core::pickle::{PthTensors, TensorInfo};
use candle_core::{DType, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;
use std::path::Path;

/// An opened `.bin` file.
pub(super) struct PickleFile {
    tensors: PthTensors,
}

impl std::fmt::Debug for PickleFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PickleFile").field("tensors", &self.tensors.tensor_infos().len()).finish()
    }
}

impl PickleFile {
    /// Reads the description of the tensors.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<(String, Entry)>)> {
        let file = path.display().to_string();
        let length =
            std::fs::metadata(path).map_err(|source| NnError::Read { path: path.to_owned(), source })?.len();
        let tensors = PthTensors::new(path, None).map_err(|cause| NnError::MalformedFile {
            file: file.clone(),
            reason: format!("it cannot be read as a PyTorch zip checkpoint ({cause}); files of PyTorch before 1.6 must be saved again"),
        })?;
        if tensors.tensor_infos().is_empty() {
            return Err(NnError::MalformedFile { file, reason: "it holds no tensors".into() });
        }
        let entries = tensors
            .tensor_infos()
            .iter()
            .map(|(name, info)| entry(&file, name, info, length))
            .collect::<Result<_>>()?;
        Ok((Self { tensors }, entries))
    }

    /// The bytes of a tensor, row-major.
    pub(super) fn read(&self, file: &str, name: &str) -> Result<Vec<u8>> {
        let malformed = |reason: String| NnError::MalformedFile { file: file.to_owned(), reason };
        let tensor =
            self.tensors.get(name).map_err(|cause| malformed(format!("tensor `{name}`: {cause}")))?;
        let tensor = tensor.ok_or_else(|| malformed(format!("tensor `{name}` is not there")))?;
        bytes(&tensor).map_err(|cause| malformed(format!("tensor `{name}`: {cause}")))
    }
}

fn entry(file: &str, name: &str, info: &TensorInfo, file_len: u64) -> Result<(String, Entry)> {
    let error = |reason: String| Err(NnError::MalformedFile { file: file.to_owned(), reason });
    let Some(dtype) = stored_dtype(info.dtype) else {
        return error(format!("tensor `{name}` has dtype {:?}, which is not read here", info.dtype));
    };
    let shape = info.layout.dims().to_vec();
    let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let bytes = elements.and_then(|n| n.checked_mul(info.dtype.size_in_bytes()));
    // The data stand uncompressed in the file: a larger tensor is a lie, found before allocating.
    match bytes {
        Some(bytes) if bytes as u64 <= file_len => {
            Ok((name.to_owned(), Entry { file: 0, dtype, shape, range: (0, bytes) }))
        }
        _ => error(format!("tensor `{name}` of shape {shape:?} cannot fit into {file_len} bytes")),
    }
}

fn stored_dtype(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::U8 => Dtype::U8,
        DType::U32 => Dtype::U32,
        DType::I64 => Dtype::I64,
        _ => return None,
    })
}

fn bytes(tensor: &Tensor) -> candle_core::Result<Vec<u8>> {
    let flat = tensor.flatten_all()?;
    Ok(match tensor.dtype() {
        DType::F16 => bytemuck::cast_slice(&flat.to_vec1::<f16>()?).to_vec(),
        DType::BF16 => bytemuck::cast_slice(&flat.to_vec1::<bf16>()?).to_vec(),
        DType::F32 => bytemuck::cast_slice(&flat.to_vec1::<f32>()?).to_vec(),
        DType::F64 => bytemuck::cast_slice(&flat.to_vec1::<f64>()?).to_vec(),
        DType::U32 => bytemuck::cast_slice(&flat.to_vec1::<u32>()?).to_vec(),
        DType::I64 => bytemuck::cast_slice(&flat.to_vec1::<i64>()?).to_vec(),
        _ => flat.to_vec1::<u8>()?,
    })
}
