//! Writes units into the local database.
//!
//! Invariants:
//! - A transaction ends only at the end of a unit, and carries the watermark of that unit (I2).
//! - Names of the wire are looked up among the replicated tables of the local database and never become SQL; what is run is quoted
//!   from the local catalogue (T12).
//! - Every statement says OR ABORT: a conflict clause in the user's table may not delete or skip a row behind our back.

use super::local::{self, LocalDatabase, LocalError, LocalState, Watermark};
use super::local_rebase::Rebase;
use super::local_table::{LocalTable, TableProblem};
use super::sqlite::{SqlValue, value_of};
use crate::base::ids::{ContentHash, FileNo, TxnId};
use crate::model::event::TableHeading;
use crate::model::operation::Operation;
use crate::model::value::{Row, RowKey, Value, display_key};
use rusqlite::{CachedStatement, Connection, ErrorCode};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::Path;

/// Why a unit could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// The local database failed; nothing is known to be wrong with the unit.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// A table of the file is not what the local database has.
    #[error(transparent)]
    Table(#[from] TableProblem),
    /// A row to change is not there.
    #[error("table {table}, key {key}: the row to change is not in the local database")]
    MissingRow {
        /// The table.
        table: String,
        /// The key, as SQL literals.
        key: String,
    },
    /// A row does not fit into its table.
    #[error("table {table}, key {key}: the row does not fit: {reason}")]
    Constraint {
        /// The table.
        table: String,
        /// The key, as SQL literals.
        key: String,
        /// SQLite's reason, which names the constraint.
        reason: String,
    },
    /// A row that only this node has does not fit the new shape of its table.
    #[error("table {table}, key {key}: the row, which was written on this node, does not fit the table's new shape: {reason}")]
    OwnRow {
        /// The table.
        table: String,
        /// The key, as SQL literals.
        key: String,
        /// SQLite's reason, which names the constraint.
        reason: String,
    },
    /// A table, index or view cannot become what the server says.
    #[error("`{}` cannot be changed as the server says: {reason}", .object.escape_debug())]
    Shape {
        /// Its name.
        object: String,
        /// Why.
        reason: String,
    },
    /// An operation contradicts its own heading.
    #[error("table {table}: {reason}")]
    Malformed {
        /// The table.
        table: String,
        /// What is wrong.
        reason: String,
    },
}

/// One operation with the table that it is on.
pub type TableOperation<'a> = (&'a TableHeading, &'a Operation);

/// What the statements for each heading look like; belongs to one version of the local schema.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    schema_version: Option<i64>,
    /// Whether the capture of local changes is known to be whole at this version.
    pub(super) captured: bool,
    tables: HashMap<TableHeading, LocalTable>,
}

/// An open write transaction that units are applied in. Dropped without [`ApplyTransaction::commit`] it is rolled back.
#[derive(Debug)]
pub struct ApplyTransaction<'d> {
    connection: &'d Connection,
    path: &'d Path,
    catalogue: &'d RefCell<Catalogue>,
    state: LocalState,
    unit_bytes_max: u64,
    /// Whether anything was written in it.
    begun: Cell<bool>,
    finished: bool,
    /// What is pending here.
    pub(super) rebase: Rebase,
}

