//! What stands between a socket and a session: who greets a line that comes in, who opens one, and what a line proves of its peer.

use crate::base::ids::NodeName;
use crate::session::message::Refusal;
use crate::transport::link::{Link, Timing};
use crate::transport::tcp::TcpError;
use crate::trust::keys::{PublicKey, TrustError};
use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A future behind a trait object.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a line proves of the peer at its other end. A session is for a node only if its line proves that node (T4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// It holds the private half of this key; the server database knows whose that is.
    Key(PublicKey),
    /// It is this node: somebody else has proved it, say sshd by a forced command.
    Named(NodeName),
}

/// A stream of bytes both ways.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A line that came in.
pub enum Greeted {
    /// For a session.
    Session {
        /// The line.
        link: Link,
        /// What it proves.
        proof: Proof,
    },
    /// For letting a node in, or renewing its certificate.
    Enrolment {
        /// The line.
        stream: Box<dyn Stream>,
        /// The key that it proves, if any.
        key: Option<PublicKey>,
    },
    /// Not as it is.
    Turned {
        /// The line, for the refusal.
        link: Link,
        /// Why.
        refusal: Refusal,
    },
}

impl fmt::Debug for Greeted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Greeted::Session { .. } => "Session",
            Greeted::Enrolment { .. } => "Enrolment",
            Greeted::Turned { .. } => "Turned",
        })
    }
}

/// Makes lines of sockets that were accepted.
pub trait Greeter: Send + Sync + 'static {
    /// Makes a line of a socket, within the handshake time.
    fn greet(&self, stream: TcpStream, timing: Timing) -> Boxed<'_, io::Result<Greeted>>;
}

/// Opens lines to a server.
pub trait Dialer: fmt::Debug + Send + Sync {
    /// Opens a line for a session.
    fn dial<'a>(&'a self, address: &'a str, timing: Timing) -> Boxed<'a, Result<Link, DialError>>;

    /// The server says that the certificate shown has ended: the next line is preceded by asking for a new one.
    fn renew_next(&self) {}
}

/// Why there is no line.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The network.
    #[error(transparent)]
    Tcp(#[from] TcpError),
    /// The text is no address.
    #[error("{why}")]
    Address {
        /// What is wrong.
        why: String,
    },
    /// SSH.
    #[cfg(unix)]
    #[error(transparent)]
    Ssh(#[from] crate::transport::ssh::SshError),
    /// This database was never let in.
    #[error("{} is missing: this database was never let in by a server", .0.display())]
    NoIdentity(PathBuf),
    /// The identity of this node cannot be used.
    #[error("{}: {why}", .path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The other side is not the server that let this node in, or something stands between.
    #[error("{address} does not prove that it is the server of this database")]
    Stranger {
        /// The address.
        address: String,
    },
    /// TLS came to no end.
    #[error("{address}: {source}")]
    Tls {
        /// The address.
        address: String,
        /// What is wrong.
        source: io::Error,
    },
    /// The server does not let this node in, or gives no new certificate.
    #[error("the server at {address} refused: {text}")]
    Refused {
        /// The address.
        address: String,
        /// What the server says.
        text: String,
    },
    /// What is kept of the identity could not be used or kept.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The file of the identity.
    #[error(transparent)]
    Disk(#[from] crate::base::disk::DiskError),
}

impl DialError {
    /// Whether the same call may succeed later without anybody doing anything (exit code 3).
    pub fn is_passing(&self) -> bool {
        match self {
            DialError::Tcp(_) | DialError::Tls { .. } => true,
            #[cfg(unix)]
            DialError::Ssh(error) => error.is_passing(),
            _ => false,
        }
    }
}
