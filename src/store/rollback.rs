//! What rows and nodes were at an earlier position of the log, by the before-images that the log holds above it (R26).
//!
//! Every entry tells what the row at its key was when its statement began, and what it was when the entry was written. Statements nest:
//! a trigger of a program that fires before ours (a TEMP one, or one that is newer than ours) is logged before the statement that set it
//! off, though it ran after that one began. So an entry that does not go on from where the entry before it ended stands within a
//! statement whose own entry comes later. That one is known by beginning where the break is; one that begins where nothing logged ever
//! stood began before everything that was logged so far. A row that stood in the way of a statement may have been removed by it without
//! an entry of its own.
//!
//! Where such a trigger takes back exactly what its statement did, the two readings of the log cannot be told apart; the one without
//! nesting is taken.

use crate::base::ids::{NodeName, TxnId};
use crate::model::node::Node;
use crate::model::value::{Row, RowKey, Value};
use crate::store::capture::Capture;
use crate::store::control::Control;
use crate::store::log::{Entry, Images, Op};
use crate::store::snapshot::Snapshot;
use crate::store::sqlite::StoreError;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// A row as the log saw it: by the columns that its table was captured with then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedRow {
    /// Names of the columns.
    pub columns: Arc<Vec<String>>,
    /// Their values.
    pub row: Row,
}

impl LoggedRow {
    /// Returns whether two images are of the same row state, as far as both have its columns.
    fn is_same(&self, other: &LoggedRow) -> bool {
        if self.columns == other.columns {
            return self.row == other.row;
        }
        let pairs = self.columns.iter().zip(&self.row);
        pairs.into_iter().all(|(name, value)| match other.columns.iter().position(|column| column == name) {
            Some(place) => other.row.get(place) == Some(value),
            None => true,
        })
    }
}

/// Why the log does not tell everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// The table concerned; `None` = every one.
    pub table: Option<String>,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.table {
            Some(table) => write!(f, "table {table}: {}", self.reason),
            None => write!(f, "every table: {}", self.reason),
        }
    }
}

/// What was different at the earlier position.
#[derive(Debug, Default)]
pub struct Rollback {
    /// By lower-case name of the table: keys that the log names, with the row of that time; `None` = there was none.
    pub rows: BTreeMap<String, BTreeMap<RowKey, Option<LoggedRow>>>,
    /// Nodes that changed since; `None` = there was none.
    pub nodes: BTreeMap<NodeName, Option<Node>>,
    /// Why the log does not tell everything, if it does not.
    pub doubts: Vec<Doubt>,
}

impl Rollback {
    /// Returns whether the log may not tell everything of a table.
    pub fn is_doubtful(&self, table: &str) -> bool {
        self.doubts.iter().any(|doubt| doubt.table.as_ref().is_none_or(|of| of.eq_ignore_ascii_case(table)))
    }
}

/// What stood at a key when an entry was written.
#[derive(Debug, Clone, Default)]
enum Stands {
    Row(LoggedRow),
    #[default]
    Nothing,
    /// A row that a statement may remove without another entry.
    Hinted(LoggedRow),
    /// The entry is of a row that went elsewhere.
    Unknown,
}

impl Stands {
    fn may_be(&self, row: Option<&LoggedRow>) -> bool {
        match (self, row) {
            (Stands::Row(known) | Stands::Hinted(known), Some(row)) => known.is_same(row),
            (Stands::Nothing | Stands::Hinted(_), None) | (Stands::Unknown, _) => true,
            (Stands::Row(_), None) | (Stands::Nothing, Some(_)) => false,
        }
    }
}

/// A place between two entries where they do not follow from each other.
#[derive(Debug)]
struct Break {
    /// Where the one before ended.
    after: Stands,
    /// Where the one behind began.
    began: Option<LoggedRow>,
    /// Whether that one may have begun between two earlier ones that do follow from each other, having changed nothing itself.
    is_explained: bool,
}

/// What is known of one key while the log is read.
#[derive(Debug, Default)]
struct Known {
    /// Where the first entry began.
    first: Option<LoggedRow>,
    /// Where the last one ended.
    last: Stands,
    /// Breaks for which no statement was found yet.
    breaks: Vec<Break>,
    /// Hashes of the rows at which one entry went on from another: a statement that changed nothing itself may have begun there.
    passed: HashSet<u64>,
    /// Whether an entry went on from a hinted row: that may have been removed, and the same row have come again.
    passed_hint: bool,
}

impl Known {
    /// Adds an entry to what is known of its key: where its statement began, and what stood there when it was written.
    fn note(known: &mut BTreeMap<RowKey, Known>, key: RowKey, began: Option<LoggedRow>, left: Stands) {
        let Some(of_key) = known.get_mut(&key) else {
            let last = if matches!(left, Stands::Unknown) { Stands::Nothing } else { left };
            known.insert(key, Known { first: began, last, ..Known::default() });
            return;
        };
        let gone_elsewhere = matches!(left, Stands::Unknown);
        if of_key.last.may_be(began.as_ref()) {
            if let Some(row) = &began {
                of_key.passed.insert(hash(&row.row));
                of_key.passed_hint |= matches!(of_key.last, Stands::Hinted(_));
            }
            of_key.last = if gone_elsewhere { Stands::Nothing } else { left };
        } else if let Some(place) = of_key.breaks.iter().rposition(|place| place.after.may_be(began.as_ref())) {
            // All that was logged behind the break happened within this statement.
            of_key.breaks.truncate(place);
            if !gone_elsewhere {
                of_key.last = left;
            }
        } else {
            let is_explained = of_key.passed(began.as_ref());
            let after = std::mem::replace(&mut of_key.last, left);
            of_key.breaks.push(Break { after, began, is_explained });
        }
    }

