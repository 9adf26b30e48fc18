//! `init`: fetch the extract, make the local database of it, put it in place.
//!
//! Every step can be cut off and run again: the download continues at its last byte, unpacking starts over, and the database that was
//! there before stays usable until one rename puts the new one in its place. **Order of the last steps**: new database whole and
//! durable; inbox emptied (its files belong to the former extract); configuration; the rename.

use crate::base::crash::{self, CrashPoint};
use crate::base::disk::{Disk, DiskError};
use crate::base::ids::{ByteHash, Incarnation, InstallId, NodeName, ServerId};
use crate::base::quarantine::{self, Aside};
use crate::client::exchange::{ExchangeOptions, jitter, runtime};
use crate::client::folder::{LockedFolder, RemoteConfig, with_suffix};
use crate::client::identity::{self, ServerDialer, Which};
use crate::client::inbox::Part;
use crate::client::report::{ExchangeError, Progress, ProgressEvent};
use crate::session::client::{Action, ClientSession, Closed, Event, init_hello};
use crate::session::message::{ExtractOffer, Welcome};
use crate::store::swap::{self, Expected, InstallError};
use crate::transport::link::{Link, Timing};
use crate::transport::peer::Dialer;
use crate::transport::proxy::Proxy;
use crate::transport::ssh_settings::SshSettings;
use crate::trust::token::Token;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest extract that is taken, in bytes, packed or not.
const EXTRACT_BYTES_MAX: u64 = 1 << 40;
/// Largest window that a packed extract may ask for (2^27 bytes of memory).
const WINDOW_LOG_MAX: u32 = 27;
/// Says that a new extract was asked for and granted, so that a second run does not ask for one more.
const RENEWED: &str = "init-renewed";

/// What init is to do.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// Address of the server.
    pub server: String,
    /// The node that this database will be.
    pub node: NodeName,
    /// For a server whose address begins with `ssh://`.
    pub ssh: SshSettings,
    /// Put the new database in the place of one that has something in it.
    pub replace: bool,
    /// Ask for a new extract; a database made from the former one is refused from then on.
    pub renew: bool,
    /// Waiting and trying again.
    pub exchange: ExchangeOptions,
}

/// What init did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitReport {
    /// Name of the server.
    pub server_name: String,
    /// Its identity.
    pub server_id: ServerId,
    /// The extract.
    pub offer: ExtractOffer,
    /// Identity of the new database.
    pub install_id: InstallId,
    /// Bytes that were fetched, this time.
    pub fetched: u64,
    /// Where the former database is kept, if there was one.
    pub replaced: Option<PathBuf>,
}

/// Why init did not come to its end. Running it again continues.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Nothing says which node this is.
    #[error("{} was never let in by a server, and there is no token", .0.display())]
    NoToken(PathBuf),
    /// The server has to see the carrier first.
    #[error("the server {what}: {place}")]
    Waiting {
        /// The carrier.
        place: String,
        /// How far it is.
        what: &'static str,
    },
    /// There is a database already.
    #[error("{} exists and is not empty; it is replaced only with --replace", .0.display())]
    Exists(PathBuf),
    /// The session.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// A file could not be made durable.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The new or the old database.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The packed extract came wrong twice.
    #[error("extract {0} came damaged twice in a row: a bad disk or line; the copies are in quarantine")]
    Damaged(Incarnation),
    /// The packed extract is right, but cannot be unpacked.
    #[error("unpack {}: {why}", .path.display())]
    Unpack {
        /// The packed extract.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The system gives no random numbers.
    #[error("no random numbers for the identity of the new database: {0}")]
    Random(String),
}

impl InitError {
    /// Whether the same call may succeed later without anybody doing anything but closing a program (exit code 3).
    pub fn is_passing(&self) -> bool {
        match self {
            InitError::Exchange(error) => error.is_passing(),
            InitError::Install(error) => matches!(error, InstallError::InUse { .. }),
            InitError::Waiting { .. } => true,
            _ => false,
        }
    }
}

