//! Tables of `cds.db`, and opening it.
//!
//! `d{i}` holds the captured columns `c0..` of table `i` of the dock, untyped, so every value keeps its storage class;
//! `j{i}` holds the counts of junction `i`. There is no constraint but the primary key (R36).

use super::{Cds, CdsError, CdsState};
use crate::base::defect;
use crate::base::ids::{Epoch, FileNo, Nonce, Revision, ServerId, TxnId};
use crate::model::dock::{Dock, DockTable, TableIndex};
use crate::model::node::Node;
use crate::model::schema::Schema;
use crate::rules::graph::ScopeGraph;
use crate::store::txnproc::TXNPROC_FILE_TABLE;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::path::Path;

/// Returns the name of the data table of a dock table.
pub fn data_table(table: TableIndex) -> String {
    format!("d{table}")
}

/// Returns the comma-separated column names `c0, c1, ..` of a dock table.
pub fn column_list(table: &DockTable) -> String {
    (0..table.columns.len()).map(|column| format!("c{column}")).collect::<Vec<_>>().join(", ")
}

const FIXED_TABLES: &str = "
CREATE TABLE cds_state(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE scope_path(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE scope_key(id INTEGER PRIMARY KEY, path INTEGER NOT NULL, value);
CREATE INDEX scope_key_by_value ON scope_key(path, value);
CREATE TABLE node(name TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE stopped(table_name TEXT PRIMARY KEY, reason TEXT NOT NULL, cause TEXT) WITHOUT ROWID;
CREATE TABLE reconciled(
    unit INTEGER NOT NULL, table_name TEXT NOT NULL, reason TEXT NOT NULL,
    missing INTEGER NOT NULL, extra INTEGER NOT NULL, different INTEGER NOT NULL, at INTEGER NOT NULL,
    PRIMARY KEY(unit, table_name)) WITHOUT ROWID;
";

/// Creates every table of an empty data store. Indexes for searches come after the first filling.
pub(super) fn create(conn: &Connection, dock: &Dock, graph: &ScopeGraph) -> rusqlite::Result<()> {
    conn.execute_batch(FIXED_TABLES)?;
    conn.execute_batch(TXNPROC_FILE_TABLE)?;
    create_data(conn, dock, graph)
}

/// Creates the tables of a definition's rows and counts.
pub(super) fn create_data(conn: &Connection, dock: &Dock, graph: &ScopeGraph) -> rusqlite::Result<()> {
    for (index, table) in dock.tables.iter().enumerate() {
        let columns =
            (0..table.columns.len())
                .map(|column| {
                    if table.key_is_rowid && table.key == [column] {
                        format!("c{column} INTEGER PRIMARY KEY")
                    } else {
                        format!("c{column}")
                    }
                })
                .collect::<Vec<_>>()
                .join(", ");
        let key = if table.key_is_rowid {
            String::new()
        } else {
            format!(", PRIMARY KEY({})", table.key.iter().map(|column| format!("c{column}")).collect::<Vec<_>>().join(", "))
        };
        conn.execute_batch(&format!("CREATE TABLE {}({columns}{key})", data_table(index)))?;
    }
    for junction in 0..graph.junctions.len() {
        conn.execute_batch(&format!(
            "CREATE TABLE j{junction}(target, key INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY(target, key)) WITHOUT ROWID"
        ))?;
    }
    Ok(())
}

/// Creates the indexes by which rules search the data.
pub(super) fn create_indexes(conn: &Connection, dock: &Dock, graph: &ScopeGraph) -> rusqlite::Result<()> {
    for (number, (table, columns)) in graph.searched_columns(dock).into_iter().enumerate() {
        let terms =
            columns.iter().map(|(column, collation)| format!("c{column} COLLATE {}", collation.name())).collect::<Vec<_>>().join(", ");
        conn.execute_batch(&format!("CREATE INDEX s{number} ON {}({terms})", data_table(table)))?;
    }
    Ok(())
}

/// Opens the connection with the settings of the one writer: every commit is durable before the Router may see it.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open(path)?;
    conn.pragma_update(None, "synchronous", defect::synchronous())?;
    conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA cache_size = -65536; PRAGMA wal_autocheckpoint = 10000; PRAGMA journal_size_limit = 67108864; PRAGMA foreign_keys = OFF;")?;
    conn.set_prepared_statement_cache_capacity(512);
    Ok(conn)
}

/// Opens the data store for reading only, as status, extract and the Router do.
pub fn connect_read_only(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(std::time::Duration::from_secs(10))?;
    Ok(conn)
}

/// Opens a read transaction that stays at the last commit, whatever is committed after it (R15).
pub fn pin_snapshot(path: &Path) -> rusqlite::Result<Connection> {
    let conn = connect_read_only(path)?;
    // The first read takes the snapshot.
    conn.execute_batch("BEGIN; SELECT count(*) FROM cds_state")?;
    Ok(conn)
}

/// Reads one record of `cds_state`.
pub fn read_record<T: rusqlite::types::FromSql>(conn: &Connection, name: &str) -> rusqlite::Result<Option<T>> {
    conn.query_row("SELECT value FROM cds_state WHERE name = ?1", [name], |row| row.get(0)).optional()
}

pub(super) fn write_record(conn: &Connection, name: &str, value: &dyn rusqlite::ToSql) -> rusqlite::Result<()> {
    conn.prepare_cached("INSERT INTO cds_state(name, value) VALUES(?1, ?2) ON CONFLICT(name) DO UPDATE SET value = excluded.value")?
        .execute(params![name, value])
        .map(|_| ())
}

/// Returns the nodes whose stream runs, as of the last unit.
///
/// # Errors
/// A statement failed, or a record is unreadable.
pub fn running_nodes(path: &Path) -> Result<Vec<Node>, CdsError> {
    let sql = |source| CdsError::Sql { path: path.to_owned(), what: "read nodes", source };
    let conn = connect_read_only(path).map_err(sql)?;
    let mut statement = conn.prepare("SELECT name, record FROM node ORDER BY name").map_err(sql)?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))).map_err(sql)?;
    let mut nodes = Vec::new();
    for row in rows {
        let (name, record) = row.map_err(sql)?;
        let unreadable = |_| CdsError::State { path: path.to_owned(), name: format!("node {name}") };
        nodes.push(serde_json::from_str(&record).map_err(unreadable)?);
    }
    Ok(nodes)
}

