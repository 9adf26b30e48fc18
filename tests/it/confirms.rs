//! What became of a node's units, and how it brings changes together, on the way from the server database to that node.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests: a test fails by panicking")]

use crate::direct::Direct;
use crate::harness::{literals, without_server};
use crate::route::{UnitBuilder, everyone, node, own};
use dockmaster::base::ids::{InstallId, TxnId, UnitNo};
use dockmaster::base::limits::DX_FRAME_RAW_BYTES_GOAL;
use dockmaster::base::step::Progress;
use dockmaster::dx::frame::{FrameBuilder, Sealer};
use dockmaster::dx::reader::DownloadReader;
use dockmaster::model::event::{ConfirmEvent, SchemaKind, SchemaObject, UnitControls};
use dockmaster::model::upload::{Confirm, Outcome, UnitId};
use dockmaster::rules::route::{NodeKeys, route};
use dockmaster::server::pass::Stage;
use dockmaster::server::txnproc::TxnProc;
use dockmaster::store::control::Control;
use dockmaster::store::local_rules::{read_rules, rules_of};
use dockmaster::store::unit_rows::UnitMemory;
use std::path::Path;
use std::sync::Arc;

fn held(number: u64) -> Confirm {
    let unit = UnitId { install: InstallId([0xab; 16]), number: UnitNo(number) };
    Confirm { unit, outcome: Outcome::Held { reason: format!("reason {number}") } }
}

fn confirm(name: &str, number: u64) -> Control {
    Control::Confirm { node: node(name), confirm: held(number) }
}

/// The confirms in all files of a node, each with its unit.
fn told(direct: &Direct, name: &str) -> Vec<(TxnId, Confirm)> {
    let mut told = Vec::new();
    for path in crate::crm::dx_files(&direct.site, &format!("docking/{name}/outbox")) {
        let reader = DownloadReader::open(std::fs::File::open(path).unwrap()).unwrap();
        let of_unit =
            |(unit, controls): (&TxnId, &UnitControls)| controls.confirms.iter().map(|one| (*unit, one.clone())).collect::<Vec<_>>();
        told.extend(reader.controls().iter().flat_map(of_unit));
    }
    told
}

#[test]
fn r30_a_confirm_goes_to_the_node_that_sent_the_unit_and_runs() {
    let mut nodes = NodeKeys::default();
    let start = UnitBuilder::new(1).start("A", 1, &[everyone()]).start("B", 1, &[everyone(), own(1)]);
    route(&mut nodes, &start.0).unwrap();
    let mut unit = UnitBuilder::new(2).start("C", 1, &[everyone()]).stop("B").insert(1, &[everyone()]).0;
    unit.confirms = ["A", "B", "C", "NOBODY", "A"].map(|name| ConfirmEvent { node: node(name), confirm: held(1) }).to_vec();
    let routed = route(&mut nodes, &unit).unwrap();
    let a = nodes.index_of(&node("A"));
    assert!(a.is_some());
    // B stopped with the unit, and C has it in the extract.
    assert_eq!(routed.confirmed, [a, None, None, None, a]);
}

#[test]
fn r30_confirms_larger_than_a_frame_come_whole_and_in_order() {
    let large = |number| Confirm { outcome: Outcome::Held { reason: "r".repeat(DX_FRAME_RAW_BYTES_GOAL / 3) }, ..held(number) };
    let controls = UnitControls { confirms: (1..20).map(large).collect(), ..UnitControls::default() };
    let mut builder = FrameBuilder::new();
    builder.controls(TxnId(5), &controls).unwrap();
    builder.controls(TxnId(6), &controls).unwrap();
    let frames = builder.finish(&mut Sealer::new(1).unwrap()).unwrap();
    assert!(frames.len() > 8 && frames.iter().all(|frame| (frame.raw_len as usize) < 2 * DX_FRAME_RAW_BYTES_GOAL), "{frames:?}");
    let header = dockmaster::dx::header::Header {
        direction: dockmaster::dx::header::DxDirection::Download,
        server_id: Default::default(),
        epoch: dockmaster::base::ids::Epoch(1),
        node: Some(node("A")),
        incarnation: dockmaster::base::ids::Incarnation(1),
        file_no: dockmaster::base::ids::FileNo(1),
        first: TxnId(1),
        last: TxnId(9),
        revision: dockmaster::base::ids::Revision(1),
        previous: Default::default(),
        install_id: Default::default(),
        applied_unit: TxnId(0),
    };
    let (bytes, _) = dockmaster::dx::writer::NodeFile::assemble(&header, &frames).unwrap();
    let reader = DownloadReader::open(std::io::Cursor::new(bytes)).unwrap();
    assert!(reader.controls().iter().map(|(unit, told)| (unit.0, told)).eq([(5, &controls), (6, &controls)]));
}

