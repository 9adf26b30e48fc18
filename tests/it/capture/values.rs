//! B1 to B10: what is written with plain SQL arrives byte for byte.

use super::Rig;
use dockmaster::model::value::Value;
use dockmaster::store::sqlite::SqlValue;
use std::process::Command;

fn interesting() -> Vec<Value> {
    let text = |text: &str| Value::text(text);
    vec![
        Value::Null,
        Value::Integer(0),
        Value::Integer(i64::MIN),
        Value::Integer(i64::MAX),
        Value::Real(0.1),
        Value::Real(-0.0),
        Value::Real(1.0),
        Value::Real(f64::INFINITY),
        Value::Real(f64::NEG_INFINITY),
        Value::Real(f64::MIN_POSITIVE / 2.0),
        Value::Real(1.797_693_134_862_315_7e308),
        text(""),
        text(" "),
        text("O'Brien \"Bob\" \\ `x` ; --"),
        text("Ärger 東京 🚢 \u{0301}"),
        text("123456789012345678901234567890.123456789"),
        text("line\r\nline\ttab"),
        Value::Text(vec![0xff, 0xfe, b'a', 0xc3]),
        Value::Text(b"before\0after".to_vec()),
        Value::Blob(vec![]),
        Value::Blob(vec![0]),
        Value::Blob((0..3_000_000u32).map(|place| (place % 251) as u8).collect()),
    ]
}

#[test]
fn b1_every_value_in_every_type_arrives_byte_exact() {
    let mut rig = Rig::new(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, i INTEGER, r REAL, n NUMERIC(30,10), x TEXT COLLATE NOCASE, b BLOB, u, d DATE,
                        g AS (typeof(u) || length(x)) VIRTUAL, s AS (u) STORED);
         CREATE TABLE s(id INT PRIMARY KEY, r REAL, x TEXT, b BLOB, a ANY) STRICT;
         CREATE TABLE k(k NOT NULL PRIMARY KEY, v);",
    );
    for (id, value) in interesting().iter().enumerate() {
        let id = id as i64;
        let bound = SqlValue(value);
        rig.app.execute("INSERT INTO t(id, i, r, n, x, b, u, d) VALUES (?1, ?2, ?2, ?2, ?2, ?2, ?2, ?2)", (id, bound)).unwrap();
        rig.app.execute("INSERT INTO s(id, a) VALUES (?1, ?2)", (id, bound)).unwrap();
        if !value.is_null() && *value != Value::Real(-0.0) {
            rig.app.execute("INSERT OR REPLACE INTO k(k, v) VALUES (?1, ?1)", [bound]).unwrap();
        }
        rig.sync(&format!("insert of {}", value.type_name()));
        assert_eq!(rig.shadow["t"][&vec![Value::Integer(id)]][6], *value, "an untyped column keeps the value itself");
    }
    // Every value to every other: type-only and case-only edits among them.
    for (id, value) in interesting().iter().rev().enumerate() {
        rig.app.execute("UPDATE t SET u = ?2, x = ?2, n = ?2 WHERE id = ?1", (id as i64, SqlValue(value))).unwrap();
        rig.sync("update");
        assert_eq!(rig.shadow["t"][&vec![Value::Integer(id as i64)]][6], *value);
    }
    rig.run("DELETE FROM t WHERE id % 2; DELETE FROM k WHERE typeof(k) = 'blob'");
    rig.sync("delete");
}

#[test]
fn r5_edits_of_case_blanks_and_type_only_are_changes() {
    let mut rig = Rig::new(
        "CREATE TABLE t(k TEXT COLLATE NOCASE NOT NULL PRIMARY KEY, n COLLATE NOCASE, r COLLATE RTRIM, u);
         INSERT INTO t VALUES ('smith', 'smith', 'a', 1);",
    );
    for edit in ["n = 'Smith'", "r = 'a  '", "u = 1.0", "u = '1'", "u = x'31'", "k = 'Smith'", "k = 'SMITH', n = 'SMITH'"] {
        rig.run(&format!("UPDATE t SET {edit}"));
        assert!(rig.sync(edit).is_some(), "{edit} was not noticed");
    }
    let unit = {
        rig.run("UPDATE t SET k = 'smith'");
        rig.sync("back").unwrap()
    };
    let keys: Vec<_> = unit.changes.iter().map(|change| (change.key[0].clone(), change.row.is_some())).collect();
    assert_eq!(keys, [(Value::text("SMITH"), false), (Value::text("smith"), true)], "the other spelling is another row");
}

