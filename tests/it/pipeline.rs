//! The whole pipeline against the oracle: random schemas, definitions, transactions, nodes and accidents, on the real components in one
//! process: a server database with our capture triggers, `deploy`, Transaction Processor, extracts, Router, apply.
//!
//! After each time that a node applied, its tables are what the naive evaluation of the server's history gives for exactly the unit
//! that the node says it is at (I1), and no file ever written holds a row version that its node does not see at the end of that unit.
//!
//! Without these it plays the same cases each time, so that a failure is the build's own. `PIPELINE_SEED=<n>` replays one case and
//! prints what it did, `PIPELINE_FIRST=<n>` and `PIPELINE_CASES=<n>` choose others.

mod case;
pub(crate) mod definition;
mod fault;
pub(crate) mod history;
pub(crate) mod rule;
pub(crate) mod schema;
mod shadow;
pub(crate) mod site;
pub(crate) mod writes;

use crate::harness::{Played, number};
use case::{Case, Done};
use fault::Fault;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const CASES: u64 = 2_000;
/// The seed of the first of them.
const FIRST: u64 = 40_000;
/// Things that happen in a case.
const ACTIONS: usize = 24;
const THREADS: usize = 2;

/// Plays one case. An error comes with everything that was done.
fn play(seed: u64, fault: Fault) -> Played<Done> {
    crate::harness::play(|| Case::new(seed, fault), |case| case.play(ACTIONS), |case| case.log.clone())
}

#[test]
fn i1_r7_every_node_is_at_one_unit_of_the_server_whatever_happens_and_no_file_tells_more() {
    crate::harness::plant_defect();
    if let Some(seed) = number("PIPELINE_SEED") {
        let played = play(seed, Fault::None);
        if let Err((error, log)) = played {
            panic!("{}\n\nseed {seed}: {error}", log.join("\n"));
        }
        return;
    }
    let cases = number("PIPELINE_CASES").unwrap_or(CASES);
    let first = number("PIPELINE_FIRST").unwrap_or(FIRST);
    eprintln!("seeds {first} to {}", first + cases - 1);
    let next = AtomicU64::new(0);
    let (compared, files) = (AtomicU64::new(0), AtomicU64::new(0));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|threads| {
        for _ in 0..THREADS {
            threads.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= cases || failures.lock().unwrap().len() >= 20 {
                        return;
                    }
                    match play(first + at, Fault::None) {
                        Ok(done) => {
                            compared.fetch_add(done.compared, Ordering::Relaxed);
                            files.fetch_add(done.files, Ordering::Relaxed);
                        }
                        Err((error, _)) => failures.lock().unwrap().push(format!("PIPELINE_SEED={}: {error}", first + at)),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let (compared, files) = (compared.into_inner(), files.into_inner());
    eprintln!("{cases} cases, {compared} comparisons, {files} files");
    assert!(compared > 2 * cases && files > cases, "too little happened: {compared} comparisons, {files} files");
}

/// Plays cases with a fault planted until one is seen. Returns what was said of it, and in how many cases nothing was.
fn caught(fault: Fault, what: &str) {
    let first = fastrand::u64(..1 << 40);
    for seed in first..first + 400 {
        if let Err((error, _)) = play(seed, fault)
            && error.contains(what)
        {
            eprintln!("{fault:?} was caught by seed {seed}, after {} others: {error:.300}", seed - first);
            return;
        }
    }
    panic!("{fault:?} was not caught by the seeds {first} to {}", first + 399);
}

#[test]
fn r7_r1_nothing_is_seen_where_the_way_of_a_fault_is_gone_without_it() {
    for seed in FIRST..FIRST + 60 {
        let fault = if seed % 2 == 0 { Fault::Control } else { Fault::LiveImages };
        if let Err((error, log)) = play(seed, fault) {
            panic!("{}\n\n{fault:?}, seed {seed}: {error}", log.join("\n"));
        }
    }
}

#[test]
fn r7_node_keys_before_rows_are_caught() {
    caught(Fault::NodeKeysFirst, "");
}

#[test]
fn r7_node_keys_after_rows_are_caught() {
    caught(Fault::NodeKeysLast, "leak");
}

#[test]
fn r7_a_transaction_routed_change_by_change_is_caught() {
    caught(Fault::ChangeByChange, "leak");
}

#[test]
fn r8_keys_without_their_path_are_caught() {
    caught(Fault::KeysWithoutPath, "");
}

#[test]
fn r1_a_capture_of_new_images_is_caught() {
    caught(Fault::NewImages, "should have");
}

#[test]
fn r26_leave_events_lost_in_a_rebuild_are_caught() {
    caught(Fault::LostLeaves, "should have");
}
