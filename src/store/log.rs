//! Reads the log as units, and keeps it: tail, end, purge.
//!
//! A unit is everything between the reader's position and the end of one read snapshot, which is a transaction boundary: SQLite has
//! one writer, so log order is commit order. The log says *which* rows were touched; what a touched row came to is read from its
//! table in the same snapshot. So nothing that ran between a log entry and the commit can make the two disagree: not the order of
//! nested triggers (R1), not a row removed by REPLACE (R2), not a log entry in an older shape (B12).
//!
//! Memory: the log is streamed, whatever its values weigh. The keys that a unit touched, and the final rows, are held until it is
//! handed over; a unit of more than [`UnitMemory`] allows is handed over in chunks (`unit_rows`).

use crate::base::ids::{Nonce, TxnId};
use crate::base::limits::{ROW_BYTES_MAX, VALUE_BYTES_MAX};
use crate::model::value::{Row, RowKey, Value, display_key};
use crate::store::capture::{Capture, key_condition, read_captures};
use crate::store::control::Control;
use crate::store::doubt::doubt;
use crate::store::snapshot::Snapshot;
use crate::store::sqlite::{ServerDatabase, SqlValue, StoreError, quote_name, value_of};
use crate::store::unit_rows::{TouchedKeys, UnitMemory, UnitRows};
use rusqlite::Connection;
use rusqlite::types::ValueRef;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Where to read from.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadOptions {
    /// Position of the last unit that was read.
    pub after: TxnId,
    /// The mark under which it was read; `None` only if nothing was ever read.
    pub known: Option<Nonce>,
}

/// One unit.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitReading {
    /// Its name: the position of its last log row.
    pub upto: TxnId,
    /// Controls in log order.
    pub controls: Vec<Control>,
    /// One entry per touched row at most, sorted by table and key. A row that came back to what it was may be among them.
    pub changes: Vec<NetChange>,
    /// Tables that are stopped as of this reading, with the reason; their changes are left out.
    pub stopped: Vec<(String, String)>,
    /// `PRAGMA schema_version` of the snapshot.
    pub schema_version: i64,
    /// Whether the unit is larger than memory: `changes` is empty, they come in chunks.
    pub is_large: bool,
}

impl UnitReading {
    /// Returns whether the unit asks for a comparison of a table.
    pub fn is_compared(&self, table: &str) -> bool {
        self.controls.iter().any(|control| match control {
            Control::Reconcile { tables, .. } => tables.is_empty() || tables.iter().any(|named| named.eq_ignore_ascii_case(table)),
            _ => false,
        })
    }
}

/// What one unit made of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct NetChange {
    /// The table, as the definition spells it.
    pub table: String,
    /// Primary key, byte-exact.
    pub key: RowKey,
    /// Its captured columns when the unit ended, in the order of the definition's table; `None` if there is no such row.
    pub row: Option<Row>,
}

/// Whether tables are meant that were stopped because of a row in them, beside those whose capture is in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marked {
    /// They too.
    Included,
    /// Not they.
    Excluded,
}

/// The catalogue with what the schema has to say about it.
#[derive(Debug)]
pub(crate) struct Catalogue {
    stamp: (i64, i64, i64, i64),
    /// Every capture by id.
    captures: BTreeMap<i64, Capture>,
    /// Tables that are captured now, by lower-case name.
    active: BTreeMap<String, i64>,
    /// Captured tables that are stopped: capture id and reason.
    stopped: BTreeMap<i64, String>,
}

impl ServerDatabase {
    /// Returns the position of the last log row ever committed.
    ///
    /// # Errors
    /// Nothing is installed, or a statement failed.
    pub fn log_end(&self) -> Result<TxnId, StoreError> {
        self.require_installed()?;
        log_end(&self.connection).map_err(self.fault("reading the end of the log"))
    }

