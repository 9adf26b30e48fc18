//! The pure route decision: which node gets what of a unit (R7).
//!
//! Each row has one net event with the keys it had before the unit and those it has after it. The keys before are
//! matched with what the nodes held **before** the unit, the keys after with what they hold **after** it; one order of
//! row and node changes, or a map that is changed once, diverges or leaks. Per node then: both -> the changed columns,
//! if any; only after -> the whole row; only before -> a delete; neither -> nothing.
//!
//! Work is done per distinct pair of key sets, never per node and row.

use crate::base::ids::{Incarnation, NodeName, TxnId};
use crate::model::event::{KeyIndex, NodeEvent, ScopeKey, UnitEvents};
use std::collections::HashMap;
use std::sync::Arc;

/// A node within one incarnation. A new incarnation gets a new index, so what was collected for the former cannot reach it.
pub type NodeIndex = u32;

/// Nodes that get the same, sorted.
pub type Audience = Arc<[NodeIndex]>;

/// What a group of nodes does with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// It left their view or is gone.
    Delete,
    /// It entered their view: the whole row.
    Put,
    /// It stays and columns changed.
    Update,
}

/// One row for one group of nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Index into [`UnitEvents::rows`].
    pub row: usize,
    /// What they do.
    pub action: Action,
    /// Index into [`Routed::audiences`].
    pub audience: usize,
}

/// What a unit, or a part of it, means for the nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routed {
    /// Groups of nodes, each once.
    pub audiences: Vec<Audience>,
    /// In the order of rows; for one row updates, then puts, then deletes.
    pub deliveries: Vec<Delivery>,
    /// Nodes that stopped, or whose former incarnation ended, in this unit.
    pub ended: Vec<NodeIndex>,
    /// Nodes that run before and after the unit, if it changes the schema.
    pub running: Option<Audience>,
    /// Nodes that begin anew with this unit.
    pub restarted: Vec<NodeIndex>,
    /// For each mark of the unit the node, if it runs.
    pub marked: Vec<Option<NodeIndex>>,
    /// For each confirm of the unit the node, if it runs: one whose stream begins after the unit has it in its extract.
    pub confirmed: Vec<Option<NodeIndex>>,
}

/// A unit that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unit {unit}: {what}")]
pub struct RouteError {
    /// The unit.
    pub unit: TxnId,
    /// What is wrong.
    pub what: String,
}

#[derive(Debug, Clone)]
struct Holder {
    name: NodeName,
    incarnation: Incarnation,
    /// Sorted.
    keys: Vec<KeyId>,
}

/// A key that some node holds: index into [`NodeKeys::holders`].
type KeyId = u32;

/// Holders, before a unit, of the keys that its node events change.
type HoldersBefore = HashMap<Arc<ScopeKey>, Vec<NodeIndex>>;

/// Which nodes hold which key: the Router's only state for routing.
#[derive(Debug, Clone, Default)]
pub struct NodeKeys {
    key_ids: HashMap<Arc<ScopeKey>, KeyId>,
    /// By key id: the key, and the active nodes that hold it, sorted.
    holders: Vec<(Arc<ScopeKey>, Vec<NodeIndex>)>,
    /// Key ids that no node holds any more.
    free: Vec<KeyId>,
    /// By index; ended incarnations leave `None`.
    nodes: Vec<Option<Holder>>,
    by_name: HashMap<NodeName, NodeIndex>,
}

impl NodeKeys {
    /// Returns a map without nodes.
    pub fn new() -> NodeKeys {
        NodeKeys::default()
    }

