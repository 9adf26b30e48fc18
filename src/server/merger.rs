//! The Transaction Merger: brings what nodes have sent into the server database (Siebel's name for it).
//!
//! It reads the inboxes, makes each file's units known (one work item each, MI-57), and merges them: of one node strictly in order (MI-50), the nodes
//! in turns, so that none waits for another's queue. What a unit is to the server database stands in `store::merge`. **Invariants**: a
//! unit is executed once, for ever (R16); a file goes only when all its units are final; what the server is not able to do now leaves
//! the unit waiting.

use super::mergerinbox::{self, InboxError, InboxFile, OpenFile, Registered, stamp};
use super::nodes::{self, NodeError};
use crate::base::clock;
use crate::base::disk::DiskError;
use crate::base::ids::{FileNo, Incarnation, InstallId, NodeName, UnitNo};
use crate::base::limits::MERGE_TURN_UNITS_MAX;
use crate::base::step::Progress;
use crate::cds::layout::{connect_read_only, read_state};
use crate::docking::error::DockingError;
use crate::docking::root::DockingRoot;
use crate::docking::sessions::{SessionsDb, SessionsError};
use crate::model::node::{Node, NodeState};
use crate::model::upload::UnitId;
use crate::rules::definition::MergeErrors;
use crate::rules::dependents::Footprint;
use crate::store::merge::{MergeDatabase, MergeError, MergeJob, Merged, inserted_keys};
use crate::store::merge_units::{Person, Ruling, RulingRefused, UnitRow};
use crate::store::passing::is_out_of_room;
use crate::store::sqlite::{ServerDatabase, StoreError};
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A node whose units cannot be merged for now is looked at again after so long.
const BLOCKED: Duration = Duration::from_secs(10);
/// How often files are looked for that may go.
const CLEAN_EVERY: Duration = Duration::from_secs(60);

/// Why the Merger stopped.
#[derive(Debug, thiserror::Error)]
pub enum MergerError {
    /// The server database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A unit could not be merged for now.
    #[error("unit {unit} of {node}: {source}")]
    Unit {
        /// The node.
        node: NodeName,
        /// The unit.
        unit: UnitNo,
        /// Why.
        source: Box<MergeError>,
    },
    /// A file or folder.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The docking root.
    #[error(transparent)]
    Docking(#[from] DockingError),
    /// Alerts.
    #[error(transparent)]
    Sessions(#[from] SessionsError),
    /// A node could not be disabled.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The data store, for the day of time windows.
    #[error("{}: reading the day of the time windows", path.display())]
    DataStore {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
}

impl MergerError {
    /// Returns whether trying again may help: another program held a lock.
    pub fn is_transient(&self) -> bool {
        match self {
            MergerError::Store(error) => error.is_busy(),
            MergerError::Unit { source, .. } => match &**source {
                MergeError::Store(error) => error.is_busy(),
                MergeError::Rights(error) => error.is_busy(),
                MergeError::TableStopped { .. } | MergeError::NotResolved { .. } => false,
            },
            _ => false,
        }
    }
}

/// How the Merger works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergerOptions {
    /// What a refused unit means to the node's later ones.
    pub errors: MergeErrors,
    /// How long a file is kept after all of it is final.
    pub keep: Duration,
    /// Units of one node before the next one has its turn.
    pub turn_units: usize,
}

impl Default for MergerOptions {
    fn default() -> MergerOptions {
        MergerOptions { errors: MergeErrors::default(), keep: Duration::from_secs(7 * 86_400), turn_units: MERGE_TURN_UNITS_MAX }
    }
}

/// The stage.
#[derive(Debug)]
pub struct Merger {
    root: Arc<DockingRoot>,
    database: MergeDatabase,
    sessions: SessionsDb,
    options: MergerOptions,
    /// Nodes whose turn comes.
    queue: VecDeque<NodeName>,
    /// Files whose units are known, with their incarnation.
    registered: HashMap<PathBuf, Registered>,
    /// What held units touch.
    held: HashMap<UnitId, Arc<Footprint>>,
    /// Nodes whose units cannot be merged for now, and since when.
    blocked: HashMap<NodeName, Instant>,
    cleaned: Option<Instant>,
    merged: u64,
}

/// How a node's turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// It may have more.
    More,
    /// It has nothing that can be merged now.
    Over,
}

impl Merger {
    /// Opens it on a server database and a docking root; `None` if an older program deployed what is in force, without the tables of
    /// uploads: then there is nothing to merge before the next deploy.
    ///
    /// # Errors
    /// One of them cannot be opened, or nothing is deployed.
    pub fn open(database: &Path, root: Arc<DockingRoot>, options: MergerOptions) -> Result<Option<Merger>, MergerError> {
        let Some(database) = MergeDatabase::open(database)? else { return Ok(None) };
        let sessions = SessionsDb::open(&root.sessions_db())?;
        Ok(Some(Merger {
            database,
            sessions,
            root,
            options,
            queue: VecDeque::new(),
            registered: HashMap::new(),
            held: HashMap::new(),
            blocked: HashMap::new(),
            cleaned: None,
            merged: 0,
        }))
    }

