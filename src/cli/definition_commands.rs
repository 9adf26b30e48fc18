//! `init`, `check`, `deploy`, `uninstall`: the commands around the definition and the server database.

use crate::base::disk::Disk;
use crate::base::ids::NodeName;
use crate::cli::confirm::confirm;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{Output, bytes, count, some, table};
use crate::cli::project::{Project, Settings};
use crate::docking::error::DockingError;
use crate::docking::root::{Access, DockingRoot};
use crate::model::value::display_key;
use crate::rules::check::Checked;
use crate::rules::problem::Problem;
use crate::rules::starter;
use crate::server::deploy::{self, DeployOptions, DeployPlan};
use crate::server::identity;
use crate::server::preview::NodeEffect;
use crate::store::sqlite::ServerDatabase;
use crate::trust::token::Fingerprint;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Arguments of `init`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  dockmaster init hq.db

Then edit the lines marked TODO in dockmaster.toml, and: dockmaster check")]
pub(crate) struct InitArgs {
    /// The server database: an SQLite file that any program may go on using
    #[arg(value_name = "DB")]
    pub(crate) database: PathBuf,
}

/// Writes a first definition from the tables of a database.
pub(crate) fn init(named: Option<&Path>, args: &InitArgs, output: Output) -> Outcome {
    let target = named.map_or_else(|| PathBuf::from("dockmaster.toml"), Path::to_owned);
    let database = ServerDatabase::open(&args.database)?;
    let schema = database.schema()?;
    let rows = database.count_rows(&schema)?;
    let first = starter::starter(&schema, &path_from(&target, &args.database).display().to_string(), &rows);
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Disk::new().put(folder, folder, &name, first.text.as_bytes())?;
    if output.is_json() {
        let tables: u64 = schema.tables.len() as u64;
        output.json(json!({ "file": target.display().to_string(), "tables": tables, "rows": rows.values().sum::<u64>() }))?;
    } else {
        output.say(&first.summary)?;
    }
    Ok(Exit::Done)
}

/// The path of the database as the file in another folder has to write it.
fn path_from(config: &Path, database: &Path) -> PathBuf {
    let same_folder = config.parent().is_none_or(|folder| folder.as_os_str().is_empty() || folder == Path::new("."));
    if same_folder || database.is_absolute() {
        database.to_owned()
    } else {
        std::path::absolute(database).unwrap_or_else(|_| database.to_owned())
    }
}

/// Says everything that is wrong with the definition.
pub(crate) fn check(named: Option<&Path>, output: Output) -> Outcome {
    let project = Project::load(named)?;
    let effects = match options(&project) {
        Some(options) if project.database.is_installed()? => {
            let plan = deploy::plan(&options, &project.settings.root)?;
            deploy::effects(&options, &plan, &project.settings.root)?
        }
        _ => None,
    };
    report(&project, effects.as_ref(), output)?;
    Ok(if project.checked.problems.is_empty() { Exit::Done } else { Exit::Failed })
}

/// Prints problems and warnings, and in the end what they come to.
fn report(project: &Project, effects: Option<&BTreeMap<NodeName, NodeEffect>>, output: Output) -> anyhow::Result<()> {
    let Checked { problems, warnings, dock, .. } = &project.checked;
    let uncovered = dock.as_ref().map_or(Ok(Vec::new()), |dock| project.database.uncovered(dock))?;
    if output.is_json() {
        let uncovered: Vec<Json> = uncovered
            .iter()
            .map(|of| json!({ "object": of.object, "table": of.table, "rows": of.rows, "unseen": of.unseen, "example": display_key(&of.example) }))
            .collect();
        return output
            .json(json!({ "problems": list(problems), "warnings": list(warnings), "uncovered": uncovered, "effects": effects, "ok": problems.is_empty() }));
    }
    for problem in problems {
        output.line(problem.to_string())?;
    }
    for warning in warnings {
        output.line(format!("warning: {warning}"))?;
    }
    for of in &uncovered {
        output.line(format!(
            "warning: {} of {} rows of {} are shown by no rule of {} to any node, for example {}",
            count(of.unseen.cast_signed()),
            count(of.rows.cast_signed()),
            of.table,
            of.object,
            display_key(&of.example)
        ))?;
    }
    if let Some(effects) = effects {
        output.line("dockmaster deploy would change for the nodes:")?;
        output.line(effects_text(effects))?;
    }
    match (problems.len(), dock) {
        (0, Some(dock)) => output.say(format!(
            "{}: no problems{}; {}, {}, {}",
            project.settings.config.display(),
            match warnings.len() + uncovered.len() {
                0 => String::new(),
                1 => ", 1 warning".to_owned(),
                several => format!(", {several} warnings"),
            },
            some(dock.objects.len() as u64, "object", "objects"),
            some(dock.rules.len() as u64, "rule", "rules"),
            some(dock.tables.len() as u64, "table", "tables")
        )),
        (1, _) => output.line("1 problem, nothing was changed"),
        (several, _) => output.line(format!("{several} problems, nothing was changed")),
    }
}

