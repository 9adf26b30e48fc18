//! One suite for every way on which files travel: the same cases, the same end. Another way is one more line in `WAYS`.

use crate::crm::{self, routed};
use crate::harness::{Site, literals};
use crate::ssh::{Sshd, user};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Brings a service up, and a way to it.
type Open = fn(&mut Site) -> Way;

const WAYS: [(&str, Open); 4] = [("tls", Way::tls), ("ssh", Way::ssh), ("folder", Way::folder), ("sftp", Way::sftp)];
/// Those on which a line can be cut; what becomes of letters that are lost or cut, `carrier.rs` tells.
const LINES: [(&str, Open); 2] = [WAYS[0], WAYS[1]];

const DEFINITION: &str = "version = 1\n[carrier.share]\npath = 'share'\n[object.item]\nvisible.all = 'everyone'\n";

/// A way to a running service.
struct Way {
    port: u16,
    sshd: Option<Sshd>,
    /// The sshd behind which the carrier is.
    drop: Option<Sshd>,
    /// The carrier, where nodes get in step by letters.
    via: Option<String>,
}

impl Way {
    fn tls(site: &mut Site) -> Way {
        let address = site.serve();
        Way { port: address.rsplit(':').next().unwrap().parse().unwrap(), sshd: None, drop: None, via: None }
    }

    fn ssh(site: &mut Site) -> Way {
        site.serve();
        let sshd = Sshd::start(site, &["ANNA", "BERT"]);
        Way { port: sshd.port, sshd: Some(sshd), drop: None, via: None }
    }

    fn folder(site: &mut Site) -> Way {
        site.dockmaster_ok(&["carrier", "prepare", "share"]);
        Way { via: Some(site.path("share").display().to_string()), ..Way::tls(site) }
    }

    /// A place behind an sshd where nothing of ours runs: both sides come there by SFTP.
    fn sftp(site: &mut Site) -> Way {
        let sshd = Sshd::start_for_sftp(site, "drop");
        let place = format!("sftp://{}@127.0.0.1:{}{}", user(), sshd.port, site.path("share").display());
        let definition = fs::read_to_string(site.path("dockmaster.toml")).unwrap();
        let keys = format!("path = '{place}'\nssh_key = 'ssh/id-drop'\nssh_known_hosts = 'ssh/known_hosts'");
        fs::write(site.path("dockmaster.toml"), definition.replace("path = 'share'", &keys)).unwrap();
        site.dockmaster_ok(&["carrier", "prepare", "share"]);
        // The nodes were let in over the network.
        Way { via: Some(place), port: Way::tls(site).port, sshd: None, drop: Some(sshd) }
    }

