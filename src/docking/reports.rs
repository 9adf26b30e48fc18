//! What nodes report beside their progress, in `sessions.db`: why one applies nothing any more, and what it found at marks (R42).
//!
//! A report is taken back by the next one, or by a new extract of the node, so nobody has to clear it.

use crate::base::ids::{Incarnation, NodeName};
use crate::docking::sessions::{SessionsDb, SessionsError};
use crate::model::digest::TableOutcome;
use rusqlite::{OptionalExtension, params};
use std::collections::BTreeSet;

/// Most outcomes of comparisons that are kept; the oldest go first.
const OUTCOMES_KEPT_MAX: i64 = 20_000;

/// Tables of this file.
pub(super) const LAYOUT: &str = "
CREATE TABLE stop(node TEXT PRIMARY KEY, incarnation INTEGER NOT NULL, since INTEGER NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE compared(
    id INTEGER NOT NULL, place INTEGER NOT NULL, node TEXT NOT NULL, at INTEGER NOT NULL, unit INTEGER NOT NULL,
    is_equal INTEGER NOT NULL, outcome TEXT NOT NULL, PRIMARY KEY(id, place));
CREATE TABLE hooked(key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE INDEX compared_node ON compared(node, at);
";

/// Why a node applies nothing any more, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// When it was heard first, seconds since 1970.
    pub since: i64,
    /// File, unit, table, key and reason, and what to do at the node.
    pub reason: String,
}

/// What a node found in one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// When the server heard of it, seconds since 1970.
    pub at: i64,
    /// What it found.
    pub outcome: TableOutcome,
}

