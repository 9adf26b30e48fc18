//! What a node shows while its changes are on their way: one test per counterexample.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use crate::node_kit::{rows, text};
use crate::rebase_kit::{Desk, confirm, merged, merged_with};
use dockmaster::base::ids::{InstallId, TxnId, UnitNo};
use dockmaster::model::event::{SchemaKind, SchemaObject, UnitControls};
use dockmaster::model::merge_rules::{ConflictPolicy, MergeRules};
use dockmaster::model::operation::Operation;
use dockmaster::model::upload::{Confirm, Conflict, KeyMapping, Outcome, UnitId, Winner};
use dockmaster::model::value::Value;
use dockmaster::store::local::{LocalDatabase, Watermark};

const SHOP: &str = "CREATE TABLE customer (id INTEGER PRIMARY KEY, email TEXT UNIQUE, note TEXT);
    CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INT NOT NULL REFERENCES customer(id) ON DELETE CASCADE, stock INT);
    INSERT INTO customer VALUES (1, 'a', 'one'), (2, 'b', 'two'); INSERT INTO orders VALUES (10, 1, 10), (20, 2, 20);";

fn shop() -> Desk {
    Desk::new(SHOP, &["customer", "orders"])
}

fn shown(desk: &Desk, sql: &str) -> String {
    text(&desk.app, sql)
}

#[test]
fn r10_a_cascade_that_was_captured_is_the_whole_effect() {
    let mut desk = shop();
    let unit = desk.edit("DELETE FROM customer WHERE id = 1").unwrap();
    // A new order of that customer: nothing cascades it away, and the delete cannot be shown any more.
    desk.serve("INSERT INTO orders VALUES (11, 1, 7)");
    assert_eq!(shown(&desk, "SELECT id FROM orders ORDER BY 1"), "10 11 20");
    assert!(desk.suspended()[&unit].contains("orders"), "{:?}", desk.suspended());
    // The server refuses the unit: everything is there.
    desk.apply(Vec::new(), vec![confirm(unit, Outcome::Ignored { reason: "orders".to_owned() })]);
    assert_eq!(shown(&desk, "SELECT id FROM orders ORDER BY 1"), "10 11 20");
    assert_eq!(shown(&desk, "SELECT count(*) FROM customer"), "2");
}

#[test]
fn r20_f42_a_unique_value_that_the_server_gave_away_suspends_the_unit_and_its_dependents() {
    let mut desk = shop();
    let first = desk.edit("INSERT INTO customer VALUES (3, 'x', 'mine')").unwrap();
    let second = desk.edit("INSERT INTO orders VALUES (30, 3, 1)").unwrap();
    let third = desk.edit("UPDATE customer SET note = 'seen' WHERE id = 2").unwrap();
    desk.serve("INSERT INTO customer VALUES (4, 'x', 'theirs')");
    let suspended = desk.suspended();
    assert_eq!(suspended.keys().copied().collect::<Vec<_>>(), [first, second]);
    assert!(suspended[&first].contains("table customer, key 3") && suspended[&first].contains("customer.email"), "{suspended:?}");
    assert!(suspended[&second].contains(&format!("unit {first}")), "{suspended:?}");
    assert_eq!(shown(&desk, "SELECT id, note FROM customer ORDER BY 1"), "1|'one' 2|'seen' 4|'theirs'");
    assert_eq!(shown(&desk, "SELECT pending, suspended, held, conflicts FROM dock_status"), "3|2|0|0");
    assert_eq!(shown(&desk, "SELECT DISTINCT state FROM dock_pending ORDER BY unit"), "'suspended' 'pending'");
    // The value is free again: both are shown.
    desk.serve("UPDATE customer SET email = 'y' WHERE id = 4");
    assert_eq!(desk.suspended().len(), 0);
    assert_eq!(shown(&desk, "SELECT id FROM orders ORDER BY 1"), "10 20 30");
    let _ = third;
}

