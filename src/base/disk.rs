//! The only writer of files (PUT and FSY of the failure model).
//!
//! Invariants:
//! - A file under its final name is complete and durable: it was written and flushed under a temporary name, renamed
//!   without replacing anything, and its folder flushed.
//! - Nothing that exists is overwritten, and no symbolic link is followed in the last component of a path.
//! - After a failed flush nothing more is written (poison): the kernel may have thrown the bytes away and would report
//!   success on a second try. The process has to start again and recover from its database.

use crate::base::crash::{self, CrashPoint};
use crate::base::defect::{self, Defect};
use crate::base::folder::{EntryKind, list};
use crate::base::group::GroupPut;
use crate::base::handles;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Most bytes that are read of a file of secrets.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// A failed operation on a file or folder.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The operating system refused.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried, e.g. `write`.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The final name is taken; nothing was replaced.
    #[error("{} exists already and is never replaced", path.display())]
    Exists {
        /// The taken name.
        path: PathBuf,
    },
    /// An earlier flush failed, so nothing is written until the process starts again.
    #[error("{operation} {}: an earlier flush to disk failed, nothing is written until a restart", path.display())]
    Poisoned {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
    },
    /// Others may read a file of secrets.
    #[error("{} is a secret, but its mode is {mode:03o}: others may read it", path.display())]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Something other than an ordinary file stands where one was expected.
    #[error("{} is not an ordinary file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
}

impl DiskError {
    /// Returns whether the disk, or the user's share of it, is full: try again when there is room.
    pub fn is_no_space(&self) -> bool {
        match self {
            DiskError::Io { source, .. } => matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded),
            _ => false,
        }
    }

    /// Returns whether no file handle is left.
    pub fn is_out_of_handles(&self) -> bool {
        matches!(self, DiskError::Io { source, .. } if handles::is_exhausted(source))
    }

    /// Returns whether the file or folder was not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, DiskError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Handle on the disk; clones share the poison.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    poisoned: Arc<AtomicBool>,
    temporary_names: Arc<AtomicU64>,
    /// What is made is for whoever the system lets in, not for its owner alone.
    is_shared: bool,
    #[cfg(test)]
    stop: Arc<std::sync::Mutex<StopAt>>,
}

/// Test hook: how many operations were done, and after how many the "process" is dead.
#[cfg(test)]
#[derive(Debug, Default)]
struct StopAt {
    done: u64,
    after: Option<u64>,
}

impl Disk {
    /// Returns a handle that is not poisoned.
    pub fn new() -> Disk {
        Disk::default()
    }

    /// Returns a handle for a place where others are to read what is made: files and folders get the modes that the system gives by itself.
    pub fn shared() -> Disk {
        Disk { is_shared: true, ..Disk::default() }
    }

    /// Returns whether an earlier flush failed.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// Marks a place where a crash leaves another state on disk. Every operation of this type passes it; a stage adds
    /// those around its database commit.
    ///
    /// # Errors
    /// [`DiskError::Poisoned`]; in tests also at the injected stop.
    pub fn crash_point(&self, operation: &'static str, path: &Path) -> Result<(), DiskError> {
        if self.is_poisoned() {
            return Err(DiskError::Poisoned { operation, path: path.to_owned() });
        }
        crash::at(CrashPoint::DiskOperation);
        #[cfg(test)]
        {
            let mut stop = self.stop.lock().unwrap();
            if stop.after.is_some_and(|after| stop.done >= after) {
                return Err(io_error(operation, path)(io::Error::other("injected stop")));
            }
            stop.done += 1;
        }
        Ok(())
    }

    /// Test hook: lets `operations` more operations pass, then refuses all.
    #[cfg(test)]
    pub(crate) fn stop_after(&self, operations: u64) {
        let mut stop = self.stop.lock().unwrap();
        stop.after = Some(stop.done + operations);
    }

    /// Test hook: how many operations were done so far.
    #[cfg(test)]
    pub(crate) fn operations_done(&self) -> u64 {
        self.stop.lock().unwrap().done
    }

    /// Test hook: behaves as after a failed flush.
    #[cfg(test)]
    pub(crate) fn poison_for_test(&self) {
        self.poison();
    }

    #[cfg(test)]
    pub(super) fn is_stopped(&self) -> bool {
        let stop = self.stop.lock().unwrap();
        stop.after.is_some_and(|after| stop.done >= after)
    }

