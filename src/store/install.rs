//! Puts our tables and triggers into a server database, and takes them out again.
//!
//! Both are one transaction: a database is never half installed. Installing again changes nothing where nothing changed; where a
//! trigger is missing, a shape changed or a table was stopped, the table gets a new capture id, so that old log rows keep being read
//! by the columns that they were written with.

use crate::base::ids::{Epoch, Revision, ServerId, TxnId};
use crate::base::limits::COLUMNS_MAX;
use crate::model::dock::{Dock, DockTable};
use crate::model::schema::{Schema, TableShape, TermKind};
use crate::model::value::Collation;
use crate::store::capture::{Capture, capture_shape, difference, may_end_statement, newer_triggers, read_captures, trigger_texts};
use crate::store::control::Control;
use crate::store::doubt::stored_triggers;
use crate::store::schema::{read_schema, read_shape};
use crate::store::sqlite::{ServerDatabase, StoreError, quote_name};
use rusqlite::{Connection, OptionalExtension};
use std::collections::BTreeMap;

/// Our tables.
const SERVER_SQL: &str = include_str!("../../sql/sqlite/0001_server.sql");
/// Names of our tables, in the order in which they are dropped.
const OUR_TABLES: [&str; 14] = [
    "dock_txn_log",
    "dock_tail",
    "dock_capture",
    "dock_definition",
    "dock_node_attribute",
    "dock_node",
    "dock_meta",
    "dock_unit",
    "dock_merge",
    "dock_conflict",
    "dock_key_map",
    "dock_message_event",
    "dock_owner",
    "dock_node_key",
];

/// What is to be installed.
#[derive(Debug, Clone, Copy)]
pub struct InstallPlan<'a> {
    /// The checked definition.
    pub dock: &'a Dock,
    /// The schema that it was checked against.
    pub schema: &'a Schema,
    /// Text of the definition, stored with its revision.
    pub revision_text: &'a str,
    /// Name of the server, for people.
    pub server_name: &'a str,
}

/// What stands in the database now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Identity of the database, drawn at the first installation.
    pub server_id: ServerId,
    /// Its history: 1 until a restore is declared.
    pub epoch: Epoch,
    /// Revision of the definition in force.
    pub revision: Revision,
    /// Tables whose capture was interrupted since the last installation; what happened meanwhile is not in the log.
    pub interrupted: Vec<String>,
}

/// Who this database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Identity of the database.
    pub server_id: ServerId,
    /// Its history.
    pub epoch: Epoch,
    /// Name of the server, for people.
    pub server_name: String,
    /// Revision of the definition in force.
    pub revision: Revision,
}

/// What `uninstall` took out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removed {
    /// Triggers, by name.
    pub triggers: Vec<String>,
    /// Tables, by name.
    pub tables: Vec<String>,
    /// The journal mode in which the database stays.
    pub journal_mode: String,
    /// Whether SQLite's own `sqlite_sequence` stays behind without a row: SQLite lets nobody drop it.
    pub empty_sequence_table: bool,
}

