//! Each rule of capture, cut and upload files by itself.

use super::Rig;
use dockmaster::base::disk::Disk;
use dockmaster::base::ids::{ContentHash, FileNo, Incarnation, UnitNo};
use dockmaster::client::folder::ClientFolder;
use dockmaster::client::outbox::Outbox;
use dockmaster::dx::upload_reader::UploadReader;
use dockmaster::model::merge_rules::{ConflictPolicy, DeletePolicy, MergeRules};
use dockmaster::model::value::Value;
use dockmaster::store::local::LocalDatabase;
use rusqlite::config::DbConfig;
use std::fs;

const CUSTOMERS: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE UNIQUE, v);
    INSERT INTO t VALUES (1, 'a', 10), (2, 'b', 20), (3, 'c', 30);
    CREATE TABLE kid(id INTEGER PRIMARY KEY, t INT REFERENCES t(id) ON DELETE CASCADE ON UPDATE CASCADE); INSERT INTO kid VALUES (7, 1);";

#[test]
fn r1_mi8_nested_triggers_older_and_newer_end_in_the_row_as_it_is() {
    let mut rig =
        Rig::new(&format!("{CUSTOMERS} CREATE TRIGGER old_one AFTER INSERT ON t BEGIN UPDATE t SET v = 'old' WHERE id = NEW.id; END;"));
    rig.run("CREATE TRIGGER new_one AFTER INSERT ON t BEGIN UPDATE t SET v = v || ' new' WHERE id = NEW.id; END;");
    rig.run("INSERT INTO t(name) VALUES ('x'); INSERT INTO t VALUES (9, 'y', 1)");
    rig.cut();
    let rows = rig.told(0);
    assert_eq!(rows.iter().filter(|row| row.starts_with('+')).count(), 2, "{rows:?}");
    // Ours stand behind the newer one again.
    let newest: String = rig
        .app
        .query_row("SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 't' ORDER BY rowid DESC", [], |row| row.get(0))
        .unwrap();
    assert!(newest.starts_with("dock_"), "{newest}");
    rig.app
        .execute_batch("CREATE TEMP TRIGGER fleeting AFTER INSERT ON main.t BEGIN UPDATE t SET v = 'temp' WHERE id = NEW.id; END")
        .unwrap();
    rig.run("INSERT INTO t(name) VALUES ('z')");
    rig.cut();
    assert_eq!(rig.told(rig.units.len() - 1), ["+t(10,'z','old new')"].map(|text| text.replace("old new", &temp(&rig))));
}

fn temp(rig: &Rig) -> String {
    rig.app.query_row("SELECT v FROM t WHERE name = 'z'", [], |row| row.get(0)).unwrap()
}

#[test]
fn r2_a_row_that_replace_removes_without_a_trigger_is_deleted() {
    let mut rig = Rig::new(CUSTOMERS);
    rig.run("INSERT OR REPLACE INTO t VALUES (9, 'A', 90)");
    rig.cut();
    assert_eq!(rig.told(0), ["-t[1](1,'a',10)", "-kid[7](7,1)", "+t(9,'A',90)"]);
    rig.run("UPDATE OR REPLACE t SET name = 'B' WHERE id = 3");
    rig.cut();
    assert_eq!(rig.told(1), ["-t[2](2,'b',20)", "~t[3]name:'c'/'c'/'B'"]);
}

#[test]
fn r3_deleted_and_inserted_is_updated_and_a_changed_key_is_one_update() {
    let mut rig = Rig::new(CUSTOMERS);
    rig.app.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
    rig.run("INSERT OR REPLACE INTO t VALUES (1, 'a', 11); DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (2, 'b', 20)");
    rig.cut();
    assert_eq!(rig.told(0), ["~t[1]v:10/10/11"]);
    rig.run("INSERT INTO t VALUES (5, 'e', 1); DELETE FROM t WHERE id = 5; UPDATE t SET id = 30, v = 'moved' WHERE id = 3");
    rig.cut();
    assert_eq!(rig.told(1), ["~t[3]id:3/3/30 v:30/30/'moved'"]);
    // The next unit names it by its new key; what the server has is still the row that it was.
    rig.run("UPDATE t SET v = 'again' WHERE id = 30");
    rig.cut();
    assert_eq!(rig.told(2), ["~t[30]v:'moved'/30/'again'"]);
    rig.run("DELETE FROM t WHERE id = 30");
    rig.cut();
    assert_eq!(rig.told(3), ["-t[30](30,'c','again') base(3,'c',30)"]);
}

