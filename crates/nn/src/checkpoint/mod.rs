//! Checkpoints: named tensors in files, read one by one.
//!
//! Nothing is read at opening but headers. A tensor's bytes are those of the mapped file, so a
//! model never exists in full precision in memory: each tensor is cast or quantised straight from
//! the file and dropped.

mod bnb;
mod cast;
mod columns;
mod gguf;
mod index;
mod mmap;
mod pickle;
mod safetensors;
mod view;
pub mod writer;

pub use bnb::float_bytes;
pub use bnb::read_linear_state;
pub use bnb::{float_state, linear_state, write_linear_state};
pub use cast::float_tensor;
pub use cast::{int8_weight, rounded};
pub use columns::CheckpointColumns;
pub use gguf::{GgufChange, GgufFile};
pub use view::{TensorView, is_float};
pub use writer::{NewFolder, NewTensor, WriteEvent, WriteObserver};

use crate::error::{NnError, Result};
use crate::near_names::near_names;
use ::safetensors::Dtype;
use index::{IndexNotes, Shard, ShardIndex};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where a tensor is, how it is stored and its dimensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    file: usize,
    /// The dtype in the file.
    pub dtype: Dtype,
    /// The dimensions in the file.
    pub shape: Vec<usize>,
    /// First and last byte in the file, where the elements lie one after the other.
    range: (usize, usize),
}

/// Something under the name of a tensor that is none, or of a kind that is not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Foreign {
    /// A text: bitsandbytes before 0.43.1 saved the layout of codes so.
    Text(String),
    /// What it is, for messages.
    Other(String),
}

#[derive(Debug)]
enum Source {
    Safetensors(mmap::FileBytes),
    Pickle(pickle::PickleFile),
    Gguf(gguf::GgufTensors),
    HeaderOnly,
}

/// The tensors of one or several files under one roof.
#[derive(Debug)]
pub struct Checkpoint {
    sources: Vec<(String, Source)>,
    entries: BTreeMap<String, Entry>,
    /// What is not read, by name, with its file.
    foreign: BTreeMap<String, (String, Foreign)>,
    /// The dtype of the first float tensor of the first file that has one.
    first_float: Option<Dtype>,
    notes: IndexNotes,
}

impl Checkpoint {
    /// Opens safetensors files. Where there is an index, it says which of them are opened and which
    /// tensors of them count; without one, no two files may have a tensor of the same name.
    ///
    /// # Errors
    /// [`NnError::Read`], [`NnError::MalformedFile`] for a truncated or lying file,
    /// [`NnError::UnsupportedFile`] for one that stands in for another, [`NnError::MalformedIndex`]
    /// for an index that cannot be read or names a file that is not among `files`.
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

    /// Opens a safetensors file that is part of the program.
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

