//! `dockmaster messages` and `dockmaster conflicts`: what a person sees of units of nodes, and decides.

use crate::harness::Site;
use dockmaster::base::ids::{ContentHash, Epoch, FileNo, Incarnation, InstallId, Revision, ServerId, TxnId, UnitNo};
use dockmaster::dx::header::{DxDirection, Header};
use dockmaster::dx::upload_writer::UploadWriter;
use dockmaster::model::event::TableHeading;
use dockmaster::model::upload::{FieldChange, RowChange, UnitId, UploadHead, UploadUnit};
use dockmaster::model::value::Value;
use dockmaster::store::control::Control;
use dockmaster::store::merge::{MergeDatabase, MergeJob};
use dockmaster::store::merge_units::{Person, Ruling};
use dockmaster::store::sqlite::ServerDatabase;
use rusqlite::{Connection, params};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const TABLES: &str = "
CREATE TABLE shop(id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE stock(id INTEGER PRIMARY KEY, shop_id INTEGER, amount INTEGER CHECK (amount >= 0), note TEXT);
INSERT INTO shop VALUES (1, 'north');
INSERT INTO stock VALUES (7, 1, 10, 'ten');
";

const DEFINITION: &str = r#"version = 1
[node]
shop = { type = "integer", must_exist = "shop.id" }
[object.stock]
conflict = "manual"
visible.own = 'stock.shop_id = node.shop'
"#;

const INSTALL: InstallId = InstallId([0xab; 16]);

/// A site with the node SHOP-1, and a connection of a program on its server database.
fn site() -> (Site, Connection) {
    let site = Site::new(|path| Connection::open(path).unwrap().execute_batch(TABLES).unwrap(), DEFINITION);
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "SHOP-1", "--set", "shop=1"]);
    let app = Connection::open(site.path("hq.db")).unwrap();
    (site, app)
}

fn heading() -> Arc<TableHeading> {
    Arc::new(TableHeading { name: "stock".into(), columns: ["id", "shop_id", "amount", "note"].map(str::to_owned).to_vec(), key: vec![0] })
}

fn unit(number: u64, changes: Vec<RowChange>) -> UploadUnit {
    let head = UploadHead {
        number: UnitNo(number),
        applied: TxnId(1),
        revision: Revision(1),
        cut_at_micros: 1_700_000_000_000_000,
        label: Some("inventory".into()),
        hidden: Vec::new(),
        changes: changes.len() as u64,
    };
    UploadUnit { head, changes: changes.into_iter().map(|change| (heading(), change)).collect() }
}

fn update(amount: i64) -> RowChange {
    let value = Value::Integer;
    let field = FieldChange { column: 2, before: value(10), base: value(9), after: value(amount) };
    RowChange::Update { key: vec![value(7)], fields: vec![field], whole: None }
}

fn insert(id: i64) -> RowChange {
    RowChange::Insert { row: vec![Value::Integer(id), Value::Integer(1), Value::Integer(1), Value::text("new\nline")] }
}

/// Puts units into the inbox, as the session does, and into `dock_unit`.
fn store(site: &Site, app: &Connection, install: InstallId, file: u64, units: &[UploadUnit]) {
    let number = |unit: Option<&UploadUnit>| TxnId(unit.unwrap().head.number.0.cast_signed());
    let header = Header {
        direction: DxDirection::Upload,
        server_id: ServerId([7; 16]),
        epoch: Epoch(1),
        node: Some("SHOP-1".parse().unwrap()),
        incarnation: Incarnation(1),
        file_no: FileNo(file),
        first: number(units.first()),
        last: number(units.last()),
        revision: Revision(1),
        previous: if file == 1 { ContentHash::default() } else { ContentHash([1; 32]) },
        install_id: install,
        applied_unit: TxnId(1),
    };
    let inbox = site.path("docking/SHOP-1/inbox");
    std::fs::create_dir_all(&inbox).unwrap();
    std::fs::write(inbox.join(FileNo(file).file_name()), UploadWriter::assemble(&header, units, 3).unwrap().0).unwrap();
    for unit in units {
        app.execute(
            "INSERT INTO dock_unit(install_id, unit, node, incarnation, file_no, content_hash, applied, cut_at, label, changes, status, attempts,
             stored_at) VALUES (?1, ?2, 'SHOP-1', 1, ?3, '00', 1, ?4, ?5, ?6, 'waiting', 0, ?7)",
            params![
                install.to_string(),
                unit.head.number.0.cast_signed(),
                file.cast_signed(),
                unit.head.cut_at_micros,
                unit.head.label,
                unit.head.changes.cast_signed(),
                1_700_000_100_000_000 + unit.head.number.0.cast_signed()
            ],
        )
        .unwrap();
    }
}

