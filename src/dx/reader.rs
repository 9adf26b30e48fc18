//! Reading `.dx` files. `open` reads the whole file once and refuses it unless every length, checksum, count and hash
//! fits; only then can anything be asked of it. Memory is bounded by one frame at a time plus a small cache.

use crate::base::ids::{ByteHash, TxnId};
use crate::base::limits::{DX_FILE_BYTES_MAX, DX_FRAME_RAW_BYTES_MAX, DX_FRAMES_MAX};
use crate::dx::codec;
use crate::dx::error::DxError;
use crate::dx::format::*;
use crate::dx::frame::{FrameHeader, Opener};
use crate::dx::header::{DxDirection, Header, fixed};
use crate::dx::record::{self, Record, Records};
use crate::dx::writer::{FileSummary, Trailer, content_hash};
use crate::model::event::{TableHeading, UnitControls};
use crate::model::operation::Operation;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

/// Uncompressed bytes that are kept from the check of a file, so that an ordinary one is expanded once.
const CACHE_BYTES_MAX: usize = DX_FRAME_RAW_BYTES_MAX / 2;

#[derive(Debug)]
struct FrameEntry {
    at: u64,
    header: FrameHeader,
    raw_hash: [u8; 32],
    cached: Option<Arc<Vec<u8>>>,
}

/// A file whose bytes are proved to be what was written.
#[derive(Debug)]
pub(super) struct DxFile<R> {
    source: R,
    pub(super) version: u16,
    pub(super) header: Header,
    pub(super) summary: FileSummary,
    frames: Vec<FrameEntry>,
    opener: Opener,
}

impl<R: Read + Seek> DxFile<R> {
    /// Checks a file but for its number of units; `look` sees each frame's number and uncompressed bytes, and returns
    /// how many operations are in it.
    pub(super) fn open(
        mut source: R,
        wanted: DxDirection,
        mut look: impl FnMut(&Header, usize, &[u8]) -> Result<u64, DxError>,
    ) -> Result<DxFile<R>, DxError> {
        let length = source.seek(SeekFrom::End(0)).map_err(read_error)?;
        source.seek(SeekFrom::Start(0)).map_err(read_error)?;
        if length > DX_FILE_BYTES_MAX {
            return Err(DxError::TooLarge { what: "file", value: length, limit: DX_FILE_BYTES_MAX });
        }
        let mut head = Vec::with_capacity(HEADER_BYTES);
        source.by_ref().take(HEADER_BYTES as u64).read_to_end(&mut head).map_err(read_error)?;
        let header = Header::from_prefix(&head)?;
        if header.direction != wanted {
            return Err(DxError::Direction { found: header.direction, wanted });
        }
        let head: [u8; HEADER_BYTES] = fixed(&head);
        let version = Header::version_of(&head);
        let mut hash = Sha256::new();
        hash.update(head);
        let mut at = HEADER_BYTES as u64;
        let Some(body_end) = length.checked_sub(TRAILER_BYTES as u64).filter(|end| *end >= at) else {
            return Err(DxError::Truncated { what: "the trailer", at: length });
        };
        let mut opener = Opener::new()?;
        let (mut frames, mut operations, mut raw_bytes, mut cached_bytes) = (Vec::new(), 0u64, 0u64, 0usize);
        while at < body_end {
            let left = body_end - at;
            if frames.len() >= DX_FRAMES_MAX as usize {
                return Err(DxError::TooLarge { what: "number of frames", value: frames.len() as u64 + 1, limit: DX_FRAMES_MAX.into() });
            }
            if left < FRAME_HEADER_BYTES as u64 {
                return Err(DxError::Damaged { what: "bytes that belong to no frame", at });
            }
            let mut bytes = [0u8; FRAME_HEADER_BYTES];
            read_exact(&mut source, &mut bytes, at)?;
            hash.update(bytes);
            let frame = FrameHeader::from_bytes(&bytes, at, left - FRAME_HEADER_BYTES as u64)?;
            let stored = read_stored(&mut source, frame, at)?;
            hash.update(&stored);
            let raw = opener.open(frame, stored, at)?;
            let raw_hash = Sha256::digest(&raw).into();
            operations += look(&header, frames.len(), &raw)?;
            raw_bytes += raw.len() as u64;
            cached_bytes += raw.len();
            let cached = (cached_bytes <= CACHE_BYTES_MAX).then(|| Arc::new(raw));
            frames.push(FrameEntry { at, header: frame, raw_hash, cached });
            at += (FRAME_HEADER_BYTES as u64) + u64::from(frame.stored_len);
        }
        let mut trailer = [0u8; TRAILER_BYTES];
        read_exact(&mut source, &mut trailer, at)?;
        let (claims, seal) = trailer.split_at(TRAILER_AT_SEAL);
        hash.update(claims);
        if <[u8; 32]>::from(hash.clone().finalize()) != seal {
            return Err(DxError::Damaged { what: "the file's checksum does not fit", at: at + TRAILER_AT_SEAL as u64 });
        }
        hash.update(seal);
        let found = Trailer {
            // More cannot stand in a trailer, which is compared below.
            frames: u32::try_from(frames.len()).unwrap_or(u32::MAX),
            units: u64::from_le_bytes(fixed(claims.get(TRAILER_AT_UNITS..TRAILER_AT_UNITS + 8).unwrap_or_default())),
            operations,
            raw_bytes,
            content_hash: content_hash(&head, frames.iter().map(|frame| &frame.raw_hash)),
        };
        if found.to_bytes() != claims {
            return Err(DxError::Damaged { what: "the trailer's counts or content hash do not fit", at });
        }
        let summary = FileSummary {
            content_hash: found.content_hash,
            byte_hash: ByteHash(hash.finalize().into()),
            bytes: length,
            raw_bytes,
            frames: found.frames,
            units: found.units,
            operations,
        };
        Ok(DxFile { source, version, header, summary, frames, opener })
    }

