//! `status`, `serve`, `run`, `extract`: the commands around the stages.

use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::Output;
use crate::cli::project::Settings;
use crate::cli::status_view;
use crate::server::status::{StatusOptions, status as server_status};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Shows how far everybody is; exit code 1 if something waits for a person.
pub(crate) fn status(named: Option<&Path>, output: Output) -> Outcome {
    let settings = Settings::load(named)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
    let options = StatusOptions { database: settings.database, root: settings.root, server_name: settings.server.name, now };
    let status = server_status(&options)?;
    if output.is_json() {
        output.json(status_view::server_json(&status))?;
    } else {
        output.line(status_view::server_text(&status))?;
    }
    let in_need = !status.needs.is_empty() || status.nodes_in_need() > 0;
    Ok(if in_need { Exit::NeedsPerson } else { Exit::Done })
}
