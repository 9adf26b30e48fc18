//! `dx show` and `dx verify`: a file for people and programs. Pure: reads what it is given, writes to a `fmt::Write`.
//!
//! Everything in a file is foreign: text is escaped for where it goes (a terminal, JSON, XML), bytes that are no text
//! are shown in hex, so two different files never look the same.

use crate::base::ids::{NodeName, TxnId};
use crate::dx::error::DxError;
use crate::dx::format::HEADER_BYTES;
use crate::dx::header::{DxDirection, Header};
use crate::dx::reader::DownloadReader;
use crate::dx::show_items::{
    Item, change_item, confirm_items, mark_item, node_item, operation_item, row_item, schema_item, unit_attributes,
};
use crate::dx::txnproc_reader::{TxnprocReader, UnitPart};
use crate::dx::upload;
use crate::dx::upload_reader::UploadReader;
use crate::dx::writer::FileSummary;
use crate::model::event::{ConfirmEvent, MarkEvent, UnitControls};
use crate::model::upload::Confirm;
use crate::model::value::Value;
use crate::model::value_json::to_json;
use std::fmt::{self, Write};
use std::io::{Read, Seek, SeekFrom};

/// How a file is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShowFormat {
    /// Lines for people.
    Text,
    /// One JSON document.
    Json,
    /// One XML document.
    Xml,
}

/// Why a file could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// The file is bad.
    #[error(transparent)]
    Dx(#[from] DxError),
    /// The output is full or gone.
    #[error("write the output")]
    Output(#[from] fmt::Error),
}

/// A file that was read to its end without a complaint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Its header.
    pub header: Header,
    /// Its counts and hashes.
    pub summary: FileSummary,
}

/// Checks a file whole: lengths, checksums, hashes, counts, and every record.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify<R: Read + Seek>(source: R) -> Result<Verified, DxError> {
    let mut sink = Sink { format: ShowFormat::Text, out: &mut Nowhere, in_unit: false, comma: false };
    match show_into(source, &mut sink) {
        Ok(verified) => Ok(verified),
        Err(ShowError::Dx(error)) => Err(error),
        Err(ShowError::Output(_)) => Err(DxError::Content("the check produced no output".to_owned())),
    }
}

/// Writes a file to `out`.
///
/// # Errors
/// If the file is bad (what was written by then is not a document), or `out` fails.
pub fn show<R: Read + Seek>(source: R, format: ShowFormat, out: &mut dyn Write) -> Result<Verified, ShowError> {
    show_into(source, &mut Sink { format, out, in_unit: false, comma: false })
}

struct Nowhere;

impl Write for Nowhere {
    fn write_str(&mut self, _: &str) -> fmt::Result {
        Ok(())
    }
}

fn show_into<R: Read + Seek>(mut source: R, sink: &mut Sink<'_>) -> Result<Verified, ShowError> {
    let io = |source| DxError::Io { operation: "read a .dx file", source };
    let mut head = Vec::with_capacity(HEADER_BYTES);
    source.seek(SeekFrom::Start(0)).map_err(io)?;
    source.by_ref().take(HEADER_BYTES as u64).read_to_end(&mut head).map_err(io)?;
    let header = Header::from_prefix(&head)?;
    let summary = match header.direction {
        DxDirection::Download => {
            let mut reader = DownloadReader::open(source)?;
            let summary = *reader.summary();
            sink.begin(&header)?;
            let mut current = None;
            let mut controls = reader.controls().clone();
            for item in reader.operations() {
                let (unit, heading, operation) = item?;
                if current.replace(unit) != Some(unit) {
                    while let Some((before, told)) = controls.first_key_value().filter(|(before, _)| **before < unit) {
                        sink.controls(*before, told)?;
                        controls.pop_first();
                    }
                    sink.controls(unit, &controls.remove(&unit).unwrap_or_default())?;
                }
                sink.item(&operation_item(&heading, &operation))?;
            }
            for (unit, told) in &controls {
                sink.controls(*unit, told)?;
            }
            summary
        }
        DxDirection::Txnproc => {
            let mut reader = TxnprocReader::open(source)?;
            let summary = *reader.summary();
            sink.begin(&header)?;
            let mut parts = reader.parts();
            while let Some(UnitPart { unit, is_first, .. }) = parts.next_part()? {
                if is_first {
                    let read_at = jiff::Timestamp::from_microsecond(unit.read_at_micros).map(|time| time.to_string()).unwrap_or_default();
                    sink.unit(unit.unit, &[("revision", unit.revision.to_string()), ("read_at", read_at)])?;
                    for object in unit.schema.iter().chain(&unit.whole_schema) {
                        sink.item(&schema_item(object))?;
                    }
                    for MarkEvent { node, mark } in &unit.marks {
                        sink.item(&mark_item(mark, Some(node)))?;
                    }
                    for ConfirmEvent { node, confirm } in &unit.confirms {
                        sink.confirm(confirm, Some(node))?;
                    }
                    for event in &unit.nodes {
                        sink.item(&node_item(unit, event))?;
                    }
                }
                for event in &unit.rows {
                    sink.item(&row_item(unit, event))?;
                }
            }
            summary
        }
        DxDirection::Upload => {
            let mut reader = UploadReader::open(source)?;
            let summary = *reader.summary();
            sink.begin(&header)?;
            let mut units = reader.units();
            while let Some(head) = units.next_head()? {
                sink.unit(upload::position(head.number)?, &unit_attributes(&head))?;
                while let Some((heading, change)) = units.next_change()? {
                    sink.item(&change_item(&heading, &change))?;
                }
            }
            summary
        }
    };
    sink.end(&summary)?;
    Ok(Verified { header, summary })
}

