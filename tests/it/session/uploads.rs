//! What a node sends, over real sockets: each file lies in the inbox once, byte for byte, whatever breaks.

use super::support::{Proxy, Server, name, noise, until};
use super::upload_kit::{Hand, chain, sender};
use dockmaster::base::ids::*;
use dockmaster::client::daemon::watch;
use dockmaster::client::report::NoProgress;
use dockmaster::session::upload::kind as upload;
use dockmaster::store::upload_position::MergedTo;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const NODE: &str = "SHOP-01";
/// One tiny file, one of several chunks, one of about one chunk.
const LENGTHS: [usize; 3] = [40, 150_000, 65_000];

#[test]
fn sr12_doe15_mi18_one_sync_sends_everything_then_fetches_everything() {
    let woken = Arc::new(AtomicU64::new(0));
    let wakes = woken.clone();
    let server = Server::start_with(|options| {
        options.stored = Some(Arc::new(move || {
            wakes.fetch_add(1, Ordering::SeqCst);
        }));
    });
    server.add_node(NODE);
    server.route(NODE, b"one");
    let files = chain(NODE, &LENGTHS);
    let proxy = Proxy::to(server.address);
    let (client, hand) = sender(NODE, proxy.address, &files);
    let report = client.sync().unwrap();
    server.expect_stored(NODE, &files, "sync");
    assert_eq!((report.sessions, report.sent.files, report.sent.units, report.files), (1, 3, 3, 1));
    assert_eq!(report.sent.bytes, files.iter().map(|made| made.bytes.len() as u64).sum::<u64>());
    let (stored, cuts) = {
        let hand = hand.lock().unwrap();
        (hand.stored, hand.cuts)
    };
    assert_eq!((stored, cuts), (FileNo(3), 1));
    assert_eq!((client.held(), woken.load(Ordering::SeqCst)), (vec![b"one".to_vec()], 3));
    assert_eq!((proxy.count(upload::BEGIN), proxy.count(upload::DONE), server.parts(NODE)), (3, 1, 0));
    // Sent once, it is not sent again.
    let report = client.sync().unwrap();
    assert_eq!((report.sent.files, proxy.count(upload::BEGIN)), (0, 3));
    let known = hand.lock().unwrap().agreed.last().unwrap().clone();
    assert_eq!((known.stored, known.hash, known.last_unit, known.part), (FileNo(3), files[2].file.content_hash, UnitNo(3), None));
}

#[test]
fn mi49_mi52_x7_a_cut_before_within_and_after_every_message_of_the_node_leaves_each_file_once() {
    let files = chain(NODE, &LENGTHS);
    let ends = {
        let server = Server::start();
        server.add_node(NODE);
        let proxy = Proxy::to(server.address);
        sender(NODE, proxy.address, &files).0.sync().unwrap();
        proxy.ends.lock().unwrap().clone()
    };
    assert!(ends.len() >= 13, "{ends:?}");
    let mut cuts: Vec<i64> = vec![0];
    let mut before = 0;
    for end in &ends {
        cuts.extend([before + 1, (before + end) / 2, end - 1, *end]);
        before = *end;
    }
    for cut in cuts {
        let server = Server::start();
        server.add_node(NODE);
        let proxy = Proxy::to(server.address);
        proxy.cut_up_after.store(cut, Ordering::SeqCst);
        let (client, hand) = sender(NODE, proxy.address, &files);
        let report = client.sync().unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        server.expect_stored(NODE, &files, &format!("cut at {cut}"));
        assert_eq!((report.sent.files, report.sent.units, hand.lock().unwrap().stored), (3, 3, FileNo(3)), "cut at {cut}");
        assert_eq!(server.parts(NODE), 0, "cut at {cut}: parts are left");
        assert_eq!(server.alerts(), Vec::<String>::new(), "cut at {cut}");
        // A part is gone on with: at most the chunk that was on its way is sent twice.
        let bytes: u64 = files.iter().map(|made| made.bytes.len() as u64).sum();
        assert!(report.sent.bytes <= bytes + 600_000, "cut at {cut}: {} of {bytes}", report.sent.bytes);
    }
}

#[test]
fn mi49_mi52_x7_a_cut_anywhere_in_what_the_server_says_leaves_each_file_once() {
    let files = chain(NODE, &LENGTHS);
    // Welcome, state, three times stored: about 200 bytes.
    for cut in (0..260).step_by(5) {
        let server = Server::start();
        server.add_node(NODE);
        let proxy = Proxy::to(server.address);
        proxy.cut_after.store(cut, Ordering::SeqCst);
        let (client, hand) = sender(NODE, proxy.address, &files);
        let report = client.sync().unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        server.expect_stored(NODE, &files, &format!("cut at {cut}"));
        assert_eq!((report.sent.units, hand.lock().unwrap().stored), (3, FileNo(3)), "cut at {cut}");
    }
}

