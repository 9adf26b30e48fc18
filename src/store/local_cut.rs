//! Makes units of what the log of a local database holds (docs/uploads.md 2).
//!
//! Invariants:
//! - One transaction: units written, log emptied, base entries settled. Its commit is FULL, so no unit is sent that a power cut takes back
//!   (I7, R13).
//! - A unit is the net change: a row deleted and inserted is updated (R3), one inserted and deleted is nothing, values are compared by type
//!   and bytes (R5).
//! - Nothing that a user did stops a cut. What cannot be sent is listed in `dock_conflict` with its values.

use super::local::{LocalDatabase, LocalError};
use super::local_apply::ApplyTransaction;
use super::local_before::{CutTable, Held, Pending};
use super::local_capture::{active, ensure_capture, read_local_captures};
use super::local_log::{Last, LogReader, Segment, Touched};
use super::local_pending::Translator;
use super::local_put_back::PutBack;
use super::local_rules::{RulesError, read_rules};
use super::local_units::{drop_changes, next_unit, store_change, store_head, suspended};
use super::sqlite::value_of;
use crate::base::clock;
use crate::base::ids::{Revision, TxnId, UnitNo};
use crate::dx::upload::weight;
use crate::model::dock::Direction;
use crate::model::keycode;
use crate::model::merge_rules::DeletePolicy;
use crate::model::upload::{FieldChange, RowChange, UploadHead};
use crate::model::value::{Row, RowKey, Value, display_key};
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::rc::Rc;

/// Base entries that are looked at together.
const SETTLED_AT_ONCE: usize = 1_000;

/// What a cut did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CutReport {
    /// The units that it made.
    pub units: Vec<UnitNo>,
    /// Changed rows in them.
    pub changes: u64,
    /// Rows that only the server changes, and that were put back.
    pub put_back: u64,
    /// Rows that cannot be sent.
    pub unsendable: u64,
}

impl LocalDatabase {
    /// Makes units of everything that local programs committed since the last cut. Costs next to nothing if that is nothing.
    ///
    /// # Errors
    /// Another program keeps the database locked, a table cannot be captured, or a statement failed: then nothing was changed.
    pub fn cut(&self) -> Result<CutReport, LocalError> {
        if self.is_cut()? {
            return Ok(CutReport::default());
        }
        let transaction = self.begin_uncut()?;
        let report = transaction.cut()?;
        transaction.commit_cut()?;
        Ok(report)
    }
}

impl ApplyTransaction<'_> {
    /// As [`LocalDatabase::cut`], within the transaction.
    pub(super) fn cut(&self) -> Result<CutReport, LocalError> {
        if self.is_cut()? {
            return Ok(CutReport::default());
        }
        let (connection, path) = (self.connection(), self.path());
        let made = ensure_capture(connection, &[]).map_err(|source| LocalError::of_capture(path, source))?;
        let report = cut(connection, path, (self.state().applied_unit, self.state().revision), self.unit_bytes_max())?;
        self.begin_rebase()?;
        // A new unit may have taken away what kept a suspended one from being shown.
        self.rebase.retry.set(true);
        // What was made now may be rolled back: then it is to be looked at again.
        if !made {
            self.note_captured()?;
        }
        Ok(report)
    }
}

fn cut(connection: &Connection, path: &Path, (applied, revision): (TxnId, Revision), unit_bytes_max: u64) -> Result<CutReport, LocalError> {
    let Some(upto) = LogReader::end(connection).map_err(|source| LocalError::of_sql(path, "read the end of the log", source))? else {
        return Ok(CutReport::default());
    };
    let captures = read_local_captures(connection).map_err(|source| LocalError::of_capture(path, source))?;
    let newest = captures.iter().filter(|capture| active(&captures, &capture.table).is_some_and(|newest| newest.id == capture.id));
    let rules = read_rules(connection).map_err(|error| match error {
        RulesError::Sql(source) => LocalError::of_sql(path, "read the merge rules", source),
        error => LocalError::State { path: path.to_owned(), column: "dock_merge_rules", value: error.to_string() },
    })?;
    let tables: Vec<CutTable> = newest.map(|capture| CutTable::of(capture, &rules)).collect();
    let reader = LogReader { connection, path, captures: &captures, tables: &tables };
    let touched = reader.read(upto)?;
    let mut cutter = Cutter {
        connection,
        path,
        reader,
        tables: &tables,
        touched: &touched,
        pending: Pending { connection, path, suspended: suspended(connection, path)?, keys: Translator::read(connection, path)? },
        unsent: BTreeMap::new(),
        unit_bytes_max,
        report: CutReport::default(),
        next: next_unit(connection, path)?,
    };
    for place in 0..touched.segments.len() {
        let head = UploadHead {
            number: cutter.next,
            applied,
            revision,
            cut_at_micros: clock::now_micros(),
            label: touched.segments.get(place).and_then(|segment| segment.label.clone()),
            hidden: cutter.pending.suspended.clone(),
            changes: 0,
        };
        cutter.segment(place, head)?;
    }
    let put_back = PutBack { connection, path, tables: &tables, touched: &touched, pending: &cutter.pending, unsent: &cutter.unsent };
    let count = put_back.run()?;
    cutter.report.put_back = count.download_only;
    cutter.report.unsendable = count.unsent + put_back.list_null_keys()?;
    cutter.settle()?;
    let sql = |source| LocalError::of_sql(path, "empty the log of local changes", source);
    connection.execute("DELETE FROM main.dock_txn_log WHERE id <= ?1", [upto]).map_err(sql)?;
    connection.execute("DELETE FROM main.dock_txn_mark", []).map_err(sql)?;
    connection.execute("UPDATE main.dock_state SET next_unit = ?1", [cutter.next.0.cast_signed()]).map_err(sql)?;
    Ok(cutter.report)
}

