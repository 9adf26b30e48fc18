//! What a session has to wait for (`server::syncsession`): one call for its machine at a time.

use crate::base::crash::{self, CrashPoint};
use crate::base::ids::{Incarnation, NodeName, SyncToken};
use crate::docking::sessions::Mark;
use crate::server::outbox::{self, OutboxError, Reading};
use crate::server::syncdoor::Seat;
use crate::server::syncmgr::Shared;
use crate::server::syncsession::blocking;
use crate::session::admission::{self, Admitted, Turned};
use crate::session::message::Unavailable;
use crate::session::server::Event;
use bytes::Bytes;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// How often an extract that is being made is looked for, should no event tell.
const EXTRACT_POLL: Duration = Duration::from_secs(1);

/// What a call for the machine brings.
pub(super) enum Answer {
    /// An event, as it is.
    Event(Event),
    /// The hello was judged; on success the node's one session is ours.
    Judged(Box<Result<Admitted, Turned>>, Option<Seat>),
    /// A file was opened.
    Opened(Reading),
    /// Some bytes of it, and where they begin.
    Chunk(Reading, u64, Bytes),
}

/// A call for the machine that goes on.
pub(super) type Call = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Opens a file of an outbox.
pub(super) fn open_file(open: impl FnOnce() -> Result<Reading, OutboxError> + Send + 'static) -> Call {
    Box::pin(async move {
        match blocking(move || Ok(open())).await {
            Ok(Ok(reading)) => Answer::Opened(reading),
            Ok(Err(error)) => {
                tracing::error!("{error}");
                Answer::Event(Event::Unreadable(if error.is_missing() { Unavailable::Missing } else { Unavailable::Damaged }))
            }
            Err(error) => Answer::Event(Event::Failed(error.to_string())),
        }
    })
}

/// Reads the next piece of a file, as fast as all sessions together may send.
pub(super) fn read_chunk(mut reading: Reading, shared: Arc<Shared>) -> Call {
    Box::pin(async move {
        let read = blocking(move || {
            let offset = reading.offset();
            Ok(reading.next_chunk().map(|bytes| (reading, offset, bytes)))
        });
        match read.await {
            Ok(Ok((reading, offset, bytes))) => {
                shared.throttle.pass(bytes.len()).await;
                Answer::Chunk(reading, offset, bytes)
            }
            Ok(Err(error)) => {
                tracing::error!("{error}");
                Answer::Event(Event::Unreadable(Unavailable::Damaged))
            }
            Err(error) => Answer::Event(Event::Failed(error.to_string())),
        }
    })
}

/// Waits until an extract is there.
pub(super) async fn await_extract(shared: Arc<Shared>, node: NodeName, incarnation: Incarnation) -> Answer {
    let mut routed = shared.routed.clone();
    loop {
        // Seen before the look, so that an extract that comes in between wakes us.
        routed.mark_unchanged();
        let (root, name) = (Arc::clone(&shared.root), node.clone());
        match blocking(move || Ok(outbox::extract(&root, &name, incarnation)?)).await {
            Ok(Some(offer)) => return Answer::Event(Event::ExtractReady(offer)),
            Ok(None) => {}
            Err(error) => return Answer::Event(Event::Failed(error.to_string())),
        }
        tokio::select! {
            changed = routed.changed() => if changed.is_err() {
                tokio::time::sleep(EXTRACT_POLL).await;
            },
            () = tokio::time::sleep(EXTRACT_POLL) => {}
        }
    }
}

/// Judges the token that a local database shows (R34).
pub(super) async fn judge_token(shared: Arc<Shared>, mark: Option<Mark>, shown: Option<SyncToken>) -> Answer {
    let Some(Mark { node, install_id, .. }) = mark else { return Answer::Event(Event::Failed("a token of a stream that is over".into())) };
    let name = node.clone();
    let judged = blocking(move || {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| format!("no random numbers: {error}"))?;
        let judged = shared.sessions().judge_token((&node, install_id), shown, random)?;
        crash::at(CrashPoint::SessionTokenGiven);
        Ok(judged)
    });
    Answer::Event(match judged.await {
        Ok((verdict, next)) => Event::TokenJudged(Box::new(admission::token(&name, verdict, next))),
        Err(error) => Event::Failed(format!("judge a token: {error}")),
    })
}
