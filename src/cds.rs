//! Layer 3: the consolidated data store: an embedded replica, as of the Transaction Processor's own log position, of
//! every column that is replicated or that a rule uses, together with the scope index (which keys each row has).
//!
//! It makes routing exact and cheap: the before-image of a row, its keys and the content of a row that becomes visible
//! are all here, as of exactly this unit; the server database is never asked (architecture 3.1).
//!
//! Written by the Transaction Processor alone. `cds.db` holds position, nonce, data, counts and the ledger of txnproc
//! files, and one commit moves them all.

pub mod compare;
pub mod counts;
pub mod emit;
pub mod explain;
pub mod fill;
pub mod guard;
pub mod keys;
pub mod large;
pub mod layout;
pub mod marks;
pub mod nodes;
pub mod redefine;
pub mod rows;
pub mod scope;
pub mod spool;
mod standing;
pub mod unit;
pub mod verdict;
pub mod view;
pub mod walk;

use crate::base::ids::{Epoch, Nonce, Revision, ServerId, TxnId};
use crate::dx::error::DxError;
use crate::model::dock::{Dock, TableIndex};
use crate::model::event::SchemaObject;
use crate::model::schema::Schema;
use crate::rules::graph::{GraphError, ScopeGraph};
use crate::store::local_build::BuildError;
use crate::store::local_schema::node_schema;
use crate::store::predicate::{EvaluateError, Evaluator};
use rusqlite::Connection;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Why the data store cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum CdsError {
    /// SQLite refused.
    #[error("data store {path}: {what}")]
    Sql {
        /// The database file.
        path: PathBuf,
        /// What was done.
        what: &'static str,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// There is none, or it was never filled.
    #[error("there is no data store {}", path.display())]
    Missing {
        /// The database file.
        path: PathBuf,
    },
    /// A stored record that cannot be read.
    #[error("data store {path}: `{name}` is unreadable")]
    State {
        /// The database file.
        path: PathBuf,
        /// Name of the record.
        name: String,
    },
    /// The definition cannot be compiled.
    #[error("the stored definition cannot be compiled")]
    Graph(#[from] GraphError),
    /// A row predicate failed.
    #[error("row predicate")]
    Predicate(#[from] EvaluateError),
    /// The scope index contradicts the data: it must be rebuilt.
    #[error("the scope index contradicts the data ({what})")]
    Inconsistent {
        /// What was found.
        what: String,
    },
    /// The shape of the nodes' tables cannot be told.
    #[error("the shape of the nodes' tables")]
    NodeSchema(#[from] Box<BuildError>),
    /// The unit reaches more rows than memory may hold: it must be taken as a large one.
    #[error("the unit reaches more rows than memory may hold")]
    TooMuch,
    /// An event does not fit into a file.
    #[error(transparent)]
    Dx(#[from] DxError),
    /// A change names a table that the definition does not have.
    #[error("a change names table {0}, which the deployed definition does not have")]
    UnknownTable(String),
}

/// The commit point of the data store: everything that one unit moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CdsState {
    /// Identity of the server database.
    pub server_id: ServerId,
    /// Its name, for people.
    pub server_name: String,
    /// Its epoch.
    pub epoch: Epoch,
    /// Deployed definition.
    pub revision: Revision,
    /// Log position up to which units were processed.
    pub position: TxnId,
    /// Nonce of the last read that was committed here (R13).
    pub nonce: Nonce,
    /// Day of the last window tick, days since 1970.
    pub day: i64,
}

/// The open data store.
pub struct Cds {
    path: PathBuf,
    conn: Connection,
    dock: Dock,
    schema: Schema,
    graph: ScopeGraph,
    /// By table.
    statements: Vec<rows::TableSql>,
    state: CdsState,
    keys: RefCell<keys::KeyCache>,
    /// By table and expression.
    evaluators: RefCell<HashMap<TableIndex, HashMap<String, Evaluator>>>,
    nodes: nodes::NodeIndex,
    /// State to put in place when the open unit commits.
    pending: Option<(CdsState, nodes::NodeChanges)>,
    /// A unit that comes in chunks.
    large: Option<large::LargeUnit>,
    /// Most rows that one step of a unit may reach.
    reached_max: usize,
    /// Whether the open unit puts another definition into force; given up, everything is read again.
    redefined: bool,
}

impl std::fmt::Debug for Cds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cds").field("path", &self.path).field("state", &self.state).finish_non_exhaustive()
    }
}

impl Cds {
    /// Puts the parts of an open database together; its nodes are loaded, or not, by the caller.
    fn assemble(path: &Path, conn: Connection, dock: Dock, schema: Schema, graph: ScopeGraph, state: CdsState) -> rusqlite::Result<Cds> {
        let keys = keys::KeyCache::open(&conn, &graph)?;
        Ok(Cds {
            path: path.to_owned(),
            conn,
            statements: rows::TableSql::of(&dock),
            dock,
            schema,
            graph,
            state,
            keys: RefCell::new(keys),
            evaluators: RefCell::new(HashMap::new()),
            nodes: nodes::NodeIndex::default(),
            pending: None,
            large: None,
            reached_max: usize::MAX,
            redefined: false,
        })
    }

    /// Sets how many rows a unit may reach in memory; beyond it [`Cds::process`] gives up and [`Cds::take`] takes smaller chunks.
    pub fn bound_reached(&mut self, rows: usize) {
        self.reached_max = rows;
    }

    /// Returns the definition in force.
    pub fn dock(&self) -> &Dock {
        &self.dock
    }

    /// Returns the server's schema as of the last deploy.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Returns the tables, indexes and views that nodes have.
    pub(crate) fn node_schema(&self) -> Result<Vec<SchemaObject>, CdsError> {
        node_schema(&self.dock, &self.schema).map_err(|error| CdsError::NodeSchema(Box::new(error)))
    }

    /// Returns the compiled rules.
    pub fn graph(&self) -> &ScopeGraph {
        &self.graph
    }

    /// Returns the commit point.
    pub fn state(&self) -> &CdsState {
        &self.state
    }

    /// Returns the active nodes with their keys.
    pub fn nodes(&self) -> &nodes::NodeIndex {
        &self.nodes
    }

    /// Calls `step` at every step of SQLite's virtual machine from now on: work counted without a clock.
    pub fn count_steps(&mut self, mut step: impl FnMut() + Send + 'static) -> Result<(), CdsError> {
        let handler = move || {
            step();
            false
        };
        let set = self.conn.progress_handler(1, Some(handler));
        set.map_err(self.sql("count steps"))
    }

    pub(crate) fn sql(&self, what: &'static str) -> impl Fn(rusqlite::Error) -> CdsError + '_ {
        move |source| CdsError::Sql { path: self.path.clone(), what, source }
    }
}
