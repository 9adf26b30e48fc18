//! The shape of the local databases: which tables, indexes and views a definition gives a node, and what a new definition changes in them.
//!
//! It is found out by making them in an empty database in memory, as an extract makes them, so the two cannot differ.

use super::local_build::{BuildError, check_into};
use super::local_rules::{rules_of, rules_text};
use super::sqlite::quote_name;
use crate::model::dock::{Direction, Dock};
use crate::model::event::{SchemaKind, SchemaObject};
use crate::model::schema::Schema;
use crate::model::value::Value;
use crate::store::sqlite::value_of;
use rusqlite::Connection;
use std::collections::BTreeMap;

/// Returns the tables, indexes and views of a node, tables first, each kind by name, and how it brings changes together.
///
/// # Errors
/// A table cannot be made on a node.
pub fn node_schema(dock: &Dock, schema: &Schema) -> Result<Vec<SchemaObject>, BuildError> {
    let doing = |source| BuildError::Sql { doing: "look at the shape of a local database", source };
    let target = Connection::open_in_memory().map_err(doing)?;
    check_into(&target, dock, schema)?;
    let kept = |name: &str| {
        let object = dock.table(name).and_then(|table| dock.tables[table].object).and_then(|object| dock.objects.get(object));
        object.is_some_and(|object| object.direction == Direction::Upload)
    };
    let mut statement = target
        .prepare("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name")
        .map_err(doing)?;
    let rows =
        statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))).map_err(doing)?;
    let mut objects = Vec::new();
    for row in rows {
        let (kind, name, sql) = row.map_err(doing)?;
        let kind = match kind.as_str() {
            "table" if kept(&name) => SchemaKind::KeptTable,
            "table" => SchemaKind::Table,
            "index" => SchemaKind::Index,
            _ => SchemaKind::View,
        };
        objects.push(SchemaObject { kind, name, sql: Some(sql), keeps_rows: true });
    }
    let rules = rules_text(&rules_of(dock))?;
    objects.push(SchemaObject { kind: SchemaKind::MergeRules, name: String::new(), sql: Some(rules), keeps_rows: true });
    objects.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    Ok(objects)
}

/// What changes on the nodes from one definition to the next.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reshape {
    /// What nodes have to make, change or drop, in this order.
    pub objects: Vec<SchemaObject>,
    /// Tables that stay with columns appended, by name: each new column with the value that it has in rows that were there before.
    pub appended: BTreeMap<String, Vec<(String, Value)>>,
}

impl Reshape {
    /// Returns whether a node's table of that name begins empty, so that every row of it is to be sent.
    pub fn begins_empty(&self, table: &str) -> bool {
        self.objects.iter().any(|object| is_table(object) && object.name.eq_ignore_ascii_case(table) && !object.keeps_rows)
    }

    /// Returns whether a node's table of that name is new or gets another shape than by columns at its end, so that rows of before may
    /// not fit.
    pub fn is_made_anew(&self, table: &str) -> bool {
        let is_named = |name: &str| name.eq_ignore_ascii_case(table);
        self.objects.iter().any(|object| is_table(object) && is_named(&object.name)) && !self.appended.keys().any(|name| is_named(name))
    }
}

fn is_table(object: &SchemaObject) -> bool {
    matches!(object.kind, SchemaKind::Table | SchemaKind::KeptTable)
}

