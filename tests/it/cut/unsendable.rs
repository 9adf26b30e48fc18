//! What is not sent: put back whatever stands in its way, listed with its values, and nothing behind it waits.

use super::Rig;
use dockmaster::base::ids::{FileNo, UnitNo};
use dockmaster::dx::upload_reader::UploadReader;
use dockmaster::model::merge_rules::MergeRules;
use dockmaster::store::local::LocalDatabase;
use std::fs;

const CODES: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, code TEXT NOT NULL UNIQUE, v);
    INSERT INTO t VALUES (1, 'a', 10), (2, 'b', 20), (3, 'c', 30), (4, 'd', 40);
    CREATE TABLE kid(id INTEGER PRIMARY KEY, t INT REFERENCES t(id) ON DELETE CASCADE); INSERT INTO kid VALUES (7, 1), (8, 3);
    CREATE TRIGGER no_more BEFORE INSERT ON t WHEN (SELECT count(*) FROM t) > 3 BEGIN SELECT RAISE(ABORT, 'full'); END;";

fn rows(rig: &Rig, sql: &str) -> Vec<String> {
    let mut statement = rig.app.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn r11_rows_that_only_the_server_changes_come_back_all_together_with_what_programs_keep_in_them() {
    let rig = Rig::new(CODES);
    for table in ["t", "kid"] {
        rig.rules(table, "download", &MergeRules::default());
    }
    rig.run("ALTER TABLE t ADD COLUMN own TEXT; UPDATE t SET own = 'mine' || id");
    rig.local.cut().unwrap();
    // Codes go round, one is gone with its dependent rows, a new row has its code, and a key has changed.
    rig.run(
        "UPDATE t SET code = 'tmp' WHERE id = 2; UPDATE t SET code = 'b', v = 'mine' WHERE id = 1; UPDATE t SET code = 'a' WHERE id = 2",
    );
    rig.run("DELETE FROM t WHERE id = 3");
    rig.run("INSERT INTO t VALUES (9, 'c', 90, 'new'); UPDATE t SET id = 5 WHERE id = 4");
    let report = rig.local.cut().unwrap();
    assert_eq!((report.units.len(), report.unsendable), (0, 0));
    assert_eq!(report.put_back, 7, "rows 1, 2, 3, 4, 5, 9 and kid 8");
    assert_eq!(
        rows(&rig, "SELECT id || code || v || ifnull(own, '-') FROM t ORDER BY id"),
        ["1a10mine1", "2b20mine2", "3c30-", "4d40-"],
        "what stands in a row that stayed stays with it"
    );
    assert_eq!(rig.count("SELECT count(*) FROM dock_conflicts WHERE rule = 'download-only' AND reason LIKE '%was put back%'"), 7);
    assert_eq!(rig.count("SELECT count(*) FROM kid"), 2);
}

#[test]
fn r11_what_a_row_of_the_node_keeps_out_stays_and_says_why_and_the_others_come_back() {
    let rig = Rig::new(CODES);
    let rules = MergeRules { download_only: vec!["code".to_owned()], ..MergeRules::default() };
    rig.rules("t", "two-way", &rules);
    // Two codes change places, which can be put back; the third one's is given to a row that the node made, which is sent as it is.
    rig.run("DROP TRIGGER no_more; UPDATE t SET code = 'tmp' WHERE id = 1; UPDATE t SET code = 'a' WHERE id = 2;");
    rig.run("UPDATE t SET code = 'b' WHERE id = 1; UPDATE t SET code = 'z', v = 0 WHERE id = 3; INSERT INTO t VALUES (9, 'c', 90)");
    let report = rig.local.cut().unwrap();
    assert_eq!((report.units.len(), report.put_back), (1, 3));
    assert_eq!(rows(&rig, "SELECT id || code FROM t ORDER BY id"), ["1a", "2b", "3z", "4d", "9c"]);
    let told = rows(&rig, "SELECT row_key || ': ' || reason FROM dock_conflicts WHERE reason LIKE '%could not be put back%'");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("3: ") && told[0].contains("UNIQUE constraint failed: t.code") && told[0].contains("verify"), "{told:?}");
    assert_eq!(rig.local.cut().unwrap().units, [], "and nothing comes of it later");
}

