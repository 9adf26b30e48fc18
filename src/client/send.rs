//! Sending what was changed here: drives the way up of one session (`session::upload_client`).
//!
//! One file at a time, piece by piece as the line takes it, so that a slow line holds one piece in memory and heartbeats are answered
//! meanwhile. What is noted as stored is durable on the server. Downloads begin when there is nothing more to send (MI-18, DOE-15).

use crate::base::disk::{Disk, DiskError};
use crate::base::ids::FileNo;
use crate::base::limits::PIECE_SENT_BYTES;
use crate::client::applier::{Outgoing, SharedUploads};
use crate::client::exchange::{Exchange, Running, lock, on_thread};
use crate::client::report::{ExchangeError, ProgressEvent};
use crate::session::client::{Closed, Event};
use crate::session::message::{Message, Mode};
use crate::session::upload::{Refused, UploadFile, UploadMessage, UploadRefusal, UploadState};
use crate::session::upload_client::{UploadAction, UploadEvent};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long after a refusal that passes (a full disk) it is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// A file that is going out.
#[derive(Debug)]
struct Sending {
    file: UploadFile,
    source: File,
    path: PathBuf,
    at: u64,
}

/// The way up of one session.
#[derive(Default)]
pub(super) struct Up {
    uploads: Option<SharedUploads>,
    /// The file that was begun last.
    current: Option<Outgoing>,
    sending: Option<Sending>,
    /// All files to this one are stored.
    stored: FileNo,
    /// The numbers of what is here are above those that the server knows: only then confirms may be applied.
    is_agreed: bool,
    /// Nothing more is to be sent for now.
    is_done: bool,
    is_awaiting: bool,
    /// Last file that came of what was merged meanwhile.
    more: Option<FileNo>,
    refused_at: Option<Instant>,
}

impl Up {
    pub(super) fn new(uploads: Option<SharedUploads>) -> Up {
        Up { uploads, ..Up::default() }
    }

    /// Whether this session is to send.
    pub(super) fn is_wanted(&self) -> bool {
        self.uploads.is_some()
    }

    /// Whether bytes of a file wait for the line.
    pub(super) fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.is_done && self.current.is_none()
    }

    /// Whether what came may be applied.
    pub(super) fn may_apply(&self) -> bool {
        self.is_agreed || self.is_done
    }

    /// Whether a sync need not wait for this half.
    pub(super) fn is_settled(&self) -> bool {
        self.is_done && !self.is_awaiting && self.more.is_none()
    }

    /// Returns the last file to fetch of what the wait brought, once.
    pub(super) fn take_more(&mut self) -> Option<FileNo> {
        self.more.take()
    }
}

