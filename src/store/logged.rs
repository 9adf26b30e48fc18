//! What the log still holds of one row and of one node, for `explain`: looked up by a person, so it may read the kept log once.

use crate::base::ids::{NodeName, TxnId};
use crate::model::value::Value;
use crate::store::control::Control;
use crate::store::sqlite::{ServerDatabase, SqlValue, StoreError};
use rusqlite::{OptionalExtension, params_from_iter};

/// The last log row of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logged {
    /// Where it stands.
    pub at: TxnId,
    /// What was done.
    pub what: LoggedChange,
}

/// What a log row says was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoggedChange {
    /// Inserted.
    Insert,
    /// Updated, or given another key.
    Update,
    /// Deleted.
    Delete,
    /// A statement may have replaced it: whether it did is seen when the log is read.
    Hint,
}

impl ServerDatabase {
    /// Returns the last log row that names a row by its key, in whatever shape of the table; `None` if the kept log has none.
    ///
    /// # Errors
    /// Nothing is installed, a row of ours is damaged, or a statement failed.
    pub fn last_logged(&self, table: &str, key: &[Value]) -> Result<Option<Logged>, StoreError> {
        self.require_installed()?;
        let fault = || self.fault("searching the log");
        let snapshot = self.connection.unchecked_transaction().map_err(fault())?;
        let catalogue = self.catalogue()?;
        let mut last: Option<Logged> = None;
        for capture in catalogue.of_table(table).filter(|capture| capture.key.len() == key.len()) {
            let terms = |offset: usize| {
                let term = |(at, place): (usize, &usize)| format!("c{} IS ?{}", place + offset + 1, at + 1);
                capture.key.iter().enumerate().map(term).collect::<Vec<_>>().join(" AND ")
            };
            let sql = format!(
                "SELECT id, op FROM main.dock_txn_log WHERE tbl = {} AND (({}) OR (op = 'U' AND {})) ORDER BY id DESC LIMIT 1",
                capture.id,
                terms(0),
                terms(capture.columns.len())
            );
            let found: Option<(i64, String)> = self
                .connection
                .prepare(&sql)
                .and_then(|mut statement| {
                    statement.query_row(params_from_iter(key.iter().map(SqlValue)), |row| Ok((row.get(0)?, row.get(1)?))).optional()
                })
                .map_err(fault())?;
            if let Some((at, op)) = found
                && last.is_none_or(|last| last.at < TxnId(at))
            {
                let what = match op.as_str() {
                    "I" => LoggedChange::Insert,
                    "D" => LoggedChange::Delete,
                    "U" => LoggedChange::Update,
                    _ => LoggedChange::Hint,
                };
                last = Some(Logged { at: TxnId(at), what });
            }
        }
        snapshot.rollback().map_err(fault())?;
        Ok(last)
    }

    /// Returns the first row that the log still holds; `None` if it is empty.
    ///
    /// # Errors
    /// A statement failed.
    pub fn log_begin(&self) -> Result<Option<TxnId>, StoreError> {
        self.connection
            .query_row("SELECT min(id) FROM main.dock_txn_log", [], |row| Ok(row.get::<_, Option<i64>>(0)?.map(TxnId)))
            .map_err(self.fault("reading the beginning of the log"))
    }

    /// Returns the newest controls about a node that the kept log holds, newest first, with the second since 1970 at which each was written.
    ///
    /// # Errors
    /// A control is damaged, or a statement failed.
    pub fn controls_of(&self, node: &NodeName, limit: u32) -> Result<Vec<(TxnId, i64, Control)>, StoreError> {
        self.require_installed()?;
        let fault = || self.fault("searching the log");
        let sql = "SELECT id, CAST((ifnull(at, 2440587.5) - 2440587.5) * 86400 AS INTEGER), c1 FROM main.dock_txn_log WHERE tbl = 0 ORDER BY id DESC";
        let mut statement = self.connection.prepare(sql).map_err(fault())?;
        let mut rows = statement.query([]).map_err(fault())?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(fault())? {
            let read = || -> rusqlite::Result<(i64, i64, String)> { Ok((row.get(0)?, row.get(1)?, row.get(2)?)) };
            let (id, at, json) = read().map_err(fault())?;
            let control = self.control(id, &json)?;
            if names(&control, node) {
                found.push((TxnId(id), at, control));
            }
            if found.len() >= limit as usize {
                break;
            }
        }
        Ok(found)
    }

    pub(super) fn control(&self, id: i64, json: &str) -> Result<Control, StoreError> {
        serde_json::from_str(json).map_err(|error| StoreError::Damaged {
            path: self.path.clone(),
            what: format!("log row {id}"),
            reason: error.to_string(),
        })
    }

    /// Returns where the log, after a position, last tells of a change of a node; `None` if nothing is told.
    ///
    /// # Errors
    /// A control is damaged, or a statement failed.
    pub fn last_control_of(&self, node: &NodeName, after: TxnId) -> Result<Option<TxnId>, StoreError> {
        let fault = || self.fault("searching the log");
        let mut statement =
            self.connection.prepare("SELECT id, c1 FROM main.dock_txn_log WHERE id > ?1 AND tbl = 0 ORDER BY id DESC").map_err(fault())?;
        let mut rows = statement.query([after.0]).map_err(fault())?;
        while let Some(row) = rows.next().map_err(fault())? {
            let (id, json): (i64, String) = row.get(0).and_then(|id| Ok((id, row.get(1)?))).map_err(fault())?;
            let control = self.control(id, &json)?;
            if names(&control, node) && !matches!(control, Control::Verify { .. }) {
                return Ok(Some(TxnId(id)));
            }
        }
        Ok(None)
    }
}

/// Returns whether a control is about a node.
fn names(control: &Control, node: &NodeName) -> bool {
    match control {
        Control::Node { node: of, .. } => of.name == *node,
        Control::NodeDeleted { name: of, .. } | Control::Verify { node: of, .. } => of == node,
        _ => false,
    }
}
