//! One case: laptops and a server that write, in a random order of steps and accidents, all from one seed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::edits::Edits;
use super::fault::Fault;
use super::model::{self, Tables};
use super::parts::Accident;
use super::shape::{self, AUDIT, MARKS};
use super::yard::{Counts, Yard};
use crate::pipeline::schema::{FIRST_DAY, Shape};
use crate::pipeline::site::{Site, said};
use crate::pipeline::writes;
use dockmaster::base::ids::NodeName;
use dockmaster::model::node::NodeState;
use dockmaster::server::nodes::{self, NodeSettings};
use fastrand::Rng;
use rusqlite::Connection;
use std::collections::BTreeMap;

const NODES: [&str; 8] = ["ANNA", "BERT", "CARL", "DORA", "EMIL", "FAYE", "GINO", "HUGO"];

pub(super) struct Case {
    pub(super) rng: Rng,
    shape: Shape,
    pub(super) yard: Yard,
    names: Vec<NodeName>,
    /// What was done, for a person.
    pub(super) log: Vec<String>,
    /// Whether statements of any kind are run.
    wild: bool,
    pub(super) fault: Fault,
    /// Texts of marker rows that are not cut.
    marks: BTreeMap<NodeName, Vec<String>>,
    /// Where a node was before it applied, and its tables.
    pub(super) before_apply: Option<(i64, Tables)>,
}

impl Case {
    /// Sets up a server with a definition, and nodes with their extracts.
    pub(super) fn new(seed: u64, fault: Fault) -> Result<Case, (String, Vec<String>)> {
        let mut rng = Rng::with_seed(seed);
        let shape = shape::tame(&mut rng);
        let mut statements = shape.statements();
        statements.push(AUDIT.to_owned());
        let mut site = Site::new(&statements, FIRST_DAY);
        site.writer.execute_batch("PRAGMA foreign_keys = ON").unwrap();
        let mut log = statements;
        let rows: Vec<String> = {
            let mut rows = Vec::new();
            for number in 0..shape.tables.len() {
                for _ in 0..rng.usize(3..=7) {
                    let (mut first, none) = (Rng::with_seed(rng.u64(..)), &shape.tables[number]);
                    if none.name != MARKS {
                        rows.push(crate::pipeline::schema::insert("OR IGNORE ", none, &mut first));
                    }
                }
            }
            rows
        };
        writes::run(&site.writer, &rows, true);
        log.extend(rows);
        let schema = site.server().schema().unwrap();
        let defined = shape::define(&shape, &schema, &mut rng);
        log.push(format!("-- deploy\n{}", defined.source));
        for table in &defined.dock.tables {
            log.push(format!("-- {} {:?}", table.name, table.merge));
        }
        let infos = model::infos(&defined.dock, &defined.schema);
        site.deploy(defined).map_err(|error| (error, log.clone()))?;
        let has_triggers = shape.tables.iter().any(|table| table.name != MARKS && !table.triggers.0.is_empty());
        let names: Vec<NodeName> = NODES.iter().take([3, 3, 3, 3, 4, 4, 5, 8][rng.usize(0..8)]).map(|name| name.parse().unwrap()).collect();
        let wild = rng.u32(0..3) == 0;
        let yard = Yard::new(site, infos, has_triggers);
        let mut case = Case { rng, shape, yard, names, log, wild, fault, marks: BTreeMap::new(), before_apply: None };
        match case.begin() {
            Ok(()) => Ok(case),
            Err(error) => Err((error, case.log)),
        }
    }

    fn begin(&mut self) -> Result<(), String> {
        for name in self.names.clone() {
            self.add(&name)?;
        }
        self.yard.site.txnproc(true)?;
        for name in self.names.clone() {
            self.yard.begin(&name)?;
        }
        Ok(())
    }

    /// Does random things, then lets everything come to rest.
    pub(super) fn play(&mut self, actions: usize) -> Result<Counts, String> {
        for _ in 0..actions {
            self.act()?;
        }
        self.say("rest");
        self.yard.settle()?;
        Ok(self.yard.counts)
    }

    fn say(&mut self, text: impl Into<String>) {
        self.log.push(format!("-- {}", text.into()));
    }

    fn any_node(&mut self) -> NodeName {
        self.names[self.rng.usize(0..self.names.len())].clone()
    }

    fn act(&mut self) -> Result<(), String> {
        match self.fault {
            Fault::ForeignKeysAtApply if self.rng.bool() => {
                self.write_on_server();
                return self.down();
            }
            Fault::ConfirmUpTo if self.rng.u32(0..4) == 0 => {
                for name in self.names.clone() {
                    self.cut(&name)?;
                    self.yard.send(&name, Accident::None)?;
                }
                while self.yard.merge()? {}
                return self.down();
            }
            _ => {}
        }
        match self.rng.u32(0..100) {
            0..34 => self.write_on_node()?,
            34..44 => self.write_on_server(),
            44..54 => {
                let name = self.any_node();
                let accident = Accident::random(&mut self.rng);
                self.say(format!("send {name} {accident:?}"));
                self.yard.send(&name, accident)?;
            }
            54..66 => {
                let most = self.rng.usize(1..6);
                for _ in 0..most {
                    self.say("merge");
                    if !self.yard.merge()? {
                        break;
                    }
                }
                if self.fault == Fault::ExecutedTwice {
                    let name = self.any_node();
                    self.restart(&name)?;
                }
            }
            66..76 => {
                self.say("txnproc, route");
                self.yard.site.txnproc(true)?;
                self.yard.site.route()?;
            }
            76..93 => {
                let (name, most) = (self.any_node(), [1, 2, usize::MAX][self.rng.usize(0..3)]);
                self.say(format!("sync {name} {most}"));
                self.cut(&name)?;
                self.yard.deliver(&name, most)?;
                self.plant_before_apply(&name)?;
                self.yard.apply(&name)?;
                self.plant_after_apply(&name)?;
            }
            93 | 94 => {
                self.say("stop");
                self.yard.stop();
            }
            95 | 96 => self.set_node()?,
            97 | 98 => {
                let name = self.any_node();
                self.say(format!("{name}: its stream begins anew"));
                self.restart(&name)?;
            }
            _ => {
                let name = self.any_node();
                self.say(format!("cut {name}"));
                self.cut(&name)?;
            }
        }
        Ok(())
    }

