//! SIGKILL of `dockmaster serve` and `remote-sync` at random moments of a busy run (fault 1, X-1): afterwards every node is
//! equal to the server, and every file and every local database on the way was exactly what its node saw at its unit (I1).
//!
//! [`KILLS`] of them, or as many as fit into [`TIME`]; `DOCKMASTER_KILLS=5000` (`just kills 5000`) asks for another number
//! and takes its time. `DOCKMASTER_SEED` repeats a run's workload, victims and delays; what the machine does in between is
//! its own.

mod history;
mod power;
mod town;
mod workload;

use crate::harness::{number, seed};
use std::time::{Duration, Instant};
use town::{LIFE_MAX_MS, Town, WATCHING};
use workload::Workload;

/// How many kills there are where no number is asked for.
const KILLS: u64 = 500;
/// How long they may take then.
const TIME: Duration = Duration::from_secs(60);

#[test]
fn f1_x1_i1_both_programs_killed_at_random_moments_of_a_busy_run() {
    let seed = number("DOCKMASTER_SEED").unwrap_or_else(seed);
    let wanted = number("DOCKMASTER_KILLS");
    println!("DOCKMASTER_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut town = Town::new(tempfile::tempdir().unwrap(), "");
    let workload = Workload::begin(town.folder(), seed, true);
    (0..WATCHING.len()).for_each(|which| town.kill_watching(which));
    let (began, mut killed, mut rebuilt) = (Instant::now(), [0u64; 3], 0);
    while killed.iter().sum::<u64>() < wanted.unwrap_or(KILLS) && (wanted.is_some() || began.elapsed() < TIME) {
        // Short lives are as likely as long ones: much happens in the first instants of a process.
        let longest = random.u64(1..=LIFE_MAX_MS);
        let delay = Duration::from_millis(random.u64(0..longest));
        match random.u32(0..10) {
            0..=4 => {
                std::thread::sleep(delay);
                let lost = (random.u32(0..25) == 0).then_some("cds.db");
                let _held = lost.map(|_| workload.deploying.lock().unwrap());
                town.kill_service(lost);
                killed[0] += 1;
                rebuilt += u32::from(lost.is_some());
            }
            5..=7 => {
                std::thread::sleep(delay);
                town.kill_watching(random.usize(0..WATCHING.len()));
                killed[1] += 1;
            }
            _ => {
                let renew = random.u32(0..4) == 0;
                town.kill_visit(delay, renew);
                killed[2] += 1;
            }
        }
    }
    let history = workload.end();
    town.quiesce();
    let (ran, judging) = (began.elapsed(), Instant::now());
    let compared = town.judge(&history);
    let deployed = history.iter().filter(|entry| matches!(entry.deed, history::Deed::Definition { .. })).count();
    println!(
        "killed: service {} (data store lost {rebuilt} times), watch {}, sync and init {}; {} transactions, {deployed} deploys, {compared} comparisons; {:.1} s and {:.1} s",
        killed[0],
        killed[1],
        killed[2],
        history.len(),
        ran.as_secs_f32(),
        judging.elapsed().as_secs_f32()
    );
    assert!(compared > 50, "{compared}");
}
