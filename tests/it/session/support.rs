//! A real server on a loopback socket over real files, a client folder, and a proxy between them that misbehaves on demand.

use dockmaster::base::ids::*;
use dockmaster::base::limits::SESSION_MESSAGE_BYTES_MAX;
use dockmaster::client::applier::SharedUploads;
use dockmaster::client::exchange::{Applier, BoxError, ExchangeOptions, LocalPosition, Reports, SharedApplier, sync_once};
use dockmaster::client::folder::{ClientFolder, LockedFolder, RemoteConfig};
use dockmaster::client::report::{ExchangeError, NoProgress, SyncReport};
use dockmaster::docking::sessions::SessionsDb;
use dockmaster::model::node::{Node, NodeState};
use dockmaster::server::syncmgr::{NodeDirectory, OutboxFile, OutboxIndex, SyncManager, SyncOptions};
use dockmaster::session::admission::ServerIdentity;
use dockmaster::session::codec;
use dockmaster::session::enrol::Request;
use dockmaster::session::message::{AppliedTo, Message, kind};
use dockmaster::store::upload_position::MergedTo;
use dockmaster::transport::link::{Link, Timing};
use dockmaster::transport::peer::{Boxed, DialError, Dialer, Greeted, Greeter, Proof};
use dockmaster::transport::ssh_settings::SshSettings;
use dockmaster::transport::tcp;
use dockmaster::trust::keys::PublicKey;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) fn timing() -> Timing {
    Timing {
        handshake: Duration::from_secs(3),
        heartbeat: Duration::from_millis(400),
        dead_after: Duration::from_millis(1_600),
        stall_window: Duration::from_secs(2),
        rate_min: 256,
        recheck: Duration::from_millis(200),
        refusal_pause: Duration::from_millis(120),
        farewell: Duration::from_secs(1),
        catch_up: Duration::from_secs(1),
    }
}

pub(crate) fn options() -> ExchangeOptions {
    let pause = Duration::from_millis(20);
    ExchangeOptions {
        timing: timing(),
        attempts: 6,
        pause,
        pause_max: Duration::from_millis(200),
        ..ExchangeOptions::new(Arc::new(PlainDialer))
    }
}

/// Sockets without TLS: what goes on in a session is looked at, cut and flipped byte by byte. The node that a hello names is proved, as
/// sshd would have proved it. What TLS does is tested in `tests/it/trust.rs`, and by every test that runs the programs.
#[derive(Debug)]
pub(crate) struct PlainDialer;

impl Dialer for PlainDialer {
    fn dial<'a>(&'a self, address: &'a str, timing: Timing) -> Boxed<'a, Result<Link, DialError>> {
        Box::pin(async move {
            let stream = tcp::connect(address, None, timing).await?;
            Ok(tcp::line(stream, SESSION_MESSAGE_BYTES_MAX, timing))
        })
    }
}

struct PlainGreeter;

impl Greeter for PlainGreeter {
    fn greet(&self, stream: tokio::net::TcpStream, timing: Timing) -> Boxed<'_, std::io::Result<Greeted>> {
        Box::pin(async move {
            stream.set_nodelay(true)?;
            let proof = Proof::Named(named(&stream, timing).await.unwrap_or_else(|| name("STRANGER")));
            Ok(Greeted::Session { link: tcp::line(stream, tcp::REQUEST_BYTES_MAX, timing), proof })
        })
    }
}

