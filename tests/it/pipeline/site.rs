//! A server with its stages, and nodes with theirs, all in this process; files are carried by hand.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::definition::Defined;
use super::history::{History, rows};
use super::shadow::Shadow;
use crate::oracle::World;
use crate::oracle_router;
use crate::scope::folder;
use dockmaster::base::clock::now_seconds;
use dockmaster::base::ids::{FileNo, Incarnation, InstallId, NodeName, Revision};
use dockmaster::base::step::Progress;
use dockmaster::cds::layout::{connect_read_only, read_state, read_stopped};
use dockmaster::client::apply::{self, ApplyFolders};
use dockmaster::docking::ledger::Ledger;
use dockmaster::docking::root::{Access, DockingRoot};
use dockmaster::docking::sessions::{Mark, SessionsDb};
use dockmaster::dx::txnproc_reader::TxnprocReader;
use dockmaster::model::dock::DockTable;
use dockmaster::model::node::NodeState;
use dockmaster::model::value::Row;
use dockmaster::rules::retention::Retention;
use dockmaster::server::deploy::{DeployOptions, deploy};
use dockmaster::server::nodes::{self, NodeSettings};
use dockmaster::server::pass::{self, ExtractsOf, ServeOptions, Stage};
use dockmaster::server::purge::Purge;
use dockmaster::server::router::{Router, RouterOptions};
use dockmaster::server::txnproc::TxnProc;
use dockmaster::session::message::AppliedTo;
use dockmaster::store::control::Control;
use dockmaster::store::local::LocalDatabase;
use dockmaster::store::sqlite::{ServerDatabase, value_of};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A node's side.
#[derive(Debug, Clone, Default)]
struct Client {
    incarnation: Incarnation,
    /// Last file that was carried to its inbox.
    carried: FileNo,
    /// Last unit that it said it was at.
    unit: i64,
}

/// Everything of one case.
pub(crate) struct Site {
    folder: tempfile::TempDir,
    /// What programs write through.
    pub(crate) writer: Connection,
    root: Option<Arc<DockingRoot>>,
    txnproc: Option<TxnProc>,
    router: Option<Router>,
    pub(crate) history: History,
    definitions: BTreeMap<Revision, Defined>,
    /// The definition of the last unit.
    in_force: Revision,
    clients: BTreeMap<NodeName, Client>,
    /// In place of the Router and of the nodes: last txnproc file that it read, and the smallest router that can be wrong.
    pub(super) in_place: Option<(FileNo, oracle_router::Router)>,
    /// The way from the programs' database to the server database, if they write to one of their own.
    pub(super) shadow: Option<Shadow>,
    /// Whether the data store was lost after the last unit.
    pub(crate) is_lost: bool,
    /// The day that the clock shows.
    pub(crate) day: i64,
    /// Compared so far.
    pub(crate) compared: u64,
}

