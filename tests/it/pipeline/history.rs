//! What the server was at the end of every unit, and the checks against it: what a node holds, and what its files tell.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use crate::oracle::{View, World};
use dockmaster::base::ids::NodeName;
use dockmaster::dx::reader::DownloadReader;
use dockmaster::model::dock::{Direction, DockTable};
use dockmaster::model::operation::Operation;
use dockmaster::model::value::{Row, RowKey, Value};
use dockmaster::store::sqlite::value_of;
use rusqlite::Connection;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::rc::Rc;

/// The server at every unit end.
#[derive(Default)]
pub(crate) struct History {
    worlds: BTreeMap<i64, World>,
    views: RefCell<BTreeMap<(i64, NodeName), Rc<View>>>,
    /// Content hashes of files that were looked at.
    seen: BTreeSet<String>,
    pub(crate) files: u64,
}

/// Reads rows of a database.
pub(crate) fn rows(connection: &Connection, table: &DockTable, columns: &[usize]) -> rusqlite::Result<Vec<Row>> {
    let names: Vec<String> = columns.iter().map(|column| format!("\"{}\"", table.columns[*column].name)).collect();
    let mut statement = connection.prepare(&format!("SELECT {} FROM \"{}\"", names.join(", "), table.name))?;
    let read = statement.query_map([], |row| (0..columns.len()).map(|at| row.get_ref(at).map(value_of)).collect())?;
    read.collect()
}

/// What is here and not there, in a few lines.
pub(crate) fn difference(has: &View, wants: &View) -> Option<String> {
    if has == wants {
        return None;
    }
    let extra: Vec<_> = has.iter().filter(|(key, row)| wants.get(*key) != Some(*row)).collect();
    let missing: Vec<_> = wants.iter().filter(|(key, row)| has.get(*key) != Some(*row)).collect();
    Some(format!("has {extra:?}, should have {missing:?}"))
}

impl History {
    pub(crate) fn note(&mut self, unit: i64, world: World) {
        self.views.borrow_mut().retain(|(of, _), _| *of != unit);
        self.worlds.insert(unit, world);
    }

    /// Says that units are parts of the last one: what the server was between is nobody's business.
    pub(crate) fn were_parts(&mut self, after: i64) {
        let Some(whole) = self.worlds.last_key_value().map(|(_, world)| world.clone()) else { return };
        let parts: Vec<i64> = self.worlds.range(after + 1..).map(|(unit, _)| *unit).collect();
        for unit in parts {
            self.note(unit, whole.clone());
        }
    }

    pub(crate) fn last(&self) -> Option<(i64, &World)> {
        self.worlds.last_key_value().map(|(unit, world)| (*unit, world))
    }

    /// How many units there were after one, to another.
    pub(crate) fn units_between(&self, after: i64, upto: i64) -> usize {
        self.worlds.keys().filter(|unit| **unit > after && **unit <= upto).count()
    }

    pub(crate) fn world(&self, unit: i64) -> Result<&World, String> {
        self.worlds.get(&unit).ok_or_else(|| format!("there was no unit {unit}, only {:?}", self.worlds.keys().collect::<Vec<_>>()))
    }

    /// What a node sees at the end of a unit; nothing if it is not active then.
    pub(crate) fn view(&self, unit: i64, node: &NodeName) -> Result<Rc<View>, String> {
        let world = self.world(unit)?;
        if !world.nodes.contains_key(node) {
            return Ok(Rc::default());
        }
        let mut views = self.views.borrow_mut();
        Ok(Rc::clone(views.entry((unit, node.clone())).or_insert_with(|| Rc::new(world.view(node)))))
    }

