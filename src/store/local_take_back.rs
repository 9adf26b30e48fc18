//! Rows of pending units set to what the server has, all at once, for as long as a transaction needs it.

use super::local::LocalError;
use super::local_apply::ApplyTransaction;
use super::local_overlay::{Image, Overlay, OwnValues};
use super::local_rebase::is_refusal;
use crate::model::value::Value;
use rusqlite::Connection;
use std::rc::Rc;

impl ApplyTransaction<'_> {
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
}
