//! `recover`: what to do about a server database that is not the one read last.

use crate::cli::confirm::confirm;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{Output, count, some};
use crate::cli::project::Settings;
use crate::docking::root::{Access, DockingRoot};
use crate::server::recover::{self, Findings, Verdict};
use serde_json::json;
use std::path::Path;

/// Arguments of `recover`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dockmaster recover               say what was found and what can be done; changes nothing
  dockmaster recover --restored    the server database was restored from a backup, or replaced by another copy of itself
  dockmaster recover --moved       it is a copy made on purpose, with the same content and the same log

--restored begins a new epoch: the log goes on above what was read, nodes that the copy lost are written back, and every table is \
compared, so each node gets exactly the difference. No node is extracted anew. --moved only accepts the copy; it is refused if the log \
cannot go on where it was read.

Ends with 1 while something has to be decided.")]
pub(crate) struct RecoverArgs {
    /// The database was restored or replaced by an older or newer copy of itself
    #[arg(long, conflicts_with = "moved")]
    restored: bool,
    /// The database is a copy with the same content
    #[arg(long)]
    moved: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Says what was found, or carries out what was chosen.
pub(crate) fn recover(named: Option<&Path>, args: &RecoverArgs, output: Output) -> Outcome {
    let settings = Settings::load(named)?;
    let findings = recover::look(&settings.database, &settings.root)?;
    if !args.restored && !args.moved {
        if output.is_json() {
            output.json(json!({ "found": findings }))?;
        }
        output.say(text(&findings, &settings))?;
        return Ok(if findings.verdict == Verdict::Sound { Exit::Done } else { Exit::NeedsPerson });
    }
    output.say(text(&findings, &settings))?;
    if !confirm("Go on?", args.yes)? {
        output.say("Nothing was changed.")?;
        return Ok(Exit::Failed);
    }
    let root = DockingRoot::open(&settings.root, Access::Exclusive)?;
    if args.moved {
        let position = recover::moved(&settings.database, &root)?;
        if output.is_json() {
            output.json(json!({ "found": findings, "position": position.0 }))?;
        }
        output.say(format!("Accepted. The log is read on from {}.", count(position.0)))?;
        return Ok(Exit::Done);
    }
    let recovered = recover::restored(&settings.database, &root)?;
    if output.is_json() {
        output.json(json!({ "found": findings, "recovered": recovered }))?;
    }
    let mut lines = vec![format!("Epoch {} begins. Every table is compared with the next pass; start the service again.", recovered.epoch)];
    let names = |names: &[crate::base::ids::NodeName]| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !recovered.restored.is_empty() {
        lines.push(format!("Written back: {}.", names(&recovered.restored)));
    }
    if !recovered.disabled.is_empty() {
        lines.push(format!("Their streams had ended, so they are disabled: {}.", names(&recovered.disabled)));
    }
    lines.push("Tokens that nobody used yet are good no more: dockmaster node token NAME gives another.".to_owned());
    output.say(lines.join("\n"))?;
    Ok(Exit::Done)
}

fn text(found: &Findings, settings: &Settings) -> String {
    let mut lines = vec![match found.verdict {
        Verdict::Sound => format!("{} is the database that was read last; there is nothing to recover.", settings.database.display()),
        Verdict::AnotherCopy => format!("{} is not the database that was read last.", settings.database.display()),
        Verdict::LogNotWhole => {
            format!("{} is the database that was read last, but rows of its log are missing.", settings.database.display())
        }
        Verdict::OtherServer => format!("{} belongs to another server than the docking root.", settings.database.display()),
    }];
    let tail = found.tail.map_or_else(|| "never read".to_owned(), |tail| format!("read up to {}", count(tail)));
    lines.push(format!(
        "  data store      read up to {}, epoch {}, {}",
        count(found.read_up_to),
        found.epoch_known,
        some(found.nodes as u64, "running node", "running nodes")
    ));
    lines.push(format!("  this database   {tail}, epoch {}, log up to {}", found.epoch_found, count(found.log_end)));
    if let Some(last) = &found.last_logged {
        lines.push(format!("  last change     {last}"));
    }
    if let Some(since) = &found.since {
        lines.push(format!("  not read yet    {} since {since}", some(found.rows_above, "log row", "log rows")));
    }
    match found.verdict {
        Verdict::Sound => {}
        Verdict::OtherServer => lines.push("Put the right file back, or name another docking root.".to_owned()),
        Verdict::AnotherCopy | Verdict::LogNotWhole => lines.push(
            "Choose:\n  put the right file back        nothing else has to be done\n  dockmaster recover --restored  \
             new epoch, nodes get the difference, none is extracted anew\n  dockmaster recover --moved     \
             only if it holds all that was read: it is read on from there"
                .to_owned(),
        ),
    }
    lines.join("\n")
}
