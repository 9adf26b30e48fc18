//! File handles of this process (fault 10): the limit is raised as far as the system lets us, and sessions are limited by it.

use crate::base::limits::{HANDLES_PER_SESSION, HANDLES_RESERVED, SESSIONS_MAX};

/// Raises the limit of open files to the highest that is allowed, and returns it; `None` where there is no such limit.
#[cfg(unix)]
pub fn raise_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
    getrlimit(Resource::Nofile).current
}

/// Raises the limit of open files to the highest that is allowed, and returns it; `None` where there is no such limit.
#[cfg(not(unix))]
pub fn raise_limit() -> Option<u64> {
    None
}

/// Returns how many sessions fit beside the stages, with so many file handles in all: at least one, at most `wanted`.
pub fn sessions_within(limit: Option<u64>, wanted: usize) -> usize {
    let fit = limit.map_or(SESSIONS_MAX as u64, |limit| limit.saturating_sub(HANDLES_RESERVED) / HANDLES_PER_SESSION);
    wanted.min(usize::try_from(fit).unwrap_or(usize::MAX)).max(1)
}

/// Returns whether an error of the system says that no file handle is left, for this process or for all.
pub fn is_exhausted(error: &std::io::Error) -> bool {
    #[cfg(unix)]
    let found = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    #[cfg(not(unix))]
    let found = false;
    found
}

/// Returns whether no file can be opened just now.
pub fn are_exhausted() -> bool {
    std::fs::File::open(".").is_err_and(|error| is_exhausted(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f10_few_handles_leave_few_sessions_and_always_one() {
        assert_eq!(sessions_within(None, 500), 500);
        assert_eq!(sessions_within(Some(1 << 20), 500), 500);
        assert_eq!(sessions_within(Some(HANDLES_RESERVED + 10 * HANDLES_PER_SESSION), 500), 10);
        assert_eq!(sessions_within(Some(20), 500), 1);
    }
}
