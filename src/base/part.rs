//! A file that comes in pieces: on disk and in the hash at the same time, so that it is proved when its last byte is there.

use crate::base::disk::{Disk, DiskError};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

/// A file that is coming, on disk and in the hash.
pub struct Part {
    file: File,
    path: PathBuf,
    at: u64,
    hasher: Sha256,
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part").field("path", &self.path).field("at", &self.at).finish_non_exhaustive()
    }
}

impl Part {
    /// Opens a part file and keeps its first `offset` bytes.
    ///
    /// # Errors
    /// The file cannot be written, or has fewer bytes.
    pub fn open(disk: &Disk, path: PathBuf, offset: u64) -> Result<Part, DiskError> {
        let mut file = disk.open_part(&path)?;
        let mut hasher = Sha256::new();
        let mut keep = || -> std::io::Result<()> {
            file.set_len(offset.min(file.metadata()?.len()))?;
            let mut buffer = vec![0; 64 << 10];
            let mut left = offset;
            while left > 0 {
                let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                file.read_exact(&mut buffer[..wanted])?;
                hasher.update(&buffer[..wanted]);
                left -= wanted as u64;
            }
            file.seek(SeekFrom::Start(offset)).map(drop)
        };
        if let Err(source) = keep() {
            return Err(DiskError::Io { operation: "continue", path, source });
        }
        Ok(Part { file, path, at: offset, hasher })
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// The disk is full or broken.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        self.file.write_all(bytes).map_err(|source| DiskError::Io { operation: "write", path: self.path.clone(), source })?;
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Returns how many bytes are there.
    pub fn bytes(&self) -> u64 {
        self.at
    }

    /// Ends writing; returns the path and the SHA-256 of all bytes.
    pub fn finish(self) -> (PathBuf, [u8; 32]) {
        (self.path, self.hasher.finalize().into())
    }
}
