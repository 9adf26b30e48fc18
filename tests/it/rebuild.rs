//! Lost state files: `cds.db` at any moment, `ledger.db`, the whole docking root. Every node ends where the oracle says, none is extracted
//! anew; and for `cds.db` alone no stream begins anew.

use crate::crm::{self, in_step, routed, server_sql};
use crate::harness::{Program, Site, literals};
use dockmaster::base::ids::TxnId;
use dockmaster::docking::root::{Access, DockingRoot};
use dockmaster::rules::retention::Retention;
use dockmaster::server::purge::Purge;
use dockmaster::server::router::{Router, RouterOptions};
use dockmaster::store::sqlite::ServerDatabase;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

const ALL: [&str; 3] = ["ANNA", "BERT", "CORA"];

fn lose(site: &Site, name: &str) {
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(site.path(&format!("docking/{name}{suffix}")));
    }
}

/// Rows and keys change, appear, vanish; nodes gain and lose what they see.
fn writes(random: &mut fastrand::Rng) -> String {
    let mut sql = String::from("BEGIN;");
    for _ in 0..random.usize(1..12) {
        let (id, position, account) = (random.u32(1..90), random.u32(4..7), random.u32(1..31));
        sql.push_str(&match random.u32(0..9) {
            0 => format!("INSERT OR REPLACE INTO opportunity VALUES({id}, {account}, {position}, 'put {id}', {account});"),
            1 => format!("UPDATE opportunity SET position_id = {position} WHERE id = {id};"),
            2 => format!("DELETE FROM opportunity_line WHERE opportunity_id = {id}; DELETE FROM opportunity WHERE id = {id};"),
            3 => format!("UPDATE OR REPLACE opportunity SET id = {} WHERE id = {id};", random.u32(1..90)),
            4 => format!("DELETE FROM account_team WHERE account_id = {account}; INSERT INTO account_team VALUES({account}, {position});"),
            5 => format!("INSERT OR IGNORE INTO account_team VALUES({account}, {position});"),
            6 => format!("UPDATE employee SET position_id = 4 + (position_id + 1) % 3 WHERE id = {};", random.u32(4..7)),
            7 => format!("INSERT OR REPLACE INTO opportunity_line VALUES({}, {id}, 1, 1);", random.u32(1..200)),
            _ => format!("UPDATE contact SET account_id = {account}, name = 'now {id}' WHERE id = {id};"),
        });
    }
    sql + "COMMIT;"
}

fn incarnations(site: &Site) -> Vec<String> {
    literals(&site.path("hq.db"), "SELECT name, incarnation FROM dock_node")
}

#[test]
fn r26_a_lost_data_store_is_rebuilt_and_rows_that_left_meanwhile_are_taken_from_the_nodes() {
    let seed = crate::harness::seed();
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut site = crm::running(&ALL);
    for round in 0..12 {
        for _ in 0..random.usize(0..6) {
            server_sql(&site, &writes(&mut random));
        }
        if random.bool() {
            routed(&site);
        }
        match random.u32(0..3) {
            0 => site.stop(),
            _ => {
                site.signal("-KILL");
            }
        }
        match random.u32(0..4) {
            // The write-ahead log alone: the data store is as of its last checkpoint.
            0 if site.path("docking/cds.db-wal").exists() => std::fs::remove_file(site.path("docking/cds.db-wal")).unwrap(),
            1 => std::fs::write(site.path("docking/cds.db"), b"no database at all, but long enough to be one".repeat(200)).unwrap(),
            _ => lose(&site, "cds.db"),
        }
        // What leaves a node's view while nobody looks.
        for _ in 0..random.usize(0..4) {
            server_sql(&site, &writes(&mut random));
        }
        if round % 3 == 0 {
            site.dockmaster_ok(&["node", "set", "CORA", "--set", &format!("employee={}", 4 + round % 2 * 2)]);
        }
        if random.bool() {
            let point = ["rebuild.filled", "rebuild.done", "txnproc.file", "capture.tail"][random.usize(0..4)];
            let mut command = site.command(Program::Dockmaster, &["run"]);
            let ended = command.env("DOCKMASTER_CRASH", point).output().unwrap();
            assert!(ended.status.signal() == Some(9) || ended.status.success(), "{point}: {}", String::from_utf8_lossy(&ended.stderr));
            server_sql(&site, &writes(&mut random));
        }
        // The last file of all, now of employee 6 again.
        site.dockmaster_ok(&["node", "set", "CORA", "--set", "employee=6"]);
        crm::serve_again(&mut site);
        in_step(&site, &ALL);
        assert_eq!(incarnations(&site), ["'ANNA' | 1", "'BERT' | 1", "'CORA' | 1"], "round {round}: no stream begins anew");
    }
    site.stop();
    assert_eq!(site.dockmaster(&["status"]).status.code(), Some(0));
}

