//! The Transaction Router: the decision as a property, rounds as files, everything that may stop it.

use dockmaster::base::ids::{ContentHash, Epoch, FileNo, Incarnation, InstallId, NodeName, Revision, ServerId, TxnId};
use dockmaster::base::step::Progress;
use dockmaster::docking::ledger::{Ledger, OutboxFile};
use dockmaster::docking::root::{Access, DockingRoot};
use dockmaster::docking::txnproc::TXNPROC_FILE_TABLE;
use dockmaster::dx::header::{DxDirection, Expected, Header};
use dockmaster::dx::reader::{DownloadReader, Unit};
use dockmaster::dx::writer::TxnprocFile;
use dockmaster::model::event::{NodeEvent, RowEvent, ScopeKey, TableHeading, UnitEvents};
use dockmaster::model::operation::Operation;
use dockmaster::model::value::{Row, RowKey, Value};
use dockmaster::rules::route::{Action, NodeKeys, route};
use dockmaster::server::round::RoundLimits;
use dockmaster::server::router::{Router, RouterError, RouterOptions};
use rusqlite::{Connection, params};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn own(value: i64) -> ScopeKey {
    ScopeKey { path: "Orders.own".to_owned(), value: Value::Integer(value) }
}

fn everyone() -> ScopeKey {
    ScopeKey { path: "everyone".to_owned(), value: Value::Null }
}

/// Builds a unit by hand.
#[derive(Debug, Clone, Default)]
struct UnitBuilder(UnitEvents);

impl UnitBuilder {
    fn new(unit: i64) -> UnitBuilder {
        UnitBuilder(UnitEvents { unit: TxnId(unit), revision: Revision(1), ..UnitEvents::default() })
    }

    fn keys(&mut self, keys: &[ScopeKey]) -> Vec<u32> {
        let index = |all: &mut Vec<ScopeKey>, key: &ScopeKey| {
            all.iter().position(|known| known == key).unwrap_or_else(|| {
                all.push(key.clone());
                all.len() - 1
            }) as u32
        };
        keys.iter().map(|key| index(&mut self.0.keys, key)).collect()
    }

    fn start(mut self, name: &str, incarnation: u32, keys: &[ScopeKey]) -> UnitBuilder {
        let keys = self.keys(keys);
        self.0.nodes.push(NodeEvent::Start { node: node(name), incarnation: Incarnation(incarnation), keys });
        self
    }

    fn stop(mut self, name: &str) -> UnitBuilder {
        self.0.nodes.push(NodeEvent::Stop { node: node(name) });
        self
    }

    fn node_keys(mut self, name: &str, gained: &[ScopeKey], lost: &[ScopeKey]) -> UnitBuilder {
        let (gained, lost) = (self.keys(gained), self.keys(lost));
        self.0.nodes.push(NodeEvent::Keys { node: node(name), gained, lost });
        self
    }

    /// `text`: the row after the unit; `changed`: whether the unit changed its content.
    fn row(mut self, table: &str, id: i64, text: Option<&str>, changed: bool, before: &[ScopeKey], after: &[ScopeKey]) -> UnitBuilder {
        let table = self.0.tables.iter().position(|known| known.name == table).unwrap_or_else(|| {
            let columns = vec!["id".to_owned(), "text".to_owned()];
            self.0.tables.push(TableHeading { name: table.to_owned(), columns, key: vec![0] });
            self.0.tables.len() - 1
        });
        let (keys_before, keys_after) = (self.keys(before), self.keys(after));
        self.0.rows.push(RowEvent {
            table: table as u32,
            key: vec![Value::Integer(id)],
            row: text.map(|text| vec![Value::Integer(id), Value::text(text)]),
            changed: if changed { vec![1] } else { vec![] },
            keys_before,
            keys_after,
        });
        self
    }

    fn insert(self, id: i64, keys: &[ScopeKey]) -> UnitBuilder {
        let text = format!("order {id}");
        self.row("Orders", id, Some(&text), false, &[], keys)
    }
}

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
        let sql = "INSERT INTO txnproc_file(file_no, first, last, content_hash, bytes, created) VALUES(?1, ?2, ?3, ?4, ?5, '')";
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

/// What a node holds; refuses a row that comes twice, or leaves without having come.
#[derive(Debug, Default, Clone, PartialEq)]
struct Replica(BTreeMap<(String, RowKey), Row>);

impl Replica {
    fn apply(&mut self, unit: &Unit) -> Result<(), String> {
        unit.operations.iter().try_for_each(|(heading, operation)| self.one(heading, operation))
    }

    fn one(&mut self, heading: &TableHeading, operation: &Operation) -> Result<(), String> {
        let place = |key: &RowKey| (heading.name.clone(), key.clone());
        match operation {
            Operation::Delete { key } => self.0.remove(&place(key)).map(drop).ok_or(format!("deleted {key:?} was not there")),
            Operation::Put { row } => match self.0.insert(place(&vec![row[0].clone()]), row.clone()) {
                None => Ok(()),
                Some(old) => Err(format!("put {old:?} was there")),
            },
            Operation::Update { key, changes } => {
                let row = self.0.get_mut(&place(key)).ok_or(format!("updated {key:?} was not there"))?;
                changes.iter().for_each(|(column, value)| row[usize::from(*column)] = value.clone());
                Ok(())
            }
        }
    }
}

