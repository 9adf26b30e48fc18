//! The queue that the Transaction Processor writes: `docking/txnproc/NNNNNNNN.dx`, one after another, each naming the one before.

use super::txnproc::TxnProcError;
use crate::base::clock::now_micros;
use crate::base::ids::{ContentHash, FileNo, Revision, TxnId};
use crate::cds::layout::TxnprocFile;
use crate::cds::{Cds, CdsState};
use crate::docking::queue;
use crate::docking::root::DockingRoot;
use crate::dx::error::DxError;
use crate::dx::header::{DxDirection, Header};
use crate::dx::writer::TxnprocWriter;
use std::io;
use std::sync::Arc;

/// Level at which txnproc files are compressed.
const ZSTD_LEVEL: i32 = 1;

/// The end of the queue.
#[derive(Debug)]
pub(super) struct TxnprocQueue {
    root: Arc<DockingRoot>,
    last_file: FileNo,
    last_hash: ContentHash,
    last_unit: TxnId,
}

impl TxnprocQueue {
    /// Opens the queue and recovers: what a crash left in `txnproc/` without a ledger row is deleted.
    pub(super) fn open(root: Arc<DockingRoot>, cds: &Cds) -> Result<TxnprocQueue, TxnProcError> {
        // After a new filling of the data store the files go on where they were: each range begins where the last one ended.
        let last = cds.last_file()?;
        let (last_file, last_hash, last_unit) =
            last.map_or((FileNo(0), ContentHash::default(), cds.state().position), |file| (file.file_no, file.content_hash, file.last));
        root.disk().clean_tmp(&root.txnproc_tmp())?;
        for file in queue::list(&root.txnproc())?.files {
            if file.file_no > last_file {
                tracing::info!(stage = "txnproc", file = %file.file_no, "deleting a file that was never committed");
                root.disk().remove(&file.path)?;
            }
        }
        Ok(TxnprocQueue { root, last_file, last_hash, last_unit })
    }

    /// Writes the next file; `fill` appends its one unit. Nothing stands under the file's name unless all went well, and nobody sees it
    /// before its row is committed.
    pub(super) fn write(
        &self,
        state: &CdsState,
        unit: TxnId,
        revision: Revision,
        fill: impl FnOnce(&mut TxnprocWriter<'_>) -> Result<(), TxnProcError>,
    ) -> Result<TxnprocFile, TxnProcError> {
        let header = Header {
            direction: DxDirection::Txnproc,
            server_id: state.server_id,
            epoch: state.epoch,
            node: None,
            incarnation: Default::default(),
            file_no: self.last_file.next(),
            first: TxnId(self.last_unit.0 + 1),
            last: unit,
            revision,
            previous: self.last_hash,
            install_id: Default::default(),
            applied_unit: TxnId::default(),
        };
        let dx = |source| TxnProcError::Dx { unit, source };
        let mut failed = None;
        let name = header.file_no.file_name();
        let (tmp, folder) = (self.root.txnproc_tmp(), self.root.txnproc());
        // A file of the same name that was never committed may lie there: a unit that was given up after its file was whole.
        self.root.disk().remove(&folder.join(&name))?;
        let written = self.root.disk().put_with(&tmp, &folder, &name, |out| {
            let write = || {
                let mut writer = TxnprocWriter::begin(&header, ZSTD_LEVEL, out).map_err(dx)?;
                fill(&mut writer)?;
                writer.finish().map_err(dx)
            };
            write().map_err(|error| match error {
                // A full disk is the disk's matter, not the unit's.
                TxnProcError::Dx { source: DxError::Io { source, .. }, .. } => source,
                other => {
                    failed = Some(other);
                    io::Error::other("its content could not be made")
                }
            })
        });
        let summary = match (written, failed) {
            (Err(_), Some(error)) => return Err(error),
            (written, _) => written?,
        };
        Ok(TxnprocFile {
            file_no: header.file_no,
            first: header.first,
            last: header.last,
            content_hash: summary.content_hash,
            bytes: summary.bytes,
            created_micros: now_micros(),
        })
    }

    /// Notes that a file was committed.
    pub(super) fn wrote(&mut self, file: &TxnprocFile) {
        self.last_file = file.file_no;
        self.last_hash = file.content_hash;
        self.last_unit = file.last;
    }
}
