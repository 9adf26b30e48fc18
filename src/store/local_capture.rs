//! Sees to it that every local change is captured: our triggers on each table of `dock_table`, and the tables that they write.
//!
//! - `dock_capture` holds how each table is logged. A table whose shape changed gets a new number and a new base table, into which the
//!   entries of the former are taken over; the former number stays until the log holds no row of it.
//! - Ours are made again when one is missing or differs, and when a newer trigger of a program would fire before them.
//! - A change made while a trigger of ours was missing, or ended by a newer one before ours ran, is not captured: a comparison with the
//!   server finds such rows (`dockmaster verify`).

use super::capture::{capture_shape, newer_triggers, trigger_texts};
use super::doubt::stored_triggers;
use super::local_base::{base_table, base_table_sql, base_trigger_texts};
use super::schema::read_shape;
use super::sqlite::quote_name;
use crate::base::limits::COLUMNS_MAX;
use crate::model::schema::{TableShape, TermKind};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension};
use std::collections::BTreeMap;

/// Logs each mark of an application.
const MARK_TRIGGER: &str = "CREATE TRIGGER dock_m AFTER INSERT ON dock_txn_mark BEGIN
  INSERT INTO dock_txn_log(tbl, op, c1) VALUES (0, 'M', NEW.label);
END";

/// Why a table is not captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// SQLite refused something.
    #[error("install the capture of local changes: {0}")]
    Sql(#[from] rusqlite::Error),
    /// The table is not one whose changes can be captured.
    #[error("table {table}: its changes cannot be captured: {reason}")]
    Table {
        /// The table.
        table: String,
        /// Why.
        reason: String,
    },
    /// The catalogue cannot be read.
    #[error("row {id} of dock_capture is damaged: {reason}")]
    Damaged {
        /// Its number.
        id: i64,
        /// What is wrong.
        reason: String,
    },
}

/// How one table of a local database is captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalCapture {
    /// Its number: `tbl` in the log, and the end of the name of its base table.
    pub id: i64,
    /// The table.
    pub table: String,
    /// Those of its stored columns that are the server's, in the order of `c1`, `c2`, .. in the log and in the base table.
    pub columns: Vec<String>,
    /// Primary key, indices into `columns`.
    pub key: Vec<usize>,
    /// What the table looked like, as far as capture depends on it.
    pub shape: TableShape,
    /// Our triggers by name, as stored.
    pub triggers: BTreeMap<String, String>,
}

impl LocalCapture {
    /// Returns the name of the table that holds the server's rows.
    pub fn base_table(&self) -> String {
        base_table(self.id)
    }
}

/// Makes what is missing of the capture of every replicated table, and again what does not fit any more. Within the caller's transaction,
/// or in one of its own. Returns whether anything was made.
///
/// `from_server`: tables whose shape the server has just given, so that all their columns are the server's. In another table whose shape
/// changed, columns that are new are a local program's own and are not captured.
///
/// # Errors
/// A table cannot be captured, or a statement failed: then nothing was changed.
pub fn ensure_capture(connection: &Connection, from_server: &[&str]) -> Result<bool, CaptureError> {
    connection.execute_batch("SAVEPOINT dock_capture")?;
    let made = ensure(connection, from_server);
    match &made {
        Ok(_) => connection.execute_batch("RELEASE dock_capture")?,
        Err(_) => connection.execute_batch("ROLLBACK TO dock_capture; RELEASE dock_capture")?,
    }
    made
}

fn ensure(connection: &Connection, from_server: &[&str]) -> Result<bool, CaptureError> {
    let mut made = ensure_marks(connection)?;
    let known = read_local_captures(connection)?;
    let mut statement = connection.prepare_cached("SELECT name FROM main.dock_table ORDER BY name")?;
    let names: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for name in &names {
        // A table that is gone has no changes; that it is gone stops the apply that names it.
        if let Some(table) = read_shape(connection, name)? {
            let from_server = from_server.iter().any(|given| given.eq_ignore_ascii_case(name));
            made |= ensure_table(connection, &table, active(&known, name), from_server)?;
        }
    }
    for capture in &known {
        let newest = active(&known, &capture.table).is_some_and(|newest| newest.id == capture.id);
        let replicated = names.iter().any(|name| name.eq_ignore_ascii_case(&capture.table));
        if !(newest && replicated) {
            made |= retire(connection, capture, replicated)?;
        }
    }
    Ok(made)
}

fn ensure_marks(connection: &Connection) -> Result<bool, CaptureError> {
    let stored: Option<String> = connection
        .query_row("SELECT sql FROM main.sqlite_schema WHERE type = 'trigger' AND name = 'dock_m'", [], |row| row.get(0))
        .optional()?;
    if stored.as_deref() == Some(MARK_TRIGGER) {
        return Ok(false);
    }
    connection.execute_batch(&format!("DROP TRIGGER IF EXISTS main.dock_m; {MARK_TRIGGER}"))?;
    Ok(true)
}

