//! One case: a random site to which random things happen, all from one seed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::definition::{self, Defined};
use super::fault::Fault;
use super::schema::{Class, Column, FIRST_DAY, Shape, value};
use super::site::{Site, said};
use super::writes;
use dockmaster::base::ids::NodeName;
use dockmaster::model::node::NodeState;
use dockmaster::server::nodes::{self, NodeSettings};
use dockmaster::server::reconcile;
use fastrand::Rng;
use std::collections::BTreeMap;

const NODES: [&str; 8] = ["ANNA", "BERT", "CARL", "DORA", "EMIL", "FAYE", "GINO", "HUGO"];

/// What a case did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Done {
    pub(super) compared: u64,
    pub(super) files: u64,
}

pub(super) struct Case {
    pub(super) rng: Rng,
    pub(super) shape: Shape,
    pub(super) site: Site,
    names: Vec<NodeName>,
    /// What was done, for a person.
    pub(super) log: Vec<String>,
    rebuilt: u32,
    pub(super) fault: Fault,
}

impl Case {
    /// Sets up a site with one node in step.
    pub(super) fn new(seed: u64, fault: Fault) -> Result<Case, (String, Vec<String>)> {
        let mut rng = Rng::with_seed(seed);
        let shape = Shape::random(&mut rng);
        let statements = shape.statements();
        let site = Site::new(&statements, FIRST_DAY);
        let keys = rng.bool();
        // With triggers of programs it may be endless; then SQLite ends the statement half done.
        let recursive = rng.u32(0..4) == 0 && shape.tables.iter().all(|table| table.triggers.0.is_empty() && table.triggers.1.is_empty());
        let pragmas = format!("PRAGMA foreign_keys = {keys}; PRAGMA recursive_triggers = {recursive}");
        site.writer.execute_batch(&pragmas).unwrap();
        let names = NODES.iter().take(rng.usize(1..=NODES.len())).map(|name| name.parse().unwrap()).collect();
        let mut log = statements;
        log.push(pragmas);
        let mut case = Case { rng, shape, site, names, log, rebuilt: 0, fault };
        match case.begin() {
            Ok(()) => Ok(case),
            Err(error) => Err((error, case.log)),
        }
    }

    fn begin(&mut self) -> Result<(), String> {
        let rows = writes::first_rows(&self.shape, &mut self.rng);
        self.run(&rows, true);
        let defined = self.draw();
        self.deploy(defined, true)?;
        for table in &self.shape.tables {
            for trigger in &table.triggers.1 {
                self.log.push(trigger.clone());
                self.site.writer.execute_batch(trigger).unwrap();
            }
        }
        self.plant();
        let first = self.names[0].clone();
        self.add(&first)
    }

    /// Does random things, then lets everything come to rest.
    pub(super) fn play(&mut self, actions: usize) -> Result<Done, String> {
        for _ in 0..actions {
            if self.fault == Fault::None { self.act()? } else { self.act_wrongly()? }
        }
        self.log.push("-- rest".to_owned());
        self.site.settle()?;
        Ok(Done { compared: self.site.compared, files: self.site.history.files })
    }

    pub(super) fn say(&mut self, text: impl Into<String>) {
        self.log.push(format!("-- {}", text.into()));
    }

    fn run(&mut self, statements: &[String], commit: bool) {
        self.log.push("BEGIN".to_owned());
        self.log.extend(statements.iter().cloned());
        let committed = writes::run(&self.site.writer, statements, commit);
        self.log.push(if committed { "COMMIT".to_owned() } else { "ROLLBACK".to_owned() });
    }

    pub(super) fn write(&mut self) {
        let statements = writes::transaction(&self.shape, &mut self.rng);
        let commit = self.rng.u32(0..12) > 0;
        self.run(&statements, commit);
    }

    fn draw(&mut self) -> Defined {
        let schema = self.site.server().schema().unwrap();
        definition::random(&self.shape, &schema, &mut self.rng)
    }

    fn deploy(&mut self, defined: Defined, alone: bool) -> Result<(), String> {
        self.say(format!("deploy{}\n{}", if alone { "" } else { " beside the service" }, defined.source));
        if alone { self.site.deploy(defined) } else { self.site.install(defined) }
    }

