//! How the client makes files durable: write, flush, rename without replacing, flush the folder (PUT).
//!
//! A file stands in a queue folder whole or not at all, and what is acknowledged survives a power cut.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file that could not be made durable.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}: {source}", .path.display())]
pub struct PutError {
    /// What was tried.
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// What the operating system says.
    pub source: io::Error,
}

impl PutError {
    /// Returns a function that adds what was tried and where.
    pub fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> PutError + use<'a> {
        move |source| PutError { action, path: path.to_owned(), source }
    }
}

/// Flushes a folder, so that the names in it survive a power cut.
///
/// # Errors
/// The operating system refuses.
pub fn sync_folder(folder: &Path) -> Result<(), PutError> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(PutError::at("flush folder", folder))
}

/// Renames without ever replacing a file.
///
/// # Errors
/// The target exists, or the operating system refuses.
pub fn rename_new(from: &Path, to: &Path) -> Result<(), PutError> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // Some file systems know no such rename; they get the two steps below.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {}
            done => return done.map_err(|errno| PutError { action: "rename to", path: to.to_owned(), source: errno.into() }),
        }
    }
    fs::hard_link(from, to).map_err(PutError::at("rename to", to))?;
    fs::remove_file(from).map_err(PutError::at("remove", from))
}

/// Makes files durable under new names in one folder: each file is flushed, all are renamed, then the folder is flushed once.
///
/// # Errors
/// One of the steps failed; the files before it may stand there, none of them half.
pub fn publish(files: &[(PathBuf, PathBuf)], folder: &Path) -> Result<(), PutError> {
    for (from, _) in files {
        File::open(from).and_then(|file| file.sync_all()).map_err(PutError::at("flush", from))?;
    }
    for (from, to) in files {
        rename_new(from, to)?;
    }
    sync_folder(folder)
}

/// Replaces a small file as a whole: readers see the old or the new one.
///
/// # Errors
/// One of the steps failed; the old file stands.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), PutError> {
    let mut name = path.file_name().map_or_else(Default::default, ToOwned::to_owned);
    name.push(".tmp");
    let staged = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file = File::create(&staged)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(PutError::at("write", &staged))?;
    fs::rename(&staged, path).map_err(PutError::at("rename to", path))?;
    path.parent().map_or(Ok(()), |folder| sync_folder(if folder.as_os_str().is_empty() { Path::new(".") } else { folder }))
}

/// Removes a file; that it is not there is as good.
///
/// # Errors
/// The operating system refuses.
pub fn remove(path: &Path) -> Result<(), PutError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(PutError::at("remove", path)),
    }
}
