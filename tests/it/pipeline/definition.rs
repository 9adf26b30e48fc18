//! Random definitions as text, over a random schema, accepted by the real `check`: what it refuses is mended as it says, or drawn again.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::rule::{Drawing, Rule, Test};
use super::schema::{Class, Shape};
use crate::oracle::Closure;
use dockmaster::model::dock::Dock;
use dockmaster::model::schema::Schema;
use dockmaster::rules::check::check;
use dockmaster::rules::problem::{Problem, SourceFile};
use dockmaster::store::predicate::PredicateChecker;
use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// A definition that `check` accepted.
#[derive(Clone)]
pub(crate) struct Defined {
    pub(crate) source: String,
    /// As `deploy` stores it.
    pub(crate) text: String,
    pub(crate) dock: Dock,
    pub(crate) schema: Schema,
    pub(crate) predicates: BTreeMap<String, Closure>,
    /// Row predicates, each with its table.
    pub(crate) tests: Vec<(String, Test)>,
    /// Attributes that an administrator sets, with their class.
    pub(crate) given: Vec<(String, Class)>,
    pub(crate) models: Vec<String>,
}

struct Object {
    table: usize,
    /// A table and the columns by which it refers to another of the object.
    members: Vec<(usize, Vec<String>)>,
    direction: Option<&'static str>,
    window: Option<String>,
    rules: Vec<Rule>,
}

struct Draft {
    reference: Vec<usize>,
    objects: Vec<Object>,
    /// Name, class, text.
    attributes: Vec<(String, Class, String)>,
    given: usize,
    models: Vec<(String, Vec<String>, Vec<String>)>,
    omit: BTreeMap<usize, Vec<String>>,
    dangling: BTreeSet<String>,
}

/// Draws until a definition is accepted.
pub(crate) fn random(shape: &Shape, schema: &Schema, rng: &mut Rng) -> Defined {
    for _ in 0..200 {
        let mut draft = Draft::random(shape, rng);
        for _ in 0..8 {
            let source = draft.text(shape);
            match accept(&source, schema) {
                Ok((dock, text)) => return draft.defined(source, text, dock, schema, shape),
                Err(problems) => {
                    if !draft.mend(&problems, shape) {
                        break;
                    }
                }
            }
        }
    }
    panic!("no definition was accepted over {:?}", shape.statements());
}

/// Runs `check`.
pub(crate) fn accept(source: &str, schema: &Schema) -> Result<(Dock, String), Vec<Problem>> {
    let checked = check(&[SourceFile { name: "dockmaster.toml".into(), text: source.to_owned() }], schema, &PredicateChecker);
    match checked.dock {
        Some(dock) => Ok((dock, checked.text)),
        None => Err(checked.problems),
    }
}

impl Defined {
    /// The same definition over a schema that changed; `None` if it does not fit any more.
    pub(crate) fn over(&self, schema: &Schema) -> Option<Defined> {
        let (dock, text) = accept(&self.source, schema).ok()?;
        let predicates = bind(&self.tests, &dock);
        Some(Defined { dock, text, predicates, schema: schema.clone(), ..self.clone() })
    }
}

/// Binds predicates to the places of a definition's columns.
pub(crate) fn bind(tests: &[(String, Test)], dock: &Dock) -> BTreeMap<String, Closure> {
    let bound = |(table, test): &(String, Test)| (test.sql(), test.clone().bind(&dock.tables[dock.table(table).unwrap()]));
    tests.iter().map(bound).collect()
}

