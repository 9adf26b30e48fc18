//! Reads the log of a local database: which rows were touched, and where one unit ends and the next begins.
//!
//! Of the log only keys are held, as bytes; what a row came to is read from its table, or from the log where a later unit of the same cut changes it
//! again.
//!
//! A pair of marks of one label makes a unit of what lies between. Where a hint leaves open whether a row was still there at such a border
//! (it is touched again behind it, so the table does not tell), the border does not count.

use super::local::LocalError;
use super::local_before::CutTable;
use super::local_capture::LocalCapture;
use super::sqlite::value_of;
use crate::model::keycode;
use crate::model::value::{Row, RowKey, Value};
use rusqlite::{Connection, OptionalExtension};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

/// What is in the log, up to a position.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Rows, each once.
    pub(super) rows: Vec<TouchedRow>,
    /// Units to be, in order; none without a row.
    pub(super) segments: Vec<Segment>,
    /// Tables in which a key is or was NULL.
    pub(super) null_keys: Vec<usize>,
    /// Rows by the hash of table and folded key.
    numbers: HashMap<[u8; 16], usize>,
    /// Further spellings of keys, mostly none.
    spellings: HashMap<usize, Vec<RowKey>>,
}

/// A row that the log names. There are as many as a program touched between two cuts, so it is kept small.
#[derive(Debug)]
pub(super) struct TouchedRow {
    /// Its table, as an index into the tables of the cut.
    pub(super) table: usize,
    /// Its key as the log spelled it first, as `keycode`.
    key: Box<[u8]>,
    /// Log row whose first image shows it before all else, if its first entry is one that does.
    pub(super) first: Option<i64>,
    /// The last segment that has entries of it.
    last_segment: usize,
}

impl TouchedRow {
    /// Returns its key as it was first spelled.
    pub(super) fn key(&self) -> RowKey {
        keycode::decode(&self.key).unwrap_or_default()
    }
}

/// What becomes one unit.
#[derive(Debug, Default)]
pub(super) struct Segment {
    /// The label of its marks.
    pub(super) label: Option<String>,
    /// Rows in the order of first touch.
    pub(super) order: Vec<usize>,
    /// The last entry of each.
    pub(super) last: HashMap<usize, Last>,
    /// Where the row that a key had when the segment began is now: key after, key then.
    pub(super) moved: HashMap<usize, usize>,
    /// Keys whose row of the beginning is no longer there.
    left: HashSet<usize>,
}

/// The last that a segment's log says of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    /// It was there: the log row, and whether its second image shows it.
    Image {
        /// Number of the log row.
        id: i64,
        /// Whether the second image is meant.
        second: bool,
    },
    /// It was not there.
    Absent,
    /// It stood in the way of a statement that may have removed it.
    Hint,
}

/// Reads the log up to a position. `tables` by the place of their captures in `captures`.
pub(super) struct LogReader<'a> {
    pub(super) connection: &'a Connection,
    pub(super) path: &'a Path,
    /// Every capture that the log may name.
    pub(super) captures: &'a [LocalCapture],
    /// The tables as they are captured now.
    pub(super) tables: &'a [CutTable],
}

/// Where the values of a table's key stand in one image of a log row; `None` if it was captured by another key.
type KeyPlaces = Option<Vec<usize>>;
/// A table of the cut, by place.
type Target = (usize, KeyPlaces);

