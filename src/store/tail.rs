//! The tail of the log: what was read last and under which mark (R13, R14), and the purge of what nobody reads again.

use crate::base::defect::{self, Defect};
use crate::base::ids::{Nonce, Revision, TxnId};
use crate::store::log::ReadOptions;
use crate::store::sqlite::{ServerDatabase, StoreError};
use rusqlite::OptionalExtension;

/// Most log rows that one purging transaction deletes.
const PURGE_CHUNK_ROWS: i64 = 5_000;

/// The tail row: what was read last, and under which mark (R13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Position up to which the log was read.
    pub position: TxnId,
    /// Mark of that reading.
    pub nonce: Nonce,
    /// Mark of the reading before.
    pub previous: Option<Nonce>,
}

/// Where and how the data store was filled last (`dock_meta`): what a rebuild begins with when no file was written since (R26).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Filled {
    /// The position.
    pub position: TxnId,
    /// The definition.
    pub revision: Revision,
    /// The day for time windows.
    pub day: i64,
}

impl ServerDatabase {
    /// Returns where the data store was filled last; `None` if it never was.
    ///
    /// # Errors
    /// The row is damaged, or a statement failed.
    pub fn filled(&self) -> Result<Option<Filled>, StoreError> {
        self.read_meta("filled")
    }

    /// Notes where the data store was filled.
    ///
    /// # Errors
    /// A statement failed.
    pub fn write_filled(&self, filled: &Filled) -> Result<(), StoreError> {
        self.write_meta("filled", filled)
    }

