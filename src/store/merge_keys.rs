//! Keys that the server gave in place of those of a node (R12): SQLite hands out integer keys as it likes, so two databases that were
//! apart give the same ones.
//!
//! A key under which the server has another row is replaced when its row is inserted, and the pair is kept. The keys and declared references of
//! every unit that the node cut before it had applied the confirm mean the new key. What a node refers to by a value of its server view
//! (`base`) is the server's key already.

use crate::base::ids::{InstallId, UnitNo};
use crate::model::dock::{Dock, DockTable};
use crate::model::keycode;
use crate::model::merge_rules::KeySource;
use crate::model::schema::{Schema, TableShape};
use crate::model::upload::{FieldChange, KeyMapping, RowChange, UploadHead, UploadUnit};
use crate::model::value::{Row, Value, display_key};
use crate::store::sqlite::{ServerDatabase, SqlValue, StoreError, quote_name};
use rusqlite::OptionalExtension;
use std::collections::{BTreeMap, HashMap, HashSet};

/// A unit in the server's keys.
#[derive(Debug)]
pub(super) struct Rekeyed {
    /// The unit.
    pub(super) unit: UploadUnit,
    /// Keys that are replaced with it.
    pub(super) fresh: Vec<KeyMapping>,
    /// Keys that mean themselves again from this unit on, though an earlier one was replaced under that name.
    pub(super) renewed: Vec<KeyMapping>,
}

/// Why a unit cannot be brought into the server's keys: place of the change, and the reason.
pub(super) type Unmapped = (usize, String);

/// Finds what keys of one unit mean.
pub(super) struct Keys<'a> {
    database: &'a ServerDatabase,
    dock: &'a Dock,
    schema: &'a Schema,
    install: InstallId,
    head: &'a UploadHead,
    /// By lower-case table and column: tables whose integer key the column's values are.
    roots: HashMap<(String, String), Vec<String>>,
    found: HashMap<(String, i64), Meaning>,
    fresh: BTreeMap<(String, i64), i64>,
    next: HashMap<String, i64>,
}

/// A table while a change of it is brought into the server's keys.
struct Renaming<'t> {
    table: &'t TableShape,
    columns: &'t [String],
    key: &'t [u16],
    /// A row that is not there: table, key, and the unit that would have inserted it.
    gone: Option<(String, i64, UnitNo)>,
}

/// What a key of the node means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// Itself.
    Same,
    /// Another one.
    Other(i64),
    /// A row that is not there: that unit inserted it, and was taken out.
    Gone(UnitNo),
}

impl<'a> Keys<'a> {
    pub(super) fn new(database: &'a ServerDatabase, dock: &'a Dock, schema: &'a Schema, install: InstallId, head: &'a UploadHead) -> Self {
        Keys {
            database,
            dock,
            schema,
            install,
            head,
            roots: HashMap::new(),
            found: HashMap::new(),
            fresh: BTreeMap::new(),
            next: HashMap::new(),
        }
    }

    /// Brings a unit into the server's keys. With `gives` keys that are taken are replaced, else they stay as they are.
    pub(super) fn rekey(mut self, unit: &UploadUnit, gives: bool) -> Result<Result<Rekeyed, Unmapped>, StoreError> {
        let mut renewed = Vec::new();
        if gives {
            match self.give(unit, &mut renewed)? {
                Ok(()) => {}
                Err(unmapped) => return Ok(Err(unmapped)),
            }
        }
        let mut changes = Vec::with_capacity(unit.changes.len());
        for (place, (heading, change)) in unit.changes.iter().enumerate() {
            let Some(table) = self.schema.table(&heading.name) else {
                changes.push((std::sync::Arc::clone(heading), change.clone()));
                continue;
            };
            let mut of = Renaming { table, columns: &heading.columns, key: &heading.key, gone: None };
            match self.rekey_change(&mut of, change)? {
                Ok(change) => changes.push((std::sync::Arc::clone(heading), change)),
                Err(reason) => return Ok(Err((place, reason))),
            }
        }
        let dock = self.dock;
        let fresh = self.fresh.iter().filter(|((_, old), new)| old != *new).map(|((table, old), new)| KeyMapping {
            table: dock.table(table).and_then(|index| dock.tables.get(index)).map_or(table.clone(), |table| table.name.clone()),
            old: vec![Value::Integer(*old)],
            new: vec![Value::Integer(*new)],
        });
        let fresh = fresh.collect();
        Ok(Ok(Rekeyed { unit: UploadUnit { head: unit.head.clone(), changes }, fresh, renewed }))
    }

