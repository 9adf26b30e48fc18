//! `ledger.db`: what the Transaction Router has done. One commit per round makes its files real.
//!
//! Invariants:
//! - `position` never goes back; every file of a round is durable before the commit that names it.
//! - A stream's `last_file` is the highest file that was ever handed out under its incarnation; a file above it in the
//!   outbox was never seen by anybody and is deleted.
//! - The table `outbox_file`, never a folder, says what a node is offered.

use crate::base::defect;
use crate::base::ids::{ByteHash, ContentHash, Epoch, FileNo, Incarnation, NodeName, Revision, ServerId, TxnId};
use crate::docking::error::DockingError;
use crate::dx::codec;
use crate::dx::error::DxError;
use crate::model::event::ScopeKey;
use crate::model::value::Value;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `PRAGMA user_version` of the ledger.
const LEDGER_VERSION: i64 = 4;
/// The oldest one that is brought up to date.
const LEDGER_VERSION_MIN: i64 = 2;

const SCHEMA: &str = "
CREATE TABLE router(
    id INTEGER PRIMARY KEY CHECK(id = 1),
    server_id BLOB NOT NULL, epoch INTEGER NOT NULL, revision INTEGER NOT NULL,
    position INTEGER NOT NULL, txnproc_file INTEGER NOT NULL, txnproc_hash BLOB NOT NULL);
CREATE TABLE stream(
    node TEXT PRIMARY KEY, incarnation INTEGER NOT NULL, active INTEGER NOT NULL,
    start_unit INTEGER NOT NULL, last_file INTEGER NOT NULL, last_unit INTEGER NOT NULL, last_hash BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE node_key(
    node TEXT NOT NULL, path TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY(node, path, value)) WITHOUT ROWID;
CREATE TABLE outbox_file(
    node TEXT NOT NULL, incarnation INTEGER NOT NULL, file_no INTEGER NOT NULL,
    first INTEGER NOT NULL, last INTEGER NOT NULL, content_hash BLOB NOT NULL, byte_hash BLOB NOT NULL,
    bytes INTEGER NOT NULL, operations INTEGER NOT NULL, created TEXT NOT NULL,
    PRIMARY KEY(node, incarnation, file_no)) WITHOUT ROWID;
";

/// What version 3 adds. `outbox_left` names nodes that began anew while files of a former incarnation lay in their outbox:
/// the row goes once these files are gone. `purge` is the clock of retention.
const SCHEMA_3: &str = "
CREATE TABLE outbox_left(node TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE purge(id INTEGER PRIMARY KEY CHECK(id = 1), looked INTEGER NOT NULL, owed INTEGER NOT NULL);
";

/// What version 4 adds: the number of the Router that may write. Each one that starts takes the next.
const SCHEMA_4: &str = "
CREATE TABLE lease(id INTEGER PRIMARY KEY CHECK(id = 1), fence INTEGER NOT NULL, owner TEXT NOT NULL);
INSERT INTO lease VALUES(1, 0, '');
PRAGMA user_version = 4;
";

/// Where the Router is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouterState {
    /// The server whose units were routed; zero before the first.
    pub server_id: ServerId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Definition in force at `position`.
    pub revision: Revision,
    /// Last unit routed.
    pub position: TxnId,
    /// The txnproc file that was read last, perhaps in part; 0 before the first.
    pub txnproc_file: FileNo,
    /// Its content hash.
    pub txnproc_hash: ContentHash,
}

/// A node's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// The node.
    pub node: NodeName,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Whether it gets anything.
    pub active: bool,
    /// The unit of its extract: its stream begins after it.
    pub start_unit: TxnId,
    /// Number of its last file; 0 before the first.
    pub last_file: FileNo,
    /// `last` of its last file; `start_unit` before the first.
    pub last_unit: TxnId,
    /// Content hash of its last file; zero before the first.
    pub last_hash: ContentHash,
}

/// A file of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxFile {
    /// The node.
    pub node: NodeName,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Number of the file.
    pub file_no: FileNo,
    /// First log position covered.
    pub first: TxnId,
    /// Last log position covered.
    pub last: TxnId,
    /// Content hash.
    pub content_hash: ContentHash,
    /// SHA-256 of the whole file.
    pub byte_hash: ByteHash,
    /// Length in bytes.
    pub bytes: u64,
    /// Operations in it.
    pub operations: u64,
    /// When it was made, for people only.
    pub created: String,
}

