//! `node history`: what happened to a node, newest first, as far as it is kept.

use crate::base::ids::NodeName;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::node_commands::{attributes_text, time};
use crate::cli::output::{Output, bytes, count, some, table};
use crate::cli::project::Settings;
use crate::docking::root::{Access, DockingRoot};
use crate::docking::sessions::{SessionRow, SessionsDb};
use crate::model::digest::TableOutcome;
use crate::model::node::Node;
use crate::server::nodes;
use crate::store::control::Control;
use crate::store::sqlite::ServerDatabase;
use serde_json::json;
use std::path::Path;

/// Arguments of `node history`.
#[derive(Debug, clap::Args)]
pub(crate) struct HistoryArgs {
    /// Name of the node
    #[arg(value_name = "NAME")]
    name: NodeName,
    /// At most so many lines
    #[arg(long, value_name = "LINES", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

/// One thing that happened.
struct Entry {
    at: i64,
    kind: &'static str,
    what: String,
}

/// Prints sessions, settings and comparisons of a node, newest first.
pub(crate) fn history(named: Option<&Path>, args: &HistoryArgs, output: Output) -> Outcome {
    let settings = Settings::load(named)?;
    let database = ServerDatabase::open(&settings.database)?;
    nodes::show(&database, &args.name)?;
    let root = DockingRoot::open(&settings.root, Access::Look)?;
    let mut entries = Vec::new();
    if let Some(sessions) = SessionsDb::open_to_read(&root.sessions_db())? {
        entries.extend(sessions.sessions(Some(&args.name), args.limit)?.iter().map(session));
        let outcomes = sessions.newest_outcomes(&args.name, args.limit)?;
        entries.extend(outcomes.into_iter().map(|compared| Entry { at: compared.at, kind: "verify", what: outcome(&compared.outcome) }));
        entries.extend(sessions.alerts(Some(&args.name))?.into_iter().map(|alert| Entry { at: alert.at, kind: "alert", what: alert.text }));
    }
    for (txn, at, control) in database.controls_of(&args.name, args.limit)? {
        entries.push(Entry { at, kind: "settings", what: format!("txn {}: {}", count(txn.0), change(&control)) });
    }
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.at));
    entries.truncate(args.limit as usize);
    if output.is_json() {
        let list: Vec<_> = entries.iter().map(|entry| json!({ "at": entry.at, "kind": entry.kind, "what": entry.what })).collect();
        output.json(json!({ "node": args.name.as_str(), "history": list }))?;
    } else if entries.is_empty() {
        output.say(format!("nothing is known of {} yet", args.name))?;
    } else {
        let rows = entries.into_iter().map(|entry| vec![time(entry.at), entry.kind.to_owned(), entry.what]).collect();
        output.line(table(&["when", "what", "details"], rows, &[]))?;
    }
    Ok(Exit::Done)
}

fn session(session: &SessionRow) -> Entry {
    let ended = if session.ended.is_none() { "goes on" } else { &session.outcome };
    let sent = format!("{}, {} sent", some(session.files_sent, "file", "files"), bytes(session.bytes_sent));
    let what = format!("{} of extract {} from {}: {ended}, {sent} {}", session.mode, session.incarnation, session.peer, session.detail);
    Entry { at: session.began, kind: "session", what: what.trim_end().to_owned() }
}

fn outcome(outcome: &TableOutcome) -> String {
    let found = if outcome.is_equal() {
        "equal".to_owned()
    } else if !outcome.problem.is_empty() {
        outcome.problem.clone()
    } else if outcome.found.is_empty() {
        format!("{} of {} differ", some(outcome.buckets.len() as u64, "bucket", "buckets"), outcome.bucket_count)
    } else {
        format!("{} differ", some(outcome.found.len() as u64 + outcome.more, "row", "rows"))
    };
    format!("{} as of txn {}: {found}", outcome.table, count(outcome.unit.0))
}

/// What a control changed, by what the node was before.
fn change(control: &Control) -> String {
    match control {
        Control::NodeDeleted { .. } => "deleted".to_owned(),
        Control::Node { node, before: None } => format!("registered  {}", attributes_text(node)),
        Control::Node { node, before: Some(before) } => differences(before, node),
        Control::Verify { choice, .. } if choice.is_empty() => "asked to compare itself".to_owned(),
        Control::Verify { .. } => "asked for the rows that differ".to_owned(),
        _ => "-".to_owned(),
    }
}

fn differences(before: &Node, node: &Node) -> String {
    let mut parts = Vec::new();
    if before.state != node.state {
        parts.push(format!("{} -> {}", before.state, node.state));
    }
    if before.incarnation != node.incarnation {
        parts.push(format!("extract {} -> {}", before.incarnation, node.incarnation));
    }
    if before.model != node.model {
        let name = |node: &Node| node.model.clone().unwrap_or_else(|| "none".to_owned());
        parts.push(format!("model {} -> {}", name(before), name(node)));
    }
    if before.attributes != node.attributes {
        parts.push(format!("{} -> {}", attributes_text(before), attributes_text(node)));
    }
    if parts.is_empty() { "written anew".to_owned() } else { parts.join("; ") }
}
