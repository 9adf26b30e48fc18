//! The messages of a session and their kinds.
//!
//! A kind, once used, keeps its number and its layout for as long as the protocol version that uses it is spoken; a layout changes
//! only together with the version. Kinds 0x0040..=0x004F are kept for uploads and 0x0050..=0x005F for attachments; a peer uses them
//! only if both listed the feature (`Hello::features`, `Welcome::features`).

use crate::base::ids::{ByteHash, ContentHash, Epoch, FileNo, Incarnation, InstallId, Revision, ServerId, SyncToken, TxnId, UnitNo};
use crate::model::digest::TableOutcome;
use crate::session::upload::{self, UploadMessage};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Port of the Synchronization Manager where none is named.
pub const DEFAULT_PORT: u16 = 40400;

/// Oldest protocol version that this program speaks.
pub const PROTOCOL_MIN: u16 = 1;
/// Newest protocol version that this program speaks.
pub const PROTOCOL_MAX: u16 = 1;
/// Version of the `.dx` format that this program reads and writes.
pub const DX_FORMAT: u16 = 3;

/// Returns program and version, as they stand in `Hello` and `Welcome`.
pub fn program() -> String {
    concat!("dockmaster ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// An optional ability that a peer lists; unknown numbers are ignored.
pub mod feature {
    /// The node sends files (kinds 0x0040..=0x004F, `session::upload`).
    pub const UPLOAD: u16 = 1;
    /// Attachments travel in the session (kinds 0x0050..=0x005F). Reserved, not built.
    pub const ATTACHMENT: u16 = 2;
    /// The node says why it stopped and what it found at marks (kinds 0x0013 and 0x0014).
    pub const REPORT: u16 = 3;
    /// The node shows a token that changes with each session (kinds 0x0015 to 0x0017).
    pub const TOKEN: u16 = 4;
    /// What this program can.
    pub const OURS: &[u16] = &[UPLOAD, REPORT, TOKEN];
}

/// A closed range of version numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Oldest.
    pub min: u16,
    /// Newest.
    pub max: u16,
}

impl Versions {
    /// The protocol versions of this program.
    pub const PROTOCOL: Versions = Versions { min: PROTOCOL_MIN, max: PROTOCOL_MAX };
    /// The `.dx` formats of this program.
    pub const DX: Versions = Versions { min: DX_FORMAT, max: DX_FORMAT };

    /// Returns the newest version that both ranges hold.
    pub fn common(self, other: Versions) -> Option<u16> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { write!(f, "{}", self.max) } else { write!(f, "{} to {}", self.min, self.max) }
    }
}

/// How far a node has applied its stream: the watermark that it committed together with the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AppliedTo {
    /// Last file applied whole; 0 = none since the extract.
    pub file: FileNo,
    /// Last unit covered.
    pub unit: TxnId,
    /// Content hash of that file; zero for file 0.
    pub hash: ContentHash,
}

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Fetch what there is, then part.
    Sync,
    /// Stay and get files as they are routed.
    Watch,
    /// Fetch the extract of a node that has no local database yet.
    Init,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Sync => "sync",
            Mode::Watch => "watch",
            Mode::Init => "init",
        })
    }
}

/// First message, from the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol versions that the node speaks. Travels in the fixed prefix, not in the body.
    #[serde(skip)]
    pub protocol: Option<Versions>,
    /// `.dx` formats that the node reads.
    pub dx: Versions,
    /// Program and version, for people.
    pub program: String,
    /// Name of the node, as its user wrote it; judged by the server only.
    pub node: String,
    /// Identity of the local database.
    pub install_id: InstallId,
    /// Server that the local database belongs to; `None` before the first contact.
    pub server_id: Option<ServerId>,
    /// Epoch of that server as the node knows it.
    pub epoch: Epoch,
    /// Extract that the local database was made from; 0 in mode init.
    pub incarnation: Incarnation,
    /// How far the node has applied.
    pub applied: AppliedTo,
    /// Last file that lies, durable and without a gap, in the node's inbox; at least `applied.file`.
    pub received: FileNo,
    /// First unit of the local database that was never in a file, as far as it knows; else the number of its next unit. 0 in mode init. A
    /// database that was restored from a copy is told which units the server knows from there on (R16).
    pub unsent: UnitNo,
    /// What the session is for.
    pub mode: Mode,
    /// Optional abilities (`feature`).
    pub features: Vec<u16>,
}