/// A change of a node in a round, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeChange {
    /// Its stream begins after this unit, with file 1. Rows of former incarnations go.
    Started {
        /// The node.
        node: NodeName,
        /// Its new incarnation.
        incarnation: Incarnation,
        /// The unit after which it begins.
        unit: TxnId,
        /// All its keys.
        keys: Vec<ScopeKey>,
    },
    /// It gets nothing any more.
    Stopped {
        /// The node.
        node: NodeName,
    },
    /// Its keys changed.
    Keys {
        /// The node.
        node: NodeName,
        /// New keys.
        gained: Vec<ScopeKey>,
        /// Keys gone.
        lost: Vec<ScopeKey>,
    },
}

/// All that one round changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Round {
    /// Where the Router is after it.
    pub state: RouterState,
    /// Changes of nodes.
    pub nodes: Vec<NodeChange>,
    /// New files; each stream's `last_*` follow from them.
    pub files: Vec<OutboxFile>,
}

/// The open ledger.
#[derive(Debug)]
pub struct Ledger {
    connection: Connection,
    path: PathBuf,
    /// The number that must still be the newest at each commit, if this is a Router's.
    fence: Option<u64>,
}

impl Ledger {
    /// Opens the ledger and brings it up to date.
    ///
    /// # Errors
    /// [`DockingError::NoLedger`] if there is none: what nodes were given is not known then, and an empty one would give numbers
    /// anew that they have had. Otherwise SQLite refuses, or the file is of a newer program.
    pub fn open(path: &Path) -> Result<Ledger, DockingError> {
        let missing = || DockingError::NoLedger { path: path.to_owned() };
        if !path.exists() {
            return Err(missing());
        }
        // Not `SQLITE_OPEN_CREATE`: it may go between the look and the opening.
        let ledger = Ledger::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        if ledger.version()? == 0 {
            return Err(missing());
        }
        ledger.prepared()
    }

