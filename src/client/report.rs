//! What an exchange tells: progress while it runs, a report at its end, an error if it did not come to its end.

use crate::base::disk::DiskError;
use crate::base::ids::{FileNo, Incarnation, NodeName, UnitNo};
use crate::client::exchange::BoxError;
use crate::client::folder::FolderError;
use crate::session::message::{AppliedTo, Refusal, Unavailable};
use crate::session::upload::{Refused, UploadFile};
use crate::store::passing::is_out_of_room;
use crate::transport::letters::MailError;
use crate::transport::peer::DialError;
use std::io;
use std::time::Duration;

/// Something to show to the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgressEvent {
    /// The server let us in.
    Connected {
        /// Its name.
        server: String,
        /// Files that are missing here, as far as is known.
        files: u64,
    },
    /// Files were named; their bytes add to what is to come.
    Offered {
        /// How many.
        files: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// A file of ours is being sent.
    Sending {
        /// Units in it.
        units: u64,
        /// Bytes of it that are still to go.
        bytes: u64,
    },
    /// Some bytes of it went out.
    SentBytes(u64),
    /// The server has it durable.
    Sent(FileNo),
    /// The server did not take it.
    UploadRefused(Refused),
    /// Some bytes came.
    Bytes(u64),
    /// A file is here, whole and right.
    File(FileNo),
    /// A file was damaged and is fetched again.
    Damaged(FileNo),
    /// Everything to this file is durable.
    Durable(FileNo),
    /// The local database has committed this.
    Applied(AppliedTo),
    /// Applying failed; it is tried again when more comes.
    ApplyFailed(String),
    /// The line broke; another attempt follows.
    Again {
        /// Why.
        why: String,
        /// After this pause.
        pause: Duration,
    },
    /// The server is making the extract.
    ExtractWaiting,
    /// The extract is coming.
    Extract {
        /// Bytes here.
        bytes: u64,
        /// Bytes in all.
        of: u64,
    },
    /// The extract is being unpacked and checked.
    ExtractChecking,
}

/// Who shows progress.
pub trait Progress: Send {
    /// Takes an event. Must not block for long.
    fn on(&mut self, event: &ProgressEvent);
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn on(&mut self, _event: &ProgressEvent) {}
}

/// What an exchange did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// Name of the server.
    pub server_name: String,
    /// Last file that the server had for us when we came.
    pub last_file: FileNo,
    /// Files fetched.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Damaged copies, now in quarantine.
    pub damaged: u64,
    /// Last file that is durable here.
    pub received: FileNo,
    /// How far the local database is.
    pub applied: AppliedTo,
    /// Sessions that it took.
    pub sessions: u32,
    /// What was sent.
    pub sent: SentReport,
}

/// What was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SentReport {
    /// The file that was begun last, and how many units are in it: its answer may be lost with the line.
    pub begun: Option<(UploadFile, u64)>,
    /// Files that the server has durable now.
    pub files: u64,
    /// Bytes that went out.
    pub bytes: u64,
    /// Units in those files.
    pub units: u64,
    /// First and last unit of each of them.
    pub ranges: Vec<(UnitNo, UnitNo)>,
    /// The file that the server did not take, and why.
    pub refused: Option<Refused>,
    /// We have something to send, and the server takes nothing.
    pub is_unknown_to_server: bool,
    /// Whether what was sent was merged within the time that was to be waited.
    pub merged: Option<bool>,
    /// What a person should know, e.g. that the database was restored from an older copy.
    pub remarks: Vec<String>,
}

impl SyncReport {
    /// Returns this report with that of a later round.
    #[must_use]
    pub fn and(self, later: SyncReport) -> SyncReport {
        let mut sent = later.sent;
        sent.files += self.sent.files;
        sent.bytes += self.sent.bytes;
        sent.units += self.sent.units;
        sent.ranges.splice(0..0, self.sent.ranges);
        sent.remarks.splice(0..0, self.sent.remarks);
        sent.merged = sent.merged.or(self.sent.merged);
        SyncReport { files: self.files + later.files, bytes: self.bytes + later.bytes, sent, ..later }
    }
}

impl SentReport {
    /// Counts the file that was begun last if the server has all files to `stored`.
    pub(super) fn count(&mut self, stored: FileNo) {
        if let Some((file, units)) = self.begun.take_if(|(file, _)| file.file <= stored) {
            self.files += 1;
            self.units += units;
            self.ranges.push((file.first, file.last));
        }
    }
}

/// Why an exchange did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The folder or its lock.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A file could not be made durable.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// No line.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// A carrier, or a letter for it.
    #[error(transparent)]
    Mail(#[from] MailError),
    /// The node's stream began anew; the local database has taken that over and calls again.
    #[error("the stream of this node begins anew (incarnation {0})")]
    BegunAnew(Incarnation),
    /// The line broke.
    #[error("the session broke off: {0}")]
    Lost(String),
    /// The server refused.
    #[error("the server refused {node}: {refusal}")]
    Refused {
        /// This node.
        node: String,
        /// What the server says.
        refusal: Refusal,
    },
    /// Another server than that of the local database.
    #[error("this database belongs to server {ours}, but {address} is server {theirs}; nothing was exchanged")]
    WrongServer {
        /// Name (epoch) of ours.
        ours: String,
        /// The address that was called.
        address: String,
        /// Name (epoch) of the one that answered.
        theirs: String,
    },
    /// Configuration and database are of two nodes.
    #[error("remote-sync.toml names node {config}, the database is node {database}")]
    WrongNode {
        /// As configured.
        config: NodeName,
        /// As the database says.
        database: NodeName,
    },
    /// Damaged on the way or on disk, twice.
    #[error("{} came damaged twice in a row: a bad disk or line; both copies are in quarantine", .0.file_name())]
    Damaged(FileNo),
    /// The server cannot send a file.
    #[error("{} {why}", .file.file_name())]
    Unavailable {
        /// The file.
        file: FileNo,
        /// Why.
        why: Unavailable,
    },
    /// The server announced more than it sent.
    #[error("the server announced files up to {last} and sent none from {file} on")]
    Incomplete {
        /// First missing.
        file: FileNo,
        /// Last announced.
        last: FileNo,
    },
    /// The server broke the protocol.
    #[error("the server broke the protocol: {0}")]
    Violation(String),
    /// The local database.
    #[error("local database: {0}")]
    Local(#[source] BoxError),
    /// No runtime.
    #[error("start the runtime: {0}")]
    Runtime(#[source] io::Error),
}

impl ExchangeError {
    /// Whether the same call may succeed later without anybody doing anything (exit code 3).
    pub fn is_passing(&self) -> bool {
        if is_out_of_room(self) {
            return true;
        }
        match self {
            ExchangeError::Folder(error) => error.is_passing(),
            ExchangeError::Dial(error) => error.is_passing(),
            ExchangeError::Mail(MailError::Carrier(error)) => error.is_passing(),
            ExchangeError::Lost(_) | ExchangeError::BegunAnew(_) => true,
            ExchangeError::Refused { refusal, .. } => refusal.code.is_passing(),
            _ => false,
        }
    }
}
