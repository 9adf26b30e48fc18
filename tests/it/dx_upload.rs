//! Upload files: what is written is read, any damage is found, and nothing that contradicts itself is handed out.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use dockmaster::base::ids::{ContentHash, Epoch, FileNo, Incarnation, InstallId, Revision, ServerId, TxnId, UnitNo};
use dockmaster::base::limits::{UPLOAD_PIECE_BYTES, UPLOAD_UNIT_BYTES_MAX};
use dockmaster::dx::codec;
use dockmaster::dx::error::DxError;
use dockmaster::dx::format::*;
use dockmaster::dx::frame::{RawFrame, Sealer};
use dockmaster::dx::header::{DxDirection, Header};
use dockmaster::dx::show::{ShowFormat, show, verify};
use dockmaster::dx::upload::{decode_change, encode_change};
use dockmaster::dx::upload_reader::UploadReader;
use dockmaster::dx::upload_writer::UploadWriter;
use dockmaster::dx::writer::write_file;
use dockmaster::model::event::TableHeading;
use dockmaster::model::upload::{FieldChange, RowChange, UploadHead, UploadUnit};
use dockmaster::model::value::Value;
use std::io::Cursor;
use std::sync::Arc;

fn header() -> Header {
    Header {
        direction: DxDirection::Upload,
        server_id: ServerId([0x11; 16]),
        epoch: Epoch(1),
        node: Some("SHOP-01".parse().unwrap()),
        incarnation: Incarnation(2),
        file_no: FileNo(7),
        first: TxnId(11),
        last: TxnId(20),
        revision: Revision(3),
        previous: ContentHash([0x22; 32]),
        install_id: InstallId([0x33; 16]),
        applied_unit: TxnId(500),
    }
}

fn heading(name: &str) -> Arc<TableHeading> {
    Arc::new(TableHeading { name: name.to_owned(), columns: vec!["id".to_owned(), "name".to_owned(), "note".to_owned()], key: vec![0] })
}

fn head(number: u64, changes: u64) -> UploadHead {
    UploadHead {
        number: UnitNo(number),
        applied: TxnId(480),
        revision: Revision(3),
        cut_at_micros: 1_700_000_000_000_000,
        label: None,
        hidden: vec![],
        changes,
    }
}

fn field(column: u16, before: Value, base: Value, after: Value) -> FieldChange {
    FieldChange { column, before, base, after }
}

fn insert(id: i64, name: Value) -> RowChange {
    RowChange::Insert { row: vec![Value::Integer(id), name, Value::Null] }
}

fn unit(number: u64, changes: Vec<(&str, RowChange)>) -> UploadUnit {
    let changes: Vec<_> = changes.into_iter().map(|(table, change)| (heading(table), change)).collect();
    UploadUnit { head: head(number, changes.len() as u64), changes }
}

/// Every kind of change and every storage class, awkward values among them.
fn units() -> Vec<UploadUnit> {
    let awkward = [Value::Real(-0.0), Value::Real(f64::INFINITY), Value::Text(b"\xff\x00'".to_vec()), Value::Blob(vec![0, 1, 255])];
    let inserts = awkward.into_iter().enumerate().map(|(id, value)| ("Orders", insert(id as i64, value)));
    let mut first = unit(11, inserts.collect());
    first.head.label = Some("order 17".to_owned());
    first.head.hidden = vec![UnitNo(3), UnitNo(9)];
    let moved = RowChange::Update {
        key: vec![Value::Integer(5)],
        fields: vec![
            field(0, Value::Integer(5), Value::Integer(5), Value::Integer(6)),
            field(2, Value::Null, Value::text("server"), Value::text("J\u{fc}rgen")),
        ],
        whole: Some(vec![Value::Integer(6), Value::Null, Value::text("J\u{fc}rgen")]),
    };
    let gone = |id: i64, base: Option<Value>| RowChange::Delete {
        key: vec![Value::Integer(id)],
        before: vec![Value::Integer(id), Value::text("a"), Value::Null],
        base: base.map(|value| vec![Value::Integer(id), value, Value::Null]),
    };
    // The key that a row left is taken by another one.
    let second = unit(
        14,
        vec![
            ("Orders", moved),
            ("Odd \"name\"", gone(7, None)),
            ("Orders", gone(8, Some(Value::Integer(1)))),
            ("Orders", insert(5, Value::Null)),
        ],
    );
    vec![first, second, unit(15, vec![])]
}

fn upload() -> Vec<u8> {
    UploadWriter::assemble(&header(), &units(), 3).unwrap().0
}

