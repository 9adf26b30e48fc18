//! SIGKILL of `dockmaster serve` and `remote-sync` at random moments of a busy run (fault 1, X-1): afterwards every node is
//! equal to the server, and every file and every local database on the way was exactly what its node saw at its unit (I1).
//!
//! [`KILLS`] of them, or as many as fit into [`TIME`]; `DOCKMASTER_KILLS=5000` (`just kills 5000`) asks for another number
//! and takes its time. `DOCKMASTER_SEED` repeats a run's workload, victims and delays; what the machine does in between is
//! its own.

mod history;
mod workload;

use crate::crm::{self, local};
use crate::harness::{Program, Site};
use history::{Snapshot, judge, stream};
use rusqlite::Connection;
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use workload::Workload;

/// How many kills there are where no number is asked for.
const KILLS: u64 = 500;
/// How long they may take then.
const TIME: Duration = Duration::from_secs(60);
/// The longest life of a victim.
const LIFE_MAX_MS: u64 = 250;
/// Nodes that watch; the last of the three synchronises now and then, and fetches new extracts.
const WATCHING: [&str; 2] = ["ANNA", "BERT"];

/// A site whose processes come and go.
struct Town {
    site: Site,
    address: String,
    service: Option<Child>,
    watching: [Option<Child>; 2],
    snapshots: Vec<Snapshot>,
    /// The last of the three has to fetch an extract before it can go on.
    renewing: bool,
}

