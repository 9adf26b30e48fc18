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
use super::local_overlay::{Overlay, OwnValues};
use super::local_pending::{Pending, PendingChange, PendingUnit, Translator};
use super::local_redo::new_key;
use super::local_references::References;
use super::local_shown::key_of;
use crate::base::ids::TxnId;
use crate::model::upload::Confirm;
use rusqlite::{Connection, ErrorCode, params};
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
    pub(super) orphaned: RefCell<BTreeSet<String>>,
    /// Units that end with the server's unit that is being applied.
    pub(super) ending: RefCell<BTreeSet<i64>>,
    /// Rows that were computed without them already.
    pub(super) computed: RefCell<HashSet<(String, Vec<u8>)>>,
    overlays: RefCell<HashMap<String, Option<Rc<Overlay>>>>,
    references: RefCell<Option<Rc<References>>>,
    mappings: RefCell<Option<Rc<Translator>>>,
    watched: RefCell<Option<Rc<HashSet<String>>>>,
    pub(super) own: RefCell<HashMap<(String, Vec<u8>), OwnValues>>,
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

    pub(super) fn writer(&self) -> UnitWriter<'_> {
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

    /// Notes keys of pending changes as the tables compare them now.
    fn fold_keys_anew(&self) -> Result<(), LocalError> {
        let sql = "UPDATE dock_change SET row_key = ?3, new_key = ?4 WHERE unit = ?1 AND place = ?2 AND (row_key, new_key) IS NOT (?3, ?4)";
        for unit in self.pending().units(false)? {
            for change in self.changes_of(&unit)? {
                let Some(overlay) = self.overlay(&change.table)? else { continue };
                let (key, new) = (overlay.fold_key(&change.key), new_key(&overlay, &change).map(|key| overlay.fold_key(&key)));
                let update = |connection: &Connection| -> rusqlite::Result<usize> {
                    connection.prepare_cached(sql)?.execute(params![unit.number, change.place, key, new])
                };
                update(self.connection()).map_err(self.failed())?;
            }
        }
        Ok(())
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
                self.fold_keys_anew()?;
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
