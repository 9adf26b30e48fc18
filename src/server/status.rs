//! `status`: how far everybody is, and what waits for a person, with the command to type.
//!
//! Reads the server database and the databases of the docking root without a lock and without changing anything, so it can be
//! asked at any time, while the service runs or not. What is not there yet (nothing deployed, no Router so far) is said, not an error.
//! The figures come from several databases one after the other, while stages go on; they are read from the last stage to the
//! first, so that `log >= txnproc >= router >= applied` holds in every answer.

use super::pass::{PendingTick, pending_tick, window_day};
use crate::base::ids::{FileNo, Incarnation, NodeName, Revision, TxnId};
use crate::base::limits::RECONCILED_KEPT_MAX;
use crate::base::space::{self, Space};
use crate::cds::CdsError;
use crate::cds::compare::{Found, Reconciled, read_reconciled};
use crate::cds::guard::{UnreadableDates, unreadable_dates};
use crate::cds::layout::{StoppedTable, connect_read_only, last_routable, read_dock, read_state, read_stopped};
use crate::docking::backlog::{Backlog, LedgerView};
use crate::docking::error::DockingError;
use crate::docking::room::{NoRoom, is_low};
use crate::docking::root::{Access, DockingRoot};
use crate::docking::sessions::{Mark, SessionsDb, SessionsError};
use crate::model::node::{Node, NodeState};
use crate::model::upload::MessageStatus;
use crate::store::merge_units::UnitCounts;
use crate::store::sqlite::{ServerDatabase, StoreError};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// After so many seconds without a word a node is called silent: long enough for a holiday, far shorter than retention.
pub const SILENT_AFTER_SECONDS: i64 = 30 * 86_400;
/// A node that watches says something at least so often, in seconds; after twice that it is not connected any more.
const HEARD_WITHIN_SECONDS: i64 = 90;

/// From so many log rows behind on the light is yellow, or red.
const LAG_YELLOW: i64 = 100_000;
const LAG_RED: i64 = 10_000_000;
/// With less room than this on the docking root's disk the light is yellow, or red.
const DISK_YELLOW_BYTES: u64 = 2 << 30;
const DISK_RED_BYTES: u64 = 200 << 20;

/// So many comparisons of tables are shown.
const COMPARISONS_SHOWN: usize = 5;

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The server database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The docking root.
    #[error(transparent)]
    Docking(#[from] DockingError),
    /// The history of sessions.
    #[error(transparent)]
    Sessions(#[from] SessionsError),
    /// The data store, by its own means.
    #[error(transparent)]
    Cds(#[from] CdsError),
    /// The data store.
    #[error("read {}", path.display())]
    DataStore {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

/// Where to look, and what time it is.
#[derive(Debug, Clone)]
pub struct StatusOptions {
    /// The server database.
    pub database: PathBuf,
    /// The docking root.
    pub root: PathBuf,
    /// Name of the server as the definition has it, for the time before the first deploy.
    pub server_name: String,
    /// Minutes after midnight UTC at which a new day begins for time windows.
    pub day_starts_minutes: i64,
    /// Seconds since 1970; says how long ago something was, decides nothing else.
    pub now: i64,
    /// Below so many free bytes routing pauses.
    pub min_free_bytes: u64,
}

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerStatus {
    /// Name of the server.
    pub server_name: String,
    /// Deployed definition; `None` = nothing is deployed.
    pub revision: Option<Revision>,
    /// End of the log.
    pub log: Option<TxnId>,
    /// How far the Transaction Processor is; `None` = it has not run yet.
    pub txnproc: Option<TxnId>,
    /// How far the Router is; `None` = it has not run yet.
    pub router: Option<TxnId>,
    /// Room on the disk of the docking root.
    pub free_bytes: Option<u64>,
    /// Sessions that known nodes ever began; `None` = there is no history yet.
    pub sessions_begun: Option<u64>,
    /// Every node, by name.
    pub nodes: Vec<NodeStatus>,
    /// What waits for a person and is not of one node.
    pub needs: Vec<Need>,
    /// Rows that stay at nodes because the date of their window cannot be read.
    pub unreadable_dates: Vec<UnreadableDates>,
    /// The last comparisons of tables with the data store that found something, newest first.
    pub reconciled: Vec<Reconciled>,
}

/// How a node is doing, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeCondition {
    /// Registered, no extract was made yet.
    Registered,
    /// An extract is ready or on its way; the node has not fetched it.
    Extracted,
    /// Its stream began anew, in band, since it called last; its database goes on.
    BegunAnew,
    /// It is connected.
    Watching,
    /// It calls now and then.
    Ok,
    /// It has not called for long.
    Silent,
    /// It cannot go on without a person.
    Stopped,
    /// Ended by the administrator.
    Disabled,
    /// Away for too long: its files are gone, it holds nothing back, and it begins anew when it comes back.
    Stale,
}

impl NodeCondition {
    /// Every condition.
    pub const ALL: [NodeCondition; 9] = [
        NodeCondition::Registered,
        NodeCondition::Extracted,
        NodeCondition::BegunAnew,
        NodeCondition::Watching,
        NodeCondition::Ok,
        NodeCondition::Silent,
        NodeCondition::Stopped,
        NodeCondition::Disabled,
        NodeCondition::Stale,
    ];
}

impl fmt::Display for NodeCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            NodeCondition::Registered => "registered",
            NodeCondition::Extracted => "extracted",
            NodeCondition::BegunAnew => "anew",
            NodeCondition::Watching => "watching",
            NodeCondition::Ok => "ok",
            NodeCondition::Silent => "silent",
            NodeCondition::Stopped => "stopped",
            NodeCondition::Disabled => "disabled",
            NodeCondition::Stale => "stale",
        })
    }
}

