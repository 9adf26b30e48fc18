//! `verify` on running programs: a mark in the stream, digests on both sides, and the rows that differ, by name.

use super::harness::Site;
use fastrand::Rng;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const ROWS: i64 = 3_000;

const DEFINITION: &str = r#"version = 1
[object.item]
members = ["part"]
visible = "everyone"
"#;

fn database(path: &Path) {
    let sql = format!(
        "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, price REAL, data BLOB);
         CREATE TABLE part(item_id INTEGER NOT NULL REFERENCES item(id), code TEXT NOT NULL, n, PRIMARY KEY(item_id, code));
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO item SELECT i, 'item ' || i, i / 4.0, iif(i % 5, NULL, randomblob(20)) FROM n;
         INSERT INTO part SELECT id, 'p' || (id % 7), iif(id % 3, id, 'x' || id) FROM item;"
    );
    rusqlite::Connection::open(path).unwrap().execute_batch(&sql).unwrap();
}

fn running(definition: &str) -> Site {
    let mut site = Site::new(database, definition);
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNA"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    site
}

fn json(output: &std::process::Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Writes to the server without a pause, but not to the rows of `spared`, until told to stop. Returns how often.
fn load(path: &Path, spared: &BTreeSet<i64>, stop: &AtomicBool, writes: &AtomicU64) {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.busy_timeout(Duration::from_secs(30)).unwrap();
    let mut rng = Rng::with_seed(9);
    while !stop.load(Ordering::Relaxed) {
        let id = rng.i64(1..=ROWS);
        if spared.contains(&id) {
            continue;
        }
        let sql = match rng.u32(0..4) {
            0 => format!("UPDATE part SET n = n || '.' WHERE item_id = {id}"),
            1 => format!("INSERT OR REPLACE INTO part VALUES({id}, 'new', {id})"),
            2 => format!("DELETE FROM part WHERE item_id = {id} AND code = 'new'"),
            _ => format!("UPDATE item SET price = price + 1, name = 'changed {id}' WHERE id = {id}"),
        };
        conn.execute_batch(&sql).unwrap();
        writes.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn r42_h6_verify_finds_each_of_50_seeded_differences_under_load_and_raises_no_false_alarm() {
    let site = running(DEFINITION);
    let mut watch = site.remote_sync_started(&["watch", "anna.db"]);
    let seed = crate::harness::seed();
    eprintln!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let mut spared = BTreeSet::new();
    while spared.len() < 50 {
        spared.insert(rng.i64(1..=ROWS));
    }
    let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|threads| {
        threads.spawn(|| load(&site.path("hq.db"), &spared, &stop, &writes));
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..3 {
                let equal = site.dockmaster(&["verify", "ANNA", "--wait", "60", "--json"]);
                assert_eq!(equal.status.code(), Some(0), "a false alarm: {}", String::from_utf8_lossy(&equal.stdout));
            }
            // Behind our back: 20 rows changed, 15 deleted, 15 inserted.
            let (mut sql, mut expected) = (String::new(), BTreeSet::new());
            for (at, id) in spared.iter().enumerate() {
                let (change, table, key, what) = match at {
                    0..10 => (format!("UPDATE item SET price = price + 0.5 WHERE id = {id}"), "item", id.to_string(), "different"),
                    10..20 => {
                        // Equal to SQL's `=`, and not the same: a number of another type.
                        (
                            format!("UPDATE part SET n = iif(typeof(n) = 'integer', n + 0.0, n || ' ') WHERE item_id = {id}"),
                            "part",
                            format!("({id}, 'p{}')", id % 7),
                            "different",
                        )
                    }
                    20..28 => (format!("DELETE FROM item WHERE id = {id}"), "item", id.to_string(), "missing"),
                    28..35 => (format!("DELETE FROM part WHERE item_id = {id}"), "part", format!("({id}, 'p{}')", id % 7), "missing"),
                    35..43 => {
                        (format!("INSERT INTO item(id, name) VALUES({}, 'forged')", ROWS + id), "item", (ROWS + id).to_string(), "extra")
                    }
                    _ => (format!("INSERT INTO part VALUES({id}, 'forged', 1)"), "part", format!("({id}, 'forged')"), "extra"),
                };
                sql.push_str(&format!("{change};\n"));
                expected.insert((table.to_owned(), key, what.to_owned()));
            }
            crate::harness::behind_our_back(&site, "anna.db", &format!("PRAGMA foreign_keys = OFF; BEGIN IMMEDIATE; {sql} COMMIT;"));
            let before = writes.load(Ordering::Relaxed);
            let output = site.dockmaster(&["verify", "ANNA", "--wait", "60", "--json"]);
            let answer = json(&output);
            assert_eq!(output.status.code(), Some(1), "{answer}");
            let found: BTreeSet<(String, String, String)> = answer["nodes"][0]["tables"]
                .as_array()
                .unwrap()
                .iter()
                .flat_map(|table| {
                    let rows = table["rows"].as_array().unwrap();
                    rows.iter().map(|row| {
                        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
                        (text(&table["table"]), text(&row["key"]), text(&row["what"]))
                    })
                })
                .collect();
            assert_eq!(found, expected, "every difference, and nothing else");
            assert!(writes.load(Ordering::Relaxed) > before, "there was load while it was compared");
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = checked {
            std::panic::resume_unwind(panic);
        }
    });
    eprintln!("{} writes meanwhile", writes.load(Ordering::Relaxed));
    watch.kill().unwrap();
    watch.wait().unwrap();
    let last = site.dockmaster(&["verify", "ANNA", "--last"]);
    let text = String::from_utf8_lossy(&last.stdout).into_owned();
    assert!(last.status.code() == Some(1) && text.contains("missing") && text.contains("forged"), "{text}");
}

#[test]
fn r42_a_node_that_is_away_answers_with_its_next_sync() {
    let site = running(DEFINITION);
    site.remote_sync_ok(&["sync", "anna.db"]);
    let asked = site.dockmaster(&["verify", "ANNA", "--wait", "0"]);
    assert_eq!(asked.status.code(), Some(3), "{}", String::from_utf8_lossy(&asked.stdout));
    assert_eq!(site.dockmaster(&["verify", "--all", "--last"]).status.code(), Some(3));
    site.remote_sync_ok(&["sync", "anna.db"]);
    let text = site.dockmaster_ok(&["verify", "--all", "--last"]);
    assert!(text.contains("equal, 2 tables"), "{text}");
    // Told once: the next session has nothing to tell.
    let told: i64 = rusqlite::Connection::open(site.path("anna.db"))
        .unwrap()
        .query_row("SELECT min(told) FROM dock_verify", [], |row| row.get(0))
        .unwrap();
    assert_eq!(told, 1);
    site.dockmaster_ok(&["node", "disable", "ANNA"]);
    let refused = site.dockmaster(&["verify", "ANNA"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("only an active node can be compared"));
}

#[test]
fn r42_repair_sends_a_node_that_differs_everything_again_without_an_extract() {
    let site = running(DEFINITION);
    site.remote_sync_ok(&["sync", "anna.db"]);
    crate::harness::behind_our_back(
        &site,
        "anna.db",
        "DELETE FROM part WHERE item_id = 7; UPDATE item SET name = 'forged' WHERE id = 8; INSERT INTO item(id) VALUES(9000);",
    );
    assert_eq!(site.dockmaster(&["verify", "ANNA", "--wait", "0"]).status.code(), Some(3));
    site.remote_sync_ok(&["sync", "anna.db"]);
    let repaired = site.dockmaster(&["verify", "ANNA", "--last", "--repair"]);
    let text = String::from_utf8_lossy(&repaired.stdout).into_owned();
    assert!(repaired.status.code() == Some(1) && text.contains("all rows are sent again with its next sync"), "{text}");
    site.remote_sync_ok(&["sync", "anna.db"]);
    let wrong = "SELECT (SELECT count(*) FROM item), (SELECT count(*) FROM part), (SELECT name FROM item WHERE id = 8)";
    assert_eq!(super::harness::literals(&site.path("anna.db"), wrong), [format!("{ROWS} | {ROWS} | 'item 8'")]);
    assert_eq!(site.dockmaster(&["verify", "ANNA", "--wait", "0"]).status.code(), Some(3));
    site.remote_sync_ok(&["sync", "anna.db"]);
    let text = site.dockmaster_ok(&["verify", "ANNA", "--last"]);
    assert!(text.contains("equal, 2 tables"), "{text}");
}
