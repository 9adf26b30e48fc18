//! Fills a new local database from the consolidated data store: the rows that a node sees, with the server's own table definitions.
//!
//! Rows are streamed from the caller's connection, because only that one has the pinned snapshot and the temporary tables of visible
//! rows. Values are bound as they come; in a column of the same affinity a stored value is stored again as it is (B1).

use super::ddl::{self, DdlError, ExtractShape};
use super::finished::write_finished;
use super::local::{self, LocalState};
use super::local_rules::{RulesError, rules_of, write_rules};
use super::sqlite::quote_name;
use crate::model::dock::{Dock, DockTable};
use crate::model::schema::{Schema, TableShape};
use crate::model::toc::TocTable;
use crate::model::upload::FinishedUnit;
use rusqlite::config::DbConfig;
use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;

/// Pages of cache while an extract is filled: 64 MiB, as a negative number of KiB.
const CACHE_KIB: i64 = -65_536;

/// Why a local database could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A table definition cannot be had without the omitted columns.
    #[error(transparent)]
    Ddl(#[from] DdlError),
    /// The definition and the server's schema do not fit together.
    #[error("table {table}: {reason}")]
    Schema {
        /// The table.
        table: String,
        /// What does not fit.
        reason: String,
    },
    /// A table, index or row could not be written.
    #[error("table {table}: {doing}")]
    Table {
        /// The table.
        table: String,
        /// What was being done.
        doing: String,
        /// SQLite's reason.
        #[source]
        source: rusqlite::Error,
    },
    /// The rules of the merge.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// Anything else that SQLite refused.
    #[error("{doing}")]
    Sql {
        /// What was being done.
        doing: &'static str,
        /// SQLite's reason.
        #[source]
        source: rusqlite::Error,
    },
}

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// Rows by table, sorted by name.
    pub tables: Vec<TocTable>,
    /// What of the server's schema is not there and why: one line each.
    pub left_out: Vec<String>,
}

/// Makes the local database of a definition without any row, in memory, and returns what an extract will have to leave out.
/// `deploy` asks beforehand, so that no node is the first to learn that a table cannot be made.
pub fn check_local(dock: &Dock, schema: &Schema) -> Result<Vec<String>, BuildError> {
    let sql = |doing| move |source| BuildError::Sql { doing, source };
    let target = Connection::open_in_memory().map_err(sql("open a database in memory"))?;
    check_into(&target, dock, schema)
}

/// Makes the tables, indexes and views of a local database in an empty one; returns what is left out.
pub(crate) fn check_into(target: &Connection, dock: &Dock, schema: &Schema) -> Result<Vec<String>, BuildError> {
    let sources = sources(dock, schema)?;
    let mut left_out = Vec::new();
    let shape = extract_shape(&sources, &mut left_out)?;
    for source in &sources {
        left_out.extend(create_table(target, source, &shape)?);
        left_out.extend(create_indexes(target, source, &shape)?);
    }
    left_out.extend(create_views(target, schema, &shape).map_err(|source| BuildError::Sql { doing: "create the views", source })?);
    Ok(left_out)
}

/// Makes the local database `path`, which must not exist, from `cds`: see `server::extract::ExtractJob`.
pub fn build_local(
    path: &Path,
    cds: &Connection,
    dock: &Dock,
    schema: &Schema,
    state: &LocalState,
    finished: &[FinishedUnit],
) -> Result<Built, BuildError> {
    let (target, built) = fill(path, cds, dock, schema, state, finished)?;
    finish(target)?;
    Ok(built)
}

/// Makes the part of a local database that several nodes have in common, to be copied for each and completed by [`complete_local`].
/// Nothing opens it but that.
pub fn build_common(path: &Path, cds: &Connection, dock: &Dock, schema: &Schema, state: &LocalState) -> Result<Built, BuildError> {
    let (target, built) = fill(path, cds, dock, schema, state, &[])?;
    target.close().map_err(|(_, source)| BuildError::Sql { doing: "close the common part", source })?;
    Ok(built)
}

