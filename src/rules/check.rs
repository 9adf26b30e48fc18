//! `check`: a definition against a schema, all problems at once, resolved into a [`Dock`] when there is none.
//!
//! Pure: the schema and the judge of predicates are handed in. The draft is resolved step by step (objects, columns, node attributes, rules,
//! closure, models), then mapped from the schema's tables and columns to those that are captured.

use crate::model::dock::{
    AttributeSource, ColumnIndex, Dock, DockColumn, DockObject, DockTable, Hop, NodeAttribute, NodeHop, Predicate, Reference, RuleKind,
    RulePath, TableIndex, VisibilityRule, Window,
};
use crate::model::merge_rules::{KeySource, MergeRules, OpenReference};
use crate::model::schema::Schema;
use crate::rules::definition::{ConflictRule, Definition, Settings};
use crate::rules::draft::{Draft, DraftRule};
use crate::rules::problem::{Problem, Report, SourceFile};
use crate::rules::{advice, closure, nodes, objects, reader, tables, visibility};
use std::collections::{BTreeMap, BTreeSet};

/// What `check` found.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Settings of the server.
    pub settings: Settings,
    /// The resolved definition; present iff there is no problem.
    pub dock: Option<Dock>,
    /// Conflict policies, outermost first: the last one that fits a column holds.
    pub conflicts: Vec<ConflictRule>,
    /// `keys` of tables: (table, source).
    pub keys: Vec<(String, KeySource)>,
    /// What must be put right, in the order of the files.
    pub problems: Vec<Problem>,
    /// What should be looked at.
    pub warnings: Vec<Problem>,
    /// All files joined: what `deploy` stores. [`split`] takes it apart again.
    pub text: String,
}

/// Why a predicate is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PredicateError {
    /// Byte offset within the expression; 0 where unknown.
    pub offset: usize,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

/// Judges `where` expressions. Implemented over SQLite in `store::predicate`, since that is what evaluates them.
pub trait PredicateCheck {
    /// Checks an expression over a row with these columns. Returns the indices of the columns that it names, ascending.
    ///
    /// # Errors
    /// The first thing in the expression that is not allowed, with its place.
    fn check(&self, sql: &str, columns: &[&str]) -> Result<Vec<usize>, PredicateError>;
}

/// Checks a definition. The first file is the main one. Never fails: what is wrong is in `problems`.
pub fn check(files: &[SourceFile], schema: &Schema, predicates: &dyn PredicateCheck) -> Checked {
    let mut report = Report::new(files);
    let definition = reader::read(files, &mut report);
    let (dock, options) = resolve(&definition, schema, predicates, &mut report);
    let (problems, warnings) = report.finish();
    Checked {
        settings: definition.settings,
        dock: dock.filter(|_| problems.is_empty()),
        conflicts: options.conflicts,
        keys: options.keys,
        problems,
        warnings,
        text: join(files),
    }
}

/// First words of the line that stands before each file in a joined text.
const FILE_MARK: &str = "#: file ";

/// Joins the files of a definition into the one text that `deploy` stores: before each file a line with its length and name.
pub fn join(files: &[SourceFile]) -> String {
    files.iter().map(|file| format!("{FILE_MARK}{} {}\n{}\n", file.text.len(), file.name.replace(['\n', '\r'], " "), file.text)).collect()
}

/// Takes a joined text apart. A text without marks is one file, `dockmaster.toml`.
pub fn split(text: &str) -> Vec<SourceFile> {
    let mut files = Vec::new();
    let mut rest = text;
    while let Some((mark, body)) = rest.strip_prefix(FILE_MARK).and_then(|rest| rest.split_once('\n')) {
        let Some((length, name)) = mark.split_once(' ') else { break };
        let Some((text, after)) = length.parse().ok().and_then(|length| body.split_at_checked(length)) else { break };
        files.push(SourceFile { name: name.to_owned(), text: text.to_owned() });
        rest = after.strip_prefix('\n').unwrap_or(after);
    }
    if files.is_empty() || !rest.is_empty() {
        return vec![SourceFile { name: "dockmaster.toml".into(), text: text.to_owned() }];
    }
    files
}

