//! How nodes prove who they are (`dock_node_key`): the key that was let in, and the token that lets the next one in.
//!
//! A node has one key. A token lets in one key: the first that shows it takes the place of the node's key and from then on has the token for
//! itself, so that an enrolment that was cut off can be done again, and nobody else can use the token. Nothing is routed by this.

use crate::base::ids::NodeName;
use crate::model::node::NodeState;
use crate::store::sqlite::{ServerDatabase, StoreError};
use crate::trust::keys::{KEY_BYTES, PublicKey};
use crate::trust::token::Secret;
use rusqlite::OptionalExtension;

/// Name in `dock_meta` of the fingerprint of the server's authority.
const AUTHORITY: &str = "authority";

/// How one node proves itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeKey {
    /// Its key; `None` before it was ever let in.
    pub key: Option<PublicKey>,
    /// When that was, in seconds since 1970.
    pub enrolled_at: Option<i64>,
    /// Until when a token that nobody used yet may be used, in seconds since 1970.
    pub token_until: Option<i64>,
}

impl ServerDatabase {
    /// Returns the node that a key belongs to.
    ///
    /// # Errors
    /// Nothing is installed, a row is damaged, or a statement failed.
    pub fn key_holder(&self, key: &PublicKey) -> Result<Option<NodeName>, StoreError> {
        self.require_installed()?;
        let found: Option<String> = self
            .connection
            .prepare_cached("SELECT node FROM main.dock_node_key WHERE key = ?1")
            .and_then(|mut statement| statement.query_row([&key.0[..]], |row| row.get(0)).optional())
            .map_err(self.fault("looking for a key"))?;
        found.map(|name| self.named(&name)).transpose()
    }

