//! What stands in an upload file: changes as bytes, what must hold of a unit, and the hash that tells a repeated unit from another
//! one under its number. Writer and reader keep to the same rules.

use crate::base::ids::{ContentHash, InstallId, TxnId, UnitNo};
use crate::base::limits::{UPLOAD_CHANGE_BYTES_MAX, UPLOAD_UNIT_BYTES_MAX};
use crate::dx::codec;
use crate::dx::error::DxError;
use crate::dx::format::UNIT_HASH_DOMAIN;
use crate::dx::header::{DxDirection, Header};
use crate::dx::record::{check_value, check_values};
use crate::dx::writer::expect_direction;
use crate::model::event::TableHeading;
use crate::model::keycode;
use crate::model::upload::{RowChange, UploadHead, UploadUnit};
use crate::model::value::Value;
use sha2::{Digest, Sha256};
use std::collections::HashSet;

/// Returns a change's bytes, as they stand in an upload file and in `dock_change.body`.
///
/// # Errors
/// If it does not fit its heading, or is over a limit.
pub fn encode_change(heading: &TableHeading, change: &RowChange) -> Result<Vec<u8>, DxError> {
    check_change(heading, change)?;
    let mut out = Vec::new();
    codec::encode_up_to::<UPLOAD_CHANGE_BYTES_MAX, _>("change", change, &mut out)?;
    Ok(out)
}

/// Returns the change that `bytes` stand for.
///
/// # Errors
/// If they stand for none, or it does not fit its heading.
pub fn decode_change(heading: &TableHeading, bytes: &[u8]) -> Result<RowChange, DxError> {
    let change: RowChange = codec::decode_up_to::<UPLOAD_CHANGE_BYTES_MAX, _>("change", bytes)?;
    check_change(heading, &change)?;
    Ok(change)
}

/// Checks a change against its heading, so that nobody behind has to: indices, lengths, sizes, and that no value is NaN.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_change(heading: &TableHeading, change: &RowChange) -> Result<(), DxError> {
    let refuse = |why: &str| {
        let key = crate::model::value::display_key(&change.key(&heading.key));
        Err(DxError::Content(format!("table `{}`, row {key}: {why}", heading.name)))
    };
    let columns = heading.columns.len();
    let row_fits = |row: &[Value]| row.len() == columns;
    match change {
        RowChange::Insert { row } if !row_fits(row) => return refuse("it has another number of columns than the heading"),
        RowChange::Insert { row } => check_values(row)?,
        RowChange::Update { key, fields, whole } => {
            if key.len() != heading.key.len() {
                return refuse("the key has another number of columns than the heading");
            }
            if !whole.as_ref().is_none_or(|row| row_fits(row)) {
                return refuse("the whole row has another number of columns than the heading");
            }
            let mut seen = vec![false; columns];
            for field in fields {
                match seen.get_mut(usize::from(field.column)) {
                    None => return refuse("a changed column is not in the heading"),
                    Some(true) => return refuse("a column is changed twice"),
                    Some(place) => *place = true,
                }
                [&field.before, &field.base, &field.after].into_iter().try_for_each(check_value)?;
            }
            check_values(key)?;
            whole.as_deref().map_or(Ok(()), check_values)?;
        }
        RowChange::Delete { key, before, base } => {
            if key.len() != heading.key.len() {
                return refuse("the key has another number of columns than the heading");
            }
            if !row_fits(before) || !base.as_ref().is_none_or(|row| row_fits(row)) {
                return refuse("the deleted row has another number of columns than the heading");
            }
            [key, before].into_iter().chain(base).try_for_each(|values| check_values(values))?;
        }
    }
    Ok(())
}

/// Returns about how many bytes a change takes in memory, of which a unit may have [`UPLOAD_UNIT_BYTES_MAX`].
pub fn weight(change: &RowChange) -> u64 {
    let of = |values: &[Value]| values.iter().map(|value| 32 + value.size() as u64).sum::<u64>();
    64 + match change {
        RowChange::Insert { row } => of(row),
        RowChange::Update { key, fields, whole } => {
            let of_fields = fields.iter().map(|field| 96 + (field.before.size() + field.base.size() + field.after.size()) as u64);
            of(key) + of_fields.sum::<u64>() + whole.as_deref().map_or(0, of)
        }
        RowChange::Delete { key, before, base } => of(key) + of(before) + base.as_deref().map_or(0, of),
    }
}

/// Checks what holds in the header of every upload.
pub(crate) fn check_header(header: &Header) -> Result<(), DxError> {
    expect_direction(header, DxDirection::Upload)?;
    header.check()?;
    let refuse = |why: &str| Err(DxError::Content(format!("header of upload file {}: {why}", header.file_no)));
    if header.first.0 < 1 {
        refuse("unit numbers begin at 1")
    } else if header.install_id == InstallId::default() {
        refuse("it does not say which local database wrote it")
    } else if header.applied_unit.0 < 0 {
        refuse("its applied unit is negative")
    } else {
        Ok(())
    }
}