fn resolve(
    definition: &Definition,
    schema: &Schema,
    predicates: &dyn PredicateCheck,
    report: &mut Report<'_>,
) -> (Option<Dock>, tables::MergeOptions) {
    let mut draft = Draft::new(schema);
    let resolved = objects::resolve(definition, &mut draft, report);
    tables::resolve_columns(definition, &resolved, &mut draft, report);
    nodes::resolve(definition, &mut draft, report);
    for (raw, object) in definition.objects.iter().zip(&resolved) {
        if let Some(object) = object {
            visibility::resolve(raw, *object, predicates, &mut draft, report);
        }
    }
    closure::foreign_keys(&mut draft, report);
    closure::circles(&draft, report);
    let models = tables::resolve_models(&definition.models, &draft, report);
    let options = tables::resolve_merge(definition, &resolved, &draft, report);
    advice::advise(&draft, &options, report);
    if !report.is_clean() {
        return (None, options);
    }
    let mut dock = Mapping::of(&draft).dock(&draft);
    dock.models = models;
    let held: BTreeSet<String> =
        dock.tables.iter().filter(|table| table.object.is_some()).map(|table| table.name.to_ascii_lowercase()).collect();
    for table in &mut dock.tables {
        table.merge = merge_rules(&table.name, &options);
        table.merge.open_references = open_references(table, schema, &held);
    }
    (Some(dock), options)
}

/// Returns the references of a table that nodes do not declare, to tables that nodes hold.
fn open_references(table: &DockTable, schema: &Schema, held: &BTreeSet<String>) -> Vec<OpenReference> {
    let Some(shape) = schema.table(&table.name) else { return Vec::new() };
    let names =
        |columns: &[usize]| columns.iter().filter_map(|column| shape.columns.get(*column)).map(|column| column.name.clone()).collect();
    let of_dangling = |columns: &Vec<usize>| -> Vec<OpenReference> {
        let dangling: Vec<String> =
            columns.iter().filter_map(|column| table.columns.get(*column)).map(|column| column.name.clone()).collect();
        let keys = shape.foreign_keys.iter().filter(|key| {
            let columns: Vec<String> = names(&key.columns);
            columns == dangling && held.contains(&key.to_table.to_ascii_lowercase())
        });
        keys.map(|key| OpenReference { columns: dangling.clone(), table: key.to_table.clone(), referred: key.to_columns.clone() }).collect()
    };
    table.dangling.iter().flat_map(of_dangling).collect()
}

/// Returns what the definition says of one table's merge: the last rule that fits holds.
fn merge_rules(table: &str, options: &tables::MergeOptions) -> MergeRules {
    let mut rules = MergeRules::default();
    for rule in options.conflicts.iter().filter(|rule| rule.table == table) {
        match &rule.column {
            Some(column) => {
                rules.columns.insert(column.clone(), rule.policy.clone());
            }
            None => rules.policy = rule.policy.clone(),
        }
    }
    if let Some((_, source)) = options.keys.iter().rfind(|(of, _)| of == table) {
        rules.keys = *source;
    }
    if let Some((_, policy)) = options.deletes.iter().rfind(|(of, _)| of == table) {
        rules.delete = *policy;
    }
    rules.download_only = options.download_only.iter().filter(|(of, _)| of == table).map(|(_, column)| column.clone()).collect();
    rules
}

/// From the schema's tables and columns to those that are captured.
struct Mapping {
    /// Schema index of each captured table, sorted by name.
    tables: Vec<usize>,
    /// Schema indices of each captured table's columns.
    columns: Vec<Vec<usize>>,
}

impl Mapping {
    fn of(draft: &Draft<'_>) -> Mapping {
        let mut wanted: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (table, column) in &draft.used {
            wanted.entry(*table).or_default().insert(*column);
        }
        for table in draft.object_of.keys() {
            let columns = draft.shape(*table).columns.iter().enumerate();
            let sent = columns.filter(|(index, column)| !column.generated && !draft.omitted.contains_key(&(*table, *index)));
            wanted.entry(*table).or_default().extend(sent.map(|(index, _)| index));
        }
        for (table, columns) in &mut wanted {
            columns.extend(draft.shape(*table).key.iter().copied());
        }
        let mut tables: Vec<usize> = wanted.keys().copied().collect();
        tables.sort_by(|a, b| draft.shape(*a).name.cmp(&draft.shape(*b).name));
        let columns = tables.iter().map(|table| wanted.remove(table).unwrap_or_default().into_iter().collect()).collect();
        Mapping { tables, columns }
    }

    // Everything that was resolved was noted as used, so both always find their index.
    fn table(&self, table: usize) -> TableIndex {
        self.tables.iter().position(|known| *known == table).unwrap_or_default()
    }

    fn column(&self, table: usize, column: usize) -> ColumnIndex {
        let columns = self.columns.get(self.table(table)).map(Vec::as_slice).unwrap_or_default();
        columns.iter().position(|known| *known == column).unwrap_or_default()
    }

    fn list(&self, table: usize, columns: &[usize]) -> Vec<ColumnIndex> {
        columns.iter().map(|column| self.column(table, *column)).collect()
    }

