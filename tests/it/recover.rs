//! A server database that was restored, replaced or copied: recognised before anything is sent, and taken back so that every node gets
//! exactly the difference. And days that pass while nobody looks.

use crate::crm::{self, in_step, routed, server_sql};
use crate::harness::{Site, literals};
use std::path::Path;

const ALL: [&str; 3] = ["ANNA", "BERT", "CORA"];

fn copy(from: &Path, to: &Path) {
    literals(from, "PRAGMA wal_checkpoint(TRUNCATE)");
    std::fs::copy(from, to).unwrap();
}

/// Puts a copy in the place of the server database.
fn put_back(site: &Site, name: &str) {
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(site.path(&format!("hq.db{suffix}")));
    }
    std::fs::copy(site.path(name), site.path("hq.db")).unwrap();
}

fn writes(random: &mut fastrand::Rng, mark: &str) -> String {
    let mut sql = String::from("BEGIN;");
    for _ in 0..random.usize(1..10) {
        let (id, position, account) = (random.u32(1..90), random.u32(4..7), random.u32(1..31));
        sql.push_str(&match random.u32(0..6) {
            0 => format!("INSERT OR REPLACE INTO opportunity VALUES({id}, {account}, {position}, '{mark}', {account});"),
            1 => format!("UPDATE opportunity SET position_id = {position}, name = '{mark}' WHERE id = {id};"),
            2 => format!("DELETE FROM opportunity_line WHERE opportunity_id = {id}; DELETE FROM opportunity WHERE id = {id};"),
            3 => format!("DELETE FROM account_team WHERE account_id = {account}; INSERT INTO account_team VALUES({account}, {position});"),
            4 => format!("UPDATE employee SET position_id = 4 + (position_id + 1) % 3 WHERE id = {};", random.u32(4..7)),
            _ => format!("UPDATE contact SET account_id = {account}, name = '{mark}' WHERE id = {id};"),
        });
    }
    sql + "COMMIT;"
}

#[test]
fn r14_f20_a_restored_database_at_twenty_timings_with_more_writes_than_were_lost() {
    let seed = crate::harness::seed();
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut site = crm::running(&ALL);
    for timing in 0..20 {
        for _ in 0..random.usize(0..4) {
            server_sql(&site, &writes(&mut random, "before"));
        }
        if random.bool() {
            routed(&site);
        }
        site.signal("-KILL");
        copy(&site.path("hq.db"), &site.path("backup.db"));
        // Lost with the restore; some of it reached nodes, some only the files, some nothing.
        let lost = random.usize(1..4);
        // One of them changes something for certain: if all met no row, nothing was lost, and nothing is to be recognised.
        server_sql(&site, &format!("INSERT OR REPLACE INTO opportunity VALUES(9000, 1, 4, 'lost {timing}', 1)"));
        for part in 0..lost {
            server_sql(&site, &writes(&mut random, "lost"));
            if part == 0 || random.bool() {
                site.dockmaster_ok(&["run"]);
            }
        }
        if random.bool() {
            crm::serve_again(&mut site);
            routed(&site);
            site.remote_sync_ok(&["sync", "anna.db"]);
            site.signal("-KILL");
        }
        put_back(&site, "backup.db");
        for _ in 0..lost * 3 {
            server_sql(&site, &writes(&mut random, "after"));
        }
        assert_eq!(site.dockmaster(&["run"]).status.code(), Some(2), "{timing}: it is recognised");
        let said = site.dockmaster(&["recover"]);
        assert_eq!(said.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&said.stdout).contains("is not the database that was read last"), "{said:?}");
        site.dockmaster_ok(&["recover", "--restored", "--yes"]);
        server_sql(&site, &writes(&mut random, "later"));
        crm::serve_again(&mut site);
        in_step(&site, &ALL);
    }
    assert_eq!(literals(&site.path("hq.db"), "SELECT value FROM dock_meta WHERE name = 'epoch'"), ["'21'"]);
    assert_eq!(literals(&site.path("hq.db"), "SELECT incarnation FROM dock_node"), ["1", "1", "1"], "no stream begins anew");
    site.stop();
    assert_eq!(site.dockmaster(&["recover"]).status.code(), Some(0));
    assert_eq!(site.dockmaster(&["recover", "--restored", "--yes"]).status.code(), Some(2), "nothing is to recover");
}

#[test]
fn r14_nodes_that_the_restored_database_lost_are_written_back_and_those_that_ended_stay_ended() {
    let mut site = crm::running(&["ANNA", "CORA"]);
    routed(&site);
    site.stop();
    copy(&site.path("hq.db"), &site.path("backup.db"));
    let address = crm::serve_again(&mut site);
    site.remote_sync_ok(&["init", &address, "--token", &site.token("BERT"), "bert.db"]);
    site.dockmaster_ok(&["node", "disable", "CORA"]);
    site.dockmaster_ok(&["node", "set", "ANNA", "--set", "employee=4"]);
    routed(&site);
    site.stop();
    put_back(&site, "backup.db");
    server_sql(&site, "UPDATE opportunity SET name = 'restored' WHERE id < 30");
    let told = site.dockmaster_ok(&["recover", "--restored", "--yes"]);
    assert!(told.contains("Written back: BERT.") && told.contains("disabled: CORA."), "{told}");
    crm::serve_again(&mut site);
    in_step(&site, &["ANNA", "BERT"]);
    site.stop();
}