/// A packed extract that is whole and right.
struct Fetched {
    welcome: Welcome,
    offer: ExtractOffer,
    archive: PathBuf,
    bytes: u64,
}

/// Returns whether there is a database with something in it, which is to be replaced.
///
/// # Errors
/// There is one, and it is not to be replaced.
pub fn look(folder: &LockedFolder, replace: bool) -> Result<bool, InitError> {
    let exists = fs::metadata(folder.database()).is_ok_and(|metadata| metadata.len() > 0);
    if exists && !replace { Err(InitError::Exists(folder.database().to_owned())) } else { Ok(exists) }
}

/// Has this folder let in by a token, if there is one; else it goes on as the node that it is. Returns the node, and who calls its
/// server. Blocks.
///
/// # Errors
/// There is no token, and it was never let in; no line; or the server refuses.
pub fn enter(
    folder: &LockedFolder,
    server: &str,
    token: Option<&Token>,
    proxy: Option<&Proxy>,
    timing: Timing,
) -> Result<(NodeName, Arc<dyn Dialer>), InitError> {
    let dial = |error| InitError::Exchange(ExchangeError::Dial(error));
    let (which, identity) = match token {
        Some(token) => (Which::New, Some(runtime()?.block_on(identity::enrol(folder, server, token, proxy, timing)).map_err(dial)?)),
        None => (Which::Node, identity::of(folder, Which::Node).map_err(dial)?),
    };
    let identity = identity.ok_or_else(|| InitError::NoToken(folder.database().to_owned()))?;
    crash::at(CrashPoint::InitEntered);
    Ok((identity.node().clone(), Arc::new(ServerDialer::new(folder, which, proxy.cloned()))))
}

/// Makes the local database of `folder` from the node's extract. Blocks.
///
/// # Errors
/// See `InitError`. Nothing of the former database has changed then.
pub fn init(folder: &LockedFolder, options: &InitOptions, progress: &mut dyn Progress) -> Result<InitReport, InitError> {
    let exists = look(folder, options.replace)?;
    let mut install_id = InstallId::default();
    getrandom::fill(&mut install_id.0).map_err(|error| InitError::Random(error.to_string()))?;
    let fetched = runtime()?.block_on(Box::pin(fetch(folder, options, install_id, progress)))?;
    crash::at(CrashPoint::InitFetched);
    progress.on(&ProgressEvent::ExtractChecking);
    let (disk, new) = (folder.disk(), folder.new_database());
    for suffix in ["", "-wal", "-shm", "-journal"] {
        disk.remove(&with_suffix(&new, suffix))?;
    }
    unpack(disk, &fetched.archive, &new, fetched.offer.raw_bytes)?;
    crash::at(CrashPoint::InitUnpacked);
    let (epoch, incarnation) = (fetched.welcome.epoch, fetched.offer.incarnation);
    let expected = Expected { server_id: fetched.welcome.server_id, epoch, node: options.node.clone(), incarnation };
    swap::adopt(&new, &expected, install_id)?;
    disk.sync_path(&new)?;
    crash::at(CrashPoint::InitAdopted);
    let replaced = put_in_place(folder, options, &fetched, exists)?;
    Ok(InitReport {
        server_name: fetched.welcome.server_name,
        server_id: fetched.welcome.server_id,
        offer: fetched.offer,
        install_id,
        fetched: fetched.bytes,
        replaced,
    })
}

