//! What can be wrong with a `.dx` file or with what should become one.

use crate::dx::header::DxDirection;
use std::io;

/// A `.dx` file that is refused, or content that does not fit into one.
#[derive(Debug, thiserror::Error)]
pub enum DxError {
    /// The first bytes are not those of a `.dx` file.
    #[error("not a .dx file: {found} where `DX` was expected")]
    NotDx {
        /// The first bytes, in hex.
        found: String,
    },
    /// Written by a program that this one does not know.
    #[error("format version {found}; this program reads up to version {known}")]
    Version {
        /// Version of the file.
        found: u16,
        /// Newest version that is understood.
        known: u16,
    },
    /// The file ends too early.
    #[error("truncated at byte {at}: {what} is missing")]
    Truncated {
        /// What should stand there.
        what: &'static str,
        /// Offset in the file.
        at: u64,
    },
    /// Bytes that contradict themselves.
    #[error("damaged at byte {at}: {what}")]
    Damaged {
        /// What is wrong.
        what: &'static str,
        /// Offset in the file, or in the uncompressed frame for a record.
        at: u64,
    },
    /// A size over its limit; nothing was allocated for it.
    #[error("{what} of {value} is over the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        value: u64,
        /// The limit.
        limit: u64,
    },
    /// A frame that would expand suspiciously.
    #[error("frame at byte {at} would expand {stored} bytes to {raw}, more than any file of ours does")]
    Bomb {
        /// Offset in the file.
        at: u64,
        /// Bytes in the file.
        stored: u64,
        /// Bytes claimed.
        raw: u64,
    },
    /// A record that this program does not know.
    #[error("record of unknown kind {kind} in frame {frame}")]
    UnknownRecord {
        /// Its kind.
        kind: u8,
        /// Number of the frame, from 0.
        frame: usize,
    },
    /// A file of another direction than asked for.
    #[error("a {found} file where a {wanted} file was expected")]
    Direction {
        /// What it is.
        found: DxDirection,
        /// What it should be.
        wanted: DxDirection,
    },
    /// A record's content cannot be read.
    #[error("{what} cannot be read: {reason}")]
    Decode {
        /// Kind of record.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// Content contradicts the rules of the format.
    #[error("{0}")]
    Content(String),
    /// The bytes could not be read or written.
    #[error("{operation}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl DxError {
    /// Returns whether the bytes themselves are bad (quarantine, ask again), as opposed to a disk that could not be read.
    pub fn is_content(&self) -> bool {
        !matches!(self, DxError::Io { .. })
    }
}

impl From<DxError> for io::Error {
    fn from(error: DxError) -> io::Error {
        match error {
            DxError::Io { source, .. } => source,
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        }
    }
}
