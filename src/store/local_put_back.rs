//! What a local program changed though only the server does (R11), and what no file can carry: put back, and listed with its values.
//!
//! - All rows go first and come then, so that none stands in another's way. What a constraint keeps out all the same stays as it is, is
//!   listed with the reason, and is found by a comparison with the server: nothing stops for it.
//! - No value is lost: what is too large to be listed is not put back.
//! - Memory holds the numbers of rows, never rows.

use super::capture::key_condition;
use super::local::LocalError;
use super::local_before::{CutTable, Pending};
use super::local_log::{Touched, TouchedRow};
use super::sqlite::{SqlValue, quote_name, value_of};
use crate::base::clock;
use crate::base::limits::{LISTED_VALUE_BYTES_MAX, PUT_BACK_PASSES_MAX};
use crate::model::dock::Direction;
use crate::model::keycode;
use crate::model::value::{Row, Value, display_key};
use crate::model::value_json::to_json;
use rusqlite::{Connection, OptionalExtension, params_from_iter};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

/// Puts back what a cut found.
pub(super) struct PutBack<'a> {
    pub(super) connection: &'a Connection,
    pub(super) path: &'a Path,
    pub(super) tables: &'a [CutTable],
    pub(super) touched: &'a Touched,
    pub(super) pending: &'a Pending<'a>,
    /// Touched rows of which something cannot be sent, and why.
    pub(super) unsent: &'a BTreeMap<usize, Rc<str>>,
}

/// What a put-back came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct PutBackCount {
    /// Rows that only the server changes.
    pub(super) download_only: u64,
    /// Rows of which something cannot be sent.
    pub(super) unsent: u64,
}

/// A row that is not what it is to be.
struct Wrong {
    local: Option<Row>,
    to_be: Option<Row>,
}

/// Columns of local programs with their values.
type OwnValues = Vec<(String, Value)>;
/// First and last entry of a row in `dock_conflict`.
type Entries = (i64, i64);

/// An entry of `dock_conflict` that the node makes by itself.
#[derive(Clone)]
struct Listed<'a> {
    table: &'a CutTable,
    key: &'a [Value],
    column: Option<&'a str>,
    server: Option<serde_json::Value>,
    client: Option<serde_json::Value>,
    rule: &'a str,
    reason: &'a str,
}

/// Writes an entry of `dock_conflict`, and returns its number. It belongs to no unit: nothing of it was sent.
fn list(connection: &Connection, path: &Path, listed: &Listed<'_>) -> Result<i64, LocalError> {
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
        .map(|_| connection.last_insert_rowid())
        .map_err(|source| LocalError::of_sql(path, "list what is not sent", source))
}

/// Returns a value as JSON; of one that no list can hold its size.
fn json(value: &Value) -> serde_json::Value {
    if value.size() > LISTED_VALUE_BYTES_MAX { format!("({} bytes)", value.size()).into() } else { to_json(value) }
}

/// Returns a statement on the one row whose key are the first parameters.
fn by_key(table: &CutTable, verb: &str, set: &str) -> String {
    let shape = &table.capture.shape;
    let key = key_condition(shape, "", |place, _| format!("?{}", place + 1), "=");
    format!("{verb} main.{} {set} WHERE {key}", quote_name(&table.capture.table))
}

/// Returns a row as a JSON object by column name.
fn row_json(table: &CutTable, row: &[Value]) -> serde_json::Value {
    table.capture.columns.iter().zip(row).map(|(name, value)| (name.clone(), json(value))).collect::<serde_json::Map<_, _>>().into()
}

