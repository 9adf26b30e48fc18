//! The first filling of a data store from a snapshot of the server database.
//!
//! The file is built beside its final place and moved there when it is whole, so an interrupted `deploy` leaves nothing
//! that looks like a data store.

use super::layout::{self, TxnprocFile};
use super::scope::{UnitScope, junction_values};
use super::{Cds, CdsError, CdsState, counts};
use crate::model::dock::{Dock, TableIndex};
use crate::model::node::{Node, NodeState};
use crate::model::schema::Schema;
use crate::model::value::{Row, Value};
use crate::rules::graph::ScopeGraph;
use crate::store::sqlite::SqlValue;
use rusqlite::params;
use std::collections::HashMap;
use std::path::Path;

/// Counts collected in memory before they are written.
const COUNTS_IN_MEMORY_MAX: usize = 500_000;

/// A data store being filled.
#[derive(Debug)]
pub struct Filling {
    cds: Cds,
    rows: u64,
}

impl Filling {
    /// Creates an empty data store at `path`, where no file may be, and opens the one transaction that fills it.
    pub fn create(path: &Path, dock: Dock, schema: Schema, state: CdsState) -> Result<Filling, CdsError> {
        let sql = |what| move |source| CdsError::Sql { path: path.to_owned(), what, source };
        let graph = ScopeGraph::compile(&dock)?;
        let conn = layout::connect(path).map_err(sql("create"))?;
        // Nobody can see the file before it is moved to its place, and then it is synced as a whole.
        conn.execute_batch("PRAGMA journal_mode = DELETE; PRAGMA synchronous = FULL; BEGIN IMMEDIATE").map_err(sql("create"))?;
        layout::create(&conn, &dock, &graph).map_err(sql("create tables"))?;
        layout::write_state(&conn, &state).map_err(sql("write the commit point"))?;
        for (name, text) in [("dock", serde_json::to_string(&dock)), ("schema", serde_json::to_string(&schema))] {
            let text = text.map_err(|_| CdsError::State { path: path.to_owned(), name: name.to_owned() })?;
            layout::write_record(&conn, name, &text).map_err(sql("write the definition"))?;
        }
        let cds = Cds::assemble(path, conn, dock, schema, graph, state).map_err(sql("number rule paths"))?;
        Ok(Filling { cds, rows: 0 })
    }

    /// Adds a row of captured columns.
    pub fn add(&mut self, table: TableIndex, row: &Row) -> Result<(), CdsError> {
        self.cds.insert_row(table, row)?;
        self.rows += 1;
        Ok(())
    }

    /// Takes out every row that was added to a table.
    pub fn clear(&mut self, table: TableIndex) -> Result<(), CdsError> {
        let removed = self.cds.conn.execute(&format!("DELETE FROM d{table}"), []).map_err(self.cds.sql("clear a table"))?;
        self.rows -= removed as u64;
        Ok(())
    }

    /// Returns whether [`Filling::add`] failed because the table has a row of an equal key already.
    pub fn is_key_taken(error: &CdsError) -> bool {
        let CdsError::Sql { source, .. } = error else { return false };
        source.sqlite_error().is_some_and(|error| {
            [rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY, rusqlite::ffi::SQLITE_CONSTRAINT_ROWID].contains(&error.extended_code)
        })
    }

    /// Adds a row to the ledger of txnproc files.
    pub fn add_file(&mut self, file: &TxnprocFile) -> Result<(), CdsError> {
        layout::write_file(&self.cds.conn, file).map_err(self.cds.sql("write the ledger of txnproc files"))
    }

    /// Creates indexes, derives the scope index, stores the active nodes, and commits. Returns the number of rows.
    pub fn finish(self, nodes: &[Node]) -> Result<u64, CdsError> {
        let Filling { cds, rows } = self;
        layout::create_indexes(&cds.conn, &cds.dock, &cds.graph).map_err(cds.sql("create indexes"))?;
        cds.count_all()?;
        for node in nodes.iter().filter(|node| node.state == NodeState::Active) {
            let record =
                serde_json::to_string(node).map_err(|_| CdsError::State { path: cds.path.clone(), name: format!("node {}", node.name) })?;
            cds.conn
                .execute("INSERT INTO node(name, record) VALUES(?1, ?2)", [node.name.as_str(), &record])
                .map_err(cds.sql("store a node"))?;
        }
        let sql = cds.sql("commit the filling");
        cds.conn.execute_batch("COMMIT; PRAGMA journal_mode = WAL").map_err(&sql)?;
        drop(sql);
        Ok(rows)
    }
}

impl Cds {
    /// Derives every junction's counts from the data, one junction after another so that each finds those before it.
    pub(super) fn count_all(&self) -> Result<(), CdsError> {
        let empty = vec![HashMap::new(); self.dock.tables.len()];
        for vertex in &self.graph.vertices {
            for junction in &vertex.feeds {
                let declared = &self.graph.junctions[*junction];
                let mut collected: HashMap<(Value, i64), i64> = HashMap::new();
                let scope = UnitScope::new(self, empty.clone(), (self.state.day, self.state.day));
                self.scan(vertex.table, |row| {
                    let Some(values) = junction_values(&declared.columns, &declared.collations, &row) else { return Ok(()) };
                    let stored_at = counts::target(&values);
                    for key in scope.keys(vertex, &row, super::scope::When::After)? {
                        *collected.entry((stored_at.clone(), key)).or_default() += 1;
                    }
                    if collected.len() >= COUNTS_IN_MEMORY_MAX {
                        self.add_counts(*junction, &mut collected)?;
                    }
                    Ok(())
                })?;
                self.add_counts(*junction, &mut collected)?;
            }
        }
        Ok(())
    }

    fn add_counts(&self, junction: usize, collected: &mut HashMap<(Value, i64), i64>) -> Result<(), CdsError> {
        let mut sorted: Vec<_> = collected.drain().collect();
        sorted.sort_unstable();
        let sql = self.sql("write counts");
        let mut statement = self
            .conn
            .prepare_cached(&format!(
                "INSERT INTO j{junction}(target, key, n) VALUES(?1, ?2, ?3) ON CONFLICT(target, key) DO UPDATE SET n = n + excluded.n"
            ))
            .map_err(&sql)?;
        for ((stored_at, key), n) in sorted {
            statement.execute(params![SqlValue(&stored_at), key, n]).map_err(&sql)?;
        }
        Ok(())
    }
}
