//! Getting in step by letters: reads those that the server left on a carrier, applies what they hold, and leaves one for the server.
//!
//! A letter of the server is its half of a session, so the node's half judges it by the same state machine (`session::client`) as a line. What
//! was read is durable before it is noted as read; what is sent counts as sent only when a letter of the server says that it has it.

use crate::base::clock::{now_micros, now_seconds};
use crate::base::disk::{Disk, DiskError};
use crate::base::ids::{FileNo, Incarnation, InstallId};
use crate::client::applier::{LocalPosition, Outgoing, SharedApplier, SharedUploads};
use crate::client::exchange::{ExchangeOptions, lock};
use crate::client::folder::{FolderError, LockedFolder, RemoteConfig};
use crate::client::inbox::Inbox;
use crate::client::report::{ExchangeError, Progress, ProgressEvent, SyncReport};
use crate::session::client::{Action, ClientSession, Closed, Event};
use crate::session::letter::{Book, Lying, Sent, Way};
use crate::session::message::{Hello, Message, Mode, Refusal, feature};
use crate::session::plan::Range;
use crate::session::upload::UploadMessage;
use crate::session::upload_client::UploadAction;
use crate::transport::carrier::{self, Carrier, Marker, marker_of};
use crate::transport::letters::{LetterWriter, MailBox, MailError, Opened};
use crate::transport::peer::DialError;
use crate::trust::identity::{NodeIdentity, key_of};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Longest file of what is kept, in bytes.
const BOOK_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a file that are read at once.
const PIECE: usize = crate::base::limits::UPLOAD_CHUNK_BYTES;
/// Safety net while an answer is waited for, where the system tells of no changes.
const LOOK: Duration = Duration::from_millis(500);

/// What was read and left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CarrierReport {
    /// As of any sync.
    pub sync: SyncReport,
    /// Letters of the server that were read.
    pub read: u64,
    /// Letters that were left for it.
    pub written: u64,
    /// Whether the server has read everything that was left, as far as its letters tell.
    pub is_heard: bool,
}

impl CarrierReport {
    /// Returns this report with that of a later round.
    #[must_use]
    pub fn and(self, later: &CarrierReport) -> CarrierReport {
        CarrierReport { read: self.read + later.read, written: self.written + later.written, ..later.clone() }
    }
}

/// What is kept of the letters on one carrier, in `DB.sync/letters-NAME.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// The local database that it is about.
    install: InstallId,
    book: Book,
    /// The server has all our files to this one.
    stored: FileNo,
    /// What was found at marks, and in which letters that was told.
    told: Vec<(u64, Vec<(u64, u32)>)>,
}

/// What came of a letter.
enum Came {
    /// It was read to its end.
    Read,
    /// A file before its first one is missing.
    Gap,
    /// It is not whole yet.
    Cut,
    /// It is none; for people.
    Spoiled(String),
    /// The server lets this node not in.
    Refused(Refusal),
}

/// Gets in step over a carrier.
pub struct CarrierExchange<'a> {
    folder: &'a LockedFolder,
    config: &'a RemoteConfig,
    applier: &'a SharedApplier,
    options: &'a ExchangeOptions,
    progress: &'a mut dyn Progress,
    carrier: &'a dyn Carrier,
    identity: &'a NodeIdentity,
    marker: Marker,
    position: LocalPosition,
    uploads: Option<SharedUploads>,
    kept: Kept,
    report: CarrierReport,
}

impl std::fmt::Debug for CarrierExchange<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CarrierExchange").field("carrier", &self.carrier).finish_non_exhaustive()
    }
}

