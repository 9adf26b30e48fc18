//! One exchange with the server: connect, say how far we are, fetch what is missing, acknowledge.
//!
//! Calls block; each runs a small runtime of its own, whose one thread also writes the files. Applying is another part, called through
//! `Applier` on a thread beside, so that files keep coming and heartbeats are answered while rows are written. An acknowledgement leaves
//! only after what it says is durable: `Received` after the inbox folder was flushed, `Applied` after the local database committed.

use crate::base::crash::{self, CrashPoint};
use crate::base::ids::{Epoch, FileNo, Incarnation, InstallId, NodeName, Revision, ServerId};
use crate::client::folder::{FolderError, LockedFolder, RemoteConfig};
use crate::client::inbox::Inbox;
use crate::client::report::{ExchangeError, Progress, ProgressEvent, SyncReport};
use crate::model::digest::TableOutcome;
use crate::session::client::{Action, ClientSession, Closed, Event, Report, plan};
use crate::session::message::{AppliedTo, Hello, Mode, Versions, Welcome, feature, program};
use crate::transport::link::{Link, LinkError, Timing};
use crate::transport::tcp;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// An error of the part that applies.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What the local database says of itself (`dock_state`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPosition {
    /// Server that it belongs to.
    pub server_id: ServerId,
    /// Name of that server, for people.
    pub server_name: String,
    /// Epoch of that server.
    pub epoch: Epoch,
    /// Node that it is.
    pub node: NodeName,
    /// Extract that it was made from.
    pub incarnation: Incarnation,
    /// Its own identity.
    pub install_id: InstallId,
    /// How far it has applied.
    pub applied: AppliedTo,
    /// Definition in force.
    pub revision: Revision,
}

/// The part that applies the inbox to the local database. Calls block; they are made on threads for that.
pub trait Applier: Send + 'static {
    /// Returns what the local database says of itself.
    ///
    /// # Errors
    /// It cannot be read.
    fn state(&mut self) -> Result<LocalPosition, BoxError>;

    /// Takes note of the server's epoch: from here on files of it are accepted. It never goes back.
    ///
    /// # Errors
    /// It cannot be stored.
    fn enter_epoch(&mut self, epoch: Epoch) -> Result<(), BoxError>;

    /// Applies everything in the inbox that can be applied and returns how far the database is now, committed.
    ///
    /// # Errors
    /// Something failed that a later call may not meet again, or a file that only a person can judge.
    fn apply(&mut self) -> Result<AppliedTo, BoxError>;

    /// Returns what the server is to be told beside: why nothing is applied, and what was found at marks.
    ///
    /// # Errors
    /// It cannot be read.
    fn reports(&mut self) -> Result<Reports, BoxError>;

    /// Notes that the server knows these outcomes, by question and place.
    ///
    /// # Errors
    /// It cannot be written; they are told again.
    fn told(&mut self, outcomes: &[(u64, u32)]) -> Result<(), BoxError>;

    /// Takes over that the node's stream begins anew under that incarnation; what waits of the former one goes.
    ///
    /// # Errors
    /// The database or the inbox cannot be written.
    fn begin_anew(&mut self, incarnation: Incarnation) -> Result<(), BoxError>;
}

/// See [`Applier::reports`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reports {
    /// Why nothing more is applied; `None` = all is well.
    pub stopped: Option<String>,
    /// What was found at marks and not told yet.
    pub outcomes: Vec<TableOutcome>,
}

/// An applier that threads may share.
pub type SharedApplier = Arc<Mutex<dyn Applier>>;

/// How an exchange is done.
#[derive(Debug, Clone)]
pub struct ExchangeOptions {
    /// Who waits how long.
    pub timing: Timing,
    /// Attempts in a row without any progress before giving up.
    pub attempts: u32,
    /// Pause before the second attempt; doubles up to `pause_max`, and a random part of it is left out.
    pub pause: Duration,
    /// Longest pause.
    pub pause_max: Duration,
    /// Apply in the same session; else files are fetched only.
    pub apply: bool,
}

impl Default for ExchangeOptions {
    fn default() -> ExchangeOptions {
        ExchangeOptions {
            timing: Timing::default(),
            attempts: 4,
            pause: Duration::from_millis(500),
            pause_max: Duration::from_secs(60),
            apply: true,
        }
    }
}

