//! `serve` and `run`: the stages, each on a thread of its own, woken by events.
//!
//! A change of the server database's write-ahead log wakes the Transaction Processor, a committed unit wakes the Router,
//! a committed round wakes the sessions. A slow poll is the safety net, never the mechanism.

use super::extract::{self, ExtractError, ExtractJob};
use super::router::{Router, RouterError, RouterOptions};
use super::syncmgr::{self, SyncError, SyncOptions};
use super::txnproc::{PendingExtract, TxnProc, TxnProcError};
use crate::base::ids::NodeName;
use crate::base::step::{Progress, Wake};
use crate::docking::root::DockingRoot;
use crate::store::control::Control;
use crate::store::sqlite::StoreError;
use notify::Watcher;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

/// Safety net for a lost event.
const POLL: Duration = Duration::from_secs(5);
/// Pause after a fault that may pass by itself: a lock, a full disk.
const RETRY: Duration = Duration::from_secs(1);
/// Extracts built at once.
const EXTRACT_WORKERS: usize = 2;

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
    /// A node could not be started anew.
    #[error(transparent)]
    Node(#[from] super::nodes::NodeError),
    /// The Synchronization Manager.
    #[error("Synchronization Manager: {0}")]
    Sync(#[from] SyncError),
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
        match self {
            ServeError::TxnProc(error) => error.is_transient(),
            ServeError::Router(error) => error.is_transient(),
            ServeError::Extract(ExtractError::Disk { source, .. }) => source.is_no_space(),
            ServeError::Store(error) => error.is_busy(),
            _ => false,
        }
    }
}

/// What the service runs on.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The server database.
    pub database: PathBuf,
    /// Address of the Synchronization Manager, e.g. `127.0.0.1:40400`.
    pub listen: String,
    /// Minutes after midnight UTC at which a new day begins for time windows.
    pub day_starts_minutes: i64,
}

/// What one pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Pass {
    /// Units taken from the log.
    pub units: u64,
    /// Rounds routed.
    pub rounds: u64,
    /// Extracts built.
    pub extracts: u64,
}

/// Stages of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The Transaction Processor, with the extracts that it starts.
    TxnProc,
    /// The Transaction Router.
    Router,
}

/// Runs the given stages until nothing waits, as cron does.
pub fn run(options: &ServeOptions, root: &Arc<DockingRoot>, stages: &[Stage]) -> Result<Pass, ServeError> {
    let mut pass = Pass::default();
    if stages.contains(&Stage::TxnProc) {
        let mut txnproc = TxnProc::open(&options.database, Arc::clone(root))?;
        restart_lost_extracts(&txnproc, root)?;
        tick(&txnproc, options)?;
        loop {
            let step = txnproc.step()?;
            for pending in step.extracts {
                build_extract(pending, root)?;
                pass.extracts += 1;
            }
            if step.progress == Progress::Idle {
                break;
            }
            pass.units += 1;
        }
    }
    if stages.contains(&Stage::Router) {
        let mut router = Router::open(Arc::clone(root), RouterOptions::default())?;
        while router.step()? == Progress::Worked {
            pass.rounds += 1;
        }
    }
    Ok(pass)
}

/// Runs the service until `stop` is called or a stage fails for good.
pub fn serve(options: &ServeOptions, root: &Arc<DockingRoot>, stop: &Stop, ready: impl FnOnce(std::net::SocketAddr)) -> Result<(), ServeError> {
    let mut txnproc = TxnProc::open(&options.database, Arc::clone(root))?;
    let mut router = Router::open(Arc::clone(root), RouterOptions::default())?;
    restart_lost_extracts(&txnproc, root)?;
    let (routed_sender, routed) = tokio::sync::watch::channel(0u64);
    let routed_sender = Arc::new(routed_sender);
    let (read_log, route) = (stop.wake(), stop.wake());
    let _watcher = watch_log(&options.database, read_log.clone())?;

    let failure: Arc<Mutex<Option<ServeError>>> = Arc::default();
    let fail = |error: ServeError| {
        tracing::error!(%error, "stage failed, the service stops");
        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        stop.stop();
    };
    let sync_options = SyncOptions::new(&options.listen, Arc::clone(root), &options.database, routed);
    let manager = syncmgr::start(sync_options)?;
    ready(manager.address());

    std::thread::scope(|threads| {
        let (fail, extracts_routed, route_wake) = (&fail, &routed_sender, &route);
        let (queue, waiting) = mpsc::channel::<PendingExtract>();
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..EXTRACT_WORKERS {
            let waiting = Arc::clone(&waiting);
            threads.spawn(move || {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(pending) = next else { return };
                    if stop.is_stopped() {
                        // Not begun: the node starts anew with the next start of the service.
                        continue;
                    }
                    match build_extract(pending, root) {
                        Ok(()) => extracts_routed.send_modify(|round| *round += 1),
                        Err(error) => fail(error),
                    }
                }
            });
        }
        threads.spawn(move || {
            while !stop.is_stopped() {
                let worked = tick(&txnproc, options).and_then(|()| Ok(txnproc.step()?));
                match worked {
                    Ok(step) => {
                        for pending in step.extracts {
                            // The workers live as long as this thread, so the queue takes it.
                            if queue.send(pending).is_err() {
                                fail(ServeError::Thread("extract"));
                            }
                        }
                        match step.progress {
                            Progress::Worked => route_wake.set(),
                            Progress::Idle => drop(read_log.wait(POLL)),
                        }
                    }
                    Err(error) => pause_or_fail(error, stop, fail),
                }
            }
        });
        threads.spawn(move || {
            while !stop.is_stopped() {
                match router.step().map_err(ServeError::from) {
                    Ok(Progress::Worked) => extracts_routed.send_modify(|round| *round += 1),
                    Ok(Progress::Idle) => drop(route_wake.wait(POLL)),
                    Err(error) => pause_or_fail(error, stop, fail),
                }
            }
        });
        stop.wait();
    });
    manager.stop()?;
    match failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn pause_or_fail(error: ServeError, stop: &Stop, fail: &dyn Fn(ServeError)) {
    if error.is_transient() {
        tracing::warn!(%error, "trying again");
        stop.pause(RETRY);
    } else {
        fail(error);
    }
}

