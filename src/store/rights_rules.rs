//! Whether a node sees a row of the server database, by the rules as they are written, in the transaction that asks (R19).
//!
//! The data store answers the same question for routing, from its scope index; but it lags behind the server database, and a unit
//! is judged by what is in the table now. So the rules are walked here row by row, with small selects of one table. Values are
//! compared after folding, as the data store does (R35): SQLite only finds candidates, perhaps too many, never too few.

use crate::model::dock::{
    AttributeSource, ColumnIndex, Dock, DockTable, Hop, NodeHop, Reference, RuleKind, RulePath, TableIndex, VisibilityRule,
};
use crate::model::node::Node;
use crate::model::value::{Collation, Row, RowKey, Value};
use crate::rules::graph::{column_collation, join_collations, reference_collations};
use crate::rules::window::window_holds;
use crate::store::predicate::{EvaluateError, Evaluator};
use crate::store::sqlite::{ServerDatabase, SqlValue, StoreError, quote_name, value_of};
use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

/// So many answers are remembered within one unit; then they are found anew.
const REMEMBERED_MAX: usize = 100_000;

/// Through what a node sees a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sight {
    /// It does not see it.
    None,
    /// Only since something that it sees refers to it: such a row is read-only unless the object says `writable` (R18).
    ReferencedOnly,
    /// By a rule of its own, or with its parent.
    Own,
}

/// The rules could not be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum RightsError {
    /// The server database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A row predicate.
    #[error("table {table}: {source}")]
    Predicate {
        /// The table.
        table: String,
        /// Why.
        source: EvaluateError,
    },
    /// Rules lead on in a circle, which `check` would have refused.
    #[error("table {table}: its rules lead back to itself; `dockmaster check` says where")]
    Circle {
        /// The table.
        table: String,
    },
}

impl RightsError {
    /// Returns whether trying again later may succeed: another program held a lock.
    pub fn is_busy(&self) -> bool {
        matches!(self, RightsError::Store(error) if error.is_busy())
    }
}

/// Rows as they were at an earlier place of the log: per table the keys that changed since, with what stood there.
pub(super) type Past = Vec<HashMap<RowKey, Option<Row>>>;

/// Values of every attribute of the definition for one node.
type AttributeValues = Rc<Vec<Vec<Value>>>;

/// The rules of a definition for one node, on the server database as the connection sees it.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    pub(super) database: &'a ServerDatabase,
    pub(super) dock: &'a Dock,
    pub(super) node: &'a Node,
    /// Day of the time windows; `None` = every window holds.
    pub(super) day: Option<i64>,
    past: Option<Rc<Past>>,
    values: RefCell<Option<AttributeValues>>,
    evaluators: RefCell<HashMap<usize, Evaluator>>,
    known: RefCell<HashMap<(TableIndex, RowKey), Sight>>,
}

impl<'a> Rules<'a> {
    pub(super) fn new(database: &'a ServerDatabase, dock: &'a Dock, node: &'a Node, day: Option<i64>) -> Rules<'a> {
        Rules {
            database,
            dock,
            node,
            day,
            past: None,
            values: RefCell::default(),
            evaluators: RefCell::default(),
            known: RefCell::default(),
        }
    }

    /// The same on rows of an earlier time.
    pub(super) fn in_the_past(self, past: Rc<Past>) -> Rules<'a> {
        Rules { past: Some(past), ..self }
    }

    /// Forgets what rows and node values were: something was written.
    pub(super) fn forget(&self) {
        self.values.take();
        self.known.borrow_mut().clear();
    }

    /// Returns through what the node sees a row: values of the captured columns. What is written must be forgotten first.
    pub(super) fn sight(&self, table: TableIndex, row: &[Value]) -> Result<Sight, RightsError> {
        self.sight_at(table, row, 0)
    }

    fn sight_at(&self, table: TableIndex, row: &[Value], depth: usize) -> Result<Sight, RightsError> {
        let declared = &self.dock.tables[table];
        let Some(object) = declared.object else { return Ok(Sight::None) };
        if depth > self.dock.tables.len() {
            return Err(RightsError::Circle { table: declared.name.clone() });
        }
        let Some(reference) = &declared.member_of else { return self.by_rules(table, object, row, depth) };
        let mut best = Sight::None;
        self.each_parent(reference, row, &mut |parent| {
            best = best.max(self.remembered(reference.to_table, parent, depth + 1)?);
            Ok(best != Sight::Own)
        })?;
        Ok(best)
    }