impl LocalDatabase {
    /// Takes the write lock, and cuts: whoever applies units has all local changes as units before, since rows may be set to what the server
    /// has. Waits for other programs, but not for ever: [`LocalError::Busy`].
    ///
    /// # Errors
    /// As [`LocalDatabase::cut`].
    pub fn begin(&self) -> Result<ApplyTransaction<'_>, LocalError> {
        let transaction = self.begin_uncut()?;
        transaction.cut()?;
        Ok(transaction)
    }

    /// Takes the write lock. Nothing may be applied before [`ApplyTransaction::cut`].
    pub(super) fn begin_uncut(&self) -> Result<ApplyTransaction<'_>, LocalError> {
        let (connection, path) = (self.connection(), self.path());
        connection.execute_batch("BEGIN IMMEDIATE").map_err(|source| LocalError::of_sql(path, "take the write lock", source))?;
        let state = match local::read_state(connection, path) {
            Ok(state) => state,
            Err(error) => {
                roll_back(connection);
                return Err(error);
            }
        };
        // From here on a drop rolls back.
        let (catalogue, unit_bytes_max) = (self.catalogue(), self.unit_bytes_max());
        let (begun, rebase) = (Cell::new(false), Rebase::default());
        let transaction = ApplyTransaction { connection, path, catalogue, state, unit_bytes_max, begun, finished: false, rebase };
        let version = transaction.schema_version()?;
        let mut catalogue = transaction.catalogue.borrow_mut();
        if catalogue.schema_version != Some(version) {
            *catalogue = Catalogue { schema_version: Some(version), ..Catalogue::default() };
        }
        drop(catalogue);
        transaction.begin_rebase()?;
        // So far it was only looked at.
        transaction.begun.set(false);
        Ok(transaction)
    }
}

impl LocalDatabase {
    /// Returns whether there is nothing to cut.
    pub(super) fn is_cut(&self) -> Result<bool, LocalError> {
        is_cut(self.connection(), self.path(), &self.catalogue().borrow())
    }
}

fn is_cut(connection: &Connection, path: &Path, catalogue: &Catalogue) -> Result<bool, LocalError> {
    let sql = |source| LocalError::of_sql(path, "look for local changes", source);
    let version: i64 = connection.query_row("PRAGMA schema_version", [], |row| row.get(0)).map_err(sql)?;
    if !catalogue.captured || catalogue.schema_version != Some(version) {
        return Ok(false);
    }
    let changed: bool = connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM main.dock_txn_log)")
        .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
        .map_err(sql)?;
    Ok(!changed)
}

fn roll_back(connection: &Connection) {
    if let Err(error) = connection.execute_batch("ROLLBACK") {
        // SQLite has rolled back by itself after some errors; then there is nothing to do.
        tracing::debug!(%error, "no transaction to roll back");
    }
}

impl Drop for ApplyTransaction<'_> {
    fn drop(&mut self) {
        if !self.finished {
            roll_back(self.connection);
        }
    }
}