#[test]
fn r20_f42_a_key_spelled_otherwise_is_the_same_row_to_units_that_are_tried_again() {
    let mut desk =
        Desk::new("CREATE TABLE tag (id TEXT NOT NULL COLLATE NOCASE PRIMARY KEY, v); INSERT INTO tag VALUES ('k', 0)", &["tag"]);
    let taken = desk.edit("INSERT INTO tag VALUES ('A', 'mine')").unwrap();
    desk.serve("INSERT INTO tag VALUES ('a', 'theirs')");
    assert!(desk.suspended()[&taken].contains("another row has the key"), "{:?}", desk.suspended());
    // Both are cut while the first is not shown: they mean the server's row.
    desk.edit("UPDATE tag SET v = 'seen' WHERE id = 'A'").unwrap();
    desk.edit("DELETE FROM tag WHERE id = 'a'").unwrap();
    // The key is free in the table, but only by a later unit.
    desk.serve("UPDATE tag SET v = 1 WHERE id = 'k'");
    assert_eq!(desk.suspended().keys().copied().collect::<Vec<_>>(), [taken]);
    assert_eq!(shown(&desk, "SELECT * FROM tag"), "'k'|1");
    // Free of the server's row, all three are done in their order.
    desk.serve("DELETE FROM tag WHERE id = 'a'");
    assert_eq!(desk.suspended().len(), 0);
    assert_eq!(shown(&desk, "SELECT * FROM tag"), "'k'|1");
}

#[test]
fn r20_f43_a_row_of_the_server_that_refers_to_a_hidden_one_by_another_spelling_shows_it_again() {
    let mut desk = Desk::new(
        "CREATE TABLE tag (id TEXT NOT NULL COLLATE NOCASE PRIMARY KEY, code TEXT COLLATE RTRIM UNIQUE);
         CREATE TABLE use (id INTEGER PRIMARY KEY, tag TEXT REFERENCES tag(id), code TEXT REFERENCES tag(code));
         INSERT INTO tag VALUES ('B', 'x'), ('c', 'y')",
        &["tag", "use"],
    );
    let by_key = desk.edit("DELETE FROM tag WHERE id = 'b'").unwrap();
    let by_code = desk.edit("DELETE FROM tag WHERE id = 'c'").unwrap();
    desk.serve("INSERT INTO use VALUES (1, 'b', NULL)");
    assert_eq!(desk.suspended().keys().copied().collect::<Vec<_>>(), [by_key]);
    desk.serve("INSERT INTO use VALUES (2, NULL, 'y  ')");
    assert_eq!(desk.suspended().keys().copied().collect::<Vec<_>>(), [by_key, by_code]);
    assert_eq!(shown(&desk, "SELECT id FROM tag ORDER BY 1"), "'B' 'c'");
}

#[test]
fn r20_whoever_begins_to_apply_has_cut_before() {
    let mut desk = shop();
    let first = desk.edit("INSERT INTO customer VALUES (3, 'x', 'mine')").unwrap();
    // Committed, and not cut; then everything pending is set to the server's rows and done again.
    desk.app.execute_batch("UPDATE customer SET note = 'newest' WHERE id = 3; UPDATE customer SET note = 'kept' WHERE id = 1").unwrap();
    let operations = desk.on_server("INSERT INTO customer VALUES (4, 'x', 'theirs')");
    desk.try_apply(&[(operations, Vec::new())]).unwrap();
    assert_eq!(shown(&desk, "SELECT unit, suspended IS NULL FROM dock_unit"), format!("{first}|0 {}|0", first + 1));
    assert_eq!(shown(&desk, "SELECT count(*) FROM dock_txn_log"), "0");
    let operations = desk.on_server("DELETE FROM customer WHERE id = 4");
    desk.try_apply(&[(operations, Vec::new())]).unwrap();
    assert_eq!(shown(&desk, "SELECT id, note FROM customer ORDER BY 1"), "1|'kept' 2|'two' 3|'newest'");
}

