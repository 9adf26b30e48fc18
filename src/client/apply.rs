//! Applies the files of the inbox to the local database, in order, apart from any connection (architecture 3.4).
//!
//! Invariants:
//! - The next file is always the one after the watermark. A file that is damaged or belongs elsewhere is put aside, one that came too
//!   early waits, one that was applied is dropped; none of these stops the others.
//! - A file leaves the inbox only after the commit that covers it, so a crash anywhere leads to the same rows once (I2).
//! - What a person must decide stops the node by name (I5); nothing is skipped.

use super::apply_inbox::{Candidate, Inbox, Verdict};
use crate::base::crash::{self, CrashPoint};
use crate::base::disk::{Disk, DiskError};
use crate::base::ids::{FileNo, TxnId};
use crate::base::limits::{APPLY_SLICE_ROWS, STAGE_UNIT_BYTES, STAGE_UNIT_ROWS};
use crate::base::step::Progress;
use crate::dx::error::DxError;
use crate::dx::reader::UnitSize;
use crate::store::local::{LocalDatabase, LocalError, Watermark};
use crate::store::local_apply::{ApplyTransaction, TableOperation, UnitError};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A slice ends at the next unit end after this time, however few rows it has: that is how long other writers wait.
const SLICE_TIME: Duration = Duration::from_millis(20);
/// A file up to this size is opened while the write lock is held, so that many small files share one commit.
const SMALL_FILE_BYTES: u64 = 64 << 10;
/// Rows after which a step returns, so that its caller can look at other things.
const STEP_ROWS: u64 = 200 * APPLY_SLICE_ROWS;
/// Longest gap, after however long a pause: SQLite's waiters look again after 100 ms at most.
const GAP_MAX: Duration = Duration::from_millis(300);
/// How long another program's commit makes us leave longer gaps for it.
const POLITE_TIME: Duration = Duration::from_secs(1);
/// How long a step leaves longer gaps at first, so that a program that waits already is noticed by its commit.
const FIRST_POLITE_TIME: Duration = Duration::from_millis(300);

/// Where the files are.
#[derive(Debug, Clone)]
pub struct ApplyFolders {
    /// Files that were received.
    pub inbox: PathBuf,
    /// Where files go that must not be applied.
    pub quarantine: PathBuf,
    /// For files that are not whole yet.
    pub tmp: PathBuf,
    /// Writes them; a failed flush stops whoever shares it.
    pub disk: Disk,
    /// Which units are staged.
    pub limits: StageLimits,
}

/// A unit above either limit is staged beside the database and applied by few statements; smaller ones row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageLimits {
    /// Most operations.
    pub rows: u64,
    /// Most bytes.
    pub bytes: u64,
}

impl Default for StageLimits {
    fn default() -> StageLimits {
        StageLimits { rows: STAGE_UNIT_ROWS, bytes: STAGE_UNIT_BYTES }
    }
}

impl StageLimits {
    fn is_staged(&self, unit: &UnitSize) -> bool {
        unit.operations > self.rows || unit.bytes > self.bytes
    }
}

impl ApplyFolders {
    /// Returns the folders below a client's `DB.sync`.
    pub fn below(sync: &Path) -> ApplyFolders {
        ApplyFolders {
            inbox: sync.join("inbox"),
            quarantine: sync.join("quarantine"),
            tmp: sync.join("tmp"),
            disk: Disk::new(),
            limits: StageLimits::default(),
        }
    }
}

/// What one step did.
#[derive(Debug, Clone, Default)]
pub struct ApplyReport {
    /// Files applied to their end.
    pub files: u64,
    /// Units applied.
    pub units: u64,
    /// Operations applied.
    pub rows: u64,
    /// Bytes of the files applied to their end, as they travelled and uncompressed (DOE-5).
    pub bytes: u64,
    /// See `bytes`.
    pub raw_bytes: u64,
    /// Units that were staged beside the database, because they are large.
    pub staged: u64,
    /// Last file that is applied to its end.
    pub applied_file: FileNo,
    /// Last unit that is applied.
    pub applied_unit: TxnId,
    /// Files that had been applied before and were dropped.
    pub dropped: Vec<FileNo>,
    /// Files that wait for a missing one.
    pub held: Option<Held>,
    /// Files put aside, with the reason.
    pub quarantined: Vec<Quarantined>,
    /// Why nothing more is applied until a person acts.
    pub stopped: Option<Stopped>,
    /// Another program kept the database locked, or another process of ours applies the same inbox: try again.
    pub busy: bool,
    /// There is more to do: call again.
    pub more: bool,
    /// Longest time for which the write lock was held.
    pub longest_pause: Duration,
}