/// Finds a port that stays the service's: none that connections are given by chance.
fn quiet_port(random: &mut fastrand::Rng) -> u16 {
    loop {
        let port = random.u16(20_000..30_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Town {
    fn new() -> Town {
        let site = Site::new(crm::database, crm::DEFINITION);
        // Not by the seed: two runs at once must not meet.
        let address = format!("127.0.0.1:{}", quiet_port(&mut fastrand::Rng::new()));
        let path = site.path("dockmaster.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("127.0.0.1:0", &address)).unwrap();
        site.dockmaster_ok(&["deploy", "--yes"]);
        for (node, employee) in crm::NODES {
            site.dockmaster_ok(&["node", "add", node, "--set", &format!("employee={employee}")]);
        }
        let mut town = Town { site, address, service: None, watching: [None, None], snapshots: Vec::new(), renewing: false };
        town.serve();
        for (node, _) in crm::NODES {
            town.until_done(&["init", &town.address, "--node", node, &local(node)]);
        }
        town
    }

    fn start(&self, program: Program, arguments: &[&str]) -> Child {
        let mut command = self.site.command(program, arguments);
        // What is refused while the other side is dead is part of the game.
        command.env("RUST_LOG", "error").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn serve(&mut self) {
        self.service = Some(self.start(Program::Dockmaster, &["serve"]));
    }

    /// Runs the client until it succeeds: the service may still be starting.
    fn until_done(&self, arguments: &[&str]) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let output = self.site.remote_sync(arguments);
            match output.status.code() {
                Some(0) => return,
                Some(3) => assert!(Instant::now() < until, "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)),
                other => panic!("{arguments:?} ended with {other:?}: {}", String::from_utf8_lossy(&output.stderr)),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill_service(&mut self) {
        if let Some(mut child) = self.service.take() {
            assert!(child.try_wait().unwrap().is_none(), "the service ended by itself");
            child.kill().unwrap();
            child.wait().unwrap();
        }
        self.serve();
    }

    fn kill_watching(&mut self, which: usize) {
        if let Some(mut child) = self.watching[which].take() {
            assert!(child.try_wait().unwrap().is_none(), "{} stopped watching by itself", WATCHING[which]);
            child.kill().unwrap();
            child.wait().unwrap();
            self.look_at(WATCHING[which]);
        }
        self.watching[which] = Some(self.start(Program::RemoteSync, &["watch", &local(WATCHING[which])]));
    }

    /// Kills a sync, or an init that renews the extract, of the node that does not watch.
    fn kill_visit(&mut self, delay: Duration, renew: bool) {
        self.renewing |= renew;
        let address = self.address.clone();
        let arguments = ["init", &address, "--node", "CORA", "--replace", "--renew", "cora.db"];
        let mut child = self.start(Program::RemoteSync, if self.renewing { &arguments } else { &["sync", "cora.db"] });
        std::thread::sleep(delay);
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        match ended.and_then(|status| status.code()) {
            Some(0) => self.renewing = false,
            Some(3) | None => {}
            Some(other) => panic!("CORA (renewing: {}) ended with {other}", self.renewing),
        }
        self.look_at("CORA");
    }

    /// Notes what the local database of a dead program holds, and that its inbox holds the server's own files.
    fn look_at(&mut self, node: &'static str) {
        let conn = Connection::open(self.site.path(&local(node))).unwrap();
        conn.busy_timeout(Duration::from_secs(10)).unwrap();
        conn.execute_batch("BEGIN").unwrap();
        let unit: i64 = conn.query_row("SELECT applied_unit FROM dock_state", [], |row| row.get(0)).unwrap();
        self.snapshots.push(Snapshot { node, unit, held: crm::held(&conn) });
        if self.renewing {
            return; // Its inbox may be of the extract before.
        }
        for path in crm::dx_files(&self.site, &format!("{}.sync/inbox", local(node))) {
            let sent = self.site.path(&format!("docking/{node}/outbox")).join(path.file_name().unwrap());
            if let Ok(sent) = std::fs::read(&sent) {
                assert!(sent == std::fs::read(&path).unwrap(), "{} is not what was sent", path.display());
            }
        }
    }

    /// Lets everybody come to rest and end in peace.
    fn quiesce(&mut self) {
        self.kill_service();
        for child in self.watching.iter_mut().filter_map(Option::take) {
            crate::harness::interrupt(child);
        }
        if self.renewing {
            self.until_done(&["init", &self.address.clone(), "--node", "CORA", "--replace", "--renew", "cora.db"]);
        }
        self.until_done(&["sync", "cora.db"]);
        crm::routed(&self.site);
        for (node, _) in crm::NODES {
            self.until_done(&["sync", &local(node)]);
            self.look_at(node);
        }
        crate::harness::interrupt(self.service.take().unwrap());
    }
}

impl Drop for Town {
    fn drop(&mut self) {
        for child in self.service.iter_mut().chain(self.watching.iter_mut().flatten()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn f1_x1_i1_both_programs_killed_at_random_moments_of_a_busy_run() {
    let seed = number("DOCKMASTER_SEED").unwrap_or_else(|| fastrand::u64(..));
    let wanted = number("DOCKMASTER_KILLS");
    println!("DOCKMASTER_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut town = Town::new();
    let workload = Workload::begin(town.site.folder.path(), seed);
    (0..WATCHING.len()).for_each(|which| town.kill_watching(which));
    let (began, mut killed) = (Instant::now(), [0u64; 3]);
    while killed.iter().sum::<u64>() < wanted.unwrap_or(KILLS) && (wanted.is_some() || began.elapsed() < TIME) {
        // Short lives are as likely as long ones: much happens in the first instants of a process.
        let longest = random.u64(1..=LIFE_MAX_MS);
        let delay = Duration::from_millis(random.u64(0..longest));
        match random.u32(0..10) {
            0..=4 => {
                std::thread::sleep(delay);
                town.kill_service();
                killed[0] += 1;
            }
            5..=7 => {
                std::thread::sleep(delay);
                town.kill_watching(random.usize(0..WATCHING.len()));
                killed[1] += 1;
            }
            _ => {
                let renew = random.u32(0..4) == 0;
                town.kill_visit(delay, renew);
                killed[2] += 1;
            }
        }
    }
    let history = workload.end();
    town.quiesce();
    let streams: Vec<_> = crm::NODES.iter().map(|(node, _)| stream(node, &town.site.path(&format!("docking/{node}/outbox")))).collect();
    let (ran, judging) = (began.elapsed(), Instant::now());
    let compared = judge(&history, &streams, &town.snapshots);
    println!(
        "killed: service {}, watch {}, sync and init {}; {} transactions, {compared} comparisons; {:.1} s and {:.1} s",
        killed[0],
        killed[1],
        killed[2],
        history.len(),
        ran.as_secs_f32(),
        judging.elapsed().as_secs_f32()
    );
    assert!(compared > 50, "{compared}");
}
