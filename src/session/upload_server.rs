//! The server's half of the way up as a state machine, a part of `session::server`.
//!
//! The driver tells what lies there, opens parts, writes bytes, and proves and publishes files (`server::inbox`); the machine decides
//! what may come when. A file is acknowledged only after the driver said that it is durable (MI-17). After a refusal the rest of that
//! file is still on its way: it is skipped. What was refused is refused alone, the session goes on.

use crate::base::ids::{ContentHash, FileNo};
use crate::base::limits::DX_FILE_BYTES_MAX;
use crate::session::upload::{Refused, UploadFile, UploadMessage, UploadRefusal, UploadState};
use bytes::Bytes;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum UploadEvent {
    /// The node sent a message.
    Message(UploadMessage),
    /// Answer to `UploadAction::Look`.
    Known(UploadState),
    /// Answer to `UploadAction::Begin`.
    Began(Result<Opening, Turned>),
    /// The bytes of a `Store` could not be written, for a reason that passes.
    Broken(Turned),
    /// Answer to `UploadAction::Finish`: the file is durable, or it was not taken.
    Finished(Result<(), Turned>),
    /// Answer to `UploadAction::Await`.
    Awaited {
        /// Whether everything is merged and routed.
        merged: bool,
        /// Last file that was routed to the node.
        last_file: FileNo,
    },
}

/// What becomes of a file that a node begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// Its bytes are wanted.
    Receive,
    /// It is there already, with the same content.
    Duplicate,
}

/// A file that is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turned {
    /// Why.
    pub code: UploadRefusal,
    /// The same for people.
    pub text: String,
    /// Whether a person must look.
    pub alert: bool,
}

impl Turned {
    /// Returns a refusal that needs nobody.
    pub fn plain(code: UploadRefusal, text: impl Into<String>) -> Turned {
        Turned { code, text: text.into(), alert: false }
    }

