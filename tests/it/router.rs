//! The Transaction Router: rounds as files, and everything that may stop it. The decision alone is in `route`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use crate::route::{Replica, UnitBuilder, World, everyone, node, own};
use dockmaster::base::ids::{ContentHash, Epoch, FileNo, Incarnation, InstallId, Revision, ServerId, TxnId};
use dockmaster::base::step::Progress;
use dockmaster::docking::ledger::{Ledger, OutboxFile};
use dockmaster::docking::root::{Access, DockingRoot};
use dockmaster::dx::header::{DxDirection, Expected, Header};
use dockmaster::dx::reader::{DownloadReader, Unit};
use dockmaster::dx::writer::TxnprocFile;
use dockmaster::model::event::{SchemaKind, SchemaObject, ScopeKey, UnitEvents};
use dockmaster::model::value::Value;
use dockmaster::server::round::RoundLimits;
use dockmaster::server::router::{Router, RouterError, RouterOptions};
use dockmaster::store::txnproc::TXNPROC_FILE_TABLE;
use rusqlite::{Connection, params};
use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

/// A docking root with the Transaction Processor's side written by hand.
struct Docking {
    root: Arc<DockingRoot>,
    cds: Connection,
    last: (u64, i64, ContentHash),
    _folder: tempfile::TempDir,
}

impl Docking {
    fn new() -> Docking {
        let folder = tempfile::tempdir().unwrap();
        let root = Arc::new(DockingRoot::open(&folder.path().join("docking"), Access::Exclusive).unwrap());
        // As `deploy` makes it.
        drop(Ledger::create(&root.ledger_db()).unwrap());
        let cds = Connection::open(root.cds_db()).unwrap();
        cds.pragma_update(None, "journal_mode", "WAL").unwrap();
        cds.execute_batch(TXNPROC_FILE_TABLE).unwrap();
        Docking { root, cds, last: (0, 0, ContentHash::default()), _folder: folder }
    }

    fn header(&self, last: i64) -> Header {
        Header {
            direction: DxDirection::Txnproc,
            server_id: ServerId([7; 16]),
            epoch: Epoch(1),
            node: None,
            incarnation: Incarnation(0),
            file_no: FileNo(self.last.0 + 1),
            first: TxnId(self.last.1 + 1),
            last: TxnId(last),
            revision: Revision(1),
            previous: self.last.2,
            install_id: InstallId::default(),
            applied_unit: TxnId(0),
        }
    }

    /// Writes the next txnproc file and its row.
    fn write(&mut self, units: &[UnitBuilder]) {
        let units: Vec<UnitEvents> = units.iter().map(|unit| unit.0.clone()).collect();
        let header = self.header(units.last().unwrap().unit.0);
        self.write_as(&header, &units);
    }

    fn write_as(&mut self, header: &Header, units: &[UnitEvents]) {
        let (bytes, summary) = TxnprocFile::assemble(header, units, 3).unwrap();
        self.root.disk().put(&self.root.txnproc_tmp(), &self.root.txnproc(), &header.file_no.file_name(), &bytes).unwrap();
        let sql = "INSERT INTO txnproc_file(file_no, first, last, content_hash, bytes, created) VALUES(?1, ?2, ?3, ?4, ?5, 0)";
        let (no, first, last) = (header.file_no.0 as i64, header.first.0, header.last.0);
        self.cds.execute(sql, params![no, first, last, summary.content_hash.0, bytes.len() as i64]).unwrap();
        self.last = (header.file_no.0, last, summary.content_hash);
    }

    fn router(&self) -> Router {
        Router::open(self.root.clone(), RouterOptions::default()).unwrap()
    }

    fn router_with(&self, limits: RoundLimits) -> Router {
        Router::open(self.root.clone(), RouterOptions { limits, ..RouterOptions::default() }).unwrap()
    }

    fn files(&self, name: &str) -> Vec<OutboxFile> {
        let ledger = Ledger::open(&self.root.ledger_db()).unwrap();
        let incarnation = ledger.stream(&node(name)).unwrap().map(|stream| stream.incarnation).unwrap_or_default();
        ledger.files_after(&node(name), incarnation, FileNo(0), 10_000).unwrap()
    }

