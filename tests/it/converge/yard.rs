//! A server that merges, and laptops that write: every step is played in this process and compared with the model.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::laptop::{Cut, Laptop};
use super::model::{self, Info, Tables, Told, Unit, What};
use super::parts;
use crate::oracle::World;
use crate::pipeline::history::rows;
use crate::pipeline::site::{Site, said};
use dockmaster::base::ids::{FileNo, NodeName};
use dockmaster::client::apply;
use dockmaster::docking::ledger::Ledger;
use dockmaster::model::dock::{Direction, RuleKind};
use dockmaster::model::node::NodeState;
use dockmaster::model::value::{Row, RowKey, Value};
use dockmaster::server::nodes;
use dockmaster::store::sqlite::ServerDatabase;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};

/// What an attempt says that leaves a reference without its row.
const BROKEN: &str = "a foreign key is broken";

/// What happened so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) units: u64,
    pub(super) merged: u64,
    pub(super) refused: u64,
    pub(super) conflicts: u64,
    pub(super) compared: u64,
    pub(super) suspended: u64,
    pub(super) renamed: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: Counts) {
        self.units += other.units;
        self.merged += other.merged;
        self.refused += other.refused;
        self.conflicts += other.conflicts;
        self.compared += other.compared;
        self.suspended += other.suspended;
        self.renamed += other.renamed;
    }
}

pub(super) struct Yard {
    pub(super) site: Site,
    pub(super) infos: Vec<Info>,
    pub(super) laptops: BTreeMap<NodeName, Laptop>,
    /// Status of each unit on the server: (install id, number) -> status, waits for.
    known: BTreeMap<(String, i64), Standing>,
    /// Whether programs on the server, its triggers, may change what a unit writes.
    pub(super) has_triggers: bool,
    pub(super) counts: Counts,
    merger: parts::Merging,
    server: ServerDatabase,
}

/// A unit as the server lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    node: String,
    status: String,
    reason: Option<String>,
    waits_for: Option<i64>,
    log_id: Option<i64>,
}

impl Yard {
    pub(super) fn new(site: Site, infos: Vec<Info>, has_triggers: bool) -> Yard {
        Yard {
            server: site.server(),
            site,
            infos,
            laptops: BTreeMap::new(),
            known: BTreeMap::new(),
            has_triggers,
            counts: Counts::default(),
            merger: parts::Merging::default(),
        }
    }

    /// Ends the stages, as the end of the service does.
    pub(super) fn stop(&mut self) {
        self.site.stop();
        self.merger = parts::Merging::default();
        self.laptops.values_mut().for_each(Laptop::stop);
    }

    /// What the server is now.
    fn world(&self) -> Result<World, String> {
        let (_, last) = self.site.history.last().ok_or("no unit")?;
        let mut world = World { rows: Vec::new(), nodes: BTreeMap::new(), ..last.clone() };
        for table in &world.dock.tables {
            let columns: Vec<usize> = (0..table.columns.len()).collect();
            world.rows.push(rows(&self.site.writer, table, &columns).map_err(said)?);
        }
        for node in self.server.nodes().map_err(said)?.into_iter().filter(|node| node.state == NodeState::Active) {
            world.nodes.insert(node.name.clone(), node);
        }
        Ok(world)
    }

    fn seen(&self, world: &World, node: &NodeName) -> BTreeMap<(usize, RowKey), bool> {
        let mut seen = BTreeMap::new();
        if !world.nodes.contains_key(node) {
            return seen;
        }
        let visible = world.visible(node);
        for (number, info) in self.infos.iter().enumerate() {
            for row in &visible[info.place] {
                let rules = world.rules_of(node, info.place, row);
                let by_reference = rules
                    .iter()
                    .all(|name| world.dock.rules.iter().any(|rule| rule.name == *name && matches!(rule.kind, RuleKind::Referenced(_))));
                let sent = model::sent_row(&world.dock.tables[info.place], row);
                seen.insert((number, info.fold(&info.key_of(&sent))), by_reference);
            }
        }
        seen
    }

