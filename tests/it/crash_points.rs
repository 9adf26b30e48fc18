//! Every named crash point once, with the real programs: the victim dies there by SIGKILL, whoever is needed starts again,
//! and every node ends where the oracle of plain SQL says (faults 1 and 2, C18, E5).
//!
//! A point that no scenario reaches fails here, because its victim ends in peace: so none is forgotten.

use crate::crm::{self, equal, in_step, local, routed, serve_again, server_sql};
use crate::harness::{Program, Site, literals};
use dockmaster::base::crash::CrashPoint;
use dockmaster::base::ids::{ContentHash, FileNo, InstallId, NodeName, TxnId, UnitNo};
use dockmaster::dx::header::{DxDirection, Header};
use dockmaster::dx::upload_writer::UploadWriter;
use dockmaster::model::event::TableHeading;
use dockmaster::model::upload::{RowChange, UploadHead, UploadUnit};
use dockmaster::model::value::Value;
use dockmaster::store::sqlite::ServerDatabase;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const ALL: [&str; 3] = ["ANNA", "BERT", "CORA"];

/// Who dies at a point.
enum Victim {
    /// A pass of the server's stages that makes an extract.
    Pass,
    /// A pass that finds triggers missing.
    Heal,
    /// A pass that keeps no file for longer than it is needed.
    Purge,
    /// The service, while a node synchronises.
    Service,
    /// A node that fetches its extract and replaces its database.
    Init,
    /// A node that synchronises.
    Sync,
    /// A pass that merges what a node has sent.
    Merge,
    /// A pass that finds no data store.
    Rebuild,
    /// An administrator who deploys.
    Deploy,
}

fn victim(point: CrashPoint) -> Victim {
    use CrashPoint::*;
    match point {
        CaptureRead | CaptureTail | TxnprocProcessed | TxnprocFile | TxnprocCommitted | TxnprocPurged | ExtractBegun | ExtractBuilt
        | ExtractPacked | ExtractDescribed | ExtractDone | RouterCollected | RouterWritten | RouterRenamed | RouterCommitted
        | RouterRound => Victim::Pass,
        CaptureHealed => Victim::Heal,
        PurgeOutbox | PurgeTxnproc => Victim::Purge,
        SessionAdmitted | SessionMarked | SessionTokenGiven => Victim::Service,
        InitEntered | InitFetched | InitUnpacked | InitAdopted | InitRetired | InitEmptied | InitConfigured | InitKept | InitReplaced => {
            Victim::Init
        }
        DiskOperation | ExchangeBegun | ExchangeStored | ExchangeWhole | ExchangeTokenKept | ExchangeRenamed | ExchangeAcknowledged
        | ApplyUnit | ApplyCommit | ApplyCommitted | ApplyRemoved => Victim::Sync,
        MergeBegin | MergeCommit | MergeCommitted | MergeRefused => Victim::Merge,
        RebuildFilled | RebuildDone => Victim::Rebuild,
        DeployInstalled | DeployFilled | DeployTail | DeployDone => Victim::Deploy,
    }
}

/// Three nodes in step; the log is long enough to be purged, and so are the outboxes.
fn in_peace() -> Site {
    let mut site = crm::running(&ALL);
    server_sql(
        &site,
        "WITH RECURSIVE n(v) AS (SELECT 1000 UNION ALL SELECT v + 1 FROM n WHERE v < 6100) INSERT INTO opportunity SELECT v, 9, NULL, 'nobody''s', v FROM n",
    );
    server_sql(&site, "UPDATE opportunity SET amount = amount + 1 WHERE position_id IS NULL");
    // Two files at least for everybody, so that the first may be purged.
    for turn in [-1, 0] {
        in_step(&site, &ALL);
        edit(&site, turn);
    }
    in_step(&site, &ALL);
    site.stop();
    site
}

/// Rows change, appear, vanish and move between nodes.
fn edit(site: &Site, turn: i64) {
    let (id, account) = (turn.rem_euclid(60) + 1, turn.rem_euclid(30) + 1);
    server_sql(
        site,
        &format!(
            "BEGIN; UPDATE opportunity SET position_id = 4 + ({turn} + id) % 3, name = 'turn {turn}' WHERE id % 7 = abs({turn}) % 7 AND id < 100;
             INSERT OR REPLACE INTO opportunity_line VALUES({turn} % 500 + 500, {id}, 1, {turn}); COMMIT;
             BEGIN; DELETE FROM account_team WHERE account_id = {account} AND position_id = 4;
             INSERT OR IGNORE INTO account_team VALUES({account}, 6); UPDATE product SET name = 'turn {turn}' WHERE id = 1; COMMIT"
        ),
    );
}

