//! A queue folder: what lies in it, and how a bad file gets out of it.
//!
//! A name that is not a file number is nobody's: it is reported, never opened, moved or deleted.

use crate::base::disk::DiskError;
use crate::base::ids::FileNo;
use crate::docking::error::DockingError;
use crate::docking::root::DockingRoot;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

/// Most files of one name that a quarantine holds.
const QUARANTINE_COPIES_MAX: u32 = 10_000;

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
    for entry in WalkDir::new(folder).min_depth(1).max_depth(1).follow_links(false) {
        let found = entry.and_then(|entry| {
            let number = entry.file_name().to_str().and_then(FileNo::from_file_name).filter(|_| entry.file_type().is_file());
            Ok(match number {
                Some(file_no) => Ok(QueueFile { file_no, bytes: entry.metadata()?.len(), path: entry.into_path() }),
                None => Err(entry.file_name().to_owned()),
            })
        });
        match found {
            Ok(Ok(file)) => listing.files.push(file),
            Ok(Err(name)) => listing.foreign.push(name),
            // The folder is not there, or a file went while we looked.
            Err(error) if error.io_error().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound) => {}
            Err(error) => {
                return Err(DockingError::Io { operation: "list", path: folder.to_owned(), source: error.into() });
            }
        }
    }
    listing.files.sort_by_key(|file| file.file_no);
    listing.foreign.sort();
    Ok(listing)
}

/// Moves a bad file out of its queue, beside a note that says why. Nothing is lost: a second file of that name gets a
/// number. Returns where it lies now.
///
/// # Errors
/// Anything of the disk.
pub fn quarantine(root: &DockingRoot, file: &Path, folder: &Path, tmp: &Path, reason: &str) -> Result<PathBuf, DockingError> {
    let disk = root.disk();
    let name = file.file_name().map_or_else(|| "unnamed".to_owned(), |name| name.to_string_lossy().into_owned());
    for copy in 0..QUARANTINE_COPIES_MAX {
        let name = if copy == 0 { name.clone() } else { format!("{name}.{copy}") };
        match disk.rename(file, folder, &name) {
            Err(DiskError::Exists { .. }) => continue,
            Err(error) => return Err(error.into()),
            Ok(()) => {}
        }
        // First out of the way, then the note: a crash in between leaves a file without a reason, not a bad file in the queue.
        match disk.put(tmp, folder, &format!("{name}.reason"), reason.as_bytes()) {
            Ok(()) | Err(DiskError::Exists { .. }) => return Ok(folder.join(name)),
            Err(error) => return Err(error.into()),
        }
    }
    Err(DiskError::Exists { path: folder.join(name) }.into())
}