/// Returns a unit's number as the log position that a header's range is made of.
pub(crate) fn position(number: UnitNo) -> Result<TxnId, DxError> {
    i64::try_from(number.0).map(TxnId).map_err(|_| DxError::TooLarge { what: "unit number", value: number.0, limit: i64::MAX as u64 })
}

/// The rules of one unit, while its changes go by.
#[derive(Debug)]
pub(crate) struct UnitCheck {
    number: UnitNo,
    announced: u64,
    found: u64,
    weight: u64,
    /// Rows named so far; inserted ones apart, since a key may be free after another row's key was changed.
    rows: HashSet<[u8; 16]>,
}

impl UnitCheck {
    /// Begins a unit that follows unit `last` in a file.
    pub(crate) fn begin(header: &Header, head: &UploadHead, last: Option<UnitNo>) -> Result<UnitCheck, DxError> {
        let Header { file_no, first, last: end, .. } = header;
        let number = head.number;
        let refuse = |why: String| Err(DxError::Content(format!("upload file {file_no}, unit {number}: {why}")));
        if !(*first..=*end).contains(&position(number)?) {
            return refuse(format!("it lies outside of the range {first}..{end}"));
        }
        if let Some(last) = last.filter(|last| number <= *last) {
            return refuse(format!("it does not ascend after unit {last}"));
        }
        if head.applied.0 < 0 {
            return refuse("the unit that was applied is negative".to_owned());
        }
        if let Some(hidden) = head.hidden.iter().find(|hidden| **hidden >= number) {
            return refuse(format!("unit {hidden} cannot have been hidden, it comes later"));
        }
        Ok(UnitCheck { number, announced: head.changes, found: 0, weight: 0, rows: HashSet::new() })
    }

    /// Takes the next change, which fits its heading.
    pub(crate) fn change(&mut self, heading: &TableHeading, change: &RowChange) -> Result<(), DxError> {
        self.count()?;
        self.weight += weight(change);
        if self.weight > UPLOAD_UNIT_BYTES_MAX {
            return Err(DxError::TooLarge { what: "unit of an upload", value: self.weight, limit: UPLOAD_UNIT_BYTES_MAX });
        }
        let key = change.key(&heading.key);
        let mut hash = Sha256::new();
        hash.update(heading.name.to_ascii_lowercase());
        hash.update([0, u8::from(matches!(change, RowChange::Insert { .. }))]);
        hash.update(keycode::encode(&key));
        let hash: [u8; 32] = hash.finalize().into();
        let hash = hash.first_chunk::<16>().copied().unwrap_or_default();
        if !self.rows.insert(hash) {
            let key = crate::model::value::display_key(&key);
            return Err(DxError::Content(format!("unit {}: table `{}`, row {key}: it is named twice", self.number, heading.name)));
        }
        Ok(())
    }

    /// Counts a change that is not looked at.
    pub(crate) fn count(&mut self) -> Result<(), DxError> {
        self.found += 1;
        if self.found > self.announced {
            return Err(DxError::Content(format!("unit {} has more changes than the {} of its head", self.number, self.announced)));
        }
        Ok(())
    }

    /// Whether all changes came.
    pub(crate) fn is_complete(&self) -> bool {
        self.found == self.announced
    }

    /// Checks that nothing is missing.
    pub(crate) fn end(&self) -> Result<(), DxError> {
        if self.is_complete() {
            return Ok(());
        }
        Err(DxError::Content(format!("unit {} has {} changes, its head says {}", self.number, self.found, self.announced)))
    }
}

/// The hash of a unit whose changes go by one at a time; see [`UploadUnit::content_hash`].
#[derive(Debug)]
pub struct UnitHash {
    hash: Sha256,
}

impl UnitHash {
    /// Begins with the number of the unit.
    pub fn begin(number: UnitNo) -> UnitHash {
        let mut hash = Sha256::new();
        hash.update(UNIT_HASH_DOMAIN);
        hash.update(number.0.to_le_bytes());
        UnitHash { hash }
    }

    /// Takes the next change.
    ///
    /// # Errors
    /// If it does not fit its heading, or is over a limit.
    pub fn change(&mut self, heading: &TableHeading, change: &RowChange) -> Result<(), DxError> {
        let heading_bytes = codec::encode("heading", heading)?;
        for bytes in [heading_bytes, encode_change(heading, change)?] {
            self.hash.update((bytes.len() as u64).to_le_bytes());
            self.hash.update(&bytes);
        }
        Ok(())
    }

    /// Returns the hash.
    pub fn finish(self) -> ContentHash {
        ContentHash(self.hash.finalize().into())
    }
}

impl UploadUnit {
    /// Returns the hash of what the unit does: its number, and its changes with their headings, in order. Where it was cut, what had been
    /// applied, its label and the file that it came in do not count: a unit that is sent again is the same unit (R16).
    ///
    /// # Errors
    /// If a change does not fit its heading, or is over a limit.
    pub fn content_hash(&self) -> Result<ContentHash, DxError> {
        let mut hash = UnitHash::begin(self.head.number);
        self.changes.iter().try_for_each(|(heading, change)| hash.change(heading, change))?;
        Ok(hash.finish())
    }
}
