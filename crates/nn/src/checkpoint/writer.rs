//! Writes safetensors files tensor by tensor, so that only the tensor in flight is in memory twice.
//! Everything is written under temporary names and renamed at the end, so that no loader picks up a
//! partial checkpoint.

use crate::error::{NnError, Result};
use llm_int8_files::NewFile;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// A tensor to write. Its bytes are produced only when it is its turn.
pub struct NewTensor<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Box<dyn Fn() -> Result<Cow<'a, [u8]>> + 'a>,
}

impl<'a> NewTensor<'a> {
    /// A tensor with this name, dtype and shape. `bytes` returns its elements, little-endian and
    /// row-major.
    pub fn new(
        name: String,
        dtype: Dtype,
        shape: &[usize],
        bytes: impl Fn() -> Result<Cow<'a, [u8]>> + 'a,
    ) -> Self {
        Self {
            name,
            dtype,
            shape: shape.to_vec(),
            bytes: Box::new(bytes),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Size of its data in bytes.
    pub fn len(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8) as u64
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Progress of a write.
#[derive(Debug, Clone, Copy)]
pub struct WriteEvent<'a> {
    /// The tensor just written.
    pub tensor: &'a str,
    /// Bytes written so far.
    pub done: u64,
    /// Bytes to write in all.
    pub total: u64,
}

/// Called after each tensor. Returning [`ControlFlow::Break`] stops the write with
/// [`NnError::Interrupted`].
pub type WriteObserver<'a> = dyn FnMut(WriteEvent<'_>) -> ControlFlow<()> + 'a;

/// A folder that appears at its target all at once: it is filled under a temporary name next to the
/// target and renamed by [`NewFolder::commit`].
///
/// Dropping it without a commit leaves nothing behind. If the process is killed, a hidden folder
/// ending in `.partial` stays; a write to the same target removes it after a day.
#[derive(Debug)]
pub struct NewFolder {
    target: PathBuf,
    folder: llm_int8_files::NewFolder,
}

impl NewFolder {
    /// Checks that a folder could be created at `target`. Useful before long work.
    ///
    /// # Errors
    /// [`NnError::TargetExists`], also for a link: a rename would replace it and not what it names.
    pub fn check(target: &Path) -> Result<()> {
        let is_taken = match std::fs::read_dir(target) {
            Ok(mut entries) => entries.next().is_some() || target.is_symlink(),
            Err(_) => target.symlink_metadata().is_ok(),
        };

        if is_taken || target.file_name().is_none() {
            return Err(NnError::TargetExists {
                path: target.to_owned(),
            });
        }

        Ok(())
    }

    /// Starts a folder that will be at `target`, which must not exist or be an empty folder.
    ///
    /// # Errors
    /// [`NnError::TargetExists`]; [`NnError::Write`].
    pub fn begin(target: &Path) -> Result<Self> {
        Self::check(target)?;
        let folder = llm_int8_files::NewFolder::begin(target).map_err(|source| NnError::Write {
            path: target.to_owned(),
            source,
        })?;

        Ok(Self {
            target: target.to_owned(),
            folder,
        })
    }

