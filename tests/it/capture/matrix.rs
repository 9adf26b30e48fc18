//! R2 and R4: every conflict clause against every kind of unique key, and every trigger of ours under every outer clause.

use super::Rig;

/// A way to declare the unique value of column `u` in `t(k, u, on_, x)`, where row k=1 holds 'a'.
const KEYS: &[(&str, &str)] = &[
    ("rowid key", "CREATE TABLE t(k INTEGER PRIMARY KEY, u TEXT, on_ INT, x)"),
    ("text key", "CREATE TABLE t(k TEXT NOT NULL PRIMARY KEY, u TEXT, on_ INT, x)"),
    ("nocase key", "CREATE TABLE t(k TEXT NOT NULL COLLATE NOCASE PRIMARY KEY, u TEXT, on_ INT, x)"),
    ("composite key", "CREATE TABLE t(k INT NOT NULL, u TEXT, on_ INT NOT NULL, x, PRIMARY KEY(on_, k))"),
    ("unique", "CREATE TABLE t(k INTEGER PRIMARY KEY, u TEXT UNIQUE, on_ INT, x)"),
    ("composite unique", "CREATE TABLE t(k INTEGER PRIMARY KEY, u TEXT, on_ INT, x, UNIQUE(on_, u))"),
    ("unique that replaces", "CREATE TABLE t(k INTEGER PRIMARY KEY, u TEXT UNIQUE ON CONFLICT REPLACE, on_ INT, x)"),
    (
        "partial",
        "CREATE TABLE t(k INTEGER PRIMARY KEY, u TEXT, on_ INT, x); CREATE UNIQUE INDEX i ON t(u) WHERE on_ = 1 /* only */ -- those",
    ),
    ("nocase", "CREATE TABLE t(k INTEGER PRIMARY KEY, u TEXT COLLATE NOCASE UNIQUE, on_ INT, x)"),
    ("nocase index", "CREATE TABLE t(k INTEGER PRIMARY KEY, u TEXT, on_ INT, x); CREATE UNIQUE INDEX i ON t(u COLLATE NOCASE DESC)"),
    (
        "binary index on nocase",
        "CREATE TABLE t(k INTEGER PRIMARY KEY, u TEXT COLLATE NOCASE, on_ INT, x); CREATE UNIQUE INDEX i ON t(u COLLATE BINARY)",
    ),
    ("rtrim index", "CREATE TABLE t(k INTEGER PRIMARY KEY, u TEXT, on_ INT, x); CREATE UNIQUE INDEX i ON t(u COLLATE RTRIM)"),
    (
        "expression",
        "CREATE TABLE t(k INTEGER PRIMARY KEY, u TEXT, on_ INT, x); CREATE UNIQUE INDEX i ON t(lower(trim(u)), on_ + 0) WHERE t.u IS NOT NULL",
    ),
    ("generated", "CREATE TABLE t(k INTEGER PRIMARY KEY, u TEXT, on_ INT, x, g TEXT AS (upper(u)) UNIQUE)"),
    ("stored generated", "CREATE TABLE t(k INTEGER PRIMARY KEY, u TEXT, on_ INT, x, g TEXT AS (upper(u)) STORED UNIQUE)"),
    ("without rowid", "CREATE TABLE t(k INT, u TEXT COLLATE NOCASE UNIQUE, on_ INT, x, PRIMARY KEY(k)) WITHOUT ROWID"),
    ("without rowid text", "CREATE TABLE t(k TEXT COLLATE RTRIM PRIMARY KEY, u TEXT, on_ INT, x) WITHOUT ROWID"),
    ("strict", "CREATE TABLE t(k INT PRIMARY KEY, u TEXT UNIQUE, on_ INT, x ANY) STRICT"),
    ("desc key", "CREATE TABLE t(k INTEGER PRIMARY KEY DESC NOT NULL, u TEXT UNIQUE, on_ INT, x)"),
];

const STATEMENTS: &[&str] = &[
    "INSERT {} INTO t(k, u, on_, x) VALUES (9, 'a', 1, 'new')",
    "INSERT {} INTO t(k, u, on_, x) VALUES (9, 'A', 1, 'new')",
    "INSERT {} INTO t(k, u, on_, x) VALUES (9, 'a ', 1, 'new')",
    "INSERT {} INTO t(k, u, on_, x) VALUES (1, 'z', 1, 'new')",
    "INSERT {} INTO t(k, u, on_, x) VALUES (1, 'b', 1, 'new')",
    "INSERT {} INTO t(k, u, on_, x) VALUES (8, 'y', 1, 'new'), (9, 'a', 1, 'new'), (9, 'b', 1, 'newer')",
    "INSERT {} INTO t(k, u, on_, x) SELECT k + 1, u, on_, x FROM t",
    "INSERT {} INTO t(rowid, u, on_, x) VALUES (1, 'r', 1, 'new')",
    "INSERT {} INTO t(rowid, k, u, on_, x) VALUES (2, 77, 'r', 1, 'new')",
    "UPDATE {} t SET u = 'a' WHERE k = 2",
    "UPDATE {} t SET u = 'A' WHERE k = 3",
    "UPDATE {} t SET k = 1 WHERE k = 2",
    "UPDATE {} t SET rowid = 1 WHERE k = 2",
    "UPDATE {} t SET on_ = 1 WHERE k = 4",
    "UPDATE {} t SET k = k + 1, x = 'moved'",
    "UPDATE {} t SET u = 'same', on_ = 1",
    "DELETE FROM t WHERE k < 3",
];