#[test]
fn f14_x8_files_lost_in_turn_on_either_side_are_asked_for_and_sent_again() {
    let files = chain(NODE, &[100, 200, 300, 400]);
    for lost in 1..=4u64 {
        let server = Server::start();
        server.add_node(NODE);
        let (client, hand) = sender(NODE, server.address, &files);
        // Lost at the node before it was sent.
        fs::remove_file(client.folder.outbox().join(FileNo(lost).file_name())).unwrap();
        client.sync().unwrap();
        server.expect_stored(NODE, &files, "lost at the node");
        assert_eq!(hand.lock().unwrap().made_again, 1);
        // Lost at the server before it was merged, those after it are there.
        fs::remove_file(server.inbox(NODE).join(FileNo(lost).file_name())).unwrap();
        let report = client.sync().unwrap();
        server.expect_stored(NODE, &files, "lost at the server");
        assert!(report.sent.bytes >= files[lost as usize - 1].bytes.len() as u64);
        // What is merged may go.
        let merged = MergedTo { incarnation: Incarnation(1), file: FileNo(lost), hash: files[lost as usize - 1].file.content_hash };
        server.facts.merged.lock().unwrap().insert(name(NODE), merged);
        for number in 1..=lost {
            fs::remove_file(server.inbox(NODE).join(FileNo(number).file_name())).unwrap();
        }
        assert_eq!(client.sync().unwrap().sent.bytes, 0);
        assert_eq!(server.stored(NODE).len() as u64, 4 - lost);
    }
}

#[test]
fn f14_what_sessions_db_lost_is_proved_again_from_the_files() {
    let files = chain(NODE, &[100, 200, 300]);
    let server = Server::start();
    server.add_node(NODE);
    let (client, hand) = sender(NODE, server.address, &files);
    client.sync().unwrap();
    let plain = rusqlite::Connection::open(server.root().join("sessions.db")).unwrap();
    plain.execute_batch("DELETE FROM upload").unwrap();
    assert_eq!(client.sync().unwrap().sent.files, 0);
    assert_eq!(hand.lock().unwrap().agreed.last().unwrap().stored, FileNo(3));
    // One of them damaged meanwhile: it is put aside, with an alert, and sent again.
    plain.execute_batch("DELETE FROM upload").unwrap();
    let path = server.inbox(NODE).join(FileNo(2).file_name());
    let mut bytes = fs::read(&path).unwrap();
    bytes[300] ^= 1;
    fs::write(&path, bytes).unwrap();
    client.sync().unwrap();
    server.expect_stored(NODE, &files, "damaged in the inbox");
    assert!(server.alerts()[0].contains("00000002.dx"), "{:?}", server.alerts());
    assert!(server.root().join(NODE).join("quarantine").join("00000002.dx").exists());
}

#[test]
fn f3_a_byte_damaged_on_the_way_up_is_found_and_the_file_sent_again() {
    let files = chain(NODE, &LENGTHS);
    let mut damaged = 0;
    for flip in (200..140_000i64).step_by(9_973) {
        let server = Server::start();
        server.add_node(NODE);
        let proxy = Proxy::to(server.address);
        proxy.flip_up_at.store(flip, Ordering::SeqCst);
        let (client, _) = sender(NODE, proxy.address, &files);
        // A flip in the head of a message may break the protocol; the next call goes through.
        client.sync().or_else(|_| client.sync()).unwrap_or_else(|error| panic!("flip at {flip}: {error}"));
        server.expect_stored(NODE, &files, &format!("flip at {flip}"));
        damaged += usize::from(server.root().join(NODE).join("quarantine").join("00000002.dx").exists());
    }
    assert!(damaged >= 10, "only {damaged} flips met content");
}

#[test]
fn mi6_mi12_mi15_a_sync_that_waits_brings_what_came_of_it_in_the_same_session() {
    let server = Server::start();
    server.add_node(NODE);
    server.route(NODE, b"before");
    let files = chain(NODE, &[100, 200]);
    let (mut client, _) = sender(NODE, server.address, &files);
    client.options.wait = Some(30);
    let report = std::thread::scope(|scope| {
        let syncing = scope.spawn(|| client.sync().unwrap());
        until("sent", || server.stored(NODE).len() == 2);
        std::thread::sleep(Duration::from_millis(100));
        assert!(!syncing.is_finished(), "nothing is merged yet");
        // Merged, but not routed.
        *server.facts.log.lock().unwrap() = (TxnId(5), TxnId(0));
        let merged = MergedTo { incarnation: Incarnation(1), file: FileNo(2), hash: files[1].file.content_hash };
        server.facts.merged.lock().unwrap().insert(name(NODE), merged);
        server.routed.send_modify(|rounds| *rounds += 1);
        std::thread::sleep(Duration::from_millis(100));
        assert!(!syncing.is_finished(), "nothing is routed yet");
        server.facts.log.lock().unwrap().1 = TxnId(5);
        server.route(NODE, b"confirm");
        syncing.join().unwrap()
    });
    assert_eq!((report.sent.merged, report.sessions, report.files), (Some(true), 1, 2));
    assert_eq!(client.held(), vec![b"before".to_vec(), b"confirm".to_vec()]);
}