#[test]
fn r4_no_outer_clause_reaches_what_our_triggers_write() {
    for clause in ["REPLACE", "IGNORE", "FAIL", "ABORT", "ROLLBACK"] {
        let mut rig = Rig::new(CUSTOMERS);
        rig.run("UPDATE t SET v = 'first' WHERE id = 1");
        rig.run(&format!("UPDATE OR {clause} t SET v = v || '!' WHERE id = 1; INSERT OR {clause} INTO t VALUES (4, 'd', 40)"));
        rig.cut();
        assert_eq!(rig.told(0), ["~t[1]v:10/10/'first!'", "+t(4,'d',40)"], "{clause}");
    }
}

#[test]
fn r5_changes_of_case_blanks_and_type_alone_are_changes() {
    let mut rig = Rig::new(
        "CREATE TABLE t(k TEXT COLLATE NOCASE PRIMARY KEY, r TEXT COLLATE RTRIM, u) WITHOUT ROWID; INSERT INTO t VALUES ('smith', 'x', 1)",
    );
    rig.run("UPDATE t SET k = 'Smith', r = 'x ', u = 1.0");
    rig.cut();
    assert_eq!(rig.told(0), ["~t['smith']k:'smith'/'smith'/'Smith' r:'x'/'x'/'x ' u:1/1/1.0"]);
    rig.run("DELETE FROM t; INSERT INTO t VALUES ('SMITH', 'x ', 1.0)");
    rig.cut();
    assert_eq!(rig.told(1), ["~t['Smith']k:'Smith'/'smith'/'SMITH'"]);
}

#[test]
fn r16_mi51_units_are_numbered_in_order_and_keep_their_numbers_in_a_new_stream() {
    let mut rig = Rig::new(CUSTOMERS);
    for id in 1..=3 {
        rig.run(&format!("UPDATE t SET v = 'x' WHERE id = {id}"));
        rig.cut();
    }
    assert_eq!(rig.units.iter().map(|unit| unit.head.number.0).collect::<Vec<_>>(), [1, 2, 3]);
    rig.app.execute("UPDATE dock_state SET install_id = ?1", ["cd".repeat(16)]).unwrap();
    let outbox = outbox(&rig);
    assert_eq!(outbox.next(FileNo(0)).unwrap().unwrap().units, 3);
    outbox.stored(FileNo(1)).unwrap();
    assert_eq!(rig.count("SELECT count(*) FROM dock_unit WHERE state = 'sent' AND file_no = 1"), 3);
    rig.local.begin_anew(Incarnation(2)).unwrap();
    assert_eq!(rig.count("SELECT count(*) FROM dock_unit WHERE state = 'pending' AND file_no IS NULL"), 3);
    let again = outbox.next(FileNo(0)).unwrap().unwrap();
    let header = UploadReader::open(fs::File::open(&again.path).unwrap()).unwrap().header().clone();
    assert_eq!((header.incarnation, header.file_no, header.first.0, header.last.0), (Incarnation(2), FileNo(1), 1, 3));
    assert_eq!(rig.local.next_unit().unwrap(), UnitNo(4));
}

#[test]
fn r22_marks_make_units_and_hints_that_leave_a_border_open_join_them() {
    let mut rig = Rig::new(CUSTOMERS);
    let marked = |label: &str, sql: &str| {
        format!("BEGIN; INSERT INTO dock_txn_mark VALUES ('{label}'); {sql}; INSERT INTO dock_txn_mark VALUES ('{label}'); COMMIT;")
    };
    rig.run(&format!(
        "UPDATE t SET v = 1 WHERE id = 1; {} {} UPDATE t SET v = 5 WHERE id = 1; INSERT INTO dock_txn_mark VALUES ('alone'); UPDATE t SET v = 6 WHERE id = 2",
        marked("order 17", "UPDATE t SET v = 2 WHERE id = 1; UPDATE t SET v = 3 WHERE id = 1"),
        marked("order 18", "DELETE FROM t WHERE id = 3")
    ));
    let report = rig.cut();
    assert_eq!(report.units.len(), 4);
    assert_eq!(
        rig.units.iter().map(|unit| unit.head.label.as_deref()).collect::<Vec<_>>(),
        [None, Some("order 17"), Some("order 18"), None]
    );
    assert_eq!(rig.told(0), ["~t[1]v:10/10/1", "~t[1]v:1/10/3", "-t[3](3,'c',30)", "~t[1]v:3/10/5", "~t[2]v:20/20/6"]);
    assert_eq!(rig.count("SELECT count(*) FROM dock_txn_mark"), 0);
    // Row 2 may be gone at the border or not: the log alone does not tell.
    rig.run(&format!("{} {}", marked("a", "INSERT OR IGNORE INTO t VALUES (8, 'b', 0)"), marked("b", "UPDATE t SET v = 7 WHERE id = 2")));
    assert_eq!(rig.cut().units.len(), 1);
    assert_eq!(rig.units.last().unwrap().head.label.as_deref(), Some("a, b"));
}

