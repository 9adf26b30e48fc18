//! Registered nodes in the server database (`dock_node`, `dock_node_attribute`).
//!
//! Every change of a node is committed together with its control in the log (R28), so routing sees it at its place among the rows.

use crate::base::ids::{Incarnation, NodeName};
use crate::model::node::{Node, NodeState};
use crate::model::value::Value;
use crate::store::control::Control;
use crate::store::sqlite::{ServerDatabase, SqlValue, StoreError, quote_name, value_of};
use rusqlite::OptionalExtension;
use std::collections::BTreeMap;

/// A writing transaction on the nodes.
#[derive(Debug)]
pub struct NodeWriter<'a> {
    database: &'a ServerDatabase,
}

impl ServerDatabase {
    /// Returns every node, sorted by name.
    ///
    /// # Errors
    /// Nothing is installed, a row is damaged, or a statement failed.
    pub fn nodes(&self) -> Result<Vec<Node>, StoreError> {
        self.require_installed()?;
        self.read_nodes(None)
    }

    /// Returns one node; `None` if there is none of that name.
    ///
    /// # Errors
    /// As [`ServerDatabase::nodes`].
    pub fn node(&self, name: &NodeName) -> Result<Option<Node>, StoreError> {
        self.require_installed()?;
        Ok(self.read_nodes(Some(name))?.into_iter().next())
    }

    /// Runs a change of nodes in one transaction, which is rolled back if it fails.
    ///
    /// # Errors
    /// Those of `change`; nothing is installed; or a statement failed.
    pub fn change_nodes<T, E: From<StoreError>>(&self, change: impl FnOnce(&NodeWriter<'_>) -> Result<T, E>) -> Result<T, E> {
        self.require_installed()?;
        let transaction = self.begin_write("changing nodes")?;
        let result = change(&NodeWriter { database: self })?;
        transaction.commit().map_err(self.fault("changing nodes"))?;
        Ok(result)
    }

    /// Returns a writer within a transaction of the caller.
    pub(crate) fn node_writer(&self) -> NodeWriter<'_> {
        NodeWriter { database: self }
    }

    fn read_nodes(&self, only: Option<&NodeName>) -> Result<Vec<Node>, StoreError> {
        let fault = || self.fault("reading nodes");
        let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
        let only = only.map(NodeName::as_str);
        let mut statement = self
            .connection
            .prepare_cached("SELECT name, state, incarnation, model, extracted FROM main.dock_node WHERE ?1 IS NULL OR name = ?1")
            .map_err(fault())?;
        let mut rows = statement.query([only]).map_err(fault())?;
        while let Some(row) = rows.next().map_err(fault())? {
            let name: String = row.get(0).map_err(fault())?;
            let damaged = |reason: String| StoreError::Damaged { path: self.path.clone(), what: format!("node {name}"), reason };
            let state: String = row.get(1).map_err(fault())?;
            let node = Node {
                name: name.parse().map_err(|error: crate::base::ids::IdError| damaged(error.to_string()))?,
                state: NodeState::from_name(&state).ok_or_else(|| damaged(format!("`{state}` is no state")))?,
                incarnation: Incarnation(row.get(2).map_err(fault())?),
                extracted: Incarnation(row.get(4).map_err(fault())?),
                model: row.get(3).map_err(fault())?,
                attributes: BTreeMap::new(),
            };
            nodes.insert(name, node);
        }
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT node, name, value FROM main.dock_node_attribute WHERE ?1 IS NULL OR node = ?1 ORDER BY node, name, position",
            )
            .map_err(fault())?;
        let mut rows = statement.query([only]).map_err(fault())?;
        while let Some(row) = rows.next().map_err(fault())? {
            if let Some(node) = nodes.get_mut(&row.get::<_, String>(0).map_err(fault())?) {
                let value = value_of(row.get_ref(2).map_err(fault())?);
                node.attributes.entry(row.get(1).map_err(fault())?).or_default().push(value);
            }
        }
        Ok(nodes.into_values().collect())
    }

    /// Returns the nodes that have a limit of silence of their own, in days.
    ///
    /// # Errors
    /// A row is damaged, or a statement failed.
    pub fn stale_after(&self) -> Result<BTreeMap<NodeName, u32>, StoreError> {
        self.require_installed()?;
        let fault = || self.fault("reading dock_meta");
        let mut statement = self
            .connection
            .prepare_cached("SELECT substr(name, ?2), value FROM main.dock_meta WHERE substr(name, 1, ?2 - 1) = ?1")
            .map_err(fault())?;
        let place = i64::try_from(STALE_AFTER.len() + 1).unwrap_or(i64::MAX);
        let rows = statement.query_map((STALE_AFTER, place), |row| Ok((row.get(0)?, row.get(1)?))).map_err(fault())?;
        let mut limits = BTreeMap::new();
        for row in rows {
            let (name, days): (String, String) = row.map_err(fault())?;
            let damaged =
                |reason: String| StoreError::Damaged { path: self.path.clone(), what: format!("dock_meta `{STALE_AFTER}{name}`"), reason };
            let days = days.parse().map_err(|_| damaged(format!("`{days}` is no number of days")))?;
            limits.insert(name.parse().map_err(|error: crate::base::ids::IdError| damaged(error.to_string()))?, days);
        }
        Ok(limits)
    }

    /// Returns whether a column holds a value, by the column's own comparison.
    ///
    /// # Errors
    /// A statement failed.
    pub fn value_exists(&self, table: &str, column: &str, value: &Value) -> Result<bool, StoreError> {
        let sql = format!("SELECT 1 FROM main.{} WHERE {} = ?1 LIMIT 1", quote_name(table), quote_name(column));
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut statement| statement.query_row([SqlValue(value)], |_| Ok(())).optional())
            .map(|found| found.is_some())
            .map_err(self.fault(&format!("looking for a value in {table}.{column}")))
    }
}

