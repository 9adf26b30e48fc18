//! What somebody on the line can do: stand between, listen and repeat, flip bits, speak without TLS, say nothing; and a web proxy.

use super::{authority, turned_away};
use crate::crm::{self, complaint, in_step, routed, server_sql};
use crate::harness::{Program, Site};
use crate::session::support::Proxy;
use dockmaster::transport::link::Timing;
use dockmaster::transport::peer::{Greeted, Greeter};
use dockmaster::transport::tls::TlsGreeter;
use dockmaster::trust::authority::Authority;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Points a node at another address.
fn point(site: &Site, database: &str, address: &str) {
    crm::point(&site.path(&format!("{database}.sync/remote-sync.toml")), address);
}

/// A server that has an identity of its own, and notes who got through its handshake.
fn impostor(authority: Authority) -> (SocketAddr, Arc<AtomicU64>) {
    let noted = Arc::new(AtomicU64::new(0));
    let greeter = TlsGreeter::new(&Arc::new(authority)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let through = Arc::clone(&noted);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                match greeter.greet(stream, Timing::default()).await {
                    Ok(Greeted::Session { .. } | Greeted::Enrolment { .. }) => through.fetch_add(1, Ordering::SeqCst),
                    _ => 0,
                };
            }
        });
    });
    (address, noted)
}

#[test]
fn t5_a_server_with_another_identity_gets_neither_a_session_nor_a_token() {
    let mut site = crm::running(&["ANNA"]);
    let (address, through) = impostor(Authority::generate().unwrap());
    let address = address.to_string();
    point(&site, "anna.db", &address);
    server_sql(&site, "UPDATE opportunity SET name = 'not for others' WHERE id <= 50");
    let refused = |arguments: &[&str]| {
        let output = site.remote_sync(arguments);
        let (error, hint) = complaint(&output);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("does not prove that it is the server of this database"), "{error}");
        assert!(hint.contains("nothing was exchanged"), "{hint}");
    };
    refused(&["sync", "anna.db"]);
    refused(&["init", &address, "--token", &site.token("BERT"), "bert.db"]);
    assert_eq!(through.load(Ordering::SeqCst), 0, "nobody ended the handshake with it");
    assert!(!site.path("bert.db").exists());
    let straight = site.address().to_owned();
    point(&site, "anna.db", &straight);
    in_step(&site, &["ANNA"]);
    site.stop();
}

/// What would happen if nodes looked at nothing: the test before this one must be able to fail.
#[test]
fn t5_an_impostor_with_the_right_authority_does_get_through() {
    let mut site = crm::running(&["ANNA"]);
    let (address, through) = impostor(authority(&site));
    point(&site, "anna.db", &address.to_string());
    let _gone = site.remote_sync(&["sync", "anna.db", "--quiet"]);
    assert!(through.load(Ordering::SeqCst) > 0);
    site.stop();
}

#[test]
fn t5_whoever_speaks_without_tls_or_an_old_one_hears_nothing_of_us() {
    let mut site = crm::running(&["ANNA"]);
    let address = site.address().to_owned();
    for said in [
        b"DOCKSESS\x01\x00\x01\x00 let me in, I am ANNA".as_slice(),
        b"GET / HTTP/1.1\r\nHost: hq\r\n\r\n",
        &[0xFF; 2000],
        b"\x16\x03\x01\xFF\xFF\x01",
    ] {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        stream.write_all(said).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut heard = Vec::new();
        let _reset = stream.read_to_end(&mut heard);
        // An alert of TLS at most.
        assert!(heard.len() <= 7 && heard.first().is_none_or(|first| *first == 0x15), "{heard:?}");
    }
    for version in ["-tls1_2", "-tls1_3"] {
        let output = Command::new("openssl")
            .args(["s_client", "-connect", &address, version, "-alpn", "dock"])
            .stdin(Stdio::null())
            .output()
            .expect("the openssl program; scripts/test.sh installs it");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let is_new = version == "-tls1_3";
        assert_eq!(text.contains("Cipher is TLS_"), is_new, "{version}: {text}");
        assert_eq!(text.contains("alert protocol version"), !is_new, "{version}: {text}");
    }
    in_step(&site, &["ANNA"]);
    site.stop();
}

#[test]
fn t5_a_flipped_bit_anywhere_on_the_line_ends_the_session_and_changes_nothing() {
    let mut site = crm::running(&["ANNA"]);
    let straight = site.address().to_owned();
    let proxy = Proxy::to_tls(straight.parse().unwrap());
    for turn in 0..24 {
        let (up, at) = (turn % 2 == 0, 40 + 90 * turn);
        server_sql(&site, &format!("UPDATE opportunity SET name = 'turn {turn}' WHERE id <= 50"));
        crm::sql_on(&site.path("anna.db"), &format!("UPDATE opportunity SET amount = {turn} WHERE id = (SELECT max(id) FROM opportunity)"));
        routed(&site);
        (if up { &proxy.flip_up_at } else { &proxy.flip_at }).store(at, Ordering::SeqCst);
        point(&site, "anna.db", &proxy.address.to_string());
        let _broken = site.remote_sync(&["sync", "anna.db", "--quiet"]);
        proxy.flip_up_at.store(-1, Ordering::SeqCst);
        proxy.flip_at.store(-1, Ordering::SeqCst);
        point(&site, "anna.db", &straight);
        site.remote_sync_ok(&["sync", "anna.db", "--wait", "30"]);
        crm::equal(&site, &["ANNA"]);
    }
    assert_eq!(site.dockmaster(&["status"]).status.code(), Some(0), "no damage was taken for anything");
    site.stop();
}

