//! Names of an upload, looked up in the definition: from here on only the definition's own are used (T12).

use crate::model::dock::{Dock, DockTable, TableIndex};
use crate::model::event::TableHeading;
use crate::model::upload::{FieldChange, RowChange, UploadUnit};
use crate::model::value::{Row, Value};
use std::collections::HashMap;
use std::sync::Arc;

/// A value of a column that nodes do not have any more: it is kept in the conflict list.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Dropped {
    /// Place of the change within the unit.
    pub(super) place: usize,
    /// Name of the column, as the node has it.
    pub(super) column: String,
    /// The node's value.
    pub(super) value: Value,
}

/// Takes the columns out of a unit that the definition does not send to nodes: a later one took them out, or they are forged. What
/// cannot be resolved otherwise stays, for the rights to refuse.
pub(super) fn known_columns(dock: &Dock, unit: &UploadUnit) -> (UploadUnit, Vec<Dropped>) {
    let mut dropped = Vec::new();
    let mut headings: HashMap<*const TableHeading, Option<Kept>> = HashMap::new();
    let mut changes = Vec::with_capacity(unit.changes.len());
    for (place, (heading, change)) in unit.changes.iter().enumerate() {
        let kept = headings.entry(Arc::as_ptr(heading)).or_insert_with(|| kept(dock, heading));
        let Some(kept) = kept else {
            changes.push((Arc::clone(heading), change.clone()));
            continue;
        };
        let mut drops = |column: usize, value: &Value| {
            if !value.is_null() {
                let column = heading.columns.get(column).cloned().unwrap_or_default();
                dropped.push(Dropped { place, column, value: value.clone() });
            }
        };
        let pick = |row: &Row| -> Row { kept.places.iter().filter_map(|place| row.get(*place).cloned()).collect() };
        let change = match change {
            RowChange::Insert { row } => {
                row.iter().enumerate().filter(|(column, _)| !kept.places.contains(column)).for_each(|(column, value)| drops(column, value));
                RowChange::Insert { row: pick(row) }
            }
            RowChange::Delete { key, before, base } => {
                RowChange::Delete { key: key.clone(), before: pick(before), base: base.as_ref().map(pick) }
            }
            RowChange::Update { key, fields, whole } => {
                let mut known = Vec::with_capacity(fields.len());
                for field in fields {
                    match kept.places.iter().position(|place| *place == usize::from(field.column)) {
                        Some(column) => {
                            known.push(FieldChange { column: u16::try_from(column).unwrap_or(u16::MAX), ..field.clone() });
                        }
                        None => drops(usize::from(field.column), &field.after),
                    }
                }
                RowChange::Update { key: key.clone(), fields: known, whole: whole.as_ref().map(pick) }
            }
        };
        changes.push((Arc::clone(&kept.heading), change));
    }
    (UploadUnit { head: unit.head.clone(), changes }, dropped)
}

/// A heading without the columns that are not known.
struct Kept {
    heading: Arc<TableHeading>,
    /// Places of its columns in the heading of the file.
    places: Vec<usize>,
}

fn kept(dock: &Dock, heading: &TableHeading) -> Option<Kept> {
    let (_, declared) = table(dock, heading)?;
    let is_sent = |name: &str| declared.column(name).and_then(|column| declared.columns.get(column)).is_some_and(|column| column.sent);
    let places: Vec<usize> = (0..heading.columns.len()).filter(|place| heading.columns.get(*place).is_some_and(|c| is_sent(c))).collect();
    if places.len() == heading.columns.len() {
        return None;
    }
    let place = |column: &u16| places.iter().position(|place| *place == usize::from(*column)).and_then(|place| u16::try_from(place).ok());
    // Without its key a row is nobody's.
    let key = heading.key.iter().map(place).collect::<Option<Vec<u16>>>()?;
    let columns = places.iter().filter_map(|place| heading.columns.get(*place).cloned()).collect();
    Some(Kept { heading: Arc::new(TableHeading { name: heading.name.clone(), columns, key }), places })
}

/// Returns the table of the definition that a heading names.
pub(super) fn table<'d>(dock: &'d Dock, heading: &TableHeading) -> Option<(TableIndex, &'d DockTable)> {
    let index = dock.table(&heading.name)?;
    Some((index, dock.tables.get(index)?))
}
