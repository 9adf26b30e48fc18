//! What may be deleted, and when: pure decisions over numbers and ages (R44, X-10, faults 37 to 39).
//!
//! **Invariants**
//! - A file that an active node has not applied never goes, however old it is: only making the node *stale* frees it.
//! - The file that a node applied last stays: its hash tells a fork from a node that is merely behind.
//! - A txnproc file that is not routed never goes, nor does the newest one, at which numbers and chain go on.
//! - Only a beginning of a queue goes, so what is left has no gap within.
//! - A clock that jumps makes nothing old: time counts only as far as it passed between two looks.

use crate::base::ids::{FileNo, TxnId};

/// Seconds of a day.
pub const DAY_SECONDS: i64 = 86_400;
/// Longest time between two looks that counts in full; whatever the clock jumps beyond it counts later, bit by bit.
const CLOCK_STEP_SECONDS_MAX: i64 = 2 * DAY_SECONDS;
/// A node that was heard so lately is fetching: it is not silent, however much waits for it.
const HEARD_LATELY_SECONDS: i64 = DAY_SECONDS;

/// How long things are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// An applied file goes at this age, in seconds.
    pub keep_seconds: i64,
    /// An applied file goes, however young, once so many newer ones were applied.
    pub keep_files: u64,
    /// A node for which files wait is stale after so many seconds of silence.
    pub stale_seconds: i64,
    /// A silent node is stale once more bytes than this wait for it.
    pub stale_bytes: u64,
}

impl Default for Retention {
    fn default() -> Retention {
        Retention { keep_seconds: 7 * DAY_SECONDS, keep_files: 1_000, stale_seconds: 90 * DAY_SECONDS, stale_bytes: 1 << 30 }
    }
}

/// A file of a queue, as far as the decision needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Its number.
    pub file_no: FileNo,
    /// Last unit in it.
    pub last: TxnId,
    /// When it was made, seconds since 1970.
    pub created: i64,
}

/// How far everybody is who reads the txnproc files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxnprocReaders {
    /// The Router's position.
    pub routed: TxnId,
    /// Every active node has applied what was made of the units up to this one.
    pub applied_by_all: TxnId,
    /// Number of the newest file.
    pub newest: FileNo,
}

/// What is known of a node that may be stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// Files that wait for it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Seconds since it was heard last; since its oldest waiting file was made, for one that was never heard.
    pub seconds: i64,
}

impl Retention {
    fn is_past(&self, created: i64, newer: u64, now: i64) -> bool {
        now.saturating_sub(created) >= self.keep_seconds || newer >= self.keep_files
    }

    /// Returns the last file of a beginning of a node's outbox that may go; `oldest` are its first files in order, the node
    /// has applied everything up to `applied`. `None` if all must stay.
    pub fn outbox_upto(&self, oldest: &[Kept], applied: FileNo, now: i64) -> Option<FileNo> {
        let may_go = |file: &&Kept| {
            let newer = applied.0.saturating_sub(file.file_no.0);
            newer > 0 && self.is_past(file.created, newer, now)
        };
        oldest.iter().take_while(may_go).last().map(|file| file.file_no)
    }

    /// Returns the last file of a beginning of the txnproc queue that may go, as [`Retention::outbox_upto`] does. A node that
    /// is away holds a file back until retention is past and no longer.
    pub fn txnproc_upto(&self, oldest: &[Kept], readers: TxnprocReaders, now: i64) -> Option<FileNo> {
        let may_go = |file: &&Kept| {
            let newer = readers.newest.0.saturating_sub(file.file_no.0);
            let is_applied = file.last <= readers.applied_by_all;
            newer > 0 && file.last <= readers.routed && (is_applied || self.is_past(file.created, newer, now))
        };
        oldest.iter().take_while(may_go).last().map(|file| file.file_no)
    }

