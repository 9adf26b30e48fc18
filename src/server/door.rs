//! The door for lines that somebody else has proved: a socket in the docking root, on which `dockmaster session --stdio` brings what
//! sshd has let in.
//!
//! Whoever may open the socket is the account of the service, which may read and write everything here anyway; so what it says of the
//! node is taken as proved. The first line is `NODE PEER`, both short; the session follows.

use crate::base::disk::{Disk, DiskError};
use crate::base::ids::NodeName;
use crate::docking::root::DockingRoot;
use crate::server::syncmgr::Shared;
use crate::server::syncsession::serve_link;
use crate::transport::peer::Proof;
use crate::transport::tcp::{self, REQUEST_BYTES_MAX};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

/// Longest first line, in bytes.
pub const FIRST_LINE_BYTES_MAX: usize = 128;

/// The door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The socket.
    #[error("open {}: {source}", .path.display())]
    Open {
        /// The socket.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// Nobody behind it.
    #[error("no service behind {}: {source}", .path.display())]
    Enter {
        /// The socket.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// What was left of a former one.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// The open door of a docking root.
#[derive(Debug)]
pub(super) struct Door {
    path: PathBuf,
    /// `None` if there can be none.
    #[cfg(unix)]
    listener: Option<tokio::net::UnixListener>,
}

impl Door {
    /// Opens the door of a docking root, which the caller holds; what a killed service left of it goes. A root whose path is longer than that
    /// of a socket may be has none: that is said, and everything else goes on.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn open(root: &DockingRoot) -> Result<Door, DoorError> {
        let path = root.door();
        let disk = Disk::new();
        disk.remove(&path)?;
        #[cfg(unix)]
        let listener = match tokio::net::UnixListener::bind(&path) {
            Ok(listener) => {
                disk.make_private(&path)?;
                Some(listener)
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                tracing::warn!(
                    "nodes cannot come in over SSH: {} is no path for a socket: {error}; a shorter [server] root has one",
                    path.display()
                );
                None
            }
            Err(source) => return Err(DoorError::Open { path, source }),
        };
        Ok(Door {
            path,
            #[cfg(unix)]
            listener,
        })
    }

    /// Waits for the next line.
    #[cfg(unix)]
    pub(super) async fn accept(&self) -> Proved {
        let Some(listener) = &self.listener else { return std::future::pending().await };
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return stream,
                Err(error) => {
                    // Mostly no file handles left: the sessions that end free some.
                    tracing::warn!("door: accept: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// Nobody comes in here: there are no such sockets.
    #[cfg(not(unix))]
    pub(super) async fn accept(&self) -> Proved {
        std::future::pending().await
    }

    /// Takes the door away.
    pub(super) fn close(self) {
        if let Err(error) = Disk::new().remove(&self.path) {
            tracing::warn!("{error}");
        }
    }
}

/// A line that somebody else has proved.
#[cfg(unix)]
pub(super) type Proved = tokio::net::UnixStream;
#[cfg(not(unix))]
pub(super) type Proved = tokio::net::TcpStream;

/// Connects to the service behind a door, as the line of a node. Blocks.
///
/// # Errors
/// No service runs, or this account may not open its door.
#[cfg(unix)]
pub fn enter(root: &Path, node: &NodeName, peer: &str) -> Result<std::os::unix::net::UnixStream, DoorError> {
    let path = DockingRoot::look(root).door();
    let entered = std::os::unix::net::UnixStream::connect(&path).and_then(|mut stream| {
        let peer: String = peer.chars().filter(|sign| sign.is_ascii_graphic()).take(64).collect();
        io::Write::write_all(&mut stream, format!("{node} {peer}\n").as_bytes())?;
        Ok(stream)
    });
    entered.map_err(|source| DoorError::Enter { path, source })
}

/// Serves one line that came through the door.
pub(super) async fn serve(shared: Arc<Shared>, mut stream: Proved, shutdown: CancellationToken) {
    let first = tokio::time::timeout(shared.timing.handshake, first_line(&mut stream)).await;
    let (node, peer) = match first {
        Ok(Ok(first)) => first,
        Ok(Err(error)) => return tracing::warn!("door: {error}"),
        Err(_) => return tracing::warn!("door: nothing was said in time"),
    };
    let link = tcp::line(stream, REQUEST_BYTES_MAX, shared.timing);
    serve_link(shared, link, Proof::Named(node), peer, shutdown).await;
}

async fn first_line(stream: &mut Proved) -> io::Result<(NodeName, String)> {
    let mut line = Vec::new();
    // Byte by byte: what follows is the session's.
    loop {
        match stream.read_u8().await? {
            b'\n' => break,
            byte if line.len() < FIRST_LINE_BYTES_MAX => line.push(byte),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "its first line is too long")),
        }
    }
    let text = String::from_utf8_lossy(&line);
    let (node, peer) = text.split_once(' ').unwrap_or((&text, ""));
    let node = node.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{error}")))?;
    Ok((node, format!("ssh {peer}").trim_end().to_owned()))
}