    /// Returns the tables that stand still by the data store. A data store that is lost is not the only one to know them: what they
    /// were when they stopped cannot be found out from the log.
    ///
    /// # Errors
    /// The row is damaged, or a statement failed.
    pub fn frozen(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.read_meta("frozen")?.unwrap_or_default())
    }

    /// Notes the tables that stand still.
    ///
    /// # Errors
    /// A statement failed.
    pub fn write_frozen(&self, tables: &[String]) -> Result<(), StoreError> {
        self.write_meta("frozen", &tables)
    }

    fn read_meta<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let text: Option<String> = self
            .connection
            .query_row("SELECT value FROM main.dock_meta WHERE name = ?1", [name], |row| row.get(0))
            .optional()
            .map_err(self.fault("reading dock_meta"))?;
        let damaged = |error: serde_json::Error| StoreError::Damaged {
            path: self.path.clone(),
            what: format!("dock_meta `{name}`"),
            reason: error.to_string(),
        };
        text.map(|text| serde_json::from_str(&text)).transpose().map_err(damaged)
    }

    fn write_meta(&self, name: &str, value: &impl serde::Serialize) -> Result<(), StoreError> {
        let fault = || self.fault("writing dock_meta");
        let text = serde_json::to_string(value).map_err(|error| StoreError::Damaged {
            path: self.path.clone(),
            what: format!("dock_meta `{name}`"),
            reason: error.to_string(),
        })?;
        let transaction = self.begin_write("writing dock_meta")?;
        let updated = transaction.execute("UPDATE main.dock_meta SET value = ?2 WHERE name = ?1", [name, &text]).map_err(fault())?;
        if updated == 0 {
            transaction.execute("INSERT INTO main.dock_meta(name, value) VALUES (?1, ?2)", [name, &text]).map_err(fault())?;
        }
        transaction.commit().map_err(fault())
    }

    /// Checks that this is the database that was read last (R14).
    ///
    /// # Errors
    /// [`StoreError::NotTheSameDatabase`], a damaged tail, or a statement failed.
    pub fn check_mark(&self, options: &ReadOptions) -> Result<(), StoreError> {
        let Some(known) = options.known else { return Ok(()) };
        let tail = self.tail()?;
        match tail {
            Some(tail) if tail.nonce == known || tail.previous == Some(known) => Ok(()),
            _ => Err(StoreError::NotTheSameDatabase {
                path: self.path.clone(),
                known,
                found: tail.map(|tail| tail.nonce),
                previous: tail.and_then(|tail| tail.previous),
            }),
        }
    }

    /// Returns the tail row; `None` before the first reading.
    ///
    /// # Errors
    /// The row is damaged, or a statement failed.
    pub fn tail(&self) -> Result<Option<Tail>, StoreError> {
        let found = self
            .connection
            .prepare_cached("SELECT position, nonce, previous FROM main.dock_tail")
            .and_then(|mut statement| {
                statement
                    .query_row([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, Option<String>>(2)?)))
                    .optional()
            })
            .map_err(self.fault("reading the tail"))?;
        let Some((position, nonce, previous)) = found else { return Ok(None) };
        let parse = |text: &str| {
            text.parse::<Nonce>().map_err(|error| StoreError::Damaged {
                path: self.path.clone(),
                what: "dock_tail".into(),
                reason: error.to_string(),
            })
        };
        Ok(Some(Tail { position: TxnId(position), nonce: parse(&nonce)?, previous: previous.as_deref().map(parse).transpose()? }))
    }

    /// Commits the tail, durably and by itself: with it every commit that was read is on the disk, so what was made of it may be
    /// published (I7). Log ids up to `position` are never given again from here on.
    ///
    /// # Errors
    /// A statement failed; then nothing may be published.
    pub fn write_tail(&self, position: TxnId, nonce: Nonce, previous: Option<Nonce>) -> Result<(), StoreError> {
        let fault = || self.fault("writing the tail");
        // The connection opens with synchronous=FULL; said again, since everything published rests on it.
        let synchronous = if defect::is_planted(Defect::NoTailFlush) { "OFF" } else { defect::synchronous() };
        self.connection.pragma_update(None, "synchronous", synchronous).map_err(fault())?;
        let transaction = self.begin_write("writing the tail")?;
        self.put_tail(position, nonce, previous)?;
        transaction.commit().map_err(fault())
    }

    /// The same within a transaction of the caller.
    pub(crate) fn put_tail(&self, position: TxnId, nonce: Nonce, previous: Option<Nonce>) -> Result<(), StoreError> {
        let fault = || self.fault("writing the tail");
        let transaction = &self.connection;
        let row = (position.0, nonce.to_string(), previous.map(|nonce| nonce.to_string()));
        let updated =
            transaction.execute("UPDATE main.dock_tail SET position = ?1, nonce = ?2, previous = ?3", row.clone()).map_err(fault())?;
        if updated == 0 {
            transaction.execute("INSERT INTO main.dock_tail(position, nonce, previous) VALUES (?1, ?2, ?3)", row).map_err(fault())?;
        }
        // A statement that ended by OR FAIL keeps its log rows but not the sequence: after a purge their ids would come back.
        let raised = transaction
            .execute("UPDATE main.sqlite_sequence SET seq = max(seq, ?1) WHERE name = 'dock_txn_log'", [position.0])
            .map_err(fault())?;
        if raised == 0 && position.0 > 0 {
            transaction.execute("INSERT INTO main.sqlite_sequence(name, seq) VALUES ('dock_txn_log', ?1)", [position.0]).map_err(fault())?;
        }
        Ok(())
    }

    /// Deletes log rows up to `upto`, but none that stands among the last `keep` of them and none behind the tail. Returns how many.
    ///
    /// # Errors
    /// A statement failed; what was deleted by then stays deleted.
    pub fn purge_log(&self, upto: TxnId, keep: u64) -> Result<u64, StoreError> {
        let fault = || self.fault("purging the log");
        let Some(tail) = self.tail()? else { return Ok(0) };
        let last = upto.min(tail.position).0.saturating_sub(i64::try_from(keep).unwrap_or(i64::MAX));
        let mut deleted = 0;
        loop {
            let transaction = self.begin_write("purging the log")?;
            let chunk = transaction
                .execute(
                    "DELETE FROM main.dock_txn_log WHERE id IN (SELECT id FROM main.dock_txn_log WHERE id <= ?1 ORDER BY id LIMIT ?2)",
                    [last, PURGE_CHUNK_ROWS],
                )
                .map_err(fault())?;
            transaction.commit().map_err(fault())?;
            if chunk == 0 {
                return Ok(deleted);
            }
            deleted += chunk as u64;
        }
    }
}