// ---- The decision.

/// The three wrong orders of R7, and the right one.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Order {
    Right,
    KeysFirst,
    KeysLast,
    ChangeByChange,
}

/// Routes a unit in that order: the wrong ones show the rows a map of one moment only.
fn deliver(order: Order, nodes: &mut NodeKeys, unit: &UnitEvents) -> Vec<(NodeName, Action, usize)> {
    let rows = |from: usize, to: usize| UnitEvents { rows: unit.rows[from..to].to_vec(), nodes: vec![], ..unit.clone() };
    let keys = UnitEvents { rows: vec![], ..unit.clone() };
    let (all, half) = (unit.rows.len(), unit.rows.len() / 2);
    let parts = match order {
        Order::Right => vec![(0, unit.clone())],
        Order::KeysFirst => vec![(0, keys), (0, rows(0, all))],
        Order::KeysLast => vec![(0, rows(0, all)), (0, keys)],
        Order::ChangeByChange => vec![(0, rows(0, half)), (0, keys), (half, rows(half, all))],
    };
    let mut deliveries = Vec::new();
    for (offset, part) in parts {
        let routed = route(nodes, &part).unwrap();
        for delivery in routed.deliveries {
            for index in routed.audiences[delivery.audience].iter() {
                deliveries.push((nodes.node(*index).unwrap().0.clone(), delivery.action, offset + delivery.row));
            }
        }
    }
    deliveries
}

/// A little world: rows with key sets, nodes with key sets, random units, and the naive answer.
#[derive(Debug, Default, Clone)]
struct World {
    rows: BTreeMap<i64, (String, BTreeSet<ScopeKey>)>,
    nodes: BTreeMap<String, BTreeSet<ScopeKey>>,
}

impl World {
    fn visible(&self, name: &str) -> Replica {
        let keys = &self.nodes[name];
        let rows = self.rows.iter().filter(|(_, (_, row_keys))| !row_keys.is_disjoint(keys));
        let held =
            rows.map(|(id, (text, _))| (("Orders".to_owned(), vec![Value::Integer(*id)]), vec![Value::Integer(*id), Value::text(text)]));
        Replica(held.collect())
    }

    fn random_keys(rng: &mut fastrand::Rng) -> BTreeSet<ScopeKey> {
        let key = |rng: &mut fastrand::Rng| ScopeKey { path: ["a", "b"][rng.usize(..2)].to_owned(), value: Value::Integer(rng.i64(0..3)) };
        (0..rng.usize(..3)).map(|_| key(rng)).collect()
    }

    /// Changes the world at random; returns the unit that the Transaction Processor would make of it.
    fn change(&mut self, rng: &mut fastrand::Rng, unit: i64) -> UnitEvents {
        let before = self.clone();
        for _ in 0..rng.usize(1..4) {
            let id = rng.i64(0..8);
            match rng.u8(..4) {
                0 => drop(self.rows.remove(&id)),
                1 => drop(self.rows.insert(id, (rng.u32(..).to_string(), World::random_keys(rng)))),
                2 => self.rows.entry(id).and_modify(|row| row.1 = World::random_keys(rng)).or_default().0.push('x'),
                _ => drop(self.rows.entry(id).and_modify(|row| row.1 = World::random_keys(rng))),
            }
        }
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in names {
            if rng.u8(..3) == 0 {
                self.nodes.insert(name, World::random_keys(rng));
            }
        }
        let mut built = UnitBuilder::new(unit);
        let mut moved = BTreeSet::new();
        for (name, keys) in &self.nodes {
            let (gained, lost): (Vec<_>, Vec<_>) =
                (keys.difference(&before.nodes[name]).cloned().collect(), before.nodes[name].difference(keys).cloned().collect());
            moved.extend(gained.iter().chain(&lost).cloned());
            if !gained.is_empty() || !lost.is_empty() {
                built = built.node_keys(name, &gained, &lost);
            }
        }
        let ids: BTreeSet<i64> = self.rows.keys().chain(before.rows.keys()).copied().collect();
        for id in ids {
            let (old, new) = (before.rows.get(&id), self.rows.get(&id));
            let keys =
                |row: Option<&(String, BTreeSet<ScopeKey>)>| row.map(|row| row.1.iter().cloned().collect::<Vec<_>>()).unwrap_or_default();
            let (was, is) = (keys(old), keys(new));
            if old != new || was.iter().chain(&is).any(|key| moved.contains(key)) {
                let changed = matches!((old, new), (Some(old), Some(new)) if old.0 != new.0);
                built = built.row("Orders", id, new.map(|row| row.0.as_str()), changed, &was, &is);
            }
        }
        built.0
    }
}

