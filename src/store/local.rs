//! The local database of a node: ordinary SQLite that any program writes, with our few `dock_*` tables in it.
//!
//! Invariants:
//! - The connection opened here runs with triggers and foreign keys **off**: what was captured is the whole effect of
//!   a change, so nothing may fire a second time (R10). CHECK, NOT NULL and UNIQUE stay on.
//! - WAL, so that applications read while files are applied; every commit is `synchronous = FULL`, because a file is
//!   acknowledged and deleted after the commit that covers it (I3).
//! - `dock_state` has one row, and it is changed only in the transaction of the rows that it covers (I2).

use super::local_apply::Catalogue;
use super::local_capture::CaptureError;
use super::local_upload::renumber_uploads;
use crate::base::defect::{self, Defect};
use crate::base::disk::DiskError;
use crate::base::ids::{ContentHash, Epoch, FileNo, Incarnation, InstallId, NodeName, Revision, ServerId, SyncToken, TxnId, UnitNo};
use crate::base::limits::{APPLY_WAL_PAGES, UPLOAD_UNIT_BYTES_MAX};
use crate::dx::error::DxError;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Our tables, as written into an extract.
const LOCAL_SCHEMA: &str = include_str!("../../sql/sqlite/local_0001.sql");

/// The WAL is cut back to this length when it is next restarted, so that one large file does not leave it large for ever.
const WAL_BYTES_KEPT: i64 = 64 << 20;
/// How long we wait for another program's write transaction before the step gives up and is tried again later.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Statements kept prepared: several per table and set of changed columns.
const STATEMENTS_KEPT: usize = 256;
/// Hashes of applied files that are remembered.
const FILE_HASHES_KEPT: u64 = 1_000;

/// What can go wrong with a local database.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// SQLite refused something.
    #[error("{}: {doing}", path.display())]
    Sql {
        /// The database.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// SQLite's reason.
        #[source]
        source: rusqlite::Error,
    },
    /// The database has no `dock_state`.
    #[error("{} is not the local database of a node: it has no table dock_state", path.display())]
    NotLocal {
        /// The database.
        path: PathBuf,
    },
    /// `dock_state` holds something that cannot be.
    #[error("{}: dock_state.{column} is `{value}`", path.display())]
    State {
        /// The database.
        path: PathBuf,
        /// The column.
        column: &'static str,
        /// Its value.
        value: String,
    },
    /// The file is damaged.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What SQLite found.
        reason: String,
    },
    /// Local changes cannot be captured.
    #[error("{}", path.display())]
    Capture {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: CaptureError,
    },
    /// A unit of local changes cannot be read as it was kept.
    #[error("{}: unit {unit} of local changes", path.display())]
    Unit {
        /// The database.
        path: PathBuf,
        /// The unit.
        unit: UnitNo,
        /// What is wrong with it.
        #[source]
        source: DxError,
    },
    /// The stage of a large unit could not be written or removed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Another program holds the database's write lock for too long; nothing was changed.
    #[error("{} is busy: another program has been writing to it for {} s", path.display(), BUSY_TIMEOUT.as_secs())]
    Busy {
        /// The database.
        path: PathBuf,
    },
}

/// The one row of `dock_state`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalState {
    /// Identity of the server database that the rows come from.
    pub server_id: ServerId,
    /// Its name, for people.
    pub server_name: String,
    /// Its history; files of another one are refused.
    pub epoch: Epoch,
    /// The node that this database belongs to.
    pub node: NodeName,
    /// Which extract of the node this is; files of another one are refused.
    pub incarnation: Incarnation,
    /// Identity of this copy; `None` until `remote-sync init` has taken the database over.
    pub install_id: Option<InstallId>,
    /// Last file that is applied to its end. `applied_file + 1` is the next one.
    pub applied_file: FileNo,
    /// Last unit that is applied; within file `applied_file + 1` while that one is half applied.
    pub applied_unit: TxnId,
    /// Content hash of `applied_file`; zero before the first.
    pub chain_hash: ContentHash,
    /// Definition in force at `applied_unit`.
    pub revision: Revision,
    /// Why nothing is applied any more.
    pub stopped: Option<String>,
}

