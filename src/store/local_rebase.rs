//! `local = server view + pending`, kept so while units of the server are applied (architecture 3.4).
//!
//! Invariants:
//! - After each unit the server view is what the server's units alone make of it (I1): operations on a row with a base entry go to the
//!   entry, and the row is computed anew.
//! - It is total: a unit of local changes that cannot be shown is suspended, and nothing of it stops the server's units (R20).
//! - The usual way costs the rows of the server's unit, however much is pending (R24). Where it does not serve, all rows of pending units go
//!   to base once in a transaction, the server's units are written as if nothing were pending, and at its end the pending units are done again.

use super::local::LocalError;
use super::local_apply::{ApplyTransaction, UnitError, UnitWriter, Work};
use super::local_overlay::{Entry, Image, Overlay, OwnValues};
use super::local_pending::{Pending, PendingChange, PendingUnit, Translator, redo};
use super::local_references::References;
use crate::base::ids::TxnId;
use crate::model::operation::Operation;
use crate::model::upload::{Confirm, RowChange};
use crate::model::value::{Row, RowKey, Value};
use rusqlite::{Connection, ErrorCode};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;

/// What one apply transaction knows of pending work.
#[derive(Debug, Default)]
pub(super) struct Rebase {
    is_pending: Cell<bool>,
    /// Rows of pending units show what the server has; they are done again at the end of the transaction.
    pub(super) at_base: Cell<bool>,
    /// Tables got another shape, or all their rows anew, so entries are to be read from them.
    is_stale: Cell<bool>,
    /// Something changed that may let a suspended unit be shown.
    pub(super) retry: Cell<bool>,
    /// Tables of which rows went that others may refer to.
    orphaned: RefCell<BTreeSet<String>>,
    /// Units that end with the server's unit that is being applied.
    pub(super) ending: RefCell<BTreeSet<i64>>,
    /// Rows that were computed without them already.
    pub(super) computed: RefCell<HashSet<(String, Vec<u8>)>>,
    overlays: RefCell<HashMap<String, Option<Rc<Overlay>>>>,
    references: RefCell<Option<Rc<References>>>,
    mappings: RefCell<Option<Rc<Translator>>>,
    watched: RefCell<Option<Rc<HashSet<String>>>>,
    own: RefCell<HashMap<(String, Vec<u8>), OwnValues>>,
}

impl Rebase {
    /// Whether there is any pending work.
    pub(super) fn is_pending(&self) -> bool {
        self.is_pending.get()
    }

    /// Forgets what is known of tables: their shape has changed.
    pub(super) fn forget(&self) {
        self.overlays.borrow_mut().clear();
        self.references.borrow_mut().take();
        self.mappings.borrow_mut().take();
        self.watched.borrow_mut().take();
    }

    /// Forgets which keys the server replaced.
    pub(super) fn forget_mappings(&self) {
        self.mappings.borrow_mut().take();
    }
}

/// Whether a row does not fit, which is no failure of the database.
pub(super) fn is_refusal(source: &rusqlite::Error) -> bool {
    matches!(source.sqlite_error_code(), Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch))
}

/// An operation on a row that pending work touches.
struct Shown {
    overlay: Rc<Overlay>,
    entry: Entry,
    is: Option<Row>,
    /// What the server has now.
    base: Option<Row>,
    to_be: Option<Image>,
}

