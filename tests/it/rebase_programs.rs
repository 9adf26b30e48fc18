//! Pending work through the two programs: what `verify` compares, streams that begin anew, other columns, and `remote-sync conflicts`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use crate::harness::{Site, interrupt, literals};
use dockmaster::base::limits::STAGE_UNIT_ROWS;
use serde_json::{Value as Json, json};
use std::path::Path;
use std::time::{Duration, Instant};

const DEFINITION: &str = "version = 1\n[object.item]\nvisible = \"everyone\"\n";

/// What a server refuses that its nodes do not know of: their units are held until somebody decides.
const GATE: &str = "
CREATE TRIGGER gate_insert BEFORE INSERT ON item WHEN NEW.name LIKE 'mine%' BEGIN SELECT RAISE(ABORT, 'the gate is shut'); END;
CREATE TRIGGER gate_update BEFORE UPDATE ON item WHEN NEW.name LIKE 'mine%' BEGIN SELECT RAISE(ABORT, 'the gate is shut'); END;
CREATE TRIGGER gate_delete BEFORE DELETE ON item WHEN OLD.id = 6 BEGIN SELECT RAISE(ABORT, 'the gate is shut'); END;";
const OPEN: &str = "DROP TRIGGER gate_insert; DROP TRIGGER gate_update; DROP TRIGGER gate_delete;";

/// A site whose node ANNA is in step, and whose server refuses some changes.
fn site(rows: u64) -> Site {
    let database = |path: &Path| {
        let sql = format!(
            "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT NOT NULL, size INT, extra TEXT);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO item SELECT i, 'item ' || i, i, 'extra ' || i FROM n"
        );
        rusqlite::Connection::open(path).unwrap().execute_batch(&sql).unwrap();
    };
    let mut site = Site::new(database, DEFINITION);
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNA"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    site.remote_sync_ok(&["sync", "anna.db"]);
    sql(&site, "hq.db", GATE);
    site
}

