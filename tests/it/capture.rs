//! Capture on a real database, driven by plain SQL: what the log says must bring a shadow copy to the truth, byte for byte.
//!
//! The truth is read by other means than the reader under test: a scan of the tables through a connection of the test's own.

// Helpers outside of `#[test]` functions.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod installing;
mod matrix;
mod nodes;
mod random;
mod reading;
mod values;

use dockmaster::base::ids::{Nonce, TxnId};
use dockmaster::model::dock::{Dock, DockColumn, DockTable};
use dockmaster::model::schema::Schema;
use dockmaster::model::value::{Row, RowKey, Value};
use dockmaster::store::install::{InstallPlan, Installed};
use dockmaster::store::log::{ReadOptions, UnitReading};
use dockmaster::store::sqlite::{ServerDatabase, StoreError, quote_name, value_of};
use dockmaster::store::unit_rows::UnitMemory;
use rusqlite::Connection;
use rusqlite::limits::Limit;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use tempfile::TempDir;

/// A definition that takes every column of every table with a key.
fn dock_of(schema: &Schema) -> Dock {
    let tables = schema.tables.iter().filter(|table| !table.key.is_empty()).map(|table| DockTable {
        name: table.name.clone(),
        columns: table
            .columns
            .iter()
            .map(|column| DockColumn { name: column.name.clone(), sent: true, collation: column.collation() })
            .collect(),
        key: table.key.clone(),
        key_is_rowid: table.key_is_rowid,
        object: None,
        member_of: None,
        dangling: Vec::new(),
        by_comparison: false,
        merge: Default::default(),
    });
    Dock { tables: tables.collect(), objects: vec![], rules: vec![], attributes: vec![], models: vec![] }
}

type Tables = BTreeMap<String, BTreeMap<RowKey, Row>>;

/// A server database, a program that writes to it, and a reader with a shadow copy.
struct Rig {
    _folder: TempDir,
    path: PathBuf,
    db: ServerDatabase,
    app: Connection,
    dock: Dock,
    shadow: Tables,
    after: TxnId,
}

