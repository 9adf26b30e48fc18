//! Carriers: letters of nodes are read into sessions, and answered by letters.
//!
//! A letter of a node is played into a session like any other (`server::syncsession`), on a line within this process that its signature has
//! proved: who may come in, what is taken and what is kept is decided in one place. Only the files for the node are not fetched there: they go
//! into letters (`server::carrier_desk`), as do the answers.

use crate::base::clock::now_seconds;
use crate::base::ids::{NodeName, ServerId};
use crate::rules::definition::CarrierSettings;
use crate::server::carrier_desk::{self, Desk, Rules};
use crate::server::syncmgr::{BoxError, Shared};
use crate::server::syncsession::{blocking, serve_link};
use crate::session::admission::{self, NODE_TEXT, NodeFacts};
use crate::session::enrol::{Answer, Request};
use crate::session::letter::{Frames, Lying, Receipt, Way};
use crate::session::message::{Hello, Message, Mode, Refusal, Welcome, feature};
use crate::session::upload::{UploadFile, UploadMessage, UploadState};
use crate::transport::carrier::{self, Carrier, CarrierError, Marker, marker_of};
use crate::transport::letters::{MailBox, Opened};
use crate::transport::link::{Link, LinkError, Timing};
use crate::transport::newcomers::{self, Newcomer};
use crate::transport::peer::Proof;
use crate::transport::ssh_settings::SshSettings;
use crate::transport::tcp;
use crate::trust::keys::{KeyPair, PublicKey};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::base::limits::SESSION_MESSAGE_BYTES_MAX;

/// Safety net for a lost event, and how often a place is looked at that tells of none (a share, SFTP).
const SCAN: Duration = Duration::from_secs(10);
/// The same for a place that tells of none, as long as letters come and go.
const SCAN_BUSY: Duration = Duration::from_secs(1);
/// So long after the last letter it counts as such.
const BUSY: Duration = Duration::from_secs(60);
/// Pause before a pass, so that many events make one.
const LULL: Duration = Duration::from_millis(50);
/// Bytes that the line within this process holds.
const LINE_BYTES: usize = 256 << 10;

/// Carries letters to and fro until `shutdown`.
pub(super) async fn run(shared: Arc<Shared>, key: Arc<KeyPair>, options: CarrierSettings, shutdown: CancellationToken) {
    let wake = Arc::new(Notify::new());
    let mut routed = shared.routed.clone();
    let mut said = BTreeSet::new();
    let mut watcher = None;
    let mut busy: Option<Instant> = None;
    let mut opened: Option<Post> = None;
    loop {
        if watcher.is_none() {
            watcher = watch(&options, &wake);
        }
        routed.borrow_and_update();
        let passed = async {
            let post = match opened.take() {
                Some(post) => post,
                None => {
                    let (shared, key, options, shutdown) = (shared.clone(), key.clone(), options.clone(), shutdown.clone());
                    blocking(move || {
                        let carrier = Arc::new(Mutex::new(open(&options, shared.timing)?));
                        let server = shared.directory.identity()?.server_id;
                        Ok(Post { shared, key, carrier, options, server, shutdown })
                    })
                    .await?
                }
            };
            let worked = post.pass(&mut said).await?;
            Ok::<_, BoxError>((post, worked))
        };
        let passed = passed.await;
        match passed {
            Ok((post, worked)) => {
                opened = Some(post);
                if worked > 0 {
                    busy = Some(Instant::now());
                }
                said.remove(&options.name);
            }
            Err(error) => {
                // A stick is mostly elsewhere: said once.
                watcher = None;
                if said.insert(options.name.clone()) {
                    tracing::warn!("carrier {}: {error}", options.name);
                }
            }
        }
        let is_busy = watcher.is_none() && busy.is_some_and(|at| at.elapsed() < BUSY);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = wake.notified() => {}
            changed = routed.changed() => if changed.is_err() { return },
            // What is watched may be another folder by now, of the same name.
            () = tokio::time::sleep(if is_busy { SCAN_BUSY } else { SCAN }) => watcher = None,
        }
        // What comes together is done together.
        tokio::time::sleep(LULL).await;
    }
}

