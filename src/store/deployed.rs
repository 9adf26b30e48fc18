//! Deployed definitions in the server database (`dock_definition`): the text, and what it meant when it was put into force. So whatever
//! has to go on by the definition in force does not depend on a file that somebody may be editing.

use crate::base::ids::Revision;
use crate::model::dock::Dock;
use crate::model::schema::Schema;
use crate::store::control::Control;
use crate::store::install::InstallPlan;
use crate::store::sqlite::{ServerDatabase, StoreError};
use rusqlite::OptionalExtension;

/// A deployed definition.
#[derive(Debug, Clone)]
pub struct Deployed {
    /// All its files joined.
    pub text: String,
    /// What it means.
    pub dock: Dock,
    /// The schema of the server database at that time.
    pub schema: Schema,
}

impl ServerDatabase {
    /// Returns the text of a deployed definition; `None` if there is no such revision.
    ///
    /// # Errors
    /// A statement failed.
    pub fn definition(&self, revision: Revision) -> Result<Option<String>, StoreError> {
        self.connection
            .prepare_cached("SELECT text FROM main.dock_definition WHERE revision = ?1")
            .and_then(|mut statement| statement.query_row([revision.0], |row| row.get(0)).optional())
            .map_err(self.fault("reading the definition"))
    }

    /// Returns a deployed definition as it was resolved, with the schema that it was resolved against; `None` if there is no such revision.
    ///
    /// # Errors
    /// The row is damaged, or a statement failed.
    pub fn deployed(&self, revision: Revision) -> Result<Option<Deployed>, StoreError> {
        let found = self
            .connection
            .prepare_cached("SELECT text, dock, schema FROM main.dock_definition WHERE revision = ?1")
            .and_then(|mut statement| {
                statement
                    .query_row([revision.0], |row| {
                        Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?, row.get::<_, Option<String>>(2)?))
                    })
                    .optional()
            })
            .map_err(self.fault("reading the definition"))?;
        // An older program stored the text alone.
        let Some((text, Some(dock), Some(schema))) = found else { return Ok(None) };
        let damaged = |error: serde_json::Error| StoreError::Damaged {
            path: self.path.clone(),
            what: format!("definition {revision}"),
            reason: error.to_string(),
        };
        let (dock, schema) = (serde_json::from_str(&dock).map_err(damaged)?, serde_json::from_str(&schema).map_err(damaged)?);
        Ok(Some(Deployed { text, dock, schema }))
    }

    pub(crate) fn write_definition(&self, plan: &InstallPlan<'_>, moved: bool) -> Result<Revision, StoreError> {
        let fault = || self.fault("writing the definition");
        let json = |value: Result<String, serde_json::Error>| {
            value.map_err(|error| StoreError::Damaged { path: self.path.clone(), what: "the definition".into(), reason: error.to_string() })
        };
        let resolved = (json(serde_json::to_string(plan.dock))?, json(serde_json::to_string(plan.schema))?);
        let was = self.identity()?.revision;
        if !moved && self.definition(was)?.as_deref() == Some(plan.revision_text) {
            self.connection
                .execute("UPDATE main.dock_definition SET dock = ?2, schema = ?3 WHERE revision = ?1", (was.0, &resolved.0, &resolved.1))
                .map_err(fault())?;
            return Ok(was);
        }
        let revision = Revision(was.0 + 1);
        self.connection
            .execute(
                "INSERT INTO main.dock_definition(revision, text, deployed_at, dock, schema)
                 VALUES (?1, ?2, strftime('%Y-%m-%dT%H:%M:%SZ', 'now'), ?3, ?4)",
                (revision.0, plan.revision_text, &resolved.0, &resolved.1),
            )
            .map_err(fault())?;
        self.connection
            .execute("UPDATE main.dock_meta SET value = ?1 WHERE name = 'revision'", [revision.0.to_string()])
            .map_err(fault())?;
        self.log_control(&Control::Definition { revision })?;
        Ok(revision)
    }
}
