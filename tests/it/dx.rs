//! The `.dx` format: golden files, damage, bombs, frames merged by unit, `dx show`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use dockmaster::base::ids::{ContentHash, Epoch, FileNo, Incarnation, InstallId, Revision, ServerId, TxnId, UnitNo};
use dockmaster::base::limits::{DX_FRAME_RAW_BYTES_MAX, DX_RECORD_BYTES_MAX};
use dockmaster::dx::error::DxError;
use dockmaster::dx::format::*;
use dockmaster::dx::frame::{FrameBuilder, RawFrame, SealedFrame, Sealer};
use dockmaster::dx::header::{DxDirection, Expected, Header};
use dockmaster::dx::reader::{DownloadReader, Unit};
use dockmaster::dx::record::encode_operation;
use dockmaster::dx::show::{ShowFormat, show, verify};
use dockmaster::dx::txnproc_reader::TxnprocReader;
use dockmaster::dx::writer::{NodeFile, TxnprocFile, TxnprocWriter, write_file};
use dockmaster::model::event::{
    BucketDigest, ConfirmEvent, Mark, MarkEvent, NodeEvent, RowEvent, SchemaKind, SchemaObject, ScopeKey, TableDigest, TableHeading,
    UnitControls, UnitEvents,
};
use dockmaster::model::operation::Operation;
use dockmaster::model::upload::{Confirm, Conflict, KeyMapping, Outcome, UnitId, Winner};
use dockmaster::model::value::Value;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Instant;

fn download_header() -> Header {
    Header {
        direction: DxDirection::Download,
        server_id: ServerId([0x11; 16]),
        epoch: Epoch(1),
        node: Some("SHOP-01".parse().unwrap()),
        incarnation: Incarnation(2),
        file_no: FileNo(42),
        first: TxnId(101),
        last: TxnId(120),
        revision: Revision(3),
        previous: ContentHash([0x22; 32]),
        install_id: InstallId::default(),
        applied_unit: TxnId(0),
    }
}

fn txnproc_header() -> Header {
    Header { direction: DxDirection::Txnproc, node: None, incarnation: Incarnation(0), ..download_header() }
}

fn heading(name: &str) -> TableHeading {
    TableHeading { name: name.to_owned(), columns: vec!["id".to_owned(), "name".to_owned()], key: vec![0] }
}

/// Every storage class, awkward ones among them.
fn values() -> Vec<Value> {
    let mut values = vec![Value::Null, Value::Integer(i64::MIN), Value::Integer(i64::MAX), Value::Real(-0.0), Value::Real(f64::INFINITY)];
    values.extend([Value::Text(b"\xff\x00'".to_vec()), Value::text("J\u{fc}rgen & <Co> \"x\""), Value::Blob(vec![0, 1, 255])]);
    values
}

fn unit(txn: i64) -> UnitEvents {
    let row = |id: i64, row: Option<Value>, changed: Vec<u16>, keys_before: Vec<u32>| RowEvent {
        table: (id % 2) as u32,
        key: vec![Value::Integer(id)],
        keys_after: if row.is_some() { vec![0, 1] } else { vec![] },
        row: row.map(|value| vec![Value::Integer(id), value]),
        changed,
        keys_before,
    };
    let mut rows: Vec<RowEvent> =
        values().into_iter().enumerate().map(|(id, value)| row(id as i64, Some(value), vec![1], vec![0])).collect();
    rows.push(row(100, None, vec![], vec![1]));
    UnitEvents {
        unit: TxnId(txn),
        read_at_micros: 1_700_000_000_000_000,
        revision: Revision(3),
        day: 0,
        schema: Vec::new(),
        whole_schema: Vec::new(),
        marks: Vec::new(),
        confirms: Vec::new(),
        tables: vec![heading("Orders"), heading("Odd \"name\"")],
        keys: vec![
            ScopeKey { path: "Orders.own".to_owned(), value: Value::Integer(5) },
            ScopeKey { path: "everyone".to_owned(), value: Value::Null },
        ],
        nodes: vec![
            NodeEvent::Start { node: "SHOP-01".parse().unwrap(), incarnation: Incarnation(1), keys: vec![0, 1] },
            NodeEvent::Stop { node: "SHOP-02".parse().unwrap() },
            NodeEvent::Keys { node: "SHOP-03".parse().unwrap(), gained: vec![0], lost: vec![1] },
        ],
        rows,
    }
}

