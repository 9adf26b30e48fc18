//! What a node may do to the server database with a unit of its changes (R18, R19, R31; T2, T12, T13).
//!
//! [`Rights::before`] is asked before the first write of a unit, [`Rights::after`] after the last, both within its transaction. A node
//! that keeps to the product never meets a refusal of the kind that alerts; what it may meet is a row that left its view while it was
//! away: a conflict, not an error. Names from the wire are looked up in the definition and then forgotten; SQL is made of the
//! definition's own names. Effects of the server's triggers are the server's business and are not judged.

use crate::base::ids::{InstallId, Revision, TxnId};
use crate::base::limits::RIGHTS_LOG_ROWS_MAX;
use crate::model::dock::{ColumnIndex, Direction, Dock, DockObject, TableIndex};
use crate::model::event::TableHeading;
use crate::model::node::Node;
use crate::model::schema::Schema;
use crate::model::upload::{RowChange, UploadUnit};
use crate::model::value::{Row, RowKey, Value, display_key};
use crate::store::rights_cascade::{Fate, Struck};
use crate::store::rights_rules::{Past, Rules, key_of};
pub use crate::store::rights_rules::{RightsError, Sight};
use crate::store::rollback::LoggedRow;
use crate::store::snapshot::Snapshot;
use crate::store::sqlite::ServerDatabase;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Longest part of a name from the wire that a reason repeats, in characters.
const NAME_SHOWN_MAX: usize = 60;

/// What a node may do with one change.
#[derive(Debug, Clone, PartialEq)]
pub enum Right {
    /// It may be executed.
    Go {
        /// The server's row before the unit: captured columns in the order of the definition's table. `None` if there is none under
        /// exactly this key.
        server: Option<Row>,
    },
    /// The row left the node's view while the change was under way: it stays as it is, the values go into the conflict list.
    OutOfView {
        /// The server's row, of which the node must not be told anything.
        server: Row,
    },
}

/// Why a unit is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Place of the change within the unit.
    pub place: usize,
    /// Why, with table and key, and what would help.
    pub reason: String,
    /// Whether no node that keeps to the rules could have sent this: an administrator is alerted.
    pub alert: bool,
}

/// The names of a change, resolved in the definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The table.
    pub table: TableIndex,
    /// Per column of the heading the column of the definition's table.
    pub columns: Vec<ColumnIndex>,
    /// Primary key in the order of the definition's table: places in the heading.
    pub key: Vec<usize>,
}

/// What rights are judged by.
#[derive(Debug, Clone, Copy)]
pub struct Basis<'a> {
    /// The definition in force, as it was resolved.
    pub dock: &'a Dock,
    /// Its number.
    pub revision: Revision,
    /// The schema of the server database now, for its foreign keys.
    pub schema: &'a Schema,
    /// Day of the time windows: the data store's.
    pub day: i64,
}

/// The rights of one node. Everything is read through the connection of the database, within whatever transaction is open there.
#[derive(Debug)]
pub struct Rights<'a> {
    basis: Basis<'a>,
    rules: Rules<'a>,
}

