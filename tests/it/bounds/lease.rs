//! One Router at a time (LEASE, fault 29, X-15): eight that start at once, one that is paused, one that is paused while another
//! took over; and the work of a round shared among threads.

use super::{Yard, node};
use crate::crm::serve_again;
use crate::harness::{Site, literals};
use dockmaster::docking::error::DockingError;
use dockmaster::server::router::{Router, RouterError, RouterOptions};
use rusqlite::Connection;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn site() -> Site {
    let definition = "version = 1\n[object.item]\nvisible = 'everyone'\n";
    let site = Site::new(
        |path| Connection::open(path).unwrap().execute_batch("CREATE TABLE item(id INTEGER PRIMARY KEY, text TEXT)").unwrap(),
        definition,
    );
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNA"]);
    site
}

fn insert(site: &Site, text: &str) {
    let hq = Connection::open(site.path("hq.db")).unwrap();
    hq.busy_timeout(Duration::from_secs(10)).unwrap();
    hq.execute("INSERT INTO item(text) VALUES(?1)", [text]).unwrap();
}

fn signal(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

fn start(site: &Site) -> Child {
    Command::new(env!("CARGO_BIN_EXE_dockmaster"))
        .arg("serve")
        .current_dir(site.folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn ended(child: &mut Child) -> Option<i32> {
    child.try_wait().unwrap().map(|status| status.code().unwrap_or(-1))
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(60), "not within 60 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn routed(site: &Site) -> i64 {
    let ledger = Connection::open(site.path("docking/ledger.db")).unwrap();
    ledger.busy_timeout(Duration::from_secs(10)).unwrap();
    ledger.query_row("SELECT position FROM router", [], |row| row.get(0)).unwrap_or(0)
}

fn log_end(site: &Site) -> i64 {
    Connection::open(site.path("hq.db")).unwrap().query_row("SELECT max(id) FROM dock_txn_log", [], |row| row.get(0)).unwrap()
}

#[test]
fn fault29_of_eight_that_start_at_once_one_serves_and_goes_on_after_a_pause() {
    let site = site();
    let mut children: Vec<Child> = (0..8).map(|_| start(&site)).collect();
    until("seven have given way", || children.iter_mut().filter_map(ended).count() == 7);
    let codes: Vec<i32> = children.iter_mut().filter_map(ended).collect();
    assert_eq!(codes, [3; 7]);
    let mut holder = children.into_iter().find_map(|mut child| ended(&mut child).is_none().then_some(child)).unwrap();
    insert(&site, "one");
    until("routed", || routed(&site) == log_end(&site));
    signal(&holder, "-STOP");
    let second = site.dockmaster(&["run"]);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(3), "a paused process still holds its lock: {said}");
    assert!(said.contains(&format!("process {}", holder.id())), "{said}");
    insert(&site, "two");
    signal(&holder, "-CONT");
    until("it goes on where it was", || routed(&site) == log_end(&site));
    signal(&holder, "-INT");
    assert!(holder.wait().unwrap().success());
}

/// Where the lock does not hold (a network share without locks, a lock file that somebody deleted), the number does.
#[test]
fn fault29_x15_a_paused_router_that_another_followed_commits_nothing() {
    let mut site = site();
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    insert(&site, "one");
    site.remote_sync_ok(&["sync", "anna.db"]);
    let (mut old, _) = site.take_server();
    signal(&old, "-STOP");
    std::fs::remove_file(site.path("docking/lock")).unwrap();
    insert(&site, "two");
    serve_again(&mut site);
    site.remote_sync_ok(&["sync", "anna.db"]);
    insert(&site, "three");
    signal(&old, "-CONT");
    until("the old one ends", || ended(&mut old).is_some());
    assert_eq!(ended(&mut old), Some(2));
    insert(&site, "four");
    until("the new one goes on", || routed(&site) == log_end(&site));
    site.remote_sync_ok(&["sync", "anna.db"]);
    let all = "SELECT id, text FROM item";
    assert_eq!(literals(&site.path("anna.db"), all), literals(&site.path("hq.db"), all));
    site.stop();
}

#[test]
fn fault29_a_router_that_was_followed_deletes_and_commits_nothing() {
    let mut yard = Yard::new(&["ANNA"]);
    yard.write(0, "one");
    let mut newer = Router::open(Arc::clone(&yard.root), RouterOptions::default()).unwrap();
    yard.sql.execute_batch("INSERT INTO item(owner, text) VALUES(0, 'two')").unwrap();
    while yard.txnproc.step().unwrap().progress == dockmaster::base::step::Progress::Worked {}
    // What the newer one is about to name; the old one must leave it alone.
    let name = yard.root.outbox_file(&node("ANNA"), dockmaster::base::ids::FileNo(2));
    for _ in 0..2 {
        let error = yard.router.step().unwrap_err();
        assert!(matches!(&error, RouterError::Docking(DockingError::Fenced { .. })) && !error.is_transient(), "{error}");
        std::fs::write(&name, b"of the newer one").unwrap();
    }
    assert_eq!(std::fs::read(&name).unwrap(), b"of the newer one");
    std::fs::remove_file(&name).unwrap();
    assert_eq!(yard.rows("ANNA").len(), 1);
    while newer.step().unwrap() == dockmaster::base::step::Progress::Worked {}
    assert_eq!(yard.outbox("ANNA"), [1, 2]);
}
