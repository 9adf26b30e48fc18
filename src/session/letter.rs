//! One half of a session, written down: what travels where no line is (a LAN share, a stick, a folder that something else carries).
//!
//! A letter of a node holds what the node would say in a session: `Hello`, what it has to tell, the files that it sends. A letter of the server
//! holds what the server would: `Welcome` or `Refused`, what it has of the node's files, the files for the node. Before that stands a receipt:
//! how far the other side's letters were read. A letter lies in one or more parts, each a file, sealed and signed by itself (`trust::letter`).
//!
//! **Numbers** of the letters of one side only grow, over restarts and restored copies too: they follow the clock, and go on above the last one
//! where the clock goes back. A letter that was read, or an older one, is never read again.

use crate::base::ids::{FileNo, Incarnation, NodeName, ServerId};
use crate::base::limits::SESSION_MESSAGE_BYTES_MAX;
use crate::session::codec::{self, CodecError};
use crate::session::message::Message;
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// Most numbers of spoiled letters that a receipt names.
pub const SPOILED_MAX: usize = 64;
/// Most parts of one letter.
pub const PARTS_MAX: u32 = 99_999;

/// Which way a letter goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Way {
    /// From a node to the server.
    Up,
    /// From the server to a node.
    Down,
}

impl Way {
    /// Returns the folder of a carrier in which such letters lie, by node.
    pub fn folder(self) -> &'static str {
        match self {
            Way::Up => "to-server",
            Way::Down => "to-node",
        }
    }
}

/// Which part of which letter: its file name on the carrier. The name is a hint; the heading says so too and is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PartName {
    /// Number of the letter.
    pub number: u64,
    /// Number of the part, from 1.
    pub part: u32,
    /// Whether it is the last one.
    pub last: bool,
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016}-{:05}.{}", self.number, self.part, if self.last { "last" } else { "part" })
    }
}

impl PartName {
    /// Whether a file name is one under which a part was being written.
    pub fn is_temporary(name: &str) -> bool {
        // Number, part and kind: 16 + 1 + 5 + 1 + 4.
        name.ends_with(".tmp") && name.get(..27).is_some_and(|name| PartName::parse(name).is_some())
    }

    /// Reads a file name; `None` if it is none of ours.
    pub fn parse(name: &str) -> Option<PartName> {
        let (numbers, kind) = name.split_once('.')?;
        let (number, part) = numbers.split_once('-')?;
        let last = match kind {
            "last" => true,
            "part" => false,
            _ => return None,
        };
        let parsed = PartName { number: number.parse().ok()?, part: part.parse().ok()?, last };
        // One spelling only.
        (parsed.to_string() == name && (1..=PARTS_MAX).contains(&parsed.part)).then_some(parsed)
    }
}

/// What everybody may read of a letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heading {
    /// The server that it is from or for.
    pub server: ServerId,
    /// The node that it is from or for.
    pub node: NodeName,
    /// Which way it goes.
    pub way: Way,
    /// Which part of which letter it is.
    pub name: PartName,
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<{ crate::trust::letter::HEADING_BYTES_MAX }>()
}

fn bad(kind: &'static str, why: impl ToString) -> CodecError {
    CodecError::Body { kind, why: why.to_string() }
}

fn write<T: Serialize>(kind: &'static str, value: &T) -> Result<Vec<u8>, CodecError> {
    bincode::serde::encode_to_vec(value, config()).map_err(|error| bad(kind, error))
}

fn read<T: for<'a> Deserialize<'a>>(kind: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    let (value, used) = bincode::serde::decode_from_slice(bytes, config()).map_err(|error| bad(kind, error))?;
    if used == bytes.len() { Ok(value) } else { Err(bad(kind, format!("{} bytes are left over", bytes.len() - used))) }
}

impl Heading {
    /// Returns the bytes.
    ///
    /// # Errors
    /// Never in practice: its length is bounded.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        write("Heading", self)
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// Cut off, or with bytes left over.
    pub fn decode(bytes: &[u8]) -> Result<Heading, CodecError> {
        read("Heading", bytes)
    }
}

/// How far the letters of the other side were read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Receipt {
    /// The newest that was read; 0 = none. Files of it or an older one that were not taken have to come again.
    pub heard: u64,
    /// Letters that came damaged: their files have to come again.
    pub spoiled: Vec<u64>,
    /// Whether an answer is wanted even if it would bring no news: somebody waits for it.
    pub asks: bool,
}

