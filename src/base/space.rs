//! How much room a disk has left, in bytes and in files.

use std::fmt;
use std::path::Path;

/// What a disk has left for an ordinary user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes.
    pub bytes: u64,
    /// Files that can still be made; `None` where the file system has no such limit.
    pub files: Option<u64>,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, unit) = match self.bytes {
            bytes if bytes >= 1 << 30 => (bytes as f64 / f64::from(1 << 30), "GB"),
            bytes => (bytes as f64 / f64::from(1 << 20), "MB"),
        };
        write!(f, "free {bytes:.1} {unit}")?;
        match self.files {
            Some(files) if files < 10_000 => write!(f, " and {files} files"),
            _ => Ok(()),
        }
    }
}

/// Returns what is left where `path` lies; `None` where the system does not tell.
#[cfg(unix)]
pub fn free(path: &Path) -> Option<Space> {
    let space = rustix::fs::statvfs(path).ok()?;
    let files = (space.f_files > 0).then_some(space.f_favail);
    Some(Space { bytes: space.f_bavail.saturating_mul(space.f_frsize), files })
}

/// Returns what is left where `path` lies; `None` where the system does not tell.
#[cfg(not(unix))]
pub fn free(_path: &Path) -> Option<Space> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_folder_that_can_be_written_has_room_and_one_that_is_not_there_has_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free(folder.path()).unwrap().bytes > 0);
        assert_eq!(free(&folder.path().join("none")), None);
    }

    #[test]
    fn room_reads_well() {
        assert_eq!(Space { bytes: 3 << 30, files: None }.to_string(), "free 3.0 GB");
        assert_eq!(Space { bytes: 1_600_000, files: Some(12) }.to_string(), "free 1.5 MB and 12 files");
    }
}
