//! What the Synchronization Manager asks of the other parts: the list of valid nodes in the server database, and how far
//! routing is. Its own connections, so that a session never waits for a stage.

use super::enrolment;
use super::nodes;
use super::syncmgr::{BoxError, NodeDirectory, OutboxFile, OutboxIndex};
use crate::base::ids::{ContentHash, FileNo, Incarnation, InstallId, NodeName, TxnId, UnitNo};
use crate::cds::layout::{connect_read_only, last_routable, read_state};
use crate::docking::error::DockingError;
use crate::docking::ledger::Ledger;
use crate::docking::root::DockingRoot;
use crate::model::node::Node;
use crate::session::admission::ServerIdentity;
use crate::session::enrol::Request;
use crate::store::sqlite::{ServerDatabase, StoreError};
use crate::store::upload_position::MergedTo;
use crate::trust::authority::Authority;
use crate::trust::keys::PublicKey;
use rusqlite::Connection;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The server database as a list of valid nodes (SR-11).
#[derive(Debug)]
pub struct Directory {
    database: Mutex<ServerDatabase>,
    authority: Arc<Authority>,
}

impl Directory {
    /// Opens the server database; nodes are let in in the name of `authority`.
    pub fn open(database: &Path, authority: Arc<Authority>) -> Result<Directory, StoreError> {
        Ok(Directory { database: Mutex::new(ServerDatabase::open(database)?), authority })
    }

    fn database(&self) -> MutexGuard<'_, ServerDatabase> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NodeDirectory for Directory {
    fn identity(&self) -> Result<ServerIdentity, BoxError> {
        let identity = self.database().identity()?;
        Ok(ServerIdentity { server_id: identity.server_id, name: identity.server_name, epoch: identity.epoch, revision: identity.revision })
    }

    fn node(&self, name: &NodeName) -> Result<Option<Node>, BoxError> {
        Ok(self.database().node(name)?)
    }

    fn merged(&self, name: &NodeName) -> Result<Option<MergedTo>, BoxError> {
        Ok(self.database().merged_to(name)?)
    }

    fn last_unit(&self, install: InstallId) -> Result<UnitNo, BoxError> {
        Ok(self.database().last_unit_of(install)?)
    }

    fn units_from(&self, install: InstallId, first: UnitNo) -> Result<Vec<(UnitNo, ContentHash)>, BoxError> {
        Ok(self.database().units_from(install, first)?)
    }

    fn log_end(&self) -> Result<TxnId, BoxError> {
        Ok(self.database().log_end()?)
    }

    fn restart(&self, name: &NodeName) -> Result<(), BoxError> {
        nodes::restart(&self.database(), name)?;
        Ok(())
    }

    fn key_holder(&self, key: &PublicKey) -> Result<Option<NodeName>, BoxError> {
        Ok(self.database().key_holder(key)?)
    }

    fn key_of(&self, node: &NodeName) -> Result<Option<PublicKey>, BoxError> {
        Ok(self.database().node_key(node)?.key)
    }

    fn enrol(&self, request: &Request, proved: Option<PublicKey>) -> Result<Result<(NodeName, Vec<u8>), &'static str>, BoxError> {
        enrolment::decide(&self.database(), &self.authority, request, proved)
    }

    fn start(&self, name: &NodeName) -> Result<Incarnation, BoxError> {
        Ok(nodes::start(&self.database(), name)?)
    }
}

/// The Router's ledger, and the data store's commit point.
#[derive(Debug)]
pub struct Routed(Mutex<(Ledger, Connection)>);

impl Routed {
    /// Opens both.
    pub fn open(root: &DockingRoot) -> Result<Routed, DockingError> {
        let ledger = Ledger::open(&root.ledger_db())?;
        let path = root.cds_db();
        let cds = connect_read_only(&path).map_err(|source| DockingError::Sql { operation: "open", path, source })?;
        Ok(Routed(Mutex::new((ledger, cds))))
    }

    fn parts(&self) -> MutexGuard<'_, (Ledger, Connection)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OutboxIndex for Routed {
    fn files_after(&self, node: &NodeName, incarnation: Incarnation, after: FileNo, limit: usize) -> Result<Vec<OutboxFile>, BoxError> {
        let files = self.parts().0.files_after(node, incarnation, after, limit)?;
        Ok(files
            .into_iter()
            .map(|file| OutboxFile {
                file_no: file.file_no,
                first: file.first,
                last: file.last,
                bytes: file.bytes,
                byte_hash: file.byte_hash,
                content_hash: file.content_hash,
            })
            .collect())
    }

    fn last_file(&self, node: &NodeName, incarnation: Incarnation) -> Result<FileNo, BoxError> {
        let stream = self.parts().0.stream(node)?;
        Ok(stream.filter(|stream| stream.incarnation == incarnation).map_or(FileNo(0), |stream| stream.last_file))
    }

    fn position(&self) -> Result<TxnId, BoxError> {
        let parts = self.parts();
        // In this order: what the data store held at the first look is routed if the ledger, looked at last, has passed the
        // last file of the second. A data store that was just filled is ahead of the Router without a file that says so.
        let filled = read_state(&parts.1)?.map_or(TxnId::default(), |state| state.position);
        let last = last_routable(&parts.1)?;
        let routed = parts.0.state()?.position;
        Ok(if last.is_none_or(|last| last <= routed) { filled.max(routed) } else { routed })
    }
}
