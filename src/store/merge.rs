//! The Transaction Merger's side of the server database (architecture 3.5): one unit of a node is one transaction, with the server's own
//! triggers, constraints and foreign keys on.
//!
//! In this order: the node's rights before, all conflict checks, the writes, the rights after, and what became of the unit, with its confirm as a
//! row of the log (R30). If anything is refused all of it is rolled back, and a transaction of its own says so. **Invariants**: a unit
//! whose status is not `waiting` or `partial` is never executed (R16); a unit and its confirm are committed together or not at all; a
//! fault of the server (a lock, a full disk) leaves the unit waiting, whatever was tried.

use crate::base::crash::{self, CrashPoint};
use crate::base::defect::{self, Defect};
use crate::base::ids::{ContentHash, FileNo, Incarnation, InstallId, Revision, UnitNo};
use crate::model::dock::Dock;
use crate::model::event::TableHeading;
use crate::model::node::Node;
use crate::model::schema::Schema;
use crate::model::upload::{RowChange, UnitId, UploadUnit, Winner};
use crate::model::value::{Row, RowKey, Value, display_key};
use crate::rules::dependents::Footprint;
use crate::rules::merge::{Facts, Found, RULE_OUT_OF_VIEW, Side, View, Write, decide};
use crate::store::control::Control;
use crate::store::merge_keys::{Keys, Rekeyed};
use crate::store::merge_names::{self, Dropped};
use crate::store::merge_record::{Lost, Refused};
use crate::store::merge_write::{self, Op};
use crate::store::rights::{Basis, Right, Rights, RightsError, Sight};
use crate::store::sqlite::{ServerDatabase, StoreError};
use rusqlite::ErrorCode;
use std::path::Path;
use std::sync::Arc;

/// The rule by which a value of a column that nodes do not have any more is kept in the conflict list.
const RULE_COLUMN_GONE: &str = "column-gone";

/// The server could not merge: nothing is known of the unit that was not known before, and it is tried again later.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The server database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The rules could not be evaluated.
    #[error("the node's rights: {0}")]
    Rights(#[from] RightsError),
    /// What is written to the table would not reach the nodes.
    #[error("table {table} is stopped: {reason}; units that write to it wait, `dockmaster deploy` takes it up again")]
    TableStopped {
        /// The table.
        table: String,
        /// Why.
        reason: String,
    },
    /// An older program deployed what is in force.
    #[error("definition {revision} was deployed by an older program: `dockmaster deploy` it again before changes of nodes can be merged")]
    NotResolved {
        /// The definition.
        revision: Revision,
    },
}

/// One unit that is to be merged.
#[derive(Debug, Clone, Copy)]
pub struct MergeJob<'a> {
    /// The node, as it is registered now.
    pub node: &'a Node,
    /// The local database that cut it.
    pub install: InstallId,
    /// Incarnation of the file.
    pub incarnation: Incarnation,
    /// The file that it came in.
    pub file: FileNo,
    /// Content hash of that file.
    pub file_hash: ContentHash,
    /// The unit.
    pub unit: &'a UploadUnit,
    /// Units of the same local database that are held, in order.
    pub held: &'a [(UnitNo, Arc<Footprint>)],
    /// Day of the time windows: the data store's.
    pub day: i64,
    /// Now, microseconds since 1970; for people only.
    pub now_micros: i64,
}

impl MergeJob<'_> {
    /// Returns the unit's name.
    pub fn id(&self) -> UnitId {
        UnitId { install: self.install, number: self.unit.head.number }
    }
}

/// What became of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Merged {
    /// It is in the server database.
    Finished {
        /// Conflicts that were recorded.
        conflicts: usize,
        /// Keys that were replaced.
        keys: usize,
        /// Units that waited for it and wait no longer.
        released: usize,
    },
    /// It is held.
    Held {
        /// Why.
        reason: String,
        /// The held unit that it depends on.
        waits_for: Option<UnitNo>,
        /// Whether no node that keeps to the rules could have sent it.
        alert: bool,
    },
    /// It was decided on before, or a person took it out meanwhile.
    NotWaiting,
}

/// The server database as the Merger uses it: foreign keys are enforced, triggers run.
#[derive(Debug)]
pub struct MergeDatabase {
    pub(super) database: ServerDatabase,
    known: Option<Known>,
}

