//! Two hosts, as two network namespaces with a wire between them that is slow, loses packets, and can be pulled (faults 23, 24, 26).
//!
//! It takes root, `ip`, `tc` and `nft`; where one of them is missing the tests say so and are skipped.

use crate::crm;
use crate::harness::{Program, Site, literals};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const SERVER: &str = "10.77.0.1";
const DEFINITION: &str = "version = 1\n[object.item]\nvisible.all = 'everyone'\n";

static WIRES: AtomicU32 = AtomicU32::new(0);

fn ran(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// A wire between two hosts; it goes with the value.
struct Wire {
    server: String,
    node: String,
}

impl Wire {
    /// Lays a wire of so many kbit/s that loses so many of a hundred packets, each way.
    fn lay(kbit: u32, loss: u32) -> Result<Wire, String> {
        let name = format!("{}-{}", std::process::id(), WIRES.fetch_add(1, Ordering::SeqCst));
        let wire = Wire { server: format!("dms{name}"), node: format!("dmn{name}") };
        let (server, node) = (wire.server.as_str(), wire.node.as_str());
        ran("ip", &["netns", "add", server])?;
        ran("ip", &["netns", "add", node])?;
        ran("ip", &["link", "add", "wire", "netns", server, "type", "veth", "peer", "name", "wire", "netns", node])?;
        for (host, address) in [(server, "10.77.0.1/24"), (node, "10.77.0.2/24")] {
            ran("ip", &["-n", host, "addr", "add", address, "dev", "wire"])?;
            ran("ip", &["-n", host, "link", "set", "lo", "up"])?;
            ran("ip", &["-n", host, "link", "set", "wire", "up"])?;
            let within = |arguments: &[&str]| ran("ip", &[&["netns", "exec", host], arguments].concat());
            let rate = format!("{kbit}kbit");
            within(&["tc", "qdisc", "add", "dev", "wire", "root", "tbf", "rate", &rate, "burst", "3000", "latency", "500ms"])?;
            if loss > 0 {
                within(&["nft", "add", "table", "ip", "loss"])?;
                within(&["nft", "add chain ip loss in { type filter hook input priority 0; }"])?;
                within(&["nft", &format!("add rule ip loss in iifname \"wire\" numgen random mod 100 < {loss} counter drop")])?;
            }
        }
        Ok(wire)
    }

    fn pull(&self) {
        ran("ip", &["-n", &self.node, "link", "set", "wire", "down"]).unwrap();
    }

    fn put_back(&self) {
        ran("ip", &["-n", &self.node, "link", "set", "wire", "up"]).unwrap();
    }

    /// Bytes that came to the node, packet headers included.
    fn received(&self) -> u64 {
        let text = ran("ip", &["netns", "exec", &self.node, "cat", "/sys/class/net/wire/statistics/rx_bytes"]).unwrap();
        text.trim().parse().unwrap()
    }

    /// Packets that the wire lost on its way to a host.
    fn lost(&self, host: &str) -> u64 {
        let text = ran("ip", &["netns", "exec", host, "nft", "list", "table", "ip", "loss"]).unwrap();
        let count = text.split("counter packets ").nth(1).and_then(|rest| rest.split(' ').next());
        count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count in {text}"))
    }

    /// A call of one of the programs on one of the hosts.
    fn on(&self, host: &str, site: &Site, program: Program, arguments: &[&str]) -> Command {
        let call = site.command(program, arguments);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", host]).arg(call.get_program()).args(call.get_args());
        command.current_dir(site.folder.path()).stdin(Stdio::null());
        command
    }

    fn remote_sync(&self, site: &Site, arguments: &[&str]) -> Output {
        self.on(&self.node, site, Program::RemoteSync, arguments).output().unwrap()
    }

    fn watch(&self, site: &Site) -> Child {
        self.on(&self.node, site, Program::RemoteSync, &["watch", "anna.db"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for host in [&self.server, &self.node] {
            let _gone = ran("ip", &["netns", "del", host]);
        }
    }
}

/// A service on one host and a node on the other. `None` = this machine cannot do that, which is said.
fn hosts(kbit: u32, loss: u32) -> Option<(Site, Wire)> {
    let wire = match Wire::lay(kbit, loss) {
        Ok(wire) => wire,
        Err(why) => {
            println!("SKIPPED: no network namespaces here: {why}");
            return None;
        }
    };
    let mut site = Site::new(
        |path| crm::sql_on(path, "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, body BLOB); INSERT INTO item VALUES(1, 'a', NULL)"),
        DEFINITION,
    );
    let definition = std::fs::read_to_string(site.path("dockmaster.toml")).unwrap();
    std::fs::write(site.path("dockmaster.toml"), definition.replace("127.0.0.1:0", &format!("{SERVER}:40400"))).unwrap();
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNA"]);
    let serve = wire.on(&wire.server, &site, Program::Dockmaster, &["serve"]);
    site.serve_as(serve);
    let token = site.token("ANNA");
    // On a bad line one call may give up; the next one goes on.
    until("the node is let in", Duration::from_secs(120), || {
        wire.remote_sync(&site, &["init", SERVER, "--token", &token, "anna.db", "--quiet"]).status.success()
    });
    Some((site, wire))
}

fn until(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < patience, "not within {} s: {what}", patience.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
    began.elapsed()
}

const ALL: &str = "SELECT id, name, length(body) FROM item ORDER BY id";

fn in_step(site: &Site) -> bool {
    literals(&site.path("anna.db"), ALL) == literals(&site.path("hq.db"), ALL)
}

#[test]
fn f26_a_thousand_rows_come_over_a_line_of_64_kbit_that_loses_every_fifth_packet() {
    let Some((mut site, wire)) = hosts(64, 20) else { return };
    // Nothing can compress the bodies: so many packets go each way that chance alone cannot spare nearly all of them.
    let row = |number| format!("INSERT INTO item(name, body) VALUES('row {number} of the server', randomblob(150));");
    let rows: String = (0..1_000).map(row).collect();
    crm::sql_on(&site.path("hq.db"), &format!("BEGIN; {rows} COMMIT"));
    crm::sql_on(&site.path("anna.db"), "INSERT INTO item(name) VALUES('of anna')");
    crm::routed(&site);
    let took = until("it is in step", Duration::from_secs(240), || {
        let _bad_line = wire.remote_sync(&site, &["sync", "anna.db", "--wait", "60", "--quiet"]);
        in_step(&site)
    });
    let lost = [wire.lost(&wire.server), wire.lost(&wire.node)];
    println!("in step after {:.1} s; {lost:?} packets were lost", took.as_secs_f32());
    assert!(lost.iter().all(|lost| *lost > 5), "the wire does lose packets: {lost:?}");
    assert!(literals(&site.path("hq.db"), "SELECT name FROM item").contains(&"'of anna'".to_owned()));
    site.stop();
}

#[test]
fn f23_f24_a_wire_that_is_pulled_costs_no_byte_twice_and_the_half_open_session_is_freed() {
    const BODY: u64 = 150_000;
    let Some((mut site, wire)) = hosts(128, 0) else { return };
    let mut watching = wire.watch(&site);
    let is_watching = |site: &Site| site.dockmaster_ok(&["status"]).contains("watching");
    until("it watches", Duration::from_secs(30), || is_watching(&site));
    let before = wire.received();
    crm::sql_on(&site.path("hq.db"), &format!("INSERT INTO item(name, body) VALUES('big', randomblob({BODY}))"));
    // 128 kbit/s are 16 kB/s: some seconds into the transfer, and again.
    let half = |share: u64| wire.received() - before > BODY * share / 10;
    for share in [3, 6] {
        until("some of it came", Duration::from_secs(60), || half(share));
        wire.pull();
        std::thread::sleep(Duration::from_secs(2));
        wire.put_back();
    }
    until("the rest came", Duration::from_secs(120), || in_step(&site));
    let came = wire.received() - before;
    assert!(came < BODY + BODY / 3, "{came} bytes came for a file of {BODY}");
    // The wire is pulled and nobody says goodbye: the session is freed by itself, and its node comes in again.
    until("it watches again", Duration::from_secs(60), || is_watching(&site));
    wire.pull();
    let freed = until("the session is freed", Duration::from_secs(60), || !is_watching(&site));
    println!("freed after {:.1} s", freed.as_secs_f32());
    wire.put_back();
    until("it watches again", Duration::from_secs(90), || is_watching(&site));
    watching.kill().unwrap();
    watching.wait().unwrap();
    site.stop();
}
