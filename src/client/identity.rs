//! The identity of a node, in `pos.db.sync/identity`: its key, its certificate, the authority of its server.
//!
//! **Order while a node is let in**: the key is kept before the server hears of it (`key.pem`), so that the same token can be shown again
//! after a cut; what the server answered is kept beside the former identity (`new.pem`) and takes its place (`node.pem`) together with the
//! new database. So a database that is to be replaced can be synchronised until then.

use crate::base::clock::now_seconds;
use crate::base::disk::Disk;
use crate::client::folder::LockedFolder;
use crate::session::enrol::{Answer, Request};
use crate::transport::carrier::{Carrier, Marker};
use crate::transport::letters::MailError;
use crate::transport::link::{Link, Timing};
use crate::transport::newcomers;
use crate::transport::peer::{Boxed, DialError, Dialer};
use crate::transport::proxy::Proxy;
use crate::transport::tls;
use crate::trust::identity::{NodeIdentity, key_of, key_text, read_key};
use crate::trust::keys::{KeyPair, TrustError};
use crate::trust::tls as demands;
use crate::trust::token::{Fingerprint, Token};
use rustls::pki_types::CertificateDer;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Which identity of a folder is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// That of the database.
    Node,
    /// That of the database that init is making.
    New,
}

fn folder(locked: &LockedFolder) -> PathBuf {
    locked.path().join("identity")
}

fn key_file(locked: &LockedFolder) -> PathBuf {
    folder(locked).join("key.pem")
}

fn file(locked: &LockedFolder, which: Which) -> PathBuf {
    folder(locked).join(match which {
        Which::Node => "node.pem",
        Which::New => "new.pem",
    })
}

/// Reads an identity; `None` if there is none.
///
/// # Errors
/// The file cannot be read, others may read it, or it is damaged.
pub fn read(disk: &Disk, path: &Path) -> Result<Option<NodeIdentity>, DialError> {
    let text = match disk.read_secret(path) {
        Err(error) if error.is_not_found() => return Ok(None),
        text => text?,
    };
    let identity = NodeIdentity::from_text(&text);
    identity.map(Some).map_err(|error| DialError::Identity { path: path.to_owned(), why: error.to_string() })
}

/// Reads the identity of a folder.
///
/// # Errors
/// As [`read`].
pub fn of(locked: &LockedFolder, which: Which) -> Result<Option<NodeIdentity>, DialError> {
    read(locked.disk(), &file(locked, which))
}

/// Has this folder's key let in by a token, and keeps what the server answers as [`Which::New`].
///
/// # Errors
/// No line, the server is not the one that the token names, or it refuses.
pub async fn enrol(
    locked: &LockedFolder,
    address: &str,
    token: &Token,
    proxy: Option<&Proxy>,
    timing: Timing,
) -> Result<NodeIdentity, DialError> {
    let disk = locked.disk();
    disk.ensure_folder(&folder(locked))?;
    let (key, is_old) = match disk.read_secret(&key_file(locked)) {
        Ok(text) => (read_key(&text).map_err(|error| DialError::Identity { path: key_file(locked), why: error.to_string() })?, true),
        Err(error) if error.is_not_found() => (new_key(locked)?, false),
        Err(error) => return Err(error.into()),
    };
    match enrol_key(locked, address, token, key, proxy, timing).await {
        // The key of an attempt before may be that of another node by now.
        Err(DialError::Refused { .. }) if is_old => enrol_key(locked, address, token, new_key(locked)?, proxy, timing).await,
        done => done,
    }
}

/// What came of asking by a file.
#[derive(Debug)]
pub enum Asked {
    /// The server let this key in.
    Granted(Box<NodeIdentity>),
    /// It has not answered yet.
    Waiting,
}

/// Asks by a file on a carrier to be let in, or takes the answer that lies there and keeps it as [`Which::New`].
///
/// # Errors
/// The carrier is another server's than the token's, or cannot be written; or the server refuses.
pub fn enrol_by_file(locked: &LockedFolder, carrier: &dyn Carrier, marker: &Marker, token: &Token) -> Result<Asked, DialError> {
    let disk = locked.disk();
    let place = carrier.place();
    disk.ensure_folder(&folder(locked))?;
    if Fingerprint::of(&marker.authority) != token.server {
        return Err(DialError::Stranger { address: place });
    }
    let authority = CertificateDer::from(marker.authority.clone());
    let server_key = key_of(&authority).ok_or_else(|| DialError::Stranger { address: place.clone() })?;
    let key = match disk.read_secret(&key_file(locked)) {
        Ok(text) => read_key(&text).map_err(|error| DialError::Identity { path: key_file(locked), why: error.to_string() })?,
        Err(error) if error.is_not_found() => new_key(locked)?,
        Err(error) => return Err(error.into()),
    };
    let mail = |error: MailError| DialError::Tls { address: place.clone(), source: std::io::Error::other(error) };
    match newcomers::answer(carrier, marker.server, &server_key, &key).map_err(mail)? {
        None => {
            newcomers::ask(carrier, marker.server, &server_key, &key, token.secret).map_err(mail)?;
            Ok(Asked::Waiting)
        }
        Some(Answer::Granted { certificate }) => {
            let identity = NodeIdentity::new(key, certificate.into(), authority)?;
            disk.replace_with(&locked.tmp(), &file(locked, Which::New), identity.to_text().as_bytes())?;
            Ok(Asked::Granted(Box::new(identity)))
        }
        Some(Answer::Refused { text }) => {
            // The next attempt, with another token, has another key.
            newcomers::ask_no_more(carrier, &key.public()).map_err(|error| mail(error.into()))?;
            disk.remove(&key_file(locked))?;
            Err(DialError::Refused { address: place, text })
        }
    }
}

