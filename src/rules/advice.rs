//! Warnings: a definition that holds together, but does something that its author may not expect.

use crate::model::dock::{Direction, RuleKind};
use crate::model::merge_rules::ConflictPolicy;
use crate::model::schema::TableShape;
use crate::rules::draft::{Draft, DraftObject, DraftRule, is_whole, toml_string};
use crate::rules::problem::Report;
use crate::rules::sqltext;
use crate::rules::tables::MergeOptions;
use std::collections::BTreeSet;

/// Adds every warning that the schema and the definition alone can tell.
pub(crate) fn advise(draft: &Draft<'_>, options: &MergeOptions, report: &mut Report<'_>) {
    for (index, owner) in draft.objects.iter().enumerate() {
        unseen_by_author(index, owner, draft, report);
        upload(index, owner, draft, report);
        windows(index, owner, draft, report);
        triggers(index, owner, draft, options, report);
    }
    for known in draft.attributes.iter().filter(|known| !known.used) {
        let name = &known.attribute.name;
        report.warning(known.at, format!("no rule uses node.{name}"), Some("take it out, or write a rule that ends with it".into()));
    }
    sums(draft, options, report);
}

/// A row inserted on a node that its author would not see: it vanishes there when it comes back from the server.
fn unseen_by_author(index: usize, owner: &DraftObject, draft: &Draft<'_>, report: &mut Report<'_>) {
    if owner.object.direction != Direction::TwoWay || owner.object.give_away {
        return;
    }
    let name = &owner.object.name;
    let rules: Vec<&DraftRule> = draft.rules_of(index).collect();
    let own = |rule: &&DraftRule| match &rule.rule.kind {
        RuleKind::Everyone => is_whole(&rule.rule),
        RuleKind::Path(path) => path.hops.is_empty(),
        RuleKind::Nobody | RuleKind::Referenced(_) => false,
    };
    if rules.is_empty() || rules.iter().any(own) {
        return;
    }
    if rules.iter().all(|rule| rule.rule.kind == RuleKind::Nobody) {
        let hint = Some("direction = \"upload\" keeps it on the node that wrote it".into());
        report.warning(owner.at, format!("a row of {name} inserted on a node is sent to the server and vanishes from the node"), hint);
        return;
    }
    // Through a table that the node can write too, the author can make the row visible in the same transaction.
    let through = rules.iter().find_map(|rule| match &rule.rule.kind {
        RuleKind::Path(path) => path.hops.first().map(|hop| draft.shape(hop.table).name.clone()),
        RuleKind::Referenced(by) => by.first().map(|reference| draft.shape(reference.table).name.clone()),
        RuleKind::Everyone | RuleKind::Nobody => None,
    });
    let message = format!("a row of {name} inserted on a node is not visible to its author by itself");
    let hint = match through {
        Some(table) => format!("insert it together with a row of {table} in one transaction, or add an owner column"),
        None => "add an owner column and a rule of its own".to_owned(),
    };
    report.warning(owner.at, message, Some(hint));
}

fn upload(index: usize, owner: &DraftObject, draft: &Draft<'_>, report: &mut Report<'_>) {
    if owner.object.direction != Direction::Upload {
        return;
    }
    let name = &owner.object.name;
    for rule in draft.rules_of(index) {
        match rule.rule.kind {
            RuleKind::Everyone => {
                let message = format!("{}: every new node gets all rows of {name}, though later ones are not sent down", rule.rule.name);
                report.warning(rule.at, message, Some("'nobody', or a rule that says whose rows they are".into()));
            }
            RuleKind::Referenced(_) => {
                let message = format!("{}: 'referenced' cannot say whose uploaded rows these are", rule.rule.name);
                report.warning(rule.at, message, Some("give it a rule with node.NAME".into()));
            }
            RuleKind::Nobody => {
                let message = format!("rows of {name} are private: a node that is replaced or extracted again does not get them back");
                report.warning(rule.at, message, None);
            }
            RuleKind::Path(_) => {}
        }
    }
}