/// What holds as long as neither definition nor schema change.
#[derive(Debug)]
struct Known {
    revision: Revision,
    schema_version: i64,
    dock: Dock,
    schema: Schema,
}

/// What one unit came to, before the commit.
struct Done {
    lost: Vec<Lost>,
    rekeyed: Rekeyed,
}

impl MergeDatabase {
    /// Opens a connection of its own; `None` if an older program deployed what is in force, without the tables of uploads.
    ///
    /// # Errors
    /// The database cannot be opened, or nothing is deployed.
    pub fn open(path: &Path) -> Result<Option<MergeDatabase>, StoreError> {
        let database = ServerDatabase::open(path)?;
        database.require_installed()?;
        if !database.has_units()? {
            return Ok(None);
        }
        database.connection.pragma_update(None, "foreign_keys", true).map_err(database.fault("switching foreign keys on"))?;
        let merger = MergeDatabase { database, known: None };
        merger.forget_partial()?;
        Ok(Some(merger))
    }

    /// Returns the database.
    pub fn database(&self) -> &ServerDatabase {
        &self.database
    }

    /// Returns what a unit touches, in the server's keys: what units that come later are held against.
    ///
    /// # Errors
    /// A statement failed, or the definition in force is not resolved.
    pub fn footprint(&mut self, install: InstallId, unit: &UploadUnit) -> Result<Footprint, MergeError> {
        self.look()?;
        let Some(known) = &self.known else { return Ok(Footprint::default()) };
        Ok(footprint(&self.database, known, install, unit)?)
    }

    /// Merges one unit, or refuses it: both durably.
    ///
    /// # Errors
    /// The server was not able to: the unit waits on.
    pub fn merge(&mut self, job: &MergeJob<'_>) -> Result<Merged, MergeError> {
        self.begin_large(job)?;
        let action = format!("merging unit {} of {}", job.unit.head.number, job.node.name);
        let transaction = self.database.begin_write(&action)?;
        crash::at(CrashPoint::MergeBegin);
        if !self.database.is_waiting(job.id())? {
            return Ok(Merged::NotWaiting);
        }
        self.database.connection.execute_batch("PRAGMA defer_foreign_keys = ON").map_err(self.database.fault(&action))?;
        look(&mut self.known, &self.database)?;
        let Some(known) = &self.known else { return Ok(Merged::NotWaiting) };
        let refused = match execute(&self.database, known, job)? {
            Err(refused) => refused,
            Ok((done, ops)) => {
                let (conflicts, keys) = (done.lost.len(), done.rekeyed.fresh.len());
                let released = self.database.record_merged(job, &done.lost, &done.rekeyed)?;
                crash::at(CrashPoint::MergeCommit);
                match self.database.connection.execute_batch("COMMIT") {
                    Ok(()) => {
                        crash::at(CrashPoint::MergeCommitted);
                        return Ok(Merged::Finished { conflicts, keys, released });
                    }
                    Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                        let (place, reason, told) = merge_write::broken_reference(&self.database, &known.schema, &ops)?;
                        Refused { place, reason, told, waits_for: None, alert: false }
                    }
                    Err(error) => return Err(self.database.fault(&action)(error).into()),
                }
            }
        };
        // A trigger may have rolled back all of it already.
        drop(transaction);
        self.database.record_refused(job, &refused)?;
        crash::at(CrashPoint::MergeRefused);
        Ok(Merged::Held { reason: refused.reason, waits_for: refused.waits_for, alert: refused.alert })
    }

    fn look(&mut self) -> Result<(), MergeError> {
        look(&mut self.known, &self.database)
    }
}

/// Reads definition and schema if they are not those of the last look. The caller's transaction keeps them as they are.
fn look(known: &mut Option<Known>, database: &ServerDatabase) -> Result<(), MergeError> {
    let (revision, schema_version) = (database.identity()?.revision, database.schema_version()?);
    if known.as_ref().is_some_and(|known| (known.revision, known.schema_version) == (revision, schema_version)) {
        return Ok(());
    }
    let deployed = database.deployed(revision)?.ok_or(MergeError::NotResolved { revision })?;
    *known = Some(Known { revision, schema_version, dock: deployed.dock, schema: database.schema()? });
    Ok(())
}

