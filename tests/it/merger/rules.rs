//! What one unit does to the server database.

use super::{Yard, int};
use dockmaster::model::upload::{Outcome, RowChange, Winner};
use dockmaster::model::value::Value;

const SHOP: &str = "
CREATE TABLE customer(id INTEGER PRIMARY KEY, name TEXT UNIQUE COLLATE NOCASE, credit INTEGER CHECK (credit >= 0), secret TEXT DEFAULT 's');
CREATE TABLE orders(id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customer(id) ON DELETE CASCADE, note TEXT, stage TEXT);
CREATE TABLE product(id INTEGER PRIMARY KEY, name TEXT, stock INTEGER, hits INTEGER, changed INTEGER);
CREATE TABLE line(order_id INTEGER NOT NULL REFERENCES orders(id) ON DELETE CASCADE ON UPDATE CASCADE, product_id INTEGER NOT NULL
  REFERENCES product(id), qty INTEGER, PRIMARY KEY(order_id, product_id));
CREATE TABLE activity(id INTEGER PRIMARY KEY, order_id INTEGER, what TEXT);
CREATE TRIGGER line_ai AFTER INSERT ON line BEGIN UPDATE product SET stock = stock - NEW.qty WHERE id = NEW.product_id; END;
CREATE TRIGGER order_au AFTER UPDATE OF stage ON orders WHEN NEW.stage IS NOT OLD.stage BEGIN
  INSERT INTO activity(order_id, what) VALUES (NEW.id, 'stage ' || NEW.stage); END;
INSERT INTO customer(id, name, credit) VALUES (1, 'Acme', 10), (2, 'Bolt', 20);
INSERT INTO orders VALUES (10, 1, 'a', 'new'), (11, 1, 'b', 'new'), (12, 2, 'c', 'new');
INSERT INTO product VALUES (1, 'nut', 100, 5, 1), (2, 'screw', 50, 5, 1);
";

/// A shop; every table travels both ways.
fn shop() -> Yard {
    shop_with("")
}

/// A shop whose database has more than that.
fn shop_and(sql: &str) -> Yard {
    Yard::new(&format!("{SHOP}{sql}"), &two_way(""))
}

fn shop_with(tables: &str) -> Yard {
    Yard::new(SHOP, &two_way(tables))
}

fn two_way(tables: &str) -> String {
    let objects: String = ["customer", "orders", "product", "line", "activity"]
        .iter()
        .map(|table| format!("[object.{table}]\nvisible.all = 'everyone'\n"))
        .collect();
    format!("version = 1\n{objects}[table.customer]\nomit = [\"secret\"]\n{tables}")
}

#[test]
fn mi54_f3_x2_fields_of_both_sides_are_kept_and_a_conflict_is_recorded_and_told() {
    let mut yard = shop();
    let at_home = yard.row("orders", &[int(10)]);
    yard.sql("UPDATE orders SET note = 'server' WHERE id = 10");
    let change = yard.update_from("orders", &[int(10)], &at_home, &[("note", "node".into()), ("stage", "won".into())]);
    yard.merged("ANNA", vec![change]);
    assert_eq!(yard.text("SELECT note, stage FROM orders WHERE id = 10"), "'server'|'won'");
    let Outcome::Merged { conflicts, keys } = yard.last_outcome() else { panic!() };
    assert!(keys.is_empty());
    let [conflict] = &conflicts[..] else { panic!("{conflicts:?}") };
    let values = [&conflict.base, &conflict.server, &conflict.client].map(|value| value.clone().unwrap());
    assert_eq!(values, ["a", "server", "node"].map(Value::text));
    assert_eq!((conflict.winner, conflict.rule.as_str(), conflict.column.as_deref()), (Winner::Server, "server-wins", Some("note")));
    assert_eq!(
        yard.text("SELECT id, unit, node, table_name, row_key, column_name, base, server, client, winner, state FROM dock_conflict"),
        r#"1|1|'ANNA'|'orders'|'[10]'|'note'|'"a"'|'"server"'|'"node"'|'server'|'closed'"#
    );
    assert_eq!(conflict.id, 1);
    assert_eq!(yard.statuses(), "ANNA1 finished");
}

#[test]
fn bpm12_bpm13_bpm14_under_client_wins_the_upload_is_the_last_write_until_the_server_writes_again() {
    let mut yard = shop_with("[table.orders]\nconflict = 'client-wins'\n");
    let at_home = yard.row("orders", &[int(10)]);
    yard.sql("UPDATE orders SET note = 'before' WHERE id = 10");
    let change = yard.update_from("orders", &[int(10)], &at_home, &[("note", "node".into())]);
    yard.merged("ANNA", vec![change]);
    assert_eq!(yard.text("SELECT note FROM orders WHERE id = 10"), "'node'");
    yard.sql("UPDATE orders SET note = 'after' WHERE id = 10");
    assert_eq!(yard.merge(), 0);
    assert_eq!(yard.text("SELECT note FROM orders WHERE id = 10"), "'after'");
}

