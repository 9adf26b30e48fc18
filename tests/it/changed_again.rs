//! A table that changes once more between `deploy` and the unit that takes the definition over stops alone, by name; the definition
//! comes into force for all others, and the next deploy takes the table along.

use crate::crm::server_sql;
use crate::harness::{Program, Site, literals, without_server};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

const SCHEMA: &str = "
CREATE TABLE visit(id INTEGER PRIMARY KEY, rep INTEGER NOT NULL, region TEXT);
CREATE TABLE task(id TEXT PRIMARY KEY, rep INTEGER NOT NULL, text TEXT NOT NULL, room TEXT);
CREATE TABLE step(id INTEGER PRIMARY KEY, task TEXT NOT NULL REFERENCES task(id), text TEXT);
CREATE TABLE later(id INTEGER PRIMARY KEY, rep INTEGER, text TEXT);
INSERT INTO visit VALUES (1, 1, 'north'), (2, 1, 'south'), (3, 2, 'north'), (4, 2, 'south');
INSERT INTO task VALUES ('a', 1, 'one', 'x'), ('b', 1, 'two', NULL), ('c', 2, 'three', 'z');
INSERT INTO step VALUES (1, 'a', 'first'), (2, 'c', 'first');
INSERT INTO later VALUES (1, 1, 'later');";
const OWN: &str = "version = 1\n[node]\nrep = { type = \"integer\" }\n[object.visit]\nvisible.own = 'visit.rep = node.rep'\n\
                   [object.task]\nmembers = [\"step\"]\nvisible.own = 'task.rep = node.rep'\n";
const VISITS: &str = "SELECT * FROM visit";
const TASKS: &str = "SELECT id, rep, text FROM task";
const STEPS: &str = "SELECT * FROM step";

/// The next definition: visits of the north are everybody's, and one table more is replicated.
fn next() -> String {
    let north = "visible.own = 'visit.rep = node.rep'\nvisible.north = { rule = 'everyone', where = \"region = 'north'\" }";
    format!("{}[object.later]\nvisible.own = 'later.rep = node.rep'\n", OWN.replacen("visible.own = 'visit.rep = node.rep'", north, 1))
}

/// One node in step by the former definition, no service; the next definition is deployed and waits to be taken over.
fn waiting() -> Site {
    let mut site = Site::new(|path: &Path| rusqlite::Connection::open(path).unwrap().execute_batch(SCHEMA).unwrap(), OWN);
    site.dockmaster_ok(&["deploy", "--yes"]);
    let address = site.serve();
    site.dockmaster_ok(&["node", "add", "ANNA", "--set", "rep=1"]);
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    site.stop();
    define(&site, &next());
    let ended = site.command(Program::Dockmaster, &["deploy", "--yes"]).env("DOCKMASTER_CRASH", "deploy.installed").output().unwrap();
    assert_eq!(ended.status.signal(), Some(9), "{}", String::from_utf8_lossy(&ended.stderr));
    site
}

fn define(site: &Site, definition: &str) {
    let settings = "[server]\nname = \"HQ\"\ndatabase = \"hq.db\"\nlisten = \"127.0.0.1:0\"\n";
    std::fs::write(site.path("dockmaster.toml"), format!("{}\n{settings}", without_server(definition))).unwrap();
}

/// Brings the node as far as the server goes.
fn pass(site: &mut Site) {
    site.dockmaster_ok(&["run"]);
    crate::crm::serve_again(site);
    site.remote_sync_ok(&["sync", "anna.db"]);
    site.stop();
}

/// Makes a table anew as migration tools do, with other columns; our triggers go with the former one.
fn remake(table: &str, columns: &str, copied: &str) -> String {
    format!(
        "PRAGMA legacy_alter_table = ON; CREATE TABLE remade({columns}); INSERT INTO remade SELECT {copied} FROM {table}; \
         DROP TABLE {table}; ALTER TABLE remade RENAME TO {table};"
    )
}

fn held(site: &Site, select: &str) -> Vec<String> {
    literals(&site.path("anna.db"), select)
}

fn on_server(site: &Site, select: &str) -> Vec<String> {
    literals(&site.path("hq.db"), select)
}