    /// Creates the ledger, or opens one that is there. Only for whoever knows that nodes were given nothing yet, or that the streams of
    /// all nodes begin anew: the first `deploy`, and the Router's start.
    ///
    /// # Errors
    /// If SQLite refuses, or the file is of a newer program.
    pub fn create(path: &Path) -> Result<Ledger, DockingError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Ledger::connect(path, flags)?.prepared()
    }

    fn connect(path: &Path, flags: OpenFlags) -> Result<Ledger, DockingError> {
        let error = |source| DockingError::Sql { operation: "open", path: path.to_owned(), source };
        let connection = Connection::open_with_flags(path, flags).map_err(error)?;
        connection.busy_timeout(Duration::from_secs(10)).map_err(error)?;
        Ok(Ledger { connection, path: path.to_owned(), fence: None })
    }

    fn prepared(mut self) -> Result<Ledger, DockingError> {
        self.prepare().map_err(self.sql("prepare"))?;
        self.check_version()?;
        Ok(self)
    }

    /// Makes whoever calls the one that writes: takes the next fencing number and returns it. Commits of earlier owners are refused
    /// from now on, wherever they were paused.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn take_over(&self) -> Result<u64, DockingError> {
        let sql = "UPDATE lease SET fence = fence + 1, owner = ?1 RETURNING fence";
        let owner = format!("process {}", std::process::id());
        let taken = self.connection.query_row(sql, [owner], |row| row.get::<_, i64>(0));
        taken.map(i64::unsigned_abs).map_err(self.sql("take over the ledger"))
    }

    /// Returns the ledger for the owner of a fencing number.
    ///
    /// # Errors
    /// [`DockingError::Fenced`] if there is a later owner; or SQLite refuses.
    pub fn fenced(mut self, fence: u64) -> Result<Ledger, DockingError> {
        self.fence = Some(fence);
        self.check_fence()?;
        Ok(self)
    }

    /// Checks that nobody else has taken over; each commit does so again.
    ///
    /// # Errors
    /// [`DockingError::Fenced`] if there is a later owner; or SQLite refuses.
    pub fn check_fence(&self) -> Result<(), DockingError> {
        let Some(ours) = self.fence else { return Ok(()) };
        let read = self.connection.query_row("SELECT fence, owner FROM lease", [], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?)));
        let (fence, owner): (i64, String) = read.map_err(self.sql("read the lease"))?;
        if fence.unsigned_abs() == ours { Ok(()) } else { Err(DockingError::Fenced { path: self.path.clone(), owner }) }
    }

    /// Opens the ledger for reading, for everybody but the Router; `None` before the Router made it.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub fn look(path: &Path) -> Result<Option<Ledger>, DockingError> {
        if !path.exists() {
            return Ok(None);
        }
        let ledger = Ledger::connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        match ledger.version()? {
            // The Router is just about to make it.
            0 => Ok(None),
            _ => ledger.check_version().map(|()| Some(ledger)),
        }
    }

    fn version(&self) -> Result<i64, DockingError> {
        self.connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(self.sql("read the version"))
    }

    fn check_version(&self) -> Result<(), DockingError> {
        let version = self.version()?;
        // An older one is brought up to date when the Router opens it; whoever looks reads nothing that is new.
        if (LEDGER_VERSION_MIN..=LEDGER_VERSION).contains(&version) {
            return Ok(());
        }
        let what = format!("it has version {version}, this program knows version {LEDGER_VERSION}");
        Err(DockingError::Damaged { path: self.path.clone(), what })
    }

    fn prepare(&mut self) -> rusqlite::Result<()> {
        self.connection.pragma_update(None, "journal_mode", "WAL")?;
        // The next stage acts upon a commit at once, so a power cut must not take it back.
        self.connection.pragma_update(None, "synchronous", defect::synchronous())?;
        self.connection.pragma_update(None, "trusted_schema", false)?;
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let version: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version == 0 {
            transaction.execute_batch(SCHEMA)?;
        }
        if version == 0 || version == LEDGER_VERSION_MIN {
            transaction.execute_batch(SCHEMA_3)?;
        }
        if version == 0 || (LEDGER_VERSION_MIN..LEDGER_VERSION).contains(&version) {
            transaction.execute_batch(SCHEMA_4)?;
        }
        transaction.commit()
    }

    fn sql(&self, operation: &'static str) -> impl FnOnce(rusqlite::Error) -> DockingError + use<> {
        let path = self.path.clone();
        move |source| DockingError::Sql { operation, path, source }
    }

    /// Returns where the Router is.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn state(&self) -> Result<RouterState, DockingError> {
        let state = self
            .connection
            .query_row("SELECT server_id, epoch, revision, position, txnproc_file, txnproc_hash FROM router", [], |row| {
                Ok(RouterState {
                    server_id: ServerId(row.get(0)?),
                    epoch: Epoch(row.get(1)?),
                    revision: Revision(row.get(2)?),
                    position: TxnId(row.get(3)?),
                    txnproc_file: FileNo(row.get::<_, i64>(4)?.unsigned_abs()),
                    txnproc_hash: ContentHash(row.get(5)?),
                })
            })
            .optional()
            .map_err(self.sql("read the position"))?;
        Ok(state.unwrap_or_default())
    }

    /// Closes the ledger: everything is in the one file, so that it can be moved.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn close(self) -> Result<(), DockingError> {
        let Ledger { connection, path, .. } = self;
        connection.close().map_err(|(_, source)| DockingError::Sql { operation: "close", path, source })
    }

    /// Returns every stream, stopped ones included, sorted by node.
    ///
    /// # Errors
    /// If SQLite refuses or a row makes no sense.
    pub fn streams(&self) -> Result<Vec<Stream>, DockingError> {
        self.query(
            "SELECT node, incarnation, active, start_unit, last_file, last_unit, last_hash FROM stream ORDER BY node",
            [],
            stream_row,
        )
    }

    /// Returns the stream of a node.
    ///
    /// # Errors
    /// If SQLite refuses or the row makes no sense.
    pub fn stream(&self, node: &NodeName) -> Result<Option<Stream>, DockingError> {
        let sql = "SELECT node, incarnation, active, start_unit, last_file, last_unit, last_hash FROM stream WHERE node = ?1";
        Ok(self.query(sql, [node.as_str()], stream_row)?.pop())
    }

    /// Calls `each` with every key of every node, nodes in order.
    ///
    /// # Errors
    /// If SQLite refuses or a row makes no sense.
    pub fn keys(&self, mut each: impl FnMut(NodeName, ScopeKey)) -> Result<(), DockingError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT node, path, value FROM node_key ORDER BY node, path, value")
            .map_err(self.sql("read keys"))?;
        let mut rows = statement.query([]).map_err(self.sql("read keys"))?;
        while let Some(row) = rows.next().map_err(self.sql("read keys"))? {
            let read = || Ok((node_name(row, 0)?, row.get::<_, String>(1)?, row.get::<_, Vec<u8>>(2)?));
            let (node, path, value) = read().map_err(self.sql("read keys"))?;
            let value: Value = codec::decode("key value", &value)?;
            each(node, ScopeKey { path, value });
        }
        Ok(())
    }

    /// Returns a node's files after number `after`, in order, at most `limit`.
    ///
    /// # Errors
    /// If SQLite refuses or a row makes no sense.
    pub fn files_after(
        &self,
        node: &NodeName,
        incarnation: Incarnation,
        after: FileNo,
        limit: usize,
    ) -> Result<Vec<OutboxFile>, DockingError> {
        let sql = "SELECT node, incarnation, file_no, first, last, content_hash, byte_hash, bytes, operations, created FROM outbox_file \
                   WHERE node = ?1 AND incarnation = ?2 AND file_no > ?3 ORDER BY file_no LIMIT ?4";
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.query(sql, params![node.as_str(), incarnation.0, file_number(after), limit], outbox_row)
    }

    /// Returns the nodes in whose outbox files of a former incarnation may lie.
    ///
    /// # Errors
    /// If SQLite refuses or a row makes no sense.
    pub fn outboxes_left(&self) -> Result<Vec<NodeName>, DockingError> {
        self.query("SELECT node FROM outbox_left ORDER BY node", [], |row| node_name(row, 0))
    }

    /// Takes note that no file of a former incarnation is left in a node's outbox.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn outbox_cleared(&self, node: &NodeName) -> Result<(), DockingError> {
        let sql = "DELETE FROM outbox_left WHERE node = ?1";
        self.connection.execute(sql, [node.as_str()]).map(drop).map_err(self.sql("take note of a cleared outbox"))
    }

    /// Commits a round: one transaction, on disk when this returns.
    ///
    /// # Errors
    /// If SQLite refuses; then nothing of the round is committed.
    pub fn commit(&mut self, round: &Round) -> Result<(), DockingError> {
        let keys = |keys: &[ScopeKey]| -> Result<Vec<(String, Vec<u8>)>, DxError> {
            keys.iter().map(|key| Ok((key.path.clone(), codec::encode("key value", &key.value)?))).collect()
        };
        // Encoding can fail, SQL can fail: two kinds of error, so the first is done before the transaction.
        let mut changes = Vec::with_capacity(round.nodes.len());
        for change in &round.nodes {
            changes.push(match change {
                NodeChange::Started { keys: all, .. } => (change, keys(all)?, Vec::new()),
                NodeChange::Stopped { .. } => (change, Vec::new(), Vec::new()),
                NodeChange::Keys { gained, lost, .. } => (change, keys(gained)?, keys(lost)?),
            });
        }
        let path = self.path.clone();
        let (ours, mut owner) = (self.fence, None);
        let mut write = || -> rusqlite::Result<()> {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            if let Some(ours) = ours {
                let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get(1)?));
                let (fence, newest): (i64, String) = transaction.query_row("SELECT fence, owner FROM lease", [], read)?;
                if fence.unsigned_abs() != ours {
                    owner = Some(newest);
                    return Ok(());
                }
            }
            for (change, gained, lost) in &changes {
                write_change(&transaction, change, gained, lost)?;
            }
            for file in &round.files {
                write_file(&transaction, file)?;
            }
            let state = &round.state;
            transaction.execute(
                "INSERT OR REPLACE INTO router(id, server_id, epoch, revision, position, txnproc_file, txnproc_hash) \
                 VALUES(1, ?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    state.server_id.0,
                    state.epoch.0,
                    state.revision.0,
                    state.position.0,
                    file_number(state.txnproc_file),
                    state.txnproc_hash.0
                ],
            )?;
            transaction.commit()
        };
        let written = write();
        if let Some(owner) = owner {
            return Err(DockingError::Fenced { path, owner });
        }
        written.map_err(|source| DockingError::Sql { operation: "commit a round", path, source })
    }

    fn query<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, DockingError> {
        let rows = || self.connection.prepare_cached(sql)?.query_map(params, read)?.collect::<rusqlite::Result<Vec<T>>>();
        rows().map_err(self.sql("read"))
    }
}

