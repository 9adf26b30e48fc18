//! Fault 36: units larger than memory, through the real stages in this process. How much memory they take is measured in `memory`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use crate::direct::Direct;
use crate::node_kit::{Kit, START, open, text};
use dockmaster::base::ids::TxnId;
use dockmaster::base::step::Progress;
use dockmaster::model::value::Value;
use dockmaster::server::txnproc::TxnProc;
use dockmaster::store::local::{LocalDatabase, Watermark};
use dockmaster::store::unit_rows::UnitMemory;
use std::sync::Arc;
use std::time::Duration;

/// Runs the Transaction Processor as if memory held three rows.
fn in_chunks(direct: &Direct) -> u64 {
    let mut txnproc = TxnProc::open(&direct.site.path("hq.db"), Arc::clone(&direct.root)).unwrap();
    let scratch = direct.root.txnproc_tmp().join("log.scratch");
    txnproc.bound_memory(UnitMemory { rows: 3, bytes: 300, chunk_rows: 2, chunk_bytes: 200, scratch }, 2);
    let goal = txnproc.server().log_end().unwrap();
    let mut steps = 0;
    while txnproc.cds().state().position < goal {
        assert_eq!(txnproc.step().unwrap().progress, Progress::Worked);
        steps += 1;
    }
    assert_eq!(std::fs::read_dir(direct.root.txnproc_tmp()).unwrap().count(), 0, "scratch files go with their unit");
    steps
}