/// A local database, open for applying.
#[derive(Debug)]
pub struct LocalDatabase {
    path: PathBuf,
    connection: Connection,
    catalogue: RefCell<Catalogue>,
    unit_bytes_max: u64,
}

impl LocalDatabase {
    /// Opens the local database at `path`, which must exist and have a `dock_state`.
    pub fn open(path: &Path) -> Result<LocalDatabase, LocalError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let sql = |doing| move |source| LocalError::of_sql(path, doing, source);
        let connection = Connection::open_with_flags(path, flags).map_err(sql("open the local database"))?;
        configure(&connection).map_err(sql("prepare the connection"))?;
        let database =
            LocalDatabase { path: path.to_owned(), connection, catalogue: RefCell::default(), unit_bytes_max: UPLOAD_UNIT_BYTES_MAX };
        database.state()?;
        Ok(database)
    }

    /// Lets a unit of local changes have another number of bytes at most.
    #[must_use]
    pub fn with_unit_bytes_max(mut self, unit_bytes_max: u64) -> LocalDatabase {
        self.unit_bytes_max = unit_bytes_max.min(UPLOAD_UNIT_BYTES_MAX);
        self
    }

    /// Returns how many bytes a unit of local changes may have.
    pub(super) fn unit_bytes_max(&self) -> u64 {
        self.unit_bytes_max
    }

    /// Returns where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the connection, for the statements of `store`.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Returns what is known of the tables that files name.
    pub(super) fn catalogue(&self) -> &RefCell<Catalogue> {
        &self.catalogue
    }

    /// Returns a number that changes when another connection has committed.
    pub fn others_version(&self) -> Result<i64, LocalError> {
        self.connection
            .query_row("PRAGMA data_version", [], |row| row.get(0))
            .map_err(|source| LocalError::of_sql(&self.path, "look for other writers", source))
    }

    /// Returns how many rows this connection has written since it was opened: what applying costs, for tests and measures.
    pub fn rows_written(&self) -> u64 {
        self.connection.total_changes()
    }

    /// Returns the committed state.
    pub fn state(&self) -> Result<LocalState, LocalError> {
        read_state(&self.connection, &self.path)
    }

    /// Takes note of the server's epoch: files of it are accepted from here on, those of earlier ones still. It never goes back.
    ///
    /// # Errors
    /// A statement failed.
    pub fn enter_epoch(&self, epoch: Epoch) -> Result<(), LocalError> {
        self.connection
            .execute("UPDATE dock_state SET epoch = ?1 WHERE epoch < ?1", [epoch.0])
            .map_err(|source| LocalError::of_sql(&self.path, "store the server's epoch", source))?;
        Ok(())
    }

    /// Returns what the server is shown next; `None` if it has given nothing yet.
    ///
    /// # Errors
    /// A statement failed, or it is none.
    pub fn token(&self) -> Result<Option<SyncToken>, LocalError> {
        let read = self.connection.query_row("SELECT token FROM dock_state", [], |row| row.get::<_, Option<String>>(0));
        let text = read.map_err(|source| LocalError::of_sql(&self.path, "read the token", source))?;
        text.map(|text| parse(&self.path, "token", text)).transpose()
    }

    /// Keeps what the server is shown next.
    ///
    /// # Errors
    /// A statement failed.
    pub fn keep_token(&self, token: SyncToken) -> Result<(), LocalError> {
        self.connection
            .execute("UPDATE dock_state SET token = ?1", [token.to_string()])
            .map_err(|source| LocalError::of_sql(&self.path, "keep the token", source))?;
        Ok(())
    }

    /// Notes why nothing is applied any more, or that all is well again; `dock_status` shows it to applications.
    ///
    /// # Errors
    /// A statement failed.
    pub fn set_stopped(&self, reason: Option<&str>) -> Result<(), LocalError> {
        self.connection
            .execute("UPDATE dock_state SET stopped = ?1 WHERE stopped IS NOT ?1", [reason])
            .map_err(|source| LocalError::of_sql(&self.path, "store why applying stopped", source))?;
        Ok(())
    }

    /// Takes over that the node's stream begins anew: what was applied of the former one stays until file 1 of the new one brings
    /// everything that the node sees. Local changes that are not finished go into new files.
    pub fn begin_anew(&self, incarnation: Incarnation) -> Result<(), LocalError> {
        let sql = |source| LocalError::of_sql(&self.path, "begin a new stream", source);
        let transaction = rusqlite::Transaction::new_unchecked(&self.connection, rusqlite::TransactionBehavior::Immediate).map_err(sql)?;
        let zero = ContentHash::default().to_string();
        transaction
            .execute("UPDATE dock_state SET incarnation = ?1, applied_file = 0, chain_hash = ?2, stopped = NULL", (incarnation.0, zero))
            .map_err(sql)?;
        transaction.execute("DELETE FROM dock_file", []).map_err(sql)?;
        renumber_uploads(&transaction).map_err(sql)?;
        transaction.commit().map_err(sql)
    }

    /// Returns the content hash under which that file was applied; `None` if that is no longer known.
    pub fn applied_hash(&self, file: FileNo) -> Result<Option<ContentHash>, LocalError> {
        let text: Option<String> = self
            .connection
            .query_row("SELECT content_hash FROM dock_file WHERE file_no = ?1", [file.0 as i64], |row| row.get(0))
            .optional()
            .map_err(|source| LocalError::of_sql(&self.path, "read dock_file", source))?;
        text.map(|text| parse(&self.path, "content_hash", text)).transpose()
    }

    /// Lets SQLite look through the whole file. An error names the first damage (fault 47).
    pub fn quick_check(&self) -> Result<(), LocalError> {
        let found: String = self
            .connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|source| LocalError::of_sql(&self.path, "check the database", source))?;
        if found == "ok" { Ok(()) } else { Err(LocalError::Damaged { path: self.path.clone(), reason: found }) }
    }
}