impl Rig {
    fn new(sql: &str) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch("PRAGMA synchronous=OFF; PRAGMA foreign_keys=OFF;").unwrap();
        app.execute_batch(sql).unwrap();
        // Random triggers call each other; a thousand levels show nothing that ten do not.
        app.set_limit(Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 10).unwrap();
        let db = ServerDatabase::open(&path).unwrap();
        let dock = dock_of(&db.schema().unwrap());
        let mut rig = Rig { _folder: folder, path, db, app, dock, shadow: Tables::new(), after: TxnId(0) };
        rig.install();
        rig.after = rig.db.log_end().unwrap();
        rig.shadow = rig.truth();
        rig
    }

    fn install(&self) -> Installed {
        self.try_install().unwrap()
    }

    fn try_install(&self) -> Result<Installed, dockmaster::store::sqlite::StoreError> {
        let schema = self.db.schema().unwrap();
        self.db.install(&InstallPlan { dock: &self.dock, schema: &schema, revision_text: "definition", server_name: "test" })
    }

    fn run(&self, sql: &str) {
        self.app.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    fn truth(&self) -> Tables {
        let mut tables = Tables::new();
        for table in &self.dock.tables {
            let names: Vec<String> = table.columns.iter().map(|column| quote_name(&column.name)).collect();
            let mut statement = self.app.prepare(&format!("SELECT {} FROM main.{}", names.join(", "), quote_name(&table.name))).unwrap();
            let mut rows = statement.query([]).unwrap();
            let found = tables.entry(table.name.clone()).or_default();
            while let Some(row) = rows.next().unwrap() {
                let values: Row = (0..names.len()).map(|place| value_of(row.get_ref(place).unwrap())).collect();
                found.insert(table.key.iter().map(|position| values[*position].clone()).collect(), values);
            }
        }
        tables
    }

    fn read(&mut self) -> Option<UnitReading> {
        let options = ReadOptions { after: self.after, known: None };
        let unit = self.db.read_unit(&options).unwrap()?;
        self.same_in_chunks(&options, &unit);
        for change in &unit.changes {
            let table = self.shadow.entry(change.table.clone()).or_default();
            match &change.row {
                Some(row) => table.insert(change.key.clone(), row.clone()),
                None => table.remove(&change.key),
            };
        }
        // A table whose capture was interrupted is compared as a whole by whoever reads the unit (R6).
        if self.dock.tables.iter().any(|table| unit.is_compared(&table.name)) {
            self.shadow.extend(self.truth().into_iter().filter(|(table, _)| unit.is_compared(table)));
        }
        self.after = unit.upto;
        Some(unit)
    }

    /// Fault 36: read as if memory held one row, it is the same rows in the same order.
    fn same_in_chunks(&self, options: &ReadOptions, unit: &UnitReading) {
        let folder = tempfile::tempdir().unwrap();
        let memory = UnitMemory { rows: 1, bytes: 40, chunk_rows: 2, chunk_bytes: 100, scratch: folder.path().join("keys") };
        let read = self.db.read_unit_with(options, Some(&memory), |_, _, rows| {
            let mut all = Vec::new();
            while let Some(chunk) = rows.next_chunk()? {
                assert!((1..=2).contains(&chunk.len()));
                all.extend(chunk);
            }
            Ok::<_, StoreError>((all, Vec::new()))
        });
        let (large, changes) = read.unwrap().unwrap();
        let changes = if large.is_large { changes } else { large.changes };
        assert_eq!((&changes, &large.controls, &large.stopped), (&unit.changes, &unit.controls, &unit.stopped));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    /// Reads a unit and compares the shadow with the truth.
    fn sync(&mut self, what: &str) -> Option<UnitReading> {
        let unit = self.read();
        let truth = self.truth();
        assert_eq!(self.shadow, truth, "shadow differs from the truth after: {what}");
        unit
    }

    /// Reduces the images of the log by "last entry wins" and returns the keys where they differ from the truth: what the log itself
    /// says, without any look at the rows. Hinted rows and rows whose key changed are for the snapshot to decide, so not looked at.
    fn wrong_images(&self, after: TxnId) -> Vec<(String, RowKey)> {
        let tables: BTreeMap<i64, &DockTable> = self
            .app
            .prepare("SELECT id, table_name FROM dock_capture")
            .unwrap()
            .query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))
            .unwrap()
            .map(Result::unwrap)
            .filter_map(|(id, name)| Some((id, self.dock.tables.get(self.dock.table(&name)?)?)))
            .collect();
        let mut statement = self.app.prepare("SELECT * FROM dock_txn_log WHERE id > ?1 ORDER BY id").unwrap();
        let mut rows = statement.query([after.0]).unwrap();
        let mut last: BTreeMap<(String, RowKey), Option<Row>> = BTreeMap::new();
        let mut doubtful: BTreeSet<(String, RowKey)> = BTreeSet::new();
        while let Some(row) = rows.next().unwrap() {
            let Some(table) = tables.get(&row.get::<_, i64>("tbl").unwrap()) else { continue };
            let image = |half: usize| -> Row {
                (0..table.columns.len()).map(|place| value_of(row.get_ref(4 + half * table.columns.len() + place).unwrap())).collect()
            };
            let key = |image: &Row| (table.name.clone(), table.key.iter().map(|position| image[*position].clone()).collect::<RowKey>());
            let (old, op) = (image(0), row.get::<_, String>("op").unwrap());
            match op.as_str() {
                "I" => drop(last.insert(key(&old), Some(old))),
                "D" | "G" => drop(last.insert(key(&old), None)),
                "H" => drop(doubtful.insert(key(&old))),
                "U" => {
                    let new = image(1);
                    if new.iter().all(Value::is_null) {
                        // Gone again, perhaps from another key than the old one.
                        doubtful.insert(key(&old));
                    } else {
                        if key(&new) != key(&old) {
                            doubtful.extend([key(&new), key(&old)]);
                        }
                        last.insert(key(&new), Some(new));
                    }
                }
                other => panic!("op {other}"),
            }
        }
        let truth = self.truth();
        last.into_iter()
            .filter(|(key, row)| !doubtful.contains(key) && truth[&key.0].get(&key.1) != row.as_ref())
            .map(|(key, _)| key)
            .collect()
    }

    /// Replaces one of our triggers, and its text in the catalogue, so that nothing but a wrong result can tell.
    fn plant(&self, name: &str, change: impl Fn(&str) -> String) {
        let sql: String = self.app.query_row("SELECT sql FROM sqlite_schema WHERE name = ?1", [name], |row| row.get(0)).unwrap();
        let changed = change(&sql);
        assert_ne!(sql, changed, "nothing planted in {name}");
        self.run(&format!("DROP TRIGGER {name}"));
        self.run(&changed);
        let id: i64 = name.rsplit('_').next().unwrap().parse().unwrap();
        let stored: String = self.app.query_row("SELECT sql FROM sqlite_schema WHERE name = ?1", [name], |row| row.get(0)).unwrap();
        let json: String = self.app.query_row("SELECT triggers FROM dock_capture WHERE id = ?1", [id], |row| row.get(0)).unwrap();
        let mut triggers: BTreeMap<String, String> = serde_json::from_str(&json).unwrap();
        triggers.insert(name.to_owned(), stored);
        self.app.execute("UPDATE dock_capture SET triggers = ?1 WHERE id = ?2", (serde_json::to_string(&triggers).unwrap(), id)).unwrap();
    }

    fn log_ops(&self, after: TxnId) -> String {
        self.app
            .prepare("SELECT op FROM dock_txn_log WHERE id > ?1 ORDER BY id")
            .unwrap()
            .query_map([after.0], |row| row.get::<_, String>(0))
            .unwrap()
            .map(Result::unwrap)
            .collect()
    }
}

fn nonce(byte: u8) -> Nonce {
    Nonce([byte; 16])
}
