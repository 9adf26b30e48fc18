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
    site.remote_sync_ok(&["init", &address, "--node", "X", database]);
    site.stop();
    let rows = format!("SELECT id, e, t FROM {table}");
    assert_eq!(literals(&site.path(database), &rows), literals(&site.path("hq.db"), &format!("{rows} WHERE e = 1")));
}

#[test]
fn r26_a_data_store_whose_program_was_killed_is_replaced_without_its_write_ahead_log() {
    let mut site = site(BOTH);
    site.dockmaster_ok(&["node", "add", "X", "--set", "emp=1"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--node", "X", "x.db"]);
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
fn r26_a_deploy_that_was_cut_off_is_done_again() {
    let mut site = site(ONE);
    site.dockmaster_ok(&["run"]);
    // What a deploy leaves that is killed after its change of the server database: the old data store, marked.
    let old = site.path("old.db");
    redefine(&site, BOTH);
    dockmaster::cds::layout::supersede(&site.path("docking/cds.db")).unwrap();
    std::fs::copy(site.path("docking/cds.db"), &old).unwrap();
    site.dockmaster_ok(&["deploy", "--yes"]);
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(site.path(&format!("docking/cds.db{suffix}")));
    }
    std::fs::copy(&old, site.path("docking/cds.db")).unwrap();

    let refused = site.dockmaster(&["run"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("run `dockmaster deploy` again"), "{refused:?}");
    assert!(!site.dockmaster_ok(&["deploy", "--yes"]).contains("Nothing to do"));
    site.dockmaster_ok(&["node", "add", "X", "--set", "emp=1"]);
    site.sqlite3("hq.db", "UPDATE b SET t = 'changed'");
    assert_sees_a(&mut site, "x.db", "b");
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
