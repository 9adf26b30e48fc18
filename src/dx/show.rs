//! `dx show` and `dx verify`: a file for people and programs. Pure: reads what it is given, writes to a `fmt::Write`.
//!
//! Everything in a file is foreign: text is escaped for where it goes (a terminal, JSON, XML), bytes that are no text
//! are shown in hex, so two different files never look the same.

use crate::base::ids::{NodeName, TxnId};
use crate::dx::error::DxError;
use crate::dx::format::HEADER_BYTES;
use crate::dx::header::{DxDirection, Header};
use crate::dx::reader::DownloadReader;
use crate::dx::txnproc_reader::{TxnprocReader, UnitPart};
use crate::dx::writer::FileSummary;
use crate::model::event::{Mark, MarkEvent, NodeEvent, RowEvent, SchemaKind, SchemaObject, TableHeading, UnitControls, UnitEvents};
use crate::model::operation::Operation;
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
        DxDirection::Upload => return Err(DxError::Content("upload files are not written by this version".to_owned()).into()),
    };
    sink.end(&summary)?;
    Ok(Verified { header, summary })
}

/// A neutral line: what, attributes, and values in named groups.
struct Item<'a> {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    groups: Vec<(&'static str, Vec<(&'a str, &'a Value)>)>,
}

fn key_group<'a>(heading: &'a TableHeading, key: &'a [Value]) -> (&'static str, Vec<(&'a str, &'a Value)>) {
    let names = heading.key.iter().map(|index| heading.columns.get(usize::from(*index)).map_or("", String::as_str));
    ("key", names.zip(key).collect())
}

fn row_group<'a>(heading: &'a TableHeading, row: &'a [Value]) -> (&'static str, Vec<(&'a str, &'a Value)>) {
    ("row", heading.columns.iter().map(String::as_str).zip(row).collect())
}

fn operation_item<'a>(heading: &'a TableHeading, operation: &'a Operation) -> Item<'a> {
    let (name, groups) = match operation {
        Operation::Delete { key } => ("delete", vec![key_group(heading, key)]),
        Operation::Put { row } => ("put", vec![row_group(heading, row)]),
        Operation::Update { key, changes } => {
            let column = |index: &u16| heading.columns.get(usize::from(*index)).map_or("", String::as_str);
            let changes = changes.iter().map(|(index, value)| (column(index), value)).collect();
            ("update", vec![key_group(heading, key), ("changes", changes)])
        }
    };
    Item { name, attributes: vec![("table", heading.name.clone())], groups }
}

fn schema_item(object: &SchemaObject) -> Item<'_> {
    let kind = match object.kind {
        SchemaKind::Table => "table",
        SchemaKind::KeptTable => "kept table",
        SchemaKind::Index => "index",
        SchemaKind::View => "view",
    };
    let sql = object.sql.clone().unwrap_or_else(|| "gone".to_owned());
    let attributes =
        vec![("kind", kind.to_owned()), ("name", object.name.clone()), ("keeps_rows", object.keeps_rows.to_string()), ("sql", sql)];
    Item { name: "schema", attributes, groups: Vec::new() }
}

fn mark_item<'a>(mark: &Mark, node: Option<&NodeName>) -> Item<'a> {
    let mut attributes: Vec<(&'static str, String)> = node.map(|node| ("node", node.to_string())).into_iter().collect();
    attributes.extend([("id", mark.id.to_string()), ("tables", mark.tables.len().to_string())]);
    Item { name: "mark", attributes, groups: Vec::new() }
}

fn keys_group<'a>(unit: &'a UnitEvents, name: &'static str, keys: &[u32]) -> (&'static str, Vec<(&'a str, &'a Value)>) {
    let keys = keys.iter().filter_map(|key| unit.keys.get(*key as usize));
    (name, keys.map(|key| (key.path.as_str(), &key.value)).collect())
}

fn node_item<'a>(unit: &'a UnitEvents, event: &'a NodeEvent) -> Item<'a> {
    match event {
        NodeEvent::Start { node, incarnation, keys } | NodeEvent::Restart { node, incarnation, keys } => Item {
            name: if matches!(event, NodeEvent::Start { .. }) { "node_start" } else { "node_restart" },
            attributes: vec![("node", node.to_string()), ("incarnation", incarnation.to_string())],
            groups: vec![keys_group(unit, "keys", keys)],
        },
        NodeEvent::Stop { node } => Item { name: "node_stop", attributes: vec![("node", node.to_string())], groups: Vec::new() },
        NodeEvent::Keys { node, gained, lost } => Item {
            name: "node_keys",
            attributes: vec![("node", node.to_string())],
            groups: vec![keys_group(unit, "gained", gained), keys_group(unit, "lost", lost)],
        },
    }
}

fn row_item<'a>(unit: &'a UnitEvents, event: &'a RowEvent) -> Item<'a> {
    let mut item = Item { name: if event.row.is_some() { "row" } else { "row_gone" }, attributes: Vec::new(), groups: Vec::new() };
    if let Some(heading) = unit.tables.get(event.table as usize) {
        item.attributes.push(("table", heading.name.clone()));
        let changed: Vec<&str> =
            event.changed.iter().filter_map(|index| heading.columns.get(usize::from(*index))).map(String::as_str).collect();
        if !changed.is_empty() {
            item.attributes.push(("changed", changed.join(" ")));
        }
        item.groups.push(key_group(heading, &event.key));
        item.groups.extend(event.row.as_ref().map(|row| row_group(heading, row)));
    }
    item.groups.push(keys_group(unit, "keys_before", &event.keys_before));
    item.groups.push(keys_group(unit, "keys_after", &event.keys_after));
    item
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
        told.marks.iter().try_for_each(|mark| self.item(&mark_item(mark, None)))
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
    const NUMBERS: &[&str] =
        &["incarnation", "first", "last", "revision", "epoch", "unit", "units", "operations", "frames", "bytes", "raw_bytes"];
    let value = |name: &str, text: &str| match text.parse::<i64>() {
        Ok(number) if NUMBERS.contains(&name) => serde_json::Value::from(number),
        _ => serde_json::Value::from(text),
    };
    let object: serde_json::Map<_, _> = attributes.iter().map(|(name, text)| ((*name).to_owned(), value(name, text))).collect();
    serde_json::Value::Object(object).to_string()
}
