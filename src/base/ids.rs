//! Newtypes for every id, with the one spelling that files, logs and commands share.
//!
//! Parsing happens once, at the edge (`FromStr`); a value of one of these types is always valid.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A text that is not a valid id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}: {why}")]
pub struct IdError {
    /// The offending text.
    pub text: String,
    /// What it was taken for.
    pub what: &'static str,
    /// The rule that it breaks.
    pub why: &'static str,
}

/// A position in the master transaction log: the id of a log row.
///
/// A *unit* is named by the position of its last log row, so units and log positions share one scale and
/// `log >= txnproc >= router >= applied` can be read off one line of `status`. Zero is before the first row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct TxnId(pub i64);

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Number of a `.dx` file within its stream, from 1. The file name is the number and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct FileNo(pub u64);

impl FileNo {
    /// Returns the number that follows.
    pub fn next(self) -> FileNo {
        FileNo(self.0 + 1)
    }

    /// Returns the file name, e.g. `00000042.dx`.
    pub fn file_name(self) -> String {
        format!("{self}.dx")
    }

    /// Returns the number that a file name stands for; `None` for any other name (fault 18).
    pub fn from_file_name(name: &str) -> Option<FileNo> {
        let digits = name.strip_suffix(".dx")?;
        if digits.len() < 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let number = FileNo(digits.parse().ok()?);
        (number.0 > 0 && number.file_name() == name).then_some(number)
    }
}

impl fmt::Display for FileNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08}", self.0)
    }
}

/// Number of a unit that a local database cut, from 1; second half of its permanent id (R16).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct UnitNo(pub u64);

impl UnitNo {
    /// Returns the number that follows.
    pub fn next(self) -> UnitNo {
        UnitNo(self.0 + 1)
    }
}

impl fmt::Display for UnitNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Name of a node: 1 to 32 of `A-Z 0-9 _ -`, upper case, none of the reserved names. It becomes a folder name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// Names that the docking root or an operating system keeps for itself.
const RESERVED_NODE_NAMES: &[&str] = &[
    "TXNPROC", "FILES", "TMP", "IDENTITY", "LOCK", "CON", "PRN", "AUX", "NUL", "COM1", "COM2", "COM3", "COM4", "COM5", "COM6", "COM7",
    "COM8", "COM9", "LPT1", "LPT2", "LPT3", "LPT4", "LPT5", "LPT6", "LPT7", "LPT8", "LPT9",
];

impl NodeName {
    /// Returns a name that no node can have, for what is made of no node in particular.
    pub(crate) fn nobody() -> NodeName {
        NodeName("-".to_owned())
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<NodeName, IdError> {
        let bad = |why| IdError { text: text.chars().take(64).collect(), what: "node name", why };
        if text.is_empty() || text.len() > 32 {
            return Err(bad("it takes 1 to 32 characters"));
        }
        if !text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_' || b == b'-') {
            return Err(bad("only A-Z, 0-9, `_` and `-` are allowed (upper case)"));
        }
        if text.starts_with('-') {
            return Err(bad("it cannot begin with `-`"));
        }
        if RESERVED_NODE_NAMES.contains(&text) {
            return Err(bad("that name is reserved"));
        }
        Ok(NodeName(text.to_owned()))
    }
}

impl TryFrom<String> for NodeName {
    type Error = IdError;
    fn try_from(text: String) -> Result<NodeName, IdError> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> String {
        name.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

macro_rules! counter_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

counter_id! {
    /// History of the server database: 1 at first, one more after each declared restore. Files of another epoch are refused.
    Epoch
}
counter_id! {
    /// How often this node has been extracted: 0 = never. Files of another incarnation are refused.
    Incarnation
}
counter_id! {
    /// Number of a deployed definition, from 1.
    Revision
}

macro_rules! bytes_id {
    ($(#[$doc:meta])* $name:ident, $size:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub [u8; $size]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<$name, IdError> {
                let mut bytes = [0u8; $size];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| IdError {
                    text: text.chars().take(80).collect(),
                    what: stringify!($name),
                    why: concat!("it is ", stringify!($size), " bytes in hex"),
                })?;
                Ok($name(bytes))
            }
        }
    };
}

bytes_id! {
    /// Identity of one server database, drawn once at the first `deploy`.
    ServerId, 16
}
bytes_id! {
    /// What a local database shows the server once, and gets another one for: a copy that went on elsewhere shows a former one (R34).
    SyncToken, 16
}
bytes_id! {
    /// Identity of one local database, drawn once at `remote-sync init`; first half of a unit's permanent id (R16).
    InstallId, 16
}
bytes_id! {
    /// SHA-256 over a file's range and its uncompressed frames: what the chain and the watermarks compare (R25).
    ContentHash, 32
}
bytes_id! {
    /// SHA-256 over a file's bytes: guards the transfer only.
    ByteHash, 32
}
bytes_id! {
    /// Random mark of one read of the server database, kept in `dock_tail` and `cds.db` (R13, R14).
    Nonce, 16
}

/// What the name of a carrier may be, for people.
pub const CARRIER_NAME_TEXT: &str = "the name of a carrier has 1 to 32 letters, digits, `-` and `_`";

/// Whether a text can name a carrier: it becomes part of file names.
pub fn is_carrier_name(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_numbers_only() {
        assert_eq!(FileNo::from_file_name("00000042.dx"), Some(FileNo(42)));
        assert_eq!(FileNo(123_456_789).file_name(), "123456789.dx");
        assert_eq!(FileNo::from_file_name("123456789.dx"), Some(FileNo(123_456_789)));
        for name in ["42.dx", "0000004a.dx", "00000042.dx.tmp", "00000000.dx", "../00000042.dx", "000000042.dx", ".dx", "-0000042.dx"] {
            assert_eq!(FileNo::from_file_name(name), None, "{name}");
        }
    }

    #[test]
    fn node_names_are_checked() {
        assert!("SHOP-01".parse::<NodeName>().is_ok());
        for name in ["", "shop", "A B", "../X", "TXNPROC", "CON", "-A", "A.B", "ÄX", &"A".repeat(33)] {
            assert!(name.parse::<NodeName>().is_err(), "{name}");
        }
    }
}
