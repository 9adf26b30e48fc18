//! `deploy`: puts a checked definition into force: capture on the server database, a filled data store in the docking
//! root. `plan` says beforehand what it will do and changes nothing.
//!
//! It can be interrupted anywhere and run again: the data store is built beside its place and moved there last.

use super::nodes::restart_all;
use super::rebuild::{RebuildError, forget_ledger, rebuild};
use super::txnproc::{TxnProcError, new_nonce};
use crate::base::crash::{self, CrashPoint};
use crate::base::ids::{Epoch, FileNo, Nonce, Revision, ServerId, TxnId};
use crate::cds::fill::Filling;
use crate::cds::layout::{StoppedTable, connect_read_only, is_superseded, read_state, read_stopped, reinstate, running_nodes, supersede};
use crate::cds::{CdsError, CdsState};
use crate::docking::ledger::Ledger;
use crate::docking::root::DockingRoot;
use crate::model::dock::Dock;
use crate::model::node::{Node, NodeState};
use crate::model::schema::Schema;
use crate::store::control::Control;
use crate::store::install::InstallPlan;
use crate::store::local_build::{BuildError, check_local};
use crate::store::sqlite::{ServerDatabase, StoreError};
use crate::store::tail::Filled;
use std::path::{Path, PathBuf};

/// What is to be deployed.
#[derive(Debug, Clone)]
pub struct DeployOptions {
    /// The resolved definition.
    pub dock: Dock,
    /// The schema that it was checked against.
    pub schema: Schema,
    /// Its text, all files joined.
    pub text: String,
    /// Name of the server, for people.
    pub server_name: String,
    /// The server database.
    pub database: PathBuf,
    /// Today, days since 1970: where time windows begin.
    pub day: i64,
}

/// Why a definition cannot be put into force.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// The server database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data store.
    #[error(transparent)]
    Cds(#[from] CdsError),
    /// The rest.
    #[error(transparent)]
    TxnProc(#[from] TxnProcError),
    /// A table cannot be made on a node.
    #[error("no node could have this database: {0}")]
    Local(#[from] BuildError),
    /// Another server's docking root.
    #[error("docking root {} belongs to server {found}, but {} is {}", root.display(), database.display(),
        expected.map_or("not installed".to_owned(), |expected| format!("server {expected}")))]
    OtherServer {
        /// The docking root.
        root: PathBuf,
        /// Whose it is.
        found: ServerId,
        /// The server database.
        database: PathBuf,
        /// Its identity; `None` if nothing of ours is in it.
        expected: Option<ServerId>,
    },
    /// Nodes hold data by the definition in force.
    #[error("{what} changed, and {} data by the definition in force; it cannot be changed under active nodes yet",
        holders(first, *count - 1))]
    ActiveNodes {
        /// What changed.
        what: String,
        /// How many.
        count: usize,
        /// One of them.
        first: String,
    },
}

/// `node ANNA holds`, `ANNA and 1 other node hold`, `ANNA and 2 other nodes hold`.
fn holders(first: &str, others: usize) -> String {
    match others {
        0 => format!("node {first} holds"),
        1 => format!("{first} and 1 other node hold"),
        others => format!("{first} and {others} other nodes hold"),
    }
}

/// What `deploy` will do.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DeployPlan {
    /// Tables that get capture triggers, or get them anew.
    pub capture: Vec<String>,
    /// Whether the journal mode of the server database becomes WAL.
    pub becomes_wal: bool,
    /// Rows to copy into the data store; 0 if it stays as it is.
    pub rows: u64,
    /// Whether the data store is built.
    pub builds_data_store: bool,
    /// Revision in force, if one is.
    pub revision: Option<Revision>,
    /// Whether the definition differs from the one in force.
    pub definition_changed: bool,
    /// Active nodes that hold data by the definition in force.
    pub active_nodes: usize,
    /// Parts of the schema that local databases will not have: views, indexes, constraints over what is not sent.
    pub left_out: Vec<String>,
}

impl DeployPlan {
    /// Returns whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.capture.is_empty() && !self.builds_data_store && !self.definition_changed && !self.becomes_wal
    }
}

/// What `deploy` did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Deployed {
    /// Revision now in force.
    pub revision: Revision,
    /// Rows copied into the data store; `None` if it stayed as it was.
    pub rows: Option<u64>,
}

