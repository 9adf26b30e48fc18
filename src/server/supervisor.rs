//! `serve`: the stages, each on a thread of its own, woken by events.
//!
//! A change of the server database's write-ahead log wakes the Transaction Processor, a committed unit wakes the Router,
//! a committed round wakes the sessions. A slow poll is the safety net, never the mechanism.

use super::alerting;
use super::directory::{Directory, Routed};
use super::identity::{self, IdentityError};
use super::merger::{Merger, MergerError};
use super::pass::{ExtractsOf, ServeError, ServeOptions, restart_lost_extracts, tick};
use super::purge::Purge;
use super::rebuild::restore_ledger;
use super::reconcile::ask_scheduled;
use super::router::{Router, RouterError, RouterOptions};
use super::status::StatusOptions;
use super::syncmgr::{self, SyncOptions};
use super::txnproc::{PendingExtracts, TxnProc};
use crate::base::clock::now_seconds;
use crate::base::ids::{Incarnation, NodeName};
use crate::base::step::{Patience, Progress, Wake};
use crate::cds::nodes::NodeScope;
use crate::docking::room::Room;
use crate::docking::root::DockingRoot;
use crate::docking::sessions::SessionsDb;
use crate::store::sqlite::ServerDatabase;
use crate::store::wal;
use crate::transport::tls::TlsGreeter;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Safety net for a lost event.
const POLL: Duration = Duration::from_secs(5);
/// Pause after a fault that may pass by itself: a lock, a full disk.
const RETRY: Duration = Duration::from_secs(1);
/// Pause between two ways of the purge through all nodes.
const PURGE_PAUSE: Duration = Duration::from_secs(60);
/// How often what needs a person is looked for, if somebody wants to be told.
const ALERT_LOOK: Duration = Duration::from_secs(5);
/// Extracts built at once.
const EXTRACT_WORKERS: usize = 2;

/// Snapshots with extracts to be built that may wait; each keeps files open. Then the Transaction Processor waits too.
const EXTRACTS_WAITING_MAX: usize = 64;

