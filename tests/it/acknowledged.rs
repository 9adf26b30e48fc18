//! What an acknowledgement means: the service dies before the first, the second, the third .. operation on a file while a node sends, each
//! time on what the death before left. Whatever the node was told is stored is there (MI-17), and at the end every row is there once.

use crate::crm::{self, in_step, local, serve_again, sql_on};
use crate::harness::{Program, Site, quiet_address};
use rusqlite::Connection;
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// The first key of the rows that are sent.
const FIRST: u64 = 700_000;

fn number(site: &Site, database: &str, sql: &str) -> i64 {
    let open = Connection::open(site.path(database)).unwrap();
    open.busy_timeout(Duration::from_secs(20)).unwrap();
    open.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// Files that the node holds for stored and that are neither in its inbox nor registered for the merge.
fn lost(site: &Site) -> Vec<i64> {
    let node = Connection::open(site.path(&local("ANNA"))).unwrap();
    let mut stored = node.prepare("SELECT file_no FROM dock_upload WHERE stored = 1").unwrap();
    let stored: Vec<i64> = stored.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
    let is_there = |file: &i64| {
        let registered =
            number(site, "hq.db", &format!("SELECT EXISTS (SELECT 1 FROM dock_unit WHERE node = 'ANNA' AND file_no = {file})"));
        registered == 1 || site.path(&format!("docking/ANNA/inbox/{file:08}.dx")).exists()
    };
    stored.into_iter().filter(|file| !is_there(file)).collect()
}

#[test]
fn f1_mi17_what_the_service_acknowledged_is_there_wherever_it_dies_while_a_node_sends() {
    let mut site = crm::running(&["ANNA"]);
    site.stop();
    let address = quiet_address();
    let path = site.path("dockmaster.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("127.0.0.1:0", &address)).unwrap();
    crm::point_all(&site, &address);
    let (mut operation, mut sent, mut died) = (1, 0, 0);
    loop {
        sent += 1;
        let id = FIRST + sent;
        sql_on(&site.path(&local("ANNA")), &format!("INSERT INTO opportunity VALUES ({id}, 1, 4, 'sent', {sent})"));
        let mut service = site.command(Program::Dockmaster, &["serve"]);
        service.env("DOCKMASTER_CRASH", format!("disk.operation:{operation}")).stdout(Stdio::null()).stderr(Stdio::null());
        let mut service = service.spawn().unwrap();
        let merged = format!("SELECT count(*) FROM opportunity WHERE id = {id}");
        let until = Instant::now() + Duration::from_secs(20);
        let mut is_synced = false;
        let ended = loop {
            if let Some(ended) = service.try_wait().unwrap() {
                break Some(ended);
            }
            if !is_synced && TcpStream::connect(&address).is_ok() {
                let synced = site.remote_sync(&["sync", &local("ANNA")]);
                assert!(matches!(synced.status.code(), Some(0 | 3)), "{}", String::from_utf8_lossy(&synced.stderr));
                is_synced = synced.status.code() == Some(0);
            }
            if is_synced && number(&site, "hq.db", &merged) == 1 {
                break None;
            }
            assert!(Instant::now() < until, "operation {operation}: neither dead nor merged");
            std::thread::sleep(Duration::from_millis(5));
        };
        if ended.is_none() {
            service.kill().unwrap();
            service.wait().unwrap();
        }
        assert_eq!(lost(&site), Vec::<i64>::new(), "operation {operation}: acknowledged and not there");
        match ended {
            Some(ended) => assert_eq!(ended.signal(), Some(9), "operation {operation}: it ended by itself"),
            None => break,
        }
        died += 1;
        // Every one of the first, then wider steps.
        operation += 1 + operation / 8;
    }
    assert!(died > 12, "{died}");
    serve_again(&mut site);
    site.remote_sync_ok(&["sync", &local("ANNA"), "--wait", "20"]);
    assert_eq!(number(&site, "hq.db", "SELECT count(*) FROM opportunity WHERE name = 'sent'"), sent.cast_signed());
    assert_eq!(number(&site, "hq.db", "SELECT count(*) FROM dock_unit WHERE status <> 'finished'"), 0);
    in_step(&site, &["ANNA"]);
    site.stop();
}
