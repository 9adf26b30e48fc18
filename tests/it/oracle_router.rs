//! The smallest router that follows the rule of net events, its replicas, and the wrong routers that the harness must catch.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "helpers of tests: a test fails by panicking")]

use super::oracle::View;
use dockmaster::base::ids::NodeName;
use dockmaster::model::event::{KeyIndex, NodeEvent, RowEvent, ScopeKey, UnitEvents};
use dockmaster::model::value::{Row, RowKey};
use std::collections::{BTreeMap, BTreeSet};

/// A known error, planted to prove that the harness sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// R7: node keys are updated first, rows are tested with the new ones on both sides.
    NodeKeysFirst,
    /// R7: rows are routed with the old node keys, then the nodes' changes are carried out.
    NodeKeysLast,
    /// R7: every change is routed as if it were a unit of its own.
    ChangeByChange,
    /// R8: keys are compared by value, without their path.
    KeysWithoutPath,
    /// R1: a row that changes twice in a unit is logged as it was after the first change.
    EarlierImages,
    /// Changed columns are not told: a row that stays visible is not updated.
    ForgottenUpdates,
}

/// A node with what it holds.
#[derive(Debug, Default, Clone)]
pub(crate) struct Replica {
    keys: BTreeSet<ScopeKey>,
    pub(crate) rows: View,
}

/// Routes net events to replicas.
pub(crate) struct Router {
    pub(crate) replicas: BTreeMap<NodeName, Replica>,
    fault: Fault,
}

enum Send {
    Put(Row),
    Update(Row, Vec<u16>),
    Delete,
}

impl Router {
    pub(crate) fn new(fault: Fault) -> Router {
        Router { replicas: BTreeMap::new(), fault }
    }

    /// Takes a node in whose stream begins here: `rows` is its extract.
    pub(crate) fn start(&mut self, node: &NodeName, keys: BTreeSet<ScopeKey>, rows: View) {
        self.replicas.insert(node.clone(), Replica { keys, rows });
    }

    /// Routes a unit. `views` is what the nodes see after it.
    pub(crate) fn route(&mut self, events: &UnitEvents, views: &BTreeMap<NodeName, View>) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for row in &events.rows {
            if !seen.insert((row.table, &row.key)) {
                return Err(format!("two events of {:?}", row.key));
            }
            for keys in [&row.keys_before, &row.keys_after] {
                if !keys.is_sorted_by(|a, b| a < b) {
                    return Err(format!("keys of {:?} are not a set: {keys:?}", row.key));
                }
            }
        }
        let names =
            |numbers: &[KeyIndex]| -> BTreeSet<ScopeKey> { numbers.iter().map(|number| events.keys[*number as usize].clone()).collect() };
        let mut starting = Vec::new();
        let mut new_keys: BTreeMap<NodeName, BTreeSet<ScopeKey>> =
            self.replicas.iter().map(|(name, replica)| (name.clone(), replica.keys.clone())).collect();
        for event in &events.nodes {
            match event {
                NodeEvent::Start { node, keys, .. } => {
                    self.replicas.remove(node);
                    starting.push((node.clone(), names(keys)));
                }
                // As a node that holds nothing and to which every row is new.
                NodeEvent::Restart { node, keys, .. } => {
                    self.replicas.insert(node.clone(), Replica::default());
                    new_keys.insert(node.clone(), names(keys));
                }
                NodeEvent::Stop { node } => {
                    self.replicas.remove(node).ok_or_else(|| format!("{node} stops but does not run"))?;
                }
                NodeEvent::Keys { node, gained, lost } => {
                    let keys = new_keys.get_mut(node).ok_or_else(|| format!("{node} does not run"))?;
                    for key in names(lost) {
                        if !keys.remove(&key) {
                            return Err(format!("{node} loses {key:?}, which it does not hold"));
                        }
                    }
                    for key in names(gained) {
                        if !keys.insert(key.clone()) {
                            return Err(format!("{node} gains {key:?}, which it holds"));
                        }
                    }
                }
            }
        }
        let fault = self.fault;
        for (name, replica) in &mut self.replicas {
            let new = &new_keys[name];
            let view = views.get(name);
            match fault {
                Fault::NodeKeysFirst => route_rows(name, replica, events, new, new, view, fault)?,
                Fault::NodeKeysLast => {
                    let old = replica.keys.clone();
                    route_rows(name, replica, events, &old, &old, view, fault)?;
                    let mut second = events.clone();
                    for event in &mut second.rows {
                        event.keys_before.clone_from(&event.keys_after);
                        event.changed.clear();
                    }
                    route_rows(name, replica, &second, &old, new, view, fault)?;
                }
                _ => {
                    let old = std::mem::take(&mut replica.keys);
                    route_rows(name, replica, events, &old, new, view, fault)?;
                }
            }
            replica.keys.clone_from(new);
        }
        for (node, keys) in starting {
            self.start(&node, keys, views.get(&node).cloned().unwrap_or_default());
        }
        Ok(())
    }

    /// Compares every replica with what its node sees.
    pub(crate) fn compare(&self, views: &BTreeMap<NodeName, View>) -> Result<(), String> {
        let running: Vec<&NodeName> = self.replicas.keys().collect();
        let active: Vec<&NodeName> = views.keys().collect();
        if running != active {
            return Err(format!("running {running:?}, active {active:?}"));
        }
        for (name, replica) in &self.replicas {
            let view = &views[name];
            if replica.rows != *view {
                let extra: Vec<_> = replica.rows.iter().filter(|(key, row)| view.get(*key) != Some(*row)).collect();
                let missing: Vec<_> = view.iter().filter(|(key, row)| replica.rows.get(*key) != Some(*row)).collect();
                return Err(format!("{name} differs: has {extra:?}, should have {missing:?}"));
            }
        }
        Ok(())
    }
}

