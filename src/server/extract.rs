//! Extract: makes the ready local database of one node, as of one unit, and puts it into the node's outbox (domain 9, R15).
//!
//! It reads the consolidated data store through the caller's read transaction and never touches the server database, so nobody
//! waits for it. Crash order: the database is built in `tmp`, compressed and PUT, then the table of contents; an extract without one
//! does not exist, and what a crash leaves is removed when the next extract of the node is made.

use crate::base::crash::{self, CrashPoint};
use crate::base::disk::{Disk, DiskError};
use crate::base::folder;
use crate::base::ids::{ByteHash, ContentHash, Epoch, FileNo, Incarnation, NodeName, Revision, ServerId, TxnId};
use crate::docking::root::DockingRoot;
use crate::model::dock::Dock;
use crate::model::schema::Schema;
use crate::model::toc::{self, Toc};
use crate::model::upload::FinishedUnit;
use crate::store::local::LocalState;
use crate::store::local_build::{self, BuildError, Built};
use rusqlite::Connection;
use sha2::{Digest, Sha256};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// Fast, and already close to what higher levels reach on database pages.
const ZSTD_LEVEL: i32 = 3;
/// Lines about what is left out that the table of contents has.
const LEFT_OUT_LINES_MAX: usize = 100;

/// What an extract is made of.
#[derive(Debug)]
pub struct ExtractJob<'a> {
    /// The consolidated data store in a read transaction that is pinned at `unit`; `temp.vis_{i}(rid INTEGER PRIMARY KEY)` holds the
    /// visible rowids of `d{i}` for every table that belongs to an object.
    pub cds: &'a Connection,
    /// The definition in force.
    pub dock: &'a Dock,
    /// The server's schema.
    pub schema: &'a Schema,
    /// Identity of the server database.
    pub server_id: ServerId,
    /// Its name.
    pub server_name: &'a str,
    /// Its history.
    pub epoch: Epoch,
    /// The node.
    pub node: &'a NodeName,
    /// Its new incarnation.
    pub incarnation: Incarnation,
    /// The unit at whose end the rows are taken.
    pub unit: TxnId,
    /// Definition in force at that unit.
    pub revision: Revision,
    /// Where the node's folders are.
    pub root: &'a DockingRoot,
    /// Units of the node that were finished at the end of `unit` (R16).
    pub finished: &'a [FinishedUnit],
    /// The part that other nodes have too, if it was made; then `temp.vis_{i}` holds only the rows that it lacks.
    pub common: Option<&'a CommonPart>,
}

/// The part of a local database that all nodes of a model have in common, made once for many extracts (X-5, RM-41). It goes when it
/// is dropped.
#[derive(Debug)]
pub struct CommonPart {
    path: PathBuf,
    disk: Disk,
    built: Built,
}

impl Drop for CommonPart {
    fn drop(&mut self) {
        if let Err(error) = self.disk.remove(&self.path) {
            tracing::warn!(stage = "extract", %error, "the common part of extracts stays until the next start");
        }
    }
}

impl CommonPart {
    /// Makes it from a job of any of the nodes, whose `temp.vis_{i}` hold the rows that all of them see.
    ///
    /// # Errors
    /// As [`build`].
    pub fn build(job: &ExtractJob<'_>) -> Result<CommonPart, ExtractError> {
        let disk = job.root.disk().clone();
        let path = job.root.txnproc_tmp().join(format!("common-{}-{}.db", job.unit.0, job.node));
        disk.remove(&path).map_err(|source| ExtractError::Disk { node: job.node.clone(), source: Box::new(source) })?;
        let built = local_build::build_common(&path, job.cds, job.dock, job.schema, &local_state(job));
        match built {
            Ok(built) => Ok(CommonPart { path, disk, built }),
            Err(source) => {
                drop(CommonPart { path, disk, built: Built { tables: Vec::new(), left_out: Vec::new() } });
                Err(ExtractError::Build { node: job.node.clone(), source: Box::new(source) })
            }
        }
    }
}