#[test]
fn r20_f43_a_parent_that_leaves_suspends_its_pending_child_and_a_row_that_leaves_its_change() {
    let mut desk = shop();
    let child = desk.edit("INSERT INTO orders VALUES (30, 2, 1)").unwrap();
    let change = desk.edit("UPDATE orders SET stock = 9 WHERE id = 10").unwrap();
    desk.serve("DELETE FROM customer WHERE id = 2");
    assert!(desk.suspended()[&child].contains("table orders, key 30"), "{:?}", desk.suspended());
    assert_eq!(desk.suspended().len(), 1);
    desk.serve("DELETE FROM orders WHERE id = 10");
    assert!(desk.suspended()[&change].contains("gone"), "{:?}", desk.suspended());
    assert_eq!(shown(&desk, "SELECT count(*) FROM orders"), "0");
    // Both come back.
    desk.serve("INSERT INTO customer VALUES (2, 'b', 'again'); INSERT INTO orders VALUES (10, 1, 11)");
    assert_eq!(desk.suspended().len(), 0);
    assert_eq!(shown(&desk, "SELECT id, stock FROM orders ORDER BY 1"), "10|9 30|1");
}

#[test]
fn r12_r20_a_key_that_the_server_gave_first_is_mapped_with_all_that_refers_to_it() {
    let mut desk = shop();
    let first = desk.edit("INSERT INTO customer VALUES (3, 'x', 'mine')").unwrap();
    let second = desk.edit("INSERT INTO orders VALUES (30, 3, 1); UPDATE customer SET note = 'mine!' WHERE id = 3").unwrap();
    let third = desk.edit("UPDATE orders SET stock = 5 WHERE id = 30").unwrap();
    desk.serve("INSERT INTO customer VALUES (3, 'z', 'theirs')");
    assert_eq!(desk.suspended().keys().copied().collect::<Vec<_>>(), [first, second, third]);
    assert_eq!(shown(&desk, "SELECT note FROM customer WHERE id = 3"), "'theirs'");
    // Cut while the unit was not shown: key 3 means the server's row.
    let fourth = desk.edit("INSERT INTO orders VALUES (31, 3, 1)").unwrap();
    let operations = desk.on_server("INSERT INTO customer VALUES (7, 'x', 'mine')");
    let keys = [KeyMapping { table: "customer".to_owned(), old: vec![3.into()], new: vec![7.into()] }];
    desk.try_apply(&[(operations, vec![merged_with(first, &keys)])]).unwrap();
    assert_eq!(desk.suspended().len(), 0, "{:?}", desk.suspended());
    assert_eq!(shown(&desk, "SELECT id, note FROM customer ORDER BY 1"), "1|'one' 2|'two' 3|'theirs' 7|'mine!'");
    assert_eq!(shown(&desk, "SELECT id, customer, stock FROM orders ORDER BY 1"), "10|1|10 20|2|20 30|7|5 31|3|1");
    assert_eq!(desk.overlaid(), desk.tables(&desk.server));
    // What was sent stays what it was, since the server knows a unit by its hash; the next cut knows the new key.
    let sent = desk.local.pending_unit(UnitNo(second)).unwrap().unwrap();
    assert!(format!("{sent:?}").contains("30, 3, 1"), "{sent:?}");
    let fifth = desk.edit("UPDATE orders SET customer = 1 WHERE id = 30; UPDATE customer SET note = 'last' WHERE id = 7").unwrap();
    let fields = format!("{:?}", desk.local.pending_unit(UnitNo(fifth)).unwrap().unwrap());
    assert!(fields.contains("before: 7, base: NULL") || fields.contains("before: 7"), "{fields}");
    assert!(fields.contains("before: 'mine!'"), "{fields}");
    let operations = desk.on_server("INSERT INTO orders VALUES (30, 7, 1); UPDATE customer SET note = 'mine!' WHERE id = 7");
    desk.try_apply(&[(operations, vec![merged(second)])]).unwrap();
    let operations = desk.on_server("UPDATE orders SET stock = 5 WHERE id = 30; INSERT INTO orders VALUES (31, 3, 1)");
    desk.try_apply(&[(operations, vec![merged(third), merged(fourth)])]).unwrap();
    let operations = desk.on_server("UPDATE orders SET customer = 1 WHERE id = 30; UPDATE customer SET note = 'last' WHERE id = 7");
    desk.apply(operations, vec![merged(fifth)]);
    assert_eq!(desk.tables(&desk.app), desk.tables(&desk.server));
    assert_eq!(shown(&desk, "SELECT count(*) FROM dock_key_map"), "0");
}

