//! A table of contacts on a server and its nodes, and the whole path between them in this process: the real stages, one at a time, so
//! that each can be measured. Beside it the same rows in plain SQLite databases.

use super::meter::cpu;
use crate::crm;
use crate::direct::Direct;
use dockmaster::base::ids::{FileNo, Incarnation, NodeName};
use dockmaster::base::step::Progress;
use dockmaster::client::apply::{self, ApplyFolders};
use dockmaster::model::node::{Node, NodeState};
use dockmaster::model::value::Value;
use dockmaster::server::pass::Stage;
use dockmaster::server::router::{Router, RouterOptions};
use dockmaster::server::txnproc::TxnProc;
use dockmaster::store::local::LocalDatabase;
use dockmaster::store::nodes::NodeWriter;
use dockmaster::store::sqlite::StoreError;
use rusqlite::{Connection, params};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// 12 columns, 228 bytes, a text key.
pub const SCHEMA: &str =
    "CREATE TABLE contact(id TEXT PRIMARY KEY NOT NULL, owner INTEGER NOT NULL, first TEXT NOT NULL, last TEXT NOT NULL,
    email TEXT NOT NULL, phone TEXT NOT NULL, street TEXT NOT NULL, city TEXT NOT NULL, country TEXT NOT NULL, note TEXT NOT NULL,
    score REAL NOT NULL, changed INTEGER NOT NULL)";

/// Everybody sees the rows whose owner has its number.
pub const OWN: &str =
    "version = 1\n[node]\nnumber = { type = \"integer\" }\n[object.contact]\nvisible.own = 'contact.owner = node.number'\n";
/// Everybody sees every row.
pub const EVERYONE: &str = "version = 1\n[node]\nnumber = { type = \"integer\" }\n[object.contact]\nvisible = 'everyone'\n";

/// Rows of one transaction of the programs that write on the server.
pub const PER_TXN: usize = 10;

/// One row.
#[derive(Debug, Clone)]
pub struct Contact {
    id: String,
    owner: i64,
    texts: [String; 8],
    score: f64,
    changed: i64,
}

const WORDS: [&str; 16] = [
    "north", "river", "maple", "harbour", "stone", "garden", "market", "bridge", "summer", "winter", "field", "castle", "silver", "amber",
    "forest", "meadow",
];

/// Returns a text of exactly so many bytes: words and digits, as people's data is.
fn text(random: &mut fastrand::Rng, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 16);
    while text.len() < bytes {
        text.push_str(random.choice(WORDS).unwrap_or("x"));
        text.push_str(&random.u32(0..1_000).to_string());
        text.push(' ');
    }
    text.truncate(bytes);
    text
}

/// Returns contact number `number`; `version` tells what it says apart from what it said before.
pub fn contact(number: usize, owner: i64, version: usize) -> Contact {
    let mut random = fastrand::Rng::with_seed((number * 1_000 + version) as u64);
    let texts = [8, 12, 28, 16, 24, 14, 10, 80].map(|bytes| text(&mut random, bytes));
    Contact { id: format!("C-{number:010}"), owner, texts, score: random.f64(), changed: 1_700_000_000 + version as i64 }
}

/// What a program does to a row.
#[derive(Debug, Clone)]
pub enum Write {
    /// A new row.
    Insert(Contact),
    /// New values in four columns.
    Update(Contact),
    /// It goes.
    Delete(Contact),
}

/// Writes in transactions of so many rows, by prepared statements, as a program does.
pub fn write(conn: &Connection, writes: &[Write], per_txn: usize) {
    let mut insert = conn.prepare_cached("INSERT INTO contact VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)").unwrap();
    let mut update = conn.prepare_cached("UPDATE contact SET phone = ?2, note = ?3, score = ?4, changed = ?5 WHERE id = ?1").unwrap();
    let mut delete = conn.prepare_cached("DELETE FROM contact WHERE id = ?1").unwrap();
    for transaction in writes.chunks(per_txn) {
        conn.prepare_cached("BEGIN IMMEDIATE").unwrap().execute([]).unwrap();
        for write in transaction {
            let changed = match write {
                Write::Insert(Contact { id, owner, texts: [first, last, email, phone, street, city, country, note], score, changed }) => {
                    insert.execute(params![id, owner, first, last, email, phone, street, city, country, note, score, changed])
                }
                Write::Update(row) => update.execute(params![row.id, row.texts[3], row.texts[7], row.score, row.changed]),
                Write::Delete(row) => delete.execute([&row.id]),
            };
            assert_eq!(changed.unwrap(), 1);
        }
        conn.prepare_cached("COMMIT").unwrap().execute([]).unwrap();
    }
}

