//! Units of nodes as people look at them (MI-4): the heads alone, never the content, which lies in the inbox (MI-69).

use crate::base::ids::{FileNo, IdError, Incarnation, InstallId, NodeName, UnitNo};
use crate::model::upload::{MessageStatus, UnitId};
use crate::store::merge_units::UnitRow;
use crate::store::sqlite::{ServerDatabase, StoreError};
use rusqlite::params;

/// Which messages are listed.
#[derive(Debug, Clone, Default)]
pub struct MessageFilter {
    /// Of that node.
    pub node: Option<NodeName>,
    /// In that status.
    pub status: Option<MessageStatus>,
    /// With that number.
    pub unit: Option<UnitNo>,
    /// At most so many, newest first; `None` = all.
    pub limit: Option<u32>,
}

/// The head of a message: everything but its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageHead {
    /// The unit.
    pub id: UnitId,
    /// Its node.
    pub node: NodeName,
    /// Incarnation of the upload file that it lies in.
    pub incarnation: Incarnation,
    /// That file.
    pub file: FileNo,
    /// Its status.
    pub status: MessageStatus,
    /// What became of it, if that is known.
    pub outcome: Option<String>,
    /// Why it is held.
    pub reason: Option<String>,
    /// The held unit that it waits for.
    pub waits_for: Option<UnitNo>,
    /// Label of the application.
    pub label: Option<String>,
    /// How many changes it has.
    pub changes: u64,
    /// How many of them met another change.
    pub conflicts: u64,
    /// How often it was tried.
    pub attempts: u64,
    /// When it was cut, by the node's clock, microseconds since 1970.
    pub cut_at: i64,
    /// When it was stored here.
    pub stored_at: i64,
    /// When it got its status; `None` = it never left the first one.
    pub done_at: Option<i64>,
}

impl MessageHead {
    /// Returns what the Merger knows the unit by.
    pub fn row(&self) -> UnitRow {
        UnitRow {
            id: self.id,
            incarnation: self.incarnation,
            file: self.file,
            status: self.status,
            reason: self.reason.clone(),
            waits_for: self.waits_for,
        }
    }
}

/// Something that was done to a message or conflict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageEvent {
    /// When, microseconds since 1970.
    pub at: i64,
    /// Status before.
    pub from: String,
    /// Status after.
    pub to: String,
    /// Who.
    pub who: String,
    /// Why.
    pub reason: String,
}

impl ServerDatabase {
    /// Returns the heads of messages, newest first.
    ///
    /// # Errors
    /// A row is damaged, or a statement failed.
    pub fn messages(&self, filter: &MessageFilter) -> Result<Vec<MessageHead>, StoreError> {
        if !self.has_messages()? {
            return Ok(Vec::new());
        }
        let fault = || self.fault("reading dock_unit");
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT install_id, unit, node, incarnation, file_no, status, outcome, reason, waits_for, label, changes, conflicts, attempts,
                 cut_at, stored_at, done_at FROM main.dock_unit
                 WHERE (?1 IS NULL OR node = ?1) AND (?2 IS NULL OR status = ?2) AND (?3 IS NULL OR unit = ?3)
                 ORDER BY stored_at DESC, node, unit DESC LIMIT ?4",
            )
            .map_err(fault())?;
        let limit = filter.limit.map_or(-1, i64::from);
        let mut rows = statement
            .query(params![
                filter.node.as_ref().map(NodeName::as_str),
                filter.status.map(MessageStatus::name),
                filter.unit.map(|unit| unit.0.cast_signed()),
                limit
            ])
            .map_err(fault())?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(fault())? {
            found.push(head_of(row).map_err(fault())?.map_err(|reason| self.damaged("a row of dock_unit", reason))?);
        }
        Ok(found)
    }

    /// Returns what persons and the Merger did to a message, oldest first.
    ///
    /// # Errors
    /// A statement failed.
    pub fn message_events(&self, unit: UnitId) -> Result<Vec<MessageEvent>, StoreError> {
        let read = || -> rusqlite::Result<Vec<MessageEvent>> {
            let sql = "SELECT at, ifnull(from_status, ''), ifnull(to_status, ''), ifnull(who, ''), ifnull(reason, '') FROM main.dock_message_event
                       WHERE install_id = ?1 AND unit = ?2 ORDER BY id";
            let mut statement = self.connection.prepare_cached(sql)?;
            let rows = statement.query_map(params![unit.install.to_string(), unit.number.0.cast_signed()], |row| {
                Ok(MessageEvent { at: row.get(0)?, from: row.get(1)?, to: row.get(2)?, who: row.get(3)?, reason: row.get(4)? })
            })?;
            rows.collect()
        };
        read().map_err(self.fault("reading dock_message_event"))
    }

    /// Whether an older program deployed last, which knew of no messages.
    pub(super) fn has_messages(&self) -> Result<bool, StoreError> {
        self.require_installed()?;
        self.connection.table_exists(Some("main"), "dock_unit").map_err(self.fault("looking for dock_unit"))
    }

    pub(super) fn damaged(&self, what: &str, reason: String) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), what: what.to_owned(), reason }
    }
}

/// Returns the name of a unit.
pub(super) fn unit_id(install: &str, unit: i64) -> Result<UnitId, String> {
    let install = install.parse::<InstallId>().map_err(|error| error.to_string())?;
    Ok(UnitId { install, number: UnitNo(unit.unsigned_abs()) })
}

fn head_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Result<MessageHead, String>> {
    let count = |place: usize| row.get::<_, Option<i64>>(place).map(|count| count.unwrap_or_default().unsigned_abs());
    let id = unit_id(&row.get::<_, String>(0)?, row.get(1)?);
    let node = row.get::<_, String>(2)?.parse().map_err(|error: IdError| error.to_string());
    let status = row.get::<_, String>(5)?;
    let (id, node, status) = match (id, node, MessageStatus::from_name(&status)) {
        (Ok(id), Ok(node), Some(status)) => (id, node, status),
        (Err(reason), ..) | (_, Err(reason), _) => return Ok(Err(reason)),
        (_, _, None) => return Ok(Err(format!("`{status}` is no status"))),
    };
    Ok(Ok(MessageHead {
        id,
        node,
        incarnation: Incarnation(row.get(3)?),
        file: FileNo(count(4)?),
        status,
        outcome: row.get(6)?,
        reason: row.get(7)?,
        waits_for: row.get::<_, Option<i64>>(8)?.map(|unit| UnitNo(unit.unsigned_abs())),
        label: row.get(9)?,
        changes: count(10)?,
        conflicts: count(11)?,
        attempts: count(12)?,
        cut_at: row.get::<_, Option<i64>>(13)?.unwrap_or_default(),
        stored_at: row.get::<_, Option<i64>>(14)?.unwrap_or_default(),
        done_at: row.get(15)?,
    }))
}
