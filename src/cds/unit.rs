//! One unit taken into the data store: changes in, net events out, one commit.
//!
//! `process` opens the transaction and leaves it open; the Transaction Processor writes the file of events and then
//! calls `commit` with its ledger row, or `rollback`. Until the commit nobody else sees anything (R25).

use super::compare::Reconciled;
use super::layout::{self, StoppedTable, TxnprocFile};
use super::nodes::{NodeChanges, NodeScope};
use super::rows::key_of;
use super::scope::{Touched, UnitScope};
use super::{Cds, CdsError};
use crate::base::defect::{self, Defect};
use crate::base::ids::{Incarnation, NodeName, Nonce, Revision, TxnId};
use crate::model::dock::TableIndex;
use crate::model::event::{ConfirmEvent, UnitEvents};
use crate::model::node::{Node, NodeState};
use crate::model::value::{Row, RowKey};
use rusqlite::params;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What one read of the log brought.
#[derive(Debug, Clone, Default)]
pub struct UnitInput {
    /// The unit's position.
    pub unit: TxnId,
    /// When it was read, microseconds since 1970.
    pub read_at_micros: i64,
    /// At most one change per row: its final state.
    pub changes: Vec<RowChange>,
    /// Changes of nodes in log order; the last one of a node counts.
    pub nodes: Vec<NodeChange>,
    /// New day for windows, if a tick was read. Days only go forward (R39).
    pub day: Option<i64>,
    /// Every table that stands still from here on, if that changed.
    pub stopped: Option<Vec<StoppedTable>>,
    /// What was compared with the server database as of this unit.
    pub reconciled: Vec<Reconciled>,
    /// What became of units of nodes, in log order.
    pub confirms: Vec<ConfirmEvent>,
    /// Definition announced in the log.
    pub revision: Option<Revision>,
}

/// The final state of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct RowChange {
    /// Its table.
    pub table: TableIndex,
    /// Its primary key.
    pub key: RowKey,
    /// Its captured columns; `None` if it is gone.
    pub row: Option<Row>,
}

/// A change of a registered node.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeChange {
    /// Its whole new record.
    Set(Node),
    /// It was deleted.
    Deleted(NodeName),
}

/// How a node's part in the stream changes with a unit.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum NodeStep {
    Start,
    /// Its stream begins anew with the unit, without an extract.
    Restart,
    Keys,
    Stop,
}

impl Cds {
    /// Takes a unit in and returns its events. The transaction stays open until `commit` or `rollback`.
    ///
    /// # Errors
    /// On any error the unit is rolled back and the data store is as before.
    pub fn process(&mut self, input: &UnitInput) -> Result<UnitEvents, CdsError> {
        self.conn.execute_batch("BEGIN IMMEDIATE").map_err(self.sql("begin a unit"))?;
        match self.process_inside(input) {
            Ok(events) => Ok(events),
            Err(error) => {
                self.rollback()?;
                Err(error)
            }
        }
    }

    fn process_inside(&mut self, input: &UnitInput) -> Result<UnitEvents, CdsError> {
        let day = input.day.map_or(self.state.day, |day| day.max(self.state.day));
        let mut touched = self.apply_changes(&input.changes)?;
        self.touch_windows(self.state.day, day, &mut touched)?;

        let derived_anew = self.users_of(&touched);
        let (steps, nodes) = self.change_nodes(input, derived_anew)?;

        let mut scope = UnitScope::new(self, touched, (self.state.day, day));
        scope.reached_max = self.reached_max;
        scope.run()?;
        let events = scope.events(input, &steps, &nodes)?;
        scope.overlay.write(self)?;
        self.settle_unit(input, day, nodes)?;
        Ok(events)
    }

    /// Notes what the unit moves beside rows, to be in force from its commit.
    pub(super) fn settle_unit(&mut self, input: &UnitInput, day: i64, nodes: NodeChanges) -> Result<(), CdsError> {
        let mut state = self.state.clone();
        state.position = input.unit;
        state.day = day;
        if let Some(revision) = input.revision {
            state.revision = revision;
        }
        if let Some(stopped) = &input.stopped {
            self.note_stopped(stopped)?;
        }
        self.note_reconciled(input)?;
        self.pending = Some((state, nodes));
        Ok(())
    }

