//! A unit of the server that is staged, on rows of pending work (R20, R23).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use crate::node_kit::{START, text};
use crate::rebase_kit::Desk;
use dockmaster::base::limits::STAGE_UNIT_ROWS;
use dockmaster::client::apply;
use dockmaster::model::merge_rules::{ConflictPolicy, MergeRules};

#[test]
fn r20_r23_a_staged_unit_on_rows_of_pending_work_leaves_server_view_and_pending() {
    let mut desk = Desk::new(
        "CREATE TABLE customer (id INTEGER PRIMARY KEY, email TEXT UNIQUE, note TEXT, stock INT);
         CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INT NOT NULL REFERENCES customer(id), n INT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50) INSERT INTO customer SELECT i, 'e' || i, 'as made', 10 FROM n;
         INSERT INTO orders SELECT id, id, 0 FROM customer",
        &["customer", "orders"],
    );
    desk.rule("customer", "two-way", MergeRules { columns: [("stock".to_owned(), ConflictPolicy::Sum)].into(), ..Default::default() });
    let edited = desk.edit("UPDATE customer SET note = 'mine', stock = stock + 3 WHERE id = 1").unwrap();
    let gone = desk.edit("UPDATE customer SET note = 'mine' WHERE id = 2").unwrap();
    let taken = desk.edit("INSERT INTO customer VALUES (900, 'x', 'mine', 0)").unwrap();
    let dependent = desk.edit("INSERT INTO orders VALUES (900, 900, 1)").unwrap();
    let orphan = desk.edit("INSERT INTO orders VALUES (901, 3, 1)").unwrap();
    let same = desk.edit("INSERT INTO customer VALUES (5000, 'new 5000', 'as sent', 0)").unwrap();
    let deleted = desk.edit("DELETE FROM orders WHERE id = 4").unwrap();
    // Not cut: the apply does it.
    desk.app.execute_batch("UPDATE customer SET note = 'last' WHERE id = 5").unwrap();
    let operations = desk.on_server(&format!(
        "UPDATE customer SET stock = 7, email = 'theirs' WHERE id = 1; DELETE FROM orders WHERE customer IN (2, 3); DELETE FROM customer WHERE id IN (2, 3);
         INSERT INTO customer VALUES (901, 'x', 'theirs', 1); UPDATE orders SET n = 8 WHERE id = 4; UPDATE customer SET email = 'five' WHERE id = 5;
         WITH RECURSIVE n(i) AS (SELECT 5000 UNION ALL SELECT i + 1 FROM n WHERE i < {})
         INSERT INTO customer SELECT i, 'new ' || i, 'as sent', 0 FROM n",
        5_000 + STAGE_UNIT_ROWS
    ));
    assert!(operations.len() as u64 > STAGE_UNIT_ROWS);
    desk.kit.send(vec![(START + 1, operations)]);
    let report = apply::step(&mut desk.local, &desk.kit.folders()).unwrap();
    assert!(report.staged == 1 && report.stopped.is_none() && report.units == 1, "{report:?}");
    desk.adopt_cut(same.max(deleted) + 1);
    desk.check();
    let suspended = desk.suspended();
    assert_eq!(suspended.keys().copied().collect::<Vec<_>>(), [gone, taken, dependent, orphan], "{suspended:?}");
    assert!(suspended[&taken].contains("customer.email") && suspended[&orphan].contains("customer"), "{suspended:?}");
    assert_eq!(text(&desk.app, "SELECT email, note, stock FROM customer WHERE id IN (1, 5)"), "'theirs'|'mine'|10 'five'|'last'|10");
    assert_eq!(text(&desk.app, "SELECT count(*) FROM orders WHERE id = 4"), "0");
    // What comes later finds its entries as they are.
    desk.unit = START + 1;
    desk.serve("UPDATE customer SET email = 'free' WHERE id = 901; UPDATE customer SET stock = 1 WHERE id = 1");
    assert_eq!(desk.suspended().keys().copied().collect::<Vec<_>>(), [gone, orphan]);
    assert_eq!(text(&desk.app, "SELECT stock FROM customer WHERE id = 1"), "4");
    let _ = edited;
}
