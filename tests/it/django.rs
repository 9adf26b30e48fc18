//! Migrations of a real Django (R6): they rebuild a replicated table under load, so that every trigger on it vanishes and
//! what is written next is captured by nobody. Afterwards each node is equal to the server, and none was extracted again.

use crate::crm::{routed, sql_on};
use crate::harness::{Site, copy_folder, literals};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

const DEFINITION: &str = r#"version = 1
[node]
region = { type = "integer" }
[object.shop_customer]
visible.region = 'shop_customer.region = node.region'
visible.needed = 'referenced'
[object.shop_order]
members = ["shop_line"]
visible = 'shop_order.customer_id -> shop_customer(id).region = node.region'
"#;

/// (node, its region)
const NODES: [(&str, i64); 3] = [("NORTH", 0), ("SOUTH", 1), ("EAST", 2)];

fn local(node: &str) -> String {
    format!("{}.db", node.to_lowercase())
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/django")
}

/// The Python of both tests, which run beside each other: made once.
static PYTHON: LazyLock<PathBuf> = LazyLock::new(python);

/// Returns the Python of a virtual environment with Django, which is made by `pip install` if it is not there.
fn python() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("django");
    let python = folder.join("bin/python");
    let ran = |command: &mut Command| {
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; scripts/test.sh installs python3-venv"));
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    // Whether it is whole says the last step; a half one is made anew.
    if !folder.join("whole").exists() {
        ran(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
        let requirements = fixture().join("requirements.txt");
        ran(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]).arg(requirements));
        std::fs::write(folder.join("whole"), "").unwrap();
    }
    python
}

/// A shop that Django made, on a site with three nodes.
struct Shop {
    site: Site,
    python: PathBuf,
}

