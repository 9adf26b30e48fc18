//! One table, one row at a time: what `bench` writes on the server and waits for on a client. Stands for "some program".

use crate::store::sqlite::{StoreError, open_connection};
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use std::path::{Path, PathBuf};

/// A connection to a database with the probe's table.
#[derive(Debug)]
pub struct Probe {
    path: PathBuf,
    connection: Connection,
}

impl Probe {
    /// Makes a database with the table, in the mode in which a captured database is: WAL, full synchronisation.
    ///
    /// # Errors
    /// SQLite refuses.
    pub fn create(path: &Path) -> Result<Probe, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let probe = Probe { path: path.to_owned(), connection: open_connection(path, flags)? };
        let table = "PRAGMA journal_mode = WAL; CREATE TABLE probe(id INTEGER PRIMARY KEY, node INTEGER NOT NULL, text TEXT)";
        probe.connection.execute_batch(table).map_err(probe.fault("making the table"))?;
        Ok(probe)
    }

    /// Opens a database that has the table.
    ///
    /// # Errors
    /// SQLite refuses.
    pub fn open(path: &Path) -> Result<Probe, StoreError> {
        Ok(Probe { path: path.to_owned(), connection: open_connection(path, OpenFlags::SQLITE_OPEN_READ_WRITE)? })
    }

    fn fault(&self, action: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError + use<> {
        let path = self.path.clone();
        move |source| StoreError::Sql { path, action: action.to_owned(), source }
    }

    /// Inserts a row for node 1 and commits.
    ///
    /// # Errors
    /// SQLite refuses.
    pub fn insert(&self, id: i64) -> Result<(), StoreError> {
        self.connection
            .prepare_cached("INSERT INTO probe(id, node, text) VALUES(?1, 1, 'a row of ordinary size, as sales and visits are')")
            .and_then(|mut statement| statement.execute([id]))
            .map(drop)
            .map_err(self.fault("inserting"))
    }

    /// Returns whether the row can be read.
    ///
    /// # Errors
    /// SQLite refuses.
    pub fn has(&self, id: i64) -> Result<bool, StoreError> {
        self.connection
            .prepare_cached("SELECT 1 FROM probe WHERE id = ?1")
            .and_then(|mut statement| statement.query_row([id], |_| Ok(())).optional())
            .map(|found| found.is_some())
            .map_err(self.fault("looking for a row"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_there_once_it_is_inserted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let (writer, reader) = (Probe::create(&path).unwrap(), Probe::open(&path).unwrap());
        assert!(!reader.has(1).unwrap());
        writer.insert(1).unwrap();
        assert!(reader.has(1).unwrap());
        assert!(writer.insert(1).unwrap_err().to_string().contains("a.db"));
    }
}
