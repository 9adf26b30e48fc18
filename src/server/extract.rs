//! Extract: makes the ready local database of one node, as of one unit (domain 9, R15).

use crate::base::ids::{Epoch, Incarnation, NodeName, Revision, ServerId, TxnId};
use crate::model::dock::Dock;
use crate::model::schema::Schema;
pub use crate::model::toc::{Toc, TocTable};
use rusqlite::Connection;
use std::path::{Path, PathBuf};

/// What an extract is made of.
#[derive(Debug)]
pub struct ExtractJob<'a> {
    /// The consolidated data store in a read transaction that is pinned at `unit`; `temp.vis_{i}(rid INTEGER PRIMARY KEY)` holds the
    /// visible rowids of `d{i}` for every table that belongs to an object.
    pub cds: &'a Connection,
    /// The definition in force.
    pub dock: &'a Dock,
    /// The server's schema.
    pub schema: &'a Schema,
    /// Identity of the server database.
    pub server_id: ServerId,
    /// Its name.
    pub server_name: &'a str,
    /// Its history.
    pub epoch: Epoch,
    /// The node.
    pub node: &'a NodeName,
    /// Its new incarnation.
    pub incarnation: Incarnation,
    /// The unit at whose end the rows are taken.
    pub unit: TxnId,
    /// Definition in force at that unit.
    pub revision: Revision,
    /// `<NODE>/outbox`.
    pub outbox: &'a Path,
    /// `<NODE>/tmp`, on the same file system.
    pub tmp: &'a Path,
}

/// Why an extract failed. Nothing of it is in the outbox then.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// A file could not be written, read or removed.
    #[error("extract of node {node}: {doing} {}", path.display())]
    File {
        /// The node.
        node: NodeName,
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// Makes the extract and publishes it in the node's outbox: the database first, its `.toc` last. Older extracts of the
/// node are removed once the new one is durable.
pub fn build(_job: &ExtractJob<'_>) -> Result<Toc, ExtractError> {
    Err(ExtractError::File {
        node: _job.node.clone(),
        doing: "write",
        path: _job.outbox.to_owned(),
        source: std::io::ErrorKind::Unsupported.into(),
    })
}
