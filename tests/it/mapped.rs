//! What of the server's changes goes down to whom: mapped columns only, by the direction of the table, in the node's language, and
//! the same whoever asks for it and when.

use crate::crm;
use crate::direct::Direct;
use crate::harness::literals;
use rusqlite::Connection;
use std::path::Path;

const SHOP: &str = "
CREATE TABLE article(id INTEGER PRIMARY KEY, name TEXT NOT NULL, margin INTEGER);
CREATE TABLE phrase(id INTEGER, lang TEXT, text TEXT NOT NULL, PRIMARY KEY(id, lang));
CREATE TABLE visit(id INTEGER PRIMARY KEY, lang TEXT, note TEXT);
CREATE TABLE diary(id INTEGER PRIMARY KEY, lang TEXT, text TEXT);
INSERT INTO article VALUES (1, 'tea', 40), (2, 'rice', 10);
INSERT INTO phrase VALUES (1, 'en', 'good day'), (1, 'de', 'Guten Tag'), (1, 'cs', 'Dobrý den'), (2, 'en', 'na\u{ef}ve'), (2, 'de', 'naiv');
INSERT INTO visit VALUES (1, 'de', 'first'), (2, 'cs', 'second');
INSERT INTO diary VALUES (1, 'de', 'mine');
";

const DEFINITION: &str = r#"version = 1
[node]
lang = { type = "text", many = true }
[object.article]
direction = "download"
visible = 'everyone'
[object.phrase]
direction = "download"
visible.own = 'phrase.lang = node.lang'
[object.visit]
visible.own = 'visit.lang = node.lang'
[object.diary]
direction = "upload"
visible.own = 'diary.lang = node.lang'
[table.article]
omit = ["margin"]
"#;

/// The same, with the rows of one language for everybody.
fn with_default() -> String {
    DEFINITION.replace("[object.visit]", "visible.standard = { rule = 'everyone', where = \"lang = 'en'\" }\n[object.visit]")
}

fn database(path: &Path) {
    Connection::open(path).unwrap().execute_batch(SHOP).unwrap();
}

/// A server with one node a language, and what each holds of a table.
fn shop(definition: &str, nodes: &[(&str, &str)]) -> Direct {
    let mut direct = Direct::new(database, definition);
    for (node, lang) in nodes {
        direct.add(node, "lang", lang);
    }
    direct
}

fn held(direct: &Direct, node: &str, query: &str) -> Vec<String> {
    literals(&direct.site.path(&crm::local(node)), query)
}

fn files(direct: &Direct, node: &str) -> usize {
    crm::dx_files(&direct.site, &format!("docking/{node}/outbox")).len()
}

#[test]
fn mi34_a_change_of_a_column_that_is_not_replicated_sends_nothing() {
    let mut direct = shop(DEFINITION, &[("BONN", "de")]);
    direct.move_on();
    let before = files(&direct, "BONN");
    direct.sql("UPDATE article SET margin = margin + 1");
    direct.move_on();
    assert_eq!(files(&direct, "BONN"), before, "nothing that the node has was changed");
    // In one statement with a column that is: that column alone travels.
    direct.sql("UPDATE article SET margin = 99, name = 'green tea' WHERE id = 1");
    direct.move_on();
    assert_eq!(files(&direct, "BONN"), before + 1);
    assert_eq!(held(&direct, "BONN", "SELECT * FROM article"), ["1 | 'green tea'", "2 | 'rice'"]);
    assert_eq!(crm::traces(&direct.site.path("docking/BONN"), "margin"), Vec::<std::path::PathBuf>::new());
}

#[test]
fn mi35_what_the_server_changes_in_an_upload_table_reaches_no_node() {
    let mut direct = shop(DEFINITION, &[("BONN", "de")]);
    assert_eq!(held(&direct, "BONN", "SELECT * FROM diary"), ["1 | 'de' | 'mine'"], "an extract refills what the rule says");
    direct.move_on();
    let before = files(&direct, "BONN");
    direct.sql(
        "UPDATE diary SET text = 'read by the office'; INSERT INTO diary VALUES (2, 'de', 'by the office'); DELETE FROM diary WHERE id = 1",
    );
    direct.move_on();
    assert_eq!(files(&direct, "BONN"), before);
    assert_eq!(held(&direct, "BONN", "SELECT * FROM diary"), ["1 | 'de' | 'mine'"]);
    // It is the direction that keeps it back: the same kind of change of a two-way table goes down.
    direct.sql("UPDATE visit SET note = 'read by the office' WHERE id = 1");
    direct.move_on();
    assert_eq!(files(&direct, "BONN"), before + 1);
}

