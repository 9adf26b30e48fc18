//! Taking a server database back that is not the one read last (R13, R14): what `dockmaster recover` writes into it.

use crate::base::ids::{Epoch, NodeName, Nonce, TxnId};
use crate::model::node::{Node, NodeState};
use crate::store::control::Control;
use crate::store::sqlite::{ServerDatabase, StoreError};
use crate::trust::keys::PublicKey;
use rusqlite::OptionalExtension;

/// What the data store knows, and a restored database may have lost.
#[derive(Debug, Clone)]
pub struct Remembered<'a> {
    /// Position up to which the log was read.
    pub position: TxnId,
    /// Mark of that reading.
    pub nonce: Nonce,
    /// Epoch of that history.
    pub epoch: Epoch,
    /// Nodes whose streams run.
    pub nodes: &'a [Node],
    /// Keys by which nodes came in last: node, key, and since when, in seconds since 1970.
    pub keys: &'a [(NodeName, PublicKey, i64)],
}

/// What was changed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Recovered {
    /// The new epoch.
    pub epoch: u32,
    /// Nodes that were written back.
    pub restored: Vec<NodeName>,
    /// Nodes that this database holds for running while their streams have ended: they are disabled now.
    pub disabled: Vec<NodeName>,
}

impl ServerDatabase {
    /// Returns how many log rows stand above a position, and when the first of them was written (UTC).
    ///
    /// # Errors
    /// A statement failed.
    pub fn log_above(&self, position: TxnId) -> Result<(u64, Option<String>), StoreError> {
        let sql = "SELECT count(*), strftime('%Y-%m-%dT%H:%M:%SZ', min(at)) FROM main.dock_txn_log WHERE id > ?1";
        self.connection
            .query_row(sql, [position.0], |row| Ok((row.get::<_, i64>(0)?.unsigned_abs(), row.get(1)?)))
            .map_err(self.fault("looking at the log"))
    }

    /// Returns when the last row of the log was written (UTC); `None` if there is none.
    ///
    /// # Errors
    /// A statement failed.
    pub fn log_written_at(&self) -> Result<Option<String>, StoreError> {
        self.connection
            .query_row("SELECT strftime('%Y-%m-%dT%H:%M:%SZ', at) FROM main.dock_txn_log ORDER BY id DESC LIMIT 1", [], |row| row.get(0))
            .optional()
            .map_err(self.fault("looking at the log"))
    }

    /// Declares that this database was restored: in one transaction it gets a new epoch, its log goes on above the position that was
    /// read, nodes that it lost are written back with their keys, and a comparison of every table is asked for. Whatever the log holds above
    /// that position is found by the comparison too, so it goes: its numbers were not given to anything that was ever read.
    ///
    /// # Errors
    /// Nothing is installed, a row of ours is damaged, or a statement failed. Then nothing was changed.
    pub fn declare_restored(&self, remembered: &Remembered<'_>) -> Result<Recovered, StoreError> {
        let fault = || self.fault("declaring a restore");
        let live_epoch = self.identity()?.epoch;
        let transaction = self.begin_write("declaring a restore")?;
        let epoch = Epoch(live_epoch.0.max(remembered.epoch.0) + 1);
        transaction.execute("UPDATE main.dock_meta SET value = ?1 WHERE name = 'epoch'", [epoch.0.to_string()]).map_err(fault())?;
        transaction.execute("DELETE FROM main.dock_txn_log WHERE id > ?1", [remembered.position.0]).map_err(fault())?;
        self.put_tail(remembered.position, remembered.nonce, None)?;
        transaction
            .execute("UPDATE main.sqlite_sequence SET seq = ?1 WHERE name = 'dock_txn_log'", [remembered.position.0])
            .map_err(fault())?;
        let mut recovered = Recovered { epoch: epoch.0, restored: Vec::new(), disabled: Vec::new() };
        let writer = self.node_writer();
        let live = self.nodes()?;
        for node in remembered.nodes {
            if live.iter().all(|known| known != node) {
                recovered.restored.push(node.name.clone());
            }
            writer.put(node)?;
        }
        for node in live.into_iter().filter(|node| node.state == NodeState::Active) {
            if remembered.nodes.iter().all(|known| known.name != node.name) {
                recovered.disabled.push(node.name.clone());
                writer.put(&Node { state: NodeState::Disabled, ..node })?;
            }
        }
        self.put_keys_back(remembered.keys)?;
        self.log_control(&Control::Reconcile { tables: Vec::new(), reason: "the server database was restored".to_owned() })?;
        transaction.commit().map_err(fault())?;
        Ok(recovered)
    }

    /// Accepts this database as the one that was read last: the tail says so from here on.
    ///
    /// # Errors
    /// [`StoreError::LogReset`] or [`StoreError::LogGap`] if its log cannot go on where it was read; or a statement failed.
    pub fn accept_tail(&self, position: TxnId, nonce: Nonce) -> Result<(), StoreError> {
        let end = self.log_end()?;
        if end < position {
            return Err(StoreError::LogReset { path: self.path.clone(), known: position, end });
        }
        let (rows, _) = self.log_above(position)?;
        let found = i64::try_from(rows).unwrap_or(i64::MAX);
        if found != end.0 - position.0 {
            return Err(StoreError::LogGap { path: self.path.clone(), after: position, upto: end, found });
        }
        self.write_tail(position, nonce, None)
    }
}
