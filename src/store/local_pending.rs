//! Units of local changes that are not finished, as they are read back to be done again.
//!
//! What stands in `dock_change.body` never changes: the server knows a unit by the hash of it (R16). Keys that the server replaced are
//! put in while reading (R12); only `row_key` and `new_key`, by which changes are found, are rewritten. They hold a key as the primary key
//! compares it, so that all spellings of one key are found.

use super::local::LocalError;
use super::local_overlay::{Image, Overlay};
use super::local_references::References;
use super::local_units::{key_after, parse_heading};
use crate::dx::upload::decode_change;
use crate::model::keycode;
use crate::model::merge_rules::{DeletePolicy, add_difference};
use crate::model::upload::{FieldChange, KeyMapping, RowChange};
use crate::model::value::{RowKey, Value, display_key};
use rusqlite::{Connection, params};
use std::path::Path;

/// A unit, without its changes.
#[derive(Debug, Clone)]
pub(super) struct PendingUnit {
    pub(super) number: i64,
    pub(super) is_suspended: bool,
    /// Units that were suspended when it was cut: a key that they gave means the server's row here.
    pub(super) hidden: Vec<u64>,
    /// Last unit of the server that was applied when it was cut.
    pub(super) applied: i64,
}

impl PendingUnit {
    /// Whether a key that another unit gave means that unit's row here.
    pub(super) fn sees(&self, unit: i64) -> bool {
        !self.hidden.contains(&unit.cast_unsigned())
    }
}

/// A change of one.
#[derive(Debug, Clone)]
pub(super) struct PendingChange {
    /// Its place in the unit.
    pub(super) place: i64,
    pub(super) table: String,
    pub(super) key: RowKey,
    /// Names of the columns that `change` numbers.
    pub(super) columns: Vec<String>,
    pub(super) change: RowChange,
}

/// A key that the server replaced, for units that had not seen it.
#[derive(Debug, Clone)]
pub(super) struct KnownMapping {
    /// The unit that gave the key.
    pub(super) unit: i64,
    /// The unit of the server's stream that told of the new one.
    pub(super) seen: i64,
    pub(super) mapping: KeyMapping,
}

/// The place of a change in its unit, and the keys of its row before and after it; `None` = it is gone.
pub(super) type KeysAsCut = (i64, RowKey, Option<RowKey>);

/// Reads pending units.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending<'c> {
    pub(super) connection: &'c Connection,
    pub(super) path: &'c Path,
}

