//! Writing letters to a carrier and reading them: parts of bounded size, each sealed and signed by itself.

use crate::base::ids::{NodeName, ServerId};
use crate::base::limits::LETTER_PART_BYTES_MAX;
use crate::session::codec::CodecError;
use crate::session::letter::{Book, Content, Frames, Heading, Lying, PARTS_MAX, PartName, Receipt, Way, gather};
use crate::session::message::Message;
use crate::transport::carrier::{Carrier, CarrierError, Listing};
use crate::trust::keys::{KeyPair, PublicKey, TrustError};
use crate::trust::letter::{self, Letter, LetterFault};
use std::collections::BTreeSet;

/// Longest file that is read of a carrier: the largest part and what sealing adds.
const FILE_BYTES_MAX: u64 = LETTER_PART_BYTES_MAX + (2 << 20);

/// A letter ends after the file with which it has this many parts.
const LETTER_PARTS_GOAL: u64 = 4;

/// What can go wrong with a letter.
#[derive(Debug, thiserror::Error)]
pub enum MailError {
    /// The carrier.
    #[error(transparent)]
    Carrier(#[from] CarrierError),
    /// A key, or the sealing.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A message breaks a limit.
    #[error("write a letter: {0}")]
    Codec(#[from] CodecError),
    /// More parts than a letter may have.
    #[error("a letter has more than {PARTS_MAX} parts: let [carrier] part_bytes be larger")]
    Parts,
}

/// One side's end of a carrier, for letters to and from one peer.
#[derive(Debug, Clone, Copy)]
pub struct MailBox<'a> {
    /// The carrier.
    pub carrier: &'a dyn Carrier,
    /// The key of this side.
    pub key: &'a KeyPair,
    /// The key of the other side.
    pub peer: PublicKey,
    /// The server of the two.
    pub server: ServerId,
    /// The node of the two.
    pub node: &'a NodeName,
    /// Which way this side writes.
    pub writes: Way,
    /// Size at which a letter goes on in another part.
    pub part_bytes: u64,
}

/// What came of reading a part.
#[derive(Debug)]
pub enum Opened {
    /// Its content.
    Content(Frames),
    /// It is not whole, or went: look again later.
    Later,
    /// It is none, by name; for people.
    Spoiled(String),
}

/// Returns the parts of letters among the files of a folder, with their lengths.
#[must_use]
pub fn parts_of(listing: &Listing) -> Vec<(PartName, u64)> {
    listing.files.iter().filter_map(|(name, bytes)| Some((PartName::parse(name)?, *bytes))).collect()
}

impl<'a> MailBox<'a> {
    fn reads(&self) -> Way {
        match self.writes {
            Way::Up => Way::Down,
            Way::Down => Way::Up,
        }
    }

    /// Returns the letters of the other side that lie there, by number, and how many bytes there are of each. What is no letter is
    /// told and let alone.
    ///
    /// # Errors
    /// The carrier cannot be read.
    pub fn incoming(&self) -> Result<Vec<(Lying, u64)>, CarrierError> {
        let listing = self.carrier.list(self.reads(), self.node.as_str())?;
        let parts = parts_of(&listing);
        let strangers =
            listing.files.iter().map(|(name, _)| name).filter(|name| PartName::parse(name).is_none() && !name.ends_with(".tmp"));
        let strangers = strangers.map(|name| (name, "a file that is no letter"));
        for (name, what) in listing.foreign.iter().map(|(name, what)| (name, *what)).chain(strangers) {
            tracing::warn!("{}: {}/{}/{name} is {what}; it is let alone", self.carrier.place(), self.reads().folder(), self.node);
        }
        let bytes = |number: u64| parts.iter().filter(|(name, _)| name.number == number).map(|(_, bytes)| bytes).sum();
        Ok(gather(parts.iter().map(|(name, _)| *name)).into_iter().map(|letter| (letter.clone(), bytes(letter.number))).collect())
    }

    /// Returns the numbers of this side's letters of which something lies there.
    ///
    /// # Errors
    /// The carrier cannot be read.
    pub fn lying(&self) -> Result<BTreeSet<u64>, CarrierError> {
        let parts = parts_of(&self.carrier.list(self.writes, self.node.as_str())?);
        Ok(parts.iter().map(|(name, _)| name.number).collect())
    }

