//! Where the harness calls the parts of the way up.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::laptop::Laptop;
use super::model::{Info, Tables, Verdict};
use crate::pipeline::site::said;
use dockmaster::base::ids::NodeName;
use dockmaster::docking::root::DockingRoot;
use dockmaster::model::value::{RowKey, Value};
use dockmaster::store::local::LocalDatabase;
use fastrand::Rng;
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;

/// What happens to upload files on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accident {
    None,
    /// A file comes twice.
    Twice,
    /// The second of two files comes first.
    OutOfOrder,
    /// The files are lost after they were made.
    Lost,
    /// Only the first file comes.
    FirstOnly,
}

impl Accident {
    pub(super) fn random(rng: &mut Rng) -> Accident {
        match rng.u32(0..8) {
            0 => Accident::Twice,
            1 => Accident::OutOfOrder,
            2 => Accident::Lost,
            3 => Accident::FirstOnly,
            _ => Accident::None,
        }
    }
}

/// The Merger, one unit at a time.
#[derive(Default)]
pub(super) struct Merging {}

impl Merging {
    pub(super) fn step(&mut self, _database: &Path, _root: Arc<DockingRoot>) -> Result<bool, String> {
        Ok(false)
    }
}

pub(super) fn cut(_local: &mut LocalDatabase) -> Result<(), String> {
    Ok(())
}

pub(super) fn send(_laptop: &mut Laptop, _root: Arc<DockingRoot>, _database: &Path, _accident: Accident) -> Result<(), String> {
    Ok(())
}

/// Draws the identity of a local database, as `init` does.
pub(super) fn take_over(path: &Path, name: &NodeName) -> Result<(), String> {
    let local = Connection::open(path).map_err(said)?;
    let install = hex::encode(format!("{name:>16}").as_bytes());
    local.execute_batch("PRAGMA journal_mode = WAL").map_err(said)?;
    local.execute("UPDATE dock_state SET install_id = ?1", [install]).map_err(said)?;
    dockmaster::store::local_capture::ensure_capture(&local).map(drop).map_err(said)
}

pub(super) fn install_id(path: &Path) -> Result<String, String> {
    let local = Connection::open(path).map_err(said)?;
    local.query_row("SELECT install_id FROM dock_state", [], |row| row.get(0)).map_err(said)
}

/// An updated row of a unit: table, key before, changed columns with their values after.
pub(super) type Updated = (String, RowKey, Vec<(String, Value)>);

pub(super) fn updates(_program: &Connection, _unit: i64) -> Result<Vec<Updated>, String> {
    Ok(Vec::new())
}

/// Keys that the server replaced: unit, table, old, new, the confirm's log id.
pub(super) fn mappings(_server: &Connection, _install: &str) -> Result<Vec<(i64, String, RowKey, RowKey, i64)>, String> {
    Ok(Vec::new())
}

/// The key in a conflict of the server.
pub(super) fn key_of_text(_text: &str) -> Result<RowKey, String> {
    Ok(Vec::new())
}

/// Writes what a verdict says, as plainly as can be.
pub(super) fn write(server: &Connection, infos: &[Info], verdict: &Verdict, was: &Tables) -> rusqlite::Result<()> {
    let values = |row: &[Value]| row.iter().map(Value::to_string).collect::<Vec<_>>();
    let condition = |info: &Info, key: &[Value]| {
        let terms = info.key.iter().zip(key).map(|(at, value)| format!("\"{}\" = {value}", info.columns[*at]));
        terms.collect::<Vec<_>>().join(" AND ")
    };
    for (table, at, row) in &verdict.writes {
        let info = &infos[*table];
        let sql = match (at, row) {
            (Some(at), None) => format!("DELETE FROM \"{}\" WHERE {}", info.name, condition(info, at)),
            (Some(at), Some(row)) => {
                let old = &was[table][at];
                let changed = (0..row.len()).filter(|column| row[*column] != old[*column]);
                let set: Vec<String> = changed.map(|column| format!("\"{}\" = {}", info.columns[column], row[column])).collect();
                format!("UPDATE \"{}\" SET {} WHERE {}", info.name, set.join(", "), condition(info, at))
            }
            (None, Some(row)) => {
                let names: Vec<String> = info.columns.iter().map(|name| format!("\"{name}\"")).collect();
                format!("INSERT INTO \"{}\"({}) VALUES({})", info.name, names.join(", "), values(row).join(", "))
            }
            (None, None) => continue,
        };
        server.execute_batch(&sql)?;
    }
    Ok(())
}