    /// Reads a node's stream as a client would: each file checked against its row, its name and the one before it.
    fn received(&self, name: &str) -> Vec<Unit> {
        let stream = Ledger::open(&self.root.ledger_db()).unwrap().stream(&node(name)).unwrap();
        let (mut last, mut hash) = (stream.map(|stream| stream.start_unit).unwrap_or_default(), ContentHash::default());
        let mut units: Vec<Unit> = Vec::new();
        for (place, row) in self.files(name).into_iter().enumerate() {
            assert_eq!(row.file_no, FileNo(place as u64 + 1));
            let bytes = std::fs::read(self.root.outbox_file(&row.node, row.file_no)).unwrap();
            let mut reader = DownloadReader::open(Cursor::new(&bytes)).unwrap();
            let header = reader.header().clone();
            let expected = Expected {
                direction: DxDirection::Download,
                server_id: ServerId([7; 16]),
                epoch: Epoch(1),
                node: Some(&row.node),
                incarnation: row.incarnation,
                file_no: row.file_no,
            };
            expected.check(&header).unwrap();
            assert_eq!((header.previous, header.first.0), (hash, last.0 + 1));
            let summary = *reader.summary();
            assert_eq!((summary.content_hash, summary.byte_hash, summary.bytes), (row.content_hash, row.byte_hash, row.bytes));
            assert_eq!((header.first, header.last, summary.operations), (row.first, row.last, row.operations));
            (last, hash) = (header.last, summary.content_hash);
            units.extend(reader.units().map(Result::unwrap));
        }
        assert!(units.is_sorted_by(|one, other| one.txn < other.txn), "each unit once, ascending");
        units
    }

    fn replica(&self, name: &str) -> Replica {
        let mut replica = Replica::default();
        self.received(name).iter().for_each(|unit| replica.apply(unit).unwrap());
        replica
    }
}

fn drain(router: &mut Router) -> usize {
    (0..).take_while(|_| router.step().unwrap() == Progress::Worked).count()
}

#[test]
fn r8_the_same_number_under_two_rules_is_two_keys() {
    let by_check = ScopeKey { path: "Customers.ordered<Orders.own".to_owned(), value: Value::Integer(5) };
    let mut docking = Docking::new();
    let start = UnitBuilder::new(1).start("FULL", 1, &[own(5), by_check.clone()]).start("NARROW", 1, &[own(5)]);
    let rows = UnitBuilder::new(2).insert(1, &[own(5)]).row("Customers", 1, Some("c"), false, &[], &[by_check]);
    docking.write(&[start, rows]);
    drain(&mut docking.router());
    let tables = |name| docking.replica(name).0.into_keys().map(|(table, _)| table).collect::<Vec<_>>();
    assert_eq!(tables("FULL"), ["Customers", "Orders"]);
    assert_eq!(tables("NARROW"), ["Orders"]);
}

#[test]
fn r15_a_stream_begins_after_the_unit_of_the_extract() {
    let mut docking = Docking::new();
    let mut router = docking.router();
    assert_eq!(router.step().unwrap(), Progress::Idle);
    docking.write(&[UnitBuilder::new(10).insert(1, &[own(5)])]);
    // The start's own unit is in the extract already.
    docking.write(&[UnitBuilder::new(20).start("N", 1, &[own(5)]).insert(2, &[own(5)]), UnitBuilder::new(30).insert(3, &[own(5)])]);
    drain(&mut router);
    docking.write(&[UnitBuilder::new(40).insert(4, &[own(5)])]);
    drain(&mut router);
    assert_eq!(router.position(), TxnId(40));
    let units: Vec<i64> = docking.received("N").iter().map(|unit| unit.txn.0).collect();
    assert_eq!(units, [30, 40]);
    assert_eq!(docking.files("N")[0].first, TxnId(21));
}

#[test]
fn r15_a_new_incarnation_begins_with_file_1_and_no_old_file_stays() {
    let mut docking = Docking::new();
    let mut router = docking.router();
    docking.write(&[UnitBuilder::new(1).start("N", 1, &[own(5)]), UnitBuilder::new(2).insert(1, &[own(5)])]);
    drain(&mut router);
    docking.write(&[UnitBuilder::new(3).insert(2, &[own(5)])]);
    drain(&mut router);
    assert_eq!(docking.files("N").len(), 2);
    // In one file: work for the old incarnation, the new start with other keys, work for the new one.
    docking.write(&[
        UnitBuilder::new(4).insert(3, &[own(5)]),
        UnitBuilder::new(5).start("N", 2, &[own(6)]),
        UnitBuilder::new(6).insert(4, &[own(5)]).insert(5, &[own(6)]),
    ]);
    drain(&mut router);
    let units = docking.received("N");
    assert_eq!(units.len(), 1);
    assert_eq!((units[0].txn, units[0].operations.len()), (TxnId(6), 1));
    assert_eq!(docking.files("N")[0].incarnation, Incarnation(2));
    let names: Vec<_> = std::fs::read_dir(docking.root.outbox(&node("N"))).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["00000001.dx"]);
}

