//! A lock file: who holds a folder, and since when, for people.
//!
//! The operating system gives the lock back when its holder dies, so there is no stale lock to clean up.

use crate::base::defect::{self, Defect};
use crate::base::disk::{Disk, DiskError, io_error};
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Most bytes that are read of a lock file.
const NOTE_BYTES_MAX: u64 = 1 << 10;

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Alone.
    Exclusive,
    /// With others who share it.
    Shared,
}

/// A held lock; it goes when it is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Returns whether the lock file is still the one that is held: not if somebody deleted it and another process made it anew.
    /// Where files have no numbers (not Unix), it is taken to be so.
    pub fn is_current(&self) -> bool {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let number = |found: std::fs::Metadata| (found.dev(), found.ino());
            match (self.file.metadata(), self.path.symlink_metadata()) {
                (Ok(held), Ok(there)) => number(held) == number(there),
                _ => false,
            }
        }
        #[cfg(not(unix))]
        true
    }
}

/// The answer of a lock file.
#[derive(Debug)]
pub enum Taken {
    /// It is ours.
    Held(Lock),
    /// Somebody else has it: process id, program and since when, as far as known.
    Busy(String),
}

impl Lock {
    /// Tries to take the lock file at `path`, and makes it if needed. An exclusive holder writes down who it is.
    ///
    /// # Errors
    /// Anything of the disk.
    pub fn take(disk: &Disk, path: &Path, hold: Hold) -> Result<Taken, DiskError> {
        let mut file = disk.open_part(path)?;
        let taken = match hold {
            Hold::Exclusive => file.try_lock(),
            Hold::Shared => file.try_lock_shared(),
        };
        match taken {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if defect::is_planted(Defect::UnlockedRoot) => {}
            Err(TryLockError::WouldBlock) => return Ok(Taken::Busy(holder(file))),
            Err(TryLockError::Error(error)) => return Err(io_error("lock", path)(error)),
        }
        if hold == Hold::Exclusive {
            let program = std::env::current_exe().ok().and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()));
            let program = program.unwrap_or_else(|| "unknown program".to_owned());
            let since = jiff::Timestamp::now();
            file.set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| writeln!(file, "process {} ({program}) since {since:.0}", std::process::id()))
                .map_err(io_error("write", path))?;
        }
        Ok(Taken::Held(Lock { file, path: path.to_owned() }))
    }
}

/// The holder is only a courtesy: a note that cannot be read must not hide why the lock cannot be had.
fn holder(file: File) -> String {
    let mut note = String::new();
    match file.take(NOTE_BYTES_MAX).read_to_string(&mut note) {
        Ok(_) if !note.trim().is_empty() => note.trim().to_owned(),
        _ => "another process".to_owned(),
    }
}
