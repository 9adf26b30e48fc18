//! The fixed-size header: what a file is, before anything of it is decompressed.

use crate::base::ids::{ContentHash, Epoch, FileNo, Incarnation, InstallId, NodeName, Revision, ServerId, TxnId};
use crate::dx::error::DxError;
use crate::dx::format::*;
use serde::Serialize;
use std::fmt;

/// Which queue a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DxDirection {
    /// Transaction Processor to Transaction Router.
    Txnproc,
    /// Server to node.
    Download,
    /// Node to server.
    Upload,
}

impl DxDirection {
    fn to_byte(self) -> u8 {
        match self {
            DxDirection::Txnproc => 1,
            DxDirection::Download => 2,
            DxDirection::Upload => 3,
        }
    }

    fn from_byte(byte: u8) -> Option<DxDirection> {
        [DxDirection::Txnproc, DxDirection::Download, DxDirection::Upload].into_iter().find(|direction| direction.to_byte() == byte)
    }
}

impl fmt::Display for DxDirection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DxDirection::Txnproc => "txnproc",
            DxDirection::Download => "download",
            DxDirection::Upload => "upload",
        })
    }
}

/// Header of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Which queue it belongs to.
    pub direction: DxDirection,
    /// The server database whose changes it carries.
    pub server_id: ServerId,
    /// History of that database.
    pub epoch: Epoch,
    /// The node; `None` exactly in a txnproc file.
    pub node: Option<NodeName>,
    /// The node's incarnation; 0 in a txnproc file.
    pub incarnation: Incarnation,
    /// Number within the stream, the same as in the file name.
    pub file_no: FileNo,
    /// First log position that the file covers: one more than the `last` of the file before it.
    pub first: TxnId,
    /// Last log position that the file covers; the receiver is as of this unit once it has applied the file.
    pub last: TxnId,
    /// Definition in force at `last`.
    pub revision: Revision,
    /// Content hash of the file before it in the stream; zero for file 1.
    pub previous: ContentHash,
    /// Upload only: the local database that wrote it; else zero.
    pub install_id: InstallId,
    /// Upload only: what that database had applied; else zero.
    pub applied_unit: TxnId,
}

