//! Scenarios of nodes that get into trouble, or are put aside, and come back: by the real programs.

use crate::crm::{self, complaint, differences, in_step, local, routed, server_sql};
use crate::harness::{Program, Site, literals};
use crate::session::support::until;
use dockmaster::base::crash::CrashPoint;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;

const ALL: [&str; 3] = ["ANNA", "BERT", "CORA"];

fn status(site: &Site, node: &str) -> serde_json::Value {
    let output = site.remote_sync(&["status", "--json", &local(node)]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Runs a sync that dies at a named point.
fn dies_at(site: &Site, node: &str, point: CrashPoint) {
    let mut command = site.command(Program::RemoteSync, &["sync", &local(node)]);
    let output: Output = command.env("DOCKMASTER_CRASH", point.name()).output().unwrap();
    assert_eq!(output.status.signal(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a4_a_live_node_extracted_anew_keeps_what_was_written_on_it_in_the_old_database() {
    let mut site = crm::running(&ALL);
    // There is no upload: a row that the user made stays where it was made.
    crm::sql_on(&site.path("anna.db"), "INSERT INTO contact VALUES(900, 4, 'written on the node')");
    let address = site.address().to_owned();
    let mut watching = site.remote_sync_started(&["watch", "anna.db"]);
    server_sql(&site, "UPDATE opportunity SET name = 'before'");
    until("the watching program is there", || {
        !literals(&site.path("anna.db"), "SELECT 1 FROM opportunity WHERE name = 'before'").is_empty()
    });
    // Its database is not replaced under the program that watches, and not without being asked.
    let busy = site.remote_sync(&["init", &address, "--token", &site.token("ANNA"), "--replace", "--renew", "anna.db"]);
    assert_eq!(busy.status.code(), Some(3), "{:?}", complaint(&busy));
    watching.kill().unwrap();
    watching.wait().unwrap();
    let refused = site.remote_sync(&["init", &address, "--token", &site.token("ANNA"), "--renew", "anna.db"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(complaint(&refused).0.contains("--replace"), "{:?}", complaint(&refused));
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "--replace", "--renew", "anna.db"]);
    server_sql(&site, "UPDATE opportunity SET name = 'after'");
    in_step(&site, &ALL);
    let kept = literals(&site.path("anna.db.before-init"), "SELECT name FROM contact WHERE id = 900");
    assert_eq!(kept, ["'written on the node'"]);
    site.stop();
}

#[test]
fn a5_a_node_under_a_new_name_begins_anew_and_the_old_name_is_refused() {
    let mut site = crm::running(&ALL);
    site.dockmaster_ok(&["node", "delete", "ANNA", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNETTE", "--set", "employee=4"]);
    server_sql(&site, "UPDATE opportunity SET name = 'after the change of name'");
    routed(&site);
    let old = site.remote_sync(&["sync", "anna.db"]);
    assert_eq!(old.status.code(), Some(2), "{}", String::from_utf8_lossy(&old.stderr));
    assert!(literals(&site.path("anna.db"), "SELECT 1 FROM opportunity WHERE name LIKE 'after%'").is_empty());
    let address = site.address().to_owned();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNETTE"), "--replace", "anna.db"]);
    server_sql(&site, "DELETE FROM opportunity WHERE id % 5 = 0");
    routed(&site);
    site.remote_sync_ok(&["sync", "anna.db"]);
    assert_eq!(differences(&site, "anna.db", 4), "");
    assert!(!site.path("docking/ANNA/outbox/00000001.dx").exists(), "nothing more is made for the old name");
    in_step(&site, &["BERT", "CORA"]);
    site.stop();
}

#[test]
fn c14_f44_what_a_node_applied_comes_back_to_nobody() {
    let mut site = crm::running(&ALL);
    server_sql(&site, "UPDATE opportunity SET position_id = 4 + (position_id + 1) % 3; UPDATE account SET name = 'changed'");
    in_step(&site, &ALL);
    let position = || site.dockmaster_ok(&["status", "--json"]);
    let log = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["log"].clone();
    let (before, files) = (log(&position()), ALL.map(|node| crm::dx_files(&site, &format!("docking/{node}/outbox")).len()));
    for _ in 0..3 {
        in_step(&site, &ALL);
    }
    assert_eq!(log(&position()), before, "a sync writes nothing into the server's log");
    assert_eq!(ALL.map(|node| crm::dx_files(&site, &format!("docking/{node}/outbox")).len()), files);
    for node in ALL {
        assert!(crm::dx_files(&site, &format!("{}.sync/outbox", local(node))).is_empty());
    }
    site.stop();
}

#[test]
fn e4_e8_a_node_that_cannot_apply_a_row_stops_with_row_and_reason_until_it_is_mended_and_others_go_on() {
    let mut site = crm::running(&ALL);
    // Somebody makes a rule of his own on the node, which the server's rows do not keep.
    crm::sql_on(&site.path("anna.db"), "CREATE UNIQUE INDEX mine ON opportunity(name)");
    server_sql(&site, "UPDATE account SET name = 'good'");
    routed(&site);
    server_sql(&site, "INSERT INTO opportunity VALUES(700, 3, 4, 'twice', 1), (701, 3, 4, 'twice', 1)");
    routed(&site);
    server_sql(&site, "UPDATE product SET name = 'behind it'");
    routed(&site);
    let stopped = site.remote_sync(&["sync", "anna.db"]);
    assert_eq!(stopped.status.code(), Some(2));
    let (error, _) = complaint(&stopped);
    assert!(error.contains("opportunity") && (error.contains("700") || error.contains("701")) && error.contains("name"), "{error}");
    // The units before it are there, that one and those behind it are not.
    assert!(!literals(&site.path("anna.db"), "SELECT 1 FROM account WHERE name = 'good'").is_empty());
    assert!(literals(&site.path("anna.db"), "SELECT 1 FROM opportunity WHERE id IN (700, 701)").is_empty());
    assert!(literals(&site.path("anna.db"), "SELECT 1 FROM product WHERE name = 'behind it'").is_empty());
    assert!(status(&site, "ANNA")["stopped"].as_str().is_some_and(|reason| reason.contains("opportunity")));
    in_step(&site, &["BERT", "CORA"]);
    // Mended by hand, it goes on where it stopped.
    crm::sql_on(&site.path("anna.db"), "DROP INDEX mine");
    in_step(&site, &ALL);
    assert!(status(&site, "ANNA")["stopped"].is_null());
    site.stop();
}

#[test]
fn e7_f14_a_file_taken_out_of_the_inbox_is_fetched_again_and_never_skipped() {
    let mut site = crm::running(&ALL);
    for turn in 0..4 {
        server_sql(&site, &format!("UPDATE opportunity SET name = 'turn {turn}' WHERE id % 4 = {turn}"));
        routed(&site);
    }
    for lost in 0..4 {
        dies_at(&site, "ANNA", CrashPoint::ExchangeAcknowledged);
        let waiting = crm::dx_files(&site, "anna.db.sync/inbox");
        // How many came before it died is up to the moment.
        std::fs::remove_file(&waiting[lost % waiting.len()]).unwrap();
        in_step(&site, &["ANNA"]);
        for turn in 0..4 {
            server_sql(&site, &format!("UPDATE opportunity SET name = 'lost {lost} turn {turn}' WHERE id % 4 = {turn}"));
            routed(&site);
        }
    }
    in_step(&site, &ALL);
    site.stop();
}

/// A USB stick that said "written" and had not: the file is there, and zeros are in it; or only its beginning is.
#[test]
fn f6_bytes_that_a_disk_lost_after_it_had_confirmed_them_are_found_and_fetched_again() {
    let mut site = crm::running(&ALL);
    for damage in [0usize, 1, 2] {
        for turn in 0..3 {
            server_sql(&site, &format!("UPDATE opportunity SET name = '{damage} {turn}' WHERE id % 3 = {turn}"));
            routed(&site);
        }
        dies_at(&site, "ANNA", CrashPoint::ExchangeAcknowledged);
        let waiting = crm::dx_files(&site, "anna.db.sync/inbox");
        let victim = &waiting[damage % waiting.len()];
        let bytes = std::fs::read(victim).unwrap();
        let damaged = match damage {
            0 => vec![0; bytes.len()],
            1 => bytes[..bytes.len() / 2].to_vec(),
            _ => Vec::new(),
        };
        std::fs::write(victim, damaged).unwrap();
        // The first sync finds it and puts it aside; fetching it again may be the second's.
        let first = site.remote_sync(&["sync", "anna.db"]);
        assert!(matches!(first.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&first.stderr));
        in_step(&site, &["ANNA"]);
        assert_eq!(crm::dx_files(&site, "anna.db.sync/quarantine").len(), damage + 1);
    }
    in_step(&site, &ALL);
    site.stop();
}

#[test]
fn f48_a_local_database_whose_log_was_deleted_or_that_was_copied_while_in_use_is_caught_up() {
    let mut site = crm::running(&ALL);
    server_sql(&site, "UPDATE opportunity SET name = 'first'");
    in_step(&site, &ALL);
    // A program keeps the database open, so the log stays; it dies, and somebody clears up.
    let reader = rusqlite::Connection::open(site.path("anna.db")).unwrap();
    let _: i64 = reader.query_row("SELECT count(*) FROM opportunity", [], |row| row.get(0)).unwrap();
    std::fs::copy(site.path("anna.db"), site.path("copied.db")).unwrap();
    server_sql(&site, "UPDATE opportunity SET name = 'second' WHERE id < 30; DELETE FROM contact WHERE id = 3");
    in_step(&site, &ALL);
    assert!(site.path("anna.db-wal").metadata().unwrap().len() > 0, "what was applied last is in the log only");
    // What a copy of the main file alone holds, while the programs run: a whole state, an older one.
    let saved = std::fs::read(site.path("anna.db")).unwrap();
    drop(reader);
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(site.path(&format!("anna.db{suffix}")));
    }
    std::fs::write(site.path("anna.db"), &saved).unwrap();
    assert_eq!(literals(&site.path("anna.db"), "SELECT 1 FROM opportunity WHERE name = 'second'"), Vec::<String>::new());
    // It is behind what it had said; the server sends the rest again and says what it noticed.
    in_step(&site, &ALL);
    let shown = site.dockmaster(&["status"]);
    assert_eq!(shown.status.code(), Some(1), "somebody has to look");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("older copy"), "{}", String::from_utf8_lossy(&shown.stdout));
    site.stop();
}

#[test]
fn f48_a_local_database_renamed_under_a_watching_program_is_not_made_anew_empty() {
    let mut site = crm::running(&ALL);
    let mut watching = site.remote_sync_started(&["watch", "anna.db"]);
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::rename(site.path(&format!("anna.db{suffix}")), site.path(&format!("moved.db{suffix}")));
    }
    server_sql(&site, "UPDATE opportunity SET name = 'after the move'");
    routed(&site);
    let _ = watching.kill();
    watching.wait().unwrap();
    let missing = site.remote_sync(&["sync", "anna.db"]);
    assert_eq!(missing.status.code(), Some(2), "{}", String::from_utf8_lossy(&missing.stderr));
    assert!(!site.path("anna.db").exists(), "no empty database stands in its place");
    // Put back, it goes on, whatever the program had still written to it.
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::rename(site.path(&format!("moved.db{suffix}")), site.path(&format!("anna.db{suffix}")));
    }
    in_step(&site, &ALL);
    site.stop();
}

#[test]
fn h2_a_suspended_node_is_cut_off_while_the_others_go_on_and_comes_back_with_an_extract() {
    let mut site = crm::running(&ALL);
    let watching = site.remote_sync_started(&["watch", "anna.db"]);
    site.dockmaster_ok(&["node", "disable", "ANNA"]);
    server_sql(&site, "UPDATE opportunity SET name = 'while suspended'");
    in_step(&site, &["BERT", "CORA"]);
    let ended = watching.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(2), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(literals(&site.path("anna.db"), "SELECT 1 FROM opportunity WHERE name = 'while suspended'").is_empty());
    assert!(crm::traces(&site.path("docking/ANNA/outbox"), "while suspended").is_empty());
    site.dockmaster_ok(&["node", "enable", "ANNA"]);
    let address = site.address().to_owned();
    let refused = site.remote_sync(&["sync", "anna.db"]);
    assert_eq!(refused.status.code(), Some(2));
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "--replace", "anna.db"]);
    server_sql(&site, "UPDATE product SET name = 'and on'");
    in_step(&site, &ALL);
    site.stop();
}

#[test]
fn a6_an_init_killed_again_and_again_is_done_in_the_end() {
    let mut site = crm::running(&["BERT"]);
    let address = site.address().to_owned();
    let mut deaths = 0;
    for point in [CrashPoint::InitFetched, CrashPoint::InitUnpacked, CrashPoint::InitAdopted, CrashPoint::InitConfigured] {
        let mut command = site.command(Program::RemoteSync, &["init", &address, "--token", &site.token("CORA"), "cora.db"]);
        deaths += u32::from(command.env("DOCKMASTER_CRASH", point.name()).output().unwrap().status.signal() == Some(9));
        server_sql(&site, &format!("UPDATE opportunity SET name = '{}'", point.name()));
    }
    assert_eq!(deaths, 4);
    assert!(!site.path("cora.db").exists(), "a half database never stands in the place of a whole one");
    site.remote_sync_ok(&["init", &address, "--token", &site.token("CORA"), "cora.db"]);
    in_step(&site, &["BERT", "CORA"]);
    site.stop();
}
