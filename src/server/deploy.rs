//! `deploy`: puts a checked definition into force. `plan` says beforehand what it will do and changes nothing.
//!
//! The first time the data store is filled from a snapshot of the server database. From then on a deploy changes the server database
//! alone: triggers, definition and a control in the log, in one transaction. The Transaction Processor takes the definition over with
//! the unit that holds the control (`server::redefine`), whether nodes run or not, whether the service runs or `deploy` itself does it.
//!
//! It can be interrupted anywhere and run again: the first data store is built beside its place and moved there last.

use super::nodes::restart_all;
use super::pass::{self, ServeError, ServeOptions, Stage, window_day};
use super::preview::{NodeEffect, PreviewError, preview};
use super::rebuild::{RebuildError, forget_ledger, rebuild};
use super::txnproc::{TxnProcError, new_nonce};
use crate::base::crash::{self, CrashPoint};
use crate::base::ids::{Epoch, FileNo, NodeName, Nonce, Revision, ServerId, TxnId};
use crate::cds::fill::Filling;
use crate::cds::layout::{connect_read_only, read_state};
use crate::cds::redefine::Redefinition;
use crate::cds::{CdsError, CdsState};
use crate::docking::ledger::Ledger;
use crate::docking::root::DockingRoot;
use crate::model::dock::Dock;
use crate::model::node::{Node, NodeState};
use crate::model::schema::Schema;
use crate::store::install::{InstallPlan, Installed};
use crate::store::local_build::{BuildError, check_local};
use crate::store::sqlite::{ServerDatabase, StoreError};
use crate::store::tail::Filled;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long `deploy` waits for the service to take a definition over.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(600);
/// How often it looks meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

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
    /// Minutes after midnight UTC at which a new day begins for time windows.
    pub day_starts_minutes: i64,
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
    /// The data store is gone while another program works on the docking root.
    #[error("docking root {} has no data store, and another program works on it", root.display())]
    StoreLost {
        /// The docking root.
        root: PathBuf,
    },
    /// Nodes have a model that the definition does not have: what they may see is not known.
    #[error("the definition has no model `{model}`, which {nodes} {}", if *several { "have" } else { "has" })]
    Model {
        /// The model.
        model: String,
        /// The nodes that have it, by name.
        nodes: String,
        /// Whether there are several.
        several: bool,
    },
    /// The unit that holds the definition could not be taken.
    #[error("the definition is deployed, but not taken over yet: {0}")]
    Take(#[source] Box<ServeError>),
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
    /// Rows copied into the first data store; `None` if there was one.
    pub rows: Option<u64>,
    /// Whether the Transaction Processor has taken the definition over; else the service will.
    pub in_force: bool,
}