    /// Adds a node, ending its former incarnation if there is one. Returns (its index, that of the former).
    pub fn start<'k>(
        &mut self,
        node: NodeName,
        incarnation: Incarnation,
        keys: impl IntoIterator<Item = &'k ScopeKey>,
    ) -> (NodeIndex, Option<NodeIndex>) {
        let former = self.stop(&node);
        // An index per start of a node: u32 outlasts the memory.
        let index = self.nodes.len() as NodeIndex;
        self.nodes.push(Some(Holder { name: node.clone(), incarnation, keys: Vec::new() }));
        self.by_name.insert(node, index);
        keys.into_iter().for_each(|key| self.gain(index, key));
        (index, former)
    }

    /// Removes a node with its keys. Returns its index if it was there.
    pub fn stop(&mut self, node: &NodeName) -> Option<NodeIndex> {
        let index = self.by_name.remove(node)?;
        let holder = self.nodes.get_mut(index as usize).and_then(Option::take)?;
        for key in holder.keys {
            self.forget(index, key);
        }
        Some(index)
    }

    /// Gives a node a key; giving it twice changes nothing.
    pub fn gain(&mut self, index: NodeIndex, key: &ScopeKey) {
        let Some(Some(holder)) = self.nodes.get_mut(index as usize) else { return };
        let id = match self.key_ids.get(key) {
            Some(id) => *id,
            None => {
                let key = Arc::new(key.clone());
                let id = self.free.pop().unwrap_or(self.holders.len() as KeyId);
                match self.holders.get_mut(id as usize) {
                    Some(place) => *place = (key.clone(), Vec::new()),
                    None => self.holders.push((key.clone(), Vec::new())),
                }
                self.key_ids.insert(key, id);
                id
            }
        };
        insert_sorted(&mut holder.keys, id);
        if let Some((_, nodes)) = self.holders.get_mut(id as usize) {
            insert_sorted(nodes, index);
        }
    }

    /// Takes a key from a node.
    pub fn lose(&mut self, index: NodeIndex, key: &ScopeKey) {
        let Some(Some(holder)) = self.nodes.get_mut(index as usize) else { return };
        if let Some(id) = self.key_ids.get(key).copied()
            && remove_sorted(&mut holder.keys, id)
        {
            self.forget(index, id);
        }
    }

    fn forget(&mut self, index: NodeIndex, id: KeyId) {
        if let Some((key, nodes)) = self.holders.get_mut(id as usize) {
            remove_sorted(nodes, index);
            if nodes.is_empty() {
                self.key_ids.remove(key);
                self.free.push(id);
            }
        }
    }

    /// Returns the index of an active node.
    pub fn index_of(&self, node: &NodeName) -> Option<NodeIndex> {
        self.by_name.get(node).copied()
    }

    /// Returns name and incarnation of an active node; `None` for one that ended.
    pub fn node(&self, index: NodeIndex) -> Option<(&NodeName, Incarnation)> {
        self.nodes.get(index as usize)?.as_ref().map(|holder| (&holder.name, holder.incarnation))
    }

    /// Returns how many nodes are active.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Returns whether no node is active.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Returns the holders of any of the keys, sorted, each once; where `instead` has a key, it tells its holders.
    fn holders_of(&self, unit: &UnitEvents, keys: &[KeyIndex], instead: &HoldersBefore) -> Result<Vec<NodeIndex>, RouteError> {
        let mut all: Vec<NodeIndex> = Vec::new();
        let mut sources = 0;
        for key in keys {
            let key = key_at(unit, *key)?;
            let nodes = match instead.get(key) {
                Some(nodes) => nodes.as_slice(),
                None => self.holders(key),
            };
            if !nodes.is_empty() {
                all.extend_from_slice(nodes);
                sources += 1;
            }
        }
        if sources > 1 {
            all.sort_unstable();
            all.dedup();
        }
        Ok(all)
    }

    /// Returns the active nodes that hold a key, sorted.
    fn holders(&self, key: &ScopeKey) -> &[NodeIndex] {
        let id = self.key_ids.get(key);
        id.and_then(|id| self.holders.get(*id as usize)).map(|(_, nodes)| nodes.as_slice()).unwrap_or_default()
    }

    /// Returns who holds each key that the node events of a unit change, before they are applied.
    fn holders_before(&self, unit: &UnitEvents) -> Result<HoldersBefore, RouteError> {
        let mut before = HoldersBefore::new();
        for event in &unit.nodes {
            let (NodeEvent::Start { node, keys: named, .. }
            | NodeEvent::Restart { node, keys: named, .. }
            | NodeEvent::Keys { node, gained: named, .. }) = event
            else {
                let NodeEvent::Stop { node } = event else { continue };
                self.keep_holders_of(node, &mut before);
                continue;
            };
            let lost: &[KeyIndex] = match event {
                NodeEvent::Keys { lost, .. } => lost,
                _ => {
                    self.keep_holders_of(node, &mut before);
                    &[]
                }
            };
            for key in named.iter().chain(lost) {
                let key = key_at(unit, *key)?;
                if !before.contains_key(key) {
                    before.insert(Arc::new(key.clone()), self.holders(key).to_vec());
                }
            }
        }
        Ok(before)
    }

    /// Adds the holders of every key of a node.
    fn keep_holders_of(&self, node: &NodeName, before: &mut HoldersBefore) {
        let holder = self.index_of(node).and_then(|index| self.nodes.get(index as usize)).and_then(Option::as_ref);
        for (key, nodes) in holder.iter().flat_map(|holder| &holder.keys).filter_map(|id| self.holders.get(*id as usize)) {
            before.entry(key.clone()).or_insert_with(|| nodes.clone());
        }
    }

    /// Applies the node changes of a unit.
    fn apply(&mut self, unit: &UnitEvents) -> Result<Applied, RouteError> {
        let mut applied = Applied::default();
        for event in &unit.nodes {
            match event {
                NodeEvent::Start { node, incarnation, keys } | NodeEvent::Restart { node, incarnation, keys } => {
                    let keys = keys.iter().map(|key| key_at(unit, *key)).collect::<Result<Vec<_>, _>>()?;
                    let (index, former) = self.start(node.clone(), *incarnation, keys);
                    // One that begins anew held nothing before, so whatever it sees is new to it.
                    let list = if matches!(event, NodeEvent::Start { .. }) { &mut applied.silent } else { &mut applied.restarted };
                    list.push(index);
                    applied.ended.extend(former);
                }
                NodeEvent::Stop { node } => applied.ended.extend(self.stop(node)),
                NodeEvent::Keys { node, gained, lost } => {
                    let index = self
                        .index_of(node)
                        .ok_or_else(|| RouteError { unit: unit.unit, what: format!("keys of node {node} change, but it is not active") })?;
                    for key in lost {
                        self.lose(index, key_at(unit, *key)?);
                    }
                    for key in gained {
                        self.gain(index, key_at(unit, *key)?);
                    }
                }
            }
        }
        applied.silent.extend_from_slice(&applied.ended);
        applied.silent.sort_unstable();
        Ok(applied)
    }

    /// Returns every active node but those, sorted.
    fn all_but(&self, without: &[NodeIndex]) -> Vec<NodeIndex> {
        let mut all: Vec<NodeIndex> = self.by_name.values().copied().filter(|node| !without.contains(node)).collect();
        all.sort_unstable();
        all
    }
}

