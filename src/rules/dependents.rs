//! Which later units of a node wait for one that is held (R41): from the contents of units and the schema alone, so the answer does
//! not depend on when it is asked.
//!
//! A unit depends on a held one if it touches one of its rows or unique values, or refers to a row that it inserted. What depends on a
//! dependent follows: dependents are held too.

use crate::model::event::TableHeading;
use crate::model::keycode;
use crate::model::schema::{IndexTerm, Schema, TableShape, TermKind};
use crate::model::upload::{RowChange, UploadUnit};
use crate::model::value::{Collation, Row, Value, display_key};
use std::collections::HashMap;
use std::collections::HashSet;

/// What a unit touches, makes and refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Rows, by every key that they have in the unit, with how people call them.
    rows: HashMap<Token, String>,
    /// Unique values of which the unit names every column.
    unique: HashMap<Token, String>,
    /// Single columns of unique values, of which it may not name all.
    columns: HashSet<Token>,
    /// The same of those of which it does not.
    partial: HashMap<Token, String>,
    /// Values by which other rows may refer to rows that it inserts, or gives another key.
    made: HashMap<Token, String>,
    /// What its rows refer to.
    refers: HashSet<Token>,
}

/// A place and a value of the database, as bytes.
type Token = Vec<u8>;

fn token(table: &str, what: &str, values: &[Value]) -> Token {
    let mut token = format!("{}\0{}\0", table.to_ascii_lowercase(), what.to_ascii_lowercase()).into_bytes();
    token.extend(keycode::encode(values));
    token
}

impl Footprint {
    /// Looks at a unit. Names that the schema does not have are passed over.
    pub fn of(schema: &Schema, unit: &UploadUnit) -> Footprint {
        let mut footprint = Footprint::default();
        for (heading, change) in &unit.changes {
            if let Some(table) = schema.table(&heading.name) {
                footprint.add(schema, table, heading, change);
            }
        }
        footprint
    }

    fn add(&mut self, schema: &Schema, table: &TableShape, heading: &TableHeading, change: &RowChange) {
        let images = Images::of(table, heading, change);
        for key in [&images.before, &images.after].into_iter().flatten().filter_map(|image| image.key(table)) {
            let name = format!("{} {}", table.name, display_key(&key));
            let folded: Vec<Value> = key.iter().zip(&table.key).map(|(value, column)| fold(table, *column, value)).collect();
            self.rows.insert(token(&table.name, "", &folded), name);
        }
        for image in [&images.before, &images.after].into_iter().flatten() {
            self.add_unique(table, image);
        }
        if let Some(after) = &images.after {
            for foreign in &table.foreign_keys {
                let Some(target) = schema.table(&foreign.to_table) else { continue };
                let values = foreign.columns.iter().zip(&foreign.to_columns).map(|(column, to)| {
                    let value = after.get(*column)?;
                    (!value.is_null()).then(|| target.column(to).map_or(value.clone(), |to| fold(target, to, value)))
                });
                if let Some(values) = values.collect::<Option<Vec<Value>>>() {
                    self.refers.insert(token(&target.name, &foreign.to_columns.join(","), &values));
                }
            }
            if images.is_new_name {
                let referring = schema.tables.iter().flat_map(|other| &other.foreign_keys);
                for foreign in referring.filter(|foreign| foreign.to_table.eq_ignore_ascii_case(&table.name)) {
                    let values = foreign.to_columns.iter().map(|to| {
                        let column = table.column(to)?;
                        after.get(column).map(|value| fold(table, column, value))
                    });
                    if let Some(values) = values.collect::<Option<Vec<Value>>>() {
                        let name = format!("{} {}", table.name, display_key(&values));
                        self.made.insert(token(&table.name, &foreign.to_columns.join(","), &values), name);
                    }
                }
            }
        }
    }

    fn add_unique(&mut self, table: &TableShape, image: &Image) {
        for index in &table.unique_indexes {
            let columns: Vec<(usize, Collation)> = index.terms.iter().filter_map(column_of).collect();
            if columns.iter().any(|(column, _)| image.get(*column).is_some_and(Value::is_null)) {
                // Nothing is equal to it.
                continue;
            }
            let values: Vec<Option<Value>> =
                columns.iter().map(|(column, collation)| image.get(*column).map(|value| value.fold(*collation))).collect();
            let named: Vec<(usize, &Value)> =
                values.iter().enumerate().filter_map(|(place, value)| Some((place, value.as_ref()?))).collect();
            // An index over expressions, or a partial one, may hold less than its columns say: waiting once too often harms nobody.
            let is_whole = named.len() == index.terms.len() && !named.is_empty();
            let name = |value: &Value| format!("the value {value} of {}", index.name);
            for (place, value) in &named {
                let token = token(&table.name, &format!("{} {place}", index.name), std::slice::from_ref(*value));
                if !is_whole {
                    self.partial.insert(token.clone(), name(value));
                }
                self.columns.insert(token);
            }
            if is_whole {
                let whole: Vec<Value> = named.iter().map(|(_, value)| (*value).clone()).collect();
                self.unique.insert(token(&table.name, &index.name, &whole), format!("the value {} of {}", display_key(&whole), index.name));
            }
        }
    }

