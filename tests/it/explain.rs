//! `explain` against the oracle: for random nodes and rows of random worlds the verdict, the rules and the stage are the true ones.
//!
//! The data store, the txnproc files, the Router and its files are the product's; what a node has received and applied is written to
//! `sessions.db` at random. The oracle's views, unit by unit, say which operation on the row the node gets last, and with which unit.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::harness::Site;
use super::oracle::View;
use super::oracle_random::{Random, Step};
use super::oracle_router::Fault;
use super::oracle_schemas::{Subject, crm, ships};
use super::scope::{fill, folder, input};
use dockmaster::base::ids::{ContentHash, Epoch, FileNo, Incarnation, InstallId, NodeName, Nonce, Revision, ServerId, TxnId};
use dockmaster::base::step::Progress;
use dockmaster::cds::Cds;
use dockmaster::cds::layout::TxnprocFile as TxnprocRow;
use dockmaster::cds::unit::NodeChange;
use dockmaster::docking::ledger::Ledger;
use dockmaster::docking::root::{Access, DockingRoot};
use dockmaster::docking::sessions::{Mark, SessionsDb};
use dockmaster::dx::header::{DxDirection, Header};
use dockmaster::dx::writer::TxnprocFile;
use dockmaster::model::dock::Direction;
use dockmaster::model::value::{Row, RowKey};
use dockmaster::server::router::{Router, RouterOptions};
use dockmaster::server::trail::{At, Downstream, Place, Target, Trail, follow};
use dockmaster::session::message::AppliedTo;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Units of one world, and pairs that are asked for at its end.
const UNITS: i64 = 40;
const PAIRS: usize = 70;
const SEEDS: u64 = 8;

/// A world whose units are on their way to its nodes.
struct Way<'a> {
    root: Arc<DockingRoot>,
    cds: Cds,
    router: Router,
    random: Random<'a>,
    last_hash: ContentHash,
    /// The unit at which the node's present stream began.
    starts: BTreeMap<NodeName, i64>,
    /// Per node and row the unit of the last operation since then.
    last_operation: BTreeMap<(NodeName, String, RowKey), i64>,
    /// Every row that some node saw once.
    ever: BTreeSet<(usize, RowKey)>,
    routed: i64,
    _folder: tempfile::TempDir,
}

