//! A local database with pending work beside a model of the server's tables: what the tests of rebasing stand on.
//!
//! The server is an ordinary database in memory; a unit of it is what a transaction changed there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use crate::node_kit::{Kit, START, open, rows};
use dockmaster::base::ids::{ContentHash, FileNo, InstallId, Revision, TxnId, UnitNo};

use dockmaster::model::event::{TableHeading, UnitControls};

use dockmaster::model::merge_rules::MergeRules;
use dockmaster::model::operation::Operation;
use dockmaster::model::upload::{Confirm, KeyMapping, Outcome, RowChange, UnitId};
use dockmaster::model::value::{Row, RowKey, Value};
use dockmaster::store::local::{LocalDatabase, Watermark};
use dockmaster::store::local_apply::{TableOperation, UnitError};
use dockmaster::store::local_capture::{ensure_capture, read_local_captures};
use rusqlite::{Connection, params};
use std::collections::BTreeMap;

pub(crate) const INSTALL: InstallId = InstallId([9; 16]);

/// Rows of every table by key.
pub(crate) type Tables = BTreeMap<String, BTreeMap<RowKey, Row>>;

/// What the server says of rows in one unit.
pub(crate) type Operations = Vec<(TableHeading, Operation)>;

/// A unit that the test knows to be pending.
#[derive(Debug, Clone)]
pub(crate) struct LocalUnit {
    pub(crate) number: u64,
    pub(crate) changes: Vec<(String, RowChange)>,
}

/// See the module.
pub(crate) struct Desk {
    pub(crate) kit: Kit,
    pub(crate) app: Connection,
    pub(crate) server: Connection,
    pub(crate) local: LocalDatabase,
    pub(crate) unit: i64,
    pub(crate) pending: Vec<LocalUnit>,
    pub(crate) rules: BTreeMap<String, MergeRules>,
    pub(crate) headings: Vec<TableHeading>,
}

impl Desk {
    pub(crate) fn new(ddl: &str, tables: &[&str]) -> Desk {
        let listed: Vec<(&str, &[&str])> = tables.iter().map(|table| (*table, &[] as &[&str])).collect();
        let kit = Kit::new(ddl, &listed);
        kit.extract_all();
        let app = kit.app();
        app.execute_batch("PRAGMA foreign_keys = ON; PRAGMA synchronous = OFF").unwrap();
        app.execute("UPDATE dock_state SET install_id = ?1", [INSTALL.to_string()]).unwrap();
        ensure(&app);
        let server = open(std::path::Path::new(":memory:"));
        server.execute_batch(&format!("{ddl}; PRAGMA foreign_keys = ON")).unwrap();
        let local = LocalDatabase::open(&kit.path("pos.db")).unwrap();
        let headings = tables.iter().map(|table| kit.heading(table)).collect();
        Desk { kit, app, server, local, unit: START, pending: Vec::new(), rules: BTreeMap::new(), headings }
    }

    pub(crate) fn rule(&mut self, table: &str, direction: &str, rules: MergeRules) {
        let json = serde_json::to_string(&rules).unwrap();
        self.app.execute("INSERT OR REPLACE INTO dock_merge_rules VALUES (?1, ?2, ?3)", params![table, direction, json]).unwrap();
        self.rules.insert(table.to_owned(), rules);
    }

    pub(crate) fn heading(&self, table: &str) -> &TableHeading {
        self.headings.iter().find(|heading| heading.name == table).unwrap()
    }

    pub(crate) fn tables(&self, connection: &Connection) -> Tables {
        self.headings.iter().map(|heading| (heading.name.clone(), by_key(heading, rows(connection, &select(heading))))).collect()
    }

    /// The tables overlaid by the base entries, read without the code under test.
    pub(crate) fn overlaid(&self) -> Tables {
        let mut tables = self.tables(&self.app);
        for capture in read_local_captures(&self.app).unwrap() {
            let heading = self.heading(&capture.table);
            let columns: Vec<String> = (1..=capture.columns.len()).map(|place| format!("c{place}")).collect();
            let table = tables.get_mut(&capture.table).unwrap();
            for row in rows(&self.app, &format!("SELECT present, {} FROM dock_base_{}", columns.join(", "), capture.id)) {
                let key = key_of(heading, &row[1..]);
                if let Some(same) = find(table, &key) {
                    table.remove(&same);
                }
                if row[0] == Value::Integer(1) {
                    table.insert(key, row[1..].to_vec());
                }
            }
        }
        tables
    }

    /// Runs local SQL and cuts what it changed into a unit. Returns its number; `None` if nothing changed or SQLite refused.
    pub(crate) fn edit(&mut self, sql: &str) -> Option<u64> {
        transact(&self.app, sql);
        let report = self.local.cut().unwrap();
        report.units.iter().for_each(|number| self.adopt_cut(number.0));
        report.units.last().map(|number| number.0)
    }

