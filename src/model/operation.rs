//! What a node is told to do: the operations of a download file.

use crate::model::value::{Row, RowKey, Value};
use serde::{Deserialize, Serialize};

/// One operation on one row of a node. A unit names a row once at most, so operations of one unit have no order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Operation {
    /// The row left the node's view, or is gone.
    Delete {
        /// Primary key.
        key: RowKey,
    },
    /// The row entered the node's view: all its sent columns.
    Put {
        /// Values in heading order.
        row: Row,
    },
    /// The row stays in view and some columns changed.
    Update {
        /// Primary key.
        key: RowKey,
        /// Changed columns (indices into the heading) with their new values.
        changes: Vec<(u16, Value)>,
    },
}
