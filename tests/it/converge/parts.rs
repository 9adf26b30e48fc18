//! Where the harness calls the parts of the way up.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::laptop::Laptop;
use super::model::{Info, Tables, Verdict};
use crate::pipeline::site::said;
use dockmaster::base::disk::Disk;
use dockmaster::base::ids::{ContentHash, FileNo, Incarnation, NodeName, UnitNo};
use dockmaster::base::step::Progress;
use dockmaster::client::folder::ClientFolder;
use dockmaster::client::outbox::Outbox;
use dockmaster::docking::root::DockingRoot;
use dockmaster::dx::format::HEADER_BYTES;
use dockmaster::dx::header::Header;
use dockmaster::model::value::{RowKey, Value};
use dockmaster::model::{keycode, value_json};
use dockmaster::server::merger::{Merger, MergerOptions};
use dockmaster::session::upload::UploadState;
use dockmaster::store::local::LocalDatabase;
use fastrand::Rng;
use rusqlite::Connection;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// What happens to upload files on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accident {
    None,
    /// A file comes twice.
    Twice,
    /// Files are lost after they were made, and are made again.
    Lost,
    /// Nothing comes of what was made.
    NotAtAll,
    /// The server has it, and the node does not know.
    AcknowledgementLost,
    /// Only the first file comes.
    FirstOnly,
}

impl Accident {
    pub(super) fn random(rng: &mut Rng) -> Accident {
        match rng.u32(0..10) {
            0 => Accident::Twice,
            1 => Accident::NotAtAll,
            2 => Accident::Lost,
            3 => Accident::FirstOnly,
            4 => Accident::AcknowledgementLost,
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
            self.0 = Merger::open(database, Arc::clone(&root), options).map_err(said)?;
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

/// Makes files of what is cut, and carries them into the inbox of the node, as the Synchronization Manager takes them: the next one only.
/// Returns whether a file of a former stream stands in the way.
pub(super) fn send(laptop: &mut Laptop, root: &DockingRoot, server: &Connection, accident: Accident) -> Result<bool, String> {
    if laptop.stored.0 != laptop.incarnation {
        laptop.stored = (laptop.incarnation, FileNo(0), ContentHash::default());
    }
    root.ensure_node(&laptop.name).map_err(said)?;
    let install = install_id(&laptop.path)?;
    let last: i64 = server
        .query_row("SELECT coalesce(max(unit), 0) FROM dock_unit WHERE install_id = ?1", [&install], |row| row.get(0))
        .map_err(said)?;
    let folder = ClientFolder::of(&laptop.path);
    let outbox = Outbox::open(&folder, &Disk::new()).map_err(said)?.with_bytes_goal(1);
    let last_unit = UnitNo(last.max(laptop.last_stored).unsigned_abs());
    // Nobody restores a copy here, so no unit has to be named.
    let known = UploadState { stored: laptop.stored.1, hash: laptop.stored.2, last_unit, ..UploadState::default() };
    if let Some(remark) = outbox.agree(&known).map_err(said)? {
        return Err(format!("they do not agree: {remark}"));
    }
    let (mut after, mut count) = (laptop.stored.1, 0);
    while let Some(mut ready) = outbox.next(after).map_err(said)? {
        if accident == Accident::Lost {
            std::fs::remove_file(&ready.path).unwrap();
            let again = outbox.next(after).map_err(said)?.ok_or("a lost file was not made again")?;
            if again.written.content_hash != ready.written.content_hash {
                return Err("a lost file was made again with another content".into());
            }
            ready = again;
        }
        let to = root.inbox(&laptop.name).join(ready.row.file.file_name());
        if to.exists() && is_of_another(&to, laptop.incarnation)? {
            return Ok(true); // One of the former incarnation waits there.
        }
        if accident == Accident::NotAtAll {
            return Ok(false);
        }
        std::fs::copy(&ready.path, &to).map_err(said)?;
        after = ready.row.file;
        laptop.stored = (laptop.incarnation, after, ready.written.content_hash);
        laptop.last_stored = laptop.last_stored.max(ready.row.last.0.cast_signed());
        if accident != Accident::AcknowledgementLost {
            outbox.stored(after).map_err(said)?;
        }
        count += 1;
        if accident == Accident::Twice {
            std::fs::copy(&ready.path, &to).map_err(said)?;
        }
        if accident == Accident::FirstOnly && count == 1 {
            break;
        }
    }
    outbox.purge().map_err(said)?;
    Ok(false)
}

/// Whether a file in an inbox is of another incarnation.
fn is_of_another(path: &Path, incarnation: Incarnation) -> Result<bool, String> {
    let mut bytes = [0; HEADER_BYTES];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).map_err(said)?;
    Ok(Header::from_prefix(&bytes).map_err(said)?.incarnation != incarnation)
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

/// See [`mappings`].
pub(super) type Mapped = (i64, String, RowKey, RowKey, i64);

/// Keys that the server replaced: unit, table, old, new, the confirm's log id.
pub(super) fn mappings(server: &Connection, install: &str) -> Result<Vec<Mapped>, String> {
    let sql = "SELECT unit, table_name, old_key, new_key, log_id FROM dock_key_map WHERE install_id = ?1 ORDER BY log_id, rowid";
    let mut statement = server.prepare(sql).map_err(said)?;
    let rows = statement
        .query_map([install], |row| Ok((row.get(0)?, row.get(1)?, key_of(row, 2)?, key_of(row, 3)?, row.get(4)?)))
        .map_err(said)?;
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
