//! The triggers that write the log, and the catalogue (`dock_capture`) that says how to read it.
//!
//! What must hold (counterexamples R1 to R5):
//! - A trigger logs the row *as it is when the trigger runs*, selected anew by its key: a user's trigger may have run before ours.
//! - Before each insert and update, rows that are equal to the new one on any unique key are logged as *hints*, since a conflict
//!   clause may remove them without a delete trigger. A hint says only "look at this row when the snapshot ends".
//! - Nothing of ours has a conflict clause or a constraint that can fail: the user's outer clause would override the first and be
//!   aborted by the second. Only functions that every SQLite has are used.
//! - What is compared, is compared under the collation of the index concerned, never under one that happens to be the column's.
//!
//! - Ours are created last, so that they fire first among the AFTER triggers of the database: one that ends the statement but keeps
//!   its changes (`RAISE(FAIL)`, `RAISE(IGNORE)`, or a constraint that a write of its own breaks under an outer `OR FAIL`) would keep
//!   ours from firing. A newer one that can do so stops the table, until ours are made again and the table is compared.
//!
//! Known limits, which only a comparison with the tables can find:
//! - SQLite leaves undefined what happens when a BEFORE UPDATE trigger changes the very row that is being updated. If that makes the
//!   row collide under `OR REPLACE` on a key of several columns, the removed row is found by no hint.
//! - A TEMP trigger fires before every other, and no other program sees it. If one of them ends the statement as above, the row whose
//!   trigger it was stays changed and is not logged.

use crate::model::schema::{IndexTerm, TableShape, TermKind, UniqueIndex};
use crate::store::sqlite::quote_name;
use rusqlite::Connection;
use std::collections::BTreeMap;

/// One row of the catalogue: how one shape of one table is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// Its number, `tbl` in the log. Never used for another shape.
    pub id: i64,
    /// The table.
    pub table: String,
    /// Captured columns, in the order of their values in the log.
    pub columns: Vec<String>,
    /// Primary key, indices into `columns`.
    pub key: Vec<usize>,
    /// What the table looked like, as far as capture depends on it.
    pub shape: TableShape,
    /// Our triggers by name, as the database stores them.
    pub triggers: BTreeMap<String, String>,
    /// Whether the triggers belong in the database now.
    pub active: bool,
    /// Why the table was stopped, if something that lasts was found in the log.
    pub stopped: Option<String>,
}

impl Capture {
    /// Returns the names of the key columns.
    pub fn key_names(&self) -> impl Iterator<Item = &str> {
        self.key.iter().filter_map(|position| self.columns.get(*position)).map(String::as_str)
    }
}

/// Returns the part of a table's shape that capture depends on; it is compared at every change of the schema version.
pub fn capture_shape(table: &TableShape) -> TableShape {
    let mut shape = table.clone();
    shape.foreign_keys.clear();
    shape.sql.clear();
    shape.indexes.clear();
    shape.triggers.clear();
    for column in &mut shape.columns {
        column.has_default = false;
    }
    for index in &mut shape.unique_indexes {
        index.name.clear();
    }
    shape.unique_indexes.sort_by_key(|index| format!("{index:?}"));
    shape
}

/// Returns what differs between two capture shapes of a table, for people; `None` if nothing does.
pub fn difference(was: &TableShape, is: &TableShape) -> Option<String> {
    if was == is {
        return None;
    }
    for column in &was.columns {
        match is.column(&column.name).and_then(|position| is.columns.get(position)) {
            None => return Some(format!("its column `{}` is gone", column.name)),
            Some(now) if now == column => {}
            Some(now) if now.decl_type != column.decl_type => {
                return Some(format!("its column `{}` is now declared `{}` and was `{}`", column.name, now.decl_type, column.decl_type));
            }
            Some(_) => return Some(format!("its column `{}` was declared anew", column.name)),
        }
    }
    if let Some(added) = is.columns.iter().find(|column| was.column(&column.name).is_none()) {
        return Some(format!("its column `{}` was added", added.name));
    }
    if was.columns != is.columns {
        return Some("its columns stand in another order".into());
    }
    if (&was.key, was.key_is_rowid, was.without_rowid) != (&is.key, is.key_is_rowid, is.without_rowid) {
        return Some("its primary key was declared anew".into());
    }
    if was.unique_indexes != is.unique_indexes {
        return Some("its unique indexes changed".into());
    }
    Some("its declaration changed".into())
}

