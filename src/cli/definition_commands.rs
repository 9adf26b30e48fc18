//! `init`, `check`, `deploy`, `uninstall`: the commands around the definition and the server database.

use crate::base::disk::Disk;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{Output, count};
use crate::cli::project::Project;
use crate::rules::check::Checked;
use crate::rules::problem::Problem;
use crate::rules::starter;
use crate::store::sqlite::ServerDatabase;
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};

/// Arguments of `init`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  dockmaster init hq.db          then edit the lines marked TODO in dockmaster.toml, and: dockmaster check")]
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
    if same_folder || database.is_absolute() { database.to_owned() } else { std::path::absolute(database).unwrap_or_else(|_| database.to_owned()) }
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
    if output.is_json() {
        return output.json(json!({ "problems": list(problems), "warnings": list(warnings), "ok": problems.is_empty() }));
    }
    for problem in problems {
        output.line(problem.to_string())?;
    }
    for warning in warnings {
        output.line(format!("warning: {warning}"))?;
    }
    match (problems.len(), dock) {
        (0, Some(dock)) => output.say(format!(
            "{}: no problems{}; {} objects, {} rules, {} tables",
            project.settings.config.display(),
            match warnings.len() {
                0 => String::new(),
                1 => ", 1 warning".to_owned(),
                several => format!(", {several} warnings"),
            },
            dock.objects.len(),
            dock.rules.len(),
            count(dock.tables.len() as i64)
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