/// The last steps, in the order that the head of this file gives.
fn put_in_place(folder: &LockedFolder, options: &InitOptions, fetched: &Fetched, exists: bool) -> Result<Option<PathBuf>, InitError> {
    let (disk, database) = (folder.disk(), folder.database());
    if exists {
        // Before anything is changed: a program that has the old database open stops the swap here.
        swap::retire(database)?;
        crash::at(CrashPoint::InitRetired);
    }
    for file in folder.inbox_files().map_err(ExchangeError::Folder)? {
        disk.remove(&folder.inbox().join(file.file_name()))?;
    }
    disk.sync_folder(&folder.inbox())?;
    crash::at(CrashPoint::InitEmptied);
    // What the user chose for this folder outlives the database in it.
    let download = folder.read_config().map_or(true, |former| former.download);
    let (server, node, server_id) = (options.server.clone(), options.node.clone(), Some(fetched.welcome.server_id));
    let config = RemoteConfig { server, node, server_id, download, ssh: options.ssh.clone() };
    folder.write_config(&config).map_err(ExchangeError::Folder)?;
    identity::take_over(folder).map_err(ExchangeError::Dial)?;
    crash::at(CrashPoint::InitConfigured);
    let replaced = exists.then(|| folder.replaced_database());
    if let Some(kept) = &replaced {
        disk.remove(kept)?;
        // A second name for the old file: it is never without one.
        disk.keep_as(database, kept)?;
        crash::at(CrashPoint::InitKept);
    }
    for suffix in ["-wal", "-shm", "-journal"] {
        disk.remove(&with_suffix(database, suffix))?;
    }
    disk.replace(&folder.new_database(), database)?;
    crash::at(CrashPoint::InitReplaced);
    // What init and former sessions left.
    disk.clean_tmp(&folder.tmp())?;
    // The last thing: until here the same call may be made again with the same token.
    identity::forget_key(folder).map_err(ExchangeError::Dial)?;
    Ok(replaced)
}

async fn fetch(
    folder: &LockedFolder,
    options: &InitOptions,
    install_id: InstallId,
    progress: &mut dyn Progress,
) -> Result<Fetched, InitError> {
    let exchange = &options.exchange;
    let (mut failures, mut damaged, mut pause) = (0, 0, exchange.pause);
    let mut bytes = 0;
    loop {
        let before = bytes;
        let mut download = Download {
            folder,
            options,
            progress: &mut *progress,
            part: None,
            welcome: None,
            bytes: &mut bytes,
            done: None,
            damaged: false,
            ended: None,
        };
        let error = match Box::pin(download.run(install_id)).await {
            Ok(()) => match (download.done.take(), download.welcome.take(), download.ended.take()) {
                (Some((offer, archive)), Some(welcome), _) => return Ok(Fetched { welcome, offer, archive, bytes }),
                (_, _, ended) => ended_error(ended, options),
            },
            Err(error) => error,
        };
        if let InitError::Damaged(_) = error {
            damaged += 1;
            if damaged >= 2 {
                return Err(error);
            }
            continue;
        }
        let passing = error.is_passing();
        if bytes > before {
            (failures, pause) = (0, exchange.pause);
        }
        failures += 1;
        if !passing || failures >= exchange.attempts {
            return Err(error);
        }
        let wait = jitter(pause);
        progress.on(&ProgressEvent::Again { why: error.to_string(), pause: wait });
        tokio::time::sleep(wait).await;
        pause = (pause * 2).min(exchange.pause_max);
    }
}

fn ended_error(ended: Option<Closed>, options: &InitOptions) -> InitError {
    let error = match ended {
        Some(Closed::Refused(refusal)) => options.exchange.refused(&options.node, refusal),
        Some(Closed::Violation(text)) => ExchangeError::Violation(text),
        Some(Closed::Lost(text) | Closed::Stopped(text)) if !text.is_empty() => ExchangeError::Lost(text),
        _ => ExchangeError::Lost("the server ended the session".into()),
    };
    error.into()
}

/// One session that fetches the extract.
struct Download<'a> {
    folder: &'a LockedFolder,
    options: &'a InitOptions,
    progress: &'a mut dyn Progress,
    part: Option<Part>,
    welcome: Option<Welcome>,
    bytes: &'a mut u64,
    done: Option<(ExtractOffer, PathBuf)>,
    damaged: bool,
    ended: Option<Closed>,
}