/// Answer to a `Hello` that the server accepts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Protocol version that both speak from now on.
    pub protocol: u16,
    /// `.dx` format that the files have at most.
    pub dx: u16,
    /// Program and version, for people.
    pub program: String,
    /// Identity of the server database.
    pub server_id: ServerId,
    /// Name of the server, for people.
    pub server_name: String,
    /// Epoch of the server database.
    pub epoch: Epoch,
    /// Definition in force.
    pub revision: Revision,
    /// Current extract of this node.
    pub incarnation: Incarnation,
    /// Last file that was routed to this node.
    pub last_file: FileNo,
    /// Seconds of silence after which either side asks with a `Ping`.
    pub heartbeat_seconds: u16,
    /// Abilities that both sides have.
    pub features: Vec<u16>,
}

/// Why a session was refused or ended by the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    /// No common protocol version.
    Protocol,
    /// No common `.dx` format.
    DxFormat,
    /// The local database belongs to another server.
    WrongServer,
    /// The server database was restored: its epoch differs.
    Epoch,
    /// Unknown, disabled or wrong node: one answer for all of them (T18).
    Node,
    /// The node was extracted again elsewhere.
    Incarnation,
    /// The node's chain hash is not the server's: two histories.
    Fork,
    /// The node has applied more than the server ever routed.
    Ahead,
    /// Another session of this node is alive.
    Busy,
    /// The server has as many sessions as it takes.
    Full,
    /// The server stops.
    Stopping,
    /// The extract is in use by another local database; a new one must be asked for.
    Initialised,
    /// The node has no extract yet: init first.
    NotInitialised,
    /// The server had a fault of its own; its log tells.
    Internal,
    /// The peer broke the protocol.
    Violation,
    /// What the node would need next is gone: it was away for too long, or its database is older than what is kept.
    Stale,
    /// The stream of the node begins anew without an extract: the next call takes that over.
    BegunAnew,
    /// The certificate that the node shows has ended: it asks for a new one, and calls again.
    Certificate,
    /// There are two of this local database, and both go on.
    Copied,
    /// A code that this program does not know.
    Other(u16),
}

const REFUSALS: [(u16, RefusalCode); 19] = [
    (1, RefusalCode::Protocol),
    (2, RefusalCode::DxFormat),
    (3, RefusalCode::WrongServer),
    (4, RefusalCode::Epoch),
    (5, RefusalCode::Node),
    (6, RefusalCode::Incarnation),
    (7, RefusalCode::Fork),
    (8, RefusalCode::Ahead),
    (9, RefusalCode::Busy),
    (10, RefusalCode::Full),
    (11, RefusalCode::Stopping),
    (12, RefusalCode::Initialised),
    (13, RefusalCode::NotInitialised),
    (14, RefusalCode::Internal),
    (15, RefusalCode::Violation),
    (16, RefusalCode::Stale),
    (17, RefusalCode::BegunAnew),
    (18, RefusalCode::Certificate),
    (19, RefusalCode::Copied),
];

impl RefusalCode {
    /// Returns the number on the wire.
    pub fn number(self) -> u16 {
        match self {
            RefusalCode::Other(number) => number,
            known => REFUSALS.iter().find(|(_, code)| *code == known).map_or(0, |(number, _)| *number),
        }
    }

    /// Returns the code of a number.
    pub fn from_number(number: u16) -> RefusalCode {
        REFUSALS.iter().find(|(known, _)| *known == number).map_or(RefusalCode::Other(number), |(_, code)| *code)
    }

    /// Whether the same `Hello` may succeed later without anybody doing anything.
    pub fn is_passing(self) -> bool {
        matches!(
            self,
            RefusalCode::Busy
                | RefusalCode::Full
                | RefusalCode::Stopping
                | RefusalCode::Internal
                | RefusalCode::BegunAnew
                | RefusalCode::Certificate
        )
    }
}

/// The server refuses or ends the session. Its layout never changes: every version must understand a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub code: RefusalCode,
    /// The same for people, at most 400 bytes.
    pub text: String,
}

impl Refusal {
    /// Returns a refusal.
    pub fn new(code: RefusalCode, text: impl Into<String>) -> Refusal {
        Refusal { code, text: text.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One file that waits in the node's outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedFile {
    /// Its number.
    pub file: FileNo,
    /// Its length in bytes.
    pub bytes: u64,
    /// SHA-256 of its bytes.
    pub byte_hash: ByteHash,
}

/// Why a file cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unavailable {
    /// No such file in the outbox.
    Missing,
    /// The bytes on the server's disk are not those that were routed.
    Damaged,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unavailable::Missing => "is missing in the server's outbox",
            Unavailable::Damaged => "is damaged in the server's outbox",
        })
    }
}

