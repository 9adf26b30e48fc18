//! Writing `.dx` files: frames of units, then header + frames + trailer.

use crate::base::ids::{ByteHash, ContentHash, TxnId};
use crate::base::limits::{DX_FILE_BYTES_MAX, DX_FRAME_RAW_BYTES_GOAL, DX_FRAMES_MAX};
use crate::dx::codec;
use crate::dx::error::DxError;
use crate::dx::format::*;
use crate::dx::frame::{RawFrame, SealedFrame, Sealer};
use crate::dx::header::{DxDirection, Header};
use crate::dx::record::{self, UnitBegin, UnitEnd};
use crate::model::event::{ConfirmEvent, MarkEvent, NodeEvent, RowEvent, SchemaObject, ScopeKey, TableHeading, UnitEvents};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fmt;
use std::io::Write;
use std::sync::Arc;

/// What was written, for the database row that makes the file real.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FileSummary {
    /// What the chain and the watermarks compare.
    pub content_hash: ContentHash,
    /// SHA-256 of the whole file, for the transfer.
    pub byte_hash: ByteHash,
    /// Length of the file.
    pub bytes: u64,
    /// Uncompressed bytes of its frames.
    pub raw_bytes: u64,
    /// Frames in it.
    pub frames: u32,
    /// Units that have an operation in it.
    pub units: u64,
    /// Operations, or row events, in it.
    pub operations: u64,
}

/// Returns a hash that already holds what a header adds to the content hash; the raw hashes of the frames follow, in order.
fn content_hash_of(header: &[u8; HEADER_BYTES]) -> Sha256 {
    let mut hash = Sha256::new();
    hash.update(CONTENT_HASH_DOMAIN);
    hash.update(header.get(CONTENT_HASH_HEADER).unwrap_or_default());
    hash
}

/// Returns the content hash of a file with that header and those frames.
pub(crate) fn content_hash<'a>(header: &[u8; HEADER_BYTES], raw_hashes: impl Iterator<Item = &'a [u8; 32]>) -> ContentHash {
    let mut hash = content_hash_of(header);
    raw_hashes.for_each(|raw_hash| hash.update(raw_hash));
    ContentHash(hash.finalize().into())
}

/// A file while it is written: the header, frame after frame, and the trailer last. Of a frame nothing stays in memory but the
/// units that it names, so a file of any length can be written.
pub struct FileWriter<'o> {
    out: &'o mut dyn Write,
    header: Header,
    /// Of every byte.
    seal: Sha256,
    content: Sha256,
    /// Each unit at least once.
    units: Vec<TxnId>,
    bytes: u64,
    raw_bytes: u64,
    frames: u32,
    operations: u64,
}

impl fmt::Debug for FileWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileWriter").field("file_no", &self.header.file_no).field("frames", &self.frames).finish_non_exhaustive()
    }
}

