//! Transaction Processor: master transaction log -> `docking/txnproc/*.dx`, by way of the consolidated data store.
//!
//! One step takes one unit: everything that the log holds up to the end of one read snapshot. Order of what becomes
//! durable: the mark in the server database (which flushes every commit that was read, I7), the file, and then the one
//! commit of `cds.db` that holds position, data, counts and the file's ledger row. A crash between any two leaves a
//! file without a row, which is deleted and made anew, perhaps longer (R25).
//!
//! A unit larger than memory takes the same steps: its rows go into the data store in chunks while they are read, in one transaction,
//! and its events go into the file one by one.

use super::finished::Finished;
use super::rebuild::{self, RebuildError, rebuild};
use super::reconcile::{self, Compared, Standing};
use super::redefine::{self, TakenOver};
use super::txnproc_queue::TxnprocQueue;
use crate::base::crash::{self, CrashPoint};
use crate::base::disk::DiskError;
use crate::base::ids::{NodeName, Nonce, Revision, TxnId};
use crate::base::limits::UNIT_REACHED_ROWS_MAX;
use crate::base::step::Progress;
use crate::cds::compare::Reconciled;
use crate::cds::large::LargeSummary;
use crate::cds::layout::{StoppedTable, TxnprocFile, pin_snapshot};
use crate::cds::marks::Question;
use crate::cds::nodes::NodeScope;
use crate::cds::unit::{RowChange, UnitInput};
use crate::cds::view::{common_rows, leave_out, own_rows, set_apart, visible_rows};
use crate::cds::{Cds, CdsError, CdsState};
use crate::docking::error::DockingError;
use crate::docking::root::DockingRoot;
use crate::dx::error::DxError;
use crate::model::dock::Dock;
use crate::model::event::{NodeEvent, UnitEvents};
use crate::model::schema::Schema;
use crate::model::upload::FinishedUnit;
use crate::rules::graph::ScopeGraph;
use crate::store::control::Control;
use crate::store::heal::Healing;
use crate::store::log::{Marked, NetChange, ReadOptions, UnitReading};
use crate::store::sqlite::{ServerDatabase, StoreError};
use crate::store::unit_rows::{UnitMemory, UnitRows};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Rows of the log that stay behind the position, for people to look at.
const LOG_ROWS_KEPT: i64 = 10_000;

/// Most snapshots that are held for the extracts of one unit: one for each thread that builds some.
const SNAPSHOTS_OF_A_UNIT: usize = 2;

/// Scratch file for the keys of a large unit while the log is read.
const LOG_SCRATCH: &str = "log.scratch";
/// Scratch file for what a large unit did.
const UNIT_SCRATCH: &str = "unit.scratch";

