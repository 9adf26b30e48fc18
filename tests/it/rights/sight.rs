//! A row is judged in the server database as the data store judges it (R19, R35): both are compared with the oracle.

use crate::oracle_random::{Random, Step};
use crate::oracle_schemas::{Subject, crm, ships};
use dockmaster::base::ids::Revision;
use dockmaster::model::dock::{Dock, RuleKind};
use dockmaster::model::schema::Schema;
use dockmaster::model::value::{Collation, Value};
use dockmaster::store::rights::{Basis, Rights, Sight};
use dockmaster::store::sqlite::{ServerDatabase, SqlValue};
use rusqlite::{Connection, params_from_iter};
use std::collections::BTreeMap;

const UNITS: usize = 12;

fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

/// Tables of a definition with the collations that it says; every other one with indexes on what is searched.
fn create(conn: &Connection, dock: &Dock, seed: u64) {
    for table in &dock.tables {
        let columns = table.columns.iter().enumerate().map(|(column, declared)| {
            let is_rowid = table.key_is_rowid && table.key == [column];
            let rest = if is_rowid { " INTEGER PRIMARY KEY" } else { "" };
            let collation =
                if declared.collation == Collation::Binary { String::new() } else { format!(" COLLATE {}", declared.collation.name()) };
            format!("{}{rest}{collation}", quoted(&declared.name))
        });
        let key: Vec<String> = table.key.iter().map(|column| quoted(&table.columns[*column].name)).collect();
        let key = if table.key_is_rowid { String::new() } else { format!(", PRIMARY KEY({})", key.join(", ")) };
        let columns: Vec<String> = columns.collect();
        conn.execute_batch(&format!("CREATE TABLE {}({}{key})", quoted(&table.name), columns.join(", "))).unwrap();
        if seed.is_multiple_of(2) {
            for column in &table.columns {
                let name = quoted(&column.name);
                conn.execute_batch(&format!("CREATE INDEX \"{}_{}\" ON {}({name})", table.name, column.name, quoted(&table.name))).unwrap();
            }
        }
    }
}

fn delete(conn: &Connection, dock: &Dock, table: usize, key: &[Value]) {
    let declared = &dock.tables[table];
    let terms = declared.key.iter().enumerate().map(|(at, column)| format!("{} = ?{}", quoted(&declared.columns[*column].name), at + 1));
    let sql = format!("DELETE FROM {} WHERE {}", quoted(&declared.name), terms.collect::<Vec<_>>().join(" AND "));
    conn.execute(&sql, params_from_iter(key.iter().map(SqlValue))).unwrap();
}

fn insert(conn: &Connection, dock: &Dock, table: usize, row: &[Value]) {
    let marks: Vec<String> = (1..=row.len()).map(|at| format!("?{at}")).collect();
    let sql = format!("INSERT INTO {} VALUES({})", quoted(&dock.tables[table].name), marks.join(", "));
    conn.execute(&sql, params_from_iter(row.iter().map(SqlValue))).unwrap();
}

/// Compares every row for every node; returns how often each answer came.
fn run(subject: &Subject, seed: u64, counts: &mut BTreeMap<Sight, usize>) {
    let subject = subject.varied(seed);
    let mut random = Random::new(&subject, seed);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server.db");
    let conn = Connection::open(&path).unwrap();
    conn.pragma_update(None, "synchronous", "OFF").unwrap();
    create(&conn, &subject.dock, seed);
    for (table, rows) in random.world.rows.iter().enumerate() {
        rows.iter().for_each(|row| insert(&conn, &subject.dock, table, row));
    }
    let database = ServerDatabase::open(&path).unwrap();
    let schema = Schema::default();
    for unit in 0..UNITS {
        let nodes = random.world.nodes.clone();
        let basis = Basis { dock: &subject.dock, revision: Revision(1), schema: &schema, day: random.world.day };
        for (name, node) in &nodes {
            let rights = Rights::new(&database, basis, node);
            let visible = random.world.visible(name);
            for (table, rows) in random.world.rows.iter().enumerate() {
                for row in rows {
                    let sight = rights.sight(table, row).unwrap();
                    let what = format!("{} seed {seed} unit {unit}: {name} {} {row:?}", subject.name, subject.dock.tables[table].name);
                    assert_eq!(sight != Sight::None, visible[table].contains(row), "{what}");
                    let is_own = |name: &String| {
                        let rule = subject.dock.rules.iter().find(|rule| rule.name == *name).unwrap();
                        !matches!(rule.kind, RuleKind::Referenced(_))
                    };
                    let by = random.world.rules_of(name, table, row);
                    assert_eq!(sight == Sight::Own, by.iter().any(is_own), "{what}: by {by:?}");
                    assert_eq!(rights.server_row(table, &random.world.key(table, row)).unwrap().as_ref(), Some(row), "{what}");
                    *counts.entry(sight).or_default() += 1;
                }
            }
        }
        let changed = conn.unchecked_transaction().unwrap();
        for step in random.unit() {
            if let Step::Row(change) = step {
                delete(&conn, &subject.dock, change.table, &change.key);
                if let Some(row) = change.row {
                    insert(&conn, &subject.dock, change.table, &row);
                }
            }
        }
        changed.commit().unwrap();
    }
}

#[test]
fn r19_r35_the_server_row_is_judged_as_the_oracle_judges_it_on_random_definitions() {
    let mut counts = BTreeMap::new();
    for subject in [crm(), ships()] {
        for seed in 0..15 {
            run(&subject, seed, &mut counts);
        }
    }
    assert!(counts.len() == 3 && counts.values().all(|count| *count > 500), "{counts:?}");
}
