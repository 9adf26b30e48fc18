//! Objects, their member tables and the reference tables.

use crate::base::limits::COLUMNS_MAX;
use crate::model::dock::{Direction, DockObject, Reference, RuleKind, VisibilityRule};
use crate::model::value::Collation;
use crate::rules::definition::{Definition, RawMember, RawObject};
use crate::rules::draft::{Draft, DraftObject, DraftRule};
use crate::rules::problem::{At, Report, Text, did_you_mean};
use std::collections::BTreeMap;

/// Resolves `reference` and every `[object.X]`, without their rules. Returns the index of each `[object.X]` that was resolved.
pub(crate) fn resolve(definition: &Definition, draft: &mut Draft<'_>, report: &mut Report<'_>) -> Vec<Option<usize>> {
    for name in &definition.reference {
        reference_table(name, draft, report);
    }
    definition.objects.iter().map(|raw| object(raw, draft, report)).collect()
}

fn reference_table(name: &Text, draft: &mut Draft<'_>, report: &mut Report<'_>) {
    let Some(table) = draft.find_table(&name.value, name.at, "reference: ", report) else { return };
    let index = draft.objects.len();
    if !claim(table, index, &draft.shape(table).name.clone(), name.at, draft, report) {
        return;
    }
    let shown = draft.shape(table).name.clone();
    draft.rules.push(DraftRule {
        rule: VisibilityRule { name: format!("{shown}.visible"), object: index, kind: RuleKind::Everyone, predicate: None, window: None },
        at: name.at,
        text: "everyone".into(),
        predicate_columns: Vec::new(),
    });
    draft.objects.push(DraftObject {
        object: DockObject {
            name: shown,
            table,
            members: Vec::new(),
            direction: Direction::Download,
            writable: false,
            give_away: false,
            window: None,
        },
        at: name.at,
        name_at: name.at,
    });
}

fn object(raw: &RawObject, draft: &mut Draft<'_>, report: &mut Report<'_>) -> Option<usize> {
    let named = raw.table.as_ref().unwrap_or(&raw.name);
    let table = draft.find_table(&named.value, named.at, &format!("{}: ", raw.name.value), report)?;
    let shape = draft.shape(table);
    let name = if raw.table.is_some() { raw.name.value.clone() } else { shape.name.clone() };
    if let Some(other) = draft.objects.iter().find(|other| other.object.name.eq_ignore_ascii_case(&name)) {
        let other = other.object.name.clone();
        report.problem(raw.name.at, format!("object {other} is declared twice"), None);
        return None;
    }
    if name.contains('.') {
        report.problem(
            raw.name.at,
            format!("object {name}: a name with a dot cannot be told from a rule"),
            Some("give it another name and table = \"..\"".into()),
        );
    }
    let index = draft.objects.len();
    if !claim(table, index, &name, named.at, draft, report) {
        return None;
    }
    let direction = match raw.direction.as_ref().map(|text| (text.value.as_str(), text.at)) {
        None | Some(("two-way", _)) => Direction::TwoWay,
        Some(("download", _)) => Direction::Download,
        Some(("upload", _)) => Direction::Upload,
        Some((other, at)) => {
            let words = ["two-way", "download", "upload"];
            let hint = did_you_mean(other, words).or_else(|| Some("\"two-way\", \"download\" or \"upload\"".into()));
            report.problem(at, format!("{name}: there is no direction `{other}`"), hint);
            Direction::TwoWay
        }
    };
    draft.objects.push(DraftObject {
        object: DockObject {
            name: name.clone(),
            table,
            members: Vec::new(),
            direction,
            writable: raw.writable,
            give_away: raw.give_away,
            window: None,
        },
        at: raw.at,
        name_at: raw.name.at,
    });
    members(raw, index, &name, draft, report);
    Some(index)
}

/// Takes a table for an object, once, and looks whether its rows can be replicated at all.
fn claim(table: usize, object: usize, name: &str, at: At, draft: &mut Draft<'_>, report: &mut Report<'_>) -> bool {
    if let Some(owner) = draft.object_of.get(&table).and_then(|owner| draft.objects.get(*owner)) {
        let message = format!("table {} is in two objects, {} and {name}", draft.shape(table).name, owner.object.name);
        report.problem(at, message, Some("a table travels with one object: take it out of one of them".into()));
        return false;
    }
    draft.object_of.insert(table, object);
    capturable(table, at, draft, report);
    true
}

/// Reports a table whose rows cannot be captured: no key, a key that cannot be compared, too many columns.
pub(crate) fn capturable(table: usize, at: At, draft: &Draft<'_>, report: &mut Report<'_>) {
    let shape = draft.shape(table);
    if shape.key.is_empty() {
        let hint = Some("add one, or leave the table out".into());
        report.problem(at, format!("table {} has no primary key, its rows cannot be told apart", shape.name), hint);
        return;
    }
    for key in &shape.key {
        let column = draft.column(table, *key);
        if Collation::from_name(&column.collation).is_none() {
            let message =
                format!("key column {}.{} has the collation {}, which an application defined", shape.name, column.name, column.collation);
            report.problem(at, message, Some("BINARY, NOCASE or RTRIM can be compared on every node".into()));
        }
        if !column.not_null && !shape.key_is_rowid {
            let message = format!("key column {}.{} allows NULL: a row with a NULL key stops the table", shape.name, column.name);
            report.warning(at, message, Some("declare it NOT NULL".into()));
        }
    }
    if shape.columns.len() > COLUMNS_MAX {
        let message = format!("table {} has {} columns, at most {COLUMNS_MAX} can be logged", shape.name, shape.columns.len());
        report.problem(at, message, Some("split it, or leave the table out".into()));
    }
}

