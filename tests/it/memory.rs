//! G14, fault 36: a transaction far larger than memory, through the real programs, each within 256 MiB, while another node goes on.
//!
//! `LARGE_MB=1024` sets the size of the transaction; CI takes a smaller one, which is still more than any program could hold.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "a test fails by panicking, and says what it measured")]

use crate::harness::{Program, Site};
use rusqlite::Connection;
use std::time::Instant;

const LIMIT_KIB: u64 = 256 << 10;
const BODY_BYTES: u64 = 2_000;

const DEFINITION: &str = r#"version = 1
[node]
owner = { type = "integer" }
[object.item]
visible.own = 'item.owner = node.owner'
"#;

/// Watches a process until it is gone. Returns the most memory that it ever had, in KiB.
pub(crate) fn watch(pid: u32) -> std::thread::JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut peak = 0;
        while let Some(now) = peak_kib(pid) {
            peak = now;
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        peak
    })
}

/// Returns the most memory that a process ever had, in KiB; `None` once it is gone.
fn peak_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()
}

fn database(path: &std::path::Path) {
    let db = Connection::open(path).unwrap();
    db.execute_batch("CREATE TABLE item(id INTEGER PRIMARY KEY, owner INTEGER NOT NULL, body BLOB)").unwrap();
}

fn count(site: &Site, database: &str) -> (u64, u64) {
    let db = Connection::open(site.path(database)).unwrap();
    db.query_row("SELECT count(*), coalesce(sum(length(body)), 0) FROM item", [], |row| {
        Ok((row.get::<_, i64>(0)?.unsigned_abs(), row.get::<_, i64>(1)?.unsigned_abs()))
    })
    .unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn g14_f36_c17_a_transaction_larger_than_memory_goes_through_and_other_nodes_go_on() {
    let megabytes: u64 = std::env::var("LARGE_MB").map_or(300, |text| text.parse().unwrap());
    let rows = (megabytes << 20) / BODY_BYTES;
    let mut site = Site::new(database, DEFINITION);
    site.dockmaster_ok(&["deploy", "--yes"]);
    for (node, owner) in [("BIG", 1), ("SMALL", 2)] {
        site.dockmaster_ok(&["node", "add", node, "--set", &format!("owner={owner}")]);
    }
    let address = site.serve();
    for node in ["BIG", "SMALL"] {
        site.remote_sync_ok(&["init", &address, "--token", &site.token(node), &format!("{}.db", node.to_lowercase())]);
    }
    let server = Connection::open(site.path("hq.db")).unwrap();
    server.busy_timeout(std::time::Duration::from_secs(60)).unwrap();
    // Random bytes: nothing gets smaller by compression.
    let insert = format!(
        "BEGIN; INSERT INTO item(owner, body) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         SELECT 1, randomblob({BODY_BYTES}) FROM n; COMMIT"
    );
    let began = Instant::now();
    server.execute_batch(&insert).unwrap();
    eprintln!("{megabytes} MiB, {rows} rows: committed on the server in {:.1} s", began.elapsed().as_secs_f64());

    // Beside it, small changes for the other node, each synchronised at once, until the large node has everything.
    let began = Instant::now();
    let (mut small, mut slowest) = (0u64, 0.0f64);
    let mut routed = None;
    let mut client = None;
    let done = loop {
        small += 1;
        server.execute("INSERT INTO item(owner, body) VALUES (2, randomblob(100))", []).unwrap();
        let one = Instant::now();
        site.remote_sync_ok(&["sync", "small.db"]);
        slowest = slowest.max(one.elapsed().as_secs_f64());
        if routed.is_none() && site.path("docking/BIG/outbox/00000001.dx").exists() {
            routed = Some(began.elapsed());
            let mut command = site.command(Program::RemoteSync, &["sync", "--json", "big.db"]);
            let child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
            client = Some((watch(child.id()), child));
        }
        if let Some((_, child)) = &mut client
            && let Some(status) = child.try_wait().unwrap()
        {
            assert!(status.success(), "{status}");
            break began.elapsed();
        }
    };
    let (watched, child) = client.unwrap();
    let client_peak = watched.join().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
    let server_peak = peak_kib(site.pid()).unwrap();
    eprintln!(
        "routed after {:.1} s, applied after {:.1} s, other writers of the node waited {} ms; serve {} MiB, remote-sync {} MiB at most; {small} syncs of the other node, the slowest {slowest:.1} s",
        routed.unwrap().as_secs_f64(),
        done.as_secs_f64(),
        report["longest_pause_ms"],
        server_peak >> 10,
        client_peak >> 10
    );
    assert_eq!(count(&site, "big.db"), (rows, rows * BODY_BYTES));
    site.remote_sync_ok(&["sync", "small.db"]);
    assert_eq!(count(&site, "small.db"), (small, small * 100));
    assert!(small >= 3, "the other node was synchronised {small} times only");
    assert!(server_peak <= LIMIT_KIB, "serve took {} MiB", server_peak >> 10);
    assert!(client_peak > 0 && client_peak <= LIMIT_KIB, "remote-sync took {} MiB", client_peak >> 10);
    assert_eq!((&report["staged_units"], &report["rows"]), (&1.into(), &rows.into()));
}