impl<'a> Way<'a> {
    fn new(subject: &'a Subject, seed: u64) -> Way<'a> {
        let folder = folder();
        let root = Arc::new(DockingRoot::open(&folder.path().join("docking"), Access::Exclusive).unwrap());
        let random = Random::new(subject, seed);
        let mut empty = random.world.clone();
        empty.nodes.clear();
        let cds = fill(&root.cds_db(), &empty);
        let router = Router::open(root.clone(), RouterOptions::default()).unwrap();
        let (starts, last_operation, ever) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        let mut way =
            Way { root, cds, router, random, last_hash: ContentHash::default(), starts, last_operation, ever, routed: 0, _folder: folder };
        let nodes = way.random.world.nodes.values().map(|node| Step::Node(NodeChange::Set(node.clone()))).collect();
        way.unit(1, nodes, &BTreeMap::new());
        way
    }

    /// Takes a unit in, writes its file, and notes what it means for every node by the views before and after it.
    fn unit(&mut self, number: i64, steps: Vec<Step>, before: &BTreeMap<NodeName, View>) {
        // Streams that begin anew in band with this unit: every row is sent with it.
        let mut anew: BTreeSet<NodeName> = BTreeSet::new();
        for step in &steps {
            let Step::Node(NodeChange::Set(node)) = step else { continue };
            let known = self.cds.nodes().get(&node.name).map(|known| known.node.incarnation);
            if known.is_none_or(|known| known < node.incarnation) {
                self.starts.insert(node.name.clone(), number);
                self.last_operation.retain(|(name, _, _), _| *name != node.name);
                if known.is_some_and(|known| node.extracted <= known) {
                    anew.insert(node.name.clone());
                } else {
                    anew.remove(&node.name);
                }
            }
        }
        let events = self.cds.process(&input(number, &steps, Fault::None)).unwrap();
        let header = Header {
            direction: DxDirection::Txnproc,
            server_id: ServerId([7; 16]),
            epoch: Epoch(1),
            node: None,
            incarnation: Incarnation(0),
            file_no: FileNo(number.unsigned_abs()),
            first: TxnId(number),
            last: TxnId(number),
            revision: Revision(1),
            previous: self.last_hash,
            install_id: InstallId::default(),
            applied_unit: TxnId(0),
        };
        let (bytes, summary) = TxnprocFile::assemble(&header, &[events], 1).unwrap();
        self.root.disk().put(&self.root.txnproc_tmp(), &self.root.txnproc(), &header.file_no.file_name(), &bytes).unwrap();
        self.last_hash = summary.content_hash;
        let row = TxnprocRow {
            file_no: header.file_no,
            first: header.first,
            last: header.last,
            content_hash: summary.content_hash,
            bytes: summary.bytes,
            created_micros: 0,
        };
        self.cds.commit(&row, Nonce::default()).unwrap();
        let after = self.random.world.views();
        for (name, view) in &after {
            let was = before.get(name).filter(|_| self.starts[name] < number);
            for (at, row) in view {
                self.ever.insert((self.cds.dock().table(&at.0).unwrap(), at.1.clone()));
                if anew.contains(name) || was.is_some_and(|was| was.get(at) != Some(row)) {
                    self.last_operation.insert((name.clone(), at.0.clone(), at.1.clone()), number);
                }
            }
            for at in was.iter().flat_map(|was| was.keys()).filter(|at| !view.contains_key(*at)) {
                self.last_operation.insert((name.clone(), at.0.clone(), at.1.clone()), number);
            }
        }
    }

    fn route(&mut self) {
        while self.router.step().unwrap() == Progress::Worked {}
        self.routed = self.router.position().0;
    }

    /// Lets a node have said at random how far it is.
    fn say(&mut self, name: &NodeName) -> Option<Mark> {
        let incarnation = self.random.world.nodes[name].incarnation;
        let ledger = Ledger::open(&self.root.ledger_db()).unwrap();
        let stream = ledger.stream(name).unwrap().filter(|stream| stream.incarnation == incarnation && stream.active)?;
        if self.random.rng.u32(0..4) == 0 {
            return None;
        }
        let files = ledger.files_after(name, incarnation, FileNo(0), 1_000).unwrap();
        let received = self.random.rng.usize(0..=files.len());
        let applied = self.random.rng.usize(0..=received);
        let unit = applied.checked_sub(1).map_or(stream.start_unit, |at| files[at].last);
        let mark = Mark {
            node: name.clone(),
            incarnation,
            install_id: InstallId([1; 16]),
            received: FileNo(received as u64),
            applied: AppliedTo { file: FileNo(applied as u64), unit, hash: ContentHash::default() },
            last_seen: 0,
        };
        SessionsDb::open(&self.root.sessions_db()).unwrap().set_mark(&mark).unwrap();
        Some(mark)
    }

    /// Where the row must be for the node, by what the test knows.
    fn expected(&self, name: &NodeName, table: usize, key: &RowKey, is_sent: bool, mark: Option<&Mark>) -> Place {
        let table_name = self.cds.dock().tables[table].name.clone();
        match self.last_operation.get(&(name.clone(), table_name, key.clone())) {
            Some(unit) if *unit > self.routed => Place::Txnproc(At { file: FileNo(unit.unsigned_abs()), unit: TxnId(*unit) }),
            Some(unit) => {
                let ledger = Ledger::open(&self.root.ledger_db()).unwrap();
                let files = ledger.files_after(name, self.random.world.nodes[name].incarnation, FileNo(0), 1_000).unwrap();
                let file = files.iter().find(|file| (file.first.0..=file.last.0).contains(unit)).unwrap().file_no;
                let at = At { file, unit: TxnId(*unit) };
                match mark {
                    Some(mark) if mark.applied.file >= file => Place::Applied(at),
                    Some(mark) if mark.received >= file => Place::Received(at),
                    _ => Place::Outbox(at),
                }
            }
            None if !is_sent => Place::NeverSent,
            None if mark.is_some() => Place::InExtract,
            None => Place::Extract,
        }
    }

    fn explained(&self, name: &NodeName, table: usize, key: &RowKey) -> (Option<BTreeSet<String>>, bool, Trail) {
        let cds = Cds::look(&self.root.cds_db()).unwrap().unwrap();
        let node = cds.running_node(name).unwrap().unwrap();
        let downstream = Downstream::look(&self.root, &node).unwrap();
        let view = cds.node_view(&node).unwrap();
        // 1 and 1.0 are one key to SQLite and two to files: what is asked for here is the exact one.
        let found = cds.find_row(table, key).unwrap().filter(|(found, _)| found == key);
        let verdict = found.map(|(_, row)| cds.explain(&view, table, &row).unwrap());
        let visible = verdict.as_ref().is_some_and(|verdict| verdict.visible);
        let declared = &cds.dock().tables[table];
        let trail = follow(&self.root, downstream, &cds, &view, Target { table: &declared.name, key }).unwrap();
        let upload = declared.object.is_some_and(|object| cds.dock().objects[object].direction == Direction::Upload);
        (verdict.map(|verdict| verdict.by), visible && !upload, trail)
    }

    /// A row that is there, or one that was.
    fn any_row(&mut self) -> (usize, RowKey, Option<Row>) {
        let table = self.random.rng.usize(0..self.random.world.rows.len());
        let gone: Vec<_> = self.ever.iter().cloned().collect();
        let rows = self.random.world.rows[table].clone();
        let here = |way: &Way<'_>, table: usize, key: &RowKey| {
            way.random.world.rows[table].iter().find(|row| way.random.world.key(table, row) == *key).cloned()
        };
        match self.random.rng.choice(&rows) {
            Some(row) if self.random.rng.u32(0..3) > 0 => (table, self.random.world.key(table, row), Some(row.clone())),
            _ => {
                let Some((table, key)) = self.random.rng.choice(&gone).cloned() else { return (table, Vec::new(), None) };
                let row = here(self, table, &key);
                (table, key, row)
            }
        }
    }
}