#[test]
fn r26_the_files_are_the_same_as_if_nothing_had_been_lost() {
    let mut site = crm::running(&ALL);
    let mut random = fastrand::Rng::with_seed(26);
    server_sql(&site, &writes(&mut random));
    routed(&site);
    site.stop();
    let later: Vec<String> = (0..20).map(|_| writes(&mut random)).collect();
    server_sql(&site, &later.concat());
    let (whole, lossy) = (site.copied(), site.copied());
    lose(&lossy, "cds.db");
    let mut hashes = Vec::new();
    for site in [&whole, &lossy] {
        site.dockmaster_ok(&["run"]);
        hashes.push((
            literals(&site.path("docking/cds.db"), "SELECT file_no, first, last FROM txnproc_file"),
            literals(&site.path("docking/ledger.db"), "SELECT node, file_no, hex(content_hash) FROM outbox_file"),
        ));
    }
    assert_eq!(hashes[0], hashes[1]);
    // The content of a unit says when it was read; the nodes' files do not.
    assert!(hashes[0].1.len() >= 3);
}

#[test]
fn r26_a_planted_rebuild_as_of_now_loses_the_rows_that_left() {
    // The same as the rebuild, but as of the end of the log instead of the last file's position: what the oracle must see.
    let mut site = crm::running(&ALL);
    routed(&site);
    site.stop();
    server_sql(&site, "UPDATE opportunity SET position_id = 6 WHERE position_id = 4");
    let end = ServerDatabase::open(site.path("hq.db")).unwrap().log_end().unwrap();
    lose(&site, "cds.db");
    // A rebuild that believed its files to go up to the end of the log.
    let filled = format!("{{\"position\":{},\"revision\":1,\"day\":20000}}", end.0);
    server_sql(&site, &format!("UPDATE dock_meta SET value = '{filled}' WHERE name = 'filled'; UPDATE dock_tail SET position = {}", end.0));
    crm::serve_again(&mut site);
    server_sql(&site, "UPDATE product SET name = 'x'");
    routed(&site);
    site.remote_sync_ok(&["sync", "anna.db"]);
    assert!(crm::differences(&site, "anna.db", 4).contains("must not hold"), "the mutant is caught");
    site.stop();
}

/// Copies a database while nobody writes.
fn copy(from: &Path, to: &Path) {
    literals(from, "PRAGMA wal_checkpoint(TRUNCATE)");
    std::fs::copy(from, to).unwrap();
}