/// R28, R30: in the order of the log, in the unit that holds them, to that node alone; in memory, in chunks, with a definition that changes
/// in the same unit, and when the data store is made anew.
#[test]
fn r28_r30_confirms_come_in_the_stream_of_their_node_alone() {
    let mut direct = Direct::crm();
    let put = |direct: &Direct, controls: &[Control]| {
        let server = direct.server();
        controls.iter().map(|control| server.append_control(control).unwrap()).last().unwrap()
    };
    let mut expected = Vec::new();
    let mut expect = |at: TxnId, numbers: std::ops::Range<u64>| expected.extend(numbers.map(|number| (at, held(number))));

    // In memory, one of them between rows, and one of a node that was never there.
    direct.sql("UPDATE contact SET name = 'before' WHERE id = 1");
    put(&direct, &[confirm("ANNA", 1), confirm("GONE", 1)]);
    direct.sql("UPDATE contact SET name = 'after' WHERE id = 2");
    let at = put(&direct, &[confirm("ANNA", 2)]);
    expect(at, 1..3);
    direct.stages(&[Stage::TxnProc, Stage::Router]);

    // In chunks.
    direct.sql("UPDATE contact SET name = name || '!'");
    let at = put(&direct, &[confirm("ANNA", 3), confirm("ANNA", 4)]);
    expect(at, 3..5);
    let mut txnproc = TxnProc::open(&direct.site.path("hq.db"), Arc::clone(&direct.root)).unwrap();
    let scratch = direct.root.txnproc_tmp().join("log.scratch");
    txnproc.bound_memory(UnitMemory { rows: 3, bytes: 300, chunk_rows: 2, chunk_bytes: 200, scratch }, 2);
    assert_eq!(txnproc.step().unwrap().progress, Progress::Worked);
    drop(txnproc);
    direct.stages(&[Stage::Router]);

    // The data store is lost before they are read: it is rolled back to where it was, and goes on.
    let at = put(&direct, &[confirm("ANNA", 5)]);
    expect(at, 5..6);
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(direct.site.path(&format!("docking/cds.db{suffix}")));
    }
    direct.stages(&[Stage::TxnProc, Stage::Router]);

    assert_eq!(told(&direct, "ANNA"), expected);
    for other in ["BERT", "CORA"] {
        assert_eq!(told(&direct, other), [], "{other}");
    }
    let newest = crate::crm::dx_files(&direct.site, "docking/ANNA/outbox").pop().unwrap();
    let mut shown = String::new();
    dockmaster::dx::show::show(std::fs::File::open(newest).unwrap(), dockmaster::dx::show::ShowFormat::Text, &mut shown).unwrap();
    let line = format!("  confirm install_id={} number=5 outcome=held reason=reason 5\n", "ab".repeat(16));
    assert!(shown.contains(&line), "{shown}");
    // A node applies them beside everything else.
    direct.equal();
}

fn rules_in(path: &Path) -> Vec<String> {
    literals(path, "SELECT table_name, direction, rules FROM dock_merge_rules ORDER BY table_name")
}

const ITEM: &str = "version = 1\n[object.item]\nmembers = [\"part\"]\nvisible = \"everyone\"\n";
const ITEM_SUM: &str = "version = 1\nreference = [\"unit\"]\n[object.item]\nmembers = [\"part\"]\nvisible = \"everyone\"\nconflict = \"client-wins\"\n\
                        [table.part]\nkeys = \"own\"\n[table.part.column.n]\nconflict = \"sum\"\n";

