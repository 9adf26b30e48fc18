//! `[node]`: given attributes and those derived along a path, in an order in which each can be computed.

use crate::base::limits::RULE_HOPS_MAX;
use crate::model::dock::{AttributeSource, AttributeType, Hop, NodeAttribute, NodeHop};
use crate::model::schema::TypeClass;
use crate::model::value::Value;
use crate::rules::definition::{Definition, RawAttribute, RawSource};
use crate::rules::draft::{Draft, DraftAttribute, Operand, type_word};
use crate::rules::language::{Join, NodePath, parse_columns, parse_node_path};
use crate::rules::objects::capturable;
use crate::rules::problem::{At, Report, Text, did_you_mean};
use crate::rules::reader::is_word;

/// Resolves every attribute. Derived ones wait until what they use is there; what is left over is a circle.
pub(crate) fn resolve(definition: &Definition, draft: &mut Draft<'_>, report: &mut Report<'_>) {
    let mut waiting: Vec<(&RawAttribute, &Text, NodePath)> = Vec::new();
    let names: Vec<&str> = definition.attributes.iter().map(|raw| raw.name.value.as_str()).collect();
    for (position, raw) in definition.attributes.iter().enumerate() {
        let name = &raw.name.value;
        if !is_word(name) || name.contains('-') {
            report.problem(raw.name.at, format!("`{name}` cannot name a node attribute"), Some("letters, digits and `_`".into()));
        }
        if names.iter().take(position).any(|earlier| *earlier == name) {
            report.problem(raw.name.at, format!("node attribute {name} is declared twice"), None);
            continue;
        }
        match &raw.source {
            RawSource::Given { kind, must_exist, many } => given(raw, kind.as_ref(), must_exist.as_ref(), *many, draft, report),
            RawSource::Path(text) => match parse_node_path(&text.value) {
                Ok(path) => waiting.push((raw, text, path)),
                Err(error) => report.problem(text.inside(error.at), format!("node.{name}: {}", error.message), error.hint),
            },
        }
    }
    loop {
        let before = waiting.len();
        let (ready, later): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(_, _, path)| draft.attributes.iter().any(|known| known.attribute.name == path.from.text));
        for (raw, text, path) in ready {
            derived(raw, text, &path, draft, report);
        }
        waiting = later;
        if waiting.is_empty() || waiting.len() == before {
            break;
        }
    }
    let left: Vec<&str> = waiting.iter().map(|(raw, _, _)| raw.name.value.as_str()).collect();
    for (raw, text, path) in &waiting {
        let at = text.inside(path.from.at);
        if left.contains(&path.from.text.as_str()) {
            let hint = Some("begin one of them at an attribute with a type".into());
            report.problem(
                at,
                format!("circle: node.{} is made from node.{}, which is made from it", raw.name.value, path.from.text),
                hint,
            );
        } else if !names.contains(&path.from.text.as_str()) {
            unknown_attribute(&format!("node.{}", raw.name.value), &path.from.text, at, &names, report);
        }
    }
}

/// Reports a node attribute that `[node]` does not declare.
pub(crate) fn unknown_attribute(place: &str, name: &str, at: At, declared: &[&str], report: &mut Report<'_>) {
    let hint = match declared {
        [] => format!("add  [node]  {name} = {{ type = \"integer\" }}"),
        several => format!("[node] declares {}", several.join(", ")),
    };
    report.problem(at, format!("{place}: a node has no `{name}`"), Some(hint));
}

fn given(raw: &RawAttribute, kind: Option<&Text>, must_exist: Option<&Text>, many: bool, draft: &mut Draft<'_>, report: &mut Report<'_>) {
    let name = &raw.name.value;
    let kind = match kind.map(|text| (text.value.as_str(), text.at)) {
        Some(("integer", _)) | None => AttributeType::Integer,
        Some(("text", _)) => AttributeType::Text,
        Some((other, at)) => {
            let hint = did_you_mean(other, ["integer", "text"]).unwrap_or_else(|| "\"integer\" or \"text\"".into());
            report.problem(at, format!("node.{name}: there is no type `{other}`"), Some(hint));
            AttributeType::Integer
        }
    };
    let (class, type_word) = match kind {
        AttributeType::Integer => (TypeClass::Number, "integer"),
        AttributeType::Text => (TypeClass::Text, "text"),
    };
    let operand = Operand { name: format!("node.{name}"), type_word, class, collation: None };
    let must_exist = must_exist.and_then(|text| exists_in(name, text, &operand, draft, report));
    draft.attributes.push(DraftAttribute {
        attribute: NodeAttribute { name: name.clone(), source: AttributeSource::Given { kind, must_exist, many } },
        at: raw.name.at,
        kind: operand,
        used: false,
    });
}

fn exists_in(name: &str, text: &Text, operand: &Operand, draft: &mut Draft<'_>, report: &mut Report<'_>) -> Option<(usize, usize)> {
    let prefix = format!("node.{name}: ");
    let columns = match parse_columns(&text.value) {
        Ok(columns) => columns,
        Err(error) => {
            report.problem(text.inside(error.at), format!("{prefix}{}", error.message), error.hint);
            return None;
        }
    };
    let (Some(table), [column]) = (&columns.table, columns.columns.as_slice()) else {
        report.problem(text.at, format!("{prefix}must_exist takes one column"), Some("must_exist = \"Employees.EmployeeID\"".into()));
        return None;
    };
    let table_index = draft.find_table(&table.text, text.inside(table.at), &prefix, report)?;
    let column_index = draft.find_column(table_index, &column.text, text.inside(column.at), &prefix, report)?;
    let right = Operand::column(format!("{}.{}", draft.shape(table_index).name, column.text), draft.column(table_index, column_index));
    draft.comparable("", operand, &right, text.inside(column.at), report);
    link_table(table_index, text.inside(table.at), draft, report);
    draft.use_column(table_index, column_index);
    Some((table_index, column_index))
}

