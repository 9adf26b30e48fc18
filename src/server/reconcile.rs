//! Reconcile: the one answer to every doubt about capture (R6).
//!
//! A control in the log asks for it. The unit that holds the control compares its tables with the data store, in the snapshot in
//! which the unit was read, and the difference becomes part of that unit: nodes get exactly what they lacked, whatever
//! happened to triggers meanwhile, and none is extracted anew.
//!
//! Here is also decided which tables stand still: those that are stopped, with all that hangs on them (`rules::frozen`). A table
//! that stood still was left out of units, so it goes on only by a comparison.

use super::txnproc::TxnProcError;
use crate::base::clock::now_seconds;
use crate::base::ids::TxnId;
use crate::base::limits::RECONCILED_KEPT_MAX;
use crate::cds::compare::{Found, Reconciled, read_reconciled};
use crate::cds::layout::{StoppedTable, connect_read_only, read_state, read_stopped};
use crate::cds::unit::RowChange;
use crate::cds::{Cds, CdsError};
use crate::model::dock::{Dock, TableIndex};
use crate::rules::frozen::frozen;
use crate::store::control::Control;
use crate::store::log::{Marked, UnitReading};
use crate::store::snapshot::Snapshot;
use crate::store::sqlite::{ServerDatabase, StoreError};
use std::collections::BTreeSet;
use std::path::Path;

/// Which tables stand still after a unit, and which are compared in it.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// Tables that stand still; their changes are left out.
    pub(super) frozen: BTreeSet<TableIndex>,
    /// Tables that are compared, with the reason.
    pub(super) compared: Vec<(TableIndex, String)>,
    /// Every table that stands still, for the data store; `None` if nothing changed.
    pub(super) noted: Option<Vec<StoppedTable>>,
}

impl Standing {
    /// Returns whether a table is compared as a whole: what was logged of it is among the differences, once.
    pub(super) fn is_compared(&self, table: TableIndex) -> bool {
        self.compared.iter().any(|(compared, _)| *compared == table)
    }

    /// Decides by what the data store noted and by what a unit says. A table that stopped once goes on only by a comparison,
    /// and with it go those that stood still because of it, by a comparison of their own.
    pub(super) fn of(cds: &Cds, unit: &UnitReading) -> Result<Standing, TxnProcError> {
        let dock = cds.dock();
        let noted = cds.stopped()?;
        let asked = |table: &str| unit.is_compared(table);
        let reasons = unit.stopped.iter().map(|(table, reason)| (table, reason));
        let lasting = noted.iter().filter(|note| note.cause.is_none() && !asked(&note.table)).map(|note| (&note.table, &note.reason));
        let mut direct: Vec<(TableIndex, &String)> = Vec::new();
        for (table, reason) in reasons.chain(lasting) {
            if let Some(index) = dock.table(table)
                && !direct.iter().any(|(known, _)| *known == index)
            {
                direct.push((index, reason));
            }
        }
        let frozen = frozen(dock, cds.graph(), &direct.iter().map(|(index, _)| *index).collect());
        let name = |index: TableIndex| dock.tables[index].name.clone();
        let cause_of = |table: &str| {
            let known = noted.iter().find(|note| note.table == table).and_then(|note| note.cause.clone());
            let holds = |cause: &String| direct.iter().any(|(index, _)| name(*index) == *cause);
            known.filter(holds).or_else(|| direct.first().map(|(index, _)| name(*index)))
        };
        let mut notes: Vec<StoppedTable> = Vec::new();
        for index in &frozen {
            let table = name(*index);
            notes.push(match direct.iter().find(|(known, _)| known == index) {
                Some((_, reason)) => StoppedTable { table, reason: (*reason).clone(), cause: None },
                None => {
                    let cause = cause_of(&table);
                    let on = cause.as_deref().unwrap_or_default();
                    StoppedTable { reason: format!("what nodes see of it depends on {on}"), table, cause }
                }
            });
        }
        notes.sort_by(|a, b| a.table.cmp(&b.table));
        let was: BTreeSet<TableIndex> = noted.iter().filter_map(|note| dock.table(&note.table)).collect();
        let mut compared = Vec::new();
        for index in (0..dock.tables.len()).filter(|index| !frozen.contains(index)) {
            let table = &dock.tables[index].name;
            if asked(table) {
                compared.push((index, asked_for(unit, table)));
            } else if was.contains(&index) {
                let on = noted.iter().find(|note| note.table == *table).and_then(|note| note.cause.clone()).unwrap_or_default();
                compared.push((index, format!("it stood still with {on}")));
            }
        }
        Ok(Standing { frozen, compared, noted: (notes != noted).then_some(notes) })
    }
}

/// Returns why a unit asks for the comparison of a table; the first reason counts.
fn asked_for(unit: &UnitReading, table: &str) -> String {
    let reason = unit.controls.iter().find_map(|control| match control {
        Control::Reconcile { tables, reason } if tables.is_empty() || tables.iter().any(|named| named.eq_ignore_ascii_case(table)) => {
            Some(reason.clone())
        }
        _ => None,
    });
    reason.unwrap_or_default()
}

