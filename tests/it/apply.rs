//! Files of a node applied to a real local database (E1, E2, E3, E5, E9, R10, R17, R37, faults 12 to 18, T12).

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "a test fails by panicking, and says what it measured")]

use crate::node_kit::{ALL_STAGED, Kit, START, Units, both_ways, open, rows, text};
use dockmaster::base::ids::{Epoch, FileNo, Incarnation, ServerId, TxnId};
use dockmaster::base::step::Progress;
use dockmaster::client::apply::{ApplyFolders, Held, step};
use dockmaster::dx::header::DxDirection;
use dockmaster::model::operation::Operation;
use dockmaster::model::value::Value;
use dockmaster::store::local::LocalDatabase;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const UNIT: i64 = START + 1;

/// One table with two rows, of which tests send changes.
fn simple() -> Kit {
    let kit = Kit::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT, w INT DEFAULT 9); INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2);",
        &[("t", &[])],
    );
    kit.extract_all();
    kit
}

fn all(kit: &Kit) -> String {
    text(&kit.app(), "SELECT * FROM t ORDER BY 1")
}

#[test]
fn e1_puts_updates_and_deletes_meet_rows_that_are_there_or_not() {
    both_ways(way_e1_puts_updates_and_deletes_meet_rows_that_are_there_or_not);
}

fn way_e1_puts_updates_and_deletes_meet_rows_that_are_there_or_not() {
    let mut kit = simple();
    kit.send(vec![(
        UNIT,
        vec![
            kit.put("t", [1.into(), "new".into(), 5.into()]),
            kit.put("t", [3.into(), "three".into(), Value::Null]),
            kit.delete("t", [2.into()]),
            kit.delete("t", [77.into()]),
        ],
    )]);
    kit.send(vec![(UNIT + 1, vec![kit.update("t", [3.into()], &[("w", 8.into())])])]);
    let report = kit.apply();
    assert_eq!((report.files, report.units, report.rows, report.progress()), (2, 2, 5, Progress::Worked));
    assert_eq!((report.applied_file, report.applied_unit), (FileNo(2), TxnId(UNIT + 1)));
    assert_eq!(all(&kit), "1|'new'|5 3|'three'|8");
    assert_eq!(kit.inbox(), Vec::<String>::new());
    assert_eq!(kit.apply().progress(), Progress::Idle);

    // A change of a row that is not there is named and stops the node; the units before it stay, the file too.
    kit.send(vec![
        (UNIT + 2, vec![kit.update("t", [1.into()], &[("v", "kept".into())])]),
        (UNIT + 3, vec![kit.delete("t", [3.into()]), kit.update("t", [4.into()], &[("v", "x".into())])]),
    ]);
    let reason = kit.apply_stops();
    for part in ["file 00000003", "unit 104", "table t", "key 4", "not in the local database", "dockmaster extract ANNA"] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    assert_eq!(all(&kit), "1|'kept'|5 3|'three'|8", "unit 103 whole, unit 104 not at all");
    assert_eq!(kit.inbox(), ["00000003.dx"]);
    // A person brings the row back as the server's, so that it is no change of this node: it goes on by itself.
    let app = kit.app();
    app.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).unwrap();
    app.execute_batch("INSERT INTO t VALUES (4, 'back', 0)").unwrap();
    let report = kit.apply();
    assert_eq!((report.stopped, report.units, report.applied_file), (None, 1, FileNo(3)));
    assert_eq!(all(&kit), "1|'kept'|5 4|'x'|0");
    assert_eq!(text(&kit.app(), "SELECT state, reason FROM dock_status"), "'ok'|NULL");
}

#[test]
fn e1_a_put_changes_only_the_columns_that_are_sent() {
    both_ways(way_e1_a_put_changes_only_the_columns_that_are_sent);
}

fn way_e1_a_put_changes_only_the_columns_that_are_sent() {
    let mut kit = Kit::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT, w INT DEFAULT 9, g AS (v || '!') STORED); INSERT INTO t VALUES (1, 'a', 1);",
        &[("t", &[])],
    );
    kit.extract_all();
    // A program added a column of its own, and one column is not sent.
    kit.app().execute_batch("ALTER TABLE t ADD COLUMN own TEXT; UPDATE t SET own = 'mine'").unwrap();
    let (mut heading, _) = kit.put("t", []);
    heading.columns = vec!["g".into(), "V".into(), "ID".into()];
    heading.key = vec![2];
    let put = |id: i64, v: &str| (heading.clone(), Operation::Put { row: vec!["ignored".into(), v.into(), id.into()] });
    kit.send(vec![(UNIT, vec![put(1, "b"), put(2, "c")])]);
    assert_eq!(kit.apply().stopped, None);
    assert_eq!(text(&kit.app(), "SELECT id, v, w, g, own FROM t ORDER BY 1"), "1|'b'|1|'b!'|'mine' 2|'c'|9|'c!'|NULL");
}

#[test]
fn e2_cyclic_foreign_keys_in_any_order_and_applications_keep_their_enforcement() {
    both_ways(way_e2_cyclic_foreign_keys_in_any_order_and_applications_keep_their_enforcement);
}

