//! One session of the Synchronization Manager: does what the state machine (`session::server`) decides.
//!
//! The task waits for whatever comes first: a message, room on the line, the answer of a blocking call, news from the Router, a tick.
//! At most one call for the machine is outstanding and at most one chunk is in hand, so a slow node costs little memory.

use crate::base::clock::now_seconds;
use crate::base::ids::{FileNo, NodeName, SyncToken};
use crate::base::limits::PIECE_SENT_BYTES;
use crate::docking::sessions::{End, Mark, SessionsDb, SessionsError};
use crate::model::node::Node;
use crate::server::enrolment;
use crate::server::outbox::Reading;
use crate::server::synccalls::{self, Answer, Call, await_extract, open_file, read_chunk};
use crate::server::syncdoor::{Door, Seat, write_mark};
use crate::server::syncmgr::{BoxError, Shared};
use crate::server::syncupload::Uploads;
use crate::session::admission::{self, NodeFacts, ServerIdentity, Turned};
use crate::session::message::{Message, OfferedFile, Refusal, RefusalCode, Unavailable};
use crate::session::server::{Action, Closed, Event, ServerSession};
use crate::session::upload_server::{UploadAction, UploadEvent};
use crate::transport::link::{Link, LinkError, Pulse};
use crate::transport::peer::{Greeted, Greeter, Proof};
use crate::transport::tcp;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Content messages that may wait for the line before the peer counts as flooding it with requests.
const OUTGOING_MAX: usize = 64;

/// So often it is kept that a connected node was heard, in seconds.
const HEARD_SECONDS: i64 = 60;

/// What the task waited for.
enum Woken {
    Event(Event),
    Answer(Answer),
    Tick,
    Room(Result<(), LinkError>),
    Looked(Result<Option<Node>, BoxError>),
    Noted(Result<Option<Turned>, BoxError>),
    Uploaded(Result<UploadEvent, BoxError>),
    RouterGone,
}

/// Serves one socket until what it is for ends.
pub(super) async fn serve(
    shared: Arc<Shared>,
    greeter: Arc<dyn Greeter>,
    stream: TcpStream,
    peer: SocketAddr,
    shutdown: CancellationToken,
) {
    match greeter.greet(stream, shared.timing).await {
        Ok(Greeted::Session { link, proof }) => serve_link(shared, link, proof, peer.to_string(), shutdown).await,
        Ok(Greeted::Enrolment { stream, key }) => enrolment::serve(shared, stream, key, peer.to_string()).await,
        Ok(Greeted::Turned { link, refusal }) => {
            tracing::info!(%peer, "turned away: {refusal}");
            tokio::time::sleep(shared.timing.refusal_pause).await;
            if link.outgoing.send(&Message::Refused(refusal)).await.is_ok() {
                link.close().await;
            }
        }
        Err(error) => tracing::info!(%peer, "no line came of it: {error}"),
    }
}

/// Serves one line of any kind until its session ends.
pub(super) async fn serve_link(shared: Arc<Shared>, link: Link, proof: Proof, peer: String, shutdown: CancellationToken) {
    let directory = shared.directory.clone();
    let identity = match blocking(move || directory.identity()).await {
        Ok(identity) => identity,
        Err(error) => {
            tracing::error!(peer, "read the server's identity: {error}");
            let refusal = Refusal::new(RefusalCode::Internal, "the server had a fault of its own; its log tells");
            if link.outgoing.send(&Message::Refused(refusal)).await.is_ok() {
                link.close().await;
            }
            return;
        }
    };
    let now = Instant::now();
    let task = Task {
        machine: ServerSession::new(identity.clone()),
        identity,
        link,
        proof,
        peer,
        node: None,
        cut: CancellationToken::new(),
        call: None,
        reading: None,
        outgoing: VecDeque::new(),
        seat: None,
        note: None,
        noting: None,
        uploads: Uploads::default(),
        looking: None,
        files_sent: 0,
        began: now,
        pinged: now,
        looked: now,
        ended: None,
        shared,
    };
    Box::pin(task.run(shutdown)).await;
}

