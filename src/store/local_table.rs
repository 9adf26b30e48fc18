//! A table of a download file, looked up in the local database: the only way from a name of the wire to SQL (T12).

use super::local::LocalError;
use super::sqlite::quote_name;
use crate::model::event::TableHeading;
use crate::model::operation::Operation;
use crate::model::schema::TypeClass;
use crate::model::value::{Row, RowKey, Value};
use rusqlite::{Connection, OptionalExtension};
use std::path::Path;

/// Why a heading of a file cannot be applied here.
#[derive(Debug, thiserror::Error)]
pub enum TableProblem {
    /// The local database failed.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The name is none of the replicated tables: our own, SQLite's, a view, a program's table, or unknown.
    #[error("table `{}`: it is not a table that this node replicates", .table.escape_debug())]
    NotReplicated {
        /// The name in the file.
        table: String,
    },
    /// The replicated table is gone from the local database, or is no ordinary table any more.
    #[error("table {table}: it is no longer in the local database")]
    Gone {
        /// The table.
        table: String,
    },
    /// A column of the file is not in the local table.
    #[error("table {table}: it has no column `{}`", .column.escape_debug())]
    NoColumn {
        /// The table.
        table: String,
        /// The name in the file.
        column: String,
    },
    /// The file and the local table disagree on the primary key.
    #[error("table {table}: its primary key is ({local}), the file says ({file})")]
    Key {
        /// The table.
        table: String,
        /// Local key columns.
        local: String,
        /// Key columns of the file.
        file: String,
    },
}

/// One heading, resolved. Statements name columns as the local catalogue spells them.
#[derive(Debug)]
pub(super) struct LocalTable {
    /// Name in the local catalogue.
    pub(super) name: String,
    /// Columns that are stored (not generated), in local order.
    pub(super) stored: Vec<String>,
    /// `INSERT .. ON CONFLICT DO UPDATE` with the written columns in heading order.
    pub(super) put_sql: String,
    /// `DELETE` by key.
    pub(super) delete_sql: String,
    /// `SELECT` of all stored columns by key.
    pub(super) select_sql: String,
    quoted: String,
    /// `INSERT INTO .. (..)` and `ON CONFLICT ..` of `put_sql`.
    put_ends: (String, String),
    where_key: String,
    /// Key columns in the order of the heading's key, quoted.
    key_names: Vec<String>,
    /// For each heading column its position in `stored`; `None` for one that is generated here.
    positions: Vec<Option<usize>>,
    /// Key, as indices into the heading.
    key: Vec<usize>,
}

struct LocalColumn {
    name: String,
    decl_type: String,
    pk: i64,
    hidden: i64,
    binary: bool,
}

impl LocalTable {
    /// Looks a heading up among the replicated tables.
    pub(super) fn look_up(connection: &Connection, path: &Path, heading: &TableHeading) -> Result<LocalTable, TableProblem> {
        let sql = |source| LocalError::of_sql(path, "look a table up", source);
        let replicated: Option<String> = connection
            .query_row("SELECT name FROM dock_table WHERE name = ?1", [&heading.name], |row| row.get(0))
            .optional()
            .map_err(sql)?;
        let reserved = |name: &str| ["dock_", "sqlite_"].iter().any(|prefix| name.to_ascii_lowercase().starts_with(prefix));
        let Some(replicated) = replicated.filter(|name| !reserved(name)) else {
            return Err(TableProblem::NotReplicated { table: heading.name.clone() });
        };
        let name: Option<String> = connection
            .query_row(
                "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name = ?1 COLLATE NOCASE",
                [&replicated],
                |row| row.get(0),
            )
            .optional()
            .map_err(sql)?;
        let Some(name) = name else { return Err(TableProblem::Gone { table: replicated }) };
        let columns = local_columns(connection, &name).map_err(sql)?;
        LocalTable::resolve(name, &columns, heading)
    }

