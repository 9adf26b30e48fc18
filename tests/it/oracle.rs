//! The oracle: what each node sees, by the meaning of every rule and nothing else.
//!
//! Plain vectors of rows, nested loops, no index, no counts, no keys. It shares the definition's data types with the
//! product and none of its code: equality, dates, models and joins are written here a second time, so that an error
//! in one is not an error in both.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use dockmaster::base::ids::NodeName;
use dockmaster::model::dock::{AttributeSource, Direction, Dock, Hop, Reference, RuleKind, Window};
use dockmaster::model::node::Node;
use dockmaster::model::value::{Collation, Row, RowKey, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A row predicate of the definition, written again in Rust.
pub(crate) type Closure = Arc<dyn Fn(&[Value]) -> bool + Send + Sync>;

/// Everything that decides what nodes see, as of one moment.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) dock: Dock,
    /// Per table its rows, in no order.
    pub(crate) rows: Vec<Vec<Row>>,
    /// Active nodes.
    pub(crate) nodes: BTreeMap<NodeName, Node>,
    pub(crate) day: i64,
    /// SQL text of each predicate -> the same in Rust.
    pub(crate) predicates: BTreeMap<String, Closure>,
}

/// The rows that a node sees: (table name, key) -> the columns that it gets.
pub(crate) type View = BTreeMap<(String, RowKey), Row>;

/// Returns whether SQL's `=` holds between two values under a collation.
pub(crate) fn equal(a: &Value, b: &Value, collation: Collation) -> bool {
    match (a, b) {
        (Value::Integer(a), Value::Integer(b)) => a == b,
        (Value::Real(a), Value::Real(b)) => a == b,
        (Value::Integer(integer), Value::Real(real)) | (Value::Real(real), Value::Integer(integer)) => {
            real.fract() == 0.0 && real.abs() < 1e18 && *real as i64 == *integer
        }
        (Value::Text(a), Value::Text(b)) => match collation {
            Collation::Binary => a == b,
            Collation::NoCase => a.eq_ignore_ascii_case(b),
            Collation::Rtrim => {
                let trimmed = |text: &[u8]| String::from_utf8_lossy(text).trim_end_matches(' ').to_owned();
                trimmed(a) == trimmed(b)
            }
        },
        (Value::Blob(a), Value::Blob(b)) => a == b,
        _ => false,
    }
}

/// Returns days since 1970 of a date text or of seconds since 1970; `None` if it is no date.
fn day(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(seconds) => Some(if *seconds >= 0 { seconds / 86_400 } else { -((86_399 - seconds) / 86_400) }),
        Value::Text(bytes) => {
            let text = std::str::from_utf8(bytes).ok()?;
            let (year, month, day) = (text.get(0..4)?, text.get(5..7)?, text.get(8..10)?);
            if text.as_bytes()[4] != b'-' || text.as_bytes()[7] != b'-' {
                return None;
            }
            let numbers = [year, month, day].map(|part| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse::<i64>().ok())?);
            let [Some(year), Some(month), Some(day)] = numbers else { return None };
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            let length = *lengths.get(usize::try_from(month - 1).ok()?)?;
            if day < 1 || day > length {
                return None;
            }
            // Days before the year 0000-01-01 reckoned in the proleptic calendar, minus those of 1970.
            let before = |year: i64| year * 365 + (year + 3) / 4 - (year + 99) / 100 + (year + 399) / 400;
            let months: i64 = lengths[..usize::try_from(month - 1).ok()?].iter().sum();
            Some(before(year) - before(1970) + months + day - 1)
        }
        _ => None,
    }
}

impl World {
    /// Returns what a node is sent: its rows, without upload objects, whose rows stay where they were written.
    pub(crate) fn view(&self, node: &NodeName) -> View {
        let seen = self.visible(node);
        let mut view = View::new();
        for (table, declared) in self.dock.tables.iter().enumerate() {
            let Some(object) = declared.object else { continue };
            if self.dock.objects[object].direction == Direction::Upload {
                continue;
            }
            for row in &seen[table] {
                let sent = declared.columns.iter().zip(row).filter(|(column, _)| column.sent).map(|(_, value)| value.clone()).collect();
                view.insert((declared.name.clone(), self.key(table, row)), sent);
            }
        }
        view
    }

    /// Returns the view of every node.
    pub(crate) fn views(&self) -> BTreeMap<NodeName, View> {
        self.nodes.keys().map(|name| (name.clone(), self.view(name))).collect()
    }