#[test]
fn b2_b3_key_changes_touch_both_keys_and_no_op_updates_do_no_harm() {
    let mut rig =
        Rig::new("CREATE TABLE t(a INT NOT NULL, b TEXT NOT NULL, v, PRIMARY KEY(b, a)); INSERT INTO t VALUES (1, 'x', 0), (2, 'x', 0);");
    rig.run("UPDATE t SET a = 3 WHERE a = 1; UPDATE t SET a = a + 10, b = 'y'; UPDATE t SET a = 1 WHERE a = 13");
    let unit = rig.sync("keys").unwrap();
    assert!(unit.changes.iter().any(|change| change.key == [Value::text("x"), Value::Integer(2)] && change.row.is_none()));
    rig.run("UPDATE t SET v = v; UPDATE t SET a = a");
    let before = rig.shadow.clone();
    rig.sync("no-op");
    assert_eq!(rig.shadow, before);
    rig.run("UPDATE t SET v = 1 WHERE a = 99");
    assert!(rig.read().is_none(), "an update of no row is no unit");
}

#[test]
fn b4_a_table_without_a_key_is_refused_by_name() {
    let mut rig = Rig::new("CREATE TABLE t(id INTEGER PRIMARY KEY); CREATE TABLE nokey(a, b UNIQUE)");
    let mut table = rig.dock.tables[0].clone();
    table.name = "nokey".into();
    table.columns[0].name = "a".into();
    rig.dock.tables.push(table);
    let message = rig.try_install().unwrap_err().to_string();
    assert!(message.contains("nokey") && message.contains("no primary key"), "{message}");
}

#[test]
fn b5_reserved_quoted_and_case_sensitive_names() {
    let mut rig = Rig::new(
        "CREATE TABLE \"select\"(\"order\" INTEGER PRIMARY KEY, \"a\"\"b\" TEXT UNIQUE, \"c d\", [e'f], \"n\", \"OLD\", \"new\");
         CREATE TABLE \"Größe; DROP\"(\"ROWID\" TEXT NOT NULL PRIMARY KEY, \"_rowid_\", \"oid\" UNIQUE);
         CREATE TABLE n(n TEXT NOT NULL PRIMARY KEY, dock_txn_log);",
    );
    rig.run(
        "INSERT INTO \"SELECT\" VALUES (1, 'a', 'b', 'c', 1, 2, 3); UPDATE \"select\" SET \"NEW\" = 9, \"order\" = 5;
         INSERT OR REPLACE INTO \"select\" VALUES (2, 'a', 1, 2, 3, 4, 5);
         INSERT INTO \"Größe; DROP\" VALUES ('k', 1, 2); INSERT OR REPLACE INTO \"Größe; DROP\" VALUES ('m', 1, 2);
         INSERT INTO n VALUES ('n', 'x'); UPDATE n SET n = 'm'; DELETE FROM n;",
    );
    rig.sync("names");
}

#[test]
fn b6_b8_savepoints_and_rolled_back_transactions_leave_nothing_and_no_gap() {
    let mut rig = Rig::new("CREATE TABLE t(id INTEGER PRIMARY KEY, v UNIQUE)");
    let before = rig.db.log_end().unwrap();
    rig.run("BEGIN; INSERT INTO t VALUES (1, 'a'); SAVEPOINT s; INSERT INTO t VALUES (2, 'b'); UPDATE t SET v = 'z'||id; ROLLBACK TO s; INSERT INTO t VALUES (3, 'c'); COMMIT");
    assert_eq!(rig.log_ops(before), "II");
    rig.sync("savepoint");
    rig.run(
        "BEGIN; INSERT INTO t SELECT value, value FROM generate_series(10, 99); ROLLBACK"
            .replace("generate_series(10, 99)", "json_each('[10,11,12]')")
            .as_str(),
    );
    assert!(rig.read().is_none());
    rig.run("INSERT INTO t VALUES (20, 'd')");
    let unit = rig.sync("after a rollback").unwrap();
    assert_eq!(unit.upto.0, before.0 + 3, "no id was lost to the rolled-back transaction");
    assert_eq!(unit.changes.len(), 1);
}