    /// Returns why a node is stale: it goes out of the queues until it comes back. `stale_seconds` is the node's own limit, if
    /// it has one.
    pub fn stale(&self, silence: Silence, stale_seconds: Option<i64>) -> Option<Stale> {
        if silence.files == 0 {
            // It holds nothing back.
            return None;
        }
        if silence.seconds >= stale_seconds.unwrap_or(self.stale_seconds) {
            return Some(Stale::Silent { days: silence.seconds / DAY_SECONDS });
        }
        let lately = HEARD_LATELY_SECONDS.min(stale_seconds.unwrap_or(self.stale_seconds));
        (silence.bytes > self.stale_bytes && silence.seconds >= lately).then_some(Stale::Full { bytes: silence.bytes })
    }
}

/// Why a node is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// It was not heard for so many days.
    Silent {
        /// Whole days.
        days: i64,
    },
    /// So much waits for it.
    Full {
        /// Bytes in its outbox.
        bytes: u64,
    },
}

impl std::fmt::Display for Stale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stale::Silent { days } => write!(f, "not heard for {days} days"),
            Stale::Full { bytes } => write!(f, "{bytes} bytes wait for it"),
        }
    }
}

/// Returns up to which unit a node has applied everything that was made for it: just before the first file that waits, and all
/// that was routed if none waits.
pub fn applied_upto(first_of_waiting: Option<TxnId>, routed: TxnId) -> TxnId {
    first_of_waiting.map_or(routed, |first| TxnId(first.0 - 1))
}

/// The time of retention: the wall clock without its jumps.
///
/// If the wall clock jumps ahead (a battery that died, a machine that was off), nothing becomes old at once: the jump is owed,
/// and paid as fast as time passes from then on. If it jumps back, less is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetentionClock {
    /// The wall clock at the last look, seconds since 1970; 0 = never.
    pub looked: i64,
    /// Seconds that the wall clock is ahead of the time of retention.
    pub owed: i64,
}

impl RetentionClock {
    /// Takes the wall clock's word and returns the time of retention.
    pub fn advance(&mut self, wall: i64) -> i64 {
        let passed = if self.looked == 0 { 0 } else { wall - self.looked };
        if passed < 0 {
            self.owed = (self.owed + passed).max(0);
        } else {
            let counted = passed.min(CLOCK_STEP_SECONDS_MAX);
            self.owed = (self.owed - counted).max(0) + (passed - counted);
        }
        self.looked = wall;
        wall - self.owed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, VecDeque};

    const POLICY: Retention = Retention { keep_seconds: 100, keep_files: 5, stale_seconds: 1_000, stale_bytes: 50 };

    fn kept(number: u64, created: i64) -> Kept {
        Kept { file_no: FileNo(number), last: TxnId(number as i64 * 10), created }
    }

    #[test]
    fn x10_a_file_goes_when_applied_and_past_either_bound() {
        let files = [kept(1, 0), kept(2, 50), kept(3, 60)];
        assert_eq!(POLICY.outbox_upto(&files, FileNo(3), 99), None);
        assert_eq!(POLICY.outbox_upto(&files, FileNo(3), 100), Some(FileNo(1)));
        assert_eq!(POLICY.outbox_upto(&files, FileNo(3), 9_999), Some(FileNo(2)), "the file applied last stays");
        assert_eq!(POLICY.outbox_upto(&files, FileNo(1), 9_999), None);
        assert_eq!(POLICY.outbox_upto(&files, FileNo(7), 60), Some(FileNo(2)), "more than five newer ones were applied");
    }

    #[test]
    fn r44_a_txnproc_file_waits_for_whoever_needs_it_and_no_longer_than_retention() {
        let files = [kept(1, 0), kept(2, 0), kept(3, 0)];
        let readers = |routed, applied| TxnprocReaders { routed: TxnId(routed), applied_by_all: TxnId(applied), newest: FileNo(3) };
        assert_eq!(POLICY.txnproc_upto(&files, readers(30, 10), 1), Some(FileNo(1)));
        assert_eq!(POLICY.txnproc_upto(&files, readers(30, 30), 1), Some(FileNo(2)), "the newest one stays");
        assert_eq!(POLICY.txnproc_upto(&files, readers(30, 0), 100), Some(FileNo(2)), "past retention");
        assert_eq!(POLICY.txnproc_upto(&files, readers(10, 30), 100), Some(FileNo(1)), "what is not routed stays");
    }

