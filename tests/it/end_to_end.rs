//! The download path through all stages but the network: plain SQL in, local rows out.

use dockmaster::base::ids::{Epoch, FileNo, NodeName};
use dockmaster::client::apply::{self, ApplyFolders};
use dockmaster::docking::root::{Access, DockingRoot};
use dockmaster::model::dock::*;
use dockmaster::model::value::{Collation, Value};
use dockmaster::server::deploy::{DeployOptions, deploy};
use dockmaster::server::nodes::{self, NodeSettings};
use dockmaster::server::pass::{ServeOptions, Stage, run};
use dockmaster::store::local::LocalDatabase;
use dockmaster::store::sqlite::ServerDatabase;
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;

fn column(name: &str) -> DockColumn {
    DockColumn { name: name.into(), sent: true, collation: Collation::Binary }
}

fn table(name: &str, columns: &[&str], object: Option<usize>, member_of: Option<Reference>) -> DockTable {
    DockTable {
        name: name.into(),
        columns: columns.iter().map(|name| column(name)).collect(),
        key: vec![0],
        key_is_rowid: true,
        object,
        member_of,
        dangling: vec![],
        by_comparison: false,
        merge: Default::default(),
    }
}

fn object(name: &str, table: usize, members: Vec<usize>) -> DockObject {
    DockObject { name: name.into(), table, members, direction: Direction::TwoWay, writable: false, give_away: false, window: None }
}

fn dock() -> Dock {
    let reference = |table, column, to_table| Reference { table, columns: vec![column], to_table, to_columns: vec![0] };
    Dock {
        tables: vec![
            table("customer", &["id", "name"], Some(0), None),
            table("line", &["id", "order_id", "qty"], Some(1), Some(reference(1, 1, 2))),
            table("orders", &["id", "customer_id", "employee_id"], Some(1), None),
        ],
        objects: vec![object("customer", 0, vec![]), object("orders", 2, vec![1])],
        rules: vec![
            VisibilityRule {
                name: "orders.own".into(),
                object: 1,
                kind: RuleKind::Path(RulePath { start: vec![2], hops: vec![], attribute: 0 }),
                predicate: None,
                window: None,
            },
            VisibilityRule {
                name: "customer.ordered".into(),
                object: 0,
                kind: RuleKind::Referenced(vec![reference(2, 1, 0)]),
                predicate: None,
                window: None,
            },
        ],
        attributes: vec![NodeAttribute {
            name: "employee".into(),
            source: AttributeSource::Given { kind: AttributeType::Integer, must_exist: None, many: false },
        }],
        models: vec![],
    }
}

const SCHEMA: &str = "
CREATE TABLE customer(id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE orders(id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customer, employee_id INTEGER);
CREATE TABLE line(id INTEGER PRIMARY KEY, order_id INTEGER REFERENCES orders ON DELETE CASCADE, qty INTEGER);
INSERT INTO customer VALUES(1,'Ann'),(2,'Ben'),(3,'Cid');
INSERT INTO orders VALUES(10,1,100),(11,2,100),(12,3,200);
INSERT INTO line VALUES(1000,10,1),(1001,11,2),(1002,12,3);
";

fn rows(path: &Path, sql: &str) -> Vec<String> {
    let conn = Connection::open(path).unwrap();
    let mut statement = conn.prepare(sql).unwrap();
    let columns = statement.column_count();
    let mut rows = statement.query([]).unwrap();
    let mut found = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        let values: Vec<String> = (0..columns).map(|at| format!("{:?}", row.get_ref(at).unwrap())).collect();
        found.push(values.join("|"));
    }
    found
}

