//! The docking root: who may work on it, and the path of everything in it.
//!
//! Nobody else builds a path below the root. Names become paths only through `NodeName`, `FileNo` and `Incarnation`,
//! so nothing from a wire can leave the root.

use crate::base::disk::Disk;
use crate::base::ids::{FileNo, Incarnation, NodeName};
use crate::docking::error::DockingError;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Most bytes that are read of a lock file.
const LOCK_NOTE_BYTES_MAX: u64 = 1 << 10;

/// How a root is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To run stages: nobody else may.
    Exclusive,
    /// To keep those who run stages out for a moment (backup); many may at once.
    Shared,
    /// To look at it while others work: takes no lock, writes nothing.
    Look,
}

/// An open docking root; the lock goes when it is dropped.
#[derive(Debug)]
pub struct DockingRoot {
    path: PathBuf,
    disk: Disk,
    _lock: Option<File>,
}

impl DockingRoot {
    /// Opens a root, and makes its folders unless it is only looked at.
    ///
    /// # Errors
    /// [`DockingError::InUse`] names the holder; anything else of the disk.
    pub fn open(path: &Path, access: Access) -> Result<DockingRoot, DockingError> {
        DockingRoot::open_with(path, access, Disk::new())
    }

    /// Like [`DockingRoot::open`], with the disk handle of the process.
    ///
    /// # Errors
    /// As [`DockingRoot::open`].
    pub fn open_with(path: &Path, access: Access, disk: Disk) -> Result<DockingRoot, DockingError> {
        let path = path.to_owned();
        if access == Access::Look {
            return Ok(DockingRoot { path, disk, _lock: None });
        }
        disk.ensure_folder(&path)?;
        let lock = take_lock(&path, access)?;
        let root = DockingRoot { path, disk, _lock: Some(lock) };
        root.disk.ensure_folder(&root.txnproc())?;
        root.disk.ensure_folder(&root.txnproc_tmp())?;
        Ok(root)
    }

    /// Returns the root folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the disk handle that everything below the root is written with.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Returns the queue from Transaction Processor to Router.
    pub fn txnproc(&self) -> PathBuf {
        self.path.join("txnproc")
    }

    /// Returns the folder of its unfinished files.
    pub fn txnproc_tmp(&self) -> PathBuf {
        self.txnproc().join("tmp")
    }

    /// Returns the path of a txnproc file.
    pub fn txnproc_file(&self, file_no: FileNo) -> PathBuf {
        self.txnproc().join(file_no.file_name())
    }

    /// Returns the database of the Transaction Processor.
    pub fn cds_db(&self) -> PathBuf {
        self.path.join("cds.db")
    }

    /// Returns the database of the Transaction Router.
    pub fn ledger_db(&self) -> PathBuf {
        self.path.join("ledger.db")
    }

    /// Returns the database of the Synchronization Manager.
    pub fn sessions_db(&self) -> PathBuf {
        self.path.join("sessions.db")
    }

    /// Returns the folder of a node.
    pub fn node(&self, node: &NodeName) -> PathBuf {
        self.path.join(node.as_str())
    }

    /// Returns the folder of files to the node.
    pub fn outbox(&self, node: &NodeName) -> PathBuf {
        self.node(node).join("outbox")
    }

    /// Returns the folder of files from the node.
    pub fn inbox(&self, node: &NodeName) -> PathBuf {
        self.node(node).join("inbox")
    }

    /// Returns the folder of the node's unfinished files.
    pub fn tmp(&self, node: &NodeName) -> PathBuf {
        self.node(node).join("tmp")
    }

    /// Returns the folder of refused files.
    pub fn quarantine(&self, node: &NodeName) -> PathBuf {
        self.node(node).join("quarantine")
    }

    /// Returns the path of a file to the node.
    pub fn outbox_file(&self, node: &NodeName, file_no: FileNo) -> PathBuf {
        self.outbox(node).join(file_no.file_name())
    }

    /// Returns the path of a node's extract.
    pub fn extract(&self, node: &NodeName, incarnation: Incarnation) -> PathBuf {
        self.outbox(node).join(format!("extract-{:08}.db.zst", incarnation.0))
    }

    /// Returns the path of the description of a node's extract, which is written last.
    pub fn extract_toc(&self, node: &NodeName, incarnation: Incarnation) -> PathBuf {
        self.outbox(node).join(format!("extract-{:08}.toc", incarnation.0))
    }

    /// Makes a node's folders if they are not there.
    ///
    /// # Errors
    /// Anything of the disk; also if a symbolic link stands in the place of a folder.
    pub fn ensure_node(&self, node: &NodeName) -> Result<(), DockingError> {
        for folder in [self.node(node), self.outbox(node), self.inbox(node), self.tmp(node), self.quarantine(node)] {
            self.disk.ensure_folder(&folder)?;
        }
        Ok(())
    }

    /// Returns the nodes that have a folder, sorted. Other names in the root are none.
    ///
    /// # Errors
    /// If the root cannot be listed.
    pub fn nodes(&self) -> Result<Vec<NodeName>, DockingError> {
        let error = |source| DockingError::Io { operation: "list", path: self.path.clone(), source };
        let mut nodes = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(error)? {
            let entry = entry.map_err(error)?;
            let is_folder = entry.file_type().map_err(error)?.is_dir();
            if let Some(name) = entry.file_name().to_str().and_then(|name| name.parse::<NodeName>().ok())
                && is_folder
            {
                nodes.push(name);
            }
        }
        nodes.sort();
        Ok(nodes)
    }
}

fn take_lock(root: &Path, access: Access) -> Result<File, DockingError> {
    let path = root.join("lock");
    let error = |operation| {
        let path = path.clone();
        move |source| DockingError::Io { operation, path, source }
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    }
    let mut file = options.open(&path).map_err(error("open"))?;
    let taken = if access == Access::Exclusive { file.try_lock() } else { file.try_lock_shared() };
    match taken {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut note = String::new();
            // The holder is only a courtesy: a note that cannot be read must not hide why the root cannot be opened.
            let holder = match file.take(LOCK_NOTE_BYTES_MAX).read_to_string(&mut note) {
                Ok(_) if !note.trim().is_empty() => note.trim().to_owned(),
                _ => "another process".to_owned(),
            };
            return Err(DockingError::InUse { root: root.to_owned(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(error("lock")(source)),
    }
    if access == Access::Exclusive {
        let program = std::env::current_exe().ok().and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()));
        let program = program.unwrap_or_else(|| "unknown program".to_owned());
        let since = jiff::Timestamp::now();
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "process {} ({program}) since {since:.0}", std::process::id()))
            .map_err(error("write"))?;
    }
    Ok(file)
}
