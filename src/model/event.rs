//! What the Transaction Processor tells the Transaction Router: net events of one unit, with keys (architecture 3.2).

use crate::base::ids::{Incarnation, NodeName, Revision, TxnId};
use crate::model::value::{Row, RowKey, Value};
use serde::{Deserialize, Serialize};

/// A visibility key: (rule path, value). The same number under two rules is two keys (R8).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ScopeKey {
    /// Name of the rule path, e.g. `Orders.own` or `Customers.ordered<Orders.own`.
    pub path: String,
    /// The node-side value, folded; NULL for `everyone`.
    pub value: Value,
}

/// A table as events and operations name it: never by position, so that two versions can meet (fault 31).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TableHeading {
    /// Name of the table.
    pub name: String,
    /// Names of the sent columns, in the order of the rows' values.
    pub columns: Vec<String>,
    /// Primary key, indices into `columns`.
    pub key: Vec<u16>,
}

/// Index of a key in [`UnitEvents::keys`].
pub type KeyIndex = u32;

/// Everything that one unit changed, for routing.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct UnitEvents {
    /// The unit: position of its last log row.
    pub unit: TxnId,
    /// When it was read, microseconds since 1970; for people only, decides nothing.
    pub read_at_micros: i64,
    /// Definition in force after this unit.
    pub revision: Revision,
    /// Tables that the events name.
    pub tables: Vec<TableHeading>,
    /// Keys that the events and node changes name.
    pub keys: Vec<ScopeKey>,
    /// Changes of nodes and their keys.
    pub nodes: Vec<NodeEvent>,
    /// One event per row at most (R7).
    pub rows: Vec<RowEvent>,
}

/// A change of a node, in the stream like everything that routing depends on (R28).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum NodeEvent {
    /// The node's stream begins after this unit; an extract as of this unit exists (R15).
    Start {
        /// The node.
        node: NodeName,
        /// Its new incarnation.
        incarnation: Incarnation,
        /// All its keys.
        keys: Vec<KeyIndex>,
    },
    /// The node gets nothing any more, this unit included.
    Stop {
        /// The node.
        node: NodeName,
    },
    /// The node's keys changed.
    Keys {
        /// The node.
        node: NodeName,
        /// Keys that it holds only after the unit.
        gained: Vec<KeyIndex>,
        /// Keys that it held only before the unit.
        lost: Vec<KeyIndex>,
    },
}

/// The net change of one row by a unit. The Router tests `keys_before` with the node's keys before the unit and
/// `keys_after` with its keys after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RowEvent {
    /// Index into [`UnitEvents::tables`].
    pub table: u32,
    /// The row's primary key.
    pub key: RowKey,
    /// The row after the unit; `None` if it is gone.
    pub row: Option<Row>,
    /// Indices of the columns that the unit changed; empty if only keys changed, or if the row is new or gone.
    pub changed: Vec<u16>,
    /// Keys of the row before the unit, as far as they matter for a node. Empty if it did not exist.
    pub keys_before: Vec<KeyIndex>,
    /// Keys after the unit.
    pub keys_after: Vec<KeyIndex>,
}
