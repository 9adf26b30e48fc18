//! Random schemas of a server database, and the random values that its rows take.
//!
//! Value domains are small on purpose: rows must meet, collide, dangle and move between the same few keys. Names of columns end with
//! their table's letter, so that a text which names one means one table.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use fastrand::Rng;
use std::fmt::Write;

/// First window day of every case.
pub(crate) const FIRST_DAY: i64 = 20_000;

/// What may be compared with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Int,
    /// A text, with the collation of its column.
    Text(&'static str),
    /// A column without a type.
    Any,
    /// A text that is a date.
    Date,
}

#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) class: Class,
    pub(crate) not_null: bool,
    /// `GENERATED ALWAYS AS`.
    pub(crate) generated: Option<String>,
    pub(crate) default: Option<&'static str>,
}

/// A foreign key to the primary key of a table.
#[derive(Debug, Clone)]
pub(crate) struct ForeignKey {
    pub(crate) columns: Vec<usize>,
    pub(crate) to: usize,
    pub(crate) action: &'static str,
}

#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) columns: Vec<Column>,
    pub(crate) key: Vec<usize>,
    pub(crate) foreign_keys: Vec<ForeignKey>,
    pub(crate) without_rowid: bool,
    /// Statements.
    pub(crate) indexes: Vec<String>,
    /// Statements; those of the second list come after our triggers.
    pub(crate) triggers: (Vec<String>, Vec<String>),
}

#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) tables: Vec<Table>,
    /// Whether tables may be upload-only.
    pub(crate) uploads: bool,
}

impl Table {
    pub(crate) fn is_key(&self, column: usize) -> bool {
        self.key.contains(&column)
    }

    /// Columns that a statement may write.
    pub(crate) fn written(&self) -> Vec<usize> {
        (0..self.columns.len()).filter(|column| self.columns[*column].generated.is_none()).collect()
    }

    /// The statement that makes it, under any name.
    pub(crate) fn create(&self, name: &str, shape: &Shape) -> String {
        let rowid = self.key.len() == 1 && self.columns[self.key[0]].class == Class::Int && !self.without_rowid;
        let mut parts = Vec::new();
        for (number, column) in self.columns.iter().enumerate() {
            let mut text = format!("{}{}", column.name, type_of(column.class));
            if rowid && self.is_key(number) {
                text += " PRIMARY KEY";
            } else if column.not_null {
                text += " NOT NULL";
            }
            if let Some(default) = column.default {
                write!(text, " DEFAULT {default}").unwrap();
            }
            if let Some(expression) = &column.generated {
                write!(text, " GENERATED ALWAYS AS ({expression})").unwrap();
            }
            parts.push(text);
        }
        if !rowid {
            parts.push(format!("PRIMARY KEY({})", self.names(&self.key)));
        }
        for key in &self.foreign_keys {
            let to = &shape.tables[key.to];
            parts.push(format!("FOREIGN KEY({}) REFERENCES {}({}){}", self.names(&key.columns), to.name, to.names(&to.key), key.action));
        }
        format!("CREATE TABLE {name}({}){}", parts.join(", "), if self.without_rowid { " WITHOUT ROWID" } else { "" })
    }

