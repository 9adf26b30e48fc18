//! A definition that was deployed while nodes run (R40): the unit that holds its control takes every node over to it.
//!
//! `deploy` writes the definition and its control into the server database, in one transaction with the triggers. So what is in force
//! changes at one place of the log, and all of it happens in the snapshot of that unit, whenever the Transaction Processor gets there.
//! A table that is another one again by then stops alone (R6).

use super::reconcile::Standing;
use super::txnproc::TxnProcError;
use crate::base::clock::now_micros;
use crate::cds::layout::StoppedTable;
use crate::cds::marks::Question;
use crate::cds::redefine::{Redefined, Redefinition};
use crate::cds::unit::{NodeChange, UnitInput};
use crate::cds::{Cds, CdsError};
use crate::dx::writer::TxnprocWriter;
use crate::model::dock::TableIndex;
use crate::model::event::ConfirmEvent;
use crate::model::value::{Row, Value};
use crate::rules::frozen::frozen;
use crate::rules::graph::ScopeGraph;
use crate::store::control::Control;
use crate::store::deployed::Deployed;
use crate::store::log::UnitReading;
use crate::store::snapshot::Snapshot;
use crate::store::sqlite::StoreError;
use std::collections::{BTreeMap, BTreeSet};

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
pub(super) fn asked(cds: &Cds, snapshot: &Snapshot<'_>, input: &UnitInput) -> Result<Option<Deployed>, TxnProcError> {
    let Some(revision) = input.revision.filter(|revision| *revision != cds.state().revision) else { return Ok(None) };
    snapshot.deployed(revision)?.ok_or(TxnProcError::NoDefinition { revision }).map(Some)
}

/// What a unit that puts a definition into force did.
#[derive(Debug, Default)]
pub(super) struct TakenOver {
    /// What nodes get.
    pub(super) redefined: Redefined,
    /// Every table that stands still from here on.
    pub(super) noted: Vec<StoppedTable>,
    /// Tables with a row that no file can carry, or with a NULL key: they stop.
    pub(super) uncarried: Vec<(String, String)>,
}

/// Puts a definition into force in the data store, from the unit's snapshot; writes the unit to `writer`. The data store's transaction
/// stays open.
///
/// A table that changed once more since the definition was deployed, so that it is not what nodes are to get, stops by name, and all that
/// hangs on it stands still; the others are taken over. A table that is in doubt, but still has all that the definition needs, is
/// taken over as it is and stops from then on.
pub(super) fn redefine(
    cds: &mut Cds,
    snapshot: &Snapshot<'_>,
    deployed: &Deployed,
    unit: &UnitReading,
    (input, questions): (&UnitInput, &[Question]),
    writer: &mut TxnprocWriter<'_>,
) -> Result<TakenOver, TxnProcError> {
    let dock = &deployed.dock;
    let graph = ScopeGraph::compile(dock).map_err(CdsError::from)?;
    let mut unfit: BTreeMap<TableIndex, String> = BTreeMap::new();
    for (number, table) in dock.tables.iter().enumerate() {
        if let Some(reason) = snapshot.unfit(deployed, table)? {
            unfit.insert(number, reason);
        }
    }
    let mut uncarried = Vec::new();
    loop {
        let standing = frozen(dock, &graph, &unfit.keys().copied().collect());
        let to = Redefinition { dock: dock.clone(), schema: deployed.schema.clone(), standing };
        match fill_from(cds, snapshot, to, input, questions, writer) {
            Ok(redefined) => {
                let mut unit = unit.clone();
                let known: BTreeSet<TableIndex> = unit.stopped.iter().filter_map(|(table, _)| dock.table(table)).collect();
                let others = unfit.into_iter().filter(|(number, _)| !known.contains(number));
                unit.stopped.extend(others.map(|(number, reason)| (dock.tables[number].name.clone(), reason)));
                let mut noted = Standing::of(cds, &unit)?.noted.unwrap_or_default();
                let emptied = |note: &StoppedTable| dock.table(&note.table).is_some_and(|table| redefined.emptied.contains(&table));
                for note in noted.iter_mut().filter(|note| emptied(note)) {
                    note.reason.push_str("; until it goes on nodes have no rows of it");
                }
                cds.note_stopped(&noted)?;
                for StoppedTable { table, reason, .. } in &noted {
                    tracing::warn!(stage = "txnproc", table, reason, "the table stands still under the new definition");
                }
                tracing::info!(stage = "txnproc", unit = %unit.upto, rows = redefined.rows, "another definition is in force");
                return Ok(TakenOver { redefined, noted, uncarried });
            }
            // Nothing is written yet. Each turn adds a table, so they come to an end.
            Err(TxnProcError::Store(StoreError::Table { table, reason })) => {
                let number = dock.table(&table).filter(|number| !unfit.contains_key(number));
                let number = number.ok_or_else(|| StoreError::Table { table: table.clone(), reason: reason.clone() })?;
                unfit.insert(number, reason.clone());
                uncarried.push((table, reason));
            }
            Err(error) => return Err(error),
        }
    }
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
    let (tables, standing) = (to.dock.tables.clone(), to.standing.clone());
    cds.redefine(to, input, questions, writer, |add: &mut dyn FnMut(TableIndex, &Row) -> Result<(), TxnProcError>| {
        for (number, table) in tables.iter().enumerate().filter(|(number, _)| !standing.contains(number)) {
            let columns: Vec<String> = table.columns.iter().map(|column| column.name.clone()).collect();
            snapshot.scan::<TxnProcError>(&table.name, &columns, |row| {
                if table.key.iter().any(|column| row.get(*column).is_none_or(Value::is_null)) {
                    let reason = "a row has NULL in its primary key".to_owned();
                    return Err(StoreError::Table { table: table.name.clone(), reason }.into());
                }
                add(number, &row)
            })?;
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
