//! Crash sweep of the Router (C18, R25, faults 1 and 2): stop before every operation on the disk and around the ledger
//! commit, start again with another zstd level, and get the same files by content.

use crate::base::disk::Disk;
use crate::base::ids::{ContentHash, Epoch, FileNo, Incarnation, InstallId, NodeName, Revision, ServerId, TxnId};
use crate::base::step::Progress;
use crate::docking::ledger::Ledger;
use crate::docking::queue;
use crate::docking::root::{Access, DockingRoot};
use crate::dx::header::{DxDirection, Header};
use crate::dx::reader::DownloadReader;
use crate::dx::writer::TxnprocFile;
use crate::model::event::{NodeEvent, RowEvent, ScopeKey, TableHeading, UnitEvents};
use crate::model::value::Value;
use crate::server::round::RoundLimits;
use crate::server::router::{Router, RouterError, RouterOptions};
use crate::store::txnproc::TXNPROC_FILE_TABLE;
use rusqlite::{Connection, params};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

const NODES: [&str; 3] = ["A", "B", "C"];

/// Units of four txnproc files; key 0 is everybody's, key n+1 is node n's. Node B is extracted again in the third.
fn files() -> Vec<Vec<UnitEvents>> {
    let unit = |unit: i64, nodes: Vec<NodeEvent>, rows: Vec<(i64, Vec<u32>)>| UnitEvents {
        unit: TxnId(unit),
        revision: Revision(1),
        tables: vec![TableHeading { name: "T".to_owned(), columns: vec!["id".to_owned(), "text".to_owned()], key: vec![0] }],
        keys: (0..5).map(|value| ScopeKey { path: "k".to_owned(), value: Value::Integer(value) }).collect(),
        nodes,
        rows: rows
            .into_iter()
            .map(|(id, keys_after)| RowEvent {
                table: 0,
                key: vec![Value::Integer(id)],
                row: Some(vec![Value::Integer(id), Value::Text(b"some text that zstd can work on ".repeat(9))]),
                changed: vec![],
                keys_before: vec![],
                keys_after,
            })
            .collect(),
        ..UnitEvents::default()
    };
    let start = |place: u32, incarnation| NodeEvent::Start {
        node: NODES[place as usize].parse().unwrap(),
        incarnation: Incarnation(incarnation),
        keys: vec![0, place + 1],
    };
    let mixed = |at: i64| (0..6).map(move |row| (at * 100 + row, vec![(row % 4) as u32])).collect::<Vec<_>>();
    vec![
        vec![unit(1, (0..3).map(|place| start(place, 1)).collect(), vec![]), unit(2, vec![], mixed(2)), unit(3, vec![], mixed(3))],
        vec![unit(4, vec![], mixed(4))],
        vec![unit(5, vec![], mixed(5)), unit(6, vec![start(1, 2)], mixed(6)), unit(7, vec![], mixed(7))],
        vec![unit(8, vec![NodeEvent::Keys { node: "C".parse().unwrap(), gained: vec![1], lost: vec![3] }], mixed(8))],
    ]
}

/// Makes a docking root with the first `count` txnproc files, or adds those that it lacks.
fn write_txnproc(root: &DockingRoot, count: usize) {
    // As `deploy` makes it.
    drop(Ledger::create(&root.ledger_db()).unwrap());
    let cds = Connection::open(root.cds_db()).unwrap();
    cds.execute_batch(TXNPROC_FILE_TABLE).unwrap();
    let (mut first, mut previous) = (1, ContentHash::default());
    for (place, units) in files().into_iter().take(count).enumerate() {
        let file_no = FileNo(place as u64 + 1);
        let header = Header {
            direction: DxDirection::Txnproc,
            server_id: ServerId([7; 16]),
            epoch: Epoch(1),
            node: None,
            incarnation: Incarnation(0),
            file_no,
            first: TxnId(first),
            last: units.last().unwrap().unit,
            revision: Revision(1),
            previous,
            install_id: InstallId::default(),
            applied_unit: TxnId(0),
        };
        let (bytes, summary) = TxnprocFile::assemble(&header, &units, 3).unwrap();
        (first, previous) = (header.last.0 + 1, summary.content_hash);
        if !root.txnproc_file(file_no).exists() {
            root.disk().put(&root.txnproc_tmp(), &root.txnproc(), &file_no.file_name(), &bytes).unwrap();
            let sql = "INSERT INTO txnproc_file(file_no, first, last, content_hash, bytes, created) VALUES(?1, ?2, ?3, ?4, ?5, 0)";
            let row = params![file_no.0 as i64, header.first.0, header.last.0, summary.content_hash.0, bytes.len() as i64];
            cds.execute(sql, row).unwrap();
        }
    }
}

fn options(zstd_level: i32) -> RouterOptions {
    // Parts of one row, and hardly anything held in memory: it also dies between what it puts aside.
    let limits = RoundLimits {
        file_operations_goal: 5,
        shared_frame_bytes_min: 500,
        held_bytes_max: 400,
        part_bytes_goal: 1,
        ..RoundLimits::default()
    };
    RouterOptions { zstd_level, limits }
}

