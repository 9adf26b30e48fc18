//! What the person at the keyboard can do about an error: the one file that maps typed errors to hints and exit codes.
//!
//! The layers below say what happened and to which file, row or node; only here is it known which command mends it.

use crate::base::disk::DiskError;
use crate::base::ids::IdError;
use crate::cds::CdsError;
use crate::cli::config::ConfigError;
use crate::cli::confirm::NobodyToAsk;
use crate::cli::exit::Exit;
use crate::client::apply::ApplyError;
use crate::client::folder::FolderError;
use crate::client::init::InitError;
use crate::client::local_applier::ApplyFault;
use crate::client::report::ExchangeError;
use crate::client::status::ClientStatusError;
use crate::docking::error::DockingError;
use crate::docking::room::NoRoom;
use crate::server::deploy::DeployError;
use crate::server::door::DoorError;
use crate::server::explain::ExplainError;
use crate::server::identity::IdentityError;
use crate::server::merger::MergerError;
use crate::server::merger::RuleError;
use crate::server::messages::MessageError;
use crate::server::nodes::NodeError;
use crate::server::pass::ServeError;
use crate::server::router::RouterError;
use crate::server::status::StatusError;
use crate::server::syncmgr::SyncError;
use crate::server::trail::TrailError;
use crate::server::txnproc::TxnProcError;
use crate::server::verify::VerifyError;
use crate::session::message::RefusalCode;
use crate::store::conflicts::ResolveRefused;
use crate::store::local::LocalError;
use crate::store::passing::is_out_of_room;
use crate::store::sqlite::StoreError;
use crate::transport::carrier::CarrierError;
use crate::transport::letters::MailError;
use crate::transport::peer::DialError;
use crate::transport::ssh::SshError;
use crate::transport::tcp::TcpError;
use crate::trust::token::TokenError;
use std::error::Error;

type Cause<'a> = &'a (dyn Error + 'static);

/// Returns the hint for the first cause that has one.
pub fn of(error: &anyhow::Error) -> Option<String> {
    causes(error).into_iter().find_map(hint)
}

/// Returns the exit code that the error ends the program with.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    if causes(error).into_iter().any(is_passing) { Exit::TryAgain } else { Exit::Failed }
}

/// The chain of causes, with those that a wrapper speaks for and therefore leaves out of its own chain.
fn causes(error: &anyhow::Error) -> Vec<Cause<'_>> {
    let mut all = Vec::new();
    for cause in error.chain() {
        let mut next = Some(cause);
        while let Some(cause) = next {
            all.push(cause);
            next = spoken_for(cause);
        }
    }
    all
}