struct Cutter<'a> {
    connection: &'a Connection,
    path: &'a Path,
    reader: LogReader<'a>,
    tables: &'a [CutTable],
    touched: &'a Touched,
    pending: Pending<'a>,
    /// Touched rows of which something cannot be sent, and why.
    unsent: BTreeMap<usize, Rc<str>>,
    unit_bytes_max: u64,
    report: CutReport,
    next: UnitNo,
}

/// What a unit does to the row that a key names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It ends under that key (mostly the same).
    Row(usize),
    Gone,
    New,
}

impl Cutter<'_> {
    /// Makes one unit, if there is anything in it.
    fn segment(&mut self, place: usize, mut head: UploadHead) -> Result<(), LocalError> {
        let touched = self.touched;
        let Some(segment) = touched.segments.get(place) else { return Ok(()) };
        let mut bytes = 0;
        // Where no key changed, one row after the other is looked at once.
        let steps = if segment.moved.is_empty() { None } else { Some(self.steps(place, segment)?) };
        let in_order = segment.order.iter().filter(|_| steps.is_none()).map(|row| (*row, Step::Row(*row)));
        for (row, step) in steps.iter().flatten().copied().chain(in_order) {
            let Some(table) = touched.rows.get(row).and_then(|touched| self.tables.get(touched.table)) else { continue };
            let before = if step == Step::New { None } else { self.before(row)? };
            let after = match step {
                Step::Gone => None,
                Step::New => self.after(place, row)?,
                Step::Row(end) => self.after(place, end)?,
            };
            let pruned = before.as_ref().filter(|_| table.direction == Direction::Upload && after.is_none());
            if let Some(server) = pruned.and_then(|held| held.base.as_ref()) {
                self.prune(table, &table.key_of(server))?;
            }
            let Some(change) = net_change(table, before, after) else { continue };
            let at = (head.number, head.changes);
            match store_change(self.connection, self.path, at, table, &change)? {
                Ok(()) => head.changes += 1,
                Err(reason) => {
                    let key = display_key(&change.key(&table.heading.key));
                    tracing::error!(stage = "cut", table = table.heading.name, key, %reason, "a local change cannot be sent");
                    let ends = if let Step::Row(end) = step { end } else { row };
                    self.unsent.extend([row, ends].map(|row| (row, Rc::from(reason.to_string()))));
                }
            }
            bytes += weight(&change);
            if bytes > self.unit_bytes_max {
                return self.unsendable(segment, head.number);
            }
        }
        if head.changes > 0 {
            store_head(self.connection, self.path, &head)?;
            self.report.changes += head.changes;
            self.report.units.push(head.number);
            self.next = head.number.next();
        }
        Ok(())
    }

    /// Returns what the unit does to each row, in the order of first touch. Changes of keys are told as such if they can be done one by one
    /// in that order; else every key for itself has a row before and after.
    fn steps(&self, place: usize, segment: &Segment) -> Result<Vec<(usize, Step)>, LocalError> {
        let mut there: HashMap<usize, (bool, bool)> = HashMap::new();
        for row in &segment.order {
            there.insert(*row, (self.before(*row)?.is_some(), self.after(place, *row)?.is_some()));
        }
        let known = |row: &usize| there.get(row).copied().unwrap_or_default();
        let moved: HashMap<usize, usize> = segment
            .moved
            .iter()
            .filter(|(end, origin)| end != origin && known(origin).0 && known(end).1)
            .map(|(end, origin)| (*origin, *end))
            .collect();
        let plan = |moved: &HashMap<usize, usize>| -> Vec<(usize, Step)> {
            let taken: HashSet<usize> = moved.values().copied().collect();
            let mut steps = Vec::new();
            for row in &segment.order {
                let (before, after) = known(row);
                let after = after && !taken.contains(row);
                match (before, moved.get(row)) {
                    (true, Some(end)) => {
                        steps.push((*row, Step::Row(*end)));
                        // Another row has the key now.
                        steps.extend(after.then_some((*row, Step::New)));
                    }
                    (true, None) => steps.push((*row, if after { Step::Row(*row) } else { Step::Gone })),
                    (false, _) => steps.extend(after.then_some((*row, Step::New))),
                }
            }
            steps
        };
        let steps = plan(&moved);
        let mut occupied: BTreeSet<usize> = there.iter().filter(|(_, (before, _))| *before).map(|(row, _)| *row).collect();
        let fits = steps.iter().all(|(row, step)| match step {
            Step::New => occupied.insert(*row),
            Step::Gone => occupied.remove(row),
            Step::Row(end) => occupied.remove(row) && occupied.insert(*end),
        });
        Ok(if fits { steps } else { plan(&HashMap::new()) })
    }

    /// Returns what a row was before the unit that is being made.
    fn before(&self, row: usize) -> Result<Option<Held>, LocalError> {
        let keys = self.touched.keys(row);
        let Some((row, table)) = self.touched.rows.get(row).and_then(|row| Some((row, self.tables.get(row.table)?))) else {
            return Ok(None);
        };
        if let Some(before) = self.pending.before(table, &keys)? {
            return Ok(before);
        }
        // Something was missing of our triggers when it was touched: then the log knows best.
        let image = row.first.map(|id| self.reader.image(table, id, false)).transpose()?;
        Ok(image.map(|image| Held { row: image.clone(), base: Some(image) }))
    }

    /// Returns what a row came to in a unit.
    fn after(&self, segment: usize, row: usize) -> Result<Option<Row>, LocalError> {
        let Some((touched, table)) = self.touched.rows.get(row).and_then(|row| Some((row, self.tables.get(row.table)?))) else {
            return Ok(None);
        };
        if self.touched.is_touched_after(segment, row) {
            let last = self.touched.segments.get(segment).and_then(|segment| segment.last.get(&row));
            match last {
                Some(Last::Image { id, second }) => return self.reader.image(table, *id, *second).map(Some),
                Some(Last::Absent) => return Ok(None),
                Some(Last::Hint) | None => {}
            }
        }
        table.row(self.connection, &touched.key()).map_err(|source| LocalError::of_sql(self.path, "read a changed row", source))
    }

    /// Takes a unit back that no file can carry: it is never split by guess.
    fn unsendable(&mut self, segment: &Segment, unit: UnitNo) -> Result<(), LocalError> {
        let reason: Rc<str> = format!(
            "the changes of {} rows were committed together, or without a cut in between, and have more than {} bytes, \
             more than one unit may have; make them again in smaller parts, with a sync after each",
            segment.order.len(),
            self.unit_bytes_max
        )
        .into();
        tracing::error!(stage = "cut", %reason, "local changes cannot be sent");
        drop_changes(self.connection, self.path, unit)?;
        self.unsent.extend(segment.order.iter().map(|row| (*row, Rc::clone(&reason))));
        Ok(())
    }

    /// Notes that a row of an `upload` table is gone here, though the server keeps it: a unit that changed it before does not bring it back.
    fn prune(&self, table: &CutTable, key: &[Value]) -> Result<(), LocalError> {
        table.prune(self.connection, key).map_err(|source| LocalError::of_sql(self.path, "note that a row was pruned", source))
    }

    /// Settles the base entries that were written since the last cut: those of rows that no unit names go.
    fn settle(&self) -> Result<(), LocalError> {
        let sql = |source| LocalError::of_sql(self.path, "settle what the server has", source);
        for table in self.tables {
            let base = table.capture.base_table();
            let key: Vec<String> = table.capture.key.iter().map(|place| format!("c{}", place + 1)).collect();
            let select = format!(
                "SELECT rowid, {} FROM main.{base} WHERE settled IS NULL AND rowid > ?1 ORDER BY rowid LIMIT {SETTLED_AT_ONCE}",
                key.join(", ")
            );
            let mut statement = self.connection.prepare_cached(&select).map_err(sql)?;
            let mut after = i64::MIN;
            loop {
                let entries: Vec<(i64, RowKey)> = statement
                    .query_map([after], |row| {
                        let values = (1..=key.len()).map(|at| row.get_ref(at).map(value_of));
                        Ok((row.get(0)?, values.collect::<Result<_, _>>()?))
                    })
                    .and_then(Iterator::collect)
                    .map_err(sql)?;
                let Some((last, _)) = entries.last() else { break };
                after = *last;
                for (rowid, key) in entries {
                    let named = self.is_named(table, &key)?;
                    let verb = if named { format!("UPDATE main.{base} SET settled = 1") } else { format!("DELETE FROM main.{base}") };
                    self.connection
                        .prepare_cached(&format!("{verb} WHERE rowid = ?1"))
                        .and_then(|mut statement| statement.execute([rowid]))
                        .map_err(sql)?;
                }
            }
        }
        Ok(())
    }

    fn is_named(&self, table: &CutTable, key: &[Value]) -> Result<bool, LocalError> {
        let code = keycode::encode(&table.fold(key));
        self.connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM main.dock_change WHERE table_name = ?1 AND row_key = ?2)
                     OR EXISTS (SELECT 1 FROM main.dock_change WHERE table_name = ?1 AND new_key = ?2 AND new_key IS NOT NULL)",
            )
            .and_then(|mut statement| statement.query_row((&table.capture.table, code), |row| row.get(0)))
            .map_err(|source| LocalError::of_sql(self.path, "look whether a row is pending", source))
    }
}