/// Why an extract failed. Nothing of it is in the outbox then, or no `.toc` that names it.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// The local database could not be made.
    #[error("extract of node {node}")]
    Build {
        /// The node.
        node: NodeName,
        /// Why.
        #[source]
        source: Box<BuildError>,
    },
    /// A file could not be written or removed.
    #[error("extract of node {node}")]
    Disk {
        /// The node.
        node: NodeName,
        /// Which, and why.
        #[source]
        source: Box<DiskError>,
    },
    /// The folders of the node could not be made or read.
    #[error("extract of node {node}: {doing} {}", path.display())]
    Folder {
        /// The node.
        node: NodeName,
        /// What was being done.
        doing: &'static str,
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// This incarnation has an extract already; it is never replaced, since a node may be fetching it.
    #[error("extract of node {node}: incarnation {incarnation} has one already")]
    Exists {
        /// The node.
        node: NodeName,
        /// The incarnation.
        incarnation: Incarnation,
    },
}

/// Makes the extract and publishes it in the node's outbox: the database first, its `.toc` last. Older extracts of the
/// node are removed once the new one is durable.
pub fn build(job: &ExtractJob<'_>) -> Result<Toc, ExtractError> {
    let disk = job.root.disk();
    let (outbox, tmp) = (job.root.outbox(job.node), job.root.tmp(job.node));
    let failed = |source| ExtractError::Disk { node: job.node.clone(), source: Box::new(source) };
    disk.ensure_folder(&outbox).map_err(failed)?;
    disk.ensure_folder(&tmp).map_err(failed)?;
    let (zst_name, toc_name) = (toc::extract_file_name(job.incarnation), toc::toc_file_name(job.incarnation));
    if outbox.join(&toc_name).exists() {
        return Err(ExtractError::Exists { node: job.node.clone(), incarnation: job.incarnation });
    }
    // A database without its table of contents is what a crash left; nobody has seen it.
    disk.remove(&outbox.join(&zst_name)).map_err(failed)?;
    // Not what belongs to a later start of the node: another thread may be at it.
    let later = |digits: &str| digits.parse::<u32>().is_ok_and(|found| found > job.incarnation.0);
    let left_over = |name: &str| name.strip_prefix("extract-").is_some_and(|rest| !rest.split('.').next().is_some_and(later));
    remove_files(job, disk, &tmp, left_over)?;
    crash::at(CrashPoint::ExtractBegun);

    let database = tmp.join(format!("extract-{:08}.db", job.incarnation.0));
    let result = publish(job, disk, &database, &zst_name);
    // Whatever became of it, the uncompressed database is of no more use.
    let removed = disk.remove(&database).map_err(failed);
    let toc = result?;
    removed?;
    crash::at(CrashPoint::ExtractPacked);

    let json = serde_json::to_vec(&toc).map_err(|error| failed(disk_error("write", &outbox.join(&toc_name), error.into())))?;
    disk.put(&tmp, &outbox, &toc_name, &json).map_err(failed)?;
    crash::at(CrashPoint::ExtractDescribed);
    // The tables of contents first: an extract whose database is gone must not be offered.
    let older = |name: &str| toc::incarnation_of_file_name(name).is_some_and(|found| found < job.incarnation);
    remove_files(job, disk, &outbox, |name| older(name) && name.ends_with(".toc"))?;
    remove_files(job, disk, &outbox, older)?;
    crash::at(CrashPoint::ExtractDone);
    tracing::info!(stage = "extract", node = %job.node, rows = toc.rows, bytes = toc.bytes, unit = toc.unit.0, "extract is ready");
    Ok(toc)
}

