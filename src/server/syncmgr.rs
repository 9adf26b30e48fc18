//! The Synchronization Manager: lets nodes in, keeps one session for each at most, ends them in order.
//!
//! One task per session (`server::syncsession`); everything that blocks (server database, ledger, `sessions.db`, files) runs on
//! threads for that. It deletes nothing: what a node has acknowledged is written to `sessions.db`, and the purge reads it there.

use crate::base::ids::{ByteHash, ContentHash, FileNo, Incarnation, InstallId, NodeName, TxnId, UnitNo};
use crate::base::limits::{SESSIONS_MAX, SESSIONS_PER_ADDRESS_MAX};
use crate::docking::root::DockingRoot;
use crate::docking::sessions::{SessionsDb, SessionsError};
use crate::model::node::Node;
use crate::rules::definition::CarrierSettings;
use crate::server::carrier;
use crate::server::door::{self, Door, DoorError};
use crate::server::syncsession;
use crate::session::admission::{ServerIdentity, Turned};
use crate::session::enrol::Request;
use crate::session::message::{Message, Refusal, RefusalCode};
use crate::store::upload_position::MergedTo;
use crate::transport::link::{Pulse, Timing};
use crate::transport::peer::{Greeted, Greeter, Proof};
use crate::transport::tcp::{self, TcpError};
use crate::transport::throttle::Throttle;
use crate::trust::keys::{KeyPair, PublicKey};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// An error of one of the parts that the manager asks.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The list of valid nodes in the server database. Calls block; they are made on threads for that.
pub trait NodeDirectory: Send + Sync + 'static {
    /// Returns who this server is, as of now.
    ///
    /// # Errors
    /// The server database cannot be read.
    fn identity(&self) -> Result<ServerIdentity, BoxError>;

    /// Returns a node; `None` if there is none of that name.
    ///
    /// # Errors
    /// The server database cannot be read.
    fn node(&self, name: &NodeName) -> Result<Option<Node>, BoxError>;

    /// Returns how far a node's uploads are merged; `None` if nothing of it ever was.
    ///
    /// # Errors
    /// The server database cannot be read.
    fn merged(&self, name: &NodeName) -> Result<Option<MergedTo>, BoxError>;

    /// Returns the highest unit of a local database that was ever begun; 0 = none.
    ///
    /// # Errors
    /// The server database cannot be read.
    fn last_unit(&self, install: InstallId) -> Result<UnitNo, BoxError>;

    /// Returns the units of a local database from a number on, with their hashes, by number;
    /// [`UPLOAD_UNITS_NAMED_MAX`](crate::base::limits::UPLOAD_UNITS_NAMED_MAX) at most.
    ///
    /// # Errors
    /// The server database cannot be read.
    fn units_from(&self, install: InstallId, first: UnitNo) -> Result<Vec<(UnitNo, ContentHash)>, BoxError>;

    /// Returns the end of the server's log.
    ///
    /// # Errors
    /// The server database cannot be read.
    fn log_end(&self) -> Result<TxnId, BoxError>;

    /// Begins a node's stream anew in band: its next file brings everything that it sees.
    ///
    /// # Errors
    /// The server database cannot be written, or the node is gone.
    fn restart(&self, name: &NodeName) -> Result<(), BoxError>;

    /// Returns the node that a key belongs to.
    ///
    /// # Errors
    /// The server database cannot be read.
    fn key_holder(&self, key: &PublicKey) -> Result<Option<NodeName>, BoxError>;

    /// Returns the key of a node; `None` if it has none.
    ///
    /// # Errors
    /// The server database cannot be read.
    fn key_of(&self, node: &NodeName) -> Result<Option<PublicKey>, BoxError>;

    /// Lets a node in, or gives it a new certificate; `proved` is the key that its line proves. `Ok(Err(why))` is for the log only.
    ///
    /// # Errors
    /// The server database cannot be read or written, or the authority failed.
    fn enrol(&self, request: &Request, proved: Option<PublicKey>) -> Result<Result<(NodeName, Vec<u8>), &'static str>, BoxError>;

    /// Starts a node anew and returns its new incarnation; its extract will appear in its outbox.
    ///
    /// # Errors
    /// The server database cannot be written, or the node is gone.
    fn start(&self, name: &NodeName) -> Result<Incarnation, BoxError>;
}

