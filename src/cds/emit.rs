//! The net events of a unit (R7): one per row whose content or key set changed, and one per row that holds a key which
//! some node gained or lost.
//!
//! An event names the keys before and after the unit only as far as they matter to a node: keys that no node holds are
//! left out, and for a row reached along an edge only those that a holder of a changed key also holds.

use super::nodes::{NodeChanges, NodeIndex, NodeScope};
use super::rows::{key_of, pick};
use super::scope::{Delta, Touched, UnitScope, When};
use super::unit::{NodeStep, UnitInput};
use super::{CdsError, keys::KeyId};
use crate::base::ids::NodeName;
use crate::model::dock::{DockTable, TableIndex};
use crate::model::event::{KeyIndex, NodeEvent, RowEvent, ScopeKey, TableHeading, UnitEvents};
use crate::model::value::{Row, RowKey};
use crate::rules::graph::VertexIndex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

/// Up to this many candidate keys are probed one by one; beyond it the row's whole set is read.
const PROBES_MAX: usize = 64;

/// A key of more nodes than this is broad: the keys that its holders also hold are not collected.
const HOLDERS_MAX: usize = 64;

/// Returns how events and files name a table: its sent columns.
pub fn heading(table: &DockTable) -> TableHeading {
    let sent = sent_columns(table);
    TableHeading {
        name: table.name.clone(),
        columns: sent.iter().filter_map(|column| table.columns.get(*column)).map(|column| column.name.clone()).collect(),
        key: table
            .key
            .iter()
            .filter_map(|key| sent.iter().position(|column| column == key))
            .filter_map(|at| u16::try_from(at).ok())
            .collect(),
    }
}

/// Returns the sent columns of a table, in order.
pub fn sent_columns(table: &DockTable) -> Vec<usize> {
    (0..table.columns.len()).filter(|column| table.columns[*column].sent).collect()
}

pub(super) struct Emitter<'a> {
    pub(super) scope: &'a UnitScope<'a>,
    before: &'a NodeIndex,
    changes: &'a NodeChanges,
    pub(super) out: UnitEvents,
    key_numbers: HashMap<KeyId, KeyIndex>,
    /// Keys, old and new, of the nodes whose keys this unit changed.
    changed_nodes_keys: BTreeSet<KeyId>,
    /// Per key every key of its holders; `None` for a broad one.
    co_keys: HashMap<KeyId, Option<Rc<BTreeSet<KeyId>>>>,
}

impl UnitScope<'_> {
    /// Returns the events of the unit.
    pub(crate) fn events(
        &self,
        input: &UnitInput,
        steps: &BTreeMap<NodeName, NodeStep>,
        changes: &NodeChanges,
    ) -> Result<UnitEvents, CdsError> {
        let mut emitter = Emitter::new(self, input, changes);
        let walked = emitter.nodes(steps)?;
        for (table, declared) in self.cds.dock.tables.iter().enumerate() {
            if let Some(vertex) = self.emitting(table) {
                emitter.table(table, declared, vertex, &walked)?;
            }
        }
        emitter.canonical_keys();
        emitter.whole_schema(steps)?;
        Ok(emitter.out)
    }
}

