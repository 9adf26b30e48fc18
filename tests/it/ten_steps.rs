//! The ten steps of a synchronisation as one test through the real programs, with every artefact on the way: log row,
//! txnproc file, outbox files, inbox file, local row; who may not see the row finds no byte of it anywhere.

use crate::crm::{self, NODES, differences, dx_files, dx_files_in, holds, local, routed, server_sql, shown, traces};
use crate::harness::{Site, literals};
use rusqlite::Connection;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

const NEEDLE: &str = "Gasthof Krone, neue Küche";

/// The one operation of a kind on a table in what `dx show` prints.
fn items<'a>(shown: &'a serde_json::Value, item: &str, table: &str) -> Vec<&'a serde_json::Value> {
    let units = shown["units"].as_array().unwrap().iter().flat_map(|unit| unit["items"].as_array().unwrap());
    units.filter(|found| found["item"] == item && found["table"] == table).collect()
}

fn opportunity(site: &Site, database: &str) -> Vec<String> {
    literals(&site.path(database), "SELECT id, account_id, position_id, name, amount FROM opportunity WHERE id = 5000")
}

#[test]
fn sr1_sr22_the_ten_steps_with_every_artefact_on_the_way() {
    let mut site = crm::running(&["ANNA", "BERT", "CORA"]);
    site.stop();
    crm::equal(&site, &["ANNA", "BERT", "CORA"]);
    let log_before = literals(&site.path("hq.db"), "SELECT count(*), max(id) FROM dock_txn_log");
    let txnproc_before = dx_files(&site, "docking/txnproc").len();

    // SR-1, SR-2: the record is stored with its copy in the log, in one commit; rolled back, neither is there.
    let program = Connection::open(site.path("hq.db")).unwrap();
    let insert = format!("INSERT INTO opportunity VALUES (5000, 9, 4, '{NEEDLE}', 48000.5)");
    let logged = |conn: &Connection| -> i64 {
        conn.query_row("SELECT count(*) FROM dock_txn_log WHERE op = 'I' AND c4 = ?1", [NEEDLE], |row| row.get(0)).unwrap()
    };
    let other = Connection::open(site.path("hq.db")).unwrap();
    program.execute_batch(&format!("BEGIN; {insert}; ")).unwrap();
    assert_eq!((logged(&program), logged(&other)), (1, 0), "the copy is part of the open transaction and of no other");
    program.execute_batch("ROLLBACK").unwrap();
    assert_eq!(logged(&program), 0, "the copy is rolled back with the record");
    assert_eq!(literals(&site.path("hq.db"), "SELECT count(*), max(id) FROM dock_txn_log"), log_before);
    program.execute_batch(&insert).unwrap();
    assert_eq!((logged(&program), logged(&other)), (1, 1));
    let log_row = literals(
        &site.path("hq.db"),
        "SELECT l.op, t.table_name, l.c1, l.c2, l.c3, l.c4, l.c5 FROM dock_txn_log l JOIN dock_capture t ON t.id = l.tbl ORDER BY l.id DESC LIMIT 1",
    );
    assert_eq!(log_row, [format!("'I' | 'opportunity' | 5000 | 9 | 4 | '{NEEDLE}' | 48000.5")]);

    // SR-3: the Transaction Processor copies it to docking/txnproc, and goes no further.
    site.dockmaster_ok(&["run", "txnproc"]);
    let txnproc = dx_files(&site, "docking/txnproc");
    assert_eq!(txnproc.len(), txnproc_before + 1);
    let unit = shown(&site, txnproc.last().unwrap());
    let rows = items(&unit, "row", "opportunity");
    assert_eq!(rows.len(), 1, "{unit}");
    assert!(rows[0]["row"].as_array().unwrap().iter().any(|field| field["name"] == "name" && field["value"] == NEEDLE), "{unit}");
    assert_eq!(traces(&site.path("docking/ANNA"), NEEDLE), Vec::<std::path::PathBuf>::new(), "not routed yet");

    // SR-4 to SR-7: the Router writes it to separate outbox folders on the server's host; no client was there.
    site.dockmaster_ok(&["run", "router"]);
    let folder = site.path("docking");
    let newest = |node: &str| dx_files_in(&folder.join(node).join("outbox")).pop();
    for node in ["ANNA", "BERT"] {
        let file = shown(&site, &newest(node).unwrap());
        assert_eq!(file["header"]["node"], node);
        assert_eq!(items(&file, "put", "opportunity").len(), 1, "{node}: {file}");
    }
    assert_ne!(newest("ANNA").unwrap(), newest("BERT").unwrap());

    // SR-21: CORA may not see it. Neither her outbox nor anything else of hers holds a byte of it.
    assert!(traces(&site.path("docking/CORA"), NEEDLE).is_empty());
    for node in ["ANNA", "BERT"] {
        assert!(opportunity(&site, &local(node)).is_empty(), "nothing moves without a session");
    }

    // SR-8 to SR-11: the clients call; a name that is not in the list of valid nodes is refused.
    let address = crm::serve_again(&mut site);
    let mallory = site.remote_sync(&["init", &address, "--token", &site.forged_token("ANNA"), "mallory.db"]);
    assert_eq!(mallory.status.code(), Some(2));
    assert!(crm::complaint(&mallory).0.contains("unknown, disabled or wrong node"));

    // SR-12, SR-14: the files come into the inbox byte by byte as they lay in the outbox; nothing is applied.
    for (node, _) in NODES {
        let told = site.remote_sync_ok(&["sync", &local(node), "--only", "receive"]);
        assert!(told.contains("nothing applied"), "{told}");
    }
    for node in ["ANNA", "BERT"] {
        let inbox = dx_files(&site, &format!("{}.sync/inbox", local(node)));
        let sent = newest(node).unwrap();
        let received = inbox.iter().find(|file| file.file_name() == sent.file_name()).expect("it lies in the inbox");
        assert_eq!(std::fs::read(received).unwrap(), std::fs::read(sent).unwrap());
        assert!(opportunity(&site, &local(node)).is_empty());
    }
    assert!(traces(&site.path("cora.db.sync"), NEEDLE).is_empty());

    // SR-18, SR-19: the connection is closed, the server is gone; applying does not need it.
    site.stop();
    for (node, _) in NODES {
        site.remote_sync_ok(&["sync", &local(node), "--only", "apply"]);
    }
    let here = [format!("5000 | 9 | 4 | '{NEEDLE}' | 48000.5")];
    assert_eq!(opportunity(&site, "anna.db"), here);
    assert_eq!(opportunity(&site, "bert.db"), here);
    assert_eq!(opportunity(&site, "cora.db"), Vec::<String>::new());
    for file in ["cora.db", "cora.db-wal"] {
        let path = site.path(file);
        assert!(!path.exists() || !holds(&path, NEEDLE), "{file}");
    }
    crm::equal(&site, &["ANNA", "BERT", "CORA"]);

    // A row that moves from one node to another vanishes from the first.
    server_sql(&site, "UPDATE opportunity SET position_id = 6 WHERE id = 5000");
    crm::serve_again(&mut site);
    routed(&site);
    let gone = shown(&site, &newest("ANNA").unwrap());
    assert_eq!(items(&gone, "delete", "opportunity").len(), 1, "{gone}");
    crm::in_step(&site, &["ANNA", "BERT", "CORA"]);
    assert!(opportunity(&site, "anna.db").is_empty() && opportunity(&site, "bert.db").is_empty());
    assert_eq!(opportunity(&site, "cora.db"), [format!("5000 | 9 | 6 | '{NEEDLE}' | 48000.5")]);
    site.stop();
}

