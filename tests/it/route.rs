//! The route decision as a property: random histories against the naive answer, with the wrong orders planted.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use dockmaster::base::ids::{Incarnation, NodeName, Revision, TxnId};
use dockmaster::dx::reader::Unit;
use dockmaster::model::event::{NodeEvent, RowEvent, ScopeKey, TableHeading, UnitEvents};
use dockmaster::model::operation::Operation;
use dockmaster::model::value::{Row, RowKey, Value};
use dockmaster::rules::route::{Action, NodeKeys, UnitRoute, route};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

pub(crate) fn own(value: i64) -> ScopeKey {
    ScopeKey { path: "Orders.own".to_owned(), value: Value::Integer(value) }
}

pub(crate) fn everyone() -> ScopeKey {
    ScopeKey { path: "everyone".to_owned(), value: Value::Null }
}

/// Builds a unit by hand.
#[derive(Debug, Clone, Default)]
pub(crate) struct UnitBuilder(pub(crate) UnitEvents);

impl UnitBuilder {
    pub(crate) fn new(unit: i64) -> UnitBuilder {
        UnitBuilder(UnitEvents { unit: TxnId(unit), revision: Revision(1), ..UnitEvents::default() })
    }

    fn keys(&mut self, keys: &[ScopeKey]) -> Vec<u32> {
        let index = |all: &mut Vec<ScopeKey>, key: &ScopeKey| {
            all.iter().position(|known| known == key).unwrap_or_else(|| {
                all.push(key.clone());
                all.len() - 1
            }) as u32
        };
        keys.iter().map(|key| index(&mut self.0.keys, key)).collect()
    }

    pub(crate) fn start(mut self, name: &str, incarnation: u32, keys: &[ScopeKey]) -> UnitBuilder {
        let keys = self.keys(keys);
        self.0.nodes.push(NodeEvent::Start { node: node(name), incarnation: Incarnation(incarnation), keys });
        self
    }

    pub(crate) fn stop(mut self, name: &str) -> UnitBuilder {
        self.0.nodes.push(NodeEvent::Stop { node: node(name) });
        self
    }

    pub(crate) fn node_keys(mut self, name: &str, gained: &[ScopeKey], lost: &[ScopeKey]) -> UnitBuilder {
        let (gained, lost) = (self.keys(gained), self.keys(lost));
        self.0.nodes.push(NodeEvent::Keys { node: node(name), gained, lost });
        self
    }

    /// `text`: the row after the unit; `changed`: whether the unit changed its content.
    pub(crate) fn row(
        mut self,
        table: &str,
        id: i64,
        text: Option<&str>,
        changed: bool,
        before: &[ScopeKey],
        after: &[ScopeKey],
    ) -> UnitBuilder {
        let table = self.0.tables.iter().position(|known| known.name == table).unwrap_or_else(|| {
            let columns = vec!["id".to_owned(), "text".to_owned()];
            self.0.tables.push(TableHeading { name: table.to_owned(), columns, key: vec![0] });
            self.0.tables.len() - 1
        });
        let (keys_before, keys_after) = (self.keys(before), self.keys(after));
        self.0.rows.push(RowEvent {
            table: table as u32,
            key: vec![Value::Integer(id)],
            row: text.map(|text| vec![Value::Integer(id), Value::text(text)]),
            changed: if changed { vec![1] } else { vec![] },
            keys_before,
            keys_after,
        });
        self
    }

    pub(crate) fn insert(self, id: i64, keys: &[ScopeKey]) -> UnitBuilder {
        let text = format!("order {id}");
        self.row("Orders", id, Some(&text), false, &[], keys)
    }
}

/// What a node holds; refuses a row that comes twice, or leaves without having come.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Replica(pub(crate) BTreeMap<(String, RowKey), Row>);

impl Replica {
    pub(crate) fn apply(&mut self, unit: &Unit) -> Result<(), String> {
        unit.operations.iter().try_for_each(|(heading, operation)| self.one(heading, operation))
    }

    fn one(&mut self, heading: &TableHeading, operation: &Operation) -> Result<(), String> {
        let place = |key: &RowKey| (heading.name.clone(), key.clone());
        match operation {
            Operation::Delete { key } => self.0.remove(&place(key)).map(drop).ok_or(format!("deleted {key:?} was not there")),
            Operation::Put { row } => match self.0.insert(place(&vec![row[0].clone()]), row.clone()) {
                None => Ok(()),
                Some(old) => Err(format!("put {old:?} was there")),
            },
            Operation::Update { key, changes } => {
                let row = self.0.get_mut(&place(key)).ok_or(format!("updated {key:?} was not there"))?;
                changes.iter().for_each(|(column, value)| row[usize::from(*column)] = value.clone());
                Ok(())
            }
        }
    }
}