struct Task {
    shared: Arc<Shared>,
    identity: ServerIdentity,
    machine: ServerSession,
    link: Link,
    /// Which node the line proves.
    proof: Proof,
    peer: String,
    /// The node that the peer says it is, once that is a name.
    node: Option<NodeName>,
    /// Set when a newer session takes our node.
    cut: CancellationToken,
    /// The call that the machine waits for.
    call: Option<Call>,
    /// The file that is being sent, between two pieces.
    reading: Option<Reading>,
    /// Content messages that wait for the line.
    outgoing: VecDeque<Message>,
    seat: Option<Seat>,
    /// The mark to be written next; a newer one replaces it.
    note: Option<Mark>,
    /// The mark that is being written.
    noting: Option<JoinHandle<Result<Option<Turned>, BoxError>>>,
    /// What the node sends.
    uploads: Uploads,
    /// The look-up whether the node is still valid.
    looking: Option<JoinHandle<Result<Option<Node>, BoxError>>>,
    files_sent: u64,
    began: Instant,
    pinged: Instant,
    looked: Instant,
    ended: Option<Closed>,
}

impl Task {
    async fn run(mut self, shutdown: CancellationToken) {
        let timing = self.shared.timing;
        let pulse = self.link.pulse();
        let mut routed = self.shared.routed.clone();
        let mut tick = tokio::time::interval((timing.heartbeat / 4).clamp(Duration::from_millis(5), Duration::from_secs(1)));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut router_gone = false;
        while self.ended.is_none() {
            if self.call.is_none() && self.outgoing.is_empty() {
                let shared = &self.shared;
                self.call = self.reading.take().map(|reading| read_chunk(reading, Arc::clone(shared)));
            }
            if self.noting.is_none()
                && let Some(mark) = self.note.take()
            {
                self.noting = Some(write_mark(self.shared.clone(), mark));
            }
            let woken = tokio::select! {
                biased;
                () = shutdown.cancelled() => Woken::Event(Event::End(Refusal::new(RefusalCode::Stopping, "the server stops"))),
                () = self.cut.cancelled() => {
                    Woken::Event(Event::End(Refusal::new(RefusalCode::Busy, "a newer session of this node took over")))
                }
                _ = tick.tick() => Woken::Tick,
                looked = finished(&mut self.looking) => Woken::Looked(looked),
                noted = finished(&mut self.noting) => Woken::Noted(noted),
                event = self.uploads.next() => Woken::Uploaded(event),
                received = self.link.incoming.receive() => Woken::Event(match received {
                    Ok(message) => Event::Message(message),
                    Err(error) => Event::Gone(error.to_string()),
                }),
                room = self.link.outgoing.ready(), if !self.outgoing.is_empty() => Woken::Room(room),
                answer = answered(&mut self.call) => Woken::Answer(answer),
                changed = routed.changed(), if !router_gone && self.machine.is_waiting() => match changed {
                    Ok(()) => Woken::Event(Event::Routed),
                    Err(_) => Woken::RouterGone,
                },
            };
            match woken {
                Woken::Event(event) => self.handle(event).await,
                Woken::Tick => self.on_tick(&pulse).await,
                Woken::Room(Ok(())) => {
                    if let Some(message) = self.outgoing.pop_front()
                        && let Err(error) = self.link.outgoing.send(&message).await
                    {
                        self.handle(Event::Gone(error.to_string())).await;
                    }
                }
                Woken::Room(Err(error)) => self.handle(Event::Gone(error.to_string())).await,
                Woken::Answer(answer) => {
                    self.call = None;
                    self.on_answer(answer).await;
                }
                Woken::Looked(looked) => {
                    self.looking = None;
                    match looked {
                        Ok(node) => self.handle(Event::NodeNow(node.map(Box::new))).await,
                        Err(error) => self.handle(Event::Failed(format!("look the node up: {error}"))).await,
                    }
                    // The safety net should an event of the Router be lost, or the Router run in another process.
                    self.handle(Event::Routed).await;
                }
                Woken::Noted(noted) => {
                    self.noting = None;
                    match noted {
                        Ok(None) => {}
                        Ok(Some(turned)) => {
                            self.alert(turned.detail).await;
                            self.handle(Event::End(turned.refusal)).await;
                        }
                        Err(error) => self.handle(Event::Failed(format!("write sessions.db: {error}"))).await,
                    }
                }
                Woken::Uploaded(Ok(event)) => self.handle(Event::Upload(event)).await,
                Woken::Uploaded(Err(error)) => self.handle_failure(format!("take an upload: {error}")).await,
                // Only the tick tells of new files from now on.
                Woken::RouterGone => router_gone = true,
            }
        }
        self.finish().await;
    }

