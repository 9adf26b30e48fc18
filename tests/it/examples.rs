//! The four definitions of `examples/`, each through the real programs: deployed on its generated database, nodes of every
//! kind, 100 random edits by the plain `sqlite3` program, and after each batch every local database against an oracle of
//! plain SQL written by hand, rule by rule.

use crate::harness::{Site, literals};
use crate::northwind;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

const EDITS: usize = 100;
const BATCHES: usize = 4;

/// The day that windows count from, as SQL: days begin at 03:00 UTC.
const DAY: &str = "date('now', '-3 hours')";

/// Returns the condition of a window. What SQL cannot read as a date is NULL and stays, as NULL does.
fn within(column: &str, days: u32) -> String {
    format!("ifnull(date({column}) >= date({DAY}, '-{days} days'), true)")
}

/// Returns a date as an SQL expression, sometimes NULL or no date at all; never near the edge of a window of `days`.
fn a_date(random: &mut fastrand::Rng, days: i64) -> String {
    let ago = if random.bool() { random.i64(-200..days - 10) } else { random.i64(days + 10..days + 900) };
    match random.u32(0..8) {
        0 => "NULL".into(),
        1 => "'soon'".into(),
        2 => format!("date('now', '{} days') || ' 23:59:59.5'", -ago),
        _ => format!("date('now', '{} days')", -ago),
    }
}

/// One of the expressions, or sometimes NULL.
fn or_null(random: &mut fastrand::Rng, value: impl ToString) -> String {
    if random.u32(0..8) == 0 { "NULL".into() } else { value.to_string() }
}

/// A node and what its administrator says of it.
struct Remote {
    name: &'static str,
    settings: &'static [&'static str],
}

/// An example in play.
struct Play {
    site: Site,
    nodes: &'static [Remote],
    /// Rows of upload tables as the nodes got them with their extract: (node, table, rows).
    kept: Vec<(&'static str, &'static str, Vec<String>)>,
}

