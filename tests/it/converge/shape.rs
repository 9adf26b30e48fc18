//! Random schemas and definitions for nodes that write: tables with foreign keys, unique values, sums and dates of change, seen by
//! random rules, with a random policy for each.
//!
//! The table `w` is upload-only; each unit of a node puts one row with its own text there, and a trigger of the server counts it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use crate::pipeline::definition::{Defined, accept, bind};
use crate::pipeline::schema::{Class, ForeignKey, Shape, Table, column};
use dockmaster::model::dock::Dock;
use dockmaster::model::merge_rules::{ConflictPolicy, DeletePolicy, KeySource};
use dockmaster::model::schema::Schema;
use fastrand::Rng;
use std::collections::BTreeSet;
use std::fmt::Write;

/// The table of marker rows.
pub(super) const MARKS: &str = "w";

/// What the server counts marker rows with. It is in no definition.
pub(super) const AUDIT: &str = "CREATE TABLE audit(at INTEGER PRIMARY KEY, told TEXT)";
const AUDIT_TRIGGER: &str = "CREATE TRIGGER own0w AFTER INSERT ON w BEGIN INSERT INTO audit(told) VALUES (NEW.tw); END";

fn bare(letter: char, rng: &mut Rng) -> Table {
    let mut columns = Vec::new();
    let text = |rng: &mut Rng| Class::Text(["BINARY", "NOCASE"][rng.usize(0..2)]);
    let (key, without_rowid) = match rng.u32(0..8) {
        0..5 => {
            columns.push(column(format!("id{letter}"), Class::Int, true));
            (vec![0], false)
        }
        5 | 6 => {
            let class = text(rng);
            columns.push(column(format!("code{letter}"), class, true));
            (vec![0], rng.bool())
        }
        _ => {
            columns.push(column(format!("x{letter}"), Class::Int, true));
            let class = text(rng);
            columns.push(column(format!("y{letter}"), class, true));
            (vec![0, 1], rng.bool())
        }
    };
    let name = text(rng);
    columns.push(column(format!("own{letter}"), Class::Int, false));
    columns.push(column(format!("n{letter}"), Class::Int, false));
    columns.push(column(format!("s{letter}"), name, rng.u32(0..6) == 0));
    columns.push(column(format!("q{letter}"), Class::Int, rng.bool()));
    columns.push(column(format!("m{letter}"), Class::Int, false));
    let unique = text(rng);
    columns.push(column(format!("u{letter}"), unique, false));
    Table {
        name: letter.to_string(),
        columns,
        key,
        foreign_keys: Vec::new(),
        without_rowid,
        indexes: Vec::new(),
        triggers: (Vec::new(), Vec::new()),
    }
}

fn marks() -> Table {
    let mut table = bare('w', &mut Rng::with_seed(0));
    table.columns = vec![column("idw".into(), Class::Int, true), column("tw".into(), Class::Text("BINARY"), true)];
    (table.key, table.without_rowid) = (vec![0], false);
    table.triggers.0 = vec![AUDIT_TRIGGER.to_owned()];
    table
}

fn refer(tables: &mut [Table], number: usize, rng: &mut Rng) {
    let to = rng.usize(0..number);
    let target = tables[to].clone();
    let table = &mut tables[number];
    let mut columns = Vec::new();
    let not_null = rng.u32(0..5) == 0;
    for key in &target.key {
        let known = table.columns.len();
        table.columns.push(column(format!("r{known}{}", table.name), target.columns[*key].class, not_null));
        columns.push(known);
    }
    let actions = ["", "", " ON DELETE CASCADE", " ON DELETE CASCADE", " ON DELETE SET NULL", " ON DELETE CASCADE ON UPDATE CASCADE"];
    let action = loop {
        let action = actions[rng.usize(0..actions.len())];
        if !(not_null && action.contains("NULL")) {
            break action;
        }
    };
    table.foreign_keys.push(ForeignKey { columns, to, action });
}

