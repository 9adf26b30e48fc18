//! Rows of a table that only nodes write are nowhere else: when the table gets another shape none of them is lost, whether the node
//! follows a new definition or begins anew. A row that does not fit stops its node, by key and reason, until somebody corrects it.

use crate::crm::{self, server_sql, sql_on};
use crate::harness::{Site, behind_our_back, literals};
use std::path::Path;

const SCHEMA: &str = "
CREATE TABLE visit(id INTEGER PRIMARY KEY, rep INTEGER NOT NULL, region TEXT);
CREATE TABLE note(id INTEGER PRIMARY KEY, rep INTEGER NOT NULL, text TEXT);
INSERT INTO visit VALUES (1, 1, 'north'), (2, 1, 'south'), (3, 2, 'north');
INSERT INTO note VALUES (1, 1, 'from the extract'), (2, 1, NULL), (3, 2, NULL);";
const DEFINITION: &str = "version = 1\n[node]\nrep = { type = \"integer\" }\n[object.visit]\nvisible.own = 'visit.rep = node.rep'\n\
                          [object.note]\ndirection = \"upload\"\nvisible.own = 'note.rep = node.rep'\n";
const NOT_NULL: &str = "id INTEGER PRIMARY KEY, rep INTEGER NOT NULL, text TEXT NOT NULL";
const NOTES: &str = "SELECT id, rep, text FROM note";

/// How the other shape comes to the node.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// With a new definition.
    Follows,
    /// With all that it sees, since its stream begins anew.
    BeginsAnew,
}

/// A node in step that wrote notes of its own, and no service.
fn site() -> Site {
    let mut site = Site::new(|path: &Path| rusqlite::Connection::open(path).unwrap().execute_batch(SCHEMA).unwrap(), DEFINITION);
    site.dockmaster_ok(&["deploy", "--yes"]);
    let address = site.serve();
    site.dockmaster_ok(&["node", "add", "ANNA", "--set", "rep=1"]);
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    site.stop();
    // Nothing of them is pending: what is, is suspended where it does not fit (tests of the rebase).
    behind_our_back(&site, "anna.db", "INSERT INTO note VALUES (100, 1, 'own'), (101, 1, NULL), (102, 7, NULL)");
    site
}

/// Gives the server's table other columns, and brings them on their way. A unit that is whole goes before.
fn reshape(site: &mut Site, way: Way, columns: &str, copied: &str) {
    server_sql(site, "UPDATE visit SET region = 'before' WHERE id = 1");
    site.dockmaster_ok(&["run"]);
    server_sql(
        site,
        &format!(
            "PRAGMA legacy_alter_table = ON; CREATE TABLE remade({columns}); INSERT INTO remade SELECT {copied} FROM note; DROP TABLE note;
             ALTER TABLE remade RENAME TO note; UPDATE visit SET region = 'after' WHERE id = 2"
        ),
    );
    site.dockmaster_ok(&["deploy", "--yes"]);
    if way == Way::BeginsAnew {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(site.path(&format!("docking/ledger.db{suffix}")));
        }
    }
    site.dockmaster_ok(&["run"]);
    crm::serve_again(site);
}

fn visits(site: &Site) -> Vec<String> {
    literals(&site.path("anna.db"), "SELECT id, region FROM visit")
}

fn notes(site: &Site) -> Vec<String> {
    literals(&site.path("anna.db"), NOTES)
}

/// The sync stops, says why on both sides, and leaves the table as it is.
fn assert_stops(site: &Site, way: Way, row: &str, reason: &str) {
    let before = (notes(site), literals(&site.path("anna.db"), "SELECT sql FROM sqlite_schema WHERE name = 'note'"));
    for _ in 0..2 {
        let ended = site.remote_sync(&["sync", "anna.db"]);
        assert!(!ended.status.success(), "{way:?}");
        let status = String::from_utf8_lossy(&site.remote_sync(&["status", "anna.db"]).stdout).into_owned();
        assert!(status.contains(&format!("table note, key {row}")) && status.contains(reason), "{way:?}: {status}");
        assert!(status.contains("correct the row in the local database"), "{way:?}: {status}");
        let seen = String::from_utf8_lossy(&site.dockmaster(&["node", "show", "ANNA"]).stdout).into_owned();
        assert!(seen.contains(&format!("table note, key {row}")) && seen.contains(reason), "{way:?}: {seen}");
        let after = (notes(site), literals(&site.path("anna.db"), "SELECT sql FROM sqlite_schema WHERE name = 'note'"));
        assert_eq!(after, before, "{way:?}: all of the table is as it was");
        assert!(literals(&site.path("anna.db"), "SELECT name FROM sqlite_schema WHERE name = 'dock_former'").is_empty());
    }
    let first = if way == Way::Follows { "1 | 'before'" } else { "1 | 'north'" };
    assert_eq!(visits(site), [first, "2 | 'south'"], "{way:?}: a unit is there whole or not at all");
}