impl ApplyTransaction<'_> {
    /// Looks whether anything is pending; the transaction has cut what was logged.
    pub(super) fn begin_rebase(&self) -> Result<(), LocalError> {
        let mut any: bool = self.read("SELECT EXISTS (SELECT 1 FROM dock_unit)")?;
        if !any {
            let ids = || -> rusqlite::Result<Vec<i64>> {
                let mut statement = self
                    .connection()
                    .prepare_cached("SELECT c.id FROM dock_capture AS c JOIN sqlite_master AS m ON m.name = 'dock_base_' || c.id")?;
                statement.query_map([], |row| row.get(0))?.collect()
            };
            for id in ids().map_err(self.failed())? {
                any |= self.read(&format!("SELECT EXISTS (SELECT 1 FROM main.dock_base_{id})"))?;
            }
        }
        self.rebase.is_pending.set(any);
        Ok(())
    }

    fn read(&self, select: &str) -> Result<bool, LocalError> {
        let found = self.connection().prepare_cached(select).and_then(|mut statement| statement.query_row([], |row| row.get(0)));
        found.map_err(self.failed())
    }

    /// Sorts an error.
    pub(super) fn failed(&self) -> impl Fn(rusqlite::Error) -> LocalError + use<'_> {
        |source| self.sql_error("bring pending changes and the server's together", source)
    }

    pub(super) fn mark(&self, sql: &'static str) -> Result<(), LocalError> {
        self.connection().prepare_cached(sql).and_then(|mut statement| statement.execute([])).map(drop).map_err(self.failed())
    }

    pub(super) fn pending(&self) -> Pending<'_> {
        Pending { connection: self.connection(), path: self.path() }
    }

    /// Returns the overlay of a table.
    pub(super) fn overlay(&self, table: &str) -> Result<Option<Rc<Overlay>>, LocalError> {
        if let Some(known) = self.rebase.overlays.borrow().get(table) {
            return Ok(known.clone());
        }
        let found = Overlay::look_up(self.connection(), self.path(), table)?.map(Rc::new);
        self.rebase.overlays.borrow_mut().insert(table.to_owned(), found.clone());
        Ok(found)
    }

    /// Returns the overlays of all captured tables.
    pub(super) fn overlays(&self) -> Result<Vec<Rc<Overlay>>, LocalError> {
        let names = || -> rusqlite::Result<Vec<String>> {
            let mut statement = self.connection().prepare_cached("SELECT DISTINCT table_name FROM dock_capture ORDER BY 1")?;
            statement.query_map([], |row| row.get(0))?.collect()
        };
        let names = names().map_err(self.failed())?;
        names.iter().filter_map(|name| self.overlay(name).transpose()).collect()
    }

    pub(super) fn references(&self) -> Result<Rc<References>, LocalError> {
        if let Some(known) = &*self.rebase.references.borrow() {
            return Ok(Rc::clone(known));
        }
        let found = Rc::new(References::read(self.connection()).map_err(self.failed())?);
        *self.rebase.references.borrow_mut() = Some(Rc::clone(&found));
        Ok(found)
    }

    /// Puts keys that the server replaced into a change.
    pub(super) fn translate(&self, unit: &PendingUnit, change: &mut PendingChange) -> Result<(), LocalError> {
        let known = self.rebase.mappings.borrow().clone();
        let known = match known {
            Some(known) => known,
            None => {
                let found = Rc::new(Translator::read(self.connection(), self.path())?);
                *self.rebase.mappings.borrow_mut() = Some(Rc::clone(&found));
                found
            }
        };
        known.translate(unit, change);
        Ok(())
    }

    /// Returns the changes of a unit as they are to be done again.
    pub(super) fn changes_of(&self, unit: &PendingUnit) -> Result<Vec<PendingChange>, LocalError> {
        let mut changes = self.pending().changes(unit.number)?;
        for change in &mut changes {
            self.translate(unit, change)?;
        }
        Ok(changes)
    }

    /// Takes note of what ends with the server's unit that follows.
    pub(super) fn begin_ending(&self, confirms: &[Confirm]) -> Result<(), LocalError> {
        let mut ending = self.rebase.ending.borrow_mut();
        ending.clear();
        self.rebase.computed.borrow_mut().clear();
        if self.rebase.is_pending() {
            let ours =
                confirms.iter().filter(|confirm| confirm.outcome.is_final() && Some(confirm.unit.install) == self.state().install_id);
            ending.extend(ours.map(|confirm| confirm.unit.number.0.cast_signed()));
        }
        Ok(())
    }

    /// Prepares for tables that get another shape, or all their rows anew.
    pub(super) fn begin_reshape(&self) -> Result<(), LocalError> {
        if self.rebase.is_pending() {
            self.to_base()?;
            self.rebase.is_stale.set(true);
        }
        Ok(())
    }

    /// Applies a unit of the server where work is pending.
    pub(super) fn rebase_unit(&self, unit: TxnId, work: &[Work<'_>]) -> Result<(), UnitError> {
        self.look_for_suspended(work.iter().map(|(table, _)| table.name.as_str()))?;
        if !self.rebase.at_base.get() {
            self.mark("SAVEPOINT dock_rebase")?;
            match self.change_shown(unit, work) {
                Ok(true) => return Ok(self.mark("RELEASE dock_rebase")?),
                Ok(false) | Err(UnitError::Constraint { .. } | UnitError::MissingRow { .. }) => {}
                Err(UnitError::Local(error)) => return Err(error.into()),
                Err(error) => {
                    self.undo("ROLLBACK TO dock_rebase", "RELEASE dock_rebase")?;
                    return Err(error);
                }
            }
            self.undo("ROLLBACK TO dock_rebase", "RELEASE dock_rebase")?;
            tracing::debug!(unit = unit.0, "pending changes are taken back and done again");
            self.to_base()?;
        }
        self.writer().beside_others(unit, work)?;
        for (table, operation) in work {
            if let Some(overlay) = self.overlay(&table.name)?.filter(|overlay| overlay.has_entries()) {
                let key = key_of(table, operation);
                overlay.refresh_entry(self.connection(), &key, false).map_err(self.failed())?;
            }
        }
        Ok(())
    }

    /// Makes room for a staged unit, which is written by statements for all its rows.
    pub(super) fn begin_staged<'t>(&self, tables: impl Iterator<Item = &'t str>) -> Result<(), LocalError> {
        if self.rebase.is_pending() {
            self.look_for_suspended(tables)?;
            self.to_base()?;
        }
        Ok(())
    }

    /// Reads the entries of tables that a staged unit has written.
    pub(super) fn end_staged<'t>(&self, tables: impl Iterator<Item = &'t str>) -> Result<(), LocalError> {
        if self.rebase.is_pending() {
            for table in tables {
                if let Some(overlay) = self.overlay(table)? {
                    overlay.refresh_all(self.connection()).map_err(self.failed())?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn undo(&self, back: &'static str, release: &'static str) -> Result<(), LocalError> {
        self.mark(back)?;
        self.mark(release)
    }

    fn writer(&self) -> UnitWriter<'_> {
        UnitWriter { connection: self.connection(), path: self.path() }
    }

    /// Notes whether a unit of the server writes to a table that a suspended unit may wait for.
    fn look_for_suspended<'t>(&self, mut tables: impl Iterator<Item = &'t str>) -> Result<(), LocalError> {
        if self.rebase.retry.get() {
            return Ok(());
        }
        let known = self.rebase.watched.borrow().clone();
        let watched = match known {
            Some(known) => known,
            None => {
                let names = || -> rusqlite::Result<Vec<String>> {
                    let mut statement = self.connection().prepare_cached(
                        "SELECT DISTINCT c.table_name FROM dock_unit AS u JOIN dock_change AS c ON c.unit = u.unit
                         WHERE u.suspended IS NOT NULL",
                    )?;
                    statement.query_map([], |row| row.get(0))?.collect()
                };
                let names = names().map_err(self.failed())?;
                let references = self.references()?;
                let mut found: HashSet<String> = HashSet::new();
                for name in &names {
                    found.extend(references.from(name).map(|reference| reference.parent.to_ascii_lowercase()));
                    found.extend(references.to(name).map(|reference| reference.child.to_ascii_lowercase()));
                }
                found.extend(names.iter().map(|name| name.to_ascii_lowercase()));
                let found = Rc::new(found);
                *self.rebase.watched.borrow_mut() = Some(Rc::clone(&found));
                found
            }
        };
        let concerns = !watched.is_empty() && tables.any(|table| watched.contains(&table.to_ascii_lowercase()));
        self.rebase.retry.set(concerns);
        Ok(())
    }

    /// The usual way. `false` = it does not serve; what it wrote is to be taken back.
    fn change_shown(&self, unit: TxnId, work: &[Work<'_>]) -> Result<bool, UnitError> {
        let connection = self.connection();
        let mut plain = Vec::with_capacity(work.len());
        let mut shown = Vec::new();
        let mut last: Option<(&str, Option<Rc<Overlay>>)> = None;
        for (table, operation) in work {
            let overlay = match &last {
                Some((name, overlay)) if *name == table.name => overlay.clone(),
                _ => self.overlay(&table.name)?.filter(|overlay| overlay.has_entries()),
            };
            last = Some((&table.name, overlay.clone()));
            let Some(overlay) = overlay else {
                plain.push((*table, *operation));
                continue;
            };
            let key = key_of(table, operation);
            match overlay.entry(connection, &key).map_err(self.failed())? {
                None => plain.push((*table, *operation)),
                Some(entry) if entry.key == key => match self.compute((table, operation), overlay, entry)? {
                    Some(change) => shown.push(change),
                    None => return Ok(false),
                },
                Some(_) => return Ok(false),
            }
        }
        if !plain.is_empty() {
            self.writer().beside_others(unit, &plain)?;
        }
        for change in &shown {
            change.overlay.put_entry(connection, &change.entry.key, change.base.as_deref()).map_err(self.failed())?;
        }
        if !self.write_rows(shown.iter().map(|change| (&*change.overlay, &change.entry.key, change.is.as_ref(), change.to_be.as_ref())))? {
            return Ok(false);
        }
        self.references_stay(work)
    }

    /// Writes computed rows: those that go first. `false` = one does not fit.
    pub(super) fn write_rows<'r>(
        &self,
        rows: impl Iterator<Item = (&'r Overlay, &'r RowKey, Option<&'r Row>, Option<&'r Image>)> + Clone,
    ) -> Result<bool, LocalError> {
        for gone in [true, false] {
            for (overlay, key, is, to_be) in rows.clone().filter(|(_, _, _, to_be)| to_be.is_none() == gone) {
                match overlay.write_row(self.connection(), key, is, to_be) {
                    Ok(()) => {}
                    Err(source) if is_refusal(&source) => return Ok(false),
                    Err(source) => return Err(self.failed()(source)),
                }
            }
        }
        Ok(true)
    }

    /// Computes a row anew. `None` = not by its own changes alone.
    fn compute(&self, work: Work<'_>, overlay: Rc<Overlay>, entry: Entry) -> Result<Option<Shown>, UnitError> {
        let (table, operation) = work;
        let place = |stored: usize| overlay.place_of_stored(stored);
        let base = match operation {
            Operation::Delete { .. } => None,
            Operation::Put { row } => {
                let mut image: Image = match &entry.row {
                    Some(row) => row.iter().cloned().map(Some).collect(),
                    None => vec![None; overlay.columns.len()],
                };
                for (stored, value) in table.written_row(row) {
                    if let Some(slot) = place(stored).and_then(|place| image.get_mut(place)) {
                        *slot = Some(value.clone());
                    }
                }
                // A column that the server does not send gets its default from the table.
                let Some(row) = image.into_iter().collect::<Option<Row>>() else { return Ok(None) };
                Some(row)
            }
            Operation::Update { changes, .. } => {
                let Some(mut row) = entry.row.clone() else { return Ok(None) };
                for (stored, value) in table.written_changes(changes) {
                    if let Some(slot) = place(stored).and_then(|place| row.get_mut(place)) {
                        *slot = value.clone();
                    }
                }
                Some(row)
            }
        };
        if self.pending().is_moved_to(&overlay.table, &entry.key, 0)? {
            return Ok(None);
        }
        let chain = self.chain(&overlay, &entry.key)?;
        let is = overlay.read_row(self.connection(), &entry.key).map_err(self.failed())?;
        let all = fold(&overlay, &entry.key, entry.row.as_ref(), true, chain.iter().map(|(_, change)| change));
        if !all.is_some_and(|expected| is_same(expected.as_ref(), is.as_ref())) {
            return Ok(None); // Another unit's change of another key reaches it.
        }
        let ending = self.rebase.ending.borrow();
        let remaining = chain.iter().filter(|(unit, _)| !ending.contains(&unit.number)).map(|(_, change)| change);
        let Some(to_be) = fold(&overlay, &entry.key, base.as_ref(), false, remaining) else { return Ok(None) };
        if !ending.is_empty() {
            self.rebase.computed.borrow_mut().insert((overlay.table.clone(), overlay.fold_key(&entry.key)));
        }
        Ok(Some(Shown { overlay, entry, is, base, to_be }))
    }

    /// Returns the changes of a row by units that are shown.
    pub(super) fn chain(&self, overlay: &Overlay, key: &[Value]) -> Result<Vec<(PendingUnit, PendingChange)>, LocalError> {
        let mut chain = self.pending().chain(&overlay.table, key)?;
        chain.retain(|(unit, _)| !unit.is_suspended);
        for (unit, change) in &mut chain {
            self.translate(unit, change)?;
        }
        Ok(chain)
    }

    /// Notes rows that went, to which pending rows may refer. `false` = the unit brings a row whose parent pending work hides.
    fn references_stay(&self, work: &[Work<'_>]) -> Result<bool, UnitError> {
        let references = self.references()?;
        let mut known: HashMap<&str, (bool, Vec<(&super::local_references::Reference, Rc<Overlay>)>)> = HashMap::new();
        for (table, operation) in work {
            if !known.contains_key(table.name.as_str()) {
                let mut is_parent = false;
                for reference in references.to(&table.name) {
                    is_parent |= self.overlay(&reference.child)?.is_some_and(|overlay| overlay.has_entries());
                }
                let mut parents = Vec::new();
                for reference in references.from(&table.name) {
                    if let Some(overlay) = self.overlay(&reference.parent)?.filter(|overlay| overlay.has_entries()) {
                        parents.push((reference, overlay));
                    }
                }
                known.insert(&table.name, (is_parent, parents));
            }
            let Some((is_parent, parents)) = known.get(table.name.as_str()) else { continue };
            let takes_away = match operation {
                Operation::Delete { .. } => true,
                // Of columns that are referred to.
                Operation::Update { .. } => references.to(&table.name).any(|reference| !table.has_key_columns(&reference.referred)),
                Operation::Put { .. } => references.to(&table.name).any(|reference| !table.has_key_columns(&reference.referred)),
            };
            if *is_parent && takes_away {
                self.went_from(&table.name);
            }
            if !parents.is_empty() && !matches!(operation, Operation::Delete { .. }) {
                let key = key_of(table, operation);
                let Some(child) = self.overlay(&table.name)? else { continue };
                let Some(row) = child.read_row(self.connection(), &key).map_err(self.failed())? else { continue };
                for (reference, parent) in parents {
                    let Some(values) = child.values(&row, &reference.columns) else { continue };
                    if !reference.is_satisfied(self.connection(), &values).map_err(self.failed())?
                        && parent.is_hidden(self.connection(), &reference.referred, &values).map_err(self.failed())?
                    {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Notes that rows of a table went.
    pub(super) fn went_from(&self, table: &str) {
        self.rebase.orphaned.borrow_mut().insert(table.to_ascii_lowercase());
    }

    /// Whether a pending row refers to one that went.
    fn has_orphans(&self) -> Result<bool, LocalError> {
        let orphaned = self.rebase.orphaned.borrow().clone();
        if orphaned.is_empty() {
            return Ok(false);
        }
        let references = self.references()?;
        let connection = self.connection();
        for reference in orphaned.iter().flat_map(|table| references.to(table)) {
            let Some(child) = self.overlay(&reference.child)? else { continue };
            for entry in child.entries(connection).map_err(self.failed())? {
                let Some(row) = child.read_row(connection, &entry.key).map_err(self.failed())? else { continue };
                let Some(values) = child.values(&row, &reference.columns) else { continue };
                let of_server = entry.row.as_ref().and_then(|row| child.values(row, &reference.columns));
                if of_server.as_ref() != Some(&values) && !reference.is_satisfied(connection, &values).map_err(self.failed())? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Makes every row that pending work touches what the server has, until the end of the transaction.
    pub(super) fn to_base(&self) -> Result<(), LocalError> {
        if self.rebase.at_base.replace(true) {
            return Ok(());
        }
        let connection = self.connection();
        let overlays: Vec<Rc<Overlay>> = self.overlays()?.into_iter().filter(|overlay| overlay.has_entries()).collect();
        for overlay in overlays.iter().filter(|overlay| overlay.has_own_columns()) {
            for entry in overlay.entries(connection).map_err(self.failed())? {
                if let Some(values) = overlay.own_values(connection, &entry.key).map_err(self.failed())? {
                    self.rebase.own.borrow_mut().insert((overlay.table.clone(), overlay.fold_key(&entry.key)), values);
                }
            }
        }
        self.mark("SAVEPOINT dock_base")?;
        for overlay in &overlays {
            match overlay.all_to_base(connection) {
                Ok(()) => {}
                Err(source) if is_refusal(&source) => {
                    self.mark("ROLLBACK TO dock_base")?;
                    self.images_to_base(connection, &overlays)?;
                    break;
                }
                Err(source) => return Err(self.failed()(source)),
            }
        }
        self.mark("RELEASE dock_base")
    }

    /// The way that no unique key can block: in between, none of the rows exists.
    fn images_to_base(&self, connection: &Connection, overlays: &[Rc<Overlay>]) -> Result<(), LocalError> {
        for overlay in overlays {
            let entries = overlay.entries(connection).map_err(self.failed())?;
            for entry in &entries {
                overlay.delete_row(connection, &entry.key).map_err(self.failed())?;
            }
            for entry in &entries {
                if let Some(row) = &entry.row {
                    let image: Image = row.iter().cloned().map(Some).collect();
                    let own = self.own_values(overlay, &entry.key);
                    overlay.insert_row(connection, &image, own.as_ref()).map_err(self.failed())?;
                }
            }
        }
        Ok(())
    }

    /// Returns what local programs kept in a row before it was taken back.
    pub(super) fn own_values(&self, overlay: &Overlay, key: &[Value]) -> Option<OwnValues> {
        if !overlay.has_own_columns() {
            return None;
        }
        self.rebase.own.borrow().get(&(overlay.table.clone(), overlay.fold_key(key))).cloned()
    }

    /// Brings the tables to `server view + pending` before the transaction ends.
    pub(super) fn finish_rebase(&self) -> Result<(), LocalError> {
        if !self.rebase.is_pending() {
            return Ok(());
        }
        if !self.rebase.at_base.get() && self.has_orphans()? {
            self.to_base()?;
        }
        if self.rebase.at_base.get() {
            if self.rebase.is_stale.take() {
                self.rebase.forget();
                for overlay in self.overlays()? {
                    overlay.refresh_all(self.connection()).map_err(self.failed())?;
                }
            }
            self.redo_all()?;
        }
        if self.rebase.retry.get() && self.retry_suspended()? {
            self.to_base()?;
            self.redo_all()?;
        }
        Ok(())
    }
}

fn key_of(table: &super::local_table::LocalTable, operation: &Operation) -> RowKey {
    match operation {
        Operation::Put { row } => table.key_of(row),
        Operation::Update { key, .. } | Operation::Delete { key } => key.clone(),
    }
}

/// What a row is after changes of it, as long as they leave its key alone. `None` = that cannot be said by them alone. `is_as_made`: the
/// changes were made upon that base.
pub(super) fn fold<'c>(
    overlay: &Overlay,
    key: &RowKey,
    base: Option<&Row>,
    is_as_made: bool,
    changes: impl Iterator<Item = &'c PendingChange>,
) -> Option<Option<Image>> {
    let mut image: Option<Image> = base.map(|row| row.iter().cloned().map(Some).collect());
    for change in changes {
        if is_as_made && image.is_none() && matches!(change.change, RowChange::Delete { .. }) {
            return None; // What it deleted came under this key by another row's change.
        }
        image = redo(overlay, change, image).ok()?;
        if image.as_ref().is_some_and(|image| overlay.key_of(image).as_ref() != Some(key)) {
            return None;
        }
    }
    Some(image)
}

/// Whether a row is what was computed, as a column's affinity may store it.
pub(super) fn is_same(expected: Option<&Image>, is: Option<&Row>) -> bool {
    match (expected, is) {
        (None, None) => true,
        (Some(image), Some(row)) => image.iter().zip(row).all(|(value, is)| match value {
            None => true,
            Some(value) => value == is || (value.sql_order(is).is_eq() && value.type_name() != is.type_name()),
        }),
        _ => false,
    }
}
