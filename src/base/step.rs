//! How a stage runs: bounded work that returns, and an event that wakes it (architecture 6).

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// What one `step()` of a stage did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Something was done; there may be more, call again.
    Worked,
    /// Nothing waits; call again after the next event.
    Idle,
}

/// An event that wakes one waiting stage. Setting it twice before it is waited for wakes once.
#[derive(Debug, Clone, Default)]
pub struct Wake(Arc<(Mutex<bool>, Condvar)>);

impl Wake {
    /// Returns an event that is not set.
    pub fn new() -> Wake {
        Wake::default()
    }

    /// Sets the event and wakes the waiter.
    pub fn set(&self) {
        let (flag, condvar) = &*self.0;
        *flag.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = true;
        condvar.notify_all();
    }

    /// Waits until the event is set or `timeout` has passed, and clears it. Returns whether it was set.
    pub fn wait(&self, timeout: Duration) -> bool {
        let (flag, condvar) = &*self.0;
        let deadline = Instant::now() + timeout;
        let mut set = flag.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        while !*set {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            set = condvar.wait_timeout(set, left).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        std::mem::take(&mut *set)
    }
}

/// First pause before a log is looked at again after an event that brought nothing, and the last one.
const LOOK_AGAIN_FIRST: Duration = Duration::from_micros(100);
const LOOK_AGAIN_LAST: Duration = Duration::from_millis(500);

/// How long to wait for the next look at the log of a database.
///
/// The event of a commit comes when its frames are written, before they are flushed and can be seen. So after an event
/// that brought nothing the log is looked at again, soon at first, for about a second; then the next event is awaited.
#[derive(Debug, Default)]
pub struct Patience(Option<Duration>);

impl Patience {
    /// Waits after a look that brought nothing, at most for `poll`.
    pub fn wait(&mut self, event: &Wake, poll: Duration) {
        let pause = self.0.take();
        if event.wait(pause.unwrap_or(poll)) {
            self.0 = Some(LOOK_AGAIN_FIRST);
        } else {
            self.0 = pause.map(|pause| pause * 2).filter(|pause| *pause <= LOOK_AGAIN_LAST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_set_before_the_wait_is_not_lost() {
        let wake = Wake::new();
        wake.set();
        wake.set();
        assert!(wake.wait(Duration::ZERO));
        assert!(!wake.wait(Duration::ZERO));
    }
}
