//! The Transaction Router: txnproc files in, node files out.
//!
//! A step is one round: read units above the ledger's position, decide who gets what, write the files of all nodes as a
//! group, then commit one ledger transaction that makes them real. Invariants:
//! - A round's content is a function of its range and the ledger before it (I4). A crash before the commit leaves files
//!   without a ledger row; nobody has seen them, they are deleted and made anew, perhaps over a longer range (R25).
//! - A file that the ledger names is never written again and never deleted here.
//! - A node without operations costs nothing: no file, no row, no look at its folder.
//! - Who gets what is decided in one pass, in order; the files are made by several threads, which decide nothing.
//! - A Router that was followed by another commits nothing more (LEASE): each commit checks its fencing number.
//! - A start costs one look per node, however many files lie in the outboxes (fault 37).
//! - A unit is read and routed part by part, and what was collected of it goes to disk when it is much: memory does not depend on the
//!   size of a unit. Its node events are applied once, before its first part.

use crate::base::crash::{self, CrashPoint};
use crate::base::disk::DiskError;
use crate::base::group::GroupPut;
use crate::base::ids::{ContentHash, Epoch, FileNo, Incarnation, NodeName, ServerId, TxnId};
use crate::base::limits::ROUTER_FILES_PER_THREAD_MIN;
use crate::base::step::Progress;
use crate::base::workers::in_runs;
use crate::docking::error::DockingError;
use crate::docking::ledger::{Ledger, NodeChange, OutboxFile, Round, RouterState, Stream};
use crate::docking::queue;
use crate::docking::root::DockingRoot;
use crate::docking::txnproc::{TxnprocFiles, TxnprocRow};
use crate::dx::error::DxError;
use crate::dx::frame::Sealer;
use crate::dx::txnproc_reader::{TxnprocReader, UnitPart};
use crate::dx::writer::NodeFile;
use crate::model::event::{NodeEvent, ScopeKey, UnitEvents};
use crate::rules::route::{NodeKeys, RouteError, UnitRoute};
use crate::server::round::{
    AsideError, CollectError, PlannedFile, PlannedFrame, RoundContent, RoundLimits, RoundRange, before, new_stream,
};
use crate::server::spool::FrameSpool;
use std::collections::{HashMap, HashSet};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Most txnproc files of one round; each may be small.
const ROUND_FILES_MAX: usize = 256;

/// How the Router works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterOptions {
    /// zstd level of node files: changes their bytes, never their content hashes.
    pub zstd_level: i32,
    /// When rounds are closed and what is shared.
    pub limits: RoundLimits,
}

impl Default for RouterOptions {
    fn default() -> RouterOptions {
        RouterOptions { zstd_level: 3, limits: RoundLimits::default() }
    }
}

impl RouterError {
    /// Returns whether trying again may help: a lock that somebody holds, a full disk.
    pub fn is_transient(&self) -> bool {
        match self {
            RouterError::Docking(error) => error.is_transient(),
            // A file in the way was never named by the ledger: the recovery before the next step takes it away.
            RouterError::Disk(error) => error.is_no_space() || matches!(error, DiskError::Exists { .. }),
            _ => false,
        }
    }
}

