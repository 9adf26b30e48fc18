//! Units of a node that nothing more happens to (R16): told by its extract, and by a stream that begins anew, since the confirms went
//! by in a stream that ended.

use crate::base::ids::{NodeName, UnitNo};
use crate::base::limits::{CONFIRM_BYTES_MAX, FINISHED_UNITS_TOLD_MAX};
use crate::model::keycode;
use crate::model::upload::{Confirm, FinishedUnit, KeyMapping, Outcome, UnitId};
use crate::store::control::Control;
use crate::store::snapshot::Snapshot;
use crate::store::sqlite::StoreError;
use rusqlite::{Connection, OptionalExtension, params};

/// A row of `dock_unit` with a final status.
struct Row {
    unit: UnitId,
    outcome: Outcome,
    log_id: Option<i64>,
}

impl Snapshot<'_> {
    /// Returns the finished units of a node, newest [`FINISHED_UNITS_TOLD_MAX`] at most, by the time at which they were finished.
    ///
    /// # Errors
    /// A row is damaged, or a statement failed.
    pub fn finished_units(&self, node: &NodeName) -> Result<Vec<FinishedUnit>, StoreError> {
        let rows = self.finished_rows(node, "'finished', 'ignored'")?;
        Ok(rows.into_iter().map(|row| FinishedUnit { unit: row.unit, outcome: row.outcome.name().to_owned() }).collect())
    }

    /// Returns the confirms of the same units, in their order: as the log still has them; else, and for what is over
    /// [`CONFIRM_BYTES_MAX`] together, the outcome with its reason and keys.
    ///
    /// # Errors
    /// As [`Snapshot::finished_units`].
    pub fn finished_confirms(&self, node: &NodeName) -> Result<Vec<Confirm>, StoreError> {
        let mut room = CONFIRM_BYTES_MAX;
        let mut confirms = Vec::new();
        for row in self.finished_rows(node, "'finished', 'ignored', 'error'")? {
            let logged = self.logged_confirm(&row)?.filter(|confirm| confirm.size() <= room);
            let confirm = match logged {
                Some(confirm) => {
                    room -= confirm.size();
                    confirm
                }
                None => Confirm { unit: row.unit, outcome: self.with_keys(row.unit, row.outcome)? },
            };
            confirms.push(confirm);
        }
        Ok(confirms)
    }

    fn finished_rows(&self, node: &NodeName, statuses: &str) -> Result<Vec<Row>, StoreError> {
        let database = self.database;
        let fault = || database.fault("reading the finished units of a node");
        let damaged = |what: String, reason: &str| StoreError::Damaged { path: database.path.clone(), what, reason: reason.to_owned() };
        let mut statement = database
            .connection
            .prepare_cached(&format!(
                "SELECT install_id, unit, status, outcome, reason, log_id FROM main.dock_unit
                 WHERE node = ?1 AND status IN ({statuses}) ORDER BY log_id DESC, unit DESC LIMIT ?2"
            ))
            .map_err(fault())?;
        let mut rows = statement.query(params![node.as_str(), FINISHED_UNITS_TOLD_MAX as i64]).map_err(fault())?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(fault())? {
            let (install, number): (String, i64) = (row.get(0).map_err(fault())?, row.get(1).map_err(fault())?);
            let what = || format!("unit {number} of {install} in dock_unit");
            let install_id = install.parse().map_err(|_| damaged(what(), "its install id cannot be read"))?;
            let unit_no = u64::try_from(number).map_err(|_| damaged(what(), "its number is negative"))?;
            let (status, outcome): (String, Option<String>) = (row.get(2).map_err(fault())?, row.get(3).map_err(fault())?);
            let reason = row.get::<_, Option<String>>(4).map_err(fault())?.unwrap_or_default();
            let outcome = match (status.as_str(), outcome.as_deref()) {
                ("finished", _) => Outcome::Merged { conflicts: Vec::new(), keys: Vec::new() },
                // What stands here is the administrator's reason: it may name rows that the node does not see.
                ("error", _) => Outcome::Held { reason: "the server holds it; its administrator sees why".to_owned() },
                (_, Some("returned")) => Outcome::Returned { reason },
                _ => Outcome::Ignored { reason },
            };
            let unit = UnitId { install: install_id, number: UnitNo(unit_no) };
            found.push(Row { unit, outcome, log_id: row.get(5).map_err(fault())? });
        }
        found.reverse();
        Ok(found)
    }

    /// Returns a unit's confirm as it was told, if the log still has it.
    fn logged_confirm(&self, row: &Row) -> Result<Option<Confirm>, StoreError> {
        let text: Option<String> = self
            .database
            .connection
            .prepare_cached("SELECT c1 FROM main.dock_txn_log WHERE id = ?1 AND tbl = 0")
            .and_then(|mut statement| statement.query_row([row.log_id], |row| row.get(0)).optional())
            .map_err(self.database.fault("reading a confirm in the log"))?;
        let control = text.map(|text| self.database.control(row.log_id.unwrap_or_default(), &text)).transpose()?;
        Ok(match control {
            Some(Control::Confirm { confirm, .. }) if confirm.unit == row.unit && confirm.outcome.name() == row.outcome.name() => {
                Some(confirm)
            }
            _ => None,
        })
    }

    /// Adds the keys that a merged unit gave and the server replaced.
    fn with_keys(&self, unit: UnitId, mut outcome: Outcome) -> Result<Outcome, StoreError> {
        let Outcome::Merged { keys, .. } = &mut outcome else { return Ok(outcome) };
        let database = self.database;
        let fault = || database.fault("reading the keys that a unit replaced");
        let mut statement = database
            .connection
            .prepare_cached("SELECT table_name, old_key, new_key FROM main.dock_key_map WHERE install_id = ?1 AND unit = ?2 ORDER BY rowid")
            .map_err(fault())?;
        let mut rows = statement.query(params![unit.install.to_string(), unit.number.0.cast_signed()]).map_err(fault())?;
        while let Some(row) = rows.next().map_err(fault())? {
            let table: String = row.get(0).map_err(fault())?;
            let key = |bytes: Vec<u8>| {
                let (path, what) = (database.path.clone(), format!("a key of table {table} in dock_key_map"));
                keycode::decode(&bytes).ok_or(StoreError::Damaged { path, what, reason: "it is no key".to_owned() })
            };
            let (old, new) = (key(row.get(1).map_err(fault())?)?, key(row.get(2).map_err(fault())?)?);
            keys.push(KeyMapping { table, old, new });
        }
        Ok(outcome)
    }
}

/// Writes finished units into a new local database: what it carries over from an older one is not sent again.
///
/// # Errors
/// SQLite refuses.
pub fn write_finished(connection: &Connection, finished: &[FinishedUnit]) -> rusqlite::Result<()> {
    let mut insert = connection.prepare("INSERT INTO main.dock_finished (install_id, unit, outcome) VALUES (?1, ?2, ?3)")?;
    for FinishedUnit { unit, outcome } in finished {
        insert.execute(params![unit.install.to_string(), unit.number.0.cast_signed(), outcome])?;
    }
    Ok(())
}