/// Asks for pairs of one world; returns how often each place was the answer.
fn run(subject: &Subject, seed: u64, places: &mut BTreeMap<&'static str, usize>, seen: &mut BTreeMap<bool, usize>) -> usize {
    let subject = subject.varied(seed);
    let mut way = Way::new(&subject, seed);
    for number in 2..=UNITS {
        let before = way.random.world.views();
        let steps = way.random.unit();
        way.unit(number, steps, &before);
        if way.random.rng.u32(0..6) == 0 && number < UNITS - 3 {
            way.route();
        }
    }
    let names: Vec<NodeName> = way.random.world.nodes.keys().cloned().collect();
    let marks: BTreeMap<NodeName, Option<Mark>> = names.iter().map(|name| (name.clone(), way.say(name))).collect();
    let mut asked = 0;
    for _ in 0..PAIRS {
        let Some(name) = way.random.rng.choice(&names).cloned() else { break };
        let (table, key, row) = way.any_row();
        if key.is_empty() {
            continue;
        }
        let (by, is_sent, trail) = way.explained(&name, table, &key);
        let what = format!("{} seed {seed}: {name} {} {key:?}", subject.name, way.cds.dock().tables[table].name);
        let rules = row.as_ref().map(|row| way.random.world.rules_of(&name, table, row));
        assert_eq!(by, rules, "{what}: the rules");
        let visible = row.as_ref().is_some_and(|row| way.random.world.visible(&name)[table].contains(row));
        assert_eq!(by.is_some_and(|by| !by.is_empty()), visible, "{what}: the verdict");
        let place = trail.place(is_sent);
        assert_eq!(place, way.expected(&name, table, &key, is_sent, marks[&name].as_ref()), "{what}: the stage\n{trail:?}");
        *seen.entry(visible).or_default() += 1;
        *places.entry(kind(place)).or_default() += 1;
        asked += 1;
    }
    asked
}