/// Places member tables under the primary table or under one another, in whatever order they are written.
fn members(raw: &RawObject, index: usize, object: &str, draft: &mut Draft<'_>, report: &mut Report<'_>) {
    let mut waiting: Vec<(&RawMember, usize)> = Vec::new();
    for member in &raw.members {
        let Some(table) = draft.find_table(&member.table.value, member.table.at, &format!("{object}: "), report) else { continue };
        if claim(table, index, object, member.table.at, draft, report) {
            waiting.push((member, table));
        }
    }
    loop {
        let before = waiting.len();
        let mut later = Vec::new();
        for (member, table) in waiting {
            let parents = draft.tables_of(index);
            // The primary table first: a line that names both its order and its delivery travels with the order.
            let found = parents.iter().map(|parent| (*parent, keys_between(table, *parent, draft))).find_map(|(parent, keys)| {
                let keys: Vec<Reference> = keys.into_iter().filter(|key| fits(member, key, draft)).collect();
                (!keys.is_empty()).then_some((parent, keys))
            });
            match found {
                None => later.push((member, table)),
                Some((parent, keys)) => place(member, table, parent, keys, index, draft, report),
            }
        }
        waiting = later;
        if waiting.is_empty() || waiting.len() == before {
            break;
        }
    }
    for (member, table) in waiting {
        let primary = draft.objects.get(index).map_or("", |draft_object| draft.shape(draft_object.object.table).name.as_str());
        let name = &draft.shape(table).name;
        let (at, message) = match member.on.first() {
            Some(on) => (on.at, format!("member {name} has no foreign key over {} to a table of {object}", written(&member.on))),
            None => (member.table.at, format!("member {name} has no foreign key to {primary} or its members")),
        };
        let keys: Vec<String> =
            draft.shape(table).foreign_keys.iter().map(|key| format!("{} -> {}", draft.spell(table, &key.columns), key.to_table)).collect();
        let hint = match keys.is_empty() {
            true => "declare one, or make it an object with a rule of its own".to_owned(),
            false => format!("its foreign keys: {}; or make it an object with a rule of its own", keys.join(", ")),
        };
        report.problem(at, message, Some(hint));
    }
}

fn written(columns: &[Text]) -> String {
    columns.iter().map(|column| column.value.as_str()).collect::<Vec<_>>().join(", ")
}

fn keys_between(table: usize, parent: usize, draft: &Draft<'_>) -> Vec<Reference> {
    let keys = draft.shape(table).foreign_keys.iter().filter_map(|key| draft.reference(table, key));
    keys.filter(|key| key.to_table == parent && parent != table).collect()
}

fn fits(member: &RawMember, key: &Reference, draft: &Draft<'_>) -> bool {
    let same = |name: &Text| key.columns.iter().any(|column| draft.column(key.table, *column).name.eq_ignore_ascii_case(&name.value));
    member.on.is_empty() || (member.on.len() == key.columns.len() && member.on.iter().all(same))
}

fn place(
    member: &RawMember,
    table: usize,
    parent: usize,
    keys: Vec<Reference>,
    object: usize,
    draft: &mut Draft<'_>,
    report: &mut Report<'_>,
) {
    let name = &draft.shape(table).name;
    if keys.len() > 1 {
        let lists: Vec<Vec<&str>> =
            keys.iter().map(|key| key.columns.iter().map(|column| draft.column(table, *column).name.as_str()).collect()).collect();
        let shown: Vec<String> = lists.iter().map(|list| list.join(" + ")).collect();
        let message =
            format!("member {name} has {} foreign keys to {} ({})", count(keys.len()), draft.shape(parent).name, shown.join(", "));
        let on = match lists.first().map(Vec::as_slice) {
            Some([single]) => format!("\"{single}\""),
            Some(several) => format!("{several:?}"),
            None => String::new(),
        };
        report.problem(member.table.at, message, Some(format!("write {{ table = \"{name}\", on = {on} }}")));
    }
    let Some(key) = keys.into_iter().next() else { return };
    let prefix = format!("member {name}: ");
    draft.comparable_reference(&prefix, &key, member.table.at, report);
    unique_target(&prefix, &key, member.table.at, draft, report);
    draft.use_reference(&key);
    draft.member_of.insert(table, key);
    if let Some(owner) = draft.objects.get_mut(object) {
        owner.object.members.push(table);
    }
}

/// Reports a foreign key whose target is not unique: SQLite refuses to write through it, and a row could have two parents.
pub(crate) fn unique_target(prefix: &str, key: &Reference, at: At, draft: &Draft<'_>, report: &mut Report<'_>) {
    let shape = draft.shape(key.to_table);
    let mut wanted = key.to_columns.clone();
    wanted.sort_unstable();
    let same = |columns: &[usize]| {
        let mut columns = columns.to_vec();
        columns.sort_unstable();
        columns == wanted
    };
    let indexed = shape.unique_indexes.iter().filter(|index| index.partial.is_none()).any(|index| {
        let columns: Option<Vec<usize>> = index
            .terms
            .iter()
            .map(|term| match term.what {
                crate::model::schema::TermKind::Column(column) => Some(column),
                crate::model::schema::TermKind::Expression(_) => None,
            })
            .collect();
        columns.is_some_and(|columns| same(&columns))
    });
    if !same(&shape.key) && !indexed {
        let message = format!(
            "{prefix}{} refers to {}, which is not unique",
            draft.spell(key.table, &key.columns),
            draft.spell(key.to_table, &key.to_columns)
        );
        report.problem(at, message, Some("make the columns referred to UNIQUE".into()));
    }
}

fn count(number: usize) -> String {
    let words: BTreeMap<usize, &str> = [(2, "two"), (3, "three"), (4, "four")].into();
    words.get(&number).map_or_else(|| number.to_string(), |word| (*word).to_owned())
}