impl<'a> CarrierExchange<'a> {
    /// Looks whose carrier it is, and what is known of its letters.
    ///
    /// # Errors
    /// It is not there or another server's, or the local database is another node's.
    pub fn open(
        folder: &'a LockedFolder,
        config: &'a RemoteConfig,
        applier: &'a SharedApplier,
        options: &'a ExchangeOptions,
        (carrier, identity): (&'a dyn Carrier, &'a NodeIdentity),
        progress: &'a mut dyn Progress,
    ) -> Result<CarrierExchange<'a>, ExchangeError> {
        let (position, uploads) = {
            let mut applier = lock(applier);
            (applier.state().map_err(ExchangeError::Local)?, applier.uploads().filter(|_| options.send))
        };
        if identity.node() != &position.node {
            let why = format!("it is the identity of {}, the database is node {}", identity.node(), position.node);
            return Err(DialError::Identity { path: folder.path().join("identity/node.pem"), why }.into());
        }
        if position.node != config.node {
            return Err(ExchangeError::WrongNode { config: config.node.clone(), database: position.node });
        }
        let marker = marker_of(carrier, position.server_id).map_err(MailError::from)?;
        let kept = read_kept(folder, &marker.name, position.install_id)?;
        let report = CarrierReport::default();
        Ok(CarrierExchange { folder, config, applier, options, progress, carrier, identity, marker, position, uploads, kept, report })
    }

    /// Reads, applies and writes; waits for the server's answer if that is wanted.
    ///
    /// # Errors
    /// See [`ExchangeError`]; what was read before stays and is not read again.
    pub fn run(mut self) -> Result<CarrierReport, ExchangeError> {
        self.report.sync.server_name.clone_from(&self.position.server_name);
        let seconds = self.options.wait.map(|seconds| Duration::from_secs(seconds.into()));
        let events = seconds.and_then(|_| self.watch());
        self.take()?;
        self.leave(seconds.is_some())?;
        if let Some(patience) = seconds {
            let asked = self.kept.book.number;
            let until = Instant::now() + patience;
            let answered = loop {
                if self.kept.book.known >= asked && self.is_merged()? {
                    break true;
                }
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break false;
                }
                match &events {
                    Some((_, events)) => drop(events.recv_timeout(left.min(LOOK))),
                    None => std::thread::sleep(left.min(LOOK)),
                }
                self.take()?;
            };
            self.report.sync.sent.merged = Some(answered);
            // What came of it is acknowledged.
            self.leave(false)?;
        }
        self.report.is_heard = self.kept.book.is_heard();
        Ok(self.report)
    }

    fn watch(&self) -> Option<(notify::RecommendedWatcher, mpsc::Receiver<()>)> {
        let (told, events) = mpsc::channel();
        let on_change = move || {
            // Nobody listens any more: the command ends.
            let _gone = told.send(());
        };
        let watcher = carrier::watch(self.carrier.watched()?, Way::Down, on_change)?;
        Some((watcher, events))
    }

    fn is_merged(&self) -> Result<bool, ExchangeError> {
        let ranges = &self.report.sync.sent.ranges;
        match &self.uploads {
            Some(uploads) if !ranges.is_empty() => Ok(lock(uploads).fates(ranges).map_err(ExchangeError::Local)?.waiting == 0),
            _ => Ok(true),
        }
    }

    fn mail(&self) -> Result<MailBox<'_>, ExchangeError> {
        let peer = key_of(self.identity.authority()).ok_or_else(|| ExchangeError::Violation("the server's authority has no key".into()))?;
        let (server, node) = (self.position.server_id, &self.position.node);
        let part_bytes = self.marker.part_bytes;
        Ok(MailBox { carrier: self.carrier, key: self.identity.key(), peer, server, node, writes: Way::Up, part_bytes })
    }

    fn keep(&self) -> Result<(), ExchangeError> {
        let text = serde_json::to_vec(&self.kept).map_err(|error| ExchangeError::Local(error.into()))?;
        Ok(self.folder.disk().replace_with(&self.folder.tmp(), &kept_path(self.folder, &self.marker.name), &text)?)
    }

    /// Reads what the server left, and applies it.
    fn take(&mut self) -> Result<(), ExchangeError> {
        let letters = self.mail()?.incoming().map_err(MailError::from)?;
        let mut inbox = Inbox::open(self.folder, self.position.applied.file)?;
        let before = inbox.received();
        for (letter, bytes) in letters {
            let receipt = &self.kept.book.receipt;
            if letter.number <= receipt.heard || receipt.spoiled.contains(&letter.number) {
                continue;
            }
            let came = if letter.is_whole { self.read(&letter, &mut inbox)? } else { Came::Cut };
            // Durable before it is noted as read.
            let durable = inbox.flush()?;
            self.progress.on(&ProgressEvent::Durable(durable));
            match came {
                Came::Read => {
                    self.report.read += 1;
                    self.kept.book.read(letter.number);
                }
                // Older ones first: what follows may need what comes of it.
                Came::Cut if self.waits(letter.number, bytes) => {
                    self.keep()?;
                    break;
                }
                // A newer one may bring what is missing.
                Came::Gap if self.waits(letter.number, bytes) => {}
                // What it waits for does not come: the server hears that it was read, and how far we are.
                Came::Gap => self.kept.book.read(letter.number),
                Came::Cut => self.kept.book.spoil(letter.number),
                Came::Spoiled(why) => {
                    tracing::warn!("{why}; the server is asked for it again");
                    self.kept.book.spoil(letter.number);
                }
                Came::Refused(refusal) => {
                    self.kept.book.read(letter.number);
                    self.keep()?;
                    return Err(self.options.refused(&self.config.node, refusal));
                }
            }
            self.keep()?;
        }
        self.report.sync.damaged += inbox.damaged;
        self.report.sync.received = inbox.received();
        if self.options.apply && (inbox.received() > before || inbox.received() > self.position.applied.file) {
            self.report.sync.applied = lock(self.applier).apply().map_err(ExchangeError::Local)?;
            self.progress.on(&ProgressEvent::Applied(self.report.sync.applied));
            if let Some(uploads) = &self.uploads {
                lock(uploads).purge().map_err(ExchangeError::Local)?;
            }
        }
        self.position = lock(self.applier).state().map_err(ExchangeError::Local)?;
        self.report.sync.applied = self.position.applied;
        Ok(())
    }

    fn waits(&mut self, number: u64, bytes: u64) -> bool {
        self.kept.book.is_waited_for(number, bytes, now_seconds(), self.marker.patience_seconds)
    }

    /// Reads one letter of the server.
    fn read(&mut self, letter: &Lying, inbox: &mut Inbox) -> Result<Came, ExchangeError> {
        let mut machine = self.session(inbox);
        // Files become durable in groups, so this runs ahead of what the inbox has.
        let (mut next, mut is_kept) = (inbox.received().next(), false);
        for (at, name) in letter.parts.iter().enumerate() {
            let mut frames = match self.mail()?.open(*name).map_err(MailError::from)? {
                Opened::Content(frames) => frames,
                Opened::Later => return Ok(Came::Cut),
                Opened::Spoiled(why) => return Ok(Came::Spoiled(why)),
            };
            if at == 0 {
                match frames.receipt() {
                    Ok(receipt) => {
                        self.kept.book.hear(&receipt);
                        self.told(receipt.heard)?;
                    }
                    Err(error) => return Ok(Came::Spoiled(format!("letter {name}: {error}"))),
                }
            }
            for message in frames {
                let message = match message {
                    Ok(message) => message,
                    Err(error) => return Ok(Came::Spoiled(format!("letter {name}: {error}"))),
                };
                if let Message::Welcome(welcome) = &message
                    && welcome.incarnation < self.position.incarnation
                {
                    // Of a former stream of this node.
                    return Ok(Came::Read);
                }
                if matches!(message, Message::ExtractOffer(_)) {
                    // For the database that was to be made: it is there.
                    return Ok(Came::Read);
                }
                if let Message::FileBegin { file, .. } = &message {
                    if file.file > next {
                        return Ok(Came::Gap);
                    }
                    is_kept = file.file == next && self.options.receive;
                    if machine.state() == "idle" {
                        let range = Range { first: file.file, last: None, offset: 0 };
                        machine.on(Event::Plan(vec![range])).map_err(|illegal| ExchangeError::Violation(illegal.to_string()))?;
                    }
                }
                let actions = machine.on(Event::Message(message)).unwrap_or_else(|illegal| illegal.actions);
                for action in actions {
                    match action {
                        Action::Welcomed(welcome) => {
                            lock(self.applier).enter_epoch(welcome.epoch).map_err(ExchangeError::Local)?;
                            self.report.sync.server_name.clone_from(&welcome.server_name);
                            self.report.sync.last_file = self.report.sync.last_file.max(welcome.last_file);
                            self.position.epoch = self.position.epoch.max(welcome.epoch);
                        }
                        Action::Upload(UploadAction::Known(known)) => self.known(known)?,
                        Action::BeginFile { file, .. } if is_kept => inbox.begin(file, 0)?,
                        Action::Store { bytes, .. } if is_kept => {
                            inbox.store(&bytes)?;
                            self.report.sync.bytes += bytes.len() as u64;
                            self.progress.on(&ProgressEvent::Bytes(bytes.len() as u64));
                        }
                        Action::FinishFile(file) => {
                            if is_kept && !inbox.finish()? {
                                return Ok(Came::Spoiled(format!("letter {name}: {} is damaged", file.file.file_name())));
                            }
                            if is_kept {
                                self.report.sync.files += 1;
                                self.progress.on(&ProgressEvent::File(file.file));
                                next = next.next();
                                if inbox.is_group_full() {
                                    inbox.flush()?;
                                }
                            }
                            machine.on(Event::Verified).map_err(|illegal| ExchangeError::Violation(illegal.to_string()))?;
                        }
                        Action::Close(Closed::BegunAnew(incarnation)) => {
                            lock(self.applier).begin_anew(incarnation).map_err(ExchangeError::Local)?;
                            self.position = lock(self.applier).state().map_err(ExchangeError::Local)?;
                            *inbox = Inbox::open(self.folder, self.position.applied.file)?;
                            return self.read(letter, inbox);
                        }
                        Action::Close(Closed::Refused(refusal)) => return Ok(Came::Refused(refusal)),
                        Action::Close(Closed::WrongServer { name, server_id, epoch }) => {
                            let position = &self.position;
                            return Err(ExchangeError::WrongServer {
                                ours: format!("{} ({}, epoch {})", position.server_name, position.server_id, position.epoch),
                                address: self.carrier.place(),
                                theirs: format!("{name} ({server_id}, epoch {epoch})"),
                            });
                        }
                        Action::Close(closed) => return Ok(Came::Spoiled(format!("letter {name}: {closed:?}"))),
                        _ => {}
                    }
                }
            }
        }
        Ok(Came::Read)
    }

    /// The node's half of the session of which a letter has the other.
    fn session(&self, inbox: &Inbox) -> ClientSession {
        let mut machine = ClientSession::new(self.hello(inbox.received()));
        // What it would send, a letter of ours says.
        let _hello = machine.on(Event::Connected);
        machine
    }

    fn hello(&self, received: FileNo) -> Hello {
        // A token goes to and fro within a session; a letter is half of one.
        let features = feature::OURS.iter().copied().filter(|ours| *ours != feature::TOKEN).collect();
        self.position.hello(received, Mode::Sync, features)
    }

    /// Takes what the server has of our files.
    fn known(&mut self, known: crate::session::upload::UploadState) -> Result<(), ExchangeError> {
        let Some(uploads) = &self.uploads else { return Ok(()) };
        let mut uploads = lock(uploads);
        if known.stored >= self.kept.stored {
            let remark = uploads.agree(&known).map_err(ExchangeError::Local)?;
            if let Some(remark) = remark {
                tracing::warn!("{remark}");
                self.report.sync.sent.remarks.push(remark);
            }
            self.kept.stored = known.stored;
        }
        Ok(())
    }

    /// The server has read that letter of ours, so it knows what was told in it.
    fn told(&mut self, heard: u64) -> Result<(), ExchangeError> {
        if let Some((_, outcomes)) = self.kept.told.iter().find(|(number, _)| *number == heard) {
            lock(self.applier).told(outcomes).map_err(ExchangeError::Local)?;
        }
        self.kept.told.retain(|(number, _)| *number > heard);
        Ok(())
    }

    /// Leaves a letter for the server if there is something to say.
    fn leave(&mut self, asks: bool) -> Result<(), ExchangeError> {
        let mut outgoing = Vec::new();
        if let Some(uploads) = &self.uploads {
            let mut uploads = lock(uploads);
            uploads.cut().map_err(ExchangeError::Local)?;
            let mut after = self.kept.stored;
            while let Some(next) = uploads.next(after).map_err(ExchangeError::Local)? {
                after = next.file.file;
                outgoing.push(next);
            }
        }
        self.position = lock(self.applier).state().map_err(ExchangeError::Local)?;
        let reports = lock(self.applier).reports().map_err(ExchangeError::Local)?;
        let received = Inbox::open(self.folder, self.position.applied.file)?.received();
        let lying = self.mail()?.lying().map_err(MailError::from)?;
        self.kept.book.give_up(&lying, now_seconds(), self.marker.resend_seconds);
        let told: Vec<(u64, u32)> = reports.outcomes.iter().map(|outcome| (outcome.id, outcome.place)).collect();
        let hello = self.hello(received);
        let said = format!("{hello:?} {:?} {told:?} {:?}", reports.stopped, self.kept.book.receipt.spoiled);
        let mut opening = vec![Message::Hello(Box::new(hello)), Message::Stopped(reports.stopped)];
        opening.extend(reports.outcomes.into_iter().map(|outcome| Message::Compared(Box::new(outcome))));
        let last = outgoing.last().map_or(self.kept.stored, |last| last.file.file);
        let missing = self.kept.book.missing(self.kept.stored, last);
        let is_missing = |file: FileNo| missing.iter().any(|(first, last)| (*first..=*last).contains(&file));
        let mut files: Vec<Outgoing> = outgoing.into_iter().filter(|outgoing| is_missing(outgoing.file.file)).collect();
        let mut is_due = asks || said != self.kept.book.said;
        while is_due || !files.is_empty() {
            let goal = self.mail()?.goal(&self.kept.book, self.marker.room_bytes);
            if goal == 0 && !is_due {
                break;
            }
            // One row of files that follow each other, up to the goal.
            let mut bytes = 0;
            let count = files.iter().zip(0u64..).take_while(|(outgoing, at)| {
                let follows = outgoing.file.file.0 == files[0].file.file.0 + at && bytes < goal;
                bytes += outgoing.file.bytes;
                follows
            });
            let count = count.count();
            let rest = files.split_off(count);
            let number = self.kept.book.next_number(now_micros().unsigned_abs() / 1_000);
            let receipt = crate::session::letter::Receipt { asks, ..self.kept.book.receipt.clone() };
            let mut letter = self.mail()?.begin(number, &receipt)?;
            if let Err(error) = write(&mut letter, &opening, &files) {
                letter.abandon();
                return Err(error);
            }
            let bytes = letter.finish()?;
            let [first, last] = [files.first(), files.last()].map(|outgoing| outgoing.map_or(FileNo(0), |outgoing| outgoing.file.file));
            self.kept.book.wrote(Sent { number, first, last, bytes, at: now_seconds(), extract: Incarnation(0) });
            for outgoing in &files {
                let sent = &mut self.report.sync.sent;
                sent.files += 1;
                sent.bytes += outgoing.file.bytes;
                sent.units += outgoing.units;
                sent.ranges.push((outgoing.file.first, outgoing.file.last));
            }
            if !told.is_empty() {
                self.kept.told.push((number, told.clone()));
            }
            self.kept.book.said.clone_from(&said);
            self.report.written += 1;
            // Kept at once: a letter of which nobody knows is deleted.
            self.keep()?;
            files = rest;
            is_due = false;
        }
        let sent = &self.kept.book.sent;
        self.mail()?.remove(|number| sent.iter().any(|sent| sent.number == number)).map_err(MailError::from)?;
        Ok(())
    }
}

