//! GGUF files through candle's reader: what they say of the model, and their tensors, dequantised
//! one by one when they are asked for.

use super::mmap::FileBytes;
use super::{Checkpoint, Entry, Source};
use crate::error::{NnError, Result};
use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use safetensors::Dtype;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

/// What a tensor of a GGUF file must undergo to be what the model's checkpoint would hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufChange {
    /// Nothing.
    None,
    /// llama.cpp rotates neighbours where transformers rotates halves, so it permutes the rows of
    /// queries and keys of so many heads; this undoes it.
    Unpermute {
        /// Heads the rows belong to.
        heads: usize,
    },
    /// Rows become columns (GPT-2's `Conv1D`).
    Transpose,
    /// llama.cpp adds 1 to Gemma's norms.
    MinusOne,
}

/// An opened GGUF file.
#[derive(Debug)]
pub struct GgufFile {
    name: String,
    bytes: FileBytes,
    content: Content,
}

impl GgufFile {
    /// Reads the header: metadata and places of tensors, all checked against the file's length.
    ///
    /// # Errors
    /// [`NnError::Read`]; [`NnError::MalformedFile`] for a header that is damaged or lies;
    /// [`NnError::UnsupportedFile`] for tensors of types that are not read, and for a part of a
    /// split model.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = FileBytes::map_checkpoint(path)?;
        let malformed = |reason: String| NnError::MalformedFile {
            file: name.clone(),
            reason,
        };
        let content = Content::read(&mut Cursor::new(&bytes[..])).map_err(|cause| {
            let cause = cause.to_string();
            match unsupported_type(&cause) {
                Some(reason) => NnError::UnsupportedFile {
                    file: name.clone(),
                    reason,
                },
                None => malformed(format!("it cannot be read as GGUF ({cause})")),
            }
        })?;
        let part = |key: &str| content.metadata.get(key).and_then(integer);
        if let Some(count) = part("split.count").filter(|count| *count > 1) {
            let number = part("split.no").map_or(1, |number| number.saturating_add(1));
            let reason = format!(
                "it is file {number} of {count} of a split model, and split models are not supported; put the files \
                 together first: `llama-gguf-split --merge FIRST_FILE NEW_FILE` (llama.cpp)"
            );
            return Err(NnError::UnsupportedFile { file: name, reason });
        }
        for (tensor, info) in &content.tensor_infos {
            let place = || -> Option<bool> {
                let count = info
                    .shape
                    .dims()
                    .iter()
                    .try_fold(1usize, |n, dim| n.checked_mul(*dim))?;
                let blocks = count.is_multiple_of(info.ggml_dtype.block_size());
                let size = (count / info.ggml_dtype.block_size())
                    .checked_mul(info.ggml_dtype.type_size())?;
                let start = content.tensor_data_offset.checked_add(info.offset)?;
                Some(blocks && start.checked_add(size as u64)? <= bytes.len() as u64)
            };
            if place() != Some(true) {
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

    /// The file, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names of the tensors.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.content.tensor_infos.keys().map(String::as_str)
    }

    /// A text of the metadata.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.content.metadata.get(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// A whole number of the metadata; of a list, its first.
    pub fn integer(&self, key: &str) -> Option<i64> {
        self.content
            .metadata
            .get(key)
            .and_then(|value| match value {
                Value::Array(values) => values.first().and_then(integer),
                value => integer(value),
            })
    }

    /// A number of the metadata.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.content.metadata.get(key).and_then(number)
    }

    /// A flag of the metadata.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.content
            .metadata
            .get(key)
            .and_then(|value| value.to_bool().ok())
    }

    /// A list of texts of the metadata.
    pub fn strings(&self, key: &str) -> Option<Vec<&str>> {
        let list = self.content.metadata.get(key)?.to_vec().ok()?;
        list.iter()
            .map(|value| value.to_string().ok().map(String::as_str))
            .collect()
    }

    /// A list of numbers of the metadata.
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

    /// The values of a tensor in f32, as they lie in the file.
    ///
    /// # Errors
    /// [`NnError::MalformedFile`].
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

/// What to say where candle does not know the type of a tensor; its error carries ggml's number of
/// it.
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
        // Through its shortest text: 1e-05 stays 1e-05.
        Value::F32(x) => x.to_string().parse().ok(),
        Value::F64(x) => Some(*x),
        value => integer(value).map(|x| x as f64),
    }
}

