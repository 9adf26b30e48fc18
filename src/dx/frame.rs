//! A frame: a run of records, compressed once, that may be appended to the files of many nodes.
//!
//! A frame is self-contained (it repeats the table headings that it uses) and the units in it ascend. Its raw hash is
//! what the content hash is made of, so a frame shared by a thousand files is hashed and compressed once.

use crate::base::ids::TxnId;
use crate::base::limits::DX_FRAME_RAW_BYTES_MAX;
use crate::dx::error::DxError;
use crate::dx::format::*;
use crate::dx::header::fixed;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use zstd::zstd_safe::{self, CParameter, DParameter};

use crate::base::limits::DX_FRAME_RAW_BYTES_GOAL;
use crate::dx::codec;
use crate::dx::record;
use crate::model::event::{TableHeading, UnitControls};

/// A finished frame with its own header, ready to be appended to a file.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedFrame {
    /// Frame header and stored bytes.
    pub bytes: Vec<u8>,
    /// Uncompressed length.
    pub raw_len: u32,
    /// SHA-256 of the uncompressed bytes.
    pub raw_hash: [u8; 32],
    /// The units in it, ascending.
    pub units: Vec<TxnId>,
    /// Operations or row events in it.
    pub operations: u64,
}

impl fmt::Debug for SealedFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedFrame({} -> {} bytes, {} operations)", self.raw_len, self.bytes.len(), self.operations)
    }
}

/// Uncompressed content of a frame to be.
#[derive(Debug, Default, Clone)]
pub struct RawFrame {
    /// Records.
    pub bytes: Vec<u8>,
    /// The units in it, ascending.
    pub units: Vec<TxnId>,
    /// Operations or row events in it.
    pub operations: u64,
}

/// Compresses frames; keeps the compressor's memory between them.
pub struct Sealer {
    compressor: zstd::bulk::Compressor<'static>,
    zstd_level: i32,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer")
    }
}

impl Sealer {
    /// Returns another sealer of the same level, for another thread.
    ///
    /// # Errors
    /// As [`Sealer::new`].
    pub fn another(&self) -> Result<Sealer, DxError> {
        Sealer::new(self.zstd_level)
    }

    /// Returns a sealer of that zstd level. The level changes the bytes of a file, never its content hash.
    ///
    /// # Errors
    /// If zstd refuses the level.
    pub fn new(zstd_level: i32) -> Result<Sealer, DxError> {
        let io = |source| DxError::Io { operation: "prepare zstd", source };
        let mut compressor = zstd::bulk::Compressor::new(zstd_level).map_err(io)?;
        compressor.set_parameter(CParameter::ChecksumFlag(true)).map_err(io)?;
        compressor.set_parameter(CParameter::ContentSizeFlag(true)).map_err(io)?;
        Ok(Sealer { compressor, zstd_level })
    }

    /// Compresses and hashes a frame.
    ///
    /// # Errors
    /// If it is larger than a frame may be.
    pub fn seal(&mut self, raw: RawFrame) -> Result<Arc<SealedFrame>, DxError> {
        let limit = DX_FRAME_RAW_BYTES_MAX as u64;
        let raw_len = match u32::try_from(raw.bytes.len()) {
            Ok(length) if u64::from(length) <= limit => length,
            _ => return Err(DxError::TooLarge { what: "frame", value: raw.bytes.len() as u64, limit }),
        };
        let compressed = self.compressor.compress(&raw.bytes).map_err(|source| DxError::Io { operation: "compress a frame", source })?;
        let keep = compressed.len() < raw.bytes.len() && u64::from(raw_len) <= raw_max(compressed.len() as u64);
        let (method, stored) = if keep { (METHOD_ZSTD, &compressed) } else { (METHOD_STORED, &raw.bytes) };
        let mut bytes = Vec::with_capacity(FRAME_HEADER_BYTES + stored.len());
        bytes.extend_from_slice(&FRAME_MARK);
        bytes.extend_from_slice(&[method, 0, 0, 0]);
        bytes.extend_from_slice(&raw_len.to_le_bytes());
        let stored_len = u32::try_from(stored.len()).map_err(|_| DxError::TooLarge {
            what: "frame",
            value: stored.len() as u64,
            limit: u64::from(u32::MAX),
        })?;
        bytes.extend_from_slice(&stored_len.to_le_bytes());
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(stored);
        let raw_hash = Sha256::digest(&raw.bytes).into();
        Ok(Arc::new(SealedFrame { bytes, raw_len, raw_hash, units: raw.units, operations: raw.operations }))
    }
}