impl PutBack<'_> {
    fn sql(&self, source: rusqlite::Error) -> LocalError {
        LocalError::of_sql(self.path, "put back what only the server changes", source)
    }

    /// Puts back every touched row of a `download` table, every `download_only` column, and every row of which something cannot be sent.
    pub(super) fn run(&self) -> Result<PutBackCount, LocalError> {
        let mut count = PutBackCount::default();
        // Each with its entries in the list.
        let mut wrong = BTreeMap::new();
        for (number, touched) in self.touched.rows.iter().enumerate() {
            let Some(table) = self.tables.get(touched.table) else { continue };
            let is_unsent = self.unsent.contains_key(&number);
            let is_concerned = is_unsent
                || table.direction == Direction::Download
                || table.capture.columns.iter().any(|name| table.rules.is_download_only(name));
            if !is_concerned {
                continue;
            }
            let Some(row) = self.compare(number, table, touched)? else {
                if is_unsent && self.pending.before(table, &self.touched.keys(number))?.is_none() {
                    count.unsent += 1;
                    let local = table.row(self.connection, &touched.key()).map_err(|source| self.sql(source))?;
                    let (entries, _) = self.list_row(number, table, &Wrong { local, to_be: None })?;
                    self.note_kept_out(entries, "a trigger of ours was missing, so nobody knows what it was before")?;
                }
                continue;
            };
            *(if is_unsent { &mut count.unsent } else { &mut count.download_only }) += 1;
            let (entries, kept_out) = self.list_row(number, table, &row)?;
            match kept_out {
                Some(reason) => self.note_kept_out(entries, &reason)?,
                None => drop(wrong.insert(number, entries)),
            }
        }
        let mut by_removal = BTreeSet::new();
        for _ in 0..PUT_BACK_PASSES_MAX {
            let kept_out = self.pass(&wrong, &by_removal)?;
            if kept_out.is_empty() {
                return Ok(count);
            }
            for (number, reason) in kept_out {
                let Some(touched) = self.touched.rows.get(number) else { continue };
                let is_whole = self.tables.get(touched.table).is_none_or(|table| self.is_whole(number, table));
                if (is_whole || !by_removal.insert(number))
                    && let Some(entries) = wrong.remove(&number)
                {
                    self.note_kept_out(entries, &reason)?;
                }
            }
        }
        for entries in wrong.into_values() {
            self.note_kept_out(entries, "other local rows stand in its way")?;
        }
        Ok(count)
    }

    /// Puts rows back, all or none: returns those that a constraint kept out, and why. Single columns are written in place where the row
    /// is not to be removed first.
    fn pass(&self, wrong: &BTreeMap<usize, Entries>, by_removal: &BTreeSet<usize>) -> Result<BTreeMap<usize, String>, LocalError> {
        let run = |sql| self.connection.execute_batch(sql).map_err(|source| self.sql(source));
        let rows = || {
            let row = |number: &usize| self.touched.rows.get(*number).and_then(|row| Some((*number, self.tables.get(row.table)?, row)));
            wrong.keys().filter_map(row)
        };
        let in_place = |number: usize, table: &CutTable| !self.is_whole(number, table) && !by_removal.contains(&number);
        run("SAVEPOINT dock_put_back")?;
        let mut staying: BTreeMap<usize, (Option<Row>, OwnValues)> = BTreeMap::new();
        for (number, table, touched) in rows().filter(|(number, table, _)| !in_place(*number, table)) {
            let Some(Wrong { local: Some(local), to_be }) = self.compare(number, table, touched)? else { continue };
            let key = table.key_of(&local);
            let own = self.own_values(table, &key)?;
            let is_whole = self.is_whole(number, table);
            if !own.is_empty() || !is_whole {
                staying.insert(number, (to_be.filter(|_| !is_whole), own));
            }
            self.run_sql(&by_key(table, "DELETE FROM", ""), &key)?;
        }
        let mut kept_out = BTreeMap::new();
        let mut note = |number, written: Result<(), LocalError>| match written {
            Err(LocalError::Sql { source, .. }) if source.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => {
                kept_out.insert(number, source.to_string());
                Ok(())
            }
            other => other,
        };
        for (number, table, touched) in rows().filter(|(number, table, _)| in_place(*number, table)) {
            if let Some(Wrong { local: Some(local), to_be: Some(to_be) }) = self.compare(number, table, touched)? {
                note(number, self.update(table, &local, &to_be))?;
            }
        }
        for (number, table, _) in rows().filter(|(number, table, _)| !in_place(*number, table)) {
            let (row, own) = staying.remove(&number).unwrap_or_default();
            let to_be = match row {
                Some(row) => Some(row),
                None if self.is_whole(number, table) => {
                    self.pending.before(table, &self.touched.keys(number))?.flatten().map(|held| held.row)
                }
                None => None,
            };
            if let Some(to_be) = to_be {
                note(number, self.insert(table, to_be, own))?;
            }
        }
        run(if kept_out.is_empty() { "RELEASE dock_put_back" } else { "ROLLBACK TO dock_put_back; RELEASE dock_put_back" })?;
        Ok(kept_out)
    }

    fn update(&self, table: &CutTable, local: &Row, to_be: &Row) -> Result<(), LocalError> {
        let columns = table.capture.columns.iter().zip(local.iter().zip(to_be));
        let wrong: Vec<(String, &Value)> =
            columns.filter(|(_, (is, to_be))| is != to_be).map(|(name, (_, to_be))| (quote_name(name), to_be)).collect();
        let key = table.key_of(local);
        let assignments: Vec<String> =
            wrong.iter().enumerate().map(|(at, (name, _))| format!("{name} = ?{}", key.len() + at + 1)).collect();
        let values: Row = key.into_iter().chain(wrong.iter().map(|(_, value)| (*value).clone())).collect();
        self.run_sql(&by_key(table, "UPDATE OR ABORT", &format!("SET {}", assignments.join(", "))), &values)
    }

    fn insert(&self, table: &CutTable, mut values: Row, own: OwnValues) -> Result<(), LocalError> {
        let names = table.capture.columns.iter().chain(own.iter().map(|(name, _)| name));
        let names: Vec<String> = names.map(|name| quote_name(name)).collect();
        let marks = vec!["?"; names.len()].join(", ");
        values.extend(own.into_iter().map(|(_, value)| value));
        let name = quote_name(&table.capture.table);
        self.run_sql(&format!("INSERT OR ABORT INTO main.{name} ({}) VALUES ({marks})", names.join(", ")), &values)
    }

    /// Whether a row is put back whole, not by single columns.
    fn is_whole(&self, number: usize, table: &CutTable) -> bool {
        table.direction == Direction::Download || self.unsent.contains_key(&number)
    }

    /// Returns what a row is and what it is to be, if that is not the same.
    fn compare(&self, number: usize, table: &CutTable, touched: &TouchedRow) -> Result<Option<Wrong>, LocalError> {
        let local = table.row(self.connection, &touched.key()).map_err(|source| self.sql(source))?;
        // Nothing was noted of a row that was touched while our triggers were missing.
        let Some(held) = self.pending.before(table, &self.touched.keys(number))? else { return Ok(None) };
        let to_be = if self.is_whole(number, table) {
            held.map(|held| held.row)
        } else {
            // A row that is new with this unit: what the server puts there comes back with it.
            let (Some(local), Some(held)) = (&local, held) else { return Ok(None) };
            // Of a row that the server does not have yet, what an earlier unit brings.
            let former = held.base.unwrap_or(held.row);
            let columns = table.capture.columns.iter().zip(local.iter().zip(former));
            Some(columns.map(|(name, (is, former))| if table.rules.is_download_only(name) { former } else { is.clone() }).collect())
        };
        Ok((local != to_be).then_some(Wrong { local, to_be }))
    }

    /// Returns the values of columns that a local program added.
    fn own_values(&self, table: &CutTable, key: &[Value]) -> Result<OwnValues, LocalError> {
        let captured = |name: &String| table.capture.columns.iter().any(|column| column.eq_ignore_ascii_case(name));
        let columns = table.capture.shape.columns.iter().filter(|column| !column.generated).map(|column| &column.name);
        let names: Vec<&String> = columns.filter(|name| !captured(name)).collect();
        if names.is_empty() {
            return Ok(OwnValues::new());
        }
        let quoted: Vec<String> = names.iter().map(|name| quote_name(name)).collect();
        let values: Option<Row> = self
            .connection
            .prepare_cached(&by_key(table, &format!("SELECT {} FROM", quoted.join(", ")), ""))
            .and_then(|mut statement| {
                let read = |row: &rusqlite::Row<'_>| (0..names.len()).map(|at| row.get_ref(at).map(value_of)).collect();
                statement.query_row(params_from_iter(key.iter().map(SqlValue)), read).optional()
            })
            .map_err(|source| self.sql(source))?;
        Ok(names.into_iter().cloned().zip(values.unwrap_or_default()).collect())
    }

    fn run_sql(&self, sql: &str, values: &[Value]) -> Result<(), LocalError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(params_from_iter(values.iter().map(SqlValue))))
            .map(drop)
            .map_err(|source| self.sql(source))
    }

    /// Lists a row that is to be put back: whole, or by its columns. Returns its entries, and why it cannot be put back.
    fn list_row(&self, number: usize, table: &CutTable, row: &Wrong) -> Result<(Entries, Option<String>), LocalError> {
        let key = row.local.as_ref().or(row.to_be.as_ref()).map(|row| table.key_of(row)).unwrap_or_default();
        let (rule, reason) = match self.unsent.get(&number) {
            Some(reason) => ("too-large", format!("{reason}; the local change was put back and not sent")),
            None => ("download-only", "only the server changes it; the local change was put back and not sent".to_owned()),
        };
        let listed = Listed { table, key: &key, column: None, server: None, client: None, rule, reason: &reason };
        let mut entries: Option<Entries> = None;
        let mut list = |listed: &Listed<'_>| -> Result<(), LocalError> {
            let id = list(self.connection, self.path, listed)?;
            entries = Some((entries.map_or(id, |(first, _)| first), id));
            Ok(())
        };
        match (&row.local, &row.to_be) {
            (Some(local), Some(to_be)) if !self.is_whole(number, table) => {
                let columns = table.capture.columns.iter().zip(local.iter().zip(to_be));
                for (name, (is, to_be)) in columns.filter(|(_, (is, to_be))| is != to_be) {
                    list(&Listed { column: Some(name), server: Some(json(to_be)), client: Some(json(is)), ..listed })?;
                }
            }
            (local, to_be) => {
                let json = |row: &Option<Row>| row.as_ref().map(|row| row_json(table, row));
                list(&Listed { server: json(to_be), client: json(local), ..listed })?;
            }
        }
        let largest = row.local.iter().flatten().map(Value::size).max().unwrap_or(0);
        let too_large = (largest > LISTED_VALUE_BYTES_MAX)
            .then(|| format!("a value of it has {largest} bytes, more than the list of conflicts can keep, and would be lost"));
        Ok((entries.unwrap_or_default(), too_large))
    }

    /// Says of a row that it was not put back.
    fn note_kept_out(&self, entries: Entries, why: &str) -> Result<(), LocalError> {
        let reason = format!("its change is not sent, and it could not be put back: {why}; dockmaster verify NODE --repair mends it");
        tracing::error!(stage = "cut", conflict = entries.0, why, "a local change that is not sent could not be put back");
        self.connection
            .prepare_cached("UPDATE main.dock_conflict SET reason = ?3 WHERE id BETWEEN ?1 AND ?2")
            .and_then(|mut statement| statement.execute((entries.0, entries.1, reason)))
            .map(drop)
            .map_err(|source| self.sql(source))
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
