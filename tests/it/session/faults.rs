//! Broken lines and broken files: nothing is lost, nothing is taken that is not right, nothing is fetched twice.

use super::support::{Client, Proxy, Server, byte_hash, noise, options, timing, until};
use dockmaster::base::ids::*;
use dockmaster::client::daemon::watch;
use dockmaster::client::exchange::{ExchangeOptions, sync_once};
use dockmaster::client::report::{ExchangeError, NoProgress};
use dockmaster::session::codec::{decode, encode};
use dockmaster::session::message::{Message, RefusalCode, Unavailable, kind};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Two chunks and a rest, one tiny file, one of exactly one chunk.
fn files() -> Vec<Vec<u8>> {
    vec![noise(1, 600_000), noise(2, 5), noise(3, 256 << 10), noise(4, 40_000)]
}

fn served() -> (Server, Vec<Vec<u8>>, u64) {
    let server = Server::start();
    server.add_node("SHOP-01");
    let files = files();
    for file in &files {
        server.route("SHOP-01", file);
    }
    let bytes = files.iter().map(|file| file.len() as u64).sum();
    (server, files, bytes)
}

#[test]
fn d5_a_cut_at_any_byte_is_resumed_and_no_byte_is_fetched_twice() {
    let (server, files, bytes) = served();
    let proxy = Proxy::to(server.address);
    let mut cuts: Vec<i64> = (0..40).collect();
    cuts.extend((40..bytes as i64 + 2_000).step_by(23_011));
    for cut in cuts {
        proxy.cut_after.store(cut, Ordering::SeqCst);
        server.forget_tokens();
        let client = Client::new("SHOP-01", proxy.address);
        let report = client.sync().unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        assert_eq!(client.held(), files, "cut at {cut}");
        assert_eq!(report.bytes, bytes, "cut at {cut}: bytes that were there were fetched again");
        assert_eq!((client.quarantined(), report.damaged), (0, 0), "cut at {cut}");
        assert_eq!(fs::read_dir(client.folder.tmp()).unwrap().count(), 0, "cut at {cut}: parts are left");
    }
}

#[test]
fn d5_a_line_that_always_breaks_still_gets_there() {
    let (server, files, bytes) = served();
    let proxy = Proxy::to(server.address);
    proxy.always.store(true, Ordering::SeqCst);
    proxy.cut_after.store(280_000, Ordering::SeqCst);
    let client = Client::new("SHOP-01", proxy.address);
    let report = client.sync().unwrap();
    assert_eq!((client.held(), report.bytes), (files, bytes));
    assert!(proxy.connections.load(Ordering::SeqCst) >= 4);
    // And one that lets nothing through ends with an error that says: try again.
    proxy.cut_after.store(0, Ordering::SeqCst);
    let client = Client::new("SHOP-01", proxy.address);
    assert!(client.sync().unwrap_err().is_passing());
}

#[test]
fn d5_a_part_of_another_file_is_not_taken_for_this_one() {
    let (server, files, _) = served();
    let client = Client::new("SHOP-01", server.address);
    // Same length as a true part, other bytes; and one that is longer than the file.
    fs::write(client.folder.tmp().join("00000001.dx.part"), noise(77, 100_000)).unwrap();
    let report = client.sync().unwrap();
    assert_eq!((client.held(), report.damaged, client.quarantined()), (files.clone(), 1, 1));
    let client = Client::new("SHOP-01", server.address);
    fs::write(client.folder.tmp().join("00000001.dx.part"), noise(78, 900_000)).unwrap();
    fs::write(client.folder.tmp().join("00000003.dx.part"), b"of no use").unwrap();
    let report = client.sync().unwrap();
    assert_eq!((client.held(), report.damaged), (files, 0));
}

#[test]
fn d1_what_is_there_is_not_fetched_again_and_gaps_are_filled() {
    let (server, files, _) = served();
    let proxy = Proxy::to(server.address);
    let mut client = Client::new("SHOP-01", proxy.address);
    client.options.apply = false;
    client.sync().unwrap();
    assert_eq!(client.sync().unwrap().files, 0);
    assert_eq!(proxy.count(kind::FETCH), 1);
    // Files lost from the inbox before they were applied: the server still has them.
    for lost in [1, 3] {
        fs::remove_file(client.folder.inbox().join(FileNo(lost).file_name())).unwrap();
    }
    client.options.apply = true;
    let report = client.sync().unwrap();
    assert_eq!((report.files, proxy.count(kind::FETCH)), (2, 3));
    assert_eq!(client.held(), files);
    // A duplicate of an applied file changes nothing.
    fs::write(client.folder.inbox().join(FileNo(2).file_name()), &files[1]).unwrap();
    assert_eq!(client.sync().unwrap().files, 0);
    assert_eq!(client.held().len(), 4);
}

