//! Nine employees sell out of one stock, off line, with the built programs: the stock is kept by triggers of the server, and what nodes
//! count themselves is added (`conflict = "sum"`). It must come out exact to the unit over everything that was merged.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::model;
use crate::harness::{Site, literal, literals};
use crate::northwind::{ORACLE, northwind};
use dockmaster::model::dock::Dock;
use dockmaster::store::schema::read_schema;
use fastrand::Rng;
use rusqlite::Connection;
use std::fmt::Write;
use std::path::Path;

const EMPLOYEES: i64 = 9;
const ROUNDS: usize = 200;

/// The stock follows what is sold; and the log of counts that nodes make.
const SERVER: &str = r#"
    CREATE TABLE StockCounts(CountID TEXT PRIMARY KEY NOT NULL, ProductID INTEGER NOT NULL REFERENCES Products(ProductID), Delta INTEGER NOT NULL);
    CREATE TRIGGER sold AFTER INSERT ON "Order Details" BEGIN
        UPDATE Products SET UnitsInStock = UnitsInStock - NEW.Quantity WHERE ProductID = NEW.ProductID; END;
    CREATE TRIGGER returned AFTER DELETE ON "Order Details" BEGIN
        UPDATE Products SET UnitsInStock = UnitsInStock + OLD.Quantity WHERE ProductID = OLD.ProductID; END;
    CREATE TRIGGER changed AFTER UPDATE OF Quantity ON "Order Details" BEGIN
        UPDATE Products SET UnitsInStock = UnitsInStock + OLD.Quantity - NEW.Quantity WHERE ProductID = NEW.ProductID; END;
"#;

/// What is the same before and after, whatever was sold and counted: stock and sold units, less what was counted.
const BALANCE: &str = r#"
    SELECT ProductID, UnitsInStock + (SELECT coalesce(sum(Quantity), 0) FROM "Order Details" AS d WHERE d.ProductID = p.ProductID)
                      - (SELECT coalesce(sum(Delta), 0) FROM StockCounts AS c WHERE c.ProductID = p.ProductID)
    FROM Products AS p"#;

/// One action of an employee, as a unit of its own.
fn action(employee: i64, number: usize, rng: &mut Rng) -> String {
    let order =
        format!("(SELECT OrderID FROM Orders ORDER BY OrderID LIMIT 1 OFFSET {} % (SELECT max(1, count(*)) FROM Orders))", rng.u32(0..500));
    let customer = format!(
        "(SELECT CustomerID FROM Customers ORDER BY CustomerID LIMIT 1 OFFSET {} % (SELECT max(1, count(*)) FROM Customers))",
        rng.u32(0..90)
    );
    let (product, quantity) = (rng.i64(1..=77), rng.i64(1..=25));
    let detail = format!("(SELECT rowid FROM \"Order Details\" ORDER BY OrderID, ProductID LIMIT 1 OFFSET {})", rng.u32(0..300));
    let new = 100_000 * employee + number as i64;
    let sql = match rng.u32(0..12) {
        0..3 => format!(
            "INSERT INTO Orders(OrderID, CustomerID, EmployeeID, OrderDate) SELECT {new}, {customer}, {employee}, '1998-05-06';
             INSERT INTO \"Order Details\" SELECT {new}, ProductID, UnitPrice, {quantity}, 0.0 FROM Products WHERE ProductID IN ({product}, 1);"
        ),
        3 | 4 => format!(
            "INSERT INTO \"Order Details\" SELECT {order}, ProductID, UnitPrice, {quantity}, 0.0 FROM Products WHERE ProductID = {product};"
        ),
        5 => format!("UPDATE \"Order Details\" SET Quantity = Quantity + {} WHERE rowid = {detail};", rng.i64(1..=9)),
        6 => format!("DELETE FROM \"Order Details\" WHERE rowid = {detail};"),
        7 | 8 => format!("UPDATE Orders SET Freight = Freight + 1, ShipName = 'by {employee} {number}' WHERE OrderID = {order};"),
        9 => format!("UPDATE Customers SET ContactName = 'of {employee} {number}', Phone = '{number}' WHERE CustomerID = {customer};"),
        _ => format!(
            "UPDATE Products SET UnitsInStock = UnitsInStock + {quantity} WHERE ProductID = {product};
             INSERT INTO StockCounts VALUES('{employee}-{number}', {product}, {quantity});"
        ),
    };
    format!(
        "INSERT INTO dock_txn_mark VALUES('action {number}');\nBEGIN;\n{sql}\nCOMMIT;\nINSERT INTO dock_txn_mark VALUES('action {number}');\n"
    )
}

/// What an office sells and counts itself.
fn office(number: usize, rng: &mut Rng) -> String {
    let (product, quantity) = (rng.i64(1..=77), rng.i64(1..=20));
    match rng.u32(0..3) {
        0 => format!(
            "INSERT INTO \"Order Details\" SELECT OrderID, {product}, 1.0, {quantity}, 0.0 FROM Orders ORDER BY OrderID LIMIT 1 OFFSET {};",
            rng.u32(0..800)
        ),
        1 => format!(
            "BEGIN; UPDATE Products SET UnitsInStock = UnitsInStock + {quantity} WHERE ProductID = {product};
             INSERT INTO StockCounts VALUES('office-{number}', {product}, {quantity}); COMMIT;"
        ),
        _ => format!(
            "UPDATE Customers SET Phone = 'office {number}' WHERE CustomerID = (SELECT CustomerID FROM Customers LIMIT 1 OFFSET {});",
            rng.u32(0..90)
        ),
    }
}