fn footprint(database: &ServerDatabase, known: &Known, install: InstallId, unit: &UploadUnit) -> Result<Footprint, StoreError> {
    let renamed = Keys::new(database, &known.dock, &known.schema, install, &unit.head).rekey(unit, false)?;
    // What cannot be renamed is held by its own names.
    Ok(renamed.map_or_else(|_| Footprint::of(&known.schema, unit), |renamed| Footprint::of(&known.schema, &renamed.unit)))
}

/// Does everything that a unit is, within the open transaction.
fn execute<'a>(
    database: &ServerDatabase,
    known: &'a Known,
    job: &'a MergeJob<'_>,
) -> Result<Result<(Done, Vec<Op<'a>>), Refused>, MergeError> {
    if let Some(refused) = depends(database, known, job)? {
        return Ok(Err(refused));
    }
    let (unit, dropped) = merge_names::known_columns(&known.dock, job.unit);
    let rekeyed = match Keys::new(database, &known.dock, &known.schema, job.install, &job.unit.head).rekey(&unit, true)? {
        Ok(rekeyed) => rekeyed,
        Err((place, reason)) => return Ok(Err(Refused::plain(place, reason))),
    };
    let basis = Basis { dock: &known.dock, revision: known.revision, schema: &known.schema, day: job.day };
    let rights = Rights::new(database, basis, job.node);
    let allowed = match rights.before(job.install, &rekeyed.unit)? {
        Ok(allowed) => allowed,
        Err(refusal) => return Ok(Err(Refused { alert: refusal.alert, ..Refused::plain(refusal.place, refusal.reason) })),
    };
    let stopped = database.stopped_in_snapshot()?;
    let mut lost: Vec<Lost> = dropped.into_iter().map(|dropped| column_gone(job, dropped)).collect();
    let mut ops = Vec::with_capacity(rekeyed.unit.changes.len());
    // New rows last: one may have a key that another row of the unit gives up.
    let is_insert = |change: &RowChange| matches!(change, RowChange::Insert { .. });
    let mut changes: Vec<_> = rekeyed.unit.changes.iter().zip(&allowed).enumerate().collect();
    changes.sort_by_key(|(_, ((_, change), _))| is_insert(change));
    for (place, ((heading, change), right)) in changes {
        let refuse = |reason: &str| Refused::plain(place, format!("{} {}: {reason}", heading.name, display_key(&change.key(&heading.key))));
        if let Some((table, reason)) = stopped.iter().find(|(table, _)| table.eq_ignore_ascii_case(&heading.name)) {
            return Err(MergeError::TableStopped { table: table.clone(), reason: reason.clone() });
        }
        let Some((_, declared)) = merge_names::table(&known.dock, heading) else {
            return Ok(Err(refuse("the table is not in the definition")));
        };
        let Some(table) = known.schema.table(&declared.name) else { return Ok(Err(refuse("the server has no such table"))) };
        let (server, view) = match right {
            Right::Go { server } => (server.as_ref(), View::Inside),
            Right::OutOfView { server } => (Some(server), View::Left),
        };
        let pick = |row: &Row| -> Row {
            heading.columns.iter().map(|name| declared.column(name).and_then(|at| row.get(at).cloned()).unwrap_or(Value::Null)).collect()
        };
        let key = change.key(&heading.key);
        let gives_up = |op: &Op<'_>| {
            let goes = op.write == Write::Delete || merge_write::key_after(op).is_some_and(|after| after != key);
            op.table.name == table.name && op.key == key && goes
        };
        let is_free = is_insert(change) && ops.iter().any(gives_up);
        let server: Option<Row> = server.filter(|_| !is_free).map(pick);
        if server.is_none()
            && matches!(change, RowChange::Update { .. })
            && let Some(unit) = database.taken_out(job, &declared.name, &key)?
        {
            return Ok(Err(refuse(&format!("unit {unit} would have inserted it, and that was taken out"))));
        }
        let facts = Facts { heading, change, server: server.as_ref(), rules: &declared.merge, view };
        let decision = match decide(&facts) {
            Ok(decision) => decision,
            Err(refusal) => return Ok(Err(refuse(&refusal.to_string()))),
        };
        lost.extend(decision.conflicts.into_iter().map(|found| lost_of(&declared.name, &key, heading, found)));
        ops.push(Op {
            place,
            table,
            heading: Arc::clone(heading),
            rules: &declared.merge,
            key,
            server,
            write: decision.write,
            is_parked: false,
            by_comparison: declared.by_comparison,
        });
    }
    if let Err(rejected) = merge_write::write_all(database, &known.schema, &mut ops)? {
        let is_seen = match &rejected.rival {
            Some((table, key)) => sees(&rights, &known.dock, table, key)?,
            None => true,
        };
        let told = if is_seen { rejected.reason.clone() } else { rejected.reason_alone.clone() };
        return Ok(Err(Refused { told, ..Refused::plain(rejected.place, rejected.reason) }));
    }
    ops.sort_by_key(|op| op.place);
    let written: Vec<Option<RowKey>> = ops.iter().map(merge_write::key_after).collect();
    if let Err(refusal) = rights.after(&rekeyed.unit, &allowed, &written)?
        && !defect::is_planted(Defect::BlindRights)
    {
        return Ok(Err(Refused { alert: refusal.alert, ..Refused::plain(refusal.place, refusal.reason) }));
    }
    compare_untracked(database, job, &ops)?;
    Ok(Ok((Done { lost, rekeyed }, ops)))
}

