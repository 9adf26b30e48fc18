//! The messages of the way up: what the server has of a node's uploads, the files that the node sends, and the answers.
//!
//! They have kinds 0x0040 to 0x004F and are used only if both sides listed the feature `UPLOAD`. The content of a file travels in
//! [`UploadMessage::Chunk`], whose body is written by hand; everything else is bincode.

use crate::base::ids::{ByteHash, ContentHash, FileNo, UnitNo};
use crate::base::limits::{AWAIT_SECONDS_MAX, DX_FILE_BYTES_MAX, UPLOAD_CHUNK_BYTES, UPLOAD_UNITS_NAMED_MAX};
use crate::session::codec::{CodecError, TEXT_BYTES_MAX, get, put};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What the server has of the uploads of one node, in its current incarnation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UploadState {
    /// All files to this one are merged, or lie durable in the inbox; the node goes on with the next. 0 = none.
    pub stored: FileNo,
    /// Content hash of that file; zero for file 0.
    pub hash: ContentHash,
    /// The highest unit of this local database that the server has ever had, in any incarnation.
    pub last_unit: UnitNo,
    /// What lies there of the next file.
    pub part: Option<UploadPart>,
    /// Units of this local database from `Hello.unsent` on, with their content hashes, by number: what a database that was restored from a copy
    /// needs to know which of its units were sent already (R16).
    pub units: Vec<(UnitNo, ContentHash)>,
}

/// The beginning of a file that was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadPart {
    /// How many bytes of it are there.
    pub bytes: u64,
    /// SHA-256 that was announced for the whole file.
    pub byte_hash: ByteHash,
}

/// A file that a node has for the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadFile {
    /// Its number.
    pub file: FileNo,
    /// Its length in bytes.
    pub bytes: u64,
    /// SHA-256 of its bytes.
    pub byte_hash: ByteHash,
    /// Its content hash.
    pub content_hash: ContentHash,
    /// First unit in it.
    pub first: UnitNo,
    /// Last unit in it.
    pub last: UnitNo,
}

/// Why a file was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UploadRefusal {
    /// Its bytes are not those that were announced, or not a whole `.dx` file: send it again.
    Damaged,
    /// Another file is known under this number, or it does not follow the file before it: two histories.
    Fork,
    /// It is of another node, server, incarnation or local database.
    Foreign,
    /// A file before it is missing.
    OutOfOrder,
    /// Longer than any file may be.
    TooLarge,
    /// The server has too little room on its disk: try again later.
    LowDisk,
    /// The node may not send any more: it was disabled, deleted or begun anew meanwhile.
    Disabled,
    /// Files that the node sent under its former incarnation are being merged: try again later.
    Waiting,
    /// A code that this program does not know.
    Other(u16),
}

const REFUSALS: [(u16, UploadRefusal, &str); 8] = [
    (1, UploadRefusal::Damaged, "damaged"),
    (2, UploadRefusal::Fork, "fork"),
    (3, UploadRefusal::Foreign, "foreign"),
    (4, UploadRefusal::OutOfOrder, "out of order"),
    (5, UploadRefusal::TooLarge, "too large"),
    (6, UploadRefusal::LowDisk, "low disk"),
    (7, UploadRefusal::Disabled, "disabled"),
    (8, UploadRefusal::Waiting, "waiting"),
];

impl UploadRefusal {
    /// Returns the number on the wire.
    pub fn number(self) -> u16 {
        match self {
            UploadRefusal::Other(number) => number,
            known => REFUSALS.iter().find(|(_, code, _)| *code == known).map_or(0, |(number, ..)| *number),
        }
    }

    /// Returns the refusal of a number.
    pub fn from_number(number: u16) -> UploadRefusal {
        REFUSALS.iter().find(|(known, ..)| *known == number).map_or(UploadRefusal::Other(number), |(_, code, _)| *code)
    }

    /// Whether the same file may be taken later without anybody doing anything.
    pub fn is_passing(self) -> bool {
        use UploadRefusal::{Damaged, Disabled, LowDisk, OutOfOrder, Waiting};
        matches!(self, Damaged | LowDisk | OutOfOrder | Disabled | Waiting)
    }
}

impl fmt::Display for UploadRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match REFUSALS.iter().find(|(_, code, _)| code == self) {
            Some((_, _, name)) => f.pad(name),
            None => write!(f, "code {}", self.number()),
        }
    }
}