    fn sync(&self, site: &Site, node: &str) -> Output {
        let database = crm::local(node);
        match &self.via {
            Some(place) => {
                let mut arguments = vec!["sync".to_owned(), database, "--wait".into(), "60".into(), "--via".into(), place.clone()];
                if let Some(drop) = &self.drop {
                    let keys = [("--ssh-key", drop.key("drop")), ("--ssh-known-hosts", drop.known_hosts())];
                    arguments.extend(keys.into_iter().flat_map(|(name, path)| [name.to_owned(), path.display().to_string()]));
                }
                site.remote_sync(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
            }
            None => site.remote_sync(&["sync", &database, "--wait", "60"]),
        }
    }

    fn init(&self, site: &Site, node: &str) {
        let database = crm::local(node);
        let output = match &self.sshd {
            Some(sshd) => sshd.init(site, node, &database),
            None => site.remote_sync(&["init", &format!("127.0.0.1:{}", self.port), "--token", &site.token(node), &database]),
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Has a node call another port of this machine, behind which the same server is.
    fn point(&self, site: &Site, node: &str, port: u16) {
        let path = site.path(&format!("{}.sync/remote-sync.toml", crm::local(node)));
        let address = match &self.sshd {
            Some(sshd) => {
                let hosts = fs::read_to_string(sshd.known_hosts()).unwrap();
                if !hosts.contains(&format!("]:{port} ")) {
                    let here: String = hosts.replace(&format!("]:{} ", sshd.port), &format!("]:{port} "));
                    fs::write(sshd.known_hosts(), format!("{hosts}{here}")).unwrap();
                }
                format!("ssh://{}@127.0.0.1:{port}", user())
            }
            None => format!("127.0.0.1:{port}"),
        };
        crm::point(&path, &address);
    }

    /// Takes the identity of one node for another one's.
    fn swap_identity(&self, site: &Site, node: &str, with: &str) {
        let file = |node: &str| match &self.sshd {
            Some(sshd) => sshd.key(node),
            None => site.path(&format!("{}.sync/identity/node.pem", crm::local(node))),
        };
        let (own, other) = (fs::read(file(node)).unwrap(), fs::read(file(with)).unwrap());
        fs::write(file(node), other).unwrap();
        fs::write(file(with), own).unwrap();
    }
}

/// A line that is cut after so many bytes in one direction; it counts what went through.
struct Wire {
    port: u16,
    cut_down: Arc<AtomicI64>,
    cut_up: Arc<AtomicI64>,
    down: Arc<AtomicU64>,
    up: Arc<AtomicU64>,
}

impl Wire {
    fn to(port: u16) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Wire {
            port: listener.local_addr().unwrap().port(),
            cut_down: Arc::new(AtomicI64::new(-1)),
            cut_up: Arc::new(AtomicI64::new(-1)),
            down: Arc::default(),
            up: Arc::default(),
        };
        let (cut_down, cut_up, down, up) = (wire.cut_down.clone(), wire.cut_up.clone(), wire.down.clone(), wire.up.clone());
        std::thread::spawn(move || {
            for node in listener.incoming() {
                let (Ok(node), Ok(server)) = (node, TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))) else { return };
                let (node2, server2) = (node.try_clone().unwrap(), server.try_clone().unwrap());
                let (cut_up, up) = (cut_up.clone(), up.clone());
                std::thread::spawn(move || pass(node2, server2, &cut_up, &up));
                let (cut_down, down) = (cut_down.clone(), down.clone());
                std::thread::spawn(move || pass(server, node, &cut_down, &down));
            }
        });
        wire
    }

    fn forget(&self) {
        self.cut_down.store(-1, Ordering::SeqCst);
        self.cut_up.store(-1, Ordering::SeqCst);
        self.down.store(0, Ordering::SeqCst);
        self.up.store(0, Ordering::SeqCst);
    }
}

/// Carries bytes one way. The limit holds for one connection and is used up by it.
fn pass(mut from: TcpStream, mut to: TcpStream, cut: &AtomicI64, count: &AtomicU64) {
    let (mut limit, mut passed, mut buffer) = (-1, 0i64, [0; 16 << 10]);
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if limit < 0 {
            limit = cut.swap(-1, Ordering::SeqCst);
        }
        let length = if limit >= 0 { read.min(usize::try_from(limit - passed).unwrap_or(0)) } else { read };
        passed += length as i64;
        count.fetch_add(length as u64, Ordering::SeqCst);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
        if limit >= 0 && passed >= limit {
            let _cut = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            return;
        }
    }
    let _ended = to.shutdown(Shutdown::Write);
}

/// A site with two nodes, on one way.
fn site(make: Open) -> (Site, Way) {
    let mut site = Site::new(
        |path| crm::sql_on(path, "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, body BLOB); INSERT INTO item VALUES(1, 'a', NULL)"),
        DEFINITION,
    );
    site.dockmaster_ok(&["deploy", "--yes"]);
    for node in ["ANNA", "BERT"] {
        site.dockmaster_ok(&["node", "add", node]);
    }
    let way = make(&mut site);
    for node in ["ANNA", "BERT"] {
        way.init(&site, node);
    }
    (site, way)
}

const ALL: &str = "SELECT id, name, length(body), hex(substr(body, 1, 8)) FROM item ORDER BY id";