#[test]
fn c13_a_stopped_node_gets_nothing_and_the_others_go_on() {
    let mut docking = Docking::new();
    let mut router = docking.router();
    docking.write(&[UnitBuilder::new(1).start("A", 1, &[everyone()]).start("B", 1, &[everyone()])]);
    docking.write(&[UnitBuilder::new(2).insert(1, &[everyone()])]);
    drain(&mut router);
    docking.write(&[UnitBuilder::new(3).stop("B").insert(2, &[everyone()]), UnitBuilder::new(4).insert(3, &[everyone()])]);
    drain(&mut router);
    assert_eq!(docking.replica("A").0.len(), 3);
    assert_eq!(docking.replica("B").0.len(), 1);
    drop(router);
    // The same after a restart, from the ledger alone.
    docking.write(&[UnitBuilder::new(5).insert(4, &[everyone()])]);
    drain(&mut docking.router());
    assert_eq!(docking.replica("A").0.len(), 4);
    assert_eq!(docking.replica("B").0.len(), 1);
}

#[test]
fn c17_rounds_are_closed_at_their_limits_and_no_unit_is_torn() {
    let mut docking = Docking::new();
    let units: Vec<UnitBuilder> =
        (0..40).map(|unit| (0..7).fold(UnitBuilder::new(10 + unit), |built, row| built.insert(unit * 100 + row, &[own(5)]))).collect();
    docking.write(&[UnitBuilder::new(1).start("N", 1, &[own(5)]).start("M", 1, &[own(9)])]);
    docking.write(&units);
    let mut router = docking.router_with(RoundLimits { file_operations_goal: 20, ..RoundLimits::default() });
    assert_eq!(drain(&mut router), 14);
    let files = docking.files("N");
    assert_eq!(files.len(), 14);
    assert!(files[..13].iter().all(|file| file.operations == 21), "closed by the first unit that reaches the goal");
    assert!(docking.received("N").iter().all(|unit| unit.operations.len() == 7));
    assert!(docking.files("M").is_empty() && !docking.root.outbox(&node("M")).exists());

    // One unit above every goal stays one unit of one file.
    let huge = (0..50).fold(UnitBuilder::new(100), |built, row| built.insert(10_000 + row, &[own(5)]));
    docking.write(&[huge, UnitBuilder::new(101).insert(1, &[own(9)])]);
    drain(&mut router);
    assert_eq!(docking.received("N").last().unwrap().operations.len(), 50);
    assert_eq!(docking.replica("M").0.len(), 1);
    // By bytes: each unit has about 7 * 20 of them.
    let mut docking_by_bytes = Docking::new();
    docking_by_bytes.write(&[UnitBuilder::new(1).start("N", 1, &[own(5)])]);
    docking_by_bytes.write(&units);
    assert!(drain(&mut docking_by_bytes.router_with(RoundLimits { round_bytes_goal: 1_000, ..RoundLimits::default() })) > 4);
    assert_eq!(docking_by_bytes.replica("N").0.len(), 280);
}

