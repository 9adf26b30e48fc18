//! Nodes: validated against definition and data, each change one transaction with its control (R28, C13).

use super::Rig;
use dockmaster::base::ids::{Incarnation, NodeName};
use dockmaster::model::dock::{AttributeSource, AttributeType, NodeAttribute, RoutingModel};
use dockmaster::model::node::NodeState;
use dockmaster::model::value::Value;
use dockmaster::server::nodes::{self, NodeError, NodeSettings};
use dockmaster::store::control::Control;
use std::collections::BTreeMap;

fn rig() -> Rig {
    let mut rig =
        Rig::new("CREATE TABLE Employees(EmployeeID INTEGER PRIMARY KEY, Team TEXT); INSERT INTO Employees VALUES (1, 'x'), (2, 'y');");
    let given = |kind, must_exist, many| AttributeSource::Given { kind, must_exist, many };
    rig.dock.attributes = vec![
        NodeAttribute { name: "employee".into(), source: given(AttributeType::Integer, Some((0, 0)), false) },
        NodeAttribute { name: "teams".into(), source: given(AttributeType::Text, Some((0, 1)), true) },
        NodeAttribute { name: "derived".into(), source: AttributeSource::Derived { from: 0, hops: vec![] } },
    ];
    rig.dock.models = vec![RoutingModel { name: "sales".into(), only: None, without: vec![] }];
    rig
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn settings(values: &[(&str, &[&str])]) -> NodeSettings {
    let attributes = values.iter().map(|(name, values)| ((*name).to_owned(), values.iter().map(|value| (*value).to_owned()).collect()));
    NodeSettings { model: None, attributes: attributes.collect::<BTreeMap<_, _>>() }
}

#[test]
fn r28_every_change_of_a_node_is_a_control_in_commit_order() {
    let mut rig = rig();
    let anna = name("ANNA");
    nodes::add(&rig.db, &rig.dock, &anna, &settings(&[("employee", &["1"]), ("teams", &["x", "y", "x"])])).unwrap();
    assert_eq!(nodes::start(&rig.db, &anna).unwrap(), Incarnation(1));
    rig.run("INSERT INTO Employees VALUES (3, 'z')");
    nodes::set(
        &rig.db,
        &rig.dock,
        &anna,
        &NodeSettings { model: Some(Some("sales".into())), ..settings(&[("employee", &["3"]), ("teams", &[])]) },
    )
    .unwrap();
    nodes::set(&rig.db, &rig.dock, &anna, &settings(&[("employee", &["3"])])).unwrap();
    nodes::disable(&rig.db, &anna).unwrap();
    nodes::delete(&rig.db, &anna).unwrap();
    let unit = rig.sync("nodes").unwrap();
    let states: Vec<_> = unit
        .controls
        .iter()
        .map(|control| match control {
            Control::Node { node, .. } => {
                (node.state.to_string(), node.incarnation.0, node.attributes.get("employee").cloned(), node.model.is_some())
            }
            Control::NodeDeleted { .. } => ("deleted".into(), 0, None, false),
            other => panic!("{other:?}"),
        })
        .collect();
    let employee = |id: i64| Some(vec![Value::Integer(id)]);
    assert_eq!(
        states,
        [
            ("registered".to_owned(), 0, employee(1), false),
            ("active".to_owned(), 1, employee(1), false),
            ("active".to_owned(), 1, employee(3), true),
            ("disabled".to_owned(), 1, employee(3), true),
            ("deleted".to_owned(), 0, None, false),
        ],
        "setting what is set already is no change"
    );
    assert_eq!(rig.db.nodes().unwrap(), []);
    // The name may be taken again, but never the incarnation.
    nodes::add(&rig.db, &rig.dock, &anna, &NodeSettings::default()).unwrap();
    assert_eq!(nodes::start(&rig.db, &anna).unwrap(), Incarnation(2));
}

#[test]
fn c13_a_disabled_node_needs_a_new_extract_after_it_is_enabled() {
    let rig = rig();
    let anna = name("ANNA");
    nodes::add(&rig.db, &rig.dock, &anna, &NodeSettings::default()).unwrap();
    assert!(matches!(nodes::enable(&rig.db, &anna).unwrap_err(), NodeError::State { .. }));
    nodes::start(&rig.db, &anna).unwrap();
    nodes::disable(&rig.db, &anna).unwrap();
    assert!(nodes::start(&rig.db, &anna).unwrap_err().to_string().contains("ANNA is disabled"));
    assert_eq!(nodes::enable(&rig.db, &anna).unwrap().state, NodeState::Registered);
    assert_eq!(nodes::start(&rig.db, &anna).unwrap(), Incarnation(2));
    assert_eq!(nodes::show(&rig.db, &anna).unwrap().state, NodeState::Active);
}

#[test]
fn sr11_wrong_settings_name_node_and_field_and_change_nothing() {
    let rig = rig();
    let anna = name("ANNA");
    let end = rig.db.log_end().unwrap();
    for (values, parts) in [
        (settings(&[("employee", &["one"])]), ["employee", "`one` is not a whole number"]),
        (settings(&[("employee", &["7"])]), ["employee", "no row of Employees has EmployeeID = 7"]),
        (settings(&[("employee", &["1", "2"])]), ["employee", "one value, not 2"]),
        (settings(&[("teams", &["x", "q"])]), ["teams", "no row of Employees has Team = 'q'"]),
        (settings(&[("derived", &["1"])]), ["derived", "derives it"]),
        (settings(&[("nothing", &["1"])]), ["nothing", "it has employee, teams"]),
        (NodeSettings { model: Some(Some("x".into())), ..settings(&[]) }, ["model `x`", "it has sales"]),
    ] {
        let message = nodes::add(&rig.db, &rig.dock, &anna, &values).unwrap_err().to_string();
        assert!(message.contains("node ANNA") && parts.iter().all(|part| message.contains(part)), "{message}");
    }
    for error in [
        nodes::show(&rig.db, &anna).unwrap_err(),
        nodes::disable(&rig.db, &anna).unwrap_err(),
        nodes::delete(&rig.db, &anna).unwrap_err(),
        nodes::start(&rig.db, &anna).unwrap_err(),
    ] {
        assert!(matches!(error, NodeError::Unknown { .. }), "{error}");
    }
    assert_eq!(rig.db.log_end().unwrap(), end, "a refused change left something in the log");
    nodes::add(&rig.db, &rig.dock, &anna, &NodeSettings::default()).unwrap();
    assert!(matches!(nodes::add(&rig.db, &rig.dock, &anna, &NodeSettings::default()).unwrap_err(), NodeError::Exists { .. }));
}

#[test]
fn a_csv_file_is_imported_as_a_whole_or_not_at_all() {
    let rig = rig();
    let text = "name,employee,teams,model\nSHOP-1,1,x; y,sales\n\"SHOP-2\",2,,\n";
    let nodes_read = nodes::import_csv(&rig.db, &rig.dock, "shops.csv", text.as_bytes()).unwrap();
    assert_eq!(nodes_read.len(), 2);
    assert_eq!(rig.db.node(&name("SHOP-1")).unwrap().unwrap().attributes["teams"], [Value::text("x"), Value::text("y")]);
    assert_eq!(rig.db.node(&name("SHOP-2")).unwrap().unwrap().model, None);
    let end = rig.db.log_end().unwrap();
    let text = "name,employee\nSHOP-3,1\nSHOP-1,1\nshop 4,1\nSHOP-5,9\n,1\n";
    let message = nodes::import_csv(&rig.db, &rig.dock, "shops.csv", text.as_bytes()).unwrap_err().to_string();
    for part in
        ["shops.csv:3: node SHOP-1 exists", "shops.csv:4: `shop 4`", "shops.csv:5: node SHOP-5: attribute `employee`", "shops.csv:6:"]
    {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!((rig.db.nodes().unwrap().len(), rig.db.log_end().unwrap()), (2, end));
    for (text, part) in [
        ("employee\n1\n", "no column `name`"),
        ("name,size\nA,1\n", "column `size`"),
        ("name,name\nA,B\n", "twice"),
        ("name,employee\nA\n", "record"),
    ] {
        let message = nodes::import_csv(&rig.db, &rig.dock, "shops.csv", text.as_bytes()).unwrap_err().to_string();
        assert!(message.contains("shops.csv") && message.contains(part), "{message}");
    }
}