impl<'a> Rights<'a> {
    /// Takes a node as it is registered now. Evaluators of predicates are kept, so one of these serves many units.
    pub fn new(database: &'a ServerDatabase, basis: Basis<'a>, node: &'a Node) -> Rights<'a> {
        Rights { basis, rules: Rules::new(database, basis.dock, node, Some(basis.day)) }
    }

    /// Returns through what the node sees a row of the server database now: values of the captured columns.
    ///
    /// # Errors
    /// The rules could not be evaluated.
    pub fn sight(&self, table: TableIndex, row: &[Value]) -> Result<Sight, RightsError> {
        self.rules.sight(table, row)
    }

    /// Returns the server's row under exactly this key.
    ///
    /// # Errors
    /// A statement failed.
    pub fn server_row(&self, table: TableIndex, key: &[Value]) -> Result<Option<Row>, RightsError> {
        let declared = &self.basis.dock.tables[table];
        Ok(self.rules.row(table, key)?.filter(|row| key_of(declared, row) == key))
    }

    /// Forgets what was read. [`Rights::before`] and [`Rights::after`] begin with it.
    pub fn forget(&self) {
        self.rules.forget();
    }

    /// Judges a unit before its first write: what may be done with each change, in order.
    ///
    /// # Errors
    /// The rules could not be evaluated, or a statement failed.
    pub fn before(&self, install: InstallId, unit: &UploadUnit) -> Result<Result<Vec<Right>, Refusal>, RightsError> {
        self.forget();
        let mut rights = Vec::with_capacity(unit.changes.len());
        let mut named = HashSet::new();
        let mut memory = Memory { install, then: None };
        for (place, (heading, change)) in unit.changes.iter().enumerate() {
            let resolved = match self.resolve(heading, change) {
                Ok(resolved) => resolved,
                // A table or column that a later definition took out may still be in an honest unit that was cut before.
                Err((reason, is_forged)) => {
                    let alert = is_forged || unit.head.revision == self.basis.revision;
                    return Ok(Err(Refusal { place, reason, alert }));
                }
            };
            if let Some(column) = self.downloaded_only(&resolved, change, unit) {
                let table = &self.basis.dock.tables[resolved.table].name;
                let reason = format!("table {table}: only the server changes column {column}");
                return Ok(Err(Refusal { place, reason, alert: true }));
            }
            let key = change.key(&heading.key);
            let is_insert = matches!(change, RowChange::Insert { .. });
            if !named.insert((resolved.table, key.clone(), is_insert)) {
                let reason = format!("{}: named twice in one unit", self.row_name(resolved.table, &key));
                return Ok(Err(Refusal { place, reason, alert: true }));
            }
            match self.judge(&resolved, heading, change, unit, &mut memory)? {
                Ok(right) => rights.push(right),
                Err((reason, alert)) => {
                    return Ok(Err(Refusal { place, reason: format!("{}: {reason}", self.row_name(resolved.table, &key)), alert }));
                }
            }
        }
        Ok(Ok(rights))
    }

    /// Judges a unit after its last write. `written` names for each change the key under which its row stands now; `None` if the
    /// change deleted it or wrote nothing. `rights` is what [`Rights::before`] said. Notes whose the rows of private tables are.
    ///
    /// # Errors
    /// The rules could not be evaluated, or a statement failed.
    pub fn after(&self, unit: &UploadUnit, rights: &[Right], written: &[Option<RowKey>]) -> Result<Result<(), Refusal>, RightsError> {
        self.forget();
        for (place, (((heading, change), right), key)) in unit.changes.iter().zip(rights).zip(written).enumerate() {
            let refused = |reason, alert| Ok(Err(Refusal { place, reason, alert }));
            let resolved = match self.resolve(heading, change) {
                Ok(resolved) => resolved,
                Err((reason, _)) => return refused(reason, true),
            };
            let Some(object) = self.object(resolved.table) else { return refused(format!("{:?} is in no object", heading.name), true) };
            let Some(key) = key else {
                if matches!(change, RowChange::Delete { .. }) && self.rules.is_private(resolved.table) {
                    self.rules.end_ownership(resolved.table, &change.key(&heading.key))?;
                }
                continue;
            };
            // A trigger of the server may have taken the row away.
            let Some(row) = self.rules.row(resolved.table, key)? else { continue };
            if self.rules.is_private(resolved.table) {
                let old = change.key(&heading.key);
                let is_new = matches!(right, Right::Go { server: None }) || *key != old;
                self.rules.take_ownership(resolved.table, &row, is_new)?;
                if *key != old {
                    self.rules.end_ownership(resolved.table, &old)?;
                }
                continue;
            }
            let name = self.row_name(resolved.table, key);
            let (node, of) = (&self.rules.node.name, &object.name);
            match self.sight(resolved.table, &row)? {
                Sight::None if !object.give_away => {
                    let reason = format!(
                        "{name}: no rule would show it to {node} after this unit, and object {of} does not say give_away; `dockmaster explain` shows the rules"
                    );
                    return refused(reason, false);
                }
                Sight::ReferencedOnly if matches!(change, RowChange::Insert { .. }) && !object.writable => {
                    let reason =
                        format!("{name}: {node} would see it only since something refers to it, and object {of} does not say writable");
                    return refused(reason, false);
                }
                Sight::None | Sight::ReferencedOnly | Sight::Own => {}
            }
        }
        Ok(Ok(()))
    }

    /// Looks the names of a change up in the definition and checks its shape.
    ///
    /// # Errors
    /// Why it is refused, and whether that can only be forged.
    pub fn resolve(&self, heading: &TableHeading, change: &RowChange) -> Result<Resolved, (String, bool)> {
        let shown = shown(&heading.name);
        let lower = heading.name.to_ascii_lowercase();
        if lower.starts_with("dock_") || lower.starts_with("sqlite_") {
            return Err((format!("table {shown}: no node may write to system tables"), true));
        }
        let known = self.basis.dock.table(&heading.name);
        let Some((table, declared)) = known.map(|table| (table, &self.basis.dock.tables[table])) else {
            return Err((format!("table {shown} is not in the definition"), self.basis.schema.table(&heading.name).is_none()));
        };
        let Some(object) = self.object(table) else {
            return Err((format!("table {}: only rules use it, no node writes to it", declared.name), true));
        };
        if object.direction == Direction::Download {
            return Err((
                format!("table {}: object {} has direction download, nodes do not write to it", declared.name, object.name),
                false,
            ));
        }
        let mut columns = Vec::with_capacity(heading.columns.len());
        for name in &heading.columns {
            let Some(column) = declared.column(name).filter(|column| declared.columns.get(*column).is_some_and(|column| column.sent))
            else {
                return Err((format!("table {}: nodes have no column {}", declared.name, self::shown(name)), false));
            };
            if columns.contains(&column) {
                return Err((format!("table {}: column {} twice", declared.name, self::shown(name)), true));
            }
            columns.push(column);
        }
        let misshapen = |what: &str| (format!("table {}: {what}", declared.name), true);
        let named: Vec<Option<ColumnIndex>> = heading.key.iter().map(|place| columns.get(usize::from(*place)).copied()).collect();
        if named != declared.key.iter().copied().map(Some).collect::<Vec<_>>() {
            let names: Vec<&str> =
                declared.key.iter().filter_map(|column| declared.columns.get(*column)).map(|column| column.name.as_str()).collect();
            return Err((format!("table {}: its key is ({}), not what the heading says", declared.name, names.join(", ")), false));
        }
        let key = change.key(&heading.key);
        if key.len() != declared.key.len() || key.iter().any(Value::is_null) {
            return Err(misshapen("a key that is not complete"));
        }
        let is_row = |row: &Row| row.len() == columns.len();
        let is_whole = match change {
            RowChange::Insert { row } => is_row(row),
            RowChange::Update { whole, .. } => whole.as_ref().is_none_or(is_row),
            RowChange::Delete { before, base, .. } => is_row(before) && base.as_ref().is_none_or(is_row),
        };
        if !is_whole {
            return Err(misshapen("a row with another number of values than its heading has columns"));
        }
        if let RowChange::Update { fields, .. } = change {
            let mut seen = HashSet::new();
            for field in fields {
                if usize::from(field.column) >= columns.len() {
                    return Err(misshapen("a field of a column that its heading does not have"));
                }
                if !seen.insert(field.column) {
                    return Err(misshapen("a field twice"));
                }
                if field.after.is_null() && heading.key.contains(&field.column) {
                    return Err(misshapen("a key that becomes NULL"));
                }
            }
        }
        Ok(Resolved { table, columns, key: heading.key.iter().map(|place| usize::from(*place)).collect() })
    }

    /// Returns a changed column that nodes of the unit's definition do not send. A unit of an earlier one may have it: then it stays as
    /// the server has it.
    fn downloaded_only(&self, resolved: &Resolved, change: &RowChange, unit: &UploadUnit) -> Option<&'a str> {
        let RowChange::Update { fields, .. } = change else { return None };
        let declared = self.basis.dock.tables.get(resolved.table).filter(|_| unit.head.revision == self.basis.revision)?;
        let columns = fields.iter().filter_map(|field| declared.columns.get(*resolved.columns.get(usize::from(field.column))?));
        columns.map(|column| column.name.as_str()).find(|column| declared.merge.is_download_only(column))
    }