    /// Every node applies what the server has.
    fn down(&mut self) -> Result<(), String> {
        self.yard.site.txnproc(true)?;
        self.yard.site.route()?;
        for name in self.names.clone() {
            self.cut(&name)?;
            self.yard.deliver(&name, usize::MAX)?;
            self.plant_before_apply(&name)?;
            self.yard.apply(&name)?;
            self.plant_after_apply(&name)?;
        }
        Ok(())
    }

    fn settings(&mut self) -> NodeSettings {
        let values = (0..self.rng.usize(1..=4)).map(|_| self.rng.i64(1..=5).to_string()).collect();
        NodeSettings { model: None, attributes: BTreeMap::from([("p".to_owned(), values)]) }
    }

    fn add(&mut self, name: &NodeName) -> Result<(), String> {
        let settings = self.settings();
        self.say(format!("add {name} {settings:?}"));
        nodes::add(&self.yard.site.server(), &self.yard.site.defined().dock, name, &settings).map_err(said)?;
        nodes::start(&self.yard.site.server(), name).map(drop).map_err(said)
    }

    fn set_node(&mut self) -> Result<(), String> {
        let (name, settings) = (self.any_node(), self.settings());
        self.say(format!("set {name} {settings:?}"));
        nodes::set(&self.yard.site.server(), &self.yard.site.defined().dock, &name, &settings).map(drop).map_err(said)
    }

    fn restart(&mut self, name: &NodeName) -> Result<(), String> {
        let server = self.yard.site.server();
        if server.node(name).map_err(said)?.is_some_and(|node| node.state == NodeState::Active) {
            nodes::restart(&server, name).map_err(said)?;
        }
        self.plant_at_restart(name)
    }

    fn run(&mut self, database: &Connection, statements: &[String]) {
        self.log.push("BEGIN".to_owned());
        self.log.extend(statements.iter().cloned());
        let committed = writes::run(database, statements, true);
        self.log.push(if committed { "COMMIT".to_owned() } else { "ROLLBACK".to_owned() });
        let _none = database.execute_batch("DROP TABLE IF EXISTS temp.kept");
    }

    fn write_on_server(&mut self) {
        self.say("on the server");
        let writer = Connection::open(self.yard.site.path("hq.db")).unwrap();
        let keys = self.rng.u32(0..4) > 0;
        writer.execute_batch(&format!("PRAGMA foreign_keys = {keys}")).unwrap();
        let mut edits = Edits { shape: &self.shape, rng: &mut self.rng, database: &writer, block: 1000 };
        let statements = if self.fault == Fault::ForeignKeysAtApply { edits.moved_children() } else { edits.transaction(self.wild) };
        self.run(&writer, &statements);
    }

    fn write_on_node(&mut self) -> Result<(), String> {
        let name = self.any_node();
        let Some(laptop) = self.yard.laptops.get_mut(&name) else { return Ok(()) };
        let program = laptop.program();
        let keys = self.rng.bool();
        program.execute_batch(&format!("PRAGMA foreign_keys = {keys}")).unwrap();
        self.log.push(format!("-- on {name}, foreign keys {keys}"));
        let block = 1000 * (2 + self.names.iter().position(|known| *known == name).unwrap() as i64);
        self.plant_before_write(&name)?;
        for _ in 0..self.rng.usize(1..=3) {
            let mut edits = Edits { shape: &self.shape, rng: &mut self.rng, database: &program, block };
            let mut statements = edits.transaction(self.wild);
            if self.rng.bool() {
                let laptop = self.yard.laptops.get_mut(&name).unwrap();
                laptop.marks += 1;
                let text = format!("{name} {}", laptop.marks);
                let key = if self.rng.u32(0..3) == 0 { "NULL".to_owned() } else { (block * 100 + i64::from(laptop.marks)).to_string() };
                statements.push(format!("INSERT INTO {MARKS}(idw, tw) VALUES({key}, '{text}')"));
                self.marks.entry(name.clone()).or_default().push(text);
            }
            self.run(&program, &statements);
        }
        if self.rng.u32(0..3) > 0 {
            self.say(format!("cut {name}"));
            self.cut(&name)?;
        }
        Ok(())
    }

    fn cut(&mut self, name: &NodeName) -> Result<(), String> {
        let marks = self.marks.remove(name).unwrap_or_default();
        let there: Vec<String> = match self.yard.laptops.get(name) {
            Some(laptop) => {
                let program = laptop.program();
                let is_there = |text: &String| {
                    program.query_row("SELECT count(*) FROM w WHERE tw = ?1", [text], |row| row.get::<_, i64>(0)).unwrap() > 0
                };
                marks.into_iter().filter(is_there).collect()
            }
            None => Vec::new(),
        };
        self.yard.cut(name, there)
    }
}