    /// Takes note of a unit that was cut.
    pub(crate) fn adopt_cut(&mut self, number: u64) {
        let unit = self.local.pending_unit(UnitNo(number)).unwrap().unwrap();
        let changes = unit.changes.into_iter().map(|(heading, change)| (heading.name.clone(), change)).collect();
        self.pending.push(LocalUnit { number, changes });
    }

    /// Suspended units with their reasons.
    pub(crate) fn suspended(&self) -> BTreeMap<u64, String> {
        let mut statement = self.app.prepare("SELECT unit, suspended FROM dock_unit WHERE suspended IS NOT NULL").unwrap();
        let found = statement.query_map([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?))).unwrap();
        found.collect::<Result<_, _>>().unwrap()
    }

    /// Runs SQL on the server; returns the operations of the unit. A refusal changes nothing.
    pub(crate) fn on_server(&self, sql: &str) -> Vec<(TableHeading, Operation)> {
        let before = self.tables(&self.server);
        transact(&self.server, sql);
        self.difference(&before)
    }

    pub(crate) fn difference(&self, before: &Tables) -> Vec<(TableHeading, Operation)> {
        let after = self.tables(&self.server);
        let mut operations = Vec::new();
        for heading in &self.headings {
            let (old, new) = (&before[&heading.name], &after[&heading.name]);
            operations.extend(
                old.keys().filter(|key| !new.contains_key(*key)).map(|key| (heading.clone(), Operation::Delete { key: key.clone() })),
            );
            for (key, row) in new {
                match old.get(key) {
                    Some(was) if was == row => {}
                    Some(was) => {
                        let changes = (0u16..).zip(row).zip(was).filter(|((_, is), was)| is != was).map(|((at, is), _)| (at, is.clone()));
                        operations.push((heading.clone(), Operation::Update { key: key.clone(), changes: changes.collect() }));
                    }
                    None => operations.push((heading.clone(), Operation::Put { row: row.clone() })),
                }
            }
        }
        operations
    }

    /// Applies units of the stream in one transaction.
    pub(crate) fn try_apply(&mut self, units: &[(Operations, Vec<Confirm>)]) -> Result<(), UnitError> {
        let transaction = self.local.begin().unwrap();
        for (operations, confirms) in units {
            self.unit += 1;
            let operations: Vec<TableOperation<'_>> = operations.iter().map(|(heading, operation)| (heading, operation)).collect();
            let controls = UnitControls { confirms: confirms.clone(), ..Default::default() };
            transaction.begin_controls(&controls)?;
            transaction.apply_unit(TxnId(self.unit), &operations)?;
            transaction.confirm(TxnId(self.unit), confirms)?;
            transaction.end_controls(&controls)?;
        }
        let reached = Watermark { file: FileNo(0), chain_hash: ContentHash::default(), unit: TxnId(self.unit), revision: Revision(1) };
        transaction.commit(&reached)?;
        for confirm in
            units.iter().flat_map(|(_, confirms)| confirms).filter(|confirm| confirm.outcome.is_final() && confirm.unit.install == INSTALL)
        {
            self.pending.retain(|unit| unit.number != confirm.unit.number.0);
        }
        Ok(())
    }

    pub(crate) fn apply(&mut self, operations: Vec<(TableHeading, Operation)>, confirms: Vec<Confirm>) {
        self.try_apply(&[(operations, confirms)]).unwrap();
        self.check();
    }

    /// A unit of the server by SQL, applied.
    pub(crate) fn serve(&mut self, sql: &str) {
        let operations = self.on_server(sql);
        self.apply(operations, Vec::new());
    }

    /// What must hold after every apply.
    pub(crate) fn check(&self) {
        assert_eq!(self.overlaid(), self.tables(&self.server), "the server view is the server's tables (I1)");
        let suspended = self.suspended();
        let mut model = self.tables(&self.server);
        let mut known: Vec<u64> = rows(&self.app, "SELECT unit FROM dock_unit ORDER BY 1").iter().map(|row| number(&row[0])).collect();
        known.sort_unstable();
        assert_eq!(known, self.pending.iter().map(|unit| unit.number).collect::<Vec<_>>(), "applied + suspended = pending");
        for unit in self.pending.iter().filter(|unit| !suspended.contains_key(&unit.number)) {
            self.redo(&mut model, unit);
        }
        assert_eq!(self.tables(&self.app), model, "the tables are the server's with the units that are shown; suspended: {suspended:?}");
        let broken = rows(&self.app, "PRAGMA foreign_key_check");
        assert_eq!(
            broken,
            Vec::<Row>::new(),
            "{:#?} {suspended:?} {:?} {:?}",
            self.pending,
            self.tables(&self.app),
            self.tables(&self.server)
        );
        assert!(suspended.values().all(|reason| reason.contains("table ")), "{suspended:?}");
        // One that nothing was logged after (an insert that was ignored) stays until the next cut.
        if self.pending.is_empty() {
            for capture in read_local_captures(&self.app).unwrap() {
                let left = rows(&self.app, &format!("SELECT * FROM dock_base_{} WHERE settled IS NOT NULL", capture.id));
                assert_eq!(left, Vec::<Row>::new(), "entries of table {} that no unit names", capture.table);
            }
        }
    }

    fn redo(&self, model: &mut Tables, unit: &LocalUnit) {
        // Rows that go or move first, as a unit has no order.
        let mut written = Vec::new();
        for (table, change) in &unit.changes {
            let heading = self.heading(table);
            let rows = model.get_mut(table).unwrap();
            let key = change.key(&heading.key);
            let there = find(rows, &key);
            match change {
                RowChange::Delete { .. } => {
                    there.map(|key| rows.remove(&key));
                }
                RowChange::Insert { row } => written.push((table, heading, row.clone())),
                RowChange::Update { fields, .. } => {
                    let there = there.unwrap_or_else(|| panic!("unit {} is shown without its row {key:?} of {table}", unit.number));
                    let mut row = rows.remove(&there).unwrap();
                    for field in fields {
                        let name = &heading.columns[usize::from(field.column)];
                        let sums = self.rules.get(table).is_some_and(|rules| rules.policy_of(name).to_string() == "sum");
                        let slot = &mut row[usize::from(field.column)];
                        *slot = match (&*slot, &field.before, &field.after) {
                            (Value::Integer(is), Value::Integer(before), Value::Integer(after)) if sums => {
                                Value::Integer(is + after - before)
                            }
                            _ => field.after.clone(),
                        };
                    }
                    written.push((table, heading, row));
                }
            }
        }
        for (table, heading, row) in written {
            let rows = model.get_mut(table).unwrap();
            let key = key_of(heading, &row);
            if let Some(there) = find(rows, &key) {
                assert_eq!(
                    rows[&there],
                    row,
                    "unit {} is shown on a key of {table} that is taken: {:#?} {:?} {:?}",
                    unit.number,
                    self.pending,
                    self.tables(&self.app),
                    self.tables(&self.server)
                );
            }
            rows.insert(key, row);
        }
    }
}

