//! What a node's change comes to against the server's row: a pure decision per row (R3, R29, R43, scenario F2).
//!
//! A field conflicts iff the server's value is none of before, base and after, by type and bytes. So a value that others changed and
//! changed back is no conflict, nor is it one when both sides came to the same. The caller reads all facts of a unit before it writes
//! anything (R11).

use crate::model::event::TableHeading;
use crate::model::merge_rules::{ConflictPolicy, DeletePolicy, MergeRules};
use crate::model::upload::{FieldChange, RowChange, Winner};
use crate::model::value::{Row, Value};
use std::cmp::Ordering;

/// Everything that the decision on one row rests on. All rows are in the heading's order.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Columns of the rows.
    pub heading: &'a TableHeading,
    /// What the node did.
    pub change: &'a RowChange,
    /// The server's row under the key before the change (of an insert: under its own, which is not one that gets replaced, R12);
    /// `None` = there is none.
    pub server: Option<&'a Row>,
    /// The table's rules.
    pub rules: &'a MergeRules,
    /// Whether the node sees the server's row.
    pub view: View,
}

/// Whether the row is in the node's view; the caller asks for its rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum View {
    /// It is.
    #[default]
    Inside,
    /// It was, and left it meanwhile: the server's row stays.
    Left,
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decision {
    /// What is written.
    pub write: Write,
    /// What is recorded.
    pub conflicts: Vec<Found>,
}

/// What is written to a row.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Write {
    /// Nothing.
    #[default]
    Nothing,
    /// A new row: all columns of the heading.
    Insert(Row),
    /// Columns of the row, by their place in the heading.
    Update(Vec<(u16, Value)>),
    /// The row goes.
    Delete,
}

/// One conflict.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The column, by its place in the heading; `None` = the row.
    pub column: Option<u16>,
    /// The server's value as the node knew it; of a row, its columns.
    pub base: Option<Side>,
    /// The server's value now.
    pub server: Option<Side>,
    /// The node's.
    pub client: Option<Side>,
    /// Whose stands.
    pub winner: Winner,
    /// What decided.
    pub rule: String,
}

/// What one side has: of a field its value, of a row the columns that matter, by their place in the heading.
#[derive(Debug, Clone, PartialEq)]
pub enum Side {
    /// A field.
    Value(Value),
    /// A row.
    Columns(Vec<(u16, Value)>),
}

/// Why a change cannot be merged.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MergeRefusal {
    /// Another row has its key.
    #[error("a row with this key is there already, and it is another one")]
    KeyTaken,
    /// A sum left the range of numbers.
    #[error("column {column}: {server} + ({after} - {before}) is out of range")]
    Overflow {
        /// The column.
        column: String,
        /// The server's value.
        server: Value,
        /// The node's value before.
        before: Value,
        /// The node's value after.
        after: Value,
    },
    /// The file does not fit its heading.
    #[error("its values do not fit the columns that the file names")]
    Misfit,
}

/// Name of the rule for a column that only the server changes.
pub const RULE_DOWNLOAD_ONLY: &str = "download-only";
/// Name of the rule for a row that left the node's view.
pub const RULE_OUT_OF_VIEW: &str = "out-of-view";
/// Name of the rule by which a delete beats an update.
pub const RULE_DELETE_WINS: &str = "delete-wins";
/// Name of the rule by which an update beats a delete.
pub const RULE_RESURRECT: &str = "resurrect";

/// Decides on one row.
///
/// # Errors
/// The unit is to be refused.
pub fn decide(facts: &Facts<'_>) -> Result<Decision, MergeRefusal> {
    match facts.change {
        RowChange::Insert { row } => insert(facts, row),
        RowChange::Update { fields, whole, .. } => match facts.server {
            Some(server) => update(facts, fields, server),
            None => Ok(update_of_nothing(facts, fields, whole.as_ref())),
        },
        RowChange::Delete { before, base, .. } => match facts.server {
            // Both sides deleted it.
            None => Ok(Decision::default()),
            Some(server) => delete(facts, before, base.as_ref(), server),
        },
    }
}