fn operations() -> Vec<(TxnId, TableHeading, Operation)> {
    let mut operations: Vec<_> = values()
        .into_iter()
        .enumerate()
        .map(|(id, value)| (TxnId(101 + id as i64), heading("Orders"), Operation::Put { row: vec![Value::Integer(id as i64), value] }))
        .collect();
    let update = Operation::Update { key: vec![Value::Integer(7)], changes: vec![(1, Value::text("new"))] };
    operations.push((TxnId(110), heading("Odd \"name\""), update));
    operations.push((TxnId(110), heading("Orders"), Operation::Delete { key: vec![Value::Integer(8)] }));
    operations
}

/// A unit of everything that came with version 2 and, in `told`, with later ones.
fn telling_unit(told: &UnitControls) -> UnitEvents {
    let mut unit = unit(120);
    unit.day = 20_000;
    unit.schema = told.schema.clone();
    let event = |confirm: &Confirm| ConfirmEvent { node: "SHOP-03".parse().unwrap(), confirm: confirm.clone() };
    unit.confirms = told.confirms.iter().map(event).collect();
    unit.whole_schema =
        vec![SchemaObject { kind: SchemaKind::Table, name: "b".to_owned(), sql: Some("CREATE TABLE b(id)".to_owned()), keeps_rows: false }];
    unit.marks = vec![MarkEvent { node: "SHOP-03".parse().unwrap(), mark: told.marks[0].clone() }];
    unit.nodes.push(NodeEvent::Restart { node: "SHOP-04".parse().unwrap(), incarnation: Incarnation(2), keys: vec![1] });
    unit
}

fn told() -> UnitControls {
    let mut told = told_v2();
    let rules = r#"[{"table":"a"}]"#.to_owned();
    told.schema.push(SchemaObject { kind: SchemaKind::MergeRules, name: String::new(), sql: Some(rules), keeps_rows: true });
    let conflict = |column: Option<&str>, winner, values: [Option<Value>; 3]| {
        let [base, server, client] = values;
        let (table, rule, column) = ("Orders".to_owned(), "server-wins".to_owned(), column.map(str::to_owned));
        Conflict {
            id: 17,
            table,
            key: vec![Value::Integer(7)],
            column,
            base,
            server,
            client,
            winner,
            rule,
            at_micros: 1_700_000_000_000_000,
        }
    };
    let conflicts = vec![
        conflict(Some("name"), Winner::Server, [Some(Value::Real(-0.0)), Some(Value::Text(b"\xff\x00".to_vec())), Some(Value::Null)]),
        conflict(None, Winner::Open, [None, None, Some(Value::Blob(vec![0]))]),
    ];
    let keys = vec![KeyMapping { table: "Orders".to_owned(), old: vec![Value::Integer(1)], new: vec![Value::Integer(1_000)] }];
    let reason = || "a \"reason\"".to_owned();
    let outcomes = [
        Outcome::Merged { conflicts, keys },
        Outcome::Held { reason: reason() },
        Outcome::Ignored { reason: reason() },
        Outcome::Returned { reason: reason() },
    ];
    let confirm = |(place, outcome)| Confirm { unit: UnitId { install: InstallId([9; 16]), number: UnitNo(place as u64 + 1) }, outcome };
    told.confirms = outcomes.into_iter().enumerate().map(confirm).collect();
    told
}

/// What version 2 knew.
fn told_v2() -> UnitControls {
    let bucket = BucketDigest { bucket: 1, rows: 1, sum: [7; 16], each: vec![(1, 2)] };
    UnitControls {
        reset: true,
        schema: vec![
            SchemaObject { kind: SchemaKind::Table, name: "a".to_owned(), sql: None, keeps_rows: false },
            SchemaObject {
                kind: SchemaKind::View,
                name: "v".to_owned(),
                sql: Some("CREATE VIEW v AS SELECT 1".to_owned()),
                keeps_rows: true,
            },
        ],
        marks: vec![Mark { id: 9, tables: vec![TableDigest { heading: heading("Orders"), bucket_count: 2, buckets: vec![bucket] }] }],
        confirms: Vec::new(),
    }
}

fn frames(operations: &[(TxnId, TableHeading, Operation)]) -> Vec<Arc<SealedFrame>> {
    let mut builder = FrameBuilder::new();
    for (txn, heading, operation) in operations {
        builder.operation(*txn, heading, &encode_operation(operation).unwrap()).unwrap();
    }
    builder.finish(&mut Sealer::new(3).unwrap()).unwrap()
}

fn download() -> Vec<u8> {
    download_of(&told())
}

fn download_of(told: &UnitControls) -> Vec<u8> {
    // Units that tell something: one that has operations too, one between others, one behind them.
    let mut builder = FrameBuilder::new();
    for unit in [TxnId(105), TxnId(109), TxnId(115)] {
        builder.controls(unit, told).unwrap();
    }
    let mut frames = frames(&operations());
    frames.extend(builder.finish(&mut Sealer::new(3).unwrap()).unwrap());
    NodeFile::assemble(&download_header(), &frames).unwrap().0
}

