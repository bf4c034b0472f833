//! GGUF files, parsed by candle: their metadata, and their tensors, which are dequantised one by
//! one when they are read.

mod change;
mod scan;

pub use change::GgufChange;

use super::mmap::FileBytes;
use super::{Checkpoint, Entry, Source};
use crate::error::{NnError, Result};
use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use change::{changed, rows_divide_among};
use safetensors::Dtype;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

/// An opened GGUF file.
#[derive(Debug)]
pub struct GgufFile {
    name: String,
    bytes: FileBytes,
    content: Content,
}

impl GgufFile {
    /// Opens a file and reads its header. The place of every tensor is checked against the length
    /// of the file.
    ///
    /// # Errors
    /// [`NnError::Read`]; [`NnError::MalformedFile`] for a damaged header or a tensor outside the
    /// file; [`NnError::UnsupportedFile`] for an unsupported tensor type, and for one part of a
    /// split model.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = FileBytes::map_checkpoint(path)?;
        let malformed = |reason: String| NnError::MalformedFile {
            file: name.clone(),
            reason,
        };
        let unsupported = |reason: String| NnError::UnsupportedFile {
            file: name.clone(),
            reason,
        };

        if let Some(reason) = scan::fault(&bytes) {
            return Err(malformed(reason));
        }
        let content = Content::read(&mut Cursor::new(&bytes[..])).map_err(|cause| {
            let cause = cause.to_string();
            match unsupported_type(&cause) {
                Some(reason) => unsupported(reason),
                None => malformed(format!("it cannot be read as GGUF ({cause})")),
            }
        })?;

        let part = |key: &str| content.metadata.get(key).and_then(integer);
        if let Some(count) = part("split.count").filter(|count| *count > 1) {
            let number = part("split.no").map_or(1, |number| number.saturating_add(1));
            return Err(unsupported(format!(
                "it is file {number} of {count} of a split model, and split models are not supported; merge the files \
                 first: `llama-gguf-split --merge FIRST_FILE NEW_FILE` (llama.cpp)"
            )));
        }

        for (tensor, info) in &content.tensor_infos {
            let end = end_of_data(info, content.tensor_data_offset);
            if end.is_none_or(|end| end > bytes.len() as u64) {
                let shape = info.shape.dims();
                return Err(malformed(format!(
                    "tensor `{tensor}` of shape {shape:?} does not lie within its {} bytes",
                    bytes.len()
                )));
            }
        }

        Ok(Self {
            name,
            bytes,
            content,
        })
    }

    /// The file's path, for error messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names of the tensors.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.content.tensor_infos.keys().map(String::as_str)
    }

    /// A string in the metadata.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.content.metadata.get(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// An integer in the metadata; the first item if it is a list.
    pub fn integer(&self, key: &str) -> Option<i64> {
        self.content
            .metadata
            .get(key)
            .and_then(|value| match value {
                Value::Array(values) => values.first().and_then(integer),
                value => integer(value),
            })
    }

    /// A number in the metadata.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.content.metadata.get(key).and_then(number)
    }

    /// A flag in the metadata.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.content
            .metadata
            .get(key)
            .and_then(|value| value.to_bool().ok())
    }

    /// A list of strings in the metadata.
    pub fn strings(&self, key: &str) -> Option<Vec<&str>> {
        let list = self.content.metadata.get(key)?.to_vec().ok()?;
        list.iter()
            .map(|value| value.to_string().ok().map(String::as_str))
            .collect()
    }

    /// A list of numbers in the metadata.
    pub fn numbers(&self, key: &str) -> Option<Vec<f64>> {
        self.content
            .metadata
            .get(key)?
            .to_vec()
            .ok()?
            .iter()
            .map(number)
            .collect()
    }

    /// The values of a tensor in f32, dequantised, in the order of the file.
    ///
    /// # Errors
    /// [`NnError::MalformedFile`] if candle cannot read it.
    pub fn values(&self, tensor: &str) -> Result<Vec<f32>> {
        let malformed = |cause: candle_core::Error| NnError::MalformedFile {
            file: self.name.clone(),
            reason: format!("tensor `{tensor}`: {cause}"),
        };
        let read = self
            .content
            .tensor(&mut Cursor::new(&self.bytes[..]), tensor, &Device::Cpu);
        let values = read.and_then(|quantised| quantised.dequantize(&Device::Cpu));

        values
            .and_then(|values| values.flatten_all()?.to_vec1())
            .map_err(malformed)
    }
}