#[test]
fn r29_before_is_what_was_shown_and_a_value_that_came_back_alone_is_no_change() {
    let mut rig = Rig::new(CUSTOMERS);
    rig.rules("t", "two-way", &MergeRules { columns: [("v".to_owned(), ConflictPolicy::Sum)].into(), ..MergeRules::default() });
    rig.run("UPDATE t SET v = 12 WHERE id = 1");
    rig.cut();
    // The server's value moved meanwhile, and the row was computed anew: 20 + 2.
    let table = rig.count("SELECT id FROM dock_capture WHERE table_name = 't'");
    rig.app.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).unwrap();
    rig.run(&format!("UPDATE dock_base_{table} SET c3 = 20; UPDATE t SET v = 22 WHERE id = 1"));
    rig.app.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true).unwrap();
    rig.run("UPDATE t SET v = 23 WHERE id = 1");
    rig.local.cut().unwrap();
    let unit = rig.local.pending_unit(UnitNo(2)).unwrap().unwrap();
    let (heading, change) = &unit.changes[0];
    assert_eq!(super::tell(&heading.columns, "t", change), "~t[1]v:22/20/23");
    let mut rig = Rig::new(CUSTOMERS);
    rig.run("UPDATE t SET v = 0; UPDATE t SET v = id * 10");
    assert_eq!(rig.cut().units, []);
    assert_eq!(rig.count("SELECT (SELECT count(*) FROM dock_base_1) + (SELECT count(*) FROM dock_base_2)"), 0, "no entry stays behind");
}

/// What a sum comes to is stored by the column's affinity: a whole real as an integer. So it was no change (and would be told as a conflict).
#[test]
fn r29_a_sum_over_a_real_that_becomes_whole_is_no_change_of_a_later_unit() {
    let mut rig = Rig::new("CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, v INTEGER); INSERT INTO t VALUES (1, 0, 2.5)");
    rig.rules("t", "two-way", &MergeRules { columns: [("v".to_owned(), ConflictPolicy::Sum)].into(), ..MergeRules::default() });
    rig.run("UPDATE t SET v = 26 WHERE id = 1");
    rig.cut();
    rig.run("UPDATE t SET n = 1 WHERE id = 1");
    rig.local.cut().unwrap();
    let unit = rig.local.pending_unit(UnitNo(2)).unwrap().unwrap();
    let (heading, change) = &unit.changes[0];
    assert_eq!(super::tell(&heading.columns, "t", change), "~t[1]n:0/0/1");
}

/// Against SQLite itself, for every kind of declared type.
#[test]
fn r35_numbers_are_stored_as_the_column_would_store_them() {
    let types =
        ["", "INTEGER", "INT", "BIGINT", "REAL", "DOUBLE", "FLOAT", "FLOATING POINT", "NUMERIC", "DECIMAL(8,2)", "BOOLEAN", "DATE", "BLOB"];
    let numbers = [0.0, 1.0, -1.0, 2.5, 1e15, 9.007199254740992e15, 9.2e18, 9.3e18, i64::MIN as f64, 1e300, 0.1];
    let values = numbers.map(Value::Real).into_iter().chain([0, 7, -3, i64::MAX, i64::MIN].map(Value::Integer));
    let connection = rusqlite::Connection::open_in_memory().unwrap();
    let columns: Vec<String> = types.iter().enumerate().map(|(place, declared)| format!("c{place} {declared}")).collect();
    connection.execute_batch(&format!("CREATE TABLE t({})", columns.join(", "))).unwrap();
    for value in values {
        for (place, declared) in types.iter().enumerate() {
            let bound = match value {
                Value::Integer(number) => rusqlite::types::Value::Integer(number),
                Value::Real(number) => rusqlite::types::Value::Real(number),
                _ => unreachable!(),
            };
            connection.execute("DELETE FROM t", []).unwrap();
            connection.execute(&format!("INSERT INTO t(c{place}) VALUES (?1)"), [bound]).unwrap();
            let stored =
                connection.query_row(&format!("SELECT c{place} FROM t"), [], |row| row.get::<_, rusqlite::types::Value>(0)).unwrap();
            let stored = match stored {
                rusqlite::types::Value::Integer(number) => Value::Integer(number),
                rusqlite::types::Value::Real(number) => Value::Real(number),
                other => panic!("{other:?}"),
            };
            let column = dockmaster::model::schema::ColumnShape {
                name: format!("c{place}"),
                decl_type: (*declared).to_owned(),
                not_null: false,
                has_default: false,
                generated: false,
                collation: "BINARY".to_owned(),
            };
            assert_eq!(column.as_stored(value.clone()), stored, "{value:?} in `{declared}`");
        }
    }
}

