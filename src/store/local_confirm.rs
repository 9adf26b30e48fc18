//! What the server says of units of local changes: a confirm takes out exactly that unit, in any order (R30).
//!
//! - The unit of the stream that carries a confirm carries the official values of the rows that it merged, as ordinary operations.
//! - A confirm of a unit that is not pending here, or of another installation, says nothing: databases are restored and cloned (R16).
//! - What was lost, refused, ignored or returned is kept in `dock_conflict`, for people and applications (MI-9).

use super::local::LocalError;
use super::local_apply::ApplyTransaction;
use super::local_overlay::{Image, Overlay};
use super::local_pending::{PendingChange, PendingUnit, redo};
use super::local_redo::new_key;
use super::local_shown::{fold, is_same};
use crate::base::ids::TxnId;
use crate::model::keycode;
use crate::model::upload::{Confirm, Conflict, KeyMapping, Outcome, RowChange};
use crate::model::value::{Row, RowKey, Value, display_key};
use crate::model::value_json::to_json;
use rusqlite::params;
use std::rc::Rc;

/// A row that a unit leaves when it is taken out.
struct Left {
    overlay: Rc<Overlay>,
    key: RowKey,
    is: Option<Row>,
    base: Option<Row>,
    to_be: Option<Image>,
}

impl ApplyTransaction<'_> {
    /// Does what a unit of the stream says of local units, after its operations.
    ///
    /// # Errors
    /// A statement failed.
    pub fn confirm(&self, seen: TxnId, confirms: &[Confirm]) -> Result<(), LocalError> {
        for confirm in confirms {
            let number = confirm.unit.number.0.cast_signed();
            let is_ours = Some(confirm.unit.install) == self.state().install_id;
            match self.pending().unit(number)?.filter(|_| is_ours) {
                Some(unit) => self.end_unit(seen, &unit, &confirm.outcome)?,
                None => tracing::debug!(number, outcome = confirm.outcome.name(), "a confirm of a unit that is not pending here"),
            }
        }
        Ok(())
    }

    fn end_unit(&self, seen: TxnId, unit: &PendingUnit, outcome: &Outcome) -> Result<(), LocalError> {
        let changes = self.changes_of(unit)?;
        match outcome {
            Outcome::Held { reason } => {
                let sql = "UPDATE dock_unit SET state = 'held', reason = ?2 WHERE unit = ?1";
                return self.write(sql, params![unit.number, reason]);
            }
            Outcome::Merged { conflicts, .. } => {
                for conflict in conflicts {
                    self.keep_conflict(unit, conflict)?;
                }
            }
            Outcome::Ignored { reason } | Outcome::Returned { reason } => {
                for change in &changes {
                    self.keep_change(unit, change, outcome.name(), reason)?;
                }
            }
        }
        let (is_merged, keys): (bool, &[KeyMapping]) = match outcome {
            Outcome::Merged { keys, .. } => (true, keys),
            _ => (false, &[]),
        };
        if !keys.is_empty() {
            self.to_base()?;
        }
        if !self.rebase.at_base.get() {
            self.mark("SAVEPOINT dock_confirm")?;
            if self.leave_shown(unit, &changes, is_merged)? {
                self.mark("RELEASE dock_confirm")?;
            } else {
                self.undo("ROLLBACK TO dock_confirm", "RELEASE dock_confirm")?;
                self.to_base()?;
            }
        }
        if self.rebase.at_base.get() && is_merged {
            self.keep_own_rows(unit, &changes)?;
        }
        self.write("DELETE FROM dock_change WHERE unit = ?1", params![unit.number])?;
        self.write("DELETE FROM dock_unit WHERE unit = ?1", params![unit.number])?;
        for mapping in keys {
            self.replace_key(seen, unit, mapping)?;
        }
        self.write("DELETE FROM dock_key_map WHERE NOT EXISTS (SELECT 1 FROM dock_unit AS u WHERE u.applied < seen)", params![])?;
        self.rebase.forget_mappings();
        self.rebase.retry.set(true);
        Ok(())
    }

    fn write(&self, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<(), LocalError> {
        self.connection().prepare_cached(sql).and_then(|mut statement| statement.execute(values)).map(drop).map_err(self.failed())
    }

    /// Takes a unit out of the rows that are shown. `false` = not by its own rows alone; what it wrote is to be taken back.
    fn leave_shown(&self, unit: &PendingUnit, changes: &[PendingChange], is_merged: bool) -> Result<bool, LocalError> {
        let connection = self.connection();
        let mut rows = Vec::with_capacity(changes.len());
        for change in changes {
            let Some(overlay) = self.overlay(&change.table)? else { continue };
            if new_key(&overlay, change).is_some() || self.pending().is_moved_to(&overlay, &change.key, 0)? {
                return Ok(false);
            }
            let entry = overlay.entry(connection, &change.key).map_err(self.failed())?;
            let Some(entry) = entry.filter(|entry| entry.key == change.key) else { return Ok(false) };
            let is = overlay.read_row(connection, &change.key).map_err(self.failed())?;
            let chain = self.chain(&overlay, &change.key)?;
            let ending = self.rebase.ending.borrow();
            let remaining = || chain.iter().filter(|(other, _)| !ending.contains(&other.number)).map(|(_, change)| change);
            // An operation on it, or another confirm, may have taken this unit out of the row already.
            let is_computed = self.rebase.computed.borrow().contains(&(overlay.table.clone(), overlay.fold_key(&entry.key)));
            let shown = match is_computed {
                true => fold(&overlay, &entry.key, entry.row.as_ref(), false, remaining()),
                false => fold(&overlay, &entry.key, entry.row.as_ref(), true, chain.iter().map(|(_, change)| change)),
            };
            if !shown.is_some_and(|shown| is_same(shown.as_ref(), is.as_ref())) {
                return Ok(false);
            }
            let mut base = entry.row;
            if overlay.upload_only && is_merged && !unit.is_suspended {
                let Some(own) = own_base(&overlay, change, base.take()) else { return Ok(false) };
                base = own;
            }
            let Some(to_be) = fold(&overlay, &entry.key, base.as_ref(), false, remaining()) else { return Ok(false) };
            rows.push(Left { overlay, key: entry.key, is, base, to_be });
        }
        if !self.write_rows(rows.iter().map(|row| (&*row.overlay, &row.key, row.is.as_ref(), row.to_be.as_ref())))? {
            return Ok(false);
        }
        // A row that comes back may miss its parent, which another unit took away.
        let references = self.references()?;
        for row in rows.iter().filter(|row| row.to_be.is_some() && !is_same(row.to_be.as_ref(), row.is.as_ref())) {
            let Some(now) = row.overlay.read_row(connection, &row.key).map_err(self.failed())? else { continue };
            for reference in references.from(&row.overlay.table) {
                let Some(values) = row.overlay.values(&now, &reference.columns) else { continue };
                if !reference.is_satisfied(connection, &values).map_err(self.failed())? {
                    return Ok(false);
                }
            }
        }
        for Left { overlay, key, is, base, to_be } in &rows {
            self.rebase.computed.borrow_mut().insert((overlay.table.clone(), overlay.fold_key(key)));
            if is.is_some() && !is_same(to_be.as_ref(), is.as_ref()) {
                self.went_from(&overlay.table);
            }
            if self.pending().is_named(overlay, key, unit.number)? {
                overlay.put_entry(connection, key, base.as_deref()).map_err(self.failed())?;
            } else {
                overlay.delete_entry(connection, key).map_err(self.failed())?;
            }
        }
        Ok(true)
    }

    /// Keeps merged rows of tables that only this node writes: the server sends none of them back (R31). All rows are at base.
    fn keep_own_rows(&self, unit: &PendingUnit, changes: &[PendingChange]) -> Result<(), LocalError> {
        let connection = self.connection();
        for change in changes {
            let Some(overlay) = self.overlay(&change.table)?.filter(|overlay| overlay.upload_only) else { continue };
            let is = overlay.read_row(connection, &change.key).map_err(self.failed())?;
            let key = new_key(&overlay, change).unwrap_or_else(|| change.key.clone());
            let image = is.as_ref().map(|row| row.iter().cloned().map(Some).collect());
            let own = self.own_values(&overlay, &change.key);
            let written = match (redo(&overlay, change, image), &is) {
                (Ok(Some(image)), None) => overlay.insert_row(connection, &image, own.as_ref()),
                (Ok(to_be), _) => overlay.write_row(connection, &change.key, is.as_ref(), to_be.as_ref()),
                (Err(reason), _) => {
                    tracing::warn!(unit = unit.number, reason, "a merged change of a row of this node alone cannot be kept");
                    continue;
                }
            };
            match written {
                Ok(()) => {}
                Err(source) if super::local_rebase::is_refusal(&source) => {
                    tracing::warn!(unit = unit.number, table = overlay.table, %source, "a merged row of this node alone cannot be kept");
                }
                Err(source) => return Err(self.failed()(source)),
            }
            for key in [&change.key, &key] {
                overlay.refresh_entry(connection, key, true).map_err(self.failed())?;
            }
        }
        Ok(())
    }

    /// Takes note of a key that the server replaced. The server's row under the new one has come, and later units are done again.
    fn replace_key(&self, seen: TxnId, unit: &PendingUnit, mapping: &KeyMapping) -> Result<(), LocalError> {
        let KeyMapping { table, old, new } = mapping;
        self.write(
            "INSERT INTO dock_key_map(unit, seen, table_name, old_key, new_key) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![unit.number, seen.0, table, keycode::encode(old), keycode::encode(new)],
        )?;
        let overlay = self.overlay(table)?;
        let code = |key: &RowKey| overlay.as_ref().map_or_else(|| keycode::encode(key), |overlay| overlay.fold_key(key));
        let (old_key, new_key) = (code(old), code(new));
        // A change of that row is listed under its key as it was cut, or under what an earlier mapping of the same key made of it. One that is
        // listed under it for another reason, the new key of another row, is not meant.
        let mut listed = vec![old_key.clone()];
        for earlier in self.pending().mappings()? {
            if earlier.unit != unit.number && earlier.mapping.table.eq_ignore_ascii_case(table) && earlier.mapping.old == *old {
                listed.push(code(&earlier.mapping.new));
            }
        }
        for later in self.pending().units(false)? {
            if later.number > unit.number && later.applied < seen.0 && later.sees(unit.number) {
                // The body stays as it was sent; it is read with the new key.
                for (place, before, after) in self.pending().keys_as_cut(later.number, table, &listed)? {
                    if code(&before) == old_key {
                        self.write(
                            "UPDATE dock_change SET row_key = ?3, key_text = ?4 WHERE unit = ?1 AND place = ?2",
                            params![later.number, place, new_key, display_key(new)],
                        )?;
                    }
                    if after.as_ref().is_some_and(|after| code(after) == old_key) {
                        self.write(
                            "UPDATE dock_change SET new_key = ?3 WHERE unit = ?1 AND place = ?2 AND new_key IS NOT NULL",
                            params![later.number, place, new_key],
                        )?;
                    }
                }
            }
        }
        Ok(())
    }

    fn keep_conflict(&self, unit: &PendingUnit, conflict: &Conflict) -> Result<(), LocalError> {
        let json = |value: &Option<Value>| value.as_ref().map(|value| to_json(value).to_string());
        self.write(
            "INSERT INTO dock_conflict(unit, server_id, table_name, row_key, key_text, column_name, base, server, client, winner, rule, at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            params![
                unit.number,
                conflict.id,
                conflict.table,
                keycode::encode(&conflict.key),
                display_key(&conflict.key),
                conflict.column,
                json(&conflict.base),
                json(&conflict.server),
                json(&conflict.client),
                conflict.winner.to_string(),
                conflict.rule,
                conflict.at_micros
            ],
        )
    }

    /// Keeps what a unit that was taken out wanted: a row of the list per changed column.
    fn keep_change(&self, unit: &PendingUnit, change: &PendingChange, rule: &str, reason: &str) -> Result<(), LocalError> {
        let server = match self.overlay(&change.table)? {
            Some(overlay) => {
                let connection = self.connection();
                let entry = overlay.entry(connection, &change.key).map_err(self.failed())?;
                let row = match entry {
                    Some(entry) => entry.row,
                    None => overlay.read_row(connection, &change.key).map_err(self.failed())?,
                };
                Some((overlay, row))
            }
            None => None,
        };
        let of_server = |column: u16| {
            let (overlay, row) = server.as_ref()?;
            row.as_ref()?.get(overlay.column(change.columns.get(usize::from(column))?)?).cloned()
        };
        let mut values: Vec<(Option<u16>, Option<Value>, Option<Value>)> = Vec::new();
        match &change.change {
            RowChange::Insert { row } => values.extend((0u16..).zip(row).map(|(column, value)| (Some(column), None, Some(value.clone())))),
            RowChange::Update { fields, .. } => {
                values.extend(fields.iter().map(|field| (Some(field.column), Some(field.base.clone()), Some(field.after.clone()))));
            }
            RowChange::Delete { .. } => values.push((None, None, None)),
        }
        let at: i64 = self.now()?;
        let json = |value: &Option<Value>| value.as_ref().map(|value| to_json(value).to_string());
        for (column, base, client) in values {
            let name = column.and_then(|column| change.columns.get(usize::from(column)));
            self.write(
                "INSERT INTO dock_conflict(unit, table_name, row_key, key_text, column_name, base, server, client, winner, rule, reason, at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'server', ?9, ?10, ?11)",
                params![
                    unit.number,
                    change.table,
                    keycode::encode(&change.key),
                    display_key(&change.key),
                    name,
                    json(&base),
                    column.and_then(&of_server).map(|value| to_json(&value).to_string()),
                    json(&client),
                    rule,
                    reason,
                    at
                ],
            )?;
        }
        Ok(())
    }

    fn now(&self) -> Result<i64, LocalError> {
        let select = "SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000";
        self.connection().prepare_cached(select).and_then(|mut statement| statement.query_row([], |row| row.get(0))).map_err(self.failed())
    }
}

/// What a row that is this node's alone is at the server after a change: `None` if that cannot be said.
fn own_base(overlay: &Overlay, change: &PendingChange, base: Option<Row>) -> Option<Option<Row>> {
    let image = base.map(|row| row.into_iter().map(Some).collect());
    match redo(overlay, change, image).ok()? {
        Some(image) => image.into_iter().collect::<Option<Row>>().map(Some),
        None => Some(None),
    }
}
