//! A definition after `check`: every name resolved to a table and column, ready to be compiled into the scope graph.
//!
//! The text of the definition language is `rules::language`; this is what it means.

use crate::model::merge_rules::MergeRules;
use crate::model::value::{Collation, Value};
use serde::{Deserialize, Serialize};

/// Index of a table in [`Dock::tables`].
pub type TableIndex = usize;
/// Index of a column in [`DockTable::columns`].
pub type ColumnIndex = usize;

/// A resolved definition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dock {
    /// Every table that is replicated or that a rule passes through, sorted by name. The consolidated data store holds these (R36).
    pub tables: Vec<DockTable>,
    /// Dock objects, in the order of the definition; `reference` tables are objects of their own, visible to everyone.
    pub objects: Vec<DockObject>,
    /// Every visibility rule, in the order of the definition.
    pub rules: Vec<VisibilityRule>,
    /// What `[node]` declares, derived attributes after those that they use.
    pub attributes: Vec<NodeAttribute>,
    /// Routing models by name. A node without a model has every rule.
    pub models: Vec<RoutingModel>,
}

impl Dock {
    /// Returns the index of the table of that name (ASCII case does not count).
    pub fn table(&self, name: &str) -> Option<TableIndex> {
        self.tables.iter().position(|table| table.name.eq_ignore_ascii_case(name))
    }

    /// Returns the index of the node attribute of that name.
    pub fn attribute(&self, name: &str) -> Option<usize> {
        self.attributes.iter().position(|attribute| attribute.name == name)
    }

    /// Returns whether a node of that model has that rule. `everyone` and `referenced` rules hold beside `only`;
    /// `without` can take out any rule (R8). A model that the definition does not have has no rule at all: it is not known what it
    /// would have taken out (I7).
    pub fn model_has_rule(&self, model: Option<&str>, rule: usize) -> bool {
        let Some(rule) = self.rules.get(rule) else { return false };
        let Some(name) = model else { return true };
        match self.models.iter().find(|model| model.name == name) {
            None => false,
            Some(model) => {
                let listed = |list: &[String]| list.iter().any(|pattern| pattern_matches(pattern, &rule.name));
                let kept = match &model.only {
                    None => true,
                    Some(only) => !matches!(rule.kind, RuleKind::Path(_)) || listed(only),
                };
                kept && !listed(&model.without)
            }
        }
    }
}

/// Returns whether a rule name such as `account.team` fits a pattern such as `*.team`, `account.*` or itself.
pub fn pattern_matches(pattern: &str, name: &str) -> bool {
    match (pattern.split_once('.'), name.rsplit_once('.')) {
        (Some((object, rule)), Some((of_object, of_rule))) => (object == "*" || object == of_object) && (rule == "*" || rule == of_rule),
        _ => pattern == name,
    }
}

/// A table of the consolidated data store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DockTable {
    /// Name as declared on the server.
    pub name: String,
    /// Captured columns: those that are sent and those that a rule uses.
    pub columns: Vec<DockColumn>,
    /// Primary key, indices into `columns`. Key columns are always captured and sent.
    pub key: Vec<ColumnIndex>,
    /// Whether the key is the rowid, so an integer.
    pub key_is_rowid: bool,
    /// The dock object that the table belongs to; `None` for a table that only rules use, which no node gets.
    pub object: Option<usize>,
    /// For a member table: the foreign key by which it travels with its parent.
    pub member_of: Option<Reference>,
    /// Foreign keys that may point at a row that the node does not have (`dangling`), as column lists.
    pub dangling: Vec<Vec<ColumnIndex>>,
    /// Whether it has no triggers: what changed in it is found by comparing it with the data store, on a schedule.
    #[serde(default)]
    pub by_comparison: bool,
    /// How changes of nodes are brought together with the server's.
    #[serde(default)]
    pub merge: MergeRules,
}

impl DockTable {
    /// Returns the index of the column of that name (ASCII case does not count).
    pub fn column(&self, name: &str) -> Option<ColumnIndex> {
        self.columns.iter().position(|column| column.name.eq_ignore_ascii_case(name))
    }
}

/// A captured column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DockColumn {
    /// Name as declared on the server.
    pub name: String,
    /// Whether nodes get it. An omitted column that a rule uses is captured but never leaves the server.
    pub sent: bool,
    /// Collation by which it is joined.
    pub collation: Collation,
}

/// A foreign key between two tables of the data store; `columns` and `to_columns` pair up.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reference {
    /// The referring table.
    pub table: TableIndex,
    /// Referring columns.
    pub columns: Vec<ColumnIndex>,
    /// The table referred to.
    pub to_table: TableIndex,
    /// Columns referred to.
    pub to_columns: Vec<ColumnIndex>,
}

