//! Lines over SSH: a channel on which the far side runs `dockmaster session --stdio`, tied to the node's key by a forced command.
//!
//! SSH proves both sides here: the host by `known_hosts`, strictly, the node by its key, which the far side's `authorized_keys` ties to its
//! name. libssh2 blocks, so a thread of its own carries the bytes between the channel and a pair of sockets.

use crate::base::disk::{Disk, DiskError};
use crate::transport::link::{Link, Timing};
use crate::transport::peer::{Boxed, DialError, Dialer};
use crate::transport::tcp;
use rustix::event::{PollFd, PollFlags, Timespec};
use ssh2::{Channel, CheckResult, HashType, KnownHostFileKind, MethodType, Session};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;

use crate::base::limits::SESSION_MESSAGE_BYTES_MAX;

/// What the far side says when the line is open, before the first message.
pub const GREETING: [u8; 8] = *b"DOCKLINE";
/// What the far side is asked to run; a forced command goes before it.
const COMMAND: &str = "dockmaster session --stdio";
/// Kinds of host keys, in the order in which they are asked for: each alone, since `known_hosts` may have one of them only.
const HOST_KEYS: [&str; 3] = ["ssh-ed25519", "ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521", "rsa-sha2-512,rsa-sha2-256"];
/// Bytes that are carried at once.
const PIECE: usize = 64 << 10;
/// Most that is kept of what the far side complains, in bytes.
const COMPLAINT_BYTES_MAX: usize = 2 << 10;
/// How long the far side may take to end after this side has.
const PARTING: Duration = Duration::from_secs(3);

/// `ssh://USER@HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshAddress {
    /// The account on the far side.
    pub user: String,
    /// The host.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for SshAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ssh://{}@{}:{}", self.user, self.host, self.port)
    }
}

impl FromStr for SshAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<SshAddress, String> {
        let wrong = || format!("`{text}` is not of the form ssh://USER@HOST:PORT");
        let rest = text.strip_prefix("ssh://").ok_or_else(wrong)?;
        let (user, place) = rest.strip_suffix('/').unwrap_or(rest).split_once('@').ok_or_else(wrong)?;
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
            _ => (place, 22),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if user.is_empty() || host.is_empty() || host.contains(['/', '@']) {
            return Err(wrong());
        }
        Ok(SshAddress { user: user.to_owned(), host: host.to_owned(), port })
    }
}

/// By what this side proves itself, and knows the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SshKeys {
    /// The file with the private key; `None` = the agent, or the password.
    pub key: Option<PathBuf>,
    /// The hosts that are known.
    pub known_hosts: PathBuf,
    /// A file with the password of the account, or of the key if there is one.
    pub password_file: Option<PathBuf>,
}

/// Why there is no line over SSH.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// The network.
    #[error("connect to {address}: {source}")]
    Connect {
        /// Where.
        address: String,
        /// What is wrong.
        source: io::Error,
    },
    /// The other side is no SSH server, or broke off.
    #[error("{address}: {what}: {source}")]
    Protocol {
        /// Where.
        address: String,
        /// What was being done.
        what: &'static str,
        /// What is wrong.
        source: ssh2::Error,
    },
    /// The host is in the list with another key.
    #[error("the key of {host} is not the one in {} (it shows {shown}): this may be another machine", .known_hosts.display())]
    HostChanged {
        /// The host as the list has it.
        host: String,
        /// The list.
        known_hosts: PathBuf,
        /// Fingerprint of the key that was shown.
        shown: String,
    },
    /// The host is not in the list.
    #[error("{host} is not in {} (it shows {shown})", .known_hosts.display())]
    HostUnknown {
        /// The host as the list would have it.
        host: String,
        /// The list.
        known_hosts: PathBuf,
        /// Fingerprint of the key that was shown.
        shown: String,
    },
    /// The list of hosts cannot be read.
    #[error("read {}: {source}", .known_hosts.display())]
    KnownHosts {
        /// The list.
        known_hosts: PathBuf,
        /// What is wrong.
        source: ssh2::Error,
    },
    /// The account does not take this key or password.
    #[error("{address} does not take {by}: {source}")]
    Denied {
        /// Where.
        address: String,
        /// By what this side proved itself.
        by: String,
        /// What libssh2 says.
        source: ssh2::Error,
    },
    /// The far side ran something else, or it failed.
    #[error("{address} opened no session: {said}")]
    NotOpened {
        /// Where.
        address: String,
        /// What it said.
        said: String,
        /// Its exit code was that of trouble that passes.
        passing: bool,
    },
    /// A key or password file.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The operating system.
    #[error("carry bytes to {address}: {source}")]
    Io {
        /// Where.
        address: String,
        /// What is wrong.
        source: io::Error,
    },
}

