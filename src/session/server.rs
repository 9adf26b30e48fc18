//! The server's half of a session as a state machine: events in, actions out.
//!
//! The machine decides, the driver (`server::syncmgr`) does: looks nodes up, lists the ledger, streams file bytes, keeps time. One
//! answer is outstanding at most. A session that was refused or closed stays so, whatever comes.

use crate::base::ids::{FileNo, Incarnation, NodeName};
use crate::base::limits::SESSION_OFFER_FILES_MAX;
use crate::model::node::{Node, NodeState};
use crate::session::admission::{self, Admitted, ServerIdentity, Turned};
use crate::session::message::{AppliedTo, ExtractOffer, Message, Mode, OfferedFile, Refusal, RefusalCode, Unavailable, Versions, feature};
use crate::session::upload_server::{self, UploadServer};
use std::collections::VecDeque;

pub use crate::session::server_event::{Action, Closed, Event, Illegal};

/// A request for files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fetch {
    request: u32,
    next: FileNo,
    last: Option<FileNo>,
    offset: u64,
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    /// Nothing heard yet.
    Opening,
    /// The hello is being judged.
    Judging { mode: Mode },
    /// Accepted if the token is right, which is due.
    TokenDue,
    /// The token is being judged.
    TokenJudging,
    /// It was right; that the node holds the next one is due.
    TokenGiven,
    /// Accepted, nothing asked for.
    Idle,
    /// The ledger is being listed for a request.
    Listing(Fetch),
    /// A file was asked of the driver, its `Opened` is due.
    Begun { fetch: Fetch, file: OfferedFile, queue: VecDeque<OfferedFile> },
    /// The file's chunks are going out.
    Sending { fetch: Fetch, file: OfferedFile, queue: VecDeque<OfferedFile> },
    /// An open request has been served; waits for more files.
    Waiting(Fetch),
    /// Mode init, nothing asked for.
    InitIdle,
    /// Whether a new extract is needed is being found out.
    InitDeciding,
    /// The node is being started.
    InitStarting,
    /// The extract is being made.
    InitAwaiting,
    /// The extract was offered.
    InitOffered(ExtractOffer),
    /// The extract was asked of the driver, its `Opened` is due.
    InitBegun { request: u32, offer: ExtractOffer },
    /// The extract's chunks are going out.
    InitSending { request: u32, offer: ExtractOffer },
    /// Refused; final.
    Refused,
    /// Over; final.
    Closed,
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            State::Opening => "opening",
            State::Judging { .. } => "judging",
            State::TokenDue => "token-due",
            State::TokenJudging => "token-judging",
            State::TokenGiven => "token-given",
            State::Idle => "idle",
            State::Listing(_) => "listing",
            State::Begun { .. } => "begun",
            State::Sending { .. } => "sending",
            State::Waiting(_) => "waiting",
            State::InitIdle => "init-idle",
            State::InitDeciding => "init-deciding",
            State::InitStarting => "init-starting",
            State::InitAwaiting => "init-awaiting",
            State::InitOffered(_) => "init-offered",
            State::InitBegun { .. } => "init-begun",
            State::InitSending { .. } => "init-sending",
            State::Refused => "refused",
            State::Closed => "closed",
        }
    }
}

/// The server's half of one session.
#[derive(Debug)]
pub struct ServerSession {
    server: ServerIdentity,
    state: State,
    node: Option<NodeName>,
    incarnation: Incarnation,
    last_file: FileNo,
    received: FileNo,
    applied: AppliedTo,
    /// Last request seen; numbers only grow.
    request: u32,
    pings: u32,
    uploads: UploadServer,
    /// Both sides know uploads.
    takes_uploads: bool,
}

impl ServerSession {
    /// Returns a session of which nothing was heard yet.
    pub fn new(server: ServerIdentity) -> ServerSession {
        ServerSession {
            server,
            state: State::Opening,
            node: None,
            incarnation: Incarnation(0),
            last_file: FileNo(0),
            received: FileNo(0),
            applied: AppliedTo::default(),
            request: 0,
            pings: 0,
            uploads: UploadServer::default(),
            takes_uploads: false,
        }
    }

