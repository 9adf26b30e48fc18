//! What nodes send, through the programs as a user runs them: plain SQL on a node, `remote-sync`, a service, and its docking root.

use super::support::Proxy;
use crate::harness::Site;
use dockmaster::base::ids::{FileNo, UnitNo};
use dockmaster::dx::upload_reader::UploadReader;
use serde_json::Value as Json;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const DEFINITION: &str = "version = 1\n[server]\nname = \"HQ\"\ndatabase = \"hq.db\"\n[object.item]\nvisible.all = 'everyone'\n";

/// A service with one node that has its database.
fn site() -> Site {
    let mut site = Site::new(
        |path| {
            let conn = rusqlite::Connection::open(path).unwrap();
            conn.execute_batch("CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT); INSERT INTO item VALUES(1, 'a')").unwrap();
        },
        DEFINITION,
    );
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNA"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    site
}

/// Units of the files of ANNA that the server has durable, whether they are merged or not.
fn uploaded(site: &Site) -> Vec<(u64, u64, u64)> {
    let conn = rusqlite::Connection::open(site.path("docking/sessions.db")).unwrap();
    let mut statement = conn.prepare("SELECT file_no, first_unit, last_unit FROM upload ORDER BY file_no").unwrap();
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64, row.get::<_, i64>(2)? as u64));
    statement.query_map([], read).unwrap().map(Result::unwrap).collect()
}

fn sync_json(site: &Site, more: &[&str]) -> Json {
    let mut arguments = vec!["sync", "anna.db", "--json"];
    arguments.extend(more);
    serde_json::from_slice(&site.remote_sync(&arguments).stdout).unwrap()
}

fn inbox(site: &Site) -> PathBuf {
    site.path("docking/ANNA/inbox")
}

#[test]
fn mi8_doe15_sr12_plain_sql_on_a_node_is_a_durable_file_on_the_server_after_one_sync() {
    let site = site();
    site.sqlite3("anna.db", "INSERT INTO item VALUES(100, 'of anna')");
    let said = site.remote_sync_ok(&["sync", "anna.db", "--only", "send"]);
    assert!(said.contains("Sent 1 transaction"), "{said}");
    assert_eq!(uploaded(&site), [(1, 1, 1)]);
    // The copy of the node is the very file.
    let ours = fs::read(site.path("anna.db.sync/outbox/00000001.dx")).unwrap();
    if let Ok(theirs) = fs::read(inbox(&site).join("00000001.dx")) {
        assert_eq!(ours, theirs);
    }
    let mut reader = UploadReader::open(std::io::Cursor::new(ours)).unwrap();
    assert_eq!(reader.header().file_no, FileNo(1));
    let unit = reader.units().next().unwrap().unwrap();
    assert_eq!((unit.head.number, unit.changes.len()), (UnitNo(1), 1));
    assert_eq!(sync_json(&site, &["--only", "send"])["sent"]["units"], 0);
}