fn new_key(locked: &LockedFolder) -> Result<KeyPair, DialError> {
    let key = KeyPair::generate()?;
    locked.disk().replace_with(&locked.tmp(), &key_file(locked), key_text(&key).as_bytes())?;
    Ok(key)
}

async fn enrol_key(
    locked: &LockedFolder,
    address: &str,
    token: &Token,
    key: KeyPair,
    proxy: Option<&Proxy>,
    timing: Timing,
) -> Result<NodeIdentity, DialError> {
    let stream = tls::connect(address, demands::newcomer(token.server)?, proxy, timing).await?;
    let authority = authority_of(&stream, token.server)?;
    let request = Request::Enrol { secret: token.secret, key: key.public() };
    let certificate = tls::ask(address, stream, &request, timing.handshake).await?;
    let identity = NodeIdentity::new(key, certificate.into(), authority)?;
    locked.disk().replace_with(&locked.tmp(), &file(locked, Which::New), identity.to_text().as_bytes())?;
    Ok(identity)
}

fn authority_of(
    stream: &tokio_rustls::client::TlsStream<tokio::net::TcpStream>,
    server: Fingerprint,
) -> Result<CertificateDer<'static>, TrustError> {
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let found = shown.iter().find(|certificate| Fingerprint::of(certificate) == server);
    found.map(|certificate| certificate.clone().into_owned()).ok_or_else(|| TrustError::Text("the server showed no authority".to_owned()))
}

/// Puts the new identity in the place of the former one, if there is a new one.
///
/// # Errors
/// Anything of the disk.
pub fn take_over(locked: &LockedFolder) -> Result<(), DialError> {
    let new = file(locked, Which::New);
    if new.exists() {
        locked.disk().replace(&new, &file(locked, Which::Node))?;
    }
    Ok(())
}

/// Forgets the key that asked to be let in: the database that it was for is in place, and nobody asks again.
///
/// # Errors
/// Anything of the disk.
pub fn forget_key(locked: &LockedFolder) -> Result<(), DialError> {
    Ok(locked.disk().remove(&key_file(locked))?)
}

/// Calls a server as the node that an identity is of, and has its certificate renewed in time.
#[derive(Debug)]
pub struct ServerDialer {
    path: PathBuf,
    tmp: PathBuf,
    disk: Disk,
    proxy: Option<Proxy>,
    renew: AtomicBool,
}

impl ServerDialer {
    /// Calls with an identity of a folder, whose lock is held while this is used.
    pub fn new(locked: &LockedFolder, which: Which, proxy: Option<Proxy>) -> ServerDialer {
        ServerDialer { path: file(locked, which), tmp: locked.tmp(), disk: locked.disk().clone(), proxy, renew: AtomicBool::new(false) }
    }

    async fn renewed(&self, address: &str, identity: NodeIdentity, timing: Timing) -> Result<NodeIdentity, DialError> {
        let stream = tls::connect(address, demands::node(&identity, demands::ENROL)?, self.proxy.as_ref(), timing).await?;
        let certificate = tls::ask(address, stream, &Request::Renew, timing.handshake).await?;
        let identity = identity.renewed(certificate.into())?;
        self.disk.replace_with(&self.tmp, &self.path, identity.to_text().as_bytes())?;
        tracing::info!(node = %identity.node(), "has a new certificate");
        Ok(identity)
    }
}

impl Dialer for ServerDialer {
    fn dial<'a>(&'a self, address: &'a str, timing: Timing) -> Boxed<'a, Result<Link, DialError>> {
        Box::pin(async move {
            let missing = || DialError::NoIdentity(self.path.clone());
            let mut identity = read(&self.disk, &self.path)?.ok_or_else(missing)?;
            let is_demanded = self.renew.load(Ordering::Relaxed);
            if is_demanded || demands::is_renewal_due(&identity, now_seconds())? {
                identity = match self.renewed(address, identity, timing).await {
                    Ok(renewed) => {
                        self.renew.store(false, Ordering::Relaxed);
                        renewed
                    }
                    Err(error) if is_demanded => return Err(error),
                    // What is left of the old one may do; if not, the server says so.
                    Err(error) => {
                        tracing::warn!("no new certificate: {error}");
                        read(&self.disk, &self.path)?.ok_or_else(missing)?
                    }
                };
            }
            let stream = tls::connect(address, demands::node(&identity, demands::SESSION)?, self.proxy.as_ref(), timing).await?;
            Ok(tls::session(stream, timing))
        })
    }

    fn renew_next(&self) {
        self.renew.store(true, Ordering::Relaxed);
    }
}