fn list(problems: &[Problem]) -> Json {
    problems
        .iter()
        .map(|p| json!({ "file": p.file, "line": p.line, "column": p.column, "message": p.message, "hint": p.hint }))
        .collect::<Vec<_>>()
        .into()
}

/// Arguments of `deploy`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The same command for the first time and for every later change of the definition or of the database's tables. \
It can be interrupted anywhere and run again.")]
pub(crate) struct DeployArgs {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Make a new identity of the server, because the one that nodes know is lost or is no longer secret; every node needs a new token
    #[arg(long)]
    pub(crate) new_identity: bool,
}

/// Checks, shows what will be done, asks, and puts the definition into force.
pub(crate) fn deploy(named: Option<&Path>, args: &DeployArgs, output: Output) -> Outcome {
    let project = Project::load(named)?;
    let Some(options) = options(&project) else {
        report(&project, None, output)?;
        return Ok(Exit::Failed);
    };
    let (settings, warnings) = (&project.settings, &project.checked.warnings);
    let plan = deploy::plan(&options, &settings.root)?;
    for warning in warnings {
        output.say(format!("warning: {warning}"))?;
    }
    if plan.is_empty() {
        let identity = identify(args, settings, output)?;
        let revision = plan.revision.map_or(0, |revision| revision.0);
        if output.is_json() {
            output.json(json!({ "plan": plan, "deployed": null, "identity": identity.to_string() }))?;
        }
        output.say(format!("Nothing to do, revision {revision} is in force."))?;
        return Ok(Exit::Done);
    }
    output.say(plan_text(&plan, settings))?;
    // Who is not asked does not look: trying it takes as long as doing it.
    let effects = if args.yes { None } else { deploy::effects(&options, &plan, &settings.root)? };
    if let Some(effects) = &effects {
        output.say(effects_text(effects))?;
    }
    if !confirm("Go on?", args.yes)? {
        output.say("Nothing was changed.")?;
        return Ok(Exit::Failed);
    }
    let began = Instant::now();
    let deployed = match DockingRoot::open(&settings.root, Access::Exclusive) {
        Ok(root) => deploy::deploy(&options, &Arc::new(root))?,
        Err(DockingError::InUse { .. }) => deploy::deploy_beside_service(&options, &settings.root)?,
        Err(error) => return Err(error.into()),
    };
    let identity = identify(args, settings, output)?;
    if output.is_json() {
        output.json(json!({ "plan": plan, "deployed": deployed, "identity": identity.to_string() }))?;
    }
    if !deployed.in_force {
        output.say(format!("Revision {} is deployed; the service has not taken it over yet, its log says why.", deployed.revision))?;
        return Ok(Exit::TryAgain);
    }
    output.say(format!("Deployed revision {} in {:.1} s.", deployed.revision, began.elapsed().as_secs_f64()))?;
    Ok(Exit::Done)
}

/// Sees to it that the server has an identity.
fn identify(args: &DeployArgs, settings: &Settings, output: Output) -> anyhow::Result<Fingerprint> {
    let database = ServerDatabase::open(&settings.database)?;
    if !args.new_identity {
        return Ok(identity::ensure(&settings.identity, &database)?);
    }
    // A service that runs would go on with the former one.
    let _root = DockingRoot::open(&settings.root, Access::Exclusive)?;
    if !confirm("A new identity: every node needs a new token before it can synchronise again. Go on?", args.yes)? {
        anyhow::bail!("the identity is as it was");
    }
    let fingerprint = identity::renew(&settings.identity, &database)?;
    output.say(format!("New identity {fingerprint}. For each node: dockmaster node token NAME"))?;
    Ok(fingerprint)
}

/// Returns what is to be deployed; `None` if the definition has problems.
fn options(project: &Project) -> Option<DeployOptions> {
    let settings = &project.settings;
    Some(DeployOptions {
        dock: project.checked.dock.clone()?,
        schema: project.schema.clone(),
        text: project.checked.text.clone(),
        server_name: settings.server.name.clone(),
        database: settings.database.clone(),
        day_starts_minutes: i64::from(settings.server.day_starts_minutes),
    })
}

/// Nodes that are named one by one.
const EFFECTS_SHOWN_MAX: usize = 20;