impl LocalError {
    /// Sorts an error of the capture into ours.
    pub(super) fn of_capture(path: &Path, source: CaptureError) -> LocalError {
        match source {
            CaptureError::Sql(source) => LocalError::of_sql(path, "install the capture of local changes", source),
            source => LocalError::Capture { path: path.to_owned(), source },
        }
    }

    /// Sorts an error of SQLite into ours.
    pub(super) fn of_sql(path: &Path, doing: &'static str, source: rusqlite::Error) -> LocalError {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseCorrupt, DatabaseLocked, NotADatabase};
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(DatabaseBusy | DatabaseLocked) => LocalError::Busy { path },
            Some(DatabaseCorrupt | NotADatabase) => LocalError::Damaged { path, reason: source.to_string() },
            _ => LocalError::Sql { path, doing, source },
        }
    }
}

/// Sets up a connection that applies: see the invariants above.
fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
    // A table that is renamed while it gets another shape must not take the texts along that name it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_LEGACY_ALTER_TABLE, true)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // After WAL is set: DEFENSIVE keeps statements from writing the schema or shadow tables directly (T12).
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.pragma_update(None, "synchronous", defect::synchronous())?;
    connection.pragma_update(None, "wal_autocheckpoint", APPLY_WAL_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    Ok(())
}

/// Creates our tables in a new local database and stores its first state and its replicated tables.
pub(super) fn create(connection: &Connection, state: &LocalState, tables: &[&str]) -> rusqlite::Result<()> {
    connection.execute_batch(LOCAL_SCHEMA)?;
    connection.execute(
        "INSERT INTO dock_state (id, server_id, server_name, epoch, node, incarnation, install_id, applied_file, applied_unit, chain_hash, revision)
         VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        params![
            state.server_id.to_string(),
            state.server_name,
            state.epoch.0,
            state.node.as_str(),
            state.incarnation.0,
            state.install_id.map(|id| id.to_string()),
            state.applied_file.0 as i64,
            state.applied_unit.0,
            state.chain_hash.to_string(),
            state.revision.0,
        ],
    )?;
    let mut insert = connection.prepare("INSERT INTO dock_table (name) VALUES (?1)")?;
    for table in tables {
        insert.execute([table])?;
    }
    Ok(())
}