    #[cfg(not(test))]
    pub(super) fn is_stopped(&self) -> bool {
        false
    }

    fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    /// Writes `bytes` as `final_dir/name` by the PUT protocol. Both folders must be on one file system.
    ///
    /// # Errors
    /// [`DiskError::Exists`] if the name is taken; anything else of the disk. On error nothing stands under the name,
    /// but for a failed flush of the folder, after which the handle is poisoned.
    pub fn put(&self, tmp_dir: &Path, final_dir: &Path, name: &str, bytes: &[u8]) -> Result<(), DiskError> {
        self.put_with(tmp_dir, final_dir, name, |out| out.write_all(bytes))
    }

    /// Like [`Disk::put`], with the content written by `write`.
    ///
    /// # Errors
    /// As [`Disk::put`].
    pub fn put_with<T>(
        &self,
        tmp_dir: &Path,
        final_dir: &Path,
        name: &str,
        write: impl FnOnce(&mut dyn Write) -> io::Result<T>,
    ) -> Result<T, DiskError> {
        let mut group = self.group();
        match group.add(tmp_dir, final_dir, name, write) {
            Ok(value) => group.commit().map(|()| value),
            Err(error) => {
                group.abandon();
                Err(error)
            }
        }
    }

    /// Returns an empty group of files that become durable together.
    pub fn group(&self) -> GroupPut {
        GroupPut::new(self.clone())
    }

    /// Moves a file that is complete and flushed to `final_dir/name`, without replacing, and flushes both folders.
    ///
    /// # Errors
    /// [`DiskError::Exists`] if the name is taken; anything else of the disk.
    pub fn rename(&self, from: &Path, final_dir: &Path, name: &str) -> Result<(), DiskError> {
        let to = final_dir.join(name);
        self.crash_point("rename", &to)?;
        rename_noreplace(from, &to)?;
        self.sync_folder(final_dir)?;
        match from.parent() {
            Some(folder) if folder != final_dir => self.sync_folder(folder),
            _ => Ok(()),
        }
    }

    /// Moves a file that is complete and flushed to `to` in the same folder, in place of what stands there, and flushes the folder.
    ///
    /// # Errors
    /// Anything of the disk.
    pub fn replace(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        self.crash_point("replace", to)?;
        std::fs::rename(from, to).map_err(io_error("replace", to))?;
        self.sync_folder(folder_of(to))
    }

    /// Flushes an open file.
    ///
    /// # Errors
    /// A failure poisons the handle.
    pub fn sync_file(&self, file: &File, path: &Path) -> Result<(), DiskError> {
        self.crash_point("flush", path)?;
        if defect::is_planted(Defect::NoFileFlush) {
            return Ok(());
        }
        file.sync_all().map_err(|error| {
            self.poison();
            io_error("flush", path)(error)
        })
    }

    /// Flushes the entries of a folder. Does nothing where folders cannot be opened (not Unix).
    ///
    /// # Errors
    /// A failure poisons the handle.
    pub fn sync_folder(&self, folder: &Path) -> Result<(), DiskError> {
        self.crash_point("flush folder", folder)?;
        if cfg!(unix) && !defect::is_planted(Defect::NoFolderFlush) {
            File::open(folder).and_then(|file| file.sync_all()).map_err(|error| {
                self.poison();
                io_error("flush folder", folder)(error)
            })?;
        }
        Ok(())
    }

