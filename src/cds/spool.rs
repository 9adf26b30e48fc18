//! What a large unit did to rows, kept on disk until all of it is known: per row its image before the unit, and which keys it gained
//! and lost since.
//!
//! A large unit goes through the data store in chunks, and what each chunk gained and lost is composed with what the chunks before it
//! did. So at the end there is one net event per row, whatever the chunks were (R7).

use super::CdsError;
use super::keys::KeyId;
use super::scope::{Delta, Touched};
use crate::base::limits::UNIT_CHUNK_BYTES;
use crate::dx::codec;
use crate::model::dock::TableIndex;
use crate::model::keycode;
use crate::model::value::{Row, RowKey, Value};
use crate::store::scratch::Scratch;
use rusqlite::{OptionalExtension, params};
use std::cell::Cell;
use std::path::Path;

const TABLES: &str = "
CREATE TABLE event(tbl INTEGER NOT NULL, key BLOB NOT NULL, touched INTEGER NOT NULL, walked INTEGER NOT NULL, before BLOB, gained BLOB,
                   lost BLOB, PRIMARY KEY(tbl, key)) WITHOUT ROWID;
CREATE TABLE asked(search INTEGER NOT NULL, place BLOB NOT NULL, PRIMARY KEY(search, place)) WITHOUT ROWID;";

/// Rows that are read from the spool at once.
const PAGE_ROWS: i64 = 500;

/// The open spool of one unit.
#[derive(Debug)]
pub(crate) struct EventSpool {
    scratch: Scratch,
    searches: Cell<i64>,
}

/// What the unit did to one row.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Spooled {
    pub(crate) key: RowKey,
    /// Whether the unit changed the row itself, or a window passed it.
    pub(crate) touched: bool,
    /// For a touched row: what it was.
    pub(crate) before: Option<Row>,
    /// Keys that it has only after the unit, sorted.
    pub(crate) gained: Vec<KeyId>,
    /// Keys that it had only before the unit, sorted.
    pub(crate) lost: Vec<KeyId>,
}

impl EventSpool {
    /// Makes an empty spool at `path`.
    pub(crate) fn create(path: &Path) -> Result<EventSpool, CdsError> {
        let sql = |source| CdsError::Sql { path: path.to_owned(), what: "make a scratch file", source };
        Ok(EventSpool { scratch: Scratch::create(path, TABLES).map_err(sql)?, searches: Cell::new(0) })
    }

    /// Adds what a chunk did to a row; `touched` if the chunk changed the row itself.
    pub(crate) fn add(&self, table: TableIndex, key: &RowKey, touched: Option<&Touched>, delta: &Delta) -> Result<(), CdsError> {
        let (table, place) = (table as i64, keycode::encode(key));
        let known = self
            .scratch
            .sql(|scratch| {
                scratch
                    .prepare_cached("SELECT gained, lost, touched FROM event WHERE tbl = ?1 AND key = ?2")?
                    .query_row(params![table, place], |row| Ok((numbers(row.get_ref(0)?)?, numbers(row.get_ref(1)?)?, row.get(2)?)))
                    .optional()
            })
            .map_err(self.sql())?;
        let is_known = known.is_some();
        let (gained, lost, was_touched): (Vec<KeyId>, Vec<KeyId>, bool) = known.unwrap_or_default();
        let (gained, lost) = compose((&gained, &lost), (&delta.gained, &delta.lost));
        let (gained, lost) = (bytes(&gained), bytes(&lost));
        // A row is touched in one chunk; until then it is what it was before the unit.
        let before = touched.filter(|_| !was_touched).and_then(|touched| touched.before.as_ref());
        let image = before.map(|row| codec::encode("row", row)).transpose()?;
        let is_touched = touched.is_some();
        self.scratch
            .sql(|scratch| {
                if is_known {
                    scratch
                        .prepare_cached(
                            "UPDATE event SET touched = max(touched, ?3), before = ifnull(before, ?4), gained = ?5, lost = ?6
                             WHERE tbl = ?1 AND key = ?2",
                        )?
                        .execute(params![table, place, is_touched, image, gained, lost])
                } else {
                    scratch
                        .prepare_cached(
                            "INSERT INTO event(tbl, key, touched, walked, before, gained, lost) VALUES(?1, ?2, ?3, 0, ?4, ?5, ?6)",
                        )?
                        .execute(params![table, place, is_touched, image, gained, lost])
                }
            })
            .map_err(self.sql())?;
        Ok(())
    }

    /// Notes that a row holds a key that some node gained or lost.
    pub(crate) fn add_walked(&self, table: TableIndex, key: &RowKey) -> Result<(), CdsError> {
        self.scratch
            .sql(|scratch| {
                scratch
                    .prepare_cached(
                        "INSERT INTO event(tbl, key, touched, walked) VALUES(?1, ?2, 0, 1) ON CONFLICT(tbl, key) DO UPDATE SET walked = 1",
                    )?
                    .execute(params![table as i64, keycode::encode(key)])
            })
            .map_err(self.sql())?;
        Ok(())
    }

    /// Returns the number of a search whose places must not repeat.
    pub(crate) fn begin_search(&self) -> i64 {
        self.searches.set(self.searches.get() + 1);
        self.searches.get()
    }

