//! Scenarios of a running site: extracts under load, open transactions, bulk updates, programs that are killed at any
//! moment, nodes that are initialised again.

use crate::crm::{self, differences, in_step, routed, serve_again, server_sql, shown};
use crate::direct::Direct;
use crate::harness::{Site, copy_folder, literals};
use dockmaster::server::nodes;
use dockmaster::server::pass::Stage;
use rusqlite::Connection;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const ALL: [&str; 3] = ["ANNA", "BERT", "CORA"];

/// A program that writes at full speed until it is told to stop; returns how many transactions it committed.
struct Writer {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    fn begin(site: &Site, seed: u64, pause: Duration) -> Writer {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count, path) = (Arc::clone(&stop), Arc::clone(&committed), site.path("hq.db"));
        let thread = std::thread::spawn(move || {
            let conn = Connection::open(path).unwrap();
            conn.busy_timeout(Duration::from_secs(20)).unwrap();
            conn.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA synchronous = NORMAL").unwrap();
            let mut random = fastrand::Rng::with_seed(seed);
            while !stopped.load(Ordering::Acquire) {
                conn.execute_batch(&edit(&mut random)).unwrap();
                count.fetch_add(1, Ordering::AcqRel);
                std::thread::sleep(pause);
            }
        });
        Writer { stop, committed, thread: Some(thread) }
    }

    fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap();
        self.committed.load(Ordering::Acquire)
    }
}

/// A transaction of some random edits that move rows between nodes.
fn edit(random: &mut fastrand::Rng) -> String {
    let (id, position) = (random.i64(1..100), random.i64(1..=6));
    let account = random.i64(1..=30);
    match random.u32(0..8) {
        0..=2 => format!("UPDATE opportunity SET position_id = {position}, amount = amount + 1 WHERE id = {id}"),
        3 => format!("INSERT OR REPLACE INTO opportunity VALUES({id}, {account}, {position}, 'made again', 0)"),
        4 => format!("BEGIN; DELETE FROM opportunity_line WHERE opportunity_id = {id}; DELETE FROM opportunity WHERE id = {id}; COMMIT"),
        5 => format!("INSERT OR REPLACE INTO opportunity_line VALUES({}, {id}, {}, {position})", random.i64(1..200), random.i64(1..=8)),
        6 => format!("INSERT OR IGNORE INTO account_team VALUES({account}, {position})"),
        _ => format!("DELETE FROM account_team WHERE account_id = {account} AND position_id = {position}"),
    }
}

#[test]
fn a1_a_node_registers_gets_its_extract_and_whoever_is_not_registered_or_closed_is_refused() {
    let mut site = crm::running(&["ANNA"]);
    crm::equal(&site, &["ANNA"]);
    let address = site.address().to_owned();
    assert_eq!(site.remote_sync(&["init", &address, "--token", &site.forged_token("ANNA"), "dora.db"]).status.code(), Some(2));
    let token = site.token("CORA");
    site.dockmaster_ok(&["node", "disable", "CORA"]);
    assert_eq!(site.remote_sync(&["init", &address, "--token", &token, "cora.db"]).status.code(), Some(2));
    site.dockmaster_ok(&["node", "enable", "CORA"]);
    site.remote_sync_ok(&["init", &address, "--token", &site.token("CORA"), "cora.db"]);
    crm::equal(&site, &["CORA"]);
    site.stop();
}

#[test]
fn a2_an_extract_holds_exactly_the_visible_rows_and_no_byte_of_others() {
    let mut site = crm::running(&["ANNA", "BERT"]);
    crm::equal(&site, &["ANNA", "BERT"]);
    server_sql(&site, "INSERT INTO opportunity VALUES(900, 1, 6, 'only CORA sees this one', 1)");
    site.remote_sync_ok(&["init", site.address(), "--token", &site.token("CORA"), "cora.db"]);
    site.remote_sync_ok(&["init", site.address(), "--token", &site.token("ANNA"), "--replace", "--renew", "anna.db"]);
    crm::equal(&site, &["ANNA", "CORA"]);
    assert!(crm::holds(&site.path("cora.db"), "only CORA sees this one"));
    assert!(!crm::holds(&site.path("anna.db"), "only CORA sees this one"));
    assert!(crm::traces(&site.path("docking/ANNA"), "only CORA sees this one").is_empty());
    site.stop();
}

