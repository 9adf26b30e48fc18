//! R9 over random definitions: rules by which rows keep each other alive are refused, by name and with a way out, whatever the foreign
//! keys look like; and nothing else is.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests: a test fails by panicking")]

use dockmaster::rules::check::{Checked, check};
use dockmaster::rules::graph::ScopeGraph;
use dockmaster::rules::problem::SourceFile;
use dockmaster::store::predicate::PredicateChecker;
use dockmaster::store::schema::read_schema;
use fastrand::Rng;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

#[derive(Debug, Clone, PartialEq)]
enum Rule {
    Own,
    Everyone,
    /// By every object that refers to it.
    Referenced,
    /// By these.
    ReferencedBy(Vec<usize>),
}

/// An object's table has the number of the object.
#[derive(Debug, Clone)]
struct Object {
    table: usize,
    members: Vec<(usize, usize)>,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Draft {
    tables: usize,
    /// Foreign keys: from, to. The column is named by the place in this list.
    keys: Vec<(usize, usize)>,
    reference: Vec<usize>,
    objects: BTreeMap<usize, Object>,
    /// Keys that are accepted as dangling.
    dangling: BTreeSet<usize>,
}

fn name(table: usize) -> String {
    format!("t{table}")
}

impl Draft {
    fn random(rng: &mut Rng) -> Draft {
        let tables = rng.usize(2..=7);
        let keys: Vec<(usize, usize)> = (0..rng.usize(1..=tables * 2)).map(|_| (rng.usize(0..tables), rng.usize(0..tables))).collect();
        let mut draft = Draft { tables, keys, reference: Vec::new(), objects: BTreeMap::new(), dangling: BTreeSet::new() };
        let mut order: Vec<usize> = (0..tables).collect();
        rng.shuffle(&mut order);
        let mut taken = BTreeSet::new();
        for table in order {
            if !taken.insert(table) {
                continue;
            }
            match rng.u32(0..12) {
                0 => draft.reference.push(table),
                1 => {}
                _ => {
                    let mut object = Object { table, members: Vec::new(), rules: Vec::new() };
                    for (key, (from, to)) in draft.keys.iter().enumerate() {
                        let belongs = *to == table || object.members.iter().any(|(member, _)| member == to);
                        if belongs && from != to && rng.u32(0..4) == 0 && taken.insert(*from) {
                            object.members.push((*from, key));
                        }
                    }
                    draft.objects.insert(table, object);
                }
            }
        }
        let numbers: Vec<usize> = draft.objects.keys().copied().collect();
        for number in numbers {
            let (all, itself) = (draft.referring(number), draft.refers(number, number));
            let mut rules = Vec::new();
            for _ in 0..rng.usize(1..=2) {
                let mut named: Vec<usize> = all.iter().copied().chain(itself.then_some(number)).collect();
                named.retain(|_| rng.u32(0..3) > 0);
                rules.push(match rng.u32(0..10) {
                    0..3 => Rule::Own,
                    3 => Rule::Everyone,
                    4..7 if !all.is_empty() => Rule::Referenced,
                    _ if !named.is_empty() => Rule::ReferencedBy(named),
                    _ => Rule::Own,
                });
            }
            draft.objects.get_mut(&number).unwrap().rules = rules;
        }
        draft
    }

    fn tables_of(&self, object: usize) -> Vec<usize> {
        self.objects
            .get(&object)
            .map_or(Vec::new(), |object| std::iter::once(object.table).chain(object.members.iter().map(|(member, _)| *member)).collect())
    }

    /// Whether a table of an object has a foreign key to another's primary table.
    fn refers(&self, from: usize, to: usize) -> bool {
        let tables = self.tables_of(from);
        self.keys.iter().any(|key| tables.contains(&key.0) && key.1 == to)
    }

    fn referring(&self, to: usize) -> Vec<usize> {
        self.objects.keys().copied().filter(|from| *from != to && self.refers(*from, to)).collect()
    }

