//! Transaction Processor: master transaction log -> `docking/txnproc/*.dx`, by way of the consolidated data store.
//!
//! One step takes one unit: everything that the log holds up to the end of one read snapshot. Order of what becomes
//! durable: the mark in the server database (which flushes every commit that was read, I7), the file, and then the one
//! commit of `cds.db` that holds position, data, counts and the file's ledger row. A crash between any two leaves a
//! file without a row, which is deleted and made anew, perhaps longer (R25).

use super::rebuild::{self, RebuildError, rebuild};
use super::reconcile::{self, Compared, Standing};
use crate::base::clock::now_micros;
use crate::base::crash::{self, CrashPoint};
use crate::base::disk::DiskError;
use crate::base::ids::{ContentHash, FileNo, NodeName, Nonce, Revision, TxnId};
use crate::base::step::Progress;
use crate::cds::compare::Reconciled;
use crate::cds::layout::{StoppedTable, TxnprocFile, pin_snapshot};
use crate::cds::marks::Question;
use crate::cds::nodes::NodeScope;
use crate::cds::unit::{NodeChange, RowChange, UnitInput};
use crate::cds::view::visible_rows;
use crate::cds::{Cds, CdsError, CdsState};
use crate::docking::error::DockingError;
use crate::docking::queue;
use crate::docking::root::DockingRoot;
use crate::dx::error::DxError;
use crate::dx::header::{DxDirection, Header};
use crate::dx::writer::TxnprocWriter;
use crate::model::dock::Dock;
use crate::model::event::NodeEvent;
use crate::model::schema::Schema;
use crate::rules::graph::ScopeGraph;
use crate::store::control::Control;
use crate::store::heal::Healing;
use crate::store::log::{Marked, ReadOptions, UnitReading};
use crate::store::sqlite::{ServerDatabase, StoreError};
use rusqlite::Connection;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Level at which txnproc files are compressed.
const ZSTD_LEVEL: i32 = 1;

/// Rows of the log that stay behind the position, for people to look at.
const LOG_ROWS_KEPT: i64 = 10_000;

/// Most snapshots that are held for the extracts of one unit: one for each thread that builds some.
const SNAPSHOTS_OF_A_UNIT: usize = 2;

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
    /// No random numbers from the system.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
}

