//! The scope index at work: which keys the rows touched by a unit had before it and have after it.
//!
//! Vertices are visited in topological order. A touched row's key sets are computed on both sides; a row that is only
//! reached along an edge gets its gained and lost keys from the edge's source, checked against the row's other inputs
//! by point lookups. So a change costs its own joins, never a scan and never a whole broad set (`scope.md` 7).
//!
//! While a unit is open the data tables hold the state after it and the counts the state before it; `touched` and the
//! overlay hold the other side of each.

use super::counts::{Overlay, Transition};
use super::guard::{fits, window_holds};
use super::rows::{fold_all, key_of, pick};
use super::{Cds, CdsError, keys::KeyId};
use crate::model::dock::{ColumnIndex, TableIndex};
use crate::model::value::{Collation, Row, RowKey, Value};
use crate::rules::graph::{Guard, Input, Junction, JunctionIndex, PathIndex, PathMap, RAW, Source, Vertex, VertexIndex, column_collation};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// Which side of the unit is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// The state in which the unit began.
    Before,
    /// The state in which it ended.
    After,
}

/// A row that the unit changed, or that a window passed.
#[derive(Debug, Clone)]
pub(crate) struct Touched {
    pub(crate) before: Option<Row>,
    pub(crate) after: Option<Row>,
}

/// What a unit did to the keys of one row at one vertex.
#[derive(Debug, Clone, Default)]
pub(crate) struct Delta {
    pub(crate) gained: Vec<KeyId>,
    pub(crate) lost: Vec<KeyId>,
    /// Whole sets before and after, for touched rows.
    pub(crate) sets: Option<(Vec<KeyId>, Vec<KeyId>)>,
    /// The row, for one that was not touched.
    pub(crate) row: Option<Row>,
}

/// One unit's scope maintenance.
pub(crate) struct UnitScope<'c> {
    pub(crate) cds: &'c Cds,
    /// Per table the touched rows.
    pub(crate) touched: Vec<HashMap<RowKey, Touched>>,
    /// Per table that an edge follows: folded key -> key of a touched row that existed before.
    before_by_folded: Vec<HashMap<Vec<Value>, RowKey>>,
    /// Window day before and after the unit.
    pub(crate) days: (i64, i64),
    pub(crate) overlay: Overlay,
    /// Per vertex the rows whose keys were looked at.
    pub(crate) deltas: Vec<HashMap<RowKey, Delta>>,
    transitions: Vec<HashMap<Vec<Value>, Transition>>,
    /// Most rows that may be reached at one vertex.
    pub(crate) reached_max: usize,
    /// Rows found by a walk, so that a source is searched once.
    pub(crate) walked: RefCell<Walked>,
}

/// Vertex, path and value -> the rows that hold that key there.
pub(crate) type Walked = HashMap<(VertexIndex, PathIndex, Value), Rc<BTreeMap<RowKey, Row>>>;