/// Passes one connection on and keeps what the node said.
fn recorder(server: &str) -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, server, kept) = (listener.local_addr().unwrap().to_string(), server.to_owned(), Arc::new(Mutex::new(Vec::new())));
    let record = Arc::clone(&kept);
    std::thread::spawn(move || {
        let (node, _) = listener.accept().unwrap();
        let server = TcpStream::connect(server).unwrap();
        let (mut from_server, mut to_node) = (server.try_clone().unwrap(), node.try_clone().unwrap());
        std::thread::spawn(move || {
            let _done = std::io::copy(&mut from_server, &mut to_node);
            let _closed = to_node.shutdown(std::net::Shutdown::Both);
        });
        let (mut node, mut server, mut buffer) = (node, server, [0; 8192]);
        while let Ok(count) = node.read(&mut buffer) {
            if count == 0 || server.write_all(&buffer[..count]).is_err() {
                break;
            }
            record.lock().unwrap().extend_from_slice(&buffer[..count]);
        }
        let _closed = server.shutdown(std::net::Shutdown::Write);
    });
    (address, kept)
}

#[test]
fn t6_a_recorded_session_said_once_more_has_no_effect() {
    let mut site = crm::running(&["ANNA"]);
    let straight = site.address().to_owned();
    let (address, kept) = recorder(&straight);
    crm::sql_on(&site.path("anna.db"), "UPDATE opportunity SET amount = 1 WHERE id = (SELECT max(id) FROM opportunity)");
    point(&site, "anna.db", &address);
    site.remote_sync_ok(&["sync", "anna.db", "--wait", "30"]);
    point(&site, "anna.db", &straight);
    let recorded = kept.lock().unwrap().clone();
    assert!(recorded.len() > 1_000, "{}", recorded.len());
    let effects = || {
        let units = crate::harness::literals(&site.path("hq.db"), "SELECT * FROM dock_unit");
        let sessions = crate::harness::literals(&site.path("docking/sessions.db"), "SELECT count(*) FROM session");
        (units, sessions, crm::dx_files(&site, "docking/ANNA/inbox"))
    };
    let before = effects();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(&straight).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let _closed = stream.write_all(&recorded);
        let mut heard = Vec::new();
        let _reset = stream.read_to_end(&mut heard);
    }
    assert_eq!(effects(), before);
    in_step(&site, &["ANNA"]);
    site.stop();
}