impl<'o> FileWriter<'o> {
    /// Writes the header.
    ///
    /// # Errors
    /// If the header breaks a rule, or `out` fails.
    pub fn begin(header: &Header, out: &'o mut dyn Write) -> Result<FileWriter<'o>, DxError> {
        header.check()?;
        let head = header.to_bytes();
        let mut writer = FileWriter {
            out,
            header: header.clone(),
            seal: Sha256::new(),
            content: content_hash_of(&head),
            units: Vec::new(),
            bytes: TRAILER_BYTES as u64,
            raw_bytes: 0,
            frames: 0,
            operations: 0,
        };
        writer.put(&head)?;
        writer.bytes += HEADER_BYTES as u64;
        Ok(writer)
    }

    /// Appends a frame.
    ///
    /// # Errors
    /// If it is out of the header's range or makes the file too long, or `out` fails. The writer can then only be dropped.
    pub fn frame(&mut self, frame: &SealedFrame) -> Result<(), DxError> {
        if let Some(unit) = frame.units.iter().find(|unit| **unit < self.header.first || **unit > self.header.last) {
            let Header { file_no, first, last, .. } = &self.header;
            return Err(DxError::Content(format!("file {file_no}: unit {unit} lies outside of its range {first}..{last}")));
        }
        self.bytes += frame.bytes.len() as u64;
        if self.bytes > DX_FILE_BYTES_MAX {
            return Err(DxError::TooLarge { what: "file", value: self.bytes, limit: DX_FILE_BYTES_MAX });
        }
        self.frames += 1;
        if self.frames > DX_FRAMES_MAX {
            return Err(DxError::TooLarge { what: "number of frames", value: self.frames.into(), limit: DX_FRAMES_MAX.into() });
        }
        self.put(&frame.bytes)?;
        self.content.update(frame.raw_hash);
        // A large unit fills frame after frame.
        let known = self.units.last().copied();
        self.units.extend(frame.units.iter().filter(|unit| Some(**unit) != known));
        self.raw_bytes += u64::from(frame.raw_len);
        self.operations += frame.operations;
        Ok(())
    }

    /// Writes the trailer.
    ///
    /// # Errors
    /// If `out` fails.
    pub fn finish(mut self) -> Result<FileSummary, DxError> {
        self.units.sort_unstable();
        self.units.dedup();
        let trailer = Trailer {
            frames: self.frames,
            units: self.units.len() as u64,
            operations: self.operations,
            raw_bytes: self.raw_bytes,
            content_hash: ContentHash(self.content.clone().finalize().into()),
        };
        self.put(&trailer.to_bytes())?;
        let seal: [u8; 32] = self.seal.clone().finalize().into();
        self.put(&seal)?;
        Ok(FileSummary {
            content_hash: trailer.content_hash,
            byte_hash: ByteHash(self.seal.finalize().into()),
            bytes: self.bytes,
            raw_bytes: trailer.raw_bytes,
            frames: trailer.frames,
            units: trailer.units,
            operations: trailer.operations,
        })
    }

    fn put(&mut self, part: &[u8]) -> Result<(), DxError> {
        self.seal.update(part);
        self.out.write_all(part).map_err(|source| DxError::Io { operation: "write a .dx file", source })
    }
}

/// Writes a file of `frames`, in this order. Deterministic but for what compression did to the frames.
///
/// # Errors
/// If the header breaks a rule, the frames are out of its range or too many, or `out` fails.
pub fn write_file(header: &Header, frames: &[Arc<SealedFrame>], out: &mut dyn Write) -> Result<FileSummary, DxError> {
    let mut file = FileWriter::begin(header, out)?;
    frames.iter().try_for_each(|frame| file.frame(frame))?;
    file.finish()
}

/// The trailer without its seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) frames: u32,
    pub(crate) units: u64,
    pub(crate) operations: u64,
    pub(crate) raw_bytes: u64,
    pub(crate) content_hash: ContentHash,
}

impl Trailer {
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(TRAILER_AT_SEAL);
        bytes.extend_from_slice(&TRAILER_MARK);
        bytes.extend_from_slice(&self.frames.to_le_bytes());
        bytes.extend_from_slice(&self.units.to_le_bytes());
        bytes.extend_from_slice(&self.operations.to_le_bytes());
        bytes.extend_from_slice(&self.raw_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.content_hash.0);
        bytes
    }
}

/// A node's file.
#[derive(Debug)]
pub struct NodeFile;

impl NodeFile {
    /// Begins a node's file.
    ///
    /// # Errors
    /// As [`FileWriter::begin`]; also if the header is not a download's.
    pub fn begin<'o>(header: &Header, out: &'o mut dyn Write) -> Result<FileWriter<'o>, DxError> {
        expect_direction(header, DxDirection::Download)?;
        FileWriter::begin(header, out)
    }

    /// Returns the bytes of a node's file and its hashes.
    ///
    /// # Errors
    /// As [`NodeFile::begin`] and [`FileWriter`].
    pub fn assemble(header: &Header, frames: &[Arc<SealedFrame>]) -> Result<(Vec<u8>, FileSummary), DxError> {
        let mut bytes = Vec::new();
        let mut file = NodeFile::begin(header, &mut bytes)?;
        frames.iter().try_for_each(|frame| file.frame(frame))?;
        let summary = file.finish()?;
        Ok((bytes, summary))
    }
}