#[test]
fn sr20_a_program_reads_and_writes_while_files_are_applied() {
    const ROWS: i64 = 6_000;
    const FILES: i64 = 15;
    let mut site = crm::running(&["ANNA"]);
    // Files of some hundred rows each, received and not applied.
    site.stop();
    for part in 0..FILES {
        let from = 10_000 + part * ROWS / FILES;
        let rows = format!(
            "WITH RECURSIVE n(v) AS (SELECT {from} UNION ALL SELECT v + 1 FROM n WHERE v < {}) \
             INSERT INTO opportunity SELECT v, 9, 4, 'bulk ' || v, v FROM n",
            from + ROWS / FILES - 1
        );
        server_sql(&site, &rows);
        site.dockmaster_ok(&["run"]);
    }
    crm::serve_again(&mut site);
    site.remote_sync_ok(&["sync", "anna.db", "--only", "receive"]);
    site.stop();

    let done = Arc::new(AtomicBool::new(false));
    let (ready, begin) = mpsc::channel();
    let path = site.path("anna.db");
    let stop = Arc::clone(&done);
    let program = std::thread::spawn(move || {
        let conn = Connection::open(path).unwrap();
        conn.busy_timeout(Duration::from_secs(5)).unwrap();
        conn.execute_batch("CREATE TABLE my_note(id INTEGER PRIMARY KEY, text TEXT)").unwrap();
        ready.send(()).unwrap();
        let (mut wrote, mut seen) = (0i64, Vec::new());
        while !stop.load(Ordering::Acquire) {
            // One read transaction sees one state; one write is there when it is committed.
            let count: i64 = conn.query_row("SELECT count(*) FROM opportunity WHERE id >= 10000", [], |row| row.get(0)).unwrap();
            conn.execute("INSERT INTO my_note(text) VALUES(?1)", [format!("at {count}")]).unwrap();
            wrote += 1;
            seen.push(count);
            std::thread::sleep(Duration::from_millis(1));
        }
        let kept: i64 = conn.query_row("SELECT count(*) FROM my_note", [], |row| row.get(0)).unwrap();
        (wrote, kept, seen)
    });
    begin.recv().unwrap();
    site.remote_sync_ok(&["sync", "anna.db", "--only", "apply"]);
    done.store(true, Ordering::Release);
    let (wrote, kept, seen) = program.join().unwrap();
    assert_eq!(wrote, kept, "no write of the program is lost");
    assert!(seen.is_sorted() && seen.iter().all(|count| count % (ROWS / FILES) == 0), "whole units only: {seen:?}");
    assert!(seen.iter().any(|count| (1..ROWS).contains(count)), "it worked while files were applied: {seen:?}");
    assert_eq!(differences(&site, "anna.db", 4), "");
}
