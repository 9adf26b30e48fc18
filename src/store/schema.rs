//! Reads the shape of a database's tables from its own catalogue.
//!
//! Everything comes from SQLite's pragmas but the texts of index expressions and of partial-index conditions, which only the
//! `CREATE INDEX` text holds. Virtual tables, their shadow tables and our own `dock_*` tables are left out.

use crate::model::schema::{ColumnShape, ForeignKey, IndexTerm, Schema, TableShape, TermKind, UniqueIndex, ViewShape};
use crate::store::indexsql::IndexText;
use rusqlite::{Connection, OptionalExtension};
use std::collections::BTreeMap;

/// Returns whether a name is one of ours or SQLite's, so none of the user's.
pub fn is_internal(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    lower.starts_with("sqlite_") || lower.starts_with("dock_")
}

/// Reads the schema of the main database of a connection.
///
/// # Errors
/// A statement failed; an application-defined module that is missing here concerns only its own virtual table, which is left out.
pub fn read_schema(connection: &Connection) -> rusqlite::Result<Schema> {
    let mut schema = Schema::default();
    let mut names = Vec::new();
    let mut statement = connection
        .prepare_cached("SELECT name, wr, strict FROM pragma_table_list WHERE schema = 'main' AND type = 'table' ORDER BY name")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        if !is_internal(&name) {
            names.push((name, row.get::<_, bool>(1)?, row.get::<_, bool>(2)?));
        }
    }
    for (name, without_rowid, strict) in names {
        schema.tables.push(read_table(connection, &name, without_rowid, strict)?);
    }
    resolve_targets(&mut schema);
    let mut statement = connection.prepare_cached("SELECT name, sql FROM main.sqlite_schema WHERE type = 'view' ORDER BY name")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        if !is_internal(&name) {
            schema.views.push(ViewShape { name, sql: row.get::<_, Option<String>>(1)?.unwrap_or_default() });
        }
    }
    Ok(schema)
}

/// Reads the shape of one ordinary table; `None` if there is none of that name. Foreign keys without written target columns
/// are left without: only the whole schema knows the target.
///
/// # Errors
/// A statement failed.
pub fn read_shape(connection: &Connection, name: &str) -> rusqlite::Result<Option<TableShape>> {
    let found = connection
        .prepare_cached(
            "SELECT name, wr, strict FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND lower(name) = lower(?1)",
        )?
        .query_row([name], |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?, row.get::<_, bool>(2)?)))
        .optional()?;
    found.map(|(name, without_rowid, strict)| read_table(connection, &name, without_rowid, strict)).transpose()
}