    /// Returns whether a statement may have begun between two entries that follow from each other.
    fn passed(&self, began: Option<&LoggedRow>) -> bool {
        match (began, &self.first) {
            // What happened within an insertion begins with its row.
            (None, _) => self.passed_hint,
            (Some(row), Some(first)) if row.is_same(first) => true,
            (Some(row), _) => self.passed.contains(&hash(&row.row)),
        }
    }

    /// Adds an entry of a row that was gone again when its entry was written: what took it away is logged already, so the statement
    /// began before that.
    fn note_gone(known: &mut BTreeMap<RowKey, Known>, key: RowKey) {
        let of_key = known.entry(key).or_default();
        match of_key.breaks.iter().rposition(|place| place.after.may_be(None)) {
            Some(place) => of_key.breaks.truncate(place),
            None => {
                of_key.first = None;
                of_key.breaks.clear();
            }
        }
        of_key.last = Stands::Nothing;
    }

    /// Returns what stood there before everything that was logged. An entry behind a break that nothing explains was of the outermost
    /// statement.
    fn before(self) -> Option<LoggedRow> {
        let outermost = self.breaks.into_iter().rfind(|place| !place.is_explained);
        outermost.map_or(self.first, |outermost| outermost.began)
    }
}

fn hash(row: &[Value]) -> u64 {
    let mut hasher = DefaultHasher::new();
    row.hash(&mut hasher);
    hasher.finish()
}

impl Snapshot<'_> {
    /// Returns what rows and nodes were when the log ended at `after`.
    ///
    /// # Errors
    /// [`StoreError::LogGap`] if log rows are missing; a row of ours is damaged; or a statement failed.
    pub fn rollback_to(&self, after: TxnId) -> Result<Rollback, StoreError> {
        let mut rollback = Rollback::default();
        let mut known: BTreeMap<String, BTreeMap<RowKey, Known>> = BTreeMap::new();
        let mut names: BTreeMap<i64, Arc<Vec<String>>> = BTreeMap::new();
        self.database.visit_log(after, self.log_end()?, Images::Whole, |entry| {
            match entry {
                Entry::Control(control) => note_control(control, &mut rollback),
                Entry::Change { capture, op, old, new, .. } => {
                    let columns = Arc::clone(names.entry(capture.id).or_insert_with(|| Arc::new(capture.columns.clone())));
                    let rows = known.entry(capture.table.to_ascii_lowercase()).or_default();
                    note_change(capture, &columns, op, old, new, rows);
                }
            }
            Ok(())
        })?;
        rollback
            .doubts
            .extend(self.database.stopped_in_snapshot()?.into_iter().map(|(table, reason)| Doubt { table: Some(table), reason }));
        rollback.rows =
            known.into_iter().map(|(table, rows)| (table, rows.into_iter().map(|(key, known)| (key, known.before())).collect())).collect();
        Ok(rollback)
    }
}

fn note_control(control: Control, rollback: &mut Rollback) {
    match control {
        Control::Node { node, before } => drop(rollback.nodes.entry(node.name).or_insert(before)),
        Control::NodeDeleted { name, before } => drop(rollback.nodes.entry(name).or_insert(before)),
        Control::Reconcile { tables, reason } => {
            let doubt = |table| Doubt { table, reason: reason.clone() };
            match tables.as_slice() {
                [] => rollback.doubts.push(doubt(None)),
                named => rollback.doubts.extend(named.iter().cloned().map(|table| doubt(Some(table)))),
            }
        }
        Control::Definition { .. } | Control::Tick { .. } | Control::Verify { .. } | Control::Confirm { .. } => {}
    }
}

fn note_change(capture: &Capture, columns: &Arc<Vec<String>>, op: Op, old: Row, new: Option<Row>, rows: &mut BTreeMap<RowKey, Known>) {
    let key = |row: &Row| -> RowKey { capture.key.iter().map(|at| row.get(*at).cloned().unwrap_or(Value::Null)).collect() };
    let image = |row: &Row| LoggedRow { columns: Arc::clone(columns), row: row.clone() };
    let old_key = key(&old);
    let stands = |row: Option<&Row>| row.map_or(Stands::Nothing, |row| Stands::Row(image(row)));
    match op {
        Op::Hint => Known::note(rows, old_key, Some(image(&old)), Stands::Hinted(image(&old))),
        Op::Inserted => Known::note(rows, old_key, None, stands(Some(&old))),
        Op::InsertedAndGone => Known::note_gone(rows, old_key),
        Op::Deleted => Known::note(rows, old_key, Some(image(&old)), Stands::Nothing),
        Op::Updated => {
            let new_key = new.as_ref().map(&key).filter(|key| !key.iter().all(Value::is_null));
            if new_key.as_ref() == Some(&old_key) {
                return Known::note(rows, old_key, Some(image(&old)), stands(new.as_ref()));
            }
            Known::note(rows, old_key, Some(image(&old)), Stands::Unknown);
            if let Some(new_key) = new_key {
                Known::note(rows, new_key, None, stands(new.as_ref()));
            }
        }
        Op::NullKey => {}
    }
}
