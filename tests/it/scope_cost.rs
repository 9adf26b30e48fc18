//! What a change costs, in steps of SQLite's virtual machine instead of time: flat in the rows that a table joins with and
//! flat in registered nodes; and the parts of the scope index that a random run does not pin down one by one.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::oracle::World;
use super::oracle_schemas::crm;
use super::scope::{commit, fill, folder};
use dockmaster::base::ids::{Incarnation, TxnId};
use dockmaster::cds::layout::connect_read_only;
use dockmaster::cds::unit::{NodeChange, RowChange, UnitInput};
use dockmaster::cds::view;
use dockmaster::model::dock::{RoutingModel, RuleKind};
use dockmaster::model::event::{NodeEvent, UnitEvents};
use dockmaster::model::node::{Node, NodeState};
use dockmaster::model::value::{Collation, Row, Value};
use dockmaster::rules::graph::{GraphError, ScopeGraph, Source};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

fn empty() -> World {
    let subject = crm();
    let rows = vec![Vec::new(); subject.dock.tables.len()];
    World { dock: subject.dock, rows, nodes: BTreeMap::new(), day: 20_000, predicates: subject.predicates }
}

fn row(values: &[i64]) -> Row {
    values.iter().map(|value| if *value == 0 { Value::Null } else { Value::Integer(*value) }).collect()
}

fn add(world: &mut World, table: &str, values: &[i64]) {
    let table = world.dock.table(table).unwrap();
    world.rows[table].push(row(values));
}

fn change(world: &World, table: &str, key: i64, values: Option<&[i64]>) -> RowChange {
    RowChange { table: world.dock.table(table).unwrap(), key: vec![Value::Integer(key)], row: values.map(row) }
}

fn node(number: i64) -> Node {
    Node {
        name: format!("N{number}").parse().unwrap(),
        state: NodeState::Active,
        incarnation: Incarnation(1),
        extracted: Incarnation(1),
        model: None,
        attributes: BTreeMap::from([("employee".to_owned(), vec![Value::Integer(number)])]),
    }
}