fn header_attributes(header: &Header) -> Vec<(&'static str, String)> {
    let mut attributes = vec![("direction", header.direction.to_string()), ("file", header.file_no.to_string())];
    if let Some(node) = &header.node {
        attributes.extend([("node", node.to_string()), ("incarnation", header.incarnation.to_string())]);
    }
    attributes.extend([
        ("first", header.first.to_string()),
        ("last", header.last.to_string()),
        ("revision", header.revision.to_string()),
        ("server_id", header.server_id.to_string()),
        ("epoch", header.epoch.to_string()),
        ("previous", header.previous.to_string()),
    ]);
    if header.direction == DxDirection::Upload {
        attributes.extend([("install_id", header.install_id.to_string()), ("applied", header.applied_unit.to_string())]);
    }
    attributes
}

fn summary_attributes(summary: &FileSummary) -> Vec<(&'static str, String)> {
    vec![
        ("units", summary.units.to_string()),
        ("operations", summary.operations.to_string()),
        ("frames", summary.frames.to_string()),
        ("bytes", summary.bytes.to_string()),
        ("raw_bytes", summary.raw_bytes.to_string()),
        ("content_hash", summary.content_hash.to_string()),
        ("byte_hash", summary.byte_hash.to_string()),
    ]
}

/// Where a document is being written.
struct Sink<'a> {
    format: ShowFormat,
    out: &'a mut dyn Write,
    in_unit: bool,
    /// Whether the next element of the current JSON list needs a comma before it.
    comma: bool,
}

