//! A source database, a data store laid out as the Transaction Processor does it, an extract of it and the files of one node:
//! what the tests of extract and apply stand on. All of it is real: SQLite files, zstd, `.dx` files.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "a test fails by panicking, and says what it measured")]

use dockmaster::base::ids::{ContentHash, Epoch, FileNo, Incarnation, NodeName, Revision, ServerId, TxnId};
use dockmaster::client::apply::{self, ApplyFolders, ApplyReport, StageLimits};
use dockmaster::docking::root::{Access, DockingRoot};
use dockmaster::dx::frame::{FrameBuilder, Sealer};
use dockmaster::dx::header::{DxDirection, Header};
use dockmaster::dx::record::encode_operation;
use dockmaster::dx::writer::NodeFile;
use dockmaster::model::dock::{Direction, Dock, DockColumn, DockObject, DockTable};
use dockmaster::model::event::TableHeading;
use dockmaster::model::operation::Operation;
use dockmaster::model::schema::Schema;
use dockmaster::model::toc::{self, Toc};
use dockmaster::model::value::{Row, Value};
use dockmaster::server::extract::{self, ExtractError, ExtractJob};
use dockmaster::store::local::LocalDatabase;
use dockmaster::store::schema::read_schema;
use dockmaster::store::sqlite::{quote_name, value_of};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The server of every kit.
pub(crate) const SERVER: ServerId = ServerId([7; 16]);
/// The unit at which the first extract of a kit is taken.
pub(crate) const START: i64 = 100;

/// Operations of units, as one frame holds them.
pub(crate) type Units = Vec<(i64, Vec<(TableHeading, Operation)>)>;

/// See the module.
pub(crate) struct Kit {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) root: DockingRoot,
    pub(crate) schema: Schema,
    pub(crate) dock: Dock,
    pub(crate) node: NodeName,
    pub(crate) stream: Stream,
}

/// Opens a database without foreign key enforcement.
pub(crate) fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA busy_timeout = 5000").unwrap();
    connection
}

/// Returns rows by an SQL query, byte-exact.
pub(crate) fn rows(connection: &Connection, sql: &str) -> Vec<Row> {
    let mut statement = connection.prepare(sql).unwrap_or_else(|error| panic!("{error}: {sql}"));
    let count = statement.column_count();
    let mut found = statement.query([]).unwrap();
    let mut rows = Vec::new();
    while let Some(row) = found.next().unwrap() {
        rows.push((0..count).map(|index| value_of(row.get_ref(index).unwrap())).collect());
    }
    rows
}

/// Returns the first value of an SQL query as text.
pub(crate) fn text(connection: &Connection, sql: &str) -> String {
    rows(connection, sql).iter().map(|row| row.iter().map(Value::to_string).collect::<Vec<_>>().join("|")).collect::<Vec<_>>().join(" ")
}

impl Kit {
    /// Makes a source database by `ddl`; the listed tables are replicated but for their omitted columns.
    pub(crate) fn new(ddl: &str, tables: &[(&str, &[&str])]) -> Kit {
        let dir = tempfile::tempdir().unwrap();
        let source = open(&dir.path().join("source.db"));
        source.execute_batch(ddl).unwrap();
        let schema = read_schema(&source).unwrap();
        let mut dock = Dock { tables: Vec::new(), objects: Vec::new(), rules: Vec::new(), attributes: Vec::new(), models: Vec::new() };
        let mut sorted: Vec<_> = tables.to_vec();
        sorted.sort();
        for (index, (name, omitted)) in sorted.into_iter().enumerate() {
            let shape = schema.table(name).unwrap();
            let captured: Vec<usize> = (0..shape.columns.len()).filter(|column| !shape.columns[*column].generated).collect();
            dock.tables.push(DockTable {
                name: name.to_owned(),
                columns: captured
                    .iter()
                    .map(|column| {
                        let column = &shape.columns[*column];
                        DockColumn {
                            name: column.name.clone(),
                            sent: !omitted.contains(&column.name.as_str()),
                            collation: column.collation(),
                        }
                    })
                    .collect(),
                key: shape.key.iter().map(|key| captured.iter().position(|column| column == key).unwrap()).collect(),
                key_is_rowid: shape.key_is_rowid,
                object: Some(index),
                member_of: None,
                dangling: Vec::new(),
                by_comparison: false,
                merge: Default::default(),
            });
            dock.objects.push(DockObject {
                name: name.to_owned(),
                table: index,
                members: Vec::new(),
                direction: Direction::TwoWay,
                writable: false,
                give_away: false,
                window: None,
            });
        }
        let root = DockingRoot::open(&dir.path().join("docking"), Access::Exclusive).unwrap();
        let node: NodeName = "ANNA".parse().unwrap();
        let kit = Kit { root, schema, dock, node: node.clone(), stream: Stream::new(node, Incarnation(1), START), dir };
        kit.fill_cds();
        kit
    }

    /// Returns the path of a file of the kit.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Opens the source database.
    pub(crate) fn source(&self) -> Connection {
        open(&self.path("source.db"))
    }