    /// Returns what of a held unit this later one touches or refers to, for people; `None` if it does not depend on it.
    pub fn depends_on(&self, held: &Footprint) -> Option<String> {
        let touches = |ours: &HashMap<Token, String>, theirs: &HashMap<Token, String>| {
            // The smaller one is gone through.
            let (small, large) = if ours.len() <= theirs.len() { (ours, theirs) } else { (theirs, ours) };
            small.iter().filter(|(token, _)| large.contains_key(*token)).map(|(_, name)| format!("it touches {name} too")).min()
        };
        let partly = |part: &HashMap<Token, String>, columns: &HashSet<Token>| {
            part.iter().filter(|(token, _)| columns.contains(*token)).map(|(_, name)| format!("it may touch {name} too")).min()
        };
        let refers = || {
            let made = held.made.iter().filter(|(token, _)| self.refers.contains(*token));
            made.map(|(_, name)| format!("it refers to {name}")).min()
        };
        touches(&self.rows, &held.rows)
            .or_else(refers)
            .or_else(|| touches(&self.unique, &held.unique))
            .or_else(|| partly(&self.partial, &held.columns))
            .or_else(|| partly(&held.partial, &self.columns))
    }
}

fn column_of(term: &IndexTerm) -> Option<(usize, Collation)> {
    match term.what {
        TermKind::Column(column) => Some((column, Collation::from_name(&term.collation).unwrap_or_default())),
        TermKind::Expression(_) => None,
    }
}

fn fold(table: &TableShape, column: usize, value: &Value) -> Value {
    value.fold(table.columns.get(column).map(|column| column.collation()).unwrap_or_default())
}

/// What is known of a row at one time, by the table's columns.
struct Image(Vec<Option<Value>>);

impl Image {
    fn get(&self, column: usize) -> Option<&Value> {
        self.0.get(column)?.as_ref()
    }

    fn set(&mut self, column: Option<usize>, value: &Value) {
        if let Some(slot) = column.and_then(|column| self.0.get_mut(column)) {
            *slot = Some(value.clone());
        }
    }

    fn key(&self, table: &TableShape) -> Option<Vec<Value>> {
        table.key.iter().map(|column| self.get(*column).cloned()).collect()
    }
}

/// A change as images.
struct Images {
    before: Option<Image>,
    after: Option<Image>,
    /// Whether other rows may refer to it by a value that it did not have.
    is_new_name: bool,
}

