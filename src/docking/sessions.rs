//! `sessions.db`: what the Synchronization Manager remembers. It is the only writer; `status` reads.
//!
//! Tables of this file: `session` (one row for each session that a known node began, bounded), `mark` (how far each node said it is, for one
//! incarnation) and `alert` (what a person must look at); those of `docking::reports`, `docking::uploads`, `docking::keys` and `docking::tokens` lie beside
//! them. Losing the file loses history and alerts, and the files that nodes have acknowledged are kept a little longer; no row of data depends on it.
//!
//! **Invariants**: for one incarnation `applied_file <= received_file`; the local database that used an extract first keeps it.

use crate::base::ids::{ContentHash, FileNo, Incarnation, InstallId, NodeName, TxnId};
use crate::docking::{keys, reports, tokens, uploads};
use crate::session::message::AppliedTo;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, params};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a statement waits for another program's.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Layout that this program writes.
pub const SESSIONS_VERSION: i64 = 5;
/// Most session rows that are kept; the oldest go first.
pub const SESSIONS_KEPT_MAX: i64 = 100_000;
/// Most alert rows that are kept; the oldest go first.
pub const ALERTS_KEPT_MAX: i64 = 10_000;

/// What can go wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum SessionsError {
    /// SQLite says so.
    #[error("{action} {}: {source}", .path.display())]
    Sql {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// Written by a newer program.
    #[error("{} has layout {found}, this program knows {SESSIONS_VERSION}", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: i64,
    },
}

/// How far a node is, in one incarnation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The node.
    pub node: NodeName,
    /// Its extract.
    pub incarnation: Incarnation,
    /// The local database that uses this extract.
    pub install_id: InstallId,
    /// Last file that lies durable in its inbox.
    pub received: FileNo,
    /// What it has committed.
    pub applied: AppliedTo,
    /// When it was heard last, seconds since 1970 (for people).
    pub last_seen: i64,
}

/// One session, past or present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// Number of the session.
    pub id: i64,
    /// The node.
    pub node: String,
    /// Address of the peer.
    pub peer: String,
    /// sync, watch or init.
    pub mode: String,
    /// Program of the peer.
    pub program: String,
    /// Extract that the node named.
    pub incarnation: Incarnation,
    /// When it began, seconds since 1970.
    pub began: i64,
    /// When it ended; `None` = goes on, or the server was killed in it.
    pub ended: Option<i64>,
    /// done, refused, lost, violation or failed; empty while it goes on.
    pub outcome: String,
    /// Why, for people.
    pub detail: String,
    /// Files sent whole.
    pub files_sent: u64,
    /// Bytes sent, everything included.
    pub bytes_sent: u64,
}

/// Something that a person must look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertRow {
    /// Number of the alert.
    pub id: i64,
    /// When, seconds since 1970.
    pub at: i64,
    /// The node.
    pub node: String,
    /// What happened.
    pub text: String,
}

/// A session that begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begin {
    /// The node.
    pub node: NodeName,
    /// Address of the peer.
    pub peer: String,
    /// sync, watch or init.
    pub mode: String,
    /// Program of the peer.
    pub program: String,
    /// Extract that the node names.
    pub incarnation: Incarnation,
    /// Seconds since 1970.
    pub now: i64,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// done, refused, lost, violation or failed.
    pub outcome: &'static str,
    /// Why, for people.
    pub detail: String,
    /// Files sent whole.
    pub files_sent: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Seconds since 1970.
    pub now: i64,
}

/// The open file.
#[derive(Debug)]
pub struct SessionsDb {
    connection: Connection,
    path: PathBuf,
}

const LAYOUT: &str = "
CREATE TABLE session(
    id INTEGER PRIMARY KEY AUTOINCREMENT, node TEXT NOT NULL, peer TEXT NOT NULL, mode TEXT NOT NULL, program TEXT NOT NULL,
    incarnation INTEGER NOT NULL, began INTEGER NOT NULL, ended INTEGER, outcome TEXT NOT NULL DEFAULT '',
    detail TEXT NOT NULL DEFAULT '', files_sent INTEGER NOT NULL DEFAULT 0, bytes_sent INTEGER NOT NULL DEFAULT 0);