    /// Returns how many units were merged or held since it was opened.
    pub fn merged(&self) -> u64 {
        self.merged
    }

    /// Gives one node its turn, or looks for new files if none waits.
    ///
    /// # Errors
    /// The server is not able to go on now; nothing is lost by calling again.
    pub fn step(&mut self) -> Result<Progress, MergerError> {
        let Some(node) = self.queue.pop_front() else {
            self.scan()?;
            return Ok(if self.queue.is_empty() { Progress::Idle } else { Progress::Worked });
        };
        match self.turn(&node) {
            Ok(Turn::More) => self.queue.push_back(node),
            Ok(Turn::Over) => {}
            Err(error) if is_of_node(&error) => self.block(node, &error)?,
            Err(error) => {
                self.queue.push_front(node);
                return Err(error);
            }
        }
        Ok(Progress::Worked)
    }

    /// Looks into the inboxes and for units that a person set back.
    fn scan(&mut self) -> Result<(), MergerError> {
        self.blocked.retain(|_, since| since.elapsed() < BLOCKED);
        let is_clean_time = self.cleaned.is_none_or(|at| at.elapsed() >= CLEAN_EVERY);
        for name in self.root.nodes()? {
            let (files, bad) = mergerinbox::list(&self.root, &name, |path| self.known(path))?;
            for error in bad {
                self.refuse_file(&name, error)?;
            }
            let is_new = |file: &InboxFile| !file.is_set_aside && self.known(&file.path).is_none();
            if !files.is_empty() && (is_clean_time || files.iter().any(is_new)) {
                // Of a node that was deleted nobody can say what it may do.
                let Some(node) = self.database.database().node(&name)? else { continue };
                self.register(&node, &files)?;
                self.clean(&node)?;
            }
        }
        if is_clean_time {
            self.cleaned = Some(Instant::now());
        }
        for name in self.database.nodes_waiting()? {
            if self.blocked.contains_key(&name) || !self.is_merged(&name)? {
                continue;
            }
            if self.next(&name)?.is_some() {
                self.queue.push_back(name);
            }
        }
        Ok(())
    }

    /// Whether units of a node are merged: what an ended node has sent waits for a person.
    fn is_merged(&self, name: &NodeName) -> Result<bool, MergerError> {
        Ok(self.database.database().node(name)?.is_some_and(|node| node.state != NodeState::Disabled))
    }

    fn next(&self, node: &NodeName) -> Result<Option<UnitRow>, StoreError> {
        self.database.next_unit(node, self.options.errors != MergeErrors::Hold)
    }

    /// Returns the incarnation of a file whose units are known; `None` also if another file lies under its name by now. Sessions remove files of
    /// former incarnations, whose numbers begin at 1 again.
    fn known(&self, path: &Path) -> Option<Incarnation> {
        let known = self.registered.get(path)?;
        (known.stamp == stamp(path)).then_some(known.incarnation)
    }