/// Opens a database as a program does, in WAL mode.
pub fn open(path: &Path, synchronous: &str, wal_pages: i64) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.execute_batch(&format!(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous}; PRAGMA wal_autocheckpoint = {wal_pages}; PRAGMA busy_timeout = 10000"
    ))
    .unwrap();
    conn
}

/// Makes a plain database of contacts.
pub fn plain(path: &Path, synchronous: &str, wal_pages: i64) -> Connection {
    let conn = open(path, synchronous, wal_pages);
    conn.execute_batch(SCHEMA).unwrap();
    conn
}

/// Writes back what stands in the WAL, so that no side leaves this to the next.
pub fn checkpoint(conn: &Connection) {
    let (busy, ..) = conn
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)))
        .unwrap();
    assert_eq!(busy, 0, "somebody else has the database open in a transaction");
}

pub fn count(conn: &Connection) -> usize {
    conn.query_row("SELECT count(*) FROM contact", [], |row| row.get::<_, i64>(0)).unwrap() as usize
}

/// Registers nodes 1 to `nodes` as active, in one transaction.
pub fn register(direct: &Direct, nodes: usize, incarnation: u32) {
    let put =
        |writer: &NodeWriter<'_>| -> Result<(), StoreError> { (1..=nodes).try_for_each(|number| writer.put(&node(number, incarnation))) };
    direct.server().change_nodes(put).unwrap();
}

fn node(number: usize, incarnation: u32) -> Node {
    Node {
        name: node_name(number),
        state: NodeState::Active,
        incarnation: Incarnation(incarnation),
        extracted: Incarnation(incarnation),
        model: None,
        attributes: BTreeMap::from([("number".to_owned(), vec![Value::Integer(number as i64)])]),
    }
}

/// Returns the name of a node by its number.
pub fn node_name(number: usize) -> NodeName {
    format!("N{number:06}").parse().unwrap()
}

struct Client {
    name: NodeName,
    local: LocalDatabase,
    folders: ApplyFolders,
    brought: u64,
}

/// Server, stages and clients.
pub struct World {
    pub direct: Direct,
    pub writer: Connection,
    pub txnproc: TxnProc,
    pub router: Router,
    clients: Vec<Client>,
    expected: usize,
}

/// CPU of each stage.
#[derive(Debug, Default, Clone, Copy)]
pub struct Spent {
    pub commit: Duration,
    pub txnproc: Duration,
    pub router: Duration,
    pub bring: Duration,
    pub client: Duration,
    /// Rows that clients applied.
    pub delivered: usize,
}

impl World {
    /// Deploys a definition over `rows` contacts, and lets `nodes` nodes of it run: with local databases if they are `clients`.
    pub fn new(definition: &str, rows: &[Write], nodes: usize, clients: bool) -> World {
        let make = |path: &Path| {
            let conn = plain(path, "OFF", 1_000);
            write(&conn, rows, 10_000);
        };
        let mut direct = Direct::new(make, definition);
        register(&direct, nodes, 1);
        if clients {
            direct.stages(&[Stage::TxnProc, Stage::Router]);
        }
        let mut opened = Vec::new();
        for number in 1..=if clients { nodes } else { 0 } {
            let name = node_name(number);
            direct.unpack(name.as_str(), &direct.root.extract(&name, Incarnation(1)));
            let path = direct.site.path(&crm::local(name.as_str()));
            let folders = ApplyFolders::below(&direct.site.path(&format!("{}.sync", crm::local(name.as_str()))));
            opened.push(Client { name, local: LocalDatabase::open(&path).unwrap(), folders, brought: 0 });
        }
        let writer = open(&direct.site.path("hq.db"), "NORMAL", 4_000);
        let txnproc = TxnProc::open(&direct.site.path("hq.db"), Arc::clone(&direct.root)).unwrap();
        let router = Router::open(Arc::clone(&direct.root), RouterOptions::default()).unwrap();
        let mut world = World { direct, writer, txnproc, router, clients: opened, expected: 0 };
        if !clients {
            world.process();
            world.route();
        }
        world.expected = rows.len();
        world
    }

    /// Takes one unit after another from the log, without extracts.
    pub fn process(&mut self) {
        while self.txnproc.step().unwrap().progress == Progress::Worked {}
    }

    /// Routes what is there.
    pub fn route(&mut self) {
        while self.router.step().unwrap() == Progress::Worked {}
    }

