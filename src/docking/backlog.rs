//! How much waits in the outboxes, summed up from `ledger.db` without opening it for writing.

use crate::base::ids::{FileNo, Incarnation, NodeName, TxnId};
use crate::docking::error::DockingError;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What waits for one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Files beyond the one asked for.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their operations.
    pub operations: u64,
}

/// `ledger.db`, open for looking only.
#[derive(Debug)]
pub struct LedgerView {
    path: PathBuf,
    connection: Connection,
}

impl LedgerView {
    /// Opens the ledger for reading; `None` if no Router has run here yet.
    ///
    /// # Errors
    /// If it is there and SQLite cannot read it.
    pub fn open(path: &Path) -> Result<Option<LedgerView>, DockingError> {
        if !path.exists() {
            return Ok(None);
        }
        let sql = |source| DockingError::Sql { operation: "open", path: path.to_owned(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(sql)?;
        connection.busy_timeout(Duration::from_secs(10)).map_err(sql)?;
        let tables = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name IN ('router', 'outbox_file')";
        let found: i64 = connection.query_row(tables, [], |row| row.get(0)).map_err(sql)?;
        Ok((found == 2).then(|| LedgerView { path: path.to_owned(), connection }))
    }

    fn sql(&self, operation: &'static str) -> impl FnOnce(rusqlite::Error) -> DockingError + use<> {
        let path = self.path.clone();
        move |source| DockingError::Sql { operation, path, source }
    }

    /// Returns the last unit that was routed; `None` before the first.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn position(&self) -> Result<Option<TxnId>, DockingError> {
        let read = self.connection.query_row("SELECT position FROM router", [], |row| Ok(TxnId(row.get(0)?)));
        read.optional().map_err(self.sql("read the position"))
    }

    /// Returns the last file that was routed to a node in that incarnation, and the last unit that it covers; file 0 before the first.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn routed(&self, node: &NodeName, incarnation: Incarnation) -> Result<Option<(FileNo, TxnId)>, DockingError> {
        self.connection
            .prepare_cached("SELECT last_file, last_unit FROM stream WHERE node = ?1 AND incarnation = ?2")
            .and_then(|mut statement| {
                let read = |row: &rusqlite::Row<'_>| Ok((FileNo(row.get::<_, i64>(0)?.unsigned_abs()), TxnId(row.get(1)?)));
                statement.query_row(params![node.as_str(), incarnation.0], read).optional()
            })
            .map_err(self.sql("read a stream"))
    }

    /// Returns the file that a node fetches next, after that one.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn next_file(&self, node: &NodeName, incarnation: Incarnation, after: FileNo) -> Result<Option<FileNo>, DockingError> {
        let after = i64::try_from(after.0).unwrap_or(i64::MAX);
        self.connection
            .prepare_cached("SELECT min(file_no) FROM outbox_file WHERE node = ?1 AND incarnation = ?2 AND file_no > ?3")
            .and_then(|mut statement| statement.query_row(params![node.as_str(), incarnation.0, after], |row| row.get::<_, Option<i64>>(0)))
            .map(|found| found.map(|file| FileNo(file.unsigned_abs())))
            .map_err(self.sql("read the outbox"))
    }

    /// Returns the node whose outbox is the biggest, with its bytes. Reads every row: for when room is short.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn biggest_outbox(&self) -> Result<Option<(String, u64)>, DockingError> {
        let sql = "SELECT node, sum(bytes) FROM outbox_file GROUP BY node ORDER BY 2 DESC, 1 LIMIT 1";
        let read = self.connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())));
        read.optional().map_err(self.sql("sum up the outboxes"))
    }

    /// Returns what waits for a node after file `after` of that incarnation.
    ///
    /// # Errors
    /// If SQLite refuses.
    pub fn backlog(&self, node: &NodeName, incarnation: Incarnation, after: FileNo) -> Result<Backlog, DockingError> {
        Backlog::read(&self.connection, node, incarnation, after).map_err(self.sql("sum up the outbox"))
    }
}

impl Backlog {
    /// Sums up the files of a node after one of them, on a connection to `ledger.db`.
    pub(super) fn read(connection: &Connection, node: &NodeName, incarnation: Incarnation, after: FileNo) -> rusqlite::Result<Backlog> {
        let sql = "SELECT count(*), ifnull(sum(bytes), 0), ifnull(sum(operations), 0) FROM outbox_file \
                   WHERE node = ?1 AND incarnation = ?2 AND file_no > ?3";
        let after = i64::try_from(after.0).unwrap_or(i64::MAX);
        let number = |row: &rusqlite::Row<'_>, column: usize| row.get::<_, i64>(column).map(i64::unsigned_abs);
        connection.prepare_cached(sql)?.query_row(params![node.as_str(), incarnation.0, after], |row| {
            Ok(Backlog { files: number(row, 0)?, bytes: number(row, 1)?, operations: number(row, 2)? })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{ByteHash, ContentHash};
    use crate::docking::ledger::{Ledger, NodeChange, OutboxFile, Round, RouterState};

    #[test]
    fn what_a_node_has_not_applied_is_summed_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        assert!(LedgerView::open(&path).unwrap().is_none());
        let mut ledger = Ledger::create(&path).unwrap();
        assert_eq!(LedgerView::open(&path).unwrap().unwrap().position().unwrap(), None);
        let node: NodeName = "ANNA".parse().unwrap();
        let file = |number: u64| OutboxFile {
            node: node.clone(),
            incarnation: Incarnation(1),
            file_no: FileNo(number),
            first: TxnId(number as i64 * 10),
            last: TxnId(number as i64 * 10 + 9),
            content_hash: ContentHash([number as u8; 32]),
            byte_hash: ByteHash([0; 32]),
            bytes: 100 * number,
            operations: number,
            created: String::new(),
        };
        ledger
            .commit(&Round {
                state: RouterState { position: TxnId(39), ..RouterState::default() },
                nodes: vec![NodeChange::Started { node: node.clone(), incarnation: Incarnation(1), unit: TxnId(9), keys: Vec::new() }],
                files: vec![file(1), file(2), file(3)],
            })
            .unwrap();
        let view = LedgerView::open(&path).unwrap().unwrap();
        assert_eq!(view.position().unwrap(), Some(TxnId(39)));
        assert_eq!(view.backlog(&node, Incarnation(1), FileNo(1)).unwrap(), Backlog { files: 2, bytes: 500, operations: 5 });
        assert_eq!(view.backlog(&node, Incarnation(2), FileNo(0)).unwrap(), Backlog::default());
    }
}