/// The server's new key for one row is the key that the node gave to another one, which gets a new one as well.
#[test]
fn r12_a_new_key_that_is_the_old_one_of_another_row_is_not_replaced_once_more() {
    let mut desk = shop();
    let first = desk.edit("INSERT INTO customer VALUES (3, 'x', 'A')").unwrap();
    let second = desk.edit("INSERT INTO customer VALUES (4, 'y', 'B')").unwrap();
    let third =
        desk.edit("UPDATE customer SET note = note || '!' WHERE id IN (3, 4); INSERT INTO orders VALUES (30, 3, 1), (31, 4, 1)").unwrap();
    let mapped = |old: i64, new: i64| [KeyMapping { table: "customer".to_owned(), old: vec![old.into()], new: vec![new.into()] }];
    desk.serve("INSERT INTO customer VALUES (3, 'z', 'theirs')");
    let operations = desk.on_server("INSERT INTO customer VALUES (4, 'x', 'A')");
    desk.try_apply(&[(operations, vec![merged_with(first, &mapped(3, 4))])]).unwrap();
    let operations = desk.on_server("INSERT INTO customer VALUES (5, 'y', 'B')");
    desk.try_apply(&[(operations, vec![merged_with(second, &mapped(4, 5))])]).unwrap();
    assert_eq!(desk.suspended().len(), 0, "{:?}", desk.suspended());
    assert_eq!(shown(&desk, "SELECT id, note FROM customer ORDER BY 1"), "1|'one' 2|'two' 3|'theirs' 4|'A!' 5|'B!'");
    assert_eq!(shown(&desk, "SELECT id, customer FROM orders WHERE id >= 30 ORDER BY 1"), "30|4 31|5");
    assert_eq!(desk.overlaid(), desk.tables(&desk.server));
    let operations = desk.on_server(
        "UPDATE customer SET note = 'A!' WHERE id = 4; UPDATE customer SET note = 'B!' WHERE id = 5; INSERT INTO orders VALUES (30, 4, 1), (31, 5, 1)",
    );
    desk.apply(operations, vec![merged(third)]);
    assert_eq!(desk.tables(&desk.app), desk.tables(&desk.server));
}

#[test]
fn r16_a_confirm_of_another_installation_or_of_an_unknown_or_finished_unit_says_nothing() {
    let mut desk = shop();
    let unit = desk.edit("UPDATE customer SET note = 'mine' WHERE id = 1").unwrap();
    let other = Confirm { unit: UnitId { install: InstallId([1; 16]), number: UnitNo(unit) }, ..merged(unit) };
    desk.apply(Vec::new(), vec![other, merged(99)]);
    assert_eq!(shown(&desk, "SELECT note FROM customer WHERE id = 1"), "'mine'");
    let operations = desk.on_server("UPDATE customer SET note = 'mine' WHERE id = 1");
    desk.apply(operations, vec![merged(unit)]);
    desk.apply(Vec::new(), vec![confirm(unit, Outcome::Ignored { reason: String::new() })]);
    assert_eq!(shown(&desk, "SELECT note FROM customer WHERE id = 1"), "'mine'");
    assert_eq!(shown(&desk, "SELECT count(*) FROM dock_conflict"), "0");
}