/// One node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeStatus {
    /// Its name.
    pub node: NodeName,
    /// How it is doing.
    pub condition: NodeCondition,
    /// Which extract it uses.
    pub incarnation: Incarnation,
    /// Last unit that it said it has applied.
    pub applied: Option<TxnId>,
    /// Seconds since it was heard last.
    pub heard_ago: Option<i64>,
    /// Last file routed to it, and the last unit that it covers.
    pub routed: Option<(FileNo, TxnId)>,
    /// Last file that lies durable in its inbox, as it said.
    pub received: Option<FileNo>,
    /// Last file that it said it has applied.
    pub applied_file: Option<FileNo>,
    /// What it has not applied yet.
    pub to_node: Backlog,
    /// Its own units, by what became of them.
    pub units: UnitCounts,
    /// What waits for a person.
    pub needs: Vec<Need>,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Light {
    /// All is well.
    Green,
    /// It should be looked at; everything goes on.
    Yellow,
    /// Something stands still.
    Red,
}

impl fmt::Display for Light {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Light::Green => "green",
            Light::Yellow => "yellow",
            Light::Red => "red",
        })
    }
}

/// Something that waits for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// What it is called as long as it lasts, whatever figures `what` holds.
    pub key: String,
    /// Yellow or red.
    pub level: Light,
    /// What is the matter.
    pub what: String,
    /// What to type.
    pub command: String,
}

impl ServerStatus {
    /// Returns the one light: the worst of what needs a person, of the lags, and of the disk.
    pub fn light(&self) -> Light {
        let needs = self.needs.iter().chain(self.nodes.iter().flat_map(|node| &node.needs)).map(|need| need.level);
        let behind = |position: Option<TxnId>| Some(self.log?.0 - position?.0);
        let lag = [self.txnproc, self.router].into_iter().filter_map(behind).max().unwrap_or_default();
        let of_lag = match lag {
            LAG_RED.. => Light::Red,
            LAG_YELLOW.. => Light::Yellow,
            _ => Light::Green,
        };
        let of_disk = match self.free_bytes {
            Some(0..DISK_RED_BYTES) => Light::Red,
            Some(DISK_RED_BYTES..DISK_YELLOW_BYTES) => Light::Yellow,
            _ => Light::Green,
        };
        needs.chain([of_lag, of_disk]).max().unwrap_or(Light::Green)
    }

    /// Returns how many nodes need a person.
    pub fn nodes_in_need(&self) -> usize {
        self.nodes.iter().filter(|node| !node.needs.is_empty()).count()
    }
}