    /// Reads everything after a position as one unit, in one read snapshot; `None` if there is nothing.
    ///
    /// A table whose log shows a NULL key, or a row that no file can carry, is also marked as stopped in the catalogue, until it is deployed anew.
    ///
    /// # Errors
    /// [`StoreError::NotTheSameDatabase`], [`StoreError::LogReset`] and [`StoreError::LogGap`] if the log is not the one that was
    /// read last; otherwise nothing is installed, a row of ours is damaged, or a statement failed.
    pub fn read_unit(&self, options: &ReadOptions) -> Result<Option<UnitReading>, StoreError> {
        Ok(self.read_unit_with(options, None, |_, _, _| Ok::<_, StoreError>(((), Vec::new())))?.map(|(unit, ())| unit))
    }

    /// Like [`ServerDatabase::read_unit`]; `look` sees the same snapshot (R6), and reads there the rows of a unit that is larger than
    /// `memory` says. Beside what it came for, `look` returns tables that it found cannot be carried, with the reason: they stop with
    /// this unit.
    ///
    /// # Errors
    /// As [`ServerDatabase::read_unit`], and those of `look`.
    pub fn read_unit_with<T, E: From<StoreError>>(
        &self,
        options: &ReadOptions,
        memory: Option<&UnitMemory>,
        look: impl FnOnce(&Snapshot<'_>, &UnitReading, &mut UnitRows<'_>) -> Result<(T, Vec<(String, String)>), E>,
    ) -> Result<Option<(UnitReading, T)>, E> {
        let snapshot = self.connection.unchecked_transaction().map_err(self.fault("beginning to read the log"))?;
        let Some((mut unit, mut found, mut rows)) = self.read_in_snapshot(options, memory)? else {
            snapshot.rollback().map_err(self.fault("ending the read of the log"))?;
            return Ok(None);
        };
        let looked = look(&Snapshot { database: self }, &unit, &mut rows);
        let catalogue = self.catalogue()?;
        snapshot.rollback().map_err(self.fault("ending the read of the log"))?;
        if let Some((id, reason)) = &rows.stops {
            self.stop_capture(*id, reason)?;
        }
        let (looked, uncarried) = looked?;
        for (table, reason) in uncarried {
            found.extend(catalogue.active.get(&table.to_ascii_lowercase()).map(|id| (*id, reason.clone())));
            unit.stopped.push((table, reason));
        }
        for (id, reason) in found {
            self.stop_capture(id, &reason)?;
        }
        unit.stopped.sort();
        Ok(Some((unit, looked)))
    }