fn items(path: &Path) {
    let sql = "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE unit(id INTEGER PRIMARY KEY, name TEXT);
               CREATE TABLE part(id INTEGER PRIMARY KEY, item_id INTEGER NOT NULL REFERENCES item(id), n INTEGER);
               INSERT INTO item VALUES (1, 'a'), (2, 'b'); INSERT INTO part VALUES (1, 1, 5), (2, 2, 6); INSERT INTO unit VALUES (1, 'kg');";
    rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

/// R11, R28, R43: a node has the server's rules from its extract on; a definition that changes them brings them in the stream, at its
/// place and without a row; a stream that begins anew brings them too.
#[test]
fn r28_r43_the_rules_of_the_merge_travel_with_the_extract_and_in_the_stream() {
    let mut site = crate::harness::Site::new(items, ITEM);
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "ANNA"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("ANNA"), "anna.db"]);
    let local = site.path("anna.db");
    let usual = r#"{"policy":"ServerWins","columns":{},"download_only":[],"delete":"Wins","keys":"Block"}"#;
    assert_eq!(rules_in(&local), [format!("'item' | 'two-way' | '{usual}'"), format!("'part' | 'two-way' | '{usual}'")]);

    let settings = "[server]\nname = \"HQ\"\ndatabase = \"hq.db\"\nlisten = \"127.0.0.1:0\"\n";
    std::fs::write(site.path("dockmaster.toml"), format!("{}\n{settings}", without_server(ITEM_SUM))).unwrap();
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.remote_sync_ok(&["sync", "anna.db"]);
    let expected = [
        r#"'item' | 'two-way' | '{"policy":"ClientWins","columns":{},"download_only":[],"delete":"Wins","keys":"Block"}'"#.to_owned(),
        r#"'part' | 'two-way' | '{"policy":"ClientWins","columns":{"n":"Sum"},"download_only":[],"delete":"Wins","keys":"Own"}'"#
            .to_owned(),
        format!("'unit' | 'download' | '{usual}'"),
    ];
    assert_eq!(rules_in(&local), expected);
    let shown = site.dockmaster_ok(&["dx", "show", "docking/ANNA/outbox/00000001.dx"]);
    assert!(shown.contains("schema kind=merge rules") && !shown.contains("put item") && !shown.contains("put part"), "{shown}");

    // In band, over rules that somebody spoilt.
    site.stop();
    rusqlite::Connection::open(&local).unwrap().execute_batch("DELETE FROM dock_merge_rules").unwrap();
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(site.path(&format!("docking/ledger.db{suffix}")));
    }
    crate::crm::serve_again(&mut site);
    site.remote_sync_ok(&["sync", "anna.db"]);
    assert_eq!(literals(&local, "SELECT incarnation FROM dock_state"), ["2"]);
    assert_eq!(rules_in(&local), expected);
    site.stop();
}

#[test]
fn r43_rules_of_a_node_are_those_of_the_definition() {
    let direct = Direct::crm();
    let local = rusqlite::Connection::open(direct.site.path(&crate::crm::local("ANNA"))).unwrap();
    assert_eq!(read_rules(&local).unwrap(), rules_of(&direct.dock));
    local.execute_batch("UPDATE dock_merge_rules SET direction = 'sideways' WHERE table_name = 'contact'").unwrap();
    assert_eq!(read_rules(&local).unwrap_err().to_string(), "table contact: unknown direction `sideways`");
    // Nothing but our own texts is taken from a file.
    let object =
        SchemaObject { kind: SchemaKind::MergeRules, name: String::new(), sql: Some("DROP TABLE contact".into()), keeps_rows: true };
    assert!(dockmaster::store::local_rules::rules_from_text(object.sql.as_deref().unwrap()).is_err());
}

fn numbered(number: u64, outcome: Outcome) -> Confirm {
    Confirm { outcome, ..held(number) }
}

/// A unit on the server with what became of it, as the Merger leaves it: 6 units of ANNA, one of BERT.
fn merged_before(direct: &Direct) -> Vec<Confirm> {
    let server = direct.server();
    let reason = || "wrong customer".to_owned();
    let conflict = dockmaster::model::upload::Conflict {
        id: 1,
        table: "contact".into(),
        key: vec![1.into()],
        column: Some("name".into()),
        base: None,
        server: Some(dockmaster::model::value::Value::text("s")),
        client: None,
        winner: dockmaster::model::upload::Winner::Server,
        rule: "server-wins".into(),
        at_micros: 5,
    };
    let key = |old: i64, new: i64| dockmaster::model::upload::KeyMapping {
        table: "contact".into(),
        old: vec![old.into()],
        new: vec![new.into()],
    };
    let merged = |conflicts: Vec<_>, keys: Vec<_>| Outcome::Merged { conflicts, keys };
    let install = "ab".repeat(16);
    let row = |node: &str, number: u64, status: &str, outcome: &str, log_id: i64| {
        let sql = "INSERT INTO dock_unit(install_id, unit, node, status, outcome, reason, log_id) VALUES(?1, ?2, ?3, ?4, ?5, 'wrong customer', ?6)";
        let conn = rusqlite::Connection::open(direct.site.path("hq.db")).unwrap();
        conn.execute(sql, rusqlite::params![install, number as i64, node, status, outcome, log_id]).unwrap();
        let key = |id: i64| dockmaster::model::keycode::encode(&[id.into()]);
        if number < 3 && node == "ANNA" {
            let sql =
                "INSERT INTO dock_key_map(install_id, unit, table_name, old_key, new_key, log_id) VALUES(?1, ?2, 'contact', ?3, ?4, ?5)";
            conn.execute(sql, rusqlite::params![install, number as i64, key(7), key(1000 + number as i64), log_id]).unwrap();
        }
    };
    let put = |node: &str, number: u64, status: &str, outcome: Outcome| {
        let confirm = numbered(number, outcome);
        let log_id = server.append_control(&Control::Confirm { node: crate::route::node(node), confirm: confirm.clone() }).unwrap();
        row(node, number, status, confirm.outcome.name(), log_id.0);
        confirm
    };
    let whole = put("ANNA", 1, "finished", merged(vec![conflict], vec![key(7, 1001)]));
    // Its row of the log is purged: what the tables say.
    row("ANNA", 2, "finished", "merged", 1);
    let purged = numbered(2, merged(vec![], vec![key(7, 1002)]));
    let ignored = put("ANNA", 3, "ignored", Outcome::Ignored { reason: reason() });
    let returned = put("ANNA", 4, "ignored", Outcome::Returned { reason: reason() });
    put("ANNA", 5, "error", Outcome::Held { reason: reason() });
    row("ANNA", 6, "waiting", "", 0);
    put("BERT", 9, "finished", merged(vec![], vec![]));
    // In the order in which they were finished.
    vec![purged, whole, ignored, returned]
}

