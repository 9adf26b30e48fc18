//! What rows and nodes were at an earlier position of the log, by the before-images that the log holds above it (R26).
//!
//! For each key that the log names, the earliest of its entries tells what the row was: `U` and `D` by their old image, `H` by its own,
//! `I` and `G` that there was none. Two things need care, because a trigger of a program that fires before ours (a TEMP one, or one
//! that is newer than ours) is logged before the statement that set it off:
//! - A row that an entry brought to its key was not there before, even if an update of it stands in the log before that entry.
//! - An update whose old image is not what the entry before it left began before that entry: its old image is the earlier one.
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

/// What was different at the earlier position.
#[derive(Debug, Default)]
pub struct Rollback {
    /// By lower-case name of the table: keys that the log names, with the row of that time; `None` = there was none.
    pub rows: BTreeMap<String, BTreeMap<RowKey, Option<LoggedRow>>>,
    /// Nodes that changed since; `None` = there was none.
    pub nodes: BTreeMap<NodeName, Option<Node>>,
    /// Why the log does not tell everything, if it does not.
    pub doubts: Vec<String>,
}

/// What is known of one key while the log is read.
#[derive(Debug, Default)]
struct Known {
    before: Option<LoggedRow>,
    /// Whether an entry said that the row was there, so that one which comes to the key later is another.
    was_there: bool,
    /// Whether an entry said that there was none; nothing later can change that.
    was_absent: bool,
    /// Hashes of what the entries so far left.
    left: HashSet<u64>,
    seen: bool,
}

impl Known {
    /// The row stood at the key with this image when the statement began.
    fn was(&mut self, image: LoggedRow, settles: bool) {
        let nested = self.seen && !self.left.contains(&hash(&image.row));
        if !self.was_absent && (!self.seen || nested) {
            self.before = Some(image);
        }
        self.seen = true;
        self.was_there |= settles;
    }

    /// The row came to this key.
    fn came(&mut self) {
        if !self.was_there {
            self.before = None;
            self.was_absent = true;
        }
        self.seen = true;
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
        rollback.doubts.extend(self.database.stopped_in_snapshot()?.into_iter().map(|(table, reason)| format!("table {table}: {reason}")));
        rollback.rows =
            known.into_iter().map(|(table, rows)| (table, rows.into_iter().map(|(key, known)| (key, known.before)).collect())).collect();
        Ok(rollback)
    }
}

fn note_control(control: Control, rollback: &mut Rollback) {
    match control {
        Control::Node { node, before } => drop(rollback.nodes.entry(node.name).or_insert(before)),
        Control::NodeDeleted { name, before } => drop(rollback.nodes.entry(name).or_insert(before)),
        Control::Reconcile { tables, reason } => {
            let what = if tables.is_empty() { "every table".to_owned() } else { tables.join(", ") };
            rollback.doubts.push(format!("{what}: {reason}"));
        }
        Control::Definition { .. } | Control::Tick { .. } | Control::Verify { .. } => {}
    }
}

fn note_change(capture: &Capture, columns: &Arc<Vec<String>>, op: Op, old: Row, new: Option<Row>, rows: &mut BTreeMap<RowKey, Known>) {
    let key = |row: &Row| -> RowKey { capture.key.iter().map(|at| row.get(*at).cloned().unwrap_or(Value::Null)).collect() };
    let image = |row: &Row| LoggedRow { columns: Arc::clone(columns), row: row.clone() };
    let old_key = key(&old);
    match op {
        Op::Hint => rows.entry(old_key).or_default().was(image(&old), true),
        Op::Inserted | Op::InsertedAndGone => {
            let known = rows.entry(old_key).or_default();
            known.came();
            known.left.insert(hash(&old));
        }
        Op::Deleted => rows.entry(old_key).or_default().was(image(&old), true),
        Op::Updated => {
            let new_key = new.as_ref().map(&key).filter(|key| !key.iter().all(Value::is_null));
            let moved = new_key.as_ref() != Some(&old_key);
            rows.entry(old_key).or_default().was(image(&old), moved);
            if let (Some(new_key), Some(new)) = (new_key, new) {
                let known = rows.entry(new_key).or_default();
                if moved {
                    known.came();
                }
                known.left.insert(hash(&new));
            }
        }
        Op::NullKey => {}
    }
}