/// Says whose database a copy is.
pub(super) fn set_identity(connection: &Connection, state: &LocalState) -> rusqlite::Result<()> {
    let sql = "UPDATE dock_state SET node = ?1, incarnation = ?2";
    connection.execute(sql, params![state.node.as_str(), state.incarnation.0]).map(drop)
}

/// Where an apply transaction has got to; written in that transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermark {
    /// Last file that is applied to its end.
    pub file: FileNo,
    /// Content hash of that file.
    pub chain_hash: ContentHash,
    /// Last unit that is applied.
    pub unit: TxnId,
    /// Definition in force there.
    pub revision: Revision,
}

/// Stores the watermark, within the caller's transaction.
pub(super) fn store_watermark(connection: &Connection, watermark: &Watermark) -> rusqlite::Result<()> {
    if defect::is_planted(Defect::SkippedWatermark) {
        return Ok(());
    }
    connection
        .prepare_cached(
            "UPDATE dock_state SET applied_file = ?1, chain_hash = ?2, applied_unit = ?3, revision = ?4, stopped = NULL,
                    applied_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')",
        )?
        .execute(params![watermark.file.0 as i64, watermark.chain_hash.to_string(), watermark.unit.0, watermark.revision.0])?;
    Ok(())
}

/// Remembers the hash of a file that is applied to its end, within the caller's transaction.
pub(super) fn store_file_hash(connection: &Connection, file: FileNo, hash: ContentHash) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO dock_file (file_no, content_hash) VALUES (?1, ?2)")?
        .execute(params![file.0 as i64, hash.to_string()])?;
    connection.prepare_cached("DELETE FROM dock_file WHERE file_no <= ?1")?.execute([file.0.saturating_sub(FILE_HASHES_KEPT) as i64])?;
    Ok(())
}

/// Reads `dock_state` as the connection sees it, so within a transaction that transaction's own.
pub(super) fn read_state(connection: &Connection, path: &Path) -> Result<LocalState, LocalError> {
    let sql = |source| LocalError::of_sql(path, "read dock_state", source);
    let there: bool = connection
        .query_row("SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'dock_state')", [], |row| row.get(0))
        .map_err(sql)?;
    if !there {
        return Err(LocalError::NotLocal { path: path.to_owned() });
    }
    connection
        .query_row(
            "SELECT server_id, server_name, epoch, node, incarnation, install_id, applied_file, applied_unit, chain_hash, revision, stopped
             FROM dock_state",
            [],
            |row| {
                let (server_id, node): (String, String) = (row.get(0)?, row.get(3)?);
                let (install_id, chain_hash): (Option<String>, String) = (row.get(5)?, row.get(8)?);
                let applied_file: i64 = row.get(6)?;
                Ok((|| {
                    Ok(LocalState {
                        server_id: parse(path, "server_id", server_id)?,
                        server_name: row.get(1).map_err(sql)?,
                        epoch: Epoch(row.get(2).map_err(sql)?),
                        node: parse(path, "node", node)?,
                        incarnation: Incarnation(row.get(4).map_err(sql)?),
                        install_id: install_id.map(|text| parse(path, "install_id", text)).transpose()?,
                        applied_file: FileNo(applied_file as u64),
                        applied_unit: TxnId(row.get(7).map_err(sql)?),
                        chain_hash: parse(path, "chain_hash", chain_hash)?,
                        revision: Revision(row.get(9).map_err(sql)?),
                        stopped: row.get(10).map_err(sql)?,
                    })
                })())
            },
        )
        .map_err(sql)?
}

/// Reads an id back from its text.
fn parse<T: FromStr>(path: &Path, column: &'static str, value: String) -> Result<T, LocalError> {
    value.parse().map_err(|_| LocalError::State { path: path.to_owned(), column, value })
}
