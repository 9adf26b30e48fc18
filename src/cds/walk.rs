//! Which rows hold a key: the rule graph walked from the key's own column, as an extract does.
//!
//! The count tables have no index by key; a node that gains or loses a key costs the rows of that key, nothing else.

use super::guard::fits;
use super::rows::key_of;
use super::scope::{UnitScope, When, came_from, junction_values};
use super::spool::EventSpool;
use super::{CdsError, keys::KeyId};
use crate::model::value::{Collation, Row, RowKey, Value};
use crate::rules::graph::{Guard, PathIndex, Source, Vertex, VertexIndex};
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

impl UnitScope<'_> {
    /// Returns the rows that hold a key at a vertex after the unit.
    pub(crate) fn rows_with_key(&self, vertex: VertexIndex, key: KeyId) -> Result<Rc<BTreeMap<RowKey, Row>>, CdsError> {
        match self.cds.key_parts(key)? {
            Some((path, value)) => self.rows_with_value(vertex, path, &value),
            None => Ok(Rc::default()),
        }
    }

    /// The same for a path and a folded value: the keys on the way need not be numbered.
    fn rows_with_value(&self, index: VertexIndex, path: PathIndex, value: &Value) -> Result<Rc<BTreeMap<RowKey, Row>>, CdsError> {
        let vertex = &self.cds.graph.vertices[index];
        if !vertex.paths.contains(&path) {
            return Ok(Rc::default());
        }
        // Every member table and every referenced table asks for the same rows of its source.
        let asked = (index, path, value.clone());
        if let Some(known) = self.walked.borrow().get(&asked) {
            return Ok(known.clone());
        }
        let mut found = BTreeMap::new();
        for input in &vertex.inputs {
            match &input.source {
                Source::Base { path: base, .. } if *base != path => {}
                Source::Base { column: None, .. } => {
                    self.cds.scan(vertex.table, |row| self.add(vertex, &input.guard, row, &mut found))?;
                }
                Source::Base { column: Some(column), path } => {
                    let collation = self.cds.base_collation(vertex.table, *column, *path);
                    for row in self.cds.rows_where(vertex.table, &[(*column, collation)], std::slice::from_ref(value))? {
                        self.add(vertex, &input.guard, row, &mut found)?;
                    }
                }
                Source::Follow { vertex: source, columns, map } => {
                    let Some(from) = came_from(map, path) else { continue };
                    let search: Vec<(usize, Collation)> = columns.iter().map(|column| (*column, Collation::Binary)).collect();
                    for parent in self.rows_with_value(*source, from, value)?.keys() {
                        for row in self.cds.rows_where(vertex.table, &search, parent)? {
                            self.add(vertex, &input.guard, row, &mut found)?;
                        }
                    }
                }
                Source::Junction { junction, columns, map } => {
                    let Some(from) = came_from(map, path) else { continue };
                    let declared = &self.cds.graph.junctions[*junction];
                    let search: Vec<(usize, Collation)> = columns.iter().copied().zip(declared.collations.iter().copied()).collect();
                    let values: HashSet<Vec<Value>> = self
                        .rows_with_value(declared.source, from, value)?
                        .values()
                        .filter_map(|row| junction_values(&declared.columns, &declared.collations, row))
                        .collect();
                    for values in values {
                        for row in self.cds.rows_where(vertex.table, &search, &values)? {
                            self.add(vertex, &input.guard, row, &mut found)?;
                        }
                    }
                }
            }
        }
        let found = Rc::new(found);
        self.walked.borrow_mut().insert(asked, found.clone());
        Ok(found)
    }

    /// Calls `each` with the same rows, perhaps with one several times, and holds none of them: for a key of more rows than memory.
    pub(crate) fn walk(
        &self,
        spool: &EventSpool,
        index: VertexIndex,
        path: PathIndex,
        value: &Value,
        each: &mut dyn FnMut(&Row) -> Result<(), CdsError>,
    ) -> Result<(), CdsError> {
        let vertex = &self.cds.graph.vertices[index];
        if !vertex.paths.contains(&path) {
            return Ok(());
        }
        for input in &vertex.inputs {
            let mut fitting = |row: Row| {
                if fits(self.cds, vertex, &row) && self.guard_holds(vertex, &input.guard, &row, When::After)? {
                    each(&row)?;
                }
                Ok(true)
            };
            match &input.source {
                Source::Base { path: base, .. } if *base != path => {}
                Source::Base { column: None, .. } => self.cds.scan(vertex.table, |row| fitting(row).map(drop))?,
                Source::Base { column: Some(column), path } => {
                    let collation = self.cds.base_collation(vertex.table, *column, *path);
                    self.cds.each_where(vertex.table, &[(*column, collation)], std::slice::from_ref(value), &mut fitting)?;
                }
                Source::Follow { vertex: source, columns, map } => {
                    let Some(from) = came_from(map, path) else { continue };
                    let search: Vec<(usize, Collation)> = columns.iter().map(|column| (*column, Collation::Binary)).collect();
                    let declared = &self.cds.dock.tables[self.cds.graph.vertices[*source].table];
                    let mut parent = |row: &Row| self.cds.each_where(vertex.table, &search, &key_of(declared, row), &mut fitting);
                    self.walk(spool, *source, from, value, &mut parent)?;
                }
                Source::Junction { junction, columns, map } => {
                    let Some(from) = came_from(map, path) else { continue };
                    let declared = &self.cds.graph.junctions[*junction];
                    let search: Vec<(usize, Collation)> = columns.iter().copied().zip(declared.collations.iter().copied()).collect();
                    let number = spool.begin_search();
                    let mut source = |row: &Row| match junction_values(&declared.columns, &declared.collations, row) {
                        Some(values) if spool.is_first(number, &values)? => {
                            self.cds.each_where(vertex.table, &search, &values, &mut fitting)
                        }
                        _ => Ok(()),
                    };
                    self.walk(spool, declared.source, from, value, &mut source)?;
                }
            }
        }
        Ok(())
    }

    fn add(&self, vertex: &Vertex, guard: &Guard, row: Row, found: &mut BTreeMap<RowKey, Row>) -> Result<(), CdsError> {
        if fits(self.cds, vertex, &row) && self.guard_holds(vertex, guard, &row, When::After)? {
            found.insert(key_of(&self.cds.dock.tables[vertex.table], &row), row);
            if found.len() > self.reached_max {
                return Err(CdsError::TooMuch);
            }
        }
        Ok(())
    }
}