fn read(bytes: &[u8]) -> Result<Vec<UploadUnit>, DxError> {
    UploadReader::open(Cursor::new(bytes))?.units().collect()
}

/// A file of records that no writer makes.
fn crafted(records: &[(u8, Vec<u8>)], units: &[i64], changes: u64) -> Vec<u8> {
    let mut raw = Vec::new();
    for (kind, payload) in records {
        raw.push(*kind);
        raw.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        raw.extend_from_slice(payload);
    }
    let units = units.iter().copied().map(TxnId).collect();
    let frame = Sealer::new(3).unwrap().seal(RawFrame { bytes: raw, units, operations: changes }).unwrap();
    let mut bytes = Vec::new();
    write_file(&header(), &[frame], &mut bytes).unwrap();
    bytes
}

fn change_record(index: u16, change: &RowChange) -> (u8, Vec<u8>) {
    let mut payload = index.to_le_bytes().to_vec();
    payload.extend(codec::encode("change", change).unwrap());
    (RECORD_UPLOAD_CHANGE, payload)
}

#[test]
fn an_upload_is_read_as_it_was_written() {
    let bytes = upload();
    assert_eq!(Header::from_prefix(&bytes).unwrap(), header());
    let mut reader = UploadReader::open(Cursor::new(&bytes)).unwrap();
    assert_eq!((reader.header(), reader.summary().units, reader.summary().operations), (&header(), 3, 8));
    assert_eq!(reader.units().map(Result::unwrap).collect::<Vec<_>>(), units());
    let heads: Vec<UploadHead> = units().into_iter().map(|unit| unit.head).collect();
    assert_eq!(reader.heads().map(Result::unwrap).collect::<Vec<_>>(), heads);
    // Change by change, and a unit that is left in the middle.
    let mut walk = reader.units();
    assert_eq!(walk.next_head().unwrap().unwrap().number, UnitNo(11));
    assert_eq!(walk.next_change().unwrap().unwrap(), units()[0].changes[0]);
    assert_eq!(walk.next_head().unwrap().unwrap().number, UnitNo(14));
    for change in &units()[1].changes {
        assert_eq!(walk.next_change().unwrap().as_ref(), Some(change));
    }
    assert!(walk.next_change().unwrap().is_none());
    assert_eq!(walk.next_head().unwrap().unwrap().number, UnitNo(15));
    assert!(walk.next_change().unwrap().is_none() && walk.next_head().unwrap().is_none() && walk.next_head().unwrap().is_none());
}

/// Written once by format version 3 and never again.
#[test]
fn f51_the_golden_upload_is_read() {
    let golden = include_bytes!("golden/v3-upload.dx");
    assert_eq!(read(golden).unwrap(), units());
    let (golden, today) = (verify(Cursor::new(golden)).unwrap(), verify(Cursor::new(upload())).unwrap());
    assert_eq!(golden.summary.content_hash, today.summary.content_hash);
    let document = include_str!("../../docs/dx-format.md");
    assert!(document.contains(&golden.summary.content_hash.to_string()), "{}", golden.summary.content_hash);
    let unit_hash = units()[1].content_hash().unwrap();
    assert!(document.contains(&format!("unit 14 `{unit_hash}`")), "{unit_hash}");
}

#[test]
fn the_golden_upload_of_this_version_stands() {
    let path = format!("{}/tests/it/golden/v{FORMAT_VERSION}-upload.dx", env!("CARGO_MANIFEST_DIR"));
    let is_empty = std::fs::read(&path).unwrap().is_empty();
    if is_empty && std::env::var_os("DOCK_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, upload()).unwrap();
    } else {
        assert!(!is_empty, "{path} is to be written once");
    }
}

#[test]
fn f16_every_flipped_bit_of_an_upload_is_found() {
    let bytes = upload();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let error = UploadReader::open(Cursor::new(&flipped)).expect_err("a flipped bit");
        assert!(error.is_content(), "bit {bit}: {error}");
    }
}

