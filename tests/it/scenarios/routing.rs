//! Scenarios C1 to C13: who gets which row, each as one small case against an oracle of plain SQL.

use crate::crm;
use crate::direct::Direct;
use dockmaster::server::nodes;
use dockmaster::server::pass::Stage;

const ALL: [&str; 3] = ["ANNA", "BERT", "CORA"];

#[test]
fn c1_a_row_for_everyone_reaches_all_nodes_and_leaves_all() {
    let mut direct = Direct::crm();
    direct.sql("INSERT INTO product VALUES(99, 'new')");
    direct.equal();
    assert_eq!(direct.who("SELECT 1 FROM product WHERE name = 'new'"), ALL);
    direct.sql("UPDATE product SET name = 'renamed' WHERE id = 99");
    direct.equal();
    assert_eq!(direct.who("SELECT 1 FROM product WHERE name = 'renamed'"), ALL);
    direct.sql("DELETE FROM product WHERE id = 99");
    direct.equal();
    assert!(direct.who("SELECT 1 FROM product WHERE id = 99").is_empty());
}

#[test]
fn c2_a_column_of_the_row_says_whose_it_is() {
    let mut direct = Direct::crm();
    for (position, seen_by) in [(4, vec!["ANNA", "BERT"]), (6, vec!["CORA"]), (5, vec!["BERT"]), (1, vec![]), (2, vec!["BERT"])] {
        direct.sql(&format!("INSERT OR REPLACE INTO opportunity VALUES(500, 1, {position}, 'moves', 1)"));
        direct.equal();
        assert_eq!(direct.who("SELECT 1 FROM opportunity WHERE id = 500"), seen_by, "position {position}");
    }
}

#[test]
fn c3_null_belongs_to_nobody() {
    let mut direct = Direct::crm();
    direct.sql("INSERT INTO opportunity VALUES(500, 1, NULL, 'nobody''s', 1)");
    direct.equal();
    assert!(direct.who("SELECT 1 FROM opportunity WHERE id = 500").is_empty());
    direct.sql("UPDATE opportunity SET position_id = 4 WHERE id = 500");
    direct.equal();
    assert_eq!(direct.who("SELECT 1 FROM opportunity WHERE id = 500"), ["ANNA", "BERT"]);
    direct.sql("UPDATE opportunity SET position_id = NULL WHERE id = 500");
    direct.equal();
    assert!(direct.who("SELECT 1 FROM opportunity WHERE id = 500").is_empty());
}

#[test]
fn c4_a_lookup_table_says_whose_the_row_is() {
    let mut direct = Direct::crm();
    direct.sql("INSERT INTO account VALUES(500, 'customer', 'looked up')");
    direct.equal();
    assert!(direct.who("SELECT 1 FROM account WHERE id = 500").is_empty());
    direct.sql("INSERT INTO account_team VALUES(500, 4), (500, 6)");
    direct.equal();
    assert_eq!(direct.who("SELECT 1 FROM account WHERE id = 500"), ["ANNA", "CORA"]);
    direct.sql("UPDATE account_team SET position_id = 2 WHERE account_id = 500 AND position_id = 4");
    direct.equal();
    assert_eq!(direct.who("SELECT 1 FROM account WHERE id = 500"), ["BERT", "CORA"]);
    direct.sql("DELETE FROM account_team WHERE account_id = 500");
    direct.equal();
    assert!(direct.who("SELECT 1 FROM account WHERE id = 500").is_empty());
}

#[test]
fn c5_a_row_follows_what_its_parent_is_visible_by() {
    let mut direct = Direct::crm();
    direct.sql("INSERT INTO account VALUES(500, 'customer', 'parent'); INSERT INTO contact VALUES(500, 500, 'child')");
    direct.equal();
    assert!(direct.who("SELECT 1 FROM contact WHERE id = 500").is_empty());
    direct.sql("INSERT INTO account_team VALUES(500, 4)");
    direct.equal();
    assert_eq!(direct.who("SELECT 1 FROM contact WHERE id = 500"), ["ANNA"]);
    // Account 2 is of the team of position 6: the contact goes with its new parent.
    direct.sql("UPDATE contact SET account_id = 2 WHERE id = 500");
    direct.equal();
    assert_eq!(direct.who("SELECT 1 FROM contact WHERE id = 500"), ["CORA"]);
    direct.sql("UPDATE contact SET account_id = NULL WHERE id = 500");
    direct.equal();
    assert!(direct.who("SELECT 1 FROM contact WHERE id = 500").is_empty());
}

#[test]
fn c6_a_parent_deleted_before_routing_takes_its_children_along() {
    let mut direct = Direct::crm();
    let stages = |direct: &Direct| direct.stages(&[Stage::TxnProc]);
    // Read as units of their own, all before the Router looks.
    direct.sql("INSERT INTO opportunity VALUES(500, 9, 4, 'short-lived', 1); INSERT INTO opportunity_line VALUES(500, 500, 1, 1), (501, 500, 2, 1)");
    stages(&direct);
    direct.sql("UPDATE opportunity_line SET quantity = 9 WHERE opportunity_id IN (500, 1)");
    stages(&direct);
    direct.sql("PRAGMA foreign_keys = ON; DELETE FROM opportunity WHERE id IN (500, 1)");
    stages(&direct);
    // And a parent whose children stay behind without it.
    direct.sql("DELETE FROM account WHERE id = 3; DELETE FROM account_team WHERE account_id = 3");
    stages(&direct);
    direct.equal();
    assert!(direct.who("SELECT 1 FROM opportunity WHERE id IN (500, 1)").is_empty());
    assert!(direct.who("SELECT 1 FROM opportunity_line WHERE opportunity_id IN (500, 1)").is_empty());
}

