//! The Northwind database, which nobody here made: nine employees as nodes, 500 random edits by the plain `sqlite3`
//! program, and an oracle of plain SQL written by hand.

use crate::harness::{Site, literals};
use std::fmt::Write;
use std::path::{Path, PathBuf};

const EMPLOYEES: i64 = 9;
const EDITS: usize = 500;

/// What employee `?` may see, table by table: (table, columns, condition).
pub const ORACLE: &[(&str, &str, &str)] = &[
    ("Categories", "*", "true"),
    ("Suppliers", "*", "true"),
    ("Shippers", "*", "true"),
    ("Products", "*", "true"),
    (
        "Employees",
        "EmployeeID, LastName, FirstName, Title, TitleOfCourtesy, HireDate, City, Region, PostalCode, Country, Extension, ReportsTo, PhotoPath",
        "true",
    ),
    ("Orders", "*", "EmployeeID = ?"),
    ("Order Details", "*", "OrderID IN (SELECT OrderID FROM Orders WHERE EmployeeID = ?)"),
    ("Customers", "*", "CustomerID IN (SELECT CustomerID FROM Orders WHERE EmployeeID = ?)"),
    (
        "CustomerCustomerDemo",
        "*",
        "CustomerID IN (SELECT o.CustomerID FROM Orders o JOIN Customers USING (CustomerID) WHERE o.EmployeeID = ?)",
    ),
    (
        "CustomerDemographics",
        "*",
        "CustomerTypeID IN (SELECT CustomerTypeID FROM CustomerCustomerDemo JOIN Customers c USING (CustomerID) JOIN Orders o ON o.CustomerID = c.CustomerID WHERE o.EmployeeID = ?)",
    ),
    ("EmployeeTerritories", "*", "EmployeeID = ?"),
    ("Territories", "*", "TerritoryID IN (SELECT TerritoryID FROM EmployeeTerritories WHERE EmployeeID = ?)"),
    ("Regions", "*", "RegionID IN (SELECT RegionID FROM Territories JOIN EmployeeTerritories USING (TerritoryID) WHERE EmployeeID = ?)"),
];

/// Returns the shared Northwind database; `None`, loudly, where the project stands alone. Never in CI.
pub fn northwind() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/northwind.db");
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is missing in CI", path.display());
    eprintln!("SKIPPED: {} is not there; the Northwind tests did not run", path.display());
    None
}

fn differences(site: &Site) -> String {
    let mut report = String::new();
    for employee in 1..=EMPLOYEES {
        let local = site.path(&format!("e{employee}.db"));
        for (table, columns, condition) in ORACLE {
            let wanted = literals(
                &site.path("hq.db"),
                &format!("SELECT {columns} FROM \"{table}\" WHERE {}", condition.replace('?', &employee.to_string())),
            );
            let held = literals(&local, &format!("SELECT {columns} FROM \"{table}\""));
            for row in wanted.iter().filter(|row| held.binary_search(row).is_err()) {
                writeln!(report, "employee {employee}: {table} lacks {row}").unwrap();
            }
            for row in held.iter().filter(|row| wanted.binary_search(row).is_err()) {
                writeln!(report, "employee {employee}: {table} must not hold {row}").unwrap();
            }
        }
    }
    report
}

