//! A unit that is larger than memory, taken into the data store in chunks.
//!
//! Each chunk is one step of the data store from a consistent state to the next: its rows, its counts, and what it did to keys. Such
//! steps compose, whatever rows they are cut between (`scope.md` 8), so what every chunk did to a row is summed up on disk, and when the
//! last one is in, one net event per row comes out, by the same rules as for a unit that fits into memory. The events leave through the
//! writer of the file one by one. Until the commit nobody sees anything: all chunks are in one transaction.
//!
//! What stays in memory: one chunk with what it reached, the keys that nodes hold, and the names of nodes to derive again.

use super::emit::Emitter;
use super::marks::Question;
use super::rows::key_of;
use super::scope::{Delta, Touched, UnitScope, When};
use super::spool::{EventSpool, Spooled};
use super::unit::{RowChange, UnitInput};
use super::{Cds, CdsError};
use crate::base::ids::NodeName;
use crate::dx::writer::TxnprocWriter;
use crate::model::dock::TableIndex;
use crate::model::event::{NodeEvent, RowEvent};
use crate::model::value::RowKey;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// A large unit between its beginning and its end.
#[derive(Debug)]
pub(crate) struct LargeUnit {
    spool: EventSpool,
    /// Nodes whose derivation used a row that was changed.
    derived_anew: BTreeSet<NodeName>,
}

/// What a large unit came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LargeSummary {
    /// Its node events.
    pub nodes: Vec<NodeEvent>,
    /// How many row events it has.
    pub rows: u64,
}

impl Cds {
    /// Begins a unit whose changes come in chunks; `scratch` is where its scratch file may be. The transaction stays open until
    /// `commit` or `rollback`.
    ///
    /// # Errors
    /// The scratch file cannot be made, or a statement failed.
    pub fn begin_large(&mut self, scratch: &Path) -> Result<(), CdsError> {
        let spool = EventSpool::create(scratch)?;
        self.conn.execute_batch("BEGIN IMMEDIATE").map_err(self.sql("begin a unit"))?;
        self.large = Some(LargeUnit { spool, derived_anew: BTreeSet::new() });
        Ok(())
    }

    /// Takes a chunk of the unit's changes in. A unit names a row once at most, whatever the chunk.
    ///
    /// # Errors
    /// The unit can then only be rolled back.
    pub fn take(&mut self, changes: &[RowChange]) -> Result<(), CdsError> {
        if changes.is_empty() {
            return Ok(());
        }
        // One change alone may reach what it wants: it cannot be cut.
        let limit = if changes.len() > 1 { self.reached_max } else { usize::MAX };
        self.conn.execute_batch("SAVEPOINT chunk").map_err(self.sql("begin a chunk"))?;
        match self.take_at_once(changes, limit) {
            Ok(()) => self.conn.execute_batch("RELEASE chunk").map_err(self.sql("end a chunk")),
            Err(CdsError::TooMuch) => {
                self.conn.execute_batch("ROLLBACK TO chunk; RELEASE chunk").map_err(self.sql("take a chunk back"))?;
                let forgotten = self.keys.borrow_mut().forget(&self.conn);
                forgotten.map_err(self.sql("read keys again"))?;
                let (one, other) = changes.split_at(changes.len() / 2);
                self.take(one)?;
                self.take(other)
            }
            Err(error) => Err(error),
        }
    }

    fn take_at_once(&mut self, changes: &[RowChange], limit: usize) -> Result<(), CdsError> {
        let day = self.state.day;
        let touched = self.apply_changes(changes)?;
        self.take_touched(touched, (day, day), limit)
    }

    fn take_touched(&mut self, touched: Vec<HashMap<RowKey, Touched>>, days: (i64, i64), limit: usize) -> Result<(), CdsError> {
        let derived_anew = self.users_of(&touched);
        let mut scope = UnitScope::new(self, touched, days);
        scope.reached_max = limit;
        scope.run()?;
        let large = self.open_large()?;
        for table in 0..self.dock.tables.len() {
            let Some(vertex) = scope.emitting(table) else { continue };
            let mut deltas: Vec<(&RowKey, &Delta)> = scope.deltas[vertex].iter().collect();
            deltas.sort_unstable_by_key(|(key, _)| *key);
            for (key, delta) in deltas {
                large.spool.add(table, key, scope.touched[table].get(key), delta)?;
            }
        }
        scope.overlay.write(self)?;
        if let Some(large) = &mut self.large {
            large.derived_anew.extend(derived_anew);
        }
        Ok(())
    }