    /// Writes tensors to one safetensors file of this name.
    ///
    /// # Errors
    /// As [`NewFolder::write_tensors`].
    pub fn write_file(&self, name: &str, tensors: &[NewTensor<'_>]) -> Result<()> {
        write_safetensors(&self.folder.path().join(name), tensors)
    }

    /// Writes a small file. `name` is relative to the folder; parent folders are created.
    ///
    /// # Errors
    /// [`NnError::Write`], [`NnError::DiskFull`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.folder.path().join(name);
        let write = || -> std::io::Result<()> {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let mut file = File::create_new(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };

        write().map_err(|cause| write_error(&self.target.join(name), cause, bytes.len() as u64))
    }

    /// Writes tensors as transformers' `save_pretrained` does: as `model.safetensors`, or as shards
    /// of at most `max_shard_size` bytes with an index. A tensor larger than that gets its own
    /// shard.
    ///
    /// # Errors
    /// [`NnError::Write`], [`NnError::DiskFull`], [`NnError::Interrupted`]; the errors of the
    /// tensors' bytes.
    pub fn write_tensors(
        &self,
        tensors: &[NewTensor<'_>],
        max_shard_size: u64,
        observe: &mut WriteObserver<'_>,
    ) -> Result<()> {
        let shards = split(tensors, max_shard_size);
        let mut progress = Progress {
            done: 0,
            total: tensors.iter().map(NewTensor::len).sum(),
            observe,
        };

        let mut weight_map = BTreeMap::new();
        for (number, shard) in shards.iter().enumerate() {
            let name = match shards.len() {
                1 => "model.safetensors".to_owned(),
                count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
            };

            let partial = self.folder.path();
            let path = partial.join(&name);
            File::create_new(&path)
                .map_err(|cause| write_error(&path, cause, progress.total))
                .and_then(|file| write_file(file, &path, shard, &mut progress))
                .and_then(|file| {
                    file.sync_all()
                        .map_err(|cause| write_error(&path, cause, progress.total))
                })
                .map_err(|error| error.at(partial, &self.target))?;
            for tensor in shard {
                weight_map.insert(tensor.name.clone(), name.clone());
            }
        }

        if shards.len() == 1 {
            return Ok(());
        }

        let index = serde_json::json!({ "metadata": { "total_size": progress.total }, "weight_map": weight_map });
        self.write(
            "model.safetensors.index.json",
            format!("{index:#}\n").as_bytes(),
        )
    }

    /// Syncs the folder and renames it to its target.
    ///
    /// # Errors
    /// [`NnError::Write`].
    pub fn commit(self) -> Result<()> {
        let path = self.target;
        self.folder
            .commit()
            .map_err(|source| NnError::Write { path, source })
    }
}

/// Writes one safetensors file: under a temporary name next to `path`, synced, then renamed.
///
/// # Errors
/// As [`NewFolder::write_tensors`].
pub fn write_safetensors(path: &Path, tensors: &[NewTensor<'_>]) -> Result<()> {
    let all: Vec<&NewTensor<'_>> = tensors.iter().collect();
    let total = tensors.iter().map(NewTensor::len).sum();
    let failed = |cause| write_error(path, cause, total);
    let mut progress = Progress {
        done: 0,
        total,
        observe: &mut |_| ControlFlow::Continue(()),
    };

    let file = NewFile::begin(path).map_err(failed)?;
    write_file(file, path, &all, &mut progress)?
        .commit()
        .map_err(failed)
}

struct Progress<'a, 'b> {
    done: u64,
    total: u64,
    observe: &'a mut WriteObserver<'b>,
}

/// Assigns tensors to shards as huggingface_hub's `split_torch_state_dict_into_shards` does.
fn split<'a, 'b>(tensors: &'a [NewTensor<'b>], max_shard_size: u64) -> Vec<Vec<&'a NewTensor<'b>>> {
    let mut shards = Vec::new();
    let mut current = Vec::new();
    let mut size = 0;

    for tensor in tensors {
        let len = tensor.len();
        if len > max_shard_size {
            shards.push(vec![tensor]);
            continue;
        }

        if size + len > max_shard_size {
            shards.push(std::mem::take(&mut current));
            size = 0;
        }

        current.push(tensor);
        size += len;
    }

    if !current.is_empty() || shards.is_empty() {
        shards.push(current);
    }

    shards
}

/// Writes tensors into an empty file, which is returned. `path` names it in errors.
fn write_file<W: Write>(
    file: W,
    path: &Path,
    tensors: &[&NewTensor<'_>],
    progress: &mut Progress<'_, '_>,
) -> Result<W> {
    // The order of the safetensors library: widest dtype first, then by name.
    let mut ordered = tensors.to_vec();
    ordered.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
    let total: u64 = ordered.iter().map(|tensor| tensor.len()).sum();
    let failed = |cause| write_error(path, cause, total);
    let header = header(&ordered).map_err(failed)?;
    let mut file = BufWriter::new(file);
    file.write_all(&(header.len() as u64).to_le_bytes())
        .map_err(failed)?;
    file.write_all(&header).map_err(failed)?;

    for tensor in ordered {
        let bytes = (tensor.bytes)()?;
        if bytes.len() as u64 != tensor.len() {
            let reason = format!(
                "tensor `{}` has {} bytes of {}",
                tensor.name,
                bytes.len(),
                tensor.len()
            );
            return Err(failed(std::io::Error::other(reason)));
        }

        file.write_all(&bytes).map_err(failed)?;
        progress.done += tensor.len();
        let event = WriteEvent {
            tensor: &tensor.name,
            done: progress.done,
            total: progress.total,
        };

        if (progress.observe)(event).is_break() {
            return Err(NnError::Interrupted {
                path: path.to_owned(),
            });
        }
    }

    file.into_inner()
        .map_err(|error| failed(error.into_error()))
}

/// The header JSON, padded with spaces to a multiple of 8 bytes.
fn header(ordered: &[&NewTensor<'_>]) -> std::io::Result<Vec<u8>> {
    let mut end = 0;
    let infos = ordered.iter().map(|tensor| {
        let start = end;
        end += tensor.len() as usize;
        let info = TensorInfo {
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            data_offsets: (start, end),
        };
        (tensor.name.clone(), info)
    });

    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let metadata = Metadata::new(Some(metadata), infos.collect()).map_err(std::io::Error::other)?;
    let mut header = serde_json::to_vec(&metadata)?;
    header.resize(header.len().next_multiple_of(8), b' ');

    Ok(header)
}

fn write_error(path: &Path, cause: std::io::Error, needed: u64) -> NnError {
    match cause.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => NnError::DiskFull {
            path: path.to_owned(),
            needed,
        },
        _ => NnError::Write {
            path: path.to_owned(),
            source: cause,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, dtype: Dtype, count: usize) -> NewTensor<'static> {
        let size = dtype.bitsize() / 8;
        NewTensor::new(name.into(), dtype, &[count], move || {
            Ok(vec![7; count * size].into())
        })
    }

    fn go_on(_: WriteEvent<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    #[test]
    fn shards_are_filled_in_order_and_large_tensors_get_their_own() {
        let tensors = [("a", 4), ("b", 4), ("huge", 40), ("c", 4), ("d", 4)]
            .map(|(n, c)| tensor(n, Dtype::U8, c));
        let names = |limit| -> Vec<String> {
            let shards = split(&tensors, limit);
            shards
                .iter()
                .map(|s| s.iter().map(|t| t.name()).collect::<Vec<_>>().join("+"))
                .collect()
        };

        assert_eq!(names(100), ["a+b+huge+c+d"]);
        assert_eq!(names(12), ["huge", "a+b+c", "d"]);
        assert_eq!(names(1), ["a", "b", "huge", "c", "d"]);
    }

    #[test]
    fn files_are_written_as_the_safetensors_library_writes_them() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model");
        let new = NewFolder::begin(&target).unwrap();
        let tensors = [
            tensor("codes", Dtype::I8, 3),
            tensor("b", Dtype::F16, 2),
            tensor("a", Dtype::F32, 1),
        ];
        new.write_tensors(&tensors, 1 << 30, &mut go_on).unwrap();

        assert!(!target.exists());
        new.commit().unwrap();
        let bytes = std::fs::read(target.join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("codes").unwrap().data(), [7; 3]);

        let theirs = file.tensors();
        let metadata = Some([("format".to_owned(), "pt".to_owned())].into());

        assert_eq!(
            safetensors::serialize(theirs, metadata).unwrap(),
            bytes,
            "byte for byte the library's output"
        );
    }

    #[test]
    fn an_interrupted_write_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model");
        let new = NewFolder::begin(&target).unwrap();
        let error = new
            .write_tensors(&[tensor("a", Dtype::U8, 9)], 1, &mut |_| {
                ControlFlow::Break(())
            })
            .unwrap_err();
        assert!(matches!(error, NnError::Interrupted { .. }));
        drop(new);

        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn existing_files_are_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("mine"), "x").unwrap();
        for taken in [folder.path().to_owned(), folder.path().join("mine")] {
            let error = NewFolder::begin(&taken).unwrap_err().to_string();
            assert!(error.contains("exists"), "{error}");
        }

        let empty = folder.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        NewFolder::begin(&empty).unwrap().commit().unwrap();

        assert!(empty.is_dir());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_refused_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::fs::create_dir(folder.path().join("empty")).unwrap();
        std::os::unix::fs::symlink("empty", &link).unwrap();
        let error = NewFolder::check(&link).unwrap_err().to_string();
        assert!(error.contains("exists"), "{error}");
    }

    #[test]
    fn a_full_disk_has_its_own_error() {
        let cause = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = write_error(Path::new("m/model.safetensors"), cause, 1234).to_string();
        assert!(
            error.contains("disk is full") && error.contains("1234 bytes"),
            "{error}"
        );
    }
}