/// Runs the service until `stop` is called or a stage fails for good.
pub fn serve(
    options: &ServeOptions,
    root: &Arc<DockingRoot>,
    stop: &Stop,
    ready: impl FnOnce(SocketAddr) + Send,
) -> Result<(), ServeError> {
    let mut txnproc = TxnProc::open(&options.database, Arc::clone(root))?;
    restore_ledger(&txnproc, root)?;
    let mut router = Router::open(Arc::clone(root), RouterOptions::default())?;
    restart_lost_extracts(&txnproc, root)?;
    let (routed_sender, routed) = tokio::sync::watch::channel(0u64);
    let routed_sender = Arc::new(routed_sender);
    let (read_log, route, merge) = (stop.wake(), stop.wake(), stop.wake());
    let _watcher =
        wal::watch(&options.database, read_log.clone()).map_err(|fault| ServeError::Watch { path: fault.folder, source: fault.source })?;

    let failure: Arc<Mutex<Option<ServeError>>> = Arc::default();
    let fail = |error: ServeError| {
        tracing::error!(error = with_causes(&error), "stage failed, the service stops");
        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        stop.stop();
    };
    let authority = Arc::new(identity::read(&options.identity, &ServerDatabase::open(&options.database)?)?);
    let letter_key = Arc::new(authority.letter_key().map_err(IdentityError::from)?);
    let greeter = Arc::new(TlsGreeter::new(&authority).map_err(IdentityError::from)?);
    let directory = Arc::new(Directory::open(&options.database, authority)?);
    let index = Arc::new(Routed::open(root).map_err(RouterError::from)?);
    let end_sessions = CancellationToken::new();

    let room = &Room::new(root, options.min_free_bytes);
    std::thread::scope(|threads| {
        let (fail, extracts_routed, route_wake, merge_wake) = (&fail, &routed_sender, &route, &merge);
        let sessions = end_sessions.clone();
        let stored = merge.clone();
        threads.spawn(move || {
            let sync_options = SyncOptions {
                stored: Some(Arc::new(move || stored.set())),
                sessions_max: options.sessions_max,
                sessions_per_address: options.sessions_per_address,
                send_bytes_per_second: options.send_bytes_per_second,
                min_free_bytes: options.min_free_bytes,
                carriers: Some((letter_key, options.carriers.clone())),
                ..SyncOptions::new(&options.listen, root.path())
            };
            if let Err(error) = syncmgr::serve(sync_options, greeter, directory, index, routed, sessions, ready) {
                fail(ServeError::from(error));
            }
        });
        let (queue, waiting) = mpsc::sync_channel::<PendingExtracts>(EXTRACTS_WAITING_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        let newest = Arc::new(Newest::default());
        for _ in 0..EXTRACT_WORKERS {
            let (waiting, newest) = (Arc::clone(&waiting), Arc::clone(&newest));
            threads.spawn(move || {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(pending) = next else { return };
                    if stop.is_stopped() {
                        // Not begun: the node starts anew with the next start of the service.
                        continue;
                    }
                    let mut extracts = ExtractsOf::new(&pending);
                    for node in &pending.nodes {
                        if build_or_report(&mut extracts, node, &newest, (root, room), stop) {
                            extracts_routed.send_modify(|round| *round += 1);
                        }
                    }
                }
            });
        }
        threads.spawn(move || {
            let mut patience = Patience::default();
            let mut compared: Option<Instant> = None;
            while !stop.is_stopped() {
                if room.look().is_err() {
                    stop.pause(RETRY);
                    continue;
                }
                let worked = tick(&txnproc, options).and_then(|()| {
                    if compared.is_none_or(|at| at.elapsed() >= options.compare_every) {
                        ask_scheduled(txnproc.server(), txnproc.cds().dock())?;
                        compared = Some(Instant::now());
                    }
                    Ok(txnproc.step()?)
                });
                match worked {
                    Ok(step) => {
                        for pending in step.extracts {
                            newest.note(&pending.nodes);
                            // The workers live as long as this thread, so the queue takes it.
                            if queue.send(pending).is_err() {
                                fail(ServeError::Thread("extract"));
                            }
                        }
                        match step.progress {
                            Progress::Worked => route_wake.set(),
                            Progress::Idle => patience.wait(&read_log, POLL),
                        }
                    }
                    Err(error) => pause_or_fail(error, stop, fail),
                }
            }
        });
        if let Some(command) = &options.alert_command {
            threads.spawn(move || {
                while !stop.is_stopped() {
                    let look = StatusOptions {
                        database: options.database.clone(),
                        root: root.path().to_owned(),
                        // What is deployed says its name itself.
                        server_name: String::new(),
                        day_starts_minutes: options.day_starts_minutes,
                        now: now_seconds(),
                        min_free_bytes: options.min_free_bytes,
                    };
                    if let Err(error) = alerting::look(command, &look, root) {
                        tracing::error!(stage = "alerts", error = with_causes(&error), "no look for alerts");
                    }
                    stop.pause(ALERT_LOOK);
                }
            });
        }
        threads.spawn(move || {
            while !stop.is_stopped() {
                if room.look().is_err() {
                    stop.pause(RETRY);
                    continue;
                }
                match router.step().map_err(ServeError::from) {
                    Ok(Progress::Worked) => extracts_routed.send_modify(|round| *round += 1),
                    Ok(Progress::Idle) => drop(route_wake.wait(POLL)),
                    Err(error) => pause_or_fail(error, stop, fail),
                }
            }
        });
        threads.spawn(move || {
            let mut merger: Option<Merger> = None;
            while !stop.is_stopped() {
                if room.look().is_err() {
                    stop.pause(RETRY);
                    continue;
                }
                match merge_step(&mut merger, options, root).map_err(ServeError::from) {
                    Ok(Progress::Worked) => {}
                    Ok(Progress::Idle) => drop(merge_wake.wait(POLL)),
                    Err(error) => pause_or_fail(error, stop, fail),
                }
            }
        });
        threads.spawn(move || {
            let mut purge = Purge::new(Arc::clone(root), &options.database, options.retention);
            let pause = stop.wake();
            while !stop.is_stopped() {
                match purge.step(now_seconds()).map_err(ServeError::from) {
                    Ok(Progress::Worked) => {}
                    Ok(Progress::Idle) => drop(pause.wait(PURGE_PAUSE)),
                    Err(error) => pause_or_fail(error, stop, fail),
                }
            }
        });
        stop.wait();
        end_sessions.cancel();
    });
    match failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Takes one step of the Merger, which is opened as soon as its tables are there.
fn merge_step(merger: &mut Option<Merger>, options: &ServeOptions, root: &Arc<DockingRoot>) -> Result<Progress, MergerError> {
    if merger.is_none() {
        *merger = Merger::open(&options.database, Arc::clone(root), options.merger())?;
    }
    merger.as_mut().map_or(Ok(Progress::Idle), Merger::step)
}

/// The newest start of each node. What waits for an older one is of no more use, and two extracts of one node would share a folder.
#[derive(Debug, Default)]
struct Newest(Mutex<HashMap<NodeName, Incarnation>>);

impl Newest {
    fn note(&self, started: &[NodeScope]) {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        newest.extend(started.iter().map(|scope| (scope.node.name.clone(), scope.node.incarnation)));
    }

    fn is_outdated(&self, scope: &NodeScope) -> bool {
        let newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        newest.get(&scope.node.name).is_some_and(|newest| *newest > scope.node.incarnation)
    }
}

/// Returns an error with what caused it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Builds an extract, waiting for room on a full disk. Returns whether it is ready: what cannot be mended by waiting
/// concerns that node alone, which is shown in `status`; the others go on (I5).
fn build_or_report(
    extracts: &mut ExtractsOf<'_>,
    scope: &NodeScope,
    newest: &Newest,
    (root, room): (&DockingRoot, &Room),
    stop: &Stop,
) -> bool {
    while !stop.is_stopped() && !newest.is_outdated(scope) {
        let node = &scope.node.name;
        if room.look().is_err() {
            stop.pause(RETRY);
            continue;
        }
        // Two extracts of one node never interleave.
        let _lease = root.lease(node);
        match extracts.build(scope, root) {
            Ok(()) => return true,
            Err(error) if error.is_transient() => {
                tracing::warn!(stage = "extract", %node, error = with_causes(&error), "trying again");
                stop.pause(RETRY);
            }
            Err(_) if newest.is_outdated(scope) => return false,
            Err(error) => {
                let error = with_causes(&error);
                tracing::error!(stage = "extract", %node, %error, "no extract");
                let text = format!("its extract cannot be made: {error}");
                let told = SessionsDb::open(&root.sessions_db()).and_then(|sessions| sessions.alert(node.as_str(), &text, now_seconds()));
                if let Err(error) = told {
                    tracing::error!(%error, "the alert could not be kept");
                }
                return false;
            }
        }
    }
    false
}

fn pause_or_fail(error: ServeError, stop: &Stop, fail: &dyn Fn(ServeError)) {
    if error.is_transient() {
        tracing::warn!(error = with_causes(&error), "trying again");
        stop.pause(RETRY);
    } else {
        fail(error);
    }
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
