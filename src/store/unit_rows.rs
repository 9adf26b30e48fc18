//! The rows of a unit that is larger than memory: the keys that it touched are kept sorted on disk, and what they came to is read chunk
//! by chunk in the snapshot of the unit.

use crate::base::limits::{UNIT_CHUNK_BYTES, UNIT_CHUNK_ROWS, UNIT_ROW_BYTES_MAX, UNIT_TOUCHED_ROWS_MAX};
use crate::model::keycode;
use crate::model::value::{RowKey, Value};
use crate::store::log::{Catalogue, Live, NetChange};
use crate::store::scratch::Scratch;
use crate::store::sqlite::{ServerDatabase, StoreError};
use rusqlite::params;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const TABLES: &str = "CREATE TABLE touched(tbl INTEGER NOT NULL, key BLOB NOT NULL, PRIMARY KEY(tbl, key)) WITHOUT ROWID;";

/// How much of a unit is held in memory, and where the rest goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitMemory {
    /// A unit that touches more rows is a large one.
    pub rows: usize,
    /// A unit whose keys or rows have more bytes is a large one.
    pub bytes: usize,
    /// Rows of a chunk of a large unit.
    pub chunk_rows: usize,
    /// Bytes of rows after which a chunk ends.
    pub chunk_bytes: usize,
    /// Where the keys of a large unit may be kept while it is read.
    pub scratch: PathBuf,
}

impl UnitMemory {
    /// Returns the usual limits.
    pub fn usual(scratch: PathBuf) -> UnitMemory {
        UnitMemory {
            rows: UNIT_TOUCHED_ROWS_MAX,
            bytes: UNIT_ROW_BYTES_MAX,
            chunk_rows: UNIT_CHUNK_ROWS,
            chunk_bytes: UNIT_CHUNK_BYTES,
            scratch,
        }
    }
}

/// The keys that a unit touched, by lower-case table name; on disk when they are many.
#[derive(Debug, Default)]
pub(super) struct TouchedKeys {
    pub(super) held: BTreeMap<String, BTreeSet<RowKey>>,
    rows: usize,
    bytes: usize,
    spool: Option<KeySpool>,
}

#[derive(Debug)]
struct KeySpool {
    scratch: Scratch,
    /// Tables by number.
    names: Vec<String>,
}

impl TouchedKeys {
    /// Adds a key.
    pub(super) fn insert(&mut self, name: &str, key: RowKey, memory: Option<&UnitMemory>) -> Result<(), StoreError> {
        let bytes: usize = key.iter().map(Value::size).sum();
        let is_new = match self.held.get_mut(name) {
            Some(keys) => keys.insert(key),
            None => self.held.entry(name.to_owned()).or_default().insert(key),
        };
        if !is_new {
            return Ok(());
        }
        self.rows += 1;
        self.bytes += bytes;
        match memory {
            Some(memory) if self.rows > memory.rows || self.bytes > memory.bytes => self.put_aside(memory),
            _ => Ok(()),
        }
    }

    /// Whether keys were put aside.
    pub(super) fn is_spooled(&self) -> bool {
        self.spool.is_some()
    }

    fn put_aside(&mut self, memory: &UnitMemory) -> Result<(), StoreError> {
        let fault = scratch_fault(&memory.scratch);
        let spool = match &mut self.spool {
            Some(spool) => spool,
            place => {
                let scratch = Scratch::create(&memory.scratch, TABLES).map_err(&fault)?;
                place.insert(KeySpool { scratch, names: Vec::new() })
            }
        };
        for (name, keys) in std::mem::take(&mut self.held) {
            let number = spool.names.iter().position(|known| *known == name).unwrap_or_else(|| {
                spool.names.push(name);
                spool.names.len() - 1
            });
            let written = spool.scratch.sql(|scratch| {
                let mut insert = scratch.prepare_cached("INSERT OR IGNORE INTO touched(tbl, key) VALUES(?1, ?2)")?;
                keys.iter().try_for_each(|key| insert.execute(params![number as i64, keycode::encode(key)]).map(drop))
            });
            written.map_err(&fault)?;
        }
        (self.rows, self.bytes) = (0, 0);
        Ok(())
    }

    /// Returns the names of the tables, sorted; nothing can be added any more.
    fn close(&mut self, memory: &UnitMemory) -> Result<Vec<String>, StoreError> {
        let mut names: Vec<String> = match &self.spool {
            Some(_) => {
                self.put_aside(memory)?;
                self.spool.iter().flat_map(|spool| spool.names.iter().cloned()).collect()
            }
            None => self.held.keys().cloned().collect(),
        };
        names.sort();
        Ok(names)
    }

