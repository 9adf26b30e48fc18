//! Records: kind, length, payload. The kind stands outside the encoding, so that an unknown one is refused by name.

use crate::base::ids::{Revision, TxnId};
use crate::base::limits::{COLUMNS_MAX, DX_RECORD_BYTES_MAX, VALUE_BYTES_MAX};
use crate::dx::codec;
use crate::dx::error::DxError;
use crate::dx::format::RECORD_HEADER_BYTES;
use crate::dx::header::fixed;
use crate::model::event::{NodeEvent, RowEvent, TableHeading, UnitEvents};
use crate::model::operation::Operation;
use crate::model::upload::{Confirm, Outcome};
use crate::model::value::Value;
use serde::{Deserialize, Serialize};

/// First record of a unit in a txnproc file of version 1. The counts say when the unit is complete; nothing is allocated by them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct UnitBeginV1 {
    pub(crate) unit: TxnId,
    pub(crate) read_at_micros: i64,
    pub(crate) revision: Revision,
    tables: u64,
    keys: u64,
    nodes: u64,
    rows: u64,
}

impl UnitBeginV1 {
    /// Returns whether nothing of the unit is missing.
    pub(crate) fn is_complete(&self, events: &UnitEvents) -> bool {
        let lengths = [(self.tables, events.tables.len()), (self.keys, events.keys.len()), (self.nodes, events.nodes.len())];
        self.rows == events.rows.len() as u64 && lengths.iter().all(|(count, length)| *count == *length as u64)
    }
}

/// First record of a unit in a txnproc file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitBegin {
    /// The unit.
    pub unit: TxnId,
    /// See [`UnitEvents::read_at_micros`].
    pub read_at_micros: i64,
    /// See [`UnitEvents::revision`].
    pub revision: Revision,
    /// See [`UnitEvents::day`].
    pub day: i64,
}

impl UnitBegin {
    /// Returns the first record of a unit.
    pub fn of(events: &UnitEvents) -> UnitBegin {
        UnitBegin { unit: events.unit, read_at_micros: events.read_at_micros, revision: events.revision, day: events.day }
    }
}

/// Last record of a unit in a txnproc file: how many records of each kind stand between it and the first. So a unit can be written
/// before its end is known, and still shows that it is whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UnitEnd {
    pub(crate) schema: u64,
    pub(crate) whole_schema: u64,
    pub(crate) tables: u64,
    pub(crate) keys: u64,
    pub(crate) nodes: u64,
    pub(crate) marks: u64,
    pub(crate) rows: u64,
    pub(crate) confirms: u64,
}

/// As [`UnitEnd`], in a file of version 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) struct UnitEndV2 {
    schema: u64,
    whole_schema: u64,
    tables: u64,
    keys: u64,
    nodes: u64,
    marks: u64,
    rows: u64,
}

impl From<UnitEndV2> for UnitEnd {
    fn from(end: UnitEndV2) -> UnitEnd {
        let UnitEndV2 { schema, whole_schema, tables, keys, nodes, marks, rows } = end;
        UnitEnd { schema, whole_schema, tables, keys, nodes, marks, rows, confirms: 0 }
    }
}

impl UnitEnd {
    /// Counts a unit; `rows_before` were handed out before the rows in `events`.
    pub(crate) fn of(events: &UnitEvents, rows_before: u64) -> UnitEnd {
        UnitEnd {
            schema: events.schema.len() as u64,
            whole_schema: events.whole_schema.len() as u64,
            tables: events.tables.len() as u64,
            keys: events.keys.len() as u64,
            nodes: events.nodes.len() as u64,
            marks: events.marks.len() as u64,
            rows: rows_before + events.rows.len() as u64,
            confirms: events.confirms.len() as u64,
        }
    }
}

/// Appends one record whose payload `fill` writes.
pub(crate) fn append(out: &mut Vec<u8>, kind: u8, fill: impl FnOnce(&mut Vec<u8>) -> Result<(), DxError>) -> Result<(), DxError> {
    let start = out.len();
    out.extend_from_slice(&[kind, 0, 0, 0, 0]);
    let filled = fill(out);
    let length = out.len() - start - RECORD_HEADER_BYTES;
    let result = filled.and_then(|()| {
        let fits = u32::try_from(length).ok().filter(|_| length <= DX_RECORD_BYTES_MAX);
        let Some(written) = fits else {
            return Err(DxError::TooLarge { what: "record", value: length as u64, limit: DX_RECORD_BYTES_MAX as u64 });
        };
        if let Some(place) = out.get_mut(start + 1..start + RECORD_HEADER_BYTES) {
            place.copy_from_slice(&written.to_le_bytes());
        }
        Ok(())
    });
    if result.is_err() {
        out.truncate(start);
    }
    result
}

