//! Junction counts: per value and key the number of source rows that derive it, and what a unit does to them.
//!
//! The stored tables hold the state before the unit until it is written; the overlay holds what the unit changed. So
//! both the set before and the set after can be asked for at any time.

use super::scope::When;
use super::{Cds, CdsError, keys::KeyId};
use crate::model::value::Value;
use crate::rules::graph::JunctionIndex;
use crate::store::sqlite::SqlValue;
use rusqlite::{OptionalExtension, params};
use std::collections::HashMap;

/// Keys that appeared and vanished at one value of a junction.
#[derive(Debug, Default, Clone)]
pub(crate) struct Transition {
    pub(crate) gained: Vec<KeyId>,
    pub(crate) lost: Vec<KeyId>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    stored: i64,
    now: i64,
}

/// What one unit changed in the counts.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    changed: HashMap<(JunctionIndex, Vec<Value>), HashMap<KeyId, Count>>,
}

/// Returns the folded values of a junction as the one value that its table stores.
pub(crate) fn target(values: &[Value]) -> Value {
    if let [single] = values {
        return single.clone();
    }
    let mut bytes = Vec::new();
    for value in values {
        let (tag, content): (u8, Vec<u8>) = match value {
            Value::Null => (0, Vec::new()),
            Value::Integer(integer) => (1, integer.to_be_bytes().to_vec()),
            Value::Real(real) => (2, real.to_bits().to_be_bytes().to_vec()),
            Value::Text(text) => (3, text.clone()),
            Value::Blob(blob) => (4, blob.clone()),
        };
        bytes.push(tag);
        bytes.extend((content.len() as u64).to_be_bytes());
        bytes.extend(content);
    }
    Value::Blob(bytes)
}

impl Overlay {
    /// Adds differences at one value and returns which keys appeared and vanished there.
    pub(crate) fn add(
        &mut self,
        cds: &Cds,
        junction: JunctionIndex,
        values: Vec<Value>,
        differences: HashMap<KeyId, i64>,
    ) -> Result<Transition, CdsError> {
        let stored_at = target(&values);
        let counts = self.changed.entry((junction, values)).or_default();
        let mut transition = Transition::default();
        for (key, difference) in differences {
            if difference == 0 {
                continue;
            }
            let count = match counts.get(&key) {
                Some(count) => *count,
                None => {
                    let stored = cds.stored_count(junction, &stored_at, key)?;
                    Count { stored, now: stored }
                }
            };
            let now = count.now + difference;
            if now < 0 {
                return Err(CdsError::Inconsistent { what: format!("junction {junction} at {stored_at} would count {now}") });
            }
            match (count.now, now) {
                (0, _) => transition.gained.push(key),
                (_, 0) => transition.lost.push(key),
                _ => {}
            }
            counts.insert(key, Count { stored: count.stored, now });
        }
        transition.gained.sort_unstable();
        transition.lost.sort_unstable();
        Ok(transition)
    }

    /// Returns the keys at a value before or after the unit.
    pub(crate) fn keys(&self, cds: &Cds, junction: JunctionIndex, values: &[Value], when: When) -> Result<Vec<KeyId>, CdsError> {
        let mut keys = cds.stored_keys(junction, &target(values))?;
        if when == When::After
            && let Some(changed) = self.changed.get(&(junction, values.to_vec()))
        {
            keys.retain(|key| changed.get(key).is_none_or(|count| count.now > 0));
            keys.extend(changed.iter().filter(|(_, count)| count.stored == 0 && count.now > 0).map(|(key, _)| *key));
            keys.sort_unstable();
        }
        Ok(keys)
    }

    /// Returns whether a key is held at a value before or after the unit.
    pub(crate) fn has(&self, cds: &Cds, junction: JunctionIndex, values: &[Value], key: KeyId, when: When) -> Result<bool, CdsError> {
        let changed = self.changed.get(&(junction, values.to_vec())).and_then(|changed| changed.get(&key));
        Ok(match (changed, when) {
            (Some(count), When::Before) => count.stored > 0,
            (Some(count), When::After) => count.now > 0,
            (None, _) => cds.stored_count(junction, &target(values), key)? > 0,
        })
    }

    /// Writes the changed counts, in key order.
    pub(crate) fn write(&self, cds: &Cds) -> Result<(), CdsError> {
        let mut changes: Vec<(JunctionIndex, Value, KeyId, Count)> = self
            .changed
            .iter()
            .flat_map(|((junction, values), counts)| {
                let stored_at = target(values);
                counts.iter().map(move |(key, count)| (*junction, stored_at.clone(), *key, *count))
            })
            .filter(|(_, _, _, count)| count.stored != count.now)
            .collect();
        changes.sort_unstable_by(|a, b| (a.0, &a.1, a.2).cmp(&(b.0, &b.1, b.2)));
        let sql = cds.sql("write counts");
        for (junction, stored_at, key, count) in changes {
            if count.now == 0 {
                cds.conn
                    .prepare_cached(&format!("DELETE FROM j{junction} WHERE target = ?1 AND key = ?2"))
                    .and_then(|mut statement| statement.execute(params![SqlValue(&stored_at), key]))
                    .map_err(&sql)?;
            } else {
                cds.conn
                    .prepare_cached(&format!(
                        "INSERT INTO j{junction}(target, key, n) VALUES(?1, ?2, ?3) ON CONFLICT(target, key) DO UPDATE SET n = excluded.n"
                    ))
                    .and_then(|mut statement| statement.execute(params![SqlValue(&stored_at), key, count.now]))
                    .map_err(&sql)?;
            }
        }
        Ok(())
    }
}

impl Cds {
    fn stored_count(&self, junction: JunctionIndex, stored_at: &Value, key: KeyId) -> Result<i64, CdsError> {
        let found = self
            .conn
            .prepare_cached(&format!("SELECT n FROM j{junction} WHERE target = ?1 AND key = ?2"))
            .and_then(|mut statement| statement.query_row(params![SqlValue(stored_at), key], |row| row.get(0)).optional())
            .map_err(self.sql("read a count"))?;
        Ok(found.unwrap_or(0))
    }

    fn stored_keys(&self, junction: JunctionIndex, stored_at: &Value) -> Result<Vec<KeyId>, CdsError> {
        let sql = self.sql("read the keys of a junction");
        let mut statement =
            self.conn.prepare_cached(&format!("SELECT key FROM j{junction} WHERE target = ?1 ORDER BY key")).map_err(&sql)?;
        let keys = statement.query_map(params![SqlValue(stored_at)], |row| row.get(0)).map_err(&sql)?;
        keys.collect::<rusqlite::Result<Vec<KeyId>>>().map_err(&sql)
    }
}
