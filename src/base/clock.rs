//! The time of day, for people and for what is written down. Nothing is decided by it but how long something waited.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Returns the microseconds since 1970; 0 if the clock of the machine stands before that.
pub fn now_micros() -> i64 {
    i64::try_from(since_1970().as_micros()).unwrap_or(i64::MAX)
}

/// Returns the seconds since 1970; 0 if the clock of the machine stands before that.
pub fn now_seconds() -> i64 {
    i64::try_from(since_1970().as_secs()).unwrap_or(i64::MAX)
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
