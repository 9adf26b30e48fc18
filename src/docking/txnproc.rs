//! The commit point between Transaction Processor and Router: table `txnproc_file` of `cds.db`.
//!
//! A txnproc file without a row there does not exist. The Router reads this table and nothing else of `cds.db`, and
//! never writes to it.

use crate::base::ids::{ContentHash, FileNo, TxnId};
use crate::docking::error::DockingError;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A row of that table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnprocRow {
    /// Number of the file.
    pub file_no: FileNo,
    /// First log position covered.
    pub first: TxnId,
    /// Last log position covered.
    pub last: TxnId,
    /// Content hash.
    pub content_hash: ContentHash,
    /// Length in bytes.
    pub bytes: u64,
}

/// The Router's view of `cds.db`. Opened when the database is there.
#[derive(Debug)]
pub struct TxnprocFiles {
    path: PathBuf,
    connection: Option<Connection>,
}

impl TxnprocFiles {
    /// Returns a reader of `cds.db` at `path`, which need not exist yet.
    pub fn new(path: &Path) -> TxnprocFiles {
        TxnprocFiles { path: path.to_owned(), connection: None }
    }

    /// Returns the files that hold anything above `position`, in order, at most `limit`.
    ///
    /// # Errors
    /// If the database cannot be read, or a row makes no sense.
    pub fn after(&mut self, position: TxnId, limit: usize) -> Result<Vec<TxnprocRow>, DockingError> {
        let path = self.path.clone();
        let sql = |operation| {
            let path = path.clone();
            move |source| DockingError::Sql { operation, path, source }
        };
        if self.connection.is_none() {
            if !self.path.exists() {
                return Ok(Vec::new());
            }
            let connection = Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
                .map_err(sql("open"))?;
            connection.busy_timeout(Duration::from_secs(10)).map_err(sql("open"))?;
            let table: Option<i64> = connection
                .query_row("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'txnproc_file'", [], |row| row.get(0))
                .optional()
                .map_err(sql("look for txnproc_file"))?;
            if table.is_none() {
                return Ok(Vec::new());
            }
            self.connection = Some(connection);
        }
        let Some(connection) = &self.connection else { return Ok(Vec::new()) };
        let mut statement = connection
            .prepare_cached("SELECT file_no, first, last, content_hash, bytes FROM txnproc_file WHERE last > ?1 ORDER BY file_no LIMIT ?2")
            .map_err(sql("read txnproc_file"))?;
        let rows = statement
            .query_map(params![position.0, i64::try_from(limit).unwrap_or(i64::MAX)], txnproc_row)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(sql("read txnproc_file"))?;
        Ok(rows)
    }
}

fn txnproc_row(row: &Row<'_>) -> rusqlite::Result<TxnprocRow> {
    Ok(TxnprocRow {
        file_no: FileNo(row.get::<_, i64>(0)?.unsigned_abs()),
        first: TxnId(row.get(1)?),
        last: TxnId(row.get(2)?),
        content_hash: ContentHash(row.get(3)?),
        bytes: row.get::<_, i64>(4)?.unsigned_abs(),
    })
}
