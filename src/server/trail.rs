//! Where the last change of one row is on its way to one node: looked up stage by stage, decided by one pure function.
//!
//! Files that are retained are decoded, newest first; what was purged is said to be, never guessed. A file counts only if the database
//! of its stage names it.

use crate::base::ids::{FileNo, NodeName, TxnId};
use crate::base::limits::{EXPLAIN_FILES_MAX, SESSION_OFFER_FILES_MAX};
use crate::cds::explain::NodeView;
use crate::cds::{Cds, CdsError};
use crate::docking::error::DockingError;
use crate::docking::ledger::{Ledger, OutboxFile, Stream};
use crate::docking::queue;
use crate::docking::root::DockingRoot;
use crate::docking::sessions::{Mark, SessionsDb, SessionsError};
use crate::dx::error::DxError;
use crate::dx::reader::DownloadReader;
use crate::dx::txnproc_reader::TxnprocReader;
use crate::model::event::{NodeEvent, RowEvent, ScopeKey, UnitEvents};
use crate::model::node::{Node, NodeState};
use crate::model::operation::Operation;
use crate::model::value::RowKey;
use crate::store::logged::Logged;
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

/// Why the trail cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum TrailError {
    /// The docking root.
    #[error(transparent)]
    Docking(#[from] DockingError),
    /// The data store.
    #[error(transparent)]
    Cds(#[from] CdsError),
    /// The history of sessions.
    #[error(transparent)]
    Sessions(#[from] SessionsError),
    /// A file cannot be read.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: DxError,
    },
}

/// A place in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// The file.
    pub file: FileNo,
    /// The unit in it.
    pub unit: TxnId,
}

/// What a file tells a node to do with the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The whole row: it entered the node's view.
    Put,
    /// Changed columns.
    Update,
    /// It left the node's view, or is gone.
    Delete,
    /// Unknown: the file that was made of the row's last event is not there.
    Lost,
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Sent::Put => "put",
            Sent::Update => "update",
            Sent::Delete => "delete",
            Sent::Lost => "lost",
        })
    }
}

/// What is known of a row's way to a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Trail {
    /// State of the node in the server database.
    pub state: NodeState,
    /// End of the log.
    pub log_end: TxnId,
    /// The first row that the log still holds.
    pub log_begin: Option<TxnId>,
    /// The last log row that names the row.
    pub logged: Option<Logged>,
    /// A change of the node itself that the Transaction Processor has not read.
    pub node_change: Option<TxnId>,
    /// Whether the node's stream runs as of the Transaction Processor's position.
    pub running: bool,
    /// How far the Transaction Processor is.
    pub position: TxnId,
    /// The last txnproc file with an event of the row, whomever it concerns.
    pub changed: Option<At>,
    /// First txnproc file that was searched.
    pub txnproc_from: Option<FileNo>,
    /// An event that concerns the node and is not routed yet.
    pub waiting: Option<At>,
    /// How far the Router is; `None` = it has not run yet.
    pub router: Option<TxnId>,
    /// The unit after which the node's files begin; `None` = its start is not found.
    pub start: Option<TxnId>,
    /// The last file of the node that names the row, and what it says.
    pub sent: Option<(At, Sent)>,
    /// First file of the node that was searched.
    pub outbox_from: Option<FileNo>,
    /// A file that the ledger names, that the node has not received, and that is not there.
    pub missing: Option<FileNo>,
    /// Whether the node's extract is ready.
    pub extract_ready: bool,
    /// What the node has said.
    pub mark: Option<Mark>,
}

/// Where the row's last change for the node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The node was never extracted.
    NotStarted,
    /// The node was ended.
    Disabled,
    /// The node was away for too long: what waited for it is gone, and it begins anew when it comes back.
    Stale,
    /// In the log, not read yet.
    Log(TxnId),
    /// In a txnproc file, not routed yet.
    Txnproc(At),
    /// In the extract; the node has not synchronised with it yet.
    Extract,
    /// In the node's outbox.
    Outbox(At),
    /// The node has the file and has not applied it.
    Received(At),
    /// The node has applied it.
    Applied(At),
    /// It came with the extract.
    InExtract,
    /// Nothing was sent: not in the extract, and in none of the files.
    NeverSent,
}

impl Trail {
    /// Returns where the row's last change for the node is. `visible` is the verdict of the rules at the Transaction Processor's position.
    pub fn place(&self, visible: bool) -> Place {
        match self.state {
            NodeState::Registered => return Place::NotStarted,
            NodeState::Disabled => return Place::Disabled,
            NodeState::Stale => return Place::Stale,
            NodeState::Active => {}
        }
        if let Some(at) = self.node_change.filter(|_| !self.running) {
            return Place::Log(at);
        }
        if let Some(logged) = self.logged.filter(|logged| logged.at > self.position) {
            return Place::Log(logged.at);
        }
        if let Some(waiting) = self.waiting {
            return Place::Txnproc(waiting);
        }
        let Some(mark) = &self.mark else {
            return match self.sent {
                Some((at, _)) => Place::Outbox(at),
                None if visible => Place::Extract,
                None => Place::NeverSent,
            };
        };
        match self.sent {
            Some((at, _)) if mark.applied.file >= at.file || mark.applied.unit >= at.unit => Place::Applied(at),
            Some((at, _)) if mark.received >= at.file => Place::Received(at),
            Some((at, _)) => Place::Outbox(at),
            None if visible => Place::InExtract,
            None => Place::NeverSent,
        }
    }
}