/// Looks at everything.
///
/// # Errors
/// Something is there and cannot be read.
pub fn status(options: &StatusOptions) -> Result<ServerStatus, StatusError> {
    let database = ServerDatabase::open(&options.database)?;
    let root = DockingRoot::open(&options.root, Access::Look)?;
    let sessions = SessionsDb::open_to_read(&root.sessions_db())?;
    let ledger = LedgerView::open(&root.ledger_db())?;
    let space = space::free(root.path()).or_else(|| space::free(root.path().parent()?));
    let mut status = ServerStatus {
        server_name: options.server_name.clone(),
        revision: None,
        log: None,
        txnproc: None,
        router: None,
        free_bytes: space.map(|space| space.bytes),
        sessions_begun: None,
        nodes: Vec::new(),
        needs: Vec::new(),
        unreadable_dates: Vec::new(),
        reconciled: Vec::new(),
    };
    if !database.is_installed()? {
        status.needs.push(need(
            Light::Red,
            "deploy",
            format!("nothing is deployed in {}", options.database.display()),
            "dockmaster deploy",
        ));
        return Ok(status);
    }
    let marks: BTreeMap<NodeName, Mark> = match &sessions {
        Some(sessions) => sessions.marks()?.into_iter().map(|mark| (mark.node.clone(), mark)).collect(),
        None => BTreeMap::new(),
    };
    if let Some(sessions) = &sessions {
        status.sessions_begun = Some(sessions.begun()?);
    }
    if let Some(ledger) = &ledger {
        status.router = ledger.position()?;
    }
    if let Some((position, routable)) = txnproc_position(root.cds_db())? {
        status.txnproc = Some(position);
        // A new filling of the data store moves on without a file: the Router is behind only if a file waits for it.
        status.router = status.router.map(|router| if Some(router) >= routable { position.max(router) } else { router });
        if ledger.is_none() && routable.is_some() {
            status.needs.push(need(Light::Red, "ledger", no_ledger(root.ledger_db()), "dockmaster run"));
        }
    }
    if let Some(space) = space.filter(|space| is_low(*space, options.min_free_bytes)) {
        status.needs.push(no_room(root.path(), space, ledger.as_ref())?);
    }
    let identity = database.identity()?;
    status.server_name = identity.server_name;
    status.revision = Some(identity.revision);
    let stopped = database.stopped_tables()?;
    if let Some(tick) = pending_tick(root.path(), window_day(options.day_starts_minutes))?.filter(PendingTick::is_long) {
        let what = format!("time windows stand still: today is {} days later than the day that they count from", tick.days);
        status.needs.push(need(Light::Yellow, "windows", what, "dockmaster tick --accept"));
    }
    if status.txnproc.is_some() {
        status.reconciled = last_comparisons(root.cds_db())?;
        status.unreadable_dates = unreadable(root.cds_db())?;
    }
    let noted = if status.txnproc.is_some() { noted_stops(root.cds_db())? } else { Vec::new() };
    let others = noted.iter().filter(|(table, _)| !stopped.iter().any(|(known, _)| known == table));
    for (table, reason) in stopped.iter().chain(others) {
        // What was noted also tells what the stop means for nodes.
        let reason = noted.iter().find(|(known, _)| known == table).map_or(reason, |(_, reason)| reason);
        status.needs.push(need(
            Light::Red,
            format!("table {table}: {reason}"),
            format!("table {table} is stopped: {reason}; other tables go on"),
            "dockmaster deploy",
        ));
    }
    let mut units = database.unit_counts()?;
    for node in database.nodes()? {
        let mut of = node_status(&root, &node, marks.get(&node.name), sessions.as_ref(), ledger.as_ref(), options.now)?;
        of.units = units.remove(&node.name).unwrap_or_default();
        if let Some(errors) = of.units.get(&MessageStatus::Error).filter(|errors| **errors > 0) {
            of.needs.push(units_in_error(&database, &node.name, *errors)?);
        }
        status.nodes.push(of);
    }
    status.log = Some(database.log_end()?);
    if status.txnproc.is_none() {
        status.needs.push(need(
            Light::Red,
            "data store",
            format!("docking root {} has no data store", root.path().display()),
            "dockmaster deploy",
        ));
    }
    Ok(status)
}