    /// Commits the open unit together with the ledger row of its file and the nonce of its read.
    ///
    /// # Errors
    /// On an error nothing is committed; `rollback` ends the transaction.
    pub fn commit(&mut self, file: &TxnprocFile, nonce: Nonce) -> Result<(), CdsError> {
        let Some((mut state, nodes)) = self.pending.take() else {
            return Err(CdsError::Inconsistent { what: "commit without an open unit".to_owned() });
        };
        state.nonce = nonce;
        let sql = self.sql("commit a unit");
        layout::write_progress(&self.conn, &self.state, &state).map_err(&sql)?;
        layout::write_file(&self.conn, file).map_err(&sql)?;
        self.conn.execute_batch("COMMIT").map_err(&sql)?;
        drop(sql);
        self.state = state;
        self.redefined = false;
        nodes.apply(&mut self.nodes);
        Ok(())
    }

    /// Gives up the open unit.
    pub fn rollback(&mut self) -> Result<(), CdsError> {
        self.pending = None;
        self.large = None;
        if !self.conn.is_autocommit() {
            self.conn.execute_batch("ROLLBACK").map_err(self.sql("roll back a unit"))?;
        }
        if self.redefined {
            *self = Cds::open(&self.path)?;
        }
        let forgotten = self.keys.borrow_mut().forget(&self.conn);
        forgotten.map_err(self.sql("read keys again"))
    }

    /// Brings the rows up to the end of the unit and returns what really changed. Deletes go first, so that two keys that
    /// SQLite holds equal (`1` and `1.0`) never meet.
    ///
    /// In chunks the deletion of such a row may come later than its successor: then it is brought forward.
    pub(super) fn apply_changes(&self, changes: &[RowChange]) -> Result<Vec<HashMap<RowKey, Touched>>, CdsError> {
        let mut touched: Vec<HashMap<RowKey, Touched>> = vec![HashMap::new(); self.dock.tables.len()];
        for change in changes {
            let declared = &self.dock.tables[change.table];
            let (before, equal) = match self.row_equal(change.table, &change.key)? {
                Some(row) if key_of(declared, &row) == change.key => (Some(row), None),
                equal => (None, equal),
            };
            if let (Some(other), Some(_)) = (equal, &change.row) {
                touched[change.table].entry(key_of(declared, &other)).or_insert(Touched { before: Some(other), after: None });
            }
            if before != change.row {
                touched[change.table].insert(change.key.clone(), Touched { before, after: change.row.clone() });
            }
        }
        for (table, rows) in touched.iter().enumerate() {
            for (key, _) in rows.iter().filter(|(_, row)| row.after.is_none()) {
                self.delete_row(table, key)?;
            }
        }
        // In the order in which they come, by key: rows that stand together are written together, and pages are filled one after another.
        for change in changes {
            match touched[change.table].get(&change.key) {
                Some(Touched { before: Some(before), after: Some(after) }) => {
                    let changed: Vec<usize> = (0..after.len()).filter(|column| before.get(*column) != after.get(*column)).collect();
                    self.update_row(change.table, &change.key, after, &changed)?;
                }
                Some(Touched { before: None, after: Some(after) }) => self.insert_row(change.table, after)?,
                _ => {}
            }
        }
        Ok(touched)
    }

    /// Adds the rows that a window passed between two days.
    pub(super) fn touch_windows(&self, from: i64, to: i64, touched: &mut [HashMap<RowKey, Touched>]) -> Result<(), CdsError> {
        if from == to {
            return Ok(());
        }
        let sql = self.sql("search a window");
        for vertex in &self.graph.vertices {
            for window in vertex.inputs.iter().flat_map(|input| &input.guard.windows) {
                let declared = &self.dock.tables[vertex.table];
                let (first, end) = (from - i64::from(window.days), to - i64::from(window.days));
                let column = format!("c{}", window.column);
                let text = format!(
                    "SELECT {} FROM {} WHERE ({column} >= ?1 AND {column} < ?2) OR ({column} >= ?3 AND {column} < ?4)",
                    layout::column_list(declared),
                    layout::data_table(vertex.table)
                );
                let mut statement = self.conn.prepare_cached(&text).map_err(&sql)?;
                let mut rows = statement.query(params![date_text(first), date_text(end), first * 86_400, end * 86_400]).map_err(&sql)?;
                while let Some(row) = rows.next().map_err(&sql)? {
                    let row = super::rows::read_row(row, declared.columns.len()).map_err(&sql)?;
                    let key = key_of(declared, &row);
                    touched[vertex.table].entry(key).or_insert_with(|| Touched { before: Some(row.clone()), after: Some(row) });
                }
            }
        }
        Ok(())
    }

