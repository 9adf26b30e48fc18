//! What the stages do, one pass at a time: `run` for cron; the service calls the same pieces from its threads.

use super::extract::{self, CommonPart, ExtractError, ExtractJob};
use super::merger::{Merger, MergerError, MergerOptions};
use super::purge::{Purge, PurgeError};
use super::rebuild::{lost_ledger, restore_ledger};
use super::reconcile::ask_scheduled;
use super::router::{Router, RouterError, RouterOptions};
use super::txnproc::{PendingExtracts, TxnProc, TxnProcError};
use crate::base::clock;
use crate::base::ids::NodeName;
use crate::base::limits::{SESSIONS_MAX, SESSIONS_PER_ADDRESS_MAX};
use crate::base::step::Progress;
use crate::base::workers::in_runs;
use crate::cds::CdsError;
use crate::cds::layout::{connect_read_only, read_dock, read_state};
use crate::cds::nodes::NodeScope;
use crate::docking::room::{NoRoom, Room};
use crate::docking::root::DockingRoot;
use crate::docking::sessions::SessionsDb;
use crate::model::dock::Dock;
use crate::rules::definition::{CarrierSettings, MergeErrors};
use crate::rules::retention::Retention;
use crate::store::control::Control;
use crate::store::passing::is_out_of_room;
use crate::store::sqlite::StoreError;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

