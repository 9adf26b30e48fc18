//! What an operator sees: status with the command to type, the reason of a stopped node on both sides, history, metrics that equal the
//! truth, and the alert hook. All of it with the real programs.

use super::harness::Site;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

const DEFINITION: &str = "version = 1\n[node]\nshop = { type = \"integer\" }\n[object.item]\nvisible.own = 'item.shop = node.shop'\n";

fn database(path: &Path) {
    let sql = "CREATE TABLE item(id INTEGER PRIMARY KEY, shop INTEGER, name TEXT);
               INSERT INTO item VALUES(1, 1, 'a'), (2, 1, 'b'), (3, 2, 'c');";
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

fn deployed() -> Site {
    let site = Site::new(database, DEFINITION);
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "SHOP-01", "--set", "shop=1"]);
    site.dockmaster_ok(&["node", "add", "SHOP-02", "--set", "shop=2"]);
    site
}

fn said(site: &Site, arguments: &[&str]) -> (i32, String) {
    let output = site.dockmaster(arguments);
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn number(path: &Path, sql: &str) -> i64 {
    Connection::open(path).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

/// A figure by its name and labels, as the text has it.
fn figures(text: &str) -> BTreeMap<String, i64> {
    let figure = |line: &str| line.rsplit_once(' ').map(|(name, value)| (name.to_owned(), value.parse().unwrap()));
    text.lines().filter(|line| !line.starts_with('#')).filter_map(figure).collect()
}

#[test]
fn x11_doe22_h5_metrics_and_status_equal_the_truth() {
    let mut site = deployed();
    let address = site.serve();
    for node in ["SHOP-01", "SHOP-02"] {
        site.remote_sync_ok(&["init", &address, "--token", &site.token(node), &format!("{node}.db")]);
        site.remote_sync_ok(&["sync", &format!("{node}.db")]);
    }
    site.sqlite3("hq.db", "UPDATE item SET name = 'x' WHERE shop = 1;");
    site.remote_sync_ok(&["sync", "SHOP-01.db"]);
    site.stop();
    for name in ["y", "z"] {
        site.sqlite3("hq.db", &format!("UPDATE item SET name = '{name}';"));
        site.dockmaster_ok(&["run"]);
    }
    // Read, not routed; and written, not read.
    site.sqlite3("hq.db", "UPDATE item SET name = 'later' WHERE id = 3;");
    site.dockmaster_ok(&["run", "txnproc"]);
    site.sqlite3("hq.db", "UPDATE item SET name = 'last' WHERE id = 3;");

    let (hq, cds) = (site.path("hq.db"), site.path("docking/cds.db"));
    let (ledger, sessions) = (site.path("docking/ledger.db"), site.path("docking/sessions.db"));
    let log = number(&hq, "SELECT max(id) FROM dock_txn_log");
    let txnproc = number(&cds, "SELECT value FROM cds_state WHERE name = 'position'");
    let router = number(&ledger, "SELECT position FROM router");
    assert!(log > txnproc && txnproc > router, "{log} {txnproc} {router}");
    let found = figures(&site.dockmaster_ok(&["metrics"]));
    let figure = |name: &str| *found.get(&format!("dockmaster_{name}")).unwrap_or_else(|| panic!("{name} is not in {found:?}"));
    assert_eq!((figure("log_position"), figure("txnproc_position"), figure("router_position")), (log, txnproc, router));
    assert_eq!((figure("txnproc_lag"), figure("router_lag")), (log - txnproc, log - router));
    assert_eq!(figure("sessions_begun"), number(&sessions, "SELECT count(*) FROM session"));
    assert_eq!((figure("nodes{state=\"ok\"}"), figure("nodes{state=\"stopped\"}"), figure("needs"), figure("light")), (2, 0, 0, 0));
    assert!(figure("disk_free_bytes") > 0);
    for node in ["SHOP-01", "SHOP-02"] {
        let of = |name: &str| figure(&format!("node_{name}{{node=\"{node}\"}}"));
        let mark = |column: &str| number(&sessions, &format!("SELECT {column} FROM mark WHERE node = '{node}'"));
        assert_eq!((of("received_file"), of("applied_file")), (mark("received_file"), mark("applied_file")), "{node}");
        assert_eq!(of("applied_position"), mark("applied_unit"));
        let local = site.path(&format!("{node}.db"));
        assert_eq!(of("applied_position"), number(&local, "SELECT applied_unit FROM dock_state"), "what the node says is what it is");
        let files: Vec<_> = std::fs::read_dir(site.path(&format!("docking/{node}/outbox"))).unwrap().map(|entry| entry.unwrap()).collect();
        let waiting = files.iter().filter(|file| {
            let name = file.file_name().into_string().unwrap();
            name.strip_suffix(".dx").is_some_and(|number| number.parse::<i64>().unwrap() > mark("applied_file"))
        });
        let bytes: Vec<u64> = waiting.map(|file| file.metadata().unwrap().len()).collect();
        assert_eq!((of("waiting_files"), of("waiting_bytes")), (bytes.len() as i64, bytes.iter().sum::<u64>() as i64), "{node}");
        assert!(of("waiting_files") > 0 && of("routed_file") == mark("applied_file") + of("waiting_files"), "{node}");
    }
    let (code, text) = said(&site, &["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &status["light"], &status["log"], &status["router"]), (0, &"green".into(), &log.into(), &router.into()));
    assert_eq!(status["nodes"][0]["waiting"]["files"], figure("node_waiting_files{node=\"SHOP-01\"}"));
}

#[test]
fn doe6_x11_a_node_that_cannot_apply_shows_row_and_reason_on_both_sides_and_takes_them_back() {
    let mut site = deployed();
    let address = site.serve();
    for node in ["SHOP-01", "SHOP-02"] {
        site.remote_sync_ok(&["init", &address, "--token", &site.token(node), &format!("{node}.db")]);
    }
    site.remote_sync_ok(&["sync", "SHOP-01.db"]);
    // Behind our back a row goes that the server then changes.
    crate::harness::behind_our_back(&site, "SHOP-01.db", "DELETE FROM item WHERE id = 2;");
    site.sqlite3("hq.db", "UPDATE item SET name = 'changed';");
    let failed = site.remote_sync(&["sync", "SHOP-01.db"]);
    assert_eq!(failed.status.code(), Some(2), "{}", String::from_utf8_lossy(&failed.stderr));
    let reason = "table item, key 2: the row to change is not in the local database";
    let here = String::from_utf8_lossy(&site.remote_sync(&["status", "SHOP-01.db"]).stdout).into_owned();
    assert!(here.contains(reason), "at the node: {here}");
    let (code, there) = said(&site, &["status"]);
    assert!(code == 1 && there.contains("stopped") && there.contains(reason), "at the server: {there}");
    assert!(there.contains("dockmaster node show SHOP-01"), "the command to type: {there}");
    let (code, shown) = said(&site, &["node", "show", "SHOP-01"]);
    assert!(code == 1 && shown.contains(reason), "{shown}");
    assert_eq!(figures(&site.dockmaster_ok(&["metrics"]))["dockmaster_nodes{state=\"stopped\"}"], 1);
    // The others go on.
    site.remote_sync_ok(&["sync", "SHOP-02.db"]);
    let (_, explained) = said(&site, &["explain", "SHOP-01", "item", "2"]);
    assert!(explained.contains("was received and not applied") && explained.contains(reason), "{explained}");

    crate::harness::behind_our_back(&site, "SHOP-01.db", "INSERT INTO item VALUES(2, 1, 'b');");
    site.remote_sync_ok(&["sync", "SHOP-01.db"]);
    let (code, well) = said(&site, &["status"]);
    assert!(code == 0 && !well.contains("stopped"), "it is taken back: {well}");
    let (_, history) = said(&site, &["node", "history", "SHOP-01"]);
    assert!(
        history.contains("registered  shop=1") && history.contains("extract 0 -> 1") && history.contains("sync of extract 1"),
        "{history}"
    );
}

#[test]
fn doe24_x41_the_alert_hook_is_run_once_for_what_begins_to_need_a_person_and_never_blocks() {
    let mut site = deployed();
    let config = site.path("dockmaster.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    // It writes the alert down, and fails.
    std::fs::write(&config, format!("{text}alert_command = \"(cat; echo) >> alerts.txt; exit 7\"\n")).unwrap();
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("SHOP-01"), "SHOP-01.db"]);
    crate::harness::behind_our_back(&site, "SHOP-01.db", "DELETE FROM item;");
    site.sqlite3("hq.db", "UPDATE item SET name = 'changed';");
    assert_eq!(site.remote_sync(&["sync", "SHOP-01.db"]).status.code(), Some(2));
    let alerts = site.path("alerts.txt");
    let began = Instant::now();
    let lines = || std::fs::read_to_string(&alerts).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    while lines().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60), "no alert came");
        std::thread::sleep(Duration::from_millis(100));
    }
    let alert: serde_json::Value = serde_json::from_str(&lines()[0]).unwrap();
    assert_eq!((&alert["node"], &alert["level"], &alert["server"]), (&"SHOP-01".into(), &"red".into(), &"HQ".into()));
    assert!(alert["what"].as_str().unwrap().contains("the row to change is not in the local database"), "{alert}");
    // A restart tells nothing twice, though the hook failed; another trouble is told.
    site.stop();
    site.serve();
    site.sqlite3("hq.db", "DROP TRIGGER dock_i_1; ALTER TABLE item RENAME COLUMN name TO title;");
    let began = Instant::now();
    while lines().len() < 2 {
        assert!(began.elapsed() < Duration::from_secs(60), "no second alert came: {:?}", lines());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(lines()[1].contains("table item is stopped"), "{:?}", lines());
    assert_eq!(lines().len(), 2);
    site.stop();
}

#[test]
fn doe5_a_sync_reports_how_far_its_files_were_compressed() {
    let mut site = deployed();
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("SHOP-01"), "SHOP-01.db"]);
    site.sqlite3("hq.db", "WITH RECURSIVE n(i) AS (SELECT 10 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) INSERT INTO item SELECT i, 1, 'the same text again' FROM n;");
    let text = site.remote_sync_ok(&["sync", "SHOP-01.db", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let files = number(&site.path("docking/ledger.db"), "SELECT sum(bytes) FROM outbox_file WHERE node = 'SHOP-01'");
    assert_eq!((&report["applied_bytes"], &report["bytes"]), (&files.into(), &files.into()));
    assert!(report["applied_raw_bytes"].as_i64().unwrap() > 3 * files, "{report}");
}
