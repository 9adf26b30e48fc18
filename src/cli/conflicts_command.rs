//! `remote-sync conflicts`: what was lost, refused, ignored or returned, and how to write it once more.

use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{Output, some, table};
use crate::model::value::{Value, display_key};
use crate::model::value_json::{from_json, to_json};
use crate::store::local::LocalDatabase;
use crate::store::local_conflicts::ConflictEntry;
use anyhow::{Context as _, bail};
use serde_json::{Value as Json, json};
use std::path::PathBuf;

/// Most entries that are listed.
const LISTED_MAX: u32 = 1_000;

/// Look at changes of this node that were lost or refused, and write them once more.
#[derive(Debug, clap::Args)]
pub(crate) struct ConflictsArgs {
    #[command(subcommand)]
    command: ConflictsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ConflictsCommand {
    /// List them, newest first
    List {
        /// The local database
        #[arg(value_name = "DB")]
        database: PathBuf,
        /// Only those that nobody has looked at
        #[arg(long)]
        new: bool,
    },
    /// Show one with all its values
    Show(OneArgs),
    /// Write the value of this node once more, as an ordinary change
    Resubmit {
        #[command(flatten)]
        one: OneArgs,
        /// Another value for a column: JSON, or text as it is
        #[arg(long, value_name = "COLUMN=VALUE")]
        set: Vec<String>,
    },
    /// Note that it was looked at
    Seen(OneArgs),
}

#[derive(Debug, clap::Args)]
struct OneArgs {
    /// The local database
    #[arg(value_name = "DB")]
    database: PathBuf,
    /// Its number in the list
    #[arg(value_name = "ID")]
    id: i64,
}

/// Runs the command; exit code 1 if the list has entries that nobody has looked at.
pub(crate) fn conflicts(args: &ConflictsArgs, output: Output) -> Outcome {
    match &args.command {
        ConflictsCommand::List { database, new } => {
            let found = open(database)?.conflicts(*new, LISTED_MAX)?;
            if output.is_json() {
                output.json(json!({ "conflicts": found.iter().map(to_object).collect::<Vec<_>>() }))?;
            } else if found.is_empty() {
                output.say("no conflicts")?;
            } else {
                output.line(listed(&found))?;
            }
            Ok(if found.iter().any(|entry| entry.state == "new") { Exit::NeedsPerson } else { Exit::Done })
        }
        ConflictsCommand::Show(one) => {
            let entry = one_of(one)?;
            if output.is_json() {
                output.json(to_object(&entry))?
            } else {
                output.line(shown(&entry))?
            }
            Ok(Exit::Done)
        }
        ConflictsCommand::Resubmit { one, set } => {
            let set = set.iter().map(|text| assignment(text)).collect::<anyhow::Result<Vec<_>>>()?;
            let written = open(&one.database)?.resubmit(one.id, &set)?;
            if output.is_json() {
                let values: serde_json::Map<String, Json> =
                    written.values.iter().map(|(name, value)| (name.clone(), to_json(value))).collect();
                let key: Vec<Json> = written.key.iter().map(to_json).collect();
                output.json(json!({ "table": written.table, "key": key, "op": written.op, "values": values }))?;
            } else {
                let key = display_key(&written.key);
                output.say(format!("{} of table {}, key {key}, is written; the next sync sends it", written.op, written.table))?;
            }
            Ok(Exit::Done)
        }
        ConflictsCommand::Seen(one) => {
            if !open(&one.database)?.conflict_seen(one.id)? {
                bail!("there is no conflict {}", one.id);
            }
            output.say(format!("conflict {} is noted as seen", one.id))?;
            Ok(Exit::Done)
        }
    }
}

fn open(database: &std::path::Path) -> anyhow::Result<LocalDatabase> {
    if !database.exists() {
        bail!("there is no {}", database.display());
    }
    LocalDatabase::open(database).with_context(|| format!("open {}", database.display()))
}

fn one_of(one: &OneArgs) -> anyhow::Result<ConflictEntry> {
    open(&one.database)?.conflict(one.id)?.with_context(|| format!("there is no conflict {}", one.id))
}

/// Reads `column=value`: JSON if it is some, otherwise text.
fn assignment(text: &str) -> anyhow::Result<(String, Value)> {
    let (name, value) = text.split_once('=').with_context(|| format!("--set takes COLUMN=VALUE, not `{text}`"))?;
    let value = match serde_json::from_str(value) {
        Ok(json) => from_json(&json).with_context(|| format!("--set {name}: `{value}` is no value of a column"))?,
        Err(_) => Value::text(value),
    };
    Ok((name.to_owned(), value))
}

fn value(value: &Option<Value>) -> String {
    value.as_ref().map_or_else(|| "-".to_owned(), Value::to_string)
}

fn listed(found: &[ConflictEntry]) -> String {
    let rows = found.iter().map(|entry| {
        let column = entry.column.clone().unwrap_or_else(|| "(row)".to_owned());
        let place = format!("{} {}", entry.table, display_key(&entry.key));
        let values = [value(&entry.client), value(&entry.server)];
        let [mine, server] = values.map(|text| crate::model::digest::shortened(text, 30));
        vec![entry.id.to_string(), entry.state.clone(), place, column, mine, server, entry.winner.clone(), entry.rule.clone()]
    });
    let text = table(&["id", "state", "row", "column", "mine", "server", "winner", "rule"], rows.collect(), &[0]);
    let new = found.iter().filter(|entry| entry.state == "new").count();
    format!("{text}\n{}, {new} new", some(found.len() as u64, "conflict", "conflicts"))
}

fn shown(entry: &ConflictEntry) -> String {
    let mut lines = vec![
        format!("conflict {} ({}), unit {}", entry.id, entry.state, entry.unit),
        format!("  table   {}   key {}   column {}", entry.table, display_key(&entry.key), entry.column.as_deref().unwrap_or("(row)")),
        format!("  known   {}", value(&entry.base)),
        format!("  server  {}", value(&entry.server)),
        format!("  mine    {}", value(&entry.client)),
        format!("  winner  {} by {}", entry.winner, entry.rule),
    ];
    lines.extend(entry.reason.as_ref().map(|reason| format!("  reason  {reason}")));
    lines.join("\n")
}

fn to_object(entry: &ConflictEntry) -> Json {
    let json = |value: &Option<Value>| value.as_ref().map(to_json);
    json!({
        "id": entry.id, "unit": entry.unit, "server_id": entry.server_id, "table": entry.table,
        "key": entry.key.iter().map(to_json).collect::<Vec<_>>(), "column": entry.column, "base": json(&entry.base),
        "server": json(&entry.server), "client": json(&entry.client), "winner": entry.winner, "rule": entry.rule, "reason": entry.reason,
        "at_micros": entry.at_micros, "state": entry.state,
    })
}
