//! Reading what waits in a node's outbox: files and extracts, piece by piece, verified on the way.
//!
//! No name from the wire becomes a path: a path is made of a checked node name and a number (T10). The bytes are hashed while they
//! are sent, so that damage on the server's own disk is found by the server (fault F3), not guessed by the node.

use crate::base::disk::{Disk, DiskError};
use crate::base::ids::{ByteHash, Incarnation, NodeName};
use crate::base::limits::SESSION_CHUNK_BYTES;
use crate::docking::root::DockingRoot;
use crate::model::toc::Toc;
use crate::session::message::ExtractOffer;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Longest `extract-NNNNNNNN.toc` that is read, in bytes.
const TOC_BYTES_MAX: u64 = 64 << 10;

/// What is wrong with a file of the outbox.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The file cannot be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The operating system says so.
    #[error("read {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
    /// It is not an ordinary file of the length that was written.
    #[error("{} has {found} bytes, {expected} were written", .path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Length found.
        found: u64,
        /// Length expected.
        expected: u64,
    },
    /// It is no table of contents.
    #[error("{}: {why}", .path.display())]
    Toc {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl OutboxError {
    /// Whether the file is not there at all.
    pub fn is_missing(&self) -> bool {
        matches!(self, OutboxError::Disk(error) if error.is_not_found())
    }
}

/// Opens an ordinary file; a link is not followed.
fn open(path: &Path) -> Result<(File, u64), OutboxError> {
    let file = Disk::new().open(path)?;
    let length = file.metadata().map_err(|source| OutboxError::Io { path: path.to_owned(), source })?.len();
    Ok((file, length))
}

/// A file that is being read from some byte on.
pub struct Reading {
    file: File,
    path: PathBuf,
    offset: u64,
    end: u64,
    hasher: Sha256,
    expected: ByteHash,
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reading").field("path", &self.path).field("offset", &self.offset).field("end", &self.end).finish_non_exhaustive()
    }
}

impl Reading {
    /// Opens a file that was written with this length and hash. `offset` beyond its end begins at 0. Blocks.
    ///
    /// # Errors
    /// Missing, not ordinary, or of another length.
    pub fn open(path: PathBuf, bytes: u64, hash: ByteHash, offset: u64) -> Result<Reading, OutboxError> {
        let (file, found) = open(&path)?;
        if found != bytes {
            return Err(OutboxError::Length { path, found, expected: bytes });
        }
        let offset = if offset > bytes { 0 } else { offset };
        let mut reading = Reading { file, path, offset: 0, end: bytes, hasher: Sha256::new(), expected: hash };
        // What the node has already is hashed as well: the hash is over the whole file.
        while reading.offset < offset {
            let rest = usize::try_from(offset - reading.offset).unwrap_or(usize::MAX);
            reading.take(rest.min(SESSION_CHUNK_BYTES))?;
        }
        Ok(reading)
    }

    /// Returns where the next piece begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether every byte was read.
    pub fn is_done(&self) -> bool {
        self.offset == self.end
    }

    /// Whether the bytes were those that were written. Asked once, at the end.
    pub fn is_genuine(self) -> bool {
        self.hasher.finalize().as_slice() == self.expected.0
    }

    /// Returns the next piece. Blocks.
    ///
    /// # Errors
    /// The file cannot be read, or became shorter.
    pub fn next_chunk(&mut self) -> Result<Bytes, OutboxError> {
        let rest = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
        self.take(rest.min(SESSION_CHUNK_BYTES))
    }

    fn take(&mut self, length: usize) -> Result<Bytes, OutboxError> {
        let mut buffer = vec![0; length];
        self.file.read_exact(&mut buffer).map_err(|source| OutboxError::Io { path: self.path.clone(), source })?;
        self.hasher.update(&buffer);
        self.offset += length as u64;
        Ok(buffer.into())
    }
}

/// Returns the extract of a node, if it is there whole: its table of contents is written last. Blocks.
///
/// # Errors
/// The table of contents is there but cannot be read, or does not fit the file beside it.
pub fn extract(root: &DockingRoot, node: &NodeName, incarnation: Incarnation) -> Result<Option<ExtractOffer>, OutboxError> {
    let path = root.extract_toc(node, incarnation);
    let (file, length) = match open(&path) {
        Err(error) if error.is_missing() => return Ok(None),
        other => other?,
    };
    let wrong = |why: String| OutboxError::Toc { path: path.clone(), why };
    if length > TOC_BYTES_MAX {
        return Err(wrong(format!("{length} bytes are too many")));
    }
    let mut text = String::new();
    file.take(TOC_BYTES_MAX).read_to_string(&mut text).map_err(|source| OutboxError::Io { path: path.clone(), source })?;
    let toc: Toc = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    if toc.incarnation != incarnation {
        return Err(wrong(format!("it is of incarnation {}", toc.incarnation)));
    }
    if toc.node != *node {
        return Err(wrong(format!("it is of node {}", toc.node)));
    }
    let offer = ExtractOffer { incarnation, unit: toc.unit, bytes: toc.bytes, raw_bytes: toc.raw_bytes, sha256: toc.sha256 };
    let archive = root.extract(node, incarnation);
    let (_, found) = open(&archive)?;
    if found != offer.bytes {
        return Err(OutboxError::Length { path: archive, found, expected: offer.bytes });
    }
    Ok(Some(offer))
}