impl<'c> UnitScope<'c> {
    pub(crate) fn new(cds: &'c Cds, touched: Vec<HashMap<RowKey, Touched>>, days: (i64, i64)) -> UnitScope<'c> {
        let mut is_followed = vec![false; touched.len()];
        for input in cds.graph.vertices.iter().flat_map(|vertex| &vertex.inputs) {
            if let Source::Follow { vertex, .. } = &input.source {
                is_followed[cds.graph.vertices[*vertex].table] = true;
            }
        }
        let before_by_folded = touched
            .iter()
            .zip(is_followed)
            .map(|(rows, is_followed)| {
                rows.iter()
                    .filter(|(_, touched)| is_followed && touched.before.is_some())
                    .map(|(key, _)| (fold_all(key, Collation::Binary), key.clone()))
                    .collect()
            })
            .collect();
        UnitScope {
            cds,
            touched,
            before_by_folded,
            days,
            overlay: Overlay::default(),
            deltas: Vec::new(),
            transitions: vec![HashMap::new(); cds.graph.junctions.len()],
            reached_max: usize::MAX,
            walked: RefCell::default(),
        }
    }

    /// Computes the deltas of every vertex.
    pub(crate) fn run(&mut self) -> Result<(), CdsError> {
        for index in 0..self.cds.graph.vertices.len() {
            let deltas = self.vertex(&self.cds.graph.vertices[index])?;
            self.feed(&self.cds.graph.vertices[index], &deltas)?;
            self.deltas.push(deltas);
        }
        Ok(())
    }

    fn vertex(&self, vertex: &Vertex) -> Result<HashMap<RowKey, Delta>, CdsError> {
        let mut deltas = HashMap::new();
        for (key, touched) in &self.touched[vertex.table] {
            if let (Some(old), Some(new)) = (&touched.before, &touched.after)
                && self.keeps_keys(vertex, old, new)?
            {
                if vertex.emits || vertex.feeds.iter().any(|junction| moves(&self.cds.graph.junctions[*junction], old, new)) {
                    let kept = self.keys(vertex, new, When::After)?;
                    deltas.insert(key.clone(), Delta { sets: Some((kept.clone(), kept)), ..Delta::default() });
                }
                continue;
            }
            let before = touched.before.as_ref().map_or(Ok(Vec::new()), |row| self.keys(vertex, row, When::Before))?;
            let after = touched.after.as_ref().map_or(Ok(Vec::new()), |row| self.keys(vertex, row, When::After))?;
            let delta = Delta {
                gained: after.iter().filter(|key| before.binary_search(key).is_err()).copied().collect(),
                lost: before.iter().filter(|key| after.binary_search(key).is_err()).copied().collect(),
                sets: Some((before, after)),
                row: None,
            };
            deltas.insert(key.clone(), delta);
        }
        for input in &vertex.inputs {
            self.reach(vertex, input, &mut deltas)?;
        }
        if vertex.inputs.len() > 1 {
            for delta in deltas.values_mut() {
                let Some(row) = &delta.row else { continue };
                let mut gained = Vec::new();
                for key in &delta.gained {
                    if !self.has(vertex, row, *key, When::Before)? {
                        gained.push(*key);
                    }
                }
                let mut lost = Vec::new();
                for key in &delta.lost {
                    if !self.has(vertex, row, *key, When::After)? {
                        lost.push(*key);
                    }
                }
                (delta.gained, delta.lost) = (gained, lost);
            }
        }
        for delta in deltas.values_mut().filter(|delta| delta.row.is_some()) {
            delta.gained.sort_unstable();
            delta.gained.dedup();
            delta.lost.sort_unstable();
            delta.lost.dedup();
            // Gained along one edge and lost along another: the row simply kept it.
            let both: Vec<KeyId> = delta.gained.iter().filter(|key| delta.lost.binary_search(key).is_ok()).copied().collect();
            delta.gained.retain(|key| both.binary_search(key).is_err());
            delta.lost.retain(|key| both.binary_search(key).is_err());
        }
        deltas.retain(|_, delta| delta.sets.is_some() || !delta.gained.is_empty() || !delta.lost.is_empty());
        Ok(deltas)
    }

    /// Whether a row that exists before and after surely has the same keys: no column that the vertex reads differs, no
    /// window passed, and nothing changed where its keys come from.
    fn keeps_keys(&self, vertex: &Vertex, old: &Row, new: &Row) -> Result<bool, CdsError> {
        let same = |column: &ColumnIndex| old.get(*column) == new.get(*column);
        if !vertex.filters.iter().all(|(column, _)| same(column)) {
            return Ok(false);
        }
        for input in &vertex.inputs {
            let Guard { predicate, windows } = &input.guard;
            if !predicate.iter().flat_map(|predicate| &predicate.columns).chain(windows.iter().map(|window| &window.column)).all(same)
                || !windows.iter().all(|window| window_holds(window, old, self.days.0) == window_holds(window, old, self.days.1))
            {
                return Ok(false);
            }
            let kept = match &input.source {
                Source::Base { column, .. } => column.iter().all(same),
                Source::Follow { vertex: source, columns, .. } => {
                    columns.iter().all(same) && !self.source_moved(*source, &pick(new, columns))?
                }
                Source::Junction { junction, columns, .. } => {
                    columns.iter().all(same)
                        && self.here_values(*junction, columns, new).is_none_or(|values| !self.transitions[*junction].contains_key(&values))
                }
            };
            if !kept {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the row that an edge follows may have gained or lost keys.
    fn source_moved(&self, source: VertexIndex, key: &[Value]) -> Result<bool, CdsError> {
        if self.deltas[source].is_empty() {
            return Ok(false);
        }
        let table = self.cds.graph.vertices[source].table;
        for when in [When::Before, When::After] {
            // By the row's own key: the one that refers to it may be written in another type that is equal.
            let Some(row) = self.row_at(table, key, when)? else { continue };
            let delta = self.deltas[source].get(&key_of(&self.cds.dock.tables[table], &row));
            if delta.is_some_and(|delta| !delta.gained.is_empty() || !delta.lost.is_empty()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Adds the rows that an input's changes reach, with what they gained and lost by it.
    fn reach(&self, vertex: &Vertex, input: &Input, deltas: &mut HashMap<RowKey, Delta>) -> Result<(), CdsError> {
        match &input.source {
            Source::Base { .. } => {}
            Source::Follow { vertex: source, columns, map } => {
                let search: Vec<(ColumnIndex, Collation)> = columns.iter().map(|column| (*column, Collation::Binary)).collect();
                for (key, delta) in &self.deltas[*source] {
                    self.reach_rows(vertex, input, &search, key, &delta.gained, &delta.lost, map, deltas)?;
                }
            }
            Source::Junction { junction, columns, map } => {
                let collations = &self.cds.graph.junctions[*junction].collations;
                let search: Vec<(ColumnIndex, Collation)> = columns.iter().copied().zip(collations.iter().copied()).collect();
                for (values, transition) in &self.transitions[*junction] {
                    self.reach_rows(vertex, input, &search, values, &transition.gained, &transition.lost, map, deltas)?;
                }
            }
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "one edge with its change; a struct would name each of them once and be used once")]
    fn reach_rows(
        &self,
        vertex: &Vertex,
        input: &Input,
        search: &[(ColumnIndex, Collation)],
        values: &[Value],
        gained: &[KeyId],
        lost: &[KeyId],
        map: &PathMap,
        deltas: &mut HashMap<RowKey, Delta>,
    ) -> Result<(), CdsError> {
        let mapped = |keys: &[KeyId]| -> Result<Vec<KeyId>, CdsError> {
            keys.iter().filter_map(|key| self.cds.map_key(*key, map).transpose()).collect()
        };
        let (gained, lost) = (mapped(gained)?, mapped(lost)?);
        if gained.is_empty() && lost.is_empty() {
            return Ok(());
        }
        let declared = &self.cds.dock.tables[vertex.table];
        for row in self.cds.rows_where(vertex.table, search, values)? {
            let key = key_of(declared, &row);
            if self.touched[vertex.table].contains_key(&key)
                || !fits(self.cds, vertex, &row)
                || !self.guard_holds(vertex, &input.guard, &row, When::After)?
            {
                continue;
            }
            let delta = deltas.entry(key).or_insert_with(|| Delta { row: Some(row), ..Delta::default() });
            delta.gained.extend(&gained);
            delta.lost.extend(&lost);
            if deltas.len() > self.reached_max {
                return Err(CdsError::TooMuch);
            }
        }
        Ok(())
    }

    /// Counts what the rows of a vertex changed at the junctions that it feeds.
    fn feed(&mut self, vertex: &Vertex, deltas: &HashMap<RowKey, Delta>) -> Result<(), CdsError> {
        for junction in &vertex.feeds {
            let declared = self.cds.graph.junctions[*junction].clone();
            let mut differences: HashMap<Vec<Value>, HashMap<KeyId, i64>> = HashMap::new();
            let mut count = |row: &Row, keys: &[KeyId], by: i64| {
                if let Some(values) = junction_values(&declared.columns, &declared.collations, row) {
                    let at = differences.entry(values).or_default();
                    for key in keys {
                        *at.entry(*key).or_default() += by;
                    }
                }
            };
            for (key, delta) in deltas {
                match (&delta.sets, &delta.row) {
                    (Some((before, after)), _) => {
                        let Some(touched) = self.touched[vertex.table].get(key) else { continue };
                        if let (Some(old), Some(new)) = (&touched.before, &touched.after)
                            && !moves(&declared, old, new)
                        {
                            count(new, &delta.gained, 1);
                            count(new, &delta.lost, -1);
                            continue;
                        }
                        if let Some(row) = &touched.before {
                            count(row, before, -1);
                        }
                        if let Some(row) = &touched.after {
                            count(row, after, 1);
                        }
                    }
                    (None, Some(row)) => {
                        count(row, &delta.gained, 1);
                        count(row, &delta.lost, -1);
                    }
                    (None, None) => {}
                }
            }
            for (values, differences) in differences {
                let transition = self.overlay.add(self.cds, *junction, values.clone(), differences)?;
                if !transition.gained.is_empty() || !transition.lost.is_empty() {
                    self.transitions[*junction].insert(values, transition);
                }
            }
        }
        Ok(())
    }

    /// Returns the keys of a row at a vertex, sorted.
    pub(crate) fn keys(&self, vertex: &Vertex, row: &Row, when: When) -> Result<Vec<KeyId>, CdsError> {
        let mut keys = Vec::new();
        if !fits(self.cds, vertex, row) {
            return Ok(keys);
        }
        for input in &vertex.inputs {
            if !self.guard_holds(vertex, &input.guard, row, when)? {
                continue;
            }
            match &input.source {
                Source::Base { column, path } => keys.extend(self.cds.base_key(vertex.table, row, *column, *path)?),
                Source::Follow { vertex: source, columns, map } => {
                    let source = &self.cds.graph.vertices[*source];
                    if let Some(parent) = self.row_at(source.table, &pick(row, columns), when)? {
                        for key in self.keys(source, &parent, when)? {
                            keys.extend(self.cds.map_key(key, map)?);
                        }
                    }
                }
                Source::Junction { junction, columns, map } => {
                    if let Some(values) = self.here_values(*junction, columns, row) {
                        for key in self.overlay.keys(self.cds, *junction, &values, when)? {
                            keys.extend(self.cds.map_key(key, map)?);
                        }
                    }
                }
            }
        }
        keys.sort_unstable();
        keys.dedup();
        Ok(keys)
    }

    /// Returns whether a row has a key at a vertex, by point lookups.
    pub(crate) fn has(&self, vertex: &Vertex, row: &Row, key: KeyId, when: When) -> Result<bool, CdsError> {
        match self.cds.key_parts(key)? {
            Some((path, value)) => self.has_value(vertex, row, path, &value, when),
            None => Ok(false),
        }
    }

    /// The same for a path and a folded value: on the way there may be keys that were never numbered, because nothing counts them.
    pub(crate) fn has_value(&self, vertex: &Vertex, row: &Row, path: PathIndex, value: &Value, when: When) -> Result<bool, CdsError> {
        if !vertex.paths.contains(&path) || !fits(self.cds, vertex, row) {
            return Ok(false);
        }
        for input in &vertex.inputs {
            let held = match &input.source {
                Source::Base { path: base, .. } if *base != path => false,
                Source::Base { column, path } => self.cds.base_value(vertex.table, row, *column, *path).as_ref() == Some(value),
                Source::Follow { vertex: source, columns, map } => match came_from(map, path) {
                    None => false,
                    Some(from) => {
                        let source = &self.cds.graph.vertices[*source];
                        match self.row_at(source.table, &pick(row, columns), when)? {
                            Some(parent) => self.has_value(source, &parent, from, value, when)?,
                            None => false,
                        }
                    }
                },
                Source::Junction { junction, columns, map } => match (came_from(map, path), self.here_values(*junction, columns, row)) {
                    (Some(from), Some(values)) => match self.cds.find_key(from, value)? {
                        Some(key) => self.overlay.has(self.cds, *junction, &values, key, when)?,
                        None => false,
                    },
                    _ => false,
                },
            };
            if held && self.guard_holds(vertex, &input.guard, row, when)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the row with that primary key before or after the unit.
    fn row_at(&self, table: TableIndex, key: &[Value], when: When) -> Result<Option<Row>, CdsError> {
        if key.iter().any(Value::is_null) {
            return Ok(None);
        }
        if when == When::Before {
            if let Some(exact) = self.before_by_folded[table].get(&fold_all(key, Collation::Binary)) {
                return Ok(self.touched[table].get(exact).and_then(|touched| touched.before.clone()));
            }
            let found = self.cds.row_equal(table, key)?;
            // A row that the unit inserted was not there before.
            return Ok(found.filter(|row| !self.touched[table].contains_key(&key_of(&self.cds.dock.tables[table], row))));
        }
        self.cds.row_equal(table, key)
    }

    fn here_values(&self, junction: JunctionIndex, columns: &[ColumnIndex], row: &Row) -> Option<Vec<Value>> {
        junction_values(columns, &self.cds.graph.junctions[junction].collations, row)
    }

    pub(crate) fn guard_holds(&self, vertex: &Vertex, guard: &Guard, row: &Row, when: When) -> Result<bool, CdsError> {
        let day = if when == When::Before { self.days.0 } else { self.days.1 };
        self.cds.guard_holds(vertex.table, guard, row, day)
    }

    /// Returns the vertex whose keys are the visibility of a table's rows, if changes of it are sent.
    pub(crate) fn emitting(&self, table: TableIndex) -> Option<VertexIndex> {
        self.cds.graph.visible[table].filter(|vertex| self.cds.graph.vertices[*vertex].emits)
    }
}

/// Returns whether a change of a row takes it to another place of a junction that it feeds.
fn moves(junction: &Junction, old: &Row, new: &Row) -> bool {
    junction.columns.iter().any(|column| old.get(*column) != new.get(*column))
}

/// Returns the folded values of a junction's columns; `None` if one of them is NULL.
pub(crate) fn junction_values(columns: &[ColumnIndex], collations: &[Collation], row: &[Value]) -> Option<Vec<Value>> {
    let values: Vec<Value> = columns
        .iter()
        .zip(collations)
        .map(|(column, collation)| row.get(*column).map_or(Value::Null, |value| value.fold(*collation)))
        .collect();
    (!values.iter().any(Value::is_null)).then_some(values)
}

/// Returns the path at the source that an edge takes to a path here; an edge never joins two into one.
pub(crate) fn came_from(map: &PathMap, path: PathIndex) -> Option<PathIndex> {
    map.iter().find(|(_, to)| *to == path).map(|(from, _)| *from)
}

impl Cds {
    fn base_key(&self, table: TableIndex, row: &[Value], column: Option<ColumnIndex>, path: PathIndex) -> Result<Option<KeyId>, CdsError> {
        self.base_value(table, row, column, path).map(|value| self.intern_key(path, &value)).transpose()
    }

    /// Returns the folded value that a row has by a column of its own, NULL for the one key of `everyone`.
    fn base_value(&self, table: TableIndex, row: &[Value], column: Option<ColumnIndex>, path: PathIndex) -> Option<Value> {
        let Some(column) = column else { return Some(Value::Null) };
        row.get(column).filter(|value| !value.is_null()).map(|value| value.fold(self.base_collation(table, column, path)))
    }

    /// The path of values inside a chain is shared by columns of any collation.
    pub(crate) fn base_collation(&self, table: TableIndex, column: ColumnIndex, path: PathIndex) -> Collation {
        if path == RAW { column_collation(&self.dock, table, column) } else { self.graph.paths[path].collation }
    }

    /// Returns the key under the path to which an edge takes it, if the edge lets it pass.
    pub(crate) fn map_key(&self, key: KeyId, map: &PathMap) -> Result<Option<KeyId>, CdsError> {
        let Some((path, value)) = self.key_parts(key)? else { return Ok(None) };
        match map.iter().find(|(from, _)| *from == path) {
            Some((_, to)) if *to == path => Ok(Some(key)),
            Some((_, to)) => self.intern_key(*to, &value.fold(self.graph.paths[*to].collation)).map(Some),
            None => Ok(None),
        }
    }

    pub(crate) fn intern_key(&self, path: usize, value: &Value) -> Result<KeyId, CdsError> {
        self.keys.borrow_mut().intern(&self.conn, path, value).map_err(self.sql("number a key"))
    }

    pub(crate) fn find_key(&self, path: usize, value: &Value) -> Result<Option<KeyId>, CdsError> {
        self.keys.borrow_mut().find(&self.conn, path, value).map_err(self.sql("find a key"))
    }

    pub(crate) fn key_parts(&self, key: KeyId) -> Result<Option<(usize, Value)>, CdsError> {
        self.keys.borrow_mut().get(&self.conn, key).map_err(self.sql("read a key"))
    }
}