/// What the node events of a unit did.
#[derive(Debug, Default)]
struct Applied {
    /// Who gets nothing of the unit, sorted: those that ended, and those whose stream begins after it.
    silent: Vec<NodeIndex>,
    ended: Vec<NodeIndex>,
    restarted: Vec<NodeIndex>,
}

fn insert_sorted(list: &mut Vec<u32>, item: u32) {
    if let Err(place) = list.binary_search(&item) {
        list.insert(place, item);
    }
}

/// Returns whether it was there.
fn remove_sorted(list: &mut Vec<u32>, item: u32) -> bool {
    let place = list.binary_search(&item);
    if let Ok(place) = place {
        list.remove(place);
    }
    place.is_ok()
}

fn key_at(unit: &UnitEvents, key: KeyIndex) -> Result<&ScopeKey, RouteError> {
    unit.keys.get(key as usize).ok_or_else(|| RouteError { unit: unit.unit, what: format!("key number {key} is not listed") })
}

/// Distinct key sets of a unit, and who holds any key of each.
#[derive(Debug, Default)]
struct KeySets<'a> {
    ids: HashMap<&'a [KeyIndex], usize>,
    sets: Vec<&'a [KeyIndex]>,
}

impl<'a> KeySets<'a> {
    fn id(&mut self, keys: &'a [KeyIndex]) -> usize {
        *self.ids.entry(keys).or_insert_with(|| {
            self.sets.push(keys);
            self.sets.len() - 1
        })
    }

    fn holders(&self, unit: &UnitEvents, nodes: &NodeKeys, instead: &HoldersBefore) -> Result<Vec<Vec<NodeIndex>>, RouteError> {
        self.sets.iter().map(|keys| nodes.holders_of(unit, keys, instead)).collect()
    }
}

/// The three groups of a pair of key sets, as indices into [`Routed::audiences`]; `None` where nobody is.
#[derive(Debug, Clone, Copy)]
struct Groups {
    both: Option<usize>,
    only_after: Option<usize>,
    only_before: Option<usize>,
}

/// A unit that is routed part by part: its node events are applied, and who held what before them is remembered, so that each part
/// can be tested with the keys before the unit and after it (R7).
#[derive(Debug)]
pub struct UnitRoute {
    before: HoldersBefore,
    silent: Vec<NodeIndex>,
    /// What the unit means for nodes as such; told with the first part.
    head: Routed,
}

impl UnitRoute {
    /// Begins a unit: brings `nodes` to its end. Keys of its node events must be listed already.
    ///
    /// # Errors
    /// If the unit contradicts itself; `nodes` is then of no use any more.
    pub fn begin(nodes: &mut NodeKeys, unit: &UnitEvents) -> Result<UnitRoute, RouteError> {
        let before = nodes.holders_before(unit)?;
        let Applied { silent, ended, restarted } = nodes.apply(unit)?;
        let begun: Vec<NodeIndex> = silent.iter().chain(&restarted).copied().collect();
        let running = (!unit.schema.is_empty()).then(|| nodes.all_but(&begun).into());
        let hears = |node| nodes.index_of(node).filter(|node| silent.binary_search(node).is_err());
        let marked = unit.marks.iter().map(|mark| hears(&mark.node)).collect();
        let confirmed = unit.confirms.iter().map(|event| hears(&event.node)).collect();
        Ok(UnitRoute { before, silent, head: Routed { ended, running, restarted, marked, confirmed, ..Routed::default() } })
    }