/// What the stages after the Transaction Processor say, looked at first to last stage backwards: a figure of an earlier stage is never older.
#[derive(Debug)]
pub struct Downstream {
    mark: Option<Mark>,
    stream: Option<Stream>,
    router: Option<TxnId>,
    /// Files that the ledger names, that the node has not received, and that are not there.
    missing: Vec<OutboxFile>,
}

impl Downstream {
    /// Looks at sessions and ledger.
    ///
    /// # Errors
    /// A database is there and cannot be read.
    pub fn look(root: &DockingRoot, node: &Node) -> Result<Downstream, TrailError> {
        let mark = match SessionsDb::open_to_read(&root.sessions_db())? {
            Some(sessions) => sessions.mark(&node.name, node.incarnation)?,
            None => None,
        };
        let mut found = Downstream { mark, stream: None, router: None, missing: Vec::new() };
        if let Some(ledger) = Ledger::look(&root.ledger_db())? {
            found.stream = ledger.stream(&node.name)?;
            found.router = Some(ledger.state()?.position);
            let received = found.mark.as_ref().map(|mark| mark.received).unwrap_or_default();
            let files = ledger.files_after(&node.name, node.incarnation, received, SESSION_OFFER_FILES_MAX)?;
            found.missing = files.into_iter().filter(|file| !root.outbox_file(&node.name, file.file_no).exists()).collect();
        }
        Ok(found)
    }
}

/// The row, by the names that files use.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Its table.
    pub table: &'a str,
    /// Its primary key.
    pub key: &'a RowKey,
}

/// Follows a row from the txnproc files to the node. What the log says is added by the caller.
///
/// # Errors
/// A file or database is there and cannot be read.
pub fn follow(root: &DockingRoot, downstream: Downstream, cds: &Cds, view: &NodeView, target: Target<'_>) -> Result<Trail, TrailError> {
    let node = &view.node;
    let Downstream { mark, stream, router, missing } = downstream;
    let stream = stream.filter(|stream| stream.active && stream.incarnation == node.incarnation);
    let mut trail = Trail {
        state: node.state,
        log_end: cds.state().position,
        log_begin: None,
        logged: None,
        node_change: None,
        running: cds.running_node(&node.name)?.is_some_and(|running| running.incarnation == node.incarnation),
        position: cds.state().position,
        changed: None,
        txnproc_from: None,
        waiting: None,
        router,
        start: stream.as_ref().map(|stream| stream.start_unit),
        sent: None,
        outbox_from: None,
        missing: missing.first().map(|file| file.file_no),
        extract_ready: root.extract_toc(&node.name, node.incarnation).exists(),
        mark,
    };
    let keys = if node.state == NodeState::Active { cds.scope_keys(view) } else { BTreeSet::new() };
    search_txnproc(root, cds, node, keys, target, &mut trail)?;
    if let Some(stream) = stream {
        search_outbox(root, &stream, target, &mut trail)?;
        let covers = |unit: TxnId| missing.iter().find(|file| file.first <= unit && unit <= file.last);
        if let Some((unit, file)) = trail.changed.and_then(|changed| Some((changed.unit, covers(changed.unit)?)))
            && trail.sent.is_none_or(|(at, _)| at.unit < unit)
        {
            trail.sent = Some((At { file: file.file_no, unit }, Sent::Lost));
        }
    }
    Ok(trail)
}

