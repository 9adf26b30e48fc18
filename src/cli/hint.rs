//! What the person at the keyboard can do about an error: the one file that maps typed errors to hints and exit codes.
//!
//! The layers below say what happened and to which file, row or node; only here is it known which command mends it.

use crate::cli::config::ConfigError;
use crate::cli::exit::Exit;

/// Returns the hint for the first error of the chain that has one.
pub fn of(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| cause.downcast_ref::<ConfigError>().map(config))
}

/// Returns the exit code that the error ends the program with.
pub fn exit_of(_error: &anyhow::Error) -> Exit {
    Exit::Failed
}

fn config(error: &ConfigError) -> String {
    match error {
        ConfigError::Missing { .. } => "--config or DOCKMASTER_CONFIG names it; leave both out to use ./dockmaster.toml",
        ConfigError::Nowhere => "begin with: dockmaster init DATABASE (or name a file: --config FILE)",
        ConfigError::Read { .. } => "it must be a readable UTF-8 text file",
    }
    .to_owned()
}
