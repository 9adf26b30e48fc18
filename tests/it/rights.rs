//! Rights of uploads: what a node may do to the server database with a unit of its changes.
//!
//! The server database here is small and has one of everything that can go wrong: orders with lines that cascade, customers that are
//! seen only since an order refers to them, a table that no node gets and that hangs on orders, private expenses, memos that may be
//! given away, a price list that only comes down.

mod forged;
mod sight;
mod units;

use dockmaster::base::ids::{InstallId, Revision, TxnId, UnitNo};
use dockmaster::model::dock::Dock;
use dockmaster::model::event::TableHeading;
use dockmaster::model::node::Node;
use dockmaster::model::schema::Schema;
use dockmaster::model::upload::{FieldChange, RowChange, UploadHead, UploadUnit};
use dockmaster::model::value::{Row, RowKey, Value};
use dockmaster::rules::check::check;
use dockmaster::rules::problem::SourceFile;
use dockmaster::server::nodes::{self, NodeSettings};
use dockmaster::store::install::InstallPlan;
use dockmaster::store::predicate::PredicateChecker;
use dockmaster::store::rights::{Basis, Refusal, Right, Rights};
use dockmaster::store::sqlite::{ServerDatabase, SqlValue, quote_name, value_of};
use rusqlite::{Connection, params_from_iter};
use std::collections::BTreeMap;
use std::sync::Arc;

