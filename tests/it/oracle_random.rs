//! Random worlds and units, from a seed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::oracle::{World, equal};
use super::oracle_schemas::{Domain, Subject};
use dockmaster::base::ids::{Incarnation, NodeName};
use dockmaster::cds::unit::{NodeChange, RowChange};
use dockmaster::model::node::{Node, NodeState};
use dockmaster::model::value::{Row, RowKey, Value};
use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet};

/// Names of the nodes of a run.
const NODES: &[&str] = &["ANNA", "BERT", "CARL", "DORA", "EMIL"];

/// One change of the log.
#[derive(Clone)]
pub(crate) enum Step {
    Row(RowChange),
    Node(NodeChange),
    Day(i64),
}

/// A world that changes at random.
pub(crate) struct Random<'a> {
    pub(crate) subject: &'a Subject,
    pub(crate) world: World,
    pub(crate) rng: Rng,
    incarnations: BTreeMap<NodeName, u32>,
}

impl<'a> Random<'a> {
    pub(crate) fn new(subject: &'a Subject, seed: u64) -> Random<'a> {
        let world = World {
            dock: subject.dock.clone(),
            rows: vec![Vec::new(); subject.dock.tables.len()],
            nodes: BTreeMap::new(),
            day: 20_000,
            predicates: subject.predicates.clone(),
        };
        let mut random = Random { subject, world, rng: Rng::with_seed(seed), incarnations: BTreeMap::new() };
        for table in 0..subject.dock.tables.len() {
            for _ in 0..random.rng.usize(0..6) {
                let row = random.row(table);
                random.put(table, row, &mut Vec::new());
            }
        }
        for name in NODES.iter().take(3) {
            random.start(&name.parse().unwrap(), &mut Vec::new());
        }
        random
    }

    /// Changes the world by 1 to 8 operations and returns them in order.
    pub(crate) fn unit(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        for _ in 0..self.rng.usize(1..=8) {
            self.operation(&mut steps);
        }
        steps
    }

    fn operation(&mut self, steps: &mut Vec<Step>) {
        let table = self.rng.usize(0..self.world.rows.len());
        match self.rng.u32(0..100) {
            0..35 => {
                let row = self.row(table);
                self.put(table, row, steps);
            }
            35..60 => {
                let Some(mut row) = self.any_row(table) else { return };
                let column = self.rng.usize(0..row.len());
                // A key column too, now and then: then the old key goes.
                let was = self.world.key(table, &row);
                row[column] = self.value(self.subject.domains[table][column]);
                if self.world.key(table, &row) != was {
                    self.remove(table, &was, steps);
                }
                self.put(table, row, steps);
            }
            60..75 => {
                let Some(row) = self.any_row(table) else { return };
                let key = self.world.key(table, &row);
                self.remove(table, &key, steps);
                if self.rng.u32(0..4) == 0 {
                    let other = self.row(table);
                    let column = self.rng.usize(0..row.len());
                    let mut again = row;
                    if !self.world.dock.tables[table].key.contains(&column) {
                        again[column] = other[column].clone();
                    }
                    self.put(table, again, steps);
                }
            }
            75..80 => {
                let row = self.row(table);
                let key = self.world.key(table, &row);
                self.put(table, row, steps);
                self.remove(table, &key, steps);
            }
            80..83 => {
                // The same key under another type that SQLite holds equal.
                let Some(mut row) = self.any_row(table) else { return };
                if self.world.dock.tables[table].key_is_rowid {
                    return;
                }
                let was = self.world.key(table, &row);
                for column in self.world.dock.tables[table].key.clone() {
                    row[column] = match &row[column] {
                        Value::Integer(integer) => Value::Real(*integer as f64),
                        Value::Real(real) if real.fract() == 0.0 => Value::Integer(*real as i64),
                        other => other.clone(),
                    };
                }
                self.remove(table, &was, steps);
                self.put(table, row, steps);
            }
            83..96 => self.node(steps),
            // Days only go forward (R39): an earlier one changes nothing.
            96 => steps.push(Step::Day(self.world.day - 30)),
            _ => {
                let days = [1, 1, 1, 2, 9, 45][self.rng.usize(0..6)];
                self.world.day += days;
                steps.push(Step::Day(self.world.day));
            }
        }
    }

    fn node(&mut self, steps: &mut Vec<Step>) {
        let name: NodeName = NODES[self.rng.usize(0..NODES.len())].parse().unwrap();
        let Some(mut node) = self.world.nodes.get(&name).cloned() else { return self.start(&name, steps) };
        match self.rng.u32(0..10) {
            0 => self.start(&name, steps),
            1 => {
                self.world.nodes.remove(&name);
                steps.push(Step::Node(if self.rng.bool() {
                    NodeChange::Deleted(name)
                } else {
                    NodeChange::Set(Node { state: NodeState::Disabled, ..node })
                }));
            }
            2 | 3 => {
                node.model = self.model();
                self.set(node, steps);
            }
            _ => {
                node.attributes = self.attributes();
                self.set(node, steps);
            }
        }
    }

    fn start(&mut self, name: &NodeName, steps: &mut Vec<Step>) {
        let incarnation = self.incarnations.entry(name.clone()).or_default();
        *incarnation += 1;
        let incarnation = Incarnation(*incarnation);
        let (model, attributes) = (self.model(), self.attributes());
        // Now and then a node that ran begins anew in band.
        let known = self.world.nodes.get(name).map(|node| node.extracted);
        let extracted = known.filter(|_| self.rng.bool()).unwrap_or(incarnation);
        self.set(Node { name: name.clone(), state: NodeState::Active, incarnation, extracted, model, attributes }, steps);
    }

    fn set(&mut self, node: Node, steps: &mut Vec<Step>) {
        self.world.nodes.insert(node.name.clone(), node.clone());
        steps.push(Step::Node(NodeChange::Set(node)));
    }

    fn model(&mut self) -> Option<String> {
        self.rng.choice(&self.subject.models).cloned().flatten()
    }

    fn attributes(&mut self) -> BTreeMap<String, Vec<Value>> {
        let given = self.subject.given.clone();
        given
            .into_iter()
            .map(|(name, domain, most)| {
                let values: BTreeSet<Value> = (0..self.rng.usize(0..=most)).map(|_| self.value(domain)).collect();
                (name.to_owned(), values.into_iter().collect())
            })
            .collect()
    }

    fn any_row(&mut self, table: usize) -> Option<Row> {
        self.rng.choice(&self.world.rows[table]).cloned()
    }

    fn row(&mut self, table: usize) -> Row {
        let domains = self.subject.domains[table].clone();
        domains.into_iter().map(|domain| self.value(domain)).collect()
    }

    /// Inserts or replaces, as the server would: a row with an equal key goes.
    fn put(&mut self, table: usize, row: Row, steps: &mut Vec<Step>) {
        let declared = &self.world.dock.tables[table];
        let key = self.world.key(table, &row);
        let collations: Vec<_> = declared.key.iter().map(|column| declared.columns[*column].collation).collect();
        let same: Vec<RowKey> = self.world.rows[table]
            .iter()
            .map(|other| self.world.key(table, other))
            .filter(|other| other.iter().zip(&key).zip(&collations).all(|((a, b), collation)| equal(a, b, *collation)))
            .collect();
        for other in same {
            if other == key {
                let at = self.world.rows[table].iter().position(|row| self.world.key(table, row) == key).unwrap();
                self.world.rows[table].swap_remove(at);
            } else {
                self.remove(table, &other, steps);
            }
        }
        self.world.rows[table].push(row.clone());
        steps.push(Step::Row(RowChange { table, key, row: Some(row) }));
    }

    fn remove(&mut self, table: usize, key: &RowKey, steps: &mut Vec<Step>) {
        let world = &mut self.world;
        let Some(at) = world.rows[table].iter().position(|row| world.key(table, row) == *key) else { return };
        world.rows[table].swap_remove(at);
        steps.push(Step::Row(RowChange { table, key: key.clone(), row: None }));
    }

    fn value(&mut self, domain: Domain) -> Value {
        let rng = &mut self.rng;
        let number = |rng: &mut Rng, n: i64| Value::Integer(rng.i64(1..=n));
        let text = |rng: &mut Rng, texts: &[&str]| Value::text(texts[rng.usize(0..texts.len())]);
        let odd = |rng: &mut Rng, n: i64| match rng.u32(0..8) {
            0 | 1 => Value::Real(rng.i64(1..=n) as f64),
            2 => Value::text(&rng.i64(1..=n).to_string()),
            _ => Value::Integer(rng.i64(1..=n)),
        };
        match domain {
            Domain::Id(n) => number(rng, n),
            Domain::Untyped(n) => odd(rng, n),
            Domain::Maybe(_) | Domain::MaybeUntyped(_) if rng.u32(0..7) == 0 => Value::Null,
            Domain::Maybe(n) => number(rng, n),
            Domain::MaybeUntyped(n) => odd(rng, n),
            Domain::Text(texts) => text(rng, texts),
            Domain::MaybeText(_) if rng.u32(0..7) == 0 => Value::Null,
            Domain::MaybeText(texts) => text(rng, texts),
            Domain::Date => {
                let day = self.world.day + rng.i64(-60..20);
                let date = jiff::civil::date(1970, 1, 1).checked_add(jiff::Span::new().days(day)).unwrap();
                match rng.u32(0..8) {
                    0 => Value::Null,
                    1 => Value::text("some day"),
                    2 => Value::Integer(day * 86_400 + 40_000),
                    3 => Value::text(&format!("{date} 12:30:00.000")),
                    _ => Value::text(&date.to_string()),
                }
            }
            Domain::Seconds => match rng.u32(0..8) {
                0 => Value::Null,
                1 => Value::Real(1e9),
                _ => Value::Integer((self.world.day + rng.i64(-60..20)) * 86_400 + rng.i64(0..86_400)),
            },
            Domain::Any => match rng.u32(0..7) {
                0 => Value::Null,
                1 => Value::Real(rng.f64() * 10.0),
                2 => Value::Blob(vec![rng.u8(..), 0]),
                3 => Value::Text(vec![b'a', rng.u8(..)]),
                _ => Value::Integer(rng.i64(0..10)),
            },
        }
    }
}
