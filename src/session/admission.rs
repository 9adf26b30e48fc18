//! Who may come in: one pure decision over a `Hello` and what the server knows.
//!
//! Order matters. What has nothing to do with a node comes first (versions, server, epoch); then the node, with one answer for
//! unknown, disabled and badly spelt (T18: the details go to the server's log, never over the wire); only then what concerns that
//! node's copy (incarnation, history, other sessions).

use crate::base::ids::{ContentHash, Epoch, FileNo, Incarnation, InstallId, NodeName, Revision, ServerId, SyncToken};
use crate::model::node::{Node, NodeState};
use crate::session::message::{AppliedTo, Hello, Mode, PROTOCOL_MAX, Refusal, RefusalCode, Versions, Welcome, feature};

/// Who this server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerIdentity {
    /// Identity of the server database.
    pub server_id: ServerId,
    /// Its name, for people.
    pub name: String,
    /// Its epoch.
    pub epoch: Epoch,
    /// Definition in force.
    pub revision: Revision,
}

/// What the ledger and the session history say of the node's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// Last file routed to the node in its current incarnation; 0 = none.
    pub last_file: FileNo,
    /// Content hash of the file that the node names as applied last, if the ledger still knows that file.
    pub applied_hash: Option<ContentHash>,
    /// Local database that synchronised with this incarnation first, if any did.
    pub bound_install: Option<InstallId>,
    /// What that database had applied when it was seen last.
    pub last_applied: AppliedTo,
    /// Last file before the first one that the ledger still has of those that the node has not received; 0 = none is gone.
    pub purged_upto: FileNo,
}

/// An accepted `Hello`.
#[derive(Debug, Clone, PartialEq)]
pub struct Admitted {
    /// The node.
    pub node: Node,
    /// The answer.
    pub welcome: Welcome,
    /// Something odd that a person should know although the session goes on.
    pub remark: Option<String>,
}

/// A refused `Hello`: what the peer is told, and what only the server's log is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turned {
    /// For the peer.
    pub refusal: Refusal,
    /// For the log.
    pub detail: String,
    /// Whether a person must look (a fork, a node that is ahead).
    pub alert: bool,
}

impl Turned {
    /// Returns a refusal whose text is also its detail.
    pub fn plain(code: RefusalCode, text: impl Into<String>) -> Turned {
        let text = text.into();
        Turned { refusal: Refusal::new(code, text.clone()), detail: text, alert: false }
    }

    fn alert(code: RefusalCode, text: impl Into<String>) -> Turned {
        Turned { alert: true, ..Turned::plain(code, text) }
    }

    /// Returns the one answer for every node that may not come in (T18).
    pub fn node(detail: impl Into<String>) -> Turned {
        Turned { refusal: Refusal::new(RefusalCode::Node, NODE_TEXT), detail: detail.into(), alert: false }
    }
}

/// What a node is told that may not come in, whatever the reason.
pub const NODE_TEXT: &str = "unknown, disabled or wrong node";

/// First half: what can be judged without the node (versions, server, epoch). Returns the node name to look up, if it is one.
///
/// # Errors
/// The refusal.
pub fn screen(hello: &Hello, server: &ServerIdentity) -> Result<Option<NodeName>, Turned> {
    if let Some(theirs) = hello.protocol
        && theirs.common(Versions::PROTOCOL).is_none()
    {
        return Err(foreign(theirs));
    }
    if hello.dx.common(Versions::DX).is_none() {
        return Err(Turned::plain(
            RefusalCode::DxFormat,
            format!("the server writes .dx format {}, this node reads {}: upgrade the older program", Versions::DX, hello.dx),
        ));
    }
    if let Some(theirs) = hello.server_id
        && theirs != server.server_id
    {
        return Err(Turned::plain(
            RefusalCode::WrongServer,
            format!("this is server {} ({}), the local database belongs to server {theirs}", server.name, server.server_id),
        ));
    }
    // A node of an earlier epoch goes on: a restore was declared, and its stream leads over.
    if hello.mode != Mode::Init && hello.epoch > server.epoch {
        return Err(Turned::plain(
            RefusalCode::Epoch,
            format!("server {} is in epoch {}, the local database in epoch {}", server.name, server.epoch, hello.epoch),
        ));
    }
    Ok(hello.node.parse::<NodeName>().ok())
}

/// Returns the refusal of a peer that speaks no protocol version of ours.
pub fn foreign(theirs: Versions) -> Turned {
    Turned::plain(
        RefusalCode::Protocol,
        format!("the server speaks protocol {}, the peer {theirs}: upgrade the older program", Versions::PROTOCOL),
    )
}

