//! Sockets: where a server listens, how a client gets there, through a proxy if its network has one.

use crate::transport::link::{Link, Timing};
use crate::transport::proxy::{self, Proxy};
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use crate::base::limits::UPLOAD_CHUNK_BYTES;

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
    /// The proxy does not lead there.
    #[error("connect to {address} through the proxy {proxy}: {source}")]
    Proxy {
        /// The address.
        address: String,
        /// The proxy, without user and password.
        proxy: String,
        /// What is wrong.
        source: io::Error,
    },
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, TcpError> {
    let wrong = |source| TcpError::Address { address: address.to_owned(), source };
    let found: Vec<SocketAddr> = tokio::net::lookup_host(address).await.map_err(wrong)?.collect();
    if found.is_empty() {
        return Err(wrong(io::Error::new(io::ErrorKind::NotFound, "it stands for nothing")));
    }
    Ok(found)
}

/// Opens a listener, e.g. on `0.0.0.0:40400`; port 0 lets the system choose.
///
/// # Errors
/// Not an address, not of this machine, or taken.
pub async fn listen(address: &str) -> Result<TcpListener, TcpError> {
    let found = resolve(address).await?;
    TcpListener::bind(found.as_slice()).await.map_err(|source| TcpError::Listen { address: address.to_owned(), source })
}

/// Opens a socket to an address within the handshake time.
///
/// # Errors
/// Not an address, nobody there, no answer in time, or the proxy refuses.
pub async fn connect(address: &str, proxy: Option<&Proxy>, timing: Timing) -> Result<TcpStream, TcpError> {
    let connecting = async {
        match proxy.filter(|proxy| proxy.is_for(address)) {
            Some(proxy) => proxy::connect(proxy, address).await.map_err(|source| TcpError::Proxy {
                address: address.to_owned(),
                proxy: proxy.to_string(),
                source,
            }),
            None => {
                let found = resolve(address).await?;
                TcpStream::connect(found.as_slice()).await.map_err(|source| TcpError::Connect { address: address.to_owned(), source })
            }
        }
    };
    let stream = tokio::time::timeout(timing.handshake, connecting).await.unwrap_or_else(|_| {
        Err(TcpError::Connect { address: address.to_owned(), source: io::Error::new(io::ErrorKind::TimedOut, "no answer") })
    })?;
    // Requests and acknowledgements are small and each may be waited for.
    stream.set_nodelay(true).map_err(|source| TcpError::Connect { address: address.to_owned(), source })?;
    Ok(stream)
}

/// Makes a line of a stream.
pub fn line<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S, frame_max: usize, timing: Timing) -> Link {
    let (reader, writer) = tokio::io::split(stream);
    Link::new(reader, writer, frame_max, timing)
}
