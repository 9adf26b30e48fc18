//! A unit too large to be applied at once is staged: its rows are written to a database beside the local one, where they hold nobody
//! up, and come from there into the tables in one transaction, by few statements for all rows (R23).
//!
//! Invariants:
//! - Staging takes no lock on the local database. A stage that a crash leaves is thrown away and made anew: nothing was applied.
//! - The transaction that applies a stage carries the unit's watermark like any other (I2).
//! - The result is that of [`ApplyTransaction::apply_unit`]: deletes, then updates, then puts; where that hits a unique key halfway, every
//!   row that the unit touches goes and every final image comes (R37).

use super::local::{LocalDatabase, LocalError};
use super::local_apply::{ApplyTransaction, UnitError};
use super::local_table::{LocalTable, TableProblem};
use super::sqlite::{SqlValue, value_of};
use crate::base::disk::Disk;
use crate::base::ids::TxnId;
use crate::base::limits::STAGE_COMMIT_ROWS;
use crate::base::lock::{Hold, Lock, Taken};
use crate::model::event::TableHeading;
use crate::model::operation::Operation;
use crate::model::value::{Value, display_key};
use rusqlite::{Connection, ErrorCode, params_from_iter};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is done with a staged row.
const DELETE: i64 = 0;
const UPDATE: i64 = 1;
const PUT: i64 = 2;

/// The staged rows of one heading.
#[derive(Debug)]
struct StagedTable {
    heading: Arc<TableHeading>,
    /// Sets of changed columns that updates have.
    shapes: Vec<Vec<u16>>,
    shape_numbers: HashMap<Vec<u16>, usize>,
}

/// A unit on its way into the tables. It must outlive the transaction that applies it.
#[derive(Debug)]
pub struct Stage<'d> {
    connection: &'d Connection,
    database: &'d Path,
    file: PathBuf,
    tables: Vec<StagedTable>,
    by_heading: HashMap<Arc<TableHeading>, usize>,
    rows: u64,
    /// Whether rows wait for their commit.
    is_open: bool,
    _lock: Lock,
}

impl LocalDatabase {
    /// Makes an empty stage in a `tmp` folder of this database.
    ///
    /// # Errors
    /// [`LocalError::Busy`] if another process of ours stages there; otherwise the disk, or SQLite.
    pub fn stage(&self, folder: &Path) -> Result<Stage<'_>, LocalError> {
        let (connection, database) = (self.connection(), self.path());
        let disk = Disk::new();
        let lock = match Lock::take(&disk, &folder.join("stage.lock"), Hold::Exclusive) {
            Ok(Taken::Held(lock)) => lock,
            Ok(Taken::Busy(_)) => return Err(LocalError::Busy { path: database.to_owned() }),
            Err(error) => return Err(error.into()),
        };
        let file = folder.join("stage.db");
        disk.remove(&file)?;
        // The connection may open files, not make them.
        disk.create(&file)?;
        let sql = |source| LocalError::of_sql(database, "make a stage", source);
        connection.execute("ATTACH ?1 AS dock_stage", [file.to_string_lossy()]).map_err(sql)?;
        let stage =
            Stage { connection, database, file, tables: Vec::new(), by_heading: HashMap::new(), rows: 0, is_open: false, _lock: lock };
        // Of no use after a crash, so nothing is flushed. Statements may still be taken back.
        connection.execute_batch("PRAGMA dock_stage.journal_mode = MEMORY; PRAGMA dock_stage.synchronous = OFF").map_err(sql)?;
        Ok(stage)
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        // Statements on the stage are kept prepared and would keep it attached.
        self.connection.flush_prepared_statement_cache();
        if self.is_open
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::debug!(%error, "no staging to take back");
        }
        let detached = self.connection.execute_batch("DETACH dock_stage").map_err(|error| error.to_string());
        let removed = detached.and_then(|()| Disk::new().remove(&self.file).map_err(|error| error.to_string()));
        if let Err(error) = removed {
            tracing::warn!(path = %self.file.display(), error, "a stage stays until the next one");
        }
    }
}