fn armed(site: &Site, program: Program, arguments: &[&str], at: &str) -> Command {
    let mut command = site.command(program, arguments);
    command.env("DOCKMASTER_CRASH", at);
    command
}

/// Runs a command that is to die at a point.
fn dies(site: &Site, program: Program, arguments: &[&str], at: &str) {
    let output = armed(site, program, arguments, at).output().unwrap();
    assert_eq!(output.status.signal(), Some(9), "{at} is not reached: {}", String::from_utf8_lossy(&output.stderr));
}

fn crash_and_recover(peace: &Site, point: CrashPoint) {
    let at = point.name();
    if let Victim::Deploy = victim(point) {
        if point == CrashPoint::DeployInstalled {
            redefine_beside_the_service(peace, at);
        }
        return deploy_first(at);
    }
    let mut site = peace.copied();
    edit(&site, 1);
    match victim(point) {
        Victim::Pass => {
            dies(&site, Program::Dockmaster, &["extract", "CORA", "--yes"], at);
            edit(&site, 2);
            let address = serve_again(&mut site);
            site.remote_sync_ok(&["init", &address, "--token", &site.token("CORA"), "--replace", "cora.db"]);
        }
        Victim::Merge => {
            upload(&site);
            dies(&site, Program::Dockmaster, &["run"], at);
            serve_again(&mut site);
            merged_once(&site, at);
        }
        Victim::Rebuild => {
            for suffix in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(site.path(&format!("docking/cds.db{suffix}")));
            }
            dies(&site, Program::Dockmaster, &["run"], at);
            edit(&site, 2);
            serve_again(&mut site);
        }
        Victim::Heal => {
            let triggers = literals(&site.path("hq.db"), "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'contact'");
            let drop: String = triggers.iter().map(|name| format!("DROP TRIGGER {};", name.trim_matches('\''))).collect();
            server_sql(&site, &format!("{drop} UPDATE contact SET name = 'nobody captured it'"));
            dies(&site, Program::Dockmaster, &["run"], at);
            server_sql(&site, "DELETE FROM contact WHERE id % 3 = 0");
            serve_again(&mut site);
        }
        Victim::Purge => {
            let path = site.path("dockmaster.toml");
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, format!("{text}keep_files = 0\nkeep_days = 0\n")).unwrap();
            dies(&site, Program::Dockmaster, &["run"], at);
            serve_again(&mut site);
        }
        Victim::Service => {
            let command = armed(&site, Program::Dockmaster, &["serve"], at);
            crm::serve_again_as(&mut site, command);
            // The node finds nobody any more, or is done before the server's death.
            let synced = site.remote_sync(&["sync", "anna.db"]);
            assert!(matches!(synced.status.code(), Some(0 | 3)), "{}", String::from_utf8_lossy(&synced.stderr));
            assert_eq!(site.ended().signal(), Some(9), "{at} is not reached");
            serve_again(&mut site);
        }
        Victim::Init => {
            let address = serve_again(&mut site);
            let token = site.token("CORA");
            let init = ["init", &address, "--token", &token, "--replace", "--renew", "cora.db"];
            dies(&site, Program::RemoteSync, &init, at);
            edit(&site, 2);
            site.remote_sync_ok(&init);
        }
        Victim::Sync => {
            serve_again(&mut site);
            dies(&site, Program::RemoteSync, &["sync", "anna.db"], at);
            edit(&site, 2);
        }
        Victim::Deploy => unreachable!("done above"),
    }
    in_step(&site, &ALL);
    site.stop();
    assert_eq!(site.dockmaster(&["status"]).status.code(), Some(0), "{at}: nobody has to do anything");
}