    async fn handle(&mut self, event: Event) {
        let actions = match self.machine.on(event) {
            Ok(actions) => actions,
            Err(illegal) => illegal.actions,
        };
        for action in actions {
            self.act(action).await;
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Send(message) if message.is_urgent() => {
                if let Err(error) = self.link.outgoing.send(&message).await {
                    self.ended.get_or_insert(Closed::Lost(error.to_string()));
                }
            }
            Action::Send(message) => {
                self.files_sent += u64::from(matches!(message, Message::FileEnd { .. }));
                self.outgoing.push_back(message);
                if self.outgoing.len() > OUTGOING_MAX {
                    self.ended.get_or_insert(Closed::Lost(LinkError::Flood.to_string()));
                }
            }
            Action::Admit { hello, node } => {
                self.node.clone_from(&node);
                let (pulse, cut, peer) = (self.link.pulse(), self.cut.clone(), self.peer.clone());
                let proof = self.proof.clone();
                let door = Door { proof, shared: self.shared.clone(), identity: self.identity.clone(), hello, node, pulse, cut, peer };
                self.call = Some(Box::pin(door.judge()));
            }
            Action::JudgeToken(shown) => self.call = self.judge_token(shown),
            Action::NoteTokenKept => self.keep(|sessions, mark| sessions.token_kept(&mark.node, mark.install_id)).await,
            Action::ListFiles { after, limit } => self.call = self.list_files(after, limit),
            Action::ReadFile { file, offset } => {
                let path = self.node.as_ref().map(|node| self.shared.root.outbox_file(node, file.file));
                self.call = path.map(|path| open_file(move || Reading::open(path, file.bytes, file.byte_hash, offset)));
            }
            Action::ReadExtract { offer, offset } => {
                let path = self.node.as_ref().map(|node| self.shared.root.extract(node, offer.incarnation));
                self.call = path.map(|path| open_file(move || Reading::open(path, offer.bytes, offer.sha256, offset)));
            }
            Action::Forget => {
                self.call = None;
                self.reading = None;
            }
            Action::DecideExtract { renew } => self.call = self.decide_extract(renew),
            Action::StartNode => {
                let shared = self.shared.clone();
                self.call = self.node.clone().map(|node| -> Call {
                    Box::pin(async move {
                        Answer::Event(match blocking(move || shared.directory.start(&node)).await {
                            Ok(incarnation) => Event::Started(incarnation),
                            Err(error) => Event::Failed(format!("start the node: {error}")),
                        })
                    })
                });
            }
            Action::AwaitExtract(incarnation) => {
                let shared = self.shared.clone();
                self.call = self.node.clone().map(|node| -> Call { Box::pin(await_extract(shared, node, incarnation)) });
            }
            Action::NoteReceived(file) => self.note(|mark| mark.received = file),
            Action::NoteApplied(applied) => self.note(|mark| {
                mark.applied = applied;
                mark.received = mark.received.max(applied.file);
            }),
            Action::NoteStopped(reason) => {
                self.keep(move |sessions, mark| sessions.set_stop(&mark.node, mark.incarnation, reason.as_deref(), now_seconds())).await;
            }
            Action::NoteCompared(outcome) => {
                self.keep(move |sessions, mark| sessions.keep_outcome(&mark.node, &outcome, now_seconds())).await;
            }
            Action::Upload(action) => self.upload(action).await,
            Action::Alert(text) => self.alert(text).await,
            Action::Close { reason } => {
                self.ended.get_or_insert(reason);
            }
        }
    }

    async fn on_answer(&mut self, answer: Answer) {
        match answer {
            Answer::Event(event) => {
                if matches!(event, Event::Started(_)) {
                    // A look-up from before the start would show the former incarnation.
                    self.looking = None;
                }
                self.handle(event).await;
            }
            Answer::Judged(verdict, seat) => {
                self.seat = seat;
                if let (Ok(admitted), Some(Seat { mark: Some(mark), unsent, .. })) = (verdict.as_ref(), &self.seat) {
                    self.uploads.admit(&self.shared, &self.identity, &admitted.node, mark.install_id, *unsent);
                }
                self.handle(Event::Judged(verdict)).await;
            }
            Answer::Opened(reading) => {
                self.handle(Event::Opened { offset: reading.offset() }).await;
                self.read_on(reading).await;
            }
            Answer::Chunk(reading, offset, bytes) => {
                // The disk is read in larger pieces than the line takes.
                for at in (0..bytes.len()).step_by(PIECE_SENT_BYTES) {
                    let piece = bytes.slice(at..bytes.len().min(at + PIECE_SENT_BYTES));
                    self.outgoing.push_back(Message::Chunk { offset: offset + at as u64, bytes: piece });
                }
                self.read_on(reading).await;
            }
        }
    }

