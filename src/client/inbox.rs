//! Writing what the server sends: into `tmp/NNNNNNNN.dx.part` first, into the inbox once it is whole, right and durable.
//!
//! Small files are made durable in groups, so that a thousand of them do not cost a thousand flushes of the folder. A part that was cut
//! off is kept and continued in the next session; its bytes are hashed again then, so nothing is trusted that was not read.

use crate::base::crash::{self, CrashPoint};
use crate::base::disk::{Disk, DiskError};
use crate::base::folder::{self, EntryKind};
use crate::base::ids::{ByteHash, FileNo};
pub use crate::base::part::Part;
use crate::base::quarantine::{self, Aside};
use crate::client::folder::{ClientFolder, FolderError, LockedFolder};
use crate::session::message::OfferedFile;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Files that are made durable together at most.
const GROUP_FILES_MAX: usize = 64;
/// Bytes that are made durable together at most.
const GROUP_BYTES_MAX: u64 = 8 << 20;

/// Returns the path of the part file of a file.
fn part_path(folder: &ClientFolder, file: FileNo) -> PathBuf {
    folder.tmp().join(format!("{}.part", file.file_name()))
}

fn part_number(entry: &folder::Entry) -> Option<FileNo> {
    FileNo::from_file_name(entry.name.to_str()?.strip_suffix(".part")?)
}

/// The writing side of one client's inbox.
#[derive(Debug)]
pub struct Inbox {
    folder: ClientFolder,
    disk: Disk,
    applied: FileNo,
    have: BTreeSet<FileNo>,
    current: Option<(OfferedFile, Part)>,
    /// Whole and right, not durable yet.
    group: Vec<OfferedFile>,
    group_bytes: u64,
    /// A part that an earlier session left.
    left: Option<(FileNo, u64)>,
    /// Files that were damaged, this time.
    pub damaged: u64,
}

impl Inbox {
    /// Looks at what is there. Of the parts of earlier sessions only that of the first missing file is of use; the others go.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn open(folder: &LockedFolder, applied: FileNo) -> Result<Inbox, FolderError> {
        let mut inbox = Inbox {
            folder: (**folder).clone(),
            disk: folder.disk().clone(),
            applied,
            have: folder.inbox_files()?,
            current: None,
            group: Vec::new(),
            group_bytes: 0,
            left: None,
            damaged: 0,
        };
        let wanted = inbox.received().next();
        for entry in folder::list(&folder.tmp())? {
            match (part_number(&entry), entry.kind) {
                (Some(file), EntryKind::File { bytes }) if file == wanted => inbox.left = Some((file, bytes)),
                (Some(_), EntryKind::File { .. }) => inbox.disk.remove(&entry.path)?,
                _ => {}
            }
        }
        Ok(inbox)
    }

    /// Returns the files that are there.
    pub fn files(&self) -> &BTreeSet<FileNo> {
        &self.have
    }

    /// Returns the part that can be continued.
    pub fn part(&self) -> Option<(FileNo, u64)> {
        self.left
    }

    /// Returns the last file up to which all are durable here or applied.
    pub fn received(&self) -> FileNo {
        let mut last = self.applied;
        while self.have.contains(&last.next()) {
            last = last.next();
        }
        last
    }

    /// Takes note of what is applied now.
    pub fn set_applied(&mut self, applied: FileNo) {
        self.applied = self.applied.max(applied);
        self.have = self.have.split_off(&self.applied.next());
    }

    /// Begins a file, keeping `offset` bytes of its part.
    ///
    /// # Errors
    /// The part cannot be written.
    pub fn begin(&mut self, file: OfferedFile, offset: u64) -> Result<(), DiskError> {
        let part = Part::open(&self.disk, part_path(&self.folder, file.file), offset)?;
        self.current = Some((file, part));
        crash::at(CrashPoint::ExchangeBegun);
        Ok(())
    }

    /// Writes the next bytes of the file that was begun.
    ///
    /// # Errors
    /// The disk is full or broken.
    pub fn store(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        self.current.as_mut().map_or(Ok(()), |(_, part)| part.write(bytes))?;
        crash::at(CrashPoint::ExchangeStored);
        Ok(())
    }

    /// Ends the file that was begun and returns whether it is right; a damaged one goes to quarantine.
    ///
    /// # Errors
    /// It cannot be moved there.
    pub fn finish(&mut self) -> Result<bool, DiskError> {
        let Some((file, part)) = self.current.take() else { return Ok(false) };
        let (path, hash) = part.finish();
        if hash == file.byte_hash.0 {
            self.group_bytes += file.bytes;
            self.group.push(file);
            crash::at(CrashPoint::ExchangeWhole);
            return Ok(true);
        }
        self.damaged += 1;
        let (quarantine, tmp) = (self.folder.quarantine(), self.folder.tmp());
        let reason = format!("damaged on the way: its SHA-256 is {}, {} was announced", ByteHash(hash), file.byte_hash);
        let name = file.file.file_name();
        quarantine::put_aside(&self.disk, &Aside { file: &path, name: &name, quarantine: &quarantine, tmp: &tmp, reason: &reason })?;
        Ok(false)
    }

    /// Whether enough has come to make it durable.
    pub fn is_group_full(&self) -> bool {
        self.group.len() >= GROUP_FILES_MAX || self.group_bytes >= GROUP_BYTES_MAX
    }

    /// Makes everything durable that is whole, and returns the last file up to which all are.
    ///
    /// # Errors
    /// One of the steps failed; what was published before it is whole.
    pub fn flush(&mut self) -> Result<FileNo, DiskError> {
        if !self.group.is_empty() {
            let inbox = self.folder.inbox();
            let mut files = self.disk.group();
            for file in &self.group {
                files.adopt(&part_path(&self.folder, file.file), &inbox, &file.file.file_name())?;
            }
            files.commit()?;
            crash::at(CrashPoint::ExchangeRenamed);
            self.have.extend(self.group.drain(..).map(|file| file.file));
            self.group_bytes = 0;
        }
        Ok(self.received())
    }

    /// Whether something is whole but not durable.
    pub fn has_unflushed(&self) -> bool {
        !self.group.is_empty()
    }
}