/// Runs SQL in one transaction, or nothing of it. SQLite lets a row lose itself as its parent, which counts as refused here.
fn transact(connection: &Connection, sql: &str) {
    let done = connection.execute_batch(&format!("BEGIN; {sql}")).is_ok() && rows(connection, "PRAGMA foreign_key_check").is_empty();
    if !done || connection.execute_batch("COMMIT").is_err() {
        connection.execute_batch("ROLLBACK").unwrap();
    }
}

pub(crate) fn number(value: &Value) -> u64 {
    let Value::Integer(number) = value else { panic!("{value}") };
    *number as u64
}

pub(crate) fn confirm(number: u64, outcome: Outcome) -> Confirm {
    Confirm { unit: UnitId { install: INSTALL, number: UnitNo(number) }, outcome }
}

pub(crate) fn merged(number: u64) -> Confirm {
    merged_with(number, &[])
}

pub(crate) fn merged_with(number: u64, keys: &[KeyMapping]) -> Confirm {
    confirm(number, Outcome::Merged { conflicts: Vec::new(), keys: keys.to_vec() })
}

pub(crate) fn ensure(connection: &Connection) {
    ensure_capture(connection, &[]).unwrap();
}

fn select(heading: &TableHeading) -> String {
    format!("SELECT {} FROM {}", heading.columns.join(", "), heading.name)
}

pub(crate) fn key_of(heading: &TableHeading, row: &[Value]) -> RowKey {
    heading.key.iter().map(|place| row[usize::from(*place)].clone()).collect()
}

fn folded(key: &RowKey) -> Vec<String> {
    key.iter().map(|value| value.to_string().to_ascii_lowercase()).collect()
}

/// The key under which a table has a row, whatever its case.
fn find(table: &BTreeMap<RowKey, Row>, key: &RowKey) -> Option<RowKey> {
    if table.contains_key(key) {
        return Some(key.clone());
    }
    table.keys().find(|known| folded(known) == folded(key)).cloned()
}

fn by_key(heading: &TableHeading, rows: Vec<Row>) -> BTreeMap<RowKey, Row> {
    rows.into_iter().map(|row| (key_of(heading, &row), row)).collect()
}
