//! How `explain` looks: the verdict, one line per rule with what was walked, one line per stage, and what holds the row where it is.

use crate::base::ids::FileNo;
use crate::cds::verdict::{KindVerdict, PathVerdict, ReferrerVerdict, RowVerdict, RuleVerdict, Why};
use crate::cli::output::{count, some, table};
use crate::model::node::Node;
use crate::model::value::{Value, display_key};
use crate::server::explain::{Explanation, sent_text};
use crate::server::trail::{At, Place, Trail};
use crate::store::logged::LoggedChange;
use serde_json::{Value as Json, json};

/// Returns an explanation as text.
pub fn text(explained: &Explanation) -> String {
    let row = format!("{} {}", explained.table, display_key(&explained.key));
    let mut lines =
        vec![format!("{row} for {}, as of txn {}: {}", explained.node.name, count(explained.trail.position.0), summary(explained))];
    if let Some(verdict) = &explained.verdict {
        let mut rows = Vec::new();
        verdict_rows(verdict, &explained.node, 0, &mut rows);
        if !rows.is_empty() {
            lines.extend([String::new(), table(&["rule", "shows it", "why"], rows, &[])]);
        }
    }
    let stages = stages(explained).into_iter().map(|stage| stage.to_vec()).collect();
    lines.extend([String::new(), table(&["stage", "has it", "where"], stages, &[])]);
    for held in &explained.held_by {
        lines.push(match held.command.as_str() {
            "" => format!("! {}", held.what),
            command => format!("! {}: {command}", held.what),
        });
    }
    lines.join("\n")
}

fn summary(explained: &Explanation) -> String {
    let seen = match &explained.verdict {
        None => "there is no such row".to_owned(),
        Some(verdict) if verdict.visible => format!("visible by {}", verdict.by.iter().cloned().collect::<Vec<_>>().join(", ")),
        Some(verdict) if verdict.why == Why::Unowned => "no object has this table, so no node gets it".to_owned(),
        Some(_) => "not visible".to_owned(),
    };
    format!("{seen}; {}", place_text(explained.place))
}

/// Where the row is, in half a sentence.
pub fn place_text(place: Place) -> String {
    let file = |at: At, what: &str| format!("{what} file {} (txn {})", at.file, count(at.unit.0));
    match place {
        Place::NotStarted => "the node has no extract yet".to_owned(),
        Place::Disabled => "the node is disabled".to_owned(),
        Place::Stale => "the node was away for too long and begins anew when it comes back".to_owned(),
        Place::Log(at) => format!("its last change waits in the log at {}", count(at.0)),
        Place::Txnproc(at) => file(at, "its last change waits for the router in txnproc"),
        Place::Extract => "it is in the extract, with which the node has not synchronised yet".to_owned(),
        Place::Outbox(at) => file(at, "its last change waits in outbox"),
        Place::Received(at) => file(at, "its last change was received and not applied, in"),
        Place::Applied(at) => file(at, "its last change was applied with"),
        Place::InExtract => "it came with the extract".to_owned(),
        Place::NeverSent => "nothing of it was sent".to_owned(),
    }
}

fn yes(holds: bool) -> String {
    if holds { "yes" } else { "no" }.to_owned()
}

