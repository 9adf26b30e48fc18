//! The commands of `remote-sync`.

use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{Output, count, some};
use crate::client::status::{ClientStatus, status as client_status};
use serde_json::json;
use std::path::PathBuf;

/// The handle of most commands.
#[derive(Debug, clap::Args)]
pub(crate) struct DatabaseArgs {
    /// The local database
    #[arg(value_name = "DB")]
    pub(crate) database: PathBuf,
}

/// Shows how far a local database is; exit code 1 if something waits for a person.
pub(crate) fn status(args: &DatabaseArgs, output: Output) -> Outcome {
    let status = client_status(&args.database)?;
    if output.is_json() {
        output.json(json!({
            "database": status.database.display().to_string(), "node": status.state.node.as_str(), "server": status.state.server_name,
            "address": status.config.server, "incarnation": status.state.incarnation.0, "revision": status.state.revision.0,
            "applied_unit": status.state.applied_unit.0, "applied_file": status.state.applied_file.0, "waiting_files": status.waiting,
            "held_by": status.held_by.map(|file| file.0), "stopped": status.state.stopped, "quarantine": status.quarantine,
        }))?;
    } else {
        output.line(text(&status))?;
    }
    Ok(if status.state.stopped.is_some() { Exit::NeedsPerson } else { Exit::Done })
}

fn text(status: &ClientStatus) -> String {
    let state = &status.state;
    let well = if state.stopped.is_some() { "stopped" } else { "ok" };
    let mut lines = vec![format!(
        "{} {well}   server {} at {}   txn {}   file {}   revision {}",
        state.node,
        state.server_name,
        status.config.server,
        count(state.applied_unit.0),
        state.applied_file.0,
        state.revision
    )];
    match (status.waiting, status.held_by) {
        (0, _) => {}
        (files, None) => lines.push(format!(
            "{} received and not applied: remote-sync sync {} --only apply",
            some(files, "file", "files"),
            status.database.display()
        )),
        (1, Some(missing)) => lines.push(format!("1 file waits for {missing}, which the next sync fetches")),
        (files, Some(missing)) => lines.push(format!("{files} files wait for {missing}, which the next sync fetches")),
    }
    if !status.quarantine.is_empty() {
        lines.push(format!("put aside: {}", status.quarantine.join(", ")));
    }
    if let Some(reason) = &state.stopped {
        lines.push(format!("! {reason}"));
    }
    lines.join("\n")
}