fn insert(facts: &Facts<'_>, row: &Row) -> Result<Decision, MergeRefusal> {
    if row.len() != facts.heading.columns.len() {
        return Err(MergeRefusal::Misfit);
    }
    let write = match facts.server {
        None => Write::Insert(row.clone()),
        Some(server) if is_same_row(facts, row, server) => Write::Nothing,
        Some(_) => return Err(MergeRefusal::KeyTaken),
    };
    Ok(Decision { write, conflicts: Vec::new() })
}

/// Whether two rows are the same in all that a node may set.
fn is_same_row(facts: &Facts<'_>, row: &Row, server: &Row) -> bool {
    let names = facts.heading.columns.iter();
    names.zip(row.iter().zip(server)).all(|(name, (ours, theirs))| ours == theirs || facts.rules.is_download_only(name))
}

fn update(facts: &Facts<'_>, fields: &[FieldChange], server: &Row) -> Result<Decision, MergeRefusal> {
    if facts.view == View::Left {
        return Ok(Decision { write: Write::Nothing, conflicts: vec![lost_update(facts, fields, Some(server), RULE_OUT_OF_VIEW)] });
    }
    let mut decision = Decision::default();
    let mut columns = Vec::new();
    for field in fields {
        let name = facts.heading.columns.get(usize::from(field.column)).ok_or(MergeRefusal::Misfit)?;
        let theirs = server.get(usize::from(field.column)).ok_or(MergeRefusal::Misfit)?;
        let agreed = [&field.before, &field.base, &field.after].contains(&theirs);
        let mut found = |winner, rule: String| {
            decision.conflicts.push(Found {
                column: Some(field.column),
                base: Some(Side::Value(field.base.clone())),
                server: Some(Side::Value(theirs.clone())),
                client: Some(Side::Value(field.after.clone())),
                winner,
                rule,
            });
        };
        if facts.rules.is_download_only(name) {
            if *theirs != field.after {
                found(Winner::Server, RULE_DOWNLOAD_ONLY.to_owned());
            }
            continue;
        }
        let policy = facts.rules.policy_of(name);
        if *policy == ConflictPolicy::Sum
            && let Some(sum) = sum(name, theirs, field)?
        {
            if !agreed {
                found(Winner::Both, policy.to_string());
            }
            if sum != *theirs {
                columns.push((field.column, sum));
            }
            continue;
        }
        let winner = if agreed { Winner::Client } else { winner(facts, policy, fields, server) };
        if !agreed {
            found(winner, policy.to_string());
        }
        if winner == Winner::Client && *theirs != field.after {
            columns.push((field.column, field.after.clone()));
        }
    }
    if !columns.is_empty() {
        decision.write = Write::Update(columns);
    }
    Ok(decision)
}

/// Returns whose value stands where two differ.
fn winner(facts: &Facts<'_>, policy: &ConflictPolicy, fields: &[FieldChange], server: &Row) -> Winner {
    match policy {
        // What cannot be added (NULL, text) is not the node's to replace.
        ConflictPolicy::ServerWins | ConflictPolicy::Sum => Winner::Server,
        ConflictPolicy::ClientWins => Winner::Client,
        ConflictPolicy::Manual => Winner::Open,
        ConflictPolicy::Newest(column) => {
            let place = facts.heading.columns.iter().position(|name| name.eq_ignore_ascii_case(column));
            let theirs = place.and_then(|place| server.get(place));
            // A node that did not touch the column has the server's older value, or the same one.
            let ours = fields.iter().find(|field| Some(usize::from(field.column)) == place).map(|field| &field.after);
            match (ours, theirs) {
                (Some(ours), Some(theirs)) if ours.sql_order(theirs) == Ordering::Greater => Winner::Client,
                _ => Winner::Server,
            }
        }
    }
}

