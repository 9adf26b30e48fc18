//! The command tree of `dockmaster`: what `--help` teaches, and which function each command calls.

use crate::cli::exit::{self, EXIT_CODES, Exit, Outcome};
use crate::cli::output::Output;
use crate::cli::{config, logging};
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// Keeps many occasionally connected SQLite databases in step with one server database.
///
/// A row that is changed on the server with plain SQL reaches every node that may see it, whole unit by whole unit, in
/// order, exactly once, and no other node. The definition (dockmaster.toml) says who may see what.
#[derive(Debug, Parser)]
#[command(name = "dockmaster", version, after_long_help = AFTER_HELP, propagate_version = true)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, clap::Args)]
struct Common {
    /// The definition and settings [default: ./dockmaster.toml, then /etc/dockmaster/dockmaster.toml]
    #[arg(long, global = true, env = "DOCKMASTER_CONFIG", value_name = "FILE", hide_env = true)]
    config: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long, global = true)]
    json: bool,
    /// Say less
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Log more on stderr; twice for much more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

const AFTER_HELP: &str = const_format(EXIT_CODES);

const fn const_format(text: &'static str) -> &'static str {
    text
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show where the configuration file is
    Where,
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    logging::start(arguments.common.verbose, false);
    exit::finish(run(&arguments))
}

fn run(arguments: &Arguments) -> Outcome {
    let output = Output::new(arguments.common.json, arguments.common.quiet);
    match &arguments.command {
        Command::Where => {
            output.line(config::find(arguments.common.config.as_deref())?.display().to_string())?;
            Ok(Exit::Done)
        }
    }
}
