//! How changes of nodes are brought together with the server's, per table: from the definition, the same on server and node.

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