    /// Returns the keys of a table that follow `after`, at most `limit`.
    fn page(&self, name: &str, after: Option<&RowKey>, limit: usize, scratch: &Path) -> Result<VecDeque<RowKey>, StoreError> {
        let Some(spool) = &self.spool else {
            let keys = self.held.get(name).into_iter().flatten();
            return Ok(keys.skip_while(|key| after.is_some_and(|after| *key <= after)).take(limit).cloned().collect());
        };
        let Some(number) = spool.names.iter().position(|known| known == name) else { return Ok(VecDeque::new()) };
        let after = after.map(|key| keycode::encode(key)).unwrap_or_default();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let read = spool.scratch.sql(|scratch| {
            let mut select = scratch.prepare_cached("SELECT key FROM touched WHERE tbl = ?1 AND key > ?2 ORDER BY key LIMIT ?3")?;
            let keys = select.query_map(params![number as i64, after, limit], |row| row.get::<_, Vec<u8>>(0))?;
            keys.collect::<rusqlite::Result<Vec<_>>>()
        });
        let damaged = || StoreError::Damaged { path: scratch.to_owned(), what: "a key".to_owned(), reason: "it is no key".to_owned() };
        read.map_err(scratch_fault(scratch))?.iter().map(|bytes| keycode::decode(bytes).ok_or_else(damaged)).collect()
    }
}

fn scratch_fault(path: &Path) -> impl Fn(rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Sql { path: path.clone(), action: "keeping the keys of a large unit".to_owned(), source }
}

/// The rows of a large unit, chunk by chunk; of any other unit there are none here.
#[derive(Debug)]
pub struct UnitRows<'d> {
    database: &'d ServerDatabase,
    catalogue: Arc<Catalogue>,
    memory: Option<UnitMemory>,
    keys: TouchedKeys,
    /// Tables to come, the one being read first.
    tables: VecDeque<i64>,
    last: Option<RowKey>,
    waiting: VecDeque<RowKey>,
    /// A table with a row that no file can carry, and why.
    pub(super) stops: Option<(i64, String)>,
}

impl<'d> UnitRows<'d> {
    /// Returns the rows of a unit that is held in memory: none.
    pub(super) fn none(database: &'d ServerDatabase, catalogue: Arc<Catalogue>) -> UnitRows<'d> {
        let (keys, tables, waiting) = (TouchedKeys::default(), VecDeque::new(), VecDeque::new());
        UnitRows { database, catalogue, memory: None, keys, tables, last: None, waiting, stops: None }
    }

    /// Returns the rows of a large unit; `is_left_out` says which tables are not read.
    pub(super) fn large(
        database: &'d ServerDatabase,
        catalogue: Arc<Catalogue>,
        mut keys: TouchedKeys,
        memory: &UnitMemory,
        is_left_out: impl Fn(i64) -> bool,
    ) -> Result<UnitRows<'d>, StoreError> {
        let names = keys.close(memory)?;
        let tables = names.iter().filter_map(|name| catalogue.active_id(name)).filter(|id| !is_left_out(*id)).collect();
        let (memory, waiting) = (Some(memory.clone()), VecDeque::new());
        Ok(UnitRows { database, catalogue, memory, keys, tables, last: None, waiting, stops: None })
    }

    /// Returns the next rows, in the order of tables and keys; `None` behind the last.
    ///
    /// # Errors
    /// [`StoreError::TableStops`] if a row is longer than a file can carry: the table is then marked as stopped and the whole unit has
    /// to be read again, without it. Otherwise a statement failed.
    pub fn next_chunk(&mut self) -> Result<Option<Vec<NetChange>>, StoreError> {
        let Some(memory) = &self.memory else { return Ok(None) };
        let catalogue = Arc::clone(&self.catalogue);
        let mut chunk = Vec::new();
        let mut bytes = 0;
        while let Some(id) = self.tables.front() {
            let Some(capture) = catalogue.capture(*id) else { break };
            let live = Live::of(capture);
            let name = capture.table.to_ascii_lowercase();
            loop {
                if self.waiting.is_empty() {
                    self.waiting = self.keys.page(&name, self.last.as_ref(), memory.chunk_rows, &memory.scratch)?;
                }
                let Some(key) = self.waiting.pop_front() else { break };
                self.last = Some(key.clone());
                let row = match live.row(self.database, &key)? {
                    Ok(row) => row,
                    Err(reason) => {
                        self.stops = Some((*id, reason.clone()));
                        return Err(StoreError::TableStops { table: capture.table.clone(), reason });
                    }
                };
                bytes += row.iter().flatten().chain(&key).map(Value::size).sum::<usize>();
                chunk.push(NetChange { table: capture.table.clone(), key, row });
                if chunk.len() >= memory.chunk_rows || bytes >= memory.chunk_bytes {
                    return Ok(Some(chunk));
                }
            }
            self.tables.pop_front();
            self.last = None;
        }
        Ok((!chunk.is_empty()).then_some(chunk))
    }
}
