//! What travels in the log beside rows: every other input of routing, in commit order with the data (R28).
//!
//! A control is one log row (`tbl` 0, `op` `C`, `c1` the JSON of [`Control`]), written in the transaction of the change that
//! it tells of. So a Router that lags, or that runs again after a crash, sees the same inputs at the same places.

use crate::base::ids::{NodeName, Revision};
use crate::model::digest::BucketChoice;
use crate::model::node::Node;
use serde::{Deserialize, Serialize};

/// A log row that is not a change of a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// The full state of a node after any change of it: added, attributes set, started, disabled, enabled.
    ///
    /// The node's stream begins anew when it is active with an incarnation greater than the one known before.
    Node {
        /// What it is from here on.
        node: Node,
        /// What it was before; `None` if it is new. A data store that is rebuilt rolls nodes back by it (R26).
        before: Option<Node>,
    },
    /// The node was deleted.
    NodeDeleted {
        /// Its name.
        name: NodeName,
        /// What it was before.
        before: Option<Node>,
    },
    /// That definition is in force from here on; its text stands in `dock_definition`.
    Definition {
        /// Number of the definition.
        revision: Revision,
    },
    /// Tables are to be compared with the data store: what capture missed becomes part of the unit that holds this (R6).
    Reconcile {
        /// Names of the tables; empty = every captured table.
        tables: Vec<String>,
        /// Why, for people.
        reason: String,
    },
    /// A node is to compare itself with what it should see at this place (R42).
    Verify {
        /// The node.
        node: NodeName,
        /// Number of the question, drawn by who asks.
        id: u64,
        /// The buckets whose rows are listed; empty = the first round, over all tables.
        choice: Vec<BucketChoice>,
    },
    /// A day began, for time windows.
    Tick {
        /// Days since 1970-01-01.
        day: i64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::Incarnation;
    use crate::model::node::NodeState;
    use crate::model::value::Value;
    use std::collections::BTreeMap;

    #[test]
    fn r28_controls_survive_the_log() {
        let node = Node {
            name: "ANNA".parse().unwrap(),
            state: NodeState::Active,
            incarnation: Incarnation(3),
            extracted: Incarnation(2),
            model: Some("sales".into()),
            attributes: BTreeMap::from([("employee".to_owned(), vec![Value::Integer(1), Value::Text(vec![0xff, 0])])]),
        };
        let controls = [
            Control::Node { node: node.clone(), before: None },
            Control::NodeDeleted { name: "ANNA".parse().unwrap(), before: Some(node) },
            Control::Definition { revision: Revision(2) },
            Control::Reconcile { tables: vec!["Orders".into()], reason: "a trigger was missing".into() },
            Control::Tick { day: 20_000 },
            Control::Verify {
                node: "ANNA".parse().unwrap(),
                id: u64::MAX,
                choice: vec![BucketChoice { table: "t".into(), bucket_count: 4, buckets: vec![3] }],
            },
        ];
        for control in controls {
            let text = serde_json::to_string(&control).unwrap();
            assert_eq!(serde_json::from_str::<Control>(&text).unwrap(), control, "{text}");
        }
    }
}