    fn act(&mut self) -> Result<(), String> {
        match self.rng.u32(0..100) {
            0..34 => self.write(),
            34..52 => {
                let as_service = self.rng.u32(0..3) > 0;
                self.say(format!("txnproc {as_service}"));
                self.site.txnproc(as_service)?;
            }
            52..62 => {
                self.say("route");
                self.site.route()?;
            }
            62..76 => {
                let (name, most) = (self.any_node(), [1, 2, usize::MAX][self.rng.usize(0..3)]);
                self.say(format!("sync {name} {most}"));
                self.site.sync(&name, most)?;
            }
            76..83 => self.node()?,
            83..85 => {
                self.site.day += self.rng.i64(1..4);
                self.say(format!("day {}", self.site.day));
            }
            85..88 => {
                let (defined, alone) = (self.draw(), self.rng.bool());
                self.deploy(defined, alone)?;
            }
            88..90 => self.reshape()?,
            90 | 91 => self.rebuild(),
            92 => self.lost_triggers(),
            93 => {
                self.say("reconcile");
                reconcile::ask(&self.site.server(), &[]).map_err(said)?;
            }
            94 => {
                self.say("stop");
                self.site.stop();
            }
            95 | 96 => self.lose("cds.db"),
            97 => self.lose("ledger.db"),
            98 if self.rng.u32(0..3) == 0 => {
                self.say("lose root");
                self.site.lose_root()?;
            }
            98 => self.lose("sessions.db"),
            _ => {
                let keep = self.rng.u64(0..3);
                let alone = self.rng.bool();
                self.say(format!("purge {keep} {alone}"));
                self.site.purge(keep, alone)?;
            }
        }
        Ok(())
    }

    pub(super) fn lose(&mut self, name: &str) {
        self.say(format!("lose {name}"));
        self.site.lose(name);
    }

    pub(super) fn any_node(&mut self) -> NodeName {
        self.names[self.rng.usize(0..self.names.len())].clone()
    }

    fn settings(&mut self) -> NodeSettings {
        let defined = self.site.defined();
        let (given, models) = (defined.given.clone(), defined.models.clone());
        let mut attributes = BTreeMap::new();
        for (name, class) in given {
            let values = (0..self.rng.usize(0..=3)).map(|_| match class {
                Class::Int => self.rng.i64(1..=5).to_string(),
                _ => ["a", "A", "b", "B", "c"][self.rng.usize(0..5)].to_owned(),
            });
            attributes.insert(name, values.collect());
        }
        let model = match self.rng.u32(0..3) {
            0 => None,
            1 if !models.is_empty() => Some(Some(models[self.rng.usize(0..models.len())].clone())),
            _ => Some(None),
        };
        NodeSettings { model, attributes }
    }

    fn add(&mut self, name: &NodeName) -> Result<(), String> {
        let settings = self.settings();
        self.say(format!("add {name} {settings:?}"));
        nodes::add(&self.site.server(), &self.site.defined().dock, name, &settings).map_err(said)?;
        nodes::start(&self.site.server(), name).map(drop).map_err(said)
    }

    pub(super) fn node(&mut self) -> Result<(), String> {
        let name = self.any_node();
        let Some(node) = self.site.nodes()?.into_iter().find(|node| node.name == name) else { return self.add(&name) };
        let server = self.site.server();
        let done = match (node.state, self.rng.u32(0..12)) {
            (NodeState::Disabled, _) => {
                self.say(format!("enable and start {name}"));
                nodes::enable(&server, &name).and_then(|_| nodes::start(&server, &name)).map(drop)
            }
            (_, 0) => {
                self.say(format!("delete {name}"));
                nodes::delete(&server, &name)
            }
            (_, 1) => {
                self.say(format!("disable {name}"));
                nodes::disable(&server, &name).map(drop)
            }
            (_, 2) => {
                self.say(format!("start {name}"));
                nodes::start(&server, &name).map(drop)
            }
            (NodeState::Active, 3 | 4) => {
                self.say(format!("restart {name}"));
                nodes::restart(&server, &name).map(drop)
            }
            (NodeState::Active, 5) => {
                self.say(format!("stale {name}"));
                nodes::mark_stale(&server, &name, node.incarnation).map(drop)
            }
            (NodeState::Stale, _) => {
                self.say(format!("start {name}, which was stale"));
                nodes::start(&server, &name).map(drop)
            }
            _ => {
                let settings = self.settings();
                self.say(format!("set {name} {settings:?}"));
                nodes::set(&server, &self.site.defined().dock, &name, &settings).map(drop)
            }
        };
        done.map_err(said)
    }

    /// A migration tool makes a table anew in the same shape, and programs go on writing.
    fn rebuild(&mut self) {
        let number = self.rng.usize(0..self.shape.tables.len());
        self.say("rebuild");
        self.make_anew(number, None);
        self.write();
    }

