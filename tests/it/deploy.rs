//! Deploying again: the data store is filled anew whatever a killed program left of the old one, and never half.

use crate::harness::{Site, literals};
use std::path::Path;
use std::time::{Duration, Instant};

const BOTH: &str = "version = 1\n[node]\nemp = { type = \"integer\" }\n[object.a]\nvisible.own = 'a.e = node.emp'\n\
                    [object.b]\nvisible.own = 'b.e = node.emp'\n";
const ONE: &str = "version = 1\n[node]\nemp = { type = \"integer\" }\n[object.a]\nvisible.own = 'a.e = node.emp'\n";
const SCHEMA: &str = "CREATE TABLE a(id INTEGER PRIMARY KEY, e INTEGER, t TEXT); CREATE TABLE b(id INTEGER PRIMARY KEY, e INTEGER, t TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) INSERT INTO a SELECT i, i % 5, 'row ' || i FROM n;
INSERT INTO b SELECT id, e, t FROM a;";

fn site(definition: &str) -> Site {
    let database = |path: &Path| rusqlite::Connection::open(path).unwrap().execute_batch(SCHEMA).unwrap();
    let site = Site::new(database, definition);
    site.dockmaster_ok(&["deploy", "--yes"]);
    site
}

fn redefine(site: &Site, definition: &str) {
    let settings = "[server]\nname = \"HQ\"\ndatabase = \"hq.db\"\nlisten = \"127.0.0.1:0\"\n";
    std::fs::write(site.path("dockmaster.toml"), format!("{definition}\n{settings}")).unwrap();
}

fn position(site: &Site) -> String {
    let status: serde_json::Value = serde_json::from_slice(&site.dockmaster(&["status", "--json"]).stdout).unwrap();
    format!("{} {}", status["log"], status["txnproc"])
}

/// The node's database is what it may see of the table that both definitions have.
fn assert_sees_a(site: &mut Site, database: &str, table: &str) {
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("X"), database]);
    site.stop();
    let rows = format!("SELECT id, e, t FROM {table}");
    assert_eq!(literals(&site.path(database), &rows), literals(&site.path("hq.db"), &format!("{rows} WHERE e = 1")));
}

