//! Units of nodes as the server keeps them, for ever (`dock_unit`): one work item each, apart from its content (MI-57 to MI-71, R16).

use crate::base::ids::{ContentHash, FileNo, Incarnation, InstallId, NodeName, UnitNo};
use crate::base::limits::MERGE_LARGE_CHANGES;
use crate::model::keycode;
use crate::model::upload::{MessageStatus, Outcome, UnitId, UploadHead};
use crate::model::value::{RowKey, Value};
use crate::store::merge::{MergeDatabase, MergeJob};
use crate::store::merge_keys::signed;
use crate::store::sqlite::{ServerDatabase, StoreError};
use rusqlite::{OptionalExtension, Row};
use std::collections::BTreeMap;

/// A file whose units are to be known.
#[derive(Debug, Clone)]
pub struct StoredFile {
    /// The node.
    pub node: NodeName,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Number of the file.
    pub file: FileNo,
    /// The local database that made it.
    pub install: InstallId,
    /// Content hash of the file.
    pub hash: ContentHash,
    /// Its units, with their own content hashes.
    pub units: Vec<(UploadHead, ContentHash)>,
}

/// What came of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Registered {
    /// Units that are new.
    pub new: usize,
    /// Units that were known already: they are executed once all the same (R16).
    pub known: usize,
    /// Units whose number is known with another content: two histories of one local database.
    pub forks: Vec<UnitNo>,
}

/// A unit as `dock_unit` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitRow {
    /// Its name.
    pub id: UnitId,
    /// Incarnation of the file that it lies in.
    pub incarnation: Incarnation,
    /// That file.
    pub file: FileNo,
    /// Its status.
    pub status: MessageStatus,
    /// Why it is held, for people.
    pub reason: Option<String>,
    /// The held unit that it waits for.
    pub waits_for: Option<UnitNo>,
}

/// How many units of a node are in which status.
pub type UnitCounts = BTreeMap<MessageStatus, u64>;

/// What a person decides on a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// It is executed again (MI-53).
    Retry,
    /// It is not executed (MI-62).
    Ignore,
    /// It goes back to its author.
    Return,
}

/// Why a ruling was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulingRefused {
    /// There is no such unit.
    #[error("the server knows no such unit")]
    Unknown,
    /// Its status does not allow it.
    #[error("it is {0}: only what is in error is retried or returned, only what is waiting or in error is ignored")]
    Status(MessageStatus),
}

/// A person, and why.
#[derive(Debug, Clone, Copy)]
pub struct Person<'a> {
    /// Who decides.
    pub who: &'a str,
    /// Why.
    pub reason: &'a str,
    /// When, microseconds since 1970.
    pub now_micros: i64,
}

impl MergeDatabase {
    /// Makes the units of a file known: `waiting`, one work item each (MI-57). Said twice it changes nothing.
    ///
    /// # Errors
    /// A statement failed.
    pub fn register(&self, file: &StoredFile, now_micros: i64) -> Result<Registered, StoreError> {
        let database = &self.database;
        let action = format!("taking file {} of {} into the list of units", file.file, file.node);
        let transaction = database.begin_write(&action)?;
        let mut registered = Registered::default();
        let (install, file_no) = (file.install.to_string(), i64::try_from(file.file.0).unwrap_or(i64::MAX));
        for (head, hash) in &file.units {
            let number = signed(head.number);
            let known: Option<(String, String, String)> = database
                .connection
                .prepare_cached("SELECT node, content_hash, status FROM main.dock_unit WHERE install_id = ?1 AND unit = ?2")
                .and_then(|mut statement| {
                    statement.query_row((&install, number), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()
                })
                .map_err(database.fault(&action))?;
            let Some((node, known, status)) = known else {
                database
                    .connection
                    .prepare_cached(
                        "INSERT INTO main.dock_unit(install_id, unit, node, incarnation, file_no, content_hash, applied, cut_at, label,
                         changes, status, attempts, stored_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, 'waiting', 0, ?11)",
                    )
                    .and_then(|mut statement| {
                        let changes = i64::try_from(head.changes).unwrap_or(i64::MAX);
                        statement.execute(rusqlite::params![
                            install,
                            number,
                            file.node.as_str(),
                            file.incarnation.0,
                            file_no,
                            hash.to_string(),
                            head.applied.0,
                            head.cut_at_micros,
                            head.label,
                            changes,
                            now_micros
                        ])
                    })
                    .map_err(database.fault(&action))?;
                registered.new += 1;
                continue;
            };
            if node != file.node.as_str() || known != hash.to_string() {
                registered.forks.push(head.number);
                continue;
            }
            registered.known += 1;
            if status != MessageStatus::Finished.name() && status != MessageStatus::Ignored.name() {
                // It came again in a newer file, which is the one that stays.
                database
                    .connection
                    .prepare_cached("UPDATE main.dock_unit SET incarnation = ?3, file_no = ?4 WHERE install_id = ?1 AND unit = ?2")
                    .and_then(|mut statement| statement.execute((&install, number, file.incarnation.0, file_no)))
                    .map_err(database.fault(&action))?;
            }
        }
        let last = file.units.last().map_or(UnitNo(0), |(head, _)| head.number);
        // Of a file that brought nothing new nothing is left to begin.
        let nobody = UnitId { install: file.install, number: UnitNo(0) };
        if registered.new == 0 {
            database.advance(&file.node, file.incarnation, file.file, file.hash, UnitId { number: last.min(nobody.number), ..nobody })?;
        }
        transaction.commit().map_err(database.fault(&action))?;
        Ok(registered)
    }