fn hold(app: &Connection, unit: i64, reason: &str) {
    app.execute(
        "UPDATE dock_unit SET status = 'error', outcome = 'held', reason = ?2, attempts = 1, done_at = 1700000200000000 WHERE unit = ?1",
        params![unit, reason],
    )
    .unwrap();
}

fn said(site: &Site, arguments: &[&str]) -> (i32, String) {
    let output = site.dockmaster(arguments);
    let text = if output.status.code() == Some(2) { output.stderr } else { output.stdout };
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

fn json(site: &Site, arguments: &[&str]) -> serde_json::Value {
    let output = site.dockmaster(&[arguments, &["--json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn text(app: &Connection, sql: &str) -> String {
    crate::node_kit::text(app, sql)
}

#[test]
fn mi4_mi57_mi69_messages_are_listed_by_status_without_their_content_and_shown_with_all_values() {
    let (site, app) = site();
    assert_eq!(said(&site, &["messages", "list"]), (0, "no messages\n".into()));
    store(&site, &app, INSTALL, 1, &[unit(1, vec![update(12)]), unit(2, vec![insert(8), update(-5)])]);
    store(
        &site,
        &app,
        INSTALL,
        2,
        &[unit(3, vec![RowChange::Delete { key: vec![Value::Integer(7)], before: vec![Value::Null; 4], base: None }])],
    );
    hold(&app, 2, "stock 7: CHECK constraint failed: amount >= 0");
    app.execute_batch("UPDATE dock_unit SET status = 'finished', outcome = 'merged', conflicts = 1, done_at = 1 WHERE unit = 1").unwrap();

    let (code, list) = said(&site, &["messages", "list"]);
    assert_eq!(code, 1, "something waits for a person");
    let lines: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().take(4).collect()).collect();
    assert_eq!(lines[0], ["MESSAGE", "STATUS", "CHANGES", "CONFLICTS"]);
    assert_eq!(lines[1..], [["SHOP-1:3", "waiting", "1", "0"], ["SHOP-1:2", "error", "2", "0"], ["SHOP-1:1", "finished", "1", "1"]]);
    assert!(list.contains("CHECK constraint failed") && list.contains("inventory"), "{list}");
    for (status, expected) in [("waiting", "SHOP-1:3"), ("error", "SHOP-1:2"), ("finished", "SHOP-1:1")] {
        let document = json(&site, &["messages", "list", "--status", status, "--node", "SHOP-1"]);
        assert_eq!(document["version"], 1);
        let names: Vec<&str> = document["messages"].as_array().unwrap().iter().map(|head| head["message"].as_str().unwrap()).collect();
        assert_eq!(names, [expected]);
    }
    assert_eq!(said(&site, &["messages", "list", "--status", "ignored"]).1, "no messages\n");
    assert_eq!(said(&site, &["messages", "list", "--status", "lost"]).0, 2);

    let (code, shown) = said(&site, &["messages", "show", "SHOP-1:2"]);
    assert_eq!(code, 1);
    for part in [
        "SHOP-1:2  error  2 changes  inventory",
        "2023-11-14 22:13:20Z, by the clock of SHOP-1",
        "in file 00000001 of extract 1",
        "held     ",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let rows: Vec<Vec<&str>> =
        shown.lines().filter(|line| line.starts_with("stock")).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["stock", "8", "insert", "id", "-", "-", "8"]);
    assert_eq!(rows[3], ["stock", "8", "insert", "note", "-", "-", "'new", "line'"], "one line");
    assert_eq!(rows[4], ["stock", "7", "update", "amount", "10", "9", "-5"]);
    assert!(shown.contains("dockmaster messages retry SHOP-1:2 --reason"), "{shown}");
    let document = json(&site, &["messages", "show", "SHOP-1:2"]);
    assert_eq!(document["content"], "here");
    assert_eq!(document["rows"][1]["fields"]["amount"], serde_json::json!({ "before": 10, "base": 9, "after": -5 }));
    assert_eq!(document["rows"][0]["after"]["note"], "new\nline");
    assert_eq!(json(&site, &["messages", "show", "SHOP-1:3"])["rows"][0]["change"], "delete");
    let (_, shown) = said(&site, &["messages", "show", "SHOP-1:2", "--limit", "1"]);
    assert!(shown.contains("The first 1 of 2") && !shown.contains("update"), "{shown}");

    // The list reads no file: without the inbox it is the same; the content is told to be gone.
    std::fs::remove_dir_all(site.path("docking/SHOP-1/inbox")).unwrap();
    assert_eq!(said(&site, &["messages", "list"]), (1, list));
    let (_, shown) = said(&site, &["messages", "show", "SHOP-1:2"]);
    assert!(shown.contains("Its content is no longer kept: file 00000001 is gone from the inbox."), "{shown}");
    assert_eq!(json(&site, &["messages", "show", "SHOP-1:2"])["content"], "gone");
    let (code, error) = said(&site, &["messages", "show", "SHOP-1:99"]);
    assert!(
        code == 2 && error.contains("there is no message SHOP-1:99") && error.contains("hint: dockmaster messages list --node SHOP-1"),
        "{error}"
    );
    assert!(said(&site, &["messages", "show", "SHOP-1"]).1.contains("write NODE:UNIT"));
}

#[test]
fn mi3_a_number_that_two_local_databases_of_a_node_used_is_told_apart() {
    let (site, app) = site();
    let other = InstallId([0xcd; 16]);
    store(&site, &app, INSTALL, 1, &[unit(1, vec![update(12)])]);
    app.execute_batch("UPDATE dock_unit SET status = 'finished', outcome = 'merged'").unwrap();
    store(&site, &app, other, 1, &[unit(1, vec![insert(9)])]);
    // The one that is not final is meant.
    assert_eq!(json(&site, &["messages", "show", "SHOP-1:1"])["rows"][0]["change"], "insert");
    let first = json(&site, &["messages", "show", "SHOP-1:1:abab"]);
    assert_eq!((&first["status"], &first["content"]), (&"finished".into(), &"gone".into()), "its file number was given again");
    app.execute_batch("UPDATE dock_unit SET status = 'error'").unwrap();
    let (code, error) = said(&site, &["messages", "show", "SHOP-1:1"]);
    assert!(
        code == 2 && error.contains("SHOP-1:1:cdcd") && error.contains("SHOP-1:1:abab") && error.contains("NODE:UNIT:INSTALL"),
        "{error}"
    );
}

fn conflict(app: &Connection, column: Option<&str>, server: &str, client: &str, winner: &str, state: &str) -> i64 {
    app.execute(
        "INSERT INTO dock_conflict(install_id, unit, node, table_name, row_key, column_name, base, server, client, winner, rule, at, state)
         VALUES (?1, 1, 'SHOP-1', 'stock', '[7]', ?2, '9', ?3, ?4, ?5, 'manual', 1700000200000000, ?6)",
        params![INSTALL.to_string(), column, server, client, winner, state],
    )
    .unwrap();
    app.last_insert_rowid()
}

#[test]
fn mi60_x39_conflicts_are_listed_shown_and_resolved_with_who_and_why() {
    let (site, app) = site();
    assert_eq!(said(&site, &["conflicts", "list"]), (0, "no conflicts\n".into()));
    let open = conflict(&app, Some("amount"), "10", "12", "open", "open");
    let closed = conflict(&app, Some("note"), "\"ten\"", "\"zwölf\"", "server", "closed");
    let row = conflict(&app, None, "{\"amount\":10}", "{\"amount\":12}", "open", "open");
    let (code, list) = said(&site, &["conflicts", "list"]);
    assert!(code == 1 && list.lines().count() == 4 && list.contains("SHOP-1:1") && list.contains("'zwölf'"), "{list}");
    let listed = json(&site, &["conflicts", "list", "--open", "--node", "SHOP-1"]);
    assert_eq!(listed["conflicts"].as_array().unwrap().iter().map(|c| c["id"].as_i64().unwrap()).collect::<Vec<_>>(), [row, open]);
    assert_eq!(listed["conflicts"][1]["client"], 12);
    let (code, shown) = said(&site, &["conflicts", "show", &open.to_string()]);
    assert!(code == 1 && shown.contains("base     9") && shown.contains("server   10") && shown.contains("client   12"), "{shown}");

    let resolve = |id: i64, take: &str, more: &[&str]| {
        let id = id.to_string();
        said(&site, &[&["conflicts", "resolve", &id, "--take", take, "--by", "eva", "--reason", "counted again"], more].concat())
    };
    assert!(resolve(closed, "client", &[]).1.contains("is closed: server won by manual"));
    assert!(resolve(99, "client", &[]).1.contains("there is no conflict 99"));
    assert!(resolve(row, "client", &[]).1.contains("about a whole row"));
    assert_eq!(resolve(row, "server", &[]).0, 0);
    let (code, error) = resolve(open, "-1", &[]);
    assert!(code == 2 && error.contains("refuses -1 for stock 7, amount: CHECK constraint failed"), "{error}");
    assert_eq!(text(&app, "SELECT state FROM dock_conflict WHERE id = 1"), "'open'", "nothing was changed");

    app.execute_batch("UPDATE stock SET amount = 11 WHERE id = 7").unwrap();
    let (code, error) = resolve(open, "client", &[]);
    assert!(code == 2 && error.contains("is 11 by now, it was 10 when both met") && error.contains("--even-if-changed"), "{error}");
    let logged = text(&app, "SELECT count(*) FROM dock_txn_log WHERE op = 'U'");
    let (code, shown) = resolve(open, "client", &["--even-if-changed"]);
    assert!(code == 0 && shown.contains("resolved 2") && shown.contains("by eva: counted again"), "{shown}");
    assert_eq!(text(&app, "SELECT amount FROM stock WHERE id = 7"), "12");
    assert_ne!(text(&app, "SELECT count(*) FROM dock_txn_log WHERE op = 'U'"), logged, "it goes down to the nodes like every change");
    assert_eq!(
        text(&app, "SELECT conflict_id, from_status, to_status, who, reason FROM dock_message_event ORDER BY id"),
        "3|'open'|'resolved: server'|'eva'|'counted again' 1|'open'|'resolved: client'|'eva'|'counted again'"
    );
    assert!(resolve(open, "server", &[]).1.contains("is resolved: client won"));
    // A value of its own; the words of the two sides as texts.
    let other = conflict(&app, Some("note"), "\"ten\"", "\"zwölf\"", "open", "open");
    assert_eq!(resolve(other, "\"server\"", &[]).0, 0);
    assert_eq!(text(&app, "SELECT note FROM stock WHERE id = 7"), "'server'");
    app.execute_batch("DELETE FROM stock").unwrap();
    let gone = conflict(&app, Some("note"), "\"server\"", "\"zwölf\"", "open", "open");
    assert!(resolve(gone, "client", &[]).1.contains("stock 7 is gone"));
    assert_eq!(resolve(gone, "server", &[]).0, 0);
    assert_eq!(said(&site, &["conflicts", "list", "--open"]), (0, "no conflicts\n".into()));
    // Without a reason nothing is decided.
    let id = other.to_string();
    assert_eq!(said(&site, &["conflicts", "resolve", &id, "--take", "server"]).0, 2);
    assert_eq!(said(&site, &["conflicts", "resolve", &id, "--take", "server", "--reason", " "]).0, 2);
}

#[test]
fn mi53_mi61_mi62_mi63_a_person_retries_ignores_or_returns_what_is_in_error_and_nothing_else() {
    let (site, app) = site();
    store(&site, &app, INSTALL, 1, &(1..=5).map(|number| unit(number, vec![insert(100 + number.cast_signed())])).collect::<Vec<_>>());
    for number in [2, 3, 4] {
        hold(&app, number, "refused");
    }
    app.execute_batch("UPDATE dock_unit SET status = 'finished' WHERE unit = 5; UPDATE dock_unit SET waits_for = 3 WHERE unit = 4")
        .unwrap();
    let rule = |what: &str, unit: u64| {
        said(&site, &["messages", what, &format!("SHOP-1:{unit}"), "--by", "eva", "--reason", "the shop is closed"])
    };
    let (code, text) = rule("retry", 2);
    assert!(code == 0 && text.contains("SHOP-1:2 waits again"), "{text}");
    let (code, text) = rule("retry", 2);
    assert!(code == 2 && text.contains("SHOP-1:2: it is waiting") && text.contains("hint:"), "{text}");
    assert_eq!(rule("return", 1).0, 2, "it may still be merged");
    assert_eq!(rule("ignore", 1).0, 0);
    assert_eq!(rule("return", 3).0, 0);
    for what in ["retry", "ignore", "return"] {
        for unit in [1, 3, 5] {
            assert_eq!(rule(what, unit).0, 2, "{what} {unit}: what is final stays so");
        }
    }
    let statuses = crate::node_kit::text(&app, "SELECT unit, status, outcome FROM dock_unit ORDER BY unit");
    assert_eq!(
        statuses, "1|'ignored'|'ignored' 2|'waiting'|NULL 3|'ignored'|'returned' 4|'waiting'|'held' 5|'finished'|NULL",
        "who waited for a unit that is gone is tried again"
    );
    let shown = json(&site, &["messages", "show", "SHOP-1:3"]);
    let event = &shown["events"][0];
    assert_eq!(
        (&event["from"], &event["to"], &event["who"], &event["reason"]),
        (&"error".into(), &"ignored".into(), &"eva".into(), &"the shop is closed".into())
    );
    // Without --by it is whoever calls.
    hold(&app, 2, "refused");
    let mut command = site.command(crate::harness::Program::Dockmaster, &["messages", "ignore", "SHOP-1:2", "--reason", "r", "--json"]);
    let output = command.env_remove("SUDO_USER").env("USER", "otto").output().unwrap();
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&document["status"], &document["version"]), (&"ignored".into(), &1.into()));
    assert_eq!(crate::node_kit::text(&app, "SELECT who FROM dock_message_event ORDER BY id DESC LIMIT 1"), "'otto'");
    // Cron and containers name nobody: then it is the account.
    hold(&app, 4, "refused");
    let mut nobody = site.command(crate::harness::Program::Dockmaster, &["messages", "ignore", "SHOP-1:4", "--reason", "r"]);
    let output = nobody.env_remove("SUDO_USER").env_remove("USER").env_remove("LOGNAME").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(crate::node_kit::text(&app, "SELECT who FROM dock_message_event ORDER BY id DESC LIMIT 1").starts_with("'uid "));
    let confirms = outcomes(&app);
    assert_eq!(confirms[&1], ["ignored"]);
    assert_eq!(confirms[&3], ["returned"]);
}

/// What the nodes are told of each unit, in order.
fn outcomes(app: &Connection) -> BTreeMap<u64, Vec<&'static str>> {
    let mut told: BTreeMap<u64, Vec<&'static str>> = BTreeMap::new();
    for row in crate::node_kit::rows(app, "SELECT c1 FROM dock_txn_log WHERE tbl = 0 ORDER BY id") {
        let Value::Text(json) = &row[0] else { panic!("{row:?}") };
        if let Control::Confirm { confirm, .. } = serde_json::from_slice(json).unwrap() {
            told.entry(confirm.unit.number.0).or_default().push(confirm.outcome.name());
        }
    }
    told
}

