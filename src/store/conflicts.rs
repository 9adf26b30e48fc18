//! Conflicts of units with what stood on the server, and what a person makes of those of policy `manual`.

use crate::base::ids::{IdError, NodeName};
use crate::model::dock::Dock;
use crate::model::upload::UnitId;
use crate::model::value::{RowKey, Value, display_key};
use crate::model::value_json::from_json;
use crate::store::messages::unit_id;
use crate::store::sqlite::{ServerDatabase, SqlValue, StoreError, quote_name, value_of};
use rusqlite::{OptionalExtension, params};
use serde_json::Value as Json;

/// Which conflicts are listed.
#[derive(Debug, Clone, Default)]
pub struct ConflictFilter {
    /// Of that node.
    pub node: Option<NodeName>,
    /// Of that unit.
    pub unit: Option<UnitId>,
    /// Of that number.
    pub id: Option<i64>,
    /// Only those for which somebody has to decide.
    pub open: bool,
    /// At most so many, newest first; `None` = all.
    pub limit: Option<u32>,
}

/// A conflict as it was recorded. Values are JSON as `model::value_json` writes it; of a whole row they are an object by column.
#[derive(Debug, Clone, PartialEq)]
pub struct ConflictRow {
    /// Its number.
    pub id: i64,
    /// The unit.
    pub unit: UnitId,
    /// Its node.
    pub node: NodeName,
    /// The table.
    pub table: String,
    /// The row.
    pub key: RowKey,
    /// The column; `None` = the whole row.
    pub column: Option<String>,
    /// The server's value as the node knew it.
    pub base: Option<Json>,
    /// The server's value then.
    pub server: Option<Json>,
    /// The node's value.
    pub client: Option<Json>,
    /// Whose value stands.
    pub winner: String,
    /// What decided.
    pub rule: String,
    /// When, microseconds since 1970.
    pub at: i64,
    /// `open`, `closed` or `resolved`.
    pub state: String,
    /// Who resolved it, when, and why.
    pub resolved: Option<(String, i64, String)>,
}

/// Whose value a person takes.
#[derive(Debug, Clone, PartialEq)]
pub enum Take {
    /// What the server has now: nothing is written.
    Server,
    /// The node's.
    Client,
    /// Another one.
    Value(Value),
}

impl Take {
    /// Returns the spelling in the list of events.
    fn name(&self) -> &'static str {
        match self {
            Take::Server => "server",
            Take::Client => "client",
            Take::Value(_) => "value",
        }
    }
}

/// A person's decision.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'a> {
    /// Who.
    pub who: &'a str,
    /// Why.
    pub reason: &'a str,
    /// When, microseconds since 1970.
    pub now_micros: i64,
    /// Also if the server's value is another one than that of the conflict by now.
    pub even_if_changed: bool,
}

/// Why a conflict was not resolved.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ResolveRefused {
    /// There is none of that number.
    #[error("there is no conflict {0}")]
    Unknown(i64),
    /// Nobody has to decide.
    #[error("conflict {id} is {state}: {winner} won by {rule}; only an open one is resolved")]
    NotOpen {
        /// Its number.
        id: i64,
        /// Its state.
        state: String,
        /// Who won.
        winner: String,
        /// What decided.
        rule: String,
    },
    /// It is about a whole row.
    #[error("conflict {0} is about a whole row: change the row itself, then take `server`")]
    WholeRow(i64),
    /// The definition does not have the column any more.
    #[error("conflict {id}: {what} is not in the definition any more: change the row itself, then take `server`")]
    NoColumn {
        /// Its number.
        id: i64,
        /// Table and column.
        what: String,
    },
    /// The row is gone.
    #[error("conflict {id}: {table} {key} is gone; take `server`")]
    Gone {
        /// Its number.
        id: i64,
        /// The table.
        table: String,
        /// The row.
        key: String,
    },
    /// Somebody changed the value since.
    #[error("conflict {id}: {what} is {now} by now, it was {then} when both met")]
    Changed {
        /// Its number.
        id: i64,
        /// Table, row and column.
        what: String,
        /// The value now.
        now: String,
        /// The value of the conflict.
        then: String,
    },
    /// The database refuses the value.
    #[error("conflict {id}: the server database refuses {value} for {what}: {reason}")]
    Refused {
        /// Its number.
        id: i64,
        /// Table, row and column.
        what: String,
        /// The value.
        value: String,
        /// Why.
        reason: String,
    },
}