    fn resolve(name: String, columns: &[LocalColumn], heading: &TableHeading) -> Result<LocalTable, TableProblem> {
        let mut found = Vec::with_capacity(heading.columns.len());
        for column in &heading.columns {
            let local = columns.iter().find(|local| local.name.eq_ignore_ascii_case(column));
            found.push(local.ok_or_else(|| TableProblem::NoColumn { table: name.clone(), column: column.clone() })?);
        }
        let key: Vec<usize> = heading.key.iter().map(|index| usize::from(*index)).collect();
        let mut file_key: Vec<&str> = key.iter().filter_map(|index| found.get(*index)).map(|local| local.name.as_str()).collect();
        let mut local_key: Vec<&str> = columns.iter().filter(|local| local.pk > 0).map(|local| local.name.as_str()).collect();
        file_key.sort_unstable();
        local_key.sort_unstable();
        if local_key.is_empty() || file_key != local_key || key.len() != file_key.len() {
            return Err(TableProblem::Key { table: name, local: local_key.join(", "), file: file_key.join(", ") });
        }

        let stored: Vec<&LocalColumn> = columns.iter().filter(|local| local.hidden == 0).collect();
        let position = |local: &LocalColumn| stored.iter().position(|candidate| candidate.name == local.name);
        let positions: Vec<Option<usize>> = found.iter().map(|local| position(local)).collect();
        let written: Vec<&LocalColumn> =
            found.iter().zip(&positions).filter(|(_, position)| position.is_some()).map(|(local, _)| *local).collect();
        let quoted = quote_name(&name);
        let key_columns: Vec<String> = key.iter().filter_map(|index| found.get(*index)).map(|local| quote_name(&local.name)).collect();
        // A key can be equal and yet another value (`a` and `A` under NOCASE, 1 and 1.0 without a type): then it is written too.
        let assigned = |local: &LocalColumn| local.pk == 0 || !local.binary || TypeClass::of_declared(&local.decl_type) == TypeClass::Any;
        let assignments: Vec<String> =
            written.iter().filter(|local| assigned(local)).map(|local| format!("{0} = excluded.{0}", quote_name(&local.name))).collect();
        let action = if assignments.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {}", assignments.join(", ")) };
        let names: Vec<String> = written.iter().map(|local| quote_name(&local.name)).collect();
        let put_ends = (
            format!("INSERT OR ABORT INTO {quoted} ({})", names.join(", ")),
            format!("ON CONFLICT ({}) DO {action}", key_columns.join(", ")),
        );
        let put_sql = format!("{} VALUES ({}) {}", put_ends.0, marks(names.len()), put_ends.1);
        let where_key = key_columns.iter().map(|column| format!("{column} = ?")).collect::<Vec<_>>().join(" AND ");
        let all: Vec<String> = stored.iter().map(|local| quote_name(&local.name)).collect();
        Ok(LocalTable {
            put_sql,
            delete_sql: format!("DELETE FROM {quoted} WHERE {where_key}"),
            select_sql: format!("SELECT {} FROM {quoted} WHERE {where_key}", all.join(", ")),
            stored: stored.iter().map(|local| local.name.clone()).collect(),
            name,
            quoted,
            put_ends,
            where_key,
            key_names: key_columns,
            positions,
            key,
        })
    }

    /// Returns what is wrong with an operation, given its heading: the file's values must match the file's names.
    pub(super) fn check(&self, operation: &Operation) -> Result<(), String> {
        let key_length = |key: &RowKey| {
            if key.len() == self.key.len() {
                Ok(())
            } else {
                Err(format!("a key of {} values where {} are declared", key.len(), self.key.len()))
            }
        };
        match operation {
            Operation::Delete { key } => key_length(key),
            Operation::Put { row } if row.len() == self.positions.len() => Ok(()),
            Operation::Put { row } => Err(format!("a row of {} values where {} are declared", row.len(), self.positions.len())),
            Operation::Update { key, changes } => {
                key_length(key)?;
                match changes.iter().find(|(column, _)| usize::from(*column) >= self.positions.len()) {
                    Some((column, _)) => Err(format!("column {column} where {} are declared", self.positions.len())),
                    None => Ok(()),
                }
            }
        }
    }

    /// Returns the key of a row in heading order.
    pub(super) fn key_of(&self, row: &[Value]) -> RowKey {
        self.key.iter().filter_map(|index| row.get(*index)).cloned().collect()
    }

    /// Returns whether columns are the key.
    pub(super) fn has_key_columns(&self, columns: &[String]) -> bool {
        let is_key = |column: &String| self.key_names.iter().any(|name| name.eq_ignore_ascii_case(&quote_name(column)));
        columns.len() == self.key_names.len() && columns.iter().all(is_key)
    }