    /// Makes the units of new files known, as far as no file is missing before them.
    fn register(&mut self, node: &Node, files: &[InboxFile]) -> Result<(), MergerError> {
        let identity = self.database.database().identity()?;
        for file in files.iter().filter(|file| !file.is_set_aside) {
            if self.known(&file.path).is_some() {
                continue;
            }
            // Before it is read: one that takes its place meanwhile has another stamp.
            let stamp = stamp(&file.path);
            let last = self.database.last_file(&node.name, file.incarnation)?;
            if file.file > last.next() {
                tracing::warn!(stage = "merger", node = %node.name, file = %file.file, missing = %last.next(), "a file before it is missing");
                break;
            }
            match mergerinbox::read_units(&self.root, &identity, &node.name, file) {
                Ok(stored) => {
                    let registered = self.database.register(&stored, clock::now_micros())?;
                    for unit in &registered.forks {
                        let text = format!(
                            "unit {unit} of local database {} came in {} with another content than before: two histories (fork); it is not executed",
                            stored.install,
                            file.path.display()
                        );
                        self.alert(&node.name, &text)?;
                    }
                    tracing::info!(stage = "merger", node = %node.name, file = %file.file, units = registered.new, known = registered.known, "registered");
                    self.registered.insert(file.path.clone(), Registered { incarnation: file.incarnation, stamp });
                }
                Err(InboxError::Disk(error)) if error.is_not_found() => {}
                Err(error) => self.refuse_file(&node.name, error)?,
            }
        }
        Ok(())
    }

    /// Moves a bad file out of the way. The node sends it again, since its number is free.
    fn refuse_file(&mut self, node: &NodeName, error: InboxError) -> Result<(), MergerError> {
        match error {
            InboxError::Disk(error) => Err(error.into()),
            InboxError::Bad { path, reason } => {
                mergerinbox::put_aside(&self.root, node, &path, &reason)?;
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                self.alert(node, &format!("{name} in its inbox is damaged and was put aside: {reason}; it is asked for again"))?;
                self.registered.remove(&path);
                Ok(())
            }
        }
    }

    fn alert(&self, node: &NodeName, text: &str) -> Result<(), MergerError> {
        tracing::error!(stage = "merger", %node, "{text}");
        Ok(self.sessions.alert(node.as_str(), text, clock::now_seconds())?)
    }

    /// Gives numbers of former incarnations free, and deletes files that nobody needs.
    fn clean(&mut self, node: &Node) -> Result<(), MergerError> {
        let needed = self.database.unfinished_files(&node.name)?;
        for file in mergerinbox::list(&self.root, &node.name, |path| self.known(path))?.0 {
            let state = needed.get(&(file.incarnation, file.file));
            let is_known = file.is_set_aside || self.known(&file.path).is_some();
            if !is_known || state == Some(&true) {
                continue;
            }
            let is_gone = state.is_none() && mergerinbox::remove_old(&self.root, &file, self.options.keep)?;
            if !is_gone && !file.is_set_aside && file.incarnation < node.incarnation {
                mergerinbox::give_free(&self.root, &node.name, &file)?;
            }
            if !file.path.exists() {
                self.registered.remove(&file.path);
            }
        }
        Ok(())
    }