    /// Checks the number of units against the trailer.
    pub(super) fn expect_units(&self, units: usize) -> Result<(), DxError> {
        if self.summary.units == units as u64 {
            Ok(())
        } else {
            let at = self.summary.bytes - TRAILER_BYTES as u64;
            Err(DxError::Damaged { what: "the trailer's number of units does not fit", at })
        }
    }

    /// Returns how many frames there are.
    pub(super) fn frames(&self) -> usize {
        self.frames.len()
    }

    /// Returns the uncompressed bytes of a frame; read again from the source if they were not kept.
    pub(super) fn frame(&mut self, index: usize) -> Result<Arc<Vec<u8>>, DxError> {
        let Some(entry) = self.frames.get(index) else {
            return Err(DxError::Content(format!("frame {index} does not exist")));
        };
        if let Some(raw) = &entry.cached {
            return Ok(raw.clone());
        }
        self.source.seek(SeekFrom::Start(entry.at + FRAME_HEADER_BYTES as u64)).map_err(read_error)?;
        let stored = read_stored(&mut self.source, entry.header, entry.at)?;
        let raw = self.opener.open(entry.header, stored, entry.at)?;
        if <[u8; 32]>::from(Sha256::digest(&raw)) != entry.raw_hash {
            return Err(DxError::Damaged { what: "the frame changed while the file was being read", at: entry.at });
        }
        Ok(Arc::new(raw))
    }
}

fn read_error(source: io::Error) -> DxError {
    DxError::Io { operation: "read a .dx file", source }
}

fn read_exact(source: &mut impl Read, bytes: &mut [u8], at: u64) -> Result<(), DxError> {
    source.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => DxError::Truncated { what: "the rest of the file", at },
        _ => read_error(error),
    })
}

/// Reads a frame's bytes; their number was checked against the length of the file.
fn read_stored(source: &mut impl Read, header: FrameHeader, at: u64) -> Result<Vec<u8>, DxError> {
    let mut stored = vec![0u8; header.stored_len as usize];
    read_exact(source, &mut stored, at)?;
    Ok(stored)
}

/// Where the operations of one unit lie in one frame.
#[derive(Debug, Clone, Copy)]
struct Segment {
    unit: TxnId,
    frame: usize,
    start: usize,
    end: usize,
    operations: u64,
}

/// A unit of a node's file: all of its operations, from whichever frame. They have no order among each other.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// The unit.
    pub txn: TxnId,
    /// What comes before the operations.
    pub controls: UnitControls,
    /// Each operation with the heading that names its table and columns.
    pub operations: Vec<(Arc<TableHeading>, Operation)>,
}

/// A node's file, checked whole.
#[derive(Debug)]
pub struct DownloadReader<R> {
    file: DxFile<R>,
    headings: Vec<Vec<Arc<TableHeading>>>,
    /// Sorted by unit, then frame (R17).
    segments: Vec<Segment>,
    controls: BTreeMap<TxnId, UnitControls>,
}

