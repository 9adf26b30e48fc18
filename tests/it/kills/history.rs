//! What was committed on the server, in order, and what follows from it: the state at any unit, and with it the one right
//! content of every node at every place of its stream (I1).
//!
//! The judge shares nothing with the product but the decoder of files: it plays the recorded SQL into an empty database and
//! asks the hand-written oracle of the customer database.

use crate::crm::{self, Tables};
use crate::harness::literal;
use dockmaster::dx::reader::DownloadReader;
use dockmaster::model::event::TableHeading;
use dockmaster::model::operation::Operation;
use dockmaster::model::toc::Toc;
use dockmaster::model::value::Value;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Between two values of a row that is spelt as a literal.
const SEPARATOR: &str = " | ";

/// What was done on the server.
#[derive(Debug, Clone)]
pub enum Deed {
    /// One transaction.
    Sql(String),
    /// A node belongs to another employee from here on.
    Employee(&'static str, i64),
    /// A definition is in force by which everybody may see all contacts, or the one from the beginning.
    Definition { all_contacts: bool },
}

/// A deed and the rows of the log that it made: those above `after`, up to `upto`.
#[derive(Debug, Clone)]
pub struct Entry {
    pub after: i64,
    pub upto: i64,
    pub deed: Deed,
}

/// What a local database held when its program was killed.
#[derive(Debug)]
pub struct Snapshot {
    pub node: &'static str,
    pub unit: i64,
    pub held: Tables,
}

/// Plays the history and answers for one unit after another, ascending.
pub struct Judge<'h> {
    history: &'h [Entry],
    next: usize,
    at: i64,
    server: Connection,
    employees: BTreeMap<&'static str, i64>,
    all_contacts: bool,
    views: BTreeMap<&'static str, Tables>,
}

impl<'h> Judge<'h> {
    /// Begins with the database as it was made.
    pub fn new(history: &'h [Entry], database: &Path) -> Judge<'h> {
        crm::database(database);
        let server = Connection::open(database).unwrap();
        server.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY").unwrap();
        Judge { history, next: 0, at: 0, server, employees: crm::NODES.into_iter().collect(), all_contacts: false, views: BTreeMap::new() }
    }

    /// Returns what a node sees at the end of a unit.
    pub fn view(&mut self, node: &'static str, unit: i64) -> &Tables {
        assert!(unit >= self.at, "asked in order");
        self.at = unit;
        while let Some(entry) = self.history.get(self.next).filter(|entry| entry.upto <= unit) {
            match &entry.deed {
                Deed::Sql(sql) => self.server.execute_batch(sql).unwrap(),
                Deed::Employee(node, employee) => drop(self.employees.insert(node, *employee)),
                Deed::Definition { all_contacts } => self.all_contacts = *all_contacts,
            }
            if entry.upto > entry.after {
                self.views.clear();
            }
            self.next += 1;
        }
        if let Some(torn) = self.history.get(self.next).filter(|entry| entry.after < unit) {
            panic!("unit {unit} ends within one transaction: {torn:?}");
        }
        let employee = self.employees[node];
        self.views.entry(node).or_insert_with(|| crm::view_with(&self.server, employee, self.all_contacts))
    }
}

/// The stream of one node as its files tell it: what they start from, then each unit with its operations.
pub struct Stream {
    pub node: &'static str,
    /// Unit that the files begin after, and the extract there if its first file is still there.
    pub start: (i64, Option<Tables>),
    pub units: BTreeMap<i64, Vec<(TableHeading, Operation)>>,
}

/// Reads the extract and every file of a node's outbox.
pub fn stream(node: &'static str, outbox: &Path) -> Stream {
    let tocs: Vec<PathBuf> = std::fs::read_dir(outbox)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toc"))
        .collect();
    let toc = tocs.iter().max().expect("the node has an extract");
    let description: Toc = serde_json::from_slice(&std::fs::read(toc).unwrap()).unwrap();
    let unpacked = tempfile::NamedTempFile::new().unwrap();
    zstd::stream::copy_decode(File::open(toc.with_extension("db.zst")).unwrap(), unpacked.as_file()).unwrap();
    let extract = crm::held(&Connection::open(unpacked.path()).unwrap());
    let mut stream = Stream { node, start: (description.unit.0, Some(extract)), units: BTreeMap::new() };
    for (place, path) in crm::dx_files_in(outbox).iter().enumerate() {
        let mut reader = DownloadReader::open(File::open(path).unwrap()).unwrap();
        let header = reader.header().clone();
        assert_eq!(header.incarnation, description.incarnation, "{}", path.display());
        if place == 0 && header.file_no.0 > 1 {
            // What the node has applied long ago is purged.
            stream.start = (header.first.0 - 1, None);
        }
        for unit in reader.units() {
            let unit = unit.unwrap();
            let operations = unit.operations.into_iter().map(|(heading, operation)| ((*heading).clone(), operation)).collect();
            assert!(stream.units.insert(unit.txn.0, operations).is_none(), "{node}: unit {} came twice", unit.txn.0);
        }
    }
    stream
}

/// A node as the operations of its files make it: (table, key) -> values, spelt as SQL literals.
#[derive(Debug, Default)]
struct Replica(BTreeMap<(String, String), Vec<String>>);

impl Replica {
    fn of(tables: &Tables) -> Replica {
        // No text of the customer database holds the separator, and every table begins with its key.
        let entry = |table: &String, row: &String| {
            let values: Vec<String> = row.split(SEPARATOR).map(str::to_owned).collect();
            let columns = if table == "account_team" { 2 } else { 1 };
            ((table.clone(), values[..columns].join(SEPARATOR)), values)
        };
        Replica(tables.iter().flat_map(|(table, rows)| rows.iter().map(move |row| entry(table, row))).collect())
    }