impl LogReader<'_> {
    fn sql(&self, source: rusqlite::Error) -> LocalError {
        LocalError::of_sql(self.path, "read the log of local changes", source)
    }

    /// Returns the position of the last entry; `None` if there is none.
    pub(super) fn end(connection: &Connection) -> rusqlite::Result<Option<i64>> {
        connection.prepare_cached("SELECT max(id) FROM main.dock_txn_log")?.query_row([], |row| row.get(0))
    }

    /// Returns the table that a capture's entries concern now, and where the key stands in them.
    fn target(&self, capture: &LocalCapture) -> Option<Target> {
        let table = self.tables.iter().position(|table| table.capture.table.eq_ignore_ascii_case(&capture.table))?;
        let now = &self.tables.get(table)?.capture;
        let names = now.key.iter().filter_map(|place| now.columns.get(*place));
        let place = |name: &String| capture.columns.iter().position(|column| column.eq_ignore_ascii_case(name));
        Some((table, names.map(place).collect()))
    }

    /// Reads which rows were touched.
    ///
    /// # Errors
    /// An entry is damaged, its table has another key now, or a statement failed.
    pub(super) fn read(&self, upto: i64) -> Result<Touched, LocalError> {
        let borders = self.borders(upto)?;
        let targets: BTreeMap<i64, (&LocalCapture, Option<Target>)> =
            self.captures.iter().map(|capture| (capture.id, (capture, self.target(capture)))).collect();
        let mut read = Touched::default();
        let mut segment = Segment::default();
        let mut next = borders.iter().peekable();
        let width = self.captures.iter().map(|capture| capture.columns.len() * 2).max().unwrap_or(1).max(1);
        let is_key = |place: usize| {
            targets.values().any(|(capture, target)| match target {
                Some((_, Some(key))) => key.iter().any(|key| place == *key || place == capture.columns.len() + key),
                _ => false,
            })
        };
        let columns: Vec<String> = (0..width).map(|place| if is_key(place) { format!("c{}", place + 1) } else { "NULL".into() }).collect();
        let sql = format!("SELECT id, tbl, op, {} FROM main.dock_txn_log WHERE id <= ?1 AND tbl <> 0 ORDER BY id", columns.join(", "));
        let mut statement = self.connection.prepare_cached(&sql).map_err(|source| self.sql(source))?;
        let mut rows = statement.query([upto]).map_err(|source| self.sql(source))?;
        while let Some(row) = rows.next().map_err(|source| self.sql(source))? {
            let (id, number): (i64, i64) = (row.get(0).map_err(|source| self.sql(source))?, row.get(1).map_err(|source| self.sql(source))?);
            let op: String = row.get(2).map_err(|source| self.sql(source))?;
            while let Some((_, label)) = next.next_if(|(at, _)| *at < id) {
                let ended = std::mem::replace(&mut segment, Segment { label: label.clone(), ..Segment::default() });
                read.end(ended);
            }
            let damaged = |value: String| LocalError::State { path: self.path.to_owned(), column: "dock_txn_log", value };
            let Some((capture, target)) = targets.get(&number) else {
                return Err(damaged(format!("log row {id} is of table {number}, which dock_capture does not know")));
            };
            // A table that is gone has nothing to send.
            let Some((table, places)) = target else { continue };
            let Some(places) = places else {
                return Err(damaged(format!("log row {id}: {} has another primary key than when it was written", capture.table)));
            };
            let key = |offset: usize| -> Result<RowKey, LocalError> {
                let value = |place: &usize| row.get_ref(3 + offset + place).map(value_of);
                places.iter().map(value).collect::<rusqlite::Result<RowKey>>().map_err(|source| self.sql(source))
            };
            let Some(cut_table) = self.tables.get(*table) else { continue };
            let entry = Entry { id, table: *table, of: cut_table };
            let has_second = matches!(op.as_str(), "U" | "D" | "N");
            let second = if has_second { Some(key(capture.columns.len())?) } else { None };
            read.entry(&mut segment, &entry, &op, key(0)?, second).map_err(damaged)?;
        }
        read.end(segment);
        read.merge_where_hints_are_open();
        Ok(read)
    }

    /// Returns where segments begin: after which log row, and the label of what follows.
    fn borders(&self, upto: i64) -> Result<Vec<(i64, Option<String>)>, LocalError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT id, c1 FROM main.dock_txn_log WHERE tbl = 0 AND op = 'M' AND id <= ?1 ORDER BY id")
            .map_err(|source| self.sql(source))?;
        let mut rows = statement.query([upto]).map_err(|source| self.sql(source))?;
        let (mut borders, mut open) = (Vec::new(), None::<(i64, Value)>);
        while let Some(row) = rows.next().map_err(|source| self.sql(source))? {
            let at: i64 = row.get(0).map_err(|source| self.sql(source))?;
            let label = row.get_ref(1).map(value_of).map_err(|source| self.sql(source))?;
            open = match open.take() {
                Some((begin, opened)) if opened == label => {
                    let text = match label {
                        Value::Null => None,
                        Value::Text(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
                        other => Some(other.to_string()),
                    };
                    borders.extend([(begin, text), (at, None)]);
                    None
                }
                // A mark without its second says nothing.
                _ => Some((at, label)),
            };
        }
        Ok(borders)
    }

    /// Returns an image of a log row by the columns that its table has now.
    pub(super) fn image(&self, table: &CutTable, id: i64, second: bool) -> Result<Row, LocalError> {
        let number: Option<i64> = self
            .connection
            .prepare_cached("SELECT tbl FROM main.dock_txn_log WHERE id = ?1")
            .and_then(|mut statement| statement.query_row([id], |row| row.get(0)).optional())
            .map_err(|source| self.sql(source))?;
        let capture = self.captures.iter().find(|capture| Some(capture.id) == number);
        let Some(capture) = capture else {
            return Err(LocalError::State { path: self.path.to_owned(), column: "dock_txn_log", value: format!("log row {id} is gone") });
        };
        let offset = if second { capture.columns.len() } else { 0 };
        let place = |name: &String| capture.columns.iter().position(|column| column.eq_ignore_ascii_case(name));
        let columns: Vec<String> = table
            .capture
            .columns
            .iter()
            .map(|name| place(name).map_or("NULL".to_owned(), |place| format!("c{}", place + offset + 1)))
            .collect();
        let width = columns.len();
        self.connection
            .prepare_cached(&format!("SELECT {} FROM main.dock_txn_log WHERE id = ?1", columns.join(", ")))
            .and_then(|mut statement| statement.query_row([id], |row| (0..width).map(|at| row.get_ref(at).map(value_of)).collect()))
            .map_err(|source| self.sql(source))
    }
}

