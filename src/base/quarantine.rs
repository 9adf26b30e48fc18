//! How a bad file gets out of a queue: it is moved aside with a note that says why.
//!
//! Nothing is lost: a second file of that name gets a number. Nothing grows without end either.

use crate::base::disk::{Disk, DiskError};
use std::path::{Path, PathBuf};

/// Files of one name that are kept. A hundred different flawed ones tell all there is to know; more would fill the disk.
const COPIES_MAX: usize = 100;

/// A file that must leave its queue.
#[derive(Debug, Clone, Copy)]
pub struct Aside<'a> {
    /// Where it lies.
    pub file: &'a Path,
    /// The name that it should have there.
    pub name: &'a str,
    /// The quarantine.
    pub quarantine: &'a Path,
    /// Where the note is written before it is whole.
    pub tmp: &'a Path,
    /// Why, for people.
    pub reason: &'a str,
}

/// Moves a file to quarantine and writes `NAME.reason` beside it. Returns where it lies now; `None` if there were so many of its
/// name that it was deleted.
///
/// # Errors
/// Anything of the disk.
pub fn put_aside(disk: &Disk, aside: &Aside<'_>) -> Result<Option<PathBuf>, DiskError> {
    for name in names(aside.name) {
        match disk.rename(aside.file, aside.quarantine, &name) {
            Err(DiskError::Exists { .. }) => continue,
            Err(error) => return Err(error),
            Ok(()) => {}
        }
        // First out of the way, then the note: a crash in between leaves a file without a reason, not a bad file in the queue.
        return match disk.put(aside.tmp, aside.quarantine, &format!("{name}.reason"), format!("{}\n", aside.reason).as_bytes()) {
            Ok(()) | Err(DiskError::Exists { .. }) => Ok(Some(aside.quarantine.join(name))),
            Err(error) => Err(error),
        };
    }
    disk.remove(aside.file)?;
    Ok(None)
}

/// Returns the names that a file can have in quarantine, in the order in which they are taken.
pub fn names(name: &str) -> impl Iterator<Item = String> {
    (0..COPIES_MAX).map(move |number| if number == 0 { name.to_owned() } else { format!("{name}.{number}") })
}

/// Returns whether a name in quarantine is that of a note, not of a file.
pub fn is_note(name: &str) -> bool {
    name.ends_with(".reason")
}