/// One record of a frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    pub(crate) kind: u8,
    pub(crate) payload: &'a [u8],
    /// Offset of the record in the uncompressed frame.
    pub(crate) start: usize,
    /// Offset behind it.
    pub(crate) end: usize,
}

/// Records of a frame in order; ends at the first error.
#[derive(Debug)]
pub(crate) struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Records<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Records<'a> {
        Records { bytes, at: 0 }
    }

    fn read(&self) -> Result<Record<'a>, DxError> {
        let start = self.at;
        let damaged = |what| DxError::Damaged { what, at: start as u64 };
        let rest = self.bytes.get(start..).unwrap_or_default();
        let (header, rest) = rest.split_at_checked(RECORD_HEADER_BYTES).ok_or(damaged("a record is cut off"))?;
        let [kind, length @ ..] = fixed::<RECORD_HEADER_BYTES>(header);
        let length = u32::from_le_bytes(length) as usize;
        if length > DX_RECORD_BYTES_MAX {
            return Err(DxError::TooLarge { what: "record", value: length as u64, limit: DX_RECORD_BYTES_MAX as u64 });
        }
        let payload = rest.get(..length).ok_or(damaged("a record is cut off"))?;
        Ok(Record { kind, payload, start, end: start + RECORD_HEADER_BYTES + length })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, DxError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let record = self.read();
        self.at = record.as_ref().map_or(self.bytes.len(), |record| record.end);
        Some(record)
    }
}

/// An [`Operation`] on values that stand elsewhere; it is encoded as that one is.
#[derive(Debug, Serialize)]
pub enum OperationView<'a> {
    /// See [`Operation::Delete`].
    Delete {
        /// Primary key.
        key: &'a [Value],
    },
    /// See [`Operation::Put`].
    Put {
        /// Values in heading order.
        row: &'a [Value],
    },
    /// See [`Operation::Update`].
    Update {
        /// Primary key.
        key: &'a [Value],
        /// Changed columns with their new values.
        changes: Vec<(u16, &'a Value)>,
    },
}

impl<'a> From<&'a Operation> for OperationView<'a> {
    fn from(operation: &'a Operation) -> OperationView<'a> {
        match operation {
            Operation::Delete { key } => OperationView::Delete { key },
            Operation::Put { row } => OperationView::Put { row },
            Operation::Update { key, changes } => {
                OperationView::Update { key, changes: changes.iter().map(|(column, value)| (*column, value)).collect() }
            }
        }
    }
}

impl OperationView<'_> {
    /// Appends the encoding, to be spliced into as many frames as there are audiences.
    ///
    /// # Errors
    /// If a value, or the whole, is over its limit; `out` is then as before.
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), DxError> {
        match self {
            OperationView::Delete { key: values } | OperationView::Put { row: values } => check_values(values)?,
            OperationView::Update { key, changes } => {
                check_values(key)?;
                changes.iter().try_for_each(|(_, value)| check_value(value))?;
            }
        }
        codec::encode_into("operation", self, out)
    }
}

/// Returns an operation's encoding.
///
/// # Errors
/// If a value, or the whole, is over its limit.
pub fn encode_operation(operation: &Operation) -> Result<Vec<u8>, DxError> {
    let mut out = Vec::new();
    OperationView::from(operation).encode_into(&mut out)?;
    Ok(out)
}

/// Splits the payload of an operation record into heading index and operation.
pub(crate) fn split_operation(payload: &[u8]) -> Result<(usize, &[u8]), DxError> {
    match payload.split_at_checked(2) {
        Some((index, rest)) => Ok((usize::from(u16::from_le_bytes(fixed(index))), rest)),
        None => Err(DxError::Decode { what: "operation", reason: "it is cut off".to_owned() }),
    }
}

/// Decodes an operation and checks that it fits its heading.
pub(crate) fn decode_operation(bytes: &[u8], heading: &TableHeading) -> Result<Operation, DxError> {
    let operation: Operation = codec::decode("operation", bytes)?;
    let refuse = |why: &str| Err(DxError::Content(format!("operation on table `{}`: {why}", heading.name)));
    let key_fits = |key: &[Value]| key.len() == heading.key.len();
    match &operation {
        Operation::Delete { key } if !key_fits(key) => return refuse("the key has another number of columns than the heading"),
        Operation::Delete { key } => check_values(key)?,
        Operation::Put { row } if row.len() != heading.columns.len() => {
            return refuse("the row has another number of columns than the heading");
        }
        Operation::Put { row } => check_values(row)?,
        Operation::Update { key, changes } => {
            if !key_fits(key) {
                return refuse("the key has another number of columns than the heading");
            }
            if changes.iter().any(|(column, _)| usize::from(*column) >= heading.columns.len()) {
                return refuse("a changed column is not in the heading");
            }
            check_values(key)?;
            changes.iter().try_for_each(|(_, value)| check_value(value))?;
        }
    }
    Ok(operation)
}