/// What needs a person, by `status`.
fn needs(site: &Site) -> String {
    let status: serde_json::Value = serde_json::from_slice(&site.dockmaster(&["status", "--json"]).stdout).unwrap();
    status["needs"].to_string()
}

fn own(select: &str) -> String {
    format!("{select} WHERE rep = 1")
}

/// After the next deploy everything is as the definition says.
fn assert_goes_on(site: &mut Site) {
    site.dockmaster_ok(&["deploy", "--yes"]);
    pass(site);
    assert_eq!(held(site, VISITS), on_server(site, &format!("{VISITS} WHERE rep = 1 OR region = 'north'")));
    assert_eq!(held(site, TASKS), on_server(site, &own(TASKS)));
    assert_eq!(held(site, STEPS), on_server(site, &format!("{STEPS} WHERE task IN (SELECT id FROM task WHERE rep = 1)")));
    assert_eq!(held(site, "SELECT id, rep FROM later"), on_server(site, &own("SELECT id, rep FROM later")));
    assert_eq!(needs(site), "[]");
    assert_eq!(held(site, "SELECT incarnation FROM dock_state"), ["1"], "it was not extracted again");
}

#[test]
fn r6_r40_a_table_that_changed_again_and_has_all_that_is_needed_is_taken_over_and_stops() {
    let mut site = waiting();
    server_sql(
        &site,
        "ALTER TABLE task ADD COLUMN more TEXT; UPDATE task SET text = 'now' WHERE id = 'a'; UPDATE visit SET region = 'north' WHERE id = 4",
    );
    pass(&mut site);
    assert_eq!(held(&site, VISITS), on_server(&site, &format!("{VISITS} WHERE rep = 1 OR region = 'north'")), "others go on");
    assert_eq!(held(&site, TASKS), on_server(&site, &own(TASKS)), "as of the unit");
    assert_eq!(held(&site, "SELECT * FROM later"), on_server(&site, &own("SELECT * FROM later")));
    assert!(needs(&site).contains("table task is stopped"), "{}", needs(&site));
    // It stands still with its member, until it is deployed.
    server_sql(&site, "UPDATE task SET text = 'unseen'; UPDATE step SET text = 'unseen'; UPDATE visit SET region = 'east' WHERE id = 1");
    pass(&mut site);
    assert_eq!(held(&site, TASKS), ["'a' | 1 | 'now'", "'b' | 1 | 'two'"]);
    assert_eq!(held(&site, STEPS), ["1 | 'a' | 'first'"]);
    assert_eq!(held(&site, VISITS), on_server(&site, &format!("{VISITS} WHERE rep = 1 OR region = 'north'")));
    assert_goes_on(&mut site);
}

#[test]
fn r6_r40_a_table_that_lost_what_is_needed_keeps_its_rows_on_the_nodes_and_stops_alone() {
    for change in [
        remake("task", "id TEXT PRIMARY KEY, rep INTEGER NOT NULL, text TEXT NOT NULL", "id, rep, text"),
        remake("task", "id TEXT PRIMARY KEY, rep INTEGER NOT NULL, text TEXT, room TEXT", "*")
            + "INSERT INTO task VALUES ('n', 1, NULL, NULL);",
        remake("task", "id TEXT NOT NULL UNIQUE, rep INTEGER NOT NULL, text TEXT NOT NULL, room TEXT, PRIMARY KEY(id, rep)", "*"),
    ] {
        let mut site = waiting();
        server_sql(
            &site,
            &format!(
                "{change} UPDATE task SET text = 'unseen' WHERE id = 'a'; UPDATE step SET text = 'unseen';
                 UPDATE visit SET region = 'north' WHERE id = 4; UPDATE later SET text = 'seen'"
            ),
        );
        for _ in 0..2 {
            pass(&mut site);
            assert_eq!(held(&site, VISITS), on_server(&site, &format!("{VISITS} WHERE rep = 1 OR region = 'north'")), "{change}");
            assert_eq!(held(&site, "SELECT text FROM later"), ["'seen'"], "{change}");
            assert_eq!(held(&site, TASKS), ["'a' | 1 | 'one'", "'b' | 1 | 'two'"], "{change}");
            assert_eq!(held(&site, STEPS), ["1 | 'a' | 'first'"], "{change}");
            assert!(needs(&site).contains("table task is stopped"), "{}", needs(&site));
            server_sql(&site, "UPDATE visit SET rep = 3 - rep; UPDATE task SET text = 'later' WHERE id = 'b'");
        }
        assert_goes_on(&mut site);
    }
}

