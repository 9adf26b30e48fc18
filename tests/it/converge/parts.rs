//! Where the harness calls the parts of the way up.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::laptop::Laptop;
use super::model::{Info, Tables, Verdict};
use crate::pipeline::site::said;
use dockmaster::base::ids::{ContentHash, FileNo, InstallId, NodeName, TxnId, UnitNo};
use dockmaster::base::step::Progress;
use dockmaster::docking::root::DockingRoot;
use dockmaster::dx::header::{DxDirection, Header};
use dockmaster::dx::upload_writer::UploadWriter;
use dockmaster::model::value::{RowKey, Value};
use dockmaster::model::{keycode, value_json};
use dockmaster::server::merger::{Merger, MergerOptions};
use dockmaster::store::local::LocalDatabase;
use dockmaster::store::sqlite::ServerDatabase;
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
pub(super) struct Merging(Option<Merger>);

impl Merging {
    pub(super) fn step(&mut self, database: &Path, root: Arc<DockingRoot>) -> Result<bool, String> {
        if self.0.is_none() {
            let options = MergerOptions { turn_units: 1, ..MergerOptions::default() };
            self.0 = Some(Merger::open(database, Arc::clone(&root), options).map_err(said)?);
        }
        let worked = self.0.as_mut().unwrap().step().map_err(said)? == Progress::Worked;
        let alerts = Connection::open(root.sessions_db()).map_err(said)?;
        let text: Option<String> =
            alerts.query_row("SELECT group_concat(node || ': ' || text, '; ') FROM alert WHERE text LIKE '%fork%' OR text LIKE '%gone%' OR text LIKE '%stopped%' OR text LIKE '%damaged%'", [], |row| row.get(0)).map_err(said)?;
        text.map_or(Ok(worked), |text| Err(format!("alerts: {text}")))
    }
}

pub(super) fn cut(local: &mut LocalDatabase) -> Result<(), String> {
    local.cut().map(drop).map_err(said)
}

pub(super) fn send(laptop: &mut Laptop, root: Arc<DockingRoot>, database: &Path, _accident: Accident) -> Result<(), String> {
    let local = laptop.open()?;
    let state = local.state().map_err(said)?;
    let identity = ServerDatabase::open(database.to_owned()).unwrap().identity().map_err(said)?;
    let mut units = Vec::new();
    for listed in laptop.listed()? {
        if laptop.sent.0 == laptop.incarnation && listed.number <= laptop.sent.2 {
            continue;
        }
        units.push(local.pending_unit(UnitNo(listed.number as u64)).map_err(said)?.unwrap());
    }
    if laptop.sent.0 != laptop.incarnation {
        laptop.sent = (laptop.incarnation, FileNo(0), 0, ContentHash::default());
    }
    let (Some(first), Some(last)) = (units.first(), units.last()) else { return Ok(()) };
    let header = Header {
        direction: DxDirection::Upload,
        server_id: identity.server_id,
        epoch: identity.epoch,
        node: Some(laptop.name.clone()),
        incarnation: laptop.incarnation,
        file_no: laptop.sent.1.next(),
        first: TxnId(first.head.number.0 as i64),
        last: TxnId(last.head.number.0 as i64),
        revision: state.revision,
        previous: laptop.sent.3,
        install_id: InstallId(hex::decode(install_id(&laptop.path)?).unwrap().try_into().unwrap()),
        applied_unit: state.applied_unit,
    };
    let (bytes, summary) = UploadWriter::assemble(&header, &units, 1).map_err(said)?;
    root.ensure_node(&laptop.name).map_err(said)?;
    let to = root.inbox(&laptop.name).join(header.file_no.file_name());
    if to.exists() {
        return Ok(()); // A file of the former incarnation waits.
    }
    std::fs::write(to, bytes).map_err(said)?;
    laptop.sent = (laptop.incarnation, header.file_no, header.last.0, summary.content_hash);
    Ok(())
}

/// Draws the identity of a local database, as `init` does.
pub(super) fn take_over(path: &Path, name: &NodeName) -> Result<(), String> {
    let local = Connection::open(path).map_err(said)?;
    let install = hex::encode(format!("{name:>16}").as_bytes());
    local.execute_batch("PRAGMA journal_mode = WAL").map_err(said)?;
    local.execute("UPDATE dock_state SET install_id = ?1", [install]).map_err(said)?;
    dockmaster::store::local_capture::ensure_capture(&local, &[]).map(drop).map_err(said)
}

pub(super) fn install_id(path: &Path) -> Result<String, String> {
    let local = Connection::open(path).map_err(said)?;
    local.query_row("SELECT install_id FROM dock_state", [], |row| row.get(0)).map_err(said)
}

/// A row of a unit whose key changed: table, key before and after.
pub(super) type Moved = (String, RowKey, RowKey);

pub(super) fn moved(program: &Connection, unit: i64) -> Result<Vec<Moved>, String> {
    let sql = "SELECT table_name, row_key, new_key FROM dock_change WHERE unit = ?1 AND new_key IS NOT NULL";
    let mut statement = program.prepare(sql).map_err(said)?;
    let rows = statement.query_map([unit], |row| Ok((row.get(0)?, key_of(row, 1)?, key_of(row, 2)?))).map_err(said)?;
    rows.collect::<Result<_, _>>().map_err(said)
}

fn key_of(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<RowKey> {
    Ok(keycode::decode(&row.get::<_, Vec<u8>>(at)?).unwrap())
}

/// Keys that the server replaced: unit, table, old, new, the confirm's log id.
pub(super) fn mappings(server: &Connection, install: &str) -> Result<Vec<(i64, String, RowKey, RowKey, i64)>, String> {
    let sql = "SELECT unit, table_name, old_key, new_key, log_id FROM dock_key_map WHERE install_id = ?1 ORDER BY log_id, rowid";
    let mut statement = server.prepare(sql).map_err(said)?;
    let rows =
        statement.query_map([install], |row| Ok((row.get(0)?, row.get(1)?, key_of(row, 2)?, key_of(row, 3)?, row.get(4)?))).map_err(said)?;
    rows.collect::<Result<_, _>>().map_err(said)
}

/// The key in a conflict of the server.
pub(super) fn key_of_text(text: &str) -> Result<RowKey, String> {
    let values: Vec<serde_json::Value> = serde_json::from_str(text).map_err(said)?;
    values.iter().map(|value| value_json::from_json(value).ok_or_else(|| format!("{text} is no key"))).collect()
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