    /// Opens a part of the other side.
    ///
    /// # Errors
    /// The carrier cannot be read.
    pub fn open(&self, name: PartName) -> Result<Opened, CarrierError> {
        let Some(bytes) = self.carrier.read(self.reads(), self.node.as_str(), &name.to_string(), FILE_BYTES_MAX)? else {
            return Ok(Opened::Later);
        };
        Ok(match self.open_bytes(name, &bytes) {
            Ok(content) => Opened::Content(Frames::of(content)),
            Err(LetterFault::Short) => Opened::Later,
            Err(fault) => Opened::Spoiled(format!("{}: {}/{}/{name}: {fault}", self.carrier.place(), self.reads().folder(), self.node)),
        })
    }

    fn open_bytes(&self, name: PartName, bytes: &[u8]) -> Result<Vec<u8>, LetterFault> {
        let letter = Letter::look(bytes)?;
        let content = letter.open(self.key, &self.peer)?;
        let heading = Heading { server: self.server, node: self.node.clone(), way: self.reads(), name };
        // Signed, and yet another one: renamed, or of another folder.
        match Heading::decode(letter.heading()) {
            Ok(found) if found == heading => Ok(content),
            _ => Err(LetterFault::Foreign),
        }
    }

    /// Returns with how many bytes of files a letter ends: as many as have room, and not more than a few parts; the next letter goes on.
    pub fn goal(&self, book: &Book, room_bytes: u64) -> u64 {
        let room = if room_bytes == 0 { u64::MAX } else { room_bytes.saturating_sub(book.bytes_sent()) };
        room.min(LETTER_PARTS_GOAL * self.part_bytes)
    }

    /// Begins a letter.
    ///
    /// # Errors
    /// The receipt breaks a limit.
    pub fn begin(&self, number: u64, receipt: &Receipt) -> Result<LetterWriter<'a>, MailError> {
        Ok(LetterWriter { mail: *self, number, content: Content::begin(Some(receipt))?, written: Vec::new(), bytes: 0 })
    }

    /// Deletes letters of this side.
    ///
    /// # Errors
    /// One of them cannot be deleted.
    pub fn remove(&self, is_wanted: impl Fn(u64) -> bool) -> Result<(), CarrierError> {
        for (name, _) in self.carrier.list(self.writes, self.node.as_str())?.files {
            // What writing left that was killed goes too.
            if PartName::is_temporary(&name) || PartName::parse(&name).is_some_and(|name| !is_wanted(name.number)) {
                self.carrier.remove(self.writes, self.node.as_str(), &name)?;
            }
        }
        Ok(())
    }
}

/// A letter that is being written.
#[derive(Debug)]
pub struct LetterWriter<'a> {
    mail: MailBox<'a>,
    number: u64,
    content: Content,
    written: Vec<PartName>,
    bytes: u64,
}

impl LetterWriter<'_> {
    /// Puts a message behind the others; a part that is full is written.
    ///
    /// # Errors
    /// The message breaks a limit, or the carrier cannot be written.
    pub fn push(&mut self, message: &Message) -> Result<(), MailError> {
        self.content.push(message)?;
        if self.content.len() as u64 >= self.mail.part_bytes { self.put(false) } else { Ok(()) }
    }

    /// Writes the last part. Returns how many bytes the letter has.
    ///
    /// # Errors
    /// The carrier cannot be written.
    pub fn finish(mut self) -> Result<u64, MailError> {
        self.put(true)?;
        Ok(self.bytes)
    }

    /// Deletes what was written: the letter will not come to its end.
    pub fn abandon(self) {
        for name in self.written.iter().rev() {
            if let Err(error) = self.mail.carrier.remove(self.mail.writes, self.mail.node.as_str(), &name.to_string()) {
                tracing::warn!("{error}");
            }
        }
    }

    fn put(&mut self, last: bool) -> Result<(), MailError> {
        let MailBox { carrier, key, peer, server, node, writes, .. } = self.mail;
        let part = u32::try_from(self.written.len() + 1).ok().filter(|part| *part <= PARTS_MAX).ok_or(MailError::Parts)?;
        let name = PartName { number: self.number, part, last };
        let heading = Heading { server, node: node.clone(), way: writes, name };
        let content = std::mem::replace(&mut self.content, Content::begin(None)?).into_bytes();
        let sealed = letter::seal(key, &peer, &heading.encode()?, &content)?;
        carrier.write(writes, node.as_str(), &name.to_string(), &sealed)?;
        self.written.push(name);
        self.bytes += sealed.len() as u64;
        Ok(())
    }
}