/// The extract that waits for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtractOffer {
    /// Number of the extract.
    pub incarnation: Incarnation,
    /// Unit at which it was taken.
    pub unit: TxnId,
    /// Length of the compressed file.
    pub bytes: u64,
    /// Length of the database in it.
    pub raw_bytes: u64,
    /// SHA-256 of the compressed file.
    pub sha256: ByteHash,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Node: who I am and how far I am.
    Hello(Box<Hello>),
    /// A `Hello` whose protocol versions have none in common with ours; only its versions could be read. Never sent.
    Foreign(Versions),
    /// Server: come in.
    Welcome(Box<Welcome>),
    /// Server: no.
    Refused(Refusal),
    /// Node: send me these files. A second request replaces the first.
    Fetch {
        /// Number of the request, from 1, each one more than the last.
        request: u32,
        /// First file.
        first: FileNo,
        /// Last file; `None` = all, and those that are routed from now on.
        last: Option<FileNo>,
        /// Bytes of the first file that the node has already.
        offset: u64,
    },
    /// Node: all files to this one lie durable in my inbox.
    Received {
        /// The last of them.
        file: FileNo,
    },
    /// Node: all files to this one are applied, and that is committed.
    Applied(AppliedTo),
    /// Node: why nothing more is applied here until a person acts; `None` = all is well (again). Feature `REPORT`.
    Stopped(Option<String>),
    /// Node: what was found in one table at a mark in the stream. Feature `REPORT`.
    Compared(Box<TableOutcome>),
    /// Node: the token that the local database holds; `None` = none yet. Feature `TOKEN`.
    Token(Option<SyncToken>),
    /// Server: hold this one from now on. Feature `TOKEN`.
    NewToken(SyncToken),
    /// Node: I hold it, durable. Feature `TOKEN`.
    TokenKept,
    /// Node, mode init: I want the extract.
    RequestExtract {
        /// A new one, even if there is one.
        renew: bool,
    },
    /// Node, mode init: send me the extract.
    FetchExtract {
        /// Number of the request.
        request: u32,
        /// Which one.
        incarnation: Incarnation,
        /// Bytes of it that the node has already.
        offset: u64,
    },
    /// Either: are you there? Answered by a `Pong` of the same number.
    Ping(u32),
    /// Either: I am.
    Pong(u32),
    /// Either: I part in peace. The text is for people.
    Bye(String),
    /// Server: these files come next.
    Offer(Vec<OfferedFile>),
    /// Server: the chunks of this file follow.
    FileBegin {
        /// Request that this answers.
        request: u32,
        /// The file.
        file: OfferedFile,
        /// Where the first chunk begins. 0 although more was asked for: the node's part does not belong to this file.
        offset: u64,
    },
    /// Server: some bytes of the file or extract that was begun last.
    Chunk {
        /// Where they begin in the file.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// Server: that was the whole file.
    FileEnd {
        /// Request that this answers.
        request: u32,
        /// The file.
        file: FileNo,
    },
    /// Server: nothing more of this request will come.
    FetchEnd {
        /// Request that this answers.
        request: u32,
    },
    /// Server: this file cannot be sent, and the request ends here.
    FileUnavailable {
        /// Request that this answers.
        request: u32,
        /// The file.
        file: FileNo,
        /// Why.
        why: Unavailable,
    },
    /// Server, mode init: the extract is there.
    ExtractOffer(ExtractOffer),
    /// Server, mode init: the chunks of the extract follow.
    ExtractBegin {
        /// Request that this answers.
        request: u32,
        /// Where the first chunk begins.
        offset: u64,
    },
    /// Server, mode init: that was the whole extract.
    ExtractEnd {
        /// Request that this answers.
        request: u32,
    },
    /// Either: what belongs to the way up. Feature `UPLOAD`.
    Upload(UploadMessage),
    /// A kind from 0x8000 on that this program does not know: may be ignored. Never sent.
    Ignored(u16),
}

impl Message {
    /// Returns the number of this kind of message on the wire.
    pub fn kind(&self) -> u16 {
        match self {
            Message::Hello(_) | Message::Foreign(_) => kind::HELLO,
            Message::Welcome(_) => kind::WELCOME,
            Message::Refused(_) => kind::REFUSED,
            Message::Ping(_) => kind::PING,
            Message::Pong(_) => kind::PONG,
            Message::Bye(_) => kind::BYE,
            Message::Fetch { .. } => kind::FETCH,
            Message::Received { .. } => kind::RECEIVED,
            Message::Applied(_) => kind::APPLIED,
            Message::Stopped(_) => kind::STOPPED,
            Message::Compared(_) => kind::COMPARED,
            Message::Token(_) => kind::TOKEN,
            Message::NewToken(_) => kind::NEW_TOKEN,
            Message::TokenKept => kind::TOKEN_KEPT,
            Message::RequestExtract { .. } => kind::REQUEST_EXTRACT,
            Message::FetchExtract { .. } => kind::FETCH_EXTRACT,
            Message::Offer(_) => kind::OFFER,
            Message::FileBegin { .. } => kind::FILE_BEGIN,
            Message::Chunk { .. } => kind::CHUNK,
            Message::FileEnd { .. } => kind::FILE_END,
            Message::FetchEnd { .. } => kind::FETCH_END,
            Message::FileUnavailable { .. } => kind::FILE_UNAVAILABLE,
            Message::ExtractOffer(_) => kind::EXTRACT_OFFER,
            Message::ExtractBegin { .. } => kind::EXTRACT_BEGIN,
            Message::ExtractEnd { .. } => kind::EXTRACT_END,
            Message::Upload(message) => message.kind(),
            Message::Ignored(kind) => *kind,
        }
    }

