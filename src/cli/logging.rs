//! Log lines on stderr: what the service does as it does it. Journald or a redirection keeps them.

use std::fmt;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// Local wall-clock time, for people only.
struct LocalTime;

impl FormatTime for LocalTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", jiff::Zoned::now().strftime("%H:%M:%S"))
    }
}

/// Starts logging. `verbose` counts `-v`; a command that runs on (`serve`, `watch`) tells what it does without being asked.
/// `RUST_LOG`, where set, decides instead.
pub fn start(verbose: u8, runs_on: bool) {
    let level = match (verbose, runs_on) {
        (0, false) => "warn",
        (0, true) | (1, false) => "info",
        (1, true) | (2, _) => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(format!("warn,dockmaster={level}")));
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_timer(LocalTime);
    // A second start in one process (tests) keeps the first.
    let _ = logger.with_target(verbose > 1).with_ansi(stderr_has_color()).try_init();
}

fn stderr_has_color() -> bool {
    anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never
}