/// Tensors of a GGUF file under the names of a checkpoint.
#[derive(Debug)]
pub(super) struct GgufTensors {
    file: GgufFile,
    /// Checkpoint name → name in the file, and what to do.
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

/// The values a checkpoint would hold, of this shape.
fn changed(mut values: Vec<f32>, shape: &[usize], change: GgufChange) -> Vec<f32> {
    match change {
        GgufChange::None => values,
        GgufChange::MinusOne => {
            values.iter_mut().for_each(|x| *x -= 1.0);
            values
        }
        GgufChange::Transpose => {
            let &[rows, columns] = shape else {
                return values;
            };
            // In the file it is [columns, rows].
            let of = |place: usize| values[place % columns * rows + place / columns];
            (0..rows * columns).map(of).collect()
        }
        GgufChange::Unpermute { heads } => {
            let rows = shape.first().copied().unwrap_or(0);
            let width = values.len().checked_div(rows).unwrap_or(0);
            let half = rows / heads / 2;
            // Row `half · pair + i` of a head was written to `2 · i + pair`.
            let stored = |row: usize| {
                let (head, within) = (row / (2 * half), row % (2 * half));
                head * 2 * half + within % half * 2 + within / half
            };
            (0..rows)
                .flat_map(|row| &values[stored(row) * width..][..width])
                .copied()
                .collect()
        }
    }
}

impl Checkpoint {
    /// The tensors of a GGUF file under the names that `rename` gives them; those it gives none are
    /// left out. What is quantised there is F32 here.
    ///
    /// # Errors
    /// [`NnError::MalformedFile`] where rows cannot be divided among heads, or two tensors get one
    /// name.
    pub fn from_gguf(
        file: GgufFile,
        rename: impl Fn(&str) -> Option<(String, GgufChange)>,
    ) -> Result<Self> {
        let (mut entries, mut names) = (Vec::new(), BTreeMap::new());
        let malformed = |reason: String| NnError::MalformedFile {
            file: file.name.clone(),
            reason,
        };
        for (stored, info) in &file.content.tensor_infos {
            let Some((name, change)) = rename(stored) else {
                continue;
            };
            let mut shape = info.shape.dims().to_vec();
            if change == GgufChange::Transpose {
                shape.reverse();
            }
            if let GgufChange::Unpermute { heads } = change
                && (heads == 0
                    || !shape
                        .first()
                        .is_some_and(|rows| rows.is_multiple_of(2 * heads)))
            {
                return Err(malformed(format!(
                    "rows of tensor `{stored}` {shape:?} do not belong to {heads} heads"
                )));
            }
            let start = (file.content.tensor_data_offset + info.offset) as usize;
            let size = info.shape.elem_count() / info.ggml_dtype.block_size()
                * info.ggml_dtype.type_size();
            let (dtype, range) = match (info.ggml_dtype, change) {
                (GgmlDType::F16, GgufChange::None) => (Dtype::F16, (start, start + size)),
                (GgmlDType::BF16, GgufChange::None) => (Dtype::BF16, (start, start + size)),
                (GgmlDType::F32, GgufChange::None) => (Dtype::F32, (start, start + size)),
                _ => (Dtype::F32, (0, 0)),
            };
            entries.push((
                name.clone(),
                Entry {
                    file: 0,
                    dtype,
                    shape,
                    range,
                },
            ));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpermuting_undoes_what_llama_cpp_does() {
        // One head of six rows: llama.cpp writes rows 0 3 1 4 2 5.
        let stored = vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0];
        let values = changed(stored, &[6, 1], GgufChange::Unpermute { heads: 1 });
        assert_eq!(values, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn transposing_and_subtracting() {
        let values = changed(
            vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            &[3, 2],
            GgufChange::Transpose,
        );
        assert_eq!(values, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!(changed(vec![1.5], &[1], GgufChange::MinusOne), [0.5]);
    }

    /// A header with these keys (u16 each) and one tensor of 32 values of a type.
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
    fn types_that_are_not_read_are_named_and_not_called_damage() {
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

    #[test]
    fn a_part_of_a_split_model_says_which_it_is_and_what_to_do() {
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
            "merged again"
        );
    }
}
