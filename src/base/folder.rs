//! What lies in one folder. Links are never followed, and the order is that of the names.

use crate::base::disk::DiskError;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

/// What an entry of a folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// An ordinary file of so many bytes.
    File {
        /// Its length.
        bytes: u64,
    },
    /// A folder.
    Folder,
    /// A symbolic link, a device, a pipe.
    Other,
}

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: OsString,
    /// Its path.
    pub path: PathBuf,
    /// What it is.
    pub kind: EntryKind,
}

/// Lists a folder, not what lies below it. A folder that is not there is an empty one, and so is a file that goes while we look.
///
/// # Errors
/// The folder cannot be read.
pub fn list(folder: &Path) -> Result<Vec<Entry>, DiskError> {
    let mut entries = Vec::new();
    for found in WalkDir::new(folder).min_depth(1).max_depth(1).follow_links(false).sort_by_file_name() {
        let entry = found.and_then(|entry| {
            let kind = match entry.file_type() {
                kind if kind.is_file() => EntryKind::File { bytes: entry.metadata()?.len() },
                kind if kind.is_dir() => EntryKind::Folder,
                _ => EntryKind::Other,
            };
            Ok(Entry { name: entry.file_name().to_owned(), path: entry.into_path(), kind })
        });
        match entry {
            Ok(entry) => entries.push(entry),
            Err(error) if error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound) => {}
            Err(error) => return Err(DiskError::Io { operation: "list", path: folder.to_owned(), source: error.into() }),
        }
    }
    Ok(entries)
}