/// Why the Transaction Processor cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TxnProcError {
    /// The server database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data store.
    #[error(transparent)]
    Cds(#[from] CdsError),
    /// The docking root.
    #[error(transparent)]
    Docking(#[from] DockingError),
    /// A file could not be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file could not be encoded.
    #[error("unit {unit} cannot be written to a file")]
    Dx {
        /// The unit.
        unit: TxnId,
        /// Why.
        source: DxError,
    },
    /// The data store is lost and cannot be rebuilt.
    #[error("the data store cannot be rebuilt: {0}")]
    Rebuild(#[from] RebuildError),
    /// A unit could not be encoded.
    #[error("a unit cannot be written to a file")]
    Encode(#[source] DxError),
    /// The definition that the log announces is not there.
    #[error("definition {revision} was announced, but the server database does not have it")]
    NoDefinition {
        /// The definition.
        revision: Revision,
    },
    /// No random numbers from the system.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
}

impl TxnProcError {
    /// Returns whether trying again may help: a lock that somebody holds, a full disk.
    pub fn is_transient(&self) -> bool {
        match self {
            // The next deploy mends a table that does not fit.
            TxnProcError::Store(StoreError::Table { .. }) | TxnProcError::Cds(CdsError::UnknownTable(_)) => true,
            TxnProcError::Store(error) => error.is_busy(),
            TxnProcError::Cds(CdsError::Sql { source, .. }) => is_transient(source),
            TxnProcError::Disk(error) => error.is_no_space(),
            TxnProcError::Docking(error) => error.is_transient(),
            _ => false,
        }
    }
}

/// Returns whether SQLite's refusal may pass by itself.
pub(crate) fn is_transient(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked | rusqlite::ErrorCode::DiskFull)
    )
}

/// Extracts to be built one after another: nodes that started with the unit just committed, and the snapshot of exactly that
/// unit (R15). A snapshot is a connection with its files, and a thousand nodes may start at once: they share a few.
#[derive(Debug)]
pub struct PendingExtracts {
    /// The nodes with their values as of the unit.
    pub nodes: Vec<NodeScope>,
    /// Units of each that were finished at the end of the unit.
    pub finished: BTreeMap<NodeName, Vec<FinishedUnit>>,
    /// Commit point of the snapshot.
    pub state: CdsState,
    /// Definition of the snapshot.
    pub dock: Dock,
    /// Schema of the server database.
    pub schema: Schema,
    /// Rules of the snapshot.
    pub graph: ScopeGraph,
    /// Read transaction on `cds.db`, pinned at the unit.
    pub snapshot: Connection,
}

impl PendingExtracts {
    /// Fills the temporary tables with the rows that a node sees in the snapshot, in place of those of the node before.
    pub fn select_rows(&self, node: &NodeScope) -> rusqlite::Result<()> {
        visible_rows(&self.snapshot, &self.dock, &self.graph, node, self.state.day)
    }

    /// Fills them with the rows that every node of a model sees in the snapshot.
    pub fn select_common(&self, model: Option<&str>) -> rusqlite::Result<()> {
        common_rows(&self.snapshot, &self.dock, &self.graph, model, self.state.day)?;
        set_apart(&self.snapshot, &self.graph)
    }

    /// Fills them with the rows that a node sees besides those of the last [`PendingExtracts::select_common`].
    pub fn select_own(&self, node: &NodeScope) -> rusqlite::Result<()> {
        own_rows(&self.snapshot, &self.dock, &self.graph, node, self.state.day)?;
        leave_out(&self.snapshot, &self.graph)
    }
}

/// What was done in the snapshot of a unit.
#[derive(Debug)]
enum Looked {
    /// Tables in doubt were compared.
    Compared(Compared),
    /// Another definition was put into force; the unit is written.
    Redefined(TakenOver, TxnprocFile),
}

/// What one step did.
#[derive(Debug)]
pub struct Step {
    /// Whether a unit was taken.
    pub progress: Progress,
    /// Extracts to be built before anything else changes.
    pub extracts: Vec<PendingExtracts>,
}

/// The Transaction Processor of one docking root.
#[derive(Debug)]
pub struct TxnProc {
    server: ServerDatabase,
    cds: Cds,
    root: Arc<DockingRoot>,
    files: TxnprocQueue,
    purged_upto: TxnId,
    /// What stood in doubt when healing was tried last: trying again would find the same.
    tried: Option<(i64, Vec<String>)>,
    /// Tables that stay stopped as it was logged last: once per change is enough.
    told: BTreeMap<String, Healing>,
    /// How much of a unit is held in memory.
    memory: UnitMemory,
}

impl TxnProc {
    /// Opens the stage and recovers: what a crash left in `txnproc/` without a ledger row is deleted.
    pub fn open(database: &Path, root: Arc<DockingRoot>) -> Result<TxnProc, TxnProcError> {
        let server = ServerDatabase::open(database)?;
        server.require_installed()?;
        let mut opened = Cds::open(&root.cds_db());
        if let Some(reason) = rebuild::reason(&opened, &root)? {
            let again = opened.map(drop);
            opened =
                if rebuild(&server, &root, &reason)? { Cds::open(&root.cds_db()) } else { again.and_then(|()| Cds::open(&root.cds_db())) };
        }
        let mut cds = opened?;
        // A restore was declared: from here on everything is of the new epoch.
        cds.enter_epoch(server.identity()?.epoch)?;
        cds.bound_reached(UNIT_REACHED_ROWS_MAX);
        let files = TxnprocQueue::open(Arc::clone(&root), &cds)?;
        let memory = UnitMemory::usual(root.txnproc_tmp().join(LOG_SCRATCH));
        Ok(TxnProc { server, cds, root, files, purged_upto: TxnId::default(), tried: None, told: BTreeMap::new(), memory })
    }

    /// Sets how much of a unit is held in memory, and how many rows of it may be reached there.
    pub fn bound_memory(&mut self, memory: UnitMemory, reached_rows: usize) {
        self.memory = memory;
        self.cds.bound_reached(reached_rows);
    }

    /// Returns the data store.
    pub fn cds(&self) -> &Cds {
        &self.cds
    }

    /// Returns the server database.
    pub fn server(&self) -> &ServerDatabase {
        &self.server
    }

    /// Takes the next unit, if the log has grown.
    pub fn step(&mut self) -> Result<Step, TxnProcError> {
        self.root.check_lock()?;
        let done = self.take_unit();
        if let Err(TxnProcError::Cds(CdsError::Sql { source, .. })) = &done
            && rebuild::is_damage(source)
        {
            // Out of the way: the next start rebuilds it.
            let path = self.root.cds_db();
            self.root.disk().replace(&path, &path.with_extension("db.damaged"))?;
        }
        done
    }

    fn take_unit(&mut self) -> Result<Step, TxnProcError> {
        let idle = Step { progress: Progress::Idle, extracts: Vec::new() };
        let state = self.cds.state().clone();
        let options = ReadOptions { after: state.position, known: Some(state.nonce) };
        // Nothing is written to a database that is not the one read last.
        self.server.check_mark(&options)?;
        self.heal()?;
        let scratch = self.root.txnproc_tmp().join(UNIT_SCRATCH);
        let read = self.server.read_unit_with(&options, Some(&self.memory), |snapshot, unit, rows| {
            let mut input = redefine::controls(unit);
            let finished = Finished::of(&self.cds, snapshot, &input)?;
            finished.tell(&mut input);
            if let Some(deployed) = redefine::asked(&self.cds, snapshot, &input)? {
                let (cds, revision) = (&mut self.cds, input.revision.unwrap_or(state.revision));
                let mut taken = TakenOver::default();
                let file = self.files.write(&state, unit.upto, revision, |writer| {
                    taken = redefine::redefine(cds, snapshot, &deployed, unit, (&input, &questions(unit)), writer)?;
                    Ok(())
                })?;
                let uncarried = std::mem::take(&mut taken.uncarried);
                return Ok(((Looked::Redefined(taken, file), finished), uncarried));
            }
            let mut compared = reconcile::compare(&self.cds, snapshot, unit)?;
            let uncarried = std::mem::take(&mut compared.uncarried);
            if unit.is_large {
                self.cds.begin_large(&scratch)?;
                take_rows(&mut self.cds, unit, &uncarried, rows)?;
            }
            Ok::<_, TxnProcError>(((Looked::Compared(compared), finished), uncarried))
        });
        let read = match read {
            Ok(read) => read,
            Err(error) => {
                self.cds.rollback()?;
                return match error {
                    TxnProcError::Store(StoreError::TableStops { table, reason }) => {
                        tracing::warn!(stage = "txnproc", table, reason, "the table stops; the unit is read again without it");
                        Ok(Step { progress: Progress::Worked, extracts: Vec::new() })
                    }
                    error => Err(error),
                };
            }
        };
        let Some((reading, (looked, finished))) = read else {
            self.purge_log()?;
            return Ok(idle);
        };

        crash::at(CrashPoint::CaptureRead);
        let taken = self.take(&state, reading, looked, &finished);
        let started = match taken {
            Ok(started) => started,
            Err(error) => {
                self.cds.rollback()?;
                return Err(error);
            }
        };
        let mut started: Vec<NodeScope> = started.iter().filter_map(|node| self.cds.nodes().get(node).cloned()).collect();
        // Those of one model have a part in common.
        started.sort_by(|one, other| one.node.model.cmp(&other.node.model));
        let share = started.len().div_ceil(SNAPSHOTS_OF_A_UNIT).max(1);
        let extracts = started.chunks(share).map(|nodes| self.pending_extracts(nodes, &finished)).collect::<Result<_, _>>()?;
        Ok(Step { progress: Progress::Worked, extracts })
    }

    /// Makes a unit durable, publishes and commits it. Returns the nodes whose stream begins after it.
    fn take(&mut self, state: &CdsState, reading: UnitReading, looked: Looked, finished: &Finished) -> Result<Vec<NodeName>, TxnProcError> {
        let nonce = new_nonce()?;
        let unit = reading.upto;
        self.server.write_tail(unit, nonce, Some(state.nonce))?;
        crash::at(CrashPoint::CaptureTail);
        let mut standing: Option<Vec<String>> = None;
        let (file, started, rows) = match looked {
            Looked::Redefined(TakenOver { redefined, noted, .. }, file) => {
                let names: Vec<String> = noted.into_iter().map(|note| note.table).collect();
                let mut both = self.server.frozen()?;
                both.extend(names.iter().filter(|name| !both.contains(name)).cloned().collect::<Vec<_>>());
                // As below; those of the former definition may be left out only after the commit.
                self.server.write_frozen(&both)?;
                standing = Some(names);
                (file, redefined.started, redefined.rows)
            }
            Looked::Compared(compared) => {
                let questions = questions(&reading);
                let is_large = reading.is_large;
                let mut input = self.input(reading, compared)?;
                finished.tell(&mut input);
                if let Some(stopped) = &input.stopped {
                    // Before the commit here: the note there may say too much, never too little.
                    self.server.write_frozen(&stopped.iter().map(|note| note.table.clone()).collect::<Vec<_>>())?;
                }
                let events = self.process(&mut input, is_large)?;
                crash::at(CrashPoint::TxnprocProcessed);
                let dx = |source| TxnProcError::Dx { unit, source };
                let mut told = LargeSummary::default();
                let file = self.files.write(state, unit, input.revision.unwrap_or(state.revision), |writer| {
                    told = match events {
                        Some(mut events) => {
                            events.marks = self.cds.marks(&questions)?;
                            writer.unit(&events).map_err(dx)?;
                            LargeSummary { rows: events.rows.len() as u64, nodes: events.nodes }
                        }
                        None => self.cds.finish_large(&input, &questions, writer).map_err(|error| match error {
                            CdsError::Dx(source) => dx(source),
                            error => error.into(),
                        })?,
                    };
                    Ok(())
                })?;
                let started = told.nodes.iter().filter_map(|event| match event {
                    NodeEvent::Start { node, .. } => Some(node.clone()),
                    _ => None,
                });
                (file, started.collect(), told.rows)
            }
        };
        crash::at(CrashPoint::TxnprocFile);
        if let Err(error) = self.cds.commit(&file, nonce) {
            self.take_back(&file)?;
            return Err(error.into());
        }
        crash::at(CrashPoint::TxnprocCommitted);
        self.files.wrote(&file);
        if let Some(standing) = standing {
            // Every other table was read anew.
            self.server.write_frozen(&standing)?;
        }
        tracing::debug!(stage = "txnproc", unit = %unit, rows, "unit committed");
        Ok(started)
    }

    /// Puts capture right where it was interrupted, and asks for a comparison of what may have been missed.
    fn heal(&mut self) -> Result<(), TxnProcError> {
        let noted: Vec<StoppedTable> = self.cds.stopped()?.into_iter().filter(|note| note.cause.is_none()).collect();
        let doubts = self.server.stopped_tables()?;
        if noted.is_empty() && doubts.is_empty() {
            self.tried = None;
            self.told.clear();
            return Ok(());
        }
        let tables = doubts.iter().map(|(table, _)| table.clone()).chain(noted.iter().map(|note| note.table.clone()));
        let now = (self.server.schema_version()?, tables.collect());
        if self.tried.as_ref() == Some(&now) {
            return Ok(());
        }
        let noted: Vec<(String, String)> = noted.into_iter().map(|note| (note.table, note.reason)).collect();
        let healed = self.server.heal_capture(&noted, Marked::Excluded)?;
        crash::at(CrashPoint::CaptureHealed);
        let mut told = BTreeMap::new();
        for healing in healed {
            let Healing { table, reason, unfit } = &healing;
            match unfit {
                None => tracing::warn!(stage = "txnproc", table, reason, "capture was interrupted; it goes on, and the table is compared"),
                Some(unfit) => {
                    if self.told.get(table) != Some(&healing) {
                        tracing::warn!(stage = "txnproc", table, reason, unfit, "the table is stopped; `dockmaster deploy` goes on");
                    }
                    told.insert(table.clone(), healing);
                }
            }
        }
        self.told = told;
        self.tried = Some(now);
        Ok(())
    }

    /// Takes log rows out of the server database that no stage will read again. The last ones stay, for people.
    pub fn purge_log(&mut self) -> Result<(), TxnProcError> {
        let upto = self.cds.state().position;
        // Not at every idle look: a purge is a commit on the server database.
        if upto.0 - self.purged_upto.0 >= LOG_ROWS_KEPT {
            self.server.purge_log(upto, LOG_ROWS_KEPT.unsigned_abs())?;
            crash::at(CrashPoint::TxnprocPurged);
            self.purged_upto = upto;
        }
        Ok(())
    }

    /// Returns the extracts of active nodes for which `missing` says that no finished extract is there, as of now.
    /// A crash while one was built is mended by it: the node starts anew.
    pub fn nodes_without_extract(&self, missing: impl Fn(&NodeScope) -> bool) -> Vec<NodeName> {
        self.cds.nodes().iter().filter(|(_, scope)| missing(scope)).map(|(name, _)| name.clone()).collect()
    }

    fn input(&self, reading: UnitReading, compared: Compared) -> Result<UnitInput, TxnProcError> {
        let mut input = redefine::controls(&reading);
        // Once more, now that what the comparison found is known.
        let standing = Standing::of(&self.cds, &reading)?;
        input.stopped = standing.noted.clone();
        for change in reading.changes {
            input.changes.extend(row_change(self.cds.dock(), &standing, change)?);
        }
        let is_compared = |table: usize| standing.is_compared(table);
        input.changes.extend(compared.changes.into_iter().filter(|change| is_compared(change.table)));
        let is_found = |found: &Reconciled| self.cds.dock().table(&found.table).is_some_and(is_compared);
        input.reconciled = compared.found.into_iter().filter(is_found).collect();
        Ok(input)
    }

    /// Takes a file back whose commit failed (a full disk): nobody has seen it, and the next try needs its name.
    fn take_back(&mut self, file: &TxnprocFile) -> Result<(), TxnProcError> {
        self.cds.rollback()?;
        // What counts is what the database says now, not what the failed commit was thought to do.
        if self.cds.last_file()?.is_none_or(|last| last.file_no < file.file_no) {
            self.root.disk().remove(&self.root.txnproc_file(file.file_no))?;
        }
        Ok(())
    }

    /// Takes the changes of a unit in. Returns its events; `None` if they are to be had by [`Cds::finish_large`].
    fn process(&mut self, input: &mut UnitInput, is_large: bool) -> Result<Option<UnitEvents>, TxnProcError> {
        if !is_large {
            match self.cds.process(input) {
                Err(CdsError::TooMuch) => self.cds.begin_large(&self.root.txnproc_tmp().join(UNIT_SCRATCH))?,
                events => return Ok(Some(events?)),
            }
        }
        // Those that a comparison found, or the few that reach many rows.
        for chunk in std::mem::take(&mut input.changes).chunks(self.memory.chunk_rows) {
            self.cds.take(chunk)?;
        }
        Ok(None)
    }

    fn pending_extracts(&self, nodes: &[NodeScope], finished: &Finished) -> Result<PendingExtracts, TxnProcError> {
        let path = self.root.cds_db();
        let snapshot = pin_snapshot(&path).map_err(|source| CdsError::Sql { path, what: "pin a snapshot", source })?;
        Ok(PendingExtracts {
            nodes: nodes.to_vec(),
            finished: finished.of_started.clone(),
            state: self.cds.state().clone(),
            dock: self.cds.dock().clone(),
            schema: self.cds.schema().clone(),
            graph: self.cds.graph().clone(),
            snapshot,
        })
    }
}

/// Returns what nodes are to compare at the end of a unit.
fn questions(reading: &UnitReading) -> Vec<Question> {
    let question = |control: &Control| match control {
        Control::Verify { node, id, choice } => Some(Question { node: node.clone(), id: *id, choice: choice.clone() }),
        _ => None,
    };
    reading.controls.iter().filter_map(question).collect()
}

/// Returns a new random nonce.
pub(crate) fn new_nonce() -> Result<Nonce, TxnProcError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| TxnProcError::Random(error.to_string()))?;
    Ok(Nonce(bytes))
}

/// Takes the rows of a large unit in, chunk by chunk, in the snapshot in which they are read.
fn take_rows(cds: &mut Cds, unit: &UnitReading, uncarried: &[(String, String)], rows: &mut UnitRows<'_>) -> Result<(), TxnProcError> {
    let mut unit = unit.clone();
    unit.stopped.extend_from_slice(uncarried);
    let standing = Standing::of(cds, &unit)?;
    while let Some(chunk) = rows.next_chunk()? {
        let mut changes = Vec::with_capacity(chunk.len());
        for change in chunk {
            changes.extend(row_change(cds.dock(), &standing, change)?);
        }
        cds.take(&changes)?;
    }
    Ok(())
}

/// Returns a change as the data store takes it, unless its table stands still, or is compared as a whole.
fn row_change(dock: &Dock, standing: &Standing, change: NetChange) -> Result<Option<RowChange>, TxnProcError> {
    let table = dock.table(&change.table).ok_or_else(|| CdsError::UnknownTable(change.table.clone()))?;
    let is_left_out = standing.frozen.contains(&table) || standing.is_compared(table);
    Ok((!is_left_out).then_some(RowChange { table, key: change.key, row: change.row }))
}