/// Opens the carrier of a definition. Blocks.
///
/// # Errors
/// No line to where it is, or the text is no address.
pub fn open(settings: &CarrierSettings, timing: Timing) -> Result<Box<dyn Carrier>, CarrierError> {
    let [key, known_hosts, password_file] = settings.ssh.clone().map(|file| file.map(Into::into));
    carrier::open(&settings.path, &SshSettings { key, known_hosts, password_file }, timing)
}

/// Has changes of the place wake the pass; `None` where the system cannot tell of them.
fn watch(options: &CarrierSettings, wake: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let wake = wake.clone();
    carrier::watch(options.path.as_ref(), Way::Up, move || wake.notify_one())
}

/// A carrier that is there, and what passes through it need.
#[derive(Clone)]
struct Post {
    shared: Arc<Shared>,
    key: Arc<KeyPair>,
    carrier: Arc<Mutex<Box<dyn Carrier>>>,
    options: CarrierSettings,
    server: ServerId,
    shutdown: CancellationToken,
}

/// What came of a letter.
enum Played {
    /// It was read to its end.
    Read,
    /// It is not whole yet.
    Cut,
    /// The session did not come to its end: again later.
    Later,
    /// It is none; for people.
    Spoiled(String),
}

impl Post {
    async fn pass(&self, said: &mut BTreeSet<String>) -> Result<u64, BoxError> {
        let post = self.clone();
        let (nodes, marker) = blocking(move || {
            let carrier = post.carrier();
            let marker = marker_of(&**carrier, post.server)?;
            // Those for whom an extract waits have written no letter yet.
            let nodes: BTreeSet<String> = carrier.folders(Way::Up)?.into_iter().chain(post.awaited()?).collect();
            Ok((nodes, marker))
        })
        .await?;
        let mut worked = self.newcomers(said).await?;
        for node in nodes.into_iter().filter_map(|folder| folder.parse::<NodeName>().ok()) {
            if self.shutdown.is_cancelled() {
                break;
            }
            // What is wrong with the letters of one node keeps no other waiting (I5).
            let told = format!("{}/{node}", self.options.name);
            match self.node(&node, &marker).await {
                Ok(letters) => {
                    worked += letters;
                    said.remove(&told);
                }
                Err(error) if error.downcast_ref::<CarrierError>().is_some_and(CarrierError::is_passing) => return Err(error),
                Err(error) => {
                    if said.insert(told) {
                        tracing::error!(%node, "carrier {}: {error}", self.options.name);
                    }
                }
            }
        }
        Ok(worked)
    }

    /// Returns the nodes of which something is kept for this carrier.
    fn awaited(&self) -> Result<Vec<String>, BoxError> {
        let nodes = self.shared.root.nodes()?;
        let is_kept = |node: &NodeName| carrier_desk::path(&self.shared.root, node, &self.options.name).exists();
        Ok(nodes.iter().filter(|node| is_kept(node)).map(ToString::to_string).collect())
    }

    fn carrier(&self) -> MutexGuard<'_, Box<dyn Carrier>> {
        self.carrier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs what blocks, with this side's end of the carrier for one node.
    async fn mail<T: Send + 'static>(
        &self,
        node: &NodeName,
        peer: PublicKey,
        part_bytes: u64,
        work: impl FnOnce(&Post, &MailBox<'_>) -> Result<T, BoxError> + Send + 'static,
    ) -> Result<T, BoxError> {
        let (post, node) = (self.clone(), node.clone());
        blocking(move || {
            let (carrier, server) = (post.carrier(), post.server);
            work(&post, &MailBox { carrier: &**carrier, key: &post.key, peer, server, node: &node, writes: Way::Down, part_bytes })
        })
        .await
    }

    /// Lets those in who ask by a file; their extracts follow in letters. Returns how many were answered.
    async fn newcomers(&self, said: &mut BTreeSet<String>) -> Result<u64, BoxError> {
        let post = self.clone();
        let newcomers = blocking(move || {
            let carrier = post.carrier();
            newcomers::forget(&**carrier)?;
            Ok(newcomers::waiting(&**carrier, post.server, &post.key)?)
        });
        let mut answered = 0;
        for Newcomer { key, request } in newcomers.await? {
            let request = match request {
                Ok(request) => request,
                Err(why) => {
                    if said.insert(key.to_string()) {
                        tracing::warn!("carrier {}: what asks to be let in with key {key} cannot be read: {why}", self.options.name);
                    }
                    continue;
                }
            };
            let post = self.clone();
            answered += blocking(move || post.let_in(&key, &request)).await?;
        }
        Ok(answered)
    }

