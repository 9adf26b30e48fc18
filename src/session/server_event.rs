//! What happens to the server's half of a session (`session::server`), and what it asks its driver to do.

use crate::base::ids::{FileNo, Incarnation, NodeName, SyncToken};
use crate::model::digest::TableOutcome;
use crate::model::node::Node;
use crate::session::admission::{Admitted, Turned};
use crate::session::message::{AppliedTo, ExtractOffer, Hello, Message, OfferedFile, Refusal, Unavailable};
use crate::session::upload_server;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The peer sent a message.
    Message(Message),
    /// Answer to `Action::Admit`: decided by `admission::admit` with the driver's facts.
    Judged(Box<Result<Admitted, Turned>>),
    /// Answer to `Action::ListFiles`: files after the one asked for, in order, without a gap; empty = none yet.
    Files(Vec<OfferedFile>),
    /// Answer to `Action::ReadFile` or `ReadExtract`: where the first chunk will begin.
    Opened {
        /// The offset asked for, or 0 if the file is shorter than that.
        offset: u64,
    },
    /// All bytes of the file or extract are on their way, and they are the right ones.
    Sent,
    /// The file or extract cannot be read.
    Unreadable(Unavailable),
    /// Files may have been routed to this node.
    Routed,
    /// What the server database knows of the node now (asked every few seconds while connected).
    NodeNow(Option<Box<Node>>),
    /// Answer to `Action::DecideExtract`.
    ExtractDecided(Box<Result<bool, Turned>>),
    /// Answer to `Action::StartNode`.
    Started(Incarnation),
    /// Answer to `Action::AwaitExtract`.
    ExtractReady(ExtractOffer),
    /// Answer to `Action::JudgeToken`: the token that the node is to hold next, and what a person should know.
    TokenJudged(Box<Result<(SyncToken, Option<String>), Turned>>),
    /// Of the way up.
    Upload(upload_server::UploadEvent),
    /// The peer has been silent for one heartbeat.
    Quiet,
    /// Something failed on this side; the text is for the log.
    Failed(String),
    /// The session must end with this refusal (shutdown, replaced by a newer session).
    End(Refusal),
    /// The peer is gone.
    Gone(String),
}

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send a message.
    Send(Message),
    /// Look the node up and judge the hello. `node` is `None` if the name is not a name: answer all the same, after the same time.
    Admit {
        /// What the node said.
        hello: Box<Hello>,
        /// The name, if it is one.
        node: Option<NodeName>,
    },
    /// Compare the token that the node shows with those that it was given, answer `TokenJudged`.
    JudgeToken(Option<SyncToken>),
    /// The node holds the token that it was given last.
    NoteTokenKept,
    /// List files of the node's outbox.
    ListFiles {
        /// Those after this one.
        after: FileNo,
        /// At most so many.
        limit: usize,
    },
    /// Open a file, answer `Opened`, then send its chunks, then answer `Sent`.
    ReadFile {
        /// The file.
        file: OfferedFile,
        /// First byte wanted.
        offset: u64,
    },
    /// Open the extract, answer `Opened`, then send its chunks, then answer `Sent`.
    ReadExtract {
        /// Which one.
        offer: ExtractOffer,
        /// First byte wanted.
        offset: u64,
    },
    /// Forget the list or file that was asked for or is being sent: the request was replaced. No answer, and none to the former.
    Forget,
    /// Ask whether a new extract is needed.
    DecideExtract {
        /// The node asked for a new one.
        renew: bool,
    },
    /// Start the node anew: next incarnation.
    StartNode,
    /// Wait until the extract of that incarnation is there.
    AwaitExtract(Incarnation),
    /// Keep what the node says it has received.
    NoteReceived(FileNo),
    /// Keep what the node says it has applied. The driver compares the hash with the ledger and answers `End` on a fork.
    NoteApplied(AppliedTo),
    /// Keep why the node applies nothing any more; `None` = all is well.
    NoteStopped(Option<String>),
    /// Keep what the node found in one table at a mark.
    NoteCompared(Box<TableOutcome>),
    /// Of the way up.
    Upload(upload_server::UploadAction),
    /// Tell a person.
    Alert(String),
    /// The session is over.
    Close {
        /// Why, for log and history.
        reason: Closed,
    },
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// The node said good-bye.
    Done,
    /// The server refused or ended it. The second text is for the log only.
    Refused(Refusal, String),
    /// The line broke, or the peer fell silent.
    Lost(String),
    /// The peer broke the protocol.
    Violation(String),
    /// A fault on this side.
    Failed(String),
}

/// An event that does not fit the state. The session has ended with it; the actions to take are in it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{event} does not fit the state {state}")]
pub struct Illegal {
    /// State at that time.
    pub state: &'static str,
    /// Name of the event or message.
    pub event: &'static str,
    /// What is left to do: tell the peer and close.
    pub actions: Vec<Action>,
}