fn txnproc() -> Vec<u8> {
    TxnprocFile::assemble(&txnproc_header(), &[unit(105), telling_unit(&told())], 3).unwrap().0
}

fn read_units(bytes: &[u8]) -> Result<Vec<Unit>, DxError> {
    DownloadReader::open(Cursor::new(bytes))?.units().collect()
}

fn flat(units: &[Unit]) -> Vec<(TxnId, TableHeading, Operation)> {
    let each =
        units.iter().flat_map(|unit| unit.operations.iter().map(|(heading, op)| (unit.txn, TableHeading::clone(heading), op.clone())));
    each.collect()
}

fn seal_raw(bytes: Vec<u8>, units: Vec<TxnId>, operations: u64) -> Vec<Arc<SealedFrame>> {
    vec![Sealer::new(3).unwrap().seal(RawFrame { bytes, units, operations }).unwrap()]
}

#[test]
fn what_is_written_is_read_byte_for_byte() {
    let bytes = download();
    let mut reader = DownloadReader::open(Cursor::new(&bytes)).unwrap();
    assert_eq!(reader.header(), &download_header());
    assert_eq!(Header::from_prefix(&bytes).unwrap(), download_header());
    assert_eq!((reader.summary().units, reader.summary().operations), (11, 10));
    let units: Vec<Unit> = reader.units().map(Result::unwrap).collect();
    assert_eq!(flat(&units), operations());
    let telling: Vec<(TxnId, bool)> =
        units.iter().filter(|unit| unit.controls == told()).map(|unit| (unit.txn, unit.operations.is_empty())).collect();
    assert_eq!(telling, [(TxnId(105), false), (TxnId(109), true), (TxnId(115), true)]);
    assert!(units.is_sorted_by_key(|unit| unit.txn) && units.iter().filter(|unit| unit.controls.is_empty()).count() == 8);

    let mut reader = TxnprocReader::open(Cursor::new(txnproc())).unwrap();
    assert_eq!(reader.units().map(Result::unwrap).collect::<Vec<_>>(), [unit(105), telling_unit(&told())]);
}

/// The golden files were written once by each format version and are never written again.
#[test]
fn fault51_golden_files_of_every_version_are_read() {
    let (v1_download, v1_txnproc) = (include_bytes!("golden/v1-download.dx"), include_bytes!("golden/v1-txnproc.dx"));
    assert_eq!(flat(&read_units(v1_download).unwrap()), operations());
    let mut reader = TxnprocReader::open(Cursor::new(v1_txnproc)).unwrap();
    assert_eq!(reader.units().map(Result::unwrap).collect::<Vec<_>>(), [unit(105), unit(120)]);

    let (v2_download, v2_txnproc) = (include_bytes!("golden/v2-download.dx"), include_bytes!("golden/v2-txnproc.dx"));
    assert_eq!(read_units(v2_download).unwrap(), read_units(&download_of(&told_v2())).unwrap());
    let mut reader = TxnprocReader::open(Cursor::new(v2_txnproc)).unwrap();
    assert_eq!(reader.units().map(Result::unwrap).collect::<Vec<_>>(), [unit(105), telling_unit(&told_v2())]);

    let (v3_download, v3_txnproc) = (include_bytes!("golden/v3-download.dx"), include_bytes!("golden/v3-txnproc.dx"));
    assert_eq!(read_units(v3_download).unwrap(), read_units(&download()).unwrap());
    let mut reader = TxnprocReader::open(Cursor::new(v3_txnproc)).unwrap();
    assert_eq!(reader.units().map(Result::unwrap).collect::<Vec<_>>(), [unit(105), telling_unit(&told())]);

    // The document's vectors: content hashes do not depend on zstd, so today's writer must give the same.
    for (golden, today) in [(v3_download.as_slice(), download()), (v3_txnproc, txnproc())] {
        let (golden, today) = (verify(Cursor::new(golden)).unwrap(), verify(Cursor::new(today)).unwrap());
        assert_eq!(golden.summary.content_hash, today.summary.content_hash);
    }
    for golden in [v1_download.as_slice(), v1_txnproc, v2_download, v2_txnproc, v3_download, v3_txnproc] {
        let hash = verify(Cursor::new(golden)).unwrap().summary.content_hash;
        assert!(include_str!("../../docs/dx-format.md").contains(&hash.to_string()), "{hash}");
    }
    assert_eq!(FORMAT_VERSION, 3, "a new version needs golden files of its own beside these");
}