#[test]
fn r30_mi9_mi23_each_outcome_alone_and_out_of_order_takes_out_its_own_unit() {
    let mut desk = shop();
    let units: Vec<u64> = ["a1", "a2", "a3", "a4"]
        .iter()
        .map(|note| {
            desk.edit(&format!("UPDATE customer SET note = '{note}' WHERE id = 1; UPDATE orders SET stock = stock + 1 WHERE id = 20"))
                .unwrap()
        })
        .collect();
    desk.apply(Vec::new(), vec![confirm(units[0], Outcome::Held { reason: "no right".to_owned() })]);
    assert_eq!(shown(&desk, "SELECT unit, state, reason FROM dock_unit WHERE state = 'held'"), format!("{}|'held'|'no right'", units[0]));
    assert_eq!(shown(&desk, "SELECT held FROM dock_status"), "1");
    // A later one is finished first, all of it lost: nothing but the confirm comes.
    let conflict = Conflict {
        id: 77,
        table: "customer".to_owned(),
        key: vec![1.into()],
        column: Some("note".to_owned()),
        base: Some("one".into()),
        server: Some("s".into()),
        client: Some("a4".into()),
        winner: Winner::Server,
        rule: "server-wins".to_owned(),
        at_micros: 5,
    };
    desk.apply(Vec::new(), vec![confirm(units[3], Outcome::Merged { conflicts: vec![conflict], keys: Vec::new() })]);
    assert_eq!(shown(&desk, "SELECT note FROM customer WHERE id = 1"), "'a3'");
    assert_eq!(
        shown(&desk, "SELECT unit, table_name, row_key, column_name, base, server, client, winner, rule, state FROM dock_conflicts"),
        format!("{}|'customer'|'1'|'note'|'\"one\"'|'\"s\"'|'\"a4\"'|'server'|'server-wins'|'new'", units[3])
    );
    desk.apply(Vec::new(), vec![confirm(units[2], Outcome::Returned { reason: "look again".to_owned() })]);
    assert_eq!(shown(&desk, "SELECT note FROM customer WHERE id = 1"), "'a2'");
    desk.apply(Vec::new(), vec![confirm(units[0], Outcome::Ignored { reason: "never".to_owned() })]);
    assert_eq!(shown(&desk, "SELECT note FROM customer WHERE id = 1"), "'a2'");
    let listed = shown(
        &desk,
        "SELECT rule, reason, column_name, server, client FROM dock_conflict WHERE rule <> 'server-wins' AND table_name = 'customer'",
    );
    assert_eq!(listed, "'returned'|'look again'|'note'|'\"one\"'|'\"a3\"' 'ignored'|'never'|'note'|'\"one\"'|'\"a1\"'");
    let operations = desk.on_server("UPDATE customer SET note = 'a2' WHERE id = 1; UPDATE orders SET stock = 22 WHERE id = 20");
    desk.apply(operations, vec![merged(units[1])]);
    assert_eq!(desk.tables(&desk.app), desk.tables(&desk.server));
}

#[test]
fn r31_rows_of_this_node_alone_stay_as_they_are() {
    for slow in [false, true] {
        let mut desk = shop();
        desk.rule("orders", "upload", MergeRules::default());
        let kept = desk.edit("INSERT INTO orders VALUES (30, 1, 3)").unwrap();
        let later = desk.edit("UPDATE orders SET stock = 4 WHERE id = 30").unwrap();
        if slow {
            // Everything pending is taken back and done again in the same transaction.
            desk.edit("INSERT INTO customer VALUES (8, 'x', '')").unwrap();
            let operations = desk.on_server("INSERT INTO customer VALUES (9, 'x', '')");
            desk.try_apply(&[(operations, Vec::new()), (Vec::new(), vec![merged(kept)])]).unwrap();
        } else {
            desk.try_apply(&[(Vec::new(), vec![merged(kept)])]).unwrap();
        }
        assert_eq!(shown(&desk, "SELECT stock FROM orders WHERE id = 30"), "4", "{slow}");
        desk.try_apply(&[(Vec::new(), vec![merged(later)])]).unwrap();
        assert_eq!(shown(&desk, "SELECT stock FROM orders WHERE id = 30"), "4", "{slow}");
        assert_eq!(shown(&desk, "SELECT count(*) FROM dock_change WHERE table_name = 'orders'"), "0");
    }
}