/// Returns how many bytes a frame of `stored` bytes may expand to.
pub(crate) fn raw_max(stored: u64) -> u64 {
    stored.saturating_mul(FRAME_RATIO_MAX).saturating_add(FRAME_RATIO_GRACE_BYTES)
}

/// A frame header as read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameHeader {
    pub(crate) method: u8,
    pub(crate) raw_len: u32,
    pub(crate) stored_len: u32,
}

impl FrameHeader {
    /// Reads a frame header; `left` is how many bytes of the body follow it. Every limit is checked here, before
    /// anything is allocated.
    pub(crate) fn from_bytes(bytes: &[u8; FRAME_HEADER_BYTES], at: u64, left: u64) -> Result<FrameHeader, DxError> {
        let field = |offset: usize, length: usize| bytes.get(offset..offset + length).unwrap_or_default();
        let damaged = |what| Err(DxError::Damaged { what, at });
        if field(0, 4) != FRAME_MARK {
            return damaged("no frame begins here");
        }
        if crc32fast::hash(field(0, FRAME_AT_CRC)) != u32::from_le_bytes(fixed(field(FRAME_AT_CRC, 4))) {
            return damaged("the frame header's checksum does not fit");
        }
        let [method, zeros @ ..] = fixed::<4>(field(FRAME_AT_METHOD, 4));
        let raw_len = u32::from_le_bytes(fixed(field(FRAME_AT_RAW, 4)));
        let stored_len = u32::from_le_bytes(fixed(field(FRAME_AT_STORED, 4)));
        if zeros != [0; 3] || method > METHOD_ZSTD {
            return damaged("unknown frame method");
        }
        if raw_len == 0 || (method == METHOD_STORED && raw_len != stored_len) || (method == METHOD_ZSTD && stored_len >= raw_len) {
            return damaged("frame lengths contradict each other");
        }
        if raw_len as usize > DX_FRAME_RAW_BYTES_MAX {
            return Err(DxError::TooLarge { what: "frame", value: raw_len.into(), limit: DX_FRAME_RAW_BYTES_MAX as u64 });
        }
        if u64::from(stored_len) > left {
            return Err(DxError::Truncated { what: "part of a frame", at: at + left });
        }
        if u64::from(raw_len) > raw_max(stored_len.into()) {
            return Err(DxError::Bomb { at, stored: stored_len.into(), raw: raw_len.into() });
        }
        Ok(FrameHeader { method, raw_len, stored_len })
    }
}

/// Expands frames; keeps zstd's memory between them.
pub(crate) struct Opener {
    decompressor: zstd::bulk::Decompressor<'static>,
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opener")
    }
}

impl Opener {
    pub(crate) fn new() -> Result<Opener, DxError> {
        let io = |source: io::Error| DxError::Io { operation: "prepare zstd", source };
        let mut decompressor = zstd::bulk::Decompressor::new().map_err(io)?;
        decompressor.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX)).map_err(io)?;
        Ok(Opener { decompressor })
    }

    /// Returns the uncompressed bytes: exactly as many as the frame header says, from exactly one zstd frame.
    pub(crate) fn open(&mut self, header: FrameHeader, stored: Vec<u8>, at: u64) -> Result<Vec<u8>, DxError> {
        let raw_len = header.raw_len as usize;
        if header.method == METHOD_STORED {
            return Ok(stored);
        }
        let damaged = |what| DxError::Damaged { what, at };
        if zstd_safe::find_frame_compressed_size(&stored).ok() != Some(stored.len()) {
            return Err(damaged("not exactly one zstd frame"));
        }
        if !matches!(zstd_safe::get_frame_content_size(&stored), Ok(Some(size)) if size == raw_len as u64) {
            return Err(damaged("zstd tells another length"));
        }
        let raw = self.decompressor.decompress(&stored, raw_len).map_err(|_| damaged("zstd refuses the frame"))?;
        if raw.len() != raw_len {
            return Err(damaged("zstd gave another length"));
        }
        Ok(raw)
    }
}

