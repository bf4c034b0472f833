//! Checkpoints: named tensors in files, read one by one.
//!
//! Opening a checkpoint reads only headers. A tensor's bytes are borrowed from the mapped file, and
//! each tensor is cast or quantised straight from there, so the full-precision model is never in
//! memory as a whole.

mod bnb;
mod cast;
mod columns;
mod gguf;
mod index;
mod kept;
mod mmap;
mod pickle;
mod safetensors;
pub mod verify;
mod view;
pub mod writer;

pub(crate) use bnb::ABSMAX;
pub use bnb::{
    check_layout, float_bytes, float_state, linear_state, read_linear_state, write_linear_state,
};
pub use cast::{float_tensor, int8_weight, rounded};
pub use columns::CheckpointColumns;
pub use gguf::{GgufChange, GgufFile};
pub use kept::{kept_state, read_kept_state};
pub use view::{TensorView, is_float};
pub use writer::{NewFolder, NewTensor, WriteEvent, WriteObserver};

use crate::error::{NnError, Result};
use crate::near_names::near_names;
use ::safetensors::Dtype;
use index::{IndexNotes, Shard, ShardIndex};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Dtype, shape and place of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Index of its file.
    file: usize,
    /// The dtype in the file.
    pub dtype: Dtype,
    /// The dimensions in the file.
    pub shape: Vec<usize>,
    /// Start and end of its bytes in the file, if the elements are contiguous there.
    range: (usize, usize),
}

impl Entry {
    /// Size of the elements in bytes.
    pub fn bytes(&self) -> u64 {
        let dims = self.shape.iter().map(|dim| *dim as u64);
        dims.fold(self.dtype.bitsize() as u64, u64::saturating_mul) / 8
    }

    /// Refuses a tensor without elements whose other dimensions are huge: its length is no bound on
    /// what is made for each of its rows.
    fn check(&self, file: &str, name: &str) -> Result<()> {
        let others = self.shape.iter().filter(|size| **size > 0);
        let rows = others.fold(1, |rows: usize, size| rows.saturating_mul(*size));
        if rows <= MOST_EMPTY_ROWS || !self.shape.contains(&0) {
            return Ok(());
        }

        Err(NnError::MalformedFile {
            file: file.to_owned(),
            reason: format!("tensor `{name}` of shape {:?} has no elements", self.shape),
        })
    }
}

/// The most rows or columns of a tensor without elements.
const MOST_EMPTY_ROWS: usize = 1 << 24;

/// A named value that cannot be read as a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Foreign {
    /// A string: bitsandbytes before 0.43.1 saved the layout of int8 codes like this.
    Text(String),
    /// Anything else, including tensors of an unsupported kind; described for error messages.
    Other(String),
}

/// An opened file.
#[derive(Debug)]
enum Source {
    Safetensors(mmap::FileBytes),
    Pickle(pickle::PickleFile),
    Gguf(gguf::GgufTensors),
    HeaderOnly,
}

/// The tensors of one or more files.
#[derive(Debug)]
pub struct Checkpoint {
    /// Files, with their names for error messages.
    sources: Vec<(String, Source)>,
    entries: BTreeMap<String, Entry>,
    /// Values that cannot be read, by name, with the file they are in.
    foreign: BTreeMap<String, (String, Foreign)>,
    /// The dtype of the first float tensor of the first file that has one.
    first_float: Option<Dtype>,
    notes: IndexNotes,
}

impl Checkpoint {
    /// Opens safetensors files. An index selects which of the files are opened and which of their
    /// tensors are used. Without one, tensor names must be unique across the files.
    ///
    /// # Errors
    /// [`NnError::Read`]; [`NnError::MalformedFile`] for a truncated or damaged file;
    /// [`NnError::UnsupportedFile`] for a Git LFS pointer; [`NnError::MalformedIndex`] for an index
    /// that cannot be read or names a file that is not among `files`.
    pub fn open_safetensors(files: &[PathBuf], index: Option<&Path>) -> Result<Self> {
        Self::open(files, index, |path| {
            let bytes = mmap::FileBytes::map_checkpoint(path)?;
            let file = path.display().to_string();
            let entries = safetensors::entries(&file, &bytes)?;

            Ok(Shard {
                file,
                source: Source::Safetensors(bytes),
                entries,
                foreign: Vec::new(),
            })
        })
    }