impl Draft {
    fn random(shape: &Shape, rng: &mut Rng) -> Draft {
        let count = shape.tables.len();
        let mut draft = Draft {
            reference: Vec::new(),
            objects: Vec::new(),
            attributes: Vec::new(),
            given: 0,
            models: Vec::new(),
            omit: BTreeMap::new(),
            dangling: BTreeSet::new(),
        };
        draft.draw_attributes(shape, rng);
        let mut order: Vec<usize> = (0..count).collect();
        rng.shuffle(&mut order);
        let mut taken = BTreeSet::new();
        for table in order {
            if !taken.insert(table) {
                continue;
            }
            match rng.u32(0..10) {
                0 => draft.reference.push(table),
                // Only rules may use it.
                1 if count > 2 => {}
                _ => draft.draw_object(table, &mut taken, shape, rng),
            }
        }
        if draft.objects.is_empty() {
            draft.reference.clear();
            draft.draw_object(0, &mut BTreeSet::from_iter(0..count), shape, rng);
        }
        for (number, table) in shape.tables.iter().enumerate() {
            for (column, declared) in table.columns.iter().enumerate() {
                if rng.u32(0..14) == 0 && !table.is_key(column) && !declared.not_null && declared.generated.is_none() {
                    draft.omit.entry(number).or_default().push(declared.name.clone());
                }
            }
        }
        for name in ["first", "second"].into_iter().take(rng.usize(0..=2)) {
            let mut some = |n: u32| -> Vec<String> {
                let mut patterns = Vec::new();
                for object in &draft.objects {
                    for rule in &object.rules {
                        if rng.u32(0..n) == 0 {
                            let table = &shape.tables[object.table].name;
                            patterns.push(match rng.u32(0..4) {
                                0 => format!("*.{}", rule.name),
                                1 => format!("{table}.*"),
                                _ => format!("{table}.{}", rule.name),
                            });
                        }
                    }
                }
                patterns
            };
            let model = (name.to_owned(), some(2), some(5));
            draft.models.push(model);
        }
        draft
    }

    fn draw_attributes(&mut self, shape: &Shape, rng: &mut Rng) {
        self.attributes.push(("p".to_owned(), Class::Int, "{ type = \"integer\", many = true }".to_owned()));
        if rng.bool() {
            self.attributes.push(("q".to_owned(), Class::Any, "{ type = \"text\", many = true }".to_owned()));
        }
        self.given = self.attributes.len();
        for at in 0..rng.usize(0..=3) {
            let (from, class, _) = self.attributes[rng.usize(0..self.attributes.len())].clone();
            let mut drawing = Drawing { shape, rng, attributes: &[] };
            if let Some((text, class)) = drawing.node_path(&from, class) {
                self.attributes.push((format!("d{at}"), class, format!("'{text}'")));
            }
        }
    }

    fn draw_object(&mut self, table: usize, taken: &mut BTreeSet<usize>, shape: &Shape, rng: &mut Rng) {
        let mut members: Vec<(usize, Vec<String>)> = Vec::new();
        for (number, other) in shape.tables.iter().enumerate() {
            let parents = |to: usize| to == table || members.iter().any(|(member, _)| *member == to);
            if let Some(key) = other.foreign_keys.iter().find(|key| parents(key.to))
                && !taken.contains(&number)
                && rng.u32(0..4) == 0
            {
                taken.insert(number);
                members.push((number, key.columns.iter().map(|column| other.columns[*column].name.clone()).collect()));
            }
        }
        let direction = match rng.u32(0..10) {
            0 if shape.uploads => Some("upload"),
            1 | 2 => Some("download"),
            _ => None,
        };
        let attributes: Vec<(String, Class)> = self.attributes.iter().map(|(name, class, _)| (name.clone(), *class)).collect();
        let mut drawing = Drawing { shape, rng, attributes: &attributes };
        let mut rules = Vec::new();
        for at in 0..drawing.rng.usize(1..=3) {
            rules.push(drawing.rule(format!("r{at}"), table));
        }
        if drawing.rng.u32(0..25) == 0 {
            rules = vec![Rule { name: "r0".to_owned(), text: "nobody".to_owned(), predicate: None, window: None }];
        }
        let window = if drawing.rng.u32(0..4) == 0 { drawing.window(table) } else { None };
        self.objects.push(Object { table, members, direction, window, rules });
    }