impl Pending<'_> {
    fn sql(&self, source: rusqlite::Error) -> LocalError {
        LocalError::of_sql(self.path, "read pending changes", source)
    }

    fn wrong(&self, column: &'static str, value: impl ToString) -> LocalError {
        LocalError::State { path: self.path.to_owned(), column, value: value.to_string() }
    }

    /// Returns the units in order; only suspended ones if asked for.
    pub(super) fn units(&self, only_suspended: bool) -> Result<Vec<PendingUnit>, LocalError> {
        let condition = if only_suspended { "WHERE suspended IS NOT NULL" } else { "" };
        let select = format!("SELECT unit, suspended IS NOT NULL, hidden, applied FROM dock_unit {condition} ORDER BY unit");
        self.read_units(&select, &[])
    }

    fn read_units(&self, select: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<PendingUnit>, LocalError> {
        let read = || -> rusqlite::Result<Vec<(PendingUnit, String)>> {
            let mut statement = self.connection.prepare_cached(select)?;
            let rows = statement.query_map(values, |row| {
                let unit = PendingUnit { number: row.get(0)?, is_suspended: row.get(1)?, hidden: Vec::new(), applied: row.get(3)? };
                Ok((unit, row.get(2)?))
            })?;
            rows.collect()
        };
        let units = read().map_err(|source| self.sql(source))?;
        let hidden = |(unit, text): (PendingUnit, String)| match serde_json::from_str(&text) {
            Ok(hidden) => Ok(PendingUnit { hidden, ..unit }),
            Err(_) => Err(self.wrong("dock_unit.hidden", text)),
        };
        units.into_iter().map(hidden).collect()
    }

    /// Returns one unit.
    pub(super) fn unit(&self, number: i64) -> Result<Option<PendingUnit>, LocalError> {
        let select = "SELECT unit, suspended IS NOT NULL, hidden, applied FROM dock_unit WHERE unit = ?1";
        Ok(self.read_units(select, params![number])?.pop())
    }

    /// Returns the changes of a unit, in their order.
    pub(super) fn changes(&self, unit: i64) -> Result<Vec<PendingChange>, LocalError> {
        let select = "SELECT place, table_name, columns, key_columns, body FROM dock_change WHERE unit = ?1 ORDER BY place";
        self.read_changes(select, params![unit])
    }

    /// Returns changes of a unit that are listed under one of some keys: their places, and their keys before and after as they were cut.
    pub(super) fn keys_as_cut(&self, unit: i64, table: &str, listed: &[Vec<u8>]) -> Result<Vec<KeysAsCut>, LocalError> {
        type Stored = (i64, String, String, String, Vec<u8>);
        let read = || -> rusqlite::Result<Vec<Stored>> {
            let mut found = Vec::new();
            let mut statement = self.connection.prepare_cached(
                "SELECT place, table_name, columns, key_columns, body FROM dock_change
                 WHERE unit = ?1 AND table_name = ?2 COLLATE NOCASE AND (row_key = ?3 OR new_key = ?3)",
            )?;
            for key in listed {
                let rows = statement
                    .query_map(params![unit, table, key], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))?;
                found.extend(rows.collect::<rusqlite::Result<Vec<_>>>()?);
            }
            Ok(found)
        };
        let rows = read().map_err(|source| self.sql(source))?;
        let cut = |(place, table, columns, key, body): Stored| {
            let heading = parse_heading(self.path, table, &columns, &key)?;
            let change = decode_change(&heading, &body).map_err(|error| self.wrong("dock_change.body", error))?;
            Ok((place, change.key(&heading.key), key_after(&heading, &change)))
        };
        rows.into_iter().map(cut).collect()
    }

    /// Returns the changes of a row with their units, in the units' order.
    pub(super) fn chain(&self, overlay: &Overlay, key: &[Value]) -> Result<Vec<(PendingUnit, PendingChange)>, LocalError> {
        let (table, key) = (&overlay.table, overlay.fold_key(key));
        let units = self.read_units(
            "SELECT u.unit, u.suspended IS NOT NULL, u.hidden, u.applied FROM dock_change AS c JOIN dock_unit AS u ON u.unit = c.unit
             WHERE c.table_name = ?1 AND c.row_key = ?2 ORDER BY c.unit, c.place",
            params![table, key],
        )?;
        let changes = self.read_changes(
            "SELECT c.place, c.table_name, c.columns, c.key_columns, c.body FROM dock_change AS c JOIN dock_unit AS u ON u.unit = c.unit
             WHERE c.table_name = ?1 AND c.row_key = ?2 ORDER BY c.unit, c.place",
            params![table, key],
        )?;
        Ok(units.into_iter().zip(changes).collect())
    }

    /// Returns whether another unit has to do with a row.
    pub(super) fn is_named(&self, overlay: &Overlay, key: &[Value], except: i64) -> Result<bool, LocalError> {
        let named = "SELECT EXISTS (SELECT 1 FROM dock_change WHERE table_name = ?1 AND row_key = ?2 AND unit <> ?3)";
        Ok(self.asks(named, overlay, key, except)? || self.is_moved_to(overlay, key, except)?)
    }

    /// Returns whether another unit gives a row that key.
    pub(super) fn is_moved_to(&self, overlay: &Overlay, key: &[Value], except: i64) -> Result<bool, LocalError> {
        let moved =
            "SELECT EXISTS (SELECT 1 FROM dock_change WHERE table_name = ?1 AND new_key = ?2 AND new_key IS NOT NULL AND unit <> ?3)";
        self.asks(moved, overlay, key, except)
    }

    /// Returns whether a later unit that is shown has to do with a row.
    pub(super) fn is_shown_later(&self, overlay: &Overlay, key: &[Value], unit: i64) -> Result<bool, LocalError> {
        let later = "SELECT EXISTS (SELECT 1 FROM dock_change AS c JOIN dock_unit AS u ON u.unit = c.unit
                                    WHERE c.table_name = ?1 AND c.unit > ?3 AND u.suspended IS NULL";
        let (named, moved) = ("c.row_key = ?2)", "c.new_key = ?2 AND c.new_key IS NOT NULL)");
        Ok(self.asks(&format!("{later} AND {named}"), overlay, key, unit)?
            || self.asks(&format!("{later} AND {moved}"), overlay, key, unit)?)
    }

    fn asks(&self, select: &str, overlay: &Overlay, key: &[Value], unit: i64) -> Result<bool, LocalError> {
        self.connection
            .prepare_cached(select)
            .and_then(|mut statement| statement.query_row(params![overlay.table, overlay.fold_key(key), unit], |row| row.get(0)))
            .map_err(|source| self.sql(source))
    }

    fn read_changes(&self, select: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<PendingChange>, LocalError> {
        type Stored = (i64, String, String, String, Vec<u8>);
        let read = || -> rusqlite::Result<Vec<Stored>> {
            let mut statement = self.connection.prepare_cached(select)?;
            let rows = statement.query_map(values, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))?;
            rows.collect()
        };
        let rows = read().map_err(|source| self.sql(source))?;
        rows.into_iter()
            .map(|(place, table, columns, key, body)| {
                let heading = parse_heading(self.path, table, &columns, &key)?;
                let change = decode_change(&heading, &body).map_err(|error| self.wrong("dock_change.body", error))?;
                Ok(PendingChange { place, table: heading.name, key: change.key(&heading.key), columns: heading.columns, change })
            })
            .collect()
    }

    /// Returns the keys that the server replaced.
    pub(super) fn mappings(&self) -> Result<Vec<KnownMapping>, LocalError> {
        type Stored = (i64, i64, String, Vec<u8>, Vec<u8>);
        let read = || -> rusqlite::Result<Vec<Stored>> {
            let mut statement =
                self.connection.prepare_cached("SELECT unit, seen, table_name, old_key, new_key FROM dock_key_map ORDER BY seen, unit")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))?;
            rows.collect()
        };
        let rows = read().map_err(|source| self.sql(source))?;
        let key = |bytes: &[u8]| keycode::decode(bytes).ok_or_else(|| self.wrong("dock_key_map", hex::encode(bytes)));
        rows.into_iter()
            .map(|(unit, seen, table, old, new)| {
                Ok(KnownMapping { unit, seen, mapping: KeyMapping { table, old: key(&old)?, new: key(&new)? } })
            })
            .collect()
    }
}