    /// Merges some units of one node.
    fn turn(&mut self, name: &NodeName) -> Result<Turn, MergerError> {
        let Some(day) = self.day()? else { return Ok(Turn::Over) };
        let Some(node) = self.database.database().node(name)?.filter(|node| node.state != NodeState::Disabled) else {
            return Ok(Turn::Over);
        };
        let Some(mut next) = self.next(name)? else { return Ok(Turn::Over) };
        let (incarnation, file) = (next.incarnation, next.file);
        let mut open = match OpenFile::open(&self.root, name, incarnation, file) {
            Ok(Some(open)) => open,
            Ok(None) => return self.missing(name, &next),
            Err(error) => {
                self.refuse_file(name, error)?;
                return Ok(Turn::Over);
            }
        };
        let (install, file_hash, path) = (open.install(), open.hash(), open.path().to_owned());
        let mut units = open.units();
        for _ in 0..self.options.turn_units {
            if (next.incarnation, next.file, next.id.install) != (incarnation, file, install) {
                break;
            }
            let unit = match units.unit(next.id.number) {
                Ok(Some(unit)) => unit,
                // A unit before the last one was set back meanwhile: the file is read anew.
                Ok(None) => break,
                Err(error) => {
                    self.refuse_file(name, error)?;
                    return Ok(Turn::Over);
                }
            };
            let held = self.held_before(name, install, next.id.number)?;
            let job = MergeJob {
                node: &node,
                install,
                incarnation,
                file,
                file_hash,
                unit: &unit,
                held: &held,
                day,
                now_micros: clock::now_micros(),
            };
            let fault = |source| MergerError::Unit { node: name.clone(), unit: next.id.number, source: Box::new(source) };
            let merged = self.database.merge(&job).map_err(fault)?;
            self.merged += 1;
            self.note(&node, &next, &path, merged)?;
            match self.next(name)? {
                Some(following) if self.is_merged(name)? => next = following,
                _ => return Ok(Turn::Over),
            }
        }
        Ok(Turn::More)
    }

    /// Says what became of a unit.
    fn note(&mut self, node: &Node, unit: &UnitRow, path: &Path, merged: Merged) -> Result<(), MergerError> {
        let (name, number) = (&node.name, unit.id.number);
        match merged {
            Merged::Finished { conflicts, keys, released } => {
                if keys > 0 || released > 0 {
                    // What held units mean may be something else now.
                    self.held.retain(|id, _| id.install != unit.id.install);
                }
                tracing::debug!(stage = "merger", node = %name, unit = %number, conflicts, keys, released, "merged");
            }
            Merged::Held { reason, waits_for, alert } => {
                tracing::warn!(stage = "merger", node = %name, unit = %number, reason, "held");
                if alert {
                    let text = format!("unit {number} in {}: {reason}", path.display());
                    self.alert(name, &text)?;
                }
                if waits_for.is_none() && self.options.errors == MergeErrors::DisableNode {
                    nodes::disable(self.database.database(), name)?;
                    self.alert(name, &format!("it was disabled, since unit {number} was refused: {reason}"))?;
                }
            }
            Merged::NotWaiting => {}
        }
        Ok(())
    }

    /// The file of a unit is gone: the node is asked for it again, since its number is free.
    fn missing(&mut self, name: &NodeName, unit: &UnitRow) -> Result<Turn, MergerError> {
        let text = format!(
            "{} of incarnation {} is gone from its inbox, and unit {} in it is not merged",
            unit.file.file_name(),
            unit.incarnation,
            unit.id.number
        );
        let inbox = self.root.inbox(name);
        self.registered.retain(|path, _| !path.starts_with(&inbox));
        self.alert(name, &text)?;
        self.blocked.insert(name.clone(), Instant::now());
        Ok(Turn::Over)
    }

    /// Returns what the held units of a local database touch that come before one of them.
    fn held_before(&mut self, name: &NodeName, install: InstallId, before: UnitNo) -> Result<Vec<(UnitNo, Arc<Footprint>)>, MergerError> {
        let mut found = Vec::new();
        let mut open: Option<((Incarnation, FileNo), OpenFile)> = None;
        for row in self.database.held_units(name)?.into_iter().filter(|row| row.id.install == install && row.id.number < before) {
            if let Some(footprint) = self.held.get(&row.id) {
                found.push((row.id.number, Arc::clone(footprint)));
                continue;
            }
            let place = (row.incarnation, row.file);
            if open.as_ref().is_none_or(|(of, _)| *of != place) {
                open = match OpenFile::open(&self.root, name, row.incarnation, row.file) {
                    Ok(file) => file.map(|file| (place, file)),
                    Err(error) => {
                        self.refuse_file(name, error)?;
                        None
                    }
                };
            }
            let unit = match open.as_mut().map(|(_, file)| file.units().unit(row.id.number)) {
                Some(Ok(Some(unit))) => unit,
                Some(Err(InboxError::Disk(error))) => return Err(error.into()),
                _ => {
                    // Nobody can say what depends on it.
                    tracing::error!(stage = "merger", node = %name, unit = %row.id.number, "the file of a held unit is gone");
                    continue;
                }
            };
            let fault = |source| MergerError::Unit { node: name.clone(), unit: row.id.number, source: Box::new(source) };
            let footprint = Arc::new(self.database.footprint(install, &unit).map_err(fault)?);
            self.held.insert(row.id, Arc::clone(&footprint));
            found.push((row.id.number, footprint));
        }
        Ok(found)
    }

