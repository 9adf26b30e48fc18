//! What one node sees, as sets of rowids: the set-based reading of the rules for an extract.
//!
//! It uses the data alone, not the counts, so it also serves as a check on them.

use super::guard::day_of;
use super::layout::data_table;
use super::nodes::NodeScope;
use crate::model::dock::{ColumnIndex, Dock, Hop, RuleKind, RulePath, TableIndex, Window};
use crate::model::value::{Collation, Value};
use crate::rules::graph::{ScopeGraph, column_collation, join_collations, reference_collations};
use crate::store::predicate::select_rowids;
use crate::store::sqlite::{SqlValue, value_of};
use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, params};

/// Returns the name of the temporary table that holds the rowids of a table's visible rows.
pub fn visible_table(table: TableIndex) -> String {
    format!("vis_{table}")
}

/// Fills `temp.vis_{i}(rid)` for every table that belongs to an object, with the rows that the node sees in the snapshot
/// that the connection holds. `day` is the data store's window day. Again for the next node.
pub fn visible_rows(conn: &Connection, dock: &Dock, graph: &ScopeGraph, node: &NodeScope, day: i64) -> rusqlite::Result<()> {
    select_rows(conn, dock, graph, node, Part::All, day)
}

/// Like [`visible_rows`], with the rows that every node of that model sees, whatever its attributes: those of `everyone` and what
/// they bring along.
pub fn common_rows(conn: &Connection, dock: &Dock, graph: &ScopeGraph, model: Option<&str>, day: i64) -> rusqlite::Result<()> {
    select_rows(conn, dock, graph, &NodeScope::nobody(model), Part::All, day)
}

/// Like [`visible_rows`], without what no attribute of the node brings. Each rule goes from one row to others, so the visible rows
/// are those of [`common_rows`] and these; a row may be in both.
pub fn own_rows(conn: &Connection, dock: &Dock, graph: &ScopeGraph, node: &NodeScope, day: i64) -> rusqlite::Result<()> {
    select_rows(conn, dock, graph, node, Part::Own, day)
}

/// Which rules are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    All,
    /// Without those of `everyone`.
    Own,
}

fn select_rows(conn: &Connection, dock: &Dock, graph: &ScopeGraph, node: &NodeScope, part: Part, day: i64) -> rusqlite::Result<()> {
    conn.create_scalar_function("dock_day", 1, FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC, |context| {
        Ok(day_of(&value_of(context.get_raw(0))))
    })?;
    // Called again after a full disk stood in the way.
    conn.execute_batch("DROP TABLE IF EXISTS temp.node_value; CREATE TEMP TABLE node_value(attribute INTEGER NOT NULL, value)")?;
    for (attribute, values) in node.values.iter().enumerate() {
        for value in values {
            conn.execute(
                "INSERT INTO temp.node_value(attribute, value) VALUES(?1, ?2)",
                params![i64::try_from(attribute).unwrap_or_default(), SqlValue(value)],
            )?;
        }
    }
    let mut tables: Vec<(usize, TableIndex)> =
        graph.visible.iter().enumerate().filter_map(|(table, vertex)| Some(((*vertex)?, table))).collect();
    tables.sort_unstable();
    for (_, table) in &tables {
        let name = visible_table(*table);
        conn.execute_batch(&format!("DROP TABLE IF EXISTS temp.{name}; CREATE TEMP TABLE {name}(rid INTEGER PRIMARY KEY)"))?;
    }
    for (_, table) in tables {
        for select in selects(dock, node, part, table, day) {
            conn.execute(&format!("INSERT OR IGNORE INTO temp.{}(rid) {select}", visible_table(table)), [])?;
        }
    }
    Ok(())
}

/// Remembers the rows that were selected last as those in common, in `temp.com_{i}(rid)`; they stay selected.
pub fn set_apart(conn: &Connection, graph: &ScopeGraph) -> rusqlite::Result<()> {
    for table in tables_of(graph) {
        let name = visible_table(table);
        conn.execute_batch(&format!(
            "DROP TABLE IF EXISTS temp.com_{table}; CREATE TEMP TABLE com_{table}(rid INTEGER PRIMARY KEY);
             INSERT INTO temp.com_{table} SELECT rid FROM temp.{name}"
        ))?;
    }
    Ok(())
}

/// Takes the rows in common out of those that were selected last.
pub fn leave_out(conn: &Connection, graph: &ScopeGraph) -> rusqlite::Result<()> {
    for table in tables_of(graph) {
        let name = visible_table(table);
        conn.execute_batch(&format!("DELETE FROM temp.{name} WHERE rid IN (SELECT rid FROM temp.com_{table})"))?;
    }
    Ok(())
}

fn tables_of(graph: &ScopeGraph) -> impl Iterator<Item = TableIndex> {
    graph.visible.iter().enumerate().filter_map(|(table, vertex)| vertex.map(|_| table))
}

