//! What a unit tells a local database beside rows: another shape of its tables, and that it begins anew.
//!
//! Tables change before the unit's rows are written, indexes and views after them: rows that the unit mends may not fit an index before.
//! Rows of a table that only nodes write are nowhere else, so no change of its shape takes one away: where a row does not fit, the unit
//! stops with its key and the reason, the former table stands as it was, and a person corrects the row. That holds alike for a new
//! definition and for a node that begins anew.
//! Local programs may have indexes and triggers of their own on our tables; a table that is made anew gets them back.
//! The text of the statements comes from the server whose files are proved to be its own; names in them are those of replicated tables,
//! never of anything of ours or of SQLite's (T12).

use super::local::LocalError;
use super::local_apply::{ApplyTransaction, UnitError};
use super::local_capture::ensure_capture;
use super::local_rules::{RulesError, rules_from_text, write_rules};
use super::sqlite::{SqlValue, quote_name, value_of};
use crate::model::event::{SchemaKind, SchemaObject, UnitControls};
use crate::model::value::{Row, display_key};
use rusqlite::{Connection, ErrorCode, OptionalExtension, params_from_iter};

/// Name under which the former table lies while its rows are copied.
const FORMER: &str = "dock_former";

impl ApplyTransaction<'_> {
    /// Does what comes before the unit's rows: shapes tables, and empties them if the node begins anew.
    ///
    /// # Errors
    /// The server's statements do not fit this database, or SQLite refuses.
    pub fn begin_controls(&self, controls: &UnitControls) -> Result<(), UnitError> {
        self.begin_ending(&controls.confirms)?;
        if !controls.reset && controls.schema.is_empty() {
            return Ok(());
        }
        self.begin_reshape()?;
        let reshaper = Reshaper { connection: self.connection(), transaction: self };
        if controls.reset {
            reshaper.reset(&controls.schema)?;
        } else {
            let gone = |object: &&SchemaObject| object.sql.is_none() && object.kind != SchemaKind::MergeRules;
            for object in controls.schema.iter().filter(gone) {
                reshaper.drop(object)?;
            }
            for object in controls.schema.iter().filter(|object| is_table(object) && object.sql.is_some()) {
                reshaper.table(object)?;
            }
        }
        // Before the rows: they are brought together with local changes by what is in force from here on.
        if let Some(object) = controls.schema.iter().find(|object| object.kind == SchemaKind::MergeRules) {
            reshaper.rules(object)?;
        }
        self.forget_tables();
        Ok(())
    }

    /// Does what comes after the unit's rows: indexes and views, and the capture of the tables in their new shape.
    ///
    /// # Errors
    /// As [`ApplyTransaction::begin_controls`].
    pub fn end_controls(&self, controls: &UnitControls) -> Result<(), UnitError> {
        let reshaper = Reshaper { connection: self.connection(), transaction: self };
        let is_rules = |object: &&SchemaObject| object.kind == SchemaKind::MergeRules;
        for object in controls.schema.iter().filter(|object| !is_table(object) && !is_rules(object)) {
            reshaper.make_last(object)?;
        }
        if !controls.schema.iter().all(|object| is_rules(&object)) {
            let given: Vec<&str> = controls.schema.iter().filter(|object| is_table(object)).map(|object| object.name.as_str()).collect();
            ensure_capture(reshaper.connection, &given).map_err(|source| LocalError::of_capture(self.path(), source))?;
            self.forget_tables();
        }
        Ok(())
    }
}

fn is_table(object: &SchemaObject) -> bool {
    matches!(object.kind, SchemaKind::Table | SchemaKind::KeptTable)
}

struct Reshaper<'t, 'd> {
    connection: &'d Connection,
    transaction: &'t ApplyTransaction<'d>,
}

