//! `serve`: the service in the foreground.

use crate::base::handles;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{Output, some};
use crate::cli::project::Settings;
use crate::cli::server_commands::serve_options;
use crate::docking::root::{Access, DockingRoot};
use crate::server::identity;
use crate::server::supervisor::{self, Stop};
use crate::store::sqlite::ServerDatabase;
use crate::transport::signals;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Runs the service until Ctrl-C or SIGTERM.
pub(crate) fn serve(named: Option<&Path>, output: Output) -> Outcome {
    let began = Instant::now();
    let settings = Settings::load(named)?;
    let handles = handles::raise_limit();
    let database = ServerDatabase::open(&settings.database)?;
    let identity = database.identity()?;
    let nodes = database.nodes()?.len();
    let fingerprint = identity::known(&settings.identity, &database)?.to_string();
    drop(database);
    let root = Arc::new(DockingRoot::open(&settings.root, Access::Exclusive)?);
    let stop = Stop::new();
    let token = signals::token()?;
    let stopping = stop.clone();
    std::thread::Builder::new().name("stop".into()).spawn(move || {
        // The token is cancelled from a runtime of its own; here nothing else is waited for.
        while !token.is_cancelled() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        stopping.stop();
    })?;
    let ready = |address: std::net::SocketAddr| {
        let told = if output.is_json() {
            output
                .json(json!({ "listening": address.to_string(), "identity": fingerprint, "revision": identity.revision.0, "nodes": nodes }))
        } else {
            output
                .say(format!(
                    "{}  {} (SQLite)  revision {}  root {}    listening on {address} (TLS 1.3, identity {})    {}",
                    identity.server_name,
                    settings.database.display(),
                    identity.revision,
                    settings.root.display(),
                    // The beginning tells one from another; the whole of it is in `status --json` and in every token.
                    &fingerprint[..11],
                    some(nodes as u64, "node", "nodes")
                ))
                .and_then(|()| output.say(format!("ready in {:.1} s, Ctrl-C stops cleanly", began.elapsed().as_secs_f32())))
        };
        if let Err(error) = told {
            // Whoever read our output went away; the service goes on.
            tracing::debug!(%error, "stdout is closed");
        }
    };
    let mut options = serve_options(&settings);
    let fit = handles::sessions_within(handles, options.sessions_max);
    if fit < options.sessions_max {
        tracing::warn!(limit = handles, "with so few file handles there is room for {fit} sessions, not {}", options.sessions_max);
        options.sessions_max = fit;
    }
    supervisor::serve(&options, &root, &stop, ready)?;
    output.say("stopped")?;
    Ok(Exit::Done)
}
