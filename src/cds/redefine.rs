//! Another definition put into force while nodes run (R40): one unit that takes every node from what it saw by the former definition
//! to what it sees by the new one, no more and no less.
//!
//! The data store is filled anew from the unit's snapshot of the server database, within the one transaction that commits the unit; the
//! former one is read beside it, through a connection that stays at the last commit. Both are walked in the order of the key, and a
//! row whose content, or whose keys as far as nodes hold them, differ becomes a net event like any other (R7). Unchanged rules keep the
//! names of their paths, so rows that only they show bring no event. A crash before the commit leaves the former data store.

use super::marks::Question;
use super::nodes::{NodeChanges, NodeIndex, NodeScope};
use super::rows::{TableSql, key_of, pick, read_row};
use super::scope::{UnitScope, When};
use super::unit::{NodeChange, NodeStep, UnitInput, step_of};
use super::{Cds, CdsError, emit, keys, layout};
use crate::base::ids::NodeName;
use crate::dx::error::DxError;
use crate::dx::record::UnitBegin;
use crate::dx::writer::TxnprocWriter;
use crate::model::dock::{Dock, TableIndex};
use crate::model::event::{NodeEvent, RowEvent, ScopeKey};
use crate::model::node::{Node, NodeState};
use crate::model::schema::Schema;
use crate::model::value::{Row, Value};
use crate::rules::graph::{ScopeGraph, VertexIndex};
use crate::store::local_build::BuildError;
use crate::store::local_schema::{Reshape, reshape};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// Why a definition could not be put into force.
#[derive(Debug, thiserror::Error)]
pub enum RedefineError {
    /// The data store.
    #[error(transparent)]
    Cds(#[from] CdsError),
    /// The unit could not be encoded.
    #[error(transparent)]
    Dx(#[from] DxError),
}

/// The definition to be put into force.
#[derive(Debug, Clone)]
pub struct Redefinition {
    /// What it means.
    pub dock: Dock,
    /// The schema that it was resolved against.
    pub schema: Schema,
    /// Tables of it that stand still: their rows are those of the former data store.
    pub standing: BTreeSet<TableIndex>,
}

/// What a redefinition gives nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Redefined {
    /// Nodes whose stream begins after the unit, with an extract.
    pub started: Vec<NodeName>,
    /// Row events of the unit.
    pub rows: u64,
    /// Tables that stand still without rows: the former data store does not tell what nodes are to hold of them.
    pub emptied: BTreeSet<TableIndex>,
}

/// Keys that some node holds before or after the unit, numbered as in the file, and which of them some node gains or loses.
#[derive(Debug, Default)]
struct HeldKeys {
    numbers: BTreeMap<ScopeKey, u32>,
    before: BTreeSet<u32>,
    after: BTreeSet<u32>,
    moved: BTreeSet<u32>,
}

/// One side of the comparison: a data store, with the numbers of its keys as far as they were asked for.
struct Side<'c> {
    scope: UnitScope<'c>,
    when: When,
    held: &'c BTreeSet<u32>,
    known: HashMap<keys::KeyId, Option<u32>>,
}

