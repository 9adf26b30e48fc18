//! Letting a node in: gathers what the server database, the ledger and `sessions.db` know, has `session::admission` decide, and takes
//! the node's one session.

use crate::base::clock::now_seconds;
use crate::base::crash::{self, CrashPoint};
use crate::base::ids::{ContentHash, FileNo, Incarnation, NodeName, UnitNo};
use crate::docking::sessions::{Begin, End, Mark};
use crate::model::node::Node;
use crate::server::synccalls::Answer;
use crate::server::syncmgr::{BoxError, Claim, OutboxIndex, Shared};
use crate::server::syncsession::blocking;
use crate::session::admission::{self, Admitted, NodeFacts, ServerIdentity, Turned};
use crate::session::message::{AppliedTo, Hello, Mode, RefusalCode};
use crate::session::server::Event;
use crate::transport::link::Pulse;
use crate::transport::peer::Proof;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What belongs to an accepted node.
pub(super) struct Seat {
    /// The node's one session.
    pub(super) claim: Claim,
    /// Its row in the history.
    pub(super) row: i64,
    /// Its first unit that was never in a file, as it says.
    pub(super) unsent: UnitNo,
    /// How far the node is; `None` in mode init.
    pub(super) mark: Option<Mark>,
}

/// Everything that judging a hello needs.
pub(super) struct Door {
    /// Which node the line proves.
    pub(super) proof: Proof,
    pub(super) shared: Arc<Shared>,
    pub(super) identity: ServerIdentity,
    pub(super) hello: Box<Hello>,
    pub(super) node: Option<NodeName>,
    pub(super) pulse: Pulse,
    pub(super) cut: CancellationToken,
    pub(super) peer: String,
}

impl Door {
    /// Looks up, judges, takes the node's one session, and writes the history.
    pub(super) async fn judge(self) -> Answer {
        let began = tokio::time::Instant::now();
        let pause = self.shared.timing.refusal_pause;
        if self.hello.mode == Mode::Sync && self.node.is_some() {
            // One that knows no node waits too: how long a refusal takes tells nothing (T18).
            self.catch_up().await;
        }
        match blocking(move || self.decide()).await {
            Ok((verdict, seat)) => {
                if verdict.as_ref().is_err_and(|turned| turned.refusal.code == RefusalCode::Node) {
                    // Unknown, disabled and badly spelt take the same time.
                    tokio::time::sleep_until(began + pause).await;
                }
                Answer::Judged(Box::new(verdict), seat)
            }
            Err(error) => Answer::Event(Event::Failed(format!("judge the hello: {error}"))),
        }
    }

