//! The command tree of `dockmaster`: what `--help` teaches, and which function each command calls.

use crate::cli::exit::{self, Outcome};
use crate::cli::output::Output;
#[cfg(unix)]
use crate::cli::session_command;
use crate::cli::{
    bench_commands, carrier_commands, conflict_commands, definition_commands, dx_commands, explain_command, logging, message_commands,
    node_commands, reconcile_command, recover_command, serve_command, server_commands, tick_command, verify_command,
};
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Keeps many occasionally connected SQLite databases in step with one server database.
///
/// A row that is changed on the server with plain SQL, by any program, reaches every node that may see it, in order, exactly
/// once, and no other node. What programs change on a node is merged into the server database, field by field, once. Who may see and
/// write what stands in the definition, dockmaster.toml.
#[derive(Debug, Parser)]
#[command(name = "dockmaster", version, propagate_version = true, after_help = AFTER_HELP, after_long_help = AFTER_HELP)]
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
    /// Definition and settings [default: ./dockmaster.toml, else /etc/dockmaster/dockmaster.toml]
    #[arg(long, global = true, env = "DOCKMASTER_CONFIG", hide_env_values = true, value_name = "FILE")]
    config: Option<PathBuf>,
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
  dockmaster init hq.db                    write a first dockmaster.toml for that database
  dockmaster check                         say what is wrong in it, all at once
  dockmaster deploy                        show the plan, ask, install
  dockmaster node add SHOP-01 --set shop=1 register a node
  dockmaster serve                         run the service; nodes join with: remote-sync init

Exit codes: 0 done; 1 done, but something waits for a person; 2 failed; 3 busy or offline, try again.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Read a database and write a first dockmaster.toml; touches nothing else
    Init(definition_commands::InitArgs),
    /// Say everything that is wrong with the definition, with file, line and column
    Check,
    /// Check, show the plan and its effect, ask, then install or change; the same command for every later change
    Deploy(definition_commands::DeployArgs),
    /// Take everything of ours out of the server database and prove that nothing is left
    Uninstall(definition_commands::UninstallArgs),
    /// Carry the session of a node that sshd has let in to the service; sshd runs it
    #[cfg(unix)]
    Session(session_command::SessionArgs),
    /// Run the service: route as things change, serve nodes as they call
    Serve,
    /// Do one pass and end, for cron; all stages unless some are named
    Run(server_commands::RunArgs),
    /// Register, list and change nodes
    #[command(subcommand)]
    Node(node_commands::NodeCommand),
    /// Places where letters lie for nodes that no line reaches: a share, a stick
    #[command(subcommand)]
    Carrier(carrier_commands::CarrierCommand),
    /// Make a new extract for nodes: the ready local database that `remote-sync init` fetches
    Extract(server_commands::ExtractArgs),
    /// Say what to do about a server database that is not the one read last, and do it
    Recover(recover_command::RecoverArgs),
    /// Let time windows go on to today after a leap of the clock
    Tick(tick_command::TickArgs),
    /// Compare tables with the data store and send nodes the difference
    Reconcile(reconcile_command::ReconcileArgs),
    /// Show how far everybody is, and what needs a person
    Status,
    /// Print all positions, lags and counts for Prometheus (textfile collector of node_exporter)
    Metrics,
    /// Say why a node has a row or has not: rule by rule, then stage by stage
    Explain(explain_command::ExplainArgs),
    /// Look at what nodes sent up, and decide on what the server refused
    #[command(subcommand)]
    Messages(message_commands::MessageCommand),
    /// Look at changes of nodes that met others, and settle those that wait for a person
    #[command(subcommand)]
    Conflicts(conflict_commands::ConflictCommand),
    /// Compare nodes with what they should see, row by row, at one place of the stream
    Verify(verify_command::VerifyArgs),
    /// Measure, each figure beside a baseline in the same run
    #[command(subcommand, hide = true)]
    Bench(bench_commands::BenchCommand),
    /// Look into .dx files, or check them
    #[command(subcommand)]
    Dx(dx_commands::DxCommand),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    logging::start(arguments.common.verbose, matches!(arguments.command, Command::Serve) && !arguments.common.quiet);
    #[cfg(debug_assertions)]
    exit::arm_for_tests();
    exit::finish(run(&arguments))
}

fn run(arguments: &Arguments) -> Outcome {
    let common = &arguments.common;
    let named = common.config.as_deref();
    let output = Output::new(common.json, common.quiet);
    match &arguments.command {
        Command::Init(args) => definition_commands::init(named, args, output),
        Command::Check => definition_commands::check(named, output),
        Command::Deploy(args) => definition_commands::deploy(named, args, output),
        Command::Uninstall(args) => definition_commands::uninstall(named, args, output),
        Command::Serve => serve_command::serve(named, output),
        #[cfg(unix)]
        Command::Session(args) => session_command::session(named, args),
        Command::Run(args) => server_commands::run(named, args, output),
        Command::Node(command) => node_commands::node(named, command, output),
        Command::Carrier(command) => carrier_commands::carrier(named, command, output),
        Command::Extract(args) => server_commands::extract(named, args, output),
        Command::Recover(args) => recover_command::recover(named, args, output),
        Command::Tick(args) => tick_command::tick(named, args, output),
        Command::Reconcile(args) => reconcile_command::reconcile(named, args, output),
        Command::Status => server_commands::status(named, output),
        Command::Metrics => server_commands::metrics(named, output),
        Command::Explain(args) => explain_command::explain(named, args, output),
        Command::Messages(command) => message_commands::messages(named, command, output),
        Command::Conflicts(command) => conflict_commands::conflicts(named, command, output),
        Command::Verify(args) => verify_command::verify(named, args, output),
        Command::Bench(command) => bench_commands::bench(command, output),
        Command::Dx(command) => dx_commands::dx(command, output),
    }
}