/// Returns the condition under which a row of a table (called `row` in SQL) has the key that `value` spells for each key column.
/// It uses the collations of the primary key's index, so that the index serves it.
pub(crate) fn key_condition(table: &TableShape, row: &str, value: impl Fn(usize, &str) -> String, equal: &str) -> String {
    let primary = table.unique_indexes.iter().find(|index| index.primary);
    let mut terms = Vec::new();
    for (place, position) in table.key.iter().enumerate() {
        let Some(column) = table.columns.get(*position) else { continue };
        let collation = primary
            .and_then(|index| index.terms.iter().find(|term| term.what == TermKind::Column(*position)))
            .map(|term| format!(" COLLATE {}", quote_name(&term.collation)))
            .unwrap_or_default();
        let name = quote_name(&column.name);
        terms.push(format!("{row}{name}{collation} {equal} {}", value(place, &name)));
    }
    terms.join(" AND ")
}

/// The spelling of `rowid` that no column of the table hides, if the table has a rowid that is not its key.
fn hidden_rowid(table: &TableShape) -> Option<&'static str> {
    if table.without_rowid || table.key_is_rowid {
        return None;
    }
    ["rowid", "_rowid_", "oid"].into_iter().find(|name| table.column(name).is_none())
}

/// Returns our triggers for a table: (name, text). `columns` are the captured ones, indices into the table's.
pub fn trigger_texts(id: i64, table: &TableShape, columns: &[usize]) -> Vec<(String, String)> {
    let names: Vec<String> =
        columns.iter().filter_map(|position| table.columns.get(*position)).map(|column| quote_name(&column.name)).collect();
    let on = quote_name(&table.name);
    let key: Vec<String> =
        table.key.iter().filter_map(|position| table.columns.get(*position)).map(|column| quote_name(&column.name)).collect();
    let nullable = table.key.iter().any(|position| table.columns.get(*position).is_some_and(|column| !column.not_null));
    let null_case = |images: &[&str]| {
        let tests: Vec<String> = images.iter().flat_map(|image| key.iter().map(move |name| format!("{image}.{name} IS NULL"))).collect();
        if nullable { format!("WHEN {} THEN 'N' ", tests.join(" OR ")) } else { String::new() }
    };
    let first = key.first().cloned().unwrap_or_default();
    let all = |image: &str| names.iter().map(|name| format!("{image}.{name}")).collect::<Vec<_>>().join(", ");
    // The row as it is now: nothing is found if it is gone again, and then the old image or the key still goes to the log.
    let now = |image: &str| {
        format!("FROM (SELECT 1) LEFT JOIN {on} AS n ON {}", key_condition(table, "n.", |_, name| format!("{image}.{name}"), "="))
    };
    let heading = |images: usize| {
        let places: Vec<String> = (1..=names.len() * images).map(|place| format!("c{place}")).collect();
        format!("INSERT INTO dock_txn_log(tbl, op, {})", places.join(", "))
    };
    let inserted: Vec<String> =
        names.iter().map(|name| if key.contains(name) { format!("ifnull(n.{name}, NEW.{name})") } else { format!("n.{name}") }).collect();
    let update_op = if nullable { format!("CASE {}ELSE 'U' END", null_case(&["OLD", "NEW"])) } else { "'U'".to_owned() };
    let mut triggers = vec![
        (
            format!("dock_i_{id}"),
            format!(
                "CREATE TRIGGER dock_i_{id} AFTER INSERT ON {on} BEGIN\n  {}\n  SELECT {id}, CASE {}WHEN n.{first} IS NULL THEN 'G' ELSE 'I' END, {}\n  {};\nEND",
                heading(1),
                null_case(&["NEW"]),
                inserted.join(", "),
                now("NEW")
            ),
        ),
        (
            format!("dock_u_{id}"),
            format!(
                "CREATE TRIGGER dock_u_{id} AFTER UPDATE ON {on} BEGIN\n  {}\n  SELECT {id}, {update_op}, {}, {}\n  {};\nEND",
                heading(2),
                all("OLD"),
                all("n"),
                now("NEW")
            ),
        ),
        (
            format!("dock_d_{id}"),
            format!(
                "CREATE TRIGGER dock_d_{id} AFTER DELETE ON {on} BEGIN\n  {}\n  SELECT {id}, CASE {}WHEN n.{first} IS NULL THEN 'D' ELSE 'U' END, {}, {}\n  {};\nEND",
                heading(2),
                null_case(&["OLD"]),
                all("OLD"),
                all("n"),
                now("OLD")
            ),
        ),
    ];
    triggers.extend(hint_texts(id, table, &heading(1), &names));
    triggers
}

