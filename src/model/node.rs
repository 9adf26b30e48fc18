//! A registered node: one local database.

use crate::base::ids::{Incarnation, NodeName};
use crate::model::value::Value;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What the server database knows of a node. The Synchronization Manager validates against it (SR-11).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Whether it may call and gets files.
    pub state: NodeState,
    /// How often its stream began; its files carry the number.
    pub incarnation: Incarnation,
    /// The incarnation that its last extract began. Streams after that one began in band: their file 1 brings everything that the
    /// node sees, so a database of any incarnation from this one on can go on with them.
    pub extracted: Incarnation,
    /// Routing model; `None` = every rule.
    pub model: Option<String>,
    /// Values that the administrator set, by attribute name.
    pub attributes: BTreeMap<String, Vec<Value>>,
}

/// State of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Registered, never extracted: nothing is routed to it yet.
    Registered,
    /// Extracted; its stream runs.
    Active,
    /// Ended by the administrator: refused by the Synchronization Manager, nothing is routed to it.
    Disabled,
    /// Away for too long, or too much waited for it: its files are gone and nothing is routed to it until it comes back.
    Stale,
}

impl NodeState {
    /// Returns the state of that spelling.
    pub fn from_name(name: &str) -> Option<NodeState> {
        [NodeState::Registered, NodeState::Active, NodeState::Disabled, NodeState::Stale]
            .into_iter()
            .find(|state| state.to_string() == name)
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            NodeState::Registered => "registered",
            NodeState::Active => "active",
            NodeState::Disabled => "disabled",
            NodeState::Stale => "stale",
        })
    }
}