/// Every version ever released has its files. Those of a new version are written once, over empty ones that stand in for
/// them while the tests are compiled: `DOCK_WRITE_GOLDEN=1 cargo test golden`.
#[test]
fn the_golden_files_of_this_version_stand() {
    for (name, bytes) in [("download", download()), ("txnproc", txnproc())] {
        let path = format!("{}/tests/it/golden/v{FORMAT_VERSION}-{name}.dx", env!("CARGO_MANIFEST_DIR"));
        let is_empty = std::fs::read(&path).unwrap().is_empty();
        if is_empty && std::env::var_os("DOCK_WRITE_GOLDEN").is_some() {
            std::fs::write(&path, &bytes).unwrap();
        } else {
            assert!(!is_empty, "{path} is to be written once");
        }
    }
}

#[test]
fn the_document_tells_the_version_and_sizes() {
    let document = include_str!("../../docs/dx-format.md");
    assert!(document.contains(&format!("Format version: **{FORMAT_VERSION}**")));
    for (name, size) in [("header", HEADER_BYTES), ("frame header", FRAME_HEADER_BYTES), ("trailer", TRAILER_BYTES)] {
        assert!(document.contains(&format!("The {name} is {size} bytes")), "{name} {size}");
    }
    let offsets = [
        ("version", AT_VERSION),
        ("direction", AT_DIRECTION),
        ("node length", AT_NODE_LENGTH),
        ("incarnation", AT_INCARNATION),
        ("server id", AT_SERVER_ID),
        ("epoch", AT_EPOCH),
        ("revision", AT_REVISION),
        ("node", AT_NODE),
        ("file number", AT_FILE_NO),
        ("first", AT_FIRST),
        ("last", AT_LAST),
        ("previous", AT_PREVIOUS),
        ("install id", AT_INSTALL_ID),
        ("applied unit", AT_APPLIED_UNIT),
        ("reserved", AT_RESERVED),
        ("checksum", AT_HEADER_CRC),
    ];
    for (name, at) in offsets {
        assert!(document.lines().any(|line| line.starts_with(&format!("| {at} |")) && line.contains(name)), "{name} at {at}");
    }
}

#[test]
fn d3_fault16_every_flipped_bit_is_found() {
    for bytes in [download(), txnproc()] {
        for position in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[position] ^= 1 << bit;
                assert!(verify(Cursor::new(&damaged)).is_err(), "bit {bit} of byte {position}");
            }
        }
    }
}

#[test]
fn d3_fault15_every_truncation_and_any_trailing_byte_is_found() {
    for bytes in [download(), txnproc()] {
        for length in 0..bytes.len() {
            let error = verify(Cursor::new(&bytes[..length])).expect_err("truncated");
            assert!(error.is_content(), "{length}: {error:?}");
        }
        for extra in [&[0u8][..], b"x", &[0; 200], &bytes] {
            assert!(verify(Cursor::new([&bytes[..], extra].concat())).is_err());
        }
    }
}

#[test]
fn fault51_a_newer_version_is_refused_by_name() {
    let mut bytes = download();
    bytes[AT_VERSION..AT_VERSION + 2].copy_from_slice(&7u16.to_le_bytes());
    let message = verify(Cursor::new(&bytes)).unwrap_err().to_string();
    assert_eq!(message, "format version 7; this program reads up to version 3");
    // Even if the newer header is so short that this one would not fit.
    assert!(matches!(Header::from_prefix(&bytes[..12]), Err(DxError::Version { found: 7, known: 3 })));
    assert!(matches!(verify(Cursor::new(b"SQLite format 3\0")), Err(DxError::NotDx { .. })));
    assert!(matches!(DownloadReader::open(Cursor::new(txnproc())), Err(DxError::Direction { .. })));
}

#[test]
fn unknown_records_are_refused_by_kind() {
    let raw = vec![99, 0, 0, 0, 0];
    let (bytes, _) = NodeFile::assemble(&download_header(), &seal_raw(raw.clone(), vec![], 0)).unwrap();
    assert!(matches!(DownloadReader::open(Cursor::new(bytes)), Err(DxError::UnknownRecord { kind: 99, frame: 0 })));
    let mut bytes = Vec::new();
    write_file(&txnproc_header(), &seal_raw(raw, vec![], 0), &mut bytes).unwrap();
    assert!(matches!(TxnprocReader::open(Cursor::new(bytes)), Err(DxError::UnknownRecord { kind: 99, frame: 0 })));
}

