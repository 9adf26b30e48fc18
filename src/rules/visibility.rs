//! Visibility rules: names resolved, joins compared, predicates judged, windows read.

use crate::model::dock::{Reference, RuleKind, RulePath, VisibilityRule, Window};
use crate::model::schema::TypeClass;
use crate::rules::check::PredicateCheck;
use crate::rules::definition::{RawObject, RawRule};
use crate::rules::draft::{Draft, DraftRule, Operand};
use crate::rules::language::{Name, Path, Rule, parse_rule, parse_window};
use crate::rules::nodes::{resolve_join, too_long, unknown_attribute};
use crate::rules::problem::{At, Report, Text};
use crate::rules::sqltext;

/// Resolves the rules and the window of one object.
pub(crate) fn resolve(raw: &RawObject, object: usize, predicates: &dyn PredicateCheck, draft: &mut Draft<'_>, report: &mut Report<'_>) {
    let Some(owner) = draft.objects.get(object) else { return };
    let (name, table) = (owner.object.name.clone(), owner.object.table);
    if raw.rules.is_empty() {
        let hint = Some(
            "visible = 'everyone', visible = 'nobody', visible.needed = 'referenced', or visible.own = 'Table.column = node.NAME'".into(),
        );
        report.problem(raw.at, format!("object {name} has no rule: nobody would see it"), hint);
    }
    if let Some(text) = &raw.window {
        let window = window(&format!("{name}: "), text, table, draft, report);
        if let Some(owner) = draft.objects.get_mut(object) {
            owner.object.window = window;
        }
    }
    for rule in &raw.rules {
        resolve_rule(rule, object, &name, table, predicates, draft, report);
    }
}

fn resolve_rule(
    raw: &RawRule,
    object: usize,
    object_name: &str,
    table: usize,
    predicates: &dyn PredicateCheck,
    draft: &mut Draft<'_>,
    report: &mut Report<'_>,
) {
    let name = format!("{object_name}.{}", raw.name.value);
    let prefix = format!("{name}: ");
    let parsed = parse_rule(&raw.rule.value);
    let could_be_referenced = !matches!(parsed, Ok(Rule::Path(_)));
    let kind = match parsed {
        Err(error) => {
            report.problem(raw.rule.inside(error.at), format!("{prefix}{}", error.message), error.hint);
            None
        }
        Ok(Rule::Everyone) => Some(RuleKind::Everyone),
        Ok(Rule::Nobody) => Some(RuleKind::Nobody),
        Ok(Rule::Referenced(by)) => referenced(&prefix, &by, object, &raw.rule, draft, report).map(RuleKind::Referenced),
        Ok(Rule::Path(written)) => path(&prefix, &written, table, &raw.rule, draft, report).map(RuleKind::Path),
    };
    let window = raw.window.as_ref().and_then(|text| window(&prefix, text, table, draft, report));
    let predicate = raw.predicate.as_ref().and_then(|text| predicate(&prefix, text, table, predicates, draft, report));
    let Some(kind) = kind else {
        if could_be_referenced {
            draft.unsure.insert(object);
        }
        return;
    };
    if kind == RuleKind::Nobody && (raw.predicate.is_some() || raw.window.is_some() || draft.rules_of(object).next().is_some()) {
        report.problem(raw.rule.at, format!("{prefix}'nobody' stands alone"), Some("take it out, or the other rules".into()));
    }
    let (predicate, predicate_columns) = match predicate {
        Some((predicate, columns)) => (Some(predicate), columns),
        None => (None, Vec::new()),
    };
    draft.rules.push(DraftRule {
        rule: VisibilityRule { name, object, kind, predicate, window },
        at: raw.rule.at,
        text: raw.rule.value.trim().to_owned(),
        predicate_columns,
    });
}

fn path(prefix: &str, written: &Path, table: usize, text: &Text, draft: &mut Draft<'_>, report: &mut Report<'_>) -> Option<RulePath> {
    let named = draft.find_table(&written.table.text, text.inside(written.table.at), prefix, report)?;
    let shown = draft.shape(table).name.clone();
    if named != table {
        let message = format!("{prefix}the rule begins at {}, the object's table is {shown}", draft.shape(named).name);
        report.problem(text.inside(written.table.at), message, Some(format!("{shown}.column -> {}(..)..", draft.shape(named).name)));
        return None;
    }
    let mut left = Vec::new();
    let mut start = Vec::new();
    for name in &written.start {
        let column = draft.find_column(table, &name.text, text.inside(name.at), prefix, report)?;
        draft.use_column(table, column);
        start.push(column);
        left.push(Operand::column(draft.column(table, column).name.clone(), draft.column(table, column)));
    }
    too_long(prefix, &written.joins, text, report);
    let mut hops = Vec::new();
    let mut last: &[Name] = &written.start;
    for join in &written.joins {
        let (hop, out) = resolve_join(prefix, join, &left, text, draft, report)?;
        hops.push(hop);
        left = out;
        last = &join.out;
    }
    let declared: Vec<&str> = draft.attributes.iter().map(|known| known.attribute.name.as_str()).collect();
    let Some(attribute) = draft.attributes.iter().position(|known| known.attribute.name == written.attribute.text) else {
        let place = prefix.trim_end_matches(": ");
        unknown_attribute(place, &written.attribute.text, text.inside(written.attribute.at), &declared, report);
        return None;
    };
    let at = last.first().map_or(text.at, |name| text.inside(name.at));
    let [value] = left.as_slice() else {
        let message = format!("{prefix}{} columns stand on the left, node.{} is one value", left.len(), written.attribute.text);
        report.problem(at, message, Some("end with one column".into()));
        return None;
    };
    let right = draft.attributes.get(attribute)?.kind.clone();
    draft.comparable(prefix, value, &right, at, report);
    if let Some(known) = draft.attributes.get_mut(attribute) {
        known.used = true;
    }
    Some(RulePath { start, hops, attribute })
}