impl ApplyReport {
    /// Returns whether another step may find work.
    pub fn progress(&self) -> Progress {
        if self.more || self.files > 0 || self.units > 0 { Progress::Worked } else { Progress::Idle }
    }
}

/// Files that cannot be applied yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// First missing number.
    pub missing_first: FileNo,
    /// Last missing number before the first file that waits.
    pub missing_last: FileNo,
    /// Files that wait.
    pub waiting: Vec<FileNo>,
}

/// A file that was put aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Its name in the inbox.
    pub name: String,
    /// Why.
    pub reason: String,
    /// The number that must be fetched again; `None` if this node does not need that file.
    pub fetch_again: Option<FileNo>,
}

/// Why nothing more is applied. `Display` is one line that names file and unit and says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// The file.
    pub file: FileNo,
    /// The unit; `None` if the file as a whole is refused.
    pub unit: Option<TxnId>,
    /// What is wrong: names table and key where one row is concerned.
    pub reason: String,
    /// What a person can do.
    pub advice: String,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file {}", self.file)?;
        if let Some(unit) = self.unit {
            write!(f, ", unit {unit}")?;
        }
        write!(f, ": {}; {}", self.reason, self.advice)
    }
}

/// What keeps a step from going on. Nothing is lost: the next step begins at the watermark.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The local database.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// A file could not be moved, written or removed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The inbox could not be read.
    #[error("read folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file of the inbox could not be read.
    #[error("read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: DxError,
    },
}

/// Applies what waits in the inbox, at most `STEP_ROWS` rows and a slice. A database that another program keeps locked is no error:
/// [`ApplyReport::busy`].
pub fn step(local: &mut LocalDatabase, folders: &ApplyFolders) -> Result<ApplyReport, ApplyError> {
    let mut report = ApplyReport::default();
    let result = Applier::new(local, folders).and_then(|mut applier| applier.run(&mut report));
    match result {
        Err(ApplyError::Local(LocalError::Busy { .. })) => report.busy = true,
        // Another process of ours applies the same inbox and was faster.
        Err(ApplyError::Disk(error)) if error.is_not_found() => report.busy = true,
        other => other?,
    }
    let state = local.state()?;
    (report.applied_file, report.applied_unit) = (state.applied_file, state.applied_unit);
    let reason = report.stopped.as_ref().map(Stopped::to_string);
    if state.stopped != reason && !report.busy {
        match local.set_stopped(reason.as_deref()) {
            Err(LocalError::Busy { .. }) => report.busy = true,
            other => other?,
        }
    }
    Ok(report)
}

/// What ends the work on one file early.
enum Halt {
    Error(ApplyError),
    Stop(Box<Stopped>),
}

impl<E: Into<ApplyError>> From<E> for Halt {
    fn from(error: E) -> Halt {
        Halt::Error(error.into())
    }
}

struct Applier<'d> {
    local: &'d LocalDatabase,
    folders: ApplyFolders,
    inbox: Inbox,
    watermark: Watermark,
    pace: Pace,
}

/// Units that share one transaction.
struct Slice<'d> {
    transaction: ApplyTransaction<'d>,
    begun: Instant,
    rows: u64,
    units: u64,
    /// Where the transaction has got to; the commit makes it the watermark.
    reached: Watermark,
    finished: Vec<FileNo>,
}

