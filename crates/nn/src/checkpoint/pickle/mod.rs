//! `pytorch_model.bin`: what `torch.save` writes, read without running any of it.
//!
//! The file is mapped. A pickle describes tensors as views of storages ([`machine`] reads it into a
//! [`heap`]); where a storage lies is what the zip archive says ([`archive`]), or its order in
//! files of PyTorch before 1.6 ([`legacy`]). A contiguous tensor is read in place, any other is
//! gathered when it is asked for.

mod archive;
mod global;
mod heap;
mod legacy;
mod machine;
mod strided;
mod tape;

use super::mmap::FileBytes;
use super::{Entry, Foreign};
use crate::error::{NnError, Result};
use archive::{Archive, Range};
use global::Scalar;
use heap::{Heap, Storage, Tensor, Value};
use machine::Machine;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use strided::Strided;

/// A longer description of tensors is refused before it is read.
const LONGEST_PICKLE: usize = 1 << 26;

/// An opened `.bin` file.
#[derive(Debug)]
pub(super) struct PickleFile {
    bytes: FileBytes,
    /// Tensors whose elements do not lie one after the other.
    strided: BTreeMap<String, Strided>,
}

/// What a file holds under a name.
pub(super) enum Content {
    /// A tensor.
    Tensor(Entry),
    /// Something else, or a tensor of a kind that is not read.
    Foreign(Foreign),
}

/// Why a file is not read.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It is not what torch writes.
    Damaged(String),
    /// It is whole, but of a kind that is not read.
    Unsupported(String),
}

impl Refusal {
    fn of(self, file: &str) -> NnError {
        let file = file.to_owned();
        match self {
            Self::Damaged(reason) => NnError::MalformedFile { file, reason },
            Self::Unsupported(reason) => NnError::UnsupportedFile { file, reason },
        }
    }
}

impl PickleFile {
    /// Reads the description of the tensors; they come in the order of the file.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<(String, Content)>)> {
        let file = path.display().to_string();
        let bytes = FileBytes::map_checkpoint(path)?;
        let mut strided = BTreeMap::new();
        let contents = contents(&bytes, &mut strided).map_err(|refusal| refusal.of(&file))?;
        Ok((Self { bytes, strided }, contents))
    }

    /// The bytes of a tensor, row-major.
    pub(super) fn read(&self, entry: &Entry, name: &str) -> Cow<'_, [u8]> {
        match self.strided.get(name) {
            Some(strided) => Cow::Owned(strided.gather(&self.bytes)),
            None => Cow::Borrowed(&self.bytes[entry.range.0..entry.range.1]),
        }
    }
}

fn contents(
    bytes: &[u8],
    strided: &mut BTreeMap<String, Strided>,
) -> std::result::Result<Vec<(String, Content)>, Refusal> {
    let (top, heap, storages) = if legacy::is_legacy(bytes) {
        legacy::read(bytes)?
    } else {
        let archive = Archive::open(bytes)?;
        let (start, end) = archive.record("data.pkl").ok_or_else(|| {
            Refusal::Unsupported(
                "it is a zip archive, but has no `data.pkl` as torch.save writes one".into(),
            )
        })?;
        if end - start > LONGEST_PICKLE {
            let reason = format!(
                "its `data.pkl` has {} bytes; {LONGEST_PICKLE} are read at most",
                end - start
            );
            return Err(Refusal::Unsupported(reason));
        }
        let (top, heap, _) = Machine::run(&bytes[start..end])?;
        let storages = ranges(&heap, |storage| {
            archive.record(&format!("data/{}", storage.key))
        });
        (top, heap, storages)
    };
    let Value::Dictionary(number) = top else {
        let reason = format!(
            "it holds a Python {} and not a dictionary of tensors by name (a `state_dict()`)",
            top.kind()
        );
        return Err(Refusal::Unsupported(reason));
    };
    let mut found = Vec::new();
    for (key, value) in &heap.dictionaries[number] {
        let Value::Text(name) = key else { continue };
        let content = match value {
            Value::Tensor(tensor) => {
                let view = View {
                    heap: &heap,
                    storages: &storages,
                    file_len: bytes.len(),
                };
                view.content(name, *tensor, strided)?
            }
            Value::Text(text) => Content::Foreign(Foreign::Text((*text).to_owned())),
            other => Content::Foreign(Foreign::Other(format!("a Python {}", other.kind()))),
        };
        found.push(((*name).to_owned(), content));
    }
    check_not_nested(&heap, number, &found)?;
    Ok(found)
}

