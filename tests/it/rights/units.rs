//! Single units: what is allowed, what is refused and with which words, what is a conflict.

use super::*;
use dockmaster::model::merge_rules::MergeRules;

fn reason(refused: Result<Vec<Right>, Refused>) -> (String, bool) {
    match refused.unwrap_err() {
        Refused::Before(refusal) | Refused::After(refusal) => (refusal.reason, refusal.alert),
        Refused::Constraint(reason) => panic!("a constraint: {reason}"),
    }
}

#[test]
fn r19_honest_units_pass_one_after_the_other_without_any_stage_running() {
    let place = Place::new();
    let anna = &place.anna;
    let order = [int(20), int(2), int(1), int(1), text("n"), Value::Null];
    place.merge(anna, &place.unit(vec![place.insert("orders", &order), place.insert("line", &[int(20), int(1), text("w")])])).unwrap();
    place.merge(anna, &place.unit(vec![place.update("orders", &[int(20)], &[("amount", int(2))])])).unwrap();
    // A key change takes the lines along.
    place.merge(anna, &place.unit(vec![place.update("orders", &[int(20)], &[("id", int(21))])])).unwrap();
    assert_eq!(place.rows("SELECT order_id FROM line WHERE what = 'w'"), [[int(21)]]);
    place.merge(anna, &place.unit(vec![place.delete("orders", &[int(21)])])).unwrap();
    assert!(place.rows("SELECT * FROM line WHERE what = 'w'").is_empty());
    // What is gone is gone, in either order of the keys.
    let rights = place.merge(anna, &place.unit(vec![place.delete("orders", &[int(21)])])).unwrap();
    assert_eq!(rights, [Right::Go { server: None }]);
    // A row of the team that the unit itself makes.
    let changes = vec![place.insert("team_member", &[int(3), int(1)]), place.insert("team", &[int(3), text("east")])];
    let rights = place.before(anna, &place.unit(changes)).unwrap();
    assert_eq!(rights.len(), 2);
}

#[test]
fn r18_t2_what_is_seen_only_by_reference_is_read_only_and_never_deleted() {
    let place = Place::new();
    let unit = place.unit(vec![place.update("customer", &[int(1)], &[("credit", int(99))])]);
    let (said, alert) = reason(place.merge(&place.anna, &unit));
    assert!(
        said.starts_with("customer 1: ANNA sees it only since something refers to it") && said.contains("writable") && !alert,
        "{said}"
    );
    let (said, alert) = reason(place.merge(&place.anna, &place.unit(vec![place.delete("customer", &[int(1)])])));
    assert!(said.contains("may not delete it") && !alert, "{said}");
    let changes = vec![
        place.insert("customer", &[int(9), text("New"), int(0)]),
        place.insert("orders", &[int(30), int(9), int(1), int(1), Value::Null, Value::Null]),
    ];
    let (said, _) = reason(place.merge(&place.anna, &place.unit(changes.clone())));
    assert!(said.starts_with("customer 9: ANNA would see it only since"), "{said}");

    let place = Place::with(&DEFINITION.replace("[object.customer]", "[object.customer]\nwritable = true"));
    place.merge(&place.anna, &unit).unwrap();
    place.merge(&place.anna, &place.unit(changes)).unwrap();
    assert_eq!(place.rows("SELECT credit FROM customer WHERE id IN (1, 9) ORDER BY id"), [[int(99)], [int(0)]]);
    let (said, _) = reason(place.merge(&place.anna, &place.unit(vec![place.delete("customer", &[int(1)])])));
    assert!(said.contains("may not delete it"), "{said}");
}

