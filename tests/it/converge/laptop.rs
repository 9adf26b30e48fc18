//! A node's side: programs that write, units that are cut, what is shown; each step is compared with the model.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::model::{self, Change, Info, Tables, Unit, What};
use super::parts;
use crate::oracle::View;
use crate::pipeline::site::said;
use dockmaster::base::ids::{ContentHash, FileNo, Incarnation, NodeName};
use dockmaster::client::apply::ApplyFolders;
use dockmaster::model::dock::Direction;
use dockmaster::model::keycode;
use dockmaster::model::value::{Row, RowKey};
use dockmaster::store::local::LocalDatabase;
use rusqlite::Connection;
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;

/// A node with its local database.
pub(super) struct Laptop {
    pub(super) name: NodeName,
    pub(super) path: PathBuf,
    pub(super) incarnation: Incarnation,
    /// Last file that was carried to its inbox.
    pub(super) carried: FileNo,
    /// Last unit of the server that it said it was at.
    pub(super) applied: i64,
    /// Every unit that it ever cut, by number.
    pub(super) units: BTreeMap<i64, Cut>,
    /// Its tables after the last cut or apply.
    pub(super) last: Tables,
    /// Rows that it ever held: table, folded key.
    pub(super) held: BTreeSet<(usize, RowKey)>,
    /// Texts of marker rows that it wrote.
    pub(super) marks: u32,
    /// Last file that the server has: incarnation, number, content hash.
    pub(super) stored: (Incarnation, FileNo, ContentHash),
    /// Last unit in a file that the server has.
    pub(super) last_stored: i64,
    pub(super) local: Option<LocalDatabase>,
    pub(super) program: OnceCell<Rc<Connection>>,
    /// Units whose confirm it has applied.
    pub(super) finished: BTreeSet<i64>,
}

/// A unit with what was known when it was cut.
#[derive(Debug, Clone)]
pub(super) struct Cut {
    /// The unit by the keys that its node knows now.
    pub(super) unit: Unit,
    /// The same by the keys of the time.
    pub(super) as_cut: Unit,
    pub(super) applied: i64,
    /// Units that were suspended then.
    pub(super) hidden: BTreeSet<i64>,
    /// Texts of its marker rows.
    pub(super) marks: Vec<String>,
}

/// A row of `dock_unit`.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) number: i64,
    pub(super) state: String,
    pub(super) suspended: Option<String>,
}

impl Laptop {
    /// The database as the client has it open.
    pub(super) fn local(&mut self) -> Result<&mut LocalDatabase, String> {
        if self.local.is_none() {
            self.local = Some(LocalDatabase::open(&self.path).map_err(said)?);
        }
        Ok(self.local.as_mut().unwrap())
    }

    /// The connection of a program.
    pub(super) fn program(&self) -> Rc<Connection> {
        let open = || {
            let connection = Connection::open(&self.path).unwrap();
            connection.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
            Rc::new(connection)
        };
        Rc::clone(self.program.get_or_init(open))
    }

    /// Ends client and program, as the end of their processes does.
    pub(super) fn stop(&mut self) {
        self.local = None;
        self.program = OnceCell::new();
    }

    pub(super) fn sync(&self) -> PathBuf {
        self.path.with_extension("db.sync")
    }

    pub(super) fn folders(&self) -> ApplyFolders {
        ApplyFolders::below(&self.sync())
    }

    /// The units that are not finished, as the local database lists them.
    pub(super) fn listed(&self) -> Result<Vec<Listed>, String> {
        let program = self.program();
        let mut statement = program.prepare("SELECT unit, state, suspended FROM dock_unit ORDER BY unit").map_err(said)?;
        let rows = statement.query_map([], |row| Ok(Listed { number: row.get(0)?, state: row.get(1)?, suspended: row.get(2)? }));
        rows.map_err(said)?.collect::<Result<_, _>>().map_err(said)
    }