impl<R: Read + Seek> DownloadReader<R> {
    /// Reads and checks a whole file.
    ///
    /// # Errors
    /// Whatever is wrong with it; nothing of a file that is not whole can be reached.
    pub fn open(source: R) -> Result<DownloadReader<R>, DxError> {
        let mut headings = Vec::new();
        let mut segments = Vec::new();
        let mut controls = BTreeMap::new();
        let mut units = BTreeSet::new();
        let file = DxFile::open(source, DxDirection::Download, |header, frame, raw| {
            let (frame_headings, operations) = index_frame(header, frame, raw, &mut segments, &mut controls)?;
            headings.push(frame_headings);
            Ok(operations)
        })?;
        units.extend(segments.iter().map(|segment| segment.unit));
        file.expect_units(units.len())?;
        segments.sort_by_key(|segment| (segment.unit, segment.frame));
        Ok(DownloadReader { file, headings, segments, controls })
    }

    /// Returns the header.
    pub fn header(&self) -> &Header {
        &self.file.header
    }

    /// Returns counts and hashes.
    pub fn summary(&self) -> &FileSummary {
        &self.file.summary
    }

    /// Returns what the units of the file tell beside operations; a unit that tells nothing is not among them.
    pub fn controls(&self) -> &BTreeMap<TxnId, UnitControls> {
        &self.controls
    }

    /// Returns every operation with its unit; units ascend, each comes once (R17). For units too large for memory.
    pub fn operations(&mut self) -> Operations<'_, R> {
        Operations { reader: self, segment: 0, frame: None, at: 0 }
    }

    /// Returns the units in ascending order, each once, with the operations of all frames.
    pub fn units(&mut self) -> Units<'_, R> {
        Units { operations: self.operations(), failed: false }
    }
}

/// Lists the headings of a frame, appends its segments and the controls of its units; checks the order of records.
fn index_frame(
    header: &Header,
    frame: usize,
    raw: &[u8],
    segments: &mut Vec<Segment>,
    controls: &mut BTreeMap<TxnId, UnitControls>,
) -> Result<(Vec<Arc<TableHeading>>, u64), DxError> {
    let mut headings = Vec::new();
    let mut operations = 0;
    let mut current: Option<Segment> = None;
    for item in Records::new(raw) {
        let Record { kind, payload, start, end } = item?;
        match kind {
            RECORD_HEADING => {
                let heading: TableHeading = codec::decode("heading", payload)?;
                record::check_heading(&heading)?;
                headings.push(Arc::new(heading));
            }
            RECORD_UNIT => {
                if payload.len() != 8 {
                    return Err(DxError::Damaged { what: "a unit record has another length", at: start as u64 });
                }
                let unit = TxnId(i64::from_le_bytes(fixed(payload)));
                if unit < header.first || unit > header.last {
                    return Err(DxError::Content(format!("unit {unit} lies outside of the range {}..{}", header.first, header.last)));
                }
                if current.is_some_and(|current| unit <= current.unit) {
                    return Err(DxError::Content(format!("unit {unit} does not ascend in frame {frame}")));
                }
                segments.extend(current.take());
                current = Some(Segment { unit, frame, start: end, end, operations: 0 });
            }
            RECORD_OPERATION => {
                let (index, _) = record::split_operation(payload)?;
                let Some(segment) = current.as_mut().filter(|_| index < headings.len()) else {
                    return Err(DxError::Content(format!("an operation before its unit or heading in frame {frame}")));
                };
                segment.end = end;
                segment.operations += 1;
                operations += 1;
            }
            RECORD_SCHEMA | RECORD_MARK | RECORD_RESET | RECORD_CONFIRM => {
                let Some(segment) = current.as_mut() else {
                    return Err(DxError::Content(format!("a control before its unit in frame {frame}")));
                };
                segment.end = end;
                let told = controls.entry(segment.unit).or_default();
                match kind {
                    RECORD_SCHEMA => told.schema.push(codec::decode("schema object", payload)?),
                    RECORD_MARK => told.marks.push(codec::decode("mark", payload)?),
                    RECORD_CONFIRM => {
                        let confirm = codec::decode("confirm", payload)?;
                        record::check_confirm(&confirm)?;
                        told.confirms.push(confirm);
                    }
                    _ if payload.is_empty() => told.reset = true,
                    _ => return Err(DxError::Damaged { what: "a reset record has a payload", at: start as u64 }),
                }
            }
            other => return Err(DxError::UnknownRecord { kind: other, frame }),
        }
    }
    segments.extend(current);
    Ok((headings, operations))
}

/// See [`DownloadReader::operations`].
#[derive(Debug)]
pub struct Operations<'a, R> {
    reader: &'a mut DownloadReader<R>,
    segment: usize,
    frame: Option<(usize, Arc<Vec<u8>>)>,
    /// Offset within the segment's frame; 0 before its first record.
    at: usize,
}

