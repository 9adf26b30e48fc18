//! Files, statuses, order and what waits for what.

use super::{Yard, int};
use dockmaster::base::ids::{FileNo, Incarnation, UnitNo};
use dockmaster::base::step::Progress;
use dockmaster::model::upload::{Outcome, RowChange};
use dockmaster::model::value::Value;
use dockmaster::rules::definition::MergeErrors;
use dockmaster::server::merger::{self, RuleError};
use dockmaster::server::messages::{MessageName, find};
use dockmaster::store::merge_units::{Person, Ruling};

const TABLES: &str = "
CREATE TABLE item(id TEXT PRIMARY KEY NOT NULL, v INTEGER CHECK (v < 100), w INTEGER);
CREATE TABLE part(id TEXT PRIMARY KEY NOT NULL, item TEXT REFERENCES item(id), v INTEGER);
INSERT INTO item VALUES ('a', 1, 1), ('b', 1, 1), ('c', 1, 1);
";

fn yard() -> Yard {
    Yard::new(TABLES, "version = 1\n[object.item]\nvisible.all = 'everyone'\n[object.part]\nvisible.all = 'everyone'\n")
}

fn set(yard: &Yard, item: &str, v: i64) -> super::Change {
    yard.update("item", &[item.into()], &[("v", int(v))])
}

fn person() -> Person<'static> {
    Person { who: "admin", reason: "looked at it", now_micros: 9 }
}

fn rule(yard: &Yard, number: u64, ruling: Ruling) -> Result<(), RuleError> {
    let (database, node) = (yard.server(), "ANNA".parse().unwrap());
    let head = find(&database, &MessageName { node, unit: UnitNo(number), install: None }).unwrap();
    merger::rule(&database, &yard.root, &head.node, &head.row(), ruling, &person())
}

