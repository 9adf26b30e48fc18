//! What a local program changed though only the server does (R11), and what cannot be sent: put back, and listed with its values.

use super::local::LocalError;
use super::local_before::{CutTable, Pending};
use super::local_log::Touched;
use super::sqlite::{SqlValue, quote_name, value_of};
use crate::base::clock;
use crate::model::dock::Direction;
use crate::model::keycode;
use crate::model::value::{Row, Value, display_key};
use crate::model::value_json::to_json;
use rusqlite::{Connection, OptionalExtension, params_from_iter};
use std::path::Path;

/// Puts back what a cut found.
pub(super) struct PutBack<'a> {
    pub(super) connection: &'a Connection,
    pub(super) path: &'a Path,
    pub(super) tables: &'a [CutTable],
    pub(super) touched: &'a Touched,
    pub(super) pending: &'a Pending<'a>,
}

/// An entry of `dock_conflict` that the node makes by itself.
pub(super) struct Listed<'a> {
    pub(super) table: &'a CutTable,
    pub(super) key: &'a [Value],
    pub(super) column: Option<&'a str>,
    pub(super) server: Option<serde_json::Value>,
    pub(super) client: Option<serde_json::Value>,
    pub(super) rule: &'a str,
    pub(super) reason: &'a str,
}

/// Writes an entry of `dock_conflict`. It belongs to no unit: nothing of it was sent.
pub(super) fn list(connection: &Connection, path: &Path, listed: &Listed<'_>) -> Result<(), LocalError> {
    let text = |json: &Option<serde_json::Value>| json.as_ref().map(serde_json::Value::to_string);
    let (server, client) = (text(&listed.server), text(&listed.client));
    connection
        .prepare_cached(
            "INSERT INTO main.dock_conflict(unit, table_name, row_key, key_text, column_name, base, server, client, winner, rule, reason, at)
             VALUES (0, ?1, ?2, ?3, ?4, ?5, ?5, ?6, 'server', ?7, ?8, ?9)",
        )
        .and_then(|mut statement| {
            statement.execute((
                &listed.table.capture.table,
                keycode::encode(listed.key),
                display_key(listed.key),
                listed.column,
                server,
                client,
                listed.rule,
                listed.reason,
                clock::now_micros(),
            ))
        })
        .map(drop)
        .map_err(|source| LocalError::of_sql(path, "list what is not sent", source))
}

/// Returns a row as a JSON object by column name.
pub(super) fn row_json(table: &CutTable, row: &[Value]) -> serde_json::Value {
    table.capture.columns.iter().zip(row).map(|(name, value)| (name.clone(), to_json(value))).collect::<serde_json::Map<_, _>>().into()
}