    /// Returns whether a search comes to a place for the first time.
    pub(crate) fn is_first(&self, search: i64, place: &[Value]) -> Result<bool, CdsError> {
        let added = self.scratch.sql(|scratch| {
            scratch
                .prepare_cached("INSERT OR IGNORE INTO asked(search, place) VALUES(?1, ?2)")?
                .execute(params![search, keycode::encode(place)])
        });
        Ok(added.map_err(self.sql())? == 1)
    }

    /// Forgets the searches: they are over.
    pub(crate) fn end_searches(&self) -> Result<(), CdsError> {
        self.scratch.sql(|scratch| scratch.execute("DELETE FROM asked", [])).map_err(self.sql())?;
        Ok(())
    }

    /// Calls `each` with every row of a table, in the order of keys.
    pub(crate) fn rows(&self, table: TableIndex, mut each: impl FnMut(Spooled) -> Result<(), CdsError>) -> Result<(), CdsError> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self.page(table, after.as_deref())?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            for (place, mut row) in page {
                row.key = keycode::decode(&place).ok_or_else(|| CdsError::Inconsistent { what: "a spooled key".to_owned() })?;
                each(row)?;
            }
        }
    }

    fn page(&self, table: TableIndex, after: Option<&[u8]>) -> Result<Vec<(Vec<u8>, Spooled)>, CdsError> {
        // An empty blob sorts before every key.
        let after = after.unwrap_or_default();
        let read = self.scratch.sql(|scratch| {
            let mut statement = scratch.prepare_cached(
                "SELECT key, touched, before, gained, lost FROM event WHERE tbl = ?1 AND key > ?2
                 AND (touched OR walked OR length(gained) > 0 OR length(lost) > 0) ORDER BY key LIMIT ?3",
            )?;
            let mut rows = statement.query(params![table as i64, after, PAGE_ROWS])?;
            let mut page: Vec<(Vec<u8>, Option<Vec<u8>>, Spooled)> = Vec::new();
            let mut bytes = 0;
            while let Some(row) = rows.next()? {
                let spooled = Spooled {
                    touched: row.get(1)?,
                    gained: numbers(row.get_ref(3)?)?,
                    lost: numbers(row.get_ref(4)?)?,
                    ..Spooled::default()
                };
                let before: Option<Vec<u8>> = row.get(2)?;
                bytes += before.as_ref().map_or(0, Vec::len);
                page.push((row.get(0)?, before, spooled));
                if bytes > UNIT_CHUNK_BYTES {
                    break;
                }
            }
            Ok(page)
        });
        let decoded = |(place, before, row): (Vec<u8>, Option<Vec<u8>>, Spooled)| {
            let before = before.map(|image| codec::decode::<Row>("row", &image)).transpose()?;
            Ok((place, Spooled { before, ..row }))
        };
        read.map_err(self.sql())?.into_iter().map(decoded).collect()
    }

    fn sql(&self) -> impl FnOnce(rusqlite::Error) -> CdsError {
        let path = self.scratch.path().to_owned();
        move |source| CdsError::Sql { path, what: "use a scratch file", source }
    }
}

/// Returns what a set gained and lost by two changes, one after the other.
fn compose(first: (&[KeyId], &[KeyId]), second: (&[KeyId], &[KeyId])) -> (Vec<KeyId>, Vec<KeyId>) {
    let without =
        |one: &[KeyId], other: &[KeyId]| -> Vec<KeyId> { one.iter().filter(|key| other.binary_search(key).is_err()).copied().collect() };
    let (mut gained, mut lost) = (without(first.0, second.1), without(first.1, second.0));
    gained.extend(without(second.0, first.1));
    lost.extend(without(second.1, first.0));
    gained.sort_unstable();
    lost.sort_unstable();
    (gained, lost)
}

fn bytes(keys: &[KeyId]) -> Vec<u8> {
    keys.iter().flat_map(|key| key.to_le_bytes()).collect()
}

fn numbers(value: rusqlite::types::ValueRef<'_>) -> rusqlite::Result<Vec<KeyId>> {
    let bytes = value.as_blob_or_null()?.unwrap_or_default();
    Ok(bytes.chunks_exact(8).filter_map(|chunk| chunk.first_chunk().copied()).map(KeyId::from_le_bytes).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r7_changes_of_a_key_set_compose() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..2_000 {
            let set = |rng: &mut fastrand::Rng| (0..6).filter(|_| rng.bool()).collect::<Vec<KeyId>>();
            let without = |one: &[KeyId], other: &[KeyId]| one.iter().filter(|key| !other.contains(key)).copied().collect::<Vec<_>>();
            let states: Vec<Vec<KeyId>> = (0..5).map(|_| set(&mut rng)).collect();
            let mut all = (Vec::new(), Vec::new());
            for step in states.windows(2) {
                let (gained, lost) = (without(&step[1], &step[0]), without(&step[0], &step[1]));
                all = compose((&all.0, &all.1), (&gained, &lost));
            }
            assert_eq!(all, (without(&states[4], &states[0]), without(&states[0], &states[4])), "{states:?}");
        }
    }
}
