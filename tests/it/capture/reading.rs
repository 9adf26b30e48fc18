//! Reading units: marks (R13, R14), lost logs, stopped tables (R6, R38, B12), snapshots and purge.

use super::{Rig, nonce};
use dockmaster::base::ids::TxnId;
use dockmaster::model::value::Value;
use dockmaster::store::control::Control;
use dockmaster::store::log::ReadOptions;
use dockmaster::store::sqlite::{ServerDatabase, StoreError};

const TWO: &str = "CREATE TABLE a(id INTEGER PRIMARY KEY, v); CREATE TABLE b(id INTEGER PRIMARY KEY, v);";

#[test]
fn r13_the_mark_of_the_last_reading_or_the_one_before_must_be_there() {
    let mut rig = Rig::new(TWO);
    rig.run("INSERT INTO a VALUES (1, 1)");
    let read = |rig: &Rig, known| rig.db.read_unit(&ReadOptions { after: rig.after, known: Some(nonce(known)) });
    let error = read(&rig, 1).unwrap_err();
    assert!(matches!(error, StoreError::NotTheSameDatabase { found: None, .. }), "{error}");
    rig.db.write_tail(rig.after, nonce(1), None).unwrap();
    rig.db.write_tail(rig.after, nonce(2), Some(nonce(1))).unwrap();
    // Killed between the tail and the data store: the data store still has the mark before.
    assert!(read(&rig, 1).unwrap().is_some());
    assert!(read(&rig, 2).unwrap().is_some());
    rig.db.write_tail(rig.after, nonce(3), Some(nonce(2))).unwrap();
    let message = read(&rig, 1).unwrap_err().to_string();
    for part in [nonce(1), nonce(2), nonce(3)] {
        assert!(message.contains(&part.to_string()), "{message}");
    }
    let tail = rig.db.tail().unwrap().unwrap();
    assert_eq!((tail.nonce, tail.previous), (nonce(3), Some(nonce(2))));
    rig.sync("r13");
}

#[test]
fn r13_the_tail_is_a_commit_of_its_own_in_wal_mode() {
    let rig = Rig::new(TWO);
    let mode: String = rig.app.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
    // Our own commit appends to the WAL, and a full-sync commit of the WAL makes all before it durable.
    let wal = rig.path.with_extension("db-wal");
    let before = std::fs::metadata(&wal).unwrap().len();
    rig.db.write_tail(rig.after, nonce(1), None).unwrap();
    let after = std::fs::metadata(&wal).unwrap().len();
    assert!(after > before, "the tail wrote nothing");
}

#[test]
fn r14_a_restored_database_is_not_the_one_that_was_read_last() {
    let mut rig = Rig::new(TWO);
    rig.run("INSERT INTO a VALUES (1, 1)");
    let unit = rig.sync("before").unwrap();
    rig.db.write_tail(unit.upto, nonce(1), None).unwrap();
    let backup = rig.path.with_extension("backup");
    rig.run(&format!("VACUUM INTO '{}'", backup.display()));
    for (mark, id) in [(2, 2), (3, 3)] {
        rig.run(&format!("INSERT INTO a VALUES ({id}, 1)"));
        let unit = rig.sync("lost").unwrap();
        rig.db.write_tail(unit.upto, nonce(mark), Some(nonce(mark - 1))).unwrap();
    }
    // More is written to the restored one than was lost, so its log is longer than the position.
    let restored = ServerDatabase::open(&backup).unwrap();
    let app = rusqlite::Connection::open(&backup).unwrap();
    app.execute_batch("INSERT INTO a VALUES (10, 1), (11, 1), (12, 1), (13, 1), (14, 1)").unwrap();
    assert!(restored.log_end().unwrap() > rig.after);
    let error = restored.read_unit(&ReadOptions { after: rig.after, known: Some(nonce(3)) }).unwrap_err();
    assert!(matches!(error, StoreError::NotTheSameDatabase { .. }), "{error}");
}