/// Reads the commit point; `None` if this is no filled data store.
pub fn read_state(conn: &Connection) -> rusqlite::Result<Option<CdsState>> {
    if !conn.table_exists(Some("main"), "cds_state")? {
        return Ok(None);
    }
    let Some(position) = read_record::<i64>(conn, "position")? else { return Ok(None) };
    let text = |name: &str| read_record::<String>(conn, name).map(Option::unwrap_or_default);
    let number = |name: &str| read_record::<i64>(conn, name).map(Option::unwrap_or_default);
    let invalid = |what: &str| rusqlite::Error::InvalidParameterName(what.to_owned());
    Ok(Some(CdsState {
        server_id: text("server_id")?.parse::<ServerId>().map_err(|_| invalid("server_id"))?,
        server_name: text("server_name")?,
        epoch: Epoch(u32::try_from(number("epoch")?).map_err(|_| invalid("epoch"))?),
        revision: Revision(u32::try_from(number("revision")?).map_err(|_| invalid("revision"))?),
        position: TxnId(position),
        nonce: text("nonce")?.parse::<Nonce>().map_err(|_| invalid("nonce"))?,
        day: number("day")?,
    }))
}

pub(super) fn write_state(conn: &Connection, state: &CdsState) -> rusqlite::Result<()> {
    write_record(conn, "server_id", &state.server_id.to_string())?;
    write_record(conn, "server_name", &state.server_name)?;
    write_record(conn, "epoch", &state.epoch.0)?;
    write_record(conn, "revision", &state.revision.0)?;
    write_record(conn, "position", &state.position.0)?;
    write_record(conn, "nonce", &state.nonce.to_string())?;
    write_record(conn, "day", &state.day)
}

/// Writes what differs from the commit point that is stored.
pub(super) fn write_progress(conn: &Connection, stored: &CdsState, state: &CdsState) -> rusqlite::Result<()> {
    write_record(conn, "position", &state.position.0)?;
    if state.nonce != stored.nonce {
        write_record(conn, "nonce", &state.nonce.to_string())?;
    }
    if state.revision != stored.revision {
        write_record(conn, "revision", &state.revision.0)?;
    }
    if state.day != stored.day {
        write_record(conn, "day", &state.day)?;
    }
    Ok(())
}

/// A row of the ledger of txnproc files; a file without its row does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnprocFile {
    /// Number of the file.
    pub file_no: FileNo,
    /// First unit in it.
    pub first: TxnId,
    /// Last unit in it.
    pub last: TxnId,
    /// Its content hash.
    pub content_hash: crate::base::ids::ContentHash,
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was written, microseconds since 1970.
    pub created_micros: i64,
}

impl Cds {
    /// Opens a filled data store for the Transaction Processor.
    pub fn open(path: &Path) -> Result<Cds, CdsError> {
        let sql = |what| move |source| CdsError::Sql { path: path.to_owned(), what, source };
        let missing = || CdsError::Missing { path: path.to_owned() };
        if !path.exists() {
            return Err(missing());
        }
        let conn = connect(path).map_err(sql("open"))?;
        let state = read_state(&conn).map_err(sql("read the commit point"))?.ok_or_else(missing)?;
        // Keys of nodes may be numbered here for the first time: one commit for all of them.
        conn.execute_batch("BEGIN IMMEDIATE").map_err(sql("open"))?;
        let mut cds = Cds::assemble_stored(path, conn, state)?;
        cds.nodes = cds.load_nodes()?;
        cds.conn.execute_batch("COMMIT").map_err(cds.sql("number the keys of nodes"))?;
        Ok(cds)
    }

