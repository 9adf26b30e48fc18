//! The definitions of `examples/`, each on its generated database: deployed, with nodes, under random edits, against an
//! oracle of plain SQL written by hand.

use crate::crm::local;
use crate::direct::Direct;
use crate::harness::literals;
use std::fmt::Write;
use std::path::Path;

struct Example {
    name: &'static str,
    /// The database; `None` = `examples/NAME.sql`.
    sql: Option<&'static str>,
    attribute: &'static str,
    /// Nodes with the values of the attribute as SQL literals.
    nodes: &'static [(&'static str, &'static str)],
    /// What a node may see: table, columns, condition; `NODE` stands for its values, other names for the next list.
    oracle: &'static [(&'static str, &'static str, &'static str)],
    /// Names in conditions and what they stand for; each may use those after it.
    names: &'static [(&'static str, &'static str)],
    /// Tables of objects that are written on nodes only: compared after the extract and not edited.
    upload: &'static [&'static str],
}

fn file(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)).unwrap()
}

/// The definition without its server settings: the site brings its own.
fn definition(name: &str) -> String {
    let text = file(&format!("{name}.toml"));
    let mut kept = String::new();
    let mut within = false;
    for line in text.lines() {
        if line.starts_with('[') {
            within = line == "[server]";
        }
        if !within {
            writeln!(kept, "{line}").unwrap();
        }
    }
    kept
}

impl Example {
    fn direct(&self) -> Direct {
        let text = self.sql.map_or_else(|| file(&format!("{}.sql", self.name)), str::to_owned);
        let made = |path: &Path| {
            let conn = rusqlite::Connection::open(path).unwrap();
            conn.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
            conn.execute_batch(&text).unwrap();
        };
        let mut direct = Direct::new(made, &definition(self.name));
        for (node, values) in self.nodes {
            direct.add(node, self.attribute, &values.replace('\'', ""));
        }
        direct
    }

    fn differences(&self, direct: &Direct, with_upload: bool) -> String {
        let mut report = String::new();
        for (node, values) in self.nodes {
            for (table, columns, condition) in self.oracle.iter().filter(|(table, ..)| with_upload || !self.upload.contains(table)) {
                let mut condition = (*condition).to_owned();
                for (name, meaning) in self.names {
                    condition = condition.replace(name, meaning);
                }
                let condition = condition.replace("NODE", values);
                let wanted = literals(&direct.site.path("hq.db"), &format!("SELECT {columns} FROM \"{table}\" WHERE {condition}"));
                let held = literals(&direct.site.path(&local(node)), &format!("SELECT {columns} FROM \"{table}\""));
                for row in wanted.iter().filter(|row| held.binary_search(row).is_err()) {
                    writeln!(report, "{node}: {table} lacks {row}").unwrap();
                }
                for row in held.iter().filter(|row| wanted.binary_search(row).is_err()) {
                    writeln!(report, "{node}: {table} must not hold {row}").unwrap();
                }
                if wanted.len() != held.len() && report.is_empty() {
                    writeln!(report, "{node}: {table} holds rows twice").unwrap();
                }
            }
        }
        report
    }