fn way_e2_cyclic_foreign_keys_in_any_order_and_applications_keep_their_enforcement() {
    let mut kit = Kit::new(
        "CREATE TABLE a (id INTEGER PRIMARY KEY, b INT NOT NULL REFERENCES b(id)); CREATE TABLE b (id INTEGER PRIMARY KEY, a INT NOT NULL REFERENCES a(id), up INT REFERENCES b(id));",
        &[("a", &[]), ("b", &[])],
    );
    kit.extract_all();
    kit.send(vec![(
        UNIT,
        vec![
            kit.put("b", [2.into(), 1.into(), 3.into()]),
            kit.put("a", [1.into(), 2.into()]),
            kit.put("b", [3.into(), 1.into(), 2.into()]),
        ],
    )]);
    assert_eq!(kit.apply().stopped, None);
    let app = kit.app();
    app.execute_batch("PRAGMA foreign_keys = ON").unwrap();
    assert_eq!(text(&app, "PRAGMA foreign_key_check"), "");
    assert!(app.execute_batch("DELETE FROM a").is_err(), "an application's own connection enforces them as before");
    kit.send(vec![(UNIT + 1, vec![kit.delete("a", [1.into()]), kit.delete("b", [3.into()]), kit.delete("b", [2.into()])])]);
    assert_eq!(kit.apply().stopped, None);
    assert_eq!(text(&app, "SELECT (SELECT count(*) FROM a) + (SELECT count(*) FROM b)"), "0");
}

#[test]
fn r10_a_moved_child_survives_its_old_parent_and_no_trigger_fires() {
    both_ways(way_r10_a_moved_child_survives_its_old_parent_and_no_trigger_fires);
}

fn way_r10_a_moved_child_survives_its_old_parent_and_no_trigger_fires() {
    let ddl = "CREATE TABLE parent (id INTEGER PRIMARY KEY, n TEXT);
               CREATE TABLE child (id INTEGER PRIMARY KEY, p INT REFERENCES parent(id) ON DELETE CASCADE ON UPDATE CASCADE);
               INSERT INTO parent VALUES (1, 'old'), (2, 'other'); INSERT INTO child VALUES (10, 1), (11, 1);";
    let orders: [[usize; 4]; 4] = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]];
    for order in orders {
        let mut kit = Kit::new(ddl, &[("parent", &[]), ("child", &[])]);
        kit.extract_all();
        kit.app()
            .execute_batch(
                "CREATE TRIGGER t1 AFTER DELETE ON parent BEGIN DELETE FROM child; END;
                 CREATE TRIGGER t2 BEFORE UPDATE ON child BEGIN SELECT RAISE(ABORT, 'no'); END;
                 CREATE TRIGGER t3 AFTER INSERT ON parent BEGIN UPDATE parent SET n = 'spoilt'; END;",
            )
            .unwrap();
        let operations = [
            kit.delete("parent", [1.into()]),
            kit.update("child", [10.into()], &[("p", 2.into())]),
            kit.put("child", [11.into(), 3.into()]),
            kit.put("parent", [3.into(), "third".into()]),
        ];
        kit.send(vec![(UNIT, order.map(|index| operations[index].clone()).to_vec())]);
        let report = kit.apply();
        assert_eq!(report.stopped, None);
        assert_eq!(text(&kit.app(), "SELECT * FROM parent ORDER BY 1"), "2|'other' 3|'third'");
        assert_eq!(text(&kit.app(), "SELECT * FROM child ORDER BY 1"), "10|2 11|3");
    }
}

#[test]
fn e3_r37_unique_values_swap_rotate_and_move_on() {
    both_ways(way_e3_r37_unique_values_swap_rotate_and_move_on);
}

fn way_e3_r37_unique_values_swap_rotate_and_move_on() {
    let mut kit = Kit::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE UNIQUE, slot INT, live INT DEFAULT 1, own TEXT DEFAULT 'd');
         CREATE UNIQUE INDEX live_slot ON t(slot) WHERE live; CREATE UNIQUE INDEX low ON t(lower(name), live);
         INSERT INTO t (id, name, slot) VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3), (4, 'd', 4);",
        &[("t", &["own"])],
    );
    kit.extract_all();
    kit.app().execute_batch("ALTER TABLE t ADD COLUMN local TEXT; UPDATE t SET local = 'keep' || id").unwrap();
    let change = |kit: &Kit, id: i64, name: &str, slot: i64| kit.update("t", [id.into()], &[("name", name.into()), ("slot", slot.into())]);
    // a <-> b, then a cycle of three with case changes, then a value that moves on in a chain while its holder is deleted.
    kit.send(vec![(UNIT, vec![change(&kit, 1, "b", 2), change(&kit, 2, "a", 1)])]);
    kit.send(vec![(UNIT + 1, vec![change(&kit, 1, "A", 3), change(&kit, 2, "C", 2), change(&kit, 3, "B", 1)])]);
    kit.send(vec![(
        UNIT + 2,
        vec![
            kit.put("t", [5.into(), "a".into(), 3.into(), 1.into()]),
            kit.put("t", [1.into(), "c".into(), 2.into(), 1.into()]),
            change(&kit, 2, "D", 4),
            kit.delete("t", [4.into()]),
        ],
    )]);
    // Two rows share a slot as long as one is not live; the roles change.
    kit.send(vec![(UNIT + 3, vec![kit.put("t", [6.into(), "f".into(), 1.into(), 0.into()])])]);
    kit.send(vec![(
        UNIT + 4,
        vec![kit.update("t", [6.into()], &[("live", 1.into())]), kit.update("t", [3.into()], &[("live", 0.into())])],
    )]);
    let report = kit.apply();
    assert_eq!((report.stopped, report.units), (None, 5));
    assert_eq!(
        text(&kit.app(), "SELECT id, name, slot, live, local FROM t ORDER BY id"),
        "1|'c'|2|1|'keep1' 2|'D'|4|1|'keep2' 3|'B'|1|0|'keep3' 5|'a'|3|1|NULL 6|'f'|1|1|NULL"
    );
    assert_eq!(text(&kit.app(), "PRAGMA integrity_check"), "'ok'");
    // A value that some row outside of the unit holds cannot be had: named, and nothing of the unit is done.
    let before = text(&kit.app(), "SELECT * FROM t ORDER BY 1");
    kit.send(vec![(UNIT + 5, vec![change(&kit, 3, "new", 7), change(&kit, 6, "C", 8)])]);
    let reason = kit.apply_stops();
    assert!(reason.contains("table t, key 6") && reason.contains("UNIQUE constraint failed"), "{reason}");
    assert_eq!(text(&kit.app(), "SELECT * FROM t ORDER BY 1"), before);
}