    fn read_in_snapshot(&self, options: &ReadOptions, memory: Option<&UnitMemory>) -> Result<Option<Read<'_>>, StoreError> {
        self.require_installed()?;
        let upto = log_end(&self.connection).map_err(self.fault("reading the end of the log"))?;
        self.check_mark(options)?;
        if upto < options.after {
            return Err(StoreError::LogReset { path: self.path.clone(), known: options.after, end: upto });
        }
        if upto == options.after {
            return Ok(None);
        }
        let catalogue = self.catalogue()?;
        let touched = self.read_touched(options.after, upto, &catalogue, memory)?;
        let mut stopped = catalogue.stopped.clone();
        for (id, reason) in &touched.null_keys {
            stopped.entry(*id).or_insert_with(|| reason.clone());
        }
        let mut unit = UnitReading {
            upto,
            controls: touched.controls,
            changes: Vec::new(),
            stopped: Vec::new(),
            schema_version: catalogue.stamp.0,
            is_large: touched.keys.is_spooled(),
        };
        let mut found = touched.null_keys;
        let mut bytes = 0;
        for (name, keys) in &touched.keys.held {
            let Some(capture) = catalogue.active.get(name).and_then(|id| catalogue.captures.get(id)) else { continue };
            // What is compared as a whole needs no second look.
            if unit.is_large || stopped.contains_key(&capture.id) || unit.is_compared(&capture.table) {
                continue;
            }
            let before = unit.changes.len();
            if let Some(reason) = self.read_live(capture, keys, &mut unit.changes, &mut bytes, memory)? {
                // A row that no file can carry ends this table, not the service.
                unit.changes.truncate(before);
                stopped.insert(capture.id, reason.clone());
                found.insert(capture.id, reason);
            }
            if memory.is_some_and(|memory| bytes > memory.bytes) {
                // All of it in chunks then, from the beginning; a table that stopped meanwhile has its reason.
                unit.is_large = true;
                unit.changes = Vec::new();
            }
        }
        let rows = match memory.filter(|_| unit.is_large) {
            None => UnitRows::none(self, Arc::clone(&catalogue)),
            Some(memory) => {
                let is_left_out = |id| {
                    let table = catalogue.captures.get(&id).map(|capture| capture.table.as_str());
                    stopped.contains_key(&id) || table.is_some_and(|table| unit.is_compared(table))
                };
                UnitRows::large(self, Arc::clone(&catalogue), touched.keys, memory, is_left_out)?
            }
        };
        unit.stopped = stopped
            .iter()
            .filter_map(|(id, reason)| catalogue.captures.get(id).map(|capture| (capture.table.clone(), reason.clone())))
            .collect();
        Ok(Some((unit, found.into_iter().collect(), rows)))
    }

    /// Streams the log rows of a unit and keeps the keys that they name.
    fn read_touched(&self, after: TxnId, upto: TxnId, catalogue: &Catalogue, memory: Option<&UnitMemory>) -> Result<Touched, StoreError> {
        let mut touched = Touched::default();
        self.visit_log(after, upto, Images::Keys, |entry| {
            match entry {
                Entry::Control(control) => touched.controls.push(control),
                Entry::Change { capture, op, old, new, id } => touched.change(capture, op, &old, new.as_ref(), id, catalogue, memory)?,
            }
            Ok(())
        })?;
        Ok(touched)
    }

    /// Calls `each` with every entry of the log after a position, in order. Called within a transaction.
    ///
    /// # Errors
    /// [`StoreError::LogGap`] if entries are missing; an entry is damaged; those of `each`; or a statement failed.
    pub(crate) fn visit_log(
        &self,
        after: TxnId,
        upto: TxnId,
        images: Images,
        mut each: impl FnMut(Entry<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let catalogue = self.catalogue()?;
        let fault = || self.fault("reading the log");
        let damaged = |id: i64, reason: String| StoreError::Damaged { path: self.path.clone(), what: format!("log row {id}"), reason };
        // Old image, then new image: nothing stands behind twice the widest capture; `c1` is always there, and holds a control.
        let width = catalogue.captures.values().map(|capture| capture.columns.len() * 2).max().unwrap_or(1).max(1);
        let is_key = |place: usize| {
            let keys = |capture: &Capture| capture.key.iter().any(|key| place == *key || place == capture.columns.len() + key);
            place == 0 || catalogue.captures.values().any(keys)
        };
        // What is not named is not copied out of the log.
        let column = |place: usize| if images == Images::Whole || is_key(place) { format!("c{}", place + 1) } else { "NULL".to_owned() };
        let columns: Vec<String> = (0..width).map(column).collect();
        let sql = format!("SELECT id, tbl, op, {} FROM main.dock_txn_log WHERE id > ?1 AND id <= ?2 ORDER BY id", columns.join(", "));
        let mut statement = self.connection.prepare_cached(&sql).map_err(fault())?;
        let mut rows = statement.query([after.0, upto.0]).map_err(fault())?;
        let mut seen = 0;
        while let Some(row) = rows.next().map_err(fault())? {
            seen += 1;
            let id: i64 = row.get(0).map_err(fault())?;
            let table: i64 = row.get(1).map_err(fault())?;
            let op = row.get_ref(2).map_err(fault())?;
            if table == 0 {
                let ValueRef::Text(json) = row.get_ref(3).map_err(fault())? else {
                    return Err(damaged(id, "a control that is no text".into()));
                };
                each(Entry::Control(serde_json::from_slice(json).map_err(|error| damaged(id, error.to_string()))?))?;
                continue;
            }
            let capture = catalogue.captures.get(&table).ok_or_else(|| damaged(id, format!("no table is captured as {table}")))?;
            let image = |offset: usize| -> Result<Row, StoreError> {
                let values = (0..capture.columns.len()).map(|place| row.get_ref(3 + offset + place).map(value_of));
                values.collect::<rusqlite::Result<Row>>().map_err(fault())
            };
            let op = Op::of(op).ok_or_else(|| damaged(id, "its `op` is unknown".into()))?;
            let new = matches!(op, Op::Updated | Op::NullKey).then(|| image(capture.columns.len())).transpose()?;
            each(Entry::Change { capture, op, old: image(0)?, new, id })?;
        }
        if seen != upto.0 - after.0 {
            return Err(StoreError::LogGap { path: self.path.clone(), after, upto, found: seen });
        }
        Ok(())
    }

    /// Reads what the touched rows of a table are now, until `bytes` are more than memory may hold. Returns why the table has to stop,
    /// if one of them is too long.
    fn read_live(
        &self,
        capture: &Capture,
        keys: &BTreeSet<RowKey>,
        changes: &mut Vec<NetChange>,
        bytes: &mut usize,
        memory: Option<&UnitMemory>,
    ) -> Result<Option<String>, StoreError> {
        let live = Live::of(capture);
        for key in keys {
            let row = match live.row(self, key)? {
                Ok(row) => row,
                Err(reason) => return Ok(Some(reason)),
            };
            *bytes += row.iter().flatten().map(Value::size).sum::<usize>();
            changes.push(NetChange { table: capture.table.clone(), key: key.clone(), row });
            if memory.is_some_and(|memory| *bytes > memory.bytes) {
                break;
            }
        }
        Ok(None)
    }

    /// Returns every captured table that is stopped now, with the reason.
    ///
    /// # Errors
    /// Nothing is installed, a row of ours is damaged, or a statement failed.
    pub fn stopped_tables(&self) -> Result<Vec<(String, String)>, StoreError> {
        self.require_installed()?;
        let snapshot = self.connection.unchecked_transaction().map_err(self.fault("beginning to read the catalogue"))?;
        let catalogue = self.catalogue()?;
        snapshot.rollback().map_err(self.fault("ending the read of the catalogue"))?;
        Ok(catalogue.stopped_tables(Marked::Included))
    }

    /// The same within a transaction of the caller.
    pub(crate) fn stopped_in_snapshot(&self) -> Result<Vec<(String, String)>, StoreError> {
        Ok(self.catalogue()?.stopped_tables(Marked::Included))
    }

    /// Returns the catalogue, compared anew with the schema if either changed since the last look.
    pub(crate) fn catalogue(&self) -> Result<Arc<Catalogue>, StoreError> {
        let fault = || self.fault("reading the catalogue");
        let version: i64 = self.connection.query_row("PRAGMA schema_version", [], |row| row.get(0)).map_err(fault())?;
        let stamp = self
            .connection
            .prepare_cached("SELECT count(*), ifnull(max(id), 0), count(stopped) FROM main.dock_capture")
            .and_then(|mut statement| statement.query_row([], |row| Ok((version, row.get(0)?, row.get(1)?, row.get(2)?))))
            .map_err(fault())?;
        if let Some(seen) = self.catalogue.borrow().as_ref()
            && seen.stamp == stamp
        {
            return Ok(Arc::clone(seen));
        }
        let captures = read_captures(&self.connection).map_err(fault())?.map_err(|(id, reason)| StoreError::Damaged {
            path: self.path.clone(),
            what: format!("row {id} of dock_capture"),
            reason,
        })?;
        let mut catalogue = Catalogue { stamp, captures: BTreeMap::new(), active: BTreeMap::new(), stopped: BTreeMap::new() };
        for capture in captures {
            if capture.active {
                catalogue.active.insert(capture.table.to_ascii_lowercase(), capture.id);
                let reason = match &capture.stopped {
                    Some(reason) => Some(reason.clone()),
                    None => doubt(&self.connection, &capture).map_err(fault())?,
                };
                if let Some(reason) = reason {
                    catalogue.stopped.insert(capture.id, reason);
                }
            }
            catalogue.captures.insert(capture.id, capture);
        }
        let catalogue = Arc::new(catalogue);
        *self.catalogue.borrow_mut() = Some(Arc::clone(&catalogue));
        Ok(catalogue)
    }

    fn stop_capture(&self, id: i64, reason: &str) -> Result<(), StoreError> {
        let fault = || self.fault("marking a table as stopped");
        let transaction = self.begin_write("marking a table as stopped")?;
        transaction.execute("UPDATE main.dock_capture SET stopped = ?2 WHERE id = ?1 AND stopped IS NULL", (id, reason)).map_err(fault())?;
        transaction.commit().map_err(fault())
    }
}

