//! Another definition under running nodes (R40, C9): each gets exactly what it gains and loses, in one unit, without an extract.

use crate::harness::{Site, literals};
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
        site.remote_sync_ok(&["init", &address, "--node", node, &format!("{node}.db")]);
    }
    site
}

fn define(site: &Site, definition: &str) {
    std::fs::write(site.path("dockmaster.toml"), format!("{definition}\n{SETTINGS}")).unwrap();
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
fn r40_c9_a_definition_changes_while_nodes_and_the_service_run() {
    let mut site = site();
    let own = |rep: u32| format!("rep = {rep}");
    let north = |rep: u32| format!("(rep = {rep} OR region = 'north')");
    assert_in_step(&site, own, false);

    define(&site, NORTH);
    let said = site.dockmaster_ok(&["deploy", "--yes"]);
    assert!(said.contains("2 nodes get exactly the rows") && said.contains("Deployed revision 2"), "{said}");
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
