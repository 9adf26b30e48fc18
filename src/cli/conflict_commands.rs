//! `conflicts ...`: where changes of nodes met others, with all three values, and what a person makes of it.

use crate::base::clock::now_micros;
use crate::base::ids::NodeName;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::message_commands::short;
use crate::cli::node_commands::time;
use crate::cli::output::{Output, table};
use crate::cli::person::PersonArgs;
use crate::cli::project::Settings;
use crate::model::value::{Value, display_key};
use crate::model::value_json::{from_json, to_json};
use crate::store::conflicts::{ConflictFilter, ConflictRow, Decision, ResolveRefused, Take};
use crate::store::sqlite::{ServerDatabase, StoreError};
use serde_json::{Value as Json, json};
use std::path::Path;

/// Longest value that the list shows, in characters.
const VALUE_SHOWN_MAX: usize = 30;

/// The subcommands of `conflicts`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ConflictCommand {
    /// List conflicts, newest first
    List(ListArgs),
    /// Show one conflict with all its values
    Show(ShowArgs),
    /// Settle a conflict of policy `manual`: whose value stands
    #[command(after_help = "\
Examples:
  dockmaster conflicts resolve 17 --take client --reason 'the shop counted'
  dockmaster conflicts resolve 17 --take 42 --reason 'both were wrong'
  dockmaster conflicts resolve 17 --take '\"server\"' --reason '..'     the text `server`")]
    Resolve(ResolveArgs),
}

/// Arguments of `conflicts list`.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Of one node
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    /// Only those for which somebody has to decide
    #[arg(long)]
    open: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
}

/// Arguments of `conflicts show`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// Its number
    #[arg(value_name = "ID")]
    id: i64,
}

/// Arguments of `conflicts resolve`.
#[derive(Debug, clap::Args)]
pub(crate) struct ResolveArgs {
    /// Its number
    #[arg(value_name = "ID")]
    id: i64,
    /// `server` (what stands there now), `client`, or a value: a number, a text, or JSON
    #[arg(long, value_name = "server|client|VALUE", value_parser = take, allow_hyphen_values = true)]
    take: Take,
    #[command(flatten)]
    person: PersonArgs,
    /// Also if somebody changed the value since
    #[arg(long)]
    even_if_changed: bool,
}

fn take(text: &str) -> Result<Take, String> {
    match text {
        "server" => Ok(Take::Server),
        "client" => Ok(Take::Client),
        other => match serde_json::from_str::<Json>(other) {
            Ok(json) => from_json(&json).map(Take::Value).ok_or_else(|| "a list, true or false is no value of a column".to_owned()),
            // What is no JSON is a text as it stands.
            Err(_) => Ok(Take::Value(Value::text(other))),
        },
    }
}

/// Runs one of them.
pub(crate) fn conflicts(named: Option<&Path>, command: &ConflictCommand, output: Output) -> Outcome {
    let database = ServerDatabase::open(Settings::load(named)?.database)?;
    match command {
        ConflictCommand::List(args) => list(&database, args, output),
        ConflictCommand::Show(args) => show(&database, args.id, output),
        ConflictCommand::Resolve(args) => resolve(&database, args, output),
    }
}

fn list(database: &ServerDatabase, args: &ListArgs, output: Output) -> Outcome {
    let filter = ConflictFilter { node: args.node.clone(), open: args.open, limit: Some(args.limit), ..ConflictFilter::default() };
    let found = database.conflicts(&filter)?;
    if output.is_json() {
        output.json(json!({ "conflicts": found.iter().map(conflict_json).collect::<Vec<_>>() }))?;
    } else if found.is_empty() {
        output.say("no conflicts")?;
    } else {
        let row = |conflict: &ConflictRow| {
            vec![
                conflict.id.to_string(),
                format!("{}:{}", conflict.node, conflict.unit.number),
                format!("{} {}", conflict.table, short(&display_key(&conflict.key), VALUE_SHOWN_MAX)),
                conflict.column.clone().unwrap_or_else(|| "-".to_owned()),
                shown(conflict.server.as_ref()),
                shown(conflict.client.as_ref()),
                conflict.winner.clone(),
                conflict.rule.clone(),
            ]
        };
        let headings = ["id", "message", "row", "column", "server", "client", "winner", "rule"];
        output.line(table(&headings, found.iter().map(row).collect(), &[0]))?;
        if found.len() == args.limit as usize {
            output.say(format!("The newest {}; --limit shows more.", args.limit))?;
        }
    }
    Ok(if found.iter().any(|conflict| conflict.state == "open") { Exit::NeedsPerson } else { Exit::Done })
}

