//! Layer 5: arguments, configuration, output and exit codes of the two programs. Nothing below reads the environment,
//! prints, or knows what an exit code is.
//!
//! `dockmaster.rs` and `remote_sync.rs` are the two command trees; each command is one small function in a
//! `*_commands.rs` file that calls the layer below and hands the answer to `output`.

mod bench_commands;
mod carrier_commands;
pub mod client_commands;
pub mod config;
pub mod confirm;
mod conflict_commands;
mod conflicts_command;
pub mod definition_commands;
pub mod dockmaster;
pub mod dx_commands;
pub mod exit;
mod explain_command;
pub mod explain_view;
pub mod hint;
mod history_command;
pub mod logging;
mod message_commands;
pub mod node_commands;
pub mod output;
mod person;
pub mod project;
mod reconcile_command;
mod recover_command;
pub mod remote_sync;
mod serve_command;
pub mod server_commands;
#[cfg(unix)]
mod session_command;
pub mod status_view;
mod sync_commands;
mod sync_report;
mod tick_command;
mod verify_command;