impl<'d> Applier<'d> {
    fn new(local: &'d LocalDatabase, folders: &ApplyFolders) -> Result<Applier<'d>, ApplyError> {
        let state = local.state()?;
        let watermark =
            Watermark { file: state.applied_file, chain_hash: state.chain_hash, unit: state.applied_unit, revision: state.revision };
        let inbox = Inbox::read(folders, &state)?;
        let pace = Pace { others: local.others_version()?, polite_until: Some(Instant::now() + FIRST_POLITE_TIME) };
        Ok(Applier { local, folders: folders.clone(), inbox, watermark, pace })
    }

    fn run(&mut self, report: &mut ApplyReport) -> Result<(), ApplyError> {
        self.inbox.put_bad_names_aside(report)?;
        for number in self.inbox.numbers_up_to(self.watermark.file) {
            let known = self.local.applied_hash(number)?;
            if let Some(stopped) = self.inbox.drop_applied(number, known, report)? {
                report.stopped = Some(stopped);
                return Ok(());
            }
        }
        let mut slice = None;
        let result = self.files(&mut slice, report);
        // Units before the one that stops are good and stay.
        let committed = match slice {
            Some(slice) if !matches!(result, Err(Halt::Error(_))) => self.commit(slice, report),
            _ => Ok(()),
        };
        match result {
            Ok(()) => {}
            Err(Halt::Error(error)) => return Err(error),
            Err(Halt::Stop(stopped)) => {
                tracing::error!(stage = "apply", file = %stopped.file, "{stopped}");
                report.stopped = Some(*stopped);
            }
        }
        committed?;
        if report.stopped.is_none() && !report.more {
            report.held = self.inbox.held(self.watermark.file.next());
        }
        Ok(())
    }

    /// Applies file after file. What is applied and not yet committed is left in `slice`.
    fn files(&mut self, slice: &mut Option<Slice<'d>>, report: &mut ApplyReport) -> Result<(), Halt> {
        loop {
            let reached = slice.as_ref().map_or(self.watermark, |slice| slice.reached);
            let number = reached.file.next();
            let Some(bytes) = self.inbox.size_of(number)? else { return Ok(()) };
            if report.rows >= STEP_ROWS {
                report.more = true;
                return Ok(());
            }
            if slice.as_ref().is_some_and(|slice| slice.is_full() || bytes > SMALL_FILE_BYTES) {
                self.commit_and_pause(slice, report)?;
            }
            let mut file = match self.inbox.open(number, &reached, report)? {
                Verdict::Apply(file) => file,
                Verdict::PutAside => return Ok(()),
                Verdict::Stop(stopped) => return Err(Halt::Stop(Box::new(stopped))),
            };
            self.file(&mut file, slice, report)?;
        }
    }

    fn file(&mut self, file: &mut Candidate, slice: &mut Option<Slice<'d>>, report: &mut ApplyReport) -> Result<(), Halt> {
        let (header, summary) = (file.reader.header().clone(), *file.reader.summary());
        let content_hash = summary.content_hash;
        let already = slice.as_ref().map_or(self.watermark.unit, |slice| slice.reached.unit);
        let advice = self.inbox.extract_advice();
        let stop = |unit, reason: String| Halt::Stop(Box::new(Stopped { file: header.file_no, unit, reason, advice: advice.clone() }));
        let unreadable = |error| match error {
            source @ DxError::Io { .. } => Halt::Error(ApplyError::File { path: file.path.clone(), source }),
            // The file's hash fits, so it was written like this: fetching it again does not help.
            error => stop(None, format!("it cannot be read: {error}")),
        };
        let mut units = file.reader.units();
        while let Some(size) = units.next_size() {
            if size.txn <= already {
                units.skip_unit(); // Applied before a crash or a slice's end.
                continue;
            }
            let rows = size.operations;
            let controls = units.next_controls();
            let staged = if self.folders.limits.is_staged(&size) {
                // Before others wait for it.
                self.commit_and_pause(slice, report)?;
                let refused = |error| match error {
                    UnitError::Local(error) => Halt::from(error),
                    error => stop(Some(size.txn), error.to_string()),
                };
                self.folders.disk.ensure_folder(&self.folders.tmp)?;
                let mut stage = self.local.stage(&self.folders.tmp)?;
                while let Some((heading, operation)) = units.next_operation(size.txn).map_err(unreadable)? {
                    stage.add(&heading, &operation).map_err(refused)?;
                }
                stage.flush()?;
                Some(stage)
            } else {
                None
            };
            let unit = match &staged {
                Some(_) => None,
                None => units.next().transpose().map_err(unreadable)?,
            };
            let full = |slice: &Slice<'_>| slice.is_full() || (slice.rows > 0 && rows >= APPLY_SLICE_ROWS);
            // A unit that changes tables is alone in its transaction: where it stops, nothing of it stays beside the units before it.
            if slice.as_ref().is_some_and(full) || controls.reset || !controls.schema.is_empty() {
                self.commit_and_pause(slice, report)?;
            }
            let current = self.slice(slice)?;
            let transaction = &current.transaction;
            let write = || match (&staged, &unit) {
                (Some(stage), _) => transaction.apply_stage(size.txn, stage),
                (None, Some(unit)) => {
                    let operations: Vec<TableOperation<'_>> =
                        unit.operations.iter().map(|(heading, operation)| (&**heading, operation)).collect();
                    transaction.apply_unit(size.txn, &operations)
                }
                (None, None) => Ok(()),
            };
            let confirms = || transaction.confirm(size.txn, &controls.confirms).map_err(UnitError::from);
            let applied = transaction.begin_controls(&controls).and_then(|()| write()).and_then(|()| confirms());
            let applied = applied.and_then(|()| transaction.end_controls(&controls));
            match applied {
                Ok(()) => {}
                Err(UnitError::Local(error)) => return Err(error.into()),
                // Another extract would not have the row.
                Err(error @ UnitError::OwnRow { .. }) => {
                    let advice = "correct the row in the local database, or delete it, then `remote-sync sync`".to_owned();
                    let (unit, reason) = (Some(size.txn), error.to_string());
                    return Err(Halt::Stop(Box::new(Stopped { file: header.file_no, unit, reason, advice })));
                }
                Err(error) => return Err(stop(Some(size.txn), error.to_string())),
            }
            for mark in &controls.marks {
                transaction.answer(size.txn, mark)?;
            }
            current.rows += rows;
            current.units += 1;
            current.reached.unit = size.txn;
            if staged.is_some() {
                report.staged += 1;
                crash::at(CrashPoint::ApplyUnit);
                // The stage goes after the transaction that reads it, and others have waited long enough.
                self.commit_and_pause(slice, report)?;
                let pause_ms = report.longest_pause.as_millis() as u64;
                tracing::info!(stage = "apply", unit = %size.txn, rows, pause_ms, "a large unit is applied; until then other writers waited");
                continue;
            }
            crash::at(CrashPoint::ApplyUnit);
        }
        let current = self.slice(slice)?;
        current.transaction.store_file_hash(header.file_no, content_hash)?;
        current.finished.push(header.file_no);
        report.bytes += summary.bytes;
        report.raw_bytes += summary.raw_bytes;
        current.reached = Watermark { file: header.file_no, chain_hash: content_hash, unit: header.last, revision: header.revision };
        Ok(())
    }

    /// Returns the open slice, or begins one.
    fn slice<'s>(&self, slice: &'s mut Option<Slice<'d>>) -> Result<&'s mut Slice<'d>, LocalError> {
        if let Some(open) = slice {
            return Ok(open);
        }
        let transaction = self.local.begin()?;
        let state = transaction.state();
        if (state.applied_file, state.applied_unit) != (self.watermark.file, self.watermark.unit) {
            // Another process of ours applies too; what we read is old. The next step begins at the new watermark.
            return Err(LocalError::Busy { path: self.local.path().to_owned() });
        }
        let reached = self.watermark;
        Ok(slice.insert(Slice { transaction, begun: Instant::now(), rows: 0, units: 0, reached, finished: Vec::new() }))
    }