/// What a node may see: (table, SELECT on the server database).
type Wanted = Vec<(&'static str, String)>;

impl Play {
    /// Deploys an example and initialises its nodes.
    fn begin(definition: &str, database: impl FnOnce(&Path), nodes: &'static [Remote]) -> Play {
        let mut site = Site::new(database, definition);
        let said = site.dockmaster_ok(&["check"]);
        assert!(said.contains("no problems"), "{said}");
        site.dockmaster_ok(&["deploy", "--yes"]);
        for node in nodes {
            site.dockmaster_ok(&[&["node", "add", node.name], node.settings].concat());
        }
        site.serve();
        for node in nodes {
            site.remote_sync_ok(&["init", site.address(), "--node", node.name, &local(node.name)]);
        }
        Play { site, nodes, kept: Vec::new() }
    }

    /// Notes what the nodes hold of tables that only travel up.
    fn keep(&mut self, tables: &[&'static str]) {
        for (node, table) in self.nodes.iter().flat_map(|node| tables.iter().map(move |table| (node.name, *table))) {
            let held = literals(&self.site.path(&local(node)), &format!("SELECT * FROM \"{table}\""));
            self.kept.push((node, table, held));
        }
    }

    /// Demands that every local database holds what the oracle says, no more and no other tables.
    fn equal(&self, oracle: &dyn Fn(&str) -> Wanted, empty: &[&str], when: &str) {
        let mut report = String::new();
        let mut filled = BTreeSet::new();
        for node in self.nodes {
            let database = self.site.path(&local(node.name));
            let wanted = oracle(node.name);
            let mut expected: Vec<String> = wanted.iter().map(|(table, _)| format!("'{table}'")).collect();
            expected.sort();
            let own = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'dock~_%' ESCAPE '~' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'";
            assert_eq!(literals(&database, own), expected, "tables of {}", node.name);
            for (table, select) in wanted {
                let kept = self.kept.iter().find(|(of, kept, _)| (*of, *kept) == (node.name, table));
                let wanted = kept.map_or_else(|| literals(&self.site.path("hq.db"), &select), |(_, _, rows)| rows.clone());
                let held = literals(&database, &select_all(table, &select));
                if !held.is_empty() {
                    filled.insert(table);
                }
                for row in wanted.iter().filter(|row| held.binary_search(row).is_err()) {
                    writeln!(report, "{}: {table} lacks {row}", node.name).unwrap();
                }
                for row in held.iter().filter(|row| wanted.binary_search(row).is_err()) {
                    writeln!(report, "{}: {table} must not hold {row}", node.name).unwrap();
                }
            }
        }
        assert_eq!(report, "", "{when}");
        // An oracle that wants nothing would prove nothing.
        for (table, _) in oracle(self.nodes[0].name) {
            assert_eq!(filled.contains(table), !empty.contains(&table), "{when}: rows of {table}");
        }
    }

    /// Edits, synchronises and compares, batch by batch. `between` runs before the last batch.
    fn edit(
        &self,
        edit: fn(&mut fastrand::Rng) -> String,
        oracle: &dyn Fn(&str) -> Wanted,
        empty: &[&str],
        mut between: impl FnMut(&Site),
    ) {
        let seed = std::env::var("DOCK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
        println!("DOCK_SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for batch in 1..=BATCHES {
            if batch == BATCHES {
                between(&self.site);
            }
            let sql: Vec<String> = (0..EDITS / BATCHES).map(|_| edit(&mut random)).collect();
            let said = self.site.sqlite3("hq.db", &sql.join("\n"));
            let errors = String::from_utf8_lossy(&said.stderr).into_owned();
            assert!(errors.lines().all(|line| !line.contains("Parse error") && !line.contains("no such")), "{errors}");
            for node in self.nodes {
                self.site.remote_sync_ok(&["sync", &local(node.name)]);
            }
            self.equal(oracle, empty, &format!("batch {batch}, DOCK_SEED={seed}"));
        }
    }
}

fn local(node: &str) -> String {
    format!("{}.db", node.to_lowercase())
}

/// Returns the SELECT of all rows with the columns of `select`, which ends its column list with ` FROM "table"`.
fn select_all(table: &str, select: &str) -> String {
    let end = format!(" FROM \"{table}\" WHERE ");
    let (columns, _) = select.split_once(&end).expect("the table's own SELECT");
    format!("SELECT {} FROM \"{table}\"", columns.rsplit_once("SELECT ").expect("columns").1)
}

fn all(table: &'static str) -> (&'static str, &'static str) {
    (table, "true")
}

/// Puts the conditions behind the sets that they name.
fn wanted(sets: &str, conditions: &[(&'static str, &str)]) -> Wanted {
    let select =
        |(table, condition): &(&'static str, &str)| (*table, format!("WITH RECURSIVE {sets} SELECT * FROM \"{table}\" WHERE {condition}"));
    conditions.iter().map(select).collect()
}

fn run_sql(path: &Path, sql: &str) {
    rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

// --- northwind ---

/// A few rows for the empty tables: 9 employees, 90 customers, 850 orders.
const NORTHWIND_ROWS: &str = "
CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 850) SELECT i FROM n;
INSERT INTO Categories SELECT i, 'Category ' || i, NULL, zeroblob(i) FROM n WHERE i <= 8;
INSERT INTO Suppliers(SupplierID, CompanyName) SELECT i, 'Supplier ' || i FROM n WHERE i <= 29;
INSERT INTO Shippers SELECT i, 'Shipper ' || i, NULL FROM n WHERE i <= 3;
INSERT INTO Employees(EmployeeID, LastName, FirstName, BirthDate, Notes, ReportsTo) SELECT i, 'Last ' || i, 'First ' || i, '1960-01-01', 'secret', CASE WHEN i > 1 THEN 1 + i / 4 END FROM n WHERE i <= 9;
INSERT INTO Products(ProductID, ProductName, SupplierID, CategoryID, UnitPrice, UnitsInStock) SELECT i, 'Product ' || i, 1 + i % 29, 1 + i % 8, i * 0.5, i FROM n WHERE i <= 77;
INSERT INTO Customers(CustomerID, CompanyName, City) SELECT printf('CU%03d', i), 'Company ' || i, CASE WHEN i % 5 > 0 THEN 'City ' || i END FROM n WHERE i <= 90;
INSERT INTO CustomerDemographics SELECT 'T' || i, NULL FROM n WHERE i <= 3;
INSERT INTO CustomerCustomerDemo SELECT printf('CU%03d', i), 'T' || (1 + i % 3) FROM n WHERE i <= 40;
INSERT INTO Orders(OrderID, CustomerID, EmployeeID, OrderDate, ShipVia, Freight)
    SELECT 10247 + i, CASE WHEN i % 41 > 0 THEN printf('CU%03d', 1 + i * 7 % 90) END, CASE WHEN i % 37 > 0 THEN 1 + i % 9 END, '1997-01-01', 1 + i % 3, i / 7.0 FROM n;
INSERT INTO \"Order Details\" SELECT 10247 + i, 1 + i % 77, i, 1 + i % 9, 0 FROM n;
INSERT INTO Regions SELECT i, 'Region ' || i FROM n WHERE i <= 4;
INSERT INTO Territories SELECT printf('%05d', i), 'Territory ' || i, 1 + i % 4 FROM n WHERE i <= 53;
INSERT INTO EmployeeTerritories SELECT 1 + i % 9, printf('%05d', i) FROM n WHERE i <= 49;
DROP TABLE n;
";

const NORTHWIND_NODES: &[Remote] = &[
    Remote { name: "E1", settings: &["--set", "employee=1"] },
    Remote { name: "E4", settings: &["--set", "employee=4"] },
    Remote { name: "E9", settings: &["--set", "employee=9"] },
];

fn northwind_oracle(node: &str) -> Wanted {
    let employee = node.trim_start_matches('E');
    let select = |(table, columns, condition): &(&'static str, &str, &str)| {
        (*table, format!("SELECT {columns} FROM \"{table}\" WHERE {}", condition.replace('?', employee)))
    };
    northwind::ORACLE.iter().map(select).collect()
}

#[test]
fn example_northwind_equals_its_oracle_after_random_edits() {
    let database = |path: &Path| run_sql(path, &format!("{}{NORTHWIND_ROWS}", include_str!("fixtures/northwind_schema.sql")));
    let mut play = Play::begin(include_str!("../../examples/northwind.toml"), database, NORTHWIND_NODES);
    play.equal(&northwind_oracle, &[], "after init");
    play.edit(northwind::edit, &northwind_oracle, &[], |_| {});
    play.site.stop();
}

// --- crm ---

/// A rep with the model that leaves managers' rules out, a manager, the chief with the executive's model, a rep without a model.
const CRM_NODES: &[Remote] = &[
    Remote { name: "ANNA", settings: &["--set", "employee=5", "--model", "rep"] },
    Remote { name: "BERT", settings: &["--set", "employee=2"] },
    Remote { name: "CHEF", settings: &["--set", "employee=1", "--model", "executive"] },
    Remote { name: "DORA", settings: &["--set", "employee=11"] },
];

fn crm_oracle(node: &str) -> Wanted {
    // For each node: employee, and which of the rules its model leaves: manager's, org's, all others with a path.
    let (employee, manager, org, others) = match node {
        "ANNA" => (5, false, false, true),
        "BERT" => (2, true, true, true),
        "CHEF" => (1, true, true, false),
        _ => (11, true, true, true),
    };
    // The executive's model names opportunity.manager, but not account.manager.
    let account_manager = manager && others;
    let sets = format!(
        "own(id) AS (SELECT position_id FROM employee WHERE id = {employee}),
         team(id) AS (SELECT id FROM own UNION SELECT position.id FROM position JOIN team ON parent_id = team.id),
         shown_opportunity(id) AS (SELECT id FROM opportunity WHERE {window} AND (
             ({others} AND position_id IN own)
             OR ({others} AND id IN (SELECT opportunity_id FROM opportunity_team WHERE active = 1 AND position_id IN own))
             OR ({manager} AND position_id IN team))),
         shown_contact(id) AS (SELECT id FROM contact WHERE {others} AND (
             account_id IN (SELECT account_id FROM account_team WHERE position_id IN own) OR owner_id = {employee})),
         shown_account(id) AS (SELECT id FROM account WHERE
             ({others} AND id IN (SELECT account_id FROM account_team WHERE position_id IN own))
             OR ({account_manager} AND id IN (SELECT account_id FROM account_team WHERE position_id IN team))
             OR ({org} AND kind = 'house' AND org_id IN (SELECT org_id FROM position WHERE id IN own))
             OR id IN (SELECT account_id FROM opportunity WHERE id IN shown_opportunity)
             OR id IN (SELECT account_id FROM contact WHERE id IN shown_contact))",
        window = within("closed_at", 400),
    );
    wanted(
        &sets,
        &[
            all("org"),
            all("product"),
            all("price_list"),
            all("position"),
            ("employee", "position_id IN (SELECT id FROM position)"),
            ("account", "id IN shown_account"),
            ("account_team", "account_id IN shown_account"),
            ("address", "account_id IN shown_account"),
            ("contact", "id IN shown_contact"),
            ("opportunity", "id IN shown_opportunity"),
            ("opportunity_line", "opportunity_id IN shown_opportunity"),
            ("opportunity_team", "opportunity_id IN shown_opportunity"),
            ("feedback", "false"),
        ],
    )
}

fn crm_edit(random: &mut fastrand::Rng) -> String {
    let (account, contact, opportunity) = (random.i64(1..=300), random.i64(1..=900), random.i64(1..=1200));
    let (position, other) = (random.i64(1..=13), random.i64(1..=13));
    let new = random.i64(20_000..1_000_000);
    match random.u32(0..20) {
        0 => format!("UPDATE opportunity SET position_id = {} WHERE id BETWEEN {opportunity} AND {opportunity} + 5;", or_null(random, position)),
        1 => format!("UPDATE OR IGNORE account_team SET position_id = {position} WHERE account_id = {account};"),
        2 => format!("INSERT OR IGNORE INTO account_team VALUES({account}, {position});"),
        3 => format!("DELETE FROM account_team WHERE account_id = {account};"),
        // The tree may well become a circle.
        4 => format!("UPDATE position SET parent_id = {} WHERE id = {other};", or_null(random, position)),
        5 => format!("UPDATE employee SET position_id = {position} WHERE id = {other};"),
        6 => format!("UPDATE position SET org_id = 3 - org_id WHERE id = {position};"),
        7 => format!("UPDATE account SET kind = CASE kind WHEN 'house' THEN 'House' ELSE 'house' END, org_id = {} WHERE id = {account};", 1 + new % 2),
        8 => format!("UPDATE contact SET account_id = {} WHERE id = {contact};", or_null(random, account)),
        9 => format!("UPDATE contact SET owner_id = {} WHERE id = {contact};", or_null(random, position)),
        10 => format!("UPDATE opportunity SET closed_at = {} WHERE id = {opportunity};", a_date(random, 400)),
        11 => format!("UPDATE opportunity SET account_id = {account}, amount = {new}.25 WHERE id = {opportunity};"),
        12 => format!("UPDATE opportunity_line SET opportunity_id = {opportunity} WHERE id = {};", random.i64(1..=3000)),
        13 => format!("INSERT OR REPLACE INTO opportunity_team VALUES({opportunity}, {position}, {});", new % 2),
        14 => format!("UPDATE opportunity_team SET active = 1 - active WHERE opportunity_id BETWEEN {opportunity} AND {opportunity} + 30;"),
        15 => format!(
            "BEGIN; DELETE FROM opportunity_line WHERE opportunity_id = {opportunity}; DELETE FROM opportunity_team WHERE opportunity_id = {opportunity};
             DELETE FROM opportunity WHERE id = {opportunity}; COMMIT;"
        ),
        16 => format!(
            "BEGIN; UPDATE account SET id = {new} WHERE id = {account}; UPDATE account_team SET account_id = {new} WHERE account_id = {account};
             UPDATE address SET account_id = {new} WHERE account_id = {account}; UPDATE contact SET account_id = {new} WHERE account_id = {account};
             UPDATE opportunity SET account_id = {new} WHERE account_id = {account}; COMMIT;"
        ),
        17 => format!(
            "BEGIN; INSERT INTO account VALUES({new}, 1, 'customer', 'New ''{new}''', NULL); INSERT INTO account_team VALUES({new}, {position});
             INSERT INTO address VALUES({new}, {new}, 'Straße', 'Köln'); COMMIT;"
        ),
        18 => format!("REPLACE INTO contact VALUES({contact}, {}, {position}, 'Replaced', NULL);", or_null(random, account)),
        _ => format!("UPDATE product SET list_price = {new} WHERE id = {position}; INSERT INTO feedback VALUES('N{new}', {position}, 'x');"),
    }
}

#[test]
fn c10_example_crm_equals_its_oracle_after_random_edits() {
    let database = |path: &Path| run_sql(path, include_str!("../../examples/crm.sql"));
    let mut play = Play::begin(include_str!("../../examples/crm.toml"), database, CRM_NODES);
    play.equal(&crm_oracle, &["feedback"], "after init");
    play.edit(crm_edit, &crm_oracle, &["feedback"], |_| {});
    play.site.stop();
}

// --- ships ---

/// A vessel, a superintendent of vessels of two fleets, one that is in no fleet, one of no class.
const SHIPS_NODES: &[Remote] = &[
    Remote { name: "VENUS", settings: &["--set", "vessel=9074001"] },
    Remote { name: "SUPER", settings: &["--set", "vessel=9074002", "--set", "vessel=9074003", "--set", "vessel=9074007"] },
    Remote { name: "LAID-UP", settings: &["--set", "vessel=9074012"] },
    Remote { name: "ODD", settings: &["--set", "vessel=9074008"] },
];

fn ships_oracle(vessels: &str) -> Wanted {
    let sets = format!(
        "held(imo) AS (VALUES {vessels}),
         shown_crew(id) AS (SELECT id FROM crew_member WHERE id IN
             (SELECT crew_id FROM assignment WHERE status IN ('on board', 'joining') AND imo IN held)),
         shown_job(id) AS (SELECT id FROM maintenance_job WHERE imo IN held AND {})",
        within("done_at", 730)
    );
    wanted(
        &sets,
        &[
            all("port"),
            all("rank"),
            all("fleet"),
            all("ship_class"),
            (
                "vessel",
                "fleet_id IN (SELECT fleet_id FROM vessel WHERE imo IN held)
                 OR imo IN (SELECT imo FROM assignment WHERE crew_id IN shown_crew)
                 OR imo IN (SELECT imo FROM maintenance_job WHERE id IN shown_job)
                 OR imo IN (SELECT imo FROM noon_report WHERE imo IN held)",
            ),
            ("crew_member", "id IN shown_crew"),
            ("certificate", "crew_id IN shown_crew"),
            ("assignment", "crew_id IN shown_crew"),
            ("maintenance_job", "id IN shown_job"),
            ("job_part", "job_id IN shown_job"),
            ("job_reading", "job_id IN shown_job"),
            (
                "manual_page",
                "(manual_id, edition) IN (SELECT manual_id, edition FROM manual_issue
                     WHERE class_id IN (SELECT class_id FROM vessel WHERE imo IN held))",
            ),
            ("noon_report", "imo IN held"),
        ],
    )
}

fn ships_values(node: &str, superintendent: &'static str) -> &'static str {
    match node {
        "VENUS" => "('9074001')",
        "SUPER" => superintendent,
        "LAID-UP" => "('9074012')",
        _ => "('9074008')",
    }
}

fn ships_edit(random: &mut fastrand::Rng) -> String {
    let vessel = format!("'90740{:02}'", random.i64(1..=12));
    let (crew, job, class) = (random.i64(1..=150), random.i64(1..=300), random.i64(1..=4));
    let (manual, edition) = (format!("'MAN-{}'", random.i64(1..=6)), random.i64(1..=2));
    let new = random.i64(20_000..1_000_000);
    let status = ["'on board'", "'joining'", "'on leave'", "'former'", "'On Board'"][random.usize(0..5)];
    match random.u32(0..18) {
        0 => format!("UPDATE vessel SET fleet_id = {} WHERE imo = {vessel};", or_null(random, 1 + class % 3)),
        1 => format!("UPDATE vessel SET class_id = {} WHERE imo = {vessel};", or_null(random, class)),
        2 | 3 => format!("UPDATE assignment SET status = {status}, imo = {vessel} WHERE id = {crew};"),
        4 => format!("UPDATE assignment SET crew_id = {crew} WHERE id = {};", random.i64(1..=150)),
        5 => format!("INSERT INTO assignment VALUES({new}, {crew}, {vessel}, {status}, NULL);"),
        6 => format!("DELETE FROM assignment WHERE crew_id = {crew} AND imo = {vessel};"),
        7 => format!("UPDATE maintenance_job SET imo = {vessel} WHERE id BETWEEN {job} AND {job} + 3;"),
        8 | 9 => format!("UPDATE maintenance_job SET done_at = {} WHERE id = {job};", a_date(random, 730)),
        10 => format!("INSERT OR REPLACE INTO job_part VALUES({job}, {class}, 'Part X', {new});"),
        11 => format!("UPDATE job_reading SET job_id = {job}, value = {new}.0 WHERE id = {};", random.i64(1..=400)),
        12 => format!("INSERT OR IGNORE INTO manual_issue VALUES({manual}, {edition}, {class});"),
        13 => format!("DELETE FROM manual_issue WHERE manual_id = {manual} AND class_id = {class};"),
        14 => format!(
            "UPDATE OR IGNORE manual_page SET edition = {edition}, body = X'00ff' WHERE manual_id = {manual} AND page % 5 = {class};"
        ),
        15 => format!("INSERT INTO manual_page VALUES({manual}, {edition}, {new}, NULL);"),
        16 => format!(
            "INSERT INTO noon_report VALUES('X{new}', {vessel}, 'now', NULL, 1e300, NULL); DELETE FROM noon_report WHERE id = 'N{crew}';"
        ),
        _ => format!(
            "BEGIN; DELETE FROM certificate WHERE crew_id = {crew}; DELETE FROM assignment WHERE crew_id = {crew}; DELETE FROM crew_member WHERE id = {crew}; COMMIT;"
        ),
    }
}

#[test]
fn example_ships_equals_its_oracle_after_random_edits() {
    let database = |path: &Path| run_sql(path, include_str!("../../examples/ships.sql"));
    let mut play = Play::begin(include_str!("../../examples/ships.toml"), database, SHIPS_NODES);
    let three = |node: &str| ships_oracle(ships_values(node, "('9074002'), ('9074003'), ('9074007')"));
    play.equal(&three, &[], "after init");
    play.keep(&["noon_report"]);
    let superintendent = std::cell::Cell::new("('9074002'), ('9074003'), ('9074007')");
    let oracle = |node: &str| ships_oracle(ships_values(node, superintendent.get()));
    play.edit(ships_edit, &oracle, &[], |site| {
        // Another superintendent's ships: two go, one comes.
        site.dockmaster_ok(&["node", "set", "SUPER", "--set", "vessel=9074003", "--set", "vessel=9074010"]);
        superintendent.set("('9074003'), ('9074010')");
    });
    play.site.stop();
}

// --- shops ---

/// A shop, one without a price list, and an area manager with three shops.
const SHOPS_NODES: &[Remote] = &[
    Remote { name: "SHOP-01", settings: &["--set", "shop=1"] },
    Remote { name: "SHOP-10", settings: &["--set", "shop=10"] },
    Remote { name: "AREA", settings: &["--set", "shop=2", "--set", "shop=3", "--set", "shop=5"] },
];

fn shops_oracle(node: &str) -> Wanted {
    let shops = match node {
        "SHOP-01" => "(1)",
        "SHOP-10" => "(10)",
        _ => "(2), (3), (5)",
    };
    let sets = format!(
        "held(id) AS (VALUES {shops}),
         shown_sale(id) AS (SELECT id FROM sale WHERE shop_id IN held AND {}),
         shown_transfer(id) AS (SELECT id FROM transfer WHERE from_shop_id IN held OR to_shop_id IN held)",
        within("sold_at", 90)
    );
    let price = format!(
        "{} AND (price_list_id IS NULL OR price_list_id IN (SELECT price_list_id FROM shop WHERE id IN held))",
        within("valid_to", 30)
    );
    wanted(
        &sets,
        &[
            all("tax_rate"),
            all("article"),
            all("barcode"),
            all("price_list"),
            all("shop"),
            ("price", &price),
            ("sale", "id IN shown_sale"),
            ("sale_line", "sale_id IN shown_sale"),
            ("payment", "sale_id IN shown_sale"),
            ("stock", "shop_id IN held"),
            ("transfer", "id IN shown_transfer"),
            ("transfer_line", "transfer_id IN shown_transfer"),
        ],
    )
}

fn shops_edit(random: &mut fastrand::Rng) -> String {
    let (shop, article, list) = (random.i64(1..=10), random.i64(1..=60), random.i64(1..=3));
    let (price, sale, transfer) = (random.i64(1..=360), random.i64(1..=600), random.i64(1..=120));
    let new = random.i64(20_000..1_000_000);
    match random.u32(0..16) {
        0 => format!("UPDATE shop SET price_list_id = {} WHERE id = {shop};", or_null(random, list)),
        1 => format!("UPDATE price SET price_list_id = {} WHERE id = {price};", or_null(random, list)),
        2 | 3 => format!("UPDATE price SET valid_to = {} WHERE id BETWEEN {price} AND {price} + 4;", a_date(random, 30)),
        4 => format!("UPDATE price SET amount = amount * 1.1 WHERE article_id = {article};"),
        5 => format!("REPLACE INTO price VALUES({price}, {article}, {}, 1, {});", or_null(random, list), a_date(random, 30)),
        6 => format!("UPDATE OR IGNORE stock SET shop_id = {shop} WHERE article_id = {article} AND shop_id = {};", random.i64(1..=10)),
        7 => format!("UPDATE stock SET quantity = quantity - 1 WHERE article_id = {article};"),
        8 => format!(
            "INSERT INTO stock VALUES({shop}, {article}, 5, NULL) ON CONFLICT DO UPDATE SET quantity = quantity + excluded.quantity;"
        ),
        9 => format!("DELETE FROM stock WHERE shop_id = {shop} AND article_id = {article};"),
        10 => format!("UPDATE transfer SET to_shop_id = {} WHERE id = {transfer};", or_null(random, shop)),
        11 => format!("UPDATE transfer SET from_shop_id = {} WHERE id BETWEEN {transfer} AND {transfer} + 3;", or_null(random, shop)),
        12 => format!("PRAGMA foreign_keys = ON; DELETE FROM transfer WHERE id = {transfer}; PRAGMA foreign_keys = OFF;"),
        13 => format!(
            "BEGIN; INSERT INTO transfer VALUES({new}, {shop}, {}, NULL); INSERT INTO transfer_line VALUES({new}, {article}, 1); COMMIT;",
            random.i64(1..=10)
        ),
        14 => format!(
            "UPDATE article SET name = upper(name) WHERE id = {article}; UPDATE barcode SET code = 'B{new}' WHERE article_id = {article} AND code > '4';"
        ),
        // Sales go up only: what the server changes is not sent.
        _ => format!("UPDATE sale SET total = {new}, shop_id = {shop} WHERE id = {sale}; DELETE FROM payment WHERE id = {sale};"),
    }
}

#[test]
fn example_shops_equals_its_oracle_after_random_edits() {
    let example = include_str!("../../examples/shops.toml");
    // A till has one shop; that an area manager may have several is one word more.
    let definition = example.replace("must_exist = \"shop.id\" }", "must_exist = \"shop.id\", many = true }");
    assert_ne!(definition, example);
    let database = |path: &Path| run_sql(path, include_str!("../../examples/shops.sql"));
    let mut play = Play::begin(&definition, database, SHOPS_NODES);
    play.equal(&shops_oracle, &[], "after init");
    play.keep(&["sale", "sale_line", "payment"]);
    play.edit(shops_edit, &shops_oracle, &[], |_| {});
    play.site.stop();
}

// --- docs/definition.md ---

/// Returns the fenced blocks of a page: (what stands behind the fence, text).
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match (line.strip_prefix("```"), inside) {
            (Some(kind), false) => {
                found.push((kind.to_owned(), String::new()));
                inside = true;
            }
            (Some(_), true) => inside = false,
            (None, true) => found.last_mut().unwrap().1.extend([line, "\n"]),
            (None, false) => {}
        }
    }
    found
}

#[test]
fn the_definitions_of_the_page_about_definitions_check() {
    let found = blocks(include_str!("../../docs/definition.md"));
    let folder = tempfile::tempdir().unwrap();
    let of = |kind: &str| found.iter().filter(|block| block.0 == kind).map(|block| block.1.as_str()).collect::<Vec<_>>();
    run_sql(&folder.path().join("hq.db"), of("sql")[0]);
    let check = |text: &str| {
        let version = if text.starts_with("version") { "" } else { "version = 1\n" };
        let server = if text.contains("[server]") { "" } else { "\n[server]\ndatabase = \"hq.db\"\n" };
        std::fs::write(folder.path().join("dockmaster.toml"), format!("{version}{text}{server}")).unwrap();
        let run = std::process::Command::new(env!("CARGO_BIN_EXE_dockmaster")).arg("check").current_dir(folder.path()).output().unwrap();
        (run.status.code(), String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr))
    };
    assert!(of("toml").len() >= 8);
    for text in of("toml") {
        let (code, said) = check(text);
        println!("{said}");
        assert_eq!(code, Some(0), "{text}");
        assert!(!said.contains("by bytes, its collation"), "{said}");
    }
    let (code, said) = check(of("toml wrong")[0]);
    assert_eq!(code, Some(2));
    let problems: String = said.lines().filter(|line| !line.starts_with("warning")).map(|line| format!("{line}\n")).collect();
    assert_eq!(problems, of("text")[0]);
}

#[test]
fn the_page_about_definitions_names_every_function() {
    let page = include_str!("../../docs/definition.md");
    let list: String = page.lines().filter_map(|line| line.strip_prefix("> ")).collect::<Vec<_>>().join(" ");
    let named: Vec<&str> = list.split(", ").map(str::trim).collect();
    assert_eq!(named, dockmaster::store::predicate::FUNCTIONS);
}