    fn let_in(&self, key: &PublicKey, request: &Request) -> Result<u64, BoxError> {
        let (shared, name) = (&self.shared, &self.options.name);
        let answer = match shared.directory.enrol(request, None)? {
            Ok((node, certificate)) => {
                tracing::info!(%node, carrier = name, "was let in by a file");
                // Whoever holds its session came in by the key before.
                shared.cut_off(&node);
                let mut desk = Desk::read(&shared.root, &node, name, key)?;
                let known = shared.directory.node(&node)?.ok_or("the node was deleted meanwhile")?;
                let bound_install = shared.sessions().mark(&node, known.incarnation)?.map(|mark| mark.install_id);
                let facts = NodeFacts { bound_install, ..NodeFacts::default() };
                // An extract that is in use is another database's.
                let is_new = admission::needs_extract(&known, &facts, false).unwrap_or(true);
                desk.extract = Some(if is_new { shared.directory.start(&node)? } else { known.incarnation });
                desk.keep(&shared.root, &node, name)?;
                Answer::Granted { certificate }
            }
            Err(why) => {
                tracing::warn!(carrier = name, "enrolment by a file refused: {why}");
                Answer::Refused { text: NODE_TEXT.to_owned() }
            }
        };
        newcomers::reply(&**self.carrier(), self.server, &self.key, key, &answer)?;
        Ok(1)
    }

    /// Reads the letters of a node and answers them; returns how many were read and written.
    async fn node(&self, name: &NodeName, marker: &Marker) -> Result<u64, BoxError> {
        let (post, node) = (self.clone(), name.clone());
        let known = blocking(move || {
            let Some(key) = post.shared.directory.key_of(&node)? else { return Ok(None) };
            Ok(Some((key, Desk::read(&post.shared.root, &node, &post.options.name, &key)?)))
        });
        let Some((key, mut desk)) = known.await? else {
            return Err(format!("{name} is no node with a key of its own; its letters are not read").into());
        };
        let part_bytes = marker.part_bytes;
        let letters = self.mail(name, key, part_bytes, |_, mail| Ok(mail.incoming()?)).await?;
        let (mut is_waiting, mut read) = (false, 0);
        for (letter, bytes) in letters {
            if letter.number <= desk.book.receipt.heard || desk.book.receipt.spoiled.contains(&letter.number) {
                continue;
            }
            let played = match letter.is_whole {
                true => self.play(name, key, part_bytes, &letter, &mut desk).await?,
                false => Played::Cut,
            };
            match played {
                Played::Read => {
                    tracing::info!(node = %name, carrier = self.options.name, letter = letter.number, "letter read");
                    desk.book.read(letter.number);
                    read += 1;
                }
                Played::Later => break,
                // Older ones first: what follows may need what comes of it.
                Played::Cut if desk.book.is_waited_for(letter.number, bytes, now_seconds(), marker.patience_seconds) => is_waiting = true,
                Played::Cut => desk.book.spoil(letter.number),
                Played::Spoiled(why) => {
                    tracing::error!(node = %name, carrier = self.options.name, "{why}");
                    desk.book.spoil(letter.number);
                    let (shared, node) = (self.shared.clone(), name.clone());
                    let text = format!("a letter that cannot be read: {why}");
                    blocking(move || Ok(shared.sessions().alert(node.as_str(), &text, now_seconds())?)).await?;
                }
            }
            let (post, node, kept) = (self.clone(), name.clone(), desk.clone());
            blocking(move || kept.keep(&post.shared.root, &node, &post.options.name)).await?;
            if is_waiting {
                break;
            }
        }
        let node = name.clone();
        let written = self
            .mail(name, key, part_bytes, move |post, mail| {
                // As it is now: a session may have begun its stream anew.
                let Some(node) = post.shared.directory.node(&node)? else { return Ok(0) };
                let options = &post.options;
                let rules = Rules { name: &options.name, room_bytes: options.room_bytes, resend_seconds: options.resend_seconds };
                desk.answer(&post.shared, &node, mail, &rules)
            })
            .await?;
        if written > 0 {
            tracing::info!(node = %name, carrier = self.options.name, letters = written, "letters written");
        }
        Ok(read + written)
    }

