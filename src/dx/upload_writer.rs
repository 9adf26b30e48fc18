//! Writing upload files: the units of a local database, in order.

use crate::base::ids::UnitNo;
use crate::base::limits::{DX_FRAME_RAW_BYTES_GOAL, UPLOAD_PIECE_BYTES};
use crate::dx::codec;
use crate::dx::error::DxError;
use crate::dx::format::*;
use crate::dx::frame::{RawFrame, Sealer};
use crate::dx::header::Header;
use crate::dx::record;
use crate::dx::upload::{self, UnitCheck};
use crate::dx::writer::{FileSummary, FileWriter};
use crate::model::event::TableHeading;
use crate::model::upload::{RowChange, UploadHead, UploadUnit};
use std::collections::HashMap;
use std::io::Write;

/// Writes the units of one upload file, compressed as they come; what is compressed leaves memory at once. After an error it can only
/// be dropped.
#[derive(Debug)]
pub struct UploadWriter<'o> {
    sealer: Sealer,
    current: RawFrame,
    /// Numbers of the headings that the open frame has.
    headings: HashMap<TableHeading, u16>,
    file: FileWriter<'o>,
    header: Header,
    last: Option<UnitNo>,
    open: Option<UnitCheck>,
}

impl UploadWriter<'_> {
    /// Begins a file; the header's range is the unit numbers.
    ///
    /// # Errors
    /// If the header is not an upload's or breaks a rule, zstd refuses the level, or `out` fails.
    pub fn begin<'o>(header: &Header, zstd_level: i32, out: &'o mut dyn Write) -> Result<UploadWriter<'o>, DxError> {
        upload::check_header(header)?;
        Ok(UploadWriter {
            sealer: Sealer::new(zstd_level)?,
            current: RawFrame::default(),
            headings: HashMap::new(),
            file: FileWriter::begin(header, out)?,
            header: header.clone(),
            last: None,
            open: None,
        })
    }

    /// Appends a unit; a large one spans frames.
    ///
    /// # Errors
    /// If units do not ascend or lie outside of the header's range, a change does not fit, or something is over its limit.
    pub fn unit(&mut self, unit: &UploadUnit) -> Result<(), DxError> {
        self.begin_unit(&unit.head)?;
        unit.changes.iter().try_for_each(|(heading, change)| self.change(heading, change))?;
        self.end_unit()
    }

    /// Begins a unit whose changes follow one by one, as many as its head says.
    ///
    /// # Errors
    /// As [`UploadWriter::unit`].
    pub fn begin_unit(&mut self, head: &UploadHead) -> Result<(), DxError> {
        self.end_unit()?;
        self.open = Some(UnitCheck::begin(&self.header, head, self.last)?);
        self.last = Some(head.number);
        record::append(&mut self.current.bytes, RECORD_UPLOAD_UNIT, |out| codec::encode_into("unit", head, out))?;
        self.enter()
    }

    /// Appends a change to the open unit.
    ///
    /// # Errors
    /// As [`UploadWriter::unit`].
    pub fn change(&mut self, heading: &TableHeading, change: &RowChange) -> Result<(), DxError> {
        let Some(open) = &mut self.open else {
            return Err(DxError::Content(format!("upload file {}: a change before its unit", self.header.file_no)));
        };
        record::check_heading(heading)?;
        let bytes = upload::encode_change(heading, change)?;
        open.change(heading, change)?;
        let mut rest = bytes.as_slice();
        while let Some((piece, more)) = rest.split_at_checked(UPLOAD_PIECE_BYTES) {
            record::append(&mut self.current.bytes, RECORD_UPLOAD_PIECE, |out| {
                out.extend_from_slice(piece);
                Ok(())
            })?;
            self.enter()?;
            self.seal()?;
            rest = more;
        }
        let index = self.heading(heading)?;
        record::append(&mut self.current.bytes, RECORD_UPLOAD_CHANGE, |out| {
            out.extend_from_slice(&index.to_le_bytes());
            out.extend_from_slice(rest);
            Ok(())
        })?;
        self.current.operations += 1;
        self.enter()?;
        if self.current.bytes.len() >= DX_FRAME_RAW_BYTES_GOAL {
            self.seal()?;
        }
        Ok(())
    }

    /// Ends the open unit, if there is one.
    ///
    /// # Errors
    /// If it has fewer changes than its head says.
    pub fn end_unit(&mut self) -> Result<(), DxError> {
        self.open.take().map_or(Ok(()), |open| open.end())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// If a unit is not complete, or zstd or the output fails.
    pub fn finish(mut self) -> Result<FileSummary, DxError> {
        self.end_unit()?;
        self.seal()?;
        self.file.finish()
    }

    /// Returns the bytes of a file of `units`, and its hashes.
    ///
    /// # Errors
    /// As [`UploadWriter::unit`].
    pub fn assemble(header: &Header, units: &[UploadUnit], zstd_level: i32) -> Result<(Vec<u8>, FileSummary), DxError> {
        let mut bytes = Vec::new();
        let mut writer = UploadWriter::begin(header, zstd_level, &mut bytes)?;
        units.iter().try_for_each(|unit| writer.unit(unit))?;
        let summary = writer.finish()?;
        Ok((bytes, summary))
    }

    /// Notes that the open frame has a part of the open unit.
    fn enter(&mut self) -> Result<(), DxError> {
        if let Some(number) = self.last {
            let unit = upload::position(number)?;
            if self.current.units.last() != Some(&unit) {
                self.current.units.push(unit);
            }
        }
        Ok(())
    }

    /// Returns the number of a heading in the open frame.
    fn heading(&mut self, heading: &TableHeading) -> Result<u16, DxError> {
        if let Some(index) = self.headings.get(heading) {
            return Ok(*index);
        }
        let index = u16::try_from(self.headings.len()).map_err(|_| DxError::Content("more than 65,536 tables in a frame".to_owned()))?;
        record::append(&mut self.current.bytes, RECORD_HEADING, |out| codec::encode_into("heading", heading, out))?;
        self.headings.insert(heading.clone(), index);
        Ok(index)
    }

    fn seal(&mut self) -> Result<(), DxError> {
        self.headings.clear();
        if self.current.bytes.is_empty() {
            return Ok(());
        }
        let frame = self.sealer.seal(std::mem::take(&mut self.current))?;
        self.file.frame(&frame)
    }
}