#[test]
fn t8_a_unit_larger_than_any_file_may_carry_is_put_back_and_later_units_go_on() {
    let mut rig = Rig::new(CODES);
    rig.app.execute("UPDATE dock_state SET install_id = ?1", ["cd".repeat(16)]).unwrap();
    rig.local = LocalDatabase::open(&rig.path).unwrap().with_unit_bytes_max(2_000);
    rig.run("UPDATE t SET v = 11 WHERE id = 1");
    assert_eq!(rig.cut().units, [UnitNo(1)]);
    // A marked unit before it and one behind it, on rows of it.
    let marked =
        |sql: &str| format!("BEGIN; INSERT INTO dock_txn_mark VALUES ('m'); {sql}; INSERT INTO dock_txn_mark VALUES ('m'); COMMIT;");
    rig.run(&marked("UPDATE t SET v = 21 WHERE id = 2"));
    rig.run(
        "BEGIN; UPDATE t SET v = printf('%.*c', 3000, 'x') WHERE id = 1; UPDATE t SET code = code || '!'; DELETE FROM t WHERE id = 3; COMMIT",
    );
    rig.run(&marked("UPDATE t SET v = 41 WHERE id = 4"));
    let report = rig.cut();
    assert_eq!((report.units.len(), report.changes), (2, 2));
    // Row 4 went on with what the large unit made of it.
    assert_eq!(rig.told(1), ["~t[2]v:20/20/21", "~t[4]code:'d'/'d'/'d!' v:40/40/41"]);
    assert_eq!(report.unsendable, 4, "rows 1, 2 and 3, and kid 8");
    assert_eq!(rows(&rig, "SELECT id || code || v FROM t ORDER BY id"), ["1a11", "2b21", "3c30", "4d!41"]);
    let listed = "rule = 'too-large' AND reason LIKE '%smaller parts%'";
    assert_eq!(rig.count(&format!("SELECT count(*) FROM dock_conflicts WHERE {listed}")), 4);
    let kept = rows(&rig, &format!("SELECT length(client) || ' ' || server FROM dock_conflicts WHERE {listed} AND row_key = '1'"));
    assert!(kept[0].ends_with(r#" {"id":1,"code":"a","v":11}"#) || kept[0].ends_with(r#" {"code":"a","id":1,"v":11}"#), "{kept:?}");
    assert!(kept[0].starts_with("30"), "the value is kept whole: {kept:?}");
    rig.run("UPDATE t SET v = 12 WHERE id = 1");
    rig.cut();
    let outbox = super::rules::outbox(&rig);
    let ready = outbox.next(FileNo(0)).unwrap().unwrap();
    assert_eq!(ready.units, 4);
    let mut reader = UploadReader::open(fs::File::open(&ready.path).unwrap()).unwrap();
    assert_eq!(reader.units().map(Result::unwrap).collect::<Vec<_>>(), rig.units);
}

#[test]
fn t8_a_value_that_no_record_can_hold_is_put_back_and_kept_in_the_list() {
    let mut rig = Rig::new("CREATE TABLE t(id INTEGER PRIMARY KEY, photo); INSERT INTO t VALUES (1, 'small'), (2, 'small')");
    rig.run("UPDATE t SET photo = zeroblob(33 << 20) WHERE id = 1; UPDATE t SET photo = 'other' WHERE id = 2; INSERT INTO t VALUES (3, zeroblob(33 << 20))");
    let report = rig.cut();
    assert_eq!((report.units.len(), report.unsendable), (1, 2));
    assert_eq!(rig.told(0), ["~t[2]photo:'small'/'small'/'other'"]);
    assert_eq!(rows(&rig, "SELECT id || photo FROM t ORDER BY id"), ["1small", "2other"]);
    assert_eq!(
        rig.count("SELECT min(length(client)) > 66 << 20 FROM dock_conflicts WHERE rule = 'too-large' AND reason LIKE '%value%'"),
        1
    );
    assert_eq!(rig.count("SELECT count(*) FROM dock_base_1"), 1, "of the row that is sent");
    // One that the list cannot keep either is not taken from its user.
    rig.run("UPDATE t SET photo = zeroblob(65 << 20) WHERE id = 1");
    assert_eq!(rig.local.cut().unwrap().unsendable, 1);
    assert_eq!(rig.count("SELECT length(photo) FROM t WHERE id = 1"), 65 << 20);
    assert_eq!(rig.count("SELECT count(*) FROM dock_conflicts WHERE reason LIKE '%would be lost%verify%'"), 1);
}

#[test]
fn r31_a_row_that_was_pruned_is_not_brought_back_by_a_unit_that_changed_it_before() {
    let rig = Rig::new(CODES);
    for table in ["t", "kid"] {
        rig.rules(table, "upload", &MergeRules::default());
    }
    rig.run("UPDATE t SET v = 11 WHERE id = 1");
    rig.local.cut().unwrap();
    rig.run("DELETE FROM t WHERE id IN (1, 2)");
    assert_eq!(rig.local.cut().unwrap().units, []);
    let base = rig.count("SELECT id FROM dock_capture WHERE table_name = 't'");
    assert_eq!(rows(&rig, &format!("SELECT c1 || ' ' || present FROM dock_base_{base}")), ["1 0"]);
    assert_eq!(rig.count("SELECT count(*) FROM dock_pending"), 1, "what was changed is sent all the same");
}

#[test]
fn t8_memory_of_a_cut_grows_by_few_bytes_for_each_row() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let rows = number("DOCK_CUT_ROWS").unwrap_or(60_000);
    let rig = Rig::new(&format!(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT NOT NULL, v);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) INSERT INTO t SELECT i, printf('name %d', i), 0 FROM n"
    ));
    rig.run("UPDATE t SET v = 1");
    let began = std::time::Instant::now();
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_remote-sync"));
    let child = program.args(["pending", rig.path.to_str().unwrap()]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let watched = crate::memory::watch(child.id());
    assert!(child.wait_with_output().unwrap().status.success());
    let peak = watched.join().unwrap();
    println!("a cut of {rows} rows: {} MiB at most, {:.1} s", peak >> 10, began.elapsed().as_secs_f64());
    assert_eq!(rig.count("SELECT changes FROM dock_unit"), rows.cast_signed());
    assert!(peak < (64 << 10) + rows / 4, "{peak} KiB");
}
