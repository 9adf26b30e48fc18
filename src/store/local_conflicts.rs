//! The list of local changes that were lost, refused, ignored or returned: to read, to mark as seen, and to write once more (MI-9, X-4).
//!
//! A change that is written once more is an ordinary local change: triggers capture it and the next cut makes a unit of it.

use super::local::{LocalDatabase, LocalError};
use super::local_table::LocalTable;
use super::sqlite::{SqlValue, quote_name, value_of};
use crate::base::ids::UnitNo;
use crate::model::event::TableHeading;
use crate::model::keycode;
use crate::model::value::{RowKey, Value, display_key};
use crate::model::value_json::from_json;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, params, params_from_iter};

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConflictEntry {
    /// Its number here.
    pub id: i64,
    /// The unit of local changes.
    pub unit: i64,
    /// Its number on the server; `None` if it was never one there.
    pub server_id: Option<i64>,
    /// The table.
    pub table: String,
    /// The row.
    pub key: RowKey,
    /// The column; `None` = the whole row.
    pub column: Option<String>,
    /// The server's value as it was known here.
    pub base: Option<Value>,
    /// The server's value then.
    pub server: Option<Value>,
    /// The value of this node.
    pub client: Option<Value>,
    /// Whose value stands.
    pub winner: String,
    /// What decided.
    pub rule: String,
    /// What a person or the server said.
    pub reason: Option<String>,
    /// When, microseconds since 1970.
    pub at_micros: i64,
    /// `new`, `seen` or `resubmitted`.
    pub state: String,
}

/// Why a change cannot be written once more.
#[derive(Debug, thiserror::Error)]
pub enum ResubmitError {
    /// The local database failed.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// There is no such entry.
    #[error("there is no conflict {id}")]
    Unknown {
        /// The number asked for.
        id: i64,
    },
    /// The entry, or what was given, does not say what to write.
    #[error("conflict {id}, table {table}, key {key}: {reason}")]
    Impossible {
        /// The entry.
        id: i64,
        /// Its table.
        table: String,
        /// Its key.
        key: String,
        /// Why.
        reason: String,
    },
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resubmitted {
    /// The table.
    pub table: String,
    /// The row.
    pub key: RowKey,
    /// `insert`, `update` or `delete`.
    pub op: &'static str,
    /// The values, by column.
    pub values: Vec<(String, Value)>,
}

const SELECT: &str = "SELECT id, unit, server_id, table_name, row_key, column_name, base, server, client, winner, rule, reason, at, state
                      FROM dock_conflict";

impl LocalDatabase {
    /// Returns the list, newest first: at most `limit` entries, and only those that nobody has looked at if asked for.
    ///
    /// # Errors
    /// A statement failed, or an entry is damaged.
    pub fn conflicts(&self, only_new: bool, limit: u32) -> Result<Vec<ConflictEntry>, LocalError> {
        let condition = if only_new { "WHERE state = 'new'" } else { "" };
        self.read_conflicts(&format!("{SELECT} {condition} ORDER BY id DESC LIMIT ?1"), &[&limit])
    }

    /// Returns how many entries about units of those ranges nobody has looked at.
    ///
    /// # Errors
    /// A statement failed.
    pub fn new_conflicts_of(&self, ranges: &[(UnitNo, UnitNo)]) -> Result<u64, LocalError> {
        let sql = |source| LocalError::of_sql(self.path(), "count the conflicts of units", source);
        let mut count = self
            .connection()
            .prepare_cached("SELECT count(*) FROM dock_conflict WHERE state = 'new' AND unit BETWEEN ?1 AND ?2")
            .map_err(sql)?;
        let mut found = 0;
        for (first, last) in ranges {
            found += count.query_row((first.0 as i64, last.0 as i64), |row| row.get::<_, i64>(0)).map_err(sql)?.unsigned_abs();
        }
        Ok(found)
    }

    /// Returns one entry.
    ///
    /// # Errors
    /// As [`LocalDatabase::conflicts`].
    pub fn conflict(&self, id: i64) -> Result<Option<ConflictEntry>, LocalError> {
        Ok(self.read_conflicts(&format!("{SELECT} WHERE id = ?1"), &[&id])?.pop())
    }

