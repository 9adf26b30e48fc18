//! Comparing the data store with the server's tables, and what was found (R6).
//!
//! Both sides come in the order of the key, so a comparison is one pass over each and holds one row of each in memory. Its
//! outcome is a list of ordinary row changes, in that order: whatever happened to capture, a unit is made of it like any other.

use super::rows::{key_of, read_row};
use super::unit::{RowChange, UnitInput};
use super::{Cds, CdsError};
use crate::base::limits::RECONCILED_KEPT_MAX;
use crate::cds::layout::StoppedTable;
use crate::model::dock::{DockTable, TableIndex};
use crate::model::value::{Row, Value};
use rusqlite::{Connection, params};
use std::cmp::Ordering;

/// How many rows of a table differed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Found {
    /// Rows that only the server had.
    pub missing: u64,
    /// Rows that only the data store had.
    pub extra: u64,
    /// Rows that both had, with other values.
    pub different: u64,
}

/// A comparison that was made.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Reconciled {
    /// The unit that it is part of.
    pub unit: i64,
    /// The table.
    pub table: String,
    /// Why, for people.
    pub reason: String,
    /// What was found.
    #[serde(flatten)]
    pub found: Found,
    /// When, seconds since 1970.
    pub at: i64,
}

impl Cds {
    /// Compares a table. `server` hands every row of it to the function that it is given, in the order of the key; `change`
    /// gets what differs, in the same order.
    ///
    /// # Errors
    /// Those of `server` and `change`; the rows come out of order; or a statement failed.
    pub fn compare<E: From<CdsError>>(
        &self,
        table: TableIndex,
        server: impl FnOnce(&mut dyn FnMut(Row) -> Result<(), E>) -> Result<(), E>,
        mut change: impl FnMut(RowChange),
    ) -> Result<Found, E> {
        let declared = &self.dock.tables[table];
        let mut statement = self.in_key_order(table)?;
        let mut cursor = statement.query([]).map_err(self.sql("compare a table"))?;
        let mut next = || -> Result<Option<Row>, CdsError> {
            let row = cursor.next().map_err(self.sql("compare a table"))?;
            row.map(|row| read_row(row, declared.columns.len())).transpose().map_err(self.sql("compare a table"))
        };
        let mut found = Found::default();
        let mut ours = next()?;
        let mut last: Option<Row> = None;
        server(&mut |theirs| {
            if last.as_ref().is_some_and(|last| order(declared, last, &theirs) != Ordering::Less) {
                let what = format!("rows of {} come out of order", declared.name);
                return Err(CdsError::Inconsistent { what }.into());
            }
            last = Some(pick_key(declared, &theirs));
            while let Some(row) = ours.take_if(|row| order(declared, row, &theirs) == Ordering::Less) {
                found.extra += 1;
                change(RowChange { table, key: key_of(declared, &row), row: None });
                ours = next()?;
            }
            match ours.take_if(|row| order(declared, row, &theirs) == Ordering::Equal) {
                None => {
                    found.missing += 1;
                    change(RowChange { table, key: key_of(declared, &theirs), row: Some(theirs) });
                }
                Some(row) => {
                    if row != theirs {
                        found.different += 1;
                        let (was, is) = (key_of(declared, &row), key_of(declared, &theirs));
                        if was != is {
                            // Equal to SQLite, but not by type and bytes: another row to everybody else.
                            change(RowChange { table, key: was, row: None });
                        }
                        change(RowChange { table, key: is, row: Some(theirs) });
                    }
                    ours = next()?;
                }
            }
            Ok(())
        })?;
        while let Some(row) = ours {
            found.extra += 1;
            change(RowChange { table, key: key_of(declared, &row), row: None });
            ours = next()?;
        }
        Ok(found)
    }

    /// Replaces the note of what stands still.
    pub(crate) fn note_stopped(&self, stopped: &[StoppedTable]) -> Result<(), CdsError> {
        let sql = self.sql("note stopped tables");
        self.conn.execute("DELETE FROM stopped", []).map_err(&sql)?;
        for StoppedTable { table, reason, cause } in stopped {
            self.conn
                .execute("INSERT INTO stopped(table_name, reason, cause) VALUES(?1, ?2, ?3)", params![table, reason, cause])
                .map_err(&sql)?;
        }
        Ok(())
    }

    /// Notes the comparisons of a unit; the oldest notes go.
    pub(super) fn note_reconciled(&self, input: &UnitInput) -> Result<(), CdsError> {
        let sql = self.sql("note a comparison");
        for Reconciled { unit, table, reason, found, at } in &input.reconciled {
            self.conn
                .execute(
                    "INSERT INTO reconciled(unit, table_name, reason, missing, extra, different, at) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    params![unit, table, reason, found.missing.cast_signed(), found.extra.cast_signed(), found.different.cast_signed(), at],
                )
                .map_err(&sql)?;
        }
        if !input.reconciled.is_empty() {
            self.conn
                .execute(
                    "DELETE FROM reconciled WHERE unit < (SELECT unit FROM reconciled ORDER BY unit DESC LIMIT 1 OFFSET ?1)",
                    [RECONCILED_KEPT_MAX],
                )
                .map_err(&sql)?;
        }
        Ok(())
    }
}

fn order(table: &DockTable, a: &[Value], b: &[Value]) -> Ordering {
    let compare = |column: &usize| a.get(*column).unwrap_or(&Value::Null).sql_order(b.get(*column).unwrap_or(&Value::Null));
    table.key.iter().map(compare).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

/// Returns a row that has nothing but its key.
fn pick_key(table: &DockTable, row: &[Value]) -> Row {
    let mut bare = vec![Value::Null; row.len()];
    for column in &table.key {
        if let (Some(place), Some(value)) = (bare.get_mut(*column), row.get(*column)) {
            place.clone_from(value);
        }
    }
    bare
}

/// Reads the comparisons from a unit on, newest first, at most `limit`.
pub fn read_reconciled(conn: &Connection, from: i64, limit: usize) -> rusqlite::Result<Vec<Reconciled>> {
    let mut statement = conn.prepare(
        "SELECT unit, table_name, reason, missing, extra, different, at FROM reconciled WHERE unit >= ?1 ORDER BY unit DESC, table_name LIMIT ?2",
    )?;
    let rows = statement.query_map(params![from, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
        let count = |at: usize| row.get::<_, i64>(at).map(i64::unsigned_abs);
        Ok(Reconciled {
            unit: row.get(0)?,
            table: row.get(1)?,
            reason: row.get(2)?,
            found: Found { missing: count(3)?, extra: count(4)?, different: count(5)? },
            at: row.get(6)?,
        })
    })?;
    rows.collect()
}