/// Builds the frames of a download file, in ascending order of units; a new frame is begun at the size goal.
#[derive(Debug, Default)]
pub struct FrameBuilder {
    done: Vec<RawFrame>,
    current: RawFrame,
    headings: HashMap<TableHeading, u16>,
    last_unit: Option<TxnId>,
}

impl FrameBuilder {
    /// Returns a builder without frames.
    pub fn new() -> FrameBuilder {
        FrameBuilder::default()
    }

    /// Appends what unit `unit` tells beside operations.
    ///
    /// # Errors
    /// If `unit` is lower than the one before, or a control is larger than a record may be.
    pub fn controls(&mut self, unit: TxnId, controls: &UnitControls) -> Result<(), DxError> {
        if self.last_unit.is_some_and(|last| unit < last) {
            return Err(DxError::Content(format!("unit {unit} after a later one in a frame")));
        }
        if controls.reset {
            self.control(unit, RECORD_RESET, |_| Ok(()))?;
        }
        for object in &controls.schema {
            self.control(unit, RECORD_SCHEMA, |out| codec::encode_into("schema object", object, out))?;
        }
        for mark in &controls.marks {
            self.control(unit, RECORD_MARK, |out| codec::encode_into("mark", mark, out))?;
        }
        for confirm in &controls.confirms {
            record::check_confirm(confirm)?;
            self.control(unit, RECORD_CONFIRM, |out| codec::encode_into("confirm", confirm, out))?;
        }
        self.enter(unit)?;
        self.last_unit = Some(unit);
        Ok(())
    }

    /// Appends one record of a unit; what many of them fill goes into several frames.
    fn control(&mut self, unit: TxnId, kind: u8, fill: impl FnOnce(&mut Vec<u8>) -> Result<(), DxError>) -> Result<(), DxError> {
        self.enter(unit)?;
        record::append(&mut self.current.bytes, kind, fill)?;
        if self.current.bytes.len() > DX_FRAME_RAW_BYTES_GOAL {
            self.end_frame();
        }
        Ok(())
    }

    fn end_frame(&mut self) {
        self.done.push(std::mem::take(&mut self.current));
        self.headings.clear();
    }

    /// Begins a unit in the open frame, if it has not begun there.
    fn enter(&mut self, unit: TxnId) -> Result<(), DxError> {
        if self.current.units.last() != Some(&unit) {
            record::append(&mut self.current.bytes, RECORD_UNIT, |out| {
                out.extend_from_slice(&unit.0.to_le_bytes());
                Ok(())
            })?;
            self.current.units.push(unit);
        }
        Ok(())
    }

    /// Appends an operation, already encoded by [`record::encode_operation`], to unit `unit`.
    ///
    /// # Errors
    /// If `unit` is lower than the one before, or the operation is larger than a record may be.
    pub fn operation(&mut self, unit: TxnId, heading: &TableHeading, operation: &[u8]) -> Result<(), DxError> {
        if self.last_unit.is_some_and(|last| unit < last) {
            return Err(DxError::Content(format!("unit {unit} after a later one in a frame")));
        }
        if self.current.bytes.len() + operation.len() > DX_FRAME_RAW_BYTES_GOAL && self.current.operations > 0 {
            self.end_frame();
        }
        let index = match self.headings.get(heading) {
            Some(index) => *index,
            None => {
                let index =
                    u16::try_from(self.headings.len()).map_err(|_| DxError::Content("more than 65,536 tables in a frame".to_owned()))?;
                record::append(&mut self.current.bytes, RECORD_HEADING, |out| codec::encode_into("heading", heading, out))?;
                self.headings.insert(heading.clone(), index);
                index
            }
        };
        self.enter(unit)?;
        record::append(&mut self.current.bytes, RECORD_OPERATION, |out| {
            out.extend_from_slice(&index.to_le_bytes());
            out.extend_from_slice(operation);
            Ok(())
        })?;
        self.current.operations += 1;
        self.last_unit = Some(unit);
        Ok(())
    }

    /// Returns the frames, compressed.
    ///
    /// # Errors
    /// If zstd fails.
    pub fn finish(mut self, sealer: &mut Sealer) -> Result<Vec<Arc<SealedFrame>>, DxError> {
        if !self.current.units.is_empty() {
            self.done.push(self.current);
        }
        self.done.into_iter().map(|raw| sealer.seal(raw)).collect()
    }
}