#[test]
fn r26_a_data_store_whose_program_was_killed_is_replaced_without_its_write_ahead_log() {
    let mut site = site(BOTH);
    site.dockmaster_ok(&["node", "add", "X", "--set", "emp=1"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("X"), "x.db"]);
    for _ in 0..3 {
        site.sqlite3("hq.db", "UPDATE a SET t = t || 'x', e = (e + 1) % 5");
        let until = Instant::now() + Duration::from_secs(30);
        while position(&site).split(' ').next() != position(&site).split(' ').nth(1) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    site.signal("-KILL");
    assert!(std::fs::metadata(site.path("docking/cds.db-wal")).unwrap().len() > 0, "the killed service left its log behind");
    site.dockmaster_ok(&["node", "disable", "X"]);
    redefine(&site, ONE);
    site.dockmaster_ok(&["deploy", "--yes"]);
    let sound = literals(&site.path("docking/cds.db"), "PRAGMA integrity_check");
    assert_eq!(sound, ["'ok'"]);
    site.dockmaster_ok(&["node", "enable", "X"]);
    assert_sees_a(&mut site, "x2.db", "a");
}

#[test]
fn a_deploy_that_is_refused_leaves_the_data_store_in_force() {
    let site = site(ONE);
    site.dockmaster_ok(&["run"]);
    site.sqlite3("hq.db", "CREATE TABLE k(id TEXT PRIMARY KEY, e INTEGER); INSERT INTO k VALUES(NULL, 1)");
    redefine(&site, &format!("{ONE}[object.k]\nvisible.own = 'k.e = node.emp'\n"));
    assert_ne!(site.dockmaster(&["deploy", "--yes"]).status.code(), Some(0));
    redefine(&site, ONE);
    site.sqlite3("hq.db", "UPDATE a SET t = 'changed' WHERE id = 7");
    site.dockmaster_ok(&["run"]);
}

#[test]
fn r15_more_nodes_start_at_once_than_files_may_be_open() {
    let site = site(ONE);
    let nodes: Vec<String> = (0..150).map(|number| format!("N{number:03}")).collect();
    let csv: String = nodes.iter().map(|name| format!("{name},1\n")).collect();
    std::fs::write(site.path("nodes.csv"), format!("name,emp\n{csv}")).unwrap();
    site.dockmaster_ok(&["node", "add", "--from", "nodes.csv"]);
    let mut extract: Vec<&str> = vec!["extract"];
    extract.extend(nodes.iter().map(String::as_str));
    site.dockmaster_ok(&extract);
    let program = env!("CARGO_BIN_EXE_dockmaster");
    let limited = format!("ulimit -n 64; exec '{program}' run");
    let output = std::process::Command::new("sh").args(["-c", &limited]).current_dir(site.folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in &nodes {
        assert!(site.path(&format!("docking/{name}/outbox/extract-00000001.toc")).exists(), "{name}");
    }
}

#[test]
fn r38_a_row_that_no_file_can_carry_stops_its_table_and_no_other() {
    let mut site = site(BOTH);
    site.dockmaster_ok(&["node", "add", "X", "--set", "emp=1"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("X"), "x.db"]);
    site.sqlite3("hq.db", "INSERT INTO a VALUES(5000, 1, zeroblob(40000000)); UPDATE b SET t = 'changed'");
    let until = Instant::now() + Duration::from_secs(30);
    let rows = "SELECT id, e, t FROM b";
    let wanted = literals(&site.path("hq.db"), &format!("{rows} WHERE e = 1"));
    while literals(&site.path("x.db"), rows) != wanted && Instant::now() < until {
        let _ = site.remote_sync(&["sync", "x.db"]);
    }
    assert_eq!(literals(&site.path("x.db"), rows), wanted);
    assert!(literals(&site.path("x.db"), "SELECT id FROM a WHERE id = 5000").is_empty());
    let status = site.dockmaster(&["status"]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(text.contains("5000") && text.contains("33554432"), "{text}");
    site.stop();
}

#[test]
fn r15_a_node_that_starts_again_and_again_gets_the_last_extract_and_no_alert() {
    let mut site = site(ONE);
    site.sqlite3("hq.db", "INSERT INTO a SELECT id + 10000 * e, 1, t FROM a WHERE id > 2; INSERT INTO a SELECT id + 100000, 1, t FROM a");
    site.dockmaster_ok(&["node", "add", "X", "--set", "emp=1"]);
    site.serve();
    for _ in 0..6 {
        site.dockmaster_ok(&["extract", "X", "--yes"]);
    }
    let last = site.path("docking/X/outbox/extract-00000006.toc");
    let until = Instant::now() + Duration::from_secs(30);
    while !last.exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(last.exists());
    site.stop();
    let alerts = literals(&site.path("docking/sessions.db"), "SELECT text FROM alert");
    assert!(alerts.is_empty(), "{alerts:?}");
}

#[test]
fn r28_a_node_that_ended_before_a_new_filling_is_routed_to_no_more() {
    let site = site(ONE);
    for node in ["X", "Y", "Z"] {
        site.dockmaster_ok(&["node", "add", node, "--set", "emp=1"]);
    }
    site.dockmaster_ok(&["extract", "X", "Y"]);
    site.dockmaster_ok(&["run"]);
    site.dockmaster_ok(&["node", "disable", "X"]);
    site.dockmaster_ok(&["node", "delete", "Y", "--yes"]);
    redefine(&site, BOTH);
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["extract", "Z"]);
    site.dockmaster_ok(&["run"]);
    site.sqlite3("hq.db", "UPDATE a SET t = 'later' WHERE e = 1");
    site.dockmaster_ok(&["run"]);
    assert!(site.path("docking/Z/outbox/00000001.dx").exists());
    for node in ["X", "Y"] {
        assert!(!site.path(&format!("docking/{node}/outbox/00000001.dx")).exists(), "{node}");
    }
    let running = literals(&site.path("docking/ledger.db"), "SELECT node FROM stream WHERE active");
    assert_eq!(running, ["'Z'"]);
}
