//! The operating system says no: errors of single system calls in the real programs, by `strace -e inject` (fault 8, FSY).
//!
//! Each run meets the error one call later than the run before, on what that one left, until a run meets none. No run may
//! hang or panic; a run in which the flush of a file failed may not claim success; and in the end every node is equal to the server.

use crate::crm::{self, in_step, serve_again, server_sql};
use crate::harness::{Program, Site};
use crate::traced::{obstacle, traced};
use std::os::unix::process::ExitStatusExt;

const ALL: [&str; 3] = ["ANNA", "BERT", "CORA"];

/// Runs a program whose n-th call fails. Returns its exit code, or nothing if it made fewer calls.
fn injected(site: &Site, program: Program, arguments: &[&str], calls: &str, errno: &str, n: u32) -> Option<i32> {
    let inject = format!("inject={calls}:error={errno}:when={n}");
    let (output, log) = traced(site, program, arguments, calls, &["-e", &inject]);
    let met = log.lines().find(|line| line.contains("(INJECTED)"));
    let (code, signal) = (output.status.code(), output.status.signal());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(code, Some(0..=3)), "{calls} {errno} at {n}: code {code:?}, signal {signal:?}\n{said}");
    assert!(met.is_some() || code == Some(0), "{calls} {errno}: nothing failed any more, and yet: {said}");
    if calls == FLUSH {
        // A failed flush is never taken for done. Only SQLite may go on: its checkpoint at the end is done again by the next.
        let ours = |line: &str| [".dx", "outbox>", "inbox>", "txnproc>", "tmp>"].iter().any(|part| line.contains(part));
        assert!(code != Some(0) || !met.is_some_and(ours), "{met:?} and success");
    }
    met.map(|_| code.unwrap())
}

/// Goes on until nothing is met. Returns how many runs met the error and how many of them claimed success.
fn sweep(site: &Site, program: Program, arguments: &[&str], calls: &str, errno: &str) -> (u32, u32) {
    let (mut n, mut met, mut well) = (1, 0, 0);
    loop {
        edit(site);
        let Some(code) = injected(site, program, arguments, calls, errno, n) else { return (met, well) };
        met += 1;
        well += u32::from(code == 0);
        // Every one of the first, then wider steps.
        n += 1 + n / 8;
    }
}

/// Gives every node something that it does not have.
fn edit(site: &Site) {
    let turn = fastrand::u32(..);
    server_sql(site, &format!("UPDATE opportunity SET position_id = 4 + id % 3, name = 'turn {turn}' WHERE id % 6 < 3"));
}

const FLUSH: &str = "fsync,fdatasync";

#[test]
fn f8_errors_of_the_disk_at_every_call_of_the_stages() {
    if let Some(why) = obstacle() {
        return println!("SKIPPED: strace cannot trace here: {why}");
    }
    let mut site = crm::running(&ALL);
    site.stop();
    let mut runs = 0;
    for (calls, errno) in
        [(FLUSH, "EIO"), ("renameat2", "EIO"), ("pwrite64", "EIO"), ("pwrite64", "ENOSPC"), ("ftruncate,unlink,unlinkat", "EIO")]
    {
        let (met, well) = sweep(&site, Program::Dockmaster, &["run"], calls, errno);
        println!("{calls} {errno}: met {met} times, {well} runs were well all the same");
        assert!(met > 0, "{calls}");
        runs += met;
    }
    assert!(runs > 20, "{runs}");
    serve_again(&mut site);
    in_step(&site, &ALL);
    site.stop();
}

#[test]
fn f8_errors_of_the_disk_at_every_call_of_a_node() {
    if let Some(why) = obstacle() {
        return println!("SKIPPED: strace cannot trace here: {why}");
    }
    let mut site = crm::running(&ALL);
    let mut runs = 0;
    for (calls, errno) in [(FLUSH, "EIO"), ("renameat2", "EIO"), ("pwrite64", "EIO"), ("pwrite64", "ENOSPC")] {
        let (met, well) = sweep(&site, Program::RemoteSync, &["sync", "anna.db"], calls, errno);
        println!("{calls} {errno}: met {met} times, {well} runs were well all the same");
        assert!(met > 0, "{calls}");
        runs += met;
    }
    assert!(runs > 10, "{runs}");
    in_step(&site, &ALL);
    site.stop();
}
