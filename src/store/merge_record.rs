//! What the Merger writes down: what became of a unit, its conflicts, replaced keys, and the confirm that tells the node (R30).

use crate::base::ids::{ContentHash, FileNo, Incarnation, NodeName, UnitNo};
use crate::base::limits::{CONFIRM_CONFLICTS_MAX, CONFIRM_VALUE_BYTES_MAX, MERGE_REASON_CHARACTERS_MAX};
use crate::model::keycode;
use crate::model::upload::{Confirm, Conflict, MessageStatus, Outcome, UnitId, Winner};
use crate::model::value::{RowKey, Value};
use crate::model::value_json::to_json;
use crate::rules::merge::Side;
use crate::store::control::Control;
use crate::store::merge::MergeJob;
use crate::store::merge_keys::{Rekeyed, signed};
use crate::store::sqlite::{ServerDatabase, StoreError};
use serde_json::Value as Json;

/// A conflict that is to be recorded.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Lost {
    pub(super) table: String,
    pub(super) key: RowKey,
    pub(super) column: Option<String>,
    pub(super) base: Option<Side>,
    pub(super) server: Option<Side>,
    pub(super) client: Option<Side>,
    /// Names of the columns that the sides of a row are about.
    pub(super) columns: Vec<String>,
    pub(super) winner: Winner,
    pub(super) rule: String,
    /// Whether the node must not be told the server's side.
    pub(super) is_secret: bool,
}

/// Why a unit is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    /// Place of the change.
    pub(super) place: Option<usize>,
    /// For the administrator.
    pub(super) reason: String,
    /// For the node, which does not see every row.
    pub(super) told: String,
    /// The held unit that it depends on.
    pub(super) waits_for: Option<UnitNo>,
    /// Whether no node that keeps to the rules could have sent it.
    pub(super) alert: bool,
}

impl Refused {
    /// Returns a refusal that both sides may read.
    pub(super) fn plain(place: usize, reason: String) -> Refused {
        Refused { place: Some(place), told: reason.clone(), reason, waits_for: None, alert: false }
    }
}

impl ServerDatabase {
    /// Writes down, in the open transaction, that a unit is merged. Returns how many units waited for it.
    pub(super) fn record_merged(&self, job: &MergeJob<'_>, lost: &[Lost], rekeyed: &Rekeyed) -> Result<usize, StoreError> {
        let fault = || self.fault("recording what became of a unit");
        let id = job.id();
        let mut conflicts = Vec::new();
        let mut room = CONFIRM_VALUE_BYTES_MAX;
        for lost in lost {
            let number = self.record_conflict(job, lost)?;
            if conflicts.len() < CONFIRM_CONFLICTS_MAX {
                conflicts.push(told(lost, number, job.now_micros, &mut room));
            }
        }
        if lost.len() > conflicts.len() {
            conflicts.push(Conflict::more(lost.len() - conflicts.len()));
        }
        let keys = rekeyed.fresh.clone();
        let log_id = self.confirm(&job.node.name, id, Outcome::Merged { conflicts, keys })?;
        let mut insert = self
            .connection
            .prepare_cached(
                "INSERT INTO main.dock_key_map(install_id, unit, table_name, old_key, new_key, log_id) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )
            .map_err(fault())?;
        for mapping in rekeyed.fresh.iter().chain(&rekeyed.renewed) {
            let (old, new) = (keycode::encode(&mapping.old), keycode::encode(&mapping.new));
            insert.execute((id.install.to_string(), signed(id.number), &mapping.table, old, new, log_id)).map_err(fault())?;
        }
        self.connection
            .prepare_cached(
                "UPDATE main.dock_unit SET status = ?3, outcome = 'merged', reason = NULL, waits_for = NULL, conflicts = ?4,
                 attempts = ifnull(attempts, 0) + 1, done_at = ?5, log_id = ?6 WHERE install_id = ?1 AND unit = ?2",
            )
            .and_then(|mut statement| {
                let (install, count) = (id.install.to_string(), i64::try_from(lost.len()).unwrap_or(i64::MAX));
                statement.execute((install, signed(id.number), MessageStatus::Finished.name(), count, job.now_micros, log_id))
            })
            .map_err(fault())?;
        let released = self.release(id, "merged", job.now_micros)?;
        self.advance(&job.node.name, job.incarnation, job.file, job.file_hash, id)?;
        Ok(released)
    }

    /// Writes down, in a transaction of its own, that a unit is held.
    pub(super) fn record_refused(&self, job: &MergeJob<'_>, refused: &Refused) -> Result<(), StoreError> {
        let action = "recording that a unit is held";
        let transaction = self.begin_write(action)?;
        let id = job.id();
        if !self.is_waiting(id)? {
            return Ok(());
        }
        let reason = short(&refused.reason);
        let log_id = self.confirm(&job.node.name, id, Outcome::Held { reason: short(&refused.told) })?;
        self.connection
            .prepare_cached(
                "UPDATE main.dock_unit SET status = ?3, outcome = 'held', reason = ?4, waits_for = ?5, attempts = ifnull(attempts, 0) + 1,
                 done_at = ?6, log_id = ?7 WHERE install_id = ?1 AND unit = ?2",
            )
            .and_then(|mut statement| {
                let status = MessageStatus::Error.name();
                let waits_for = refused.waits_for.map(signed);
                statement.execute((id.install.to_string(), signed(id.number), status, reason, waits_for, job.now_micros, log_id))
            })
            .map_err(self.fault(action))?;
        self.advance(&job.node.name, job.incarnation, job.file, job.file_hash, id)?;
        transaction.commit().map_err(self.fault(action))
    }

    /// Tells a node, in the open transaction, what became of a unit. Returns the number of the log row.
    pub(super) fn confirm(&self, node: &NodeName, unit: UnitId, outcome: Outcome) -> Result<i64, StoreError> {
        self.log_control(&Control::Confirm { node: node.clone(), confirm: Confirm { unit, outcome } })?;
        Ok(self.connection.last_insert_rowid())
    }

    fn record_conflict(&self, job: &MergeJob<'_>, lost: &Lost) -> Result<i64, StoreError> {
        let json = |side: &Option<Side>| side.as_ref().map(|side| side_json(side, &lost.columns).to_string());
        let key = Json::Array(lost.key.iter().map(to_json).collect()).to_string();
        let state = if lost.winner == Winner::Open { "open" } else { "closed" };
        self.connection
            .prepare_cached(
                "INSERT INTO main.dock_conflict(install_id, unit, node, table_name, row_key, column_name, base, server, client, winner,
                 rule, at, state) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            )
            .and_then(|mut statement| {
                statement.execute(rusqlite::params![
                    job.install.to_string(),
                    signed(job.unit.head.number),
                    job.node.name.as_str(),
                    lost.table,
                    key,
                    lost.column,
                    json(&lost.base),
                    json(&lost.server),
                    json(&lost.client),
                    lost.winner.to_string(),
                    lost.rule,
                    job.now_micros,
                    state
                ])
            })
            .map_err(self.fault("recording a conflict"))?;
        Ok(self.connection.last_insert_rowid())
    }

