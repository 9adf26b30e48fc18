//! What the person at the keyboard can do about an error: the one file that maps typed errors to hints and exit codes.
//!
//! The layers below say what happened and to which file, row or node; only here is it known which command mends it.

use crate::base::disk::DiskError;
use crate::base::ids::IdError;
use crate::cli::config::ConfigError;
use crate::cli::exit::Exit;
use crate::docking::error::DockingError;
use crate::server::nodes::NodeError;
use crate::store::local::LocalError;
use crate::store::sqlite::StoreError;
use std::error::Error;

/// Returns the hint for the first error of the chain that has one.
pub fn of(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(hint)
}

fn hint(cause: &(dyn Error + 'static)) -> Option<String> {
    None.or_else(|| cause.downcast_ref::<ConfigError>().and_then(config))
        .or_else(|| cause.downcast_ref::<StoreError>().and_then(store))
        .or_else(|| cause.downcast_ref::<NodeError>().and_then(node))
        .or_else(|| cause.downcast_ref::<LocalError>().and_then(local))
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