/// Fetches everything that waits, applies it if wanted, and parts. Continues over broken lines as long as each attempt brings something.
///
/// # Errors
/// See `ExchangeError`; what was received before stays and is not fetched again.
pub fn sync_once(
    folder: &LockedFolder,
    config: &RemoteConfig,
    applier: &SharedApplier,
    options: &ExchangeOptions,
    progress: &mut dyn Progress,
) -> Result<SyncReport, ExchangeError> {
    runtime()?.block_on(async {
        let mut report = SyncReport::default();
        let stop = CancellationToken::new();
        let (mut failures, mut pause) = (0, options.pause);
        loop {
            let before = (report.files, report.bytes);
            let exchange = Exchange { folder, config, applier, options, mode: Mode::Sync, report: &mut report, progress: &mut *progress };
            let Err(error) = Box::pin(exchange.run(&stop)).await else { return Ok(report) };
            if matches!(error, ExchangeError::BegunAnew(_)) {
                continue;
            }
            if (report.files, report.bytes) != before {
                (failures, pause) = (0, options.pause);
            }
            failures += 1;
            if !error.is_passing() || failures >= options.attempts {
                return Err(error);
            }
            let wait = jitter(pause);
            progress.on(&ProgressEvent::Again { why: error.to_string(), pause: wait });
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(options.pause_max);
        }
    })
}

/// Returns half of a pause to all of it, at random, so that a thousand nodes do not come back in one second.
pub(super) fn jitter(pause: Duration) -> Duration {
    // Without randomness the pause is whole; only the spreading is lost.
    let mut random = [0u8; 1];
    let part = if getrandom::fill(&mut random).is_ok() { u32::from(random[0]) } else { 255 };
    pause / 2 + pause * part / 510
}

/// Returns a runtime for one command.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, ExchangeError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ExchangeError::Runtime)
}

/// How long after a failed apply another is tried, should nothing come meanwhile.
const APPLY_RETRY: Duration = Duration::from_secs(30);

/// Silence after which what came whole is made durable, though more is announced.
const FLUSH_PAUSE: Duration = Duration::from_millis(20);

/// Waits for the moment at which what came whole is to be made durable: at once where nothing more is announced, so that a
/// watched change is not kept waiting; else at a pause of the stream, so that a thousand small files make few groups.
async fn lull(all_came: bool) {
    if all_came {
        // One look at the socket, for what came meanwhile.
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(FLUSH_PAUSE).await;
    }
}

/// One session.
pub(super) struct Exchange<'a> {
    pub(super) folder: &'a LockedFolder,
    pub(super) config: &'a RemoteConfig,
    pub(super) applier: &'a SharedApplier,
    pub(super) options: &'a ExchangeOptions,
    pub(super) mode: Mode,
    pub(super) report: &'a mut SyncReport,
    pub(super) progress: &'a mut dyn Progress,
}

/// What changes while a session runs.
struct Running {
    link: Link,
    machine: ClientSession,
    inbox: Inbox,
    applying: Option<JoinHandle<Result<AppliedTo, BoxError>>>,
    /// Files came since the last apply began.
    apply_due: bool,
    apply_failed: Option<BoxError>,
    complete: bool,
    /// Last file that the server has told of, and last one that came whole.
    announced: FileNo,
    whole: FileNo,
    ended: Option<Closed>,
    pinged: Instant,
    apply_began: Instant,
    /// What was told in this session.
    told: Vec<(u64, u32)>,
    told_stop: Option<Option<String>>,
}

enum Woken {
    Event(Event),
    Tick,
    Pause,
    Applied(Result<AppliedTo, BoxError>),
}