impl SshError {
    /// Whether the same call may succeed later without anybody doing anything (exit code 3).
    pub fn is_passing(&self) -> bool {
        match self {
            SshError::Connect { .. } | SshError::Protocol { .. } | SshError::Io { .. } => true,
            SshError::NotOpened { passing, .. } => *passing,
            _ => false,
        }
    }
}

/// Calls a server over SSH.
#[derive(Debug)]
pub struct SshDialer {
    keys: SshKeys,
}

impl SshDialer {
    /// Calls by these keys.
    pub fn new(keys: SshKeys) -> SshDialer {
        SshDialer { keys }
    }
}

impl Dialer for SshDialer {
    fn dial<'a>(&'a self, address: &'a str, timing: Timing) -> Boxed<'a, Result<Link, DialError>> {
        Box::pin(async move {
            let place: SshAddress = address.parse().map_err(|why| DialError::Address { why })?;
            let keys = self.keys.clone();
            let opening = tokio::task::spawn_blocking(move || open(&place, &keys, timing));
            let mut carried = opening.await.map_err(|error| io_failed(address, io::Error::other(error)))??;
            let stream = carried.near.take().ok_or_else(|| io_failed(address, io::Error::other("no line")))?;
            stream.set_nonblocking(true).map_err(|error| io_failed(address, error))?;
            let mut stream = tokio::net::UnixStream::from_std(stream).map_err(|error| io_failed(address, error))?;
            let mut greeting = [0; GREETING.len()];
            let greeted = tokio::time::timeout(timing.handshake, stream.read_exact(&mut greeting)).await;
            if matches!(greeted, Ok(Ok(_))) && greeting == GREETING {
                return Ok(tcp::line(stream, SESSION_MESSAGE_BYTES_MAX, timing));
            }
            drop(stream);
            let (mut said, code) = tokio::task::spawn_blocking(move || carried.ended()).await.unwrap_or_default();
            if said.is_empty() {
                said = match greeted {
                    Err(_) => "nothing came in time".to_owned(),
                    _ if greeting.iter().any(|byte| *byte != 0) => format!("it says `{}`", String::from_utf8_lossy(&greeting).trim()),
                    _ => format!("`{COMMAND}` ended with {code}"),
                };
            }
            let passing = code == PASSING;
            Err(SshError::NotOpened { address: address.to_owned(), said, passing }.into())
        })
    }
}

/// Exit code of our programs for trouble that passes.
const PASSING: i32 = 3;

fn io_failed(address: &str, source: io::Error) -> DialError {
    SshError::Io { address: address.to_owned(), source }.into()
}

/// The socket of a session, which another can be put in place of.
#[derive(Clone)]
struct Line(Arc<Mutex<OwnedFd>>);

impl Line {
    fn of(socket: TcpStream) -> Line {
        Line(Arc::new(Mutex::new(socket.into())))
    }

    fn lock(&self) -> MutexGuard<'_, OwnedFd> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsRawFd for Line {
    fn as_raw_fd(&self) -> RawFd {
        self.lock().as_raw_fd()
    }
}

/// An open channel and the thread that carries its bytes.
struct Carried {
    near: Option<UnixStream>,
    thread: std::thread::JoinHandle<(Vec<u8>, i32)>,
}