impl Header {
    /// Returns the header's bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0u8; HEADER_BYTES];
        let mut put = |at: usize, part: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at + part.len()) {
                place.copy_from_slice(part);
            }
        };
        let node = self.node.as_ref().map(|node| node.as_str().as_bytes()).unwrap_or_default();
        put(AT_MAGIC, &MAGIC);
        put(AT_VERSION, &FORMAT_VERSION.to_le_bytes());
        put(AT_DIRECTION, &[self.direction.to_byte()]);
        // A NodeName has 32 bytes at most.
        put(AT_NODE_LENGTH, &[u8::try_from(node.len()).unwrap_or(u8::MAX)]);
        put(AT_INCARNATION, &self.incarnation.0.to_le_bytes());
        put(AT_SERVER_ID, &self.server_id.0);
        put(AT_EPOCH, &self.epoch.0.to_le_bytes());
        put(AT_REVISION, &self.revision.0.to_le_bytes());
        put(AT_NODE, node);
        put(AT_FILE_NO, &self.file_no.0.to_le_bytes());
        put(AT_FIRST, &self.first.0.to_le_bytes());
        put(AT_LAST, &self.last.0.to_le_bytes());
        put(AT_PREVIOUS, &self.previous.0);
        put(AT_INSTALL_ID, &self.install_id.0);
        put(AT_APPLIED_UNIT, &self.applied_unit.0.to_le_bytes());
        let crc = crc32fast::hash(bytes.get(..AT_HEADER_CRC).unwrap_or_default());
        if let Some(place) = bytes.get_mut(AT_HEADER_CRC..) {
            place.copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    }

    /// Returns the header that stands at the beginning of `bytes`, which may be any prefix of a file.
    ///
    /// # Errors
    /// If the prefix is too short, is no `.dx` file, is of a newer version, or is damaged.
    pub fn from_prefix(bytes: &[u8]) -> Result<Header, DxError> {
        let start = bytes.get(..MAGIC.len().min(bytes.len())).unwrap_or_default();
        if !MAGIC.starts_with(start) {
            return Err(DxError::NotDx { found: hex::encode(start) });
        }
        // The version is looked at first: a newer header may have another length and another CRC.
        if let Some(version) = bytes.get(AT_VERSION..AT_VERSION + 2) {
            let found = u16::from_le_bytes(fixed(version));
            if !(FORMAT_VERSION_OLDEST..=FORMAT_VERSION).contains(&found) {
                return Err(DxError::Version { found, known: FORMAT_VERSION });
            }
        }
        let Some(bytes) = bytes.get(..HEADER_BYTES) else {
            return Err(DxError::Truncated { what: "the header", at: bytes.len() as u64 });
        };
        let damaged = |what, at: usize| DxError::Damaged { what, at: at as u64 };
        let at = |offset: usize, length: usize| bytes.get(offset..offset + length).unwrap_or_default();
        if crc32fast::hash(at(0, AT_HEADER_CRC)) != u32::from_le_bytes(fixed(at(AT_HEADER_CRC, 4))) {
            return Err(damaged("the header's checksum does not fit", AT_HEADER_CRC));
        }
        let direction_byte = at(AT_DIRECTION, 1).first().copied().unwrap_or_default();
        let direction = DxDirection::from_byte(direction_byte).ok_or(damaged("unknown direction", AT_DIRECTION))?;
        let node_length = usize::from(at(AT_NODE_LENGTH, 1).first().copied().unwrap_or_default());
        let field = at(AT_NODE, 32);
        let (name, padding) = field.split_at_checked(node_length).ok_or(damaged("node name is too long", AT_NODE_LENGTH))?;
        if padding.iter().chain(at(AT_RESERVED, AT_HEADER_CRC - AT_RESERVED)).any(|byte| *byte != 0) {
            return Err(damaged("reserved bytes are not zero", AT_RESERVED));
        }
        let node = match (direction, name.is_empty()) {
            (DxDirection::Txnproc, true) => None,
            (DxDirection::Txnproc, false) | (_, true) => return Err(damaged("node name and direction contradict", AT_NODE)),
            (_, false) => {
                let text = std::str::from_utf8(name).map_err(|_| damaged("node name is not text", AT_NODE))?;
                Some(text.parse::<NodeName>().map_err(|_| damaged("node name is not valid", AT_NODE))?)
            }
        };
        let header = Header {
            direction,
            server_id: ServerId(fixed(at(AT_SERVER_ID, 16))),
            epoch: Epoch(u32::from_le_bytes(fixed(at(AT_EPOCH, 4)))),
            node,
            incarnation: Incarnation(u32::from_le_bytes(fixed(at(AT_INCARNATION, 4)))),
            file_no: FileNo(u64::from_le_bytes(fixed(at(AT_FILE_NO, 8)))),
            first: TxnId(i64::from_le_bytes(fixed(at(AT_FIRST, 8)))),
            last: TxnId(i64::from_le_bytes(fixed(at(AT_LAST, 8)))),
            revision: Revision(u32::from_le_bytes(fixed(at(AT_REVISION, 4)))),
            previous: ContentHash(fixed(at(AT_PREVIOUS, 32))),
            install_id: InstallId(fixed(at(AT_INSTALL_ID, 16))),
            applied_unit: TxnId(i64::from_le_bytes(fixed(at(AT_APPLIED_UNIT, 8)))),
        };
        header.check()?;
        Ok(header)
    }

    /// Returns the format version of a header whose bytes were read by [`Header::from_prefix`].
    pub(crate) fn version_of(bytes: &[u8; HEADER_BYTES]) -> u16 {
        u16::from_le_bytes(fixed(bytes.get(AT_VERSION..AT_VERSION + 2).unwrap_or_default()))
    }

    /// Checks what holds in every header, written or read.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), DxError> {
        let refuse = |why: &str| Err(DxError::Content(format!("header of file {}: {why}", self.file_no)));
        let is_txnproc = self.direction == DxDirection::Txnproc;
        if self.file_no.0 == 0 {
            refuse("file numbers begin at 1")
        } else if self.node.is_none() != is_txnproc {
            refuse("a txnproc file has no node, any other has one")
        } else if self.first.0 < 0 || self.first > self.last {
            refuse("the range ends before it begins")
        } else if is_txnproc != (self.incarnation.0 == 0) {
            refuse("a txnproc file has no incarnation, any other has one")
        } else if self.direction != DxDirection::Upload && (self.install_id != InstallId::default() || self.applied_unit != TxnId(0)) {
            refuse("only an upload has an install id and an applied unit")
        } else {
            Ok(())
        }
    }
}

/// What a receiver expects of a file before it looks inside (faults 17, 18).
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// Direction of the queue.
    pub direction: DxDirection,
    /// The server.
    pub server_id: ServerId,
    /// The latest epoch known; files of an earlier one may still be on their way.
    pub epoch: Epoch,
    /// The node; `None` for txnproc files.
    pub node: Option<&'a NodeName>,
    /// The node's incarnation; 0 for txnproc files.
    pub incarnation: Incarnation,
    /// Number in the file's name.
    pub file_no: FileNo,
}

/// A file that belongs somewhere else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {found}, expected {expected}")]
pub struct HeaderMismatch {
    /// Which field.
    pub field: &'static str,
    /// What the header says.
    pub found: String,
    /// What it should say.
    pub expected: String,
}

impl Expected<'_> {
    /// Checks a header.
    ///
    /// # Errors
    /// The first field that differs.
    pub fn check(&self, header: &Header) -> Result<(), HeaderMismatch> {
        fn same<T: PartialEq + fmt::Display>(field: &'static str, found: T, expected: T) -> Result<(), HeaderMismatch> {
            if found == expected { Ok(()) } else { Err(HeaderMismatch { field, found: found.to_string(), expected: expected.to_string() }) }
        }
        let name = |node: Option<&NodeName>| node.map_or_else(|| "none".to_owned(), NodeName::to_string);
        same("direction", header.direction, self.direction)?;
        same("server", header.server_id, self.server_id)?;
        same("epoch", header.epoch, header.epoch.min(self.epoch))?;
        same("node", name(header.node.as_ref()), name(self.node))?;
        same("incarnation", header.incarnation, self.incarnation)?;
        same("file number", header.file_no, self.file_no)
    }
}

/// Copies a slice of known length into an array; a wrong length gives zeros, which no caller can reach.
pub(crate) fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0u8; N];
    if bytes.len() == N {
        out.copy_from_slice(bytes);
    }
    out
}