    /// Decides who gets what of the rows in `unit`, a part of the unit that was begun.
    ///
    /// # Errors
    /// If the part contradicts itself.
    pub fn part(&mut self, nodes: &NodeKeys, unit: &UnitEvents) -> Result<Routed, RouteError> {
        let (mut before, mut after) = (KeySets::default(), KeySets::default());
        let mut pairs = Vec::with_capacity(unit.rows.len());
        for event in &unit.rows {
            if event.row.is_none() && !event.keys_after.is_empty() {
                let what = format!("row {} is gone but has keys", crate::model::value::display_key(&event.key));
                return Err(RouteError { unit: unit.unit, what });
            }
            pairs.push((before.id(&event.keys_before), after.id(&event.keys_after)));
        }
        let held_before = before.holders(unit, nodes, &self.before)?;
        let held_after = after.holders(unit, nodes, &HoldersBefore::new())?;
        let mut routed = std::mem::take(&mut self.head);
        deliver(unit, &pairs, &held_before, &held_after, &self.silent, &mut routed);
        Ok(routed)
    }
}

/// Decides who gets what of a unit, and brings `nodes` to its end.
///
/// # Errors
/// If the unit contradicts itself; `nodes` is then of no use any more.
pub fn route(nodes: &mut NodeKeys, unit: &UnitEvents) -> Result<Routed, RouteError> {
    UnitRoute::begin(nodes, unit)?.part(nodes, unit)
}

/// Lists who does what with each row; `pairs` are the numbers of its key sets, before and after.
fn deliver(
    unit: &UnitEvents,
    pairs: &[(usize, usize)],
    held_before: &[Vec<NodeIndex>],
    held_after: &[Vec<NodeIndex>],
    silent: &[NodeIndex],
    routed: &mut Routed,
) {
    let mut audience_ids: HashMap<Audience, usize> = HashMap::new();
    let mut groups: HashMap<(usize, usize), Groups> = HashMap::new();
    for (row, (event, pair)) in unit.rows.iter().zip(pairs).enumerate() {
        let groups = *groups.entry(*pair).or_insert_with(|| {
            let before = held_before.get(pair.0).map(Vec::as_slice).unwrap_or_default();
            let after = held_after.get(pair.1).map(Vec::as_slice).unwrap_or_default();
            let (both, only_after, only_before) = split(before, after, silent);
            let mut intern = |nodes: Vec<NodeIndex>| {
                if nodes.is_empty() {
                    return None;
                }
                let audience: Audience = nodes.into();
                Some(*audience_ids.entry(audience.clone()).or_insert_with(|| {
                    routed.audiences.push(audience);
                    routed.audiences.len() - 1
                }))
            };
            Groups { both: intern(both), only_after: intern(only_after), only_before: intern(only_before) }
        });
        let both = groups.both.filter(|_| !event.changed.is_empty());
        let actions = [(Action::Update, both), (Action::Put, groups.only_after), (Action::Delete, groups.only_before)];
        for (action, audience) in actions {
            if let Some(audience) = audience {
                routed.deliveries.push(Delivery { row, action, audience });
            }
        }
    }
}

/// Splits two sorted lists into (in both, only in the second, only in the first), leaving out the `without`, sorted.
fn split(before: &[NodeIndex], after: &[NodeIndex], without: &[NodeIndex]) -> (Vec<NodeIndex>, Vec<NodeIndex>, Vec<NodeIndex>) {
    let (mut both, mut only_after, mut only_before) = (Vec::new(), Vec::new(), Vec::new());
    let (mut before, mut after) = (before.iter().copied().peekable(), after.iter().copied().peekable());
    loop {
        let (node, group) = match (before.peek(), after.peek()) {
            (None, None) => return (both, only_after, only_before),
            (Some(left), Some(right)) if left == right => {
                before.next();
                (after.next(), &mut both)
            }
            (Some(left), Some(right)) if left < right => (before.next(), &mut only_before),
            (Some(_), None) => (before.next(), &mut only_before),
            _ => (after.next(), &mut only_after),
        };
        group.extend(node.filter(|node| without.binary_search(node).is_err()));
    }
}
