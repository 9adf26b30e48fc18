//! A local database compares itself with a mark in its stream (R42).
//!
//! The answer is stored in the transaction that applies the mark's unit, so both are there or neither: it says what the tables were at
//! exactly that unit, and a crash loses none. Reading the tables keeps other writers waiting, as a large unit does.

use super::local::{LocalDatabase, LocalError};
use super::local_apply::ApplyTransaction;
use super::sqlite::{quote_name, value_of};
use crate::base::ids::TxnId;
use crate::base::limits::VERIFY_KEPT_MAX;
use crate::model::digest::{Digester, TableOutcome, compare};
use crate::model::event::{Mark, TableDigest};
use crate::model::value::{Row, Value};
use rusqlite::{Connection, params};
use std::collections::BTreeMap;

impl ApplyTransaction<'_> {
    /// Compares the tables of a mark as they are in this transaction, and stores what was found.
    ///
    /// # Errors
    /// The local database failed. A table that is not there is an answer, not an error.
    pub fn answer(&self, unit: TxnId, mark: &Mark) -> Result<(), LocalError> {
        let (connection, path) = (self.connection(), self.path());
        let tables = u32::try_from(mark.tables.len()).unwrap_or(u32::MAX);
        for (place, theirs) in mark.tables.iter().enumerate() {
            let mut outcome = TableOutcome {
                id: mark.id,
                unit,
                tables,
                place: u32::try_from(place).unwrap_or(u32::MAX),
                table: theirs.heading.name.clone(),
                bucket_count: theirs.bucket_count,
                buckets: Vec::new(),
                found: Vec::new(),
                more: 0,
                problem: String::new(),
            };
            let overlay = self.overlay(&theirs.heading.name)?.filter(|overlay| overlay.has_entries() && !self.rebase.at_base.get());
            let columns = &theirs.heading.columns;
            let names = || columns.iter().map(|name| quote_name(name)).collect::<Vec<_>>().join(", ");
            let select = match overlay {
                // What the server has, whatever is pending (R21).
                Some(overlay) => overlay.server_view(columns),
                None => format!("SELECT {} FROM main.{}", names(), quote_name(&theirs.heading.name)),
            };
            match digest(connection, theirs, &select) {
                Ok((ours, keys)) => (outcome.buckets, outcome.found, outcome.more) = compare(theirs, &ours, &keys),
                // Somebody has dropped or changed the table behind our back: the next unit on it will stop the node.
                Err(rusqlite::Error::SqliteFailure(_, Some(text)) | rusqlite::Error::SqlInputError { msg: text, .. })
                    if text.contains("no such") =>
                {
                    outcome.problem = text;
                }
                Err(source) => return Err(LocalError::of_sql(path, "compare the tables", source)),
            }
            store(connection, &outcome).map_err(|source| LocalError::of_sql(path, "store what was compared", source))?;
        }
        Ok(())
    }
}

type Digests = (Vec<crate::model::event::BucketDigest>, BTreeMap<u64, Vec<Value>>);

fn digest(connection: &Connection, theirs: &TableDigest, select: &str) -> rusqlite::Result<Digests> {
    let mut statement = connection.prepare(select)?;
    let mut rows = statement.query([])?;
    let mut digester = Digester::for_question(theirs);
    let mut keys = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let row: Row = (0..theirs.heading.columns.len()).map(|column| row.get_ref(column).map(value_of)).collect::<Result<_, _>>()?;
        let key: Vec<Value> = theirs.heading.key.iter().filter_map(|column| row.get(usize::from(*column)).cloned()).collect();
        if let Some(hash) = digester.add(&key, &row) {
            keys.insert(hash, key);
        }
    }
    Ok((digester.finish(), keys))
}

fn store(connection: &Connection, outcome: &TableOutcome) -> rusqlite::Result<()> {
    let text = serde_json::to_string(outcome).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    connection.execute(
        "INSERT OR REPLACE INTO dock_verify(id, place, unit, table_name, is_equal, outcome) VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
        params![outcome.id.cast_signed(), outcome.place, outcome.unit.0, outcome.table, outcome.is_equal(), text],
    )?;
    connection.execute(
        "DELETE FROM dock_verify WHERE rowid <= (SELECT rowid FROM dock_verify ORDER BY rowid DESC LIMIT 1 OFFSET ?1)",
        [VERIFY_KEPT_MAX],
    )?;
    Ok(())
}

impl LocalDatabase {
    /// Returns what was found at marks and not yet told to the server, oldest first.
    ///
    /// # Errors
    /// The local database failed.
    pub fn untold_outcomes(&self) -> Result<Vec<TableOutcome>, LocalError> {
        let read = || -> rusqlite::Result<Vec<String>> {
            self.connection()
                .prepare_cached("SELECT outcome FROM dock_verify WHERE told = 0 ORDER BY rowid")?
                .query_map([], |row| row.get(0))?
                .collect()
        };
        let texts = read().map_err(|source| LocalError::of_sql(self.path(), "read what was compared", source))?;
        let parse = |text: String| {
            serde_json::from_str(&text).map_err(|_| LocalError::State {
                path: self.path().to_owned(),
                column: "dock_verify.outcome",
                value: text,
            })
        };
        texts.into_iter().map(parse).collect()
    }

    /// Notes that the server knows these, by question and place.
    ///
    /// # Errors
    /// The local database failed.
    pub fn told_outcomes(&self, told: &[(u64, u32)]) -> Result<(), LocalError> {
        for (id, place) in told {
            self.connection()
                .prepare_cached("UPDATE dock_verify SET told = 1 WHERE id = ?1 AND place = ?2")
                .and_then(|mut statement| statement.execute(params![id.cast_signed(), place]))
                .map_err(|source| LocalError::of_sql(self.path(), "note what was told", source))?;
        }
        Ok(())
    }
}
