//! Collations and types end to end (R35): what a node holds is what plain SQLite says on the server, for every collation, for values
//! of every storage class under every affinity, and for the functions that a condition may use.

use crate::crm::routed;
use crate::harness::{Site, literals};

/// A table per rule; each has columns of every affinity, and the rule tests one of them.
const COLUMNS: &str =
    "id INTEGER PRIMARY KEY, b TEXT, n TEXT COLLATE NOCASE, r TEXT COLLATE RTRIM, i INTEGER, f REAL, m NUMERIC, u, x BLOB";

/// Name, rule of the definition, the same in SQL for the node whose text attribute is 'Ab' and whose number is 2.
const RULES: &[(&str, &str, &str)] = &[
    ("binary", "'binary.b = node.word'", "b = 'Ab'"),
    ("nocase", "'nocase.n = node.word'", "n = 'Ab'"),
    ("rtrim", "'rtrim.r = node.word'", "r = 'Ab'"),
    ("whole", "'whole.i = node.number'", "i = 2"),
    ("floating", "'floating.f = node.number'", "f = 2"),
    ("numeric", "'numeric.m = node.number'", "m = 2"),
    ("untyped", "'untyped.u = node.number'", "u = 2"),
    ("likes", "{ rule = 'everyone', where = \"b LIKE 'a%'\" }", "b LIKE 'a%'"),
    ("lowered", "{ rule = 'everyone', where = \"lower(b) = 'ab'\" }", "lower(b) = 'ab'"),
    ("measured", "{ rule = 'everyone', where = \"length(u) = 2\" }", "length(u) = 2"),
    ("ranged", "{ rule = 'everyone', where = \"f BETWEEN 1 AND 2.5\" }", "f BETWEEN 1 AND 2.5"),
    ("typed", "{ rule = 'everyone', where = \"typeof(u) IN ('real', 'blob')\" }", "typeof(u) IN ('real', 'blob')"),
    ("missing", "{ rule = 'everyone', where = \"coalesce(m, 0) <> 0\" }", "coalesce(m, 0) <> 0"),
    ("cased", "{ rule = 'everyone', where = \"n COLLATE NOCASE IN ('ab', 'CD')\" }", "n COLLATE NOCASE IN ('ab', 'CD')"),
];

#[test]
fn r35_data_store_client_and_plain_sqlite_agree_for_every_type_and_collation() {
    let seed = crate::harness::seed();
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let tables: String = RULES.iter().map(|(table, ..)| format!("CREATE TABLE {table}({COLUMNS});")).collect();
    let objects: String = RULES.iter().map(|(table, rule, _)| format!("[object.{table}]\nvisible.it = {rule}\n")).collect();
    let definition = format!("version = 1\n[node]\nword = {{ type = \"text\" }}\nnumber = {{ type = \"integer\" }}\n{objects}");
    let mut site = Site::new(|path| rusqlite::Connection::open(path).unwrap().execute_batch(&tables).unwrap(), &definition);
    let mut fill = |site: &Site, sql: &str| {
        let mut value = || match random.u32(0..5) {
            0 => "NULL".to_owned(),
            1 => ["2", "2.0", "1", "2.5", "9007199254740993", "-0.0", "1e300"][random.usize(0..7)].to_owned(),
            2 => ["x'4162'", "x''", "x'32'"][random.usize(0..3)].to_owned(),
            3 => ["'2'", "' 2'", "'2.0'", "'2 '", "'1e0'", "''"][random.usize(0..6)].to_owned(),
            _ => ["'Ab'", "'ab'", "'AB'", "'Ab  '", "'aB '", "'Ab\t'", "'Äb'", "'cd'"][random.usize(0..8)].to_owned(),
        };
        let mut batch = String::from("BEGIN;");
        for (table, ..) in RULES {
            for id in 1..60 {
                let values: Vec<String> = (0..8).map(|_| value()).collect();
                batch.push_str(&format!("{sql} INTO {table} VALUES({id}, {});", values.join(", ")));
            }
        }
        let conn = rusqlite::Connection::open(site.path("hq.db")).unwrap();
        conn.busy_timeout(std::time::Duration::from_secs(20)).unwrap();
        conn.execute_batch(&(batch + "COMMIT")).unwrap();
    };
    fill(&site, "INSERT");
    site.dockmaster_ok(&["deploy", "--yes"]);
    site.dockmaster_ok(&["node", "add", "A", "--set", "word=Ab", "--set", "number=2"]);
    let address = site.serve();
    site.remote_sync_ok(&["init", &address, "--token", &site.token("A"), "a.db"]);
    for round in 0..4 {
        for (table, _, condition) in RULES {
            let wanted = literals(&site.path("hq.db"), &format!("SELECT * FROM {table} WHERE {condition}"));
            assert_eq!(literals(&site.path("a.db"), &format!("SELECT * FROM {table}")), wanted, "round {round}: {table}, {condition}");
            // By the client's own evaluation nothing else is there either.
            assert_eq!(literals(&site.path("a.db"), &format!("SELECT * FROM {table} WHERE {condition}")), wanted, "round {round}: {table}");
        }
        fill(&site, "INSERT OR REPLACE");
        routed(&site);
        site.remote_sync_ok(&["sync", "a.db"]);
    }
    site.stop();
}