impl Carried {
    /// Waits for the end; returns what the far side complained, and its exit code.
    fn ended(self) -> (String, i32) {
        let (complaint, code) = self.thread.join().unwrap_or_default();
        (String::from_utf8_lossy(&complaint).trim().to_owned(), code)
    }
}

/// Connects, checks the host, proves this side, and has the command run. Blocks.
fn open(place: &SshAddress, keys: &SshKeys, timing: Timing) -> Result<Carried, SshError> {
    let address = place.to_string();
    let (session, line) = known_session(place, &keys.known_hosts, timing)?;
    prove(&session, place, keys)?;
    let failed = |what| {
        let address = address.clone();
        move |source| SshError::Protocol { address, what, source }
    };
    let mut channel = session.channel_session().map_err(failed("open a channel"))?;
    channel.exec(COMMAND).map_err(failed("run the far side"))?;
    session.set_blocking(false);
    let io_failed = |source| SshError::Io { address: address.clone(), source };
    let (near, far) = UnixStream::pair().map_err(io_failed)?;
    far.set_nonblocking(true).map_err(io_failed)?;
    let thread = std::thread::Builder::new().name("ssh".into()).spawn(move || carry(&session, channel, &line, far)).map_err(io_failed)?;
    Ok(Carried { near: Some(near), thread })
}

/// Opens a session with a host whose key is in the list, and proves this side. Blocks, and so does what is done with it.
///
/// # Errors
/// See [`SshError`].
pub(super) fn session(place: &SshAddress, keys: &SshKeys, timing: Timing) -> Result<Session, SshError> {
    let (session, _) = known_session(place, &keys.known_hosts, timing)?;
    prove(&session, place, keys)?;
    session.set_timeout(u32::try_from(timing.stall_window.as_millis()).unwrap_or(u32::MAX));
    Ok(session)
}

/// Opens a session with a host whose key is in the list.
fn known_session(place: &SshAddress, known_hosts: &Path, timing: Timing) -> Result<(Session, Line), SshError> {
    let address = place.to_string();
    let host = if place.port == 22 { place.host.clone() } else { format!("[{}]:{}", place.host, place.port) };
    let (mut refusal, mut broken) = (None, None);
    for kind in HOST_KEYS {
        let socket = connect(place, timing.handshake)?;
        let failed = |what| {
            let address = address.clone();
            move |source| SshError::Protocol { address, what, source }
        };
        let mut session = Session::new().map_err(failed("begin SSH"))?;
        session.set_timeout(u32::try_from(timing.handshake.as_millis()).unwrap_or(u32::MAX));
        session.method_pref(MethodType::HostKey, kind).map_err(failed("choose a kind of host key"))?;
        let line = Line::of(socket);
        session.set_tcp_stream(line.clone());
        if let Err(error) = session.handshake() {
            // The host may have no key of that kind.
            broken.get_or_insert(failed("open SSH")(error));
            continue;
        }
        let list = |source| SshError::KnownHosts { known_hosts: known_hosts.to_owned(), source };
        let mut known = session.known_hosts().map_err(list)?;
        if known_hosts.exists() {
            known.read_file(known_hosts, KnownHostFileKind::OpenSSH).map_err(list)?;
        }
        let Some((key, _)) = session.host_key() else { continue };
        let shown = session.host_key_hash(HashType::Sha256).map_or_else(String::new, fingerprint);
        let known_hosts = known_hosts.to_owned();
        match known.check_port(&place.host, place.port, key) {
            CheckResult::Match => return Ok((session, line)),
            CheckResult::Mismatch => refusal = Some(SshError::HostChanged { host: host.clone(), known_hosts, shown }),
            CheckResult::NotFound | CheckResult::Failure if refusal.is_none() => {
                refusal = Some(SshError::HostUnknown { host: host.clone(), known_hosts, shown });
            }
            CheckResult::NotFound | CheckResult::Failure => {}
        }
    }
    let nothing = || SshError::Io { address: address.clone(), source: io::Error::other("it shows no key") };
    Err(refusal.or(broken).unwrap_or_else(nothing))
}