    /// Compares a local database with what its node sees at the end of a unit. Upload tables stay as they are.
    pub(crate) fn compare(&self, unit: i64, node: &NodeName, local: &Connection) -> Result<(), String> {
        let view = self.view(unit, node)?;
        let dock = &self.world(unit)?.dock;
        let mut held = View::new();
        let mut tables: Vec<&str> = Vec::new();
        for table in dock.tables.iter() {
            let Some(object) = table.object else { continue };
            tables.push(&table.name);
            if dock.objects[object].direction == Direction::Upload {
                continue;
            }
            held.extend(held_rows(local, table).map_err(|error| format!("{node} at unit {unit}: table {}: {error}", table.name))?);
        }
        let listed: Vec<String> = local
            .prepare("SELECT name FROM dock_table ORDER BY name")
            .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect())
            .map_err(|error| error.to_string())?;
        if listed != tables {
            return Err(format!("{node} at unit {unit}: has tables {listed:?}, should have {tables:?}"));
        }
        difference(&held, &view).map_or(Ok(()), |text| Err(format!("{node} at unit {unit}: {text}")))
    }

    /// Looks into every file of an outbox that was not looked at: nothing in it may be of a row, or of a version of one, that the
    /// node does not see at the end of that unit.
    pub(crate) fn look_into(&mut self, outbox: &Path) -> Result<(), String> {
        let Ok(entries) = std::fs::read_dir(outbox) else { return Ok(()) };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "dx") {
                self.file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let mut reader = DownloadReader::open(File::open(path).unwrap()).map_err(|error| text(&error))?;
        let node = reader.header().node.clone().ok_or("a file of nobody")?;
        let mark = format!("{node} {} {}", reader.header().incarnation, reader.summary().content_hash);
        if !self.seen.insert(mark) {
            return Ok(());
        }
        self.files += 1;
        let units: Vec<_> = reader.units().collect::<Result<_, _>>().map_err(|error| text(&error))?;
        for unit in units {
            let number = unit.txn.0;
            let view = self.view(number, &node)?;
            let world = self.world(number)?;
            let mut named = BTreeSet::new();
            for (heading, operation) in &unit.operations {
                let table =
                    &world.dock.tables[world.dock.table(&heading.name).ok_or_else(|| format!("table {} is unknown", heading.name))?];
                let key_of = |row: &Row| -> RowKey { heading.key.iter().map(|at| row[usize::from(*at)].clone()).collect() };
                let key = match operation {
                    Operation::Put { row } => key_of(row),
                    Operation::Delete { key } | Operation::Update { key, .. } => key.clone(),
                };
                let at = (table.name.clone(), key);
                if !named.insert(at.clone()) {
                    return Err(format!("unit {number} names {at:?} twice"));
                }
                let fits = match (operation, view.get(&at)) {
                    // What is told of a row that is taken away is its key, and the node had it.
                    (Operation::Delete { .. }, seen) => seen.is_none(),
                    (_, None) => false,
                    (Operation::Put { row }, Some(seen)) => row == seen,
                    (Operation::Update { changes, .. }, Some(seen)) => {
                        changes.iter().all(|(column, value)| seen.get(usize::from(*column)) == Some(value))
                    }
                };
                if !fits {
                    return Err(format!(
                        "leak to {node} in unit {number}: {operation:?} of {}, which sees {:?}",
                        table.name,
                        view.get(&at)
                    ));
                }
            }
        }
        Ok(())
    }

    /// Compares an unpacked extract with what its node sees: every table, upload tables too.
    pub(crate) fn extract(&self, unit: i64, node: &NodeName, local: &Connection) -> Result<(), String> {
        let world = self.world(unit)?;
        if !world.nodes.contains_key(node) {
            return Err(format!("an extract of {node}, which is not active at unit {unit}"));
        }
        let visible = world.visible(node);
        for (number, table) in world.dock.tables.iter().enumerate().filter(|(_, table)| table.object.is_some()) {
            let sent = sent(table);
            let wants = visible[number].iter().map(|row| (at(table, row), sent.iter().map(|column| row[*column].clone()).collect()));
            let has = held_rows(local, table).map_err(|error| error.to_string())?;
            if let Some(text) = difference(&has, &wants.collect()) {
                return Err(format!("extract of {node} at unit {unit}: {text}"));
            }
        }
        Ok(())
    }
}

pub(crate) fn sent(table: &DockTable) -> Vec<usize> {
    (0..table.columns.len()).filter(|column| table.columns[*column].sent).collect()
}

fn at(table: &DockTable, row: &[Value]) -> (String, RowKey) {
    (table.name.clone(), table.key.iter().map(|column| row[*column].clone()).collect())
}

/// The rows of a table of a local database, by key.
pub(crate) fn held_rows(local: &Connection, table: &DockTable) -> rusqlite::Result<View> {
    let sent = sent(table);
    let key: Vec<usize> = table.key.iter().map(|column| sent.iter().position(|known| known == column).unwrap()).collect();
    let held = rows(local, table, &sent)?;
    Ok(held.into_iter().map(|row| ((table.name.clone(), key.iter().map(|column| row[*column].clone()).collect()), row)).collect())
}