#[test]
fn r18_a_delete_whose_cascade_reaches_rows_that_the_node_does_not_see_is_refused_with_table_key_and_count() {
    let seen = DEFINITION.replace("visible.ordered = 'referenced by orders'", "visible = 'everyone'");
    let place = Place::with(&seen);
    place.sql("INSERT INTO orders(id, customer_id, employee_id) VALUES (15, 1, 2); INSERT INTO line VALUES (15, 1, 'q'), (15, 2, 'r')");
    let (said, alert) = reason(place.merge(&place.anna, &place.unit(vec![place.delete("customer", &[int(1)])])));
    assert!(
        said.contains("3 rows of line, the first with key (11, 1)") || said.contains("3 rows of line, the first with key (15, 1)"),
        "{said}"
    );
    assert!(said.contains("2 rows of orders, the first with key 11") && !alert, "{said}");
    // Customer 2 has orders of Anna's alone, but something that no node gets hangs on one of them.
    let (said, _) = reason(place.merge(&place.anna, &place.unit(vec![place.delete("customer", &[int(2)])])));
    assert!(said.ends_with("1 row of audit, the first with key 1"), "{said}");
    let (said, _) = reason(place.merge(&place.anna, &place.unit(vec![place.delete("orders", &[int(14)])])));
    assert!(said.contains("audit"), "{said}");
    place.sql("DELETE FROM audit");
    place.merge(&place.anna, &place.unit(vec![place.delete("customer", &[int(2)])])).unwrap();
    assert!(place.rows("SELECT * FROM orders WHERE id IN (12, 14)").is_empty());
}

#[test]
fn r18_a_cascade_is_found_by_the_comparison_of_sqlites_foreign_keys() {
    let place = Place::new();
    // A child without affinity holds the text of the number: for SQLite it refers to the order, and goes with it.
    place.sql(
        "CREATE TABLE loose(id INTEGER PRIMARY KEY, order_id REFERENCES orders(id) ON DELETE CASCADE); INSERT INTO loose VALUES (1, '12')",
    );
    let schema = place.db.schema().unwrap();
    let basis = Basis { schema: &schema, ..place.basis() };
    let unit = place.unit(vec![place.delete("orders", &[int(12)])]);
    let said = Rights::new(&place.db, basis, &place.anna).before(InstallId([1; 16]), &unit).unwrap().unwrap_err();
    assert!(said.reason.contains("1 row of loose"), "{}", said.reason);
    place.sql("DELETE FROM orders WHERE id = 12");
    assert!(place.rows("SELECT * FROM loose").is_empty());
}

#[test]
fn r19_a_row_that_left_the_view_while_the_node_was_away_is_a_conflict_and_one_never_seen_an_alert() {
    let place = Place::new();
    let away = place.end();
    let change = |id: i64| place.update("orders", &[int(id)], &[("amount", int(7))]);
    let unit = unit_at(away, vec![change(10), change(12)]);
    place.sql("UPDATE orders SET employee_id = 2 WHERE id = 10");
    let rights = place.before(&place.anna, &unit).unwrap();
    assert!(matches!(&rights[..], [Right::OutOfView { .. }, Right::Go { server: Some(_) }]), "{rights:?}");
    // Its member left with it.
    let member = unit_at(away, vec![place.update("line", &[int(10), int(1)], &[("what", text("new"))])]);
    assert!(matches!(place.before(&place.anna, &member).unwrap()[..], [Right::OutOfView { .. }]));
    // The node had heard of it already, and touches it all the same.
    let refusal = place.before(&place.anna, &unit_at(place.end(), vec![change(10)])).unwrap_err();
    assert!(refusal.alert && refusal.reason == "orders 10: ANNA does not see it and never did", "{}", refusal.reason);
    let refusal = place.before(&place.anna, &unit_at(away, vec![change(12), change(11)])).unwrap_err();
    assert!(refusal.alert && refusal.place == 1, "{}", refusal.reason);
    // A node that moved lost everything at once.
    let far = place.end();
    let settings = NodeSettings { model: None, attributes: BTreeMap::from([("employee".to_owned(), vec!["2".to_owned()])]) };
    let moved = nodes::set(&place.db, &place.dock, &place.anna.name, &settings).unwrap();
    let rights = place.before(&moved, &unit_at(far, vec![change(12), change(14)])).unwrap();
    assert!(rights.iter().all(|right| matches!(right, Right::OutOfView { .. })), "{rights:?}");
    // What is younger than the node's last look was never its.
    place.sql("INSERT INTO orders(id, customer_id, employee_id) VALUES (40, 3, 1)");
    let refusal = place.before(&moved, &unit_at(far, vec![change(40)])).unwrap_err();
    assert!(refusal.alert, "{}", refusal.reason);
}