/// Returns a fingerprint as ssh-keygen writes it.
fn fingerprint(hash: &[u8]) -> String {
    format!("SHA256:{}", data_encoding::BASE64_NOPAD.encode(hash))
}

fn connect(place: &SshAddress, patience: Duration) -> Result<TcpStream, SshError> {
    let failed = |source| SshError::Connect { address: place.to_string(), source };
    let found = std::net::ToSocketAddrs::to_socket_addrs(&(place.host.as_str(), place.port)).map_err(failed)?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it stands for nothing");
    for address in found {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(socket) => {
                socket.set_nodelay(true).map_err(failed)?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

fn prove(session: &Session, place: &SshAddress, keys: &SshKeys) -> Result<(), SshError> {
    let disk = Disk::new();
    let password = match &keys.password_file {
        Some(path) => Some(disk.read_secret(path)?.trim_end_matches(['\r', '\n']).to_owned()),
        None => None,
    };
    let (by, proved) = match (&keys.key, &password) {
        (Some(path), passphrase) => {
            let key = disk.read_secret(path)?;
            let proved = session.userauth_pubkey_memory(&place.user, None, &key, passphrase.as_deref());
            (format!("the key {}", path.display()), proved)
        }
        (None, Some(password)) => ("the password".to_owned(), session.userauth_password(&place.user, password)),
        (None, None) => ("a key of the agent".to_owned(), session.userauth_agent(&place.user)),
    };
    proved.map_err(|source| SshError::Denied { address: place.to_string(), by, source })
}

/// Carries bytes both ways until either side has ended. Returns what the far side complained, and its exit code.
fn carry(session: &Session, mut channel: Channel, line: &Line, mut near: UnixStream) -> (Vec<u8>, i32) {
    let mut complaint = Vec::new();
    let outcome = carry_all(session, &mut channel, line, &mut near, &mut complaint);
    let _closed = near.shutdown(Shutdown::Both);
    if let Err(error) = &outcome {
        tracing::debug!(%error, "the SSH channel ended");
    }
    // What is left to say takes as long as it may, no longer.
    session.set_blocking(true);
    session.set_timeout(u32::try_from(PARTING.as_millis()).unwrap_or(u32::MAX));
    let code = channel.close().and_then(|()| channel.wait_close()).and_then(|()| channel.exit_status()).unwrap_or(-1);
    (complaint, code)
}

/// Bytes on their way in one direction.
#[derive(Default)]
struct Piece {
    bytes: Vec<u8>,
    sent: usize,
    ended: bool,
}

impl Piece {
    fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Takes more, if everything before has gone; says whether something happened.
    fn fill(&mut self, from: &mut impl Read) -> io::Result<bool> {
        if !self.is_empty() || self.ended {
            return Ok(false);
        }
        self.bytes.resize(PIECE, 0);
        self.sent = 0;
        let read = from.read(&mut self.bytes);
        self.bytes.truncate(*read.as_ref().unwrap_or(&0));
        match read {
            Ok(count) => {
                self.ended = count == 0;
                Ok(true)
            }
            Err(error) if is_for_later(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Passes on what there is; says whether something happened.
    fn drain(&mut self, to: &mut impl Write) -> io::Result<bool> {
        if self.is_empty() {
            return Ok(false);
        }
        match to.write(&self.bytes[self.sent..]) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                self.sent += count;
                Ok(true)
            }
            Err(error) if is_for_later(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn carry_all(session: &Session, channel: &mut Channel, line: &Line, near: &mut UnixStream, complaint: &mut Vec<u8>) -> io::Result<()> {
    let (mut up, mut down) = (Piece::default(), Piece::default());
    let (mut said_end, mut parting): (bool, Option<Instant>) = (false, None);
    loop {
        let mut moved = up.fill(near)?;
        let carried = (|| Ok(up.drain(channel)? | down.fill(channel)? | listen(channel, complaint)?))();
        match carried {
            Ok(carried) => moved |= carried,
            Err(error) => {
                pass_on_rest(channel, line, near, &mut down)?;
                return Err(error);
            }
        }
        moved |= down.drain(near)?;
        if up.ended && !said_end {
            parting.get_or_insert_with(|| Instant::now() + PARTING);
            match channel.send_eof().map_err(io::Error::from) {
                Ok(()) => said_end = true,
                Err(error) if is_for_later(&error) => {}
                Err(_) => return Ok(()),
            }
        }
        if channel.eof() && down.is_empty() {
            return Ok(());
        }
        // A read of nothing is no end of a channel that goes on.
        down.ended = false;
        if parting.is_some_and(|parting| Instant::now() > parting) {
            return Ok(());
        }
        if !moved {
            wait(session, line, near, &up, &down, parting)?;
        }
    }
}

/// Passes on what had come before the line broke: it was sent, and sending it again may take long.
///
/// libssh2 looks at its socket before it looks at the packets that it holds, and at an error gives none of them. So an idle socket takes the
/// place of the broken one.
fn pass_on_rest(channel: &mut Channel, line: &Line, near: &mut UnixStream, down: &mut Piece) -> io::Result<()> {
    let (idle, _silent) = UnixStream::pair()?;
    idle.set_nonblocking(true)?;
    rustix::io::dup2(&idle, &mut line.lock())?;
    loop {
        if down.drain(near)? | down.fill(channel)? {
            continue;
        }
        if down.is_empty() {
            return Ok(());
        }
        match rustix::event::poll(&mut [PollFd::new(near, PollFlags::OUT)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Keeps what the far side complains.
fn listen(channel: &Channel, complaint: &mut Vec<u8>) -> io::Result<bool> {
    let mut bytes = [0; 512];
    match channel.stderr().read(&mut bytes) {
        Ok(count) => {
            complaint.extend_from_slice(&bytes[..count.min(COMPLAINT_BYTES_MAX - complaint.len().min(COMPLAINT_BYTES_MAX))]);
            Ok(count > 0)
        }
        Err(error) if is_for_later(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Waits until one of the sockets has something for us.
fn wait(session: &Session, line: &Line, near: &UnixStream, up: &Piece, down: &Piece, parting: Option<Instant>) -> io::Result<()> {
    let socket = line.lock();
    let mut far = PollFlags::IN;
    if matches!(session.block_directions(), ssh2::BlockDirections::Outbound | ssh2::BlockDirections::Both) {
        far |= PollFlags::OUT;
    }
    let mut wanted = PollFlags::empty();
    if up.is_empty() && !up.ended {
        wanted |= PollFlags::IN;
    }
    if !down.is_empty() {
        wanted |= PollFlags::OUT;
    }
    let patience = parting.map(|parting| {
        let left = parting.saturating_duration_since(Instant::now());
        Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() }
    });
    let mut sockets = [PollFd::new(&*socket, far), PollFd::new(near, wanted)];
    // After its end nothing more is asked of the near side; asked for nothing, it would still wake us again and again.
    let count = if wanted.is_empty() { 1 } else { 2 };
    match rustix::event::poll(&mut sockets[..count], patience.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_ssh_are_read_with_and_without_port() {
        let read = |text: &str| text.parse::<SshAddress>().map(|address| (address.user, address.host, address.port));
        assert_eq!(read("ssh://dock@hq.example"), Ok(("dock".into(), "hq.example".into(), 22)));
        assert_eq!(read("ssh://dock@hq.example:2222/"), Ok(("dock".into(), "hq.example".into(), 2222)));
        assert_eq!(read("ssh://dock@[::1]:2222"), Ok(("dock".into(), "::1".into(), 2222)));
        assert_eq!(read("ssh://dock@::1"), Ok(("dock".into(), "::1".into(), 22)));
        for wrong in ["hq.example:22", "ssh://hq.example", "ssh://@hq", "ssh://dock@", "ssh://dock@hq:0x16", "ssh://dock@hq/path"] {
            assert!(read(wrong).unwrap_err().contains("ssh://USER@HOST"), "{wrong}");
        }
        assert_eq!("ssh://dock@hq".parse::<SshAddress>().unwrap().to_string(), "ssh://dock@hq:22");
    }
}
