//! P16: resident memory of the two programs as they are built, from `/proc`.

use super::meter::{Better, Line};
use super::world::{OWN, SCHEMA, Write, contact, node_name, open, register, write};
use super::{Options, Report};
use crate::direct::Direct;
use crate::harness::Site;
use dockmaster::base::ids::Incarnation;
use dockmaster::model::toc::toc_file_name;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

/// How long all extracts may take.
const GIVE_UP: Duration = Duration::from_secs(1_200);

/// A child that does not outlive the measurement.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns a line of `/proc/PID/status`, in MB.
fn status_mb(pid: u32, name: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("memory is read from /proc, which Linux has");
    let kib = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start_matches(':').trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map(|kib: f64| kib * 1024.0 / 1e6).unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// Waits until a process has used no CPU for a while.
fn settle(pid: u32) {
    let used = || -> Vec<String> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // User and system time stand 12 and 13 fields behind the name, which may hold spaces.
        text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2).map(str::to_owned).collect()
    };
    let mut before = used();
    loop {
        std::thread::sleep(Duration::from_secs(2));
        let now = used();
        if now == before {
            return;
        }
        before = now;
    }
}

fn site(rows: usize, nodes: usize, active: bool) -> Site {
    let make = |path: &Path| {
        let conn = open(path, "OFF", 1_000);
        conn.execute_batch(SCHEMA).unwrap();
        let writes = (0..rows).map(|number| Write::Insert(contact(number, (number % nodes) as i64 + 1, 0)));
        write(&conn, &writes.collect::<Vec<_>>(), 10_000);
    };
    let direct = Direct::new(make, OWN);
    if active {
        register(&direct, nodes, 1);
    }
    // What it holds open besides is closed here; the programs take over.
    let site = direct.site;
    let database = dockmaster::store::sqlite::ServerDatabase::open(site.path("hq.db")).unwrap();
    dockmaster::server::identity::ensure(&site.path("identity"), &database).unwrap();
    site
}

fn line(measure: &str, ours: f64, gate: f64, goal: f64) -> Line {
    Line { id: "P16", measure: measure.to_owned(), unit: "MB", ours, baseline: None, better: Better::Lower, gate, goal }
}

pub fn serve(options: &Options, report: &mut Report) {
    let (rows, nodes) = (options.size(1_000_000, 400), options.size(10_000, 20));
    let mut site = site(rows, nodes, true);
    site.serve();
    let pid = site.pid();
    let began = Instant::now();
    let toc = toc_file_name(Incarnation(1));
    for number in 1..=nodes {
        while !site.path("docking").join(node_name(number).as_str()).join("outbox").join(&toc).exists() {
            assert!(began.elapsed() < GIVE_UP, "the extracts are not done");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    settle(pid);
    let peak = status_mb(pid, "VmHWM");
    let what = format!("`dockmaster serve`, 10,000 nodes, 1,000,000 rows, all extracts made (at its most {peak:.0} MB)");
    report.lines.push(line(&what, status_mb(pid, "VmRSS"), 200.0, 120.0));
}

pub fn watch(options: &Options, report: &mut Report) {
    let rows = options.size(100_000, 400);
    let mut site = site(rows, 1, false);
    site.dockmaster_ok(&["node", "add", "N000001", "--set", "number=1"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("N000001"), "node.db"]);
    let watching = Running(site.remote_sync_started(&["watch", "node.db"]));
    // It is at work: a row of now arrives.
    write(&open(&site.path("hq.db"), "NORMAL", 1_000), &[Write::Insert(contact(rows, 1, 0))], 1);
    let local = open(&site.path("node.db"), "NORMAL", 1_000);
    let began = Instant::now();
    while super::world::count(&local) <= rows {
        assert!(began.elapsed() < Duration::from_secs(30), "the row did not arrive");
        std::thread::sleep(Duration::from_millis(20));
    }
    settle(watching.0.id());
    report.lines.push(line("`remote-sync watch`, idle, 100,000 rows", status_mb(watching.0.id(), "VmRSS"), 20.0, 12.0));
}