/// Reads rows of one table as they are now.
pub(super) struct Live<'c> {
    capture: &'c Capture,
    sql: String,
    action: String,
}

impl<'c> Live<'c> {
    pub(super) fn of(capture: &'c Capture) -> Live<'c> {
        let condition = key_condition(&capture.shape, "", |place, _| format!("?{}", place + 1), "=");
        let columns: Vec<String> = capture.columns.iter().map(|name| quote_name(name)).collect();
        let sql = format!("SELECT {} FROM main.{} WHERE {condition}", columns.join(", "), quote_name(&capture.table));
        Live { capture, sql, action: format!("reading {}", capture.table) }
    }

    /// Returns the row with exactly that key, or why no file can carry it.
    pub(super) fn row(&self, database: &ServerDatabase, key: &[Value]) -> Result<Result<Option<Row>, String>, StoreError> {
        let Live { capture, sql, action } = self;
        let fault = || database.fault(action);
        let mut statement = database.connection.prepare_cached(sql).map_err(fault())?;
        let mut rows = statement.query(rusqlite::params_from_iter(key.iter().map(SqlValue))).map_err(fault())?;
        let Some(found) = rows.next().map_err(fault())? else { return Ok(Ok(None)) };
        let columns = 0..capture.columns.len();
        let values: Row = columns.map(|place| found.get_ref(place).map(value_of)).collect::<Result<_, _>>().map_err(fault())?;
        // Under NOCASE another spelling answers to the same key, but it is another row to everyone who compares bytes.
        if !capture.key.iter().zip(key).all(|(position, value)| values.get(*position) == Some(value)) {
            return Ok(Ok(None));
        }
        Ok(match too_long(&capture.columns, &values) {
            Some(what) => Err(format!("the row with key {} was written, and {what}", display_key(key))),
            None => Ok(Some(values)),
        })
    }
}

/// Returns what makes a row longer than a file can carry it, `None` if nothing does.
pub(crate) fn too_long(columns: &[String], row: &Row) -> Option<String> {
    let bytes = |value: &Value| match value {
        Value::Text(bytes) | Value::Blob(bytes) => bytes.len(),
        Value::Null | Value::Integer(_) | Value::Real(_) => 9,
    };
    if let Some((name, value)) = columns.iter().zip(row).find(|(_, value)| bytes(value) > VALUE_BYTES_MAX) {
        return Some(format!("its `{name}` has {} bytes, the most is {VALUE_BYTES_MAX}", bytes(value)));
    }
    let all: usize = row.iter().map(bytes).sum();
    (all > ROW_BYTES_MAX).then(|| format!("it has {all} bytes, the most is {ROW_BYTES_MAX}"))
}

/// A unit, captures that are to be marked as stopped (id and reason), and the rows that are not in memory.
type Read<'d> = (UnitReading, Vec<(i64, String)>, UnitRows<'d>);