fn kind(place: Place) -> &'static str {
    match place {
        Place::NotStarted => "not started",
        Place::Disabled => "disabled",
        Place::Stale => "stale",
        Place::Log(_) => "log",
        Place::Txnproc(_) => "txnproc",
        Place::Extract => "extract",
        Place::Outbox(_) => "outbox",
        Place::Received(_) => "received",
        Place::Applied(_) => "applied",
        Place::InExtract => "in extract",
        Place::NeverSent => "never sent",
    }
}

#[test]
fn x40_explain_tells_the_rules_and_the_stage_of_1000_random_pairs() {
    let (mut places, mut seen, mut asked) = (BTreeMap::new(), BTreeMap::new(), 0);
    for subject in [crm(), ships()] {
        for seed in 0..SEEDS {
            asked += run(&subject, seed, &mut places, &mut seen);
        }
    }
    eprintln!("{asked} pairs, visible {seen:?}, places {places:?}");
    assert!(asked >= 1_000, "{asked}");
    for place in ["txnproc", "extract", "outbox", "received", "applied", "in extract", "never sent"] {
        assert!(places.contains_key(place), "no pair was in {place}: {places:?}");
    }
}

const ORDERS: &str = "
CREATE TABLE employee(id INTEGER PRIMARY KEY, name TEXT, region TEXT);
CREATE TABLE customer(id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE orders(id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customer(id), employee_id INTEGER REFERENCES employee(id), amount INTEGER);
CREATE TABLE line(order_id INTEGER NOT NULL REFERENCES orders(id), number INTEGER NOT NULL, what TEXT, PRIMARY KEY(order_id, number));
INSERT INTO employee VALUES(1, 'Anna', 'north'), (2, 'Bert', 'south');
INSERT INTO customer VALUES(1, 'Acme'), (2, 'Bolt');
INSERT INTO orders VALUES(10, 1, 1, 500), (11, 2, 2, 900), (12, 2, 1, 20);
INSERT INTO line VALUES(10, 1, 'bolts'), (11, 1, 'nuts');
";

const DEFINITION: &str = r#"version = 1
[node]
employee = { type = "integer", must_exist = "employee.id" }
[object.orders]
dangling = ["orders.employee_id"]
members = ["line"]
visible.own = { rule = 'orders.employee_id = node.employee', where = "amount >= 100" }
visible.region = 'orders.employee_id -> employee(id).id = node.employee'
[object.customer]
visible.ordered = 'referenced by orders'
[model.rep]
without = ["orders.region"]
"#;

/// What `explain` says: exit code and text.
fn said(site: &Site, arguments: &[&str]) -> (i32, String) {
    let output = site.dockmaster(&[&["explain"], arguments].concat());
    let text = String::from_utf8(if output.status.code() == Some(2) { output.stderr } else { output.stdout }).unwrap();
    (output.status.code().unwrap(), text)
}

#[test]
fn x40_explain_follows_a_row_from_the_log_to_the_node_and_out_of_it() {
    let mut site = Site::new(|path| rusqlite::Connection::open(path).unwrap().execute_batch(ORDERS).unwrap(), DEFINITION);
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNA", "--set", "employee=1", "--model", "rep"]);
    let (code, text) = said(&site, &["ANNA", "orders", "10"]);
    assert!(code == 1 && text.contains("was never extracted"), "{code} {text}");

    site.dockmaster_ok(&["extract", "ANNA"]);
    let (code, text) = said(&site, &["ANNA", "orders", "10"]);
    assert!(
        code == 1 && text.contains("visible by orders.own; it is in the extract, with which the node has not synchronised yet"),
        "{code} {text}"
    );
    assert!(text.contains("where amount >= 100 holds (amount = 500); employee_id = 1 -> 1 = node.employee"), "{text}");
    assert!(text.contains("not in model rep; employee_id = 1 -> employee 1 by id = 1 -> 1 = node.employee"), "{text}");

    // Not visible, and why; a member and a referenced row lead on to the rules of the order.
    let (code, text) = said(&site, &["ANNA", "orders", "11"]);
    assert!(
        code == 0 && text.contains("not visible; nothing of it was sent") && text.contains("reaches 2; node.employee has 1"),
        "{code} {text}"
    );
    let (_, text) = said(&site, &["ANNA", "orders", "12"]);
    assert!(text.contains("where amount >= 100 does not hold (amount = 20)"), "{text}");
    let (_, text) = said(&site, &["ANNA", "line", "10", "1"]);
    assert!(text.contains("goes with orders 10") && text.contains("  orders.own"), "{text}");
    let (_, text) = said(&site, &["ANNA", "customer", "2"]);
    assert!(text.contains("2 rows refer to it by orders.customer_id = customer.id, none is visible"), "{text}");
    let (_, text) = said(&site, &["ANNA", "employee", "1"]);
    assert!(text.contains("no object has this table"), "{text}");
    let (code, text) = said(&site, &["ANNA", "orders", "77"]);
    assert!(code == 0 && text.contains("there is no such row"), "{code} {text}");
    let (code, text) = said(&site, &["ANNA", "ordres", "1"]);
    assert!(code == 2 && text.contains("has no table ordres; it has customer, employee, line, orders"), "{code} {text}");
    let (code, text) = said(&site, &["ANNA", "line", "1"]);
    assert!(code == 2 && text.contains("the key of line is (order_id, number); 1 given"), "{code} {text}");

    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    site.remote_sync_ok(&["sync", "anna.db"]);
    site.stop();
    let (code, text) = said(&site, &["ANNA", "orders", "10"]);
    assert!(code == 0 && text.contains("it came with the extract"), "{code} {text}");

    // Stage by stage: the log, txnproc, the outbox, and on to the node.
    site.sqlite3("hq.db", "UPDATE orders SET amount = 501 WHERE id = 10;");
    let (code, text) = said(&site, &["ANNA", "orders", "10"]);
    assert!(code == 1 && text.contains("its last change waits in the log at"), "{code} {text}");
    site.dockmaster_ok(&["run", "txnproc"]);
    let (code, text) = said(&site, &["ANNA", "orders", "10"]);
    assert!(code == 1 && text.contains("its last change waits for the router in txnproc file"), "{code} {text}");
    site.dockmaster_ok(&["run", "router"]);
    let (code, text) = said(&site, &["ANNA", "orders", "10"]);
    assert!(code == 1 && text.contains("waits in outbox file 00000001") && text.contains("ANNA has received no file yet"), "{code} {text}");
    let kept = site.path("docking/ANNA/outbox/00000001.dx");
    std::fs::rename(&kept, site.path("away.dx")).unwrap();
    let (_, text) = said(&site, &["ANNA", "orders", "10"]);
    assert!(text.contains("file 00000001 is gone from its outbox: dockmaster extract ANNA"), "{text}");
    std::fs::rename(site.path("away.dx"), kept).unwrap();
    let config = std::fs::read_to_string(site.path("anna.db.sync/remote-sync.toml")).unwrap();
    let now = site.serve();
    std::fs::write(site.path("anna.db.sync/remote-sync.toml"), config.replace(&address, &now)).unwrap();
    site.remote_sync_ok(&["sync", "anna.db"]);
    let (code, text) = said(&site, &["ANNA", "orders", "10"]);
    assert!(code == 0 && text.contains("its last change was applied with file 00000001"), "{code} {text}");

    // Out of the view: the delete, and its file.
    site.stop();
    site.sqlite3("hq.db", "UPDATE orders SET amount = 5 WHERE id = 10;");
    site.dockmaster_ok(&["run"]);
    let (code, text) = said(&site, &["ANNA", "orders", "10"]);
    assert!(code == 1 && text.contains("not visible; its last change waits in outbox file 00000002"), "{code} {text}");
    assert!(text.contains("a delete: it left the view, or is gone"), "{text}");
    let output = site.dockmaster(&["explain", "ANNA", "orders", "10", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&json["visible"], &json["place"]["stage"], &json["stages"]["sent"]["operation"]),
        (&false.into(), &"outbox".into(), &"delete".into())
    );
    assert_eq!(json["verdict"]["rules"][0]["where"]["holds"], false);
    site.dockmaster_ok(&["node", "disable", "ANNA"]);
    let (code, text) = said(&site, &["ANNA", "orders", "10"]);
    assert!(code == 1 && text.contains("ANNA is disabled: nothing is routed to it: dockmaster node enable ANNA"), "{code} {text}");
}
