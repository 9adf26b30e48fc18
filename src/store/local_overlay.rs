//! The server's rows that local work hides: `dock_base_N` lies over its table (architecture 3.4, R21).
//!
//! Invariants:
//! - Server view = the table, but for rows with an entry the entry says what the server has: a row, or none.
//! - An entry is found by one probe of its index: comparisons name the collation of the primary key and have no affinity.
//! - Only columns that are captured and still in the table take part; other columns are the local programs' own.

use super::local::LocalError;
use super::local_rules::{RulesError, read_rules};
use super::sqlite::{SqlValue, quote_name, value_of};
use crate::model::dock::Direction;
use crate::model::merge_rules::{ConflictPolicy, MergeRules};
use crate::model::value::{Collation, Row, RowKey, Value};
use rusqlite::{Connection, OptionalExtension, params_from_iter};
use std::cell::{Cell, OnceCell};
use std::path::Path;

/// The captured columns of a row, in the order of [`Overlay::columns`]; `None` where the table's default is to come.
pub(super) type Image = Vec<Option<Value>>;

/// A captured column that the table still has.
#[derive(Debug)]
pub(super) struct OverlayColumn {
    /// Its name in the local catalogue.
    pub(super) name: String,
    quoted: String,
    /// Its name in the base table.
    base: String,
    /// Whether differences are added.
    pub(super) is_sum: bool,
}

/// A captured table with its base entries.
#[derive(Debug)]
pub(super) struct Overlay {
    /// Name in the local catalogue.
    pub(super) table: String,
    quoted: String,
    base: String,
    /// What takes part.
    pub(super) columns: Vec<OverlayColumn>,
    /// The key, as indices into `columns`.
    pub(super) key: Vec<usize>,
    collations: Vec<String>,
    /// Every stored column of the table; those that are not captured, as indices into it.
    stored: Vec<String>,
    own: Vec<usize>,
    /// For each stored column its place in `columns`.
    places: Vec<Option<usize>>,
    /// How changes are brought together.
    pub(super) rules: MergeRules,
    /// Whether the rows are this node's alone (R31).
    pub(super) upload_only: bool,
    has_entries: Cell<bool>,
    /// What looks for the entry of a key: every row that the server sends asks for it.
    entry_sql: OnceCell<String>,
}

/// What the server has under a key.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: RowKey,
    pub(super) row: Option<Row>,
}

/// Values of stored columns that are not captured.
pub(super) type OwnValues = Vec<Value>;

struct Column {
    name: String,
    pk: i64,
    collation: String,
}