/// How much of the images of an entry is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Images {
    /// Values of key columns; all others are NULL.
    Keys,
    /// Every value.
    Whole,
}

/// An entry of the log.
#[derive(Debug)]
pub(crate) enum Entry<'a> {
    /// A control.
    Control(Control),
    /// A change of a row.
    Change {
        /// How its table was captured then.
        capture: &'a Capture,
        /// What happened.
        op: Op,
        /// The row before, or the only image that the entry has.
        old: Row,
        /// The row as it was when the entry was written; all NULL if it was gone again. Only of an update.
        new: Option<Row>,
        /// Its number.
        id: i64,
    },
}

/// What an entry of the log tells of a row; what the triggers write is in `capture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// It is new.
    Inserted,
    /// It was inserted, and was gone again when that was logged.
    InsertedAndGone,
    /// It changed, perhaps its key too; or it was deleted and stood there again.
    Updated,
    /// It is gone.
    Deleted,
    /// It stood in the way of a statement that may have removed it.
    Hint,
    /// Its key is or was NULL.
    NullKey,
}

impl Op {
    fn of(letter: ValueRef<'_>) -> Option<Op> {
        let ValueRef::Text(letter) = letter else { return None };
        Some(match letter {
            b"I" => Op::Inserted,
            b"G" => Op::InsertedAndGone,
            b"U" => Op::Updated,
            b"D" => Op::Deleted,
            b"H" => Op::Hint,
            b"N" => Op::NullKey,
            _ => return None,
        })
    }
}