#[test]
fn r37_checks_stay_respected_and_conflict_clauses_of_the_table_hide_nothing() {
    both_ways(way_r37_checks_stay_respected_and_conflict_clauses_of_the_table_hide_nothing);
}

fn way_r37_checks_stay_respected_and_conflict_clauses_of_the_table_hide_nothing() {
    let mut kit = Kit::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY ON CONFLICT IGNORE, name TEXT UNIQUE ON CONFLICT REPLACE, n INT NOT NULL ON CONFLICT REPLACE DEFAULT 3, CHECK (n < 10));
         INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3);",
        &[("t", &[])],
    );
    kit.extract_all();
    kit.send(vec![(
        UNIT,
        vec![
            kit.update("t", [1.into()], &[("name", "b".into())]),
            kit.update("t", [2.into()], &[("name", "a".into())]),
            kit.put("t", [3.into(), "cc".into(), 4.into()]),
        ],
    )]);
    assert_eq!(kit.apply().stopped, None);
    assert_eq!(all(&kit), "1|'b'|1 2|'a'|2 3|'cc'|4", "REPLACE would have eaten row 2, IGNORE the change of row 3");
    for (unit, operation, named) in [
        (UNIT + 1, kit.update("t", [1.into()], &[("n", 10.into())]), "CHECK constraint failed"),
        (UNIT + 1, kit.update("t", [1.into()], &[("n", Value::Null)]), "NOT NULL constraint failed: t.n"),
        (UNIT + 1, kit.put("t", [9.into(), "a".into(), 1.into()]), "UNIQUE constraint failed: t.name"),
        (UNIT + 1, kit.put("t", ["x".into(), "y".into(), 1.into()]), "datatype mismatch"),
    ] {
        let saved = kit.stream.clone();
        let number = kit.send(vec![(unit, vec![kit.update("t", [2.into()], &[("n", 7.into())]), operation])]);
        let reason = kit.apply_stops();
        assert!(reason.contains(named), "{reason}");
        assert_eq!(all(&kit), "1|'b'|1 2|'a'|2 3|'cc'|4");
        std::fs::remove_file(kit.folders().inbox.join(number.file_name())).unwrap();
        kit.stream = saved;
    }
}

#[test]
fn r5_keys_change_by_case_or_type_alone() {
    both_ways(way_r5_keys_change_by_case_or_type_alone);
}

fn way_r5_keys_change_by_case_or_type_alone() {
    let mut kit = Kit::new(
        "CREATE TABLE t (k TEXT PRIMARY KEY COLLATE NOCASE, v); INSERT INTO t VALUES ('Smith', 1), ('jones', 2);
         CREATE TABLE u (k PRIMARY KEY, v) WITHOUT ROWID; INSERT INTO u VALUES (1, 'int'), ('1', 'text'), (x'31', 'blob');",
        &[("t", &[]), ("u", &[])],
    );
    kit.extract_all();
    // As the server says it: delete and put; also a put alone, and in the unit that is redone for another reason.
    kit.send(vec![(
        UNIT,
        vec![kit.put("t", ["SMITH".into(), 11.into()]), kit.delete("t", ["Smith".into()]), kit.put("t", ["Jones".into(), 2.into()])],
    )]);
    kit.send(vec![(UNIT + 1, vec![kit.delete("u", [1.into()]), kit.put("u", [Value::Real(1.0), "real".into()])])]);
    kit.send(vec![(UNIT + 2, vec![kit.update("u", ["1".into()], &[("v", "t2".into())]), kit.delete("u", [Value::Blob(b"1".to_vec())])])]);
    assert_eq!(kit.apply().stopped, None);
    assert_eq!(text(&kit.app(), "SELECT * FROM t ORDER BY v"), "'Jones'|2 'SMITH'|11");
    assert_eq!(text(&kit.app(), "SELECT k, typeof(k), v FROM u ORDER BY typeof(k)"), "1.0|'real'|'real' '1'|'text'|'t2'");
    kit.send(vec![(UNIT + 3, vec![kit.put("u", [1.into(), "back".into()])])]);
    assert_eq!(kit.apply().stopped, None);
    assert_eq!(text(&kit.app(), "SELECT typeof(k), v FROM u WHERE k = 1"), "'integer'|'back'");
}