/// Why the service stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The Transaction Processor.
    #[error("Transaction Processor: {0}")]
    TxnProc(#[from] TxnProcError),
    /// The Transaction Router.
    #[error("Transaction Router: {0}")]
    Router(#[from] RouterError),
    /// An extract.
    #[error("extract: {0}")]
    Extract(#[from] ExtractError),
    /// The rows of an extract could not be selected.
    #[error("extract of node {node}: selecting its rows")]
    Select {
        /// The node.
        node: NodeName,
        /// Why.
        source: rusqlite::Error,
    },
    /// The disk of the docking root is nearly full.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The purge.
    #[error("purge: {0}")]
    Purge(#[from] PurgeError),
    /// The Transaction Merger.
    #[error("Transaction Merger: {0}")]
    Merger(#[from] MergerError),
    /// The Synchronization Manager.
    #[error("Synchronization Manager: {0}")]
    Sync(#[from] super::syncmgr::SyncError),
    /// The identity of the server.
    #[error(transparent)]
    Identity(#[from] super::identity::IdentityError),
    /// A node could not be started anew.
    #[error(transparent)]
    Node(#[from] super::nodes::NodeError),
    /// The server database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder of the server database cannot be watched.
    #[error("watching {path}")]
    Watch {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: notify::Error,
    },
    /// A thread could not be started, or ended by a fault of the program.
    #[error("stage {0} ended unexpectedly")]
    Thread(&'static str),
}

impl ServeError {
    /// Returns whether trying again may help: a lock that somebody holds, a full disk.
    pub fn is_transient(&self) -> bool {
        if is_out_of_room(self) {
            return true;
        }
        match self {
            ServeError::TxnProc(error) => error.is_transient(),
            ServeError::Router(error) => error.is_transient(),
            ServeError::Store(error) => error.is_busy(),
            ServeError::Purge(error) => error.is_transient(),
            ServeError::Merger(error) => error.is_transient(),
            ServeError::NoRoom(_) => true,
            _ => false,
        }
    }
}

/// What the service runs on.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The server database.
    pub database: PathBuf,
    /// Folder of the server's identity.
    pub identity: PathBuf,
    /// Address of the Synchronization Manager, e.g. `127.0.0.1:40400`.
    pub listen: String,
    /// Command that is told what begins to need a person; `None` = nobody is told.
    pub alert_command: Option<String>,
    /// Minutes after midnight UTC at which a new day begins for time windows.
    pub day_starts_minutes: i64,
    /// How often tables without triggers are compared.
    pub compare_every: std::time::Duration,
    /// How long delivered files are kept, and when a node is stale.
    pub retention: Retention,
    /// Most bytes per second that all sessions send together; `None` = as fast as the line is.
    pub send_bytes_per_second: Option<u64>,
    /// Below so many free bytes on the disk of the docking root routing pauses.
    pub min_free_bytes: u64,
    /// Most sessions at once.
    pub sessions_max: usize,
    /// Most sessions at once from one address.
    pub sessions_per_address: usize,
    /// What a refused unit of a node means to its later ones.
    pub merge_errors: MergeErrors,
    /// Places where letters lie for nodes that no line reaches.
    pub carriers: Vec<CarrierSettings>,
}

impl ServeOptions {
    pub(super) fn merger(&self) -> MergerOptions {
        let keep = std::time::Duration::from_secs(self.retention.keep_seconds.unsigned_abs());
        MergerOptions { errors: self.merge_errors, keep, ..MergerOptions::default() }
    }

    /// Returns options with the ordinary limits; a day begins at midnight, and the identity lies beside the database.
    pub fn new(database: impl Into<PathBuf>, listen: impl Into<String>) -> ServeOptions {
        let database = database.into();
        ServeOptions {
            identity: database.with_file_name("identity"),
            database,
            listen: listen.into(),
            alert_command: None,
            day_starts_minutes: 0,
            compare_every: std::time::Duration::from_secs(600),
            retention: Retention::default(),
            send_bytes_per_second: None,
            min_free_bytes: 0,
            sessions_max: SESSIONS_MAX,
            sessions_per_address: SESSIONS_PER_ADDRESS_MAX,
            merge_errors: MergeErrors::default(),
            carriers: Vec::new(),
        }
    }
}

/// What one pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Pass {
    /// Units of nodes merged or held.
    pub merged: u64,
    /// Units taken from the log.
    pub units: u64,
    /// Rounds routed.
    pub rounds: u64,
    /// Extracts built.
    pub extracts: u64,
    /// Files deleted that nobody needs any more.
    pub purged: u64,
}

/// Stages of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The Transaction Merger: what nodes have sent goes into the server database.
    Merger,
    /// The Transaction Processor, with the extracts that it starts.
    TxnProc,
    /// The Transaction Router.
    Router,
}

/// Runs the given stages until nothing waits of what was committed when the pass began, as cron does.
pub fn run(options: &ServeOptions, root: &Arc<DockingRoot>, stages: &[Stage]) -> Result<Pass, ServeError> {
    let mut pass = Pass::default();
    let room = Room::new(root, options.min_free_bytes);
    // First: what it does to the server database goes on with the same pass.
    if stages.contains(&Stage::Merger)
        && let Some(mut merger) = Merger::open(&options.database, Arc::clone(root), options.merger())?
    {
        while merger.step()? == Progress::Worked {
            room.look()?;
        }
        pass.merged = merger.merged();
    }
    if stages.contains(&Stage::TxnProc) {
        let mut txnproc = TxnProc::open(&options.database, Arc::clone(root))?;
        restore_ledger(&txnproc, root)?;
        restart_lost_extracts(&txnproc, root)?;
        tick(&txnproc, options)?;
        ask_scheduled(txnproc.server(), txnproc.cds().dock())?;
        // What is committed later is for the next pass: programs that write without a pause must not keep this one for ever.
        let goal = txnproc.server().log_end()?;
        loop {
            room.look()?;
            let step = txnproc.step()?;
            // Each snapshot is a thread's.
            let made = in_runs(step.extracts, 1, |snapshots| -> Result<u64, ServeError> {
                let mut made = 0;
                for pending in &snapshots {
                    let mut extracts = ExtractsOf::new(pending);
                    for node in &pending.nodes {
                        extracts.build(node, root)?;
                        made += 1;
                    }
                }
                Ok(made)
            })?;
            pass.extracts += made.iter().sum::<u64>();
            if step.progress == Progress::Idle {
                break;
            }
            pass.units += 1;
            if txnproc.cds().state().position >= goal {
                break;
            }
        }
        txnproc.purge_log()?;
    }
    if stages.contains(&Stage::Router) {
        if lost_ledger(root)?.is_some() {
            // The Router alone would begin at the first file that is left, and give numbers anew that nodes have had.
            restore_ledger(&TxnProc::open(&options.database, Arc::clone(root))?, root)?;
        }
        let mut router = Router::open(Arc::clone(root), RouterOptions::default())?;
        loop {
            room.look()?;
            match router.step()? {
                Progress::Worked => pass.rounds += 1,
                Progress::Idle => break,
            }
        }
        let mut purge = Purge::new(Arc::clone(root), &options.database, options.retention);
        while purge.step(clock::now_seconds())? == Progress::Worked {}
        pass.purged = purge.deleted();
    }
    Ok(pass)
}

/// Begins a new day for time windows, as a row of the log, when one has begun. A long step is left to a person (R39).
pub(super) fn tick(txnproc: &TxnProc, options: &ServeOptions) -> Result<(), ServeError> {
    if !has_windows(txnproc.cds().dock()) {
        return Ok(());
    }
    let (was, today) = (txnproc.cds().state().day, window_day(options.day_starts_minutes));
    if today > was && !(PendingTick { day: was, days: today - was }).is_long() {
        txnproc.server().append_control(&Control::Tick { day: today })?;
    }
    Ok(())
}

/// Most days that windows go on by themselves: behind more there may be a clock that was set wrong.
const TICK_DAYS_MAX: i64 = 2;

/// How far windows are behind today.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingTick {
    /// Day from which they count, days since 1970.
    pub day: i64,
    /// Days since then.
    pub days: i64,
}

impl PendingTick {
    /// Returns whether the step waits for a person.
    pub fn is_long(&self) -> bool {
        self.days > TICK_DAYS_MAX
    }
}

fn has_windows(dock: &Dock) -> bool {
    dock.objects.iter().any(|object| object.window.is_some()) || dock.rules.iter().any(|rule| rule.window.is_some())
}

/// Returns how far the windows of a docking root are behind a day; `None` if there are none, or no data store.
///
/// # Errors
/// The data store cannot be read.
pub fn pending_tick(root: &Path, today: i64) -> Result<Option<PendingTick>, CdsError> {
    let path = DockingRoot::look(root).cds_db();
    if !path.exists() {
        return Ok(None);
    }
    let read = connect_read_only(&path).and_then(|conn| Ok(read_state(&conn)?.zip(read_dock(&conn)?)));
    let found = read.map_err(|source| CdsError::Sql { path, what: "read the commit point", source })?;
    Ok(found.filter(|(_, dock)| has_windows(dock)).map(|(state, _)| PendingTick { day: state.day, days: (today - state.day).max(0) }))
}

/// Returns the day that time windows count from, days since 1970 (UTC).
pub fn window_day(day_starts_minutes: i64) -> i64 {
    let minutes = clock::now_seconds() / 60;
    (minutes - day_starts_minutes).div_euclid(24 * 60)
}

/// Starts nodes anew whose extract was lost in a crash: an active node without a finished extract of its incarnation.
pub(super) fn restart_lost_extracts(txnproc: &TxnProc, root: &DockingRoot) -> Result<(), ServeError> {
    // A stream that began in band has no extract.
    let lost: Vec<NodeName> = txnproc.nodes_without_extract(|scope| {
        scope.node.incarnation == scope.node.extracted && !root.extract_toc(&scope.node.name, scope.node.incarnation).exists()
    });
    for name in lost {
        tracing::warn!(node = %name, "its extract was not finished, it starts anew");
        super::nodes::start(txnproc.server(), &name)?;
    }
    Ok(())
}

/// Builds the extracts of one snapshot: what several nodes of a model have in common is made once.
#[derive(Debug)]
pub struct ExtractsOf<'p> {
    pending: &'p PendingExtracts,
    /// The model and its common part, or `None` for a node that is alone with its model.
    common: Option<(Option<String>, CommonPart)>,
}

impl<'p> ExtractsOf<'p> {
    /// Returns a builder for the extracts of one unit.
    pub fn new(pending: &'p PendingExtracts) -> ExtractsOf<'p> {
        ExtractsOf { pending, common: None }
    }

    /// Builds the extract of one of the unit's nodes.
    ///
    /// # Errors
    /// Rows could not be selected, or the extract could not be written.
    pub fn build(&mut self, node: &NodeScope, root: &DockingRoot) -> Result<(), ServeError> {
        let select = |source| ServeError::Select { node: node.node.name.clone(), source };
        let model = &node.node.model;
        let job = job_of(self.pending, node, root);
        if self.common.as_ref().is_some_and(|(made, _)| made != model) {
            self.common = None;
        }
        let several = self.pending.nodes.iter().filter(|other| other.node.model == *model).nth(1).is_some();
        if several && self.common.is_none() {
            self.pending.select_common(model.as_deref()).map_err(select)?;
            self.common = Some((model.clone(), CommonPart::build(&job)?));
        }
        match &self.common {
            Some((_, common)) => {
                self.pending.select_own(node).map_err(select)?;
                extract::build(&ExtractJob { common: Some(common), ..job })?;
            }
            None => {
                self.pending.select_rows(node).map_err(select)?;
                extract::build(&job)?;
            }
        }
        is_ready(node, root);
        Ok(())
    }
}

fn job_of<'j>(pending: &'j PendingExtracts, node: &'j NodeScope, root: &'j DockingRoot) -> ExtractJob<'j> {
    ExtractJob {
        cds: &pending.snapshot,
        dock: &pending.dock,
        schema: &pending.schema,
        server_id: pending.state.server_id,
        server_name: &pending.state.server_name,
        epoch: pending.state.epoch,
        node: &node.node.name,
        incarnation: node.node.incarnation,
        unit: pending.state.position,
        revision: pending.state.revision,
        root,
        finished: pending.finished.get(&node.node.name).map(Vec::as_slice).unwrap_or_default(),
        common: None,
    }
}

fn is_ready(node: &NodeScope, root: &DockingRoot) {
    // Whatever a person had to look at was about the former extract; a node that has a new one begins anew.
    let node = &node.node.name;
    if let Err(error) = SessionsDb::open(&root.sessions_db()).and_then(|sessions| sessions.clear_alerts(node)) {
        tracing::error!(stage = "extract", %node, %error, "its alerts could not be taken back");
    }
}