    /// Returns the name of this kind, as logs and errors write it.
    pub fn name(&self) -> &'static str {
        if let Message::Upload(message) = self {
            return upload::kind::name(message.kind());
        }
        kind::name(self.kind())
    }

    /// Whether the message may overtake file content on its way out.
    pub fn is_urgent(&self) -> bool {
        matches!(self, Message::Ping(_) | Message::Pong(_) | Message::Refused(_))
    }
}

/// The kinds.
pub mod kind {
    macro_rules! kinds {
        ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
            $($(#[$doc])* pub const $name: u16 = $number;)*

            /// Returns the name of a kind.
            pub fn name(kind: u16) -> &'static str {
                match kind {
                    $($number => $text,)*
                    _ => "unknown kind",
                }
            }
        };
    }

    kinds! {
        /// `Message::Hello`
        HELLO = 0x0001, "Hello";
        /// `Message::Welcome`
        WELCOME = 0x0002, "Welcome";
        /// `Message::Refused`
        REFUSED = 0x0003, "Refused";
        /// `Message::Ping`
        PING = 0x0004, "Ping";
        /// `Message::Pong`
        PONG = 0x0005, "Pong";
        /// `Message::Bye`
        BYE = 0x0006, "Bye";
        /// `Message::Fetch`
        FETCH = 0x0010, "Fetch";
        /// `Message::Received`
        RECEIVED = 0x0011, "Received";
        /// `Message::Applied`
        APPLIED = 0x0012, "Applied";
        /// `Message::Stopped`
        STOPPED = 0x0013, "Stopped";
        /// `Message::Compared`
        COMPARED = 0x0014, "Compared";
        /// `Message::Token`
        TOKEN = 0x0015, "Token";
        /// `Message::NewToken`
        NEW_TOKEN = 0x0016, "NewToken";
        /// `Message::TokenKept`
        TOKEN_KEPT = 0x0017, "TokenKept";
        /// `Message::RequestExtract`
        REQUEST_EXTRACT = 0x0018, "RequestExtract";
        /// `Message::FetchExtract`
        FETCH_EXTRACT = 0x0019, "FetchExtract";
        /// `Message::Offer`
        OFFER = 0x0020, "Offer";
        /// `Message::FileBegin`
        FILE_BEGIN = 0x0021, "FileBegin";
        /// `Message::Chunk`
        CHUNK = 0x0022, "Chunk";
        /// `Message::FileEnd`
        FILE_END = 0x0023, "FileEnd";
        /// `Message::FetchEnd`
        FETCH_END = 0x0024, "FetchEnd";
        /// `Message::FileUnavailable`
        FILE_UNAVAILABLE = 0x0025, "FileUnavailable";
        /// `Message::ExtractOffer`
        EXTRACT_OFFER = 0x0028, "ExtractOffer";
        /// `Message::ExtractBegin`
        EXTRACT_BEGIN = 0x0029, "ExtractBegin";
        /// `Message::ExtractEnd`
        EXTRACT_END = 0x002A, "ExtractEnd";
    }

    /// From here on a kind that the reader does not know is skipped; below, it ends the session.
    pub const OPTIONAL_FROM: u16 = 0x8000;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_chosen() {
        let v = |min, max| Versions { min, max };
        assert_eq!(v(1, 3).common(v(2, 5)), Some(3));
        assert_eq!(v(2, 5).common(v(1, 3)), Some(3));
        assert_eq!(v(1, 1).common(v(2, 2)), None);
        assert_eq!(v(4, 4).common(v(1, 9)), Some(4));
    }

    #[test]
    fn refusal_codes_have_one_number_each() {
        for (number, code) in REFUSALS {
            assert_eq!(code.number(), number);
            assert_eq!(RefusalCode::from_number(number), code);
        }
        assert_eq!(RefusalCode::from_number(999).number(), 999);
    }
}