/// Returns why a unit has to wait for one that is held.
fn depends(database: &ServerDatabase, known: &Known, job: &MergeJob<'_>) -> Result<Option<Refused>, StoreError> {
    let earlier = job.held.iter().filter(|(number, _)| *number < job.unit.head.number);
    let mut ours = None;
    for (number, held) in earlier {
        let ours = match &ours {
            Some(ours) => ours,
            None => ours.insert(footprint(database, known, job.install, job.unit)?),
        };
        if let Some(why) = ours.depends_on(held) {
            let reason = format!("it waits for unit {number}, which is held: {why}");
            return Ok(Some(Refused { waits_for: Some(*number), place: None, told: reason.clone(), reason, alert: false }));
        }
    }
    Ok(None)
}

/// What is written to a table without triggers is found by comparison: right behind this unit, so that the nodes get the server's values with it.
fn compare_untracked(database: &ServerDatabase, job: &MergeJob<'_>, ops: &[Op<'_>]) -> Result<(), StoreError> {
    let mut tables: Vec<String> =
        ops.iter().filter(|op| op.by_comparison && op.write != Write::Nothing).map(|op| op.table.name.clone()).collect();
    tables.sort();
    tables.dedup();
    if tables.is_empty() {
        return Ok(());
    }
    database.log_control(&Control::Reconcile { tables, reason: format!("unit {} of {} was merged", job.unit.head.number, job.node.name) })
}

/// Whether the node sees a row of the server, so that it may be told of it.
fn sees(rights: &Rights<'_>, dock: &Dock, table: &str, key: &[Value]) -> Result<bool, RightsError> {
    let Some(index) = dock.table(table) else { return Ok(false) };
    match rights.server_row(index, key)? {
        Some(row) => Ok(rights.sight(index, &row)? != Sight::None),
        None => Ok(false),
    }
}

fn column_gone(job: &MergeJob<'_>, dropped: Dropped) -> Lost {
    let change = job.unit.changes.get(dropped.place);
    Lost {
        table: change.map(|(heading, _)| heading.name.clone()).unwrap_or_default(),
        key: change.map(|(heading, change)| change.key(&heading.key)).unwrap_or_default(),
        column: Some(dropped.column),
        base: None,
        server: None,
        client: Some(Side::Value(dropped.value)),
        columns: Vec::new(),
        winner: Winner::Server,
        rule: RULE_COLUMN_GONE.to_owned(),
        is_secret: false,
    }
}

fn lost_of(table: &str, key: &[Value], heading: &Arc<TableHeading>, found: Found) -> Lost {
    Lost {
        table: table.to_owned(),
        key: key.to_vec(),
        column: found.column.and_then(|column| heading.columns.get(usize::from(column)).cloned()),
        base: found.base,
        server: found.server,
        client: found.client,
        columns: heading.columns.clone(),
        winner: found.winner,
        // Of a row that it does not see the node is told nothing.
        is_secret: found.rule == RULE_OUT_OF_VIEW,
        rule: found.rule,
    }
}

/// Returns the keys of the rows that a unit inserts: what nothing can refer to once the unit is taken out.
pub fn inserted_keys(unit: &UploadUnit) -> Vec<(String, RowKey)> {
    let inserts = unit.changes.iter().filter(|(_, change)| matches!(change, RowChange::Insert { .. }));
    inserts.map(|(heading, change)| (heading.name.clone(), change.key(&heading.key))).collect()
}
