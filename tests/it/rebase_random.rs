//! Random schemas, units of the server, local edits and confirms in any order: what must hold after every apply (R20, R21, R30, R32, R37).

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "a test fails by panicking, and says what it met")]

use crate::node_kit::rows;
use crate::rebase_kit::{Desk, confirm, merged};
use dockmaster::model::merge_rules::{ConflictPolicy, MergeRules};
use dockmaster::model::upload::{Confirm, Outcome, RowChange};
use dockmaster::model::value::Value;
use dockmaster::store::sqlite::quote_name;
use fastrand::Rng;
use rusqlite::params_from_iter;

struct Schema {
    ddl: String,
    tables: Vec<String>,
    /// Whether ids are text that knows no case.
    text: Vec<bool>,
    parents: Vec<Option<usize>>,
}

fn schema(rng: &mut Rng) -> Schema {
    let count = rng.usize(2..5);
    let mut schema = Schema { ddl: String::new(), tables: Vec::new(), text: Vec::new(), parents: Vec::new() };
    for table in 0..count {
        let text = rng.u32(0..4) == 0;
        let parent = (rng.u32(0..3) > 0).then(|| rng.usize(0..=table));
        let id = if text { "id TEXT NOT NULL COLLATE NOCASE PRIMARY KEY" } else { "id INTEGER PRIMARY KEY" };
        let unique = ["UNIQUE", "", "UNIQUE COLLATE NOCASE"][rng.usize(0..3)];
        let reference = parent.map_or("p INT".to_owned(), |parent| {
            let kind = if schema.text.get(parent).copied().unwrap_or(text) { "TEXT COLLATE NOCASE" } else { "INT" };
            let action = ["", "ON DELETE CASCADE", "ON DELETE SET NULL"][rng.usize(0..3)];
            format!("p {kind} REFERENCES t{parent}(id) {action}")
        });
        schema.ddl.push_str(&format!(
            "CREATE TABLE t{table} ({id}, u INT {unique}, n INT NOT NULL CHECK (n < 9), s INT, {reference}, UNIQUE (n, s, p));\n"
        ));
        schema.tables.push(format!("t{table}"));
        schema.text.push(text);
        schema.parents.push(parent);
    }
    schema
}

impl Schema {
    fn id(&self, rng: &mut Rng, table: usize) -> String {
        let id = rng.u32(1..7);
        if self.text[table] { format!("'{}'", ["a", "B", "c", "A", "b", "d"][id as usize - 1]) } else { id.to_string() }
    }

    fn reference(&self, rng: &mut Rng, table: usize) -> String {
        match self.parents[table] {
            Some(parent) if rng.u32(0..4) > 0 => self.id(rng, parent),
            _ => "NULL".to_owned(),
        }
    }

    fn statement(&self, rng: &mut Rng) -> String {
        let table = rng.usize(0..self.tables.len());
        let (name, id) = (&self.tables[table], self.id(rng, table));
        let number = |rng: &mut Rng| if rng.u32(0..8) == 0 { "NULL".to_owned() } else { rng.u32(0..6).to_string() };
        match rng.u32(0..10) {
            0..4 => {
                let or = ["", "OR REPLACE", "OR IGNORE"][rng.usize(0..3)];
                let values = [number(rng), rng.u32(0..10).to_string(), number(rng), self.reference(rng, table)];
                format!("INSERT {or} INTO {name} VALUES ({id}, {})", values.join(", "))
            }
            4 => format!("UPDATE {name} SET u = {}, n = {} WHERE id = {id}", number(rng), rng.u32(0..10)),
            5 => format!("UPDATE {name} SET s = s + {} WHERE id = {id}", rng.i32(-3..4)),
            6 => format!("UPDATE {name} SET p = {} WHERE id = {id}", self.reference(rng, table)),
            7 => format!("UPDATE {name} SET u = 5 - u"),
            8 => format!("DELETE FROM {name} WHERE id = {id}"),
            _ => format!("UPDATE {name} SET u = {} WHERE id = {id}", number(rng)),
        }
    }

    fn statements(&self, rng: &mut Rng) -> String {
        (0..rng.usize(1..4)).map(|_| self.statement(rng)).collect::<Vec<_>>().join("; ")
    }
}

/// Merges a pending unit into the model of the server, as far as it fits, and returns what becomes of it.
fn merge(desk: &Desk, number: u64) -> Outcome {
    let unit = desk.pending.iter().find(|unit| unit.number == number).unwrap();
    desk.server.execute_batch("BEGIN").unwrap();
    let mut refused = None;
    for (table, change) in &unit.changes {
        let heading = desk.heading(table);
        let key = |first: usize| {
            let terms = heading.key.iter().enumerate();
            terms
                .map(|(place, column)| format!("{} = ?{}", quote_name(&heading.columns[usize::from(*column)]), place + first))
                .collect::<Vec<_>>()
                .join(" AND ")
        };
        let (sql, values): (String, Vec<Value>) = match change {
            RowChange::Delete { key: of, .. } => (format!("DELETE FROM {table} WHERE {}", key(1)), of.clone()),
            RowChange::Insert { row } => {
                let marks = vec!["?"; row.len()].join(", ");
                (format!("INSERT INTO {table} VALUES ({marks})"), row.clone())
            }
            RowChange::Update { key: of, fields, .. } => {
                let terms = fields.iter().enumerate();
                let terms: Vec<String> =
                    terms.map(|(place, field)| format!("{} = ?{}", heading.columns[usize::from(field.column)], place + 1)).collect();
                let values = fields.iter().map(|field| field.after.clone()).chain(of.iter().cloned());
                (format!("UPDATE {table} SET {} WHERE {}", terms.join(", "), key(fields.len() + 1)), values.collect())
            }
        };
        let bound = values.iter().map(dockmaster::store::sqlite::SqlValue);
        if let Err(error) = desk.server.execute(&sql, params_from_iter(bound)) {
            refused = Some(error.to_string());
        }
    }
    match refused {
        None if rows(&desk.server, "PRAGMA foreign_key_check").is_empty() && desk.server.execute_batch("COMMIT").is_ok() => {
            Outcome::Merged { conflicts: Vec::new(), keys: Vec::new() }
        }
        refused => {
            desk.server.execute_batch("ROLLBACK").unwrap();
            Outcome::Held { reason: refused.unwrap_or_else(|| "at commit".to_owned()) }
        }
    }
}

