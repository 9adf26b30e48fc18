//! `bench latency`: how long a row takes from its commit on the server until another program can read it on a client that
//! watches, and from a commit on a node until it is on the server and on a second node, beside the bare commit of the same row in
//! a database of its own, alternating, on the same disk in the same run.
//!
//! Runs the two programs as they are installed, in a folder of its own that is removed at the end.

use crate::base::disk::Disk;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{Output, some, table};
use crate::store::probe::Probe;
use anyhow::{Context as _, bail};
use serde_json::json;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How much slower than the bare commit the median may be: so many commits and a constant.
const BARE_COMMITS_MAX: u32 = 12;
const CONSTANT_MAX: Duration = Duration::from_millis(10);
/// A row that is not there after this time will not come.
const GIVE_UP: Duration = Duration::from_secs(30);
/// Rows that are not counted: caches fill, threads start.
const WARM_UP: i64 = 5;
/// Rows that the node inserts have numbers from here on.
const UP_FIRST: i64 = 1_000_000;

/// The subcommands of `bench`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum BenchCommand {
    /// Measure commit until visible elsewhere: server to a client that watches, and node to server and second node
    Latency(LatencyArgs),
}

/// Arguments of `bench latency`.
#[derive(Debug, clap::Args)]
pub(crate) struct LatencyArgs {
    /// How many rows to measure, one at a time
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    rounds: u32,
    /// Folder for the databases, to be made and removed [default: in the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs one of them.
pub(crate) fn bench(command: &BenchCommand, output: Output) -> Outcome {
    match command {
        BenchCommand::Latency(args) => latency(args, output),
    }
}

/// A child process that does not outlive the measurement.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already is as good as killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder that goes with its owner.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!("{} is left behind: {error}", self.0.display());
        }
    }
}

#[derive(Default)]
struct Measured {
    bare: Vec<Duration>,
    commit: Vec<Duration>,
    visible: Vec<Duration>,
    /// The way up: a commit on the node, seen in the server database ..
    up_commit: Vec<Duration>,
    up_server: Vec<Duration>,
    /// .. and on a second node that watches.
    up_node: Vec<Duration>,
}

fn latency(args: &LatencyArgs, output: Output) -> Outcome {
    let folder = args.dir.clone().unwrap_or_else(|| std::env::temp_dir().join(format!("dockmaster-bench-{}", std::process::id())));
    std::fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
    let folder = Folder(folder);
    let measured = measure(&folder.0, args.rounds, output)?;
    let (bare, median) = (percentile(&measured.bare, 50), percentile(&measured.visible, 50));
    let limit = bare * BARE_COMMITS_MAX + CONSTANT_MAX;
    let well = median <= limit;
    let lines = [
        ("bare commit", &measured.bare),
        ("captured commit", &measured.commit),
        ("visible on the client", &measured.visible),
        ("captured commit on a node", &measured.up_commit),
        ("visible on the server", &measured.up_server),
        ("visible on a second node", &measured.up_node),
    ];
    if output.is_json() {
        let micros = |times: &[Duration]| {
            json!({ "p50_us": percentile(times, 50).as_micros(), "p95_us": percentile(times, 95).as_micros(),
                                                  "p99_us": percentile(times, 99).as_micros(), "max_us": percentile(times, 100).as_micros() })
        };
        output.json(json!({ "rounds": args.rounds, "bare_commit": micros(&measured.bare), "captured_commit": micros(&measured.commit),
                            "visible": micros(&measured.visible), "node_commit": micros(&measured.up_commit),
                            "visible_on_server": micros(&measured.up_server), "visible_on_second_node": micros(&measured.up_node), "limit_us": limit.as_micros(), "ok": well }))?;
    } else {
        let row = |(name, times): &(&str, &Vec<Duration>)| {
            let mut cells = vec![(*name).to_owned()];
            cells.extend([50, 95, 99, 100].map(|part| format!("{:.2}", percentile(times, part).as_secs_f64() * 1e3)));
            cells
        };
        output.line(table(&["milliseconds", "median", "95 %", "99 %", "longest"], lines.iter().map(row).collect(), &[1, 2, 3, 4]))?;
        output.line(format!(
            "{}: the median is {:.2} ms after the commit, {} {BARE_COMMITS_MAX} bare commits + {} ms = {:.2} ms.",
            some(u64::from(args.rounds), "row", "rows"),
            median.as_secs_f64() * 1e3,
            if well { "within" } else { "above" },
            CONSTANT_MAX.as_millis(),
            limit.as_secs_f64() * 1e3
        ))?;
    }
    Ok(if well { Exit::Done } else { Exit::Failed })
}

