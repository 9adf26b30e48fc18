//! Why a node sees a row, or does not: rule by rule, in one read snapshot of the data store.
//!
//! The verdict is the scope index's, for by it everything was routed. Beside it the data are walked once more, chain by chain, to show
//! *why*; a walk that came to its end and says otherwise is [`CdsError::Inconsistent`], never a quiet second opinion.

use super::rows::{key_of, pick};
use super::scope::UnitScope;
use super::verdict::{
    KindVerdict, PathVerdict, PredicateVerdict, ReferrerVerdict, RowVerdict, RuleVerdict, SHOWN_MAX, Step, Why, WindowVerdict,
};
use super::{Cds, CdsError, guard, layout};
use crate::base::ids::NodeName;
use crate::base::limits::{EXPLAIN_DEPTH_MAX, EXPLAIN_ROWS_MAX};
use crate::model::dock::{ColumnIndex, DockTable, Reference, RuleKind, RulePath, TableIndex, Window};
use crate::model::event::ScopeKey;
use crate::model::node::Node;
use crate::model::value::{Collation, Row, RowKey, Value};
use crate::rules::graph::{Guard, ScopePath, VertexIndex, column_collation, join_collations, reference_collations};
use rusqlite::OptionalExtension;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// A node as of the data store's position, with the values of its attributes.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// What the administrator set.
    pub node: Node,
    /// Per attribute of the definition its values.
    pub values: Vec<Vec<Value>>,
}

impl NodeView {
    /// Returns the values that the node's keys of a path have.
    fn folded(&self, path: &ScopePath) -> Vec<Value> {
        match path.attribute {
            None => vec![Value::Null],
            Some(attribute) => self.of(attribute).iter().map(|value| value.fold(path.collation)).collect(),
        }
    }

    fn of(&self, attribute: usize) -> &[Value] {
        self.values.get(attribute).map(Vec::as_slice).unwrap_or_default()
    }
}

impl Cds {
    /// Opens the data store for looking: a read snapshot that stays at the last commit. `None` if there is none, or it was never filled.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn look(path: &Path) -> Result<Option<Cds>, CdsError> {
        if !path.exists() {
            return Ok(None);
        }
        let sql = |what| move |source| CdsError::Sql { path: path.to_owned(), what, source };
        let conn = layout::pin_snapshot(path).map_err(sql("open"))?;
        let Some(state) = layout::read_state(&conn).map_err(sql("read the commit point"))? else { return Ok(None) };
        Cds::assemble_stored(path, conn, state).map(Some)
    }

    /// Returns the record of a node whose stream runs as of the position.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn running_node(&self, name: &NodeName) -> Result<Option<Node>, CdsError> {
        let record: Option<String> = self
            .conn
            .query_row("SELECT record FROM node WHERE name = ?1", [name.as_str()], |row| row.get(0))
            .optional()
            .map_err(self.sql("read a node"))?;
        let unreadable = |_| CdsError::State { path: self.path.clone(), name: format!("node {name}") };
        record.map(|record| serde_json::from_str(&record).map_err(unreadable)).transpose()
    }

    /// Returns a node with the values of its attributes as of the position.
    ///
    /// # Errors
    /// The data cannot be read.
    pub fn node_view(&self, node: &Node) -> Result<NodeView, CdsError> {
        Ok(NodeView { node: node.clone(), values: self.node_values(node)?.0 })
    }

    /// Returns the row whose primary key equals these values in SQLite's sense.
    ///
    /// # Errors
    /// The data cannot be read.
    pub fn find_row(&self, table: TableIndex, key: &[Value]) -> Result<Option<(RowKey, Row)>, CdsError> {
        let found = self.row_equal(table, key)?;
        Ok(found.map(|row| (key_of(&self.dock.tables[table], &row), row)))
    }

    /// Returns the keys that a node holds as of the position, as files name them.
    pub fn scope_keys(&self, node: &NodeView) -> BTreeSet<ScopeKey> {
        let mut keys = BTreeSet::new();
        for (_, path) in self.graph.paths_of_model(&self.dock, node.node.model.as_deref()) {
            for value in node.folded(path) {
                keys.insert(ScopeKey { path: path.name.clone(), value });
            }
        }
        keys
    }

    /// Explains a row for a node, as of the position.
    ///
    /// # Errors
    /// The data cannot be read, or they contradict the scope index.
    pub fn explain(&self, node: &NodeView, table: TableIndex, row: &Row) -> Result<RowVerdict, CdsError> {
        let untouched = vec![HashMap::new(); self.dock.tables.len()];
        Explainer { cds: self, node, scope: UnitScope::new(self, untouched, (self.state.day, self.state.day)) }.row(table, row, 0)
    }
}

