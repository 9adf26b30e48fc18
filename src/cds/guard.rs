//! Row conditions: windows, row predicates, and the filters of a chain's joins.
//!
//! All three look at one row and at nothing else but the window day, so they give the same on both sides of a unit unless
//! the row or the day differs.

use super::{Cds, CdsError, layout};
use crate::model::dock::{Dock, TableIndex};
use crate::model::value::{Collation, Value};
use crate::rules::graph::{Guard, Vertex};
pub(crate) use crate::rules::window::{day_of, window_holds};
use crate::store::predicate::Evaluator;
use rusqlite::Connection;
use std::collections::BTreeSet;

/// Returns whether a row passes the filters of a chain vertex.
pub(crate) fn fits(cds: &Cds, vertex: &Vertex, row: &[Value]) -> bool {
    vertex.filters.iter().all(|(column, wanted)| {
        let collation = cds.dock.tables[vertex.table].columns.get(*column).map_or(Collation::Binary, |column| column.collation);
        row.get(*column).is_some_and(|value| !value.is_null() && value.fold(collation) == *wanted)
    })
}

/// Rows of a table whose window date cannot be read: they stay at every node that sees them.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct UnreadableDates {
    /// The table.
    pub table: String,
    /// The column.
    pub column: String,
    /// How many rows.
    pub rows: u64,
}

/// Counts the dates of windows that are neither NULL nor readable.
pub fn unreadable_dates(conn: &Connection, dock: &Dock) -> rusqlite::Result<Vec<UnreadableDates>> {
    let of_object = dock.objects.iter().filter_map(|object| Some((object.table, object.window.as_ref()?.column)));
    let of_rule = dock.rules.iter().filter_map(|rule| Some((dock.objects.get(rule.object)?.table, rule.window.as_ref()?.column)));
    let columns: BTreeSet<(TableIndex, usize)> = of_object.chain(of_rule).collect();
    let mut found = Vec::new();
    for (table, column) in columns {
        let Some(declared) = dock.tables.get(table) else { continue };
        let sql = format!(
            "SELECT count(*) FROM {} WHERE c{column} IS NOT NULL AND typeof(c{column}) <> 'integer'
             AND (typeof(c{column}) <> 'text' OR date(substr(c{column}, 1, 10)) IS NOT substr(c{column}, 1, 10))",
            layout::data_table(table)
        );
        let rows: i64 = conn.query_row(&sql, [], |row| row.get(0))?;
        if rows > 0 {
            let name = declared.columns.get(column).map(|column| column.name.clone()).unwrap_or_default();
            found.push(UnreadableDates { table: declared.name.clone(), column: name, rows: rows.unsigned_abs() });
        }
    }
    Ok(found)
}

impl Cds {
    /// Returns whether a row meets a guard on a window day.
    pub(crate) fn guard_holds(&self, table: TableIndex, guard: &Guard, row: &[Value], day: i64) -> Result<bool, CdsError> {
        Ok(guard.windows.iter().all(|window| window_holds(window, row, day)) && self.predicate_holds(table, guard, row)?)
    }

    /// Returns whether a row meets the row predicate of a guard.
    pub(crate) fn predicate_holds(&self, table: TableIndex, guard: &Guard, row: &[Value]) -> Result<bool, CdsError> {
        let Some(predicate) = &guard.predicate else { return Ok(true) };
        let mut evaluators = self.evaluators.borrow_mut();
        let of_table = evaluators.entry(table).or_default();
        if let Some(known) = of_table.get(&predicate.sql) {
            return Ok(known.matches(row)?);
        }
        let evaluator = Evaluator::for_table(predicate, &self.dock.tables[table])?;
        let fits = evaluator.matches(row)?;
        of_table.insert(predicate.sql.clone(), evaluator);
        Ok(fits)
    }
}
