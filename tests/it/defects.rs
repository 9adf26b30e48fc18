//! Every defect of [`Defect::ALL`], planted into the programs: a harness must fail for it. One that cannot fail proves nothing.
//!
//! The harnesses are tests of this same binary, run as a process of their own with `DOCKMASTER_DEFECT` set. Other defects are planted from
//! outside, into routers, triggers and nodes of the tests: `pipeline::fault`, `converge::fault`, `scope`.

use dockmaster::base::defect::Defect;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Which test is to fail, with what in its environment, and what it then says: a test that fails for another reason has seen nothing.
fn harness(defect: Defect) -> (&'static str, &'static [(&'static str, &'static str)], &'static str) {
    const POWER: &str = "kills::power::f3_f4_f5_power_cuts_on_real_file_systems_lose_and_double_nothing";
    const CUTS: &[(&str, &str)] = &[("DOCKMASTER_CUTS", "50")];
    const PIPELINE: &str = "pipeline::i1_r7_every_node_is_at_one_unit_of_the_server_whatever_happens_and_no_file_tells_more";
    const CASES: &[(&str, &str)] = &[("PIPELINE_CASES", "100")];
    const ORDER: &str = "flush_order::f3_f4_every_file_is_flushed_before_its_name_and_its_folder_before_anybody_is_told";
    const SENT: &str = "acknowledged::f1_mi17_what_the_service_acknowledged_is_there_wherever_it_dies_while_a_node_sends";
    const PURGE: &str = "bounds::purge::r44_x10_s6_a_file_goes_when_applied_and_past_retention_and_a_txnproc_file_when_nobody_needs_it";
    const FORKS: &str = "apply::f12_a_repeated_file_is_dropped_and_another_one_under_its_number_is_a_fork";
    const CLONES: &str = "clones::g11_f21_r34_a_copy_that_calls_after_its_original_is_found_at_first_contact_at_20_timings";
    const LOCK: &str = "docking::fault29_a_root_in_use_names_its_holder";
    const FORGED: &str = "rights::forged::t2_t12_t13_forged_units_do_no_harm_through_the_merger_and_honest_ones_between_them_pass";
    match defect {
        // What a cut takes, and so what is said of it, differs from cut to cut.
        Defect::NoFileFlush | Defect::NoDatabaseFlush | Defect::NoTailFlush => (POWER, CUTS, ""),
        // ext4 flushes every name with the next flush of anything, so no cut shows it there.
        Defect::NoFolderFlush => (ORDER, &[], "not flushed in time"),
        Defect::SkippedWatermark => (PIPELINE, CASES, "PIPELINE_SEED"),
        Defect::StaleNodeKeys => (PIPELINE, CASES, ": leak to "),
        Defect::EarlyAcknowledgement => (SENT, &[], "acknowledged and not there"),
        Defect::EarlyPurge => (PURGE, &[], "left == right"),
        Defect::IgnoredChain => (FORKS, &[], "did not stop"),
        Defect::FormerTokens => (CLONES, &[], "N00: {"),
        Defect::UnlockedRoot => (LOCK, &[], "on an `Ok` value: DockingRoot"),
        Defect::BlindRights => (FORGED, &[], "was accepted"),
    }
}

/// Runs a test of this binary with a defect in the programs.
fn run(defect: Defect) -> Output {
    let (test, environment, _) = harness(defect);
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .envs(environment.iter().copied())
        .env("DOCKMASTER_DEFECT", defect.name())
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap()
}

/// What came of a harness: how long it took until it saw the defect, `None` where it had to be skipped.
fn caught(defect: Defect) -> Result<Option<Duration>, String> {
    let (test, _, wanted) = harness(defect);
    let began = Instant::now();
    let output = run(defect);
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if said.contains("running 0 tests") {
        return Err(format!("{}: there is no test {test}", defect.name()));
    }
    if let Some(skipped) = said.lines().find(|line| line.starts_with("SKIPPED")) {
        println!("{}: {skipped}", defect.name());
        return Ok(None);
    }
    // 101 is a test that failed; anything else is a harness that broke.
    match output.status.code() {
        Some(101) if said.contains(wanted) => Ok(Some(began.elapsed())),
        Some(0) => Err(format!("{} was not seen by {test}", defect.name())),
        other => Err(format!("{}: {test} ended with {other:?}\n{said}", defect.name())),
    }
}

#[test]
fn g1_g3_each_defect_that_is_planted_is_seen_by_its_harness() {
    let only = std::env::var("DOCKMASTER_DEFECTS").ok();
    let wanted = |defect: &&Defect| only.as_ref().is_none_or(|only| only.split(',').any(|name| name == defect.name()));
    let defects = Mutex::new(Defect::ALL.iter().filter(wanted));
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                loop {
                    let Some(defect) = defects.lock().unwrap().next() else { return };
                    match caught(*defect) {
                        Ok(Some(time)) => println!("{:<22} seen after {:.1} s: {}", defect.name(), time.as_secs_f32(), defect.meaning()),
                        Ok(None) => {}
                        Err(why) => failed.lock().unwrap().push(why),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