    fn read_conflicts(&self, select: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<ConflictEntry>, LocalError> {
        let path = self.path();
        let wrong = |column: &'static str, value: String| LocalError::State { path: path.to_owned(), column, value };
        type Stored = (ConflictEntry, Vec<u8>, [Option<String>; 3]);
        let read = || -> rusqlite::Result<Vec<Stored>> {
            let mut statement = self.connection().prepare_cached(select)?;
            let rows = statement.query_map(values, |row| {
                let entry = ConflictEntry {
                    id: row.get(0)?,
                    unit: row.get(1)?,
                    server_id: row.get(2)?,
                    table: row.get(3)?,
                    key: Vec::new(),
                    column: row.get(5)?,
                    base: None,
                    server: None,
                    client: None,
                    winner: row.get(9)?,
                    rule: row.get(10)?,
                    reason: row.get(11)?,
                    at_micros: row.get(12)?,
                    state: row.get(13)?,
                };
                Ok((entry, row.get(4)?, [row.get(6)?, row.get(7)?, row.get(8)?]))
            })?;
            rows.collect()
        };
        let rows = read().map_err(|source| LocalError::of_sql(path, "read the list of conflicts", source))?;
        rows.into_iter()
            .map(|(mut entry, key, texts)| {
                entry.key = keycode::decode(&key).ok_or_else(|| wrong("dock_conflict.row_key", hex::encode(&key)))?;
                let slots = [&mut entry.base, &mut entry.server, &mut entry.client];
                for (slot, text) in slots.into_iter().zip(texts) {
                    if let Some(text) = text {
                        let json = serde_json::from_str(&text).ok();
                        *slot = Some(json.as_ref().and_then(from_json).ok_or_else(|| wrong("dock_conflict", text))?);
                    }
                }
                Ok(entry)
            })
            .collect()
    }

    /// Notes that somebody has looked at an entry. Returns whether there is one.
    ///
    /// # Errors
    /// A statement failed.
    pub fn conflict_seen(&self, id: i64) -> Result<bool, LocalError> {
        let sql = "UPDATE dock_conflict SET state = CASE state WHEN 'new' THEN 'seen' ELSE state END WHERE id = ?1";
        let changed = self.connection().execute(sql, [id]);
        changed.map(|rows| rows > 0).map_err(|source| LocalError::of_sql(self.path(), "note that a conflict was seen", source))
    }

    /// Writes what was lost once more, as a local program would: the values of this node, with those of `set` in their place. A row that is
    /// gone is inserted, from all entries of the same unit and row.
    ///
    /// # Errors
    /// There is no such entry, a column is not there, or the row does not fit.
    pub fn resubmit(&self, id: i64, set: &[(String, Value)]) -> Result<Resubmitted, ResubmitError> {
        let entry = self.conflict(id)?.ok_or(ResubmitError::Unknown { id })?;
        let impossible =
            |reason: String| ResubmitError::Impossible { id, table: entry.table.clone(), key: display_key(&entry.key), reason };
        let sql = |doing| move |source| LocalError::of_sql(self.path(), doing, source);
        let connection = self.connection();
        let heading = self.key_heading(&entry.table)?.ok_or_else(|| impossible("the table is not in this database".to_owned()))?;
        let table = match LocalTable::look_up(connection, self.path(), &heading) {
            Ok(table) if heading.key.len() == entry.key.len() => table,
            Ok(_) => return Err(impossible("the table has another key now".to_owned())),
            Err(error) => return Err(impossible(error.to_string())),
        };
        if let Some((name, _)) = set.iter().find(|(name, _)| !table.stored.iter().any(|stored| stored.eq_ignore_ascii_case(name))) {
            return Err(impossible(format!("it has no column {name}")));
        }
        let of_row = self.read_conflicts(
            &format!("{SELECT} WHERE unit = ?1 AND table_name = ?2 AND row_key = ?3 AND column_name IS NOT NULL ORDER BY id"),
            &[&entry.unit, &entry.table, &keycode::encode(&entry.key)],
        )?;
        let transaction = rusqlite::Transaction::new_unchecked(connection, rusqlite::TransactionBehavior::Immediate)
            .map_err(sql("begin to write a change once more"))?;
        let there = row_is_there(connection, &heading, &entry.key).map_err(sql("look for the row"))?;
        let is_delete = entry.column.is_none() && entry.client.is_none() && set.is_empty();
        let mut values: Vec<(String, Value)> = Vec::new();
        let taken = |found: &ConflictEntry| Some((found.column.clone()?, found.client.clone()?));
        if there {
            values.extend(taken(&entry));
        } else {
            values.extend(of_row.iter().filter_map(taken));
        }
        for (name, value) in set {
            values.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
            values.push((name.clone(), value.clone()));
        }
        if !there && !is_delete {
            let key = heading.key.iter().filter_map(|place| heading.columns.get(usize::from(*place))).zip(&entry.key);
            for (name, value) in
                key.filter(|(name, _)| !values.iter().any(|(known, _)| known.eq_ignore_ascii_case(name))).collect::<Vec<_>>()
            {
                values.push((name.clone(), value.clone()));
            }
        }
        if values.is_empty() && !is_delete {
            return Err(impossible("it has no value of this node; say with --set what to write".to_owned()));
        }
        let op = match (is_delete, there) {
            (true, _) => "delete",
            (false, true) => "update",
            (false, false) => "insert",
        };
        // As a local program: our triggers capture it, and its effects are the database's own.
        let fired = |on| connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, on).map(drop);
        fired(true).map_err(sql("let triggers fire"))?;
        let written = write(connection, &heading, &entry.key, op, &values);
        fired(false).map_err(sql("keep triggers from firing"))?;
        match written {
            Ok(()) => {}
            Err(source) if super::local_rebase::is_refusal(&source) => return Err(impossible(format!("it does not fit: {source}"))),
            Err(source) => return Err(sql("write a change once more")(source).into()),
        }
        connection
            .execute("UPDATE dock_conflict SET state = 'resubmitted' WHERE id = ?1", params![id])
            .map_err(sql("note that a change was written once more"))?;
        transaction.commit().map_err(sql("commit a change that is written once more"))?;
        Ok(Resubmitted { table: table.name, key: entry.key, op, values })
    }

