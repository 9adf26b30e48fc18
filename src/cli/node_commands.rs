//! `node ...`: register, list and change nodes.

use crate::base::ids::NodeName;
use crate::cli::confirm::confirm;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::history_command::{self, HistoryArgs};
use crate::cli::output::{Output, some, table};
use crate::cli::project::{Project, Settings};
use crate::docking::root::{Access, DockingRoot};
use crate::docking::sessions::SessionsDb;
use crate::model::dock::Dock;
use crate::model::node::{Node, NodeState};
use crate::model::value::Value;
use crate::server::nodes::{self, NodeSettings};
use crate::server::unmerged;
use crate::store::sqlite::ServerDatabase;
use anyhow::{Context as _, bail};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The subcommands of `node`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum NodeCommand {
    /// Register a node, or all nodes of a CSV file
    #[command(after_help = "\
Examples:
  dockmaster node add SHOP-01 --set shop=1
  dockmaster node add ANNA --set employee=1 --model rep
  dockmaster node add --from shops.csv        all nodes of a file, or none

The columns of the file: name, model (may be left out), attributes of [node].")]
    Add(AddArgs),
    /// List the nodes with state, model and attributes
    List,
    /// Show one node: what it is set to, how far it is, its last sessions
    Show(NameArgs),
    /// What happened to a node: sessions, settings, extracts, comparisons; newest first
    History(HistoryArgs),
    /// Change attributes or the model of a node; rows enter and leave its view with the next sync
    #[command(
        after_help = "Examples:\n  dockmaster node set ANNA --set employee=4\n  dockmaster node set VENUS --set vessel=9074729 --set vessel=9074731      several values\n  dockmaster node set VENUS --set vessel=                                no value"
    )]
    Set(SetArgs),
    /// Give a node another token: for a new machine, or because the first one was lost or has ended
    #[command(after_help = "\
Whoever uses the token takes the place of the machine that is this node now, which is refused from then on. It may be used for a day, \
by one machine. `node add` gives the first one.")]
    Token(NameArgs),
    /// Take a disabled node back; it needs a new extract
    Enable(NameArgs),
    /// End a node: it is refused from now on and gets nothing
    Disable(NameArgs),
    /// Take a node out of the list
    Delete(DeleteArgs),
    /// Take back what waits for a person at a node, once it is dealt with; until then `status` ends with 1
    #[command(after_help = "\
`node show` says what it is. A new extract of the node takes it back as well. What happens again is shown again.")]
    Clear(NameArgs),
}

/// Arguments of `node add`.
#[derive(Debug, clap::Args)]
pub(crate) struct AddArgs {
    /// Name of the node: A-Z, 0-9, `_`, `-`; it becomes a folder name
    #[arg(value_name = "NAME", required_unless_present = "from", conflicts_with = "from")]
    name: Option<NodeName>,
    #[command(flatten)]
    settings: SettingArgs,
    /// Register the nodes of a CSV file
    #[arg(long, value_name = "CSV", conflicts_with_all = ["set", "model"])]
    from: Option<PathBuf>,
}

/// What is set of a node.
#[derive(Debug, clap::Args)]
pub(crate) struct SettingArgs {
    /// Value of an attribute of [node]; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    set: Vec<(String, String)>,
    /// Routing model: a [model.NAME] of the definition; without one every rule holds
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
}

/// Arguments of `node set`.
#[derive(Debug, clap::Args)]
pub(crate) struct SetArgs {
    /// Name of the node
    #[arg(value_name = "NAME")]
    name: NodeName,
    #[command(flatten)]
    settings: SettingArgs,
    /// No routing model: every rule holds
    #[arg(long, conflicts_with = "model")]
    no_model: bool,
    /// After how many days of silence the node is stale, e.g. `180d`; `default` = as [server] stale_days says
    #[arg(long, value_name = "DAYS", value_parser = stale_after)]
    stale_after: Option<StaleAfter>,
}

/// The name of a node.
#[derive(Debug, clap::Args)]
pub(crate) struct NameArgs {
    /// Name of the node
    #[arg(value_name = "NAME")]
    name: NodeName,
}

/// Arguments of `node delete`.
#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    /// Name of the node
    #[arg(value_name = "NAME")]
    name: NodeName,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// What `--stale-after` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StaleAfter(Option<u32>);

