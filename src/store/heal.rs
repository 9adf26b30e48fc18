//! Capture that was interrupted is put right by the service itself (R6): triggers that a migration tool dropped with their table,
//! that somebody removed, or that newer ones keep from firing.
//!
//! In one transaction the triggers are made again and a control asks for a comparison of the table. So whatever was written
//! before is found by comparing, and whatever is written after is in the log behind the control; nothing falls between.
//! A table that the deployed definition no longer fits is left as it is: only `deploy` can say what its nodes are to get.

use crate::model::dock::DockTable;
use crate::model::schema::{Schema, TableShape, TermKind, UniqueIndex};
use crate::rules::check::{check, split};
use crate::store::control::Control;
use crate::store::deployed::Deployed;
use crate::store::log::Marked;
use crate::store::predicate::PredicateChecker;
use crate::store::schema::{read_schema, read_shape};
use crate::store::snapshot::Snapshot;
use crate::store::sqlite::{ServerDatabase, StoreError};

/// A table that is stopped and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Healing {
    /// The table.
    pub table: String,
    /// Why it was stopped.
    pub reason: String,
    /// Why it stays so; `None` if it is captured again and is going to be compared.
    pub unfit: Option<String>,
}

impl ServerDatabase {
    /// Installs capture again where the deployed definition still fits, and asks for a comparison of those tables. `noted` are tables
    /// that the data store holds as stopped: where capture looks right they are only to be compared. A table that was stopped because
    /// of a row (`marked`) is taken back only when a person asks for it, since nothing else tells that the row is gone.
    ///
    /// # Errors
    /// Nothing is installed, a row of ours is damaged, or a statement failed. Then nothing was changed.
    pub fn heal_capture(&self, noted: &[(String, String)], marked: Marked) -> Result<Vec<Healing>, StoreError> {
        let fault = || self.fault("installing capture again");
        let transaction = self.begin_write("installing capture again")?;
        let catalogue = self.catalogue()?;
        let mut doubts: Vec<(String, String)> = catalogue.stopped_tables(marked);
        let in_doubt = doubts.len();
        let stopped = catalogue.stopped_tables(Marked::Included);
        doubts.extend(noted.iter().filter(|(table, _)| !stopped.iter().any(|(known, _)| known == table)).cloned());
        let deployed = self.deployed(self.identity()?.revision)?;
        let live = read_schema(&self.connection).map_err(fault())?;
        let mut healings = Vec::new();
        for (place, (table, reason)) in doubts.into_iter().enumerate() {
            let unfit = match &deployed {
                None => Some("the definition in force is not stored".to_owned()),
                Some(_) if place >= in_doubt => None,
                Some(deployed) => self.recapture(deployed, &live, &table)?,
            };
            if unfit.is_none() {
                self.log_control(&Control::Reconcile { tables: vec![table.clone()], reason: reason.clone() })?;
            }
            healings.push(Healing { table, reason, unfit });
        }
        if healings.iter().any(|healing| healing.unfit.is_none()) {
            transaction.commit().map_err(fault())?;
        }
        Ok(healings)
    }

    /// Captures a table again. Returns why that cannot be.
    fn recapture(&self, deployed: &Deployed, live: &Schema, table: &str) -> Result<Option<String>, StoreError> {
        let action = format!("installing triggers on {table}");
        let fault = || self.fault(&action);
        let declared = deployed.dock.table(table).and_then(|index| deployed.dock.tables.get(index));
        let (Some(declared), Some(shape)) = (declared, live.table(table)) else {
            return Ok(Some("there is no such table".to_owned()));
        };
        if let Some(reason) = misfit(deployed, declared, shape) {
            return Ok(Some(reason));
        }
        self.connection.execute_batch("SAVEPOINT recapture").map_err(fault())?;
        let done = self.target(live, live, declared).and_then(|target| self.capture_table(&target, &self.captures()?));
        match done {
            Ok(_) => self.connection.execute_batch("RELEASE recapture").map_err(fault())?,
            Err(StoreError::Table { reason, .. }) => {
                self.connection.execute_batch("ROLLBACK TO recapture; RELEASE recapture").map_err(fault())?;
                return Ok(Some(reason));
            }
            Err(error) => return Err(error),
        }
        Ok(None)
    }
}

