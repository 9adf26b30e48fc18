//! Putting an extract in the place of the local database: judge the new one, give it its identity, bring the old one to rest.
//!
//! **Invariants**: a new database takes the place only if SQLite finds it sound and `dock_state` names the server, epoch, node and
//! extract that were asked for; the old one has no WAL left when it is renamed over, because a stale WAL beside a new file is damage.

use super::local_capture::{CaptureError, ensure_capture};
use crate::base::defect;
use crate::base::ids::{Epoch, Incarnation, InstallId, NodeName, ServerId};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What can be wrong with the new or the old database.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// SQLite says so.
    #[error("{action} {}: {source}", .path.display())]
    Sql {
        /// What was tried.
        action: &'static str,
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The new database is damaged.
    #[error("{} is damaged: {why}", .path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What the check found first.
        why: String,
    },
    /// The new database is not the one that was asked for.
    #[error("{}: dock_state.{column} is {found}, expected {expected}", .path.display())]
    Foreign {
        /// The database.
        path: PathBuf,
        /// Which column.
        column: &'static str,
        /// What it holds.
        found: String,
        /// What it should hold.
        expected: String,
    },
    /// Its changes cannot be captured.
    #[error("{}: {source}", .path.display())]
    Capture {
        /// The database.
        path: PathBuf,
        /// Why.
        source: CaptureError,
    },
    /// Some program has the old database open.
    #[error("{} is open in another program", .path.display())]
    InUse {
        /// The database.
        path: PathBuf,
    },
}

/// What the new database must say of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Server that the extract came from.
    pub server_id: ServerId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The node.
    pub node: NodeName,
    /// The extract.
    pub incarnation: Incarnation,
}

/// Checks a new database, writes its identity into it and sets up the capture of local changes. The file is closed, without a WAL, afterwards; flushing it is the caller's.
///
/// # Errors
/// Damaged, foreign, or not to be written.
pub fn adopt(path: &Path, expected: &Expected, install_id: InstallId) -> Result<(), InstallError> {
    let at = |action| move |source| InstallError::Sql { action, path: path.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(at("open"))?;
    connection.pragma_update(None, "trusted_schema", false).map_err(at("open"))?;
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(at("check"))?;
    if found != "ok" {
        return Err(InstallError::Damaged { path: path.to_owned(), why: found });
    }
    let rows: i64 = connection.query_row("SELECT count(*) FROM dock_state", [], |row| row.get(0)).map_err(at("read dock_state of"))?;
    if rows != 1 {
        return Err(InstallError::Damaged { path: path.to_owned(), why: format!("dock_state has {rows} rows, not one") });
    }
    let binary = connection
        .query_row("SELECT server_id, epoch, node, incarnation FROM dock_state", [], |row| {
            let server_id = row.get_ref(0)?;
            let binary = matches!(server_id, ValueRef::Blob(_));
            let found = [
                ("server_id", spell(server_id)),
                ("epoch", spell(row.get_ref(1)?)),
                ("node", spell(row.get_ref(2)?)),
                ("incarnation", spell(row.get_ref(3)?)),
            ];
            Ok((binary, found))
        })
        .map_err(at("read dock_state of"))
        .and_then(|(binary, found)| {
            let wanted =
                [expected.server_id.to_string(), expected.epoch.to_string(), expected.node.to_string(), expected.incarnation.to_string()];
            for ((column, found), expected) in found.into_iter().zip(wanted) {
                if found != expected {
                    return Err(InstallError::Foreign { path: path.to_owned(), column, found, expected });
                }
            }
            Ok(binary)
        })?;
    connection.pragma_update(None, "synchronous", defect::synchronous()).map_err(at("write dock_state of"))?;
    // Ids are kept in one form; the extract's own id shows which.
    let written = if binary {
        connection.execute("UPDATE dock_state SET install_id = ?", [&install_id.0[..]])
    } else {
        connection.execute("UPDATE dock_state SET install_id = ?", [install_id.to_string()])
    };
    written.map_err(at("write dock_state of"))?;
    ensure_capture(&connection, &[]).map_err(|source| InstallError::Capture { path: path.to_owned(), source })?;
    rest(&connection, path)?;
    connection.close().map_err(|(_, source)| at("close")(source))
}

/// Brings a database to rest before its file is replaced: nobody has it open, and everything in its WAL is in the file.
///
/// # Errors
/// `InUse` if a program has it open.
pub fn retire(path: &Path) -> Result<(), InstallError> {
    let at = |source| InstallError::Sql { action: "open", path: path.to_owned(), source };
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(at)?;
    connection.busy_timeout(Duration::from_secs(2)).map_err(at)?;
    rest(&connection, path)?;
    connection.close().map_err(|(_, source)| at(source))
}

/// Leaves WAL mode, which takes the only connection and moves the WAL into the file.
fn rest(connection: &Connection, path: &Path) -> Result<(), InstallError> {
    let mode: Result<String, rusqlite::Error> = connection.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0));
    match mode {
        Ok(mode) if mode == "delete" => Ok(()),
        Ok(_) => Err(InstallError::InUse { path: path.to_owned() }),
        Err(error) if matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)) => {
            Err(InstallError::InUse { path: path.to_owned() })
        }
        Err(source) => Err(InstallError::Sql { action: "bring to rest", path: path.to_owned(), source }),
    }
}

/// Returns an id, number or name as it is spelt elsewhere.
fn spell(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        ValueRef::Blob(bytes) => hex::encode(bytes),
    }
}