    fn standings(&self) -> Result<BTreeMap<(String, i64), Standing>, String> {
        let sql = "SELECT install_id, unit, node, status, reason, waits_for, log_id FROM dock_unit";
        let mut statement = self.site.writer.prepare(sql).map_err(said)?;
        let rows = statement.query_map([], |row| {
            let standing =
                Standing { node: row.get(2)?, status: row.get(3)?, reason: row.get(4)?, waits_for: row.get(5)?, log_id: row.get(6)? };
            Ok(((row.get::<_, String>(0)?, row.get::<_, i64>(1)?), standing))
        });
        rows.map_err(said)?.collect::<Result<_, _>>().map_err(said)
    }

    /// Merges one unit, if one waits, and judges what became of it. Returns whether there was one.
    pub(super) fn merge(&mut self) -> Result<bool, String> {
        let before = model::read(&self.site.writer, &self.infos).map_err(said)?;
        let world = self.world()?;
        let worked = self.merger.step(&self.site.path("hq.db"), self.site.root()).map_err(|error| format!("merge: {error}"))?;
        let standings = self.standings()?;
        let changed: Vec<((String, i64), Standing)> = standings
            .iter()
            .filter(|(id, standing)| {
                let done = |status: &str| matches!(status, "finished" | "error" | "ignored");
                done(&standing.status) && self.known.get(*id).is_none_or(|known| known.status != standing.status)
            })
            .map(|(id, standing)| (id.clone(), standing.clone()))
            .collect();
        let executed: Vec<_> = changed.iter().filter(|(_, standing)| standing.status == "finished").collect();
        if executed.len() > 1 {
            return Err(format!("merge: one step did {executed:?}"));
        }
        let after = model::read(&self.site.writer, &self.infos).map_err(said)?;
        if executed.is_empty() && after != before {
            return Err("merge: rows changed, though no unit was finished".into());
        }
        for (id, standing) in &changed {
            self.judge(id, standing, &before, &after, &world).map_err(|error| format!("unit {} of {}: {error}", id.1, standing.node))?;
        }
        self.known = standings;
        Ok(worked)
    }

