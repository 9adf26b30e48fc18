//! A table that may have no triggers is compared on a schedule, and nodes get what changed (R6).

use crate::crm::{routed, server_sql};
use crate::harness::{Site, literals};
use std::time::{Duration, Instant};

const DEFINITION: &str = "version = 1\n[node]\nrep = { type = \"integer\" }\n[object.visit]\nvisible.own = 'visit.rep = node.rep'\n\
                          [object.note]\nvisible = 'everyone'\n[table.visit]\ncapture = \"compare\"\n";
const SCHEMA: &str =
    "CREATE TABLE visit(id INTEGER PRIMARY KEY, rep INTEGER, text TEXT); CREATE TABLE note(id INTEGER PRIMARY KEY, text TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) INSERT INTO visit SELECT i, i % 3, 'visit ' || i FROM n;";

fn site(every: &str) -> Site {
    let site = Site::new(|path| rusqlite::Connection::open(path).unwrap().execute_batch(SCHEMA).unwrap(), DEFINITION);
    let text = std::fs::read_to_string(site.path("dockmaster.toml")).unwrap();
    std::fs::write(site.path("dockmaster.toml"), format!("{text}compare_every = \"{every}\"\n")).unwrap();
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "A", "--set", "rep=1"]);
    site
}

fn differs(site: &Site) -> bool {
    let rows = "SELECT * FROM visit";
    literals(&site.path("a.db"), rows) != literals(&site.path("hq.db"), &format!("{rows} WHERE rep = 1"))
}

const CHANGES: &str = "UPDATE visit SET rep = (rep + 1) % 3 WHERE id % 5 = 0; DELETE FROM visit WHERE id % 7 = 0;
    INSERT OR REPLACE INTO visit SELECT id + 1000, 1, 'new' FROM visit WHERE id % 11 = 0; UPDATE visit SET text = text || '!' WHERE id % 2;";

#[test]
fn r6_a_table_without_triggers_is_compared_on_a_schedule() {
    let mut site = site("1s");
    let triggers = "SELECT DISTINCT tbl_name FROM sqlite_schema WHERE type = 'trigger'";
    assert_eq!(literals(&site.path("hq.db"), triggers), ["'note'"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("A"), "a.db"]);
    assert!(!differs(&site));
    for _ in 0..2 {
        server_sql(&site, CHANGES);
        assert!(differs(&site));
        let until = Instant::now() + Duration::from_secs(60);
        while differs(&site) {
            assert!(Instant::now() < until, "the schedule is not kept");
            site.remote_sync_ok(&["sync", "a.db"]);
        }
    }
    // It does not fit: it stops by name, others go on; put right, it goes on by itself.
    server_sql(&site, "ALTER TABLE visit RENAME COLUMN text TO words; INSERT INTO note VALUES(1, 'n')");
    let needs = |site: &Site| String::from_utf8_lossy(&site.dockmaster(&["status"]).stdout).into_owned();
    let until = Instant::now() + Duration::from_secs(60);
    while !needs(&site).contains("table visit is stopped: its column `text` is gone") {
        assert!(Instant::now() < until, "{}", needs(&site));
        std::thread::sleep(Duration::from_millis(50));
    }
    site.remote_sync_ok(&["sync", "a.db"]);
    assert_eq!(literals(&site.path("a.db"), "SELECT text FROM note"), ["'n'"]);
    server_sql(&site, &format!("ALTER TABLE visit RENAME COLUMN words TO text; {CHANGES}"));
    let until = Instant::now() + Duration::from_secs(60);
    while differs(&site) {
        assert!(Instant::now() < until, "{}", needs(&site));
        site.remote_sync_ok(&["sync", "a.db"]);
    }
    site.stop();
}

#[test]
fn r6_each_pass_of_run_compares_and_so_does_reconcile() {
    let mut site = site("24h");
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("A"), "a.db"]);
    site.stop();
    server_sql(&site, CHANGES);
    site.dockmaster_ok(&["run"]);
    crate::crm::serve_again(&mut site);
    site.remote_sync_ok(&["sync", "a.db"]);
    assert!(!differs(&site));
    // The service compared when it began; from here on its schedule is a day away.
    routed(&site);
    server_sql(&site, CHANGES);
    let told = site.dockmaster_ok(&["reconcile", "visit"]);
    assert!(told.contains("rows were put right"), "{told}");
    routed(&site);
    site.remote_sync_ok(&["sync", "a.db"]);
    assert!(!differs(&site));
    site.stop();
}

#[test]
fn r6_what_capture_and_compare_every_may_say_is_checked() {
    for (wrong, right, message) in [
        ("\"compare\"", "\"sometimes\"", "capture: `sometimes` is neither \"triggers\" nor \"compare\""),
        ("\"10m\"", "\"10\"", "compare_every: `10` is no time from 1s to 24h"),
        ("\"10m\"", "\"25h\"", "compare_every: `25h` is no time from 1s to 24h"),
    ] {
        let site = Site::new(|path| rusqlite::Connection::open(path).unwrap().execute_batch(SCHEMA).unwrap(), DEFINITION);
        let text = std::fs::read_to_string(site.path("dockmaster.toml")).unwrap() + "compare_every = \"10m\"\n";
        std::fs::write(site.path("dockmaster.toml"), text.replace(wrong, right)).unwrap();
        let said = site.dockmaster(&["check"]);
        assert_eq!(said.status.code(), Some(2));
        let text = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
        assert!(text.contains(message), "{text}");
    }
}