fn migrate(python: &Path, folder: &Path, to: &str) {
    let output = Command::new(python)
        .args(["manage.py", "migrate", "shop", to])
        .env("DATABASE", folder.join("hq.db"))
        .current_dir(folder.join("django"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

impl Shop {
    fn new() -> Shop {
        let python = PYTHON.clone();
        let database = |path: &Path| {
            let folder = path.parent().unwrap();
            copy_folder(&fixture(), &folder.join("django"));
            migrate(&python, folder, "0001");
            sql_on(
                path,
                "WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n WHERE v < 30)
                 INSERT INTO shop_customer SELECT v, 'Customer ' || v, v % 4 FROM n;
                 WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n WHERE v < 300)
                 INSERT INTO shop_order(id, number, amount, customer_id) SELECT v, 'A' || v, v, 1 + v % 30 FROM n;
                 INSERT INTO shop_line(product, quantity, order_id) SELECT 'Product ' || id, id, id FROM shop_order",
            );
        };
        let mut site = Site::new(database, DEFINITION);
        site.dockmaster_ok(&["deploy", "--yes"]);
        for (node, region) in NODES {
            site.dockmaster_ok(&["node", "add", node, "--set", &format!("region={region}")]);
        }
        let address = site.serve();
        for (node, _) in NODES {
            site.remote_sync_ok(&["init", &address, "--token", &site.token(node), &local(node)]);
        }
        Shop { site, python }
    }

    fn migrate(&self, to: &str) {
        migrate(&self.python, self.site.folder.path(), to);
    }

    /// What differs between a node and what it may see.
    fn differences(&self, node: &str, region: i64) -> String {
        let customers = format!("SELECT id FROM shop_customer WHERE region = {region}");
        let orders = format!("SELECT id FROM shop_order WHERE customer_id IN ({customers})");
        let mut report = String::new();
        for (table, condition) in [
            ("shop_customer", format!("region = {region}")),
            ("shop_order", format!("customer_id IN ({customers})")),
            ("shop_line", format!("order_id IN ({orders})")),
        ] {
            let wanted = literals(&self.site.path("hq.db"), &format!("SELECT * FROM {table} WHERE {condition}"));
            let held = literals(&self.site.path(&local(node)), &format!("SELECT * FROM {table}"));
            let only = |here: &[String], there: &[String]| here.iter().filter(|row| !there.contains(row)).cloned().collect::<Vec<_>>();
            if wanted != held {
                report += &format!("{node}: {table} lacks {:?}, must not hold {:?}\n", only(&wanted, &held), only(&held, &wanted));
            }
        }
        report
    }

    /// Brings every node in step; the service may still be healing. Demands that they are equal in the end.
    fn in_step(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            routed(&self.site);
            NODES.iter().for_each(|(node, _)| drop(self.site.remote_sync_ok(&["sync", &local(node)])));
            let report: String = NODES.iter().map(|(node, region)| self.differences(node, *region)).collect();
            if report.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "{report}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The incarnation of each node, on both sides, and its extracts.
    fn extracts(&self) -> Vec<String> {
        let of = |node: &str| {
            let here = literals(&self.site.path(&local(node)), "SELECT incarnation, install_id FROM dock_state");
            let there = literals(&self.site.path("hq.db"), &format!("SELECT incarnation, state FROM dock_node WHERE name = '{node}'"));
            let outbox = std::fs::read_dir(self.site.path(&format!("docking/{node}/outbox"))).unwrap();
            let mut files: Vec<String> = outbox.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
            files.retain(|name| name.ends_with(".toc"));
            format!("{node} {here:?} {there:?} {files:?}")
        };
        NODES.iter().map(|(node, _)| of(node)).collect()
    }
}

/// Another application of the same database, which writes all the time.
struct Load {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Load {
    fn begin(database: &Path, seed: u64) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, conn) = (Arc::clone(&stop), Connection::open(database).unwrap());
        let thread = std::thread::spawn(move || {
            conn.busy_timeout(Duration::from_secs(60)).unwrap();
            conn.execute_batch("PRAGMA foreign_keys = ON").unwrap();
            let mut random = fastrand::Rng::with_seed(seed);
            let mut committed = 0;
            while !stopped.load(Ordering::Acquire) {
                let (order, customer, amount) = (random.i64(1..350), random.i64(1..=30), random.i64(0..1000));
                let sql = match random.u32(0..6) {
                    0 => format!("UPDATE shop_order SET customer_id = {customer}, amount = {amount} WHERE id = {order}"),
                    1 => format!("UPDATE shop_order SET amount = amount + 1 WHERE id % 50 = {order} % 50"),
                    2 => format!("DELETE FROM shop_line WHERE order_id = {order}; DELETE FROM shop_order WHERE id = {order}"),
                    3 => format!("UPDATE shop_customer SET region = {} WHERE id = {customer}", amount % 4),
                    4 => format!("UPDATE shop_order SET number = 'B{amount}' WHERE id = {order}"),
                    _ => format!("UPDATE shop_line SET quantity = {amount} WHERE order_id = {order}"),
                };
                conn.execute_batch(&format!("BEGIN IMMEDIATE; {sql}; COMMIT")).unwrap();
                committed += 1;
                std::thread::sleep(Duration::from_millis(random.u64(0..4)));
            }
            committed
        });
        Load { stop, thread }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }
}

/// A constraint is added: Django makes the table anew with the columns that it had. The service heals it by itself.
#[test]
fn r6_a_migration_of_django_rebuilds_a_table_under_load_and_no_node_is_extracted_again() {
    let seed = crate::harness::seed();
    println!("seed {seed}");
    let mut shop = Shop::new();
    shop.in_step();
    let before = shop.extracts();
    let load = Load::begin(&shop.site.path("hq.db"), seed);
    std::thread::sleep(Duration::from_millis(300));
    shop.migrate("0002");
    std::thread::sleep(Duration::from_millis(500));
    assert!(load.end() > 50);
    let copied = "SELECT count(*) FROM sqlite_schema WHERE name = 'shop_order' AND sql LIKE '%amount_is_not_negative%'";
    assert_eq!(literals(&shop.site.path("hq.db"), copied), ["1"], "Django made the table anew");
    shop.in_step();
    assert_eq!(shop.extracts(), before);
    // And back, with nobody there who could see it at once.
    shop.site.stop();
    let load = Load::begin(&shop.site.path("hq.db"), seed + 1);
    shop.migrate("0001");
    std::thread::sleep(Duration::from_millis(300));
    assert!(load.end() > 20);
    crate::crm::serve_again(&mut shop.site);
    shop.in_step();
    assert_eq!(shop.extracts(), before);
    shop.site.stop();
}

/// A column is added: the table stands still, by name, until `deploy` adopts its new shape with every node active.
#[test]
fn r40_a_migration_of_django_that_adds_a_column_is_adopted_by_deploy_and_no_node_is_extracted_again() {
    let seed = crate::harness::seed();
    println!("seed {seed}");
    let mut shop = Shop::new();
    shop.in_step();
    let before = shop.extracts();
    let load = Load::begin(&shop.site.path("hq.db"), seed);
    std::thread::sleep(Duration::from_millis(300));
    shop.migrate("0003");
    std::thread::sleep(Duration::from_millis(300));
    shop.site.dockmaster_ok(&["deploy", "--yes"]);
    std::thread::sleep(Duration::from_millis(300));
    assert!(load.end() > 50);
    sql_on(&shop.site.path("hq.db"), "UPDATE shop_order SET state = 'closed' WHERE id % 3 = 0");
    shop.in_step();
    assert_eq!(shop.extracts(), before);
    shop.site.stop();
}
