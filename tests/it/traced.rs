//! The real programs under strace.

use crate::harness::{Program, Site};
use std::process::{Command, Output, Stdio};

/// Why nothing can be traced here, if so.
pub(crate) fn obstacle() -> Option<String> {
    match Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(error.to_string()),
    }
}

/// Runs a program whose calls of those names are traced, with more `options`. Returns how it ended and what strace wrote down; handles are
/// shown with their paths.
pub(crate) fn traced(site: &Site, program: Program, arguments: &[&str], calls: &str, options: &[&str]) -> (Output, String) {
    let plain = site.command(program, arguments);
    let log = site.path("strace.log");
    let output = Command::new("strace")
        .args(["-f", "-y", "-o", log.to_str().unwrap(), "-e", &format!("trace={calls}"), "-e", "signal=none"])
        .args(options)
        .arg(plain.get_program())
        .args(plain.get_args())
        .current_dir(site.folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (output, std::fs::read_to_string(&log).unwrap())
}