impl ServerDatabase {
    /// Returns conflicts, newest first.
    ///
    /// # Errors
    /// A row is damaged, or a statement failed.
    pub fn conflicts(&self, filter: &ConflictFilter) -> Result<Vec<ConflictRow>, StoreError> {
        if !self.has_messages()? {
            return Ok(Vec::new());
        }
        let fault = || self.fault("reading dock_conflict");
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT id, install_id, unit, node, table_name, row_key, column_name, base, server, client, winner, rule, at, state, by,
                 resolved_at, reason FROM main.dock_conflict
                 WHERE (?1 IS NULL OR node = ?1) AND (?2 IS NULL OR (install_id = ?2 AND unit = ?3)) AND (?4 IS NULL OR id = ?4)
                 AND (NOT ?5 OR state = 'open') ORDER BY id DESC LIMIT ?6",
            )
            .map_err(fault())?;
        let limit = filter.limit.map_or(-1, i64::from);
        let mut rows = statement
            .query(params![
                filter.node.as_ref().map(NodeName::as_str),
                filter.unit.map(|unit| unit.install.to_string()),
                filter.unit.map(|unit| unit.number.0.cast_signed()),
                filter.id,
                filter.open,
                limit
            ])
            .map_err(fault())?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(fault())? {
            let id: i64 = row.get(0).map_err(fault())?;
            found.push(conflict_of(row).map_err(fault())?.map_err(|reason| self.damaged(&format!("conflict {id}"), reason))?);
        }
        Ok(found)
    }

    /// Resolves a conflict that waits for a person: writes the value that he takes, who he is and why, in one transaction. What is written is
    /// captured, and goes down to the nodes like every change. Returns the conflict as it is now.
    ///
    /// # Errors
    /// A row is damaged, or a statement failed.
    pub fn resolve_conflict(
        &self,
        dock: &Dock,
        id: i64,
        take: &Take,
        by: &Decision<'_>,
    ) -> Result<Result<ConflictRow, ResolveRefused>, StoreError> {
        let action = format!("resolving conflict {id}");
        let fault = || self.fault(&action);
        self.connection.pragma_update(None, "foreign_keys", true).map_err(fault())?;
        let transaction = self.begin_write(&action)?;
        let one = ConflictFilter { id: Some(id), ..ConflictFilter::default() };
        let Some(conflict) = self.conflicts(&one)?.into_iter().next() else { return Ok(Err(ResolveRefused::Unknown(id))) };
        if conflict.state != "open" {
            let ConflictRow { state, winner, rule, .. } = conflict;
            return Ok(Err(ResolveRefused::NotOpen { id, state, winner, rule }));
        }
        let value = match take {
            Take::Server => None,
            Take::Client => match (&conflict.column, conflict.client.as_ref().and_then(from_json)) {
                (Some(_), Some(value)) => Some(value),
                (Some(_), None) => return Err(self.damaged(&format!("conflict {id}"), "it has no value of the node".to_owned())),
                (None, _) => return Ok(Err(ResolveRefused::WholeRow(id))),
            },
            Take::Value(value) => Some(value.clone()),
        };
        if let Some(value) = &value
            && let Err(refused) = self.write_resolved(dock, &conflict, value, by.even_if_changed)?
        {
            return Ok(Err(refused));
        }
        let winner = if *take == Take::Client { "client" } else { "server" };
        self.connection
            .execute(
                "UPDATE main.dock_conflict SET state = 'resolved', winner = ?2, by = ?3, resolved_at = ?4, reason = ?5 WHERE id = ?1 AND state = 'open'",
                params![id, winner, by.who, by.now_micros, by.reason],
            )
            .map_err(fault())?;
        self.connection
            .execute(
                "INSERT INTO main.dock_message_event(at, install_id, unit, conflict_id, from_status, to_status, who, reason)
                 VALUES (?1, ?2, ?3, ?4, 'open', ?5, ?6, ?7)",
                params![
                    by.now_micros,
                    conflict.unit.install.to_string(),
                    conflict.unit.number.0.cast_signed(),
                    id,
                    format!("resolved: {}", take.name()),
                    by.who,
                    by.reason
                ],
            )
            .map_err(fault())?;
        let now = self.conflicts(&one)?.into_iter().next().ok_or_else(|| self.damaged(&action, "it is gone".to_owned()))?;
        transaction.commit().map_err(fault())?;
        Ok(Ok(now))
    }

    /// Writes a value into the row of a conflict. Names are the definition's own.
    fn write_resolved(
        &self,
        dock: &Dock,
        conflict: &ConflictRow,
        value: &Value,
        even_if_changed: bool,
    ) -> Result<Result<(), ResolveRefused>, StoreError> {
        let id = conflict.id;
        let Some(column) = &conflict.column else { return Ok(Err(ResolveRefused::WholeRow(id))) };
        let no_column = || ResolveRefused::NoColumn { id, what: format!("{}.{column}", conflict.table) };
        let Some(declared) = dock.table(&conflict.table).and_then(|table| dock.tables.get(table)) else { return Ok(Err(no_column())) };
        let Some(name) = declared.column(column).and_then(|column| declared.columns.get(column)).map(|column| quote_name(&column.name))
        else {
            return Ok(Err(no_column()));
        };
        let keys: Vec<String> =
            declared.key.iter().filter_map(|column| declared.columns.get(*column)).map(|column| quote_name(&column.name)).collect();
        let gone = || ResolveRefused::Gone { id, table: declared.name.clone(), key: display_key(&conflict.key) };
        if keys.len() != conflict.key.len() {
            return Ok(Err(gone()));
        }
        let action = format!("writing the value of conflict {id}");
        let fault = || self.fault(&action);
        let terms =
            |from: usize| keys.iter().enumerate().map(|(at, name)| format!("{name} = ?{}", at + from)).collect::<Vec<_>>().join(" AND ");
        let table = quote_name(&declared.name);
        let select = format!("SELECT {name}, {} FROM main.{table} WHERE {}", keys.join(", "), terms(1));
        let found = self
            .connection
            .query_row(&select, rusqlite::params_from_iter(conflict.key.iter().map(SqlValue)), |row| {
                let key: RowKey = (1..=keys.len()).map(|place| row.get_ref(place).map(value_of)).collect::<rusqlite::Result<_>>()?;
                Ok((value_of(row.get_ref(0)?), key))
            })
            .optional()
            .map_err(fault())?;
        let Some((now, _)) = found.filter(|(_, key)| *key == conflict.key) else { return Ok(Err(gone())) };
        let what = format!("{} {}, {column}", declared.name, display_key(&conflict.key));
        let then = conflict.server.as_ref().and_then(from_json);
        if !even_if_changed && then.as_ref() != Some(&now) {
            let then = then.map_or_else(|| "not known".to_owned(), |then| then.to_string());
            return Ok(Err(ResolveRefused::Changed { id, what, now: now.to_string(), then }));
        }
        let update = format!("UPDATE OR ABORT main.{table} SET {name} = ?1 WHERE {}", terms(2));
        let values = std::iter::once(value).chain(&conflict.key).map(SqlValue);
        match self.connection.execute(&update, rusqlite::params_from_iter(values)) {
            Ok(_) => Ok(Ok(())),
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => {
                Ok(Err(ResolveRefused::Refused { id, what, value: value.to_string(), reason: error.to_string() }))
            }
            Err(error) => Err(fault()(error)),
        }
    }
}