#[test]
fn mi50_mi51_mi57_mi69_units_are_work_items_first_and_merged_in_the_nodes_order() {
    let mut yard = yard();
    let units: Vec<_> = (1..=5).map(|v| (v, set(&yard, "a", v + 1))).collect::<Vec<_>>();
    let mut before = 1;
    let mut made = Vec::new();
    for (v, mut change) in units {
        if let RowChange::Update { fields, .. } = &mut change.1 {
            fields[0].before = int(before);
            before = v + 1;
        }
        made.push(yard.unit("ANNA", vec![change]));
    }
    yard.send("ANNA", &made[..2]);
    yard.send("ANNA", &made[2..]);
    let mut merger = yard.merger();
    // The first step only lists what there is: work items, no content.
    assert_eq!(merger.step().unwrap(), Progress::Worked);
    assert_eq!(yard.text("SELECT count(*), min(status), sum(changes) FROM dock_unit"), "5|'waiting'|5");
    assert_eq!(yard.text("SELECT v FROM item WHERE id = 'a'"), "1");
    while merger.step().unwrap() == Progress::Worked {}
    assert_eq!(yard.text("SELECT v FROM item WHERE id = 'a'"), "6");
    assert_eq!(yard.confirms().iter().map(|confirm| confirm.unit.number.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert_eq!(yard.text("SELECT file_no, unit FROM dock_merge"), "2|5");
    assert_eq!(yard.text("SELECT count(*) FROM dock_conflict"), "0");
}

#[test]
fn mi71_nodes_take_turns() {
    let mut yard = yard();
    for v in 2..80 {
        let change = yard.insert("part", &[Value::text(&format!("p{v}")), Value::Null, int(v)]);
        yard.sends("ANNA", vec![change]);
    }
    let change = yard.insert("part", &["bert".into(), Value::Null, int(1)]);
    yard.sends("BERT", vec![change]);
    assert_eq!(yard.merge(), 79);
    let place = yard.confirms().iter().position(|confirm| confirm.unit.install == yard.streams["BERT"].install).unwrap();
    assert!(place < 70, "{place}: Bert's unit does not wait for all of Anna's");
}

#[test]
fn mi1_mi52_r16_f12_a_unit_is_executed_once_however_often_it_comes() {
    let mut yard = yard();
    let first = {
        let change = yard.insert("part", &["p".into(), Value::Null, int(1)]);
        yard.unit("ANNA", vec![change])
    };
    yard.send("ANNA", std::slice::from_ref(&first));
    assert_eq!(yard.merge(), 1);
    yard.sql("DELETE FROM part");
    // The confirm was never delivered; a new extract, and the same unit in file 1 of another incarnation.
    yard.begin_anew("ANNA");
    let change = yard.insert("part", &["q".into(), Value::Null, int(2)]);
    let second = yard.unit("ANNA", vec![change]);
    let former = yard.root.inbox(&"ANNA".parse().unwrap()).join("00000001.dx");
    // The new stream begins where the former one has its first file: the Merger gives the number free.
    assert_eq!(yard.merge(), 0);
    assert!(!former.exists());
    assert!(yard.root.inbox(&"ANNA".parse().unwrap()).join("1-00000001.dx").exists());
    yard.send("ANNA", &[first.clone(), second]);
    assert_eq!(yard.merge(), 1);
    assert_eq!(yard.text("SELECT id FROM part"), "'q'");
    assert_eq!(yard.confirms().len(), 2);
    // Another content under a known number is another history.
    yard.begin_anew("ANNA");
    yard.merge();
    let mut forked = first;
    forked.changes = vec![yard.insert("part", &["forked".into(), Value::Null, int(1)])];
    yard.send("ANNA", &[forked]);
    assert_eq!(yard.merge(), 0);
    assert!(yard.alerts().iter().any(|alert| alert.contains("two histories (fork)")), "{:?}", yard.alerts());
    assert_eq!(yard.text("SELECT id FROM part"), "'q'");
}

#[test]
fn r16_a_held_unit_that_comes_again_is_the_same_one() {
    let mut yard = yard();
    let change = set(&yard, "a", 500);
    let unit = yard.unit("ANNA", vec![change]);
    yard.send("ANNA", std::slice::from_ref(&unit));
    assert_eq!(yard.merge(), 1);
    yard.begin_anew("ANNA");
    yard.merge();
    yard.send("ANNA", &[unit]);
    assert_eq!(yard.merge(), 0);
    assert_eq!(yard.text("SELECT status, incarnation, file_no FROM dock_unit"), "'error'|2|1");
    assert_eq!(yard.text("SELECT incarnation, file_no FROM dock_merge"), "2|1");
    yard.sql("UPDATE dock_unit SET status = status");
    rule(&yard, 1, Ruling::Retry).unwrap();
    assert_eq!(yard.merge(), 1);
    assert_eq!(yard.statuses(), "ANNA1 error");
}

#[test]
fn r41_f35_dependents_wait_with_a_held_unit_and_follow_it_and_others_go_on() {
    let mut yard = yard();
    let changes = vec![set(&yard, "a", 500), yard.insert("item", &["new".into(), int(1), int(1)])];
    yard.sends("ANNA", changes);
    let touch = yard.update("item", &["a".into()], &[("w", int(7))]);
    yard.sends("ANNA", vec![touch]);
    let refer = yard.insert("part", &["p".into(), "new".into(), int(1)]);
    yard.sends("ANNA", vec![refer]);
    let of_dependent =
        (yard.heading("part"), RowChange::Delete { key: vec!["p".into()], before: vec!["p".into(), "new".into(), int(1)], base: None });
    yard.sends("ANNA", vec![of_dependent]);
    let other = set(&yard, "b", 3);
    yard.sends("ANNA", vec![other]);
    let bert = yard.update("item", &["a".into()], &[("w", int(9))]);
    yard.sends("BERT", vec![bert]);
    yard.merge();
    assert_eq!(yard.statuses(), "ANNA1 error ANNA2 error<1 ANNA3 error<1 ANNA4 error<3 ANNA5 finished BERT1 finished");
    let reasons = yard.text("SELECT reason FROM dock_unit WHERE waits_for IS NOT NULL ORDER BY unit");
    assert!(reasons.contains("it waits for unit 1, which is held: it touches item 'a' too".replace('\'', "''").as_str()), "{reasons}");
    assert!(reasons.contains("it refers to item"), "{reasons}");
    // mi53, mi63: the server's rule is changed, and a person tries again; who waited for it follows.
    yard.sql("PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, 'v < 100', 'v < 900') WHERE name = 'item'; PRAGMA writable_schema = RESET");
    rule(&yard, 1, Ruling::Retry).unwrap();
    assert_eq!(yard.merge(), 4);
    assert_eq!(yard.statuses(), "ANNA1 finished ANNA2 finished ANNA3 finished ANNA4 finished ANNA5 finished BERT1 finished");
    assert_eq!(yard.text("SELECT v, w FROM item WHERE id = 'a'"), "500|9");
    assert_eq!(
        yard.text("SELECT unit, from_status, to_status, who FROM dock_message_event WHERE who = 'admin'"),
        "1|'error'|'waiting'|'admin'"
    );
    assert_eq!(yard.text("SELECT count(*) FROM dock_message_event WHERE who = 'merger'"), "3");
}

#[test]
fn mi62_mi63_r29_r30_f35_an_ignored_unit_is_confirmed_and_what_waited_for_it_goes_its_own_way() {
    let mut yard = yard();
    let at_home = yard.row("item", &["a".into()]);
    let changes = vec![set(&yard, "a", 500), yard.insert("item", &["new".into(), int(1), int(1)])];
    yard.sends("ANNA", changes);
    // r29: unit 2 builds on unit 1, and the server still has what the node once saw.
    let mut on_top = yard.update_from("item", &["a".into()], &at_home, &[("v", int(5))]);
    if let RowChange::Update { fields, .. } = &mut on_top.1 {
        fields[0].before = int(500);
    }
    yard.sends("ANNA", vec![on_top]);
    let refer = yard.insert("part", &["p".into(), "new".into(), int(1)]);
    yard.sends("ANNA", vec![refer]);
    let of_new = yard.update_from("item", &["new".into()], &["new".into(), int(1), int(1)], &[("v", int(5))]);
    yard.sends("ANNA", vec![of_new]);
    yard.merge();
    assert_eq!(yard.statuses(), "ANNA1 error ANNA2 error<1 ANNA3 error<1 ANNA4 error<1");
    rule(&yard, 1, Ruling::Ignore).unwrap();
    assert!(matches!(yard.last_outcome(), Outcome::Ignored { .. }));
    yard.merge();
    assert_eq!(yard.text("SELECT v FROM item WHERE id = 'a'"), "5");
    assert_eq!(yard.text("SELECT count(*) FROM dock_conflict WHERE unit = 2"), "0");
    // What is about a row that never came to be is not lost in silence.
    assert_eq!(yard.text("SELECT status FROM dock_unit ORDER BY unit"), "'ignored' 'finished' 'error' 'error'");
    let reason = yard.text("SELECT reason FROM dock_unit WHERE unit = 4");
    assert!(reason.contains("unit 1 would have inserted it, and that was taken out"), "{reason}");
    assert!(yard.text("SELECT reason FROM dock_unit WHERE unit = 3").contains("FOREIGN KEY"));
    // mi63: what is final stays so.
    let database = yard.server();
    let install = yard.streams["ANNA"].install;
    let id = dockmaster::model::upload::UnitId { install, number: UnitNo(1) };
    for ruling in [Ruling::Retry, Ruling::Ignore, Ruling::Return] {
        assert!(database.rule(id, ruling, &[], &person()).unwrap().is_err());
    }
    rule(&yard, 3, Ruling::Return).unwrap();
    assert!(matches!(yard.last_outcome(), Outcome::Returned { .. }));
}

#[test]
fn x1_merge_errors_says_whether_the_queue_of_the_node_stops() {
    for (mode, expected, state) in [
        (MergeErrors::Hold, "ANNA1 error ANNA2 finished BERT1 finished", "active"),
        (MergeErrors::Stop, "ANNA1 error ANNA2 waiting BERT1 finished", "active"),
        (MergeErrors::DisableNode, "ANNA1 error ANNA2 waiting BERT1 finished", "disabled"),
    ] {
        let mut yard = yard();
        yard.errors = mode;
        for (node, item, v) in [("ANNA", "a", 500), ("ANNA", "b", 2), ("BERT", "c", 2)] {
            let change = set(&yard, item, v);
            yard.sends(node, vec![change]);
        }
        yard.merge();
        assert_eq!(yard.statuses(), expected, "{mode:?}");
        assert_eq!(yard.text("SELECT state FROM dock_node WHERE name = 'ANNA'"), format!("'{state}'"));
        if mode == MergeErrors::Stop {
            rule(&yard, 1, Ruling::Ignore).unwrap();
            yard.merge();
            assert_eq!(yard.statuses(), "ANNA1 ignored ANNA2 finished BERT1 finished");
        }
    }
}

#[test]
fn mi1_a_lock_of_another_program_is_no_refusal() {
    let mut yard = yard();
    let change = set(&yard, "a", 2);
    yard.sends("ANNA", vec![change]);
    let mut merger = yard.merger();
    assert_eq!(merger.step().unwrap(), Progress::Worked);
    yard.sql("BEGIN IMMEDIATE");
    let error = merger.step().unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(yard.statuses(), "ANNA1 waiting");
    yard.sql("COMMIT");
    while merger.step().unwrap() == Progress::Worked {}
    assert_eq!(yard.statuses(), "ANNA1 finished");
}

#[test]
fn r6_a_table_whose_capture_is_interrupted_keeps_units_waiting_and_nobody_elses() {
    let mut yard = yard();
    let change = set(&yard, "a", 2);
    yard.sends("ANNA", vec![change]);
    let change = yard.insert("part", &["p".into(), Value::Null, int(1)]);
    yard.sends("BERT", vec![change]);
    let trigger = yard.text("SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'item' LIMIT 1").replace('\'', "");
    yard.sql(&format!("DROP TRIGGER {trigger}"));
    yard.merge();
    assert_eq!(yard.statuses(), "ANNA1 waiting BERT1 finished");
    assert!(yard.alerts().is_empty(), "{:?}", yard.alerts());
    // The Transaction Processor takes the table up again, and the unit is merged.
    let options = dockmaster::server::pass::ServeOptions::new(yard.path(), "127.0.0.1:0");
    use dockmaster::server::pass::{Stage, run};
    run(&options, &yard.root, &[Stage::Merger, Stage::TxnProc]).unwrap();
    assert_eq!(run(&options, &yard.root, &[Stage::Merger, Stage::TxnProc, Stage::Router]).unwrap().merged, 1);
    assert_eq!(yard.statuses(), "ANNA1 finished BERT1 finished");
}

#[test]
fn f9_a_damaged_file_goes_to_quarantine_and_its_number_is_free_for_it_to_come_again() {
    let mut yard = yard();
    let change = set(&yard, "a", 2);
    let unit = yard.unit("ANNA", vec![change]);
    let path = yard.send("ANNA", &[unit]);
    let whole = std::fs::read(&path).unwrap();
    let mut bytes = whole.clone();
    let middle = bytes.len() - 40;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let change = set(&yard, "b", 2);
    yard.sends("ANNA", vec![change]);
    assert_eq!(yard.merge(), 0);
    assert!(!path.exists());
    let quarantine = yard.root.quarantine(&"ANNA".parse().unwrap());
    assert!(quarantine.join("00000001.dx").exists() && quarantine.join("00000001.dx.reason").exists());
    assert!(yard.alerts().iter().any(|alert| alert.contains("00000001.dx")), "{:?}", yard.alerts());
    // The file behind it waits for it.
    assert_eq!(yard.statuses(), "");
    std::fs::write(&path, whole).unwrap();
    assert_eq!(yard.merge(), 2);
    assert_eq!(yard.statuses(), "ANNA1 finished ANNA2 finished");
}

#[test]
fn mi17_files_stay_until_all_of_them_is_final_and_kept_long_enough() {
    let mut yard = yard();
    for (item, v) in [("a", 500), ("b", 2)] {
        let change = set(&yard, item, v);
        yard.sends("ANNA", vec![change]);
    }
    yard.merge();
    let inbox = yard.root.inbox(&"ANNA".parse().unwrap());
    let there = |yard: &Yard| {
        (1..=2).map(|file| yard.root.inbox(&"ANNA".parse().unwrap()).join(FileNo(file).file_name()).exists()).collect::<Vec<_>>()
    };
    assert_eq!(there(&yard), [true, true], "{}", inbox.display());
    let clean = |yard: &Yard| {
        let options = dockmaster::server::merger::MergerOptions { keep: std::time::Duration::ZERO, ..Default::default() };
        let mut merger =
            dockmaster::server::merger::Merger::open(&yard.path(), std::sync::Arc::clone(&yard.root), options).unwrap().unwrap();
        while merger.step().unwrap() == Progress::Worked {}
    };
    clean(&yard);
    assert_eq!(there(&yard), [true, false]);
    assert_eq!(yard.server().held_units(&"ANNA".parse().unwrap()).unwrap()[0].incarnation, Incarnation(1));
    rule(&yard, 1, Ruling::Ignore).unwrap();
    clean(&yard);
    assert_eq!(there(&yard), [false, false]);
}