/// Returns what changes between two shapes of local databases.
///
/// # Errors
/// A default value cannot be evaluated.
pub fn reshape(old: &[SchemaObject], new: &[SchemaObject]) -> Result<Reshape, BuildError> {
    let mut found = Reshape::default();
    let find = |list: &[SchemaObject], object: &SchemaObject| {
        list.iter().find(|other| is_table(other) == is_table(object) && other.name.eq_ignore_ascii_case(&object.name)).cloned()
    };
    for gone in old.iter().filter(|object| find(new, object).is_none()) {
        found.objects.push(SchemaObject { sql: None, keeps_rows: false, ..gone.clone() });
    }
    for object in new {
        let before = find(old, object);
        if before.as_ref() == Some(object) {
            continue;
        }
        let mut changed = object.clone();
        if is_table(object) {
            let same_kind = before.as_ref().filter(|before| before.kind == object.kind);
            let appended = match same_kind.and_then(|before| before.sql.as_deref()).zip(object.sql.as_deref()) {
                Some((before, after)) if before == after => Some(Vec::new()),
                Some((before, after)) => appended_columns(&object.name, before, after)?,
                None => None,
            };
            // Rows of a table that only nodes write are nowhere else: they stay, or the node stops and says which one does not fit.
            changed.keeps_rows = appended.is_some() || (object.kind == SchemaKind::KeptTable && before.is_some());
            if let Some(columns) = appended {
                found.appended.insert(object.name.clone(), columns);
            }
        }
        found.objects.push(changed);
    }
    // A table that is made anew takes its indexes along.
    let remade: Vec<String> = found.objects.iter().filter(|object| is_table(object)).map(|object| object.name.clone()).collect();
    for index in new.iter().filter(|object| object.kind == SchemaKind::Index) {
        let of_remade = index.sql.as_deref().is_some_and(|sql| remade.iter().any(|table| index_is_on(sql, table)));
        if of_remade && !found.objects.iter().any(|known| known.kind == SchemaKind::Index && known.name == index.name) {
            found.objects.push(index.clone());
        }
    }
    found.objects.sort_by_key(|object| (object.sql.is_some(), object.kind));
    Ok(found)
}

/// Returns whether an index statement is on a table. One too many costs making that index once more.
fn index_is_on(sql: &str, table: &str) -> bool {
    sql.to_ascii_lowercase().contains(&table.to_ascii_lowercase())
}

/// Returns the columns that a table has got at its end, as `ALTER TABLE .. ADD COLUMN` does it, with the values of older rows; `None` if
/// anything else of the table changed, so that its older rows might not fit.
fn appended_columns(table: &str, before: &str, after: &str) -> Result<Option<Vec<(String, Value)>>, BuildError> {
    let Some(head) = before.trim_end().strip_suffix(')') else { return Ok(None) };
    if !after.starts_with(head.trim_end()) {
        return Ok(None);
    }
    let (old, new) = (columns(table, before)?, columns(table, after)?);
    if old.len() >= new.len() || !new.starts_with(&old) {
        return Ok(None);
    }
    let mut appended = Vec::new();
    for column in &new[old.len()..] {
        let constant = column.default.as_ref().is_none_or(|text| !text.contains('(') && !text.to_ascii_uppercase().contains("CURRENT_"));
        if column.hidden || column.key || !constant || (column.not_null && column.default.is_none()) {
            return Ok(None);
        }
        appended.push((column.name.clone(), default_value(table, column)?));
    }
    // A constraint of its own (UNIQUE) makes an index, which older rows might not fit.
    let (old_indexes, new_indexes) = (automatic_indexes(table, before)?, automatic_indexes(table, after)?);
    Ok((old_indexes == new_indexes).then_some(appended))
}

#[derive(Debug, Clone, PartialEq)]
struct Column {
    name: String,
    declared: String,
    not_null: bool,
    default: Option<String>,
    key: bool,
    hidden: bool,
}

fn scratch(table: &str, sql: &str) -> Result<Connection, BuildError> {
    let failed = |source| BuildError::Table { table: table.to_owned(), doing: "look at its shape".to_owned(), source };
    let scratch = Connection::open_in_memory().map_err(failed)?;
    scratch.execute_batch(sql).map_err(failed)?;
    Ok(scratch)
}

fn columns(table: &str, sql: &str) -> Result<Vec<Column>, BuildError> {
    let failed = |source| BuildError::Table { table: table.to_owned(), doing: "look at its columns".to_owned(), source };
    let scratch = scratch(table, sql)?;
    let mut statement =
        scratch.prepare("SELECT name, type, \"notnull\", dflt_value, pk, hidden FROM pragma_table_xinfo(?1)").map_err(failed)?;
    let rows = statement.query_map([table], |row| {
        Ok(Column {
            name: row.get(0)?,
            declared: row.get(1)?,
            not_null: row.get(2)?,
            default: row.get(3)?,
            key: row.get::<_, i64>(4)? > 0,
            hidden: row.get::<_, i64>(5)? > 0,
        })
    });
    rows.and_then(Iterator::collect).map_err(failed)
}

