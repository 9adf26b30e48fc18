//! The bounds of the download path: what is purged and what stays, nodes that are away, full disks, many files, nodes and
//! clients. The kit is a server with all stages in this process; nodes are marks, as sessions write them.

mod disk;
mod extracts;
mod lease;
mod numbers;
mod purge;

use dockmaster::base::ids::{ContentHash, FileNo, Incarnation, InstallId, NodeName, TxnId};
use dockmaster::base::step::Progress;
use dockmaster::docking::ledger::{Ledger, OutboxFile};
use dockmaster::docking::queue;
use dockmaster::docking::root::{Access, DockingRoot};
use dockmaster::docking::sessions::{Mark, SessionsDb};
use dockmaster::model::dock::*;
use dockmaster::model::value::Collation;
use dockmaster::rules::retention::Retention;
use dockmaster::server::deploy::{DeployOptions, deploy};
use dockmaster::server::nodes::{self, NodeSettings};
use dockmaster::server::purge::Purge;
use dockmaster::server::router::{Router, RouterOptions};
use dockmaster::server::txnproc::TxnProc;
use dockmaster::session::message::AppliedTo;
use dockmaster::store::sqlite::ServerDatabase;
use rusqlite::{Connection, params};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

/// One table: rows of owner 0 are everybody's, others their owner's.
pub(crate) fn dock() -> Dock {
    let column = |name: &str| DockColumn { name: name.into(), sent: true, collation: Collation::Binary };
    let rule = |name: &str, kind, predicate| VisibilityRule { name: name.into(), object: 0, kind, predicate, window: None };
    Dock {
        tables: vec![DockTable {
            name: "item".into(),
            columns: vec![column("id"), column("owner"), column("text")],
            key: vec![0],
            key_is_rowid: true,
            object: Some(0),
            member_of: None,
            dangling: vec![],
            by_comparison: false,
            merge: Default::default(),
        }],
        objects: vec![DockObject {
            name: "item".into(),
            table: 0,
            members: vec![],
            direction: Direction::TwoWay,
            writable: false,
            give_away: false,
            window: None,
        }],
        rules: vec![
            rule("own", RuleKind::Path(RulePath { start: vec![1], hops: vec![], attribute: 0 }), None),
            rule("all", RuleKind::Everyone, Some(Predicate { sql: "owner = 0".into(), columns: vec![1] })),
        ],
        attributes: vec![NodeAttribute {
            name: "owner".into(),
            source: AttributeSource::Given { kind: AttributeType::Integer, must_exist: None, many: false },
        }],
        models: vec![],
    }
}

/// A server that is deployed, with its stages.
pub(crate) struct Yard {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) root: Arc<DockingRoot>,
    pub(crate) sql: Connection,
    pub(crate) txnproc: TxnProc,
    pub(crate) router: Router,
}

impl Yard {
    /// Nodes of owners 1, 2, ..; they are started.
    pub(crate) fn new(names: &[&str]) -> Yard {
        let folder = tempfile::tempdir().unwrap();
        let hq = folder.path().join("hq.db");
        let sql = Connection::open(&hq).unwrap();
        sql.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        sql.execute_batch("CREATE TABLE item(id INTEGER PRIMARY KEY, owner INTEGER, text TEXT)").unwrap();
        let root = Arc::new(DockingRoot::open(&folder.path().join("docking"), Access::Exclusive).unwrap());
        let server = ServerDatabase::open(&hq).unwrap();
        let text = "version = 1".to_owned();
        let schema = server.schema().unwrap();
        let options = DeployOptions { dock: dock(), schema, text, server_name: "HQ".into(), database: hq.clone(), day_starts_minutes: 0 };
        deploy(&options, &root).unwrap();
        for (place, name) in names.iter().enumerate() {
            let mut settings = NodeSettings::default();
            settings.attributes.insert("owner".into(), vec![(place + 1).to_string()]);
            nodes::add(&server, &options.dock, &node(name), &settings).unwrap();
            nodes::start(&server, &node(name)).unwrap();
        }
        let txnproc = TxnProc::open(&hq, Arc::clone(&root)).unwrap();
        let router = Router::open(Arc::clone(&root), RouterOptions::default()).unwrap();
        let mut yard = Yard { folder, root, sql, txnproc, router };
        yard.route();
        yard
    }

