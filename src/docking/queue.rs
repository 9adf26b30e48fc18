//! A queue folder: what lies in it.
//!
//! A name that is not a file number is nobody's: it is reported, never opened, moved or deleted.

use crate::base::folder::{self, EntryKind};
use crate::base::ids::FileNo;
use crate::docking::error::DockingError;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What lies in a queue folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Numbered files in ascending order.
    pub files: Vec<QueueFile>,
    /// Anything else: names that are no file number, links, folders.
    pub foreign: Vec<OsString>,
}

/// A numbered file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueFile {
    /// Its number.
    pub file_no: FileNo,
    /// Its path.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
}

/// Lists a queue folder; a missing folder is an empty one. Links are not followed.
///
/// # Errors
/// If the folder cannot be read.
pub fn list(folder: &Path) -> Result<Listing, DockingError> {
    let mut listing = Listing::default();
    for entry in folder::list(folder)? {
        let number = entry.name.to_str().and_then(FileNo::from_file_name);
        match (number, entry.kind) {
            (Some(file_no), EntryKind::File { bytes }) => listing.files.push(QueueFile { file_no, path: entry.path, bytes }),
            _ => listing.foreign.push(entry.name),
        }
    }
    // Numbers beyond eight digits sort otherwise than their names.
    listing.files.sort_by_key(|file| file.file_no);
    Ok(listing)
}
