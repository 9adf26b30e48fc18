//! What a row was before a unit: the server's row with the node's earlier pending changes on top (R21, R29).
//!
//! It is computed, not remembered: from the base entry and the units in `dock_change`, in their order, as a rebase computes what the tables
//! show. Suspended units are not shown, so they do not count. A row is followed through changes of its key.

use super::capture::key_condition;
use super::local::LocalError;
use super::local_base::key_terms;
use super::local_capture::LocalCapture;
use super::local_pending::{self, Translator};
use super::local_rules::TableRules;
use super::local_units::{key_after, parse_heading};
use super::sqlite::{SqlValue, quote_name, value_of};
use crate::base::ids::UnitNo;
use crate::dx::upload::decode_change;
use crate::model::dock::Direction;
use crate::model::event::TableHeading;
use crate::model::keycode;
use crate::model::merge_rules::{ConflictPolicy, DeletePolicy, MergeRules, add_difference};
use crate::model::upload::RowChange;
use crate::model::value::{Collation, Row, RowKey, Value};
use rusqlite::{Connection, OptionalExtension, params_from_iter};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

/// A captured table, as a cut looks at it.
#[derive(Debug)]
pub(super) struct CutTable {
    /// How it is captured now.
    pub(super) capture: LocalCapture,
    /// Its captured columns, as units name them.
    pub(super) heading: Arc<TableHeading>,
    /// Which way its rows travel.
    pub(super) direction: Direction,
    /// How its changes are brought together with the server's.
    pub(super) rules: MergeRules,
    collations: Vec<Collation>,
    select_row: String,
    select_base: String,
    prune_base: String,
}

/// A row that is there, and the server's under it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Held {
    /// The row.
    pub(super) row: Row,
    /// The server's row; `None` if the server does not have it yet.
    pub(super) base: Option<Row>,
}

/// What `dock_base_N` says.
#[derive(Debug)]
pub(super) struct BaseEntry {
    /// The key as it was noted.
    pub(super) key: RowKey,
    /// The server's row.
    pub(super) row: Option<Row>,
}

impl CutTable {
    /// Looks at how a table is captured and what the definition says of it.
    pub(super) fn of(capture: &LocalCapture, rules: &[TableRules]) -> CutTable {
        let found = rules.iter().find(|rules| rules.table.eq_ignore_ascii_case(&capture.table));
        let (direction, rules) = found.map(|found| (found.direction, found.rules.clone())).unwrap_or_default();
        let shape = &capture.shape;
        let positions: Vec<usize> = capture.columns.iter().filter_map(|name| shape.column(name)).collect();
        let terms = key_terms(shape, &positions);
        let collations = terms.iter().map(|(_, _, name)| Collation::from_name(name.trim_matches('"')).unwrap_or_default()).collect();
        let names: Vec<String> = capture.columns.iter().map(|name| quote_name(name)).collect();
        let places: Vec<String> = (1..=names.len()).map(|place| format!("c{place}")).collect();
        let base_key: Vec<String> =
            terms.iter().enumerate().map(|(at, (place, _, collation))| format!("{place} COLLATE {collation} = ?{}", at + 1)).collect();
        CutTable {
            heading: Arc::new(TableHeading {
                name: capture.table.clone(),
                columns: capture.columns.clone(),
                key: capture.key.iter().filter_map(|place| u16::try_from(*place).ok()).collect(),
            }),
            direction,
            rules,
            collations,
            select_row: format!(
                "SELECT {} FROM main.{} WHERE {}",
                names.join(", "),
                quote_name(&capture.table),
                key_condition(shape, "", |place, _| format!("?{}", place + 1), "=")
            ),
            prune_base: format!("UPDATE main.{} SET present = 0 WHERE {}", capture.base_table(), base_key.join(" AND ")),
            select_base: format!(
                "SELECT present, {} FROM main.{} WHERE {}",
                places.join(", "),
                capture.base_table(),
                base_key.join(" AND ")
            ),
            capture: capture.clone(),
        }
    }

    /// Returns a key in the form that is the same for all that are equal to the table.
    pub(super) fn fold(&self, key: &[Value]) -> RowKey {
        key.iter().zip(&self.collations).map(|(value, collation)| value.fold(*collation)).collect()
    }

    /// Returns a value that was computed as the table stores it in a captured column.
    fn as_stored(&self, place: usize, value: Value) -> Value {
        let column = self.capture.columns.get(place).and_then(|name| self.capture.shape.column(name));
        match column.and_then(|column| self.capture.shape.columns.get(column)) {
            Some(column) => column.as_stored(value),
            None => value,
        }
    }