    /// Returns the nodes whose derivation used a touched row.
    pub(super) fn users_of(&self, touched: &[HashMap<RowKey, Touched>]) -> BTreeSet<NodeName> {
        let mut users = BTreeSet::new();
        for (table, rows) in touched.iter().enumerate() {
            for row in rows.values() {
                for image in [&row.before, &row.after].into_iter().flatten() {
                    self.nodes.users_of(self, table, image, &mut users);
                }
            }
        }
        users
    }

    /// Returns the nodes whose stream begins anew with a unit: after it, with an extract, and with it, in band.
    pub fn begun_by(&self, input: &UnitInput) -> (BTreeSet<NodeName>, BTreeSet<NodeName>) {
        let mut last: BTreeMap<&NodeName, &NodeChange> = BTreeMap::new();
        for change in &input.nodes {
            let (NodeChange::Set(Node { name, .. }) | NodeChange::Deleted(name)) = change;
            last.insert(name, change);
        }
        let (mut started, mut restarted) = (BTreeSet::new(), BTreeSet::new());
        for (name, change) in last {
            let NodeChange::Set(node) = change else { continue };
            match step_of(self.nodes.get(name), node) {
                _ if node.state != NodeState::Active => false,
                NodeStep::Start => started.insert(name.clone()),
                NodeStep::Restart => restarted.insert(name.clone()),
                NodeStep::Keys | NodeStep::Stop => false,
            };
        }
        (started, restarted)
    }

    /// Stores the record of a node that runs.
    pub(super) fn store_node(&self, node: &Node) -> Result<(), CdsError> {
        let name = &node.name;
        let record = serde_json::to_string(node).map_err(|_| CdsError::State { path: self.path.clone(), name: format!("node {name}") })?;
        self.conn
            .execute(
                "INSERT INTO node(name, record) VALUES(?1, ?2) ON CONFLICT(name) DO UPDATE SET record = excluded.record",
                [name.as_str(), &record],
            )
            .map_err(self.sql("store a node"))?;
        Ok(())
    }

    /// Returns whose part in the stream the unit changes, and how.
    pub(super) fn change_nodes(
        &self,
        input: &UnitInput,
        derived_anew: BTreeSet<NodeName>,
    ) -> Result<(BTreeMap<NodeName, NodeStep>, NodeChanges), CdsError> {
        let mut steps = BTreeMap::new();
        let mut changes = NodeChanges::default();
        let mut last: BTreeMap<&NodeName, &NodeChange> = BTreeMap::new();
        for change in &input.nodes {
            let (NodeChange::Set(Node { name, .. }) | NodeChange::Deleted(name)) = change;
            last.insert(name, change);
        }
        for (name, change) in last {
            let known = self.nodes.get(name);
            match change {
                NodeChange::Set(node) if node.state == NodeState::Active => {
                    self.store_node(node)?;
                    changes.set.insert(self.derive_node(node)?);
                    steps.insert(name.clone(), step_of(known, node));
                }
                NodeChange::Set(_) | NodeChange::Deleted(_) => {
                    self.conn.execute("DELETE FROM node WHERE name = ?1", [name.as_str()]).map_err(self.sql("delete a node"))?;
                    if known.is_some() {
                        changes.gone.insert(name.clone());
                        steps.insert(name.clone(), NodeStep::Stop);
                    }
                }
            }
        }
        for name in derived_anew {
            if defect::is_planted(Defect::StaleNodeKeys) {
                break;
            }
            if steps.contains_key(&name) {
                continue;
            }
            let Some(scope) = self.nodes.get(&name) else { continue };
            changes.set.insert(self.derive_node(&scope.node)?);
            steps.insert(name, NodeStep::Keys);
        }
        Ok((steps, changes))
    }
}

/// Returns how a running node's part in the stream changes, by what was known of it.
pub(super) fn step_of(known: Option<&NodeScope>, node: &Node) -> NodeStep {
    let was = known.map_or(Incarnation(0), |known| known.node.incarnation);
    if node.incarnation <= was {
        NodeStep::Keys
    } else if node.extracted > was && (known.is_some() || node.extracted == node.incarnation) {
        NodeStep::Start
    } else {
        NodeStep::Restart
    }
}

/// Returns a day as `YYYY-MM-DD`; days outside the calendar as the text that sorts at that end.
fn date_text(day: i64) -> String {
    let days = jiff::Span::new().try_days(day).ok();
    match days.and_then(|days| jiff::civil::date(1970, 1, 1).checked_add(days).ok()) {
        Some(date) => date.to_string(),
        None if day < 0 => String::new(),
        None => "9999-12-32".to_owned(),
    }
}