#[test]
fn r17_a_unit_in_two_frames_is_one_transaction() {
    both_ways(way_r17_a_unit_in_two_frames_is_one_transaction);
}

fn way_r17_a_unit_in_two_frames_is_one_transaction() {
    let mut kit = simple();
    let first: Units = vec![(UNIT, vec![kit.put("t", [3.into(), "x".into(), 1.into()])]), (UNIT + 2, vec![kit.delete("t", [3.into()])])];
    let second: Units =
        vec![(UNIT, vec![kit.delete("t", [1.into()])]), (UNIT + 1, vec![kit.update("t", [3.into()], &[("v", "y".into())])])];
    let (number, bytes) = kit.stream.file(&[first, second]);
    kit.place(&number.file_name(), &bytes);
    let report = kit.apply();
    assert_eq!((report.stopped, report.units, report.rows), (None, 3, 4));
    assert_eq!(all(&kit), "2|'b'|2");
}

#[test]
fn e9_a_missing_table_or_column_stops_by_name() {
    both_ways(way_e9_a_missing_table_or_column_stops_by_name);
}

fn way_e9_a_missing_table_or_column_stops_by_name() {
    for (sabotage, named) in [
        ("DROP TABLE t", "table t: it is no longer in the local database"),
        ("ALTER TABLE t DROP COLUMN w", "table t: it has no column `w`"),
        ("DROP TABLE t; CREATE VIEW t AS SELECT 1 AS id, 2 AS v, 3 AS w", "table t: it is no longer"),
        ("DROP TABLE t; CREATE TABLE t (id INT, v TEXT PRIMARY KEY, w INT)", "its primary key is (v), the file says (id)"),
    ] {
        let mut kit = simple();
        kit.send(vec![(UNIT, vec![kit.put("t", [3.into(), "c".into(), 3.into()])])]);
        kit.app().execute_batch(sabotage).unwrap();
        let reason = kit.apply_stops();
        assert!(reason.contains(named) && reason.contains("file 00000001, unit 101") && reason.contains("extract ANNA"), "{reason}");
        assert_eq!(kit.inbox(), ["00000001.dx"], "the file stays for when the table is back");
    }
    // The shape changes while statements are prepared: they are prepared anew.
    let mut kit = simple();
    let mut local = LocalDatabase::open(&kit.path("pos.db")).unwrap();
    for (unit, sql) in [(UNIT, "ALTER TABLE t ADD COLUMN z DEFAULT 'z'"), (UNIT + 1, "CREATE INDEX i ON t(v)"), (UNIT + 2, "SELECT 1")] {
        kit.send(vec![(unit, vec![kit.put("t", [unit.into(), "c".into(), 3.into()])])]);
        assert_eq!(step(&mut local, &kit.folders()).unwrap().stopped, None);
        kit.app().execute_batch(sql).unwrap();
    }
    assert_eq!(text(&kit.app(), "SELECT id, z FROM t WHERE id > 2"), "101|'z' 102|'z' 103|'z'");
}

#[test]
fn t12_names_of_the_wire_never_become_sql() {
    both_ways(way_t12_names_of_the_wire_never_become_sql);
}

fn way_t12_names_of_the_wire_never_become_sql() {
    let mut kit = simple();
    kit.app().execute_batch("CREATE TABLE own (id INTEGER PRIMARY KEY, v TEXT, w INT); CREATE VIEW look AS SELECT * FROM t").unwrap();
    let before = text(&kit.app(), "SELECT * FROM dock_state, dock_table");
    for name in [
        "x\"; DROP TABLE t; --",
        "sqlite_master",
        "sqlite_schema",
        "dock_state",
        "DOCK_TABLE",
        "dock_file",
        "own",
        "look",
        "main.t",
        "t--",
        "",
        "\0t",
        "pragma_table_info",
    ] {
        let saved = kit.stream.clone();
        let (mut heading, _) = kit.put("t", []);
        heading.name = name.to_owned();
        let row = vec![1.into(), "evil".into(), 1.into()];
        let number = kit.send(vec![(UNIT, vec![(heading, Operation::Put { row })])]);
        let report = kit.apply();
        // The format itself may refuse a name before apply sees it; either way nothing is written.
        let refused = report.stopped.map(|stopped| stopped.reason).or(report.quarantined.first().map(|one| one.reason.clone()));
        assert!(refused.is_some(), "{name}");
        std::fs::remove_file(kit.folders().inbox.join(number.file_name())).ok();
        kit.stream = saved;
        kit.apply();
    }
    for column in ["v\" = 1; --", "rowid", "nope", "w)"] {
        let saved = kit.stream.clone();
        let (mut heading, _) = kit.put("t", []);
        heading.columns[1] = column.to_owned();
        let number = kit.send(vec![(UNIT, vec![(heading, Operation::Put { row: vec![1.into(), "evil".into(), 1.into()] })])]);
        let reason = kit.apply_stops();
        assert!(reason.contains("it has no column"), "{reason}");
        std::fs::remove_file(kit.folders().inbox.join(number.file_name())).unwrap();
        kit.stream = saved;
        kit.apply();
    }
    assert_eq!(all(&kit), "1|'a'|1 2|'b'|2");
    assert_eq!(text(&kit.app(), "SELECT * FROM dock_state, dock_table"), before);
}