struct Entry<'a> {
    id: i64,
    table: usize,
    of: &'a CutTable,
}

impl Touched {
    /// Takes an entry of the log: what the triggers write stands in `capture`.
    fn entry(&mut self, segment: &mut Segment, entry: &Entry<'_>, op: &str, old: RowKey, new: Option<RowKey>) -> Result<(), String> {
        let id = entry.id;
        // An image that is NULL throughout its key shows a row that was gone again.
        let new = new.filter(|key| !key.iter().all(Value::is_null));
        let is_null = |key: &RowKey| key.iter().any(Value::is_null);
        if (op == "N" || is_null(&old) || new.as_ref().is_some_and(is_null)) && !self.null_keys.contains(&entry.table) {
            self.null_keys.push(entry.table);
        }
        let old = (!is_null(&old)).then_some(old);
        let new = new.filter(|key| !is_null(key));
        let shows_first = matches!(op, "U" | "D" | "H" | "N");
        let old = old.map(|key| self.row(entry, key, shows_first.then_some(id)));
        let new = new.map(|key| self.row(entry, key, None));
        let image = |second| Last::Image { id, second };
        match op {
            "I" => old.into_iter().for_each(|row| segment.note(row, image(false))),
            "G" => old.into_iter().for_each(|row| segment.note(row, Last::Absent)),
            "H" => old.into_iter().for_each(|row| segment.note(row, Last::Hint)),
            "U" | "D" | "N" => {
                // A row that came to have a key is logged as an insert of it is.
                if let Some(row) = old.filter(|row| Some(*row) != new) {
                    segment.note(row, Last::Absent);
                }
                if let Some(row) = new {
                    segment.note(row, image(true));
                }
                match (old, new) {
                    (Some(old), Some(new)) if old != new => segment.move_row(old, new),
                    (Some(old), None) => segment.lose(old),
                    _ => {}
                }
            }
            other => return Err(format!("log row {id} has the operation `{other}`")),
        }
        Ok(())
    }