/// Returns what `deploy` will do. Changes nothing.
pub fn plan(options: &DeployOptions, root: &Path) -> Result<DeployPlan, DeployError> {
    let left_out = check_local(&options.dock, &options.schema)?;
    let server = ServerDatabase::open(&options.database)?;
    let installed = server.is_installed()?;
    let identity = if installed { Some(server.identity()?) } else { None };
    let deployed = match &identity {
        Some(identity) => server.definition(identity.revision)?,
        None => None,
    };
    let definition_changed = deployed.as_deref() != Some(options.text.as_str());
    let stopped = if installed { server.stopped_tables()? } else { Vec::new() };
    let capture: Vec<String> = if definition_changed {
        options.dock.tables.iter().map(|table| table.name.clone()).collect()
    } else {
        stopped.into_iter().map(|(table, _)| table).collect()
    };
    let cds = root.join("cds.db");
    // Tables that stopped once stay so until the data store is filled anew, even if they look right again.
    let is_filled = holds_data(&cds)? && data_store_stopped(&cds)?.is_empty();
    let builds_data_store = !is_filled || definition_changed || !capture.is_empty();
    let rows = if builds_data_store {
        let counts = server.count_rows(&options.schema)?;
        options.dock.tables.iter().filter_map(|table| counts.get(&table.name)).sum()
    } else {
        0
    };
    Ok(DeployPlan {
        capture,
        becomes_wal: !server.is_wal()?,
        rows,
        builds_data_store,
        revision: identity.map(|identity| identity.revision),
        definition_changed,
        active_nodes: active_nodes(&server)?.len(),
        left_out,
    })
}

/// Puts the definition into force. The docking root must be open exclusively.
pub fn deploy(options: &DeployOptions, root: &DockingRoot) -> Result<Deployed, DeployError> {
    let plan = plan(options, root.path())?;
    let server = ServerDatabase::open(&options.database)?;
    let active = active_nodes(&server)?;
    if let (Some(first), true) = (active.first(), plan.builds_data_store) {
        let store = if root.cds_db().exists() { data_store_state(&root.cds_db())? } else { None };
        let what = match (plan.definition_changed, plan.capture.is_empty()) {
            (false, true) if store.is_none() => return refill(options, root, &server),
            (true, _) => "the definition".to_owned(),
            (false, false) => format!("table {}", plan.capture.join(", ")),
            (false, true) => "a table that stopped".to_owned(),
        };
        return Err(DeployError::ActiveNodes { what, count: active.len(), first: first.name.to_string() });
    }
    if root.cds_db().exists()
        && let Some(old) = data_store_state(&root.cds_db())?
    {
        let expected = if server.is_installed()? { Some(server.identity()?.server_id) } else { None };
        if expected != Some(old.server_id) {
            return Err(DeployError::OtherServer {
                root: root.path().to_owned(),
                found: old.server_id,
                database: options.database.clone(),
                expected,
            });
        }
    }
    let superseded = plan.builds_data_store && root.cds_db().exists() && holds_data(&root.cds_db())?;
    if plan.builds_data_store && root.cds_db().exists() && data_store_state(&root.cds_db())?.is_some() {
        // Before the first change of the server database: cut off anywhere behind this, `deploy` finds that it has to fill it anew.
        supersede(&root.cds_db())?;
        crash::at(CrashPoint::DeploySuperseded);
    }
    let installed = server.install(&InstallPlan {
        dock: &options.dock,
        schema: &options.schema,
        revision_text: &options.text,
        server_name: &options.server_name,
    });
    if installed.is_err() && superseded {
        // The definition before is still in force, and the data store is as good as it was.
        reinstate(&root.cds_db())?;
    }
    let installed = installed?;
    crash::at(CrashPoint::DeployInstalled);
    if !plan.builds_data_store {
        return Ok(Deployed { revision: installed.revision, rows: None });
    }
    let rows = build_data_store(options, root, &server, (installed.server_id, installed.epoch, installed.revision), false)?;
    Ok(Deployed { revision: installed.revision, rows: Some(rows) })
}

/// Puts a data store in the place of one that is lost, under nodes that are in use. Where its files are left it is rebuilt and the
/// nodes notice nothing; where the whole docking root is lost, the streams of all nodes begin anew, in band.
fn refill(options: &DeployOptions, root: &DockingRoot, server: &ServerDatabase) -> Result<Deployed, DeployError> {
    let identity = server.identity()?;
    if rebuild(server, root, "there is none")? {
        return Ok(Deployed { revision: identity.revision, rows: None });
    }
    forget_ledger(root)?;
    let rows = build_data_store(options, root, server, (identity.server_id, identity.epoch, identity.revision), true)?;
    Ok(Deployed { revision: identity.revision, rows: Some(rows) })
}

