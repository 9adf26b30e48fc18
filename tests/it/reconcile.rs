//! Capture that was interrupted heals: whatever happened to triggers and tables, every node ends where the oracle says, and none is
//! extracted anew.

use crate::crm::{self, in_step, server_sql};
use crate::harness::{Site, literals};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

const ALL: [&str; 3] = ["ANNA", "BERT", "CORA"];

/// What Alembic and Django do on SQLite: the table is made anew beside the old one, filled, and takes its place. Triggers go with the old one.
const REBUILD: &str = "CREATE TABLE contact_new(id INTEGER PRIMARY KEY, account_id INTEGER REFERENCES account(id), name TEXT NOT NULL);
    INSERT INTO contact_new SELECT * FROM contact; DROP TABLE contact; ALTER TABLE contact_new RENAME TO contact;";

/// A hundred writes to contacts, among them rows that come, go and change who sees them.
fn writes(from: i64) -> String {
    (from..from + 100)
        .map(|turn| match turn % 4 {
            0 => format!("INSERT OR REPLACE INTO contact(id, account_id, name) VALUES({}, {}, 'new {turn}');", 1000 + turn, 1 + turn % 30),
            1 => format!("UPDATE contact SET account_id = {} WHERE id = {};", 1 + turn % 29, 1 + turn % 60),
            2 => format!("UPDATE contact SET name = 'turn {turn}' WHERE id = {};", 1 + turn % 60),
            _ => format!("DELETE FROM contact WHERE id = {};", 1 + (turn * 7) % 60),
        })
        .collect()
}

fn incarnations(site: &Site) -> Vec<String> {
    literals(&site.path("hq.db"), "SELECT name, incarnation FROM dock_node")
}

fn status(site: &Site) -> serde_json::Value {
    serde_json::from_slice(&site.dockmaster(&["status", "--json"]).stdout).unwrap()
}

/// Waits until nothing is stopped any more, then demands that the nodes equal the oracle. What capture missed is not in the log, so
/// the log alone does not tell how much is to come.
fn healed(site: &Site, nodes: &[&str]) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while status(site)["needs"] != serde_json::json!([]) {
        assert!(std::time::Instant::now() < until, "{}", status(site)["needs"]);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    in_step(site, nodes);
}

/// What the data store holds of a table against what the server holds.
fn assert_data_store_equals(site: &Site) {
    let dock: dockmaster::model::dock::Dock = serde_json::from_str(
        literals(&site.path("docking/cds.db"), "SELECT value FROM cds_state WHERE name = 'dock'")[0].trim_matches('\''),
    )
    .unwrap();
    for (number, table) in dock.tables.iter().enumerate() {
        let columns: Vec<String> = table.columns.iter().map(|column| format!("\"{}\"", column.name)).collect();
        let stored: Vec<String> = (0..columns.len()).map(|column| format!("c{column}")).collect();
        let ours = literals(&site.path("docking/cds.db"), &format!("SELECT {} FROM d{number}", stored.join(", ")));
        let theirs = literals(&site.path("hq.db"), &format!("SELECT {} FROM \"{}\"", columns.join(", "), table.name));
        assert_eq!(ours, theirs, "{}", table.name);
    }
}

#[test]
fn r6_a_table_rebuilt_by_a_migration_tool_under_the_service_heals_by_itself() {
    let mut site = crm::running(&ALL);
    for round in 0..3 {
        server_sql(&site, &format!("BEGIN; {REBUILD} COMMIT; {}", writes(round * 1000)));
        server_sql(
            &site,
            &format!(
                "BEGIN; {} {REBUILD} {} COMMIT; {}",
                writes(round * 1000 + 100),
                writes(round * 1000 + 200),
                writes(round * 1000 + 300)
            ),
        );
        healed(&site, &ALL);
    }
    assert_ne!(status(&site)["reconciled"], serde_json::json!([]), "it says what it did");
    assert_eq!(incarnations(&site), ["'ANNA' | 1", "'BERT' | 1", "'CORA' | 1"], "none is extracted anew");
    site.stop();
}