CREATE INDEX session_node ON session(node, id);
CREATE TABLE mark(
    node TEXT NOT NULL, incarnation INTEGER NOT NULL, install_id BLOB NOT NULL, received_file INTEGER NOT NULL,
    applied_file INTEGER NOT NULL, applied_unit INTEGER NOT NULL, applied_hash BLOB NOT NULL, last_seen INTEGER NOT NULL,
    PRIMARY KEY(node, incarnation), CHECK(applied_file <= received_file)) WITHOUT ROWID;
CREATE TABLE alert(id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, node TEXT NOT NULL, text TEXT NOT NULL);
";

/// Switches a file to WAL mode. SQLite does not wait for others that do the same at that moment, so this does.
fn switch_to_wal(connection: &Connection) -> rusqlite::Result<()> {
    const PAUSE: Duration = Duration::from_millis(2);
    let mut waited = Duration::ZERO;
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && waited < BUSY_TIMEOUT => {
                std::thread::sleep(PAUSE);
                waited += PAUSE;
            }
            switched => return switched,
        }
    }
}

impl SessionsDb {
    /// Opens the file, making it if it is not there.
    ///
    /// # Errors
    /// It cannot be opened or is of a newer layout.
    pub fn open(path: &Path) -> Result<SessionsDb, SessionsError> {
        let at = |action| move |source| SessionsError::Sql { action, path: path.to_owned(), source };
        let connection = Connection::open(path).map_err(at("open"))?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(at("open"))?;
        switch_to_wal(&connection).map_err(at("open"))?;
        // An acknowledgement that a power cut takes back only keeps files longer.
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(at("open"))?;
        let database = SessionsDb { connection, path: path.to_owned() };
        if database.version()? < SESSIONS_VERSION {
            database.bring_up_to_date()?;
        }
        match database.version()? {
            SESSIONS_VERSION => {}
            found => return Err(SessionsError::Newer { path: path.to_owned(), found }),
        }
        Ok(database)
    }

    /// Makes the tables that are missing. Several threads open the file when a service starts: one of them does it.
    fn bring_up_to_date(&self) -> Result<(), SessionsError> {
        let failed = |source| self.error("create", source);
        self.connection.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
        let missing = match self.version()? {
            0 => [LAYOUT, reports::LAYOUT, uploads::LAYOUT, keys::LAYOUT, tokens::LAYOUT].concat(),
            1 => [reports::LAYOUT, uploads::LAYOUT, keys::LAYOUT, tokens::LAYOUT].concat(),
            2 => [uploads::LAYOUT, keys::LAYOUT, tokens::LAYOUT].concat(),
            3 => [keys::LAYOUT, tokens::LAYOUT].concat(),
            4 => tokens::LAYOUT.to_owned(),
            _ => String::new(),
        };
        let sql = format!("{missing} PRAGMA user_version = {SESSIONS_VERSION}; COMMIT");
        // A newer version is only seen here if another program has just made it.
        let sql = if missing.is_empty() { "ROLLBACK" } else { sql.as_str() };
        self.connection.execute_batch(sql).map_err(failed)
    }

    /// Opens the file for reading; `None` if there is none yet.
    ///
    /// # Errors
    /// It cannot be opened or is of a newer layout.
    pub fn open_to_read(path: &Path) -> Result<Option<SessionsDb>, SessionsError> {
        if !path.exists() {
            return Ok(None);
        }
        let at = |source| SessionsError::Sql { action: "open", path: path.to_owned(), source };
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(at)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(at)?;
        let database = SessionsDb { connection, path: path.to_owned() };
        match database.version()? {
            // Of a former version: its writer brings it up to date.
            0..=4 => Ok(None),
            SESSIONS_VERSION => Ok(Some(database)),
            found => Err(SessionsError::Newer { path: path.to_owned(), found }),
        }
    }