    /// Plays a letter into a session.
    async fn play(&self, node: &NodeName, key: PublicKey, part_bytes: u64, letter: &Lying, desk: &mut Desk) -> Result<Played, BoxError> {
        let mut player: Option<Player> = None;
        for (at, name) in letter.parts.iter().copied().enumerate() {
            let opened = self.mail(node, key, part_bytes, move |_, mail| Ok(mail.open(name)?)).await?;
            let mut frames = match opened {
                Opened::Content(frames) => frames,
                Opened::Later => return Ok(Played::Cut),
                Opened::Spoiled(why) => return Ok(Played::Spoiled(why)),
            };
            if at == 0 {
                let (receipt, hello) = match begin(&mut frames) {
                    Ok(begun) => begun,
                    Err(why) => return Ok(Played::Spoiled(format!("{name}: {why}"))),
                };
                desk.book.hear(&receipt);
                desk.asked = receipt.asks;
                if self.is_outdated(node, &hello, letter.number).await? {
                    tracing::info!(%node, "{name} was written before the node came by a line: it is passed over");
                    return Ok(Played::Read);
                }
                player = Some(self.open_session(key, hello));
                if let Some(player) = &mut player
                    && let Some(refusal) = player.enter().await?
                {
                    if refusal.code.is_passing() {
                        return Ok(Played::Later);
                    }
                    desk.refused = Some((refusal.code.number(), refusal.text));
                    return Ok(Played::Read);
                }
            }
            let Some(player) = &mut player else { continue };
            for message in frames {
                let message = match message {
                    Ok(message) => message,
                    Err(error) => return Ok(Played::Spoiled(format!("{name}: {error}"))),
                };
                if let Err(why) = player.say(message).await {
                    // What was taken is kept; the node hears how far that is, and goes on from there.
                    tracing::warn!(%node, "{name}: {why}");
                    return Ok(Played::Later);
                }
            }
        }
        if let Some(player) = player {
            player.leave(desk).await;
        }
        Ok(Played::Read)
    }

    /// Whether a letter was on its way while its node came by a line and went on: what it says of the node is no longer so. What it says of a node
    /// that was restored from a copy is younger than that session, and is heard.
    async fn is_outdated(&self, node: &NodeName, hello: &Hello, number: u64) -> Result<bool, BoxError> {
        let (shared, node, incarnation) = (self.shared.clone(), node.clone(), hello.incarnation);
        let mark = blocking(move || Ok(shared.sessions().mark(&node, incarnation)?)).await?;
        let written = i64::try_from(number / 1_000).unwrap_or(i64::MAX);
        Ok(mark
            .is_some_and(|mark| mark.install_id == hello.install_id && hello.applied.file < mark.applied.file && written < mark.last_seen))
    }

    fn open_session(&self, key: PublicKey, hello: Box<Hello>) -> Player {
        let (near, far) = tokio::io::duplex(LINE_BYTES);
        let timing = self.shared.timing;
        let link = tcp::line(far, tcp::REQUEST_BYTES_MAX, timing);
        let peer = format!("carrier {}", self.options.name);
        let session = tokio::spawn(serve_link(self.shared.clone(), link, Proof::Key(key), peer, self.shutdown.clone()));
        Player {
            link: tcp::line(near, SESSION_MESSAGE_BYTES_MAX, timing),
            session,
            hello,
            welcome: None,
            state: None,
            sending: Sending::Nothing,
        }
    }
}

/// Takes what every letter of a node begins with.
fn begin(frames: &mut Frames) -> Result<(Receipt, Box<Hello>), String> {
    let receipt = frames.receipt().map_err(|error| error.to_string())?;
    match frames.next() {
        Some(Ok(Message::Hello(hello))) if hello.mode == Mode::Sync => Ok((receipt, hello)),
        Some(Err(error)) => Err(error.to_string()),
        _ => Err("it does not begin as a letter of a node does".to_owned()),
    }
}

/// The file of a letter that is being read.
enum Sending {
    Nothing,
    /// It goes into the session.
    File(UploadFile),
    /// It is there already, or does not follow.
    Skipped,
}

/// The node's half of a session, as a letter has it.
struct Player {
    link: Link,
    session: tokio::task::JoinHandle<()>,
    hello: Box<Hello>,
    welcome: Option<Welcome>,
    state: Option<UploadState>,
    sending: Sending,
}

