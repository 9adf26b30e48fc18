//! `remote-sync status`: how far a local database is, and what waits for a person.
//!
//! Reads `dock_state` and the client folder; takes no lock, so it can be asked while `watch` runs.

use crate::base::disk::DiskError;
use crate::base::folder;
use crate::base::ids::FileNo;
use crate::base::quarantine;
use crate::client::folder::{ClientFolder, FolderError, RemoteConfig};
use crate::store::local::{LocalDatabase, LocalError, LocalState};
use crate::store::local_units::{PendingChange, PendingCounts, PendingUnit};
use std::path::{Path, PathBuf};

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum ClientStatusError {
    /// There is no such database.
    #[error("there is no {}", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// The local database.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The client folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The quarantine cannot be listed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientStatus {
    /// The local database.
    pub database: PathBuf,
    /// What it says of itself.
    pub state: LocalState,
    /// Where the server is.
    pub config: RemoteConfig,
    /// Files received and not applied.
    pub waiting: u64,
    /// The first of them, if it cannot be applied because files before it are missing.
    pub held_by: Option<FileNo>,
    /// Local changes that are not finished.
    pub pending: PendingCounts,
    /// Names of files put aside.
    pub quarantine: Vec<String>,
}

/// Looks at a local database and its folder.
///
/// # Errors
/// It is not there, was not made by `remote-sync init`, or cannot be read.
pub fn status(database: &Path) -> Result<ClientStatus, ClientStatusError> {
    if !database.exists() {
        return Err(ClientStatusError::Missing { path: database.to_owned() });
    }
    let folder = ClientFolder::of(database);
    let config = folder.read_config()?;
    // The inbox first: what is applied in between is then counted as waiting, never the other way round.
    let inbox = folder.inbox_files()?;
    let local = LocalDatabase::open(database)?;
    let (state, pending) = (local.state()?, local.pending_counts()?);
    let next = state.applied_file.next();
    let waiting: Vec<FileNo> = inbox.range(next..).copied().collect();
    Ok(ClientStatus {
        database: database.to_owned(),
        waiting: waiting.len() as u64,
        held_by: waiting.first().is_some_and(|first| *first > next).then_some(next),
        quarantine: quarantine(&folder)?,
        pending,
        state,
        config,
    })
}

/// Local changes that are not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingList {
    /// The units, in order.
    pub units: Vec<PendingUnit>,
    /// Their changed rows, in order, perhaps not all.
    pub changes: Vec<PendingChange>,
    /// How much there is of both.
    pub counts: PendingCounts,
}

/// Lists local changes that are not finished; first makes units of what was changed since the last cut. At most `limit` rows.
///
/// # Errors
/// As [`status`].
pub fn pending(database: &Path, limit: u64) -> Result<PendingList, ClientStatusError> {
    if !database.exists() {
        return Err(ClientStatusError::Missing { path: database.to_owned() });
    }
    let local = LocalDatabase::open(database)?;
    local.cut()?;
    Ok(PendingList { units: local.pending_units()?, changes: local.pending_changes(limit)?, counts: local.pending_counts()? })
}

fn quarantine(folder: &ClientFolder) -> Result<Vec<String>, DiskError> {
    let entries = folder::list(&folder.quarantine())?;
    Ok(entries.into_iter().map(|entry| entry.name.to_string_lossy().into_owned()).filter(|name| !quarantine::is_note(name)).collect())
}