    /// Calls `each` with the rows that a row refers to, until it returns `false`.
    pub(super) fn each_parent(
        &self,
        reference: &Reference,
        row: &[Value],
        each: &mut dyn FnMut(&Row) -> Result<bool, RightsError>,
    ) -> Result<(), RightsError> {
        let search = pairs(&reference.to_columns, &reference_collations(self.dock, reference));
        self.each_where(reference.to_table, &search, &pick(row, &reference.columns), each)
    }

    /// The same for a row that stands in its table, so that a parent of a thousand members is judged once.
    fn remembered(&self, table: TableIndex, row: &Row, depth: usize) -> Result<Sight, RightsError> {
        let at = (table, key_of(&self.dock.tables[table], row));
        if let Some(known) = self.known.borrow().get(&at) {
            return Ok(*known);
        }
        let sight = self.sight_at(table, row, depth)?;
        let mut known = self.known.borrow_mut();
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        known.insert(at, sight);
        Ok(sight)
    }

    fn by_rules(&self, table: TableIndex, object: usize, row: &[Value], depth: usize) -> Result<Sight, RightsError> {
        let mut best = Sight::None;
        for (number, rule) in self.rules_of(object) {
            let shows = match &rule.kind {
                RuleKind::Nobody => Sight::None,
                RuleKind::Referenced(_) => Sight::ReferencedOnly,
                RuleKind::Everyone | RuleKind::Path(_) => Sight::Own,
            };
            if shows <= best || !self.fits(table, number, rule, row)? {
                continue;
            }
            let holds = match &rule.kind {
                RuleKind::Nobody => false,
                RuleKind::Everyone => true,
                RuleKind::Path(path) => self.leads(table, path, row)?,
                RuleKind::Referenced(references) => self.is_referred_to(references, row, depth)?,
            };
            if holds {
                best = shows;
            }
            if best == Sight::Own {
                break;
            }
        }
        Ok(best)
    }

    /// Returns the rules of an object that the node's model has.
    pub(super) fn rules_of(&self, object: usize) -> impl Iterator<Item = (usize, &'a VisibilityRule)> {
        let (dock, model) = (self.dock, self.node.model.as_deref());
        dock.rules.iter().enumerate().filter(move |(number, rule)| rule.object == object && dock.model_has_rule(model, *number))
    }

