//! Active nodes with the values of their attributes and their keys, as of the data store's position.
//!
//! The records are stored in `cds.db`; values and keys are derived from them and the data, in memory. When a row of a
//! table on the node side changes, only the nodes whose derivation used its join value are derived again.

use super::rows::pick;
use super::{Cds, CdsError, keys::KeyId};
use crate::base::ids::{Incarnation, NodeName};
use crate::model::dock::{AttributeSource, NodeHop, TableIndex};
use crate::model::node::{Node, NodeState};
use crate::model::value::{Collation, Row, Value};
use crate::rules::graph::column_collation;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A join value that some node's derivation asked for: table, join columns, folded values.
pub(crate) type Use = (TableIndex, Vec<usize>, Vec<Value>);

/// One active node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeScope {
    /// What the administrator set.
    pub node: Node,
    /// Per attribute of the dock its values, sorted.
    pub values: Vec<Vec<Value>>,
    /// Its keys, sorted.
    pub(crate) keys: Vec<KeyId>,
    uses: BTreeSet<Use>,
}

impl NodeScope {
    /// Returns a node of which nothing but its attributes' values matters.
    pub(crate) fn of_values(node: &Node, values: &[Vec<Value>]) -> NodeScope {
        NodeScope { node: node.clone(), values: values.to_vec(), keys: Vec::new(), uses: BTreeSet::new() }
    }

    /// Returns a node of a model that has no attribute at all: it sees what every node of that model sees.
    pub(crate) fn nobody(model: Option<&str>) -> NodeScope {
        let node = Node {
            name: NodeName::nobody(),
            state: NodeState::Active,
            incarnation: Incarnation(0),
            extracted: Incarnation(0),
            model: model.map(str::to_owned),
            attributes: BTreeMap::new(),
        };
        NodeScope { node, values: Vec::new(), keys: Vec::new(), uses: BTreeSet::new() }
    }
}

/// The active nodes.
#[derive(Debug, Clone, Default)]
pub struct NodeIndex {
    nodes: BTreeMap<NodeName, NodeScope>,
    by_key: HashMap<KeyId, BTreeSet<NodeName>>,
    by_use: HashMap<Use, BTreeSet<NodeName>>,
}

impl NodeIndex {
    /// Returns a node.
    pub fn get(&self, name: &NodeName) -> Option<&NodeScope> {
        self.nodes.get(name)
    }

    /// Returns every active node by name.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeName, &NodeScope)> {
        self.nodes.iter()
    }

    /// Returns the nodes that hold a key.
    pub(crate) fn holders(&self, key: KeyId) -> impl Iterator<Item = &NodeName> {
        self.by_key.get(&key).into_iter().flatten()
    }

    pub(crate) fn insert(&mut self, scope: NodeScope) {
        let name = scope.node.name.clone();
        self.remove(&name);
        for key in &scope.keys {
            self.by_key.entry(*key).or_default().insert(name.clone());
        }
        for used in &scope.uses {
            self.by_use.entry(used.clone()).or_default().insert(name.clone());
        }
        self.nodes.insert(name, scope);
    }

    pub(crate) fn remove(&mut self, name: &NodeName) -> Option<NodeScope> {
        let scope = self.nodes.remove(name)?;
        for key in &scope.keys {
            if let Some(holders) = self.by_key.get_mut(key) {
                holders.remove(name);
                if holders.is_empty() {
                    self.by_key.remove(key);
                }
            }
        }
        for used in &scope.uses {
            if let Some(users) = self.by_use.get_mut(used) {
                users.remove(name);
                if users.is_empty() {
                    self.by_use.remove(used);
                }
            }
        }
        Some(scope)
    }

    /// Adds the nodes whose derivation asked for rows like this one.
    pub(crate) fn users_of(&self, cds: &Cds, table: TableIndex, row: &Row, found: &mut BTreeSet<NodeName>) {
        for attribute in &cds.dock.attributes {
            let AttributeSource::Derived { hops, .. } = &attribute.source else { continue };
            for hop in hops.iter().filter(|hop| hop.hop.table == table) {
                let used = (table, hop.hop.join.clone(), folded_join(cds, hop, &pick(row, &hop.hop.join)));
                found.extend(self.by_use.get(&used).into_iter().flatten().cloned());
            }
        }
    }
}

/// What a unit does to the nodes. The rest of the nodes is not looked at, so a unit costs nothing for nodes that it does
/// not concern.
#[derive(Debug, Default)]
pub(crate) struct NodeChanges {
    /// Nodes that are new or derived again.
    pub(crate) set: NodeIndex,
    /// Nodes that are no longer active.
    pub(crate) gone: BTreeSet<NodeName>,
}