    /// Names, dtypes and shapes from safetensors headers (the JSON after the length) with the
    /// length of their files; reading a tensor of it is an error. Of a tensor in several files the
    /// last counts.
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
                checkpoint.insert(number, tensor, entry);
            }
            checkpoint
                .sources
                .push((name.to_owned(), Source::HeaderOnly));
        }
        Ok(checkpoint)
    }

    /// Opens `pytorch_model.bin` files, with an index as for [`Checkpoint::open_safetensors`].
    /// Nothing in a pickle is executed: only what describes tensors is understood.
    ///
    /// # Errors
    /// As [`Checkpoint::open_safetensors`]; [`NnError::UnsupportedFile`] also for a pickle that
    /// holds other objects than torch's, for TorchScript, and where the tensors lie one level down.
    pub fn open_pickle(files: &[PathBuf], index: Option<&Path>) -> Result<Self> {
        Self::open(files, index, |path| {
            let (pickle, contents) = pickle::PickleFile::open(path)?;
            let (mut entries, mut foreign) = (Vec::new(), Vec::new());
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
            return Ok(index.assemble(shards));
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

    /// Adds a file, none of whose tensors may be there already.
    fn add(&mut self, file: String, source: Source, entries: Vec<(String, Entry)>) -> Result<()> {
        let number = self.sources.len();
        for (name, entry) in entries {
            if let Some(other) = self.entries.get(&name).filter(|other| other.file != number) {
                let reason = format!(
                    "tensor `{name}` stands in {} too",
                    self.sources[other.file].0
                );
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

    /// Every tensor's name and entry, by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries
            .iter()
            .map(|(name, entry)| (name.as_str(), entry))
    }

    /// The entry of a tensor.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// The file a tensor stands in.
    pub fn file_of(&self, name: &str) -> Option<&str> {
        self.entries
            .get(name)
            .map(|entry| self.sources[entry.file].0.as_str())
    }

    /// What is there under a name that no tensor can be read by.
    pub fn foreign(&self, name: &str) -> Option<&Foreign> {
        self.foreign.get(name).map(|(_, foreign)| foreign)
    }

    /// The dtype that stands for the whole checkpoint: that of its first float tensor, in the order
    /// in which transformers reads tensors.
    pub fn first_float(&self) -> Option<Dtype> {
        self.first_float
    }

    /// Names beside those of [`Checkpoint::entries`] that transformers reports if the model has no
    /// place for them: of what is no tensor, and of what the index lists in vain.
    pub fn other_names(&self) -> impl Iterator<Item = &str> {
        self.foreign
            .keys()
            .chain(self.notes.absent.keys())
            .map(String::as_str)
    }

    /// Names of tensors that the index does not list.
    pub fn unlisted_names(&self) -> impl Iterator<Item = &str> {
        self.notes.unlisted.keys().map(String::as_str)
    }

    /// Tensors of which an earlier shard's copy is read than by transformers, because the index
    /// says so.
    pub fn copies(&self) -> &[String] {
        &self.notes.copies
    }

    /// Why a tensor is not there, as far as that is known.
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

    /// The error for something that is no readable tensor.
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

    /// The files, for messages.
    pub fn description(&self) -> String {
        match self.sources.as_slice() {
            [] => "(empty)".into(),
            [(only, _)] => only.clone(),
            [(first, _), rest @ ..] => format!("{first} and {} more", rest.len()),
        }
    }

    /// The bytes of a tensor by its name, or by its name in the module tree: a checkpoint may leave
    /// out the first part (`transformer.`, `model.`) or have one more.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn find(&self, name: &str) -> Result<TensorView<'_>> {
        let shorter = name
            .split_once('.')
            .map(|(_, rest)| rest)
            .filter(|rest| self.entries.contains_key(*rest));
        let longer = || {
            self.entries
                .keys()
                .find(|key| key.split_once('.').is_some_and(|(_, rest)| rest == name))
        };
        match (self.entries.contains_key(name), shorter) {
            (true, _) => self.tensor(name),
            (false, Some(shorter)) => self.tensor(shorter),
            (false, None) => self.tensor(longer().map_or(name, String::as_str)),
        }
    }

    /// The bytes of a tensor.
    ///
    /// # Errors
    /// [`NnError::UnknownTensor`]; [`NnError::NotLoaded`] for a checkpoint of headers;
    /// [`NnError::WrongDtype`] for what is no tensor of a kind that is read.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let Some(entry) = self.entries.get(name) else {
            if let Some(error) = self.foreign_error(name) {
                return Err(error);
            }
            let keys = || self.entries.keys().map(String::as_str);
            let mut hint = near_names(name, keys());
            if let (true, Some((_, rest))) = (hint.is_empty(), name.split_once('.')) {
                hint = near_names(rest, keys()); // as `find` would have found it
            }
            let (checkpoint, name) = (self.description(), name.to_owned());
            return Err(NnError::UnknownTensor {
                checkpoint,
                name,
                hint,
            });
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
}