/// A dock object: a primary table and the member tables that travel with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DockObject {
    /// Name: the primary table's, unless the definition says `table = ..`.
    pub name: String,
    /// The primary table.
    pub table: TableIndex,
    /// Member tables; each table's `member_of` names its parent, the primary table or an earlier member.
    pub members: Vec<TableIndex>,
    /// Which way its rows travel.
    pub direction: Direction,
    /// Whether a node may change rows that it sees only because something refers to them.
    pub writable: bool,
    /// Whether a node may write a row that it will then no longer see.
    pub give_away: bool,
    /// Time window of the whole object, on the primary table.
    pub window: Option<Window>,
}

/// Which way the rows of an object travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum Direction {
    /// Both ways.
    #[default]
    TwoWay,
    /// From the server to nodes only.
    Download,
    /// From nodes to the server only; the rows stay on the node that wrote them.
    Upload,
}

impl Direction {
    /// Returns the word for it in definitions and tables.
    pub fn name(self) -> &'static str {
        match self {
            Direction::TwoWay => "two-way",
            Direction::Download => "download",
            Direction::Upload => "upload",
        }
    }

    /// Returns the direction of that word.
    pub fn from_name(name: &str) -> Option<Direction> {
        [Direction::TwoWay, Direction::Download, Direction::Upload].into_iter().find(|direction| direction.name() == name)
    }
}

/// A visibility rule of an object, on its primary table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VisibilityRule {
    /// `Object.rule`, e.g. `Orders.own`; an object with a single unnamed rule (`visible = '..'`) has the name `Object.visible`.
    pub name: String,
    /// Index of the object.
    pub object: usize,
    /// What makes a row visible.
    pub kind: RuleKind,
    /// Row predicate: SQL over the captured columns of the primary table.
    pub predicate: Option<Predicate>,
    /// Time window of this rule alone.
    pub window: Option<Window>,
}

/// What makes a row visible.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RuleKind {
    /// Every node sees it.
    Everyone,
    /// No node sees it.
    Nobody,
    /// Its keys come along a chain of equi-joins.
    Path(RulePath),
    /// Some visible row refers to it, by one of these foreign keys.
    Referenced(Vec<Reference>),
}

/// `T.col -> U(col, c = literal).col = node.NAME`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RulePath {
    /// Columns of the primary table where the chain starts. Without hops: the one column compared with the node's values.
    pub start: Vec<ColumnIndex>,
    /// Joins, in reading order.
    pub hops: Vec<Hop>,
    /// Index of the node attribute on the right side.
    pub attribute: usize,
}

/// One join of a chain: rows of `table` whose `join` columns equal the columns to the left, and that fit the filters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hop {
    /// The table joined.
    pub table: TableIndex,
    /// Its columns that must equal the values from the left.
    pub join: Vec<ColumnIndex>,
    /// `column = literal`, compared after folding by the column's collation.
    pub filters: Vec<(ColumnIndex, Value)>,
    /// Columns that go on to the right; the last hop's single column is compared with the node's values.
    pub out: Vec<ColumnIndex>,
}

/// A row predicate, as SQL text over column names of one table. See `rules::predicate` for the allowed subset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predicate {
    /// The SQL expression.
    pub sql: String,
    /// Captured columns that it names, in the order in which they are bound.
    pub columns: Vec<ColumnIndex>,
}

/// `column within N days`: the row is in while the column's date is not older than that; NULL and unreadable dates stay in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The date column of the primary table.
    pub column: ColumnIndex,
    /// Length in days.
    pub days: u32,
}

/// A name that `[node]` declares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeAttribute {
    /// Name, as in `node.NAME`.
    pub name: String,
    /// Where its values come from.
    pub source: AttributeSource,
}

/// Where the values of a node attribute come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AttributeSource {
    /// Set by the administrator.
    Given {
        /// Type of its values.
        kind: AttributeType,
        /// Table and column in which each value must exist, e.g. `Employees.EmployeeID`.
        must_exist: Option<(TableIndex, ColumnIndex)>,
        /// Whether a node may have several values.
        many: bool,
    },
    /// Derived along a chain that starts at another attribute.
    Derived {
        /// Index of that attribute.
        from: usize,
        /// Joins, in reading order; every hop has one `join` and one `out` column.
        hops: Vec<NodeHop>,
    },
}

/// One join on the node side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeHop {
    /// The join.
    pub hop: Hop,
    /// `->*`: repeated until nothing new is found, the start included.
    pub recursive: bool,
}

/// Type of an attribute's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttributeType {
    /// A whole number.
    Integer,
    /// A text.
    Text,
}

/// A named choice of rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutingModel {
    /// Name, as in `node set NODE --model NAME`.
    pub name: String,
    /// If given: of the path rules only those that fit one of these patterns hold.
    pub only: Option<Vec<String>>,
    /// Rules that fit one of these patterns do not hold.
    pub without: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_an_object_or_a_rule() {
        assert!(pattern_matches("*.manager", "account.manager"));
        assert!(pattern_matches("account.*", "account.manager"));
        assert!(pattern_matches("account.manager", "account.manager"));
        assert!(!pattern_matches("*.team", "account.manager"));
        assert!(!pattern_matches("contact.*", "account.manager"));
    }
}