/// Builds the database and PUTs it compressed. Returns the table of contents, which is not written yet.
fn publish(job: &ExtractJob<'_>, disk: &Disk, database: &Path, zst_name: &str) -> Result<Toc, ExtractError> {
    let state = local_state(job);
    let failed_to_build = |source| ExtractError::Build { node: job.node.clone(), source: Box::new(source) };
    let built = match job.common {
        None => local_build::build_local(database, job.cds, job.dock, job.schema, &state, job.finished).map_err(failed_to_build)?,
        Some(common) => {
            disk.copy(&common.path, database).map_err(|source| ExtractError::Disk { node: job.node.clone(), source: Box::new(source) })?;
            local_build::complete_local(database, job.cds, job.dock, job.schema, &state, job.finished, &common.built)
                .map_err(failed_to_build)?
        }
    };
    crash::at(CrashPoint::ExtractBuilt);
    for line in &built.left_out {
        tracing::debug!(stage = "extract", node = %job.node, "left out: {line}");
    }
    let (outbox, tmp) = (job.root.outbox(job.node), job.root.tmp(job.node));
    let (raw_bytes, bytes, sha256) = disk
        .put_with(&tmp, &outbox, zst_name, |out| {
            // The database was written by SQLite, and nobody else knows this name.
            let mut source = BufReader::with_capacity(1 << 20, std::fs::File::open(database)?);
            compress(&mut source, out)
        })
        .map_err(|source| ExtractError::Disk { node: job.node.clone(), source: Box::new(source) })?;
    Ok(Toc {
        server_id: job.server_id,
        server_name: job.server_name.to_owned(),
        epoch: job.epoch,
        node: job.node.clone(),
        incarnation: job.incarnation,
        unit: job.unit,
        revision: job.revision,
        bytes,
        raw_bytes,
        sha256,
        rows: built.tables.iter().map(|table| table.rows).sum(),
        tables: built.tables,
        left_out: shortened(built.left_out),
    })
}

/// Returns the identity of the local database of a job.
fn local_state(job: &ExtractJob<'_>) -> LocalState {
    LocalState {
        server_id: job.server_id,
        server_name: job.server_name.to_owned(),
        epoch: job.epoch,
        node: job.node.clone(),
        incarnation: job.incarnation,
        install_id: None,
        applied_file: FileNo(0),
        applied_unit: job.unit,
        chain_hash: ContentHash::default(),
        revision: job.revision,
        stopped: None,
    }
}

/// Keeps the table of contents small: its readers limit its length.
fn shortened(mut lines: Vec<String>) -> Vec<String> {
    let more = lines.len().saturating_sub(LEFT_OUT_LINES_MAX);
    lines.truncate(LEFT_OUT_LINES_MAX);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines
}

/// Compresses a stream. Returns its length, the length of what was written, and the SHA-256 of that.
fn compress(source: &mut dyn Read, out: &mut dyn Write) -> io::Result<(u64, u64, ByteHash)> {
    let mut encoder = zstd::Encoder::new(Hashing { out, hash: Sha256::new(), bytes: 0 }, ZSTD_LEVEL)?;
    encoder.include_checksum(true)?;
    let raw_bytes = io::copy(source, &mut encoder)?;
    let hashing = encoder.finish()?;
    Ok((raw_bytes, hashing.bytes, ByteHash(hashing.hash.finalize().into())))
}

/// Counts and hashes what passes through.
struct Hashing<'w> {
    out: &'w mut dyn Write,
    hash: Sha256,
    bytes: u64,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or_default());
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Removes the files of a folder whose names fit.
fn remove_files(job: &ExtractJob<'_>, disk: &Disk, folder: &Path, fits: impl Fn(&str) -> bool) -> Result<(), ExtractError> {
    let failed = |source| ExtractError::Disk { node: job.node.clone(), source: Box::new(source) };
    for entry in folder::list(folder).map_err(failed)? {
        if entry.name.to_str().is_some_and(&fits) {
            disk.remove(&entry.path).map_err(failed)?;
        }
    }
    Ok(())
}

fn disk_error(operation: &'static str, path: &Path, source: io::Error) -> DiskError {
    DiskError::Io { operation, path: path.to_owned(), source }
}