#[test]
fn r31_upload_tables_are_pruned_on_the_node_alone() {
    let rig = Rig::new(CUSTOMERS);
    rig.rules("kid", "upload", &MergeRules::default());
    rig.run("DELETE FROM kid WHERE id = 7; INSERT INTO kid VALUES (8, 2)");
    rig.local.cut().unwrap();
    let unit = rig.local.pending_unit(UnitNo(1)).unwrap().unwrap();
    assert_eq!(unit.changes.len(), 1);
    assert!(matches!(unit.changes[0].1, dockmaster::model::upload::RowChange::Insert { .. }));
    // One that the server does not have yet is taken back.
    rig.run("DELETE FROM kid WHERE id = 8");
    rig.local.cut().unwrap();
    assert_eq!(rig.local.pending_unit(UnitNo(2)).unwrap().unwrap().changes.len(), 1);
    assert_eq!(rig.local.cut().unwrap().units, []);
}

#[test]
fn r11_what_only_the_server_changes_is_put_back_and_listed() {
    let mut rig = Rig::new(CUSTOMERS);
    rig.rules("kid", "download", &MergeRules::default());
    let rules = MergeRules { download_only: vec!["V".to_owned()], delete: DeletePolicy::Resurrect, ..MergeRules::default() };
    rig.rules("t", "two-way", &rules);
    rig.run(
        "DELETE FROM kid; INSERT INTO kid VALUES (9, 1); UPDATE t SET name = 'z', v = 'mine' WHERE id = 1; UPDATE t SET v = 0 WHERE id = 2",
    );
    let report = rig.cut();
    assert_eq!((report.units.len(), report.put_back), (1, 4));
    assert_eq!(rig.told(0), ["~t[1]name:'a'/'a'/'z' whole(1,'z',10)"]);
    let mut statement = rig
        .app
        .prepare("SELECT table_name || row_key || ifnull(column_name, '') || ' ' || ifnull(server, '-') || ' ' || ifnull(client, '-') FROM dock_conflicts WHERE rule = 'download-only' ORDER BY 1")
        .unwrap();
    let listed: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert_eq!(listed, ["kid7 {\"id\":7,\"t\":1} -", "kid9 - {\"id\":9,\"t\":1}", "t1v 10 \"mine\"", "t2v 20 0"]);
}

#[test]
fn mi9_a_row_without_a_key_is_listed_and_stops_nothing() {
    let mut rig = Rig::new("CREATE TABLE t(k TEXT PRIMARY KEY, v); INSERT INTO t VALUES ('a', 1)");
    rig.run("INSERT INTO t VALUES (NULL, 2), ('b', 3); UPDATE t SET k = NULL WHERE k = 'a'");
    let report = rig.cut();
    assert_eq!((report.units.len(), report.unsendable), (1, 2));
    assert_eq!(rig.count("SELECT count(*) FROM dock_conflicts WHERE rule = 'null-key' AND reason LIKE '%give it a key%'"), 2);
    rig.run("UPDATE t SET k = 'c' WHERE v = 2");
    rig.cut();
    assert_eq!(rig.told(1), ["+t('c',2)"]);
}

#[test]
fn f44_what_is_applied_is_not_captured() {
    let rig = Rig::new(CUSTOMERS);
    let other = LocalDatabase::open(&rig.path).unwrap();
    let transaction = other.begin().unwrap();
    let heading =
        dockmaster::model::event::TableHeading { name: "t".into(), columns: vec!["id".into(), "name".into(), "v".into()], key: vec![0] };
    let put = dockmaster::model::operation::Operation::Put { row: vec![1.into(), "server".into(), 1.into()] };
    transaction.apply_unit(dockmaster::base::ids::TxnId(8), &[(&heading, &put)]).unwrap();
    let state = transaction.state().clone();
    transaction
        .commit(&dockmaster::store::local::Watermark {
            file: state.applied_file,
            chain_hash: state.chain_hash,
            unit: dockmaster::base::ids::TxnId(8),
            revision: state.revision,
        })
        .unwrap();
    assert_eq!(rig.count("SELECT v FROM t WHERE id = 1"), 1);
    assert_eq!(
        rig.count("SELECT (SELECT count(*) FROM dock_txn_log) + (SELECT count(*) FROM dock_base_1) + (SELECT count(*) FROM dock_base_2)"),
        0
    );
    assert_eq!(rig.local.cut().unwrap().units, []);
}