    /// Returns the key of a row.
    pub(super) fn key_of(&self, row: &[Value]) -> RowKey {
        self.capture.key.iter().map(|place| row.get(*place).cloned().unwrap_or(Value::Null)).collect()
    }

    /// Returns the row that the table has under a key.
    pub(super) fn row(&self, connection: &Connection, key: &[Value]) -> rusqlite::Result<Option<Row>> {
        let width = self.capture.columns.len();
        connection
            .prepare_cached(&self.select_row)?
            .query_row(params_from_iter(key.iter().map(SqlValue)), |row| (0..width).map(|at| row.get_ref(at).map(value_of)).collect())
            .optional()
    }

    /// Returns what was noted of the server's row under a key.
    pub(super) fn base(&self, connection: &Connection, key: &[Value]) -> rusqlite::Result<Option<BaseEntry>> {
        let width = self.capture.columns.len();
        connection
            .prepare_cached(&self.select_base)?
            .query_row(params_from_iter(key.iter().map(SqlValue)), |row| {
                let present: bool = row.get(0)?;
                let values: Row = (1..=width).map(|at| row.get_ref(at).map(value_of)).collect::<Result<_, _>>()?;
                Ok(BaseEntry { key: self.key_of(&values), row: present.then_some(values) })
            })
            .optional()
    }

    /// Notes that this node has no row under a key any more.
    pub(super) fn prune(&self, connection: &Connection, key: &[Value]) -> rusqlite::Result<()> {
        connection.prepare_cached(&self.prune_base)?.execute(params_from_iter(key.iter().map(SqlValue))).map(drop)
    }

    /// Returns a row of another heading by this table's columns; what the other does not have is NULL.
    fn by_our_columns(&self, heading: &TableHeading, row: &[Value]) -> Row {
        if heading.columns == self.heading.columns {
            return row.to_vec();
        }
        let value = |name: &String| heading.columns.iter().position(|column| column.eq_ignore_ascii_case(name)).and_then(|at| row.get(at));
        self.capture.columns.iter().map(|name| value(name).cloned().unwrap_or(Value::Null)).collect()
    }
}

/// The units of a local database that are not finished, for looking rows up.
pub(super) struct Pending<'c> {
    pub(super) connection: &'c Connection,
    pub(super) path: &'c Path,
    /// Units that are not shown.
    pub(super) suspended: Vec<UnitNo>,
    /// Keys that the server replaced: units keep those that they were sent with (R12).
    pub(super) keys: Translator,
}

type Change = (TableHeading, RowChange);
/// Unit and place of a change.
type Place = (i64, i64);