#[test]
fn c7_a_row_that_comes_into_view_brings_the_whole_object_and_what_it_refers_to() {
    let mut direct = Direct::crm();
    direct.sql("INSERT INTO account VALUES(500, 'customer', 'unseen'); INSERT INTO opportunity VALUES(500, 500, 5, 'unseen', 1); INSERT INTO opportunity_line VALUES(500, 500, 1, 1), (501, 500, 2, 2)");
    direct.equal();
    assert_eq!(direct.who("SELECT 1 FROM opportunity WHERE id = 500"), ["BERT"]);
    direct.sql("UPDATE opportunity SET position_id = 6 WHERE id = 500");
    direct.equal();
    assert_eq!(direct.newest("CORA"), ["put account", "put opportunity", "put opportunity_line", "put opportunity_line"]);
}

#[test]
fn c8_a_row_that_goes_out_of_view_is_deleted_with_its_object_and_what_only_it_referred_to() {
    let mut direct = Direct::crm();
    direct.sql("INSERT INTO account VALUES(500, 'customer', 'seen'); INSERT INTO opportunity VALUES(500, 500, 6, 'seen', 1); INSERT INTO opportunity_line VALUES(500, 500, 1, 1), (501, 500, 2, 2)");
    direct.equal();
    assert_eq!(direct.who("SELECT 1 FROM opportunity WHERE id = 500"), ["CORA"]);
    direct.sql("UPDATE opportunity SET position_id = 5, name = 'not for CORA any more' WHERE id = 500");
    direct.equal();
    assert_eq!(direct.newest("CORA"), ["delete account", "delete opportunity", "delete opportunity_line", "delete opportunity_line"]);
    assert!(
        crm::traces(&direct.site.path("docking/CORA"), "not for CORA any more").is_empty(),
        "the new values are not shown to who lost the row"
    );
}

#[test]
fn c8_x14_a_realigned_position_moves_rows_with_their_children_from_node_to_node() {
    let mut direct = Direct::crm();
    // The whole position 4 is handed from BERT's branch to another.
    direct.sql("UPDATE position SET parent_id = 3 WHERE id = 4");
    direct.equal();
    assert!(!direct.has("BERT", "SELECT 1 FROM opportunity WHERE position_id = 4"));
    // And CORA's employee takes position 3, so that she sees both.
    direct.sql("UPDATE employee SET position_id = 3 WHERE id = 6");
    direct.equal();
    assert!(
        direct.has("CORA", "SELECT 1 FROM opportunity WHERE position_id = 4")
            && direct.has("CORA", "SELECT 1 FROM opportunity WHERE position_id = 6")
    );
}

#[test]
fn c11_children_before_their_parents_in_one_transaction_and_in_several() {
    let mut direct = Direct::crm();
    direct.sql("BEGIN; INSERT INTO opportunity_line VALUES(500, 500, 1, 1); INSERT INTO opportunity VALUES(500, 500, 6, 'late', 1); INSERT INTO account VALUES(500, 'customer', 'later'); COMMIT");
    direct.equal();
    assert_eq!(direct.who("SELECT 1 FROM opportunity_line WHERE id = 500"), ["CORA"]);
    for sql in [
        "INSERT INTO opportunity_line VALUES(600, 600, 1, 1)",
        "INSERT INTO opportunity VALUES(600, 600, 6, 'late', 1)",
        "INSERT INTO account VALUES(600, 'customer', 'later')",
    ] {
        direct.sql(sql);
        direct.equal();
    }
    assert_eq!(direct.who("SELECT 1 FROM opportunity_line JOIN opportunity o ON o.id = opportunity_id JOIN account a ON a.id = account_id WHERE a.id = 600"), ["CORA"]);
}

#[test]
fn c13_a_disabled_node_gets_nothing_and_begins_anew_with_an_extract() {
    let mut direct = Direct::crm();
    let anna = "ANNA".parse().unwrap();
    nodes::disable(&direct.server(), &anna).unwrap();
    direct.sql("INSERT INTO product VALUES(99, 'after the end'); UPDATE opportunity SET name = 'after the end' WHERE position_id = 4");
    direct.move_on();
    crm::equal(&direct.site, &["BERT", "CORA"]);
    assert!(crm::traces(&direct.site.path("docking/ANNA/outbox"), "after the end").is_empty());
    assert!(!direct.has("ANNA", "SELECT 1 FROM product WHERE id = 99"));
    nodes::enable(&direct.server(), &anna).unwrap();
    direct.start("ANNA");
    direct.equal();
}
