//! The inbox of one node: what there is of its uploads, and taking the next file, durable before it is acknowledged (MI-17).
//!
//! A file that is coming lies in `tmp/NNNNNNNN.dx.HASH.part`, named by the SHA-256 that was announced for it, so that a cut line is gone on
//! with after any crash. **Invariants**: a file gets its name in `inbox/` only after every byte of it was proved: its SHA-256, its
//! header (who made it, for whom, after which file), every record; and after the node was found to be valid still. Nothing there is
//! ever replaced. `sessions.db` names a file after it is durable; a file without a row is proved once more.

use crate::base::clock::now_seconds;
use crate::base::defect::{self, Defect};
use crate::base::disk::DiskError;
use crate::base::folder::{self, EntryKind};
use crate::base::ids::{ByteHash, FileNo, InstallId, TxnId, UnitNo};
use crate::base::limits::UPLOADS_REMEMBERED_MAX;
use crate::base::part::Part;
use crate::base::quarantine::{self, Aside};
use crate::base::space::free;
use crate::docking::root::DockingRoot;
use crate::docking::uploads::Uploaded;
use crate::dx::header::{DxDirection, Expected, Header};
use crate::dx::upload_reader::UploadReader;
use crate::model::node::{Node, NodeState};
use crate::server::syncmgr::{BoxError, Shared};
use crate::session::admission::ServerIdentity;
use crate::session::upload::{UploadFile, UploadPart, UploadRefusal, UploadState};
use crate::session::upload_server::{Opening, Turned};
use crate::store::upload_position::MergedTo;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The writing side of one node's inbox, for one session.
pub(super) struct Inbox {
    shared: Arc<Shared>,
    identity: ServerIdentity,
    node: Node,
    install: InstallId,
    known: UploadState,
    /// Why nothing is taken for now.
    held: Option<Turned>,
    /// The file that is coming, or the part of it that an earlier session left.
    part: Option<(FileNo, ByteHash, Part)>,
}

/// How a file that was proved turned out.
enum Proof {
    /// It is what should come next.
    Good(Uploaded),
    /// It is not.
    Bad(Turned),
}

impl Inbox {
    /// Looks at what there is of a node. Blocks.
    pub(super) fn open(
        shared: Arc<Shared>,
        identity: ServerIdentity,
        node: Node,
        install: InstallId,
        unsent: UnitNo,
    ) -> Result<Inbox, BoxError> {
        shared.root.ensure_node(&node.name)?;
        let mut inbox = Inbox { shared, identity, node, install, known: UploadState::default(), held: None, part: None };
        inbox.look()?;
        inbox.known.units = inbox.shared.directory.units_from(install, unsent)?;
        Ok(inbox)
    }

    /// Returns what there is.
    pub(super) fn known(&self) -> UploadState {
        self.known.clone()
    }