impl SessionsDb {
    /// Keeps why a node stopped, or that it goes on. The time of the same reason stays that of the first report.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn set_stop(&self, node: &NodeName, incarnation: Incarnation, reason: Option<&str>, now: i64) -> Result<(), SessionsError> {
        let written = match reason {
            None => self.connection().execute("DELETE FROM stop WHERE node = ?1", [node.as_str()]),
            Some(reason) => self.connection().execute(
                "INSERT INTO stop(node, incarnation, since, reason) VALUES(?1, ?2, ?3, ?4) ON CONFLICT(node) DO UPDATE SET
                 since = iif(reason = excluded.reason AND incarnation = excluded.incarnation, since, excluded.since),
                 incarnation = excluded.incarnation, reason = excluded.reason",
                params![node.as_str(), incarnation.0, now, reason],
            ),
        };
        written.map(drop).map_err(|source| self.error("write why a node stopped to", source))
    }

    /// Returns why a node stopped in this incarnation; `None` if it goes on, or never said so.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn stop_of(&self, node: &NodeName, incarnation: Incarnation) -> Result<Option<Stop>, SessionsError> {
        self.connection()
            .prepare_cached("SELECT since, reason FROM stop WHERE node = ?1 AND incarnation = ?2")
            .and_then(|mut statement| {
                statement
                    .query_row(params![node.as_str(), incarnation.0], |row| Ok(Stop { since: row.get(0)?, reason: row.get(1)? }))
                    .optional()
            })
            .map_err(|source| self.error("read why a node stopped from", source))
    }

    /// Returns the keys of the alerts for which the hook was run and that last.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn hooked(&self) -> Result<BTreeSet<String>, SessionsError> {
        self.connection()
            .prepare_cached("SELECT key FROM hooked")
            .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect())
            .map_err(|source| self.error("read alerts of", source))
    }

    /// Notes that the hook is run for an alert.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn hook(&self, key: &str) -> Result<(), SessionsError> {
        let written = self.connection().execute("INSERT OR IGNORE INTO hooked(key) VALUES(?1)", [key]);
        written.map(drop).map_err(|source| self.error("write an alert to", source))
    }

    /// Forgets an alert that is over: it is told again when it comes back.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn unhook(&self, key: &str) -> Result<(), SessionsError> {
        let written = self.connection().execute("DELETE FROM hooked WHERE key = ?1", [key]);
        written.map(drop).map_err(|source| self.error("write an alert to", source))
    }

    /// Returns how many sessions known nodes ever began.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn begun(&self) -> Result<u64, SessionsError> {
        let sql = "SELECT ifnull((SELECT seq FROM sqlite_sequence WHERE name = 'session'), 0)";
        let begun: i64 =
            self.connection().query_row(sql, [], |row| row.get(0)).map_err(|source| self.error("count sessions of", source))?;
        Ok(begun.unsigned_abs())
    }

    /// Keeps what a node found. Told twice it is kept once.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn keep_outcome(&self, node: &NodeName, outcome: &TableOutcome, now: i64) -> Result<(), SessionsError> {
        let write = || -> rusqlite::Result<()> {
            let text = serde_json::to_string(outcome).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
            self.connection()
                .prepare_cached(
                    "INSERT OR IGNORE INTO compared(id, place, node, at, unit, is_equal, outcome) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )?
                .execute(params![outcome.id.cast_signed(), outcome.place, node.as_str(), now, outcome.unit.0, outcome.is_equal(), text])?;
            self.connection()
                .prepare_cached("DELETE FROM compared WHERE rowid <= (SELECT max(rowid) FROM compared) - ?1")?
                .execute([OUTCOMES_KEPT_MAX])?;
            Ok(())
        };
        write().map_err(|source| self.error("write an outcome to", source))
    }

    /// Returns what a node found to a question, in the order of its tables; perhaps not all of it yet.
    ///
    /// # Errors
    /// SQLite fails, or a row is unreadable.
    pub fn outcomes_of(&self, node: &NodeName, id: u64) -> Result<Vec<Compared>, SessionsError> {
        let sql = "SELECT at, outcome FROM compared WHERE node = ?1 AND id = ?2 ORDER BY place";
        self.read_outcomes(sql, params![node.as_str(), id.cast_signed()])
    }

    /// Returns the newest outcomes of a node, newest first.
    ///
    /// # Errors
    /// SQLite fails, or a row is unreadable.
    pub fn newest_outcomes(&self, node: &NodeName, limit: u32) -> Result<Vec<Compared>, SessionsError> {
        let sql = "SELECT at, outcome FROM compared WHERE node = ?1 ORDER BY rowid DESC LIMIT ?2";
        self.read_outcomes(sql, params![node.as_str(), limit])
    }

    fn read_outcomes(&self, sql: &str, params: impl rusqlite::Params) -> Result<Vec<Compared>, SessionsError> {
        self.connection()
            .prepare_cached(sql)
            .and_then(|mut statement| {
                let rows = statement.query_map(params, |row| {
                    let text: String = row.get(1)?;
                    let outcome = serde_json::from_str(&text)
                        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, error.into()))?;
                    Ok(Compared { at: row.get(0)?, outcome })
                })?;
                rows.collect()
            })
            .map_err(|source| self.error("read outcomes of", source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::TxnId;

    #[test]
    fn x11_a_stop_is_taken_back_and_does_not_outlive_its_extract() {
        let folder = tempfile::tempdir().unwrap();
        let database = SessionsDb::open(&folder.path().join("sessions.db")).unwrap();
        let node: NodeName = "ANNA".parse().unwrap();
        database.set_stop(&node, Incarnation(1), Some("file 3: no"), 10).unwrap();
        database.set_stop(&node, Incarnation(1), Some("file 3: no"), 20).unwrap();
        assert_eq!(database.stop_of(&node, Incarnation(1)).unwrap(), Some(Stop { since: 10, reason: "file 3: no".into() }));
        assert_eq!(database.stop_of(&node, Incarnation(2)).unwrap(), None);
        database.set_stop(&node, Incarnation(1), None, 30).unwrap();
        assert_eq!(database.stop_of(&node, Incarnation(1)).unwrap(), None);
    }

    #[test]
    fn r42_outcomes_are_kept_once() {
        let folder = tempfile::tempdir().unwrap();
        let database = SessionsDb::open(&folder.path().join("sessions.db")).unwrap();
        let node: NodeName = "ANNA".parse().unwrap();
        let outcome = TableOutcome {
            id: u64::MAX,
            unit: TxnId(9),
            tables: 1,
            place: 0,
            table: "t".into(),
            bucket_count: 4,
            buckets: vec![1],
            found: Vec::new(),
            more: 0,
            problem: String::new(),
        };
        database.keep_outcome(&node, &outcome, 5).unwrap();
        database.keep_outcome(&node, &outcome, 6).unwrap();
        assert_eq!(database.outcomes_of(&node, u64::MAX).unwrap(), [Compared { at: 5, outcome: outcome.clone() }]);
        assert_eq!(database.newest_outcomes(&node, 10).unwrap().len(), 1);
    }
}
