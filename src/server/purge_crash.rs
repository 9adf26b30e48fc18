//! Crash sweep of the purge (S6, S7): stop before every operation on the disk, start again, and find the same: every row has
//! its file, every file its row, and nothing went that somebody waits for.

use crate::base::clock::now_seconds;
use crate::base::disk::Disk;
use crate::base::ids::{FileNo, InstallId, NodeName};
use crate::base::step::Progress;
use crate::docking::ledger::Ledger;
use crate::docking::queue;
use crate::docking::root::{Access, DockingRoot};
use crate::docking::sessions::{Mark, SessionsDb};
use crate::model::dock::{Direction, Dock, DockColumn, DockObject, DockTable, RuleKind, VisibilityRule};
use crate::model::value::Collation;
use crate::rules::retention::Retention;
use crate::server::deploy::{DeployOptions, deploy};
use crate::server::nodes::{self, NodeSettings};
use crate::server::purge::{Purge, PurgeError};
use crate::server::router::{Router, RouterOptions};
use crate::server::txnproc::TxnProc;
use crate::session::message::AppliedTo;
use crate::store::sqlite::ServerDatabase;
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;

fn dock() -> Dock {
    let column = |name: &str| DockColumn { name: name.into(), sent: true, collation: Collation::Binary };
    Dock {
        tables: vec![DockTable {
            name: "item".into(),
            columns: vec![column("id"), column("text")],
            key: vec![0],
            key_is_rowid: true,
            object: Some(0),
            member_of: None,
            dangling: vec![],
            by_comparison: false,
            merge: Default::default(),
        }],
        objects: vec![DockObject {
            name: "item".into(),
            table: 0,
            members: vec![],
            direction: Direction::TwoWay,
            writable: false,
            give_away: false,
            window: None,
        }],
        rules: vec![VisibilityRule { name: "all".into(), object: 0, kind: RuleKind::Everyone, predicate: None, window: None }],
        attributes: vec![],
        models: vec![],
    }
}

/// A site with six files for each of two nodes, of which one has applied five, the other two, and a third that was disabled.
fn site(folder: &Path) {
    let hq = folder.join("hq.db");
    let sql = Connection::open(&hq).unwrap();
    sql.execute_batch("CREATE TABLE item(id INTEGER PRIMARY KEY, text TEXT)").unwrap();
    let root = Arc::new(DockingRoot::open(&folder.join("docking"), Access::Exclusive).unwrap());
    let server = ServerDatabase::open(&hq).unwrap();
    let schema = server.schema().unwrap();
    let text = "version = 1".to_owned();
    deploy(&DeployOptions { dock: dock(), schema, text, server_name: "HQ".into(), database: hq.clone(), day_starts_minutes: 0 }, &root)
        .unwrap();
    let mut txnproc = TxnProc::open(&hq, Arc::clone(&root)).unwrap();
    let mut router = Router::open(Arc::clone(&root), RouterOptions::default()).unwrap();
    let mut route = || {
        while txnproc.step().unwrap().progress == Progress::Worked {}
        while router.step().unwrap() == Progress::Worked {}
    };
    for name in NODES {
        nodes::add(&server, &dock(), &name.parse().unwrap(), &NodeSettings::default()).unwrap();
        nodes::start(&server, &name.parse().unwrap()).unwrap();
    }
    route();
    for _ in 0..6 {
        sql.execute_batch("INSERT INTO item(text) VALUES('x')").unwrap();
        route();
    }
    nodes::disable(&server, &"C".parse().unwrap()).unwrap();
    route();
    let ledger = Ledger::open(&root.ledger_db()).unwrap();
    for (name, file) in [("A", 5), ("B", 2)] {
        let node: NodeName = name.parse().unwrap();
        let incarnation = ledger.stream(&node).unwrap().unwrap().incarnation;
        let row = ledger.files_after(&node, incarnation, FileNo(file - 1), 1).unwrap().remove(0);
        let applied = AppliedTo { file: row.file_no, unit: row.last, hash: row.content_hash };
        let mark = Mark { node, incarnation, install_id: InstallId([1; 16]), received: row.file_no, applied, last_seen: now_seconds() };
        SessionsDb::open(&root.sessions_db()).unwrap().set_mark(&mark).unwrap();
    }
}

const NODES: [&str; 3] = ["A", "B", "C"];

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn run(folder: &Path, stop: Option<u64>) -> Result<u64, PurgeError> {
    let disk = Disk::new();
    let root = Arc::new(DockingRoot::open_with(&folder.join("docking"), Access::Exclusive, disk.clone()).unwrap());
    let before = disk.operations_done();
    if let Some(stop) = stop {
        disk.stop_after(stop);
    }
    let retention = Retention { keep_files: 2, ..Retention::default() };
    let mut purge = Purge::new(root, &folder.join("hq.db"), retention);
    while purge.step(now_seconds())? == Progress::Worked {}
    Ok(disk.operations_done() - before)
}

/// Numbers by queue: what lies there, and what the rows say.
fn found(folder: &Path) -> Vec<(Vec<u64>, Vec<u64>)> {
    let root = DockingRoot::open(&folder.join("docking"), Access::Look).unwrap();
    let numbers = |folder: &Path| queue::list(folder).unwrap().files.iter().map(|file| file.file_no.0).collect::<Vec<_>>();
    let ledger = Ledger::open(&root.ledger_db()).unwrap();
    let mut found = Vec::new();
    for name in NODES {
        let node: NodeName = name.parse().unwrap();
        let incarnation = ledger.stream(&node).unwrap().unwrap().incarnation;
        let rows = ledger.files_after(&node, incarnation, FileNo(0), 100).unwrap();
        found.push((numbers(&root.outbox(&node)), rows.iter().map(|row| row.file_no.0).collect()));
    }
    let cds = Connection::open(root.cds_db()).unwrap();
    let mut statement = cds.prepare("SELECT file_no FROM txnproc_file ORDER BY 1").unwrap();
    let rows = statement.query_map([], |row| row.get::<_, i64>(0)).unwrap().map(|row| row.unwrap().unsigned_abs()).collect();
    found.push((numbers(&root.txnproc()), rows));
    found
}

#[test]
fn s6_s7_the_purge_killed_at_every_step_is_finished_by_the_next_one() {
    let template = tempfile::tempdir().unwrap();
    site(template.path());
    let fresh = || {
        let folder = tempfile::tempdir().unwrap();
        copy(template.path(), folder.path());
        folder
    };
    let whole = fresh();
    let operations = run(whole.path(), None).unwrap();
    let expected = found(whole.path());
    let twice = |numbers: &[u64]| (numbers.to_vec(), numbers.to_vec());
    // Txnproc files 7 and 8: B waits for what was made of 4 and later, but only two newer ones are kept.
    assert_eq!(expected, [twice(&[4, 5, 6]), twice(&[1, 2, 3, 4, 5, 6]), twice(&[]), twice(&[7, 8])]);
    assert!(operations > 20, "{operations}");
    for stop in 0..operations {
        let folder = fresh();
        run(folder.path(), Some(stop)).unwrap_err();
        for (files, rows) in found(folder.path()) {
            assert!(files.iter().all(|file| rows.contains(file)), "stopped before {stop}: a file without a row: {files:?} {rows:?}");
        }
        run(folder.path(), None).unwrap();
        assert_eq!(found(folder.path()), expected, "stopped before operation {stop} of {operations}");
    }
}
