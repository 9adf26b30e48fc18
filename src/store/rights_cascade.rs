//! What a delete or a changed key takes along: the rows that the server's foreign keys would delete or change by themselves (R18).
//!
//! Read before anything is written. Every declared foreign key counts, also of tables that no node gets.

use crate::base::limits::RIGHTS_CASCADE_ROWS_MAX;
use crate::model::schema::{ForeignKey, Schema, TableShape};
use crate::model::value::{RowKey, Value, display_key};
use crate::store::capture::key_condition;
use crate::store::rights_rules::{RightsError, Rules, Sight, key_of};
use crate::store::sqlite::{SqlValue, quote_name, value_of};
use std::collections::{BTreeMap, HashSet};

/// What happens to a row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Fate {
    /// It goes.
    Deleted,
    /// These columns get other values.
    Changed(Vec<String>),
}

/// A row that something happens to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Struck {
    /// Lower-case name of the table.
    pub(super) table: String,
    /// Its key.
    pub(super) key: RowKey,
    /// What.
    pub(super) fate: Fate,
}

/// A row that refers to one that goes or changes.
#[derive(Debug)]
struct Child {
    key: RowKey,
    sight: Sight,
    is_writable: bool,
}

impl Child {
    /// Returns whether the node may let that happen to it.
    fn allows(&self, fate: &Fate) -> bool {
        match (self.sight, fate) {
            (Sight::Own, _) => true,
            (Sight::ReferencedOnly, Fate::Changed(_)) => self.is_writable,
            (Sight::ReferencedOnly, Fate::Deleted) | (Sight::None, _) => false,
        }
    }
}

/// Rows that the node must not touch, by table.
#[derive(Debug, Default)]
struct Barred {
    first: Option<RowKey>,
    rows: u64,
}

impl Rules<'_> {
    /// Returns why a node may not do that, for people; `None` if it sees every row that goes or changes along.
    pub(super) fn cascade(&self, schema: &Schema, root: Struck) -> Result<Option<String>, RightsError> {
        let mut barred: BTreeMap<String, Barred> = BTreeMap::new();
        let mut known = HashSet::from([root.clone()]);
        let mut waiting = vec![root];
        while let Some(struck) = waiting.pop() {
            let Some(parent) = schema.table(&struck.table) else { continue };
            for child in &schema.tables {
                for key in child.foreign_keys.iter().filter(|key| key.to_table.eq_ignore_ascii_case(&parent.name)) {
                    let Some(fate) = fate_of(child, key, &struck.fate) else { continue };
                    for found in self.children(parent, child, key, &struck.key)? {
                        let is_allowed = found.allows(&fate);
                        let of_child = Struck { table: child.name.to_ascii_lowercase(), key: found.key, fate: fate.clone() };
                        if known.contains(&of_child) {
                            continue;
                        }
                        if known.len() >= RIGHTS_CASCADE_ROWS_MAX {
                            return Ok(Some(format!("more than {RIGHTS_CASCADE_ROWS_MAX} rows would go or change along with it")));
                        }
                        if !is_allowed {
                            let entry = barred.entry(child.name.clone()).or_default();
                            entry.first.get_or_insert_with(|| of_child.key.clone());
                            entry.rows += 1;
                        }
                        known.insert(of_child.clone());
                        waiting.push(of_child);
                    }
                }
            }
        }
        let said = barred.iter().map(|(table, barred)| match &barred.first {
            Some(key) if !key.is_empty() => format!("{} of {table}, the first with key {}", counted(barred.rows), display_key(key)),
            _ => format!("{} of {table}", counted(barred.rows)),
        });
        let said = said.collect::<Vec<_>>().join("; ");
        Ok((!said.is_empty()).then(|| format!("rows that {} may not touch would go or change along with it: {said}", self.node.name)))
    }

    /// Returns the rows of a table that refer to a row by a foreign key, each with what the node may let happen to it.
    fn children(&self, parent: &TableShape, child: &TableShape, key: &ForeignKey, of: &[Value]) -> Result<Vec<Child>, RightsError> {
        let name = |shape: &TableShape, column: usize| shape.columns.get(column).map(|column| quote_name(&column.name)).unwrap_or_default();
        let declared = self.dock.table(&child.name).map(|table| (table, &self.dock.tables[table]));
        // Of a table that no definition names, the key says which row it is; without a key the row is only counted.
        let columns: Vec<String> = match declared {
            Some((_, declared)) => declared.columns.iter().map(|column| format!("c.{}", quote_name(&column.name))).collect(),
            None => child.key.iter().map(|column| format!("c.{}", name(child, *column))).collect(),
        };
        let columns = if columns.is_empty() { vec!["c.rowid".to_owned()] } else { columns };
        // The parent's column on the left: its affinity and its collation decide, as in SQLite's own foreign keys.
        let on = key.to_columns.iter().zip(&key.columns).map(|(to, from)| format!("p.{} = c.{}", quote_name(to), name(child, *from)));
        let on = on.collect::<Vec<_>>().join(" AND ");
        let condition = key_condition(parent, "p.", |place, _| format!("?{}", place + 1), "=");
        let sql = format!(
            "SELECT {} FROM main.{} AS p CROSS JOIN main.{} AS c ON {on} WHERE {condition} LIMIT {}",
            columns.join(", "),
            quote_name(&parent.name),
            quote_name(&child.name),
            RIGHTS_CASCADE_ROWS_MAX + 1
        );
        let action = format!("looking for rows of {} that go along with {} {}", child.name, parent.name, display_key(of));
        let fault = || self.database.fault(&action);
        let mut statement = self.database.connection.prepare_cached(&sql).map_err(fault())?;
        let mut rows = statement.query(rusqlite::params_from_iter(of.iter().map(SqlValue))).map_err(fault())?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(fault())? {
            let values: Vec<Value> =
                (0..columns.len()).map(|place| row.get_ref(place).map(value_of)).collect::<rusqlite::Result<_>>().map_err(fault())?;
            let Some((table, declared)) = declared else {
                found.push(Child { key: values, sight: Sight::None, is_writable: false });
                continue;
            };
            let object = declared.object.and_then(|object| self.dock.objects.get(object));
            found.push(Child {
                key: key_of(declared, &values),
                sight: self.own_or_sight(table, &values)?,
                is_writable: object.is_some_and(|object| object.writable),
            });
        }
        Ok(found)
    }
}

/// Returns what a foreign key does to a row whose parent has that fate; `None` if nothing, or if the server refuses by itself.
fn fate_of(child: &TableShape, key: &ForeignKey, of_parent: &Fate) -> Option<Fate> {
    let action = match of_parent {
        Fate::Deleted => &key.on_delete,
        Fate::Changed(columns) if key.to_columns.iter().any(|to| columns.iter().any(|column| column.eq_ignore_ascii_case(to))) => {
            &key.on_update
        }
        Fate::Changed(_) => return None,
    };
    let own = || key.columns.iter().filter_map(|column| child.columns.get(*column)).map(|column| column.name.clone()).collect();
    match action.to_ascii_uppercase().as_str() {
        "CASCADE" if *of_parent == Fate::Deleted => Some(Fate::Deleted),
        "CASCADE" | "SET NULL" | "SET DEFAULT" => Some(Fate::Changed(own())),
        _ => None,
    }
}

fn counted(rows: u64) -> String {
    if rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") }
}