/// Adds a line per rule; rules of rows that it leads to follow, indented.
fn verdict_rows(verdict: &RowVerdict, node: &Node, depth: usize, rows: &mut Vec<Vec<String>>) {
    let indent = "  ".repeat(depth);
    match &verdict.why {
        Why::Unowned => {}
        Why::TooDeep => rows.push(vec![format!("{indent}.."), yes(verdict.visible), "the rules lead on further".to_owned()]),
        Why::Member { by, parent } => {
            let why = match parent {
                None => "there is no parent".to_owned(),
                Some(parent) => format!("goes with {} {}", parent.table, display_key(&parent.key)),
            };
            rows.push(vec![format!("{indent}{by}"), yes(verdict.visible), why]);
            if let Some(parent) = parent {
                verdict_rows(parent, node, depth + 1, rows);
            }
        }
        Why::Rules(rules) => {
            for rule in rules {
                rows.push(vec![format!("{indent}{}", rule.name), yes(rule.visible), rule_text(rule, node)]);
                if let KindVerdict::Referenced(referrers) = &rule.kind {
                    for shown in referrers.iter().filter_map(|referrer| referrer.shown.as_ref()) {
                        rows.push(vec![
                            format!("{indent}  {} {}", shown.table, display_key(&shown.key)),
                            yes(shown.visible),
                            "refers to it".to_owned(),
                        ]);
                        verdict_rows(shown, node, depth + 2, rows);
                    }
                }
            }
        }
    }
}

fn rule_text(rule: &RuleVerdict, node: &Node) -> String {
    let mut parts = Vec::new();
    if !rule.in_model {
        parts.push(format!("not in model {}", node.model.as_deref().unwrap_or("-")));
    }
    if let Some(predicate) = &rule.predicate {
        let holds = if predicate.holds { "holds" } else { "does not hold" };
        parts.push(format!("where {} {holds} ({})", predicate.sql, predicate.values));
    }
    for window in &rule.windows {
        let inside = if window.holds { "inside" } else { "too old" };
        parts.push(format!("{} within {} days: {} is {inside}", window.column, window.days, window.value));
    }
    parts.push(match &rule.kind {
        KindVerdict::Everyone => "every node sees it".to_owned(),
        KindVerdict::Nobody => "no node sees it".to_owned(),
        KindVerdict::Path(path) => path_text(path),
        KindVerdict::Referenced(referrers) if referrers.is_empty() => "nothing that a node sees can refer to it".to_owned(),
        KindVerdict::Referenced(referrers) => referrers.iter().map(referrer_text).collect::<Vec<_>>().join("; "),
    });
    parts.join("; ")
}

fn path_text(path: &PathVerdict) -> String {
    let mut chain = vec![path.start.clone()];
    for step in &path.steps {
        let more = if step.rows > 1 { format!(" (of {} rows)", step.rows) } else { String::new() };
        chain.push(format!("{} {} by {}{more}", step.table, display_key(&step.key), step.on));
    }
    let list = |values: &[Value]| match values {
        [] => "no value".to_owned(),
        values => values.iter().map(Value::to_string).collect::<Vec<_>>().join(", "),
    };
    let end = match (&path.matched, &path.ended) {
        (Some(value), _) => format!("{value} = node.{}", path.attribute),
        (None, Some(ended)) => format!("no row of {ended}"),
        (None, None) => {
            let more = if path.cut { " and more" } else { "" };
            format!("reaches {}{more}; node.{} has {}", list(&path.reached), path.attribute, list(&path.node_values))
        }
    };
    chain.push(end);
    chain.join(" -> ")
}

fn referrer_text(referrer: &ReferrerVerdict) -> String {
    let more = if referrer.cut { "more than " } else { "" };
    let rows = some(referrer.rows as u64, "row refers to it", "rows refer to it");
    let seen = match &referrer.shown {
        Some(shown) if shown.visible => format!(", {} {} is visible", shown.table, display_key(&shown.key)),
        Some(_) => ", none is visible".to_owned(),
        None => String::new(),
    };
    format!("{more}{rows} by {}{seen}", referrer.by)
}