/// Sends `count` files of one unit each, which bring rows 101, 102, .. and delete the one before. Returns their names and bytes.
fn chain(kit: &mut Kit, count: i64) -> Vec<(String, Vec<u8>)> {
    (0..count)
        .map(|index| {
            let unit = UNIT + index;
            let mut operations = vec![kit.put("t", [unit.into(), "c".into(), index.into()])];
            if index > 0 {
                operations.push(kit.update("t", [(unit - 1).into()], &[("v", "seen".into())]));
            }
            let (number, bytes) = kit.stream.file(&[vec![(unit, operations)]]);
            (number.file_name(), bytes)
        })
        .collect()
}

#[test]
fn f12_a_repeated_file_is_dropped_and_another_one_under_its_number_is_a_fork() {
    crate::harness::plant_defect();
    let mut kit = simple();
    let other = kit.stream.clone();
    let files = chain(&mut kit, 3);
    for (name, bytes) in &files {
        kit.place(name, bytes);
    }
    kit.apply();
    let after = all(&kit);
    for (name, bytes) in files.iter().rev() {
        kit.place(name, bytes);
        kit.apply();
    }
    kit.place(&files[0].0, &files[0].1);
    let report = kit.apply();
    assert_eq!((report.dropped, report.rows, report.stopped), (vec![FileNo(1)], 0, None));
    assert_eq!(all(&kit), after);
    assert_eq!(kit.inbox(), Vec::<String>::new());

    // The same number with other content, applied before or next: the server has another history. Both are named, nothing is applied.
    let ours = std::mem::replace(&mut kit.stream, other);
    let forked = kit.send(vec![(UNIT, vec![kit.delete("t", [1.into()])])]);
    let reason = kit.apply_stops();
    assert!(reason.contains("file 00000001") && reason.contains("fork"), "{reason}");
    std::fs::remove_file(kit.folders().inbox.join(forked.file_name())).unwrap();
    kit.stream = ours;
    kit.stream.header.previous.0[0] ^= 1;
    kit.send(vec![(UNIT + 10, vec![kit.delete("t", [1.into()])])]);
    let reason = kit.apply_stops();
    assert!(reason.contains("file 00000004") && reason.contains("fork"), "{reason}");
    assert_eq!(all(&kit), after);
}

#[test]
fn f13_f14_files_out_of_order_wait_and_every_gap_is_named() {
    for seed in 0..12 {
        let mut kit = simple();
        let files = chain(&mut kit, 6);
        let mut order: Vec<usize> = (0..files.len()).collect();
        let mut random = fastrand::Rng::with_seed(seed);
        random.shuffle(&mut order);
        let mut arrived = Vec::new();
        for index in order {
            kit.place(&files[index].0, &files[index].1);
            arrived.push(index);
            let report = kit.apply();
            let reached = (0..files.len()).take_while(|index| arrived.contains(index)).count() as u64;
            assert_eq!((report.applied_file, report.applied_unit.0), (FileNo(reached), START + reached as i64));
            let waiting: Vec<FileNo> = arrived.iter().map(|index| FileNo(*index as u64 + 1)).filter(|number| number.0 > reached).collect();
            match report.held {
                None => assert_eq!(waiting, Vec::new()),
                Some(Held { missing_first, missing_last, waiting: held }) => {
                    let first = waiting.iter().min().unwrap();
                    assert_eq!((missing_first.0, missing_last.0), (reached + 1, first.0 - 1), "seed {seed}");
                    assert_eq!(held.len(), waiting.len());
                }
            }
        }
        assert_eq!(text(&kit.app(), "SELECT count(*), sum(v = 'seen') FROM t WHERE id > 100"), "6|5");
    }
}

#[test]
fn f15_a_truncated_file_is_never_applied_and_is_fetched_again() {
    let mut kit = simple();
    let (name, bytes) = chain(&mut kit, 1).remove(0);
    for length in 0..bytes.len() {
        kit.place(&name, &bytes[..length]);
        let report = kit.apply();
        assert_eq!(report.quarantined.len(), 1, "{length} of {}", bytes.len());
        assert_eq!((report.quarantined[0].fetch_again, report.rows, report.applied_file), (Some(FileNo(1)), 0, FileNo(0)));
        clear(&kit.folders().quarantine);
    }
    kit.place(&name, &[bytes.clone(), vec![0]].concat());
    assert_eq!(kit.apply().quarantined.len(), 1);
    kit.place(&name, &bytes);
    assert_eq!(kit.apply().applied_file, FileNo(1), "the whole file goes through");
}

#[test]
fn f16_a_flipped_bit_in_any_byte_is_found() {
    let mut kit = simple();
    let (name, bytes) = chain(&mut kit, 1).remove(0);
    let mut local = LocalDatabase::open(&kit.path("pos.db")).unwrap();
    // One bit of every byte; the reader's own tests flip them all.
    for bit in (0..bytes.len()).map(|byte| byte * 8 + byte % 8) {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        kit.place(&name, &flipped);
        let report = step(&mut local, &kit.folders()).unwrap();
        assert_eq!((report.quarantined.len(), report.rows, report.stopped), (1, 0, None), "bit {bit}");
        clear(&kit.folders().quarantine);
    }
    assert_eq!(all(&kit), "1|'a'|1 2|'b'|2");
    // The very same damage twice: fetching again does not help, a person is told.
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    kit.place(&name, &flipped);
    assert_eq!(kit.apply().quarantined[0].fetch_again, Some(FileNo(1)));
    assert_eq!(kit.quarantine(), ["00000001.dx", "00000001.dx.reason"]);
    kit.place(&name, &flipped);
    assert!(kit.apply_stops().contains("came twice"));
    kit.place(&name, &bytes);
    assert_eq!(kit.apply().applied_file, FileNo(1));
}