const CLAUSES: &[&str] = &["", "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ABORT", "OR ROLLBACK"];

const UPSERTS: &[&str] = &[
    "INSERT INTO t(k, u, on_, x) VALUES (9, 'a', 1, 'up') ON CONFLICT DO UPDATE SET x = excluded.x, u = 'upserted'",
    "INSERT INTO t(k, u, on_, x) VALUES (1, 'q', 1, 'up') ON CONFLICT DO UPDATE SET x = excluded.x",
    "INSERT INTO t(k, u, on_, x) VALUES (1, 'a', 1, 'up') ON CONFLICT DO NOTHING",
    "INSERT INTO t(k, u, on_, x) VALUES (1, 'q', 1, 'up') ON CONFLICT DO UPDATE SET k = 99",
];

/// Fills `t`: the row that is in the way first, and one outside the partial index.
const ROWS: &str = "INSERT INTO t(k, u, on_, x) VALUES (1, 'a', 1, 'old'), (2, 'b', 1, 'old'), (3, 'c', 1, 'old'), (4, 'a~', 0, x'00ff'), (5, NULL, NULL, 1.0);
     UPDATE t SET u = 'a' WHERE k = 4 AND NOT EXISTS (SELECT 1 FROM pragma_index_list('t') WHERE \"unique\" AND NOT partial AND origin <> 'pk');";

/// Runs every statement on every kind of key; returns those after which the shadow differs.
fn differing(settings: &str, plant: impl Fn(&Rig)) -> Vec<String> {
    let mut differing = Vec::new();
    for (kind, create) in KEYS {
        let mut rig = Rig::new(create);
        plant(&rig);
        rig.run(settings);
        let statements = STATEMENTS.iter().flat_map(|statement| CLAUSES.iter().map(|clause| statement.replace("{}", clause)));
        for statement in statements.chain(UPSERTS.iter().map(|statement| (*statement).to_owned())) {
            let rows = if kind.starts_with("composite key") { ROWS.replace("(5, NULL, NULL", "(5, NULL, 3") } else { ROWS.to_owned() };
            rig.run(&format!("DELETE FROM t; {rows}"));
            rig.read();
            let _refused = rig.app.execute_batch(&statement);
            let before = rig.after;
            rig.read();
            let truth = rig.truth();
            if rig.shadow != truth || !rig.wrong_images(before).is_empty() {
                differing.push(format!("{kind}: {statement}"));
                rig.shadow = truth;
            }
        }
    }
    differing
}

#[test]
fn r2_b2_every_conflict_clause_on_every_kind_of_unique_key() {
    for settings in ["PRAGMA recursive_triggers = OFF", "PRAGMA recursive_triggers = ON; PRAGMA foreign_keys = ON"] {
        assert_eq!(differing(settings, |_| {}), Vec::<String>::new(), "{settings}");
    }
}

#[test]
fn r2_without_the_hints_the_matrix_finds_the_loss() {
    let silent =
        |name: &'static str| move |rig: &Rig| rig.plant(name, |sql| format!("{} BEGIN SELECT 1; END", sql.split(" BEGIN").next().unwrap()));
    let without_insert = differing("", silent("dock_hi_1"));
    for kind in ["text key", "unique", "partial", "nocase", "nocase index", "expression", "generated", "without rowid"] {
        let prefix = format!("{kind}: ");
        let found = without_insert.iter().any(|case| case.starts_with(&prefix) && case.contains("OR REPLACE"));
        assert!(found, "{kind}: a lost row was not noticed in {without_insert:?}");
    }
    let without_update = differing("", silent("dock_hu_1"));
    // A row that loses its place to another *key* needs no hint: the update logs that key itself.
    for kind in ["text key", "unique", "partial", "nocase", "expression", "generated", "without rowid"] {
        assert!(without_update.iter().any(|case| case.starts_with(&format!("{kind}: UPDATE OR REPLACE"))), "{kind}: {without_update:?}");
    }
}

#[test]
fn r2_b5_a_table_called_new_or_old_hints_only_at_rivals() {
    for name in ["new", "OLD"] {
        let mut rig = Rig::new(&format!(
            "CREATE TABLE \"{name}\"(k INTEGER PRIMARY KEY, \"old\" TEXT UNIQUE, n);
             INSERT INTO \"{name}\" VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3);"
        ));
        let before = rig.after;
        rig.run(&format!("INSERT OR REPLACE INTO \"{name}\" VALUES (9, 'a', 1)"));
        assert_eq!(rig.log_ops(before), "HI");
        rig.sync(name);
    }
}

#[test]
fn r4_no_outer_clause_changes_what_our_triggers_do() {
    // Each statement succeeds by itself; so it must succeed, and log the same, whatever its clause is.
    let rows = "INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2);";
    for statement in ["INSERT {} INTO t VALUES (3, 'c', 3)", "UPDATE {} t SET u = 'z', k = 8 WHERE k = 1", "UPDATE {} t SET x = x + 1"] {
        let mut logs = Vec::new();
        for clause in CLAUSES {
            let mut rig = Rig::new(&format!("CREATE TABLE t(k INTEGER PRIMARY KEY, u TEXT UNIQUE, x); {rows}"));
            // The same log twice over: nothing of ours may notice that it is there already.
            for _ in 0..2 {
                let before = rig.after;
                rig.run(&format!("SAVEPOINT s; {}", statement.replace("{}", clause)));
                logs.push(rig.log_ops(before));
                rig.run("ROLLBACK TO s; RELEASE s");
                assert_eq!(rig.db.log_end().unwrap(), before);
            }
            rig.run(&statement.replace("{}", clause));
            assert!(rig.sync(clause).is_some());
        }
        logs.dedup();
        assert_eq!(logs.len(), 1, "{statement}: {logs:?}");
    }
    // And nothing of ours has a constraint or a clause at all.
    let rig = Rig::new("CREATE TABLE t(k TEXT NOT NULL COLLATE NOCASE PRIMARY KEY, u UNIQUE, x);");
    let texts: Vec<String> = rig
        .app
        .prepare("SELECT upper(sql) FROM sqlite_schema WHERE type = 'trigger' OR name = 'dock_txn_log'")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(texts.len(), 6);
    for text in texts {
        for word in ["INSERT OR", "UPDATE OR", "ON CONFLICT", "NOT NULL", "CHECK", "UNIQUE", "REFERENCES", "RAISE"] {
            assert!(!text.contains(word), "{word} in {text}");
        }
    }
}

#[test]
fn r3_replace_of_a_parent_is_one_update_and_its_children_follow_the_writers_setting() {
    for (keys, cascaded) in [("OFF", false), ("ON", true)] {
        let mut rig = Rig::new(
            "CREATE TABLE p(id INTEGER PRIMARY KEY, name, secret); CREATE TABLE c(id INTEGER PRIMARY KEY, p REFERENCES p ON DELETE CASCADE);
             INSERT INTO p VALUES (1, 'x', 's'); INSERT INTO c VALUES (1, 1), (2, 1), (3, 1);",
        );
        rig.run(&format!("PRAGMA foreign_keys = {keys}; INSERT OR REPLACE INTO p(id, name) VALUES (1, 'y')"));
        let unit = rig.sync(keys).unwrap();
        let of = |table: &str| unit.changes.iter().filter(|change| change.table == table).collect::<Vec<_>>();
        assert_eq!(of("p").len(), 1, "one net change for the parent");
        assert!(of("p")[0].row.is_some());
        assert_eq!(of("c").len(), if cascaded { 3 } else { 0 });
    }
}

#[test]
fn r5_r2_an_edit_of_case_alone_hints_at_others_and_not_at_itself() {
    let mut rig = Rig::new("CREATE TABLE t(k INTEGER PRIMARY KEY, u TEXT COLLATE NOCASE UNIQUE); INSERT INTO t VALUES (1, 'a')");
    let before = rig.after;
    rig.run("UPDATE t SET u = 'A'");
    assert_eq!(rig.log_ops(before), "U");
    rig.sync("case");
    // The column finds them equal, the index does not: the other row is in the way all the same.
    let mut rig = Rig::new(
        "CREATE TABLE t(k INTEGER PRIMARY KEY, u TEXT COLLATE NOCASE); CREATE UNIQUE INDEX i ON t(u COLLATE BINARY);
         INSERT INTO t VALUES (1, 'a'), (2, 'A')",
    );
    rig.run("UPDATE OR REPLACE t SET u = 'A' WHERE k = 1");
    rig.sync("case under a binary index");
    assert_eq!(rig.shadow["t"].len(), 1);
}

#[test]
fn r1_a_row_that_a_trigger_puts_back_is_not_logged_as_deleted() {
    let mut rig = Rig::new("CREATE TABLE t(k INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 'a')");
    // Newer than ours, so it fires first.
    rig.run("CREATE TRIGGER back AFTER DELETE ON t BEGIN INSERT INTO t VALUES (OLD.k, 'back'); END");
    let before = rig.after;
    rig.run("DELETE FROM t");
    assert_eq!(rig.log_ops(before), "IU");
    assert_eq!(rig.wrong_images(before), []);
    // As long as it fires first it is in doubt; healed, the table is compared, and from then on read as ever.
    assert!(rig.read().unwrap().stopped[0].1.contains("`back`"));
    rig.install();
    rig.sync("compared");
    rig.run("DELETE FROM t");
    rig.sync("put back");
}