/// Puts a file of ANNA into her inbox: a unit that adds to an amount, and one that hands a row to somebody else, which is refused.
fn upload(site: &Site) {
    let server = ServerDatabase::open(site.path("hq.db")).unwrap();
    let (identity, applied) = (server.identity().unwrap(), server.log_end().unwrap());
    let anna: NodeName = "ANNA".parse().unwrap();
    let node = server.node(&anna).unwrap().unwrap();
    let columns = ["id", "account_id", "position_id", "name", "amount"].map(str::to_owned).to_vec();
    let heading = Arc::new(TableHeading { name: "opportunity".into(), columns, key: vec![0] });
    let open = rusqlite::Connection::open(site.path("hq.db")).unwrap();
    let own: i64 = open.query_row("SELECT min(id) FROM opportunity WHERE position_id = 4", [], |row| row.get(0)).unwrap();
    let insert = |id: i64, position: i64| {
        let row = vec![Value::Integer(id), Value::Integer(1), Value::Integer(position), "merged".into(), Value::Integer(0)];
        (Arc::clone(&heading), RowChange::Insert { row })
    };
    let unit = |number: u64, change| {
        let head = UploadHead {
            number: UnitNo(number),
            applied,
            revision: identity.revision,
            cut_at_micros: 1,
            label: None,
            hidden: vec![],
            changes: 1,
        };
        UploadUnit { head, changes: vec![change] }
    };
    // A key that is taken: executed twice it would be there twice.
    let units = [unit(1, insert(own, 4)), unit(2, insert(900_000, 6))];
    let header = Header {
        direction: DxDirection::Upload,
        server_id: identity.server_id,
        epoch: identity.epoch,
        node: Some(anna),
        incarnation: node.incarnation,
        file_no: FileNo(1),
        first: TxnId(1),
        last: TxnId(2),
        revision: identity.revision,
        previous: ContentHash::default(),
        install_id: InstallId([9; 16]),
        applied_unit: applied,
    };
    let (bytes, _) = UploadWriter::assemble(&header, &units, 3).unwrap();
    let inbox = site.path("docking/ANNA/inbox");
    std::fs::create_dir_all(&inbox).unwrap();
    std::fs::write(inbox.join("00000001.dx"), bytes).unwrap();
}

/// Waits until the service has merged the file, and demands that each unit was executed once and is confirmed once.
fn merged_once(site: &Site, at: &str) {
    let open = rusqlite::Connection::open(site.path("hq.db")).unwrap();
    let one = |sql: &str| -> String { open.query_row(sql, [], |row| row.get(0)).unwrap() };
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while one("SELECT ifnull(group_concat(status, ' '), '') FROM (SELECT status FROM dock_unit ORDER BY unit)") != "finished error" {
        assert!(
            std::time::Instant::now() < until,
            "{at}: {}",
            one("SELECT group_concat(status || ifnull(reason, ''), ' ') FROM dock_unit")
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(one("SELECT count(*) || '' FROM opportunity WHERE name = 'merged'"), "1", "{at}");
    let confirms = "SELECT count(*) || '' FROM dock_txn_log WHERE tbl = 0 AND c1 LIKE '{\"confirm\"%'";
    assert_eq!(one(confirms), "2", "{at}");
    // Nobody has to do anything at the end.
    site.dockmaster_ok(&["messages", "ignore", "ANNA:2", "--reason", "of a test", "--by", "test"]);
}

/// The administrator dies while nodes are active and the service runs: what stands in the log comes to pass all the same.
fn redefine_beside_the_service(peace: &Site, at: &str) {
    let mut site = peace.copied();
    serve_again(&mut site);
    let path = site.path("dockmaster.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace(crm::CONTACTS[0], crm::CONTACTS[1])).unwrap();
    dies(&site, Program::Dockmaster, &["deploy", "--yes"], at);
    edit(&site, 1);
    site.dockmaster_ok(&["deploy", "--yes"]);
    routed(&site);
    for (node, employee) in crm::NODES {
        site.remote_sync_ok(&["sync", &local(node)]);
        let open = |name: &str| rusqlite::Connection::open(site.path(name)).unwrap();
        let wanted = crm::view_with(&open("hq.db"), employee, true);
        assert_eq!(crm::compared(&wanted, &crm::held(&open(&local(node)))), "", "{node}");
    }
    site.stop();
}

/// The administrator dies while he deploys for the first time.
fn deploy_first(at: &str) {
    let mut site = Site::new(crm::database, crm::DEFINITION);
    edit(&site, 1);
    dies(&site, Program::Dockmaster, &["deploy", "--yes"], at);
    edit(&site, 2);
    site.dockmaster_ok(&["deploy", "--yes"]);
    for (node, employee) in crm::NODES {
        site.dockmaster_ok(&["node", "add", node, "--set", &format!("employee={employee}")]);
    }
    let address = site.serve();
    for node in ALL {
        site.remote_sync_ok(&["init", &address, "--token", &site.token(node), &local(node)]);
    }
    edit(&site, 3);
    in_step(&site, &ALL);
    site.stop();
}

#[test]
fn f1_c18_e5_each_program_killed_once_at_every_named_point() {
    let peace = in_peace();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                while let Some(point) = CrashPoint::ALL.get(next.fetch_add(1, Ordering::AcqRel)) {
                    if std::panic::catch_unwind(|| crash_and_recover(&peace, *point)).is_err() {
                        failed.lock().unwrap().push(point.name());
                    }
                }
            });
        }
    });
    assert!(failed.lock().unwrap().is_empty(), "{:?}", failed.lock().unwrap());
}