    fn row(&mut self, entry: &Entry<'_>, key: RowKey, first: Option<i64>) -> usize {
        let next = self.rows.len();
        let number = *self.numbers.entry(name_of(entry.table, &entry.of.fold(&key))).or_insert(next);
        let code = keycode::encode(&key).into_boxed_slice();
        match self.rows.get(number) {
            None => self.rows.push(TouchedRow { table: entry.table, key: code, first, last_segment: 0 }),
            Some(row) if row.key != code => {
                let spellings = self.spellings.entry(number).or_default();
                if !spellings.contains(&key) {
                    spellings.push(key);
                }
            }
            Some(_) => {}
        }
        number
    }

    /// Returns every spelling of a row's key in the log, the first first.
    pub(super) fn keys(&self, number: usize) -> Vec<RowKey> {
        let first = self.rows.get(number).map(TouchedRow::key);
        first.into_iter().chain(self.spellings.get(&number).into_iter().flatten().cloned()).collect()
    }

    fn end(&mut self, segment: Segment) {
        if !segment.order.is_empty() {
            self.segments.push(segment);
        }
    }

    /// Whether a segment behind one has entries of a row.
    pub(super) fn is_touched_after(&self, segment: usize, row: usize) -> bool {
        self.rows.get(row).is_some_and(|row| row.last_segment > segment)
    }

    fn merge_where_hints_are_open(&mut self) {
        let mut closed = vec![true; self.segments.len()];
        for (place, segment) in self.segments.iter().enumerate() {
            for row in segment.last.iter().filter(|(_, last)| **last == Last::Hint).map(|(row, _)| *row) {
                let again = self.segments.iter().skip(place + 1).position(|later| later.last.contains_key(&row));
                if let Some(distance) = again {
                    closed.iter_mut().skip(place).take(distance + 1).for_each(|closed| *closed = false);
                }
            }
        }
        let mut merged: Vec<Segment> = Vec::new();
        let mut is_closed = true;
        for (segment, closed) in std::mem::take(&mut self.segments).into_iter().zip(closed) {
            match merged.last_mut().filter(|_| !is_closed) {
                Some(before) => before.append(segment),
                None => merged.push(segment),
            }
            is_closed = closed;
        }
        for (place, segment) in merged.iter().enumerate() {
            for row in &segment.order {
                if let Some(row) = self.rows.get_mut(*row) {
                    row.last_segment = place;
                }
            }
        }
        self.segments = merged;
    }
}

/// Returns what stands for a row: two rows have the same only by a collision of SHA-256.
fn name_of(table: usize, folded: &[Value]) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(table.to_le_bytes());
    hash.update(keycode::encode(folded));
    let hash: [u8; 32] = hash.finalize().into();
    hash.first_chunk::<16>().copied().unwrap_or_default()
}

impl Segment {
    fn note(&mut self, row: usize, last: Last) {
        if self.last.insert(row, last).is_none() {
            self.order.push(row);
        }
    }

    /// The row of a key has another key now; whatever had that one is gone.
    fn move_row(&mut self, old: usize, new: usize) {
        let origin = self.origin(old);
        self.lose(old);
        match origin {
            Some(origin) => self.moved.insert(new, origin),
            None => self.moved.remove(&new),
        };
        self.left.insert(new);
    }

    /// Returns the key that the row under a key had when the segment began; `None` if it was not there then.
    fn origin(&self, row: usize) -> Option<usize> {
        self.moved.get(&row).copied().or_else(|| (!self.left.contains(&row)).then_some(row))
    }

    fn lose(&mut self, row: usize) {
        self.moved.remove(&row);
        self.left.insert(row);
    }

    fn append(&mut self, later: Segment) {
        self.label = match (self.label.take(), later.label) {
            (Some(one), Some(other)) => Some(format!("{one}, {other}")),
            (one, other) => one.or(other),
        };
        let moved: Vec<(usize, usize)> = later.moved.iter().filter_map(|(new, old)| Some((*new, self.origin(*old)?))).collect();
        for row in later.order {
            if let Some(last) = later.last.get(&row) {
                self.note(row, *last);
            }
            if later.left.contains(&row) {
                self.lose(row);
            }
        }
        self.moved.extend(moved);
    }
}