    /// Returns how a node proves itself.
    ///
    /// # Errors
    /// As [`ServerDatabase::key_holder`].
    pub fn node_key(&self, node: &NodeName) -> Result<NodeKey, StoreError> {
        self.require_installed()?;
        let found = self
            .connection
            .prepare_cached(
                "SELECT key, enrolled_at, CASE WHEN token_key IS NULL THEN token_until END FROM main.dock_node_key WHERE node = ?1",
            )
            .and_then(|mut statement| {
                let read = |row: &rusqlite::Row<'_>| {
                    let key = row.get::<_, Option<[u8; KEY_BYTES]>>(0)?.map(PublicKey);
                    Ok(NodeKey { key, enrolled_at: row.get(1)?, token_until: row.get(2)? })
                };
                statement.query_row([node.as_str()], read).optional()
            })
            .map_err(self.fault("reading the key of a node"))?;
        Ok(found.unwrap_or_default())
    }

    /// Keeps a token for a node; one that was given before is good no more. `until` in seconds since 1970.
    ///
    /// # Errors
    /// [`StoreError::UnknownNode`], or a statement failed.
    pub fn keep_token(&self, node: &NodeName, secret: &Secret, until: i64) -> Result<(), StoreError> {
        let transaction = self.begin_write("keeping a token")?;
        self.node(node)?.ok_or_else(|| StoreError::UnknownNode { name: node.clone() })?;
        self.connection
            .execute(
                "INSERT INTO main.dock_node_key(node, token_hash, token_until) VALUES (?1, ?2, ?3)
                 ON CONFLICT (node) DO UPDATE SET token_hash = ?2, token_until = ?3, token_key = NULL",
                (node.as_str(), &secret.hash()[..], until),
            )
            .map_err(self.fault("keeping a token"))?;
        transaction.commit().map_err(self.fault("keeping a token"))
    }

    /// Lets a key in by a token; `None` if the token is unknown, has ended, or was used by another key, or its node is disabled.
    /// `now` in seconds since 1970.
    ///
    /// # Errors
    /// Nothing is installed, a row is damaged, or a statement failed.
    pub fn enrol(&self, secret: &Secret, key: &PublicKey, now: i64) -> Result<Option<NodeName>, StoreError> {
        self.require_installed()?;
        let fault = || self.fault("letting a node in");
        let transaction = self.begin_write("letting a node in")?;
        let found: Option<(String, i64, Option<[u8; KEY_BYTES]>)> = self
            .connection
            .query_row("SELECT node, token_until, token_key FROM main.dock_node_key WHERE token_hash = ?1", [&secret.hash()[..]], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .optional()
            .map_err(fault())?;
        let Some((name, until, used_by)) = found else { return Ok(None) };
        let name = self.named(&name)?;
        let is_free = used_by.is_none_or(|used_by| used_by == key.0);
        let is_wanted = self.node(&name)?.is_some_and(|node| node.state != NodeState::Disabled);
        // A key that another node has stays with that one: a folder that was copied makes no second node.
        let is_another = self.key_holder(key)?.is_some_and(|holder| holder != name);
        if now > until || !is_free || !is_wanted || is_another {
            return Ok(None);
        }
        self.connection
            .execute(
                "UPDATE main.dock_node_key SET key = ?2, enrolled_at = ?3, token_key = ?2 WHERE node = ?1",
                (name.as_str(), &key.0[..], now),
            )
            .map_err(fault())?;
        transaction.commit().map_err(fault())?;
        Ok(Some(name))
    }

    /// Writes back keys that were let in after this database was copied. Tokens of that copy are good no more: it may not know that they
    /// were used. Within a transaction of the caller.
    pub(super) fn put_keys_back(&self, keys: &[(NodeName, PublicKey, i64)]) -> Result<(), StoreError> {
        let fault = || self.fault("writing keys back");
        let forget = "UPDATE main.dock_node_key SET token_hash = NULL, token_until = NULL, token_key = NULL";
        self.connection.execute(forget, []).map_err(fault())?;
        let sql = "INSERT INTO main.dock_node_key(node, key, enrolled_at) SELECT name, ?2, ?3 FROM main.dock_node WHERE name = ?1
                   ON CONFLICT(node) DO UPDATE SET key = ?2, enrolled_at = ?3 WHERE enrolled_at IS NULL OR enrolled_at <= ?3";
        for (node, key, since) in keys {
            self.connection.execute(sql, (node.as_str(), &key.0[..], since)).map_err(fault())?;
        }
        Ok(())
    }

    /// Forgets key and token of a node that is deleted. Within a transaction of the caller.
    pub(super) fn forget_key(&self, node: &NodeName) -> Result<(), StoreError> {
        self.connection
            .execute("DELETE FROM main.dock_node_key WHERE node = ?1", [node.as_str()])
            .map(drop)
            .map_err(self.fault("forgetting the key of a node"))
    }

    /// Returns the fingerprint of the authority by which nodes know this server.
    ///
    /// # Errors
    /// Nothing is installed, or a statement failed.
    pub fn authority(&self) -> Result<Option<String>, StoreError> {
        self.require_installed()?;
        self.connection
            .query_row("SELECT value FROM main.dock_meta WHERE name = ?1", [AUTHORITY], |row| row.get(0))
            .optional()
            .map_err(self.fault("reading dock_meta"))
    }

    /// Keeps the fingerprint of the authority, if none is kept yet.
    ///
    /// # Errors
    /// A statement failed.
    pub fn keep_authority(&self, fingerprint: &str) -> Result<(), StoreError> {
        let sql = "INSERT INTO main.dock_meta(name, value) SELECT ?1, ?2 WHERE NOT EXISTS (SELECT 1 FROM main.dock_meta WHERE name = ?1)";
        self.connection.execute(sql, [AUTHORITY, fingerprint]).map(drop).map_err(self.fault("keeping the identity of the server"))
    }

    /// Forgets the authority and the keys that it has let in.
    ///
    /// # Errors
    /// A statement failed; nothing is forgotten then.
    pub fn forget_authority(&self) -> Result<(), StoreError> {
        let fault = || self.fault("forgetting the identity of the server");
        let transaction = self.begin_write("forgetting the identity of the server")?;
        self.connection.execute("DELETE FROM main.dock_meta WHERE name = ?1", [AUTHORITY]).map_err(fault())?;
        self.connection.execute("DELETE FROM main.dock_node_key", []).map_err(fault())?;
        transaction.commit().map_err(fault())
    }

    fn named(&self, name: &str) -> Result<NodeName, StoreError> {
        name.parse().map_err(|error: crate::base::ids::IdError| StoreError::Damaged {
            path: self.path.clone(),
            what: "dock_node_key".to_owned(),
            reason: error.to_string(),
        })
    }
}