impl<'a> Emitter<'a> {
    /// Returns an emitter of a unit without events.
    pub(super) fn new(scope: &'a UnitScope<'a>, input: &UnitInput, changes: &'a NodeChanges) -> Emitter<'a> {
        let out = UnitEvents {
            unit: input.unit,
            read_at_micros: input.read_at_micros,
            revision: input.revision.unwrap_or(scope.cds.state.revision),
            day: scope.days.1,
            confirms: input.confirms.clone(),
            ..UnitEvents::default()
        };
        Emitter {
            scope,
            before: &scope.cds.nodes,
            changes,
            out,
            key_numbers: HashMap::new(),
            changed_nodes_keys: BTreeSet::new(),
            co_keys: HashMap::new(),
        }
    }

    /// Adds the whole schema, if a node begins anew.
    pub(super) fn whole_schema(&mut self, steps: &BTreeMap<NodeName, NodeStep>) -> Result<(), CdsError> {
        if steps.values().any(|step| *step == NodeStep::Restart) {
            self.out.whole_schema = self.scope.cds.node_schema()?;
        }
        Ok(())
    }
}

impl Emitter<'_> {
    /// Adds the node events and returns the keys that some running node gained or lost.
    pub(super) fn nodes(&mut self, steps: &BTreeMap<NodeName, NodeStep>) -> Result<BTreeSet<KeyId>, CdsError> {
        let mut walked = BTreeSet::new();
        for (name, step) in steps {
            match (step, self.before.get(name), self.changes.set.get(name)) {
                (NodeStep::Start, _, Some(scope)) => {
                    let keys = self.numbers(&scope.keys)?;
                    self.out.nodes.push(NodeEvent::Start { node: name.clone(), incarnation: scope.node.incarnation, keys });
                }
                (NodeStep::Keys, Some(old), Some(new)) => {
                    let gained: Vec<KeyId> = new.keys.iter().filter(|key| old.keys.binary_search(key).is_err()).copied().collect();
                    let lost: Vec<KeyId> = old.keys.iter().filter(|key| new.keys.binary_search(key).is_err()).copied().collect();
                    if gained.is_empty() && lost.is_empty() {
                        continue;
                    }
                    self.changed_nodes_keys.extend(old.keys.iter().chain(&new.keys));
                    walked.extend(gained.iter().chain(&lost));
                    let (gained, lost) = (self.numbers(&gained)?, self.numbers(&lost)?);
                    self.out.nodes.push(NodeEvent::Keys { node: name.clone(), gained, lost });
                }
                (NodeStep::Restart, _, Some(scope)) => {
                    // Every row that it sees is new to it.
                    self.changed_nodes_keys.extend(&scope.keys);
                    walked.extend(&scope.keys);
                    let keys = self.numbers(&scope.keys)?;
                    self.out.nodes.push(NodeEvent::Restart { node: name.clone(), incarnation: scope.node.incarnation, keys });
                }
                (NodeStep::Stop, Some(_), _) => self.out.nodes.push(NodeEvent::Stop { node: name.clone() }),
                _ => {}
            }
        }
        Ok(walked)
    }

    fn table(&mut self, table: TableIndex, declared: &DockTable, vertex: VertexIndex, walked: &BTreeSet<KeyId>) -> Result<(), CdsError> {
        let scope = self.scope;
        let mut events = Vec::new();
        for (key, delta) in &scope.deltas[vertex] {
            // In no order: the events are sorted below, the keys at the end.
            events.extend(match scope.touched[table].get(key) {
                Some(touched) => self.touched_event(declared, key, touched, delta)?,
                None => self.reached_event(declared, vertex, key, delta)?,
            });
        }
        let mut walked_rows: BTreeMap<RowKey, Row> = BTreeMap::new();
        for key in walked {
            let found = scope.rows_with_key(vertex, *key)?;
            walked_rows.extend(found.iter().map(|(key, row)| (key.clone(), row.clone())));
        }
        for (key, row) in walked_rows {
            if !scope.deltas[vertex].contains_key(&key) {
                events.push(self.walked_event(declared, vertex, &key, &row)?);
            }
        }
        if events.is_empty() {
            return Ok(());
        }
        // The maps above have no order; a file's content must (I4).
        events.sort_by(|a, b| a.key.cmp(&b.key));
        let number = self.table_number(declared);
        self.out.rows.extend(events.into_iter().map(|event| RowEvent { table: number, ..event }));
        Ok(())
    }

    /// Returns the number of a table's heading in the unit, adding it if it is not the one added last: tables come one after the other.
    pub(super) fn table_number(&mut self, declared: &DockTable) -> u32 {
        if self.out.tables.last().is_none_or(|last| last.name != declared.name) {
            self.out.tables.push(heading(declared));
        }
        u32::try_from(self.out.tables.len() - 1).unwrap_or(u32::MAX)
    }