/// Returns the capture that is in force for a table: the newest.
pub(super) fn active<'c>(captures: &'c [LocalCapture], table: &str) -> Option<&'c LocalCapture> {
    captures.iter().rev().find(|capture| capture.table.eq_ignore_ascii_case(table))
}

fn ensure_table(
    connection: &Connection,
    table: &TableShape,
    known: Option<&LocalCapture>,
    from_server: bool,
) -> Result<bool, CaptureError> {
    let shape = capture_shape(table);
    let stored = stored_triggers(connection, table)?;
    let mut id = None;
    if let Some(capture) = known.filter(|capture| capture.shape == shape) {
        if stored == capture.triggers && newer_triggers(connection, &table.name)?.is_empty() {
            return Ok(false);
        }
        id = Some(capture.id);
    }
    let is_servers =
        |name: &str| from_server || known.is_none_or(|known| known.columns.iter().any(|column| column.eq_ignore_ascii_case(name)));
    let stored_columns = table.columns.iter().enumerate().filter(|(_, column)| !column.generated && is_servers(&column.name));
    let columns: Vec<usize> = stored_columns.map(|(position, _)| position).collect();
    refuse(table, &columns)?;
    for name in stored.keys() {
        connection.execute_batch(&format!("DROP TRIGGER main.{}", quote_name(name)))?;
    }
    widen_log(connection, columns.len() * 2)?;
    let id = match id {
        Some(id) => id,
        None => new_capture(connection, table, &shape, &columns, known)?,
    };
    // A program's own function in one of its triggers cannot be compiled here, and that is not our concern.
    let compiled_before = compile(connection, table)?.is_ok();
    for (_, sql) in trigger_texts(id, table, &columns).into_iter().chain(base_trigger_texts(id, table, &columns)) {
        connection.execute_batch(&sql)?;
    }
    if compiled_before && let Err(error) = compile(connection, table)? {
        return Err(CaptureError::Table { table: table.name.clone(), reason: format!("its triggers do not compile: {error}") });
    }
    let triggers = json(table, &stored_triggers(connection, table)?)?;
    connection.execute("UPDATE main.dock_capture SET triggers = ?2 WHERE id = ?1", (id, triggers))?;
    Ok(true)
}

fn refuse(table: &TableShape, columns: &[usize]) -> Result<(), CaptureError> {
    let refused = |reason: String| Err(CaptureError::Table { table: table.name.clone(), reason });
    if table.key.is_empty() {
        return refused("it has no primary key, so its rows cannot be told apart; only the server changes its shape".to_owned());
    }
    if let Some(column) = table.key.iter().filter(|key| !columns.contains(key)).find_map(|key| table.columns.get(*key)) {
        return refused(format!("a local program made its column `{}` part of the primary key", column.name));
    }
    if columns.len() > COLUMNS_MAX {
        return refused(format!("it has {} columns, the most is {COLUMNS_MAX}", columns.len()));
    }
    let unread = |term: &&crate::model::schema::IndexTerm| term.what == TermKind::Expression(String::new());
    match table.unique_indexes.iter().find(|index| index.terms.iter().any(|term| unread(&term))) {
        Some(index) => refused(format!("an expression of its index `{}` could not be read", index.name)),
        None => Ok(()),
    }
}

/// Enters a table, or a new shape of it, into the catalogue. Returns its number.
fn new_capture(
    connection: &Connection,
    table: &TableShape,
    shape: &TableShape,
    columns: &[usize],
    former: Option<&LocalCapture>,
) -> Result<i64, CaptureError> {
    let names: Vec<&str> = columns.iter().filter_map(|position| table.columns.get(*position)).map(|column| column.name.as_str()).collect();
    let key: Vec<usize> = table.key.iter().filter_map(|position| columns.iter().position(|column| column == position)).collect();
    // A number that is free again stands nowhere any more, neither in the log nor as a base table.
    let id: i64 = connection.query_row("SELECT ifnull(max(id), 0) + 1 FROM main.dock_capture", [], |row| row.get(0))?;
    connection.execute(
        "INSERT INTO main.dock_capture(id, table_name, columns, row_key, shape, triggers) VALUES (?1, ?2, ?3, ?4, ?5, '{}')",
        (id, &table.name, json(table, &names)?, json(table, &key)?, json(table, shape)?),
    )?;
    let base = base_table(id);
    connection.execute_batch(&format!("DROP TABLE IF EXISTS main.{base}; {}", base_table_sql(id, table, columns)))?;
    if let Some(former) = former {
        take_over(connection, table, &names, id, former)?;
    }
    Ok(id)
}