    /// Leaves a node alone for a while; the others go on.
    fn block(&mut self, node: NodeName, error: &MergerError) -> Result<(), MergerError> {
        if matches!(error, MergerError::Unit { source, .. } if matches!(**source, MergeError::TableStopped { .. })) {
            // Mostly the Transaction Processor takes the table up again by itself; what it cannot is a need of its own.
            tracing::warn!(stage = "merger", %node, "{error}");
        } else {
            self.alert(&node, &error.to_string())?;
        }
        self.blocked.insert(node, Instant::now());
        Ok(())
    }

    /// Returns the day of the time windows; `None` if there is no data store yet.
    fn day(&self) -> Result<Option<i64>, MergerError> {
        let path = self.root.cds_db();
        if !path.exists() {
            return Ok(None);
        }
        let read = connect_read_only(&path).and_then(|connection| read_state(&connection));
        Ok(read.map_err(|source| MergerError::DataStore { path, source })?.map(|state| state.day))
    }
}

/// Whether an error concerns one node: what it writes to is stopped, its rights cannot be evaluated, or one of its units cannot be
/// written for a reason that lasts.
fn is_of_node(error: &MergerError) -> bool {
    match error {
        MergerError::Unit { source, .. } => match &**source {
            MergeError::TableStopped { .. } | MergeError::NotResolved { .. } => true,
            MergeError::Rights(error) => !error.is_busy(),
            // Whatever lasts is of this one unit, as far as is known: others go on, and it is tried again.
            MergeError::Store(error) => !error.is_busy() && !is_out_of_room(error),
        },
        _ => false,
    }
}

/// Why a person's decision was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// It is not possible.
    #[error("message {node}:{unit}: {refused}")]
    Refused {
        /// The node.
        node: NodeName,
        /// The unit.
        unit: UnitNo,
        /// Why.
        refused: RulingRefused,
    },
    /// Its file cannot be read.
    #[error("message {node}:{unit}: its file {reason}")]
    File {
        /// The node.
        node: NodeName,
        /// The unit.
        unit: UnitNo,
        /// Why.
        reason: String,
    },
    /// The server database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Carries out what a person decided on a unit of a node that is in error or waits (MI-53, MI-62, MI-63). The Merger goes on from there by itself.
///
/// # Errors
/// It is not possible, its file is not there any more, or a statement failed.
pub fn rule(
    database: &ServerDatabase,
    root: &DockingRoot,
    node: &NodeName,
    unit: &UnitRow,
    ruling: Ruling,
    person: &Person<'_>,
) -> Result<(), RuleError> {
    let file = |reason: String| RuleError::File { node: node.clone(), unit: unit.id.number, reason };
    let mut inserted = Vec::new();
    if ruling != Ruling::Retry {
        let open = OpenFile::open(root, node, unit.incarnation, unit.file).map_err(|error| file(error.to_string()))?;
        let mut open = open.ok_or_else(|| file("is gone".to_owned()))?;
        let content = open.units().unit(unit.id.number).map_err(|error| file(error.to_string()))?;
        inserted = inserted_keys(&content.ok_or_else(|| file("does not have it".to_owned()))?);
    }
    let refused = |refused| RuleError::Refused { node: node.clone(), unit: unit.id.number, refused };
    database.rule(unit.id, ruling, &inserted, person)?.map_err(refused)
}