impl Sink<'_> {
    fn begin(&mut self, header: &Header) -> fmt::Result {
        let attributes = header_attributes(header);
        match self.format {
            ShowFormat::Text => self.text_line("", "file", &attributes, &[]),
            ShowFormat::Json => {
                write!(self.out, "{{\"version\":1,\"header\":{},\"units\":[", json_object(&attributes))
            }
            ShowFormat::Xml => {
                self.out.write_str("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<dx>\n <header")?;
                self.xml_attributes(&attributes)?;
                self.out.write_str("/>\n")
            }
        }
    }

    /// Begins a unit of a node's file with what it tells beside operations.
    fn controls(&mut self, unit: TxnId, told: &UnitControls) -> fmt::Result {
        let reset = told.reset.then(|| ("reset", "true".to_owned()));
        self.unit(unit, reset.as_slice())?;
        told.schema.iter().try_for_each(|object| self.item(&schema_item(object)))?;
        told.marks.iter().try_for_each(|mark| self.item(&mark_item(mark, None)))?;
        told.confirms.iter().try_for_each(|confirm| self.confirm(confirm, None))
    }

    /// Writes a confirm, and a line for each conflict and key in it.
    fn confirm(&mut self, confirm: &Confirm, node: Option<&NodeName>) -> fmt::Result {
        confirm_items(confirm, node).iter().try_for_each(|item| self.item(item))
    }

    fn unit(&mut self, unit: TxnId, more: &[(&'static str, String)]) -> fmt::Result {
        let comma = self.in_unit;
        self.end_unit()?;
        let mut attributes = vec![("unit", unit.to_string())];
        attributes.extend_from_slice(more);
        self.in_unit = true;
        self.comma = false;
        match self.format {
            ShowFormat::Text => {
                let rest = attributes.split_off(1);
                write!(self.out, "unit {unit}")?;
                self.text_line("", "", &rest, &[])
            }
            ShowFormat::Json => {
                let object = json_object(&attributes);
                let open = object.strip_suffix('}').unwrap_or(&object);
                write!(self.out, "{}{open},\"items\":[", if comma { "," } else { "" })
            }
            ShowFormat::Xml => {
                self.out.write_str(" <unit")?;
                self.xml_attributes(&attributes)?;
                self.out.write_str(">\n")
            }
        }
    }

    fn end_unit(&mut self) -> fmt::Result {
        if !std::mem::take(&mut self.in_unit) {
            return Ok(());
        }
        self.out.write_str(match self.format {
            ShowFormat::Text => "",
            ShowFormat::Json => "]}",
            ShowFormat::Xml => " </unit>\n",
        })
    }

    fn item(&mut self, item: &Item<'_>) -> fmt::Result {
        match self.format {
            ShowFormat::Text => self.text_line("  ", item.name, &item.attributes, &item.groups),
            ShowFormat::Json => {
                let mut object = json_object(&item.attributes);
                object.pop();
                let groups = item.groups.iter().fold(String::new(), |text, (name, values)| {
                    let values: Vec<serde_json::Value> =
                        values.iter().map(|(name, value)| serde_json::json!({"name": name, "value": to_json(value)})).collect();
                    text + &format!(",\"{name}\":{}", serde_json::Value::Array(values))
                });
                let comma = if std::mem::replace(&mut self.comma, true) { "," } else { "" };
                write!(self.out, "{comma}{object},\"item\":\"{}\"{groups}}}", item.name)
            }
            ShowFormat::Xml => {
                write!(self.out, "  <{}", item.name)?;
                self.xml_attributes(&item.attributes)?;
                self.out.write_str(">\n")?;
                for (group, values) in &item.groups {
                    write!(self.out, "   <{group}>")?;
                    for (name, value) in values {
                        self.xml_value(name, value)?;
                    }
                    writeln!(self.out, "</{group}>")?;
                }
                writeln!(self.out, "  </{}>", item.name)
            }
        }
    }

    fn end(&mut self, summary: &FileSummary) -> fmt::Result {
        self.end_unit()?;
        let attributes = summary_attributes(summary);
        match self.format {
            ShowFormat::Text => self.text_line("", "end", &attributes, &[]),
            ShowFormat::Json => writeln!(self.out, "],\"trailer\":{}}}", json_object(&attributes)),
            ShowFormat::Xml => {
                self.out.write_str(" <trailer")?;
                self.xml_attributes(&attributes)?;
                self.out.write_str("/>\n</dx>\n")
            }
        }
    }

    fn text_line(
        &mut self,
        indent: &str,
        name: &str,
        attributes: &[(&'static str, String)],
        groups: &[(&'static str, Vec<(&str, &Value)>)],
    ) -> fmt::Result {
        write!(self.out, "{indent}{name}")?;
        for (name, text) in attributes {
            match *name {
                // What an operation is about needs no label.
                "table" | "node" => write!(self.out, " {}", printable(text))?,
                _ => write!(self.out, " {name}={}", printable(text))?,
            }
        }
        for (group, values) in groups.iter().filter(|(_, values)| !values.is_empty()) {
            let values: Vec<String> = values.iter().map(|(name, value)| format!("{name}={}", text_value(value))).collect();
            write!(self.out, " {group}({})", printable(&values.join(", ")))?;
        }
        self.out.write_str("\n")
    }

    fn xml_attributes(&mut self, attributes: &[(&'static str, String)]) -> fmt::Result {
        attributes.iter().try_for_each(|(name, text)| {
            write!(self.out, " {name}=\"{}\"", xml_text(text).unwrap_or_else(|| format!("hex:{}", hex::encode(text))))
        })
    }

    fn xml_value(&mut self, name: &str, value: &Value) -> fmt::Result {
        let name = xml_text(name).unwrap_or_else(|| format!("hex:{}", hex::encode(name)));
        let (kind, encoding, text) = match value {
            Value::Null => ("null", "", String::new()),
            Value::Integer(integer) => ("integer", "", integer.to_string()),
            Value::Real(real) => ("real", "", format!("{real:?}")),
            Value::Blob(bytes) => ("blob", " encoding=\"hex\"", hex::encode(bytes)),
            Value::Text(bytes) => match std::str::from_utf8(bytes).ok().and_then(xml_text) {
                Some(text) => ("text", "", text),
                None => ("text", " encoding=\"hex\"", hex::encode(bytes)),
            },
        };
        write!(self.out, "<value name=\"{name}\" type=\"{kind}\"{encoding}>{text}</value>")
    }
}

/// Returns the text escaped for XML; `None` if it has a character that XML cannot carry.
fn xml_text(text: &str) -> Option<String> {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            // A parser would turn these into spaces or newlines.
            '\t' | '\n' | '\r' => escaped.push_str(&format!("&#{};", char as u32)),
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => return None,
            other => escaped.push(other),
        }
    }
    Some(escaped)
}

/// Returns the text without anything that a terminal acts upon.
fn printable(text: &str) -> String {
    let acts =
        |char: char| char.is_control() || matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().flat_map(|char| if acts(char) { char.escape_unicode().to_string().chars().collect() } else { vec![char] }).collect()
}

fn text_value(value: &Value) -> String {
    match value {
        Value::Text(bytes) if std::str::from_utf8(bytes).is_err() => format!("text X'{}'", hex::encode_upper(bytes)),
        other => other.to_string(),
    }
}

fn json_object(attributes: &[(&'static str, String)]) -> String {
    const NUMBERS: &[&str] = &[
        "incarnation",
        "first",
        "last",
        "revision",
        "epoch",
        "unit",
        "units",
        "operations",
        "frames",
        "bytes",
        "raw_bytes",
        "applied",
        "changes",
    ];
    let value = |name: &str, text: &str| match text.parse::<i64>() {
        Ok(number) if NUMBERS.contains(&name) => serde_json::Value::from(number),
        _ => serde_json::Value::from(text),
    };
    let object: serde_json::Map<_, _> = attributes.iter().map(|(name, text)| ((*name).to_owned(), value(name, text))).collect();
    serde_json::Value::Object(object).to_string()
}