/// What the comparisons of a unit brought.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// What differs, by table and key.
    pub(super) changes: Vec<RowChange>,
    /// How much of each table.
    pub(super) found: Vec<Reconciled>,
    /// Tables with a row that no file can carry, or with a NULL key: they stop.
    pub(super) uncarried: Vec<(String, String)>,
}

/// Compares the tables of a unit in its snapshot.
pub(super) fn compare(cds: &Cds, snapshot: &Snapshot<'_>, unit: &UnitReading) -> Result<Compared, TxnProcError> {
    let mut all = Compared::default();
    for (table, reason) in Standing::of(cds, unit)?.compared {
        let before = all.changes.len();
        match compare_table(cds, snapshot, table, &mut all.changes) {
            Ok(found) => {
                let name = cds.dock().tables[table].name.clone();
                tracing::info!(
                    stage = "txnproc",
                    table = name,
                    missing = found.missing,
                    extra = found.extra,
                    different = found.different,
                    reason,
                    "compared with the server database"
                );
                all.found.push(Reconciled { unit: unit.upto.0, table: name, reason, found, at: now_seconds() });
            }
            Err(TxnProcError::Store(StoreError::Table { table, reason })) => {
                all.changes.truncate(before);
                all.uncarried.push((table, reason));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn compare_table(cds: &Cds, snapshot: &Snapshot<'_>, table: TableIndex, changes: &mut Vec<RowChange>) -> Result<Found, TxnProcError> {
    let declared = cds.dock().tables.get(table).ok_or_else(|| CdsError::UnknownTable(table.to_string()))?;
    let columns: Vec<String> = declared.columns.iter().map(|column| column.name.clone()).collect();
    if let Some(reason) = snapshot.misfit(&declared.name, &columns, &declared.key)? {
        return Err(StoreError::Table { table: declared.name.clone(), reason }.into());
    }
    cds.compare(
        table,
        |visit| snapshot.scan_by_key::<TxnProcError>(&declared.name, &columns, &declared.key, visit).map(drop),
        |change| changes.push(change),
    )
}

/// Asks for a comparison of the tables that have no triggers, if there are any.
pub(super) fn ask_scheduled(database: &ServerDatabase, dock: &Dock) -> Result<(), StoreError> {
    let tables: Vec<String> = dock.tables.iter().filter(|table| table.by_comparison).map(|table| table.name.clone()).collect();
    if !tables.is_empty() {
        database.append_control(&Control::Reconcile { tables, reason: "it has no triggers and is compared on a schedule".to_owned() })?;
    }
    Ok(())
}

/// Asks for a comparison of tables, of all if none is named. Returns the position of the request in the log. A table that was
/// stopped and could be captured is captured again.
///
/// # Errors
/// A table is not part of the deployed definition, or the database refused.
pub fn ask(database: &ServerDatabase, tables: &[String]) -> Result<TxnId, StoreError> {
    let revision = database.identity()?.revision;
    let deployed = database.deployed(revision)?;
    let known: Vec<&String> = deployed.iter().flat_map(|deployed| &deployed.dock.tables).map(|table| &table.name).collect();
    let mut names = Vec::new();
    for named in tables {
        let found = known.iter().find(|known| known.eq_ignore_ascii_case(named));
        let all = || known.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        let reason = || format!("the deployed definition (revision {revision}) does not have it; it has {}", all());
        names.push(found.map(|name| (*name).clone()).ok_or_else(|| StoreError::Table { table: named.clone(), reason: reason() })?);
    }
    database.heal_capture(&[], Marked::Included)?;
    database.append_control(&Control::Reconcile { tables: names, reason: "an administrator asked for it".to_owned() })
}

/// What was found by the unit that holds a position, and which tables stand still after it.
pub type Outcome = (Vec<Reconciled>, Vec<(String, String)>);

/// Returns what a comparison found that was asked for at a position; `None` before it was made.
///
/// # Errors
/// The data store cannot be read.
pub fn outcome(cds: &Path, position: TxnId) -> Result<Option<Outcome>, CdsError> {
    let sql = |source| CdsError::Sql { path: cds.to_owned(), what: "read comparisons", source };
    let conn = connect_read_only(cds).map_err(sql)?;
    if read_state(&conn).map_err(sql)?.is_none_or(|state| state.position < position) {
        return Ok(None);
    }
    let mut found = read_reconciled(&conn, position.0, RECONCILED_KEPT_MAX as usize).map_err(sql)?;
    let unit = found.iter().map(|of| of.unit).min();
    found.retain(|of| Some(of.unit) == unit);
    let stopped = read_stopped(&conn).map_err(sql)?.into_iter().map(|note| (note.table, note.reason)).collect();
    Ok(Some((found, stopped)))
}
