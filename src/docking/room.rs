//! Room on the disk of the docking root (fault 7): the low-water mark below which routing and extracts pause, and a reserve
//! that is given up when nearly nothing is left, so that acknowledgements and administration go on.
//!
//! Invariant: whoever pauses here has written nothing of its step, so it goes on by itself when there is room, and nothing is lost.

use crate::base::disk::Disk;
use crate::base::limits::{DISK_FREE_FILES_MIN, DISK_RESERVE_BYTES_MAX};
use crate::base::space::{Space, free};
use crate::docking::root::DockingRoot;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Name of the reserve, beside the databases.
const RESERVE: &str = "reserve";

/// There is too little room; whoever gets this waits and tries again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no space left on {}: {space}; routing paused, nothing lost", root.display())]
pub struct NoRoom {
    /// The docking root.
    pub root: PathBuf,
    /// What is left.
    pub space: Space,
}

/// Watches the room of one docking root, which its owner has locked.
#[derive(Debug)]
pub struct Room {
    root: PathBuf,
    tmp: PathBuf,
    disk: Disk,
    bytes_min: u64,
    is_low: Mutex<bool>,
}

/// Returns whether so little is left that routing pauses.
pub fn is_low(space: Space, bytes_min: u64) -> bool {
    space.bytes < bytes_min || space.files.is_some_and(|files| files < DISK_FREE_FILES_MIN)
}

impl Room {
    /// Returns a watch with this low-water mark.
    pub fn new(root: &DockingRoot, bytes_min: u64) -> Room {
        let disk = root.disk().clone();
        Room { root: root.path().to_owned(), tmp: root.router_tmp(), disk, bytes_min, is_low: Mutex::default() }
    }

    /// Looks whether work may go on. After a pause there must be a quarter more than the mark, so that it does not flutter.
    ///
    /// # Errors
    /// [`NoRoom`]: pause.
    pub fn look(&self) -> Result<(), NoRoom> {
        // Where the system does not tell, the disk itself must.
        let Some(space) = free(&self.root) else { return Ok(()) };
        let mut was_low = self.is_low.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes_min = if *was_low { self.bytes_min + self.bytes_min / 4 } else { self.bytes_min };
        let is_low = is_low(space, bytes_min);
        let no_room = NoRoom { root: self.root.clone(), space };
        if is_low && !*was_low {
            tracing::error!(stage = "disk", "{no_room}");
        } else if *was_low && !is_low {
            tracing::info!(stage = "disk", "room again on {}: {space}; routing goes on", self.root.display());
        }
        *was_low = is_low;
        if !is_low {
            self.keep_reserve(space);
            return Ok(());
        }
        if space.bytes < self.reserve_bytes() {
            self.give_up_reserve();
        }
        Err(no_room)
    }

    fn reserve_bytes(&self) -> u64 {
        (self.bytes_min / 4).min(DISK_RESERVE_BYTES_MAX)
    }

    fn keep_reserve(&self, space: Space) {
        let bytes = self.reserve_bytes();
        if bytes == 0 || space.bytes < self.bytes_min + self.bytes_min / 4 + bytes || self.root.join(RESERVE).symlink_metadata().is_ok() {
            return;
        }
        let zeros = [0; 64 << 10];
        let written = self.disk.put_with(&self.tmp, &self.root, RESERVE, |out| {
            let mut left = bytes;
            while left > 0 {
                let part = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
                out.write_all(zeros.get(..part).unwrap_or_default())?;
                left -= part as u64;
            }
            Ok(())
        });
        if let Err(error) = written {
            tracing::warn!(stage = "disk", %error, "no reserve could be set aside");
        }
    }

    fn give_up_reserve(&self) {
        match self.disk.remove(&self.root.join(RESERVE)) {
            Ok(()) => {}
            Err(error) => tracing::warn!(stage = "disk", %error, "the reserve could not be given up"),
        }
    }
}