impl Exchange<'_> {
    /// Does what the machine decided.
    pub(super) async fn upload(&mut self, running: &mut Running, action: UploadAction) -> Result<(), ExchangeError> {
        match action {
            UploadAction::Known(known) => self.known(running, known).await,
            UploadAction::Read { file, offset } => self.read(running, file, offset),
            UploadAction::Stored(file) => self.stored(running, file).await,
            UploadAction::Refused { refused, again } => self.refused(running, refused, again).await,
            UploadAction::Awaited { merged, last_file } => {
                running.up.is_awaiting = false;
                running.up.more = Some(last_file);
                self.report.sent.merged = Some(merged);
                Ok(())
            }
            // The session sends messages itself.
            UploadAction::Send(_) => Ok(()),
        }
    }

    async fn known(&mut self, running: &mut Running, known: UploadState) -> Result<(), ExchangeError> {
        running.up.stored = known.stored;
        self.report.sent.count(known.stored);
        let Some(uploads) = running.up.uploads.clone() else { return self.uploads_done(running).await };
        let remark = on_thread(move || {
            let mut uploads = lock(&uploads);
            let remark = uploads.agree(&known)?;
            uploads.cut()?;
            Ok(remark)
        })
        .await
        .map_err(ExchangeError::Local)?;
        running.up.is_agreed = true;
        if let Some(remark) = remark {
            tracing::warn!("{remark}");
            self.report.sent.remarks.push(remark);
        }
        self.send_next(running).await
    }

    /// Sends the next file, or ends this half.
    pub(super) async fn send_next(&mut self, running: &mut Running) -> Result<(), ExchangeError> {
        running.up.current = None;
        let (uploads, after) = (running.up.uploads.clone(), running.up.stored);
        let next = match uploads {
            Some(uploads) => on_thread(move || lock(&uploads).next(after)).await.map_err(ExchangeError::Local)?,
            None => None,
        };
        let Some(outgoing) = next else {
            if !running.up.is_done {
                Box::pin(self.handle(running, Event::Upload(UploadEvent::Done))).await?;
            }
            return self.uploads_done(running).await;
        };
        let file = outgoing.file;
        self.report.sent.begun = Some((file, outgoing.units));
        running.up.current = Some(outgoing);
        Box::pin(self.handle(running, Event::Upload(UploadEvent::Send(file)))).await
    }

    /// There is nothing more to send for now: the rest of the session may begin.
    pub(super) async fn uploads_done(&mut self, running: &mut Running) -> Result<(), ExchangeError> {
        if std::mem::replace(&mut running.up.is_done, true) {
            return Ok(());
        }
        let is_on = running.machine.uploads().is_on();
        self.report.sent.is_unknown_to_server = running.up.is_wanted() && !is_on;
        if let (Some(seconds), true, Mode::Sync) = (self.options.wait, is_on, self.mode) {
            running.up.is_awaiting = true;
            Box::pin(self.handle(running, Event::Upload(UploadEvent::Await { seconds }))).await?;
        }
        self.fetch(running, self.report.last_file).await
    }

    fn read(&mut self, running: &mut Running, file: UploadFile, offset: u64) -> Result<(), ExchangeError> {
        let Some(outgoing) = &running.up.current else { return Ok(()) };
        let path = outgoing.path.clone();
        let mut source = Disk::new().open(&path)?;
        if let Err(source) = source.seek(SeekFrom::Start(offset)) {
            return Err(DiskError::Io { operation: "read", path, source }.into());
        }
        self.progress.on(&ProgressEvent::Sending { units: outgoing.units, bytes: file.bytes - offset });
        running.up.sending = Some(Sending { file, source, path, at: offset });
        Ok(())
    }

    /// Sends the next piece of the file; the line takes it.
    pub(super) async fn send_piece(&mut self, running: &mut Running) -> Result<(), ExchangeError> {
        let Some(sending) = &mut running.up.sending else { return Ok(()) };
        let left = usize::try_from(sending.file.bytes - sending.at).unwrap_or(usize::MAX).min(PIECE_SENT_BYTES);
        if left > 0 {
            let mut bytes = vec![0; left];
            if let Err(source) = sending.source.read_exact(&mut bytes) {
                return Err(DiskError::Io { operation: "read", path: sending.path.clone(), source }.into());
            }
            let message = Message::Upload(UploadMessage::Chunk { offset: sending.at, bytes: bytes.into() });
            sending.at += left as u64;
            self.report.sent.bytes += left as u64;
            self.progress.on(&ProgressEvent::SentBytes(left as u64));
            if let Err(error) = running.link.outgoing.send(&message).await {
                running.ended.get_or_insert(Closed::Lost(error.to_string()));
                return Ok(());
            }
        }
        if sending.at == sending.file.bytes {
            running.up.sending = None;
            self.handle(running, Event::Upload(UploadEvent::Sent)).await?;
        }
        Ok(())
    }

    async fn stored(&mut self, running: &mut Running, file: UploadFile) -> Result<(), ExchangeError> {
        running.up.sending = None;
        running.up.stored = running.up.stored.max(file.file);
        if let Some(uploads) = running.up.uploads.clone() {
            on_thread(move || lock(&uploads).stored(file.file)).await.map_err(ExchangeError::Local)?;
        }
        self.report.sent.count(file.file);
        self.report.sent.refused = None;
        self.progress.on(&ProgressEvent::Sent(file.file));
        self.send_next(running).await
    }

    async fn refused(&mut self, running: &mut Running, refused: Refused, again: bool) -> Result<(), ExchangeError> {
        running.up.sending = None;
        running.up.current = None;
        tracing::warn!("the server did not take {}: {} ({})", refused.file.file_name(), refused.text, refused.code);
        self.progress.on(&ProgressEvent::UploadRefused(refused.clone()));
        if again {
            return self.send_next(running).await;
        }
        if refused.code == UploadRefusal::OutOfOrder {
            // What the server has is not what it said; the next session begins with what it has then.
            running.ended.get_or_insert(Closed::Lost(refused.text));
            return Ok(());
        }
        running.up.refused_at = Some(Instant::now());
        self.report.sent.refused = Some(refused);
        self.uploads_done(running).await
    }

    /// Tries again what was refused for a reason that passes.
    pub(super) async fn retry_upload(&mut self, running: &mut Running) -> Result<(), ExchangeError> {
        if running.machine.uploads().may_retry() && running.up.refused_at.is_some_and(|at| at.elapsed() > RETRY) {
            running.up.refused_at = None;
            self.handle(running, Event::Upload(UploadEvent::Retry)).await?;
            self.send_next(running).await?;
        }
        Ok(())
    }

    /// Lets files go whose units are finished for long.
    pub(super) async fn purge_uploads(&mut self, running: &Running) -> Result<(), ExchangeError> {
        match running.up.uploads.clone() {
            Some(uploads) => on_thread(move || lock(&uploads).purge()).await.map_err(ExchangeError::Local),
            None => Ok(()),
        }
    }
}