/// Puts one frame behind the others: its length (u32, little-endian), and it.
fn frame(out: &mut BytesMut, bytes: &[u8]) -> Result<(), CodecError> {
    let length = u32::try_from(bytes.len()).map_err(|_| CodecError::Long { bytes: bytes.len(), max: SESSION_MESSAGE_BYTES_MAX })?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

/// The content of a part that is being written.
#[derive(Debug, Default)]
pub struct Content(BytesMut);

impl Content {
    /// Begins the content of a part. The first part of a letter begins with the receipt.
    ///
    /// # Errors
    /// The receipt breaks a limit.
    pub fn begin(receipt: Option<&Receipt>) -> Result<Content, CodecError> {
        let mut content = Content::default();
        if let Some(receipt) = receipt {
            frame(&mut content.0, &write("Receipt", receipt)?)?;
        }
        Ok(content)
    }

    /// Puts a message behind the others.
    ///
    /// # Errors
    /// The message breaks a limit.
    pub fn push(&mut self, message: &Message) -> Result<(), CodecError> {
        frame(&mut self.0, &codec::encode(message)?)
    }

    /// Returns how long it is, in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the bytes.
    pub fn into_bytes(self) -> Bytes {
        self.0.freeze()
    }
}

/// The content of a part that was opened.
#[derive(Debug)]
pub struct Frames(Bytes);

impl Frames {
    /// Reads a content.
    pub fn of(bytes: Vec<u8>) -> Frames {
        Frames(bytes.into())
    }

    fn next_frame(&mut self) -> Result<Option<Bytes>, CodecError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let short = CodecError::Short { bytes: self.0.len() };
        let length = self.0.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes) as usize).ok_or_else(|| short.clone())?;
        if self.0.len() - 4 < length {
            return Err(short);
        }
        let mut frame = self.0.split_to(4 + length);
        Ok(Some(frame.split_off(4)))
    }

    /// Takes the receipt off the first part of a letter.
    ///
    /// # Errors
    /// It has none.
    pub fn receipt(&mut self) -> Result<Receipt, CodecError> {
        let frame = self.next_frame()?.ok_or(CodecError::Short { bytes: 0 })?;
        let receipt: Receipt = read("Receipt", &frame)?;
        match receipt.spoiled.len() {
            0..=SPOILED_MAX => Ok(receipt),
            count => Err(bad("Receipt", format!("{count} is more than {SPOILED_MAX}"))),
        }
    }
}

impl Iterator for Frames {
    type Item = Result<Message, CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_frame().and_then(|frame| frame.map(|frame| codec::decode(&frame)).transpose());
        if next.is_err() {
            // Nothing after a fault is looked at.
            self.0.clear();
        }
        next.transpose()
    }
}

/// A letter that was written and of which nothing was heard yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Its number.
    pub number: u64,
    /// First file in it; 0 = it has none.
    pub first: FileNo,
    /// Last file in it.
    pub last: FileNo,
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was written, in seconds since 1970.
    pub at: i64,
    /// The extract in it; 0 = it has none.
    pub extract: Incarnation,
}

/// A letter that is not whole, or whose files do not follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Its number.
    pub number: u64,
    /// How many bytes of it were there.
    pub bytes: u64,
    /// When that was seen first, in seconds since 1970.
    pub since: i64,
}

/// What one side keeps of the letters on one carrier, to and from one peer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Book {
    /// Number of the last letter that was written.
    pub number: u64,
    /// What is told of the letters of the other side.
    pub receipt: Receipt,
    /// Letters of which nothing was heard yet, by number.
    pub sent: Vec<Sent>,
    /// Letters of the other side that wait for something of them to come.
    pub waiting: Vec<Waiting>,
    /// The newest of ours that the other side says it has read.
    pub known: u64,
    /// What the last letter said, apart from files and its receipt for letters that held none: said again, it would be no news.
    pub said: String,
}

impl Book {
    /// Takes note of what the other side says of our letters.
    pub fn hear(&mut self, receipt: &Receipt) {
        self.sent.retain(|sent| sent.number > receipt.heard && !receipt.spoiled.contains(&sent.number));
        self.known = self.known.max(receipt.heard);
        // A copy that was restored goes on above what the other side has seen of us.
        self.number = self.number.max(receipt.heard);
    }

