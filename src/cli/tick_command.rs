//! `tick`: the day from which time windows count, and the leave to make a long step (R39).

use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::Output;
use crate::cli::project::Settings;
use crate::server::pass::{PendingTick, pending_tick, window_day};
use crate::store::control::Control;
use crate::store::sqlite::ServerDatabase;
use serde_json::json;
use std::path::Path;

/// Arguments of `tick`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Time windows count from a day that goes on by itself, never back, and never by more than two days at once: behind a longer step \
there may be a clock that was set wrong, and rows would leave every node. After a long pause of the service, or once the clock is \
right, --accept lets the windows go on to today.")]
pub(crate) struct TickArgs {
    /// Go on to today
    #[arg(long)]
    accept: bool,
}

/// Says from which day windows count, or lets them go on.
pub(crate) fn tick(named: Option<&Path>, args: &TickArgs, output: Output) -> Outcome {
    let settings = Settings::load(named)?;
    let today = window_day(i64::from(settings.server.day_starts_minutes));
    let pending = pending_tick(&settings.root, today)?;
    let date = |day: i64| jiff::civil::date(1970, 1, 1).saturating_add(jiff::Span::new().days(day)).to_string();
    let (day, text) = match &pending {
        None => (None, "The definition has no time windows.".to_owned()),
        Some(PendingTick { day, days: 0 }) => (Some(*day), format!("Windows count from {}.", date(*day))),
        Some(PendingTick { day, days }) => {
            (Some(*day), format!("Windows count from {}; today is {}, {days} days later.", date(*day), date(today)))
        }
    };
    let is_waiting = pending.as_ref().is_some_and(PendingTick::is_long);
    let is_accepted = args.accept && is_waiting;
    if is_accepted {
        ServerDatabase::open(&settings.database)?.append_control(&Control::Tick { day: today })?;
    }
    if output.is_json() {
        output.json(json!({ "day": day, "today": today, "waits": is_waiting && !is_accepted, "accepted": is_accepted }))?;
    }
    output.say(if is_accepted { format!("Windows go on to {}.", date(today)) } else { text })?;
    Ok(if is_waiting && !is_accepted { Exit::NeedsPerson } else { Exit::Done })
}