/// Says that the ledger is lost.
fn no_ledger(path: PathBuf) -> String {
    format!("{}; the streams of all nodes begin anew, in band, once it is put back", DockingError::NoLedger { path })
}

/// Says that routing pauses for want of room, and what takes most of it.
fn no_room(root: &Path, space: Space, ledger: Option<&LedgerView>) -> Result<Need, StatusError> {
    let mut what = NoRoom { root: root.to_owned(), space }.to_string();
    if let Some((node, bytes)) = ledger.map(LedgerView::biggest_outbox).transpose()?.flatten() {
        what.push_str(&format!("; biggest: {node} outbox {:.1} MB", bytes as f64 / f64::from(1 << 20)));
    }
    Ok(need(Light::Red, "disk", what, format!("df -h {}", root.display())))
}

/// Returns how far the Transaction Processor is, and the last unit for which a file stands.
fn txnproc_position(path: PathBuf) -> Result<Option<(TxnId, Option<TxnId>)>, StatusError> {
    if !path.exists() {
        return Ok(None);
    }
    let read = connect_read_only(&path).and_then(|connection| match read_state(&connection)? {
        Some(state) => Ok(Some((state.position, last_routable(&connection)?))),
        None => Ok(None),
    });
    read.map_err(|source| StatusError::DataStore { path, source })
}

/// Returns the tables that the data store holds as stopped, with those that stand still because of them.
fn noted_stops(path: PathBuf) -> Result<Vec<(String, String)>, StatusError> {
    let read = connect_read_only(&path).and_then(|connection| read_stopped(&connection));
    let pair = |note: StoppedTable| (note.table, note.reason);
    read.map(|notes| notes.into_iter().map(pair).collect()).map_err(|source| StatusError::DataStore { path, source })
}

/// Returns the dates of windows that cannot be read.
fn unreadable(path: PathBuf) -> Result<Vec<UnreadableDates>, StatusError> {
    let read = connect_read_only(&path).and_then(|connection| match read_dock(&connection)? {
        Some(dock) => unreadable_dates(&connection, &dock),
        None => Ok(Vec::new()),
    });
    read.map_err(|source| StatusError::DataStore { path, source })
}

/// Returns the last comparisons that found something.
fn last_comparisons(path: PathBuf) -> Result<Vec<Reconciled>, StatusError> {
    let read = connect_read_only(&path).and_then(|connection| read_reconciled(&connection, 0, RECONCILED_KEPT_MAX as usize));
    let mut found = read.map_err(|source| StatusError::DataStore { path, source })?;
    found.retain(|of| of.found != Found::default());
    found.truncate(COMPARISONS_SHOWN);
    Ok(found)
}

