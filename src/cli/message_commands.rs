//! `messages ...`: units of nodes, listed by their heads, shown with their content, and decided on by a person (MI-4, MI-53, MI-63).

use crate::base::clock::{now_micros, now_seconds};
use crate::base::ids::NodeName;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::node_commands::time;
use crate::cli::output::{Output, ago, some, table};
use crate::cli::person::PersonArgs;
use crate::cli::project::Settings;
use crate::docking::root::{Access, DockingRoot};
use crate::model::event::TableHeading;
use crate::model::upload::{MessageStatus, RowChange};
use crate::model::value::{Value, display_key};
use crate::model::value_json::to_json;
use crate::server::merger;
use crate::server::messages::{MessageName, content, find};
use crate::store::conflicts::ConflictFilter;
use crate::store::merge_units::{Person, Ruling};
use crate::store::messages::{MessageEvent, MessageFilter, MessageHead};
use crate::store::sqlite::ServerDatabase;
use serde_json::{Value as Json, json};
use std::path::Path;
use std::sync::Arc;

/// Longest value that a table shows, in characters; `--json` has all of it.
const VALUE_SHOWN_MAX: usize = 60;
/// Longest reason in the list.
const REASON_SHOWN_MAX: usize = 90;

/// The subcommands of `messages`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum MessageCommand {
    /// List messages, newest first: heads only, whatever they carry
    List(ListArgs),
    /// Show one message: its head, what was done to it, its conflicts, and its changes with all their values
    Show(ShowArgs),
    /// Execute a message in error once more, after its cause was dealt with
    Retry(RuleArgs),
    /// Take out a message that waits or is in error: it is never executed, and its author is told
    Ignore(RuleArgs),
    /// Send a message in error back to its author, who may correct it and send it again
    Return(RuleArgs),
}

/// Arguments of `messages retry`, `ignore` and `return`.
#[derive(Debug, clap::Args)]
pub(crate) struct RuleArgs {
    /// The message, as `messages list` names it
    #[arg(value_name = "NODE:UNIT")]
    message: MessageName,
    #[command(flatten)]
    person: PersonArgs,
}

/// Arguments of `messages list`.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Of one node
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    /// In one status: waiting, partial, finished, error or ignored
    #[arg(long, value_name = "STATUS", value_parser = status)]
    status: Option<MessageStatus>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
}

/// Arguments of `messages show`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// The message, as `messages list` names it
    #[arg(value_name = "NODE:UNIT")]
    message: MessageName,
    /// At most so many of its changes
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
}

fn status(text: &str) -> Result<MessageStatus, String> {
    MessageStatus::from_name(text).ok_or_else(|| "write waiting, partial, finished, error or ignored".to_owned())
}

/// Runs one of them.
pub(crate) fn messages(named: Option<&Path>, command: &MessageCommand, output: Output) -> Outcome {
    match command {
        MessageCommand::List(args) => list(named, args, output),
        MessageCommand::Show(args) => show(named, args, output),
        MessageCommand::Retry(args) => rule(named, args, Ruling::Retry, output),
        MessageCommand::Ignore(args) => rule(named, args, Ruling::Ignore, output),
        MessageCommand::Return(args) => rule(named, args, Ruling::Return, output),
    }
}

/// Carries a decision out. The service may run meanwhile: the status decides within the transaction that changes it.
fn rule(named: Option<&Path>, args: &RuleArgs, ruling: Ruling, output: Output) -> Outcome {
    let settings = Settings::load(named)?;
    let database = ServerDatabase::open(&settings.database)?;
    let head = find(&database, &args.message)?;
    let root = DockingRoot::open(&settings.root, Access::Look)?;
    let who = args.person.who()?;
    let person = Person { who: &who, reason: &args.person.reason, now_micros: now_micros() };
    merger::rule(&database, &root, &head.node, &head.row(), ruling, &person)?;
    if output.is_json() {
        output.json(head_json(&find(&database, &MessageName { install: Some(head.id.install.to_string()), ..MessageName::of(&head) })?))?;
        return Ok(Exit::Done);
    }
    let (name, node) = (MessageName::of(&head), &head.node);
    output.say(match ruling {
        Ruling::Retry => format!("{name} waits again, and is executed as soon as the merger runs: dockmaster serve, or dockmaster run"),
        Ruling::Ignore => format!("{name} is ignored; {node} is told with the next sync, and keeps its values in dock_conflicts"),
        Ruling::Return => format!("{name} goes back to {node} with the next sync; its values stand in dock_conflicts there"),
    })?;
    Ok(Exit::Done)
}