/// Looks at the hello that is about to be read.
async fn named(stream: &tokio::net::TcpStream, timing: Timing) -> Option<NodeName> {
    let mut bytes = vec![0; 4096];
    let looking = async {
        loop {
            let there = stream.peek(&mut bytes).await.ok()?;
            let length = bytes.get(..4).map(|length| u32::from_le_bytes(length.try_into().unwrap()) as usize)?;
            if there == 0 || length > 4000 {
                return None;
            }
            if there >= 4 + length {
                return match codec::decode(&bytes[4..4 + length].to_vec().into()) {
                    Ok(Message::Hello(hello)) => hello.node.parse().ok(),
                    _ => None,
                };
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(timing.handshake, looking).await.ok().flatten()
}

pub(crate) fn byte_hash(bytes: &[u8]) -> ByteHash {
    ByteHash(Sha256::digest(bytes).into())
}

/// The chain of a test file is made of its bytes alone.
pub(crate) fn content_hash(bytes: &[u8]) -> ContentHash {
    let mut hasher = Sha256::new();
    hasher.update(b"content");
    hasher.update(bytes);
    ContentHash(hasher.finalize().into())
}

pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// Waits until something holds; fails the test after ten seconds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(10), "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    began.elapsed()
}

pub(crate) type OnStart = Box<dyn Fn(&NodeName, Incarnation) + Send + Sync>;

/// Nodes and ledger in memory, files on disk.
pub(crate) struct Facts {
    pub(crate) identity: Mutex<ServerIdentity>,
    pub(crate) nodes: Mutex<BTreeMap<NodeName, Node>>,
    pub(crate) ledger: Mutex<BTreeMap<(NodeName, Incarnation), Vec<OutboxFile>>>,
    pub(crate) on_start: Mutex<Option<OnStart>>,
    pub(crate) merged: Mutex<BTreeMap<NodeName, MergedTo>>,
    pub(crate) last_units: Mutex<BTreeMap<InstallId, UnitNo>>,
    /// End of the log, and how far routing is.
    pub(crate) log: Mutex<(TxnId, TxnId)>,
}

impl NodeDirectory for Facts {
    fn identity(&self) -> Result<ServerIdentity, BoxError> {
        Ok(self.identity.lock().unwrap().clone())
    }

    fn node(&self, name: &NodeName) -> Result<Option<Node>, BoxError> {
        Ok(self.nodes.lock().unwrap().get(name).cloned())
    }

    fn merged(&self, name: &NodeName) -> Result<Option<MergedTo>, BoxError> {
        Ok(self.merged.lock().unwrap().get(name).copied())
    }

    fn last_unit(&self, install: InstallId) -> Result<UnitNo, BoxError> {
        Ok(self.last_units.lock().unwrap().get(&install).copied().unwrap_or_default())
    }

    fn units_from(&self, _: InstallId, _: UnitNo) -> Result<Vec<(UnitNo, ContentHash)>, BoxError> {
        Ok(Vec::new())
    }

    fn log_end(&self) -> Result<TxnId, BoxError> {
        Ok(self.log.lock().unwrap().0)
    }

    fn restart(&self, name: &NodeName) -> Result<(), BoxError> {
        let mut nodes = self.nodes.lock().unwrap();
        let node = nodes.get_mut(name).ok_or("no such node")?;
        node.incarnation = Incarnation(node.incarnation.0 + 1);
        node.state = NodeState::Active;
        Ok(())
    }

    fn key_holder(&self, _: &PublicKey) -> Result<Option<NodeName>, BoxError> {
        Err("no keys are shown here".into())
    }

    fn key_of(&self, _: &NodeName) -> Result<Option<PublicKey>, BoxError> {
        Err("no keys are shown here".into())
    }

    fn enrol(&self, _: &Request, _: Option<PublicKey>) -> Result<Result<(NodeName, Vec<u8>), &'static str>, BoxError> {
        Err("nobody is let in here".into())
    }

    fn start(&self, name: &NodeName) -> Result<Incarnation, BoxError> {
        let mut nodes = self.nodes.lock().unwrap();
        let node = nodes.get_mut(name).ok_or("no such node")?;
        node.incarnation = Incarnation(node.incarnation.0 + 1);
        node.extracted = node.incarnation;
        node.state = NodeState::Active;
        let incarnation = node.incarnation;
        drop(nodes);
        if let Some(on_start) = &*self.on_start.lock().unwrap() {
            on_start(name, incarnation);
        }
        Ok(incarnation)
    }
}

impl OutboxIndex for Facts {
    fn files_after(&self, node: &NodeName, incarnation: Incarnation, after: FileNo, limit: usize) -> Result<Vec<OutboxFile>, BoxError> {
        let ledger = self.ledger.lock().unwrap();
        let files = ledger.get(&(node.clone(), incarnation)).into_iter().flatten();
        Ok(files.filter(|file| file.file_no > after).take(limit).copied().collect())
    }

    fn last_file(&self, node: &NodeName, incarnation: Incarnation) -> Result<FileNo, BoxError> {
        let ledger = self.ledger.lock().unwrap();
        Ok(ledger.get(&(node.clone(), incarnation)).and_then(|files| files.last()).map_or(FileNo(0), |file| file.file_no))
    }

    fn position(&self) -> Result<TxnId, BoxError> {
        Ok(self.log.lock().unwrap().1)
    }
}

pub(crate) struct Server {
    pub(crate) home: tempfile::TempDir,
    pub(crate) facts: Arc<Facts>,
    pub(crate) address: SocketAddr,
    pub(crate) routed: watch::Sender<u64>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) stopped: Arc<AtomicBool>,
    runtime: Option<tokio::runtime::Runtime>,
}