#[test]
fn a3_r15_twenty_extracts_under_a_writer_at_full_speed_lose_and_double_nothing() {
    let mut direct = Direct::crm();
    let writer = Writer::begin(&direct.site, 7, Duration::ZERO);
    for round in 0..20 {
        let node = ALL[round % 3];
        // The Router is stopped, lagging or level when the node begins anew.
        if round % 4 == 0 {
            direct.stages(&[Stage::TxnProc]);
        }
        direct.start(node);
        if round % 5 == 0 {
            direct.stages(&[Stage::Router]);
        }
    }
    assert!(writer.end() > 20, "the writer wrote meanwhile");
    direct.equal();
}

#[test]
fn b7_commits_never_come_in_reverse_id_order_because_there_is_one_writer() {
    // Log ids are given inside the write transaction, of which SQLite has one at a time: who has the smaller id has committed
    // first. So reverse order, and with it a reader that skips an id, cannot come about. The second writer proves it: it is
    // refused at its first write, before an id is given.
    let direct = Direct::crm();
    let open = || {
        let conn = Connection::open(direct.site.path("hq.db")).unwrap();
        conn.busy_timeout(Duration::ZERO).unwrap();
        conn
    };
    let (first, second) = (open(), open());
    first.execute_batch("BEGIN; UPDATE product SET name = 'first' WHERE id = 1").unwrap();
    second.execute_batch("BEGIN").unwrap();
    let refused = second.execute_batch("UPDATE product SET name = 'second' WHERE id = 2").unwrap_err();
    assert_eq!(refused.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy));
    first.execute_batch("COMMIT").unwrap();
    second.execute_batch("UPDATE product SET name = 'second' WHERE id = 2; COMMIT").unwrap();
    let order = literals(
        &direct.site.path("hq.db"),
        "SELECT c2 FROM dock_txn_log WHERE tbl > 0 AND op = 'U' AND id > (SELECT max(id) - 2 FROM dock_txn_log) ORDER BY id",
    );
    assert_eq!(order.len(), 2);
}

#[test]
fn b8_a_rolled_back_transaction_leaves_no_gap_that_anybody_waits_for() {
    let mut direct = Direct::crm();
    direct.sql("BEGIN; UPDATE product SET name = 'never'; ROLLBACK; UPDATE product SET name = 'kept' WHERE id = 1");
    direct.sql("BEGIN; SAVEPOINT s; DELETE FROM product; ROLLBACK TO s; UPDATE product SET name = 'kept too' WHERE id = 2; COMMIT");
    direct.equal();
    assert_eq!(direct.who("SELECT 1 FROM product WHERE name LIKE 'kept%'"), ALL);
    assert!(direct.who("SELECT 1 FROM product WHERE name = 'never'").is_empty());
}

#[test]
fn b9_a_transaction_that_stays_open_holds_back_only_itself_and_nothing_is_lost() {
    let mut site = crm::running(&["ANNA"]);
    let program = Connection::open(site.path("hq.db")).unwrap();
    server_sql(&site, "UPDATE product SET name = 'before' WHERE id = 1");
    program.execute_batch("BEGIN IMMEDIATE; UPDATE product SET name = 'slow' WHERE id = 2").unwrap();
    // What was committed before goes its way, though the mark of this reading waits for the writer.
    let path = site.path("hq.db");
    let waiting = std::thread::spawn(move || {
        let conn = Connection::open(path).unwrap();
        conn.busy_timeout(Duration::from_secs(20)).unwrap();
        conn.execute_batch("UPDATE product SET name = 'waited' WHERE id = 3").unwrap();
    });
    std::thread::sleep(Duration::from_secs(3));
    assert!(site.dockmaster(&["status"]).status.success(), "status asks nobody to wait");
    program.execute_batch("UPDATE product SET name = 'slow too' WHERE id = 4; COMMIT").unwrap();
    waiting.join().unwrap();
    in_step(&site, &["ANNA"]);
    let names = literals(&site.path("anna.db"), "SELECT name FROM product WHERE id <= 4");
    assert_eq!(names, ["'before'", "'slow too'", "'slow'", "'waited'"]);
    site.stop();
}