/// Fault 36: a unit far above what is held in memory is sealed and put aside piece by piece. The frames for several nodes are still
/// made once, the controls come once, and each node has the unit whole, in one file.
#[test]
fn f36_c17_a_unit_larger_than_memory_is_put_together_from_disk() {
    let mut docking = Docking::new();
    let start = ["A", "B", "C"].into_iter().enumerate();
    let start = start.fold(UnitBuilder::new(1), |built, (place, name)| built.start(name, 1, &[everyone(), own(place as i64)]));
    let mut huge = (0..900i64).fold(UnitBuilder::new(2), |built, id| {
        let text = format!("{:x}", id.wrapping_mul(0x9e37_79b9_7f4a_7c15u64 as i64));
        let key = if id % 2 == 0 { everyone() } else { own(id % 3) };
        built.row("Products", id, Some(&text), false, &[], &[key])
    });
    huge.0.schema.push(SchemaObject { kind: SchemaKind::View, name: "v".to_owned(), sql: None, keeps_rows: true });
    docking.write(&[start, huge, UnitBuilder::new(3).insert(1, &[own(1)])]);
    let limits = RoundLimits { held_bytes_max: 4_000, part_bytes_goal: 500, shared_frame_bytes_min: 500, ..RoundLimits::default() };
    assert_eq!(drain(&mut docking.router_with(limits)), 1);
    let bytes = ["A", "B", "C"].map(|name| std::fs::read(docking.root.outbox_file(&node(name), FileNo(1))).unwrap());
    let start = dockmaster::dx::format::HEADER_BYTES;
    assert!(bytes.iter().all(|file| file[start..start + 500] == bytes[0][start..start + 500]), "the shared frame is the same bytes");
    for (place, name) in ["A", "B", "C"].into_iter().enumerate() {
        let file = &docking.files(name)[0];
        let frames = DownloadReader::open(Cursor::new(&bytes[place])).unwrap().summary().frames;
        assert!(frames > 10, "{frames} frames");
        let units = docking.received(name);
        assert_eq!(units.len(), if place == 1 { 2 } else { 1 });
        assert_eq!(units[0].operations.len(), 600);
        assert_eq!((units[0].controls.schema.len(), units[0].controls.reset), (1, false));
        assert_eq!((file.first, file.last), (TxnId(2), TxnId(3)));
    }
}

/// R17 through the Router: a broad frame shared by all, a group's, and each node's own, merged by unit at every node.
#[test]
fn r17_shared_frames_are_made_once_and_merged_by_unit() {
    let mut docking = Docking::new();
    let names = ["A", "B", "C"];
    let mut first = UnitBuilder::new(1);
    for (place, name) in names.iter().enumerate() {
        first = first.start(name, 1, &[everyone(), own(place as i64)]);
    }
    let mut units = vec![first];
    for unit in 2..60i64 {
        let text = format!("{:x}", unit.wrapping_mul(0x9e37_79b9_7f4a_7c15u64 as i64));
        let built = UnitBuilder::new(unit).row("Products", unit, Some(&text), false, &[], &[everyone()]);
        units.push(built.insert(unit, &[own(unit % 3)]).row("Notes", unit, Some("n"), false, &[], &[own(0), own(1)]));
    }
    docking.write(&units);
    let mut router = docking.router_with(RoundLimits { shared_frame_bytes_min: 500, ..RoundLimits::default() });
    assert_eq!(drain(&mut router), 1);
    let bytes = names.map(|name| std::fs::read(docking.root.outbox_file(&node(name), FileNo(1))).unwrap());
    // The first frame (all of Products) is the same bytes in all three files.
    let length = 500;
    let start = dockmaster::dx::format::HEADER_BYTES;
    assert!(bytes.iter().all(|file| file[start..start + length] == bytes[0][start..start + length]));
    for (place, name) in names.into_iter().enumerate() {
        let units = docking.received(name);
        assert_eq!(units.len(), 58);
        for unit in units {
            let tables: BTreeSet<String> = unit.operations.iter().map(|(heading, _)| heading.name.clone()).collect();
            assert!(tables.contains("Products"));
            assert_eq!(tables.contains("Notes"), place < 2);
            assert_eq!(tables.contains("Orders"), unit.txn.0 % 3 == place as i64);
        }
    }
}

/// Late or prompt, in one go or restarted for every file, whatever the compression: the same operations; and for the same
/// ranges the same content hashes (R25, R28).
#[test]
fn r25_r28_the_result_is_a_function_of_the_stream() {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut world = World::default();
    let names = ["N1", "N2", "N3"];
    let mut start = UnitBuilder::new(1);
    for name in names {
        world.nodes.insert(name.to_owned(), BTreeSet::new());
        start = start.start(name, 1, &[]);
    }
    let mut units = vec![start];
    units.extend((2..120).map(|unit| UnitBuilder(world.change(&mut rng, unit))));
    let (mut prompt, mut late, mut again, mut aside) = (Docking::new(), Docking::new(), Docking::new(), Docking::new());
    for unit in units.chunks(3) {
        prompt.write(unit);
        late.write(unit);
        again.write(unit);
        aside.write(unit);
        drain(&mut prompt.router());
    }
    drain(&mut late.router());
    drain(&mut Router::open(again.root.clone(), RouterOptions { zstd_level: 15, ..RouterOptions::default() }).unwrap());
    // Fault 36: row by row, with next to nothing held in memory.
    let limits = RoundLimits { held_bytes_max: 200, part_bytes_goal: 1, ..RoundLimits::default() };
    assert_eq!(drain(&mut aside.router_with(limits)), 1);
    assert_eq!(std::fs::read_dir(aside.root.router_tmp()).unwrap().count(), 0, "what was put aside is gone after the round");
    for name in names {
        assert_eq!(prompt.replica(name), world.visible(name));
        let sorted = |docking: &Docking| {
            let mut units = docking.received(name);
            units.iter_mut().for_each(|unit| unit.operations.sort_by_key(|operation| format!("{operation:?}")));
            units
        };
        assert_eq!(sorted(&prompt), sorted(&late));
        assert_eq!(sorted(&aside), sorted(&late));
        let hashes = |docking: &Docking| docking.files(name).iter().map(|file| file.content_hash).collect::<Vec<_>>();
        assert_eq!(hashes(&late), hashes(&again));
        assert!(prompt.files(name).len() > 5 && late.files(name).len() == 1);
    }
}

