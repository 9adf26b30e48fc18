//! Reading txnproc files. A unit may be larger than memory, so it is handed out in parts; a small one is one part.

use crate::base::ids::TxnId;
use crate::base::limits::DX_PART_BYTES_GOAL;
use crate::dx::codec;
use crate::dx::error::DxError;
use crate::dx::format::*;
use crate::dx::header::{DxDirection, Header};
use crate::dx::reader::DxFile;
use crate::dx::record::{self, Record, Records, UnitBegin, UnitBeginV1, UnitEnd, UnitEndV2};
use crate::dx::writer::FileSummary;
use crate::model::event::UnitEvents;
use std::io::{Read, Seek};

/// A txnproc file, checked whole.
#[derive(Debug)]
pub struct TxnprocReader<R> {
    file: DxFile<R>,
}

impl<R: Read + Seek> TxnprocReader<R> {
    /// Reads and checks a whole file.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn open(source: R) -> Result<TxnprocReader<R>, DxError> {
        let mut units = 0;
        let file = DxFile::open(source, DxDirection::Txnproc, |_, frame, raw| {
            let mut rows = 0;
            for item in Records::new(raw) {
                match item?.kind {
                    RECORD_UNIT_BEGIN => units += 1,
                    RECORD_UNIT_ROW => rows += 1,
                    RECORD_UNIT_TABLE | RECORD_UNIT_KEY | RECORD_UNIT_NODE => {}
                    RECORD_UNIT_SCHEMA | RECORD_UNIT_WHOLE_SCHEMA | RECORD_UNIT_MARK | RECORD_UNIT_CONFIRM | RECORD_UNIT_END => {}
                    kind => return Err(DxError::UnknownRecord { kind, frame }),
                }
            }
            Ok(rows)
        })?;
        file.expect_units(units)?;
        Ok(TxnprocReader { file })
    }

    /// Returns the header.
    pub fn header(&self) -> &Header {
        &self.file.header
    }

    /// Returns counts and hashes.
    pub fn summary(&self) -> &FileSummary {
        &self.file.summary
    }

    /// Returns the units in ascending order, large ones in parts of about [`DX_PART_BYTES_GOAL`].
    pub fn parts(&mut self) -> UnitParts<'_, R> {
        self.parts_of(DX_PART_BYTES_GOAL)
    }

    /// As [`TxnprocReader::parts`], with another size of the parts.
    pub fn parts_of(&mut self, goal: usize) -> UnitParts<'_, R> {
        // A unit of version 1 ends with its last row, which only all of its rows tell.
        let goal = if self.file.version == 1 { usize::MAX } else { goal };
        UnitParts { reader: self, goal, frame: 0, at: 0, last: None, open: None, failed: false }
    }

    /// Returns the units in ascending order, each whole, whatever its size.
    pub fn units(&mut self) -> TxnprocUnits<'_, R> {
        TxnprocUnits { parts: self.parts_of(usize::MAX) }
    }
}

/// A part of a unit.
#[derive(Debug, Clone, Copy)]
pub struct UnitPart<'u> {
    /// The unit with the rows of this part. Schema, node events, marks and confirms are the same in every part and all there in the first;
    /// headings and keys grow from part to part, and their numbers stay.
    pub unit: &'u UnitEvents,
    /// Whether this is its first part.
    pub is_first: bool,
    /// Whether this is its last part.
    pub is_last: bool,
}

/// A unit that was begun and not yet handed out to its end.
#[derive(Debug, Default)]
struct OpenUnit {
    events: UnitEvents,
    /// A unit of version 1 says at its beginning how long it is.
    begun_v1: Option<UnitBeginV1>,
    /// Rows of the parts that were handed out.
    rows_before: u64,
    /// Parts that were handed out.
    parts: u64,
    /// Whether its end was read.
    ended: bool,
}

/// See [`TxnprocReader::parts`].
#[derive(Debug)]
pub struct UnitParts<'a, R> {
    reader: &'a mut TxnprocReader<R>,
    goal: usize,
    frame: usize,
    at: usize,
    last: Option<TxnId>,
    open: Option<OpenUnit>,
    failed: bool,
}