#[test]
fn a_truncated_reset_or_holed_log_is_refused() {
    let mut rig = Rig::new(TWO);
    rig.run("INSERT INTO a VALUES (1, 1), (2, 1), (3, 1)");
    rig.sync("before");
    let after = rig.after;
    rig.run("DELETE FROM dock_txn_log; UPDATE sqlite_sequence SET seq = 0 WHERE name = 'dock_txn_log'; INSERT INTO a VALUES (4, 1)");
    let error = rig.db.read_unit(&ReadOptions { after, known: None }).unwrap_err();
    assert!(matches!(error, StoreError::LogReset { .. }), "{error}");
    let mut rig = Rig::new(TWO);
    rig.run("INSERT INTO a VALUES (1, 1), (2, 1), (3, 1); DELETE FROM dock_txn_log WHERE id = (SELECT max(id) - 1 FROM dock_txn_log)");
    let error = rig.db.read_unit(&ReadOptions { after: rig.after, known: None }).unwrap_err();
    assert!(matches!(error, StoreError::LogGap { found: 2, .. }), "{error}");
    rig.after = rig.db.log_end().unwrap();
}

#[test]
fn r6_a_rebuilt_table_stops_by_name_and_the_others_go_on() {
    let mut rig = Rig::new(TWO);
    rig.run("INSERT INTO a VALUES (1, 1); INSERT INTO b VALUES (1, 1)");
    rig.sync("before");
    rig.run(
        "CREATE TABLE a_new(id INTEGER PRIMARY KEY, v); INSERT INTO a_new SELECT * FROM a; DROP TABLE a; ALTER TABLE a_new RENAME TO a;",
    );
    rig.run("INSERT INTO a VALUES (2, 2); INSERT INTO b VALUES (2, 2)");
    let unit = rig.read().unwrap();
    assert_eq!(unit.changes.len(), 1);
    assert_eq!(unit.changes[0].table, "b");
    assert_eq!(unit.stopped.len(), 1);
    assert!(unit.stopped[0].0 == "a" && unit.stopped[0].1.contains("dock_d_1"), "{:?}", unit.stopped);
    assert_eq!(rig.db.stopped_tables().unwrap(), unit.stopped);
    // Deployed anew it goes on; what was missed is named, for whoever compares.
    let installed = rig.install();
    assert_eq!(installed.interrupted, ["a"]);
    assert_eq!(rig.db.stopped_tables().unwrap(), []);
    rig.read();
    rig.shadow = rig.truth();
    rig.run("UPDATE a SET v = 3");
    assert_eq!(rig.sync("deployed anew").unwrap().stopped, []);
}

#[test]
fn a_dropped_or_edited_trigger_stops_its_table() {
    for name in ["dock_i_1", "dock_u_1", "dock_d_1", "dock_hi_1", "dock_hu_1"] {
        let mut rig = Rig::new(TWO);
        rig.run(&format!("DROP TRIGGER {name}; INSERT INTO b VALUES (1, 1)"));
        let unit = rig.sync(name).unwrap();
        assert!(unit.stopped.len() == 1 && unit.stopped[0].1.contains(name), "{:?}", unit.stopped);
        rig.run(&format!("CREATE TRIGGER {name} AFTER INSERT ON a BEGIN SELECT 1; END; INSERT INTO b VALUES (2, 1)"));
        let unit = rig.sync(name).unwrap();
        assert!(unit.stopped[0].1.contains("was changed"), "{:?}", unit.stopped);
    }
}