#[test]
fn mi45_mi46_mi47_a_node_gets_the_rows_in_its_language_and_sends_its_own() {
    let mut direct = shop(DEFINITION, &[("BONN", "de"), ("BRNO", "cs"), ("BERN", "de,cs")]);
    assert_eq!(held(&direct, "BONN", "SELECT text FROM phrase"), ["'Guten Tag'", "'naiv'"]);
    assert_eq!(held(&direct, "BRNO", "SELECT text FROM phrase"), ["'Dobrý den'"]);
    assert_eq!(held(&direct, "BERN", "SELECT text FROM phrase"), ["'Dobrý den'", "'Guten Tag'", "'naiv'"]);
    // No byte of another language is in a file of a node.
    direct.sql("INSERT INTO phrase VALUES (3, 'de', 'Wiedersehen'), (3, 'cs', 'Nashledanou'), (3, 'en', 'bye')");
    direct.move_on();
    assert_eq!(held(&direct, "BONN", "SELECT text FROM phrase WHERE id = 3"), ["'Wiedersehen'"]);
    for (node, foreign) in [("BONN", "Nashledanou"), ("BRNO", "Wiedersehen"), ("BERN", "bye")] {
        assert!(crm::traces(&direct.site.path(&format!("docking/{node}")), foreign).is_empty(), "{node} was sent {foreign}");
    }
    // Two-way rows: the same rule, nothing more to set (MI-46).
    assert_eq!(held(&direct, "BRNO", "SELECT note FROM visit"), ["'second'"]);
    // A row that gets another language moves.
    direct.sql("UPDATE visit SET lang = 'cs' WHERE id = 1");
    direct.move_on();
    assert_eq!(held(&direct, "BONN", "SELECT note FROM visit"), Vec::<String>::new());
    assert_eq!(held(&direct, "BRNO", "SELECT note FROM visit"), ["'first'", "'second'"]);
}

#[test]
fn mi48_a_node_without_a_language_gets_the_rows_of_the_default_one_as_they_are() {
    let mut direct = shop(&with_default(), &[("BONN", "de")]);
    direct.add_without("PLAIN");
    assert_eq!(
        held(&direct, "PLAIN", "SELECT text FROM phrase"),
        literals(&direct.site.path("hq.db"), "SELECT text FROM phrase WHERE lang = 'en'")
    );
    assert_eq!(held(&direct, "PLAIN", "SELECT note FROM visit"), Vec::<String>::new());
    direct.sql("UPDATE phrase SET text = text || '!'");
    direct.move_on();
    assert_eq!(
        held(&direct, "PLAIN", "SELECT text FROM phrase"),
        literals(&direct.site.path("hq.db"), "SELECT text FROM phrase WHERE lang = 'en'")
    );
    assert_eq!(held(&direct, "PLAIN", "SELECT count(*) FROM phrase"), ["2"]);
}

#[test]
fn mi25_mi26_a_job_on_the_server_and_a_sync_of_a_client_find_the_same_changes() {
    let mut asked = crm::running(&["ANNA", "BERT"]);
    asked.stop();
    crm::server_sql(
        &asked,
        "UPDATE opportunity SET amount = amount + 1 WHERE id % 2;
         UPDATE opportunity SET position_id = 6 WHERE id = 4;
         DELETE FROM opportunity WHERE id = 6;
         INSERT INTO contact VALUES (900, 1, 'new');
         UPDATE account_team SET position_id = 4 WHERE account_id = 5",
    );
    let alone = asked.copied();
    // No client anywhere: a pass, as cron starts it.
    alone.dockmaster_ok(&["run"]);
    // A service, and clients that ask.
    crm::serve_again(&mut asked);
    crm::in_step(&asked, &["ANNA", "BERT"]);
    for node in ["ANNA", "BERT", "CORA"] {
        let hashes = |site| -> Vec<serde_json::Value> {
            crm::dx_files(site, &format!("docking/{node}/outbox")).iter().map(|file| crm::shown(site, file)["header"].clone()).collect()
        };
        assert_eq!(hashes(&alone), hashes(&asked), "{node}");
    }
    assert!(!crm::dx_files(&alone, "docking/ANNA/outbox").is_empty());
}