impl PutBack<'_> {
    fn sql(&self, source: rusqlite::Error) -> LocalError {
        LocalError::of_sql(self.path, "put back what only the server changes", source)
    }

    /// Puts back every touched row of a `download` table and every `download_only` column. Returns how many rows.
    pub(super) fn run(&self) -> Result<u64, LocalError> {
        let mut count = 0;
        for (place, table) in self.tables.iter().enumerate() {
            let rows = self.touched.rows.iter().filter(|row| row.table == place).filter_map(|row| row.keys.first());
            if table.direction == Direction::Download {
                count += self.table(table, rows)?;
            } else if table.capture.columns.iter().any(|name| table.rules.is_download_only(name)) {
                count += self.columns(table, rows)?;
            }
        }
        Ok(count)
    }

    /// Puts whole rows back: first all of them go, so that none stands in another's way.
    fn table<'k>(&self, table: &CutTable, keys: impl Iterator<Item = &'k Vec<Value>>) -> Result<u64, LocalError> {
        let mut wrong: Vec<(Option<Row>, Option<Row>)> = Vec::new();
        for key in keys {
            let Some(entry) = table.base(self.connection, key).map_err(|source| self.sql(source))? else { continue };
            let local = table.row(self.connection, key).map_err(|source| self.sql(source))?;
            if local != entry.row {
                wrong.push((local, entry.row));
            }
        }
        let terms: Vec<String> = table
            .capture
            .key
            .iter()
            .enumerate()
            .filter_map(|(at, place)| Some(format!("{} = ?{}", quote_name(table.capture.columns.get(*place)?), at + 1)))
            .collect();
        let name = quote_name(&table.capture.table);
        let delete = format!("DELETE FROM main.{name} WHERE {}", terms.join(" AND "));
        for local in wrong.iter().filter_map(|(local, _)| local.as_ref()) {
            self.run_sql(&delete, &table.key_of(local))?;
        }
        let columns: Vec<String> = table.capture.columns.iter().map(|name| quote_name(name)).collect();
        let marks = vec!["?"; columns.len()].join(", ");
        let insert = format!("INSERT OR ABORT INTO main.{name} ({}) VALUES ({marks})", columns.join(", "));
        for (local, server) in &wrong {
            if let Some(server) = server {
                self.run_unless_kept_out(table, &insert, server)?;
            }
            let Some(key) = local.as_ref().or(server.as_ref()).map(|row| table.key_of(row)) else { continue };
            let json = |row: &Option<Row>| row.as_ref().map(|row| row_json(table, row));
            self.list(table, &key, None, json(server), json(local))?;
        }
        Ok(wrong.len() as u64)
    }

    /// Puts single columns back.
    fn columns<'k>(&self, table: &CutTable, keys: impl Iterator<Item = &'k Vec<Value>>) -> Result<u64, LocalError> {
        let mut count = 0;
        for key in keys {
            let Some(local) = table.row(self.connection, key).map_err(|source| self.sql(source))? else { continue };
            let held = self.pending.before(table, std::slice::from_ref(key))?.flatten();
            // A new row of the node's own: what the server puts there comes back with it.
            let Some(server) = held.and_then(|held| held.base) else { continue };
            let columns = table.capture.columns.iter().zip(local.iter().zip(&server));
            let wrong: Vec<(&String, &Value, &Value)> = columns
                .filter(|(name, (is, should))| table.rules.is_download_only(name) && is != should)
                .map(|(name, (is, should))| (name, is, should))
                .collect();
            if wrong.is_empty() {
                continue;
            }
            let key = table.key_of(&local);
            let assignments: Vec<String> =
                wrong.iter().enumerate().map(|(at, (name, _, _))| format!("{} = ?{}", quote_name(name), at + 1)).collect();
            let terms =
                table.capture.key.iter().enumerate().filter_map(|(at, place)| {
                    Some(format!("{} = ?{}", quote_name(table.capture.columns.get(*place)?), wrong.len() + at + 1))
                });
            let update = format!(
                "UPDATE OR ABORT main.{} SET {} WHERE {}",
                quote_name(&table.capture.table),
                assignments.join(", "),
                terms.collect::<Vec<_>>().join(" AND ")
            );
            let values: Row = wrong.iter().map(|(_, _, should)| (*should).clone()).chain(key.iter().cloned()).collect();
            self.run_unless_kept_out(table, &update, &values)?;
            for (name, is, should) in wrong {
                self.list(table, &key, Some(name), Some(to_json(should)), Some(to_json(is)))?;
            }
            count += 1;
        }
        Ok(count)
    }

    /// Runs a statement that a row of a local program may keep from its end, e.g. by a unique value: nothing stops for that.
    fn run_unless_kept_out(&self, table: &CutTable, sql: &str, values: &[Value]) -> Result<(), LocalError> {
        match self.run_sql(sql, values) {
            Err(LocalError::Sql { source, .. }) if source.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => {
                tracing::error!(stage = "cut", table = table.capture.table, %source, "the server's value cannot be put back");
                Ok(())
            }
            other => other,
        }
    }

    fn run_sql(&self, sql: &str, values: &[Value]) -> Result<(), LocalError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(params_from_iter(values.iter().map(SqlValue))))
            .map(drop)
            .map_err(|source| self.sql(source))
    }

    fn list(
        &self,
        table: &CutTable,
        key: &[Value],
        column: Option<&str>,
        server: Option<serde_json::Value>,
        client: Option<serde_json::Value>,
    ) -> Result<(), LocalError> {
        let reason = "only the server changes it; the local change was put back and not sent";
        list(self.connection, self.path, &Listed { table, key, column, server, client, rule: "download-only", reason })
    }

    /// Lists rows whose key is NULL, each once. Returns how many are new.
    pub(super) fn list_null_keys(&self) -> Result<u64, LocalError> {
        let mut count = 0;
        for table in self.touched.null_keys.iter().filter_map(|place| self.tables.get(*place)) {
            let names: Vec<String> = table.capture.columns.iter().map(|name| quote_name(name)).collect();
            let key = table.capture.key.iter().filter_map(|place| names.get(*place));
            let nulls: Vec<String> = key.map(|name| format!("{name} IS NULL")).collect();
            let select = format!("SELECT {} FROM main.{} WHERE {}", names.join(", "), quote_name(&table.capture.table), nulls.join(" OR "));
            let mut statement = self.connection.prepare(&select).map_err(|source| self.sql(source))?;
            let mut rows = statement.query([]).map_err(|source| self.sql(source))?;
            while let Some(row) = rows.next().map_err(|source| self.sql(source))? {
                let values = (0..names.len()).map(|at| row.get_ref(at).map(value_of));
                let values: Row = values.collect::<Result<_, _>>().map_err(|source| self.sql(source))?;
                let client = row_json(table, &values);
                let known: Option<i64> = self
                    .connection
                    .prepare_cached("SELECT id FROM main.dock_conflict WHERE rule = 'null-key' AND table_name = ?1 AND client = ?2")
                    .and_then(|mut statement| statement.query_row((&table.capture.table, client.to_string()), |row| row.get(0)).optional())
                    .map_err(|source| self.sql(source))?;
                if known.is_some() {
                    continue;
                }
                let reason = "its primary key is NULL, so the row cannot be told apart from others and is not sent; give it a key";
                let key = table.key_of(&values);
                let listed = Listed { table, key: &key, column: None, server: None, client: Some(client), rule: "null-key", reason };
                list(self.connection, self.path, &listed)?;
                count += 1;
            }
        }
        Ok(count)
    }
}
