//! Declared foreign keys of a local database, looked up by ourselves: rows are applied with SQLite's own enforcement off (R10).
//!
//! What was captured is the whole effect of a change, so no action of a foreign key may run. But a pending unit that would leave a
//! reference without its row cannot be shown (R20), and that is found here.

use super::sqlite::{SqlValue, quote_name};
use crate::model::value::Value;
use rusqlite::{Connection, OptionalExtension, params_from_iter};

/// A declared foreign key between two tables of the node.
#[derive(Debug)]
pub(super) struct Reference {
    /// The table that refers.
    pub(super) child: String,
    /// Its columns.
    pub(super) columns: Vec<String>,
    /// The table that is referred to.
    pub(super) parent: String,
    /// Its columns.
    pub(super) referred: Vec<String>,
    /// By what they are compared, whatever the columns that refer say.
    collations: Vec<String>,
}

/// Every declared foreign key among the replicated tables.
#[derive(Debug, Default)]
pub(super) struct References {
    all: Vec<Reference>,
    /// Those that no table declares, for they may point at nothing.
    open: Vec<Reference>,
}

impl References {
    /// Reads them from the catalogue.
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<References> {
        let mut statement = connection.prepare_cached(
            "SELECT m.name, f.id, p.name, f.\"from\", f.\"to\"
             FROM dock_table AS d JOIN sqlite_master AS m ON m.type = 'table' AND m.name = d.name COLLATE NOCASE,
                  pragma_foreign_key_list(m.name) AS f JOIN sqlite_master AS p ON p.type = 'table' AND p.name = f.\"table\" COLLATE NOCASE
             ORDER BY m.name, f.id, f.seq",
        )?;
        let mut rows = statement.query([])?;
        let mut all: Vec<Reference> = Vec::new();
        let mut last: Option<(String, i64)> = None;
        while let Some(row) = rows.next()? {
            let (child, id, parent): (String, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let (from, to): (String, Option<String>) = (row.get(3)?, row.get(4)?);
            if last.as_ref() != Some(&(child.clone(), id)) {
                last = Some((child.clone(), id));
                all.push(Reference { child, columns: Vec::new(), parent, referred: Vec::new(), collations: Vec::new() });
            }
            if let Some(reference) = all.last_mut() {
                reference.columns.push(from);
                reference.referred.extend(to);
            }
        }
        for reference in &mut all {
            if reference.referred.is_empty() {
                let mut statement = connection.prepare_cached("SELECT name FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk")?;
                reference.referred = statement.query_map([&reference.parent], |row| row.get(0))?.collect::<Result<_, _>>()?;
            }
        }
        let mut collation = connection.prepare_cached(
            "SELECT x.coll FROM pragma_index_list(?1) AS i, pragma_index_xinfo(i.name) AS x
             WHERE i.\"unique\" = 1 AND x.key = 1 AND x.name = ?2 COLLATE NOCASE LIMIT 1",
        )?;
        for reference in &mut all {
            for column in &reference.referred {
                let found: Option<String> = collation.query_row([&reference.parent, column], |row| row.get(0)).optional()?;
                // An INTEGER PRIMARY KEY has no index.
                reference.collations.push(found.unwrap_or_else(|| "BINARY".to_owned()));
            }
        }
        // One that SQLite itself could not check.
        all.retain(|reference| reference.columns.len() == reference.referred.len());
        Ok(References { all, open: open_references(connection)? })
    }

    /// Returns those by which a table refers.
    pub(super) fn from(&self, table: &str) -> impl Iterator<Item = &Reference> {
        self.all.iter().filter(move |reference| reference.child.eq_ignore_ascii_case(table))
    }

    /// Returns those by which a table refers, and those by which it may refer to a row that is not here.
    pub(super) fn by_which(&self, table: &str) -> impl Iterator<Item = &Reference> {
        self.from(table).chain(self.open.iter().filter(move |reference| reference.child.eq_ignore_ascii_case(table)))
    }

    /// Returns those by which a table is referred to.
    pub(super) fn to(&self, table: &str) -> impl Iterator<Item = &Reference> {
        self.all.iter().filter(move |reference| reference.parent.eq_ignore_ascii_case(table))
    }
}

/// Reads from the rules of the tables what their declarations leave out.
fn open_references(connection: &Connection) -> rusqlite::Result<Vec<Reference>> {
    let mut statement = connection.prepare_cached(
        "SELECT r.table_name, o.value ->> 'table', o.value -> 'columns', o.value -> 'referred'
         FROM dock_merge_rules AS r, json_each(r.rules, '$.open_references') AS o",
    )?;
    let list = |text: String, column| {
        serde_json::from_str(&text)
            .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error)))
    };
    let read = |row: &rusqlite::Row<'_>| {
        let referred: Vec<String> = list(row.get(3)?, 3)?;
        let collations = vec!["BINARY".to_owned(); referred.len()];
        Ok(Reference { child: row.get(0)?, columns: list(row.get(2)?, 2)?, parent: row.get(1)?, referred, collations })
    };
    statement.query_map([], read)?.collect()
}

impl Reference {
    fn has_row(&self, connection: &Connection, table: &str, columns: &[String], values: &[Value]) -> rusqlite::Result<bool> {
        let term = |(place, (name, collation)): (usize, (&String, &String))| {
            format!("{} = ?{} COLLATE {}", quote_name(name), place + 1, quote_name(collation))
        };
        let terms: Vec<String> = columns.iter().zip(&self.collations).enumerate().map(term).collect();
        let select = format!("SELECT 1 FROM main.{} WHERE {} LIMIT 1", quote_name(table), terms.join(" AND "));
        let mut statement = connection.prepare_cached(&select)?;
        Ok(statement.query_row(params_from_iter(values.iter().map(SqlValue)), |_| Ok(())).optional()?.is_some())
    }

    /// Whether the row that values of `columns` refer to is there. A NULL among them refers to nothing.
    pub(super) fn is_satisfied(&self, connection: &Connection, values: &[Value]) -> rusqlite::Result<bool> {
        Ok(values.iter().any(Value::is_null) || self.has_row(connection, &self.parent, &self.referred, values)?)
    }

    /// Whether any row refers to values of `referred`.
    pub(super) fn is_used(&self, connection: &Connection, values: &[Value]) -> rusqlite::Result<bool> {
        Ok(!values.iter().any(Value::is_null) && self.has_row(connection, &self.child, &self.columns, values)?)
    }
}