impl<R: Read + Seek> Operations<'_, R> {
    /// Returns the next operation; of a unit alone, if one is given.
    fn read(&mut self, only: Option<TxnId>) -> Result<Option<(TxnId, Arc<TableHeading>, Operation)>, DxError> {
        while let Some(segment) = self.reader.segments.get(self.segment).copied().filter(|next| only.is_none_or(|unit| unit == next.unit)) {
            let raw = match &self.frame {
                Some((frame, raw)) if *frame == segment.frame => raw.clone(),
                _ => {
                    let raw = self.reader.file.frame(segment.frame)?;
                    self.frame = Some((segment.frame, raw.clone()));
                    raw
                }
            };
            let from = self.at.max(segment.start);
            let bytes = raw.get(from..segment.end).unwrap_or_default();
            for item in Records::new(bytes) {
                let found = item?;
                self.at = from + found.end;
                // Headings between operations were indexed at open.
                if found.kind == RECORD_OPERATION {
                    let (index, operation) = record::split_operation(found.payload)?;
                    let heading = self.reader.headings.get(segment.frame).and_then(|headings| headings.get(index)).cloned();
                    let heading = heading.ok_or_else(|| DxError::Content("an operation without heading".to_owned()))?;
                    let operation = record::decode_operation(operation, &heading)?;
                    return Ok(Some((segment.unit, heading, operation)));
                }
            }
            self.segment += 1;
            self.at = 0;
        }
        Ok(None)
    }
}

impl<R: Read + Seek> Iterator for Operations<'_, R> {
    type Item = Result<(TxnId, Arc<TableHeading>, Operation), DxError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.read(None).transpose();
        if matches!(item, Some(Err(_))) {
            self.segment = self.reader.segments.len();
        }
        item
    }
}

/// A unit that comes next, before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitSize {
    /// The unit.
    pub txn: TxnId,
    /// How many operations it has.
    pub operations: u64,
    /// Bytes of its records, uncompressed.
    pub bytes: u64,
}

/// See [`DownloadReader::units`].
#[derive(Debug)]
pub struct Units<'a, R> {
    /// Stands at the first segment of the next unit.
    operations: Operations<'a, R>,
    failed: bool,
}

impl<R: Read + Seek> Units<'_, R> {
    fn segments(&self) -> impl Iterator<Item = &Segment> {
        let rest = self.operations.reader.segments.get(self.operations.segment..).unwrap_or_default();
        let unit = rest.first().map(|segment| segment.unit);
        rest.iter().take_while(move |segment| Some(segment.unit) == unit)
    }

    /// Returns how large the next unit is; `None` behind the last, and after an error.
    pub fn next_size(&self) -> Option<UnitSize> {
        let txn = self.segments().next().filter(|_| !self.failed)?.unit;
        let (operations, bytes) = self
            .segments()
            .fold((0, 0), |(rows, bytes), segment| (rows + segment.operations, bytes + (segment.end - segment.start) as u64));
        Some(UnitSize { txn, operations, bytes })
    }

    /// Returns what the next unit tells beside operations.
    pub fn next_controls(&self) -> UnitControls {
        let unit = self.segments().next().map(|segment| segment.unit);
        unit.and_then(|unit| self.operations.reader.controls.get(&unit)).cloned().unwrap_or_default()
    }

    /// Passes the next unit over.
    pub fn skip_unit(&mut self) {
        self.operations.segment += self.segments().count();
    }

    /// Returns the next operation of that unit, which must be the one that comes next; `None` behind its last, and the unit is passed.
    /// For units too large for memory.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn next_operation(&mut self, unit: TxnId) -> Result<Option<(Arc<TableHeading>, Operation)>, DxError> {
        if self.failed {
            return Ok(None);
        }
        let read = self.operations.read(Some(unit));
        self.failed = read.is_err();
        Ok(read?.map(|(_, heading, operation)| (heading, operation)))
    }
}

impl<R: Read + Seek> Iterator for Units<'_, R> {
    type Item = Result<Unit, DxError>;

    fn next(&mut self) -> Option<Self::Item> {
        let UnitSize { txn, .. } = self.next_size()?;
        let mut unit = Unit { txn, controls: self.next_controls(), operations: Vec::new() };
        loop {
            match self.next_operation(txn) {
                Ok(Some(operation)) => unit.operations.push(operation),
                Ok(None) => return Some(Ok(unit)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