#[test]
fn r19_where_the_log_does_not_reach_back_the_node_is_believed_and_nothing_is_written() {
    let place = Place::new();
    let unit = unit_at(TxnId(1), vec![place.update("orders", &[int(11)], &[("amount", int(7))])]);
    assert!(place.before(&place.anna, &unit).unwrap_err().alert);
    place.sql("INSERT INTO orders(id, customer_id, employee_id) VALUES (41, 3, 2); DELETE FROM dock_txn_log WHERE id <= 3");
    assert!(matches!(place.merge(&place.anna, &unit).unwrap()[..], [Right::OutOfView { .. }]));
    assert_eq!(place.rows("SELECT amount FROM orders WHERE id = 11"), [[int(200)]]);
}

#[test]
fn r31_a_row_that_the_node_would_not_see_is_refused_unless_it_may_be_given_away() {
    let place = Place::new();
    let order = [int(20), int(2), int(2), int(1), text("n"), Value::Null];
    let (said, alert) = reason(place.merge(&place.anna, &place.unit(vec![place.insert("orders", &order)])));
    assert!(said.starts_with("orders 20: no rule would show it to ANNA") && said.contains("give_away") && !alert, "{said}");
    let (said, _) = reason(place.merge(&place.anna, &place.unit(vec![place.update("orders", &[int(10)], &[("employee_id", int(2))])])));
    assert!(said.starts_with("orders 10: no rule would show it"), "{said}");
    assert_eq!(place.rows("SELECT employee_id FROM orders WHERE id IN (10, 20)"), [[int(1)]]);
    let away = place.end();
    place.merge(&place.anna, &place.unit(vec![place.insert("memo", &[text("m3"), int(2), text("for Bert")])])).unwrap();
    place.merge(&place.anna, &place.unit(vec![place.update("memo", &[text("m1")], &[("owner", int(2))])])).unwrap();
    // A later unit that was cut before: the memo is Bert's now.
    let unit = unit_at(away, vec![place.update("memo", &[text("m3")], &[("body", text("more"))])]);
    assert!(matches!(place.before(&place.anna, &unit).unwrap()[..], [Right::OutOfView { .. }]));
    assert!(
        place.before(&place.anna, &place.unit(vec![place.update("memo", &[text("m2")], &[("body", text("more"))])])).unwrap_err().alert
    );
}

#[test]
fn r31_mi35_private_rows_go_up_from_anybody_and_only_their_author_changes_them() {
    let place = Place::new();
    place.merge(&place.anna, &place.unit(vec![place.insert("expense", &[text("e1"), int(5)])])).unwrap();
    place.merge(&place.bert, &place.unit(vec![place.insert("expense", &[text("e2"), int(6)])])).unwrap();
    place.merge(&place.anna, &place.unit(vec![place.update("expense", &[text("e1")], &[("amount", int(7))])])).unwrap();
    for key in ["e0", "e2"] {
        for change in [place.update("expense", &[text(key)], &[("amount", int(0))]), place.delete("expense", &[text(key)])] {
            let (said, alert) = reason(place.merge(&place.anna, &place.unit(vec![change])));
            assert!(alert && said.contains("does not see it and never did"), "{said}");
        }
    }
    place.merge(&place.anna, &place.unit(vec![place.update("expense", &[text("e1")], &[("id", text("e9"))])])).unwrap();
    assert_eq!(place.rows("SELECT count(*) FROM dock_owner WHERE node = 'ANNA'"), [[int(1)]], "under its new name alone");
    place.merge(&place.anna, &place.unit(vec![place.delete("expense", &[text("e9")])])).unwrap();
    // The key is free again for anybody, and then his.
    place.merge(&place.bert, &place.unit(vec![place.insert("expense", &[text("e1"), int(1)])])).unwrap();
    assert!(place.before(&place.anna, &place.unit(vec![place.update("expense", &[text("e1")], &[("amount", int(0))])])).is_err());
    assert!(place.before(&place.bert, &place.unit(vec![place.update("expense", &[text("e1")], &[("amount", int(0))])])).is_ok());
    assert_eq!(place.rows("SELECT count(*) FROM dock_owner WHERE node = 'ANNA'"), [[int(0)]]);
}

#[test]
fn mi40_nothing_goes_up_into_a_download_object() {
    let place = Place::new();
    for change in
        [place.insert("price", &[int(2), int(1)]), place.update("price", &[int(1)], &[("value", int(1))]), place.delete("price", &[int(1)])]
    {
        let refusal = place.before(&place.anna, &place.unit(vec![change])).unwrap_err();
        assert!(refusal.reason.contains("object price has direction download"), "{}", refusal.reason);
    }
}