/// Returns what a unit sends of a row; `None` if that is nothing.
fn net_change(table: &CutTable, before: Option<Held>, after: Option<Row>) -> Option<RowChange> {
    if table.direction == Direction::Download {
        return None;
    }
    match (before, after) {
        (None, None) => None,
        (None, Some(row)) => Some(RowChange::Insert { row }),
        // What only this node writes is pruned on the node alone.
        (Some(held), None) if table.direction == Direction::Upload && held.base.is_some() => None,
        (Some(held), None) => {
            let key = table.key_of(&held.row);
            let base = held.base.filter(|base| *base != held.row);
            Some(RowChange::Delete { key, before: held.row, base })
        }
        (Some(held), Some(mut row)) => {
            let key = table.key_of(&held.row);
            let base = held.base.as_ref().unwrap_or(&held.row);
            let mut fields = Vec::new();
            for (place, (name, (before, base))) in table.capture.columns.iter().zip(held.row.iter().zip(base)).enumerate() {
                let (Ok(column), Some(after)) = (u16::try_from(place), row.get_mut(place)) else { continue };
                if table.rules.is_download_only(name) {
                    *after = base.clone();
                } else if after != before {
                    fields.push(FieldChange { column, before: before.clone(), base: base.clone(), after: after.clone() });
                }
            }
            let whole = (table.rules.delete == DeletePolicy::Resurrect).then_some(row);
            (!fields.is_empty()).then_some(RowChange::Update { key, fields, whole })
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::base::ids::{ContentHash, Epoch, FileNo, Incarnation, Revision, ServerId, TxnId};
    use crate::store::local::{LocalDatabase, LocalState, create};
    use rusqlite::Connection;

    #[test]
    fn r13_the_commit_of_a_cut_is_a_full_sync_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pos.db");
        let state = LocalState {
            server_id: ServerId([1; 16]),
            server_name: "HQ".into(),
            epoch: Epoch(1),
            node: "ANNA".parse().unwrap(),
            incarnation: Incarnation(1),
            install_id: None,
            applied_file: FileNo(0),
            applied_unit: TxnId(0),
            chain_hash: ContentHash::default(),
            revision: Revision(1),
            stopped: None,
        };
        create(&Connection::open(&path).unwrap(), &state, &[]).unwrap();
        let local = LocalDatabase::open(&path).unwrap();
        let transaction = local.begin().unwrap();
        transaction.cut().unwrap();
        let pragma = |name: &str| -> String {
            let read = |row: &rusqlite::Row<'_>| row.get_ref(0).map(|value| super::value_of(value).to_string());
            transaction.connection().query_row(&format!("PRAGMA {name}"), [], read).unwrap()
        };
        assert_eq!((pragma("synchronous"), pragma("journal_mode")), ("2".into(), "'wal'".into()), "FULL, in WAL mode");
        transaction.commit_cut().unwrap();
    }
}