    fn commit(&mut self, slice: Slice<'d>, report: &mut ApplyReport) -> Result<(), ApplyError> {
        if slice.units == 0 && slice.finished.is_empty() {
            return Ok(()); // Dropped, so rolled back: nothing was done.
        }
        crash::at(CrashPoint::ApplyCommit);
        slice.transaction.commit(&slice.reached)?;
        crash::at(CrashPoint::ApplyCommitted);
        report.longest_pause = report.longest_pause.max(slice.begun.elapsed());
        self.watermark = slice.reached;
        report.rows += slice.rows;
        report.units += slice.units;
        report.files += slice.finished.len() as u64;
        for number in slice.finished {
            self.inbox.remove(number)?;
        }
        crash::at(CrashPoint::ApplyRemoved);
        Ok(())
    }

    /// Commits and leaves a gap in which other writers get their turn.
    fn commit_and_pause(&mut self, slice: &mut Option<Slice<'d>>, report: &mut ApplyReport) -> Result<(), ApplyError> {
        let Some(slice) = slice.take() else { return Ok(()) };
        let begun = slice.begun;
        self.commit(slice, report)?;
        let gap = self.pace.gap(begun.elapsed(), self.local.others_version()?);
        std::thread::sleep(gap);
        Ok(())
    }
}

impl Slice<'_> {
    fn is_full(&self) -> bool {
        self.rows >= APPLY_SLICE_ROWS || self.begun.elapsed() >= SLICE_TIME
    }
}

/// How much of the time the write lock stays free between slices. SQLite's waiters look again after fixed delays and know no queue, so a
/// lock that is free for an instant is hardly ever met by them.
struct Pace {
    others: i64,
    polite_until: Option<Instant>,
}

impl Pace {
    /// Returns how long to leave the lock free after having held it for `held`.
    fn gap(&mut self, held: Duration, others: i64) -> Duration {
        let now = Instant::now();
        if others != self.others {
            self.others = others;
            self.polite_until = Some(now + POLITE_TIME);
        }
        let polite = self.polite_until.is_some_and(|until| now < until);
        // With 60 % free, five looks in a row miss once in a hundred times.
        let gap = if polite { (held * 3 / 2).max(Duration::from_millis(2)) } else { (held / 4).max(Duration::from_millis(1)) };
        gap.min(GAP_MAX)
    }
}