    /// Waits until everything that the server's log holds now is routed: after a sync the node holds what the server held
    /// when it called (DOE-3). A backlog that takes longer does not keep the node; it gets what is there.
    async fn catch_up(&self) {
        let mut routed = self.shared.routed.clone();
        let waited = tokio::time::timeout(self.shared.timing.catch_up, async {
            let directory = self.shared.directory.clone();
            let target = blocking(move || directory.log_end()).await?;
            loop {
                routed.borrow_and_update();
                let index = self.shared.index.clone();
                if blocking(move || index.position()).await? >= target || routed.changed().await.is_err() {
                    return Ok::<(), BoxError>(());
                }
            }
        });
        match waited.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("how far routing is cannot be read: {error}"),
            Err(_) => tracing::info!("routing has a backlog, the session begins with what is there"),
        }
    }

    /// Gathers what is known of a node beside its record.
    fn facts(&self, node: Option<&Node>) -> Result<NodeFacts, BoxError> {
        let (shared, hello) = (&self.shared, &self.hello);
        let mut facts = NodeFacts::default();
        if let Some(node) = node.filter(|_| hello.mode != Mode::Init) {
            facts.last_file = shared.index.last_file(&node.name, node.incarnation)?;
            facts.purged_upto = purged_upto(shared.index.as_ref(), node, hello.received.min(facts.last_file), facts.last_file)?;
            facts.applied_hash = ledger_hash(shared.index.as_ref(), &node.name, node.incarnation, hello.applied)?;
            if let Some(mark) = shared.sessions().mark(&node.name, hello.incarnation)? {
                facts.bound_install = Some(mark.install_id);
                facts.last_applied = mark.applied;
            }
        }
        Ok(facts)
    }

    fn decide(self) -> Result<(Result<Admitted, Turned>, Option<Seat>), BoxError> {
        let (shared, hello) = (&self.shared, &self.hello);
        let look = || -> Result<Option<Node>, BoxError> { self.node.as_ref().map_or(Ok(None), |name| shared.proved(&self.proof, name)) };
        let mut node = look()?;
        let mut facts = self.facts(node.as_ref())?;
        let heartbeat = u16::try_from(shared.timing.heartbeat.as_secs().max(1)).unwrap_or(u16::MAX);
        let mut verdict = admission::admit(hello, &self.identity, node.as_ref(), &facts, heartbeat);
        if let (Err(turned), Some(known)) = (&verdict, &node)
            && turned.refusal.code == RefusalCode::Stale
            && admission::may_begin_anew(hello, known, &facts)
        {
            // What it would need next is gone, so it gets everything that it sees, and nobody has to do anything (fault 38).
            tracing::warn!(node = %known.name, "{}: its stream begins anew, in band", turned.detail);
            shared.directory.restart(&known.name)?;
            node = look()?;
            facts = self.facts(node.as_ref())?;
            verdict = admission::admit(hello, &self.identity, node.as_ref(), &facts, heartbeat);
        }
        let Some(node) = node else {
            if let (Err(turned), Some(name)) = (&mut verdict, &self.node)
                && turned.refusal.code == RefusalCode::Node
                && shared.directory.node(name)?.is_some()
            {
                turned.detail = format!("the line does not prove that it is {name} ({:?})", self.proof);
            }
            return Ok((verdict, None));
        };
        let begin = Begin {
            node: node.name.clone(),
            peer: self.peer,
            mode: hello.mode.to_string(),
            program: hello.program.clone(),
            incarnation: hello.incarnation,
            now: now_seconds(),
        };
        let claim = match &verdict {
            Ok(_) => shared.claim(&node.name, self.pulse, self.cut),
            Err(turned) => Err(turned.clone()),
        };
        let sessions = shared.sessions();
        let row = sessions.begin(&begin)?;
        match claim {
            Err(turned) => {
                let detail = format!("{:?}: {}", turned.refusal.code, turned.detail);
                sessions.end(row, &End { outcome: "refused", detail, files_sent: 0, bytes_sent: 0, now: now_seconds() })?;
                verdict = Err(turned);
                Ok((verdict, None))
            }
            Ok(claim) => {
                // One whose stream began anew takes that over first, and calls again.
                let mark = (hello.mode != Mode::Init && hello.incarnation == node.incarnation).then(|| Mark {
                    node: node.name.clone(),
                    incarnation: node.incarnation,
                    install_id: hello.install_id,
                    received: hello.received.min(facts.last_file).max(hello.applied.file),
                    applied: hello.applied,
                    last_seen: now_seconds(),
                });
                if let Some(mark) = &mark {
                    sessions.set_mark(mark)?;
                }
                if let Proof::Key(key) = &self.proof {
                    sessions.note_key(&node.name, key, now_seconds())?;
                }
                crash::at(CrashPoint::SessionAdmitted);
                Ok((verdict, Some(Seat { claim, row, unsent: hello.unsent, mark })))
            }
        }
    }
}

/// Returns the last file before the first one that is still there for a node after file `received`.
fn purged_upto(index: &dyn OutboxIndex, node: &Node, received: FileNo, last: FileNo) -> Result<FileNo, BoxError> {
    let next = index.files_after(&node.name, node.incarnation, received, 1)?;
    Ok(next.first().map_or(last, |next| FileNo(next.file_no.0 - 1)))
}

/// Returns the content hash that the ledger has for a file; `None` if it does not know the file any more.
fn ledger_hash(
    index: &dyn OutboxIndex,
    node: &NodeName,
    incarnation: Incarnation,
    applied: AppliedTo,
) -> Result<Option<ContentHash>, BoxError> {
    let Some(before) = applied.file.0.checked_sub(1) else { return Ok(None) };
    let files = index.files_after(node, incarnation, FileNo(before), 1)?;
    Ok(files.first().filter(|file| file.file_no == applied.file).map(|file| file.content_hash))
}

/// Writes a mark, after comparing what was applied with the ledger. Returns the refusal if the two differ.
pub(super) fn write_mark(shared: Arc<Shared>, mark: Mark) -> JoinHandle<Result<Option<Turned>, BoxError>> {
    tokio::task::spawn_blocking(move || {
        let known = ledger_hash(shared.index.as_ref(), &mark.node, mark.incarnation, mark.applied)?;
        if known.is_some_and(|known| known != mark.applied.hash) {
            let text = format!("{} and the server differ in file {}: two histories (fork)", mark.node, mark.applied.file);
            return Ok(Some(Turned::plain(RefusalCode::Fork, text)));
        }
        shared.sessions().set_mark(&mark)?;
        crash::at(CrashPoint::SessionMarked);
        Ok(None)
    })
}
