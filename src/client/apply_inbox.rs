//! The inbox as the apply step sees it: which files are there, what each one is, and where it goes.

use super::apply::{ApplyError, ApplyFolders, ApplyReport, Held, Quarantined, Stopped};
use crate::base::defect::{self, Defect};
use crate::base::disk::DiskError;
use crate::base::folder;
use crate::base::ids::{ContentHash, FileNo, NodeName};
use crate::base::quarantine::{self, Aside};
use crate::dx::error::DxError;
use crate::dx::format::HEADER_BYTES;
use crate::dx::header::{DxDirection, Expected, Header};
use crate::dx::reader::DownloadReader;
use crate::store::local::{LocalState, Watermark};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

/// A file that is proved to be the next one.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) path: PathBuf,
    pub(super) reader: DownloadReader<BufReader<File>>,
}

/// What is to be done with the next file.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Apply it.
    Apply(Box<Candidate>),
    /// It is in quarantine now; its number is missing.
    PutAside,
    /// A person must look.
    Stop(Stopped),
}

/// What is wrong with a file.
enum Flaw {
    /// Its bytes are not what was written: the same number is fetched again.
    Damaged(DxError),
    /// It belongs somewhere else.
    Foreign(String),
}

/// The files of the inbox.
#[derive(Debug)]
pub(super) struct Inbox {
    folders: ApplyFolders,
    node: NodeName,
    state: LocalState,
    numbers: BTreeSet<FileNo>,
    bad_names: Vec<String>,
}

impl Inbox {
    /// Reads the inbox of the node that `state` belongs to. A folder that is not there is an empty one.
    pub(super) fn read(folders: &ApplyFolders, state: &LocalState) -> Result<Inbox, ApplyError> {
        let (mut numbers, mut bad_names) = (BTreeSet::new(), Vec::new());
        for entry in folder::list(&folders.inbox)? {
            let name = entry.name.to_string_lossy();
            match FileNo::from_file_name(&name) {
                Some(number) => {
                    numbers.insert(number);
                }
                None if name.to_ascii_lowercase().ends_with(".dx") => bad_names.push(name.into_owned()),
                None => {}
            }
        }
        Ok(Inbox { folders: folders.clone(), node: state.node.clone(), state: state.clone(), numbers, bad_names })
    }

    /// Puts files aside whose names are no numbers (fault 18).
    pub(super) fn put_bad_names_aside(&mut self, report: &mut ApplyReport) -> Result<(), ApplyError> {
        for name in std::mem::take(&mut self.bad_names) {
            let reason = "its name is not a file number".to_owned();
            self.put_aside(Quarantined { name, reason, fetch_again: None }, report)?;
        }
        Ok(())
    }

    /// Returns the files that were applied already.
    pub(super) fn numbers_up_to(&self, applied: FileNo) -> Vec<FileNo> {
        self.numbers.range(..=applied).copied().collect()
    }

    /// Returns the files behind the one that is missing, if there are any.
    pub(super) fn held(&self, missing: FileNo) -> Option<Held> {
        let waiting: Vec<FileNo> = self.numbers.range(missing..).copied().collect();
        let first = waiting.first()?;
        Some(Held { missing_first: missing, missing_last: FileNo(first.0 - 1), waiting })
    }