#[test]
fn r6_a_hundred_writes_while_nothing_ran_are_found_afterwards() {
    let mut site = crm::running(&ALL);
    server_sql(&site, &writes(0));
    healed(&site, &ALL);
    site.stop();
    server_sql(&site, &format!("{} {REBUILD} {}", writes(50), writes(100)));
    crm::serve_again(&mut site);
    healed(&site, &ALL);
    assert_data_store_equals(&site);
    assert_eq!(incarnations(&site), ["'ANNA' | 1", "'BERT' | 1", "'CORA' | 1"]);
    site.stop();
}

#[test]
fn r6_triggers_dropped_again_and_again_under_writers_lose_nothing() {
    let mut site = crm::running(&ALL);
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for writer in 0..2 {
            let (site, done) = (&site, &done);
            threads.spawn(move || {
                let mut turn = writer * 100_000;
                while !done.load(Ordering::Acquire) {
                    server_sql(site, &writes(turn));
                    turn += 100;
                }
            });
        }
        for round in 0..12 {
            let triggers = literals(
                &site.path("hq.db"),
                "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name IN ('contact', 'account_team')",
            );
            for trigger in triggers.iter().filter(|_| round % 2 == 0 || fastrand::bool()) {
                server_sql(&site, &format!("DROP TRIGGER IF EXISTS {}", trigger.trim_matches('\'')));
            }
            server_sql(&site, "UPDATE account_team SET position_id = 4 + (position_id + account_id) % 3");
        }
        done.store(true, Ordering::Release);
    });
    healed(&site, &ALL);
    site.stop();
    assert_data_store_equals(&site);
}

#[test]
fn r6_a_newer_trigger_that_ends_statements_is_put_behind_ours_again() {
    let mut site = crm::running(&["ANNA"]);
    server_sql(
        &site,
        "CREATE TRIGGER newer AFTER UPDATE ON contact WHEN NEW.name = 'silent' BEGIN SELECT RAISE(FAIL, 'kept, but ours never fired'); END",
    );
    let silent = |site: &Site| {
        let conn = rusqlite::Connection::open(site.path("hq.db")).unwrap();
        conn.busy_timeout(std::time::Duration::from_secs(20)).unwrap();
        // The change of the row stays, in spite of the error.
        conn.execute_batch("UPDATE contact SET name = 'silent' WHERE id = 5").unwrap_err();
    };
    silent(&site);
    healed(&site, &["ANNA"]);
    server_sql(&site, "UPDATE contact SET name = 'loud' WHERE id = 5");
    silent(&site);
    healed(&site, &["ANNA"]);
    site.stop();
}

#[test]
fn r6_a_table_that_does_not_fit_any_more_stays_stopped_by_name_until_it_fits() {
    let mut site = crm::running(&ALL);
    for (wrong, right) in [
        ("ALTER TABLE contact RENAME COLUMN name TO title;", "ALTER TABLE contact RENAME COLUMN title TO name;"),
        ("ALTER TABLE contact ADD COLUMN phone TEXT;", "ALTER TABLE contact DROP COLUMN phone;"),
        ("ALTER TABLE contact RENAME TO person;", "ALTER TABLE person RENAME TO contact;"),
    ] {
        server_sql(&site, &format!("{wrong} UPDATE opportunity SET amount = amount + 1;"));
        crm::routed(&site);
        let needs = status(&site)["needs"].as_array().unwrap().clone();
        let of_contact = needs.iter().find(|need| need["what"].as_str().unwrap().starts_with("table contact is stopped")).unwrap();
        assert_eq!(of_contact["command"], "dockmaster deploy", "{wrong}");
        // Accounts are seen through contacts: they stand still with them, and opportunities go on.
        server_sql(&site, "UPDATE account SET name = name || '!' WHERE id % 3 = 0; UPDATE opportunity SET name = name || '!';");
        crm::routed(&site);
        site.remote_sync_ok(&["sync", "bert.db"]);
        assert!(!literals(&site.path("bert.db"), "SELECT 1 FROM opportunity WHERE name LIKE '%!'").is_empty());
        server_sql(&site, &format!("{right} {}", writes(7)));
        healed(&site, &ALL);
    }
    site.stop();
    assert_data_store_equals(&site);
}