/// Where a tensor's data ends in the file; `None` if that overflows or the tensor is not a whole
/// number of quantisation blocks.
fn end_of_data(info: &TensorInfo, data_offset: u64) -> Option<u64> {
    let count = info
        .shape
        .dims()
        .iter()
        .try_fold(1usize, |n, dim| n.checked_mul(*dim))?;
    let block = info.ggml_dtype.block_size();
    if !count.is_multiple_of(block) {
        return None;
    }

    let size = (count / block).checked_mul(info.ggml_dtype.type_size())?;
    data_offset
        .checked_add(info.offset)?
        .checked_add(size as u64)
}

/// The reason to report if candle's error is about a tensor type that it does not know. The error
/// contains ggml's number of the type.
fn unsupported_type(cause: &str) -> Option<String> {
    let (_, number) = cause.split_once("unknown dtype for tensor ")?;
    let digits = number
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(number.len());
    let number: u32 = number[..digits].parse().ok()?;
    let name = match OTHER_TYPES.iter().find(|(other, _)| *other == number) {
        Some((_, name)) => format!("type {name}"),
        None => format!("type number {number} of ggml"),
    };

    Some(format!(
        "it holds tensors of {name}, which is not supported; use a file of one of the types F32, F16, BF16, Q4_0, \
         Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K (in names of files also Q4_K_M and the like)"
    ))
}

/// Types of `ggml.h` that candle does not read.
const OTHER_TYPES: &[(u32, &str)] = &[
    (4, "Q4_2"),
    (5, "Q4_3"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::I8(x) => Some(i64::from(*x)),
        Value::I16(x) => Some(i64::from(*x)),
        Value::I32(x) => Some(i64::from(*x)),
        Value::I64(x) => Some(*x),
        value => value.to_u64().ok().and_then(|x| i64::try_from(x).ok()),
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        // Via the shortest decimal: 1e-05 stays 1e-05 as f64.
        Value::F32(x) => x.to_string().parse().ok(),
        Value::F64(x) => Some(*x),
        value => integer(value).map(|x| x as f64),
    }
}

/// The tensors of a GGUF file by their names in the original checkpoint.
#[derive(Debug)]
pub(super) struct GgufTensors {
    file: GgufFile,
    /// Checkpoint name → name in the file, and the change to undo.
    names: BTreeMap<String, (String, GgufChange)>,
}

impl GgufTensors {
    /// The bytes of a tensor, row-major.
    pub(super) fn read(&self, entry: &Entry, name: &str) -> Result<Cow<'_, [u8]>> {
        let Some((stored, change)) = self.names.get(name) else {
            return Err(NnError::NotLoaded);
        };

        if *change == GgufChange::None && entry.range.1 > entry.range.0 {
            return Ok(Cow::Borrowed(
                &self.file.bytes[entry.range.0..entry.range.1],
            ));
        }

        let values = changed(self.file.values(stored)?, &entry.shape, *change);
        Ok(Cow::Owned(bytemuck::cast_slice(&values).to_vec()))
    }
}

impl Checkpoint {
    /// A checkpoint of a GGUF file's tensors. `rename` maps a name in the file to the name in the
    /// original checkpoint and the change to undo, or `None` to leave the tensor out. Quantised
    /// tensors become F32.
    ///
    /// # Errors
    /// [`NnError::MalformedFile`] if the rows of a permuted tensor cannot be divided among its
    /// heads, or two tensors get the same name.
    pub fn from_gguf(
        file: GgufFile,
        rename: impl Fn(&str) -> Option<(String, GgufChange)>,
    ) -> Result<Self> {
        let malformed = |reason: String| NnError::MalformedFile {
            file: file.name.clone(),
            reason,
        };
        let mut entries = Vec::new();
        let mut names = BTreeMap::new();

        for (stored, info) in &file.content.tensor_infos {
            let Some((name, change)) = rename(stored) else {
                continue;
            };

            let entry = entry(info, file.content.tensor_data_offset, change);
            if let GgufChange::Unpermute { heads } = change
                && !rows_divide_among(heads, &entry.shape)
            {
                return Err(malformed(format!(
                    "the rows of tensor `{stored}` {:?} cannot be divided among {heads} heads",
                    entry.shape
                )));
            }
            entries.push((name.clone(), entry));
            if let Some((other, _)) = names.insert(name, (stored.clone(), change)) {
                return Err(malformed(format!(
                    "tensors `{stored}` and `{other}` are the same"
                )));
            }
        }

        let mut checkpoint = Self::empty();
        checkpoint.add(
            file.name.clone(),
            Source::Gguf(GgufTensors { file, names }),
            entries,
        )?;

        Ok(checkpoint)
    }
}