/// A file that was not taken, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The file.
    pub file: FileNo,
    /// Why.
    pub code: UploadRefusal,
    /// The same for people, at most 400 bytes.
    pub text: String,
}

/// One message of the way up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadMessage {
    /// Server, after `Welcome`: this is what I have.
    State(UploadState),
    /// Node: the chunks of this file follow.
    Begin {
        /// The file.
        file: UploadFile,
        /// Where the first chunk begins: 0, or the bytes of the part that the server named, if it is of this file.
        offset: u64,
    },
    /// Node: some bytes of the file that was begun last.
    Chunk {
        /// Where they begin in the file.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// Node: that was the whole file.
    End {
        /// The file.
        file: FileNo,
    },
    /// Server: the file is durable in my inbox, this time or since long.
    Stored {
        /// The file.
        file: FileNo,
    },
    /// Server: I do not take this file. What is still on its way of it is skipped.
    Refused(Refused),
    /// Node: that was everything that I have for now.
    Done,
    /// Node, mode sync: tell me when everything that I sent is merged and routed, or after this time.
    AwaitMerged {
        /// How long, in seconds.
        seconds: u32,
    },
    /// Server: it is, or the time is up.
    Awaited {
        /// Whether everything is merged and routed.
        merged: bool,
        /// Last file that was routed to this node.
        last_file: FileNo,
    },
}

/// The kinds.
pub mod kind {
    /// `UploadMessage::State`
    pub const STATE: u16 = 0x0040;
    /// `UploadMessage::Begin`
    pub const BEGIN: u16 = 0x0041;
    /// `UploadMessage::Chunk`
    pub const CHUNK: u16 = 0x0042;
    /// `UploadMessage::End`
    pub const END: u16 = 0x0043;
    /// `UploadMessage::Stored`
    pub const STORED: u16 = 0x0044;
    /// `UploadMessage::Refused`
    pub const REFUSED: u16 = 0x0045;
    /// `UploadMessage::Done`
    pub const DONE: u16 = 0x0046;
    /// `UploadMessage::AwaitMerged`
    pub const AWAIT_MERGED: u16 = 0x0047;
    /// `UploadMessage::Awaited`
    pub const AWAITED: u16 = 0x0048;
    /// All of them.
    pub const ALL: std::ops::RangeInclusive<u16> = STATE..=AWAITED;

    /// Returns the name of a kind.
    pub fn name(kind: u16) -> &'static str {
        match kind {
            STATE => "UploadState",
            BEGIN => "UploadBegin",
            CHUNK => "UploadChunk",
            END => "UploadEnd",
            STORED => "UploadStored",
            REFUSED => "UploadRefused",
            DONE => "UploadsDone",
            AWAIT_MERGED => "AwaitMerged",
            AWAITED => "Awaited",
            _ => "unknown kind",
        }
    }
}

impl UploadMessage {
    /// Returns the number of this kind of message on the wire.
    pub fn kind(&self) -> u16 {
        match self {
            UploadMessage::State(_) => kind::STATE,
            UploadMessage::Begin { .. } => kind::BEGIN,
            UploadMessage::Chunk { .. } => kind::CHUNK,
            UploadMessage::End { .. } => kind::END,
            UploadMessage::Stored { .. } => kind::STORED,
            UploadMessage::Refused(_) => kind::REFUSED,
            UploadMessage::Done => kind::DONE,
            UploadMessage::AwaitMerged { .. } => kind::AWAIT_MERGED,
            UploadMessage::Awaited { .. } => kind::AWAITED,
        }
    }

    /// Whether only a node sends it.
    pub fn is_of_node(&self) -> bool {
        matches!(
            self,
            UploadMessage::Begin { .. }
                | UploadMessage::Chunk { .. }
                | UploadMessage::End { .. }
                | UploadMessage::Done
                | UploadMessage::AwaitMerged { .. }
        )
    }

    /// Appends the body.
    ///
    /// # Errors
    /// The message breaks a limit.
    pub(super) fn write(&self, out: &mut BytesMut) -> Result<(), CodecError> {
        let name = kind::name(self.kind());
        self.check().map_err(|why| CodecError::Body { kind: name, why })?;
        match self {
            UploadMessage::State(state) => put(out, name, state),
            UploadMessage::Begin { file, offset } => put(out, name, &(file, offset)),
            UploadMessage::Chunk { offset, bytes } => {
                out.reserve(8 + bytes.len());
                out.put_u64_le(*offset);
                out.put_slice(bytes);
                Ok(())
            }
            UploadMessage::End { file } | UploadMessage::Stored { file } => put(out, name, file),
            UploadMessage::Refused(refused) => put(out, name, &(refused.file, refused.code.number(), &refused.text)),
            UploadMessage::Done => Ok(()),
            UploadMessage::AwaitMerged { seconds } => put(out, name, seconds),
            UploadMessage::Awaited { merged, last_file } => put(out, name, &(merged, last_file)),
        }
    }