pub(crate) const SERVER_ID: ServerId = ServerId([0xD0; 16]);

pub(crate) fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

impl Server {
    pub(crate) fn start() -> Server {
        Server::start_with(|_| {})
    }

    pub(crate) fn start_with(change: impl FnOnce(&mut SyncOptions)) -> Server {
        let home = tempfile::tempdir().unwrap();
        let identity = ServerIdentity { server_id: SERVER_ID, name: "HQ".into(), epoch: Epoch(1), revision: Revision(3) };
        let facts = Arc::new(Facts {
            identity: Mutex::new(identity),
            nodes: Mutex::default(),
            ledger: Mutex::default(),
            on_start: Mutex::default(),
            merged: Mutex::default(),
            last_units: Mutex::default(),
            log: Mutex::default(),
        });
        let mut options = SyncOptions::new("127.0.0.1:0", home.path());
        options.timing = timing();
        change(&mut options);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (routed, receiver) = watch::channel(0);
        let manager = runtime.block_on(SyncManager::bind(options, Arc::new(PlainGreeter), facts.clone(), facts.clone(), receiver)).unwrap();
        let address = manager.local_addr().unwrap();
        let (shutdown, stopped) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
        let (token, flag) = (shutdown.clone(), stopped.clone());
        runtime.spawn(async move {
            manager.run(token).await;
            flag.store(true, Ordering::SeqCst);
        });
        Server { home, facts, address, routed, shutdown, stopped, runtime: Some(runtime) }
    }

    pub(crate) fn root(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn outbox(&self, node: &str) -> PathBuf {
        self.root().join(node).join("outbox")
    }

    /// Adds an active node in its first incarnation.
    pub(crate) fn add_node(&self, node: &str) {
        self.set_node(node, NodeState::Active, 1);
    }

    pub(crate) fn set_node(&self, node: &str, state: NodeState, incarnation: u32) {
        let name = name(node);
        fs::create_dir_all(self.outbox(node)).unwrap();
        let node = Node {
            name: name.clone(),
            state,
            incarnation: Incarnation(incarnation),
            extracted: Incarnation(incarnation),
            model: None,
            attributes: BTreeMap::default(),
        };
        self.facts.nodes.lock().unwrap().insert(name, node);
    }

    /// Routes one file to a node: file, ledger row, event.
    pub(crate) fn route(&self, node: &str, bytes: &[u8]) -> FileNo {
        let mut ledger = self.facts.ledger.lock().unwrap();
        let files = ledger.entry((name(node), Incarnation(1))).or_default();
        let file_no = FileNo(files.len() as u64 + 1);
        fs::write(self.outbox(node).join(file_no.file_name()), bytes).unwrap();
        let unit = TxnId(i64::try_from(file_no.0).unwrap() * 10);
        files.push(OutboxFile {
            file_no,
            first: unit,
            last: unit,
            bytes: bytes.len() as u64,
            byte_hash: byte_hash(bytes),
            content_hash: content_hash(bytes),
        });
        drop(ledger);
        self.routed.send_modify(|rounds| *rounds += 1);
        file_no
    }

    /// Forgets the tokens that it gave: clients of a test that are made anew are one and the same database, put back to its beginning (R34).
    pub(crate) fn forget_tokens(&self) {
        let conn = rusqlite::Connection::open(self.home.path().join("sessions.db")).unwrap();
        conn.busy_timeout(Duration::from_secs(10)).unwrap();
        conn.execute("DELETE FROM token", []).unwrap();
    }

    pub(crate) fn sessions(&self) -> SessionsDb {
        SessionsDb::open_to_read(&self.root().join("sessions.db")).unwrap().unwrap()
    }

    pub(crate) fn marked(&self, node: &str) -> (u64, u64) {
        let mark = self.sessions().mark(&name(node), Incarnation(1)).unwrap();
        mark.map_or((0, 0), |mark| (mark.received.0, mark.applied.file.0))
    }

    pub(crate) fn alerts(&self) -> Vec<String> {
        self.sessions().alerts(None).unwrap().into_iter().map(|alert| alert.text).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.runtime.take().unwrap().shutdown_timeout(Duration::from_secs(2));
    }
}

/// Applies files by keeping their bytes; in order, once each, chain as above.
pub(crate) struct Keeper {
    pub(crate) inbox: PathBuf,
    pub(crate) position: LocalPosition,
    pub(crate) applied: Arc<Mutex<Vec<Vec<u8>>>>,
    pub(crate) uploads: Option<SharedUploads>,
}

impl Applier for Keeper {
    fn uploads(&mut self) -> Option<SharedUploads> {
        self.uploads.clone()
    }