/// Runs the Router until it is idle or dies; `stop` counts operations from its start.
fn run(path: &Path, zstd_level: i32, stop: Option<u64>) -> Result<u64, RouterError> {
    let disk = Disk::new();
    let root = Arc::new(DockingRoot::open_with(path, Access::Exclusive, disk.clone()).unwrap());
    let before = disk.operations_done();
    if let Some(stop) = stop {
        disk.stop_after(stop);
    }
    let mut router = Router::open(root, options(zstd_level))?;
    while router.step()? == Progress::Worked {}
    Ok(disk.operations_done() - before)
}

/// What every node can see: its incarnation, its files by content, its operations by unit. Checks that outbox and ledger agree.
#[derive(Debug, PartialEq)]
struct Outcome {
    hashes: Vec<(Incarnation, Vec<ContentHash>)>,
    operations: Vec<Vec<(TxnId, String)>>,
}

fn outcome(path: &Path) -> Outcome {
    let root = DockingRoot::open(path, Access::Look).unwrap();
    let ledger = Ledger::open(&root.ledger_db()).unwrap();
    let mut outcome = Outcome { hashes: Vec::new(), operations: Vec::new() };
    for name in NODES {
        let node: NodeName = name.parse().unwrap();
        let stream = ledger.stream(&node).unwrap().unwrap();
        let rows = ledger.files_after(&node, stream.incarnation, FileNo(0), 100).unwrap();
        let names: Vec<FileNo> = queue::list(&root.outbox(&node)).unwrap().files.iter().map(|file| file.file_no).collect();
        assert_eq!(names, rows.iter().map(|row| row.file_no).collect::<Vec<_>>(), "outbox of {node} is what the ledger says");
        assert_eq!(std::fs::read_dir(root.router_tmp()).unwrap().count(), 0);
        let mut operations = Vec::new();
        for row in &rows {
            let mut reader = DownloadReader::open(File::open(root.outbox_file(&node, row.file_no)).unwrap()).unwrap();
            assert_eq!((reader.summary().content_hash, reader.summary().byte_hash), (row.content_hash, row.byte_hash));
            operations.extend(reader.operations().map(|item| item.unwrap()).map(|(txn, _, operation)| (txn, format!("{operation:?}"))));
        }
        operations.sort();
        outcome.operations.push(operations);
        outcome.hashes.push((stream.incarnation, rows.iter().map(|row| row.content_hash).collect()));
    }
    outcome
}

fn fresh(count: usize) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("docking");
    write_txnproc(&DockingRoot::open(&path, Access::Exclusive).unwrap(), count);
    (folder, path)
}

#[test]
fn c18_r25_killed_at_every_step_and_restarted_with_another_zstd_level() {
    let (_folder, path) = fresh(4);
    let operations = run(&path, 3, None).unwrap();
    let expected = outcome(&path);
    assert!(operations > 60 && expected.hashes.iter().all(|(_, hashes)| !hashes.is_empty()), "{operations} {expected:?}");
    for stop in 0..operations {
        let (_folder, path) = fresh(4);
        run(&path, 3, Some(stop)).unwrap_err();
        run(&path, 12, None).unwrap();
        assert_eq!(outcome(&path), expected, "stopped before operation {stop} of {operations}");
    }
}

/// Fault 2: it dies again while it recovers. Fault 1 with R25: the stream has grown meanwhile, so the range made anew is longer.
#[test]
fn c18_r25_killed_twice_and_with_more_to_do_after_the_restart() {
    let (_folder, path) = fresh(4);
    let operations = run(&path, 3, None).unwrap();
    let expected = outcome(&path);
    let mut rng = fastrand::Rng::with_seed(18);
    for _ in 0..60 {
        let (_folder, path) = fresh(2);
        let stops = (rng.u64(0..operations), rng.u64(0..operations));
        // It may reach the end of what is there before the stop.
        let died = run(&path, 3, Some(stops.0)).is_err();
        write_txnproc(&DockingRoot::open(&path, Access::Exclusive).unwrap(), 4);
        let died_again = run(&path, 1, Some(stops.1)).is_err();
        run(&path, 12, None).unwrap();
        assert_eq!(outcome(&path).operations, expected.operations, "stopped at {stops:?} ({died}, {died_again})");
    }
}

/// FSY: after a failed flush nothing is written any more, whatever is called, until a new process recovers.
#[test]
fn fault8_after_a_failed_flush_the_router_writes_nothing() {
    let (_folder, path) = fresh(4);
    let disk = Disk::new();
    let root = Arc::new(DockingRoot::open_with(&path, Access::Exclusive, disk.clone()).unwrap());
    let mut router = Router::open(root.clone(), options(3)).unwrap();
    disk.poison_for_test();
    for _ in 0..3 {
        router.step().unwrap_err();
    }
    assert_eq!(Ledger::open(&root.ledger_db()).unwrap().state().unwrap().position, TxnId(0));
    drop((router, root));
    run(&path, 3, None).unwrap();
    outcome(&path);
}