/// Stage, yes or no, and where.
fn stages(explained: &Explanation) -> Vec<[String; 3]> {
    let trail = &explained.trail;
    let waits = |reached: bool| if reached { "yes" } else { "waits" };
    let at = |at: At| format!("file {}, txn {}", at.file, count(at.unit.0));
    let logged = match trail.logged {
        Some(logged) => format!("{} at {}", change_text(logged.what), count(logged.at.0)),
        None => format!(
            "not named by the log rows kept{}",
            trail.log_begin.map(|first| format!(", from {}", count(first.0))).unwrap_or_default()
        ),
    };
    let read = trail.logged.is_none_or(|logged| logged.at <= trail.position);
    let txnproc = match trail.changed {
        Some(place) => at(place),
        None => format!("in none of the files kept{}", trail.txnproc_from.map(|file| format!(", from {file}")).unwrap_or_default()),
    };
    let sent = match (trail.sent, trail.start) {
        (Some((place, sent)), _) => format!("{}: {}", at(place), sent_text(sent)),
        (None, Some(start)) => {
            let from =
                trail.outbox_from.filter(|file| file.0 > 1).map(|file| format!(" (those before {file} are purged)")).unwrap_or_default();
            format!("extract {} as of txn {}; no file since names it{from}", explained.node.incarnation, count(start.0))
        }
        (None, None) => "-".to_owned(),
    };
    let marked = |file: FileNo, what: &str| match file {
        FileNo(0) => format!("nothing {what} since the extract"),
        file => format!("{what} to file {file}"),
    };
    let (received, applied) = match &trail.mark {
        None => ("the node has not synchronised with this extract yet".to_owned(), "-".to_owned()),
        Some(mark) => {
            (marked(mark.received, "received"), format!("{}, txn {}", marked(mark.applied.file, "applied"), count(mark.applied.unit.0)))
        }
    };
    let is = |places: &[bool]| places.iter().all(|place| *place);
    let routed = is(&[read, trail.waiting.is_none(), trail.start.is_some()]);
    let has = routed && matches!(explained.place, Place::Received(_) | Place::Applied(_) | Place::InExtract);
    let done = routed && matches!(explained.place, Place::Applied(_) | Place::InExtract);
    let nothing = explained.place == Place::NeverSent;
    let of_node = |reached: bool| if nothing { "-".to_owned() } else { waits(reached).to_owned() };
    vec![
        ["log".to_owned(), if trail.logged.is_some() { "yes" } else { "-" }.to_owned(), logged],
        ["txnproc".to_owned(), waits(read).to_owned(), txnproc],
        ["router".to_owned(), of_node(routed), sent],
        ["received".to_owned(), of_node(has), received],
        ["applied".to_owned(), of_node(done), applied],
    ]
}

fn change_text(change: LoggedChange) -> &'static str {
    match change {
        LoggedChange::Insert => "insert",
        LoggedChange::Update => "update",
        LoggedChange::Delete => "delete",
        LoggedChange::Hint => "perhaps replaced",
    }
}

/// Returns an explanation as JSON.
pub fn to_json(explained: &Explanation) -> Json {
    let trail = &explained.trail;
    json!({
        "node": explained.node.name.as_str(), "table": explained.table, "key": values(&explained.key), "position": trail.position.0,
        "row": explained.verdict.is_some(), "visible": explained.verdict.as_ref().is_some_and(|verdict| verdict.visible),
        "verdict": explained.verdict.as_ref().map(verdict_json),
        "place": place_json(explained.place), "stages": trail_json(trail),
        "held_by": explained.held_by.iter().map(|held| json!({ "what": held.what, "command": held.command })).collect::<Vec<_>>(),
    })
}

/// A number or a text as JSON's own, anything else as its SQL literal.
fn values(values: &[Value]) -> Json {
    let one = |value: &Value| match value {
        Value::Integer(integer) => json!(integer),
        Value::Real(real) => json!(real),
        Value::Text(bytes) => std::str::from_utf8(bytes).map_or_else(|_| json!(value.to_string()), |text| json!(text)),
        other => json!(other.to_string()),
    };
    values.iter().map(one).collect()
}

fn verdict_json(verdict: &RowVerdict) -> Json {
    let mut document = json!({ "table": verdict.table, "key": values(&verdict.key), "visible": verdict.visible, "by": verdict.by });
    match &verdict.why {
        Why::Unowned => document["why"] = json!("no object"),
        Why::TooDeep => document["why"] = json!("too deep"),
        Why::Member { by, parent } => {
            document["member_by"] = json!(by);
            document["parent"] = parent.as_ref().map(|parent| verdict_json(parent)).into();
        }
        Why::Rules(rules) => document["rules"] = rules.iter().map(rule_json).collect(),
    }
    document
}

