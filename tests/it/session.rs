//! Sessions over real sockets with real files: what is exchanged, acknowledged, refused, and what happens when lines and files break.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod faults;
mod init;
mod machine;
mod refusals;
pub(crate) mod support;
mod upload_kit;
mod uploads;
mod whole;

use dockmaster::base::ids::*;
use dockmaster::client::daemon::watch;
use dockmaster::client::report::{ExchangeError, NoProgress};
use dockmaster::model::node::NodeState;
use dockmaster::session::message::{RefusalCode, kind};
use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::{Client, Proxy, Server, name, noise, timing, until};
use tokio_util::sync::CancellationToken;

fn refused(client: &Client) -> (RefusalCode, String) {
    match client.sync() {
        Err(ExchangeError::Refused { refusal, .. }) => (refusal.code, refusal.text),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn sr12_sr14_a_thousand_small_files_are_one_request() {
    // A loaded disk may take its time for a group of flushes.
    let server = Server::start_with(|options| options.timing.dead_after = Duration::from_secs(30));
    server.add_node("SHOP-01");
    let files: Vec<Vec<u8>> = (0..1_000u64).map(|number| noise(number, 100 + (number as usize * 37) % 900)).collect();
    for file in &files {
        server.route("SHOP-01", file);
    }
    let proxy = Proxy::to(server.address);
    let mut client = Client::new("SHOP-01", proxy.address);
    client.options.timing.dead_after = Duration::from_secs(30);
    let report = client.sync().unwrap();
    assert_eq!((report.files, report.received, report.applied.file, report.sessions), (1_000, FileNo(1_000), FileNo(1_000), 1));
    assert_eq!(client.held(), files);
    assert_eq!(proxy.count(kind::FETCH), 1);
    // Hello, Fetch, Bye; acknowledgements at most one for each group of files.
    assert!(proxy.requests() <= 60, "{:?}", proxy.sent.lock().unwrap());
    assert_eq!(server.marked("SHOP-01"), (1_000, 1_000));
    let history = server.sessions().sessions(Some(&name("SHOP-01")), 10).unwrap();
    assert_eq!((history.len(), history[0].outcome.as_str(), history[0].files_sent), (1, "done", 1_000));
}

#[test]
fn sr19_received_without_applying_is_acknowledged_as_such_and_applied_later() {
    let server = Server::start();
    server.add_node("SHOP-01");
    server.route("SHOP-01", b"one");
    server.route("SHOP-01", b"two");
    let mut client = Client::new("SHOP-01", server.address);
    client.options.apply = false;
    let report = client.sync().unwrap();
    assert_eq!((report.received, report.applied.file), (FileNo(2), FileNo(0)));
    assert_eq!(server.marked("SHOP-01"), (2, 0));
    client.options.apply = true;
    let report = client.sync().unwrap();
    assert_eq!((report.files, report.applied.file), (0, FileNo(2)));
    assert_eq!(server.marked("SHOP-01"), (2, 2));
}

#[test]
fn sr11_t18_unknown_disabled_and_badly_spelt_nodes_get_one_answer_in_one_time() {
    let server = Server::start();
    server.set_node("GONE", NodeState::Disabled, 1);
    let mut answers = Vec::new();
    for node in ["NOBODY", "GONE"] {
        let began = Instant::now();
        answers.push(refused(&Client::new(node, server.address)));
        assert!(began.elapsed() >= timing().refusal_pause, "{node} was answered sooner");
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0].0, RefusalCode::Node);
    assert!(!answers[0].1.contains("GONE") && server.outbox("NOBODY").parent().is_some_and(|path| !path.exists()));
    // The history tells what the wire does not.
    let history = server.sessions().sessions(Some(&name("GONE")), 1).unwrap();
    assert!(history[0].detail.contains("is disabled"), "{history:?}");
}

#[test]
fn sr11_a_node_disabled_while_connected_is_cut_off() {
    let server = Server::start();
    server.add_node("SHOP-01");
    let client = Client::new("SHOP-01", server.address);
    let stop = CancellationToken::new();
    let outcome = std::thread::scope(|scope| {
        // A check that fails must end the watch too, or the scope waits for ever.
        let _stopper = stop.clone().drop_guard();
        let watching = scope.spawn(|| watch(&client.folder, &client.config, &client.shared(), &client.options, &mut NoProgress, &stop));
        until("connected", || server.marked("SHOP-01") == (0, 0) && server.sessions().marks().unwrap().len() == 1);
        server.set_node("SHOP-01", NodeState::Disabled, 1);
        watching.join().unwrap()
    });
    assert!(matches!(outcome, Err(ExchangeError::Refused { refusal, .. }) if refusal.code == RefusalCode::Node));
}

#[test]
fn wrong_server_and_wrong_epoch_exchange_nothing() {
    let server = Server::start();
    server.add_node("SHOP-01");
    server.route("SHOP-01", b"one");
    let mut client = Client::new("SHOP-01", server.address);
    client.change(|position| position.server_id = ServerId([7; 16]));
    client.config.server_id = None;
    let (code, text) = refused(&client);
    assert_eq!(code, RefusalCode::WrongServer);
    assert!(text.contains("HQ"), "{text}");
    client.change(|position| (position.server_id, position.epoch) = (support::SERVER_ID, Epoch(2)));
    let (code, text) = refused(&client);
    assert_eq!(code, RefusalCode::Epoch);
    assert!(text.contains("epoch 1") && text.contains("epoch 2"), "{text}");
    assert!(client.folder.inbox_files().unwrap().is_empty());
    assert_eq!(server.sessions().marks().unwrap(), vec![]);
    // Configuration and database that differ are noticed before anybody is called.
    client.config.server_id = Some(ServerId([8; 16]));
    assert!(matches!(client.sync(), Err(ExchangeError::Folder(_))));
    client.config.node = name("SHOP-02");
    assert!(matches!(client.sync(), Err(ExchangeError::WrongNode { .. })));
}

#[test]
fn a7_f6_forks_and_nodes_that_are_ahead_are_refused_with_an_alert() {
    let server = Server::start();
    server.add_node("SHOP-01");
    server.route("SHOP-01", b"one");
    let client = Client::new("SHOP-01", server.address);
    client.sync().unwrap();
    let good = client.keeper.lock().unwrap().position.clone();

    client.change(|position| position.applied.hash = ContentHash([9; 32]));
    assert_eq!(refused(&client).0, RefusalCode::Fork);
    client.change(|position| position.applied.file = FileNo(5));
    assert_eq!(refused(&client).0, RefusalCode::Ahead);
    client.change(|position| (position.applied, position.install_id) = (good.applied, InstallId([2; 16])));
    assert_eq!(refused(&client).0, RefusalCode::Fork);
    client.change(|position| (position.install_id, position.incarnation) = (good.install_id, Incarnation(2)));
    let (code, text) = refused(&client);
    assert_eq!(code, RefusalCode::Incarnation);
    assert!(text.contains("extracted again elsewhere"), "{text}");
    let alerts = server.alerts().join("; ");
    assert!(alerts.contains("two histories") && alerts.contains("two copies") && alerts.contains("has applied file 00000005"), "{alerts}");
    // None of it moved the mark.
    assert_eq!(server.marked("SHOP-01"), (1, 1));
    client.change(|position| *position = good.clone());
    client.sync().unwrap();
}

#[test]
fn f6_a_fork_acknowledged_within_a_session_ends_it() {
    let server = Server::start();
    server.add_node("SHOP-01");
    server.route("SHOP-01", b"one");
    // The ledger knows another content than the file has: as if the node had applied another history.
    server.facts.ledger.lock().unwrap().values_mut().for_each(|files| files[0].content_hash = ContentHash([5; 32]));
    let client = Client::new("SHOP-01", server.address);
    let _outcome = client.sync();
    until("alert", || server.alerts().iter().any(|alert| alert.contains("fork")));
    assert_eq!(server.marked("SHOP-01").1, 0);
    assert_eq!(refused(&client).0, RefusalCode::Fork);
}

#[test]
fn f12_a_restored_client_is_served_again_and_noticed() {
    let server = Server::start();
    server.add_node("SHOP-01");
    for file in [b"one", b"two"] {
        server.route("SHOP-01", file);
    }
    let client = Client::new("SHOP-01", server.address);
    client.sync().unwrap();
    client.change(|position| position.applied = Default::default());
    let report = client.sync().unwrap();
    assert_eq!((report.files, report.applied.file), (2, FileNo(2)));
    assert!(server.alerts()[0].contains("restored from an older copy"), "{:?}", server.alerts());
}

#[test]
fn watch_gets_a_file_as_soon_as_it_is_routed_and_stops_in_peace() {
    // Neither the poll nor a heartbeat may be what finds the file.
    let server = Server::start_with(|options| options.timing.recheck = Duration::from_secs(60));
    server.add_node("SHOP-01");
    server.route("SHOP-01", b"before");
    let client = Client::new("SHOP-01", server.address);
    let stop = CancellationToken::new();
    let report = std::thread::scope(|scope| {
        // A check that fails must end the watch too, or the scope waits for ever.
        let _stopper = stop.clone().drop_guard();
        let watching = scope.spawn(|| watch(&client.folder, &client.config, &client.shared(), &client.options, &mut NoProgress, &stop));
        until("first file", || client.held().len() == 1);
        for number in 0..5u64 {
            server.route("SHOP-01", &noise(number, 1_000));
            let took = until("next file", || client.held().len() as u64 == number + 2);
            assert!(took < Duration::from_secs(2), "{took:?}");
        }
        until("acknowledged", || server.marked("SHOP-01") == (6, 6));
        stop.cancel();
        watching.join().unwrap().unwrap()
    });
    assert_eq!((report.sessions, report.files), (1, 6));
    until("history", || server.sessions().sessions(None, 1).unwrap()[0].outcome == "done");
}

#[test]
fn fault30_a_second_session_is_refused_while_the_first_is_alive_and_wins_when_it_is_dead() {
    let server = Server::start_with(|options| options.timing.dead_after = Duration::from_secs(60));
    server.add_node("SHOP-01");
    let proxy = Proxy::to(server.address);
    let first = Client::new("SHOP-01", proxy.address);
    let mut second = Client::new("SHOP-01", server.address);
    second.options.attempts = 1;
    let stop = CancellationToken::new();
    std::thread::scope(|scope| {
        // A check that fails must end the watch too, or the scope waits for ever.
        let _stopper = stop.clone().drop_guard();
        let watching = scope.spawn(|| watch(&first.folder, &first.config, &first.shared(), &first.options, &mut NoProgress, &stop));
        until("first is in", || server.sessions().marks().unwrap().len() == 1);
        for _ in 0..4 {
            // Alive means answering heartbeats, however long nothing is routed.
            std::thread::sleep(timing().heartbeat);
            let (code, text) = refused(&second);
            assert_eq!(code, RefusalCode::Busy);
            assert!(text.contains("already synchronising"), "{text}");
        }
        proxy.black_hole.store(true, Ordering::SeqCst);
        until("the dead one gives way", || second.sync().is_ok());
        stop.cancel();
        let _outcome = watching.join().unwrap();
    });
    until("history", || server.sessions().sessions(None, 100).unwrap().iter().any(|session| session.detail.contains("newer session")));
}

#[test]
fn a_server_that_stops_says_so_and_waits_for_its_sessions() {
    let server = Server::start();
    server.add_node("SHOP-01");
    let client = Client::new("SHOP-01", server.address);
    let stop = CancellationToken::new();
    std::thread::scope(|scope| {
        // A check that fails must end the watch too, or the scope waits for ever.
        let _stopper = stop.clone().drop_guard();
        let watching = scope.spawn(|| watch(&client.folder, &client.config, &client.shared(), &client.options, &mut NoProgress, &stop));
        until("connected", || server.sessions().marks().unwrap().len() == 1);
        server.shutdown.cancel();
        until("stopped", || server.stopped.load(Ordering::SeqCst));
        // The watch goes on trying; a server that is away is passing trouble.
        std::thread::sleep(Duration::from_millis(100));
        assert!(!watching.is_finished());
        stop.cancel();
        watching.join().unwrap().unwrap();
    });
    let last = &server.sessions().sessions(None, 1).unwrap()[0];
    assert_eq!((last.outcome.as_str(), last.ended.is_some()), ("refused", true), "{last:?}");
    assert!(last.detail.contains("Stopping"), "{last:?}");
}

#[test]
fn sessions_beyond_the_limit_are_told_so() {
    let server = Server::start_with(|options| options.sessions_max = 1);
    server.add_node("SHOP-01");
    let _idle = std::net::TcpStream::connect(server.address).unwrap();
    let mut client = Client::new("SHOP-01", server.address);
    client.options.attempts = 1;
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(refused(&client).0, RefusalCode::Full);
    // The silent one loses its place at the end of the handshake time.
    client.options.attempts = 100;
    client.sync().unwrap();
    assert!(fs::metadata(client.home.path()).is_ok());
}