/// Checks a heading, which names everything that follows it.
pub(crate) fn check_heading(heading: &TableHeading) -> Result<(), DxError> {
    let columns = heading.columns.len();
    if columns == 0 || columns > COLUMNS_MAX {
        return Err(DxError::TooLarge { what: "number of columns", value: columns as u64, limit: COLUMNS_MAX as u64 });
    }
    if heading.key.is_empty() || heading.key.iter().any(|index| usize::from(*index) >= columns) {
        return Err(DxError::Content(format!("heading of table `{}`: its key is not among its columns", heading.name)));
    }
    Ok(())
}

/// Checks that the indices and lengths in a unit fit each other, so that nobody behind has to.
pub(crate) fn check_unit(events: &UnitEvents) -> Result<(), DxError> {
    let unit = events.unit;
    let refuse = |what: String| Err(DxError::Content(format!("unit {unit}: {what}")));
    let keys_fit = |keys: &[u32]| keys.iter().all(|key| (*key as usize) < events.keys.len());
    events.tables.iter().try_for_each(check_heading)?;
    for node in &events.nodes {
        let (name, fits) = match node {
            NodeEvent::Start { node, keys, .. } | NodeEvent::Restart { node, keys, .. } => (node, keys_fit(keys)),
            NodeEvent::Stop { node } => (node, true),
            NodeEvent::Keys { node, gained, lost } => (node, keys_fit(gained) && keys_fit(lost)),
        };
        if !fits {
            return refuse(format!("a key of node {name} is not listed"));
        }
    }
    events.confirms.iter().try_for_each(|event| check_confirm(&event.confirm))?;
    for row in &events.rows {
        let Some(heading) = events.tables.get(row.table as usize) else {
            return refuse(format!("a row of table number {}, which has no heading", row.table));
        };
        let problem =
            row_problem(row, heading).or((!keys_fit(&row.keys_before) || !keys_fit(&row.keys_after)).then_some("a key is not listed"));
        if let Some(problem) = problem {
            return refuse(format!("table `{}`, row {}: {problem}", heading.name, crate::model::value::display_key(&row.key)));
        }
        check_values(&row.key)?;
        row.row.as_deref().map_or(Ok(()), check_values)?;
    }
    Ok(())
}

fn row_problem(event: &RowEvent, heading: &TableHeading) -> Option<&'static str> {
    if event.key.len() != heading.key.len() {
        return Some("the key has another number of columns than the heading");
    }
    match &event.row {
        Some(row) if row.len() != heading.columns.len() => Some("it has another number of columns than the heading"),
        Some(_) if event.changed.iter().any(|column| usize::from(*column) >= heading.columns.len()) => {
            Some("a changed column is not in the heading")
        }
        None if !event.keys_after.is_empty() || !event.changed.is_empty() => Some("it is gone but has keys or changes"),
        _ => None,
    }
}

/// Checks the values in a confirm.
pub(crate) fn check_confirm(confirm: &Confirm) -> Result<(), DxError> {
    let Outcome::Merged { conflicts, keys } = &confirm.outcome else { return Ok(()) };
    for conflict in conflicts {
        check_values(&conflict.key)?;
        [&conflict.base, &conflict.server, &conflict.client].into_iter().flatten().try_for_each(check_value)?;
    }
    keys.iter().try_for_each(|mapping| check_values(&mapping.old).and_then(|()| check_values(&mapping.new)))
}

pub(crate) fn check_values(values: &[Value]) -> Result<(), DxError> {
    if values.len() > COLUMNS_MAX {
        return Err(DxError::TooLarge { what: "number of columns", value: values.len() as u64, limit: COLUMNS_MAX as u64 });
    }
    values.iter().try_for_each(check_value)
}

pub(crate) fn check_value(value: &Value) -> Result<(), DxError> {
    match value {
        Value::Text(bytes) | Value::Blob(bytes) if bytes.len() > VALUE_BYTES_MAX => {
            Err(DxError::TooLarge { what: "value", value: bytes.len() as u64, limit: VALUE_BYTES_MAX as u64 })
        }
        Value::Real(real) if real.is_nan() => Err(DxError::Content("a value is not a number".to_owned())),
        _ => Ok(()),
    }
}