fn rule_json(rule: &RuleVerdict) -> Json {
    let windows: Vec<Json> = rule
        .windows
        .iter()
        .map(|window| json!({ "column": window.column, "value": values(std::slice::from_ref(&window.value))[0], "days": window.days, "holds": window.holds }))
        .collect();
    let kind = match &rule.kind {
        KindVerdict::Everyone => json!({ "kind": "everyone" }),
        KindVerdict::Nobody => json!({ "kind": "nobody" }),
        KindVerdict::Path(path) => json!({
            "kind": "path", "start": path.start, "attribute": path.attribute, "node_values": values(&path.node_values), "reached": values(&path.reached),
            "matched": path.matched.as_ref().map(|value| values(std::slice::from_ref(value))[0].clone()), "ended": path.ended, "cut": path.cut,
            "steps": path.steps.iter().map(|step| json!({ "table": step.table, "on": step.on, "key": values(&step.key), "rows": step.rows })).collect::<Vec<_>>(),
        }),
        KindVerdict::Referenced(referrers) => json!({
            "kind": "referenced",
            "referrers": referrers.iter().map(|referrer| json!({
                "by": referrer.by, "rows": referrer.rows, "cut": referrer.cut, "shown": referrer.shown.as_ref().map(|shown| verdict_json(shown)),
            })).collect::<Vec<_>>(),
        }),
    };
    let predicate = rule.predicate.as_ref().map(|found| json!({ "sql": found.sql, "values": found.values, "holds": found.holds }));
    json!({ "name": rule.name, "visible": rule.visible, "in_model": rule.in_model, "where": predicate, "windows": windows, "reason": kind })
}

fn at_json(at: At) -> Json {
    json!({ "file": at.file.0, "txn": at.unit.0 })
}

fn place_json(place: Place) -> Json {
    let (name, at) = match place {
        Place::NotStarted => ("not started", Json::Null),
        Place::Disabled => ("disabled", Json::Null),
        Place::Stale => ("stale", Json::Null),
        Place::Log(txn) => ("log", json!({ "txn": txn.0 })),
        Place::Txnproc(at) => ("txnproc", at_json(at)),
        Place::Extract => ("extract", Json::Null),
        Place::Outbox(at) => ("outbox", at_json(at)),
        Place::Received(at) => ("received", at_json(at)),
        Place::Applied(at) => ("applied", at_json(at)),
        Place::InExtract => ("in extract", Json::Null),
        Place::NeverSent => ("never sent", Json::Null),
    };
    json!({ "stage": name, "at": at, "text": place_text(place) })
}

fn trail_json(trail: &Trail) -> Json {
    json!({
        "log_end": trail.log_end.0, "log_begin": trail.log_begin.map(|first| first.0),
        "logged": trail.logged.map(|logged| json!({ "txn": logged.at.0, "change": change_text(logged.what) })),
        "changed": trail.changed.map(at_json), "txnproc_searched_from": trail.txnproc_from.map(|file| file.0), "waiting": trail.waiting.map(at_json),
        "router": trail.router.map(|router| router.0), "start": trail.start.map(|start| start.0),
        "sent": trail.sent.map(|(at, sent)| json!({ "file": at.file.0, "txn": at.unit.0, "operation": sent.to_string() })),
        "outbox_searched_from": trail.outbox_from.map(|file| file.0), "missing_file": trail.missing.map(|file| file.0),
        "extract_ready": trail.extract_ready, "received": trail.mark.as_ref().map(|mark| mark.received.0),
        "applied": trail.mark.as_ref().map(|mark| json!({ "file": mark.applied.file.0, "txn": mark.applied.unit.0 })),
    })
}
