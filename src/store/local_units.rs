//! Units of local changes that are not finished, as `dock_unit` and `dock_change` keep them.

use super::local::{LocalDatabase, LocalError};
use super::local_before::CutTable;
use crate::base::ids::{Revision, TxnId, UnitNo};
use crate::dx::error::DxError;
use crate::dx::upload::{decode_change, encode_change};
use crate::model::event::TableHeading;
use crate::model::keycode;
use crate::model::upload::{RowChange, UploadHead, UploadUnit};
use crate::model::value::{RowKey, Value, display_key};
use rusqlite::{Connection, OptionalExtension};
use std::path::Path;
use std::sync::Arc;

/// A unit that is not finished, without its changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingUnit {
    /// Its head.
    pub head: UploadHead,
    /// `pending` (the server does not have it), `sent` or `held`.
    pub state: String,
    /// Upload file that it is in.
    pub file: Option<u64>,
    /// Why it is not shown in the tables.
    pub suspended: Option<String>,
    /// Why the server holds it.
    pub reason: Option<String>,
}

/// One changed row of a unit that is not finished, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingChange {
    /// The unit.
    pub unit: UnitNo,
    /// The table.
    pub table: String,
    /// The row's key as SQL literals.
    pub key: String,
    /// `insert`, `update` or `delete`.
    pub op: String,
}

/// How much is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PendingCounts {
    /// Units that the server does not have yet.
    pub pending: u64,
    /// Units that it has and that are not confirmed.
    pub sent: u64,
    /// Units that it holds until a person decides.
    pub held: u64,
    /// Units, among all these, that are not shown in the tables.
    pub suspended: u64,
    /// Changed rows of all of them.
    pub changes: u64,
}

impl PendingCounts {
    /// Returns the number of units.
    pub fn units(&self) -> u64 {
        self.pending + self.sent + self.held
    }
}

impl LocalDatabase {
    /// Returns the units that are not finished, in order.
    ///
    /// # Errors
    /// A statement failed, or a row of ours is damaged.
    pub fn pending_units(&self) -> Result<Vec<PendingUnit>, LocalError> {
        read_heads(self.connection(), self.path(), "unit > 0")
    }

    /// Returns a unit that is not finished, with its changes; `None` if there is no such unit.
    ///
    /// # Errors
    /// A statement failed, or a row of ours is damaged.
    pub fn pending_unit(&self, unit: UnitNo) -> Result<Option<UploadUnit>, LocalError> {
        read_unit(self.connection(), self.path(), unit)
    }

    /// Returns the head of a unit that is not finished; `None` if there is no such unit.
    ///
    /// # Errors
    /// A statement failed, or a row of ours is damaged.
    pub fn pending_head(&self, unit: UnitNo) -> Result<Option<UploadHead>, LocalError> {
        Ok(read_head(self.connection(), self.path(), unit)?.map(|unit| unit.head))
    }

    /// Hands out the changes of a unit in order, one in memory at a time.
    ///
    /// # Errors
    /// A statement failed, a row of ours is damaged, or what `take` says.
    pub fn each_change<E: From<LocalError>>(
        &self,
        unit: UnitNo,
        take: impl FnMut(Arc<TableHeading>, RowChange) -> Result<(), E>,
    ) -> Result<(), E> {
        each_change(self.connection(), self.path(), unit, take)
    }

    /// Returns the changed rows of the units that are not finished, in order, at most `limit`.
    ///
    /// # Errors
    /// A statement failed.
    pub fn pending_changes(&self, limit: u64) -> Result<Vec<PendingChange>, LocalError> {
        let sql = "SELECT unit, table_name, key_text, op FROM main.dock_change ORDER BY unit, place LIMIT ?1";
        let read = || -> rusqlite::Result<Vec<PendingChange>> {
            let mut statement = self.connection().prepare_cached(sql)?;
            let rows = statement.query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
                let unit = UnitNo(row.get::<_, i64>(0)?.cast_unsigned());
                Ok(PendingChange { unit, table: row.get(1)?, key: row.get(2)?, op: row.get(3)? })
            })?;
            rows.collect()
        };
        read().map_err(|source| LocalError::of_sql(self.path(), "list what is pending", source))
    }

    /// Returns how much is not finished.
    ///
    /// # Errors
    /// A statement failed.
    pub fn pending_counts(&self) -> Result<PendingCounts, LocalError> {
        let sql = "SELECT count(*) FILTER (WHERE state = 'pending'), count(*) FILTER (WHERE state = 'sent'),
                          count(*) FILTER (WHERE state = 'held'), count(suspended), ifnull(sum(changes), 0) FROM main.dock_unit";
        self.connection()
            .query_row(sql, [], |row| {
                let count = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
                Ok(PendingCounts { pending: count(0)?, sent: count(1)?, held: count(2)?, suspended: count(3)?, changes: count(4)? })
            })
            .map_err(|source| LocalError::of_sql(self.path(), "count what is pending", source))
    }
}

