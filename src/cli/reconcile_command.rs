//! `reconcile`: compare tables with the data store and send nodes the difference.

use crate::base::ids::TxnId;
use crate::cds::compare::Reconciled;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{Output, count, table};
use crate::cli::project::Settings;
use crate::cli::server_commands::serve_options;
use crate::docking::error::DockingError;
use crate::docking::root::{Access, DockingRoot};
use crate::server::pass::{self, Stage};
use crate::server::reconcile::{Outcome as Compared, ask, outcome};
use crate::store::sqlite::ServerDatabase;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How often the service's progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Arguments of `reconcile`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dockmaster reconcile                   every table
  dockmaster reconcile Orders Customers  these two

Compares the server database with the data store in one snapshot. What differs is sent to the nodes that see it, like any other \
change; nothing is extracted anew. Nobody has to type it when a trigger was lost or a table was rebuilt: the service does it by \
itself. It reads each table once, from end to end.

Ends with 1 if a table is stopped, so that it could not be compared.")]
pub(crate) struct ReconcileArgs {
    /// The tables; all if none is named
    #[arg(value_name = "TABLE")]
    tables: Vec<String>,
}

/// Asks for the comparison, sees to it that it is done, and prints what was found.
pub(crate) fn reconcile(named: Option<&Path>, args: &ReconcileArgs, output: Output) -> Outcome {
    let settings = Settings::load(named)?;
    let database = ServerDatabase::open(&settings.database)?;
    let position = ask(&database, &args.tables)?;
    match DockingRoot::open(&settings.root, Access::Exclusive) {
        Ok(root) => drop(pass::run(&serve_options(&settings), &Arc::new(root), &[Stage::TxnProc, Stage::Router])?),
        Err(DockingError::InUse { .. }) => output.say("the service compares now")?,
        Err(error) => return Err(error.into()),
    }
    let (found, stopped) = wait(&settings, position)?;
    if output.is_json() {
        let stopped: Vec<_> = stopped.iter().map(|(table, reason)| json!({ "table": table, "reason": reason })).collect();
        output.json(json!({ "position": position.0, "compared": found, "stopped": stopped }))?;
    }
    output.say(text(&found, &stopped))?;
    Ok(if stopped.is_empty() { Exit::Done } else { Exit::NeedsPerson })
}

/// Waits until the Transaction Processor has passed a position; whoever is tired of waiting presses Ctrl-C, the comparison goes on.
fn wait(settings: &Settings, position: TxnId) -> anyhow::Result<Compared> {
    let root = DockingRoot::look(&settings.root);
    loop {
        if let Some(found) = outcome(&root.cds_db(), position)? {
            return Ok(found);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn text(found: &[Reconciled], stopped: &[(String, String)]) -> String {
    let mut lines = Vec::new();
    let number = |number: u64| count(number.cast_signed());
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|of| vec![of.table.clone(), number(of.found.missing), number(of.found.extra), number(of.found.different)])
        .collect();
    if !rows.is_empty() {
        lines.push(table(&["table", "missing", "extra", "different"], rows, &[1, 2, 3]));
    }
    for (table, reason) in stopped {
        lines.push(format!("! {table} was not compared, it is stopped: {reason}"));
    }
    let differ: u64 = found.iter().map(|of| of.found.missing + of.found.extra + of.found.different).sum();
    lines.push(match differ {
        0 => "The data store was right; nothing had to be sent.".to_owned(),
        1 => "1 row was put right, at the nodes too.".to_owned(),
        several => format!("{} rows were put right, at the nodes too.", number(several)),
    });
    lines.join("\n")
}