impl Images {
    fn of(table: &TableShape, heading: &TableHeading, change: &RowChange) -> Images {
        let columns: Vec<Option<usize>> = heading.columns.iter().map(|name| table.column(name)).collect();
        let column = |place: u16| columns.get(usize::from(place)).copied().flatten();
        let empty = || Image(vec![None; table.columns.len()]);
        let whole = |row: &Row| {
            let mut image = empty();
            columns.iter().zip(row).for_each(|(column, value)| image.set(*column, value));
            image
        };
        match change {
            RowChange::Insert { row } => Images { before: None, after: Some(whole(row)), is_new_name: true },
            RowChange::Delete { before, .. } => Images { before: Some(whole(before)), after: None, is_new_name: false },
            RowChange::Update { key, fields, whole: row } => {
                let (mut before, mut after) = (empty(), row.as_ref().map_or_else(empty, whole));
                for (place, value) in heading.key.iter().zip(key) {
                    before.set(column(*place), value);
                    if row.is_none() {
                        after.set(column(*place), value);
                    }
                }
                for field in fields {
                    before.set(column(field.column), &field.before);
                    after.set(column(field.column), &field.after);
                }
                Images { before: Some(before), after: Some(after), is_new_name: true }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{Revision, TxnId, UnitNo};
    use crate::model::schema::{ColumnShape, ForeignKey, UniqueIndex};
    use crate::model::upload::{FieldChange, UploadHead};
    use std::sync::Arc;

    /// `parent(id, name UNIQUE NOCASE)` and `child(id, parent -> parent.id, a, b, UNIQUE(a, b))`.
    fn schema() -> Schema {
        let column = |name: &str| ColumnShape {
            name: name.into(),
            decl_type: String::new(),
            not_null: false,
            has_default: false,
            generated: false,
            collation: "BINARY".into(),
        };
        let table = |name: &str, columns: &[&str]| TableShape {
            name: name.into(),
            columns: columns.iter().map(|name| column(name)).collect(),
            key: vec![0],
            key_is_rowid: true,
            without_rowid: false,
            strict: false,
            foreign_keys: Vec::new(),
            unique_indexes: Vec::new(),
            sql: String::new(),
            indexes: Vec::new(),
            triggers: Vec::new(),
        };
        let unique = |name: &str, columns: &[usize], collation: &str| UniqueIndex {
            name: name.into(),
            terms: columns.iter().map(|column| IndexTerm { what: TermKind::Column(*column), collation: collation.into() }).collect(),
            partial: None,
            primary: false,
        };
        let mut parent = table("parent", &["id", "name"]);
        parent.unique_indexes.push(unique("by_name", &[1], "NOCASE"));
        let mut child = table("child", &["id", "parent", "a", "b"]);
        child.unique_indexes.push(unique("by_ab", &[2, 3], "BINARY"));
        child.foreign_keys.push(ForeignKey {
            columns: vec![1],
            to_table: "Parent".into(),
            to_columns: vec!["id".into()],
            on_delete: "NO ACTION".into(),
            on_update: "NO ACTION".into(),
        });
        Schema { tables: vec![child, parent], views: Vec::new() }
    }

    fn unit(changes: Vec<(&str, RowChange)>) -> Footprint {
        let heading = |name: &str| {
            let schema = schema();
            let columns = schema.table(name).unwrap().columns.iter().map(|column| column.name.clone()).collect();
            Arc::new(TableHeading { name: name.into(), columns, key: vec![0] })
        };
        let head = UploadHead {
            number: UnitNo(1),
            applied: TxnId(0),
            revision: Revision(1),
            cut_at_micros: 0,
            label: None,
            hidden: Vec::new(),
            changes: changes.len() as u64,
        };
        let changes = changes.into_iter().map(|(table, change)| (heading(table), change)).collect();
        Footprint::of(&schema(), &UploadUnit { head, changes })
    }

    fn insert(values: &[Value]) -> RowChange {
        RowChange::Insert { row: values.to_vec() }
    }

    fn update(key: i64, fields: &[(u16, Value, Value)]) -> RowChange {
        let field = |(column, before, after): &(u16, Value, Value)| FieldChange {
            column: *column,
            before: before.clone(),
            base: before.clone(),
            after: after.clone(),
        };
        RowChange::Update { key: vec![key.into()], fields: fields.iter().map(field).collect(), whole: None }
    }

    #[test]
    fn r41_later_units_depend_by_row_unique_value_and_reference_and_by_nothing_else() {
        let int = Value::Integer;
        let held = unit(vec![
            ("parent", insert(&[int(1), "Anna".into()])),
            ("child", update(9, &[(2, int(1), int(2))])),
            ("child", RowChange::Delete { key: vec![int(7)], before: vec![int(7), int(1), int(5), int(6)], base: None }),
        ]);
        let depends = |table: &str, change: RowChange| unit(vec![(table, change)]).depends_on(&held);
        assert_eq!(depends("parent", update(1, &[])).as_deref(), Some("it touches parent 1 too"));
        assert_eq!(depends("parent", insert(&[int(2), "ANNA".into()])).as_deref(), Some("it touches the value 'anna' of by_name too"));
        assert_eq!(depends("child", insert(&[int(3), int(1), Value::Null, Value::Null])).as_deref(), Some("it refers to parent 1"));
        assert!(depends("child", update(4, &[(1, int(5), int(1))])).is_some());
        // The deleted row's place, and its unique value, are free only when that is merged.
        assert!(depends("child", insert(&[int(7), Value::Null, Value::Null, Value::Null])).is_some());
        assert!(depends("child", insert(&[int(8), Value::Null, int(5), int(6)])).is_some());
        // Of the update of row 9 only one column of the pair is known: it may be.
        assert_eq!(
            depends("child", insert(&[int(8), Value::Null, int(2), int(6)])).as_deref(),
            Some("it may touch the value 2 of by_ab too")
        );
        assert_eq!(depends("child", insert(&[int(8), Value::Null, int(5), int(7)])), None);
        // A row that refers to the same parent is not the parent; a pair with NULL is equal to nothing.
        let of_same_parent = unit(vec![("child", insert(&[int(5), int(44), Value::Null, int(6)]))]);
        assert_eq!(unit(vec![("child", insert(&[int(6), int(44), Value::Null, int(6)]))]).depends_on(&of_same_parent), None);
        assert_eq!(depends("parent", insert(&[int(2), "Bert".into()])), None);
        assert_eq!(depends("child", update(10, &[(1, int(5), int(6))])), None);
    }

    #[test]
    fn r41_a_key_that_changed_counts_under_both_names() {
        let int = Value::Integer;
        let held = unit(vec![("parent", update(1, &[(0, int(1), int(2))]))]);
        for key in [1, 2] {
            assert!(unit(vec![("parent", update(key, &[]))]).depends_on(&held).is_some(), "{key}");
        }
        assert!(unit(vec![("child", insert(&[int(3), int(2), Value::Null, Value::Null]))]).depends_on(&held).is_some());
        assert!(unit(vec![("child", insert(&[int(3), int(3), Value::Null, Value::Null]))]).depends_on(&held).is_none());
    }
}