    /// Deletes a file and flushes nothing: a file that comes back after a power cut is deleted again.
    ///
    /// # Errors
    /// Anything of the disk but "not there", which is what was wanted.
    pub fn remove(&self, path: &Path) -> Result<(), DiskError> {
        self.crash_point("delete", path)?;
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("delete", path)(error)),
            _ => Ok(()),
        }
    }

    /// Makes a file that is there one that its owner alone may use.
    ///
    /// # Errors
    /// Anything of the disk.
    #[cfg(unix)]
    pub fn make_private(&self, path: &Path) -> Result<(), DiskError> {
        self.crash_point("set mode", path)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(path, mode).map_err(io_error("set the mode of", path))
    }

    /// Deletes whatever files lie in a `tmp` folder: nobody refers to them. Returns how many.
    ///
    /// # Errors
    /// Anything of the disk; a missing folder is an empty one.
    pub fn clean_tmp(&self, tmp_dir: &Path) -> Result<usize, DiskError> {
        let mut removed = 0;
        for entry in list(tmp_dir)? {
            if entry.kind != EntryKind::Folder {
                self.remove(&entry.path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Makes a folder and its parents, only for the owner's eyes (0700 on Unix) unless the handle is a shared one.
    ///
    /// # Errors
    /// Anything of the disk; also if something that is not a folder, a symbolic link included, stands there.
    pub fn ensure_folder(&self, folder: &Path) -> Result<(), DiskError> {
        match std::fs::symlink_metadata(folder) {
            Ok(found) if found.is_dir() => return Ok(()),
            Ok(_) => return Err(io_error("make folder", folder)(io::Error::from(io::ErrorKind::NotADirectory))),
            Err(_) => {}
        }
        self.crash_point("make folder", folder)?;
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, if self.is_shared { 0o777 } else { 0o700 });
        builder.create(folder).map_err(io_error("make folder", folder))?;
        self.sync_folder(folder_of(folder))
    }

    /// Opens an ordinary file for reading; a symbolic link, folder or device is refused.
    ///
    /// # Errors
    /// [`DiskError::NotAFile`]; anything else of the disk.
    pub fn open(&self, path: &Path) -> Result<File, DiskError> {
        let mut options = OpenOptions::new();
        options.read(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, nofollow_flags());
        let file = options.open(path).map_err(|error| {
            // ELOOP: the last component is a symbolic link.
            match std::fs::symlink_metadata(path) {
                Ok(found) if !found.is_file() => DiskError::NotAFile { path: path.to_owned() },
                _ => io_error("open", path)(error),
            }
        })?;
        let found = file.metadata().map_err(io_error("look at", path))?;
        if found.is_file() { Ok(file) } else { Err(DiskError::NotAFile { path: path.to_owned() }) }
    }

    /// Reads an ordinary file of text, `max` bytes of it at most.
    ///
    /// # Errors
    /// As [`Disk::open`]; also if it is no UTF-8.
    pub fn read_text(&self, path: &Path, max: u64) -> Result<String, DiskError> {
        let mut text = String::new();
        self.open(path)?.take(max).read_to_string(&mut text).map_err(io_error("read", path))?;
        Ok(text)
    }

    /// Reads a file of secrets, which nobody but its owner may read.
    ///
    /// # Errors
    /// [`DiskError::Readable`] if others may read it; anything else of the disk.
    pub fn read_secret(&self, path: &Path) -> Result<String, DiskError> {
        let file = self.open(path)?;
        #[cfg(unix)]
        {
            let mode = std::os::unix::fs::MetadataExt::mode(&file.metadata().map_err(io_error("look at", path))?) & 0o777;
            if mode & 0o077 != 0 {
                return Err(DiskError::Readable { path: path.to_owned(), mode });
            }
        }
        let mut text = String::new();
        file.take(SECRET_BYTES_MAX).read_to_string(&mut text).map_err(io_error("read", path))?;
        Ok(text)
    }

    /// Opens a file that is being received, to continue it, and makes it if it is not there. Only for `tmp` folders.
    ///
    /// # Errors
    /// Anything of the disk; also if a symbolic link stands there.
    pub fn open_part(&self, path: &Path) -> Result<File, DiskError> {
        self.crash_point("open", path)?;
        self.owned_file().read(true).create(true).truncate(false).open(path).map_err(io_error("open", path))
    }

    /// Makes a new file that its caller fills, flushes by [`Disk::sync_file`] and moves to its place.
    ///
    /// # Errors
    /// Anything of the disk; also if the name is taken.
    pub fn create(&self, path: &Path) -> Result<File, DiskError> {
        self.crash_point("create", path)?;
        self.owned_file().create_new(true).open(path).map_err(io_error("create", path))
    }

    /// Writes `bytes` as `path`, in place of what stands there: readers see the old content or the new one.
    ///
    /// # Errors
    /// Anything of the disk; the old content stands then.
    pub fn replace_with(&self, tmp_dir: &Path, path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
        let name = path.file_name().map_or_else(|| "unnamed".into(), |name| name.to_string_lossy().into_owned());
        let (mut file, tmp) = self.create_temporary(tmp_dir, &name)?;
        file.write_all(bytes).map_err(io_error("write", &tmp))?;
        self.sync_file(&file, &tmp)?;
        self.replace(&tmp, path)
    }

    /// Gives a file a second name, which must be free. File systems that know no second names get a flushed copy.
    ///
    /// # Errors
    /// Anything of the disk.
    pub fn keep_as(&self, path: &Path, second: &Path) -> Result<(), DiskError> {
        self.crash_point("keep as", second)?;
        if std::fs::hard_link(path, second).is_err() {
            std::fs::copy(path, second).map_err(io_error("copy to", second))?;
            self.sync_path(second)?;
        }
        Ok(())
    }

    /// Copies a file to a new one that its caller changes; it is not flushed.
    ///
    /// # Errors
    /// Anything of the disk; also if the name is taken.
    pub fn copy(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        let (mut source, mut target) = (self.open(from)?, self.create(to)?);
        io::copy(&mut source, &mut target).map(drop).map_err(io_error("copy to", to))
    }

    /// Flushes a file that somebody else wrote.
    ///
    /// # Errors
    /// As [`Disk::sync_file`].
    pub fn sync_path(&self, path: &Path) -> Result<(), DiskError> {
        let file = self.open(path)?;
        self.sync_file(&file, path)
    }

    /// Returns how a file that only its owner may read is opened for writing; a link in its place is refused.
    fn owned_file(&self) -> OpenOptions {
        let mut options = OpenOptions::new();
        options.write(true);
        #[cfg(unix)]
        {
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, if self.is_shared { 0o666 } else { 0o600 });
            std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, nofollow_flags());
        }
        options
    }

    pub(super) fn create_temporary(&self, tmp_dir: &Path, name: &str) -> Result<(File, PathBuf), DiskError> {
        let number = self.temporary_names.fetch_add(1, Ordering::Relaxed);
        let path = tmp_dir.join(format!("{name}.{}-{number}.tmp", std::process::id()));
        let file = self.create(&path)?;
        Ok((file, path))
    }
}