impl Pending<'_> {
    /// Returns what the row of a key was, of which `keys` are all spellings; the outer `None` if nothing was ever noted of it.
    pub(super) fn before(&self, table: &CutTable, keys: &[RowKey]) -> Result<Option<Option<Held>>, LocalError> {
        let Some(first) = keys.first() else { return Ok(None) };
        let changes = self.changes(table, keys)?;
        let mut rows: HashMap<RowKey, Held> = HashMap::new();
        let mut noted = !changes.is_empty();
        let mut named: Vec<RowKey> = keys.to_vec();
        for (heading, change) in changes.values() {
            named.push(change.key(&heading.key));
            named.extend(key_after(heading, change));
        }
        for folded in named.iter().map(|key| table.fold(key)).collect::<BTreeSet<_>>() {
            if let Some(entry) = self.entry(table, &folded)? {
                noted = true;
                if let Some(row) = entry.row {
                    rows.insert(folded, Held { row: row.clone(), base: Some(row) });
                }
            }
        }
        for (heading, change) in changes.values() {
            apply(table, &mut rows, heading, change);
        }
        Ok(noted.then(|| rows.remove(&table.fold(first))))
    }

    fn entry(&self, table: &CutTable, key: &[Value]) -> Result<Option<BaseEntry>, LocalError> {
        table.base(self.connection, key).map_err(|source| LocalError::of_sql(self.path, "read what the server has", source))
    }

    /// Returns the shown changes that have to do with a row, in order: found by key, and on through changes of keys.
    fn changes(&self, table: &CutTable, keys: &[RowKey]) -> Result<BTreeMap<Place, Change>, LocalError> {
        let mut found = BTreeMap::new();
        let mut looked = BTreeSet::new();
        let mut to_look: Vec<RowKey> = keys.to_vec();
        if let Some(first) = keys.first()
            && let Some(entry) = self.entry(table, first)?
        {
            to_look.push(entry.key);
        }
        while let Some(key) = to_look.pop() {
            let code = keycode::encode(&table.fold(&key));
            if !looked.insert(code.clone()) {
                continue;
            }
            for (place, change) in self.changes_of(table, &code)? {
                to_look.push(change.1.key(&change.0.key));
                to_look.extend(key_after(&change.0, &change.1));
                found.insert(place, change);
            }
        }
        Ok(found)
    }

    fn changes_of(&self, table: &CutTable, code: &[u8]) -> Result<Vec<(Place, Change)>, LocalError> {
        let sql = |source| LocalError::of_sql(self.path, "look for pending changes of a row", source);
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT unit, place, columns, key_columns, body FROM main.dock_change WHERE table_name = ?1 AND row_key = ?2
                 UNION ALL
                 SELECT unit, place, columns, key_columns, body FROM main.dock_change
                 WHERE table_name = ?1 AND new_key = ?2 AND new_key IS NOT NULL",
            )
            .map_err(sql)?;
        let mut rows = statement.query((&table.capture.table, code)).map_err(sql)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(sql)? {
            let (unit, place): (i64, i64) = (row.get(0).map_err(sql)?, row.get(1).map_err(sql)?);
            let number = UnitNo(unit.cast_unsigned());
            if self.suspended.contains(&number) {
                continue;
            }
            let (columns, key): (String, String) = (row.get(2).map_err(sql)?, row.get(3).map_err(sql)?);
            let heading = parse_heading(self.path, table.capture.table.clone(), &columns, &key)?;
            let body = row.get_ref(4).and_then(|body| Ok(body.as_blob()?)).map_err(sql)?;
            let change =
                decode_change(&heading, body).map_err(|source| LocalError::Unit { path: self.path.to_owned(), unit: number, source })?;
            let change = self.with_new_keys(unit, &heading, change)?;
            found.push(((unit, place), (heading, change)));
        }
        Ok(found)
    }
}

impl Pending<'_> {
    fn with_new_keys(&self, unit: i64, heading: &TableHeading, change: RowChange) -> Result<RowChange, LocalError> {
        if self.keys.is_empty() {
            return Ok(change);
        }
        let units = local_pending::Pending { connection: self.connection, path: self.path };
        let Some(unit) = units.unit(unit)? else { return Ok(change) };
        let (table, columns) = (heading.name.clone(), heading.columns.clone());
        let mut read = local_pending::PendingChange { place: 0, table, key: change.key(&heading.key), columns, change };
        self.keys.translate(&unit, &mut read);
        Ok(read.change)
    }
}

/// Does a pending change again, on rows by folded key.
fn apply(table: &CutTable, rows: &mut HashMap<RowKey, Held>, heading: &TableHeading, change: &RowChange) {
    let key = table.fold(&change.key(&heading.key));
    match change {
        RowChange::Insert { row } => {
            rows.insert(key, Held { row: table.by_our_columns(heading, row), base: None });
        }
        RowChange::Delete { .. } => {
            rows.remove(&key);
        }
        RowChange::Update { fields, whole, .. } => {
            let Some(mut held) = rows.remove(&key) else {
                // The server deleted the row, and the update brings it back: so the tables show it (`local_pending::redo`).
                if let Some(row) = whole.as_ref().filter(|_| table.rules.delete == DeletePolicy::Resurrect) {
                    let row = table.by_our_columns(heading, row);
                    rows.insert(table.fold(&table.key_of(&row)), Held { row, base: None });
                }
                return;
            };
            for field in fields {
                let Some(name) = heading.columns.get(usize::from(field.column)) else { continue };
                let place = table.capture.columns.iter().position(|column| column.eq_ignore_ascii_case(name));
                let Some((place, value)) = place.and_then(|place| Some((place, held.row.get_mut(place)?))) else { continue };
                let is_sum = *table.rules.policy_of(name) == ConflictPolicy::Sum && !table.capture.key.contains(&place);
                *value = match is_sum {
                    true => table.as_stored(place, add_difference(value, &field.before, &field.after)),
                    false => field.after.clone(),
                };
            }
            rows.insert(table.fold(&table.key_of(&held.row)), held);
        }
    }
}
