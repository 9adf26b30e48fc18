//! Installing, installing again, and taking everything out.

use super::Rig;
use dockmaster::store::install::InstallPlan;
use dockmaster::store::sqlite::{ServerDatabase, StoreError};
use rusqlite::Connection;

fn objects(app: &Connection) -> Vec<(String, String)> {
    app.prepare("SELECT name, ifnull(sql, '') FROM sqlite_schema ORDER BY name")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v UNIQUE); CREATE TABLE \"u v\"(k TEXT NOT NULL PRIMARY KEY, a, b, c, d, e);
     CREATE TRIGGER mine AFTER INSERT ON t BEGIN UPDATE t SET v = 1 WHERE 0; END; CREATE VIEW w AS SELECT * FROM t;";

#[test]
fn installing_again_changes_nothing_and_revisions_follow_text_and_shape() {
    let mut rig = Rig::new(SCHEMA);
    let first = rig.install();
    let (before, end) = (objects(&rig.app), rig.db.log_end().unwrap());
    assert_eq!(rig.install(), first);
    assert_eq!((objects(&rig.app), rig.db.log_end().unwrap()), (before.clone(), end), "installing twice wrote something");
    assert_eq!(first.revision.0, 1);
    let schema = rig.db.schema().unwrap();
    let plan = InstallPlan { dock: &rig.dock, schema: &schema, revision_text: "another", server_name: "test" };
    let second = rig.db.install(&plan).unwrap();
    assert_eq!((second.revision.0, second.server_id), (2, first.server_id));
    assert_eq!(rig.db.definition(second.revision).unwrap().as_deref(), Some("another"));
    assert_eq!(objects(&rig.app), before, "a new text alone needs no new trigger");
    assert!(rig.sync("definition").unwrap().changes.is_empty());
    // A table that the definition no longer names loses its triggers.
    rig.dock.tables.retain(|table| table.name == "t");
    assert_eq!(rig.install().revision.0, 3);
    rig.run("INSERT INTO \"u v\"(k) VALUES ('x')");
    assert_eq!(rig.db.read_unit(&dockmaster::store::log::ReadOptions { after: rig.after, known: None }).unwrap().unwrap().changes, []);
    assert_eq!(rig.db.identity().unwrap().server_name, "test");
}

#[test]
fn uninstall_leaves_the_schema_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plain.db");
    let app = Connection::open(&path).unwrap();
    app.execute_batch(SCHEMA).unwrap();
    let before = objects(&app);
    let db = ServerDatabase::open(&path).unwrap();
    assert!(matches!(db.uninstall().unwrap_err(), StoreError::NotInstalled { .. }));
    let schema = db.schema().unwrap();
    db.install(&InstallPlan { dock: &super::dock_of(&schema), schema: &schema, revision_text: "x", server_name: "s" }).unwrap();
    app.execute_batch("INSERT INTO t VALUES (1, 2)").unwrap();
    assert_eq!(db.schema().unwrap(), schema, "our own objects show in no schema");
    let removed = db.uninstall().unwrap();
    assert_eq!((removed.triggers.len(), removed.tables.len(), removed.journal_mode.as_str()), (10, 14, "wal"));
    assert!(removed.empty_sequence_table);
    let mut left = objects(&app);
    left.retain(|(name, _)| name != "sqlite_sequence");
    assert_eq!(left, before);
    app.execute_batch("INSERT INTO t VALUES (2, 3); DELETE FROM t").unwrap();
    assert!(matches!(db.log_end().unwrap_err(), StoreError::NotInstalled { .. }));
}

#[test]
fn uninstall_refuses_what_it_does_not_know_and_then_takes_out_nothing() {
    let rig = Rig::new(SCHEMA);
    rig.run("CREATE TABLE dock_berth(a)");
    let before = objects(&rig.app);
    let message = rig.db.uninstall().unwrap_err().to_string();
    assert!(message.contains("dock_berth"), "{message}");
    assert_eq!(objects(&rig.app), before);
}

#[test]
fn install_refuses_a_database_that_uses_our_prefix_or_moved_since_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plain.db");
    let app = Connection::open(&path).unwrap();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE dock_berth(a)").unwrap();
    let db = ServerDatabase::open(&path).unwrap();
    let schema = db.schema().unwrap();
    let dock = super::dock_of(&schema);
    let plan = InstallPlan { dock: &dock, schema: &schema, revision_text: "x", server_name: "s" };
    assert!(db.install(&plan).unwrap_err().to_string().contains("dock_berth"));
    app.execute_batch("DROP TABLE dock_berth; ALTER TABLE t ADD COLUMN late").unwrap();
    let message = db.install(&plan).unwrap_err().to_string();
    assert!(message.contains("table t") && message.contains("`late` was added"), "{message}");
    assert!(objects(&app).iter().all(|(name, _)| !name.starts_with("dock_")), "a refused installation left something");
}

#[test]
fn a_trigger_that_only_the_users_program_can_compile_is_no_obstacle() {
    let mut rig = Rig::new(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TRIGGER own AFTER INSERT ON t BEGIN SELECT no_such_function(NEW.v); END;",
    );
    rig.run("DROP TRIGGER own; INSERT INTO t VALUES (1, 1)");
    rig.sync("own function");
}
