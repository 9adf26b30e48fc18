//! Closure: a node that sees a row must see what the row refers to, or the definition says aloud that it may not.
//!
//! Strict and simple: a foreign key is closed if its target is everyone's, in the same object, or 'referenced' by this object. Beside it,
//! the circle check: 'referenced' rules must not feed one another, since derivation counts of a circle never reach zero (R9).

use crate::model::dock::{Reference, RuleKind};
use crate::rules::draft::{Draft, is_whole, spell, toml_key, toml_string};
use crate::rules::problem::{At, Report};

/// Checks every foreign key of every table that nodes get.
pub(crate) fn foreign_keys(draft: &mut Draft<'_>, report: &mut Report<'_>) {
    for object in 0..draft.objects.len() {
        let nobody = !draft.unsure.contains(&object) && draft.rules_of(object).all(|rule| rule.rule.kind == RuleKind::Nobody);
        for table in draft.tables_of(object) {
            for (position, key) in draft.shape(table).foreign_keys.iter().enumerate() {
                let seen = draft.shape(table).foreign_keys.iter().take(position).any(|other| other == key);
                let accepted = draft.dangling.contains(&(table, key.columns.clone()));
                if seen || accepted || !draft.is_sent(table, &key.columns) {
                    continue;
                }
                let Some(reference) = draft.reference(table, key) else {
                    let message = format!(
                        "{} refers to {}, which does not exist",
                        draft.spell(table, &key.columns),
                        if key.to_columns.is_empty() {
                            spell(&key.to_table)
                        } else {
                            format!("{}({})", spell(&key.to_table), key.to_columns.join(", "))
                        }
                    );
                    report.problem(
                        place(object, draft),
                        message,
                        Some(format!("create it, or accept it:  {}", accept(table, &key.columns, draft))),
                    );
                    continue;
                };
                one(object, &reference, nobody, draft, report);
            }
        }
    }
}

fn one(object: usize, reference: &Reference, nobody: bool, draft: &Draft<'_>, report: &mut Report<'_>) {
    let (from, to) = (&draft.shape(reference.table).name, &draft.shape(reference.to_table).name);
    let written = draft.spell(reference.table, &reference.columns);
    let at = place(object, draft);
    let accept = accept(reference.table, &reference.columns, draft);
    let Some(target) = draft.object_of.get(&reference.to_table).copied() else {
        let message = format!("nodes get {from}, but not the table {to} to which it refers ({written})");
        report.problem(at, message, Some(format!("add to reference:  {}      or accept it:  {accept}", toml_string(to))));
        return;
    };
    if nobody || draft.is_everyones(target) {
        return;
    }
    let Some(owner) = draft.objects.get(target) else { return };
    if draft.unsure.contains(&target) {
        // One of its rules is wrong and reported; it may be the one that would close this.
        return;
    }
    let primary = owner.object.table == reference.to_table;
    let heading = format!("[object.{}]", toml_key(&owner.object.name));
    if reference.table == reference.to_table {
        let message =
            format!("a node may see a row of {from} but not the {to} row it refers to ({written}): a table that refers to itself");
        report.problem(at, message, Some(format!("show all of it:  visible = 'everyone'      or accept it:  {accept}")));
        return;
    }
    if target == object {
        if draft.member_of.get(&reference.table) != Some(reference) {
            let message =
                format!("{written} must refer to the same {} as its row does, or a node may not have the {to} row", owner.object.name);
            report.warning(at, message, Some(format!("if it can be another one:  {accept}")));
        }
        return;
    }
    let needs = |rule: &RuleKind| matches!(rule, RuleKind::Referenced(by) if by.contains(reference));
    let covering = draft.rules_of(target).filter(|rule| needs(&rule.rule.kind)).collect::<Vec<_>>();
    let message = format!("a node may see a row of {from} but not the {to} row it refers to ({written})");
    if covering.iter().any(|rule| is_whole(&rule.rule)) && owner.object.window.is_none() {
        return;
    }
    let hint = if !covering.is_empty() {
        let narrow = covering.first().map_or("", |rule| rule.rule.name.as_str());
        match owner.object.window {
            Some(_) => format!("the window of {heading} can hide it: give the window to single rules, or accept it:  {accept}"),
            None => format!("{narrow} is narrowed by its where or window: take that out, or accept it:  {accept}"),
        }
    } else if !primary {
        format!("{to} travels with {}: make it an object of its own, or accept it:  {accept}", owner.object.name)
    } else {
        match draft.rules_of(target).find(|rule| matches!(rule.rule.kind, RuleKind::Referenced(_))) {
            Some(rule) => {
                format!("{heading} says '{}': add {}      or accept it:  {accept}", rule.text, spell(&object_name(object, draft)))
            }
            None => format!("add to {heading}:  visible.needed = 'referenced'      or accept it:  {accept}"),
        }
    };
    report.problem(at, message, Some(hint));
}