#[test]
fn r26_r2_rolling_rows_back_gives_what_they_were_for_random_statements() {
    let seed = crate::harness::seed();
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let schema = "CREATE TABLE a(k PRIMARY KEY NOT NULL, u UNIQUE, v);
        CREATE TABLE b(x INTEGER NOT NULL, y TEXT COLLATE NOCASE NOT NULL, v, p INTEGER, PRIMARY KEY(x, y), UNIQUE(v, p)) WITHOUT ROWID;
        CREATE TABLE c(id INTEGER PRIMARY KEY, a REFERENCES a ON DELETE CASCADE ON UPDATE CASCADE, parent REFERENCES c ON DELETE SET NULL);
        CREATE TRIGGER stamp AFTER UPDATE OF v ON a WHEN NEW.u IS NOT NULL AND length(NEW.u) < 4 BEGIN UPDATE a SET u = u || '+' WHERE k = NEW.k; END;
        CREATE TRIGGER more AFTER INSERT ON a WHEN NEW.v = 3 BEGIN INSERT OR IGNORE INTO c VALUES(NULL, NEW.k, NULL); UPDATE a SET v = 4 WHERE k = NEW.k; END;";
    // Newer than ours, so they fire first, and what they do is logged before what set them off.
    let newer = "CREATE TRIGGER mark AFTER INSERT ON a BEGIN UPDATE a SET v = v + 10 WHERE k = NEW.k AND v < 5; END;
        CREATE TRIGGER count AFTER UPDATE OF v ON b BEGIN UPDATE b SET p = NULL WHERE x = NEW.x AND y = NEW.y; END;
        CREATE TRIGGER gone AFTER INSERT ON b WHEN NEW.v = 2 BEGIN DELETE FROM b WHERE x = NEW.x AND y = NEW.y; END;
        CREATE TRIGGER again AFTER DELETE ON c WHEN OLD.a = 2 BEGIN INSERT OR REPLACE INTO c VALUES(OLD.id, NULL, NULL); END;";
    for turn in 0..30 {
        let site = Site::new(
            |path| rusqlite::Connection::open(path).unwrap().execute_batch(schema).unwrap(),
            "version = 1\nreference = [\"a\", \"b\", \"c\"]\n",
        );
        site.dockmaster_ok(&["deploy", "--yes"]);
        let conn = rusqlite::Connection::open(site.path("hq.db")).unwrap();
        conn.execute_batch("PRAGMA foreign_keys = ON").unwrap();
        if turn % 2 == 1 {
            conn.execute_batch(newer).unwrap();
        }
        let mut step = |conn: &rusqlite::Connection| {
            // Under OR FAIL a newer trigger that fails ends the statement before it is logged.
            let or = ["", "OR REPLACE", "OR IGNORE", "OR ABORT", "OR FAIL"][random.usize(0..5 - turn % 2)];
            let mut n = || random.u32(0..6);
            let sql = match n() * 6 + n() {
                0..8 => format!("INSERT {or} INTO a VALUES({}, '{}', {})", n(), n(), n()),
                8..12 => format!("UPDATE {or} a SET v = {}, u = '{}' WHERE k = {}", n(), n(), n()),
                12..15 => format!("UPDATE {or} a SET k = {} WHERE k = {}", n(), n()),
                15..18 => format!("DELETE FROM a WHERE k = {}", n()),
                18..23 => format!("INSERT {or} INTO b VALUES({}, '{}', {}, {})", n(), ["a", "A", "b"][n() as usize % 3], n(), n() % 2),
                23..27 => format!("UPDATE {or} b SET y = '{}', v = {} WHERE x = {}", ["a", "A", "b"][n() as usize % 3], n(), n()),
                27..29 => format!("DELETE FROM b WHERE x = {}", n()),
                29..33 => format!("INSERT {or} INTO c VALUES({}, {}, {})", n(), n(), n()),
                33 => format!("UPDATE {or} c SET id = {} WHERE id = {}", n(), n()),
                34 => format!("INSERT INTO a VALUES({}, '{}', {}) ON CONFLICT DO UPDATE SET v = excluded.v", n(), n(), n()),
                _ => format!("DELETE FROM c WHERE id = {}", n()),
            };
            // A refused statement may have kept a part (OR FAIL).
            let _ = conn.execute_batch(&sql);
        };
        for _ in 0..30 {
            step(&conn);
        }
        let position = ServerDatabase::open(site.path("hq.db")).unwrap().log_end().unwrap();
        copy(&site.path("hq.db"), &site.path("then.db"));
        for _ in 0..25 {
            step(&conn);
        }
        // Newer triggers put a table in doubt, which is not rolled back; ours are made last again so that it is.
        for (name, sql) in our_triggers(&conn) {
            conn.execute_batch(&format!("DROP TRIGGER {name}; {sql}")).unwrap();
        }
        assert_rolls_back(&site, position);
    }
}

fn our_triggers(conn: &rusqlite::Connection) -> Vec<(String, String)> {
    let ours = "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND name LIKE 'dock!_%' ESCAPE '!' ORDER BY rowid";
    let mut statement = conn.prepare(ours).unwrap();
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap()
}