/// Reads the heads of the units that a condition names, in order.
pub(super) fn read_heads(connection: &Connection, path: &Path, condition: &str) -> Result<Vec<PendingUnit>, LocalError> {
    let sql = |source| LocalError::of_sql(path, "read dock_unit", source);
    let select = format!(
        "SELECT unit, applied, revision, cut_at, label, hidden, changes, state, file_no, suspended, reason FROM main.dock_unit
         WHERE {condition} ORDER BY unit"
    );
    let mut statement = connection.prepare_cached(&select).map_err(sql)?;
    let mut rows = statement.query([]).map_err(sql)?;
    let mut units = Vec::new();
    while let Some(row) = rows.next().map_err(sql)? {
        let hidden: String = row.get(5).map_err(sql)?;
        let numbers: Vec<u64> = serde_json::from_str(&hidden).map_err(|_| LocalError::State {
            path: path.to_owned(),
            column: "hidden",
            value: hidden.clone(),
        })?;
        let read = || -> rusqlite::Result<PendingUnit> {
            Ok(PendingUnit {
                head: UploadHead {
                    number: UnitNo(row.get::<_, i64>(0)?.cast_unsigned()),
                    applied: TxnId(row.get(1)?),
                    revision: Revision(row.get(2)?),
                    cut_at_micros: row.get(3)?,
                    label: row.get(4)?,
                    hidden: numbers.into_iter().map(UnitNo).collect(),
                    changes: row.get::<_, i64>(6)?.cast_unsigned(),
                },
                state: row.get(7)?,
                file: row.get::<_, Option<i64>>(8)?.map(i64::cast_unsigned),
                suspended: row.get(9)?,
                reason: row.get(10)?,
            })
        };
        units.push(read().map_err(sql)?);
    }
    Ok(units)
}

fn read_head(connection: &Connection, path: &Path, unit: UnitNo) -> Result<Option<PendingUnit>, LocalError> {
    Ok(read_heads(connection, path, &format!("unit = {}", unit.0))?.into_iter().next())
}

/// Reads a unit with its changes; `None` if there is no such unit.
pub(super) fn read_unit(connection: &Connection, path: &Path, unit: UnitNo) -> Result<Option<UploadUnit>, LocalError> {
    let Some(PendingUnit { head, .. }) = read_head(connection, path, unit)? else { return Ok(None) };
    let mut changes = Vec::new();
    each_change(connection, path, unit, |heading, change| {
        changes.push((heading, change));
        Ok::<_, LocalError>(())
    })?;
    Ok(Some(UploadUnit { head, changes }))
}

fn each_change<E: From<LocalError>>(
    connection: &Connection,
    path: &Path,
    unit: UnitNo,
    mut take: impl FnMut(Arc<TableHeading>, RowChange) -> Result<(), E>,
) -> Result<(), E> {
    let sql = |source| LocalError::of_sql(path, "read dock_change", source);
    let mut statement = connection
        .prepare_cached("SELECT table_name, columns, key_columns, body FROM main.dock_change WHERE unit = ?1 ORDER BY place")
        .map_err(sql)?;
    let mut rows = statement.query([unit.0.cast_signed()]).map_err(sql)?;
    let mut last: Option<Arc<TableHeading>> = None;
    while let Some(row) = rows.next().map_err(sql)? {
        let texts = || -> rusqlite::Result<[String; 3]> { Ok([row.get(0)?, row.get(1)?, row.get(2)?]) };
        let [table, columns, key] = texts().map_err(sql)?;
        let body = row.get_ref(3).and_then(|body| Ok(body.as_blob()?)).map_err(sql)?;
        let heading = parse_heading(path, table, &columns, &key)?;
        let change = decode_change(&heading, body).map_err(|source| LocalError::Unit { path: path.to_owned(), unit, source })?;
        // Changes of one table mostly follow each other.
        let heading = last.take().filter(|last| **last == heading).unwrap_or_else(|| Arc::new(heading));
        last = Some(Arc::clone(&heading));
        take(heading, change)?;
    }
    Ok(())
}

/// Reads the heading of a kept change: JSON lists of its columns, and of the places of the key among them.
pub(super) fn parse_heading(path: &Path, table: String, columns: &str, key: &str) -> Result<TableHeading, LocalError> {
    let damaged = |text: &str| LocalError::State { path: path.to_owned(), column: "columns", value: text.to_owned() };
    let columns: Vec<String> = serde_json::from_str(columns).map_err(|_| damaged(columns))?;
    let places: Vec<u16> = serde_json::from_str(key).map_err(|_| damaged(key))?;
    if places.iter().any(|place| usize::from(*place) >= columns.len()) {
        return Err(damaged(key));
    }
    Ok(TableHeading { name: table, columns, key: places })
}

