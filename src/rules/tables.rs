//! `[table.T]`, conflict policies, `dangling` and `[model.X]`: what is said about tables and rules beside who sees them.

use crate::model::dock::{Direction, RoutingModel, RuleKind, pattern_matches};
use crate::model::merge_rules::{ConflictPolicy, DeletePolicy, KeySource};
use crate::model::schema::TypeClass;
use crate::rules::definition::{ConflictRule, Definition, RawColumn, RawModel, RawTable};
use crate::rules::draft::{Draft, spell, toml_string};
use crate::rules::language::parse_columns;
use crate::rules::problem::{At, Report, Text, did_you_mean};

/// Policies that nobody but the Transaction Merger reads.
#[derive(Debug, Default)]
pub(crate) struct MergeOptions {
    /// Policies, outermost first.
    pub(crate) conflicts: Vec<ConflictRule>,
    /// Where each stands.
    pub(crate) places: Vec<At>,
    /// Sources of integer keys.
    pub(crate) keys: Vec<(String, KeySource)>,
    /// Delete against update, by table.
    pub(crate) deletes: Vec<(String, DeletePolicy)>,
    /// Columns that only the server changes: (table, column).
    pub(crate) download_only: Vec<(String, String)>,
}

/// Reads `omit`, `dangling` and `capture`, which rules depend on.
pub(crate) fn resolve_columns(definition: &Definition, resolved: &[Option<usize>], draft: &mut Draft<'_>, report: &mut Report<'_>) {
    for (raw, object) in definition.objects.iter().zip(resolved) {
        let Some(object) = object else { continue };
        for text in &raw.dangling {
            dangling(&raw.name.value, text, None, Some(*object), draft, report);
        }
    }
    let mut seen: Vec<usize> = Vec::new();
    for raw in &definition.tables {
        let Some(table) = table_of(raw, draft, report) else { continue };
        if seen.contains(&table) {
            report.problem(raw.name.at, format!("[table.{}] is written twice", draft.shape(table).name), None);
        }
        seen.push(table);
        for text in &raw.omit {
            omit(table, text, draft, report);
        }
        match raw.capture.as_ref().map(|text| (text, text.value.as_str())) {
            None | Some((_, "triggers")) => {}
            Some((_, "compare")) => drop(draft.by_comparison.insert(table)),
            Some((text, other)) => {
                let hint = Some(
                    "capture = \"compare\"  for a table that may have no triggers; it is compared every [server] compare_every".into(),
                );
                report.problem(text.at, format!("capture: `{other}` is neither \"triggers\" nor \"compare\""), hint);
            }
        }
        for text in &raw.dangling {
            dangling(&raw.name.value, text, Some(table), None, draft, report);
        }
    }
}

fn table_of(raw: &RawTable, draft: &Draft<'_>, report: &mut Report<'_>) -> Option<usize> {
    let table = draft.find_table(&raw.name.value, raw.name.at, "", report)?;
    if !draft.object_of.contains_key(&table) {
        let hint = Some("add it to `reference` or to an object, or take this out".into());
        report.problem(raw.name.at, format!("table {} is in no object, no node gets it", draft.shape(table).name), hint);
        return None;
    }
    Some(table)
}

fn omit(table: usize, text: &Text, draft: &mut Draft<'_>, report: &mut Report<'_>) {
    let Some(column) = draft.find_column(table, &text.value, text.at, "omit: ", report) else { return };
    let shape = draft.shape(table);
    let name = format!("{}.{}", shape.name, draft.column(table, column).name);
    if shape.key.contains(&column) {
        report.problem(text.at, format!("{name} is a key column, it cannot be omitted"), Some("nodes tell rows apart by it".into()));
        return;
    }
    let object = draft.object_of.get(&table).and_then(|object| draft.objects.get(*object));
    let written = object.is_some_and(|object| object.object.direction != Direction::Download);
    let declared = draft.column(table, column);
    if declared.not_null && !declared.has_default && !declared.generated && written {
        let message = format!("{name} is omitted but NOT NULL: a row inserted on a node cannot merge");
        report.problem(text.at, message, Some("keep it, or direction = \"download\"".into()));
    }
    draft.omitted.insert((table, column), text.at);
}