/// One file of a node's outbox, as the ledger has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxFile {
    /// Its number.
    pub file_no: FileNo,
    /// First unit in it.
    pub first: TxnId,
    /// Last unit that it covers.
    pub last: TxnId,
    /// Its length in bytes.
    pub bytes: u64,
    /// SHA-256 of its bytes.
    pub byte_hash: ByteHash,
    /// Its content hash.
    pub content_hash: ContentHash,
}

/// The ledger's list of routed files. Calls block; they are made on threads for that.
pub trait OutboxIndex: Send + Sync + 'static {
    /// Returns at most `limit` files of a node after one of them, in order.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn files_after(&self, node: &NodeName, incarnation: Incarnation, after: FileNo, limit: usize) -> Result<Vec<OutboxFile>, BoxError>;

    /// Returns the last file routed to a node in this incarnation; 0 = none.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn last_file(&self, node: &NodeName, incarnation: Incarnation) -> Result<FileNo, BoxError>;

    /// Returns the log position up to which everything is routed.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn position(&self) -> Result<TxnId, BoxError>;
}

/// Called when a file of a node is durable in its inbox.
pub type StoredHook = Arc<dyn Fn() + Send + Sync>;

/// What the manager needs to know.
#[derive(Clone)]
pub struct SyncOptions {
    /// Address to listen on.
    pub listen: String,
    /// The docking root.
    pub root: PathBuf,
    /// Who waits how long.
    pub timing: Timing,
    /// Most sessions at once.
    pub sessions_max: usize,
    /// Most bytes per second that all sessions send together.
    pub send_bytes_per_second: Option<u64>,
    /// Most sessions at once from one address.
    pub sessions_per_address: usize,
    /// Uploads pause while the disk of the docking root has less room, in bytes.
    pub min_free_bytes: u64,
    /// Wakes whoever merges what nodes send.
    pub stored: Option<StoredHook>,
    /// Carriers, and the key by which the server signs letters and reads them.
    pub carriers: Option<(Arc<KeyPair>, Vec<CarrierSettings>)>,
}

impl fmt::Debug for SyncOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncOptions").field("listen", &self.listen).field("root", &self.root).finish_non_exhaustive()
    }
}

impl SyncOptions {
    /// Returns options with the ordinary limits.
    pub fn new(listen: impl Into<String>, root: impl Into<PathBuf>) -> SyncOptions {
        SyncOptions {
            listen: listen.into(),
            root: root.into(),
            timing: Timing::default(),
            sessions_max: SESSIONS_MAX,
            send_bytes_per_second: None,
            sessions_per_address: SESSIONS_PER_ADDRESS_MAX,
            min_free_bytes: 0,
            stored: None,
            carriers: None,
        }
    }
}