    fn reference(&self, reference: &Reference) -> Reference {
        Reference {
            table: self.table(reference.table),
            columns: self.list(reference.table, &reference.columns),
            to_table: self.table(reference.to_table),
            to_columns: self.list(reference.to_table, &reference.to_columns),
        }
    }

    fn hop(&self, hop: &Hop) -> Hop {
        Hop {
            table: self.table(hop.table),
            join: self.list(hop.table, &hop.join),
            filters: hop.filters.iter().map(|(column, value)| (self.column(hop.table, *column), value.clone())).collect(),
            out: self.list(hop.table, &hop.out),
        }
    }

    fn window(&self, table: usize, window: Option<&Window>) -> Option<Window> {
        window.map(|window| Window { column: self.column(table, window.column), days: window.days })
    }

    fn dock(&self, draft: &Draft<'_>) -> Dock {
        Dock {
            tables: self.tables.iter().zip(&self.columns).map(|(table, columns)| self.dock_table(*table, columns, draft)).collect(),
            objects: draft.objects.iter().map(|owner| self.object(&owner.object)).collect(),
            rules: draft.rules.iter().map(|rule| self.rule(rule, draft)).collect(),
            attributes: draft.attributes.iter().map(|known| self.attribute(&known.attribute)).collect(),
            models: Vec::new(),
        }
    }

    fn dock_table(&self, table: usize, columns: &[usize], draft: &Draft<'_>) -> DockTable {
        let shape = draft.shape(table);
        let object = draft.object_of.get(&table).copied();
        let column = |index: &usize| {
            let column = draft.column(table, *index);
            let sent = object.is_some() && !column.generated && !draft.omitted.contains_key(&(table, *index));
            DockColumn { name: column.name.clone(), sent, collation: column.collation() }
        };
        // A generated or omitted column is captured only if a rule uses it; then the node has no such foreign key to leave open.
        let held = |keys: &[usize]| draft.is_sent(table, keys) && keys.iter().all(|key| columns.contains(key));
        let dangling = draft.dangling.iter().filter(|(of, keys)| *of == table && held(keys));
        DockTable {
            name: shape.name.clone(),
            columns: columns.iter().map(column).collect(),
            key: self.list(table, &shape.key),
            key_is_rowid: shape.key_is_rowid,
            object,
            member_of: draft.member_of.get(&table).map(|reference| self.reference(reference)),
            dangling: dangling.map(|(_, columns)| self.list(table, columns)).collect(),
            by_comparison: draft.by_comparison.contains(&table),
            merge: MergeRules::default(),
        }
    }

    fn object(&self, object: &DockObject) -> DockObject {
        DockObject {
            table: self.table(object.table),
            members: object.members.iter().map(|member| self.table(*member)).collect(),
            window: self.window(object.table, object.window.as_ref()),
            ..object.clone()
        }
    }

    fn rule(&self, rule: &DraftRule, draft: &Draft<'_>) -> VisibilityRule {
        let table = draft.objects.get(rule.rule.object).map_or(0, |owner| owner.object.table);
        let kind = match &rule.rule.kind {
            RuleKind::Everyone => RuleKind::Everyone,
            RuleKind::Nobody => RuleKind::Nobody,
            RuleKind::Referenced(by) => RuleKind::Referenced(by.iter().map(|reference| self.reference(reference)).collect()),
            RuleKind::Path(path) => RuleKind::Path(RulePath {
                start: self.list(table, &path.start),
                hops: path.hops.iter().map(|hop| self.hop(hop)).collect(),
                attribute: path.attribute,
            }),
        };
        let columns = self.list(table, &rule.predicate_columns);
        VisibilityRule {
            name: rule.rule.name.clone(),
            object: rule.rule.object,
            kind,
            predicate: rule.rule.predicate.as_ref().map(|predicate| Predicate { sql: predicate.sql.clone(), columns }),
            window: self.window(table, rule.rule.window.as_ref()),
        }
    }

    fn attribute(&self, attribute: &NodeAttribute) -> NodeAttribute {
        let source = match &attribute.source {
            AttributeSource::Given { kind, must_exist, many } => AttributeSource::Given {
                kind: *kind,
                must_exist: must_exist.map(|(table, column)| (self.table(table), self.column(table, column))),
                many: *many,
            },
            AttributeSource::Derived { from, hops } => AttributeSource::Derived {
                from: *from,
                hops: hops.iter().map(|hop| NodeHop { hop: self.hop(&hop.hop), recursive: hop.recursive }).collect(),
            },
        };
        NodeAttribute { name: attribute.name.clone(), source }
    }
}
