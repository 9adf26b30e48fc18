//! Letting a node in by its token, and renewing its certificate: one request, one answer.
//!
//! Every refusal has one text and takes one time, whatever is wrong (T18); the log tells which it was.

use crate::base::clock::now_seconds;
use crate::base::ids::NodeName;
use crate::model::node::NodeState;
use crate::server::syncmgr::{BoxError, Shared};
use crate::server::syncsession::blocking;
use crate::session::admission::NODE_TEXT;
use crate::session::enrol::{Answer, Request};
use crate::store::sqlite::ServerDatabase;
use crate::transport::peer::Stream;
use crate::transport::tls::enrolment_frames;
use crate::trust::authority::Authority;
use crate::trust::keys::PublicKey;
use futures_util::{SinkExt, StreamExt};
use std::sync::Arc;

/// Decides on a request. `Ok(Err(why))` is for the log only.
///
/// # Errors
/// The server database or the authority failed.
pub(super) fn decide(
    database: &ServerDatabase,
    authority: &Authority,
    request: &Request,
    proved: Option<PublicKey>,
) -> Result<Result<(NodeName, Vec<u8>), &'static str>, BoxError> {
    let now = now_seconds();
    let (node, key) = match request {
        Request::Enrol { secret, key } => match database.enrol(secret, key, now)? {
            Some(node) => (node, *key),
            None => return Ok(Err("the token is unknown, has ended or was used, or its node is disabled")),
        },
        Request::Renew => {
            let Some(key) = proved else { return Ok(Err("no certificate was shown")) };
            match database.key_holder(&key)? {
                Some(node) if database.node(&node)?.is_some_and(|known| known.state != NodeState::Disabled) => (node, key),
                Some(_) => return Ok(Err("its node is disabled")),
                None => return Ok(Err("the key is no node's")),
            }
        }
    };
    let certificate = authority.issue_to_node(database.identity()?.server_id, &node, &key, now)?;
    Ok(Ok((node, certificate.to_vec())))
}

/// Serves one line that is for this.
pub(super) async fn serve(shared: Arc<Shared>, stream: Box<dyn Stream>, proved: Option<PublicKey>, peer: String) {
    let began = tokio::time::Instant::now();
    let timing = shared.timing;
    let mut frames = enrolment_frames(stream);
    let request = match tokio::time::timeout(timing.handshake, frames.next()).await {
        Ok(Some(Ok(frame))) => Request::decode(&frame),
        Ok(Some(Err(error))) if error.kind() != std::io::ErrorKind::UnexpectedEof => return tracing::info!(peer, "enrolment: {error}"),
        // Closed without the farewell of TLS, too.
        Ok(None | Some(Err(_))) | Err(_) => return tracing::info!(peer, "enrolment: nothing was asked"),
    };
    let request = match request {
        Ok(request) => request,
        Err(error) => return tracing::warn!(peer, "enrolment: {error}"),
    };
    let directory = Arc::clone(&shared.directory);
    let answer = match blocking(move || directory.enrol(&request, proved)).await {
        Ok(Ok((node, certificate))) => {
            let what = if matches!(request, Request::Renew) { "has a new certificate" } else { "was let in" };
            tracing::info!(%node, peer, "{what}");
            if matches!(request, Request::Enrol { .. }) {
                // Whoever holds its session came in by the key before.
                shared.cut_off(&node);
            }
            Answer::Granted { certificate }
        }
        Ok(Err(why)) => {
            tracing::warn!(peer, "enrolment refused: {why}");
            tokio::time::sleep_until(began + timing.refusal_pause).await;
            Answer::Refused { text: NODE_TEXT.to_owned() }
        }
        Err(error) => {
            tracing::error!(peer, "enrolment: {error}");
            Answer::Refused { text: "the server had a fault of its own; its log tells".to_owned() }
        }
    };
    let sent = async {
        frames.send(answer.encode().map_err(std::io::Error::other)?).await?;
        SinkExt::<bytes::Bytes>::close(&mut frames).await
    };
    match tokio::time::timeout(timing.farewell, sent).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::info!(peer, "enrolment: the answer did not arrive: {error}"),
        Err(_) => tracing::info!(peer, "enrolment: the answer did not leave in time"),
    }
}
