//! One exchange with the server: connect, say how far we are, fetch what is missing, acknowledge.
//!
//! Calls block; each runs a small runtime of its own, whose one thread also writes the files. Applying is another part, called through
//! `Applier` on a thread beside, so that files keep coming and heartbeats are answered while rows are written. An acknowledgement leaves
//! only after what it says is durable: `Received` after the inbox folder was flushed, `Applied` after the local database committed.

use crate::base::crash::{self, CrashPoint};
use crate::base::ids::{FileNo, NodeName};
pub use crate::client::applier::{Applier, BoxError, LocalPosition, Reports, SharedApplier};
use crate::client::folder::{FolderError, LockedFolder, RemoteConfig};
use crate::client::inbox::Inbox;
use crate::client::report::{ExchangeError, Progress, ProgressEvent, SyncReport};
use crate::client::send::Up;
use crate::session::client::{Action, ClientSession, Closed, Event, Report, plan};
use crate::session::message::{AppliedTo, Hello, Mode, Refusal, RefusalCode, Welcome, feature};
use crate::transport::link::{Link, LinkError, Timing};
use crate::transport::peer::Dialer;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How an exchange is done.
#[derive(Debug, Clone)]
pub struct ExchangeOptions {
    /// Who opens the line.
    pub dialer: Arc<dyn Dialer>,
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
    /// Send what was changed here, first.
    pub send: bool,
    /// Fetch files.
    pub receive: bool,
    /// Mode sync: wait until what was sent is merged and has come back, at most so many seconds (MI-6).
    pub wait: Option<u32>,
}

impl ExchangeOptions {
    /// Returns what a refusal means to the caller, and has the dialer see to it that the next call is not refused for the same reason.
    pub(super) fn refused(&self, node: &NodeName, refusal: Refusal) -> ExchangeError {
        if refusal.code == RefusalCode::Certificate {
            self.dialer.renew_next();
        }
        ExchangeError::Refused { node: node.to_string(), refusal }
    }