#[test]
fn b11_a_bulk_update_of_a_hundred_thousand_rows_is_one_unit_and_the_nodes_are_equal() {
    let mut direct = Direct::crm();
    direct.sql(
        "WITH RECURSIVE n(v) AS (SELECT 1000 UNION ALL SELECT v + 1 FROM n WHERE v < 100999)
         INSERT INTO opportunity_line SELECT v, 1 + v % 60, 1 + v % 8, 0 FROM n",
    );
    direct.move_on();
    direct.sql("UPDATE opportunity_line SET quantity = quantity + 1 WHERE id >= 1000");
    let pass = direct.stages(&[Stage::TxnProc, Stage::Router]);
    assert_eq!(pass.units, 1);
    direct.equal();
    assert!(direct.has("ANNA", "SELECT 1 FROM opportunity_line WHERE quantity = 1 AND id >= 1000"));
}

#[test]
fn d1_d2_files_that_come_again_and_acknowledgements_that_are_lost_change_nothing() {
    let mut site = crm::running(&["ANNA"]);
    server_sql(&site, "UPDATE opportunity SET amount = amount + 1 WHERE position_id = 4");
    routed(&site);
    site.remote_sync_ok(&["sync", "anna.db", "--only", "receive"]);
    let file = crm::dx_files(&site, "anna.db.sync/inbox").pop().unwrap();
    let bytes = std::fs::read(&file).unwrap();
    // Applied without a session: the server does not hear of it until the next hello.
    site.remote_sync_ok(&["sync", "anna.db", "--only", "apply"]);
    let before = literals(&site.path("anna.db"), "SELECT * FROM opportunity");
    std::fs::write(&file, &bytes).unwrap();
    site.remote_sync_ok(&["sync", "anna.db", "--only", "apply"]);
    assert!(!file.exists(), "a file that is applied already is dropped");
    assert_eq!(literals(&site.path("anna.db"), "SELECT * FROM opportunity"), before);
    let status = |site: &Site| -> serde_json::Value { serde_json::from_slice(&site.dockmaster(&["status", "--json"]).stdout).unwrap() };
    assert_eq!(status(&site)["nodes"][0]["waiting"]["files"], 1);
    site.remote_sync_ok(&["sync", "anna.db"]);
    assert_eq!(status(&site)["nodes"][0]["waiting"]["files"], 0);
    in_step(&site, &["ANNA"]);
    site.stop();
}

#[test]
fn r13_the_service_killed_at_thirty_moments_under_load_loses_and_doubles_nothing() {
    let mut site = crm::running(&ALL);
    let mut random = fastrand::Rng::with_seed(13);
    let writer = Writer::begin(&site, 13, Duration::from_millis(2));
    for kill in 0..30 {
        std::thread::sleep(Duration::from_millis(random.u64(0..60)));
        if kill % 3 == 0 {
            // A client is in the middle of a session now and then.
            let mut client = site.remote_sync_started(&["sync", crm::local(ALL[kill % 9 / 3]).as_str()]);
            std::thread::sleep(Duration::from_millis(random.u64(0..60)));
            site.signal("-KILL");
            client.kill().unwrap();
            client.wait().unwrap();
        } else {
            site.signal("-KILL");
        }
        serve_again(&mut site);
    }
    assert!(writer.end() > 100);
    in_step(&site, &ALL);
    site.stop();
}

#[test]
fn r25_files_without_a_row_in_the_ledger_are_deleted_and_made_anew() {
    let mut direct = Direct::crm();
    direct.sql("UPDATE product SET name = 'one'");
    direct.move_on();
    let txnproc = crm::dx_files(&direct.site, "docking/txnproc").pop().unwrap();
    let outbox = crm::dx_files(&direct.site, "docking/ANNA/outbox").pop().unwrap();
    // What a crash between rename and commit leaves: the next number, with other content.
    let next = |path: &std::path::Path| {
        let number: u64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        path.with_file_name(format!("{:08}.dx", number + 1))
    };
    std::fs::copy(&txnproc, next(&txnproc)).unwrap();
    std::fs::copy(&outbox, next(&outbox)).unwrap();
    direct.stages(&[Stage::TxnProc, Stage::Router]);
    assert!(!next(&txnproc).exists() && !next(&outbox).exists(), "recovery goes by the ledger, never by the folder");
    direct.sql("UPDATE product SET name = 'two'");
    direct.equal();
    let file = shown(&direct.site, &next(&outbox));
    assert!(file.to_string().contains("two") && !file.to_string().contains("\"one\""), "{file}");
}