#[test]
fn r31_a_row_that_was_pruned_stays_away_whatever_is_done_again_and_its_unit_is_shown_and_confirmed() {
    for slow in [false, true] {
        let mut desk = shop();
        desk.rule("orders", "upload", MergeRules::default());
        let changed = desk.edit("UPDATE orders SET stock = 9 WHERE id = 10; UPDATE customer SET note = 'mine' WHERE id = 1").unwrap();
        assert_eq!(desk.edit("DELETE FROM orders WHERE id = 10"), None, "the node alone forgets it");
        if slow {
            desk.edit("INSERT INTO customer VALUES (8, 'x', '')").unwrap();
            let operations = desk.on_server("INSERT INTO customer VALUES (9, 'x', '')");
            desk.try_apply(&[(operations, Vec::new())]).unwrap();
        } else {
            let operations = desk.on_server("UPDATE customer SET email = 'theirs' WHERE id = 1");
            desk.try_apply(&[(operations, Vec::new())]).unwrap();
        }
        assert!(!desk.suspended().contains_key(&changed), "{:?}", desk.suspended());
        assert_eq!(shown(&desk, "SELECT count(*) FROM orders WHERE id = 10"), "0", "{slow}");
        assert_eq!(shown(&desk, "SELECT note FROM customer WHERE id = 1"), "'mine'", "{slow}");
        desk.try_apply(&[(Vec::new(), vec![merged(changed)])]).unwrap();
        assert_eq!(shown(&desk, "SELECT count(*) FROM orders WHERE id = 10"), "0", "{slow}");
    }
}

#[test]
fn r32_f40_f46_differences_are_added_and_other_columns_stay_as_the_user_wrote_them() {
    let mut desk = shop();
    desk.rule("orders", "two-way", MergeRules { columns: [("stock".to_owned(), ConflictPolicy::Sum)].into(), ..Default::default() });
    desk.edit("UPDATE orders SET stock = 8 WHERE id = 10").unwrap();
    desk.edit("UPDATE customer SET note = 'mine' WHERE id = 1").unwrap();
    desk.serve("UPDATE orders SET stock = 7 WHERE id = 10; UPDATE customer SET note = 'theirs', email = 'new' WHERE id = 1");
    assert_eq!(shown(&desk, "SELECT stock FROM orders WHERE id = 10"), "5");
    assert_eq!(
        shown(&desk, "SELECT note, email FROM customer WHERE id = 1"),
        "'mine'|'new'",
        "the edit stays visible until it is answered"
    );
    // The next edit builds on what is shown: its difference is 1, not -2.
    let unit = desk.edit("UPDATE orders SET stock = 6 WHERE id = 10").unwrap();
    let fields = format!("{:?}", desk.local.pending_unit(UnitNo(unit)).unwrap().unwrap());
    assert!(fields.contains("before: 5, base: 7, after: 6"), "{fields}");
    desk.serve("UPDATE orders SET stock = NULL WHERE id = 10");
    assert_eq!(shown(&desk, "SELECT stock FROM orders WHERE id = 10"), "9", "from NULL there is no difference: 8, and then one more");
}

