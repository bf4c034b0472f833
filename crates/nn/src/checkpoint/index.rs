//! `*.index.json`: which tensors a sharded checkpoint has, and in which of its files.
//!
//! As in transformers, only tensors listed in the index are read; others in the shards are ignored.
//! If a tensor is in several shards, the copy in the shard that the index names is used
//! (transformers uses the last shard's). If that shard does not have it, the last shard that does
//! is used.

use super::{Checkpoint, Entry, Foreign, Source};
use crate::error::{NnError, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// An index file.
#[derive(Debug)]
pub(super) struct ShardIndex {
    path: PathBuf,
    /// Tensor → file name.
    weight_map: BTreeMap<String, String>,
}

/// Harmless differences between an index and its shards.
#[derive(Debug, Default)]
pub(super) struct IndexNotes {
    /// Tensors that the index lists but no shard has, with the file it names.
    pub(super) absent: BTreeMap<String, String>,
    /// Tensors that the index does not list, with the file they are in.
    pub(super) unlisted: BTreeMap<String, String>,
    /// Tensors for which the index names one shard while a later one has a copy too.
    pub(super) copies: Vec<String>,
}

/// The content of one shard, before the index is applied.
pub(super) struct Shard {
    pub(super) file: String,
    pub(super) source: Source,
    pub(super) entries: Vec<(String, Entry)>,
    pub(super) foreign: Vec<(String, Foreign)>,
}

/// Upper bound of an index in bytes: far more than any real one.
const LONGEST_INDEX: u64 = 64 << 20;

impl ShardIndex {
    pub(super) fn read(path: &Path) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = llm_int8_files::read(path, LONGEST_INDEX).map_err(|source| NnError::Read {
            path: path.to_owned(),
            source,
        })?;
        let index: Index =
            serde_json::from_slice(&text).map_err(|cause| NnError::MalformedIndex {
                path: path.to_owned(),
                reason: cause.to_string(),
            })?;
        Ok(Self {
            path: path.to_owned(),
            weight_map: index.weight_map,
        })
    }

    /// The files that the index names, in the order in which transformers reads them.
    pub(super) fn files<'a>(&self, files: &'a [PathBuf]) -> Result<Vec<&'a PathBuf>> {
        let names: BTreeSet<&str> = self.weight_map.values().map(String::as_str).collect();
        let find = |name: &str| {
            files
                .iter()
                .find(|file| file.file_name() == Some(name.as_ref()))
                .ok_or_else(|| {
                    let reason = format!("it names the file {name}, which is not there");
                    NnError::MalformedIndex {
                        path: self.path.clone(),
                        reason,
                    }
                })
        };

        names.into_iter().map(find).collect()
    }

    /// Combines the shards into one checkpoint according to the index.
    pub(super) fn assemble(&self, shards: Vec<Shard>) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint::empty();
        let mut notes = IndexNotes::default();
        for shard in shards {
            let number = checkpoint.sources.len();
            let here = Path::new(&shard.file)
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            for (name, entry) in shard.entries {
                entry.check(&shard.file, &name)?;
                let Some(listed) = self.weight_map.get(&name) else {
                    notes.unlisted.insert(name, shard.file.clone());
                    continue;
                };
                let found = checkpoint
                    .entries
                    .get(&name)
                    .map(|entry| &checkpoint.sources[entry.file].0);
                let is_settled =
                    found.is_some_and(|file| Path::new(file).file_name() == Some(listed.as_ref()));

                if is_settled && listed != here {
                    notes.copies.push(name);
                } else {
                    checkpoint.insert(number, name, entry);
                }
            }

            let listed = shard
                .foreign
                .into_iter()
                .filter(|(name, _)| self.weight_map.contains_key(name));
            checkpoint
                .foreign
                .extend(listed.map(|(name, foreign)| (name, (shard.file.clone(), foreign))));

            checkpoint.sources.push((shard.file, shard.source));
        }

        notes.absent = self
            .weight_map
            .iter()
            .filter(|(name, _)| {
                !checkpoint.entries.contains_key(*name) && !checkpoint.foreign.contains_key(*name)
            })
            .map(|(name, file)| (name.clone(), file.clone()))
            .collect();

        notes.copies.sort();
        notes.copies.dedup();
        checkpoint.notes = notes;

        Ok(checkpoint)
    }
}