#[test]
fn f15_every_truncation_of_an_upload_and_any_byte_behind_it_is_found() {
    let bytes = upload();
    for length in 0..bytes.len() {
        let error = UploadReader::open(Cursor::new(&bytes[..length])).expect_err("truncated");
        assert!(error.is_content(), "{length}: {error}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(UploadReader::open(Cursor::new(longer)).is_err());
}

/// T8, T9: whoever writes the file has every checksum right, so each rule has to be checked by itself.
#[test]
fn t8_t9_an_upload_that_contradicts_itself_is_refused() {
    let table = (RECORD_HEADING, codec::encode("heading", &*heading("Orders")).unwrap());
    let begin = |head: &UploadHead| (RECORD_UPLOAD_UNIT, codec::encode("unit", head).unwrap());
    let one = change_record(0, &insert(1, Value::Null));
    let update = |fields: Vec<FieldChange>, whole| change_record(0, &RowChange::Update { key: vec![Value::Integer(1)], fields, whole });
    let some = |column| field(column, Value::Null, Value::Null, Value::Integer(1));
    let short = vec![Value::Integer(1)];
    let delete = |key: Vec<Value>, before: Vec<Value>, base| change_record(0, &RowChange::Delete { key, before, base });
    let row = vec![Value::Integer(1), Value::Null, Value::Null];
    let nan = |column| field(column, Value::Null, Value::Real(f64::NAN), Value::Null);
    let text_key = |change: RowChange| change_record(0, &change);
    let mut cut_off = one.clone();
    cut_off.1.pop();
    let mut longer = one.clone();
    longer.1.push(0);
    let hidden = UploadHead { hidden: vec![UnitNo(12)], ..head(12, 1) };
    type Case = (&'static str, Vec<(u8, Vec<u8>)>, Vec<i64>, u64);
    let cases: Vec<Case> = vec![
        ("it does not ascend", vec![begin(&head(12, 0)), begin(&head(12, 0))], vec![12], 0),
        ("outside of the range 11..20", vec![begin(&head(21, 0))], vec![20], 0),
        ("outside of the range 11..20", vec![begin(&head(10, 0))], vec![11], 0),
        ("unit number", vec![begin(&head(u64::MAX, 0))], vec![11], 0),
        ("its head says 2", vec![begin(&head(12, 2)), table.clone(), one.clone()], vec![12], 1),
        ("its head says 1", vec![begin(&head(12, 1)), begin(&head(13, 0))], vec![12, 13], 0),
        ("belongs to no unit", vec![begin(&head(12, 0)), table.clone(), one.clone()], vec![12], 1),
        ("belongs to no unit", vec![table.clone(), one.clone()], vec![], 1),
        ("before its heading", vec![begin(&head(12, 1)), one.clone()], vec![12], 1),
        ("before its heading", vec![begin(&head(12, 1)), table.clone(), change_record(1, &insert(1, Value::Null))], vec![12], 1),
        ("cut off", vec![begin(&head(12, 1)), table.clone(), (RECORD_UPLOAD_CHANGE, vec![0])], vec![12], 1),
        ("change cannot be read", vec![begin(&head(12, 1)), table.clone(), cut_off], vec![12], 1),
        ("change cannot be read", vec![begin(&head(12, 1)), table.clone(), longer], vec![12], 1),
        ("without its last piece", vec![begin(&head(12, 1)), (RECORD_UPLOAD_PIECE, vec![0])], vec![12], 0),
        (
            "another number of columns",
            vec![begin(&head(12, 1)), table.clone(), text_key(RowChange::Insert { row: short.clone() })],
            vec![12],
            1,
        ),
        ("is not in the heading", vec![begin(&head(12, 1)), table.clone(), update(vec![some(3)], None)], vec![12], 1),
        ("changed twice", vec![begin(&head(12, 1)), table.clone(), update(vec![some(1), some(1)], None)], vec![12], 1),
        ("whole row has another", vec![begin(&head(12, 1)), table.clone(), update(vec![some(1)], Some(short.clone()))], vec![12], 1),
        ("key has another number", vec![begin(&head(12, 1)), table.clone(), delete(vec![], row.clone(), None)], vec![12], 1),
        ("deleted row has another", vec![begin(&head(12, 1)), table.clone(), delete(short.clone(), short.clone(), None)], vec![12], 1),
        (
            "deleted row has another",
            vec![begin(&head(12, 1)), table.clone(), delete(short.clone(), row.clone(), Some(short.clone()))],
            vec![12],
            1,
        ),
        ("not a number", vec![begin(&head(12, 1)), table.clone(), update(vec![nan(1)], None)], vec![12], 1),
        ("named twice", vec![begin(&head(12, 2)), table.clone(), one.clone(), one.clone()], vec![12], 2),
        ("named twice", vec![begin(&head(12, 2)), table.clone(), update(vec![some(1)], None), delete(short, row, None)], vec![12], 2),
        ("cannot have been hidden", vec![begin(&hidden), table.clone(), one.clone()], vec![12], 1),
        ("is negative", vec![begin(&UploadHead { applied: TxnId(-1), ..head(12, 0) })], vec![12], 0),
        ("unknown kind 18", vec![begin(&head(12, 0)), (RECORD_OPERATION, vec![0, 0])], vec![12], 0),
        (
            "key is not among",
            vec![(RECORD_HEADING, codec::encode("heading", &TableHeading { key: vec![3], ..(*heading("x")).clone() }).unwrap())],
            vec![],
            0,
        ),
        ("counts or content hash", vec![begin(&head(12, 1)), table.clone(), one.clone()], vec![12], 5),
        ("number of units", vec![begin(&head(12, 0))], vec![12, 13], 0),
    ];
    for (why, records, units, changes) in cases {
        let error = UploadReader::open(Cursor::new(crafted(&records, &units, changes))).expect_err(why);
        assert!(error.is_content() && error.to_string().contains(why), "{why}: {error}");
    }
    let good = crafted(&[begin(&head(12, 1)), table, one], &[12], 1);
    assert_eq!(read(&good).unwrap().len(), 1);

    for (why, bad) in [
        ("unit numbers begin at 1", Header { first: TxnId(0), ..header() }),
        ("which local database", Header { install_id: InstallId::default(), ..header() }),
        ("negative", Header { applied_unit: TxnId(-1), ..header() }),
    ] {
        let mut bytes = Vec::new();
        write_file(&bad, &[], &mut bytes).unwrap();
        let error = UploadReader::open(Cursor::new(bytes)).expect_err(why);
        assert!(error.to_string().contains(why), "{error}");
        assert!(UploadWriter::assemble(&bad, &[], 3).unwrap_err().to_string().contains(why));
    }
    let download = Header { direction: DxDirection::Download, install_id: InstallId::default(), applied_unit: TxnId(0), ..header() };
    assert!(matches!(UploadWriter::assemble(&download, &[], 3), Err(DxError::Direction { .. })));
}

/// The writer refuses what the reader would.
#[test]
fn an_upload_that_contradicts_itself_is_not_written() {
    let bad = |unit: UploadUnit| UploadWriter::assemble(&header(), &[unit], 3).unwrap_err().to_string();
    assert!(bad(unit(21, vec![])).contains("outside of the range 11..20"));
    assert!(bad(unit(12, vec![("T", insert(1, Value::Null)), ("t", insert(1, Value::Null))])).contains("named twice"));
    assert!(bad(unit(12, vec![("T", insert(1, Value::Real(f64::NAN)))])).contains("not a number"));
    assert!(bad(UploadUnit { head: head(12, 2), ..unit(12, vec![("T", insert(1, Value::Null))]) }).contains("its head says 2"));
    assert!(bad(UploadUnit { head: head(12, 0), ..unit(12, vec![("T", insert(1, Value::Null))]) }).contains("more changes than"));
    let twice = UploadWriter::assemble(&header(), &[unit(12, vec![]), unit(12, vec![])], 3).unwrap_err();
    assert!(twice.to_string().contains("does not ascend"));
}

#[test]
fn c17_a_unit_spans_frames_and_a_change_spans_records() {
    let text = |id: i64| Value::Text(format!("{:x}", id * 2_654_435_761).into_bytes().repeat(4));
    let many: Vec<(&str, RowChange)> = (0..40_000).map(|id| (["a", "b"][id as usize % 2], insert(id, text(id)))).collect();
    // Three values of the size that a row may have are more than a record holds.
    let blob = |byte: u8| Value::Blob(vec![byte; 13 << 20]);
    let large = RowChange::Update {
        key: vec![Value::Integer(1)],
        fields: vec![field(1, blob(1), blob(2), blob(3))],
        whole: Some(vec![Value::Integer(1), blob(3), Value::Null]),
    };
    let units =
        [unit(12, vec![]), unit(13, many), unit(14, vec![("a", insert(1, Value::Null)), ("b", large), ("a", insert(2, Value::Null))])];
    let (bytes, summary) = UploadWriter::assemble(&header(), &units, 1).unwrap();
    assert!(summary.frames as usize > 2 + (52 << 20) / UPLOAD_PIECE_BYTES, "{summary:?}");
    assert!(read(&bytes).unwrap() == units);
    assert_eq!(UploadReader::open(Cursor::new(&bytes)).unwrap().heads().count(), 3);
}

/// T9: a small file that would take all memory: a unit counts as what it takes when it is expanded.
#[test]
fn t9_a_unit_that_takes_too_much_memory_is_refused() {
    let wide = TableHeading { name: "w".to_owned(), columns: (0..990).map(|column| format!("c{column}")).collect(), key: vec![0] };
    let rows = UPLOAD_UNIT_BYTES_MAX / (990 * 33) + 1;
    let mut bytes = Vec::new();
    let mut writer = UploadWriter::begin(&header(), 1, &mut bytes).unwrap();
    writer.begin_unit(&head(12, rows)).unwrap();
    let mut row = vec![Value::Null; 990];
    let refused = (0..rows).find_map(|id| {
        row[0] = Value::Integer(id as i64);
        writer.change(&wide, &RowChange::Insert { row: row.clone() }).err()
    });
    assert!(matches!(refused, Some(DxError::TooLarge { what: "unit of an upload", .. })), "{refused:?}");
}

/// R16: the same unit has the same hash whatever file, session or extract it comes in; anything that it does counts.
#[test]
fn r16_the_hash_of_a_unit_tells_it_from_another_one() {
    let unit = units().remove(1);
    let hash = unit.content_hash().unwrap();
    let again = UploadUnit {
        head: UploadHead { applied: TxnId(999), cut_at_micros: 5, revision: Revision(9), label: Some("x".into()), ..unit.head.clone() },
        changes: unit.changes.clone(),
    };
    assert_eq!(again.content_hash().unwrap(), hash);
    assert_eq!(read(&upload()).unwrap()[1].content_hash().unwrap(), hash);
    let mut others = vec![UploadUnit { head: head(15, 4), ..unit.clone() }];
    others.extend((0..4).map(|place| {
        let mut other = unit.clone();
        other.changes.remove(place);
        other
    }));
    let mut swapped = unit.clone();
    swapped.changes.swap(0, 1);
    let mut renamed = unit.clone();
    renamed.changes[0].0 = heading("Orders2");
    let mut retyped = unit.clone();
    retyped.changes[3].1 = RowChange::Insert { row: vec![Value::Real(5.0), Value::Null, Value::Null] };
    others.extend([swapped, renamed, retyped]);
    let hashes: Vec<ContentHash> = others.iter().map(|other| other.content_hash().unwrap()).collect();
    assert!(!hashes.contains(&hash));
    assert_eq!(hashes.iter().collect::<std::collections::HashSet<_>>().len(), hashes.len());
}

#[test]
fn the_body_of_a_change_is_that_of_the_file() {
    for unit in units() {
        for (heading, change) in &unit.changes {
            let body = encode_change(heading, change).unwrap();
            assert_eq!(&decode_change(heading, &body).unwrap(), change);
            let narrow = TableHeading { columns: vec!["id".into()], ..TableHeading::clone(heading) };
            assert!(decode_change(&narrow, &body).is_err(), "{change:?}");
        }
    }
}

#[test]
fn an_upload_is_shown() {
    let render = |format| {
        let mut out = String::new();
        show(Cursor::new(upload()), format, &mut out).unwrap();
        out
    };
    let text = render(ShowFormat::Text);
    assert!(text.starts_with("file direction=upload file=00000007 SHOP-01 incarnation=2 first=11 last=20"), "{text}");
    assert!(text.contains("unit 11 applied=480 revision=3 cut_at=2023-11-14T22:13:20Z changes=4 label=order 17 hidden=3 9\n"), "{text}");
    let update = "  update Orders key(id=5) before(id=5, note=NULL) base(id=5, note='server') after(id=6, note='J\u{fc}rgen') \
                  whole(id=6, name=NULL, note='J\u{fc}rgen')\n";
    assert!(text.contains(update), "{text}");
    assert!(text.contains("  delete Odd \"name\" key(id=7) before(id=7, name='a', note=NULL)\n"), "{text}");
    assert!(text.contains("unit 15 "), "{text}");
    let json: serde_json::Value = serde_json::from_str(&render(ShowFormat::Json)).unwrap();
    assert_eq!(json["header"]["install_id"], "33".repeat(16));
    assert_eq!((&json["units"][1]["items"][0]["after"][0]["value"], &json["units"][1]["changes"]), (&6.into(), &4.into()));
    let xml = render(ShowFormat::Xml);
    assert_eq!(xml.matches("<unit ").count(), 3);
    assert!(xml.contains("<update table=\"Orders\">"), "{xml}");
    assert_eq!(verify(Cursor::new(upload())).unwrap().summary.operations, 8);
}
