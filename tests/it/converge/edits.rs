//! What programs write, on nodes and on the server, in plain SQL: they know the rows that are there, and mostly make sense.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::shape::MARKS;
use crate::pipeline::schema::{Class, Shape, Table, value};
use crate::pipeline::writes;
use dockmaster::model::value::Value;
use dockmaster::store::sqlite::value_of;
use fastrand::Rng;
use rusqlite::Connection;

/// Draws statements for one database.
pub(super) struct Edits<'a> {
    pub(super) shape: &'a Shape,
    pub(super) rng: &'a mut Rng,
    pub(super) database: &'a Connection,
    /// Where keys of new rows begin, so that most do not meet those of others.
    pub(super) block: i64,
}

impl Edits<'_> {
    /// Columns that this database has and a statement may write.
    fn written(&self, table: &Table) -> Vec<usize> {
        let sql = format!("SELECT name FROM pragma_table_info('{}')", table.name);
        let here: Vec<String> =
            self.database.prepare(&sql).unwrap().query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
        table.written().into_iter().filter(|column| here.contains(&table.columns[*column].name)).collect()
    }

    /// A row that is there, by its key, as a condition.
    fn some_row(&mut self, table: &Table) -> Option<String> {
        let terms = self.some_key(table)?;
        let terms = table.key.iter().zip(terms).map(|(key, value)| format!("{} = {value}", table.columns[*key].name));
        Some(terms.collect::<Vec<_>>().join(" AND "))
    }

    fn some_key(&mut self, table: &Table) -> Option<Vec<Value>> {
        let count: i64 = self.database.query_row(&format!("SELECT count(*) FROM {}", table.name), [], |row| row.get(0)).ok()?;
        if count == 0 {
            return None;
        }
        let at = self.rng.i64(0..count);
        let key = table.names(&table.key);
        let sql = format!("SELECT {key} FROM {} ORDER BY {key} LIMIT 1 OFFSET {at}", table.name);
        let values = |row: &rusqlite::Row<'_>| (0..table.key.len()).map(|at| row.get_ref(at).map(value_of)).collect();
        self.database.query_row(&sql, [], values).ok()
    }

    /// A value for a column: what refers to a row mostly refers to one that is there.
    fn value(&mut self, table: &Table, column: usize) -> String {
        let declared = &table.columns[column];
        let refers = table.foreign_keys.iter().find(|key| key.columns.contains(&column));
        if let Some(key) = refers
            && self.rng.u32(0..8) > 0
        {
            let place = key.columns.iter().position(|own| *own == column).unwrap();
            let shape = self.shape;
            if let Some(values) = self.some_key(&shape.tables[key.to]) {
                return values[place].to_string();
            }
        }
        match (declared.name.as_bytes()[0], declared.class) {
            (b'u', Class::Text(_)) if self.rng.bool() => format!("'u{}'", self.rng.u32(0..30)),
            (b's', Class::Text(_)) if self.rng.bool() => format!("'s{}'", self.rng.u32(0..99)),
            (b'n' | b'm' | b'q', Class::Int) if self.rng.bool() => self.rng.i64(0..60).to_string(),
            _ => value(declared, self.rng),
        }
    }

    fn new_key(&mut self, table: &Table, column: usize) -> String {
        let number = if self.rng.u32(0..5) == 0 { self.rng.i64(1..8) } else { self.block + self.rng.i64(0..40) };
        match table.columns[column].class {
            Class::Int => number.to_string(),
            Class::Text(_) => format!("'k{number}'"),
            _ => value(&table.columns[column], self.rng),
        }
    }

    fn insert(&mut self, or: &str, table: &Table) -> String {
        let by_itself =
            table.key.len() == 1 && table.columns[table.key[0]].class == Class::Int && !table.without_rowid && self.rng.u32(0..4) == 0;
        let columns: Vec<usize> = self.written(table).into_iter().filter(|column| !(by_itself && table.is_key(*column))).collect();
        let values: Vec<String> = columns
            .iter()
            .map(|column| if table.is_key(*column) { self.new_key(table, *column) } else { self.value(table, *column) })
            .collect();
        format!("INSERT {or}INTO {}({}) VALUES({})", table.name, table.names(&columns), values.join(", "))
    }

    fn any_table(&mut self) -> usize {
        loop {
            let number = self.rng.usize(0..self.shape.tables.len());
            if self.shape.tables[number].name != MARKS {
                return number;
            }
        }
    }

    fn update(&mut self, or: &str, table: &Table, keys_too: bool) -> Option<String> {
        let row = self.some_row(table)?;
        let columns: Vec<usize> = self.written(table).into_iter().filter(|column| keys_too || !table.is_key(*column)).collect();
        let mut set = Vec::new();
        for _ in 0..[1, 1, 1, 2, 3][self.rng.usize(0..5)] {
            let column = columns[self.rng.usize(0..columns.len())];
            let name = &table.columns[column].name;
            if set.iter().any(|text: &String| text.starts_with(&format!("{name} ="))) {
                continue;
            }
            let to = match name.as_bytes()[0] {
                b'q' if self.rng.u32(0..4) > 0 => format!("{name} + {}", self.rng.i64(-5..=5)),
                b'm' if self.rng.u32(0..3) > 0 => format!("coalesce({name}, 0) + {}", self.rng.i64(1..=3)),
                _ if table.is_key(column) => self.new_key(table, column),
                _ => self.value(table, column),
            };
            set.push(format!("{name} = {to}"));
        }
        Some(format!("UPDATE {or}{} SET {} WHERE {row}", table.name, set.join(", ")))
    }

    /// A few statements that belong together.
    fn statement(&mut self) -> Vec<String> {
        let shape = self.shape;
        let table = &shape.tables[self.any_table()];
        let or = ["", "", "", "OR REPLACE ", "OR IGNORE ", "OR FAIL "][self.rng.usize(0..6)];
        let some = match self.rng.u32(0..40) {
            0..18 => self.update(or, table, false),
            18..26 => Some(self.insert(or, table)),
            26..30 => self.some_row(table).map(|row| format!("DELETE FROM {} WHERE {row}", table.name)),
            30 | 31 => self.update(or, table, true),
            32 => {
                // A program saves a row as a whole.
                let columns = self.written(table);
                let names = table.names(&columns);
                let changed = columns[self.rng.usize(0..columns.len())];
                let to = self.value(table, changed);
                let row = self.some_row(table);
                let values: Vec<String> = columns
                    .iter()
                    .map(
                        |column| {
                            if *column == changed && !table.is_key(*column) { to.clone() } else { table.columns[*column].name.clone() }
                        },
                    )
                    .collect();
                row.map(|row| format!("INSERT OR REPLACE INTO {0}({names}) SELECT {1} FROM {0} WHERE {row}", table.name, values.join(", ")))
            }
            33 => {
                // Gone and back again.
                let columns = self.written(table);
                let names = table.names(&columns);
                let row = self.some_row(table);
                return row.map_or_else(Vec::new, |row| {
                    vec![
                        format!("CREATE TEMP TABLE kept AS SELECT {names} FROM {} WHERE {row}", table.name),
                        format!("DELETE FROM {} WHERE {row}", table.name),
                        format!("INSERT OR IGNORE INTO {0}({names}) SELECT {names} FROM kept", table.name),
                        "DROP TABLE temp.kept".to_owned(),
                    ]
                });
            }
            34 => {
                // Two unique values change places.
                let name = format!("u{}", table.name);
                if !table.columns.iter().any(|column| column.name == name) {
                    return Vec::new();
                }
                let (Some(one), Some(other)) = (self.some_row(table), self.some_row(table)) else { return Vec::new() };
                return vec![
                    format!(
                        "CREATE TEMP TABLE kept AS SELECT (SELECT {name} FROM {0} WHERE {one}) AS a, (SELECT {name} FROM {0} WHERE {other}) AS b",
                        table.name
                    ),
                    format!("UPDATE {} SET {name} = 'between' WHERE {one}", table.name),
                    format!("UPDATE {} SET {name} = (SELECT a FROM kept) WHERE {other}", table.name),
                    format!("UPDATE {} SET {name} = (SELECT b FROM kept) WHERE {one}", table.name),
                    "DROP TABLE temp.kept".to_owned(),
                ];
            }
            35 => {
                // A parent with its children.
                let mut statements = vec![self.insert("", table)];
                for (child, other) in shape.tables.iter().enumerate() {
                    if other.foreign_keys.iter().any(|key| shape.tables[key.to].name == table.name) && self.rng.bool() {
                        let child = &shape.tables[child];
                        statements.push(self.insert("", child));
                    }
                }
                return statements;
            }
            36 => {
                let (to, name) = (self.value(table, table.written()[0]), &table.name);
                let columns: Vec<usize> = self.written(table).into_iter().filter(|column| !table.is_key(*column)).collect();
                let column = columns[self.rng.usize(0..columns.len())];
                let to = if table.is_key(column) { to } else { self.value(table, column) };
                Some(format!("UPDATE OR IGNORE {name} SET {} = {to}", table.columns[column].name))
            }
            37 => return self.moved_children(),
            _ => self.update("", table, false),
        };
        some.into_iter().collect()
    }

    /// Children move to another parent, and theirs is deleted.
    pub(super) fn moved_children(&mut self) -> Vec<String> {
        let shape = self.shape;
        let keys: Vec<_> = shape.tables.iter().flat_map(|table| table.foreign_keys.iter().map(move |key| (table, key))).collect();
        let single: Vec<_> = keys.into_iter().filter(|(_, key)| key.columns.len() == 1).collect();
        if single.is_empty() {
            return Vec::new();
        }
        let (table, key) = single[self.rng.usize(0..single.len())];
        let parent = &shape.tables[key.to];
        let (Some(from), Some(to)) = (self.some_key(parent), self.some_key(parent)) else { return Vec::new() };
        if from == to {
            return Vec::new();
        }
        let (child, column, own) = (&table.name, &table.columns[key.columns[0]].name, &parent.columns[parent.key[0]].name);
        vec![
            format!("UPDATE {child} SET {column} = {} WHERE {column} = {}", to[0], from[0]),
            format!("DELETE FROM {} WHERE {own} = {}", parent.name, from[0]),
        ]
    }

    /// The statements of one transaction.
    pub(super) fn transaction(&mut self, wild: bool) -> Vec<String> {
        let mut statements = Vec::new();
        if wild && self.rng.u32(0..4) == 0 {
            let mut shape = self.shape.clone();
            shape.tables.retain(|table| table.name != MARKS);
            return writes::transaction(&shape, self.rng);
        }
        for _ in 0..self.rng.usize(1..=3) {
            statements.extend(self.statement());
        }
        statements
    }
}
