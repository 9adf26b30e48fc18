//! Opening SQLite databases, and the one way in which values and names pass between SQL and the model.
//!
//! Values are byte-exact in both directions: text is bytes, a real keeps its bits, nothing is converted on the way. Everything of
//! ours on the server database goes through [`ServerDatabase`], whose connection commits with `synchronous=FULL`: I7 rests on it.

use crate::base::defect;
use crate::base::ids::{NodeName, Nonce, TxnId};
use crate::model::schema::Schema;
use crate::model::value::Value;
use crate::store::log::Catalogue;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a statement of ours waits for another program's lock.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// A value as a statement parameter, byte-exact.
#[derive(Debug, Clone, Copy)]
pub struct SqlValue<'a>(pub &'a Value);

impl ToSql for SqlValue<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Null => ValueRef::Null,
            Value::Integer(integer) => ValueRef::Integer(*integer),
            Value::Real(real) => ValueRef::Real(*real),
            Value::Text(bytes) => ValueRef::Text(bytes),
            Value::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// Returns the value that a statement gave, byte-exact.
pub fn value_of(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(integer) => Value::Integer(integer),
        ValueRef::Real(real) => Value::Real(real),
        ValueRef::Text(bytes) => Value::Text(bytes.to_vec()),
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
    }
}

/// Returns an SQL identifier in quotes: `a"b` becomes `"a""b"`.
pub fn quote_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Returns an SQL text literal in quotes.
pub fn quote_text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// What can go wrong on the server database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A statement failed.
    #[error("{}: {action}: {source}", path.display())]
    Sql {
        /// The database.
        path: PathBuf,
        /// What was being done.
        action: String,
        /// SQLite's answer.
        source: rusqlite::Error,
    },
    /// The database stores text as UTF-16.
    #[error("{}: its text encoding is {encoding}; only UTF-8 databases can be replicated byte by byte", path.display())]
    Encoding {
        /// The database.
        path: PathBuf,
        /// What `PRAGMA encoding` says.
        encoding: String,
    },
    /// WAL mode is needed and could not be switched on.
    #[error("{}: journal mode is `{mode}` and WAL could not be switched on", path.display())]
    Journal {
        /// The database.
        path: PathBuf,
        /// The mode that it stays in.
        mode: String,
    },
    /// No definition was ever deployed here.
    #[error("{}: no definition is deployed in this database", path.display())]
    NotInstalled {
        /// The database.
        path: PathBuf,
    },
    /// This is not the database that was read last (R13, R14): it was restored, or another file was put in its place.
    #[error("{}: this is not the database that was read last: it was read under mark {known}, its own marks are {} and {}", path.display(), mark(found), mark(previous))]
    NotTheSameDatabase {
        /// The database.
        path: PathBuf,
        /// The mark that the reader remembers.
        known: Nonce,
        /// The mark in `dock_tail`.
        found: Option<Nonce>,
        /// The mark before that one.
        previous: Option<Nonce>,
    },
    /// The log ends before the position that was already read: its ids would be given again.
    #[error("{}: the log ends at {end}, but was read up to {known} already: it was truncated or reset", path.display())]
    LogReset {
        /// The database.
        path: PathBuf,
        /// Position read already.
        known: TxnId,
        /// Where the log ends now.
        end: TxnId,
    },
    /// Log rows above the reader's position are gone.
    #[error("{}: log rows are missing between {after} and {upto}: {found} are there", path.display())]
    LogGap {
        /// The database.
        path: PathBuf,
        /// Position read already.
        after: TxnId,
        /// End of the log.
        upto: TxnId,
        /// How many rows are there.
        found: i64,
    },
    /// A row of a large unit cannot be carried: its table is marked as stopped, and the unit is to be read again without it.
    #[error("table {table} stops: {reason}")]
    TableStops {
        /// The table.
        table: String,
        /// Why.
        reason: String,
    },
    /// A table cannot be captured.
    #[error("table {table}: {reason}")]
    Table {
        /// The table.
        table: String,
        /// Why.
        reason: String,
    },
    /// A name that begins with `dock_` is not ours.
    #[error("{}: `{name}` is not Dockmaster's, but names that begin with `dock_` are reserved for it", path.display())]
    Reserved {
        /// The database.
        path: PathBuf,
        /// The object.
        name: String,
    },
    /// One of our own rows cannot be read.
    #[error("{}: {what} is damaged: {reason}", path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// Which row.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No such node.
    #[error("node {name} is unknown")]
    UnknownNode {
        /// Its name.
        name: NodeName,
    },
    /// The operating system gave no random bytes.
    #[error("no random bytes from the operating system: {0}")]
    Random(getrandom::Error),
}

fn mark(nonce: &Option<Nonce>) -> String {
    nonce.map_or_else(|| "none".to_owned(), |nonce| nonce.to_string())
}

