//! The bridge from a session to the outbox: what is cut of the local database is sent, and kept for a while after it is merged.

use crate::base::clock::now_seconds;
use crate::base::disk::{Disk, DiskError};
use crate::base::folder::{self, EntryKind};
use crate::base::ids::{FileNo, UnitNo};
use crate::base::limits::UPLOADS_REMEMBERED_MAX;
use crate::client::applier::{BoxError, Fates, Outgoing, Uploads};
use crate::client::folder::ClientFolder;
use crate::client::outbox::{Outbox, OutboxError};
use crate::session::upload::{UploadFile, UploadState};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

/// How long a file is kept after its units are merged, in seconds.
const KEPT_SECONDS: i64 = 7 * 24 * 3_600;

/// What one local database sends. It has a connection of its own, so that a cut does not wait for files that are being applied.
#[derive(Debug)]
pub struct LocalUploads {
    outbox: Outbox,
    folder: PathBuf,
    disk: Disk,
}

impl LocalUploads {
    /// Opens the outbox of a client folder, whose lock the caller holds; `disk` is that of the lock.
    ///
    /// # Errors
    /// The database cannot be opened.
    pub fn open(folder: &ClientFolder, disk: &Disk) -> Result<LocalUploads, OutboxError> {
        Ok(LocalUploads { outbox: Outbox::open(folder, disk)?, folder: folder.outbox(), disk: disk.clone() })
    }
}

impl Uploads for LocalUploads {
    fn cut(&mut self) -> Result<u64, BoxError> {
        Ok(self.outbox.cut()?.units.len() as u64)
    }

    fn agree(&mut self, known: &UploadState) -> Result<Option<String>, BoxError> {
        Ok(self.outbox.agree(known)?)
    }

    fn next(&mut self, after: FileNo) -> Result<Option<Outgoing>, BoxError> {
        Ok(self.outbox.next(after)?.map(|ready| Outgoing {
            file: UploadFile {
                file: ready.row.file,
                bytes: ready.written.bytes,
                byte_hash: ready.written.byte_hash,
                content_hash: ready.written.content_hash,
                first: ready.row.first,
                last: ready.row.last,
            },
            units: ready.units,
            path: ready.path,
        }))
    }

    fn stored(&mut self, file: FileNo) -> Result<(), BoxError> {
        Ok(self.outbox.stored(file)?)
    }

    fn fates(&mut self, sent: &[(UnitNo, UnitNo)]) -> Result<Fates, BoxError> {
        let mut fates = Fates::default();
        for unit in self.outbox.local().pending_units()? {
            if sent.iter().any(|(first, last)| (first..=last).contains(&&unit.head.number)) {
                *(if unit.state == "held" { &mut fates.refused } else { &mut fates.waiting }) += 1;
            }
        }
        fates.conflicts = self.outbox.local().new_conflicts_of(sent)?;
        Ok(fates)
    }

    fn purge(&mut self) -> Result<(), BoxError> {
        let finished = self.outbox.local().finished_uploads()?;
        if finished.is_empty() {
            return Ok(());
        }
        let mut lying = BTreeMap::new();
        for entry in folder::list(&self.folder)? {
            if let (EntryKind::File { .. }, Some(file)) = (entry.kind, entry.name.to_str().and_then(FileNo::from_file_name)) {
                lying.insert(file, entry.path);
            }
        }
        let newest = lying.keys().next_back().copied().unwrap_or_default();
        for file in finished {
            if let Some(path) = lying.get(&file) {
                // The clock only says how long a copy is kept that nothing depends on.
                let written = path.symlink_metadata().and_then(|found| found.modified());
                let written = written.map_err(|source| DiskError::Io { operation: "look at", path: path.clone(), source })?;
                let written = written.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
                let is_old = now_seconds().saturating_sub(written) > KEPT_SECONDS;
                if !is_old && newest.0 - file.0 < UPLOADS_REMEMBERED_MAX {
                    continue;
                }
                self.disk.remove(path)?;
            }
            self.outbox.local().forget_upload(file)?;
        }
        Ok(())
    }
}