fn write_change(
    transaction: &Transaction<'_>,
    change: &NodeChange,
    gained: &[(String, Vec<u8>)],
    lost: &[(String, Vec<u8>)],
) -> rusqlite::Result<()> {
    let node = match change {
        NodeChange::Started { node, .. } | NodeChange::Stopped { node } | NodeChange::Keys { node, .. } => node.as_str(),
    };
    match change {
        NodeChange::Started { incarnation, unit, .. } => {
            transaction.execute("DELETE FROM node_key WHERE node = ?1", [node])?;
            transaction.execute("DELETE FROM outbox_file WHERE node = ?1", [node])?;
            // Whoever had files may have some left in the folder, with or without rows.
            transaction.execute("INSERT OR IGNORE INTO outbox_left SELECT node FROM stream WHERE node = ?1 AND last_file > 0", [node])?;
            transaction.execute(
                "INSERT OR REPLACE INTO stream(node, incarnation, active, start_unit, last_file, last_unit, last_hash) \
                 VALUES(?1, ?2, 1, ?3, 0, ?3, ?4)",
                params![node, incarnation.0, unit.0, ContentHash::default().0],
            )?;
        }
        NodeChange::Stopped { .. } => {
            transaction.execute("DELETE FROM node_key WHERE node = ?1", [node])?;
            transaction.execute("UPDATE stream SET active = 0 WHERE node = ?1", [node])?;
        }
        NodeChange::Keys { .. } => {}
    }
    let mut delete = transaction.prepare_cached("DELETE FROM node_key WHERE node = ?1 AND path = ?2 AND value = ?3")?;
    for (path, value) in lost {
        delete.execute(params![node, path, value])?;
    }
    let mut insert = transaction.prepare_cached("INSERT OR IGNORE INTO node_key(node, path, value) VALUES(?1, ?2, ?3)")?;
    for (path, value) in gained {
        insert.execute(params![node, path, value])?;
    }
    Ok(())
}