/// The checkpoint entry of a tensor. Its range is empty unless the bytes can be used unchanged.
fn entry(info: &TensorInfo, data_offset: u64, change: GgufChange) -> Entry {
    let mut shape = info.shape.dims().to_vec();
    if change == GgufChange::Transpose {
        shape.reverse();
    }

    let start = (data_offset + info.offset) as usize;
    let blocks = info.shape.elem_count() / info.ggml_dtype.block_size();
    let in_file = (start, start + blocks * info.ggml_dtype.type_size());
    let (dtype, range) = match (info.ggml_dtype, change) {
        (GgmlDType::F16, GgufChange::None) => (Dtype::F16, in_file),
        (GgmlDType::BF16, GgufChange::None) => (Dtype::BF16, in_file),
        (GgmlDType::F32, GgufChange::None) => (Dtype::F32, in_file),
        _ => (Dtype::F32, (0, 0)),
    };

    Entry {
        file: 0,
        dtype,
        shape,
        range,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with these keys (u16 each) and one tensor of 32 values of a ggml type.
    fn header(keys: &[(&str, u16)], tensor_type: u32) -> Vec<u8> {
        let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(1u64.to_le_bytes());
        bytes.extend((keys.len() as u64).to_le_bytes());

        for (key, value) in keys {
            bytes.extend(text(key));
            bytes.extend(2u32.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }

        bytes.extend(text("token_embd.weight"));
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(32u64.to_le_bytes());
        bytes.extend(tensor_type.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes.extend([0; 256]);

        bytes
    }

    fn opened(bytes: &[u8]) -> Result<GgufFile> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        GgufFile::open(&path)
    }

    #[test]
    fn unsupported_types_are_named_and_not_reported_as_damage() {
        assert!(opened(&header(&[], 0)).is_ok());
        for (number, name) in [
            (20, "type IQ4_NL"),
            (34, "type TQ1_0"),
            (39, "type MXFP4"),
            (28, "type F64"),
            (99, "number 99"),
        ] {
            let error = opened(&header(&[], number)).unwrap_err().to_string();
            assert!(
                error.contains(name) && error.contains("Q4_K") && error.contains("model.gguf"),
                "{error}"
            );
            assert!(!error.contains("download it again"), "{error}");
        }
    }

    /// candle divides by the alignment, and takes 32 bytes for every byte of a list.
    #[test]
    fn headers_that_candle_must_not_see_are_refused() {
        assert!(opened(&header(&[("general.alignment", 64)], 0)).is_ok());
        for key in ["general.alignment", "general.alignment\0\0"] {
            let error = opened(&header(&[(key, 0)], 0)).unwrap_err().to_string();
            assert!(error.contains("multiples of 0"), "{error}");
        }

        let list = |count: u64, present: usize| {
            let mut bytes = b"GGUF\x03\0\0\0".to_vec();
            bytes.extend([0u64, 1, 1].map(u64::to_le_bytes).concat());
            bytes.push(b'x');
            bytes.extend([9u32, 0].map(u32::to_le_bytes).concat());
            bytes.extend(count.to_le_bytes());
            bytes.resize(bytes.len() + present, 1);
            opened(&bytes)
        };
        assert!(list(1000, 1000).is_ok());
        let error = list(1 << 23, 1 << 23).unwrap_err().to_string();
        assert!(error.contains("more than 8388608 values"), "{error}");
        for count in [1 << 20, 1 << 61, u64::MAX] {
            let error = list(count, 1000).unwrap_err().to_string();
            assert!(error.contains("cannot be read as GGUF"), "{error}");
        }
    }

    #[test]
    fn one_part_of_a_split_model_is_an_error_with_a_remedy() {
        let error = opened(&header(&[("split.no", 0), ("split.count", 3)], 0))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("file 1 of 3") && error.contains("llama-gguf-split --merge"),
            "{error}"
        );

        let error = opened(&header(&[("split.no", 2), ("split.count", 3)], 0))
            .unwrap_err()
            .to_string();
        assert!(error.contains("file 3 of 3"), "{error}");
        assert!(
            opened(&header(&[("split.no", 0), ("split.count", 1)], 0)).is_ok(),
            "a merged file is accepted"
        );
    }
}