#[test]
fn b8_ids_are_not_given_again_after_or_fail_and_a_purge() {
    // OR FAIL keeps its log rows but not the sequence: the ids hang on the rows alone until the tail is written.
    let mut rig = Rig::new("CREATE TABLE t(id INTEGER PRIMARY KEY, v UNIQUE); INSERT INTO t VALUES (1, 'a')");
    assert!(rig.app.execute_batch("INSERT OR FAIL INTO t VALUES (2, 'b'), (3, 'c'), (4, 'a')").is_err());
    let unit = rig.sync("or fail").unwrap();
    rig.db.write_tail(unit.upto, super::nonce(1), None).unwrap();
    assert!(rig.db.purge_log(unit.upto, 0).unwrap() > 0);
    assert_eq!(rig.db.log_end().unwrap(), unit.upto);
    rig.run("INSERT INTO t VALUES (9, 'z')");
    let next = rig.sync("after the purge").unwrap();
    assert!(next.upto > unit.upto);
    assert_eq!(next.changes.len(), 1);
}

#[test]
fn b10_delete_without_where_and_bulk_loads_are_logged_row_by_row() {
    let mut rig = Rig::new("CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    rig.run("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) INSERT INTO t SELECT i, i FROM n");
    assert_eq!(rig.sync("bulk").unwrap().changes.len(), 3000);
    rig.run("DELETE FROM t");
    let unit = rig.sync("delete all").unwrap();
    assert_eq!(unit.changes.len(), 3000);
    assert!(unit.changes.iter().all(|change| change.row.is_none()));
}

#[test]
fn b6_plain_sql_from_the_sqlite_program_of_the_system() {
    let Ok(version) = Command::new("sqlite3").arg("--version").output() else {
        assert!(std::env::var_os("CI").is_none(), "the `sqlite3` program is missing");
        eprintln!("SKIPPED: no `sqlite3` program here");
        return;
    };
    assert!(version.status.success());
    for keys in ["OFF", "ON"] {
        let mut rig = Rig::new(
            "CREATE TABLE p(id INTEGER PRIMARY KEY, email TEXT COLLATE NOCASE UNIQUE, a, g AS (upper(email)) UNIQUE);
             CREATE UNIQUE INDEX pa ON p(lower(a)) WHERE a IS NOT NULL;
             CREATE TABLE c(k TEXT NOT NULL PRIMARY KEY, p REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE) WITHOUT ROWID;
             CREATE TRIGGER stamp AFTER INSERT ON p BEGIN UPDATE p SET a = 'stamp' || id WHERE id = NEW.id; END;",
        );
        let script = format!(
            "PRAGMA foreign_keys={keys};
             INSERT INTO p(email, a) VALUES ('x@y', 'A'), ('é', 'B'); INSERT INTO c VALUES ('one', 1), ('two', 2), ('three', 1);
             INSERT OR REPLACE INTO p(id, email) VALUES (9, 'X@Y'); UPDATE OR REPLACE p SET email = 'é' WHERE id = 9;
             INSERT INTO p(id, email) VALUES (9, 'q') ON CONFLICT DO UPDATE SET email = 'up', id = 12;
             BEGIN; DELETE FROM c; ROLLBACK; UPDATE p SET id = 77 WHERE id = 12; DELETE FROM p WHERE id = 2;"
        );
        let output = Command::new("sqlite3").arg("-bail").arg(&rig.path).arg(&script).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(rig.sync(&format!("sqlite3, foreign keys {keys}")).is_some());
        assert!(!rig.shadow["p"].is_empty());
        assert_eq!(rig.shadow["c"].len(), if keys == "ON" { 0 } else { 3 });
    }
}