/// Returns server + (after - before); `None` if one of them is no number.
fn sum(column: &str, server: &Value, field: &FieldChange) -> Result<Option<Value>, MergeRefusal> {
    let real = |value: &Value| match value {
        Value::Integer(integer) => Some(*integer as f64),
        Value::Real(real) => Some(*real),
        _ => None,
    };
    let added = match (server, &field.before, &field.after) {
        (Value::Integer(server), Value::Integer(before), Value::Integer(after)) => {
            let sum = i128::from(*server) + (i128::from(*after) - i128::from(*before));
            i64::try_from(sum).ok().map(Value::Integer)
        }
        (server, before, after) => {
            let (Some(server), Some(before), Some(after)) = (real(server), real(before), real(after)) else { return Ok(None) };
            Some(server + (after - before)).filter(|sum| sum.is_finite()).map(Value::Real)
        }
    };
    let overflow = || MergeRefusal::Overflow {
        column: column.to_owned(),
        server: server.clone(),
        before: field.before.clone(),
        after: field.after.clone(),
    };
    added.map(Some).ok_or_else(overflow)
}

/// An update of a row that the server does not have any more.
fn update_of_nothing(facts: &Facts<'_>, fields: &[FieldChange], whole: Option<&Row>) -> Decision {
    if facts.rules.delete == DeletePolicy::Resurrect
        && let Some(whole) = whole.filter(|row| row.len() == facts.heading.columns.len())
    {
        let found = Found { winner: Winner::Client, ..lost_update(facts, fields, None, RULE_RESURRECT) };
        return Decision { write: Write::Insert(whole.clone()), conflicts: vec![found] };
    }
    Decision { write: Write::Nothing, conflicts: vec![lost_update(facts, fields, None, RULE_DELETE_WINS)] }
}

fn lost_update(facts: &Facts<'_>, fields: &[FieldChange], server: Option<&Row>, rule: &str) -> Found {
    let columns = |of: fn(&FieldChange) -> &Value| Some(Side::Columns(fields.iter().map(|f| (f.column, of(f).clone())).collect()));
    let theirs = |row: &Row| {
        let values = fields.iter().filter_map(|field| Some((field.column, row.get(usize::from(field.column))?.clone())));
        Side::Columns(values.collect())
    };
    debug_assert!(fields.iter().all(|field| usize::from(field.column) < facts.heading.columns.len()));
    Found {
        column: None,
        base: columns(|field| &field.base),
        server: server.map(theirs),
        client: columns(|field| &field.after),
        winner: Winner::Server,
        rule: rule.to_owned(),
    }
}