    /// Returns the connection, for `docking::reports`, `docking::uploads` and `docking::keys`.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn error(&self, action: &'static str, source: rusqlite::Error) -> SessionsError {
        SessionsError::Sql { action, path: self.path.clone(), source }
    }

    fn version(&self) -> Result<i64, SessionsError> {
        self.connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(|source| self.error("read", source))
    }

    /// Writes that a session began and returns its number.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn begin(&self, begin: &Begin) -> Result<i64, SessionsError> {
        let write = || -> rusqlite::Result<i64> {
            self.connection
                .prepare_cached("INSERT INTO session(node, peer, mode, program, incarnation, began) VALUES (?, ?, ?, ?, ?, ?)")?
                .execute(params![begin.node.as_str(), begin.peer, begin.mode, begin.program, begin.incarnation.0, begin.now])?;
            let id = self.connection.last_insert_rowid();
            self.connection.prepare_cached("DELETE FROM session WHERE id <= ?")?.execute([id - SESSIONS_KEPT_MAX])?;
            Ok(id)
        };
        write().map_err(|source| self.error("write session to", source))
    }

    /// Writes how a session ended.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn end(&self, id: i64, end: &End) -> Result<(), SessionsError> {
        let (files, bytes) = (number(end.files_sent), number(end.bytes_sent));
        self.connection
            .prepare_cached("UPDATE session SET ended = ?, outcome = ?, detail = ?, files_sent = ?, bytes_sent = ? WHERE id = ?")
            .and_then(|mut statement| statement.execute(params![end.now, end.outcome, end.detail, files, bytes, id]))
            .map(drop)
            .map_err(|source| self.error("write session to", source))
    }

    /// Sets how far a node is. The first call for an incarnation binds it to that local database.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn set_mark(&self, mark: &Mark) -> Result<(), SessionsError> {
        let sql = "INSERT INTO mark(node, incarnation, install_id, received_file, applied_file, applied_unit, applied_hash, last_seen)
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?)
                   ON CONFLICT(node, incarnation) DO UPDATE SET received_file = excluded.received_file,
                       applied_file = excluded.applied_file, applied_unit = excluded.applied_unit,
                       applied_hash = excluded.applied_hash, last_seen = excluded.last_seen";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| {
                statement.execute(params![
                    mark.node.as_str(),
                    mark.incarnation.0,
                    mark.install_id.0,
                    number(mark.received.max(mark.applied.file).0),
                    number(mark.applied.file.0),
                    mark.applied.unit.0,
                    mark.applied.hash.0,
                    mark.last_seen
                ])
            })
            .map(drop)
            .map_err(|source| self.error("write mark to", source))
    }

    /// Returns how far a node is in one incarnation; `None` if no local database has used that extract yet.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn mark(&self, node: &NodeName, incarnation: Incarnation) -> Result<Option<Mark>, SessionsError> {
        self.connection
            .prepare_cached(&format!("{SELECT_MARK} WHERE node = ? AND incarnation = ?"))
            .and_then(|mut statement| statement.query_row(params![node.as_str(), incarnation.0], read_mark).optional())
            .map_err(|source| self.error("read mark of", source))
    }

    /// Returns the marks of all nodes, each in its newest incarnation, by name.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn marks(&self) -> Result<Vec<Mark>, SessionsError> {
        let sql = format!("{SELECT_MARK} AS m WHERE incarnation = (SELECT max(incarnation) FROM mark WHERE node = m.node) ORDER BY node");
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut statement| statement.query_map([], read_mark)?.collect())
            .map_err(|source| self.error("read marks of", source))
    }

    /// Keeps something that a person must look at. The same text about the same node is kept once until it is cleared.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn alert(&self, node: &str, text: &str, now: i64) -> Result<(), SessionsError> {
        let sql =
            "INSERT INTO alert(at, node, text) SELECT ?1, ?2, ?3 WHERE NOT EXISTS (SELECT 1 FROM alert WHERE node = ?2 AND text = ?3)";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(params![now, node, text]))
            .and_then(|_| {
                let sql = "DELETE FROM alert WHERE id <= (SELECT max(id) FROM alert) - ?";
                self.connection.prepare_cached(sql)?.execute([ALERTS_KEPT_MAX])
            })
            .map(drop)
            .map_err(|source| self.error("write alert to", source))
    }

    /// Returns the alerts, newest first; of one node, or of all.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn alerts(&self, node: Option<&NodeName>) -> Result<Vec<AlertRow>, SessionsError> {
        self.connection
            .prepare_cached("SELECT id, at, node, text FROM alert WHERE ?1 IS NULL OR node = ?1 ORDER BY id DESC")
            .and_then(|mut statement| {
                let rows = statement.query_map([node.map(NodeName::as_str)], |row| {
                    Ok(AlertRow { id: row.get(0)?, at: row.get(1)?, node: row.get(2)?, text: row.get(3)? })
                })?;
                rows.collect()
            })
            .map_err(|source| self.error("read alerts of", source))
    }

    /// Removes the alerts of a node; returns how many.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn clear_alerts(&self, node: &NodeName) -> Result<usize, SessionsError> {
        let sql = "DELETE FROM alert WHERE node = ?";
        self.connection.execute(sql, [node.as_str()]).map_err(|source| self.error("clear alerts of", source))
    }

    /// Returns whether the last session of a node that was let in is one that watches and goes on. Sessions that were refused
    /// do not count: a second copy of a node that calls does not disconnect the first.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn is_watching(&self, node: &NodeName) -> Result<bool, SessionsError> {
        let sql = "SELECT ended IS NULL AND mode = 'watch' FROM session WHERE node = ? AND outcome <> 'refused' ORDER BY id DESC LIMIT 1";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row([node.as_str()], |row| row.get(0)).optional())
            .map(Option::unwrap_or_default)
            .map_err(|source| self.error("read sessions of", source))
    }

    /// Returns the newest sessions, newest first; of one node, or of all.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn sessions(&self, node: Option<&NodeName>, limit: u32) -> Result<Vec<SessionRow>, SessionsError> {
        let sql = "SELECT id, node, peer, mode, program, incarnation, began, ended, outcome, detail, files_sent, bytes_sent FROM session
                   WHERE ?1 IS NULL OR node = ?1 ORDER BY id DESC LIMIT ?2";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| {
                let rows = statement.query_map(params![node.map(NodeName::as_str), limit], |row| {
                    Ok(SessionRow {
                        id: row.get(0)?,
                        node: row.get(1)?,
                        peer: row.get(2)?,
                        mode: row.get(3)?,
                        program: row.get(4)?,
                        incarnation: Incarnation(row.get(5)?),
                        began: row.get(6)?,
                        ended: row.get(7)?,
                        outcome: row.get(8)?,
                        detail: row.get(9)?,
                        files_sent: row.get::<_, i64>(10)?.unsigned_abs(),
                        bytes_sent: row.get::<_, i64>(11)?.unsigned_abs(),
                    })
                })?;
                rows.collect()
            })
            .map_err(|source| self.error("read sessions of", source))
    }
}

