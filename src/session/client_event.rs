//! What happens to the node's half of a session (`session::client`), and what it asks its driver to do.

use crate::base::ids::{Epoch, FileNo, Incarnation, ServerId, SyncToken};
use crate::model::digest::TableOutcome;
use crate::session::message::{AppliedTo, ExtractOffer, Message, OfferedFile, Refusal, Unavailable, Welcome};
use crate::session::plan::Range;
use crate::session::upload_client;
use bytes::Bytes;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The line is there.
    Connected,
    /// The peer sent a message.
    Message(Message),
    /// After `Action::Welcomed`, mode sync or watch: what to ask for, from `plan`.
    Plan(Vec<Range>),
    /// The file that `FinishFile` named has the right bytes.
    Verified,
    /// It has not.
    Damaged,
    /// All files to this one lie durable in the inbox.
    Durable(FileNo),
    /// The local database has committed this.
    Applied(AppliedTo),
    /// Tell the server why nothing is applied, or what was found at a mark; left out if the server takes no reports.
    Tell(Report),
    /// After `Action::Welcomed`, mode init: ask for the extract.
    AskExtract {
        /// A new one, even if there is one.
        renew: bool,
    },
    /// After `Action::ExtractOffered`: fetch it from this byte on.
    FetchExtract {
        /// Bytes that are here already.
        offset: u64,
    },
    /// After `Action::KeepToken`: it is durable.
    TokenKept,
    /// Of the way up.
    Upload(upload_client::UploadEvent),
    /// The server has been silent for one heartbeat.
    Quiet,
    /// Everything wanted is done, or the user wants to stop.
    Leave,
    /// The server is gone.
    Gone(String),
}

/// What a node tells beside its progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// Why nothing more is applied; `None` = all is well.
    Stopped(Option<String>),
    /// What was found in one table at a mark.
    Compared(Box<TableOutcome>),
}

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send a message.
    Send(Message),
    /// The server accepted us; answer with `Plan` or `AskExtract`.
    Welcomed(Box<Welcome>),
    /// Keep this token in the local database, durable, then answer `TokenKept`.
    KeepToken(SyncToken),
    /// These files come next (for the progress display).
    Offered(Vec<OfferedFile>),
    /// Open the part file of this file; keep its first `offset` bytes, no more.
    BeginFile {
        /// The file.
        file: OfferedFile,
        /// Where its first chunk will begin.
        offset: u64,
    },
    /// Write some bytes of the file or extract that was begun last.
    Store {
        /// Where.
        offset: u64,
        /// What.
        bytes: Bytes,
    },
    /// Compare the file with its hash; answer `Verified` or `Damaged` before anything else.
    FinishFile(OfferedFile),
    /// All that was planned is here.
    Complete,
    /// The extract is there; answer with `FetchExtract` or `Leave`.
    ExtractOffered(ExtractOffer),
    /// Open the part file of the extract; keep its first `offset` bytes, no more.
    BeginExtract {
        /// Where its first chunk will begin.
        offset: u64,
    },
    /// The extract is whole.
    FinishExtract(ExtractOffer),
    /// Of the way up.
    Upload(upload_client::UploadAction),
    /// The session is over.
    Close(Closed),
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// In peace.
    Done,
    /// The server refused or ended it.
    Refused(Refusal),
    /// The server ended it in peace (it stops).
    Stopped(String),
    /// The line broke, or the server fell silent.
    Lost(String),
    /// The server broke the protocol.
    Violation(String),
    /// The node's stream began anew under this incarnation. The local database takes that over, then calls again.
    BegunAnew(Incarnation),
    /// Not the server that the local database belongs to; nothing was exchanged.
    WrongServer {
        /// Name of the server that answered.
        name: String,
        /// Its identity.
        server_id: ServerId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// The same file was damaged twice in a row.
    DamagedTwice(FileNo),
    /// The server cannot send a file.
    Unavailable(FileNo, Unavailable),
    /// The server sent all that it has, and that is less than it announced.
    Incomplete {
        /// First file that is missing.
        file: FileNo,
        /// Last file announced.
        last: FileNo,
    },
}

/// An event that does not fit the state. The session has ended with it; the actions to take are in it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{event} does not fit the state {state}: {why}")]
pub struct Illegal {
    /// State at that time.
    pub state: &'static str,
    /// Name of the event or message.
    pub event: &'static str,
    /// What is wrong.
    pub why: String,
    /// What is left to do.
    pub actions: Vec<Action>,
}
