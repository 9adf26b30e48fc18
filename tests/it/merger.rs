//! The Transaction Merger on real files and real server databases, with triggers, checks and foreign keys of their own.

mod keys;
mod rules;
mod stages;

use dockmaster::base::ids::{ContentHash, FileNo, Incarnation, InstallId, NodeName, Revision, TxnId, UnitNo};
use dockmaster::base::step::Progress;
use dockmaster::docking::root::{Access, DockingRoot};
use dockmaster::dx::header::{DxDirection, Header};
use dockmaster::dx::upload_writer::UploadWriter;
use dockmaster::model::dock::Dock;
use dockmaster::model::event::TableHeading;
use dockmaster::model::upload::{Confirm, FieldChange, Outcome, RowChange, UploadHead, UploadUnit};
use dockmaster::model::value::{Row, Value};
use dockmaster::rules::check::check;
use dockmaster::rules::definition::MergeErrors;
use dockmaster::rules::problem::SourceFile;
use dockmaster::server::deploy::{DeployOptions, deploy};
use dockmaster::server::merger::{Merger, MergerOptions};
use dockmaster::server::nodes::{self, NodeSettings};
use dockmaster::store::control::Control;
use dockmaster::store::predicate::PredicateChecker;
use dockmaster::store::sqlite::{ServerDatabase, SqlValue, quote_name};
use rusqlite::{Connection, params_from_iter};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// A change of a unit that is to be written into a file.
type Change = (Arc<TableHeading>, RowChange);

/// What a local database has sent so far.
struct Stream {
    install: InstallId,
    incarnation: Incarnation,
    file: FileNo,
    hash: ContentHash,
    unit: u64,
}

/// A server with everything that the Merger needs, and nodes that send files.
struct Yard {
    folder: tempfile::TempDir,
    /// What other programs write through.
    app: Connection,
    dock: Dock,
    root: Arc<DockingRoot>,
    streams: BTreeMap<String, Stream>,
    errors: MergeErrors,
}

impl Yard {
    /// A server database by `ddl`; the nodes ANNA and BERT see everything that the definition shows to everyone.
    fn new(ddl: &str, definition: &str) -> Yard {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hq.db");
        let app = Connection::open(&path).unwrap();
        app.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF").unwrap();
        app.execute_batch(ddl).unwrap();
        let root = Arc::new(DockingRoot::open(&folder.path().join("docking"), Access::Exclusive).unwrap());
        let dock = Dock { tables: vec![], objects: vec![], rules: vec![], attributes: vec![], models: vec![] };
        let mut yard = Yard { folder, app, dock, root, streams: BTreeMap::new(), errors: MergeErrors::Hold };
        yard.deploy(definition);
        for (at, name) in ["ANNA", "BERT"].into_iter().enumerate() {
            let node: NodeName = name.parse().unwrap();
            nodes::add(&yard.server(), &yard.dock, &node, &NodeSettings::default()).unwrap();
            nodes::start(&yard.server(), &node).unwrap();
            yard.root.ensure_node(&node).unwrap();
            let install = InstallId([u8::try_from(at).unwrap() + 1; 16]);
            let stream = Stream { install, incarnation: Incarnation(1), file: FileNo(0), hash: ContentHash::default(), unit: 0 };
            yard.streams.insert(name.to_owned(), stream);
        }
        yard
    }

    fn deploy(&mut self, definition: &str) {
        let schema = self.server().schema().unwrap();
        let mut checked = check(&[SourceFile { name: "d".into(), text: definition.into() }], &schema, &PredicateChecker);
        self.dock = checked.dock.take().unwrap_or_else(|| panic!("{:?}", checked.problems));
        let options = DeployOptions {
            dock: self.dock.clone(),
            schema,
            text: definition.into(),
            server_name: "HQ".into(),
            database: self.path(),
            day_starts_minutes: 0,
        };
        deploy(&options, &self.root).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("hq.db")
    }

    fn server(&self) -> ServerDatabase {
        ServerDatabase::open(self.path()).unwrap()
    }