fn conflict_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Result<ConflictRow, String>> {
    let json = |place: usize| -> rusqlite::Result<Result<Option<Json>, String>> {
        let text: Option<String> = row.get(place)?;
        Ok(text.map(|text| serde_json::from_str(&text).map_err(|error| error.to_string())).transpose())
    };
    let read = |id: Result<UnitId, String>, key: Option<Json>, base, server, client| -> Result<_, String> {
        let key = match &key {
            Some(Json::Array(values)) => values.iter().map(from_json).collect::<Option<RowKey>>(),
            _ => None,
        };
        Ok((id?, key.ok_or("its key cannot be read")?, base?, server?, client?))
    };
    let key = match json(5)? {
        Ok(key) => key,
        Err(reason) => return Ok(Err(reason)),
    };
    let (unit, key, base, server, client) = match read(unit_id(&row.get::<_, String>(1)?, row.get(2)?), key, json(7)?, json(8)?, json(9)?) {
        Ok(parts) => parts,
        Err(reason) => return Ok(Err(reason)),
    };
    let node = match row.get::<_, String>(3)?.parse() {
        Ok(node) => node,
        Err(error) => return Ok(Err(IdError::to_string(&error))),
    };
    let resolved = match (row.get::<_, Option<String>>(14)?, row.get::<_, Option<i64>>(15)?) {
        (Some(by), Some(at)) => Some((by, at, row.get::<_, Option<String>>(16)?.unwrap_or_default())),
        _ => None,
    };
    Ok(Ok(ConflictRow {
        id: row.get(0)?,
        unit,
        node,
        table: row.get(4)?,
        key,
        column: row.get(6)?,
        base,
        server,
        client,
        winner: row.get(10)?,
        rule: row.get(11)?,
        at: row.get(12)?,
        state: row.get(13)?,
        resolved,
    }))
}
