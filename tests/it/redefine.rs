//! Another definition under running nodes (R40, C9): each gets exactly what it gains and loses, in one unit, without an extract.

use crate::harness::{Site, literals, without_server};
use dockmaster::dx::reader::DownloadReader;
use dockmaster::model::operation::Operation;
use std::path::Path;
use std::time::{Duration, Instant};

const SETTINGS: &str = "[server]\nname = \"HQ\"\ndatabase = \"hq.db\"\nlisten = \"127.0.0.1:0\"\n";
const SCHEMA: &str = "
CREATE TABLE rep(id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE visit(id INTEGER PRIMARY KEY, rep INTEGER NOT NULL REFERENCES rep(id), region TEXT, note TEXT);
CREATE TABLE photo(id INTEGER PRIMARY KEY, visit INTEGER NOT NULL REFERENCES visit(id), title TEXT);
INSERT INTO rep VALUES (1, 'Anna'), (2, 'Ben'), (3, 'Cora');
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
INSERT INTO visit SELECT i, i % 3 + 1, CASE i % 2 WHEN 0 THEN 'north' ELSE 'south' END, 'note ' || i FROM n;
INSERT INTO photo SELECT id, id, 'photo ' || id FROM visit WHERE id % 4 = 0;";
const OWN: &str = "version = 1\nreference = [\"rep\"]\n[node]\nrep = { type = \"integer\" }\n\
                   [object.visit]\nvisible.own = 'visit.rep = node.rep'\n";
const NORTH: &str = "version = 1\nreference = [\"rep\"]\n[node]\nrep = { type = \"integer\" }\n\
                     [object.visit]\nmembers = [\"photo\"]\nvisible.own = 'visit.rep = node.rep'\n\
                     visible.north = { rule = 'everyone', where = \"region = 'north'\" }\n";

fn site() -> Site {
    let database = |path: &Path| rusqlite::Connection::open(path).unwrap().execute_batch(SCHEMA).unwrap();
    let mut site = Site::new(database, OWN);
    site.dockmaster_ok(&["deploy", "--yes"]);
    let address = site.serve();
    for (node, rep) in [("ANNA", "rep=1"), ("BEN", "rep=2")] {
        site.dockmaster_ok(&["node", "add", node, "--set", rep]);
        site.remote_sync_ok(&["init", &address, "--token", &site.token(node), &format!("{node}.db")]);
    }
    site
}

fn define(site: &Site, definition: &str) {
    std::fs::write(site.path("dockmaster.toml"), format!("{}\n{SETTINGS}", without_server(definition))).unwrap();
}

/// Both nodes hold what a plain query of the server database gives, and were extracted once.
fn assert_in_step(site: &Site, where_visit: impl Fn(u32) -> String, photos: bool) {
    for (node, rep) in [("ANNA", 1), ("BEN", 2)] {
        let local = site.path(&format!("{node}.db"));
        site.remote_sync_ok(&["sync", local.to_str().unwrap()]);
        let condition = where_visit(rep);
        let visits = "SELECT * FROM visit";
        let expected = literals(&site.path("hq.db"), &format!("{visits} WHERE {condition} ORDER BY id"));
        assert_eq!(literals(&local, &format!("{visits} ORDER BY id")), expected, "{node}");
        if photos {
            let expected = format!("SELECT * FROM photo WHERE visit IN (SELECT id FROM visit WHERE {condition}) ORDER BY id");
            assert_eq!(literals(&local, "SELECT * FROM photo ORDER BY id"), literals(&site.path("hq.db"), &expected), "{node}");
        }
        assert_eq!(literals(&local, "SELECT incarnation FROM dock_state"), ["1"], "{node} was not extracted again");
    }
}

#[test]
fn f32_r40_c9_a_definition_changes_while_nodes_and_the_service_run() {
    let mut site = site();
    let own = |rep: u32| format!("rep = {rep}");
    let north = |rep: u32| format!("(rep = {rep} OR region = 'north')");
    assert_in_step(&site, own, false);

    define(&site, NORTH);
    let checked = site.dockmaster_ok(&["check"]);
    // Each has 100 visits of its own, half of them in the north, and sees 100 more by the new rule; and photos of what it sees.
    let photos =
        literals(&site.path("hq.db"), "SELECT count(*) FROM photo WHERE visit IN (SELECT id FROM visit WHERE rep = 1 OR region = 'north')");
    let gained = 100 + photos[0].parse::<u64>().unwrap();
    let line = checked.lines().find(|line| line.starts_with("ANNA")).unwrap_or_else(|| panic!("{checked}"));
    assert!(
        line.split_whitespace().nth(1) == Some(&gained.to_string()) && line.split_whitespace().nth(2) == Some("0"),
        "{gained}: {checked}"
    );
    assert!(checked.contains("2 of 2 nodes get something"), "{checked}");
    let said = site.dockmaster_ok(&["deploy", "--yes"]);
    assert!(said.contains("2 nodes that run get exactly the difference") && said.contains("Deployed revision 2"), "{said}");
    site.sqlite3("hq.db", "UPDATE visit SET note = 'changed' WHERE id <= 10");
    assert_in_step(&site, north, true);

    // Back again, this time without a service; a row is changed between.
    site.stop();
    define(&site, OWN);
    site.sqlite3("hq.db", "UPDATE visit SET rep = 2 WHERE id BETWEEN 20 AND 40");
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["run"]);
    site.serve();
    site.sqlite3("hq.db", "UPDATE visit SET rep = 1 WHERE id BETWEEN 30 AND 50");
    assert_address(&site);
    assert_in_step(&site, own, false);
    let gone = literals(&site.path("ANNA.db"), "SELECT name FROM sqlite_master WHERE name = 'photo'");
    assert!(gone.is_empty(), "a table that the definition no longer has is gone from the nodes: {gone:?}");
}