impl Player {
    /// Says hello. Returns the refusal, if there is one.
    async fn enter(&mut self) -> Result<Option<Refusal>, BoxError> {
        self.link.outgoing.send(&Message::Hello(self.hello.clone())).await?;
        match self.hear().await? {
            Message::Refused(refusal) => return Ok(Some(refusal)),
            Message::Welcome(welcome) => self.welcome = Some(*welcome),
            other => return Err(format!("the session answers a hello by {}", other.name()).into()),
        }
        let is_on = self.welcome.as_ref().is_some_and(|welcome| welcome.features.contains(&feature::UPLOAD));
        if is_on && self.hello.incarnation == self.welcome.as_ref().map_or(self.hello.incarnation, |welcome| welcome.incarnation) {
            match self.hear().await? {
                Message::Upload(UploadMessage::State(state)) => self.state = Some(state),
                Message::Refused(refusal) => return Ok(Some(refusal)),
                other => return Err(format!("the session says {} of uploads", other.name()).into()),
            }
        }
        Ok(None)
    }

    /// Waits for what the session says, heartbeats apart.
    async fn hear(&mut self) -> Result<Message, LinkError> {
        loop {
            match self.link.incoming.receive().await? {
                Message::Ping(number) => self.link.outgoing.send(&Message::Pong(number)).await?,
                Message::Pong(_) | Message::Ignored(_) => {}
                message => return Ok(message),
            }
        }
    }

    /// Says what the letter says next.
    async fn say(&mut self, message: Message) -> Result<(), BoxError> {
        match message {
            Message::Upload(UploadMessage::Begin { file, offset: 0 }) => {
                let next = self.state.as_ref().map(|state| state.stored.next());
                self.sending = if next == Some(file.file) { Sending::File(file) } else { Sending::Skipped };
                if next == Some(file.file) {
                    self.link.outgoing.send(&Message::Upload(UploadMessage::Begin { file, offset: 0 })).await?;
                }
                Ok(())
            }
            Message::Upload(message @ UploadMessage::Chunk { .. }) => match self.sending {
                Sending::File(_) => Ok(self.link.outgoing.send(&Message::Upload(message)).await?),
                _ => Ok(()),
            },
            Message::Upload(UploadMessage::End { file }) => match std::mem::replace(&mut self.sending, Sending::Nothing) {
                Sending::File(sent) if sent.file == file => {
                    self.link.outgoing.send(&Message::Upload(UploadMessage::End { file })).await?;
                    self.stored(sent).await
                }
                _ => Ok(()),
            },
            message @ (Message::Stopped(_) | Message::Compared(_)) => {
                let takes = self.welcome.as_ref().is_some_and(|welcome| welcome.features.contains(&feature::REPORT));
                if takes { Ok(self.link.outgoing.send(&message).await?) } else { Ok(()) }
            }
            Message::Ignored(_) => Ok(()),
            other => Err(format!("{} does not belong into a letter of a node", other.name()).into()),
        }
    }

    async fn stored(&mut self, sent: UploadFile) -> Result<(), BoxError> {
        match self.hear().await? {
            Message::Upload(UploadMessage::Stored { file }) if file == sent.file => {
                if let Some(state) = &mut self.state {
                    (state.stored, state.hash) = (sent.file, sent.content_hash);
                    state.last_unit = state.last_unit.max(sent.last);
                }
                Ok(())
            }
            Message::Upload(UploadMessage::Refused(refused)) => {
                Err(format!("{} was not taken: {}", refused.file.file_name(), refused.text).into())
            }
            Message::Refused(refusal) => Err(refusal.text.into()),
            other => Err(format!("the session answers a file by {}", other.name()).into()),
        }
    }

    /// Parts, and writes down what the node is to hear.
    async fn leave(mut self, desk: &mut Desk) {
        if self.link.outgoing.send(&Message::Bye(String::new())).await.is_ok() {
            while self.link.incoming.receive().await.is_ok() {}
        }
        self.link.close().await;
        if let Err(error) = self.session.await {
            tracing::error!("a session broke off: {error}");
        }
        desk.refused = None;
        desk.extract = None;
        desk.received = self.hello.received;
        desk.incarnation = self.hello.incarnation;
        if let Some(state) = &mut self.state {
            state.part = None;
        }
        desk.state = self.state;
        desk.welcome = self.welcome.map(|welcome| Welcome { incarnation: self.hello.incarnation, ..welcome });
    }
}
