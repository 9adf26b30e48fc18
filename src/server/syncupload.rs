//! Drives the way up of one session: does what `session::upload_server` decides, with the node's inbox (`server::inbox`).
//!
//! Bytes are written as they come, which holds the node back when the disk is slow. What may take long (looking at what is there,
//! proving and publishing a file, waiting for the Merger) runs beside the session, so that heartbeats are answered meanwhile.

use crate::base::ids::{FileNo, Incarnation, InstallId, NodeName, UnitNo};
use crate::model::node::Node;
use crate::server::inbox::Inbox;
use crate::server::syncmgr::{BoxError, Shared};
use crate::server::syncsession::{blocking, finished};
use crate::session::admission::ServerIdentity;
use crate::session::upload_server::{UploadAction, UploadEvent};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// How often it is looked whether units are merged, should no event tell.
const MERGED_POLL: Duration = Duration::from_millis(500);

/// Whose uploads these are.
struct Owner {
    shared: Arc<Shared>,
    identity: ServerIdentity,
    node: Node,
    install: InstallId,
    /// Its first unit that was never in a file, when it called.
    unsent: UnitNo,
}

/// The way up of one session.
#[derive(Default)]
pub(super) struct Uploads {
    owner: Option<Owner>,
    inbox: Option<Inbox>,
    /// Looking, or proving a file. The inbox comes back with the answer.
    working: Option<JoinHandle<Result<(Inbox, UploadEvent), BoxError>>>,
    /// Waiting for the Merger.
    waiting: Option<JoinHandle<Result<UploadEvent, BoxError>>>,
}

impl Drop for Uploads {
    fn drop(&mut self) {
        if let Some(waiting) = &self.waiting {
            waiting.abort();
        }
    }
}

impl Uploads {
    /// Takes note of who was let in.
    pub(super) fn admit(&mut self, shared: &Arc<Shared>, identity: &ServerIdentity, node: &Node, install: InstallId, unsent: UnitNo) {
        self.owner = Some(Owner { shared: Arc::clone(shared), identity: identity.clone(), node: node.clone(), install, unsent });
    }

    /// Waits for the next answer. May be dropped and called again without loss.
    pub(super) async fn next(&mut self) -> Result<UploadEvent, BoxError> {
        tokio::select! {
            worked = finished(&mut self.working) => {
                self.working = None;
                let (inbox, event) = worked?;
                self.inbox = Some(inbox);
                Ok(event)
            }
            waited = finished(&mut self.waiting) => {
                self.waiting = None;
                waited
            }
        }
    }

    /// Does what the machine decided. Returns the answer if it is there at once.
    pub(super) async fn act(&mut self, action: UploadAction) -> Result<Option<UploadEvent>, BoxError> {
        // One whose stream began anew is let in to be told so; it has no uploads.
        let Some(owner) = &self.owner else { return Ok(None) };
        match action {
            UploadAction::Look => {
                let (shared, identity, node) = (Arc::clone(&owner.shared), owner.identity.clone(), owner.node.clone());
                let (install, unsent) = (owner.install, owner.unsent);
                self.working = Some(tokio::task::spawn_blocking(move || {
                    let inbox = Inbox::open(shared, identity, node, install, unsent)?;
                    let known = inbox.known();
                    Ok((inbox, UploadEvent::Known(known)))
                }));
                Ok(None)
            }
            UploadAction::Begin { file, offset } => {
                self.with_inbox(move |inbox| inbox.begin(&file, offset).map(|began| Some(UploadEvent::Began(began)))).await
            }
            UploadAction::Store(bytes) => self.with_inbox(move |inbox| Ok(inbox.store(&bytes)?.err().map(UploadEvent::Broken))).await,
            UploadAction::Leave => {
                if let Some(inbox) = &mut self.inbox {
                    inbox.leave();
                }
                Ok(None)
            }
            UploadAction::Finish(file) => {
                let mut inbox = self.inbox.take().ok_or("the inbox is not open")?;
                self.working = Some(tokio::task::spawn_blocking(move || {
                    let finished = inbox.finish(&file)?;
                    Ok((inbox, UploadEvent::Finished(finished)))
                }));
                Ok(None)
            }
            UploadAction::Await { stored, seconds } => {
                let (shared, node) = (Arc::clone(&owner.shared), owner.node.clone());
                let patience = Duration::from_secs(seconds.into());
                self.waiting = Some(tokio::spawn(await_merged(shared, node.name, node.incarnation, stored, patience)));
                Ok(None)
            }
            // The session does these itself.
            UploadAction::Send(_) | UploadAction::Alert(_) => Ok(None),
        }
    }

    async fn with_inbox(
        &mut self,
        work: impl FnOnce(&mut Inbox) -> Result<Option<UploadEvent>, BoxError> + Send + 'static,
    ) -> Result<Option<UploadEvent>, BoxError> {
        let mut inbox = self.inbox.take().ok_or("the inbox is not open")?;
        let (inbox, event) = blocking(move || {
            let event = work(&mut inbox)?;
            Ok((inbox, event))
        })
        .await?;
        self.inbox = Some(inbox);
        Ok(event)
    }
}

/// Waits until everything to `stored` is merged, and what came of it is routed (MI-12), or the time is up (MI-16).
async fn await_merged(
    shared: Arc<Shared>,
    node: NodeName,
    incarnation: Incarnation,
    stored: FileNo,
    patience: Duration,
) -> Result<UploadEvent, BoxError> {
    let mut routed = shared.routed.clone();
    let wait = async {
        let mut target = None;
        loop {
            // Seen before the look, so that a round that ends in between wakes us.
            routed.mark_unchanged();
            let (look, name) = (Arc::clone(&shared), node.clone());
            target = blocking(move || {
                let merged = look.directory.merged(&name)?;
                let is_merged =
                    stored == FileNo(0) || merged.is_some_and(|merged| merged.incarnation == incarnation && merged.file >= stored);
                match target {
                    None if is_merged => Ok(Some(look.directory.log_end()?)),
                    known => Ok(known),
                }
            })
            .await?;
            if let Some(target) = target {
                let look = Arc::clone(&shared);
                if blocking(move || look.index.position()).await? >= target {
                    return Ok::<(), BoxError>(());
                }
            }
            tokio::select! {
                changed = routed.changed() => if changed.is_err() {
                    tokio::time::sleep(MERGED_POLL).await;
                },
                () = tokio::time::sleep(MERGED_POLL) => {}
            }
        }
    };
    let merged = match tokio::time::timeout(patience, wait).await {
        Ok(done) => done.map(|()| true)?,
        Err(_) => false,
    };
    let last_file = blocking(move || shared.index.last_file(&node, incarnation)).await?;
    Ok(UploadEvent::Awaited { merged, last_file })
}
