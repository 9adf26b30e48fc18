//! The alert hook (DOE-24, X-41): a command of the administrator is run once when something begins to need a person.
//!
//! What was told is kept in `sessions.db`, so a restart tells nothing twice; what is over is forgotten, so it is told again when it
//! comes back. The hook runs on a thread of its own: a hook that hangs or fails is logged and delays nothing but the next alert.

use super::status::{Need, ServerStatus, StatusError, StatusOptions, status};
use crate::docking::root::DockingRoot;
use crate::docking::sessions::{SessionsDb, SessionsError};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a hook may take before it is ended.
const HOOK_TIME: Duration = Duration::from_secs(30);

/// Why a look for alerts failed.
#[derive(Debug, thiserror::Error)]
pub enum AlertingError {
    /// The status.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// What was told cannot be read or kept.
    #[error(transparent)]
    Sessions(#[from] SessionsError),
}

/// Looks once: runs `command` for everything that needs a person and was not told yet. Returns how many were told.
///
/// # Errors
/// The status or `sessions.db` cannot be read. A hook that fails is logged.
pub fn look(command: &str, options: &StatusOptions, root: &DockingRoot) -> Result<usize, AlertingError> {
    let now = status(options)?;
    let sessions = SessionsDb::open(&root.sessions_db())?;
    let known = sessions.hooked()?;
    let needs = all_needs(&now);
    for key in known.iter().filter(|key| !needs.contains_key(*key)) {
        sessions.unhook(key)?;
    }
    let mut told = 0;
    for (key, (node, need)) in needs.iter().filter(|(key, _)| !known.contains(*key)) {
        // Kept first: a hook that ends the machine is not run by it again and again.
        sessions.hook(key)?;
        let alert = json!({
            "version": 1, "server": now.server_name, "node": node, "level": need.level.to_string(), "what": need.what, "command": need.command,
            "at": options.now,
        });
        match run(command, &alert.to_string()) {
            Ok(()) => told += 1,
            Err(reason) => tracing::error!(stage = "alerts", command, reason, what = need.what, "the alert hook failed"),
        }
    }
    Ok(told)
}

/// Every need by a key that stays the same while it lasts.
fn all_needs(status: &ServerStatus) -> BTreeMap<String, (Option<String>, &Need)> {
    let of_server = status.needs.iter().map(|need| (need.key.clone(), (None, need)));
    let of_nodes = status.nodes.iter().flat_map(|node| {
        let name = node.node.to_string();
        node.needs.iter().map(move |need| (format!("{name} {}", need.key), (Some(name.clone()), need)))
    });
    of_server.chain(of_nodes).collect()
}

/// Runs the command by the system's shell, with the alert on its standard input.
fn run(command: &str, alert: &str) -> Result<(), String> {
    let (shell, option) = if cfg!(windows) { ("cmd", "/C") } else { ("sh", "-c") };
    let mut child = Command::new(shell)
        .args([option, command])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("it cannot be started: {error}"))?;
    if let Some(mut stdin) = child.stdin.take()
        && let Err(error) = stdin.write_all(alert.as_bytes())
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        tracing::debug!(%error, "the hook did not read the alert");
    }
    let until = Instant::now() + HOOK_TIME;
    loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(ended) if ended.success() => return Ok(()),
            Some(ended) => return Err(format!("it ended with {ended}")),
            None if Instant::now() >= until => {
                // Whatever it started itself is its own.
                let killed = child.kill().and_then(|()| child.wait());
                return Err(format!("it ran longer than {} s and was ended ({killed:?})", HOOK_TIME.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
