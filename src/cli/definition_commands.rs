//! `init`, `check`, `deploy`, `uninstall`: the commands around the definition and the server database.

use crate::base::disk::Disk;
use crate::cli::confirm::confirm;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{Output, count, some};
use crate::cli::project::{Project, Settings};
use crate::docking::error::DockingError;
use crate::docking::root::{Access, DockingRoot};
use crate::model::value::display_key;
use crate::rules::check::Checked;
use crate::rules::problem::Problem;
use crate::rules::starter;
use crate::server::deploy::{self, DeployOptions, DeployPlan};
use crate::store::sqlite::ServerDatabase;
use serde_json::{Value as Json, json};
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
    report(&project, output)?;
    Ok(if project.checked.problems.is_empty() { Exit::Done } else { Exit::Failed })
}

/// Prints problems and warnings, and in the end what they come to.
fn report(project: &Project, output: Output) -> anyhow::Result<()> {
    let Checked { problems, warnings, dock, .. } = &project.checked;
    let uncovered = dock.as_ref().map_or(Ok(Vec::new()), |dock| project.database.uncovered(dock))?;
    if output.is_json() {
        let uncovered: Vec<Json> = uncovered
            .iter()
            .map(|of| json!({ "object": of.object, "table": of.table, "rows": of.rows, "unseen": of.unseen, "example": display_key(&of.example) }))
            .collect();
        return output
            .json(json!({ "problems": list(problems), "warnings": list(warnings), "uncovered": uncovered, "ok": problems.is_empty() }));
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
}

/// Checks, shows what will be done, asks, and puts the definition into force.
pub(crate) fn deploy(named: Option<&Path>, args: &DeployArgs, output: Output) -> Outcome {
    let project = Project::load(named)?;
    let Checked { dock, warnings, text, .. } = &project.checked;
    let Some(dock) = dock else {
        report(&project, output)?;
        return Ok(Exit::Failed);
    };
    let settings = &project.settings;
    let options = DeployOptions {
        dock: dock.clone(),
        schema: project.schema.clone(),
        text: text.clone(),
        server_name: settings.server.name.clone(),
        database: settings.database.clone(),
        day_starts_minutes: i64::from(settings.server.day_starts_minutes),
    };
    let plan = deploy::plan(&options, &settings.root)?;
    for warning in warnings {
        output.say(format!("warning: {warning}"))?;
    }
    if plan.is_empty() {
        let revision = plan.revision.map_or(0, |revision| revision.0);
        if output.is_json() {
            output.json(json!({ "plan": plan, "deployed": null }))?;
        }
        output.say(format!("Nothing to do, revision {revision} is in force."))?;
        return Ok(Exit::Done);
    }
    output.say(plan_text(&plan, settings))?;
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
    if output.is_json() {
        output.json(json!({ "plan": plan, "deployed": deployed }))?;
    }
    if !deployed.in_force {
        output.say(format!("Revision {} is deployed; the service has not taken it over yet, its log says why.", deployed.revision))?;
        return Ok(Exit::TryAgain);
    }
    output.say(format!("Deployed revision {} in {:.1} s.", deployed.revision, began.elapsed().as_secs_f64()))?;
    Ok(Exit::Done)
}

fn plan_text(plan: &DeployPlan, settings: &Settings) -> String {
    let (database, root) = (settings.database.display().to_string(), settings.root.display().to_string());
    let width = database.len().max(root.len());
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
        let nodes = some(plan.active_nodes as u64, "node gets", "nodes get");
        lines.push(format!("  {nodes} exactly the rows that it gains and loses, with one unit"));
    }
    if plan.builds_data_store {
        let created = if settings.root.exists() { "" } else { "created, " };
        lines.push(format!("  {root:<width$}  {created}{} rows copied into the data store", count(plan.rows.cast_signed())));
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
