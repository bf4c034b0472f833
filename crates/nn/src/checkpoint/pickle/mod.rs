//! `pytorch_model.bin`: files of `torch.save`, read without executing anything in them.
//!
//! The file is mapped. Its pickle describes tensors as strided views of storages; [`machine`]
//! parses it into a [`heap`]. The storages are records of the zip archive ([`archive`]) or, in
//! files of PyTorch before 1.6, follow the pickle ([`legacy`]). Contiguous tensors are read in
//! place; others are gathered when they are read.

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
use machine::{Machine, Outcome};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use strided::Strided;

/// Upper bound of a pickle in bytes, checked before it is parsed.
const LONGEST_PICKLE: usize = 1 << 26;

/// An opened `.bin` file.
#[derive(Debug)]
pub(super) struct PickleFile {
    bytes: FileBytes,
    /// The tensors that are not contiguous.
    strided: BTreeMap<String, Strided>,
}

/// A named value of a file.
pub(super) enum Content {
    /// A tensor.
    Tensor(Entry),
    /// Anything else, or a tensor of an unsupported kind.
    Foreign(Foreign),
}

/// Why a file cannot be read.
#[derive(Debug)]
pub(super) enum Refusal {
    /// torch does not write such a file.
    Damaged(String),
    /// An intact file of an unsupported kind.
    Unsupported(String),
}

impl Refusal {
    fn into_error(self, file: &str) -> NnError {
        let file = file.to_owned();
        match self {
            Self::Damaged(reason) => NnError::MalformedFile { file, reason },
            Self::Unsupported(reason) => NnError::UnsupportedFile { file, reason },
        }
    }
}

impl PickleFile {
    /// Opens a file and reads its pickle. Returns its values in the order of the file.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<(String, Content)>)> {
        let file = path.display().to_string();
        let bytes = FileBytes::map_checkpoint(path)?;
        let mut strided = BTreeMap::new();
        let contents =
            contents(&bytes, &mut strided).map_err(|refusal| refusal.into_error(&file))?;
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

/// A parsed file: its top-level value, what that refers to, and the place of each storage, by its
/// number in the heap.
type Parsed<'a> = (Value<'a>, Heap<'a>, Vec<Option<Range>>);

/// Parses the pickle of a zip archive.
fn parse_archive(bytes: &[u8]) -> Outcome<Parsed<'_>> {
    let archive = Archive::open(bytes)?;
    let (start, end) = archive.record("data.pkl").ok_or_else(|| {
        Refusal::Unsupported(
            "it is a zip archive without a `data.pkl`, so torch.save did not write it".into(),
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

    Ok((top, heap, storages))
}

/// The named values of a file. Tensors that are not contiguous are added to `strided`.
fn contents(
    bytes: &[u8],
    strided: &mut BTreeMap<String, Strided>,
) -> Outcome<Vec<(String, Content)>> {
    let (top, heap, storages) = if legacy::is_legacy(bytes) {
        legacy::read(bytes)?
    } else {
        parse_archive(bytes)?
    };

    let Value::Dictionary(number) = top else {
        let reason = format!(
            "it holds a Python {} and not a dictionary of tensors by name (a `state_dict()`)",
            top.kind()
        );
        return Err(Refusal::Unsupported(reason));
    };

    let view = View {
        heap: &heap,
        storages: &storages,
        file_len: bytes.len(),
    };

    let mut found = Vec::new();
    for (key, value) in &heap.dictionaries[number] {
        let Value::Text(name) = key else { continue };
        let content = match value {
            Value::Tensor(tensor) => view.content(name, *tensor, strided)?,
            Value::Text(text) => Content::Foreign(Foreign::Text((*text).to_owned())),
            other => Content::Foreign(Foreign::Other(format!("a Python {}", other.kind()))),
        };
        found.push(((*name).to_owned(), content));
    }

    check_not_nested(&heap, number, &found)?;
    Ok(found)
}

/// The place of each storage, by its number in the heap.
fn ranges(heap: &Heap<'_>, find: impl Fn(&Storage<'_>) -> Option<Range>) -> Vec<Option<Range>> {
    heap.storages.iter().map(find).collect()
}

/// Rejects files without tensors at the top level, such as training checkpoints, which have them
/// one level down.
fn check_not_nested(heap: &Heap<'_>, top: usize, found: &[(String, Content)]) -> Outcome<()> {
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

/// What the tensors of a pickle are views of.
struct View<'a> {
    heap: &'a Heap<'a>,
    storages: &'a [Option<Range>],
    file_len: usize,
}

impl View<'_> {
    /// Resolves a tensor of the heap to its place in the file. One that is not contiguous is added
    /// to `strided`.
    fn content(
        &self,
        name: &str,
        tensor: usize,
        strided: &mut BTreeMap<String, Strided>,
    ) -> Outcome<Content> {
        let damaged = |what: String| Refusal::Damaged(format!("tensor `{name}` {what}"));
        let unsupported = |kind: &str| Ok(Content::Foreign(Foreign::Other(kind.into())));
        let (storage, scalar, offset, shape, strides) = match self.heap.tensors[tensor] {
            Tensor::Other(kind) => return unsupported(kind),
            Tensor::View {
                storage,
                scalar,
                offset,
                shape,
                strides,
            } => (storage, scalar, offset, shape, strides),
        };

        let shape = self.sizes(shape)?;
        let strides = self.sizes(strides)?;
        let dtype = match scalar {
            Scalar::Known(dtype) => dtype,
            Scalar::Other(kind) => return unsupported(kind),
            Scalar::Bytes => return Err(damaged("has an untyped storage and no dtype".into())),
        };

        let size = dtype.bitsize() / 8;
        let (start, end) = self.storage_range(storage, size).map_err(damaged)?;
        let available = end - start;
        let view = Strided {
            start,
            size,
            offset,
            shape,
            strides,
        };
        let Some(place) = view.check(available, self.file_len) else {
            return Err(damaged(format!(
                "of shape {:?}, strides {:?} and offset {offset} does not lie within its storage of {available} bytes",
                view.shape, view.strides
            )));
        };

        let entry = Entry {
            file: 0,
            dtype,
            shape: view.shape.clone(),
            range: place.unwrap_or_default(),
        };

        // A later tensor of the same name replaces an earlier one, as in a dictionary.
        match place {
            Some(_) => drop(strided.remove(name)),
            None => drop(strided.insert(name.to_owned(), view)),
        }

        Ok(Content::Tensor(entry))
    }

    /// The bytes of a storage with elements of `size` bytes, checked to hold what the pickle
    /// announces; the error continues "tensor …".
    fn storage_range(&self, storage: usize, size: usize) -> Result<Range, String> {
        let Storage {
            key,
            length,
            scalar,
        } = self.heap.storages[storage];

        let Some((start, end)) = self.storages[storage] else {
            return Err(format!("needs the record `data/{key}`, which is not there"));
        };

        let announced = if scalar == Scalar::Bytes {
            Some(length)
        } else {
            length.checked_mul(size)
        };

        if announced.is_none_or(|bytes| bytes > end - start) {
            return Err(format!(
                "needs {length} elements, but the record `data/{key}` has {} bytes",
                end - start
            ));
        }

        Ok((start, end))
    }

    /// A list of the heap as sizes.
    fn sizes(&self, list: usize) -> Outcome<Vec<usize>> {
        self.heap.lists[list]
            .iter()
            .map(|value| machine::size(*value))
            .collect()
    }
}