struct Explainer<'a> {
    cds: &'a Cds,
    node: &'a NodeView,
    scope: UnitScope<'a>,
}

impl Explainer<'_> {
    fn row(&self, table: TableIndex, row: &Row, depth: usize) -> Result<RowVerdict, CdsError> {
        let declared = &self.cds.dock.tables[table];
        let by = match self.cds.graph.visible[table] {
            Some(vertex) => self.held_rules(vertex, row)?,
            None => BTreeSet::new(),
        };
        let why = match (&declared.member_of, declared.object) {
            _ if depth >= EXPLAIN_DEPTH_MAX => Why::TooDeep,
            (_, None) => Why::Unowned,
            (Some(reference), _) => self.member(reference, row, depth)?,
            (None, Some(object)) => {
                let mut rules = Vec::new();
                for (number, rule) in self.cds.dock.rules.iter().enumerate().filter(|(_, rule)| rule.object == object) {
                    let verdict = self.rule(table, number, row, by.contains(&number), depth)?;
                    self.check(&verdict, &rule.name, &key_of(declared, row))?;
                    rules.push(verdict);
                }
                Why::Rules(rules)
            }
        };
        let verdict = RowVerdict {
            table: declared.name.clone(),
            key: key_of(declared, row),
            visible: !by.is_empty(),
            by: by.into_iter().map(|rule| self.cds.dock.rules[rule].name.clone()).collect(),
            why,
        };
        match &verdict.why {
            Why::Member { parent, .. } if parent.as_ref().is_some_and(|parent| parent.visible) != verdict.visible => {
                Err(self.contradiction(&declared.name, &verdict.key, "its parent"))
            }
            _ => Ok(verdict),
        }
    }

    /// The rules by whose keys row and node meet, as the scope index has it.
    fn held_rules(&self, vertex: VertexIndex, row: &Row) -> Result<BTreeSet<usize>, CdsError> {
        let vertex = &self.cds.graph.vertices[vertex];
        let mut held = BTreeSet::new();
        for (path, declared) in self.cds.graph.paths_of_model(&self.cds.dock, self.node.node.model.as_deref()) {
            let Some(rule) = declared.rules.last().filter(|rule| vertex.paths.contains(&path) && !held.contains(*rule)) else { continue };
            for value in self.node.folded(declared) {
                if self.scope.has_value(vertex, row, path, &value, super::scope::When::After)? {
                    held.insert(*rule);
                    break;
                }
            }
        }
        Ok(held)
    }

    fn member(&self, reference: &Reference, row: &Row, depth: usize) -> Result<Why, CdsError> {
        let search: Vec<(ColumnIndex, Collation)> =
            reference.to_columns.iter().copied().zip(reference_collations(&self.cds.dock, reference)).collect();
        let parents = self.cds.rows_up_to(reference.to_table, &search, &pick(row, &reference.columns), EXPLAIN_ROWS_MAX)?;
        let parent = self.best(reference.to_table, &parents)?;
        let parent = parent.map(|parent| self.row(reference.to_table, parent, depth + 1)).transpose()?;
        Ok(Why::Member { by: self.reference_text(reference), parent: parent.map(Box::new) })
    }

    /// Returns the first row that the node sees, else the first.
    fn best<'r>(&self, table: TableIndex, rows: &'r [Row]) -> Result<Option<&'r Row>, CdsError> {
        if let Some(vertex) = self.cds.graph.visible[table] {
            for row in rows {
                if !self.held_rules(vertex, row)?.is_empty() {
                    return Ok(Some(row));
                }
            }
        }
        Ok(rows.first())
    }

    fn rule(&self, table: TableIndex, number: usize, row: &Row, visible: bool, depth: usize) -> Result<RuleVerdict, CdsError> {
        let dock = &self.cds.dock;
        let (rule, declared) = (&dock.rules[number], &dock.tables[table]);
        let predicate = match &rule.predicate {
            None => None,
            Some(predicate) => {
                let guard = Guard { predicate: Some(predicate.clone()), windows: Vec::new() };
                let values = self.pairs(table, &predicate.columns, &pick(row, &predicate.columns));
                Some(PredicateVerdict { sql: predicate.sql.clone(), values, holds: self.cds.predicate_holds(table, &guard, row)? })
            }
        };
        let windows =
            rule.window.iter().chain(&dock.objects[rule.object].window).map(|window| self.window(declared, window, row)).collect();
        let kind = match &rule.kind {
            RuleKind::Everyone => KindVerdict::Everyone,
            RuleKind::Nobody => KindVerdict::Nobody,
            RuleKind::Path(path) => KindVerdict::Path(self.path(table, path, row)?),
            RuleKind::Referenced(references) => {
                let of_objects = references.iter().filter(|reference| dock.tables[reference.table].object.is_some());
                KindVerdict::Referenced(of_objects.map(|reference| self.referrers(reference, row, depth)).collect::<Result<_, _>>()?)
            }
        };
        let in_model = dock.model_has_rule(self.node.node.model.as_deref(), number);
        Ok(RuleVerdict { name: rule.name.clone(), visible, in_model, predicate, windows, kind })
    }

    fn window(&self, declared: &DockTable, window: &Window, row: &Row) -> WindowVerdict {
        WindowVerdict {
            column: column_name(declared, window.column),
            value: row.get(window.column).cloned().unwrap_or(Value::Null),
            days: window.days,
            holds: guard::window_holds(window, row, self.cds.state.day),
        }
    }

    fn referrers(&self, reference: &Reference, row: &Row, depth: usize) -> Result<ReferrerVerdict, CdsError> {
        let search: Vec<(ColumnIndex, Collation)> =
            reference.columns.iter().copied().zip(reference_collations(&self.cds.dock, reference)).collect();
        let rows = self.cds.rows_up_to(reference.table, &search, &pick(row, &reference.to_columns), EXPLAIN_ROWS_MAX)?;
        let shown = self.best(reference.table, &rows)?.map(|shown| self.row(reference.table, shown, depth + 1)).transpose()?;
        let (by, cut) = (self.reference_text(reference), rows.len() >= EXPLAIN_ROWS_MAX);
        Ok(ReferrerVerdict { by, rows: rows.len(), cut, shown: shown.map(Box::new) })
    }

    /// Walks the chains of a path rule, level by level, from the row to the values that they end in.
    fn path(&self, table: TableIndex, path: &RulePath, row: &Row) -> Result<PathVerdict, CdsError> {
        let dock = &self.cds.dock;
        let attribute = dock.attributes.get(path.attribute).map(|attribute| attribute.name.clone()).unwrap_or_default();
        let node_values = self.node.of(path.attribute).to_vec();
        let start = self.pairs(table, &path.start, &pick(row, &path.start));
        let mut verdict =
            PathVerdict { start, steps: Vec::new(), ended: None, attribute, node_values, reached: Vec::new(), matched: None, cut: false };
        let mut levels: Vec<Vec<Walked>> = Vec::new();
        let mut here = (table, path.start.as_slice());
        let mut from = vec![Walked { row: row.clone(), parent: 0 }];
        let mut budget = EXPLAIN_ROWS_MAX;
        for hop in &path.hops {
            let search: Vec<(ColumnIndex, Collation)> =
                hop.join.iter().copied().zip(join_collations(dock, here.0, here.1, hop.table, &hop.join)).collect();
            let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
            for (parent, walked) in from.iter().enumerate() {
                let rows = self.cds.rows_up_to(hop.table, &search, &pick(&walked.row, here.1), budget)?;
                budget -= rows.len().min(budget);
                for row in rows.into_iter().filter(|row| self.filtered(hop.table, &hop.filters, row)) {
                    if seen.insert(key_of(&dock.tables[hop.table], &row)) {
                        found.push(Walked { row, parent });
                    }
                }
                if budget == 0 {
                    verdict.cut = true;
                    break;
                }
            }
            levels.push(std::mem::replace(&mut from, found));
            if from.is_empty() {
                // The first chain shows how far it went.
                let condition = self.condition(hop.table, &hop.join, &pick(&levels[levels.len() - 1][0].row, here.1), &hop.filters);
                verdict.ended = Some(format!("{} with {condition}", dock.tables[hop.table].name));
                from = levels.pop().unwrap_or_default();
                break;
            }
            here = (hop.table, hop.out.as_slice());
        }
        let mut at = 0;
        if verdict.ended.is_none() {
            let column = here.1.first().copied().unwrap_or_default();
            let collation = column_collation(dock, here.0, column);
            for (number, walked) in from.iter().enumerate() {
                let Some(value) = walked.row.get(column).filter(|value| !value.is_null()) else { continue };
                let matches = verdict.node_values.iter().any(|wanted| wanted.fold(collation) == value.fold(collation));
                if matches {
                    (at, verdict.matched) = (number, Some(value.clone()));
                    verdict.reached.retain(|known| known != value);
                    verdict.reached.insert(0, value.clone());
                    verdict.reached.truncate(SHOWN_MAX);
                    break;
                }
                if verdict.reached.len() < SHOWN_MAX && !verdict.reached.contains(value) {
                    verdict.reached.push(value.clone());
                }
            }
        }
        levels.push(from);
        verdict.steps = self.steps(path, &levels, at);
        Ok(verdict)
    }

    /// The chain that leads to row `at` of the last level, from its start.
    fn steps(&self, path: &RulePath, levels: &[Vec<Walked>], mut at: usize) -> Vec<Step> {
        let dock = &self.cds.dock;
        let mut steps = Vec::new();
        for level in (1..levels.len()).rev() {
            let Some(hop) = path.hops.get(level - 1) else { continue };
            let out = if level == 1 { &path.start } else { &path.hops[level - 2].out };
            let walked = &levels[level][at];
            let values = pick(&levels[level - 1][walked.parent].row, out);
            steps.push(Step {
                table: dock.tables[hop.table].name.clone(),
                on: self.condition(hop.table, &hop.join, &values, &hop.filters),
                key: key_of(&dock.tables[hop.table], &walked.row),
                rows: levels[level].len(),
            });
            at = walked.parent;
        }
        steps.reverse();
        steps
    }

    fn filtered(&self, table: TableIndex, filters: &[(ColumnIndex, Value)], row: &Row) -> bool {
        filters.iter().all(|(column, wanted)| {
            let collation = column_collation(&self.cds.dock, table, *column);
            row.get(*column).is_some_and(|value| !value.is_null() && value.fold(collation) == wanted.fold(collation))
        })
    }

    /// `customer = 7, kind = 'x'`
    fn pairs(&self, table: TableIndex, columns: &[ColumnIndex], values: &[Value]) -> String {
        let declared = &self.cds.dock.tables[table];
        let pair = |(column, value): (&ColumnIndex, &Value)| format!("{} = {value}", column_name(declared, *column));
        columns.iter().zip(values).map(pair).collect::<Vec<_>>().join(", ")
    }

    fn condition(&self, table: TableIndex, columns: &[ColumnIndex], values: &[Value], filters: &[(ColumnIndex, Value)]) -> String {
        let mut text = self.pairs(table, columns, values);
        for (column, value) in filters {
            text.push_str(&format!(", {} = {value}", column_name(&self.cds.dock.tables[table], *column)));
        }
        text
    }

    fn reference_text(&self, reference: &Reference) -> String {
        let (from, to) = (&self.cds.dock.tables[reference.table], &self.cds.dock.tables[reference.to_table]);
        let pair = |(left, right): (&ColumnIndex, &ColumnIndex)| {
            format!("{}.{} = {}.{}", from.name, column_name(from, *left), to.name, column_name(to, *right))
        };
        reference.columns.iter().zip(&reference.to_columns).map(pair).collect::<Vec<_>>().join(", ")
    }

    /// Compares what the data say with what the index says, unless the walk was cut.
    fn check(&self, verdict: &RuleVerdict, rule: &str, key: &RowKey) -> Result<(), CdsError> {
        let (holds, cut) = match &verdict.kind {
            KindVerdict::Everyone => (true, false),
            KindVerdict::Nobody => (false, false),
            KindVerdict::Path(path) => (path.matched.is_some(), path.cut),
            KindVerdict::Referenced(referrers) => (
                referrers.iter().any(|referrer| referrer.shown.as_ref().is_some_and(|shown| shown.visible)),
                referrers.iter().any(|referrer| referrer.cut),
            ),
        };
        let fits = verdict.in_model
            && verdict.predicate.as_ref().is_none_or(|predicate| predicate.holds)
            && verdict.windows.iter().all(|window| window.holds);
        let is_known = holds || !cut;
        if is_known && (holds && fits) != verdict.visible { Err(self.contradiction(rule, key, "the data")) } else { Ok(()) }
    }

    fn contradiction(&self, of: &str, key: &RowKey, what: &str) -> CdsError {
        let node = &self.node.node.name;
        let key = crate::model::value::display_key(key);
        CdsError::Inconsistent { what: format!("{of}, row {key}, node {node}: {what} says otherwise") }
    }
}

/// A row on the way, and the place of the one before it in the level before.
struct Walked {
    row: Row,
    parent: usize,
}

fn column_name(table: &DockTable, column: ColumnIndex) -> String {
    table.columns.get(column).map(|column| column.name.clone()).unwrap_or_default()
}