/// Returns the error that this one only passes on.
fn spoken_for(cause: Cause<'_>) -> Option<Cause<'_>> {
    macro_rules! inner {
        ($($wrapper:ident: $($variant:ident),+;)+) => {
            $(match cause.downcast_ref::<$wrapper>() {
                $(Some($wrapper::$variant(inner)) => return Some(inner),)+
                _ => {}
            })+
        };
    }
    inner! {
        StatusError: Store, Docking, Sessions;
        ExplainError: Store, Node, Docking, Sessions, Trail;
        TrailError: Docking, Cds, Sessions;
        VerifyError: Store, Node, Docking, Sessions, Trail;
        NodeError: Store, Name, Identity;
        IdentityError: Disk, Store;
        DialError: Tcp, Disk, Ssh;
        SshError: Disk;
        MessageError: Store;
        RuleError: Store;
        DeployError: Store, Cds, TxnProc;
        ServeError: TxnProc, Router, Extract, Merger, Sync, Node, Store, Identity;
        MergerError: Store, Disk, Docking, Sessions, Node;
        SyncError: Tcp, Sessions, Door;
        DoorError: Disk;
        TxnProcError: Store, Cds, Docking, Disk;
        RouterError: Docking, Disk;
        DockingError: Disk, Content;
        ClientStatusError: Local, Folder;
        InitError: Exchange, Disk, Install;
        ExchangeError: Folder, Disk, Dial, Mail;
        MailError: Carrier;
        CarrierError: Disk, Ssh;
        FolderError: Disk;
        ApplyFault: Apply, Local;
        ApplyError: Local, Disk;
    }
    None
}

/// Returns whether the same command may succeed later without anybody doing anything.
fn is_passing(cause: Cause<'_>) -> bool {
    cause.downcast_ref::<StoreError>().is_some_and(StoreError::is_busy)
        || cause.downcast_ref::<DockingError>().is_some_and(|error| matches!(error, DockingError::InUse { .. }))
        || cause.downcast_ref::<DeployError>().is_some_and(|error| matches!(error, DeployError::StoreLost { .. }))
        || cause.downcast_ref::<LocalError>().is_some_and(|error| matches!(error, LocalError::Busy { .. }))
        || cause.downcast_ref::<ApplyFault>().is_some_and(|error| matches!(error, ApplyFault::Locked))
        || is_out_of_room(cause)
        || cause.downcast_ref::<ServeError>().is_some_and(ServeError::is_transient)
        || cause.downcast_ref::<ExchangeError>().is_some_and(ExchangeError::is_passing)
        || cause.downcast_ref::<InitError>().is_some_and(InitError::is_passing)
        || cause.downcast_ref::<FolderError>().is_some_and(FolderError::is_passing)
        || cause.downcast_ref::<DoorError>().is_some_and(|error| matches!(error, DoorError::Enter { .. }))
}

fn hint(cause: Cause<'_>) -> Option<String> {
    macro_rules! first {
        ($($kind:ident: $hint:ident;)+) => { $(if let Some(error) = cause.downcast_ref::<$kind>() { return $hint(error); })+ };
    }
    first! {
        ConfigError: config; StoreError: store; NodeError: node; DeployError: deploy; CdsError: data_store; LocalError: local; DockingError: docking;
        ExplainError: explain; DiskError: disk; FolderError: folder; ExchangeError: exchange; InitError: init; TcpError: tcp; DialError: dial; SshError: ssh; DoorError: door; IdentityError: identity; TokenError: token; IdError: id; CarrierError: carrier;
        MessageError: message; RuleError: ruling; ResolveRefused: conflict;
    }
    if is_out_of_room(cause) {
        return some(MAKE_ROOM);
    }
    if cause.is::<NoRoom>() {
        return some(MAKE_ROOM);
    }
    cause.is::<NobodyToAsk>().then(|| "--yes answers beforehand".to_owned())
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn config(error: &ConfigError) -> Option<String> {
    match error {
        ConfigError::Missing { .. } => some("--config or DOCKMASTER_CONFIG names it; leave both out to use ./dockmaster.toml"),
        ConfigError::Nowhere => some("begin with: dockmaster init DATABASE (or name a file: --config FILE)"),
        ConfigError::Read { .. } => some("it must be a readable UTF-8 text file"),
        ConfigError::IncludesNothing { .. } => some("patterns are relative to the main file; `*` stands for any characters of a file name"),
        ConfigError::Wrong { .. } => None,
        ConfigError::NoDatabase { .. } => some("add:  [server]  and below it  database = \"hq.db\""),
    }
}

/// What helps when log and docking root do not belong together.
const BEGIN_ANEW: &str = "nothing was read or sent; put the files back that were there, or see what else can be done: dockmaster recover";

fn store(error: &StoreError) -> Option<String> {
    match error {
        StoreError::NotInstalled { .. } => some("dockmaster deploy"),
        StoreError::NotTheSameDatabase { .. } | StoreError::LogReset { .. } | StoreError::LogGap { .. } => some(BEGIN_ANEW),
        StoreError::Encoding { .. } => some("copy the rows into a new database: SQLite cannot change the encoding of an existing one"),
        StoreError::Journal { .. } => {
            some("close the programs that use it, or put it on a local disk: WAL does not work on network shares")
        }
        StoreError::Reserved { .. } => some("rename it"),
        StoreError::UnknownNode { .. } => some("dockmaster node list shows those that there are"),
        error if error.is_busy() => some("another program holds a write transaction open; try again when it has committed"),
        _ => None,
    }
}

fn node(error: &NodeError) -> Option<String> {
    match error {
        NodeError::Exists { name } => Some(format!("to change it: dockmaster node set {name} --set NAME=VALUE")),
        NodeError::Unknown { .. } => some("dockmaster node list shows those that there are"),
        NodeError::Import { .. } | NodeError::CsvHeading { .. } | NodeError::Csv { .. } => {
            some("no node was added; mend the file and run it again")
        }
        _ => None,
    }
}

fn deploy(error: &DeployError) -> Option<String> {
    match error {
        DeployError::OtherServer { .. } => some("name another docking root: [server] root = \"..\", or move this one away"),
        DeployError::StoreLost { .. } => some("a service that has just started makes it: try again; else stop the service and deploy then"),
        DeployError::Model { .. } => {
            some("keep the model, or give these nodes another: dockmaster node set NODE --model NAME, or --no-model")
        }
        DeployError::Take(_) => some("run dockmaster deploy again, or start dockmaster serve"),
        _ => None,
    }
}

fn data_store(error: &CdsError) -> Option<String> {
    match error {
        CdsError::Missing { .. } => some("dockmaster deploy fills one"),
        CdsError::State { .. } | CdsError::Inconsistent { .. } => some(BEGIN_ANEW),
        _ => None,
    }
}

fn explain(error: &ExplainError) -> Option<String> {
    match error {
        ExplainError::NoDataStore { .. } => some("dockmaster deploy fills one"),
        _ => None,
    }
}

fn message(error: &MessageError) -> Option<String> {
    match error {
        MessageError::Unknown { name } => Some(format!("dockmaster messages list --node {} shows those that there are", name.node)),
        MessageError::Several { .. } => some("name it whole: NODE:UNIT:INSTALL"),
        MessageError::File { .. } => some("look at the disk; dockmaster dx verify FILE tells more"),
        MessageError::Store(_) => None,
    }
}

fn ruling(error: &RuleError) -> Option<String> {
    match error {
        RuleError::Refused { node, .. } => Some(format!("dockmaster messages list --node {node} shows what is in which status")),
        RuleError::File { .. } => some("its node sends it again, and then it can be decided on"),
        RuleError::Store(_) => None,
    }
}

fn conflict(error: &ResolveRefused) -> Option<String> {
    match error {
        ResolveRefused::Unknown(_) | ResolveRefused::NotOpen { .. } => {
            some("dockmaster conflicts list --open shows those that wait for a person")
        }
        ResolveRefused::Changed { .. } => some("--take server keeps it as it is; --even-if-changed writes over it"),
        _ => None,
    }
}

fn local(error: &LocalError) -> Option<String> {
    match error {
        LocalError::Busy { .. } => some("another program holds a write transaction open; try again when it has committed"),
        LocalError::Damaged { .. } => some("fetch it anew: remote-sync init --replace --renew"),
        _ => None,
    }
}

fn docking(error: &DockingError) -> Option<String> {
    match error {
        DockingError::InUse { .. } => some("use `dockmaster status`, or stop it first"),
        DockingError::NoLedger { .. } => {
            some("`dockmaster run` or `dockmaster serve` puts it back; the streams of all nodes begin anew, in band")
        }
        _ => None,
    }
}

/// What helps against a full disk.
const MAKE_ROOM: &str = "make room; work resumes by itself, nothing is lost";

fn disk(error: &DiskError) -> Option<String> {
    match error {
        DiskError::Readable { path, .. } => Some(format!("chmod 600 {}; if others could read it, the secret may be out", path.display())),
        DiskError::Exists { .. } => some("it is yours: move it away first, or name another file"),
        DiskError::Poisoned { .. } => some("look at the disk first, then start again; nothing is lost"),
        error if error.is_no_space() => some(MAKE_ROOM),
        _ => None,
    }
}

fn folder(error: &FolderError) -> Option<String> {
    match error {
        FolderError::Busy { .. } => some("let it end, or stop it; `remote-sync status` works meanwhile"),
        FolderError::NoConfig { .. } => some("begin with: remote-sync init SERVER --token TOKEN DB"),
        _ => None,
    }
}

fn exchange(error: &ExchangeError) -> Option<String> {
    match error {
        ExchangeError::Refused { node, refusal } => refused(node, refusal.code),
        ExchangeError::WrongServer { .. } | ExchangeError::WrongNode { .. } => {
            some("nothing was exchanged; check server and node in remote-sync.toml, in the folder DB.sync")
        }
        ExchangeError::Damaged(_) => some("look at the disk here and at the server's: dockmaster dx verify"),
        ExchangeError::Unavailable { .. } => {
            some("on the server: dockmaster status; a new extract always helps: remote-sync init --replace --renew")
        }
        ExchangeError::Lost(_) => some("what came is kept; the next sync goes on there"),
        _ => None,
    }
}

fn refused(node: &str, code: RefusalCode) -> Option<String> {
    match code {
        RefusalCode::Node => Some(format!("on the server: dockmaster node show {node}")),
        RefusalCode::Protocol | RefusalCode::DxFormat => {
            some("one of the two programs is too old: compare `remote-sync --version` and `dockmaster --version`")
        }
        RefusalCode::Incarnation | RefusalCode::Fork | RefusalCode::Ahead | RefusalCode::Epoch | RefusalCode::Stale => {
            some("this copy cannot go on; fetch the database anew: remote-sync init --replace --renew")
        }
        RefusalCode::Copied => Some(format!(
            "what was changed here stays; on the server: dockmaster node show {node}, then dockmaster node token {node} for the one that shall go on (or node clear {node}, and it is the next that calls)"
        )),
        RefusalCode::Initialised => some("one node is one local database; if the other copy is gone: remote-sync init --renew"),
        RefusalCode::NotInitialised => some("remote-sync init SERVER DB --replace; `dockmaster node token NAME` lets a new machine in"),
        RefusalCode::WrongServer => some("nothing was exchanged; check the address in remote-sync.toml, in the folder DB.sync"),
        RefusalCode::Busy => Some(format!(
            "another session of {node} goes on, perhaps `remote-sync watch` on another copy; on the server: dockmaster node show {node}"
        )),
        RefusalCode::Internal => some("the log of dockmaster serve tells more"),
        _ => None,
    }
}

fn init(error: &InitError) -> Option<String> {
    match error {
        InitError::Exists(_) => some("--replace keeps the old one beside it and puts the new one in its place"),
        InitError::Waiting { .. } => some("let the carrier be where `dockmaster serve` looks, then run the same command here again"),
        InitError::NoToken(_) => {
            some("remote-sync init SERVER --token TOKEN DB; `dockmaster node add` and `dockmaster node token` give tokens")
        }
        InitError::Damaged(_) => some("look at the disk here and at the server's, then run it again"),
        _ => None,
    }
}

fn carrier(error: &CarrierError) -> Option<String> {
    match error {
        CarrierError::NoMarker { .. } => {
            some("bring it (plug it in, mount it), or make it one on the server: dockmaster carrier prepare NAME")
        }
        CarrierError::Marker { .. } | CarrierError::Foreign { .. } => {
            some("name the place that the server prepared: dockmaster carrier list, on the server, shows its carriers")
        }
        CarrierError::Address(_) => some("a folder, or sftp://USER@HOST:PORT/PATH"),
        _ => None,
    }
}

fn dial(error: &DialError) -> Option<String> {
    match error {
        DialError::NoIdentity(_) => {
            some("begin with: remote-sync init SERVER --token TOKEN DB; `dockmaster node token NAME` gives a token")
        }
        DialError::Identity { .. } => {
            some("let this machine in anew: dockmaster node token NAME, then remote-sync init --token TOKEN --replace")
        }
        DialError::Stranger { .. } => some(
            "nothing was exchanged. Is the address right? Does something between here and there open TLS? After `deploy --new-identity` a new token is needed",
        ),
        DialError::Refused { .. } => some(
            "a token lets one machine in, within a day; another one: dockmaster node token NAME. Why it was refused is in the server's log",
        ),
        DialError::Tls { .. } => some("is that a Dockmaster server, and of a version that fits?"),
        _ => None,
    }
}

fn ssh(error: &SshError) -> Option<String> {
    match error {
        SshError::HostChanged { host, known_hosts, .. } => Some(format!(
            "nothing was exchanged. Compare with the server's administrator; what is known: ssh-keygen -l -F '{host}' -f {}",
            known_hosts.display()
        )),
        SshError::HostUnknown { host, known_hosts, .. } => {
            let (host, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
                Some((host, port)) => (host, format!("-p {port} ")),
                None => (host.as_str(), String::new()),
            };
            Some(format!(
                "ask the server's administrator whether that is its fingerprint; then: ssh-keyscan {port}{host} >> {}",
                known_hosts.display()
            ))
        }
        SshError::Denied { .. } => {
            some("on the server: does authorized_keys of that account have a line for this key? dockmaster session --help")
        }
        SshError::NotOpened { .. } => {
            some("on the server: its line of authorized_keys, see dockmaster session --help; and dockmaster serve has to run")
        }
        _ => None,
    }
}

fn door(error: &DoorError) -> Option<String> {
    match error {
        DoorError::Enter { .. } => {
            some("does dockmaster serve run on this docking root, as this account? Its log says if the root can have no door")
        }
        DoorError::Open { .. } | DoorError::Disk(_) => None,
    }
}

fn identity(error: &IdentityError) -> Option<String> {
    match error {
        IdentityError::Missing(_) => some("dockmaster deploy"),
        IdentityError::Lost { .. } | IdentityError::Other { .. } | IdentityError::Damaged { .. } => {
            some("put it back from a backup; if there is none: dockmaster deploy --new-identity, and a new token for each node")
        }
        _ => None,
    }
}

fn token(error: &TokenError) -> Option<String> {
    match error {
        TokenError::Beginning => None,
        _ => some("copy it once more, or ask for another: dockmaster node token NAME"),
    }
}

fn tcp(error: &TcpError) -> Option<String> {
    match error {
        TcpError::Connect { .. } => some("does dockmaster serve run there, and on that port? The next try may find it"),
        TcpError::Listen { .. } => some("another program may use the port; choose one: [server] listen = \"127.0.0.1:PORT\""),
        _ => None,
    }
}

fn id(error: &IdError) -> Option<String> {
    if error.what == "node name" { some("for example SHOP-01") } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn an_error_behind_wrappers_keeps_its_hint_and_its_exit_code() {
        let in_use = DockingError::InUse { root: PathBuf::from("docking"), holder: "process 1".into() };
        let error = anyhow::Error::from(ServeError::from(RouterError::from(in_use)));
        assert!(of(&error).unwrap().contains("dockmaster status"));
        assert_eq!(exit_of(&error), Exit::TryAgain);
        let missing = anyhow::Error::from(InitError::from(ExchangeError::from(FolderError::NoConfig { path: "x".into() })));
        assert!(of(&missing).unwrap().contains("remote-sync init"));
        assert_eq!(exit_of(&missing), Exit::Failed);
        let inside = anyhow::Error::from(StatusError::from(StoreError::NotInstalled { path: "hq.db".into() })).context("look");
        assert_eq!(of(&inside).as_deref(), Some("dockmaster deploy"));
    }
}
