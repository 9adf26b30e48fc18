//! What can go wrong in the docking root.

use crate::base::disk::DiskError;
use crate::dx::error::DxError;
use std::io;
use std::path::PathBuf;

/// A failed operation on the docking root.
#[derive(Debug, thiserror::Error)]
pub enum DockingError {
    /// Another process works on this root.
    #[error("docking root {} is in use by {holder}", root.display())]
    InUse {
        /// The root.
        root: PathBuf,
        /// Who holds it: process id, program and since when, as far as known.
        holder: String,
    },
    /// The Router's ledger is not there.
    #[error("there is no ledger {}: what nodes were given is not known", path.display())]
    NoLedger {
        /// The ledger.
        path: PathBuf,
    },
    /// Another Router took over while this one was paused; nothing of this one counts any more.
    #[error("{}: {owner} has taken over; nothing more is written here", path.display())]
    Fenced {
        /// The ledger.
        path: PathBuf,
        /// Who.
        owner: String,
    },
    /// A file or folder could not be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A folder could not be listed, or a lock not be taken.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A database of the root refused.
    #[error("{operation} in {}", path.display())]
    Sql {
        /// What was tried.
        operation: &'static str,
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A database holds what it never should.
    #[error("{}: {what}", path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A value cannot be stored.
    #[error(transparent)]
    Content(#[from] DxError),
}

impl DockingError {
    /// Returns whether trying again may help: a lock that somebody holds, a full disk.
    pub fn is_transient(&self) -> bool {
        match self {
            DockingError::Disk(error) => error.is_no_space(),
            DockingError::Sql { source, .. } => matches!(
                source.sqlite_error_code(),
                Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked | rusqlite::ErrorCode::DiskFull)
            ),
            _ => false,
        }
    }
}
