//! Whether a table can be trusted to be captured: its shape and its triggers are what capture was installed with.

use crate::model::schema::TableShape;
use crate::store::capture::{Capture, capture_shape, difference, may_end_statement, newer_triggers};
use crate::store::schema::read_shape;
use rusqlite::Connection;
use std::collections::BTreeMap;

/// Returns why a table cannot be trusted to be captured, `None` if it can.
pub(crate) fn doubt(connection: &Connection, capture: &Capture) -> rusqlite::Result<Option<String>> {
    let Some(table) = read_shape(connection, &capture.table)? else {
        return Ok(Some("the table is gone".into()));
    };
    if let Some(what) = difference(&capture.shape, &capture_shape(&table)) {
        return Ok(Some(what));
    }
    if let Some(reason) = trigger_doubt(&stored_triggers(connection, &table)?, capture) {
        return Ok(Some(reason));
    }
    let ending = newer_triggers(connection, &capture.table)?.into_iter().find(|(_, sql)| may_end_statement(sql));
    Ok(ending.map(|(name, _)| format!("the newer trigger `{name}` can end a statement before its change is captured")))
}

fn trigger_doubt(stored: &BTreeMap<String, String>, capture: &Capture) -> Option<String> {
    capture.triggers.iter().find_map(|(name, sql)| match stored.get(name) {
        None => Some(format!("the trigger `{name}` is missing, so changes may have been missed")),
        Some(text) if text != sql => Some(format!("the trigger `{name}` was changed, so changes may have been missed")),
        Some(_) => None,
    })
}

/// Returns our triggers on a table as the database stores them.
pub(crate) fn stored_triggers(connection: &Connection, table: &TableShape) -> rusqlite::Result<BTreeMap<String, String>> {
    let mut statement = connection.prepare_cached(
        "SELECT name, sql FROM main.sqlite_schema WHERE type = 'trigger' AND lower(tbl_name) = lower(?1) AND substr(name, 1, 5) = 'dock_'",
    )?;
    let rows = statement.query_map([&table.name], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}
