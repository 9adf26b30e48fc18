//! The measures by id. Each measure runs the real code (capture triggers, stages, client) and a baseline of raw statements in turns,
//! several rounds, and compares the medians; it also looks at what came out, so that nothing is fast by doing nothing.
//!
//! Mounted by the program `tests/bench/main.rs` and, with small sizes, by the integration tests.

#[path = "capture.rs"]
mod capture;
#[path = "carriers.rs"]
mod carriers;
#[path = "extract.rs"]
mod extract;
#[path = "files.rs"]
mod files;
#[path = "lines.rs"]
mod lines;
#[path = "memory.rs"]
mod memory;
#[path = "meter.rs"]
pub mod meter;
#[path = "path.rs"]
mod path;
#[path = "rebase.rs"]
mod rebase;
#[path = "router.rs"]
mod router;
#[path = "scope.rs"]
mod scope;
#[path = "world.rs"]
mod world;

use meter::{Line, StageLine};

/// Every id that can be asked for.
pub const IDS: [&str; 16] = ["P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P9", "P13", "P14", "P15", "P16", "P17", "P18", "P19"];

/// What is measured and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often each side is measured.
    pub rounds: usize,
    /// Small sizes.
    pub quick: bool,
    /// Ids; empty = all.
    pub only: Vec<String>,
}

impl Options {
    fn wants(&self, ids: &[&str]) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| ids.contains(&only.as_str()))
    }

    /// Returns the first size, or the second for a quick run.
    pub fn size(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

/// What was measured.
#[derive(Debug, Default)]
pub struct Report {
    /// One line per measure.
    pub lines: Vec<Line>,
    /// Where the CPU of the whole path goes.
    pub stages: Vec<StageLine>,
}

impl Report {
    /// Returns the tables as they are printed.
    pub fn text(&self) -> String {
        let mut text = Line::table(&self.lines);
        if !self.stages.is_empty() {
            text.push_str("\n\nCPU by stage, us per row of the server (client: per row delivered)\n");
            text.push_str(&StageLine::table(&self.stages));
        }
        text
    }
}

/// Measures, one id after another.
pub fn run(options: &Options) -> Report {
    type Measure = fn(&Options, &mut Report);
    let measures: [(&[&str], Measure); 14] = [
        (&["P1"], path::client_inserts),
        (&["P2"], path::client_changes),
        (&["P3"], path::client_backlog),
        (&["P4"], capture::capture),
        (&["P5", "P6", "P7"], path::end_to_end),
        (&["P8"], router::registered_nodes),
        (&["P9"], files::durable_files),
        (&["P13"], carriers::small_files_behind_sftp),
        (&["P14", "P17"], scope::scope),
        (&["P15"], extract::extract),
        (&["P16"], memory::serve),
        (&["P16"], memory::watch),
        (&["P18"], rebase::pending),
        (&["P19"], lines::tls_session),
    ];
    let mut report = Report::default();
    for (ids, measure) in measures {
        if options.wants(ids) {
            eprintln!("measuring {} ..", ids.join(", "));
            measure(options, &mut report);
        }
    }
    // P5 to P7 are measured together, and so are P14 and P17.
    report.lines.retain(|line| options.wants(&[line.id]));
    report
}
