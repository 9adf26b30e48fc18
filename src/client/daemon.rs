//! `watch`: stays connected, sends what is changed here, fetches what is routed, applies it, comes back after every break.
//!
//! Passing trouble (no line, server stops, another session still counted as alive) leads to another attempt after a pause that grows
//! to a minute, with a random part so that a thousand nodes do not return together. Anything else needs a person and ends the watch.

use crate::base::step::{Patience, Wake};
use crate::client::applier::SharedUploads;
use crate::client::exchange::{Exchange, ExchangeOptions, SharedApplier, jitter, lock, runtime};
use crate::client::folder::{LockedFolder, RemoteConfig};
use crate::client::report::{ExchangeError, Progress, ProgressEvent, SyncReport};
use crate::session::message::Mode;
use crate::store::wal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Safety net for a lost event.
const POLL: Duration = Duration::from_secs(5);

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
    let runtime = runtime()?;
    let cuts = &Arc::new(Notify::new());
    let uploads = lock(applier).uploads().filter(|_| options.send);
    let cutter = uploads.map(|uploads| Cutter { uploads, cuts: Arc::clone(cuts), wake: Wake::new(), ended: AtomicBool::new(false) });
    // An event that is missed is made good by the poll.
    let _watcher = cutter
        .as_ref()
        .and_then(|cutter| wal::watch(folder.database(), cutter.wake.clone()).inspect_err(|error| tracing::warn!("{error}")).ok());
    let session = async {
        let mut report = SyncReport::default();
        let mut pause = options.pause;
        loop {
            let sessions = report.sessions;
            let exchange =
                Exchange { folder, config, applier, options, mode: Mode::Watch, cuts, report: &mut report, progress: &mut *progress };
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
    };
    std::thread::scope(|threads| {
        if let Some(cutter) = &cutter {
            threads.spawn(|| cutter.run());
        }
        let _end = cutter.as_ref().map(Ender);
        runtime.block_on(session)
    })
}

/// Cuts at every change of the database, on line or not, so that what a user does is not one unit for a whole week (R22).
struct Cutter {
    uploads: SharedUploads,
    cuts: Arc<Notify>,
    wake: Wake,
    ended: AtomicBool,
}

impl Cutter {
    fn run(&self) {
        let mut patience = Patience::default();
        while !self.ended.load(Ordering::Acquire) {
            match lock(&self.uploads).cut() {
                Ok(0) => {}
                Ok(_) => {
                    self.cuts.notify_one();
                    continue;
                }
                Err(error) => tracing::error!("cut what was changed here: {error}; it is tried again"),
            }
            patience.wait(&self.wake, POLL);
        }
    }
}

/// Ends the cutter, whatever ended the watch.
struct Ender<'a>(&'a Cutter);

impl Drop for Ender<'_> {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
        self.0.wake.set();
    }
}
