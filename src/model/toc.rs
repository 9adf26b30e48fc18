//! The table of contents of an extract: what a client must know before it takes the database over.
//!
//! It is written last and names the SHA-256 of the compressed database, so an extract without a `.toc` does not exist.

use crate::base::ids::{ByteHash, Epoch, Incarnation, NodeName, Revision, ServerId, TxnId};
use serde::{Deserialize, Serialize};

/// Contents of `extract-NNNNNNNN.toc`, as JSON. Ids are spelled as everywhere else: hashes and the server id in hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toc {
    /// Identity of the server database.
    #[serde(with = "spelled")]
    pub server_id: ServerId,
    /// Its name, for people.
    pub server_name: String,
    /// Its history.
    pub epoch: Epoch,
    /// The node that the extract is for.
    pub node: NodeName,
    /// Which extract of the node this is.
    pub incarnation: Incarnation,
    /// The rows are those that the node sees at the end of this unit; its stream begins after it.
    pub unit: TxnId,
    /// Definition in force at that unit.
    pub revision: Revision,
    /// Length of the compressed database.
    pub bytes: u64,
    /// Length of the database.
    pub raw_bytes: u64,
    /// SHA-256 of the compressed database.
    #[serde(with = "spelled")]
    pub sha256: ByteHash,
    /// Rows in all tables together.
    pub rows: u64,
    /// Rows by table, sorted by name.
    pub tables: Vec<TocTable>,
    /// What of the server's schema is not in the extract and why, for people: constraints, indexes and views.
    #[serde(default)]
    pub left_out: Vec<String>,
}

/// One table of an extract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TocTable {
    /// Name as declared on the server.
    pub name: String,
    /// Rows that the node sees.
    pub rows: u64,
}

/// Returns the name of the compressed database of that incarnation, e.g. `extract-00000001.db.zst`.
pub fn extract_file_name(incarnation: Incarnation) -> String {
    format!("extract-{:08}.db.zst", incarnation.0)
}

/// Returns the name of the table of contents of that incarnation, e.g. `extract-00000001.toc`.
pub fn toc_file_name(incarnation: Incarnation) -> String {
    format!("extract-{:08}.toc", incarnation.0)
}

/// Returns the incarnation that a file name of an extract (database or table of contents) stands for.
pub fn incarnation_of_file_name(name: &str) -> Option<Incarnation> {
    let number = name.strip_prefix("extract-")?;
    let digits = number.strip_suffix(".db.zst").or_else(|| number.strip_suffix(".toc"))?;
    if digits.len() < 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().map(Incarnation)
}

/// Ids as their text, so that a person can compare them with what the commands print.
mod spelled {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::{fmt::Display, str::FromStr};

    pub(super) fn serialize<T: Display, S: Serializer>(id: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_json_read_back() {
        let incarnation = Incarnation(7);
        for name in [extract_file_name(incarnation), toc_file_name(incarnation)] {
            assert_eq!(incarnation_of_file_name(&name), Some(incarnation), "{name}");
        }
        for name in ["extract-7.toc", "extract-00000007.db", "00000007.dx", "extract-0000000x.toc"] {
            assert_eq!(incarnation_of_file_name(name), None, "{name}");
        }
        let toc = Toc {
            server_id: ServerId([0xab; 16]),
            server_name: "HQ".into(),
            epoch: Epoch(1),
            node: "ANNA".parse().unwrap(),
            incarnation,
            unit: TxnId(42),
            revision: Revision(3),
            bytes: 10,
            raw_bytes: 20,
            sha256: ByteHash([1; 32]),
            rows: 5,
            tables: vec![TocTable { name: "Orders".into(), rows: 5 }],
            left_out: Vec::new(),
        };
        let json = serde_json::to_string(&toc).unwrap();
        assert!(json.contains(&format!("\"server_id\":\"{}\"", "ab".repeat(16))), "{json}");
        assert_eq!(serde_json::from_str::<Toc>(&json).unwrap(), toc);
    }
}