    /// Returns the size of that file in bytes; `None` if it is not there.
    pub(super) fn size_of(&self, number: FileNo) -> Result<Option<u64>, ApplyError> {
        if !self.numbers.contains(&number) {
            return Ok(None);
        }
        let path = self.path(number);
        match std::fs::symlink_metadata(&path) {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ApplyError::Folder { path, source }),
        }
    }

    /// Removes a file that is applied.
    pub(super) fn remove(&mut self, number: FileNo) -> Result<(), ApplyError> {
        self.numbers.remove(&number);
        Ok(self.folders.disk.remove(&self.path(number))?)
    }

    /// Deals with a file that was applied already: the same again is dropped, another one under its number stops the node (F6).
    pub(super) fn drop_applied(
        &mut self,
        number: FileNo,
        known: Option<ContentHash>,
        report: &mut ApplyReport,
    ) -> Result<Option<Stopped>, ApplyError> {
        let reason = match self.look(number)? {
            Err(Flaw::Damaged(error)) => error.to_string(),
            Err(Flaw::Foreign(reason)) => reason,
            Ok(file) if known.is_some_and(|known| known != file.reader.summary().content_hash) => {
                return Ok(Some(self.fork(number, "it was applied with other content")));
            }
            Ok(_) => {
                self.remove(number)?;
                report.dropped.push(number);
                return Ok(None);
            }
        };
        self.numbers.remove(&number);
        self.put_aside(Quarantined { name: number.file_name(), reason, fetch_again: None }, report)?;
        Ok(None)
    }

    /// Opens the next file and decides what it is.
    pub(super) fn open(&mut self, number: FileNo, reached: &Watermark, report: &mut ApplyReport) -> Result<Verdict, ApplyError> {
        let flaw = match self.look(number)? {
            Ok(file) => {
                let header = file.reader.header();
                if header.previous != reached.chain_hash && !defect::is_planted(Defect::IgnoredChain) {
                    return Ok(Verdict::Stop(self.fork(number, "it does not follow the file that was applied last")));
                }
                // A stream that begins anew brings everything, wherever the former one ended.
                let resets = number == FileNo(1)
                    && file.reader.controls().first_key_value().is_some_and(|(unit, told)| told.reset && *unit >= header.first);
                if (header.first.0 > reached.unit.0.saturating_add(1) && !resets) || header.last < reached.unit {
                    let range = format!("it covers {}..{}, but {} is applied", header.first, header.last, reached.unit);
                    return Ok(Verdict::Stop(self.fork(number, &range)));
                }
                return Ok(Verdict::Apply(Box::new(file)));
            }
            Err(flaw) => flaw,
        };
        let reason = match &flaw {
            Flaw::Damaged(error) => {
                if self.came_before(number)? {
                    let advice = match error {
                        DxError::Version { .. } => "install a newer remote-sync".to_owned(),
                        _ => self.extract_advice(),
                    };
                    let reason = format!("it came twice with the same flaw: {error}");
                    return Ok(Verdict::Stop(Stopped { file: number, unit: None, reason, advice }));
                }
                error.to_string()
            }
            Flaw::Foreign(reason) => reason.clone(),
        };
        self.numbers.remove(&number);
        self.put_aside(Quarantined { name: number.file_name(), reason, fetch_again: Some(number) }, report)?;
        Ok(Verdict::PutAside)
    }

    /// Returns what a person can do about a node that cannot go on.
    pub(super) fn extract_advice(&self) -> String {
        format!("run `dockmaster extract {0}` on the server, then `remote-sync init` here", self.node)
    }

    fn fork(&self, number: FileNo, reason: &str) -> Stopped {
        let reason = format!("fork: {reason}, so the server has another history than this node");
        Stopped { file: number, unit: None, reason, advice: self.extract_advice() }
    }

    fn path(&self, number: FileNo) -> PathBuf {
        self.folders.inbox.join(number.file_name())
    }

    /// Checks a file by itself: whether it belongs here, then whether it is whole.
    fn look(&self, number: FileNo) -> Result<Result<Candidate, Flaw>, ApplyError> {
        let path = self.path(number);
        let unreadable =
            |operation: &'static str, source| ApplyError::File { path: path.clone(), source: DxError::Io { operation, source } };
        let mut file = match self.folders.disk.open(&path) {
            Ok(file) => file,
            Err(error @ DiskError::NotAFile { .. }) => return Ok(Err(Flaw::Foreign(error.to_string()))),
            Err(error) => return Err(error.into()),
        };
        let mut prefix = Vec::with_capacity(HEADER_BYTES);
        file.by_ref().take(HEADER_BYTES as u64).read_to_end(&mut prefix).map_err(|source| unreadable("read the header", source))?;
        let header = match Header::from_prefix(&prefix) {
            Ok(header) => header,
            Err(error) => return Ok(Err(Flaw::Damaged(error))),
        };
        let expected = Expected {
            direction: DxDirection::Download,
            server_id: self.state.server_id,
            epoch: self.state.epoch,
            node: Some(&self.node),
            incarnation: self.state.incarnation,
            file_no: number,
        };
        if let Err(mismatch) = expected.check(&header) {
            return Ok(Err(Flaw::Foreign(mismatch.to_string())));
        }
        match DownloadReader::open(BufReader::new(file)) {
            Ok(reader) => Ok(Ok(Candidate { path, reader })),
            Err(source @ DxError::Io { .. }) => Err(ApplyError::File { path, source }),
            Err(error) => Ok(Err(Flaw::Damaged(error))),
        }
    }

    /// Returns whether the very same bytes lie in quarantine under that number: then fetching again has not helped.
    fn came_before(&self, number: FileNo) -> Result<bool, ApplyError> {
        let path = self.path(number);
        for name in quarantine::names(&number.file_name()) {
            let kept = self.folders.quarantine.join(name);
            if !kept.exists() {
                return Ok(false);
            }
            if same_bytes(&path, &kept).map_err(|source| ApplyError::Folder { path: kept, source })? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Moves a file to quarantine and writes the reason beside it.
    fn put_aside(&self, quarantined: Quarantined, report: &mut ApplyReport) -> Result<(), ApplyError> {
        let from = self.folders.inbox.join(&quarantined.name);
        let to = &self.folders.quarantine;
        let disk = &self.folders.disk;
        disk.ensure_folder(to)?;
        disk.ensure_folder(&self.folders.tmp)?;
        tracing::warn!(stage = "apply", file = quarantined.name, reason = quarantined.reason, "put into quarantine");
        let (name, reason) = (&quarantined.name, &quarantined.reason);
        quarantine::put_aside(disk, &Aside { file: &from, name, quarantine: to, tmp: &self.folders.tmp, reason })?;
        report.quarantined.push(quarantined);
        Ok(())
    }
}

fn same_bytes(a: &Path, b: &Path) -> io::Result<bool> {
    let (a, b) = (File::open(a)?, File::open(b)?);
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (BufReader::new(a).bytes(), BufReader::new(b).bytes());
    loop {
        match (a.next().transpose()?, b.next().transpose()?) {
            (None, None) => return Ok(true),
            (a, b) if a == b => {}
            _ => return Ok(false),
        }
    }
}
