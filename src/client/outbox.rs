//! The outbox of a node: units of local changes as files for the server.
//!
//! A file is durable before its row says that it is there (see `store::local_upload`), so whatever crashes in between, the next call makes
//! the file again. A file that was lost or damaged is made again from its units: the units are the truth, the file is a copy.

use crate::base::disk::{Disk, DiskError};
use crate::base::folder;
use crate::base::ids::{ContentHash, FileNo, UnitNo};
use crate::base::limits::UPLOAD_FILE_BYTES_GOAL;
use crate::client::folder::ClientFolder;
use crate::dx::error::DxError;
use crate::dx::upload::UnitHash;
use crate::dx::upload_reader::UploadReader;
use crate::dx::upload_writer::UploadWriter;
use crate::session::upload::UploadState;
use crate::store::local::{LocalDatabase, LocalError};
use crate::store::local_cut::CutReport;
use crate::store::local_upload::{UploadPlan, UploadRow, WrittenUpload};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// How much upload files are compressed.
const ZSTD_LEVEL: i32 = 3;
/// Bytes read at a time when a file is checked.
const CHECK_BYTES: usize = 256 << 10;

/// What keeps a file from being made.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The local database.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The folder.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A unit does not fit into a file.
    #[error("upload file {file} cannot be made")]
    Content {
        /// The file.
        file: FileNo,
        /// Why.
        #[source]
        source: DxError,
    },
    /// A file has to be made again, and its units are no longer what they were.
    #[error(
        "upload file {file} is lost, and made again it has another content than before; begin anew: dockmaster extract NODE, then remote-sync init --replace --renew"
    )]
    Changed {
        /// The file.
        file: FileNo,
    },
}

/// A file that is ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// What the database says of it.
    pub row: UploadRow,
    /// Its hashes and length.
    pub written: WrittenUpload,
    /// How many units are in it.
    pub units: u64,
    /// Where it lies.
    pub path: PathBuf,
}

/// The outbox of one local database.
#[derive(Debug)]
pub struct Outbox {
    local: LocalDatabase,
    folder: PathBuf,
    tmp: PathBuf,
    disk: Disk,
    bytes_goal: u64,
}

impl Outbox {
    /// Opens the outbox of a client folder. The caller holds the folder's lock; `disk` is that of the lock.
    ///
    /// # Errors
    /// The database cannot be opened.
    pub fn open(folder: &ClientFolder, disk: &Disk) -> Result<Outbox, OutboxError> {
        let local = LocalDatabase::open(folder.database())?;
        Ok(Outbox { local, folder: folder.outbox(), tmp: folder.tmp(), disk: disk.clone(), bytes_goal: UPLOAD_FILE_BYTES_GOAL })
    }

    /// Lets files end at another size.
    #[must_use]
    pub fn with_bytes_goal(mut self, bytes_goal: u64) -> Outbox {
        self.bytes_goal = bytes_goal;
        self
    }

    /// Returns the local database.
    pub fn local(&self) -> &LocalDatabase {
        &self.local
    }

    /// Makes units of what was changed since the last cut.
    ///
    /// # Errors
    /// As [`LocalDatabase::cut`].
    pub fn cut(&self) -> Result<CutReport, OutboxError> {
        Ok(self.local.cut()?)
    }

    /// Takes what the server has of this database: all files to `stored`, of which the last has that hash, no unit above `last_unit`, and units with
    /// these hashes.
    /// Units that were never sent and have numbers that the server knows, of units that were lost with a disk, get others (fault 19).
    /// Returns what a person should know.
    ///
    /// # Errors
    /// The database cannot be written, or the folder cannot be read.
    pub fn agree(&self, known: &UploadState) -> Result<Option<String>, OutboxError> {
        let (stored, hash, last_unit) = (known.stored, known.hash, known.last_unit);
        self.recognize(known)?;
        let mut remark = self.agree_on_files(stored, hash, last_unit)?;
        let moved = self.local.renumber_unsent(last_unit)?;
        if moved > 0 {
            let begin = remark.unwrap_or_else(|| "this database was restored from an older copy".to_owned());
            remark = Some(format!("{begin}; {moved} units that were not sent have new numbers, above {last_unit}"));
        }
        Ok(remark)
    }