#[test]
fn t2_nobody_joins_a_team_by_adding_himself() {
    let place = Place::new();
    let (said, alert) = reason(place.merge(&place.anna, &place.unit(vec![place.insert("team_member", &[int(2), int(1)])])));
    assert!(said.contains("it belongs to team 2, which ANNA does not see") && alert, "{said}");
    let moves = place.update("team_member", &[int(1), int(1)], &[("team_id", int(2))]);
    let (said, _) = reason(place.merge(&place.anna, &place.unit(vec![moves])));
    assert!(said.contains("it belongs to team 2"), "{said}");
    place.merge(&place.anna, &place.unit(vec![place.insert("team_member", &[int(1), int(2)])])).unwrap();
}

#[test]
fn t2_columns_that_a_node_does_not_have_or_may_not_change_are_refused() {
    let place = Place::new();
    let refused = |heading: TableHeading, change: RowChange| {
        let unit = place.unit(vec![(Arc::new(heading), change)]);
        place.before(&place.anna, &unit).unwrap_err().reason
    };
    let heading = |columns: &[&str], key: &[u16]| TableHeading {
        name: "orders".into(),
        columns: columns.iter().map(|name| (*name).to_owned()).collect(),
        key: key.to_vec(),
    };
    let field = |column| FieldChange { column, before: Value::Null, base: Value::Null, after: int(1) };
    let update = |fields: Vec<FieldChange>| RowChange::Update { key: vec![int(10)], fields, whole: None };
    let said = refused(heading(&["id", "secret"], &[0]), update(vec![field(1)]));
    assert_eq!(said, "table orders: nodes have no column \"secret\"");
    let said = refused(heading(&["id", "x\"; DROP TABLE orders; --"], &[0]), update(vec![field(1)]));
    assert!(said.starts_with("table orders: nodes have no column"), "{said}");
    let said = refused(heading(&["id", "approved"], &[0]), update(vec![field(1)]));
    assert_eq!(said, "table orders: only the server changes column approved");
    assert!(refused(heading(&["id", "note", "Note"], &[0]), update(vec![])).contains("twice"));
    assert!(refused(heading(&["note", "id"], &[0]), update(vec![])).contains("its key is (id)"));
    assert!(refused(heading(&["id"], &[]), update(vec![])).contains("its key is (id)"));
    assert!(refused(heading(&["id"], &[7]), update(vec![])).contains("its key is (id)"));
    assert!(refused(heading(&["id", "note"], &[0]), update(vec![field(5)])).contains("a field of a column"));
    assert!(refused(heading(&["id", "note"], &[0]), update(vec![field(1), field(1)])).contains("a field twice"));
    assert!(refused(heading(&["id", "note"], &[0]), RowChange::Insert { row: vec![int(1)] }).contains("number of values"));
    assert!(refused(heading(&["id", "note"], &[0]), RowChange::Insert { row: vec![Value::Null, int(1)] }).contains("not complete"));
    let empty = RowChange::Update { key: vec![], fields: vec![], whole: None };
    assert!(refused(heading(&["id", "note"], &[0]), empty).contains("not complete"));
    let delete = RowChange::Delete { key: vec![int(10)], before: vec![], base: None };
    assert!(refused(heading(&["id", "note"], &[0]), delete).contains("number of values"));
    // A row with the column that only the server changes is how every row is inserted.
    let rights =
        place.before(&place.anna, &place.unit(vec![place.insert("orders", &[int(20), int(2), int(1), int(1), text("n"), int(1)])]));
    assert_eq!(rights.unwrap(), [Right::Go { server: None }]);
    assert_ne!(place.dock.tables[place.dock.table("orders").unwrap()].merge, MergeRules::default());
}

#[test]
fn t12_a_key_of_another_type_that_sqlite_holds_equal_is_no_way_to_a_row() {
    let place = Place::new();
    for key in [text("11"), Value::Real(11.0), text(" 11"), text("11.0")] {
        for change in
            [place.update("orders", std::slice::from_ref(&key), &[("amount", int(0))]), place.delete("orders", std::slice::from_ref(&key))]
        {
            let rights = place.before(&place.anna, &place.unit(vec![change])).unwrap();
            assert_eq!(rights, [Right::Go { server: None }], "{key}");
        }
    }
}