impl NodeChanges {
    /// Carries the changes out, at the unit's commit.
    pub(crate) fn apply(self, nodes: &mut NodeIndex) {
        for name in &self.gone {
            nodes.remove(name);
        }
        for scope in self.set.nodes.into_values() {
            nodes.insert(scope);
        }
    }
}

fn folded_join(cds: &Cds, hop: &NodeHop, values: &[Value]) -> Vec<Value> {
    hop.hop.join.iter().zip(values).map(|(column, value)| value.fold(column_collation(&cds.dock, hop.hop.table, *column))).collect()
}

impl Cds {
    /// Derives the values of a node's attributes from the data as it is now, and the join values that were asked for on the way.
    pub(crate) fn node_values(&self, node: &Node) -> Result<(Vec<Vec<Value>>, BTreeSet<Use>), CdsError> {
        let mut values: Vec<Vec<Value>> = Vec::with_capacity(self.dock.attributes.len());
        let mut uses = BTreeSet::new();
        for attribute in &self.dock.attributes {
            let mut set: BTreeSet<Value> = match &attribute.source {
                AttributeSource::Given { .. } => node.attributes.get(&attribute.name).into_iter().flatten().cloned().collect(),
                AttributeSource::Derived { from, .. } => values.get(*from).into_iter().flatten().cloned().collect(),
            };
            if let AttributeSource::Derived { hops, .. } = &attribute.source {
                for hop in hops {
                    set = self.follow_hop(hop, set, &mut uses)?;
                }
            }
            set.remove(&Value::Null);
            values.push(set.into_iter().collect());
        }
        Ok((values, uses))
    }

    /// Derives the values and keys of a node from the data as it is now.
    pub(crate) fn derive_node(&self, node: &Node) -> Result<NodeScope, CdsError> {
        let (values, uses) = self.node_values(node)?;
        let mut keys = Vec::new();
        for (path, declared) in self.graph.paths_of_model(&self.dock, node.model.as_deref()) {
            match declared.attribute {
                None => keys.push(self.intern_key(path, &Value::Null)?),
                Some(attribute) => {
                    for value in values.get(attribute).into_iter().flatten() {
                        keys.push(self.intern_key(path, &value.fold(declared.collation))?);
                    }
                }
            }
        }
        keys.sort_unstable();
        keys.dedup();
        Ok(NodeScope { node: node.clone(), values, keys, uses })
    }

    fn follow_hop(&self, hop: &NodeHop, start: BTreeSet<Value>, uses: &mut BTreeSet<Use>) -> Result<BTreeSet<Value>, CdsError> {
        let columns: Vec<(usize, Collation)> =
            hop.hop.join.iter().map(|column| (*column, column_collation(&self.dock, hop.hop.table, *column))).collect();
        let mut found = if hop.recursive { start.clone() } else { BTreeSet::new() };
        let mut waiting: Vec<Value> = start.into_iter().collect();
        let mut asked = BTreeSet::new();
        while let Some(value) = waiting.pop() {
            let join = vec![value];
            let folded = folded_join(self, hop, &join);
            if !asked.insert(folded.clone()) {
                continue;
            }
            uses.insert((hop.hop.table, hop.hop.join.clone(), folded));
            for row in self.rows_where(hop.hop.table, &columns, &join)? {
                let fits = hop.hop.filters.iter().all(|(column, wanted)| {
                    let collation = column_collation(&self.dock, hop.hop.table, *column);
                    row.get(*column).is_some_and(|value| value.fold(collation) == wanted.fold(collation))
                });
                if !fits {
                    continue;
                }
                for out in pick(&row, &hop.hop.out).into_iter().filter(|value| !value.is_null()) {
                    if found.insert(out.clone()) && hop.recursive {
                        waiting.push(out);
                    }
                }
            }
        }
        Ok(found)
    }

    /// Derives every stored active node.
    pub(crate) fn load_nodes(&self) -> Result<NodeIndex, CdsError> {
        let sql = self.sql("read nodes");
        let records: Vec<(String, String)> = self
            .conn
            .prepare("SELECT name, record FROM node ORDER BY name")
            .and_then(|mut statement| statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
            .map_err(&sql)?;
        let mut index = NodeIndex::default();
        for (name, record) in records {
            let node: Node =
                serde_json::from_str(&record).map_err(|_| CdsError::State { path: self.path.clone(), name: format!("node {name}") })?;
            index.insert(self.derive_node(&node)?);
        }
        Ok(index)
    }
}
