//! Pending units done again, one by one: those that cannot be shown are suspended, with their reason (R20).
//!
//! A later unit that touches a row of a suspended one, or refers to a row that it inserted, is suspended with it, unless it was cut
//! while that one was not shown. Suspended units are uploaded all the same and tried again when something changed that may help them.

use super::local::LocalError;
use super::local_apply::ApplyTransaction;
use super::local_overlay::{Image, Overlay};
use super::local_pending::{PendingChange, PendingUnit, redo, refusal};
use super::local_rebase::is_refusal;
use crate::model::keycode;
use crate::model::upload::RowChange;
use crate::model::value::{Row, RowKey, Value};
use rusqlite::params;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// A row as its table's primary key knows it.
type RowName = (String, Vec<u8>);

/// Rows of suspended units: by which, and whether that one inserted the row.
#[derive(Default)]
struct Taint {
    rows: HashMap<RowName, Vec<(i64, bool)>>,
}

/// One change of a unit on its way into the tables.
struct Step<'u> {
    overlay: Rc<Overlay>,
    change: &'u PendingChange,
    old: Option<Row>,
    new: Option<Image>,
}

impl ApplyTransaction<'_> {
    /// Does every pending unit again. All rows are at base.
    pub(super) fn redo_all(&self) -> Result<(), LocalError> {
        let mut taint = Taint::default();
        let mut named: HashSet<RowName> = HashSet::new();
        for unit in self.pending().units(false)? {
            let changes = self.changes_of(&unit)?;
            let names = self.names(&changes)?;
            let reason = match self.waits_for(&taint, &unit, &changes, &names)? {
                Some(reason) => Some(reason),
                None => self.redo_unit(&changes)?,
            };
            self.note_suspended(&unit, reason.as_deref())?;
            if reason.is_some() {
                taint.add(&unit, &changes, &names);
            }
            named.extend(names.into_iter().flatten());
        }
        for overlay in self.overlays()? {
            for entry in overlay.entries(self.connection()).map_err(self.failed())? {
                if !named.contains(&name_of(&overlay, &entry.key)) {
                    overlay.delete_entry(self.connection(), &entry.key).map_err(self.failed())?;
                }
            }
        }
        self.rebase.at_base.set(false);
        Ok(())
    }

    /// Tries suspended units again on top of what is shown. Returns whether one of them can be shown only if all are done again.
    pub(super) fn retry_suspended(&self) -> Result<bool, LocalError> {
        self.rebase.retry.set(false);
        let mut taint = Taint::default();
        for unit in self.pending().units(true)? {
            let changes = self.changes_of(&unit)?;
            let names = self.names(&changes)?;
            let reason = match self.waits_for(&taint, &unit, &changes, &names)? {
                Some(reason) => Some(reason),
                None => {
                    self.mark("SAVEPOINT dock_retry")?;
                    let reason = self.redo_unit(&changes)?;
                    if reason.is_none() && self.is_overtaken(&unit, &changes)? {
                        self.undo("ROLLBACK TO dock_retry", "RELEASE dock_retry")?;
                        return Ok(true);
                    }
                    self.mark("RELEASE dock_retry")?;
                    reason
                }
            };
            self.note_suspended(&unit, reason.as_deref())?;
            if reason.is_some() {
                taint.add(&unit, &changes, &names);
            }
        }
        Ok(false)
    }

    /// Whether a later unit that is shown touches a row of this one.
    fn is_overtaken(&self, unit: &PendingUnit, changes: &[PendingChange]) -> Result<bool, LocalError> {
        for change in changes {
            let Some(overlay) = self.overlay(&change.table)? else { continue };
            let moved = new_key(&overlay, change);
            for key in std::iter::once(&change.key).chain(&moved) {
                if self.pending().is_shown_later(&overlay, key, unit.number)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn note_suspended(&self, unit: &PendingUnit, reason: Option<&str>) -> Result<(), LocalError> {
        if unit.is_suspended != reason.is_some() {
            tracing::info!(stage = "apply", unit = unit.number, reason, "a unit of local changes is shown, or no longer");
        }
        self.connection()
            .prepare_cached("UPDATE dock_unit SET suspended = ?2 WHERE unit = ?1 AND suspended IS NOT ?2")
            .and_then(|mut statement| statement.execute(params![unit.number, reason]))
            .map(drop)
            .map_err(self.failed())
    }

    /// Returns the rows that each change names: by its key before, and after.
    fn names(&self, changes: &[PendingChange]) -> Result<Vec<Vec<RowName>>, LocalError> {
        let mut names = Vec::with_capacity(changes.len());
        for change in changes {
            names.push(match self.overlay(&change.table)? {
                Some(overlay) => {
                    let moved = new_key(&overlay, change);
                    std::iter::once(&change.key).chain(&moved).map(|key| name_of(&overlay, key)).collect()
                }
                None => vec![(change.table.to_ascii_lowercase(), keycode::encode(&change.key))],
            });
        }
        Ok(names)
    }

    /// Returns why a unit waits for a suspended one.
    fn waits_for(
        &self,
        taint: &Taint,
        unit: &PendingUnit,
        changes: &[PendingChange],
        names: &[Vec<RowName>],
    ) -> Result<Option<String>, LocalError> {
        if taint.rows.is_empty() {
            return Ok(None);
        }
        let references = self.references()?;
        for (change, names) in changes.iter().zip(names) {
            if let Some((other, _)) = names.iter().find_map(|name| taint.find(name, unit, false)) {
                return Ok(Some(refusal(change, &format!("it waits for unit {other}, which changes the same row and is not shown"))));
            }
            for reference in references.from(&change.table) {
                let (Some(values), Some(parent)) = (values_after(change, &reference.columns), self.overlay(&reference.parent)?) else {
                    continue;
                };
                let key: Option<RowKey> = parent
                    .key_names()
                    .iter()
                    .map(|name| values.get(reference.referred.iter().position(|referred| referred.eq_ignore_ascii_case(name))?).cloned())
                    .collect();
                let Some(key) = key.filter(|key| key.len() == reference.referred.len()) else { continue };
                if let Some((other, _)) = taint.find(&name_of(&parent, &key), unit, true) {
                    let why =
                        format!("it waits for unit {other}, which inserts the row of {} that it refers to and is not shown", parent.table);
                    return Ok(Some(refusal(change, &why)));
                }
            }
        }
        Ok(None)
    }

    /// Does a unit again, or nothing of it; returns why it cannot be shown.
    fn redo_unit(&self, changes: &[PendingChange]) -> Result<Option<String>, LocalError> {
        self.keep_base(changes)?;
        self.mark("SAVEPOINT dock_redo")?;
        let reason = self.try_unit(changes)?;
        if reason.is_some() {
            self.mark("ROLLBACK TO dock_redo")?;
        }
        self.mark("RELEASE dock_redo")?;
        Ok(reason)
    }

    /// Sees to it that each row of a unit has an entry: where there is none, the table's row is the server's.
    fn keep_base(&self, changes: &[PendingChange]) -> Result<(), LocalError> {
        for change in changes {
            let Some(overlay) = self.overlay(&change.table)? else { continue };
            let moved = new_key(&overlay, change);
            for key in std::iter::once(&change.key).chain(&moved) {
                if overlay.entry(self.connection(), key).map_err(self.failed())?.is_none() {
                    overlay.refresh_entry(self.connection(), key, true).map_err(self.failed())?;
                }
            }
        }
        Ok(())
    }

    fn try_unit(&self, changes: &[PendingChange]) -> Result<Option<String>, LocalError> {
        let mut vacated: HashSet<RowName> = HashSet::new();
        let mut overlays = Vec::with_capacity(changes.len());
        for change in changes {
            let Some(overlay) = self.overlay(&change.table)? else {
                return Ok(Some(refusal(change, "the table is not in this database any more")));
            };
            if matches!(change.change, RowChange::Delete { .. }) || new_key(&overlay, change).is_some() {
                vacated.insert(name_of(&overlay, &change.key));
            }
            overlays.push(overlay);
        }
        let mut steps = Vec::with_capacity(changes.len());
        for (change, overlay) in changes.iter().zip(overlays) {
            let mut old = overlay.read_row(self.connection(), &change.key).map_err(self.failed())?;
            if matches!(change.change, RowChange::Insert { .. }) && vacated.contains(&name_of(&overlay, &change.key)) {
                old = None;
            }
            let image = old.as_ref().map(|row| row.iter().cloned().map(Some).collect());
            match redo(&overlay, change, image) {
                Ok(new) => steps.push(Step { overlay, change, old, new }),
                Err(reason) => return Ok(Some(reason)),
            }
        }
        self.mark("SAVEPOINT dock_steps")?;
        let mut reason = self.write_steps(&steps)?;
        if reason.is_some() {
            self.mark("ROLLBACK TO dock_steps")?;
            reason = self.write_images(&steps)?;
        }
        self.mark("RELEASE dock_steps")?;
        match reason {
            Some(reason) => Ok(Some(reason)),
            None => self.broken_reference(&steps),
        }
    }

    /// Row by row: those that go, those that change, those that come. Returns which one does not fit.
    fn write_steps(&self, steps: &[Step<'_>]) -> Result<Option<String>, LocalError> {
        let connection = self.connection();
        let kinds: [fn(&Step<'_>) -> bool; 3] = [|step| step.new.is_none(), |step| step.old.is_some(), |step| step.old.is_none()];
        for (place, is_kind) in kinds.into_iter().enumerate() {
            for step in steps.iter().filter(|step| is_kind(step) && (place == 0 || step.new.is_some())) {
                let written = match (&step.old, &step.new) {
                    (None, Some(image)) => {
                        let own = self.own_values(&step.overlay, &step.change.key);
                        step.overlay.insert_row(connection, image, own.as_ref())
                    }
                    (old, new) => step.overlay.write_row(connection, &step.change.key, old.as_ref(), new.as_ref()),
                };
                if let Some(reason) = self.refused(step, written)? {
                    return Ok(Some(reason));
                }
            }
        }
        Ok(None)
    }

    /// The way that no unique key can block halfway: in between, none of the rows exists.
    fn write_images(&self, steps: &[Step<'_>]) -> Result<Option<String>, LocalError> {
        let connection = self.connection();
        let mut kept = Vec::with_capacity(steps.len());
        for step in steps {
            let own = match &step.old {
                Some(_) => step.overlay.own_values(connection, &step.change.key).map_err(self.failed())?,
                None => self.own_values(&step.overlay, &step.change.key),
            };
            kept.push(own);
        }
        for step in steps.iter().filter(|step| step.old.is_some()) {
            step.overlay.delete_row(connection, &step.change.key).map_err(self.failed())?;
        }
        for (step, own) in steps.iter().zip(&kept) {
            if let Some(image) = &step.new {
                let written = step.overlay.insert_row(connection, image, own.as_ref());
                if let Some(reason) = self.refused(step, written)? {
                    return Ok(Some(reason));
                }
            }
        }
        Ok(None)
    }

    fn refused(&self, step: &Step<'_>, written: rusqlite::Result<()>) -> Result<Option<String>, LocalError> {
        match written {
            Ok(()) => Ok(None),
            Err(source) if is_refusal(&source) => Ok(Some(refusal(step.change, &source.to_string()))),
            Err(source) => Err(self.failed()(source)),
        }
    }

    /// Looks for a reference without its row, once the whole unit is done.
    fn broken_reference(&self, steps: &[Step<'_>]) -> Result<Option<String>, LocalError> {
        let references = self.references()?;
        let connection = self.connection();
        for step in steps {
            let table = &step.overlay.table;
            let new = match &step.new {
                // With defaults, and as the columns' affinity stores it.
                Some(image) => match step.overlay.key_of(image) {
                    Some(key) => step.overlay.read_row(connection, &key).map_err(self.failed())?,
                    None => None,
                },
                None => None,
            };
            for reference in references.from(table) {
                let of = |row: &Option<Row>| row.as_ref().and_then(|row| step.overlay.values(row, &reference.columns));
                let Some(values) = of(&new).filter(|values| of(&step.old).as_ref() != Some(values)) else { continue };
                if !reference.is_satisfied(connection, &values).map_err(self.failed())? {
                    let why = format!("its row refers to a row of {} that is not there", reference.parent);
                    return Ok(Some(refusal(step.change, &why)));
                }
            }
            for reference in references.to(table) {
                let of = |row: &Option<Row>| row.as_ref().and_then(|row| step.overlay.values(row, &reference.referred));
                let Some(values) = of(&step.old).filter(|values| of(&new).as_ref() != Some(values)) else { continue };
                let is_lost = !reference.is_satisfied(connection, &values).map_err(self.failed())?
                    && reference.is_used(connection, &values).map_err(self.failed())?;
                if is_lost {
                    return Ok(Some(refusal(step.change, &format!("a row of {} refers to it", reference.child))));
                }
            }
        }
        Ok(None)
    }
}

impl Taint {
    fn add(&mut self, unit: &PendingUnit, changes: &[PendingChange], names: &[Vec<RowName>]) {
        for (change, names) in changes.iter().zip(names) {
            let inserted = matches!(change.change, RowChange::Insert { .. });
            for (place, name) in names.iter().enumerate() {
                // A row that got another key is a new one to those that refer to it.
                self.rows.entry(name.clone()).or_default().push((unit.number, inserted || place > 0));
            }
        }
    }

    fn find(&self, name: &RowName, unit: &PendingUnit, only_inserted: bool) -> Option<(i64, bool)> {
        let known = self.rows.get(name)?;
        known.iter().find(|(other, inserted)| unit.sees(*other) && (*inserted || !only_inserted)).copied()
    }
}

fn name_of(overlay: &Overlay, key: &[Value]) -> RowName {
    (overlay.table.to_ascii_lowercase(), overlay.fold_key(key))
}

/// Returns the key that an update gives its row, if it is another one.
pub(super) fn new_key(overlay: &Overlay, change: &PendingChange) -> Option<RowKey> {
    let RowChange::Update { fields, .. } = &change.change else { return None };
    let mut key = change.key.clone();
    for (place, name) in overlay.key_names().iter().enumerate() {
        let column = change.columns.iter().position(|column| column.eq_ignore_ascii_case(name));
        let field = fields.iter().find(|field| Some(usize::from(field.column)) == column);
        if let (Some(slot), Some(field)) = (key.get_mut(place), field) {
            *slot = field.after.clone();
        }
    }
    (key != change.key).then_some(key)
}

/// Returns what a change leaves in columns, if it sets one of them and says what is in all.
fn values_after(change: &PendingChange, columns: &[String]) -> Option<Vec<Value>> {
    let place = |name: &String| change.columns.iter().position(|column| column.eq_ignore_ascii_case(name));
    columns
        .iter()
        .map(|name| match &change.change {
            RowChange::Insert { row } => row.get(place(name)?).cloned(),
            RowChange::Update { fields, .. } => {
                fields.iter().find(|field| Some(usize::from(field.column)) == place(name)).map(|field| field.after.clone())
            }
            RowChange::Delete { .. } => None,
        })
        .collect()
}