    /// Edits at random in rounds; after each round every node equals the oracle.
    fn run(&self, rounds: usize) {
        let mut direct = self.direct();
        assert_eq!(self.differences(&direct, true), "", "{} after the extracts", self.name);
        let seen: usize = self.oracle.iter().filter(|(_, _, condition)| *condition != "false").count();
        assert!(seen > 5);
        let seed = crate::harness::seed();
        println!("DOCK_SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let conn = rusqlite::Connection::open(direct.site.path("hq.db")).unwrap();
        conn.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        let tables: Vec<Table> = Table::all(&conn).into_iter().filter(|table| !self.upload.contains(&table.name.as_str())).collect();
        let (mut done, mut units) = (0, 0);
        for _ in 0..rounds {
            for _ in 0..random.usize(1..40) {
                let together = if random.u32(0..4) == 0 { random.usize(2..12) } else { 1 };
                conn.execute_batch("BEGIN").unwrap();
                for _ in 0..together {
                    let table = &tables[random.usize(..tables.len())];
                    // A statement may fail on a constraint, as edits do.
                    done += usize::from(conn.execute_batch(&table.edit(&mut random)).is_ok());
                }
                conn.execute_batch(if random.u32(0..10) == 0 { "ROLLBACK" } else { "COMMIT" }).unwrap();
            }
            units += 1;
            direct.move_on();
            assert_eq!(self.differences(&direct, false), "", "{}, unit {units}, DOCK_SEED={seed}", self.name);
        }
        assert!(done > rounds, "the edits did something");
    }
}

/// A table of the server database, as the edits see it.
struct Table {
    name: String,
    columns: Vec<String>,
    key: Vec<String>,
}

impl Table {
    fn all(conn: &rusqlite::Connection) -> Vec<Table> {
        let mut names = conn
            .prepare(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'dock\\_%' ESCAPE '\\' AND name NOT LIKE 'sqlite%'",
            )
            .unwrap();
        let names: Vec<String> = names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        let of = |name: String| {
            let mut info = conn.prepare(&format!("SELECT name, pk FROM pragma_table_info('{name}')")).unwrap();
            let columns: Vec<(String, i64)> =
                info.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect();
            let key = columns.iter().filter(|(_, pk)| *pk > 0).map(|(name, _)| name.clone()).collect();
            Table { name, columns: columns.into_iter().map(|(name, _)| name).collect(), key }
        };
        names.into_iter().map(of).collect()
    }

    /// A value of a column out of some row.
    fn value(&self, random: &mut fastrand::Rng, column: &str) -> String {
        if random.u32(0..12) == 0 {
            return "NULL".into();
        }
        format!(
            "(SELECT \"{column}\" FROM \"{0}\" LIMIT 1 OFFSET {1} % max(1, (SELECT count(*) FROM \"{0}\")))",
            self.name,
            random.u32(..10_000)
        )
    }