fn object_name(object: usize, draft: &Draft<'_>) -> String {
    draft.objects.get(object).map(|owner| owner.object.name.clone()).unwrap_or_default()
}

fn place(object: usize, draft: &Draft<'_>) -> At {
    draft.objects.get(object).map(|owner| owner.at).unwrap_or_default()
}

fn accept(table: usize, columns: &[usize], draft: &Draft<'_>) -> String {
    let list = format!("dangling = [{}]", toml_string(&draft.spell(table, columns)));
    // A reference table has no object section of its own to put the list in.
    let owner = draft.object_of.get(&table).and_then(|object| draft.objects.get(*object));
    match owner {
        Some(owner) if owner.at == owner.name_at => format!("[table.{}]  {list}", toml_key(&draft.shape(table).name)),
        _ => list,
    }
}

/// Reports circles among 'referenced' rules, each once.
pub(crate) fn circles(draft: &Draft<'_>, report: &mut Report<'_>) {
    let count = draft.objects.len();
    // feeds[a] = objects b with a rule 'referenced by a'.
    let mut feeds = vec![Vec::new(); count];
    for rule in &draft.rules {
        if let RuleKind::Referenced(by) = &rule.rule.kind {
            for reference in by {
                if let Some(source) = draft.object_of.get(&reference.table).and_then(|source| feeds.get_mut(*source))
                    && !source.contains(&rule.rule.object)
                {
                    source.push(rule.rule.object);
                }
            }
        }
    }
    let mut reported = vec![false; count];
    for start in 0..count {
        if reported.get(start).copied().unwrap_or(true) {
            continue;
        }
        let Some(circle) = circle_through(start, &feeds) else { continue };
        for object in &circle {
            if let Some(done) = reported.get_mut(*object) {
                *done = true;
            }
        }
        describe(&circle, draft, report);
    }
}

/// Returns the shortest circle through an object, beginning with it.
fn circle_through(start: usize, feeds: &[Vec<usize>]) -> Option<Vec<usize>> {
    let mut came_from: Vec<Option<usize>> = vec![None; feeds.len()];
    let mut queue = std::collections::VecDeque::from([start]);
    while let Some(object) = queue.pop_front() {
        for next in feeds.get(object)? {
            if *next == start {
                let mut circle = vec![object];
                let mut at = object;
                while at != start {
                    at = came_from.get(at).copied().flatten()?;
                    circle.push(at);
                }
                circle.reverse();
                return Some(circle);
            }
            let slot = came_from.get_mut(*next)?;
            if slot.is_none() {
                *slot = Some(object);
                queue.push_back(*next);
            }
        }
    }
    None
}

fn describe(circle: &[usize], draft: &Draft<'_>, report: &mut Report<'_>) {
    let rule_fed_by = |object: usize, source: usize| {
        draft.rules_of(object).find(|rule| match &rule.rule.kind {
            RuleKind::Referenced(by) => by.iter().any(|reference| draft.object_of.get(&reference.table) == Some(&source)),
            _ => false,
        })
    };
    let mut parts: Vec<(At, String)> = Vec::new();
    // Each object of the circle is fed by the one before it; read backwards it tells who is referenced by whom.
    for (position, object) in circle.iter().enumerate().rev() {
        let source = circle.get(position.checked_sub(1).unwrap_or(circle.len() - 1)).copied().unwrap_or(*object);
        if let Some(rule) = rule_fed_by(*object, source) {
            parts.push((rule.at, format!("{} '{}'", object_name(*object, draft), rule.text)));
        }
    }
    // The rule written last closed the circle: it comes first, and the message stands at it.
    let last = (0..parts.len()).max_by_key(|part| parts.get(*part).map(|(at, _)| *at)).unwrap_or_default();
    parts.rotate_left(last);
    let at = parts.first().map(|(at, _)| *at).unwrap_or_default();
    let parts: Vec<String> = parts.into_iter().map(|(_, part)| part).collect();
    let first = circle.first().map(|object| object_name(*object, draft)).unwrap_or_default();
    let hint = match circle.len() {
        1 => format!("rows of {first} cannot be shown by rows of {first}: visible = 'everyone', or a rule of its own and dangling"),
        _ => "give one of them a rule of its own in its place, make it 'everyone', or accept its foreign key as dangling".to_owned(),
    };
    report.problem(at, format!("circle: {}", parts.join(", ")), Some(hint));
}