/// Returns what each node gains and loses, the most first, and what it comes to.
fn effects_text(effects: &BTreeMap<NodeName, NodeEffect>) -> String {
    let mut concerned: Vec<(&NodeName, &NodeEffect)> = effects.iter().filter(|(_, effect)| **effect != NodeEffect::default()).collect();
    concerned.sort_by_key(|(_, effect)| std::cmp::Reverse(effect.bytes));
    let number = |number: u64| count(number.cast_signed());
    let row = |(name, effect): &(&NodeName, &NodeEffect)| {
        vec![name.to_string(), number(effect.gained), number(effect.lost), number(effect.changed), bytes(effect.bytes)]
    };
    let mut lines = Vec::new();
    if !concerned.is_empty() {
        let rows = concerned.iter().take(EFFECTS_SHOWN_MAX).map(row).collect();
        lines.push(table(&["NODE", "ROWS GAINED", "LOST", "CHANGED", "BYTES"], rows, &[1, 2, 3, 4]));
    }
    if concerned.len() > EFFECTS_SHOWN_MAX {
        lines.push(format!("and {} more nodes", concerned.len() - EFFECTS_SHOWN_MAX));
    }
    let total: u64 = effects.values().map(|effect| effect.bytes).sum();
    lines.push(format!(
        "{} of {} get something, {} in all before compression; one unit, one file per node",
        number(concerned.len() as u64),
        some(effects.len() as u64, "node", "nodes"),
        bytes(total)
    ));
    lines.join("\n")
}

fn plan_text(plan: &DeployPlan, settings: &Settings) -> String {
    let [database, root, identity] = [&settings.database, &settings.root, &settings.identity].map(|path| path.display().to_string());
    let is_new = plan.revision.is_none() && !settings.identity.join("authority.pem").exists();
    let width = database.len().max(root.len()).max(if is_new { identity.len() } else { 0 });
    let mut lines = Vec::new();
    let mut on_database = Vec::new();
    if !plan.capture.is_empty() {
        let tables = if plan.capture.len() == 1 { "1 table gets".to_owned() } else { format!("{} tables get", plan.capture.len()) };
        on_database.push(format!("{tables} capture triggers (dock_*)"));
    }
    if plan.becomes_wal {
        on_database.push("journal mode becomes WAL".to_owned());
    }
    if plan.definition_changed {
        on_database.push("the definition is stored".to_owned());
    }
    if !on_database.is_empty() {
        lines.push(format!("  {database:<width$}  {}   undo: dockmaster uninstall", on_database.join(", ")));
    }
    if plan.active_nodes > 0 && !plan.builds_data_store && (plan.definition_changed || !plan.capture.is_empty()) {
        let nodes = some(plan.active_nodes as u64, "node that runs gets", "nodes that run get");
        lines.push(format!("  {nodes} exactly the difference, with one unit"));
    }
    if plan.builds_data_store {
        let created = if settings.root.exists() { "" } else { "created, " };
        lines.push(format!("  {root:<width$}  {created}{} rows copied into the data store", count(plan.rows.cast_signed())));
    }
    if is_new {
        lines.push(format!("  {identity:<width$}  created; keep a copy of it: nodes know this server by nothing else"));
    }
    if let Some((first, rest)) = plan.left_out.split_first() {
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more (--json lists them)", rest.len()) };
        lines.push(format!("  local databases will lack {first}{more}"));
    }
    lines.join("\n")
}

/// Arguments of `uninstall`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The rows of your tables stay as they are; so do the docking root and the databases of the nodes, which get nothing any more."
)]
pub(crate) struct UninstallArgs {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
}

/// Takes everything of ours out of the server database.
pub(crate) fn uninstall(named: Option<&Path>, args: &UninstallArgs, output: Output) -> Outcome {
    let settings = Settings::load(named)?;
    let database = ServerDatabase::open(&settings.database)?;
    // Whoever works on the docking root would go on reading what is taken away.
    let _root = if settings.root.exists() { Some(DockingRoot::open(&settings.root, Access::Exclusive)?) } else { None };
    let nodes = if database.is_installed()? { database.nodes()?.len() } else { 0 };
    let question =
        format!("Take the log, {} and all triggers of ours out of {}?", some(nodes as u64, "node", "nodes"), settings.database.display());
    if !confirm(&question, args.yes)? {
        output.say("Nothing was changed.")?;
        return Ok(Exit::Failed);
    }
    let removed = database.uninstall()?;
    if output.is_json() {
        output.json(json!({ "triggers": removed.triggers, "tables": removed.tables, "journal_mode": removed.journal_mode }))?;
    }
    output.say(format!(
        "{}: {} and {} removed, nothing of ours is left. It stays in journal mode {}.",
        settings.database.display(),
        some(removed.triggers.len() as u64, "trigger", "triggers"),
        some(removed.tables.len() as u64, "table", "tables"),
        removed.journal_mode
    ))?;
    if settings.root.exists() {
        output.say(format!("{} is kept; delete it when no node needs its outbox any more.", settings.root.display()))?;
    }
    Ok(Exit::Done)
}