#[test]
fn f17_f18_foreign_files_and_wrong_names_are_refused_with_the_reason() {
    let kit = simple();
    let stream = kit.stream.clone();
    let units: Units = vec![(UNIT, vec![kit.delete("t", [1.into()])])];
    type Change = fn(&mut dockmaster::dx::header::Header);
    let cases: [(&str, Change); 5] = [
        ("node", |header| header.node = Some("BERT".parse().unwrap())),
        ("server", |header| header.server_id = ServerId([8; 16])),
        ("epoch", |header| header.epoch = Epoch(2)),
        ("incarnation", |header| header.incarnation = Incarnation(9)),
        ("file number", |header| header.file_no = FileNo(2)),
    ];
    for (field, change) in cases {
        let mut foreign = stream.clone();
        change(&mut foreign.header);
        let (_, bytes) = foreign.file(std::slice::from_ref(&units));
        kit.place("00000001.dx", &bytes);
        let report = kit.apply();
        assert_eq!(report.quarantined.len(), 1, "{field}");
        assert!(report.quarantined[0].reason.starts_with(field), "{field}: {}", report.quarantined[0].reason);
        assert_eq!((report.quarantined[0].fetch_again, report.rows), (Some(FileNo(1)), 0));
    }
    assert_eq!(kit.quarantine().len(), 10, "five files, each with its reason beside it");
    // A txnproc file and a name that is no number.
    let mut txnproc = stream.header.clone();
    (txnproc.direction, txnproc.node, txnproc.incarnation) = (DxDirection::Txnproc, None, Incarnation(0));
    let (bytes, _) = dockmaster::dx::writer::TxnprocFile::assemble(&txnproc, &[], 3).unwrap();
    kit.place("00000001.dx", &bytes);
    let (_, good) = stream.clone().file(std::slice::from_ref(&units));
    kit.place("1.dx", &good);
    kit.place("00000001.dx.part", &good);
    let report = kit.apply();
    let reasons: Vec<&str> = report.quarantined.iter().map(|one| one.reason.as_str()).collect();
    assert_eq!(reasons, ["its name is not a file number", "direction is txnproc, expected download"]);
    assert_eq!(kit.inbox(), ["00000001.dx.part"], "what is being received is left alone");
    assert_eq!(all(&kit), "1|'a'|1 2|'b'|2");
    // A link out of the folder is not followed.
    std::fs::write(kit.path("elsewhere.dx"), &good).unwrap();
    std::os::unix::fs::symlink(kit.path("elsewhere.dx"), kit.folders().inbox.join("00000001.dx")).unwrap();
    assert_eq!(kit.apply().quarantined.len(), 1);
    kit.place("00000001.dx", &good);
    assert_eq!(kit.apply().applied_file, FileNo(1));
}

fn clear(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

/// Names the folder of the child process of the next test.
const CHILD_DIR: &str = "DOCKMASTER_TEST_APPLY_DIR";
/// Set if it stages every unit.
const CHILD_STAGES: &str = "DOCKMASTER_TEST_APPLY_STAGES";

/// Not a test of its own: the process that the next test kills.
#[test]
fn e5_child_applies_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let dir = Path::new(&dir);
    let mut local = LocalDatabase::open(&dir.join("pos.db")).unwrap();
    let mut folders = ApplyFolders::below(&dir.join("pos.db.sync"));
    if std::env::var_os(CHILD_STAGES).is_some() {
        folders.limits = ALL_STAGED;
    }
    loop {
        let report = step(&mut local, &folders).unwrap();
        assert_eq!(report.stopped, None);
        if report.progress() == Progress::Idle && !report.busy {
            return;
        }
    }
}

/// Unit u brings row u, changes row u - 1 and deletes row u - 2: a unit applied twice would miss its row and stop, a unit left out as well.
#[test]
fn e5_killed_at_any_moment_every_unit_is_applied_exactly_once() {
    killed_at_any_moment(60, false);
}

/// The same with units that are staged: a stage that was cut off is thrown away.
#[test]
fn e5_f36_r23_killed_at_any_moment_every_staged_unit_is_applied_exactly_once() {
    killed_at_any_moment(4, true);
}

