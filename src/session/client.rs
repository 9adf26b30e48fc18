//! The node's half of a session as a state machine: events in, actions out.
//!
//! The machine never trusts the order of what comes: a file or chunk that was not asked for, or does not continue what is there,
//! ends the session. After a damaged file it asks again under a new request number and skips what is still on its way under the old.

use crate::base::ids::{Epoch, FileNo, Incarnation, InstallId, ServerId, SyncToken, UnitNo};
use crate::base::limits::DX_FILE_BYTES_MAX;
use crate::model::digest::shortened;
use crate::session::codec::TEXT_BYTES_MAX;
use crate::session::message::{AppliedTo, ExtractOffer, Hello, Message, Mode, OfferedFile, Versions, Welcome, feature};
use crate::session::upload_client::{self, UploadClient};
use bytes::Bytes;
use std::collections::VecDeque;

pub use crate::session::client_event::{Action, Closed, Event, Illegal, Report};
pub use crate::session::plan::{Range, plan};

/// A file of which chunks are coming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Current {
    file: OfferedFile,
    at: u64,
    /// Its end came; the driver compares it with its hash.
    whole: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Fetching {
    request: u32,
    range: Range,
    next: FileNo,
    current: Option<Current>,
    rest: VecDeque<Range>,
    /// File that came damaged last.
    damaged: Option<FileNo>,
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    /// No line yet.
    Start,
    /// The hello is out.
    Greeting,
    /// Accepted if the token is right; it is on its way.
    Showing(Box<Welcome>),
    /// It is; the next one is being kept.
    Keeping(Box<Welcome>),
    /// Accepted; nothing asked for, or everything is here.
    Idle,
    /// Files are coming.
    Fetching(Fetching),
    /// Mode init, accepted.
    InitIdle,
    /// The extract was asked for.
    InitWaiting,
    /// The extract is there.
    InitOffered(ExtractOffer),
    /// The extract is coming. `at` is `None` until its first byte was announced.
    InitFetching { request: u32, offer: ExtractOffer, asked: u64, at: Option<u64> },
    /// Over; final.
    Closed,
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            State::Start => "start",
            // To the driver it is one: nothing may be done yet.
            State::Greeting | State::Showing(_) | State::Keeping(_) => "greeting",
            State::Idle => "idle",
            State::Fetching(_) => "fetching",
            State::InitIdle => "init-idle",
            State::InitWaiting => "init-waiting",
            State::InitOffered(_) => "init-offered",
            State::InitFetching { .. } => "init-fetching",
            State::Closed => "closed",
        }
    }
}

type Outcome = Result<Vec<Action>, Illegal>;

/// The node's half of one session.
#[derive(Debug)]
pub struct ClientSession {
    hello: Hello,
    state: State,
    request: u32,
    pings: u32,
    durable: FileNo,
    applied: AppliedTo,
    /// Whether the server takes reports.
    reports: bool,
    uploads: UploadClient,
    token: Option<SyncToken>,
}

impl ClientSession {
    /// Returns a session that will introduce itself with `hello`.
    pub fn new(hello: Hello) -> ClientSession {
        let (durable, applied) = (hello.received, hello.applied);
        ClientSession {
            hello,
            state: State::Start,
            request: 0,
            pings: 0,
            durable,
            applied,
            reports: false,
            uploads: UploadClient::default(),
            token: None,
        }
    }

    /// Has the session show this token, which the local database holds.
    #[must_use]
    pub fn with_token(self, token: Option<SyncToken>) -> ClientSession {
        ClientSession { token, ..self }
    }