#[test]
fn bpm16_r11_the_servers_logic_runs_once_and_its_absolute_effects_are_not_doubled() {
    let mut yard = shop_with("[table.product.column.stock]\nconflict = 'sum'\n");
    // The node has the same trigger: its own effect comes along as a change of stock from 100 to 97.
    let insert = yard.insert("line", &[int(10), int(1), int(3)]);
    let stock = yard.update("product", &[int(1)], &[("stock", int(97))]);
    let stage = yard.update("orders", &[int(10)], &[("stage", "won".into())]);
    yard.merged("ANNA", vec![stock, insert, stage]);
    assert_eq!(yard.text("SELECT stock FROM product WHERE id = 1"), "97");
    assert_eq!(yard.text("SELECT order_id, what FROM activity"), "10|'stage won'");
}

#[test]
fn r3_a_parent_that_was_replaced_keeps_children_that_the_node_does_not_have() {
    let mut yard = shop();
    // INSERT OR REPLACE on the node comes as an update of what differs.
    let change = yard.update("customer", &[int(1)], &[("name", "Acme Ltd".into())]);
    yard.merged("ANNA", vec![change]);
    assert_eq!(yard.text("SELECT count(*) FROM orders WHERE customer_id = 1"), "2");
    assert_eq!(yard.text("SELECT name, secret FROM customer WHERE id = 1"), "'Acme Ltd'|'s'");
    // A key that changed is an update of the key: the children go along.
    yard.sql("INSERT INTO line VALUES (11, 1, 1)");
    let change = yard.update("orders", &[int(11)], &[("id", int(77)), ("note", "moved".into())]);
    let child = yard.update("line", &[int(11), int(1)], &[("order_id", int(77)), ("qty", int(9))]);
    yard.merged("ANNA", vec![change, child]);
    assert_eq!(yard.text("SELECT id, note FROM orders WHERE id IN (11, 77)"), "77|'moved'");
    assert_eq!(yard.text("SELECT order_id, qty FROM line"), "77|9");
}

#[test]
fn mi54_mi55_mi61_f34_whatever_the_server_refuses_is_rolled_back_whole_and_told() {
    for (table, key, fields, row, says) in [
        ("customer", 1, vec![("credit", int(-1))], None, "customer 1: CHECK constraint failed: credit >= 0"),
        ("orders", 10, vec![("customer_id", Value::Null)], None, "orders 10: NOT NULL constraint failed: orders.customer_id"),
        ("orders", 10, vec![("customer_id", int(99))], None, "orders 10: FOREIGN KEY constraint failed: it refers to a row of customer"),
        ("customer", 1, vec![("name", "BOLT".into())], None, "customer 1: UNIQUE constraint failed: customer.name; customer 2 has it"),
        (
            "customer",
            0,
            vec![],
            Some(vec![int(3), "bolt".into(), int(1)]),
            "customer 3: UNIQUE constraint failed: customer.name; customer 2 has it",
        ),
    ] {
        let mut yard = shop();
        let good = yard.update("product", &[int(1)], &[("name", "other".into())]);
        let bad = row.map_or_else(|| yard.update(table, &[int(key)], &fields), |row| yard.insert(table, &row));
        yard.merged("ANNA", vec![good, bad]);
        assert!(yard.held().starts_with(says), "{}", yard.held());
        assert_eq!(yard.text("SELECT name FROM product WHERE id = 1"), "'nut'", "{says}");
        assert_eq!(yard.statuses(), "ANNA1 error");
        assert_eq!(yard.text("SELECT count(*) FROM dock_conflict"), "0");
        // mi53: it is not tried again by itself.
        assert_eq!(yard.merge(), 0);
    }
}

#[test]
fn mi61_a_trigger_that_says_no_is_heard_even_if_it_rolls_everything_back() {
    for raise in ["ABORT", "ROLLBACK", "FAIL"] {
        let mut yard = shop_and(&format!(
            "CREATE TRIGGER closed BEFORE UPDATE ON orders WHEN OLD.stage = 'closed' BEGIN SELECT RAISE({raise}, 'the order is closed'); END;
             UPDATE orders SET stage = 'closed' WHERE id = 11;"
        ));
        let first = yard.update("orders", &[int(10)], &[("note", "x".into())]);
        let second = yard.update("orders", &[int(11)], &[("note", "x".into())]);
        yard.merged("ANNA", vec![first, second]);
        assert_eq!(yard.held(), "orders 11: the order is closed", "{raise}");
        assert_eq!(yard.text("SELECT note FROM orders WHERE id = 10"), "'a'", "{raise}");
    }
}

