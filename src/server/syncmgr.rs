//! The Synchronization Manager.
use crate::base::ids::{ByteHash, ContentHash, FileNo, Incarnation, NodeName, TxnId};
use crate::model::node::Node;
use crate::session::admission::ServerIdentity;

/// An error of one of the parts that the manager asks.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The list of valid nodes in the server database. Calls block; they are made on threads for that.
pub trait NodeDirectory: Send + Sync + 'static {
    /// Returns who this server is, as of now.
    fn identity(&self) -> Result<ServerIdentity, BoxError>;
    /// Returns a node; `None` if there is none of that name.
    fn node(&self, name: &NodeName) -> Result<Option<Node>, BoxError>;
    /// Starts a node anew and returns its new incarnation; its extract will appear in its outbox.
    fn start(&self, name: &NodeName) -> Result<Incarnation, BoxError>;
}

/// One file of a node's outbox, as the ledger has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxFile {
    /// Its number.
    pub file_no: FileNo,
    /// First unit in it.
    pub first: TxnId,
    /// Last unit that it covers.
    pub last: TxnId,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its bytes.
    pub byte_hash: ByteHash,
    /// Its content hash.
    pub content_hash: ContentHash,
}

/// The ledger's list of routed files. Calls block; they are made on threads for that.
pub trait OutboxIndex: Send + Sync + 'static {
    /// Returns at most `limit` files of a node after one of them, in order.
    fn files_after(&self, node: &NodeName, incarnation: Incarnation, after: FileNo, limit: usize) -> Result<Vec<OutboxFile>, BoxError>;
    /// Returns the last file routed to a node in this incarnation; 0 = none.
    fn last_file(&self, node: &NodeName, incarnation: Incarnation) -> Result<FileNo, BoxError>;
}
