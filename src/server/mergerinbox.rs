//! The inbox of a node as the Merger reads it: files that wait, their units, and when a file may go.
//!
//! A file stays until all its units are final. One of a former incarnation gives its number free as soon as all of it was begun: it
//! goes on under `INCARNATION-NNNNNNNN.dx`, so that the new stream can begin with file 1.

use crate::base::clock::now_seconds;
use crate::base::disk::{Disk, DiskError};
use crate::base::folder::{self, EntryKind};
use crate::base::ids::{FileNo, Incarnation, InstallId, NodeName, UnitNo};
use crate::base::quarantine::{self, Aside};
use crate::docking::root::DockingRoot;
use crate::dx::error::DxError;
use crate::dx::format::HEADER_BYTES;
use crate::dx::header::{DxDirection, Expected, Header};
use crate::dx::upload::UnitHash;
use crate::dx::upload_reader::{UploadReader, UploadUnits};
use crate::model::upload::{UploadHead, UploadUnit};
use crate::store::install::Identity;
use crate::store::merge_units::StoredFile;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A file of an inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InboxFile {
    /// Incarnation that its header names.
    pub(super) incarnation: Incarnation,
    /// Its number.
    pub(super) file: FileNo,
    /// Where it lies.
    pub(super) path: PathBuf,
    /// Whether it has its number free for another incarnation.
    pub(super) is_set_aside: bool,
}

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum InboxError {
    /// The disk, or the bytes could not be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The file is not what it should be: it goes to quarantine.
    #[error("{}: {reason}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

fn io(path: &Path, source: std::io::Error) -> InboxError {
    InboxError::Disk(DiskError::Io { operation: "read", path: path.to_owned(), source })
}

fn dx(path: &Path, error: DxError) -> InboxError {
    if error.is_content() { InboxError::Bad { path: path.to_owned(), reason: error.to_string() } } else { io(path, error.into()) }
}

/// A file whose units are known.
#[derive(Debug)]
pub(super) struct Registered {
    /// Of which stream it is.
    pub(super) incarnation: Incarnation,
    /// How it looked.
    pub(super) stamp: Option<Stamp>,
}

/// What tells a file from another one that takes its place.
pub(super) type Stamp = (u64, Option<SystemTime>);

/// Looks at a file; `None` if it is not there.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let found = path.symlink_metadata().ok()?;
    Some((found.len(), found.modified().ok()))
}

/// Lists the files of a node's inbox in the order in which they are merged. `known` says of which incarnation a file is that was
/// read before. What has no header of a file is bad.
pub(super) fn list(
    root: &DockingRoot,
    node: &NodeName,
    known: impl Fn(&Path) -> Option<Incarnation>,
) -> Result<(Vec<InboxFile>, Vec<InboxError>), DiskError> {
    let (mut files, mut bad) = (Vec::new(), Vec::new());
    for entry in folder::list(&root.inbox(node))? {
        let (EntryKind::File { .. }, Some(name)) = (entry.kind, entry.name.to_str()) else { continue };
        if let Some((incarnation, file)) = set_aside(name) {
            files.push(InboxFile { incarnation, file, path: entry.path, is_set_aside: true });
        } else if let Some(file) = FileNo::from_file_name(name) {
            let incarnation = match known(&entry.path) {
                Some(incarnation) => Ok(incarnation),
                None => read_header(root.disk(), &entry.path).map(|header| header.incarnation),
            };
            match incarnation {
                Ok(incarnation) => files.push(InboxFile { incarnation, file, path: entry.path, is_set_aside: false }),
                Err(InboxError::Disk(error)) if error.is_not_found() => {}
                Err(InboxError::Disk(error)) => return Err(error),
                Err(error) => bad.push(error),
            }
        }
    }
    files.sort_by_key(|file| (file.incarnation, file.file));
    Ok((files, bad))
}

/// Reads `INCARNATION-NNNNNNNN.dx`.
fn set_aside(name: &str) -> Option<(Incarnation, FileNo)> {
    let (incarnation, file) = name.split_once('-')?;
    Some((Incarnation(incarnation.parse().ok()?), FileNo::from_file_name(file)?))
}

fn read_header(disk: &Disk, path: &Path) -> Result<Header, InboxError> {
    let mut head = Vec::new();
    let file: File = disk.open(path)?;
    file.take(HEADER_BYTES as u64).read_to_end(&mut head).map_err(|error| io(path, error))?;
    Header::from_prefix(&head).map_err(|error| dx(path, error))
}