    /// Takes letters for lost that lie on the carrier no longer, as `lying` says, and have been on their way for longer than `patience` seconds.
    /// Returns their numbers.
    pub fn give_up(&mut self, lying: &BTreeSet<u64>, now: i64, patience: i64) -> Vec<u64> {
        let is_lost = |sent: &Sent| !lying.contains(&sent.number) && !(0..patience).contains(&now.saturating_sub(sent.at));
        let lost: Vec<u64> = self.sent.iter().filter(|sent| is_lost(sent)).map(|sent| sent.number).collect();
        self.sent.retain(|sent| !is_lost(sent));
        if !lost.is_empty() {
            // What they said is said again.
            self.said.clear();
        }
        lost
    }

    /// Takes note that a letter was written. One without files takes the place of the former ones.
    pub fn wrote(&mut self, letter: Sent) {
        self.sent.retain(|sent| sent.first > FileNo(0) || sent.extract > Incarnation(0));
        self.sent.push(letter);
    }

    /// Whether the other side has every file that was written into a letter, as far as it has said.
    pub fn is_heard(&self) -> bool {
        self.sent.iter().all(|sent| sent.first == FileNo(0))
    }

    /// Returns the files after `upto`, to `last`, that no letter on its way holds, as first and last of each row.
    pub fn missing(&self, upto: FileNo, last: FileNo) -> Vec<(FileNo, FileNo)> {
        let mut missing = Vec::new();
        let mut next = upto.next();
        let mut held: Vec<(FileNo, FileNo)> =
            self.sent.iter().filter(|sent| sent.first > FileNo(0)).map(|sent| (sent.first, sent.last)).collect();
        held.sort_unstable();
        for (first, end) in held {
            if first > next {
                missing.push((next, FileNo(first.0 - 1).min(last)));
            }
            next = next.max(end.next());
        }
        missing.push((next, last));
        missing.retain(|(first, last)| first <= last);
        missing
    }

    /// Returns the number of the next letter. `now` in milliseconds since 1970.
    pub fn next_number(&mut self, now: u64) -> u64 {
        self.number = now.max(self.number + 1);
        self.number
    }

    /// Returns how many bytes are on their way.
    pub fn bytes_sent(&self) -> u64 {
        self.sent.iter().map(|sent| sent.bytes).sum()
    }

    /// Whether it is still to be waited for the rest of a letter, of which so many bytes are there: for `patience` seconds since something last
    /// came of it.
    pub fn is_waited_for(&mut self, number: u64, bytes: u64, now: i64, patience: i64) -> bool {
        match self.waiting.iter_mut().find(|waiting| waiting.number == number) {
            Some(waiting) if waiting.bytes == bytes => (0..patience).contains(&now.saturating_sub(waiting.since)),
            Some(waiting) => {
                (waiting.bytes, waiting.since) = (bytes, now);
                patience > 0
            }
            None => {
                self.waiting.push(Waiting { number, bytes, since: now });
                patience > 0
            }
        }
    }

    /// Takes note that a letter of the other side was read.
    pub fn read(&mut self, number: u64) {
        self.waiting.retain(|waiting| waiting.number > number);
        self.receipt.heard = self.receipt.heard.max(number);
        self.receipt.spoiled.retain(|spoiled| *spoiled > number);
    }

    /// Takes note that a letter of the other side cannot be read.
    pub fn spoil(&mut self, number: u64) {
        if !self.receipt.spoiled.contains(&number) && self.receipt.spoiled.len() < SPOILED_MAX {
            self.receipt.spoiled.push(number);
        }
    }
}

/// A letter of which parts lie on a carrier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lying {
    /// Its number.
    pub number: u64,
    /// Its parts, in order.
    pub parts: Vec<PartName>,
    /// Whether all of them are there.
    pub is_whole: bool,
}