#[test]
fn x34_f43_rows_come_in_any_order_and_children_move_before_their_parent_goes() {
    let mut yard = shop();
    yard.sql("INSERT INTO customer(id, name, credit) VALUES (3, 'Cork', 1); INSERT INTO orders VALUES (30, 3, 'd', 'new')");
    let changes = vec![
        yard.insert("line", &[int(20), int(2), int(1)]),
        yard.insert("orders", &[int(20), int(4), Value::Null, Value::Null]),
        yard.delete("customer", &[int(3)]),
        yard.update("orders", &[int(30)], &[("customer_id", int(4))]),
        yard.insert("customer", &[int(4), "Cork".into(), int(1)]),
    ];
    yard.merged("ANNA", changes);
    assert_eq!(yard.statuses(), "ANNA1 finished", "{:?}", yard.last_outcome());
    assert_eq!(yard.text("SELECT id FROM orders WHERE customer_id = 4 ORDER BY id"), "20 30");
    assert_eq!(yard.text("SELECT count(*) FROM customer WHERE id = 3"), "0");
}

#[test]
fn f42_unique_values_are_swapped_where_nobody_can_notice_and_refused_with_the_rival_elsewhere() {
    let swap = |yard: &mut Yard| {
        let changes = vec![
            yard.update("customer", &[int(1)], &[("name", "Bolt".into())]),
            yard.update("customer", &[int(2)], &[("name", "Acme".into())]),
        ];
        yard.merged("ANNA", changes);
    };
    let mut yard = shop();
    swap(&mut yard);
    assert_eq!(yard.text("SELECT name FROM customer ORDER BY id"), "'Bolt' 'Acme'");
    let mut yard = shop_and("CREATE TRIGGER seen AFTER UPDATE ON customer BEGIN INSERT INTO activity(what) VALUES (NEW.name); END;");
    swap(&mut yard);
    assert_eq!(yard.held(), "customer 1: UNIQUE constraint failed: customer.name; customer 2 has it");
    assert_eq!(yard.text("SELECT name FROM customer ORDER BY id"), "'Acme' 'Bolt'");
    assert_eq!(yard.text("SELECT count(*) FROM activity"), "0");
}

#[test]
fn f41_r43_deletes_against_updates_on_the_server() {
    for (policy, kept) in [("delete-wins", false), ("resurrect", true)] {
        let mut yard = shop();
        let orders = yard.dock.table("orders").unwrap();
        let at_home = (yard.row("orders", &[int(10)]), yard.row("orders", &[int(11)]));
        let (gone, changed) = (
            yard.update_from("orders", &[int(10)], &at_home.0, &[("note", "node".into())]),
            (yard.heading("orders"), RowChange::Delete { key: vec![int(11)], before: at_home.1, base: None }),
        );
        if kept {
            yard.dock.tables[orders].merge.delete = dockmaster::model::merge_rules::DeletePolicy::Resurrect;
            // As deployed: what the definition language says of it is not this test's.
            let dock = serde_json::to_string(&yard.dock).unwrap();
            yard.app.execute("UPDATE dock_definition SET dock = ?1", [dock]).unwrap();
        }
        yard.sql("DELETE FROM orders WHERE id = 10; UPDATE orders SET note = 'server' WHERE id = 11");
        let mut gone = gone;
        if let RowChange::Update { whole, .. } = &mut gone.1 {
            *whole = Some(vec![int(10), int(1), "node".into(), "new".into()]);
        }
        yard.merged("ANNA", vec![gone, changed]);
        let expected = if kept { "10|'node' 11|'server'" } else { "" };
        assert_eq!(yard.text("SELECT id, note FROM orders WHERE id IN (10, 11) ORDER BY id"), expected, "{policy}");
        let rules = yard.text("SELECT rule, winner, client FROM dock_conflict ORDER BY id");
        let (first, second) = if kept { ("client", "server") } else { ("server", "client") };
        assert_eq!(rules, format!("'{policy}'|'{first}'|'{{\"note\":\"node\"}}' '{policy}'|'{second}'|NULL"));
        assert_eq!(yard.statuses(), "ANNA1 finished");
    }
}