    /// The objects whose rows show rows of this one.
    fn shown_by(&self, object: usize) -> BTreeSet<usize> {
        let mut by = BTreeSet::new();
        for rule in &self.objects[&object].rules {
            match rule {
                Rule::Own | Rule::Everyone => {}
                Rule::Referenced => by.extend(self.referring(object)),
                Rule::ReferencedBy(named) => by.extend(named),
            }
        }
        by
    }

    /// Everything that rows of an object hang on, over any number of rules.
    fn hangs_on(&self, object: usize) -> BTreeSet<usize> {
        let (mut found, mut open) = (BTreeSet::new(), vec![object]);
        while let Some(next) = open.pop() {
            open.extend(self.shown_by(next).into_iter().filter(|by| found.insert(*by)));
        }
        found
    }

    /// Objects that hang on themselves.
    fn circular(&self) -> BTreeSet<usize> {
        self.objects.keys().copied().filter(|object| self.hangs_on(*object).contains(object)).collect()
    }

    fn schema(&self) -> String {
        let mut sql = String::new();
        for table in 0..self.tables {
            write!(sql, "CREATE TABLE {}(id INTEGER PRIMARY KEY, owner INTEGER", name(table)).unwrap();
            for (key, (_, to)) in self.keys.iter().enumerate().filter(|(_, (from, _))| *from == table) {
                write!(sql, ", k{key} INTEGER REFERENCES {}(id)", name(*to)).unwrap();
            }
            sql.push_str(");\n");
        }
        sql
    }

    fn text(&self) -> String {
        let list = |names: Vec<String>| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let reference = list(self.reference.iter().map(|table| name(*table)).collect());
        let mut text = format!("version = 1\nreference = [{reference}]\n[node]\np = {{ type = \"integer\" }}\n");
        for (number, object) in &self.objects {
            let members = object.members.iter().map(|(member, key)| format!("{{ table = \"{}\", on = [\"k{key}\"] }}", name(*member)));
            writeln!(text, "[object.{}]\nmembers = [{}]", name(*number), members.collect::<Vec<_>>().join(", ")).unwrap();
            for (at, rule) in object.rules.iter().enumerate() {
                let rule = match rule {
                    Rule::Own => format!("{}.owner = node.p", name(*number)),
                    Rule::Everyone => "everyone".to_owned(),
                    Rule::Referenced => "referenced".to_owned(),
                    Rule::ReferencedBy(by) => {
                        format!("referenced by {}", by.iter().map(|by| name(*by)).collect::<Vec<_>>().join(", "))
                    }
                };
                writeln!(text, "visible.r{at} = '{rule}'").unwrap();
            }
        }
        for table in 0..self.tables {
            let keys = self.dangling.iter().filter(|key| self.keys[**key].0 == table).map(|key| format!("{}.k{key}", name(table)));
            let keys: Vec<String> = keys.collect();
            if !keys.is_empty() {
                writeln!(text, "[table.{}]\ndangling = [{}]", name(table), list(keys)).unwrap();
            }
        }
        text
    }

    fn check(&self) -> Checked {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(&self.schema()).unwrap();
        let source = SourceFile { name: "d".into(), text: self.text() };
        check(&[source], &read_schema(&connection).unwrap(), &PredicateChecker)
    }

    /// Accepts as dangling what `check` says may be, until nothing is left but circles. Returns what it says of these.
    fn closed(&mut self) -> Vec<(String, String)> {
        loop {
            let checked = self.check();
            let mut circles = Vec::new();
            let before = self.dangling.len();
            for problem in &checked.problems {
                let hint = problem.hint.clone().unwrap_or_default();
                if let Some(circle) = problem.message.strip_prefix("circle: ") {
                    circles.push((circle.to_owned(), hint));
                    continue;
                }
                let key = hint.split_once("dangling = [\"").and_then(|(_, rest)| rest.split_once('"')?.0.split_once(".k")?.1.parse().ok());
                self.dangling.insert(key.unwrap_or_else(|| panic!("{problem}\n{}{}", self.schema(), self.text())));
            }
            if self.dangling.len() == before {
                assert_eq!(checked.problems.len(), circles.len(), "{:?}\n{}{}", checked.problems, self.schema(), self.text());
                if circles.is_empty() {
                    let dock = checked.dock.unwrap();
                    assert!(ScopeGraph::compile(&dock).is_ok(), "{}{}", self.schema(), self.text());
                }
                return circles;
            }
        }
    }