/// An error with everything that caused it.
pub(crate) fn said(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Corrects rows that only a node has, as the stop asks for: a column of theirs may not be NULL any more. Returns whether that was it.
fn mended(local: &Path, reason: &str) -> bool {
    let failed = reason.split_once("does not fit the table's new shape: NOT NULL constraint failed: ").map(|(_, column)| column);
    let Some((table, column)) = failed.and_then(|failed| failed.split_once('.')) else { return false };
    let local = Connection::open(local).unwrap();
    let null = format!("WHERE {column} IS NULL");
    local
        .execute(&format!("UPDATE {table} SET {column} = 3 {null}"), [])
        // Another row has it.
        .or_else(|_| local.execute(&format!("DELETE FROM {table} {null}"), []))
        .is_ok_and(|rows| rows > 0)
}

/// What the data store holds of a table.
fn stored_rows(cds: &Connection, number: usize, columns: usize) -> rusqlite::Result<Vec<Row>> {
    let names: Vec<String> = (0..columns).map(|column| format!("c{column}")).collect();
    let mut statement = cds.prepare(&format!("SELECT {} FROM d{number}", names.join(", ")))?;
    statement.query_map([], |row| (0..columns).map(|at| row.get_ref(at).map(value_of)).collect())?.collect()
}

/// A table that stands still when another definition comes into force holds what the server has, or what it held before, as far as it
/// had those columns; or it says that it holds nothing.
fn check_standing(held: &[Row], now: Option<Vec<Row>>, before: Option<&World>, table: &DockTable, reason: &str) -> Result<(), String> {
    let sorted = |mut rows: Vec<Row>| {
        rows.sort_by_key(|row| format!("{row:?}"));
        rows
    };
    let held = held.to_vec();
    if now.is_some_and(|now| sorted(now) == sorted(held.clone())) || (held.is_empty() && reason.contains("have no rows of it")) {
        return Ok(());
    }
    let known = before.and_then(|world| Some((world, world.dock.table(&table.name)?)));
    let (world, number) = known.ok_or_else(|| format!("table {} stands still with rows that nobody had", table.name))?;
    let old = &world.dock.tables[number];
    let common: Vec<(usize, usize)> =
        table.columns.iter().enumerate().filter_map(|(at, column)| Some((at, old.column(&column.name)?))).collect();
    let new: Vec<Row> = held.iter().map(|row| common.iter().map(|(at, _)| row[*at].clone()).collect()).collect();
    let was: Vec<Row> = world.rows[number].iter().map(|row| common.iter().map(|(_, at)| row[*at].clone()).collect()).collect();
    let (new, was) = (sorted(new), sorted(was));
    if new == was { Ok(()) } else { Err(format!("table {} stands still with {new:?}, had {was:?}", table.name)) }
}

impl Site {
    pub(crate) fn new(statements: &[String], day: i64) -> Site {
        let folder = folder();
        let writer = Connection::open(folder.path().join("hq.db")).unwrap();
        for statement in statements {
            writer.execute_batch(statement).unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
        let mut site = Site {
            folder,
            writer,
            root: None,
            txnproc: None,
            router: None,
            history: History::default(),
            definitions: BTreeMap::new(),
            in_force: Revision::default(),
            clients: BTreeMap::new(),
            in_place: None,
            shadow: None,
            is_lost: false,
            day,
            compared: 0,
        };
        site.open_root();
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open_root(&mut self) {
        self.root = Some(Arc::new(DockingRoot::open(&self.path("docking"), Access::Exclusive).unwrap()));
    }

    pub(crate) fn root(&self) -> Arc<DockingRoot> {
        Arc::clone(self.root.as_ref().unwrap())
    }

    pub(crate) fn server(&self) -> ServerDatabase {
        ServerDatabase::open(self.path("hq.db")).unwrap()
    }

    /// Minutes that make the clock's day this site's.
    pub(crate) fn day_starts_minutes(&self) -> i64 {
        now_seconds() / 60 - self.day * 1440 - 720
    }

    /// The definition deployed last.
    pub(crate) fn defined(&self) -> &Defined {
        self.definitions.last_key_value().unwrap().1
    }

    /// Ends the stages, as the end of the service does.
    pub(crate) fn stop(&mut self) {
        (self.txnproc, self.router) = (None, None);
    }

    /// Puts a definition into force, as `deploy` does while no service runs.
    pub(crate) fn deploy(&mut self, defined: Defined) -> Result<(), String> {
        self.stop();
        let options = DeployOptions {
            dock: defined.dock.clone(),
            schema: defined.schema.clone(),
            text: defined.text.clone(),
            server_name: "HQ".into(),
            database: self.path("hq.db"),
            day_starts_minutes: self.day_starts_minutes(),
        };
        self.leave_models(&defined)?;
        let deployed = deploy(&options, &self.root()).map_err(|error| format!("deploy: {}", said(error)))?;
        self.definitions.insert(deployed.revision, defined);
        self.note()
    }

    /// Takes nodes out of models that a definition does not have, as the refusal of `deploy` asks for, which has to come first.
    fn leave_models(&self, defined: &Defined) -> Result<(), String> {
        if self.definitions.is_empty() {
            return Ok(());
        }
        let server = self.server();
        for node in self.nodes()? {
            if node.model.is_some_and(|model| !defined.models.contains(&model)) {
                let settings = NodeSettings { model: Some(None), ..NodeSettings::default() };
                nodes::set(&server, &defined.dock, &node.name, &settings).map_err(said)?;
            }
        }
        Ok(())
    }

    /// Puts a definition into force beside a running service, which takes it over whenever it gets there.
    pub(crate) fn install(&mut self, defined: Defined) -> Result<(), String> {
        let plan = dockmaster::store::install::InstallPlan {
            dock: &defined.dock,
            schema: &defined.schema,
            revision_text: &defined.text,
            server_name: "HQ",
        };
        let installed = self.server().install(&plan).map_err(|error| format!("install: {}", said(error)))?;
        self.definitions.insert(installed.revision, defined);
        Ok(())
    }

    /// Takes what the log holds: by the service's own Transaction Processor, or by a pass as cron runs it.
    pub(crate) fn txnproc(&mut self, as_service: bool) -> Result<(), String> {
        if let Some(shadow) = &self.shadow {
            shadow.bring(&self.writer);
        }
        if self.txnproc.is_none() {
            let options = ServeOptions { day_starts_minutes: self.day_starts_minutes(), ..ServeOptions::new(self.path("hq.db"), "") };
            pass::run(&options, &self.root(), &[Stage::TxnProc]).map_err(|error| format!("pass: {}", said(error)))?;
            if as_service {
                self.txnproc = Some(TxnProc::open(&self.path("hq.db"), self.root()).map_err(|error| format!("open: {}", said(error)))?);
            }
            return self.note();
        }
        let root = self.root();
        let (day, txnproc) = (self.day, self.txnproc.as_mut().unwrap());
        if day > txnproc.cds().state().day {
            txnproc.server().append_control(&Control::Tick { day }).unwrap();
        }
        loop {
            let step = txnproc.step().map_err(|error| format!("step: {}", said(error)))?;
            for pending in &step.extracts {
                let mut extracts = ExtractsOf::new(pending);
                for node in &pending.nodes {
                    extracts.build(node, &root).map_err(|error| format!("extract: {}", said(error)))?;
                }
            }
            if step.progress == Progress::Idle {
                break;
            }
        }
        self.note()
    }

    /// Notes what the server is at the end of the unit that was taken. Nothing was written since it was read.
    fn note(&mut self) -> Result<(), String> {
        let cds = connect_read_only(&self.root().cds_db()).map_err(|error| error.to_string())?;
        let state = read_state(&cds).map_err(|error| error.to_string())?.ok_or("the data store has no state")?;
        let defined = self.definitions.get(&state.revision).ok_or_else(|| format!("revision {} was not deployed", state.revision))?;
        let last = self.history.last().map(|(unit, world)| (unit, world.day));
        if let Some((unit, day)) = last
            && (state.position.0 < unit || state.day < day)
        {
            return Err(format!("unit {unit} and day {day} were followed by unit {} and day {}", state.position, state.day));
        }
        if self.history.world(state.position.0).is_ok() {
            // No unit was taken; what nobody captured since is not in the last one.
            return Ok(());
        }
        let still = read_stopped(&cds).map_err(|error| error.to_string())?;
        let mut world = World {
            dock: defined.dock.clone(),
            rows: Vec::new(),
            nodes: BTreeMap::new(),
            day: state.day,
            predicates: defined.predicates.clone(),
        };
        let before = self.history.last().map(|(_, world)| world);
        for (number, table) in defined.dock.tables.iter().enumerate() {
            let columns: Vec<usize> = (0..table.columns.len()).collect();
            let now = rows(&self.writer, table, &columns).map_err(|error| format!("table {}: {error}", table.name));
            world.rows.push(match still.iter().find(|note| note.table == table.name) {
                None => now?,
                // A table that stands still does so where it stopped.
                Some(_) if state.revision == self.in_force => before.ok_or("a table stands still at once")?.rows[number].clone(),
                Some(note) => {
                    let held = stored_rows(&cds, number, columns.len()).map_err(|error| error.to_string())?;
                    check_standing(&held, now.ok(), before, table, &note.reason)?;
                    held
                }
            });
        }
        for node in self.server().nodes().map_err(said)?.into_iter().filter(|node| node.state == NodeState::Active) {
            world.nodes.insert(node.name.clone(), node);
        }
        self.history.note(state.position.0, world);
        (self.in_force, self.is_lost) = (state.revision, false);
        Ok(())
    }

    /// Routes; looks into what was written.
    pub(crate) fn route(&mut self) -> Result<(), String> {
        if self.in_place.is_some() {
            return self.route_in_place();
        }
        if self.router.is_none() {
            let options = ServeOptions { day_starts_minutes: self.day_starts_minutes(), ..ServeOptions::new(self.path("hq.db"), "") };
            pass::run(&options, &self.root(), &[Stage::Router]).map_err(|error| format!("pass: {}", said(error)))?;
            self.look()?;
            let router = Router::open(self.root(), RouterOptions::default()).map_err(|error| format!("router: {}", said(error)))?;
            self.router = Some(router);
        }
        loop {
            let worked = self.router.as_mut().unwrap().step().map_err(|error| format!("router: {}", said(error)))?;
            self.look()?;
            if worked == Progress::Idle {
                return Ok(());
            }
        }
    }

    /// Routes by the router of the test, whose replicas are compared after every unit.
    fn route_in_place(&mut self) -> Result<(), String> {
        let root = self.root();
        let Some((last, router)) = &mut self.in_place else { return Ok(()) };
        while let Ok(file) = std::fs::File::open(root.txnproc_file(last.next())) {
            *last = last.next();
            for unit in TxnprocReader::open(file).map_err(said)?.units() {
                let unit = unit.map_err(said)?;
                let views = self.history.world(unit.unit.0)?.views();
                router.route(&unit, &views)?;
                router.compare(&views)?;
                self.compared += 1;
            }
        }
        Ok(())
    }

    fn look(&mut self) -> Result<(), String> {
        let root = self.root();
        for node in root.nodes().map_err(said)? {
            self.history.look_into(&root.outbox(&node))?;
        }
        Ok(())
    }

    fn local(&self, node: &NodeName) -> PathBuf {
        self.path(&format!("{node}.db"))
    }

    fn inbox(&self, node: &NodeName) -> ApplyFolders {
        ApplyFolders::below(&self.path(&format!("{node}.db.sync")))
    }

    /// A node connects: fetches its extract if it has to, then at most so many files, and applies them.
    pub(crate) fn sync(&mut self, name: &NodeName, most: usize) -> Result<(), String> {
        if self.in_place.is_some() {
            return Ok(());
        }
        let Some(node) = self.server().node(name).map_err(said)?.filter(|node| node.state == NodeState::Active) else { return Ok(()) };
        let mut client = self.clients.get(name).cloned().unwrap_or_default();
        if client.incarnation < node.extracted {
            let packed = self.root().extract(name, node.extracted);
            if node.extracted != node.incarnation {
                // Its stream began anew behind the extract: an `init` asks for another one.
                nodes::start(&self.server(), name).map_err(said)?;
            }
            if node.extracted != node.incarnation || !packed.exists() {
                return Ok(()); // It waits.
            }
            self.unpack(name, &packed)?;
            client = Client { incarnation: node.extracted, carried: FileNo(0), unit: client.unit };
        } else if client.incarnation < node.incarnation {
            let inbox = self.inbox(name).inbox;
            for entry in std::fs::read_dir(&inbox).into_iter().flatten() {
                std::fs::remove_file(entry.unwrap().path()).unwrap();
            }
            LocalDatabase::open(&self.local(name)).and_then(|local| local.begin_anew(node.incarnation)).map_err(said)?;
            (client.incarnation, client.carried) = (node.incarnation, FileNo(0));
        }
        let folders = self.inbox(name);
        std::fs::create_dir_all(&folders.inbox).unwrap();
        if let Some(ledger) = Ledger::look(&self.root().ledger_db()).map_err(said)? {
            for file in ledger.files_after(name, client.incarnation, client.carried, most).map_err(said)? {
                let from = self.root().outbox_file(name, file.file_no);
                let to = folders.inbox.join(file.file_no.file_name());
                std::fs::copy(&from, &to).map_err(|error| format!("{}: {error}", from.display()))?;
                client.carried = file.file_no;
            }
        }
        let mut local = LocalDatabase::open(&self.local(name)).map_err(said)?;
        loop {
            let report = apply::step(&mut local, &folders).map_err(|error| format!("{name}: apply: {}", said(error)))?;
            if report.stopped.as_ref().is_some_and(|stopped| mended(local.path(), &stopped.reason)) {
                continue;
            }
            if report.stopped.is_some() || !report.quarantined.is_empty() || report.held.is_some() || report.busy {
                return Err(format!("{name}: {report:?}"));
            }
            if !report.more {
                break;
            }
        }
        self.compare(name, &mut client, &local)?;
        self.clients.insert(name.clone(), client);
        Ok(())
    }

    fn compare(&mut self, name: &NodeName, client: &mut Client, local: &LocalDatabase) -> Result<(), String> {
        let state = local.state().map_err(said)?;
        if state.applied_unit.0 < client.unit {
            return Err(format!("{name} went back from unit {} to {}", client.unit, state.applied_unit));
        }
        client.unit = state.applied_unit.0;
        let connection = Connection::open(local.path()).unwrap();
        self.history.compare(client.unit, name, &connection)?;
        self.compared += 1;
        if let Ok(sessions) = SessionsDb::open(&self.root().sessions_db()) {
            let applied = AppliedTo { file: state.applied_file, unit: state.applied_unit, hash: state.chain_hash };
            let (node, incarnation, install_id) = (name.clone(), client.incarnation, InstallId([1; 16]));
            let mark = Mark { node, incarnation, install_id, received: client.carried, applied, last_seen: now_seconds() };
            sessions.set_mark(&mark).map_err(said)?;
        }
        Ok(())
    }

    fn unpack(&mut self, name: &NodeName, packed: &Path) -> Result<(), String> {
        let local = self.local(name);
        for suffix in ["", "-wal", "-shm"] {
            let _gone = std::fs::remove_file(format!("{}{suffix}", local.display()));
        }
        zstd::stream::copy_decode(std::fs::File::open(packed).unwrap(), std::fs::File::create(&local).unwrap()).unwrap();
        let _gone = std::fs::remove_dir_all(self.path(&format!("{name}.db.sync")));
        for folder in ["inbox", "quarantine", "tmp"] {
            std::fs::create_dir_all(self.path(&format!("{name}.db.sync/{folder}"))).unwrap();
        }
        let unit = LocalDatabase::open(&local).and_then(|local| local.state()).map_err(said)?.applied_unit;
        self.history.extract(unit.0, name, &Connection::open(&local).unwrap())
    }

    /// Takes away a file of state with all that SQLite lays beside it.
    pub(crate) fn lose(&mut self, name: &str) {
        self.stop();
        self.is_lost |= name == "cds.db";
        for suffix in ["", "-wal", "-shm"] {
            let _gone = std::fs::remove_file(self.path(&format!("docking/{name}{suffix}")));
        }
    }

    /// Takes away the whole docking root, and deploys as a person would.
    pub(crate) fn lose_root(&mut self) -> Result<(), String> {
        self.stop();
        self.root = None;
        std::fs::remove_dir_all(self.path("docking")).unwrap();
        self.open_root();
        self.deploy(self.defined().clone())
    }

    /// Deletes what is of no more use: alone, as the service does beside its other stages, or behind the Router, as cron does.
    pub(crate) fn purge(&mut self, keep_files: u64, alone: bool) -> Result<(), String> {
        let retention = Retention { keep_files, ..Retention::default() };
        if alone {
            let had_ledger = self.root().ledger_db().exists();
            let mut purge = Purge::new(self.root(), &self.path("hq.db"), retention);
            loop {
                match purge.step(now_seconds()).map_err(said) {
                    Ok(Progress::Worked) => {}
                    Ok(Progress::Idle) => return Ok(()),
                    // The Router's start puts it back; nobody else may.
                    Err(error) if !had_ledger && error.contains("there is no ledger") && !self.root().ledger_db().exists() => return Ok(()),
                    Err(error) => return Err(format!("purge: {error}")),
                }
            }
        }
        self.router = None;
        let options = ServeOptions { retention, ..ServeOptions::new(self.path("hq.db"), "") };
        pass::run(&options, &self.root(), &[Stage::Router]).map_err(|error| format!("pass: {}", said(error)))?;
        self.look()
    }

    /// Lets everything come to rest; then every node that runs holds what it sees.
    pub(crate) fn settle(&mut self) -> Result<(), String> {
        self.stop();
        // A node whose extract is of no more use asks for another one in the first round.
        for _ in 0..2 {
            self.txnproc(true)?;
            self.route()?;
            for node in self.nodes()? {
                self.sync(&node.name, usize::MAX)?;
            }
        }
        if self.in_place.is_some() {
            return Ok(());
        }
        let (unit, world) = self.history.last().unwrap();
        let names: Vec<NodeName> = world.nodes.keys().cloned().collect();
        for name in names {
            let local = Connection::open(self.local(&name)).unwrap();
            self.history.compare(unit, &name, &local).map_err(|error| format!("at rest: {error}"))?;
            let whole: String = local.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            if whole != "ok" {
                return Err(format!("{name}: integrity_check says {whole}"));
            }
        }
        Ok(())
    }

    /// A node of any state.
    pub(crate) fn nodes(&self) -> Result<Vec<dockmaster::model::node::Node>, String> {
        nodes::list(&self.server()).map_err(said)
    }
}
