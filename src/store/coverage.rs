//! Rows of the server database that no rule can show to any node, counted for a warning of `check`.
//!
//! It is asked of the live data, before anything is installed: an order without an owner, a customer without an order.
//! Rows that only wait for a node with the right attribute are not counted; a rule's time window is not looked at.

use crate::model::dock::{Dock, Hop, Reference, RuleKind, RulePath};
use crate::model::value::Value;
use crate::store::sqlite::{ServerDatabase, SqlValue, StoreError, quote_name};
use rusqlite::params_from_iter;

/// What the rules of an object leave out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uncovered {
    /// Name of the object.
    pub object: String,
    /// Its primary table.
    pub table: String,
    /// Rows of the table.
    pub rows: u64,
    /// Rows that no rule can show.
    pub unseen: u64,
    /// Primary key of one of them.
    pub example: Vec<Value>,
}

impl ServerDatabase {
    /// Returns the objects that have rows which no rule can show, in the order of the definition. Objects that are shown
    /// to nobody on purpose are left out.
    ///
    /// # Errors
    /// A statement failed.
    pub fn uncovered(&self, dock: &Dock) -> Result<Vec<Uncovered>, StoreError> {
        let mut found = Vec::new();
        for (number, object) in dock.objects.iter().enumerate() {
            let mut values = Vec::new();
            let mut conditions = Vec::new();
            let mut whole = false;
            for (place, rule) in dock.rules.iter().enumerate().filter(|(_, rule)| rule.object == number) {
                let shown = match &rule.kind {
                    RuleKind::Nobody => continue,
                    RuleKind::Everyone => vec!["true".to_owned()],
                    RuleKind::Path(path) => vec![path_condition(dock, object.table, path, &mut values)],
                    RuleKind::Referenced(by) => by.iter().map(|reference| reference_condition(dock, reference)).collect(),
                };
                whole |= rule.kind == RuleKind::Everyone && rule.predicate.is_none();
                let shown = if shown.is_empty() { "false".to_owned() } else { shown.join(" OR ") };
                conditions.push(match rule.predicate {
                    Some(_) => format!("(t.\"dock_where_{place}\" AND ({shown}))"),
                    None => format!("({shown})"),
                });
            }
            if whole || conditions.is_empty() {
                continue;
            }
            let table = &dock.tables[object.table];
            // The expression stands where only the row's own columns can be meant.
            let predicates: String = dock
                .rules
                .iter()
                .enumerate()
                .filter(|(_, rule)| rule.object == number)
                .filter_map(|(place, rule)| Some(format!(", coalesce(({}\n), 0) AS \"dock_where_{place}\"", rule.predicate.as_ref()?.sql)))
                .collect();
            let from = format!("(SELECT *{predicates} FROM main.{}) t", quote_name(&table.name));
            let unseen = format!("NOT coalesce({}, 0)", conditions.join(" OR "));
            let key: Vec<String> = table.key.iter().map(|column| format!("t.{}", quote_name(&table.columns[*column].name))).collect();
            let action = format!("looking for rows of {} that no rule shows", table.name);
            let fault = || self.fault(&action);
            let count = format!("SELECT count(*), count(*) FILTER (WHERE {unseen}) FROM {from}");
            let (rows, unseen_rows) = self
                .connection
                .query_row(&count, params_from_iter(values.iter().map(SqlValue)), |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))
                .map_err(fault())?;
            if unseen_rows == 0 {
                continue;
            }
            let one = format!("SELECT {} FROM {from} WHERE {unseen} LIMIT 1", key.join(", "));
            let example = self
                .connection
                .query_row(&one, params_from_iter(values.iter().map(SqlValue)), |row| {
                    (0..key.len()).map(|at| row.get_ref(at).map(crate::store::sqlite::value_of)).collect()
                })
                .map_err(fault())?;
            found.push(Uncovered {
                object: object.name.clone(),
                table: table.name.clone(),
                rows: rows.unsigned_abs(),
                unseen: unseen_rows.unsigned_abs(),
                example,
            });
        }
        Ok(found)
    }
}

/// Returns the condition that a row's chain of joins ends in some value.
fn path_condition(dock: &Dock, table: usize, path: &RulePath, values: &mut Vec<Value>) -> String {
    let name = |table: usize, column: usize| quote_name(&dock.tables[table].columns[column].name);
    let Some((first, rest)) = path.hops.split_first() else {
        return path.start.iter().map(|column| format!("t.{} IS NOT NULL", name(table, *column))).collect::<Vec<_>>().join(" AND ");
    };
    let mut filter = |alias: &str, hop: &Hop| -> String {
        let terms = hop.filters.iter().map(|(column, value)| {
            values.push(value.clone());
            format!(" AND {alias}.{} = ?{}", name(hop.table, *column), values.len())
        });
        terms.collect()
    };
    let equal = |left: (&str, usize, &[usize]), right: (&str, usize, &[usize])| -> String {
        let terms = left.2.iter().zip(right.2).map(|(a, b)| format!("{}.{} = {}.{}", left.0, name(left.1, *a), right.0, name(right.1, *b)));
        terms.collect::<Vec<_>>().join(" AND ")
    };
    let mut from = format!("main.{} h0", quote_name(&dock.tables[first.table].name));
    let condition = format!("{}{}", equal(("t", table, &path.start), ("h0", first.table, &first.join)), filter("h0", first));
    let mut left = ("h0".to_owned(), first);
    for (number, hop) in rest.iter().enumerate() {
        let alias = format!("h{}", number + 1);
        let on = equal((&left.0, left.1.table, &left.1.out), (&alias, hop.table, &hop.join));
        from.push_str(&format!(" JOIN main.{} {alias} ON {on}{}", quote_name(&dock.tables[hop.table].name), filter(&alias, hop)));
        left = (alias, hop);
    }
    let ends: String = left.1.out.iter().map(|column| format!(" AND {}.{} IS NOT NULL", left.0, name(left.1.table, *column))).collect();
    format!("EXISTS (SELECT 1 FROM {from} WHERE {condition}{ends})")
}

/// Returns the condition that some row refers to this one.
fn reference_condition(dock: &Dock, reference: &Reference) -> String {
    let (from, to) = (&dock.tables[reference.table], &dock.tables[reference.to_table]);
    let terms = reference.columns.iter().zip(&reference.to_columns).map(|(column, referred)| {
        // The referred column first: its collation decides.
        format!("t.{} = s.{}", quote_name(&to.columns[*referred].name), quote_name(&from.columns[*column].name))
    });
    format!("EXISTS (SELECT 1 FROM main.{} s WHERE {})", quote_name(&from.name), terms.collect::<Vec<_>>().join(" AND "))
}