/// Returns whether there is a data store that stages can go on with.
fn holds_data(path: &Path) -> Result<bool, CdsError> {
    let look = |conn: &rusqlite::Connection| Ok(read_state(conn)?.is_some() && !is_superseded(conn)?);
    if !path.exists() {
        return Ok(false);
    }
    connect_read_only(path).and_then(|conn| look(&conn)).map_err(|source| CdsError::Sql {
        path: path.to_owned(),
        what: "read the commit point",
        source,
    })
}

fn data_store_state(path: &Path) -> Result<Option<CdsState>, CdsError> {
    connect_read_only(path).and_then(|conn| read_state(&conn)).map_err(|source| CdsError::Sql {
        path: path.to_owned(),
        what: "read the commit point",
        source,
    })
}

fn data_store_stopped(path: &Path) -> Result<Vec<StoppedTable>, CdsError> {
    connect_read_only(path).and_then(|conn| read_stopped(&conn)).map_err(|source| CdsError::Sql {
        path: path.to_owned(),
        what: "read stopped tables",
        source,
    })
}

fn active_nodes(server: &ServerDatabase) -> Result<Vec<Node>, StoreError> {
    if !server.is_installed()? {
        return Ok(Vec::new());
    }
    Ok(server.nodes()?.into_iter().filter(|node| node.state == NodeState::Active).collect())
}

fn build_data_store(
    options: &DeployOptions,
    root: &DockingRoot,
    server: &ServerDatabase,
    (server_id, epoch, revision): (ServerId, Epoch, Revision),
    is_root_lost: bool,
) -> Result<u64, DeployError> {
    let building = root.path().join("cds.db.new");
    for suffix in ["", "-journal", "-wal", "-shm"] {
        let leftover = root.path().join(format!("cds.db.new{suffix}"));
        if leftover.exists() {
            root.disk().remove(&leftover).map_err(TxnProcError::from)?;
        }
    }
    let nonce: Nonce = new_nonce()?;
    let previous = server.tail()?.map(|tail| tail.nonce);
    let mut position = TxnId::default();
    // Nodes that were disabled or deleted and whose end was not read yet. The new data store goes on with them, without values.
    let mut ended = if root.cds_db().exists() { running_nodes(&root.cds_db())? } else { Vec::new() };
    for node in &mut ended {
        node.attributes.clear();
        node.model = None;
    }
    let rows = server.snapshot(|snapshot| -> Result<u64, DeployError> {
        position = snapshot.log_end()?;
        let state = CdsState { server_id, server_name: options.server_name.clone(), epoch, revision, position, nonce, day: options.day };
        let mut filling = Filling::create(&building, options.dock.clone(), options.schema.clone(), state)?;
        for (number, table) in options.dock.tables.iter().enumerate() {
            let columns: Vec<String> = table.columns.iter().map(|column| column.name.clone()).collect();
            snapshot.scan::<DeployError>(&table.name, &columns, |row| Ok(filling.add(number, &row)?))?;
        }
        if root.cds_db().exists() && data_store_state(&root.cds_db())?.is_some() {
            filling.keep_files_of(&root.cds_db())?;
        }
        Ok(filling.finish(&ended)?)
    })?;
    crash::at(CrashPoint::DeployFilled);
    // The rows of the log that ended them are behind the position: told again, they end the streams at the Router too.
    for node in &ended {
        let now = server.node(&node.name)?;
        server.append_control(&match now {
            Some(now) => Control::Node { node: now, before: Some(node.clone()) },
            None => Control::NodeDeleted { name: node.name.clone(), before: Some(node.clone()) },
        })?;
    }
    if is_root_lost {
        let nodes = restart_all(server).map_err(|error| TxnProcError::from(RebuildError::Nodes(Box::new(error))))?;
        tracing::warn!(nodes, "the docking root was lost: the streams of all nodes begin anew, in band");
    }
    // From here on the server database knows this data store as the one that read it last.
    server.write_filled(&Filled { position, revision, day: options.day })?;
    server.write_frozen(&[])?;
    server.write_tail(position, nonce, previous)?;
    crash::at(CrashPoint::DeployTail);
    root.disk().replace(&building, &root.cds_db()).map_err(TxnProcError::from)?;
    crash::at(CrashPoint::DeployDone);
    if !root.ledger_db().exists() && !root.txnproc_file(FileNo(1)).exists() {
        // From here on a ledger that is not there is one that was lost.
        Ledger::open(&root.ledger_db()).and_then(Ledger::close).map_err(TxnProcError::from)?;
    }
    Ok(rows)
}