/// Returns one random edit; it may fail on a constraint, as edits do.
pub fn edit(random: &mut fastrand::Rng) -> String {
    let order = random.i64(10248..11100);
    let employee = random.i64(1..=EMPLOYEES);
    let product = random.i64(1..=77);
    let customer = format!("(SELECT CustomerID FROM Customers ORDER BY CustomerID LIMIT 1 OFFSET {})", random.u32(0..90));
    let territory = format!("(SELECT TerritoryID FROM Territories ORDER BY TerritoryID LIMIT 1 OFFSET {})", random.u32(0..53));
    let number = random.i64(0..1_000_000);
    match random.u32(0..24) {
        0..=4 => format!("UPDATE Orders SET EmployeeID = {employee} WHERE OrderID = {order};"),
        5 => format!("UPDATE Orders SET EmployeeID = NULL WHERE OrderID = {order};"),
        6 => format!("UPDATE Orders SET CustomerID = {customer} WHERE OrderID = {order};"),
        7 => format!("UPDATE Orders SET ShipName = 'O''Hara \"{number}\" ä€', Freight = {number}.5 WHERE OrderID = {order};"),
        8 => format!(
            "BEGIN; INSERT INTO Orders(OrderID, CustomerID, EmployeeID, OrderDate) VALUES({}, {customer}, {employee}, '1998-05-06');
             INSERT INTO \"Order Details\" SELECT {}, ProductID, UnitPrice, 3, 0.25 FROM Products WHERE ProductID IN ({product}, 1, 2); COMMIT;",
            20_000 + number,
            20_000 + number
        ),
        9 => format!("BEGIN; DELETE FROM \"Order Details\" WHERE OrderID = {order}; DELETE FROM Orders WHERE OrderID = {order}; COMMIT;"),
        10 => format!("INSERT OR REPLACE INTO \"Order Details\" VALUES({order}, {product}, {number}, 7, 0);"),
        11 => format!("UPDATE OR REPLACE \"Order Details\" SET ProductID = {product} WHERE OrderID = {order};"),
        12 => format!("INSERT OR IGNORE INTO EmployeeTerritories VALUES({employee}, {territory});"),
        13 => format!("UPDATE OR IGNORE EmployeeTerritories SET EmployeeID = {employee} WHERE TerritoryID = {territory};"),
        14 => format!("DELETE FROM EmployeeTerritories WHERE TerritoryID = {territory};"),
        15 => format!("UPDATE Territories SET RegionID = {} WHERE TerritoryID = {territory};", random.i64(1..=4)),
        16 => format!("UPDATE Customers SET ContactName = upper(ContactName), City = NULL WHERE CustomerID = {customer};"),
        17 => format!(
            "BEGIN; INSERT OR IGNORE INTO CustomerDemographics VALUES('T{0}', 'type {0}');
             INSERT OR IGNORE INTO CustomerCustomerDemo VALUES({customer}, 'T{0}'); COMMIT;",
            number % 7
        ),
        18 => format!("DELETE FROM CustomerCustomerDemo WHERE CustomerID = {customer};"),
        19 => format!("UPDATE Products SET UnitsInStock = UnitsInStock - 5, UnitPrice = UnitPrice * 1.1 WHERE ProductID = {product};"),
        20 => format!("UPDATE Employees SET Notes = 'secret {number}', Title = 'T{number}' WHERE EmployeeID = {employee};"),
        21 => format!("INSERT INTO Customers(CustomerID, CompanyName) VALUES('X{number}', 'Nobody''s customer');"),
        22 => format!(
            "BEGIN; UPDATE Customers SET CustomerID = 'K{number}' WHERE CustomerID = {customer};
             UPDATE Orders SET CustomerID = 'K{number}' WHERE CustomerID NOT IN (SELECT CustomerID FROM Customers); COMMIT;"
        ),
        _ => format!(
            "SAVEPOINT s; UPDATE Orders SET EmployeeID = {employee} WHERE OrderID BETWEEN {order} AND {order} + 20; {} s;",
            if random.bool() { "ROLLBACK TO s; RELEASE" } else { "RELEASE" }
        ),
    }
}

#[test]
fn northwind_nine_employees_after_500_edits() {
    let Some(source) = northwind() else { return };
    let definition = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/northwind.toml")).unwrap();
    let mut site = Site::new(|path| _ = std::fs::copy(&source, path).unwrap(), &definition);
    site.dockmaster_ok(&["deploy", "--yes"]);
    for employee in 1..=EMPLOYEES {
        site.dockmaster_ok(&["node", "add", &format!("E{employee}"), "--set", &format!("employee={employee}")]);
    }
    site.serve();
    for employee in 1..=EMPLOYEES {
        site.remote_sync_ok(&["init", site.address(), "--token", &site.token(&format!("E{employee}")), &format!("e{employee}.db")]);
    }
    assert_eq!(differences(&site), "", "after init");

    let seed = crate::harness::seed();
    println!("DOCK_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut done = 0;
    while done < EDITS {
        let batch = random.usize(1..60).min(EDITS - done);
        let sql: Vec<String> = (0..batch).map(|_| edit(&mut random)).collect();
        site.sqlite3("hq.db", &sql.join("\n"));
        done += batch;
    }
    for employee in 1..=EMPLOYEES {
        site.remote_sync_ok(&["sync", &format!("e{employee}.db")]);
    }
    let report = differences(&site);
    assert_eq!(report, "", "DOCK_SEED={seed}");

    // Rows that no rule shows are on no node, nor in any file of one.
    for employee in 1..=EMPLOYEES {
        let shown =
            literals(&site.path(&format!("e{employee}.db")), "SELECT CustomerID FROM Customers WHERE CompanyName = 'Nobody''s customer'");
        let owned = literals(
            &site.path("hq.db"),
            &format!(
                "SELECT CustomerID FROM Customers WHERE CompanyName = 'Nobody''s customer' AND CustomerID IN (SELECT CustomerID FROM Orders WHERE EmployeeID = {employee})"
            ),
        );
        assert_eq!(shown, owned);
    }
    site.stop();
}