const SELECT_MARK: &str =
    "SELECT node, incarnation, install_id, received_file, applied_file, applied_unit, applied_hash, last_seen FROM mark";

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn read_mark(row: &Row<'_>) -> rusqlite::Result<Mark> {
    let node: String = row.get(0)?;
    let wrong = |error| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error));
    Ok(Mark {
        node: node.parse().map_err(wrong)?,
        incarnation: Incarnation(row.get(1)?),
        install_id: InstallId(row.get(2)?),
        received: FileNo(row.get::<_, i64>(3)?.unsigned_abs()),
        applied: AppliedTo { file: FileNo(row.get::<_, i64>(4)?.unsigned_abs()), unit: TxnId(row.get(5)?), hash: ContentHash(row.get(6)?) },
        last_seen: row.get(7)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(install: u8, received: u64) -> Mark {
        Mark {
            node: "SHOP-01".parse().unwrap(),
            incarnation: Incarnation(2),
            install_id: InstallId([install; 16]),
            received: FileNo(received),
            applied: AppliedTo { file: FileNo(2), unit: TxnId(99), hash: ContentHash([3; 32]) },
            last_seen: 10,
        }
    }

    #[test]
    fn marks_sessions_and_alerts_survive_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions.db");
        let mark = mark(7, 5);
        let node = mark.node.clone();
        {
            let database = SessionsDb::open(&path).unwrap();
            let begin = Begin {
                node: node.clone(),
                peer: "x".into(),
                mode: "sync".into(),
                program: "p".into(),
                incarnation: Incarnation(2),
                now: 9,
            };
            let id = database.begin(&begin).unwrap();
            database.end(id, &End { outcome: "done", detail: String::new(), files_sent: 3, bytes_sent: 4, now: 11 }).unwrap();
            database.set_mark(&mark).unwrap();
            database.alert("SHOP-01", "fork", 1).unwrap();
            database.alert("SHOP-01", "fork", 2).unwrap();
        }
        let database = SessionsDb::open_to_read(&path).unwrap().unwrap();
        assert_eq!(database.mark(&node, Incarnation(2)).unwrap(), Some(mark.clone()));
        assert_eq!(database.mark(&node, Incarnation(1)).unwrap(), None);
        assert_eq!(database.marks().unwrap(), vec![mark]);
        let sessions = database.sessions(Some(&node), 10).unwrap();
        assert_eq!((sessions.len(), sessions[0].outcome.as_str(), sessions[0].files_sent, sessions[0].ended), (1, "done", 3, Some(11)));
        assert_eq!(database.alerts(None).unwrap().len(), 1);
    }

    #[test]
    fn threads_that_open_a_new_file_at_once_all_get_it() {
        for _ in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("sessions.db");
            let start = std::sync::Barrier::new(4);
            std::thread::scope(|threads| {
                for _ in 0..4 {
                    threads.spawn(|| {
                        start.wait();
                        SessionsDb::open(&path).unwrap().alert("SHOP-01", "fork", 1).unwrap();
                    });
                }
            });
            assert_eq!(SessionsDb::open(&path).unwrap().alerts(None).unwrap().len(), 1);
        }
    }

    #[test]
    fn the_first_local_database_keeps_an_extract() {
        let folder = tempfile::tempdir().unwrap();
        let database = SessionsDb::open(&folder.path().join("sessions.db")).unwrap();
        database.set_mark(&mark(1, 3)).unwrap();
        database.set_mark(&mark(2, 4)).unwrap();
        let kept = database.mark(&mark(1, 3).node, Incarnation(2)).unwrap().unwrap();
        assert_eq!((kept.install_id, kept.received), (InstallId([1; 16]), FileNo(4)));
    }

    #[test]
    fn a_copy_that_is_refused_does_not_hide_the_session_that_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let database = SessionsDb::open(&folder.path().join("sessions.db")).unwrap();
        let node: NodeName = "SHOP-01".parse().unwrap();
        let begin = |mode: &str| {
            let begin = Begin {
                node: node.clone(),
                peer: "p".into(),
                mode: mode.into(),
                program: "x".into(),
                incarnation: Incarnation(1),
                now: 10,
            };
            database.begin(&begin).unwrap()
        };
        let end = |id, outcome| database.end(id, &End { outcome, detail: String::new(), files_sent: 0, bytes_sent: 0, now: 11 }).unwrap();
        assert!(!database.is_watching(&node).unwrap());
        let watch = begin("watch");
        end(begin("sync"), "refused");
        assert!(database.is_watching(&node).unwrap());
        end(watch, "lost");
        assert!(!database.is_watching(&node).unwrap());
    }

    #[test]
    fn alerts_are_taken_back_node_by_node() {
        let folder = tempfile::tempdir().unwrap();
        let database = SessionsDb::open(&folder.path().join("sessions.db")).unwrap();
        database.alert("SHOP-01", "fork", 1).unwrap();
        assert_eq!(database.clear_alerts(&"SHOP-02".parse().unwrap()).unwrap(), 0);
        assert_eq!(database.clear_alerts(&"SHOP-01".parse().unwrap()).unwrap(), 1);
        assert_eq!(database.alerts(None).unwrap().len(), 0);
    }
}
