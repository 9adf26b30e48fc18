//! By which key each node came in last, in `sessions.db`.
//!
//! Which key is whose stands in the server database. A restored one may not know nodes that were let in since the copy was made, and they
//! would have to be let in again, one by one; so what was seen of them is kept beside it, as the rest of what nodes have done.

use crate::base::ids::NodeName;
use crate::docking::sessions::{SessionsDb, SessionsError};
use crate::trust::keys::{KEY_BYTES, PublicKey};
use rusqlite::params;

/// Table of this file.
pub(super) const LAYOUT: &str = "CREATE TABLE node_key(node TEXT PRIMARY KEY, key BLOB NOT NULL, since INTEGER NOT NULL) WITHOUT ROWID;";

/// A key by which a node came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenKey {
    /// The node.
    pub node: NodeName,
    /// The key.
    pub key: PublicKey,
    /// When it first came in by it, in seconds since 1970.
    pub since: i64,
}

impl SessionsDb {
    /// Notes the key by which a node comes in. One that is known already is not written again.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn note_key(&self, node: &NodeName, key: &PublicKey, now: i64) -> Result<(), SessionsError> {
        let sql = "INSERT INTO node_key(node, key, since) VALUES (?1, ?2, ?3)
                   ON CONFLICT(node) DO UPDATE SET key = ?2, since = ?3 WHERE key <> ?2";
        self.connection()
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(params![node.as_str(), &key.0[..], now]))
            .map(drop)
            .map_err(|source| self.error("write key to", source))
    }

    /// Forgets the key of a node that is deleted.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn forget_key(&self, node: &NodeName) -> Result<(), SessionsError> {
        let forgotten = self.connection().execute("DELETE FROM node_key WHERE node = ?", [node.as_str()]);
        forgotten.map(drop).map_err(|source| self.error("write key to", source))
    }

    /// Returns what is known of all nodes.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn keys(&self) -> Result<Vec<SeenKey>, SessionsError> {
        let read = || -> rusqlite::Result<Vec<SeenKey>> {
            let mut statement = self.connection().prepare("SELECT node, key, since FROM node_key ORDER BY node")?;
            let rows = statement.query_map([], |row| {
                let name: String = row.get(0)?;
                let node = name
                    .parse()
                    .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error)))?;
                Ok(SeenKey { node, key: PublicKey(row.get::<_, [u8; KEY_BYTES]>(1)?), since: row.get(2)? })
            })?;
            rows.collect()
        };
        read().map_err(|source: rusqlite::Error| self.error("read keys from", source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_key_of_each_node_is_known_since_it_was_first_seen() {
        let home = tempfile::tempdir().unwrap();
        let database = SessionsDb::open(&home.path().join("sessions.db")).unwrap();
        let (anna, bert): (NodeName, NodeName) = ("ANNA".parse().unwrap(), "BERT".parse().unwrap());
        for (node, key, now) in [(&anna, 1, 10), (&bert, 2, 11), (&anna, 1, 20), (&bert, 3, 21)] {
            database.note_key(node, &PublicKey([key; 32]), now).unwrap();
        }
        let seen = |node: &NodeName, key, since| SeenKey { node: node.clone(), key: PublicKey([key; 32]), since };
        assert_eq!(database.keys().unwrap(), [seen(&anna, 1, 10), seen(&bert, 3, 21)]);
        database.forget_key(&anna).unwrap();
        assert_eq!(database.keys().unwrap(), [seen(&bert, 3, 21)]);
    }
}
