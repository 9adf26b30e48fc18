//! The definition while it is being resolved: the plain data of `model::dock`, but with indices into the *schema*.
//!
//! Only when every problem is known and there is none, `check` maps it to the tables and columns that are captured. So each step can name
//! any table, and what the data store must hold is collected on the way (`used`).

use crate::model::dock::{DockObject, NodeAttribute, Reference, RuleKind, VisibilityRule};
use crate::model::schema::{ColumnShape, ForeignKey, Schema, TableShape, TypeClass};
use crate::model::value::Collation;
use crate::rules::problem::{At, Report, did_you_mean};
use std::collections::{BTreeMap, BTreeSet};

/// A definition that is being resolved.
#[derive(Debug)]
pub(crate) struct Draft<'s> {
    /// The server's schema.
    pub(crate) schema: &'s Schema,
    /// Objects; reference tables first.
    pub(crate) objects: Vec<DraftObject>,
    /// Node attributes, derived ones after those that they use.
    pub(crate) attributes: Vec<DraftAttribute>,
    /// Rules in the order of the definition.
    pub(crate) rules: Vec<DraftRule>,
    /// Object of each table, by schema index.
    pub(crate) object_of: BTreeMap<usize, usize>,
    /// Membership of each member table.
    pub(crate) member_of: BTreeMap<usize, Reference>,
    /// Columns that rules, keys and memberships need: (table, column).
    pub(crate) used: BTreeSet<(usize, usize)>,
    /// Columns that nodes do not get, and where the definition says so.
    pub(crate) omitted: BTreeMap<(usize, usize), At>,
    /// Objects with a rule that could not be read, so that what it would show is not known.
    pub(crate) unsure: BTreeSet<usize>,
    /// Foreign keys that may dangle: (table, columns).
    pub(crate) dangling: BTreeSet<(usize, Vec<usize>)>,
    /// Tables without triggers.
    pub(crate) by_comparison: BTreeSet<usize>,
}

/// An object that is being resolved.
#[derive(Debug)]
pub(crate) struct DraftObject {
    /// The object, indices into the schema.
    pub(crate) object: DockObject,
    /// Place of its heading.
    pub(crate) at: At,
    /// Place of its name.
    pub(crate) name_at: At,
}

/// An attribute that is being resolved.
#[derive(Debug)]
pub(crate) struct DraftAttribute {
    /// The attribute, indices into the schema.
    pub(crate) attribute: NodeAttribute,
    /// Place of its name.
    pub(crate) at: At,
    /// What its values compare as.
    pub(crate) kind: Operand,
    /// Whether a rule or another attribute uses it.
    pub(crate) used: bool,
}

/// A rule that is being resolved.
#[derive(Debug)]
pub(crate) struct DraftRule {
    /// The rule, indices into the schema.
    pub(crate) rule: VisibilityRule,
    /// Place of its string.
    pub(crate) at: At,
    /// The string as written.
    pub(crate) text: String,
    /// Columns that the predicate names, indices into the schema.
    pub(crate) predicate_columns: Vec<usize>,
}

/// One side of an equality.
#[derive(Debug, Clone)]
pub(crate) struct Operand {
    /// As messages name it.
    pub(crate) name: String,
    /// `integer`, `number`, `text` or `anything`.
    pub(crate) type_word: &'static str,
    /// Class in which it compares.
    pub(crate) class: TypeClass,
    /// Collation name, upper case; `None` where the other side's counts.
    pub(crate) collation: Option<String>,
}

impl Operand {
    /// Returns a column as one side of an equality.
    pub(crate) fn column(name: String, column: &ColumnShape) -> Operand {
        Operand { name, type_word: type_word(column), class: column.type_class(), collation: Some(column.collation.to_ascii_uppercase()) }
    }
}

/// Returns the word for a column's type.
pub(crate) fn type_word(column: &ColumnShape) -> &'static str {
    match column.type_class() {
        TypeClass::Text => "text",
        TypeClass::Any => "anything",
        TypeClass::Number if column.decl_type.to_ascii_uppercase().contains("INT") => "integer",
        TypeClass::Number => "number",
    }
}

