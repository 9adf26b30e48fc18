//! Purge by what is applied (R44, X-10, fault 39), and nodes that are away (fault 38), on real stages with an injected clock.

use super::{Yard, cycle, node, started};
use crate::harness::Site;
use dockmaster::base::clock::now_seconds;
use dockmaster::base::ids::FileNo;
use dockmaster::docking::sessions::SessionsDb;
use dockmaster::model::node::NodeState;
use dockmaster::rules::retention::{DAY_SECONDS, Retention};
use dockmaster::server::nodes;
use rusqlite::Connection;

#[test]
fn r44_x10_s6_a_file_goes_when_applied_and_past_retention_and_a_txnproc_file_when_nobody_needs_it() {
    crate::harness::plant_defect();
    let mut yard = Yard::new(&["ANNA", "BERT", "CORA"]);
    for _ in 0..6 {
        yard.write(0, "for all");
    }
    // The first txnproc file started the nodes.
    assert_eq!((yard.outbox("ANNA"), yard.txnproc_files()), ((1..=6).collect(), (1..=7).collect::<Vec<_>>()));
    let now = now_seconds();
    yard.applied("ANNA", 6, now);
    yard.applied("BERT", 3, now);
    yard.applied("CORA", 6, now);
    let retention = Retention { keep_files: 2, ..Retention::default() };
    let mut purge = yard.purge(retention);
    // Bert waits for files 4 to 6, made of the txnproc files 5 to 7; txnproc goes by retention too, so it is long here.
    let patient = Retention { keep_files: 1_000, ..retention };
    let mut patient = yard.purge(patient);
    cycle(&mut patient, now);
    assert_eq!((yard.outbox("ANNA"), yard.txnproc_files()), ((1..=6).collect(), vec![5, 6, 7]));
    cycle(&mut purge, now);
    assert_eq!((yard.outbox("ANNA"), yard.outbox("BERT")), (vec![5, 6], vec![2, 3, 4, 5, 6]));
    assert_eq!(yard.txnproc_files(), [6, 7], "past retention, so nobody holds it back");
    yard.applied("BERT", 6, now);
    cycle(&mut purge, now);
    assert_eq!((yard.outbox("BERT"), yard.txnproc_files()), (vec![5, 6], vec![7]));
    // By age all go but the one that was applied last.
    cycle(&mut purge, now + 8 * DAY_SECONDS);
    assert_eq!(yard.outbox("ANNA"), [5, 6], "the clock jumped; eight days did not pass");
    for day in 1..9 {
        ["ANNA", "BERT", "CORA"].iter().for_each(|name| yard.applied(name, 6, now + (8 + day) * DAY_SECONDS));
        cycle(&mut purge, now + (8 + day) * DAY_SECONDS);
    }
    assert_eq!((yard.outbox("ANNA"), yard.outbox("CORA")), (vec![6], vec![6]));
    // And everything goes on: numbers, chain and txnproc.
    yard.write(0, "later");
    let rows = yard.rows("ANNA");
    assert_eq!((rows[1].file_no, rows[1].first.0), (FileNo(7), rows[0].last.0 + 1));
    let header =
        dockmaster::dx::reader::DownloadReader::open(std::fs::File::open(yard.root.outbox_file(&node("ANNA"), FileNo(7))).unwrap())
            .unwrap()
            .header()
            .clone();
    assert_eq!(header.previous, rows[0].content_hash);
    assert_eq!(yard.txnproc_files(), [7, 8]);
}

#[test]
fn x10_what_waits_is_left_whole_around_a_gap() {
    let mut yard = Yard::new(&["ANNA"]);
    for _ in 0..5 {
        yard.write(0, "x");
    }
    std::fs::remove_file(yard.root.outbox_file(&node("ANNA"), FileNo(4))).unwrap();
    let now = now_seconds();
    yard.applied("ANNA", 2, now);
    let mut purge = yard.purge(Retention { keep_files: 0, keep_seconds: 0, ..Retention::default() });
    cycle(&mut purge, now);
    let rows: Vec<u64> = yard.rows("ANNA").iter().map(|row| row.file_no.0).collect();
    assert_eq!(rows, [2, 3, 4, 5]);
    assert!([2, 3, 5].iter().all(|file| yard.root.outbox_file(&node("ANNA"), FileNo(*file)).exists()));
}