impl Reshaper<'_, '_> {
    fn failed(&self, object: &str) -> impl Fn(rusqlite::Error) -> UnitError + use<'_> {
        let object = object.to_owned();
        move |source| match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DiskFull | ErrorCode::SystemIoFailure) => {
                UnitError::Local(self.transaction.sql_error("change the shape of a table", source))
            }
            _ => UnitError::Shape { object: object.clone(), reason: source.to_string() },
        }
    }

    /// Returns the type of the local object of that name.
    fn kind_of(&self, name: &str) -> Result<Option<String>, UnitError> {
        self.connection
            .query_row("SELECT type FROM main.sqlite_master WHERE name = ?1 COLLATE NOCASE", [name], |row| row.get(0))
            .optional()
            .map_err(self.failed(name))
    }

    fn is_replicated(&self, name: &str) -> Result<bool, UnitError> {
        self.connection
            .query_row("SELECT 1 FROM main.dock_table WHERE name = ?1", [name], |_| Ok(()))
            .optional()
            .map(|found| found.is_some())
            .map_err(self.failed(name))
    }

    /// Nothing of ours, of SQLite's or of a local program is taken away by a name that a file gives.
    fn refuse_foreign(&self, object: &SchemaObject) -> Result<(), UnitError> {
        let lower = object.name.to_ascii_lowercase();
        let foreign = if lower.starts_with("dock_") || lower.starts_with("sqlite_") {
            true
        } else {
            is_table(object) && self.kind_of(&object.name)?.is_some() && !self.is_replicated(&object.name)?
        };
        if foreign {
            let reason = "the name belongs to something else in this database".to_owned();
            return Err(UnitError::Shape { object: object.name.clone(), reason });
        }
        Ok(())
    }

    fn run(&self, name: &str, sql: &str) -> Result<(), UnitError> {
        self.connection.execute_batch(sql).map_err(self.failed(name))
    }

    /// Makes every table as the server says, empty; tables that only this node writes keep their rows. Drops the others.
    fn reset(&self, schema: &[SchemaObject]) -> Result<(), UnitError> {
        let mut statement = self.connection.prepare("SELECT name FROM main.dock_table ORDER BY name").map_err(self.failed("dock_table"))?;
        let known: Vec<String> =
            statement.query_map([], |row| row.get(0)).and_then(Iterator::collect).map_err(self.failed("dock_table"))?;
        for name in known.iter().filter(|name| !schema.iter().any(|object| is_table(object) && object.name.eq_ignore_ascii_case(name))) {
            self.drop(&SchemaObject { kind: SchemaKind::Table, name: name.clone(), sql: None, keeps_rows: false })?;
        }
        for object in schema.iter().filter(|object| is_table(object)) {
            self.table(&SchemaObject { keeps_rows: object.kind == SchemaKind::KeptTable, ..object.clone() })?;
        }
        Ok(())
    }

    /// Puts the rules of the merge in place of the former ones.
    fn rules(&self, object: &SchemaObject) -> Result<(), UnitError> {
        const NAME: &str = "dock_merge_rules";
        let unreadable = |error: RulesError| UnitError::Shape { object: NAME.to_owned(), reason: with_source(&error) };
        let rules = rules_from_text(object.sql.as_deref().unwrap_or("[]")).map_err(unreadable)?;
        write_rules(self.connection, &rules).map_err(|error| match error {
            RulesError::Sql(source) => self.failed(NAME)(source),
            error => unreadable(error),
        })
    }

    fn drop(&self, object: &SchemaObject) -> Result<(), UnitError> {
        self.refuse_foreign(object)?;
        let (kind, name) = (kind_word(object), quote_name(&object.name));
        self.run(&object.name, &format!("DROP {kind} IF EXISTS main.{name}"))?;
        if is_table(object) {
            self.connection.execute("DELETE FROM main.dock_table WHERE name = ?1", [&object.name]).map_err(self.failed(&object.name))?;
        }
        Ok(())
    }

    /// Makes a table, or makes it anew.
    fn table(&self, object: &SchemaObject) -> Result<(), UnitError> {
        self.refuse_foreign(object)?;
        let Some(sql) = &object.sql else { return Ok(()) };
        let name = &object.name;
        let former: Option<String> = self
            .connection
            .query_row("SELECT sql FROM main.sqlite_master WHERE type = 'table' AND name = ?1 COLLATE NOCASE", [name], |row| row.get(0))
            .optional()
            .map_err(self.failed(name))?;
        if former.as_deref() == Some(sql) {
            if !object.keeps_rows {
                self.run(name, &format!("DELETE FROM main.{}", quote_name(name)))?;
            }
            return Ok(());
        }
        let additions = self.local_additions(name)?;
        if former.is_some() {
            self.run(name, &format!("DROP TABLE IF EXISTS main.{FORMER}; ALTER TABLE main.{} RENAME TO {FORMER}", quote_name(name)))?;
        }
        self.run(name, sql)?;
        if self.kind_of(name)?.as_deref() != Some("table") {
            let reason = "the server's statement makes something else".to_owned();
            return Err(UnitError::Shape { object: name.clone(), reason });
        }
        if former.is_some() {
            if object.keeps_rows {
                self.copy_rows(name)?;
            }
            self.run(name, &format!("DROP TABLE main.{FORMER}"))?;
        }
        if !self.is_replicated(name)? {
            self.connection.execute("INSERT INTO main.dock_table(name) VALUES (?1)", [name]).map_err(self.failed(name))?;
        }
        for (addition, sql) in additions {
            // A program's own index or trigger that does not fit the new shape is its own affair; the table must go on.
            if let Err(error) = self.connection.execute_batch(&sql) {
                tracing::warn!(table = name, addition, %error, "a local index or trigger does not fit the table's new shape and is gone");
            }
        }
        Ok(())
    }

    /// Returns a program's indexes and triggers on a table: a table that is made anew loses them. Ours are made anew to the new shape.
    fn local_additions(&self, table: &str) -> Result<Vec<(String, String)>, UnitError> {
        let sql = "SELECT name, sql FROM main.sqlite_master WHERE type IN ('index', 'trigger') AND sql IS NOT NULL AND tbl_name = ?1 COLLATE NOCASE
                   AND substr(name, 1, 5) <> 'dock_'";
        let mut statement = self.connection.prepare(sql).map_err(self.failed(table))?;
        statement.query_map([table], |row| Ok((row.get(0)?, row.get(1)?))).and_then(Iterator::collect).map_err(self.failed(table))
    }

    /// Copies the rows of the former table into the new one, all or none.
    fn copy_rows(&self, table: &str) -> Result<(), UnitError> {
        let columns = |of: &str| -> Result<Vec<String>, UnitError> {
            let mut statement =
                self.connection.prepare("SELECT name FROM pragma_table_xinfo(?1) WHERE hidden = 0").map_err(self.failed(table))?;
            statement.query_map([of], |row| row.get(0)).and_then(Iterator::collect).map_err(self.failed(table))
        };
        let (old, new) = (columns(FORMER)?, columns(table)?);
        let kept: Vec<String> =
            new.iter().filter(|name| old.iter().any(|known| known.eq_ignore_ascii_case(name))).map(|name| quote_name(name)).collect();
        let names = kept.join(", ");
        let insert = format!("INSERT OR ABORT INTO main.{}({names})", quote_name(table));
        let copied = self.connection.execute_batch(&format!("{insert} SELECT {names} FROM main.{FORMER}"));
        match copied {
            Err(source) if matches!(source.sqlite_error_code(), Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch)) => {
                Err(self.misfit(table, &insert, &kept)?.unwrap_or_else(|| self.failed(table)(source)))
            }
            copied => copied.map_err(self.failed(table)),
        }
    }

    /// Finds the first row of the former table that does not fit the new one, and says which and why.
    fn misfit(&self, table: &str, insert: &str, kept: &[String]) -> Result<Option<UnitError>, UnitError> {
        let failed = || self.failed(table);
        let sql = "SELECT name FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk";
        let key: Vec<String> = self
            .connection
            .prepare(sql)
            .and_then(|mut statement| statement.query_map([FORMER], |row| row.get::<_, String>(0))?.collect())
            .map_err(failed())?;
        let all: Vec<String> = kept.iter().cloned().chain(key.iter().map(|name| quote_name(name))).collect();
        let mut select = self.connection.prepare(&format!("SELECT {} FROM main.{FORMER}", all.join(", "))).map_err(failed())?;
        let marks = vec!["?"; kept.len()].join(", ");
        let mut insert = self.connection.prepare(&format!("{insert} VALUES ({marks})")).map_err(failed())?;
        let mut rows = select.query([]).map_err(failed())?;
        while let Some(row) = rows.next().map_err(failed())? {
            let values: Row = (0..all.len()).map(|at| row.get_ref(at).map(value_of)).collect::<Result<_, _>>().map_err(failed())?;
            let (written, of_key) = values.split_at(kept.len());
            if let Err(source) = insert.execute(params_from_iter(written.iter().map(SqlValue))) {
                let (key, reason) = (display_key(of_key), source.to_string());
                return Ok(Some(UnitError::OwnRow { table: table.to_owned(), key, reason }));
            }
        }
        Ok(None)
    }

    /// Makes an index or a view in place of what has its name.
    fn make_last(&self, object: &SchemaObject) -> Result<(), UnitError> {
        self.refuse_foreign(object)?;
        let (kind, name) = (kind_word(object), quote_name(&object.name));
        self.run(&object.name, &format!("DROP {kind} IF EXISTS main.{name}"))?;
        object.sql.as_ref().map_or(Ok(()), |sql| self.run(&object.name, sql))
    }
}

fn with_source(error: &RulesError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

fn kind_word(object: &SchemaObject) -> &'static str {
    match object.kind {
        SchemaKind::Table | SchemaKind::KeptTable => "TABLE",
        SchemaKind::Index => "INDEX",
        // Rules are no object of the schema and never get here.
        SchemaKind::View | SchemaKind::MergeRules => "VIEW",
    }
}