impl KnownMapping {
    /// Whether a unit was cut before its database knew of the new key, and means the row that got it.
    pub(super) fn concerns(&self, unit: &PendingUnit) -> bool {
        unit.number > self.unit && unit.applied < self.seen && unit.sees(self.unit)
    }

    /// Returns where the old key may stand in changes of a table: as its own key, and in references. `key` are the key columns of the mapping's
    /// table.
    fn substitutions(&self, table: &str, key: &[String], references: &References) -> Vec<Substitution> {
        let KeyMapping { table: target, old, new } = &self.mapping;
        let is_own = table.eq_ignore_ascii_case(target);
        let own = is_own.then(|| Substitution { is_own, columns: key.to_vec(), old: old.clone(), new: new.clone() });
        let to_key = |reference: &&super::local_references::Reference| reference.parent.eq_ignore_ascii_case(target);
        let referring = references.by_which(table).filter(to_key).filter_map(|reference| {
            let place = |column: &String| key.iter().position(|key| key.eq_ignore_ascii_case(column));
            let places: Vec<usize> = reference.referred.iter().map(place).collect::<Option<_>>()?;
            let ordered = |values: &RowKey| places.iter().filter_map(|place| values.get(*place)).cloned().collect::<RowKey>();
            let (old, new) = (ordered(old), ordered(new));
            (places.len() == key.len()).then(|| Substitution { is_own: false, columns: reference.columns.clone(), old, new })
        });
        own.into_iter().chain(referring).collect()
    }
}

/// A key that stands for another one, in some columns.
struct Substitution {
    /// Whether the columns are the key of the row itself.
    is_own: bool,
    columns: Vec<String>,
    old: RowKey,
    new: RowKey,
}

/// Puts keys that the server replaced into changes as they are read: for whoever looks at single rows.
#[derive(Debug)]
pub(super) struct Translator {
    known: Vec<(KnownMapping, Vec<String>)>,
    references: References,
}

impl Translator {
    /// Returns what is known of replaced keys; mostly nothing.
    pub(super) fn read(connection: &Connection, path: &Path) -> Result<Translator, LocalError> {
        let pending = Pending { connection, path };
        let mut known = Vec::new();
        for mapping in pending.mappings()? {
            let key = Overlay::look_up(connection, path, &mapping.mapping.table)?.map(|overlay| overlay.key_names()).unwrap_or_default();
            known.push((mapping, key));
        }
        let references = match known.is_empty() {
            true => References::default(),
            false => References::read(connection).map_err(|source| pending.sql(source))?,
        };
        Ok(Translator { known, references })
    }

    /// Whether no key was replaced.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Puts them into a change of a unit: all of them at once, since the new key of one row may be the old one of another. Of several for one key
    /// the last one holds.
    pub(super) fn translate(&self, unit: &PendingUnit, change: &mut PendingChange) {
        let concerned = self.known.iter().filter(|(mapping, _)| mapping.concerns(unit));
        let all: Vec<Substitution> =
            concerned.flat_map(|(mapping, key)| mapping.substitutions(&change.table, key, &self.references)).collect();
        if !all.is_empty() {
            replace(change, &all);
        }
    }
}