/// Cut before, within and after each message of the session, in both directions: one order each time, executed once, and the node knows.
#[test]
fn mi1_mi52_f7_an_order_is_one_order_wherever_the_connection_breaks() {
    let site = site();
    // Every execution leaves a row, so that a second one could not hide behind the same key.
    site.sqlite3("hq.db", "CREATE TABLE executed(name TEXT)");
    site.sqlite3("hq.db", "CREATE TRIGGER audit BEFORE INSERT ON item BEGIN INSERT INTO executed VALUES(NEW.name); END");
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.remote_sync_ok(&["sync", "anna.db"]);
    let proxy = Proxy::to_tls(site.address().parse().unwrap());
    let config = site.path("anna.db.sync/remote-sync.toml");
    let straight = fs::read_to_string(&config).unwrap();
    let through_proxy = straight.replace(site.address(), &proxy.address.to_string());
    let order = |number: i64| format!("INSERT INTO item VALUES({}, 'order {number}')", 1_000 + number);
    site.sqlite3("anna.db", &order(0));
    fs::write(&config, &through_proxy).unwrap();
    site.remote_sync_ok(&["sync", "anna.db", "--wait", "30"]);
    let ends = proxy.ends.lock().unwrap().clone();
    assert!(ends.len() >= 6, "{ends:?}");
    let mut cuts = Vec::new();
    let mut before = 0;
    for end in ends {
        cuts.extend([(before, true), ((before + end) / 2, true), (end - 1, true)]);
        before = end;
    }
    cuts.extend((0..before + 400).step_by(60).map(|bytes| (bytes, false)));
    for (number, (bytes, from_node)) in (1i64..).zip(cuts) {
        site.sqlite3("anna.db", &order(number));
        (if from_node { &proxy.cut_up_after } else { &proxy.cut_after }).store(bytes, Ordering::SeqCst);
        fs::write(&config, &through_proxy).unwrap();
        let _cut = site.remote_sync(&["sync", "anna.db", "--wait", "30"]);
        proxy.cut_up_after.store(-1, Ordering::SeqCst);
        proxy.cut_after.store(-1, Ordering::SeqCst);
        fs::write(&config, &straight).unwrap();
        site.remote_sync_ok(&["sync", "anna.db", "--wait", "30"]);
        let name = format!("order {number}");
        let count = |database: &str, sql: &str| -> i64 {
            let conn = rusqlite::Connection::open(site.path(database)).unwrap();
            conn.busy_timeout(Duration::from_secs(5)).unwrap();
            conn.query_row(sql, [&name], |row| row.get(0)).unwrap()
        };
        let place = format!("cut after {bytes} bytes, from the node: {from_node}");
        assert_eq!(count("hq.db", "SELECT count(*) FROM executed WHERE name = ?1"), 1, "{place}: executed");
        assert_eq!(count("hq.db", "SELECT count(*) FROM item WHERE name = ?1"), 1, "{place}: on the server");
        assert_eq!(count("anna.db", "SELECT count(*) FROM item WHERE name = ?1"), 1, "{place}: on the node");
        assert_eq!(count("anna.db", "SELECT count(*) FROM dock_unit WHERE ?1 <> ''"), 0, "{place}: pending");
    }
}

#[test]
fn mi16_mi21_mi22_waiting_has_an_end_and_nothing_is_fetched_where_the_user_said_so() {
    let site = site();
    site.sqlite3("hq.db", "INSERT INTO item VALUES(2, 'b')");
    site.sqlite3("anna.db", "INSERT INTO item VALUES(100, 'of anna')");
    let told = sync_json(&site, &["--no-download"]);
    assert_eq!((told["sent"]["units"].as_u64(), told["files"].as_u64()), (Some(1), Some(0)), "{told}");
    let config = site.path("anna.db.sync/remote-sync.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}download = false\n")).unwrap();
    let told = sync_json(&site, &["--wait", "1"]);
    assert_eq!(told["files"], 0, "{told}");
    assert!(told["sent"]["in_time"].is_boolean(), "{told}");
    fs::write(&config, text).unwrap();
    assert!(sync_json(&site, &[])["files"].as_u64() > Some(0));
}

