//! Lines over TLS. What TLS demands stands in `trust::tls`; here is what becomes of a socket.

use crate::base::clock::now_seconds;
use crate::base::limits::SESSION_MESSAGE_BYTES_MAX;
use crate::session::enrol::{Answer, ENROL_BYTES_MAX, Request};
use crate::session::message::{Refusal, RefusalCode};
use crate::transport::link::{Link, Timing};
use crate::transport::peer::{Boxed, DialError, Greeted, Greeter, Proof, Stream};
use crate::transport::proxy::Proxy;
use crate::transport::tcp::{self, REQUEST_BYTES_MAX};
use crate::trust::authority::Authority;
use crate::trust::identity::key_of;
use crate::trust::keys::TrustError;
use crate::trust::tls::{self as demands, Calendar};
use futures_util::{SinkExt, StreamExt};
use rustls::ClientConfig;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

/// Greets nodes over TLS.
pub struct TlsGreeter {
    acceptor: TlsAcceptor,
    calendar: Calendar,
}

impl fmt::Debug for TlsGreeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsGreeter").finish_non_exhaustive()
    }
}

impl TlsGreeter {
    /// Greets in the name of an authority.
    ///
    /// # Errors
    /// The authority is unusable.
    pub fn new(authority: &Arc<Authority>) -> Result<TlsGreeter, TrustError> {
        Ok(TlsGreeter { acceptor: TlsAcceptor::from(Arc::new(demands::server(authority)?)), calendar: Calendar::of(authority)? })
    }
}

impl Greeter for TlsGreeter {
    fn greet(&self, stream: TcpStream, timing: Timing) -> Boxed<'_, io::Result<Greeted>> {
        Box::pin(async move {
            stream.set_nodelay(true)?;
            let stream = tokio::time::timeout(timing.handshake, self.acceptor.accept(stream))
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "TLS was not done in time"))??;
            let (_, connection) = stream.get_ref();
            let certificate = connection.peer_certificates().and_then(|chain| chain.first()).map(|shown| shown.clone().into_owned());
            let key = certificate.as_ref().and_then(key_of);
            if connection.alpn_protocol() == Some(demands::ENROL) {
                return Ok(Greeted::Enrolment { stream: Box::new(stream), key });
            }
            let link = tcp::line(stream, REQUEST_BYTES_MAX, timing);
            Ok(match (key, certificate) {
                (Some(_), Some(certificate)) if !self.calendar.is_good(&certificate, now_seconds()) => Greeted::Turned {
                    link,
                    refusal: Refusal::new(RefusalCode::Certificate, "the certificate of this node has ended: ask for a new one"),
                },
                (Some(key), _) => Greeted::Session { link, proof: Proof::Key(key) },
                // A session by one that shows no certificate, or one of a key that no node has.
                (None, _) => Greeted::Turned { link, refusal: Refusal::new(RefusalCode::Node, crate::session::admission::NODE_TEXT) },
            })
        })
    }
}

/// Opens a TLS line to a server.
///
/// # Errors
/// See `DialError`.
pub async fn connect(
    address: &str,
    config: ClientConfig,
    proxy: Option<&Proxy>,
    timing: Timing,
) -> Result<TlsStream<TcpStream>, DialError> {
    let stream = tcp::connect(address, proxy, timing).await?;
    let connecting = TlsConnector::from(Arc::new(config)).connect(demands::server_name()?, stream);
    match tokio::time::timeout(timing.handshake, connecting).await {
        Ok(connected) => connected.map_err(|error| told(address, error)),
        Err(_) => {
            Err(DialError::Tls { address: address.to_owned(), source: io::Error::new(io::ErrorKind::TimedOut, "TLS was not done in time") })
        }
    }
}

/// Tells apart what a user has to do about it.
fn told(address: &str, error: io::Error) -> DialError {
    let address = address.to_owned();
    let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match of_tls {
        Some(rustls::Error::InvalidCertificate(_)) => DialError::Stranger { address },
        _ => DialError::Tls { address, source: error },
    }
}

/// Makes a line for a session of a TLS stream.
pub fn session(stream: TlsStream<TcpStream>, timing: Timing) -> Link {
    tcp::line(stream, SESSION_MESSAGE_BYTES_MAX, timing)
}

/// Frames for the one request and the one answer of an enrolment.
pub fn enrolment_frames<S: Stream>(stream: S) -> Framed<S, LengthDelimitedCodec> {
    LengthDelimitedCodec::builder().little_endian().max_frame_length(ENROL_BYTES_MAX).new_framed(stream)
}

/// Asks for a certificate on a line that is for that.
///
/// # Errors
/// The line broke, the answer cannot be understood, or the server refuses.
pub async fn ask(address: &str, stream: TlsStream<TcpStream>, request: &Request, patience: Duration) -> Result<Vec<u8>, DialError> {
    let broke = |source| DialError::Tls { address: address.to_owned(), source };
    let unclear = |error: crate::session::codec::CodecError| broke(io::Error::new(io::ErrorKind::InvalidData, error.to_string()));
    let mut frames = enrolment_frames(stream);
    let asking = async {
        frames.send(request.encode().map_err(unclear)?).await.map_err(broke)?;
        let Some(frame) = frames.next().await else {
            return Err(broke(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the line without an answer")));
        };
        Answer::decode(&frame.map_err(broke)?).map_err(unclear)
    };
    match tokio::time::timeout(patience, asking).await {
        Ok(Ok(Answer::Granted { certificate })) => Ok(certificate),
        Ok(Ok(Answer::Refused { text })) => Err(DialError::Refused { address: address.to_owned(), text }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(broke(io::Error::new(io::ErrorKind::TimedOut, "no answer"))),
    }
}