    /// Compares the server's rows as the node knows them with what it sees at its unit, and returns them (I1).
    pub(super) fn view(&self, infos: &[Info], naive: &View) -> Result<Tables, String> {
        let program = self.program();
        let tables = model::read(&program, infos).map_err(said)?;
        let bases = model::read_bases(&program, infos).map_err(said)?;
        let view = model::overlaid(&tables, &bases);
        let mut wanted: Tables = infos.iter().enumerate().map(|(number, _)| (number, BTreeMap::new())).collect();
        for ((table, _), row) in naive {
            let number = infos.iter().position(|info| info.name == *table).unwrap();
            infos[number].insert(wanted.get_mut(&number).unwrap(), row.clone());
        }
        for (number, info) in infos.iter().enumerate().filter(|(_, info)| info.direction != Direction::Upload) {
            if view[&number] != wanted[&number] {
                let text = unequal(&view[&number], &wanted[&number]);
                return Err(format!("I1: {} at unit {}: the server's rows of {}: {text}", self.name, self.applied, info.name));
            }
        }
        Ok(view)
    }

    /// Cuts, and compares the unit with the difference of the tables. `marks` are the texts of marker rows since the last cut.
    pub(super) fn cut(&mut self, infos: &[Info], naive: &View, marks: Vec<String>) -> Result<(), String> {
        let view = self.view(infos, naive)?;
        let hidden = self.listed()?.into_iter().filter(|unit| unit.suspended.is_some()).map(|unit| unit.number).collect();
        parts::cut(self.local()?).map_err(|error| format!("{}: cut: {error}", self.name))?;
        self.note_cut(infos, &view, hidden, marks)?;
        self.view(infos, naive).map(drop)
    }

    fn note_cut(&mut self, infos: &[Info], view: &Tables, hidden: BTreeSet<i64>, marks: Vec<String>) -> Result<(), String> {
        let program = self.program();
        let now = model::read(&program, infos).map_err(said)?;
        let new: Vec<i64> = self.listed()?.into_iter().map(|unit| unit.number).filter(|number| !self.units.contains_key(number)).collect();
        let Some(number) = new.first().copied() else {
            let changes = sendable(infos, model::difference(infos, &self.last, &now, view, &[]));
            if !changes.is_empty() {
                return Err(format!("{}: nothing was cut of {changes:?}", self.name));
            }
            self.last = now;
            return Ok(());
        };
        if new.len() > 1 {
            return Err(format!("{}: one unit was to be cut, not {new:?}", self.name));
        }
        let moved = self.moved(infos, &program, number)?;
        let told = told(infos, &program, number)?;
        let mut changes = model::difference(infos, &self.last, &now, view, &moved);
        // Whether the server has a row of an upload table the cut knows better: its key may have changed.
        changes.retain(|change| match (infos[change.table].direction, &change.what) {
            (Direction::Download, _) => false,
            (Direction::Upload, What::Delete { .. }) => told.contains(&(change.table, change.at(infos), "delete".to_owned())),
            _ => true,
        });
        let wanted: BTreeSet<(usize, RowKey, &str)> =
            changes.iter().map(|change| (change.table, change.at(infos), name_of(&change.what))).collect();
        let told_names: BTreeSet<(usize, RowKey, &str)> = told.iter().map(|(table, key, op)| (*table, key.clone(), op.as_str())).collect();
        if wanted != told_names {
            return Err(format!("{}: unit {number} should be {changes:?}, but is {told:?}", self.name));
        }
        let unit = Unit { changes };
        self.units.insert(number, Cut { as_cut: unit.clone(), unit, applied: self.applied, hidden, marks });
        self.last = now;
        Ok(())
    }

    /// Rows whose key changed, as the unit tells them: the difference of two states cannot.
    fn moved(&self, infos: &[Info], program: &Connection, number: i64) -> Result<Vec<(usize, RowKey, RowKey)>, String> {
        let mut moved = Vec::new();
        for (table, from, to) in parts::moved(program, number)? {
            let place = infos.iter().position(|info| info.name == table).ok_or_else(|| format!("table {table} is unknown"))?;
            moved.push((place, infos[place].fold(&from), infos[place].fold(&to)));
        }
        Ok(moved)
    }