/// Returns the SELECTs of rowids that together make a table's visible rows.
fn selects(dock: &Dock, node: &NodeScope, part: Part, table: TableIndex, day: i64) -> Vec<String> {
    let declared = &dock.tables[table];
    let here = data_table(table);
    let Some(object) = declared.object else { return Vec::new() };
    if let Some(reference) = &declared.member_of {
        let collations = reference_collations(dock, reference);
        let on = join_terms(dock, ("t", table, &reference.columns), ("p", reference.to_table, &reference.to_columns), &collations);
        return vec![format!("{} CROSS JOIN {here} t ON {on}", from_visible(reference.to_table, "p"))];
    }
    let mut selects = Vec::new();
    for (number, rule) in dock.rules.iter().enumerate() {
        if rule.object != object || !dock.model_has_rule(node.node.model.as_deref(), number) {
            continue;
        }
        let mut guard = String::new();
        if let Some(predicate) = &rule.predicate {
            // For the one row in hand: alone it would read the whole table.
            let this_row = format!("{here} WHERE {here}.rowid = t.rowid");
            guard.push_str(&format!(" AND EXISTS ({})", select_rowids(predicate, declared, &this_row)));
        }
        for window in rule.window.iter().chain(&dock.objects[object].window) {
            guard.push_str(&window_term(window, day));
        }
        match &rule.kind {
            RuleKind::Nobody => {}
            RuleKind::Everyone if part == Part::Own => {}
            RuleKind::Everyone => selects.push(format!("SELECT t.rowid FROM {here} t WHERE true{guard}")),
            RuleKind::Path(path) => selects.push(format!("{}{guard}", path_select(dock, table, path))),
            RuleKind::Referenced(references) => {
                for reference in references.iter().filter(|reference| dock.tables[reference.table].object.is_some()) {
                    let collations = reference_collations(dock, reference);
                    let on = join_terms(dock, ("t", table, &reference.to_columns), ("s", reference.table, &reference.columns), &collations);
                    selects.push(format!("{} CROSS JOIN {here} t ON {on} WHERE true{guard}", from_visible(reference.table, "s")));
                }
            }
        }
    }
    selects
}

/// Begins a SELECT of `t.rowid` at the visible rows of another table. CROSS JOIN keeps SQLite to this order, in which every
/// table is searched by an index, so an extract costs the rows of its node and not those of the table.
fn from_visible(table: TableIndex, name: &str) -> String {
    format!("SELECT t.rowid FROM temp.{} v CROSS JOIN {} {name} ON {name}.rowid = v.rid", visible_table(table), data_table(table))
}

/// The chain read from its right end: from the node's values to the rows that lead there.
fn path_select(dock: &Dock, table: TableIndex, path: &RulePath) -> String {
    let mut steps = vec![("t".to_owned(), table, path.start.as_slice(), None)];
    for (number, hop) in path.hops.iter().enumerate() {
        steps.push((format!("h{number}"), hop.table, hop.out.as_slice(), Some(hop)));
    }
    let mut select = "SELECT t.rowid FROM temp.node_value n".to_owned();
    let mut right: Option<(&str, &Hop)> = None;
    for (name, here, out, hop) in steps.iter().rev() {
        let mut on = match right {
            Some((right, joined)) => {
                let collations = join_collations(dock, *here, out, joined.table, &joined.join);
                join_terms(dock, (name, *here, out), (right, joined.table, &joined.join), &collations)
            }
            None => {
                let column = out.first().copied().unwrap_or_default();
                let collation = column_collation(dock, *here, column).name();
                let as_they_are = if is_rowid(dock, *here, column) { no_text("n", "value") } else { String::new() };
                format!("n.attribute = {} AND {name}.c{column} = n.value COLLATE {collation}{as_they_are}", path.attribute)
            }
        };
        for (column, value) in hop.iter().flat_map(|hop| &hop.filters) {
            let collation = column_collation(dock, *here, *column).name();
            on.push_str(&format!(" AND +{name}.c{column} = {} COLLATE {collation}", literal(value)));
        }
        select.push_str(&format!(" CROSS JOIN {} {name} ON {on}", data_table(*here)));
        right = hop.map(|hop| (name.as_str(), hop));
    }
    format!("{select} WHERE true")
}

type Side<'a> = (&'a str, TableIndex, &'a [ColumnIndex]);

/// Returns the terms of a join by which rows of `left` are searched for a row of `right`.
fn join_terms(dock: &Dock, left: Side<'_>, right: Side<'_>, collations: &[Collation]) -> String {
    let terms = left.2.iter().zip(right.2).zip(collations).map(|((a, b), collation)| {
        // `+` takes the rowid column's affinity away: with it no index on the left column would serve.
        let bare = if is_rowid(dock, right.1, *b) { "+" } else { "" };
        let equal = format!("{}.c{a} = {bare}{}.c{b} COLLATE {}", left.0, right.0, collation.name());
        if is_rowid(dock, left.1, *a) { format!("{equal}{}", no_text(right.0, &format!("c{b}"))) } else { equal }
    });
    terms.collect::<Vec<_>>().join(" AND ")
}

fn is_rowid(dock: &Dock, table: TableIndex, column: ColumnIndex) -> bool {
    let table = &dock.tables[table];
    table.key_is_rowid && table.key == [column]
}

/// A rowid column that is searched has integer affinity, which would make '5' equal 5; what counts are the values as they are.
fn no_text(table: &str, column: &str) -> String {
    format!(" AND typeof({table}.{column}) <> 'text'")
}

fn window_term(window: &Window, day: i64) -> String {
    let first = day - i64::from(window.days);
    format!(" AND (dock_day(t.c{0}) IS NULL OR dock_day(t.c{0}) >= {first})", window.column)
}

fn literal(value: &Value) -> String {
    match value {
        // The text form of a literal may not hold NUL; its bytes may hold anything.
        Value::Text(bytes) => format!("CAST(X'{}' AS TEXT)", hex::encode(bytes)),
        Value::Real(real) if real.is_infinite() => if *real > 0.0 { "9e999" } else { "-9e999" }.to_owned(),
        Value::Real(real) => format!("{real:e}"),
        other => other.to_string(),
    }
}
