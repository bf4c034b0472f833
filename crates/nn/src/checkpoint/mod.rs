//! Checkpoints: named tensors in files, read one by one.
//!
//! Nothing is read at opening but headers. A tensor's bytes are those of the mapped file (or of the
//! zip entry of a `pytorch_model.bin`), so a model never exists in full precision in memory: each
//! tensor is cast or quantised straight from the file and dropped.

mod bnb;
mod cast;
mod columns;
mod gguf;
mod mmap;
mod pickle;
mod safetensors;
mod view;
pub mod writer;

pub(crate) use bnb::float_bytes;
pub(crate) use bnb::read_linear_state;
pub use bnb::{float_state, linear_state, write_linear_state};
pub use cast::float_tensor;
pub(crate) use cast::int8_weight;
pub use columns::CheckpointColumns;
pub use gguf::{GgufChange, GgufFile};
pub use view::{TensorView, is_float};
pub use writer::{NewFolder, NewTensor, WriteEvent, WriteObserver};

use crate::error::{NnError, Result};
use crate::module::replace::near_names;
use ::safetensors::Dtype;
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
    /// First and last byte in the file (safetensors only).
    range: (usize, usize),
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
}

impl Checkpoint {
    /// Opens safetensors files; `index` is checked against them where there is one.
    ///
    /// # Errors
    /// [`NnError::Read`], [`NnError::MalformedFile`] for a truncated or lying file,
    /// [`NnError::MalformedIndex`] where index and files disagree.
    pub fn open_safetensors(files: &[PathBuf], index: Option<&Path>) -> Result<Self> {
        let mut checkpoint = Self::empty();
        for path in files {
            let bytes = mmap::FileBytes::map(path)?;
            let name = path.display().to_string();
            let entries = safetensors::entries(&name, &bytes)?;
            checkpoint.add(name, Source::Safetensors(bytes), entries)?;
        }
        if let Some(index) = index {
            checkpoint.check_index(index)?;
        }
        Ok(checkpoint)
    }

    /// Opens a safetensors file that is part of the program.
    ///
    /// # Errors
    /// [`NnError::MalformedFile`].
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self> {
        let mut checkpoint = Self::empty();
        let entries = safetensors::entries(name, bytes)?;
        checkpoint.add(name.to_owned(), Source::Safetensors(mmap::FileBytes::Static(bytes)), entries)?;
        Ok(checkpoint)
    }

    /// Names, dtypes and shapes from safetensors headers (the JSON after the length) with the length
    /// of their files; reading a tensor of it is an error.
    ///
    /// # Errors
    /// [`NnError::MalformedFile`].
    pub fn from_headers<'a>(headers: impl IntoIterator<Item = (&'a str, &'a [u8], u64)>) -> Result<Self> {
        let mut checkpoint = Self::empty();
        for (name, json, file_len) in headers {
            let entries = safetensors::entries_of_header(name, json, file_len)?;
            checkpoint.add(name.to_owned(), Source::HeaderOnly, entries)?;
        }
        Ok(checkpoint)
    }

    /// Opens `pytorch_model.bin` files. Nothing in a pickle is executed: only what describes tensors
    /// is understood.
    ///
    /// # Errors
    /// [`NnError::Read`], [`NnError::MalformedFile`], [`NnError::MalformedIndex`].
    pub fn open_pickle(files: &[PathBuf], index: Option<&Path>) -> Result<Self> {
        let mut checkpoint = Self::empty();
        for path in files {
            let (pickle, entries) = pickle::PickleFile::open(path)?;
            checkpoint.add(path.display().to_string(), Source::Pickle(pickle), entries)?;
        }
        if let Some(index) = index {
            checkpoint.check_index(index)?;
        }
        Ok(checkpoint)
    }

    fn empty() -> Self {
        Self { sources: Vec::new(), entries: BTreeMap::new() }
    }

    fn add(&mut self, file: String, source: Source, entries: Vec<(String, Entry)>) -> Result<()> {
        let number = self.sources.len();
        for (name, mut entry) in entries {
            entry.file = number;
            if let Some(other) = self.entries.get(&name) {
                let reason = format!("tensor `{name}` stands in {} too", self.sources[other.file].0);
                return Err(NnError::MalformedFile { file, reason });
            }
            self.entries.insert(name, entry);
        }
        self.sources.push((file, source));
        Ok(())
    }

    /// Checks that every tensor stands in the file the index names.
    fn check_index(&self, path: &Path) -> Result<()> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let error = |reason| NnError::MalformedIndex { path: path.to_owned(), reason };
        let text = std::fs::read(path).map_err(|source| NnError::Read { path: path.to_owned(), source })?;
        let index: Index = serde_json::from_slice(&text).map_err(|cause| error(cause.to_string()))?;
        for (tensor, file) in &index.weight_map {
            let Some(entry) = self.entries.get(tensor) else {
                return Err(error(format!(
                    "it says that tensor `{tensor}` is in {file}, which has no such tensor"
                )));
            };
            let found = Path::new(&self.sources[entry.file].0);
            if found.file_name() != Some(file.as_ref()) {
                return Err(error(format!(
                    "it says that tensor `{tensor}` is in {file}, but it is in {}",
                    found.display()
                )));
            }
        }
        Ok(())
    }

    /// Every tensor's name and entry, by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// The entry of a tensor.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// The file a tensor stands in.
    pub fn file_of(&self, name: &str) -> Option<&str> {
        self.entries.get(name).map(|entry| self.sources[entry.file].0.as_str())
    }

    /// The files, for messages.
    pub fn description(&self) -> String {
        match self.sources.as_slice() {
            [] => "(empty)".into(),
            [(only, _)] => only.clone(),
            [(first, _), rest @ ..] => format!("{first} and {} more", rest.len()),
        }
    }

    /// The bytes of a tensor by its name, or by its name in the module tree: a checkpoint may leave out
    /// the first part (`transformer.`, `model.`) or have one more.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn find(&self, name: &str) -> Result<TensorView<'_>> {
        let shorter =
            name.split_once('.').map(|(_, rest)| rest).filter(|rest| self.entries.contains_key(*rest));
        let longer =
            || self.entries.keys().find(|key| key.split_once('.').is_some_and(|(_, rest)| rest == name));
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
    /// [`NnError::MalformedFile`] where a zip entry cannot be read.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let Some(entry) = self.entries.get(name) else {
            let keys = || self.entries.keys().map(String::as_str);
            let mut hint = near_names(name, keys());
            if let (true, Some((_, rest))) = (hint.is_empty(), name.split_once('.')) {
                hint = near_names(rest, keys()); // as `find` would have found it
            }
            let (checkpoint, name) = (self.description(), name.to_owned());
            return Err(NnError::UnknownTensor { checkpoint, name, hint });
        };
        let (file, source) = &self.sources[entry.file];
        let data = match source {
            Source::Safetensors(bytes) => bytes[entry.range.0..entry.range.1].into(),
            Source::Pickle(pickle) => pickle.read(file, name)?.into(),
            Source::Gguf(gguf) => gguf.read(entry, name)?,
            Source::HeaderOnly => return Err(NnError::NotLoaded),
        };
        Ok(TensorView { name: name.to_owned(), file, dtype: entry.dtype, shape: &entry.shape, data })
    }
}