    /// Ends the unit: writes its events, and the answers to `questions`, to `writer`, as one whole unit. `input` has everything but the
    /// changes.
    ///
    /// # Errors
    /// The unit can then only be rolled back.
    pub fn finish_large(
        &mut self,
        input: &UnitInput,
        questions: &[Question],
        writer: &mut TxnprocWriter<'_>,
    ) -> Result<LargeSummary, CdsError> {
        let until = input.day.map_or(self.state.day, |day| day.max(self.state.day));
        // Day by day: what one day does fits into memory.
        for day in self.state.day..until {
            let mut touched = vec![HashMap::new(); self.dock.tables.len()];
            self.touch_windows(day, day + 1, &mut touched)?;
            self.take_touched(touched, (day, day + 1), usize::MAX)?;
        }
        let derived_anew = self.open_large()?.derived_anew.clone();
        let (steps, nodes) = self.change_nodes(input, derived_anew)?;
        self.settle_unit(input, until, nodes)?;
        let marks = self.marks(questions)?;
        let Some((_, nodes)) = &self.pending else { return Err(CdsError::Inconsistent { what: "the unit is not open".to_owned() }) };
        let scope = UnitScope::new(self, vec![HashMap::new(); self.dock.tables.len()], (until, until));
        let mut emitter = Emitter::new(&scope, input, nodes);
        emitter.out.marks = marks;
        let walked = emitter.nodes(&steps)?;
        emitter.whole_schema(&steps)?;
        writer.unit_head(&emitter.out)?;
        let spool = &self.open_large()?.spool;
        for key in walked {
            let Some((path, value)) = self.key_parts(key)? else { continue };
            for (table, declared) in self.dock.tables.iter().enumerate() {
                let Some(vertex) = scope.emitting(table) else { continue };
                scope.walk(spool, vertex, path, &value, &mut |row| spool.add_walked(table, &key_of(declared, row)))?;
                spool.end_searches()?;
            }
        }
        let mut summary = LargeSummary { nodes: emitter.out.nodes.clone(), rows: 0 };
        let mut written = (emitter.out.tables.len(), emitter.out.keys.len());
        for table in 0..self.dock.tables.len() {
            let Some(vertex) = scope.emitting(table) else { continue };
            spool.rows(table, |row| {
                let Some(event) = emitter.spooled_event(table, vertex, row)? else { return Ok(()) };
                for heading in emitter.out.tables.iter().skip(written.0) {
                    writer.heading(heading)?;
                }
                for key in emitter.out.keys.iter().skip(written.1) {
                    writer.key(key)?;
                }
                written = (emitter.out.tables.len(), emitter.out.keys.len());
                summary.rows += 1;
                Ok(writer.row(&event)?)
            })?;
        }
        writer.end_unit()?;
        self.large = None;
        Ok(summary)
    }

    fn open_large(&self) -> Result<&LargeUnit, CdsError> {
        self.large.as_ref().ok_or_else(|| CdsError::Inconsistent { what: "a chunk without an open unit".to_owned() })
    }
}

impl Emitter<'_> {
    /// Returns the event of a row that the unit touched, reached or walked to, read from the state at the unit's end.
    fn spooled_event(&mut self, table: TableIndex, vertex: usize, row: Spooled) -> Result<Option<RowEvent>, CdsError> {
        let scope = self.scope;
        let cds = scope.cds;
        let declared = &cds.dock.tables[table];
        let Spooled { key, touched, before, gained, lost } = row;
        let after = cds.row_exact(table, &key)?;
        let event = if touched {
            let now = match &after {
                Some(row) => scope.keys(&cds.graph.vertices[vertex], row, When::After)?,
                None => Vec::new(),
            };
            let mut was: Vec<_> = now.iter().filter(|key| gained.binary_search(key).is_err()).chain(&lost).copied().collect();
            was.sort_unstable();
            let delta = Delta { gained, lost, sets: Some((was, now)), row: None };
            self.touched_event(declared, &key, &Touched { before, after }, &delta)?
        } else if gained.is_empty() && lost.is_empty() {
            match &after {
                Some(row) => Some(self.walked_event(declared, vertex, &key, row)?),
                None => None,
            }
        } else {
            self.reached_event(declared, vertex, &key, &Delta { gained, lost, sets: None, row: after })?
        };
        let Some(event) = event else { return Ok(None) };
        Ok(Some(RowEvent { table: self.table_number(declared), ..event }))
    }
}
