//! Many of everything: files in one outbox (fault 37), registered nodes, connected nodes, and few file handles (fault 10).
//! What is bounded is checked, what is only fast is printed; the figures stand in `docs/operations.md`.

use super::{Yard, cycle, node};
use crate::harness::{Site, literals};
use crate::session::support::{Client, Server, until};
use dockmaster::base::clock::now_seconds;
use dockmaster::base::handles;
use dockmaster::base::ids::FileNo;
use dockmaster::client::daemon::watch;
use dockmaster::client::report::NoProgress;
use dockmaster::rules::retention::Retention;
use dockmaster::server::router::{Router, RouterOptions};
use rusqlite::Connection;
use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// 100,000 files wait. A start looks at none of them but the next; the purge takes them away in bounded steps.
#[test]
fn f37_100_000_files_in_one_outbox_cost_a_start_nothing() {
    let mut yard = Yard::new(&["ANNA"]);
    yard.write(0, "one");
    let ledger = Connection::open(yard.root.ledger_db()).unwrap();
    ledger
        .execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
             INSERT INTO outbox_file SELECT node, incarnation, n.i, last + n.i, last + n.i, content_hash, byte_hash, bytes, operations, created
             FROM outbox_file, n;
             UPDATE stream SET last_file = 100000, last_unit = (SELECT max(last) FROM outbox_file);",
        )
        .unwrap();
    let outbox = yard.root.outbox(&node("ANNA"));
    for file in 2..=100_000 {
        std::fs::hard_link(outbox.join(FileNo(1 + (file - 2) / 30_000 * 30_000).file_name()), outbox.join(FileNo(file).file_name()))
            .or_else(|_| std::fs::write(outbox.join(FileNo(file).file_name()), b"x"))
            .unwrap();
    }
    let began = Instant::now();
    let router = Router::open(Arc::clone(&yard.root), RouterOptions::default()).unwrap();
    println!("start with 100,000 files in one outbox: {:?}", began.elapsed());
    drop(router);
    // Everything but the last one goes.
    yard.applied("ANNA", 100_000, now_seconds());
    let mut purge = yard.purge(Retention { keep_files: 0, ..Retention::default() });
    let began = Instant::now();
    let deleted = cycle(&mut purge, now_seconds());
    println!("{deleted} files purged in {:?}", began.elapsed());
    assert_eq!(yard.outbox("ANNA"), [100_000]);
}

/// 500 nodes are connected at once, each gets a file, all acknowledge.
#[test]
fn fault25_500_connected_nodes_in_one_process_are_all_served() {
    const NODES: usize = 500;
    let handles = handles::raise_limit().unwrap_or(u64::MAX);
    if handles < 3 * NODES as u64 {
        eprintln!("SKIPPED: {handles} file handles are too few for 500 nodes and their server in one process");
        return;
    }
    let server = Server::start_with(|options| {
        options.sessions_per_address = NODES;
        options.timing.handshake = Duration::from_secs(60);
        options.timing.heartbeat = Duration::from_secs(10);
        options.timing.dead_after = Duration::from_secs(60);
    });
    let names: Vec<String> = (0..NODES).map(|number| format!("N{number}")).collect();
    names.iter().for_each(|name| server.add_node(name));
    let clients: Vec<Client> = names.iter().map(|name| Client::new(name, server.address)).collect();
    let stop = CancellationToken::new();
    let connected = || server.sessions().marks().unwrap().len();
    std::thread::scope(|scope| {
        let _stopper = stop.clone().drop_guard();
        let watching: Vec<_> = clients
            .iter()
            .map(|client| scope.spawn(|| watch(&client.folder, &client.config, &client.shared(), &client.options, &mut NoProgress, &stop)))
            .collect();
        let began = Instant::now();
        while connected() < NODES {
            assert!(began.elapsed() < Duration::from_secs(120), "{} connected", connected());
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("500 nodes connected in {:?}", began.elapsed());
        let began = Instant::now();
        for name in &names {
            server.route(name, name.as_bytes());
        }
        while names.iter().any(|name| server.marked(name) != (1, 1)) {
            assert!(began.elapsed() < Duration::from_secs(120), "not all have their file");
            std::thread::sleep(Duration::from_millis(50));
        }
        println!("a file each, acknowledged: {:?}", began.elapsed());
        stop.cancel();
        watching.into_iter().for_each(|thread| drop(thread.join().unwrap()));
    });
    for (client, name) in clients.iter().zip(&names) {
        assert_eq!(client.held(), [name.as_bytes()]);
    }
}

#[test]
fn fault25_one_address_cannot_take_every_seat() {
    let server = Server::start_with(|options| options.sessions_per_address = 3);
    server.add_node("SHOP-01");
    server.route("SHOP-01", b"one");
    let strangers: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    let mut refused = TcpStream::connect(server.address).unwrap();
    let mut said = Vec::new();
    refused.read_to_end(&mut said).unwrap();
    assert!(String::from_utf8_lossy(&said).contains("as many sessions come from this address as may"));
    drop(strangers);
    let client = Client::new("SHOP-01", server.address);
    until("the seats are free again", || client.sync().is_ok());
    assert_eq!(client.held(), [b"one"]);
}

/// With 64 file handles the service lets in few nodes at once, tells the others to try again, and routes on.
#[test]
fn f10_with_64_file_handles_the_service_keeps_running_and_refuses_what_is_too_much() {
    let definition = "version = 1\n[object.item]\nvisible = 'everyone'\n";
    let mut site = Site::new(
        |path| Connection::open(path).unwrap().execute_batch("CREATE TABLE item(id INTEGER PRIMARY KEY, text TEXT)").unwrap(),
        definition,
    );
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNA"]);
    let mut command = std::process::Command::new("bash");
    command.args(["-c", "ulimit -n 64; exec \"$0\" serve", env!("CARGO_BIN_EXE_dockmaster")]).current_dir(site.folder.path());
    let address = site.serve_as(command);
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    let strangers: Vec<Option<TcpStream>> = (0..100).map(|_| TcpStream::connect(&address).ok()).collect();
    let hq = Connection::open(site.path("hq.db")).unwrap();
    hq.execute_batch("INSERT INTO item(text) VALUES('written meanwhile')").unwrap();
    until("routed, whatever the strangers do", || literals(&site.path("docking/ledger.db"), "SELECT count(*) FROM outbox_file") == ["1"]);
    assert!(site.is_running());
    drop(strangers);
    until("nodes are let in again", || site.remote_sync(&["sync", "anna.db"]).status.success());
    assert_eq!(literals(&site.path("anna.db"), "SELECT text FROM item"), ["'written meanwhile'"]);
    site.stop();
}