#[test]
fn f36_r7_units_in_chunks_bring_every_node_what_the_oracle_says() {
    let seed = std::env::var("LARGE_SEED").map_or(36, |text| text.parse().unwrap());
    eprintln!("LARGE_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut direct = Direct::crm();
    let mut units = 0;
    for round in 0..12 {
        let mut sql = String::from("BEGIN;");
        for _ in 0..rng.usize(1..6) {
            let (one, other) = (rng.i64(1..40), rng.i64(1..40));
            let position = rng.i64(2..7);
            sql.push_str(&match rng.u32(0..11) {
                0 => format!("UPDATE opportunity SET position_id = {position} WHERE id % 7 = {};", one % 7),
                1 => format!("UPDATE account_team SET position_id = {position} WHERE account_id = {one};"),
                2 => format!("INSERT OR REPLACE INTO contact VALUES({}, {}, 'c{round}');", 100 + one, 1 + other % 30),
                3 => format!("DELETE FROM contact WHERE id % 11 = {};", one % 11),
                4 => format!("UPDATE employee SET position_id = {position} WHERE id = {};", 2 + one % 5),
                5 => format!("UPDATE position SET parent_id = {} WHERE id = {};", 1 + one % 3, 4 + other % 3),
                6 => format!("UPDATE account SET name = name || '{round}' WHERE id % 3 = {};", one % 3),
                7 => format!("DELETE FROM opportunity WHERE id = {one};"),
                8 => format!(
                    "INSERT OR IGNORE INTO opportunity SELECT {} + id, id, {position}, 'new', {round} FROM account WHERE id % 5 = {};",
                    1000 * (round + 1),
                    one % 5
                ),
                9 => format!("UPDATE OR IGNORE contact SET id = id + 500 WHERE id = {one};"),
                _ => format!("UPDATE product SET name = name || '{round}' WHERE id < {};", one % 9),
            });
        }
        sql.push_str("COMMIT;");
        direct.sql(&sql);
        units += in_chunks(&direct);
        direct.equal();
    }
    assert!(units >= 8, "{units} units");
}

/// A row that no file can carry stops its table in the middle of a large unit: nothing of the unit is kept, it is read again without
/// the table, and the other tables go on.
#[test]
fn f36_a_row_that_cannot_be_carried_stops_its_table_in_a_large_unit() {
    let mut direct = Direct::crm();
    let long = dockmaster::base::limits::VALUE_BYTES_MAX + 1;
    direct.sql(&format!(
        "BEGIN; UPDATE account SET name = name || '!'; UPDATE contact SET name = name || '!';
         UPDATE contact SET name = CAST(zeroblob({long}) AS TEXT) WHERE id = 60; UPDATE product SET name = name || '!'; COMMIT;"
    ));
    assert_eq!(in_chunks(&direct), 2, "once in vain, once without the table");
    let stopped = direct.server().stopped_tables().unwrap();
    assert!(stopped.iter().any(|(table, reason)| table == "contact" && reason.contains("33554433")), "{stopped:?}");
    direct.move_on();
    assert!(direct.has("ANNA", "SELECT 1 FROM product WHERE name LIKE '%!'"));
    assert!(!direct.has("ANNA", "SELECT 1 FROM contact WHERE name LIKE '%!'"));
}

/// R6: what no file can carry is tried once, however it came to be looked at, and then waits for a person. Nothing tries for ever.
#[test]
fn f36_r6_a_row_that_cannot_be_carried_is_not_tried_for_ever() {
    for (interrupted, in_memory) in [(0, true), (1, true), (3, true), (0, false), (2, false)] {
        let direct = Direct::crm();
        let long = dockmaster::base::limits::VALUE_BYTES_MAX + 1;
        let triggers = direct.triggers("contact");
        assert!(triggers.len() >= 3, "{triggers:?}");
        for trigger in triggers.iter().take(interrupted) {
            direct.sql(&format!("DROP TRIGGER {trigger}"));
        }
        direct.sql(&format!("UPDATE contact SET name = CAST(zeroblob({long}) AS TEXT) WHERE id = 60"));
        direct.sql("UPDATE product SET name = name || '!'");
        let mut txnproc = TxnProc::open(&direct.site.path("hq.db"), Arc::clone(&direct.root)).unwrap();
        if !in_memory {
            let scratch = direct.root.txnproc_tmp().join("log.scratch");
            txnproc.bound_memory(UnitMemory { rows: 3, bytes: 300, chunk_rows: 2, chunk_bytes: 200, scratch }, 2);
        }
        let worked = (0..40).take_while(|_| txnproc.step().unwrap().progress == Progress::Worked).count();
        assert!(worked < 40, "{interrupted} triggers gone, in memory {in_memory}: still at it after {worked} steps");
        let stopped = txnproc.cds().stopped().unwrap();
        assert!(
            stopped.iter().any(|note| note.table == "contact" && note.reason.contains("33554433")),
            "{interrupted} {in_memory}: {stopped:?}"
        );
    }
}

/// R23, E6: what a program sees that works on the local database while a large unit is staged and applied, by how it takes its locks.
#[test]
fn e6_r23_f36_three_kinds_of_programs_beside_a_staged_unit() {
    let kit = Kit::new("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT, w INT)", &[("t", &[])]);
    kit.extract_all();
    kit.app().execute_batch("PRAGMA journal_mode = WAL").unwrap();
    let local = LocalDatabase::open(&kit.path("pos.db")).unwrap();
    std::fs::create_dir_all(kit.folders().tmp).unwrap();
    let program = |timeout_ms: u64| {
        let program = kit.app();
        program.busy_timeout(Duration::from_millis(timeout_ms)).unwrap();
        program
    };
    let busy = |error: rusqlite::Error| error.sqlite_error().map(|error| error.extended_code).unwrap();
    let (ordinary, impatient, deferred) = (program(60_000), program(0), program(60_000));

    // While rows are staged nobody holds the write lock: not even a program that never waits is refused.
    let mut stage = local.stage(&kit.folders().tmp).unwrap();
    for id in 1_000..9_000i64 {
        let (heading, operation) = kit.put("t", [id.into(), Value::text("staged"), id.into()]);
        stage.add(&std::sync::Arc::new(heading), &operation).unwrap();
        if id % 1_000 == 0 {
            impatient.execute("INSERT INTO t VALUES (?1, 'impatient', ?1)", [id + 100_000]).unwrap();
            assert_eq!(text(&ordinary, "SELECT count(*) FROM t WHERE v = 'staged'"), "0");
        }
    }
    stage.flush().unwrap();
    // A program that has read and means to write in the same deferred transaction.
    deferred.execute_batch("BEGIN").unwrap();
    text(&deferred, "SELECT count(*) FROM t");

    let transaction = local.begin().unwrap();
    transaction.apply_stage(TxnId(START + 1), &stage).unwrap();
    // In the one pause readers go on with what they see; the program that never waits is refused at once.
    assert_eq!(text(&ordinary, "SELECT count(*) FROM t WHERE v = 'staged'"), "0");
    let refused = impatient.execute("INSERT INTO t VALUES (1, 'impatient', 1)", []).unwrap_err();
    assert_eq!(busy(refused), rusqlite::ffi::SQLITE_BUSY);
    let (begun, waits) = std::sync::mpsc::channel();
    let path = kit.path("pos.db");
    let waiting = std::thread::spawn(move || {
        let ordinary = open(&path);
        ordinary.busy_timeout(Duration::from_secs(60)).unwrap();
        begun.send(()).unwrap();
        ordinary.execute("INSERT INTO t VALUES (2, 'ordinary', 2)", [])
    });
    waits.recv().unwrap();
    let state = transaction.state().clone();
    let reached = Watermark { file: state.applied_file, chain_hash: state.chain_hash, unit: TxnId(START + 1), revision: state.revision };
    transaction.commit(&reached).unwrap();
    drop(stage);
    // The ordinary one waited and is served.
    assert_eq!(waiting.join().unwrap().unwrap(), 1);
    assert_eq!(text(&ordinary, "SELECT count(*) FROM t WHERE v = 'staged'"), "8000");
    // What the third had read is old, so it may not write by it, however long it would wait; begun anew it may.
    let refused = deferred.execute("INSERT INTO t VALUES (3, 'deferred', 3)", []).unwrap_err();
    assert_eq!(busy(refused), rusqlite::ffi::SQLITE_BUSY_SNAPSHOT);
    deferred.execute_batch("ROLLBACK; BEGIN IMMEDIATE; INSERT INTO t VALUES (3, 'deferred', 3); COMMIT").unwrap();
    assert_eq!(std::fs::read_dir(kit.folders().tmp).unwrap().count(), 1, "the stage is gone, its lock file stays");
}