#[test]
fn r11_northwind_the_stock_is_exact_after_200_rounds_off_line() {
    let Some(source) = northwind() else { return };
    let definition = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/northwind.toml")).unwrap();
    let definition = format!("{definition}\n[object.StockCounts]\ndirection = \"upload\"\nvisible = 'everyone'\n");
    let seed = crate::harness::seed();
    eprintln!("DOCK_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let mut site = Site::new(
        |path| {
            std::fs::copy(&source, path).unwrap();
            Connection::open(path).unwrap().execute_batch(SERVER).unwrap();
        },
        &definition,
    );
    let hq = site.path("hq.db");
    let balance = literals(&hq, BALANCE);
    site.dockmaster_ok(&["deploy", "--yes"]);
    for employee in 1..=EMPLOYEES {
        site.dockmaster_ok(&["node", "add", &format!("E{employee}"), "--set", &format!("employee={employee}")]);
    }
    site.serve();
    for employee in 1..=EMPLOYEES {
        site.remote_sync_ok(&["init", site.address(), "--token", &site.token(&format!("E{employee}")), &format!("e{employee}.db")]);
    }
    let mut number = 0;
    for _ in 0..ROUNDS {
        for _ in 0..rng.usize(1..=3) {
            let employee = rng.i64(1..=EMPLOYEES);
            let sql: String = (0..rng.usize(1..=3))
                .map(|_| {
                    number += 1;
                    action(employee, number, &mut rng)
                })
                .collect();
            site.sqlite3(&format!("e{employee}.db"), &sql);
        }
        if rng.u32(0..3) == 0 {
            number += 1;
            site.sqlite3("hq.db", &office(number, &mut rng));
        }
        if rng.u32(0..3) > 0 {
            site.remote_sync_ok(&["sync", &format!("e{}.db", rng.i64(1..=EMPLOYEES))]);
        }
    }
    for _ in 0..2 {
        for employee in 1..=EMPLOYEES {
            site.remote_sync(&["sync", "--wait", "60", &format!("e{employee}.db")]);
        }
    }
    let report = judge(&site, &balance);
    site.stop();
    assert_eq!(report, "", "DOCK_SEED={seed}");
}

fn judge(site: &Site, balance: &[String]) -> String {
    let mut report = String::new();
    let server = Connection::open(site.path("hq.db")).unwrap();
    let now = literals(&site.path("hq.db"), BALANCE);
    for (now, before) in now.iter().zip(balance).filter(|(now, before)| now != before) {
        writeln!(report, "stock: product {now}, should be {before}").unwrap();
    }
    let units = |condition: &str| -> i64 {
        server.query_row(&format!("SELECT count(*) FROM dock_unit WHERE {condition}"), [], |row| row.get(0)).unwrap()
    };
    let (merged, refused) = (units("status = 'finished'"), units("status = 'error'"));
    eprintln!("{merged} units merged, {refused} refused");
    if merged < 200 || refused == 0 {
        writeln!(report, "too little happened: {merged} units merged, {refused} refused").unwrap();
    }
    if units("status NOT IN ('finished', 'error')") > 0 {
        writeln!(report, "units wait still").unwrap();
    }
    // Whatever was refused was so by a constraint of the server, or waits for such a one.
    let mut strange = server
        .prepare("SELECT node || ' ' || unit || ': ' || coalesce(reason, 'no reason') FROM dock_unit WHERE status = 'error' AND waits_for IS NULL
                  AND reason NOT LIKE '%CHECK constraint failed%' AND reason NOT LIKE '%is there already%'")
        .unwrap();
    for line in strange.query_map([], |row| row.get::<_, String>(0)).unwrap() {
        writeln!(report, "refused: {}", line.unwrap()).unwrap();
    }
    let dock: String = server.query_row("SELECT dock FROM dock_definition ORDER BY revision DESC LIMIT 1", [], |row| row.get(0)).unwrap();
    let dock: Dock = serde_json::from_str(&dock).unwrap();
    let infos = model::infos(&dock, &read_schema(&server).unwrap());
    for employee in 1..=EMPLOYEES {
        let local = Connection::open(site.path(&format!("e{employee}.db"))).unwrap();
        let pending: i64 = local.query_row("SELECT count(*) FROM dock_unit", [], |row| row.get(0)).unwrap();
        let held = units(&format!("status = 'error' AND node = 'E{employee}'"));
        if pending != held {
            writeln!(report, "employee {employee}: {pending} units are pending, {held} are held").unwrap();
        }
        // The server's rows, as the node knows them beneath what is held.
        let tables = model::read(&local, &infos).unwrap();
        let view = model::overlaid(&tables, &model::read_bases(&local, &infos).unwrap());
        for (table, columns, condition) in ORACLE {
            let wanted = literals(
                &site.path("hq.db"),
                &format!("SELECT {columns} FROM \"{table}\" WHERE {}", condition.replace('?', &employee.to_string())),
            );
            let place = infos.iter().position(|info| info.name == *table).unwrap();
            let mut held: Vec<String> = view[&place].values().map(|row| literal(row)).collect();
            held.sort();
            for row in wanted.iter().filter(|row| held.binary_search(row).is_err()) {
                writeln!(report, "employee {employee}: {table} lacks {row}").unwrap();
            }
            for row in held.iter().filter(|row| wanted.binary_search(row).is_err()) {
                writeln!(report, "employee {employee}: {table} must not hold {row}").unwrap();
            }
        }
        let lost: i64 =
            server.query_row("SELECT count(*) FROM dock_conflict WHERE node = ?1", [format!("E{employee}")], |row| row.get(0)).unwrap();
        let listed: i64 = local.query_row("SELECT count(*) FROM dock_conflict WHERE server_id IS NOT NULL", [], |row| row.get(0)).unwrap();
        if lost != listed {
            writeln!(report, "employee {employee}: {lost} conflicts on the server, {listed} listed").unwrap();
        }
    }
    report
}