fn some_confirm(desk: &Desk, rng: &mut Rng) -> Option<Confirm> {
    let unit = desk.pending.get(rng.usize(0..desk.pending.len().max(1)))?;
    Some(match rng.u32(0..8) {
        0 => confirm(unit.number, Outcome::Ignored { reason: "no".to_owned() }),
        1 => confirm(unit.number, Outcome::Returned { reason: "why".to_owned() }),
        2 => confirm(unit.number, Outcome::Held { reason: "wait".to_owned() }),
        // All of it lost: the confirm comes alone.
        3 => merged(unit.number),
        _ => confirm(unit.number, merge(desk, unit.number)),
    })
}

fn run(seed: u64) -> (usize, usize) {
    let mut rng = Rng::with_seed(seed);
    let schema = schema(&mut rng);
    let tables: Vec<&str> = schema.tables.iter().map(String::as_str).collect();
    let mut desk = Desk::new(&schema.ddl, &tables);
    for table in &tables {
        if rng.bool() {
            let columns = [("s".to_owned(), ConflictPolicy::Sum)].into();
            desk.rule(table, "two-way", MergeRules { columns, ..Default::default() });
        }
    }
    let (mut most_pending, mut most_suspended) = (0, 0);
    for _ in 0..rng.usize(10..32) {
        match rng.u32(0..10) {
            0..5 => {
                desk.edit(&schema.statements(&mut rng));
            }
            5 => {
                // A key changes.
                let table = rng.usize(0..tables.len());
                let (from, to) = (schema.id(&mut rng, table), schema.id(&mut rng, table));
                desk.edit(&format!("UPDATE {} SET id = {to} WHERE id = {from}", tables[table]));
            }
            _ => {
                let mut units = Vec::new();
                for _ in 0..rng.usize(1..4) {
                    let before = desk.tables(&desk.server);
                    if rng.bool() {
                        desk.on_server(&schema.statements(&mut rng));
                    }
                    // Each unit is confirmed once in a transaction, as what is pending is only known after it.
                    let named: Vec<u64> =
                        units.iter().flat_map(|(_, confirms): &(_, Vec<Confirm>)| confirms).map(|confirm| confirm.unit.number.0).collect();
                    let confirms: Vec<Confirm> = if rng.u32(0..4) == 0 {
                        some_confirm(&desk, &mut rng).filter(|confirm| !named.contains(&confirm.unit.number.0)).into_iter().collect()
                    } else {
                        Vec::new()
                    };
                    units.push((desk.difference(&before), confirms));
                }
                desk.try_apply(&units).unwrap();
                desk.check();
            }
        }
        most_pending = most_pending.max(desk.pending.len());
        most_suspended = most_suspended.max(desk.suspended().len());
    }
    // In the end all of it is answered, in any order.
    while !desk.pending.is_empty() {
        let before = desk.tables(&desk.server);
        let number = desk.pending[rng.usize(0..desk.pending.len())].number;
        let outcome = match merge(&desk, number) {
            Outcome::Held { reason } => Outcome::Ignored { reason },
            outcome => outcome,
        };
        desk.apply(desk.difference(&before), vec![confirm(number, outcome)]);
    }
    assert_eq!(desk.tables(&desk.app), desk.tables(&desk.server));
    (most_pending, most_suspended)
}

#[test]
fn r20_r21_r30_r32_r37_f40_f42_f43_f46_300_random_runs_are_server_view_and_pending() {
    let setting = |name: &str, usual: u64| std::env::var(name).ok().map_or(usual, |text| text.parse().unwrap());
    let (from, runs) = (setting("DOCKMASTER_SEED", 0), setting("DOCKMASTER_RUNS", 300));
    let (mut pending, mut suspended) = (0, 0);
    for seed in from..from + runs {
        let ran = std::panic::catch_unwind(|| run(seed));
        let (most_pending, most_suspended) = ran.unwrap_or_else(|_| panic!("DOCKMASTER_SEED={seed}"));
        pending += usize::from(most_pending > 2);
        suspended += usize::from(most_suspended > 0);
    }
    eprintln!("of {runs} runs {pending} had three pending units or more, {suspended} had suspended ones");
    let enough = |runs_with: usize, of_hundred: u64| runs_with as u64 * 100 > runs * of_hundred;
    assert!(
        enough(pending, 33) && enough(suspended, 20),
        "the runs met too little: {pending} with pending units, {suspended} with suspended ones"
    );
}
