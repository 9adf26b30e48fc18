//! Named places at which a process dies on demand, so that a test can stop both programs between any two durable steps.
//!
//! A stage calls [`at`] where a crash leaves another state behind than one step earlier: around each commit, rename and
//! removal. With `DOCKMASTER_CRASH=name` the process is killed (as by `kill -9`: nothing is flushed, nothing unwound) the
//! first time it comes there, with `DOCKMASTER_CRASH=name:n` the n-th time. Release builds have none of this.
//!
//! **Invariant**: every point is reached by a scenario of `tests/it/crash_points.rs`, which goes through [`CrashPoint::ALL`].

#[cfg(debug_assertions)]
use std::sync::OnceLock;
#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! crash_points {
    ($($variant:ident = $name:literal: $meaning:literal,)+) => {
        /// A place to die at.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum CrashPoint {
            $(#[doc = $meaning] $variant,)+
        }

        impl CrashPoint {
            /// Every point there is, in the order of the data's way.
            pub const ALL: &'static [CrashPoint] = &[$(CrashPoint::$variant,)+];

            /// Returns the name that `DOCKMASTER_CRASH` knows it by.
            pub fn name(self) -> &'static str {
                match self {
                    $(CrashPoint::$variant => $name,)+
                }
            }
        }
    };
}

crash_points! {
    DiskOperation = "disk.operation": "Before any operation on a file or folder; `disk.operation:n` sweeps them all.",
    CaptureHealed = "capture.healed": "Interrupted capture goes on and a comparison stands in the log; the unit is not read.",
    CaptureRead = "capture.read": "A unit was read; the tail is not written.",
    CaptureTail = "capture.tail": "The tail is committed in the server database, nothing of the unit anywhere else.",
    TxnprocProcessed = "txnproc.processed": "The unit is in the open transaction of the data store.",
    TxnprocFile = "txnproc.file": "The file stands in `txnproc/`; the data store is not committed.",
    TxnprocCommitted = "txnproc.committed": "The data store is committed; extracts of the unit are not begun.",
    TxnprocPurged = "txnproc.purged": "The log was purged.",
    ExtractBegun = "extract.begun": "The folders are there, what an older try left is removed.",
    ExtractBuilt = "extract.built": "The database is complete in `tmp`.",
    ExtractPacked = "extract.packed": "The packed database stands in the outbox without its table of contents.",
    ExtractDescribed = "extract.described": "The table of contents is written, older extracts are still there.",
    ExtractDone = "extract.done": "Older extracts are removed, nobody was told.",
    RouterCollected = "router.collected": "A round is in memory, no file is written.",
    RouterWritten = "router.written": "Files are written under temporary names.",
    RouterRenamed = "router.renamed": "Files stand in the outboxes; the ledger does not name them.",
    RouterCommitted = "router.committed": "The ledger is committed; files of former incarnations are still there.",
    RouterRound = "router.round": "The round is done, nobody was told.",
    PurgeOutbox = "purge.outbox": "Files that a node has applied are deleted; the ledger still names them.",
    PurgeTxnproc = "purge.txnproc": "Files that every node has applied are deleted; the data store still names them.",
    MergeBegin = "merge.begin": "The transaction of a unit is begun.",
    MergeCommit = "merge.commit": "All of a unit is in the open transaction, with its confirm.",
    MergeCommitted = "merge.committed": "A unit is merged; its file is still in the inbox.",
    MergeRefused = "merge.refused": "A unit was rolled back, and that it is held is committed.",
    SessionAdmitted = "session.admitted": "The server has noted the session and not answered.",
    SessionMarked = "session.marked": "The server has noted how far a node is.",
    InitEntered = "init.entered": "The server has let the key in; its certificate is kept.",
    InitFetched = "init.fetched": "The packed extract is whole in `tmp`.",
    InitUnpacked = "init.unpacked": "The new database is unpacked beside the old one.",
    InitAdopted = "init.adopted": "The new database has its identity and is durable.",
    InitRetired = "init.retired": "The old database is at rest.",
    InitEmptied = "init.emptied": "The inbox is empty, the configuration is the old one.",
    InitConfigured = "init.configured": "The configuration is written, the old database is in place.",
    InitKept = "init.kept": "The old database has its second name.",
    InitReplaced = "init.replaced": "The new database is in place, `tmp` is not cleaned.",
    ExchangeBegun = "exchange.begun": "A part file is opened.",
    ExchangeStored = "exchange.stored": "Some bytes of a file are in its part.",
    ExchangeWhole = "exchange.whole": "A file came whole and is in `tmp`.",
    ExchangeTokenKept = "exchange.token-kept": "The node holds the next token, durable; the server does not know.",
    SessionTokenGiven = "session.token-given": "The server has noted the next token; the node has not heard of it.",
    ExchangeRenamed = "exchange.renamed": "Files stand durable in the inbox; `Received` was not sent.",
    ExchangeAcknowledged = "exchange.acknowledged": "`Received` was sent; nothing is applied.",
    ApplyUnit = "apply.unit": "A unit is in the open transaction of the local database.",
    ApplyCommit = "apply.commit": "All of a slice is in the open transaction, with the watermark.",
    ApplyCommitted = "apply.committed": "The slice is committed; its files are still in the inbox.",
    ApplyRemoved = "apply.removed": "The files are removed; `Applied` was not sent.",
    RebuildFilled = "rebuild.filled": "The data store is rebuilt beside its place.",
    RebuildDone = "rebuild.done": "The rebuilt data store is in its place, the stage has not begun.",
    DeployInstalled = "deploy.installed": "Triggers and definition are installed; the data store is not filled.",
    DeployFilled = "deploy.filled": "The new data store is filled beside its place.",
    DeployTail = "deploy.tail": "The tail names the new data store, which is not in its place.",
    DeployDone = "deploy.done": "The new data store is in its place.",
}

