//! `watch`: stays connected, fetches what is routed, applies it, comes back after every break.
//!
//! Passing trouble (no line, server stops, another session still counted as alive) leads to another attempt after a pause that grows
//! to a minute, with a random part so that a thousand nodes do not return together. Anything else needs a person and ends the watch.

use crate::client::exchange::{Exchange, ExchangeOptions, SharedApplier, jitter, runtime};
use crate::client::folder::{LockedFolder, RemoteConfig};
use crate::client::report::{ExchangeError, Progress, ProgressEvent, SyncReport};
use crate::session::message::Mode;
use tokio_util::sync::CancellationToken;

/// Watches until `stop`, then parts in peace. Blocks.
///
/// # Errors
/// What needs a person: refused for good, wrong server, damaged twice, the disk, the local database.
pub fn watch(
    folder: &LockedFolder,
    config: &RemoteConfig,
    applier: &SharedApplier,
    options: &ExchangeOptions,
    progress: &mut dyn Progress,
    stop: &CancellationToken,
) -> Result<SyncReport, ExchangeError> {
    runtime()?.block_on(async {
        let mut report = SyncReport::default();
        let mut pause = options.pause;
        loop {
            let sessions = report.sessions;
            let exchange = Exchange { folder, config, applier, options, mode: Mode::Watch, report: &mut report, progress: &mut *progress };
            let outcome = Box::pin(exchange.run(stop)).await;
            if stop.is_cancelled() {
                return outcome.or_else(|error| if error.is_passing() { Ok(()) } else { Err(error) }).map(|()| report);
            }
            let why = match outcome {
                Ok(()) => "the session ended".to_owned(),
                Err(error) if error.is_passing() => error.to_string(),
                Err(error) => return Err(error),
            };
            if report.sessions > sessions {
                pause = options.pause;
            }
            let wait = jitter(pause);
            tracing::info!("{why}; next attempt in {:.1} s", wait.as_secs_f32());
            progress.on(&ProgressEvent::Again { why, pause: wait });
            tokio::select! {
                () = stop.cancelled() => return Ok(report),
                () = tokio::time::sleep(wait) => {}
            }
            pause = (pause * 2).min(options.pause_max);
        }
    })
}