/// Reads what units a file has, and what they are (R16).
pub(super) fn read_units(root: &DockingRoot, identity: &Identity, node: &NodeName, of: &InboxFile) -> Result<StoredFile, InboxError> {
    let path = &of.path;
    let mut reader = UploadReader::open(root.disk().open(path)?).map_err(|error| dx(path, error))?;
    let header = reader.header().clone();
    let expected = Expected {
        direction: DxDirection::Upload,
        server_id: identity.server_id,
        epoch: identity.epoch,
        node: Some(node),
        incarnation: of.incarnation,
        file_no: of.file,
    };
    expected.check(&header).map_err(|mismatch| InboxError::Bad { path: path.clone(), reason: mismatch.to_string() })?;
    let hash = reader.summary().content_hash;
    let mut units = Vec::new();
    let mut read = reader.units();
    while let Some(head) = read.next_head().map_err(|error| dx(path, error))? {
        let mut hash = UnitHash::begin(head.number);
        while let Some((heading, change)) = read.next_change().map_err(|error| dx(path, error))? {
            hash.change(&heading, &change).map_err(|error| dx(path, error))?;
        }
        units.push((head, hash.finish()));
    }
    Ok(StoredFile { node: node.clone(), incarnation: of.incarnation, file: of.file, install: header.install_id, hash, units })
}

/// An open file whose units are asked for one after the other.
pub(super) struct OpenFile {
    path: PathBuf,
    reader: UploadReader<File>,
}

impl OpenFile {
    /// Opens the file that units lie in; `None` if there is none.
    pub(super) fn open(
        root: &DockingRoot,
        node: &NodeName,
        incarnation: Incarnation,
        file: FileNo,
    ) -> Result<Option<OpenFile>, InboxError> {
        for path in [root.inbox(node).join(file.file_name()), root.inbox(node).join(aside_name(incarnation, file))] {
            let source = match root.disk().open(&path) {
                Ok(source) => source,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error.into()),
            };
            if read_header(root.disk(), &path)?.incarnation == incarnation {
                let reader = UploadReader::open(source).map_err(|error| dx(&path, error))?;
                return Ok(Some(OpenFile { path, reader }));
            }
        }
        Ok(None)
    }

    /// Returns where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the local database that made it.
    pub(super) fn install(&self) -> InstallId {
        self.reader.header().install_id
    }

    /// Returns its content hash.
    pub(super) fn hash(&self) -> crate::base::ids::ContentHash {
        self.reader.summary().content_hash
    }

    /// Begins to read its units.
    pub(super) fn units(&mut self) -> Reading<'_> {
        Reading { path: &self.path, units: self.reader.units(), head: None }
    }
}

/// Units of a file, in order.
pub(super) struct Reading<'f> {
    path: &'f Path,
    units: UploadUnits<'f, File>,
    head: Option<UploadHead>,
}

impl Reading<'_> {
    /// Returns a unit, going on from the last one that was asked for; `None` if it does not come any more.
    pub(super) fn unit(&mut self, number: UnitNo) -> Result<Option<UploadUnit>, InboxError> {
        loop {
            let head = match self.head.take() {
                Some(head) => head,
                None => match self.units.next_head().map_err(|error| dx(self.path, error))? {
                    Some(head) => head,
                    None => return Ok(None),
                },
            };
            if head.number > number {
                self.head = Some(head);
                return Ok(None);
            }
            if head.number == number {
                let mut changes = Vec::new();
                while let Some(change) = self.units.next_change().map_err(|error| dx(self.path, error))? {
                    changes.push(change);
                }
                return Ok(Some(UploadUnit { head, changes }));
            }
        }
    }
}

/// Returns the name under which a file of a former incarnation goes on.
pub(super) fn aside_name(incarnation: Incarnation, file: FileNo) -> String {
    format!("{incarnation}-{}", file.file_name())
}

/// Gives the number of a file of a former incarnation free.
pub(super) fn give_free(root: &DockingRoot, node: &NodeName, file: &InboxFile) -> Result<(), DiskError> {
    root.disk().rename(&file.path, &root.inbox(node), &aside_name(file.incarnation, file.file))
}

/// Deletes a file if it is older than files are kept.
pub(super) fn remove_old(root: &DockingRoot, file: &InboxFile, keep: Duration) -> Result<bool, DiskError> {
    let stored = match file.path.symlink_metadata().and_then(|found| found.modified()) {
        Ok(stored) => stored,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(DiskError::Io { operation: "look at", path: file.path.clone(), source }),
    };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now_seconds().unsigned_abs());
    // A clock that was set back makes nothing old.
    if now.duration_since(stored).unwrap_or_default() < keep {
        return Ok(false);
    }
    root.disk().remove(&file.path)?;
    Ok(true)
}

/// Moves a bad file to quarantine.
pub(super) fn put_aside(root: &DockingRoot, node: &NodeName, path: &Path, reason: &str) -> Result<(), DiskError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("unnamed.dx");
    let (quarantine, tmp) = (root.quarantine(node), root.tmp(node));
    quarantine::put_aside(root.disk(), &Aside { file: path, name, quarantine: &quarantine, tmp: &tmp, reason }).map(drop)
}
