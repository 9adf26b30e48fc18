//! What the person at the keyboard can do about an error: the one file that maps typed errors to hints and exit codes.
//!
//! The layers below say what happened and to which file, row or node; only here is it known which command mends it.

use crate::base::disk::DiskError;
use crate::base::ids::IdError;
use crate::cli::config::ConfigError;
use crate::cli::confirm::NobodyToAsk;
use crate::cli::exit::Exit;
use crate::client::report::ExchangeError;
use crate::client::folder::FolderError;
use crate::client::init::InitError;
use crate::client::local_applier::ApplyFault;
use crate::docking::error::DockingError;
use crate::server::deploy::DeployError;
use crate::server::nodes::NodeError;
use crate::session::message::RefusalCode;
use crate::store::local::LocalError;
use crate::store::sqlite::StoreError;
use std::error::Error;

/// Returns the hint for the first error of the chain that has one.
pub fn of(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(hint)
}

fn hint(cause: &(dyn Error + 'static)) -> Option<String> {
    cause
        .downcast_ref::<ConfigError>()
        .and_then(config)
        .or_else(|| cause.is::<NobodyToAsk>().then(|| "--yes answers beforehand".to_owned()))
        .or_else(|| cause.downcast_ref::<StoreError>().and_then(store))
        .or_else(|| cause.downcast_ref::<NodeError>().and_then(node))
        .or_else(|| cause.downcast_ref::<LocalError>().and_then(local))
        .or_else(|| cause.downcast_ref::<DeployError>().and_then(deploy))
        .or_else(|| cause.downcast_ref::<ExchangeError>().and_then(exchange))
        .or_else(|| cause.downcast_ref::<InitError>().and_then(init))
        .or_else(|| cause.downcast_ref::<FolderError>().and_then(folder))
        .or_else(|| cause.downcast_ref::<DockingError>().and_then(docking))
        .or_else(|| cause.downcast_ref::<DiskError>().and_then(disk))
        .or_else(|| cause.downcast_ref::<IdError>().and_then(id))
}

/// Returns the exit code that the error ends the program with.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    if error.chain().any(is_passing) { Exit::TryAgain } else { Exit::Failed }
}

