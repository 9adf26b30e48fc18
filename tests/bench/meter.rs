//! Clocks, medians, and the lines that are printed.

use dockmaster::cli::output::table;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Returns what a piece of work gave and the CPU time (user and system, all threads of this process) that it took.
pub fn cpu<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let before = clock_gettime(ClockId::ProcessCPUTime);
    let done = work();
    let after = clock_gettime(ClockId::ProcessCPUTime);
    let nanos = (after.tv_sec - before.tv_sec) * 1_000_000_000 + (after.tv_nsec - before.tv_nsec);
    (done, Duration::from_nanos(nanos.unsigned_abs()))
}

/// Returns a time in microseconds for each of `count` things.
pub fn micros_each(time: Duration, count: usize) -> f64 {
    time.as_secs_f64() * 1e6 / count.max(1) as f64
}

/// Returns the middle one of some figures, the higher of two.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Figures of both sides, one of each per round.
#[derive(Debug, Default, Clone)]
pub struct Sides {
    pub ours: Vec<f64>,
    pub baseline: Vec<f64>,
}

impl Sides {
    /// Measures both sides in turns; who begins changes from round to round.
    pub fn measure(rounds: usize, mut ours: impl FnMut(usize) -> f64, mut baseline: impl FnMut(usize) -> f64) -> Sides {
        let mut sides = Sides::default();
        for round in 0..rounds {
            if round % 2 == 0 {
                sides.ours.push(ours(round));
                sides.baseline.push(baseline(round));
            } else {
                sides.baseline.push(baseline(round));
                sides.ours.push(ours(round));
            }
        }
        sides
    }
}

/// Which way is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Costs: the ratio must not be above the gate.
    Lower,
    /// Rates: it must not be below.
    Higher,
}

/// One measure.
#[derive(Debug, Clone)]
pub struct Line {
    pub id: &'static str,
    pub measure: String,
    pub unit: &'static str,
    /// Median.
    pub ours: f64,
    /// Median; `None` for an absolute measure, whose gate and goal are in its unit.
    pub baseline: Option<f64>,
    pub better: Better,
    pub gate: f64,
    pub goal: f64,
}

impl Line {
    /// Returns a line of ratios: ours / baseline.
    pub fn ratio(id: &'static str, measure: &str, unit: &'static str, sides: &Sides, better: Better, gate: f64, goal: f64) -> Line {
        let (ours, baseline) = (median(&sides.ours), Some(median(&sides.baseline)));
        Line { id, measure: measure.to_owned(), unit, ours, baseline, better, gate, goal }
    }

    /// What is compared with gate and goal.
    pub fn figure(&self) -> f64 {
        self.baseline.map_or(self.ours, |baseline| self.ours / baseline)
    }

    fn reaches(&self, mark: f64) -> bool {
        match self.better {
            Better::Lower => self.figure() <= mark,
            Better::Higher => self.figure() >= mark,
        }
    }

    /// Whether the gate is met.
    pub fn is_within_gate(&self) -> bool {
        self.reaches(self.gate)
    }

    fn verdict(&self) -> &'static str {
        match (self.reaches(self.gate), self.reaches(self.goal)) {
            (_, true) => "met",
            (true, false) => "goal missed",
            (false, false) => "gate missed",
        }
    }

    /// Returns the lines as an aligned table.
    pub fn table(lines: &[Line]) -> String {
        let row = |line: &Line| {
            let ratio = line.baseline.map_or("-".to_owned(), |_| format!("{:.2}", line.figure()));
            let mark = |mark: f64| match (line.baseline, line.better) {
                (None, _) => format!("{mark} {}", line.unit),
                (_, Better::Lower) => format!("<= {mark}"),
                (_, Better::Higher) => format!(">= {mark}"),
            };
            vec![
                line.id.to_owned(),
                line.measure.clone(),
                format!("{} {}", figure(line.ours), line.unit),
                line.baseline.map_or("-".to_owned(), |baseline| format!("{} {}", figure(baseline), line.unit)),
                ratio,
                mark(line.gate),
                mark(line.goal),
                line.verdict().to_owned(),
            ]
        };
        table(&["id", "measure", "ours", "baseline", "ratio", "gate", "goal", "verdict"], lines.iter().map(row).collect(), &[2, 3, 4, 5, 6])
    }
}

/// CPU of one measure's stages, us per row.
#[derive(Debug, Clone)]
pub struct StageLine {
    pub id: &'static str,
    /// Commit with capture, Transaction Processor, Router, bringing files, client; then raw statements of server and client.
    pub figures: [f64; 7],
}

impl StageLine {
    /// Returns the lines as an aligned table.
    pub fn table(lines: &[StageLine]) -> String {
        let headings = ["id", "commit", "txnproc", "router", "bring", "client", "raw server", "raw client"];
        let row = |line: &StageLine| {
            let mut cells = vec![line.id.to_owned()];
            cells.extend(line.figures.iter().map(|value| figure(*value)));
            cells
        };
        table(&headings, lines.iter().map(row).collect(), &[1, 2, 3, 4, 5, 6, 7])
    }
}

/// Three digits that matter.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
