//! Frames put aside on disk: what a round has collected of a unit larger than memory.
//!
//! The file is of no use to anybody after the round: it is not flushed, it goes when the round ends, and what a crash leaves of it
//! goes when the Router opens.

use crate::base::disk::{Disk, DiskError};
use crate::dx::frame::SealedFrame;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A frame that was put aside.
#[derive(Debug, Clone)]
pub(crate) struct SpooledFrame {
    /// The frame without its bytes.
    seal: SealedFrame,
    at: u64,
    length: usize,
}

/// The frames put aside by one round.
#[derive(Debug)]
pub(crate) struct FrameSpool {
    disk: Disk,
    path: PathBuf,
    file: Option<File>,
    end: u64,
}

impl FrameSpool {
    /// Returns an empty spool; its file comes with the first frame.
    pub(crate) fn new(disk: &Disk, folder: &Path) -> FrameSpool {
        FrameSpool { disk: disk.clone(), path: folder.join("round.frames"), file: None, end: 0 }
    }

    /// Puts a frame aside.
    ///
    /// # Errors
    /// Anything of the disk.
    pub(crate) fn add(&mut self, frame: SealedFrame) -> Result<SpooledFrame, DiskError> {
        let file = match &mut self.file {
            Some(file) => file,
            place => place.insert(self.disk.open_part(&self.path)?),
        };
        let SealedFrame { bytes, .. } = &frame;
        let (at, length) = (self.end, bytes.len());
        let written = file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(bytes));
        written.map_err(self.failed("put a frame aside in"))?;
        self.end += length as u64;
        Ok(SpooledFrame { seal: SealedFrame { bytes: Vec::new(), ..frame }, at, length })
    }

    /// Reads a frame back.
    ///
    /// # Errors
    /// Anything of the disk.
    pub(crate) fn read(&mut self, frame: &SpooledFrame) -> Result<SealedFrame, DiskError> {
        let mut bytes = vec![0; frame.length];
        let read = match &mut self.file {
            Some(file) => file.seek(SeekFrom::Start(frame.at)).and_then(|_| file.read_exact(&mut bytes)),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        read.map_err(self.failed("read a frame back from"))?;
        Ok(SealedFrame { bytes, ..frame.seal.clone() })
    }

    /// Removes the file, if there is one.
    ///
    /// # Errors
    /// Anything of the disk.
    pub(crate) fn clear(&mut self) -> Result<(), DiskError> {
        self.end = 0;
        match self.file.take() {
            Some(_) => self.disk.remove(&self.path),
            None => Ok(()),
        }
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> DiskError + use<> {
        let path = self.path.clone();
        move |source| DiskError::Io { operation, path, source }
    }
}
