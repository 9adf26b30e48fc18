//! A busy server: random transactions through two kinds of programs, and nodes that come to belong to other employees. All
//! that is committed is written down with its place in the log.

use super::history::{Deed, Entry};
use crate::crm::CONTACTS;
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The workload, until it is ended.
pub struct Workload {
    stop: Arc<AtomicBool>,
    /// Held while a definition is deployed: nobody takes the data store away under the hands of the administrator.
    pub deploying: Arc<Mutex<()>>,
    thread: std::thread::JoinHandle<(Vec<Entry>, Result<(), String>)>,
}

impl Workload {
    /// Begins to write to the database of a site. Nodes change their employees too if `nodes_change`.
    pub fn begin(folder: &Path, seed: u64, nodes_change: bool) -> Workload {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, folder) = (Arc::clone(&stop), folder.to_owned());
        let deploying = Arc::new(Mutex::new(()));
        let held = Arc::clone(&deploying);
        let thread = std::thread::spawn(move || {
            let mut writer = Writer::new(&folder, seed, nodes_change, held);
            let mut outcome = Ok(());
            while outcome.is_ok() && !stopped.load(Ordering::Acquire) {
                outcome = writer.deed();
                std::thread::sleep(Duration::from_millis(writer.random.u64(0..30)));
            }
            (writer.history, outcome)
        });
        Workload { stop, deploying, thread }
    }

    /// Ends it and returns what was committed.
    pub fn end(self) -> Vec<Entry> {
        let (history, outcome) = self.end_whatever_failed();
        outcome.unwrap();
        history
    }

    /// Ends it and returns what was committed or tried last, and what failed, as when the power goes.
    pub fn end_whatever_failed(self) -> (Vec<Entry>, Result<(), String>) {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }
}

/// Returns the last number of the log of a server database.
pub fn log_end(folder: &Path) -> i64 {
    Connection::open(folder.join("hq.db")).unwrap().query_row(LOG_END, [], |row| row.get(0)).unwrap()
}

struct Writer {
    folder: PathBuf,
    conn: Connection,
    random: fastrand::Rng,
    history: Vec<Entry>,
    nodes_change: bool,
    deploying: Arc<Mutex<()>>,
}

const LOG_END: &str = "SELECT seq FROM sqlite_sequence WHERE name = 'dock_txn_log'";

impl Writer {
    fn new(folder: &Path, seed: u64, nodes_change: bool, deploying: Arc<Mutex<()>>) -> Writer {
        let conn = Connection::open(folder.join("hq.db")).unwrap();
        conn.busy_timeout(Duration::from_secs(20)).unwrap();
        conn.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA synchronous = NORMAL").unwrap();
        Writer { folder: folder.to_owned(), conn, random: fastrand::Rng::with_seed(seed), history: Vec::new(), nodes_change, deploying }
    }

    fn deed(&mut self) -> Result<(), String> {
        match self.random.u32(0..40) {
            0 if self.nodes_change && self.random.u32(0..4) == 0 => self.definition(),
            0 if self.nodes_change => self.employee(),
            1..=4 => self.by_the_sqlite_program(),
            _ => self.here().map_err(|error| error.to_string()),
        }
    }

    fn here(&mut self) -> rusqlite::Result<()> {
        let sql = self.edits();
        self.conn.execute_batch("BEGIN IMMEDIATE")?;
        let after = self.log_end()?;
        self.conn.execute_batch(&sql)?;
        let upto = self.log_end()?;
        // Before the commit: should it fail, the log tells whether it came to pass.
        self.history.push(Entry { after, upto, deed: Deed::Sql(sql) });
        self.conn.execute_batch("COMMIT")
    }

    fn log_end(&self) -> rusqlite::Result<i64> {
        self.conn.query_row(LOG_END, [], |row| row.get(0))
    }

    fn by_the_sqlite_program(&mut self) -> Result<(), String> {
        let sql = self.edits();
        let output = Command::new("sqlite3")
            .args(["-bail", "-cmd", ".timeout 20000"])
            .arg(self.folder.join("hq.db"))
            .arg(format!("BEGIN IMMEDIATE; {LOG_END}; {sql}; {LOG_END}; COMMIT"))
            .stdin(Stdio::null())
            .output()
            .expect("the sqlite3 program; scripts/test.sh installs it");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let ends: Vec<i64> = text.lines().filter_map(|line| line.parse().ok()).collect();
        if let [after, upto] = ends[..] {
            self.history.push(Entry { after, upto, deed: Deed::Sql(sql.clone()) });
        }
        if output.status.success() { Ok(()) } else { Err(format!("{sql}: {}", String::from_utf8_lossy(&output.stderr))) }
    }