impl StoreError {
    /// Returns whether another program held a lock for longer than [`BUSY_TIMEOUT`]; trying again later may succeed.
    pub fn is_busy(&self) -> bool {
        let StoreError::Sql { source: rusqlite::Error::SqliteFailure(failure, _), .. } = self else { return false };
        matches!(failure.code, rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
    }
}

/// The server database, with the pragmas that our side of it relies on. One per thread.
#[derive(Debug)]
pub struct ServerDatabase {
    pub(crate) connection: Connection,
    pub(crate) path: PathBuf,
    /// What the last look at the catalogue and the schema said.
    pub(crate) catalogue: RefCell<Option<Arc<Catalogue>>>,
}

impl ServerDatabase {
    /// Opens an existing database. Nothing in it is changed.
    ///
    /// # Errors
    /// The file is missing, is no database, or is not UTF-8.
    pub fn open(path: impl AsRef<Path>) -> Result<ServerDatabase, StoreError> {
        let path = path.as_ref().to_owned();
        let connection = open_connection(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        Ok(ServerDatabase { connection, path, catalogue: RefCell::new(None) })
    }

    /// Returns where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the shape of its tables.
    ///
    /// # Errors
    /// A statement failed.
    pub fn schema(&self) -> Result<Schema, StoreError> {
        crate::store::schema::read_schema(&self.connection).map_err(self.fault("reading the schema"))
    }

    /// Returns the number that SQLite raises at every change of the schema.
    ///
    /// # Errors
    /// A statement failed.
    pub fn schema_version(&self) -> Result<i64, StoreError> {
        self.connection.query_row("PRAGMA main.schema_version", [], |row| row.get(0)).map_err(self.fault("reading the schema version"))
    }

    /// Returns whether the journal mode is WAL.
    ///
    /// # Errors
    /// A statement failed.
    pub fn is_wal(&self) -> Result<bool, StoreError> {
        self.connection
            .query_row("PRAGMA main.journal_mode", [], |row| row.get::<_, String>(0))
            .map(|mode| mode.eq_ignore_ascii_case("wal"))
            .map_err(self.fault("reading the journal mode"))
    }

    /// Returns a function that says what was being done when a statement failed. Free as long as none fails: it is made for every
    /// value that is read.
    pub(crate) fn fault<'a>(&'a self, action: &'a str) -> impl FnOnce(rusqlite::Error) -> StoreError + use<'a> {
        move |source| StoreError::Sql { path: self.path.clone(), action: action.to_owned(), source }
    }

    /// Begins a writing transaction; it is rolled back when dropped.
    pub(crate) fn begin_write(&self, action: &str) -> Result<Transaction<'_>, StoreError> {
        Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate).map_err(self.fault(action))
    }
}

/// Opens a connection with our pragmas: waits for locks, commits durably, refuses any encoding but UTF-8.
///
/// # Errors
/// The file cannot be opened, is no database, or is not UTF-8.
pub fn open_connection(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let fault = |action: &str| {
        let (path, action) = (path.to_owned(), action.to_owned());
        move |source| StoreError::Sql { path, action, source }
    };
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(fault("opening the database"))?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(fault("setting the busy timeout"))?;
    connection.set_prepared_statement_cache_capacity(256);
    connection.pragma_update(None, "synchronous", defect::synchronous()).map_err(fault("setting the synchronous mode"))?;
    let encoding: String = connection.query_row("PRAGMA encoding", [], |row| row.get(0)).map_err(fault("reading the text encoding"))?;
    if encoding != "UTF-8" {
        return Err(StoreError::Encoding { path: path.to_owned(), encoding });
    }
    // Reads the first page, so that a file that is no database is found here and not in mid-work.
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(fault("reading the database"))?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b1_values_pass_both_ways_byte_exact() {
        let connection = Connection::open_in_memory().unwrap();
        for value in [
            Value::Null,
            Value::Integer(i64::MIN),
            Value::Real(-0.0),
            Value::Real(f64::INFINITY),
            Value::Text(vec![0xff, 0, b'a']),
            Value::Text(vec![]),
            Value::Blob(vec![]),
            Value::Blob(vec![0]),
        ] {
            let back = connection.query_row("SELECT ?1", [SqlValue(&value)], |row| Ok(value_of(row.get_ref(0)?))).unwrap();
            assert_eq!(back, value);
            assert_eq!(back.type_name(), value.type_name());
        }
    }

    #[test]
    fn r13_every_commit_of_ours_is_a_full_sync_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE t(a)").unwrap();
        let database = ServerDatabase::open(&path).unwrap();
        let mode: i64 = database.connection.query_row("PRAGMA synchronous", [], |row| row.get(0)).unwrap();
        assert_eq!(mode, 2, "FULL");
    }

    #[test]
    fn a_server_database_may_move_to_another_thread() {
        fn moves<T: Send>() {}
        moves::<ServerDatabase>();
    }

    #[test]
    fn b5_names_are_quoted() {
        assert_eq!(quote_name("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_text("it's"), "'it''s'");
    }

    #[test]
    fn a_utf16_database_and_a_file_that_is_none_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wide.db");
        let wide = Connection::open(&path).unwrap();
        wide.execute_batch("PRAGMA encoding='UTF-16'; CREATE TABLE t(a);").unwrap();
        drop(wide);
        let message = ServerDatabase::open(&path).unwrap_err().to_string();
        assert!(message.contains("wide.db") && message.contains("UTF-16"), "{message}");
        std::fs::write(&path, vec![b'x'; 5000]).unwrap();
        assert!(ServerDatabase::open(&path).unwrap_err().to_string().contains("not a database"));
        assert!(ServerDatabase::open(folder.path().join("none.db")).is_err());
    }
}