    fn judge(&mut self, id: &(String, i64), standing: &Standing, before: &Tables, after: &Tables, world: &World) -> Result<(), String> {
        let node: NodeName = standing.node.parse().map_err(|_| "a node's name")?;
        let cut = self.laptops.get(&node).and_then(|laptop| laptop.units.get(&id.1)).ok_or("nobody cut it")?.clone();
        let unit = self.as_mapped(id, &cut)?;
        let seen = self.seen(world, &node);
        let verdict = model::merge(&self.infos, before, &unit, &|table, key| seen.contains_key(&(table, key.clone())));
        let recorded = self.recorded(id)?;
        match standing.status.as_str() {
            "finished" => {
                self.counts.merged += 1;
                if let Some(reason) = &verdict.refused {
                    return Err(format!("was merged, though {reason}"));
                }
                let mut wanted = verdict.conflicts.clone();
                wanted.sort();
                if wanted != recorded {
                    return Err(format!("conflicts {recorded:?}, should be {wanted:?}; the unit is {unit:?}"));
                }
                self.counts.conflicts += wanted.len() as u64;
                self.may(&node, &unit, before, &seen)?;
                if let Some(held) = self.depends(id, &node, &unit)? {
                    return Err(format!("was merged, though it depends on unit {held}"));
                }
                let renamed = self.as_renamed(id, &unit)?;
                let writes = model::merge(&self.infos, before, &renamed, &|table, key| seen.contains_key(&(table, key.clone())));
                self.written(&writes, after)?;
                self.shown_after(&node, &renamed, &writes)?;
                let told = |text: &String| -> i64 {
                    self.site.writer.query_row("SELECT count(*) FROM audit WHERE told = ?1", [text], |row| row.get(0)).unwrap()
                };
                // A mark under the key of a row that was deleted in the same unit is an update, which no trigger counts.
                let is_inserted = |text: &&String| {
                    let has = |row: &Row| row.iter().any(|value| *value == Value::text(text));
                    cut.unit.changes.iter().any(|change| matches!(&change.what, What::Insert(row) if has(row)))
                };
                for text in cut.marks.iter().filter(is_inserted) {
                    if told(text) != 1 {
                        return Err(format!("the mark {text} was written {} times", told(text)));
                    }
                }
            }
            "error" => {
                self.counts.refused += 1;
                if !recorded.is_empty() {
                    return Err(format!("it was refused, and has conflicts {recorded:?}"));
                }
                self.excused(id, standing, &node, &unit, &verdict, &seen)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The unit with the keys that the server gave in place of others, as far as the node did not know them when it was cut (R12).
    fn as_mapped(&mut self, id: &(String, i64), cut: &Cut) -> Result<Unit, String> {
        let mut unit = cut.as_cut.clone();
        // The last one first: the new key of one row may be the old one of another.
        for (made_by, table, old, new, log_id) in parts::mappings(&self.site.writer, &id.0)?.into_iter().rev() {
            if log_id > cut.applied && made_by < id.1 && !cut.hidden.contains(&made_by) {
                let table = self.infos.iter().position(|info| info.name == table).ok_or("a mapping of no table")?;
                model::rename(&self.infos, &self.site.defined().schema, &mut unit, table, &old, &new);
                self.counts.renamed += 1;
            }
        }
        Ok(unit)
    }

    /// The unit with the keys that the server gave to its own new rows: in these rows, and where the unit refers to them from then on.
    fn as_renamed(&self, id: &(String, i64), unit: &Unit) -> Result<Unit, String> {
        let mut unit = unit.clone();
        for (made_by, table, old, new, _) in parts::mappings(&self.site.writer, &id.0)? {
            if made_by == id.1 {
                let table = self.infos.iter().position(|info| info.name == table).ok_or("a mapping of no table")?;
                model::rename_new(&self.infos, &self.site.defined().schema, &mut unit, table, &old, &new);
            }
        }
        Ok(unit)
    }

    /// Conflicts that the server recorded of a unit.
    fn recorded(&self, id: &(String, i64)) -> Result<Vec<Told>, String> {
        let sql = "SELECT table_name, row_key, column_name, winner, rule FROM dock_conflict WHERE install_id = ?1 AND unit = ?2";
        let mut statement = self.site.writer.prepare(sql).map_err(said)?;
        let mut found = statement.query((&id.0, id.1)).map_err(said)?;
        let mut told = Vec::new();
        while let Some(row) = found.next().map_err(said)? {
            let (table, key): (String, String) = (row.get(0).unwrap(), row.get(1).unwrap());
            let info = self.infos.iter().find(|info| info.name == table).ok_or("a conflict of no table")?;
            let key = info.fold(&parts::key_of_text(&key)?);
            told.push((table, key, row.get(2).unwrap(), row.get(3).unwrap(), row.get(4).unwrap()));
        }
        told.sort();
        Ok(told)
    }

    /// Whether a node may change what a unit of it changes, by the rows before it.
    fn may(&self, node: &NodeName, unit: &Unit, before: &Tables, seen: &BTreeMap<(usize, RowKey), bool>) -> Result<(), String> {
        for change in &unit.changes {
            let info = &self.infos[change.table];
            let at = change.at(&self.infos);
            if info.direction == Direction::Download {
                return Err(format!("{node} wrote the download table {}", info.name));
            }
            if !before[&change.table].contains_key(&at) {
                continue;
            }
            match (&change.what, seen.get(&(change.table, at.clone()))) {
                (What::Delete { .. }, Some(true)) => {
                    return Err(format!("{} {at:?} was deleted, but is seen by reference only", info.name));
                }
                (What::Update { .. }, Some(true)) if !info.writable => {
                    return Err(format!("{} {at:?} was written, but is seen by reference only", info.name));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Compares what a unit wrote with what it must have written. What triggers wrote besides is not the model's.
    fn written(&self, verdict: &model::Verdict, after: &Tables) -> Result<(), String> {
        if self.has_triggers {
            return Ok(());
        }
        for (table, _, row) in &verdict.writes {
            let info = &self.infos[*table];
            if let Some(row) = row
                && after[table].get(&info.fold(&info.key_of(row))) != Some(row)
                && !self.is_acted_on(*table)
            {
                return Err(format!("{} should be {row:?}, but is {:?}", info.name, after[table].get(&info.fold(&info.key_of(row)))));
            }
        }
        for (table, at, row) in &verdict.writes {
            let landed = |at: &RowKey| {
                verdict.writes.iter().any(|(other, _, row)| {
                    other == table && row.as_ref().is_some_and(|row| self.infos[*table].fold(&self.infos[*table].key_of(row)) == *at)
                })
            };
            if let (Some(at), None) = (at, row)
                && after[table].contains_key(at)
                && !landed(at)
            {
                return Err(format!("{} {at:?} should be gone", self.infos[*table].name));
            }
        }
        Ok(())
    }

    /// Whether foreign keys may change rows of a table when others go.
    fn is_acted_on(&self, table: usize) -> bool {
        let shape = self.site.defined().schema.table(&self.infos[table].name).unwrap();
        shape.foreign_keys.iter().any(|key| key.on_delete != "NO ACTION" || key.on_update != "NO ACTION")
    }

    /// Every row that a unit wrote is seen by its node after it, or may be given away; one that it made is not seen by reference only, unless
    /// such rows may be written.
    fn shown_after(&self, node: &NodeName, unit: &Unit, verdict: &model::Verdict) -> Result<(), String> {
        let world = self.world()?;
        let seen = self.seen(&world, node);
        let now = model::read(&self.site.writer, &self.infos).map_err(said)?;
        for (table, was, row) in &verdict.writes {
            let (info, Some(row)) = (&self.infos[*table], row) else { continue };
            let at = info.fold(&info.key_of(row));
            let brought_back = || {
                unit.changes
                    .iter()
                    .any(|change| change.table == *table && matches!(change.what, What::Update { .. }) && change.at(&self.infos) == at)
            };
            if was.is_none() && !info.writable && seen.get(&(*table, at.clone())) == Some(&true) && !brought_back() {
                return Err(format!("{} {at:?} was made, and is seen by reference only", info.name));
            }
            if !info.give_away && now[table].contains_key(&at) && !seen.contains_key(&(*table, at.clone())) {
                return Err(format!("{} {at:?} was given away", info.name));
            }
        }
        Ok(())
    }

    /// The held unit of the same node that a unit depends on by a row, if there is one (R41).
    fn depends(&self, id: &(String, i64), node: &NodeName, unit: &Unit) -> Result<Option<i64>, String> {
        let keys = |unit: &Unit| -> BTreeSet<(usize, RowKey)> {
            let mut keys: BTreeSet<_> = unit.changes.iter().map(|change| (change.table, change.at(&self.infos))).collect();
            for change in &unit.changes {
                if let What::Update { whole, .. } = &change.what {
                    let info = &self.infos[change.table];
                    keys.insert((change.table, info.fold(&info.key_of(whole))));
                }
            }
            keys
        };
        let own = keys(unit);
        let held = self.known.iter().filter(|((install, number), standing)| {
            *install == id.0 && *number < id.1 && standing.node == node.as_str() && standing.status == "error"
        });
        for ((_, number), _) in held {
            let other = &self.laptops[node].units[number].unit;
            if !keys(other).is_disjoint(&own) {
                return Ok(Some(*number));
            }
        }
        Ok(None)
    }

    /// Looks whether there was a reason to refuse a unit: tries what it comes to, and takes it back.
    fn excused(
        &self,
        id: &(String, i64),
        standing: &Standing,
        node: &NodeName,
        unit: &Unit,
        verdict: &model::Verdict,
        seen: &BTreeMap<(usize, RowKey), bool>,
    ) -> Result<(), String> {
        let reason = standing.reason.clone().unwrap_or_default();
        if reason.is_empty() {
            return Err("it was refused without a reason".into());
        }
        if standing.waits_for.is_some() || self.depends(id, node, unit)?.is_some() || verdict.refused.is_some() {
            return Ok(());
        }
        let foreign = unit.changes.iter().any(|change| {
            let at = change.at(&self.infos);
            match (&change.what, seen.get(&(change.table, at))) {
                (What::Insert(_), _) => false,
                // It may have left the view, or was never there.
                (_, None) => true,
                (What::Delete { .. }, Some(by_reference)) => *by_reference,
                (_, Some(by_reference)) => *by_reference && !self.infos[change.table].writable,
            }
        });
        if foreign {
            return Ok(());
        }
        let writer = &self.site.writer;
        writer.execute_batch("BEGIN; PRAGMA defer_foreign_keys = ON").map_err(said)?;
        let mut verdict = verdict.clone();
        for (table, mut row) in std::mem::take(&mut verdict.provisional) {
            let at = self.infos[table].key[0];
            let sql = format!("SELECT max(\"{}\") + 1 FROM \"{}\"", self.infos[table].columns[at], self.infos[table].name);
            let free: i64 = writer.query_row(&sql, [], |row| row.get(0)).map_err(said)?;
            let own = verdict.writes.iter().filter(|(other, ..)| *other == table).count() as i64;
            row[at] = (free + 1000 + own).into();
            verdict.writes.push((table, None, Some(row)));
        }
        let mut tried = self.attempt(node, unit, &verdict, seen);
        if matches!(tried, Ok(None)) {
            // Rights come first: a delete that would lose to the server's change is judged by what it would take along.
            for change in unit.changes.iter().filter(|change| matches!(change.what, What::Delete { .. })) {
                verdict.writes.push((change.table, Some(change.at(&self.infos)), None));
            }
            writer.execute_batch("ROLLBACK; BEGIN; PRAGMA defer_foreign_keys = ON").map_err(said)?;
            tried = self.attempt(node, unit, &verdict, seen);
        }
        if matches!(tried, Ok(None)) {
            // A row that moves to a parent which is not there must not go with its former one before that is seen.
            verdict.writes.sort_by_key(|(_, _, row)| row.is_none());
            writer.execute_batch("ROLLBACK; BEGIN; PRAGMA defer_foreign_keys = ON").map_err(said)?;
            tried = self.attempt(node, unit, &verdict, seen).map(|reason| reason.filter(|reason| reason == BROKEN));
        }
        writer.execute_batch("ROLLBACK").map_err(said)?;
        match tried? {
            Some(_) => Ok(()),
            None => Err(format!("it was refused for nothing: {reason}; {unit:?}")),
        }
    }

    /// Does what a verdict says; returns why that may not be.
    fn attempt(
        &self,
        node: &NodeName,
        unit: &Unit,
        verdict: &model::Verdict,
        seen: &BTreeMap<(usize, RowKey), bool>,
    ) -> Result<Option<String>, String> {
        let writer = &self.site.writer;
        let was = model::read(writer, &self.infos).map_err(said)?;
        if let Err(error) = parts::write(writer, &self.infos, verdict, &was) {
            return Ok(Some(error.to_string()));
        }
        let broken: i64 = writer.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0)).map_err(said)?;
        if broken > 0 {
            return Ok(Some(BROKEN.into()));
        }
        let is = model::read(writer, &self.infos).map_err(said)?;
        for (number, rows) in &was {
            let is_own = |at: &RowKey| verdict.writes.iter().any(|(table, of, _)| table == number && of.as_ref() == Some(at));
            let may = |at: &RowKey| {
                self.infos[*number].direction == Direction::TwoWay
                    && seen.get(&(*number, at.clone())).is_some_and(|by_reference| !by_reference)
            };
            let changed = |(at, row): &(&RowKey, &Row)| is[number].get(*at) != Some(*row) && !is_own(at) && !may(at);
            if let Some((at, _)) = rows.iter().find(changed) {
                return Ok(Some(format!("{} {at:?} would go or change", self.infos[*number].name)));
            }
        }
        Ok(self.shown_after(node, unit, verdict).err())
    }

    /// Units of a node that are finished, as far as it has applied their confirms.
    pub(super) fn finished(&mut self, node: &NodeName) -> Result<BTreeSet<i64>, String> {
        let laptop = &self.laptops[node];
        let done = |standing: &Standing| {
            standing.node == node.as_str()
                && matches!(standing.status.as_str(), "finished" | "ignored")
                && standing.log_id.is_some_and(|log_id| log_id <= laptop.applied)
        };
        let new: Vec<i64> = self.standings()?.into_iter().filter(|(_, standing)| done(standing)).map(|((_, number), _)| number).collect();
        let laptop = self.laptops.get_mut(node).unwrap();
        laptop.finished.extend(new);
        Ok(laptop.finished.clone())
    }

    /// Cuts what programs of a node wrote.
    pub(super) fn cut(&mut self, node: &NodeName, marks: Vec<String>) -> Result<(), String> {
        let Some(laptop) = self.laptops.get_mut(node) else { return Ok(()) };
        let naive = self.site.history.view(laptop.applied, node)?;
        let before = laptop.units.len();
        laptop.cut(&self.infos, &naive, marks)?;
        self.counts.units += (laptop.units.len() - before) as u64;
        Ok(())
    }

    /// A node fetches its extract if it has to, and takes over that its stream began anew. Returns whether it has a database.
    pub(super) fn begin(&mut self, name: &NodeName) -> Result<bool, String> {
        let Some(node) = self.server.node(name).map_err(said)?.filter(|node| node.state == NodeState::Active) else {
            return Ok(false);
        };
        let known = self.laptops.get(name).map(|laptop| laptop.incarnation);
        if known.is_none_or(|known| known < node.extracted) && known.is_none() {
            let packed = self.site.root().extract(name, node.extracted);
            if node.extracted != node.incarnation {
                nodes::start(&self.site.server(), name).map_err(said)?;
            }
            if node.extracted != node.incarnation || !packed.exists() {
                return Ok(false);
            }
            let path = self.site.path(&format!("{name}.db"));
            zstd::stream::copy_decode(std::fs::File::open(packed).unwrap(), std::fs::File::create(&path).unwrap()).unwrap();
            let mut laptop = Laptop {
                name: name.clone(),
                path,
                incarnation: node.extracted,
                carried: FileNo(0),
                applied: 0,
                units: BTreeMap::new(),
                last: Tables::new(),
                held: BTreeSet::new(),
                marks: 0,
                stored: Default::default(),
                last_stored: 0,
                local: None,
                program: Default::default(),
                finished: BTreeSet::new(),
            };
            for folder in ["inbox", "outbox", "quarantine", "tmp"] {
                std::fs::create_dir_all(laptop.sync().join(folder)).unwrap();
            }
            parts::take_over(&laptop.path, name)?;
            laptop.applied = laptop.local()?.state().map_err(said)?.applied_unit.0;
            let naive = self.site.history.view(laptop.applied, name)?;
            laptop.compare(&self.infos, &naive, &BTreeSet::new())?;
            self.laptops.insert(name.clone(), laptop);
            return Ok(true);
        }
        let laptop = self.laptops.get_mut(name).unwrap();
        if laptop.incarnation < node.incarnation {
            for entry in std::fs::read_dir(laptop.folders().inbox).unwrap() {
                std::fs::remove_file(entry.unwrap().path()).unwrap();
            }
            laptop.local()?.begin_anew(node.incarnation).map_err(said)?;
            (laptop.incarnation, laptop.carried) = (node.incarnation, FileNo(0));
        }
        Ok(true)
    }

    /// Carries at most so many files to a node's inbox.
    pub(super) fn deliver(&mut self, name: &NodeName, most: usize) -> Result<(), String> {
        if !self.begin(name)? {
            return Ok(());
        }
        let laptop = self.laptops.get_mut(name).unwrap();
        let inbox = laptop.folders().inbox;
        let Some(ledger) = Ledger::look(&self.site.root().ledger_db()).map_err(said)? else { return Ok(()) };
        for file in ledger.files_after(name, laptop.incarnation, laptop.carried, most).map_err(said)? {
            let from = self.site.root().outbox_file(name, file.file_no);
            std::fs::copy(&from, inbox.join(file.file_no.file_name())).map_err(|error| format!("{}: {error}", from.display()))?;
            laptop.carried = file.file_no;
        }
        Ok(())
    }

    /// Applies what a node has, and compares.
    pub(super) fn apply(&mut self, name: &NodeName) -> Result<(), String> {
        let Some(laptop) = self.laptops.get_mut(name) else { return Ok(()) };
        let folders = laptop.folders();
        let local = laptop.local()?;
        loop {
            let report = apply::step(local, &folders).map_err(|error| format!("{name}: apply: {}", said(error)))?;
            if report.stopped.is_some() || !report.quarantined.is_empty() || report.busy {
                return Err(format!("{name}: {report:?}"));
            }
            if !report.more {
                break;
            }
        }
        let state = local.state().map_err(said)?;
        if state.applied_unit.0 < laptop.applied {
            return Err(format!("{name} went back from unit {} to {}", laptop.applied, state.applied_unit));
        }
        let before = laptop.applied;
        laptop.applied = state.applied_unit.0;
        self.take_names(name, before)?;
        self.compare(name)
    }

    /// Key mappings whose confirm a node has just applied rename what is pending there.
    fn take_names(&mut self, name: &NodeName, before: i64) -> Result<(), String> {
        let install = parts::install_id(&self.laptops[name].path)?;
        let schema = self.site.defined().schema.clone();
        let laptop = self.laptops.get_mut(name).unwrap();
        let known: Vec<_> = parts::mappings(&self.site.writer, &install)?.into_iter().filter(|mapped| mapped.4 <= laptop.applied).collect();
        if known.iter().all(|mapped| mapped.4 <= before) {
            return Ok(());
        }
        for (number, cut) in &mut laptop.units {
            cut.unit.clone_from(&cut.as_cut);
            for (made_by, table, old, new, log_id) in known.iter().rev() {
                if *log_id > cut.applied && number > made_by && !cut.hidden.contains(made_by) {
                    let table = self.infos.iter().position(|info| info.name == *table).ok_or("a mapping of no table")?;
                    model::rename(&self.infos, &schema, &mut cut.unit, table, old, new);
                }
            }
        }
        Ok(())
    }

    pub(super) fn compare(&mut self, name: &NodeName) -> Result<(), String> {
        let finished = self.finished(name)?;
        let laptop = self.laptops.get_mut(name).unwrap();
        let naive = self.site.history.view(laptop.applied, name)?;
        laptop.compare(&self.infos, &naive, &finished)?;
        self.counts.compared += 1;
        self.counts.suspended += laptop.listed()?.iter().filter(|unit| unit.suspended.is_some()).count() as u64;
        Ok(())
    }

    /// Makes upload files of what is cut, and carries them.
    pub(super) fn send(&mut self, name: &NodeName, accident: parts::Accident) -> Result<bool, String> {
        if !self.laptops.contains_key(name) || !self.begin(name)? {
            return Ok(false);
        }
        let laptop = self.laptops.get_mut(name).unwrap();
        parts::send(laptop, &self.site.root(), &self.site.writer, accident).map_err(|error| format!("{name}: send: {error}"))
    }

    /// Lets everything come to rest: then each node holds what it sees, but for units that are held.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        self.stop();
        let names: Vec<NodeName> = self.laptops.keys().cloned().collect();
        for round in 0..8 {
            let mut any = false;
            // A new one looks at once which numbers of former streams are free.
            self.merger = parts::Merging::default();
            for name in &names {
                self.cut(name, Vec::new())?;
                any |= self.send(name, parts::Accident::None)?;
            }
            while self.merge()? {
                any = true;
            }
            self.site.txnproc(true)?;
            self.site.route()?;
            for name in &names {
                let before = self.laptops[name].applied;
                self.deliver(name, usize::MAX)?;
                self.apply(name)?;
                any |= self.laptops[name].applied != before;
            }
            if !any && round > 0 {
                return self.at_rest(&names);
            }
        }
        Err("it does not come to rest".into())
    }

    fn at_rest(&mut self, names: &[NodeName]) -> Result<(), String> {
        let last = self.site.history.last().unwrap().0;
        let world = self.world()?;
        for name in names {
            let laptop = &self.laptops[name];
            let is_active = world.nodes.contains_key(name);
            if is_active {
                // Nothing is on its way: what the node is at shows what is there now.
                let naive = world.view(name);
                laptop.view(&self.infos, &naive).map_err(|error| format!("at rest, at unit {last}: {error}"))?;
            }
            let install = parts::install_id(&laptop.path)?;
            for unit in laptop.listed()?.iter().filter(|_| is_active) {
                let standing = self.known.get(&(install.clone(), unit.number));
                if standing.is_none_or(|standing| standing.status != "error") {
                    let inbox: Vec<_> =
                        std::fs::read_dir(self.site.root().inbox(name)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
                    let files: Vec<(i64, i64, i64)> = self
                        .site
                        .writer
                        .prepare("SELECT unit, incarnation, file_no FROM dock_unit WHERE node = ?1")
                        .unwrap()
                        .query_map([name.as_str()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                        .unwrap()
                        .collect::<Result<_, _>>()
                        .unwrap();
                    return Err(format!(
                        "at rest: {name} still has unit {unit:?}, which is {standing:?} on the server; inbox {inbox:?}, unit, incarnation and file {files:?}"
                    ));
                }
                if unit.state != "held" {
                    return Err(format!("at rest: {name} does not know that unit {unit:?} is held"));
                }
            }
            self.listed_conflicts(name, &install)?;
            let whole: String = laptop.program().query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            if whole != "ok" {
                return Err(format!("{name}: integrity_check says {whole}"));
            }
        }
        let twice: Option<String> = self
            .site
            .writer
            .query_row(
                "SELECT group_concat(told) FROM (SELECT told FROM audit WHERE told GLOB '[A-Z]* [0-9]*' GROUP BY told HAVING count(*) > 1)",
                [],
                |row| row.get(0),
            )
            .map_err(said)?;
        twice.map_or(Ok(()), |told| Err(format!("executed more than once: {told}")))
    }

    /// Every conflict that the server recorded of a node's units is listed there, once.
    fn listed_conflicts(&self, name: &NodeName, install: &str) -> Result<(), String> {
        let numbers = |connection: &Connection, sql: &str| -> Result<Vec<i64>, String> {
            let mut statement = connection.prepare(sql).map_err(said)?;
            statement.query_map([], |row| row.get(0)).map_err(said)?.collect::<Result<_, _>>().map_err(said)
        };
        let recorded = numbers(
            &self.site.writer,
            &format!("SELECT id FROM dock_conflict WHERE install_id = '{install}' AND node = '{name}' ORDER BY id"),
        )?;
        let listed =
            numbers(&self.laptops[name].program(), "SELECT server_id FROM dock_conflict WHERE server_id IS NOT NULL ORDER BY server_id")?;
        if recorded != listed {
            return Err(format!("{name} lists the conflicts {listed:?}, the server {recorded:?}"));
        }
        Ok(())
    }
}