    async fn read_on(&mut self, reading: Reading) {
        if !reading.is_done() {
            self.reading = Some(reading);
        } else if reading.is_genuine() {
            self.handle(Event::Sent).await;
        } else {
            self.handle(Event::Unreadable(Unavailable::Damaged)).await;
        }
    }

    async fn on_tick(&mut self, pulse: &Pulse) {
        let timing = self.shared.timing;
        if let Err(error) = self.link.check() {
            return self.handle(Event::Gone(error.to_string())).await;
        }
        if !self.machine.is_open() && self.began.elapsed() > timing.handshake {
            let text = format!("no handshake within {} s", timing.handshake.as_secs_f32());
            return self.handle(Event::Gone(text)).await;
        }
        if self.machine.is_open() && self.looking.is_none() && self.looked.elapsed() > timing.recheck {
            self.looked = Instant::now();
            if let Some(node) = self.node.clone() {
                let (shared, proof) = (self.shared.clone(), self.proof.clone());
                self.looking = Some(tokio::task::spawn_blocking(move || shared.proved(&proof, &node)));
            }
        }
        // One that watches and gets nothing is heard all the same: it must not count as silent.
        let is_due =
            self.seat.as_ref().and_then(|seat| seat.mark.as_ref()).is_some_and(|mark| now_seconds() - mark.last_seen >= HEARD_SECONDS);
        if is_due && self.machine.is_open() && pulse.silence() <= timing.heartbeat * 2 {
            self.note(|_| ());
        }
        if pulse.silence() > timing.heartbeat && self.pinged.elapsed() > timing.heartbeat {
            self.pinged = Instant::now();
            self.handle(Event::Quiet).await;
        }
    }

    fn judge_token(&self, shown: Option<SyncToken>) -> Option<Call> {
        let (shared, mark) = (self.shared.clone(), self.seat.as_ref()?.mark.clone());
        Some(Box::pin(synccalls::judge_token(shared, mark, shown)))
    }

    fn list_files(&self, after: FileNo, limit: usize) -> Option<Call> {
        let (shared, node) = (self.shared.clone(), self.node.clone()?);
        let incarnation = self.seat.as_ref()?.mark.as_ref()?.incarnation;
        Some(Box::pin(async move {
            let listed = blocking(move || shared.index.files_after(&node, incarnation, after, limit)).await;
            Answer::Event(match listed {
                Ok(files) => Event::Files(
                    files
                        .into_iter()
                        .map(|file| OfferedFile { file: file.file_no, bytes: file.bytes, byte_hash: file.byte_hash })
                        .collect(),
                ),
                Err(error) => Event::Failed(format!("list the outbox: {error}")),
            })
        }))
    }

    fn decide_extract(&self, renew: bool) -> Option<Call> {
        let (shared, name) = (self.shared.clone(), self.node.clone()?);
        Some(Box::pin(async move {
            let decided = blocking(move || -> Result<Result<bool, Turned>, BoxError> {
                let Some(node) = shared.directory.node(&name)? else {
                    return Ok(Err(Turned::node("the node was deleted while connected")));
                };
                let bound_install = shared.sessions().mark(&name, node.incarnation)?.map(|mark| mark.install_id);
                Ok(admission::needs_extract(&node, &NodeFacts { bound_install, ..NodeFacts::default() }, renew))
            });
            Answer::Event(match decided.await {
                Ok(decision) => Event::ExtractDecided(Box::new(decision)),
                Err(error) => Event::Failed(format!("look the extract up: {error}")),
            })
        }))
    }

    async fn upload(&mut self, action: UploadAction) {
        if action == UploadAction::Look {
            self.link.incoming.allow(tcp::UPLOAD_FRAME_BYTES_MAX);
        }
        match self.uploads.act(action).await {
            Ok(None) => {}
            Ok(Some(event)) => Box::pin(self.handle(Event::Upload(event))).await,
            Err(error) => self.handle_failure(format!("take an upload: {error}")).await,
        }
    }