/// Returns what `deploy` will do. Changes nothing.
pub fn plan(options: &DeployOptions, root: &Path) -> Result<DeployPlan, DeployError> {
    let left_out = check_local(&options.dock, &options.schema)?;
    let server = ServerDatabase::open(&options.database)?;
    let installed = server.is_installed()?;
    if installed {
        check_models(&options.dock, &server)?;
    }
    let identity = if installed { Some(server.identity()?) } else { None };
    let deployed = match &identity {
        Some(identity) => server.definition(identity.revision)?,
        None => None,
    };
    let definition_changed = deployed.as_deref() != Some(options.text.as_str());
    let stopped = if installed { server.stopped_tables()? } else { Vec::new() };
    let capture: Vec<String> = if definition_changed {
        options.dock.tables.iter().filter(|table| !table.by_comparison).map(|table| table.name.clone()).collect()
    } else {
        stopped.into_iter().map(|(table, _)| table).collect()
    };
    let cds = root.join("cds.db");
    let builds_data_store = !cds.exists() || data_store_state(&cds)?.is_none();
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

/// Returns what `deploy` will give and take from each running node; `None` if it changes nothing for them.
///
/// # Errors
/// As [`preview`].
pub fn effects(options: &DeployOptions, plan: &DeployPlan, root: &Path) -> Result<Option<BTreeMap<NodeName, NodeEffect>>, PreviewError> {
    if plan.builds_data_store || plan.active_nodes == 0 || (!plan.definition_changed && plan.capture.is_empty()) {
        return Ok(None);
    }
    let to = Redefinition { dock: options.dock.clone(), schema: options.schema.clone(), standing: BTreeSet::new() };
    preview(&ServerDatabase::open(&options.database)?, root, to).map(Some)
}

/// Puts the definition into force. The docking root must be open exclusively: no service runs.
pub fn deploy(options: &DeployOptions, root: &Arc<DockingRoot>) -> Result<Deployed, DeployError> {
    let plan = plan(options, root.path())?;
    let server = ServerDatabase::open(&options.database)?;
    check_owner(options, root.path(), &server)?;
    // One that was lost is rebuilt where its files are left, and the nodes notice nothing.
    let builds = plan.builds_data_store && !(server.is_installed()? && rebuild(&server, root, "there is none")?);
    let installed = install(options, &server)?;
    crash::at(CrashPoint::DeployInstalled);
    let rows = if builds {
        let identity = (installed.server_id, installed.epoch, installed.revision);
        // Where the whole docking root is lost, the streams of all nodes begin anew, in band.
        let is_root_lost = !active_nodes(&server)?.is_empty();
        if is_root_lost {
            forget_ledger(root)?;
        }
        Some(build_data_store(options, root, &server, identity, is_root_lost)?)
    } else {
        None
    };
    // The change is a unit of the log; here nobody else takes it.
    let serve = ServeOptions { day_starts_minutes: options.day_starts_minutes, ..ServeOptions::new(options.database.clone(), "") };
    pass::run(&serve, root, &[Stage::TxnProc]).map_err(|error| DeployError::Take(Box::new(error)))?;
    Ok(Deployed { revision: installed.revision, rows, in_force: true })
}

/// Puts the definition into force while the service works on the docking root: the service takes it over, and this waits for it.
pub fn deploy_beside_service(options: &DeployOptions, root: &Path) -> Result<Deployed, DeployError> {
    let plan = plan(options, root)?;
    let server = ServerDatabase::open(&options.database)?;
    check_owner(options, root, &server)?;
    if plan.builds_data_store {
        return Err(DeployError::StoreLost { root: root.to_owned() });
    }
    let installed = install(options, &server)?;
    crash::at(CrashPoint::DeployInstalled);
    let until = Instant::now() + TAKEN_OVER_WITHIN;
    let mut in_force = false;
    while !in_force && Instant::now() < until {
        in_force = data_store_state(&root.join("cds.db"))?.is_some_and(|state| state.revision >= installed.revision);
        if !in_force {
            std::thread::sleep(LOOK_AGAIN);
        }
    }
    Ok(Deployed { revision: installed.revision, rows: None, in_force })
}

fn install(options: &DeployOptions, server: &ServerDatabase) -> Result<Installed, StoreError> {
    server.install(&InstallPlan {
        dock: &options.dock,
        schema: &options.schema,
        revision_text: &options.text,
        server_name: &options.server_name,
    })
}

/// A docking root is for one server database.
fn check_owner(options: &DeployOptions, root: &Path, server: &ServerDatabase) -> Result<(), DeployError> {
    let path = root.join("cds.db");
    let Some(state) = (if path.exists() { data_store_state(&path)? } else { None }) else { return Ok(()) };
    let expected = if server.is_installed()? { Some(server.identity()?.server_id) } else { None };
    if expected == Some(state.server_id) {
        return Ok(());
    }
    Err(DeployError::OtherServer { root: root.to_owned(), found: state.server_id, database: options.database.clone(), expected })
}

fn data_store_state(path: &Path) -> Result<Option<CdsState>, CdsError> {
    connect_read_only(path).and_then(|conn| read_state(&conn)).map_err(|source| CdsError::Sql {
        path: path.to_owned(),
        what: "read the commit point",
        source,
    })
}

/// Refuses a definition that lacks the model of a node. Such a node would lose every row.
fn check_models(dock: &Dock, server: &ServerDatabase) -> Result<(), DeployError> {
    let mut lost: BTreeMap<String, Vec<NodeName>> = BTreeMap::new();
    for node in server.nodes()?.into_iter().filter(|node| node.state != NodeState::Disabled) {
        if let Some(model) = node.model.filter(|name| !dock.models.iter().any(|known| known.name == *name)) {
            lost.entry(model).or_default().push(node.name);
        }
    }
    let Some((model, nodes)) = lost.pop_first() else { return Ok(()) };
    let shown: Vec<&str> = nodes.iter().take(5).map(NodeName::as_str).collect();
    let more = if nodes.len() > shown.len() { format!(" and {} more", nodes.len() - shown.len()) } else { String::new() };
    Err(DeployError::Model { model, nodes: format!("{}{more}", shown.join(", ")), several: nodes.len() > 1 })
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
        for name in ["cds.db.new", "cds.db"] {
            let leftover = root.path().join(format!("{name}{suffix}"));
            if leftover.exists() {
                root.disk().remove(&leftover).map_err(TxnProcError::from)?;
            }
        }
    }
    let nonce: Nonce = new_nonce()?;
    let previous = server.tail()?.map(|tail| tail.nonce);
    let mut position = TxnId::default();
    let day = window_day(options.day_starts_minutes);
    let rows = server.snapshot(|snapshot| -> Result<u64, DeployError> {
        position = snapshot.log_end()?;
        let state = CdsState { server_id, server_name: options.server_name.clone(), epoch, revision, position, nonce, day };
        let mut filling = Filling::create(&building, options.dock.clone(), options.schema.clone(), state)?;
        for (number, table) in options.dock.tables.iter().enumerate() {
            let columns: Vec<String> = table.columns.iter().map(|column| column.name.clone()).collect();
            snapshot.scan::<DeployError>(&table.name, &columns, |row| Ok(filling.add(number, &row)?))?;
        }
        Ok(filling.finish(&[])?)
    })?;
    crash::at(CrashPoint::DeployFilled);
    if is_root_lost {
        let nodes = restart_all(server).map_err(|error| TxnProcError::from(RebuildError::Nodes(Box::new(error))))?;
        tracing::warn!(nodes, "the docking root was lost: the streams of all nodes begin anew, in band");
    }
    // From here on the server database knows this data store as the one that read it last.
    server.write_filled(&Filled { position, revision, day })?;
    server.write_frozen(&[])?;
    server.write_tail(position, nonce, previous)?;
    crash::at(CrashPoint::DeployTail);
    root.disk().replace(&building, &root.cds_db()).map_err(TxnProcError::from)?;
    crash::at(CrashPoint::DeployDone);
    if !root.ledger_db().exists() && !root.txnproc_file(FileNo(1)).exists() {
        // From here on a ledger that is not there is one that was lost.
        Ledger::create(&root.ledger_db()).and_then(Ledger::close).map_err(TxnProcError::from)?;
    }
    Ok(rows)
}