fn dangling(place: &str, text: &Text, table: Option<usize>, object: Option<usize>, draft: &mut Draft<'_>, report: &mut Report<'_>) {
    let prefix = format!("{place}: dangling: ");
    let parsed = match parse_columns(&text.value) {
        Ok(parsed) => parsed,
        Err(error) => {
            report.problem(text.inside(error.at), format!("{prefix}{}", error.message), error.hint);
            return;
        }
    };
    let named = match &parsed.table {
        Some(name) => match draft.find_table(&name.text, text.inside(name.at), &prefix, report) {
            Some(named) => Some(named),
            None => return,
        },
        None => None,
    };
    let Some(table) = named.or(table) else {
        let primary =
            object.and_then(|object| draft.objects.get(object)).map_or("Orders", |owner| draft.shape(owner.object.table).name.as_str());
        let whole = format!("{}.{}", spell(primary), text.value.trim());
        report.problem(text.at, format!("{prefix}of which table?"), Some(format!("dangling = [{}]", toml_string(&whole))));
        return;
    };
    let foreign = object.is_some_and(|object| !draft.tables_of(object).contains(&table));
    if foreign || named.is_some_and(|named| named != table) {
        report.problem(text.at, format!("{prefix}{} is not one of its tables", draft.shape(table).name), None);
        return;
    }
    let mut columns = Vec::new();
    for name in &parsed.columns {
        let Some(column) = draft.find_column(table, &name.text, text.inside(name.at), &prefix, report) else { return };
        columns.push(column);
    }
    let shape = draft.shape(table);
    let mut wanted = columns.clone();
    wanted.sort_unstable();
    let key = shape.foreign_keys.iter().find(|key| {
        let mut columns = key.columns.clone();
        columns.sort_unstable();
        columns == wanted
    });
    match key {
        Some(key) => {
            draft.dangling.insert((table, key.columns.clone()));
        }
        None => {
            let keys: Vec<String> = shape.foreign_keys.iter().map(|key| draft.spell(table, &key.columns)).collect();
            let hint = match keys.is_empty() {
                true => format!("{} has no foreign keys", shape.name),
                false => format!("its foreign keys: {}", keys.join(", ")),
            };
            report.problem(text.at, format!("{prefix}{} is no foreign key", draft.spell(table, &columns)), Some(hint));
        }
    }
}

/// Reads conflict policies and key sources, outermost first.
pub(crate) fn resolve_merge(
    definition: &Definition,
    resolved: &[Option<usize>],
    draft: &Draft<'_>,
    report: &mut Report<'_>,
) -> MergeOptions {
    let mut options = MergeOptions::default();
    for (raw, object) in definition.objects.iter().zip(resolved) {
        if let (Some(text), Some(object)) = (&raw.conflict, object) {
            for table in draft.tables_of(*object) {
                conflict(text, table, None, draft, &mut options, report);
            }
        }
    }
    for raw in &definition.tables {
        let Some(table) = draft.table_index(&raw.name.value).filter(|table| draft.object_of.contains_key(table)) else { continue };
        if let Some(text) = &raw.conflict {
            conflict(text, table, None, draft, &mut options, report);
        }
        if let Some(text) = &raw.keys {
            keys(text, table, draft, &mut options, report);
        }
        if let Some(text) = &raw.delete {
            delete(text, table, draft, &mut options, report);
        }
    }
    for raw in &definition.tables {
        let Some(table) = draft.table_index(&raw.name.value).filter(|table| draft.object_of.contains_key(table)) else { continue };
        for RawColumn { name, conflict: policy, direction } in &raw.columns {
            let prefix = format!("[table.{}]: ", raw.name.value);
            let Some(column) = draft.find_column(table, &name.value, name.at, &prefix, report) else { continue };
            if let Some(text) = policy {
                conflict(text, table, Some(column), draft, &mut options, report);
            }
            if let Some(text) = direction {
                column_direction(text, table, column, draft, &mut options, report);
            }
        }
    }
    options
}

fn conflict(text: &Text, table: usize, column: Option<usize>, draft: &Draft<'_>, options: &mut MergeOptions, report: &mut Report<'_>) {
    let shape = draft.shape(table);
    let place = column.map_or_else(|| shape.name.clone(), |column| format!("{}.{}", shape.name, draft.column(table, column).name));
    let words = ["server-wins", "client-wins", "newest by COLUMN", "sum", "manual"];
    let policy = match text.value.trim() {
        "server-wins" => ConflictPolicy::ServerWins,
        "client-wins" => ConflictPolicy::ClientWins,
        "manual" => ConflictPolicy::Manual,
        "sum" => {
            let number = column.is_some_and(|column| draft.column(table, column).type_class() == TypeClass::Number);
            if !number {
                let hint = Some(format!("[table.{}.column.NAME]  conflict = \"sum\"", shape.name));
                report.problem(text.at, format!("{place}: sum adds up differences, so it stands at a column of numbers"), hint);
            }
            ConflictPolicy::Sum
        }
        other => match other.strip_prefix("newest by ") {
            Some(by) => {
                let Some(by) = draft.find_column(table, by.trim().trim_matches('"'), text.at, &format!("{place}: newest by: "), report)
                else {
                    return;
                };
                ConflictPolicy::Newest(draft.column(table, by).name.clone())
            }
            None => {
                let hint = did_you_mean(other, words).unwrap_or_else(|| words.join(", "));
                report.problem(text.at, format!("{place}: there is no conflict policy `{other}`"), Some(hint));
                return;
            }
        },
    };
    let column = column.map(|column| draft.column(table, column).name.clone());
    options.conflicts.push(ConflictRule { table: shape.name.clone(), column, policy });
    options.places.push(text.at);
}