    /// Returns per table the rows that a node sees, upload objects included.
    pub(crate) fn visible(&self, node: &NodeName) -> Vec<Vec<Row>> {
        let node = &self.nodes[node];
        let mut seen: Vec<Option<Vec<Row>>> = vec![None; self.dock.tables.len()];
        let values = self.attribute_values(node);
        for table in 0..self.dock.tables.len() {
            self.visible_rows(node, &values, table, &mut seen);
        }
        seen.into_iter().map(Option::unwrap_or_default).collect()
    }

    pub(crate) fn key(&self, table: usize, row: &Row) -> RowKey {
        self.dock.tables[table].key.iter().map(|column| row[*column].clone()).collect()
    }

    fn visible_rows(&self, node: &Node, values: &[Vec<Value>], table: usize, seen: &mut Vec<Option<Vec<Row>>>) {
        if seen[table].is_some() {
            return;
        }
        let declared = &self.dock.tables[table];
        let mut found: Vec<Row> = Vec::new();
        if let Some(reference) = &declared.member_of {
            self.visible_rows(node, values, reference.to_table, seen);
            let parents = seen[reference.to_table].as_ref().unwrap();
            found.extend(self.rows[table].iter().filter(|row| parents.iter().any(|parent| self.refers(reference, row, parent))).cloned());
        } else if let Some(object) = declared.object {
            for (number, rule) in self.dock.rules.iter().enumerate() {
                if rule.object != object || !self.has_rule(node, number) {
                    continue;
                }
                if let RuleKind::Referenced(references) = &rule.kind {
                    for reference in references {
                        self.visible_rows(node, values, reference.table, seen);
                    }
                }
                found.extend(self.rows[table].iter().filter(|row| self.rule_shows(number, values, table, row, seen)).cloned());
            }
            found.sort();
            found.dedup();
        }
        seen[table] = Some(found);
    }

    /// Whether one rule alone makes a row visible; what it refers through must be in `seen`.
    fn rule_shows(&self, number: usize, values: &[Vec<Value>], table: usize, row: &Row, seen: &[Option<Vec<Row>>]) -> bool {
        let rule = &self.dock.rules[number];
        let mut windows = rule.window.iter().chain(&self.dock.objects[rule.object].window);
        let fits = rule.predicate.as_ref().is_none_or(|predicate| self.predicates[&predicate.sql](row))
            && windows.all(|window| self.within(window, row));
        let holds = match &rule.kind {
            RuleKind::Nobody => false,
            RuleKind::Everyone => true,
            RuleKind::Path(path) => self.leads(table, row, &path.start, &path.hops, &values[path.attribute]),
            RuleKind::Referenced(references) => references
                .iter()
                .any(|reference| seen[reference.table].as_ref().unwrap().iter().any(|source| self.refers(reference, source, row))),
        };
        fits && holds
    }

    /// Returns the names of the rules that show a row to a node; a member's are those that show its parents.
    pub(crate) fn rules_of(&self, node: &NodeName, table: usize, row: &Row) -> BTreeSet<String> {
        let seen: Vec<Option<Vec<Row>>> = self.visible(node).into_iter().map(Some).collect();
        let node = &self.nodes[node];
        self.rules_in(node, &self.attribute_values(node), table, row, &seen)
    }

    fn rules_in(&self, node: &Node, values: &[Vec<Value>], table: usize, row: &Row, seen: &[Option<Vec<Row>>]) -> BTreeSet<String> {
        let declared = &self.dock.tables[table];
        if let Some(reference) = &declared.member_of {
            let parents = self.rows[reference.to_table].iter().filter(|parent| self.refers(reference, row, parent));
            return parents.flat_map(|parent| self.rules_in(node, values, reference.to_table, parent, seen)).collect();
        }
        let Some(object) = declared.object else { return BTreeSet::new() };
        let rules = self.dock.rules.iter().enumerate().filter(|(number, rule)| rule.object == object && self.has_rule(node, *number));
        rules.filter(|(number, _)| self.rule_shows(*number, values, table, row, seen)).map(|(_, rule)| rule.name.clone()).collect()
    }

    fn within(&self, window: &Window, row: &Row) -> bool {
        match day(&row[window.column]) {
            None => true,
            Some(date) => date + i64::from(window.days) >= self.day,
        }
    }

