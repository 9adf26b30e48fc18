//! The bridge from a session to `apply`: what waits in the inbox goes into the local database, on a thread of its own.

use crate::base::folder;
use crate::base::ids::{Epoch, FileNo, Incarnation, InstallId, SyncToken};
use crate::client::applier::{Applier, BoxError, LocalPosition, Reports, SharedUploads};
use crate::client::apply::{self, ApplyError, ApplyFolders, ApplyReport};
use crate::client::folder::ClientFolder;
use crate::client::local_uploads::LocalUploads;
use crate::client::outbox::OutboxError;
use crate::session::message::AppliedTo;
use crate::store::local::{LocalDatabase, LocalError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long another program may keep the local database locked before the apply gives up for now.
const LOCKED_MAX: Duration = Duration::from_secs(60);

/// Why the inbox could not be applied to its end.
#[derive(Debug, thiserror::Error)]
pub enum ApplyFault {
    /// Something failed; the next call begins at the watermark.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The database could not be read.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// Nothing more is applied until a person acts.
    #[error("{0}")]
    Stopped(apply::Stopped),
    /// Another program holds the write lock.
    #[error("another program has kept the local database locked for {} s", LOCKED_MAX.as_secs())]
    Locked,
}

/// Applies the inbox of one local database.
pub struct LocalApplier {
    local: LocalDatabase,
    folders: ApplyFolders,
    total: ApplyReport,
    fetch_again: Vec<FileNo>,
    uploads: SharedUploads,
}

impl std::fmt::Debug for LocalApplier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalApplier").field("local", &self.local).field("total", &self.total).finish_non_exhaustive()
    }
}

impl LocalApplier {
    /// Opens the local database of a client folder.
    pub fn open(folder: &ClientFolder) -> Result<LocalApplier, OutboxError> {
        let folders = ApplyFolders::below(folder.path());
        let uploads = LocalUploads::open(folder, &folders.disk)?;
        Ok(LocalApplier {
            local: LocalDatabase::open(folder.database())?,
            folders,
            uploads: Arc::new(Mutex::new(uploads)),
            total: ApplyReport::default(),
            fetch_again: Vec::new(),
        })
    }

    /// Returns what was applied since the applier was opened.
    pub fn total(&self) -> &ApplyReport {
        &self.total
    }

    /// Returns the files that were put aside as damaged and must come again, and forgets them.
    pub fn take_fetch_again(&mut self) -> Vec<FileNo> {
        std::mem::take(&mut self.fetch_again)
    }

    /// Applies everything that can be applied.
    pub fn run(&mut self) -> Result<AppliedTo, ApplyFault> {
        let began = Instant::now();
        loop {
            let report = apply::step(&mut self.local, &self.folders)?;
            self.add(&report);
            if let Some(stopped) = report.stopped {
                return Err(ApplyFault::Stopped(stopped));
            }
            if report.busy {
                if began.elapsed() > LOCKED_MAX {
                    return Err(ApplyFault::Locked);
                }
                // Whoever holds the lock gets a moment to finish.
                std::thread::sleep(Duration::from_millis(5));
            } else if !report.more {
                return self.applied();
            }
        }
    }

    fn add(&mut self, report: &ApplyReport) {
        self.total.files += report.files;
        self.total.units += report.units;
        self.total.rows += report.rows;
        self.total.staged += report.staged;
        self.total.bytes += report.bytes;
        self.total.raw_bytes += report.raw_bytes;
        self.total.applied_file = report.applied_file;
        self.total.applied_unit = report.applied_unit;
        self.total.longest_pause = self.total.longest_pause.max(report.longest_pause);
        self.total.held = report.held.clone();
        self.total.quarantined.extend(report.quarantined.iter().cloned());
        self.total.stopped = report.stopped.clone();
        self.fetch_again.extend(report.quarantined.iter().filter_map(|aside| aside.fetch_again));
    }

    fn applied(&self) -> Result<AppliedTo, ApplyFault> {
        let state = self.local.state()?;
        Ok(AppliedTo { file: state.applied_file, unit: state.applied_unit, hash: state.chain_hash })
    }
}

impl Applier for LocalApplier {
    fn uploads(&mut self) -> Option<SharedUploads> {
        Some(Arc::clone(&self.uploads))
    }

    fn state(&mut self) -> Result<LocalPosition, BoxError> {
        let state = self.local.state()?;
        Ok(LocalPosition {
            unsent: self.local.first_unsent()?,
            server_id: state.server_id,
            server_name: state.server_name,
            epoch: state.epoch,
            node: state.node,
            incarnation: state.incarnation,
            install_id: state.install_id.unwrap_or(InstallId::default()),
            token: self.local.token()?,
            applied: AppliedTo { file: state.applied_file, unit: state.applied_unit, hash: state.chain_hash },
            revision: state.revision,
        })
    }

    fn enter_epoch(&mut self, epoch: Epoch) -> Result<(), BoxError> {
        Ok(self.local.enter_epoch(epoch)?)
    }

    fn keep_token(&mut self, token: SyncToken) -> Result<(), BoxError> {
        Ok(self.local.keep_token(token)?)
    }

    fn apply(&mut self) -> Result<AppliedTo, BoxError> {
        Ok(self.run()?)
    }

    fn reports(&mut self) -> Result<Reports, BoxError> {
        Ok(Reports { stopped: self.local.state()?.stopped, outcomes: self.local.untold_outcomes()? })
    }

    fn told(&mut self, outcomes: &[(u64, u32)]) -> Result<(), BoxError> {
        Ok(self.local.told_outcomes(outcomes)?)
    }

    fn begin_anew(&mut self, incarnation: Incarnation) -> Result<(), BoxError> {
        // What waits is of the former stream. Removed first: cut off in between, the server tells of the new one again.
        for entry in folder::list(&self.folders.inbox)? {
            if entry.name.to_str().is_some_and(|name| FileNo::from_file_name(name).is_some()) {
                self.folders.disk.remove(&entry.path)?;
            }
        }
        self.folders.disk.clean_tmp(&self.folders.tmp)?;
        self.local.begin_anew(incarnation)?;
        tracing::warn!(stage = "exchange", %incarnation, "the node's stream begins anew");
        Ok(())
    }
}
