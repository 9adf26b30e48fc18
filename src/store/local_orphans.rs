//! Declared foreign keys between rows of the server and pending rows, while units are applied: a row of the server may take away what a
//! pending row refers to, and pending work may hide what a row of the server refers to (R20).

use super::local::LocalError;
use super::local_apply::{ApplyTransaction, UnitError, Work};
use super::local_overlay::Overlay;
use super::local_references::Reference;
use super::local_shown::key_of;
use crate::model::operation::Operation;
use std::collections::HashMap;
use std::rc::Rc;

impl ApplyTransaction<'_> {
    /// Notes rows that went, to which pending rows may refer. `false` = the unit brings a row whose parent pending work hides.
    pub(super) fn references_stay(&self, work: &[Work<'_>]) -> Result<bool, UnitError> {
        let references = self.references()?;
        /// Whether pending rows may refer to the table, and by what its rows refer to tables with pending rows.
        type Known<'r> = (bool, Vec<(&'r Reference, Rc<Overlay>)>);
        let mut known: HashMap<&str, Known<'_>> = HashMap::new();
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
    pub(super) fn has_orphans(&self) -> Result<bool, LocalError> {
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
}