// ---- What stops it.

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn d3_a_damaged_txnproc_file_stops_the_router_by_name_until_it_is_whole() {
    let mut docking = Docking::new();
    docking.write(&[UnitBuilder::new(1).start("N", 1, &[own(5)])]);
    docking.write(&[UnitBuilder::new(2).insert(1, &[own(5)])]);
    docking.write(&[UnitBuilder::new(3).insert(2, &[own(5)])]);
    let path = docking.root.txnproc_file(FileNo(2));
    let whole = std::fs::read(&path).unwrap();
    let mut router = docking.router();
    for damage in [0usize, 230, 400] {
        edit(&path, |bytes| {
            let at = damage.min(bytes.len() - 1);
            bytes[at] ^= 4;
        });
        let error = router.step().unwrap_err();
        assert!(matches!(&error, RouterError::Txnproc { path: named, .. } if *named == path), "{error:?}");
        assert!(error.to_string().ends_with("txnproc/00000002.dx"));
        std::fs::write(&path, &whole).unwrap();
    }
    edit(&path, |bytes| bytes.truncate(300));
    assert!(router.step().is_err());
    std::fs::remove_file(&path).unwrap();
    assert!(router.step().unwrap_err().to_string().contains("00000002.dx"));
    assert!(docking.files("N").is_empty(), "nothing was routed past it");
    std::fs::write(&path, &whole).unwrap();
    drain(&mut router);
    assert_eq!(docking.replica("N").0.len(), 2);
}

#[test]
fn fault17_fault18_a_txnproc_file_that_does_not_follow_stops_the_router() {
    let fresh = || {
        let mut docking = Docking::new();
        docking.write(&[UnitBuilder::new(1).start("N", 1, &[own(5)])]);
        let mut router = docking.router();
        drain(&mut router);
        (docking, router)
    };
    let unit = || vec![UnitBuilder::new(9).insert(1, &[own(5)]).0];
    let refused = |router: &mut Router| router.step().unwrap_err().to_string();

    let (mut docking, mut router) = fresh();
    let header = Header { server_id: ServerId([8; 16]), ..docking.header(9) };
    docking.write_as(&header, &unit());
    assert!(refused(&mut router).contains("00000002.dx: it is of server 0808"));

    let (mut docking, mut router) = fresh();
    let header = Header { epoch: Epoch(0), ..docking.header(9) };
    docking.write_as(&header, &unit());
    assert!(refused(&mut router).contains("epoch 0, before 1"));

    let (mut docking, mut router) = fresh();
    let header = Header { previous: ContentHash([1; 32]), ..docking.header(9) };
    docking.write_as(&header, &unit());
    assert!(refused(&mut router).contains("does not follow the file that was routed before it"));

    let (mut docking, mut router) = fresh();
    let header = Header { file_no: FileNo(3), ..docking.header(9) };
    docking.write_as(&header, &unit());
    assert!(refused(&mut router).contains("file 00000002 should come first"));

    // Right content under another number, and another content under the right number.
    let (mut docking, mut router) = fresh();
    docking.write(&[UnitBuilder(unit().remove(0))]);
    let second = docking.root.txnproc_file(FileNo(2));
    let copy = std::fs::read(docking.root.txnproc_file(FileNo(1))).unwrap();
    std::fs::write(&second, copy).unwrap();
    assert!(refused(&mut router).contains("its header says file 00000001"));
}

#[test]
fn keys_of_a_node_that_is_not_active_stop_the_router_by_name() {
    let mut docking = Docking::new();
    docking.write(&[UnitBuilder::new(1).node_keys("GHOST", &[own(5)], &[])]);
    let error = docking.router().step().unwrap_err();
    assert!(matches!(error, RouterError::Route { .. }));
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("node GHOST"));
}