/// Begins a new day for time windows, as a row of the log, when one has begun.
fn tick(txnproc: &TxnProc, options: &ServeOptions) -> Result<(), ServeError> {
    if txnproc.cds().graph().vertices.iter().all(|vertex| vertex.inputs.iter().all(|input| input.guard.windows.is_empty())) {
        return Ok(());
    }
    let day = window_day(options.day_starts_minutes);
    if day > txnproc.cds().state().day {
        txnproc.server().append_control(&Control::Tick { day })?;
    }
    Ok(())
}

/// Returns the day that time windows count from, days since 1970 (UTC).
pub fn window_day(day_starts_minutes: i64) -> i64 {
    let minutes = super::txnproc::now_micros() / 60_000_000;
    (minutes - day_starts_minutes).div_euclid(24 * 60)
}

/// Starts nodes anew whose extract was lost in a crash: an active node without a finished extract of its incarnation.
fn restart_lost_extracts(txnproc: &TxnProc, root: &DockingRoot) -> Result<(), ServeError> {
    let lost: Vec<NodeName> =
        txnproc.nodes_without_extract(|scope| !root.extract_toc(&scope.node.name, scope.node.incarnation).exists());
    for name in lost {
        tracing::warn!(node = %name, "its extract was not finished, it starts anew");
        super::nodes::start(txnproc.server(), &name)?;
    }
    Ok(())
}

fn build_extract(pending: PendingExtract, root: &DockingRoot) -> Result<(), ServeError> {
    pending.select_rows().map_err(|source| ServeError::Select { node: pending.node.node.name.clone(), source })?;
    let toc = extract::build(&ExtractJob {
        cds: &pending.snapshot,
        dock: &pending.dock,
        schema: &pending.schema,
        server_id: pending.state.server_id,
        server_name: &pending.state.server_name,
        epoch: pending.state.epoch,
        node: &pending.node.node.name,
        incarnation: pending.node.node.incarnation,
        unit: pending.state.position,
        revision: pending.state.revision,
        root,
    })?;
    tracing::info!(stage = "extract", node = %toc.node, rows = toc.rows, bytes = toc.bytes, "extract ready");
    Ok(())
}

/// Watches the folder of the database for changes of its write-ahead log.
fn watch_log(database: &Path, wake: Wake) -> Result<notify::RecommendedWatcher, ServeError> {
    let folder = database.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    let mut wal = database.file_name().unwrap_or_default().to_owned();
    wal.push("-wal");
    let watch = |source| ServeError::Watch { path: folder.clone(), source };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // An error may mean lost events; looking once too often costs one query.
        let matters = event.is_ok_and(|event| {
            !event.kind.is_access() && (event.need_rescan() || event.paths.iter().any(|path| path.file_name() == Some(&wal)))
        });
        if matters {
            wake.set();
        }
    })
    .map_err(watch)?;
    watcher.watch(&folder, notify::RecursiveMode::NonRecursive).map_err(watch)?;
    Ok(watcher)
}

/// Ends a running service, from any thread.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    stopped: Arc<AtomicBool>,
    wakes: Arc<Mutex<Vec<Wake>>>,
    ended: Wake,
}

impl Stop {
    /// Returns a switch that is not thrown.
    pub fn new() -> Stop {
        Stop::default()
    }

    /// Ends the service: every stage finishes its step and returns.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.ended.set();
        for wake in self.wakes.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            wake.set();
        }
    }

    /// Returns whether the service is to end.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    fn wake(&self) -> Wake {
        let wake = Wake::new();
        self.wakes.lock().unwrap_or_else(PoisonError::into_inner).push(wake.clone());
        wake
    }

    fn wait(&self) {
        while !self.is_stopped() {
            self.ended.wait(Duration::from_secs(3600));
        }
    }

    fn pause(&self, duration: Duration) {
        let until = std::time::Instant::now() + duration;
        while !self.is_stopped() && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