/// The service was started again and listens elsewhere.
fn assert_address(site: &Site) {
    for node in ["ANNA", "BEN"] {
        let path = site.path(&format!("{node}.db.sync/remote-sync.toml"));
        let text = std::fs::read_to_string(&path).unwrap();
        let server = text.lines().find(|line| line.starts_with("server = ")).unwrap().to_owned();
        std::fs::write(&path, text.replace(&server, &format!("server = \"{}\"", site.address()))).unwrap();
    }
}

#[test]
fn r40_x27_a_column_is_added_while_nodes_run_and_costs_no_rows() {
    let mut site = site();
    site.sqlite3("hq.db", "ALTER TABLE visit ADD COLUMN stars INTEGER NOT NULL DEFAULT 3");
    site.dockmaster_ok(&["deploy", "--yes"]);
    let local = site.path("ANNA.db");
    site.remote_sync_ok(&["sync", local.to_str().unwrap()]);
    let shown = site.dockmaster_ok(&["dx", "show", "docking/ANNA/outbox/00000001.dx"]);
    assert!(!shown.contains("put") && !shown.contains("update"), "{shown}");
    site.sqlite3("hq.db", "UPDATE visit SET stars = 5 WHERE id < 20");
    assert_in_step(&site, |rep| format!("rep = {rep}"), false);
    site.stop();
}

#[test]
fn r6_x27_a_rebuilt_table_with_another_shape_is_taken_over_by_deploy() {
    let mut site = site();
    site.sqlite3(
        "hq.db",
        "BEGIN; CREATE TABLE new_visit(id INTEGER PRIMARY KEY, rep INTEGER NOT NULL REFERENCES rep(id), region TEXT NOT NULL, \
         note TEXT, rank REAL NOT NULL); INSERT INTO new_visit SELECT id, rep, region, note, id * 0.5 FROM visit; \
         DROP TABLE visit; ALTER TABLE new_visit RENAME TO visit; COMMIT; INSERT INTO visit VALUES (1001, 1, 'west', 'after', 7)",
    );
    // The table stands still, by name, until it is deployed.
    let until = Instant::now() + Duration::from_secs(30);
    while !String::from_utf8_lossy(&site.dockmaster(&["status"]).stdout).contains("visit") {
        assert!(Instant::now() < until, "the table stops");
        std::thread::sleep(Duration::from_millis(50));
    }
    site.dockmaster_ok(&["deploy", "--yes"]);
    assert_in_step(&site, |rep| format!("rep = {rep}"), false);
    let sql = literals(&site.path("BEN.db"), "SELECT sql FROM sqlite_master WHERE name = 'visit'");
    assert!(sql[0].contains("rank REAL NOT NULL"), "{sql:?}");
    site.stop();
}

/// What each order went through on one node: `+` put, `-` deleted, in the order of the files.
fn fates(site: &Site, node: &str) -> std::collections::BTreeMap<String, String> {
    let mut fates: std::collections::BTreeMap<String, String> = Default::default();
    let mut files: Vec<_> =
        std::fs::read_dir(site.path(&format!("docking/{node}/outbox"))).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "dx"));
    files.sort();
    for file in files {
        let mut reader = DownloadReader::open(std::fs::File::open(file).unwrap()).unwrap();
        for item in reader.operations() {
            let (_, heading, operation) = item.unwrap();
            let (sign, key) = match &operation {
                Operation::Put { row } => ('+', &row[usize::from(heading.key[0])]),
                Operation::Delete { key } => ('-', &key[0]),
                Operation::Update { .. } => continue,
            };
            if heading.name == "Orders" {
                fates.entry(key.to_string()).or_default().push(sign);
            }
        }
    }
    fates
}