#[test]
fn d2_a_lost_acknowledgement_is_made_good_by_the_next_hello() {
    for lost in [kind::RECEIVED, kind::APPLIED, kind::BYE] {
        let (server, files, bytes) = served();
        let proxy = Proxy::to(server.address);
        proxy.cut_at_kind.store(u64::from(lost), Ordering::SeqCst);
        let mut client = Client::new("SHOP-01", proxy.address);
        client.options.attempts = 1;
        let _broken = client.sync();
        assert!(lost == kind::BYE || server.marked("SHOP-01").1 == 0, "{lost:#x}");
        proxy.cut_at_kind.store(u64::MAX, Ordering::SeqCst);
        until("the broken session is over", || client.sync().is_ok());
        assert_eq!(client.held(), files, "{lost:#x}");
        assert_eq!(server.marked("SHOP-01"), (4, 4), "{lost:#x}");
        let sent: u64 = server.sessions().sessions(None, 100).unwrap().iter().map(|session| session.files_sent).sum();
        assert!(sent <= 4 && bytes > 0, "{lost:#x}: {sent} files were sent");
    }
}

#[test]
fn d3_a_byte_damaged_on_the_way_is_found_and_fetched_again() {
    let (server, files, bytes) = served();
    let proxy = Proxy::to(server.address);
    let mut flips: Vec<i64> = (0..330).step_by(3).collect();
    flips.extend((330..bytes as i64).step_by(60_013));
    let mut damaged = 0;
    for flip in flips {
        proxy.flip_at.store(flip, Ordering::SeqCst);
        server.forget_tokens();
        let client = Client::new("SHOP-01", proxy.address);
        // A flip in a message that is no content may read as a refusal or a broken protocol: then nothing was taken, and the next
        // call goes through.
        let report = client.sync().or_else(|_| client.sync()).unwrap_or_else(|error| panic!("flip at {flip}: {error}"));
        assert_eq!(client.held(), files, "flip at {flip}");
        assert_eq!(report.damaged, client.quarantined() as u64, "flip at {flip}");
        damaged += report.damaged;
    }
    assert!(damaged >= 10, "only {damaged} flips met content");
}

#[test]
fn d3_a_file_that_is_not_what_the_ledger_says_is_noticed_by_the_server() {
    let (server, ..) = served();
    let mut client = Client::new("SHOP-01", server.address);
    // Else it depends on who is faster whether the file before it is applied already.
    client.options.apply = false;
    let wrong = byte_hash(b"another");
    server.facts.ledger.lock().unwrap().values_mut().for_each(|files| files[1].byte_hash = wrong);
    match client.sync() {
        Err(ExchangeError::Unavailable { file, why: Unavailable::Damaged }) => assert_eq!(file, FileNo(2)),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.held().len(), 0);
    assert_eq!(client.folder.inbox_files().unwrap().len(), 1);
}

#[test]
fn d3_a_line_that_damages_every_time_is_given_up() {
    let server = Server::start();
    server.add_node("SHOP-01");
    server.route("SHOP-01", &noise(1, 250_000));
    let proxy = Proxy::to(server.address);
    proxy.always.store(true, Ordering::SeqCst);
    proxy.flip_at.store(100_000, Ordering::SeqCst);
    let client = Client::new("SHOP-01", proxy.address);
    match client.sync() {
        Err(ExchangeError::Damaged(file)) => assert_eq!((file, client.quarantined(), client.held().len()), (FileNo(1), 2, 0)),
        other => panic!("{other:?}"),
    }
    // The line is good again: the file comes.
    proxy.always.store(false, Ordering::SeqCst);
    proxy.flip_at.store(-1, Ordering::SeqCst);
    client.sync().unwrap();
    assert_eq!(client.held(), vec![noise(1, 250_000)]);
}

