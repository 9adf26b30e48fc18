//! What the server's own logic makes of changes of nodes, when the server has them, and which way each kind of object travels in each mode.

use crate::crm;
use crate::harness::{Site, literals};
use rusqlite::Connection;
use std::time::{Duration, Instant};

/// A trigger of the back end: an opportunity that is renamed gets a line.
const LOGIC: &str = "
CREATE TRIGGER follow_up AFTER UPDATE OF name ON opportunity BEGIN
    INSERT INTO opportunity_line(opportunity_id, product_id, quantity) VALUES (NEW.id, 1, 4711);
END";

const MADE: &str = "SELECT opportunity_id, quantity FROM opportunity_line WHERE quantity = 4711";

fn on(site: &Site, node: &str, query: &str) -> Vec<String> {
    literals(&site.path(&crm::local(node)), query)
}

#[test]
fn bpm9_an_offline_change_is_on_the_server_after_a_sync_and_not_before() {
    let site = crm::running(&["ANNA"]);
    let anna = site.path("anna.db");
    crm::sql_on(&anna, "BEGIN; UPDATE opportunity SET name = 'offline'; INSERT INTO contact VALUES (901, 3, 'offline'); COMMIT");
    let changed = "SELECT count(*) FROM opportunity WHERE name = 'offline' UNION ALL SELECT -count(*) FROM contact WHERE name = 'offline'";
    let wanted = on(&site, "ANNA", changed);
    assert_ne!(wanted, ["0", "0"]);
    let none = ["0", "0"];
    assert_eq!(literals(&site.path("hq.db"), changed), none);
    // Cutting and applying are no exchange.
    site.remote_sync_ok(&["sync", "--only", "apply", "anna.db"]);
    site.remote_sync_ok(&["sync", "--only", "receive", "anna.db"]);
    crm::routed(&site);
    assert_eq!(literals(&site.path("hq.db"), changed), none);
    site.remote_sync_ok(&["sync", "--wait", "20", "anna.db"]);
    assert_eq!(literals(&site.path("hq.db"), changed), wanted);
}

#[test]
fn bpm17_bpm19_rows_that_the_servers_logic_makes_of_an_upload_come_with_the_next_sync() {
    let site = crm::running(&["ANNA", "BERT", "CORA"]);
    crm::server_sql(&site, LOGIC);
    let named = on(&site, "ANNA", "SELECT min(id) FROM opportunity").remove(0);
    crm::sql_on(&site.path("anna.db"), &format!("UPDATE opportunity SET name = 'renamed' WHERE id = {named}"));
    assert_eq!(on(&site, "ANNA", MADE), Vec::<String>::new(), "the logic is the server's");
    // Executed while nobody waits (MI-13), and brought by the sync after that.
    site.remote_sync_ok(&["sync", "--only", "send", "anna.db"]);
    let made = [format!("{named} | 4711")];
    until("executed", || literals(&site.path("hq.db"), MADE) == made);
    crm::routed(&site);
    assert_eq!(on(&site, "ANNA", MADE), Vec::<String>::new());
    crm::in_step(&site, &["ANNA", "BERT", "CORA"]);
    assert_eq!(on(&site, "ANNA", MADE), made);
    assert_eq!(on(&site, "BERT", MADE), made, "her manager sees it too");
    assert_eq!(on(&site, "CORA", MADE), Vec::<String>::new(), "another branch does not");
}

#[test]
fn bpm18_who_watches_sees_them_with_no_sync_of_his_own() {
    let site = crm::running(&["ANNA", "BERT"]);
    crm::server_sql(&site, LOGIC);
    let named = on(&site, "ANNA", "SELECT min(id) FROM opportunity").remove(0);
    let watching = ["anna.db", "bert.db"].map(|local| Ended(Some(site.remote_sync_started(&["watch", local]))));
    crm::sql_on(&site.path("anna.db"), &format!("UPDATE opportunity SET name = 'renamed' WHERE id = {named}"));
    let made = [format!("{named} | 4711")];
    let came = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for node in ["ANNA", "BERT"] {
            until(node, || on(&site, node, MADE) == made);
        }
    }));
    if came.is_err() {
        let said = watching.map(|mut watching| {
            let mut child = watching.0.take().unwrap();
            let ended = child.try_wait().unwrap();
            let _over = child.kill();
            format!("{ended:?}: {}", String::from_utf8_lossy(&child.wait_with_output().unwrap().stderr))
        });
        panic!("it did not come; what the clients say: {said:#?}");
    }
    drop(watching);
}

#[test]
fn mi58_a_large_unit_is_shown_as_partial_while_it_is_executed() {
    let site = crm::running(&["ANNA"]);
    // Logic that takes its time for each row.
    crm::server_sql(
        &site,
        "CREATE TABLE slow(n);
         CREATE TRIGGER slow_logic AFTER INSERT ON contact BEGIN
             INSERT INTO slow WITH RECURSIVE up(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < 2000) SELECT max(n) FROM up;
         END",
    );
    let many = "WITH RECURSIVE up(n) AS (SELECT 1000 UNION ALL SELECT n + 1 FROM up WHERE n < 2999) SELECT n, 3, 'many' FROM up";
    crm::sql_on(&site.path("anna.db"), &format!("INSERT INTO contact {many}"));
    site.remote_sync_ok(&["sync", "--only", "send", "anna.db"]);
    let status = || literals(&site.path("hq.db"), "SELECT status FROM dock_unit");
    let mut seen = Vec::new();
    until("finished", || {
        let now = status();
        if seen.last() != Some(&now) {
            seen.push(now.clone());
        }
        now == ["'finished'"]
    });
    assert!(seen.contains(&vec!["'partial'".to_owned()]), "{seen:?}");
    assert_eq!(literals(&site.path("hq.db"), "SELECT count(*) FROM contact WHERE name = 'many'"), ["2000"], "all of it, and at once");
}