#[test]
fn r37_unique_values_that_swap_on_both_sides() {
    let mut desk = shop();
    desk.edit("UPDATE customer SET email = 'c' WHERE id = 1; UPDATE customer SET email = 'a' WHERE id = 2; UPDATE customer SET email = 'b' WHERE id = 1").unwrap();
    desk.serve("UPDATE customer SET email = 'q' WHERE id = 1; UPDATE customer SET email = 'a' WHERE id = 2; UPDATE customer SET email = 'b' WHERE id = 1");
    assert_eq!(desk.suspended().len(), 0);
    desk.serve("UPDATE customer SET email = 'q' WHERE id = 1; UPDATE customer SET email = 'b' WHERE id = 2; UPDATE customer SET email = 'a' WHERE id = 1");
    assert_eq!(shown(&desk, "SELECT email FROM customer ORDER BY id"), "'b' 'a'");
}

#[test]
fn r24_what_is_pending_elsewhere_costs_nothing() {
    let mut desk = Desk::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v INT, u INT UNIQUE);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12000) INSERT INTO t SELECT i, 0, i FROM n;",
        &["t"],
    );
    desk.edit("UPDATE t SET v = 1 WHERE id <= 10000").unwrap();
    let operations = desk.on_server("UPDATE t SET v = 2 WHERE id > 11000");
    assert_eq!(operations.len(), 1_000);
    let before = desk.local.rows_written();
    desk.try_apply(&[(operations, Vec::new())]).unwrap();
    // The rows themselves, and the watermark.
    assert_eq!(desk.local.rows_written() - before, 1_001);
    // One of the pending rows: its entry and itself.
    let operations = desk.on_server("UPDATE t SET u = -5 WHERE id = 5");
    let before = desk.local.rows_written();
    desk.try_apply(&[(operations, Vec::new())]).unwrap();
    assert_eq!(desk.local.rows_written() - before, 3);
    assert_eq!(desk.suspended().len(), 0);
}

#[test]
fn r21_x6_a_stream_that_begins_anew_leaves_pending_work_on_top_of_the_new_rows() {
    let mut desk = shop();
    desk.edit("UPDATE customer SET note = 'mine' WHERE id = 1").unwrap();
    let lost = desk.edit("UPDATE orders SET stock = 1 WHERE id = 20").unwrap();
    desk.on_server("DELETE FROM orders WHERE id = 20; UPDATE customer SET email = 'fresh' WHERE id = 1");
    let all: Vec<_> = desk
        .tables(&desk.server)
        .into_iter()
        .flat_map(|(table, rows)| rows.into_values().map(move |row| (table.clone(), Operation::Put { row })))
        .map(|(table, operation)| (desk.heading(&table).clone(), operation))
        .collect();
    let schema = table_texts(&desk);
    controlled(&mut desk, UnitControls { reset: true, schema, ..Default::default() }, &all);
    desk.check();
    assert_eq!(shown(&desk, "SELECT email, note FROM customer WHERE id = 1"), "'fresh'|'mine'");
    assert_eq!(desk.suspended().keys().copied().collect::<Vec<_>>(), [lost]);
    // Edits after it are captured as before.
    desk.edit("UPDATE customer SET note = 'after' WHERE id = 2").unwrap();
    desk.serve("UPDATE customer SET email = 'other' WHERE id = 2");
    assert_eq!(shown(&desk, "SELECT email, note FROM customer WHERE id = 2"), "'other'|'after'");
}