    fn state(&mut self) -> Result<LocalPosition, BoxError> {
        Ok(self.position.clone())
    }

    fn enter_epoch(&mut self, epoch: Epoch) -> Result<(), BoxError> {
        self.position.epoch = self.position.epoch.max(epoch);
        Ok(())
    }

    fn keep_token(&mut self, token: dockmaster::base::ids::SyncToken) -> Result<(), BoxError> {
        self.position.token = Some(token);
        Ok(())
    }

    fn reports(&mut self) -> Result<Reports, BoxError> {
        Ok(Reports::default())
    }

    fn told(&mut self, _: &[(u64, u32)]) -> Result<(), BoxError> {
        Ok(())
    }

    fn begin_anew(&mut self, incarnation: Incarnation) -> Result<(), BoxError> {
        self.position.incarnation = incarnation;
        self.position.applied = AppliedTo::default();
        Ok(())
    }

    fn apply(&mut self) -> Result<AppliedTo, BoxError> {
        loop {
            let next = self.position.applied.file.next();
            let path = self.inbox.join(next.file_name());
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(self.position.applied),
                Err(error) => return Err(error.into()),
            };
            let unit = TxnId(i64::try_from(next.0)? * 10);
            self.position.applied = AppliedTo { file: next, unit, hash: content_hash(&bytes) };
            self.applied.lock().unwrap().push(bytes);
            fs::remove_file(path)?;
        }
    }
}

pub(crate) struct Client {
    pub(crate) home: tempfile::TempDir,
    pub(crate) folder: LockedFolder,
    pub(crate) config: RemoteConfig,
    pub(crate) keeper: Arc<Mutex<Keeper>>,
    pub(crate) applied: Arc<Mutex<Vec<Vec<u8>>>>,
    pub(crate) options: ExchangeOptions,
}

impl Client {
    pub(crate) fn new(node: &str, address: SocketAddr) -> Client {
        let home = tempfile::tempdir().unwrap();
        let folder = ClientFolder::of(home.path().join("pos.db")).lock().unwrap();
        let applied = Arc::new(Mutex::new(Vec::new()));
        let position = LocalPosition {
            unsent: UnitNo(1),
            server_id: SERVER_ID,
            server_name: "HQ".into(),
            epoch: Epoch(1),
            node: name(node),
            incarnation: Incarnation(1),
            install_id: InstallId([1; 16]),
            token: None,
            applied: AppliedTo::default(),
            revision: Revision(3),
        };
        let keeper = Arc::new(Mutex::new(Keeper { inbox: folder.inbox(), position, applied: applied.clone(), uploads: None }));
        let config = RemoteConfig {
            server: address.to_string(),
            node: name(node),
            server_id: Some(SERVER_ID),
            download: true,
            ssh: SshSettings::default(),
        };
        Client { home, folder, config, keeper, applied, options: options() }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut LocalPosition)) {
        change(&mut self.keeper.lock().unwrap().position);
    }

    pub(crate) fn shared(&self) -> SharedApplier {
        self.keeper.clone()
    }

    pub(crate) fn sync(&self) -> Result<SyncReport, ExchangeError> {
        sync_once(&self.folder, &self.config, &self.shared(), &self.options, &mut NoProgress)
    }

    /// Returns the bytes of the files applied so far, in order.
    pub(crate) fn held(&self) -> Vec<Vec<u8>> {
        self.applied.lock().unwrap().clone()
    }

    pub(crate) fn quarantined(&self) -> usize {
        let is_file = |name: &str| !dockmaster::base::quarantine::is_note(name);
        fs::read_dir(self.folder.quarantine())
            .unwrap()
            .filter(|entry| is_file(entry.as_ref().unwrap().file_name().to_str().unwrap()))
            .count()
    }
}