/// Why a step failed. The next step starts with recovery.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// The docking root.
    #[error(transparent)]
    Docking(#[from] DockingError),
    /// A file could not be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A txnproc file is not what the Transaction Processor wrote. Nothing is routed past it.
    #[error("{}", path.display())]
    Txnproc {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: DxError,
    },
    /// A txnproc file does not belong where it stands.
    #[error("{}: {what}", path.display())]
    Chain {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A unit contradicts itself.
    #[error("{}", path.display())]
    Route {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: RouteError,
    },
    /// An event cannot become an operation.
    #[error("{}", path.display())]
    Collect {
        /// The file.
        path: PathBuf,
        /// Which event and why.
        source: CollectError,
    },
    /// A round cannot become files.
    #[error("round up to unit {upto}")]
    Round {
        /// Its last unit.
        upto: TxnId,
        /// Why.
        source: DxError,
    },
}

/// What is kept in memory between steps; always as of the ledger's last commit.
#[derive(Debug)]
struct Loaded {
    ledger: Ledger,
    state: RouterState,
    nodes: NodeKeys,
    streams: HashMap<NodeName, Stream>,
    /// Nodes whose folders are known to exist.
    folders: HashSet<NodeName>,
}

/// The Transaction Router.
#[derive(Debug)]
pub struct Router {
    root: Arc<DockingRoot>,
    options: RouterOptions,
    txnproc: TxnprocFiles,
    sealer: Sealer,
    spool: FrameSpool,
    /// Our number in the ledger: a later owner has a greater one, and then nothing of ours is committed any more.
    fence: u64,
    loaded: Option<Loaded>,
}

/// A round while its units are read.
#[derive(Debug)]
struct Reading {
    content: RoundContent,
    state: RouterState,
    /// Streams begun, or ended, within the round.
    streams: HashMap<NodeName, Stream>,
    /// Nodes begun anew whose outbox holds files of a former incarnation.
    restarted: Vec<NodeName>,
    /// Nodes whose file 1 is of this round and takes the place of a former one.
    replaced: Vec<NodeName>,
    units: u64,
}

/// Opens the ledger for the Router, and makes it where nothing was ever routed.
///
/// # Errors
/// [`DockingError::NoLedger`] if it is lost: then the Router's start puts it back first (`server::rebuild`).
fn ledger_of_router(root: &DockingRoot) -> Result<Ledger, DockingError> {
    match Ledger::open(&root.ledger_db()) {
        Err(DockingError::NoLedger { .. }) if queue::list(&root.txnproc())?.files.is_empty() => Ledger::create(&root.ledger_db()),
        opened => opened,
    }
}

impl Router {
    /// Opens the Router and recovers: unfinished files go, and so do files that the ledger does not name.
    ///
    /// # Errors
    /// Anything of the disk or the ledger.
    pub fn open(root: Arc<DockingRoot>, options: RouterOptions) -> Result<Router, RouterError> {
        let sealer = Sealer::new(options.zstd_level).map_err(DockingError::from)?;
        let txnproc = TxnprocFiles::new(&root.cds_db());
        let spool = FrameSpool::new(root.disk(), &root.router_tmp());
        let fence = ledger_of_router(&root)?.take_over()?;
        let mut router = Router { root, options, txnproc, sealer, spool, fence, loaded: None };
        router.loaded = Some(router.recover()?);
        Ok(router)
    }

    /// Returns the last unit routed, as of the last step that went well.
    pub fn position(&self) -> TxnId {
        self.loaded.as_ref().map(|loaded| loaded.state.position).unwrap_or_default()
    }

    /// Does one round.
    ///
    /// # Errors
    /// What stopped it. Nothing of the round was made real; the next step recovers and tries again.
    pub fn step(&mut self) -> Result<Progress, RouterError> {
        self.root.check_lock()?;
        let mut loaded = match self.loaded.take() {
            Some(loaded) => loaded,
            None => self.recover()?,
        };
        // On error what is loaded is dropped: node keys may be ahead of the ledger.
        let progress = self.round(&mut loaded);
        let cleared = self.spool.clear();
        let progress = progress?;
        self.loaded = Some(loaded);
        cleared?;
        Ok(progress)
    }

    fn recover(&self) -> Result<Loaded, RouterError> {
        // Whoever was fenced off deletes nothing either.
        let ledger = Ledger::open(&self.root.ledger_db())?.fenced(self.fence)?;
        let state = ledger.state()?;
        let streams: HashMap<NodeName, Stream> = ledger.streams()?.into_iter().map(|stream| (stream.node.clone(), stream)).collect();
        self.root.disk().clean_tmp(&self.root.router_tmp())?;
        // What a crash can leave is the next file of a stream, or those of a former incarnation: nobody's outbox is listed for more.
        for node in self.root.nodes()? {
            let last = streams.get(&node).map(|stream| stream.last_file);
            let is_next_there = |last: FileNo| self.root.outbox_file(&node, last.next()).symlink_metadata().is_ok();
            if last.is_none_or(is_next_there) {
                self.delete_above(&node, last.unwrap_or_default())?;
            }
        }
        for node in ledger.outboxes_left()? {
            self.delete_above(&node, streams.get(&node).map(|stream| stream.last_file).unwrap_or_default())?;
            ledger.outbox_cleared(&node)?;
        }
        let mut nodes = NodeKeys::new();
        let mut active: Vec<&Stream> = streams.values().filter(|stream| stream.active).collect();
        active.sort_by(|one, other| one.node.cmp(&other.node));
        for stream in active {
            nodes.start(stream.node.clone(), stream.incarnation, &[] as &[ScopeKey]);
        }
        ledger.keys(|node, key| {
            if let Some(index) = nodes.index_of(&node) {
                nodes.gain(index, &key);
            }
        })?;
        Ok(Loaded { ledger, state, nodes, streams, folders: HashSet::new() })
    }

    /// Deletes outbox files above a number: they were never named by the ledger, or belong to a former incarnation.
    fn delete_above(&self, node: &NodeName, last: FileNo) -> Result<(), RouterError> {
        for file in queue::list(&self.root.outbox(node))?.files.into_iter().filter(|file| file.file_no > last) {
            tracing::info!(stage = "router", %node, file = %file.file_no, "file without ledger row deleted");
            self.root.disk().remove(&file.path)?;
        }
        Ok(())
    }

    fn round(&mut self, loaded: &mut Loaded) -> Result<Progress, RouterError> {
        let rows = self.txnproc.after(loaded.state.position, ROUND_FILES_MAX)?;
        let mut reading = Reading {
            content: RoundContent::new(self.options.limits),
            state: loaded.state,
            streams: HashMap::new(),
            restarted: Vec::new(),
            replaced: Vec::new(),
            units: 0,
        };
        for row in &rows {
            if self.read_file(loaded, &mut reading, row)? {
                break;
            }
        }
        if reading.state == loaded.state {
            return Ok(Progress::Idle);
        }
        self.finish(loaded, reading)?;
        Ok(Progress::Worked)
    }

    /// Reads the units of a file that are above the position. Returns whether the round is to be closed.
    fn read_file(&mut self, loaded: &mut Loaded, reading: &mut Reading, row: &TxnprocRow) -> Result<bool, RouterError> {
        let path = self.root.txnproc_file(row.file_no);
        let damaged = |source| RouterError::Txnproc { path: path.clone(), source };
        let mut reader = TxnprocReader::open(BufReader::new(self.root.disk().open(&path)?)).map_err(damaged)?;
        check_chain(&reading.state, &path, row, &reader)?;
        let header = reader.header().clone();
        let content_hash = reader.summary().content_hash;
        let mut parts = reader.parts_of(self.options.limits.part_bytes_goal);
        let mut routing = None;
        while let Some(part) = parts.next_part().map_err(damaged)? {
            if part.unit.unit <= reading.state.position {
                continue;
            }
            self.read_part(loaded, reading, &mut routing, part, &path)?;
            if !part.is_last {
                continue;
            }
            enter_file(&mut reading.state, &header.server_id, header.epoch, row.file_no, content_hash);
            end_unit(loaded, reading, part.unit);
            if part.unit.unit < header.last && (reading.content.is_full() || !reading.restarted.is_empty()) {
                return Ok(true);
            }
        }
        // Behind the last unit nothing is left of the file, whatever its header calls its end.
        enter_file(&mut reading.state, &header.server_id, header.epoch, row.file_no, content_hash);
        reading.state.position = header.last;
        Ok(reading.content.is_full() || !reading.restarted.is_empty())
    }

    /// Routes a part of a unit; `routing` lives from its first part to its last.
    fn read_part(
        &mut self,
        loaded: &mut Loaded,
        reading: &mut Reading,
        routing: &mut Option<UnitRoute>,
        part: UnitPart<'_>,
        path: &Path,
    ) -> Result<(), RouterError> {
        let wrong = |source| RouterError::Route { path: path.to_owned(), source };
        let UnitPart { unit, is_first, .. } = part;
        if is_first {
            *routing = Some(UnitRoute::begin(&mut loaded.nodes, unit).map_err(wrong)?);
            reading.content.begin_unit(unit);
        }
        let Some(routing) = routing else {
            return Err(wrong(RouteError { unit: unit.unit, what: "a part of it came before its first one".to_owned() }));
        };
        let routed = routing.part(&loaded.nodes, unit).map_err(wrong)?;
        reading.content.collect(unit, &routed).map_err(|source| RouterError::Collect { path: path.to_owned(), source })?;
        reading.content.put_aside(&mut self.sealer, &mut self.spool).map_err(|error| match error {
            AsideError::Dx(source) => RouterError::Round { upto: unit.unit, source },
            AsideError::Disk(error) => error.into(),
        })
    }

    /// Writes the files of a round, then makes them real.
    fn finish(&mut self, loaded: &mut Loaded, reading: Reading) -> Result<(), RouterError> {
        let Reading { content, state, streams, restarted, replaced, units } = reading;
        let range = RoundRange { server_id: state.server_id, epoch: state.epoch, revision: state.revision, upto: state.position };
        let stream = |node: &NodeName, incarnation: Incarnation| {
            let stream = streams.get(node).or_else(|| loaded.streams.get(node))?;
            (stream.incarnation == incarnation).then(|| stream.clone())
        };
        let round_error = |source| RouterError::Round { upto: state.position, source };
        let planned = content.plan(range, &loaded.nodes, stream, &mut self.sealer).map_err(round_error)?;
        crash::at(CrashPoint::RouterCollected);
        let created = jiff::Timestamp::now().to_string();
        let disk = self.root.disk().clone();
        // From the first name to the last: the purge works by names and rows too.
        let root = Arc::clone(&self.root);
        let _outboxes = root.hold_outboxes();
        // Before the commit: a crash behind this does the round again, and until then nobody is offered anything else of use.
        for node in &replaced {
            self.delete_above(node, FileNo(0))?;
        }
        let spool = Mutex::new(&mut self.spool);
        let write = |run: Vec<PlannedFile>| write_files(&root, &loaded.folders, &run, &spool, &created);
        let mut group = disk.group();
        let mut files = Vec::with_capacity(planned.len());
        for (part, rows) in in_runs(planned, ROUTER_FILES_PER_THREAD_MIN, write)? {
            group.join(part);
            files.extend(rows);
        }
        loaded.folders.extend(files.iter().map(|file| file.node.clone()));
        crash::at(CrashPoint::RouterWritten);
        loaded.ledger.check_fence()?;
        group.commit()?;
        crash::at(CrashPoint::RouterRenamed);
        let ledger_path = self.root.ledger_db();
        disk.crash_point("commit the round", &ledger_path)?;
        let round = Round { state, nodes: content.changes, files };
        loaded.ledger.commit(&round)?;
        crash::at(CrashPoint::RouterCommitted);
        disk.crash_point("leave the round", &ledger_path)?;
        remember(loaded, &round);
        for node in &restarted {
            self.delete_above(node, FileNo(0))?;
        }
        for node in restarted.iter().chain(&replaced) {
            loaded.ledger.outbox_cleared(node)?;
        }
        crash::at(CrashPoint::RouterRound);
        tracing::debug!(stage = "router", units, files = round.files.len(), position = %state.position, "round");
        Ok(())
    }
}

/// Writes files under temporary names, as a group with their rows.
fn write_files(
    root: &DockingRoot,
    folders: &HashSet<NodeName>,
    planned: &[PlannedFile],
    spool: &Mutex<&mut FrameSpool>,
    created: &str,
) -> Result<(GroupPut, Vec<OutboxFile>), RouterError> {
    let mut group = root.disk().group();
    let mut rows = Vec::with_capacity(planned.len());
    for file in planned {
        let node = &file.node;
        if !folders.contains(node) {
            root.ensure_node(node)?;
        }
        let written = group.add(&root.router_tmp(), &root.outbox(node), &file.header.file_no.file_name(), |out| {
            let mut out = NodeFile::begin(&file.header, out)?;
            for frame in &file.frames {
                match frame {
                    PlannedFrame::Held(frame) => out.frame(frame)?,
                    PlannedFrame::Aside(frame) => {
                        let frame = spool.lock().unwrap_or_else(PoisonError::into_inner).read(frame).map_err(io::Error::other)?;
                        out.frame(&frame)?;
                    }
                }
            }
            Ok(out.finish()?)
        });
        match written {
            Ok(summary) => rows.push(file.row(&summary, created)),
            Err(error) => {
                group.abandon();
                return Err(error.into());
            }
        }
    }
    Ok((group, rows))
}

/// Notes the streams that a unit began, and that the round has got to its end.
fn end_unit(loaded: &Loaded, reading: &mut Reading, unit: &UnitEvents) {
    for event in &unit.nodes {
        match event {
            NodeEvent::Start { node, incarnation, .. } => {
                // Its file 1 would collide with the former incarnation's: the round ends here, and the old files go.
                if loaded.streams.get(node).is_some_and(|stream| stream.last_file.0 > 0) {
                    reading.restarted.push(node.clone());
                }
                reading.streams.insert(node.clone(), new_stream(node.clone(), *incarnation, unit.unit));
            }
            NodeEvent::Restart { node, incarnation, .. } => {
                reading.replaced.push(node.clone());
                reading.streams.insert(node.clone(), new_stream(node.clone(), *incarnation, before(unit.unit)));
            }
            NodeEvent::Stop { .. } | NodeEvent::Keys { .. } => {}
        }
    }
    reading.state.position = unit.unit;
    reading.state.revision = unit.revision;
    reading.units += 1;
}

/// Brings what is in memory to the ledger's commit.
fn remember(loaded: &mut Loaded, round: &Round) {
    for change in &round.nodes {
        match change {
            NodeChange::Started { node, incarnation, unit, .. } => {
                loaded.streams.insert(node.clone(), new_stream(node.clone(), *incarnation, *unit));
            }
            NodeChange::Stopped { node } => {
                if let Some(stream) = loaded.streams.get_mut(node) {
                    stream.active = false;
                }
            }
            NodeChange::Keys { .. } => {}
        }
    }
    for file in &round.files {
        if let Some(stream) = loaded.streams.get_mut(&file.node) {
            stream.last_file = file.file_no;
            stream.last_unit = file.last;
            stream.last_hash = file.content_hash;
        }
    }
    loaded.state = round.state;
}

fn enter_file(state: &mut RouterState, server_id: &ServerId, epoch: Epoch, file_no: FileNo, content_hash: ContentHash) {
    state.server_id = *server_id;
    state.epoch = epoch;
    state.txnproc_file = file_no;
    state.txnproc_hash = content_hash;
}

/// Checks that a file is the one that its row names, and follows what was read last.
fn check_chain<R: std::io::Read + std::io::Seek>(
    state: &RouterState,
    path: &Path,
    row: &TxnprocRow,
    reader: &TxnprocReader<R>,
) -> Result<(), RouterError> {
    let header = reader.header();
    let refuse = |what: String| Err(RouterError::Chain { path: path.to_owned(), what });
    let hash = reader.summary().content_hash;
    if header.file_no != row.file_no {
        return refuse(format!("its header says file {}", header.file_no));
    }
    if hash != row.content_hash || header.first != row.first || header.last != row.last {
        return refuse("it is not the file that the Transaction Processor's database names".to_owned());
    }
    if state.txnproc_file.0 > 0 && header.server_id != state.server_id {
        return refuse(format!("it is of server {}, not {}", header.server_id, state.server_id));
    }
    if header.epoch < state.epoch {
        return refuse(format!("it is of epoch {}, before {}", header.epoch, state.epoch));
    }
    if row.file_no == state.txnproc_file {
        return if hash == state.txnproc_hash { Ok(()) } else { refuse("it changed while it was being routed".to_owned()) };
    }
    let expected = state.txnproc_file.next();
    if row.file_no != expected {
        return refuse(format!("file {expected} should come first, but the Transaction Processor's database does not name it"));
    }
    if header.previous != state.txnproc_hash {
        return refuse("it does not follow the file that was routed before it".to_owned());
    }
    Ok(())
}