const TABLES: &str = "
CREATE TABLE employee(id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE customer(id INTEGER PRIMARY KEY, name TEXT, credit INTEGER);
CREATE TABLE orders(id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customer(id) ON DELETE CASCADE,
  employee_id INTEGER REFERENCES employee(id), amount INTEGER, note TEXT, secret TEXT, approved INTEGER);
CREATE TABLE line(order_id INTEGER NOT NULL REFERENCES orders(id) ON DELETE CASCADE ON UPDATE CASCADE, number INTEGER NOT NULL, what TEXT,
  PRIMARY KEY(order_id, number));
CREATE TABLE audit(id INTEGER PRIMARY KEY, order_id INTEGER REFERENCES orders(id) ON DELETE SET NULL);
CREATE TABLE memo(id TEXT PRIMARY KEY NOT NULL, owner INTEGER, body TEXT);
CREATE TABLE expense(id TEXT PRIMARY KEY NOT NULL, amount INTEGER);
CREATE TABLE price(id INTEGER PRIMARY KEY, value INTEGER);
CREATE TABLE team(id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE team_member(team_id INTEGER NOT NULL REFERENCES team(id), employee_id INTEGER NOT NULL, PRIMARY KEY(team_id, employee_id));
CREATE VIEW everything AS SELECT * FROM orders;
INSERT INTO employee VALUES (1, 'Anna'), (2, 'Bert');
INSERT INTO customer VALUES (1, 'Acme', 10), (2, 'Bolt', 20), (3, 'Cork', 30);
INSERT INTO orders VALUES (10, 1, 1, 100, 'a', 's', 0), (11, 1, 2, 200, 'b', 's', 0), (12, 2, 1, 300, 'c', 's', 0), (13, 3, 2, 400, 'd', 's', 0),
  (14, 2, 1, 500, 'e', 's', 0);
INSERT INTO line VALUES (10, 1, 'x'), (11, 1, 'y'), (12, 1, 'z'), (14, 1, 'v');
INSERT INTO audit VALUES (1, 14);
INSERT INTO memo VALUES ('m1', 1, 'mine'), ('m2', 2, 'his');
INSERT INTO expense VALUES ('e0', 1);
INSERT INTO price VALUES (1, 5);
INSERT INTO team VALUES (1, 'north'), (2, 'south');
INSERT INTO team_member VALUES (1, 1), (2, 2);
";

const DEFINITION: &str = r#"version = 1
[node]
employee = { type = "integer", must_exist = "employee.id" }
[object.orders]
members = ["line"]
dangling = ["orders.employee_id"]
visible.own = 'orders.employee_id = node.employee'
[object.customer]
visible.ordered = 'referenced by orders'
[object.memo]
give_away = true
visible.own = 'memo.owner = node.employee'
[object.expense]
direction = "upload"
visible = 'nobody'
[object.price]
direction = "download"
visible = 'everyone'
[object.team]
members = ["team_member"]
visible.mine = 'team.id -> team_member(team_id).employee_id = node.employee'
[table.orders]
omit = ["secret"]
"#;

/// A server database with the node ANNA, who is employee 1, and BERT, who is employee 2.
struct Place {
    _folder: tempfile::TempDir,
    /// What programs and the stand-in for the Merger write through.
    app: Connection,
    db: ServerDatabase,
    dock: Dock,
    schema: Schema,
    anna: Node,
    bert: Node,
}

impl Place {
    fn new() -> Place {
        Place::with(DEFINITION)
    }

    fn with(definition: &str) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch("PRAGMA synchronous = OFF").unwrap();
        app.execute_batch(TABLES).unwrap();
        app.execute_batch("PRAGMA foreign_keys = ON").unwrap();
        let db = ServerDatabase::open(&path).unwrap();
        let schema = db.schema().unwrap();
        let mut checked = check(&[SourceFile { name: "d".into(), text: definition.into() }], &schema, &PredicateChecker);
        let mut dock = checked.dock.take().unwrap_or_else(|| panic!("{:?}", checked.problems));
        let orders = dock.table("orders").unwrap();
        dock.tables[orders].merge.download_only = vec!["approved".into()];
        db.install(&InstallPlan { dock: &dock, schema: &schema, revision_text: definition, server_name: "HQ" }).unwrap();
        let node = |name: &str, employee: &str| {
            let attributes = BTreeMap::from([("employee".to_owned(), vec![employee.to_owned()])]);
            let name = name.parse().unwrap();
            nodes::add(&db, &dock, &name, &NodeSettings { model: None, attributes }).unwrap();
            nodes::start(&db, &name).unwrap();
            db.node(&name).unwrap().unwrap()
        };
        let (anna, bert) = (node("ANNA", "1"), node("BERT", "2"));
        Place { _folder: folder, app, db, dock, schema, anna, bert }
    }

    fn basis(&self) -> Basis<'_> {
        Basis { dock: &self.dock, revision: Revision(1), schema: &self.schema, day: 20_000 }
    }

    fn heading(&self, table: &str) -> Arc<TableHeading> {
        crate::node_kit::sent_heading(&self.dock, table)
    }

    fn sql(&self, sql: &str) {
        self.app.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    fn rows(&self, sql: &str) -> Vec<Row> {
        crate::node_kit::rows(&self.app, sql)
    }

    /// The server's row in the columns that nodes have.
    fn row(&self, table: &str, key: &[Value]) -> Option<Row> {
        let heading = self.heading(table);
        let columns: Vec<String> = heading.columns.iter().map(|name| quote_name(name)).collect();
        let terms: Vec<String> =
            heading.key.iter().enumerate().map(|(at, place)| format!("{} = ?{}", columns[usize::from(*place)], at + 1)).collect();
        let sql = format!("SELECT {} FROM {} WHERE {}", columns.join(", "), quote_name(table), terms.join(" AND "));
        let mut statement = self.app.prepare(&sql).unwrap();
        let mut rows = statement.query(params_from_iter(key.iter().map(SqlValue))).unwrap();
        let row = rows.next().unwrap()?;
        Some((0..columns.len()).map(|place| value_of(row.get_ref(place).unwrap())).collect())
    }

    fn insert(&self, table: &str, row: &[Value]) -> Change {
        (self.heading(table), RowChange::Insert { row: row.to_vec() })
    }

    fn update(&self, table: &str, key: &[Value], fields: &[(&str, Value)]) -> Change {
        let heading = self.heading(table);
        let before = self.row(table, key);
        let fields = fields.iter().map(|(name, after)| {
            let column = heading.columns.iter().position(|column| column == name).unwrap();
            let before = before.as_ref().map_or(Value::Null, |row| row[column].clone());
            FieldChange { column: u16::try_from(column).unwrap(), base: before.clone(), before, after: after.clone() }
        });
        let fields = fields.collect();
        (heading, RowChange::Update { key: key.to_vec(), fields, whole: None })
    }

    fn delete(&self, table: &str, key: &[Value]) -> Change {
        let heading = self.heading(table);
        let before = self.row(table, key).unwrap_or_else(|| vec![Value::Null; heading.columns.len()]);
        (heading, RowChange::Delete { key: key.to_vec(), before, base: None })
    }

    fn end(&self) -> TxnId {
        self.db.log_end().unwrap()
    }

    fn unit(&self, changes: Vec<Change>) -> UploadUnit {
        unit_at(self.end(), changes)
    }

    fn before(&self, node: &Node, unit: &UploadUnit) -> Result<Vec<Right>, Refusal> {
        Rights::new(&self.db, self.basis(), node).before(InstallId([1; 16]), unit).unwrap()
    }

    /// What a Merger does with a unit, without policies: asks, writes, asks again, and takes everything back if the second answer is no.
    fn merge(&self, node: &Node, unit: &UploadUnit) -> Result<Vec<Right>, Refused> {
        let rights = Rights::new(&self.db, self.basis(), node);
        let said = rights.before(InstallId([1; 16]), unit).unwrap().map_err(Refused::Before)?;
        let end = self.end();
        self.sql("SAVEPOINT unit");
        let written = match self.write(unit, &said) {
            Ok(written) => written,
            Err(error) => {
                self.sql("ROLLBACK TO unit; RELEASE unit");
                return Err(Refused::Constraint(error.to_string()));
            }
        };
        let kept = self.keep();
        self.sql("RELEASE unit");
        let answer = rights.after(unit, &said, &written).unwrap();
        if let Err(refusal) = answer {
            self.take_back(&kept, end);
            return Err(Refused::After(refusal));
        }
        Ok(said)
    }

    /// What the stand-in may have to put back: the asking connection is another one, so it sees only what is committed.
    fn keep(&self) -> BTreeMap<&'static str, Vec<Row>> {
        // The rows of before the savepoint, as a third connection still sees them.
        let old = Connection::open(self.db.path()).unwrap();
        WRITTEN.iter().map(|table| (*table, crate::node_kit::rows(&old, &format!("SELECT * FROM {table}")))).collect()
    }

    fn take_back(&self, kept: &BTreeMap<&'static str, Vec<Row>>, end: TxnId) {
        self.sql("PRAGMA foreign_keys = OFF; BEGIN");
        for (table, rows) in kept {
            self.sql(&format!("DELETE FROM {table}"));
            for row in rows {
                let marks: Vec<String> = (1..=row.len()).map(|at| format!("?{at}")).collect();
                self.app
                    .execute(&format!("INSERT INTO {table} VALUES({})", marks.join(", ")), params_from_iter(row.iter().map(SqlValue)))
                    .unwrap();
            }
        }
        self.sql(&format!("DELETE FROM dock_txn_log WHERE id > {end}; UPDATE sqlite_sequence SET seq = {end} WHERE name = 'dock_txn_log'"));
        self.sql("COMMIT; PRAGMA foreign_keys = ON");
    }

    fn write(&self, unit: &UploadUnit, rights: &[Right]) -> rusqlite::Result<Vec<Option<RowKey>>> {
        let mut written = Vec::new();
        for ((heading, change), right) in unit.changes.iter().zip(rights) {
            let Right::Go { server } = right else {
                written.push(None);
                continue;
            };
            let key = change.key(&heading.key);
            let columns: Vec<String> = heading.columns.iter().map(|name| quote_name(name)).collect();
            let table = quote_name(&heading.name);
            let terms = |from: usize| -> String {
                let term = |(at, place): (usize, &u16)| format!("{} = ?{}", columns[usize::from(*place)], at + from);
                heading.key.iter().enumerate().map(term).collect::<Vec<_>>().join(" AND ")
            };
            match change {
                RowChange::Insert { row } => {
                    let marks: Vec<String> = (1..=row.len()).map(|at| format!("?{at}")).collect();
                    let sql = format!("INSERT OR ABORT INTO {table}({}) VALUES({})", columns.join(", "), marks.join(", "));
                    self.app.execute(&sql, params_from_iter(row.iter().map(SqlValue)))?;
                    written.push(Some(key));
                }
                RowChange::Update { fields, .. } if server.is_some() => {
                    let sets: Vec<String> = fields
                        .iter()
                        .enumerate()
                        .map(|(at, field)| format!("{} = ?{}", columns[usize::from(field.column)], at + 1))
                        .collect();
                    let sql = format!("UPDATE OR ABORT {table} SET {} WHERE {}", sets.join(", "), terms(fields.len() + 1));
                    let values = fields.iter().map(|field| &field.after).chain(&key).map(SqlValue);
                    self.app.execute(&sql, params_from_iter(values))?;
                    let mut new = key;
                    for (slot, place) in new.iter_mut().zip(&heading.key) {
                        if let Some(field) = fields.iter().find(|field| field.column == *place) {
                            *slot = field.after.clone();
                        }
                    }
                    written.push(Some(new));
                }
                RowChange::Delete { .. } => {
                    self.app.execute(&format!("DELETE FROM {table} WHERE {}", terms(1)), params_from_iter(key.iter().map(SqlValue)))?;
                    written.push(None);
                }
                RowChange::Update { .. } => written.push(None),
            }
        }
        Ok(written)
    }
}

/// Tables that the stand-in for the Merger writes to, with those that foreign keys and rights change along.
const WRITTEN: &[&str] = &["customer", "orders", "line", "audit", "memo", "expense", "price", "team", "team_member"];

type Change = (Arc<TableHeading>, RowChange);

/// Where a unit was refused.
#[derive(Debug)]
enum Refused {
    Before(Refusal),
    Constraint(String),
    After(Refusal),
}

impl Refused {
    fn reason(&self) -> &str {
        match self {
            Refused::Before(refusal) | Refused::After(refusal) => &refusal.reason,
            Refused::Constraint(reason) => reason,
        }
    }
}

fn unit_at(applied: TxnId, changes: Vec<Change>) -> UploadUnit {
    let head = UploadHead {
        number: UnitNo(1),
        applied,
        revision: Revision(1),
        cut_at_micros: 0,
        label: None,
        hidden: Vec::new(),
        changes: changes.len() as u64,
    };
    UploadUnit { head, changes }
}

fn int(integer: i64) -> Value {
    Value::Integer(integer)
}

fn text(text: &str) -> Value {
    Value::text(text)
}
