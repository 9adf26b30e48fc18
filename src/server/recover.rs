//! `recover`: a server database that is not the one read last (R14, fault 20). Says what was found, and carries out what the
//! administrator chooses; nothing is chosen by itself, since only a person knows what was done to the file.

use crate::base::ids::{Revision, TxnId};
use crate::cds::layout::{connect_read_only, read_state, running_nodes};
use crate::cds::{CdsError, CdsState};
use crate::docking::root::DockingRoot;
use crate::docking::sessions::{SessionsDb, SessionsError};
use crate::store::log::ReadOptions;
use crate::store::recover::{Recovered, Remembered};
use crate::store::sqlite::{ServerDatabase, StoreError};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Why nothing was recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The server database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data store.
    #[error(transparent)]
    Cds(#[from] CdsError),
    /// What is known of nodes.
    #[error(transparent)]
    Sessions(#[from] SessionsError),
    /// Another server's.
    #[error("{} is of server {found}, the docking root {} of server {known}", database.display(), root.display())]
    OtherServer {
        /// The server database.
        database: PathBuf,
        /// Its identity.
        found: String,
        /// The docking root.
        root: PathBuf,
        /// Whose it is.
        known: String,
    },
    /// The database has another definition than its data store.
    #[error("{} has definition {found}, its data store {known}", database.display())]
    Definition {
        /// The server database.
        database: PathBuf,
        /// Its revision.
        found: Revision,
        /// The data store's.
        known: Revision,
    },
    /// There is nothing to recover.
    #[error("{} is the database that was read last: there is nothing to recover", .0.display())]
    Sound(PathBuf),
}

/// What is the matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is the database that was read last.
    Sound,
    /// It is another copy: restored, replaced, or read by somebody else too.
    AnotherCopy,
    /// It is the same, but its log is not whole.
    LogNotWhole,
    /// It belongs to another server.
    OtherServer,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// What is the matter.
    pub verdict: Verdict,
    /// Position up to which the log was read.
    pub read_up_to: i64,
    /// Position in the tail of the database; `None` = it was never read.
    pub tail: Option<i64>,
    /// End of its log.
    pub log_end: i64,
    /// Rows of its log above what was read.
    pub rows_above: u64,
    /// When the first of them was written (UTC).
    pub since: Option<String>,
    /// When the last row of its log was written (UTC).
    pub last_logged: Option<String>,
    /// Epoch of the data store.
    pub epoch_known: u32,
    /// Epoch of the database.
    pub epoch_found: u32,
    /// Nodes whose streams run.
    pub nodes: usize,
}

fn known(root: &Path) -> Result<CdsState, CdsError> {
    let path = DockingRoot::look(root).cds_db();
    if !path.exists() {
        return Err(CdsError::Missing { path });
    }
    let read = connect_read_only(&path).and_then(|conn| read_state(&conn));
    read.map_err(|source| CdsError::Sql { path: path.clone(), what: "read the commit point", source })?.ok_or(CdsError::Missing { path })
}

/// Looks at database and data store. Changes nothing.
///
/// # Errors
/// One of them cannot be read.
pub fn look(database: &Path, root: &Path) -> Result<Findings, RecoverError> {
    let state = known(root)?;
    let server = ServerDatabase::open(database)?;
    let identity = server.identity()?;
    let (rows_above, since) = server.log_above(state.position)?;
    let log_end = server.log_end()?;
    let verdict = if identity.server_id != state.server_id {
        Verdict::OtherServer
    } else {
        match server.check_mark(&ReadOptions { after: state.position, known: Some(state.nonce) }) {
            Err(StoreError::NotTheSameDatabase { .. }) => Verdict::AnotherCopy,
            Err(error) => return Err(error.into()),
            Ok(()) if log_end.0 - state.position.0 != i64::try_from(rows_above).unwrap_or(i64::MAX) => Verdict::LogNotWhole,
            Ok(()) => Verdict::Sound,
        }
    };
    Ok(Findings {
        verdict,
        read_up_to: state.position.0,
        tail: server.tail()?.map(|tail| tail.position.0),
        log_end: log_end.0,
        rows_above,
        since,
        last_logged: server.log_written_at()?,
        epoch_known: state.epoch.0,
        epoch_found: identity.epoch.0,
        nodes: running_nodes(&DockingRoot::look(root).cds_db())?.len(),
    })
}

fn begin(database: &Path, root: &DockingRoot) -> Result<(ServerDatabase, CdsState), RecoverError> {
    let state = known(root.path())?;
    let server = ServerDatabase::open(database)?;
    let identity = server.identity()?;
    if identity.server_id != state.server_id {
        return Err(RecoverError::OtherServer {
            database: database.to_owned(),
            found: identity.server_id.to_string(),
            root: root.path().to_owned(),
            known: state.server_id.to_string(),
        });
    }
    if look(database, root.path())?.verdict == Verdict::Sound {
        return Err(RecoverError::Sound(database.to_owned()));
    }
    Ok((server, state))
}

/// The database was restored, or replaced by an older or newer copy of itself: it begins a new epoch. The docking root must be
/// open exclusively, so that no stage reads meanwhile.
///
/// # Errors
/// The database is another server's, or has another definition; or it refused. Then nothing was changed.
pub fn restored(database: &Path, root: &DockingRoot) -> Result<Recovered, RecoverError> {
    let (server, state) = begin(database, root)?;
    let found = server.identity()?.revision;
    if found != state.revision {
        return Err(RecoverError::Definition { database: database.to_owned(), found, known: state.revision });
    }
    let nodes = running_nodes(&root.cds_db())?;
    let seen = SessionsDb::open(&root.sessions_db())?.keys()?;
    let keys: Vec<_> = seen.into_iter().map(|seen| (seen.node, seen.key, seen.since)).collect();
    let remembered = Remembered { position: state.position, nonce: state.nonce, epoch: state.epoch, nodes: &nodes, keys: &keys };
    Ok(server.declare_restored(&remembered)?)
}

/// The database holds what it held, as a copy that was made on purpose: it is read on from where it was read last.
///
/// # Errors
/// As [`restored`]; or its log cannot go on there.
pub fn moved(database: &Path, root: &DockingRoot) -> Result<TxnId, RecoverError> {
    let (server, state) = begin(database, root)?;
    server.accept_tail(state.position, state.nonce)?;
    Ok(state.position)
}