/// Returns whether the same command may succeed later without anybody doing anything.
fn is_passing(cause: &(dyn Error + 'static)) -> bool {
    cause.downcast_ref::<StoreError>().is_some_and(StoreError::is_busy)
        || matches!(cause.downcast_ref::<DockingError>(), Some(DockingError::InUse { .. }))
        || matches!(cause.downcast_ref::<LocalError>(), Some(LocalError::Busy { .. }))
        || cause.downcast_ref::<DiskError>().is_some_and(DiskError::is_no_space)
        || cause.downcast_ref::<ExchangeError>().is_some_and(ExchangeError::is_passing)
        || cause.downcast_ref::<InitError>().is_some_and(InitError::is_passing)
        || cause.downcast_ref::<FolderError>().is_some_and(FolderError::is_passing)
        || matches!(cause.downcast_ref::<ApplyFault>(), Some(ApplyFault::Locked))
}

fn deploy(error: &DeployError) -> Option<String> {
    let text = match error {
        DeployError::ActiveNodes { .. } => {
            "for now: dockmaster node disable each of them, dockmaster deploy, dockmaster node enable, and on the node remote-sync init --replace"
        }
        DeployError::OtherServer { .. } => "name another root under [server], or move this folder away",
        _ => return None,
    };
    Some(text.to_owned())
}

fn exchange(error: &ExchangeError) -> Option<String> {
    let text = match error {
        ExchangeError::Refused { node, refusal } => match refusal.code {
            RefusalCode::Node => return Some(format!("on the server: dockmaster node show {node}")),
            RefusalCode::NotInitialised => "fetch its extract: remote-sync init SERVER --node NAME DB (--replace where there is an old one)",
            RefusalCode::Initialised => "remote-sync init --renew asks for a new extract, and the other database is refused from then on",
            RefusalCode::Incarnation => "this copy was replaced by a newer one; to replace it in turn: remote-sync init --renew --replace",
            RefusalCode::Fork | RefusalCode::Ahead => "two copies of one node, or an old backup: remote-sync init --renew --replace makes this one whole",
            RefusalCode::Epoch => "the server was restored: remote-sync init --renew --replace",
            RefusalCode::WrongServer => "nothing was exchanged; check the address in remote-sync.toml beside the database",
            RefusalCode::Busy | RefusalCode::Full | RefusalCode::Stopping => "try again in a moment",
            _ => return None,
        },
        ExchangeError::WrongServer { .. } | ExchangeError::WrongNode { .. } => "check remote-sync.toml beside the database",
        ExchangeError::Tcp(_) => "is the service running (dockmaster serve), and the address right?",
        ExchangeError::Damaged(_) => "look at the disks and the line; nothing was applied",
        _ => return None,
    };
    Some(text.to_owned())
}

fn init(error: &InitError) -> Option<String> {
    match error {
        InitError::Exists(_) => Some("--replace puts the new database in its place and keeps the old one beside it".to_owned()),
        InitError::Damaged(_) => Some("look at the disks and the line, then run it again".to_owned()),
        _ => None,
    }
}

fn folder(error: &FolderError) -> Option<String> {
    match error {
        FolderError::NoConfig { .. } => Some("begin with: remote-sync init SERVER --node NAME DB".to_owned()),
        FolderError::Busy { .. } => Some("another remote-sync works on this database; try again when it is done".to_owned()),
        _ => None,
    }
}

fn config(error: &ConfigError) -> Option<String> {
    let text = match error {
        ConfigError::Missing { .. } => "--config or DOCKMASTER_CONFIG names it; leave both out to use ./dockmaster.toml",
        ConfigError::Nowhere => "begin with: dockmaster init DATABASE (or name a file: --config FILE)",
        ConfigError::Read { .. } => "it must be a readable UTF-8 text file",
        ConfigError::IncludesNothing { .. } => "patterns are relative to the main file; `*` stands for any characters of a file name",
        ConfigError::Wrong { .. } => return None,
        ConfigError::NoDatabase { .. } => "add:  [server]  and below it  database = \"hq.db\"",
    };
    Some(text.to_owned())
}

fn store(error: &StoreError) -> Option<String> {
    let text = match error {
        StoreError::NotInstalled { .. } => "dockmaster deploy",
        StoreError::NotTheSameDatabase { .. } => {
            "nothing was read or sent; put the database back that was read last, or begin anew: move the docking root away, dockmaster deploy, and extract the nodes again"
        }
        StoreError::LogReset { .. } | StoreError::LogGap { .. } => {
            "nothing was read or sent; the log is not to be edited: move the docking root away, dockmaster deploy, and extract the nodes again"
        }
        StoreError::Encoding { .. } => "copy the rows into a new database: SQLite cannot change the encoding of an existing one",
        StoreError::Journal { .. } => "close the programs that use it, or put it on a local disk: WAL does not work on network shares",
        StoreError::Reserved { .. } => "rename it",
        StoreError::UnknownNode { .. } => "dockmaster node list shows those that there are",
        error if error.is_busy() => "another program holds a write transaction open; try again when it has committed",
        _ => return None,
    };
    Some(text.to_owned())
}

fn node(error: &NodeError) -> Option<String> {
    let text = match error {
        NodeError::Exists { name } => return Some(format!("to change it: dockmaster node set {name} --set NAME=VALUE")),
        NodeError::Unknown { .. } => "dockmaster node list shows those that there are",
        NodeError::Import { .. } | NodeError::CsvHeading { .. } | NodeError::Csv { .. } => {
            "no node was added; mend the file and run it again"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

fn local(error: &LocalError) -> Option<String> {
    let text = match error {
        LocalError::Busy { .. } => "another program holds a write transaction open; try again when it has committed",
        LocalError::Damaged { .. } => "put it aside and fetch it anew: remote-sync init",
        _ => return None,
    };
    Some(text.to_owned())
}

fn docking(error: &DockingError) -> Option<String> {
    match error {
        DockingError::InUse { .. } => Some("use `dockmaster status`, or stop it first".to_owned()),
        _ => None,
    }
}

fn disk(error: &DiskError) -> Option<String> {
    match error {
        DiskError::Exists { .. } => Some("it is yours: move it away first, or name another file".to_owned()),
        DiskError::Poisoned { .. } => Some("look at the disk first, then start again; nothing is lost".to_owned()),
        error if error.is_no_space() => Some("make room; work resumes by itself, nothing is lost".to_owned()),
        _ => None,
    }
}

fn id(error: &IdError) -> Option<String> {
    (error.what == "node name").then(|| "for example SHOP-01".to_owned())
}