    pub(crate) fn hq(&self) -> PathBuf {
        self.folder.path().join("hq.db")
    }

    pub(crate) fn server(&self) -> ServerDatabase {
        ServerDatabase::open(self.hq()).unwrap()
    }

    /// Lets both stages run until nothing waits.
    pub(crate) fn route(&mut self) {
        while self.txnproc.step().unwrap().progress == Progress::Worked {}
        while self.router.step().unwrap() == Progress::Worked {}
    }

    /// One commit of one row of an owner, and the file that it becomes.
    pub(crate) fn write(&mut self, owner: i64, text: &str) {
        self.sql.execute("INSERT INTO item(owner, text) VALUES(?1, ?2)", params![owner, text]).unwrap();
        self.route();
    }

    pub(crate) fn purge(&self, retention: Retention) -> Purge {
        Purge::new(Arc::clone(&self.root), &self.hq(), retention)
    }

    pub(crate) fn rows(&self, name: &str) -> Vec<OutboxFile> {
        let ledger = Ledger::open(&self.root.ledger_db()).unwrap();
        let incarnation = ledger.stream(&node(name)).unwrap().map(|stream| stream.incarnation).unwrap_or_default();
        ledger.files_after(&node(name), incarnation, FileNo(0), 1_000_000).unwrap()
    }

    /// Numbers of a node's files; what lies in the folder and what the ledger says must be the same.
    pub(crate) fn outbox(&self, name: &str) -> Vec<u64> {
        let rows: Vec<u64> = self.rows(name).iter().map(|row| row.file_no.0).collect();
        assert_eq!(numbers(&self.root.outbox(&node(name))), rows, "outbox of {name} is what the ledger says");
        rows
    }

    /// Numbers of the txnproc files, likewise.
    pub(crate) fn txnproc_files(&self) -> Vec<u64> {
        let cds = Connection::open(self.root.cds_db()).unwrap();
        let mut statement = cds.prepare("SELECT file_no FROM txnproc_file ORDER BY 1").unwrap();
        let rows: Vec<u64> = statement.query_map([], |row| row.get::<_, i64>(0)).unwrap().map(|row| row.unwrap() as u64).collect();
        assert_eq!(numbers(&self.root.txnproc()), rows, "txnproc is what the data store says");
        rows
    }

    /// The node says that it has applied a file, at that time.
    pub(crate) fn applied(&self, name: &str, file: u64, now: i64) {
        let rows = self.rows(name);
        let row = rows.iter().find(|row| row.file_no.0 == file);
        let (unit, hash) = row.map_or((TxnId(0), ContentHash::default()), |row| (row.last, row.content_hash));
        let stream = Ledger::open(&self.root.ledger_db()).unwrap().stream(&node(name)).unwrap().unwrap();
        let mark = Mark {
            node: node(name),
            incarnation: stream.incarnation,
            install_id: InstallId([1; 16]),
            received: FileNo(file),
            applied: AppliedTo { file: FileNo(file), unit, hash },
            last_seen: now,
        };
        SessionsDb::open(&self.root.sessions_db()).unwrap().set_mark(&mark).unwrap();
    }

    /// Says when all files were made whose time is not that of an earlier call.
    pub(crate) fn made_at(&self, second: i64, after: i64) {
        let stamp = |second: i64| jiff::Timestamp::from_second(second).unwrap().to_string();
        let ledger = Connection::open(self.root.ledger_db()).unwrap();
        let sql = "UPDATE outbox_file SET created = ?1 WHERE created > ?2";
        ledger.execute(sql, [stamp(second), stamp(after)]).unwrap();
        let cds = Connection::open(self.root.cds_db()).unwrap();
        cds.execute("UPDATE txnproc_file SET created = ?1 WHERE created > ?2", [second * 1_000_000, after * 1_000_000]).unwrap();
    }
}

fn numbers(folder: &Path) -> Vec<u64> {
    queue::list(folder).unwrap().files.iter().map(|file| file.file_no.0).collect()
}

/// Lets a purge go once through everything.
pub(crate) fn cycle(purge: &mut Purge, now: i64) -> u64 {
    let before = purge.deleted();
    while purge.step(now).unwrap() == Progress::Worked {}
    purge.deleted() - before
}

pub(crate) fn started(yard: &Yard, name: &str) -> Incarnation {
    nodes::show(&yard.server(), &node(name)).unwrap().incarnation
}