/// Processes each change as a unit of its own and returns for each the steps that it took, with its events.
fn costs(world: &World, units: &[(&'static str, Vec<RowChange>, Vec<NodeChange>)]) -> Vec<(&'static str, u64, UnitEvents)> {
    let folder = folder();
    let mut cds = fill(&folder.path().join("cds.db"), world);
    let steps = Arc::new(AtomicU64::new(0));
    let counter = steps.clone();
    cds.count_steps(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    })
    .unwrap();
    let mut found = Vec::new();
    for (number, (what, changes, nodes)) in units.iter().enumerate() {
        let unit = i64::try_from(number).unwrap() + 1;
        let before = steps.load(Ordering::Relaxed);
        let input = UnitInput { unit: TxnId(unit), changes: changes.clone(), nodes: nodes.clone(), ..UnitInput::default() };
        let events = cds.process(&input).unwrap();
        commit(&mut cds, unit);
        found.push((*what, steps.load(Ordering::Relaxed) - before, events));
    }
    found
}

fn compare(few: Vec<(&'static str, u64, UnitEvents)>, many: Vec<(&'static str, u64, UnitEvents)>) {
    for ((what, few, few_events), (_, many, many_events)) in few.into_iter().zip(many) {
        eprintln!("{what}: {few} steps, {many} with many; {} events, {}", few_events.rows.len(), many_events.rows.len());
        assert_eq!(few_events.rows.len(), many_events.rows.len(), "{what}");
        assert!(few > 0 && many <= few + few / 4, "{what}: {few} steps, {many} with many");
    }
}

/// One position, one employee; account 1, opportunity 1 and product 1 with `many` rows that refer to each.
fn joined(many: i64) -> World {
    let mut world = empty();
    add(&mut world, "position", &[1, 0, 1]);
    add(&mut world, "position", &[2, 0, 1]);
    add(&mut world, "employee", &[1, 1, 0]);
    add(&mut world, "employee", &[2, 2, 0]);
    add(&mut world, "account", &[1, 1, 0, 0, 0]);
    add(&mut world, "account_team", &[1, 1, 0]);
    add(&mut world, "category", &[1, 0, 0]);
    for product in [1, 2] {
        add(&mut world, "product", &[product, 0, 0]);
    }
    add(&mut world, "place", &[1, 0, 0]);
    for id in 1..=many {
        add(&mut world, "opportunity", &[id, 1, 1, 0, 0]);
        add(&mut world, "opportunity_line", &[id, 1, 1]);
        add(&mut world, "opportunity_team", &[id, id, 1, 1]);
        add(&mut world, "contact", &[id, 1, 1, 0]);
        add(&mut world, "visit", &[id, 1, 1]);
    }
    for number in [1, 2] {
        let node = node(number);
        world.nodes.insert(node.name.clone(), node);
    }
    world
}

#[test]
fn p14_a_change_costs_the_same_however_many_rows_join() {
    let run = |many: i64| {
        let world = joined(many);
        let next = many + 1;
        let row_change = |table: &str, key: i64, values: Option<&[i64]>| vec![change(&world, table, key, values)];
        let units = vec![
            ("first unit", row_change("grp", 1, Some(&[1, 5])), vec![]),
            ("one more line of a product", row_change("opportunity_line", next, Some(&[next, 1, 1])), vec![]),
            ("one line less", row_change("opportunity_line", next, None), vec![]),
            ("the line goes to another product", row_change("opportunity_line", 2, Some(&[2, 1, 2])), vec![]),
            ("one more opportunity of an account", row_change("opportunity", next, Some(&[next, 1, 1, 0, 0])), vec![]),
            ("it goes to another position", row_change("opportunity", next, Some(&[next, 1, 2, 0, 0])), vec![]),
            ("and is deleted", row_change("opportunity", next, None), vec![]),
            ("one contact less", row_change("contact", many, None), vec![]),
            ("a plain column of an account", row_change("account", 1, Some(&[1, 1, 0, 0, 9])), vec![]),
            ("a plain column of a product", row_change("product", 1, Some(&[1, 0, 9])), vec![]),
            ("an upload's reference", row_change("visit", 1, None), vec![]),
        ];
        costs(&world, &units)
    };
    compare(run(10), run(10_000));
}

/// `many` employees with a node, a position and a contact each.
fn registered(many: i64) -> World {
    let mut world = empty();
    for id in 1..=many {
        add(&mut world, "position", &[id, 0, id]);
        add(&mut world, "employee", &[id, id, 0]);
        add(&mut world, "account", &[id, 0, 0, 0, 0]);
        add(&mut world, "account_team", &[id, id, 0]);
        add(&mut world, "contact", &[id, id, id, 0]);
        let node = node(id);
        world.nodes.insert(node.name.clone(), node);
    }
    world
}

#[test]
fn p8_a_change_costs_the_same_however_many_nodes_are_registered() {
    let run = |many: i64| {
        let world = registered(many);
        let row_change = |table: &str, key: i64, values: Option<&[i64]>| vec![change(&world, table, key, values)];
        let moved = Node { attributes: BTreeMap::from([("employee".to_owned(), vec![Value::Integer(3)])]), ..node(2) };
        let again = Node { incarnation: Incarnation(2), extracted: Incarnation(2), ..node(4) };
        let units = vec![
            ("first unit", row_change("grp", 1, Some(&[1, 5])), vec![]),
            ("a contact goes to another node", row_change("contact", 1, Some(&[1, 1, 2, 0])), vec![]),
            ("a row that everyone sees", row_change("org", 1, Some(&[1, 0])), vec![]),
            ("an employee's position: its node is derived again", row_change("employee", 1, Some(&[1, 2, 0])), vec![]),
            ("a node's attribute", vec![], vec![NodeChange::Set(moved)]),
            ("a node starts", vec![], vec![NodeChange::Set(again)]),
            ("a node stops", vec![], vec![NodeChange::Deleted("N5".parse().unwrap())]),
        ];
        costs(&world, &units)
    };
    compare(run(10), run(2_000));
}

#[test]
fn p14_an_extract_costs_the_rows_of_its_node() {
    let run = |many: i64| {
        let mut world = registered(many);
        let without = ["org.all", "position.visible", "contact.rich"].map(str::to_owned).to_vec();
        world.dock.models.push(RoutingModel { name: "narrow".to_owned(), only: None, without });
        let narrow = Node { model: Some("narrow".to_owned()), ..node(1) };
        world.nodes.insert(narrow.name.clone(), narrow.clone());
        let folder = folder();
        let path = folder.path().join("cds.db");
        let cds = fill(&path, &world);
        let mut conn = connect_read_only(&path).unwrap();
        let steps = Arc::new(AtomicU64::new(0));
        let counter = steps.clone();
        let count = move || {
            counter.fetch_add(1, Ordering::Relaxed);
            false
        };
        conn.progress_handler(1, Some(count)).unwrap();
        view::visible_rows(&conn, cds.dock(), cds.graph(), cds.nodes().get(&narrow.name).unwrap(), 20_000).unwrap();
        let contact = world.dock.table("contact").unwrap();
        let seen: i64 =
            conn.query_row(&format!("SELECT count(*) FROM temp.{}", view::visible_table(contact)), [], |row| row.get(0)).unwrap();
        assert_eq!(seen, 1);
        steps.load(Ordering::Relaxed)
    };
    let (few, many) = (run(10), run(2_000));
    eprintln!("extract: {few} steps, {many} with many");
    assert!(many <= few + few / 4, "{few} steps, {many} with many");
}

#[test]
fn r15_a_node_that_starts_is_told_all_its_keys_and_no_rows() {
    let mut world = joined(3);
    world.nodes.clear();
    let changes = vec![change(&world, "contact", 9, Some(&[9, 1, 1, 0]))];
    let events = costs(&world, &[("start", changes, vec![NodeChange::Set(node(1))])]).remove(0).2;
    let [NodeEvent::Start { keys, incarnation: Incarnation(1), .. }] = events.nodes.as_slice() else { panic!("{:?}", events.nodes) };
    assert!(keys.iter().any(|key| events.keys[*key as usize].path == "contact.mine"), "{keys:?}");
    // The row is told with the keys of the node that starts: the Router knows that its stream begins after this unit.
    assert_eq!(events.rows.len(), 1);
}

#[test]
fn r8_a_path_is_named_by_every_rule_on_the_way() {
    let dock = crm().dock;
    let graph = ScopeGraph::compile(&dock).unwrap();
    assert!(graph.path("product.used<opportunity.own").is_some());
    assert!(graph.path("grp.used<category.used<product.used<opportunity.own").is_some());
    let held = |model| graph.paths_of_model(&dock, model).map(|(_, path)| path.name.as_str()).collect::<Vec<_>>();
    assert!(held(None).contains(&"grp.used<category.used<product.used<opportunity.own"));
    // A model that lacks a rule on the way lacks everything behind it.
    assert!(!held(Some("lean")).iter().any(|path| path.contains("product.used")));
    assert!(!held(Some("executive")).contains(&"account.needed<opportunity.own"));
    assert!(held(Some("executive")).contains(&"account.needed<opportunity.manager"));
    // A model that the definition does not have has no rule: what it would have taken out is not known.
    assert_eq!(held(Some("gone")), Vec::<&str>::new());
}

#[test]
fn rules_that_share_a_chain_share_its_counts() {
    let dock = crm().dock;
    let graph = ScopeGraph::compile(&dock).unwrap();
    let account = dock.table("account").unwrap();
    let vertex = &graph.vertices[graph.visible[account].unwrap()];
    let junctions: Vec<usize> = vertex
        .inputs
        .iter()
        .filter_map(|input| match &input.source {
            Source::Junction { junction, map, .. } if map.iter().any(|(from, _)| *from == 0) => Some(*junction),
            _ => None,
        })
        .collect();
    assert_eq!(junctions.len(), 2, "account.team and account.manager");
    assert_eq!(junctions[0], junctions[1]);
    for (number, vertex) in graph.vertices.iter().enumerate() {
        for input in &vertex.inputs {
            let source = match &input.source {
                Source::Base { .. } => continue,
                Source::Follow { vertex, .. } => *vertex,
                Source::Junction { junction, .. } => graph.junctions[*junction].source,
            };
            assert!(source < number, "vertices are in topological order");
        }
    }
}

#[test]
fn r9_rules_that_need_each_other_are_refused() {
    let mut dock = crm().dock;
    let account = dock.table("account").unwrap();
    let contact = dock.table("contact").unwrap();
    let mut back = dock.rules.iter().find(|rule| rule.name == "account.needed").unwrap().clone();
    back.name = "contact.needed".to_owned();
    back.object = dock.tables[contact].object.unwrap();
    let RuleKind::Referenced(references) = &mut back.kind else { panic!() };
    references.truncate(1);
    references[0].table = account;
    references[0].to_table = contact;
    dock.rules.push(back);
    assert!(matches!(ScopeGraph::compile(&dock), Err(GraphError::Circle { .. })));
}

#[test]
fn r35_folded_values_are_equal_where_sqlite_says_equal() {
    let conn = rusqlite::Connection::open_in_memory().unwrap();
    let texts: [&[u8]; 12] = [b"", b" ", b"a", b"A", b"a ", b"a  ", b"a\0b", b"A\0c", b"a\0bc", b"\xc3\xa4", b"\xc3\x84", b"a\0 "];
    let mut values: Vec<Value> = texts.iter().map(|text| Value::Text(text.to_vec())).collect();
    values.extend([i64::MIN, -1, 0, 1, 1 << 53, (1 << 53) + 1, i64::MAX].map(Value::Integer));
    let two_to_63 = 2f64.powi(63);
    values.extend([-0.0, 0.0, 1.0, 1.5, 2f64.powi(53), two_to_63, -two_to_63].map(Value::Real));
    values.extend([Value::Blob(b"a".to_vec()), Value::Blob(Vec::new())]);
    for collation in [Collation::Binary, Collation::NoCase, Collation::Rtrim] {
        let sql = format!("SELECT ?1 = ?2 COLLATE {}", collation.name());
        for a in &values {
            for b in &values {
                let bound = [a, b].map(dockmaster::store::sqlite::SqlValue);
                let equal: bool = conn.query_row(&sql, rusqlite::params![bound[0], bound[1]], |row| row.get(0)).unwrap();
                assert_eq!(a.fold(collation) == b.fold(collation), equal, "{a} = {b} under {collation:?}");
            }
        }
    }
}
