//! The definition language against live schemas: what `init` writes passes `check`, and what `check` says of live data.

use crate::harness::Site;
use dockmaster::model::schema::Schema;
use dockmaster::rules::check::check;
use dockmaster::rules::problem::SourceFile;
use dockmaster::rules::starter::starter;
use dockmaster::store::predicate::PredicateChecker;
use dockmaster::store::sqlite::ServerDatabase;
use std::collections::BTreeMap;

fn schema(sql: &str) -> (tempfile::TempDir, Schema, BTreeMap<String, u64>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hq.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    let database = ServerDatabase::open(&path).unwrap();
    let schema = database.schema().unwrap();
    let rows = database.count_rows(&schema).unwrap();
    (folder, schema, rows)
}

fn first_definition(sql: &str) -> String {
    let (_folder, schema, rows) = schema(sql);
    let first = starter(&schema, "hq.db", &rows);
    let checked = check(&[SourceFile { name: "dockmaster.toml".into(), text: first.text.clone() }], &schema, &PredicateChecker);
    assert!(checked.problems.is_empty(), "{:#?}\n{}", checked.problems, first.text);
    let dock = checked.dock.unwrap();
    // Nothing but lookup tables is shown before somebody has decided.
    for rule in &dock.rules {
        let lookup = dock.objects[rule.object].members.is_empty();
        assert!(lookup || rule.kind == dockmaster::model::dock::RuleKind::Nobody, "{}", rule.name);
    }
    first.text
}

#[test]
fn init_guesses_lookup_tables_and_members_and_leaves_whose_rows_open() {
    let text = first_definition(
        "CREATE TABLE shop(id INTEGER PRIMARY KEY, name TEXT);
         CREATE TABLE article(id INTEGER PRIMARY KEY, name TEXT);
         CREATE TABLE sale(id INTEGER PRIMARY KEY, shop_id INTEGER REFERENCES shop(id), clerk INTEGER, at TEXT, note TEXT, x TEXT,
             y INTEGER REFERENCES article(id), z INTEGER REFERENCES article(id));
         CREATE TABLE sale_line(sale_id INTEGER NOT NULL REFERENCES sale(id), line INTEGER NOT NULL, article_id INTEGER REFERENCES article(id),
             PRIMARY KEY(sale_id, line));
         CREATE TABLE audit(message TEXT);",
    );
    assert!(text.contains("reference = [\"article\", \"shop\"]"), "{text}");
    assert!(text.contains("[object.sale]\nmembers = [\"sale_line\"]\nvisible = 'nobody'"), "{text}");
    assert!(text.contains("# visible.shop = 'sale.shop_id = node.shop'"), "{text}");
    assert!(text.contains("shop = { type = \"integer\", must_exist = \"shop.id\" }"), "{text}");
    assert!(text.contains("#   audit: it has no primary key"), "{text}");
}

#[test]
fn b5_init_survives_odd_names_circles_and_broken_references() {
    first_definition(
        "CREATE TABLE \"a b\"(id INTEGER PRIMARY KEY, up INTEGER REFERENCES \"a b\"(id));
         CREATE TABLE \"say \"\"hi\"\"\"(id TEXT NOT NULL PRIMARY KEY, \"a b\" INTEGER REFERENCES \"a b\"(id), n INTEGER REFERENCES gone(id));
         CREATE TABLE d(x INTEGER NOT NULL, y INTEGER NOT NULL, PRIMARY KEY(x, y), FOREIGN KEY(x, y) REFERENCES e(p, q));
         CREATE TABLE e(p INTEGER NOT NULL, q INTEGER NOT NULL, d INTEGER, PRIMARY KEY(p, q), FOREIGN KEY(p, q) REFERENCES d(x, y));
         CREATE TABLE \"select\"(\"from\" INTEGER PRIMARY KEY, \"where\" INTEGER REFERENCES d(x));",
    );
    first_definition("");
}

#[test]
fn init_passes_check_on_random_schemas() {
    let seed = crate::harness::seed();
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..100 {
        let tables = random.usize(1..9);
        let mut sql = String::new();
        for table in 0..tables {
            sql.push_str(&format!("CREATE TABLE t{table}(id INTEGER PRIMARY KEY"));
            let keys: Vec<usize> = (0..random.usize(0..4)).map(|_| random.usize(0..tables + 1)).collect();
            for (column, target) in keys.iter().enumerate() {
                let action = if random.bool() { " ON DELETE CASCADE" } else { "" };
                sql.push_str(&format!(", c{column} INTEGER REFERENCES t{target}(id){action}"));
            }
            sql.push_str(");");
        }
        first_definition(&sql);
    }
}

const ORDERS: &str = "
CREATE TABLE customer(id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE team(order_id INTEGER NOT NULL, member INTEGER NOT NULL, active INTEGER, PRIMARY KEY(order_id, member));
CREATE TABLE orders(id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customer(id), owner INTEGER, kind TEXT);
INSERT INTO customer VALUES (1, 'seen'), (2, 'seen'), (3, 'not seen');
INSERT INTO orders VALUES (10, 1, 5, 'x'), (11, 2, NULL, 'x'), (12, 2, NULL, 'x'), (13, NULL, NULL, 'house'), (14, NULL, NULL, NULL);
INSERT INTO team VALUES (11, 7, 1), (12, 7, 0);
";

#[test]
fn check_counts_the_rows_that_no_rule_shows() {
    let definition = "version = 1
[node]
person = { type = \"integer\" }
[object.orders]
visible.own = 'orders.owner = node.person'
visible.team = 'orders.id -> team(order_id, active = 1).member = node.person'
visible.house = { rule = 'everyone', where = \"kind = 'house'\" }
[object.customer]
visible.ordered = 'referenced by orders'
";
    let site = Site::new(|path| rusqlite::Connection::open(path).unwrap().execute_batch(ORDERS).unwrap(), definition);
    let said = site.dockmaster_ok(&["check"]);
    // 12 has an inactive team, 14 has nothing; 10, 11 and 13 can be shown.
    assert!(said.contains("warning: 2 of 5 rows of orders are shown by no rule of orders to any node, for example 1"), "{said}");
    assert!(said.contains("warning: 1 of 3 rows of customer are shown by no rule of customer to any node, for example 3"), "{said}");
    let json: serde_json::Value = serde_json::from_str(&site.dockmaster_ok(&["check", "--json"])).unwrap();
    assert_eq!(json["uncovered"][0]["unseen"], 2);
}