fn route_rows(
    name: &NodeName,
    replica: &mut Replica,
    events: &UnitEvents,
    old: &BTreeSet<ScopeKey>,
    new: &BTreeSet<ScopeKey>,
    view: Option<&View>,
    fault: Fault,
) -> Result<(), String> {
    let mut sends: Vec<((String, RowKey), Send)> = Vec::new();
    for event in &events.rows {
        let held = |keys: &[KeyIndex], of_node: &BTreeSet<ScopeKey>| {
            keys.iter().any(|key| {
                let key = &events.keys[*key as usize];
                of_node.contains(key) || (fault == Fault::KeysWithoutPath && of_node.iter().any(|held| held.value == key.value))
            })
        };
        let send = match (held(&event.keys_before, old), held(&event.keys_after, new)) {
            (false, false) => continue,
            (true, false) => Send::Delete,
            (false, true) => Send::Put(image(event, name)?),
            (true, true) if event.changed.is_empty() || fault == Fault::ForgottenUpdates => continue,
            (true, true) => Send::Update(image(event, name)?, event.changed.clone()),
        };
        sends.push(((events.tables[event.table as usize].name.clone(), event.key.clone()), send));
    }
    // Deletes first: a key may come back under another type that SQLite holds equal.
    sends.sort_by_key(|(_, send)| !matches!(send, Send::Delete));
    for (at, send) in sends {
        let had = replica.rows.remove(&at);
        let row = match (send, had) {
            (Send::Delete, Some(_)) => continue,
            (Send::Delete, None) => return Err(format!("{name}: delete of {at:?}, which it does not have")),
            (Send::Put(_), Some(_)) => return Err(format!("{name}: put of {at:?}, which it has")),
            (Send::Put(row), None) => row,
            (Send::Update(..), None) => return Err(format!("{name}: update of {at:?}, which it does not have")),
            (Send::Update(row, changed), Some(mut had)) => {
                for column in changed {
                    had[usize::from(column)] = row[usize::from(column)].clone();
                }
                if had != row {
                    return Err(format!("{name}: update of {at:?} leaves {had:?}, the row is {row:?}"));
                }
                had
            }
        };
        // Nothing leaves the server that the node does not see at the end of the unit.
        if view.is_some_and(|view| view.get(&at) != Some(&row)) {
            return Err(format!("{name}: leak of {at:?} {row:?}"));
        }
        replica.rows.insert(at, row);
    }
    Ok(())
}

fn image(event: &RowEvent, name: &NodeName) -> Result<Row, String> {
    event.row.clone().ok_or_else(|| format!("{name} should see {:?}, which is gone", event.key))
}