#[test]
fn b12_a_changed_shape_stops_with_the_column_named_and_old_log_rows_are_still_read() {
    let mut rig = Rig::new("CREATE TABLE a(id INTEGER PRIMARY KEY, v, w); CREATE TABLE b(id INTEGER PRIMARY KEY, v);");
    for (ddl, named) in [
        ("ALTER TABLE a ADD COLUMN extra TEXT DEFAULT 'x'", "`extra` was added"),
        ("ALTER TABLE a RENAME COLUMN w TO width", "`w` is gone"),
        ("CREATE UNIQUE INDEX au ON a(v)", "unique indexes"),
    ] {
        // Log rows of the old shape wait while the shape changes.
        rig.run(&format!("DELETE FROM a; INSERT INTO a(id, v) VALUES (1, 'old'), (2, 'older'); {ddl}; INSERT INTO a(id, v) VALUES (3, 'new'); INSERT INTO b(v) VALUES (1)"));
        let unit = rig.db.read_unit(&ReadOptions { after: rig.after, known: None }).unwrap().unwrap();
        assert!(unit.stopped.len() == 1 && unit.stopped[0].1.contains(named), "{ddl}: {:?}", unit.stopped);
        assert!(unit.changes.iter().all(|change| change.table == "b"));
        rig.dock = super::dock_of(&rig.db.schema().unwrap());
        let installed = rig.install();
        assert_eq!(installed.interrupted, Vec::<String>::new());
        rig.run("UPDATE a SET v = v || '!' WHERE id = 2");
        rig.shadow.clear();
        rig.shadow.insert("b".into(), rig.truth()["b"].clone());
        let unit = rig.sync(ddl).unwrap();
        assert_eq!(unit.stopped, []);
        assert!(unit.controls.iter().any(|control| matches!(control, Control::Definition { .. })));
    }
    // A captured column cannot be dropped from under the triggers: SQLite says which one needs it, and nothing happens.
    let message = rig.app.execute_batch("ALTER TABLE a DROP COLUMN extra").unwrap_err().to_string();
    assert!(message.contains("dock_"), "{message}");
    rig.run("INSERT INTO a(id) VALUES (50)");
    rig.sync("after a refused DROP COLUMN");
    rig.run("ALTER TABLE a RENAME TO c; INSERT INTO b(v) VALUES (9)");
    let unit = rig.db.read_unit(&ReadOptions { after: rig.after, known: None }).unwrap().unwrap();
    assert_eq!(unit.stopped, [("a".to_owned(), "the table is gone".to_owned())]);
}

#[test]
fn r38_a_null_key_stops_its_table_and_never_the_users_statement() {
    for (number, write) in [
        "INSERT INTO k VALUES (NULL, 1)",
        "UPDATE k SET k = NULL WHERE k = 'a'",
        "INSERT INTO k VALUES (NULL, 1), (NULL, 2)",
        "INSERT OR REPLACE INTO k VALUES (NULL, 1)",
    ]
    .into_iter()
    .enumerate()
    {
        let mut rig =
            Rig::new("CREATE TABLE k(k TEXT PRIMARY KEY, v); CREATE TABLE b(id INTEGER PRIMARY KEY); INSERT INTO k VALUES ('a', 1)");
        rig.run(&format!("{write}; INSERT INTO b VALUES ({number})"));
        let unit = rig.read().unwrap();
        assert!(unit.stopped.len() == 1 && unit.stopped[0].0 == "k" && unit.stopped[0].1.contains("NULL"), "{write}: {:?}", unit.stopped);
        assert!(unit.changes.iter().all(|change| change.table == "b") && unit.changes.len() == 1);
        // It stays stopped although nothing new says so, also for another reader.
        rig.run("INSERT INTO k VALUES ('c', 1); INSERT INTO b VALUES (99)");
        let unit = rig.read().unwrap();
        assert_eq!((unit.stopped.len(), unit.changes.len()), (1, 1));
        assert_eq!(ServerDatabase::open(&rig.path).unwrap().stopped_tables().unwrap().len(), 1);
        let message = rig.try_install().unwrap_err().to_string();
        assert!(message.contains("table k") && message.contains("NULL"), "{message}");
        rig.run("DELETE FROM k WHERE k IS NULL");
        assert_eq!(rig.install().interrupted, ["k"]);
        rig.run("INSERT INTO k VALUES ('d', 1)");
        let unit = rig.read().unwrap();
        assert_eq!(unit.stopped, []);
        assert!(unit.is_compared("k") && rig.shadow["k"].contains_key(&vec![Value::text("d")]));
    }
}