    /// Returns the name of the state, for logs.
    pub fn state(&self) -> &'static str {
        self.state.name()
    }

    /// Whether the session is over, by refusal or otherwise.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Refused | State::Closed)
    }

    /// Whether the node was accepted.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::Opening | State::Judging { .. } | State::Refused | State::Closed)
    }

    /// Whether an open request waits for files to come.
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting(_))
    }

    /// Returns the node, once it was accepted.
    pub fn node(&self) -> Option<&NodeName> {
        self.node.as_ref()
    }

    /// Takes one event and returns what is to be done, in order.
    ///
    /// # Errors
    /// `Illegal` if the event does not fit the state; the session has ended then, and the error holds the last actions.
    pub fn on(&mut self, event: Event) -> Result<Vec<Action>, Illegal> {
        if self.is_over() {
            return Ok(Vec::new());
        }
        match event {
            Event::Message(message) => self.on_message(message),
            Event::Judged(verdict) => match self.state {
                State::Judging { mode } => Ok(self.judged(mode, *verdict)),
                _ => self.illegal("Judged"),
            },
            Event::Files(files) => self.on_files(files),
            Event::Opened { offset } => self.on_opened(offset),
            Event::Sent => self.on_sent(),
            Event::Unreadable(why) => self.on_unreadable(why),
            Event::Routed => Ok(match self.state {
                State::Waiting(fetch) => self.list(fetch),
                _ => Vec::new(),
            }),
            Event::NodeNow(node) => Ok(self.node_now(node)),
            Event::ExtractDecided(decision) => match (&self.state, *decision) {
                (State::InitDeciding, Ok(true)) => {
                    self.state = State::InitStarting;
                    Ok(vec![Action::StartNode])
                }
                (State::InitDeciding, Ok(false)) => Ok(self.await_extract()),
                (State::InitDeciding, Err(turned)) => Ok(self.turn(turned)),
                _ => self.illegal("ExtractDecided"),
            },
            Event::Started(incarnation) => match self.state {
                State::InitStarting => {
                    self.incarnation = incarnation;
                    Ok(self.await_extract())
                }
                _ => self.illegal("Started"),
            },
            Event::ExtractReady(offer) => match self.state {
                State::InitAwaiting if offer.incarnation == self.incarnation => {
                    self.state = State::InitOffered(offer);
                    Ok(vec![Action::Send(Message::ExtractOffer(offer))])
                }
                _ => self.illegal("ExtractReady"),
            },
            Event::TokenJudged(verdict) => match (&self.state, *verdict) {
                (State::TokenJudging, Ok((token, remark))) => {
                    self.state = State::TokenGiven;
                    let mut actions: Vec<Action> = remark.map(Action::Alert).into_iter().collect();
                    actions.push(Action::Send(Message::NewToken(token)));
                    Ok(actions)
                }
                (State::TokenJudging, Err(turned)) => Ok(self.turn(turned)),
                _ => self.illegal("TokenJudged"),
            },
            Event::Upload(event) => self.on_upload("Upload", event),
            Event::Quiet => {
                self.pings = self.pings.wrapping_add(1);
                Ok(if self.is_open() { vec![Action::Send(Message::Ping(self.pings))] } else { Vec::new() })
            }
            Event::Failed(text) => {
                self.state = State::Refused;
                let refusal = Refusal::new(RefusalCode::Internal, "the server had a fault of its own; its log tells");
                Ok(vec![Action::Send(Message::Refused(refusal)), Action::Close { reason: Closed::Failed(text) }])
            }
            Event::End(refusal) => {
                let turned = Turned { detail: refusal.text.clone(), refusal, alert: false };
                Ok(self.turn(turned))
            }
            Event::Gone(text) => {
                self.state = State::Closed;
                Ok(vec![Action::Close { reason: Closed::Lost(text) }])
            }
        }
    }

    fn on_message(&mut self, message: Message) -> Result<Vec<Action>, Illegal> {
        match (message, &self.state) {
            (Message::Hello(hello), State::Opening) => {
                self.state = State::Judging { mode: hello.mode };
                self.received = hello.received;
                self.applied = hello.applied;
                match admission::screen(&hello, &self.server) {
                    Ok(node) => Ok(vec![Action::Admit { hello, node }]),
                    Err(turned) => Ok(self.turn(turned)),
                }
            }
            (Message::Foreign(theirs), State::Opening) => Ok(self.turn(self.foreign(theirs))),
            (message, State::Opening | State::Judging { .. }) => self.illegal(message.name()),
            (Message::Ping(number), _) => Ok(vec![Action::Send(Message::Pong(number))]),
            (Message::Pong(_) | Message::Ignored(_), _) => Ok(Vec::new()),
            (Message::Bye(_), _) => {
                self.state = State::Closed;
                Ok(vec![Action::Close { reason: Closed::Done }])
            }
            (Message::Token(token), State::TokenDue) => {
                self.state = State::TokenJudging;
                Ok(vec![Action::JudgeToken(token)])
            }
            (Message::TokenKept, State::TokenGiven) => {
                self.state = State::Idle;
                let mut actions = vec![Action::NoteTokenKept];
                if self.takes_uploads {
                    actions.extend(self.uploads.start().into_iter().map(of_upload));
                }
                Ok(actions)
            }
            (Message::Fetch { request, first, last, offset }, State::Idle | State::Waiting(_)) => {
                self.fetch(request, first, last, offset, Vec::new())
            }
            (Message::Fetch { request, first, last, offset }, State::Listing(_) | State::Begun { .. } | State::Sending { .. }) => {
                self.fetch(request, first, last, offset, vec![Action::Forget])
            }
            (
                Message::Received { file },
                State::Idle | State::Listing(_) | State::Begun { .. } | State::Sending { .. } | State::Waiting(_),
            ) => {
                // Acknowledgements only grow; an older one is a duplicate and says nothing new.
                if file > self.last_file {
                    return self.violation("Received", format!("file {file} was never sent"));
                }
                if file <= self.received {
                    return Ok(Vec::new());
                }
                self.received = file;
                Ok(vec![Action::NoteReceived(file)])
            }
            (
                Message::Applied(applied),
                State::Idle | State::Listing(_) | State::Begun { .. } | State::Sending { .. } | State::Waiting(_),
            ) => {
                if applied.file > self.last_file {
                    return self.violation("Applied", format!("file {} was never sent", applied.file));
                }
                if applied.file < self.applied.file || applied == self.applied {
                    return Ok(Vec::new());
                }
                self.applied = applied;
                self.received = self.received.max(applied.file);
                Ok(vec![Action::NoteApplied(applied)])
            }
            (
                Message::Stopped(reason),
                State::Idle | State::Listing(_) | State::Begun { .. } | State::Sending { .. } | State::Waiting(_),
            ) => Ok(vec![Action::NoteStopped(reason)]),
            (
                Message::Compared(outcome),
                State::Idle | State::Listing(_) | State::Begun { .. } | State::Sending { .. } | State::Waiting(_),
            ) => Ok(vec![Action::NoteCompared(outcome)]),
            (
                Message::Upload(message),
                State::Idle | State::Listing(_) | State::Begun { .. } | State::Sending { .. } | State::Waiting(_),
            ) => {
                let name = crate::session::upload::kind::name(message.kind());
                self.on_upload(name, upload_server::UploadEvent::Message(message))
            }
            (Message::RequestExtract { renew }, State::InitIdle) => {
                self.state = State::InitDeciding;
                Ok(vec![Action::DecideExtract { renew }])
            }
            (Message::FetchExtract { request, incarnation, offset }, State::InitOffered(offer)) => {
                let offer = *offer;
                if incarnation != offer.incarnation {
                    return self.violation("FetchExtract", format!("extract {incarnation} was not offered"));
                }
                self.state = State::InitBegun { request, offer };
                Ok(vec![Action::ReadExtract { offer, offset }])
            }
            (message, _) => self.illegal(message.name()),
        }
    }

    fn on_upload(&mut self, name: &'static str, event: upload_server::UploadEvent) -> Result<Vec<Action>, Illegal> {
        match self.uploads.on(event) {
            Ok(actions) => Ok(actions.into_iter().map(of_upload).collect()),
            Err(why) => self.violation(name, why),
        }
    }

    fn foreign(&self, theirs: Versions) -> Turned {
        admission::foreign(theirs)
    }

    fn judged(&mut self, mode: Mode, verdict: Result<Admitted, Turned>) -> Vec<Action> {
        match verdict {
            Err(turned) => self.turn(turned),
            Ok(admitted) => {
                self.node = Some(admitted.node.name);
                self.incarnation = admitted.welcome.incarnation;
                self.last_file = admitted.welcome.last_file;
                let has_token = mode != Mode::Init && admitted.welcome.features.contains(&feature::TOKEN);
                self.state = match mode {
                    Mode::Init => State::InitIdle,
                    _ if has_token => State::TokenDue,
                    _ => State::Idle,
                };
                let mut actions = Vec::new();
                actions.extend(admitted.remark.map(Action::Alert));
                self.takes_uploads = mode != Mode::Init && admitted.welcome.features.contains(&feature::UPLOAD);
                actions.push(Action::Send(Message::Welcome(Box::new(admitted.welcome))));
                if self.takes_uploads && !has_token {
                    actions.extend(self.uploads.start().into_iter().map(of_upload));
                }
                actions
            }
        }
    }

    fn fetch(
        &mut self,
        request: u32,
        first: FileNo,
        last: Option<FileNo>,
        offset: u64,
        mut actions: Vec<Action>,
    ) -> Result<Vec<Action>, Illegal> {
        if request <= self.request {
            return self.violation("Fetch", format!("request {request} after request {}", self.request));
        }
        if first == FileNo(0) || last.is_some_and(|last| last < first) {
            return self.violation("Fetch", "an empty range".to_owned());
        }
        self.request = request;
        actions.extend(self.list(Fetch { request, next: first, last, offset }));
        Ok(actions)
    }

    fn list(&mut self, fetch: Fetch) -> Vec<Action> {
        self.state = State::Listing(fetch);
        let wanted = fetch.last.map_or(usize::MAX, |last| usize::try_from(last.0 - fetch.next.0).unwrap_or(usize::MAX).saturating_add(1));
        vec![Action::ListFiles { after: FileNo(fetch.next.0 - 1), limit: wanted.min(SESSION_OFFER_FILES_MAX) }]
    }

    fn on_files(&mut self, files: Vec<OfferedFile>) -> Result<Vec<Action>, Illegal> {
        let State::Listing(fetch) = self.state else {
            return self.illegal("Files");
        };
        let (Some(oldest), Some(newest)) = (files.first().map(|file| file.file), files.last().map(|file| file.file)) else {
            return Ok(self.served(fetch));
        };
        self.last_file = self.last_file.max(newest);
        let mut actions = vec![Action::Send(Message::Offer(files.clone()))];
        if oldest != fetch.next {
            // The ledger keeps what a node has not applied; a hole means that it was purged or lost.
            self.state = State::Idle;
            actions.push(Action::Alert(format!("file {} is not in the ledger any more, but the node asks for it", fetch.next)));
            let missing = Message::FileUnavailable { request: fetch.request, file: fetch.next, why: Unavailable::Missing };
            actions.push(Action::Send(missing));
            return Ok(actions);
        }
        actions.extend(self.begin_next(fetch, files.into()));
        Ok(actions)
    }

    fn begin_next(&mut self, fetch: Fetch, mut queue: VecDeque<OfferedFile>) -> Vec<Action> {
        match queue.pop_front() {
            Some(file) => {
                self.state = State::Begun { fetch, file, queue };
                vec![Action::ReadFile { file, offset: fetch.offset }]
            }
            None if fetch.last.is_some_and(|last| fetch.next > last) => self.served(fetch),
            None => self.list(fetch),
        }
    }

    /// Everything that there is has been sent.
    fn served(&mut self, fetch: Fetch) -> Vec<Action> {
        if fetch.last.is_some() {
            self.state = State::Idle;
            vec![Action::Send(Message::FetchEnd { request: fetch.request })]
        } else {
            self.state = State::Waiting(fetch);
            Vec::new()
        }
    }

    fn on_opened(&mut self, offset: u64) -> Result<Vec<Action>, Illegal> {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Begun { fetch, file, queue } => {
                self.state = State::Sending { fetch, file, queue };
                Ok(vec![Action::Send(Message::FileBegin { request: fetch.request, file, offset })])
            }
            State::InitBegun { request, offer } => {
                self.state = State::InitSending { request, offer };
                Ok(vec![Action::Send(Message::ExtractBegin { request, offset })])
            }
            other => {
                self.state = other;
                self.illegal("Opened")
            }
        }
    }

    fn on_sent(&mut self) -> Result<Vec<Action>, Illegal> {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Sending { fetch, file, queue } => {
                let mut actions = vec![Action::Send(Message::FileEnd { request: fetch.request, file: file.file })];
                actions.extend(self.begin_next(Fetch { next: file.file.next(), offset: 0, ..fetch }, queue));
                Ok(actions)
            }
            State::InitSending { request, offer } => {
                self.state = State::InitOffered(offer);
                Ok(vec![Action::Send(Message::ExtractEnd { request })])
            }
            other => {
                self.state = other;
                self.illegal("Sent")
            }
        }
    }

    fn on_unreadable(&mut self, why: Unavailable) -> Result<Vec<Action>, Illegal> {
        match &self.state {
            State::Begun { fetch, file, .. } | State::Sending { fetch, file, .. } => {
                let (request, file) = (fetch.request, file.file);
                self.state = State::Idle;
                Ok(vec![Action::Alert(format!("file {file} {why}")), Action::Send(Message::FileUnavailable { request, file, why })])
            }
            State::InitBegun { offer, .. } | State::InitSending { offer, .. } => {
                let text = format!("extract {} {why}", offer.incarnation);
                let mut turned = Turned::plain(RefusalCode::Internal, text);
                turned.alert = true;
                Ok(self.turn(turned))
            }
            _ => self.illegal("Unreadable"),
        }
    }

    fn await_extract(&mut self) -> Vec<Action> {
        self.state = State::InitAwaiting;
        vec![Action::AwaitExtract(self.incarnation)]
    }

    fn node_now(&mut self, node: Option<Box<Node>>) -> Vec<Action> {
        match node {
            _ if !self.is_open() => Vec::new(),
            None => self.turn(Turned::node("the node was deleted while connected")),
            Some(node) if node.state == NodeState::Disabled => self.turn(Turned::node("the node was disabled while connected")),
            Some(node) if node.state == NodeState::Stale && !matches!(self.state, State::InitDeciding | State::InitStarting) => {
                self.turn(Turned::plain(RefusalCode::Stale, format!("{} became stale while connected: fetch the database anew", node.name)))
            }
            // While the session itself starts the node, the number is about to change.
            Some(node) if node.incarnation > self.incarnation && node.extracted <= self.incarnation => {
                self.turn(Turned::plain(RefusalCode::BegunAnew, format!("the stream of {} begins anew: call again", node.name)))
            }
            Some(node) if node.incarnation != self.incarnation && !matches!(self.state, State::InitDeciding | State::InitStarting) => self
                .turn(Turned::plain(
                    RefusalCode::Incarnation,
                    format!(
                        "{} was extracted again while connected: extract {} replaces {}",
                        node.name, node.incarnation, self.incarnation
                    ),
                )),
            Some(_) => Vec::new(),
        }
    }

    fn turn(&mut self, turned: Turned) -> Vec<Action> {
        self.state = State::Refused;
        let mut actions = Vec::new();
        if turned.alert {
            actions.push(Action::Alert(turned.detail.clone()));
        }
        actions.push(Action::Send(Message::Refused(turned.refusal.clone())));
        actions.push(Action::Close { reason: Closed::Refused(turned.refusal, turned.detail) });
        actions
    }

    fn violation(&mut self, event: &'static str, text: String) -> Result<Vec<Action>, Illegal> {
        let state = self.state.name();
        self.state = State::Refused;
        let actions = vec![
            Action::Send(Message::Refused(Refusal::new(RefusalCode::Violation, format!("{event}: {text}")))),
            Action::Close { reason: Closed::Violation(format!("{event} in state {state}: {text}")) },
        ];
        Err(Illegal { state, event, actions })
    }

    fn illegal(&mut self, event: &'static str) -> Result<Vec<Action>, Illegal> {
        self.violation(event, "does not fit here".to_owned())
    }
}

fn of_upload(action: upload_server::UploadAction) -> Action {
    match action {
        upload_server::UploadAction::Send(message) => Action::Send(Message::Upload(message)),
        upload_server::UploadAction::Alert(text) => Action::Alert(text),
        other => Action::Upload(other),
    }
}