#[test]
fn r14_a_copy_with_the_same_content_is_accepted_and_one_whose_log_cannot_go_on_is_not() {
    let mut site = crm::running(&["ANNA"]);
    routed(&site);
    site.stop();
    // Somebody else read the copy meanwhile: another mark stands in its tail.
    server_sql(
        &site,
        "UPDATE dock_tail SET nonce = '00112233445566778899aabbccddeeff', previous = NULL; UPDATE opportunity SET name = 'moved' WHERE id < 20",
    );
    assert_eq!(site.dockmaster(&["run"]).status.code(), Some(2));
    let (whole, torn) = (site.copied(), site.copied());
    server_sql(&torn, "DELETE FROM dock_txn_log WHERE id = (SELECT max(id) - 1 FROM dock_txn_log)");
    let refused = torn.dockmaster(&["recover", "--moved", "--yes"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("log rows are missing"), "{refused:?}");
    let mut site = whole;
    site.dockmaster_ok(&["recover", "--moved", "--yes"]);
    crm::serve_again(&mut site);
    in_step(&site, &["ANNA"]);
    assert_eq!(literals(&site.path("hq.db"), "SELECT value FROM dock_meta WHERE name = 'epoch'"), ["'1'"]);
    site.stop();
    let mut site = torn;
    site.dockmaster_ok(&["recover", "--restored", "--yes"]);
    crm::serve_again(&mut site);
    in_step(&site, &["ANNA"]);
    site.stop();
}

/// A site with a window of ten days over dates of every kind, and its one node's extract made.
fn windows() -> Site {
    let sql = "CREATE TABLE visit(id INTEGER PRIMARY KEY, due);
        INSERT INTO visit VALUES(1, date('now')), (2, date('now', '-9 days') || ' 00:00:00.000'), (3, unixepoch('now', '-9 days')),
        (4, NULL), (5, 'some day'), (6, 1.5), (7, '2024-02-30'), (8, date('now', '-30 days')), (9, unixepoch('now', '-30 days'));";
    let definition =
        "version = 1\n[node]\nnr = { type = \"integer\" }\n[object.visit]\nvisible = 'everyone'\nwindow = 'due within 10 days'\n";
    let site = Site::new(|path| rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap(), definition);
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "A", "--set", "nr=1"]);
    site.dockmaster_ok(&["extract", "A", "--yes"]);
    site
}

/// Sets the day from which windows count back: as if the service had stood still since.
fn days_ago(site: &Site, days: i64) {
    let conn = rusqlite::Connection::open(site.path("docking/cds.db")).unwrap();
    conn.execute("UPDATE cds_state SET value = value - ?1 WHERE name = 'day'", [days]).unwrap();
}

#[test]
fn r39_a_step_of_more_than_two_days_waits_for_a_person() {
    let site = windows();
    let day = || literals(&site.path("docking/cds.db"), "SELECT value FROM cds_state WHERE name = 'day'");
    let today = day();
    // By itself up to two days, and never back.
    days_ago(&site, 2);
    site.dockmaster_ok(&["run"]);
    assert_eq!(day(), today);
    days_ago(&site, -40);
    let ahead = day();
    site.dockmaster_ok(&["run"]);
    assert_eq!(day(), ahead, "never back");
    days_ago(&site, 40);
    days_ago(&site, 3);
    let behind = day();
    site.dockmaster_ok(&["run"]);
    assert_eq!(day(), behind, "a longer step is not taken");
    let status = site.dockmaster(&["status"]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(
        status.status.code() == Some(1) && text.contains("today is 3 days later") && text.contains("dockmaster tick --accept"),
        "{text}"
    );
    assert_eq!(site.dockmaster(&["tick"]).status.code(), Some(1));
    site.dockmaster_ok(&["tick", "--accept"]);
    site.dockmaster_ok(&["run"]);
    assert_eq!(day(), today);
    site.dockmaster_ok(&["tick"]);
    assert_eq!(site.dockmaster(&["status"]).status.code(), Some(0));
}

#[test]
fn c12_h3_dates_as_text_and_as_seconds_pass_out_of_the_window_and_unreadable_ones_stay_and_are_counted() {
    let mut site = windows();
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("A"), "--renew", "a.db"]);
    assert_eq!(literals(&site.path("a.db"), "SELECT id FROM visit"), ["1", "2", "3", "4", "5", "6", "7"]);
    let text = String::from_utf8_lossy(&site.dockmaster(&["status"]).stdout).into_owned();
    assert!(text.contains("table visit: 3 rows have no readable date in due"), "{text}");
    // Nine days old now, so in three days outside.
    server_sql(
        &site,
        "UPDATE visit SET due = date(due, '-3 days') || ' 00:00:00.000' WHERE id = 2; UPDATE visit SET due = due - 3 * 86400 WHERE id = 3",
    );
    crm::routed(&site);
    site.remote_sync_ok(&["sync", "a.db"]);
    assert_eq!(literals(&site.path("a.db"), "SELECT id FROM visit"), ["1", "4", "5", "6", "7"]);
    site.stop();
}
