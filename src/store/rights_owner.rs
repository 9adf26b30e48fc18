//! Whose the rows of private tables are: upload tables that the definition shows to nobody (R31).
//!
//! No rule says which node may change such a row, so the node that brought it is remembered in `dock_owner`.

use crate::base::ids::{InstallId, TxnId};
use crate::model::dock::{Direction, RuleKind, TableIndex};
use crate::model::keycode;
use crate::model::upload::MessageStatus;
use crate::model::value::Value;
use crate::store::rights_rules::{RightsError, Rules, Sight, key_of};
use rusqlite::params;

impl Rules<'_> {
    /// Returns whether any node may add rows to a table and each may change only its own: an upload table of `'nobody'`.
    pub(super) fn is_private(&self, table: TableIndex) -> bool {
        let Some(object) = self.dock.tables.get(table).and_then(|declared| declared.object) else { return false };
        let is_upload = self.dock.objects.get(object).is_some_and(|object| object.direction == Direction::Upload);
        let mut rules = self.rules_of(object).peekable();
        is_upload && rules.peek().is_some() && rules.all(|(_, rule)| matches!(rule.kind, RuleKind::Nobody))
    }

    /// Returns through what a node may touch a row: as its own in a private table, else as the rules show it.
    pub(super) fn own_or_sight(&self, table: TableIndex, row: &[Value]) -> Result<Sight, RightsError> {
        if !self.is_private(table) {
            return self.sight(table, row);
        }
        let declared = &self.dock.tables[table];
        let fault = || self.database.fault("reading dock_owner");
        let mut statement = self
            .database
            .connection
            .prepare_cached("SELECT 1 FROM main.dock_owner WHERE table_name = ?1 AND row_key = ?2 AND node = ?3")
            .map_err(fault())?;
        let key = keycode::encode(&key_of(declared, row));
        let is_own = statement.exists(params![declared.name, key, self.node.name.as_str()]).map_err(fault())?;
        Ok(if is_own { Sight::Own } else { Sight::None })
    }

    /// Notes that a row of a private table is the node's. One that stood there before keeps its owner.
    pub(super) fn take_ownership(&self, table: TableIndex, row: &[Value], is_new: bool) -> Result<(), RightsError> {
        let declared = &self.dock.tables[table];
        let fault = || self.database.fault("writing dock_owner");
        let key = keycode::encode(&key_of(declared, row));
        if is_new {
            self.end(&declared.name, &key, None)?;
        }
        let sql = "INSERT INTO main.dock_owner(table_name, row_key, node) SELECT ?1, ?2, ?3
                   WHERE NOT EXISTS (SELECT 1 FROM main.dock_owner WHERE table_name = ?1 AND row_key = ?2)";
        let mut statement = self.database.connection.prepare_cached(sql).map_err(fault())?;
        statement.execute(params![declared.name, key, self.node.name.as_str()]).map_err(fault())?;
        Ok(())
    }

    /// Forgets that a row was the node's: it is gone.
    pub(super) fn end_ownership(&self, table: TableIndex, key: &[Value]) -> Result<(), RightsError> {
        if self.row(table, key)?.is_some() {
            return Ok(());
        }
        self.end(&self.dock.tables[table].name, &keycode::encode(key), Some(self.node.name.as_str()))
    }

    fn end(&self, table: &str, key: &[u8], node: Option<&str>) -> Result<(), RightsError> {
        let fault = || self.database.fault("writing dock_owner");
        let sql = "DELETE FROM main.dock_owner WHERE table_name = ?1 AND row_key = ?2 AND (?3 IS NULL OR node = ?3)";
        let mut statement = self.database.connection.prepare_cached(sql).map_err(fault())?;
        statement.execute(params![table, key, node]).map_err(fault())?;
        Ok(())
    }

    /// Returns whether a unit of that local database was merged after a place of the log.
    pub(super) fn merged_since(&self, install: InstallId, after: TxnId) -> Result<bool, RightsError> {
        let fault = || self.database.fault("reading dock_unit");
        let sql = "SELECT 1 FROM main.dock_unit WHERE install_id = ?1 AND status = ?2 AND log_id > ?3";
        let mut statement = self.database.connection.prepare_cached(sql).map_err(fault())?;
        Ok(statement.exists(params![install.to_string(), MessageStatus::Finished.name(), after.0]).map_err(fault())?)
    }
}