#[test]
fn r40_a_row_that_only_the_node_has_and_that_does_not_fit_a_new_shape_stops_the_node_by_name_on_either_way() {
    for way in [Way::Follows, Way::BeginsAnew] {
        let mut site = site();
        reshape(&mut site, way, NOT_NULL, "id, rep, ifnull(text, '')");
        assert_stops(&site, way, "2", "NOT NULL constraint failed: note.text");
        // Known limit: a correction that is captured is pending, and is taken back before the new shape comes (docs/uploads.md).
        behind_our_back(&site, "anna.db", "UPDATE note SET text = 'mended' WHERE id = 2; DELETE FROM note WHERE id = 102");
        assert_stops(&site, way, "101", "NOT NULL constraint failed: note.text");
        behind_our_back(&site, "anna.db", "UPDATE note SET text = 'mended' WHERE id = 101");
        site.remote_sync_ok(&["sync", "anna.db"]);
        assert_eq!(notes(&site), ["1 | 1 | 'from the extract'", "100 | 1 | 'own'", "101 | 1 | 'mended'", "2 | 1 | 'mended'"], "{way:?}");
        assert_eq!(visits(&site), ["1 | 'before'", "2 | 'after'"], "{way:?}");
        let sql = literals(&site.path("anna.db"), "SELECT sql FROM sqlite_schema WHERE name = 'note'");
        assert!(sql[0].contains("text TEXT NOT NULL"), "{way:?}: {sql:?}");
        server_sql(&site, "UPDATE visit SET region = 'later' WHERE rep = 1");
        site.remote_sync_ok(&["sync", "anna.db"]);
        assert_eq!(visits(&site), ["1 | 'later'", "2 | 'later'"], "{way:?}");
        site.stop();
    }
}

#[test]
fn r40_rows_that_only_the_node_has_stay_in_every_shape_that_they_fit() {
    for way in [Way::Follows, Way::BeginsAnew] {
        for (columns, copied) in [
            ("id INTEGER PRIMARY KEY, rep INTEGER NOT NULL, text TEXT DEFAULT 'none'", "*"),
            ("id INTEGER PRIMARY KEY, more TEXT NOT NULL DEFAULT 'm', rep INTEGER NOT NULL, text TEXT", "id, 'm', rep, text"),
            ("id INTEGER PRIMARY KEY, text TEXT, rep INTEGER NOT NULL CHECK(rep > 0)", "id, text, rep"),
        ] {
            let mut site = site();
            let before = notes(&site);
            reshape(&mut site, way, columns, copied);
            site.remote_sync_ok(&["sync", "anna.db"]);
            assert_eq!(notes(&site), before, "{way:?}: {columns}");
            assert_eq!(visits(&site), ["1 | 'before'", "2 | 'after'"], "{way:?}: {columns}");
            site.stop();
        }
    }
}

#[test]
fn r40_a_new_column_that_a_row_of_the_node_cannot_have_is_given_by_hand() {
    for way in [Way::Follows, Way::BeginsAnew] {
        let mut site = site();
        reshape(&mut site, way, "id INTEGER PRIMARY KEY, rep INTEGER NOT NULL, text TEXT, place TEXT NOT NULL", "*, 'here'");
        assert_stops(&site, way, "1", "NOT NULL constraint failed: note.place");
        sql_on(&site.path("anna.db"), "ALTER TABLE note ADD COLUMN place TEXT; UPDATE note SET place = 'there'");
        site.remote_sync_ok(&["sync", "anna.db"]);
        assert_eq!(literals(&site.path("anna.db"), "SELECT count(*), count(place) FROM note"), ["5 | 5"], "{way:?}");
        assert_eq!(visits(&site), ["1 | 'before'", "2 | 'after'"], "{way:?}");
        site.stop();
    }
}