#[test]
fn r6_an_omitted_column_may_come_and_go() {
    let definition = format!("{}\n[table.contact]\nomit = [\"note\"]\n", crm::DEFINITION);
    let database = |path: &std::path::Path| {
        crm::database(path);
        rusqlite::Connection::open(path).unwrap().execute_batch("ALTER TABLE contact ADD COLUMN note TEXT").unwrap();
    };
    let mut site = Site::new(database, &definition);
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNA", "--set", "employee=4"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    // Other type, other default: no business of the nodes.
    let rebuild = REBUILD.replace("name TEXT NOT NULL)", "name TEXT NOT NULL, note BLOB DEFAULT 'x')");
    server_sql(&site, &format!("{rebuild} UPDATE contact SET name = 'after' WHERE id < 20"));
    healed(&site, &[]);
    site.remote_sync_ok(&["sync", "anna.db"]);
    let seen = "SELECT id, account_id, name FROM contact";
    let wanted =
        literals(&site.path("hq.db"), &format!("{seen} WHERE account_id IN (SELECT account_id FROM account_team WHERE position_id = 4)"));
    assert_eq!(literals(&site.path("anna.db"), seen), wanted);
    assert_eq!(status(&site)["needs"], serde_json::json!([]));
    site.stop();
}

#[test]
fn r6_reconcile_says_what_it_found_and_a_row_in_the_log_is_counted_once() {
    let mut site = crm::running(&ALL);
    healed(&site, &ALL);
    site.stop();
    let capture: Vec<String> =
        literals(&site.path("hq.db"), "SELECT sql FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'contact'");
    let drop: String = literals(
        &site.path("hq.db"),
        "SELECT 'DROP TRIGGER ' || name || ';' FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'contact'",
    )
    .iter()
    .map(|sql| sql.trim_matches('\'').to_owned())
    .collect();
    let again: String = capture.iter().map(|sql| format!("{};", sql[1..sql.len() - 1].replace("''", "'"))).collect();
    // Behind the back of capture, which looks whole again afterwards; and two of the rows are changed once more in its sight.
    server_sql(
        &site,
        &format!(
            "{drop} INSERT INTO contact VALUES(900, 1, 'a'), (901, 2, 'b'); DELETE FROM contact WHERE id = 7; UPDATE contact SET name = 'c' WHERE id IN (8, 9, 10); {again}
             UPDATE contact SET name = 'd' WHERE id IN (10, 901)"
        ),
    );
    site.dockmaster_ok(&["run", "router"]);
    let printed = site.dockmaster_ok(&["reconcile", "CONTACT", "--json"]);
    let found: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let of = &found["compared"][0];
    assert_eq!(
        (&of["table"], &of["missing"], &of["extra"], &of["different"]),
        (&"contact".into(), &2.into(), &1.into(), &3.into()),
        "{found}"
    );
    let printed = site.dockmaster_ok(&["reconcile"]);
    assert!(printed.contains("nothing had to be sent") && printed.contains("opportunity_line"), "{printed}");
    crm::serve_again(&mut site);
    healed(&site, &ALL);
    assert!(site.dockmaster_ok(&["reconcile", "contact"]).contains("nothing had to be sent"), "with the service running");
    let wrong = site.dockmaster(&["reconcile", "contacts"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("it has account, account_team, contact"), "{wrong:?}");
    site.stop();
}

#[test]
fn r6_r35_keys_of_every_type_and_collation_are_compared_in_one_pass() {
    let seed = crate::harness::seed();
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let schema = "CREATE TABLE a(k PRIMARY KEY NOT NULL, v); CREATE TABLE b(k TEXT COLLATE NOCASE PRIMARY KEY NOT NULL, v) WITHOUT ROWID;
        CREATE TABLE c(x REAL NOT NULL, y BLOB NOT NULL, v, PRIMARY KEY(y, x)); CREATE TABLE d(k INTEGER PRIMARY KEY, v);
        CREATE TABLE e(k TEXT COLLATE RTRIM NOT NULL, n NUMERIC NOT NULL, v, PRIMARY KEY(k, n));";
    let definition = "version = 1\nreference = [\"a\", \"b\", \"c\", \"d\", \"e\"]\n";
    let site = Site::new(|path| rusqlite::Connection::open(path).unwrap().execute_batch(schema).unwrap(), definition);
    site.dockmaster_ok(&["deploy", "--yes"]);
    let mut found = 0;
    for _ in 0..12 {
        let mut value = || match random.u32(0..8) {
            0 => format!("{}", random.i64(-3..3)),
            1 => format!("{:?}", random.i64(-3..3) as f64 / 2.0),
            2 => format!("'{}'", ["a", "A", "a ", "b", "", "1", "10", "z"][random.usize(0..8)]),
            3 => format!("x'{}'", ["", "00", "61", "ff"][random.usize(0..4)]),
            4 => ["9007199254740993", "9007199254740992.0", "9223372036854775807", "9.3e18", "-9223372036854775808"][random.usize(0..5)]
                .to_owned(),
            _ => format!("'{}'", random.alphabetic()),
        };
        let mut sql = String::new();
        for _ in 0..40 {
            let number = value();
            sql.push_str(&format!(
                "INSERT OR REPLACE INTO a VALUES({}, {}); INSERT OR REPLACE INTO b VALUES({}, {}); INSERT OR REPLACE INTO c VALUES({}, {}, {});
                 INSERT OR REPLACE INTO e VALUES({}, {}, {}); INSERT OR REPLACE INTO d SELECT {number}, 1 WHERE typeof({number}) = 'integer';",
                value(), value(), value(), value(), value(), value(), value(), value(), value(), value()
            ));
        }
        sql.push_str("DELETE FROM a WHERE abs(random()) % 4 = 0; DELETE FROM b WHERE abs(random()) % 4 = 0; DELETE FROM c WHERE abs(random()) % 4 = 0; DELETE FROM e WHERE abs(random()) % 4 = 0; DELETE FROM d WHERE abs(random()) % 4 = 0;");
        let drop: String = literals(&site.path("hq.db"), "SELECT 'DROP TRIGGER ' || name || ';' FROM sqlite_schema WHERE type = 'trigger'")
            .iter()
            .map(|sql| sql.trim_matches('\'').to_owned())
            .collect();
        server_sql(&site, &format!("{drop} {sql}"));
        site.dockmaster_ok(&["run"]);
        assert_data_store_equals(&site);
        found += literals(&site.path("docking/cds.db"), "SELECT * FROM reconciled").len();
    }
    assert!(found >= 12 * 5, "{found}");
}

#[test]
fn r38_a_null_key_stops_the_table_and_reconcile_takes_it_back() {
    let schema = "CREATE TABLE k(id TEXT PRIMARY KEY, v); CREATE TABLE o(id INTEGER PRIMARY KEY, v); INSERT INTO k VALUES('a', 1);";
    let definition = "version = 1\nreference = [\"k\", \"o\"]\n";
    let site = Site::new(|path| rusqlite::Connection::open(path).unwrap().execute_batch(schema).unwrap(), definition);
    site.dockmaster_ok(&["deploy", "--yes"]);
    server_sql(&site, "INSERT INTO k VALUES(NULL, 2); INSERT INTO k VALUES('b', 3); INSERT INTO o VALUES(1, 1)");
    site.dockmaster_ok(&["run"]);
    let asked = site.dockmaster(&["reconcile"]);
    assert_eq!(asked.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&asked.stdout).contains("! k was not compared, it is stopped"), "{asked:?}");
    server_sql(&site, "DELETE FROM k WHERE id IS NULL");
    let printed = site.dockmaster_ok(&["reconcile", "k"]);
    assert!(printed.contains("1 row was put right"), "{printed}");
    assert_data_store_equals(&site);
}

#[test]
fn r6_stops_of_two_tables_lift_one_after_the_other() {
    let mut site = crm::running(&ALL);
    let shape: BTreeMap<&str, (&str, &str)> = BTreeMap::from([
        ("contact", ("ALTER TABLE contact ADD COLUMN x", "ALTER TABLE contact DROP COLUMN x")),
        ("account_team", ("ALTER TABLE account_team ADD COLUMN x", "ALTER TABLE account_team DROP COLUMN x")),
    ]);
    for order in [["contact", "account_team"], ["account_team", "contact"]] {
        for table in order {
            server_sql(
                &site,
                &format!(
                    "{}; UPDATE opportunity SET amount = amount + 1; UPDATE account SET name = 'of {table}' WHERE id = 3",
                    shape[table].0
                ),
            );
            crm::routed(&site);
        }
        for table in order {
            server_sql(&site, &format!("{}; UPDATE account SET name = name || '.'; {}", shape[table].1, writes(3)));
            crm::routed(&site);
        }
        healed(&site, &ALL);
    }
    site.stop();
    assert_data_store_equals(&site);
}