impl<'s> Draft<'s> {
    /// Returns an empty draft over a schema.
    pub(crate) fn new(schema: &'s Schema) -> Draft<'s> {
        Draft {
            schema,
            objects: Vec::new(),
            attributes: Vec::new(),
            rules: Vec::new(),
            object_of: BTreeMap::new(),
            member_of: BTreeMap::new(),
            used: BTreeSet::new(),
            omitted: BTreeMap::new(),
            unsure: BTreeSet::new(),
            dangling: BTreeSet::new(),
            by_comparison: BTreeSet::new(),
        }
    }

    /// Returns the table at a schema index. Indices come from this schema, so it exists.
    pub(crate) fn shape(&self, table: usize) -> &'s TableShape {
        &self.schema.tables[table]
    }

    /// Returns a column of a table.
    pub(crate) fn column(&self, table: usize, column: usize) -> &'s ColumnShape {
        &self.shape(table).columns[column]
    }

    /// Returns the index of a table by name.
    pub(crate) fn table_index(&self, name: &str) -> Option<usize> {
        self.schema.tables.iter().position(|table| table.name.eq_ignore_ascii_case(name))
    }

    /// Finds a table or reports that there is none. `prefix` begins the message, e.g. `Orders.own: `.
    pub(crate) fn find_table(&self, name: &str, at: At, prefix: &str, report: &mut Report<'_>) -> Option<usize> {
        let found = self.table_index(name);
        if found.is_none() {
            if self.schema.views.iter().any(|view| view.name.eq_ignore_ascii_case(name)) {
                report.problem(
                    at,
                    format!("{prefix}{name} is a view, only tables are replicated"),
                    Some("name the tables under it".into()),
                );
            } else {
                let hint = did_you_mean(name, self.schema.tables.iter().map(|table| table.name.as_str()));
                report.problem(at, format!("{prefix}there is no table {name}"), hint);
            }
        }
        found
    }

    /// Finds a column or reports that there is none.
    pub(crate) fn find_column(&self, table: usize, name: &str, at: At, prefix: &str, report: &mut Report<'_>) -> Option<usize> {
        let shape = self.shape(table);
        let found = shape.column(name);
        if found.is_none() {
            let hint = did_you_mean(name, shape.columns.iter().map(|column| column.name.as_str()));
            report.problem(at, format!("{prefix}table {} has no column {name}", shape.name), hint);
        }
        found
    }

    /// Finds an object by name (ASCII case does not count) or reports that there is none.
    pub(crate) fn find_object(&self, name: &str, at: At, prefix: &str, report: &mut Report<'_>) -> Option<usize> {
        let found = self.objects.iter().position(|draft| draft.object.name.eq_ignore_ascii_case(name));
        if found.is_none() {
            let owner = self.table_index(name).and_then(|table| self.object_of.get(&table)).and_then(|object| self.objects.get(*object));
            let hint = match owner {
                Some(owner) => Some(format!("table {name} travels with {}", owner.object.name)),
                None => did_you_mean(name, self.objects.iter().map(|draft| draft.object.name.as_str())),
            };
            report.problem(at, format!("{prefix}there is no object {name}"), hint);
        }
        found
    }

    /// Notes that the data store must hold a column.
    pub(crate) fn use_column(&mut self, table: usize, column: usize) {
        self.used.insert((table, column));
    }

    /// Notes that the data store must hold both sides of a foreign key.
    pub(crate) fn use_reference(&mut self, reference: &Reference) {
        self.used.extend(reference.columns.iter().map(|column| (reference.table, *column)));
        self.used.extend(reference.to_columns.iter().map(|column| (reference.to_table, *column)));
    }

    /// Returns a foreign key with its target resolved; `None` if the target table or a column does not exist.
    pub(crate) fn reference(&self, table: usize, key: &ForeignKey) -> Option<Reference> {
        let to_table = self.table_index(&key.to_table)?;
        let to_columns: Option<Vec<usize>> = key.to_columns.iter().map(|name| self.shape(to_table).column(name)).collect();
        let to_columns = to_columns.filter(|columns| columns.len() == key.columns.len() && !columns.is_empty())?;
        Some(Reference { table, columns: key.columns.clone(), to_table, to_columns })
    }

    /// Returns whether nodes get all columns of a foreign key.
    pub(crate) fn is_sent(&self, table: usize, columns: &[usize]) -> bool {
        columns.iter().all(|column| !self.omitted.contains_key(&(table, *column)))
    }

    /// Returns the tables of an object, the primary one first.
    pub(crate) fn tables_of(&self, object: usize) -> Vec<usize> {
        self.objects
            .get(object)
            .map(|draft| std::iter::once(draft.object.table).chain(draft.object.members.iter().copied()).collect())
            .unwrap_or_default()
    }

    /// Returns the rules of an object.
    pub(crate) fn rules_of(&self, object: usize) -> impl Iterator<Item = &DraftRule> {
        self.rules.iter().filter(move |draft| draft.rule.object == object)
    }

    /// Returns whether every node sees every row of an object.
    pub(crate) fn is_everyones(&self, object: usize) -> bool {
        let open = self.objects.get(object).is_some_and(|draft| draft.object.window.is_none());
        open && self.rules_of(object).any(|draft| is_whole(&draft.rule) && draft.rule.kind == RuleKind::Everyone)
    }

    /// Returns `Table.column` or `Table.(a, b)`, spelt as the rule language wants it.
    pub(crate) fn spell(&self, table: usize, columns: &[usize]) -> String {
        let names: Vec<String> = columns.iter().map(|column| spell(&self.column(table, *column).name)).collect();
        match names.as_slice() {
            [single] => format!("{}.{single}", spell(&self.shape(table).name)),
            several => format!("{}.({})", spell(&self.shape(table).name), several.join(", ")),
        }
    }

    /// Reports two sides that can never be equal, or whose collations differ.
    pub(crate) fn comparable(&self, prefix: &str, left: &Operand, right: &Operand, at: At, report: &mut Report<'_>) {
        if left.class != right.class && left.class != TypeClass::Any && right.class != TypeClass::Any {
            report.problem(
                at,
                format!("{prefix}{} is {}, {} {}: they can never be equal", left.name, left.type_word, right.name, right.type_word),
                None,
            );
            return;
        }
        if left.class == TypeClass::Number || right.class == TypeClass::Number {
            return;
        }
        for side in [left, right] {
            if let Some(collation) = side.collation.as_deref().filter(|name| Collation::from_name(name).is_none()) {
                let hint = Some("BINARY, NOCASE and RTRIM can be joined by".into());
                report.problem(at, format!("{prefix}{} has the collation {collation}, which an application defined", side.name), hint);
                return;
            }
        }
        if let (Some(a), Some(b)) = (&left.collation, &right.collation)
            && a != b
        {
            let hint = Some("declare both columns with the same collation".into());
            report.problem(at, format!("{prefix}{} compares by {a}, {} by {b}", left.name, right.name), hint);
        }
    }

    /// Reports a foreign key whose two sides can never be equal.
    pub(crate) fn comparable_reference(&self, prefix: &str, reference: &Reference, at: At, report: &mut Report<'_>) {
        for (from, to) in reference.columns.iter().zip(&reference.to_columns) {
            let left = Operand::column(self.spell(reference.table, &[*from]), self.column(reference.table, *from));
            let right = Operand::column(self.spell(reference.to_table, &[*to]), self.column(reference.to_table, *to));
            self.comparable(prefix, &left, &right, at, report);
        }
    }
}

/// Returns whether a rule shows all its rows: no predicate and no window narrows it.
pub(crate) fn is_whole(rule: &VisibilityRule) -> bool {
    rule.predicate.is_none() && rule.window.is_none()
}

/// Returns a name as the rule language spells it: in double quotes if it is no plain word.
pub(crate) fn spell(name: &str) -> String {
    let plain = name.chars().next().is_some_and(|first| first.is_alphabetic() || first == '_');
    if plain && name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '$') {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Returns a string as TOML spells it.
pub(crate) fn toml_string(text: &str) -> String {
    if !text.contains(['"', '\\']) && !text.chars().any(char::is_control) {
        return format!("\"{text}\"");
    }
    if !text.contains('\'') && !text.chars().any(char::is_control) {
        return format!("'{text}'");
    }
    toml_edit::Value::from(text).to_string().trim().to_owned()
}

/// Returns a key as TOML spells it.
pub(crate) fn toml_key(name: &str) -> String {
    toml_edit::Key::new(name).display_repr().into_owned()
}