    /// Returns the values of a row that are written, in the order of `put_sql`.
    pub(super) fn written_values<'v>(&self, row: &'v [Value]) -> impl Iterator<Item = &'v Value> {
        row.iter().zip(&self.positions).filter(|(_, position)| position.is_some()).map(|(value, _)| value)
    }

    /// Returns a whole row as changes of stored columns.
    pub(super) fn written_row<'v>(&self, row: &'v [Value]) -> Vec<(usize, &'v Value)> {
        self.positions.iter().zip(row).filter_map(|(position, value)| Some(((*position)?, value))).collect()
    }

    /// Returns the changes of stored columns.
    pub(super) fn written_changes<'v>(&self, changes: &'v [(u16, Value)]) -> Vec<(usize, &'v Value)> {
        changes.iter().filter_map(|(column, value)| Some(((*self.positions.get(usize::from(*column))?)?, value))).collect()
    }

    /// Returns the table's name, quoted.
    pub(super) fn quoted(&self) -> &str {
        &self.quoted
    }

    /// Returns the key columns in the order of the heading's key, quoted.
    pub(super) fn key_columns(&self) -> impl Iterator<Item = &str> {
        self.key_names.iter().map(String::as_str)
    }

    /// Returns the stored columns, quoted.
    pub(super) fn stored_columns(&self) -> impl Iterator<Item = String> {
        self.stored.iter().map(|name| quote_name(name))
    }

    /// Returns the columns that a put writes: place in the heading, and name, quoted.
    pub(super) fn written_columns(&self) -> impl Iterator<Item = (usize, String)> {
        let stored = |position: Option<usize>| position.and_then(|position| self.stored.get(position));
        self.positions.iter().enumerate().filter_map(move |(place, position)| Some((place, quote_name(stored(*position)?))))
    }

    /// Returns the put of every row that a `SELECT` with a `WHERE` gives.
    pub(super) fn put_from(&self, select: &str) -> String {
        format!("{} {select} {}", self.put_ends.0, self.put_ends.1)
    }

    /// Returns the assignments of changed heading columns, each to what `value` says; without any, one that changes nothing.
    pub(super) fn assignments(&self, changed: &[u16], value: impl Fn(usize) -> String) -> String {
        let written = self.written_columns().filter(|(place, _)| changed.iter().any(|column| usize::from(*column) == *place));
        let mut terms: Vec<String> = written.map(|(place, name)| format!("{name} = {}", value(place))).collect();
        if terms.is_empty() {
            terms.extend(self.stored_columns().take(1).map(|name| format!("{name} = t.{name}")));
        }
        terms.join(", ")
    }

    /// Returns the stored columns of a final image: `s.cN` where changed, else the column of `t`.
    pub(super) fn image_columns(&self, changed: &[u16]) -> String {
        let place_of = |stored: usize| self.positions.iter().position(|position| *position == Some(stored));
        let is_changed = |place: &usize| changed.iter().any(|column| usize::from(*column) == *place);
        let terms = self.stored_columns().enumerate().map(|(stored, name)| match place_of(stored).filter(is_changed) {
            Some(place) => format!("s.c{place}"),
            None => format!("t.{name}"),
        });
        terms.collect::<Vec<_>>().join(", ")
    }

    /// Returns an `UPDATE` of those stored columns by key; without columns one that only finds the row.
    pub(super) fn update_sql(&self, columns: &[usize]) -> String {
        let mut assignments: Vec<String> =
            columns.iter().filter_map(|index| self.stored.get(*index)).map(|name| format!("{} = ?", quote_name(name))).collect();
        if assignments.is_empty() {
            assignments.extend(self.stored.first().map(|name| format!("{0} = {0}", quote_name(name))));
        }
        format!("UPDATE OR ABORT {} SET {} WHERE {}", self.quoted, assignments.join(", "), self.where_key)
    }

    /// Returns an `INSERT` of those columns.
    pub(super) fn insert_sql(&self, columns: &[&str]) -> String {
        let names: Vec<String> = columns.iter().map(|name| quote_name(name)).collect();
        format!("INSERT OR ABORT INTO {} ({}) VALUES ({})", self.quoted, names.join(", "), marks(names.len()))
    }

    /// Returns the row as it must be in the end: the old one, if there is one, with the changes. A column that is in neither keeps its default.
    pub(super) fn image(&self, old: Option<Row>, changes: &[(usize, &Value)]) -> Vec<(&str, Value)> {
        let mut values: Vec<Option<Value>> = match old {
            Some(old) => old.into_iter().map(Some).collect(),
            None => vec![None; self.stored.len()],
        };
        for (index, value) in changes {
            if let Some(slot) = values.get_mut(*index) {
                *slot = Some((*value).clone());
            }
        }
        self.stored.iter().zip(values).filter_map(|(name, value)| Some((name.as_str(), value?))).collect()
    }
}

fn marks(count: usize) -> String {
    vec!["?"; count].join(", ")
}

/// Reads the columns of a table; whether a key column compares by bytes is told by the index of the primary key.
fn local_columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<LocalColumn>> {
    let mut statement = connection.prepare(
        "SELECT c.name, c.type, c.pk, c.hidden,
                NOT EXISTS (SELECT 1 FROM pragma_index_list(?1) AS i, pragma_index_xinfo(i.name) AS x
                            WHERE i.origin = 'pk' AND x.name = c.name AND x.key = 1 AND upper(x.coll) <> 'BINARY')
         FROM pragma_table_xinfo(?1) AS c",
    )?;
    let columns = statement.query_map([table], |row| {
        Ok(LocalColumn { name: row.get(0)?, decl_type: row.get(1)?, pk: row.get(2)?, hidden: row.get(3)?, binary: row.get(4)? })
    })?;
    columns.collect()
}
