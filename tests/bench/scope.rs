//! P14 and P17: the data store with its scope index, on a database of orders and lines of 4,000,000 rows with 5,000 keys.
//!
//! Products and customers are visible because a visible order or line refers to them, so every order and line counts.

use super::meter::{Better, Line, Sides, cpu, micros_each};
use super::{Options, Report};
use dockmaster::base::ids::{ContentHash, Epoch, FileNo, Incarnation, Nonce, Revision, ServerId, TxnId};
use dockmaster::cds::fill::Filling;
use dockmaster::cds::layout::TxnprocFile;
use dockmaster::cds::unit::{RowChange, UnitInput};
use dockmaster::cds::{Cds, CdsState};
use dockmaster::model::dock::Dock;
use dockmaster::model::event::UnitEvents;
use dockmaster::model::node::{Node, NodeState};
use dockmaster::model::schema::Schema;
use dockmaster::model::value::{Row, Value};
use dockmaster::rules::check::check;
use dockmaster::rules::problem::SourceFile;
use dockmaster::store::predicate::PredicateChecker;
use dockmaster::store::schema::read_schema;
use dockmaster::store::sqlite::SqlValue;
use rusqlite::{Connection, params_from_iter};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const SCHEMA: &str = "
CREATE TABLE customers(id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE products(id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE orders(id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customers(id), employee_id INTEGER NOT NULL, placed TEXT NOT NULL,
    shipped TEXT, freight REAL NOT NULL, ship_name TEXT NOT NULL, ship_street TEXT NOT NULL, ship_city TEXT NOT NULL, ship_country TEXT NOT NULL, note TEXT NOT NULL, state INTEGER NOT NULL);
CREATE TABLE lines(id INTEGER PRIMARY KEY, order_id INTEGER NOT NULL REFERENCES orders(id), product_id INTEGER NOT NULL REFERENCES products(id),
    price REAL NOT NULL, quantity INTEGER NOT NULL, discount REAL NOT NULL, note TEXT NOT NULL);
";
const DEFINITION: &str = "version = 1
[server]
database = \"hq.db\"
[node]
employee = { type = \"integer\" }
[object.orders]
members = [\"lines\"]
visible.own = 'orders.employee_id = node.employee'
[object.customers]
visible.needed = 'referenced by orders'
[object.products]
visible.needed = 'referenced by orders'
";
/// The indexes that a database with these references has anyway.
const INDEXES: &str = "CREATE INDEX orders_customer ON orders(customer_id); CREATE INDEX orders_employee ON orders(employee_id);
CREATE INDEX lines_order ON lines(order_id); CREATE INDEX lines_product ON lines(product_id);";

/// The product that a third of all lines is of.
const BROAD: i64 = 1;
const LINES_PER_ORDER: i64 = 3;

/// How many there are of each.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    orders: i64,
    customers: i64,
    products: i64,
    /// The last products, with few lines each.
    narrow: i64,
    employees: i64,
    /// The last employees, none of whom has a line of the broad product or of a narrow one.
    newcomers: i64,
}

impl Sizes {
    fn of(options: &Options) -> Sizes {
        let size = |full, quick| options.size(full, quick) as i64;
        Sizes {
            orders: size(1_000_000, 2_000),
            customers: size(100_000, 200),
            products: size(10_000, 120),
            narrow: size(1_000, 20),
            employees: size(5_000, 100),
            newcomers: size(1_000, 20),
        }
    }

    fn order(self, id: i64, random: &mut fastrand::Rng) -> Row {
        let customer = 1 + random.i64(0..self.customers);
        // Nine in ten orders of a customer belong to its owner.
        let employee = if random.u8(0..10) > 0 { 1 + customer % self.employees } else { 1 + random.i64(0..self.employees) };
        self.order_of(id, customer, employee, random)
    }

    fn order_of(self, id: i64, customer: i64, employee: i64, random: &mut fastrand::Rng) -> Row {
        let mut text = |bytes: usize| Value::Text((0..bytes).map(|_| random.alphanumeric() as u8).collect());
        vec![
            Value::Integer(id),
            Value::Integer(customer),
            Value::Integer(employee),
            Value::text("2026-01-31"),
            Value::Null,
            Value::Real(id as f64 / 7.0),
            text(24),
            text(40),
            text(20),
            text(12),
            text(60),
            Value::Integer(id % 5),
        ]
    }

    fn line(self, id: i64, order: &Row, random: &mut fastrand::Rng) -> Row {
        let Value::Integer(employee) = order[2] else { unreachable!("an order has an employee") };
        let ordinary = self.products - self.narrow;
        let is_newcomer = employee > self.employees - self.newcomers;
        let product = if id % LINES_PER_ORDER == 0 && !is_newcomer {
            BROAD
        } else if id % 300 == 1 && !is_newcomer {
            ordinary + 1 + random.i64(0..self.narrow)
        } else {
            // Few products are in most lines.
            2 + (random.f64().powi(3) * (ordinary - 2) as f64) as i64
        };
        self.line_of(id, order, product)
    }

    fn line_of(self, id: i64, order: &Row, product: i64) -> Row {
        let note = format!("{:x>50}", id % 1_000);
        vec![
            Value::Integer(id),
            order[0].clone(),
            Value::Integer(product),
            Value::Real(id as f64 / 3.0),
            Value::Integer(id % 50),
            Value::Real(0.0),
            Value::text(&note),
        ]
    }

    fn each(self, mut each: impl FnMut(&str, Row)) {
        let mut random = fastrand::Rng::with_seed(17);
        for id in 1..=self.customers {
            each("customers", vec![Value::Integer(id), Value::text("A customer's name")]);
        }
        for id in 1..=self.products {
            each("products", vec![Value::Integer(id), Value::text("A product's name")]);
        }
        for id in 1..=self.orders {
            let order = self.order(id, &mut random);
            for line in (id - 1) * LINES_PER_ORDER + 1..=id * LINES_PER_ORDER {
                each("lines", self.line(line, &order, &mut random));
            }
            each("orders", order);
        }
    }
}

struct Store {
    cds: Cds,
    path: PathBuf,
    dock: Dock,
    unit: i64,
}

impl Store {
    fn fill(folder: &Path, sizes: Sizes) -> Store {
        let empty = Connection::open_in_memory().unwrap();
        empty.execute_batch(SCHEMA).unwrap();
        let schema = read_schema(&empty).unwrap();
        let checked = check(&[SourceFile { name: "dockmaster.toml".into(), text: DEFINITION.into() }], &schema, &PredicateChecker);
        assert!(checked.problems.is_empty(), "{:?}", checked.problems);
        let dock = checked.dock.unwrap();
        let path = folder.join("cds.db");
        let state = CdsState {
            server_id: ServerId([7; 16]),
            server_name: "HQ".to_owned(),
            epoch: Epoch(1),
            revision: Revision(1),
            position: TxnId(0),
            nonce: Nonce::default(),
            day: 20_000,
        };
        let mut filling = Filling::create(&path, dock.clone(), Schema::default(), state).unwrap();
        sizes.each(|table, row| filling.add(dock.table(table).unwrap(), &row).unwrap());
        let node = |number: i64| Node {
            name: format!("N{number:06}").parse().unwrap(),
            state: NodeState::Active,
            incarnation: Incarnation(1),
            extracted: Incarnation(1),
            model: None,
            attributes: BTreeMap::from([("employee".to_owned(), vec![Value::Integer(number)])]),
        };
        filling.finish(&(1..=sizes.employees).map(node).collect::<Vec<_>>()).unwrap();
        Store { cds: Cds::open(&path).unwrap(), path, dock, unit: 0 }
    }

    fn changes(&self, rows: &[(&str, Row)], gone: bool) -> Vec<RowChange> {
        let change = |(table, row): &(&str, Row)| RowChange {
            table: self.dock.table(table).unwrap(),
            key: vec![row[0].clone()],
            row: (!gone).then(|| row.clone()),
        };
        rows.iter().map(change).collect()
    }

    /// Takes a unit in. Returns its events, and the CPU with commit and checkpoint.
    fn take(&mut self, changes: Vec<RowChange>) -> (UnitEvents, f64) {
        let rows = changes.len();
        self.unit += 1;
        let input = UnitInput { unit: TxnId(self.unit), changes, ..UnitInput::default() };
        let file = TxnprocFile {
            file_no: FileNo(self.unit.unsigned_abs()),
            first: TxnId(self.unit),
            last: TxnId(self.unit),
            content_hash: ContentHash::default(),
            bytes: 1,
            created_micros: 0,
        };
        let other = Connection::open(&self.path).unwrap();
        let (events, spent) = cpu(|| {
            let events = self.cds.process(&input).unwrap();
            self.cds.commit(&file, Nonce::default()).unwrap();
            super::world::checkpoint(&other);
            events
        });
        (events, micros_each(spent, rows))
    }
}

pub fn scope(options: &Options, report: &mut Report) {
    let sizes = Sizes::of(options);
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::fill(folder.path(), sizes);
    if options.wants(&["P14"]) {
        fan_in(options, report, &mut store, sizes);
    }
    if options.wants(&["P17"]) {
        new_orders(options, report, &mut store, sizes, folder.path());
    }
}

/// Lines of employees who had none of the product come and go: each makes a key of the product appear, or the last one vanish.
fn fan_in(options: &Options, report: &mut Report, store: &mut Store, sizes: Sizes) {
    let changes = sizes.narrow.min(sizes.newcomers);
    let mut random = fastrand::Rng::with_seed(14);
    // An order for each of them, so that both sides change lines of the same orders.
    let orders: Vec<(&str, Row)> =
        (0..changes).map(|number| ("orders", sizes.order_of(2_000_000 + number, 1, sizes.employees - number, &mut random))).collect();
    store.take(store.changes(&orders, false));
    let mut next = 100_000_000;
    let mut lines = |product: &dyn Fn(i64) -> i64| -> Vec<(&'static str, Row)> {
        let line = |number: i64| {
            next += 1;
            // In no order, as lines of different orders come.
            ("lines", sizes.line_of(next, &orders[((number * 7) % changes) as usize].1, product(number)))
        };
        (0..changes).map(line).collect()
    };
    let broad = |_: i64| BROAD;
    let narrow = |number: i64| sizes.products - sizes.narrow + 1 + number;
    let (mut comes, mut goes) = (Sides::default(), Sides::default());
    for round in 0..options.rounds * 2 {
        let ours = round % 2 == 0;
        let rows = if ours { lines(&broad) } else { lines(&narrow) };
        let (came, cost_in) = store.take(store.changes(&rows, false));
        let (gone, cost_out) = store.take(store.changes(&rows, true));
        // The product is one row; it has a net event for all of its keys, or one for each of its own.
        let products = if ours { 1 } else { changes as usize };
        assert_eq!((came.rows.len(), gone.rows.len()), (changes as usize + products, changes as usize + products));
        let [to_in, to_out] = if ours { [&mut comes.ours, &mut goes.ours] } else { [&mut comes.baseline, &mut goes.baseline] };
        to_in.push(cost_in);
        to_out.push(cost_out);
    }
    let what = "scope: the first line of a key comes, product with 1,000,000 lines / with 10";
    report.lines.push(Line::ratio("P14", what, "us/row", &comes, Better::Lower, 1.5, 1.2));
    let what = "scope: the last line of a key goes, product with 1,000,000 lines / with 10";
    report.lines.push(Line::ratio("P14", what, "us/row", &goes, Better::Lower, 1.5, 1.2));
}

fn new_orders(options: &Options, report: &mut Report, store: &mut Store, sizes: Sizes, folder: &Path) {
    let orders = options.size(5_000, 100) as i64;
    let base = Connection::open(folder.join("raw.db")).unwrap();
    // As the data store's connection is set up, so that only what is done differs.
    base.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -65536; PRAGMA wal_autocheckpoint = 10000; PRAGMA foreign_keys = OFF")
        .unwrap();
    base.execute_batch(SCHEMA).unwrap();
    let insert = |table: &str, row: &Row| {
        let marks = vec!["?"; row.len()].join(", ");
        let mut statement = base.prepare_cached(&format!("INSERT INTO {table} VALUES({marks})")).unwrap();
        statement.execute(params_from_iter(row.iter().map(SqlValue))).unwrap();
    };
    base.execute_batch("BEGIN").unwrap();
    sizes.each(|table, row| insert(table, &row));
    base.execute_batch("COMMIT").unwrap();
    base.execute_batch(INDEXES).unwrap();
    super::world::checkpoint(&base);

    let batch = |round: usize| -> Vec<(&str, Row)> {
        let mut random = fastrand::Rng::with_seed(round as u64);
        let mut rows = Vec::new();
        for number in 0..orders {
            let id = 10_000_000 + round as i64 * orders + number;
            let order = sizes.order(id, &mut random);
            for line in 0..LINES_PER_ORDER {
                rows.push(("lines", sizes.line(id * LINES_PER_ORDER + line, &order, &mut random)));
            }
            rows.push(("orders", order));
        }
        rows
    };
    let sides = Sides::measure(
        options.rounds,
        |round| {
            let rows = batch(round);
            let (events, cost) = store.take(store.changes(&rows, false));
            assert!(events.rows.len() >= rows.len(), "every row has its event, and so have products and customers that came into view");
            cost
        },
        |round| {
            let rows = batch(round);
            let (_, spent) = cpu(|| {
                base.execute_batch("BEGIN").unwrap();
                rows.iter().for_each(|(table, row)| insert(table, row));
                base.execute_batch("COMMIT").unwrap();
                super::world::checkpoint(&base);
            });
            micros_each(spent, rows.len())
        },
    );
    let what = "data store and scope: new orders with 3 lines, 4,000,000 rows / plain SQLite with its indexes";
    report.lines.push(Line::ratio("P17", what, "us/row", &sides, Better::Lower, 1.6, 1.2));
}