/// What can go wrong with the manager as a whole. What goes wrong in one session ends that session only.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// No listener.
    #[error(transparent)]
    Tcp(#[from] TcpError),
    /// The history cannot be opened.
    #[error(transparent)]
    Sessions(#[from] SessionsError),
    /// No door.
    #[error(transparent)]
    Door(#[from] DoorError),
    /// No threads.
    #[error("start the runtime of the Synchronization Manager: {0}")]
    Runtime(io::Error),
}

/// Who holds the one session of a node.
struct Slot {
    session: u64,
    pulse: Pulse,
    cut: CancellationToken,
}

/// What all sessions share.
pub(super) struct Shared {
    pub(super) directory: Arc<dyn NodeDirectory>,
    pub(super) index: Arc<dyn OutboxIndex>,
    pub(super) root: Arc<DockingRoot>,
    pub(super) timing: Timing,
    pub(super) throttle: Throttle,
    pub(super) routed: watch::Receiver<u64>,
    pub(super) min_free_bytes: u64,
    pub(super) stored: Option<StoredHook>,
    sessions: Mutex<SessionsDb>,
    slots: Mutex<HashMap<NodeName, Slot>>,
    next_session: AtomicU64,
}

impl Shared {
    /// Returns the history. Callers are on a blocking thread.
    pub(super) fn sessions(&self) -> MutexGuard<'_, SessionsDb> {
        self.sessions.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes the one session of a node. A holder that is alive keeps it; one that fell silent is cut off.
    pub(super) fn claim(self: &Arc<Shared>, node: &NodeName, pulse: Pulse, cut: CancellationToken) -> Result<Claim, Turned> {
        let mut slots = self.slots.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(slot) = slots.get(node) {
            let silence = slot.pulse.silence();
            // A living peer is heard once per heartbeat; half of one more is for the way.
            if silence <= self.timing.heartbeat * 3 / 2 && !slot.cut.is_cancelled() {
                return Err(Turned::plain(RefusalCode::Busy, format!("{node} is already synchronising in another session")));
            }
            tracing::info!(%node, "session silent for {:.1} s gives way to a new one", silence.as_secs_f32());
            slot.cut.cancel();
        }
        let session = self.next_session.fetch_add(1, Ordering::Relaxed);
        slots.insert(node.clone(), Slot { session, pulse, cut });
        Ok(Claim { shared: self.clone(), node: node.clone(), session })
    }
}

impl Shared {
    /// Ends the session that a node has, if it has one.
    pub(super) fn cut_off(&self, node: &NodeName) {
        let slots = self.slots.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(slot) = slots.get(node) {
            slot.cut.cancel();
        }
    }

    /// Returns a node if a line proves it. Blocks.
    pub(super) fn proved(&self, proof: &Proof, name: &NodeName) -> Result<Option<Node>, BoxError> {
        let is_proved = match proof {
            Proof::Key(key) => self.directory.key_holder(key)?.as_ref() == Some(name),
            Proof::Named(proved) => proved == name,
        };
        if is_proved { self.directory.node(name) } else { Ok(None) }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("root", &self.root.path()).finish_non_exhaustive()
    }
}

/// The one session of a node; given back when dropped.
#[derive(Debug)]
pub(super) struct Claim {
    shared: Arc<Shared>,
    node: NodeName,
    session: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut slots = self.shared.slots.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if slots.get(&self.node).is_some_and(|slot| slot.session == self.session) {
            slots.remove(&self.node);
        }
    }
}

/// A manager that listens and has not begun to serve.
pub struct SyncManager {
    listener: TcpListener,
    door: Door,
    greeter: Arc<dyn Greeter>,
    shared: Arc<Shared>,
    sessions_max: usize,
    addresses: Addresses,
    carriers: Option<(Arc<KeyPair>, Vec<CarrierSettings>)>,
}

impl fmt::Debug for SyncManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncManager").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl SyncManager {
    /// Opens the listener and `sessions.db`. `routed` changes whenever the Router has finished a round or an extract is there.
    ///
    /// # Errors
    /// The address is taken or not of this machine, or the history cannot be opened.
    pub async fn bind(
        options: SyncOptions,
        greeter: Arc<dyn Greeter>,
        directory: Arc<dyn NodeDirectory>,
        index: Arc<dyn OutboxIndex>,
        routed: watch::Receiver<u64>,
    ) -> Result<SyncManager, SyncError> {
        let listener = tcp::listen(&options.listen).await?;
        let root = DockingRoot::look(&options.root);
        let door = Door::open(&root)?;
        let sessions = SessionsDb::open(&root.sessions_db())?;
        let shared = Arc::new(Shared {
            directory,
            index,
            root: Arc::new(root),
            timing: options.timing,
            throttle: Throttle::new(options.send_bytes_per_second),
            routed,
            min_free_bytes: options.min_free_bytes,
            stored: options.stored,
            sessions: Mutex::new(sessions),
            slots: Mutex::new(HashMap::new()),
            next_session: AtomicU64::new(1),
        });
        let addresses = Addresses { most: options.sessions_per_address, held: Arc::default() };
        Ok(SyncManager { listener, door, greeter, shared, sessions_max: options.sessions_max, addresses, carriers: options.carriers })
    }

    /// Returns the address that nodes call.
    ///
    /// # Errors
    /// The operating system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`, then ends the sessions in order.
    pub async fn run(self, shutdown: CancellationToken) {
        let places = Arc::new(Semaphore::new(self.sessions_max));
        let mut tasks = JoinSet::new();
        if let Some((key, carriers)) = self.carriers {
            for carrier in carriers {
                tasks.spawn(carrier::run(self.shared.clone(), key.clone(), carrier, shutdown.clone()));
            }
        }
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = tasks.join_next() => continue,
                accepted = self.listener.accept() => accepted,
                stream = self.door.accept() => {
                    // Whoever proved it counts who comes from where; here the number of all of them counts.
                    match places.clone().try_acquire_owned() {
                        Ok(place) => {
                            let (shared, shutdown) = (self.shared.clone(), shutdown.clone());
                            tasks.spawn(async move {
                                door::serve(shared, stream, shutdown).await;
                                drop(place);
                            });
                        }
                        Err(_) => tracing::warn!("door: the server has as many sessions as it takes"),
                    }
                    continue;
                }
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Mostly no file handles left: the sessions that end free some.
                    tracing::warn!("accept: {error}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let (shared, greeter) = (self.shared.clone(), self.greeter.clone());
            let seat = match (self.addresses.take(peer.ip()), places.clone().try_acquire_owned()) {
                (Some(address), Ok(place)) => Ok((address, place)),
                (None, _) => Err("as many sessions come from this address as may; try again later"),
                (_, Err(_)) => Err("the server has as many sessions as it takes; try again later"),
            };
            match seat {
                Ok(seat) => {
                    let shutdown = shutdown.clone();
                    tasks.spawn(async move {
                        syncsession::serve(shared, greeter, stream, peer, shutdown).await;
                        drop(seat);
                    });
                }
                // The refusals need no place of their own, but they are bounded too.
                Err(why) if tasks.len() < self.sessions_max * 2 => {
                    tasks.spawn(refuse_full(shared, greeter, stream, why));
                }
                Err(_) => drop(stream),
            }
        }
        drop(self.listener);
        self.door.close();
        let farewell = self.shared.timing.farewell * 3;
        let ended = tokio::time::timeout(farewell, async { while tasks.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            tracing::warn!("{} sessions did not end within {} s and are cut", tasks.len(), farewell.as_secs());
        }
    }
}

/// How many sessions come from each address.
#[derive(Debug)]
struct Addresses {
    most: usize,
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One session of an address; given back when dropped.
#[derive(Debug)]
struct AddressSeat {
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl Addresses {
    fn take(&self, address: IpAddr) -> Option<AddressSeat> {
        let mut held = self.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let count = held.entry(address).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(AddressSeat { held: Arc::clone(&self.held), address })
    }
}

impl Drop for AddressSeat {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(count) = held.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.address);
            }
        }
    }
}

async fn refuse_full(shared: Arc<Shared>, greeter: Arc<dyn Greeter>, stream: TcpStream, why: &'static str) {
    if let Ok(Greeted::Session { link, .. } | Greeted::Turned { link, .. }) = greeter.greet(stream, shared.timing).await {
        let refusal = Refusal::new(RefusalCode::Full, why);
        if link.outgoing.send(&Message::Refused(refusal)).await.is_ok() {
            link.close().await;
        }
    }
}

/// Serves on a runtime of its own; returns after `shutdown`. `ready` is told the address that nodes call.
///
/// # Errors
/// As `SyncManager::bind`, or no threads.
pub fn serve(
    options: SyncOptions,
    greeter: Arc<dyn Greeter>,
    directory: Arc<dyn NodeDirectory>,
    index: Arc<dyn OutboxIndex>,
    routed: watch::Receiver<u64>,
    shutdown: CancellationToken,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), SyncError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("syncmgr")
        .enable_all()
        .build()
        .map_err(SyncError::Runtime)?;
    runtime.block_on(async {
        let manager = SyncManager::bind(options, greeter, directory, index, routed).await?;
        ready(manager.local_addr().map_err(SyncError::Runtime)?);
        manager.run(shutdown).await;
        Ok(())
    })
}
