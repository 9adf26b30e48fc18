//! Local changes of a node: captured by plain SQL, cut into units, never lost and never told twice (docs/uploads.md 1 to 3).
//!
//! The truth is read by other means than those under test: scans of the tables, and a replay of the units on a copy of the beginning.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod random;
mod restored;
mod rules;
mod unsendable;

use dockmaster::model::upload::{RowChange, UploadUnit};
use dockmaster::model::value::{Row, RowKey, Value};
use dockmaster::store::local::LocalDatabase;
use dockmaster::store::local_capture::ensure_capture;
use dockmaster::store::local_cut::CutReport;
use dockmaster::store::sqlite::{quote_name, value_of};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tempfile::TempDir;

/// Tables by name: rows by exact key, each with what the server has of it.
pub(crate) type Tables = BTreeMap<String, BTreeMap<RowKey, (Row, Option<Row>)>>;

/// A local database as `init` leaves it, and a program that writes to it.
pub(crate) struct Rig {
    folder: TempDir,
    pub(crate) path: PathBuf,
    pub(crate) app: Connection,
    /// Opened when it is first needed: until then no later change of the tables counts as one of the server's.
    pub(crate) local: LocalDatabase,
    /// The replicated tables.
    pub(crate) tables: Vec<String>,
    /// What the server has.
    pub(crate) server: Tables,
    /// The server's rows with all units done again.
    pub(crate) replayed: Tables,
    pub(crate) units: Vec<UploadUnit>,
}

impl Rig {
    /// `setup` runs before our triggers are there.
    pub(crate) fn new(setup: &str) -> Rig {
        // In memory where there is such a place: flushes prove nothing here.
        let memory = std::path::Path::new("/dev/shm");
        Rig::new_in(if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap(), setup)
    }

    pub(crate) fn new_in(folder: TempDir, setup: &str) -> Rig {
        let path = folder.path().join("pos.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA foreign_keys = ON").unwrap();
        app.execute_batch(include_str!("../../sql/sqlite/local_0001.sql")).unwrap();
        app.execute_batch(setup).unwrap();
        app.execute_batch(&format!(
            "INSERT INTO dock_state(id, server_id, server_name, epoch, node, incarnation, applied_file, applied_unit, chain_hash, revision)
             VALUES (1, '{}', 'hq', 1, 'ANNA', 1, 0, 7, '{}', 3);
             INSERT INTO dock_table(name) SELECT name FROM pragma_table_list
             WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'dock\\_%' ESCAPE '\\' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
            "ab".repeat(16),
            "00".repeat(32)
        ))
        .unwrap();
        ensure_capture(&app, &[]).unwrap();
        let mut statement = app.prepare("SELECT name FROM dock_table ORDER BY name").unwrap();
        let tables: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        drop(statement);
        let server = tables.iter().map(|table| (table.clone(), scan(&app, table, &all_rows(&app, table)))).collect::<Tables>();
        let local = LocalDatabase::open(&path).unwrap();
        Rig { folder, path, app, local, tables, replayed: server.clone(), server, units: Vec::new() }
    }

    /// Closes everything and leaves the folder where it is.
    pub(crate) fn keep(self) {
        let _path = self.folder.keep();
    }

