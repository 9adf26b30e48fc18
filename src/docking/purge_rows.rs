//! Rows of the queues' ledgers as the purge sees them: which files are the oldest, which wait, and taking out the rows of files that
//! are gone.
//!
//! The purge deletes rows of `outbox_file` in `ledger.db` and of `txnproc_file` in `cds.db`, and nothing else there; their stages
//! never write a row a second time, so the two do not meet. A row goes only after its file is gone for good.

use crate::base::ids::{FileNo, Incarnation, NodeName, TxnId};
use crate::docking::backlog::Backlog;
use crate::docking::error::DockingError;
use crate::docking::ledger::{Ledger, node_name};
use crate::docking::root::DockingRoot;
use crate::rules::retention::{Kept, RetentionClock};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};
use std::path::PathBuf;
use std::time::Duration;

/// A stream, as far as the purge needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PurgeStream {
    /// The node.
    pub node: NodeName,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Whether it gets anything.
    pub active: bool,
    /// Number of its last file.
    pub last_file: FileNo,
}

/// The first file that waits for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstWaiting {
    /// First unit in it.
    pub first: TxnId,
    /// When it was made, seconds since 1970.
    pub created: i64,
}

/// Both ledgers, open for the purge.
#[derive(Debug)]
pub struct PurgeRows {
    ledger: Connection,
    ledger_path: PathBuf,
    cds: Connection,
    cds_path: PathBuf,
}

