//! Init: the extract is fetched over lines that break, checked, and put in place by one rename.

use super::support::{Client, Proxy, SERVER_ID, Server, byte_hash, name, noise, options, until};
use dockmaster::base::ids::*;
use dockmaster::client::folder::{ClientFolder, LockedFolder};
use dockmaster::client::init::{InitError, InitOptions, init};
use dockmaster::client::report::{ExchangeError, NoProgress};
use dockmaster::model::node::NodeState;
use dockmaster::session::message::{RefusalCode, kind};
use rusqlite::Connection;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Writes an extract as LOCAL does: a ready database, packed, and its table of contents last.
fn write_extract(outbox: &Path, node: &str, incarnation: u32, rows: u64) {
    let made = tempfile::tempdir().unwrap();
    let path = made.path().join("extract.db");
    let database = Connection::open(&path).unwrap();
    database.execute_batch(include_str!("../../../sql/sqlite/local_0001.sql")).unwrap();
    database.execute_batch("CREATE TABLE sale(id INTEGER PRIMARY KEY, note BLOB)").unwrap();
    let row = rusqlite::params![SERVER_ID.to_string(), "HQ", 1, node, incarnation, Option::<String>::None, 0, 500, "00", 3];
    let columns = "server_id, server_name, epoch, node, incarnation, install_id, applied_file, applied_unit, chain_hash, revision";
    database.execute(&format!("INSERT INTO dock_state(id, {columns}) VALUES (1,?,?,?,?,?,?,?,?,?,?)"), row).unwrap();
    for number in 0..rows {
        database.execute("INSERT INTO sale VALUES (?, ?)", rusqlite::params![number as i64, noise(number, 1_000)]).unwrap();
    }
    database.close().unwrap();
    let raw = fs::read(&path).unwrap();
    let packed = zstd::encode_all(&raw[..], 1).unwrap();
    let base = format!("extract-{incarnation:08}");
    fs::write(outbox.join(format!("{base}.db.zst")), &packed).unwrap();
    let toc = serde_json::json!({
        "server_id": SERVER_ID.to_string(), "server_name": "HQ", "epoch": 1, "node": node, "incarnation": incarnation, "unit": 500,
        "revision": 3, "bytes": packed.len(), "raw_bytes": raw.len(), "sha256": byte_hash(&packed).to_string(), "rows": rows, "tables": [],
    });
    fs::write(outbox.join(format!("{base}.toc")), toc.to_string()).unwrap();
}

fn init_options(server: impl ToString, node: &str) -> InitOptions {
    let ssh = dockmaster::transport::ssh_settings::SshSettings::default();
    InitOptions { server: server.to_string(), node: name(node), ssh, replace: false, renew: false, exchange: options() }
}

fn run(folder: &LockedFolder, options: &InitOptions) -> Result<dockmaster::client::init::InitReport, InitError> {
    init(folder, options, &mut NoProgress)
}

fn rows(path: &Path) -> i64 {
    Connection::open(path).unwrap().query_row("SELECT count(*) FROM sale", [], |row| row.get(0)).unwrap()
}

fn install_id(path: &Path) -> String {
    Connection::open(path).unwrap().query_row("SELECT install_id FROM dock_state", [], |row| row.get(0)).unwrap()
}

fn refused(outcome: Result<dockmaster::client::init::InitReport, InitError>) -> RefusalCode {
    match outcome {
        Err(InitError::Exchange(ExchangeError::Refused { refusal, .. })) => refusal.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a1_a_registered_node_is_started_and_gets_its_extract_when_it_is_ready() {
    let server = Server::start();
    server.set_node("SHOP-01", NodeState::Registered, 0);
    let (outbox, routed) = (server.outbox("SHOP-01"), server.routed.clone());
    *server.facts.on_start.lock().unwrap() = Some(Box::new(move |node, incarnation| {
        let (outbox, routed, node) = (outbox.clone(), routed.clone(), node.to_string());
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(2_000));
            write_extract(&outbox, &node, incarnation.0, 20);
            routed.send_modify(|rounds| *rounds += 1);
        });
    }));
    let home = tempfile::tempdir().unwrap();
    let folder = ClientFolder::of(home.path().join("pos.db")).lock().unwrap();
    let proxy = Proxy::to(server.address);
    let report = run(&folder, &init_options(proxy.address, "SHOP-01")).unwrap();
    assert_eq!((report.offer.incarnation, report.offer.unit, rows(folder.database())), (Incarnation(1), TxnId(500), 20));
    // Waiting for the extract went on longer than silence may last, within one session.
    assert_eq!(proxy.connections.load(Ordering::SeqCst), 1);
    assert_eq!(install_id(folder.database()), report.install_id.to_string());
    let config = folder.read_config().unwrap();
    assert_eq!((config.server_id, config.node), (Some(SERVER_ID), name("SHOP-01")));
    assert_eq!(fs::read_dir(folder.tmp()).unwrap().count(), 0);
    assert!(!folder.new_database().exists());
    // The one answer for all that may not come in holds for init as well.
    for node in ["NOBODY", "GONE"] {
        server.set_node("GONE", NodeState::Disabled, 1);
        let other = ClientFolder::of(home.path().join(node)).lock().unwrap();
        assert_eq!(refused(run(&other, &init_options(server.address, node))), RefusalCode::Node);
    }
}