fn write_file(transaction: &Transaction<'_>, file: &OutboxFile) -> rusqlite::Result<()> {
    let (node, number) = (file.node.as_str(), file_number(file.file_no));
    transaction
        .prepare_cached(
            "INSERT INTO outbox_file(node, incarnation, file_no, first, last, content_hash, byte_hash, bytes, operations, created) \
             VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            node,
            file.incarnation.0,
            number,
            file.first.0,
            file.last.0,
            file.content_hash.0,
            file.byte_hash.0,
            size(file.bytes),
            size(file.operations),
            file.created
        ])?;
    transaction
        .prepare_cached("UPDATE stream SET last_file = ?2, last_unit = ?3, last_hash = ?4 WHERE node = ?1 AND incarnation = ?5")?
        .execute(params![node, number, file.last.0, file.content_hash.0, file.incarnation.0])?;
    Ok(())
}

fn stream_row(row: &Row<'_>) -> rusqlite::Result<Stream> {
    Ok(Stream {
        node: node_name(row, 0)?,
        incarnation: Incarnation(row.get(1)?),
        active: row.get(2)?,
        start_unit: TxnId(row.get(3)?),
        last_file: FileNo(row.get::<_, i64>(4)?.unsigned_abs()),
        last_unit: TxnId(row.get(5)?),
        last_hash: ContentHash(row.get(6)?),
    })
}

fn outbox_row(row: &Row<'_>) -> rusqlite::Result<OutboxFile> {
    Ok(OutboxFile {
        node: node_name(row, 0)?,
        incarnation: Incarnation(row.get(1)?),
        file_no: FileNo(row.get::<_, i64>(2)?.unsigned_abs()),
        first: TxnId(row.get(3)?),
        last: TxnId(row.get(4)?),
        content_hash: ContentHash(row.get(5)?),
        byte_hash: ByteHash(row.get(6)?),
        bytes: row.get::<_, i64>(7)?.unsigned_abs(),
        operations: row.get::<_, i64>(8)?.unsigned_abs(),
        created: row.get(9)?,
    })
}

pub(super) fn node_name(row: &Row<'_>, column: usize) -> rusqlite::Result<NodeName> {
    let text: String = row.get(column)?;
    text.parse().map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error)))
}

/// SQLite's integers are signed; neither file numbers nor sizes get near their end.
fn file_number(file_no: FileNo) -> i64 {
    size(file_no.0)
}

fn size(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
