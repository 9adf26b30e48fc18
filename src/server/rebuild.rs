//! Rebuild of a data store that is lost or damaged (R26): from one snapshot of the server database and the log above the position of
//! the last txnproc file. Rows and nodes are rolled back to that position by what the log says of them before each change, so that the
//! next unit tells of exactly the same changes as if nothing had been lost: rows that left a node's view meanwhile are taken from it.
//! No node is extracted anew and no stream begins anew.
//!
//! Only where the log does not tell everything (a table was in doubt at that time) the streams of all nodes begin anew, in band.
//! A last file that its ledger does not name is right in content, so it is taken over.
//!
//! The new data store is built beside its place and moved there last; cut off anywhere, the rebuild begins again.

use super::nodes::{NodeError, restart_all};
use super::txnproc::{TxnProc, TxnProcError};
use crate::base::clock::now_micros;
use crate::base::crash::{self, CrashPoint};
use crate::base::ids::{FileNo, NodeName};
use crate::cds::fill::Filling;
use crate::cds::layout::TxnprocFile;
use crate::cds::{Cds, CdsError, CdsState};
use crate::docking::error::DockingError;
use crate::docking::ledger::{Ledger, Round, RouterState};
use crate::docking::queue::{self, QueueFile};
use crate::docking::root::DockingRoot;
use crate::dx::error::DxError;
use crate::dx::txnproc_reader::TxnprocReader;
use crate::model::dock::{Dock, DockTable, TableIndex};
use crate::model::node::Node;
use crate::model::value::{Row, RowKey, Value};
use crate::store::rollback::{Doubt, LoggedRow, Rollback};
use crate::store::snapshot::Snapshot;
use crate::store::sqlite::ServerDatabase;
use crate::store::tail::Filled;
use std::collections::BTreeMap;
use std::io::BufReader;

/// Why a data store cannot be rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// A txnproc file is damaged, and the Router may have read it.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        source: DxError,
    },
    /// The files are of another server, another epoch, or of a later time than the server database.
    #[error("the files in {} are not of this server database: {what}", root.display())]
    Foreign {
        /// The docking root.
        root: std::path::PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The definition of that time is not there.
    #[error("definition {0} is not stored in the server database")]
    Definition(crate::base::ids::Revision),
    /// The streams of nodes could not begin anew.
    #[error(transparent)]
    Nodes(#[from] Box<NodeError>),
}

/// Returns why a data store has to be rebuilt by what opening it said; `None` if that is not the remedy.
pub(super) fn reason(opened: &Result<Cds, CdsError>, root: &DockingRoot) -> Result<Option<String>, TxnProcError> {
    Ok(match opened {
        Ok(cds) => is_behind(cds, root)?.then(|| "it is older than its files".to_owned()),
        Err(error @ (CdsError::Missing { .. } | CdsError::State { .. } | CdsError::Inconsistent { .. })) => Some(error.to_string()),
        Err(error @ CdsError::Sql { source, .. }) if is_damage(source) => Some(error.to_string()),
        Err(_) => None,
    })
}

/// Returns whether SQLite found its file damaged.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase))
}

/// A crash leaves one file that the data store does not name, and nobody has read it. If there are more, or the Router is ahead, then
/// the data store lost commits: its write-ahead log was deleted, or it is a copy.
fn is_behind(cds: &Cds, root: &DockingRoot) -> Result<bool, TxnProcError> {
    let last = cds.last_file()?.map_or(FileNo(0), |file| file.file_no);
    let newest = queue::list(&root.txnproc())?.files.last().map_or(FileNo(0), |file| file.file_no);
    let routed = match Ledger::look(&root.ledger_db()).and_then(|ledger| ledger.map(|ledger| ledger.state()).transpose()) {
        Ok(state) => state.unwrap_or_default(),
        // It is put right afterwards, and then every stream begins anew.
        Err(DockingError::Sql { source, .. }) if is_damage(&source) => RouterState::default(),
        Err(error) => return Err(error.into()),
    };
    Ok(newest.0 > last.0 + 1 || (newest > last && routed.txnproc_file > last))
}

