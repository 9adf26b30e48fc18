//! Writes what was decided for a unit into the server database: in an order in which no constraint fails needlessly (X-34, fault 43).
//!
//! Foreign keys are deferred to the commit. Rows are inserted parents first, then updated, then deleted children first, since a row that moved to
//! another parent must not go with the former one. A statement that meets a unique value waits until the others have run; values that are
//! swapped are parked at NULL where nobody can notice. Nothing is deleted to be inserted again: the server's cascades and triggers would run.

use crate::model::event::TableHeading;
use crate::model::merge_rules::MergeRules;
use crate::model::schema::{Schema, TableShape, TermKind};
use crate::model::value::{Row, RowKey, Value, display_key};
use crate::rules::merge::Write;
use crate::store::capture::key_condition;
use crate::store::sqlite::{ServerDatabase, SqlValue, StoreError, quote_name, value_of};
use rusqlite::{Error as Sql, ErrorCode, ffi};
use std::sync::Arc;

/// One row to be written.
#[derive(Debug)]
pub(super) struct Op<'a> {
    /// Place of its change within the unit.
    pub(super) place: usize,
    /// The table as it is.
    pub(super) table: &'a TableShape,
    /// The columns of `write` and `server`.
    pub(super) heading: Arc<TableHeading>,
    /// The table's rules.
    pub(super) rules: &'a MergeRules,
    /// The key under which the server has the row.
    pub(super) key: RowKey,
    /// The server's row before the unit.
    pub(super) server: Option<Row>,
    /// What is written.
    pub(super) write: Write,
    /// Whether a unique value was set aside.
    pub(super) is_parked: bool,
    /// Whether the table has no triggers of ours.
    pub(super) by_comparison: bool,
}

/// The database refused a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rejected {
    /// Place of the change.
    pub(super) place: usize,
    /// Why, with table, key and constraint.
    pub(super) reason: String,
    /// The same without the row that has the value.
    pub(super) reason_alone: String,
    /// Table and key of the row that has the value.
    pub(super) rival: Option<(String, RowKey)>,
}

/// Returns what the database says, if it refuses what was asked; `None` if it is not able to answer.
pub(super) fn refusal_of(error: &Sql) -> Option<String> {
    let is_fault = match error.sqlite_error_code() {
        None => true,
        Some(
            ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig | ErrorCode::Unknown | ErrorCode::OperationAborted,
        ) => false,
        Some(_) => true,
    };
    if is_fault {
        return None;
    }
    Some(match error {
        Sql::SqliteFailure(_, Some(message)) => message.clone(),
        Sql::SqlInputError { msg, .. } => msg.clone(),
        other => other.to_string(),
    })
}

fn is_unique(error: &Sql) -> bool {
    let Sql::SqliteFailure(failure, _) = error else { return false };
    [ffi::SQLITE_CONSTRAINT_UNIQUE, ffi::SQLITE_CONSTRAINT_PRIMARYKEY, ffi::SQLITE_CONSTRAINT_ROWID].contains(&failure.extended_code)
}