fn finished_in(direct: &Direct, name: &str) -> Vec<String> {
    literals(&direct.site.path(&crate::crm::local(name)), "SELECT install_id, unit, outcome FROM dock_finished ORDER BY unit")
}

/// R16: the extract names the units of its node that are finished as of its position, also when a part of it is made for several nodes.
#[test]
fn r16_an_extract_says_which_units_of_its_node_are_finished() {
    let mut direct = Direct::crm();
    assert!(finished_in(&direct, "ANNA").is_empty());
    merged_before(&direct);
    let install = "ab".repeat(16);
    let expected = [(1, "merged"), (2, "merged"), (3, "ignored"), (4, "returned")]
        .map(|(unit, outcome)| format!("'{install}' | {unit} | '{outcome}'"));
    direct.start("ANNA");
    assert_eq!(finished_in(&direct, "ANNA"), expected);
    // Three that start with one unit.
    let names = ["ANNA", "BERT", "CORA"].map(node);
    let incarnations = names.clone().map(|name| dockmaster::server::nodes::start(&direct.server(), &name).unwrap());
    direct.stages(&[Stage::TxnProc]);
    for (name, incarnation) in names.iter().zip(incarnations) {
        direct.unpack(name.as_str(), &direct.root.extract(name, incarnation));
    }
    assert_eq!(finished_in(&direct, "ANNA"), expected);
    assert_eq!(finished_in(&direct, "BERT"), [format!("'{install}' | 9 | 'merged'")]);
    assert!(finished_in(&direct, "CORA").is_empty());
    // The confirms that they tell of are in no file of theirs.
    direct.stages(&[Stage::Router]);
    assert_eq!((told(&direct, "ANNA"), told(&direct, "BERT")), (vec![], vec![]));
}

/// R16: a stream that begins anew in band says it too, each unit once, also one that is finished by the same unit, and what is held.
#[test]
fn r16_r30_a_stream_that_begins_anew_confirms_what_was_finished() {
    let direct = Direct::crm();
    let expected = merged_before(&direct);
    let still_held = numbered(5, Outcome::Held { reason: "wrong customer".to_owned() });
    direct.stages(&[Stage::TxnProc, Stage::Router]);
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(direct.site.path(&format!("docking/ledger.db{suffix}")));
    }
    let server = direct.server();
    let late = numbered(6, Outcome::Merged { conflicts: vec![], keys: vec![] });
    let log_id = server.append_control(&Control::Confirm { node: node("ANNA"), confirm: late.clone() }).unwrap();
    direct.sql(&format!(
        "UPDATE dock_unit SET status = 'finished', outcome = 'merged', log_id = {} WHERE node = 'ANNA' AND unit = 6",
        log_id.0
    ));
    let log_id = server.append_control(&confirm("ANNA", 7)).unwrap();
    direct.sql(&format!(
        "INSERT INTO dock_unit(install_id, unit, node, status, outcome, reason, log_id)
         VALUES ('{}', 7, 'ANNA', 'error', 'held', 'for the administrator', {})",
        "ab".repeat(16),
        log_id.0
    ));
    direct.stages(&[Stage::Router]);
    direct.stages(&[Stage::TxnProc, Stage::Router]);
    let told = told(&direct, "ANNA");
    let units: std::collections::BTreeSet<TxnId> = told.iter().map(|(unit, _)| *unit).collect();
    assert_eq!(units.len(), 1, "{told:?}");
    let mut all = expected;
    all.extend([still_held, late, held(7)]);
    assert_eq!(told.into_iter().map(|(_, confirm)| confirm).collect::<Vec<_>>(), all);
}