fn killed_at_any_moment(files: i64, staged: bool) {
    const UNITS: i64 = 150;
    let mut kit = simple();
    kit.app().execute_batch("PRAGMA journal_mode = WAL").unwrap();
    for file in 0..files {
        let mut units: Units = Vec::new();
        for index in 0..UNITS {
            let unit = UNIT + file * UNITS + index;
            let mut operations = vec![kit.put("t", [unit.into(), Value::text(&"x".repeat(200)), unit.into()])];
            if unit > UNIT {
                operations.push(kit.update("t", [(unit - 1).into()], &[("v", Value::Integer(unit))]));
            }
            if unit > UNIT + 1 {
                operations.push(kit.delete("t", [(unit - 2).into()]));
            }
            units.push((unit, operations));
        }
        kit.send(units);
    }
    let last = START + files * UNITS;
    let mut random = fastrand::Rng::new();
    let (mut kills, mut stops) = (0, std::collections::BTreeSet::new());
    loop {
        let mut command = Command::new(std::env::current_exe().unwrap());
        if staged {
            command.env(CHILD_STAGES, "1");
        }
        let mut child = command
            .args(["--exact", "apply::e5_child_applies_until_it_is_killed", "--test-threads=1"])
            .env(CHILD_DIR, kit.dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The first rounds are too short to reach the end on any machine; later ones get more time.
        std::thread::sleep(Duration::from_millis(5 + random.u64(0..12) + kills * 2));
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // At any moment the rows are those of exactly one unit, the watermark's.
        let app = kit.app();
        let unit: i64 = app.query_row("SELECT applied_unit FROM dock_state", [], |row| row.get(0)).unwrap();
        let found = text(&app, "SELECT id, v, w FROM t WHERE id > 100 ORDER BY id");
        let newest = format!("{unit}|'{}'|{unit}", "x".repeat(200));
        let expected = match unit - START {
            0 => String::new(),
            1 => newest,
            _ => format!("{}|'{unit}'|{} {newest}", unit - 1, unit - 1),
        };
        assert_eq!(found, expected, "after {kills} kills");
        stops.insert(unit);
        if let Some(status) = ended {
            assert!(status.success(), "the child failed after {kills} kills");
            break;
        }
        kills += 1;
        assert!(kills < 2_000, "no progress: unit {unit} of {last}");
    }
    assert_eq!(stops.last(), Some(&last));
    assert_eq!(kit.inbox(), Vec::<String>::new());
    assert_eq!(text(&kit.app(), "PRAGMA integrity_check"), "'ok'");
    assert!(kills >= 3 && stops.len() >= 3, "killed {kills} times at {stops:?}: too few to prove anything");
    eprintln!("e5: killed {kills} times, {} different places", stops.len());
}

#[test]
fn e6_f45_applications_read_and_write_during_a_long_apply() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let mut kit = Kit::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT, w INT); CREATE INDEX i ON t(w);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) INSERT INTO t SELECT i, 'start', -i FROM n;",
        &[("t", &[])],
    );
    kit.extract_all();
    kit.app().execute_batch("CREATE TABLE own (id INTEGER PRIMARY KEY, v TEXT)").unwrap();
    let mut random = fastrand::Rng::with_seed(6);
    let mut unit = START;
    for _ in 0..40 {
        let mut units: Units = Vec::new();
        for _ in 0..50 {
            unit += 1;
            let first = random.i64(1..19_000);
            // Every unit sets one column of twenty rows to its own number: a reader must never see a part of it.
            let change = |id: i64| kit.update("t", [id.into()], &[("v", Value::Integer(unit)), ("w", Value::Integer(unit))]);
            units.push((unit, (first..first + 20).map(change).collect()));
        }
        kit.send(units);
    }
    let done = AtomicBool::new(false);
    let path = kit.path("pos.db");
    let quantile = |times: &mut Vec<Duration>, part: f64| {
        times.sort();
        times.get(((times.len() as f64 - 1.0) * part) as usize).copied().unwrap_or_default()
    };
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let app = open(&path);
            let mut times = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let begun = std::time::Instant::now();
                app.execute("INSERT INTO own (v) VALUES ('mine')", []).unwrap();
                times.push(begun.elapsed());
                std::thread::sleep(Duration::from_millis(3));
            }
            times
        });
        let reader = scope.spawn(|| {
            let app = open(&path);
            let mut times = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let begun = std::time::Instant::now();
                // The rows of the watermark's unit are there, all of them.
                let (unit, rows): (i64, i64) = app
                    .query_row(
                        "SELECT applied_unit, (SELECT count(*) FROM t WHERE w = applied_unit) FROM dock_state WHERE applied_unit > 100",
                        [],
                        |row| Ok((row.get(0)?, row.get(1)?)),
                    )
                    .unwrap_or((START, 20));
                times.push(begun.elapsed());
                assert!(rows == 20 || unit <= START, "unit {unit} shows {rows} rows");
                std::thread::sleep(Duration::from_millis(2));
            }
            times
        });
        let mut local = LocalDatabase::open(&path).unwrap();
        let begun = std::time::Instant::now();
        let (mut rows, mut pause) = (0, Duration::ZERO);
        loop {
            let report = step(&mut local, &kit.folders()).unwrap();
            assert_eq!((report.stopped.is_none(), report.busy), (true, false));
            rows += report.rows;
            pause = pause.max(report.longest_pause);
            if report.progress() == Progress::Idle {
                break;
            }
        }
        let took = begun.elapsed();
        done.store(true, Ordering::Relaxed);
        let (mut writes, mut reads) = (writer.join().unwrap(), reader.join().unwrap());
        assert_eq!(rows, 40_000);
        assert!(writes.len() > 10 && reads.len() > 10, "{} writes, {} reads", writes.len(), reads.len());
        eprintln!(
            "e6: {rows} rows in {took:.0?}; lock held at most {pause:.1?}; {} writes p50 {:.1?} p99 {:.1?} max {:.1?}; {} reads p50 {:.1?} p99 {:.1?}",
            writes.len(),
            quantile(&mut writes, 0.5),
            quantile(&mut writes, 0.99),
            quantile(&mut writes, 1.0),
            reads.len(),
            quantile(&mut reads, 0.5),
            quantile(&mut reads, 0.99),
        );
    });
    assert_eq!(rows(&kit.app(), "SELECT applied_unit FROM dock_state"), [[Value::Integer(unit)]]);
}