fn assert_rolls_back(site: &Site, position: TxnId) {
    let database = ServerDatabase::open(site.path("hq.db")).unwrap();
    let rollback = database.snapshot::<_, dockmaster::store::sqlite::StoreError>(|snapshot| snapshot.rollback_to(position)).unwrap();
    assert!(rollback.doubts.is_empty(), "{:?}", rollback.doubts);
    for (table, key) in [("a", vec![0]), ("b", vec![0, 1]), ("c", vec![0])] {
        let touched = rollback.rows.get(table).cloned().unwrap_or_default();
        let mut rows = Vec::new();
        let columns: Vec<String> =
            database.schema().unwrap().table(table).unwrap().columns.iter().map(|column| column.name.clone()).collect();
        database
            .snapshot::<_, dockmaster::store::sqlite::StoreError>(|snapshot| {
                snapshot.scan(table, &columns, |row| {
                    let of: Vec<_> = key.iter().map(|at| row[*at].clone()).collect();
                    if !touched.contains_key(&of) {
                        rows.push(row);
                    }
                    Ok(())
                })
            })
            .unwrap();
        rows.extend(touched.into_values().flatten().map(|logged| logged.row));
        let mut rows: Vec<String> = rows.iter().map(|row| row.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")).collect();
        rows.sort();
        assert_eq!(rows, literals(&site.path("then.db"), &format!("SELECT * FROM {table}")), "{table}");
    }
}

#[test]
fn r26_a_table_in_doubt_at_the_time_of_the_loss_makes_the_streams_begin_anew_in_band() {
    let mut site = crm::running(&ALL);
    routed(&site);
    site.stop();
    let drop = literals(
        &site.path("hq.db"),
        "SELECT 'DROP TRIGGER ' || name || ';' FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'opportunity'",
    )
    .iter()
    .map(|sql| sql.trim_matches('\'').to_owned())
    .collect::<String>();
    server_sql(&site, &format!("{drop} UPDATE opportunity SET position_id = 6 WHERE position_id = 4"));
    lose(&site, "cds.db");
    crm::serve_again(&mut site);
    in_step(&site, &ALL);
    assert_eq!(incarnations(&site), ["'ANNA' | 2", "'BERT' | 2", "'CORA' | 2"]);
    assert_eq!(literals(&site.path("hq.db"), "SELECT extracted FROM dock_node"), ["1", "1", "1"], "none is extracted anew");
    site.stop();
}

#[test]
fn r26_r6_a_key_that_came_again_under_another_type_while_a_trigger_was_gone_does_not_stop_the_rebuild() {
    let schema = "CREATE TABLE t(k PRIMARY KEY NOT NULL, v); INSERT INTO t VALUES (5, 'x')";
    let site =
        Site::new(|path| rusqlite::Connection::open(path).unwrap().execute_batch(schema).unwrap(), "version = 1\nreference = [\"t\"]\n");
    site.dockmaster_ok(&["deploy", "--yes"]);
    // The log names a row 1 that it never saw coming; of now there is a row 1.0, which SQLite holds equal.
    let inserted = literals(&site.path("hq.db"), "SELECT name FROM sqlite_schema WHERE name LIKE 'dock_i_%'");
    server_sql(
        &site,
        &format!(
            "DROP TRIGGER {}; INSERT INTO t VALUES (1, 'a'); INSERT OR REPLACE INTO t VALUES (1.0, 'b')",
            inserted[0].trim_matches('\'')
        ),
    );
    lose(&site, "cds.db");
    site.dockmaster_ok(&["run"]);
    assert_eq!(literals(&site.path("docking/cds.db"), "SELECT c0, c1 FROM d0"), literals(&site.path("hq.db"), "SELECT k, v FROM t"));
}

/// A site whose one table has a key without affinity, with a node in step and no service.
fn without_affinity(rows: &str) -> Site {
    let schema = format!("CREATE TABLE t(k PRIMARY KEY NOT NULL, v); INSERT INTO t VALUES {rows}");
    let definition = "version = 1\nreference = [\"t\"]\n";
    let mut site = Site::new(|path| rusqlite::Connection::open(path).unwrap().execute_batch(&schema).unwrap(), definition);
    site.dockmaster_ok(&["deploy", "--yes"]);
    let address = site.serve();
    site.dockmaster_ok(&["node", "add", "ANNA"]);
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    site.stop();
    site
}

fn assert_as_the_server(site: &mut Site, case: &str) {
    site.dockmaster_ok(&["run"]);
    crm::serve_again(site);
    site.remote_sync_ok(&["sync", "anna.db"]);
    site.stop();
    let server = literals(&site.path("hq.db"), "SELECT k, v FROM t");
    assert_eq!(literals(&site.path("docking/cds.db"), "SELECT c0, c1 FROM d0"), server, "{case}: data store");
    assert_eq!(literals(&site.path("anna.db"), "SELECT k, v FROM t"), server, "{case}: node");
}

#[test]
fn r26_keys_that_are_equal_to_sqlite_and_of_another_type_are_rolled_back_each_for_itself() {
    // What is taken before the loss, and what the log holds above it.
    let cases = [
        ("", "DELETE FROM t WHERE k = 1; INSERT INTO t VALUES (1.0, 'real')"),
        (
            "DELETE FROM t WHERE k = 1; INSERT INTO t VALUES (1.0, 'real')",
            "DELETE FROM t WHERE k = 1.0; INSERT INTO t VALUES (1, 'integer')",
        ),
        (
            "",
            "BEGIN; DELETE FROM t WHERE k = 1; INSERT INTO t VALUES (1.0, 'a'); DELETE FROM t WHERE k = 1; INSERT INTO t VALUES (1, 'b'); COMMIT",
        ),
        (
            "INSERT OR REPLACE INTO t VALUES (1.0, 'a')",
            "INSERT OR REPLACE INTO t VALUES (1, 'b'); UPDATE t SET k = 1.0; UPDATE t SET v = 'c'",
        ),
        ("UPDATE t SET k = 1.0", "UPDATE OR REPLACE t SET k = 1; INSERT OR IGNORE INTO t VALUES (1.0, 'no'); DELETE FROM t"),
        (
            "DELETE FROM t",
            "INSERT INTO t VALUES (1.0, 'a'); DELETE FROM t WHERE k = 1; INSERT INTO t VALUES (1, 'b'), ('1', 'text'), (x'31', 'blob')",
        ),
    ];
    for (before, after) in cases {
        let mut site = without_affinity("(1, 'first')");
        server_sql(&site, before);
        assert_as_the_server(&mut site, before);
        server_sql(&site, after);
        lose(&site, "cds.db");
        assert_as_the_server(&mut site, after);
        assert_eq!(incarnations(&site), ["'ANNA' | 1"], "{after}: the log tells everything");
    }
}

#[test]
fn r26_rows_of_that_time_that_would_have_equal_keys_put_their_table_in_doubt() {
    let mut site = without_affinity("(1.0, 'first'), (2, 'other')");
    // A TEMP trigger fires before ours: that a row changed its key is logged before the row comes, so it looks as if it had been there.
    // The hint and the deletion tell that another one was, with an equal key.
    let conn = rusqlite::Connection::open(site.path("hq.db")).unwrap();
    conn.execute_batch(
        "CREATE TEMP TRIGGER moves AFTER INSERT ON t WHEN typeof(NEW.k) = 'integer' BEGIN UPDATE t SET k = NEW.k * 1.0 WHERE k = NEW.k; END;
         INSERT OR IGNORE INTO t VALUES (1, 'not taken'); DELETE FROM t WHERE k = 1; INSERT INTO t VALUES (1, 'again')",
    )
    .unwrap();
    drop(conn);
    lose(&site, "cds.db");
    assert_as_the_server(&mut site, "in doubt");
    assert_eq!(incarnations(&site), ["'ANNA' | 2"], "its stream begins anew, in band");
    assert_eq!(literals(&site.path("hq.db"), "SELECT extracted FROM dock_node"), ["1"]);
    server_sql(&site, "UPDATE t SET v = 'later'");
    assert_as_the_server(&mut site, "later");
}

#[test]
fn r26_a_lost_or_damaged_ledger_makes_the_streams_begin_anew_in_band() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut site = crm::running(&ALL);
    for (damage, router_first) in [(false, false), (true, false), (false, true)] {
        server_sql(&site, &writes(&mut random));
        in_step(&site, &ALL);
        server_sql(&site, &writes(&mut random));
        site.signal("-KILL");
        lose(&site, "ledger.db");
        if damage {
            std::fs::write(site.path("docking/ledger.db"), b"damaged".repeat(1000)).unwrap();
        }
        server_sql(&site, &writes(&mut random));
        if router_first {
            // Alone it would give numbers anew that the nodes have had.
            site.dockmaster_ok(&["run", "router"]);
        }
        crm::serve_again(&mut site);
        in_step(&site, &ALL);
    }
    assert_eq!(incarnations(&site), ["'ANNA' | 4", "'BERT' | 4", "'CORA' | 4"]);
    assert_eq!(literals(&site.path("hq.db"), "SELECT extracted FROM dock_node"), ["1", "1", "1"]);
    site.stop();
}