#[test]
fn r1_a_newer_trigger_that_can_end_the_statement_stops_its_table_until_ours_are_first_again() {
    let mut rig = Rig::new(TWO);
    rig.run(
        "CREATE TRIGGER ending AFTER INSERT ON a BEGIN SELECT RAISE(IGNORE); END; INSERT INTO a VALUES (1, 1); INSERT INTO b VALUES (1, 1)",
    );
    let unit = rig.read().unwrap();
    assert!(unit.stopped.len() == 1 && unit.stopped[0].1.contains("`ending`"), "{:?}", unit.stopped);
    let revision = rig.install().revision;
    rig.shadow = rig.truth();
    rig.run("INSERT INTO a VALUES (2, 1)");
    assert_eq!(rig.sync("ours fire first").unwrap().stopped, []);
    assert_eq!(rig.install().revision, revision);
}

/// R4, R6: a newer trigger that breaks a constraint ends a statement under `OR FAIL`, and the row stays without a log row.
#[test]
fn r4_r6_what_a_failing_newer_trigger_kept_from_the_log_is_found_by_the_comparison() {
    let mut rig = Rig::new("CREATE TABLE a(k INTEGER PRIMARY KEY, u UNIQUE); INSERT INTO a VALUES (1, '2!')");
    rig.run("CREATE TRIGGER mark AFTER INSERT ON a BEGIN UPDATE a SET u = u || '!' WHERE k = NEW.k; END");
    let before = rig.after;
    assert!(rig.app.execute_batch("INSERT OR FAIL INTO a VALUES (2, '2')").is_err());
    assert!(rig.truth()["a"].contains_key(&vec![Value::Integer(2)]), "SQLite keeps the row");
    assert_eq!(rig.log_ops(before), "H", "only that the row 1 may have been replaced");
    assert!(rig.db.stopped_tables().unwrap()[0].1.contains("`mark`"));
    rig.install();
    let unit = rig.sync("compared").unwrap();
    assert!(unit.is_compared("a"), "{unit:?}");
    // Ours fire first now, and the same is logged.
    rig.run("UPDATE a SET u = '3!' WHERE k = 1");
    assert!(rig.app.execute_batch("INSERT OR FAIL INTO a VALUES (3, '3')").is_err());
    assert!(rig.sync("logged").unwrap().changes.iter().any(|change| change.key == [Value::Integer(3)] && change.row.is_some()));
}

#[test]
fn a_snapshot_is_one_moment_whatever_is_written_meanwhile() {
    let rig = Rig::new(TWO);
    rig.run("INSERT INTO a VALUES (1, 1)");
    let end = rig.db.log_end().unwrap();
    let (seen, rows): (TxnId, u64) = rig
        .db
        .snapshot::<_, StoreError>(|snapshot| {
            rig.run("INSERT INTO a VALUES (2, 2)");
            let mut last = Vec::new();
            let rows = snapshot.scan::<StoreError>("a", &["v".into(), "id".into()], |row| {
                last = row;
                Ok(())
            })?;
            assert_eq!(last, [Value::Integer(1), Value::Integer(1)]);
            assert_eq!(snapshot.schema()?.tables.len(), 2);
            Ok((snapshot.log_end()?, rows))
        })
        .unwrap();
    assert_eq!((seen, rows), (end, 1));
    assert!(rig.db.log_end().unwrap() > end);
}

#[test]
fn h1_purge_keeps_what_was_not_read_and_the_last_rows_asked_for() {
    let mut rig = Rig::new(TWO);
    rig.run("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12000) INSERT INTO a SELECT i, i FROM n");
    assert_eq!(rig.db.purge_log(TxnId(9), 0).unwrap(), 0, "nothing was read yet");
    let unit = rig.sync("bulk").unwrap();
    rig.db.write_tail(unit.upto, nonce(1), None).unwrap();
    rig.run("INSERT INTO b VALUES (1, 1)");
    assert_eq!(rig.db.purge_log(TxnId(i64::MAX), 10).unwrap(), unit.upto.0 as u64 - 10);
    assert_eq!(rig.sync("what was not read").unwrap().changes.len(), 1);
}