    fn look(&mut self) -> Result<(), BoxError> {
        let (shared, name, incarnation) = (Arc::clone(&self.shared), self.node.name.clone(), self.node.incarnation);
        let merged = shared.directory.merged(&name)?;
        self.held = None;
        self.known = UploadState::default();
        if let Some(merged) = merged.as_ref().filter(|merged| merged.incarnation == incarnation) {
            (self.known.stored, self.known.hash) = (merged.file, merged.hash);
            let upto = FileNo(merged.file.0.saturating_sub(UPLOADS_REMEMBERED_MAX));
            shared.sessions().forget_uploads(&name, incarnation, upto)?;
        }
        loop {
            let next = self.known.stored.next();
            let path = shared.root.inbox(&name).join(next.file_name());
            let bytes = match path.symlink_metadata() {
                Ok(found) => found.len(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
                Err(source) => return Err(DiskError::Io { operation: "look at", path, source }.into()),
            };
            let row = shared.sessions().upload(&name, incarnation, next)?.filter(|row| row.bytes == bytes);
            let row = match row {
                Some(row) => row,
                None => match self.prove_stored(next, &path, merged.as_ref())? {
                    Some(row) => row,
                    None => break,
                },
            };
            (self.known.stored, self.known.hash) = (next, row.content_hash);
        }
        let last = shared.directory.last_unit(self.install)?;
        self.known.last_unit = last.max(shared.sessions().last_upload_unit(self.install)?);
        self.part = self.left_part()?;
        self.known.part = self.part.as_ref().map(|(_, byte_hash, part)| UploadPart { bytes: part.bytes(), byte_hash: *byte_hash });
        Ok(())
    }

    /// Proves a file that lies in the inbox without a row, and gives it one. `None` = it is none, and the way is free or held.
    fn prove_stored(&mut self, file: FileNo, path: &Path, merged: Option<&MergedTo>) -> Result<Option<Uploaded>, BoxError> {
        let header = read_header(&self.shared.root, path)?;
        if let Some(header) = header
            && header.node.as_ref() == Some(&self.node.name)
            && header.incarnation < self.node.incarnation
        {
            // It was acknowledged under the former incarnation: whatever is in it is merged first.
            if merged.is_some_and(|merged| merged.incarnation == header.incarnation && merged.file >= file) {
                self.shared.root.disk().remove(path)?;
                return Ok(None);
            }
            let text = format!("{} of extract {} waits to be merged", file.file_name(), header.incarnation);
            self.held = Some(Turned::plain(UploadRefusal::Waiting, format!("{text}: try again later")));
            return Ok(None);
        }
        match self.prove(file, path, None)? {
            Proof::Good(row) => {
                self.shared.sessions().note_upload(&row)?;
                Ok(Some(row))
            }
            Proof::Bad(turned) => {
                tracing::error!(node = %self.node.name, file = %file, "in the inbox: {}", turned.text);
                self.shared.sessions().alert(self.node.name.as_str(), &turned.text, now_seconds())?;
                self.put_aside(file, path, &turned.text)?;
                Ok(None)
            }
        }
    }

    /// Returns the part of the next file, hashed; parts of other files go.
    fn left_part(&self) -> Result<Option<(FileNo, ByteHash, Part)>, BoxError> {
        let (root, next) = (&self.shared.root, self.known.stored.next());
        let mut found = None;
        for entry in folder::list(&root.tmp(&self.node.name))? {
            let (EntryKind::File { bytes }, Some((file, byte_hash))) = (entry.kind, entry.name.to_str().and_then(part_of)) else {
                continue;
            };
            if file == next && found.is_none() {
                found = Some((file, byte_hash, Part::open(root.disk(), entry.path, bytes)?));
            } else {
                root.disk().remove(&entry.path)?;
            }
        }
        Ok(found)
    }

    fn part_path(&self, file: FileNo, byte_hash: ByteHash) -> PathBuf {
        self.shared.root.tmp(&self.node.name).join(format!("{}.{byte_hash}.part", file.file_name()))
    }

    /// Begins a file, keeping `offset` bytes of its part.
    pub(super) fn begin(&mut self, file: &UploadFile, offset: u64) -> Result<Result<Opening, Turned>, BoxError> {
        if self.held.is_some() {
            self.look()?;
        }
        if let Some(held) = &self.held {
            return Ok(Err(held.clone()));
        }
        let (root, name) = (Arc::clone(&self.shared.root), file.file.file_name());
        let path = root.inbox(&self.node.name).join(&name);
        let mut row = self.shared.sessions().upload(&self.node.name, self.node.incarnation, file.file)?;
        if row.is_none() && file.file > self.known.stored && path.exists() {
            // It lay behind a gap that is filled now.
            self.look()?;
            if let Some(held) = &self.held {
                return Ok(Err(held.clone()));
            }
            row = self.shared.sessions().upload(&self.node.name, self.node.incarnation, file.file)?;
        }
        match row {
            Some(row) if row.content_hash != file.content_hash || row.install_id != self.install => {
                let text = format!(
                    "{} is known with another content ({} of units {} to {}): two histories (fork)",
                    name, self.node.name, row.first, row.last
                );
                return Ok(Err(Turned::alert(UploadRefusal::Fork, text)));
            }
            Some(_) if file.file <= self.known.stored => return Ok(Ok(Opening::Duplicate)),
            Some(row) if path.exists() => {
                (self.known.stored, self.known.hash) = (row.file, row.content_hash);
                return Ok(Ok(Opening::Duplicate));
            }
            None if file.file == self.known.stored && file.content_hash == self.known.hash => return Ok(Ok(Opening::Duplicate)),
            None if file.file == self.known.stored => {
                let text = format!("{name} of {} is merged with another content: two histories (fork)", self.node.name);
                return Ok(Err(Turned::alert(UploadRefusal::Fork, text)));
            }
            None if file.file < self.known.stored => {
                let next = self.known.stored.next().file_name();
                return Ok(Err(Turned::plain(UploadRefusal::OutOfOrder, format!("{name} is merged for long: send from {next} on"))));
            }
            _ => {}
        }
        if let Some(low) = self.low_disk(file.bytes - offset) {
            return Ok(Err(low));
        }
        let is_continued = self.part.as_ref().is_some_and(|(_, byte_hash, part)| *byte_hash == file.byte_hash && part.bytes() == offset);
        if offset == 0 || !is_continued {
            if let Some((number, byte_hash, _)) = self.part.take() {
                root.disk().remove(&self.part_path(number, byte_hash))?;
            }
            let part = Part::open(root.disk(), self.part_path(file.file, file.byte_hash), 0)?;
            self.part = Some((file.file, file.byte_hash, part));
        }
        Ok(Ok(Opening::Receive))
    }

    fn low_disk(&self, bytes: u64) -> Option<Turned> {
        let space = free(self.shared.root.path())?;
        crate::docking::room::is_low(space, self.shared.min_free_bytes.saturating_add(bytes)).then(|| self.no_room())
    }

    fn no_room(&self) -> Turned {
        tracing::error!(stage = "disk", node = %self.node.name, "no space left on {}; uploads paused, nothing lost", self.shared.root.path().display());
        Turned::plain(UploadRefusal::LowDisk, "no space left on the server: uploads paused, nothing lost; try again later")
    }

    /// Writes the next bytes; a full disk is no fault of the session.
    pub(super) fn store(&mut self, bytes: &[u8]) -> Result<Result<(), Turned>, BoxError> {
        let Some((_, _, part)) = &mut self.part else { return Err("bytes of a file that was not begun".into()) };
        match part.write(bytes) {
            Ok(()) => Ok(Ok(())),
            Err(error) if error.is_no_space() => Ok(Err(self.no_room())),
            Err(error) => Err(error.into()),
        }
    }

    /// Leaves what was begun for a later session.
    pub(super) fn leave(&mut self) {
        self.part = None;
    }

    /// Proves the file that came and makes it durable. Blocks.
    pub(super) fn finish(&mut self, file: &UploadFile) -> Result<Result<(), Turned>, BoxError> {
        let Some((_, _, part)) = self.part.take() else { return Err("the end of a file that was not begun".into()) };
        let (path, hash) = part.finish();
        if hash != file.byte_hash.0 {
            let text = format!("{} was damaged on the way: its SHA-256 is {}", file.file.file_name(), ByteHash(hash));
            self.put_aside(file.file, &path, &text)?;
            return Ok(Err(Turned::plain(UploadRefusal::Damaged, text)));
        }
        let row = match self.prove(file.file, &path, Some(file))? {
            Proof::Good(row) => row,
            Proof::Bad(turned) => {
                self.put_aside(file.file, &path, &turned.text)?;
                return Ok(Err(turned));
            }
        };
        let now = self.shared.directory.node(&self.node.name)?;
        let is_valid = |node: &Node| node.state == NodeState::Active && node.incarnation == self.node.incarnation;
        if !now.as_ref().is_some_and(is_valid) {
            let text = format!("{} may not send any more: it was disabled, deleted or begun anew meanwhile", self.node.name);
            self.put_aside(file.file, &path, &text)?;
            return Ok(Err(Turned::plain(UploadRefusal::Disabled, text)));
        }
        if defect::is_planted(Defect::EarlyAcknowledgement) {
            // What is acknowledged has its name only when the next file comes.
            self.part = Some((file.file, file.byte_hash, Part::open(self.shared.root.disk(), path, file.bytes)?));
            return Ok(Ok(()));
        }
        let disk = self.shared.root.disk();
        let published =
            disk.sync_path(&path).and_then(|()| disk.rename(&path, &self.shared.root.inbox(&self.node.name), &file.file.file_name()));
        match published {
            Ok(()) => {}
            Err(error) if error.is_no_space() => return Ok(Err(self.no_room())),
            Err(error) => return Err(error.into()),
        }
        self.shared.sessions().note_upload(&row)?;
        (self.known.stored, self.known.hash) = (file.file, row.content_hash);
        self.known.last_unit = self.known.last_unit.max(row.last);
        if let Some(stored) = &self.shared.stored {
            stored();
        }
        Ok(Ok(()))
    }

    /// Proves a file: every byte and record of it, and that it is the one that follows.
    fn prove(&self, number: FileNo, path: &Path, announced: Option<&UploadFile>) -> Result<Proof, BoxError> {
        let name = number.file_name();
        let bad = |code, text: String| Ok(Proof::Bad(Turned::plain(code, text)));
        let alarm = |code, text: String| Ok(Proof::Bad(Turned::alert(code, text)));
        let reader = match UploadReader::open(self.shared.root.disk().open(path)?) {
            Ok(reader) => reader,
            // Not what the bytes say, but that they cannot be read.
            Err(error) if !error.is_content() => return Err(error.into()),
            Err(error) => return bad(UploadRefusal::Damaged, format!("{name}: {error}")),
        };
        let (header, summary) = (reader.header(), reader.summary());
        let expected = Expected {
            direction: DxDirection::Upload,
            server_id: self.identity.server_id,
            epoch: self.identity.epoch,
            node: Some(&self.node.name),
            incarnation: self.node.incarnation,
            file_no: number,
        };
        if let Err(mismatch) = expected.check(header) {
            return alarm(UploadRefusal::Foreign, format!("{name} sent by {} is not its own: {mismatch}", self.node.name));
        }
        if header.install_id != self.install {
            let text = format!("{name} sent by {} is of another local database ({})", self.node.name, header.install_id);
            return alarm(UploadRefusal::Foreign, text);
        }
        if header.previous != self.known.hash {
            let before = self.known.stored.file_name();
            let text = format!("{name} of {} does not follow the {before} that is known: two histories (fork)", self.node.name);
            return alarm(UploadRefusal::Fork, text);
        }
        let (Some(first), Some(last)) = (unit_no(header.first), unit_no(header.last)) else {
            return bad(UploadRefusal::Damaged, format!("{name} covers units {} to {}", header.first, header.last));
        };
        if announced.is_some_and(|file| (file.content_hash, file.first, file.last) != (summary.content_hash, first, last)) {
            return bad(UploadRefusal::Damaged, format!("{name} is another file than was announced"));
        }
        Ok(Proof::Good(Uploaded {
            node: self.node.name.clone(),
            incarnation: self.node.incarnation,
            file: number,
            install_id: self.install,
            content_hash: summary.content_hash,
            byte_hash: summary.byte_hash,
            bytes: summary.bytes,
            first,
            last,
            stored_at: now_seconds(),
        }))
    }

    fn put_aside(&self, file: FileNo, path: &Path, reason: &str) -> Result<(), DiskError> {
        let (root, node) = (&self.shared.root, &self.node.name);
        let (quarantine, tmp, name) = (root.quarantine(node), root.tmp(node), file.file_name());
        let aside = Aside { file: path, name: &name, quarantine: &quarantine, tmp: &tmp, reason };
        quarantine::put_aside(root.disk(), &aside).map(drop)
    }
}

fn unit_no(unit: TxnId) -> Option<UnitNo> {
    u64::try_from(unit.0).ok().filter(|unit| *unit > 0).map(UnitNo)
}

/// Reads `NNNNNNNN.dx.HASH.part`.
fn part_of(name: &str) -> Option<(FileNo, ByteHash)> {
    let (file, byte_hash) = name.strip_suffix(".part")?.rsplit_once('.')?;
    Some((FileNo::from_file_name(file)?, byte_hash.parse().ok()?))
}

/// Returns the header of a file; `None` if it has none that can be read.
fn read_header(root: &DockingRoot, path: &Path) -> Result<Option<Header>, BoxError> {
    use std::io::Read;
    let mut head = Vec::new();
    let file: File = root.disk().open(path)?;
    file.take(crate::dx::format::HEADER_BYTES as u64).read_to_end(&mut head).map_err(|source| DiskError::Io {
        operation: "read",
        path: path.to_owned(),
        source,
    })?;
    Ok(Header::from_prefix(&head).ok())
}