/// Keeps a change of a unit at a place.
///
/// # Errors
/// The change is longer than any file can carry, or does not fit its heading.
pub(super) fn store_change(
    connection: &Connection,
    path: &Path,
    place: (UnitNo, u64),
    table: &CutTable,
    change: &RowChange,
) -> Result<Result<(), DxError>, LocalError> {
    let heading = &table.heading;
    let body = match encode_change(heading, change) {
        Ok(body) => body,
        Err(error) => return Ok(Err(error)),
    };
    let key = change.key(&heading.key);
    let new_key = key_after(heading, change).filter(|new| *new != key);
    let op = match change {
        RowChange::Insert { .. } => "insert",
        RowChange::Update { .. } => "update",
        RowChange::Delete { .. } => "delete",
    };
    let (unit, place) = (place.0.0.cast_signed(), place.1.cast_signed());
    connection
        .prepare_cached(
            "INSERT INTO main.dock_change(unit, place, table_name, row_key, new_key, key_text, op, columns, key_columns, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )
        .and_then(|mut statement| {
            // As the primary key compares them: the body says how they are spelled.
            let code = |key: &[Value]| keycode::encode(&table.fold(key));
            let (row_key, new_key) = (code(&key), new_key.as_deref().map(code));
            let columns = (serde_json::json!(heading.columns).to_string(), serde_json::json!(heading.key).to_string());
            statement.execute((unit, place, &heading.name, row_key, new_key, display_key(&key), op, columns.0, columns.1, body))
        })
        .map_err(|source| LocalError::of_sql(path, "keep a local change", source))?;
    Ok(Ok(()))
}

/// Takes back what was kept of a unit.
pub(super) fn drop_changes(connection: &Connection, path: &Path, unit: UnitNo) -> Result<(), LocalError> {
    connection
        .execute("DELETE FROM main.dock_change WHERE unit = ?1", [unit.0.cast_signed()])
        .map(drop)
        .map_err(|source| LocalError::of_sql(path, "take back a unit of local changes", source))
}

/// Returns the key that a row has after a change; `None` if it is gone.
pub(super) fn key_after(heading: &TableHeading, change: &RowChange) -> Option<RowKey> {
    let mut key = change.key(&heading.key);
    match change {
        RowChange::Insert { .. } => {}
        RowChange::Delete { .. } => return None,
        RowChange::Update { fields, .. } => {
            for (value, column) in key.iter_mut().zip(&heading.key) {
                if let Some(field) = fields.iter().find(|field| field.column == *column) {
                    *value = field.after.clone();
                }
            }
        }
    }
    Some(key)
}

/// Keeps the head of a unit whose changes are kept.
pub(super) fn store_head(connection: &Connection, path: &Path, head: &UploadHead) -> Result<(), LocalError> {
    let hidden = serde_json::json!(head.hidden.iter().map(|unit| unit.0).collect::<Vec<_>>()).to_string();
    connection
        .prepare_cached(
            "INSERT INTO main.dock_unit(unit, state, applied, revision, cut_at, label, hidden, changes)
             VALUES (?1, 'pending', ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .and_then(|mut statement| {
            let numbers = (head.number.0.cast_signed(), head.applied.0, head.revision.0, head.cut_at_micros);
            statement.execute((numbers.0, numbers.1, numbers.2, numbers.3, &head.label, hidden, head.changes.cast_signed()))
        })
        .map(drop)
        .map_err(|source| LocalError::of_sql(path, "keep a unit of local changes", source))
}

/// Returns the units that are not shown in the tables.
pub(super) fn suspended(connection: &Connection, path: &Path) -> Result<Vec<UnitNo>, LocalError> {
    let read = || -> rusqlite::Result<Vec<UnitNo>> {
        let mut statement = connection.prepare_cached("SELECT unit FROM main.dock_unit WHERE suspended IS NOT NULL ORDER BY unit")?;
        statement.query_map([], |row| row.get::<_, i64>(0).map(|unit| UnitNo(unit.cast_unsigned())))?.collect()
    };
    read().map_err(|source| LocalError::of_sql(path, "look for suspended units", source))
}

/// Returns the number of the next unit.
pub(super) fn next_unit(connection: &Connection, path: &Path) -> Result<UnitNo, LocalError> {
    connection
        .query_row("SELECT next_unit FROM main.dock_state", [], |row| row.get::<_, i64>(0))
        .optional()
        .map(|number| UnitNo(number.unwrap_or(1).cast_unsigned()))
        .map_err(|source| LocalError::of_sql(path, "read the number of the next unit", source))
}