/// Second half: whether this node may come in with this copy. `node` is what the server database knows under that name.
///
/// # Errors
/// The refusal.
pub fn admit(
    hello: &Hello,
    server: &ServerIdentity,
    node: Option<&Node>,
    facts: &NodeFacts,
    heartbeat_seconds: u16,
) -> Result<Admitted, Turned> {
    let Some(node) = node else {
        return Err(Turned::node(format!("node `{}` is not known", hello.node)));
    };
    if node.state == NodeState::Disabled {
        return Err(Turned::node(format!("node {} is disabled", node.name)));
    }
    let mut remark = None;
    if hello.mode != Mode::Init {
        if hello.server_id.is_none() {
            return Err(Turned::plain(RefusalCode::Violation, "a node that synchronises must name its server"));
        }
        if node.incarnation == Incarnation(0) {
            return Err(Turned::plain(RefusalCode::NotInitialised, format!("{} has no extract yet", node.name)));
        }
        if node.state == NodeState::Registered {
            return Err(Turned::plain(RefusalCode::NotInitialised, format!("{} was enabled again and needs a new extract", node.name)));
        }
        if node.state == NodeState::Stale {
            return Err(stale(&node.name, "away for too long, and what waited for it is gone"));
        }
        // A stream that began in band is for every database since the last extract.
        if !(node.extracted..=node.incarnation).contains(&hello.incarnation) {
            return Err(Turned::plain(
                RefusalCode::Incarnation,
                format!(
                    "{} was extracted again elsewhere: the server has extract {}, this local database extract {}",
                    node.name, node.incarnation, hello.incarnation
                ),
            ));
        }
        let is_current = hello.incarnation == node.incarnation;
        if is_current {
            check_history(hello, node, facts)?
        } else {
            check_install(hello, node, facts)?
        }
        if is_current && hello.received < facts.purged_upto {
            let (received, purged) = (hello.received.0, facts.purged_upto.0);
            let why = format!("received up to file {received}, but files up to {purged} are not kept any more: an old copy");
            return Err(stale(&node.name, &why));
        }
        if is_current && hello.applied.file < facts.last_applied.file {
            remark = Some(format!(
                "{} had applied file {} and now says {}: its database was restored from an older copy, or there are two",
                node.name, facts.last_applied.file, hello.applied.file
            ));
        }
    }
    let welcome = Welcome {
        protocol: hello.protocol.unwrap_or(Versions::PROTOCOL).common(Versions::PROTOCOL).unwrap_or(PROTOCOL_MAX),
        dx: hello.dx.common(Versions::DX).unwrap_or(Versions::DX.max),
        program: crate::session::message::program(),
        server_id: server.server_id,
        server_name: server.name.clone(),
        epoch: server.epoch,
        revision: server.revision,
        incarnation: node.incarnation,
        last_file: facts.last_file,
        heartbeat_seconds,
        features: feature::OURS.iter().copied().filter(|ours| hello.features.contains(ours)).collect(),
    };
    Ok(Admitted { node: node.clone(), welcome, remark })
}

/// Refuses a node whose next file is gone.
fn stale(node: &NodeName, why: &str) -> Turned {
    Turned::plain(RefusalCode::Stale, format!("{node}: {why}: fetch the database anew"))
}

/// The node's history must be a prefix of the server's.
fn check_history(hello: &Hello, node: &Node, facts: &NodeFacts) -> Result<(), Turned> {
    let applied = hello.applied;
    if hello.received < applied.file {
        return Err(Turned::plain(
            RefusalCode::Violation,
            format!("{} says received {} but applied {}", node.name, hello.received, applied.file),
        ));
    }
    check_install(hello, node, facts)?;
    if applied.file > facts.last_file {
        return Err(Turned::alert(
            RefusalCode::Ahead,
            format!("{} has applied file {}, but only {} were routed to it", node.name, applied.file, facts.last_file.0),
        ));
    }
    let known = if applied.file == FileNo(0) { Some(ContentHash::default()) } else { facts.applied_hash };
    if known.is_some_and(|known| known != applied.hash) {
        return Err(Turned::alert(
            RefusalCode::Fork,
            format!("{} and the server differ in file {}: two histories (fork)", node.name, applied.file),
        ));
    }
    Ok(())
}

/// One extract is for one local database.
fn check_install(hello: &Hello, node: &Node, facts: &NodeFacts) -> Result<(), Turned> {
    match facts.bound_install {
        Some(bound) if bound != hello.install_id => Err(Turned::alert(
            RefusalCode::Fork,
            format!("two copies of {}: extract {} was already in use by another local database", node.name, hello.incarnation),
        )),
        _ => Ok(()),
    }
}

/// What the token that a local database shows says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// It is the one that was here last, or the first of it.
    Right,
    /// It is an older state of it: restored from a copy, or one of two.
    Former,
    /// There are two of it.
    Copied,
}

/// Third part: what the token of a local database means (R34). Returns the one that it is given next, and what a person should know.
///
/// # Errors
/// The refusal.
pub fn token(node: &NodeName, shown: Shown, next: SyncToken) -> Result<(SyncToken, Option<String>), Turned> {
    match shown {
        Shown::Right => Ok((next, None)),
        Shown::Former => Ok((
            next,
            Some(format!(
                "{node} shows a former token: its database was restored from an older copy, or there are two of it; another such call is refused until `dockmaster node clear {node}`"
            )),
        )),
        Shown::Copied => Err(Turned::alert(
            RefusalCode::Copied,
            format!(
                "two copies of the local database of {node} go on beside each other; nothing of this one is taken until an administrator decides"
            ),
        )),
    }
}

/// Returns whether a node that is turned away as stale may begin anew in its stream instead: only the very database that was known.
pub fn may_begin_anew(hello: &Hello, node: &Node, facts: &NodeFacts) -> bool {
    hello.mode != Mode::Init
        && (node.extracted..=node.incarnation).contains(&hello.incarnation)
        && facts.bound_install == Some(hello.install_id)
}

/// Decides whether a node in mode init gets the extract that is there. `Ok(true)`: a new one must be made first.
///
/// # Errors
/// The current extract is in use and no new one was asked for.
pub fn needs_extract(node: &Node, facts: &NodeFacts, renew: bool) -> Result<bool, Turned> {
    if renew || matches!(node.state, NodeState::Registered | NodeState::Stale) || node.incarnation == Incarnation(0) {
        return Ok(true);
    }
    if facts.bound_install.is_some() {
        return Err(Turned::plain(
            RefusalCode::Initialised,
            format!("extract {} of {} is in use by a local database; a new extract ends that one", node.incarnation, node.name),
        ));
    }
    // Of a stream that began in band there is no extract.
    Ok(node.extracted != node.incarnation)
}