impl Download<'_> {
    async fn run(&mut self, install_id: InstallId) -> Result<(), InitError> {
        let timing = self.options.exchange.timing;
        let mut link = self.options.exchange.dialer.dial(&self.options.server, timing).await.map_err(ExchangeError::Dial)?;
        let mut machine = ClientSession::new(init_hello(self.options.node.as_str(), install_id, None));
        let pulse = link.pulse();
        let (began, mut pinged) = (Instant::now(), Instant::now());
        let mut tick = tokio::time::interval((timing.heartbeat / 4).clamp(Duration::from_millis(5), Duration::from_secs(1)));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.handle(&link, &mut machine, Event::Connected).await?;
        while self.ended.is_none() {
            let received = tokio::select! {
                biased;
                _ = tick.tick() => None,
                received = link.incoming.receive() => Some(received),
            };
            let event = match received {
                Some(Ok(message)) => Event::Message(message),
                Some(Err(error)) => Event::Gone(error.to_string()),
                None => match link.check() {
                    Err(error) => Event::Gone(error.to_string()),
                    Ok(()) if machine.state() == "greeting" && began.elapsed() > timing.handshake => {
                        Event::Gone(format!("the server did not answer within {} s", timing.handshake.as_secs_f32()))
                    }
                    Ok(()) if pulse.silence() > timing.heartbeat && pinged.elapsed() > timing.heartbeat => {
                        pinged = Instant::now();
                        Event::Quiet
                    }
                    Ok(()) => continue,
                },
            };
            self.handle(&link, &mut machine, event).await?;
        }
        if !matches!(self.ended, Some(Closed::Lost(_))) {
            link.close().await;
        }
        match (self.damaged, &self.welcome) {
            (true, Some(welcome)) => Err(InitError::Damaged(welcome.incarnation)),
            _ => Ok(()),
        }
    }

    async fn handle(&mut self, link: &Link, machine: &mut ClientSession, event: Event) -> Result<(), InitError> {
        let actions = machine.on(event).unwrap_or_else(|illegal| illegal.actions);
        for action in actions {
            match action {
                Action::Send(message) => {
                    if let Err(error) = link.outgoing.send(&message).await {
                        self.ended.get_or_insert(Closed::Lost(error.to_string()));
                    }
                }
                Action::Welcomed(welcome) => {
                    self.progress.on(&ProgressEvent::Connected { server: welcome.server_name.clone(), files: 0 });
                    self.progress.on(&ProgressEvent::ExtractWaiting);
                    self.welcome = Some(*welcome);
                    let renew = self.options.renew && !self.folder.tmp().join(RENEWED).exists();
                    Box::pin(self.handle(link, machine, Event::AskExtract { renew })).await?;
                }
                Action::ExtractOffered(offer) => {
                    let event = self.offered(&offer)?;
                    Box::pin(self.handle(link, machine, event)).await?;
                }
                Action::BeginExtract { offset } => {
                    let offer = self.offer(machine)?;
                    self.part = Some(Part::open(self.folder.disk(), self.part_path(&offer), offset)?);
                }
                Action::Store { bytes, .. } => {
                    let Some(part) = &mut self.part else { continue };
                    part.write(&bytes)?;
                    *self.bytes += bytes.len() as u64;
                    let at = part.bytes();
                    let of = machine.extract().map_or(at, |offer| offer.bytes);
                    self.progress.on(&ProgressEvent::Extract { bytes: at, of });
                }
                Action::FinishExtract(offer) => {
                    self.finish(&offer)?;
                    Box::pin(self.handle(link, machine, Event::Leave)).await?;
                }
                Action::Close(closed) => {
                    self.ended.get_or_insert(closed);
                }
                Action::Offered(_)
                | Action::BeginFile { .. }
                | Action::FinishFile(_)
                | Action::Complete
                | Action::Upload(_)
                | Action::KeepToken(_) => {
                    self.ended.get_or_insert(Closed::Violation("files in a session that is for the extract".into()));
                }
            }
        }
        Ok(())
    }

    fn offer(&self, machine: &ClientSession) -> Result<ExtractOffer, InitError> {
        machine.extract().ok_or_else(|| ExchangeError::Violation("no extract was offered".into()).into())
    }

    /// The hash is part of the name: a part of another extract is never continued.
    fn part_path(&self, offer: &ExtractOffer) -> PathBuf {
        let hash = offer.sha256.to_string();
        self.folder.tmp().join(format!("extract-{:08}-{}.db.zst.part", offer.incarnation.0, &hash[..16]))
    }

    fn offered(&mut self, offer: &ExtractOffer) -> Result<Event, InitError> {
        if offer.bytes > EXTRACT_BYTES_MAX || offer.raw_bytes > EXTRACT_BYTES_MAX {
            return Err(ExchangeError::Violation(format!("an extract of {} bytes", offer.bytes.max(offer.raw_bytes))).into());
        }
        if self.options.renew {
            let tmp = self.folder.tmp();
            self.folder.disk().replace_with(&tmp, &tmp.join(RENEWED), offer.incarnation.to_string().as_bytes())?;
        }
        if let Some(welcome) = &mut self.welcome {
            welcome.incarnation = offer.incarnation;
        }
        let path = self.part_path(offer);
        let have = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        if have == offer.bytes && have > 0 {
            // Fetched whole by an earlier run.
            self.part = Some(Part::open(self.folder.disk(), path, have)?);
            self.finish(offer)?;
            return Ok(Event::Leave);
        }
        Ok(Event::FetchExtract { offset: if have > offer.bytes { 0 } else { have } })
    }

    fn finish(&mut self, offer: &ExtractOffer) -> Result<(), InitError> {
        let Some(part) = self.part.take() else { return Ok(()) };
        let (path, hash) = part.finish();
        if hash == offer.sha256.0 {
            self.folder.disk().sync_path(&path)?;
            self.done = Some((*offer, path));
        } else {
            let name = path.file_name().map_or_else(|| "extract".into(), |name| name.to_string_lossy().into_owned());
            let reason = format!("its SHA-256 is {}, {} was announced", ByteHash(hash), offer.sha256);
            let (quarantine, tmp) = (self.folder.quarantine(), self.folder.tmp());
            let aside = Aside { file: &path, name: &name, quarantine: &quarantine, tmp: &tmp, reason: &reason };
            quarantine::put_aside(self.folder.disk(), &aside)?;
            tracing::warn!("extract {} is damaged, moved to quarantine", offer.incarnation);
            self.damaged = true;
        }
        Ok(())
    }
}

/// Unpacks an extract of exactly `raw_bytes` bytes.
fn unpack(disk: &Disk, archive: &Path, target: &Path, raw_bytes: u64) -> Result<(), InitError> {
    let wrong = |why: String| InitError::Unpack { path: archive.to_owned(), why };
    let source = disk.open(archive)?;
    let mut target_file = disk.create(target)?;
    let mut decoder = zstd::stream::read::Decoder::new(source).map_err(|error| wrong(error.to_string()))?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(|error| wrong(error.to_string()))?;
    let mut buffer = vec![0; 256 << 10];
    let mut written = 0u64;
    loop {
        let count = match decoder.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(wrong(error.to_string())),
        };
        written += count as u64;
        if written > raw_bytes {
            return Err(wrong(format!("it holds more than the {raw_bytes} bytes that were announced")));
        }
        target_file.write_all(&buffer[..count]).map_err(|source| DiskError::Io { operation: "write", path: target.to_owned(), source })?;
    }
    if written != raw_bytes {
        return Err(wrong(format!("it holds {written} bytes, {raw_bytes} were announced")));
    }
    disk.sync_file(&target_file, target)?;
    Ok(())
}