/// A proxy as firms have them: `CONNECT`, with name and password. It knows the name of a host that nobody else does.
fn web_proxy(server: &str, asked: Arc<Mutex<Vec<String>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, server) = (listener.local_addr().unwrap().to_string(), server.to_owned());
    std::thread::spawn(move || {
        for node in listener.incoming() {
            let (mut node, server, asked) = (node.unwrap(), server.clone(), Arc::clone(&asked));
            std::thread::spawn(move || {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if node.read_exact(&mut byte).is_err() {
                        return;
                    }
                    head.push(byte[0]);
                }
                let head = String::from_utf8(head).unwrap();
                let answer = match head.contains("Proxy-Authorization: Basic c2hpcDphbmNob3I=") {
                    true => "HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n",
                    false => "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n",
                };
                asked.lock().unwrap().push(head.lines().next().unwrap().to_owned());
                node.write_all(answer.as_bytes()).unwrap();
                if answer.contains(" 407 ") {
                    return;
                }
                let server = TcpStream::connect(server).unwrap();
                let (mut up_from, mut up_to) = (node.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _done = std::io::copy(&mut up_from, &mut up_to);
                    let _closed = up_to.shutdown(std::net::Shutdown::Write);
                });
                let (mut server, mut node) = (server, node);
                let _done = std::io::copy(&mut server, &mut node);
                let _closed = node.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    address
}

#[test]
fn sr9_a_node_reaches_its_server_through_a_web_proxy() {
    let mut site = crm::running(&[]);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let proxy = web_proxy(site.address(), Arc::clone(&asked));
    let through = |user: &str, arguments: &[&str]| {
        site.command(Program::RemoteSync, arguments).env("HTTPS_PROXY", format!("http://{user}@{proxy}")).output().unwrap()
    };
    let token = site.token("ANNA");
    let refused = through("ship:wrong", &["init", "hq.example:443", "--token", &token, "anna.db"]);
    let (error, _) = complaint(&refused);
    assert!(error.contains("407") && !error.contains("wrong@"), "{error}");
    for arguments in [["init", "hq.example:443", "--token", &token, "anna.db"].as_slice(), &["sync", "anna.db"]] {
        let output = through("ship:anchor", arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!String::from_utf8_lossy(&output.stderr).contains("anchor"));
    }
    crm::equal(&site, &["ANNA"]);
    let asked = asked.lock().unwrap();
    assert!(asked.len() >= 3 && asked.iter().all(|line| line == "CONNECT hq.example:443 HTTP/1.1"), "{asked:?}");
    // Without it nobody knows that host.
    assert_eq!(site.remote_sync(&["sync", "anna.db", "--quiet"]).status.code(), Some(3));
    site.stop();
}

/// 500 peers from several addresses that open a line and do not get on with TLS, or send a byte now and then: they are dropped within the
/// handshake time, and disturb nobody. How long a good node takes beside them is printed.
#[test]
fn g15_500_peers_that_stop_within_the_handshake_are_dropped_and_disturb_nobody() {
    const PEERS: usize = 500;
    let mut site = crm::running(&["ANNA"]);
    let address: SocketAddr = site.address().parse().unwrap();
    let good = |site: &Site, name: &str| {
        server_sql(site, &format!("UPDATE opportunity SET name = '{name}' WHERE id <= 50"));
        routed(site);
        let began = Instant::now();
        site.remote_sync_ok(&["sync", "anna.db"]);
        crm::equal(site, &["ANNA"]);
        began.elapsed()
    };
    let alone = good(&site, "alone");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let opened = Instant::now();
    let dropped: Vec<_> = (0..PEERS)
        .map(|number| {
            runtime.spawn(async move {
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                // All of 127/8 is this machine.
                socket.bind(SocketAddr::from(([127, 0, 0, 2 + u8::try_from(number % 4).unwrap()], 0))).unwrap();
                let mut stream = socket.connect(address).await.unwrap();
                let mut buffer = [0; 64];
                // As TLS begins, and no further; every second one goes on, a byte at a time.
                let _gone = tokio::io::AsyncWriteExt::write_all(&mut stream, b"\x16\x03\x01\x02\x00\x01").await;
                loop {
                    let heard =
                        tokio::time::timeout(Duration::from_millis(500), tokio::io::AsyncReadExt::read(&mut stream, &mut buffer)).await;
                    match heard {
                        Ok(Ok(0) | Err(_)) => return opened.elapsed(),
                        Ok(Ok(_)) => {}
                        Err(_) if number % 2 == 0 => drop(tokio::io::AsyncWriteExt::write_all(&mut stream, b"\x00").await),
                        Err(_) => {}
                    }
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_secs(1));
    let beside = good(&site, "beside 500");
    let limit = Timing::default().handshake;
    assert!(opened.elapsed() < limit, "while they hang: {:?}", opened.elapsed());
    let slowest = runtime.block_on(async {
        let mut slowest = Duration::ZERO;
        for peer in dropped {
            slowest = slowest.max(peer.await.unwrap());
        }
        slowest
    });
    println!("a good node: alone {alone:?}, beside 500 peers {beside:?}; the last of them was dropped after {slowest:?}");
    assert!(slowest < limit * 2, "{slowest:?}");
    assert_eq!(site.dockmaster(&["status"]).status.code(), Some(0));
    site.stop();
}

/// A device whose battery was empty, and one whose clock is years ahead: both go on, and are told.
#[test]
fn f11_a_wrong_clock_has_a_message_of_its_own_and_stops_nothing() {
    let mut site = crm::running(&["ANNA"]);
    let Some(library) = crate::scenarios::clocks::checked_library(&site) else {
        return println!("SKIPPED: libfaketime is not installed");
    };
    let clock = site.path("node.clock");
    for (time, what) in [("1971-01-01 00:00:00", "is not good yet"), ("2050-01-01 00:00:00", "has ended")] {
        crate::scenarios::clocks::set(&clock, time);
        server_sql(&site, &format!("UPDATE opportunity SET name = 'in {time}' WHERE id <= 50"));
        routed(&site);
        let mut sync = site.command(Program::RemoteSync, &["sync", "anna.db"]);
        let output = crate::scenarios::clocks::by_clock(&mut sync, &library, &clock).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        assert!(said.contains(&time[..4]) && said.contains(what) && said.contains("one of the two clocks is wrong"), "{said}");
        crm::equal(&site, &["ANNA"]);
    }
    let output = site.remote_sync(&["sync", "anna.db"]);
    assert!(output.status.success() && !String::from_utf8_lossy(&output.stderr).contains("clock"), "{output:?}");
    site.stop();
}

#[test]
fn a_token_of_another_server_is_told_from_a_wrong_one() {
    let mut site = crm::running(&[]);
    let other = crm::deployed();
    let output = site.remote_sync(&["init", site.address(), "--token", &other.token("ANNA"), "anna.db"]);
    let (error, _) = complaint(&output);
    assert_eq!(output.status.code(), Some(2));
    assert!(error.contains("does not prove"), "{error}");
    turned_away(&site.remote_sync(&["init", site.address(), "--token", &site.forged_token("ANNA"), "anna.db"]));
    site.stop();
}