#[test]
fn f54_what_a_deleted_node_had_sent_is_kept_with_the_reason() {
    let site = crm::running(&["ANNA", "BERT"]);
    crm::server_sql(&site, "CREATE TRIGGER no BEFORE UPDATE OF name ON opportunity BEGIN SELECT RAISE(ABORT, 'not today'); END");
    let named = on(&site, "ANNA", "SELECT min(id) FROM opportunity").remove(0);
    crm::sql_on(&site.path("anna.db"), &format!("UPDATE opportunity SET name = 'refused' WHERE id = {named}"));
    site.remote_sync_ok(&["sync", "--only", "send", "anna.db"]);
    until("held", || literals(&site.path("hq.db"), "SELECT status FROM dock_unit") == ["'error'"]);
    let sent: Vec<Vec<u8>> = crm::dx_files(&site, "docking/ANNA/inbox").iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert_eq!(sent.len(), 1);
    let said = site.dockmaster_ok(&["node", "delete", "ANNA", "--yes"]);
    assert!(said.contains("1 file that it sent and nobody merged"), "{said}");
    let kept = crm::dx_files(&site, "docking/ANNA/quarantine");
    assert_eq!(kept.iter().map(|file| std::fs::read(file).unwrap()).collect::<Vec<_>>(), sent);
    let reasons: Vec<String> = std::fs::read_dir(site.path("docking/ANNA/quarantine"))
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok())
        .collect();
    assert!(reasons.iter().any(|reason| reason.contains("ANNA was deleted before this was merged")), "{reasons:?}");
    assert!(crm::dx_files(&site, "docking/ANNA/inbox").is_empty());
    // What is left of it cannot come back, and the others go on.
    assert_eq!(site.remote_sync(&["sync", "anna.db"]).status.code(), Some(2));
    crm::server_sql(&site, "DROP TRIGGER no; UPDATE opportunity SET name = 'afterwards' WHERE id % 3 = 1");
    crm::in_step(&site, &["BERT"]);
    assert_eq!(literals(&site.path("hq.db"), "SELECT count(*) FROM opportunity WHERE name = 'refused'"), ["0"]);
}

const TABLES: &str = "
CREATE TABLE both(id INTEGER PRIMARY KEY, who TEXT);
CREATE TABLE down(id INTEGER PRIMARY KEY, who TEXT);
CREATE TABLE up(id INTEGER PRIMARY KEY, who TEXT);
INSERT INTO both VALUES (1, 'server'); INSERT INTO down VALUES (1, 'server'); INSERT INTO up VALUES (1, 'server');
";

const DIRECTIONS: &str = r#"version = 1
[node]
shop = { type = "integer" }
[object.both]
visible = 'everyone'
[object.down]
direction = "download"
visible = 'everyone'
[object.up]
direction = "upload"
visible = 'everyone'
"#;

#[test]
fn mi43_each_direction_works_in_each_mode() {
    let mut site = Site::new(|path| Connection::open(path).unwrap().execute_batch(TABLES).unwrap(), DIRECTIONS);
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNA", "--set", "shop=1"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    let modes: [&[&str]; 3] = [&["sync"], &["sync", "--wait", "20"], &["watch"]];
    for (mode, arguments) in (10..).zip(modes) {
        for table in ["both", "down", "up"] {
            crm::sql_on(&site.path("anna.db"), &format!("INSERT INTO {table} VALUES ({mode}0, 'node')"));
            crm::server_sql(&site, &format!("INSERT INTO {table} VALUES ({mode}1, 'server')"));
        }
        let mut watching = Ended(None);
        match arguments {
            ["watch"] => watching.0 = Some(site.remote_sync_started(&["watch", "anna.db"])),
            arguments => drop(site.remote_sync_ok(&[arguments, &["anna.db"]].concat())),
        }
        let new = |table: &str| format!("SELECT id FROM {table} WHERE id BETWEEN {mode}0 AND {mode}9");
        let (node, server) = (format!("{mode}0"), format!("{mode}1"));
        // Asynchronous: what is executed after the sync has ended comes with the next one.
        until(&format!("{arguments:?}"), || {
            if *arguments == ["sync"] {
                site.remote_sync_ok(&["sync", "anna.db"]);
            }
            literals(&site.path("hq.db"), &new("both")) == [node.clone(), server.clone()]
                && on(&site, "ANNA", &new("both")) == [node.clone(), server.clone()]
                && on(&site, "ANNA", &new("down")) == [server.clone()]
                && literals(&site.path("hq.db"), &new("up")) == [node.clone(), server.clone()]
        });
        assert_eq!(literals(&site.path("hq.db"), &new("down")), [server.as_str()], "{arguments:?}");
        assert_eq!(on(&site, "ANNA", &new("up")), [node.as_str()], "{arguments:?}");
    }
}

/// A client that is ended with the test.
struct Ended(Option<std::process::Child>);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "{what}: it did not come");
        std::thread::sleep(Duration::from_millis(3));
    }
}