    /// Returns the ordinary way of it.
    pub fn new(dialer: Arc<dyn Dialer>) -> ExchangeOptions {
        ExchangeOptions {
            dialer,
            timing: Timing::default(),
            attempts: 4,
            pause: Duration::from_millis(500),
            pause_max: Duration::from_secs(60),
            apply: true,
            send: true,
            receive: true,
            wait: None,
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
        let cuts = Arc::default();
        loop {
            let before = (report.files, report.bytes, report.sent.files, report.sent.bytes);
            let exchange =
                Exchange { folder, config, applier, options, mode: Mode::Sync, cuts: &cuts, report: &mut report, progress: &mut *progress };
            let Err(error) = Box::pin(exchange.run(&stop)).await else { return Ok(report) };
            if matches!(error, ExchangeError::BegunAnew(_)) {
                continue;
            }
            if (report.files, report.bytes, report.sent.files, report.sent.bytes) != before {
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
    /// Told when something was cut meanwhile.
    pub(super) cuts: &'a Arc<Notify>,
    pub(super) report: &'a mut SyncReport,
    pub(super) progress: &'a mut dyn Progress,
}

/// What changes while a session runs.
pub(super) struct Running {
    pub(super) link: Link,
    pub(super) machine: ClientSession,
    inbox: Inbox,
    pub(super) up: Up,
    applying: Option<JoinHandle<Result<AppliedTo, BoxError>>>,
    /// Files came since the last apply began.
    apply_due: bool,
    apply_failed: Option<BoxError>,
    pub(super) complete: bool,
    /// Last file that the server has told of, and last one that came whole.
    announced: FileNo,
    whole: FileNo,
    pub(super) ended: Option<Closed>,
    pinged: Instant,
    apply_began: Instant,
    /// What was told in this session.
    told: Vec<(u64, u32)>,
    told_stop: Option<Option<String>>,
}

enum Woken {
    Event(Event),
    /// The line takes more of the file that is being sent.
    Room(Result<(), LinkError>),
    /// Something was cut.
    Cut,
    Tick,
    Pause,
    Applied(Result<AppliedTo, BoxError>),
}

impl Exchange<'_> {
    /// Runs one session to its end.
    pub(super) async fn run(mut self, stop: &CancellationToken) -> Result<(), ExchangeError> {
        let applier = self.applier.clone();
        let (position, uploads) = on_thread(move || {
            let mut applier = lock(&applier);
            Ok((applier.state()?, applier.uploads()))
        })
        .await
        .map_err(ExchangeError::Local)?;
        self.check(&position)?;
        let up = Up::new(uploads.filter(|_| self.options.send));
        let inbox = Inbox::open(self.folder, position.applied.file)?;
        self.report.applied = position.applied;
        self.report.received = inbox.received();
        let link = self.options.dialer.dial(&self.config.server, self.options.timing).await?;
        let machine = ClientSession::new(self.hello(&position, inbox.received(), up.is_wanted())).with_token(position.token);
        // What lies in the inbox from before is applied too.
        let apply_due = self.options.apply && inbox.received() > position.applied.file;
        let mut running = Running {
            link,
            machine,
            inbox,
            up,
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

    fn hello(&self, position: &LocalPosition, received: FileNo, sends: bool) -> Hello {
        let features = feature::OURS.iter().copied().filter(|ours| sends || *ours != feature::UPLOAD).collect();
        position.hello(received, self.mode, features)
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
            if running.complete
                && let Some(last) = running.up.take_more()
            {
                self.fetch(running, last).await?;
                continue;
            }
            let idle = running.applying.is_none() && !running.apply_due;
            if running.complete && idle && running.up.is_settled() && self.mode == Mode::Sync {
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
                room = running.link.outgoing.ready(), if running.up.is_sending() => Woken::Room(room),
                () = self.cuts.notified(), if running.up.is_idle() && running.machine.uploads().is_ready() => Woken::Cut,
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
                Woken::Room(Ok(())) => self.send_piece(running).await?,
                Woken::Room(Err(error)) => self.handle(running, Event::Gone(error.to_string())).await?,
                Woken::Cut => self.send_next(running).await?,
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
                    if self.mode == Mode::Watch {
                        self.retry_upload(running).await?;
                    }
                    let retry = running.apply_failed.is_some() && running.apply_began.elapsed() > APPLY_RETRY;
                    running.apply_due |= retry && self.mode == Mode::Watch;
                }
            }
        }
        Ok(())
    }

    fn start_apply(&self, running: &mut Running) {
        if running.apply_due && running.applying.is_none() && running.machine.state() != "greeting" && running.up.may_apply() {
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
                self.purge_uploads(running).await?;
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

    pub(super) async fn handle(&mut self, running: &mut Running, event: Event) -> Result<(), ExchangeError> {
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
            Action::KeepToken(token) => {
                let applier = self.applier.clone();
                on_thread(move || lock(&applier).keep_token(token)).await.map_err(ExchangeError::Local)?;
                crash::at(CrashPoint::ExchangeTokenKept);
                Box::pin(self.handle(running, Event::TokenKept)).await?;
            }
            Action::Upload(action) => return Box::pin(self.upload(running, action)).await,
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
        let files = welcome.last_file.0.saturating_sub(running.inbox.received().0);
        self.progress.on(&ProgressEvent::Connected { server: welcome.server_name.clone(), files });
        self.tell(running).await?;
        // Uploads first; the server is about to say what it has.
        if running.machine.uploads().is_on() { Ok(()) } else { self.uploads_done(running).await }
    }

    /// Asks for the files that are missing here, up to one of them; in watch mode for those to come too.
    pub(super) async fn fetch(&mut self, running: &mut Running, last: FileNo) -> Result<(), ExchangeError> {
        if !self.options.receive {
            running.complete = true;
            return Ok(());
        }
        running.complete = false;
        running.announced = running.announced.max(last);
        let ranges = plan(self.report.applied.file, running.inbox.files(), last, self.mode, running.inbox.part());
        Box::pin(self.handle(running, Event::Plan(ranges))).await
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
            Some(Closed::Refused(refusal)) => Err(self.options.refused(&self.config.node, refusal)),
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

pub(super) fn lock<T: ?Sized>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn joined<T>(done: Result<Result<T, BoxError>, tokio::task::JoinError>) -> Result<T, BoxError> {
    done.map_err(BoxError::from)?
}

pub(super) async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T, BoxError> + Send + 'static) -> Result<T, BoxError> {
    joined(tokio::task::spawn_blocking(work).await)
}

async fn finished<T>(slot: &mut Option<JoinHandle<Result<T, BoxError>>>) -> Result<T, BoxError> {
    match slot {
        Some(handle) => joined(handle.await),
        None => std::future::pending().await,
    }
}
