//! Capture as it must not be, for the planted fault of R1: programs write to a database of their own, its triggers log the images of rows,
//! and the last image of each key goes to the server database, before anything is read there.
//!
//! With images of the row as it is when it is logged this is right, and that is tested too; with `NEW.*` it is wrong.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::schema::{Shape, Table};
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use std::collections::BTreeMap;
use std::path::Path;

/// The path from the programs' database to the server database.
pub(super) struct Shadow {
    shape: Shape,
    server: Connection,
}

fn columns(table: &Table, prefix: &str) -> String {
    table.written().into_iter().map(|column| format!("{prefix}{}", table.columns[column].name)).collect::<Vec<_>>().join(", ")
}

impl Shadow {
    /// Takes programs off the server database: returns the path, and the connection that they write through from now on.
    pub(super) fn new(shape: &Shape, folder: &Path, is_new_image: bool) -> (Shadow, Connection) {
        let server = Connection::open(folder.join("hq.db")).unwrap();
        let own = folder.join("own.db");
        server.execute("VACUUM INTO ?1", [own.to_str().unwrap()]).unwrap();
        let writer = Connection::open(own).unwrap();
        let sql = "SELECT name FROM sqlite_schema WHERE type = 'trigger'";
        let triggers: Vec<String> =
            writer.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
        for name in triggers {
            writer.execute_batch(&format!("DROP TRIGGER {name}")).unwrap();
            if !name.starts_with("dock_") {
                server.execute_batch(&format!("DROP TRIGGER {name}")).unwrap();
            }
        }
        for table in &shape.tables {
            writer.execute_batch(&log(table, is_new_image)).unwrap();
            // They are newer than those that log, so they fire first.
            for trigger in table.triggers.0.iter().chain(&table.triggers.1) {
                writer.execute_batch(trigger).unwrap();
            }
        }
        server.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        // So REPLACE tells what it deletes.
        writer.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA recursive_triggers = ON").unwrap();
        (Shadow { shape: shape.clone(), server }, writer)
    }

    /// Brings what was logged to the server database: per key the last image.
    pub(super) fn bring(&self, writer: &Connection) {
        self.server.execute_batch("BEGIN").unwrap();
        for table in &self.shape.tables {
            let written = table.written();
            let key: Vec<usize> = table.key.iter().map(|key| written.iter().position(|column| column == key).unwrap()).collect();
            let mut last: BTreeMap<String, (Vec<Value>, Option<Vec<Value>>)> = BTreeMap::new();
            let mut statement =
                writer.prepare(&format!("SELECT gone, {} FROM log_{} ORDER BY seq", columns(table, ""), table.name)).unwrap();
            let mut rows = statement.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                let gone: bool = row.get(0).unwrap();
                let values: Vec<Value> = (0..written.len()).map(|at| row.get(at + 1).unwrap()).collect();
                let of_key: Vec<Value> = key.iter().map(|at| values[*at].clone()).collect();
                last.insert(format!("{of_key:?}"), (of_key, (!gone).then_some(values)));
            }
            let condition: Vec<String> = table.key.iter().map(|key| format!("{} = ?", table.columns[*key].name)).collect();
            let delete = format!("DELETE FROM {} WHERE {}", table.name, condition.join(" AND "));
            let places = vec!["?"; written.len()].join(", ");
            let insert = format!("INSERT OR REPLACE INTO {}({}) VALUES({places})", table.name, columns(table, ""));
            for (key, _) in last.values() {
                self.server.execute(&delete, params_from_iter(key)).unwrap();
            }
            for image in last.values().filter_map(|(_, image)| image.as_ref()) {
                self.server.execute(&insert, params_from_iter(image)).unwrap();
            }
            writer.execute_batch(&format!("DELETE FROM log_{}", table.name)).unwrap();
        }
        self.server.execute_batch("COMMIT").unwrap();
    }
}

/// The log of a table and the triggers that write it.
fn log(table: &Table, is_new_image: bool) -> String {
    let name = &table.name;
    let (plain, old) = (columns(table, ""), columns(table, "OLD."));
    let key: Vec<String> = table.key.iter().map(|key| format!("n.{0} = NEW.{0}", table.columns[*key].name)).collect();
    let image = if is_new_image {
        format!("SELECT 0, {}", columns(table, "NEW."))
    } else {
        format!("SELECT 0, {} FROM {name} AS n WHERE {}", columns(table, "n."), key.join(" AND "))
    };
    format!(
        "CREATE TABLE log_{name}(seq INTEGER PRIMARY KEY, gone, {plain});
         CREATE TRIGGER log_i_{name} AFTER INSERT ON {name} BEGIN INSERT INTO log_{name}(gone, {plain}) {image}; END;
         CREATE TRIGGER log_u_{name} AFTER UPDATE ON {name} BEGIN
             INSERT INTO log_{name}(gone, {plain}) SELECT 1, {old}; INSERT INTO log_{name}(gone, {plain}) {image}; END;
         CREATE TRIGGER log_d_{name} AFTER DELETE ON {name} BEGIN INSERT INTO log_{name}(gone, {plain}) SELECT 1, {old}; END;"
    )
}
