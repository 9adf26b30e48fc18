//! `explain`: why a node has a row or has not, rule by rule, then stage by stage.
//!
//! The rules are those of the data store at the Transaction Processor's position, in one read snapshot; the stages are read from the
//! last to the first, so no answer says that a later stage is ahead of an earlier one. Takes no lock, changes nothing.

use super::nodes::{self, NodeError};
use super::trail::{self, Downstream, Place, Sent, Target, Trail, TrailError};
use crate::base::ids::{FileNo, NodeName};
use crate::cds::Cds;
use crate::cds::explain::NodeView;
use crate::cds::layout::StoppedTable;
use crate::cds::verdict::RowVerdict;
use crate::docking::error::DockingError;
use crate::docking::root::{Access, DockingRoot};
use crate::docking::sessions::{SessionsDb, SessionsError};
use crate::model::dock::{Direction, TableIndex};
use crate::model::node::Node;
use crate::model::value::{RowKey, Value};
use crate::store::sqlite::{ServerDatabase, StoreError};
use std::path::PathBuf;

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The server database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The docking root.
    #[error(transparent)]
    Docking(#[from] DockingError),
    /// The history of sessions.
    #[error(transparent)]
    Sessions(#[from] SessionsError),
    /// Data store, ledger or files.
    #[error(transparent)]
    Trail(#[from] TrailError),
    /// Nothing is deployed, or the docking root is gone.
    #[error("docking root {} has no data store", root.display())]
    NoDataStore {
        /// The root.
        root: PathBuf,
    },
    /// The definition has no such table.
    #[error("the deployed definition has no table {table}; it has {known}")]
    Table {
        /// The name asked for.
        table: String,
        /// The tables that there are.
        known: String,
    },
    /// The key has another number of columns.
    #[error("the key of {table} is ({columns}); {given} given")]
    Key {
        /// The table.
        table: String,
        /// Its key columns.
        columns: String,
        /// How many values were given.
        given: usize,
    },
}

/// What is to be explained, and where to look.
#[derive(Debug, Clone)]
pub struct ExplainOptions {
    /// The server database.
    pub database: PathBuf,
    /// The docking root.
    pub root: PathBuf,
    /// The node.
    pub node: NodeName,
    /// The table.
    pub table: String,
    /// The values of the row's primary key, as typed: a number, a text, or X'..'.
    pub key: Vec<String>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The node, as the data store has it if its stream runs.
    pub node: Node,
    /// Name of the table as declared.
    pub table: String,
    /// The key of the row, as stored if the row is there.
    pub key: RowKey,
    /// What the rules say; `None` = there is no such row.
    pub verdict: Option<RowVerdict>,
    /// What is known of its way.
    pub trail: Trail,
    /// Where its last change for the node is.
    pub place: Place,
    /// What holds it there, each with the command to type if there is one.
    pub held_by: Vec<Held>,
}

/// Something that keeps a change where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What it is.
    pub what: String,
    /// What to type; empty if it goes on by itself.
    pub command: String,
}

/// Explains one row for one node.
///
/// # Errors
/// The node, the table or the shape of the key is unknown; or something is there and cannot be read.
pub fn explain(options: &ExplainOptions) -> Result<Explanation, ExplainError> {
    let database = ServerDatabase::open(&options.database)?;
    let root = DockingRoot::open(&options.root, Access::Look)?;
    let registered = nodes::show(&database, &options.node)?;
    let sessions = SessionsDb::open_to_read(&root.sessions_db())?;
    let mut troubles = Vec::new();
    if let Some(sessions) = &sessions {
        let stop = sessions.stop_of(&options.node, registered.incarnation)?;
        troubles.extend(stop.map(|stop| format!("it applies nothing more: {}", stop.reason)));
        troubles.extend(sessions.alerts(Some(&options.node))?.into_iter().map(|alert| alert.text));
    }
    let downstream = Downstream::look(&root, &registered)?;
    let no_data_store = || ExplainError::NoDataStore { root: options.root.clone() };
    let cds = Cds::look(&root.cds_db()).map_err(TrailError::from)?.ok_or_else(no_data_store)?;
    let table = table_index(&cds, &options.table)?;
    let declared = &cds.dock().tables[table];
    let key = given_key(&cds, table, &options.key)?;
    let found = cds.find_row(table, &key).map_err(TrailError::from)?;
    let (key, row) = found.map_or((key, None), |(key, row)| (key, Some(row)));
    // The settings as of the position: those of the server database may lie ahead of it.
    let running = cds.running_node(&options.node).map_err(TrailError::from)?;
    let node = Node { state: registered.state, ..running.unwrap_or(registered) };
    let view = cds.node_view(&node).map_err(TrailError::from)?;
    let verdict = row.map(|row| cds.explain(&view, table, &row)).transpose().map_err(TrailError::from)?;
    let mut trail = trail::follow(&root, downstream, &cds, &view, Target { table: &declared.name, key: &key })?;
    trail.node_change = database.last_control_of(&options.node, trail.position)?;
    trail.logged = database.last_logged(&declared.name, &key)?;
    trail.log_begin = database.log_begin()?;
    trail.log_end = database.log_end()?;
    let place = trail.place(is_sent(&cds, table, verdict.as_ref()));
    let stopped = cds.stopped().map_err(TrailError::from)?;
    let held_by = held_by(&cds, table, &view, &trail, place, &troubles, &stopped);
    Ok(Explanation { node, table: declared.name.clone(), key, verdict, trail, place, held_by })
}

/// Returns whether the node should have the row: it sees it, and the object's rows travel down.
fn is_sent(cds: &Cds, table: TableIndex, verdict: Option<&RowVerdict>) -> bool {
    verdict.is_some_and(|verdict| verdict.visible) && !is_upload_only(cds, table)
}

fn is_upload_only(cds: &Cds, table: TableIndex) -> bool {
    let object = cds.dock().tables[table].object.and_then(|object| cds.dock().objects.get(object));
    object.is_some_and(|object| object.direction == Direction::Upload)
}

fn table_index(cds: &Cds, name: &str) -> Result<TableIndex, ExplainError> {
    cds.dock().table(name).ok_or_else(|| ExplainError::Table {
        table: name.to_owned(),
        known: cds.dock().tables.iter().map(|table| table.name.as_str()).collect::<Vec<_>>().join(", "),
    })
}

/// Returns the key that was typed: by the declared types of its columns, unless the row is found under another reading.
fn given_key(cds: &Cds, table: TableIndex, texts: &[String]) -> Result<RowKey, ExplainError> {
    let declared = &cds.dock().tables[table];
    let names: Vec<&str> =
        declared.key.iter().filter_map(|column| declared.columns.get(*column)).map(|column| column.name.as_str()).collect();
    if names.len() != texts.len() {
        return Err(ExplainError::Key { table: declared.name.clone(), columns: names.join(", "), given: texts.len() });
    }
    let shape = cds.schema().table(&declared.name);
    let is_text = |name: &str| {
        let kind = shape.and_then(|shape| shape.columns.get(shape.column(name)?)).map(|column| column.decl_type.to_ascii_uppercase());
        kind.is_some_and(|kind| ["CHAR", "TEXT", "CLOB"].iter().any(|part| kind.contains(part)) && !kind.contains("INT"))
    };
    let as_declared: RowKey = names.iter().zip(texts).map(|(name, text)| typed(text, is_text(name))).collect();
    let as_text: RowKey = texts.iter().map(|text| typed(text, true)).collect();
    let as_number: RowKey = texts.iter().map(|text| typed(text, false)).collect();
    for key in [&as_declared, &as_number, &as_text] {
        if cds.find_row(table, key).map_err(TrailError::from)?.is_some() {
            return Ok(key.clone());
        }
    }
    Ok(as_declared)
}

/// Returns the value that a text stands for: `X'0A'` and `'a'` as in SQL, else by the column.
fn typed(text: &str, is_text: bool) -> Value {
    let quoted = |start: &str| text.strip_prefix(start).and_then(|rest| rest.strip_suffix('\''));
    if let Some(bytes) = quoted("X'").or_else(|| quoted("x'")).and_then(|digits| hex::decode(digits).ok()) {
        return Value::Blob(bytes);
    }
    if let Some(inner) = quoted("'") {
        return Value::text(&inner.replace("''", "'"));
    }
    if !is_text {
        if let Ok(integer) = text.parse() {
            return Value::Integer(integer);
        }
        if let Ok(real) = text.parse::<f64>()
            && real.is_finite()
        {
            return Value::Real(real);
        }
    }
    Value::text(text)
}

fn held(what: impl Into<String>, command: impl Into<String>) -> Held {
    Held { what: what.into(), command: command.into() }
}

/// Says what keeps the row's change from going on, and what will change the answer by itself.
fn held_by(
    cds: &Cds,
    table: TableIndex,
    view: &NodeView,
    trail: &Trail,
    place: Place,
    troubles: &[String],
    stopped: &[StoppedTable],
) -> Vec<Held> {
    let (name, dock) = (&view.node.name, cds.dock());
    let mut all = Vec::new();
    if let Some(StoppedTable { table, reason, .. }) = stopped.iter().find(|stopped| dock.table(&stopped.table) == Some(table)) {
        all.push(held(format!("table {table} is stopped ({reason}): its changes are left out"), "dockmaster deploy"));
    }
    if is_upload_only(cds, table) {
        all.push(held("rows of this object travel from nodes to the server only", ""));
    }
    if let Some(at) = trail.node_change {
        all.push(held(format!("a change of {name} itself is logged at {at} and not read yet: the rules above are those before it"), ""));
    }
    match place {
        Place::NotStarted => {
            all.push(held(format!("{name} was never extracted"), format!("remote-sync init on its machine, or dockmaster extract {name}")))
        }
        Place::Disabled => all.push(held(format!("{name} is disabled: nothing is routed to it"), format!("dockmaster node enable {name}"))),
        Place::Stale => all.push(held(
            format!("{name} was away for too long: what waited for it is gone"),
            "remote-sync init --replace --renew on its machine".to_owned(),
        )),
        Place::Log(_) => all.push(held(
            format!("the Transaction Processor is at {} of {}", trail.position, trail.log_end),
            "dockmaster run txnproc, unless the service runs",
        )),
        Place::Txnproc(_) => {
            let at = trail.router.map_or_else(|| "has not run".to_owned(), |router| format!("is at {router}"));
            all.push(held(format!("the Transaction Router {at}"), "dockmaster run router, unless the service runs"));
        }
        Place::Extract if !trail.extract_ready => all.push(held("its extract is not ready", "dockmaster status")),
        Place::Extract => {
            all.push(held("its extract is ready, and the node has not synchronised with it", "remote-sync init, then sync, on its machine"))
        }
        Place::Outbox(at) => outbox_held(&view.node, trail, at.file, &mut all),
        Place::Received(at) => {
            let applied = trail.mark.as_ref().map(|mark| mark.applied.file).unwrap_or_default();
            all.push(held(
                format!("{name} has the file and has applied up to file {applied} of {}", at.file),
                "remote-sync status on its machine",
            ));
        }
        Place::Applied(_) | Place::InExtract | Place::NeverSent => {}
    }
    if matches!(place, Place::Outbox(_) | Place::Received(_) | Place::Extract) {
        all.extend(troubles.iter().map(|trouble| held(trouble.clone(), format!("dockmaster node show {name}"))));
    }
    all
}

fn outbox_held(node: &Node, trail: &Trail, file: FileNo, all: &mut Vec<Held>) {
    let name = &node.name;
    match (&trail.mark, trail.missing.filter(|missing| *missing <= file)) {
        (_, Some(missing)) => all.push(held(format!("file {missing} is gone from its outbox"), format!("dockmaster extract {name}"))),
        (None, None) if node.extracted != node.incarnation => {
            all.push(held(format!("{name} has not called since its stream began anew"), "remote-sync sync on its machine"));
        }
        (None, None) if trail.extract_ready => {
            all.push(held("its extract is ready, and the node has not synchronised with it", "remote-sync init, then sync, on its machine"))
        }
        (None, None) => all.push(held("its extract is not ready", "dockmaster status")),
        (Some(mark), None) => {
            let what = match mark.received {
                FileNo(0) => format!("{name} has received no file yet"),
                received => format!("{name} has received up to file {received}"),
            };
            all.push(held(what, "remote-sync sync on its machine"));
        }
    }
}

/// Says what a file told the node, for people.
pub fn sent_text(sent: Sent) -> &'static str {
    match sent {
        Sent::Put => "the whole row",
        Sent::Update => "changed columns",
        Sent::Lost => "the file is gone",
        Sent::Delete => "a delete: it left the view, or is gone",
    }
}