    /// Opens a safetensors file that is embedded in the program. `name` is used in error messages.
    ///
    /// # Errors
    /// [`NnError::MalformedFile`].
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self> {
        let mut checkpoint = Self::empty();
        let entries = safetensors::entries(name, bytes)?;
        checkpoint.add(
            name.to_owned(),
            Source::Safetensors(mmap::FileBytes::Static(bytes)),
            entries,
        )?;
        Ok(checkpoint)
    }

    /// A checkpoint of names, dtypes and shapes only, from safetensors headers: file name, header
    /// JSON (without the length before it), length of the file in bytes. Reading a tensor is an
    /// error. If a tensor is in several files, the last one wins.
    ///
    /// # Errors
    /// [`NnError::MalformedFile`].
    pub fn from_headers<'a>(
        headers: impl IntoIterator<Item = (&'a str, &'a [u8], u64)>,
    ) -> Result<Self> {
        let mut checkpoint = Self::empty();
        for (name, json, file_len) in headers {
            let number = checkpoint.sources.len();
            for (tensor, entry) in safetensors::entries_of_header(name, json, file_len)? {
                entry.check(name, &tensor)?;
                checkpoint.insert(number, tensor, entry);
            }
            checkpoint
                .sources
                .push((name.to_owned(), Source::HeaderOnly));
        }

        Ok(checkpoint)
    }

    /// Opens `pytorch_model.bin` files, with an index as for [`Checkpoint::open_safetensors`].
    /// Nothing in a pickle is executed; the reader knows only what describes tensors.
    ///
    /// # Errors
    /// As [`Checkpoint::open_safetensors`]; [`NnError::UnsupportedFile`] also for a pickle with
    /// objects that are not torch's, for TorchScript, and for tensors nested one level down.
    pub fn open_pickle(files: &[PathBuf], index: Option<&Path>) -> Result<Self> {
        Self::open(files, index, |path| {
            let (pickle, contents) = pickle::PickleFile::open(path)?;
            let mut entries = Vec::new();
            let mut foreign = Vec::new();

            for (name, content) in contents {
                match content {
                    pickle::Content::Tensor(entry) => entries.push((name, entry)),
                    pickle::Content::Foreign(kind) => foreign.push((name, kind)),
                }
            }

            Ok(Shard {
                file: path.display().to_string(),
                source: Source::Pickle(pickle),
                entries,
                foreign,
            })
        })
    }

    fn open(
        files: &[PathBuf],
        index: Option<&Path>,
        open: impl Fn(&PathBuf) -> Result<Shard>,
    ) -> Result<Self> {
        if let Some(index) = index {
            let index = ShardIndex::read(index)?;
            let shards = index
                .files(files)?
                .into_iter()
                .map(open)
                .collect::<Result<_>>()?;
            return index.assemble(shards);
        }

        let mut checkpoint = Self::empty();
        for shard in files.iter().map(open) {
            let shard = shard?;
            let foreign = shard
                .foreign
                .into_iter()
                .map(|(name, kind)| (name, (shard.file.clone(), kind)));
            checkpoint.foreign.extend(foreign);
            checkpoint.add(shard.file, shard.source, shard.entries)?;
        }

        Ok(checkpoint)
    }

    fn empty() -> Self {
        Self {
            sources: Vec::new(),
            entries: BTreeMap::new(),
            foreign: BTreeMap::new(),
            first_float: None,
            notes: IndexNotes::default(),
        }
    }

    /// Adds a file whose tensor names must be new.
    fn add(&mut self, file: String, source: Source, entries: Vec<(String, Entry)>) -> Result<()> {
        let number = self.sources.len();
        for (name, entry) in entries {
            entry.check(&file, &name)?;
            if let Some(other) = self.entries.get(&name).filter(|other| other.file != number) {
                let reason = format!("tensor `{name}` is also in {}", self.sources[other.file].0);
                return Err(NnError::MalformedFile { file, reason });
            }
            self.insert(number, name, entry);
        }

        self.sources.push((file, source));
        Ok(())
    }

    fn insert(&mut self, file: usize, name: String, mut entry: Entry) {
        entry.file = file;
        if self.first_float.is_none() && is_float(entry.dtype) {
            self.first_float = Some(entry.dtype);
        }
        self.entries.insert(name, entry);
    }

    /// Every tensor's name and entry, sorted by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries
            .iter()
            .map(|(name, entry)| (name.as_str(), entry))
    }

    /// The entry of a tensor.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// The file a tensor is in.
    pub fn file_of(&self, name: &str) -> Option<&str> {
        self.entries
            .get(name)
            .map(|entry| self.sources[entry.file].0.as_str())
    }

    /// The value under a name if it cannot be read as a tensor.
    pub fn foreign(&self, name: &str) -> Option<&Foreign> {
        self.foreign.get(name).map(|(_, foreign)| foreign)
    }

    /// The dtype of the first float tensor in the order in which transformers reads them.
    /// transformers takes it as the dtype of the whole checkpoint.
    pub fn first_float(&self) -> Option<Dtype> {
        self.first_float
    }

    /// Names that are not in [`Checkpoint::entries`] but that transformers reports as unexpected if
    /// the model has no such parameter: values that are not tensors, and tensors that the index
    /// lists but no shard holds.
    pub fn other_names(&self) -> impl Iterator<Item = &str> {
        self.foreign
            .keys()
            .chain(self.notes.absent.keys())
            .map(String::as_str)
    }

    /// Tensors in the shards that the index does not list.
    pub fn unlisted_names(&self) -> impl Iterator<Item = &str> {
        self.notes.unlisted.keys().map(String::as_str)
    }

    /// Tensors that are in several shards and of which another copy is used than in transformers:
    /// the one the index names, not the one in the last shard.
    pub fn copies(&self) -> &[String] {
        &self.notes.copies
    }

    /// Why a tensor is missing, if the index explains it; begins with `;`.
    pub fn why_missing(&self, name: &str) -> Option<String> {
        if let Some(file) = self.notes.absent.get(name) {
            return Some(format!(
                "; the index says that it is in {file}, which has no such tensor"
            ));
        }

        let file = self.notes.unlisted.get(name)?;
        Some(format!(
            "; {file} holds one, but the index does not list it"
        ))
    }

    /// The error for a value that cannot be read as a tensor; `None` if there is no such value.
    pub fn foreign_error(&self, name: &str) -> Option<NnError> {
        let (file, foreign) = self.foreign.get(name)?;
        let found = match foreign {
            Foreign::Text(_) => "a Python str".to_owned(),
            Foreign::Other(kind) => kind.clone(),
        };

        Some(NnError::WrongDtype {
            name: name.to_owned(),
            file: file.clone(),
            found,
            expected: view::FLOATS,
        })
    }

    /// The files, for error messages.
    pub fn description(&self) -> String {
        match self.sources.as_slice() {
            [] => "(empty)".into(),
            [(only, _)] => only.clone(),
            [(first, _), rest @ ..] => format!("{first} and {} more", rest.len()),
        }
    }

    /// Reads a tensor by its name in the module tree. The checkpoint may lack the first component
    /// of the name (`transformer.`, `model.`) or have one more in front.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn find(&self, name: &str) -> Result<TensorView<'_>> {
        if self.entries.contains_key(name) {
            return self.tensor(name);
        }
        if let Some((_, shorter)) = name.split_once('.')
            && self.entries.contains_key(shorter)
        {
            return self.tensor(shorter);
        }

        let longer = self
            .entries
            .keys()
            .find(|key| key.split_once('.').is_some_and(|(_, rest)| rest == name));
        self.tensor(longer.map_or(name, String::as_str))
    }

    /// Reads a tensor.
    ///
    /// # Errors
    /// [`NnError::UnknownTensor`]; [`NnError::NotLoaded`] for a checkpoint of headers;
    /// [`NnError::WrongDtype`] for a value that cannot be read as a tensor.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let Some(entry) = self.entries.get(name) else {
            return Err(self.unknown_tensor(name));
        };

        let (file, source) = &self.sources[entry.file];
        let data = match source {
            Source::Safetensors(bytes) => bytes[entry.range.0..entry.range.1].into(),
            Source::Pickle(pickle) => pickle.read(entry, name),
            Source::Gguf(gguf) => gguf.read(entry, name)?,
            Source::HeaderOnly => return Err(NnError::NotLoaded),
        };

        Ok(TensorView {
            name: name.to_owned(),
            file,
            dtype: entry.dtype,
            shape: &entry.shape,
            data,
        })
    }

    fn unknown_tensor(&self, name: &str) -> NnError {
        if let Some(error) = self.foreign_error(name) {
            return error;
        }

        let keys = || self.entries.keys().map(String::as_str);
        let mut hint = near_names(name, keys());
        if hint.is_empty()
            && let Some((_, rest)) = name.split_once('.')
        {
            // `find` would also have accepted the name without its first component.
            hint = near_names(rest, keys());
        }
        NnError::UnknownTensor {
            checkpoint: self.description(),
            name: name.to_owned(),
            hint,
        }
    }
}