impl ServerDatabase {
    /// Installs a definition: our tables, the triggers of each table of it, its text as a new revision if it or a shape changed.
    ///
    /// # Errors
    /// A table cannot be captured, the schema moved since it was checked, a foreign object uses our prefix, WAL mode is not to be
    /// had, or a statement failed. Then nothing was changed but, perhaps, the journal mode.
    pub fn install(&self, plan: &InstallPlan<'_>) -> Result<Installed, StoreError> {
        let fault = || self.fault("installing");
        if !self.is_installed()? {
            self.refuse_strangers()?;
        }
        let mode: String =
            self.connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)).map_err(self.fault("switching WAL mode on"))?;
        if mode != "wal" {
            return Err(StoreError::Journal { path: self.path.clone(), mode });
        }
        let transaction = self.begin_write("installing")?;
        self.connection.execute_batch(SERVER_SQL).map_err(fault())?;
        self.add_columns("dock_definition", &["dock", "schema"])?;
        self.write_identity(plan.server_name)?;
        let schema = read_schema(&self.connection).map_err(fault())?;
        let tables: Vec<Target<'_>> =
            plan.dock.tables.iter().map(|table| self.target(plan.schema, &schema, table)).collect::<Result<_, _>>()?;
        // The others are checked all the same: a comparison needs the key too.
        let tables: Vec<Target<'_>> = tables.into_iter().filter(|target| !target.dock.by_comparison).collect();
        self.widen_log(tables.iter().map(|target| target.columns.len() * 2).max().unwrap_or(1))?;
        let captures = self.captures()?;
        let mut moved = self.retire(&captures, &tables)?;
        let mut interrupted = Vec::new();
        for target in &tables {
            let outcome = self.capture_table(target, &captures)?;
            moved |= outcome == Outcome::New;
            if outcome == Outcome::Interrupted {
                interrupted.push(target.dock.name.clone());
            }
        }
        let was = self.identity()?.revision;
        let revision = self.write_definition(plan, moved)?;
        if revision == was {
            // Nothing else takes these tables over again: what was missed is found by a comparison (R6).
            for table in &interrupted {
                let reason = "its capture was interrupted".to_owned();
                self.log_control(&Control::Reconcile { tables: vec![table.clone()], reason })?;
            }
        }
        let identity = self.identity()?;
        transaction.commit().map_err(fault())?;
        Ok(Installed { server_id: identity.server_id, epoch: identity.epoch, revision, interrupted })
    }

    /// Takes out everything of ours, and proves that nothing is left.
    ///
    /// # Errors
    /// Something whose name begins with `dock_` is there and is not ours, or a statement failed. Then nothing was changed.
    pub fn uninstall(&self) -> Result<Removed, StoreError> {
        let fault = || self.fault("uninstalling");
        self.require_installed()?;
        let transaction = self.begin_write("uninstalling")?;
        let mut removed = Removed::default();
        for (name, kind) in our_objects(&self.connection).map_err(fault())? {
            if kind == "trigger" && is_our_trigger(&name) {
                self.connection.execute_batch(&format!("DROP TRIGGER main.{}", quote_name(&name))).map_err(fault())?;
                removed.triggers.push(name);
            }
        }
        for table in OUR_TABLES {
            self.connection.execute_batch(&format!("DROP TABLE IF EXISTS main.{table}")).map_err(fault())?;
            removed.tables.push(table.to_owned());
        }
        if let Some((name, _)) = our_objects(&self.connection).map_err(fault())?.into_iter().next() {
            return Err(StoreError::Reserved { path: self.path.clone(), name });
        }
        removed.empty_sequence_table = self
            .connection
            .query_row("SELECT 1 FROM main.sqlite_schema WHERE name = 'sqlite_sequence'", [], |_| Ok(()))
            .optional()
            .and_then(|found| match found {
                Some(()) => self.connection.query_row("SELECT count(*) = 0 FROM main.sqlite_sequence", [], |row| row.get(0)),
                None => Ok(false),
            })
            .map_err(fault())?;
        transaction.commit().map_err(fault())?;
        removed.journal_mode = self.connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).map_err(fault())?;
        *self.catalogue.borrow_mut() = None;
        Ok(removed)
    }

    /// Returns whether our tables are there.
    ///
    /// # Errors
    /// A statement failed.
    pub fn is_installed(&self) -> Result<bool, StoreError> {
        self.connection
            .prepare_cached("SELECT count(*) FROM main.sqlite_schema WHERE name IN ('dock_meta', 'dock_txn_log') AND type = 'table'")
            .and_then(|mut statement| statement.query_row([], |row| Ok(row.get::<_, i64>(0)? == 2)))
            .map_err(self.fault("looking for our tables"))
    }

    pub(crate) fn require_installed(&self) -> Result<(), StoreError> {
        if self.is_installed()? { Ok(()) } else { Err(StoreError::NotInstalled { path: self.path.clone() }) }
    }

    /// Returns who this database is.
    ///
    /// # Errors
    /// Nothing is installed, a row is damaged, or a statement failed.
    pub fn identity(&self) -> Result<Identity, StoreError> {
        self.require_installed()?;
        let mut meta: BTreeMap<String, String> = BTreeMap::new();
        let fault = || self.fault("reading dock_meta");
        let mut statement = self.connection.prepare_cached("SELECT name, value FROM main.dock_meta").map_err(fault())?;
        let mut rows = statement.query([]).map_err(fault())?;
        while let Some(row) = rows.next().map_err(fault())? {
            meta.insert(row.get(0).map_err(fault())?, row.get(1).map_err(fault())?);
        }
        let damaged =
            |name: &str, reason: String| StoreError::Damaged { path: self.path.clone(), what: format!("dock_meta `{name}`"), reason };
        let text = |name: &str| meta.get(name).cloned().ok_or_else(|| damaged(name, "it is missing".into()));
        let number = |name: &str| text(name)?.parse::<u32>().map_err(|error| damaged(name, error.to_string()));
        Ok(Identity {
            server_id: text("server_id")?.parse().map_err(|error: crate::base::ids::IdError| damaged("server_id", error.to_string()))?,
            epoch: Epoch(number("epoch")?),
            server_name: text("server_name")?,
            revision: Revision(number("revision")?),
        })
    }

    /// Before the first installation: nobody else may use our prefix, or `uninstall` could not tell what is whose.
    fn refuse_strangers(&self) -> Result<(), StoreError> {
        match our_objects(&self.connection).map_err(self.fault("looking for our tables"))?.into_iter().next() {
            Some((name, _)) => Err(StoreError::Reserved { path: self.path.clone(), name }),
            None => Ok(()),
        }
    }

    fn write_identity(&self, server_name: &str) -> Result<(), StoreError> {
        let mut server_id = ServerId::default();
        getrandom::fill(&mut server_id.0).map_err(StoreError::Random)?;
        let fault = || self.fault("writing dock_meta");
        let mut absent = self
            .connection
            .prepare_cached(
                "INSERT INTO main.dock_meta(name, value) SELECT ?1, ?2 WHERE NOT EXISTS (SELECT 1 FROM main.dock_meta WHERE name = ?1)",
            )
            .map_err(fault())?;
        for (name, value) in
            [("server_id", server_id.to_string()), ("epoch", "1".into()), ("revision", "0".into()), ("server_name", String::new())]
        {
            absent.execute((name, value)).map_err(fault())?;
        }
        self.connection.execute("UPDATE main.dock_meta SET value = ?1 WHERE name = 'server_name'", [server_name]).map_err(fault())?;
        Ok(())
    }

    fn widen_log(&self, width: usize) -> Result<(), StoreError> {
        let fault = || self.fault("widening the log");
        let have: i64 = self
            .connection
            .query_row("SELECT count(*) FROM pragma_table_info('dock_txn_log', 'main') WHERE substr(name, 1, 1) = 'c'", [], |row| {
                row.get(0)
            })
            .map_err(fault())?;
        let have = usize::try_from(have).unwrap_or_default();
        for place in have + 1..=width {
            self.connection.execute_batch(&format!("ALTER TABLE main.dock_txn_log ADD COLUMN c{place}")).map_err(fault())?;
        }
        Ok(())
    }

    /// Adds columns that a table of an older installation lacks.
    fn add_columns(&self, table: &str, columns: &[&str]) -> Result<(), StoreError> {
        for column in columns {
            let has = self.connection.column_exists(Some("main"), table, *column).map_err(self.fault("looking at our tables"))?;
            if !has {
                let sql = format!("ALTER TABLE main.{table} ADD COLUMN {column} TEXT");
                self.connection.execute_batch(&sql).map_err(self.fault("widening our tables"))?;
            }
        }
        Ok(())
    }

    pub(crate) fn captures(&self) -> Result<Vec<Capture>, StoreError> {
        read_captures(&self.connection).map_err(self.fault("reading the catalogue"))?.map_err(|(id, reason)| StoreError::Damaged {
            path: self.path.clone(),
            what: format!("row {id} of dock_capture"),
            reason,
        })
    }

    /// Finds a table of the definition in the live schema, and what speaks against capturing it.
    pub(crate) fn target<'a>(&self, checked: &Schema, schema: &'a Schema, dock: &'a DockTable) -> Result<Target<'a>, StoreError> {
        let refuse = |reason: String| StoreError::Table { table: dock.name.clone(), reason };
        let table = schema.table(&dock.name).ok_or_else(|| refuse("there is no such table".into()))?;
        if let Some(was) = checked.table(&dock.name)
            && let Some(what) = difference(&capture_shape(was), &capture_shape(table))
        {
            return Err(refuse(format!("{what} since the definition was checked")));
        }
        let column = |name: &str| table.column(name).ok_or_else(|| refuse(format!("there is no column `{name}`")));
        let columns: Vec<usize> = dock.columns.iter().map(|dock_column| column(&dock_column.name)).collect::<Result<_, _>>()?;
        if columns.len() > COLUMNS_MAX {
            return Err(refuse(format!("{} columns are too many to be captured", columns.len())));
        }
        if table.key.is_empty() {
            return Err(refuse("it has no primary key, so its rows cannot be told apart".into()));
        }
        let key: Vec<Option<usize>> = dock.key.iter().map(|position| columns.get(*position).copied()).collect();
        if key != table.key.iter().copied().map(Some).collect::<Vec<_>>() {
            return Err(refuse("its primary key is not the definition's".into()));
        }
        for index in &table.unique_indexes {
            for term in &index.terms {
                if index.primary && Collation::from_name(&term.collation).is_none() {
                    return Err(refuse(format!(
                        "its primary key is ordered by the collation `{}`, which only an application knows",
                        term.collation
                    )));
                }
                if term.what == TermKind::Expression(String::new()) {
                    return Err(refuse(format!("an expression of its index `{}` could not be read", index.name)));
                }
            }
        }
        self.refuse_null_keys(table)?;
        Ok(Target { dock, table, columns })
    }

    fn refuse_null_keys(&self, table: &TableShape) -> Result<(), StoreError> {
        let nullable = table.key.iter().filter_map(|position| table.columns.get(*position)).filter(|column| !column.not_null);
        let tests: Vec<String> = nullable.map(|column| format!("{} IS NULL", quote_name(&column.name))).collect();
        if tests.is_empty() {
            return Ok(());
        }
        let sql = format!("SELECT 1 FROM main.{} WHERE {} LIMIT 1", quote_name(&table.name), tests.join(" OR "));
        let found = self.connection.query_row(&sql, [], |_| Ok(())).optional().map_err(self.fault("looking for NULL keys"))?;
        match found {
            None => Ok(()),
            Some(()) => Err(StoreError::Table { table: table.name.clone(), reason: "a row has NULL in its primary key".into() }),
        }
    }

    /// Ends the capture of tables that the definition no longer names. Returns whether there were any.
    fn retire(&self, captures: &[Capture], tables: &[Target<'_>]) -> Result<bool, StoreError> {
        let mut any = false;
        for capture in captures.iter().filter(|capture| capture.active) {
            if !tables.iter().any(|target| target.dock.name.eq_ignore_ascii_case(&capture.table)) {
                self.end_capture(capture)?;
                any = true;
            }
        }
        Ok(any)
    }

    fn end_capture(&self, capture: &Capture) -> Result<(), StoreError> {
        let fault = || self.fault("dropping triggers");
        for name in capture.triggers.keys() {
            self.connection.execute_batch(&format!("DROP TRIGGER IF EXISTS main.{}", quote_name(name))).map_err(fault())?;
        }
        self.connection.execute("UPDATE main.dock_capture SET active = 0 WHERE id = ?1", [capture.id]).map_err(fault())?;
        Ok(())
    }

    /// Sees to it that a table is captured in its present shape.
    pub(crate) fn capture_table(&self, target: &Target<'_>, captures: &[Capture]) -> Result<Outcome, StoreError> {
        let action = format!("installing triggers on {}", target.dock.name);
        let fault = || self.fault(&action);
        let shape = capture_shape(target.table);
        let columns: Vec<String> = target.dock.columns.iter().map(|column| column.name.clone()).collect();
        let present = captures.iter().find(|capture| capture.active && capture.table.eq_ignore_ascii_case(&target.dock.name));
        let mut outcome = Outcome::New;
        if let Some(capture) = present {
            let same = capture.shape == shape && capture.columns == columns;
            let stored = stored_triggers(&self.connection, target.table).map_err(fault())?;
            let whole = capture.triggers.iter().all(|(name, sql)| stored.get(name) == Some(sql)) && stored.len() == capture.triggers.len();
            let newer = newer_triggers(&self.connection, &target.table.name).map_err(fault())?;
            if same && whole && capture.stopped.is_none() {
                if newer.is_empty() {
                    return Ok(Outcome::Kept);
                }
                // Only the order is wrong: the same triggers again, last.
                self.create_triggers(&target.dock.name, capture.triggers.iter().map(|(name, sql)| (name.as_str(), sql.as_str())))?;
                let missed = newer.iter().any(|(_, sql)| may_end_statement(sql));
                return Ok(if missed { Outcome::Interrupted } else { Outcome::Kept });
            }
            if same {
                outcome = Outcome::Interrupted;
            }
            self.end_capture(capture)?;
        }
        // A program's own function in one of its triggers cannot be compiled here, and that is not our concern.
        let compiled_before = self.compile(target.table).is_ok();
        let key: Vec<&str> = target.dock.key.iter().filter_map(|position| columns.get(*position)).map(String::as_str).collect();
        let json = |value: Result<String, serde_json::Error>| {
            value.map_err(|error| StoreError::Table { table: target.dock.name.clone(), reason: error.to_string() })
        };
        self.connection
            .execute(
                "INSERT INTO main.dock_capture(table_name, columns, key, shape, triggers, active) VALUES (?1, ?2, ?3, ?4, '{}', 1)",
                (
                    &target.table.name,
                    json(serde_json::to_string(&columns))?,
                    json(serde_json::to_string(&key))?,
                    json(serde_json::to_string(&shape))?,
                ),
            )
            .map_err(fault())?;
        let id = self.connection.last_insert_rowid();
        let texts = trigger_texts(id, target.table, &target.columns);
        self.create_triggers(&target.dock.name, texts.iter().map(|(name, sql)| (name.as_str(), sql.as_str())))?;
        if compiled_before && let Err(error) = self.compile(target.table) {
            return Err(StoreError::Table {
                table: target.dock.name.clone(),
                reason: format!("its capture triggers do not compile: {error}"),
            });
        }
        let fresh = read_shape(&self.connection, &target.table.name).map_err(fault())?;
        let stored = stored_triggers(&self.connection, fresh.as_ref().unwrap_or(target.table)).map_err(fault())?;
        self.connection
            .execute("UPDATE main.dock_capture SET triggers = ?2 WHERE id = ?1", (id, json(serde_json::to_string(&stored))?))
            .map_err(fault())?;
        Ok(outcome)
    }

    /// Creates triggers, in place of those of the same names if there are any.
    fn create_triggers<'a>(&self, table: &str, triggers: impl Iterator<Item = (&'a str, &'a str)>) -> Result<(), StoreError> {
        for (name, sql) in triggers {
            self.connection
                .execute_batch(&format!("DROP TRIGGER IF EXISTS main.{}; {sql}", quote_name(name)))
                .map_err(self.fault(&format!("installing triggers on {table}")))?;
        }
        Ok(())
    }

    /// Compiles one statement of each kind, triggers included, and runs none: an error here would be the user's later.
    fn compile(&self, table: &TableShape) -> rusqlite::Result<()> {
        let name = quote_name(&table.name);
        let column = table.columns.iter().find(|column| !column.generated).map(|column| quote_name(&column.name)).unwrap_or_default();
        for sql in [
            format!("INSERT INTO {name}({column}) VALUES (NULL)"),
            format!("UPDATE {name} SET {column} = {column}"),
            format!("DELETE FROM {name}"),
        ] {
            self.connection.prepare(&sql)?;
        }
        Ok(())
    }

    /// Appends a control to the log; the caller's transaction commits it with what it tells of (R28).
    pub(crate) fn log_control(&self, control: &Control) -> Result<(), StoreError> {
        let json = serde_json::to_string(control).map_err(|error| StoreError::Damaged {
            path: self.path.clone(),
            what: "a control".into(),
            reason: error.to_string(),
        })?;
        self.connection
            .execute("INSERT INTO main.dock_txn_log(tbl, op, c1) VALUES (0, 'C', ?1)", [json])
            .map_err(self.fault("writing a control to the log"))?;
        Ok(())
    }

    /// Appends a control of its own to the log, durably. Returns its position.
    ///
    /// # Errors
    /// Nothing is installed, or a statement failed.
    pub fn append_control(&self, control: &Control) -> Result<TxnId, StoreError> {
        self.require_installed()?;
        let transaction = self.begin_write("writing a control to the log")?;
        self.log_control(control)?;
        let position = TxnId(self.connection.last_insert_rowid());
        transaction.commit().map_err(self.fault("writing a control to the log"))?;
        Ok(position)
    }
}

/// A table of the definition and what it is in the database.
pub(crate) struct Target<'a> {
    dock: &'a DockTable,
    table: &'a TableShape,
    columns: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing to do.
    Kept,
    /// Captured for the first time, or in a new shape.
    New,
    /// Same shape, but its triggers were not all there or it was stopped.
    Interrupted,
}

/// Returns everything whose name begins with our prefix: (name, type). Indexes of ours go with their tables.
fn our_objects(connection: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    let mut statement =
        connection.prepare("SELECT name, type FROM main.sqlite_schema WHERE lower(substr(name, 1, 5)) = 'dock_' ORDER BY name")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// Returns whether a name is one that `trigger_texts` gives.
fn is_our_trigger(name: &str) -> bool {
    let parts: Vec<&str> = name.split('_').collect();
    matches!(parts[..], ["dock", "i" | "u" | "d" | "hi" | "hu", id] if !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()))
}
