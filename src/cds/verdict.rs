//! What the rules say of one row for one node: plain data, made by `cds::explain`, shown by `cli`.

use crate::model::value::{RowKey, Value};
use std::collections::BTreeSet;

/// What the rules say of one row for one node.
#[derive(Debug, Clone, PartialEq)]
pub struct RowVerdict {
    /// The table.
    pub table: String,
    /// The row's primary key.
    pub key: RowKey,
    /// Whether the node sees the row.
    pub visible: bool,
    /// Names of the rules by which it does.
    pub by: BTreeSet<String>,
    /// Why.
    pub why: Why,
}

/// What decides over a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Why {
    /// No object owns the table: rules use it, no node gets it.
    Unowned,
    /// It goes with its parent.
    Member {
        /// The foreign key, e.g. `Order Details.OrderID = Orders.OrderID`.
        by: String,
        /// The parent that the node sees, else any; `None` if there is none.
        parent: Option<Box<RowVerdict>>,
    },
    /// The rules of its object, in the order of the definition.
    Rules(Vec<RuleVerdict>),
    /// Not looked at: the rules lead on too far.
    TooDeep,
}

/// What one rule says of the row.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleVerdict {
    /// Its name.
    pub name: String,
    /// Whether it alone makes the row visible.
    pub visible: bool,
    /// Whether the node's model has it.
    pub in_model: bool,
    /// What the row predicate says.
    pub predicate: Option<PredicateVerdict>,
    /// The time windows, the rule's and the object's.
    pub windows: Vec<WindowVerdict>,
    /// Where keys come from.
    pub kind: KindVerdict,
}

/// What a row predicate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PredicateVerdict {
    /// Its text.
    pub sql: String,
    /// The columns that it names with their values: `amount = 20`.
    pub values: String,
    /// Whether the row meets it.
    pub holds: bool,
}

/// What a time window says.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowVerdict {
    /// The date column.
    pub column: String,
    /// Its value.
    pub value: Value,
    /// Length in days.
    pub days: u32,
    /// Whether the row is inside.
    pub holds: bool,
}

/// What the kind of the rule says.
#[derive(Debug, Clone, PartialEq)]
pub enum KindVerdict {
    /// Every node sees it.
    Everyone,
    /// No node does.
    Nobody,
    /// A chain of joins to an attribute of the node.
    Path(PathVerdict),
    /// Rows that refer to this one.
    Referenced(Vec<ReferrerVerdict>),
}

/// A chain that was walked.
#[derive(Debug, Clone, PartialEq)]
pub struct PathVerdict {
    /// Where it starts: columns of the row with their values.
    pub start: String,
    /// The joins of one chain, as far as rows were found: the one that leads to a value of the node, else the first.
    pub steps: Vec<Step>,
    /// The join that found no row: table and condition.
    pub ended: Option<String>,
    /// The attribute compared with.
    pub attribute: String,
    /// The node's values.
    pub node_values: Vec<Value>,
    /// What the row's chains end in; at most [`SHOWN_MAX`] of them, the one that matches first.
    pub reached: Vec<Value>,
    /// The value in which both meet.
    pub matched: Option<Value>,
    /// More rows lead on than were walked.
    pub cut: bool,
}

/// One join of a chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The table joined.
    pub table: String,
    /// The condition with its values.
    pub on: String,
    /// The row on the way.
    pub key: RowKey,
    /// How many rows of this table the chains go through.
    pub rows: usize,
}

/// Rows that refer to the row by one foreign key.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferrerVerdict {
    /// The foreign key.
    pub by: String,
    /// How many rows.
    pub rows: usize,
    /// There are more.
    pub cut: bool,
    /// One that the node sees, else the first.
    pub shown: Option<Box<RowVerdict>>,
}

/// Values of one kind that are shown.
pub const SHOWN_MAX: usize = 5;