    /// Finds the inserted keys that are taken and gives other ones.
    fn give(&mut self, unit: &UploadUnit, renewed: &mut Vec<KeyMapping>) -> Result<Result<(), Unmapped>, StoreError> {
        let mut leaving: HashSet<(String, i64)> = HashSet::new();
        let mut inserted: HashMap<String, i64> = HashMap::new();
        for (heading, change) in &unit.changes {
            let Some((name, key)) = self.own_key(&heading.name, &change.key(&heading.key)) else { continue };
            match change {
                RowChange::Insert { .. } => {
                    let highest = inserted.entry(name).or_insert(key);
                    *highest = key.max(*highest);
                }
                RowChange::Delete { .. } => drop(leaving.insert((name.clone(), self.meaning(&name, key)?.key(key)))),
                RowChange::Update { fields, .. } => {
                    if let Some(field) = fields.iter().find(|field| heading.key.contains(&field.column)) {
                        leaving.insert((name.clone(), self.meaning(&name, key)?.key(key)));
                        self.renew(&name, &field.after, renewed)?;
                    }
                }
            }
        }
        for (place, (heading, change)) in unit.changes.iter().enumerate() {
            let RowChange::Insert { .. } = change else { continue };
            let Some((name, key)) = self.own_key(&heading.name, &change.key(&heading.key)) else { continue };
            let Some(declared) = self.dock.table(&name).and_then(|index| self.dock.tables.get(index)) else { continue };
            let is_provisional = declared.merge.keys == KeySource::Block && self.roots(&name, key_column(declared)).len() <= 1;
            if is_provisional && !leaving.contains(&(name.clone(), key)) && self.is_taken(declared, key)? {
                let Some(new) = self.next(declared, inserted.get(&name).copied().unwrap_or_default())? else {
                    return Ok(Err((place, format!("{} {key}: the key is taken, and there is no higher one", declared.name))));
                };
                self.fresh.insert((name, key), new);
            } else {
                self.renew(&name, &Value::Integer(key), renewed)?;
            }
        }
        Ok(Ok(()))
    }

    /// From here on a key means itself, whatever it meant before.
    fn renew(&mut self, table: &str, key: &Value, renewed: &mut Vec<KeyMapping>) -> Result<(), StoreError> {
        let Value::Integer(key) = key else { return Ok(()) };
        if self.meaning(table, *key)? != Meaning::Same {
            self.fresh.insert((table.to_owned(), *key), *key);
            let name = self.schema.table(table).map_or(table, |table| table.name.as_str()).to_owned();
            renewed.push(KeyMapping { table: name, old: vec![Value::Integer(*key)], new: vec![Value::Integer(*key)] });
        }
        Ok(())
    }

    /// Returns the table, in lower case, and the key, if it is an integer that SQLite may have given.
    fn own_key(&self, table: &str, key: &[Value]) -> Option<(String, i64)> {
        let shape = self.schema.table(table).filter(|shape| shape.key_is_rowid)?;
        match key {
            [Value::Integer(key)] => Some((shape.name.to_ascii_lowercase(), *key)),
            _ => None,
        }
    }

