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

#[test]
fn c10_random_changes_of_the_hierarchy_and_of_who_sits_where() {
    let mut direct = Direct::crm();
    let seed = crate::harness::seed();
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for step in 0..40 {
        let (one, other) = (random.i64(1..=6), random.i64(1..=6));
        direct.sql(&match random.u32(0..6) {
            // Also a branch that hangs in the air for a while.
            0 => format!("UPDATE position SET parent_id = NULL WHERE id = {one}"),
            // A smaller number leads, so the tree has no circle.
            1 | 2 => format!("UPDATE position SET parent_id = {} WHERE id = {}", one.min(other), one.max(other) + 1),
            3 => format!("UPDATE employee SET position_id = {one} WHERE id = {other}"),
            4 => format!("INSERT OR IGNORE INTO position VALUES({}, {one}, 'new'); UPDATE opportunity SET position_id = {} WHERE id % 9 = {other}", 10 + step, 10 + step),
            _ => format!("BEGIN; UPDATE employee SET position_id = 2 WHERE id = {one}; UPDATE position SET parent_id = 2 WHERE id > {other} AND id > 2; COMMIT"),
        });
        if random.bool() {
            direct.equal();
        }
    }
    direct.equal();
}

#[test]
fn c10_a_circle_of_positions_is_followed_once() {
    let mut direct = Direct::crm();
    direct.sql("UPDATE position SET parent_id = 4 WHERE id = 2");
    direct.equal();
    assert!(direct.has("ANNA", "SELECT 1 FROM opportunity WHERE position_id = 5"), "4 leads 2, and 2 leads 5");
    direct.sql("UPDATE position SET parent_id = 1 WHERE id = 2");
    direct.equal();
    assert!(!direct.has("ANNA", "SELECT 1 FROM opportunity WHERE position_id = 5"));
}

#[test]
fn c15_a_change_that_concerns_nobody_is_taken_note_of_and_sent_to_nobody_then_or_later() {
    let mut direct = Direct::crm();
    let files = |direct: &Direct| ALL.map(|node| crm::dx_files(&direct.site, &format!("docking/{node}/outbox")).len());
    direct.sql(
        "INSERT INTO account VALUES(500, 'customer', 'unseen by all'); INSERT INTO opportunity VALUES(500, 500, NULL, 'unseen by all', 1)",
    );
    let before = files(&direct);
    // Older ones may be purged; the newest stays.
    let newest = |direct: &Direct| crm::dx_files(&direct.site, "docking/txnproc").pop().map(|path| path.file_name().unwrap().to_owned());
    let taken = newest(&direct);
    direct.equal();
    assert_eq!(files(&direct), before, "nobody gets a file");
    assert!(newest(&direct) > taken, "but it stands in the stream: {:?}", newest(&direct));
    for node in ALL {
        assert!(crm::traces(&direct.site.path(&format!("docking/{node}")), "unseen by all").is_empty());
    }
    direct.sql("UPDATE opportunity SET amount = 2 WHERE id = 500");
    direct.equal();
    assert_eq!(files(&direct), before);
    // Once somebody may see it, it comes whole, and once.
    direct.sql("UPDATE opportunity SET position_id = 6 WHERE id = 500");
    direct.equal();
    assert_eq!(direct.newest("CORA"), ["put account", "put opportunity"]);
    assert_eq!(files(&direct), [before[0], before[1], before[2] + 1]);
}

/// Whatever moves: where the server keeps its foreign keys, each node's rows keep them too, after every unit. So no order of
/// rows and no parent that is out of view can break a program of the node that has them enforced.
#[test]
fn f43_every_node_keeps_every_foreign_key_that_the_server_keeps() {
    let mut direct = Direct::crm();
    let seed = crate::harness::seed();
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let broken = |path: &std::path::Path| crate::harness::literals(path, "SELECT * FROM pragma_foreign_key_check");
    for _ in 0..60 {
        let (id, account, position) = (random.i64(1..70), random.i64(1..=34), random.i64(1..=6));
        let sql = match random.u32(0..8) {
            0 => format!("UPDATE opportunity SET position_id = {position} WHERE id % 10 = {id} % 10"),
            1 => format!("INSERT INTO account VALUES({account}, 'customer', 'new') ON CONFLICT DO NOTHING"),
            2 => format!(
                "UPDATE opportunity SET account_id = (SELECT id FROM account ORDER BY (id + {account}) % 31 LIMIT 1) WHERE id = {id}"
            ),
            3 => format!("DELETE FROM opportunity WHERE id = {id}"),
            4 => format!("DELETE FROM account_team WHERE account_id = {account}"),
            5 => format!("INSERT INTO account_team SELECT id, {position} FROM account WHERE id % 7 = {id} % 7 ON CONFLICT DO NOTHING"),
            6 => format!(
                "UPDATE contact SET account_id = NULL WHERE account_id = {account}; DELETE FROM account_team WHERE account_id = {account};
                          DELETE FROM opportunity WHERE account_id = {account}; DELETE FROM account WHERE id = {account}"
            ),
            _ => format!("UPDATE contact SET account_id = (SELECT max(id) FROM account) WHERE id = {id}"),
        };
        direct.sql(&format!("PRAGMA foreign_keys = ON; BEGIN; {sql}; COMMIT"));
        assert!(broken(&direct.site.path("hq.db")).is_empty(), "{sql}");
        direct.equal();
        for node in ALL {
            assert_eq!(broken(&direct.site.path(&crm::local(node))), Vec::<String>::new(), "{node} after {sql}");
        }
    }
}