#[test]
fn r20_a_column_or_a_table_that_goes_suspends_the_unit_and_one_that_comes_has_its_default() {
    let mut desk = shop();
    let note = desk.edit("UPDATE customer SET note = 'mine' WHERE id = 1").unwrap();
    let email = desk.edit("UPDATE customer SET email = 'q' WHERE id = 2").unwrap();
    let order = desk.edit("UPDATE orders SET stock = 3 WHERE id = 10").unwrap();
    let object = |name: &str, sql: Option<&str>, keeps_rows| SchemaObject {
        kind: SchemaKind::Table,
        name: name.to_owned(),
        sql: sql.map(str::to_owned),
        keeps_rows,
    };
    let customer = "CREATE TABLE customer (id INTEGER PRIMARY KEY, email TEXT UNIQUE, grade INT DEFAULT 4)";
    let schema = vec![object("orders", None, false), object("customer", Some(customer), true)];
    controlled(&mut desk, UnitControls { schema, ..Default::default() }, &[]);
    let suspended = desk.suspended();
    assert_eq!(suspended.keys().copied().collect::<Vec<_>>(), [note, order]);
    assert!(suspended[&note].contains("no column note") && suspended[&order].contains("not in this database"), "{suspended:?}");
    assert_eq!(shown(&desk, "SELECT * FROM customer ORDER BY id"), "1|'a'|4 2|'q'|4");
    // The server says of one what becomes of it; it is listed with its values.
    desk.try_apply(&[(Vec::new(), vec![confirm(note, Outcome::Ignored { reason: "column".to_owned() }), merged(email)])]).unwrap();
    assert_eq!(shown(&desk, "SELECT * FROM customer ORDER BY id"), "1|'a'|4 2|'b'|4");
    assert_eq!(shown(&desk, "SELECT column_name, client FROM dock_conflict"), "'note'|'\"mine\"'");
}

/// The statements of the tables as the server would send them.
fn table_texts(desk: &Desk) -> Vec<SchemaObject> {
    rows(&desk.server, "SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY name")
        .into_iter()
        .map(|row| {
            let text = |value: &Value| match value {
                Value::Text(bytes) => String::from_utf8(bytes.clone()).unwrap(),
                other => panic!("{other}"),
            };
            SchemaObject { kind: SchemaKind::Table, name: text(&row[0]), sql: Some(text(&row[1])), keeps_rows: false }
        })
        .collect()
}

fn controlled(desk: &mut Desk, controls: UnitControls, operations: &[(dockmaster::model::event::TableHeading, Operation)]) {
    desk.unit += 1;
    let unit = TxnId(desk.unit);
    let operations: Vec<_> = operations.iter().map(|(heading, operation)| (heading, operation)).collect();
    let transaction = desk.local.begin().unwrap();
    transaction.begin_controls(&controls).unwrap();
    transaction.apply_unit(unit, &operations).unwrap();
    transaction.end_controls(&controls).unwrap();
    let reached = Watermark { file: Default::default(), chain_hash: Default::default(), unit, revision: Default::default() };
    transaction.commit(&reached).unwrap();
}

#[test]
fn f45_a_reader_sees_all_of_a_unit_or_nothing_while_pending_work_is_done_again() {
    let mut desk = shop();
    desk.edit("INSERT INTO customer VALUES (3, 'x', 'mine')").unwrap();
    let operations = desk.on_server("INSERT INTO customer VALUES (4, 'x', 'theirs')");
    desk.app.execute_batch("BEGIN").unwrap();
    assert_eq!(shown(&desk, "SELECT count(*) FROM customer"), "3");
    desk.try_apply(&[(operations, Vec::new())]).unwrap();
    assert_eq!(shown(&desk, "SELECT group_concat(id) FROM customer"), "'1,2,3'", "an open reader keeps its rows");
    desk.app.execute_batch("COMMIT").unwrap();
    assert_eq!(shown(&desk, "SELECT group_concat(id) FROM customer"), "'1,2,4'");
    // What was not committed never was: the database is opened again.
    let operations = desk.on_server("DELETE FROM customer WHERE id = 4");
    let transaction = desk.local.begin().unwrap();
    let given: Vec<_> = operations.iter().map(|(heading, operation)| (heading, operation)).collect();
    transaction.apply_unit(TxnId(desk.unit + 1), &given).unwrap();
    drop(transaction);
    desk.local = LocalDatabase::open(&desk.kit.path("pos.db")).unwrap();
    assert_eq!(shown(&desk, "SELECT group_concat(id) FROM customer"), "'1,2,4'");
    desk.apply(operations, Vec::new());
    assert_eq!(shown(&desk, "SELECT group_concat(id) FROM customer"), "'1,2,3'");
}
