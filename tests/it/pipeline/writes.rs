//! Random transactions on the server database, in plain SQL, as any program writes them. A statement may fail: that is part of the game.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::schema::{Class, Shape, Table, insert, some_row, value};
use fastrand::Rng;

/// One statement, or a few that belong together.
fn statement(shape: &Shape, rng: &mut Rng) -> Vec<String> {
    let table = &shape.tables[rng.usize(0..shape.tables.len())];
    let name = &table.name;
    let or = ["", "", "OR REPLACE ", "OR REPLACE ", "OR IGNORE ", "OR FAIL "][rng.usize(0..6)];
    let any = |rng: &mut Rng| {
        let written = table.written();
        written[rng.usize(0..written.len())]
    };
    vec![match rng.u32(0..20) {
        0..6 => insert(or, table, rng),
        6 => {
            let set = table.written().into_iter().filter(|column| !table.is_key(*column)).map(|column| &table.columns[column].name);
            let set: Vec<String> = set.map(|name| format!("{name} = excluded.{name}")).collect();
            format!("{} ON CONFLICT DO UPDATE SET {}", insert("", table, rng), set.join(", "))
        }
        7..11 => {
            let column = &table.columns[any(rng)];
            format!("UPDATE {or}{name} SET {} = {} WHERE {}", column.name, value(column, rng), some_row(table, rng))
        }
        11 => {
            // Every row, or those with a value.
            let (column, other) = (&table.columns[any(rng)], &table.columns[any(rng)]);
            format!("UPDATE {or}{name} SET {} = {} WHERE {} = {}", column.name, value(column, rng), other.name, value(other, rng))
        }
        12 => {
            let key = &table.columns[table.key[rng.usize(0..table.key.len())]];
            format!("UPDATE {or}{name} SET {} = {} WHERE {}", key.name, value(key, rng), some_row(table, rng))
        }
        13..16 => format!("DELETE FROM {name} WHERE {}", some_row(table, rng)),
        16 => {
            let column = &table.columns[any(rng)];
            format!("DELETE FROM {name} WHERE {} = {}", column.name, value(column, rng))
        }
        17 => return swap(table, any(rng)),
        18 => same_but(table, any(rng)),
        _ => {
            let columns = table.names(&table.written());
            format!("INSERT {or}INTO {name}({columns}) SELECT {columns} FROM {name} WHERE {}", some_row(table, rng))
        }
    }]
}

/// Two values of a column change places, over a third.
fn swap(table: &Table, column: usize) -> Vec<String> {
    let (name, column) = (&table.name, &table.columns[column]);
    let (one, other, third) = match column.class {
        Class::Int | Class::Any => ("1", "2", "77"),
        Class::Text(_) | Class::Date => ("'a'", "'b'", "'zz'"),
    };
    let set = |to: &str, from: &str| format!("UPDATE {name} SET {0} = {to} WHERE {0} = {from}", column.name);
    vec![set(third, one), set(one, other), set(other, third)]
}

/// A value that SQLite holds equal, under the column's collation or by its number.
fn same_but(table: &Table, column: usize) -> String {
    let (name, column) = (&table.name, &table.columns[column]);
    let column_name = &column.name;
    let to = match column.class {
        Class::Text("RTRIM") => format!("rtrim({column_name}) || ' '"),
        Class::Text(_) | Class::Date => {
            format!("iif({column_name} = lower({column_name}) COLLATE BINARY, upper({column_name}), lower({column_name}))")
        }
        Class::Int | Class::Any => format!(
            "CASE typeof({column_name}) WHEN 'integer' THEN CAST({column_name} AS REAL) WHEN 'real' THEN CAST({column_name} AS INTEGER) ELSE {column_name} END"
        ),
    };
    format!("UPDATE {name} SET {column_name} = {to}")
}

/// The statements of one transaction.
pub(crate) fn transaction(shape: &Shape, rng: &mut Rng) -> Vec<String> {
    let mut statements = Vec::new();
    for _ in 0..rng.usize(1..=6) {
        if rng.u32(0..8) == 0 {
            statements.push("SAVEPOINT part".to_owned());
            for _ in 0..rng.usize(1..=3) {
                statements.extend(statement(shape, rng));
            }
            if rng.u32(0..3) > 0 {
                statements.push("ROLLBACK TO part".to_owned());
            }
            statements.push("RELEASE part".to_owned());
        } else {
            statements.extend(statement(shape, rng));
        }
    }
    statements
}

/// Rows to begin with.
pub(crate) fn first_rows(shape: &Shape, rng: &mut Rng) -> Vec<String> {
    let mut statements = Vec::new();
    for table in &shape.tables {
        for _ in 0..rng.usize(2..=7) {
            statements.push(insert("OR IGNORE ", table, rng));
        }
    }
    statements
}

/// Runs statements in one transaction; what fails, fails. Returns whether it was committed.
pub(crate) fn run(connection: &rusqlite::Connection, statements: &[String], commit: bool) -> bool {
    connection.execute_batch("BEGIN").unwrap();
    for statement in statements {
        // Refused by a constraint, or the savepoint is gone with a transaction that was rolled back.
        let _refused = connection.execute_batch(statement);
    }
    let committed = commit && !connection.is_autocommit() && connection.execute_batch("COMMIT").is_ok();
    if !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK").unwrap();
    }
    committed
}