/// Dies before the first, the second, the third ... operation on a file, on what the deaths before have left, until it
/// lives to its end. Returns how often it died.
fn sweep(site: &Site, program: Program, arguments: &[&str], mut before: impl FnMut(&Site, i64)) -> u64 {
    for operation in 1.. {
        before(site, operation as i64);
        let output = armed(site, program, arguments, &format!("{}:{operation}", CrashPoint::DiskOperation.name())).output().unwrap();
        match output.status.signal() {
            Some(9) => {}
            _ => {
                assert!(output.status.success(), "operation {operation}: {}", String::from_utf8_lossy(&output.stderr));
                return operation - 1;
            }
        }
    }
    unreachable!("it ends at last")
}

#[test]
fn f2_c18_the_stages_killed_before_every_operation_on_a_file_each_time_on_what_the_last_death_left() {
    let mut site = in_peace();
    let died = sweep(&site, Program::Dockmaster, &["run"], edit);
    assert!(died > 20, "{died}");
    serve_again(&mut site);
    in_step(&site, &ALL);
    site.stop();
}

#[test]
fn f2_e5_a_node_killed_before_every_operation_on_a_file_each_time_on_what_the_last_death_left() {
    let mut site = in_peace();
    let address = serve_again(&mut site);
    let died = sweep(&site, Program::RemoteSync, &["sync", "anna.db"], edit);
    assert!(died > 8, "{died}");
    let token = site.token("CORA");
    let init = ["init", &address, "--token", &token, "--replace", "--renew", "cora.db"];
    let died = sweep(&site, Program::RemoteSync, &init, |_, _| {});
    assert!(died > 20, "{died}");
    in_step(&site, &["ANNA", "CORA"]);
    equal(&site, &["ANNA", "CORA"]);
    site.stop();
}

#[test]
fn f2_dying_again_and_again_at_random_points_while_it_recovers_from_the_death_before() {
    let mut site = in_peace();
    let seed = crate::harness::seed();
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let points = |wanted: fn(&Victim) -> bool| CrashPoint::ALL.iter().filter(|point| wanted(&victim(**point))).collect::<Vec<_>>();
    let of_stages = points(|victim| matches!(victim, Victim::Pass));
    let of_nodes = points(|victim| matches!(victim, Victim::Sync));
    let mut deaths = 0;
    // Some points are not reached by what is left to do; then the program ends in peace.
    let mut may_die = |site: &Site, program, arguments: &[&str], points: &[&CrashPoint]| {
        let at = format!("{}:{}", random.choice(points).unwrap().name(), random.u32(1..=2));
        let output = armed(site, program, arguments, &at).output().unwrap();
        let died = output.status.signal() == Some(9);
        assert!(died || output.status.success(), "{at}: {}", String::from_utf8_lossy(&output.stderr));
        deaths += u32::from(died);
    };
    for turn in 0..6 {
        for part in 0..4 {
            edit(&site, turn * 10 + part);
            may_die(&site, Program::Dockmaster, &["run"], &of_stages);
        }
        serve_again(&mut site);
        for part in 4..8 {
            may_die(&site, Program::RemoteSync, &["sync", "anna.db"], &of_nodes);
            edit(&site, turn * 10 + part);
        }
        in_step(&site, &ALL);
        site.stop();
    }
    assert!(deaths > 15, "{deaths}");
}
