//! The node's half of the way up as a state machine, a part of `session::client`.
//!
//! One file at a time: begun, its bytes, its end, then the server's answer, which may also come sooner (it has the file already, or
//! does not take it). The driver (`client::send`) reads the files and keeps what the server has.

use crate::base::ids::FileNo;
use crate::session::upload::{Refused, UploadFile, UploadMessage, UploadPart, UploadRefusal, UploadState, kind};

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum UploadEvent {
    /// The server sent a message.
    Message(UploadMessage),
    /// This file is next.
    Send(UploadFile),
    /// Its last byte is on its way.
    Sent,
    /// There is nothing more for now.
    Done,
    /// Ask the server to tell when everything is merged.
    Await {
        /// At most so long, in seconds.
        seconds: u32,
    },
    /// Some time after a refusal that passes: try again.
    Retry,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub enum UploadAction {
    /// Send a message.
    Send(UploadMessage),
    /// This is what the server has; answer with `Send` or `Done`.
    Known(UploadState),
    /// Send the bytes of this file from `offset` on, then answer `Sent`. Ends early with `Stored` or `Refused`.
    Read {
        /// The file.
        file: UploadFile,
        /// First byte wanted.
        offset: u64,
    },
    /// The server has the file durable; send no more bytes of it. Answer with `Send` or `Done`.
    Stored(UploadFile),
    /// The server does not take the file; send no more bytes of it.
    Refused {
        /// Why.
        refused: Refused,
        /// Whether to try it again at once: it was damaged on the way. Else nothing more is sent until `Retry`.
        again: bool,
    },
    /// The answer to `Await`.
    Awaited {
        /// Whether everything is merged and routed.
        merged: bool,
        /// Last file that was routed to us.
        last_file: FileNo,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// One of the two does not know uploads, or none are wanted.
    Off,
    /// Accepted; the server is about to say what it has.
    Waiting,
    /// The next file may go.
    Ready,
    /// Bytes of a file are going out.
    Sending(UploadFile),
    /// All of it went out; the answer is due.
    Ending(UploadFile),
    /// The server took a file not; nothing more is sent for now. `true` = it may take it later.
    Stopped(bool),
}

/// The node's half of the way up.
#[derive(Debug, Clone)]
pub struct UploadClient {
    state: State,
    part: Option<UploadPart>,
    next: FileNo,
    /// File that came damaged last.
    damaged: Option<FileNo>,
    awaiting: bool,
}

type Outcome = Result<Vec<UploadAction>, String>;

impl Default for UploadClient {
    fn default() -> UploadClient {
        UploadClient { state: State::Off, part: None, next: FileNo(1), damaged: None, awaiting: false }
    }
}

impl UploadClient {
    /// Begins: both sides know uploads.
    pub fn start(&mut self) {
        self.state = State::Waiting;
    }

    /// Whether uploads belong to this session.
    pub fn is_on(&self) -> bool {
        self.state != State::Off
    }

    /// Whether the next file may go.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Whether a refusal that passes keeps the next file back.
    pub fn may_retry(&self) -> bool {
        self.state == State::Stopped(true)
    }

    /// Returns the name of the state, for logs.
    pub fn state(&self) -> &'static str {
        match self.state {
            State::Off => "off",
            State::Waiting => "waiting",
            State::Ready => "ready",
            State::Sending(_) => "sending",
            State::Ending(_) => "ending",
            State::Stopped(_) => "stopped",
        }
    }

    /// Takes one event and returns what is to be done, in order.
    ///
    /// # Errors
    /// The event does not fit the state: the session ends with this text.
    pub fn on(&mut self, event: UploadEvent) -> Outcome {
        match (event, self.state) {
            (UploadEvent::Message(message), _) => self.on_message(message),
            (UploadEvent::Send(file), State::Ready) => {
                let part =
                    self.part.take().filter(|part| file.file == self.next && part.byte_hash == file.byte_hash && part.bytes <= file.bytes);
                let offset = part.map_or(0, |part| part.bytes);
                self.state = State::Sending(file);
                Ok(vec![UploadAction::Send(UploadMessage::Begin { file, offset }), UploadAction::Read { file, offset }])
            }
            (UploadEvent::Sent, State::Sending(file)) => {
                self.state = State::Ending(file);
                Ok(vec![UploadAction::Send(UploadMessage::End { file: file.file })])
            }
            (UploadEvent::Done, State::Ready) => Ok(vec![UploadAction::Send(UploadMessage::Done)]),
            (UploadEvent::Await { seconds }, State::Ready | State::Stopped(_)) if !self.awaiting => {
                self.awaiting = true;
                Ok(vec![UploadAction::Send(UploadMessage::AwaitMerged { seconds })])
            }
            (UploadEvent::Retry, State::Stopped(true)) => {
                self.state = State::Ready;
                Ok(Vec::new())
            }
            (event, _) => Err(format!("{event:?} does not fit the state {}", self.state())),
        }
    }

    fn on_message(&mut self, message: UploadMessage) -> Outcome {
        match (message, self.state) {
            (UploadMessage::State(known), State::Waiting) => {
                self.state = State::Ready;
                self.part = known.part;
                self.next = known.stored.next();
                Ok(vec![UploadAction::Known(known)])
            }
            (UploadMessage::Stored { file: stored }, State::Sending(file) | State::Ending(file)) if stored == file.file => {
                self.state = State::Ready;
                self.damaged = None;
                Ok(vec![UploadAction::Stored(file)])
            }
            (UploadMessage::Refused(refused), State::Sending(file) | State::Ending(file)) if refused.file == file.file => {
                let again = refused.code == UploadRefusal::Damaged && self.damaged != Some(file.file);
                self.damaged = (refused.code == UploadRefusal::Damaged).then_some(file.file);
                self.state = if again { State::Ready } else { State::Stopped(refused.code.is_passing()) };
                Ok(vec![UploadAction::Refused { refused, again }])
            }
            (UploadMessage::Awaited { merged, last_file }, _) if self.awaiting => {
                self.awaiting = false;
                Ok(vec![UploadAction::Awaited { merged, last_file }])
            }
            (message, _) => Err(format!("{} does not fit the state {}", kind::name(message.kind()), self.state())),
        }
    }
}
