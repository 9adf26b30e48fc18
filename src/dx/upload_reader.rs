//! Reading upload files, which come from outside: `open` looks at every record of the file once, and only a file without a fault hands
//! out its units, one at a time or change by change.

use crate::base::ids::UnitNo;
use crate::base::limits::UPLOAD_CHANGE_BYTES_MAX;
use crate::dx::codec;
use crate::dx::error::DxError;
use crate::dx::format::*;
use crate::dx::header::{DxDirection, Header};
use crate::dx::reader::DxFile;
use crate::dx::record::{self, Record, Records};
use crate::dx::upload::{self, UnitCheck};
use crate::dx::writer::FileSummary;
use crate::model::event::TableHeading;
use crate::model::upload::{RowChange, UploadHead, UploadUnit};
use std::borrow::Cow;
use std::io::{Read, Seek};
use std::sync::Arc;

/// An upload file, checked whole.
#[derive(Debug)]
pub struct UploadReader<R> {
    file: DxFile<R>,
}

impl<R: Read + Seek> UploadReader<R> {
    /// Reads and checks a whole file: besides what every file must hold, that units ascend within the header's range, have as many
    /// changes as they say, name no row twice, and that each change fits its heading.
    ///
    /// # Errors
    /// Whatever is wrong with it; nothing of a file that is not whole can be reached.
    pub fn open(source: R) -> Result<UploadReader<R>, DxError> {
        let mut scan = Scan::default();
        let mut units = 0;
        let file = DxFile::open(source, DxDirection::Upload, |header, frame, raw| {
            if frame == 0 {
                upload::check_header(header)?;
            }
            let mut changes = 0;
            scan.begin_frame();
            for item in Records::new(raw) {
                match scan.take(header, frame, item?)? {
                    Found::Nothing => {}
                    Found::Head(_) => units += 1,
                    Found::Change(heading, bytes) => {
                        let change = upload::decode_change(&heading, &bytes)?;
                        scan.check(&heading, &change)?;
                        changes += 1;
                    }
                }
            }
            Ok(changes)
        })?;
        upload::check_header(&file.header)?;
        scan.end()?;
        file.expect_units(units)?;
        Ok(UploadReader { file })
    }

    /// Returns the header.
    pub fn header(&self) -> &Header {
        &self.file.header
    }

    /// Returns counts and hashes; operations are changes.
    pub fn summary(&self) -> &FileSummary {
        &self.file.summary
    }

    /// Returns the units in order; memory holds one at a time.
    pub fn units(&mut self) -> UploadUnits<'_, R> {
        UploadUnits { reader: self, scan: Scan::default(), frame: 0, at: 0, raw: None, failed: false }
    }

    /// Returns the heads of the units in order; changes are passed over.
    pub fn heads(&mut self) -> UploadHeads<'_, R> {
        UploadHeads { units: self.units() }
    }
}

/// What a record gave.
enum Found<'a> {
    /// A heading, or a piece.
    Nothing,
    /// A unit began.
    Head(UploadHead),
    /// A change of the open unit, not decoded.
    Change(Arc<TableHeading>, Cow<'a, [u8]>),
}

/// Goes over the records of all frames in order.
#[derive(Debug, Default)]
struct Scan {
    headings: Vec<Arc<TableHeading>>,
    open: Option<UnitCheck>,
    last: Option<UnitNo>,
    /// Pieces of a change whose last one did not come yet.
    pieces: Vec<u8>,
}

impl Scan {
    fn begin_frame(&mut self) {
        self.headings.clear();
    }

    fn take<'a>(&mut self, header: &Header, frame: usize, found: Record<'a>) -> Result<Found<'a>, DxError> {
        let refuse = |why: &str| Err(DxError::Content(format!("{why} in frame {frame}")));
        match found.kind {
            RECORD_HEADING => {
                let heading: TableHeading = codec::decode("heading", found.payload)?;
                record::check_heading(&heading)?;
                self.headings.push(Arc::new(heading));
                Ok(Found::Nothing)
            }
            RECORD_UPLOAD_UNIT => {
                self.end()?;
                let head: UploadHead = codec::decode("unit", found.payload)?;
                self.open = Some(UnitCheck::begin(header, &head, self.last)?);
                self.last = Some(head.number);
                Ok(Found::Head(head))
            }
            RECORD_UPLOAD_PIECE | RECORD_UPLOAD_CHANGE => {
                if self.open.as_ref().is_none_or(UnitCheck::is_complete) {
                    return refuse("a change that belongs to no unit");
                }
                let is_piece = found.kind == RECORD_UPLOAD_PIECE;
                let (index, bytes) = if is_piece { (0, found.payload) } else { record::split_operation(found.payload)? };
                let length = self.pieces.len() + bytes.len();
                if length > UPLOAD_CHANGE_BYTES_MAX {
                    return Err(DxError::TooLarge { what: "change", value: length as u64, limit: UPLOAD_CHANGE_BYTES_MAX as u64 });
                }
                if is_piece {
                    self.pieces.extend_from_slice(bytes);
                    return Ok(Found::Nothing);
                }
                let Some(heading) = self.headings.get(index).cloned() else {
                    return refuse("a change before its heading");
                };
                if self.pieces.is_empty() {
                    return Ok(Found::Change(heading, Cow::Borrowed(bytes)));
                }
                let mut whole = std::mem::take(&mut self.pieces);
                whole.extend_from_slice(bytes);
                Ok(Found::Change(heading, Cow::Owned(whole)))
            }
            kind => Err(DxError::UnknownRecord { kind, frame }),
        }
    }

    /// Checks a change of the open unit against the ones before it.
    fn check(&mut self, heading: &TableHeading, change: &RowChange) -> Result<(), DxError> {
        self.open.as_mut().map_or(Ok(()), |open| open.change(heading, change))
    }

    /// Counts a change of a file that was checked.
    fn count(&mut self) -> Result<(), DxError> {
        self.open.as_mut().map_or(Ok(()), UnitCheck::count)
    }

    fn is_complete(&self) -> bool {
        self.open.as_ref().is_none_or(UnitCheck::is_complete)
    }

    fn end(&self) -> Result<(), DxError> {
        if !self.pieces.is_empty() {
            return Err(DxError::Content("a change without its last piece".to_owned()));
        }
        self.open.as_ref().map_or(Ok(()), UnitCheck::end)
    }
}