fn read_table(connection: &Connection, name: &str, without_rowid: bool, strict: bool) -> rusqlite::Result<TableShape> {
    let sql: Option<String> = connection
        .prepare_cached("SELECT sql FROM main.sqlite_schema WHERE type = 'table' AND name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?
        .flatten();
    let (columns, key) = read_columns(connection, name)?;
    let mut table = TableShape {
        name: name.to_owned(),
        columns,
        key,
        key_is_rowid: false,
        without_rowid,
        strict,
        foreign_keys: Vec::new(),
        unique_indexes: Vec::new(),
        sql: sql.unwrap_or_default(),
        indexes: pairs(
            connection,
            "SELECT name, sql FROM main.sqlite_schema WHERE type = 'index' AND tbl_name = ?1 AND sql IS NOT NULL ORDER BY rowid",
            name,
        )?,
        triggers: pairs(
            connection,
            "SELECT name, sql FROM main.sqlite_schema WHERE type = 'trigger' AND lower(tbl_name) = lower(?1) ORDER BY rowid",
            name,
        )?
        .into_iter()
        .filter(|(trigger, _)| !is_internal(trigger))
        .collect(),
    };
    table.unique_indexes = read_unique_indexes(connection, &table)?;
    // `INTEGER PRIMARY KEY` alone has no index of its own; `INT PRIMARY KEY` and `INTEGER PRIMARY KEY DESC` have one.
    table.key_is_rowid = !without_rowid && table.key.len() == 1 && !table.unique_indexes.iter().any(|index| index.primary);
    if without_rowid || strict || table.key_is_rowid {
        for position in table.key.clone() {
            if let Some(column) = table.columns.get_mut(position) {
                column.not_null = true;
            }
        }
    }
    table.foreign_keys = read_foreign_keys(connection, &table)?;
    Ok(table)
}

fn pairs(connection: &Connection, sql: &str, name: &str) -> rusqlite::Result<Vec<(String, String)>> {
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([name], |row| Ok((row.get(0)?, row.get::<_, Option<String>>(1)?.unwrap_or_default())))?;
    rows.collect()
}

fn read_columns(connection: &Connection, table: &str) -> rusqlite::Result<(Vec<ColumnShape>, Vec<usize>)> {
    let mut columns = Vec::new();
    let mut key = BTreeMap::new();
    let mut statement = connection.prepare_cached(
        "SELECT name, type, \"notnull\", dflt_value IS NOT NULL, pk, hidden FROM pragma_table_xinfo(?1, 'main') ORDER BY cid",
    )?;
    let mut rows = statement.query([table])?;
    while let Some(row) = rows.next()? {
        let hidden: i64 = row.get(5)?;
        if hidden == 1 {
            continue;
        }
        let name: String = row.get(0)?;
        let key_position: i64 = row.get(4)?;
        if key_position > 0 {
            key.insert(key_position, columns.len());
        }
        let collation = match connection.column_metadata(Some("main"), table, name.as_str())?.1 {
            Some(collation) => collation.to_string_lossy().to_ascii_uppercase(),
            None => "BINARY".to_owned(),
        };
        columns.push(ColumnShape {
            collation,
            decl_type: row.get(1)?,
            not_null: row.get(2)?,
            has_default: row.get(3)?,
            generated: hidden == 2 || hidden == 3,
            name,
        });
    }
    Ok((columns, key.into_values().collect()))
}

fn read_unique_indexes(connection: &Connection, table: &TableShape) -> rusqlite::Result<Vec<UniqueIndex>> {
    let mut found = Vec::new();
    let mut statement =
        connection.prepare_cached("SELECT name, origin, partial FROM pragma_index_list(?1, 'main') WHERE \"unique\" ORDER BY name")?;
    let mut rows = statement.query([&table.name])?;
    while let Some(row) = rows.next()? {
        found.push((row.get::<_, String>(0)?, row.get::<_, String>(1)? == "pk", row.get::<_, bool>(2)?));
    }
    let mut indexes = Vec::new();
    for (name, primary, partial) in found {
        let text = table.indexes.iter().find(|(index, _)| *index == name).map(|(_, sql)| IndexText::parse(sql));
        let mut terms = Vec::new();
        let mut statement =
            connection.prepare_cached("SELECT cid, name, coll FROM pragma_index_xinfo(?1, 'main') WHERE key ORDER BY seqno")?;
        let mut rows = statement.query([&name])?;
        while let Some(row) = rows.next()? {
            let column = row.get::<_, Option<String>>(1)?.and_then(|column| table.column(&column));
            let what = match column {
                Some(column) => TermKind::Column(column),
                None => TermKind::Expression(text.as_ref().and_then(|text| text.terms.get(terms.len()).cloned()).unwrap_or_default()),
            };
            terms.push(IndexTerm {
                what,
                collation: row.get::<_, Option<String>>(2)?.unwrap_or_else(|| "BINARY".to_owned()).to_ascii_uppercase(),
            });
        }
        let partial = if partial { Some(text.and_then(|text| text.condition).unwrap_or_default()) } else { None };
        indexes.push(UniqueIndex { name, terms, partial, primary });
    }
    Ok(indexes)
}

fn read_foreign_keys(connection: &Connection, table: &TableShape) -> rusqlite::Result<Vec<ForeignKey>> {
    let mut keys: BTreeMap<i64, ForeignKey> = BTreeMap::new();
    let mut statement = connection.prepare_cached(
        "SELECT id, \"table\", \"from\", \"to\", on_delete, on_update FROM pragma_foreign_key_list(?1, 'main') ORDER BY id, seq",
    )?;
    let mut rows = statement.query([&table.name])?;
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let from: String = row.get(2)?;
        // SQLite numbers foreign keys backwards.
        let key = keys.entry(-id).or_insert(ForeignKey {
            columns: Vec::new(),
            to_table: row.get(1)?,
            to_columns: Vec::new(),
            on_delete: row.get(4)?,
            on_update: row.get(5)?,
        });
        if let Some(column) = table.column(&from) {
            key.columns.push(column);
        }
        if let Some(to) = row.get::<_, Option<String>>(3)? {
            key.to_columns.push(to);
        }
    }
    Ok(keys.into_values().collect())
}