impl<'d> ApplyTransaction<'d> {
    /// Returns the connection, for the statements of `store`: the unit that follows is no longer alone in the transaction.
    pub(super) fn connection(&self) -> &'d Connection {
        self.begun.set(true);
        self.connection
    }

    /// Returns where the database is.
    pub(super) fn path(&self) -> &Path {
        self.path
    }

    /// Returns how many bytes a unit may have.
    pub(super) fn unit_bytes_max(&self) -> u64 {
        self.unit_bytes_max
    }

    /// Returns the state at the beginning of the transaction: another process may have applied meanwhile.
    pub fn state(&self) -> &LocalState {
        &self.state
    }

    /// Remembers under which content hash a file was applied to its end.
    pub fn store_file_hash(&self, file: FileNo, hash: ContentHash) -> Result<(), LocalError> {
        self.begun.set(true);
        local::store_file_hash(self.connection, file, hash).map_err(|source| self.sql("store the file's hash", source))
    }

    /// Stores the watermark and commits. The caller is at the end of a unit.
    pub fn commit(mut self, watermark: &Watermark) -> Result<(), LocalError> {
        self.finish_rebase()?;
        local::store_watermark(self.connection, watermark).map_err(|source| self.sql("store the watermark", source))?;
        self.connection.execute_batch("COMMIT").map_err(|source| self.sql("commit", source))?;
        self.finished = true;
        Ok(())
    }

    /// Commits what a cut has written, and nothing else.
    pub(super) fn commit_cut(mut self) -> Result<(), LocalError> {
        self.connection.execute_batch("COMMIT").map_err(|source| self.sql("commit local changes as units", source))?;
        self.finished = true;
        Ok(())
    }

    /// Returns whether there is nothing to cut.
    pub(super) fn is_cut(&self) -> Result<bool, LocalError> {
        is_cut(self.connection, self.path, &self.catalogue.borrow())
    }

    /// Remembers that the capture is whole.
    pub(super) fn note_captured(&self) -> Result<(), LocalError> {
        let version = self.schema_version()?;
        let mut catalogue = self.catalogue.borrow_mut();
        if catalogue.schema_version != Some(version) {
            *catalogue = Catalogue { schema_version: Some(version), ..Catalogue::default() };
        }
        catalogue.captured = true;
        Ok(())
    }

    /// Applies all operations of one unit, or nothing of it. A unit names a row once at most, so its operations have no order:
    /// deletes go first, then updates, then puts. Where that hits a unique key halfway, the unit is redone as: delete
    /// every row that it touches, insert every final image (R37).
    pub fn apply_unit(&self, unit: TxnId, operations: &[TableOperation<'_>]) -> Result<(), UnitError> {
        let mut catalogue = self.catalogue.borrow_mut();
        // A unit mostly stays with one table, so the last answer mostly serves again: comparing addresses is cheaper than hashing names.
        let mut last: Option<&TableHeading> = None;
        for (heading, _) in operations {
            if !last.is_some_and(|known| std::ptr::eq(known, *heading)) && !catalogue.tables.contains_key(*heading) {
                let table = LocalTable::look_up(self.connection, self.path, heading)?;
                catalogue.tables.insert((*heading).clone(), table);
            }
            last = Some(heading);
        }
        let mut work = Vec::with_capacity(operations.len());
        let mut last: Option<(&TableHeading, &LocalTable)> = None;
        for (heading, operation) in operations {
            let table = match last {
                Some((known, table)) if std::ptr::eq(known, *heading) => table,
                _ => match catalogue.tables.get(*heading) {
                    Some(table) => table,
                    None => {
                        let reason = "its heading was not looked up".to_owned();
                        return Err(UnitError::Malformed { table: heading.name.clone(), reason });
                    }
                },
            };
            last = Some((heading, table));
            table.check(operation).map_err(|reason| UnitError::Malformed { table: table.name.clone(), reason })?;
            work.push((table, *operation));
        }
        if self.rebase.is_pending() {
            return self.rebase_unit(unit, &work);
        }
        let writer = UnitWriter { connection: self.connection, path: self.path };
        if self.begun.replace(true) {
            return writer.beside_others(unit, &work);
        }
        let again = || self.begin_again(&catalogue);
        let result = match writer.in_place(&work) {
            Err(UnitError::Constraint { table, key, reason }) => {
                tracing::debug!(unit = unit.0, table, key, reason, "unit is redone as deletes and inserts");
                again()?;
                writer.by_final_images(&work)
            }
            result => result,
        };
        match result {
            Err(error) if !matches!(error, UnitError::Local(_)) => {
                again()?;
                self.begun.set(false);
                Err(error)
            }
            result => result,
        }
    }

    /// Undoes everything. The lock is given up for a moment: if somebody used it, the caller's view is old and nothing was done. A
    /// program may have used it too: what it wrote is to be cut before anything is applied (I5).
    fn begin_again(&self, catalogue: &Catalogue) -> Result<(), LocalError> {
        self.connection.execute_batch("ROLLBACK; BEGIN IMMEDIATE").map_err(|source| self.sql("begin the unit again", source))?;
        let is_old =
            local::read_state(self.connection, self.path)? != self.state || Some(self.schema_version()?) != catalogue.schema_version;
        if is_old || !is_cut(self.connection, self.path, catalogue)? {
            return Err(LocalError::Busy { path: self.path.to_owned() });
        }
        Ok(())
    }

    fn schema_version(&self) -> Result<i64, LocalError> {
        self.connection
            .query_row("PRAGMA schema_version", [], |row| row.get(0))
            .map_err(|source| self.sql("read the schema version", source))
    }

    pub(super) fn sql_error(&self, doing: &'static str, source: rusqlite::Error) -> LocalError {
        self.sql(doing, source)
    }

    /// Forgets what is known of the tables: their shape has changed.
    pub(super) fn forget_tables(&self) {
        *self.catalogue.borrow_mut() = Catalogue::default();
        self.rebase.forget();
    }

    fn sql(&self, doing: &'static str, source: rusqlite::Error) -> LocalError {
        LocalError::of_sql(self.path, doing, source)
    }
}