/// A trigger of the server's programs on a table: it writes the row itself, or another table.
fn trigger(tables: &mut [Table], number: usize, rng: &mut Rng) {
    let table = &tables[number];
    let name = &table.name;
    let own = table.key.iter().map(|key| format!("{0} = NEW.{0}", table.columns[*key].name)).collect::<Vec<_>>().join(" AND ");
    let event = ["INSERT", "UPDATE"][rng.usize(0..2)];
    let parent = table.foreign_keys.iter().find(|key| key.columns.len() == 1);
    let body = match (rng.u32(0..3), parent) {
        (0, Some(key)) => {
            let to = &tables[key.to];
            let (to_key, refers) = (&to.columns[to.key[0]].name, &table.columns[key.columns[0]].name);
            format!("UPDATE {0} SET q{0} = q{0} - 1 WHERE {to_key} = NEW.{refers}", to.name)
        }
        (1, _) => format!("UPDATE {name} SET m{name} = coalesce(m{name}, 0) + 1 WHERE {own}"),
        _ => format!("UPDATE {name} SET s{name} = 'seen' WHERE {own} AND n{name} = 3"),
    };
    let text = format!("CREATE TRIGGER own{number}{name} AFTER {event} ON {name} BEGIN {body}; END");
    tables[number].triggers.0.push(text);
}

/// A schema whose rows mostly get along.
pub(super) fn tame(rng: &mut Rng) -> Shape {
    let count = rng.usize(1..=4);
    let mut tables: Vec<Table> = Vec::new();
    for number in 0..count {
        let letter = char::from(b'a' + u8::try_from(number).unwrap());
        tables.push(bare(letter, rng));
        if number > 0 {
            for _ in 0..[0, 1, 1, 2][rng.usize(0..4)] {
                refer(&mut tables, number, rng);
            }
        }
        if rng.u32(0..3) > 0 {
            let folded = if rng.u32(0..3) == 0 { " COLLATE NOCASE" } else { "" };
            let partial = if rng.bool() { format!(" WHERE n{letter} > 1") } else { String::new() };
            tables[number].indexes.push(format!("CREATE UNIQUE INDEX i0{letter} ON {letter}(u{letter}{folded}){partial}"));
        }
    }
    if rng.bool() {
        for number in 0..count {
            if rng.bool() {
                trigger(&mut tables, number, rng);
            }
        }
    }
    tables.push(marks());
    Shape { tables, uploads: true }
}

/// A definition over a tame schema.
pub(super) fn define(shape: &Shape, schema: &Schema, rng: &mut Rng) -> Defined {
    for _ in 0..200 {
        let mut dangling = BTreeSet::new();
        let drawn = draw(shape, rng);
        for _ in 0..8 {
            let source = text(&drawn, shape, &dangling);
            match accept(&source, schema) {
                Ok((mut dock, text)) => {
                    policies(&mut dock, rng);
                    let given = vec![("p".to_owned(), Class::Int)];
                    let predicates = bind(&[], &dock);
                    return Defined {
                        source,
                        text,
                        dock,
                        schema: schema.clone(),
                        predicates,
                        tests: Vec::new(),
                        given,
                        models: Vec::new(),
                    };
                }
                Err(problems) => {
                    let hints = problems.iter().filter_map(|problem| problem.hint.as_deref()?.split_once("dangling = [\""));
                    let more: Vec<String> = hints.filter_map(|(_, rest)| Some(rest.split_once('"')?.0.to_owned())).collect();
                    let before = dangling.len();
                    dangling.extend(more);
                    if dangling.len() == before {
                        break;
                    }
                }
            }
        }
    }
    panic!("no definition was accepted over {:?}", shape.statements());
}

