//! The zip archive of a `torch.save` file. Its records are uncompressed, so a mapped tensor needs
//! no copy.

use super::Refusal;
use std::collections::HashMap;
use std::io::Cursor;
use zip::{CompressionMethod, ZipArchive};

/// Start and end of a record's bytes in the file.
pub(super) type Range = (usize, usize);

/// The records of an archive.
#[derive(Debug)]
pub(super) struct Archive {
    /// The folder that all records are in; torch names it after the file.
    folder: String,
    records: HashMap<String, Range>,
}

impl Archive {
    /// Reads the central directory and checks every record against the file.
    pub(super) fn open(bytes: &[u8]) -> Result<Self, Refusal> {
        let damaged = |cause: &dyn std::fmt::Display| {
            Refusal::Damaged(format!(
                "it cannot be read as a zip archive of torch.save ({cause})"
            ))
        };

        let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(|cause| damaged(&cause))?;
        let mut archive = Self {
            folder: String::new(),
            records: HashMap::new(),
        };
        let mut compressed = None;

        for number in 0..zip.len() {
            let record = zip.by_index_raw(number).map_err(|cause| damaged(&cause))?;
            let Ok(name) = std::str::from_utf8(record.name_raw()) else {
                continue;
            };

            if number == 0 {
                archive.folder = name.split('/').next().unwrap_or_default().to_owned();
            }
            if record.compression() != CompressionMethod::Stored
                || record.size() != record.compressed_size()
            {
                compressed = Some(name.to_owned());
                continue;
            }

            let start = record
                .data_start()
                .and_then(|start| usize::try_from(start).ok());
            let size = usize::try_from(record.size()).ok();
            let range = start
                .zip(size)
                .and_then(|(start, size)| Some((start, start.checked_add(size)?)));
            match range {
                Some(range) if range.1 <= bytes.len() => {
                    archive.records.insert(name.to_owned(), range)
                }
                _ => {
                    return Err(damaged(&format!(
                        "its record `{name}` does not lie within the file"
                    )));
                }
            };
        }

        archive.check(bytes)?;
        match compressed {
            None => Ok(archive),
            Some(name) => Err(Refusal::Unsupported(format!(
                "its record `{name}` is compressed, which torch.save never does; load it with torch and save it again"
            ))),
        }
    }

    /// Rejects TorchScript and big-endian files.
    fn check(&self, bytes: &[u8]) -> Result<(), Refusal> {
        if self.record("constants.pkl").is_some() {
            let reason = "it is a TorchScript archive; save the model's `state_dict()` with torch.save instead";
            return Err(Refusal::Unsupported(reason.into()));
        }

        match self
            .record("byteorder")
            .and_then(|(start, end)| bytes.get(start..end))
        {
            None | Some(b"little") => Ok(()),
            Some(b"big") => {
                let reason = "it was written by a big-endian machine; load it with torch and save it again on \
                              a little-endian one";
                Err(Refusal::Unsupported(reason.into()))
            }
            Some(_) => Err(Refusal::Damaged(
                "its record `byteorder` is neither little nor big".into(),
            )),
        }
    }

    /// The place of a record, by its name within the archive's folder.
    pub(super) fn record(&self, name: &str) -> Option<Range> {
        self.records
            .get(&format!("{}/{name}", self.folder))
            .copied()
    }
}