impl Stage<'_> {
    /// Returns how many operations are staged.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Adds an operation of the unit. Small commits; none of them touches the local database.
    ///
    /// # Errors
    /// The operation does not fit its heading, or SQLite refused.
    pub fn add(&mut self, heading: &Arc<TableHeading>, operation: &Operation) -> Result<(), UnitError> {
        if self.rows.is_multiple_of(STAGE_COMMIT_ROWS) {
            self.flush()?;
            self.connection.execute_batch("BEGIN").map_err(self.sql())?;
            self.is_open = true;
        }
        let number = self.table(heading)?;
        let malformed = |reason: &str| UnitError::Malformed { table: heading.name.clone(), reason: reason.to_owned() };
        let table = self.tables.get_mut(number).ok_or_else(|| malformed("its heading is not staged"))?;
        let (keys, width) = (heading.key.len(), heading.columns.len());
        // Key first, as the row is to be found by; then the columns that are written.
        let mut row: Vec<&Value> = vec![&Value::Null; keys + width];
        let mut put = |place: usize, value| {
            if let Some(held) = row.get_mut(place) {
                *held = value;
            }
        };
        let (op, shape) = match operation {
            Operation::Delete { key } => {
                key.iter().enumerate().for_each(|(place, value)| put(place, value));
                (DELETE, 0)
            }
            Operation::Put { row } => {
                let key = heading.key.iter().map(|column| row.get(usize::from(*column)).unwrap_or(&Value::Null));
                key.chain(row).enumerate().for_each(|(place, value)| put(place, value));
                (PUT, 0)
            }
            Operation::Update { key, changes } => {
                key.iter().enumerate().for_each(|(place, value)| put(place, value));
                changes.iter().for_each(|(column, value)| put(keys + usize::from(*column), value));
                let columns: Vec<u16> = changes.iter().map(|(column, _)| *column).collect();
                let next = table.shapes.len();
                let shape = *table.shape_numbers.entry(columns.clone()).or_insert(next);
                if shape == next {
                    table.shapes.push(columns);
                }
                (UPDATE, i64::try_from(shape).map_err(|_| malformed("too many sets of changed columns"))?)
            }
        };
        let marks = vec!["?"; row.len() + 2].join(", ");
        let insert = format!("INSERT INTO dock_stage.s{number} VALUES ({marks})");
        let mut statement = self.connection.prepare_cached(&insert).map_err(self.sql())?;
        let head = [Value::Integer(op), Value::Integer(shape)];
        statement.execute(params_from_iter(head.iter().chain(row).map(SqlValue))).map_err(self.sql())?;
        self.rows += 1;
        Ok(())
    }

    /// Ends the staging.
    ///
    /// # Errors
    /// SQLite refused.
    pub fn flush(&mut self) -> Result<(), LocalError> {
        if std::mem::take(&mut self.is_open) {
            self.connection.execute_batch("COMMIT").map_err(self.sql())?;
        }
        Ok(())
    }

    fn table(&mut self, heading: &Arc<TableHeading>) -> Result<usize, LocalError> {
        if let Some(number) = self.by_heading.get(heading) {
            return Ok(*number);
        }
        let number = self.tables.len();
        // Without types: each value stays what it is.
        let keys = (0..heading.key.len()).map(|place| format!("k{place}"));
        let columns: Vec<String> = keys.chain((0..heading.columns.len()).map(|column| format!("c{column}"))).collect();
        let table = format!(
            "CREATE TABLE dock_stage.s{number}(op INTEGER, shape INTEGER, {}); CREATE INDEX dock_stage.o{number} ON s{number}(op, shape)",
            columns.join(", ")
        );
        self.connection.execute_batch(&table).map_err(self.sql())?;
        self.by_heading.insert(Arc::clone(heading), number);
        self.tables.push(StagedTable { heading: Arc::clone(heading), shapes: Vec::new(), shape_numbers: HashMap::new() });
        Ok(number)
    }

    fn sql(&self) -> impl Fn(rusqlite::Error) -> LocalError + use<> {
        let path = self.database.to_owned();
        move |source| LocalError::of_sql(&path, "stage a unit", source)
    }
}

/// A staged table with the local one that it goes into.
struct Target<'s> {
    number: usize,
    staged: &'s StagedTable,
    table: LocalTable,
}

impl ApplyTransaction<'_> {
    /// Applies a staged unit, or nothing of it.
    ///
    /// # Errors
    /// As [`ApplyTransaction::apply_unit`].
    pub fn apply_stage(&self, unit: TxnId, stage: &Stage<'_>) -> Result<(), UnitError> {
        let mut targets = Vec::with_capacity(stage.tables.len());
        for (number, staged) in stage.tables.iter().enumerate() {
            let table = self.look_up(&staged.heading)?;
            targets.push(Target { number, staged, table });
        }
        self.begin_staged(targets.iter().map(|target| target.table.name.as_str()))?;
        let writer = StageWriter { connection: stage.connection, path: stage.database, targets };
        writer.run("SAVEPOINT dock_unit")?;
        let result = match writer.in_place() {
            Err(UnitError::Constraint { table, reason, .. }) => {
                tracing::debug!(unit = unit.0, table, reason, "unit is redone as deletes and inserts");
                writer.run("ROLLBACK TO dock_unit")?;
                writer.by_final_images()
            }
            result => result,
        };
        match result {
            Ok(()) => {
                writer.run("RELEASE dock_unit")?;
                Ok(self.end_staged(writer.targets.iter().map(|target| target.table.name.as_str()))?)
            }
            Err(UnitError::Local(error)) => Err(error.into()),
            Err(error) => {
                writer.run("ROLLBACK TO dock_unit")?;
                writer.run("RELEASE dock_unit")?;
                Err(error)
            }
        }
    }
}

