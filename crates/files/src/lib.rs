//! Files and folders that appear at their place whole or not at all, and reads that end.
//!
//! What is written is filled under a new, random name beside its target, synced and renamed.
//! Nothing that is there already is taken over: neither a leftover of a killed process nor a link.
//! Leftovers of more than a day are removed by the next write to the same target.
//!
//! ```
//! use std::io::Write;
//! # let folder = tempfile::tempdir()?;
//! let target = folder.path().join("notes.txt");
//! let mut file = llm_int8_files::NewFile::begin(&target)?;
//! file.write_all(b"whole")?;
//! assert!(!target.exists());
//! file.commit()?;
//! assert_eq!(llm_int8_files::read(&target, 100)?, b"whole");
//! # Ok::<(), std::io::Error>(())
//! ```

mod beside;
mod new_file;
mod new_folder;
mod read;
mod temporary;

pub use new_file::{NewFile, copy, write};
pub use new_folder::NewFolder;
pub use read::{open, read};
pub use temporary::{Unfinished, remove_unfinished};