#[test]
fn fault14_a_file_that_waits_and_is_not_there_is_named_once() {
    let mut yard = Yard::new(&["ANNA", "BERT"]);
    for _ in 0..4 {
        yard.write(0, "x");
    }
    for (name, file) in [("ANNA", 1), ("BERT", 3)] {
        yard.applied(name, file, now_seconds());
        std::fs::remove_file(yard.root.outbox_file(&node(name), FileNo(2))).unwrap();
    }
    let mut purge = yard.purge(Retention::default());
    for _ in 0..3 {
        cycle(&mut purge, now_seconds());
    }
    let alerts = SessionsDb::open(&yard.root.sessions_db()).unwrap().alerts(None).unwrap();
    let texts: Vec<(&str, &str)> = alerts.iter().map(|alert| (alert.node.as_str(), alert.text.as_str())).collect();
    assert_eq!(texts, [("ANNA", "file 00000002 is missing in its outbox; later ones wait")], "Bert has applied its file 2");
}

#[test]
fn s7_a_row_whose_file_is_gone_goes_with_the_next_purge() {
    let mut yard = Yard::new(&["ANNA"]);
    for _ in 0..5 {
        yard.write(0, "x");
    }
    yard.applied("ANNA", 5, now_seconds());
    (1..4).for_each(|file| std::fs::remove_file(yard.root.outbox_file(&node("ANNA"), FileNo(file))).unwrap());
    std::fs::remove_file(yard.root.txnproc_file(FileNo(1))).unwrap();
    cycle(&mut yard.purge(Retention { keep_files: 0, ..Retention::default() }), now_seconds());
    assert_eq!((yard.outbox("ANNA"), yard.txnproc_files()), (vec![5], vec![6]));
}

/// A year, day by day: DORA never comes, EMIL comes back after 120 days and has a limit of 180 of its own, the others come daily.
#[test]
fn h4_f38_365_days_a_silent_node_holds_nothing_back_and_everybody_else_gets_everything() {
    let mut yard = Yard::new(&["ANNA", "DORA", "EMIL"]);
    nodes::set_stale_after(&yard.server(), &node("EMIL"), Some(180)).unwrap();
    let mut purge = yard.purge(Retention::default());
    let begin = 1_800_000_000;
    let mut stale_on = None;
    let mut most = (0, 0);
    for day in 0..365_i64 {
        let now = begin + day * DAY_SECONDS;
        yard.sql.execute_batch("INSERT INTO item(owner, text) VALUES(0, 'for all'), (2, 'for Dora')").unwrap();
        yard.route();
        // What was made until now was made on this day.
        yard.made_at(now, if day == 0 { 0 } else { now - DAY_SECONDS });
        let last = yard.rows("ANNA").last().unwrap().file_no.0;
        yard.applied("ANNA", last, now);
        if day == 0 || day >= 120 {
            let last = yard.rows("EMIL").last().unwrap().file_no.0;
            yard.applied("EMIL", last, now);
        }
        if day == 0 {
            yard.applied("DORA", 1, now);
        }
        cycle(&mut purge, now);
        yard.route();
        let state = nodes::show(&yard.server(), &node("DORA")).unwrap().state;
        if stale_on.is_none() && state == NodeState::Stale {
            stale_on = Some(day);
        }
        assert_eq!(nodes::show(&yard.server(), &node("EMIL")).unwrap().state, NodeState::Active);
        // Anna and Emil have every file that they have not applied; nothing but the last week is kept beyond that.
        assert!(yard.outbox("ANNA").len() <= 8, "day {day}: {:?}", yard.outbox("ANNA"));
        assert!(yard.txnproc_files().len() <= 8 + 2, "day {day}: {:?}", yard.txnproc_files());
        if day < 120 {
            assert_eq!(yard.outbox("EMIL").len() as i64, day + 1, "day {day}");
        }
        most = (most.0.max(yard.outbox("DORA").len()), most.1.max(yard.outbox("EMIL").len()));
    }
    assert_eq!(stale_on, Some(90));
    assert!(yard.outbox("DORA").is_empty() && yard.outbox("EMIL").len() <= 8 && most.0 <= 91 && most.1 <= 121, "{most:?}");
    assert!(!yard.root.extract_toc(&node("DORA"), started(&yard, "DORA")).exists());
    // Dora comes back: started anew, its stream runs again.
    nodes::start(&yard.server(), &node("DORA")).unwrap();
    yard.route();
    yard.write(2, "welcome");
    assert_eq!(yard.outbox("DORA"), [1]);
}