/// See [`UploadReader::units`].
#[derive(Debug)]
pub struct UploadUnits<'a, R> {
    reader: &'a mut UploadReader<R>,
    scan: Scan,
    frame: usize,
    /// Offset within that frame.
    at: usize,
    /// Its uncompressed bytes.
    raw: Option<Arc<Vec<u8>>>,
    failed: bool,
}

impl<R: Read + Seek> UploadUnits<'_, R> {
    /// Returns the head of the next unit; changes of the one before that were not asked for are passed over.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn next_head(&mut self) -> Result<Option<UploadHead>, DxError> {
        loop {
            match self.read(false)? {
                Some(Item::Head(head)) => return Ok(Some(head)),
                Some(Item::Change(..) | Item::Passed) => {}
                None => return Ok(None),
            }
        }
    }

    /// Returns the next change of the unit whose head was given last; `None` behind its last. For units too large for memory.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn next_change(&mut self) -> Result<Option<(Arc<TableHeading>, RowChange)>, DxError> {
        while !self.failed && !self.scan.is_complete() {
            match self.read(true)? {
                Some(Item::Change(heading, change)) => return Ok(Some((heading, change))),
                Some(Item::Passed) => {}
                Some(Item::Head(_)) | None => {
                    self.failed = true;
                    return Err(DxError::Content("the file changed while it was being read".to_owned()));
                }
            }
        }
        Ok(None)
    }

    fn read(&mut self, decode: bool) -> Result<Option<Item>, DxError> {
        if self.failed {
            return Ok(None);
        }
        let item = self.read_record(decode);
        self.failed = item.is_err();
        item
    }

    fn read_record(&mut self, decode: bool) -> Result<Option<Item>, DxError> {
        while self.frame < self.reader.file.frames() {
            let raw = match &self.raw {
                Some(raw) => raw.clone(),
                None => {
                    self.scan.begin_frame();
                    self.raw.insert(self.reader.file.frame(self.frame)?).clone()
                }
            };
            let from = self.at;
            if let Some(item) = Records::new(raw.get(from..).unwrap_or_default()).next() {
                let record = item?;
                self.at = from + record.end;
                return Ok(Some(match self.scan.take(&self.reader.file.header, self.frame, record)? {
                    Found::Nothing => Item::Passed,
                    Found::Head(head) => Item::Head(head),
                    Found::Change(heading, bytes) => {
                        self.scan.count()?;
                        if decode { Item::Change(heading.clone(), upload::decode_change(&heading, &bytes)?) } else { Item::Passed }
                    }
                }));
            }
            self.frame += 1;
            self.at = 0;
            self.raw = None;
        }
        Ok(None)
    }
}

enum Item {
    Head(UploadHead),
    Change(Arc<TableHeading>, RowChange),
    Passed,
}

impl<R: Read + Seek> Iterator for UploadUnits<'_, R> {
    type Item = Result<UploadUnit, DxError>;

    fn next(&mut self) -> Option<Self::Item> {
        let head = match self.next_head() {
            Ok(Some(head)) => head,
            Ok(None) => return None,
            Err(error) => return Some(Err(error)),
        };
        let mut unit = UploadUnit { head, changes: Vec::new() };
        loop {
            match self.next_change() {
                Ok(Some(change)) => unit.changes.push(change),
                Ok(None) => return Some(Ok(unit)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// See [`UploadReader::heads`].
#[derive(Debug)]
pub struct UploadHeads<'a, R> {
    units: UploadUnits<'a, R>,
}

impl<R: Read + Seek> Iterator for UploadHeads<'_, R> {
    type Item = Result<UploadHead, DxError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.units.next_head().transpose()
    }
}