#[test]
fn f45_a_lock_that_is_never_given_back_is_no_error() {
    let mut kit = simple();
    kit.send(vec![(UNIT, vec![kit.delete("t", [1.into()])])]);
    let app = kit.app();
    app.execute_batch("BEGIN IMMEDIATE").unwrap();
    let report = kit.apply();
    assert!(report.busy && report.stopped.is_none() && report.rows == 0);
    app.execute_batch("COMMIT").unwrap();
    assert_eq!(kit.apply().applied_file, FileNo(1));
}

#[test]
fn f45_two_processes_that_apply_one_inbox_do_not_disturb_each_other() {
    let mut kit = simple();
    for file in 0..40 {
        let units = (0..40)
            .map(|index| {
                let unit = UNIT + file * 40 + index;
                let mut operations = vec![kit.put("t", [unit.into(), "x".into(), unit.into()])];
                if unit > UNIT {
                    operations.push(kit.update("t", [(unit - 1).into()], &[("v", Value::Integer(unit))]));
                }
                if unit > UNIT + 1 {
                    operations.push(kit.delete("t", [(unit - 2).into()]));
                }
                (unit, operations)
            })
            .collect();
        kit.send(units);
    }
    let last = START + 1600;
    let applied: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut local = LocalDatabase::open(&kit.path("pos.db")).unwrap();
                    let mut units = 0;
                    loop {
                        let report = step(&mut local, &kit.folders()).unwrap();
                        assert_eq!((report.stopped, report.quarantined), (None, Vec::new()));
                        units += report.units;
                        if report.applied_unit.0 == last {
                            return units;
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(applied, 1600, "every unit once, by one of the three");
    assert_eq!(text(&kit.app(), "SELECT id FROM t WHERE id > 100"), format!("{} {last}", last - 1));
}

/// Random transactions on a table full of unique keys; their net changes, in any order and as puts or updates, give the same rows.
#[test]
fn e3_r37_random_net_changes_under_unique_keys_end_where_the_server_is() {
    both_ways(way_e3_r37_random_net_changes_under_unique_keys_end_where_the_server_is);
}

fn way_e3_r37_random_net_changes_under_unique_keys_end_where_the_server_is() {
    let ddl = "CREATE TABLE t (k TEXT COLLATE NOCASE, n INT, name TEXT COLLATE NOCASE UNIQUE, slot INT, live INT, PRIMARY KEY (k, n));
               CREATE UNIQUE INDEX a ON t(slot) WHERE live; CREATE UNIQUE INDEX b ON t(n, abs(slot)); CREATE INDEX c ON t(live);";
    for seed in 0..10 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut kit = Kit::new(ddl, &[("t", &[])]);
        kit.extract_all();
        let server = kit.source();
        let mut local = LocalDatabase::open(&kit.path("pos.db")).unwrap();
        let dump = "SELECT * FROM t ORDER BY k COLLATE BINARY, n";
        let mut before = rows(&server, dump);
        for unit in UNIT..UNIT + 12 {
            for _ in 0..random.i32(1..25) {
                let (k, n) = (*random.choice(["a", "A", "b", "B", "c"].iter()).unwrap(), random.i64(0..3));
                let (name, slot, live) =
                    (*random.choice(["x", "X", "y", "z", "Z", "w", "v"].iter()).unwrap(), random.i64(-4..5), random.bool());
                // What breaks a key is refused or takes the other row's place, as programs do it.
                let how = if random.bool() { "OR IGNORE" } else { "OR REPLACE" };
                match random.u8(0..3) {
                    0 => server
                        .execute(&format!("INSERT {how} INTO t VALUES (?1, ?2, ?3, ?4, ?5)"), rusqlite::params![k, n, name, slot, live]),
                    1 => server.execute(
                        &format!("UPDATE {how} t SET name = ?3, slot = ?4 WHERE k = ?1 AND n = ?2"),
                        rusqlite::params![k, n, name, slot],
                    ),
                    _ => server.execute("DELETE FROM t WHERE k = ?1 AND n = ?2 AND ?3", rusqlite::params![k, n, live]),
                }
                .unwrap();
            }
            let after = rows(&server, dump);
            let mut operations = Vec::new();
            for old in before.iter().filter(|old| !after.iter().any(|new| new[..2] == old[..2])) {
                operations.push(kit.delete("t", &old[..2]));
            }
            for new in &after {
                match before.iter().find(|old| new[..2] == old[..2]) {
                    Some(old) if old == new => {}
                    Some(old) if random.bool() => {
                        let names = ["k", "n", "name", "slot", "live"];
                        let changes: Vec<(&str, Value)> = (2..5)
                            .filter(|column| old[*column] != new[*column])
                            .map(|column| (names[column], new[column].clone()))
                            .collect();
                        operations.push(kit.update("t", &new[..2], &changes));
                    }
                    _ => operations.push(kit.put("t", new.clone())),
                }
            }
            random.shuffle(&mut operations);
            kit.send(vec![(unit, operations)]);
            let report = step(&mut local, &kit.folders()).unwrap();
            assert!(report.stopped.is_none() && !report.busy && report.files == 1, "seed {seed} unit {unit}: {report:?}");
            assert_eq!(rows(&kit.app(), dump), after, "seed {seed} unit {unit}");
            before = after;
        }
        assert_eq!(text(&kit.app(), "PRAGMA integrity_check"), "'ok'");
    }
}