#[test]
fn f19_a_database_restored_from_a_copy_numbers_its_changes_above_what_the_server_knows() {
    let site = site();
    site.sqlite3("anna.db", "INSERT INTO item VALUES(100, 'one')");
    site.remote_sync_ok(&["sync", "anna.db", "--only", "send"]);
    site.sqlite3("anna.db", "PRAGMA wal_checkpoint(TRUNCATE)");
    fs::copy(site.path("anna.db"), site.path("copy.db")).unwrap();
    site.sqlite3("anna.db", "INSERT INTO item VALUES(101, 'lost with the disk')");
    site.remote_sync_ok(&["sync", "anna.db", "--only", "send"]);
    for suffix in ["-wal", "-shm"] {
        let _gone = fs::remove_file(site.path(&format!("anna.db{suffix}")));
    }
    fs::copy(site.path("copy.db"), site.path("anna.db")).unwrap();
    site.sqlite3("anna.db", "INSERT INTO item VALUES(102, 'after the restore')");
    // Cut before anybody can know of the numbers.
    assert!(site.remote_sync_ok(&["pending", "anna.db"]).contains("102"));
    let told = site.remote_sync(&["sync", "anna.db", "--only", "send"]);
    let text = format!("{}{}", String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(told.status.success() && text.contains("restored from an older copy"), "{text}");
    // Unit 1 is not confirmed yet and goes again under its number, which is executed once; the new one has a number of its own.
    assert_eq!(uploaded(&site), [(1, 1, 1), (2, 2, 2), (3, 1, 3)]);
}

/// A node with its folder, as a disk image holds them, put back at twenty moments: with work that was sent since, work that was pending in
/// the image and was sent since, and work of after the restore. Whatever the folder tells, each piece of work is executed once.
#[test]
fn g11_r16_f19_a_node_put_back_from_an_image_does_no_work_twice_and_loses_none() {
    for moment in 0..20u32 {
        let site = site();
        site.sqlite3("hq.db", "CREATE TABLE executed(name TEXT)");
        site.sqlite3("hq.db", "CREATE TRIGGER audit AFTER INSERT ON item BEGIN INSERT INTO executed VALUES(NEW.name); END");
        site.dockmaster_ok(&["deploy", "--yes"]);
        site.remote_sync_ok(&["sync", "anna.db"]);
        let work = std::cell::Cell::new(0);
        let add = |count: u32, what: &str| -> Vec<String> {
            let made = (0..count).map(|_| {
                work.set(work.get() + 1);
                let name = format!("{what} {}", work.get());
                site.sqlite3("anna.db", &format!("INSERT INTO item(name) VALUES('{name}')"));
                // One unit each.
                site.remote_sync_ok(&["pending", "anna.db"]);
                name
            });
            made.collect()
        };
        let mut kept = add(moment % 3, "sent before");
        site.remote_sync_ok(&["sync", "anna.db", "--wait", "30"]);
        kept.extend(add(1 + moment % 4, "pending in the image"));
        site.sqlite3("anna.db", "PRAGMA wal_checkpoint(TRUNCATE)");
        fs::copy(site.path("anna.db"), site.path("image.db")).unwrap();
        crate::harness::copy_folder(&site.path("anna.db.sync"), &site.path("image.sync"));
        let lost = add(moment % 3, "sent and gone with the disk");
        let step: &[&str] = if moment % 2 == 0 { &["--wait", "30"] } else { &["--only", "send"] };
        site.remote_sync_ok(&[&["sync", "anna.db"], step].concat());
        for suffix in ["-wal", "-shm"] {
            let _gone = fs::remove_file(site.path(&format!("anna.db{suffix}")));
        }
        fs::copy(site.path("image.db"), site.path("anna.db")).unwrap();
        fs::remove_dir_all(site.path("anna.db.sync")).unwrap();
        crate::harness::copy_folder(&site.path("image.sync"), &site.path("anna.db.sync"));
        kept.extend(add(moment % 4, "after the restore"));
        for _ in 0..2 {
            site.remote_sync_ok(&["sync", "anna.db", "--wait", "30"]);
        }
        let executed = crate::harness::literals(&site.path("hq.db"), "SELECT name FROM executed ORDER BY name");
        let mut expected: Vec<String> = kept.iter().chain(&lost).map(|name| format!("'{name}'")).collect();
        expected.sort();
        assert_eq!(executed, expected, "moment {moment}");
        let names = "SELECT name FROM item WHERE name <> 'a' ORDER BY name";
        assert_eq!(crate::harness::literals(&site.path("anna.db"), names), expected, "moment {moment}: on the node");
    }
}

#[test]
fn r22_mi10_watch_cuts_off_line_and_sends_when_there_is_a_line_again() {
    let mut site = site();
    let address = site.address().to_owned();
    site.stop();
    let child = site.remote_sync_started(&["watch", "anna.db"]);
    let units = |expected: i64| {
        let began = Instant::now();
        loop {
            let conn = rusqlite::Connection::open(site.path("anna.db")).unwrap();
            conn.busy_timeout(Duration::from_secs(5)).unwrap();
            let found: i64 = conn.query_row("SELECT count(*) FROM dock_unit", [], |row| row.get(0)).unwrap();
            if found >= expected {
                assert_eq!(found, expected, "one unit for each commit");
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "{found} of {expected} units");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    units(0);
    std::thread::sleep(Duration::from_millis(500));
    for number in 1..=3 {
        site.sqlite3("anna.db", &format!("INSERT INTO item VALUES({}, 'x')", 200 + number));
        units(number);
    }
    crate::harness::interrupt(child);
    let config = site.path("anna.db.sync/remote-sync.toml");
    let text = fs::read_to_string(&config).unwrap();
    let now = site.serve();
    fs::write(&config, text.replace(&address, &now)).unwrap();
    assert_eq!(sync_json(&site, &["--only", "send"])["sent"]["units"], 3);
}