/// Well-sealed files with hostile content: the seal proves who damaged nothing, not that the sender means well.
#[test]
fn hostile_records_are_refused() {
    let record = |kind: u8, payload: &[u8]| [&[kind][..], &(payload.len() as u32).to_le_bytes(), payload].concat();
    let table = record(RECORD_HEADING, &dockmaster::dx::codec::encode("heading", &heading("T")).unwrap());
    let unit = |txn: i64| record(RECORD_UNIT, &txn.to_le_bytes());
    let operation =
        |index: u16, op: &Operation| record(RECORD_OPERATION, &[&index.to_le_bytes()[..], &encode_operation(op).unwrap()].concat());
    let delete = operation(0, &Operation::Delete { key: vec![Value::Integer(1)] });
    let no_key = TableHeading { key: vec![2], ..heading("T") };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("operation before its unit", [table.clone(), delete.clone()].concat()),
        ("operation before its heading", [unit(105), delete.clone()].concat()),
        ("unit outside of the range", [table.clone(), unit(121), delete.clone()].concat()),
        ("units descend", [table.clone(), unit(106), delete.clone(), unit(105), delete.clone()].concat()),
        ("short unit", [table.clone(), record(RECORD_UNIT, &[1]), delete.clone()].concat()),
        ("record cut off", [table.clone(), vec![RECORD_UNIT, 8, 0, 0, 0, 1]].concat()),
        ("record of 4 GB", [table.clone(), vec![RECORD_UNIT, 255, 255, 255, 255]].concat()),
        ("key outside of the columns", record(RECORD_HEADING, &dockmaster::dx::codec::encode("heading", &no_key).unwrap())),
        (
            "key of two values",
            [table.clone(), unit(105), operation(0, &Operation::Delete { key: vec![Value::Null, Value::Null] })].concat(),
        ),
        ("row of one value", [table.clone(), unit(105), operation(0, &Operation::Put { row: vec![Value::Null] })].concat()),
        (
            "column 9",
            [table.clone(), unit(105), operation(0, &Operation::Update { key: vec![Value::Null], changes: vec![(9, Value::Null)] })]
                .concat(),
        ),
        ("bytes after the operation", [table, unit(105), record(RECORD_OPERATION, &[0, 0, 0, 1, 0, 0])].concat()),
    ];
    for (name, raw) in cases {
        // Whatever it claims to hold, so that it is not only the count that is refused.
        for claimed in 0..3 {
            let mut bytes = Vec::new();
            let units = if name.contains("outside of the range") { vec![] } else { vec![TxnId(105)] };
            write_file(&download_header(), &seal_raw(raw.clone(), units, claimed), &mut bytes).unwrap();
            assert!(verify(Cursor::new(bytes)).is_err(), "{name}");
        }
    }
}

/// Sealed anew after each change, so that only the claim itself is wrong.
#[test]
fn a_trailer_that_claims_something_else_is_refused() {
    use sha2::Digest;
    for bytes in [download(), txnproc()] {
        let trailer = bytes.len() - TRAILER_BYTES;
        let fields = [TRAILER_AT_FRAMES, TRAILER_AT_UNITS, TRAILER_AT_OPERATIONS, TRAILER_AT_RAW, TRAILER_AT_CONTENT_HASH];
        for field in fields {
            let mut claiming = bytes.clone();
            claiming[trailer + field] ^= 1;
            let seal = sha2::Sha256::digest(&claiming[..trailer + TRAILER_AT_SEAL]);
            claiming[trailer + TRAILER_AT_SEAL..].copy_from_slice(&seal);
            assert!(matches!(verify(Cursor::new(claiming)), Err(DxError::Damaged { .. })), "field at {field}");
        }
    }
}