impl PurgeRows {
    /// Opens both; `None` while there is no data store.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn open(root: &DockingRoot) -> Result<Option<PurgeRows>, DockingError> {
        let (ledger_path, cds_path) = (root.ledger_db(), root.cds_db());
        if !cds_path.exists() {
            return Ok(None);
        }
        // Brought up to date by its owner's own code, which makes none: purging an empty one would say nothing was ever routed.
        drop(Ledger::open(&ledger_path)?);
        let connect = |path: &PathBuf| -> rusqlite::Result<Connection> {
            let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
            connection.busy_timeout(Duration::from_secs(10))?;
            // A row that comes back after a power cut is taken out again.
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            connection.pragma_update(None, "trusted_schema", false)?;
            Ok(connection)
        };
        let open = |path: &PathBuf| connect(path).map_err(|source| DockingError::Sql { operation: "open", path: path.clone(), source });
        let (ledger, cds) = (open(&ledger_path)?, open(&cds_path)?);
        let rows = PurgeRows { ledger, ledger_path, cds, cds_path };
        let found: Option<i64> = rows
            .cds
            .query_row("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'txnproc_file'", [], |row| row.get(0))
            .optional()
            .map_err(rows.cds_error("look for txnproc_file"))?;
        Ok(found.map(|_| rows))
    }

    fn ledger_error(&self, operation: &'static str) -> impl FnOnce(rusqlite::Error) -> DockingError + use<> {
        let path = self.ledger_path.clone();
        move |source| DockingError::Sql { operation, path, source }
    }

    fn cds_error(&self, operation: &'static str) -> impl FnOnce(rusqlite::Error) -> DockingError + use<> {
        let path = self.cds_path.clone();
        move |source| DockingError::Sql { operation, path, source }
    }

    /// Returns the last unit routed.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn routed(&self) -> Result<TxnId, DockingError> {
        let read = self.ledger.query_row("SELECT position FROM router", [], |row| Ok(TxnId(row.get(0)?)));
        Ok(read.optional().map_err(self.ledger_error("read the position"))?.unwrap_or_default())
    }

    /// Returns the clock of retention.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn clock(&self) -> Result<RetentionClock, DockingError> {
        let read = self
            .ledger
            .query_row("SELECT looked, owed FROM purge", [], |row| Ok(RetentionClock { looked: row.get(0)?, owed: row.get(1)? }));
        Ok(read.optional().map_err(self.ledger_error("read the clock of retention"))?.unwrap_or_default())
    }

    /// Keeps the clock of retention.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn set_clock(&self, clock: RetentionClock) -> Result<(), DockingError> {
        let sql = "INSERT INTO purge(id, looked, owed) VALUES(1, ?1, ?2) ON CONFLICT(id) DO UPDATE SET looked = ?1, owed = ?2";
        let written = self.ledger.execute(sql, [clock.looked, clock.owed]);
        written.map(drop).map_err(self.ledger_error("keep the clock of retention"))
    }

    /// Returns streams by name after `after`, stopped ones included, at most `limit`.
    ///
    /// # Errors
    /// If SQLite refuses or a row makes no sense.
    pub fn streams_after(&self, after: Option<&NodeName>, limit: usize) -> Result<Vec<PurgeStream>, DockingError> {
        let read = || -> rusqlite::Result<Vec<PurgeStream>> {
            self.ledger
                .prepare_cached("SELECT node, incarnation, active, last_file FROM stream WHERE node > ?1 ORDER BY node LIMIT ?2")?
                .query_map(params![after.map_or("", NodeName::as_str), signed(limit as u64)], |row| {
                    Ok(PurgeStream {
                        node: node_name(row, 0)?,
                        incarnation: Incarnation(row.get(1)?),
                        active: row.get(2)?,
                        last_file: FileNo(row.get::<_, i64>(3)?.unsigned_abs()),
                    })
                })?
                .collect()
        };
        read().map_err(self.ledger_error("read streams"))
    }

    /// Returns whether a stream is still in this incarnation.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn is_current(&self, stream: &PurgeStream) -> Result<bool, DockingError> {
        self.ledger
            .prepare_cached("SELECT 1 FROM stream WHERE node = ?1 AND incarnation = ?2")
            .and_then(|mut statement| statement.exists(params![stream.node.as_str(), stream.incarnation.0]))
            .map_err(self.ledger_error("read streams"))
    }

    /// Returns a node's files after number `after`, in order, at most `limit`.
    ///
    /// # Errors
    /// If SQLite refuses or a row makes no sense.
    pub fn outbox_after(&self, stream: &PurgeStream, after: FileNo, limit: usize) -> Result<Vec<Kept>, DockingError> {
        let read = || -> rusqlite::Result<Vec<Kept>> {
            self.ledger
                .prepare_cached(
                    "SELECT file_no, last, created FROM outbox_file WHERE node = ?1 AND incarnation = ?2 AND file_no > ?3 \
                     ORDER BY file_no LIMIT ?4",
                )?
                .query_map(params![stream.node.as_str(), stream.incarnation.0, signed(after.0), signed(limit as u64)], |row| {
                    Ok(Kept { file_no: number(row, 0)?, last: TxnId(row.get(1)?), created: seconds(row, 2)? })
                })?
                .collect()
        };
        read().map_err(self.ledger_error("read the outbox"))
    }

    /// Returns the first file that waits for a node that has applied file `applied`.
    ///
    /// # Errors
    /// If SQLite refuses or a row makes no sense.
    pub fn first_waiting(&self, stream: &PurgeStream, applied: FileNo) -> Result<Option<FirstWaiting>, DockingError> {
        let sql = "SELECT first, created FROM outbox_file WHERE node = ?1 AND incarnation = ?2 AND file_no > ?3 ORDER BY file_no LIMIT 1";
        self.ledger
            .prepare_cached(sql)
            .and_then(|mut statement| {
                let read = |row: &Row<'_>| Ok(FirstWaiting { first: TxnId(row.get(0)?), created: seconds(row, 1)? });
                statement.query_row(params![stream.node.as_str(), stream.incarnation.0, signed(applied.0)], read).optional()
            })
            .map_err(self.ledger_error("read the outbox"))
    }

    /// Returns how much waits for a node that has applied file `applied`.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn waiting(&self, stream: &PurgeStream, applied: FileNo) -> Result<Backlog, DockingError> {
        Backlog::read(&self.ledger, &stream.node, stream.incarnation, applied).map_err(self.ledger_error("sum up the outbox"))
    }

    /// Takes out the rows of a node's files up to a number: the files are gone.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn drop_outbox(&self, stream: &PurgeStream, upto: FileNo) -> Result<(), DockingError> {
        let sql = "DELETE FROM outbox_file WHERE node = ?1 AND incarnation = ?2 AND file_no <= ?3";
        let deleted = self.ledger.execute(sql, params![stream.node.as_str(), stream.incarnation.0, signed(upto.0)]);
        deleted.map(drop).map_err(self.ledger_error("purge the outbox"))
    }

    /// Returns the oldest txnproc files, in order, at most `limit`.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn txnproc_oldest(&self, limit: usize) -> Result<Vec<Kept>, DockingError> {
        let read = || -> rusqlite::Result<Vec<Kept>> {
            self.cds
                .prepare_cached("SELECT file_no, last, created FROM txnproc_file ORDER BY file_no LIMIT ?1")?
                .query_map([signed(limit as u64)], |row| {
                    Ok(Kept { file_no: number(row, 0)?, last: TxnId(row.get(1)?), created: row.get::<_, i64>(2)? / 1_000_000 })
                })?
                .collect()
        };
        read().map_err(self.cds_error("read txnproc_file"))
    }

    /// Returns the number of the newest txnproc file; 0 before the first.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn txnproc_newest(&self) -> Result<FileNo, DockingError> {
        let read = self.cds.query_row("SELECT ifnull(max(file_no), 0) FROM txnproc_file", [], |row| number(row, 0));
        read.map_err(self.cds_error("read txnproc_file"))
    }

    /// Takes out the rows of txnproc files up to a number: the files are gone.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn drop_txnproc(&self, upto: FileNo) -> Result<(), DockingError> {
        let deleted = self.cds.execute("DELETE FROM txnproc_file WHERE file_no <= ?1", [signed(upto.0)]);
        deleted.map(drop).map_err(self.cds_error("purge txnproc_file"))
    }
}

fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<FileNo> {
    Ok(FileNo(row.get::<_, i64>(column)?.unsigned_abs()))
}

/// Reads a time as the ledger writes it. One that cannot be read is as young as can be: its file stays.
fn seconds(row: &Row<'_>, column: usize) -> rusqlite::Result<i64> {
    let text: String = row.get(column)?;
    Ok(text.parse::<jiff::Timestamp>().map_or(i64::MAX, jiff::Timestamp::as_second))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