#[test]
fn a6_an_extract_cut_at_any_byte_is_resumed() {
    let server = Server::start();
    server.add_node("SHOP-01");
    write_extract(&server.outbox("SHOP-01"), "SHOP-01", 1, 900);
    let bytes = fs::metadata(server.outbox("SHOP-01").join("extract-00000001.db.zst")).unwrap().len();
    assert!(bytes > 800_000, "{bytes}");
    let proxy = Proxy::to(server.address);
    for cut in (0..bytes as i64 + 1_000).step_by(80_021) {
        let home = tempfile::tempdir().unwrap();
        let folder = ClientFolder::of(home.path().join("pos.db")).lock().unwrap();
        proxy.cut_after.store(cut, Ordering::SeqCst);
        let mut options = init_options(proxy.address, "SHOP-01");
        options.exchange.attempts = 1;
        // The first command ends with the line; the second, another process perhaps, goes on.
        let broken = run(&folder, &options);
        let durable: u64 = fs::read_dir(folder.tmp()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(broken.is_ok() || !folder.database().exists(), "cut at {cut}");
        if broken.is_err() {
            options.exchange.attempts = 20;
            let report = run(&folder, &options).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
            assert_eq!(report.fetched, bytes - durable, "cut at {cut}: bytes that were there were fetched again");
        }
        assert_eq!(rows(folder.database()), 900, "cut at {cut}");
    }
}

#[test]
fn a6_a_byte_damaged_on_the_way_is_fetched_again_and_twice_is_an_error() {
    let server = Server::start();
    server.add_node("SHOP-01");
    write_extract(&server.outbox("SHOP-01"), "SHOP-01", 1, 300);
    let proxy = Proxy::to(server.address);
    let home = tempfile::tempdir().unwrap();
    let folder = ClientFolder::of(home.path().join("pos.db")).lock().unwrap();
    proxy.flip_at.store(100_000, Ordering::SeqCst);
    run(&folder, &init_options(proxy.address, "SHOP-01")).unwrap();
    assert_eq!((rows(folder.database()), fs::read_dir(folder.quarantine()).unwrap().count()), (300, 2), "the archive and its note");
    let folder = ClientFolder::of(home.path().join("other.db")).lock().unwrap();
    proxy.always.store(true, Ordering::SeqCst);
    proxy.flip_at.store(100_000, Ordering::SeqCst);
    assert!(matches!(run(&folder, &init_options(proxy.address, "SHOP-01")), Err(InitError::Damaged(Incarnation(1)))));
    assert!(!folder.database().exists());
}

#[test]
fn f26_f28_the_old_database_stays_until_the_swap() {
    let server = Server::start();
    server.add_node("SHOP-01");
    write_extract(&server.outbox("SHOP-01"), "SHOP-01", 1, 7);
    let home = tempfile::tempdir().unwrap();
    let folder = ClientFolder::of(home.path().join("pos.db")).lock().unwrap();
    let old = Connection::open(folder.database()).unwrap();
    old.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE sale(id INTEGER PRIMARY KEY, note); INSERT INTO sale VALUES (1, 'mine');")
        .unwrap();
    fs::write(folder.inbox().join("00000001.dx"), b"of the former extract").unwrap();
    let mut options = init_options(server.address, "SHOP-01");
    assert!(matches!(run(&folder, &options), Err(InitError::Exists(_))));
    options.replace = true;
    // A program has it open: nothing happens to it, and its inbox stays.
    let busy = run(&folder, &options).unwrap_err();
    assert!(busy.is_passing() && busy.to_string().contains("open in another program"), "{busy}");
    assert_eq!(old.query_row("SELECT note FROM sale", [], |row| row.get::<_, String>(0)).unwrap(), "mine");
    old.execute("INSERT INTO sale VALUES (2, 'in the WAL')", []).unwrap();
    assert!(folder.inbox().join("00000001.dx").exists());
    drop(old);
    let report = run(&folder, &options).unwrap();
    assert_eq!((report.fetched, rows(folder.database())), (0, 7), "the packed extract was here already");
    assert_eq!(rows(&report.replaced.unwrap()), 2);
    assert!(folder.inbox_files().unwrap().is_empty());
}

#[test]
fn a7_an_extract_in_use_is_not_given_out_again_but_renewed_on_request() {
    let server = Server::start();
    server.add_node("SHOP-01");
    write_extract(&server.outbox("SHOP-01"), "SHOP-01", 1, 3);
    let (outbox, routed) = (server.outbox("SHOP-01"), server.routed.clone());
    *server.facts.on_start.lock().unwrap() = Some(Box::new(move |node, incarnation| {
        write_extract(&outbox, node.as_str(), incarnation.0, 4);
        routed.send_modify(|rounds| *rounds += 1);
    }));
    // Some other copy has synchronised with it.
    let elsewhere = Client::new("SHOP-01", server.address);
    elsewhere.sync().unwrap();
    let home = tempfile::tempdir().unwrap();
    let folder = ClientFolder::of(home.path().join("pos.db")).lock().unwrap();
    let mut options = init_options(server.address, "SHOP-01");
    assert_eq!(refused(run(&folder, &options)), RefusalCode::Initialised);
    options.renew = true;
    // Cut in the middle: the second run does not ask for a third extract.
    let proxy = Proxy::to(server.address);
    proxy.cut_at_kind.store(u64::from(kind::FETCH_EXTRACT), Ordering::SeqCst);
    options.exchange.attempts = 1;
    options.server = proxy.address.to_string();
    run(&folder, &options).unwrap_err();
    options.server = server.address.to_string();
    options.exchange.attempts = 20;
    let report = run(&folder, &options).unwrap();
    assert_eq!((report.offer.incarnation, rows(folder.database())), (Incarnation(2), 4));
    // And the copy elsewhere has ended.
    let ended = elsewhere.sync().unwrap_err().to_string();
    assert!(ended.contains("extracted again elsewhere"), "{ended}");
}

#[test]
fn a_foreign_or_damaged_extract_is_not_put_in_place() {
    let server = Server::start();
    server.add_node("SHOP-01");
    server.add_node("SHOP-02");
    let outbox = server.outbox("SHOP-01");
    // The database inside is of another node than the table of contents says.
    write_extract(&outbox, "SHOP-02", 1, 3);
    let toc = fs::read_to_string(outbox.join("extract-00000001.toc")).unwrap();
    fs::write(outbox.join("extract-00000001.toc"), toc.replace("SHOP-02", "SHOP-01")).unwrap();
    let home = tempfile::tempdir().unwrap();
    let folder = ClientFolder::of(home.path().join("pos.db")).lock().unwrap();
    let error = run(&folder, &init_options(server.address, "SHOP-01")).unwrap_err();
    assert!(error.to_string().contains("dock_state.node is SHOP-02, expected SHOP-01"), "{error}");
    assert!(!folder.database().exists());
    // A claim of fewer bytes than there are stops the unpacking.
    write_extract(&outbox, "SHOP-01", 1, 3);
    let toc: serde_json::Value = serde_json::from_str(&fs::read_to_string(outbox.join("extract-00000001.toc")).unwrap()).unwrap();
    let mut small = toc.clone();
    small["raw_bytes"] = 100.into();
    fs::write(outbox.join("extract-00000001.toc"), small.to_string()).unwrap();
    assert!(matches!(run(&folder, &init_options(server.address, "SHOP-01")), Err(InitError::Unpack { .. })));
    assert!(!folder.database().exists());
    // The packed file was damaged on the server's disk: the server says so.
    fs::write(outbox.join("extract-00000001.toc"), toc.to_string()).unwrap();
    let packed = outbox.join("extract-00000001.db.zst");
    let mut bytes = fs::read(&packed).unwrap();
    bytes[50] ^= 1;
    fs::write(&packed, bytes).unwrap();
    let other = ClientFolder::of(home.path().join("other.db")).lock().unwrap();
    let mut options = init_options(server.address, "SHOP-01");
    options.exchange.attempts = 1;
    assert_eq!(refused(run(&other, &options)), RefusalCode::Internal);
    until("alert", || server.alerts().iter().any(|alert| alert.contains("extract 1 is damaged")));
}
