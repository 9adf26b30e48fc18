//! A bound on what all sessions of a server send together, so that the hour after a change of the rules leaves room on the line.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Lets bytes pass at a rate; who comes too early waits. Sessions share it, in the order in which they ask.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_second: Option<u64>,
    /// When the line is free again.
    free_at: Mutex<Instant>,
}

impl Throttle {
    /// Returns a bound; `None` = none.
    pub fn new(bytes_per_second: Option<u64>) -> Throttle {
        Throttle { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes may pass.
    pub async fn pass(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let begin = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = (*free_at).max(Instant::now());
            *free_at = begin + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            begin
        };
        tokio::time::sleep_until(begin).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn w3_sessions_share_a_rate_and_without_one_nobody_waits() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let began = Instant::now();
            let throttle = Arc::new(Throttle::new(Some(1_000)));
            let sessions: Vec<_> = (0..4)
                .map(|_| {
                    let throttle = Arc::clone(&throttle);
                    tokio::spawn(async move { throttle.pass(500).await })
                })
                .collect();
            for session in sessions {
                session.await.unwrap();
            }
            // Four times half a second, and the last one need not wait for its own bytes.
            assert_eq!(began.elapsed().as_millis(), 1_500);
            let free = Throttle::new(None);
            free.pass(usize::MAX).await;
            assert_eq!(began.elapsed().as_millis(), 1_500);
        });
    }
}