#[test]
fn r26_a_lost_ledger_is_named_and_made_by_nobody_but_the_router() {
    let mut random = fastrand::Rng::with_seed(9);
    let mut site = crm::running(&ALL);
    server_sql(&site, &writes(&mut random));
    in_step(&site, &ALL);
    site.stop();
    lose(&site, "ledger.db");
    let root = std::sync::Arc::new(DockingRoot::open(&site.path("docking"), Access::Exclusive).unwrap());
    let gone = |error: &dyn std::error::Error| {
        let said = format!("{error}: {}", error.source().map(ToString::to_string).unwrap_or_default());
        assert!(said.contains("there is no ledger") && said.contains("docking/ledger.db"), "{said}");
        assert!(!site.path("docking/ledger.db").exists(), "it made an empty one");
    };
    gone(&Purge::new(root.clone(), &site.path("hq.db"), Retention::default()).step(0).unwrap_err());
    gone(&Router::open(root.clone(), RouterOptions::default()).unwrap_err());
    drop(root);
    let status: serde_json::Value = serde_json::from_slice(&site.dockmaster(&["status", "--json"]).stdout).unwrap();
    let need = status["needs"].as_array().unwrap().iter().find(|need| need["what"].as_str().unwrap().contains("ledger.db")).unwrap();
    assert_eq!(need["command"], "dockmaster run");
    assert!(!site.path("docking/ledger.db").exists());
    site.dockmaster_ok(&["run"]);
    let conditions = |site: &Site| -> Vec<String> {
        let status: serde_json::Value = serde_json::from_slice(&site.dockmaster(&["status", "--json"]).stdout).unwrap();
        status["nodes"].as_array().unwrap().iter().map(|node| node["state"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(conditions(&site), ["anew", "anew", "anew"]);
    crm::serve_again(&mut site);
    in_step(&site, &ALL);
    assert_eq!(conditions(&site), ["ok", "ok", "ok"]);
    assert_eq!(incarnations(&site), ["'ANNA' | 2", "'BERT' | 2", "'CORA' | 2"]);
    site.stop();
}

#[test]
fn r26_a_docking_root_wholly_lost_is_filled_by_deploy_and_no_node_is_extracted() {
    let mut random = fastrand::Rng::with_seed(8);
    let mut site = crm::running(&ALL);
    server_sql(&site, &writes(&mut random));
    in_step(&site, &ALL);
    server_sql(&site, &writes(&mut random));
    site.stop();
    std::fs::remove_dir_all(site.path("docking")).unwrap();
    server_sql(&site, &writes(&mut random));
    site.dockmaster_ok(&["deploy", "--yes"]);
    server_sql(&site, &writes(&mut random));
    crm::serve_again(&mut site);
    in_step(&site, &ALL);
    assert_eq!(literals(&site.path("hq.db"), "SELECT extracted FROM dock_node"), ["1", "1", "1"], "none is extracted anew");
    site.stop();
}