fn show(database: &ServerDatabase, id: i64, output: Output) -> Outcome {
    let filter = ConflictFilter { id: Some(id), ..ConflictFilter::default() };
    let found = database.conflicts(&filter)?.into_iter().next().ok_or(ResolveRefused::Unknown(id))?;
    say(&found, output)?;
    Ok(if found.state == "open" { Exit::NeedsPerson } else { Exit::Done })
}

fn resolve(database: &ServerDatabase, args: &ResolveArgs, output: Output) -> Outcome {
    let revision = database.identity()?.revision;
    let deployed = database.deployed(revision)?.ok_or_else(|| StoreError::NotInstalled { path: database.path().to_owned() })?;
    let who = args.person.who()?;
    let by = Decision { who: &who, reason: &args.person.reason, now_micros: now_micros(), even_if_changed: args.even_if_changed };
    let resolved = database.resolve_conflict(&deployed.dock, args.id, &args.take, &by)??;
    say(&resolved, output)?;
    Ok(Exit::Done)
}

fn say(conflict: &ConflictRow, output: Output) -> anyhow::Result<()> {
    if output.is_json() {
        return output.json(conflict_json(conflict));
    }
    let column = conflict.column.as_deref().unwrap_or("the whole row");
    output.line(format!("conflict {}  {}  {} {}, {column}", conflict.id, conflict.state, conflict.table, display_key(&conflict.key)))?;
    output.line(format!("message  {}:{}  {}", conflict.node, conflict.unit.number, time(conflict.at.div_euclid(1_000_000))))?;
    for (name, value) in [("base", &conflict.base), ("server", &conflict.server), ("client", &conflict.client)] {
        output.line(format!("{name:<8} {}", value.as_ref().map_or_else(|| "-".to_owned(), text)))?;
    }
    output.line(format!("winner   {} by {}", conflict.winner, conflict.rule))?;
    if let Some((by, at, reason)) = &conflict.resolved {
        output.line(format!("resolved {} by {by}: {reason}", time(at.div_euclid(1_000_000))))?;
    }
    if conflict.state == "open" {
        output.say(format!("Decide:  dockmaster conflicts resolve {} --take server|client|VALUE --reason ..", conflict.id))?;
    }
    Ok(())
}

/// A value as SQL writes it; of a whole row the JSON by column.
fn text(json: &Json) -> String {
    from_json(json).map_or_else(|| json.to_string(), |value| value.to_string())
}

fn shown(json: Option<&Json>) -> String {
    json.map_or_else(|| "-".to_owned(), |json| short(&text(json), VALUE_SHOWN_MAX))
}

fn conflict_json(conflict: &ConflictRow) -> Json {
    json!({
        "id": conflict.id, "node": conflict.node.as_str(), "unit": conflict.unit.number.0, "install": conflict.unit.install.to_string(),
        "table": conflict.table, "key": conflict.key.iter().map(to_json).collect::<Vec<_>>(), "column": conflict.column, "base": conflict.base,
        "server": conflict.server, "client": conflict.client, "winner": conflict.winner, "rule": conflict.rule, "at_micros": conflict.at,
        "state": conflict.state,
        "resolved": conflict.resolved.as_ref().map(|(by, at, reason)| json!({ "by": by, "at_micros": at, "reason": reason })),
    })
}