/// Puts the parts that lie on a carrier together, by number of the letter.
pub fn gather(names: impl IntoIterator<Item = PartName>) -> Vec<Lying> {
    let names: BTreeSet<PartName> = names.into_iter().collect();
    let mut letters: Vec<Lying> = Vec::new();
    for name in names {
        match letters.last_mut() {
            Some(letter) if letter.number == name.number => letter.parts.push(name),
            _ => letters.push(Lying { number: name.number, parts: vec![name], is_whole: false }),
        }
    }
    for letter in &mut letters {
        let in_order = (1..).zip(&letter.parts).all(|(expected, name)| name.part == expected);
        let lasts = letter.parts.iter().filter(|name| name.last).count();
        letter.is_whole = in_order && lasts == 1 && letter.parts.last().is_some_and(|name| name.last);
    }
    letters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(number: u64, first: u64, last: u64) -> Sent {
        Sent { number, first: FileNo(first), last: FileNo(last), bytes: 10, at: 1_000, extract: Incarnation(0) }
    }

    fn files(ranges: &[(FileNo, FileNo)]) -> Vec<(u64, u64)> {
        ranges.iter().map(|(first, last)| (first.0, last.0)).collect()
    }

    #[test]
    fn names_have_one_spelling() {
        let name = PartName { number: 1_764_221_234_567, part: 2, last: true };
        assert_eq!(name.to_string(), "0001764221234567-00002.last");
        assert_eq!(PartName::parse(&name.to_string()), Some(name));
        for wrong in
            ["1-2.last", "0001764221234567-00002.tmp", "0001764221234567-00000.part", "x", "0001764221234567-00002 (1).last", ".last"]
        {
            assert_eq!(PartName::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn fault13_a_letter_is_whole_when_all_its_parts_are_there_in_whatever_order_they_came() {
        let name = |number, part, last| PartName { number, part, last };
        let all = [name(1, 1, true), name(2, 3, true), name(2, 1, false), name(2, 2, false), name(3, 2, true), name(4, 1, false)];
        let whole: Vec<(u64, bool)> = gather(all).iter().map(|letter| (letter.number, letter.is_whole)).collect();
        assert_eq!(whole, [(1, true), (2, true), (3, false), (4, false)]);
        // Two ends: not ours.
        assert!(!gather([name(1, 1, true), name(1, 2, true)])[0].is_whole);
    }

    #[test]
    fn fault22_files_that_no_letter_holds_are_missing_and_those_of_lost_and_spoiled_ones_are_again() {
        let mut book = Book { number: 5, sent: vec![sent(3, 4, 5), sent(4, 0, 0), sent(5, 8, 9)], ..Book::default() };
        assert_eq!(files(&book.missing(FileNo(3), FileNo(12))), [(6, 7), (10, 12)]);
        assert_eq!(files(&book.missing(FileNo(9), FileNo(9))), []);
        // On its way, not lost, though it lies there no longer; then lost.
        assert_eq!(book.give_up(&BTreeSet::from([4, 5]), 1_050, 100), Vec::<u64>::new());
        assert_eq!(book.give_up(&BTreeSet::from([4, 5]), 1_100, 100), [3]);
        assert_eq!(files(&book.missing(FileNo(3), FileNo(9))), [(4, 7)]);
        // Spoiled, and read.
        book.hear(&Receipt { heard: 4, spoiled: vec![5], asks: false });
        assert_eq!(files(&book.missing(FileNo(3), FileNo(9))), [(4, 9)]);
        assert!(book.sent.is_empty());
    }

    #[test]
    fn fault19_numbers_only_grow_whatever_the_clock_and_a_restored_copy_say() {
        let mut book = Book::default();
        assert_eq!(book.next_number(100), 100);
        assert_eq!(book.next_number(50), 101, "the clock went back");
        book.hear(&Receipt { heard: 500, spoiled: Vec::new(), asks: false });
        assert_eq!(book.next_number(200), 501, "restored from an older copy");
    }

    #[test]
    fn fault14_a_letter_is_waited_for_as_long_as_something_comes_of_it() {
        let mut book = Book::default();
        let waits: Vec<bool> =
            [(10, 0), (10, 59), (20, 60), (20, 119), (20, 120)].map(|(bytes, now)| book.is_waited_for(7, bytes, now, 60)).into();
        assert_eq!(waits, [true, true, true, true, false]);
        assert!(!book.is_waited_for(8, 1, 0, 0), "a carrier on which nothing is waited for");
        book.read(8);
        assert!(book.waiting.is_empty());
    }

    #[test]
    fn a_content_is_read_as_it_was_written_and_not_when_it_is_cut() {
        let receipt = Receipt { heard: 7, spoiled: vec![9], asks: true };
        let mut content = Content::begin(Some(&receipt)).unwrap();
        content.push(&Message::Ping(3)).unwrap();
        content.push(&Message::Bye("x".into())).unwrap();
        let bytes = content.into_bytes();
        let mut frames = Frames::of(bytes.to_vec());
        assert_eq!(frames.receipt().unwrap(), receipt);
        let messages: Vec<Message> = frames.map(Result::unwrap).collect();
        assert_eq!(messages, [Message::Ping(3), Message::Bye("x".into())]);
        for end in 0..bytes.len() {
            let mut frames = Frames::of(bytes[..end].to_vec());
            let whole = frames.receipt().is_ok_and(|_| frames.filter(|frame| frame.is_ok()).count() == 2);
            assert!(!whole, "{end}");
        }
    }
}