    /// Puts the parts of a filled data store together, by the definition that is stored in it.
    pub(super) fn assemble_stored(path: &Path, conn: Connection, state: CdsState) -> Result<Cds, CdsError> {
        let sql = |what| move |source| CdsError::Sql { path: path.to_owned(), what, source };
        let bad = |name: &str| CdsError::State { path: path.to_owned(), name: name.to_owned() };
        let dock = read_json::<Dock>(&conn, "dock").map_err(sql("read the definition"))?.ok_or_else(|| bad("dock"))?;
        let schema = read_json::<Schema>(&conn, "schema").map_err(sql("read the schema"))?.ok_or_else(|| bad("schema"))?;
        let graph = ScopeGraph::compile(&dock)?;
        Cds::assemble(path, conn, dock, schema, graph, state).map_err(sql("read rule paths"))
    }

    /// Returns the last txnproc file, if there is one.
    pub fn last_file(&self) -> Result<Option<TxnprocFile>, CdsError> {
        self.conn
            .query_row(
                "SELECT file_no, first, last, content_hash, bytes, created FROM txnproc_file ORDER BY file_no DESC LIMIT 1",
                [],
                |row| {
                    Ok(TxnprocFile {
                        file_no: FileNo(row.get::<_, i64>(0)?.unsigned_abs()),
                        first: TxnId(row.get(1)?),
                        last: TxnId(row.get(2)?),
                        content_hash: crate::base::ids::ContentHash(row.get(3)?),
                        bytes: row.get::<_, i64>(4)?.unsigned_abs(),
                        created_micros: row.get(5)?,
                    })
                },
            )
            .optional()
            .map_err(self.sql("read the ledger of txnproc files"))
    }

    /// Goes on in a later epoch. An earlier one changes nothing: then the server database is not the one read last.
    pub fn enter_epoch(&mut self, epoch: Epoch) -> Result<(), CdsError> {
        if epoch > self.state.epoch {
            write_record(&self.conn, "epoch", &epoch.0).map_err(self.sql("enter an epoch"))?;
            self.state.epoch = epoch;
        }
        Ok(())
    }

    /// Returns the tables that stand still.
    pub fn stopped(&self) -> Result<Vec<StoppedTable>, CdsError> {
        read_stopped(&self.conn).map_err(self.sql("read stopped tables"))
    }
}

/// A table that stands still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoppedTable {
    /// Its name.
    pub table: String,
    /// Why, for people.
    pub reason: String,
    /// The stopped table because of which this one stands still; `None` if it is one itself.
    pub cause: Option<String>,
}

/// Writes a row of the ledger of txnproc files.
pub(super) fn write_file(conn: &Connection, file: &TxnprocFile) -> rusqlite::Result<()> {
    conn.prepare_cached("INSERT INTO txnproc_file(file_no, first, last, content_hash, bytes, created) VALUES(?1, ?2, ?3, ?4, ?5, ?6)")?
        .execute(params![
            file.file_no.0.cast_signed(),
            file.first.0,
            file.last.0,
            file.content_hash.0,
            file.bytes.cast_signed(),
            file.created_micros
        ])
        .map(drop)
}

/// Returns the last unit for which a txnproc file stands; `None` if there is no file.
pub fn last_routable(conn: &Connection) -> rusqlite::Result<Option<TxnId>> {
    conn.query_row("SELECT max(last) FROM txnproc_file", [], |row| Ok(row.get::<_, Option<i64>>(0)?.map(TxnId)))
}

/// Reads the tables that stand still, sorted by name.
pub fn read_stopped(conn: &Connection) -> rusqlite::Result<Vec<StoppedTable>> {
    conn.prepare("SELECT table_name, reason, cause FROM stopped ORDER BY table_name")?
        .query_map([], |row| Ok(StoppedTable { table: row.get(0)?, reason: row.get(1)?, cause: row.get(2)? }))?
        .collect()
}

/// Reads the definition of a data store; `None` if there is none.
pub fn read_dock(conn: &Connection) -> rusqlite::Result<Option<Dock>> {
    read_json(conn, "dock")
}

fn read_json<T: serde::de::DeserializeOwned>(conn: &Connection, name: &str) -> rusqlite::Result<Option<T>> {
    Ok(read_record::<String>(conn, name)?.and_then(|text| serde_json::from_str(&text).ok()))
}
