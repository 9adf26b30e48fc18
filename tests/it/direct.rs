//! The download path in this process, without the network: for cases that ask what happens between stages, or for many cases.

use crate::crm;
use crate::harness::{Site, literals};
use dockmaster::base::ids::{FileNo, NodeName};
use dockmaster::client::apply::{self, ApplyFolders, ApplyReport};
use dockmaster::docking::root::{Access, DockingRoot};
use dockmaster::model::dock::Dock;
use dockmaster::rules::check::check;
use dockmaster::rules::problem::SourceFile;
use dockmaster::server::deploy::{DeployOptions, deploy};
use dockmaster::server::nodes::{self, NodeSettings};
use dockmaster::server::pass::{Pass, ServeOptions, Stage, run};
use dockmaster::store::local::LocalDatabase;
use dockmaster::store::predicate::PredicateChecker;
use dockmaster::store::sqlite::ServerDatabase;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// A server and its nodes in one process.
pub struct Direct {
    pub site: Site,
    pub root: Arc<DockingRoot>,
    pub dock: Dock,
    /// Last file that was brought to each node.
    brought: BTreeMap<String, u64>,
}

impl Direct {
    /// The customer database with its three nodes.
    pub fn crm() -> Direct {
        let nodes = crm::NODES.map(|(node, employee)| (node, ("employee", employee.to_string())));
        let mut direct = Direct::new(crm::database, crm::DEFINITION);
        for (node, (attribute, value)) in nodes {
            direct.add(node, attribute, &value);
        }
        direct
    }

    /// Deploys a definition over a database.
    pub fn new(database: impl FnOnce(&Path), definition: &str) -> Direct {
        let site = Site::new(database, definition);
        let text = std::fs::read_to_string(site.path("dockmaster.toml")).unwrap();
        let server = ServerDatabase::open(site.path("hq.db")).unwrap();
        let schema = server.schema().unwrap();
        let checked = check(&[SourceFile { name: "dockmaster.toml".into(), text }], &schema, &PredicateChecker);
        assert!(checked.problems.is_empty(), "{:?}", checked.problems);
        let root = Arc::new(DockingRoot::open(&site.path("docking"), Access::Exclusive).unwrap());
        let options = DeployOptions {
            dock: checked.dock.unwrap(),
            schema,
            text: checked.text,
            server_name: "HQ".into(),
            database: site.path("hq.db"),
            day_starts_minutes: 0,
        };
        deploy(&options, &root).unwrap();
        Direct { site, root, dock: options.dock, brought: BTreeMap::new() }
    }

    pub fn server(&self) -> ServerDatabase {
        ServerDatabase::open(self.site.path("hq.db")).unwrap()
    }

    /// Registers a node with an attribute (several values with commas between), makes its extract and unpacks it.
    pub fn add(&mut self, node: &str, attribute: &str, value: &str) {
        let mut settings = NodeSettings::default();
        settings.attributes.insert(attribute.into(), value.split(',').map(str::to_owned).collect());
        self.add_with(node, &settings);
    }

    /// Like [`Direct::add`], for a node of which nothing is given.
    pub fn add_without(&mut self, node: &str) {
        self.add_with(node, &NodeSettings::default());
    }

    fn add_with(&mut self, node: &str, settings: &NodeSettings) {
        let name: NodeName = node.parse().unwrap();
        nodes::add(&self.server(), &self.dock, &name, settings).unwrap();
        self.start(node);
    }

    /// Starts a node anew: what `init` does, without a session.
    pub fn start(&mut self, node: &str) {
        let name: NodeName = node.parse().unwrap();
        let incarnation = nodes::start(&self.server(), &name).unwrap();
        self.stages(&[Stage::TxnProc]);
        self.unpack(node, &self.root.extract(&name, incarnation));
    }

    /// Puts an extract in place as the local database of a node.
    pub fn unpack(&mut self, node: &str, extract: &Path) {
        let local = self.site.path(&crm::local(node));
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", local.display()));
        }
        zstd::stream::copy_decode(std::fs::File::open(extract).unwrap(), std::fs::File::create(&local).unwrap()).unwrap();
        let sync = self.site.path(&format!("{}.sync", crm::local(node)));
        let _ = std::fs::remove_dir_all(&sync);
        for folder in ["inbox", "outbox", "tmp", "quarantine"] {
            std::fs::create_dir_all(sync.join(folder)).unwrap();
        }
        self.brought.insert(node.into(), 0);
    }

    /// Our triggers on a table.
    pub fn triggers(&self, table: &str) -> Vec<String> {
        let query = format!("SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = '{table}' AND name LIKE 'dock%'");
        literals(&self.site.path("hq.db"), &query).into_iter().map(|name| name.trim_matches('\'').to_owned()).collect()
    }

    pub fn sql(&self, sql: &str) {
        crm::server_sql(&self.site, sql);
    }

    pub fn stages(&self, stages: &[Stage]) -> Pass {
        let options = ServeOptions::new(self.site.path("hq.db"), "127.0.0.1:0");
        run(&options, &self.root, stages).unwrap()
    }

    /// Brings the new files of a node to its inbox and applies them.
    pub fn bring(&mut self, node: &str) -> ApplyReport {
        let name: NodeName = node.parse().unwrap();
        let sync = self.site.path(&format!("{}.sync", crm::local(node)));
        let brought = self.brought.get_mut(node).unwrap();
        loop {
            let next = FileNo(*brought + 1);
            if std::fs::copy(self.root.outbox_file(&name, next), sync.join("inbox").join(next.file_name())).is_err() {
                break;
            }
            *brought += 1;
        }
        let mut local = LocalDatabase::open(&self.site.path(&crm::local(node))).unwrap();
        let mut report = apply::step(&mut local, &ApplyFolders::below(&sync)).unwrap();
        while report.more {
            report = apply::step(&mut local, &ApplyFolders::below(&sync)).unwrap();
        }
        assert!(report.stopped.is_none() && report.quarantined.is_empty() && report.held.is_none(), "{report:?}");
        report
    }

    /// Runs all stages and brings every node what is there for it.
    pub fn move_on(&mut self) {
        self.stages(&[Stage::TxnProc, Stage::Router]);
        for node in self.brought.keys().cloned().collect::<Vec<_>>() {
            self.bring(&node);
        }
    }

    /// Moves on and demands that all three nodes of the customer database equal the oracle.
    pub fn equal(&mut self) {
        self.move_on();
        crm::equal(&self.site, &["ANNA", "BERT", "CORA"]);
    }

    /// Whether a query returns anything on a node.
    pub fn has(&self, node: &str, query: &str) -> bool {
        !literals(&self.site.path(&crm::local(node)), query).is_empty()
    }

    /// Which of the three nodes of the customer database a query returns something on.
    pub fn who(&self, query: &str) -> Vec<&'static str> {
        crm::NODES.iter().map(|(node, _)| *node).filter(|node| self.has(node, query)).collect()
    }

    /// The operations of the newest file of a node, as `put table`, `delete table` and `update table`, sorted.
    pub fn newest(&self, node: &str) -> Vec<String> {
        let Some(path) = crm::dx_files(&self.site, &format!("docking/{node}/outbox")).pop() else { return Vec::new() };
        let mut text = String::new();
        let file = std::fs::File::open(path).unwrap();
        dockmaster::dx::show::show(file, dockmaster::dx::show::ShowFormat::Text, &mut text).unwrap();
        let words =
            text.lines().filter(|line| line.starts_with("  ")).map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "));
        let mut operations: Vec<String> = words.collect();
        operations.sort();
        operations
    }
}