/// Collects the foreign keys by which rows of other objects refer to this object's primary table.
fn referenced(
    prefix: &str,
    by: &[Name],
    object: usize,
    text: &Text,
    draft: &mut Draft<'_>,
    report: &mut Report<'_>,
) -> Option<Vec<Reference>> {
    let table = draft.objects.get(object)?.object.table;
    let shown = draft.shape(table).name.clone();
    let mut found = Vec::new();
    let mut whole = true;
    if by.is_empty() {
        for other in (0..draft.objects.len()).filter(|other| *other != object) {
            found.extend(references(other, table, draft));
        }
        if found.is_empty() {
            let hint = Some("declare a foreign key, or give it a rule of its own".into());
            report.problem(text.at, format!("{prefix}no object has a foreign key to {shown}"), hint);
            whole = false;
        }
    }
    for name in by {
        let at = text.inside(name.at);
        let Some(other) = draft.find_object(&name.text, at, prefix, report) else {
            whole = false;
            continue;
        };
        let keys = references(other, table, draft);
        if keys.is_empty() {
            let hint = Some("declare a foreign key, or write the join as a path".into());
            report.problem(at, format!("{prefix}nothing in {} refers to {shown}", name.text), hint);
            whole = false;
        }
        found.extend(keys.into_iter().filter(|key| !found.contains(key)).collect::<Vec<_>>());
    }
    for key in &found {
        draft.comparable_reference(prefix, key, text.at, report);
        crate::rules::objects::unique_target(prefix, key, text.at, draft, report);
        draft.use_reference(key);
    }
    whole.then_some(found)
}

/// Returns the foreign keys from tables of an object to a table. One with an omitted column does not count: on the node nothing refers.
fn references(object: usize, table: usize, draft: &Draft<'_>) -> Vec<Reference> {
    let mut found = Vec::new();
    for from in draft.tables_of(object) {
        let keys = draft.shape(from).foreign_keys.iter().filter_map(|key| draft.reference(from, key));
        found.extend(keys.filter(|key| key.to_table == table && draft.is_sent(from, &key.columns)));
    }
    found
}

fn window(prefix: &str, text: &Text, table: usize, draft: &mut Draft<'_>, report: &mut Report<'_>) -> Option<Window> {
    let parsed = match parse_window(&text.value) {
        Ok(parsed) => parsed,
        Err(error) => {
            report.problem(text.inside(error.at), format!("{prefix}{}", error.message), error.hint);
            return None;
        }
    };
    let at = text.inside(parsed.column.at);
    let column = draft.find_column(table, &parsed.column.text, at, prefix, report)?;
    let shape = draft.column(table, column);
    if shape.decl_type.to_ascii_uppercase().contains("BLOB") {
        report.problem(
            at,
            format!("{prefix}{} is a BLOB, a window needs dates", shape.name),
            Some("dates like 2024-07-04 or 2024-07-04 09:30:00".into()),
        );
    }
    draft.use_column(table, column);
    Some(Window { column, days: parsed.days })
}

type Judged = (crate::model::dock::Predicate, Vec<usize>);

fn predicate(
    prefix: &str,
    text: &Text,
    table: usize,
    predicates: &dyn PredicateCheck,
    draft: &mut Draft<'_>,
    report: &mut Report<'_>,
) -> Option<Judged> {
    let shape = draft.shape(table);
    let names: Vec<&str> = shape.columns.iter().map(|column| column.name.as_str()).collect();
    match predicates.check(&text.value, &names) {
        Err(error) => {
            report.problem(text.inside(error.offset), format!("{prefix}where: {}", error.message), error.hint);
            None
        }
        Ok(columns) => {
            // Whoever writes COLLATE knows that the column's own does not count.
            let collates = sqltext::names(&text.value).any(|name| name.eq_ignore_ascii_case("COLLATE"));
            for column in &columns {
                if !collates {
                    folded(prefix, text.at, table, *column, draft, report);
                }
                draft.use_column(table, *column);
            }
            Some((crate::model::dock::Predicate { sql: text.value.clone(), columns: columns.clone() }, columns))
        }
    }
}

/// Warns where a predicate compares by bytes what the database compares without case.
fn folded(prefix: &str, at: At, table: usize, column: usize, draft: &Draft<'_>, report: &mut Report<'_>) {
    let shape = draft.column(table, column);
    if shape.type_class() != TypeClass::Number && !shape.collation.eq_ignore_ascii_case("BINARY") {
        let message = format!("{prefix}where compares {} by bytes, its collation {} does not count here", shape.name, shape.collation);
        report.warning(at, message, Some(format!("write  {} COLLATE {} = ..", shape.name, shape.collation)));
    }
}
