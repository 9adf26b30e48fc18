//! Many files made durable together (the group form of PUT).
//!
//! **Invariant**: nothing stands under a final name before its bytes are flushed, and a commit returns only after the folders are
//! flushed as well.

use crate::base::disk::{Disk, DiskError, io_error, rename_noreplace};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Threads that flush the files of one group.
const FLUSH_THREADS: usize = 8;
/// Files of a group that are open at once; a group may have far more.
const GROUP_OPEN_FILES_MAX: usize = 128;
/// Buffer between a writer function and the file.
const WRITE_BUFFER_BYTES: usize = 64 << 10;

/// Files of many folders that are written, flushed and renamed as a group, so that a round over 10,000 nodes does not
/// cost 10,000 waits one after another. Nothing stands under a final name before [`GroupPut::commit`].
///
/// Dropping a group without commit leaves its temporary files for the next [`Disk::clean_tmp`], as a crash would.
#[derive(Debug)]
pub struct GroupPut {
    disk: Disk,
    open: Vec<(File, Planned)>,
    flushed: Vec<Planned>,
}

#[derive(Debug)]
struct Planned {
    tmp: PathBuf,
    folder: PathBuf,
    name: String,
    /// Written by this group, so of no use without it.
    ours: bool,
}

impl GroupPut {
    pub(super) fn new(disk: Disk) -> GroupPut {
        GroupPut { disk, open: Vec::new(), flushed: Vec::new() }
    }

    /// Writes one file of the group under a temporary name in `tmp_dir`, to become `final_dir/name`.
    ///
    /// # Errors
    /// Anything of the disk. The group can then only be abandoned.
    pub fn add<T>(
        &mut self,
        tmp_dir: &Path,
        final_dir: &Path,
        name: &str,
        write: impl FnOnce(&mut dyn Write) -> io::Result<T>,
    ) -> Result<T, DiskError> {
        let (file, tmp) = match self.disk.create_temporary(tmp_dir, name) {
            // Those that are open are ours to close.
            Err(error) if error.is_out_of_handles() && !self.open.is_empty() => {
                self.flush_open()?;
                self.disk.create_temporary(tmp_dir, name)?
            }
            other => other?,
        };
        let planned = Planned { tmp, folder: final_dir.to_owned(), name: name.to_owned(), ours: true };
        let result = self.disk.crash_point("write", &planned.tmp).and_then(|()| {
            let mut out = BufWriter::with_capacity(WRITE_BUFFER_BYTES, &file);
            write(&mut out).and_then(|value| out.flush().map(|()| value)).map_err(io_error("write", &planned.tmp))
        });
        self.open.push((file, planned));
        if self.open.len() >= GROUP_OPEN_FILES_MAX {
            self.flush_open()?;
        }
        result
    }

    /// Adds a file that was written elsewhere on the same file system, whole but not flushed, to become `final_dir/name`.
    ///
    /// # Errors
    /// Anything of the disk. The group can then only be abandoned.
    pub fn adopt(&mut self, from: &Path, final_dir: &Path, name: &str) -> Result<(), DiskError> {
        let file = self.disk.open(from)?;
        self.open.push((file, Planned { tmp: from.to_owned(), folder: final_dir.to_owned(), name: name.to_owned(), ours: false }));
        if self.open.len() >= GROUP_OPEN_FILES_MAX {
            self.flush_open()?;
        }
        Ok(())
    }

    /// Takes the files of another group in, which was filled by another thread.
    pub fn join(&mut self, other: GroupPut) {
        self.open.extend(other.open);
        self.flushed.extend(other.flushed);
    }

    /// Returns how many files the group has.
    pub fn len(&self) -> usize {
        self.open.len() + self.flushed.len()
    }

    /// Returns whether the group has no file.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Flushes every file, then renames every file, then flushes each folder once.
    ///
    /// # Errors
    /// Anything of the disk. Files that were renamed by then stay under their final names; whoever owns the queue
    /// deletes what its database does not name.
    pub fn commit(mut self) -> Result<(), DiskError> {
        let result = self.flush_open().and_then(|()| self.publish());
        if result.is_err() {
            self.abandon();
        }
        result
    }

    /// Deletes the temporary files that were written here: the disk may be full, and they are of no use. Adopted ones stay.
    pub fn abandon(self) {
        if self.disk.is_stopped() {
            return;
        }
        for planned in self.open.iter().map(|(_, planned)| planned).chain(&self.flushed).filter(|planned| planned.ours) {
            if let Err(error) = std::fs::remove_file(&planned.tmp)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %planned.tmp.display(), %error, "temporary file stays until the next start");
            }
        }
    }

    fn flush_open(&mut self) -> Result<(), DiskError> {
        let open = std::mem::take(&mut self.open);
        let disk = &self.disk;
        let result = in_parallel(&open, |(file, planned)| disk.sync_file(file, &planned.tmp));
        self.flushed.extend(open.into_iter().map(|(_, planned)| planned));
        result
    }

    fn publish(&self) -> Result<(), DiskError> {
        for planned in &self.flushed {
            let to = planned.folder.join(&planned.name);
            self.disk.crash_point("rename", &to)?;
            rename_noreplace(&planned.tmp, &to)?;
        }
        let folders: Vec<&Path> =
            self.flushed.iter().map(|planned| planned.folder.as_path()).collect::<BTreeSet<_>>().into_iter().collect();
        in_parallel(&folders, |folder| self.disk.sync_folder(folder))
    }
}

/// Calls `work` for each item, on a few threads if there are many; returns the first error by position.
fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<(), DiskError> + Sync) -> Result<(), DiskError> {
    if items.len() < 3 {
        return items.iter().try_for_each(work);
    }
    let work = &work;
    let share = items.len().div_ceil(FLUSH_THREADS);
    std::thread::scope(|scope| {
        let threads: Vec<_> = items.chunks(share).map(|part| scope.spawn(move || part.iter().try_for_each(work))).collect();
        let mut result = Ok(());
        for thread in threads {
            match thread.join() {
                Ok(outcome) => result = result.and(outcome),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_stopped_anywhere_leaves_whole_files_or_none() {
        let run = |stop: Option<u64>| {
            let folder = tempfile::tempdir().unwrap();
            let disk = Disk::new();
            let folders: Vec<PathBuf> = (0..3).map(|number| folder.path().join(number.to_string())).collect();
            let tmp = folder.path().join("tmp");
            folders.iter().chain([&tmp]).for_each(|folder| disk.ensure_folder(folder).unwrap());
            let before = disk.operations_done();
            if let Some(stop) = stop {
                disk.stop_after(stop);
            }
            let mut group = disk.group();
            let written = folders
                .iter()
                .try_for_each(|folder| group.add(&tmp, folder, "f", |out| out.write_all(b"content")))
                .and_then(|()| group.commit());
            assert_eq!(written.is_err(), stop.is_some());
            let whole = folders.iter().filter(|folder| std::fs::read(folder.join("f")).is_ok_and(|found| found == b"content")).count();
            let any = folders.iter().filter(|folder| folder.join("f").exists()).count();
            assert_eq!(whole, any);
            Disk::new().clean_tmp(&tmp).unwrap();
            assert_eq!(std::fs::read_dir(&tmp).unwrap().count(), 0);
            (disk.operations_done() - before, whole)
        };
        let (operations, whole) = run(None);
        // Create, write, flush and rename of three files, flush of three folders.
        assert_eq!((operations, whole), (15, 3));
        for stop in 0..operations {
            run(Some(stop));
        }
    }
}