/// Where the data store was.
struct Last {
    files: Vec<TxnprocFile>,
    at: Filled,
}

/// Builds the data store anew. Returns `false` if it was never filled, or if the whole docking root is lost: then `deploy` fills it.
pub(super) fn rebuild(server: &ServerDatabase, root: &DockingRoot, reason: &str) -> Result<bool, TxnProcError> {
    let (Some(filled), Some(tail)) = (server.filled()?, server.tail()?) else { return Ok(false) };
    let found = queue::list(&root.txnproc())?.files;
    if found.is_empty() && tail.position > filled.position {
        return Ok(false);
    }
    tracing::warn!(stage = "txnproc", reason, "the data store is rebuilt from the server database");
    let identity = server.identity()?;
    let last = last(root, server, filled, &found)?;
    let foreign = |what: String| RebuildError::Foreign { root: root.path().to_owned(), what };
    if tail.position < last.at.position {
        let what = format!("they go up to {}, its tail is at {}", last.at.position, tail.position);
        return Err(foreign(what).into());
    }
    let deployed = server.deployed(last.at.revision)?.ok_or(RebuildError::Definition(last.at.revision))?;
    let state = CdsState {
        server_id: identity.server_id,
        server_name: identity.server_name,
        epoch: identity.epoch,
        revision: last.at.revision,
        position: last.at.position,
        nonce: tail.nonce,
        day: last.at.day,
    };
    let building = root.path().join("cds.db.new");
    for name in ["cds.db.new", "cds.db.new-journal", "cds.db.new-wal", "cds.db.new-shm"] {
        remove_if_there(root, name)?;
    }
    let frozen = server.frozen()?;
    let mut doubts = Vec::new();
    let rows = server.snapshot(|snapshot| -> Result<u64, TxnProcError> {
        let mut rollback = snapshot.rollback_to(last.at.position)?;
        let stood_still = |table| Doubt { table: Some(table), reason: "it stood still".to_owned() };
        rollback.doubts.extend(frozen.into_iter().map(stood_still));
        let mut filling = Filling::create(&building, deployed.dock.clone(), deployed.schema.clone(), state)?;
        fill(snapshot, &deployed.dock, &mut rollback, &mut filling)?;
        for file in &last.files {
            filling.add_file(file)?;
        }
        let nodes = nodes_before(snapshot.nodes()?, &rollback.nodes);
        doubts.append(&mut rollback.doubts);
        Ok(filling.finish(&nodes)?)
    })?;
    crash::at(CrashPoint::RebuildFilled);
    if !doubts.is_empty() {
        // Before the data store is in its place: cut off here, it is all done again.
        let nodes = restart_all(server).map_err(|error| RebuildError::Nodes(Box::new(error)))?;
        tracing::warn!(
            stage = "txnproc",
            nodes,
            doubts = doubts.iter().map(Doubt::to_string).collect::<Vec<_>>().join("; "),
            "what nodes hold is not known for sure: their streams begin anew, in band"
        );
    }
    // A stale write-ahead log would be played into the new file.
    remove_if_there(root, "cds.db-wal")?;
    remove_if_there(root, "cds.db-shm")?;
    root.disk().replace(&building, &root.cds_db())?;
    crash::at(CrashPoint::RebuildDone);
    tracing::warn!(stage = "txnproc", rows, position = %last.at.position, "the data store is rebuilt, the streams of the nodes go on");
    Ok(true)
}

fn remove_if_there(root: &DockingRoot, name: &str) -> Result<(), TxnProcError> {
    let path = root.path().join(name);
    if path.exists() {
        root.disk().remove(&path)?;
    }
    Ok(())
}