#[test]
fn doe11_mi19_changes_made_without_any_program_of_ours_are_cut_later_missing_triggers_come_back() {
    let mut rig = Rig::new(CUSTOMERS);
    rig.run("INSERT INTO t(name) VALUES ('new'); UPDATE t SET v = 0 WHERE id = 1; DELETE FROM t WHERE id = 2");
    rig.local = LocalDatabase::open(&rig.path).unwrap();
    rig.cut();
    assert_eq!(rig.told(0), ["+t(4,'new',NULL)", "~t[1]v:10/10/0", "-t[2](2,'b',20)"]);
    rig.run("DROP TRIGGER dock_u_2; DROP TRIGGER dock_bi_2; ALTER TABLE t ADD COLUMN own TEXT DEFAULT 'mine'");
    rig.local.cut().unwrap();
    rig.run("UPDATE t SET own = 'yours', v = 1 WHERE id = 3; UPDATE t SET own = 'only mine' WHERE id = 1");
    rig.local.cut().unwrap();
    let unit = rig.local.pending_unit(UnitNo(2)).unwrap().unwrap();
    assert_eq!(unit.changes.len(), 1, "{unit:?}");
    assert_eq!(unit.changes[0].0.columns, ["id", "name", "v"], "a column that a program added is its own");
    assert_eq!(rig.count("SELECT count(*) FROM dock_capture"), 2);
    assert_eq!(rig.local.pending_counts().unwrap().units(), 2);
}

pub(super) fn outbox(rig: &Rig) -> Outbox {
    let folder = ClientFolder::of(&rig.path);
    drop(folder.lock().unwrap());
    Outbox::open(&folder, &Disk::new()).unwrap()
}

#[test]
fn r16_upload_files_hold_whole_units_in_order_and_are_made_again_when_they_are_lost() {
    let mut rig = Rig::new(CUSTOMERS);
    rig.app.execute("UPDATE dock_state SET install_id = ?1", ["cd".repeat(16)]).unwrap();
    for id in 1..=3 {
        rig.run(&format!("UPDATE t SET v = printf('%.*c', 600, 'x') WHERE id = {id}"));
        rig.cut();
    }
    let outbox = outbox(&rig).with_bytes_goal(1_500);
    let first = outbox.next(FileNo(0)).unwrap().unwrap();
    let second = outbox.next(FileNo(1)).unwrap().unwrap();
    assert_eq!((first.units, second.units), (2, 1));
    assert_eq!(outbox.next(FileNo(2)).unwrap(), None);
    let mut reader = UploadReader::open(fs::File::open(&second.path).unwrap()).unwrap();
    assert_eq!(reader.header().previous, first.written.content_hash);
    let units: Vec<_> = reader.units().map(Result::unwrap).collect();
    assert_eq!(units, rig.units[2..]);
    // Lost, cut short, damaged: made again, the same.
    let whole = fs::read(&first.path).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    for spoilt in [None, Some(b"short".to_vec()), Some(damaged)] {
        fs::remove_file(&first.path).unwrap();
        if let Some(bytes) = spoilt {
            fs::write(&first.path, bytes).unwrap();
        }
        assert_eq!(outbox.next(FileNo(0)).unwrap().unwrap().written, first.written);
        assert_eq!(fs::read(&first.path).unwrap(), whole);
    }
    // The server has both, then only the first again, then knows of more than we do.
    let hash = |file: u64| rig.local.upload(FileNo(file)).unwrap().unwrap().content_hash;
    assert_eq!(outbox.agree(&super::restored::known(2, hash(2), 3)).unwrap(), None);
    assert_eq!(outbox.next(FileNo(2)).unwrap(), None);
    assert!(outbox.agree(&super::restored::known(1, hash(1), 2)).unwrap().unwrap().contains("restored"));
    assert_eq!(outbox.next(FileNo(1)).unwrap().unwrap().row.first, UnitNo(3));
    assert!(outbox.agree(&super::restored::known(5, ContentHash([5; 32]), 9)).unwrap().is_some());
    assert_eq!(rig.local.next_unit().unwrap(), UnitNo(10));
    let next = outbox.next(FileNo(5)).unwrap().unwrap();
    assert_eq!((next.row.file, next.row.first), (FileNo(6), UnitNo(1)));
    let header = UploadReader::open(fs::File::open(&next.path).unwrap()).unwrap().header().clone();
    assert_eq!(header.previous, ContentHash([5; 32]));
}
