//! What the server keeps of one node on one carrier, and the letters that it writes to it.
//!
//! `docking/NODE/carrier-NAME.json` is written after the letters of which it tells. If it is lost, everything that the node has not
//! acknowledged is written again, under new numbers.

use crate::base::clock::{now_micros, now_seconds};
use crate::base::disk::Disk;
use crate::base::ids::{FileNo, Incarnation, NodeName};
use crate::docking::root::DockingRoot;
use crate::model::node::{Node, NodeState};
use crate::server::outbox::{self, Reading};
use crate::server::syncmgr::{BoxError, OutboxFile, Shared};
use crate::session::letter::{Book, Sent};
use crate::session::message::{Message, OfferedFile, Refusal, RefusalCode, Versions, Welcome, program};
use crate::session::upload::{UploadMessage, UploadState};
use crate::transport::letters::{LetterWriter, MailBox};
use crate::trust::keys::PublicKey;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Longest file of what is kept, in bytes.
const DESK_BYTES_MAX: u64 = 8 << 20;
/// Files that are looked up at once.
const FILES_AT_ONCE: usize = 512;

/// What a node said last, and what it was answered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Desk {
    /// Its key, in hex: another one is another database.
    pub(super) key: String,
    /// The letters.
    pub(super) book: Book,
    /// What it was answered, if it may come in.
    pub(super) welcome: Option<Welcome>,
    /// Why it may not.
    pub(super) refused: Option<(u16, String)>,
    /// What the server has of its files.
    pub(super) state: Option<UploadState>,
    /// Its stream of which the files are.
    pub(super) incarnation: Incarnation,
    /// All files of it to this one lie in the node's inbox.
    pub(super) received: FileNo,
    /// It asked for an answer even if that is no news.
    pub(super) asked: bool,
    /// It was let in by a file, and waits for this extract.
    pub(super) extract: Option<Incarnation>,
}

/// Where desks are kept, and how letters leave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules<'a> {
    /// Name of the carrier.
    pub(super) name: &'a str,
    /// Most bytes of letters on their way; 0 = no limit.
    pub(super) room_bytes: u64,
    /// After so many seconds a letter that is gone from the carrier and of which nothing was heard is taken for lost.
    pub(super) resend_seconds: i64,
}

/// Returns where the desk of a node for a carrier is kept.
pub(super) fn path(root: &DockingRoot, node: &NodeName, carrier: &str) -> PathBuf {
    root.node(node).join(format!("carrier-{carrier}.json"))
}

impl Desk {
    /// Reads what is kept of a node that has this key.
    pub(super) fn read(root: &DockingRoot, node: &NodeName, carrier: &str, key: &PublicKey) -> Result<Desk, BoxError> {
        let path = path(root, node, carrier);
        let text = match Disk::new().read_text(&path, DESK_BYTES_MAX) {
            Err(error) if error.is_not_found() => return Ok(Desk { key: key.to_string(), ..Desk::default() }),
            text => text?,
        };
        let desk: Desk = serde_json::from_str(&text)
            .map_err(|error| format!("{}: {error}; without the file all letters are written anew", path.display()))?;
        if desk.key == key.to_string() {
            return Ok(desk);
        }
        // Numbers go on: names are never used twice.
        Ok(Desk { key: key.to_string(), book: Book { number: desk.book.number, ..Book::default() }, ..Desk::default() })
    }

    /// Keeps it.
    pub(super) fn keep(&self, root: &DockingRoot, node: &NodeName, carrier: &str) -> Result<(), BoxError> {
        root.ensure_node(node)?;
        Ok(Disk::new().replace_with(&root.tmp(node), &path(root, node, carrier), &serde_json::to_vec(self)?)?)
    }

    /// Writes what the node does not have yet, deletes what it has read, and keeps what changed. Returns how many letters were written. Blocks.
    pub(super) fn answer(&mut self, shared: &Shared, node: &Node, mail: &MailBox<'_>, rules: &Rules<'_>) -> Result<u64, BoxError> {
        let before = self.clone();
        let written = self.write_answer(shared, node, mail, rules)?;
        // Mostly there is nothing to say, and keeping costs a flush.
        if *self != before {
            self.keep(&shared.root, &node.name, rules.name)?;
        }
        Ok(written)
    }