#[test]
fn f34_decisions_that_race_with_the_merger_end_each_unit_once() {
    const UNITS: u64 = 60;
    let (site, app) = site();
    site.dockmaster_ok(&["extract", "SHOP-1"]);
    // Every third one is refused whenever it is tried.
    let row = |number: u64| {
        let amount = if number.is_multiple_of(3) { -1 } else { 1 };
        RowChange::Insert {
            row: vec![Value::Integer(1_000 + number.cast_signed()), Value::Integer(1), Value::Integer(amount), Value::Null],
        }
    };
    let units: Vec<UploadUnit> = (1..=UNITS).map(|number| unit(number, vec![row(number)])).collect();
    store(&site, &app, INSTALL, 1, &units);
    let path = site.path("hq.db");
    let persons = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for seed in 0..2u64 {
            let (path, persons) = (&path, &persons);
            scope.spawn(move || {
                let database = ServerDatabase::open(path).unwrap();
                let mut rng = fastrand::Rng::with_seed(seed);
                for _ in 0..150 {
                    let id = UnitId { install: INSTALL, number: UnitNo(rng.u64(1..=UNITS)) };
                    let ruling = [Ruling::Retry, Ruling::Retry, Ruling::Ignore, Ruling::Return][rng.usize(0..4)];
                    let person = Person { who: "eva", reason: "r", now_micros: 1 };
                    // What is not possible from where the unit is now is refused.
                    let _ = database.rule(id, ruling, &[], &person).unwrap();
                }
                persons.fetch_add(1, Ordering::SeqCst);
            });
        }
        scope.spawn(|| {
            let mut merger = MergeDatabase::open(&path).unwrap().unwrap();
            let node = merger.database().node(&"SHOP-1".parse().unwrap()).unwrap().unwrap();
            loop {
                let is_last = persons.load(Ordering::SeqCst) == 2;
                for unit in &units {
                    let job = MergeJob {
                        node: &node,
                        install: INSTALL,
                        incarnation: Incarnation(1),
                        file: FileNo(1),
                        file_hash: ContentHash::default(),
                        unit,
                        held: &[],
                        day: 20_000,
                        now_micros: 2,
                    };
                    merger.merge(&job).unwrap();
                }
                if is_last {
                    break;
                }
            }
        });
    });
    let told = outcomes(&app);
    let mut seen = BTreeMap::new();
    for number in 1..=UNITS {
        let one = |sql: &str| text(&app, &sql.replace("?", &number.to_string()));
        let status = one("SELECT status FROM dock_unit WHERE unit = ?");
        let is_there = one("SELECT count(*) FROM stock WHERE id = 1000 + ?") == "1";
        let last: Vec<&str> = told.get(&number).into_iter().flatten().copied().filter(|outcome| *outcome != "held").collect();
        let taken_out = one("SELECT count(*) FROM dock_message_event WHERE unit = ? AND to_status = 'ignored'");
        match status.as_str() {
            "'finished'" => assert!(is_there && last == ["merged"] && taken_out == "0", "{number}: {last:?} {taken_out}"),
            "'ignored'" => {
                assert!(!is_there && last.len() == 1 && last[0] != "merged" && taken_out == "1", "{number}: {last:?} {taken_out}")
            }
            "'error'" => assert!(!is_there && last.is_empty() && number.is_multiple_of(3), "{number}: {last:?}"),
            other => panic!("{number} is {other}"),
        }
        *seen.entry(status).or_insert(0) += 1;
    }
    assert!(seen.len() >= 2, "{seen:?}");
    assert!(told.values().flatten().any(|outcome| *outcome == "held"), "{told:?}");
}