#[test]
fn mi59_mi60_r30_a_unit_that_lost_everything_is_finished_and_confirmed() {
    let mut yard = shop();
    let at_home = yard.row("orders", &[int(10)]);
    yard.sql("UPDATE orders SET note = 'server' WHERE id = 10");
    let before = yard.server().log_end().unwrap();
    let change = yard.update_from("orders", &[int(10)], &at_home, &[("note", "node".into())]);
    yard.merged("ANNA", vec![change]);
    assert_eq!(yard.text("SELECT status, conflicts, log_id FROM dock_unit"), format!("'finished'|1|{}", before.0 + 1));
    assert_eq!(yard.confirms().len(), 1);
}

#[test]
fn r11_what_only_the_server_sets_is_left_to_it_in_a_new_row() {
    let mut yard = Yard::new(
        "CREATE TABLE doc(id TEXT PRIMARY KEY NOT NULL, title TEXT, version INTEGER DEFAULT 1, stamp TEXT NOT NULL);
         CREATE TRIGGER doc_ai AFTER INSERT ON doc BEGIN UPDATE doc SET version = version + 10 WHERE id = NEW.id; END;",
        "version = 1\n[object.doc]\nvisible.all = 'everyone'\n",
    );
    let doc = yard.dock.table("doc").unwrap();
    yard.dock.tables[doc].merge.download_only = vec!["version".into(), "stamp".into()];
    let dock = serde_json::to_string(&yard.dock).unwrap();
    yard.app.execute("UPDATE dock_definition SET dock = ?1", [dock]).unwrap();
    let change = yard.insert("doc", &["d".into(), "T".into(), int(500), "needed".into()]);
    yard.merged("ANNA", vec![change]);
    assert_eq!(yard.text("SELECT * FROM doc"), "'d'|'T'|11|'needed'");
}

#[test]
fn r11_a_conflict_clause_of_the_servers_own_logic_holds_and_that_of_a_table_does_not() {
    let mut yard = Yard::new(
        "CREATE TABLE t(id TEXT PRIMARY KEY NOT NULL, v TEXT); CREATE TABLE seen(v TEXT UNIQUE);
         CREATE TRIGGER t_ai AFTER INSERT ON t BEGIN INSERT OR IGNORE INTO seen VALUES (NEW.v); END;
         CREATE TABLE u(id TEXT PRIMARY KEY NOT NULL, v TEXT UNIQUE ON CONFLICT REPLACE); INSERT INTO u VALUES ('a', 'x');",
        "version = 1\n[object.t]\nvisible.all = 'everyone'\n[object.u]\nvisible.all = 'everyone'\n",
    );
    let changes = vec![yard.insert("t", &["1".into(), "same".into()]), yard.insert("t", &["2".into(), "same".into()])];
    yard.merged("ANNA", changes);
    assert_eq!(yard.text("SELECT count(*) FROM t"), "2");
    let changes = vec![yard.insert("u", &["b".into(), "x".into()])];
    yard.merged("ANNA", changes);
    assert_eq!(yard.held(), "u 'b': UNIQUE constraint failed: u.v; u 'a' has it");
    assert_eq!(yard.text("SELECT * FROM u"), "'a'|'x'");
}

#[test]
fn t12_a_column_that_nodes_do_not_have_any_more_is_not_written_and_its_value_is_kept() {
    let mut yard = shop();
    let mut heading = (*yard.heading("customer")).clone();
    heading.columns.push("secret".into());
    let heading = std::sync::Arc::new(heading);
    let insert = (heading.clone(), RowChange::Insert { row: vec![int(5), "Dent".into(), int(1), "forged".into()] });
    yard.merged("ANNA", vec![insert]);
    assert_eq!(yard.text("SELECT name, secret FROM customer WHERE id = 5"), "'Dent'|'s'");
    assert_eq!(yard.text("SELECT column_name, client, rule FROM dock_conflict"), r#"'secret'|'"forged"'|'column-gone'"#);
}

#[test]
fn a_unit_with_more_conflicts_than_a_confirm_tells_says_how_many_more_there_are() {
    let rows: String = (100..1_250).map(|id| format!("INSERT INTO product VALUES ({id}, 'p', 1, 1, 1);")).collect();
    let mut yard = shop_and(&rows);
    let changes = (100..1_250).map(|id| yard.update("product", &[int(id)], &[("name", "of anna".into())])).collect();
    yard.sql("UPDATE product SET name = 'of the server' WHERE id >= 100");
    yard.merged("ANNA", changes);
    let confirms = yard.confirms();
    let Outcome::Merged { conflicts, .. } = &confirms[0].outcome else { panic!("{confirms:?}") };
    assert_eq!(conflicts.len(), 1_001);
    assert_eq!(conflicts[1_000].rule, "150 more conflicts are listed on the server");
    assert_eq!(yard.text("SELECT count(*) FROM dock_conflict"), "1150");
}