    /// Finds out which units were sent after the copy was made from which this database was restored: the server tells, and the files in the
    /// folder do for units that the server has not looked at yet.
    fn recognize(&self, known: &UploadState) -> Result<(), OutboxError> {
        let unsent = self.local.unsent_units(known.last_unit)?;
        if unsent.is_empty() {
            return Ok(());
        }
        let install = self.local.state()?.install_id.unwrap_or_default();
        let mut sent: BTreeSet<(UnitNo, ContentHash)> = known.units.iter().copied().collect();
        for entry in folder::list(&self.folder)? {
            if entry.name.to_str().and_then(FileNo::from_file_name).is_none() {
                continue;
            }
            let file = self.disk.open(&entry.path)?;
            let read = || -> Result<Vec<(UnitNo, ContentHash)>, DxError> {
                let mut reader = UploadReader::open(file)?;
                if reader.header().install_id != install {
                    return Ok(Vec::new());
                }
                let (mut units, mut found) = (reader.units(), Vec::new());
                while let Some(head) = units.next_head()? {
                    let mut hash = UnitHash::begin(head.number);
                    while let Some((heading, change)) = units.next_change()? {
                        hash.change(&heading, &change)?;
                    }
                    found.push((head.number, hash.finish()));
                }
                Ok(found)
            };
            match read() {
                Ok(found) => sent.extend(found),
                // It is a copy: what it tells is welcome, and nothing depends on it.
                Err(error) => tracing::warn!(stage = "outbox", file = %entry.path.display(), %error, "an upload file cannot be read"),
            }
        }
        let mut same = None;
        for number in unsent {
            let mut hash = UnitHash::begin(number);
            let refused = |source| OutboxError::Content { file: FileNo(0), source };
            self.local.each_change(number, |heading, change| hash.change(&heading, &change).map_err(refused))?;
            if !sent.contains(&(number, hash.finish())) {
                break;
            }
            same = Some(number);
        }
        same.map_or(Ok(()), |same| Ok(self.local.mark_offered(same)?))
    }

    fn agree_on_files(&self, stored: FileNo, hash: ContentHash, last_unit: UnitNo) -> Result<Option<String>, OutboxError> {
        let ours = self.local.upload(stored)?;
        let is_same = if stored == FileNo(0) { ours.is_none() } else { ours.is_some_and(|row| row.content_hash == hash) };
        let newest_stored = self.local.last_stored_upload()?;
        let is_behind = newest_stored > stored;
        let is_older = last_unit >= self.local.next_unit()?;
        if is_same && !is_behind && !is_older {
            self.local.mark_stored(stored)?;
            return Ok(None);
        }
        self.local.continue_uploads(stored, hash, last_unit)?;
        self.local.mark_stored(stored)?;
        Ok(Some(match (is_same, is_behind) {
            (true, true) => format!(
                "the server has upload files to {stored} only, and had them to {newest_stored}: it was restored; what is not confirmed is sent again"
            ),
            (true, false) => format!(
                "the server knows changes of this database to unit {last_unit}: it was restored from an older copy; new changes are numbered behind them"
            ),
            (false, _) => format!(
                "the server has another upload file {stored} than this database made: it was restored from an older copy; what is not confirmed is sent again"
            ),
        }))
    }