#[test]
fn f38_too_much_that_waits_makes_a_silent_node_stale_and_a_disabled_node_keeps_nothing() {
    let mut yard = Yard::new(&["ANNA", "BERT"]);
    for _ in 0..3 {
        yard.write(0, "x");
    }
    let now = now_seconds();
    yard.applied("ANNA", 1, now - 2 * DAY_SECONDS);
    yard.applied("BERT", 1, now);
    let mut purge = yard.purge(Retention { stale_bytes: 100, ..Retention::default() });
    cycle(&mut purge, now);
    let state = |yard: &Yard, name| nodes::show(&yard.server(), &node(name)).unwrap().state;
    assert_eq!((state(&yard, "ANNA"), state(&yard, "BERT")), (NodeState::Stale, NodeState::Active));
    nodes::disable(&yard.server(), &node("BERT")).unwrap();
    yard.route();
    cycle(&mut purge, now);
    assert!(yard.outbox("ANNA").is_empty() && yard.outbox("BERT").is_empty());
}

/// The whole programs: a node is away for 100 days, is told, and comes back without anybody at the server.
#[test]
fn f38_a_stale_node_is_told_and_comes_back_by_itself() {
    let definition = "version = 1\n[node]\nowner = { type = \"integer\" }\n[object.item]\nvisible.own = \"item.owner = node.owner\"\n";
    let schema = |path: &std::path::Path| {
        Connection::open(path).unwrap().execute_batch("CREATE TABLE item(id INTEGER PRIMARY KEY, owner INTEGER, text TEXT)").unwrap();
    };
    let mut site = Site::new(schema, definition);
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNA", "--set", "owner=1"]);
    let told = site.dockmaster_ok(&["node", "set", "ANNA", "--stale-after", "95d"]);
    assert!(told.contains("stale after 95 days"), "{told}");
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    site.remote_sync_ok(&["sync", "anna.db"]);
    site.stop();
    let folder = site.folder.path().to_owned();
    let sql = |database: &str, sql: &str| Connection::open(folder.join(database)).unwrap().execute_batch(sql).unwrap();
    sql("hq.db", "INSERT INTO item VALUES(1, 1, 'while away')");
    site.dockmaster_ok(&["run"]);
    let away = |days: i64| sql("docking/sessions.db", &format!("UPDATE mark SET last_seen = last_seen - {}", days * DAY_SECONDS));
    away(94);
    site.dockmaster_ok(&["run"]);
    assert!(!String::from_utf8(site.dockmaster(&["status"]).stdout).unwrap().contains("stale"));
    away(2);
    site.dockmaster_ok(&["run"]);
    site.dockmaster_ok(&["run"]);
    let status = site.dockmaster(&["status"]);
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(text.contains("stale") && text.contains("its files are gone"), "{text}");
    assert_eq!(std::fs::read_dir(site.path("docking/ANNA/outbox")).unwrap().count(), 0);
    crate::crm::serve_again(&mut site);
    // Nobody does anything: it gets all that it sees, in its stream, without an extract.
    site.remote_sync_ok(&["sync", "anna.db"]);
    assert_eq!(crate::harness::literals(&site.path("anna.db"), "SELECT incarnation FROM dock_state"), ["2"]);
    assert!(!site.path("docking/ANNA/outbox/extract-00000002.toc").exists());
    assert_eq!(crate::harness::literals(&site.path("anna.db"), "SELECT text FROM item"), ["'while away'"]);
    sql("hq.db", "INSERT INTO item VALUES(2, 1, 'after')");
    site.remote_sync_ok(&["sync", "anna.db"]);
    assert_eq!(crate::harness::literals(&site.path("anna.db"), "SELECT text FROM item").len(), 2);
}
