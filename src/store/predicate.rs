//! The one evaluator of row predicates (`where`), so that data store, check and merge never disagree (R35).
//!
//! An expression is SQL over one row: values as stored, without column affinity and under BINARY collation unless the
//! expression says COLLATE. It is prepared under an authorizer that allows a closed list of deterministic functions and
//! nothing else: no sub-select, no other table, no clock, no chance.

use crate::model::dock::{DockTable, Predicate};
use crate::model::value::Value;
use crate::rules::check::{PredicateCheck, PredicateError};
use crate::rules::problem::nearest;
use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ToSql};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Functions that an expression may call: deterministic, of one row, without settings or clock.
pub const FUNCTIONS: &[&str] = &[
    "abs",
    "char",
    "coalesce",
    "glob",
    "hex",
    "ifnull",
    "iif",
    "instr",
    "length",
    "like",
    "lower",
    "ltrim",
    "max",
    "min",
    "nullif",
    "replace",
    "round",
    "rtrim",
    "sign",
    "substr",
    "substring",
    "trim",
    "typeof",
    "unicode",
    "upper",
];

/// Longest expression, in bytes.
const EXPRESSION_BYTES_MAX: usize = 8 << 10;

/// A predicate that cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The expression does not compile; `check` would have said so.
    #[error("predicate `{sql}` cannot be prepared")]
    Prepare {
        /// The expression.
        sql: String,
        /// SQLite's reason.
        #[source]
        source: rusqlite::Error,
    },
    /// The expression failed on a row, e.g. an integer overflow in abs().
    #[error("predicate `{sql}` failed on a row")]
    Evaluate {
        /// The expression.
        sql: String,
        /// SQLite's reason.
        #[source]
        source: rusqlite::Error,
    },
    /// The row has fewer values than the predicate names columns.
    #[error("predicate `{sql}` names column {column}, the row has {values} values")]
    ShortRow {
        /// The expression.
        sql: String,
        /// Index of the column.
        column: usize,
        /// Values in the row.
        values: usize,
    },
}

struct Bound<'a>(&'a Value);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Null => ValueRef::Null,
            Value::Integer(integer) => ValueRef::Integer(*integer),
            Value::Real(real) => ValueRef::Real(*real),
            Value::Text(bytes) => ValueRef::Text(bytes),
            Value::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Opens a database in memory on which double quotes are names only and names of any schema are out of reach.
fn memory() -> rusqlite::Result<Connection> {
    let connection = Connection::open_in_memory()?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
    Ok(connection)
}

/// Evaluates one predicate on rows. Holds its own connection in memory and its prepared statement.
#[derive(Debug)]
pub struct Evaluator {
    connection: Connection,
    expression: String,
    select: String,
    columns: Vec<usize>,
}

impl Evaluator {
    /// Prepares a predicate over rows whose columns are `column_names`, in the order of the rows' values
    /// ([`Predicate::columns`] are indices into them).
    pub fn new<S: AsRef<str>>(predicate: &Predicate, column_names: &[S]) -> Result<Evaluator, EvaluateError> {
        let row: Vec<String> = predicate
            .columns
            .iter()
            .enumerate()
            .filter_map(|(bind, column)| Some(format!("?{} AS {}", bind + 1, quote(column_names.get(*column)?.as_ref()))))
            .collect();
        let row = if row.is_empty() { "1 AS \"\"".to_owned() } else { row.join(", ") };
        let select = format!("SELECT 1 FROM (SELECT {row}) WHERE ({}\n)", predicate.sql);
        let failed = |source| EvaluateError::Prepare { sql: predicate.sql.clone(), source };
        let connection = memory().map_err(failed)?;
        connection.prepare_cached(&select).map_err(failed)?;
        Ok(Evaluator { connection, expression: predicate.sql.clone(), select, columns: predicate.columns.clone() })
    }

    /// Prepares a predicate over the captured columns of a table of the data store.
    pub fn for_table(predicate: &Predicate, table: &DockTable) -> Result<Evaluator, EvaluateError> {
        let names: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
        Evaluator::new(predicate, &names)
    }

    /// Returns whether a row fits: the expression is true, neither false nor NULL.
    pub fn matches(&self, row: &[Value]) -> Result<bool, EvaluateError> {
        let mut bound = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            bound.push(Bound(row.get(*column).ok_or_else(|| EvaluateError::ShortRow {
                sql: self.expression.clone(),
                column: *column,
                values: row.len(),
            })?));
        }
        let failed = |source| EvaluateError::Evaluate { sql: self.expression.clone(), source };
        let mut statement = self.connection.prepare_cached(&self.select).map_err(failed)?;
        statement.exists(rusqlite::params_from_iter(bound)).map_err(failed)
    }
}

/// Returns a SELECT that yields as `dock_rid` the rowids of the rows of a data store table that fit, with the evaluator's own semantics: the
/// values as they are, no affinity, BINARY collation. `from` is the table (`d7`); its column `c{i}` is captured column `i`.
pub fn select_rowids(predicate: &Predicate, table: &DockTable, from: &str) -> String {
    // `+c3` takes away the INTEGER affinity that a rowid column has.
    let columns: String = predicate
        .columns
        .iter()
        .filter_map(|column| Some(format!(", +c{column} AS {}", quote(&table.columns.get(*column)?.name))))
        .collect();
    format!("SELECT dock_rid FROM (SELECT rowid AS dock_rid{columns} FROM {from}) WHERE ({}\n)", predicate.sql)
}

/// Judges expressions for `check`.
#[derive(Debug, Default, Clone, Copy)]
pub struct PredicateChecker;

#[derive(Default)]
struct Seen {
    columns: BTreeSet<String>,
    selects: usize,
    refused: Option<String>,
}