#[test]
fn r36_rules_over_tables_and_columns_that_no_node_holds() {
    let sql = "CREATE TABLE rep(id INTEGER PRIMARY KEY, name TEXT, code TEXT);
               CREATE TABLE secret_link(code TEXT, visit_id INTEGER, PRIMARY KEY(code, visit_id));
               CREATE TABLE visit(id INTEGER PRIMARY KEY, slot TEXT UNIQUE, text TEXT);
               INSERT INTO rep VALUES(1, 'Anna', 'a'), (2, 'Ben', 'b');
               INSERT INTO visit VALUES(1, 'x', 'first'), (2, 'y', 'second');
               INSERT INTO secret_link VALUES('a', 1), ('b', 2);";
    let definition = "version = 1\nreference = [\"rep\"]\n[node]\nrep = { type = \"integer\", must_exist = \"rep.id\" }\ncode = 'node.rep -> rep(id).code'\n\
                      [object.visit]\nvisible.linked = 'visit.id -> secret_link(visit_id).code = node.code'\n[table.rep]\nomit = [\"code\"]\n";
    let mut direct = Direct::new(|path| Connection::open(path).unwrap().execute_batch(sql).unwrap(), definition);
    direct.add("ANNA", "rep", "1");
    direct.add("BEN", "rep", "2");
    let visits = |direct: &Direct, node: &str| literals(&direct.site.path(&crm::local(node)), "SELECT id, slot FROM visit");
    assert_eq!(visits(&direct, "ANNA"), ["1 | 'x'"]);
    assert!(literals(&direct.site.path("anna.db"), "SELECT name FROM sqlite_schema WHERE name = 'secret_link'").is_empty());
    assert_eq!(
        literals(&direct.site.path("anna.db"), "SELECT * FROM rep"),
        ["1 | 'Anna'", "2 | 'Ben'"],
        "the column of the rule stays here"
    );
    // A unique swap on the server in one transaction, and the link and the code change.
    direct.sql("BEGIN; UPDATE visit SET slot = 'z' WHERE id = 1; UPDATE visit SET slot = 'x' WHERE id = 2; UPDATE visit SET slot = 'y' WHERE id = 1; INSERT INTO secret_link VALUES('a', 2); COMMIT");
    direct.move_on();
    assert_eq!(visits(&direct, "ANNA"), ["1 | 'y'", "2 | 'x'"]);
    direct.sql("UPDATE rep SET code = 'b' WHERE id = 1; UPDATE rep SET code = 'a' WHERE id = 2");
    direct.move_on();
    assert_eq!(
        (visits(&direct, "ANNA"), visits(&direct, "BEN")),
        (vec!["2 | 'x'".to_owned()], vec!["1 | 'y'".to_owned(), "2 | 'x'".to_owned()])
    );
}

#[test]
fn r37_e3_unique_values_swap_on_the_way_from_the_server_to_the_nodes() {
    let sql = "CREATE TABLE seat(id INTEGER PRIMARY KEY, place TEXT UNIQUE COLLATE NOCASE, row_no INTEGER, active INTEGER);
               CREATE UNIQUE INDEX one_active ON seat(row_no) WHERE active = 1;
               INSERT INTO seat VALUES(1, 'a', 1, 1), (2, 'b', 1, 0), (3, 'c', 2, 1)";
    let definition = "version = 1\n[node]\nnr = { type = \"integer\" }\n[object.seat]\nvisible = 'everyone'\n";
    let mut direct = Direct::new(|path| Connection::open(path).unwrap().execute_batch(sql).unwrap(), definition);
    direct.add("ANNA", "nr", "1");
    for sql in [
        "BEGIN; UPDATE seat SET place = 'tmp' WHERE id = 1; UPDATE seat SET place = 'A' WHERE id = 2; UPDATE seat SET place = 'B' WHERE id = 1; COMMIT",
        "BEGIN; UPDATE seat SET place = NULL; UPDATE seat SET place = substr('cab', id, 1); COMMIT",
        "BEGIN; UPDATE seat SET active = 0 WHERE id = 1; UPDATE seat SET active = 1 WHERE id = 2; COMMIT",
        "BEGIN; UPDATE seat SET id = -id; UPDATE seat SET id = CASE id WHEN -1 THEN 2 WHEN -2 THEN 3 ELSE 1 END; COMMIT",
        "UPDATE OR REPLACE seat SET place = 'C'",
    ] {
        direct.sql(sql);
        direct.move_on();
        let rows = |path: &str| literals(&direct.site.path(path), "SELECT * FROM seat");
        assert_eq!(rows("anna.db"), rows("hq.db"), "{sql}");
    }
}