impl TxnProcError {
    /// Returns whether trying again may help: a lock that somebody holds, a full disk.
    pub fn is_transient(&self) -> bool {
        match self {
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
    last_file: FileNo,
    last_hash: ContentHash,
    last_unit: TxnId,
    purged_upto: TxnId,
    /// What stood in doubt when healing was tried last: trying again would find the same.
    tried: Option<(i64, Vec<String>)>,
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
        let cds = opened?;
        let last = cds.last_file()?;
        // After a new filling of the data store the files go on where they were: each range begins where the last one ended.
        let (last_file, last_hash, last_unit) =
            last.map_or((FileNo(0), ContentHash::default(), cds.state().position), |file| (file.file_no, file.content_hash, file.last));
        root.disk().clean_tmp(&root.txnproc_tmp())?;
        for file in queue::list(&root.txnproc())?.files {
            if file.file_no > last_file {
                tracing::info!(stage = "txnproc", file = %file.file_no, "deleting a file that was never committed");
                root.disk().remove(&file.path)?;
            }
        }
        Ok(TxnProc { server, cds, root, last_file, last_hash, last_unit, purged_upto: TxnId::default(), tried: None })
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
        let read = self.server.read_unit_with(&options, |snapshot, unit| {
            let mut compared = reconcile::compare(&self.cds, snapshot, unit)?;
            let uncarried = std::mem::take(&mut compared.uncarried);
            Ok::<_, TxnProcError>((compared, uncarried))
        })?;
        let Some((reading, compared)) = read else {
            self.purge_log()?;
            return Ok(idle);
        };

        crash::at(CrashPoint::CaptureRead);
        let nonce = new_nonce()?;
        self.server.write_tail(reading.upto, nonce, Some(state.nonce))?;
        crash::at(CrashPoint::CaptureTail);

        let unit = reading.upto;
        let questions = questions(&reading);
        let input = self.input(reading, compared)?;
        if let Some(stopped) = &input.stopped {
            // Before the commit here: the note there may say too much, never too little.
            self.server.write_frozen(&stopped.iter().map(|note| note.table.clone()).collect::<Vec<_>>())?;
        }
        let mut events = self.cds.process(&input)?;
        crash::at(CrashPoint::TxnprocProcessed);
        let marks = self.cds.marks(&questions).map_err(TxnProcError::from);
        let written = marks.and_then(|marks| {
            events.marks = marks;
            self.write_file(&state, unit, events.revision, |writer| {
                writer.unit(&events).map_err(|source| TxnProcError::Dx { unit, source })
            })
        });
        let file = match written {
            Ok(file) => file,
            Err(error) => {
                self.cds.rollback()?;
                return Err(error);
            }
        };
        crash::at(CrashPoint::TxnprocFile);
        self.cds.commit(&file, nonce)?;
        crash::at(CrashPoint::TxnprocCommitted);
        self.last_file = file.file_no;
        self.last_hash = file.content_hash;
        self.last_unit = file.last;

        let started = events.nodes.iter().filter_map(|event| match event {
            NodeEvent::Start { node, .. } => self.cds.nodes().get(node).cloned(),
            _ => None,
        });
        let started: Vec<NodeScope> = started.collect();
        let share = started.len().div_ceil(SNAPSHOTS_OF_A_UNIT).max(1);
        let extracts = started.chunks(share).map(|nodes| self.pending_extracts(nodes)).collect::<Result<_, _>>()?;
        tracing::debug!(stage = "txnproc", unit = %unit, rows = events.rows.len(), "unit committed");
        Ok(Step { progress: Progress::Worked, extracts })
    }

    /// Puts capture right where it was interrupted, and asks for a comparison of what may have been missed.
    fn heal(&mut self) -> Result<(), TxnProcError> {
        let noted: Vec<StoppedTable> = self.cds.stopped()?.into_iter().filter(|note| note.cause.is_none()).collect();
        let doubts = self.server.stopped_tables()?;
        if noted.is_empty() && doubts.is_empty() {
            self.tried = None;
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
        for healing in healed {
            let Healing { table, reason, unfit } = &healing;
            match unfit {
                None => tracing::warn!(stage = "txnproc", table, reason, "capture was interrupted; it goes on, and the table is compared"),
                Some(unfit) => tracing::warn!(stage = "txnproc", table, reason, unfit, "the table is stopped; `dockmaster deploy` goes on"),
            }
        }
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
        let mut input = UnitInput { unit: reading.upto, read_at_micros: now_micros(), ..UnitInput::default() };
        // Once more, now that what the comparison found is known.
        let standing = Standing::of(&self.cds, &reading)?;
        input.stopped = standing.noted;
        let is_compared = |table: usize| standing.compared.iter().any(|(compared, _)| *compared == table);
        for change in reading.changes {
            let table = self.cds.dock().table(&change.table).ok_or_else(|| CdsError::UnknownTable(change.table.clone()))?;
            // What was compared as a whole is among the differences, once.
            if !standing.frozen.contains(&table) && !is_compared(table) {
                input.changes.push(RowChange { table, key: change.key, row: change.row });
            }
        }
        input.changes.extend(compared.changes.into_iter().filter(|change| is_compared(change.table)));
        let is_found = |found: &Reconciled| self.cds.dock().table(&found.table).is_some_and(is_compared);
        input.reconciled = compared.found.into_iter().filter(is_found).collect();
        for control in reading.controls {
            match control {
                Control::Node { node, .. } => input.nodes.push(NodeChange::Set(node)),
                Control::NodeDeleted { name, .. } => input.nodes.push(NodeChange::Deleted(name)),
                Control::Definition { revision } => input.revision = Some(revision),
                Control::Reconcile { .. } | Control::Verify { .. } => {}
                Control::Tick { day } => input.day = Some(day),
            }
        }
        Ok(input)
    }

    /// Writes the next file; `fill` appends its one unit. Nothing stands under the file's name unless all went well.
    fn write_file(
        &self,
        state: &CdsState,
        unit: TxnId,
        revision: Revision,
        fill: impl FnOnce(&mut TxnprocWriter<'_>) -> Result<(), TxnProcError>,
    ) -> Result<TxnprocFile, TxnProcError> {
        let header = Header {
            direction: DxDirection::Txnproc,
            server_id: state.server_id,
            epoch: state.epoch,
            node: None,
            incarnation: Default::default(),
            file_no: self.last_file.next(),
            first: TxnId(self.last_unit.0 + 1),
            last: unit,
            revision,
            previous: self.last_hash,
            install_id: Default::default(),
            applied_unit: TxnId::default(),
        };
        let dx = |source| TxnProcError::Dx { unit, source };
        let mut failed = None;
        let name = header.file_no.file_name();
        let written = self.root.disk().put_with(&self.root.txnproc_tmp(), &self.root.txnproc(), &name, |out| {
            let write = || {
                let mut writer = TxnprocWriter::begin(&header, ZSTD_LEVEL, out).map_err(dx)?;
                fill(&mut writer)?;
                writer.finish().map_err(dx)
            };
            write().map_err(|error| match error {
                // A full disk is the disk's matter, not the unit's.
                TxnProcError::Dx { source: DxError::Io { source, .. }, .. } => source,
                other => {
                    failed = Some(other);
                    io::Error::other("its content could not be made")
                }
            })
        });
        let summary = match (written, failed) {
            (Err(_), Some(error)) => return Err(error),
            (written, _) => written?,
        };
        Ok(TxnprocFile {
            file_no: header.file_no,
            first: header.first,
            last: header.last,
            content_hash: summary.content_hash,
            bytes: summary.bytes,
            created_micros: now_micros(),
        })
    }

    fn pending_extracts(&self, nodes: &[NodeScope]) -> Result<PendingExtracts, TxnProcError> {
        let path = self.root.cds_db();
        let snapshot = pin_snapshot(&path).map_err(|source| CdsError::Sql { path, what: "pin a snapshot", source })?;
        Ok(PendingExtracts {
            nodes: nodes.to_vec(),
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