/// The three wrong orders of R7, and the right one, in one piece and row by row as a unit larger than memory is routed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Order {
    Right,
    RowByRow,
    KeysFirst,
    KeysLast,
    ChangeByChange,
}

/// Routes a unit in that order: the wrong ones show the rows a map of one moment only.
fn deliver(order: Order, nodes: &mut NodeKeys, unit: &UnitEvents) -> Vec<(NodeName, Action, usize)> {
    let rows = |from: usize, to: usize| UnitEvents { rows: unit.rows[from..to].to_vec(), nodes: vec![], ..unit.clone() };
    let keys = UnitEvents { rows: vec![], ..unit.clone() };
    let (all, half) = (unit.rows.len(), unit.rows.len() / 2);
    let parts = match order {
        Order::Right => vec![(0, unit.clone())],
        Order::RowByRow => (0..all.max(1)).map(|row| (row, rows(row, (row + 1).min(all)))).collect(),
        Order::KeysFirst => vec![(0, keys.clone()), (0, rows(0, all))],
        Order::KeysLast => vec![(0, rows(0, all)), (0, keys.clone())],
        Order::ChangeByChange => vec![(0, rows(0, half)), (0, keys.clone()), (half, rows(half, all))],
    };
    let mut deliveries = Vec::new();
    let mut routing = (order == Order::RowByRow).then(|| UnitRoute::begin(nodes, &keys).unwrap());
    for (offset, part) in parts {
        let routed = match &mut routing {
            Some(routing) => routing.part(nodes, &part).unwrap(),
            None => route(nodes, &part).unwrap(),
        };
        for delivery in routed.deliveries {
            for index in routed.audiences[delivery.audience].iter() {
                deliveries.push((nodes.node(*index).unwrap().0.clone(), delivery.action, offset + delivery.row));
            }
        }
    }
    deliveries
}

/// A little world: rows with key sets, nodes with key sets, random units, and the naive answer.
#[derive(Debug, Default, Clone)]
pub(crate) struct World {
    rows: BTreeMap<i64, (String, BTreeSet<ScopeKey>)>,
    pub(crate) nodes: BTreeMap<String, BTreeSet<ScopeKey>>,
}

impl World {
    pub(crate) fn visible(&self, name: &str) -> Replica {
        let keys = &self.nodes[name];
        let rows = self.rows.iter().filter(|(_, (_, row_keys))| !row_keys.is_disjoint(keys));
        let held =
            rows.map(|(id, (text, _))| (("Orders".to_owned(), vec![Value::Integer(*id)]), vec![Value::Integer(*id), Value::text(text)]));
        Replica(held.collect())
    }

    fn random_keys(rng: &mut fastrand::Rng) -> BTreeSet<ScopeKey> {
        let key = |rng: &mut fastrand::Rng| ScopeKey { path: ["a", "b"][rng.usize(..2)].to_owned(), value: Value::Integer(rng.i64(0..3)) };
        (0..rng.usize(..3)).map(|_| key(rng)).collect()
    }

    /// Changes the world at random; returns the unit that the Transaction Processor would make of it.
    pub(crate) fn change(&mut self, rng: &mut fastrand::Rng, unit: i64) -> UnitEvents {
        let before = self.clone();
        for _ in 0..rng.usize(1..4) {
            let id = rng.i64(0..8);
            match rng.u8(..4) {
                0 => drop(self.rows.remove(&id)),
                1 => drop(self.rows.insert(id, (rng.u32(..).to_string(), World::random_keys(rng)))),
                2 => self.rows.entry(id).and_modify(|row| row.1 = World::random_keys(rng)).or_default().0.push('x'),
                _ => drop(self.rows.entry(id).and_modify(|row| row.1 = World::random_keys(rng))),
            }
        }
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in names {
            if rng.u8(..3) == 0 {
                self.nodes.insert(name, World::random_keys(rng));
            }
        }
        let mut built = UnitBuilder::new(unit);
        let mut moved = BTreeSet::new();
        for (name, keys) in &self.nodes {
            let (gained, lost): (Vec<_>, Vec<_>) =
                (keys.difference(&before.nodes[name]).cloned().collect(), before.nodes[name].difference(keys).cloned().collect());
            moved.extend(gained.iter().chain(&lost).cloned());
            if !gained.is_empty() || !lost.is_empty() {
                built = built.node_keys(name, &gained, &lost);
            }
        }
        let ids: BTreeSet<i64> = self.rows.keys().chain(before.rows.keys()).copied().collect();
        for id in ids {
            let (old, new) = (before.rows.get(&id), self.rows.get(&id));
            let keys =
                |row: Option<&(String, BTreeSet<ScopeKey>)>| row.map(|row| row.1.iter().cloned().collect::<Vec<_>>()).unwrap_or_default();
            let (was, is) = (keys(old), keys(new));
            if old != new || was.iter().chain(&is).any(|key| moved.contains(key)) {
                let changed = matches!((old, new), (Some(old), Some(new)) if old.0 != new.0);
                built = built.row("Orders", id, new.map(|row| row.0.as_str()), changed, &was, &is);
            }
        }
        built.0
    }
}