/// With `always`, every so many bytes one more is flipped.
pub(crate) const FLIP_EVERY: i64 = 200_000;

/// A proxy that counts what the node sends and cuts, flips or swallows what it is told to.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    /// Messages from the node, by kind.
    pub(crate) sent: Arc<Mutex<BTreeMap<u16, u64>>>,
    pub(crate) connections: Arc<AtomicU64>,
    /// Bytes from the server after which a connection is cut; negative = never. Cut connections use it up unless `always`.
    pub(crate) cut_after: Arc<AtomicI64>,
    pub(crate) always: Arc<AtomicBool>,
    /// Byte from the server that is flipped, once unless `always`; negative = none.
    pub(crate) flip_at: Arc<AtomicI64>,
    /// Kind of message from the node at which the connection is cut before it is passed on.
    pub(crate) cut_at_kind: Arc<AtomicU64>,
    /// Bytes from the node after which a connection is cut, once; negative = never.
    pub(crate) cut_up_after: Arc<AtomicI64>,
    /// Byte from the node that is flipped, once; negative = none.
    pub(crate) flip_up_at: Arc<AtomicI64>,
    /// Where each message from the node ended, in bytes, of the newest connection.
    pub(crate) ends: Arc<Mutex<Vec<i64>>>,
    /// Swallows everything in both directions, without closing.
    pub(crate) black_hole: Arc<AtomicBool>,
}

impl Proxy {
    /// Stands before a server that speaks without TLS: what it sees are messages.
    pub(crate) fn to(server: SocketAddr) -> Proxy {
        Proxy::between(server, Framing::Messages)
    }

    /// Stands before a server as it is: what it sees are TLS records, which have no kind.
    pub(crate) fn to_tls(server: SocketAddr) -> Proxy {
        Proxy::between(server, Framing::TlsRecords)
    }

    fn between(server: SocketAddr, framing: Framing) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy {
            address: listener.local_addr().unwrap(),
            sent: Arc::default(),
            connections: Arc::default(),
            cut_after: Arc::new(AtomicI64::new(-1)),
            always: Arc::default(),
            flip_at: Arc::new(AtomicI64::new(-1)),
            cut_at_kind: Arc::new(AtomicU64::new(u64::MAX)),
            cut_up_after: Arc::new(AtomicI64::new(-1)),
            flip_up_at: Arc::new(AtomicI64::new(-1)),
            ends: Arc::default(),
            black_hole: Arc::default(),
        };
        let (sent, connections, cut_after, always) =
            (proxy.sent.clone(), proxy.connections.clone(), proxy.cut_after.clone(), proxy.always.clone());
        let (flip_at, cut_at_kind, black_hole) = (proxy.flip_at.clone(), proxy.cut_at_kind.clone(), proxy.black_hole.clone());
        let (cut_up, flip_up, ends) = (proxy.cut_up_after.clone(), proxy.flip_up_at.clone(), proxy.ends.clone());
        std::thread::spawn(move || {
            for node in listener.incoming() {
                let (Ok(node), Ok(server)) = (node, TcpStream::connect(server)) else { return };
                connections.fetch_add(1, Ordering::SeqCst);
                let (node2, server2) = (node.try_clone().unwrap(), server.try_clone().unwrap());
                let (sent, cut_at_kind, hole) = (sent.clone(), cut_at_kind.clone(), black_hole.clone());
                let (cut_up, flip_up, ends) = (cut_up.clone(), flip_up.clone(), ends.clone());
                std::thread::spawn(move || upward((node2, framing), server2, &sent, (&cut_at_kind, &cut_up, &flip_up), &ends, &hole));
                let (cut_after, always, flip_at, hole) = (cut_after.clone(), always.clone(), flip_at.clone(), black_hole.clone());
                std::thread::spawn(move || downward(server, node, &cut_after, &always, &flip_at, &hole));
            }
        });
        proxy
    }

    pub(crate) fn count(&self, kind: u16) -> u64 {
        self.sent.lock().unwrap().get(&kind).copied().unwrap_or(0)
    }

    /// Requests and acknowledgements, pings left out.
    pub(crate) fn requests(&self) -> u64 {
        let sent = self.sent.lock().unwrap();
        sent.iter().filter(|(number, _)| ![kind::PING, kind::PONG].contains(number)).map(|(_, count)| count).sum()
    }
}

/// What a proxy takes for one piece.
#[derive(Debug, Clone, Copy)]
enum Framing {
    Messages,
    TlsRecords,
}

