//! `explain`: why a node has a row, or has not.

use crate::base::ids::NodeName;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::explain_view;
use crate::cli::output::Output;
use crate::cli::project::Settings;
use crate::server::explain::{ExplainOptions, explain as explained};
use std::path::Path;

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dockmaster explain ANNA Orders 10248
  dockmaster explain ANNA \"Order Details\" 10248 11      a key of two columns, in the order of the key
  dockmaster explain ANNA Parts \"'007'\"                 a text that looks like a number

First the rules, one by one, as of what the Transaction Processor has read: which chain of rows was walked, and which value met which
value of the node. Then the stages: where the last change of the row is, and what holds it there. For a row that is gone or not
visible the stages say with which file it left. Files that were purged are not searched; the answer says from where on.")]
pub(crate) struct ExplainArgs {
    /// The node
    #[arg(value_name = "NODE")]
    node: NodeName,
    /// The table, as the server database calls it
    #[arg(value_name = "TABLE")]
    table: String,
    /// The values of the row's primary key
    #[arg(value_name = "KEY", required = true, allow_negative_numbers = true)]
    key: Vec<String>,
}

/// Explains a row. Ends with 1 if something holds its last change.
pub(crate) fn explain(named: Option<&Path>, args: &ExplainArgs, output: Output) -> Outcome {
    let settings = Settings::load(named)?;
    let (node, table, key) = (args.node.clone(), args.table.clone(), args.key.clone());
    let explanation = explained(&ExplainOptions { database: settings.database, root: settings.root, node, table, key })?;
    if output.is_json() {
        output.json(explain_view::to_json(&explanation))?;
    } else {
        output.line(explain_view::text(&explanation))?;
    }
    Ok(if explanation.held_by.is_empty() { Exit::Done } else { Exit::NeedsPerson })
}