    /// Brings every node its new files, durably, as an exchange does but for the network.
    pub fn bring(&mut self) {
        for client in &mut self.clients {
            loop {
                let next = FileNo(client.brought + 1);
                let from = self.direct.root.outbox_file(&client.name, next);
                let Ok(bytes) = std::fs::read(from) else { break };
                client.folders.disk.put(&client.folders.tmp, &client.folders.inbox, &next.file_name(), &bytes).unwrap();
                client.brought = next.0;
            }
        }
    }

    /// Applies what every node was brought. Returns the number of operations.
    pub fn apply(&mut self) -> usize {
        let mut rows = 0;
        for client in &mut self.clients {
            loop {
                let report = apply::step(&mut client.local, &client.folders).unwrap();
                assert!(report.stopped.is_none() && report.quarantined.is_empty() && report.held.is_none(), "{report:?}");
                rows += report.rows as usize;
                if !report.more && !report.busy {
                    break;
                }
            }
        }
        rows
    }

    /// Writes on the server in transactions of [`PER_TXN`] rows and takes it all the way; a unit is `per_unit` rows.
    pub fn pass(&mut self, writes: &[Write], per_unit: usize) -> Spent {
        let mut spent = Spent::default();
        for unit in writes.chunks(per_unit) {
            spent.commit += cpu(|| write(&self.writer, unit, PER_TXN)).1;
            spent.txnproc += cpu(|| self.process()).1;
        }
        spent.router = cpu(|| self.route()).1;
        spent.bring = cpu(|| self.bring()).1;
        let (delivered, client) = cpu(|| {
            let delivered = self.apply();
            self.checkpoint_clients();
            delivered
        });
        (spent.client, spent.delivered) = (client, delivered);
        for write in writes {
            match write {
                Write::Insert(_) => self.expected += 1,
                Write::Update(_) => {}
                Write::Delete(_) => self.expected -= 1,
            }
        }
        spent
    }

    fn checkpoint_clients(&self) {
        for client in &self.clients {
            checkpoint(&Connection::open(client.local.path()).unwrap());
        }
    }

    /// Changes the first rows on every node, in so many transactions, each a unit of its own that is not sent. Returns how many units there are.
    pub fn edit(&mut self, rows: usize, units: usize) -> usize {
        let mut made = 0;
        for client in &self.clients {
            // Makes what captures the program's changes.
            client.local.cut().unwrap();
            let app = Connection::open(client.local.path()).unwrap();
            let numbers: Vec<usize> = (0..rows).collect();
            for part in numbers.chunks(rows.div_ceil(units.max(1)).max(1)) {
                let edits: Vec<Write> = part.iter().map(|number| Write::Update(contact(*number, 1, 999))).collect();
                write(&app, &edits, edits.len());
                made += client.local.cut().unwrap().units.len();
            }
            checkpoint(&app);
        }
        made
    }

    /// Demands that every node shows its edits on top of the server's rows, in so many units, and all other rows as the server has them.
    pub fn demand_pending(&self, edited: usize, units: usize) {
        for client in &self.clients {
            let app = Connection::open(client.local.path()).unwrap();
            app.execute("ATTACH ?1 AS server", [self.direct.site.path("hq.db").to_str().unwrap()]).unwrap();
            let mine = 1_700_000_000 + 999;
            let select = format!(
                "SELECT (SELECT count(*) FROM main.contact WHERE changed = {mine}), (SELECT count(*) FROM main.dock_unit),
                        (SELECT count(*) FROM (SELECT * FROM server.contact EXCEPT SELECT * FROM main.contact))"
            );
            let found =
                app.query_row(&select, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))).unwrap();
            assert_eq!(
                found,
                (edited as i64, units as i64, edited as i64),
                "the server's rows differ where they were edited, and nowhere else"
            );
        }
    }

    /// Demands that the nodes together hold so many copies of every row of the server, and the same content.
    pub fn demand_equal(&self, copies: usize) {
        let digest = |conn: &Connection| -> (i64, i64, f64) {
            let sql = "SELECT count(*), ifnull(sum(length(note) + changed + unicode(note) * length(phone)), 0), ifnull(sum(score), 0) FROM contact";
            conn.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap()
        };
        let server = digest(&self.writer);
        assert_eq!(server.0 as usize, self.expected);
        let mut held = (0, 0, 0.0);
        for client in &self.clients {
            let found = digest(&Connection::open(client.local.path()).unwrap());
            held = (held.0 + found.0, held.1 + found.1, held.2 + found.2);
        }
        let copies = copies as i64;
        assert_eq!((held.0, held.1), (server.0 * copies, server.1 * copies));
        assert!((held.2 - server.2 * copies as f64).abs() < 1e-3, "{held:?} {server:?}");
    }
}