    /// Gives ANNA or BERT to another employee, as an administrator does.
    fn employee(&mut self) -> Result<(), String> {
        let node = if self.random.bool() { "ANNA" } else { "BERT" };
        let holds = |entry: &Entry| matches!(entry.deed, Deed::Employee(name, _) if name == node);
        let now = match self.history.iter().rev().find(|entry| holds(entry)).map(|entry| entry.deed.clone()) {
            Some(Deed::Employee(_, employee)) => employee,
            _ => crate::crm::NODES.iter().find(|(name, _)| *name == node).unwrap().1,
        };
        let employee = now % 6 + 1;
        let before = self.log_end().map_err(|error| error.to_string())?;
        let set = Command::new(env!("CARGO_BIN_EXE_dockmaster"))
            .args(["node", "set", node, "--set", &format!("employee={employee}")])
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        if !set.status.success() {
            return Err(String::from_utf8_lossy(&set.stderr).into_owned());
        }
        let place = "SELECT id FROM dock_txn_log WHERE id > ?1 AND op = 'C' AND c1 LIKE '%\"' || ?2 || '\"%'";
        let at: i64 = self.conn.query_row(place, (before, node), |row| row.get(0)).unwrap();
        self.history.push(Entry { after: at - 1, upto: at, deed: Deed::Employee(node, employee) });
        Ok(())
    }

    /// Deploys the other of two definitions, with every node active and the service up or down.
    fn definition(&mut self) -> Result<(), String> {
        let deployed = |entry: &Entry| matches!(entry.deed, Deed::Definition { all_contacts: true });
        let last = self.history.iter().rev().find(|entry| matches!(entry.deed, Deed::Definition { .. }));
        let all_contacts = !last.is_some_and(deployed);
        let (path, new) = (self.folder.join("dockmaster.toml"), self.folder.join("new.toml"));
        let text = std::fs::read_to_string(&path).unwrap();
        let [from, to] = if all_contacts { CONTACTS } else { [CONTACTS[1], CONTACTS[0]] };
        let changed = text.replacen(&format!("[object.contact]\n{from}"), &format!("[object.contact]\n{to}"), 1);
        assert_ne!(changed, text);
        std::fs::write(&new, changed).unwrap();
        std::fs::rename(&new, &path).unwrap();
        let before = self.log_end().map_err(|error| error.to_string())?;
        let deploying = Arc::clone(&self.deploying);
        let _held = deploying.lock().unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let output = Command::new(env!("CARGO_BIN_EXE_dockmaster"))
                .args(["deploy", "--yes"])
                .current_dir(&self.folder)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            match output.status.code() {
                Some(0) => break,
                // The service starts or ends just now.
                Some(3) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                _ => return Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            }
        }
        let place = "SELECT id FROM dock_txn_log WHERE id > ?1 AND op = 'C' AND c1 LIKE '%\"definition\"%'";
        let at: i64 = self.conn.query_row(place, [before], |row| row.get(0)).unwrap();
        self.history.push(Entry { after: at - 1, upto: at, deed: Deed::Definition { all_contacts } });
        Ok(())
    }

    /// One to three edits that move rows between nodes, with text that nobody else has.
    fn edits(&mut self) -> String {
        let count = self.random.usize(1..=3);
        (0..count).map(|_| edit(&mut self.random)).collect::<Vec<_>>().join("; ")
    }
}

fn edit(random: &mut fastrand::Rng) -> String {
    let (id, position, account) = (random.i64(1..120), random.i64(1..=6), random.i64(1..=30));
    let mark = random.u32(..);
    match random.u32(0..14) {
        0..=2 => format!("UPDATE opportunity SET position_id = {position}, name = 'moved {mark}' WHERE id % 10 = {id} % 10"),
        3 => format!("INSERT OR REPLACE INTO opportunity VALUES({id}, {account}, {position}, 'again {mark}', {mark})"),
        4 => format!("DELETE FROM opportunity_line WHERE opportunity_id = {id}; DELETE FROM opportunity WHERE id = {id}"),
        5 => format!("INSERT OR REPLACE INTO opportunity_line VALUES({}, {id}, {}, {mark})", random.i64(1..300), random.i64(1..=8)),
        6 => format!("INSERT OR IGNORE INTO account_team VALUES({account}, {position})"),
        7 => format!("DELETE FROM account_team WHERE account_id = {account} AND position_id = {position}"),
        8 => format!("UPDATE account SET name = 'account {mark}' WHERE id = {account}"),
        9 => format!("UPDATE contact SET account_id = {account}, name = 'contact {mark}' WHERE id % 8 = {id} % 8"),
        10 => format!("UPDATE product SET name = 'product {mark}' WHERE id = {}", random.i64(1..=8)),
        // The tree of positions stays a tree: a child only moves to a position with a smaller number.
        11 => format!("UPDATE position SET parent_id = {} WHERE id = {}", random.i64(1..=2), random.i64(3..=6)),
        12 => format!("UPDATE employee SET position_id = {position} WHERE id = {}", random.i64(1..=6)),
        _ => format!("INSERT OR REPLACE INTO contact VALUES({}, {account}, 'new {mark}')", random.i64(61..90)),
    }
}