fn measure(folder: &Path, rounds: u32, output: Output) -> anyhow::Result<Measured> {
    let programs = std::env::current_exe().context("find this program")?;
    let remote_sync = programs.with_file_name(format!("remote-sync{}", std::env::consts::EXE_SUFFIX));
    let definition = "version = 1\n[server]\ndatabase = \"hq.db\"\nlisten = \"127.0.0.1:0\"\n[node]\nnumber = { type = \"integer\" }\n\
                      [object.probe]\nvisible.own = 'probe.node = node.number'\n";
    Disk::new().put(folder, folder, "dockmaster.toml", definition.as_bytes())?;
    let server = Probe::create(&folder.join("hq.db"))?;
    let bare = Probe::create(&folder.join("bare.db"))?;
    command(&programs, folder, &["deploy", "--yes", "--quiet"])?;
    for node in ["NODE", "SECOND"] {
        let token = command(&programs, folder, &["node", "add", node, "--set", "number=1", "--quiet"])?;
        Disk::new().put(folder, folder, &format!("{node}.token"), token.as_bytes())?;
    }
    let (_service, address) = serve(&programs, folder)?;
    let mut watching = Vec::new();
    for (node, database) in [("NODE", "node.db"), ("SECOND", "second.db")] {
        command(&remote_sync, folder, &["init", &address, "--token-file", &format!("{node}.token"), database, "--quiet"])?;
        let watch = Command::new(&remote_sync).args(["watch", database, "--quiet"]).current_dir(folder).stdout(Stdio::null()).spawn();
        watching.push(Running(watch.with_context(|| format!("start {}", remote_sync.display()))?));
    }
    let (client, second) = (Probe::open(&folder.join("node.db"))?, Probe::open(&folder.join("second.db"))?);

    let bar = output.progress("rows", u64::from(rounds));
    let mut measured = Measured::default();
    let until = |there: &Probe, id: i64, since: Instant, place: &str| -> anyhow::Result<Duration> {
        while !there.has(id)? {
            if since.elapsed() > GIVE_UP {
                bail!("row {id} did not reach {place} within {} s", GIVE_UP.as_secs());
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(since.elapsed())
    };
    for id in 1 - WARM_UP..=i64::from(rounds) {
        let began = Instant::now();
        bare.insert(id)?;
        let bare_took = began.elapsed();
        let began = Instant::now();
        server.insert(id)?;
        let committed = Instant::now();
        let visible_took = until(&client, id, committed, "the client")?;
        let up = id + UP_FIRST;
        let up_began = Instant::now();
        client.insert(up)?;
        let up_committed = Instant::now();
        let on_server = until(&server, up, up_committed, "the server")?;
        let on_second = until(&second, up, up_committed, "the second node")?;
        if id > 0 {
            measured.up_commit.push(up_committed - up_began);
            measured.up_server.push(on_server);
            measured.up_node.push(on_second);
            measured.bare.push(bare_took);
            measured.commit.push(committed - began);
            measured.visible.push(visible_took);
            bar.inc(1);
        }
        // Not in step with any timer of the programs.
        std::thread::sleep(Duration::from_millis(3 + id.unsigned_abs() % 7));
    }
    bar.finish_and_clear();
    let Measured { bare, commit, visible, up_commit, up_server, up_node } = &mut measured;
    for times in [bare, commit, visible, up_commit, up_server, up_node] {
        times.sort_unstable();
    }
    Ok(measured)
}

/// Runs a command to its end. Returns what it printed.
fn command(program: &Path, folder: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let run = Command::new(program).args(arguments).current_dir(folder).stdin(Stdio::null()).env_remove("DOCKMASTER_CONFIG").output();
    let done = run.with_context(|| format!("start {}", program.display()))?;
    if !done.status.success() {
        bail!("{} {}: {}", program.display(), arguments.join(" "), String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(String::from_utf8(done.stdout)?)
}

/// Starts the service and returns the address that it listens on.
fn serve(program: &Path, folder: &Path) -> anyhow::Result<(Running, String)> {
    let mut serving = Command::new(program);
    serving.args(["serve", "--json"]).current_dir(folder).env_remove("DOCKMASTER_CONFIG").env("RUST_LOG", "warn");
    let child = serving.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut running = Running(child.with_context(|| format!("start {}", program.display()))?);
    let stdout = running.0.stdout.take().context("the service has no stdout")?;
    let mut text = String::new();
    for line in BufReader::new(stdout).lines() {
        text.push_str(&line?);
        if let Ok(document) = serde_json::from_str::<serde_json::Value>(&text) {
            let address =
                document.get("listening").and_then(|address| address.as_str()).context("the service does not say where it listens")?;
            return Ok((running, address.to_owned()));
        }
    }
    bail!("the service did not start")
}

/// Returns the value below which so many percent of the sorted times lie.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let index = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        let millis = |percent| percentile(&times, percent).as_millis();
        assert_eq!([50, 95, 99, 100].map(millis), [100, 190, 198, 200]);
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }
}