    fn judge(
        &self,
        resolved: &Resolved,
        heading: &TableHeading,
        change: &RowChange,
        unit: &UploadUnit,
        memory: &mut Memory,
    ) -> Result<Result<Right, (String, bool)>, RightsError> {
        let table = resolved.table;
        let Some(object) = self.object(table) else { return Ok(Err(("it is in no object".into(), true))) };
        let server = self.server_row(table, &change.key(&heading.key))?;
        let (node, of) = (&self.rules.node.name, &object.name);
        let image = image_after(self.basis.dock.tables[table].columns.len(), resolved, change, server.as_ref());
        if let Some(image) = &image
            && let Some(refused) = self.parent_is_hidden(table, image, server.as_ref(), unit, memory)?
        {
            return Ok(Err(refused));
        }
        // An inserted row is judged by its new image; a key that is taken is the Merger's business.
        let (Some(server), false) = (&server, matches!(change, RowChange::Insert { .. })) else { return Ok(Ok(Right::Go { server })) };
        match self.rules.own_or_sight(table, server)? {
            Sight::None if self.saw(table, server, unit, object, memory)? => {
                return Ok(Ok(Right::OutOfView { server: server.clone() }));
            }
            Sight::None => return Ok(Err((format!("{node} does not see it and never did"), true))),
            Sight::ReferencedOnly if matches!(change, RowChange::Delete { .. }) => {
                return Ok(Err((format!("{node} sees it only since something refers to it, and may not delete it"), false)));
            }
            Sight::ReferencedOnly if !object.writable => {
                let reason = format!("{node} sees it only since something refers to it, and object {of} does not say writable");
                return Ok(Err((reason, false)));
            }
            Sight::ReferencedOnly | Sight::Own => {}
        }
        let declared = &self.basis.dock.tables[table];
        let fate = match change {
            RowChange::Insert { .. } => None,
            RowChange::Delete { .. } => Some(Fate::Deleted),
            RowChange::Update { fields, .. } => {
                let names = fields.iter().filter_map(|field| {
                    let column = *resolved.columns.get(usize::from(field.column))?;
                    (server.get(column) != Some(&field.after)).then(|| declared.columns.get(column).map(|column| column.name.clone()))?
                });
                Some(Fate::Changed(names.collect()))
            }
        };
        if let Some(fate) = fate {
            let struck = Struck { table: declared.name.to_ascii_lowercase(), key: key_of(declared, server), fate };
            if let Some(reason) = self.rules.cascade(self.basis.schema, struck)? {
                return Ok(Err((reason, false)));
            }
        }
        Ok(Ok(Right::Go { server: Some(server.clone()) }))
    }

