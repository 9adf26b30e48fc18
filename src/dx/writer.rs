//! Writing `.dx` files: frames of units, then header + frames + trailer.

use crate::base::ids::{ByteHash, ContentHash, TxnId};
use crate::base::limits::{DX_FILE_BYTES_MAX, DX_FRAME_RAW_BYTES_GOAL};
use crate::dx::codec;
use crate::dx::error::DxError;
use crate::dx::format::*;
use crate::dx::frame::{RawFrame, SealedFrame, Sealer};
use crate::dx::header::{DxDirection, Header};
use crate::dx::record::{self, UnitBegin, UnitEnd};
use crate::model::event::{MarkEvent, NodeEvent, RowEvent, SchemaObject, ScopeKey, TableHeading, UnitEvents};
use serde::Serialize;
use sha2::{Digest, Sha256};
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

/// Returns the content hash of a file with that header and those frames.
pub(crate) fn content_hash<'a>(header: &[u8; HEADER_BYTES], raw_hashes: impl Iterator<Item = &'a [u8; 32]>) -> ContentHash {
    let mut hash = Sha256::new();
    hash.update(CONTENT_HASH_DOMAIN);
    hash.update(header.get(CONTENT_HASH_HEADER).unwrap_or_default());
    raw_hashes.for_each(|raw_hash| hash.update(raw_hash));
    ContentHash(hash.finalize().into())
}

/// Writes a file of `frames`, in this order. Deterministic but for what compression did to the frames.
///
/// # Errors
/// If the header breaks a rule, the frames are out of its range or too many, or `out` fails.
pub fn write_file(header: &Header, frames: &[Arc<SealedFrame>], out: &mut dyn Write) -> Result<FileSummary, DxError> {
    header.check()?;
    let mut units: Vec<TxnId> = frames.iter().flat_map(|frame| frame.units.iter().copied()).collect();
    units.sort_unstable();
    units.dedup();
    if units.first().is_some_and(|first| *first < header.first) || units.last().is_some_and(|last| *last > header.last) {
        return Err(DxError::Content(format!(
            "file {}: a unit lies outside of its range {}..{}",
            header.file_no, header.first, header.last
        )));
    }
    let bytes = (HEADER_BYTES + TRAILER_BYTES) as u64 + frames.iter().map(|frame| frame.bytes.len() as u64).sum::<u64>();
    if bytes > DX_FILE_BYTES_MAX {
        return Err(DxError::TooLarge { what: "file", value: bytes, limit: DX_FILE_BYTES_MAX });
    }
    let mut hash = Sha256::new();
    let mut put = |part: &[u8], hash: &mut Sha256| {
        hash.update(part);
        out.write_all(part).map_err(|source| DxError::Io { operation: "write a .dx file", source })
    };
    let header_bytes = header.to_bytes();
    put(&header_bytes, &mut hash)?;
    for frame in frames {
        put(&frame.bytes, &mut hash)?;
    }
    let content_hash = content_hash(&header_bytes, frames.iter().map(|frame| &frame.raw_hash));
    let trailer = Trailer {
        frames: u32::try_from(frames.len()).map_err(|_| DxError::TooLarge {
            what: "number of frames",
            value: frames.len() as u64,
            limit: u64::from(u32::MAX),
        })?,
        units: units.len() as u64,
        operations: frames.iter().map(|frame| frame.operations).sum(),
        raw_bytes: frames.iter().map(|frame| u64::from(frame.raw_len)).sum(),
        content_hash,
    };
    put(&trailer.to_bytes(), &mut hash)?;
    let seal: [u8; 32] = hash.clone().finalize().into();
    put(&seal, &mut hash)?;
    Ok(FileSummary {
        content_hash,
        byte_hash: ByteHash(hash.finalize().into()),
        bytes,
        raw_bytes: trailer.raw_bytes,
        frames: trailer.frames,
        units: trailer.units,
        operations: trailer.operations,
    })
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
    /// Returns the bytes of a node's file and its hashes.
    ///
    /// # Errors
    /// As [`write_file`]; also if the header is not a download's.
    pub fn assemble(header: &Header, frames: &[Arc<SealedFrame>]) -> Result<(Vec<u8>, FileSummary), DxError> {
        let mut bytes = Vec::new();
        let summary = NodeFile::write(header, frames, &mut bytes)?;
        Ok((bytes, summary))
    }

    /// Writes a node's file to `out`.
    ///
    /// # Errors
    /// As [`NodeFile::assemble`].
    pub fn write(header: &Header, frames: &[Arc<SealedFrame>], out: &mut dyn Write) -> Result<FileSummary, DxError> {
        expect_direction(header, DxDirection::Download)?;
        write_file(header, frames, out)
    }
}

