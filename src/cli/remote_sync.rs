//! The command tree of `remote-sync`: what `--help` teaches, and which function each command calls.

use std::process::ExitCode;

/// Runs the program.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