/// Writes the units of one txnproc file, compressed as they come; what is compressed leaves memory at once.
#[derive(Debug)]
pub struct TxnprocWriter<'o> {
    sealer: Sealer,
    current: RawFrame,
    file: FileWriter<'o>,
    last_unit: Option<TxnId>,
    /// What the open unit is made of so far.
    counts: UnitEnd,
}

impl<'o> TxnprocWriter<'o> {
    /// Begins a file.
    ///
    /// # Errors
    /// If the header is not a txnproc file's, zstd refuses the level, or `out` fails.
    pub fn begin(header: &Header, zstd_level: i32, out: &'o mut dyn Write) -> Result<TxnprocWriter<'o>, DxError> {
        expect_direction(header, DxDirection::Txnproc)?;
        Ok(TxnprocWriter {
            sealer: Sealer::new(zstd_level)?,
            current: RawFrame::default(),
            file: FileWriter::begin(header, out)?,
            last_unit: None,
            counts: UnitEnd::default(),
        })
    }

    /// Appends a unit; a large one spans frames. After an error the writer can only be dropped.
    ///
    /// # Errors
    /// If units do not ascend, indices of the unit do not fit, or a value is over its limit.
    pub fn unit(&mut self, events: &UnitEvents) -> Result<(), DxError> {
        self.unit_head(events)?;
        events.rows.iter().try_for_each(|row| self.row(row))?;
        self.end_unit()
    }

    /// Begins a unit and appends everything of `events` but its rows; more headings and keys, the rows and the end follow piece by piece.
    ///
    /// # Errors
    /// As [`TxnprocWriter::unit`].
    pub fn unit_head(&mut self, events: &UnitEvents) -> Result<(), DxError> {
        record::check_unit(events)?;
        self.begin_unit(&UnitBegin::of(events))?;
        events.schema.iter().try_for_each(|object| self.schema(object))?;
        events.whole_schema.iter().try_for_each(|object| self.whole_schema(object))?;
        events.tables.iter().try_for_each(|table| self.heading(table).map(drop))?;
        events.keys.iter().try_for_each(|key| self.key(key).map(drop))?;
        events.nodes.iter().try_for_each(|node| self.node(node))?;
        events.marks.iter().try_for_each(|mark| self.mark(mark))?;
        events.confirms.iter().try_for_each(|confirm| self.confirm(confirm))
    }

    /// Begins a unit that is written piece by piece: schema objects, node events, marks and confirms before the first row; headings and keys
    /// before what names them.
    ///
    /// # Errors
    /// If units do not ascend.
    pub fn begin_unit(&mut self, begin: &UnitBegin) -> Result<(), DxError> {
        if self.last_unit.is_some_and(|last| begin.unit <= last) {
            return Err(DxError::Content(format!("unit {} does not follow the one before it", begin.unit)));
        }
        self.last_unit = Some(begin.unit);
        self.current.units.push(begin.unit);
        self.counts = UnitEnd::default();
        self.record(RECORD_UNIT_BEGIN, "unit", begin, 0)
    }

    /// Appends a changed schema object to the open unit.
    ///
    /// # Errors
    /// If it is over a limit.
    pub fn schema(&mut self, object: &SchemaObject) -> Result<(), DxError> {
        self.counts.schema += 1;
        self.record(RECORD_UNIT_SCHEMA, "schema object", object, 0)
    }

    /// Appends an object of the whole schema to the open unit.
    ///
    /// # Errors
    /// If it is over a limit.
    pub fn whole_schema(&mut self, object: &SchemaObject) -> Result<(), DxError> {
        self.counts.whole_schema += 1;
        self.record(RECORD_UNIT_WHOLE_SCHEMA, "schema object", object, 0)
    }

    /// Appends a heading to the open unit and returns its number.
    ///
    /// # Errors
    /// If it breaks a rule or a limit.
    pub fn heading(&mut self, heading: &TableHeading) -> Result<u32, DxError> {
        record::check_heading(heading)?;
        self.record(RECORD_UNIT_TABLE, "heading", heading, 0)?;
        number(&mut self.counts.tables)
    }

    /// Appends a key to the open unit and returns its number.
    ///
    /// # Errors
    /// If it is over a limit.
    pub fn key(&mut self, key: &ScopeKey) -> Result<u32, DxError> {
        self.record(RECORD_UNIT_KEY, "key", key, 0)?;
        number(&mut self.counts.keys)
    }

    /// Appends a node event to the open unit.
    ///
    /// # Errors
    /// If it is over a limit.
    pub fn node(&mut self, event: &NodeEvent) -> Result<(), DxError> {
        self.counts.nodes += 1;
        self.record(RECORD_UNIT_NODE, "node event", event, 0)
    }

    /// Appends a mark to the open unit.
    ///
    /// # Errors
    /// If it is over a limit.
    pub fn mark(&mut self, mark: &MarkEvent) -> Result<(), DxError> {
        self.counts.marks += 1;
        self.record(RECORD_UNIT_MARK, "mark", mark, 0)
    }

    /// Appends a confirm to the open unit.
    ///
    /// # Errors
    /// If it is over a limit.
    pub fn confirm(&mut self, event: &ConfirmEvent) -> Result<(), DxError> {
        record::check_confirm(&event.confirm)?;
        self.counts.confirms += 1;
        self.record(RECORD_UNIT_CONFIRM, "confirm", event, 0)
    }

    /// Appends a row event to the open unit. Its heading and keys must have been appended before.
    ///
    /// # Errors
    /// If a value is over its limit.
    pub fn row(&mut self, event: &RowEvent) -> Result<(), DxError> {
        let keys = || event.keys_before.iter().chain(&event.keys_after);
        if u64::from(event.table) >= self.counts.tables || keys().any(|key| u64::from(*key) >= self.counts.keys) {
            return Err(DxError::Content("a row event names a heading or key that was not written".to_owned()));
        }
        self.counts.rows += 1;
        self.record(RECORD_UNIT_ROW, "row event", event, 1)
    }

    /// Ends the open unit.
    ///
    /// # Errors
    /// If zstd fails.
    pub fn end_unit(&mut self) -> Result<(), DxError> {
        let counts = self.counts;
        self.record(RECORD_UNIT_END, "end of a unit", &counts, 0)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// If zstd or the output fails.
    pub fn finish(mut self) -> Result<FileSummary, DxError> {
        self.seal()?;
        self.file.finish()
    }

    fn record<T: Serialize>(&mut self, kind: u8, what: &'static str, value: &T, operations: u64) -> Result<(), DxError> {
        record::append(&mut self.current.bytes, kind, |out| codec::encode_into(what, value, out))?;
        self.current.operations += operations;
        if self.current.bytes.len() >= DX_FRAME_RAW_BYTES_GOAL {
            self.seal()?;
        }
        Ok(())
    }

    fn seal(&mut self) -> Result<(), DxError> {
        if self.current.bytes.is_empty() {
            return Ok(());
        }
        let frame = self.sealer.seal(std::mem::take(&mut self.current))?;
        self.file.frame(&frame)
    }
}

/// A txnproc file of whole units.
#[derive(Debug)]
pub struct TxnprocFile;

impl TxnprocFile {
    /// Returns the bytes of a file of `units`, and its hashes.
    ///
    /// # Errors
    /// As [`TxnprocWriter`].
    pub fn assemble(header: &Header, units: &[UnitEvents], zstd_level: i32) -> Result<(Vec<u8>, FileSummary), DxError> {
        let mut bytes = Vec::new();
        let mut writer = TxnprocWriter::begin(header, zstd_level, &mut bytes)?;
        units.iter().try_for_each(|unit| writer.unit(unit))?;
        let summary = writer.finish()?;
        Ok((bytes, summary))
    }
}

/// Counts one more and returns its number.
fn number(count: &mut u64) -> Result<u32, DxError> {
    let number = u32::try_from(*count).map_err(|_| DxError::TooLarge {
        what: "number of keys or headings of a unit",
        value: *count,
        limit: u64::from(u32::MAX),
    })?;
    *count += 1;
    Ok(number)
}

pub(crate) fn expect_direction(header: &Header, wanted: DxDirection) -> Result<(), DxError> {
    if header.direction == wanted { Ok(()) } else { Err(DxError::Direction { found: header.direction, wanted }) }
}