impl Snapshot<'_> {
    /// Returns why the rows of a table are not what nodes are to get by a definition that is not in force yet; `None` if they are.
    /// It may have more than the definition knows.
    ///
    /// # Errors
    /// A statement failed.
    pub fn unfit(&self, deployed: &Deployed, declared: &DockTable) -> Result<Option<String>, StoreError> {
        let columns: Vec<String> = declared.columns.iter().map(|column| column.name.clone()).collect();
        if let Some(reason) = self.misfit(&declared.name, &columns, &declared.key)? {
            return Ok(Some(reason));
        }
        let live = read_shape(&self.database.connection, &declared.name).map_err(self.database.fault("reading the schema"))?;
        Ok(live.and_then(|live| outgrown(deployed, declared, &live)))
    }
}

/// Returns why rows of a table may not be what nodes can hold by the definition.
fn outgrown(deployed: &Deployed, declared: &DockTable, live: &TableShape) -> Option<String> {
    let was = deployed.schema.table(&declared.name)?;
    for column in &declared.columns {
        let of = |shape: &TableShape| shape.columns.get(shape.column(&column.name)?).cloned();
        let (Some(before), now) = (of(was), of(live)) else { continue };
        let name = &column.name;
        let Some(now) = now else { return Some(format!("its column `{name}` is gone")) };
        if now.decl_type != before.decl_type || now.collation != before.collation || now.generated != before.generated {
            return Some(format!("its column `{name}` was declared anew"));
        }
        if before.not_null && !now.not_null && column.sent {
            return Some(format!("its column `{name}` may be NULL now, which nodes do not allow"));
        }
    }
    // A node keeps the uniques that it was made with: one that the server gave up would be in the way of rows to come.
    if let Some(index) = was.unique_indexes.iter().find(|index| !has_unique(live, was, index)) {
        return Some(format!("its unique index `{}` is gone, which nodes still have", index.name));
    }
    None
}

/// Returns why a table does not fit the definition any more, as the server and every node understand it.
fn misfit(deployed: &Deployed, declared: &DockTable, live: &TableShape) -> Option<String> {
    if let Some(reason) = outgrown(deployed, declared, live) {
        return Some(reason);
    }
    let mut schema = deployed.schema.clone();
    for table in schema.tables.iter_mut().filter(|table| table.name.eq_ignore_ascii_case(&declared.name)) {
        table.clone_from(live);
    }
    let checked = check(&split(&deployed.text), &schema, &PredicateChecker);
    match (checked.dock, checked.problems.first()) {
        (Some(dock), _) if dock == deployed.dock => None,
        (Some(_), _) => Some("by the definition nodes would get other columns of it now".to_owned()),
        (None, problem) => Some(problem.map_or_else(|| "the definition does not fit it".to_owned(), |problem| problem.message.clone())),
    }
}

/// Returns whether a table still has a unique index, under whatever name.
fn has_unique(live: &TableShape, was: &TableShape, index: &UniqueIndex) -> bool {
    let terms = |shape: &TableShape, index: &UniqueIndex| -> Vec<(String, String)> {
        index
            .terms
            .iter()
            .map(|term| {
                let what = match &term.what {
                    TermKind::Column(position) => shape.columns.get(*position).map(|column| column.name.clone()).unwrap_or_default(),
                    TermKind::Expression(text) => format!("({text})"),
                };
                (what, term.collation.clone())
            })
            .collect()
    };
    let wanted = (terms(was, index), &index.partial);
    live.unique_indexes.iter().any(|found| (terms(live, found), &found.partial) == wanted)
}