impl<R: Read + Seek> UnitParts<'_, R> {
    /// Returns the next part; `None` behind the last unit, and after an error.
    ///
    /// # Errors
    /// What is wrong with the unit. Parts of it that were handed out before are of no use then.
    pub fn next_part(&mut self) -> Result<Option<UnitPart<'_>>, DxError> {
        if self.failed {
            return Ok(None);
        }
        match self.read() {
            Err(error) => {
                self.failed = true;
                Err(error)
            }
            Ok(false) => Ok(None),
            Ok(true) => Ok(self.open.as_ref().map(|open| UnitPart { unit: &open.events, is_first: open.parts == 1, is_last: open.ended })),
        }
    }

    /// Reads the next part into `open`; `false` if there is none.
    fn read(&mut self) -> Result<bool, DxError> {
        match &mut self.open {
            Some(open) if open.ended => self.open = None,
            Some(open) => {
                open.rows_before += open.events.rows.len() as u64;
                open.events.rows.clear();
            }
            None => {}
        }
        let mut bytes = 0;
        while self.frame < self.reader.file.frames() {
            let raw = self.reader.file.frame(self.frame)?;
            let from = self.at;
            for item in Records::new(raw.get(from..).unwrap_or_default()) {
                let found = item?;
                self.at = from + found.end;
                if found.kind == RECORD_UNIT_ROW {
                    bytes += found.payload.len();
                }
                self.take(found)?;
                if self.open.as_ref().is_some_and(|open| open.ended || bytes >= self.goal) {
                    return self.check_part().map(|()| true);
                }
            }
            self.frame += 1;
            self.at = 0;
        }
        match &self.open {
            None => Ok(false),
            Some(open) => Err(DxError::Content(format!("unit {} is not complete", open.events.unit))),
        }
    }

    /// Adds a record to the open unit.
    fn take(&mut self, found: Record<'_>) -> Result<(), DxError> {
        let version = self.reader.file.version;
        let is_v1 = version == 1;
        let Some(open) = &mut self.open else {
            if found.kind != RECORD_UNIT_BEGIN {
                return Err(DxError::Content(format!("a record outside of its unit in frame {}", self.frame)));
            }
            let mut open = OpenUnit::default();
            if is_v1 {
                let begin: UnitBeginV1 = codec::decode("unit", found.payload)?;
                let (read_at_micros, revision) = (begin.read_at_micros, begin.revision);
                open.events = UnitEvents { unit: begin.unit, read_at_micros, revision, ..UnitEvents::default() };
                open.ended = begin.is_complete(&open.events);
                open.begun_v1 = Some(begin);
            } else {
                let UnitBegin { unit, read_at_micros, revision, day } = codec::decode("unit", found.payload)?;
                open.events = UnitEvents { unit, read_at_micros, revision, day, ..UnitEvents::default() };
            }
            self.open = Some(open);
            return Ok(());
        };
        let events = &mut open.events;
        let late = open.rows_before > 0 || !events.rows.is_empty();
        match found.kind {
            RECORD_UNIT_TABLE => events.tables.push(codec::decode("heading", found.payload)?),
            RECORD_UNIT_KEY => events.keys.push(codec::decode("key", found.payload)?),
            RECORD_UNIT_ROW => events.rows.push(codec::decode("row event", found.payload)?),
            RECORD_UNIT_NODE if !late => events.nodes.push(codec::decode("node event", found.payload)?),
            RECORD_UNIT_SCHEMA if !is_v1 && !late => events.schema.push(codec::decode("schema object", found.payload)?),
            RECORD_UNIT_WHOLE_SCHEMA if !is_v1 && !late => events.whole_schema.push(codec::decode("schema object", found.payload)?),
            RECORD_UNIT_MARK if !is_v1 && !late => events.marks.push(codec::decode("mark", found.payload)?),
            RECORD_UNIT_CONFIRM if version >= 3 && !late => events.confirms.push(codec::decode("confirm", found.payload)?),
            RECORD_UNIT_NODE | RECORD_UNIT_SCHEMA | RECORD_UNIT_WHOLE_SCHEMA | RECORD_UNIT_MARK | RECORD_UNIT_CONFIRM if !is_v1 || late => {
                return Err(DxError::Content(format!("unit {}: a record that belongs before its rows", events.unit)));
            }
            RECORD_UNIT_END if !is_v1 => {
                let counted: UnitEnd = match version {
                    2 => codec::decode::<UnitEndV2>("end of a unit", found.payload)?.into(),
                    _ => codec::decode("end of a unit", found.payload)?,
                };
                if counted != UnitEnd::of(events, open.rows_before) {
                    return Err(DxError::Content(format!("unit {} is not complete", events.unit)));
                }
                open.ended = true;
            }
            _ => return Err(DxError::Content(format!("a record outside of its unit in frame {}", self.frame))),
        }
        if let Some(begin) = &open.begun_v1 {
            open.ended = begin.is_complete(&open.events);
        }
        Ok(())
    }

    /// Checks what is about to be handed out.
    fn check_part(&mut self) -> Result<(), DxError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.parts += 1;
        let unit = open.events.unit;
        if open.parts == 1 {
            let header = &self.reader.file.header;
            if unit < header.first || unit > header.last || self.last.is_some_and(|last| unit <= last) {
                return Err(DxError::Content(format!("unit {unit} is out of order or outside of {}..{}", header.first, header.last)));
            }
            self.last = Some(unit);
        }
        record::check_unit(&open.events)
    }
}

/// See [`TxnprocReader::units`].
#[derive(Debug)]
pub struct TxnprocUnits<'a, R> {
    parts: UnitParts<'a, R>,
}

impl<R: Read + Seek> Iterator for TxnprocUnits<'_, R> {
    type Item = Result<UnitEvents, DxError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.parts.next_part() {
            Err(error) => Some(Err(error)),
            Ok(None) => None,
            // The one part is the whole unit.
            Ok(Some(_)) => self.parts.open.take().map(|open| Ok(open.events)),
        }
    }
}