struct StageWriter<'s> {
    connection: &'s Connection,
    path: &'s Path,
    targets: Vec<Target<'s>>,
}

impl Target<'_> {
    /// The key as the stage has it: `s.k0, s.k1`.
    fn staged_key(&self) -> String {
        (0..self.staged.heading.key.len()).map(|place| format!("s.k{place}")).collect::<Vec<_>>().join(", ")
    }

    /// `t.id = s.k0 AND ..`, compared as the local key compares.
    fn same_key(&self) -> String {
        self.table.key_columns().enumerate().map(|(place, name)| format!("t.{name} = s.k{place}")).collect::<Vec<_>>().join(" AND ")
    }

    fn delete(&self, condition: &str) -> String {
        let (table, names) = (self.table.quoted(), self.table.key_columns().collect::<Vec<_>>().join(", "));
        format!(
            "DELETE FROM main.{table} WHERE ({names}) IN (SELECT {} FROM dock_stage.s{} AS s WHERE {condition})",
            self.staged_key(),
            self.number
        )
    }

    /// The stored columns that are written, with their places in the stage.
    fn written(&self) -> (String, String) {
        let (names, places): (Vec<String>, Vec<String>) =
            self.table.written_columns().map(|(place, name)| (name, format!("s.c{place}"))).unzip();
        (names.join(", "), places.join(", "))
    }
}