    fn rekey_change(&mut self, of: &mut Renaming<'_>, change: &RowChange) -> Result<Result<RowChange, String>, StoreError> {
        let changed = match change {
            RowChange::Insert { row } => RowChange::Insert { row: self.row(of, row)? },
            RowChange::Delete { key, before, base } => {
                let renamed = self.row(of, before)?;
                let base = base.clone().or_else(|| (renamed != *before).then(|| before.clone()));
                RowChange::Delete { key: self.key(of, key)?, before: renamed, base }
            }
            RowChange::Update { key, fields, whole } => {
                let mut renamed = Vec::with_capacity(fields.len());
                for field in fields {
                    let place = usize::from(field.column);
                    let before = self.value(of, place, &field.before, true)?;
                    // A key that the node gave to a row of its own accord is no name of an inserted one.
                    let after = self.value(of, place, &field.after, !of.key.contains(&field.column))?;
                    renamed.push(FieldChange { before, after, ..field.clone() });
                }
                let whole = whole.as_ref().map(|row| self.row(of, row)).transpose()?;
                RowChange::Update { key: self.key(of, key)?, fields: renamed, whole }
            }
        };
        Ok(match of.gone.take() {
            None => Ok(changed),
            Some((root, key, unit)) => {
                let name = display_key(&change.key(of.key));
                Err(format!(
                    "{} {name}: it is about {root} {key}, which unit {unit} would have inserted, and that was taken out",
                    of.table.name
                ))
            }
        })
    }

    fn row(&mut self, of: &mut Renaming<'_>, row: &Row) -> Result<Row, StoreError> {
        row.iter().enumerate().map(|(place, value)| self.value(of, place, value, true)).collect()
    }

    fn key(&mut self, of: &mut Renaming<'_>, key: &[Value]) -> Result<Row, StoreError> {
        let places = of.key;
        key.iter().zip(places).map(|(value, place)| self.value(of, usize::from(*place), value, true)).collect()
    }

    /// Returns what a value of a column means. `is_own` = also as the table's own key.
    fn value(&mut self, of: &mut Renaming<'_>, place: usize, value: &Value, is_own: bool) -> Result<Value, StoreError> {
        let (Value::Integer(key), Some(column)) = (value, of.columns.get(place)) else { return Ok(value.clone()) };
        let own = of.table.name.to_ascii_lowercase();
        for root in self.roots(&own, column) {
            if root == own && !is_own {
                continue;
            }
            match self.meaning(&root, *key)? {
                Meaning::Same => {}
                Meaning::Other(new) => return Ok(Value::Integer(new)),
                Meaning::Gone(unit) => drop(of.gone.get_or_insert((root, *key, unit))),
            }
        }
        Ok(value.clone())
    }

    /// Returns the tables, in lower case, whose integer key a column's values are: by its foreign keys, theirs, and so on.
    fn roots(&mut self, table: &str, column: &str) -> Vec<String> {
        let place = (table.to_owned(), column.to_ascii_lowercase());
        if let Some(roots) = self.roots.get(&place) {
            return roots.clone();
        }
        let (mut roots, mut seen, mut left) = (Vec::new(), HashSet::new(), vec![place.clone()]);
        while let Some((table, column)) = left.pop() {
            if !seen.insert((table.clone(), column.clone())) {
                continue;
            }
            let Some(shape) = self.schema.table(&table) else { continue };
            let Some(position) = shape.column(&column) else { continue };
            for foreign in &shape.foreign_keys {
                let pairs = foreign.columns.iter().zip(&foreign.to_columns).filter(|(from, _)| **from == position);
                left.extend(pairs.map(|(_, to)| (foreign.to_table.to_ascii_lowercase(), to.to_ascii_lowercase())));
            }
            if shape.key_is_rowid && shape.key == [position] {
                roots.push(table);
            }
        }
        self.roots.insert(place, roots.clone());
        roots
    }

