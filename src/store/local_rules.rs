//! How a node brings changes together: `dock_merge_rules`, the same rules as the server's. They come with the extract, and in the stream
//! when a definition changes them.

use crate::model::dock::{Direction, Dock};
use crate::model::merge_rules::MergeRules;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

/// The rules of one table of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableRules {
    /// Its name.
    pub table: String,
    /// Which way its rows travel.
    pub direction: Direction,
    /// How changes are brought together.
    pub rules: MergeRules,
}

/// Why the rules cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The database.
    #[error("read or write the merge rules")]
    Sql(#[from] rusqlite::Error),
    /// A text of ours that is none.
    #[error("the merge rules of table {table} cannot be read")]
    Text {
        /// The table, or what they came in.
        table: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A word that this program does not know.
    #[error("table {table}: unknown direction `{direction}`")]
    Direction {
        /// The table.
        table: String,
        /// The word.
        direction: String,
    },
}

/// Returns the rules of every table that nodes have, by name.
pub fn rules_of(dock: &Dock) -> Vec<TableRules> {
    let of_object = dock.tables.iter().filter_map(|table| {
        let object = table.object.and_then(|object| dock.objects.get(object))?;
        Some(TableRules { table: table.name.clone(), direction: object.direction, rules: table.merge.clone() })
    });
    let mut rules: Vec<TableRules> = of_object.collect();
    rules.sort_by(|a, b| a.table.cmp(&b.table));
    rules
}

/// Returns rules as the one text that the stream carries.
///
/// # Errors
/// They cannot be written.
pub fn rules_text(rules: &[TableRules]) -> Result<String, RulesError> {
    serde_json::to_string(rules).map_err(|source| RulesError::Text { table: "of the definition".to_owned(), source })
}

/// Returns the rules that a text from the stream carries.
///
/// # Errors
/// It is no such text.
pub fn rules_from_text(text: &str) -> Result<Vec<TableRules>, RulesError> {
    serde_json::from_str(text).map_err(|source| RulesError::Text { table: "in a file".to_owned(), source })
}

/// Replaces the rules of a local database.
///
/// # Errors
/// SQLite refuses.
pub fn write_rules(connection: &Connection, rules: &[TableRules]) -> Result<(), RulesError> {
    connection.execute("DELETE FROM main.dock_merge_rules", [])?;
    let mut insert = connection.prepare("INSERT INTO main.dock_merge_rules (table_name, direction, rules) VALUES (?1, ?2, ?3)")?;
    for TableRules { table, direction, rules } in rules {
        let text = serde_json::to_string(rules).map_err(|source| RulesError::Text { table: table.clone(), source })?;
        insert.execute(params![table, direction.name(), text])?;
    }
    Ok(())
}

/// Returns the rules of a local database, by table. A table without a row has the usual ones.
///
/// # Errors
/// SQLite refuses, or a row is damaged.
pub fn read_rules(connection: &Connection) -> Result<Vec<TableRules>, RulesError> {
    let mut statement = connection.prepare_cached("SELECT table_name, direction, rules FROM main.dock_merge_rules ORDER BY table_name")?;
    let mut rows = statement.query([])?;
    let mut rules = Vec::new();
    while let Some(row) = rows.next()? {
        let (table, direction, text): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let Some(direction) = Direction::from_name(&direction) else { return Err(RulesError::Direction { table, direction }) };
        let of_table = serde_json::from_str(&text).map_err(|source| RulesError::Text { table: table.clone(), source })?;
        rules.push(TableRules { table, direction, rules: of_table });
    }
    Ok(rules)
}
