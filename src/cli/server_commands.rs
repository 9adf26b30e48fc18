//! `status`, `serve`, `run`, `extract`: the commands around the stages.

use crate::base::clock::now_seconds;
use crate::base::ids::NodeName;
use crate::cli::confirm::confirm;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{Output, some};
use crate::cli::project::Settings;
use crate::cli::status_view;
use crate::docking::error::DockingError;
use crate::docking::root::{Access, DockingRoot};
use crate::model::node::{Node, NodeState};
use crate::server::metrics::text as metrics_text;
use crate::server::nodes;
use crate::server::pass::{self, Pass, ServeOptions, Stage};
use crate::server::status::{StatusOptions, status as server_status};
use crate::store::sqlite::ServerDatabase;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// Shows how far everybody is; exit code 1 if something waits for a person.
pub(crate) fn status(named: Option<&Path>, output: Output) -> Outcome {
    let settings = Settings::load(named)?;
    let status = server_status(&status_options(&settings))?;
    if output.is_json() {
        output.json(status_view::server_json(&status))?;
    } else {
        output.line(status_view::server_text(&status))?;
    }
    let in_need = !status.needs.is_empty() || status.nodes_in_need() > 0;
    Ok(if in_need { Exit::NeedsPerson } else { Exit::Done })
}

/// Prints all positions, lags and counts as Prometheus text.
pub(crate) fn metrics(named: Option<&Path>, output: Output) -> Outcome {
    let settings = Settings::load(named)?;
    let text = metrics_text(&server_status(&status_options(&settings))?)?;
    output.line(text.trim_end())?;
    Ok(Exit::Done)
}

/// Where `status`, `metrics` and the alert hook look.
pub(crate) fn status_options(settings: &Settings) -> StatusOptions {
    StatusOptions {
        database: settings.database.clone(),
        root: settings.root.clone(),
        server_name: settings.server.name.clone(),
        day_starts_minutes: i64::from(settings.server.day_starts_minutes),
        now: now_seconds(),
        min_free_bytes: settings.server.min_free_bytes,
    }
}

/// A stage as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum StageName {
    /// Transaction Processor: log -> txnproc files, and the extracts of nodes that start
    Txnproc,
    /// Transaction Router: txnproc files -> outboxes
    Router,
    /// Transaction Merger: inboxes -> server database
    Merger,
}

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dockmaster run                 every stage once, until nothing waits (see scripts/crontab.example)
  dockmaster run txnproc         only read the log
  dockmaster run router          only route what was read
  dockmaster run merger          only bring what nodes have sent into the server database

Ends with 3 while the service or another pass runs on the same docking root.")]
pub(crate) struct RunArgs {
    /// Stages to run; all if none is named
    #[arg(value_name = "STAGE")]
    stages: Vec<StageName>,
}

pub(crate) fn serve_options(settings: &Settings) -> ServeOptions {
    ServeOptions {
        database: settings.database.clone(),
        identity: settings.identity.clone(),
        listen: settings.server.listen.clone(),
        alert_command: settings.server.alert_command.clone(),
        day_starts_minutes: i64::from(settings.server.day_starts_minutes),
        compare_every: std::time::Duration::from_secs(settings.server.compare_every_seconds.into()),
        retention: settings.server.retention,
        send_bytes_per_second: settings.server.send_bytes_per_second,
        min_free_bytes: settings.server.min_free_bytes,
        sessions_max: settings.server.sessions_max,
        sessions_per_address: settings.server.sessions_per_address,
        merge_errors: settings.server.merge_errors,
        carriers: settings.carriers.clone(),
    }
}

/// Runs stages until nothing waits.
pub(crate) fn run(named: Option<&Path>, args: &RunArgs, output: Output) -> Outcome {
    let settings = Settings::load(named)?;
    // Before the root, which is made when it is opened: nothing is left behind where nothing is deployed.
    ServerDatabase::open(&settings.database)?.require_installed()?;
    let root = Arc::new(DockingRoot::open(&settings.root, Access::Exclusive)?);
    let stages: Vec<Stage> = [(StageName::Merger, Stage::Merger), (StageName::Txnproc, Stage::TxnProc), (StageName::Router, Stage::Router)]
        .into_iter()
        .filter(|(name, _)| args.stages.is_empty() || args.stages.contains(name))
        .map(|(_, stage)| stage)
        .collect();
    let done = pass::run(&serve_options(&settings), &root, &stages)?;
    if output.is_json() {
        output.json(
            json!({ "merged": done.merged, "units": done.units, "rounds": done.rounds, "extracts": done.extracts, "purged": done.purged }),
        )?;
    }
    output.say(pass_text(done, &stages))?;
    Ok(Exit::Done)
}