    pub(crate) fn run(&self, sql: &str) {
        self.app.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// Cuts, and checks everything that must hold after a cut.
    pub(crate) fn cut(&mut self) -> CutReport {
        let report = self.local.cut().unwrap();
        for number in &report.units {
            let unit = self.local.pending_unit(*number).unwrap().unwrap();
            assert_eq!(unit.head.changes as usize, unit.changes.len());
            replay(&mut self.replayed, &unit);
            self.units.push(unit);
        }
        if self.kept_out() == 0 {
            self.check();
        }
        report
    }

    /// Rows that could not be put back, so that the tables are not what the server's rows and the units make of them.
    pub(crate) fn kept_out(&self) -> i64 {
        self.count("SELECT count(*) FROM dock_conflict WHERE reason LIKE '%could not be put back%'")
    }

    /// The overlay is what the server has, and the units lead from there to what the tables show.
    pub(crate) fn check(&self) {
        for table in &self.tables {
            let shown = scan(&self.app, table, &all_rows(&self.app, table));
            let expected: BTreeMap<&RowKey, &Row> = self.replayed[table].iter().map(|(key, (row, _))| (key, row)).collect();
            assert_eq!(shown.iter().map(|(key, (row, _))| (key, row)).collect::<BTreeMap<_, _>>(), expected, "{table}: tables");
            let view = scan(&self.app, table, &server_view(&self.app, table));
            assert_eq!(view, self.server[table], "{table}: server view");
        }
    }

    /// Changes of the last units, as short texts.
    pub(crate) fn told(&self, from: usize) -> Vec<String> {
        self.units[from..]
            .iter()
            .flat_map(|unit| unit.changes.iter().map(|(heading, change)| tell(&heading.columns, &heading.name, change)))
            .collect()
    }

    pub(crate) fn count(&self, sql: &str) -> i64 {
        self.app.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    pub(crate) fn rules(&self, table: &str, direction: &str, rules: &dockmaster::model::merge_rules::MergeRules) {
        let rules = serde_json::to_string(rules).unwrap();
        self.app.execute("INSERT INTO dock_merge_rules VALUES (?1, ?2, ?3)", (table, direction, rules)).unwrap();
    }
}

fn tell(columns: &[String], table: &str, change: &RowChange) -> String {
    let list = |row: &[Value]| row.iter().map(Value::to_string).collect::<Vec<_>>().join(",");
    match change {
        RowChange::Insert { row } => format!("+{table}({})", list(row)),
        RowChange::Delete { key, before, base } => {
            let base = base.as_ref().map(|base| format!(" base({})", list(base))).unwrap_or_default();
            format!("-{table}[{}]({}){base}", list(key), list(before))
        }
        RowChange::Update { key, fields, whole } => {
            let fields: Vec<String> = fields
                .iter()
                .map(|field| format!("{}:{}/{}/{}", columns[usize::from(field.column)], field.before, field.base, field.after))
                .collect();
            let whole = whole.as_ref().map(|row| format!(" whole({})", list(row))).unwrap_or_default();
            format!("~{table}[{}]{}{whole}", list(key), fields.join(" "))
        }
    }
}

fn stored(app: &Connection, table: &str) -> Vec<String> {
    let mut statement = app.prepare("SELECT name FROM pragma_table_xinfo(?1) WHERE hidden = 0").unwrap();
    statement.query_map([table], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

fn key_names(app: &Connection, table: &str) -> Vec<String> {
    let mut statement = app.prepare("SELECT name FROM pragma_table_xinfo(?1) WHERE pk > 0 ORDER BY pk").unwrap();
    statement.query_map([table], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

fn all_rows(app: &Connection, table: &str) -> String {
    let columns: Vec<String> = stored(app, table).iter().map(|name| quote_name(name)).collect();
    format!("SELECT {} FROM main.{}", columns.join(", "), quote_name(table))
}

/// The table overlaid by its base entries.
fn server_view(app: &Connection, table: &str) -> String {
    let (id, columns): (i64, String) = app
        .query_row("SELECT max(id), columns FROM dock_capture WHERE table_name = ?1", [table], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    let captured: Vec<String> = serde_json::from_str(&columns).unwrap();
    let columns = stored(app, table);
    let place = |name: &String| captured.iter().position(|column| column == name);
    let of_table: Vec<String> = columns.iter().map(|name| format!("t.{}", quote_name(name))).collect();
    let of_base: Vec<String> = columns.iter().map(|name| place(name).map_or("NULL".into(), |place| format!("b.c{}", place + 1))).collect();
    let same: Vec<String> =
        key_names(app, table).iter().map(|name| format!("t.{} = b.c{}", quote_name(name), place(name).unwrap() + 1)).collect();
    format!(
        "SELECT {} FROM main.{} AS t WHERE NOT EXISTS (SELECT 1 FROM dock_base_{id} AS b WHERE {})
         UNION ALL SELECT {} FROM dock_base_{id} AS b WHERE present = 1",
        of_table.join(", "),
        quote_name(table),
        same.join(" AND "),
        of_base.join(", ")
    )
}

/// Rows by key; those whose key is NULL are nobody's.
fn scan(app: &Connection, table: &str, sql: &str) -> BTreeMap<RowKey, (Row, Option<Row>)> {
    let columns = stored(app, table);
    let key: Vec<usize> = key_names(app, table).iter().map(|name| columns.iter().position(|column| column == name).unwrap()).collect();
    let mut statement = app.prepare(sql).unwrap();
    let mut rows = statement.query([]).unwrap();
    let mut found = BTreeMap::new();
    while let Some(row) = rows.next().unwrap() {
        let values: Row = (0..columns.len()).map(|at| value_of(row.get_ref(at).unwrap())).collect();
        let key: RowKey = key.iter().map(|place| values[*place].clone()).collect();
        if !key.iter().any(Value::is_null) {
            assert_eq!(found.insert(key, (values.clone(), Some(values))), None, "{table}: a row is there twice");
        }
    }
    found
}

/// Does a unit again, change by change in its order, and checks what it says of before and base.
fn replay(tables: &mut Tables, unit: &UploadUnit) {
    for (heading, change) in &unit.changes {
        let rows = tables.get_mut(&heading.name).unwrap();
        let key_of = |row: &Row| -> RowKey { heading.key.iter().map(|place| row[usize::from(*place)].clone()).collect() };
        let what = format!("unit {}, {}, {change:?}", unit.head.number, heading.name);
        match change {
            RowChange::Insert { row } => assert_eq!(rows.insert(key_of(row), (row.clone(), None)), None, "{what}"),
            RowChange::Delete { key, before, base } => {
                let (row, server) = rows.remove(key).unwrap_or_else(|| panic!("{what}: no such row"));
                assert_eq!((before, base), (&row, &server.filter(|server| *server != row)), "{what}");
            }
            RowChange::Update { key, fields, whole } => {
                let (mut row, server) = rows.remove(key).unwrap_or_else(|| panic!("{what}: no such row"));
                assert!(!fields.is_empty(), "{what}");
                for field in fields {
                    let place = usize::from(field.column);
                    assert_eq!(field.before, row[place], "{what}: before");
                    assert_eq!(field.base, server.as_ref().map_or(&row, |server| server)[place], "{what}: base");
                    assert_ne!(field.after, field.before, "{what}");
                    row[place] = field.after.clone();
                }
                assert!(whole.as_ref().is_none_or(|whole| *whole == row), "{what}: whole");
                assert_eq!(rows.insert(key_of(&row), (row, server)), None, "{what}: the key is taken");
            }
        }
    }
}
