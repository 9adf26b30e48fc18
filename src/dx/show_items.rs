//! What `dx show` says of each record, before it becomes text, JSON or XML.

use crate::base::ids::NodeName;
use crate::model::event::{Mark, NodeEvent, RowEvent, SchemaKind, SchemaObject, TableHeading, UnitEvents};
use crate::model::operation::Operation;
use crate::model::upload::{Confirm, Conflict, FieldChange, KeyMapping, Outcome, RowChange, UploadHead};
use crate::model::value::Value;

/// A neutral line: what, attributes, and values in named groups.
pub(super) struct Item<'a> {
    pub(super) name: &'static str,
    pub(super) attributes: Vec<(&'static str, String)>,
    pub(super) groups: Vec<(&'static str, Vec<(&'a str, &'a Value)>)>,
}

fn key_group<'a>(heading: &'a TableHeading, key: &'a [Value]) -> (&'static str, Vec<(&'a str, &'a Value)>) {
    let names = heading.key.iter().map(|index| heading.columns.get(usize::from(*index)).map_or("", String::as_str));
    ("key", names.zip(key).collect())
}

fn row_group<'a>(heading: &'a TableHeading, row: &'a [Value]) -> (&'static str, Vec<(&'a str, &'a Value)>) {
    ("row", heading.columns.iter().map(String::as_str).zip(row).collect())
}

pub(super) fn operation_item<'a>(heading: &'a TableHeading, operation: &'a Operation) -> Item<'a> {
    let (name, groups) = match operation {
        Operation::Delete { key } => ("delete", vec![key_group(heading, key)]),
        Operation::Put { row } => ("put", vec![row_group(heading, row)]),
        Operation::Update { key, changes } => {
            let column = |index: &u16| heading.columns.get(usize::from(*index)).map_or("", String::as_str);
            let changes = changes.iter().map(|(index, value)| (column(index), value)).collect();
            ("update", vec![key_group(heading, key), ("changes", changes)])
        }
    };
    Item { name, attributes: vec![("table", heading.name.clone())], groups }
}

pub(super) fn schema_item(object: &SchemaObject) -> Item<'_> {
    let kind = match object.kind {
        SchemaKind::Table => "table",
        SchemaKind::KeptTable => "kept table",
        SchemaKind::Index => "index",
        SchemaKind::View => "view",
        SchemaKind::MergeRules => "merge rules",
    };
    let sql = object.sql.clone().unwrap_or_else(|| "gone".to_owned());
    let attributes =
        vec![("kind", kind.to_owned()), ("name", object.name.clone()), ("keeps_rows", object.keeps_rows.to_string()), ("sql", sql)];
    Item { name: "schema", attributes, groups: Vec::new() }
}

pub(super) fn mark_item<'a>(mark: &Mark, node: Option<&NodeName>) -> Item<'a> {
    let mut attributes: Vec<(&'static str, String)> = node.map(|node| ("node", node.to_string())).into_iter().collect();
    attributes.extend([("id", mark.id.to_string()), ("tables", mark.tables.len().to_string())]);
    Item { name: "mark", attributes, groups: Vec::new() }
}

fn keys_group<'a>(unit: &'a UnitEvents, name: &'static str, keys: &[u32]) -> (&'static str, Vec<(&'a str, &'a Value)>) {
    let keys = keys.iter().filter_map(|key| unit.keys.get(*key as usize));
    (name, keys.map(|key| (key.path.as_str(), &key.value)).collect())
}

pub(super) fn node_item<'a>(unit: &'a UnitEvents, event: &'a NodeEvent) -> Item<'a> {
    match event {
        NodeEvent::Start { node, incarnation, keys } | NodeEvent::Restart { node, incarnation, keys } => Item {
            name: if matches!(event, NodeEvent::Start { .. }) { "node_start" } else { "node_restart" },
            attributes: vec![("node", node.to_string()), ("incarnation", incarnation.to_string())],
            groups: vec![keys_group(unit, "keys", keys)],
        },
        NodeEvent::Stop { node } => Item { name: "node_stop", attributes: vec![("node", node.to_string())], groups: Vec::new() },
        NodeEvent::Keys { node, gained, lost } => Item {
            name: "node_keys",
            attributes: vec![("node", node.to_string())],
            groups: vec![keys_group(unit, "gained", gained), keys_group(unit, "lost", lost)],
        },
    }
}

pub(super) fn row_item<'a>(unit: &'a UnitEvents, event: &'a RowEvent) -> Item<'a> {
    let mut item = Item { name: if event.row.is_some() { "row" } else { "row_gone" }, attributes: Vec::new(), groups: Vec::new() };
    if let Some(heading) = unit.tables.get(event.table as usize) {
        item.attributes.push(("table", heading.name.clone()));
        let changed: Vec<&str> =
            event.changed.iter().filter_map(|index| heading.columns.get(usize::from(*index))).map(String::as_str).collect();
        if !changed.is_empty() {
            item.attributes.push(("changed", changed.join(" ")));
        }
        item.groups.push(key_group(heading, &event.key));
        item.groups.extend(event.row.as_ref().map(|row| row_group(heading, row)));
    }
    item.groups.push(keys_group(unit, "keys_before", &event.keys_before));
    item.groups.push(keys_group(unit, "keys_after", &event.keys_after));
    item
}