    /// Compares what the tables show with the server's rows and the pending units over them. `finished` are units whose confirm the node
    /// has applied.
    pub(super) fn compare(&mut self, infos: &[Info], naive: &View, finished: &BTreeSet<i64>) -> Result<(), String> {
        let view = self.view(infos, naive)?;
        let listed = self.listed()?;
        let pending: BTreeSet<i64> = self.units.keys().copied().filter(|number| !finished.contains(number)).collect();
        let has: BTreeSet<i64> = listed.iter().map(|unit| unit.number).collect();
        if pending != has {
            return Err(format!("{}: units {pending:?} are not finished, but {has:?} are listed", self.name));
        }
        let mut wanted = view.clone();
        for unit in listed.iter().filter(|unit| unit.suspended.is_none()) {
            let cut = &self.units[&unit.number];
            model::redo(infos, &mut wanted, &cut.unit)
                .map_err(|error| format!("{}: unit {} is shown, but {error}", self.name, unit.number))?;
        }
        let now = model::read(&self.program(), infos).map_err(said)?;
        for (number, info) in infos.iter().enumerate() {
            self.held.extend(now[&number].keys().map(|key| (number, key.clone())));
            if info.direction == Direction::Upload {
                continue;
            }
            // What only the server changes has no value of the server's in a row that it does not have.
            for (key, row) in wanted.get_mut(&number).unwrap().iter_mut().filter(|(key, _)| !view[&number].contains_key(*key)) {
                if let Some(shown) = now[&number].get(key) {
                    (0..row.len()).filter(|at| info.is_server_only(*at)).for_each(|at| row[at] = shown[at].clone());
                }
            }
            if now[&number] != wanted[&number] {
                let text = unequal(&now[&number], &wanted[&number]);
                let of_table = |unit: &Listed| {
                    let changes = self.units[&unit.number].unit.changes.iter().filter(|change| change.table == number);
                    changes.cloned().collect::<Vec<_>>()
                };
                let units: Vec<_> = listed.iter().map(|unit| (unit, of_table(unit))).collect();
                return Err(format!("{} at unit {}: table {}: {text}; units {units:?}", self.name, self.applied, info.name));
            }
        }
        self.last = now;
        Ok(())
    }
}

/// What of a difference is sent (docs/uploads.md 2).
fn sendable(infos: &[Info], changes: Vec<Change>) -> Vec<Change> {
    let is_sent = |change: &Change| match (infos[change.table].direction, &change.what) {
        (Direction::Download, _) => false,
        (Direction::Upload, What::Delete { base, .. }) => base.is_none(),
        _ => true,
    };
    changes.into_iter().filter(is_sent).collect()
}

fn name_of(what: &What) -> &'static str {
    match what {
        What::Insert(_) => "insert",
        What::Update { .. } => "update",
        What::Delete { .. } => "delete",
    }
}

/// What a unit names, as it is listed: table, folded key, kind.
fn told(infos: &[Info], program: &Connection, number: i64) -> Result<Vec<(usize, RowKey, String)>, String> {
    let mut statement = program.prepare("SELECT table_name, row_key, op FROM dock_change WHERE unit = ?1 ORDER BY place").map_err(said)?;
    let mut rows = statement.query([number]).map_err(said)?;
    let mut told = Vec::new();
    while let Some(row) = rows.next().map_err(said)? {
        let (table, key, op): (String, Vec<u8>, String) = (row.get(0).unwrap(), row.get(1).unwrap(), row.get(2).unwrap());
        let place = infos.iter().position(|info| info.name == table).ok_or_else(|| format!("table {table} is unknown"))?;
        told.push((place, infos[place].fold(&keycode::decode(&key).ok_or("a key")?), op));
    }
    Ok(told)
}

/// What differs between two states of a table.
pub(super) fn unequal(has: &BTreeMap<RowKey, Row>, wants: &BTreeMap<RowKey, Row>) -> String {
    let extra: Vec<_> = has.iter().filter(|(key, row)| wants.get(*key) != Some(*row)).map(|(_, row)| row).collect();
    let missing: Vec<_> = wants.iter().filter(|(key, row)| has.get(*key) != Some(*row)).map(|(_, row)| row).collect();
    format!("has {extra:?}, should have {missing:?}")
}