/// Reads the files: they tell how far the data store was, and carry the chain.
fn last(root: &DockingRoot, server: &ServerDatabase, filled: Filled, found: &[QueueFile]) -> Result<Last, TxnProcError> {
    let identity = server.identity()?;
    let (mut files, mut at) = (Vec::new(), filled);
    for (place, file) in found.iter().enumerate() {
        let wrong = |source| RebuildError::File { path: file.path.clone(), source };
        let mut reader = TxnprocReader::open(BufReader::new(root.disk().open(&file.path)?)).map_err(wrong)?;
        let header = reader.header().clone();
        if header.server_id != identity.server_id || header.epoch > identity.epoch {
            let what = format!("{} is of server {}, epoch {}", file.file_no, header.server_id, header.epoch);
            return Err(RebuildError::Foreign { root: root.path().to_owned(), what }.into());
        }
        files.push(TxnprocFile {
            file_no: header.file_no,
            first: header.first,
            last: header.last,
            content_hash: reader.summary().content_hash,
            bytes: reader.summary().bytes,
            created_micros: now_micros(),
        });
        if place + 1 == found.len() && header.last >= filled.position {
            at = Filled { position: header.last, revision: header.revision, day: filled.day };
            let mut parts = reader.parts();
            while let Some(part) = parts.next_part().map_err(wrong)? {
                at.day = part.unit.day;
            }
        }
    }
    Ok(Last { files, at })
}