/// Returns the folder that a path lies in; a bare name lies in the current one.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(super) fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError + use<> {
    let path = path.to_owned();
    move |source| DiskError::Io { operation, path, source }
}

#[cfg(unix)]
fn nofollow_flags() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits() as i32
}

/// Renames unless the target exists; the check and the rename are one step.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn rename_noreplace(from: &Path, to: &Path) -> Result<(), DiskError> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::EXIST) => Err(DiskError::Exists { path: to.to_owned() }),
        // The file system does not know the flag (some network shares): a hard link refuses a taken name as well.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => link_noreplace(from, to),
        Err(error) => Err(io_error("rename", to)(error.into())),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn rename_noreplace(from: &Path, to: &Path) -> Result<(), DiskError> {
    link_noreplace(from, to)
}

/// Gives the file its final name by a hard link; where links are unknown, checks and renames (each folder has one writer).
fn link_noreplace(from: &Path, to: &Path) -> Result<(), DiskError> {
    match std::fs::hard_link(from, to) {
        Ok(()) => std::fs::remove_file(from).map_err(io_error("delete", from)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(DiskError::Exists { path: to.to_owned() }),
        Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) => {
            if std::fs::symlink_metadata(to).is_ok() {
                return Err(DiskError::Exists { path: to.to_owned() });
            }
            std::fs::rename(from, to).map_err(io_error("rename", to))
        }
        Err(error) => Err(io_error("rename", to)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault8_a_poisoned_disk_refuses_everything() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::new();
        disk.clone().poison_for_test();
        let path = folder.path();
        for error in [disk.put(path, path, "f", b"x").unwrap_err(), disk.remove(path).unwrap_err(), disk.sync_folder(path).unwrap_err()] {
            assert!(matches!(error, DiskError::Poisoned { .. }), "{error}");
        }
        assert!(!path.join("f").exists());
    }

    #[test]
    fn fault7_a_full_disk_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let full = |_: &mut dyn Write| Err::<(), _>(io::Error::from(io::ErrorKind::StorageFull));
        let error = Disk::new().put_with(path, path, "f", full).unwrap_err();
        assert!(error.is_no_space() && !error.is_not_found());
        // What was written by then does not keep the disk full.
        assert_eq!(std::fs::read_dir(path).unwrap().count(), 0);
    }
}