/// Runs one random history; says what went wrong first.
fn history(order: Order, seed: u64) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut world = World::default();
    let mut nodes = NodeKeys::new();
    let mut replicas: BTreeMap<String, Replica> = BTreeMap::new();
    for name in ["N1", "N2", "N3"] {
        world.nodes.insert(name.to_owned(), BTreeSet::new());
        nodes.start(node(name), Incarnation(1), &[] as &[ScopeKey]);
        replicas.insert(name.to_owned(), Replica::default());
    }
    for unit in 1..12 {
        let events = world.change(&mut rng, unit);
        for (name, action, row) in deliver(order, &mut nodes, &events) {
            let event = &events.rows[row];
            let visible = world.visible(name.as_str());
            if action != Action::Delete && !visible.0.contains_key(&("Orders".to_owned(), event.key.clone())) {
                return Err(format!("seed {seed} unit {unit}: leak of row {:?} to {name}", event.key));
            }
            let row = || event.row.clone().unwrap();
            let operation = match action {
                Action::Delete => Operation::Delete { key: event.key.clone() },
                Action::Put => Operation::Put { row: row() },
                Action::Update => Operation::Update { key: event.key.clone(), changes: vec![(1, row()[1].clone())] },
            };
            let heading = &events.tables[event.table as usize];
            let replica = replicas.get_mut(name.as_str()).unwrap();
            replica.one(heading, &operation).map_err(|error| format!("seed {seed} unit {unit} node {name}: {error}"))?;
        }
        for (name, replica) in &replicas {
            if *replica != world.visible(name) {
                return Err(format!("seed {seed} unit {unit}: node {name} diverged"));
            }
        }
    }
    Ok(())
}

#[test]
fn r7_one_net_event_per_row_neither_diverges_nor_leaks() {
    for seed in 0..3_000 {
        history(Order::Right, seed).unwrap();
    }
    for wrong in [Order::KeysFirst, Order::KeysLast, Order::ChangeByChange] {
        let caught = (0..300).filter(|seed| history(wrong, *seed).is_err()).count();
        assert!(caught > 100, "{wrong:?} was caught in {caught} of 300 histories only");
    }
    assert!((0..300).any(|seed| history(Order::KeysLast, seed).is_err_and(|error| error.contains("leak"))));
}

/// The example of R7: node gains T9 while one row goes T8 -> T9 and another T9 -> T8.
#[test]
fn r7_rows_that_pass_a_key_which_a_node_gains() {
    let mut nodes = NodeKeys::new();
    nodes.start(node("N"), Incarnation(1), &[]);
    let (t8, t9) = (own(8), own(9));
    let unit = UnitBuilder::new(5)
        .node_keys("N", std::slice::from_ref(&t9), &[])
        .row("Orders", 1, Some("r"), true, std::slice::from_ref(&t8), std::slice::from_ref(&t9))
        .row("Orders", 2, Some("s"), true, &[t9], &[t8]);
    let deliveries = deliver(Order::Right, &mut nodes, &unit.0);
    assert_eq!(deliveries, [(node("N"), Action::Put, 0)]);
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
fn a_row_held_by_another_key_as_well_is_neither_sent_nor_deleted() {
    let mut nodes = NodeKeys::new();
    nodes.start(node("N"), Incarnation(1), &[own(1), own(2)]);
    let kept = UnitBuilder::new(1).row("Orders", 1, Some("r"), false, &[own(1)], &[own(2)]);
    assert_eq!(deliver(Order::Right, &mut nodes, &kept.0), []);
    let changed = UnitBuilder::new(2).row("Orders", 1, Some("r2"), true, &[own(1)], &[own(2)]);
    assert_eq!(deliver(Order::Right, &mut nodes, &changed.0), [(node("N"), Action::Update, 0)]);
    let mut gone = UnitBuilder::new(3).row("Orders", 1, None, false, &[own(1)], &[]);
    assert_eq!(deliver(Order::Right, &mut nodes, &gone.0), [(node("N"), Action::Delete, 0)]);
    gone.0.rows[0].keys_after = vec![0];
    assert!(route(&mut nodes, &gone.0).unwrap_err().to_string().contains("row 1 is gone but has keys"));
}

// ---- Rounds and files.

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
    let (mut prompt, mut late, mut again) = (Docking::new(), Docking::new(), Docking::new());
    for unit in units.chunks(3) {
        prompt.write(unit);
        late.write(unit);
        again.write(unit);
        drain(&mut prompt.router());
    }
    drain(&mut late.router());
    drain(&mut Router::open(again.root.clone(), RouterOptions { zstd_level: 15, ..RouterOptions::default() }).unwrap());
    for name in names {
        assert_eq!(prompt.replica(name), world.visible(name));
        let sorted = |docking: &Docking| {
            let mut units = docking.received(name);
            units.iter_mut().for_each(|unit| unit.operations.sort_by_key(|operation| format!("{operation:?}")));
            units
        };
        assert_eq!(sorted(&prompt), sorted(&late));
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