fn hint_texts(id: i64, table: &TableShape, heading: &str, names: &[String]) -> Vec<(String, String)> {
    let on = quote_name(&table.name);
    let (from, row) = other_rows(table);
    let image: Vec<String> = names.iter().map(|name| format!("{row}{name}")).collect();
    let itself = key_condition(table, &row, |_, name| format!("OLD.{name}"), "IS");
    let (mut on_insert, mut on_update, mut guards) = (Vec::new(), Vec::new(), Vec::new());
    for Rival { equal, guard } in rivals(table, &row) {
        on_insert.push(format!("  {heading}\n  SELECT {id}, 'H', {} FROM {from} WHERE {equal};\n", image.join(", ")));
        let tested = guard.as_ref().map(|guard| format!("({guard}) AND ")).unwrap_or_default();
        on_update
            .push(format!("  {heading}\n  SELECT {id}, 'H', {} FROM {from} WHERE {tested}{equal} AND NOT ({itself});\n", image.join(", ")));
        guards.push(guard);
    }
    // With a guard for each, an update that touches no unique key costs one comparison.
    let when = guards.into_iter().collect::<Option<Vec<_>>>().map(|guards| format!(" WHEN {}", guards.join(" OR "))).unwrap_or_default();
    vec![
        (format!("dock_hi_{id}"), format!("CREATE TRIGGER dock_hi_{id} BEFORE INSERT ON {on} BEGIN\n{}END", on_insert.concat())),
        (format!("dock_hu_{id}"), format!("CREATE TRIGGER dock_hu_{id} BEFORE UPDATE ON {on}{when} BEGIN\n{}END", on_update.concat())),
    ]
}

/// A way in which another row can stand in the way of the new one.
pub(super) struct Rival {
    /// Condition on the other row.
    pub(super) equal: String,
    /// Condition under which an update can bring it about; `None` = always.
    pub(super) guard: Option<String>,
}

/// How a trigger on a table names the table's rows: what stands in FROM, and the prefix of the columns. In a table that is itself called
/// `new` or `old` its own name would hide the trigger's row.
pub(super) fn other_rows(table: &TableShape) -> (String, String) {
    let on = quote_name(&table.name);
    let hides = ["new", "old"].iter().any(|name| table.name.eq_ignore_ascii_case(name));
    if hides { (format!("{on} AS r"), "r.".to_owned()) } else { (on.clone(), format!("{on}.")) }
}

/// Returns every way in which another row of a table, whose columns have the prefix `row`, can be equal to NEW on a unique key.
pub(super) fn rivals(table: &TableShape, row: &str) -> Vec<Rival> {
    let mut rivals = Vec::new();
    let mut by_rowid = |name: &str| {
        rivals.push(Rival { equal: format!("{row}{name} = NEW.{name}"), guard: Some(format!("NEW.{name} IS NOT OLD.{name}")) });
    };
    if table.key_is_rowid {
        if let Some(column) = table.key.first().and_then(|position| table.columns.get(*position)) {
            by_rowid(&quote_name(&column.name));
        }
    } else if let Some(name) = hidden_rowid(table) {
        by_rowid(name);
    }
    rivals.extend(table.unique_indexes.iter().map(|index| index_rival(table, index, row)));
    rivals
}

fn index_rival(table: &TableShape, index: &UniqueIndex, row: &str) -> Rival {
    let mut equal: Vec<String> = index.terms.iter().map(|term| term_equal(table, term, row)).collect();
    // Only rows that stand in a partial index can be hit; whether the new row will stand there does not matter for a hint.
    equal.extend(index.partial.iter().map(|condition| format!("({condition})")));
    let plain = |term: &IndexTerm| match term.what {
        TermKind::Column(position) => table.columns.get(position).filter(|column| !column.generated).map(|column| quote_name(&column.name)),
        TermKind::Expression(_) => None,
    };
    let columns: Option<Vec<String>> = if index.partial.is_some() { None } else { index.terms.iter().map(plain).collect() };
    let guard = columns.map(|columns| {
        let tests: Vec<String> = columns.iter().map(|name| format!("NEW.{name} COLLATE BINARY IS NOT OLD.{name}")).collect();
        tests.join(" OR ")
    });
    Rival { equal: equal.join(" AND "), guard }
}