fn delete(facts: &Facts<'_>, before: &Row, base: Option<&Row>, server: &Row) -> Result<Decision, MergeRefusal> {
    let columns = facts.heading.columns.len();
    if before.len() != columns || server.len() != columns || base.is_some_and(|base| base.len() != columns) {
        return Err(MergeRefusal::Misfit);
    }
    let base = base.unwrap_or(before);
    let all = |row: &Row| Some(Side::Columns((0u16..).zip(row.iter().cloned()).collect()));
    let found =
        |winner, rule: &str| Found { column: None, base: all(base), server: all(server), client: None, winner, rule: rule.to_owned() };
    if facts.view == View::Left {
        return Ok(Decision { write: Write::Nothing, conflicts: vec![found(Winner::Server, RULE_OUT_OF_VIEW)] });
    }
    let changed = server.iter().zip(before.iter().zip(base)).any(|(theirs, (before, base))| theirs != before && theirs != base);
    Ok(match (changed, facts.rules.delete) {
        (false, _) => Decision { write: Write::Delete, conflicts: Vec::new() },
        (true, DeletePolicy::Wins) => Decision { write: Write::Delete, conflicts: vec![found(Winner::Client, RULE_DELETE_WINS)] },
        (true, DeletePolicy::Resurrect) => Decision { write: Write::Nothing, conflicts: vec![found(Winner::Server, RULE_RESURRECT)] },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heading() -> TableHeading {
        TableHeading { name: "t".into(), columns: vec!["k".into(), "a".into(), "at".into()], key: vec![0] }
    }

    fn rules(policy: ConflictPolicy, delete: DeletePolicy) -> MergeRules {
        MergeRules { policy, delete, ..MergeRules::default() }
    }

    fn on(change: &RowChange, server: Option<&Row>, rules: &MergeRules) -> Result<Decision, MergeRefusal> {
        decide(&Facts { heading: &heading(), change, server, rules, view: View::Inside })
    }

    fn row(a: &Value, at: i64) -> Row {
        vec![Value::Integer(1), a.clone(), Value::Integer(at)]
    }

    fn edit(before: &Value, base: &Value, after: &Value) -> FieldChange {
        FieldChange { column: 1, before: before.clone(), base: base.clone(), after: after.clone() }
    }

    fn update(fields: Vec<FieldChange>) -> RowChange {
        RowChange::Update { key: vec![Value::Integer(1)], fields, whole: None }
    }

    fn values() -> Vec<Value> {
        vec![Value::Null, Value::Integer(1), Value::Integer(4), Value::Real(1.0), Value::text("x"), Value::text("X")]
    }

    /// The value of the column after the decision.
    fn stands(decision: &Decision, server: &Row) -> Value {
        match &decision.write {
            Write::Update(columns) => columns.iter().find(|(column, _)| *column == 1).map_or(server[1].clone(), |(_, value)| value.clone()),
            _ => server[1].clone(),
        }
    }

    #[test]
    fn sc_f2_r29_every_update_by_every_policy() {
        let policies =
            [ConflictPolicy::ServerWins, ConflictPolicy::ClientWins, ConflictPolicy::Manual, ConflictPolicy::Newest("AT".into())];
        let mut conflicts = 0;
        for policy in policies {
            let rules = rules(policy.clone(), DeletePolicy::Wins);
            for before in values() {
                for base in values() {
                    for after in values() {
                        for theirs in values() {
                            // Under "newest" the node's row is older, of the same time, newer, or was not stamped.
                            for ours_at in [Some(1), Some(2), Some(3), None] {
                                let server = row(&theirs, 2);
                                let mut fields = vec![edit(&before, &base, &after)];
                                fields.extend(ours_at.map(|at| FieldChange {
                                    column: 2,
                                    before: Value::Integer(2),
                                    base: Value::Integer(2),
                                    after: Value::Integer(at),
                                }));
                                let got = on(&update(fields), Some(&server), &rules).unwrap();
                                let differs = theirs != before && theirs != base && theirs != after;
                                let ours_win = match &policy {
                                    ConflictPolicy::ClientWins => true,
                                    ConflictPolicy::Newest(_) => ours_at.is_some_and(|at| at > 2),
                                    _ => false,
                                };
                                let expected = if !differs || ours_win { &after } else { &theirs };
                                assert_eq!(&stands(&got, &server), expected, "{policy} {before} {base} {after} {theirs} {ours_at:?}");
                                assert_eq!(got.conflicts.len(), usize::from(differs));
                                if let [found] = &got.conflicts[..] {
                                    conflicts += 1;
                                    let winner = match (&policy, ours_win) {
                                        (_, true) => Winner::Client,
                                        (ConflictPolicy::Manual, _) => Winner::Open,
                                        _ => Winner::Server,
                                    };
                                    assert_eq!((found.winner, &found.rule), (winner, &policy.to_string()));
                                    let sides = [&found.base, &found.server, &found.client].map(|side| side.clone().unwrap());
                                    assert_eq!(sides, [&base, &theirs, &after].map(|value| Side::Value(value.clone())));
                                }
                            }
                        }
                    }
                }
            }
        }
        assert!(conflicts > 1_000, "{conflicts}");
    }

    #[test]
    fn sc_f2_sums_add_whatever_the_server_has_and_leave_text_alone() {
        let rules = rules(ConflictPolicy::Sum, DeletePolicy::Wins);
        let sum = |server: Value, before: Value, after: Value| {
            let server = row(&server, 0);
            let got = on(&update(vec![edit(&before, &before, &after)]), Some(&server), &rules);
            got.map(|decision| (stands(&decision, &server), decision.conflicts.iter().map(|found| found.winner).collect::<Vec<_>>()))
        };
        let int = Value::Integer;
        assert_eq!(sum(int(10), int(10), int(8)).unwrap(), (int(8), vec![]));
        assert_eq!(sum(int(7), int(10), int(8)).unwrap(), (int(5), vec![Winner::Both]));
        // Both took two: four are gone.
        assert_eq!(sum(int(8), int(10), int(8)).unwrap(), (int(6), vec![]));
        assert_eq!(sum(int(3), int(i64::MIN), int(i64::MIN + 1)).unwrap(), (int(4), vec![Winner::Both]));
        assert_eq!(sum(Value::Real(1.5), int(2), int(3)).unwrap(), (Value::Real(2.5), vec![Winner::Both]));
        assert!(matches!(sum(int(i64::MAX), int(0), int(1)), Err(MergeRefusal::Overflow { .. })));
        assert!(matches!(sum(Value::Real(f64::MAX), int(0), Value::Real(f64::MAX)), Err(MergeRefusal::Overflow { .. })));
        // Nothing can be added to these: as server-wins.
        assert_eq!(sum(Value::Null, int(1), int(2)).unwrap(), (Value::Null, vec![Winner::Server]));
        assert_eq!(sum(Value::text("x"), int(1), int(2)).unwrap(), (Value::text("x"), vec![Winner::Server]));
        assert_eq!(sum(Value::Null, Value::Null, int(2)).unwrap(), (int(2), vec![]));
    }

    #[test]
    fn sc_f2_sc_f5_r43_deletes_against_updates_by_both_policies() {
        for delete in [DeletePolicy::Wins, DeletePolicy::Resurrect] {
            let rules = rules(ConflictPolicy::ServerWins, delete);
            let keeps = delete == DeletePolicy::Resurrect;
            let (old, new, other) = (row(&Value::Integer(1), 0), row(&Value::Integer(2), 0), row(&Value::Integer(9), 0));
            // The server deleted, the node changed.
            let whole = Some(new.clone());
            let change = RowChange::Update { key: vec![Value::Integer(1)], fields: vec![edit(&old[1], &old[1], &new[1])], whole };
            let got = on(&change, None, &rules).unwrap();
            assert_eq!(got.write, if keeps { Write::Insert(new.clone()) } else { Write::Nothing });
            let [found] = &got.conflicts[..] else { panic!("{got:?}") };
            assert_eq!(found.winner, if keeps { Winner::Client } else { Winner::Server });
            assert_eq!(found.client, Some(Side::Columns(vec![(1, Value::Integer(2))])));
            assert_eq!(found.column, None);
            // The node deleted; the server has what the node knew, what the node had before, something else, or nothing.
            let change = RowChange::Delete { key: vec![Value::Integer(1)], before: new.clone(), base: Some(old.clone()) };
            for (server, is_conflict) in [(&old, false), (&new, false), (&other, true)] {
                let got = on(&change, Some(server), &rules).unwrap();
                assert_eq!(got.write, if is_conflict && keeps { Write::Nothing } else { Write::Delete }, "{server:?}");
                assert_eq!(got.conflicts.len(), usize::from(is_conflict));
                if let [found] = &got.conflicts[..] {
                    assert_eq!(found.winner, if keeps { Winner::Server } else { Winner::Client });
                    assert_eq!(found.rule, if keeps { RULE_RESURRECT } else { RULE_DELETE_WINS });
                }
            }
            assert_eq!(on(&change, None, &rules).unwrap(), Decision::default());
        }
    }

    #[test]
    fn sc_f2_sc_f6_inserts_of_a_key_that_is_free_equal_or_taken() {
        let own = rules(ConflictPolicy::ClientWins, DeletePolicy::Wins);
        let (ours, other) = (row(&Value::Integer(1), 0), row(&Value::Integer(2), 0));
        let change = RowChange::Insert { row: ours.clone() };
        assert_eq!(on(&change, None, &own).unwrap().write, Write::Insert(ours.clone()));
        assert_eq!(on(&change, Some(&ours), &own).unwrap(), Decision::default());
        assert_eq!(on(&change, Some(&other), &own).unwrap_err(), MergeRefusal::KeyTaken);
        let stock = MergeRules { download_only: vec!["A".into()], ..own };
        assert_eq!(on(&change, Some(&other), &stock).unwrap(), Decision::default());
    }

    #[test]
    fn sc_f3_r11_fields_that_differ_do_not_touch_each_other_and_download_only_stays() {
        let mut rules = rules(ConflictPolicy::ServerWins, DeletePolicy::Wins);
        let server = row(&Value::Integer(7), 5);
        let fields = vec![
            edit(&Value::Integer(1), &Value::Integer(1), &Value::Integer(2)),
            FieldChange { column: 2, before: Value::Integer(5), base: Value::Integer(5), after: Value::Integer(6) },
        ];
        let got = on(&update(fields.clone()), Some(&server), &rules).unwrap();
        assert_eq!(got.write, Write::Update(vec![(2, Value::Integer(6))]));
        assert_eq!(got.conflicts.len(), 1);
        rules.policy = ConflictPolicy::ClientWins;
        rules.download_only = vec!["AT".into()];
        let got = on(&update(fields), Some(&server), &rules).unwrap();
        assert_eq!(got.write, Write::Update(vec![(1, Value::Integer(2))]));
        assert_eq!(
            got.conflicts.iter().map(|found| (found.winner, found.rule.as_str())).collect::<Vec<_>>(),
            [(Winner::Client, "client-wins"), (Winner::Server, RULE_DOWNLOAD_ONLY)]
        );
    }

    #[test]
    fn sc_f10_a_row_that_left_the_view_stays_as_the_server_has_it() {
        let rules = rules(ConflictPolicy::ClientWins, DeletePolicy::Wins);
        let server = row(&Value::Integer(1), 0);
        let update = update(vec![edit(&Value::Integer(1), &Value::Integer(1), &Value::Integer(2))]);
        let delete = RowChange::Delete { key: vec![Value::Integer(1)], before: server.clone(), base: None };
        for change in [update, delete] {
            let facts = Facts { heading: &heading(), change: &change, server: Some(&server), rules: &rules, view: View::Left };
            let got = decide(&facts).unwrap();
            assert_eq!(got.write, Write::Nothing);
            assert_eq!((got.conflicts[0].rule.as_str(), got.conflicts[0].winner), (RULE_OUT_OF_VIEW, Winner::Server));
        }
    }

    /// What became of one of three edits of a field that were pending together.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Fate {
        /// It was merged when its turn came.
        Merged,
        /// Somebody else changed the field just before its turn came.
        Lost,
        /// It is held, and those after it go on.
        Held,
        /// A person took it out.
        Ignored,
    }

    #[test]
    fn r29_chains_of_three_pending_edits() {
        let fates = [Fate::Merged, Fate::Lost, Fate::Held, Fate::Ignored];
        let rules = rules(ConflictPolicy::ServerWins, DeletePolicy::Wins);
        for chain in (0..64).map(|number| [number / 16, number / 4 % 4, number % 4].map(|fate: usize| fates[fate])) {
            let base = Value::Integer(1);
            let (mut server, mut expected) = (row(&base, 0), 1);
            for (unit, fate) in (1..).zip(chain) {
                let change = update(vec![edit(&Value::Integer(unit), &base, &Value::Integer(unit + 1))]);
                if fate == Fate::Lost {
                    server[1] = Value::Integer(100 + unit);
                    expected = 100 + unit;
                }
                if matches!(fate, Fate::Held | Fate::Ignored) {
                    continue;
                }
                // Nobody else wrote iff the server has what the node once saw of it, or what this edit began with.
                let others_wrote = expected != 1 && expected != unit;
                let got = on(&change, Some(&server), &rules).unwrap();
                assert_eq!(!got.conflicts.is_empty(), others_wrote, "{chain:?} unit {unit}");
                if !others_wrote {
                    expected = unit + 1;
                }
                server[1] = stands(&got, &server);
                assert_eq!(server[1], Value::Integer(expected), "{chain:?} unit {unit}");
            }
        }
    }

    #[test]
    fn a_change_that_does_not_fit_its_heading_is_refused() {
        let rules = MergeRules::default();
        let server = row(&Value::Integer(1), 0);
        let short = vec![Value::Integer(1)];
        assert_eq!(on(&RowChange::Insert { row: short.clone() }, None, &rules).unwrap_err(), MergeRefusal::Misfit);
        let delete = RowChange::Delete { key: short.clone(), before: short, base: None };
        assert_eq!(on(&delete, Some(&server), &rules).unwrap_err(), MergeRefusal::Misfit);
    }
}