#[test]
fn d3_f3_a_file_broken_in_the_outbox_is_named_and_others_of_it_wait() {
    let (server, files, _) = served();
    let client = Client::new("SHOP-01", server.address);
    let path = server.outbox("SHOP-01").join(FileNo(3).file_name());
    let mut flipped = files[2].clone();
    flipped[200_000] ^= 1;
    for (broken, why) in
        [(Some(&flipped[..]), Unavailable::Damaged), (Some(&files[2][..1_000]), Unavailable::Damaged), (None, Unavailable::Missing)]
    {
        match broken {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        match client.sync() {
            Err(ExchangeError::Unavailable { file, why: found }) => assert_eq!((file, found), (FileNo(3), why)),
            other => panic!("{why}: {other:?}"),
        }
        // What came before it was taken; nothing of it was.
        assert_eq!(client.folder.inbox_files().unwrap().iter().chain(&[]).filter(|file| file.0 >= 3).count(), 0);
    }
    assert!(server.alerts().iter().any(|alert| alert.contains("00000003")), "{:?}", server.alerts());
    // A link in its place is not followed (T11).
    #[cfg(unix)]
    {
        let elsewhere = server.root().join("elsewhere");
        fs::write(&elsewhere, &files[2]).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(client.sync().is_err());
        fs::remove_file(&path).unwrap();
    }
    fs::write(&path, &files[2]).unwrap();
    client.sync().unwrap();
    assert_eq!(client.held(), files);
}

#[test]
fn fault24_a_half_open_peer_is_freed_on_both_sides() {
    let server = Server::start();
    server.add_node("SHOP-01");
    let proxy = Proxy::to(server.address);
    let client = Client::new("SHOP-01", proxy.address);
    let stop = CancellationToken::new();
    std::thread::scope(|scope| {
        // A check that fails must end the watch too, or the scope waits for ever.
        let _stopper = stop.clone().drop_guard();
        let watching = scope.spawn(|| watch(&client.folder, &client.config, &client.shared(), &client.options, &mut NoProgress, &stop));
        until("connected", || server.sessions().marks().unwrap().len() == 1);
        // Idle but alive for longer than it takes to be dead.
        std::thread::sleep(timing().dead_after * 2);
        assert_eq!((server.sessions().sessions(None, 10).unwrap().len(), proxy.connections.load(Ordering::SeqCst)), (1, 1));
        proxy.black_hole.store(true, Ordering::SeqCst);
        until("the server lets go", || {
            server.sessions().sessions(None, 100).unwrap().iter().any(|row| row.detail.contains("nothing was heard"))
        });
        until("the client lets go", || proxy.connections.load(Ordering::SeqCst) > 1);
        proxy.black_hole.store(false, Ordering::SeqCst);
        server.route("SHOP-01", b"after the break");
        until("in step again", || client.held().len() == 1);
        stop.cancel();
        watching.join().unwrap().unwrap();
    });
}

#[test]
fn fault25_silent_and_trickling_strangers_are_dropped_and_do_not_disturb() {
    let server = Server::start();
    server.add_node("SHOP-01");
    server.route("SHOP-01", b"one");
    let mut strangers: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    let began = Instant::now();
    Client::new("SHOP-01", server.address).sync().unwrap();
    assert!(began.elapsed() < timing().handshake);
    // One byte now and then does not keep a stranger in; a length bomb and noise end at once (T8).
    strangers[1].write_all(&u32::MAX.to_le_bytes()).unwrap();
    strangers[2].write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    strangers[3].write_all(&[1, 0, 0, 0, 9]).unwrap();
    for stranger in &mut strangers {
        stranger.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    }
    let mut open = true;
    while open {
        assert!(began.elapsed() < Duration::from_secs(12), "still open");
        let _refused = strangers[0].write_all(&[0]);
        let mut buffer = [0u8; 256];
        open = !matches!(strangers[0].read(&mut buffer), Ok(0))
            && !matches!(strangers[0].read(&mut buffer), Err(ref error) if error.kind() == std::io::ErrorKind::ConnectionReset);
    }
    for stranger in &mut strangers[1..4] {
        let mut rest = Vec::new();
        let _answer = stranger.read_to_end(&mut rest);
    }
}

#[test]
fn versions_without_a_common_one_are_named_on_both_sides() {
    let server = Server::start();
    server.add_node("SHOP-01");
    // A hello of protocol 7 to 9 with a body that this version cannot know.
    let mut body = kind::HELLO.to_le_bytes().to_vec();
    body.extend(b"DOCKSESS");
    body.extend([7, 0, 9, 0]);
    body.extend(noise(1, 50));
    assert_refused(&server, &body, RefusalCode::Protocol, &["protocol 1", "7 to 9"]);
    // A hello that reads other .dx formats only.
    let mut hello = dockmaster::session::client::init_hello("SHOP-01", InstallId([1; 16]), None);
    (hello.dx.min, hello.dx.max) = (4, 5);
    let body = encode(&Message::Hello(Box::new(hello))).unwrap();
    assert_refused(&server, &body, RefusalCode::DxFormat, &["format 3", "4 to 5"]);
}

fn assert_refused(server: &Server, body: &[u8], code: RefusalCode, named: &[&str]) {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(&u32::try_from(body.len()).unwrap().to_le_bytes()).unwrap();
    stream.write_all(body).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    match decode(&answer[4..].to_vec().into()).unwrap() {
        Message::Refused(refusal) => {
            assert_eq!(refusal.code, code);
            assert!(named.iter().all(|part| refusal.text.contains(part)), "{refusal}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn d4_an_offline_server_is_passing_trouble() {
    let server = Server::start();
    let client = Client::new("SHOP-01", server.address);
    drop(server);
    let options = ExchangeOptions { attempts: 2, ..options() };
    let error = sync_once(&client.folder, &client.config, &client.shared(), &options, &mut NoProgress).unwrap_err();
    assert!(error.is_passing(), "{error}");
    assert!(error.to_string().contains(&client.config.server), "{error}");
}