/// Where each storage lies, by its number.
fn ranges(heap: &Heap<'_>, find: impl Fn(&Storage<'_>) -> Option<Range>) -> Vec<Option<Range>> {
    heap.storages.iter().map(find).collect()
}

/// A training checkpoint has its tensors one level down.
fn check_not_nested(
    heap: &Heap<'_>,
    top: usize,
    found: &[(String, Content)],
) -> std::result::Result<(), Refusal> {
    if found
        .iter()
        .any(|(_, content)| matches!(content, Content::Tensor(_)))
    {
        return Ok(());
    }
    let holds_tensors = |number: &usize| {
        heap.dictionaries[*number]
            .iter()
            .any(|(_, value)| matches!(value, Value::Tensor(_)))
    };
    let nested = heap.dictionaries[top]
        .iter()
        .find_map(|(key, value)| match (key, value) {
            (Value::Text(name), Value::Dictionary(number)) if holds_tensors(number) => Some(*name),
            _ => None,
        });
    Err(match nested {
        Some(name) => Refusal::Unsupported(format!(
            "its tensors lie one level down, under `{name}`, where transformers does not look for them either; \
             save that part alone: `torch.save(torch.load(FILE)[\"{name}\"], FILE)`"
        )),
        None => Refusal::Unsupported("it holds no tensors".into()),
    })
}

/// Tensors of a pickle over the storages of its file.
struct View<'a> {
    heap: &'a Heap<'a>,
    storages: &'a [Option<Range>],
    file_len: usize,
}

impl View<'_> {
    fn content(
        &self,
        name: &str,
        tensor: usize,
        strided: &mut BTreeMap<String, Strided>,
    ) -> std::result::Result<Content, Refusal> {
        let lies = |what: String| Refusal::Damaged(format!("tensor `{name}` {what}"));
        let (storage, scalar, offset, shape, strides) = match self.heap.tensors[tensor] {
            Tensor::Other(kind) => return Ok(Content::Foreign(Foreign::Other(kind.into()))),
            Tensor::View {
                storage,
                scalar,
                offset,
                shape,
                strides,
            } => (
                storage,
                scalar,
                offset,
                self.sizes(shape)?,
                self.sizes(strides)?,
            ),
        };
        let dtype = match scalar {
            Scalar::Known(dtype) => dtype,
            Scalar::Other(kind) => return Ok(Content::Foreign(Foreign::Other(kind.into()))),
            Scalar::Bytes => return Err(lies("has an untyped storage and no dtype".into())),
        };
        let size = dtype.bitsize() / 8;
        let Storage {
            key,
            length,
            scalar,
        } = self.heap.storages[storage];
        let (start, end) = self.storages[storage]
            .ok_or_else(|| lies(format!("needs the record `data/{key}`, which is not there")))?;
        let announced = if scalar == Scalar::Bytes {
            Some(length)
        } else {
            length.checked_mul(size)
        };
        if announced.is_none_or(|bytes| bytes > end - start) {
            return Err(lies(format!(
                "needs {length} elements, but the record `data/{key}` has {} bytes",
                end - start
            )));
        }
        let view = Strided {
            start,
            size,
            offset,
            shape,
            strides,
        };
        let place = view.check(end - start, self.file_len).ok_or_else(|| {
            lies(format!(
                "of shape {:?}, strides {:?} and offset {offset} does not lie within its storage of {} bytes",
                view.shape,
                view.strides,
                end - start
            ))
        })?;
        let entry = Entry {
            file: 0,
            dtype,
            shape: view.shape.clone(),
            range: place.unwrap_or_default(),
        };
        // A later tensor of the same name replaces the former, as in a dictionary.
        match place {
            Some(_) => drop(strided.remove(name)),
            None => drop(strided.insert(name.to_owned(), view)),
        }
        Ok(Content::Tensor(entry))
    }

    fn sizes(&self, list: usize) -> std::result::Result<Vec<usize>, Refusal> {
        self.heap.lists[list]
            .iter()
            .map(|value| machine::size(*value))
            .collect()
    }
}