/// Reads txnproc files, newest first. On the way back the node's keys are taken back unit by unit, so each event is tested as the Router will.
fn search_txnproc(
    root: &DockingRoot,
    cds: &Cds,
    node: &Node,
    mut keys: BTreeSet<ScopeKey>,
    target: Target<'_>,
    trail: &mut Trail,
) -> Result<(), TrailError> {
    let routed = trail.router.unwrap_or_default();
    let last = cds.last_file()?.map(|file| file.file_no).unwrap_or_default();
    let mut unrouted = node.state == NodeState::Active;
    let files = queue::list(&root.txnproc())?.files;
    for file in files.iter().rev().filter(|file| file.file_no <= last).take(EXPLAIN_FILES_MAX) {
        let Some(units) = read_txnproc(&file.path, &node.name, target)? else { continue };
        trail.txnproc_from = Some(file.file_no);
        for unit in units.into_iter().rev() {
            let at = At { file: file.file_no, unit: unit.unit };
            unrouted &= unit.unit > routed;
            let after = keys.clone();
            let mut begins = false;
            for event in &unit.nodes {
                let named =
                    |numbers: &[u32]| numbers.iter().filter_map(|number| unit.keys.get(*number as usize)).cloned().collect::<Vec<_>>();
                match event {
                    NodeEvent::Keys { gained, lost, .. } => {
                        keys.extend(named(lost));
                        for key in named(gained) {
                            keys.remove(&key);
                        }
                    }
                    NodeEvent::Start { incarnation, .. } if unrouted && *incarnation == node.incarnation => {
                        // What came before is in the extract.
                        trail.start = Some(unit.unit);
                        unrouted = false;
                    }
                    NodeEvent::Restart { incarnation, .. } if unrouted && *incarnation == node.incarnation => {
                        // It begins with this unit and holds nothing before it.
                        trail.start = Some(TxnId(unit.unit.0 - 1));
                        keys.clear();
                        begins = true;
                    }
                    _ => {}
                }
            }
            if let Some(event) = unit.rows.first() {
                trail.changed.get_or_insert(at);
                if unrouted && trail.waiting.is_none() && concerns(event, &unit, &keys, &after) {
                    trail.waiting = Some(at);
                }
            }
            unrouted &= !begins;
        }
        if trail.changed.is_some() && (!unrouted || trail.waiting.is_some()) {
            break;
        }
    }
    Ok(())
}

/// Returns whether the Router will send an event to a node with these keys before and after the unit.
fn concerns(event: &RowEvent, unit: &UnitEvents, before: &BTreeSet<ScopeKey>, after: &BTreeSet<ScopeKey>) -> bool {
    let meets = |numbers: &[u32], held: &BTreeSet<ScopeKey>| {
        numbers.iter().filter_map(|number| unit.keys.get(*number as usize)).any(|key| held.contains(key))
    };
    match (meets(&event.keys_before, before), meets(&event.keys_after, after)) {
        (true, true) => !event.changed.is_empty(),
        (had, has) => had || has,
    }
}

/// Opens a file that may be purged while it is looked for; `None` then.
fn open(path: &Path) -> Result<Option<BufReader<File>>, TrailError> {
    match File::open(path) {
        Ok(file) => Ok(Some(BufReader::new(file))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TrailError::File { path: path.to_owned(), source: DxError::Io { operation: "open", source } }),
    }
}

/// Returns the units of a file with nothing left in them but the row and the node, those with neither left out.
fn read_txnproc(path: &Path, node: &NodeName, target: Target<'_>) -> Result<Option<Vec<UnitEvents>>, TrailError> {
    let Some(file) = open(path)? else { return Ok(None) };
    let damaged = |source| TrailError::File { path: path.to_owned(), source };
    let mut reader = TxnprocReader::open(file).map_err(damaged)?;
    let mut units = Vec::new();
    for unit in reader.units() {
        let mut unit = unit.map_err(damaged)?;
        let tables = std::mem::take(&mut unit.tables);
        let is_target =
            |event: &RowEvent| tables.get(event.table as usize).is_some_and(|table| table.name == target.table) && event.key == *target.key;
        unit.rows.retain(is_target);
        unit.nodes.retain(|event| {
            let (NodeEvent::Start { node: of, .. }
            | NodeEvent::Stop { node: of }
            | NodeEvent::Keys { node: of, .. }
            | NodeEvent::Restart { node: of, .. }) = event;
            of == node
        });
        if !unit.rows.is_empty() || !unit.nodes.is_empty() {
            units.push(unit);
        }
    }
    Ok(Some(units))
}

fn search_outbox(root: &DockingRoot, stream: &Stream, target: Target<'_>, trail: &mut Trail) -> Result<(), TrailError> {
    let files = queue::list(&root.outbox(&stream.node))?.files;
    for file in files.iter().rev().filter(|file| file.file_no <= stream.last_file).take(EXPLAIN_FILES_MAX) {
        let Some(source) = open(&file.path)? else { continue };
        let damaged = |source| TrailError::File { path: file.path.clone(), source };
        let mut reader = DownloadReader::open(source).map_err(damaged)?;
        if reader.header().incarnation != stream.incarnation {
            continue;
        }
        trail.outbox_from = Some(file.file_no);
        let mut found = None;
        for item in reader.operations() {
            let (unit, heading, operation) = item.map_err(damaged)?;
            if heading.name != target.table {
                continue;
            }
            let is_target = match &operation {
                Operation::Delete { key } | Operation::Update { key, .. } => key == target.key,
                Operation::Put { row } => heading.key.iter().map(|column| row.get(usize::from(*column))).eq(target.key.iter().map(Some)),
            };
            if is_target {
                let sent = match operation {
                    Operation::Delete { .. } => Sent::Delete,
                    Operation::Update { .. } => Sent::Update,
                    Operation::Put { .. } => Sent::Put,
                };
                found = Some((At { file: file.file_no, unit }, sent));
            }
        }
        if found.is_some() {
            trail.sent = found;
            return Ok(());
        }
    }
    Ok(())
}