    /// Whether `row` refers to `target` by a foreign key.
    fn refers(&self, reference: &Reference, row: &Row, target: &Row) -> bool {
        (0..reference.columns.len()).all(|at| {
            let (left, right) = (reference.columns[at], reference.to_columns[at]);
            // SQLite's foreign keys compare under the collation of the column referred to.
            equal(&row[left], &target[right], self.dock.tables[reference.to_table].columns[right].collation)
        })
    }

    /// In a path a primary key says how it is compared; between two keys or none the right side does.
    fn joined_under(&self, left_table: usize, left: usize, right_table: usize, right: usize) -> Collation {
        let (left_table, right_table) = (&self.dock.tables[left_table], &self.dock.tables[right_table]);
        if left_table.key.contains(&left) && !right_table.key.contains(&right) {
            left_table.columns[left].collation
        } else {
            right_table.columns[right].collation
        }
    }

    /// Whether a chain that starts at columns of a row leads to one of the values.
    fn leads(&self, table: usize, row: &Row, from: &[usize], hops: &[Hop], wanted: &[Value]) -> bool {
        let Some(hop) = hops.first() else {
            let collation = self.dock.tables[table].columns[from[0]].collation;
            return wanted.iter().any(|value| equal(&row[from[0]], value, collation));
        };
        self.rows[hop.table].iter().any(|next| {
            self.filtered(hop, next)
                && (0..from.len()).all(|at| {
                    let collation = self.joined_under(table, from[at], hop.table, hop.join[at]);
                    equal(&row[from[at]], &next[hop.join[at]], collation)
                })
                && self.leads(hop.table, next, &hop.out, &hops[1..], wanted)
        })
    }

    fn filtered(&self, hop: &Hop, row: &Row) -> bool {
        hop.filters.iter().all(|(column, literal)| equal(&row[*column], literal, self.dock.tables[hop.table].columns[*column].collation))
    }

    fn attribute_values(&self, node: &Node) -> Vec<Vec<Value>> {
        let mut values: Vec<Vec<Value>> = Vec::new();
        for attribute in &self.dock.attributes {
            values.push(match &attribute.source {
                AttributeSource::Given { .. } => node.attributes.get(&attribute.name).cloned().unwrap_or_default(),
                AttributeSource::Derived { from, hops } => {
                    let mut set = values[*from].clone();
                    for hop in hops {
                        let mut reached = self.step(&hop.hop, &set);
                        if hop.recursive {
                            let mut all: BTreeSet<Value> = set.iter().cloned().collect();
                            while !reached.iter().all(|value| all.contains(value)) {
                                all.extend(reached);
                                reached = self.step(&hop.hop, &all.iter().cloned().collect::<Vec<_>>());
                            }
                            reached = all.into_iter().collect();
                        }
                        set = reached;
                    }
                    set
                }
            });
        }
        values
    }

    fn step(&self, hop: &Hop, from: &[Value]) -> Vec<Value> {
        let mut out = Vec::new();
        for row in &self.rows[hop.table] {
            let collation = self.dock.tables[hop.table].columns[hop.join[0]].collation;
            if self.filtered(hop, row) && from.iter().any(|value| equal(value, &row[hop.join[0]], collation)) {
                out.push(row[hop.out[0]].clone());
            }
        }
        out
    }

    /// Whether a node's model has a rule: `without` takes any rule out; `only` takes out the path rules that it does not name. A model
    /// that nobody declared has none.
    fn has_rule(&self, node: &Node, rule: usize) -> bool {
        let rule = &self.dock.rules[rule];
        let (object, own) = rule.name.split_once('.').unwrap();
        let named = |patterns: &[String]| {
            [format!("{object}.{own}"), format!("*.{own}"), format!("{object}.*")].iter().any(|name| patterns.contains(name))
        };
        let Some(name) = &node.model else { return true };
        let Some(model) = self.dock.models.iter().find(|model| model.name == *name) else { return false };
        if named(&model.without) {
            return false;
        }
        match (&model.only, &rule.kind) {
            (Some(only), RuleKind::Path(_)) => named(only),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oracle_days_are_those_of_the_calendar() {
        for (text, expected) in [("1970-01-01", 0), ("1970-01-02 23:59", 1), ("2000-03-01", 11_017), ("1996-07-04 00:00:00.000", 9_681)] {
            assert_eq!(day(&Value::text(text)), Some(expected), "{text}");
        }
        assert_eq!(day(&Value::Integer(-1)), Some(-1));
        for text in ["1999-02-29", "1999-13-01", "tomorrow", "1999/01/01", ""] {
            assert_eq!(day(&Value::text(text)), None, "{text}");
        }
    }
}