    /// Returns a replicated table with its key columns.
    fn key_heading(&self, table: &str) -> Result<Option<TableHeading>, LocalError> {
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut statement = self.connection().prepare_cached(
                "SELECT c.name FROM dock_table AS d, pragma_table_info(d.name) AS c WHERE d.name = ?1 AND c.pk > 0 ORDER BY c.pk",
            )?;
            statement.query_map([table], |row| row.get(0))?.collect()
        };
        let columns = read().map_err(|source| LocalError::of_sql(self.path(), "look up a table", source))?;
        let key = (0u16..).take(columns.len()).collect();
        Ok((!columns.is_empty()).then(|| TableHeading { name: table.to_owned(), columns, key }))
    }
}

fn condition(heading: &TableHeading, first: usize) -> String {
    let terms = heading.columns.iter().enumerate().map(|(place, name)| format!("{} = ?{}", quote_name(name), place + first));
    terms.collect::<Vec<_>>().join(" AND ")
}

fn row_is_there(connection: &Connection, heading: &TableHeading, key: &[Value]) -> rusqlite::Result<bool> {
    let select = format!("SELECT 1 FROM main.{} WHERE {}", quote_name(&heading.name), condition(heading, 1));
    let found = connection.query_row(&select, params_from_iter(key.iter().map(SqlValue)), |row| row.get_ref(0).map(value_of)).optional()?;
    Ok(found.is_some())
}

fn write(connection: &Connection, heading: &TableHeading, key: &[Value], op: &str, values: &[(String, Value)]) -> rusqlite::Result<()> {
    let table = quote_name(&heading.name);
    let names: Vec<String> = values.iter().map(|(name, _)| quote_name(name)).collect();
    let mut bound: Vec<&Value> = values.iter().map(|(_, value)| value).collect();
    let sql = match op {
        "insert" => format!("INSERT OR ABORT INTO main.{table} ({}) VALUES ({})", names.join(", "), vec!["?"; names.len()].join(", ")),
        "update" => {
            bound.extend(key);
            let terms: Vec<String> = names.iter().enumerate().map(|(place, name)| format!("{name} = ?{}", place + 1)).collect();
            format!("UPDATE OR ABORT main.{table} SET {} WHERE {}", terms.join(", "), condition(heading, names.len() + 1))
        }
        _ => {
            bound = key.iter().collect();
            format!("DELETE FROM main.{table} WHERE {}", condition(heading, 1))
        }
    };
    connection.execute(&sql, params_from_iter(bound.into_iter().map(SqlValue))).map(drop)
}
