//! The shape of a database's tables as its own catalogue tells it.

use crate::model::value::{Collation, Value};
use serde::{Deserialize, Serialize};

/// Every ordinary table of a database; our own `dock_*` tables and SQLite's are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// Tables, sorted by name.
    pub tables: Vec<TableShape>,
    /// Views, sorted by name; an extract takes those whose tables are all there.
    pub views: Vec<ViewShape>,
}

impl Schema {
    /// Returns the table of that name. SQLite's names know no (ASCII) case.
    pub fn table(&self, name: &str) -> Option<&TableShape> {
        self.tables.iter().find(|table| table.name.eq_ignore_ascii_case(name))
    }
}

/// A view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewShape {
    /// Name as declared.
    pub name: String,
    /// `CREATE VIEW` text.
    pub sql: String,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableShape {
    /// Name as declared.
    pub name: String,
    /// Columns in declared order, generated ones included, hidden ones of virtual tables not.
    pub columns: Vec<ColumnShape>,
    /// Indices into `columns` of the declared primary key, in key order; empty = none, then rows cannot be told apart.
    pub key: Vec<usize>,
    /// Whether the key is the rowid (`INTEGER PRIMARY KEY`).
    pub key_is_rowid: bool,
    /// `WITHOUT ROWID`.
    pub without_rowid: bool,
    /// `STRICT`.
    pub strict: bool,
    /// Foreign keys in declared order.
    pub foreign_keys: Vec<ForeignKey>,
    /// Unique indexes and constraints, the primary key's included unless it is the rowid.
    pub unique_indexes: Vec<UniqueIndex>,
    /// `CREATE TABLE` text as stored.
    pub sql: String,
    /// `CREATE INDEX` texts of indexes that were created by a statement of their own: (name, text).
    pub indexes: Vec<(String, String)>,
    /// Triggers of the user on this table (ours are left out): (name, text).
    pub triggers: Vec<(String, String)>,
}

impl TableShape {
    /// Returns the index of the column of that name (ASCII case does not count).
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name.eq_ignore_ascii_case(name))
    }
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnShape {
    /// Name as declared.
    pub name: String,
    /// Declared type, possibly empty.
    pub decl_type: String,
    /// Declared NOT NULL (also true for the rowid key and for key columns of WITHOUT ROWID and STRICT tables, where SQLite enforces it).
    pub not_null: bool,
    /// Has a DEFAULT clause.
    pub has_default: bool,
    /// Generated (VIRTUAL or STORED): never written, computed at the node.
    pub generated: bool,
    /// Collation name of the column, upper case.
    pub collation: String,
}

impl ColumnShape {
    /// Returns the class in which values of this column compare.
    pub fn type_class(&self) -> TypeClass {
        TypeClass::of_declared(&self.decl_type)
    }

    /// Returns a number as this column stores it (SQLite's datatype3, 3): whole ones as integers, all of them as reals, or as they are. Text and
    /// bytes come back as they are.
    pub fn as_stored(&self, value: Value) -> Value {
        let upper = self.decl_type.to_ascii_uppercase();
        let has = |part: &str| upper.contains(part);
        let is_real = !has("INT") && ["REAL", "FLOA", "DOUB"].into_iter().any(has);
        match (self.type_class(), value) {
            (TypeClass::Number, Value::Integer(number)) if is_real => Value::Real(number as f64),
            (TypeClass::Number, Value::Real(number)) if !is_real && is_whole(number) => Value::Integer(number as i64),
            (_, value) => value,
        }
    }

    /// Returns the column's collation, BINARY if it is one that an application defined (`check` refuses those in keys).
    pub fn collation(&self) -> Collation {
        Collation::from_name(&self.collation).unwrap_or_default()
    }
}

/// Whether a real is an integer of 64 bits, strictly between the least and the greatest one, as SQLite decides it.
fn is_whole(number: f64) -> bool {
    number.fract() == 0.0 && number > i64::MIN as f64 && number < i64::MAX as f64
}

/// Class of a declared type, by SQLite's affinity rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TypeClass {
    /// INTEGER, REAL and NUMERIC affinity: numbers.
    Number,
    /// TEXT affinity.
    Text,
    /// BLOB affinity or no declared type: anything.
    Any,
}

impl TypeClass {
    /// Returns the class of a declared type by SQLite's own rules (datatype3, 3.1).
    pub fn of_declared(declared: &str) -> TypeClass {
        let upper = declared.to_ascii_uppercase();
        let has = |part: &str| upper.contains(part);
        if has("INT") {
            TypeClass::Number
        } else if has("CHAR") || has("CLOB") || has("TEXT") {
            TypeClass::Text
        } else if has("BLOB") || upper.is_empty() || upper == "ANY" {
            TypeClass::Any
        } else {
            TypeClass::Number
        }
    }
}

/// A foreign key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignKey {
    /// Referring columns, indices into the table's `columns`.
    pub columns: Vec<usize>,
    /// Name of the table referred to, as written.
    pub to_table: String,
    /// Names of the columns referred to; the target's primary key where none were written.
    pub to_columns: Vec<String>,
    /// ON DELETE action as SQLite spells it, e.g. `CASCADE`, `NO ACTION`.
    pub on_delete: String,
    /// ON UPDATE action.
    pub on_update: String,
}

/// A unique index or constraint, for REPLACE hints (R2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UniqueIndex {
    /// Name of the index.
    pub name: String,
    /// Indexed terms in order.
    pub terms: Vec<IndexTerm>,
    /// Text of the WHERE clause of a partial index.
    pub partial: Option<String>,
    /// Whether this is the index of the primary key.
    pub primary: bool,
}

/// One term of an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexTerm {
    /// The column, or the text of an expression.
    pub what: TermKind,
    /// Collation name.
    pub collation: String,
}

/// What an index term is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TermKind {
    /// A column, by index into the table's `columns`.
    Column(usize),
    /// An expression over the row, as text.
    Expression(String),
}