/// Keys that a unit touched.
#[derive(Debug, Default)]
struct Touched {
    controls: Vec<Control>,
    keys: TouchedKeys,
    null_keys: BTreeMap<i64, String>,
    /// Capture of the entry before, and the table that its keys belong to.
    target: Option<(i64, Option<String>)>,
}

impl Touched {
    #[expect(clippy::too_many_arguments, reason = "the parts of one log entry, and what it is held against")]
    fn change(
        &mut self,
        capture: &Capture,
        op: Op,
        old: &Row,
        new: Option<&Row>,
        id: i64,
        catalogue: &Catalogue,
        memory: Option<&UnitMemory>,
    ) -> Result<(), StoreError> {
        for (place, image) in std::iter::once(old).chain(new).enumerate() {
            let key: RowKey = capture.key.iter().map(|position| image.get(*position).cloned().unwrap_or(Value::Null)).collect();
            if key.iter().all(Value::is_null) && place == 1 {
                continue; // The row was gone again when it was logged.
            }
            if op == Op::NullKey || key.iter().any(Value::is_null) {
                self.null_key(capture, id, catalogue);
                continue;
            }
            // Programs mostly stay with a table for a while.
            if !matches!(&self.target, Some((known, _)) if *known == capture.id) {
                self.target = Some((capture.id, catalogue.target(capture)));
            }
            if let Some((_, Some(name))) = &self.target {
                self.keys.insert(name, key, memory)?;
            }
        }
        Ok(())
    }

    fn null_key(&mut self, capture: &Capture, id: i64, catalogue: &Catalogue) {
        // What an earlier shape of the table logged was settled when the table was deployed anew.
        if catalogue.active.get(&capture.table.to_ascii_lowercase()) == Some(&capture.id) {
            let names: Vec<&str> = capture.key_names().collect();
            let reason =
                format!("a row with NULL in its primary key ({}) was written, and cannot be told apart (log row {id})", names.join(", "));
            self.null_keys.entry(capture.id).or_insert(reason);
        }
    }
}

impl Catalogue {
    /// Returns the capture with that id.
    pub(super) fn capture(&self, id: i64) -> Option<&Capture> {
        self.captures.get(&id)
    }

    /// Returns the id under which a table, by its lower-case name, is captured now.
    pub(super) fn active_id(&self, name: &str) -> Option<i64> {
        self.active.get(name).copied()
    }

    /// Returns the captures of every shape that a table had.
    pub(crate) fn of_table<'a>(&'a self, table: &'a str) -> impl Iterator<Item = &'a Capture> {
        self.captures.values().filter(move |capture| capture.table.eq_ignore_ascii_case(table))
    }

    /// Returns the stopped tables with the reason, sorted.
    pub(crate) fn stopped_tables(&self, marked: Marked) -> Vec<(String, String)> {
        let named = |(id, reason): (&i64, &String)| {
            let capture = self.captures.get(id).filter(|capture| marked == Marked::Included || capture.stopped.is_none())?;
            Some((capture.table.clone(), reason.clone()))
        };
        let mut stopped: Vec<_> = self.stopped.iter().filter_map(named).collect();
        stopped.sort();
        stopped
    }

    /// Returns the lower-case name of the table that a log row concerns, if the table is captured now and by the same key.
    fn target(&self, capture: &Capture) -> Option<String> {
        let name = capture.table.to_ascii_lowercase();
        let active = self.captures.get(self.active.get(&name)?)?;
        (active.id == capture.id || active.key_names().eq(capture.key_names())).then_some(name)
    }
}

/// Returns the position of the last log row ever committed on a connection's main database.
pub(crate) fn log_end(connection: &Connection) -> rusqlite::Result<TxnId> {
    connection
        .prepare_cached(
            "SELECT max(ifnull((SELECT seq FROM main.sqlite_sequence WHERE name = 'dock_txn_log'), 0), ifnull((SELECT max(id) FROM main.dock_txn_log), 0))",
        )?
        .query_row([], |row| row.get(0).map(TxnId))
}