/// The point that this process dies at, and at which passing.
#[cfg(debug_assertions)]
static ARMED: OnceLock<(String, u64)> = OnceLock::new();

/// Arms one point of this process by its text in `DOCKMASTER_CRASH`. The first call holds.
#[cfg(debug_assertions)]
pub fn arm(text: &str) {
    ARMED.get_or_init(|| parse(text));
}

/// Dies here if this point is armed. Does nothing in release builds.
#[cfg(debug_assertions)]
pub fn at(point: CrashPoint) {
    static PASSED: AtomicU64 = AtomicU64::new(0);
    if let Some((name, at)) = ARMED.get()
        && name == point.name()
        && PASSED.fetch_add(1, Ordering::AcqRel) + 1 == *at
    {
        die();
    }
}

/// Dies here if this point is armed. Does nothing in release builds.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn at(_: CrashPoint) {}

/// Reads `name` or `name:n`.
#[cfg(debug_assertions)]
fn parse(text: &str) -> (String, u64) {
    match text.rsplit_once(':').map(|(name, count)| (name, count.parse())) {
        Some((name, Ok(count))) => (name.to_owned(), count),
        _ => (text.to_owned(), 1),
    }
}

/// Ends the process as a power cut would end its life: no destructor, no flush.
#[cfg(debug_assertions)]
fn die() -> ! {
    #[cfg(unix)]
    {
        use rustix::process::{Signal, getpid, kill_process};
        // On failure the abort below ends it.
        let _ = kill_process(getpid(), Signal::KILL);
    }
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_of_crash_points_are_unlike_and_say_where() {
        let names: BTreeSet<&str> = CrashPoint::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), CrashPoint::ALL.len());
        assert!(names.iter().all(|name| name.split_once('.').is_some_and(|(stage, place)| !stage.is_empty() && !place.is_empty())));
    }

    #[cfg(debug_assertions)]
    #[test]
    fn a_crash_point_is_armed_for_its_first_or_its_nth_passing() {
        assert_eq!(parse("apply.commit"), ("apply.commit".to_owned(), 1));
        assert_eq!(parse("disk.operation:17"), ("disk.operation".to_owned(), 17));
    }
}