fn resolve_targets(schema: &mut Schema) {
    let keys: BTreeMap<String, Vec<String>> = schema
        .tables
        .iter()
        .map(|table| {
            let key = table.key.iter().filter_map(|position| table.columns.get(*position)).map(|column| column.name.clone()).collect();
            (table.name.to_ascii_lowercase(), key)
        })
        .collect();
    for foreign_key in schema.tables.iter_mut().flat_map(|table| &mut table.foreign_keys) {
        if foreign_key.to_columns.is_empty()
            && let Some(key) = keys.get(&foreign_key.to_table.to_ascii_lowercase())
        {
            foreign_key.to_columns.clone_from(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(sql: &str, table: &str) -> TableShape {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(sql).unwrap();
        read_schema(&connection).unwrap().table(table).unwrap().clone()
    }

    #[test]
    fn b5_only_a_plain_integer_primary_key_is_the_rowid() {
        for (sql, rowid) in [
            ("CREATE TABLE t(id INTEGER PRIMARY KEY, v)", true),
            ("CREATE TABLE t(id INTEGER, v, PRIMARY KEY(id))", true),
            ("CREATE TABLE t(id INTEGER, v, PRIMARY KEY(id DESC))", true),
            ("CREATE TABLE t(id integer primary key autoincrement, v)", true),
            ("CREATE TABLE t(id INTEGER PRIMARY KEY DESC, v)", false),
            ("CREATE TABLE t(id INT PRIMARY KEY, v)", false),
            ("CREATE TABLE t(id INTEGER PRIMARY KEY, v) WITHOUT ROWID", false),
            ("CREATE TABLE t(a INTEGER, b INTEGER, PRIMARY KEY(b, a))", false),
        ] {
            let connection = Connection::open_in_memory().unwrap();
            connection.execute_batch(sql).unwrap();
            // The truth by behaviour: a rowid key equals the rowid of its row.
            let truth = connection
                .query_row("SELECT count(*) FROM pragma_index_list('t') WHERE origin = 'pk'", [], |row| row.get::<_, i64>(0))
                .unwrap()
                == 0;
            assert_eq!(truth, rowid, "{sql}");
            let table = shape(sql, "t");
            assert_eq!(table.key_is_rowid, rowid, "{sql}");
            assert_eq!(table.columns[0].not_null, rowid || table.without_rowid, "{sql}");
        }
    }

    #[test]
    fn r38_a_text_key_is_nullable_unless_the_table_forbids_it() {
        assert!(!shape("CREATE TABLE t(k TEXT PRIMARY KEY)", "t").columns[0].not_null);
        assert!(shape("CREATE TABLE t(k TEXT PRIMARY KEY) STRICT", "t").columns[0].not_null);
        assert!(shape("CREATE TABLE t(k TEXT PRIMARY KEY) WITHOUT ROWID", "t").columns[0].not_null);
        let key = shape("CREATE TABLE t(a, b, c, PRIMARY KEY(c, a))", "t").key;
        assert_eq!(key, [2, 0]);
    }

    #[test]
    fn r2_unique_indexes_keep_terms_collations_and_conditions() {
        let table = shape(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT COLLATE NOCASE UNIQUE, b TEXT, c TEXT, g TEXT GENERATED ALWAYS AS (lower(b)) VIRTUAL);
             CREATE UNIQUE INDEX x ON t(b COLLATE rtrim DESC, /* note, ( */ (substr(c, 1, ')') || ',') COLLATE NOCASE ASC) WHERE b <> ' WHERE ' AND a IS NOT NULL; -- end
             CREATE UNIQUE INDEX y ON t(g);
             CREATE INDEX z ON t(c);",
            "t",
        );
        assert!(table.columns[4].generated);
        let auto = &table.unique_indexes[0];
        assert_eq!((auto.terms[0].what.clone(), auto.terms[0].collation.as_str()), (TermKind::Column(1), "NOCASE"));
        let x = table.unique_indexes.iter().find(|index| index.name == "x").unwrap();
        assert_eq!((x.terms[0].what.clone(), x.terms[0].collation.as_str()), (TermKind::Column(2), "RTRIM"));
        assert_eq!(x.terms[1].what, TermKind::Expression("(substr(c, 1, ')') || ',') COLLATE NOCASE".into()));
        assert_eq!(x.terms[1].collation, "NOCASE");
        assert_eq!(x.partial.as_deref(), Some("b <> ' WHERE ' AND a IS NOT NULL"));
        assert_eq!(table.indexes.len(), 3);
        assert_eq!(table.unique_indexes.len(), 3);
    }

    #[test]
    fn foreign_keys_stand_in_declared_order_with_their_targets() {
        let table = shape(
            "CREATE TABLE p(x, y, PRIMARY KEY(y, x)); CREATE TABLE q(id INTEGER PRIMARY KEY);
             CREATE TABLE t(a REFERENCES q, b, c, d REFERENCES q(id) ON DELETE CASCADE, FOREIGN KEY(b, c) REFERENCES P ON UPDATE SET NULL);",
            "t",
        );
        let keys: Vec<_> =
            table.foreign_keys.iter().map(|key| (key.columns.clone(), key.to_table.as_str(), key.to_columns.clone())).collect();
        assert_eq!(keys[0], (vec![0], "q", vec!["id".to_owned()]));
        assert_eq!(keys[1], (vec![3], "q", vec!["id".to_owned()]));
        assert_eq!(keys[2], (vec![1, 2], "P", vec!["y".to_owned(), "x".to_owned()]));
        assert_eq!(table.foreign_keys[1].on_delete, "CASCADE");
        assert_eq!(table.foreign_keys[2].on_update, "SET NULL");
    }

    #[test]
    fn virtual_shadow_and_own_tables_are_left_out() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(
                "CREATE TABLE a(x); CREATE TABLE dock_meta(x); CREATE VIRTUAL TABLE f USING fts5(t); CREATE VIEW v AS SELECT 1;
                 CREATE TEMP TABLE z(x); CREATE TRIGGER dock_i_1 AFTER INSERT ON a BEGIN SELECT 1; END;
                 CREATE TRIGGER mine AFTER INSERT ON a BEGIN SELECT 1; END;",
            )
            .unwrap();
        let schema = read_schema(&connection).unwrap();
        assert_eq!(schema.tables.iter().map(|table| table.name.as_str()).collect::<Vec<_>>(), ["a"]);
        assert_eq!(schema.views.len(), 1);
        assert_eq!(schema.tables[0].triggers.len(), 1);
    }
}
