//! A definition that was deployed while nodes run (R40): the unit that holds its control takes every node over to it.
//!
//! `deploy` writes the definition and its control into the server database, in one transaction with the triggers. So what is in force
//! changes at one place of the log, and all of it happens in the snapshot of that unit, whenever the Transaction Processor gets there.

use super::txnproc::TxnProcError;
use crate::base::clock::now_micros;
use crate::cds::marks::Question;
use crate::cds::redefine::{Redefined, Redefinition};
use crate::cds::unit::{NodeChange, UnitInput};
use crate::cds::{Cds, CdsError};
use crate::dx::writer::TxnprocWriter;
use crate::model::dock::TableIndex;
use crate::model::event::ConfirmEvent;
use crate::model::value::Row;
use crate::store::control::Control;
use crate::store::log::UnitReading;
use crate::store::snapshot::Snapshot;
use crate::store::sqlite::StoreError;

/// Returns what a unit's controls change beside rows.
pub(super) fn controls(unit: &UnitReading) -> UnitInput {
    let mut input = UnitInput { unit: unit.upto, read_at_micros: now_micros(), ..UnitInput::default() };
    for control in &unit.controls {
        match control {
            Control::Node { node, .. } => input.nodes.push(NodeChange::Set(node.clone())),
            Control::NodeDeleted { name, .. } => input.nodes.push(NodeChange::Deleted(name.clone())),
            Control::Definition { revision } => input.revision = Some(*revision),
            Control::Confirm { node, confirm } => input.confirms.push(ConfirmEvent { node: node.clone(), confirm: confirm.clone() }),
            Control::Tick { day } => input.day = Some(*day),
            // Told by what the comparison brings, and by marks.
            Control::Reconcile { .. } | Control::Verify { .. } => {}
        }
    }
    input
}

/// Returns the definition that a unit puts into force, if it is another one than the data store's.
pub(super) fn asked(cds: &Cds, snapshot: &Snapshot<'_>, input: &UnitInput) -> Result<Option<Redefinition>, TxnProcError> {
    let Some(revision) = input.revision.filter(|revision| *revision != cds.state().revision) else { return Ok(None) };
    let deployed = snapshot.deployed(revision)?.ok_or(TxnProcError::NoDefinition { revision })?;
    Ok(Some(Redefinition { dock: deployed.dock, schema: deployed.schema }))
}

/// Puts a definition into force in the data store, from the unit's snapshot; writes the unit to `writer`. The data store's transaction
/// stays open.
pub(super) fn redefine(
    cds: &mut Cds,
    snapshot: &Snapshot<'_>,
    to: Redefinition,
    unit: &UnitReading,
    input: &UnitInput,
    questions: &[Question],
    writer: &mut TxnprocWriter<'_>,
) -> Result<Redefined, TxnProcError> {
    if let Some((table, reason)) = unit.stopped.iter().find(|(table, _)| to.dock.table(table).is_some()) {
        return Err(TxnProcError::ChangedAgain { table: table.clone(), reason: reason.clone() });
    }
    let redefined = fill_from(cds, snapshot, to, input, questions, writer)?;
    tracing::info!(stage = "txnproc", unit = %unit.upto, rows = redefined.rows, "another definition is in force");
    Ok(redefined)
}

/// Redefines a data store with the rows of a snapshot.
pub(super) fn fill_from(
    cds: &mut Cds,
    snapshot: &Snapshot<'_>,
    to: Redefinition,
    input: &UnitInput,
    questions: &[Question],
    writer: &mut TxnprocWriter<'_>,
) -> Result<Redefined, TxnProcError> {
    let tables = to.dock.tables.clone();
    cds.redefine(to, input, questions, writer, |add: &mut dyn FnMut(TableIndex, &Row) -> Result<(), TxnProcError>| {
        for (number, table) in tables.iter().enumerate() {
            let columns: Vec<String> = table.columns.iter().map(|column| column.name.clone()).collect();
            snapshot.scan::<TxnProcError>(&table.name, &columns, |row| add(number, &row))?;
        }
        Ok(())
    })
}

impl From<crate::cds::redefine::RedefineError> for TxnProcError {
    fn from(error: crate::cds::redefine::RedefineError) -> TxnProcError {
        match error {
            crate::cds::redefine::RedefineError::Cds(error) => TxnProcError::Cds(error),
            crate::cds::redefine::RedefineError::Dx(source) => TxnProcError::Encode(source),
        }
    }
}

impl TxnProcError {
    /// Returns whether a table was changed between `deploy` and the unit that takes the definition over: the next deploy mends it.
    pub(super) fn is_changed_again(&self) -> bool {
        matches!(self, TxnProcError::ChangedAgain { .. } | TxnProcError::Cds(CdsError::UnknownTable(_)))
            || matches!(self, TxnProcError::Store(StoreError::Table { .. }))
    }
}