/// Writes everything.
///
/// # Errors
/// The database is not able to; a row that it refuses is no error.
pub(super) fn write_all(database: &ServerDatabase, schema: &Schema, ops: &mut [Op<'_>]) -> Result<Result<(), Rejected>, StoreError> {
    let rank = ranks(schema);
    let rank_of = |table: &TableShape| schema.tables.iter().position(|other| other.name == table.name).and_then(|at| rank.get(at).copied());
    ops.sort_by_key(|op| {
        let rank = rank_of(op.table).unwrap_or_default();
        match op.write {
            Write::Nothing | Write::Insert(_) => (0, rank, op.place),
            Write::Update(_) => (1, 0, op.place),
            // Of one table the row that came last goes first: it may refer to the others.
            Write::Delete => (2, usize::MAX - rank, usize::MAX - op.place),
        }
    });
    let mut left: Vec<usize> = (0..ops.len()).collect();
    while !left.is_empty() {
        let (mut waiting, mut first) = (Vec::new(), None);
        for at in &left {
            let Some(op) = ops.get(*at) else { continue };
            match run(database, op) {
                Ok(()) => {}
                // A trigger that rolls the transaction back leaves nothing to wait for.
                Err((_, error)) if is_unique(&error) && !database.connection.is_autocommit() => {
                    waiting.push(*at);
                    first.get_or_insert(error);
                }
                Err((sql, error)) => {
                    let Some(reason) = refusal_of(&error) else { return Err(database.fault(&sql)(error)) };
                    let reason = name(op, &reason);
                    return Ok(Err(Rejected { place: op.place, reason_alone: reason.clone(), reason, rival: None }));
                }
            }
        }
        if waiting.len() == left.len() && !park_one(database, schema, ops, &waiting)? {
            let (Some(op), Some(error)) = (waiting.first().and_then(|at| ops.get(*at)), first) else { break };
            let rival = rival(database, op)?;
            let also = rival.as_ref().map_or_else(String::new, |key| format!("; {} {} has it", op.table.name, display_key(key)));
            let reason = name(op, &refusal_of(&error).unwrap_or_else(|| error.to_string()));
            let rival = rival.map(|key| (op.table.name.clone(), key));
            return Ok(Err(Rejected { place: op.place, reason: format!("{reason}{also}"), reason_alone: reason, rival }));
        }
        left = waiting;
    }
    Ok(Ok(()))
}

fn name(op: &Op<'_>, reason: &str) -> String {
    format!("{} {}: {reason}", op.table.name, display_key(&op.key))
}

/// Returns how far below others each table stands: more than every table that it refers to, as far as there is no circle.
fn ranks(schema: &Schema) -> Vec<usize> {
    let mut ranks = vec![0; schema.tables.len()];
    for _ in 0..schema.tables.len() {
        let mut moved = false;
        for (at, table) in schema.tables.iter().enumerate() {
            for foreign in table.foreign_keys.iter().filter(|foreign| !foreign.to_table.eq_ignore_ascii_case(&table.name)) {
                let parent = schema.tables.iter().position(|other| other.name.eq_ignore_ascii_case(&foreign.to_table));
                let below = parent.and_then(|parent| ranks.get(parent)).map_or(0, |rank| rank + 1);
                if let Some(rank) = ranks.get_mut(at).filter(|rank| **rank < below) {
                    (*rank, moved) = (below, true);
                }
            }
        }
        if !moved {
            break;
        }
    }
    ranks
}

/// Runs the statement of one row. An error comes with what was being done.
fn run(database: &ServerDatabase, op: &Op<'_>) -> Result<(), (String, Sql)> {
    let table = quote_name(&op.table.name);
    // `OR ABORT` only where the table itself says otherwise: it would hold within the server's triggers too.
    let or_abort = if op.table.sql.to_ascii_lowercase().contains("conflict") { " OR ABORT" } else { "" };
    match &op.write {
        Write::Nothing => Ok(()),
        Write::Insert(row) => {
            let written: Vec<(String, &Value)> = op
                .heading
                .columns
                .iter()
                .zip(row)
                .filter(|(column, _)| is_set(op, column))
                .map(|(c, value)| (quote_name(c), value))
                .collect();
            let names: Vec<&str> = written.iter().map(|(name, _)| name.as_str()).collect();
            let marks: Vec<String> = (1..=written.len()).map(|place| format!("?{place}")).collect();
            let sql = format!("INSERT{or_abort} INTO main.{table}({}) VALUES ({})", names.join(", "), marks.join(", "));
            execute(database, op, &sql, &written.iter().map(|(_, value)| *value).collect::<Vec<_>>()).map(drop)
        }
        Write::Update(columns) => {
            let named: Vec<(String, &Value)> = columns
                .iter()
                .filter_map(|(place, value)| Some((quote_name(op.heading.columns.get(usize::from(*place))?), value)))
                .collect();
            let sets: Vec<String> = named.iter().enumerate().map(|(place, (name, _))| format!("{name} = ?{}", place + 1)).collect();
            let sql = format!("UPDATE{or_abort} main.{table} SET {} WHERE {}", sets.join(", "), condition(op.table, sets.len()));
            let values =
                |key: &'_ [Value]| -> Vec<Value> { named.iter().map(|(_, value)| (*value).clone()).chain(key.iter().cloned()).collect() };
            let first = values(&op.key);
            let changed = execute(database, op, &sql, &first.iter().collect::<Vec<_>>())?;
            let after = key_after(op);
            if changed == 0 && after.as_ref().is_some_and(|after| *after != op.key) {
                // The server's own cascade took it along under the new key already.
                let second = values(&after.unwrap_or_default());
                execute(database, op, &sql, &second.iter().collect::<Vec<_>>())?;
            }
            Ok(())
        }
        Write::Delete => {
            let sql = format!("DELETE FROM main.{table} WHERE {}", condition(op.table, 0));
            execute(database, op, &sql, &op.key.iter().collect::<Vec<_>>()).map(drop)
        }
    }
}

/// Returns whether an inserted row sets a column: what only the server changes is left to its defaults and triggers where it can be.
fn is_set(op: &Op<'_>, column: &str) -> bool {
    let Some((place, shape)) = op.table.column(column).and_then(|place| Some((place, op.table.columns.get(place)?))) else { return false };
    let is_needed = op.table.key.contains(&place) || (shape.not_null && !shape.has_default);
    !shape.generated && (is_needed || !op.rules.is_download_only(column))
}

fn condition(table: &TableShape, after: usize) -> String {
    key_condition(table, "", |place, _| format!("?{}", after + place + 1), "=")
}

/// Runs one statement and returns how many rows it touched. None is no error: a trigger of the server may have done it another way.
fn execute(database: &ServerDatabase, op: &Op<'_>, sql: &str, values: &[&Value]) -> Result<usize, (String, Sql)> {
    let action = || format!("merging into {}", op.table.name);
    let mut statement = database.connection.prepare_cached(sql).map_err(|error| (action(), error))?;
    statement.execute(rusqlite::params_from_iter(values.iter().map(|value| SqlValue(value)))).map_err(|error| (action(), error))
}

/// Returns the key under which a row stands after its write; `None` if it does not, or nothing was written.
pub(super) fn key_after(op: &Op<'_>) -> Option<RowKey> {
    match &op.write {
        Write::Nothing | Write::Delete => None,
        Write::Insert(row) => op.heading.key.iter().map(|place| row.get(usize::from(*place)).cloned()).collect(),
        Write::Update(columns) => Some(
            (op.heading.key.iter().zip(&op.key))
                .map(|(place, value)| columns.iter().find(|(column, _)| column == place).map_or(value, |(_, value)| value).clone())
                .collect(),
        ),
    }
}

/// Sets one unique value of the waiting updates aside, so that another row can take it. Returns whether there was one.
fn park_one(database: &ServerDatabase, schema: &Schema, ops: &mut [Op<'_>], waiting: &[usize]) -> Result<bool, StoreError> {
    for at in waiting {
        let Some(op) = ops.get_mut(*at) else { continue };
        let Write::Update(columns) = &op.write else { continue };
        // A trigger would see a NULL that nobody wrote, and a row that refers to the value would follow it.
        if op.is_parked || !op.table.triggers.is_empty() {
            continue;
        }
        let changes = |column: usize| {
            let name = op.table.columns.get(column).map(|column| column.name.as_str())?;
            columns.iter().find(|(place, _)| op.heading.columns.get(usize::from(*place)).is_some_and(|c| c.eq_ignore_ascii_case(name)))
        };
        let is_free = |column: usize| {
            let Some(shape) = op.table.columns.get(column) else { return false };
            let is_target = schema.tables.iter().flat_map(|table| &table.foreign_keys).any(|foreign| {
                foreign.to_table.eq_ignore_ascii_case(&op.table.name)
                    && foreign.to_columns.iter().any(|to| to.eq_ignore_ascii_case(&shape.name))
            });
            !shape.not_null && !op.table.key.contains(&column) && !is_target && changes(column).is_some()
        };
        let terms = op.table.unique_indexes.iter().flat_map(|index| &index.terms);
        let mut columns_of = terms.filter_map(|term| if let TermKind::Column(column) = term.what { Some(column) } else { None });
        let Some(column) = columns_of.find(|column| is_free(*column)).and_then(|column| op.table.columns.get(column)) else { continue };
        let (table, column) = (quote_name(&op.table.name), quote_name(&column.name));
        let sql = format!("UPDATE main.{table} SET {column} = NULL WHERE {}", condition(op.table, 0));
        match execute(database, op, &sql, &op.key.iter().collect::<Vec<_>>()) {
            Ok(_) => {
                op.is_parked = true;
                return Ok(true);
            }
            Err((_, error)) if refusal_of(&error).is_some() => {}
            Err((action, error)) => return Err(database.fault(&action)(error)),
        }
    }
    Ok(false)
}

/// Returns the key of the row that has a unique value which this one wants.
fn rival(database: &ServerDatabase, op: &Op<'_>) -> Result<Option<RowKey>, StoreError> {
    let wanted = |column: usize| -> Option<Value> {
        let name = &op.table.columns.get(column)?.name;
        let place = op.heading.columns.iter().position(|column| column.eq_ignore_ascii_case(name))?;
        let value = match &op.write {
            Write::Insert(row) => row.get(place),
            Write::Update(columns) => {
                let changed = columns.iter().find(|(column, _)| usize::from(*column) == place).map(|(_, value)| value);
                changed.or_else(|| op.server.as_ref()?.get(place))
            }
            Write::Nothing | Write::Delete => None,
        };
        value.filter(|value| !value.is_null()).cloned()
    };
    let keys: Vec<String> =
        op.table.key.iter().filter_map(|column| op.table.columns.get(*column)).map(|column| quote_name(&column.name)).collect();
    for index in op.table.unique_indexes.iter().filter(|index| index.partial.is_none()) {
        let mut terms = Vec::new();
        let mut values = Vec::new();
        for term in &index.terms {
            let TermKind::Column(column) = term.what else { break };
            let Some((value, shape)) = wanted(column).zip(op.table.columns.get(column)) else { break };
            values.push(value);
            terms.push(format!("{} = ?{} COLLATE {}", quote_name(&shape.name), values.len(), quote_name(&term.collation)));
        }
        if terms.len() != index.terms.len() {
            continue;
        }
        let sql = format!("SELECT {} FROM main.{} WHERE {}", keys.join(", "), quote_name(&op.table.name), terms.join(" AND "));
        let fault = || database.fault("looking for the row that has a value");
        let mut statement = database.connection.prepare_cached(&sql).map_err(fault())?;
        let mut rows = statement.query(rusqlite::params_from_iter(values.iter().map(SqlValue))).map_err(fault())?;
        while let Some(row) = rows.next().map_err(fault())? {
            let key: RowKey =
                (0..keys.len()).map(|place| row.get_ref(place).map(value_of)).collect::<rusqlite::Result<_>>().map_err(fault())?;
            if key != op.key || matches!(op.write, Write::Insert(_)) {
                return Ok(Some(key));
            }
        }
    }
    Ok(None)
}

/// Says which foreign key a commit failed by: place of the change, and the reason for the node, which is not told of rows of others.
pub(super) fn broken_reference(
    database: &ServerDatabase,
    schema: &Schema,
    ops: &[Op<'_>],
) -> Result<(Option<usize>, String, String), StoreError> {
    let fault = || database.fault("looking for the reference that does not hold");
    let is_written = |name: &str| ops.iter().any(|op| op.write != Write::Nothing && op.table.name.eq_ignore_ascii_case(name));
    let mut other = None;
    for table in &schema.tables {
        let concerns = is_written(&table.name) || table.foreign_keys.iter().any(|foreign| is_written(&foreign.to_table));
        if table.foreign_keys.is_empty() || !concerns {
            continue;
        }
        let mut statement = database.connection.prepare_cached("SELECT rowid, parent FROM pragma_foreign_key_check(?1)").map_err(fault())?;
        let mut rows = statement.query([&table.name]).map_err(fault())?;
        while let Some(row) = rows.next().map_err(fault())? {
            let rowid: Option<i64> = row.get(0).map_err(fault())?;
            let parent: String = row.get(1).map_err(fault())?;
            let key = rowid.map(|rowid| key_at(database, table, rowid)).transpose()?.flatten();
            let name =
                key.as_ref().map_or_else(|| format!("a row of {}", table.name), |key| format!("{} {}", table.name, display_key(key)));
            let reason = format!("{name}: FOREIGN KEY constraint failed: it refers to a row of {parent} that is not there");
            let ours = ops.iter().find(|op| op.table.name == table.name && key.is_some() && key_after(op) == key);
            if let Some(op) = ours {
                return Ok((Some(op.place), reason.clone(), reason));
            }
            other.get_or_insert((reason, format!("FOREIGN KEY constraint failed: a row of {} refers to a row of {parent}", table.name)));
        }
    }
    let (reason, told) = other.unwrap_or_else(|| ("FOREIGN KEY constraint failed".to_owned(), "FOREIGN KEY constraint failed".to_owned()));
    Ok((None, reason, told))
}

fn key_at(database: &ServerDatabase, table: &TableShape, rowid: i64) -> Result<Option<RowKey>, StoreError> {
    if table.key_is_rowid {
        return Ok(Some(vec![Value::Integer(rowid)]));
    }
    let Some(name) = ["rowid", "_rowid_", "oid"].into_iter().find(|name| table.column(name).is_none()) else { return Ok(None) };
    let keys: Vec<String> = table.key.iter().filter_map(|column| table.columns.get(*column)).map(|c| quote_name(&c.name)).collect();
    let sql = format!("SELECT {} FROM main.{} WHERE {name} = ?1", keys.join(", "), quote_name(&table.name));
    let read = database.connection.prepare_cached(&sql).and_then(|mut statement| {
        statement
            .query_row([rowid], |row| (0..keys.len()).map(|place| row.get_ref(place).map(value_of)).collect::<rusqlite::Result<RowKey>>())
    });
    read.map(Some).map_err(database.fault("reading the key of a row"))
}