    /// Returns the name of the state, for logs.
    pub fn state(&self) -> &'static str {
        self.state.name()
    }

    /// Whether the session is over.
    pub fn is_over(&self) -> bool {
        self.state == State::Closed
    }

    /// Whether the server takes reports.
    pub fn takes_reports(&self) -> bool {
        self.reports
    }

    /// Returns the way up.
    pub fn uploads(&self) -> &UploadClient {
        &self.uploads
    }

    /// Returns the extract that was offered.
    pub fn extract(&self) -> Option<ExtractOffer> {
        match self.state {
            State::InitOffered(offer) | State::InitFetching { offer, .. } => Some(offer),
            _ => None,
        }
    }

    /// Takes one event and returns what is to be done, in order.
    ///
    /// # Errors
    /// `Illegal` if the event does not fit the state; the session has ended then, and the error holds the last actions.
    pub fn on(&mut self, event: Event) -> Outcome {
        if self.is_over() {
            return Ok(Vec::new());
        }
        match event {
            Event::Connected => match self.state {
                State::Start => {
                    self.state = State::Greeting;
                    Ok(vec![Action::Send(Message::Hello(Box::new(self.hello.clone())))])
                }
                _ => self.illegal("Connected", "there is a line already"),
            },
            Event::Message(message) => self.on_message(message),
            Event::Plan(ranges) => match self.state {
                State::Idle => Ok(self.next_range(ranges.into(), None)),
                _ => self.illegal("Plan", "not welcome yet"),
            },
            Event::Verified => self.on_verified(),
            Event::Damaged => self.on_damaged(),
            Event::Durable(file) => Ok(if self.is_welcome() && file > self.durable {
                self.durable = file;
                vec![Action::Send(Message::Received { file })]
            } else {
                Vec::new()
            }),
            Event::Applied(applied) => Ok(if self.is_welcome() && applied.file >= self.applied.file && applied != self.applied {
                self.applied = applied;
                vec![Action::Send(Message::Applied(applied))]
            } else {
                Vec::new()
            }),
            Event::Tell(report) => Ok(if self.is_welcome() && self.reports {
                vec![Action::Send(match report {
                    Report::Stopped(reason) => Message::Stopped(reason.map(|reason| shortened(reason, TEXT_BYTES_MAX))),
                    Report::Compared(outcome) => Message::Compared(outcome),
                })]
            } else {
                Vec::new()
            }),
            Event::AskExtract { renew } => match self.state {
                State::InitIdle => {
                    self.state = State::InitWaiting;
                    Ok(vec![Action::Send(Message::RequestExtract { renew })])
                }
                _ => self.illegal("AskExtract", "not in mode init"),
            },
            Event::FetchExtract { offset } => match self.state {
                State::InitOffered(offer) if offset <= offer.bytes => {
                    self.request += 1;
                    self.state = State::InitFetching { request: self.request, offer, asked: offset, at: None };
                    let incarnation = offer.incarnation;
                    Ok(vec![Action::Send(Message::FetchExtract { request: self.request, incarnation, offset })])
                }
                _ => self.illegal("FetchExtract", "no extract was offered"),
            },
            Event::TokenKept => match std::mem::replace(&mut self.state, State::Greeting) {
                State::Keeping(welcome) => {
                    let mut actions = vec![Action::Send(Message::TokenKept)];
                    actions.extend(self.let_in(welcome));
                    Ok(actions)
                }
                state => {
                    self.state = state;
                    self.illegal("TokenKept", "no token was given")
                }
            },
            Event::Upload(event) => self.on_upload("Upload", event),
            Event::Quiet => {
                self.pings = self.pings.wrapping_add(1);
                let speaks = !matches!(self.state, State::Start | State::Greeting | State::Showing(_) | State::Keeping(_));
                Ok(if speaks { vec![Action::Send(Message::Ping(self.pings))] } else { Vec::new() })
            }
            Event::Leave => {
                self.state = State::Closed;
                Ok(vec![Action::Send(Message::Bye(String::new())), Action::Close(Closed::Done)])
            }
            Event::Gone(text) => Ok(self.close(Closed::Lost(text))),
        }
    }

    fn on_upload(&mut self, name: &'static str, event: upload_client::UploadEvent) -> Outcome {
        if !self.is_welcome() {
            return self.illegal(name, "not welcome yet");
        }
        match self.uploads.on(event) {
            Ok(actions) => Ok(actions
                .into_iter()
                .map(|action| match action {
                    upload_client::UploadAction::Send(message) => Action::Send(Message::Upload(message)),
                    other => Action::Upload(other),
                })
                .collect()),
            Err(why) => self.illegal(name, &why),
        }
    }

    fn is_welcome(&self) -> bool {
        matches!(self.state, State::Idle | State::Fetching(_))
    }

    fn close(&mut self, closed: Closed) -> Vec<Action> {
        self.state = State::Closed;
        vec![Action::Close(closed)]
    }

    /// Ends the session from this side; the server is told that we go.
    fn leave(&mut self, closed: Closed, text: &str) -> Vec<Action> {
        self.state = State::Closed;
        vec![Action::Send(Message::Bye(text.to_owned())), Action::Close(closed)]
    }

    fn on_message(&mut self, message: Message) -> Outcome {
        let name = message.name();
        match message {
            Message::Refused(refusal) => Ok(self.close(Closed::Refused(refusal))),
            Message::Bye(text) => Ok(self.close(Closed::Stopped(text))),
            Message::Ping(number) => Ok(vec![Action::Send(Message::Pong(number))]),
            Message::Pong(_) | Message::Ignored(_) => Ok(Vec::new()),
            Message::Upload(message) => self.on_upload(name, upload_client::UploadEvent::Message(message)),
            Message::Welcome(welcome) => match self.state {
                State::Greeting => self.on_welcome(welcome),
                _ => self.illegal(name, "welcome twice"),
            },
            Message::NewToken(token) => match std::mem::replace(&mut self.state, State::Greeting) {
                State::Showing(welcome) => {
                    self.state = State::Keeping(welcome);
                    Ok(vec![Action::KeepToken(token)])
                }
                state => {
                    self.state = state;
                    self.illegal(name, "no token was shown")
                }
            },
            Message::Offer(files) if matches!(self.state, State::Fetching(_)) => Ok(vec![Action::Offered(files)]),
            Message::FileBegin { request, file, offset } => self.on_file_begin(request, file, offset),
            Message::Chunk { offset, bytes } => self.on_chunk(offset, bytes),
            Message::FileEnd { request, file } => self.on_file_end(request, file),
            Message::FetchEnd { request } => match &self.state {
                State::Fetching(fetching) if request < fetching.request => Ok(Vec::new()),
                State::Fetching(fetching) if request == fetching.request && fetching.current.is_none() => {
                    let fetching = fetching.clone();
                    match fetching.range.last {
                        Some(last) if fetching.next > last => Ok(self.next_range(fetching.rest, fetching.damaged)),
                        Some(last) => Ok(self.leave(Closed::Incomplete { file: fetching.next, last }, "files are missing")),
                        None => self.illegal(name, "the request has no end"),
                    }
                }
                _ => self.illegal(name, "not in a request"),
            },
            Message::FileUnavailable { request, file, why } => match &self.state {
                State::Fetching(fetching) if request < fetching.request => Ok(Vec::new()),
                State::Fetching(_) => Ok(self.leave(Closed::Unavailable(file, why), "a file is not available")),
                _ => self.illegal(name, "not in a request"),
            },
            Message::ExtractOffer(offer) => match self.state {
                State::InitWaiting => {
                    self.state = State::InitOffered(offer);
                    Ok(vec![Action::ExtractOffered(offer)])
                }
                _ => self.illegal(name, "nobody asked for it"),
            },
            Message::ExtractBegin { request, offset } => match self.state {
                State::InitFetching { request: ours, offer, asked, at: None } if request == ours && (offset == asked || offset == 0) => {
                    self.state = State::InitFetching { request, offer, asked, at: Some(offset) };
                    Ok(vec![Action::BeginExtract { offset }])
                }
                _ => self.illegal(name, "it does not answer the request"),
            },
            Message::ExtractEnd { request } => match self.state {
                State::InitFetching { request: ours, offer, at: Some(at), .. } if request == ours && at == offer.bytes => {
                    self.state = State::InitOffered(offer);
                    Ok(vec![Action::FinishExtract(offer)])
                }
                _ => self.illegal(name, "the extract is not whole"),
            },
            Message::Hello(_)
            | Message::Foreign(_)
            | Message::Stopped(_)
            | Message::Compared(_)
            | Message::Token(_)
            | Message::TokenKept
            | Message::Fetch { .. }
            | Message::Received { .. }
            | Message::Applied(_)
            | Message::RequestExtract { .. }
            | Message::FetchExtract { .. }
            | Message::Offer(_) => self.illegal(name, "a server does not send that now"),
        }
    }

    fn on_welcome(&mut self, welcome: Box<Welcome>) -> Outcome {
        let wrong_id = self.hello.server_id.is_some_and(|ours| ours != welcome.server_id);
        let wrong_epoch = self.hello.mode != Mode::Init && self.hello.epoch > welcome.epoch;
        if wrong_id || wrong_epoch {
            let (name, server_id, epoch) = (welcome.server_name, welcome.server_id, welcome.epoch);
            return Ok(self.leave(Closed::WrongServer { name, server_id, epoch }, "not my server"));
        }
        let ours = self.hello.protocol.unwrap_or(Versions::PROTOCOL);
        if !(ours.min..=ours.max).contains(&welcome.protocol) {
            return self.illegal("Welcome", &format!("protocol {} was not offered", welcome.protocol));
        }
        self.reports = welcome.features.contains(&feature::REPORT);
        if self.hello.mode != Mode::Init && welcome.incarnation > self.hello.incarnation {
            return Ok(self.leave(Closed::BegunAnew(welcome.incarnation), "my stream began anew"));
        }
        if self.hello.mode != Mode::Init && welcome.incarnation != self.hello.incarnation {
            return self.illegal("Welcome", &format!("extract {} is not ours", welcome.incarnation));
        }
        if self.hello.mode != Mode::Init && self.both_have(&welcome, feature::TOKEN) {
            self.state = State::Showing(welcome);
            return Ok(vec![Action::Send(Message::Token(self.token))]);
        }
        Ok(self.let_in(welcome))
    }

    fn both_have(&self, welcome: &Welcome, feature: u16) -> bool {
        [&self.hello.features, &welcome.features].iter().all(|list| list.contains(&feature))
    }

    fn let_in(&mut self, welcome: Box<Welcome>) -> Vec<Action> {
        if self.hello.mode != Mode::Init && self.both_have(&welcome, feature::UPLOAD) {
            self.uploads.start();
        }
        self.state = if self.hello.mode == Mode::Init { State::InitIdle } else { State::Idle };
        vec![Action::Welcomed(welcome)]
    }

    fn next_range(&mut self, mut rest: VecDeque<Range>, damaged: Option<FileNo>) -> Vec<Action> {
        let Some(range) = rest.pop_front() else {
            self.state = State::Idle;
            return vec![Action::Complete];
        };
        self.ask(range, rest, damaged)
    }

    fn ask(&mut self, range: Range, rest: VecDeque<Range>, damaged: Option<FileNo>) -> Vec<Action> {
        self.request += 1;
        let request = self.request;
        self.state = State::Fetching(Fetching { request, range, next: range.first, current: None, rest, damaged });
        vec![Action::Send(Message::Fetch { request, first: range.first, last: range.last, offset: range.offset })]
    }

    fn on_file_begin(&mut self, request: u32, file: OfferedFile, offset: u64) -> Outcome {
        let State::Fetching(fetching) = &mut self.state else {
            return self.illegal("FileBegin", "nothing was asked for");
        };
        if request < fetching.request {
            return Ok(Vec::new());
        }
        let asked = if file.file == fetching.range.first { fetching.range.offset } else { 0 };
        let fits = request == fetching.request
            && fetching.current.is_none()
            && file.file == fetching.next
            && fetching.range.last.is_none_or(|last| file.file <= last)
            && (offset == asked || offset == 0)
            && offset <= file.bytes
            && file.bytes <= DX_FILE_BYTES_MAX;
        if !fits {
            return self.illegal("FileBegin", &format!("file {} at {offset} is not what was asked for", file.file));
        }
        fetching.current = Some(Current { file, at: offset, whole: false });
        Ok(vec![Action::BeginFile { file, offset }])
    }

    fn on_chunk(&mut self, offset: u64, bytes: Bytes) -> Outcome {
        let (at, end) = match &mut self.state {
            // Chunks of a request that was replaced are still on their way until the new one is answered.
            State::Fetching(Fetching { current: None, range, next, .. }) if *next == range.first => return Ok(Vec::new()),
            State::Fetching(Fetching { current: Some(Current { at, file, whole: false }), .. }) => (at, file.bytes),
            State::InitFetching { at: Some(at), offer, .. } => (at, offer.bytes),
            _ => return self.illegal("Chunk", "no file was begun"),
        };
        let length = bytes.len() as u64;
        if offset != *at || length == 0 || length > end - *at {
            let why = format!("{length} bytes at {offset} do not continue at {at} of {end}");
            return self.illegal("Chunk", &why);
        }
        *at += length;
        Ok(vec![Action::Store { offset, bytes }])
    }

    fn on_file_end(&mut self, request: u32, file: FileNo) -> Outcome {
        match &mut self.state {
            State::Fetching(fetching) if request < fetching.request => Ok(Vec::new()),
            State::Fetching(Fetching { current: Some(current), .. })
                if !current.whole && current.file.file == file && current.at == current.file.bytes =>
            {
                current.whole = true;
                Ok(vec![Action::FinishFile(current.file)])
            }
            _ => self.illegal("FileEnd", "the file is not whole"),
        }
    }

    fn on_verified(&mut self) -> Outcome {
        match &mut self.state {
            State::Fetching(fetching) if fetching.current.is_some_and(|current| current.whole) => {
                fetching.current = None;
                fetching.next = fetching.next.next();
                Ok(Vec::new())
            }
            _ => self.illegal("Verified", "no file was finished"),
        }
    }

    fn on_damaged(&mut self) -> Outcome {
        match &self.state {
            State::Fetching(fetching) if fetching.current.is_some_and(|current| current.whole) => {
                let fetching = fetching.clone();
                let file = fetching.next;
                if fetching.damaged == Some(file) {
                    return Ok(self.leave(Closed::DamagedTwice(file), "a file was damaged twice"));
                }
                let range = Range { first: file, last: fetching.range.last, offset: 0 };
                Ok(self.ask(range, fetching.rest, Some(file)))
            }
            _ => self.illegal("Damaged", "no file was finished"),
        }
    }

    fn illegal(&mut self, event: &'static str, why: &str) -> Outcome {
        let state = self.state.name();
        let actions = self.leave(Closed::Violation(format!("{event} in state {state}: {why}")), "the protocol was broken");
        Err(Illegal { state, event, why: why.to_owned(), actions })
    }
}

/// What a node that has no local database yet says of itself.
pub fn init_hello(node: &str, install_id: InstallId, server_id: Option<ServerId>) -> Hello {
    Hello {
        protocol: Some(Versions::PROTOCOL),
        dx: Versions::DX,
        program: crate::session::message::program(),
        node: node.to_owned(),
        install_id,
        server_id,
        epoch: Epoch(0),
        incarnation: Incarnation(0),
        applied: AppliedTo::default(),
        received: FileNo(0),
        unsent: UnitNo(0),
        mode: Mode::Init,
        features: Vec::new(),
    }
}
