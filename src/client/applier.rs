//! What an exchange needs of the local database: how far it is, applying what came, and what it has to send.

use crate::base::ids::{Epoch, FileNo, Incarnation, InstallId, NodeName, Revision, ServerId, SyncToken, UnitNo};
use crate::model::digest::TableOutcome;
use crate::session::message::{AppliedTo, Hello, Mode, Versions, program};
use crate::session::upload::{UploadFile, UploadState};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// An error of the part that applies.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What the local database says of itself (`dock_state`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPosition {
    /// First unit that was never in a file, else the number of the next one.
    pub unsent: UnitNo,
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
    /// What it shows the server next; `None` = nothing yet.
    pub token: Option<SyncToken>,
    /// How far it has applied.
    pub applied: AppliedTo,
    /// Definition in force.
    pub revision: Revision,
}

impl LocalPosition {
    /// Returns what a node that is so far says of itself to its server.
    pub fn hello(&self, received: FileNo, mode: Mode, features: Vec<u16>) -> Hello {
        Hello {
            protocol: Some(Versions::PROTOCOL),
            dx: Versions::DX,
            program: program(),
            node: self.node.to_string(),
            install_id: self.install_id,
            server_id: Some(self.server_id),
            epoch: self.epoch,
            incarnation: self.incarnation,
            applied: self.applied,
            received,
            unsent: self.unsent,
            mode,
            features,
        }
    }
}

/// The part that applies the inbox to the local database. Calls block; they are made on threads for that.
pub trait Applier: Send + 'static {
    /// Returns what the local database says of itself.
    ///
    /// # Errors
    /// It cannot be read.
    fn state(&mut self) -> Result<LocalPosition, BoxError>;

    /// Takes note of the server's epoch: from here on files of it are accepted. It never goes back.
    ///
    /// # Errors
    /// It cannot be stored.
    fn enter_epoch(&mut self, epoch: Epoch) -> Result<(), BoxError>;

    /// Keeps the token that the server is shown next, durable.
    ///
    /// # Errors
    /// It cannot be stored.
    fn keep_token(&mut self, token: SyncToken) -> Result<(), BoxError>;

    /// Applies everything in the inbox that can be applied and returns how far the database is now, committed.
    ///
    /// # Errors
    /// Something failed that a later call may not meet again, or a file that only a person can judge.
    fn apply(&mut self) -> Result<AppliedTo, BoxError>;

    /// Returns what the server is to be told beside: why nothing is applied, and what was found at marks.
    ///
    /// # Errors
    /// It cannot be read.
    fn reports(&mut self) -> Result<Reports, BoxError>;

    /// Notes that the server knows these outcomes, by question and place.
    ///
    /// # Errors
    /// It cannot be written; they are told again.
    fn told(&mut self, outcomes: &[(u64, u32)]) -> Result<(), BoxError>;

    /// Returns what this node sends; `None` = it sends nothing.
    fn uploads(&mut self) -> Option<SharedUploads> {
        None
    }

    /// Takes over that the node's stream begins anew under that incarnation; what waits of the former one goes.
    ///
    /// # Errors
    /// The database or the inbox cannot be written.
    fn begin_anew(&mut self, incarnation: Incarnation) -> Result<(), BoxError>;
}

/// See [`Applier::reports`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reports {
    /// Why nothing more is applied; `None` = all is well.
    pub stopped: Option<String>,
    /// What was found at marks and not told yet.
    pub outcomes: Vec<TableOutcome>,
}

/// An applier that threads may share.
pub type SharedApplier = Arc<Mutex<dyn Applier>>;

/// A file that is ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// What it is.
    pub file: UploadFile,
    /// How many units are in it.
    pub units: u64,
    /// Where it lies.
    pub path: PathBuf,
}

/// What became of units that were sent; those in neither number are finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fates {
    /// The server refused them; a person decides.
    pub refused: u64,
    /// Nothing was heard yet.
    pub waiting: u64,
    /// Entries of the conflict list that are about them and that nobody has looked at.
    pub conflicts: u64,
}

/// The part that sends: cuts local changes into units and files. Calls block; they are made on threads for that.
pub trait Uploads: Send + 'static {
    /// Cuts what was changed since the last cut. Returns how many units are new.
    ///
    /// # Errors
    /// The local database cannot be read or written.
    fn cut(&mut self) -> Result<u64, BoxError>;

    /// Takes what the server has of us: files to that one are stored, and numbers go on above it. Returns what a person should know of that.
    ///
    /// # Errors
    /// It cannot be stored.
    fn agree(&mut self, known: &UploadState) -> Result<Option<String>, BoxError>;

    /// Returns the next file after one, with the right bytes: units that are in no file yet get one, and one that was lost or damaged is
    /// made again.
    ///
    /// # Errors
    /// It cannot be made.
    fn next(&mut self, after: FileNo) -> Result<Option<Outgoing>, BoxError>;

    /// Notes that the server has all files to this one durable.
    ///
    /// # Errors
    /// It cannot be stored; the server says it again.
    fn stored(&mut self, file: FileNo) -> Result<(), BoxError>;

    /// Returns what became of the units in these ranges.
    ///
    /// # Errors
    /// The local database cannot be read.
    fn fates(&mut self, sent: &[(UnitNo, UnitNo)]) -> Result<Fates, BoxError>;

    /// Deletes files whose units are finished for long. Called after files were applied.
    ///
    /// # Errors
    /// A file cannot be deleted.
    fn purge(&mut self) -> Result<(), BoxError>;
}

/// What is sent, shared by the session and whoever cuts.
pub type SharedUploads = Arc<Mutex<dyn Uploads>>;