    /// Opens the data store.
    pub(crate) fn cds(&self) -> Connection {
        open(&self.path("cds.db"))
    }

    /// Opens the local database as an application does.
    pub(crate) fn app(&self) -> Connection {
        open(&self.path("pos.db"))
    }

    fn fill_cds(&self) {
        let cds = self.cds();
        cds.execute_batch("PRAGMA journal_mode = WAL").unwrap();
        cds.execute("ATTACH ?1 AS src", [self.path("source.db").to_str().unwrap()]).unwrap();
        for (index, table) in self.dock.tables.iter().enumerate() {
            let mut columns: Vec<String> = (0..table.columns.len()).map(|column| format!("c{column}")).collect();
            let key: Vec<String> = table.key.iter().map(|column| format!("c{column}")).collect();
            if table.key_is_rowid {
                columns[table.key[0]].push_str(" INTEGER PRIMARY KEY");
            } else {
                columns.push(format!("PRIMARY KEY ({})", key.join(", ")));
            }
            let names: Vec<String> = table.columns.iter().map(|column| quote_name(&column.name)).collect();
            cds.execute_batch(&format!(
                "CREATE TABLE d{index} ({}); INSERT INTO d{index} SELECT {} FROM src.{}",
                columns.join(", "),
                names.join(", "),
                quote_name(&table.name)
            ))
            .unwrap();
        }
    }

    /// Fills the tables of visible rows by a condition over the table's own column names.
    pub(crate) fn mark_visible(&self, cds: &Connection, condition: impl Fn(&str) -> String) {
        for (index, table) in self.dock.tables.iter().enumerate() {
            let names: Vec<String> =
                table.columns.iter().enumerate().map(|(column, of)| format!("c{column} AS {}", quote_name(&of.name))).collect();
            cds.execute_batch(&format!(
                "CREATE TEMP TABLE vis_{index} (rid INTEGER PRIMARY KEY);
                 INSERT INTO vis_{index} SELECT rid FROM (SELECT rowid AS rid, {} FROM d{index}) WHERE {}",
                names.join(", "),
                condition(&table.name)
            ))
            .unwrap();
        }
    }

    /// Makes an extract from an open snapshot of the data store.
    pub(crate) fn build(&self, cds: &Connection, incarnation: u32, unit: i64) -> Result<Toc, ExtractError> {
        extract::build(&ExtractJob {
            cds,
            dock: &self.dock,
            schema: &self.schema,
            server_id: SERVER,
            server_name: "HQ",
            epoch: Epoch(1),
            node: &self.node,
            incarnation: Incarnation(incarnation),
            unit: TxnId(unit),
            revision: Revision(1),
            root: &self.root,
            finished: &[],
            common: None,
        })
    }

    /// Makes the first extract, of the rows that fit, and unpacks it as the local database.
    pub(crate) fn extract(&self, condition: impl Fn(&str) -> String) -> Toc {
        let cds = self.cds();
        cds.execute_batch("BEGIN").unwrap();
        self.mark_visible(&cds, condition);
        let toc = self.build(&cds, 1, START).unwrap();
        self.unpack(&toc);
        toc
    }

    /// Makes the first extract with every row.
    pub(crate) fn extract_all(&self) -> Toc {
        self.extract(|_| "1".to_owned())
    }

    /// Unpacks an extract as the local database.
    pub(crate) fn unpack(&self, toc: &Toc) {
        let packed = std::fs::read(self.root.outbox(&self.node).join(toc::extract_file_name(toc.incarnation))).unwrap();
        assert_eq!(packed.len() as u64, toc.bytes);
        let raw = zstd::decode_all(packed.as_slice()).unwrap();
        assert_eq!(raw.len() as u64, toc.raw_bytes);
        std::fs::write(self.path("pos.db"), raw).unwrap();
    }

    /// Returns the heading of a table as the Router writes it.
    pub(crate) fn heading(&self, table: &str) -> TableHeading {
        let table = &self.dock.tables[self.dock.table(table).unwrap()];
        let sent: Vec<usize> = (0..table.columns.len()).filter(|column| table.columns[*column].sent).collect();
        TableHeading {
            name: table.name.clone(),
            columns: sent.iter().map(|column| table.columns[*column].name.clone()).collect(),
            key: table.key.iter().map(|key| sent.iter().position(|column| column == key).unwrap() as u16).collect(),
        }
    }

    /// Returns a row that enters the view.
    pub(crate) fn put(&self, table: &str, row: impl Into<Row>) -> (TableHeading, Operation) {
        (self.heading(table), Operation::Put { row: row.into() })
    }

    /// Returns a row that leaves the view.
    pub(crate) fn delete(&self, table: &str, key: impl Into<Row>) -> (TableHeading, Operation) {
        (self.heading(table), Operation::Delete { key: key.into() })
    }