    #[test]
    fn f38_a_node_is_stale_by_silence_or_by_what_waits_but_not_while_it_fetches() {
        let silence = |files, bytes, seconds| Silence { files, bytes, seconds };
        let policy = Retention { stale_seconds: 90 * DAY_SECONDS, ..POLICY };
        assert_eq!(policy.stale(silence(0, 0, 999 * DAY_SECONDS), None), None, "it holds nothing back");
        assert_eq!(policy.stale(silence(1, 9, 90 * DAY_SECONDS - 1), None), None);
        assert_eq!(policy.stale(silence(1, 9, 90 * DAY_SECONDS), None), Some(Stale::Silent { days: 90 }));
        assert_eq!(policy.stale(silence(1, 9, 90 * DAY_SECONDS), Some(180 * DAY_SECONDS)), None);
        assert_eq!(policy.stale(silence(1, 51, DAY_SECONDS), None), Some(Stale::Full { bytes: 51 }));
        assert_eq!(policy.stale(silence(1, 51, DAY_SECONDS - 1), None), None, "it is fetching");
    }

    #[test]
    fn f11_a_clock_that_jumps_makes_nothing_old() {
        let hour = 3_600;
        for jump in [400 * DAY_SECONDS, -400 * DAY_SECONDS] {
            let (mut clock, mut wall) = (RetentionClock::default(), 2_000 * DAY_SECONDS);
            let began = clock.advance(wall);
            wall += jump;
            // The first hours after the jump, and after it was put right.
            let mut now = began;
            for at in 0..48 {
                if at == 24 {
                    wall -= jump;
                }
                now = clock.advance(wall);
                wall += hour;
            }
            if jump > 0 {
                assert!(now - began <= 6 * DAY_SECONDS, "{jump}: {} days passed", (now - began) / DAY_SECONDS);
            }
            // In the end the two clocks agree again.
            (0..500).for_each(|_| {
                wall += DAY_SECONDS;
                now = clock.advance(wall);
            });
            assert_eq!((now, clock.owed), (wall, 0));
        }
    }

    #[test]
    fn a_pass_each_night_sees_every_day() {
        let (mut clock, mut wall) = (RetentionClock::default(), 1_000 * DAY_SECONDS);
        for _ in 0..365 {
            assert_eq!(clock.advance(wall), wall);
            wall += DAY_SECONDS;
        }
    }

    /// A server with a few nodes, all of it numbers; the purge decides with the functions above, the model knows the truth.
    #[derive(Debug, Default)]
    struct Model {
        now: i64,
        unit: i64,
        routed: i64,
        txnproc: VecDeque<Kept>,
        nodes: Vec<ModelNode>,
    }

    #[derive(Debug, Default)]
    struct ModelNode {
        stale: bool,
        heard: i64,
        applied: u64,
        last_file: u64,
        /// First unit of each file in the outbox.
        outbox: BTreeMap<u64, (i64, Kept)>,
        /// Last unit that the next file begins after.
        covered: i64,
    }

    impl Model {
        fn waiting(node: &ModelNode) -> Option<&(i64, Kept)> {
            node.outbox.range(node.applied + 1..).next().map(|(_, file)| file)
        }

