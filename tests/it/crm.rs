//! A small customer database with its definition, three nodes and an oracle of plain SQL written by hand; and the small
//! tools of the tests that look at what the programs leave behind.
//!
//! Positions form a tree (1 leads 2 and 3; 2 leads 4 and 5; 3 leads 6), one employee per position with the same number.
//! ANNA is employee 4, BERT is her manager 2, CORA is employee 6 of the other branch.

use crate::harness::{Program, Site, literals_of};
use rusqlite::Connection;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub const DEFINITION: &str = r#"version = 1
reference = ["product"]
[node]
employee = { type = "integer", must_exist = "employee.id" }
position = 'node.employee -> employee(id).position_id'
team     = 'node.position ->* position(parent_id).id'
[object.position]
members = ["employee"]
direction = "download"
visible = 'everyone'
[object.account]
members = ["account_team"]
visible.team   = 'account.id -> account_team(account_id).position_id = node.position'
visible.needed = 'referenced by opportunity, contact'
[object.contact]
visible.account = 'contact.account_id -> account_team(account_id).position_id = node.position'
[object.opportunity]
members = ["opportunity_line"]
visible.own     = 'opportunity.position_id = node.position'
visible.manager = 'opportunity.position_id = node.team'
"#;

const SCHEMA: &str = "
CREATE TABLE product(id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE position(id INTEGER PRIMARY KEY, parent_id INTEGER REFERENCES position(id), name TEXT NOT NULL);
CREATE TABLE employee(id INTEGER PRIMARY KEY, position_id INTEGER NOT NULL REFERENCES position(id), name TEXT NOT NULL);
CREATE TABLE account(id INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL);
CREATE TABLE account_team(account_id INTEGER NOT NULL REFERENCES account(id), position_id INTEGER NOT NULL REFERENCES position(id), PRIMARY KEY(account_id, position_id));
CREATE TABLE contact(id INTEGER PRIMARY KEY, account_id INTEGER REFERENCES account(id), name TEXT NOT NULL);
CREATE TABLE opportunity(id INTEGER PRIMARY KEY, account_id INTEGER NOT NULL REFERENCES account(id), position_id INTEGER REFERENCES position(id), name TEXT NOT NULL, amount NUMERIC);
CREATE TABLE opportunity_line(id INTEGER PRIMARY KEY, opportunity_id INTEGER NOT NULL REFERENCES opportunity(id) ON DELETE CASCADE, product_id INTEGER NOT NULL REFERENCES product(id), quantity INTEGER NOT NULL);
CREATE INDEX line_of ON opportunity_line(opportunity_id);
INSERT INTO product SELECT value, 'Product ' || value FROM generate_series(1, 8);
INSERT INTO position VALUES(1, NULL, 'chief'), (2, 1, 'north'), (3, 1, 'south'), (4, 2, 'rep'), (5, 2, 'rep'), (6, 3, 'rep');
INSERT INTO employee SELECT id, id, 'Employee ' || id FROM position;
INSERT INTO account SELECT value, 'customer', 'Account ' || value FROM generate_series(1, 30);
INSERT INTO account_team SELECT id, 4 + id % 3 FROM account;
INSERT INTO contact SELECT value, 1 + value % 30, 'Contact ' || value FROM generate_series(1, 60);
INSERT INTO opportunity SELECT value, 1 + value % 30, 4 + value % 3, 'Opportunity ' || value, value * 100 FROM generate_series(1, 60);
INSERT INTO opportunity_line SELECT value, 1 + value % 60, 1 + value % 8, value FROM generate_series(1, 120);
";

pub const NODES: [(&str, i64); 3] = [("ANNA", 4), ("BERT", 2), ("CORA", 6)];

/// What employee `?` may see: (table, condition).
const ORACLE: &[(&str, &str)] = &[
    ("product", "true"),
    ("position", "true"),
    ("employee", "true"),
    ("account", "id IN (VISIBLE_ACCOUNTS)"),
    ("account_team", "account_id IN (VISIBLE_ACCOUNTS)"),
    ("contact", "account_id IN (TEAM_ACCOUNTS)"),
    ("opportunity", "position_id IN (TEAM)"),
    ("opportunity_line", "opportunity_id IN (SELECT id FROM opportunity WHERE position_id IN (TEAM))"),
];

fn spelt_out(condition: &str, employee: i64) -> String {
    condition
        .replace(
            "VISIBLE_ACCOUNTS",
            "TEAM_ACCOUNTS UNION SELECT account_id FROM opportunity WHERE position_id IN (TEAM) \
             UNION SELECT account_id FROM contact WHERE account_id IN (TEAM_ACCOUNTS)",
        )
        .replace("TEAM_ACCOUNTS", "SELECT account_id FROM account_team WHERE position_id = (OWN)")
        .replace(
            "TEAM",
            "WITH RECURSIVE below(id) AS (OWN UNION SELECT position.id FROM position JOIN below ON parent_id = below.id) SELECT id FROM below",
        )
        .replace("OWN", &format!("SELECT position_id FROM employee WHERE id = {employee}"))
}

/// Rows by table, as SQL literals, sorted.
pub type Tables = std::collections::BTreeMap<String, Vec<String>>;

/// Returns what an employee may see of the server database, by the oracle.
pub fn view(server: &Connection, employee: i64) -> Tables {
    view_with(server, employee, false)
}

/// What the definition says of contacts, and what it says where everybody may see them.
pub const CONTACTS: [&str; 2] =
    ["visible.account = 'contact.account_id -> account_team(account_id).position_id = node.position'", "visible = 'everyone'"];

/// Like [`view`], and under a definition by which everybody may see all contacts, with the accounts that they refer to.
pub fn view_with(server: &Connection, employee: i64, all_contacts: bool) -> Tables {
    let select = |(table, condition): &(&str, &str)| {
        let condition = match (*table, all_contacts) {
            ("contact", true) => "true",
            ("account", true) => "id IN (VISIBLE_ACCOUNTS UNION SELECT account_id FROM contact)",
            ("account_team", true) => "account_id IN (VISIBLE_ACCOUNTS UNION SELECT account_id FROM contact)",
            _ => condition,
        };
        let rows = literals_of(server, &format!("SELECT * FROM {table} WHERE {}", spelt_out(condition, employee)));
        ((*table).to_owned(), rows)
    };
    ORACLE.iter().map(select).collect()
}

/// Returns what a local database holds.
pub fn held(local: &Connection) -> Tables {
    ORACLE.iter().map(|(table, _)| ((*table).to_owned(), literals_of(local, &format!("SELECT * FROM {table}")))).collect()
}

/// Returns what is held and not wanted, and what is wanted and not held; empty if all is right.
pub fn compared(wanted: &Tables, held: &Tables) -> String {
    let mut report = String::new();
    for (table, wanted) in wanted {
        let held = held.get(table).map_or(&[][..], Vec::as_slice);
        for row in wanted.iter().filter(|row| held.binary_search(row).is_err()) {
            writeln!(report, "{table} lacks {row}").unwrap();
        }
        for row in held.iter().filter(|row| wanted.binary_search(row).is_err()) {
            writeln!(report, "{table} must not hold {row}").unwrap();
        }
    }
    report
}

/// Returns what a local database lacks and what it must not hold; empty where it is equal to the server's view.
pub fn differences(site: &Site, local: &str, employee: i64) -> String {
    let open = |name: &str| {
        let conn = Connection::open(site.path(name)).unwrap();
        conn.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        conn
    };
    let report = compared(&view(&open("hq.db"), employee), &held(&open(local)));
    report.lines().map(|line| format!("{local}: {line}\n")).collect()
}

/// Makes the server database.
pub fn database(path: &Path) {
    // By the program, which has generate_series built in.
    let made = std::process::Command::new("sqlite3").arg(path).arg(SCHEMA).output().expect("the sqlite3 program");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// A site with the definition deployed and the three nodes added; no service runs and no node is initialised.
pub fn deployed() -> Site {
    let site = Site::new(database, DEFINITION);
    site.dockmaster_ok(&["deploy", "--yes"]);
    for (node, employee) in NODES {
        site.dockmaster_ok(&["node", "add", node, "--set", &format!("employee={employee}")]);
    }
    site
}

/// A site with the service running and the nodes named initialised, each in `<node in small letters>.db`.
pub fn running(nodes: &[&str]) -> Site {
    let mut site = deployed();
    let address = site.serve();
    for node in nodes {
        site.remote_sync_ok(&["init", &address, "--token", &site.token(node), &local(node)]);
    }
    site
}

/// The local database of a node.
pub fn local(node: &str) -> String {
    format!("{}.db", node.to_lowercase())
}

/// Brings the nodes in step and demands that they equal the oracle.
pub fn in_step(site: &Site, nodes: &[&str]) {
    routed(site);
    for node in nodes {
        site.remote_sync_ok(&["sync", &local(node)]);
    }
    equal(site, nodes);
}

/// Demands that the local databases equal the oracle as they are.
pub fn equal(site: &Site, nodes: &[&str]) {
    let report: String =
        NODES.iter().filter(|(node, _)| nodes.contains(node)).map(|(node, employee)| differences(site, &local(node), *employee)).collect();
    assert_eq!(report, "");
}

/// Waits until the service has routed what is committed.
pub fn routed(site: &Site) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let status: serde_json::Value = serde_json::from_slice(&site.dockmaster(&["status", "--json"]).stdout).unwrap();
        if status["log"] == status["router"] {
            return;
        }
        assert!(std::time::Instant::now() < until, "not routed: {status}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Writes to the server database from this process, as any program may.
pub fn server_sql(site: &Site, sql: &str) {
    sql_on(&site.path("hq.db"), sql);
}

/// Writes to any database from this process, as any program may.
pub fn sql_on(database: &Path, sql: &str) {
    let conn = Connection::open(database).unwrap();
    conn.busy_timeout(std::time::Duration::from_secs(20)).unwrap();
    // As SQLite's default is; the library that is built in here has another.
    conn.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
    conn.execute_batch(sql).unwrap();
}

/// The error line and the hint line of a failed command.
pub fn complaint(output: &Output) -> (String, String) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = |prefix: &str| text.lines().find_map(|line| line.strip_prefix(prefix)).unwrap_or_default().trim().to_owned();
    (line("error:"), line("hint:"))
}

/// The `.dx` files in a folder of the site, by name.
pub fn dx_files(site: &Site, folder: &str) -> Vec<PathBuf> {
    dx_files_in(&site.path(folder))
}

/// The `.dx` files in a folder, by name.
pub fn dx_files_in(folder: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = listed.filter(|path| path.extension().is_some_and(|extension| extension == "dx")).collect();
    files.sort();
    files
}

/// Has a client call another address, by its `remote-sync.toml`.
pub fn point(config: &Path, address: &str) {
    let text = std::fs::read_to_string(config).unwrap();
    let line = |line: &str| if line.starts_with("server = ") { format!("server = \"{address}\"") } else { line.to_owned() };
    std::fs::write(config, text.lines().map(line).collect::<Vec<_>>().join("\n") + "\n").unwrap();
}

/// Waits until a node is seen watching.
pub fn watching(site: &Site) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !site.dockmaster_ok(&["status"]).contains("watching") {
        assert!(std::time::Instant::now() < until, "it watches");
        std::thread::sleep(std::time::Duration::from_millis(30));
    }
}

/// Waits until a program ends by itself: who is cut off ends within five seconds, and some for a slow machine.
pub fn cut_off(program: &mut std::process::Child) -> std::process::ExitStatus {
    let began = std::time::Instant::now();
    loop {
        if let Some(ended) = program.try_wait().unwrap() {
            return ended;
        }
        assert!(began.elapsed() < std::time::Duration::from_secs(8), "cut off within seconds");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Starts the service again, on another free port, and tells the clients.
pub fn serve_again(site: &mut Site) -> String {
    let command = site.command(Program::Dockmaster, &["serve"]);
    serve_again_as(site, command)
}

/// Like [`serve_again`], by a command of the caller.
pub fn serve_again_as(site: &mut Site, command: Command) -> String {
    let address = site.serve_as(command);
    point_all(site, &address);
    address
}

/// Tells every node of the site where the service is.
pub fn point_all(site: &Site, address: &str) {
    for entry in std::fs::read_dir(site.folder.path()).unwrap() {
        let path = entry.unwrap().path().join("remote-sync.toml");
        if path.exists() {
            point(&path, address);
        }
    }
}

/// What `dockmaster dx show --json` says of a file.
pub fn shown(site: &Site, file: &Path) -> serde_json::Value {
    serde_json::from_str(&site.dockmaster_ok(&["dx", "show", "--json", file.to_str().unwrap()])).unwrap()
}

/// Every file below `folder` whose bytes hold `needle`, packed or unpacked.
pub fn traces(folder: &Path, needle: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if holds(&path, needle) {
                found.push(path);
            }
        }
    }
    found
}

/// Whether the bytes of a file hold `needle`, packed or unpacked.
pub fn holds(path: &Path, needle: &str) -> bool {
    let has = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
    let bytes = std::fs::read(path).unwrap();
    let unpacked = match path.extension().and_then(|extension| extension.to_str()) {
        Some("zst") => zstd::decode_all(bytes.as_slice()).unwrap(),
        Some("dx") => {
            let mut text = String::new();
            let file = std::fs::File::open(path).unwrap();
            dockmaster::dx::show::show(file, dockmaster::dx::show::ShowFormat::Text, &mut text).unwrap();
            text.into_bytes()
        }
        _ => Vec::new(),
    };
    has(&bytes) || has(&unpacked)
}