fn write(letter: &mut LetterWriter<'_>, opening: &[Message], files: &[Outgoing]) -> Result<(), ExchangeError> {
    for message in opening {
        letter.push(message)?;
    }
    for outgoing in files {
        let (file, path) = (outgoing.file, &outgoing.path);
        let mut source = Disk::new().open(path)?;
        letter.push(&Message::Upload(UploadMessage::Begin { file, offset: 0 }))?;
        let mut at = 0;
        while at < file.bytes {
            let mut bytes = vec![0; usize::try_from(file.bytes - at).unwrap_or(usize::MAX).min(PIECE)];
            source.read_exact(&mut bytes).map_err(|source| DiskError::Io { operation: "read", path: path.clone(), source })?;
            let length = bytes.len() as u64;
            letter.push(&Message::Upload(UploadMessage::Chunk { offset: at, bytes: bytes.into() }))?;
            at += length;
        }
        letter.push(&Message::Upload(UploadMessage::End { file: file.file }))?;
    }
    Ok(())
}

fn kept_path(folder: &LockedFolder, name: &str) -> PathBuf {
    folder.path().join(format!("letters-{name}.json"))
}

fn read_kept(folder: &LockedFolder, name: &str, install: InstallId) -> Result<Kept, ExchangeError> {
    let path = kept_path(folder, name);
    let text = match folder.disk().read_text(&path, BOOK_BYTES_MAX) {
        Err(error) if error.is_not_found() => return Ok(Kept { install, ..Kept::default() }),
        text => text?,
    };
    let wrong = |error: serde_json::Error| FolderError::Config {
        path: path.clone(),
        why: format!("{error}; without the file letters are read and written anew"),
    };
    let kept: Kept = serde_json::from_str(&text).map_err(wrong)?;
    if kept.install == install {
        return Ok(kept);
    }
    // Of a database that was replaced. Numbers go on: names are never used twice.
    Ok(Kept { install, book: Book { number: kept.book.number, ..Book::default() }, ..Kept::default() })
}