    /// Returns the next unit of a node that is to be merged: the first one that waits. With `stops` nothing comes after a unit in error.
    ///
    /// # Errors
    /// A row is damaged, or a statement failed.
    pub fn next_unit(&self, node: &NodeName, stops: bool) -> Result<Option<UnitRow>, StoreError> {
        let sql = format!("{SELECT} WHERE node = ?1 AND status = 'waiting' ORDER BY incarnation, file_no, unit LIMIT 1");
        let Some(next) = self.database.units(&sql, [node.as_str()])?.into_iter().next() else { return Ok(None) };
        if stops && self.held_units(node)?.iter().any(|held| held.id.install == next.id.install && held.id.number < next.id.number) {
            return Ok(None);
        }
        Ok(Some(next))
    }

    /// Returns the units of a node that are in error, in order.
    ///
    /// # Errors
    /// A row is damaged, or a statement failed.
    pub fn held_units(&self, node: &NodeName) -> Result<Vec<UnitRow>, StoreError> {
        self.database.held_units(node)
    }

    /// Returns the files of a node in which a unit is not final, each with whether one of them is still to be begun.
    ///
    /// # Errors
    /// A statement failed.
    pub fn unfinished_files(&self, node: &NodeName) -> Result<BTreeMap<(Incarnation, FileNo), bool>, StoreError> {
        self.database.unfinished_files(node)
    }

    /// Returns the last file of an incarnation whose units are known; 0 = none.
    ///
    /// # Errors
    /// A statement failed.
    pub fn last_file(&self, node: &NodeName, incarnation: Incarnation) -> Result<FileNo, StoreError> {
        let begun: Option<i64> = self
            .database
            .connection
            .prepare_cached("SELECT file_no FROM main.dock_merge WHERE node = ?1 AND incarnation = ?2")
            .and_then(|mut statement| statement.query_row((node.as_str(), incarnation.0), |row| row.get(0)).optional())
            .map_err(self.database.fault("reading how far a node is merged"))?;
        let known = self.unfinished_files(node)?.into_keys().filter(|(of, _)| *of == incarnation).map(|(_, file)| file).max();
        Ok(known.unwrap_or_default().max(FileNo(begun.unwrap_or_default().unsigned_abs())))
    }

    /// Returns the nodes that have units to be merged.
    ///
    /// # Errors
    /// A row is damaged, or a statement failed.
    pub fn nodes_waiting(&self) -> Result<Vec<NodeName>, StoreError> {
        let fault = || self.database.fault("looking for units to be merged");
        let mut statement = self
            .database
            .connection
            .prepare_cached("SELECT DISTINCT node FROM main.dock_unit WHERE status = 'waiting' ORDER BY node")
            .map_err(fault())?;
        let names = statement.query_map([], |row| row.get::<_, String>(0)).map_err(fault())?;
        let names: Vec<String> = names.collect::<rusqlite::Result<_>>().map_err(fault())?;
        let damaged = |error: crate::base::ids::IdError| StoreError::Damaged {
            path: self.database.path.clone(),
            what: "dock_unit".into(),
            reason: error.to_string(),
        };
        names.iter().map(|name| name.parse().map_err(damaged)).collect()
    }

    /// Marks a unit that takes long as being processed (MI-58), so that others see it.
    pub(super) fn begin_large(&self, job: &MergeJob<'_>) -> Result<(), StoreError> {
        if job.unit.changes.len() < MERGE_LARGE_CHANGES {
            return Ok(());
        }
        let id = job.id();
        self.database
            .connection
            .execute(
                "UPDATE main.dock_unit SET status = 'partial' WHERE install_id = ?1 AND unit = ?2 AND status = 'waiting'",
                (id.install.to_string(), signed(id.number)),
            )
            .map(drop)
            .map_err(self.database.fault("marking a unit as begun"))
    }