fn derived(raw: &RawAttribute, text: &Text, path: &NodePath, draft: &mut Draft<'_>, report: &mut Report<'_>) {
    let name = &raw.name.value;
    let prefix = format!("node.{name}: ");
    let Some(from) = draft.attributes.iter().position(|known| known.attribute.name == path.from.text) else { return };
    let Some(source) = draft.attributes.get_mut(from) else { return };
    source.used = true;
    let mut left = vec![source.kind.clone()];
    let mut hops = Vec::new();
    too_long(&prefix, &path.joins, text, report);
    for join in &path.joins {
        let Some((hop, out)) = resolve_join(&prefix, join, &left, text, draft, report) else { return };
        for (list, what) in [(&join.join, "joins by one column"), (&join.out, "goes on with one column")] {
            if let Some(second) = list.get(1) {
                report.problem(text.inside(second.at), format!("{prefix}a path from a node {what}"), None);
                return;
            }
        }
        if join.recursive
            && let (Some(before), Some(after)) = (left.first(), out.first())
        {
            // What is found is looked up again, and stands beside the start.
            draft.comparable(&prefix, before, after, text.inside(join.at), report);
        }
        hops.push(NodeHop { hop, recursive: join.recursive });
        left = out;
    }
    let Some(kind) = left.pop() else { return };
    let kind = Operand { name: format!("node.{name} (from {})", kind.name), ..kind };
    draft.attributes.push(DraftAttribute {
        attribute: NodeAttribute { name: name.clone(), source: AttributeSource::Derived { from, hops } },
        at: raw.name.at,
        kind,
        used: false,
    });
}

/// Reports a path with more joins than are followed.
pub(crate) fn too_long(prefix: &str, joins: &[Join], text: &Text, report: &mut Report<'_>) {
    if let Some(join) = joins.get(RULE_HOPS_MAX) {
        report.problem(text.inside(join.at), format!("{prefix}{} joins, at most {RULE_HOPS_MAX} are followed", joins.len()), None);
    }
}

/// Notes a table that a rule passes through; its rows must be capturable, whether or not nodes get them (R36).
pub(crate) fn link_table(table: usize, at: At, draft: &mut Draft<'_>, report: &mut Report<'_>) {
    if !draft.object_of.contains_key(&table) {
        capturable(table, at, draft, report);
        for key in &draft.shape(table).key {
            draft.use_column(table, *key);
        }
    }
}

/// Resolves `U(col, col = literal).col` against what stands to its left. Returns the hop and what goes on to the right.
pub(crate) fn resolve_join(
    prefix: &str,
    join: &Join,
    left: &[Operand],
    text: &Text,
    draft: &mut Draft<'_>,
    report: &mut Report<'_>,
) -> Option<(Hop, Vec<Operand>)> {
    let table = draft.find_table(&join.table.text, text.inside(join.table.at), prefix, report)?;
    link_table(table, text.inside(join.table.at), draft, report);
    let shown = draft.shape(table).name.clone();
    let mut whole = true;
    let mut hop = Hop { table, join: Vec::new(), filters: Vec::new(), out: Vec::new() };
    if join.join.len() != left.len() {
        let message = format!("{prefix}{} stand on the left, {shown}(..) joins by {}", columns(left.len()), columns(join.join.len()));
        report.problem(text.inside(join.table.at), message, None);
        whole = false;
    }
    for (position, name) in join.join.iter().enumerate() {
        let at = text.inside(name.at);
        let Some(column) = draft.find_column(table, &name.text, at, prefix, report) else {
            whole = false;
            continue;
        };
        if let Some(left) = left.get(position) {
            let right = Operand::column(format!("{shown}.{}", draft.column(table, column).name), draft.column(table, column));
            draft.comparable(prefix, left, &right, at, report);
        }
        draft.use_column(table, column);
        hop.join.push(column);
    }
    for (name, literal) in &join.filters {
        let Some(column) = draft.find_column(table, &name.text, text.inside(name.at), prefix, report) else {
            whole = false;
            continue;
        };
        let shape = draft.column(table, column);
        let class = match literal.value {
            Value::Text(_) => TypeClass::Text,
            _ => TypeClass::Number,
        };
        if shape.type_class() != TypeClass::Any && shape.type_class() != class {
            let message = format!("{prefix}{} is {}, {} can never be equal to it", shape.name, type_word(shape), literal.value);
            report.problem(text.inside(literal.at), message, None);
        }
        draft.use_column(table, column);
        hop.filters.push((column, literal.value.clone()));
    }
    let mut out = Vec::new();
    for name in &join.out {
        let Some(column) = draft.find_column(table, &name.text, text.inside(name.at), prefix, report) else {
            whole = false;
            continue;
        };
        draft.use_column(table, column);
        hop.out.push(column);
        out.push(Operand::column(format!("{shown}.{}", draft.column(table, column).name), draft.column(table, column)));
    }
    whole.then_some((hop, out))
}

fn columns(number: usize) -> String {
    if number == 1 { "1 column".into() } else { format!("{number} columns") }
}