impl Exchange<'_> {
    /// Runs one session to its end.
    pub(super) async fn run(mut self, stop: &CancellationToken) -> Result<(), ExchangeError> {
        let applier = self.applier.clone();
        let position = on_thread(move || lock(&applier).state()).await.map_err(ExchangeError::Local)?;
        self.check(&position)?;
        let inbox = Inbox::open(self.folder, position.applied.file)?;
        self.report.applied = position.applied;
        self.report.received = inbox.received();
        let link = tcp::connect(&self.config.server, self.options.timing).await?;
        let machine = ClientSession::new(self.hello(&position, inbox.received()));
        // What lies in the inbox from before is applied too.
        let apply_due = self.options.apply && inbox.received() > position.applied.file;
        let mut running = Running {
            link,
            machine,
            inbox,
            applying: None,
            apply_due,
            apply_failed: None,
            complete: false,
            announced: FileNo(0),
            whole: FileNo(0),
            ended: None,
            pinged: Instant::now(),
            apply_began: Instant::now(),
            told: Vec::new(),
            told_stop: None,
        };
        let outcome = self.drive(&mut running, stop).await;
        // Whatever happened: what came whole is kept, and an apply that has begun is waited for.
        let flushed = running.inbox.flush();
        self.report.received = running.inbox.received();
        self.report.damaged += running.inbox.damaged;
        if let Some(handle) = running.applying.take()
            && let Ok(applied) = joined(handle.await)
        {
            self.report.applied = applied;
        }
        if matches!(running.ended, Some(Closed::Lost(_)) | None) {
            drop(running.link);
        } else {
            running.link.close().await;
        }
        outcome?;
        flushed?;
        // A session that ended in peace was read by the server to its end; after any other, all is told again.
        if matches!(running.ended, Some(Closed::Done)) && running.machine.takes_reports() && !running.told.is_empty() {
            let (applier, told) = (self.applier.clone(), std::mem::take(&mut running.told));
            on_thread(move || lock(&applier).told(&told)).await.map_err(ExchangeError::Local)?;
        }
        if let Some(Closed::BegunAnew(incarnation)) = running.ended {
            let applier = self.applier.clone();
            on_thread(move || lock(&applier).begin_anew(incarnation)).await.map_err(ExchangeError::Local)?;
        }
        self.end(running.ended, &position)?;
        running.apply_failed.map_or(Ok(()), |error| Err(ExchangeError::Local(error)))
    }

    fn check(&self, position: &LocalPosition) -> Result<(), ExchangeError> {
        if position.node != self.config.node {
            return Err(ExchangeError::WrongNode { config: self.config.node.clone(), database: position.node.clone() });
        }
        match self.config.server_id {
            Some(server_id) if server_id != position.server_id => Err(FolderError::Config {
                path: self.folder.config_path(),
                why: format!("`server_id` is {server_id}, the database belongs to {}", position.server_id),
            }
            .into()),
            _ => Ok(()),
        }
    }

    fn hello(&self, position: &LocalPosition, received: FileNo) -> Hello {
        Hello {
            protocol: Some(Versions::PROTOCOL),
            dx: Versions::DX,
            program: program(),
            node: position.node.to_string(),
            install_id: position.install_id,
            server_id: Some(position.server_id),
            epoch: position.epoch,
            incarnation: position.incarnation,
            applied: position.applied,
            received,
            mode: self.mode,
            features: feature::OURS.to_vec(),
        }
    }

    async fn drive(&mut self, running: &mut Running, stop: &CancellationToken) -> Result<(), ExchangeError> {
        let timing = self.options.timing;
        let began = Instant::now();
        let pulse = running.link.pulse();
        let mut tick = tokio::time::interval((timing.heartbeat / 4).clamp(Duration::from_millis(5), Duration::from_secs(1)));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.handle(running, Event::Connected).await?;
        while running.ended.is_none() {
            self.start_apply(running);
            let idle = running.applying.is_none() && !running.apply_due;
            if running.complete && idle && self.mode == Mode::Sync {
                self.handle(running, Event::Leave).await?;
                continue;
            }
            let woken = tokio::select! {
                biased;
                () = stop.cancelled() => Woken::Event(Event::Leave),
                _ = tick.tick() => Woken::Tick,
                applied = finished(&mut running.applying) => Woken::Applied(applied),
                received = running.link.incoming.receive() => Woken::Event(match received {
                    Ok(message) => Event::Message(message),
                    Err(LinkError::Codec(error)) => Event::Gone(format!("bad message: {error}")),
                    Err(error) => Event::Gone(error.to_string()),
                }),
                () = lull(running.whole >= running.announced), if running.inbox.has_unflushed() => Woken::Pause,
            };
            match woken {
                Woken::Event(event) => self.handle(running, event).await?,
                Woken::Applied(applied) => {
                    running.applying = None;
                    self.applied(running, applied).await?;
                    self.tell(running).await?;
                }
                Woken::Pause => self.flush(running).await?,
                Woken::Tick => {
                    if let Err(error) = running.link.check() {
                        self.handle(running, Event::Gone(error.to_string())).await?;
                    } else if running.machine.state() == "greeting" && began.elapsed() > timing.handshake {
                        let text = format!("the server did not answer within {} s", timing.handshake.as_secs_f32());
                        self.handle(running, Event::Gone(text)).await?;
                    } else if pulse.silence() > timing.heartbeat && running.pinged.elapsed() > timing.heartbeat {
                        running.pinged = Instant::now();
                        self.handle(running, Event::Quiet).await?;
                    }
                    let retry = running.apply_failed.is_some() && running.apply_began.elapsed() > APPLY_RETRY;
                    running.apply_due |= retry && self.mode == Mode::Watch;
                }
            }
        }
        Ok(())
    }

    fn start_apply(&self, running: &mut Running) {
        if running.apply_due && running.applying.is_none() && running.machine.state() != "greeting" {
            running.apply_due = false;
            running.apply_began = Instant::now();
            let applier = self.applier.clone();
            running.applying = Some(tokio::task::spawn_blocking(move || lock(&applier).apply()));
        }
    }

    async fn applied(&mut self, running: &mut Running, applied: Result<AppliedTo, BoxError>) -> Result<(), ExchangeError> {
        match applied {
            Ok(applied) => {
                running.apply_failed = None;
                running.inbox.set_applied(applied.file);
                self.report.applied = applied;
                self.progress.on(&ProgressEvent::Applied(applied));
                self.handle(running, Event::Applied(applied)).await
            }
            Err(error) => {
                tracing::error!("apply: {error}");
                self.progress.on(&ProgressEvent::ApplyFailed(error.to_string()));
                running.apply_failed = Some(error);
                Ok(())
            }
        }
    }

    async fn flush(&mut self, running: &mut Running) -> Result<(), ExchangeError> {
        let received = running.inbox.flush()?;
        self.report.received = received;
        running.apply_due |= self.options.apply;
        self.progress.on(&ProgressEvent::Durable(received));
        Box::pin(self.handle(running, Event::Durable(received))).await?;
        crash::at(CrashPoint::ExchangeAcknowledged);
        Ok(())
    }

    async fn handle(&mut self, running: &mut Running, event: Event) -> Result<(), ExchangeError> {
        let actions = running.machine.on(event).unwrap_or_else(|illegal| illegal.actions);
        for action in actions {
            self.act(running, action).await?;
        }
        Ok(())
    }

    async fn act(&mut self, running: &mut Running, action: Action) -> Result<(), ExchangeError> {
        match action {
            Action::Send(message) => {
                if let Err(error) = running.link.outgoing.send(&message).await {
                    running.ended.get_or_insert(Closed::Lost(error.to_string()));
                }
            }
            Action::Welcomed(welcome) => return self.welcomed(running, &welcome).await,
            Action::Offered(files) => {
                let bytes = files.iter().map(|file| file.bytes).sum();
                running.announced = files.iter().map(|file| file.file).max().unwrap_or_default().max(running.announced);
                self.progress.on(&ProgressEvent::Offered { files: files.len() as u64, bytes });
            }
            Action::BeginFile { file, offset } => running.inbox.begin(file, offset)?,
            Action::Store { bytes, .. } => {
                running.inbox.store(&bytes)?;
                self.report.bytes += bytes.len() as u64;
                self.progress.on(&ProgressEvent::Bytes(bytes.len() as u64));
            }
            Action::FinishFile(file) => {
                if running.inbox.finish()? {
                    running.whole = file.file;
                    self.report.files += 1;
                    self.progress.on(&ProgressEvent::File(file.file));
                    Box::pin(self.handle(running, Event::Verified)).await?;
                    if running.inbox.is_group_full() {
                        self.flush(running).await?;
                    }
                } else {
                    tracing::warn!("{} is damaged, moved to quarantine", file.file.file_name());
                    self.progress.on(&ProgressEvent::Damaged(file.file));
                    Box::pin(self.handle(running, Event::Damaged)).await?;
                }
            }
            Action::Complete => {
                running.complete = true;
                if running.inbox.has_unflushed() {
                    self.flush(running).await?;
                }
            }
            Action::Close(closed) => {
                running.ended.get_or_insert(closed);
            }
            Action::ExtractOffered(_) | Action::BeginExtract { .. } | Action::FinishExtract(_) => {
                running.ended.get_or_insert(Closed::Violation("an extract in a session that is not for one".into()));
            }
        }
        Ok(())
    }

    async fn welcomed(&mut self, running: &mut Running, welcome: &Welcome) -> Result<(), ExchangeError> {
        let (applier, epoch) = (self.applier.clone(), welcome.epoch);
        on_thread(move || lock(&applier).enter_epoch(epoch)).await.map_err(ExchangeError::Local)?;
        self.report.sessions += 1;
        self.report.server_name.clone_from(&welcome.server_name);
        self.report.last_file = welcome.last_file;
        running.announced = welcome.last_file;
        let applied = self.report.applied.file;
        let ranges = plan(applied, running.inbox.files(), welcome.last_file, self.mode, running.inbox.part());
        let files = welcome.last_file.0.saturating_sub(running.inbox.received().0);
        self.progress.on(&ProgressEvent::Connected { server: welcome.server_name.clone(), files });
        Box::pin(self.handle(running, Event::Plan(ranges))).await?;
        self.tell(running).await
    }

    /// Tells the server what it does not know yet: why nothing is applied here, and what was found at marks.
    async fn tell(&mut self, running: &mut Running) -> Result<(), ExchangeError> {
        let applier = self.applier.clone();
        let reports = on_thread(move || lock(&applier).reports()).await.map_err(ExchangeError::Local)?;
        if running.told_stop.as_ref() != Some(&reports.stopped) {
            running.told_stop = Some(reports.stopped.clone());
            Box::pin(self.handle(running, Event::Tell(Report::Stopped(reports.stopped)))).await?;
        }
        for outcome in reports.outcomes {
            let known = (outcome.id, outcome.place);
            if !running.told.contains(&known) {
                running.told.push(known);
                Box::pin(self.handle(running, Event::Tell(Report::Compared(Box::new(outcome))))).await?;
            }
        }
        Ok(())
    }

    fn end(&self, closed: Option<Closed>, position: &LocalPosition) -> Result<(), ExchangeError> {
        match closed {
            Some(Closed::Done) => Ok(()),
            Some(Closed::Refused(refusal)) => Err(ExchangeError::Refused { node: self.config.node.to_string(), refusal }),
            Some(Closed::Stopped(text)) if text.is_empty() => Err(ExchangeError::Lost("the server ended the session".into())),
            Some(Closed::Stopped(text) | Closed::Lost(text)) => Err(ExchangeError::Lost(text)),
            None => Err(ExchangeError::Lost("the session ended".into())),
            Some(Closed::Violation(text)) => Err(ExchangeError::Violation(text)),
            Some(Closed::WrongServer { name, server_id, epoch }) => Err(ExchangeError::WrongServer {
                ours: format!("{} ({}, epoch {})", position.server_name, position.server_id, position.epoch),
                address: self.config.server.clone(),
                theirs: format!("{name} ({server_id}, epoch {epoch})"),
            }),
            Some(Closed::BegunAnew(incarnation)) => Err(ExchangeError::BegunAnew(incarnation)),
            Some(Closed::DamagedTwice(file)) => Err(ExchangeError::Damaged(file)),
            Some(Closed::Unavailable(file, why)) => Err(ExchangeError::Unavailable { file, why }),
            Some(Closed::Incomplete { file, last }) => Err(ExchangeError::Incomplete { file, last }),
        }
    }
}

fn lock(applier: &SharedApplier) -> std::sync::MutexGuard<'_, dyn Applier + 'static> {
    applier.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn joined<T>(done: Result<Result<T, BoxError>, tokio::task::JoinError>) -> Result<T, BoxError> {
    done.map_err(BoxError::from)?
}

async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T, BoxError> + Send + 'static) -> Result<T, BoxError> {
    joined(tokio::task::spawn_blocking(work).await)
}

async fn finished<T>(slot: &mut Option<JoinHandle<Result<T, BoxError>>>) -> Result<T, BoxError> {
    match slot {
        Some(handle) => joined(handle.await),
        None => std::future::pending().await,
    }
}