    fn text(&self, shape: &Shape) -> String {
        let list = |names: &[String]| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let table = |number: &usize| shape.tables[*number].name.clone();
        let reference: Vec<String> = self.reference.iter().map(table).collect();
        let mut text = format!("version = 1\nreference = [{}]\n[node]\n", list(&reference));
        for (name, _, source) in &self.attributes {
            writeln!(text, "{name} = {source}").unwrap();
        }
        for object in &self.objects {
            writeln!(text, "[object.{}]", table(&object.table)).unwrap();
            let members = object.members.iter().map(|(number, on)| format!("{{ table = \"{}\", on = [{}] }}", table(number), list(on)));
            writeln!(text, "members = [{}]", members.collect::<Vec<_>>().join(", ")).unwrap();
            if let Some(direction) = object.direction {
                writeln!(text, "direction = \"{direction}\"").unwrap();
            }
            if let Some(window) = &object.window {
                writeln!(text, "window = '{window}'").unwrap();
            }
            for rule in &object.rules {
                writeln!(text, "visible.{} = {}", rule.name, rule.toml()).unwrap();
            }
        }
        for (name, only, without) in &self.models {
            writeln!(text, "[model.{name}]").unwrap();
            if !only.is_empty() {
                writeln!(text, "only = [{}]", list(only)).unwrap();
            }
            writeln!(text, "without = [{}]", list(without)).unwrap();
        }
        for (number, declared) in shape.tables.iter().enumerate() {
            let of_table = |key: &&String| key.split('.').next() == Some(&declared.name);
            let dangling: Vec<String> = self.dangling.iter().filter(of_table).cloned().collect();
            let omit = self.omit.get(&number).cloned().unwrap_or_default();
            if !dangling.is_empty() || !omit.is_empty() {
                writeln!(text, "[table.{}]\nomit = [{}]\ndangling = [{}]", declared.name, list(&omit), list(&dangling)).unwrap();
            }
        }
        text
    }

    /// Does what problems say. Returns whether there is a point in asking again.
    fn mend(&mut self, problems: &[Problem], shape: &Shape) -> bool {
        let mut any = false;
        for problem in problems {
            let dangling =
                problem.hint.as_deref().and_then(|hint| hint.split_once("dangling = [\"")).and_then(|(_, rest)| rest.split_once('"'));
            if let Some((key, _)) = dangling {
                any |= self.dangling.insert(key.to_owned());
                continue;
            }
            for object in &mut self.objects {
                let table = &shape.tables[object.table].name;
                let before = object.rules.len();
                object.rules.retain(|rule| !problem.message.starts_with(&format!("{table}.{}: ", rule.name)));
                any |= object.rules.len() != before;
            }
            let before = self.attributes.len();
            let given = self.given;
            let mut at = 0;
            self.attributes.retain(|(name, ..)| {
                at += 1;
                at <= given || !problem.message.starts_with(&format!("node.{name}: "))
            });
            any |= self.attributes.len() != before;
            let listed = self.omit.values().map(Vec::len).sum::<usize>();
            for columns in self.omit.values_mut() {
                columns.retain(|column| !problem.message.contains(column.as_str()));
            }
            any |= self.omit.values().map(Vec::len).sum::<usize>() != listed;
        }
        self.objects.iter().all(|object| !object.rules.is_empty()) && any
    }

    fn defined(self, source: String, text: String, dock: Dock, schema: &Schema, shape: &Shape) -> Defined {
        let tests = self.objects.iter().flat_map(|object| {
            let table = &shape.tables[object.table].name;
            object.rules.iter().filter_map(move |rule| Some((table.clone(), rule.predicate.clone()?)))
        });
        let tests: Vec<(String, Test)> = tests.collect();
        let predicates = bind(&tests, &dock);
        let given = self.attributes.iter().take(self.given).map(|(name, class, _)| (name.clone(), *class)).collect();
        let models = self.models.into_iter().map(|(name, ..)| name).collect();
        Defined { source, text, dock, schema: schema.clone(), predicates, tests, given, models }
    }
}
