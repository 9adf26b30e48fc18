//! The command tree of `remote-sync`: what `--help` teaches, and which function each command calls.

use crate::cli::exit::{self, Outcome};
use crate::cli::output::Output;
use crate::cli::{client_commands, conflicts_command, logging, sync_commands};
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Keeps one local SQLite database in step with its server.
///
/// The local database is ordinary SQLite: any program reads and writes it, with or without a network, while it is kept in step. Its
/// path is the handle of every command; what belongs to it (inbox, outbox, settings) lies beside it in DB.sync.
#[derive(Debug, Parser)]
#[command(name = "remote-sync", version, propagate_version = true, after_help = AFTER_HELP, after_long_help = AFTER_HELP)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of every command")]
struct Common {
    /// Print JSON, for programs
    #[arg(long, global = true)]
    json: bool,
    /// Print results and errors only
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Log more on stderr; -vv for still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

const AFTER_HELP: &str = "\
First steps:
  remote-sync init hq.example.com --token DM1-.. pos.db    fetch the database, once
  remote-sync sync pos.db                                  get in step now (from cron, or by hand)
  remote-sync watch pos.db                                 stay in step until Ctrl-C

Exit codes: 0 done; 1 done, but something waits for a person; 2 failed; 3 busy or offline, try again.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch the database of a node, once
    Init(sync_commands::InitArgs),
    /// Get in step now: send what was changed here, fetch what waits, apply it
    Sync(sync_commands::SyncArgs),
    /// Stay in step until Ctrl-C: changes are sent as they happen and arrive as they are routed
    Watch(client_commands::DatabaseArgs),
    /// Show how far the local database is, and what needs a person
    Status(client_commands::DatabaseArgs),
    /// List local changes that the server has not confirmed
    Pending(client_commands::DatabaseArgs),
    /// Look at changes of this node that were lost or refused, and write them once more
    Conflicts(conflicts_command::ConflictsArgs),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    logging::start(arguments.common.verbose, matches!(arguments.command, Command::Watch(_)) && !arguments.common.quiet);
    #[cfg(debug_assertions)]
    exit::arm_for_tests();
    exit::finish(run(&arguments))
}

fn run(arguments: &Arguments) -> Outcome {
    let output = Output::new(arguments.common.json, arguments.common.quiet);
    match &arguments.command {
        Command::Init(args) => sync_commands::init(args, output),
        Command::Sync(args) => sync_commands::sync(args, output),
        Command::Watch(args) => sync_commands::watch(args, output),
        Command::Status(args) => client_commands::status(args, output),
        Command::Pending(args) => client_commands::pending(args, output),
        Command::Conflicts(args) => conflicts_command::conflicts(args, output),
    }
}