    /// Returns why a row may not be put below a parent that stands already: else a node could show itself any row by adding a member to
    /// it (a place in its team). A parent that the unit itself inserts is judged with the unit.
    fn parent_is_hidden(
        &self,
        table: TableIndex,
        image: &Row,
        server: Option<&Row>,
        unit: &UploadUnit,
        memory: &mut Memory,
    ) -> Result<Option<(String, bool)>, RightsError> {
        let Some(reference) = &self.basis.dock.tables[table].member_of else { return Ok(None) };
        let Some(object) = self.object(table).filter(|object| !object.give_away) else { return Ok(None) };
        let stays = |row: &Row| reference.columns.iter().all(|column| row.get(*column) == image.get(*column));
        if server.is_some_and(stays) {
            return Ok(None);
        }
        let mut hidden: Option<Row> = None;
        let mut is_seen = false;
        self.rules.each_parent(reference, image, &mut |parent| {
            is_seen = self.rules.own_or_sight(reference.to_table, parent)? != Sight::None;
            if !is_seen {
                hidden.get_or_insert_with(|| parent.clone());
            }
            Ok(!is_seen)
        })?;
        let Some(parent) = hidden.filter(|_| !is_seen) else { return Ok(None) };
        let declared = &self.basis.dock.tables[reference.to_table];
        let name = self.row_name(reference.to_table, &key_of(declared, &parent));
        let saw = self.saw(reference.to_table, &parent, unit, object, memory)?;
        Ok(Some((format!("it belongs to {name}, which {} does not see{}", self.rules.node.name, if saw { " any more" } else { "" }), !saw)))
    }