/// Takes the base entries of a former shape over. A column that is new has its default in them, as in the rows of the table.
fn take_over(connection: &Connection, table: &TableShape, names: &[&str], id: i64, former: &LocalCapture) -> Result<(), CaptureError> {
    let mut defaults = BTreeMap::new();
    let mut statement = connection.prepare("SELECT name, dflt_value FROM pragma_table_info(?1, 'main') WHERE dflt_value IS NOT NULL")?;
    let mut rows = statement.query([&table.name])?;
    while let Some(row) = rows.next()? {
        defaults.insert(row.get::<_, String>(0)?, row.get::<_, String>(1)?);
    }
    let value = |name: &str| match former.columns.iter().position(|column| column.eq_ignore_ascii_case(name)) {
        Some(place) => format!("c{}", place + 1),
        None => defaults.get(name).map_or("NULL".to_owned(), |text| format!("CASE present WHEN 1 THEN ({text}) END")),
    };
    let places: Vec<String> = (1..=names.len()).map(|place| format!("c{place}")).collect();
    let values: Vec<String> = names.iter().map(|name| value(name)).collect();
    let (into, from) = (base_table(id), former.base_table());
    connection.execute_batch(&format!(
        "INSERT INTO main.{into}(present, settled, {}) SELECT present, settled, {} FROM main.{from} ORDER BY rowid;
         DROP TABLE main.{from};",
        places.join(", "),
        values.join(", ")
    ))?;
    Ok(())
}

/// Takes a capture out that is no longer in force, once the log holds no row of it.
fn retire(connection: &Connection, capture: &LocalCapture, replicated: bool) -> Result<bool, CaptureError> {
    let logged: bool =
        connection.query_row("SELECT EXISTS (SELECT 1 FROM main.dock_txn_log WHERE tbl = ?1)", [capture.id], |row| row.get(0))?;
    if logged && replicated {
        return Ok(false);
    }
    for name in capture.triggers.keys().filter(|_| !replicated) {
        connection.execute_batch(&format!("DROP TRIGGER IF EXISTS main.{}", quote_name(name)))?;
    }
    // What was logged of a table that the node no longer has goes nowhere.
    connection.execute("DELETE FROM main.dock_txn_log WHERE tbl = ?1", [capture.id])?;
    connection.execute_batch(&format!("DROP TABLE IF EXISTS main.{}", capture.base_table()))?;
    connection.execute("DELETE FROM main.dock_capture WHERE id = ?1", [capture.id])?;
    Ok(true)
}

fn widen_log(connection: &Connection, width: usize) -> Result<(), CaptureError> {
    let sql = "SELECT count(*) FROM pragma_table_info('dock_txn_log', 'main') WHERE substr(name, 1, 1) = 'c'";
    let have: i64 = connection.query_row(sql, [], |row| row.get(0))?;
    for place in usize::try_from(have).unwrap_or_default() + 1..=width {
        connection.execute_batch(&format!("ALTER TABLE main.dock_txn_log ADD COLUMN c{place}"))?;
    }
    Ok(())
}

/// Compiles one statement of each kind with its triggers, and runs none: an error here would be the user's later.
fn compile(connection: &Connection, table: &TableShape) -> Result<rusqlite::Result<()>, CaptureError> {
    let fired = connection.db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true)?;
    let name = quote_name(&table.name);
    let column = table.columns.iter().find(|column| !column.generated).map(|column| quote_name(&column.name)).unwrap_or_default();
    let compiled = [
        format!("INSERT INTO {name}({column}) VALUES (NULL)"),
        format!("UPDATE {name} SET {column} = {column}"),
        format!("DELETE FROM {name}"),
    ]
    .iter()
    .try_for_each(|sql| connection.prepare(sql).map(drop));
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, fired)?;
    Ok(compiled)
}

fn json<T: serde::Serialize>(table: &TableShape, value: &T) -> Result<String, CaptureError> {
    serde_json::to_string(value).map_err(|error| CaptureError::Table { table: table.name.clone(), reason: error.to_string() })
}

/// Reads the catalogue, oldest first; of several of one table the last is in force.
///
/// # Errors
/// It is damaged, or a statement failed.
pub fn read_local_captures(connection: &Connection) -> Result<Vec<LocalCapture>, CaptureError> {
    let mut captures = Vec::new();
    let mut statement =
        connection.prepare_cached("SELECT id, table_name, columns, row_key, shape, triggers FROM main.dock_capture ORDER BY id")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let texts: [String; 4] = [row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?];
        let table: String = row.get(1)?;
        let capture = parse(id, table, &texts).map_err(|reason| CaptureError::Damaged { id, reason })?;
        captures.push(capture);
    }
    Ok(captures)
}

fn parse(id: i64, table: String, [columns, key, shape, triggers]: &[String; 4]) -> Result<LocalCapture, String> {
    let error = |error: serde_json::Error| error.to_string();
    let columns: Vec<String> = serde_json::from_str(columns).map_err(error)?;
    let key: Vec<usize> = serde_json::from_str(key).map_err(error)?;
    if key.is_empty() || key.iter().any(|place| *place >= columns.len()) {
        return Err("its key names no column".to_owned());
    }
    let (shape, triggers) = (serde_json::from_str(shape).map_err(error)?, serde_json::from_str(triggers).map_err(error)?);
    Ok(LocalCapture { id, table, columns, key, shape, triggers })
}