fn keys(text: &Text, table: usize, draft: &Draft<'_>, options: &mut MergeOptions, report: &mut Report<'_>) {
    let shape = draft.shape(table);
    let source = match text.value.as_str() {
        "own" => KeySource::Own,
        "block" => {
            if !shape.key_is_rowid {
                let message =
                    format!("{}: keys = \"block\" replaces integers that are taken, its key is no INTEGER PRIMARY KEY", shape.name);
                report.problem(text.at, message, Some("keys = \"own\"".into()));
            }
            KeySource::Block
        }
        other => {
            let hint = did_you_mean(other, ["block", "own"]).unwrap_or_else(|| "\"block\" or \"own\"".into());
            report.problem(text.at, format!("{}: there is no key source `{other}`", shape.name), Some(hint));
            return;
        }
    };
    options.keys.push((shape.name.clone(), source));
}

fn delete(text: &Text, table: usize, draft: &Draft<'_>, options: &mut MergeOptions, report: &mut Report<'_>) {
    let name = &draft.shape(table).name;
    let policy = match text.value.as_str() {
        "wins" => DeletePolicy::Wins,
        "resurrect" => DeletePolicy::Resurrect,
        other => {
            let hint = did_you_mean(other, ["wins", "resurrect"]).unwrap_or_else(|| "\"wins\" or \"resurrect\"".into());
            report.problem(text.at, format!("{name}: delete: `{other}` says nothing about a row that the other side changed"), Some(hint));
            return;
        }
    };
    options.deletes.push((name.clone(), policy));
}

/// Reads `direction` of a column: whether nodes change it.
fn column_direction(text: &Text, table: usize, column: usize, draft: &Draft<'_>, options: &mut MergeOptions, report: &mut Report<'_>) {
    let (shape, declared) = (draft.shape(table), draft.column(table, column));
    let name = format!("{}.{}", shape.name, declared.name);
    match text.value.as_str() {
        "two-way" => return,
        "download" => {}
        other => {
            let hint = did_you_mean(other, ["download", "two-way"]).unwrap_or_else(|| "\"download\" or \"two-way\"".into());
            report.problem(text.at, format!("{name}: there is no direction `{other}` of a column"), Some(hint));
            return;
        }
    }
    let object = draft.object_of.get(&table).and_then(|object| draft.objects.get(*object));
    let direction = object.map_or(Direction::Download, |object| object.object.direction);
    if direction == Direction::Upload {
        let message = format!("{name}: the rows of {} stay on the node that wrote them, nothing of them is sent down", shape.name);
        report.problem(text.at, message, Some("take it out, or make the object two-way".into()));
    } else if direction == Direction::TwoWay && shape.key.contains(&column) {
        let message = format!("{name} is a key column: a node could insert no row if only the server gave it");
        report.problem(text.at, message, Some("direction = \"download\"  at the object".into()));
    } else if direction == Direction::TwoWay && declared.not_null && !declared.has_default && !declared.generated {
        let message = format!("{name} is download only but NOT NULL without a default: a row inserted on a node cannot merge");
        report.problem(text.at, message, Some("give it a default on the server, or leave it two-way".into()));
    } else {
        options.download_only.push((shape.name.clone(), declared.name.clone()));
    }
}

/// Resolves `[model.X]`; every pattern must fit a rule.
pub(crate) fn resolve_models(models: &[RawModel], draft: &Draft<'_>, report: &mut Report<'_>) -> Vec<RoutingModel> {
    let mut resolved: Vec<RoutingModel> = Vec::new();
    for raw in models {
        if resolved.iter().any(|model| model.name == raw.name.value) {
            report.problem(raw.name.at, format!("model {} is declared twice", raw.name.value), None);
            continue;
        }
        let place = format!("model {}", raw.name.value);
        let only = raw.only.as_ref().map(|list| patterns(&place, list, true, draft, report));
        let without = patterns(&place, &raw.without, false, draft, report);
        resolved.push(RoutingModel { name: raw.name.value.clone(), only, without });
    }
    resolved
}

fn patterns(place: &str, list: &[Text], paths_only: bool, draft: &Draft<'_>, report: &mut Report<'_>) -> Vec<String> {
    let mut resolved = Vec::new();
    for text in list {
        // Objects in their declared spelling, since patterns are compared by bytes later.
        let pattern = match text.value.rsplit_once('.') {
            Some((object, rule)) => {
                let declared = draft.objects.iter().map(|draft| draft.object.name.as_str()).find(|name| name.eq_ignore_ascii_case(object));
                format!("{}.{rule}", declared.unwrap_or(object))
            }
            None => text.value.clone(),
        };
        let fits = || draft.rules.iter().filter(|draft| pattern_matches(&pattern, &draft.rule.name));
        if fits().next().is_none() {
            let hint = did_you_mean(&pattern, draft.rules.iter().map(|draft| draft.rule.name.as_str()))
                .unwrap_or_else(|| "Object.rule, Object.* or *.rule".into());
            report.problem(text.at, format!("{place}: no rule is called {}", text.value), Some(hint));
        } else if paths_only && !fits().any(|draft| matches!(draft.rule.kind, RuleKind::Path(_))) {
            let hint = Some("'everyone' and 'referenced' rules hold beside `only`".into());
            report.warning(text.at, format!("{place}: {} names no rule with a path", text.value), hint);
        }
        resolved.push(pattern);
    }
    resolved
}