    /// Returns a change of columns, by name.
    pub(crate) fn update(&self, table: &str, key: impl Into<Row>, changes: &[(&str, Value)]) -> (TableHeading, Operation) {
        let heading = self.heading(table);
        let position = |name: &str| heading.columns.iter().position(|column| column == name).unwrap() as u16;
        let changes = changes.iter().map(|(name, value)| (position(name), value.clone())).collect();
        (heading, Operation::Update { key: key.into(), changes })
    }

    /// Returns the client's folders.
    pub(crate) fn folders(&self) -> ApplyFolders {
        let limits = if STAGED.get() { ALL_STAGED } else { StageLimits::default() };
        ApplyFolders { limits, ..ApplyFolders::below(&self.path("pos.db.sync")) }
    }

    /// Puts the next file of the stream into the client's inbox.
    pub(crate) fn send(&mut self, units: Units) -> FileNo {
        let (number, bytes) = self.stream.file(&[units]);
        self.place(&number.file_name(), &bytes);
        number
    }

    /// Puts bytes into the client's inbox.
    pub(crate) fn place(&self, name: &str, bytes: &[u8]) {
        std::fs::create_dir_all(self.folders().inbox).unwrap();
        std::fs::write(self.folders().inbox.join(name), bytes).unwrap();
    }

    /// Runs one apply step.
    pub(crate) fn apply(&self) -> ApplyReport {
        apply::step(&mut LocalDatabase::open(&self.path("pos.db")).unwrap(), &self.folders()).unwrap()
    }

    /// Runs one apply step, which must stop. Returns its reason.
    pub(crate) fn apply_stops(&self) -> String {
        let report = self.apply();
        let reason = report.stopped.unwrap_or_else(|| panic!("did not stop")).to_string();
        assert_eq!(rows(&self.app(), "SELECT state, reason FROM dock_status"), vec![vec![Value::text("stopped"), Value::text(&reason)]]);
        reason
    }

    /// Returns the names in the inbox, sorted.
    pub(crate) fn inbox(&self) -> Vec<String> {
        names(&self.folders().inbox)
    }

    /// Returns the names in quarantine, sorted.
    pub(crate) fn quarantine(&self) -> Vec<String> {
        names(&self.folders().quarantine)
    }
}

/// Limits under which every unit is staged.
pub(crate) const ALL_STAGED: StageLimits = StageLimits { rows: 0, bytes: 0 };

thread_local! {
    /// Whether the clients of this test stage every unit.
    static STAGED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs a test with units applied row by row, and with every unit staged: the result must be the same (fault 36).
pub(crate) fn both_ways(test: impl Fn()) {
    test();
    STAGED.set(true);
    test();
    STAGED.set(false);
}

/// Returns how nodes spell a table: the columns that they have.
pub(crate) fn sent_heading(dock: &Dock, table: &str) -> Arc<TableHeading> {
    let declared = &dock.tables[dock.table(table).unwrap()];
    let sent: Vec<usize> = (0..declared.columns.len()).filter(|column| declared.columns[*column].sent).collect();
    let place = |column: &usize| u16::try_from(sent.iter().position(|sent| sent == column).unwrap()).unwrap();
    Arc::new(TableHeading {
        name: declared.name.clone(),
        columns: sent.iter().map(|column| declared.columns[*column].name.clone()).collect(),
        key: declared.key.iter().map(place).collect(),
    })
}

/// Returns the names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The files of one node as the Router writes them.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) header: Header,
}

impl Stream {
    /// Returns the stream of a node that was extracted at `unit`.
    pub(crate) fn new(node: NodeName, incarnation: Incarnation, unit: i64) -> Stream {
        Stream {
            header: Header {
                direction: DxDirection::Download,
                server_id: SERVER,
                epoch: Epoch(1),
                node: Some(node),
                incarnation,
                file_no: FileNo(1),
                first: TxnId(unit + 1),
                last: TxnId(unit + 1),
                revision: Revision(1),
                previous: ContentHash::default(),
                install_id: Default::default(),
                applied_unit: TxnId(0),
            },
        }
    }

    /// Writes the next file, of those frames.
    pub(crate) fn file(&mut self, frames: &[Units]) -> (FileNo, Vec<u8>) {
        let mut sealer = Sealer::new(3).unwrap();
        let mut sealed = Vec::new();
        for units in frames {
            let mut builder = FrameBuilder::new();
            for (unit, operations) in units {
                for (heading, operation) in operations {
                    builder.operation(TxnId(*unit), heading, &encode_operation(operation).unwrap()).unwrap();
                }
            }
            sealed.extend(builder.finish(&mut sealer).unwrap());
        }
        let last = frames.iter().flatten().map(|(unit, _)| *unit).max().unwrap_or(self.header.first.0);
        self.header.last = TxnId(last.max(self.header.first.0));
        let (bytes, summary) = NodeFile::assemble(&self.header, &sealed).unwrap();
        let number = self.header.file_no;
        self.header.file_no = number.next();
        self.header.first = TxnId(self.header.last.0 + 1);
        self.header.previous = summary.content_hash;
        (number, bytes)
    }
}