fn pass_text(done: Pass, stages: &[Stage]) -> String {
    let mut parts = Vec::new();
    if stages.contains(&Stage::Merger) && done.merged > 0 {
        parts.push(format!("merger: {}", some(done.merged, "unit of a node", "units of nodes")));
    }
    if stages.contains(&Stage::TxnProc) {
        parts.push(format!("txnproc: {}", some(done.units, "unit read", "units read")));
        if done.extracts > 0 {
            parts.push(some(done.extracts, "extract made", "extracts made"));
        }
    }
    if stages.contains(&Stage::Router) {
        parts.push(format!("router: {}", some(done.rounds, "round", "rounds")));
        if done.purged > 0 {
            parts.push(format!("{} purged", some(done.purged, "file", "files")));
        }
    }
    parts.join("; ")
}

/// Arguments of `extract`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A node that joins with `remote-sync init` gets its extract by itself. This command makes it beforehand (for a node whose \
line is slow, at night), or anew. A node that has a local database already has to run `remote-sync init` again.

Examples:
  dockmaster extract ANNA BERT         these two
  dockmaster extract --model rep       every node of a model that is not disabled
  dockmaster extract --all --yes       every node that is not disabled

What all nodes of a model see is put together once, however many are named.")]
pub(crate) struct ExtractArgs {
    /// The nodes
    #[arg(value_name = "NODE", required_unless_present_any = ["all", "model"])]
    nodes: Vec<NodeName>,
    /// Every node that is not disabled
    #[arg(long, conflicts_with_all = ["nodes", "model"])]
    all: bool,
    /// Every node of this model that is not disabled
    #[arg(long, value_name = "NAME", conflicts_with = "nodes")]
    model: Option<String>,
    /// Do not ask, even if a node has a local database already
    #[arg(short, long)]
    yes: bool,
}

fn nodes_to_extract(database: &ServerDatabase, args: &ExtractArgs) -> anyhow::Result<Vec<NodeName>> {
    if !args.all && args.model.is_none() {
        return Ok(args.nodes.clone());
    }
    let fits = |node: &Node| node.state != NodeState::Disabled && (args.all || node.model == args.model);
    let names: Vec<NodeName> = nodes::list(database)?.into_iter().filter(fits).map(|node| node.name).collect();
    if names.is_empty() {
        anyhow::bail!("no node fits; dockmaster node list shows those that there are");
    }
    Ok(names)
}

/// Starts nodes anew, and makes their extracts unless the service does it.
pub(crate) fn extract(named: Option<&Path>, args: &ExtractArgs, output: Output) -> Outcome {
    let settings = Settings::load(named)?;
    let database = ServerDatabase::open(&settings.database)?;
    let names = nodes_to_extract(&database, args)?;
    let mut active = Vec::new();
    for name in &names {
        if nodes::show(&database, name)?.state == NodeState::Active {
            active.push(name.to_string());
        }
    }
    let question = format!("{}: a local database that is in use must be fetched anew. Go on?", active.join(", "));
    if !active.is_empty() && !confirm(&question, args.yes)? {
        output.say("Nothing was changed.")?;
        return Ok(Exit::Failed);
    }
    // The lock first: a service that is just starting would otherwise see half of the nodes started.
    let root = match DockingRoot::open(&settings.root, Access::Exclusive) {
        Ok(root) => Some(Arc::new(root)),
        Err(DockingError::InUse { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let mut started = Vec::new();
    for name in &names {
        let incarnation = nodes::start(&database, name)?;
        started.push(json!({ "node": name.as_str(), "incarnation": incarnation.0 }));
        output.say(format!("{name}: extract {incarnation}"))?;
    }
    match &root {
        Some(root) => {
            let done = pass::run(&serve_options(&settings), root, &[Stage::TxnProc, Stage::Router])?;
            output.say(pass_text(done, &[Stage::TxnProc, Stage::Router]))?;
        }
        None => output.say("the service makes them now")?,
    }
    if output.is_json() {
        output.json(json!({ "started": started, "made": root.is_some() }))?;
    }
    Ok(Exit::Done)
}
