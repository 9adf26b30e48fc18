//! One exchange with the server.
use crate::base::ids::{Epoch, Incarnation, InstallId, NodeName, Revision, ServerId};
use crate::session::message::AppliedTo;

/// An error of the part that applies.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What the local database says of itself (`dock_state`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPosition {
    /// Server that it belongs to.
    pub server_id: ServerId,
    /// Name of that server, for people.
    pub server_name: String,
    /// Epoch of that server.
    pub epoch: Epoch,
    /// Node that it is.
    pub node: NodeName,
    /// Extract that it was made from.
    pub incarnation: Incarnation,
    /// Its own identity.
    pub install_id: InstallId,
    /// How far it has applied.
    pub applied: AppliedTo,
    /// Definition in force.
    pub revision: Revision,
}

/// The part that applies the inbox to the local database. Calls block; they are made on threads for that.
pub trait Applier: Send + 'static {
    /// Returns what the local database says of itself.
    fn state(&mut self) -> Result<LocalPosition, BoxError>;
    /// Applies everything that can be applied and returns how far the database is now.
    fn apply(&mut self) -> Result<AppliedTo, BoxError>;
}