impl NodeWriter<'_> {
    /// Returns the database, for reading within the transaction.
    pub fn database(&self) -> &ServerDatabase {
        self.database
    }

    /// Returns the incarnation that a node of that name had when it was deleted, 0 if there was none. A node that is registered
    /// again goes on from there, so that files of the earlier one are not taken for its own.
    ///
    /// # Errors
    /// A statement failed.
    pub fn last_incarnation(&self, name: &NodeName) -> Result<Incarnation, StoreError> {
        let remembered = last_incarnation_name(name);
        let found = self
            .database
            .connection
            .query_row("SELECT value FROM main.dock_meta WHERE name = ?1", [&remembered], |row| row.get::<_, String>(0))
            .optional()
            .map_err(self.database.fault("reading dock_meta"))?;
        let Some(text) = found else { return Ok(Incarnation(0)) };
        // Not 0 in its place: files of the earlier node would be taken for those of the new one.
        text.parse().map(Incarnation).map_err(|_| StoreError::Damaged {
            path: self.database.path.clone(),
            what: format!("dock_meta `{remembered}`"),
            reason: format!("`{text}` is no incarnation"),
        })
    }

    /// Writes the full state of a node, new or not, with its control.
    ///
    /// # Errors
    /// A statement failed.
    pub fn put(&self, node: &Node) -> Result<(), StoreError> {
        let action = format!("writing node {}", node.name);
        let fault = || self.database.fault(&action);
        let connection = &self.database.connection;
        let name = node.name.as_str();
        let before = self.database.node(&node.name)?;
        let row = (name, node.state.to_string(), node.incarnation.0, &node.model, node.extracted.0);
        let updated = connection
            .execute("UPDATE main.dock_node SET state = ?2, incarnation = ?3, model = ?4, extracted = ?5 WHERE name = ?1", row.clone())
            .map_err(fault())?;
        if updated == 0 {
            connection
                .execute(
                    "INSERT INTO main.dock_node(name, state, incarnation, model, extracted, created_at) VALUES (?1, ?2, ?3, ?4, ?5, strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))",
                    row,
                )
                .map_err(fault())?;
        }
        connection.execute("DELETE FROM main.dock_node_attribute WHERE node = ?1", [name]).map_err(fault())?;
        for (attribute, values) in &node.attributes {
            for (position, value) in values.iter().enumerate() {
                connection
                    .execute(
                        "INSERT INTO main.dock_node_attribute(node, name, position, value) VALUES (?1, ?2, ?3, ?4)",
                        (name, attribute, position as i64, SqlValue(value)),
                    )
                    .map_err(fault())?;
            }
        }
        self.database.log_control(&Control::Node { node: node.clone(), before })
    }

    /// Sets after how many days of silence a node is stale; `None` = as the settings say. Nothing is routed by it, so it is no
    /// control.
    ///
    /// # Errors
    /// [`StoreError::UnknownNode`], or a statement failed.
    pub fn set_stale_after(&self, name: &NodeName, days: Option<u32>) -> Result<(), StoreError> {
        self.database.node(name)?.ok_or_else(|| StoreError::UnknownNode { name: name.clone() })?;
        self.put_meta(&format!("{STALE_AFTER}{name}"), days.map(|days| days.to_string()))
    }

    fn put_meta(&self, name: &str, value: Option<String>) -> Result<(), StoreError> {
        let fault = || self.database.fault("writing dock_meta");
        let connection = &self.database.connection;
        connection.execute("DELETE FROM main.dock_meta WHERE name = ?1", [name]).map_err(fault())?;
        if let Some(value) = value {
            connection.execute("INSERT INTO main.dock_meta(name, value) VALUES (?1, ?2)", [name, &value]).map_err(fault())?;
        }
        Ok(())
    }

    /// Deletes a node, with its control. Its last incarnation is remembered.
    ///
    /// # Errors
    /// [`StoreError::UnknownNode`], or a statement failed.
    pub fn delete(&self, name: &NodeName) -> Result<(), StoreError> {
        let action = format!("deleting node {name}");
        let fault = || self.database.fault(&action);
        let node = self.database.node(name)?.ok_or_else(|| StoreError::UnknownNode { name: name.clone() })?;
        let connection = &self.database.connection;
        connection.execute("DELETE FROM main.dock_node_attribute WHERE node = ?1", [name.as_str()]).map_err(fault())?;
        connection.execute("DELETE FROM main.dock_node WHERE name = ?1", [name.as_str()]).map_err(fault())?;
        self.database.forget_key(name)?;
        self.put_meta(&format!("{STALE_AFTER}{name}"), None)?;
        self.put_meta(&last_incarnation_name(name), Some(node.incarnation.0.to_string()))?;
        self.database.log_control(&Control::NodeDeleted { name: name.clone(), before: Some(node) })
    }
}

/// Beginning of the names in `dock_meta` under which a node's own limit of silence stands.
const STALE_AFTER: &str = "stale_after:";

fn last_incarnation_name(name: &NodeName) -> String {
    format!("last_incarnation:{name}")
}