fn node_status(
    root: &DockingRoot,
    node: &Node,
    seen: Option<&Mark>,
    sessions: Option<&SessionsDb>,
    ledger: Option<&LedgerView>,
    now: i64,
) -> Result<NodeStatus, StatusError> {
    let mut needs = Vec::new();
    let (mut alerts, mut connected, mut stop) = (Vec::new(), false, None);
    if let Some(sessions) = sessions {
        stop = sessions.stop_of(&node.name, node.incarnation)?.filter(|_| node.state == NodeState::Active);
        alerts = sessions.alerts(Some(&node.name))?;
        connected = sessions.is_watching(&node.name)?;
    }
    let mark = seen.filter(|mark| mark.incarnation == node.incarnation);
    // A stream that began anew in band since is still that of the same database.
    let goes_on = seen.filter(|mark| mark.incarnation >= node.extracted);
    let heard_ago = goes_on.map(|mark| (now - mark.last_seen).max(0));
    // A server that was killed leaves its sessions open: who was not heard lately is not connected.
    connected &= heard_ago.is_some_and(|ago| ago <= 2 * HEARD_WITHIN_SECONDS);
    if let Some(stop) = &stop {
        let what = format!("it applies nothing since {}: {}", ago_text(now - stop.since), stop.reason);
        needs.push(need(
            Light::Red,
            format!("stopped: {}", stop.reason),
            what,
            format!("dockmaster verify {0}, or dockmaster node show {0}", node.name),
        ));
    }
    // Whoever disabled a node has looked at it.
    if let (Some(newest), true) = (alerts.first(), node.state != NodeState::Disabled) {
        let more = if alerts.len() > 1 { format!(" (and {} more)", alerts.len() - 1) } else { String::new() };
        let key = format!("alert: {}", newest.text);
        needs.push(need(Light::Red, key, format!("{}{more}", newest.text), format!("dockmaster node show {}", node.name)));
    }
    let condition = match (node.state, mark) {
        (NodeState::Disabled, _) => NodeCondition::Disabled,
        (NodeState::Stale, _) => {
            let days = heard_ago.map_or_else(String::new, |ago| format!("not heard for {} days, ", ago / 86_400));
            let what = format!("{days}its files are gone; it holds nothing back. On its machine");
            needs.push(need(Light::Yellow, "stale", what, "remote-sync init --replace --renew"));
            NodeCondition::Stale
        }
        _ if !alerts.is_empty() || stop.is_some() => NodeCondition::Stopped,
        (NodeState::Registered, _) => NodeCondition::Registered,
        (NodeState::Active, None) if goes_on.is_none() => NodeCondition::Extracted,
        (NodeState::Active, Some(_)) if connected => NodeCondition::Watching,
        (NodeState::Active, _) if heard_ago.is_some_and(|ago| ago >= SILENT_AFTER_SECONDS) => {
            let days = heard_ago.unwrap_or_default() / 86_400;
            let what = format!("not heard for {days} days; its files are kept");
            needs.push(need(Light::Yellow, "silent", what, format!("dockmaster node disable {}", node.name)));
            NodeCondition::Silent
        }
        (NodeState::Active, None) => NodeCondition::BegunAnew,
        (NodeState::Active, Some(_)) => NodeCondition::Ok,
    };
    let to_node = match (ledger, node.state) {
        (Some(ledger), NodeState::Active) => {
            ledger.backlog(&node.name, node.incarnation, mark.map(|mark| mark.applied.file).unwrap_or_default())?
        }
        _ => Backlog::default(),
    };
    let (mut routed, received) = (None, mark.map(|mark| mark.received));
    if let (Some(ledger), NodeState::Active) = (ledger, node.state) {
        routed = ledger.routed(&node.name, node.incarnation)?;
        let next = ledger.next_file(&node.name, node.incarnation, received.unwrap_or_default())?;
        if let Some(file) = next.filter(|file| to_node.files > 0 && !root.outbox_file(&node.name, *file).exists()) {
            let what = format!("file {file} is gone from its outbox");
            needs.push(need(Light::Red, format!("missing {file}"), what, format!("dockmaster extract {}", node.name)));
        }
    }
    Ok(NodeStatus {
        routed,
        received,
        applied_file: mark.map(|mark| mark.applied.file),
        node: node.name.clone(),
        condition,
        incarnation: node.incarnation,
        applied: mark.map(|mark| mark.applied.unit),
        heard_ago,
        to_node,
        units: UnitCounts::new(),
        needs,
    })
}

/// Says that changes of a node wait for a person, and why the first one does.
fn units_in_error(database: &ServerDatabase, node: &NodeName, errors: u64) -> Result<Need, StatusError> {
    let held = database.held_units(node)?;
    let first = held.iter().find(|unit| unit.waits_for.is_none()).or(held.first());
    let reason = first.map_or_else(String::new, |unit| format!(": unit {}: {}", unit.id.number, unit.reason.as_deref().unwrap_or("-")));
    let errors = if errors == 1 { "1 error".to_owned() } else { format!("{errors} errors") };
    Ok(need(Light::Yellow, "units in error", format!("{errors}{reason}"), format!("dockmaster messages list --node {node}")))
}

/// Writes since when, for people.
fn ago_text(seconds: i64) -> String {
    match seconds {
        ..7_200 => format!("{} min", seconds.max(0) / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn need(level: Light, key: impl Into<String>, what: impl Into<String>, command: impl Into<String>) -> Need {
    Need { key: key.into(), level, what: what.into(), command: command.into() }
}