#[test]
fn s3_a_file_above_the_ledger_goes_at_the_start_and_a_number_below_is_not_used_again() {
    let mut docking = Docking::new();
    docking.write(&[UnitBuilder::new(1).start("N", 1, &[own(5)])]);
    let mut router = docking.router();
    for unit in 2..5 {
        docking.write(&[UnitBuilder::new(unit).insert(unit, &[own(5)])]);
        drain(&mut router);
    }
    std::fs::remove_file(docking.root.outbox_file(&node("N"), FileNo(2))).unwrap();
    let stray = docking.root.outbox_file(&node("N"), FileNo(4));
    std::fs::write(&stray, b"never named").unwrap();
    let half = docking.root.router_tmp().join("00000004.dx.1-1.tmp");
    std::fs::write(&half, b"half").unwrap();
    let mut router = docking.router();
    assert!(!stray.exists() && !half.exists(), "what a crash left goes");
    assert!(docking.root.outbox_file(&node("N"), FileNo(3)).exists(), "only what is above the ledger goes");
    // A stray that the start did not find, further up: the round that meets it fails once, and the next one has room.
    let further = docking.root.outbox_file(&node("N"), FileNo(5));
    std::fs::write(&further, b"never named").unwrap();
    docking.write(&[UnitBuilder::new(9).insert(9, &[own(5)])]);
    drain(&mut router);
    assert_eq!(docking.files("N").last().unwrap().file_no, FileNo(4));
    docking.write(&[UnitBuilder::new(10).insert(10, &[own(5)])]);
    let error = router.step().unwrap_err();
    assert!(error.is_transient(), "{error}");
    drain(&mut router);
    assert_eq!(docking.files("N").last().unwrap().file_no, FileNo(5));
    assert_ne!(std::fs::read(&further).unwrap(), b"never named");
}

#[test]
fn idle_nodes_cost_no_file_no_row_and_no_folder() {
    let mut docking = Docking::new();
    let mut start = UnitBuilder::new(1);
    for number in 0..2_000 {
        start = start.start(&format!("N{number}"), 1, &[own(number)]);
    }
    docking.write(&[start]);
    let mut router = docking.router();
    drain(&mut router);
    docking.write(&[UnitBuilder::new(2).insert(1, &[own(77)])]);
    drain(&mut router);
    assert_eq!(docking.root.nodes().unwrap(), [node("N77")]);
    assert_eq!(docking.files("N77").len(), 1);
}

/// 10,000 nodes run. A row for one of them costs one file; a row for a thousand a file each, made by several threads as one group.
#[test]
fn c16_g14_10_000_nodes_cost_a_round_what_it_delivers_and_a_start_one_look_each() {
    const NODES: i64 = 10_000;
    let mut docking = Docking::new();
    let mut start = UnitBuilder::new(1);
    for number in 0..NODES {
        let keys = if number % 10 == 0 { vec![everyone(), own(number)] } else { vec![own(number)] };
        start = start.start(&format!("N{number}"), 1, &keys);
    }
    docking.write(&[start]);
    let mut router = docking.router();
    drain(&mut router);
    let timed = |what: &str, docking: &mut Docking, router: &mut Router, unit: UnitBuilder| {
        docking.write(&[unit]);
        let began = std::time::Instant::now();
        drain(router);
        println!("{what}: {:?}", began.elapsed());
    };
    timed("10,000 nodes, a row for one", &mut docking, &mut router, UnitBuilder::new(2).insert(1, &[own(77)]));
    assert_eq!(docking.root.nodes().unwrap(), [node("N77")]);
    timed("10,000 nodes, a row for 1,000", &mut docking, &mut router, UnitBuilder::new(3).insert(2, &[everyone()]));
    timed("10,000 nodes, another one", &mut docking, &mut router, UnitBuilder::new(4).insert(3, &[everyone()]));
    for (name, rows) in [("N0", 2), ("N77", 1), ("N5000", 2), ("N9990", 2), ("N9999", 0)] {
        assert_eq!(docking.replica(name).0.len(), rows, "{name}");
    }
    drop(router);
    let began = std::time::Instant::now();
    let mut router = docking.router();
    println!("10,000 nodes, start: {:?}", began.elapsed());
    assert_eq!(router.step().unwrap(), Progress::Idle);
}
