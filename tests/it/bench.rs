//! The measures of `scripts/bench.sh` work: each one runs with small sizes, and what it looks at is right. Nothing is timed here.

#[path = "../bench/measures.rs"]
mod measures;

use measures::{IDS, Options, run};

/// Runs some of them once.
fn quick(ids: &[&str]) -> measures::Report {
    let report = run(&Options { rounds: 1, quick: true, only: ids.iter().map(|id| (*id).to_owned()).collect() });
    for line in &report.lines {
        assert!(line.ours > 0.0 && line.baseline.is_none_or(|baseline| baseline > 0.0), "{line:?}");
    }
    let mut found: Vec<&str> = report.lines.iter().map(|line| line.id).collect();
    found.dedup();
    assert_eq!(found, ids);
    report
}

#[test]
fn p1_to_p9_are_measured() {
    let report = quick(&IDS[..9]);
    let table = report.text();
    assert_eq!(report.stages.iter().map(|stage| stage.id).collect::<Vec<_>>(), ["P5", "P6", "P7"]);
    assert!(table.starts_with("ID"), "{table}");
    for (line, text) in report.lines.iter().zip(table.lines().skip(1)) {
        assert!(text.starts_with(line.id) && line.is_within_gate() != text.ends_with("gate missed"), "{text}");
        assert!(["met", "goal missed", "gate missed"].iter().any(|verdict| text.ends_with(verdict)), "{text}");
    }
}

#[cfg(unix)]
#[test]
fn p13_letters_behind_sftp_are_measured_beside_single_files() {
    quick(&["P13"]);
}

#[test]
fn p14_p15_p17_are_measured() {
    quick(&["P14", "P17"]);
    quick(&["P15"]);
}

#[test]
fn p18_r24_pending_work_is_measured_beside_none() {
    quick(&["P18"]);
}

#[test]
fn p19_a_session_over_tls_is_measured_beside_a_bare_stream() {
    quick(&["P19"]);
}

#[test]
#[cfg(target_os = "linux")]
fn p16_memory_is_measured_on_the_programs() {
    let report = quick(&["P16"]);
    assert_eq!(report.lines.len(), 2);
}
