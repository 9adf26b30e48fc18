//! A database for what does not fit into memory while one unit is worked on.
//!
//! Nothing in it outlives its owner: no journal, no flush, one transaction that never ends, and the file goes with the owner. What a
//! crash leaves of it lies in a `tmp` folder, which is emptied at the next start.

use crate::base::disk::Disk;
use rusqlite::Connection;
use std::path::{Path, PathBuf};

/// Memory that SQLite may use for its pages, in KiB.
const CACHE_KIB: i64 = 8 << 10;

/// An open scratch database.
#[derive(Debug)]
pub struct Scratch {
    /// `None` only while it is dropped.
    connection: Option<Connection>,
    path: PathBuf,
}

impl Scratch {
    /// Makes an empty database at `path`, in place of a leftover, with these tables.
    ///
    /// # Errors
    /// A statement failed, or the leftover cannot be removed.
    pub fn create(path: &Path, tables: &str) -> rusqlite::Result<Scratch> {
        let removed = Disk::new().remove(path);
        removed.map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        let connection = Connection::open(path)?;
        let scratch = Scratch { connection: Some(connection), path: path.to_owned() };
        scratch.sql(|connection| {
            connection.execute_batch(&format!(
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE; PRAGMA cache_size = -{CACHE_KIB};
                 BEGIN; {tables}"
            ))
        })?;
        Ok(scratch)
    }

    /// Runs statements.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn sql<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        match &self.connection {
            Some(connection) => work(connection),
            None => Err(rusqlite::Error::InvalidQuery),
        }
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.connection.take());
        if let Err(error) = Disk::new().remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a scratch file stays until the next start");
        }
    }
}