    fn sql(&self, sql: &str) {
        self.app.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// Rows as text: values with `|`, rows with a space between.
    fn text(&self, sql: &str) -> String {
        crate::node_kit::text(&self.app, sql)
    }

    fn heading(&self, table: &str) -> Arc<TableHeading> {
        crate::node_kit::sent_heading(&self.dock, table)
    }

    /// The server's row now, as a node that is in step has it.
    fn row(&self, table: &str, key: &[Value]) -> Row {
        let heading = self.heading(table);
        let columns: Vec<String> = heading.columns.iter().map(|name| quote_name(name)).collect();
        let terms: Vec<String> =
            heading.key.iter().enumerate().map(|(at, place)| format!("{} = ?{}", columns[usize::from(*place)], at + 1)).collect();
        let sql = format!("SELECT {} FROM {} WHERE {}", columns.join(", "), quote_name(table), terms.join(" AND "));
        let mut statement = self.app.prepare(&sql).unwrap();
        let mut rows = statement.query(params_from_iter(key.iter().map(SqlValue))).unwrap();
        let row = rows.next().unwrap().unwrap_or_else(|| panic!("no {table} {key:?}"));
        (0..columns.len()).map(|place| dockmaster::store::sqlite::value_of(row.get_ref(place).unwrap())).collect()
    }

    fn insert(&self, table: &str, row: &[Value]) -> Change {
        (self.heading(table), RowChange::Insert { row: row.to_vec() })
    }

    /// An update by somebody who has the server's row as it is now.
    fn update(&self, table: &str, key: &[Value], fields: &[(&str, Value)]) -> Change {
        let row = self.row(table, key);
        self.update_from(table, key, &row, fields)
    }

    /// An update by somebody who has another row.
    fn update_from(&self, table: &str, key: &[Value], before: &[Value], fields: &[(&str, Value)]) -> Change {
        let heading = self.heading(table);
        let fields = fields.iter().map(|(name, after)| {
            let column = heading.columns.iter().position(|column| column == name).unwrap();
            let before = before[column].clone();
            FieldChange { column: u16::try_from(column).unwrap(), base: before.clone(), before, after: after.clone() }
        });
        let fields = fields.collect();
        (heading, RowChange::Update { key: key.to_vec(), fields, whole: None })
    }

    fn delete(&self, table: &str, key: &[Value]) -> Change {
        (self.heading(table), RowChange::Delete { key: key.to_vec(), before: self.row(table, key), base: None })
    }

    /// The next unit of a node, cut when it had applied everything.
    fn unit(&mut self, node: &str, changes: Vec<Change>) -> UploadUnit {
        let applied = self.server().log_end().unwrap();
        self.unit_at(node, applied, changes)
    }

    fn unit_at(&mut self, node: &str, applied: TxnId, changes: Vec<Change>) -> UploadUnit {
        let stream = self.streams.get_mut(node).unwrap();
        stream.unit += 1;
        let head = UploadHead {
            number: UnitNo(stream.unit),
            applied,
            revision: Revision(1),
            cut_at_micros: 7,
            label: None,
            hidden: vec![],
            changes: changes.len() as u64,
        };
        UploadUnit { head, changes }
    }

    /// Puts units as the next file into a node's inbox.
    fn send(&mut self, node: &str, units: &[UploadUnit]) -> PathBuf {
        let name: NodeName = node.parse().unwrap();
        let identity = self.server().identity().unwrap();
        let stream = self.streams.get_mut(node).unwrap();
        let number = |unit: Option<&UploadUnit>| TxnId(i64::try_from(unit.unwrap().head.number.0).unwrap());
        let header = Header {
            direction: DxDirection::Upload,
            server_id: identity.server_id,
            epoch: identity.epoch,
            node: Some(name.clone()),
            incarnation: stream.incarnation,
            file_no: stream.file.next(),
            first: number(units.first()),
            last: number(units.last()),
            revision: identity.revision,
            previous: stream.hash,
            install_id: stream.install,
            applied_unit: units.last().unwrap().head.applied,
        };
        let (bytes, summary) = UploadWriter::assemble(&header, units, 3).unwrap();
        (stream.file, stream.hash) = (header.file_no, summary.content_hash);
        self.root.disk().put(&self.root.tmp(&name), &self.root.inbox(&name), &header.file_no.file_name(), &bytes).unwrap();
        self.root.inbox(&name).join(header.file_no.file_name())
    }

    /// One unit in a file of its own.
    fn sends(&mut self, node: &str, changes: Vec<Change>) {
        let unit = self.unit(node, changes);
        self.send(node, &[unit]);
    }

    /// The node begins anew, with the same local database.
    fn begin_anew(&mut self, node: &str) {
        let incarnation = nodes::start(&self.server(), &node.parse().unwrap()).unwrap();
        let stream = self.streams.get_mut(node).unwrap();
        (stream.incarnation, stream.file, stream.hash) = (incarnation, FileNo(0), ContentHash::default());
    }

    fn merger(&self) -> Merger {
        let options = MergerOptions { errors: self.errors, ..MergerOptions::default() };
        Merger::open(&self.path(), Arc::clone(&self.root), options).unwrap().unwrap()
    }

    /// Merges everything; returns how many units were merged or held.
    fn merge(&self) -> u64 {
        let mut merger = self.merger();
        while merger.step().unwrap() == Progress::Worked {}
        merger.merged()
    }

    /// Sends one unit and merges it.
    fn merged(&mut self, node: &str, changes: Vec<Change>) {
        self.sends(node, changes);
        assert_eq!(self.merge(), 1);
    }

    /// `status` of every unit, with what it waits for.
    fn statuses(&self) -> String {
        self.text("SELECT node || unit || ' ' || status || ifnull('<' || waits_for, '') FROM dock_unit ORDER BY node, unit")
            .replace('\'', "")
    }

    /// Every confirm of the log, in order.
    fn confirms(&self) -> Vec<Confirm> {
        let mut statement = self.app.prepare("SELECT c1 FROM dock_txn_log WHERE tbl = 0 ORDER BY id").unwrap();
        let texts = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        texts
            .filter_map(|text| match serde_json::from_str(&text.unwrap()).unwrap() {
                Control::Confirm { confirm, .. } => Some(confirm),
                _ => None,
            })
            .collect()
    }

    fn last_outcome(&self) -> Outcome {
        self.confirms().pop().unwrap().outcome
    }

    /// Why the last unit was held, as the node is told.
    fn held(&self) -> String {
        match self.last_outcome() {
            Outcome::Held { reason } => reason,
            other => panic!("{other:?}"),
        }
    }

    fn alerts(&self) -> Vec<String> {
        let sessions = dockmaster::docking::sessions::SessionsDb::open(&self.root.sessions_db()).unwrap();
        sessions.alerts(None).unwrap().into_iter().map(|alert| alert.text).collect()
    }
}

fn int(value: i64) -> Value {
    Value::Integer(value)
}