    /// Sets back what was being processed when the process ended: its transaction was rolled back.
    ///
    /// # Errors
    /// A statement failed.
    pub fn forget_partial(&self) -> Result<(), StoreError> {
        let fault = || self.database.fault("looking for units that were begun");
        let found: bool = self
            .database
            .connection
            .query_row("SELECT EXISTS (SELECT 1 FROM main.dock_unit WHERE status = 'partial')", [], |row| row.get(0))
            .map_err(fault())?;
        if found {
            self.database
                .connection
                .execute("UPDATE main.dock_unit SET status = 'waiting' WHERE status = 'partial'", [])
                .map_err(fault())?;
        }
        Ok(())
    }
}

const SELECT: &str = "SELECT install_id, unit, incarnation, file_no, status, reason, waits_for FROM main.dock_unit";

impl ServerDatabase {
    /// Returns whether a unit is to be executed.
    pub(super) fn is_waiting(&self, unit: UnitId) -> Result<bool, StoreError> {
        self.connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM main.dock_unit WHERE install_id = ?1 AND unit = ?2 AND status IN ('waiting', 'partial'))",
            )
            .and_then(|mut statement| statement.query_row((unit.install.to_string(), signed(unit.number)), |row| row.get(0)))
            .map_err(self.fault("looking at the status of a unit"))
    }

    /// Returns the units of a node that are in error, in order.
    ///
    /// # Errors
    /// A row is damaged, or a statement failed.
    pub fn held_units(&self, node: &NodeName) -> Result<Vec<UnitRow>, StoreError> {
        self.units(&format!("{SELECT} WHERE node = ?1 AND status = 'error' ORDER BY install_id, unit"), [node.as_str()])
    }

    /// Returns the unit that would have inserted a row, if it was taken out and the node did not know that when it cut this one.
    pub(super) fn taken_out(&self, job: &MergeJob<'_>, table: &str, key: &[Value]) -> Result<Option<UnitNo>, StoreError> {
        let number = signed(job.unit.head.number);
        let found: Option<i64> = self
            .connection
            .prepare_cached(
                "SELECT max(unit) FROM main.dock_key_map WHERE install_id = ?1 AND table_name = ?2 AND old_key = ?3 AND new_key IS NULL
                 AND log_id > ?4 AND unit < ?5",
            )
            .and_then(|mut statement| {
                let install = job.install.to_string();
                statement.query_row((install, table, keycode::encode(key), job.unit.head.applied.0, number), |row| row.get(0))
            })
            .map_err(self.fault("looking for units that were taken out"))?;
        Ok(found.map(|unit| UnitNo(unit.unsigned_abs())).filter(|unit| !job.unit.head.hidden.contains(unit)))
    }

    /// Returns whether the tables of uploads are there: an older program deployed without them.
    pub(super) fn has_units(&self) -> Result<bool, StoreError> {
        let has = |table: &str| self.connection.table_exists(Some("main"), table);
        has("dock_unit")
            .and_then(|units| Ok(units && has("dock_key_map")? && has("dock_owner")?))
            .map_err(self.fault("looking for our tables"))
    }

    /// Returns how many units of each node are in which status; nothing if an older program deployed last.
    ///
    /// # Errors
    /// A row is damaged, or a statement failed.
    pub fn unit_counts(&self) -> Result<BTreeMap<NodeName, UnitCounts>, StoreError> {
        let fault = || self.fault("counting units of nodes");
        let mut counts: BTreeMap<NodeName, UnitCounts> = BTreeMap::new();
        if !self.has_units()? {
            return Ok(counts);
        }
        let mut statement =
            self.connection.prepare_cached("SELECT node, status, count(*) FROM main.dock_unit GROUP BY node, status").map_err(fault())?;
        let mut rows = statement.query([]).map_err(fault())?;
        while let Some(row) = rows.next().map_err(fault())? {
            let (node, status): (String, String) = (row.get(0).map_err(fault())?, row.get(1).map_err(fault())?);
            let damaged = |what: String| StoreError::Damaged { path: self.path.clone(), what: "dock_unit".into(), reason: what };
            let node = node.parse().map_err(|error: crate::base::ids::IdError| damaged(error.to_string()))?;
            let status = MessageStatus::from_name(&status).ok_or_else(|| damaged(format!("`{status}` is no status")))?;
            counts.entry(node).or_default().insert(status, row.get::<_, i64>(2).map_err(fault())?.unsigned_abs());
        }
        Ok(counts)
    }

    fn units<P: rusqlite::Params>(&self, sql: &str, parameters: P) -> Result<Vec<UnitRow>, StoreError> {
        let fault = || self.fault("reading units of nodes");
        let mut statement = self.connection.prepare_cached(sql).map_err(fault())?;
        let mut rows = statement.query(parameters).map_err(fault())?;
        let mut units = Vec::new();
        while let Some(row) = rows.next().map_err(fault())? {
            let unit = unit_of(row).map_err(fault())?;
            units.push(unit.map_err(|reason| StoreError::Damaged {
                path: self.path.clone(),
                what: "a row of dock_unit".into(),
                reason,
            })?);
        }
        Ok(units)
    }

    /// Carries out what a person decided on a unit, logs who, when and why, and tells the node. Units that wait for one that is taken
    /// out wait no longer. `inserted` are the rows that the unit would have inserted.
    ///
    /// # Errors
    /// A row is damaged, or a statement failed.
    pub fn rule(
        &self,
        unit: UnitId,
        ruling: Ruling,
        inserted: &[(String, RowKey)],
        person: &Person<'_>,
    ) -> Result<Result<(), RulingRefused>, StoreError> {
        let action = "carrying out a decision on a unit";
        let transaction = self.begin_write(action)?;
        let (install, number) = (unit.install.to_string(), signed(unit.number));
        let found = self.units(&format!("{SELECT} WHERE install_id = ?1 AND unit = ?2"), (&install, number))?.into_iter().next();
        let Some(found) = found else { return Ok(Err(RulingRefused::Unknown)) };
        let next = if ruling == Ruling::Retry { MessageStatus::Waiting } else { MessageStatus::Ignored };
        if !found.status.may_become(next, true) || (ruling == Ruling::Return && found.status != MessageStatus::Error) {
            return Ok(Err(RulingRefused::Status(found.status)));
        }
        self.connection
            .execute(
                "INSERT INTO main.dock_message_event(at, install_id, unit, from_status, to_status, who, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                (person.now_micros, &install, number, found.status.name(), next.name(), person.who, person.reason),
            )
            .map_err(self.fault(action))?;
        let outcome = match ruling {
            Ruling::Retry => None,
            Ruling::Ignore => Some(Outcome::Ignored { reason: person.reason.to_owned() }),
            Ruling::Return => Some(Outcome::Returned { reason: person.reason.to_owned() }),
        };
        let name = outcome.as_ref().map(Outcome::name);
        let mut log_id = None;
        if let Some(outcome) = outcome {
            let node: String = self
                .connection
                .query_row("SELECT node FROM main.dock_unit WHERE install_id = ?1 AND unit = ?2", (&install, number), |row| row.get(0))
                .map_err(self.fault(action))?;
            let node = node.parse().map_err(|error: crate::base::ids::IdError| StoreError::Damaged {
                path: self.path.clone(),
                what: format!("unit {number}"),
                reason: error.to_string(),
            })?;
            let id = self.confirm(&node, unit, outcome)?;
            log_id = Some(id);
            for (table, key) in inserted {
                self.connection
                    .prepare_cached(
                        "INSERT INTO main.dock_key_map(install_id, unit, table_name, old_key, new_key, log_id) VALUES (?1, ?2, ?3, ?4, NULL, ?5)",
                    )
                    .and_then(|mut statement| statement.execute((&install, number, table, keycode::encode(key), id)))
                    .map_err(self.fault(action))?;
            }
            self.release(unit, name.unwrap_or_default(), person.now_micros)?;
        }
        self.connection
            .execute(
                "UPDATE main.dock_unit SET status = ?3, outcome = ?4, waits_for = NULL, done_at = ?5, log_id = ifnull(?6, log_id)
                 WHERE install_id = ?1 AND unit = ?2",
                (&install, number, next.name(), name, person.now_micros, log_id),
            )
            .map_err(self.fault(action))?;
        transaction.commit().map_err(self.fault(action))?;
        Ok(Ok(()))
    }
}

fn unit_of(row: &Row<'_>) -> rusqlite::Result<Result<UnitRow, String>> {
    let (install, status): (String, String) = (row.get(0)?, row.get(4)?);
    let install = match install.parse::<InstallId>() {
        Ok(install) => install,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let Some(status) = MessageStatus::from_name(&status) else { return Ok(Err(format!("`{status}` is no status"))) };
    let number = UnitNo(row.get::<_, i64>(1)?.unsigned_abs());
    Ok(Ok(UnitRow {
        id: UnitId { install, number },
        incarnation: Incarnation(row.get(2)?),
        file: FileNo(row.get::<_, i64>(3)?.unsigned_abs()),
        status,
        reason: row.get(5)?,
        waits_for: row.get::<_, Option<i64>>(6)?.map(|unit| UnitNo(unit.unsigned_abs())),
    }))
}