/// An operation with the table that it is on.
pub(super) type Work<'a> = (&'a LocalTable, &'a Operation);

/// The statement that ran last: operations of one kind on one table mostly follow each other.
struct Current<'c, 'w> {
    table: &'w LocalTable,
    columns: Vec<usize>,
    statement: CachedStatement<'c>,
}

/// Writes operations as if nothing were pending.
pub(super) struct UnitWriter<'c> {
    pub(super) connection: &'c Connection,
    pub(super) path: &'c Path,
}

impl<'c> UnitWriter<'c> {
    fn savepoint(&self, sql: &'static str) -> Result<(), LocalError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute([]))
            .map_err(|source| LocalError::of_sql(self.path, "mark the unit's begin or end", source))?;
        Ok(())
    }

    /// Applies a unit in a transaction that holds others already, so that it alone can be undone.
    pub(super) fn beside_others(&self, unit: TxnId, work: &[Work<'_>]) -> Result<(), UnitError> {
        self.savepoint("SAVEPOINT dock_unit")?;
        let result = match self.in_place(work) {
            Err(UnitError::Constraint { table, key, reason }) => {
                tracing::debug!(unit = unit.0, table, key, reason, "unit is redone as deletes and inserts");
                self.savepoint("ROLLBACK TO dock_unit")?;
                self.by_final_images(work)
            }
            result => result,
        };
        match result {
            Ok(()) => Ok(self.savepoint("RELEASE dock_unit")?),
            // The whole transaction is lost, perhaps rolled back by SQLite already; nothing is left to undo here.
            Err(UnitError::Local(error)) => Err(error.into()),
            Err(error) => {
                self.savepoint("ROLLBACK TO dock_unit")?;
                self.savepoint("RELEASE dock_unit")?;
                Err(error)
            }
        }
    }

    /// The usual way.
    fn in_place(&self, work: &[Work<'_>]) -> Result<(), UnitError> {
        let mut current = None;
        for (table, operation) in work {
            if let Operation::Delete { key } = operation {
                let statement = self.statement(&mut current, table, &[], || table.delete_sql.clone())?;
                self.run(statement, table, key, || key.clone())?;
            }
        }
        current = None;
        for (table, operation) in work {
            if let Operation::Update { key, changes } = operation {
                let written = table.written_changes(changes);
                let columns = || written.iter().map(|(column, _)| *column).collect::<Vec<_>>();
                let statement = self.statement(&mut current, table, &written, || table.update_sql(&columns()))?;
                if self.run(statement, table, written.iter().map(|(_, value)| *value).chain(key), || key.clone())? == 0 {
                    return Err(missing(table, key));
                }
            }
        }
        current = None;
        for (table, operation) in work {
            if let Operation::Put { row } = operation {
                let statement = self.statement(&mut current, table, &[], || table.put_sql.clone())?;
                self.run(statement, table, table.written_values(row), || table.key_of(row))?;
            }
        }
        Ok(())
    }

    /// Returns the statement of one kind for a table and the columns that it writes: that of the operation before, if it can serve again.
    fn statement<'s, 'w>(
        &self,
        current: &'s mut Option<Current<'c, 'w>>,
        table: &'w LocalTable,
        written: &[(usize, &Value)],
        sql: impl FnOnce() -> String,
    ) -> Result<&'s mut CachedStatement<'c>, UnitError> {
        let columns = || written.iter().map(|(column, _)| *column);
        let serves = |known: &Current<'_, '_>| std::ptr::eq(known.table, table) && known.columns.iter().copied().eq(columns());
        if !current.as_ref().is_some_and(serves) {
            let prepared = self.connection.prepare_cached(&sql());
            let statement = prepared.map_err(|source| LocalError::of_sql(self.path, "prepare to write rows", source))?;
            *current = Some(Current { table, columns: columns().collect(), statement });
        }
        match current {
            Some(current) => Ok(&mut current.statement),
            None => Err(UnitError::Malformed { table: table.name.clone(), reason: "no statement was prepared".to_owned() }),
        }
    }

    /// The way that no unique key can block: in between, none of the touched rows exists.
    fn by_final_images(&self, work: &[Work<'_>]) -> Result<(), UnitError> {
        for (table, operation) in work {
            if let Operation::Delete { key } = operation {
                self.delete(table, key)?;
            }
        }
        let mut images = Vec::new();
        for (table, operation) in work {
            let (key, old, changes) = match operation {
                Operation::Delete { .. } => continue,
                Operation::Update { key, changes } => {
                    let old = self.read(table, key)?.ok_or_else(|| missing(table, key))?;
                    (key.clone(), Some(old), table.written_changes(changes))
                }
                Operation::Put { row } => {
                    let key = table.key_of(row);
                    let old = self.read(table, &key)?;
                    (key, old, table.written_row(row))
                }
            };
            images.push((*table, key, table.image(old, &changes)));
        }
        for (table, key, _) in &images {
            self.delete(table, key)?;
        }
        for (table, key, image) in &images {
            let columns: Vec<&str> = image.iter().map(|(name, _)| *name).collect();
            let mut current = None;
            let statement = self.statement(&mut current, table, &[], || table.insert_sql(&columns))?;
            self.run(statement, table, image.iter().map(|(_, value)| value), || key.clone())?;
        }
        Ok(())
    }

    fn delete(&self, table: &LocalTable, key: &[Value]) -> Result<(), UnitError> {
        let mut current = None;
        let statement = self.statement(&mut current, table, &[], || table.delete_sql.clone())?;
        self.run(statement, table, key, || key.to_vec())?;
        Ok(())
    }

    fn read(&self, table: &LocalTable, key: &[Value]) -> Result<Option<Row>, UnitError> {
        let sql = |source| LocalError::of_sql(self.path, "read a row", source);
        let mut statement = self.connection.prepare_cached(&table.select_sql).map_err(sql)?;
        bind(&mut statement, key).map_err(sql)?;
        let mut rows = statement.raw_query();
        let Some(row) = rows.next().map_err(sql)? else { return Ok(None) };
        let values = (0..table.stored.len()).map(|index| row.get_ref(index).map(value_of)).collect::<Result<Row, _>>().map_err(sql)?;
        Ok(Some(values))
    }

    /// Runs a statement for one row; `key` is asked for if it fails. Returns how many rows it changed.
    fn run<'v>(
        &self,
        statement: &mut CachedStatement<'c>,
        table: &LocalTable,
        values: impl IntoIterator<Item = &'v Value>,
        key: impl FnOnce() -> RowKey,
    ) -> Result<usize, UnitError> {
        let ran = bind(statement, values).and_then(|()| statement.raw_execute());
        ran.map_err(|source| match source.sqlite_error_code() {
            Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch) => {
                UnitError::Constraint { table: table.name.clone(), key: display_key(&key()), reason: source.to_string() }
            }
            _ => LocalError::of_sql(self.path, "write a row", source).into(),
        })
    }
}

fn bind<'v>(statement: &mut CachedStatement<'_>, values: impl IntoIterator<Item = &'v Value>) -> rusqlite::Result<()> {
    for (index, value) in values.into_iter().enumerate() {
        statement.raw_bind_parameter(index + 1, SqlValue(value))?;
    }
    Ok(())
}

fn missing(table: &LocalTable, key: &[Value]) -> UnitError {
    UnitError::MissingRow { table: table.name.clone(), key: display_key(key) }
}