    /// Writes what the node does not have yet, and deletes what it has read. Returns how many letters were written.
    fn write_answer(&mut self, shared: &Shared, node: &Node, mail: &MailBox<'_>, rules: &Rules<'_>) -> Result<u64, BoxError> {
        let identity = shared.directory.identity()?;
        let mut opening = Vec::new();
        let mut last = FileNo(0);
        let is_disabled = node.state == NodeState::Disabled;
        if is_disabled || self.refused.is_some() {
            // No files more; it hears why when it writes.
            self.book.sent.retain(|sent| sent.first == FileNo(0));
        }
        if let Some(incarnation) = self.extract.filter(|_| !is_disabled) {
            return self.send_extract(shared, node, mail, rules, incarnation);
        }
        match (&self.refused, &self.welcome) {
            (Some((code, text)), _) => opening.push(Message::Refused(Refusal::new(RefusalCode::from_number(*code), text.clone()))),
            (None, Some(welcome)) if !is_disabled => {
                if !(node.extracted..=node.incarnation).contains(&welcome.incarnation) {
                    // Extracted anew: the node hears that when it writes again.
                    mail.remove(|_| false)?;
                    return Ok(0);
                }
                if node.incarnation != self.incarnation {
                    // Its stream began anew: what waits of the former one is of no more use.
                    self.book.sent.clear();
                    (self.incarnation, self.received) = (node.incarnation, FileNo(0));
                }
                last = shared.index.last_file(&node.name, node.incarnation)?;
                if let Some(mark) = shared.sessions().mark(&node.name, node.incarnation)? {
                    // It may have come by a line meanwhile.
                    self.received = self.received.max(mark.received);
                }
                let welcome = Welcome {
                    server_name: identity.name,
                    epoch: identity.epoch,
                    revision: identity.revision,
                    incarnation: node.incarnation,
                    last_file: last,
                    ..welcome.clone()
                };
                opening.push(Message::Welcome(Box::new(welcome)));
                opening.extend(self.state.clone().map(|state| Message::Upload(UploadMessage::State(state))));
            }
            // Nothing that it wrote could be read: that alone it hears.
            (None, None) if !is_disabled && !self.book.receipt.spoiled.is_empty() => {}
            (None, _) => {
                self.book.sent.clear();
                mail.remove(|_| false)?;
                return Ok(0);
            }
        }
        let lying = mail.lying()?;
        for lost in self.book.give_up(&lying, now_seconds(), rules.resend_seconds) {
            tracing::warn!(node = %node.name, "letter {lost} is gone from {} and nothing was heard of it: it is written again", mail.carrier.place());
        }
        // What is said beside files. Of the last file only letters with files tell.
        let said = {
            let heard = if self.asked { self.book.receipt.heard } else { 0 };
            let opening = opening.iter().map(|message| match message {
                Message::Welcome(welcome) => Message::Welcome(Box::new(Welcome { last_file: FileNo(0), ..(**welcome).clone() })),
                other => other.clone(),
            });
            format!("{heard} {:?} {:?}", self.book.receipt.spoiled, opening.collect::<Vec<_>>())
        };
        let mut missing = self.book.missing(self.received, last).into_iter();
        let mut range = missing.next();
        let mut written = 0;
        while range.is_some() || self.book.said != said {
            let goal = mail.goal(&self.book, rules.room_bytes);
            let has_room = goal > 0;
            if !has_room && self.book.said == said {
                break;
            }
            let number = self.book.next_number(now_micros().unsigned_abs() / 1_000);
            let mut letter = mail.begin(number, &self.book.receipt)?;
            let files = match write(&mut letter, shared, node, &opening, range.filter(|_| has_room), goal) {
                Ok(files) => files,
                Err(error) => {
                    letter.abandon();
                    return Err(error);
                }
            };
            let bytes = letter.finish()?;
            self.book.said.clone_from(&said);
            let (first, end) = files.unwrap_or_default();
            self.book.wrote(Sent { number, first, last: end, bytes, at: now_seconds(), extract: Incarnation(0) });
            // Kept at once: a letter of which nobody knows is deleted.
            self.keep(&shared.root, &node.name, rules.name)?;
            written += 1;
            range = match range {
                Some((_, last)) if has_room && end < last => Some((end.next(), last)),
                _ if has_room => missing.next(),
                _ => None,
            };
        }
        mail.remove(|number| self.book.sent.iter().any(|sent| sent.number == number))?;
        Ok(written)
    }
}

