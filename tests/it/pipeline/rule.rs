//! Random rules of every kind, and row predicates that are evaluated here as they are written there.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::schema::{Class, Shape, Table};
use crate::oracle::Closure;
use dockmaster::model::dock::DockTable;
use dockmaster::model::value::Value;
use fastrand::Rng;
use std::sync::Arc;

/// A rule as its text.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) predicate: Option<Test>,
    pub(crate) window: Option<String>,
}

impl Rule {
    pub(crate) fn toml(&self) -> String {
        if self.predicate.is_none() && self.window.is_none() {
            return format!("'{}'", self.text);
        }
        let predicate = self.predicate.as_ref().map(|test| format!(", where = \"{}\"", test.sql())).unwrap_or_default();
        let window = self.window.as_ref().map(|window| format!(", window = '{window}'")).unwrap_or_default();
        format!("{{ rule = '{}'{predicate}{window} }}", self.text)
    }
}

/// A row predicate.
#[derive(Debug, Clone)]
pub(crate) enum Test {
    Null(String),
    Above(String, i64),
    /// By bytes.
    Is(String, &'static str),
    /// Without case.
    Folded(String, &'static str),
    Both(Box<Test>, Box<Test>),
    Either(Box<Test>, Box<Test>),
}

impl Test {
    pub(crate) fn sql(&self) -> String {
        match self {
            Test::Null(column) => format!("{column} IS NULL"),
            Test::Above(column, number) => format!("{column} > {number}"),
            Test::Is(column, text) => format!("{column} = '{text}'"),
            Test::Folded(column, text) => format!("{column} COLLATE NOCASE = '{text}'"),
            Test::Both(a, b) => format!("({} AND {})", a.sql(), b.sql()),
            Test::Either(a, b) => format!("({} OR {})", a.sql(), b.sql()),
        }
    }

    /// Binds names to places in a captured row.
    pub(crate) fn bind(self, table: &DockTable) -> Closure {
        let names: Vec<String> = table.columns.iter().map(|column| column.name.clone()).collect();
        Arc::new(move |row: &[Value]| self.holds(&names, row))
    }

    /// Whether it is true; without NOT, what is NULL counts as false everywhere.
    fn holds(&self, names: &[String], row: &[Value]) -> bool {
        let at = |column: &String| &row[names.iter().position(|name| name == column).unwrap()];
        match self {
            Test::Null(column) => at(column).is_null(),
            Test::Above(column, number) => match at(column) {
                Value::Null => false,
                Value::Integer(value) => value > number,
                Value::Real(value) => *value > *number as f64,
                Value::Text(_) | Value::Blob(_) => true,
            },
            Test::Is(column, text) => *at(column) == Value::text(text),
            Test::Folded(column, text) => matches!(at(column), Value::Text(bytes) if bytes.eq_ignore_ascii_case(text.as_bytes())),
            Test::Both(a, b) => a.holds(names, row) && b.holds(names, row),
            Test::Either(a, b) => a.holds(names, row) || b.holds(names, row),
        }
    }
}

/// Draws rules.
pub(crate) struct Drawing<'a> {
    pub(crate) shape: &'a Shape,
    pub(crate) rng: &'a mut Rng,
    /// Node attributes that a rule may end at.
    pub(crate) attributes: &'a [(String, Class)],
}

/// Whether two classes may be joined; what `check` still refuses is mended there.
fn joins(a: Class, b: Class) -> bool {
    a == b || a == Class::Any || b == Class::Any
}

impl Drawing<'_> {
    fn pick<'t>(&mut self, list: &'t [usize]) -> Option<&'t usize> {
        if list.is_empty() { None } else { Some(&list[self.rng.usize(0..list.len())]) }
    }

    fn any_column(&mut self, table: &Table) -> usize {
        self.rng.usize(0..table.columns.len())
    }

    fn joined(&mut self, table: &Table, class: Class) -> Option<usize> {
        let fitting: Vec<usize> = (0..table.columns.len()).filter(|column| joins(table.columns[*column].class, class)).collect();
        // Mostly by what is meant to be joined.
        let good: Vec<usize> =
            fitting.iter().copied().filter(|column| table.is_key(*column) || table.columns[*column].name.starts_with('r')).collect();
        if self.rng.u32(0..3) > 0 && !good.is_empty() { self.pick(&good).copied() } else { self.pick(&fitting).copied() }
    }

    fn filter(&mut self, table: &Table) -> String {
        if self.rng.u32(0..4) > 0 {
            return String::new();
        }
        let at = self.any_column(table);
        let column = &table.columns[at];
        match column.class {
            Class::Int => format!(", {} = {}", column.name, self.rng.i64(1..=3)),
            Class::Text(_) => format!(", {} = \"a\"", column.name),
            Class::Any => format!(", {} = 1", column.name),
            Class::Date => String::new(),
        }
    }

    /// ` -> U(col).` with the column that goes on left out; returns U.
    fn hop(&mut self, class: Class, arrow: &str) -> Option<(String, usize)> {
        let to = self.rng.usize(0..self.shape.tables.len());
        let shape = self.shape;
        let table = &shape.tables[to];
        let column = self.joined(table, class)?;
        Some((format!(" {arrow} {}({}{}).", table.name, table.columns[column].name, self.filter(table)), to))
    }

    /// A derived attribute and its class.
    pub(crate) fn node_path(&mut self, from: &str, class: Class) -> Option<(String, Class)> {
        let mut text = format!("node.{from}");
        let mut class = class;
        for _ in 0..self.rng.usize(1..=2) {
            let recursive = self.rng.u32(0..3) == 0;
            let (hop, to) = self.hop(class, if recursive { "->*" } else { "->" })?;
            let shape = self.shape;
            let table = &shape.tables[to];
            let out: Vec<usize> =
                (0..table.columns.len()).filter(|column| !recursive || joins(table.columns[*column].class, class)).collect();
            let column = &table.columns[*self.pick(&out)?];
            text += &hop;
            text += &column.name;
            class = column.class;
        }
        Some((text, class))
    }

    /// `T.col -> U(col).col = node.NAME`
    fn path(&mut self, table: usize) -> Option<String> {
        let shape = self.shape;
        let own = &shape.tables[table];
        let mut text;
        let mut class;
        let composite = own.foreign_keys.iter().find(|key| key.columns.len() > 1).filter(|_| self.rng.bool());
        if let Some(key) = composite {
            let to = &shape.tables[key.to];
            let out = self.any_column(to);
            text = format!("{}.({}) -> {}({}).{}", own.name, own.names(&key.columns), to.name, to.names(&to.key), to.columns[out].name);
            class = to.columns[out].class;
        } else {
            let start = self.any_column(own);
            text = format!("{}.{}", own.name, own.columns[start].name);
            class = own.columns[start].class;
        }
        for _ in 0..[0, 0, 1, 1, 2, 3][self.rng.usize(0..6)] {
            let (hop, to) = self.hop(class, "->")?;
            let out = self.any_column(&shape.tables[to]);
            let column = &shape.tables[to].columns[out];
            text += &hop;
            text += &column.name;
            class = column.class;
        }
        let fitting: Vec<usize> = (0..self.attributes.len()).filter(|at| joins(self.attributes[*at].1, class)).collect();
        let attribute = *self.pick(&fitting)?;
        Some(format!("{text} = node.{}", self.attributes[attribute].0))
    }

    fn test(&mut self, table: usize, depth: u32) -> Test {
        if depth > 0 && self.rng.u32(0..4) == 0 {
            let pair = (Box::new(self.test(table, depth - 1)), Box::new(self.test(table, depth - 1)));
            return if self.rng.bool() { Test::Both(pair.0, pair.1) } else { Test::Either(pair.0, pair.1) };
        }
        let shape = self.shape;
        let at = self.any_column(&shape.tables[table]);
        let column = &shape.tables[table].columns[at];
        let name = column.name.clone();
        match (column.class, self.rng.u32(0..4)) {
            (_, 0) => Test::Null(name),
            (Class::Int | Class::Any, _) => Test::Above(name, self.rng.i64(0..4)),
            (_, 1) => Test::Folded(name, ["a", "B"][self.rng.usize(0..2)]),
            _ => Test::Is(name, ["a", "A", "b"][self.rng.usize(0..3)]),
        }
    }

    pub(crate) fn window(&mut self, table: usize) -> Option<String> {
        let column = self.shape.tables[table].columns.iter().find(|column| column.class == Class::Date)?;
        Some(format!("{} within {} days", column.name, self.rng.u32(1..8)))
    }

    /// A rule of any kind.
    pub(crate) fn rule(&mut self, name: String, table: usize) -> Rule {
        let text = match self.rng.u32(0..12) {
            0 => "everyone".to_owned(),
            1..4 if self.shape.tables.iter().any(|other| other.foreign_keys.iter().any(|key| key.to == table)) => "referenced".to_owned(),
            _ => (0..8).find_map(|_| self.path(table)).unwrap_or_else(|| "everyone".to_owned()),
        };
        let narrowed = self.rng.u32(0..4) == 0;
        let predicate = narrowed.then(|| self.test(table, 1));
        let window = if self.rng.u32(0..4) == 0 { self.window(table) } else { None };
        Rule { name, text, predicate, window }
    }
}
