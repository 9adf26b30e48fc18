//! Purge: deletes what everybody has applied, or what is past retention, and takes nodes that are away out of the queues
//! (R44, X-10, faults 38 and 39). What may go is decided in `rules::retention`; here it goes.
//!
//! Invariants:
//! - The file first, then its folder is flushed, then the row (S6, S7): a crash leaves rows without files, which the next
//!   purge takes out, never a file without a row.
//! - What exists is read from ledger rows; no folder is listed.
//! - A step is bounded, so it can run between two rounds of any other work; it may stop anywhere and begin anew.

use crate::base::crash::{self, CrashPoint};
use crate::base::defect::{self, Defect};
use crate::base::disk::DiskError;
use crate::base::ids::{FileNo, NodeName, TxnId};
use crate::base::limits::{PURGE_FILES_PER_STEP, PURGE_NODES_PER_STEP};
use crate::base::step::Progress;
use crate::docking::error::DockingError;
use crate::docking::purge_rows::{PurgeRows, PurgeStream};
use crate::docking::root::DockingRoot;
use crate::docking::sessions::{SessionsDb, SessionsError};
use crate::model::node::NodeState;
use crate::rules::retention::{DAY_SECONDS, Retention, Silence, Stale, TxnprocReaders, applied_upto};
use crate::server::nodes::{self, NodeError};
use crate::server::txnproc::is_transient;
use crate::store::sqlite::{ServerDatabase, StoreError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a step failed. Nothing that is needed is gone; the next step begins a new cycle.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    /// The docking root.
    #[error(transparent)]
    Docking(#[from] DockingError),
    /// A file could not be deleted.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// How far nodes are.
    #[error(transparent)]
    Sessions(#[from] SessionsError),
    /// The server database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A node could not be made stale.
    #[error(transparent)]
    Node(#[from] NodeError),
}

impl PurgeError {
    /// Returns whether trying again may help: a lock that somebody holds, a full disk.
    pub fn is_transient(&self) -> bool {
        match self {
            PurgeError::Docking(error) => error.is_transient(),
            PurgeError::Disk(error) => error.is_no_space(),
            PurgeError::Sessions(SessionsError::Sql { source, .. }) => is_transient(source),
            PurgeError::Store(error) | PurgeError::Node(NodeError::Store(error)) => error.is_busy(),
            _ => false,
        }
    }
}

/// Deletes what is of no more use, one bounded step after the other.
#[derive(Debug)]
pub struct Purge {
    root: Arc<DockingRoot>,
    database: PathBuf,
    retention: Retention,
    cycle: Option<Cycle>,
    /// Whether every file that waits was once found to be there.
    checked: bool,
    deleted: u64,
}

/// One way through all nodes; its connections live no longer.
#[derive(Debug)]
struct Cycle {
    rows: PurgeRows,
    sessions: Option<SessionsDb>,
    server: ServerDatabase,
    limits: BTreeMap<NodeName, u32>,
    wall: i64,
    now: i64,
    routed: TxnId,
    applied_by_all: TxnId,
    /// The node that was dealt with last.
    after: Option<NodeName>,
    /// Up to which file the next node was found whole, while that is looked at.
    found: FileNo,
}

/// What is left to do at a node.
enum NodeStep {
    /// Nothing.
    Done,
    /// There is more; the step's share is used up.
    More,
}

impl Purge {
    /// Returns a purge of this docking root, which its owner has locked.
    pub fn new(root: Arc<DockingRoot>, database: &Path, retention: Retention) -> Purge {
        Purge { root, database: database.to_owned(), retention, cycle: None, checked: false, deleted: 0 }
    }

    /// Returns how many files were deleted so far.
    pub fn deleted(&self) -> u64 {
        self.deleted
    }

    /// Does a bounded part of a cycle; [`Progress::Idle`] at its end. `wall` is the time of day, seconds since 1970.
    ///
    /// # Errors
    /// What stopped it.
    pub fn step(&mut self, wall: i64) -> Result<Progress, PurgeError> {
        self.root.check_lock().map_err(PurgeError::Docking)?;
        let cycle = match self.cycle.take() {
            Some(cycle) => Some(cycle),
            None => self.begin(wall)?,
        };
        let Some(mut cycle) = cycle else { return Ok(Progress::Idle) };
        let progress = self.go_on(&mut cycle)?;
        if progress == Progress::Worked {
            self.cycle = Some(cycle);
        }
        Ok(progress)
    }

    fn begin(&self, wall: i64) -> Result<Option<Cycle>, PurgeError> {
        let Some(rows) = PurgeRows::open(&self.root)? else { return Ok(None) };
        let server = ServerDatabase::open(&self.database)?;
        let mut clock = rows.clock()?;
        let now = clock.advance(wall);
        rows.set_clock(clock)?;
        let (sessions, routed) = (SessionsDb::open_to_read(&self.root.sessions_db())?, rows.routed()?);
        let limits = server.stale_after()?;
        Ok(Some(Cycle { rows, sessions, server, limits, wall, now, routed, applied_by_all: routed, after: None, found: FileNo(0) }))
    }

    fn go_on(&mut self, cycle: &mut Cycle) -> Result<Progress, PurgeError> {
        let streams = cycle.rows.streams_after(cycle.after.as_ref(), PURGE_NODES_PER_STEP)?;
        for stream in &streams {
            if let NodeStep::More = self.node(cycle, stream)? {
                return Ok(Progress::Worked);
            }
            (cycle.after, cycle.found) = (Some(stream.node.clone()), FileNo(0));
        }
        if streams.len() == PURGE_NODES_PER_STEP {
            return Ok(Progress::Worked);
        }
        // Every node was asked: what all of them have applied is known.
        let progress = self.txnproc(cycle)?;
        self.checked |= progress == Progress::Idle;
        Ok(progress)
    }

    fn node(&mut self, cycle: &mut Cycle, stream: &PurgeStream) -> Result<NodeStep, PurgeError> {
        if !stream.active {
            return self.stopped(cycle, stream);
        }
        let mark = match &cycle.sessions {
            Some(sessions) => sessions.mark(&stream.node, stream.incarnation)?,
            None => None,
        };
        let applied = mark.as_ref().map(|mark| mark.applied.file).unwrap_or_default();
        let oldest = cycle.rows.outbox_after(stream, FileNo(0), PURGE_FILES_PER_STEP)?;
        // The file that was applied last stays in any case, so one more would not yet be too early.
        let known = if defect::is_planted(Defect::EarlyPurge) { applied.next().next() } else { applied };
        if let Some(upto) = self.retention.outbox_upto(&oldest, known, cycle.now) {
            let files: Vec<FileNo> = oldest.iter().map(|file| file.file_no).filter(|file| *file <= upto).collect();
            if files.len() == PURGE_FILES_PER_STEP {
                self.delete_outbox(cycle, stream, &files)?;
                return Ok(NodeStep::More);
            }
            self.delete_outbox(cycle, stream, &files)?;
        }
        let Some(first) = cycle.rows.first_waiting(stream, applied)? else { return Ok(NodeStep::Done) };
        let heard = mark.map_or(first.created, |mark| mark.last_seen);
        let seconds = cycle.now.saturating_sub(heard);
        let limit = cycle.limits.get(&stream.node).map(|days| i64::from(*days) * DAY_SECONDS);
        let waiting = cycle.rows.waiting(stream, applied)?;
        match self.retention.stale(Silence { files: waiting.files, bytes: waiting.bytes, seconds }, limit) {
            Some(stale) if make_stale(cycle, stream, stale)? => Ok(NodeStep::Done),
            _ => {
                cycle.applied_by_all = cycle.applied_by_all.min(applied_upto(Some(first.first), cycle.routed));
                self.look_for_files(cycle, stream, applied)
            }
        }
    }

    /// A stream that gets nothing any more: whoever takes it up again begins with a new extract, so all of it goes.
    fn stopped(&mut self, cycle: &Cycle, stream: &PurgeStream) -> Result<NodeStep, PurgeError> {
        let files: Vec<FileNo> =
            cycle.rows.outbox_after(stream, FileNo(0), PURGE_FILES_PER_STEP)?.iter().map(|file| file.file_no).collect();
        if files.is_empty() {
            return Ok(NodeStep::Done);
        }
        self.delete_outbox(cycle, stream, &files)?;
        if files.len() == PURGE_FILES_PER_STEP {
            return Ok(NodeStep::More);
        }
        let node = cycle.server.node(&stream.node)?;
        if let Some(node) = node.filter(|node| matches!(node.state, NodeState::Disabled | NodeState::Stale)) {
            // The table of contents first: an extract whose database is gone must not be offered.
            self.root.disk().remove(&self.root.extract_toc(&stream.node, node.extracted))?;
            self.root.disk().remove(&self.root.extract(&stream.node, node.extracted))?;
        }
        Ok(NodeStep::Done)
    }

    fn delete_outbox(&mut self, cycle: &Cycle, stream: &PurgeStream, files: &[FileNo]) -> Result<(), PurgeError> {
        let root = Arc::clone(&self.root);
        let _outboxes = root.hold_outboxes();
        let (Some(last), true) = (files.last(), cycle.rows.is_current(stream)?) else {
            // It began anew: these numbers are those of other files now.
            return Ok(());
        };
        let (disk, outbox) = (root.disk(), root.outbox(&stream.node));
        for file in files {
            disk.remove(&root.outbox_file(&stream.node, *file))?;
        }
        // Only a folder that is there can hold a file that comes back.
        if outbox.is_dir() {
            disk.sync_folder(&outbox)?;
        }
        crash::at(CrashPoint::PurgeOutbox);
        disk.crash_point("purge rows", &root.ledger_db())?;
        cycle.rows.drop_outbox(stream, *last)?;
        self.deleted += files.len() as u64;
        tracing::debug!(stage = "purge", node = %stream.node, files = files.len(), upto = %last, "outbox purged");
        Ok(())
    }

    /// Says which of the waiting files are gone (S5), once after a start; their nodes need a person.
    fn look_for_files(&self, cycle: &mut Cycle, stream: &PurgeStream, applied: FileNo) -> Result<NodeStep, PurgeError> {
        if self.checked {
            return Ok(NodeStep::Done);
        }
        let after = cycle.found.max(applied);
        let files = cycle.rows.outbox_after(stream, after, PURGE_FILES_PER_STEP)?;
        let missing = |file: &&crate::rules::retention::Kept| {
            self.root.outbox_file(&stream.node, file.file_no).symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
        };
        if let Some(file) = files.iter().find(missing) {
            let (node, path) = (&stream.node, self.root.outbox_file(&stream.node, file.file_no));
            // Looked at again under the lock: the node may have begun anew.
            let is_so = {
                let _outboxes = self.root.hold_outboxes();
                cycle.rows.is_current(stream)? && !path.exists()
            };
            if is_so {
                let text = format!("file {} is missing in its outbox; later ones wait", file.file_no);
                tracing::error!(stage = "purge", %node, "{text}");
                SessionsDb::open(&self.root.sessions_db())?.alert(node.as_str(), &text, cycle.wall)?;
            }
            return Ok(NodeStep::Done);
        }
        match files.last() {
            Some(last) if files.len() == PURGE_FILES_PER_STEP => {
                cycle.found = last.file_no;
                Ok(NodeStep::More)
            }
            _ => Ok(NodeStep::Done),
        }
    }

    fn txnproc(&mut self, cycle: &Cycle) -> Result<Progress, PurgeError> {
        let oldest = cycle.rows.txnproc_oldest(PURGE_FILES_PER_STEP)?;
        let readers = TxnprocReaders { routed: cycle.routed, applied_by_all: cycle.applied_by_all, newest: cycle.rows.txnproc_newest()? };
        let Some(upto) = self.retention.txnproc_upto(&oldest, readers, cycle.now) else { return Ok(Progress::Idle) };
        let disk = self.root.disk();
        let mut files = 0;
        for file in oldest.iter().filter(|file| file.file_no <= upto) {
            disk.remove(&self.root.txnproc_file(file.file_no))?;
            files += 1;
        }
        disk.sync_folder(&self.root.txnproc())?;
        crash::at(CrashPoint::PurgeTxnproc);
        disk.crash_point("purge rows", &self.root.cds_db())?;
        cycle.rows.drop_txnproc(upto)?;
        self.deleted += files as u64;
        tracing::debug!(stage = "purge", files, upto = %upto, "txnproc purged");
        Ok(if files == PURGE_FILES_PER_STEP { Progress::Worked } else { Progress::Idle })
    }
}

/// Makes a node stale, for all to see. Returns whether it is.
fn make_stale(cycle: &Cycle, stream: &PurgeStream, stale: Stale) -> Result<bool, PurgeError> {
    let node = &stream.node;
    match nodes::mark_stale(&cycle.server, node, stream.incarnation) {
        Ok(is_stale) => {
            if is_stale {
                tracing::warn!(stage = "purge", %node, "stale: {stale}; its files go, others go on");
            }
            Ok(is_stale)
        }
        // Deleted; its end is on its way to the Router.
        Err(NodeError::Unknown { .. }) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