fn list(named: Option<&Path>, args: &ListArgs, output: Output) -> Outcome {
    let database = ServerDatabase::open(Settings::load(named)?.database)?;
    let filter = MessageFilter { node: args.node.clone(), status: args.status, limit: Some(args.limit), unit: None };
    let heads = database.messages(&filter)?;
    if output.is_json() {
        output.json(json!({ "messages": heads.iter().map(head_json).collect::<Vec<_>>() }))?;
    } else if heads.is_empty() {
        output.say("no messages")?;
    } else {
        let now = now_seconds();
        let row = |head: &MessageHead| {
            let about = head.reason.as_ref().or(head.label.as_ref()).map_or_else(|| "-".to_owned(), |text| short(text, REASON_SHOWN_MAX));
            vec![
                MessageName::of(head).to_string(),
                head.status.to_string(),
                head.changes.to_string(),
                head.conflicts.to_string(),
                ago((now - head.stored_at.div_euclid(1_000_000)).max(0)),
                about,
            ]
        };
        output.line(table(&["message", "status", "changes", "conflicts", "came", "about"], heads.iter().map(row).collect(), &[2, 3]))?;
        if heads.len() == args.limit as usize {
            output.say(format!("The newest {}; --limit shows more.", args.limit))?;
        }
    }
    Ok(if heads.iter().any(|head| head.status == MessageStatus::Error) { Exit::NeedsPerson } else { Exit::Done })
}

fn show(named: Option<&Path>, args: &ShowArgs, output: Output) -> Outcome {
    let settings = Settings::load(named)?;
    let database = ServerDatabase::open(&settings.database)?;
    let head = find(&database, &args.message)?;
    let events = database.message_events(head.id)?;
    let conflicts = database.conflicts(&ConflictFilter { unit: Some(head.id), ..ConflictFilter::default() })?;
    let root = DockingRoot::open(&settings.root, Access::Look)?;
    let mut changes: Vec<(Arc<TableHeading>, RowChange)> = Vec::new();
    let is_there = content(&root, &head, |heading, change| {
        changes.push((Arc::clone(heading), change));
        changes.len() < args.limit as usize
    })?;
    let exit = if head.status == MessageStatus::Error { Exit::NeedsPerson } else { Exit::Done };
    if output.is_json() {
        let mut document = head_json(&head);
        document["events"] = events.iter().map(event_json).collect::<Vec<_>>().into();
        document["conflict_ids"] = conflicts.iter().map(|conflict| conflict.id).collect::<Vec<_>>().into();
        document["content"] = if is_there { "here" } else { "gone" }.into();
        document["rows"] = changes.iter().map(|(heading, change)| change_json(heading, change)).collect::<Vec<_>>().into();
        output.json(document)?;
        return Ok(exit);
    }
    let name = MessageName::of(&head);
    output.line(
        format!("{name}  {}  {}  {}", head.status, some(head.changes, "change", "changes"), head.label.as_deref().unwrap_or_default())
            .trim_end(),
    )?;
    output.line(format!("cut      {}, by the clock of {}", time(head.cut_at.div_euclid(1_000_000)), head.node))?;
    output.line(format!(
        "stored   {}, in file {} of extract {}",
        time(head.stored_at.div_euclid(1_000_000)),
        head.file,
        head.incarnation
    ))?;
    if let Some(done) = head.done_at {
        let tried = some(head.attempts, "try", "tries");
        output.line(format!("{:<8} {} after {tried}", head.outcome.as_deref().unwrap_or("done"), time(done.div_euclid(1_000_000))))?;
    }
    if let Some(reason) = &head.reason {
        output.line(format!("! {reason}"))?;
    }
    if let Some(unit) = head.waits_for {
        output.line(format!("! it waits for {}:{unit}", head.node))?;
    }
    for event in &events {
        output.line(format!(
            "{}  {} -> {} by {}: {}",
            time(event.at.div_euclid(1_000_000)),
            event.from,
            event.to,
            event.who,
            event.reason
        ))?;
    }
    for conflict in &conflicts {
        let column = conflict.column.as_deref().unwrap_or("the row");
        let key = display_key(&conflict.key);
        output
            .line(format!("conflict {}  {} {key}, {column}: {} won by {}", conflict.id, conflict.table, conflict.winner, conflict.rule))?;
    }
    if !is_there {
        output.say(format!("Its content is no longer kept: file {} is gone from the inbox.", head.file))?;
    }
    let rows: Vec<Vec<String>> = changes.iter().flat_map(|(heading, change)| change_rows(heading, change)).collect();
    if !rows.is_empty() {
        output.line("")?;
        output.line(table(&["table", "row", "what", "column", "before", "base", "after"], rows, &[]))?;
        if (changes.len() as u64) < head.changes {
            output.say(format!("The first {} of {}; --limit shows more.", changes.len(), head.changes))?;
        }
    }
    if head.status == MessageStatus::Error {
        let undo = format!("messages ignore {name} --reason ..\n  dockmaster messages return {name} --reason ..");
        output.say(format!("\nDecide:\n  dockmaster messages retry {name} --reason ..\n  dockmaster {undo}"))?;
    }
    Ok(exit)
}

