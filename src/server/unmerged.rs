//! What a node sent and nobody merged, when the node is taken out of the list (fault 54): it goes to quarantine, with the reason.

use crate::base::disk::DiskError;
use crate::base::folder::{self, EntryKind};
use crate::base::ids::{FileNo, Incarnation, NodeName};
use crate::base::quarantine::{self, Aside};
use crate::docking::root::DockingRoot;
use crate::dx::format::HEADER_BYTES;
use crate::dx::header::Header;
use crate::store::sqlite::{ServerDatabase, StoreError};
use crate::store::upload_position::MergedTo;
use std::collections::BTreeSet;
use std::io::Read;

/// How much of what a node sent is done with.
#[derive(Debug, Default)]
pub struct Merged {
    /// How far its files were gone through.
    pub to: Option<MergedTo>,
    /// Files before that of which a unit is held: nobody merged it.
    pub unfinished: BTreeSet<(Incarnation, FileNo)>,
}

impl Merged {
    /// Reads it.
    ///
    /// # Errors
    /// The server database refused.
    pub fn read(database: &ServerDatabase, node: &NodeName) -> Result<Merged, StoreError> {
        Ok(Merged { to: database.merged_to(node)?, unfinished: database.unfinished_files(node)?.into_keys().collect() })
    }

    fn has(&self, incarnation: Incarnation, file: FileNo) -> bool {
        let is_passed = self.to.as_ref().is_some_and(|to| to.incarnation == incarnation && file <= to.file);
        is_passed && !self.unfinished.contains(&(incarnation, file))
    }
}

/// Moves every file of a node's inbox that is not merged to its quarantine, and drops parts of files. Returns which files these were.
/// Called after the node is out of the list, so that no session takes more of it.
///
/// # Errors
/// A file cannot be moved; called again it goes on.
pub fn put_aside(root: &DockingRoot, node: &NodeName, merged: &Merged, reason: &str) -> Result<Vec<FileNo>, DiskError> {
    let (inbox, tmp, quarantine) = (root.inbox(node), root.tmp(node), root.quarantine(node));
    let mut moved = Vec::new();
    for entry in folder::list(&inbox)? {
        let (EntryKind::File { .. }, Some(file)) = (entry.kind, entry.name.to_str().and_then(FileNo::from_file_name)) else { continue };
        let mut head = Vec::new();
        let source = root.disk().open(&entry.path)?;
        if let Err(source) = source.take(HEADER_BYTES as u64).read_to_end(&mut head) {
            return Err(DiskError::Io { operation: "read", path: entry.path, source });
        }
        let incarnation = Header::from_prefix(&head).map(|header| header.incarnation).ok();
        if incarnation.is_some_and(|incarnation| merged.has(incarnation, file)) {
            continue;
        }
        root.disk().ensure_folder(&quarantine)?;
        let name = file.file_name();
        let aside = Aside { file: &entry.path, name: &name, quarantine: &quarantine, tmp: &tmp, reason };
        quarantine::put_aside(root.disk(), &aside)?;
        moved.push(file);
    }
    for entry in folder::list(&tmp)? {
        if entry.kind != EntryKind::Folder && entry.name.to_str().is_some_and(|name| name.ends_with(".part")) {
            root.disk().remove(&entry.path)?;
        }
    }
    Ok(moved)
}