#[test]
fn bombs_are_refused_before_they_expand() {
    let crafted = |method: u8, raw: u32, stored: &[u8]| {
        let mut frame = [&FRAME_MARK[..], &[method, 0, 0, 0], &raw.to_le_bytes(), &(stored.len() as u32).to_le_bytes()].concat();
        frame.extend_from_slice(&crc32fast::hash(&frame).to_le_bytes());
        frame.extend_from_slice(stored);
        Arc::new(SealedFrame { bytes: frame, raw_len: raw, raw_hash: [0; 32], units: vec![], operations: 0 })
    };
    let zeros = zstd::bulk::compress(&vec![0u8; DX_FRAME_RAW_BYTES_MAX], 19).unwrap();
    let small = zstd::bulk::compress(&[7u8; 4000], 3).unwrap();
    let two = [&small[..], &small].concat();
    let cases = [
        ("64 MB of zeros", vec![crafted(METHOD_ZSTD, DX_FRAME_RAW_BYTES_MAX as u32, &zeros)]),
        ("a frame of 4 GB", vec![crafted(METHOD_ZSTD, u32::MAX, &zeros)]),
        ("a frame that hides its length", vec![crafted(METHOD_ZSTD, 4096, &zeros)]),
        ("two zstd frames in one", vec![crafted(METHOD_ZSTD, 8000, &two)]),
        ("an empty frame", vec![crafted(METHOD_STORED, 0, &[])]),
        ("no zstd at all", vec![crafted(METHOD_ZSTD, 100, &[1, 2, 3])]),
        ("unknown method", vec![crafted(9, 3, &[1, 2, 3])]),
    ];
    for (name, frames) in cases {
        let mut bytes = Vec::new();
        write_file(&download_header(), &frames, &mut bytes).unwrap();
        let start = Instant::now();
        let error = DownloadReader::open(Cursor::new(bytes)).expect_err(name);
        assert!(start.elapsed().as_millis() < 500, "{name}: {error}");
        let refused_for = match name {
            "64 MB of zeros" => matches!(error, DxError::Bomb { .. }),
            "a frame of 4 GB" => matches!(error, DxError::TooLarge { .. }),
            _ => matches!(error, DxError::Damaged { .. }),
        };
        assert!(refused_for, "{name}: {error:?}");
    }
    // A frame that claims more bytes than the file has.
    let mut bytes = Vec::new();
    write_file(&download_header(), &[crafted(METHOD_STORED, 64, &[0; 64])], &mut bytes).unwrap();
    let at = HEADER_BYTES + FRAME_AT_RAW;
    bytes[at..at + 8].copy_from_slice(&[0, 0, 0, 3, 0, 0, 0, 3]);
    let crc = crc32fast::hash(&bytes[HEADER_BYTES..HEADER_BYTES + FRAME_AT_CRC]);
    bytes[HEADER_BYTES + FRAME_AT_CRC..HEADER_BYTES + FRAME_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    assert!(matches!(DownloadReader::open(Cursor::new(bytes)), Err(DxError::Truncated { .. })));
}

/// What compresses better than the reader believes is stored as it is, so an honest file is never taken for a bomb.
#[test]
fn an_honest_row_of_zeros_goes_through() {
    let row = Operation::Put { row: vec![Value::Integer(1), Value::Blob(vec![0; 3 << 20])] };
    let all = vec![(TxnId(105), heading("T"), row)];
    let (bytes, summary) = NodeFile::assemble(&download_header(), &frames(&all)).unwrap();
    assert!(summary.bytes > 3 << 20);
    assert_eq!(flat(&read_units(&bytes).unwrap()), all);
}

#[test]
fn sizes_over_their_limits_are_refused_by_the_writer() {
    let large = Operation::Put { row: vec![Value::Integer(1), Value::Blob(vec![0; 33 << 20])] };
    assert!(matches!(encode_operation(&large), Err(DxError::TooLarge { what: "value", .. })));
    let wide = Operation::Put { row: vec![Value::Null; 991] };
    assert!(matches!(encode_operation(&wide), Err(DxError::TooLarge { .. })));
    let mut events = unit(105);
    events.rows[0].row = Some(vec![Value::Integer(0), Value::Real(f64::NAN)]);
    assert!(TxnprocWriter::begin(&txnproc_header(), 3, &mut Vec::new()).unwrap().unit(&events).is_err());
    let raw = RawFrame { bytes: vec![0; DX_FRAME_RAW_BYTES_MAX + 1], units: vec![], operations: 0 };
    assert!(matches!(Sealer::new(3).unwrap().seal(raw), Err(DxError::TooLarge { .. })));
    const { assert!(DX_RECORD_BYTES_MAX < DX_FRAME_RAW_BYTES_MAX) };
}

/// Fault 36: in parts of any size, the same rows in the same order, each part with every heading and key that its rows name.
#[test]
fn f36_a_unit_is_handed_out_in_parts() {
    let whole: Vec<UnitEvents> = TxnprocReader::open(Cursor::new(txnproc())).unwrap().units().map(Result::unwrap).collect();
    for goal in [1, 40, 1_000_000] {
        let bytes = txnproc();
        let mut reader = TxnprocReader::open(Cursor::new(&bytes)).unwrap();
        let mut parts = reader.parts_of(goal);
        let mut units: Vec<UnitEvents> = Vec::new();
        let mut ended = true;
        while let Some(part) = parts.next_part().unwrap() {
            assert_eq!(part.is_first, ended);
            ended = part.is_last;
            assert!(part.unit.rows.iter().all(|row| (row.table as usize) < part.unit.tables.len()));
            match units.last_mut().filter(|_| !part.is_first) {
                Some(unit) => {
                    let rows = unit.rows.iter().chain(&part.unit.rows).cloned().collect();
                    *unit = UnitEvents { rows, ..part.unit.clone() };
                }
                None => units.push(part.unit.clone()),
            }
        }
        assert!(ended);
        assert_eq!(units, whole, "parts of {goal} bytes");
    }
    // What belongs before the rows may not follow them: the first part was handed out without it.
    let mut late = Vec::new();
    let mut writer = TxnprocWriter::begin(&txnproc_header(), 3, &mut late).unwrap();
    let events = unit(105);
    writer.unit_head(&events).unwrap();
    events.rows.iter().for_each(|row| writer.row(row).unwrap());
    writer.schema(&SchemaObject { kind: SchemaKind::View, name: "v".to_owned(), sql: None, keeps_rows: true }).unwrap();
    writer.end_unit().unwrap();
    writer.finish().unwrap();
    let refused = TxnprocReader::open(Cursor::new(late)).unwrap().units().next().unwrap();
    assert!(matches!(refused, Err(DxError::Content(_))), "{refused:?}");
}

#[test]
fn c17_a_large_unit_spans_frames_and_comes_back_whole() {
    let mut events = unit(105);
    events.rows = (0..60_000)
        .map(|id| RowEvent {
            table: 0,
            key: vec![Value::Integer(id)],
            row: Some(vec![Value::Integer(id), Value::Text(format!("{:x}", id * 2_654_435_761).into_bytes().repeat(4))]),
            changed: vec![],
            keys_before: vec![],
            keys_after: vec![0],
        })
        .collect();
    let (bytes, summary) = TxnprocFile::assemble(&txnproc_header(), &[unit(104), events.clone(), unit(106)], 1).unwrap();
    assert!(summary.frames > 2, "{summary:?}");
    let read: Vec<_> = TxnprocReader::open(Cursor::new(bytes)).unwrap().units().map(Result::unwrap).collect();
    assert!(read == [unit(104), events.clone(), unit(106)]);

    let all: Vec<_> =
        events.rows.iter().map(|event| (TxnId(105), heading("T"), Operation::Put { row: event.row.clone().unwrap() })).collect();
    let frames = frames(&all);
    assert!(frames.len() > 2);
    let (bytes, _) = NodeFile::assemble(&download_header(), &frames).unwrap();
    let units = read_units(&bytes).unwrap();
    assert_eq!(units.len(), 1);
    assert!(flat(&units) == all);
}

/// R17: a frame shared by key k1 holds units 101..103, another one unit 102 only; what the client sees is unit by unit.
#[test]
fn r17_frames_are_merged_by_unit() {
    let put = |txn: i64, table: &str, id: i64| (TxnId(txn), heading(table), Operation::Put { row: vec![Value::Integer(id), Value::Null] });
    let orders = frames(&[put(101, "Orders", 1), put(102, "Orders", 2), put(103, "Orders", 3)]);
    let customers = frames(&[put(102, "Customers", 20), put(110, "Customers", 21)]);
    let own = frames(&[put(101, "Notes", 30), put(110, "Notes", 31)]);
    for order in [[&orders, &customers, &own], [&own, &customers, &orders]] {
        let frames: Vec<Arc<SealedFrame>> = order.into_iter().flatten().cloned().collect();
        let (bytes, summary) = NodeFile::assemble(&download_header(), &frames).unwrap();
        assert_eq!((summary.units, summary.operations, summary.frames), (4, 7, 3));
        let units = read_units(&bytes).unwrap();
        let seen: Vec<(i64, Vec<String>)> = units
            .iter()
            .map(|unit| {
                let mut names: Vec<_> = unit.operations.iter().map(|(heading, _)| heading.name.clone()).collect();
                names.sort();
                (unit.txn.0, names)
            })
            .collect();
        let expected =
            [(101, vec!["Notes", "Orders"]), (102, vec!["Customers", "Orders"]), (103, vec!["Orders"]), (110, vec!["Customers", "Notes"])];
        let expected: Vec<_> = expected.into_iter().map(|(txn, names)| (txn, names.into_iter().map(str::to_owned).collect())).collect();
        assert_eq!(seen, expected);
    }
}

#[test]
fn r25_content_hash_knows_content_and_chain_but_not_compression() {
    let (bytes, at_3) = NodeFile::assemble(&download_header(), &frames(&operations())).unwrap();
    let mut builder = FrameBuilder::new();
    for (txn, heading, operation) in operations() {
        builder.operation(txn, &heading, &encode_operation(&operation).unwrap()).unwrap();
    }
    let frames_19 = builder.finish(&mut Sealer::new(-50).unwrap()).unwrap();
    let (_, at_other) = NodeFile::assemble(&download_header(), &frames_19).unwrap();
    assert_eq!(at_3.content_hash, at_other.content_hash);
    assert_ne!(at_3.byte_hash, at_other.byte_hash);
    use sha2::Digest;
    assert_eq!(at_3.byte_hash.0, <[u8; 32]>::from(sha2::Sha256::digest(&bytes)));
    let base = download_header();
    let variants = [
        Header { last: TxnId(121), ..base.clone() },
        Header { file_no: FileNo(43), ..base.clone() },
        Header { previous: ContentHash([1; 32]), ..base.clone() },
        Header { node: Some("SHOP-02".parse().unwrap()), ..base.clone() },
        Header { revision: Revision(4), ..base },
    ];
    for header in variants {
        let (_, other) = NodeFile::assemble(&header, &frames(&operations())).unwrap();
        assert_ne!(other.content_hash, at_3.content_hash, "{header:?}");
    }
}

#[test]
fn fault17_fault18_a_file_of_somebody_else_is_refused_by_field() {
    let node = "SHOP-01".parse().unwrap();
    let header = download_header();
    let expected = Expected {
        direction: DxDirection::Download,
        server_id: header.server_id,
        epoch: header.epoch,
        node: Some(&node),
        incarnation: header.incarnation,
        file_no: header.file_no,
    };
    expected.check(&header).unwrap();
    let other_node = "SHOP-02".parse().unwrap();
    let cases = [
        ("server", Expected { server_id: ServerId([9; 16]), ..expected }),
        ("epoch", Expected { epoch: Epoch(0), ..expected }),
        ("node", Expected { node: Some(&other_node), ..expected }),
        ("incarnation", Expected { incarnation: Incarnation(3), ..expected }),
        ("file number", Expected { file_no: FileNo(43), ..expected }),
        ("direction", Expected { direction: DxDirection::Upload, ..expected }),
    ];
    for (field, expected) in cases {
        assert_eq!(expected.check(&header).unwrap_err().field, field);
    }
    let message = Expected { node: Some(&other_node), ..expected }.check(&header).unwrap_err().to_string();
    assert_eq!(message, "node is SHOP-01, expected SHOP-02");
}

#[test]
fn show_escapes_for_terminal_json_and_xml() {
    let hostile = "a\u{1b}[2J<img onerror=\"x\">&'\n\u{202e}";
    let all = vec![
        (TxnId(105), heading("T"), Operation::Put { row: vec![Value::Integer(1), Value::text(hostile)] }),
        (TxnId(105), heading("T"), Operation::Put { row: vec![Value::Integer(2), Value::Text(b"\xff\xfe".to_vec())] }),
        (TxnId(106), heading("<T>"), Operation::Delete { key: vec![Value::Integer(3)] }),
    ];
    let (bytes, _) = NodeFile::assemble(&download_header(), &frames(&all)).unwrap();
    let render = |format| {
        let mut out = String::new();
        show(Cursor::new(&bytes), format, &mut out).unwrap();
        out
    };
    let text = render(ShowFormat::Text);
    assert!(text.lines().all(|line| !line.chars().any(char::is_control)), "{text}");
    assert!(text.contains("unit 105\n") && text.contains("put T row(id=1, name='a\\u{1b}[2J<img"), "{text}");

    let json: serde_json::Value = serde_json::from_str(&render(ShowFormat::Json)).unwrap();
    assert_eq!(json["header"]["node"], "SHOP-01");
    assert_eq!(json["units"][0]["unit"], 105);
    assert_eq!(json["units"][0]["items"][0]["row"][1]["value"], hostile);
    assert_eq!(json["units"][0]["items"][1]["row"][1]["value"]["text_hex"], "fffe");
    assert_eq!(json["units"][1]["items"][0]["item"], "delete");
    assert_eq!(json["trailer"]["operations"], 3);

    let xml = render(ShowFormat::Xml);
    assert!(xml.contains("<delete table=\"&lt;T&gt;\">") && !xml.contains("<img") && !xml.contains('\u{1b}'), "{xml}");
    assert!(xml.contains(&format!("type=\"text\" encoding=\"hex\">{}<", hex::encode(hostile))), "{xml}");
    let depth = xml.matches("</").count() + xml.matches("/>").count();
    assert_eq!(depth, xml.matches('<').count() - xml.matches("</").count() - 1, "every element is closed");

    for format in [ShowFormat::Text, ShowFormat::Json, ShowFormat::Xml] {
        let mut out = String::new();
        show(Cursor::new(txnproc()), format, &mut out).unwrap();
        assert!(out.contains("node_start") && out.contains("Orders.own"), "{out}");
        if format == ShowFormat::Json {
            serde_json::from_str::<serde_json::Value>(&out).unwrap();
        }
    }
}