impl Side<'_> {
    /// Returns the held keys of a row, as numbers of the file, sorted.
    fn keys(&mut self, numbers: &BTreeMap<ScopeKey, u32>, vertex: VertexIndex, row: &Row) -> Result<Vec<u32>, CdsError> {
        let cds = self.scope.cds;
        let mut found = Vec::new();
        for key in self.scope.keys(&cds.graph.vertices[vertex], row, self.when)? {
            let number = match self.known.get(&key) {
                Some(number) => *number,
                None => {
                    let name = cds.scope_key(key)?;
                    let number = name.and_then(|name| numbers.get(&name).copied()).filter(|number| self.held.contains(number));
                    self.known.insert(key, number);
                    number
                }
            };
            found.extend(number);
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

impl Cds {
    /// Copies a data store as of its last commit into a file that is not there yet.
    ///
    /// # Errors
    /// It cannot be read, or there is no room.
    pub fn copy_to(path: &Path, copy: &Path) -> Result<(), CdsError> {
        let sql = |source| CdsError::Sql { path: path.to_owned(), what: "copy the data store", source };
        let conn = layout::connect_read_only(path).map_err(sql)?;
        conn.execute("VACUUM INTO ?1", [copy.to_string_lossy()]).map(drop).map_err(sql)
    }

    /// Opens the data store as of its last commit, for reading beside a writer; what is numbered through it stays in memory.
    fn open_beside(&self) -> Result<Cds, CdsError> {
        let conn = layout::pin_snapshot(&self.path).map_err(self.sql("pin the former data store"))?;
        conn.set_prepared_statement_cache_capacity(512);
        let mut beside = Cds::assemble_stored(&self.path, conn, self.state.clone())?;
        beside.keys.get_mut().stay_in_memory();
        beside.nodes = self.nodes.clone();
        Ok(beside)
    }

    /// Returns a key by name.
    pub(crate) fn scope_key(&self, key: keys::KeyId) -> Result<Option<ScopeKey>, CdsError> {
        Ok(self.key_parts(key)?.map(|(path, value)| ScopeKey { path: self.graph.paths[path].name.clone(), value }))
    }

    /// Returns the keys that a node holds, by name.
    ///
    /// # Errors
    /// The data store cannot be read.
    pub fn held_keys(&self, scope: &NodeScope) -> Result<BTreeSet<ScopeKey>, CdsError> {
        let mut found = BTreeSet::new();
        for key in &scope.keys {
            found.extend(self.scope_key(*key)?);
        }
        Ok(found)
    }

    /// Puts another definition into force. `fill` hands over every row of every table of it that does not stand still, as of the unit;
    /// the unit is written to `writer`, and nothing of it before `fill` has ended. The transaction stays open until `commit` or
    /// `rollback`.
    ///
    /// # Errors
    /// On any error the data store is as before.
    pub fn redefine<E: From<RedefineError>>(
        &mut self,
        to: Redefinition,
        input: &UnitInput,
        questions: &[Question],
        writer: &mut TxnprocWriter<'_>,
        fill: impl FnOnce(&mut dyn FnMut(TableIndex, &Row) -> Result<(), E>) -> Result<(), E>,
    ) -> Result<Redefined, E> {
        let cds_error = |error: CdsError| E::from(RedefineError::from(error));
        let former = self.open_beside().map_err(cds_error)?;
        self.conn.execute_batch("BEGIN IMMEDIATE").map_err(|error| cds_error(self.sql("begin a unit")(error)))?;
        self.redefined = true;
        let standing = to.standing.clone();
        let redefined = self
            .take_shape(to)
            .and_then(|()| self.shape_after(&former))
            .and_then(|shape| Ok((self.keep_rows(&former, &standing, &shape)?, shape)))
            .map_err(cds_error)
            .and_then(|kept| fill(&mut |table, row| self.insert_row(table, row).map_err(cds_error)).map(|()| kept))
            .and_then(|(emptied, shape)| {
                let redefined = self.emit_redefinition(&former, &shape, input, questions, writer)?;
                Ok(Redefined { emptied, ..redefined })
            });
        if redefined.is_err() {
            self.rollback().map_err(cds_error)?;
        }
        redefined
    }

    /// Empties the data store and gives it the tables of the new definition.
    fn take_shape(&mut self, to: Redefinition) -> Result<(), CdsError> {
        let graph = ScopeGraph::compile(&to.dock)?;
        let sql = self.sql("make the tables of the new definition");
        for table in 0..self.dock.tables.len() {
            self.conn.execute_batch(&format!("DROP TABLE {}", layout::data_table(table))).map_err(&sql)?;
        }
        for junction in 0..self.graph.junctions.len() {
            self.conn.execute_batch(&format!("DROP TABLE j{junction}")).map_err(&sql)?;
        }
        self.conn.execute_batch("DELETE FROM scope_key; DELETE FROM scope_path; DELETE FROM node; DELETE FROM stopped").map_err(&sql)?;
        layout::create_data(&self.conn, &to.dock, &graph).map_err(&sql)?;
        for (name, text) in [("dock", serde_json::to_string(&to.dock)), ("schema", serde_json::to_string(&to.schema))] {
            let text = text.map_err(|_| CdsError::State { path: self.path.clone(), name: name.to_owned() })?;
            layout::write_record(&self.conn, name, &text).map_err(&sql)?;
        }
        drop(sql);
        self.statements = TableSql::of(&to.dock);
        (self.dock, self.schema, self.graph) = (to.dock, to.schema, graph);
        let cache = keys::KeyCache::open(&self.conn, &self.graph).map_err(self.sql("number rule paths"))?;
        self.keys.replace(cache);
        self.evaluators.borrow_mut().clear();
        self.nodes = NodeIndex::default();
        Ok(())
    }

    /// Returns what changes in the tables of nodes.
    fn shape_after(&self, former: &Cds) -> Result<Reshape, CdsError> {
        let build = |error: BuildError| CdsError::NodeSchema(Box::new(error));
        reshape(&former.node_schema()?, &self.node_schema()?).map_err(build)
    }

    fn emit_redefinition(
        &mut self,
        former: &Cds,
        shape: &Reshape,
        input: &UnitInput,
        questions: &[Question],
        writer: &mut TxnprocWriter<'_>,
    ) -> Result<Redefined, RedefineError> {
        let mut state = former.state.clone();
        state.position = input.unit;
        state.day = input.day.map_or(state.day, |day| day.max(state.day));
        state.revision = input.revision.unwrap_or(state.revision);
        // Windows count from the new day while the counts are derived.
        self.state.day = state.day;
        layout::create_indexes(&self.conn, &self.dock, &self.graph).map_err(self.sql("create indexes"))?;
        self.count_all()?;
        let (steps, changes) = self.nodes_after(former, input)?;

        let mut redefined = Redefined::default();
        let (events, held) = self.node_events(former, &steps, &changes, &mut redefined)?;
        let begin = UnitBegin { unit: input.unit, read_at_micros: input.read_at_micros, revision: state.revision, day: state.day };
        writer.begin_unit(&begin)?;
        shape.objects.iter().try_for_each(|object| writer.schema(object))?;
        if steps.values().any(|step| *step == NodeStep::Restart) {
            self.node_schema()?.iter().try_for_each(|object| writer.whole_schema(object))?;
        }
        for key in held.numbers.keys() {
            writer.key(key)?;
        }
        events.iter().try_for_each(|event| writer.node(event))?;
        // From here on the unit's end is known: marks are answered as of it.
        self.pending = Some((state, changes));
        self.marks(questions)?.iter().try_for_each(|mark| writer.mark(mark))?;
        input.confirms.iter().try_for_each(|confirm| writer.confirm(confirm))?;
        for table in 0..self.dock.tables.len() {
            redefined.rows += self.compare_definitions(former, table, shape, &held, writer)?;
        }
        writer.end_unit()?;
        self.state = former.state.clone();
        Ok(redefined)
    }

    /// Derives every node that runs after the unit, and how its part in the stream changes.
    fn nodes_after(&self, former: &Cds, input: &UnitInput) -> Result<(BTreeMap<NodeName, NodeStep>, NodeChanges), CdsError> {
        let mut nodes: BTreeMap<NodeName, Option<&Node>> =
            former.nodes.iter().map(|(name, scope)| (name.clone(), Some(&scope.node))).collect();
        for change in &input.nodes {
            match change {
                NodeChange::Set(node) if node.state == NodeState::Active => nodes.insert(node.name.clone(), Some(node)),
                NodeChange::Set(Node { name, .. }) | NodeChange::Deleted(name) => nodes.insert(name.clone(), None),
            };
        }
        let mut steps = BTreeMap::new();
        let mut changes = NodeChanges::default();
        for (name, node) in nodes {
            let known = former.nodes.get(&name);
            match node {
                Some(node) => {
                    self.store_node(node)?;
                    changes.set.insert(self.derive_node(node)?);
                    steps.insert(name, step_of(known, node));
                }
                None if known.is_some() => {
                    changes.gone.insert(name.clone());
                    steps.insert(name, NodeStep::Stop);
                }
                None => {}
            }
        }
        Ok((steps, changes))
    }

    /// Returns the node events of the unit, and the keys that nodes hold before and after it.
    fn node_events(
        &self,
        former: &Cds,
        steps: &BTreeMap<NodeName, NodeStep>,
        changes: &NodeChanges,
        redefined: &mut Redefined,
    ) -> Result<(Vec<NodeEvent>, HeldKeys), CdsError> {
        let mut sets: Vec<(&NodeName, &NodeStep, BTreeSet<ScopeKey>, BTreeSet<ScopeKey>)> = Vec::new();
        for (name, step) in steps {
            let before = former.nodes.get(name).map_or(Ok(BTreeSet::new()), |scope| former.held_keys(scope))?;
            let after = changes.set.get(name).map_or(Ok(BTreeSet::new()), |scope| self.held_keys(scope))?;
            sets.push((name, step, before, after));
        }
        let mut held = HeldKeys::default();
        let all: BTreeSet<&ScopeKey> = sets.iter().flat_map(|(_, _, before, after)| before.iter().chain(after)).collect();
        held.numbers = all.into_iter().cloned().zip(0..).collect();
        let number =
            |keys: &mut dyn Iterator<Item = &ScopeKey>| -> Vec<u32> { keys.filter_map(|key| held.numbers.get(key).copied()).collect() };
        let mut events = Vec::new();
        for (name, step, before, after) in &sets {
            let node = (*name).clone();
            let (was, is) = (number(&mut before.iter()), number(&mut after.iter()));
            let incarnation = changes.set.get(name).map(|scope| scope.node.incarnation).unwrap_or_default();
            match step {
                NodeStep::Start => {
                    redefined.started.push(node.clone());
                    events.push(NodeEvent::Start { node, incarnation, keys: is.clone() });
                }
                NodeStep::Restart => {
                    held.moved.extend(&is);
                    events.push(NodeEvent::Restart { node, incarnation, keys: is.clone() });
                }
                NodeStep::Stop => events.push(NodeEvent::Stop { node }),
                NodeStep::Keys => {
                    let gained = number(&mut after.difference(before));
                    let lost = number(&mut before.difference(after));
                    if !gained.is_empty() || !lost.is_empty() {
                        held.moved.extend(gained.iter().chain(&lost));
                        events.push(NodeEvent::Keys { node, gained, lost });
                    }
                }
            }
            held.before.extend(&was);
            held.after.extend(&is);
        }
        Ok((events, held))
    }

    /// Writes the events of one table of the new definition. Returns how many.
    fn compare_definitions(
        &self,
        former: &Cds,
        table: TableIndex,
        shape: &Reshape,
        held: &HeldKeys,
        writer: &mut TxnprocWriter<'_>,
    ) -> Result<u64, RedefineError> {
        let declared = &self.dock.tables[table];
        let Some(vertex) = emitting(self, table) else { return Ok(0) };
        // Where a node's table begins empty, none of its rows were there before.
        let old_table = former.dock.table(&declared.name).filter(|_| !shape.begins_empty(&declared.name));
        let old_vertex = old_table.and_then(|table| emitting(former, table));
        let sent = emit::sent_columns(declared);
        let images = Images::new(former, old_table, self, table, shape, &sent);

        let empty = |cds: &Cds| vec![HashMap::new(); cds.dock.tables.len()];
        let day = self.state.day;
        let mut old_side = Side {
            scope: UnitScope::new(former, empty(former), (former.state.day, former.state.day)),
            when: When::Before,
            held: &held.before,
            known: HashMap::new(),
        };
        let mut new_side =
            Side { scope: UnitScope::new(self, empty(self), (day, day)), when: When::After, held: &held.after, known: HashMap::new() };
        let mut heading = None;
        let mut count = 0;
        merge(former, old_table, self, table, |old, new| {
            let was = match (old, old_vertex) {
                (Some(row), Some(vertex)) => old_side.keys(&held.numbers, vertex, row)?,
                _ => Vec::new(),
            };
            let is = new.map_or(Ok(Vec::new()), |row| new_side.keys(&held.numbers, vertex, row))?;
            let changed = match (old, new) {
                (Some(old), Some(new)) if !was.is_empty() => images.changed(old, new),
                _ => Vec::new(),
            };
            let touches = |keys: &[u32]| keys.iter().any(|key| held.moved.contains(key));
            let tells = !changed.is_empty() || was != is || touches(&was) || touches(&is);
            let Some(row) = new.or(old).filter(|_| tells && !(was.is_empty() && is.is_empty())) else { return Ok(()) };
            let key = if new.is_some() { key_of(declared, row) } else { images.key_of_old(row) };
            let number = match heading {
                Some(number) => number,
                None => *heading.insert(writer.heading(&emit::heading(declared))?),
            };
            let (keys_before, keys_after) = (was, is);
            writer.row(&RowEvent { table: number, key, row: new.map(|row| pick(row, &sent)), changed, keys_before, keys_after })?;
            count += 1;
            Ok(())
        })?;
        Ok(count)
    }
}

fn emitting(cds: &Cds, table: TableIndex) -> Option<VertexIndex> {
    cds.graph.visible[table].filter(|vertex| cds.graph.vertices[*vertex].emits)
}

/// How a row of the former definition stands beside one of the new.
struct Images {
    /// Per sent column its place in the new row, and where its former value is; `None`: in no former row.
    columns: Vec<(usize, Option<Former>)>,
    /// The key's places in a former row.
    old_key: Vec<usize>,
}

enum Former {
    Column(usize),
    Value(Value),
}

impl Images {
    fn new(former: &Cds, old: Option<TableIndex>, cds: &Cds, table: TableIndex, shape: &Reshape, sent: &[usize]) -> Images {
        let declared = &cds.dock.tables[table];
        let Some(old) = old.map(|old| &former.dock.tables[old]) else { return Images { columns: Vec::new(), old_key: Vec::new() } };
        let appended = shape.appended.iter().find(|(name, _)| name.eq_ignore_ascii_case(&declared.name)).map(|(_, columns)| columns);
        let columns = sent.iter().map(|column| {
            let name = &declared.columns[*column].name;
            let default = appended.into_iter().flatten().find(|(appended, _)| appended.eq_ignore_ascii_case(name));
            let held = old.column(name).filter(|column| old.columns[*column].sent);
            let source = match (default, held) {
                (Some((_, value)), _) => Some(Former::Value(value.clone())),
                (None, held) => held.map(Former::Column),
            };
            (*column, source)
        });
        Images { columns: columns.collect(), old_key: old.key.clone() }
    }

    /// Returns which of the sent columns nodes have otherwise.
    fn changed(&self, old: &Row, new: &Row) -> Vec<u16> {
        let differs = |(column, former): &(usize, Option<Former>)| match former {
            Some(Former::Column(was)) => old.get(*was) != new.get(*column),
            Some(Former::Value(value)) => Some(value) != new.get(*column),
            None => true,
        };
        let changed = self.columns.iter().enumerate().filter(|(_, column)| differs(column));
        changed.filter_map(|(place, _)| u16::try_from(place).ok()).collect()
    }

    fn key_of_old(&self, row: &Row) -> Vec<Value> {
        pick(row, &self.old_key)
    }
}

/// Walks the rows of a table in both data stores in the order of the key: rows with the same key, by type and bytes, together.
fn merge(
    former: &Cds,
    old: Option<TableIndex>,
    cds: &Cds,
    table: TableIndex,
    mut each: impl FnMut(Option<&Row>, Option<&Row>) -> Result<(), RedefineError>,
) -> Result<(), RedefineError> {
    let mut old_rows = old.map(|old| former.in_key_order(old)).transpose()?;
    let mut old_rows = old_rows.as_mut().map(|statement| statement.query([])).transpose().map_err(former.sql("read the former rows"))?;
    let mut next_old = || -> Result<Option<Row>, CdsError> {
        let (Some(rows), Some(old)) = (&mut old_rows, old) else { return Ok(None) };
        let row = rows.next().map_err(former.sql("read the former rows"))?;
        row.map(|row| read_row(row, former.dock.tables[old].columns.len())).transpose().map_err(former.sql("read the former rows"))
    };
    let mut new_rows = cds.in_key_order(table)?;
    let mut new_rows = new_rows.query([]).map_err(cds.sql("read the new rows"))?;
    let mut next_new = || -> Result<Option<Row>, CdsError> {
        let row = new_rows.next().map_err(cds.sql("read the new rows"))?;
        row.map(|row| read_row(row, cds.dock.tables[table].columns.len())).transpose().map_err(cds.sql("read the new rows"))
    };
    let old_key = old.map(|old| former.dock.tables[old].key.as_slice()).unwrap_or_default();
    let new_key = cds.dock.tables[table].key.as_slice();
    let order = |old: &Row, new: &Row| {
        let pairs = old_key.iter().zip(new_key).map(|(a, b)| old[*a].sql_order(&new[*b]));
        pairs.into_iter().find(|order| order.is_ne()).unwrap_or(std::cmp::Ordering::Equal)
    };
    let (mut old, mut new) = (next_old()?, next_new()?);
    loop {
        match (&old, &new) {
            (None, None) => return Ok(()),
            (Some(_), None) => {
                each(old.as_ref(), None)?;
                old = next_old()?;
            }
            (None, Some(_)) => {
                each(None, new.as_ref())?;
                new = next_new()?;
            }
            (Some(a), Some(b)) => match order(a, b) {
                std::cmp::Ordering::Less => {
                    each(old.as_ref(), None)?;
                    old = next_old()?;
                }
                std::cmp::Ordering::Greater => {
                    each(None, new.as_ref())?;
                    new = next_new()?;
                }
                std::cmp::Ordering::Equal => {
                    if pick(a, old_key) == pick(b, new_key) {
                        each(old.as_ref(), new.as_ref())?;
                    } else {
                        // Equal to SQLite, but another row to everybody else.
                        each(old.as_ref(), None)?;
                        each(None, new.as_ref())?;
                    }
                    (old, new) = (next_old()?, next_new()?);
                }
            },
        }
    }
}