fn stale_after(text: &str) -> Result<StaleAfter, String> {
    if text == "default" {
        return Ok(StaleAfter(None));
    }
    match text.strip_suffix('d').unwrap_or(text).parse() {
        Ok(days) if (1..=36_500).contains(&days) => Ok(StaleAfter(Some(days))),
        _ => Err("write a number of days, e.g. 180d, or `default`".to_owned()),
    }
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

impl SettingArgs {
    fn settings(&self) -> NodeSettings {
        let mut attributes: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in &self.set {
            let values = attributes.entry(name.clone()).or_default();
            if !value.is_empty() {
                values.push(value.clone());
            }
        }
        NodeSettings { model: self.model.clone().map(Some), attributes }
    }
}

/// Runs one of them.
pub(crate) fn node(named: Option<&Path>, command: &NodeCommand, output: Output) -> Outcome {
    match command {
        NodeCommand::Add(args) => add(named, args, output),
        NodeCommand::List => list(named, output),
        NodeCommand::Show(args) => show(named, &args.name, output),
        NodeCommand::History(args) => history_command::history(named, args, output),
        NodeCommand::Set(args) => set(named, args, output),
        NodeCommand::Token(args) => token(named, &args.name, output),
        NodeCommand::Enable(args) => {
            let node = nodes::enable(&open(named)?, &args.name)?;
            done(&node, &format!("{} is registered again and needs a new extract: remote-sync init on its machine", node.name), output)
        }
        NodeCommand::Disable(args) => {
            let node = nodes::disable(&open(named)?, &args.name)?;
            done(&node, &format!("{} is disabled: refused from now on, nothing is routed to it", node.name), output)
        }
        NodeCommand::Delete(args) => delete(named, args, output),
        NodeCommand::Clear(args) => clear(named, &args.name, output),
    }
}

fn open(named: Option<&Path>) -> anyhow::Result<ServerDatabase> {
    Ok(ServerDatabase::open(Settings::load(named)?.database)?)
}

/// The definition that settings of nodes are checked against.
fn with_definition(named: Option<&Path>) -> anyhow::Result<(Project, Dock)> {
    let mut project = Project::load(named)?;
    match project.checked.dock.take() {
        Some(dock) => Ok((project, dock)),
        None => bail!("the definition has problems; say `dockmaster check`"),
    }
}

fn add(named: Option<&Path>, args: &AddArgs, output: Output) -> Outcome {
    let (project, dock) = with_definition(named)?;
    let added = match (&args.name, &args.from) {
        (Some(name), _) => vec![nodes::add(&project.database, &dock, name, &args.settings.settings())?],
        (None, Some(path)) => {
            let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
            nodes::import_csv(&project.database, &dock, &path.display().to_string(), text.as_slice())?
        }
        (None, None) => bail!("name a node, or a file with --from"),
    };
    let mut tokens = Vec::new();
    for node in &added {
        tokens.push(nodes::give_token(&project.settings.identity, &project.database, &node.name)?);
    }
    if output.is_json() {
        let nodes = added.iter().zip(&tokens).map(|(node, given)| {
            let mut document = node_json(node);
            document["token"] = json!(given.token.reveal());
            document["token_until"] = json!(given.until);
            document
        });
        output.json(json!({ "nodes": nodes.collect::<Vec<_>>() }))?;
        return Ok(Exit::Done);
    }
    match (args.from.is_some(), added.first(), tokens.first()) {
        (false, Some(node), Some(given)) => tell_token(&project.settings, &node.name, given, output)?,
        _ => {
            // For whoever sends them out: as the file came in.
            output.line("name,token")?;
            for (node, given) in added.iter().zip(&tokens) {
                output.line(format!("{},{}", node.name, given.token.reveal()))?;
            }
            output.say(format!("{} nodes are registered; their tokens may be used for a day.", added.len()))?;
        }
    }
    Ok(Exit::Done)
}

fn token(named: Option<&Path>, name: &NodeName, output: Output) -> Outcome {
    let settings = Settings::load(named)?;
    let database = ServerDatabase::open(&settings.database)?;
    let known = database.node_key(name)?;
    let given = nodes::give_token(&settings.identity, &database, name)?;
    if output.is_json() {
        output.json(json!({ "node": name.as_str(), "token": given.token.reveal(), "token_until": given.until }))?;
        return Ok(Exit::Done);
    }
    tell_token(&settings, name, &given, output)?;
    if let Some(since) = known.enrolled_at {
        output.say(format!("The machine that is {name} since {} is refused as soon as another one uses this token.", time(since)))?;
    }
    Ok(Exit::Done)
}

/// Shows a token, once, with the line to type.
fn tell_token(settings: &Settings, name: &NodeName, given: &nodes::GivenToken, output: Output) -> anyhow::Result<()> {
    let token = given.token.reveal();
    if output.is_quiet() {
        output.line(token)?;
        return Ok(());
    }
    let listen = &settings.server.listen;
    // One that listens everywhere is called by a name that we do not know.
    let address = match listen.strip_prefix("0.0.0.0").or_else(|| listen.strip_prefix("[::]")) {
        Some(port) => format!("SERVER{port}"),
        None => listen.clone(),
    };
    output.line(format!("{name} may join until {}. On its machine:", time(given.until)))?;
    output.line(format!("  remote-sync init {address} --token {token} {}.db", name.as_str().to_ascii_lowercase()))?;
    Ok(())
}

fn set(named: Option<&Path>, args: &SetArgs, output: Output) -> Outcome {
    let (project, dock) = with_definition(named)?;
    let mut settings = args.settings.settings();
    if args.no_model {
        settings.model = Some(None);
    }
    if settings.model.is_none() && settings.attributes.is_empty() && args.stale_after.is_none() {
        bail!("nothing to set: name --set NAME=VALUE, --model NAME, --no-model or --stale-after DAYS");
    }
    let node = nodes::set(&project.database, &dock, &args.name, &settings)?;
    let mut sentence = format!("{}: {}", node.name, attributes_text(&node));
    if let Some(StaleAfter(days)) = args.stale_after {
        nodes::set_stale_after(&project.database, &node.name, days)?;
        let days = days.map_or_else(|| "the usual time".to_owned(), |days| some(u64::from(days), "day", "days"));
        sentence.push_str(&format!("; stale after {days} of silence"));
    }
    done(&node, &sentence, output)
}

fn delete(named: Option<&Path>, args: &DeleteArgs, output: Output) -> Outcome {
    let database = open(named)?;
    let node = nodes::show(&database, &args.name)?;
    if node.state == NodeState::Active && !confirm(&format!("{} is active. Delete it?", node.name), args.yes)? {
        output.say("Nothing was changed.")?;
        return Ok(Exit::Failed);
    }
    let merged = unmerged::Merged::read(&database, &args.name)?;
    nodes::delete(&database, &args.name)?;
    let root = DockingRoot::open(&Settings::load(named)?.root, Access::Look)?;
    if root.sessions_db().exists() {
        SessionsDb::open(&root.sessions_db())?.forget_key(&args.name)?;
    }
    let reason = format!("{} was deleted before this was merged", node.name);
    let moved = unmerged::put_aside(&root, &node.name, &merged, &reason)?;
    if !moved.is_empty() {
        let (files, folder) = (some(moved.len() as u64, "file", "files"), root.quarantine(&node.name));
        output.say(format!("{files} that it sent and nobody merged: kept in {}", folder.display()))?;
    }
    done(&node, &format!("{} is deleted", node.name), output)
}

/// Takes the alerts of a node back. The service may run meanwhile: both write `sessions.db` in transactions of their own.
fn clear(named: Option<&Path>, name: &NodeName, output: Output) -> Outcome {
    let settings = Settings::load(named)?;
    nodes::show(&ServerDatabase::open(&settings.database)?, name)?;
    let path = DockingRoot::open(&settings.root, Access::Look)?.sessions_db();
    let cleared = if path.exists() {
        let sessions = SessionsDb::open(&path)?;
        sessions.clear_suspicion(name)?;
        sessions.clear_alerts(name)?
    } else {
        0
    };
    if output.is_json() {
        output.json(json!({ "node": name.as_str(), "cleared": cleared }))?;
    } else {
        output.say(match cleared {
            0 => format!("{name}: nothing waited for a person"),
            _ => format!("{name}: {} taken back", some(cleared as u64, "alert", "alerts")),
        })?;
    }
    Ok(Exit::Done)
}

fn done(node: &Node, sentence: &str, output: Output) -> Outcome {
    if output.is_json() {
        output.json(json!({ "nodes": [node_json(node)] }))?;
    } else {
        output.say(sentence)?;
    }
    Ok(Exit::Done)
}

fn list(named: Option<&Path>, output: Output) -> Outcome {
    let nodes = nodes::list(&open(named)?)?;
    if output.is_json() {
        output.json(json!({ "nodes": nodes.iter().map(node_json).collect::<Vec<_>>() }))?;
    } else if nodes.is_empty() {
        output.say("no nodes yet: dockmaster node add NAME")?;
    } else {
        let row = |node: &Node| {
            let model = node.model.clone().unwrap_or_else(|| "-".to_owned());
            vec![node.name.to_string(), node.state.to_string(), node.incarnation.to_string(), model, attributes_text(node)]
        };
        output.line(table(&["node", "state", "extracts", "model", "attributes"], nodes.iter().map(row).collect(), &[2]))?;
    }
    Ok(Exit::Done)
}

fn show(named: Option<&Path>, name: &NodeName, output: Output) -> Outcome {
    let settings = Settings::load(named)?;
    let server = ServerDatabase::open(&settings.database)?;
    let (node, keys) = (nodes::show(&server, name)?, server.node_key(name)?);
    let root = DockingRoot::open(&settings.root, Access::Look)?;
    let (mut mark, mut sessions, mut alerts, mut stop) = (None, Vec::new(), Vec::new(), None);
    if let Some(database) = SessionsDb::open_to_read(&root.sessions_db())? {
        mark = database.mark(name, node.incarnation)?;
        sessions = database.sessions(Some(name), 5)?;
        alerts = database.alerts(Some(name))?;
        stop = database.stop_of(name, node.incarnation)?;
    }
    if output.is_json() {
        let mut document = node_json(&node);
        document["key"] = json!(keys.key.map(|key| key.to_string()));
        document["enrolled"] = json!(keys.enrolled_at);
        document["token_until"] = json!(keys.token_until);
        document["applied"] = json!(mark.as_ref().map(|mark| mark.applied.unit.0));
        document["stopped"] = json!(stop.as_ref().map(|stop| json!({ "since": stop.since, "reason": stop.reason })));
        document["alerts"] = json!(alerts.iter().map(|alert| json!({ "at": alert.at, "text": alert.text })).collect::<Vec<_>>());
        document["sessions"] = sessions
            .iter()
            .map(|s| {
                json!({ "began": s.began, "ended": s.ended, "peer": s.peer, "mode": s.mode, "outcome": s.outcome, "detail": s.detail,
                             "files_sent": s.files_sent, "bytes_sent": s.bytes_sent })
            })
            .collect::<Vec<_>>()
            .into();
        output.json(document)?;
    } else {
        output.line(format!("{}  {}  extract {}  {}", node.name, node.state, node.incarnation, attributes_text(&node)))?;
        output.line(match (keys.key, keys.enrolled_at) {
            (Some(key), Some(since)) => format!("machine  let in {}, key {}", time(since), &key.to_string()[..16]),
            _ => "machine  none was let in yet".to_owned(),
        })?;
        if let Some(until) = keys.token_until {
            output.line(format!("token    may be used until {}", time(until)))?;
        }
        output.line(format!("model    {}", node.model.as_deref().unwrap_or("none: every rule holds")))?;
        output.line(match &mark {
            Some(mark) => format!("applied  txn {} (file {}), received file {}", mark.applied.unit, mark.applied.file, mark.received),
            None => "applied  nothing yet".to_owned(),
        })?;
        if let Some(stop) = &stop {
            output.line(format!("! stopped since {}: {}", time(stop.since), stop.reason))?;
        }
        for session in &sessions {
            let outcome = if session.ended.is_none() { "goes on" } else { &session.outcome };
            let line = format!("session  {} {} from {}: {outcome} {}", time(session.began), session.mode, session.peer, session.detail);
            output.line(line.trim_end())?;
        }
        for alert in &alerts {
            output.line(format!("! {} {}", time(alert.at), alert.text))?;
        }
        if !alerts.is_empty() {
            output.say(format!("When it is dealt with:  dockmaster node clear {name}"))?;
        }
    }
    Ok(if alerts.is_empty() && stop.is_none() { Exit::Done } else { Exit::NeedsPerson })
}

pub(crate) fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |at| at.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}

pub(crate) fn attributes_text(node: &Node) -> String {
    let one = |(name, values): (&String, &Vec<Value>)| format!("{name}={}", values.iter().map(plain).collect::<Vec<_>>().join(","));
    if node.attributes.is_empty() { "-".to_owned() } else { node.attributes.iter().map(one).collect::<Vec<_>>().join(" ") }
}

/// The value as an administrator typed it.
fn plain(value: &Value) -> String {
    match value {
        Value::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => other.to_string(),
    }
}

fn node_json(node: &Node) -> Json {
    let value = |value: &Value| match value {
        Value::Integer(integer) => json!(integer),
        other => json!(plain(other)),
    };
    let attributes: BTreeMap<&String, Vec<Json>> =
        node.attributes.iter().map(|(name, values)| (name, values.iter().map(value).collect())).collect();
    json!({ "node": node.name.as_str(), "state": node.state.to_string(), "incarnation": node.incarnation.0, "model": node.model, "attributes": attributes })
}
