//! The commands of `remote-sync`.

use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{Output, count, some, table};
use crate::client::status::{ClientStatus, pending as client_pending, status as client_status};
use crate::store::local_units::PendingUnit;
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
            "pending_units": status.pending.pending, "sent_units": status.pending.sent, "held_units": status.pending.held,
            "suspended_units": status.pending.suspended, "pending_rows": status.pending.changes,
        }))?;
    } else {
        output.line(text(&status))?;
    }
    Ok(if status.state.stopped.is_some() { Exit::NeedsPerson } else { Exit::Done })
}

/// Most changed rows that are listed for people.
const PENDING_ROWS_SHOWN: u64 = 1_000;

/// Lists local changes that are not finished; exit code 1 if the server holds some of them.
pub(crate) fn pending(args: &DatabaseArgs, output: Output) -> Outcome {
    let limit = if output.is_json() { u64::MAX } else { PENDING_ROWS_SHOWN };
    let list = client_pending(&args.database, limit)?;
    let rows_of = |unit| list.changes.iter().filter(move |change| change.unit == unit);
    if output.is_json() {
        let units = list.units.iter().map(|unit| {
            let head = &unit.head;
            let rows = rows_of(head.number).map(|row| json!({ "table": row.table, "key": row.key, "op": row.op }));
            json!({
                "unit": head.number.0, "state": state_of(unit), "label": head.label, "cut_at": head.cut_at_micros, "file": unit.file,
                "suspended": unit.suspended, "reason": unit.reason, "rows": rows.collect::<Vec<_>>(),
            })
        });
        output.json(json!({ "units": units.collect::<Vec<_>>() }))?;
    } else if list.units.is_empty() {
        output.line("No local changes are pending.")?;
    } else {
        let mut rows = Vec::new();
        for unit in &list.units {
            let label = unit.head.label.clone().unwrap_or_default();
            for row in rows_of(unit.head.number) {
                let cells = [
                    unit.head.number.to_string(),
                    state_of(unit).to_owned(),
                    label.clone(),
                    row.table.clone(),
                    row.key.clone(),
                    row.op.clone(),
                ];
                rows.push(cells.to_vec());
            }
        }
        output.line(table(&["unit", "state", "label", "table", "key", "op"], rows, &[0]))?;
        for (unit, why) in list.units.iter().filter_map(|unit| Some((unit.head.number, unit.suspended.as_ref().or(unit.reason.as_ref())?)))
        {
            output.line(format!("! unit {unit}: {why}"))?;
        }
        if list.counts.changes > list.changes.len() as u64 {
            output.line(format!("... and {} more", some(list.counts.changes - list.changes.len() as u64, "row", "rows")))?;
        }
    }
    Ok(if list.counts.held > 0 { Exit::NeedsPerson } else { Exit::Done })
}

fn state_of(unit: &PendingUnit) -> &str {
    if unit.suspended.is_some() { "suspended" } else { &unit.state }
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
    if status.pending.units() > 0 {
        let pending = &status.pending;
        let parts =
            [(pending.pending, "to send"), (pending.sent, "sent"), (pending.held, "held by the server"), (pending.suspended, "not shown")];
        let parts: Vec<String> = parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        lines.push(format!(
            "local changes: {} in {} ({}): remote-sync pending {}",
            some(pending.changes, "row", "rows"),
            some(pending.units(), "unit", "units"),
            parts.join(", "),
            status.database.display()
        ));
    }
    if !status.quarantine.is_empty() {
        lines.push(format!("put aside: {}", status.quarantine.join(", ")));
    }
    if let Some(reason) = &state.stopped {
        lines.push(format!("! {reason}"));
    }
    lines.join("\n")
}