impl Overlay {
    /// Returns the overlay of a table; `None` if it is not captured, or no longer there.
    pub(super) fn look_up(connection: &Connection, path: &Path, table: &str) -> Result<Option<Overlay>, LocalError> {
        let sql = |source| LocalError::of_sql(path, "look up how a table is captured", source);
        let found: Option<(i64, String, String)> = connection
            .prepare_cached(
                "SELECT c.id, c.columns, c.row_key FROM dock_capture AS c JOIN sqlite_master AS m ON m.name = 'dock_base_' || c.id
                 WHERE c.table_name = ?1 COLLATE NOCASE ORDER BY c.id DESC LIMIT 1",
            )
            .and_then(|mut statement| statement.query_row([table], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional())
            .map_err(sql)?;
        let Some((id, columns, row_key)) = found else { return Ok(None) };
        let captured: Vec<String> = parse(path, "dock_capture.columns", &columns)?;
        let row_key: Vec<usize> = parse(path, "dock_capture.row_key", &row_key)?;
        let (name, present) = table_columns(connection, table).map_err(sql)?;
        let Some(name) = name else { return Ok(None) };
        let rules = read_rules(connection).map_err(|error| match error {
            RulesError::Sql(source) => sql(source),
            error => LocalError::State { path: path.to_owned(), column: "dock_merge_rules", value: error.to_string() },
        })?;
        let rules = rules.into_iter().find(|rules| rules.table.eq_ignore_ascii_case(&name));
        let (direction, rules) = rules.map(|found| (found.direction, found.rules)).unwrap_or_default();
        let is_there = |column: &str| present.iter().find(|there| there.name.eq_ignore_ascii_case(column));
        let mut kept = Vec::new();
        let mut columns = Vec::new();
        for (place, column) in captured.iter().enumerate() {
            let Some(there) = is_there(column) else { continue };
            kept.push(place);
            let is_sum = *rules.policy_of(&there.name) == ConflictPolicy::Sum && there.pk == 0;
            let (name, quoted) = (there.name.clone(), quote_name(&there.name));
            columns.push(OverlayColumn { name, quoted, base: format!("c{}", place + 1), is_sum });
        }
        let key: Vec<usize> = row_key.iter().filter_map(|place| kept.iter().position(|kept| kept == place)).collect();
        let mut declared: Vec<&str> = present.iter().filter(|column| column.pk > 0).map(|column| column.name.as_str()).collect();
        let mut ours: Vec<&str> = key.iter().filter_map(|place| columns.get(*place)).map(|column| column.name.as_str()).collect();
        declared.sort_unstable();
        ours.sort_unstable();
        if ours.is_empty() || declared != ours {
            return Ok(None); // Another key: another table, as far as entries are concerned.
        }
        let collations = key.iter().filter_map(|place| columns.get(*place)).filter_map(|column| is_there(&column.name));
        let collations = collations.map(|column| column.collation.clone()).collect();
        let places: Vec<Option<usize>> =
            present.iter().map(|there| columns.iter().position(|column: &OverlayColumn| column.name == there.name)).collect();
        let overlay = Overlay {
            quoted: quote_name(&name),
            table: name,
            base: format!("dock_base_{id}"),
            columns,
            key,
            collations,
            own: places.iter().enumerate().filter(|(_, place)| place.is_none()).map(|(index, _)| index).collect(),
            stored: present.into_iter().map(|column| column.name).collect(),
            places,
            rules,
            upload_only: direction == Direction::Upload,
            has_entries: Cell::new(false),
            entry_sql: OnceCell::new(),
        };
        let any = format!("SELECT EXISTS (SELECT 1 FROM main.{})", overlay.base);
        overlay.has_entries.set(connection.query_row(&any, [], |row| row.get(0)).map_err(sql)?);
        Ok(Some(overlay))
    }

    /// Whether any row of the table has an entry.
    pub(super) fn has_entries(&self) -> bool {
        self.has_entries.get()
    }

    /// Returns the place of a column among those that take part.
    pub(super) fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name.eq_ignore_ascii_case(name))
    }

    /// Returns the place of a stored column among those that take part.
    pub(super) fn place_of_stored(&self, stored: usize) -> Option<usize> {
        self.places.get(stored).copied().flatten()
    }

    /// Returns whether the table has columns of local programs.
    pub(super) fn has_own_columns(&self) -> bool {
        !self.own.is_empty()
    }

    /// Returns the key of an image; `None` if a part of it is not known.
    pub(super) fn key_of(&self, image: &Image) -> Option<RowKey> {
        self.key.iter().map(|place| image.get(*place).cloned().flatten()).collect()
    }

    /// Returns a key as the primary key compares it: equal keys have equal forms.
    pub(super) fn fold_key(&self, key: &[Value]) -> Vec<u8> {
        let collation = |place: usize| self.collations.get(place).and_then(|name| Collation::from_name(name)).unwrap_or_default();
        let folded: Vec<Value> = key.iter().enumerate().map(|(place, value)| value.fold(collation(place))).collect();
        crate::model::keycode::encode(&folded)
    }

    /// Returns the names of the key columns.
    pub(super) fn key_names(&self) -> Vec<String> {
        self.key_columns().map(|column| column.name.clone()).collect()
    }

    /// Returns the values of columns of a row; `None` if one of them does not take part.
    pub(super) fn values(&self, row: &Row, columns: &[String]) -> Option<Vec<Value>> {
        columns.iter().map(|column| row.get(self.column(column)?).cloned()).collect()
    }

    /// Whether the server has a row with those values that the table may not show. What other columns than the key hold is compared loosely,
    /// as entries do not know their collations: then a row may be found that is none.
    pub(super) fn is_hidden(&self, connection: &Connection, columns: &[String], values: &[Value]) -> rusqlite::Result<bool> {
        let of_key =
            |name: &String| columns.iter().position(|column| column.eq_ignore_ascii_case(name)).and_then(|at| values.get(at)).cloned();
        let key: Option<RowKey> = self.key_names().iter().map(of_key).collect();
        if let Some(key) = key.filter(|key| key.len() == columns.len()) {
            return Ok(self.entry(connection, &key)?.is_some_and(|entry| entry.row.is_some()));
        }
        let bases: Option<Vec<&str>> = columns.iter().map(|name| Some(self.columns.get(self.column(name)?)?.base.as_str())).collect();
        let Some(bases) = bases else { return Ok(false) };
        let is_like = |(place, base): (usize, &&str)| {
            let value = place + 1;
            format!("({base} = ?{value} OR rtrim(CAST({base} AS TEXT)) = rtrim(CAST(?{value} AS TEXT)) COLLATE NOCASE)")
        };
        let terms: Vec<String> = bases.iter().enumerate().map(is_like).collect();
        let select = format!("SELECT EXISTS (SELECT 1 FROM main.{} WHERE present = 1 AND {})", self.base, terms.join(" AND "));
        connection.prepare_cached(&select)?.query_row(params_from_iter(values.iter().map(SqlValue)), |row| row.get(0))
    }

    fn key_columns(&self) -> impl Iterator<Item = &OverlayColumn> {
        self.key.iter().filter_map(|place| self.columns.get(*place))
    }

    /// `b.c1 COLLATE "BINARY" = ..`, which the index of the base table serves.
    fn base_key(&self, value: impl Fn(usize, &OverlayColumn) -> String) -> String {
        let terms = self.key_columns().zip(&self.collations).enumerate();
        let terms = terms
            .map(|(place, (column, collation))| format!("b.{} COLLATE {} = {}", column.base, quote_name(collation), value(place, column)));
        terms.collect::<Vec<_>>().join(" AND ")
    }

    /// `"id" = ?1`, with the column's own affinity and collation.
    fn table_key(&self, first: usize) -> String {
        let terms = self.key_columns().enumerate().map(|(place, column)| format!("{} = ?{}", column.quoted, place + first));
        terms.collect::<Vec<_>>().join(" AND ")
    }

    fn names(&self) -> String {
        self.columns.iter().map(|column| column.quoted.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn base_names(&self) -> String {
        self.columns.iter().map(|column| column.base.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Returns the entry of a row.
    pub(super) fn entry(&self, connection: &Connection, key: &[Value]) -> rusqlite::Result<Option<Entry>> {
        if !self.has_entries() {
            return Ok(None);
        }
        let select = self.entry_sql.get_or_init(|| {
            let condition = self.base_key(|place, _| format!("?{}", place + 1));
            format!("SELECT present, {} FROM main.{} AS b WHERE {condition}", self.base_names(), self.base)
        });
        let mut statement = connection.prepare_cached(select)?;
        statement.query_row(params_from_iter(key.iter().map(SqlValue)), |row| self.entry_of(row)).optional()
    }

    fn entry_of(&self, row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
        let present: bool = row.get(0)?;
        let values = (1..=self.columns.len()).map(|place| row.get_ref(place).map(value_of)).collect::<Result<Row, _>>()?;
        let key = self.key.iter().filter_map(|place| values.get(*place)).cloned().collect();
        Ok(Entry { key, row: present.then_some(values) })
    }

    /// Returns every entry.
    pub(super) fn entries(&self, connection: &Connection) -> rusqlite::Result<Vec<Entry>> {
        if !self.has_entries() {
            return Ok(Vec::new());
        }
        let mut statement = connection.prepare_cached(&format!("SELECT present, {} FROM main.{} AS b", self.base_names(), self.base))?;
        statement.query_map([], |row| self.entry_of(row))?.collect()
    }

    /// Says what the server has under a key.
    pub(super) fn put_entry(&self, connection: &Connection, key: &[Value], row: Option<&[Value]>) -> rusqlite::Result<()> {
        let absent: Row;
        let values = match row {
            Some(row) => row,
            None => {
                let value = |place| self.key.iter().position(|key| *key == place).and_then(|place| key.get(place)).cloned();
                absent = (0..self.columns.len()).map(|place| value(place).unwrap_or(Value::Null)).collect();
                &absent
            }
        };
        let present = Value::Integer(i64::from(row.is_some()));
        let values = std::iter::once(&present).chain(values);
        let terms: Vec<String> =
            self.columns.iter().enumerate().map(|(place, column)| format!("{} = ?{}", column.base, place + 2)).collect();
        let condition = self.base_key(|place, _| format!("?{}", place + values.clone().count() + 1));
        let update = format!("UPDATE main.{} AS b SET present = ?1, {} WHERE {condition}", self.base, terms.join(", "));
        let bound = values.clone().chain(key).map(SqlValue);
        if connection.prepare_cached(&update)?.execute(params_from_iter(bound))? == 0 {
            let marks: Vec<String> = (0..self.columns.len()).map(|place| format!("?{}", place + 2)).collect();
            let (base, names) = (&self.base, self.base_names());
            let insert = format!("INSERT INTO main.{base}(present, settled, {names}) VALUES (?1, 1, {})", marks.join(", "));
            connection.prepare_cached(&insert)?.execute(params_from_iter(values.map(SqlValue)))?;
        }
        self.has_entries.set(true);
        Ok(())
    }

    /// Takes an entry away: the table's row is the server's.
    pub(super) fn delete_entry(&self, connection: &Connection, key: &[Value]) -> rusqlite::Result<()> {
        let condition = self.base_key(|place, _| format!("?{}", place + 1));
        let delete = format!("DELETE FROM main.{} AS b WHERE {condition}", self.base);
        connection.prepare_cached(&delete)?.execute(params_from_iter(key.iter().map(SqlValue)))?;
        Ok(())
    }

    /// Makes the entry say what the table has, if there is one or `always`. The table shows the server's rows.
    pub(super) fn refresh_entry(&self, connection: &Connection, key: &[Value], always: bool) -> rusqlite::Result<()> {
        if always || self.entry(connection, key)?.is_some() {
            let row = self.read_row(connection, key)?;
            self.put_entry(connection, key, row.as_deref())?;
        }
        Ok(())
    }

    /// Makes every entry say what the table has.
    pub(super) fn refresh_all(&self, connection: &Connection) -> rusqlite::Result<()> {
        for entry in self.entries(connection)? {
            self.refresh_entry(connection, &entry.key, true)?;
        }
        Ok(())
    }

    /// Returns the row as the table shows it.
    pub(super) fn read_row(&self, connection: &Connection, key: &[Value]) -> rusqlite::Result<Option<Row>> {
        let select = format!("SELECT {} FROM main.{} WHERE {}", self.names(), self.quoted, self.table_key(1));
        let mut statement = connection.prepare_cached(&select)?;
        let read = |row: &rusqlite::Row<'_>| (0..self.columns.len()).map(|place| row.get_ref(place).map(value_of)).collect();
        statement.query_row(params_from_iter(key.iter().map(SqlValue)), read).optional()
    }

    /// Returns what local programs keep in a row.
    pub(super) fn own_values(&self, connection: &Connection, key: &[Value]) -> rusqlite::Result<Option<OwnValues>> {
        if !self.has_own_columns() {
            return Ok(None);
        }
        let own = self.own_names().join(", ");
        let select = format!("SELECT {own} FROM main.{} WHERE {}", self.quoted, self.table_key(1));
        let mut statement = connection.prepare_cached(&select)?;
        let read = |row: &rusqlite::Row<'_>| (0..self.own.len()).map(|place| row.get_ref(place).map(value_of)).collect();
        statement.query_row(params_from_iter(key.iter().map(SqlValue)), read).optional()
    }

    fn own_names(&self) -> Vec<String> {
        self.own.iter().filter_map(|index| self.stored.get(*index)).map(|name| quote_name(name)).collect()
    }

    /// Deletes a row.
    pub(super) fn delete_row(&self, connection: &Connection, key: &[Value]) -> rusqlite::Result<usize> {
        let delete = format!("DELETE FROM main.{} WHERE {}", self.quoted, self.table_key(1));
        connection.prepare_cached(&delete)?.execute(params_from_iter(key.iter().map(SqlValue)))
    }

    /// Inserts a row; `own` are the values of local programs, if it had any.
    pub(super) fn insert_row(&self, connection: &Connection, image: &Image, own: Option<&OwnValues>) -> rusqlite::Result<()> {
        let known = self.columns.iter().zip(image).filter_map(|(column, value)| Some((column.quoted.clone(), value.as_ref()?)));
        let own = self.own_names().into_iter().zip(own.into_iter().flatten());
        let (names, values): (Vec<String>, Vec<&Value>) = known.chain(own).unzip();
        let marks = vec!["?"; names.len()].join(", ");
        let insert = format!("INSERT OR ABORT INTO main.{} ({}) VALUES ({marks})", self.quoted, names.join(", "));
        connection.prepare_cached(&insert)?.execute(params_from_iter(values.into_iter().map(SqlValue)))?;
        Ok(())
    }

    /// Changes columns of a row that is there. Returns whether it was.
    pub(super) fn update_row(&self, connection: &Connection, key: &[Value], changes: &[(usize, &Value)]) -> rusqlite::Result<bool> {
        let terms: Vec<String> = changes
            .iter()
            .enumerate()
            .filter_map(|(place, (column, _))| Some(format!("{} = ?{}", self.columns.get(*column)?.quoted, place + 1)))
            .collect();
        if terms.is_empty() {
            return Ok(self.read_row(connection, key)?.is_some());
        }
        let condition = self.table_key(terms.len() + 1);
        let update = format!("UPDATE OR ABORT main.{} SET {} WHERE {condition}", self.quoted, terms.join(", "));
        let values = changes.iter().map(|(_, value)| *value).chain(key).map(SqlValue);
        Ok(connection.prepare_cached(&update)?.execute(params_from_iter(values))? > 0)
    }

    /// Makes the row of a key what it is to be, given what it is. Local programs' columns of a row that stays are left alone.
    pub(super) fn write_row(
        &self,
        connection: &Connection,
        key: &[Value],
        is: Option<&Row>,
        to_be: Option<&Image>,
    ) -> rusqlite::Result<()> {
        match (is, to_be) {
            (None, None) => Ok(()),
            (Some(_), None) => self.delete_row(connection, key).map(drop),
            (None, Some(image)) => self.insert_row(connection, image, None),
            (Some(row), Some(image)) => {
                let changes = image.iter().zip(row).enumerate();
                let changes: Vec<(usize, &Value)> =
                    changes.filter_map(|(place, (value, old))| Some((place, value.as_ref().filter(|value| *value != old)?))).collect();
                if changes.is_empty() { Ok(()) } else { self.update_row(connection, key, &changes).map(drop) }
            }
        }
    }

    /// Returns the `SELECT` of the server's rows.
    pub(super) fn server_view(&self, columns: &[String]) -> String {
        let shown: Vec<String> = columns.iter().map(|name| format!("t.{}", quote_name(name))).collect();
        let base: Vec<String> = columns
            .iter()
            .map(|name| match self.column(name).and_then(|place| self.columns.get(place)) {
                Some(column) => format!("b.{}", column.base),
                None => format!("t.{}", quote_name(name)),
            })
            .collect();
        let of_table = self.base_key(|_, column| format!("+t.{}", column.quoted));
        let same = self.key_columns().map(|column| format!("t.{} = b.{}", column.quoted, column.base)).collect::<Vec<_>>().join(" AND ");
        format!(
            "SELECT {} FROM main.{table} AS t WHERE NOT EXISTS (SELECT 1 FROM main.{entries} AS b WHERE {of_table})
             UNION ALL SELECT {} FROM main.{entries} AS b LEFT JOIN main.{table} AS t ON {same} WHERE b.present = 1",
            shown.join(", "),
            base.join(", "),
            table = self.quoted,
            entries = self.base
        )
    }

    /// Makes every row with an entry what the server has.
    pub(super) fn all_to_base(&self, connection: &Connection) -> rusqlite::Result<()> {
        let key_names = self.key_columns().map(|column| column.quoted.as_str()).collect::<Vec<_>>().join(", ");
        let base_key = self.key_columns().map(|column| column.base.as_str()).collect::<Vec<_>>().join(", ");
        let (table, base) = (&self.quoted, &self.base);
        let delete = format!("DELETE FROM main.{table} WHERE ({key_names}) IN (SELECT {base_key} FROM main.{base} WHERE present = 0)");
        connection.execute(&delete, [])?;
        let assignments: Vec<String> = self.columns.iter().map(|column| format!("{0} = excluded.{0}", column.quoted)).collect();
        let put = format!(
            "INSERT OR ABORT INTO main.{table} ({}) SELECT {} FROM main.{base} WHERE present = 1
             ON CONFLICT ({key_names}) DO UPDATE SET {}",
            self.names(),
            self.base_names(),
            assignments.join(", ")
        );
        connection.execute(&put, [])?;
        Ok(())
    }
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, column: &'static str, text: &str) -> Result<T, LocalError> {
    serde_json::from_str(text).map_err(|_| LocalError::State { path: path.to_owned(), column, value: text.to_owned() })
}

/// Returns the name and the stored columns of a table, with the collation under which the primary key compares them.
fn table_columns(connection: &Connection, table: &str) -> rusqlite::Result<(Option<String>, Vec<Column>)> {
    let name: Option<String> = connection
        .query_row("SELECT name FROM main.sqlite_master WHERE type = 'table' AND name = ?1 COLLATE NOCASE", [table], |row| row.get(0))
        .optional()?;
    let mut statement = connection.prepare_cached(
        "SELECT c.name, c.pk,
                ifnull((SELECT x.coll FROM pragma_index_list(?1) AS i, pragma_index_xinfo(i.name) AS x
                        WHERE i.origin = 'pk' AND x.name = c.name AND x.key = 1), 'BINARY')
         FROM pragma_table_xinfo(?1) AS c WHERE c.hidden = 0",
    )?;
    let columns = statement.query_map([table], |row| Ok(Column { name: row.get(0)?, pk: row.get(1)?, collation: row.get(2)? }))?;
    Ok((name, columns.collect::<Result<_, _>>()?))
}