    /// Returns what a key of the node means, as of this unit.
    fn meaning(&mut self, table: &str, key: i64) -> Result<Meaning, StoreError> {
        let place = (table.to_owned(), key);
        if let Some(new) = self.fresh.get(&place) {
            return Ok(if *new == key { Meaning::Same } else { Meaning::Other(*new) });
        }
        if let Some(meaning) = self.found.get(&place) {
            return Ok(*meaning);
        }
        let fault = || self.database.fault("reading replaced keys");
        let mut statement = self
            .database
            .connection
            .prepare_cached(
                "SELECT unit, new_key FROM main.dock_key_map WHERE install_id = ?1 AND table_name = ?2 AND old_key = ?3 AND log_id > ?4
                 AND unit < ?5 ORDER BY unit DESC",
            )
            .map_err(fault())?;
        let name = self.schema.table(table).map_or(table, |table| table.name.as_str());
        let number = signed(self.head.number);
        let old = keycode::encode(&[Value::Integer(key)]);
        let mut rows = statement.query((self.install.to_string(), name, old, self.head.applied.0, number)).map_err(fault())?;
        let mut meaning = Meaning::Same;
        while let Some(row) = rows.next().map_err(fault())? {
            let unit = UnitNo(row.get::<_, i64>(0).map_err(fault())?.unsigned_abs());
            if self.head.hidden.contains(&unit) {
                continue;
            }
            let new: Option<Vec<u8>> = row.get(1).map_err(fault())?;
            meaning = match new.as_deref().map(keycode::decode) {
                None => Meaning::Gone(unit),
                Some(Some(new)) if matches!(new[..], [Value::Integer(_)]) => match new[..] {
                    [Value::Integer(new)] if new != key => Meaning::Other(new),
                    _ => Meaning::Same,
                },
                Some(_) => {
                    return Err(StoreError::Damaged {
                        path: self.database.path.clone(),
                        what: format!("dock_key_map of {name} {key}"),
                        reason: "its new key is none".into(),
                    });
                }
            };
            break;
        }
        drop(rows);
        self.found.insert(place, meaning);
        Ok(meaning)
    }

    fn is_taken(&self, declared: &DockTable, key: i64) -> Result<bool, StoreError> {
        let sql = format!("SELECT 1 FROM main.{} WHERE {} = ?1", quote_name(&declared.name), quote_name(key_column(declared)));
        self.database
            .connection
            .prepare_cached(&sql)
            .and_then(|mut statement| statement.query_row([SqlValue(&Value::Integer(key))], |_| Ok(())).optional())
            .map(|found| found.is_some())
            .map_err(self.database.fault(&format!("looking for {} {key}", declared.name)))
    }

    /// Returns the next key of a table by SQLite's own rule, above those that the unit brings itself.
    fn next(&mut self, declared: &DockTable, above: i64) -> Result<Option<i64>, StoreError> {
        let name = declared.name.to_ascii_lowercase();
        let last = match self.next.get(&name) {
            Some(last) => *last,
            None => {
                let action = format!("looking for the next key of {}", declared.name);
                let fault = || self.database.fault(&action);
                let connection = &self.database.connection;
                let sql = format!("SELECT ifnull(max({}), 0) FROM main.{}", quote_name(key_column(declared)), quote_name(&declared.name));
                let highest: i64 = connection.prepare_cached(&sql).and_then(|mut s| s.query_row([], |row| row.get(0))).map_err(fault())?;
                // The log has AUTOINCREMENT, so the table is there.
                let used: i64 = connection
                    .prepare_cached("SELECT ifnull(max(seq), 0) FROM main.sqlite_sequence WHERE name = ?1")
                    .and_then(|mut statement| statement.query_row([&declared.name], |row| row.get(0)))
                    .map_err(fault())?;
                highest.max(used).max(above).max(0)
            }
        };
        let next = last.checked_add(1);
        self.next.insert(name, next.unwrap_or(last));
        Ok(next)
    }
}

impl Meaning {
    fn key(self, key: i64) -> i64 {
        match self {
            Meaning::Other(new) => new,
            Meaning::Same | Meaning::Gone(_) => key,
        }
    }
}

fn key_column(declared: &DockTable) -> &str {
    declared.key.first().and_then(|column| declared.columns.get(*column)).map_or("", |column| column.name.as_str())
}

/// Returns a unit's number as SQL knows numbers.
pub(super) fn signed(unit: UnitNo) -> i64 {
    i64::try_from(unit.0).unwrap_or(i64::MAX)
}