    pub(crate) fn names(&self, columns: &[usize]) -> String {
        columns.iter().map(|column| self.columns[*column].name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

fn type_of(class: Class) -> String {
    match class {
        Class::Int => " INTEGER".to_owned(),
        Class::Text("BINARY") | Class::Date => " TEXT".to_owned(),
        Class::Text(collation) => format!(" TEXT COLLATE {collation}"),
        Class::Any => String::new(),
    }
}

fn collation(rng: &mut Rng) -> &'static str {
    ["BINARY", "BINARY", "NOCASE", "RTRIM"][rng.usize(0..4)]
}

pub(crate) fn column(name: String, class: Class, not_null: bool) -> Column {
    Column { name, class, not_null, generated: None, default: None }
}

impl Shape {
    pub(crate) fn random(rng: &mut Rng) -> Shape {
        let count = rng.usize(2..=6);
        let mut shape = Shape { tables: Vec::new(), uploads: rng.u32(0..3) == 0 };
        for number in 0..count {
            let letter = char::from(b'a' + u8::try_from(number).unwrap());
            shape.tables.push(bare(letter, rng));
        }
        for number in 0..count {
            for _ in 0..rng.usize(0..=2) {
                shape.refer(number, rng);
            }
        }
        for number in 0..count {
            shape.index(number, rng);
            shape.trigger(number, rng);
        }
        shape
    }

    /// Adds a column, or two, that refer to another table: an earlier one mostly, so that circles are there now and then.
    fn refer(&mut self, number: usize, rng: &mut Rng) {
        let to = if number > 0 && rng.u32(0..4) > 0 { rng.usize(0..number) } else { rng.usize(0..self.tables.len()) };
        if to == number && rng.bool() {
            return;
        }
        let target = self.tables[to].clone();
        let table = &mut self.tables[number];
        let mut columns = Vec::new();
        for key in &target.key {
            let known = table.columns.len();
            table.columns.push(column(format!("r{known}{}", table.name), target.columns[*key].class, false));
            columns.push(known);
        }
        let action = ["", " ON DELETE CASCADE", " ON DELETE SET NULL", " ON DELETE CASCADE ON UPDATE CASCADE"][rng.usize(0..4)];
        // Without a declared key it is a column to be joined by, no more.
        if rng.u32(0..6) > 0 {
            table.foreign_keys.push(ForeignKey { columns, to, action });
        }
    }

    fn index(&mut self, number: usize, rng: &mut Rng) {
        let table = &mut self.tables[number];
        for at in 0..rng.usize(0..=2) {
            let written = table.written();
            let first = written[rng.usize(0..written.len())];
            let mut columns = vec![table.columns[first].name.clone()];
            if rng.bool() {
                let other = written[rng.usize(0..written.len())];
                if other != first {
                    columns.push(table.columns[other].name.clone());
                }
            }
            if rng.u32(0..6) == 0 {
                columns[0] += " COLLATE NOCASE";
            }
            let (unique, partial) = match rng.u32(0..4) {
                0 => ("", String::new()),
                1 => ("UNIQUE ", format!(" WHERE {} IS NOT NULL", table.columns[first].name)),
                _ => ("UNIQUE ", String::new()),
            };
            table.indexes.push(format!("CREATE {unique}INDEX i{at}{0} ON {0}({1}){partial}", table.name, columns.join(", ")));
        }
    }

    fn trigger(&mut self, number: usize, rng: &mut Rng) {
        for at in 0..rng.usize(0..=2) {
            let table = &self.tables[number];
            let other = &self.tables[rng.usize(0..self.tables.len())];
            let own = table.key.iter().map(|key| format!("{0} = NEW.{0}", table.columns[*key].name)).collect::<Vec<_>>().join(" AND ");
            let when = ["BEFORE", "AFTER", "AFTER"][rng.usize(0..3)];
            let event = ["INSERT", "UPDATE", "DELETE"][rng.usize(0..3)];
            let changed = |of: &Table, rng: &mut Rng| {
                let written = of.written();
                let column = &of.columns[written[rng.usize(0..written.len())]];
                format!("{} = {}", column.name, value(column, rng))
            };
            let body = match rng.u32(0..5) {
                0 | 1 if event != "DELETE" && when == "AFTER" => {
                    format!("UPDATE {} SET {} WHERE {own}", table.name, changed(table, rng))
                }
                0..3 => format!("UPDATE {} SET {} WHERE {}", other.name, changed(other, rng), some_row(other, rng)),
                3 => insert("OR IGNORE ", other, rng),
                _ => format!("DELETE FROM {} WHERE {}", other.name, some_row(other, rng)),
            };
            let condition = if rng.bool() { format!(" WHEN {}", if rng.u32(0..3) > 0 { "1" } else { "0" }) } else { String::new() };
            let text = format!("CREATE TRIGGER own{at}{0} {when} {event} ON {0}{condition} BEGIN {body}; END", table.name);
            let triggers = &mut self.tables[number].triggers;
            if rng.bool() { triggers.0.push(text) } else { triggers.1.push(text) }
        }
    }

    /// Every statement, our triggers not being there.
    pub(crate) fn statements(&self) -> Vec<String> {
        let tables = self.tables.iter().map(|table| table.create(&table.name, self));
        let later = self.tables.iter().flat_map(|table| table.indexes.iter().chain(&table.triggers.0).cloned());
        tables.chain(later).collect()
    }
}

/// A table with its key and columns of its own.
fn bare(letter: char, rng: &mut Rng) -> Table {
    let mut columns = Vec::new();
    let (key, without_rowid) = match rng.u32(0..9) {
        0..4 => {
            columns.push(column(format!("id{letter}"), Class::Int, true));
            (vec![0], rng.u32(0..5) == 0)
        }
        4 | 5 => {
            columns.push(column(format!("code{letter}"), Class::Text(collation(rng)), true));
            (vec![0], rng.bool())
        }
        6 => {
            columns.push(column(format!("k{letter}"), Class::Any, true));
            (vec![0], rng.bool())
        }
        _ => {
            columns.push(column(format!("x{letter}"), Class::Int, true));
            columns.push(column(format!("y{letter}"), Class::Text(collation(rng)), true));
            (if rng.bool() { vec![0, 1] } else { vec![1, 0] }, rng.bool())
        }
    };
    for at in 0..rng.usize(1..=3) {
        let class = match rng.u32(0..6) {
            0..3 => Class::Int,
            3 | 4 => Class::Text(collation(rng)),
            _ => Class::Any,
        };
        columns.push(column(format!("{}{at}{letter}", if class == Class::Int { 'n' } else { 's' }), class, rng.u32(0..6) == 0));
    }
    if rng.u32(0..3) == 0 {
        columns.push(column(format!("d{letter}"), Class::Date, false));
    }
    if rng.u32(0..6) == 0
        && let Some(source) = columns.iter().skip(1).find(|column| column.class == Class::Int)
    {
        let stored = if rng.bool() { "+ 1" } else { "% 2" };
        let expression = format!("{} {stored}", source.name);
        columns.push(Column { generated: Some(expression), ..column(format!("g{letter}"), Class::Int, false) });
    }
    let empty = (Vec::new(), Vec::new());
    Table { name: letter.to_string(), columns, key, foreign_keys: Vec::new(), without_rowid, indexes: Vec::new(), triggers: empty }
}

/// A date as its text.
fn date(day: i64) -> String {
    jiff::civil::date(1970, 1, 1).checked_add(jiff::Span::new().days(day)).unwrap().to_string()
}

/// A value that a column may hold, as SQL.
pub(crate) fn value(column: &Column, rng: &mut Rng) -> String {
    if !column.not_null && rng.u32(0..7) == 0 {
        return "NULL".to_owned();
    }
    match column.class {
        Class::Int if rng.u32(0..40) == 0 => ["'x'", "2.5"][rng.usize(0..2)].to_owned(),
        Class::Int => rng.i64(1..=5).to_string(),
        Class::Text(_) => ["'a'", "'A'", "'b'", "'a '", "'B'", "'c'"][rng.usize(0..6)].to_owned(),
        Class::Any => ["1", "1.0", "'1'", "2", "2.0", "x'01'", "'a'", "3"][rng.usize(0..8)].to_owned(),
        Class::Date if rng.u32(0..10) == 0 => "'some day'".to_owned(),
        Class::Date => format!("'{}'", date(FIRST_DAY + rng.i64(-12..12))),
    }
}

/// A condition that one row may fit.
pub(crate) fn some_row(table: &Table, rng: &mut Rng) -> String {
    let terms = table.key.iter().map(|key| {
        let column = &table.columns[*key];
        format!("{} = {}", column.name, value(column, rng))
    });
    terms.collect::<Vec<_>>().join(" AND ")
}

/// An INSERT of one row.
pub(crate) fn insert(or: &str, table: &Table, rng: &mut Rng) -> String {
    let columns = table.written();
    let values: Vec<String> = columns.iter().map(|column| value(&table.columns[*column], rng)).collect();
    format!("INSERT {or}INTO {}({}) VALUES({})", table.name, table.names(&columns), values.join(", "))
}