impl Desk {
    /// Writes the extract for one that was let in by a file, as soon as it is there; it lies until the node says that it has it.
    fn send_extract(
        &mut self,
        shared: &Shared,
        node: &Node,
        mail: &MailBox<'_>,
        rules: &Rules<'_>,
        incarnation: Incarnation,
    ) -> Result<u64, BoxError> {
        let lying = mail.lying()?;
        self.book.give_up(&lying, now_seconds(), rules.resend_seconds);
        if node.incarnation != incarnation || self.book.sent.iter().any(|sent| sent.extract == incarnation) {
            mail.remove(|number| self.book.sent.iter().any(|sent| sent.number == number))?;
            return Ok(0);
        }
        let Some(offer) = outbox::extract(&shared.root, &node.name, incarnation)? else { return Ok(0) };
        let identity = shared.directory.identity()?;
        let welcome = Welcome {
            protocol: Versions::PROTOCOL.max,
            dx: Versions::DX.max,
            program: program(),
            server_id: identity.server_id,
            server_name: identity.name,
            epoch: identity.epoch,
            revision: identity.revision,
            incarnation,
            last_file: FileNo(0),
            heartbeat_seconds: 15,
            features: Vec::new(),
        };
        let number = self.book.next_number(now_micros().unsigned_abs() / 1_000);
        let mut letter = mail.begin(number, &self.book.receipt)?;
        let written = (|| -> Result<(), BoxError> {
            letter.push(&Message::Welcome(Box::new(welcome)))?;
            letter.push(&Message::ExtractOffer(offer))?;
            let mut reading = Reading::open(shared.root.extract(&node.name, incarnation), offer.bytes, offer.sha256, 0)?;
            while !reading.is_done() {
                let offset = reading.offset();
                letter.push(&Message::Chunk { offset, bytes: reading.next_chunk()? })?;
            }
            if reading.is_genuine() {
                Ok(())
            } else {
                Err(format!("extract {incarnation} of {} is damaged on this disk", node.name).into())
            }
        })();
        if let Err(error) = written {
            letter.abandon();
            return Err(error);
        }
        let bytes = letter.finish()?;
        self.book.wrote(Sent { number, first: FileNo(0), last: FileNo(0), bytes, at: now_seconds(), extract: incarnation });
        Ok(1)
    }
}

/// Writes the messages of one letter; returns which files are in it.
fn write(
    letter: &mut LetterWriter<'_>,
    shared: &Shared,
    node: &Node,
    opening: &[Message],
    range: Option<(FileNo, FileNo)>,
    goal: u64,
) -> Result<Option<(FileNo, FileNo)>, BoxError> {
    for message in opening {
        letter.push(message)?;
    }
    let Some((first, last)) = range else { return Ok(None) };
    let (mut next, mut bytes) = (first, 0);
    'files: while next <= last {
        let files = shared.index.files_after(&node.name, node.incarnation, FileNo(next.0 - 1), FILES_AT_ONCE)?;
        if files.is_empty() {
            break;
        }
        for file in files {
            if file.file_no != next || next > last || bytes >= goal {
                break 'files;
            }
            put_file(letter, shared, node, &file)?;
            bytes += file.bytes;
            next = next.next();
        }
    }
    if next == first {
        return Err(format!("{} of {} is not in the ledger", first.file_name(), node.name).into());
    }
    Ok(Some((first, FileNo(next.0 - 1))))
}

fn put_file(letter: &mut LetterWriter<'_>, shared: &Shared, node: &Node, file: &OutboxFile) -> Result<(), BoxError> {
    let offered = OfferedFile { file: file.file_no, bytes: file.bytes, byte_hash: file.byte_hash };
    let path = shared.root.outbox_file(&node.name, file.file_no);
    let mut reading = Reading::open(path.clone(), file.bytes, file.byte_hash, 0)?;
    letter.push(&Message::FileBegin { request: 1, file: offered, offset: 0 })?;
    while !reading.is_done() {
        let offset = reading.offset();
        letter.push(&Message::Chunk { offset, bytes: reading.next_chunk()? })?;
    }
    if !reading.is_genuine() {
        return Err(format!("{} has other bytes than were written: damaged on this disk", path.display()).into());
    }
    Ok(letter.push(&Message::FileEnd { request: 1, file: file.file_no })?)
}