fn sql(site: &Site, database: &str, sql: &str) {
    let output = site.sqlite3(database, sql);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn local(site: &Site, select: &str) -> Vec<String> {
    literals(&site.path("anna.db"), select)
}

/// Gets in step. What the server holds is told by the exit code 1.
fn sync(site: &Site) {
    let output = site.remote_sync(&["sync", "anna.db"]);
    let code = output.status.code();
    assert!(
        code == Some(0) || code == Some(1),
        "{code:?} {} {}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Gets in step until a query of the local database says so.
fn sync_until(site: &Site, select: &str, expected: &str) {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        sync(site);
        let found = local(site, select);
        if found == [expected] {
            return;
        }
        assert!(Instant::now() < until, "{select}: {found:?}, not {expected}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn status_becomes(site: &Site, expected: &str) {
    sync_until(site, "SELECT pending, suspended, held, conflicts FROM dock_status", expected);
}

/// Decides on a held unit.
fn rule(site: &Site, verb: &str, unit: &str, reason: &str) {
    site.dockmaster_ok(&["messages", verb, unit, "--reason", reason, "--by", "tester"]);
}

/// Compares while the node is there, and returns exit code and answer.
fn verified(site: &Site) -> (Option<i32>, String) {
    let watch = site.remote_sync_started(&["watch", "anna.db"]);
    let output = site.dockmaster(&["verify", "ANNA", "--wait", "60"]);
    interrupt(watch);
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

const EDITS: &str =
    "UPDATE item SET name = 'mine 5' WHERE id = 5; DELETE FROM item WHERE id = 6; INSERT INTO item VALUES (90000, 'mine', 1, NULL);";
const EDITED: &str = "SELECT id, name FROM item WHERE id IN (5, 6, 90000)";

#[test]
fn r21_r42_x6_verify_and_a_stream_that_begins_anew_with_pending_work() {
    // So many that they are staged when they are sent again.
    let site = site(STAGE_UNIT_ROWS + 500);
    sql(&site, "anna.db", EDITS);
    status_becomes(&site, "1 | 0 | 1 | 0");
    let (code, said) = verified(&site);
    assert!(code == Some(0) && said.contains("equal, 1 table"), "{said}");
    // What the server has is compared, also where pending work hides it.
    sql(&site, "anna.db", "UPDATE dock_base_1 SET c2 = 'forged' WHERE c1 = 5");
    let (code, said) = verified(&site);
    assert!(code == Some(1) && said.contains("different"), "{said}");
    let named: Vec<&str> = said.lines().filter(|line| line.contains("different")).collect();
    assert!(named.len() == 1 && named[0].split_whitespace().any(|word| word == "5"), "{said}");

    // All rows are sent again within the stream, and the pending unit stays upon them.
    sql(&site, "hq.db", "UPDATE item SET size = -5 WHERE id = 5; UPDATE item SET name = 'as served' WHERE id = 7");
    let repaired = site.dockmaster(&["verify", "ANNA", "--last", "--repair"]);
    let said = String::from_utf8_lossy(&repaired.stdout);
    assert!(repaired.status.code() == Some(1) && said.contains("all rows are sent again"), "{said}");
    sql(&site, "anna.db", "UPDATE item SET name = 'mine 8' WHERE id = 8");
    sync_until(&site, "SELECT name FROM item WHERE id = 7", "'as served'");
    status_becomes(&site, "2 | 0 | 2 | 0");
    assert_eq!(local(&site, EDITED), ["5 | 'mine 5'", "90000 | 'mine'"]);
    assert_eq!(local(&site, "SELECT size, (SELECT name FROM item WHERE id = 8) FROM item WHERE id = 5"), ["-5 | 'mine 8'"]);
    assert_eq!(local(&site, "SELECT count(*) FROM item"), [(STAGE_UNIT_ROWS + 500).to_string()]);
    assert_eq!(local(&site, "SELECT incarnation FROM dock_state"), ["2"]);
    let (code, said) = verified(&site);
    assert!(code == Some(0) && said.contains("equal, 1 table"), "{said}");

    // The server lets them pass: both sides are the same, and nothing is pending.
    sql(&site, "hq.db", OPEN);
    for unit in ["ANNA:1", "ANNA:2"] {
        rule(&site, "retry", unit, "the gate is open");
    }
    status_becomes(&site, "0 | 0 | 0 | 0");
    assert_eq!(local(&site, "SELECT * FROM item"), literals(&site.path("hq.db"), "SELECT * FROM item"));
}

fn said(site: &Site, arguments: &[&str]) -> (Option<i32>, String) {
    let output = site.remote_sync(arguments);
    let text = if output.status.code() == Some(2) { output.stderr } else { output.stdout };
    (output.status.code(), String::from_utf8(text).unwrap())
}

fn listed(site: &Site) -> Vec<Json> {
    let output = site.remote_sync(&["conflicts", "list", "anna.db", "--json"]);
    let answer: Json = serde_json::from_slice(&output.stdout).unwrap();
    answer["conflicts"].as_array().unwrap().clone()
}

#[test]
fn x4_mi9_conflicts_are_listed_shown_written_once_more_and_noted_as_seen() {
    let site = site(50);
    assert_eq!(said(&site, &["conflicts", "list", "anna.db"]), (Some(0), "no conflicts\n".to_owned()));
    sql(&site, "anna.db", EDITS);
    status_becomes(&site, "1 | 0 | 1 | 0");
    rule(&site, "return", "ANNA:1", "ask the warehouse");
    sync_until(&site, "SELECT pending FROM dock_status", "0");
    assert_eq!(local(&site, EDITED), ["5 | 'item 5'", "6 | 'item 6'"], "as the server has it");

    let entries = listed(&site);
    let of = |key: i64, column: &str| -> &Json {
        let found = entries.iter().find(|entry| entry["key"] == json!([key]) && (column.is_empty() || entry["column"] == column));
        found.unwrap_or_else(|| panic!("{key} {column}: {entries:#?}"))
    };
    let name = of(5, "name");
    assert_eq!((&name["server"], &name["client"], &name["rule"]), (&json!("item 5"), &json!("mine 5"), &json!("returned")));
    assert_eq!((&name["reason"], &name["state"]), (&json!("ask the warehouse"), &json!("new")));
    let id = |entry: &Json| entry["id"].as_i64().unwrap().to_string();
    let (name, deleted, inserted) = (id(name), id(of(6, "")), id(of(90_000, "name")));
    let (code, text) = said(&site, &["conflicts", "list", "anna.db"]);
    assert!(code == Some(1) && text.contains("'mine 5'") && text.contains(&format!("{0} conflicts, {0} new", entries.len())), "{text}");
    let (code, text) = said(&site, &["conflicts", "show", "anna.db", &name]);
    assert!(code == Some(0), "{text}");
    for part in ["table   item", "key 5", "column name", "server  'item 5'", "mine    'mine 5'", "reason  ask the warehouse"] {
        assert!(text.contains(part), "{part}: {text}");
    }

    // Noted as seen, it is no longer new; it stays in the list.
    assert_eq!(said(&site, &["conflicts", "seen", "anna.db", &deleted]).0, Some(0));
    assert_eq!(listed(&site).iter().find(|entry| id(entry) == deleted).unwrap()["state"], "seen");
    let (_, text) = said(&site, &["conflicts", "list", "anna.db", "--new"]);
    assert!(!text.lines().any(|line| line.split_whitespace().next() == Some(&deleted)), "{text}");

    // What cannot be is refused by name, and changes nothing.
    for (arguments, part) in [
        (vec!["show", "anna.db", "999"], "there is no conflict 999"),
        (vec!["seen", "anna.db", "999"], "there is no conflict 999"),
        (vec!["resubmit", "anna.db", "999"], "999"),
        (vec!["resubmit", "anna.db", &name, "--set", "colour=red"], "it has no column colour"),
        (vec!["resubmit", "anna.db", &name, "--set", "colour"], "--set takes COLUMN=VALUE"),
        (vec!["resubmit", "anna.db", &name, "--set", "name=null"], "it does not fit"),
        (vec!["list", "nowhere.db"], "there is no nowhere.db"),
    ] {
        let (code, text) = said(&site, &[&["conflicts"], &arguments[..]].concat());
        assert!(code == Some(2) && text.contains(part), "{arguments:?}: {text}");
    }
    assert!(!site.path("nowhere.db").exists());
    assert_eq!(local(&site, EDITED), ["5 | 'item 5'", "6 | 'item 6'"]);

    // Written once more, as it was and edited: ordinary changes that the next sync sends.
    sql(&site, "hq.db", OPEN);
    let (code, text) = said(&site, &["conflicts", "resubmit", "anna.db", &name, "--set", "size=55"]);
    assert!(code == Some(0) && text.contains("update of table item, key 5"), "{text}");
    let (code, text) = said(&site, &["conflicts", "resubmit", "anna.db", &inserted, "--set", "name=edited"]);
    assert!(code == Some(0) && text.contains("insert of table item, key 90000"), "{text}");
    assert_eq!(said(&site, &["conflicts", "resubmit", "anna.db", &deleted]).0, Some(0));
    assert_eq!(local(&site, EDITED), ["5 | 'mine 5'", "90000 | 'edited'"]);
    sync_until(&site, "SELECT pending FROM dock_status", "0");
    let server = literals(&site.path("hq.db"), "SELECT * FROM item WHERE id IN (5, 6, 90000)");
    assert_eq!(server, ["5 | 'mine 5' | 55 | 'extra 5'", "90000 | 'edited' | 1 | NULL"]);
    assert_eq!(local(&site, "SELECT * FROM item"), literals(&site.path("hq.db"), "SELECT * FROM item"));
    let states = local(&site, &format!("SELECT DISTINCT state FROM dock_conflicts WHERE id IN ({name}, {inserted}, {deleted})"));
    assert_eq!(states, ["'resubmitted'"]);
}

#[test]
fn r20_a_column_that_a_deploy_drops_or_adds_while_pending_changes_name_it() {
    let site = site(50);
    // Two units, both held: one names the column that goes.
    sql(&site, "anna.db", "UPDATE item SET name = 'mine 3', extra = 'lost' WHERE id = 3");
    status_becomes(&site, "1 | 0 | 1 | 0");
    sql(&site, "anna.db", "UPDATE item SET name = 'mine 4' WHERE id = 4");
    status_becomes(&site, "2 | 0 | 2 | 0");
    sql(
        &site,
        "hq.db",
        &format!(
            "PRAGMA legacy_alter_table = ON; CREATE TABLE remade(id INTEGER PRIMARY KEY, name TEXT NOT NULL, size INT, grade INT DEFAULT 4);
             INSERT INTO remade SELECT id, name, size, iif(id = 4, 9, 4) FROM item; DROP TABLE item; ALTER TABLE remade RENAME TO item; {GATE}"
        ),
    );
    site.dockmaster_ok(&["deploy", "--yes"]);
    status_becomes(&site, "2 | 1 | 2 | 0");
    assert_eq!(local(&site, "SELECT * FROM item WHERE id IN (3, 4)"), ["3 | 'item 3' | 3 | 4", "4 | 'mine 4' | 4 | 9"]);
    let reason = &local(&site, "SELECT suspended FROM dock_unit WHERE suspended IS NOT NULL")[0];
    assert!(reason.contains("table item, key 3") && reason.contains("no column extra"), "{reason}");
    let (code, said) = verified(&site);
    assert!(code == Some(0) && said.contains("equal, 1 table"), "{said}");
    // One is given up, and listed with its values; the other passes.
    sql(&site, "hq.db", OPEN);
    rule(&site, "ignore", "ANNA:1", "the column is gone");
    rule(&site, "retry", "ANNA:2", "the gate is open");
    sync_until(&site, "SELECT pending FROM dock_status", "0");
    let lost: Vec<Json> = listed(&site).into_iter().filter(|entry| entry["column"] == "extra").collect();
    assert!(lost.len() == 1 && lost[0]["client"] == "lost" && lost[0]["reason"] == "the column is gone", "{lost:?}");
    assert_eq!(local(&site, "SELECT * FROM item"), literals(&site.path("hq.db"), "SELECT * FROM item"));
    // The new column is captured, and goes up.
    sql(&site, "anna.db", "UPDATE item SET grade = 1 WHERE id = 3");
    sync_until(&site, "SELECT pending FROM dock_status", "0");
    assert_eq!(literals(&site.path("hq.db"), "SELECT grade FROM item WHERE id = 3"), ["1"]);
}