fn automatic_indexes(table: &str, sql: &str) -> Result<i64, BuildError> {
    let failed = |source| BuildError::Table { table: table.to_owned(), doing: "count its indexes".to_owned(), source };
    scratch(table, sql)?.query_row("SELECT count(*) FROM pragma_index_list(?1)", [table], |row| row.get(0)).map_err(failed)
}

/// Returns what a row has in a column that was added after it.
fn default_value(table: &str, column: &Column) -> Result<Value, BuildError> {
    let failed = |source| BuildError::Table { table: table.to_owned(), doing: format!("evaluate the default of {}", column.name), source };
    let Some(default) = &column.default else { return Ok(Value::Null) };
    let scratch = Connection::open_in_memory().map_err(failed)?;
    let name = quote_name(&column.name);
    let make = format!("CREATE TABLE t({name} {} DEFAULT {default}); INSERT INTO t DEFAULT VALUES", column.declared);
    scratch.execute_batch(&make).map_err(failed)?;
    scratch.query_row(&format!("SELECT {name} FROM t"), [], |row| row.get_ref(0).map(value_of)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, sql: &str) -> SchemaObject {
        SchemaObject { kind: SchemaKind::Table, name: name.to_owned(), sql: Some(sql.to_owned()), keeps_rows: true }
    }

    fn index(name: &str, sql: &str) -> SchemaObject {
        SchemaObject { kind: SchemaKind::Index, ..table(name, sql) }
    }

    #[test]
    fn x27_an_appended_column_keeps_the_rows_and_takes_its_default() {
        let old = [table("a", "CREATE TABLE \"a\" (id INTEGER PRIMARY KEY, name TEXT NOT NULL)"), index("i", "CREATE INDEX i ON a(name)")];
        let sql = "CREATE TABLE \"a\" (id INTEGER PRIMARY KEY, name TEXT NOT NULL, rank REAL NOT NULL DEFAULT 1, note TEXT)";
        let new = [table("a", sql), index("i", "CREATE INDEX i ON a(name)")];
        let found = reshape(&old, &new).unwrap();
        assert_eq!(found.appended["a"], [("rank".to_owned(), Value::Real(1.0)), ("note".to_owned(), Value::Null)]);
        assert!(!found.begins_empty("A"));
        assert_eq!(found.objects.iter().map(|object| object.name.as_str()).collect::<Vec<_>>(), ["a", "i"]);
        assert_eq!(reshape(&new, &new).unwrap(), Reshape::default());
    }

    #[test]
    fn x27_whatever_older_rows_might_not_fit_begins_empty() {
        let old = [table("a", "CREATE TABLE a (id INTEGER PRIMARY KEY, name TEXT)")];
        for sql in [
            "CREATE TABLE a (id INTEGER PRIMARY KEY, name TEXT, extra TEXT NOT NULL)",
            "CREATE TABLE a (id INTEGER PRIMARY KEY, name TEXT, extra TEXT DEFAULT CURRENT_TIMESTAMP)",
            "CREATE TABLE a (id INTEGER PRIMARY KEY, name TEXT, extra TEXT UNIQUE)",
            "CREATE TABLE a (id INTEGER PRIMARY KEY, name TEXT NOT NULL)",
            "CREATE TABLE a (id INTEGER PRIMARY KEY)",
            "CREATE TABLE a (id INTEGER, name TEXT, PRIMARY KEY(id, name))",
        ] {
            assert!(reshape(&old, &[table("a", sql)]).unwrap().begins_empty("a"), "{sql}");
        }
        let kept = |sql: &str| [SchemaObject { kind: SchemaKind::KeptTable, ..table("a", sql) }];
        for former in [&old[..], &kept("CREATE TABLE a (id INTEGER PRIMARY KEY, name TEXT)")] {
            let found = reshape(former, &kept("CREATE TABLE a (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")).unwrap();
            assert!(!found.begins_empty("a") && found.is_made_anew("A"), "a table that only nodes write never does");
        }
        let gone = reshape(&old, &[]).unwrap();
        assert_eq!(gone.objects, [SchemaObject { sql: None, keeps_rows: false, ..old[0].clone() }]);
    }
}
