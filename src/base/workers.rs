//! Work that is shared among threads when there is enough of it: each thread takes a run of items, results keep their order.

use std::num::NonZero;

/// Most threads that share one piece of work.
const WORKERS_MAX: usize = 8;

/// Calls `work` with consecutive runs of the items, each at least `run_min` long, on as many threads as the machine runs at once.
/// Few items are one run, on the caller's own thread.
///
/// # Errors
/// The first error by position.
pub fn in_runs<T: Send, R: Send, E: Send>(
    items: Vec<T>,
    run_min: usize,
    work: impl Fn(Vec<T>) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(WORKERS_MAX);
    let runs = (items.len() / run_min.max(1)).min(threads);
    if runs < 2 {
        return work(items).map(|result| vec![result]);
    }
    let length = items.len().div_ceil(runs);
    let mut shares: Vec<Vec<T>> = Vec::with_capacity(runs);
    let mut rest = items;
    while rest.len() > length {
        let later = rest.split_off(length);
        shares.push(std::mem::replace(&mut rest, later));
    }
    shares.push(rest);
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = shares.into_iter().map(|share| scope.spawn(move || work(share))).collect();
        let joined: Vec<Result<R, E>> =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect();
        joined.into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_keep_their_order_and_the_first_error_wins() {
        for count in [0, 1, 7, 8, 1_000] {
            let runs = in_runs((0..count).collect(), 4, |run: Vec<usize>| Ok::<_, ()>(run)).unwrap();
            assert_eq!(runs.concat(), (0..count).collect::<Vec<_>>());
        }
        let failed = in_runs((0..1_000).collect(), 4, |run: Vec<usize>| run.into_iter().find(|item| *item % 100 == 99).map_or(Ok(()), Err));
        assert_eq!(failed, Err(99));
    }
}