#[test]
fn r6_r40_a_table_that_is_gone_again_stops_alone_until_it_fits() {
    let mut site = waiting();
    server_sql(&site, "ALTER TABLE task RENAME TO work; UPDATE visit SET region = 'north' WHERE id = 4");
    pass(&mut site);
    assert_eq!(held(&site, VISITS), on_server(&site, &format!("{VISITS} WHERE rep = 1 OR region = 'north'")));
    assert_eq!(held(&site, TASKS), ["'a' | 1 | 'one'", "'b' | 1 | 'two'"]);
    server_sql(&site, "ALTER TABLE work RENAME TO task; UPDATE task SET text = 'back' WHERE id = 'b'");
    pass(&mut site);
    assert_eq!(held(&site, TASKS), on_server(&site, &own(TASKS)), "it heals by itself");
    assert_goes_on(&mut site);
}

#[test]
fn r6_r40_a_table_new_to_the_nodes_that_changed_again_comes_without_rows_until_it_is_deployed() {
    let mut site = waiting();
    let change = remake("later", "id INTEGER PRIMARY KEY, rep INTEGER", "id, rep");
    server_sql(&site, &format!("{change} UPDATE visit SET region = 'north' WHERE id = 4"));
    pass(&mut site);
    assert_eq!(held(&site, VISITS), on_server(&site, &format!("{VISITS} WHERE rep = 1 OR region = 'north'")));
    assert!(held(&site, "SELECT * FROM later").is_empty());
    assert!(needs(&site).contains("until it goes on nodes have no rows of it"), "{}", needs(&site));
    assert_goes_on(&mut site);
}

#[test]
fn r6_r38_r40_a_row_that_cannot_be_carried_stops_its_table_and_not_the_definition() {
    let mut site = waiting();
    server_sql(&site, "INSERT INTO task VALUES (NULL, 1, 'no key', 'x'); UPDATE visit SET region = 'north' WHERE id = 4");
    pass(&mut site);
    assert_eq!(held(&site, VISITS), on_server(&site, &format!("{VISITS} WHERE rep = 1 OR region = 'north'")));
    assert_eq!(held(&site, TASKS), ["'a' | 1 | 'one'", "'b' | 1 | 'two'"]);
    assert!(needs(&site).contains("table task is stopped") && needs(&site).contains("NULL in its primary key"), "{}", needs(&site));
    server_sql(&site, "DELETE FROM task WHERE id IS NULL; UPDATE task SET text = 'whole' WHERE id = 'b'");
    site.dockmaster_ok(&["reconcile", "task"]);
    pass(&mut site);
    assert_eq!(held(&site, TASKS), on_server(&site, &own(TASKS)));
    assert_goes_on(&mut site);
}

#[test]
fn r26_r40_a_data_store_lost_while_a_table_stands_still_under_a_new_definition_is_rebuilt() {
    let mut site = waiting();
    let change = remake("task", "id TEXT PRIMARY KEY, rep INTEGER NOT NULL, text TEXT NOT NULL", "id, rep, text");
    server_sql(&site, &format!("{change} UPDATE visit SET region = 'north' WHERE id = 4"));
    pass(&mut site);
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(site.path(&format!("docking/cds.db{suffix}")));
    }
    server_sql(&site, "UPDATE visit SET region = 'east' WHERE id = 1");
    pass(&mut site);
    assert_eq!(held(&site, VISITS), on_server(&site, &format!("{VISITS} WHERE rep = 1 OR region = 'north'")));
    site.dockmaster_ok(&["deploy", "--yes"]);
    pass(&mut site);
    assert_eq!(held(&site, TASKS), on_server(&site, &own(TASKS)));
    assert_eq!(needs(&site), "[]");
}