/// Lines of the definition, by table.
fn draw(shape: &Shape, rng: &mut Rng) -> Vec<(usize, String)> {
    let mut drawn = Vec::new();
    let mut members = BTreeSet::new();
    for (number, table) in shape.tables.iter().enumerate() {
        let name = &table.name;
        if name == MARKS {
            drawn.push((number, "direction = \"upload\"\nvisible = 'everyone'\n".to_owned()));
            continue;
        }
        if members.contains(&number) {
            continue;
        }
        let mut lines = String::new();
        let child = shape.tables.iter().enumerate().find(|(other, child)| {
            !members.contains(other) && *other > number && child.foreign_keys.iter().filter(|key| key.to == number).count() == 1
        });
        if let Some((other, child)) = child
            && rng.u32(0..3) == 0
        {
            members.insert(other);
            writeln!(lines, "members = [\"{}\"]", child.name).unwrap();
        }
        if rng.u32(0..12) == 0 {
            lines += "direction = \"download\"\n";
        }
        if rng.bool() {
            lines += "give_away = true\n";
        }
        if rng.bool() {
            lines += "writable = true\n";
        }
        let parent = table.foreign_keys.first().filter(|key| key.columns.len() == 1);
        match (rng.u32(0..8), parent) {
            (0..3, _) => writeln!(lines, "visible.all = 'everyone'").unwrap(),
            (3, Some(key)) => {
                let to = &shape.tables[key.to];
                let (start, join) = (&table.columns[key.columns[0]].name, &to.columns[to.key[0]].name);
                writeln!(lines, "visible.path = '{name}.{start} -> {0}({join}).own{0} = node.p'", to.name).unwrap();
            }
            (4, _) if shape.tables[number + 1..].iter().any(|other| other.foreign_keys.iter().any(|key| key.to == number)) => {
                writeln!(lines, "visible.needed = 'referenced'").unwrap();
                if rng.bool() {
                    writeln!(lines, "visible.own = '{name}.own{name} = node.p'").unwrap();
                }
            }
            _ => writeln!(lines, "visible.own = '{name}.own{name} = node.p'").unwrap(),
        }
        drawn.push((number, lines));
    }
    drawn
}

fn text(drawn: &[(usize, String)], shape: &Shape, dangling: &BTreeSet<String>) -> String {
    let mut text = "version = 1\n[node]\np = { type = \"integer\", many = true }\n".to_owned();
    for (number, lines) in drawn {
        writeln!(text, "[object.{}]\n{lines}", shape.tables[*number].name).unwrap();
    }
    for table in &shape.tables {
        let keys: Vec<String> =
            dangling.iter().filter(|key| key.split('.').next() == Some(&table.name)).map(|key| format!("\"{key}\"")).collect();
        if !keys.is_empty() {
            writeln!(text, "[table.{}]\ndangling = [{}]", table.name, keys.join(", ")).unwrap();
        }
    }
    text
}

/// Draws how changes are brought together.
fn policies(dock: &mut Dock, rng: &mut Rng) {
    for table in &mut dock.tables {
        let numbers: Vec<String> =
            table.columns.iter().map(|column| column.name.clone()).filter(|name| name.starts_with('m') || name.starts_with('n')).collect();
        let any = |rng: &mut Rng| match rng.u32(0..5) {
            0 => ConflictPolicy::ClientWins,
            1 => ConflictPolicy::Manual,
            2 if !numbers.is_empty() => ConflictPolicy::Newest(numbers[rng.usize(0..numbers.len())].clone()),
            _ => ConflictPolicy::ServerWins,
        };
        table.merge.policy = any(rng);
        for (place, column) in table.columns.iter().enumerate() {
            if column.name.starts_with('q') && rng.u32(0..4) > 0 {
                table.merge.columns.insert(column.name.clone(), ConflictPolicy::Sum);
            } else if rng.u32(0..6) == 0 {
                let policy = any(rng);
                table.merge.columns.insert(column.name.clone(), policy);
            }
            if !table.key.contains(&place) && table.name != MARKS && !column.name.starts_with('u') && rng.u32(0..16) == 0 {
                table.merge.download_only.push(column.name.clone());
            }
        }
        table.merge.delete = if rng.bool() { DeletePolicy::Wins } else { DeletePolicy::Resurrect };
        table.merge.keys = if table.key_is_rowid && rng.u32(0..4) > 0 { KeySource::Block } else { KeySource::Own };
    }
}
