//! What the Transaction Processor tells the Transaction Router: net events of one unit, with keys (architecture 3.2).

use crate::base::ids::{Incarnation, NodeName, Revision, TxnId};
use crate::model::upload::Confirm;
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
    /// Day from which time windows count at the end of this unit, days since 1970; 0 in files of version 1.
    pub day: i64,
    /// What changes in the shape of the nodes' tables, before any row. For every node whose stream runs.
    pub schema: Vec<SchemaObject>,
    /// The whole shape, if a node begins anew with this unit ([`NodeEvent::Restart`]).
    pub whole_schema: Vec<SchemaObject>,
    /// Tables that the events name.
    pub tables: Vec<TableHeading>,
    /// Keys that the events and node changes name.
    pub keys: Vec<ScopeKey>,
    /// Changes of nodes and their keys.
    pub nodes: Vec<NodeEvent>,
    /// Marks at which one node compares itself with the server (R42).
    pub marks: Vec<MarkEvent>,
    /// What became of units that nodes sent (R30).
    pub confirms: Vec<ConfirmEvent>,
    /// One event per row at most (R7).
    pub rows: Vec<RowEvent>,
}

/// A table, index or view of the local databases that is new, different or gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaObject {
    /// What it is.
    pub kind: SchemaKind,
    /// Its name.
    pub name: String,
    /// The statement that makes it; `None` if it is gone.
    pub sql: Option<String>,
    /// For a table that exists: whether its rows stay, with what both shapes have; else it begins empty, and the unit brings every row.
    pub keeps_rows: bool,
}

/// Kinds of schema objects, in the order in which they are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SchemaKind {
    /// A table.
    Table,
    /// A table whose rows a node alone writes (upload-only): a reset leaves them.
    KeptTable,
    /// An index of its own statement.
    Index,
    /// A view.
    View,
    /// How changes are brought together, of every table: no name, and JSON in place of a statement.
    MergeRules,
}

/// A mark in the stream of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkEvent {
    /// The node that compares.
    pub node: NodeName,
    /// What it compares.
    pub mark: Mark,
}

/// What became of a unit that a node sent, in the stream of that node alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmEvent {
    /// The node that sent it.
    pub node: NodeName,
    /// What became of it.
    pub confirm: Confirm,
}

/// What a node's tables are at the end of the unit, as digests: the node computes the same over its own rows (R42).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Number of the question, drawn by who asked.
    pub id: u64,
    /// Every table of the question.
    pub tables: Vec<TableDigest>,
}

/// Digests of the rows of one table, spread over buckets by their key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDigest {
    /// Its name, and the columns that are compared.
    pub heading: TableHeading,
    /// How many buckets the keys are spread over.
    pub bucket_count: u32,
    /// Buckets of the question; all of them in the first round.
    pub buckets: Vec<BucketDigest>,
}

/// Rows of one bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketDigest {
    /// Its number.
    pub bucket: u32,
    /// How many rows are in it.
    pub rows: u64,
    /// Sum of the row hashes, modulo 2^128, little-endian: it does not depend on their order.
    pub sum: [u8; 16],
    /// Each row of the bucket, only in the second round: (hash of the key, hash of the row).
    pub each: Vec<(u64, u64)>,
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
    /// The node's stream begins anew *with* this unit, without an extract: all rows that it sees are among the unit's events, and
    /// they take the place of whatever it holds.
    Restart {
        /// The node.
        node: NodeName,
        /// Its new incarnation.
        incarnation: Incarnation,
        /// All its keys.
        keys: Vec<KeyIndex>,
    },
}

/// What a unit tells a node beside operations on rows; it comes before them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnitControls {
    /// The rows of this unit are all that the node sees: every other row goes.
    pub reset: bool,
    /// Changes of the shape of its tables, in order; with `reset` the whole shape.
    pub schema: Vec<SchemaObject>,
    /// Marks at which it compares itself, after the unit.
    pub marks: Vec<Mark>,
    /// What became of units of its own, after the unit's operations: these hold the official values of what was merged.
    pub confirms: Vec<Confirm>,
}

impl UnitControls {
    /// Returns whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        !self.reset && self.schema.is_empty() && self.marks.is_empty() && self.confirms.is_empty()
    }

    /// Adds what another source tells of the same unit.
    pub fn merge(&mut self, other: &UnitControls) {
        self.reset |= other.reset;
        self.schema.extend(other.schema.iter().cloned());
        self.marks.extend(other.marks.iter().cloned());
        self.confirms.extend(other.confirms.iter().cloned());
    }
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