    /// Makes a table anew, perhaps in another shape, and copies what both have.
    fn make_anew(&mut self, number: usize, before: Option<&Shape>) {
        let mut statements = vec!["PRAGMA foreign_keys = OFF".to_owned(), "PRAGMA legacy_alter_table = ON".to_owned(), "BEGIN".to_owned()];
        let table = &self.shape.tables[number];
        let former = &before.unwrap_or(&self.shape).tables[number];
        let common: Vec<String> = table.written().into_iter().map(|column| table.columns[column].name.clone()).collect();
        let common =
            common.into_iter().filter(|name| former.columns.iter().any(|column| column.name == *name)).collect::<Vec<_>>().join(", ");
        self.rebuilt += 1;
        let made = format!("made{}", self.rebuilt);
        statements.push(table.create(&made, &self.shape));
        statements.push(format!("INSERT OR IGNORE INTO {made}({common}) SELECT {common} FROM {}", table.name));
        statements.push(format!("DROP TABLE {}", table.name));
        statements.push(format!("ALTER TABLE {made} RENAME TO {}", table.name));
        statements.extend(table.indexes.iter().chain(&table.triggers.0).chain(&table.triggers.1).cloned());
        statements.push("COMMIT".to_owned());
        statements.push("PRAGMA legacy_alter_table = OFF".to_owned());
        let keys: bool = self.site.writer.query_row("PRAGMA foreign_keys", [], |row| row.get(0)).unwrap();
        statements.push(format!("PRAGMA foreign_keys = {keys}"));
        for statement in &statements {
            self.site.writer.execute_batch(statement).unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
        self.log.extend(statements);
    }

    /// Somebody drops our triggers, and programs go on writing.
    fn lost_triggers(&mut self) {
        let sql = "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND name LIKE 'dock\\_%' ESCAPE '\\' ORDER BY name";
        let names: Vec<String> =
            self.site.writer.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
        if !names.is_empty() {
            let drop = format!("DROP TRIGGER {}", names[self.rng.usize(0..names.len())]);
            self.log.push(drop.clone());
            self.site.writer.execute_batch(&drop).unwrap();
        }
        self.write();
    }

    /// A table gets another shape; the definition is deployed for it at once or later.
    fn reshape(&mut self) -> Result<(), String> {
        let number = self.rng.usize(0..self.shape.tables.len());
        let before = self.shape.clone();
        let name = self.shape.tables[number].name.clone();
        let class = [Class::Int, Class::Text("BINARY"), Class::Any][self.rng.usize(0..3)];
        let mut added = Column { name: format!("m{}{name}", self.rebuilt), class, not_null: false, generated: None, default: None };
        self.rebuilt += 1;
        if self.rng.bool() {
            (added.default, added.not_null) = (Some(if class == Class::Int { "3" } else { "'b'" }), true);
        }
        self.say(format!("reshape {name}"));
        if self.rng.bool() {
            // At the end, by ALTER TABLE.
            let mut sql = format!("ALTER TABLE {name} ADD COLUMN {}", added.name);
            sql += match class {
                Class::Int => " INTEGER",
                Class::Any => "",
                _ => " TEXT",
            };
            if let Some(default) = added.default {
                sql += &format!(" NOT NULL DEFAULT {default}");
            }
            self.log.push(sql.clone());
            self.site.writer.execute_batch(&sql).unwrap();
            self.shape.tables[number].columns.push(added);
        } else {
            self.another_shape(number, added, &before);
        }
        if self.rng.u32(0..3) == 0 {
            self.write();
        }
        let schema = self.site.server().schema().unwrap();
        let same = if self.rng.bool() { self.site.defined().over(&schema) } else { None };
        let defined = same.unwrap_or_else(|| definition::random(&self.shape, &schema, &mut self.rng));
        // What a table that stands still was, nobody knows once the data store is lost: then it is as of the rebuild.
        if self.rng.u32(0..4) == 0 && !self.site.is_lost {
            self.say("txnproc before the deploy");
            self.site.txnproc(true)?;
        }
        let alone = self.rng.bool();
        self.deploy(defined, alone)
    }

    /// A column more at the end or none, a column that may not be NULL any more, or one without its default.
    fn another_shape(&mut self, number: usize, added: Column, before: &Shape) {
        let table = &mut self.shape.tables[number];
        let plain: Vec<usize> = (0..table.columns.len())
            .filter(|at| !table.is_key(*at) && table.columns[*at].generated.is_none() && table.columns[*at].class != Class::Date)
            .filter(|at| !table.foreign_keys.iter().any(|key| key.columns.contains(at)))
            .collect();
        match self.rng.u32(0..3) {
            0 if !plain.is_empty() => {
                let at = plain[self.rng.usize(0..plain.len())];
                let column = &mut table.columns[at];
                column.not_null = !column.not_null;
                if column.not_null {
                    let mut sure = column.clone();
                    sure.not_null = true;
                    let sql = format!("UPDATE {} SET {1} = {2} WHERE {1} IS NULL", table.name, column.name, value(&sure, &mut self.rng));
                    self.run(&[sql], true);
                }
            }
            1 if !plain.is_empty() => {
                let column = &mut table.columns[plain[self.rng.usize(0..plain.len())]];
                column.default = Some("9");
            }
            _ => table.columns.push(added),
        }
        self.make_anew(number, Some(before));
    }
}