    /// Sets, in the open transaction, the units free that wait for this one. Returns how many.
    pub(super) fn release(&self, unit: UnitId, became: &str, now_micros: i64) -> Result<usize, StoreError> {
        let fault = || self.fault("setting units free that wait for another");
        debug_assert!(MessageStatus::Error.may_become(MessageStatus::Waiting, true));
        let (install, number) = (unit.install.to_string(), signed(unit.number));
        self.connection
            .prepare_cached(
                "INSERT INTO main.dock_message_event(at, install_id, unit, from_status, to_status, who, reason)
                 SELECT ?3, install_id, unit, status, 'waiting', 'merger', ?4 FROM main.dock_unit
                 WHERE install_id = ?1 AND status = 'error' AND waits_for = ?2",
            )
            .and_then(|mut statement| {
                statement.execute((&install, number, now_micros, format!("unit {number}, which it waited for, is {became}")))
            })
            .map_err(fault())?;
        self.connection
            .prepare_cached(
                "UPDATE main.dock_unit SET status = 'waiting', waits_for = NULL WHERE install_id = ?1 AND status = 'error' AND waits_for = ?2",
            )
            .and_then(|mut statement| statement.execute((&install, number)))
            .map_err(fault())
    }

    /// Moves, in the open transaction, the mark behind a file all of whose units were begun. It never moves back.
    pub(super) fn advance(
        &self,
        node: &NodeName,
        incarnation: Incarnation,
        file: FileNo,
        hash: ContentHash,
        last: UnitId,
    ) -> Result<(), StoreError> {
        let fault = || self.fault("recording how far a node is merged");
        let file_no = i64::try_from(file.0).unwrap_or(i64::MAX);
        let waits: bool = self
            .connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM main.dock_unit WHERE node = ?1 AND status IN ('waiting', 'partial') AND incarnation = ?2
                 AND file_no <= ?3 AND NOT (install_id = ?4 AND unit = ?5))",
            )
            .and_then(|mut statement| {
                let (install, unit) = (last.install.to_string(), signed(last.number));
                statement.query_row((node.as_str(), incarnation.0, file_no, install, unit), |row| row.get(0))
            })
            .map_err(fault())?;
        if waits {
            return Ok(());
        }
        self.connection
            .prepare_cached(
                "INSERT INTO main.dock_merge(node, incarnation, install_id, file_no, unit, content_hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT(node) DO UPDATE SET incarnation = excluded.incarnation, install_id = excluded.install_id,
                 file_no = excluded.file_no, unit = excluded.unit, content_hash = excluded.content_hash
                 WHERE (excluded.incarnation, excluded.file_no) > (incarnation, file_no)",
            )
            .and_then(|mut statement| {
                let (install, unit) = (last.install.to_string(), signed(last.number));
                statement.execute((node.as_str(), incarnation.0, install, file_no, unit, hash.to_string()))
            })
            .map(drop)
            .map_err(fault())
    }
}

/// Returns a conflict as the node is told of it, with its values as far as there is room.
fn told(lost: &Lost, id: i64, at_micros: i64, room: &mut usize) -> Conflict {
    let mut value = |side: &Option<Side>| -> Option<Value> {
        let value = match side.as_ref()? {
            Side::Value(value) => value.clone(),
            columns @ Side::Columns(_) => Value::text(&side_json(columns, &lost.columns).to_string()),
        };
        *room = room.checked_sub(value.size())?;
        Some(value)
    };
    Conflict {
        id,
        table: lost.table.clone(),
        key: lost.key.clone(),
        column: lost.column.clone(),
        base: value(&lost.base),
        server: if lost.is_secret { None } else { value(&lost.server) },
        client: value(&lost.client),
        winner: lost.winner,
        rule: lost.rule.clone(),
        at_micros,
    }
}

fn side_json(side: &Side, columns: &[String]) -> Json {
    match side {
        Side::Value(value) => to_json(value),
        Side::Columns(values) => {
            let named = values.iter().filter_map(|(place, value)| Some((columns.get(usize::from(*place))?.clone(), to_json(value))));
            Json::Object(named.collect())
        }
    }
}

/// Returns a reason that is not longer than a person reads.
fn short(reason: &str) -> String {
    reason.chars().take(MERGE_REASON_CHARACTERS_MAX).collect()
}