/// Makes a copy of the common part the local database of one node: its identity, and the rows that are its own.
pub fn complete_local(
    path: &Path,
    cds: &Connection,
    dock: &Dock,
    schema: &Schema,
    state: &LocalState,
    finished: &[FinishedUnit],
    common: &Built,
) -> Result<Built, BuildError> {
    let sql = |doing| move |source| BuildError::Sql { doing, source };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let target = Connection::open_with_flags(path, flags).map_err(sql("open the copy of the common part"))?;
    configure(&target).map_err(sql("prepare the local database"))?;
    target.execute_batch("BEGIN").map_err(sql("begin to complete the local database"))?;
    local::set_identity(&target, state).map_err(sql("write whose database it is"))?;
    write_finished(&target, finished).map_err(sql("write which units are finished"))?;
    let mut tables = common.tables.clone();
    for source in &sources(dock, schema)? {
        let rows = copy_rows(cds, &target, source)?;
        if let Some(table) = tables.iter_mut().find(|table| table.name == source.shape.name) {
            table.rows += rows;
        }
    }
    target.execute_batch("COMMIT").map_err(sql("finish the local database"))?;
    finish(target)?;
    Ok(Built { tables, left_out: common.left_out.clone() })
}

fn fill(
    path: &Path,
    cds: &Connection,
    dock: &Dock,
    schema: &Schema,
    state: &LocalState,
    finished: &[FinishedUnit],
) -> Result<(Connection, Built), BuildError> {
    let sql = |doing| move |source| BuildError::Sql { doing, source };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let target = Connection::open_with_flags(path, flags).map_err(sql("create the local database"))?;
    configure(&target).map_err(sql("prepare the local database"))?;

    let sources = sources(dock, schema)?;
    let mut left_out = Vec::new();
    let shape = extract_shape(&sources, &mut left_out)?;
    target.execute_batch("BEGIN").map_err(sql("begin to fill the local database"))?;
    let names: Vec<&str> = sources.iter().map(|source| source.shape.name.as_str()).collect();
    local::create(&target, state, &names).map_err(sql("create the dock tables"))?;
    write_rules(&target, &rules_of(dock))?;
    write_finished(&target, finished).map_err(sql("write which units are finished"))?;
    let mut tables = Vec::new();
    for source in &sources {
        left_out.extend(create_table(&target, source, &shape)?);
        tables.push(TocTable { name: source.shape.name.clone(), rows: copy_rows(cds, &target, source)? });
        left_out.extend(create_indexes(&target, source, &shape)?);
    }
    left_out.extend(create_views(&target, schema, &shape).map_err(sql("create the views"))?);
    target.execute_batch("COMMIT").map_err(sql("finish the local database"))?;
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((target, Built { tables, left_out }))
}

fn finish(target: Connection) -> Result<(), BuildError> {
    // The mode is a mark in the file: applications that open it then run in WAL mode too.
    target
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(|source| BuildError::Sql { doing: "switch the local database to WAL", source })?;
    target.close().map_err(|(_, source)| BuildError::Sql { doing: "close the local database", source })
}

/// The file is thrown away if anything goes wrong, so it needs no journal; the caller flushes what it makes of it.
fn configure(target: &Connection) -> rusqlite::Result<()> {
    target.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
    target.pragma_update(None, "journal_mode", "OFF")?;
    target.pragma_update(None, "synchronous", "OFF")?;
    target.pragma_update(None, "cache_size", CACHE_KIB)
}

/// A table of the extract: where its rows come from.
struct Source<'a> {
    index: usize,
    dock: &'a DockTable,
    shape: &'a TableShape,
}

impl Source<'_> {
    /// Returns the name of every column of the server's table, and whether the extract has it. A generated column is never sent but
    /// computed at the node.
    fn columns(&self) -> impl Iterator<Item = (&str, bool)> {
        self.shape.columns.iter().map(|column| {
            let captured = self.dock.column(&column.name).and_then(|index| self.dock.columns.get(index));
            (column.name.as_str(), column.generated || captured.is_some_and(|captured| captured.sent))
        })
    }
}