    /// Returns the event of a row that itself did not change, but holds a key that some node gained or lost.
    pub(super) fn walked_event(
        &mut self,
        declared: &DockTable,
        vertex: VertexIndex,
        key: &RowKey,
        row: &Row,
    ) -> Result<RowEvent, CdsError> {
        let held = self.held_of(vertex, row, &[&self.changed_nodes_keys])?;
        let keys = self.numbers(&held)?;
        Ok(self.event(declared, key, Some(row), Vec::new(), keys.clone(), keys))
    }

    pub(super) fn touched_event(
        &mut self,
        declared: &DockTable,
        key: &RowKey,
        touched: &Touched,
        delta: &Delta,
    ) -> Result<Option<RowEvent>, CdsError> {
        let Some((before, after)) = &delta.sets else { return Ok(None) };
        let changed: Vec<u16> = match (&touched.before, &touched.after) {
            (Some(old), Some(new)) => sent_columns(declared)
                .into_iter()
                .enumerate()
                .filter(|(_, column)| old.get(*column) != new.get(*column))
                .filter_map(|(at, _)| u16::try_from(at).ok())
                .collect(),
            _ => Vec::new(),
        };
        let existence = touched.before.is_some() != touched.after.is_some();
        if changed.is_empty() && !existence && before == after && self.changed_nodes_keys.is_empty() {
            return Ok(None);
        }
        let before = self.numbers(&self.with_holder(before))?;
        let after = self.numbers(&self.with_holder(after))?;
        if before.is_empty() && after.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.event(declared, key, touched.after.as_ref(), changed, before, after)))
    }

    pub(super) fn reached_event(
        &mut self,
        declared: &DockTable,
        vertex: VertexIndex,
        key: &RowKey,
        delta: &Delta,
    ) -> Result<Option<RowEvent>, CdsError> {
        let Some(row) = &delta.row else { return Ok(None) };
        let mut others = Vec::with_capacity(delta.gained.len() + delta.lost.len());
        for changed in delta.gained.iter().chain(&delta.lost) {
            others.push(self.co_keys(*changed));
        }
        let mut kept = if others.contains(&None) {
            self.scope.keys(&self.scope.cds.graph.vertices[vertex], row, When::After)?
        } else {
            let mut sets: Vec<&BTreeSet<KeyId>> = others.iter().flatten().map(Rc::as_ref).collect();
            sets.push(&self.changed_nodes_keys);
            self.held_of(vertex, row, &sets)?
        };
        kept.retain(|key| delta.gained.binary_search(key).is_err());
        let before: Vec<KeyId> = kept.iter().chain(&delta.lost).copied().collect();
        let after: Vec<KeyId> = kept.iter().chain(&delta.gained).copied().collect();
        let before = self.numbers(&self.with_holder(&before))?;
        let after = self.numbers(&self.with_holder(&after))?;
        if before.is_empty() && after.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.event(declared, key, Some(row), Vec::new(), before, after)))
    }

    /// Returns which keys of some sets a row holds after the unit.
    fn held_of(&self, vertex: VertexIndex, row: &Row, sets: &[&BTreeSet<KeyId>]) -> Result<Vec<KeyId>, CdsError> {
        let vertex = &self.scope.cds.graph.vertices[vertex];
        if sets.iter().map(|keys| keys.len()).sum::<usize>() > PROBES_MAX {
            let held = self.scope.keys(vertex, row, When::After)?;
            return Ok(held.into_iter().filter(|key| sets.iter().any(|keys| keys.contains(key))).collect());
        }
        let mut held = Vec::new();
        for (at, keys) in sets.iter().enumerate() {
            for key in keys.iter().filter(|key| !sets[..at].iter().any(|earlier| earlier.contains(key))) {
                if self.scope.has(vertex, row, *key, When::After)? {
                    held.push(*key);
                }
            }
        }
        Ok(held)
    }

    /// Returns every key of the nodes that hold this one before or after the unit; `None` if it is a broad one.
    fn co_keys(&mut self, key: KeyId) -> Option<Rc<BTreeSet<KeyId>>> {
        if let Some(known) = self.co_keys.get(&key) {
            return known.clone();
        }
        let mut keys = BTreeSet::new();
        let mut broad = false;
        for (at, holder) in self.holders(key).enumerate() {
            keys.extend(holder.keys.iter().copied());
            if at >= HOLDERS_MAX || keys.len() > PROBES_MAX {
                broad = true;
                break;
            }
        }
        let found = (!broad).then(|| Rc::new(keys));
        self.co_keys.insert(key, found.clone());
        found
    }

    /// Returns the nodes as they are before the unit, and those that it changes also as they are after it.
    fn holders(&self, key: KeyId) -> impl Iterator<Item = &NodeScope> {
        [self.before, &self.changes.set].into_iter().flat_map(move |index| index.holders(key).filter_map(|name| index.get(name)))
    }

    fn with_holder(&self, keys: &[KeyId]) -> Vec<KeyId> {
        keys.iter().copied().filter(|key| self.holders(*key).next().is_some()).collect()
    }

    /// Returns the numbers of keys in the unit's key list, sorted, adding those that are not in it.
    fn numbers(&mut self, keys: &[KeyId]) -> Result<Vec<KeyIndex>, CdsError> {
        let mut numbers = Vec::with_capacity(keys.len());
        let mut new: Vec<(ScopeKey, KeyId)> = Vec::new();
        for key in keys {
            if let Some(number) = self.key_numbers.get(key) {
                numbers.push(*number);
            } else if let Some((path, value)) = self.scope.cds.key_parts(*key)? {
                new.push((ScopeKey { path: self.scope.cds.graph.paths[path].name.clone(), value }, *key));
            }
        }
        // In an order of their own: what a key's number is in the data store must not show in a file (I4).
        new.sort_unstable();
        new.dedup();
        for (key, id) in new {
            let number = u32::try_from(self.out.keys.len()).unwrap_or(u32::MAX);
            self.out.keys.push(key);
            self.key_numbers.insert(id, number);
            numbers.push(number);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Sorts the key list, so that the same unit gives the same bytes whatever the keys' numbers in the data store (I4).
    fn canonical_keys(&mut self) {
        let mut order: Vec<usize> = (0..self.out.keys.len()).collect();
        order.sort_by(|a, b| self.out.keys[*a].cmp(&self.out.keys[*b]));
        let mut renumbered = vec![0; order.len()];
        for (new, old) in order.iter().enumerate() {
            renumbered[*old] = u32::try_from(new).unwrap_or(u32::MAX);
        }
        self.out.keys = order.iter().map(|old| self.out.keys[*old].clone()).collect();
        let renumber = |keys: &mut Vec<KeyIndex>| {
            for key in keys.iter_mut() {
                *key = renumbered[*key as usize];
            }
            keys.sort_unstable();
        };
        for event in &mut self.out.rows {
            renumber(&mut event.keys_before);
            renumber(&mut event.keys_after);
        }
        for event in &mut self.out.nodes {
            match event {
                NodeEvent::Start { keys, .. } | NodeEvent::Restart { keys, .. } => renumber(keys),
                NodeEvent::Keys { gained, lost, .. } => {
                    renumber(gained);
                    renumber(lost);
                }
                NodeEvent::Stop { .. } => {}
            }
        }
    }

    fn event(
        &self,
        declared: &DockTable,
        key: &RowKey,
        row: Option<&Row>,
        changed: Vec<u16>,
        keys_before: Vec<KeyIndex>,
        keys_after: Vec<KeyIndex>,
    ) -> RowEvent {
        debug_assert!(row.is_none_or(|row| key_of(declared, row) == *key));
        let row = row.map(|row| pick(row, &sent_columns(declared)));
        RowEvent { table: 0, key: key.clone(), row, changed, keys_before, keys_after }
    }
}
