//! `scripts/bench.sh`: the measures P1-P9 and P13-P19 of docs/performance.md, each beside its baseline in this one process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr, unreachable_pub)]

#[path = "../it/crm.rs"]
#[allow(dead_code, reason = "part of what `direct` stands on; the integration tests use the rest")]
mod crm;
#[path = "../it/direct.rs"]
#[allow(dead_code, reason = "the integration tests use the rest")]
mod direct;
#[path = "../it/harness.rs"]
#[allow(dead_code, reason = "the integration tests use the rest")]
mod harness;
#[path = "measures.rs"]
mod measures;
#[path = "../it/ssh.rs"]
#[allow(dead_code, unused_imports, reason = "an sshd of ours; the integration tests use the rest")]
mod ssh;

use std::process::ExitCode;

const HELP: &str = "\
Prints the measures P1-P9 and P13-P19 beside their baselines: docs/performance.md says what each one is.

Usage: scripts/bench.sh [--quick] [--rounds N] [ID..]

  ID          only these, e.g. P5 P6 [default: all]
  --quick     small sizes, one round: shows that it works; the figures mean nothing
  --rounds N  how often each side is measured, in turns [default: 5]

Databases are made in the folder for temporary files (TMPDIR) and removed. All measures take about 10 minutes and 4 GB there.
Exit code: 0 every gate is met, 1 a gate is missed, 2 the command line is wrong.";

fn main() -> ExitCode {
    let mut options = measures::Options { rounds: 5, quick: false, only: Vec::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "-h" | "--help" => {
                println!("{HELP}");
                return ExitCode::SUCCESS;
            }
            // Cargo adds it.
            "--bench" => {}
            "--quick" => (options.quick, options.rounds) = (true, 1),
            "--rounds" => match arguments.next().and_then(|rounds| rounds.parse().ok()).filter(|rounds| (1..=1_000).contains(rounds)) {
                Some(rounds) => options.rounds = rounds,
                None => return wrong("--rounds takes a number from 1 to 1000"),
            },
            id if measures::IDS.contains(&id) => options.only.push(id.to_owned()),
            other => return wrong(&format!("`{other}` is neither an option nor one of {}", measures::IDS.join(", "))),
        }
    }
    let report = measures::run(&options);
    println!("{}", report.text());
    if report.lines.iter().all(measures::meter::Line::is_within_gate) { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn wrong(what: &str) -> ExitCode {
    eprintln!("error: {what}\nhint: scripts/bench.sh --help");
    ExitCode::from(2)
}