#[test]
fn e5_a_sync_killed_at_any_moment_goes_on_and_ends_where_the_server_is() {
    let mut site = crm::running(&["ANNA", "BERT"]);
    let mut random = fastrand::Rng::with_seed(5);
    for round in 0..12 {
        for part in 0..3 {
            let from = 10_000 + (round * 3 + part) * 300;
            server_sql(
                &site,
                &format!(
                    "WITH RECURSIVE n(v) AS (SELECT {from} UNION ALL SELECT v + 1 FROM n WHERE v < {}) INSERT INTO opportunity SELECT v, 9, 4, 'part', v FROM n",
                    from + 299
                ),
            );
        }
        let mut client = site.remote_sync_started(&["sync", "anna.db"]);
        std::thread::sleep(Duration::from_millis(random.u64(0..120)));
        client.kill().unwrap();
        client.wait().unwrap();
        let seen = literals(&site.path("anna.db"), "SELECT count(*) % 300 FROM opportunity WHERE id >= 10000");
        assert_eq!(seen, ["0"], "whole units only");
    }
    // Two nodes, one killed, one not.
    in_step(&site, &["BERT"]);
    in_step(&site, &["ANNA"]);
    site.stop();
}

#[test]
fn serve_ends_within_five_seconds_of_sigterm_with_a_session_open_and_a_writer_at_work() {
    let mut site = crm::running(&["ANNA"]);
    let writer = Writer::begin(&site, 1, Duration::from_millis(1));
    let mut watching = site.remote_sync_started(&["watch", "anna.db"]);
    std::thread::sleep(Duration::from_millis(700));
    let (ended, took) = site.signal("-TERM");
    assert!(ended.success(), "{ended}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    writer.end();
    // The client that watches is still there and comes back by itself; Ctrl-C ends it in peace.
    assert_eq!(watching.try_wait().unwrap(), None);
    std::process::Command::new("kill").args(["-INT", &watching.id().to_string()]).status().unwrap();
    let began = Instant::now();
    assert!(watching.wait().unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(5));
    serve_again(&mut site);
    in_step(&site, &["ANNA"]);
    site.stop();
}

#[test]
fn a_node_initialised_again_keeps_the_old_database_and_the_old_copy_is_refused() {
    let mut site = crm::running(&["ANNA", "CORA"]);
    server_sql(&site, "UPDATE opportunity SET name = 'before' WHERE id <= 10");
    in_step(&site, &["ANNA", "CORA"]);
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::copy(site.path(&format!("anna.db{suffix}")), site.path(&format!("old.db{suffix}")));
    }
    copy_folder(&site.path("anna.db.sync"), &site.path("old.db.sync"));
    server_sql(&site, "UPDATE opportunity SET name = 'between' WHERE id <= 10");
    site.remote_sync_ok(&["init", site.address(), "--token", &site.token("ANNA"), "--replace", "--renew", "anna.db"]);
    assert_eq!(differences(&site, "anna.db", 4), "");
    assert!(site.path("anna.db.before-init").exists());
    server_sql(&site, "UPDATE opportunity SET name = 'after' WHERE id <= 10");
    in_step(&site, &["ANNA", "CORA"]);
    let old = site.remote_sync(&["sync", "old.db"]);
    assert_eq!(old.status.code(), Some(2), "{}", String::from_utf8_lossy(&old.stderr));
    let (error, hint) = crm::complaint(&old);
    assert!(
        error.contains("unknown, disabled or wrong node") && hint.contains("dockmaster node"),
        "another machine is the node now: {error} {hint}"
    );
    assert_eq!(literals(&site.path("old.db"), "SELECT name FROM opportunity WHERE name = 'after'"), Vec::<String>::new());
    in_step(&site, &["ANNA", "CORA"]);
    site.stop();
}

#[test]
fn a_node_deleted_and_added_again_under_its_name_begins_anew() {
    let mut direct = Direct::crm();
    let anna = "ANNA".parse().unwrap();
    nodes::delete(&direct.server(), &anna).unwrap();
    direct.sql("UPDATE product SET name = 'meanwhile'");
    direct.move_on();
    direct.add("ANNA", "employee", "4");
    direct.sql("UPDATE opportunity SET position_id = 4 WHERE id % 2 = 0");
    direct.equal();
}