    fn fits(&self, table: TableIndex, number: usize, rule: &VisibilityRule, row: &[Value]) -> Result<bool, RightsError> {
        let of_object = self.dock.objects.get(rule.object).and_then(|object| object.window.as_ref());
        let mut windows = rule.window.iter().chain(of_object);
        if !windows.all(|window| self.day.is_none_or(|day| window_holds(window, row, day))) {
            return Ok(false);
        }
        let Some(predicate) = &rule.predicate else { return Ok(true) };
        let declared = &self.dock.tables[table];
        let failed = |source| RightsError::Predicate { table: declared.name.clone(), source };
        let mut evaluators = self.evaluators.borrow_mut();
        let evaluator = match evaluators.entry(number) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Evaluator::for_table(predicate, declared).map_err(failed)?),
        };
        evaluator.matches(row).map_err(failed)
    }

    fn is_referred_to(&self, references: &[Reference], row: &[Value], depth: usize) -> Result<bool, RightsError> {
        for reference in references {
            let search = pairs(&reference.columns, &reference_collations(self.dock, reference));
            let mut seen = false;
            self.each_where(reference.table, &search, &pick(row, &reference.to_columns), &mut |referrer| {
                seen = self.remembered(reference.table, referrer, depth + 1)? != Sight::None;
                Ok(!seen)
            })?;
            if seen {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a chain of joins leads from a row to a value of the node.
    fn leads(&self, table: TableIndex, path: &RulePath, row: &[Value]) -> Result<bool, RightsError> {
        let all = self.values()?;
        let Some(wanted) = all.get(path.attribute).filter(|wanted| !wanted.is_empty()) else { return Ok(false) };
        let (last_table, last_columns) = path.hops.last().map_or((table, &path.start), |hop| (hop.table, &hop.out));
        let collation = column_collation(self.dock, last_table, last_columns.first().copied().unwrap_or_default());
        let is_wanted = |values: &[Value]| {
            values.first().is_some_and(|value| !value.is_null() && wanted.iter().any(|wanted| wanted.folds_to(value, collation)))
        };
        let start = pick(row, &path.start);
        if path.hops.is_empty() {
            return Ok(is_wanted(&start));
        }
        let mut from = BTreeSet::from([start]);
        let mut here = (table, path.start.as_slice());
        for (number, hop) in path.hops.iter().enumerate() {
            let search = pairs(&hop.join, &join_collations(self.dock, here.0, here.1, hop.table, &hop.join));
            let is_last = number + 1 == path.hops.len();
            let (mut next, mut found) = (BTreeSet::new(), false);
            for values in &from {
                self.each_where(hop.table, &search, values, &mut |joined| {
                    if self.passes(hop, joined) {
                        let out = pick(joined, &hop.out);
                        found = is_last && is_wanted(&out);
                        if !is_last {
                            next.insert(out);
                        }
                    }
                    Ok(!found)
                })?;
                if found {
                    return Ok(true);
                }
            }
            (from, here) = (next, (hop.table, hop.out.as_slice()));
        }
        Ok(false)
    }

    fn passes(&self, hop: &Hop, row: &[Value]) -> bool {
        hop.filters.iter().all(|(column, wanted)| {
            let collation = column_collation(self.dock, hop.table, *column);
            row.get(*column).is_some_and(|value| !value.is_null() && value.folds_to(wanted, collation))
        })
    }

    /// Returns the values of the node's attributes, derived ones from the rows as they are now.
    fn values(&self) -> Result<AttributeValues, RightsError> {
        if let Some(known) = self.values.borrow().as_ref() {
            return Ok(Rc::clone(known));
        }
        let mut values: Vec<Vec<Value>> = Vec::with_capacity(self.dock.attributes.len());
        for attribute in &self.dock.attributes {
            let mut set: BTreeSet<Value> = match &attribute.source {
                AttributeSource::Given { .. } => self.node.attributes.get(&attribute.name).into_iter().flatten().cloned().collect(),
                AttributeSource::Derived { from, .. } => values.get(*from).into_iter().flatten().cloned().collect(),
            };
            if let AttributeSource::Derived { hops, .. } = &attribute.source {
                for hop in hops {
                    set = self.follow(hop, set)?;
                }
            }
            set.remove(&Value::Null);
            values.push(set.into_iter().collect());
        }
        let values = Rc::new(values);
        *self.values.borrow_mut() = Some(Rc::clone(&values));
        Ok(values)
    }

    fn follow(&self, hop: &NodeHop, start: BTreeSet<Value>) -> Result<BTreeSet<Value>, RightsError> {
        let collations: Vec<Collation> = hop.hop.join.iter().map(|column| column_collation(self.dock, hop.hop.table, *column)).collect();
        let search = pairs(&hop.hop.join, &collations);
        let mut found = if hop.recursive { start.clone() } else { BTreeSet::new() };
        let mut waiting: Vec<Value> = start.into_iter().collect();
        let mut asked = BTreeSet::new();
        while let Some(value) = waiting.pop() {
            if !asked.insert(value.fold(collations.first().copied().unwrap_or_default())) {
                continue;
            }
            self.each_where(hop.hop.table, &search, &[value], &mut |row| {
                if self.passes(&hop.hop, row) {
                    for out in pick(row, &hop.hop.out).into_iter().filter(|value| !value.is_null()) {
                        if found.insert(out.clone()) && hop.recursive {
                            waiting.push(out);
                        }
                    }
                }
                Ok(true)
            })?;
        }
        Ok(found)
    }

    /// Returns the row whose key equals these values in SQLite's sense: the one that a statement with this key would hit.
    pub(super) fn row(&self, table: TableIndex, key: &[Value]) -> Result<Option<Row>, RightsError> {
        let declared = &self.dock.tables[table];
        if key.len() != declared.key.len() || key.iter().any(Value::is_null) {
            return Ok(None);
        }
        let terms = declared.key.iter().enumerate().map(|(at, column)| format!("{} = ?{}", name_of(declared, *column), at + 1));
        let sql = format!("{} WHERE {}", select(declared), terms.collect::<Vec<_>>().join(" AND "));
        let mut found = None;
        self.read(&sql, declared, key, &mut |row| {
            found = Some(row);
            Ok(false)
        })?;
        Ok(found)
    }

    /// Calls `each` with the rows whose columns equal the values under those collations, until it returns `false`. NULL equals nothing.
    fn each_where(
        &self,
        table: TableIndex,
        columns: &[(ColumnIndex, Collation)],
        values: &[Value],
        each: &mut dyn FnMut(&Row) -> Result<bool, RightsError>,
    ) -> Result<(), RightsError> {
        if values.len() != columns.len() || values.iter().any(Value::is_null) {
            return Ok(());
        }
        let declared = &self.dock.tables[table];
        let is_equal = |row: &Row| {
            let mut pairs = columns.iter().zip(values);
            pairs.all(|((column, collation), value)| row.get(*column).is_some_and(|held| held.folds_to(value, *collation)))
        };
        let changed = self.past.as_ref().and_then(|past| past.get(table));
        for row in changed.iter().flat_map(|changed| changed.values()).flatten().filter(|row| is_equal(row)) {
            if !each(row)? {
                return Ok(());
            }
        }
        // An explicit collation on the right decides, whatever the column was declared with.
        let terms = columns
            .iter()
            .enumerate()
            .map(|(at, (column, collation))| format!("{} = ?{} COLLATE {}", name_of(declared, *column), at + 1, collation.name()));
        let sql = format!("{} WHERE {}", select(declared), terms.collect::<Vec<_>>().join(" AND "));
        self.read(&sql, declared, values, &mut |row| {
            let is_other = changed.is_some_and(|changed| changed.contains_key(&key_of(declared, &row)));
            if is_other || !is_equal(&row) { Ok(true) } else { each(&row) }
        })
    }

    fn read(
        &self,
        sql: &str,
        declared: &DockTable,
        values: &[Value],
        each: &mut dyn FnMut(Row) -> Result<bool, RightsError>,
    ) -> Result<(), RightsError> {
        let action = format!("reading {} for the rights of {}", declared.name, self.node.name);
        let fault = || self.database.fault(&action);
        let mut statement = self.database.connection.prepare_cached(sql).map_err(fault())?;
        let mut rows = statement.query(rusqlite::params_from_iter(values.iter().map(SqlValue))).map_err(fault())?;
        while let Some(found) = rows.next().map_err(fault())? {
            let columns = 0..declared.columns.len();
            let row: Row = columns.map(|place| found.get_ref(place).map(value_of)).collect::<rusqlite::Result<_>>().map_err(fault())?;
            if !each(row)? {
                break;
            }
        }
        Ok(())
    }
}

/// `SELECT` of the captured columns. Names come from the definition alone (T12).
fn select(declared: &DockTable) -> String {
    let columns: Vec<String> = declared.columns.iter().map(|column| quote_name(&column.name)).collect();
    format!("SELECT {} FROM main.{}", columns.join(", "), quote_name(&declared.name))
}

fn name_of(declared: &DockTable, column: ColumnIndex) -> String {
    quote_name(declared.columns.get(column).map_or("", |column| column.name.as_str()))
}

fn pairs(columns: &[ColumnIndex], collations: &[Collation]) -> Vec<(ColumnIndex, Collation)> {
    columns.iter().copied().zip(collations.iter().copied()).collect()
}

/// Returns the primary key of a row.
pub(super) fn key_of(declared: &DockTable, row: &[Value]) -> RowKey {
    pick(row, &declared.key)
}

/// Returns the values of some columns of a row.
pub(super) fn pick(row: &[Value], columns: &[ColumnIndex]) -> Vec<Value> {
    columns.iter().map(|column| row.get(*column).cloned().unwrap_or(Value::Null)).collect()
}