    /// Returns a refusal that a person must look at.
    pub fn alert(code: UploadRefusal, text: impl Into<String>) -> Turned {
        Turned { code, text: text.into(), alert: true }
    }
}

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub enum UploadAction {
    /// Send a message.
    Send(UploadMessage),
    /// Find out what there is of this node; answer `Known`.
    Look,
    /// Open the part of this file, keeping its first `offset` bytes; answer `Began`.
    Begin {
        /// The file.
        file: UploadFile,
        /// Where its first chunk will begin.
        offset: u64,
    },
    /// Write some bytes of the file that was begun last.
    Store(Bytes),
    /// Prove the file and make it durable; answer `Finished`.
    Finish(UploadFile),
    /// Keep what was begun for the next time; nothing more of it comes.
    Leave,
    /// Wait until everything to this file is merged and routed, or for so long; answer `Awaited`.
    Await {
        /// The last file that is stored.
        stored: FileNo,
        /// How long.
        seconds: u32,
    },
    /// Tell a person.
    Alert(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// One of the two does not know uploads, or the session is not for them.
    Off,
    /// What is there is being found out.
    Looking,
    /// The next file may come.
    Ready,
    /// The part is being opened.
    Beginning(UploadFile, u64),
    /// Bytes are coming; so many are there.
    Receiving(UploadFile, u64),
    /// Bytes of a file that is not wanted are coming.
    Skipping(FileNo),
    /// The file is being proved and made durable.
    Finishing(UploadFile),
}

/// The server's half of the way up.
#[derive(Debug, Clone)]
pub struct UploadServer {
    state: State,
    known: UploadState,
    awaiting: bool,
}

type Outcome = Result<Vec<UploadAction>, String>;

impl Default for UploadServer {
    fn default() -> UploadServer {
        UploadServer { state: State::Off, known: UploadState::default(), awaiting: false }
    }
}

impl UploadServer {
    /// Begins: both sides know uploads. Returns what is to be done.
    pub fn start(&mut self) -> Vec<UploadAction> {
        self.state = State::Looking;
        vec![UploadAction::Look]
    }

    /// Returns the name of the state, for logs.
    pub fn state(&self) -> &'static str {
        match self.state {
            State::Off => "off",
            State::Looking => "looking",
            State::Ready => "ready",
            State::Beginning(..) => "beginning",
            State::Receiving(..) => "receiving",
            State::Skipping(_) => "skipping",
            State::Finishing(_) => "finishing",
        }
    }

    /// Returns the last file that is stored, and its content hash.
    pub fn stored(&self) -> (FileNo, ContentHash) {
        (self.known.stored, self.known.hash)
    }

    /// Takes one event and returns what is to be done, in order.
    ///
    /// # Errors
    /// The event does not fit the state: the session ends with this text.
    pub fn on(&mut self, event: UploadEvent) -> Outcome {
        match (event, self.state) {
            (UploadEvent::Message(message), State::Off | State::Looking) => {
                Err(format!("{} before anything was said of uploads", crate::session::upload::kind::name(message.kind())))
            }
            (UploadEvent::Message(message), _) => self.on_message(message),
            (UploadEvent::Known(known), State::Looking) => {
                self.known.clone_from(&known);
                self.state = State::Ready;
                Ok(vec![UploadAction::Send(UploadMessage::State(known))])
            }
            (UploadEvent::Began(Ok(Opening::Receive)), State::Beginning(file, offset)) => {
                self.state = State::Receiving(file, offset);
                Ok(Vec::new())
            }
            (UploadEvent::Began(Ok(Opening::Duplicate)), State::Beginning(file, _)) => {
                self.state = State::Skipping(file.file);
                self.take(file);
                Ok(vec![UploadAction::Send(UploadMessage::Stored { file: file.file })])
            }
            (UploadEvent::Began(Err(turned)), State::Beginning(file, _)) | (UploadEvent::Broken(turned), State::Receiving(file, _)) => {
                self.state = State::Skipping(file.file);
                Ok(refuse(file.file, turned))
            }
            (UploadEvent::Finished(Ok(())), State::Finishing(file)) => {
                self.state = State::Ready;
                self.take(file);
                Ok(vec![UploadAction::Send(UploadMessage::Stored { file: file.file })])
            }
            (UploadEvent::Finished(Err(turned)), State::Finishing(file)) => {
                self.state = State::Ready;
                self.known.part = None;
                Ok(refuse(file.file, turned))
            }
            (UploadEvent::Awaited { merged, last_file }, _) if self.awaiting => {
                self.awaiting = false;
                Ok(vec![UploadAction::Send(UploadMessage::Awaited { merged, last_file })])
            }
            (event, _) => Err(format!("{event:?} answers nothing in state {}", self.state())),
        }
    }

    /// The file is there, this time or since long.
    fn take(&mut self, file: UploadFile) {
        self.known.part = None;
        if file.file > self.known.stored {
            (self.known.stored, self.known.hash) = (file.file, file.content_hash);
            self.known.last_unit = self.known.last_unit.max(file.last);
        }
    }

    fn on_message(&mut self, message: UploadMessage) -> Outcome {
        match (message, self.state) {
            (UploadMessage::Begin { file, offset }, State::Ready | State::Skipping(_)) => self.on_begin(file, offset),
            (UploadMessage::Chunk { offset, bytes }, State::Receiving(file, at)) => {
                let length = bytes.len() as u64;
                if offset != at || length > file.bytes - at {
                    return Err(format!("{length} bytes at {offset} do not continue file {} at {at} of {}", file.file, file.bytes));
                }
                self.state = State::Receiving(file, at + length);
                Ok(vec![UploadAction::Store(bytes)])
            }
            (UploadMessage::Chunk { .. }, State::Skipping(_)) => Ok(Vec::new()),
            (UploadMessage::End { file: ended }, State::Receiving(file, at)) if ended == file.file && at == file.bytes => {
                self.state = State::Finishing(file);
                Ok(vec![UploadAction::Finish(file)])
            }
            (UploadMessage::End { file }, State::Skipping(skipped)) if file == skipped => {
                self.state = State::Ready;
                Ok(Vec::new())
            }
            (UploadMessage::Done, State::Ready | State::Skipping(_)) => Ok(Vec::new()),
            (UploadMessage::AwaitMerged { seconds }, State::Ready | State::Skipping(_)) if !self.awaiting => {
                self.awaiting = true;
                Ok(vec![UploadAction::Await { stored: self.known.stored, seconds }])
            }
            (message, _) => Err(format!("{} does not fit the state {}", crate::session::upload::kind::name(message.kind()), self.state())),
        }
    }

    fn on_begin(&mut self, file: UploadFile, offset: u64) -> Outcome {
        let next = self.known.stored.next();
        let part = self.known.part.take();
        let is_continued = part.is_some_and(|part| file.file == next && part.byte_hash == file.byte_hash && part.bytes == offset);
        if offset > 0 && !is_continued {
            return Err(format!("file {} at byte {offset}, which was not offered", file.file));
        }
        let refusal = if file.bytes > DX_FILE_BYTES_MAX {
            let text = format!("{} has {} bytes, {DX_FILE_BYTES_MAX} are allowed", file.file.file_name(), file.bytes);
            Some(Turned::plain(UploadRefusal::TooLarge, text))
        } else if file.file > next {
            let text = match FileNo(file.file.0 - 1) {
                last if last == next => format!("{} is missing", next.file_name()),
                last => format!("{} to {} are missing", next.file_name(), last.file_name()),
            };
            Some(Turned::plain(UploadRefusal::OutOfOrder, format!("{text}: send from {} on", next.file_name())))
        } else {
            None
        };
        match refusal {
            Some(turned) => {
                self.state = State::Skipping(file.file);
                Ok(refuse(file.file, turned))
            }
            None => {
                self.state = State::Beginning(file, offset);
                Ok(vec![UploadAction::Begin { file, offset }])
            }
        }
    }
}

fn refuse(file: FileNo, turned: Turned) -> Vec<UploadAction> {
    let mut actions = vec![UploadAction::Leave];
    let text = crate::model::digest::shortened(turned.text, crate::session::codec::TEXT_BYTES_MAX);
    if turned.alert {
        actions.push(UploadAction::Alert(text.clone()));
    }
    actions.push(UploadAction::Send(UploadMessage::Refused(Refused { file, code: turned.code, text })));
    actions
}