fn term_equal(table: &TableShape, term: &IndexTerm, row: &str) -> String {
    let collation = quote_name(&term.collation);
    match &term.what {
        TermKind::Column(position) => {
            let name = table.columns.get(*position).map(|column| quote_name(&column.name)).unwrap_or_default();
            format!("{row}{name} COLLATE {collation} = NEW.{name}")
        }
        TermKind::Expression(text) => {
            // The expression over the new row: a derived table gives its bare names the new values, with their affinity.
            let values: Vec<String> =
                table.columns.iter().map(|column| quote_name(&column.name)).map(|name| format!("NEW.{name} AS {name}")).collect();
            let new = format!("(SELECT {text} FROM (SELECT {}) AS {})", values.join(", "), quote_name(&table.name));
            format!("({text}) COLLATE {collation} = {new}")
        }
    }
}

/// Returns the user's triggers on a table that were created after ours, so fire before them: (name, text).
///
/// # Errors
/// A statement failed.
pub(crate) fn newer_triggers(connection: &Connection, table: &str) -> rusqlite::Result<Vec<(String, String)>> {
    let mut statement = connection.prepare_cached(
        "SELECT name, sql FROM main.sqlite_schema WHERE type = 'trigger' AND lower(tbl_name) = lower(?1) AND substr(name, 1, 5) <> 'dock_'
         AND rowid > (SELECT min(rowid) FROM main.sqlite_schema
                      WHERE type = 'trigger' AND lower(tbl_name) = lower(?1) AND substr(name, 1, 5) = 'dock_')",
    )?;
    let rows = statement.query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// Returns whether a trigger can end a statement and keep what it changed so far: it says so itself, or a write of its own breaks a
/// constraint within a statement of the user under `OR FAIL`, which holds for what its triggers do too. What looks like one is one.
pub(crate) fn may_end_statement(sql: &str) -> bool {
    const MAY_END: [&str; 5] = ["RAISE", "INSERT", "UPDATE", "DELETE", "REPLACE"];
    let upper = sql.to_ascii_uppercase();
    // Before BEGIN stand the event and the table.
    let body = upper.find("BEGIN").map_or(upper.as_str(), |at| &upper[at..]);
    MAY_END.iter().any(|word| body.contains(word))
}

/// Reads the catalogue. A row that cannot be read gives its id and the reason.
///
/// # Errors
/// A statement failed.
pub(crate) fn read_captures(connection: &Connection) -> rusqlite::Result<Result<Vec<Capture>, (i64, String)>> {
    let mut captures = Vec::new();
    let mut statement = connection
        .prepare_cached("SELECT id, table_name, columns, key, shape, triggers, active, stopped FROM main.dock_capture ORDER BY id")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let texts: [String; 4] = [row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?];
        let parsed = parse_capture(&texts);
        let (columns, key, shape, triggers) = match parsed {
            Ok(parsed) => parsed,
            Err(reason) => return Ok(Err((id, reason))),
        };
        captures.push(Capture { id, table: row.get(1)?, columns, key, shape, triggers, active: row.get(6)?, stopped: row.get(7)? });
    }
    Ok(Ok(captures))
}

type ParsedCapture = (Vec<String>, Vec<usize>, TableShape, BTreeMap<String, String>);

fn parse_capture([columns, key, shape, triggers]: &[String; 4]) -> Result<ParsedCapture, String> {
    let error = |error: serde_json::Error| error.to_string();
    let columns: Vec<String> = serde_json::from_str(columns).map_err(error)?;
    let names: Vec<String> = serde_json::from_str(key).map_err(error)?;
    let key: Option<Vec<usize>> = names.iter().map(|name| columns.iter().position(|column| column == name)).collect();
    let key = key.ok_or_else(|| "a key column is not captured".to_owned())?;
    Ok((columns, key, serde_json::from_str(shape).map_err(error)?, serde_json::from_str(triggers).map_err(error)?))
}