/// A confirm, and what it brought in lines of their own.
pub(super) fn confirm_items<'a>(confirm: &'a Confirm, node: Option<&NodeName>) -> Vec<Item<'a>> {
    let mut attributes: Vec<(&'static str, String)> = node.map(|node| ("node", node.to_string())).into_iter().collect();
    attributes.extend([
        ("install_id", confirm.unit.install.to_string()),
        ("number", confirm.unit.number.to_string()),
        ("outcome", confirm.outcome.name().to_owned()),
    ]);
    let mut items = Vec::new();
    match &confirm.outcome {
        Outcome::Merged { conflicts, keys } => {
            items.extend(conflicts.iter().map(conflict_item));
            items.extend(keys.iter().map(mapping_item));
        }
        Outcome::Held { reason } | Outcome::Ignored { reason } | Outcome::Returned { reason } => {
            attributes.push(("reason", reason.clone()));
        }
    }
    items.insert(0, Item { name: "confirm", attributes, groups: Vec::new() });
    items
}

/// Values without names: a key of a table whose heading does not stand here.
fn unnamed<'a>(name: &'static str, values: &'a [Value]) -> (&'static str, Vec<(&'a str, &'a Value)>) {
    (name, values.iter().map(|value| ("", value)).collect())
}

fn conflict_item(conflict: &Conflict) -> Item<'_> {
    let at = jiff::Timestamp::from_microsecond(conflict.at_micros).map(|time| time.to_string()).unwrap_or_default();
    let mut attributes = vec![
        ("table", conflict.table.clone()),
        ("id", conflict.id.to_string()),
        ("rule", conflict.rule.clone()),
        ("winner", conflict.winner.to_string()),
        ("at", at),
    ];
    let column = conflict.column.as_deref().unwrap_or_default();
    attributes.extend(conflict.column.clone().map(|column| ("column", column)));
    let mut groups = vec![unnamed("key", &conflict.key)];
    for (name, value) in [("base", &conflict.base), ("server", &conflict.server), ("client", &conflict.client)] {
        groups.extend(value.as_ref().map(|value| (name, vec![(column, value)])));
    }
    Item { name: "conflict", attributes, groups }
}

fn mapping_item(mapping: &KeyMapping) -> Item<'_> {
    let groups = vec![unnamed("old", &mapping.old), unnamed("new", &mapping.new)];
    Item { name: "key_map", attributes: vec![("table", mapping.table.clone())], groups }
}

/// What is said of a unit of an upload beside its changes.
pub(super) fn unit_attributes(head: &UploadHead) -> Vec<(&'static str, String)> {
    let cut_at = jiff::Timestamp::from_microsecond(head.cut_at_micros).map(|time| time.to_string()).unwrap_or_default();
    let mut attributes = vec![
        ("applied", head.applied.to_string()),
        ("revision", head.revision.to_string()),
        ("cut_at", cut_at),
        ("changes", head.changes.to_string()),
    ];
    attributes.extend(head.label.clone().map(|label| ("label", label)));
    if !head.hidden.is_empty() {
        let hidden: Vec<String> = head.hidden.iter().map(ToString::to_string).collect();
        attributes.push(("hidden", hidden.join(" ")));
    }
    attributes
}

pub(super) fn change_item<'a>(heading: &'a TableHeading, change: &'a RowChange) -> Item<'a> {
    let named = |name: &'static str, row: &'a [Value]| (name, row_group(heading, row).1);
    let (name, groups) = match change {
        RowChange::Insert { row } => ("insert", vec![row_group(heading, row)]),
        RowChange::Update { key, fields, whole } => {
            let group = |name: &'static str, value: fn(&FieldChange) -> &Value| {
                let column = |index: u16| heading.columns.get(usize::from(index)).map_or("", String::as_str);
                (name, fields.iter().map(|field| (column(field.column), value(field))).collect())
            };
            let mut groups = vec![
                key_group(heading, key),
                group("before", |field| &field.before),
                group("base", |field| &field.base),
                group("after", |field| &field.after),
            ];
            groups.extend(whole.as_deref().map(|row| named("whole", row)));
            ("update", groups)
        }
        RowChange::Delete { key, before, base } => {
            let mut groups = vec![key_group(heading, key), named("before", before)];
            groups.extend(base.as_deref().map(|row| named("base", row)));
            ("delete", groups)
        }
    };
    Item { name, attributes: vec![("table", heading.name.clone())], groups }
}