impl Framing {
    fn head(self) -> usize {
        match self {
            Framing::Messages => 4,
            Framing::TlsRecords => 5,
        }
    }

    /// Bytes that follow a head.
    fn length(self, head: &[u8]) -> usize {
        match self {
            Framing::Messages => u32::from_le_bytes(head.try_into().unwrap()) as usize,
            Framing::TlsRecords => usize::from(u16::from_be_bytes([head[3], head[4]])),
        }
    }

    fn kind(self, frame: &[u8]) -> u16 {
        match self {
            Framing::Messages => u16::from_le_bytes([frame[4], frame[5]]),
            Framing::TlsRecords => 0,
        }
    }
}

/// Node to server, frame by frame.
fn upward(
    (mut node, framing): (TcpStream, Framing),
    mut server: TcpStream,
    sent: &Mutex<BTreeMap<u16, u64>>,
    (cut_at, cut_after, flip_at): (&AtomicU64, &AtomicI64, &AtomicI64),
    ends: &Mutex<Vec<i64>>,
    hole: &AtomicBool,
) {
    let limit = cut_after.swap(-1, Ordering::SeqCst);
    let mut passed = 0i64;
    ends.lock().unwrap().clear();
    let mut pass = || -> std::io::Result<()> {
        loop {
            let mut head = [0u8; 5];
            let head = &mut head[..framing.head()];
            if let Err(error) = node.read_exact(head) {
                wait_out(hole);
                // The node is done sending; what the server still says must reach it.
                let _half = server.shutdown(Shutdown::Write);
                return Err(error);
            }
            let mut frame = head.to_vec();
            frame.resize(head.len() + framing.length(head), 0);
            node.read_exact(&mut frame[head.len()..])?;
            let kind = framing.kind(&frame);
            if cut_at.load(Ordering::SeqCst) == u64::from(kind) {
                return Ok(());
            }
            *sent.lock().unwrap().entry(kind).or_default() += 1;
            let length = frame.len() as i64;
            let flip = flip_at.load(Ordering::SeqCst);
            if (passed..passed + length).contains(&flip) {
                frame[usize::try_from(flip - passed).unwrap()] ^= 0x10;
                flip_at.store(-1, Ordering::SeqCst);
            }
            let is_cut = limit >= 0 && passed + length >= limit;
            if is_cut {
                frame.truncate(usize::try_from(limit - passed).unwrap());
            }
            passed += length;
            ends.lock().unwrap().push(passed);
            if !hole.load(Ordering::SeqCst) {
                server.write_all(&frame)?;
            }
            if is_cut {
                return Ok(());
            }
        }
    };
    if pass().is_ok() {
        let _closed = (server.shutdown(Shutdown::Both), node.shutdown(Shutdown::Both));
    }
}

/// A peer that vanished says nothing, not even that it is gone.
fn wait_out(hole: &AtomicBool) {
    while hole.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Server to node, byte by byte as it comes.
fn downward(mut server: TcpStream, mut node: TcpStream, cut: &AtomicI64, always: &AtomicBool, flip: &AtomicI64, hole: &AtomicBool) {
    let limit = if always.load(Ordering::SeqCst) { cut.load(Ordering::SeqCst) } else { cut.swap(-1, Ordering::SeqCst) };
    let mut passed = 0i64;
    let mut pass = || -> std::io::Result<()> {
        let mut buffer = [0u8; 16 << 10];
        loop {
            let mut count = server.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            let at = flip.load(Ordering::SeqCst);
            let again = always.load(Ordering::SeqCst);
            for (position, byte) in (passed..).zip(&mut buffer[..count]) {
                if at >= 0 && (position == at || again && position > at && (position - at) % FLIP_EVERY == 0) {
                    *byte ^= 0x10;
                    flip.store(if again { at } else { -1 }, Ordering::SeqCst);
                }
            }
            if limit >= 0 {
                count = count.min(usize::try_from(limit - passed).unwrap());
            }
            passed += count as i64;
            if !hole.load(Ordering::SeqCst) {
                node.write_all(&buffer[..count])?;
            }
            if limit >= 0 && passed >= limit {
                return Ok(());
            }
        }
    };
    let _broken = pass();
    wait_out(hole);
    let _closed = (server.shutdown(Shutdown::Both), node.shutdown(Shutdown::Both));
}
