//! How changes of nodes are brought together with the server's, per table: from the definition, the same on server and node.

use crate::model::value::Value;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// How two changes of one field are brought together.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ConflictPolicy {
    /// The server's value stays (the default).
    #[default]
    ServerWins,
    /// The node's value is taken: last synchronisation wins (R43).
    ClientWins,
    /// The row with the later value in that column wins.
    Newest(String),
    /// Differences are added.
    Sum,
    /// A person decides; until then the server's value stays.
    Manual,
}

impl fmt::Display for ConflictPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConflictPolicy::ServerWins => f.write_str("server-wins"),
            ConflictPolicy::ClientWins => f.write_str("client-wins"),
            ConflictPolicy::Newest(column) => write!(f, "newest by {column}"),
            ConflictPolicy::Sum => f.write_str("sum"),
            ConflictPolicy::Manual => f.write_str("manual"),
        }
    }
}

/// What happens when one side deleted a row that the other changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum DeletePolicy {
    /// Either side's delete beats the other's update (the default).
    #[default]
    Wins,
    /// The update brings the row back, or keeps it.
    Resurrect,
}

/// Where integer keys of rows that nodes insert come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum KeySource {
    /// A key that is taken is provisional and gets replaced (R12).
    #[default]
    Block,
    /// The application makes its own unique keys: one that is taken is an error.
    Own,
}

/// The rules of one table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MergeRules {
    /// For every column that `columns` does not name.
    pub policy: ConflictPolicy,
    /// By column name, as declared.
    pub columns: BTreeMap<String, ConflictPolicy>,
    /// Columns that only the server changes: a local change of one is never sent (R11).
    pub download_only: Vec<String>,
    /// Delete against update.
    pub delete: DeletePolicy,
    /// Integer keys.
    pub keys: KeySource,
    /// References that the node's table does not declare, since they may point at a row that the node does not have (`dangling`). A key that
    /// the server replaced is followed along them all the same (R12).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub open_references: Vec<OpenReference>,
}

/// A reference of one table to another, by names as they are declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenReference {
    /// Columns that refer.
    pub columns: Vec<String>,
    /// The table that is referred to.
    pub table: String,
    /// Its columns, in the same order.
    pub referred: Vec<String>,
}

impl MergeRules {
    /// Returns the policy of a column (ASCII case does not count).
    pub fn policy_of(&self, column: &str) -> &ConflictPolicy {
        self.columns.iter().find(|(name, _)| name.eq_ignore_ascii_case(column)).map_or(&self.policy, |(_, policy)| policy)
    }

    /// Returns whether only the server changes a column.
    pub fn is_download_only(&self, column: &str) -> bool {
        self.download_only.iter().any(|name| name.eq_ignore_ascii_case(column))
    }
}

/// Returns a value with the difference of two others added (`sum`): what stands there, plus what somebody added to what he saw (R32).
/// Where there is no difference (NULL, text, bytes, a sum beyond 64 bits), what he wrote.
pub fn add_difference(standing: &Value, before: &Value, after: &Value) -> Value {
    let sum = match (standing, before, after) {
        (Value::Integer(standing), Value::Integer(before), Value::Integer(after)) => {
            after.checked_sub(*before).and_then(|difference| standing.checked_add(difference)).map(Value::Integer)
        }
        _ => match (number(standing), number(before), number(after)) {
            (Some(standing), Some(before), Some(after)) => Some(standing + (after - before)).filter(|sum| sum.is_finite()).map(Value::Real),
            _ => None,
        },
    };
    sum.unwrap_or_else(|| after.clone())
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Integer(integer) => Some(*integer as f64),
        Value::Real(real) => Some(*real),
        Value::Null | Value::Text(_) | Value::Blob(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r32_differences_are_added_where_there_are_any() {
        let integers = |standing: i64, before: i64, after: i64| add_difference(&standing.into(), &before.into(), &after.into());
        assert_eq!(integers(7, 10, 8), Value::Integer(5));
        assert_eq!(integers(i64::MAX, 0, 1), Value::Integer(1), "beyond 64 bits: what was written");
        assert_eq!(add_difference(&Value::Real(1.5), &1.into(), &2.into()), Value::Real(2.5));
        assert_eq!(add_difference(&Value::Null, &1.into(), &2.into()), Value::Integer(2));
        assert_eq!(add_difference(&7.into(), &Value::Null, &2.into()), Value::Integer(2));
        assert_eq!(add_difference(&7.into(), &1.into(), &"x".into()), Value::text("x"));
    }
}
