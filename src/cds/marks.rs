//! Marks in the stream: digests of what a node sees at the end of the open unit (R42).
//!
//! Computed before the unit is committed, on the connection that holds it, for the mark stands in the unit's own file. It costs a
//! reading of the node's rows, as an extract does, and the Transaction Processor waits for it.

use super::emit::{heading, sent_columns};
use super::explain::NodeView;
use super::nodes::NodeScope;
use super::rows::{key_of, pick, read_row};
use super::view::{visible_rows, visible_table};
use super::{Cds, CdsError, layout};
use crate::base::ids::NodeName;
use crate::model::digest::{BucketChoice, Digester, bucket_count, key_hash};
use crate::model::dock::{Direction, TableIndex};
use crate::model::event::{Mark, MarkEvent, TableDigest};
use crate::model::value::{RowKey, Value};
use std::collections::{BTreeMap, BTreeSet};

/// A question to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The node.
    pub node: NodeName,
    /// Its number.
    pub id: u64,
    /// The buckets whose rows are listed; empty = all tables, in sums.
    pub choice: Vec<BucketChoice>,
}

impl Cds {
    /// Answers questions as of the end of the open unit. A node whose stream does not run gets no mark.
    ///
    /// # Errors
    /// The data cannot be read.
    pub fn marks(&self, questions: &[Question]) -> Result<Vec<MarkEvent>, CdsError> {
        let Some((state, nodes)) = &self.pending else { return Ok(Vec::new()) };
        let mut marks = Vec::new();
        for question in questions {
            let running = self.nodes.get(&question.node).filter(|_| !nodes.gone.contains(&question.node));
            let Some(scope) = nodes.set.get(&question.node).or(running) else { continue };
            let tables = self.digests(scope, state.day, &question.choice)?;
            marks.push(MarkEvent { node: question.node.clone(), mark: Mark { id: question.id, tables } });
        }
        Ok(marks)
    }

    fn digests(&self, scope: &NodeScope, day: i64, choice: &[BucketChoice]) -> Result<Vec<TableDigest>, CdsError> {
        let mut tables = Vec::new();
        self.each_visible(scope, day, |table, rows| {
            let declared = &self.dock.tables[table];
            let chosen = choice.iter().find(|chosen| chosen.table == declared.name);
            let (bucket_count, wanted) = match chosen {
                Some(chosen) => (chosen.bucket_count, Some(chosen.buckets.clone())),
                None if choice.is_empty() => (bucket_count(rows.count()?), None),
                None => return Ok(()),
            };
            let mut digester = Digester::new(bucket_count, wanted);
            let sent = sent_columns(declared);
            rows.each(|row| {
                digester.add(&key_of(declared, row), &pick(row, &sent));
            })?;
            tables.push(TableDigest { heading: heading(declared), bucket_count, buckets: digester.finish() });
            Ok(())
        })?;
        Ok(tables)
    }

    /// Returns the keys of the rows that a node sees, by their hashes, as far as they are asked for.
    ///
    /// # Errors
    /// The data cannot be read.
    pub fn keys_by_hash(
        &self,
        view: &NodeView,
        wanted: &BTreeMap<String, BTreeSet<u64>>,
    ) -> Result<BTreeMap<(String, u64), RowKey>, CdsError> {
        let scope = NodeScope::of_values(&view.node, &view.values);
        let mut found = BTreeMap::new();
        self.each_visible(&scope, self.state.day, |table, rows| {
            let declared = &self.dock.tables[table];
            let Some(wanted) = wanted.get(&declared.name) else { return Ok(()) };
            rows.each(|row| {
                let key = key_of(declared, row);
                let hash = key_hash(&key);
                if wanted.contains(&hash) {
                    found.insert((declared.name.clone(), hash), key);
                }
            })
        })?;
        Ok(found)
    }

    /// Calls `each` with every table of which nodes are sent rows, and those that the node sees.
    fn each_visible(
        &self,
        scope: &NodeScope,
        day: i64,
        mut each: impl FnMut(TableIndex, Visible<'_>) -> Result<(), CdsError>,
    ) -> Result<(), CdsError> {
        visible_rows(&self.conn, &self.dock, &self.graph, scope, day).map_err(self.sql("select what a node sees"))?;
        for (table, declared) in self.dock.tables.iter().enumerate() {
            let sent = declared
                .object
                .and_then(|object| self.dock.objects.get(object))
                .is_some_and(|object| object.direction != Direction::Upload);
            if sent && self.graph.visible[table].is_some() {
                each(table, Visible { cds: self, table })?;
            }
        }
        for table in (0..self.dock.tables.len()).filter(|table| self.graph.visible[*table].is_some()) {
            self.conn.execute_batch(&format!("DROP TABLE temp.{}", visible_table(table))).map_err(self.sql("forget what a node sees"))?;
        }
        Ok(())
    }
}

/// The rows of one table that were selected.
struct Visible<'a> {
    cds: &'a Cds,
    table: TableIndex,
}

impl Visible<'_> {
    fn count(&self) -> Result<u64, CdsError> {
        let text = format!("SELECT count(*) FROM temp.{}", visible_table(self.table));
        let count: i64 = self.cds.conn.query_row(&text, [], |row| row.get(0)).map_err(self.cds.sql("count what a node sees"))?;
        Ok(count.unsigned_abs())
    }

    fn each(&self, mut each: impl FnMut(&[Value])) -> Result<(), CdsError> {
        let (sql, declared) = (self.cds.sql("read what a node sees"), &self.cds.dock.tables[self.table]);
        let (columns, data) = (layout::column_list(declared), layout::data_table(self.table));
        let text = format!("SELECT {columns} FROM temp.{} v CROSS JOIN {data} t ON t.rowid = v.rid", visible_table(self.table));
        let mut statement = self.cds.conn.prepare(&text).map_err(&sql)?;
        let mut rows = statement.query([]).map_err(&sql)?;
        while let Some(row) = rows.next().map_err(&sql)? {
            each(&read_row(row, declared.columns.len()).map_err(&sql)?);
        }
        Ok(())
    }
}