#[test]
fn mi5_mi16_when_the_time_is_up_the_sync_ends_well_and_nothing_is_lost() {
    let server = Server::start();
    server.add_node(NODE);
    server.route(NODE, b"before");
    let files = chain(NODE, &[100]);
    let (mut client, _) = sender(NODE, server.address, &files);
    client.options.wait = Some(1);
    let began = Instant::now();
    let report = client.sync().unwrap();
    assert!((Duration::from_secs(1)..Duration::from_secs(5)).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!((report.sent.merged, report.sent.files, report.files), (Some(false), 1, 1));
    server.expect_stored(NODE, &files, "time is up");
    // Not waited for at all: the same messages, only the answer comes with a later session (MI-7, MI-14).
    client.options.wait = None;
    server.route(NODE, b"confirm");
    assert_eq!(client.sync().unwrap().sent.merged, None);
    assert_eq!(client.held().len(), 2);
}

#[test]
fn mi21_mi22_download_is_left_out_where_it_is_not_wanted() {
    let server = Server::start();
    server.add_node(NODE);
    server.route(NODE, b"one");
    let files = chain(NODE, &[100]);
    let (mut client, _) = sender(NODE, server.address, &files);
    client.options.receive = false;
    let report = client.sync().unwrap();
    assert_eq!((report.sent.files, report.files, client.held().len()), (1, 0, 0));
    server.expect_stored(NODE, &files, "no download");
    // The other half alone.
    client.options.receive = true;
    client.options.send = false;
    let report = client.sync().unwrap();
    assert_eq!((report.sent.files, report.files, report.sent.is_unknown_to_server), (0, 1, false));
}

#[test]
fn mi10_r22_watch_sends_what_is_cut_at_once_and_what_was_cut_off_line_later() {
    let server = Server::start();
    server.add_node(NODE);
    let mut files = chain(NODE, &[100, 200, 300, 400]);
    let to_come = files.split_off(1);
    let (client, hand) = sender(NODE, server.address, &files);
    let stop = CancellationToken::new();
    std::thread::scope(|scope| {
        let _stopper = stop.clone().drop_guard();
        let watching = scope.spawn(|| watch(&client.folder, &client.config, &client.shared(), &client.options, &mut NoProgress, &stop));
        until("first", || server.stored(NODE).len() == 1);
        for (number, made) in to_come.iter().enumerate() {
            hand.lock().unwrap().to_come.push(made.clone());
            // What a program does: a commit, which changes the WAL.
            touch(&client.folder.database().with_extension("db-wal"), number);
            let began = Instant::now();
            until("next", || server.stored(NODE).len() == number + 2);
            assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        }
        stop.cancel();
        watching.join().unwrap().unwrap();
    });
    files.extend(to_come);
    server.expect_stored(NODE, &files, "watch");
}

fn touch(path: &std::path::Path, number: usize) {
    fs::write(path, noise(number as u64, 64)).unwrap();
}

#[test]
fn r22_watch_cuts_while_nobody_answers() {
    let server = Server::start();
    let address = server.address;
    drop(server);
    let (client, hand) = sender(NODE, address, &[]);
    let stop = CancellationToken::new();
    std::thread::scope(|scope| {
        let _stopper = stop.clone().drop_guard();
        let watching = scope.spawn(|| watch(&client.folder, &client.config, &client.shared(), &client.options, &mut NoProgress, &stop));
        for (number, made) in chain(NODE, &[100, 200]).iter().enumerate() {
            hand.lock().unwrap().to_come.push(made.clone());
            touch(&client.folder.database().with_extension("db-wal"), number);
            until("cut", || hand.lock().unwrap().files.len() == number + 1);
        }
        stop.cancel();
        watching.join().unwrap().unwrap();
    });
}

#[test]
fn f12_a_node_that_does_not_know_what_it_sent_sends_it_again_and_it_lies_there_once() {
    let server = Server::start();
    server.add_node(NODE);
    let files = chain(NODE, &[100, 200]);
    let (client, _) = sender(NODE, server.address, &files);
    client.sync().unwrap();
    // The server too: neither merged position nor rows, only the files.
    let (again, hand) = sender(NODE, server.address, &files);
    again.sync().unwrap();
    server.expect_stored(NODE, &files, "twice");
    let known = hand.lock().unwrap().agreed[0].clone();
    assert_eq!(known.stored, FileNo(2));
    let _shared: &Arc<Mutex<Hand>> = &hand;
}