        fn act(&mut self, random: &mut fastrand::Rng) {
            self.now += random.i64(0..30);
            match random.u8(..10) {
                0..3 => {
                    self.unit += random.i64(1..4);
                    let number = self.txnproc.back().map_or(1, |file| file.file_no.0 + 1);
                    self.txnproc.push_back(Kept { file_no: FileNo(number), last: TxnId(self.unit), created: self.now });
                }
                3..6 => {
                    self.routed = self.unit;
                    for node in self.nodes.iter_mut().filter(|node| !node.stale && random.bool()) {
                        node.last_file += 1;
                        let file = Kept { file_no: FileNo(node.last_file), last: TxnId(self.routed), created: self.now };
                        node.outbox.insert(node.last_file, (node.covered + 1, file));
                        node.covered = self.routed;
                    }
                }
                6..8 => {
                    let place = random.usize(..self.nodes.len());
                    let node = &mut self.nodes[place];
                    if !node.stale {
                        // Mostly ahead; sometimes a database restored from an older copy, as far back as files are kept.
                        let first = node.outbox.keys().next().copied().unwrap_or(node.last_file + 1) - 1;
                        node.applied = if random.u8(..8) == 0 {
                            random.u64(first..=node.applied.max(first))
                        } else {
                            random.u64(node.applied..=node.last_file)
                        };
                        node.heard = self.now;
                    }
                }
                _ => self.purge(),
            }
        }

        fn purge(&mut self) {
            let (now, routed) = (self.now, TxnId(self.routed));
            let mut applied_by_all = routed;
            for node in &mut self.nodes {
                let waiting = Model::waiting(node).copied();
                let silence = Silence { files: node.last_file - node.applied, bytes: 0, seconds: now - node.heard };
                if !node.stale && POLICY.stale(silence, None).is_some() {
                    assert!(now - node.heard >= POLICY.stale_seconds && waiting.is_some());
                    node.stale = true;
                }
                if node.stale {
                    node.outbox.clear();
                    continue;
                }
                let oldest: Vec<Kept> = node.outbox.values().map(|(_, file)| *file).take(3).collect();
                if let Some(upto) = POLICY.outbox_upto(&oldest, FileNo(node.applied), now) {
                    assert!(upto.0 < node.applied, "never what waits, nor the last one applied");
                    node.outbox = node.outbox.split_off(&(upto.0 + 1));
                }
                applied_by_all = applied_by_all.min(applied_upto(waiting.map(|(first, _)| TxnId(first)), routed));
            }
            let readers =
                TxnprocReaders { routed, applied_by_all, newest: self.txnproc.back().map(|file| file.file_no).unwrap_or_default() };
            let oldest: Vec<Kept> = self.txnproc.iter().copied().take(4).collect();
            let Some(upto) = POLICY.txnproc_upto(&oldest, readers, now) else { return };
            while let Some(file) = self.txnproc.front().copied().filter(|file| file.file_no <= upto) {
                let is_past = now - file.created >= POLICY.keep_seconds || readers.newest.0 - file.file_no.0 >= POLICY.keep_files;
                // The truth, node by node: does a file wait that was made of this one?
                for node in self.nodes.iter().filter(|node| !node.stale) {
                    let needs = node.outbox.range(node.applied + 1..).any(|(_, (first, _))| *first <= file.last.0);
                    assert!(!needs || is_past, "a node waits for what was made of {file:?}");
                }
                assert!(file.last.0 <= self.routed && file.file_no < readers.newest);
                self.txnproc.pop_front();
            }
        }
    }

    #[test]
    fn f39_whatever_happens_nothing_goes_that_somebody_waits_for_and_the_rest_does_go() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut model = Model { nodes: (0..4).map(|_| ModelNode::default()).collect(), ..Model::default() };
            (0..600).for_each(|_| model.act(&mut random));
            for node in &model.nodes {
                let numbers: Vec<u64> = node.outbox.keys().copied().collect();
                assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "seed {seed}: no gap within {numbers:?}");
                assert!(node.stale || node.applied == node.last_file || node.outbox.contains_key(&(node.applied + 1)), "seed {seed}");
            }
            // All nodes apply everything, a long time passes: only the last of each queue is left.
            model.nodes.iter_mut().for_each(|node| (node.applied, node.heard) = (node.last_file, model.now));
            model.routed = model.unit;
            model.now += POLICY.keep_seconds;
            (0..1_000).for_each(|_| model.purge());
            assert!(model.txnproc.len() <= 1, "seed {seed}");
            assert!(model.nodes.iter().all(|node| node.outbox.len() <= 1), "seed {seed}");
        }
    }
}
