//! The usual way of a unit of the server where work is pending: each row with a base entry is computed anew from the entry and its own
//! changes, and only such rows are looked at, however much is pending (R24).

use super::local::LocalError;
use super::local_apply::{ApplyTransaction, UnitError, Work};
use super::local_overlay::{Entry, Image, Overlay};
use super::local_pending::{PendingChange, PendingUnit, redo};
use super::local_rebase::is_refusal;
use super::local_table::LocalTable;
use crate::base::ids::TxnId;
use crate::model::operation::Operation;
use crate::model::upload::RowChange;
use crate::model::value::{Row, RowKey, Value};
use std::rc::Rc;

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
    /// The usual way. `false` = it does not serve; what it wrote is to be taken back.
    pub(super) fn change_shown(&self, unit: TxnId, work: &[Work<'_>]) -> Result<bool, UnitError> {
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
        if self.pending().is_moved_to(&overlay, &entry.key, 0)? {
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
        let mut chain = self.pending().chain(overlay, key)?;
        chain.retain(|(unit, _)| !unit.is_suspended);
        for (unit, change) in &mut chain {
            self.translate(unit, change)?;
        }
        Ok(chain)
    }
}

/// Returns the key of the row that an operation is on.
pub(super) fn key_of(table: &LocalTable, operation: &Operation) -> RowKey {
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
