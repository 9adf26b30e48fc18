//! Keys by number: each (path, value) that occurs gets a small integer, kept in `scope_key`.
//!
//! The numbers never leave `cds.db`: files carry path names and values, so a rebuilt data store may number anew.

use crate::model::value::Value;
use crate::rules::graph::{PathIndex, ScopeGraph};
use crate::store::sqlite::{SqlValue, value_of};
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashMap;

/// So many keys are kept in memory; then they are read anew.
const CACHED_MAX: usize = 200_000;

/// Number of a key in `scope_key`.
pub(crate) type KeyId = i64;

/// What is known of keys in memory. Filled at need, dropped as a whole when a unit is rolled back or when there are too many.
#[derive(Debug, Default)]
pub(crate) struct KeyCache {
    /// Per path of the graph its id in `scope_path`.
    path_ids: Vec<i64>,
    by_key: HashMap<(PathIndex, Value), KeyId>,
    by_id: HashMap<KeyId, (PathIndex, Value)>,
    next: KeyId,
    /// Whether new keys are numbered in memory alone.
    in_memory: bool,
}

impl KeyCache {
    /// From here on new keys are numbered in memory alone: the database is only read.
    pub(crate) fn stay_in_memory(&mut self) {
        self.in_memory = true;
    }

    /// Reads the path numbers, adding those of new rule paths.
    pub(crate) fn open(conn: &Connection, graph: &ScopeGraph) -> rusqlite::Result<KeyCache> {
        let mut path_ids = Vec::with_capacity(graph.paths.len());
        for path in &graph.paths {
            let known = conn.query_row("SELECT id FROM scope_path WHERE name = ?1", [&path.name], |row| row.get(0)).optional()?;
            path_ids.push(match known {
                Some(id) => id,
                None => {
                    conn.execute("INSERT INTO scope_path(name) VALUES(?1)", [&path.name])?;
                    conn.last_insert_rowid()
                }
            });
        }
        let next = conn.query_row("SELECT coalesce(max(id), 0) + 1 FROM scope_key", [], |row| row.get(0))?;
        Ok(KeyCache { path_ids, next, ..KeyCache::default() })
    }

    /// Forgets what a rolled-back unit added.
    pub(crate) fn forget(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        self.by_key.clear();
        self.by_id.clear();
        self.next = conn.query_row("SELECT coalesce(max(id), 0) + 1 FROM scope_key", [], |row| row.get(0))?;
        Ok(())
    }

    /// Returns the number of a key if it ever occurred. The value must be folded.
    pub(crate) fn find(&mut self, conn: &Connection, path: PathIndex, value: &Value) -> rusqlite::Result<Option<KeyId>> {
        // The map wants an owned pair to look up; a key is small.
        let pair = (path, value.clone());
        if let Some(id) = self.by_key.get(&pair) {
            return Ok(Some(*id));
        }
        let path_id = self.path_ids.get(path).copied().unwrap_or_default();
        let found = conn
            .prepare_cached("SELECT id FROM scope_key WHERE path = ?1 AND value IS ?2")?
            .query_row(params![path_id, SqlValue(value)], |row| row.get(0))
            .optional()?;
        if let Some(id) = found {
            self.keep(id, path, value);
        }
        Ok(found)
    }

    /// Returns the number of a key, giving it one if it is new. The value must be folded.
    pub(crate) fn intern(&mut self, conn: &Connection, path: PathIndex, value: &Value) -> rusqlite::Result<KeyId> {
        if let Some(id) = self.find(conn, path, value)? {
            return Ok(id);
        }
        let id = self.next;
        let path_id = self.path_ids.get(path).copied().unwrap_or_default();
        if !self.in_memory {
            conn.prepare_cached("INSERT INTO scope_key(id, path, value) VALUES(?1, ?2, ?3)")?.execute(params![
                id,
                path_id,
                SqlValue(value)
            ])?;
        }
        self.next += 1;
        self.keep(id, path, value);
        Ok(id)
    }

    /// Returns what a number stands for; `None` for a number of a path that the definition no longer has.
    pub(crate) fn get(&mut self, conn: &Connection, id: KeyId) -> rusqlite::Result<Option<(PathIndex, Value)>> {
        if let Some(pair) = self.by_id.get(&id) {
            return Ok(Some(pair.clone()));
        }
        let found: Option<(i64, Value)> = conn
            .prepare_cached("SELECT path, value FROM scope_key WHERE id = ?1")?
            .query_row([id], |row| Ok((row.get(0)?, value_of(row.get_ref(1)?))))
            .optional()?;
        let Some((path_id, value)) = found else { return Ok(None) };
        let Some(path) = self.path_ids.iter().position(|known| *known == path_id) else { return Ok(None) };
        self.keep(id, path, &value);
        Ok(Some((path, value)))
    }

    fn keep(&mut self, id: KeyId, path: PathIndex, value: &Value) {
        // What was numbered in memory stands nowhere else.
        if self.by_id.len() >= CACHED_MAX && !self.in_memory {
            self.by_key.clear();
            self.by_id.clear();
        }
        self.by_key.insert((path, value.clone()), id);
        self.by_id.insert(id, (path, value.clone()));
    }
}