/// Replaces keys wherever they stand in a change. What is compared is what stood there before all of them.
fn replace(change: &mut PendingChange, all: &[Substitution]) {
    let own = |key: &mut RowKey| {
        if let Some(last) = all.iter().rfind(|one| one.is_own && one.old == *key) {
            key.clone_from(&last.new);
        }
    };
    own(&mut change.key);
    if let RowChange::Update { key, .. } | RowChange::Delete { key, .. } = &mut change.change {
        own(key);
    }
    let place = |column: &String| change.columns.iter().position(|known| known.eq_ignore_ascii_case(column));
    let placed: Vec<(Vec<usize>, &Substitution)> =
        all.iter().filter_map(|one| Some((one.columns.iter().map(place).collect::<Option<Vec<usize>>>()?, one))).collect();
    let in_row = |row: &mut [Value]| {
        let was = row.to_vec();
        for (places, one) in &placed {
            let same = places.iter().zip(&one.old).all(|(place, old)| was.get(*place) == Some(old));
            for (place, new) in places.iter().zip(&one.new).filter(|_| same) {
                if let Some(value) = row.get_mut(*place) {
                    value.clone_from(new);
                }
            }
        }
    };
    match &mut change.change {
        RowChange::Insert { row } => in_row(row),
        RowChange::Delete { before, base, .. } => std::iter::once(before).chain(base).for_each(|row| in_row(row)),
        RowChange::Update { fields, whole, .. } => {
            whole.iter_mut().for_each(|row| in_row(row));
            let mut was = fields.clone();
            for (places, one) in &placed {
                let at = |place: &usize| was.iter().position(|field| usize::from(field.column) == *place);
                let Some(found) = places.iter().map(at).collect::<Option<Vec<usize>>>() else { continue };
                for value in [before_of, base_of, after_of] {
                    let same = found.iter().zip(&one.old).all(|(at, old)| was.get_mut(*at).is_some_and(|field| value(field) == old));
                    for (at, new) in found.iter().zip(&one.new).filter(|_| same) {
                        if let Some(field) = fields.get_mut(*at) {
                            value(field).clone_from(new);
                        }
                    }
                }
            }
        }
    }
}

fn before_of(field: &mut FieldChange) -> &mut Value {
    &mut field.before
}

fn base_of(field: &mut FieldChange) -> &mut Value {
    &mut field.base
}

fn after_of(field: &mut FieldChange) -> &mut Value {
    &mut field.after
}

/// What a row is after a change of it. An error says why the change cannot be done; it names table and key.
pub(super) fn redo(overlay: &Overlay, change: &PendingChange, row: Option<Image>) -> Result<Option<Image>, String> {
    let place = |column: usize| {
        let name = change.columns.get(column).map(String::as_str).unwrap_or_default();
        overlay.column(name).ok_or_else(|| refusal(change, &format!("the table has no column {name} any more")))
    };
    let whole = |row: &[Value]| -> Result<Image, String> {
        let mut image: Image = vec![None; overlay.columns.len()];
        for (column, value) in row.iter().enumerate() {
            if let Some(slot) = image.get_mut(place(column)?) {
                *slot = Some(value.clone());
            }
        }
        Ok(image)
    };
    match (&change.change, row) {
        (RowChange::Insert { row }, None) => Ok(Some(whole(row)?)),
        (RowChange::Insert { row }, Some(there)) => {
            let image = whole(row)?;
            let same = image.iter().zip(&there).all(|(mine, there)| mine.is_none() || there.is_none() || mine == there);
            if same { Ok(Some(there)) } else { Err(refusal(change, "another row has the key")) }
        }
        // Pruned on the node alone: what was changed before is sent, and shows nothing (R31).
        (RowChange::Update { .. }, None) if overlay.upload_only => Ok(None),
        (RowChange::Update { whole: Some(row), .. }, None) if overlay.rules.delete == DeletePolicy::Resurrect => Ok(Some(whole(row)?)),
        (RowChange::Update { .. }, None) => Err(refusal(change, "the row to change is gone")),
        (RowChange::Update { fields, .. }, Some(mut image)) => {
            for field in fields {
                let place = place(usize::from(field.column))?;
                let is_sum = overlay.columns.get(place).is_some_and(|column| column.is_sum);
                if let Some(slot) = image.get_mut(place) {
                    *slot = Some(match slot {
                        Some(standing) if is_sum => add_difference(standing, &field.before, &field.after),
                        _ => field.after.clone(),
                    });
                }
            }
            Ok(Some(image))
        }
        (RowChange::Delete { .. }, _) => Ok(None),
    }
}

/// Says why a change cannot be done.
pub(super) fn refusal(change: &PendingChange, reason: &str) -> String {
    format!("table {}, key {}: {reason}", change.table, display_key(&change.key))
}