    fn note(&mut self, change: impl FnOnce(&mut Mark)) {
        if let Some(mark) = self.seat.as_mut().and_then(|seat| seat.mark.as_mut()) {
            change(mark);
            mark.last_seen = now_seconds();
            self.note = Some(mark.clone());
        }
    }

    /// Writes a report of the node to the history. The node tells it again with its next session if that fails.
    async fn keep(&mut self, write: impl FnOnce(&SessionsDb, &Mark) -> Result<(), SessionsError> + Send + 'static) {
        let Some(mark) = self.seat.as_ref().and_then(|seat| seat.mark.clone()) else { return };
        let (shared, node) = (self.shared.clone(), mark.node.clone());
        if let Err(error) = blocking(move || Ok(write(&shared.sessions(), &mark)?)).await {
            self.handle_failure(format!("write a report of {node}: {error}")).await;
        }
    }

    async fn handle_failure(&mut self, text: String) {
        Box::pin(self.handle(Event::Failed(text))).await;
    }

    async fn alert(&mut self, text: String) {
        let node = self.node.as_ref().map_or_else(String::new, ToString::to_string);
        tracing::error!(node, peer = self.peer, "{text}");
        let shared = self.shared.clone();
        if let Err(error) = blocking(move || Ok(shared.sessions().alert(&node, &text, now_seconds())?)).await {
            tracing::error!("an alert could not be kept: {error}");
        }
    }

    async fn finish(mut self) {
        let ended = self.ended.take().unwrap_or_else(|| Closed::Lost("the session ended".into()));
        let (outcome, detail) = match &ended {
            Closed::Done => ("done", String::new()),
            Closed::Refused(refusal, detail) => ("refused", format!("{:?}: {detail}", refusal.code)),
            Closed::Lost(text) => ("lost", text.clone()),
            Closed::Violation(text) => ("violation", text.clone()),
            Closed::Failed(text) => ("failed", text.clone()),
        };
        let node = self.node.as_ref().map_or_else(|| "?".to_owned(), ToString::to_string);
        match &ended {
            Closed::Failed(text) => tracing::error!(node, peer = self.peer, "session failed: {text}"),
            Closed::Violation(text) => tracing::warn!(node, peer = self.peer, "session broke the protocol: {text}"),
            _ => tracing::info!(node, peer = self.peer, files = self.files_sent, "{}", format!("session {outcome} {detail}").trim_end()),
        }
        // The last acknowledgement is kept, or found to be a fork, whatever ended the session.
        for under_way in [true, false] {
            let handle = if under_way { self.noting.take() } else { self.note.take().map(|mark| write_mark(self.shared.clone(), mark)) };
            let Some(handle) = handle else { continue };
            match flatten(handle.await) {
                Ok(None) => {}
                Ok(Some(turned)) => self.alert(turned.detail).await,
                Err(error) => tracing::error!(node, "write sessions.db: {error}"),
            }
        }
        if let Some(seat) = self.seat.take() {
            let end = End { outcome, detail, files_sent: self.files_sent, bytes_sent: self.link.bytes().1, now: now_seconds() };
            let shared = self.shared.clone();
            if let Err(error) = blocking(move || Ok(shared.sessions().end(seat.row, &end)?)).await {
                tracing::error!(node, "write sessions.db: {error}");
            }
            // Given back before the line is closed: a node that sees the end may come again at once.
            drop(seat.claim);
        }
        if !matches!(ended, Closed::Lost(_)) {
            self.link.close().await;
        }
    }
}

/// Runs what blocks on a thread for that.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, BoxError> + Send + 'static) -> Result<T, BoxError> {
    flatten(tokio::task::spawn_blocking(work).await)
}

pub(super) fn flatten<T>(joined: Result<Result<T, BoxError>, tokio::task::JoinError>) -> Result<T, BoxError> {
    joined.map_err(BoxError::from)?
}

pub(super) async fn finished<T>(slot: &mut Option<JoinHandle<Result<T, BoxError>>>) -> Result<T, BoxError> {
    match slot {
        Some(handle) => flatten(handle.await),
        None => std::future::pending().await,
    }
}

async fn answered(call: &mut Option<Call>) -> Answer {
    match call {
        Some(call) => call.await,
        None => std::future::pending().await,
    }
}
