//! Extracts made from a real data store and opened as the local databases that they are (A2, A3, B1).

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "a test fails by panicking, and says what it measured")]

use crate::node_kit::{Kit, START, names, open, rows, text};
use dockmaster::base::ids::Incarnation;
use dockmaster::model::toc::{Toc, extract_file_name, toc_file_name};
use dockmaster::model::value::Value;
use dockmaster::server::extract::ExtractError;
use dockmaster::store::local::{LocalDatabase, LocalError};
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicBool, Ordering};

const SHOP: &str = "
    CREATE TABLE customer (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL COLLATE NOCASE UNIQUE, secret TEXT NOT NULL DEFAULT 'x',
        rating INT CHECK (rating BETWEEN 0 AND 5), CHECK (length(secret) > 0));
    CREATE TABLE \"Order Details\" (\"Order\" INT, [Product] TEXT, qty REAL DEFAULT 1, twice AS (qty * 2) STORED,
        customer INT REFERENCES customer(id) ON DELETE CASCADE, depot INT REFERENCES depot(id), PRIMARY KEY (\"Order\", [Product])) WITHOUT ROWID;
    CREATE TABLE depot (id INTEGER PRIMARY KEY, place TEXT);
    CREATE TABLE note (k TEXT PRIMARY KEY COLLATE NOCASE, body ANY) STRICT;
    CREATE INDEX by_rating ON customer(rating DESC) WHERE rating > 1;
    CREATE INDEX by_secret ON customer(secret);
    CREATE VIEW good AS SELECT id, name FROM customer WHERE rating > 3;
    CREATE VIEW better AS SELECT * FROM good;
    CREATE VIEW secrets AS SELECT id, \"secret\" FROM customer;
    CREATE VIEW of_secrets AS SELECT * FROM secrets;
    CREATE VIEW places AS SELECT place FROM depot;
    CREATE TRIGGER t1 AFTER INSERT ON customer BEGIN DELETE FROM note; END;
    INSERT INTO customer (id, name, secret, rating) VALUES (1, 'Anna', 's1', 5), (2, 'bob', 's2', 1), (7, 'Carl', 's3', NULL), (90, 'Dora', 's4', 4);
    INSERT INTO depot VALUES (1, 'Ulm');
    INSERT INTO \"Order Details\" (\"Order\", [Product], qty, customer, depot) VALUES (1, 'a', 2, 1, 1), (1, 'B', 2.5, 7, NULL), (2, 'a', NULL, 90, 1);
    INSERT INTO note VALUES ('Key', 1), ('other', '1'), ('third', x'00ff');
";
const SHOP_TABLES: &[(&str, &[&str])] = &[("customer", &["secret"]), ("Order Details", &[]), ("note", &[])];

fn visible(table: &str) -> String {
    match table {
        "customer" => "id < 90".to_owned(),
        "Order Details" => "customer < 90".to_owned(),
        _ => "1".to_owned(),
    }
}

#[test]
fn a2_an_extract_is_exactly_the_visible_rows_with_the_servers_own_definitions() {
    let kit = Kit::new(SHOP, SHOP_TABLES);
    let toc = kit.extract(visible);
    let (local, source) = (kit.app(), kit.source());
    for (columns, table, condition) in [
        ("id, name, rating", "customer", "id < 90"),
        ("\"Order\", Product, qty, twice, customer, depot", "\"Order Details\"", "customer < 90"),
        ("k, body", "note", "1"),
    ] {
        let expected = rows(&source, &format!("SELECT {columns} FROM {table} WHERE {condition} ORDER BY 1, 2"));
        assert!(!expected.is_empty());
        assert_eq!(rows(&local, &format!("SELECT * FROM {table} ORDER BY 1, 2")), expected, "{table}");
    }
    let counts: Vec<(&str, u64)> = toc.tables.iter().map(|table| (table.name.as_str(), table.rows)).collect();
    assert_eq!(counts, [("Order Details", 2), ("customer", 3), ("note", 3)]);
    assert_eq!(toc.rows, 8);

    // No trace of what was omitted or is not visible: not a name, not a value, in any page of the file.
    let bytes = std::fs::read(kit.path("pos.db")).unwrap();
    for trace in ["secret", "s1", "s4", "Dora", "Ulm", "depot(id)", "t1"] {
        assert!(!bytes.windows(trace.len()).any(|part| part == trace.as_bytes()), "{trace}");
    }
    // Definitions: cut, not built anew; the indexes and views that can be had.
    assert_eq!(
        text(&local, "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' AND name NOT LIKE 'dock_%' ORDER BY name"),
        "'Order Details' 'better' 'by_rating' 'customer' 'good' 'note'"
    );
    let sql = text(&local, "SELECT sql FROM sqlite_master WHERE name = 'Order Details'");
    assert!(sql.contains("customer INT REFERENCES customer(id) ON DELETE CASCADE, depot INT , PRIMARY KEY"), "{sql}");
    assert!(sql.contains("WITHOUT ROWID"), "{sql}");
    assert_eq!(text(&local, "SELECT * FROM better"), "1|'Anna'");
    assert!(toc.left_out.iter().any(|line| line.contains("by_secret")) && toc.left_out.iter().any(|line| line.contains("view places")));

    // A new row of an application gets an id above those that are there, and the constraints hold.
    assert_eq!(text(&local, "SELECT seq FROM sqlite_sequence WHERE name = 'customer'"), "7");
    local.execute_batch("INSERT INTO customer (name) VALUES ('Emil')").unwrap();
    assert_eq!(text(&local, "SELECT max(id) FROM customer"), "8");
    for bad in [
        "INSERT INTO customer (name) VALUES ('ANNA')",
        "INSERT INTO customer (name, rating) VALUES ('x', 6)",
        "INSERT INTO customer (name) VALUES (NULL)",
        "INSERT INTO note VALUES ('KEY', 1)",
    ] {
        assert!(local.execute_batch(bad).is_err(), "{bad}");
    }
    assert_eq!(text(&local, "PRAGMA integrity_check"), "'ok'");
    assert_eq!(text(&local, "PRAGMA journal_mode"), "'wal'");
}

#[test]
fn a2_the_state_and_the_table_of_contents_name_the_same_place() {
    let kit = Kit::new(SHOP, SHOP_TABLES);
    let toc = kit.extract(visible);
    let outbox = kit.root.outbox(&kit.node);
    assert_eq!(names(&outbox), ["extract-00000001.db.zst", "extract-00000001.toc"]);
    assert_eq!(names(&kit.root.tmp(&kit.node)), Vec::<String>::new());
    let packed = std::fs::read(outbox.join("extract-00000001.db.zst")).unwrap();
    assert_eq!(toc.sha256.0, <[u8; 32]>::from(Sha256::digest(&packed)));
    let read: Toc = serde_json::from_slice(&std::fs::read(outbox.join("extract-00000001.toc")).unwrap()).unwrap();
    assert_eq!(read, toc);
    let state = LocalDatabase::open(&kit.path("pos.db")).unwrap().state().unwrap();
    assert_eq!(
        (state.server_id, state.epoch, state.node, state.incarnation, state.applied_unit, state.revision),
        (toc.server_id, toc.epoch, toc.node, toc.incarnation, toc.unit, toc.revision)
    );
    assert_eq!((state.applied_file.0, state.applied_unit.0, state.install_id), (0, START, None));
    assert_eq!(text(&kit.app(), "SELECT node, state FROM dock_status"), "'ANNA'|'ok'");
}

#[test]
fn a2_a_new_extract_takes_the_place_of_older_ones_and_never_replaces_its_own() {
    let kit = Kit::new(SHOP, SHOP_TABLES);
    kit.extract(visible);
    let outbox = kit.root.outbox(&kit.node);
    // What a crash before the table of contents leaves.
    std::fs::write(outbox.join(extract_file_name(Incarnation(2))), b"half").unwrap();
    std::fs::write(kit.root.tmp(&kit.node).join("extract-00000002.db"), b"half").unwrap();
    std::fs::write(outbox.join("00000001.dx"), b"a file of the stream").unwrap();
    let cds = kit.cds();
    cds.execute_batch("BEGIN").unwrap();
    kit.mark_visible(&cds, visible);
    let toc = kit.build(&cds, 2, START + 5).unwrap();
    kit.unpack(&toc);
    assert_eq!(names(&outbox), ["00000001.dx".to_owned(), extract_file_name(Incarnation(2)), toc_file_name(Incarnation(2))]);
    assert_eq!(names(&kit.root.tmp(&kit.node)), Vec::<String>::new());
    assert!(matches!(kit.build(&cds, 2, START + 6), Err(ExtractError::Exists { .. })));
    kit.unpack(&toc);
}

#[test]
fn a2_a_failed_extract_names_the_table_and_leaves_nothing_behind() {
    let kit = Kit::new("CREATE TABLE t (id INTEGER PRIMARY KEY, a INT CHECK (a < 9)); INSERT INTO t VALUES (1, 2);", &[("t", &[])]);
    let cds = kit.cds();
    cds.execute_batch("UPDATE d0 SET c1 = 10; BEGIN").unwrap();
    kit.mark_visible(&cds, |_| "1".to_owned());
    let error = kit.build(&cds, 1, START).unwrap_err();
    let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    let texts = chain.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    assert!(texts.contains("ANNA") && texts.contains("table t") && texts.contains("CHECK constraint failed"), "{texts}");
    assert_eq!(names(&kit.root.outbox(&kit.node)), Vec::<String>::new());
    assert_eq!(names(&kit.root.tmp(&kit.node)), Vec::<String>::new());
}

#[test]
fn a2_generated_columns_are_computed_at_the_node_or_go_with_what_they_are_computed_from() {
    let mut kit = Kit::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a INT, b INT, g INT AS (a + 1), h INT AS (\"g\" + 1) STORED, k INT AS (b * 2), CHECK (h > 0));
         CREATE INDEX i ON t(h); CREATE INDEX j ON t(k); INSERT INTO t (id, a, b) VALUES (1, 2, 3);",
        &[("t", &["a"])],
    );
    let toc = kit.extract_all();
    assert_eq!(text(&kit.app(), "SELECT * FROM t"), "1|3|6");
    assert_eq!(text(&kit.app(), "SELECT name FROM sqlite_master WHERE tbl_name = 't' ORDER BY 1"), "'j' 't'");
    for line in ["t.g: generated from a", "t.h: generated from g", "t: CHECK that needs h", "t: index i"] {
        assert!(toc.left_out.iter().any(|found| found.starts_with(line)), "{line}: {:?}", toc.left_out);
    }
    kit.send(vec![(START + 1, vec![kit.put("t", [2.into(), 5.into()])])]);
    assert_eq!(kit.apply().stopped, None);
    assert_eq!(text(&kit.app(), "SELECT * FROM t"), "1|3|6 2|5|10");
}

/// Every value in every kind of column: the server has stored it, so the extract must store the same type and bytes.
#[test]
fn b1_values_of_all_types_are_the_same_in_the_extract_and_after_apply() {
    let types = ["INTEGER", "REAL", "TEXT", "BLOB", "NUMERIC", "", "VARCHAR(10)", "DECIMAL(10,2)", "DATE", "BOOLEAN", "DOUBLE PRECISION"];
    let columns: Vec<String> = types.iter().enumerate().map(|(index, of)| format!("v{index} {of}")).collect();
    let values = [
        "NULL",
        "''",
        "' '",
        "'it''s \"q\" \\ back'",
        "'größe 😀'",
        "CAST(x'610062' AS TEXT)",
        "CAST(x'fffe00c3' AS TEXT)",
        "0",
        "-1",
        "9223372036854775807",
        "-9223372036854775808",
        "1.0",
        "-0.0",
        "0.1",
        "1e300",
        "9e999",
        "-9e999",
        "4.9e-324",
        "9007199254740993",
        "'9007199254740993'",
        "'12345678901234567890123456789.123456789'",
        "'0x10'",
        "'1e5'",
        "' 12 '",
        "'12abc'",
        "'1.0'",
        "x''",
        "x'00'",
        "x'ff'",
        "randomblob(3000000)",
        "'2026-02-29'",
        "TRUE",
        "CAST('5' AS BLOB)",
        "'NaN'",
        "'inf'",
    ];
    let mut ddl = format!("CREATE TABLE t (id INTEGER PRIMARY KEY, {});", columns.join(", "));
    ddl.push_str("CREATE TABLE s (id INTEGER PRIMARY KEY, a ANY, i INT, r REAL, x TEXT, b BLOB) STRICT;");
    for (row, value) in values.iter().enumerate() {
        ddl.push_str(&format!("INSERT INTO t VALUES ({row}, {});", vec![*value; types.len()].join(", ")));
        ddl.push_str(&format!("INSERT INTO s VALUES ({row}, {value}, {row}, {row}, 'x', x'01');"));
    }
    let mut kit = Kit::new(&ddl, &[("t", &[]), ("s", &[])]);
    kit.extract_all();
    let (source, local) = (kit.source(), kit.app());
    for table in ["t", "s"] {
        let expected = rows(&source, &format!("SELECT * FROM {table} ORDER BY id"));
        assert_eq!(expected.len(), values.len());
        assert_eq!(rows(&local, &format!("SELECT * FROM {table} ORDER BY id")), expected, "extract of {table}");
    }
    // The same values once more as downloaded rows and as downloaded changes.
    local.execute_batch("DELETE FROM t; DELETE FROM s").unwrap();
    let mut operations = Vec::new();
    for row in rows(&source, "SELECT * FROM t ORDER BY id") {
        operations.push(kit.put("t", row));
    }
    for row in rows(&source, "SELECT * FROM s ORDER BY id") {
        operations.push(kit.put("s", [row[0].clone(), Value::Null, Value::Null, Value::Null, Value::Null, Value::Null]));
    }
    kit.send(vec![(START + 1, operations)]);
    let names = ["a", "i", "r", "x", "b"];
    let changes = rows(&source, "SELECT * FROM s ORDER BY id")
        .into_iter()
        .map(|row| {
            let changes: Vec<(&str, Value)> = names.into_iter().zip(row[1..].iter().cloned()).collect();
            kit.update("s", [row[0].clone()], &changes)
        })
        .collect();
    kit.send(vec![(START + 2, changes)]);
    let report = kit.apply();
    assert_eq!((report.files, report.stopped), (2, None));
    for table in ["t", "s"] {
        let expected = rows(&source, &format!("SELECT * FROM {table} ORDER BY id"));
        assert_eq!(rows(&local, &format!("SELECT * FROM {table} ORDER BY id")), expected, "apply to {table}");
    }
}

/// A writer changes the data store while extracts of a pinned snapshot are made; the files after each extract's unit bring every copy to
/// the same end: nothing is lost, nothing comes twice.
#[test]
fn a3_r15_writes_during_an_extract_are_neither_lost_nor_doubled() {
    let ddl = "CREATE TABLE t (id INTEGER PRIMARY KEY, v INT, at INT);
               WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) INSERT INTO t SELECT i, 0, 0 FROM n;";
    let kit = Kit::new(ddl, &[("t", &[])]);
    kit.cds().execute_batch(&format!("CREATE TABLE place (unit INT); INSERT INTO place VALUES ({START})")).unwrap();
    let stop = AtomicBool::new(false);
    let (log, kits) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let cds = kit.cds();
            let mut random = fastrand::Rng::with_seed(3);
            let mut log: Vec<(i64, i64, Option<i64>)> = Vec::new();
            let mut unit = START;
            while !stop.load(Ordering::Relaxed) {
                unit += 1;
                cds.execute_batch("BEGIN IMMEDIATE").unwrap();
                for _ in 0..5 {
                    let id = random.i64(1..4000);
                    let value = random.bool().then_some(unit);
                    match value {
                        Some(value) => cds.execute("INSERT OR REPLACE INTO d0 VALUES (?1, ?2, ?2)", [id, value]).unwrap(),
                        None => cds.execute("DELETE FROM d0 WHERE c0 = ?1", [id]).unwrap(),
                    };
                    log.retain(|entry| (entry.0, entry.1) != (unit, id));
                    log.push((unit, id, value));
                }
                cds.execute("UPDATE place SET unit = ?1", [unit]).unwrap();
                cds.execute_batch("COMMIT").unwrap();
            }
            log
        });
        let mut extracts = Vec::new();
        for incarnation in 1..=5 {
            let cds = kit.cds();
            cds.execute_batch("BEGIN").unwrap();
            let unit: i64 = cds.query_row("SELECT unit FROM place", [], |row| row.get(0)).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            kit.mark_visible(&cds, |_| "1".to_owned());
            let expected = rows(&cds, "SELECT * FROM d0 ORDER BY c0");
            let toc = kit.build(&cds, incarnation, unit).unwrap();
            kit.unpack(&toc);
            let name = format!("copy{incarnation}.db");
            std::fs::rename(kit.path("pos.db"), kit.path(&name)).unwrap();
            assert_eq!(rows(&open(&kit.path(&name)), "SELECT * FROM t ORDER BY id"), expected, "exactly the pinned rows");
            extracts.push((name, unit, incarnation));
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        stop.store(true, Ordering::Relaxed);
        (writer.join().unwrap(), extracts)
    });
    let expected = rows(&kit.cds(), "SELECT * FROM d0 ORDER BY c0");
    let heading = kit.heading("t");
    for (name, unit, incarnation) in kits {
        let mut stream = crate::node_kit::Stream::new(kit.node.clone(), Incarnation(incarnation), unit);
        let mut units: crate::node_kit::Units = Vec::new();
        for (of, id, value) in log.iter().filter(|entry| entry.0 > unit) {
            if units.last().is_none_or(|last| last.0 != *of) {
                units.push((*of, Vec::new()));
            }
            let operation = match value {
                Some(value) => dockmaster::model::operation::Operation::Put { row: vec![(*id).into(), (*value).into(), (*value).into()] },
                None => dockmaster::model::operation::Operation::Delete { key: vec![(*id).into()] },
            };
            units.last_mut().unwrap().1.push((heading.clone(), operation));
        }
        assert!(!units.is_empty(), "the writer went on during the extract");
        for part in units.chunks(37) {
            let (number, bytes) = stream.file(&[part.to_vec()]);
            kit.place(&number.file_name(), &bytes);
        }
        std::fs::rename(kit.path(&name), kit.path("pos.db")).unwrap();
        let report = kit.apply();
        assert_eq!(report.stopped, None);
        assert_eq!(rows(&kit.app(), "SELECT * FROM t ORDER BY id"), expected);
        for leftover in ["pos.db", "pos.db-wal", "pos.db-shm"] {
            std::fs::remove_file(kit.path(leftover)).ok();
        }
    }
}

#[test]
fn f47_a_damaged_or_foreign_database_is_named() {
    let kit = Kit::new(SHOP, SHOP_TABLES);
    kit.extract_all();
    let path = kit.path("pos.db");
    LocalDatabase::open(&path).unwrap().quick_check().unwrap();
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    // Every page but the first: a flipped page header is found at the latest by the check.
    for page in flipped.chunks_mut(4096).skip(1) {
        page[0] ^= 0x55;
    }
    std::fs::write(&path, &flipped).unwrap();
    let found = LocalDatabase::open(&path).and_then(|database| database.quick_check());
    assert!(matches!(found, Err(LocalError::Damaged { .. })), "{found:?}");
    std::fs::write(&path, b"this is not a database, but it is long enough to look at").unwrap();
    assert!(matches!(LocalDatabase::open(&path), Err(LocalError::Damaged { .. })));
    std::fs::remove_file(&path).unwrap();
    assert!(LocalDatabase::open(&path).is_err());
    assert!(!path.exists(), "opening never makes a database");
    open(&path).execute_batch("CREATE TABLE t (a)").unwrap();
    assert!(matches!(LocalDatabase::open(&path), Err(LocalError::NotLocal { .. })));
}