fn windows(index: usize, owner: &DraftObject, draft: &Draft<'_>, report: &mut Report<'_>) {
    let all = owner.object.window.iter().map(|window| (window, owner.at)).chain(draft.rules_of(index).filter_map(|rule| {
        let window = rule.rule.window.as_ref()?;
        Some((window, rule.at))
    }));
    for (window, at) in all {
        let column = draft.column(owner.object.table, window.column);
        let declared = column.decl_type.to_ascii_uppercase();
        // Whole numbers are read as seconds since 1970; a real is not.
        if ["REAL", "FLOA", "DOUB"].iter().any(|part| declared.contains(part)) && !declared.contains("INT") {
            let message = format!(
                "{}: window over {}, declared {}: only text like 2024-07-04 and whole seconds since 1970 are dates, other rows stay",
                owner.object.name, column.name, column.decl_type
            );
            report.warning(at, message, Some("store dates as text".into()));
        }
        if owner.object.direction == Direction::Upload && owner.object.window.is_none() {
            let message = format!("{}: a window of a single rule does not prune uploaded rows", owner.object.name);
            report.warning(at, message, Some("write the window at the object".into()));
        }
    }
}

/// Server triggers that write what nodes change too: both sides would do the same work (R11).
fn triggers(index: usize, owner: &DraftObject, draft: &Draft<'_>, options: &MergeOptions, report: &mut Report<'_>) {
    if owner.object.direction == Direction::Download {
        return;
    }
    for table in draft.tables_of(index) {
        let name = &draft.shape(table).name;
        for source in &draft.schema.tables {
            for (trigger, sql) in &source.triggers {
                let writes = sqltext::writes(sql);
                let of_table = || writes.iter().filter(|write| write.table.eq_ignore_ascii_case(name));
                let told = |what: &str| {
                    format!(
                        "trigger {trigger} on {} writes {what}, which nodes change too: it runs on the server only, at the merge",
                        source.name
                    )
                };
                if of_table().any(|write| write.columns.is_none()) {
                    report.warning(owner.at, told(name), Some("a program on a node must not do the same work itself".into()));
                }
                let columns: BTreeSet<usize> = of_table()
                    .flat_map(|write| write.columns.iter().flatten())
                    .filter_map(|column| draft.shape(table).columns.iter().position(|known| known.name.eq_ignore_ascii_case(column)))
                    .collect();
                for column in columns {
                    let declared = &draft.column(table, column).name;
                    let settled = options.download_only.iter().any(|(of, only)| of == name && only == declared);
                    if settled || draft.omitted.contains_key(&(table, column)) {
                        continue;
                    }
                    let hint = match owner.object.direction {
                        Direction::TwoWay if !draft.shape(table).key.contains(&column) => format!(
                            "[table.{}.column.{}]  direction = \"download\",  or let nodes not change it",
                            toml_key(name),
                            toml_key(declared)
                        ),
                        _ => "a program on a node must not do the same work itself".to_owned(),
                    };
                    report.warning(owner.at, told(&format!("{name}.{declared}")), Some(hint));
                }
            }
        }
    }
}

/// Returns a name as a key of TOML.
fn toml_key(name: &str) -> String {
    let is_bare = !name.is_empty() && name.chars().all(|char| char.is_ascii_alphanumeric() || char == '_' || char == '-');
    if is_bare { name.to_owned() } else { toml_string(name) }
}

fn sums(draft: &Draft<'_>, options: &MergeOptions, report: &mut Report<'_>) {
    for (rule, at) in options.conflicts.iter().zip(&options.places) {
        let Some(column) = rule.column.as_ref().filter(|_| rule.policy == ConflictPolicy::Sum) else { continue };
        let Some(shape) = draft.schema.table(&rule.table) else { continue };
        for check in checks_on(shape, column) {
            let message =
                format!("{}.{column} adds up, but CHECK ({check}) can refuse the sum of two changes that were each right", rule.table);
            report.warning(*at, message, Some("drop the CHECK, or let a person decide:  conflict = \"manual\"".into()));
        }
    }
}

fn checks_on(shape: &TableShape, column: &str) -> Vec<String> {
    sqltext::checks(&shape.sql).into_iter().filter(|check| sqltext::names(check).any(|name| name.eq_ignore_ascii_case(column))).collect()
}