#[test]
fn r40_c9_northwind_orders_become_everyones_and_their_owners_again_under_load() {
    let Some(northwind) = crate::northwind::northwind() else { return };
    let definition = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/northwind.toml")).unwrap();
    let everyones = definition.replace("visible.own = 'Orders.EmployeeID = node.employee'", "visible.all = 'everyone'");
    assert_ne!(definition, everyones);
    let mut site = Site::new(|path| assert!(std::fs::copy(&northwind, path).unwrap() > 0), &definition);
    site.dockmaster_ok(&["deploy", "--yes"]);
    let address = site.serve();
    let nodes: Vec<String> = (1..=9).map(|employee| format!("E{employee}")).collect();
    for (node, employee) in nodes.iter().zip(1..) {
        site.dockmaster_ok(&["node", "add", node, "--set", &format!("employee={employee}")]);
        site.remote_sync_ok(&["init", &address, "--token", &site.token(node), &format!("{node}.db")]);
    }
    let owners = literals(&site.path("hq.db"), "SELECT OrderID, EmployeeID FROM Orders ORDER BY OrderID");
    let hq = site.path("hq.db");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let writer = std::thread::spawn(move || {
        let conn = rusqlite::Connection::open(hq).unwrap();
        conn.busy_timeout(Duration::from_secs(30)).unwrap();
        let mut rng = fastrand::Rng::with_seed(40);
        let mut written = 0;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let order = 10_248 + rng.i64(0..800);
            conn.execute("UPDATE Orders SET Freight = Freight + 1 WHERE OrderID = ?1", [order]).unwrap();
            written += 1;
            std::thread::sleep(Duration::from_millis(2));
        }
        written
    });
    define(&site, &everyones);
    site.dockmaster_ok(&["deploy", "--yes"]);
    define(&site, &definition);
    site.dockmaster_ok(&["deploy", "--yes"]);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(writer.join().unwrap() > 0);
    for (node, employee) in nodes.iter().zip(1..) {
        let local = site.path(&format!("{node}.db"));
        site.remote_sync_ok(&["sync", local.to_str().unwrap()]);
        let fates = fates(&site, node);
        for order in &owners {
            let (order, owner) = order.split_once(" | ").unwrap();
            let expected = if owner == employee.to_string() { "" } else { "+-" };
            assert_eq!(fates.get(order).map_or("", String::as_str), expected, "{node}, order {order} of {owner}");
        }
        let orders = "SELECT * FROM Orders WHERE";
        let expected = literals(&site.path("hq.db"), &format!("{orders} EmployeeID = {employee} ORDER BY OrderID"));
        assert_eq!(literals(&local, &format!("{orders} true ORDER BY OrderID")), expected, "{node}");
        assert_eq!(literals(&local, "SELECT incarnation FROM dock_state"), ["1"], "{node} was not extracted again");
    }
    site.stop();
}

/// I7: what a model would have taken out is not known without it, so its nodes are named, and nothing changes until they have another.
#[test]
fn i7_r40_a_definition_without_the_model_of_a_node_is_refused() {
    let mut site = site();
    let with_model = format!("{NORTH}[model.phone]\nwithout = [\"visit.north\"]\n");
    define(&site, &with_model);
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "set", "ANNA", "--model", "phone"]);
    let own = |node: &str| {
        site.remote_sync_ok(&["sync", site.path(&format!("{node}.db")).to_str().unwrap()]);
        literals(&site.path(&format!("{node}.db")), "SELECT count(*) FROM visit")
    };
    assert_eq!((own("ANNA"), own("BEN")), (vec!["100".to_owned()], vec!["200".to_owned()]));
    define(&site, NORTH);
    for command in [&["check"][..], &["deploy", "--yes"]] {
        let output = site.dockmaster(command);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("`phone`") && said.contains("ANNA has") && said.contains("--no-model"), "{said}");
    }
    assert_eq!(own("ANNA"), ["100"]);
    site.dockmaster_ok(&["node", "set", "ANNA", "--no-model"]);
    site.dockmaster_ok(&["deploy", "--yes"]);
    assert_eq!(own("ANNA"), ["200"]);
    site.stop();
}