/// The lines of one change: one per column.
fn change_rows(heading: &TableHeading, change: &RowChange) -> Vec<Vec<String>> {
    let key = short(&display_key(&change.key(&heading.key)), VALUE_SHOWN_MAX);
    let shown = |value: Option<&Value>| value.map_or_else(|| "-".to_owned(), |value| short(&value.to_string(), VALUE_SHOWN_MAX));
    let line = |what: &str, column: &str, values: [Option<&Value>; 3]| {
        let mut line = vec![heading.name.clone(), key.clone(), what.to_owned(), column.to_owned()];
        line.extend(values.into_iter().map(shown));
        line
    };
    match change {
        RowChange::Insert { row } => {
            heading.columns.iter().zip(row).map(|(name, value)| line("insert", name, [None, None, Some(value)])).collect()
        }
        RowChange::Update { fields, .. } => {
            let name = |column: u16| heading.columns.get(usize::from(column)).map_or("?", String::as_str);
            let of = |field: &crate::model::upload::FieldChange| {
                line("update", name(field.column), [Some(&field.before), Some(&field.base), Some(&field.after)])
            };
            fields.iter().map(of).collect()
        }
        RowChange::Delete { before, base, .. } => {
            let columns = heading.columns.iter().enumerate().zip(before);
            let base = |at: usize| base.as_ref().map_or(before.get(at), |base| base.get(at));
            columns.map(|((at, name), value)| line("delete", name, [Some(value), base(at), None])).collect()
        }
    }
}

fn change_json(heading: &TableHeading, change: &RowChange) -> Json {
    let row = |row: &[Value]| -> Json {
        Json::Object(heading.columns.iter().zip(row).map(|(name, value)| (name.clone(), to_json(value))).collect())
    };
    let key: Vec<Json> = change.key(&heading.key).iter().map(to_json).collect();
    let mut document = json!({ "table": heading.name, "key": key });
    match change {
        RowChange::Insert { row: values } => {
            document["change"] = "insert".into();
            document["after"] = row(values);
        }
        RowChange::Update { fields, .. } => {
            let name = |column: u16| heading.columns.get(usize::from(column)).cloned().unwrap_or_default();
            let each = fields.iter().map(|field| {
                let values = json!({ "before": to_json(&field.before), "base": to_json(&field.base), "after": to_json(&field.after) });
                (name(field.column), values)
            });
            document["change"] = "update".into();
            document["fields"] = Json::Object(each.collect());
        }
        RowChange::Delete { before, base, .. } => {
            document["change"] = "delete".into();
            document["before"] = row(before);
            document["base"] = base.as_ref().map_or(Json::Null, |base| row(base));
        }
    }
    document
}

fn head_json(head: &MessageHead) -> Json {
    json!({
        "message": MessageName::of(head).to_string(), "node": head.node.as_str(), "unit": head.id.number.0,
        "install": head.id.install.to_string(), "status": head.status.name(), "outcome": head.outcome, "reason": head.reason,
        "waits_for": head.waits_for.map(|unit| unit.0), "label": head.label, "changes": head.changes, "conflicts": head.conflicts,
        "attempts": head.attempts, "extract": head.incarnation.0, "file": head.file.0, "cut_at_micros": head.cut_at,
        "stored_at_micros": head.stored_at, "done_at_micros": head.done_at,
    })
}

fn event_json(event: &MessageEvent) -> Json {
    json!({ "at_micros": event.at, "from": event.from, "to": event.to, "who": event.who, "reason": event.reason })
}

/// Returns a text in one line, cut to what a table holds.
pub(super) fn short(text: &str, most: usize) -> String {
    let line: String = text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect();
    if line.chars().count() <= most { line } else { line.chars().take(most.saturating_sub(2)).chain("..".chars()).collect() }
}