    /// Reads the body of a message of that kind, which is one of [`kind::ALL`].
    ///
    /// # Errors
    /// Cut off, left over, or beyond a limit.
    pub(super) fn read(number: u16, body: &Bytes) -> Result<UploadMessage, CodecError> {
        let name = kind::name(number);
        let message = match number {
            kind::STATE => UploadMessage::State(get(name, body)?),
            kind::BEGIN => {
                let (file, offset) = get::<(UploadFile, u64)>(name, body)?;
                UploadMessage::Begin { file, offset }
            }
            kind::CHUNK => {
                let Some((offset, _)) = body.split_first_chunk::<8>() else {
                    return Err(CodecError::Short { bytes: body.len() + 2 });
                };
                UploadMessage::Chunk { offset: u64::from_le_bytes(*offset), bytes: body.slice(8..) }
            }
            kind::END => UploadMessage::End { file: get(name, body)? },
            kind::STORED => UploadMessage::Stored { file: get(name, body)? },
            kind::REFUSED => {
                let (file, code, text) = get::<(FileNo, u16, String)>(name, body)?;
                UploadMessage::Refused(Refused { file, code: UploadRefusal::from_number(code), text })
            }
            kind::DONE if body.is_empty() => UploadMessage::Done,
            kind::DONE => return Err(CodecError::Body { kind: name, why: format!("{} bytes left over", body.len()) }),
            kind::AWAIT_MERGED => UploadMessage::AwaitMerged { seconds: get(name, body)? },
            kind::AWAITED => {
                let (merged, last_file) = get::<(bool, FileNo)>(name, body)?;
                UploadMessage::Awaited { merged, last_file }
            }
            unknown => return Err(CodecError::Kind(unknown)),
        };
        message.check().map_err(|why| CodecError::Body { kind: name, why })?;
        Ok(message)
    }

    /// Checks what holds in every message, written or read.
    fn check(&self) -> Result<(), String> {
        match self {
            UploadMessage::Begin { file, .. } if file.file == FileNo(0) => Err("file numbers begin at 1".into()),
            UploadMessage::Begin { file, .. } if file.first == UnitNo(0) || file.first > file.last => {
                Err(format!("units {} to {} are no range", file.first, file.last))
            }
            UploadMessage::Begin { file, offset } if *offset > file.bytes => Err(format!("{offset} is beyond its {} bytes", file.bytes)),
            UploadMessage::Chunk { bytes, .. } if bytes.is_empty() || bytes.len() > UPLOAD_CHUNK_BYTES => {
                Err(format!("{} bytes are none, or more than {UPLOAD_CHUNK_BYTES}", bytes.len()))
            }
            UploadMessage::Refused(refused) if refused.text.len() > TEXT_BYTES_MAX => {
                Err(format!("text of {} bytes is longer than {TEXT_BYTES_MAX}", refused.text.len()))
            }
            UploadMessage::AwaitMerged { seconds } if *seconds > AWAIT_SECONDS_MAX => {
                Err(format!("{seconds} seconds are more than {AWAIT_SECONDS_MAX}"))
            }
            UploadMessage::State(UploadState { part: Some(part), .. }) if part.bytes > DX_FILE_BYTES_MAX => {
                Err(format!("a part of {} bytes", part.bytes))
            }
            UploadMessage::State(UploadState { units, .. }) if units.len() > UPLOAD_UNITS_NAMED_MAX => {
                Err(format!("{} units are named, {UPLOAD_UNITS_NAMED_MAX} at most are", units.len()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_files_have_one_number_and_one_name_each() {
        for (number, code, name) in REFUSALS {
            assert_eq!((code.number(), UploadRefusal::from_number(number), code.to_string().as_str()), (number, code, name));
        }
        assert_eq!((UploadRefusal::from_number(99).number(), UploadRefusal::Other(99).to_string().as_str()), (99, "code 99"));
    }
}