    /// Whether the node saw a row, which it does not see now, when it cut the unit: by the rows that the log tells of that time. What
    /// the log cannot tell any more counts for the node; nothing is written either way.
    fn saw(&self, table: TableIndex, row: &Row, unit: &UploadUnit, object: &DockObject, memory: &mut Memory) -> Result<bool, RightsError> {
        if self.rules.is_private(table) {
            return Ok(false);
        }
        let database = self.rules.database;
        let (begin, end) = (database.log_begin()?, database.log_end()?);
        let applied = unit.head.applied;
        if applied >= end {
            return Ok(false);
        }
        let reaches_back = begin.is_some_and(|begin| begin.0 <= applied.0 + 1) && end.0 - applied.0 <= RIGHTS_LOG_ROWS_MAX;
        if !reaches_back || unit.head.revision != self.basis.revision {
            return Ok(true);
        }
        if memory.then.is_none() {
            memory.then = Some(self.then(applied)?);
        }
        let Some(then) = memory.then.as_ref() else { return Ok(true) };
        let Some(node) = &then.node else { return Ok(false) };
        // Days that passed are not looked up: a window that held then holds here.
        let rules = Rules::new(database, self.basis.dock, node, None).in_the_past(Rc::clone(&then.rows));
        let key = key_of(&self.basis.dock.tables[table], row);
        match then.rows.get(table).and_then(|rows| rows.get(&key)) {
            // It stood as it does now; what changed is elsewhere.
            None => Ok(rules.sight(table, row)? != Sight::None),
            Some(Some(row)) => Ok(rules.sight(table, row)? != Sight::None),
            // It is younger than what the node had applied: then the node itself made it, in a unit that was merged since.
            Some(None) => Ok(object.give_away || self.rules.merged_since(memory.install, applied)?),
        }
    }

    /// Returns what changed since that place of the log.
    fn then(&self, applied: TxnId) -> Result<Then, RightsError> {
        let mut rollback = Snapshot { database: self.rules.database }.rollback_to(applied)?;
        let mut rows: Past = Vec::with_capacity(self.basis.dock.tables.len());
        for declared in &self.basis.dock.tables {
            let changed = rollback.rows.remove(&declared.name.to_ascii_lowercase()).unwrap_or_default();
            let image = |logged: LoggedRow| -> Row {
                let value = |name: &str| {
                    let place = logged.columns.iter().position(|column| column.eq_ignore_ascii_case(name))?;
                    logged.row.get(place).cloned()
                };
                declared.columns.iter().map(|column| value(&column.name).unwrap_or(Value::Null)).collect()
            };
            rows.push(changed.into_iter().map(|(key, logged)| (key, logged.map(image))).collect::<HashMap<_, _>>());
        }
        let now = self.rules.node;
        let node = rollback.nodes.remove(&now.name).unwrap_or_else(|| Some(now.clone()));
        Ok(Then { node, rows: Rc::new(rows) })
    }

    fn object(&self, table: TableIndex) -> Option<&'a DockObject> {
        let dock = self.basis.dock;
        dock.tables.get(table)?.object.and_then(|object| dock.objects.get(object))
    }

    fn row_name(&self, table: TableIndex, key: &[Value]) -> String {
        let table = self.basis.dock.tables.get(table).map_or("", |declared| declared.name.as_str());
        format!("{table} {}", display_key(key))
    }
}

/// What was looked up for a unit because one of its changes needed it.
#[derive(Debug)]
struct Memory {
    install: InstallId,
    then: Option<Then>,
}

/// The server database as the node had it when it cut the unit.
#[derive(Debug)]
struct Then {
    node: Option<Node>,
    rows: Rc<Past>,
}

/// Returns a name from the wire as a reason may repeat it.
fn shown(name: &str) -> String {
    format!("{:?}", name.chars().take(NAME_SHOWN_MAX).collect::<String>())
}

/// Returns the row after a change in the columns of the definition's table, as far as it is known; `None` if none will stand there.
fn image_after(width: usize, resolved: &Resolved, change: &RowChange, server: Option<&Row>) -> Option<Row> {
    let spread = |row: &Row| {
        let mut image = vec![Value::Null; width];
        for (column, value) in resolved.columns.iter().zip(row) {
            if let Some(slot) = image.get_mut(*column) {
                *slot = value.clone();
            }
        }
        image
    };
    match change {
        RowChange::Insert { row } => Some(spread(row)),
        RowChange::Delete { .. } => None,
        RowChange::Update { fields, whole, .. } => match server {
            None => whole.as_ref().map(spread),
            Some(server) => {
                let mut image = server.clone();
                for field in fields {
                    if let Some(slot) = resolved.columns.get(usize::from(field.column)).and_then(|column| image.get_mut(*column)) {
                        *slot = field.after.clone();
                    }
                }
                Some(image)
            }
        },
    }
}