    fn edit(&self, random: &mut fastrand::Rng) -> String {
        let key = self.key.iter().map(|column| format!("\"{column}\"")).collect::<Vec<_>>().join(", ");
        let row = format!(
            "({key}) IN (SELECT {key} FROM \"{0}\" LIMIT {2} OFFSET {1} % max(1, (SELECT count(*) FROM \"{0}\")))",
            self.name,
            random.u32(..10_000),
            random.u32(1..4)
        );
        let clause = ["", "", "OR REPLACE", "OR IGNORE"][random.usize(..4)];
        match random.u32(0..10) {
            0..=5 => {
                let column = &self.columns[random.usize(..self.columns.len())];
                format!("UPDATE {clause} \"{}\" SET \"{column}\" = {} WHERE {row}", self.name, self.value(random, column))
            }
            6 => format!("DELETE FROM \"{}\" WHERE {row}", self.name),
            _ => {
                let values: Vec<String> = self.columns.iter().map(|column| self.value(random, column)).collect();
                format!("INSERT {clause} INTO \"{}\" VALUES({})", self.name, values.join(", "))
            }
        }
    }
}

const ROUNDS: usize = 8;

#[test]
fn the_crm_example_routes_as_plain_sql_says() {
    let example = Example {
        name: "crm",
        sql: None,
        attribute: "employee",
        nodes: &[("REP", "5"), ("LEAD", "2"), ("OTHER", "8"), ("CHIEF", "1")],
        oracle: &[
            ("org", "*", "true"),
            ("product", "*", "true"),
            ("position", "*", "true"),
            ("employee", "*", "position_id IN (SELECT id FROM position)"),
            ("account", "*", "id IN (ACCOUNTS)"),
            ("account_team", "*", "account_id IN (SELECT id FROM account WHERE id IN (ACCOUNTS))"),
            ("address", "*", "account_id IN (SELECT id FROM account WHERE id IN (ACCOUNTS))"),
            ("contact", "*", "id IN (CONTACTS)"),
            ("opportunity", "*", "id IN (CHANCES)"),
            ("opportunity_line", "*", "opportunity_id IN (CHANCES)"),
            ("opportunity_team", "*", "opportunity_id IN (CHANCES)"),
            ("feedback", "*", "false"),
        ],
        names: &[
            (
                "ACCOUNTS",
                "SELECT account_id FROM account_team WHERE position_id IN (TEAM) UNION SELECT id FROM account WHERE kind = 'house' AND org_id IN (SELECT org_id FROM position WHERE id IN (OWN)) UNION SELECT account_id FROM opportunity WHERE id IN (CHANCES) UNION SELECT account_id FROM contact WHERE id IN (CONTACTS)",
            ),
            (
                "CONTACTS",
                "SELECT id FROM contact WHERE owner_id IN (NODE) OR account_id IN (SELECT account_id FROM account_team WHERE position_id IN (OWN))",
            ),
            (
                "CHANCES",
                "SELECT id FROM opportunity WHERE (position_id IN (TEAM) OR id IN (SELECT opportunity_id FROM opportunity_team WHERE active = 1 AND position_id IN (OWN))) AND (closed_at IS NULL OR closed_at >= date('now', '-400 days'))",
            ),
            (
                "TEAM",
                "WITH RECURSIVE below(id) AS (OWN UNION SELECT position.id FROM position JOIN below ON parent_id = below.id) SELECT id FROM below",
            ),
            ("OWN", "SELECT position_id FROM employee WHERE id IN (NODE)"),
        ],
        upload: &["feedback"],
    };
    example.run(ROUNDS);
}

#[test]
fn the_ships_example_routes_as_plain_sql_says() {
    let example = Example {
        name: "ships",
        sql: None,
        attribute: "vessel",
        nodes: &[("VENUS", "'9074001'"), ("SUPER", "'9074001','9074002','9074007'"), ("LAIDUP", "'9074012'")],
        oracle: &[
            ("port", "*", "true"),
            ("rank", "*", "true"),
            (
                "vessel",
                "*",
                "fleet_id IN (SELECT fleet_id FROM vessel WHERE imo IN (NODE)) OR imo IN (SELECT imo FROM assignment WHERE crew_id IN (CREW)) OR imo IN (SELECT imo FROM maintenance_job WHERE id IN (JOBS)) OR imo IN (SELECT imo FROM noon_report WHERE imo IN (NODE))",
            ),
            ("crew_member", "*", "id IN (CREW)"),
            ("certificate", "*", "crew_id IN (CREW)"),
            ("assignment", "*", "crew_id IN (CREW)"),
            ("maintenance_job", "*", "id IN (JOBS)"),
            ("job_part", "*", "job_id IN (JOBS)"),
            ("job_reading", "*", "job_id IN (JOBS)"),
            (
                "manual_page",
                "*",
                "(manual_id, edition) IN (SELECT manual_id, edition FROM manual_issue WHERE class_id IN (SELECT class_id FROM vessel WHERE imo IN (NODE)))",
            ),
            ("noon_report", "*", "imo IN (NODE)"),
        ],
        names: &[
            (
                "CREW",
                "SELECT id FROM crew_member WHERE id IN (SELECT crew_id FROM assignment WHERE status IN ('on board', 'joining') AND imo IN (NODE))",
            ),
            ("JOBS", "SELECT id FROM maintenance_job WHERE imo IN (NODE) AND (done_at IS NULL OR done_at >= date('now', '-730 days'))"),
        ],
        upload: &["noon_report"],
    };
    example.run(ROUNDS);
}

#[test]
fn the_shops_example_routes_as_plain_sql_says() {
    let example = Example {
        name: "shops",
        sql: None,
        attribute: "shop",
        nodes: &[("SHOP-01", "1"), ("SHOP-02", "2"), ("SHOP-10", "10")],
        oracle: &[
            ("article", "*", "true"),
            ("barcode", "*", "true"),
            ("shop", "*", "true"),
            (
                "price",
                "*",
                "(price_list_id IS NULL OR price_list_id IN (SELECT price_list_id FROM shop WHERE id IN (NODE))) AND (valid_to IS NULL OR valid_to >= date('now', '-30 days'))",
            ),
            ("sale", "*", "id IN (SALES)"),
            ("sale_line", "*", "sale_id IN (SALES)"),
            ("payment", "*", "sale_id IN (SALES)"),
            ("stock", "*", "shop_id IN (NODE)"),
            ("transfer", "*", "id IN (TRANSFERS)"),
            ("transfer_line", "*", "transfer_id IN (TRANSFERS)"),
        ],
        names: &[
            ("SALES", "SELECT id FROM sale WHERE shop_id IN (NODE) AND (sold_at IS NULL OR sold_at >= date('now', '-90 days'))"),
            ("TRANSFERS", "SELECT id FROM transfer WHERE from_shop_id IN (NODE) OR to_shop_id IN (NODE)"),
        ],
        upload: &["sale", "sale_line", "payment"],
    };
    example.run(ROUNDS);
}

#[test]
fn the_northwind_example_routes_as_plain_sql_says() {
    let example = Example {
        name: "northwind",
        sql: Some(NORTHWIND),
        attribute: "employee",
        nodes: &[("E1", "1"), ("E2", "2"), ("E3", "3")],
        oracle: &[
            ("Categories", "*", "true"),
            ("Products", "*", "true"),
            ("Employees", "EmployeeID, LastName, ReportsTo", "true"),
            ("Orders", "*", "EmployeeID IN (NODE)"),
            ("Order Details", "*", "OrderID IN (SELECT OrderID FROM Orders WHERE EmployeeID IN (NODE))"),
            ("Customers", "*", "CustomerID IN (CUSTOMERS)"),
            ("CustomerCustomerDemo", "*", "CustomerID IN (CUSTOMERS)"),
            (
                "CustomerDemographics",
                "*",
                "CustomerTypeID IN (SELECT CustomerTypeID FROM CustomerCustomerDemo WHERE CustomerID IN (CUSTOMERS))",
            ),
            ("EmployeeTerritories", "*", "EmployeeID IN (NODE)"),
            ("Territories", "*", "TerritoryID IN (TERRITORIES)"),
            ("Regions", "*", "RegionID IN (SELECT RegionID FROM Territories WHERE TerritoryID IN (TERRITORIES))"),
        ],
        names: &[
            (
                "CUSTOMERS",
                "SELECT CustomerID FROM Customers WHERE CustomerID IN (SELECT CustomerID FROM Orders WHERE EmployeeID IN (NODE))",
            ),
            ("TERRITORIES", "SELECT TerritoryID FROM EmployeeTerritories WHERE EmployeeID IN (NODE)"),
        ],
        upload: &[],
    };
    example.run(ROUNDS);
}

/// The tables of Northwind with a few rows; the real one is tested where it is.
const NORTHWIND: &str = "
CREATE TABLE Categories(CategoryID INTEGER PRIMARY KEY, CategoryName TEXT);
CREATE TABLE Suppliers(SupplierID INTEGER PRIMARY KEY, CompanyName TEXT NOT NULL);
CREATE TABLE Shippers(ShipperID INTEGER PRIMARY KEY, CompanyName TEXT NOT NULL);
CREATE TABLE Employees(EmployeeID INTEGER PRIMARY KEY, LastName TEXT, BirthDate DATE, Address TEXT, HomePhone TEXT, Photo BLOB, Notes TEXT, ReportsTo INTEGER REFERENCES Employees(EmployeeID));
CREATE TABLE Products(ProductID INTEGER PRIMARY KEY, ProductName TEXT NOT NULL, SupplierID INTEGER REFERENCES Suppliers, CategoryID INTEGER REFERENCES Categories, UnitsInStock INTEGER DEFAULT 0);
CREATE TABLE CustomerDemographics(CustomerTypeID TEXT PRIMARY KEY NOT NULL, CustomerDesc TEXT);
CREATE TABLE Customers(CustomerID TEXT PRIMARY KEY NOT NULL, CompanyName TEXT);
CREATE TABLE CustomerCustomerDemo(CustomerID TEXT NOT NULL REFERENCES Customers, CustomerTypeID TEXT NOT NULL REFERENCES CustomerDemographics, PRIMARY KEY(CustomerID, CustomerTypeID));
CREATE TABLE Orders(OrderID INTEGER PRIMARY KEY, CustomerID TEXT REFERENCES Customers, EmployeeID INTEGER REFERENCES Employees, ShipVia INTEGER REFERENCES Shippers(ShipperID), Freight NUMERIC);
CREATE TABLE \"Order Details\"(OrderID INTEGER NOT NULL REFERENCES Orders, ProductID INTEGER NOT NULL REFERENCES Products, Quantity INTEGER NOT NULL DEFAULT 1, Discount REAL, PRIMARY KEY(OrderID, ProductID));
CREATE TABLE Regions(RegionID INTEGER PRIMARY KEY, RegionDescription TEXT NOT NULL);
CREATE TABLE Territories(TerritoryID TEXT PRIMARY KEY NOT NULL, TerritoryDescription TEXT NOT NULL, RegionID INTEGER NOT NULL REFERENCES Regions);
CREATE TABLE EmployeeTerritories(EmployeeID INTEGER NOT NULL REFERENCES Employees, TerritoryID TEXT NOT NULL REFERENCES Territories, PRIMARY KEY(EmployeeID, TerritoryID));
BEGIN;
CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) SELECT i FROM n;
INSERT INTO Categories SELECT i, 'C' || i FROM n WHERE i <= 4;
INSERT INTO Suppliers SELECT i, 'S' || i FROM n WHERE i <= 4;
INSERT INTO Shippers SELECT i, 'Ship ' || i FROM n WHERE i <= 3;
INSERT INTO Employees SELECT i, 'E' || i, '1960-01-01', 'secret', 'secret', x'00', 'secret', CASE WHEN i > 1 THEN i / 2 END FROM n WHERE i <= 5;
INSERT INTO Products SELECT i, 'P' || i, 1 + i % 4, 1 + i % 4, i FROM n WHERE i <= 12;
INSERT INTO CustomerDemographics SELECT 'T' || i, 'type' FROM n WHERE i <= 4;
INSERT INTO Customers SELECT 'K' || i, 'Company ' || i FROM n WHERE i <= 15;
INSERT INTO CustomerCustomerDemo SELECT 'K' || (1 + i % 15), 'T' || (1 + i % 4) FROM n WHERE i <= 20;
INSERT INTO Orders SELECT i, 'K' || (1 + i % 15), CASE WHEN i % 9 > 0 THEN 1 + i % 5 END, 1 + i % 3, i * 1.5 FROM n;
INSERT INTO \"Order Details\" SELECT 1 + i % 40, 1 + i % 12, i, 0.1 FROM n;
INSERT INTO Regions SELECT i, 'R' || i FROM n WHERE i <= 3;
INSERT INTO Territories SELECT 'TT' || i, 'territory', 1 + i % 3 FROM n WHERE i <= 10;
INSERT INTO EmployeeTerritories SELECT 1 + i % 5, 'TT' || i FROM n WHERE i <= 10;
DROP TABLE n;
COMMIT;
";
