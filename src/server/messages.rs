//! What people do about units of nodes: find one by the name that they type, and look into the file that it lies in.

use super::mergerinbox::aside_name;
use crate::base::ids::{IdError, NodeName, UnitNo};
use crate::docking::root::DockingRoot;
use crate::dx::error::DxError;
use crate::dx::upload_reader::UploadReader;
use crate::model::event::TableHeading;
use crate::model::upload::{MessageStatus, RowChange};
use crate::store::messages::{MessageFilter, MessageHead};
use crate::store::sqlite::{ServerDatabase, StoreError};
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// What can be wrong with a message that somebody asks for.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The server database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is none of that name.
    #[error("there is no message {name}")]
    Unknown {
        /// What was asked for.
        name: MessageName,
    },
    /// Two local databases of the node have one of that number.
    #[error("{name} is the number of several messages, of different local databases: {several}")]
    Several {
        /// What was asked for.
        name: MessageName,
        /// Their whole names, with status.
        several: String,
    },
    /// Its file cannot be read.
    #[error("message {name}: {}: {source}", path.display())]
    File {
        /// The message.
        name: MessageName,
        /// The file.
        path: PathBuf,
        /// Why.
        source: DxError,
    },
}

/// How people name a message: `NODE:UNIT`, or `NODE:UNIT:INSTALL` where a node had several local databases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageName {
    /// The node.
    pub node: NodeName,
    /// Number of the unit.
    pub unit: UnitNo,
    /// Beginning of the local database's id.
    pub install: Option<String>,
}

impl FromStr for MessageName {
    type Err = String;

    fn from_str(text: &str) -> Result<MessageName, String> {
        let mut parts = text.splitn(3, ':');
        let node = parts.next().unwrap_or_default().parse::<NodeName>().map_err(|error: IdError| error.to_string())?;
        let unit = parts.next().and_then(|unit| unit.parse::<u64>().ok()).filter(|unit| *unit > 0 && i64::try_from(*unit).is_ok());
        let install = parts.next().map(str::to_ascii_lowercase);
        match unit {
            Some(unit) if install.as_ref().is_none_or(|install| !install.is_empty()) => {
                Ok(MessageName { node, unit: UnitNo(unit), install })
            }
            _ => Err("write NODE:UNIT, as `dockmaster messages list` shows it".to_owned()),
        }
    }
}

impl fmt::Display for MessageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.node, self.unit)?;
        self.install.as_ref().map_or(Ok(()), |install| write!(f, ":{install}"))
    }
}

impl MessageName {
    /// Returns the short name of a message.
    pub fn of(head: &MessageHead) -> MessageName {
        MessageName { node: head.node.clone(), unit: head.id.number, install: None }
    }
}

/// Returns the one message of that name. If several local databases of the node have that number, it is the one that is not final.
///
/// # Errors
/// There is none, or it cannot be told which; or the database cannot be read.
pub fn find(database: &ServerDatabase, name: &MessageName) -> Result<MessageHead, MessageError> {
    let filter = MessageFilter { node: Some(name.node.clone()), unit: Some(name.unit), ..MessageFilter::default() };
    let mut found = database.messages(&filter)?;
    if let Some(install) = &name.install {
        found.retain(|head| head.id.install.to_string().starts_with(install.as_str()));
    }
    if found.len() > 1 {
        let is_final = |head: &MessageHead| matches!(head.status, MessageStatus::Finished | MessageStatus::Ignored);
        let waiting: Vec<MessageHead> = found.iter().filter(|head| !is_final(head)).cloned().collect();
        if waiting.len() == 1 {
            found = waiting;
        }
    }
    match (found.pop(), found.is_empty()) {
        (Some(head), true) => Ok(head),
        (Some(last), false) => {
            let full = |head: &MessageHead| format!("{}:{}:{} ({})", head.node, head.id.number, head.id.install, head.status);
            let several = found.iter().chain([&last]).map(full).collect::<Vec<_>>().join(", ");
            Err(MessageError::Several { name: name.clone(), several })
        }
        (None, _) => Err(MessageError::Unknown { name: name.clone() }),
    }
}

/// Calls `each` with the changes of a message, in order, until it returns `false`. Returns `false` if the content is gone: its file was
/// cleared away, or its number was given again.
///
/// # Errors
/// The file cannot be read.
pub fn content(
    root: &DockingRoot,
    head: &MessageHead,
    mut each: impl FnMut(&Arc<TableHeading>, RowChange) -> bool,
) -> Result<bool, MessageError> {
    let mut path = root.inbox(&head.node).join(head.file.file_name());
    let aside = root.inbox(&head.node).join(aside_name(head.incarnation, head.file));
    if aside.exists() {
        path = aside;
    }
    let failed = |source| MessageError::File { name: MessageName::of(head), path: path.clone(), source };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(DxError::Io { operation: "open", source: error })),
    };
    let mut reader = UploadReader::open(BufReader::new(file)).map_err(failed)?;
    if reader.header().install_id != head.id.install || reader.header().incarnation != head.incarnation {
        return Ok(false);
    }
    let mut units = reader.units();
    while let Some(unit) = units.next_head().map_err(failed)? {
        if unit.number != head.id.number {
            continue;
        }
        while let Some((heading, change)) = units.next_change().map_err(failed)? {
            if !each(&heading, change) {
                break;
            }
        }
        return Ok(true);
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for text in ["ANNA:7", "SHOP-03:118:ab12"] {
            assert_eq!(text.parse::<MessageName>().unwrap().to_string(), text);
        }
        for wrong in ["", "ANNA", "ANNA:", "ANNA:0", "ANNA:x", "ANNA:7:", "a b:1", "ANNA:99999999999999999999", "ANNA:9223372036854775808"]
        {
            assert!(wrong.parse::<MessageName>().is_err(), "{wrong}");
        }
    }
}