#[test]
fn sr1_to_sr22_without_the_network() {
    let folder = tempfile::tempdir().unwrap();
    let hq = folder.path().join("hq.db");
    Connection::open(&hq).unwrap().execute_batch(SCHEMA).unwrap();
    let root = Arc::new(DockingRoot::open(&folder.path().join("docking"), Access::Exclusive).unwrap());
    let server = ServerDatabase::open(&hq).unwrap();
    let options = DeployOptions {
        dock: dock(),
        schema: server.schema().unwrap(),
        text: "version = 1".into(),
        server_name: "HQ".into(),
        database: hq.clone(),
        day_starts_minutes: 0,
    };
    deploy(&options, &root).unwrap();

    for (name, employee) in [("ANNA", 100), ("BERT", 200)] {
        let name: NodeName = name.parse().unwrap();
        let mut settings = NodeSettings::default();
        settings.attributes.insert("employee".into(), vec![employee.to_string()]);
        nodes::add(&server, &options.dock, &name, &settings).unwrap();
        nodes::start(&server, &name).unwrap();
    }
    let serve = ServeOptions::new(&hq, "127.0.0.1:0");
    let pass = run(&serve, &root, &[Stage::TxnProc, Stage::Router]).unwrap();
    assert_eq!(pass.extracts, 2);

    let mut locals = Vec::new();
    for name in ["ANNA", "BERT"] {
        let name: NodeName = name.parse().unwrap();
        let extract = std::fs::File::open(root.extract(&name, dockmaster::base::ids::Incarnation(1))).unwrap();
        let path = folder.path().join(format!("{name}.db"));
        zstd::stream::copy_decode(extract, std::fs::File::create(&path).unwrap()).unwrap();
        locals.push((name, path));
    }
    assert_eq!(rows(&locals[0].1, "SELECT id FROM customer ORDER BY 1"), ["Integer(1)", "Integer(2)"]);
    assert_eq!(rows(&locals[1].1, "SELECT id FROM line ORDER BY 1"), ["Integer(1002)"]);

    // Order 11 moves from Anna to Bert, customer 1 changes, order 12 goes.
    Connection::open(&hq)
        .unwrap()
        .execute_batch("BEGIN; UPDATE orders SET employee_id = 200 WHERE id = 11; UPDATE customer SET name = 'Änn' WHERE id = 1; DELETE FROM line WHERE id = 1002; DELETE FROM orders WHERE id = 12; COMMIT")
        .unwrap();
    let pass = run(&serve, &root, &[Stage::TxnProc, Stage::Router]).unwrap();
    assert_eq!(pass.units, 1);
    for (name, path) in &locals {
        let sync = folder.path().join(format!("{name}.db.sync"));
        for sub in ["inbox", "outbox", "tmp", "quarantine"] {
            std::fs::create_dir_all(sync.join(sub)).unwrap();
        }
        std::fs::copy(root.outbox_file(name, FileNo(1)), sync.join("inbox").join(FileNo(1).file_name())).unwrap();
        let mut local = LocalDatabase::open(path).unwrap();
        let report = apply::step(&mut local, &ApplyFolders::below(&sync)).unwrap();
        assert!(report.stopped.is_none(), "{report:?}");
        assert_eq!(local.state().unwrap().epoch, Epoch(1));
    }
    assert_eq!(rows(&locals[0].1, "SELECT id, name FROM customer ORDER BY 1").len(), 1);
    assert_eq!(rows(&locals[0].1, "SELECT id FROM line"), ["Integer(1000)"]);
    assert_eq!(rows(&locals[1].1, "SELECT id FROM orders"), ["Integer(11)"]);
    assert_eq!(rows(&locals[1].1, "SELECT id FROM customer"), ["Integer(2)"]);
    let _ = Value::Null;
}

#[test]
fn a_stopped_table_holds_its_object_and_what_is_seen_through_it_and_nothing_else() {
    use dockmaster::rules::frozen::frozen;
    use dockmaster::rules::graph::ScopeGraph;
    use std::collections::BTreeSet;
    let mut dock = dock();
    let graph = ScopeGraph::compile(&dock).unwrap();
    let (customer, line, orders) = (0, 1, 2);
    assert_eq!(frozen(&dock, &graph, &BTreeSet::from([customer])), BTreeSet::from([customer]));
    // Lines travel with orders, and customers are seen through orders.
    assert_eq!(frozen(&dock, &graph, &BTreeSet::from([line])), BTreeSet::from([customer, line, orders]));
    assert_eq!(frozen(&dock, &graph, &BTreeSet::new()), BTreeSet::new());
    // A link table on the node's side.
    dock.tables.push(table("staff", &["id", "boss"], None, None));
    let hop = Hop { table: 3, join: vec![1], filters: vec![], out: vec![0] };
    dock.attributes.push(NodeAttribute {
        name: "team".into(),
        source: AttributeSource::Derived { from: 0, hops: vec![NodeHop { hop, recursive: true }] },
    });
    dock.rules[0].kind = RuleKind::Path(RulePath { start: vec![2], hops: vec![], attribute: 1 });
    let graph = ScopeGraph::compile(&dock).unwrap();
    assert_eq!(frozen(&dock, &graph, &BTreeSet::from([3])), BTreeSet::from([customer, line, orders, 3]));
}

#[test]
fn h1_a_pass_purges_what_was_read_and_keeps_the_last_rows_for_people() {
    let folder = tempfile::tempdir().unwrap();
    let hq = folder.path().join("hq.db");
    Connection::open(&hq).unwrap().execute_batch(SCHEMA).unwrap();
    let root = Arc::new(DockingRoot::open(&folder.path().join("docking"), Access::Exclusive).unwrap());
    let schema = ServerDatabase::open(&hq).unwrap().schema().unwrap();
    let text = "version = 1".to_owned();
    deploy(&DeployOptions { dock: dock(), schema, text, server_name: "HQ".into(), database: hq.clone(), day_starts_minutes: 0 }, &root)
        .unwrap();
    let many =
        "WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 15099) INSERT INTO customer SELECT i, 'c' FROM n";
    Connection::open(&hq).unwrap().execute_batch(many).unwrap();
    let serve = ServeOptions::new(&hq, "127.0.0.1:0");
    assert_eq!(run(&serve, &root, &[Stage::TxnProc]).unwrap().units, 1);
    assert_eq!(rows(&hq, "SELECT count(*) FROM dock_txn_log"), ["Integer(10000)"]);
    // What is not read yet is never taken away.
    Connection::open(&hq).unwrap().execute_batch("UPDATE customer SET name = 'd'").unwrap();
    assert_eq!(rows(&hq, "SELECT count(*) FROM dock_txn_log"), ["Integer(25003)"]);
}