/// Returns what the extract has. A generated column that is computed from an omitted one cannot be had, so it is omitted as well, and
/// with it those that are computed from it.
fn extract_shape(sources: &[Source<'_>], left_out: &mut Vec<String>) -> Result<ExtractShape, BuildError> {
    let mut shape = ExtractShape::default();
    for source in sources {
        shape.add(&source.shape.name, source.columns());
        for columns in &source.dock.dangling {
            let names = columns.iter().filter_map(|column| source.dock.columns.get(*column));
            shape.dangle(&source.shape.name, names.map(|column| column.name.as_str()));
        }
    }
    for source in sources {
        loop {
            match ddl::rewrite_table(&source.shape.name, &source.shape.sql, &shape) {
                Ok(_) => break,
                Err(DdlError::Generated { table, column, omitted }) => {
                    shape.omit(&table, &column);
                    left_out.push(format!("{table}.{column}: generated from {omitted}, which is omitted"));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(shape)
}

/// Returns the tables of the extract, in the order of the data store: those that belong to an object.
fn sources<'a>(dock: &'a Dock, schema: &'a Schema) -> Result<Vec<Source<'a>>, BuildError> {
    let mut sources = Vec::new();
    for (index, table) in dock.tables.iter().enumerate() {
        if table.object.is_none() {
            continue;
        }
        let problem = |reason: String| BuildError::Schema { table: table.name.clone(), reason };
        let shape = schema.table(&table.name).ok_or_else(|| problem("it is not in the server's schema".to_owned()))?;
        if let Some(missing) = table.columns.iter().find(|column| shape.column(&column.name).is_none()) {
            return Err(problem(format!("its column {} is not in the server's schema", missing.name)));
        }
        sources.push(Source { index, dock: table, shape });
    }
    Ok(sources)
}

fn create_table(target: &Connection, source: &Source<'_>, shape: &ExtractShape) -> Result<Vec<String>, BuildError> {
    let table = &source.shape.name;
    let failed = |doing: &str| {
        let (table, doing) = (table.clone(), doing.to_owned());
        move |source| BuildError::Table { table, doing, source }
    };
    let rewritten = ddl::rewrite_table(table, &source.shape.sql, shape)?;
    target.execute_batch(&rewritten.sql).map_err(failed("create it in the extract"))?;
    // The rewritten text must give the columns that were meant, whatever the text was.
    let expected: Vec<&str> =
        source.shape.columns.iter().map(|column| column.name.as_str()).filter(|column| shape.has_column(table, column)).collect();
    let mut statement = target.prepare("SELECT name FROM pragma_table_xinfo(?1)").map_err(failed("look at its columns"))?;
    let found: Vec<String> =
        statement.query_map([table], |row| row.get(0)).and_then(Iterator::collect).map_err(failed("look at its columns"))?;
    if found != expected {
        let reason = format!("its definition in the extract has the columns {} instead of {}", found.join(", "), expected.join(", "));
        return Err(BuildError::Schema { table: table.clone(), reason });
    }
    Ok(rewritten.left_out)
}

/// Copies the visible rows in the order of the data store. Returns how many.
fn copy_rows(cds: &Connection, target: &Connection, source: &Source<'_>) -> Result<u64, BuildError> {
    let table = &source.shape.name;
    let failed = |doing: &'static str| move |source| BuildError::Table { table: table.clone(), doing: doing.to_owned(), source };
    let generated =
        |name: &str| source.shape.column(name).and_then(|index| source.shape.columns.get(index)).is_some_and(|column| column.generated);
    let copied: Vec<(usize, &str)> = source
        .dock
        .columns
        .iter()
        .enumerate()
        .filter(|(_, column)| column.sent && !generated(&column.name))
        .map(|(index, column)| (index, column.name.as_str()))
        .collect();
    let from: Vec<String> = copied.iter().map(|(index, _)| format!("d.c{index}")).collect();
    let index = source.index;
    let select =
        format!("SELECT {} FROM temp.vis_{index} AS v CROSS JOIN main.d{index} AS d ON d.rowid = v.rid ORDER BY v.rid", from.join(", "));
    let into: Vec<String> = copied.iter().map(|(_, name)| quote_name(name)).collect();
    let marks: Vec<String> = (1..=copied.len()).map(|number| format!("?{number}")).collect();
    // OR ABORT: a conflict clause in the user's table must not hide a row that does not fit.
    let insert = format!("INSERT OR ABORT INTO {} ({}) VALUES ({})", quote_name(table), into.join(", "), marks.join(", "));

    let mut select = cds.prepare(&select).map_err(failed("read its rows from the data store"))?;
    let mut insert = target.prepare(&insert).map_err(failed("write its rows"))?;
    let mut rows = select.query([]).map_err(failed("read its rows from the data store"))?;
    let mut count = 0;
    while let Some(row) = rows.next().map_err(failed("read its rows from the data store"))? {
        for position in 0..copied.len() {
            let value = row.get_ref(position).map_err(failed("read its rows from the data store"))?;
            insert.raw_bind_parameter(position + 1, ToSqlOutput::Borrowed(value)).map_err(failed("write its rows"))?;
        }
        insert.raw_execute().map_err(failed("write its rows"))?;
        count += 1;
    }
    Ok(count)
}

/// Creates the indexes once the rows are there, which is faster than keeping them up to date row by row.
fn create_indexes(target: &Connection, source: &Source<'_>, shape: &ExtractShape) -> Result<Vec<String>, BuildError> {
    let table = &source.shape.name;
    let mut left_out = Vec::new();
    for (name, sql) in &source.shape.indexes {
        match ddl::index_obstacle(table, sql, shape) {
            Some(omitted) => left_out.push(format!("{table}: index {name}, which needs {omitted}, which is omitted")),
            None => target.execute_batch(sql).map_err(|source| BuildError::Table {
                table: table.clone(),
                doing: format!("create its index {name}"),
                source,
            })?,
        }
    }
    Ok(left_out)
}

/// Creates the views that can be had. Which ones is found out in an empty copy in memory: a view that was dropped again would leave its
/// text, with names of tables that the node must not know, in the pages of the file.
fn create_views(target: &Connection, schema: &Schema, shape: &ExtractShape) -> rusqlite::Result<Vec<String>> {
    let scratch = Connection::open_in_memory()?;
    {
        let mut statement =
            target.prepare("SELECT sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")?;
        let mut tables = statement.query([])?;
        while let Some(table) = tables.next()? {
            scratch.execute_batch(table.get_ref(0)?.as_str()?)?;
        }
    }
    let mut left_out = Vec::new();
    let mut views = Vec::new();
    for view in &schema.views {
        match scratch.execute_batch(&view.sql) {
            Ok(()) => views.push(view),
            Err(error) => left_out.push(format!("view {}: {error}", view.name)),
        }
    }
    // A view may use another one, so each one that goes can take others along.
    loop {
        let mut obstacle = None;
        for (position, view) in views.iter().enumerate() {
            // SQLite takes a quoted name that is no column for a string; a view must not turn an omitted column into one.
            scratch.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, !shape.any_omitted_in(&view.sql))?;
            if let Err(error) = scratch.prepare(&format!("SELECT * FROM {}", quote_name(&view.name))) {
                obstacle = Some((position, error));
                break;
            }
        }
        let Some((position, error)) = obstacle else { break };
        let view = views.remove(position);
        left_out.push(format!("view {}: {error}", view.name));
        scratch.execute_batch(&format!("DROP VIEW {}", quote_name(&view.name)))?;
    }
    for view in views {
        target.execute_batch(&view.sql)?;
    }
    Ok(left_out)
}