    /// Returns the next file after one that the server does not have, whole and right; `None` if nothing waits.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn next(&self, after: FileNo) -> Result<Option<Ready>, OutboxError> {
        if let Some(row) = self.local.next_made_upload(after)? {
            return self.made(row);
        }
        let Some(plan) = self.local.next_upload(self.bytes_goal)? else { return Ok(None) };
        let file = plan.header.file_no;
        // Of a file without a row nobody knows.
        self.disk.remove(&self.path(file))?;
        let written = self.write(&plan)?;
        self.local.store_upload(&plan, &written)?;
        match self.local.upload(file)? {
            Some(row) => Ok(Some(Ready { row, written, units: plan.units.len() as u64, path: self.path(file) })),
            None => Err(OutboxError::Changed { file }),
        }
    }

    /// Returns a file that was made before, made again if it is lost or damaged.
    fn made(&self, row: UploadRow) -> Result<Option<Ready>, OutboxError> {
        let (file, path) = (row.file, self.path(row.file));
        let plan = self.local.upload_again(&row)?;
        let mut written = WrittenUpload { content_hash: row.content_hash, bytes: row.bytes, byte_hash: row.byte_hash.unwrap_or_default() };
        if !self.is_genuine(&path, &written)? {
            let Some(plan) = &plan else { return Err(OutboxError::Changed { file }) };
            tracing::warn!(stage = "outbox", %file, "an upload file is lost or damaged and is made again");
            self.disk.remove(&path)?;
            written = self.write(plan)?;
            if written.content_hash != row.content_hash {
                return Err(OutboxError::Changed { file });
            }
            self.local.store_upload(plan, &written)?;
        }
        let units = plan.map_or(row.last.0 - row.first.0 + 1, |plan| plan.units.len() as u64);
        Ok(Some(Ready { row, written, units, path }))
    }

    fn path(&self, file: FileNo) -> PathBuf {
        self.folder.join(file.file_name())
    }

    fn is_genuine(&self, path: &Path, written: &WrittenUpload) -> Result<bool, OutboxError> {
        let failed = |source| DiskError::Io { operation: "read", path: path.to_owned(), source };
        let mut file = match self.disk.open(path) {
            Err(error) if error.is_not_found() => return Ok(false),
            other => other?,
        };
        if file.metadata().map_err(failed)?.len() != written.bytes {
            return Ok(false);
        }
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; CHECK_BYTES]);
        loop {
            let length = file.read(&mut buffer).map_err(failed)?;
            if length == 0 {
                return Ok(hash.finalize().as_slice() == written.byte_hash.0);
            }
            hash.update(buffer.get(..length).unwrap_or_default());
        }
    }

    /// Writes a file, one change in memory at a time, and makes it durable.
    fn write(&self, plan: &UploadPlan) -> Result<WrittenUpload, OutboxError> {
        let file = plan.header.file_no;
        // What the disk hands through as an error of writing is kept here as what it is.
        let mut refused = None;
        let written = self.disk.put_with(&self.tmp, &self.folder, &file.file_name(), |out| {
            self.write_units(plan, out).map_err(|error| {
                let text = error.to_string();
                refused = Some(error);
                io::Error::other(text)
            })
        });
        match (written, refused) {
            (Ok(written), _) => Ok(written),
            (Err(_), Some(error @ (OutboxError::Local(_) | OutboxError::Changed { .. }))) => Err(error),
            (Err(_), Some(OutboxError::Content { file, source })) if !matches!(source, DxError::Io { .. }) => {
                Err(OutboxError::Content { file, source })
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    fn write_units(&self, plan: &UploadPlan, out: &mut dyn Write) -> Result<WrittenUpload, OutboxError> {
        let file = plan.header.file_no;
        let refused = |source| OutboxError::Content { file, source };
        let mut writer = UploadWriter::begin(&plan.header, ZSTD_LEVEL, out).map_err(refused)?;
        for number in &plan.units {
            let head = self.local.pending_head(*number)?.ok_or(OutboxError::Changed { file })?;
            writer.begin_unit(&head).map_err(refused)?;
            self.local.each_change(*number, |heading, change| writer.change(&heading, &change).map_err(refused))?;
        }
        let summary = writer.finish().map_err(refused)?;
        Ok(WrittenUpload { content_hash: summary.content_hash, bytes: summary.bytes, byte_hash: summary.byte_hash })
    }

    /// Notes that the server has all files to this one durable.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn stored(&self, file: FileNo) -> Result<(), OutboxError> {
        Ok(self.local.mark_stored(file)?)
    }

    /// Deletes files that nobody needs any more.
    ///
    /// # Errors
    /// A file cannot be deleted.
    pub fn purge(&self) -> Result<(), OutboxError> {
        for file in self.local.finished_uploads()? {
            self.disk.remove(&self.path(file))?;
            self.local.forget_upload(file)?;
        }
        Ok(())
    }
}
