//! Extracts of many nodes at once (X-5, X-15, RM-41): what they have in common is made once, and each extract is the same as one
//! that is made alone.

use super::{Yard, node};
use crate::harness::{Site, literals};
use dockmaster::server::nodes;
use dockmaster::server::pass::{ServeOptions, Stage, run};
use rusqlite::{Connection, params};
use std::time::Instant;

fn unpack(yard: &Yard, name: &str) -> std::path::PathBuf {
    let incarnation = super::started(yard, name);
    let path = yard.folder.path().join(format!("{name}-{incarnation}.db"));
    let packed = std::fs::File::open(yard.root.extract(&node(name), incarnation)).unwrap();
    zstd::stream::copy_decode(packed, std::fs::File::create(&path).unwrap()).unwrap();
    path
}

#[test]
fn x5_x15_rm41_extracts_with_the_common_part_made_once_are_those_made_alone() {
    const NAMES: [&str; 8] = ["A1", "A2", "A3", "A4", "A5", "A6", "A7", "A8"];
    let mut yard = Yard::new(&NAMES);
    let transaction = yard.sql.unchecked_transaction().unwrap();
    for row in 0..20_000 {
        // Nine of ten rows are everybody's.
        let owner = if row % 10 == 0 { 1 + row / 10 % 8 } else { 0 };
        transaction.execute("INSERT INTO item(owner, text) VALUES(?1, ?2)", params![owner, format!("row {row} of {owner}")]).unwrap();
    }
    transaction.commit().unwrap();
    yard.route();
    let serve = ServeOptions::new(yard.hq(), "127.0.0.1:0");
    let all = "SELECT id, owner, text FROM item";
    // Alone, one after the other.
    let began = Instant::now();
    for name in NAMES {
        nodes::start(&yard.server(), &node(name)).unwrap();
        run(&serve, &yard.root, &[Stage::TxnProc]).unwrap();
    }
    let alone = began.elapsed();
    let expected: Vec<Vec<String>> = NAMES.iter().map(|name| literals(&unpack(&yard, name), all)).collect();
    assert!(expected.iter().all(|rows| rows.len() == 18_000 + 250), "{:?}", expected.iter().map(Vec::len).collect::<Vec<_>>());
    // Together.
    let began = Instant::now();
    for name in NAMES {
        nodes::start(&yard.server(), &node(name)).unwrap();
    }
    let pass = run(&serve, &yard.root, &[Stage::TxnProc]).unwrap();
    let together = began.elapsed();
    println!("8 extracts of 18,250 rows, 18,000 in common: alone {alone:?}, together {together:?}");
    assert_eq!(pass.extracts, 8);
    for (name, expected) in NAMES.iter().zip(&expected) {
        let local = unpack(&yard, name);
        assert_eq!(literals(&local, all), *expected, "{name}");
        let identity = literals(&local, "SELECT node, incarnation FROM dock_state");
        assert_eq!(identity, [format!("'{name}' | {}", super::started(&yard, name))]);
        assert_eq!(literals(&local, "PRAGMA integrity_check"), ["'ok'"]);
    }
    assert_eq!(std::fs::read_dir(yard.root.txnproc_tmp()).unwrap().count(), 0, "the common part is gone");
}

#[test]
fn x5_all_nodes_or_those_of_a_model_are_extracted_by_one_command() {
    let definition = "version = 1\n[node]\nowner = { type = \"integer\" }\n[model.few]\nwithout = [\"item.all\"]\n[object.item]\nvisible.own = 'item.owner = node.owner'\nvisible.all = 'everyone'\n";
    let site = Site::new(
        |path| {
            let rows = "CREATE TABLE item(id INTEGER PRIMARY KEY, owner INTEGER); INSERT INTO item VALUES(1, 1), (2, 2), (3, 3)";
            Connection::open(path).unwrap().execute_batch(rows).unwrap();
        },
        definition,
    );
    site.dockmaster_ok(&["deploy", "--yes"]);
    for (name, owner, model) in [("A", 1, None), ("B", 2, None), ("C", 3, Some("few")), ("D", 1, Some("few"))] {
        let owner = format!("owner={owner}");
        let mut arguments = vec!["node", "add", name, "--set", &owner];
        arguments.extend(model.iter().flat_map(|model| ["--model", model]));
        site.dockmaster_ok(&arguments);
    }
    let made = site.dockmaster_ok(&["extract", "--model", "few", "--json"]);
    assert!(made.contains("\"C\"") && made.contains("\"D\"") && !made.contains("\"A\""), "{made}");
    site.dockmaster_ok(&["extract", "--all", "--yes"]);
    let nodes = literals(&site.path("hq.db"), "SELECT name, incarnation FROM dock_node");
    assert_eq!(nodes, ["'A' | 1", "'B' | 1", "'C' | 2", "'D' | 2"]);
    let none = site.dockmaster(&["extract", "--model", "none"]);
    assert_eq!(none.status.code(), Some(2));
}