/// Fills every table with the rows of that time: those of now that nothing touched since, and the others as they were.
fn fill(snapshot: &Snapshot<'_>, dock: &Dock, rollback: &mut Rollback, filling: &mut Filling) -> Result<(), TxnProcError> {
    let live = snapshot.schema()?;
    for (number, table) in dock.tables.iter().enumerate() {
        if table.by_comparison {
            let reason = "it is compared, so the log does not tell what it was".to_owned();
            rollback.doubts.push(Doubt { table: Some(table.name.clone()), reason });
        }
        let columns: Vec<String> = table.columns.iter().map(|column| column.name.clone()).collect();
        let mut touched = rollback.rows.remove(&table.name.to_ascii_lowercase()).unwrap_or_default();
        if rollback.is_doubtful(&table.name) {
            // The streams begin anew, so it need only be a state that ever was: two rows of different times may have equal keys.
            touched.clear();
        }
        let shape = live.table(&table.name);
        if shape.is_none_or(|shape| columns.iter().any(|column| shape.column(column).is_none())) {
            let reason = "it does not have the columns of that time any more".to_owned();
            rollback.doubts.push(Doubt { table: Some(table.name.clone()), reason });
            continue;
        }
        match fill_table(snapshot, filling, (number, table), &columns, &touched) {
            Ok(true) => {}
            Ok(false) => {
                let reason = "a column of that time was not captured".to_owned();
                rollback.doubts.push(Doubt { table: Some(table.name.clone()), reason });
            }
            Err(TxnProcError::Cds(error)) if Filling::is_key_taken(&error) && !touched.is_empty() => {
                let reason = "rows of that time would have equal keys".to_owned();
                rollback.doubts.push(Doubt { table: Some(table.name.clone()), reason });
                filling.clear(number)?;
                fill_table(snapshot, filling, (number, table), &columns, &BTreeMap::new())?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills a table. Returns whether every row of that time could be told.
fn fill_table(
    snapshot: &Snapshot<'_>,
    filling: &mut Filling,
    (number, table): (TableIndex, &DockTable),
    columns: &[String],
    touched: &BTreeMap<RowKey, Option<LoggedRow>>,
) -> Result<bool, TxnProcError> {
    // An entry of an earlier capture may lack a column; the row of now has it, if it is still there.
    let is_complete = touched.values().flatten().all(|row| columns.iter().all(|column| row.columns.contains(column)));
    let mut now: BTreeMap<RowKey, Row> = BTreeMap::new();
    snapshot.scan::<TxnProcError>(&table.name, columns, |row| {
        let key: RowKey = table.key.iter().map(|column| row.get(*column).cloned().unwrap_or(Value::Null)).collect();
        if !touched.contains_key(&key) {
            filling.add(number, &row)?;
        } else if !is_complete {
            now.insert(key, row);
        }
        Ok(())
    })?;
    let mut is_told = true;
    for (key, before) in touched {
        let Some(before) = before else { continue };
        match row_before(before, columns, now.get(key)) {
            Some(row) => filling.add(number, &row)?,
            None => is_told = false,
        }
    }
    Ok(is_told)
}

fn row_before(before: &LoggedRow, columns: &[String], now: Option<&Row>) -> Option<Row> {
    let value = |(place, column): (usize, &String)| match before.columns.iter().position(|logged| logged == column) {
        Some(logged) => before.row.get(logged).cloned(),
        None => now.and_then(|row| row.get(place).cloned()),
    };
    columns.iter().enumerate().map(value).collect()
}

fn nodes_before(now: Vec<Node>, changed: &BTreeMap<NodeName, Option<Node>>) -> Vec<Node> {
    let mut nodes: Vec<Node> = now.into_iter().filter(|node| !changed.contains_key(&node.name)).collect();
    nodes.extend(changed.values().flatten().cloned());
    nodes.sort_by(|one, other| one.name.cmp(&other.name));
    nodes
}

/// Returns why the ledger has to be put back; `None` if it is whole. Before the first txnproc file nothing is lost.
pub(super) fn lost_ledger(root: &DockingRoot) -> Result<Option<String>, TxnProcError> {
    match Ledger::look(&root.ledger_db()).and_then(|ledger| ledger.map(|ledger| ledger.state()).transpose()) {
        Ok(Some(_)) => Ok(None),
        Ok(None) => Ok((!queue::list(&root.txnproc())?.files.is_empty()).then(|| "it is gone".to_owned())),
        Err(DockingError::Sql { source, .. }) if is_damage(&source) => Ok(Some(source.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// Puts a ledger in the place of one that is lost or damaged: the Router begins at the end of what is there, and the streams of all
/// nodes begin anew, in band (R26).
pub(super) fn restore_ledger(txnproc: &TxnProc, root: &DockingRoot) -> Result<(), TxnProcError> {
    let path = root.ledger_db();
    let (Some(last), Some(reason)) = (txnproc.cds().last_file()?, lost_ledger(root)?) else { return Ok(()) };
    let nodes = restart_all(txnproc.server()).map_err(|error| RebuildError::Nodes(Box::new(error)))?;
    tracing::warn!(stage = "router", reason, nodes, "the ledger is lost: the streams of all nodes begin anew, in band");
    let cds = txnproc.cds().state();
    let state = RouterState {
        server_id: cds.server_id,
        epoch: cds.epoch,
        revision: cds.revision,
        position: last.last,
        txnproc_file: last.file_no,
        txnproc_hash: last.content_hash,
    };
    let building = root.path().join("ledger.db.new");
    for name in ["ledger.db.new", "ledger.db.new-wal", "ledger.db.new-shm"] {
        remove_if_there(root, name)?;
    }
    let mut ledger = Ledger::create(&building)?;
    ledger.commit(&Round { state, nodes: Vec::new(), files: Vec::new() })?;
    ledger.close()?;
    remove_if_there(root, "ledger.db-wal")?;
    remove_if_there(root, "ledger.db-shm")?;
    root.disk().replace(&building, &path)?;
    Ok(())
}

/// Takes away what is left of a docking root whose data store and files are lost: the ledger names files of a stream that ended.
pub(super) fn forget_ledger(root: &DockingRoot) -> Result<(), TxnProcError> {
    ["ledger.db", "ledger.db-wal", "ledger.db-shm"].into_iter().try_for_each(|name| remove_if_there(root, name))
}