    /// Demands that tables which refer to themselves are named with both ways out, unless everybody sees all of them.
    fn assert_self_references_named(&self) {
        let checked = self.check();
        for (key, (from, to)) in self.keys.iter().enumerate().filter(|(_, (from, to))| from == to) {
            let Some(object) = self.objects.keys().find(|object| self.tables_of(**object).contains(from)) else { continue };
            let is_said = checked.problems.iter().any(|problem| {
                let hint = problem.hint.clone().unwrap_or_default();
                problem.message.contains(&format!("({}.k{key}): a table that refers to itself", name(*to)))
                    && hint.contains("visible = 'everyone'")
                    && hint.contains(&format!("dangling = [\"{}.k{key}\"]", name(*to)))
            });
            assert_eq!(is_said, !self.objects[object].rules.contains(&Rule::Everyone), "{}{}", self.schema(), self.text());
        }
    }
}

/// The objects that a message names, each with the rule that closes the circle at it.
fn named(message: &str) -> Vec<(usize, String)> {
    let parts = message.trim_end_matches('\'').split("', ");
    parts.map(|part| part.split_once(" '").map(|(name, rule)| (name[1..].parse().unwrap(), rule.to_owned())).unwrap()).collect()
}

#[test]
fn r9_random_definitions_are_refused_exactly_where_rows_could_keep_each_other_alive() {
    let (mut refused, mut passed, mut itself) = (0, 0, 0);
    for seed in 9_000..9_400 {
        let mut rng = Rng::with_seed(seed);
        let mut draft = Draft::random(&mut rng);
        draft.assert_self_references_named();
        let circles = draft.closed();
        let context = || format!("seed {seed}\n{}{}{circles:#?}", draft.schema(), draft.text());
        let circular = draft.circular();
        assert_eq!(circles.is_empty(), circular.is_empty(), "{}", context());
        let mut all = BTreeSet::new();
        for (message, hint) in &circles {
            let named = named(message);
            for (at, (object, rule)) in named.iter().enumerate() {
                let (by, _) = named[(at + 1) % named.len()];
                assert!(draft.shown_by(*object).contains(&by), "t{object} is not shown by t{by}: {}", context());
                assert!(rule == "referenced" || rule.contains(&format!("t{by}")), "{}", context());
            }
            if named.len() == 1 {
                itself += 1;
                assert!(hint.contains("'everyone'") && hint.contains("dangling"), "{}", context());
            } else {
                assert!(["rule of its own", "'everyone'", "dangling"].iter().all(|way| hint.contains(way)), "{}", context());
            }
            all.extend(named.into_iter().map(|(object, _)| object));
        }
        // Whoever hangs on itself is named, or hangs together with somebody who is.
        assert!(all.is_subset(&circular), "{}", context());
        for object in &circular {
            let together = |other: &usize| draft.hangs_on(*object).contains(other) && draft.hangs_on(*other).contains(object);
            assert!(all.iter().any(together), "t{object} is in a circle that is not named: {}", context());
        }
        if circles.is_empty() {
            passed += 1;
            continue;
        }
        refused += 1;
        // What the hint says ends it: object after object gets a rule of its own, or is everybody's.
        let mut circles = circles.clone();
        for _ in 0..draft.objects.len() {
            let Some((message, _)) = circles.first() else { break };
            let named = named(message);
            let object = named[rng.usize(0..named.len())].0;
            let way = if rng.bool() { Rule::Own } else { Rule::Everyone };
            draft.objects.get_mut(&object).unwrap().rules = vec![way];
            circles = draft.closed();
        }
        assert!(circles.is_empty() && draft.circular().is_empty(), "{}{circles:#?}", draft.text());
    }
    assert!(refused > 100 && passed > 100 && itself > 20, "{refused} refused, {passed} passed, {itself} by themselves");
}
