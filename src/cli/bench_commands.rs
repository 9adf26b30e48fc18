//! `bench latency`: from a commit on the server to the row being visible in a local database whose node watches, beside
//! a bare commit of the same row in the same run.
//!
//! Real processes: this program's own `serve` and `remote-sync watch`. Each round commits once on a plain database and
//! once on the served one, so both see the same disk.

use crate::base::ids::NodeName;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::Output;
use anyhow::{Context, bail};
use rusqlite::Connection;
use serde_json::json;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for one row.
const PATIENCE: Duration = Duration::from_secs(20);

/// Benchmarks, each beside a baseline in the same run.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum BenchCommand {
    /// Commit on the server to visible on a watching node
    Latency {
        /// Rounds
        #[arg(long, default_value_t = 200)]
        rounds: usize,
        /// Folder to work in; a new one in the system's place for such if not given
        #[arg(long, value_name = "FOLDER")]
        folder: Option<PathBuf>,
    },
}

/// A child process that ends with this one.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a benchmark.
pub(crate) fn bench(command: &BenchCommand, output: Output) -> Outcome {
    let BenchCommand::Latency { rounds, folder } = command;
    let (folder, made) = match folder {
        Some(folder) => (folder.clone(), false),
        None => (std::env::temp_dir().join(format!("dockmaster-bench-{}", std::process::id())), true),
    };
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let measured = latency(&folder, *rounds, output);
    if made {
        std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    measured
}

const TABLE: &str = "CREATE TABLE note(id INTEGER PRIMARY KEY, owner INTEGER NOT NULL, text TEXT NOT NULL)";
const DEFINITION: &str = "version = 1\n[server]\nname = \"BENCH\"\ndatabase = \"hq.db\"\nlisten = \"127.0.0.1:0\"\n\
    [node]\nowner = { type = \"integer\" }\n[object.note]\nvisible.own = 'note.owner = node.owner'\n";

fn latency(folder: &Path, rounds: usize, output: Output) -> Outcome {
    let (hq_path, plain_path, local_path) = (folder.join("hq.db"), folder.join("plain.db"), folder.join("local.db"));
    let hq = open(&hq_path)?;
    let plain = open(&plain_path)?;
    hq.execute_batch(TABLE)?;
    plain.execute_batch(TABLE)?;
    std::fs::write(folder.join("dockmaster.toml"), DEFINITION)?; // tidy: a benchmark's own scratch file
    let server = std::env::current_exe()?;
    let client = server.with_file_name(format!("remote-sync{}", std::env::consts::EXE_SUFFIX));
    run(&server, folder, &["deploy", "--yes"])?;
    let node: NodeName = "BENCH".parse()?;
    run(&server, folder, &["node", "add", node.as_str(), "--set", "owner=1"])?;
    let mut serve = start(&server, folder, &["serve"])?;
    let address = listening(&mut serve)?;
    run(&client, folder, &["init", &address, "--node", node.as_str(), "local.db"])?;
    let _watch = start(&client, folder, &["watch", "local.db"])?;
    let local = Connection::open(&local_path)?;
    local.busy_timeout(PATIENCE)?;

    let (mut bare, mut whole) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
    // The first rows warm caches and wait for the session.
    for round in 0..rounds + 5 {
        let began = Instant::now();
        insert(&plain, round)?;
        let bare_commit = began.elapsed();
        let began = Instant::now();
        insert(&hq, round)?;
        wait_for(&local, round, began)?;
        if round >= 5 {
            bare.push(bare_commit);
            whole.push(began.elapsed());
        }
    }
    let (bare, whole) = (Quantiles::of(bare), Quantiles::of(whole));
    let allowed = bare.median * 12 + Duration::from_millis(10);
    let within = whole.median <= allowed;
    if output.is_json() {
        output.json(json!({ "rounds": rounds, "bare_commit_us": bare.json(), "visible_us": whole.json(),
            "allowed_median_us": micros(allowed), "within": within }))?;
    } else {
        output.line(format!("{rounds} rounds                       median        90 %        99 %"))?;
        output.line(format!("bare commit               {}", bare.text()))?;
        output.line(format!("visible on watching node  {}", whole.text()))?;
        output.line(format!(
            "12 bare commits + 10 ms   {:>7} us   {}",
            micros(allowed),
            if within { "the median is within it" } else { "the median is NOT within it" }
        ))?;
    }
    Ok(if within { Exit::Done } else { Exit::NeedsPerson })
}

fn open(path: &Path) -> anyhow::Result<Connection> {
    let conn = Connection::open(path).with_context(|| format!("open {}", path.display()))?;
    conn.busy_timeout(PATIENCE)?;
    conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")?;
    Ok(conn)
}

fn insert(conn: &Connection, round: usize) -> anyhow::Result<()> {
    let id = i64::try_from(round)? + 1;
    conn.prepare_cached("INSERT INTO note(id, owner, text) VALUES(?1, 1, 'a note of ordinary length, as people write them')")?.execute([id])?;
    Ok(())
}

fn wait_for(local: &Connection, round: usize, began: Instant) -> anyhow::Result<()> {
    let id = i64::try_from(round)? + 1;
    let mut statement = local.prepare_cached("SELECT 1 FROM note WHERE id = ?1")?;
    while !statement.exists([id])? {
        if began.elapsed() > PATIENCE {
            bail!("row {id} did not arrive within {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

fn run(program: &Path, folder: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let done = Command::new(program).args(arguments).current_dir(folder).stdin(Stdio::null()).output()?;
    if !done.status.success() {
        bail!("{} {}: {}", program.display(), arguments.join(" "), String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}

fn start(program: &Path, folder: &Path, arguments: &[&str]) -> anyhow::Result<Process> {
    let command = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    Ok(Process(command))
}

fn listening(serve: &mut Process) -> anyhow::Result<String> {
    let stdout = serve.0.stdout.take().context("stdout of serve")?;
    let mut lines = BufReader::new(stdout).lines();
    for line in lines.by_ref() {
        if let Some((_, rest)) = line?.split_once("listening on ") {
            let address = rest.split_whitespace().next().unwrap_or_default().to_owned();
            // Read to the end, so that serve never waits for a full pipe.
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(address);
        }
    }
    bail!("serve ended before it listened")
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

struct Quantiles {
    median: Duration,
    most: Duration,
    nearly_all: Duration,
}

impl Quantiles {
    fn of(mut samples: Vec<Duration>) -> Quantiles {
        samples.sort_unstable();
        let at = |percent: usize| samples.get(samples.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default();
        Quantiles { median: at(50), most: at(90), nearly_all: at(99) }
    }

    fn text(&self) -> String {
        format!("{:>7} us  {:>7} us  {:>7} us", micros(self.median), micros(self.most), micros(self.nearly_all))
    }

    fn json(&self) -> serde_json::Value {
        json!({ "p50": micros(self.median), "p90": micros(self.most), "p99": micros(self.nearly_all) })
    }
}
