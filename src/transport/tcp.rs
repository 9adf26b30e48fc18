//! Sessions over plain TCP, on this machine only.
//!
//! Until TLS is built a plain socket must not leave the machine: names and rows would travel readable, and nobody would be
//! authenticated. So the listener and the client take loopback addresses only; a tunnel (ssh -L) ends at one.

use crate::base::limits::{SESSION_MESSAGE_BYTES_MAX, UPLOAD_CHUNK_BYTES};
use crate::transport::link::{Link, Timing};
use std::io;
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};

/// Longest frame that a server takes from a node that sends requests only.
pub const REQUEST_BYTES_MAX: usize = 16 << 10;
/// Longest frame that a server takes from a node that was let in to send files: a chunk with its kind and offset.
pub const UPLOAD_FRAME_BYTES_MAX: usize = UPLOAD_CHUNK_BYTES + 10;

/// What can go wrong before there is a line.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    /// The text is not an address.
    #[error("`{address}` is not an address: {source}")]
    Address {
        /// The text.
        address: String,
        /// What is wrong.
        source: io::Error,
    },
    /// The address is not on this machine.
    #[error(
        "{address} ({resolved}) is not a loopback address: sessions are not encrypted and nodes not authenticated yet (TLS is not \
         built), so only 127.0.0.0/8 and ::1 are allowed; use an ssh tunnel to reach another machine"
    )]
    NotLoopback {
        /// As written.
        address: String,
        /// What it stands for.
        resolved: SocketAddr,
    },
    /// The listener cannot be made.
    #[error("listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// Nobody answers.
    #[error("connect to {address}: {source}")]
    Connect {
        /// The address.
        address: String,
        /// What the operating system says.
        source: io::Error,
    },
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, TcpError> {
    let wrong = |source| TcpError::Address { address: address.to_owned(), source };
    let found: Vec<SocketAddr> = tokio::net::lookup_host(address).await.map_err(wrong)?.collect();
    if found.is_empty() {
        return Err(wrong(io::Error::new(io::ErrorKind::NotFound, "it stands for nothing")));
    }
    // Every address that the name stands for: one that is not loopback is one too many.
    match found.iter().find(|resolved| !resolved.ip().to_canonical().is_loopback()) {
        Some(resolved) => Err(TcpError::NotLoopback { address: address.to_owned(), resolved: *resolved }),
        None => Ok(found),
    }
}

/// Opens a listener on a loopback address, e.g. `127.0.0.1:40400`; port 0 lets the system choose.
///
/// # Errors
/// Not an address, not on this machine, or taken.
pub async fn listen(address: &str) -> Result<TcpListener, TcpError> {
    let found = resolve(address).await?;
    TcpListener::bind(found.as_slice()).await.map_err(|source| TcpError::Listen { address: address.to_owned(), source })
}

/// Connects to a server on a loopback address.
///
/// # Errors
/// Not an address, not on this machine, nobody there, or no answer within the handshake time.
pub async fn connect(address: &str, timing: Timing) -> Result<Link, TcpError> {
    let found = resolve(address).await?;
    let failed = |source| TcpError::Connect { address: address.to_owned(), source };
    let stream = tokio::time::timeout(timing.handshake, TcpStream::connect(found.as_slice()))
        .await
        .map_err(|_| failed(io::Error::new(io::ErrorKind::TimedOut, "no answer")))?
        .map_err(failed)?;
    link(stream, SESSION_MESSAGE_BYTES_MAX, timing).map_err(failed)
}

/// Makes a line of a socket that was accepted.
///
/// # Errors
/// The socket is broken already.
pub fn accept(stream: TcpStream, timing: Timing) -> io::Result<Link> {
    link(stream, REQUEST_BYTES_MAX, timing)
}

fn link(stream: TcpStream, frame_max: usize, timing: Timing) -> io::Result<Link> {
    // Requests and acknowledgements are small and each may be waited for.
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    Ok(Link::new(reader, writer, frame_max, timing))
}