/// Everybody in step, and the same everywhere, once each.
fn the_same(site: &Site, way: &Way, what: &str) {
    routed(site);
    for node in ["ANNA", "BERT"] {
        let output = way.sync(site, node);
        assert!(output.status.success(), "{what}: {node}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(literals(&site.path(&crm::local(node)), ALL), literals(&site.path("hq.db"), ALL), "{what}: {node}");
    }
    let doubled = literals(&site.path("hq.db"), "SELECT name FROM item GROUP BY name HAVING count(*) > 1");
    assert!(doubled.is_empty(), "{what}: twice: {doubled:?}");
}

fn sql(site: &Site, database: &str, sql: &str) {
    crm::sql_on(&site.path(database), sql);
}

#[test]
fn both_directions_many_small_files_and_a_big_one_on_every_way() {
    for (name, make) in WAYS {
        let (mut site, way) = site(make);
        sql(&site, "anna.db", "INSERT INTO item(name) VALUES('of anna')");
        sql(&site, "hq.db", "INSERT INTO item(name) VALUES('of the server')");
        assert!(way.sync(&site, "ANNA").status.success());
        the_same(&site, &way, name);
        // Many small ones, down: one unit and one file each.
        for number in 0..300 {
            sql(&site, "hq.db", &format!("INSERT INTO item(name) VALUES('small {number}')"));
            if number % 30 == 29 {
                routed(&site);
            }
        }
        // A big one, each way, that nothing can compress.
        sql(&site, "hq.db", "INSERT INTO item(name, body) VALUES('big down', randomblob(12000000))");
        sql(&site, "bert.db", "INSERT INTO item(name, body) VALUES('big up', randomblob(12000000))");
        assert!(way.sync(&site, "BERT").status.success());
        the_same(&site, &way, name);
        drop(way);
        site.stop();
    }
}

#[test]
fn fault23_a_line_that_is_cut_anywhere_is_gone_on_with_at_the_byte_on_every_way() {
    const BODY: i64 = 150_000;
    const STEP: i64 = 15_000;
    for (name, make) in LINES {
        let (mut site, way) = site(make);
        let wire = Wire::to(way.port);
        let mut number = 0;
        for is_up in [false, true] {
            for at in (0..BODY + 2 * STEP).step_by(STEP as usize) {
                number += 1;
                let what = format!("{name}: cut {} after {at} bytes", if is_up { "up" } else { "down" });
                let database = if is_up { "anna.db" } else { "hq.db" };
                sql(&site, database, &format!("INSERT INTO item(name, body) VALUES('cut {number}', randomblob({BODY}))"));
                routed(&site);
                wire.forget();
                way.point(&site, "ANNA", wire.port);
                (if is_up { &wire.cut_up } else { &wire.cut_down }).store(at, Ordering::SeqCst);
                // It comes back by itself, in the same call.
                let output = way.sync(&site, "ANNA");
                assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
                let passed = (if is_up { &wire.up } else { &wire.down }).load(Ordering::SeqCst) as i64;
                // What had come is not sent again: beside the file there is a handshake for each of the two lines, and what the cut tore off (a
                // message of ours, and a packet of SSH, which may have 32 KiB).
                assert!(passed < BODY + 70_000, "{what}: {passed} bytes went through");
                way.point(&site, "ANNA", way.port);
            }
        }
        the_same(&site, &way, name);
        drop(way);
        site.stop();
    }
}

/// A node that has not read yet what came when its line was cut reads it all the same: much lies in its socket, since it stood still.
#[test]
fn fault23_what_had_come_when_a_line_was_cut_is_kept_on_every_way() {
    const BODY: u64 = 600_000;
    for (name, make) in LINES {
        let (mut site, way) = site(make);
        sql(&site, "hq.db", &format!("INSERT INTO item(name, body) VALUES('cut', randomblob({BODY}))"));
        routed(&site);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        way.point(&site, "ANNA", listener.local_addr().unwrap().port());
        let syncing = site.remote_sync_started(&["sync", "anna.db", "--wait", "60"]);
        let (node, down) = (syncing.id().to_string(), Arc::new(AtomicU64::new(0)));
        let (port, counted) = (way.port, down.clone());
        let stopped = Arc::new(AtomicU64::new(0));
        let unread = stopped.clone();
        std::thread::spawn(move || {
            for (number, caller) in listener.incoming().enumerate() {
                let (mut to, mut from) = (caller.unwrap(), TcpStream::connect(("127.0.0.1", port)).unwrap());
                let (up, server) = (to.try_clone().unwrap(), from.try_clone().unwrap());
                std::thread::spawn(move || pass(up, server, &AtomicI64::new(-1), &AtomicU64::new(0)));
                if number > 0 {
                    let counted = counted.clone();
                    std::thread::spawn(move || pass(from, to, &AtomicI64::new(-1), &counted));
                    continue;
                }
                let signal = |signal: &str| assert!(std::process::Command::new("kill").args([signal, &node]).status().unwrap().success());
                let mut buffer = [0; 16 << 10];
                while counted.load(Ordering::SeqCst) < BODY / 4 {
                    let read = from.read(&mut buffer).unwrap();
                    to.write_all(&buffer[..read]).unwrap();
                    counted.fetch_add(read as u64, Ordering::SeqCst);
                }
                signal("-STOP");
                to.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
                while counted.load(Ordering::SeqCst) < BODY * 3 / 4 {
                    let read = from.read(&mut buffer).unwrap();
                    let Ok(written) = to.write(&buffer[..read]) else { break };
                    unread.fetch_add(written as u64, Ordering::SeqCst);
                    counted.fetch_add(written as u64, Ordering::SeqCst);
                    if written < read {
                        break;
                    }
                }
                let _cut = (to.shutdown(Shutdown::Write), from.shutdown(Shutdown::Both));
                signal("-CONT");
            }
        });
        let output = syncing.wait_with_output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let (unread, passed) = (stopped.load(Ordering::SeqCst), down.load(Ordering::SeqCst));
        assert!(unread > 100_000, "{name}: only {unread} bytes waited for the node");
        assert!(passed < BODY + 70_000, "{name}: {passed} bytes went through, {unread} of them waited when the line was cut");
        way.point(&site, "ANNA", way.port);
        the_same(&site, &way, name);
        drop(way);
        site.stop();
    }
}

#[test]
fn t4_f17_a_wrong_identity_and_a_bad_peer_change_nothing_on_every_way() {
    for (name, make) in WAYS {
        let (mut site, way) = site(make);
        sql(&site, "hq.db", "INSERT INTO item(name) VALUES('not yet')");
        sql(&site, "anna.db", "INSERT INTO item(name) VALUES('of anna')");
        way.swap_identity(&site, "ANNA", "BERT");
        let before = literals(&site.path("anna.db"), ALL);
        for node in ["ANNA", "BERT"] {
            let output = way.sync(&site, node);
            assert_eq!(output.status.code(), Some(2), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            // By letters it is the node itself that notices; a letter that is signed by another one's key, `carrier.rs` tries.
            let expected = if way.via.is_some() { "it is the identity of" } else { "unknown, disabled or wrong node" };
            assert!(said.contains(expected), "{name}: {said}");
        }
        way.swap_identity(&site, "ANNA", "BERT");
        if way.via.is_some() {
            assert_eq!(literals(&site.path("anna.db"), ALL), before, "{name}: nothing came and nothing went");
            the_same(&site, &way, name);
            site.stop();
            continue;
        }
        // Something that speaks no language of ours, and something that says nothing at all.
        let noise = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = noise.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for line in noise.incoming() {
                let mut line = line.unwrap();
                let _gone = line.write_all(b"220 mail.example ESMTP ready\r\n");
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        way.point(&site, "ANNA", port);
        let began = Instant::now();
        let output = site.remote_sync(&["sync", "anna.db", "--quiet"]);
        assert!(matches!(output.status.code(), Some(2 | 3)), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(began.elapsed() < Duration::from_secs(60), "{name}");
        assert_eq!(literals(&site.path("anna.db"), ALL), before, "{name}: nothing came and nothing went");
        way.point(&site, "ANNA", way.port);
        the_same(&site, &way, name);
        drop(way);
        site.stop();
    }
}
