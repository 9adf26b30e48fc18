//! The docking root: who may work on it, and the path of everything in it.
//!
//! Nobody else builds a path below the root. Names become paths only through `NodeName`, `FileNo` and `Incarnation`,
//! so nothing from a wire can leave the root.

use crate::base::disk::Disk;
use crate::base::folder::{self, EntryKind};
use crate::base::ids::{FileNo, Incarnation, NodeName};
use crate::base::lock::{Hold, Lock, Taken};
use crate::docking::error::DockingError;
use crate::model::toc;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

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
    outboxes: Mutex<()>,
    leases: Leases,
    lock: Option<Lock>,
}

/// Nodes that somebody works for, and an event when one is free.
type Leases = (Mutex<BTreeSet<NodeName>>, Condvar);

/// The right to make an extract of one node.
#[derive(Debug)]
pub struct NodeLease<'r> {
    leases: &'r Leases,
    node: NodeName,
}

impl Drop for NodeLease<'_> {
    fn drop(&mut self) {
        let (held, freed) = self.leases;
        held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.node);
        freed.notify_all();
    }
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
        let hold = match access {
            Access::Look => return Ok(DockingRoot::look(&path)),
            Access::Exclusive => Hold::Exclusive,
            Access::Shared => Hold::Shared,
        };
        disk.ensure_folder(&path)?;
        let lock = match Lock::take(&disk, &path.join("lock"), hold)? {
            Taken::Held(lock) => lock,
            Taken::Busy(holder) => return Err(DockingError::InUse { root: path, holder }),
        };
        let root = DockingRoot { path, disk, outboxes: Mutex::default(), leases: Leases::default(), lock: Some(lock) };
        root.disk.ensure_folder(&root.txnproc())?;
        root.disk.ensure_folder(&root.txnproc_tmp())?;
        root.disk.ensure_folder(&root.router_tmp())?;
        Ok(root)
    }

    /// Returns a root to look at while others work on it ([`Access::Look`]); touches nothing.
    pub fn look(path: &Path) -> DockingRoot {
        DockingRoot { path: path.to_owned(), disk: Disk::new(), outboxes: Mutex::default(), leases: Leases::default(), lock: None }
    }

    /// Returns the root folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the disk handle that everything below the root is written with.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Checks that the root is still ours: nobody has deleted the lock file, and so let another process in.
    ///
    /// # Errors
    /// [`DockingError::Fenced`].
    pub fn check_lock(&self) -> Result<(), DockingError> {
        match &self.lock {
            Some(lock) if !lock.is_current() => {
                Err(DockingError::Fenced { path: self.path.join("lock"), owner: "another process, or whoever deleted it,".to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Keeps others of this process from giving names in outboxes, or taking them away, until the guard is dropped. A number
    /// that the purge is about to delete may be that of a new incarnation's file otherwise.
    pub fn hold_outboxes(&self) -> MutexGuard<'_, ()> {
        self.outboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody else of this process makes an extract of a node, and keeps others from it until the lease is dropped.
    pub fn lease(&self, node: &NodeName) -> NodeLease<'_> {
        let (held, freed) = &self.leases;
        let mut nodes = held.lock().unwrap_or_else(PoisonError::into_inner);
        while nodes.contains(node) {
            nodes = freed.wait(nodes).unwrap_or_else(PoisonError::into_inner);
        }
        nodes.insert(node.clone());
        NodeLease { leases: &self.leases, node: node.clone() }
    }

    /// Returns the queue from Transaction Processor to Router.
    pub fn txnproc(&self) -> PathBuf {
        self.path.join("txnproc")
    }

    /// Returns the folder of its unfinished files.
    pub fn txnproc_tmp(&self) -> PathBuf {
        self.txnproc().join("tmp")
    }

    /// Returns the folder of the Router's unfinished files, of all nodes: one look at it tells what a crash left.
    pub fn router_tmp(&self) -> PathBuf {
        self.path.join("tmp")
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

    /// Returns the socket on which lines come in that somebody else has proved.
    pub fn door(&self) -> PathBuf {
        self.path.join("door")
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
        self.outbox(node).join(toc::extract_file_name(incarnation))
    }

    /// Returns the path of the description of a node's extract, which is written last.
    pub fn extract_toc(&self, node: &NodeName, incarnation: Incarnation) -> PathBuf {
        self.outbox(node).join(toc::toc_file_name(incarnation))
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
        let mut nodes: Vec<NodeName> = folder::list(&self.path)?
            .into_iter()
            .filter(|entry| entry.kind == EntryKind::Folder)
            .filter_map(|entry| entry.name.to_str()?.parse().ok())
            .collect();
        nodes.sort();
        Ok(nodes)
    }
}