/// Collects the units of one txnproc file, compressed as they come.
#[derive(Debug)]
pub struct TxnprocWriter {
    sealer: Sealer,
    current: RawFrame,
    frames: Vec<Arc<SealedFrame>>,
    sealed_bytes: usize,
    last_unit: Option<TxnId>,
    /// What the open unit is made of so far.
    counts: UnitEnd,
}

impl TxnprocWriter {
    /// Returns an empty file.
    ///
    /// # Errors
    /// If zstd refuses the level.
    pub fn new(zstd_level: i32) -> Result<TxnprocWriter, DxError> {
        let sealer = Sealer::new(zstd_level)?;
        Ok(TxnprocWriter {
            sealer,
            current: RawFrame::default(),
            frames: Vec::new(),
            sealed_bytes: 0,
            last_unit: None,
            counts: UnitEnd::default(),
        })
    }

    /// Appends a unit; a large one spans frames. After an error the writer can only be dropped.
    ///
    /// # Errors
    /// If units do not ascend, indices of the unit do not fit, or a value is over its limit.
    pub fn unit(&mut self, events: &UnitEvents) -> Result<(), DxError> {
        record::check_unit(events)?;
        self.begin_unit(&UnitBegin::of(events))?;
        events.schema.iter().try_for_each(|object| self.schema(object))?;
        events.whole_schema.iter().try_for_each(|object| self.whole_schema(object))?;
        events.tables.iter().try_for_each(|table| self.heading(table).map(drop))?;
        events.keys.iter().try_for_each(|key| self.key(key).map(drop))?;
        events.nodes.iter().try_for_each(|node| self.node(node))?;
        events.marks.iter().try_for_each(|mark| self.mark(mark))?;
        events.rows.iter().try_for_each(|row| self.row(row))?;
        self.end_unit()
    }

    /// Begins a unit that is written piece by piece: schema objects, node events and marks before the first row; headings and keys
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

    /// Returns about how many bytes the file has by now.
    pub fn bytes(&self) -> usize {
        self.sealed_bytes + self.current.bytes.len()
    }

    /// Returns the bytes of the finished file.
    ///
    /// # Errors
    /// As [`write_file`]; also if the header is not a txnproc file's.
    pub fn finish(self, header: &Header) -> Result<(Vec<u8>, FileSummary), DxError> {
        let mut bytes = Vec::with_capacity(self.bytes() + HEADER_BYTES + TRAILER_BYTES);
        let summary = self.finish_into(header, &mut bytes)?;
        Ok((bytes, summary))
    }

    /// Writes the finished file to `out`.
    ///
    /// # Errors
    /// As [`TxnprocWriter::finish`].
    pub fn finish_into(mut self, header: &Header, out: &mut dyn Write) -> Result<FileSummary, DxError> {
        expect_direction(header, DxDirection::Txnproc)?;
        self.seal()?;
        write_file(header, &self.frames, out)
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
        self.sealed_bytes += frame.bytes.len();
        self.frames.push(frame);
        Ok(())
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
        let mut writer = TxnprocWriter::new(zstd_level)?;
        units.iter().try_for_each(|unit| writer.unit(unit))?;
        writer.finish(header)
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

fn expect_direction(header: &Header, wanted: DxDirection) -> Result<(), DxError> {
    if header.direction == wanted { Ok(()) } else { Err(DxError::Direction { found: header.direction, wanted }) }
}