/// Runs one random history; says what went wrong first.
fn history(order: Order, seed: u64) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut world = World::default();
    let mut nodes = NodeKeys::new();
    let mut replicas: BTreeMap<String, Replica> = BTreeMap::new();
    for name in ["N1", "N2", "N3"] {
        world.nodes.insert(name.to_owned(), BTreeSet::new());
        nodes.start(node(name), Incarnation(1), &[] as &[ScopeKey]);
        replicas.insert(name.to_owned(), Replica::default());
    }
    for unit in 1..12 {
        let events = world.change(&mut rng, unit);
        for (name, action, row) in deliver(order, &mut nodes, &events) {
            let event = &events.rows[row];
            let visible = world.visible(name.as_str());
            if action != Action::Delete && !visible.0.contains_key(&("Orders".to_owned(), event.key.clone())) {
                return Err(format!("seed {seed} unit {unit}: leak of row {:?} to {name}", event.key));
            }
            let row = || event.row.clone().unwrap();
            let operation = match action {
                Action::Delete => Operation::Delete { key: event.key.clone() },
                Action::Put => Operation::Put { row: row() },
                Action::Update => Operation::Update { key: event.key.clone(), changes: vec![(1, row()[1].clone())] },
            };
            let heading = &events.tables[event.table as usize];
            let replica = replicas.get_mut(name.as_str()).unwrap();
            replica.one(heading, &operation).map_err(|error| format!("seed {seed} unit {unit} node {name}: {error}"))?;
        }
        for (name, replica) in &replicas {
            if *replica != world.visible(name) {
                return Err(format!("seed {seed} unit {unit}: node {name} diverged"));
            }
        }
    }
    Ok(())
}

#[test]
fn r7_one_net_event_per_row_neither_diverges_nor_leaks() {
    for seed in 0..3_000 {
        history(Order::Right, seed).unwrap();
        history(Order::RowByRow, seed).unwrap();
    }
    for wrong in [Order::KeysFirst, Order::KeysLast, Order::ChangeByChange] {
        let caught = (0..300).filter(|seed| history(wrong, *seed).is_err()).count();
        assert!(caught > 100, "{wrong:?} was caught in {caught} of 300 histories only");
    }
    assert!((0..300).any(|seed| history(Order::KeysLast, seed).is_err_and(|error| error.contains("leak"))));
}

/// The example of R7: node gains T9 while one row goes T8 -> T9 and another T9 -> T8.
#[test]
fn r7_rows_that_pass_a_key_which_a_node_gains() {
    let mut nodes = NodeKeys::new();
    nodes.start(node("N"), Incarnation(1), &[]);
    let (t8, t9) = (own(8), own(9));
    let unit = UnitBuilder::new(5)
        .node_keys("N", std::slice::from_ref(&t9), &[])
        .row("Orders", 1, Some("r"), true, std::slice::from_ref(&t8), std::slice::from_ref(&t9))
        .row("Orders", 2, Some("s"), true, &[t9], &[t8]);
    let deliveries = deliver(Order::Right, &mut nodes.clone(), &unit.0);
    assert_eq!(deliveries, [(node("N"), Action::Put, 0)]);
    assert_eq!(deliver(Order::RowByRow, &mut nodes, &unit.0), deliveries);
}

#[test]
fn a_row_held_by_another_key_as_well_is_neither_sent_nor_deleted() {
    let mut nodes = NodeKeys::new();
    nodes.start(node("N"), Incarnation(1), &[own(1), own(2)]);
    let kept = UnitBuilder::new(1).row("Orders", 1, Some("r"), false, &[own(1)], &[own(2)]);
    assert_eq!(deliver(Order::Right, &mut nodes, &kept.0), []);
    let changed = UnitBuilder::new(2).row("Orders", 1, Some("r2"), true, &[own(1)], &[own(2)]);
    assert_eq!(deliver(Order::Right, &mut nodes, &changed.0), [(node("N"), Action::Update, 0)]);
    let mut gone = UnitBuilder::new(3).row("Orders", 1, None, false, &[own(1)], &[]);
    assert_eq!(deliver(Order::Right, &mut nodes, &gone.0), [(node("N"), Action::Delete, 0)]);
    gone.0.rows[0].keys_after = vec![0];
    assert!(route(&mut nodes, &gone.0).unwrap_err().to_string().contains("row 1 is gone but has keys"));
}