    /// Does one operation; says what is wrong with it.
    fn apply(&mut self, heading: &TableHeading, operation: &Operation) -> Result<(), String> {
        let place = |key: &[Value]| (heading.name.clone(), literal(key));
        match operation {
            Operation::Delete { key } => match self.0.remove(&place(key)) {
                Some(_) => Ok(()),
                None => Err(format!("deletes {} {}, which the node does not hold", heading.name, literal(key))),
            },
            Operation::Put { row } => {
                let key: Vec<Value> = heading.key.iter().map(|column| row[usize::from(*column)].clone()).collect();
                self.0.insert(place(&key), row.iter().map(Value::to_string).collect());
                Ok(())
            }
            Operation::Update { key, changes } => {
                let row =
                    self.0.get_mut(&place(key)).ok_or_else(|| format!("updates {} {}, which it lacks", heading.name, literal(key)))?;
                changes.iter().for_each(|(column, value)| row[usize::from(*column)] = value.to_string());
                Ok(())
            }
        }
    }

    fn tables(&self) -> Tables {
        let mut tables = Tables::new();
        for ((table, _), values) in &self.0 {
            tables.entry(table.clone()).or_default().push(values.join(SEPARATOR));
        }
        tables.values_mut().for_each(|rows| rows.sort());
        tables
    }
}

/// Demands that every file of every node, unit by unit, and every local database that was looked at, is exactly what the
/// node sees at that unit: nothing lost, doubled, torn or leaked. Returns how many comparisons were made.
pub fn judge(history: &[Entry], streams: &[Stream], snapshots: &[Snapshot]) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let mut judge = Judge::new(history, &folder.path().join("oracle.db"));
    let mut replicas: BTreeMap<&str, Replica> = BTreeMap::new();
    let mut places: BTreeSet<i64> = snapshots.iter().map(|snapshot| snapshot.unit).collect();
    places.extend(streams.iter().flat_map(|stream| stream.units.keys().copied().chain([stream.start.0])));
    let mut compared = 0;
    for unit in places {
        for snapshot in snapshots.iter().filter(|snapshot| snapshot.unit == unit) {
            let report = crm::compared(judge.view(snapshot.node, unit), &snapshot.held);
            assert_eq!(report, "", "the database of {} when it was killed at unit {unit}", snapshot.node);
            compared += 1;
        }
        for stream in streams {
            let node = stream.node;
            if stream.start.0 == unit {
                let view = judge.view(node, unit);
                let start = stream.start.1.as_ref().unwrap_or(view);
                assert_eq!(crm::compared(view, start), "", "extract of {node} at unit {unit}");
                replicas.insert(node, Replica::of(start));
            }
            let Some(operations) = stream.units.get(&unit) else { continue };
            let replica = replicas.get_mut(node).expect("a stream begins before its first unit");
            for (heading, operation) in operations {
                replica.apply(heading, operation).unwrap_or_else(|wrong| panic!("{node}, unit {unit}: {wrong}"));
            }
            let held = replica.tables();
            assert_eq!(crm::compared(judge.view(node, unit), &held), "", "files of {node} up to unit {unit}");
            compared += 1;
        }
    }
    compared
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(operations: Vec<Operation>, unit: i64) -> Result<usize, String> {
        let deed = |after: i64, upto: i64, sql: &str| Entry { after, upto, deed: Deed::Sql(sql.to_owned()) };
        let history = [deed(0, 5, "DELETE FROM opportunity_line; DELETE FROM opportunity"), deed(5, 7, INSERTED)];
        let columns = ["id", "account_id", "position_id", "name", "amount"].map(str::to_owned).to_vec();
        let heading = TableHeading { name: "opportunity".to_owned(), columns, key: vec![0] };
        let units = BTreeMap::from([(unit, operations.into_iter().map(|operation| (heading.clone(), operation)).collect())]);
        let stream = Stream { node: "ANNA", start: (5, None), units };
        std::panic::catch_unwind(|| judge(&history, &[stream], &[]))
            .map_err(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default())
    }

    /// ANNA has position 4, which the team of account 3 is of.
    const INSERTED: &str = "INSERT INTO opportunity VALUES(500, 3, 4, 'hers', 1), (501, 3, 6, 'another''s', 1)";

    fn opportunity(id: i64, position: i64, name: &str) -> Operation {
        let values = [id, 3, position].map(Value::Integer).into_iter().chain([Value::text(name), Value::Integer(1)]);
        Operation::Put { row: values.collect() }
    }

    #[test]
    fn the_judge_finds_what_is_lost_leaked_torn_and_deleted_twice() {
        assert_eq!(judged(vec![opportunity(500, 4, "hers")], 7), Ok(1));
        assert!(judged(vec![], 7).unwrap_err().contains("lacks 500"));
        assert!(judged(vec![opportunity(500, 4, "hers"), opportunity(501, 6, "another's")], 7).unwrap_err().contains("must not hold 501"));
        assert!(judged(vec![opportunity(500, 4, "hers")], 6).unwrap_err().contains("within one transaction"));
        let gone = Operation::Delete { key: vec![Value::Integer(1)] };
        assert!(judged(vec![opportunity(500, 4, "hers"), gone], 7).unwrap_err().contains("does not hold"));
    }
}