impl StageWriter<'_> {
    fn run(&self, sql: &str) -> Result<(), LocalError> {
        self.connection.execute_batch(sql).map_err(|source| LocalError::of_sql(self.path, "mark the unit's begin or end", source))
    }

    /// Runs a statement for all rows of a table. A row that does not fit has no name here.
    fn execute(&self, target: &Target<'_>, sql: &str) -> Result<usize, UnitError> {
        self.connection.execute(sql, []).map_err(|source| self.refused(target, source, String::new()))
    }

    fn refused(&self, target: &Target<'_>, source: rusqlite::Error, key: String) -> UnitError {
        match source.sqlite_error_code() {
            Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch) => {
                UnitError::Constraint { table: target.table.name.clone(), key, reason: source.to_string() }
            }
            _ => LocalError::of_sql(self.path, "write staged rows", source).into(),
        }
    }

    /// The usual way.
    fn in_place(&self) -> Result<(), UnitError> {
        for target in &self.targets {
            self.execute(target, &target.delete(&format!("op = {DELETE}")))?;
        }
        for target in &self.targets {
            for (shape, columns) in target.staged.shapes.iter().enumerate() {
                let of_shape = format!("s.op = {UPDATE} AND s.shape = {shape}");
                let staged: i64 = self.count(target, &of_shape)?;
                let assignments = target.table.assignments(columns, |column| format!("s.c{column}"));
                let update = format!(
                    "UPDATE OR ABORT main.{} AS t SET {assignments} FROM dock_stage.s{} AS s WHERE {of_shape} AND {}",
                    target.table.quoted(),
                    target.number,
                    target.same_key()
                );
                if self.execute(target, &update)? as i64 != staged {
                    return Err(self.missing(target, &of_shape)?);
                }
            }
        }
        for target in &self.targets {
            let (_, places) = target.written();
            let select = format!("SELECT {places} FROM dock_stage.s{} AS s WHERE s.op = {PUT}", target.number);
            self.execute(target, &target.table.put_from(&select))?;
        }
        Ok(())
    }

    /// The way that no unique key can block: in between, none of the touched rows exists.
    fn by_final_images(&self) -> Result<(), UnitError> {
        for target in &self.targets {
            self.stage_images(target)?;
        }
        for target in &self.targets {
            self.execute(target, &target.delete("true"))?;
        }
        for target in &self.targets {
            // Row by row: one that does not fit is named.
            let all = target.table.stored_columns().collect::<Vec<_>>().join(", ");
            let (names, places) = target.written();
            let (table, number) = (target.table.quoted(), target.number);
            let key = target.table.key_columns().collect::<Vec<_>>().join(", ");
            self.each_row(
                target,
                &format!("SELECT rowid, {key} FROM dock_stage.i{number}"),
                &format!("INSERT OR ABORT INTO main.{table} ({all}) SELECT {all} FROM dock_stage.i{number} WHERE rowid = ?1"),
            )?;
            self.each_row(
                target,
                &format!(
                    "SELECT n.id, {} FROM dock_stage.n{number} AS n JOIN dock_stage.s{number} AS s ON s.rowid = n.id",
                    target.staged_key()
                ),
                &format!("INSERT OR ABORT INTO main.{table} ({names}) SELECT {places} FROM dock_stage.s{number} AS s WHERE s.rowid = ?1"),
            )?;
        }
        Ok(())
    }

    /// Keeps the final image of every staged row that is there now, and which staged rows are new: their other columns get defaults.
    fn stage_images(&self, target: &Target<'_>) -> Result<(), UnitError> {
        let (number, key) = (target.number, target.same_key());
        let columns: Vec<String> = target.table.stored_columns().collect();
        let table = target.table.quoted();
        // Without types, here too.
        self.execute(target, &format!("CREATE TABLE dock_stage.i{number}({})", columns.join(", ")))?;
        self.execute(target, &format!("CREATE TABLE dock_stage.n{number}(id INTEGER PRIMARY KEY)"))?;
        let from = format!("FROM dock_stage.s{number} AS s JOIN main.{table} AS t ON {key}");
        for (shape, changed) in target.staged.shapes.iter().enumerate() {
            let of_shape = format!("s.op = {UPDATE} AND s.shape = {shape}");
            let image = target.table.image_columns(changed);
            let kept = self.execute(target, &format!("INSERT INTO dock_stage.i{number} SELECT {image} {from} WHERE {of_shape}"))?;
            if kept as i64 != self.count(target, &of_shape)? {
                return Err(self.missing(target, &of_shape)?);
            }
        }
        let all: Vec<u16> = (0u16..).take(target.staged.heading.columns.len()).collect();
        let image = target.table.image_columns(&all);
        self.execute(target, &format!("INSERT INTO dock_stage.i{number} SELECT {image} {from} WHERE s.op = {PUT}"))?;
        let new = format!(
            "INSERT INTO dock_stage.n{number} SELECT s.rowid FROM dock_stage.s{number} AS s
             WHERE s.op = {PUT} AND NOT EXISTS (SELECT 1 FROM main.{table} AS t WHERE {key})"
        );
        self.execute(target, &new)?;
        Ok(())
    }

    /// Runs `insert` with the first column of each row of `select`; the other columns are the key.
    fn each_row(&self, target: &Target<'_>, select: &str, insert: &str) -> Result<(), UnitError> {
        let sql = |source| LocalError::of_sql(self.path, "read staged rows", source);
        let mut select = self.connection.prepare(select).map_err(sql)?;
        let mut insert = self.connection.prepare(insert).map_err(sql)?;
        let width = target.staged.heading.key.len();
        let mut rows = select.query([]).map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            let id: i64 = row.get(0).map_err(sql)?;
            if let Err(source) = insert.execute([id]) {
                let key = (1..=width).map(|place| row.get_ref(place).map(value_of)).collect::<Result<Vec<_>, _>>().map_err(sql)?;
                return Err(self.refused(target, source, display_key(&key)));
            }
        }
        Ok(())
    }

    fn count(&self, target: &Target<'_>, condition: &str) -> Result<i64, UnitError> {
        let count = format!("SELECT count(*) FROM dock_stage.s{} AS s WHERE {condition}", target.number);
        let counted = self.connection.query_row(&count, [], |row| row.get(0));
        counted.map_err(|source| LocalError::of_sql(self.path, "count staged rows", source).into())
    }

    /// Returns the first staged row that is not in the table.
    fn missing(&self, target: &Target<'_>, condition: &str) -> Result<UnitError, UnitError> {
        let select = format!(
            "SELECT {} FROM dock_stage.s{} AS s WHERE {condition} AND NOT EXISTS (SELECT 1 FROM main.{} AS t WHERE {}) LIMIT 1",
            target.staged_key(),
            target.number,
            target.table.quoted(),
            target.same_key()
        );
        let width = target.staged.heading.key.len();
        let key = self.connection.query_row(&select, [], |row| (0..width).map(|at| row.get_ref(at).map(value_of)).collect());
        let key: Vec<Value> = key.map_err(|source| LocalError::of_sql(self.path, "search a missing row", source))?;
        Ok(UnitError::MissingRow { table: target.table.name.clone(), key: display_key(&key) })
    }
}

impl ApplyTransaction<'_> {
    fn look_up(&self, heading: &TableHeading) -> Result<LocalTable, TableProblem> {
        LocalTable::look_up(self.connection(), self.path(), heading)
    }
}
