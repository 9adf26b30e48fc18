//! The one evaluator of row predicates (`where`), so that data store, check and merge never disagree (R35).
//!
//! An expression is SQL over one row: values as stored, without column affinity and under BINARY collation unless the
//! expression says COLLATE. It is prepared under an authorizer that allows a closed list of deterministic functions and
//! nothing else: no sub-select, no other table, no clock, no chance.

use crate::model::dock::{DockTable, Predicate};
use crate::model::value::Value;
use crate::rules::check::{PredicateCheck, PredicateError};
use crate::rules::problem::nearest;
use crate::store::sqlite::{SqlValue, quote_name};
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Functions that an expression may call: deterministic, of one row, without settings or clock, and without a value that
/// they fail on (`abs` does, on the smallest integer: one row would stop the routing of all).
pub const FUNCTIONS: &[&str] = &[
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
    /// The expression failed on a row, e.g. a pattern that is too long.
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
            .filter_map(|(bind, column)| Some(format!("?{} AS {}", bind + 1, quote_name(column_names.get(*column)?.as_ref()))))
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
            bound.push(SqlValue(row.get(*column).ok_or_else(|| EvaluateError::ShortRow {
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
        .filter_map(|column| Some(format!(", +c{column} AS {}", quote_name(&table.columns.get(*column)?.name))))
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

/// Name of the table that stands for the row while an expression is judged; one that no expression would name by chance.
const ROW: &str = "dock row";

impl PredicateCheck for PredicateChecker {
    fn check(&self, sql: &str, columns: &[&str]) -> Result<Vec<usize>, PredicateError> {
        plain(sql)?;
        let internal = |error: rusqlite::Error| PredicateError { offset: 0, message: format!("cannot be judged: {error}"), hint: None };
        let mut connection = memory().map_err(internal)?;
        // WITHOUT ROWID, so that `rowid` is no hidden column; the first column is the key that such a table must have.
        let list: String = columns.iter().map(|column| format!(", {}", quote_name(column))).collect();
        connection
            .execute_batch(&format!("CREATE TABLE {}(\"dock key\" PRIMARY KEY{list}) WITHOUT ROWID", quote_name(ROW)))
            .map_err(internal)?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let watch = Arc::clone(&seen);
        let hook = move |context: AuthContext<'_>| watch.lock().unwrap_or_else(PoisonError::into_inner).judge(&context.action);
        connection.authorizer(Some(hook)).map_err(internal)?;
        let start = format!("SELECT 1 FROM {} WHERE (", quote_name(ROW));
        let text = format!("{start}{sql}\n)");
        let prepared = connection.prepare(&text).map(|statement| statement.parameter_count());
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match prepared {
            Err(error) => Err(explain(error, start.len(), sql, columns, &seen)),
            Ok(parameters) if parameters > 0 => {
                Err(PredicateError { offset: 0, message: "parameters have no value here".into(), hint: None })
            }
            Ok(_) => Ok((0..columns.len()).filter(|index| columns.get(*index).is_some_and(|name| seen.columns.contains(*name))).collect()),
        }
    }
}

impl Seen {
    fn judge(&mut self, action: &AuthAction<'_>) -> Authorization {
        let refused = match action {
            AuthAction::Select if self.selects == 0 => {
                self.selects += 1;
                return Authorization::Allow;
            }
            AuthAction::Read { table_name, column_name } if *table_name == ROW && *column_name != "dock key" => {
                self.columns.insert((*column_name).to_owned());
                return Authorization::Allow;
            }
            AuthAction::Function { function_name } if FUNCTIONS.iter().any(|name| name.eq_ignore_ascii_case(function_name)) => {
                return Authorization::Allow;
            }
            AuthAction::Function { function_name } => format!("the function {function_name}() is not allowed"),
            AuthAction::Select | AuthAction::Recursive => "a sub-select is not allowed, a predicate sees one row".to_owned(),
            AuthAction::Read { table_name, .. } => format!("the table {table_name} cannot be read, a predicate sees one row"),
            _ => "only an expression over the row is allowed".to_owned(),
        };
        self.refused.get_or_insert(refused);
        Authorization::Deny
    }
}

/// Turns SQLite's error into ours, at its place within the expression.
fn explain(error: rusqlite::Error, before: usize, sql: &str, columns: &[&str], seen: &Seen) -> PredicateError {
    let (message, at) = match error {
        rusqlite::Error::SqlInputError { msg, offset, .. } => (msg, usize::try_from(offset).ok()),
        other => (other.to_string(), None),
    };
    let mut offset = at.map_or(0, |at| at.saturating_sub(before).min(sql.len()));
    while !sql.is_char_boundary(offset) {
        offset -= 1;
    }
    if let Some(refused) = &seen.refused {
        if let Some(name) = refused.strip_prefix("the function ").and_then(|rest| rest.split_once('(')).map(|(name, _)| name) {
            offset = sql.to_ascii_lowercase().find(&name.to_ascii_lowercase()).unwrap_or(offset);
            let hint = match nearest(name, FUNCTIONS.iter().copied()) {
                Some(near) => format!("did you mean {near}()?"),
                None => format!("allowed: {}", FUNCTIONS.join(", ")),
            };
            return PredicateError { offset, message: refused.clone(), hint: Some(hint) };
        }
        if refused.contains("sub-select") {
            offset = sql.to_ascii_lowercase().find("select").unwrap_or(offset);
        }
        return PredicateError {
            offset,
            message: refused.clone(),
            hint: Some("say joins as a rule: T.col -> U(col).col = node.NAME".into()),
        };
    }
    if let Some(name) = message.strip_prefix("no such column: ") {
        let hint = nearest(name.trim_matches('"'), columns.iter().copied()).map(|near| format!("did you mean {near}?"));
        let hint = hint.or_else(|| {
            at.and_then(|_| sql.get(offset..)).filter(|rest| rest.starts_with('"')).map(|_| "a text stands in single quotes".into())
        });
        return PredicateError { offset, message: format!("there is no column {}", name.split(" - ").next().unwrap_or(name)), hint };
    }
    PredicateError { offset, message, hint: None }
}

/// Refuses what could end the expression early or hide a part of it, before SQLite sees it.
fn plain(sql: &str) -> Result<(), PredicateError> {
    let refuse = |offset: usize, message: &str| Err(PredicateError { offset, message: message.into(), hint: None });
    if sql.len() > EXPRESSION_BYTES_MAX {
        return refuse(0, "longer than 8192 bytes");
    }
    if sql.trim().is_empty() {
        return refuse(0, "an empty expression");
    }
    if let Some(at) = sql.find('\0') {
        return refuse(at, "a NUL character");
    }
    let mut open: Vec<usize> = Vec::new();
    let mut characters = sql.char_indices().peekable();
    let mut last = ' ';
    while let Some((at, character)) = characters.next() {
        let rest = sql.get(at..).unwrap_or("");
        match character {
            '\'' | '"' | '`' | '[' => {
                let close = if character == '[' { ']' } else { character };
                let mut closed = false;
                while let Some((_, inner)) = characters.next() {
                    if inner == close && (close == ']' || characters.next_if(|(_, next)| *next == close).is_none()) {
                        closed = true;
                        break;
                    }
                }
                if !closed {
                    return refuse(at, &format!("this {character} is never closed"));
                }
            }
            '(' => open.push(at),
            ')' if open.pop().is_none() => return refuse(at, "this ) was never opened"),
            ';' => return refuse(at, "one expression only, without `;`"),
            '-' if rest.starts_with("--") => return refuse(at, "a comment cannot stand here"),
            '/' if rest.starts_with("/*") => return refuse(at, "a comment cannot stand here"),
            '?' | ':' | '@' => return refuse(at, "parameters have no value here"),
            '$' if !(last.is_alphanumeric() || last == '_' || last == '$') => return refuse(at, "parameters have no value here"),
            _ => {}
        }
        last = character;
    }
    match open.first() {
        Some(at) => refuse(*at, "this ( is never closed"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dock::DockColumn;
    use crate::model::value::Collation;

    const COLUMNS: &[&str] = &["id", "kind", "active", "order", "Name"];

    fn refused(sql: &str) -> (usize, String) {
        let error = PredicateChecker.check(sql, COLUMNS).expect_err(sql);
        (error.offset, error.message)
    }

    #[test]
    fn r35_only_an_expression_over_the_row_is_allowed() {
        assert_eq!(PredicateChecker.check("kind = 'house' AND active", COLUMNS), Ok(vec![1, 2]));
        assert_eq!(PredicateChecker.check("\"order\" > 1 OR [NAME] LIKE 'a%' OR lower(kind) IN ('x', 'y')", COLUMNS), Ok(vec![1, 3, 4]));
        assert_eq!(PredicateChecker.check("1", COLUMNS), Ok(vec![]));
        assert_eq!(PredicateChecker.check("CASE WHEN kind IS NULL THEN 1 ELSE max(id, 2) = 2 END", COLUMNS), Ok(vec![0, 1]));
        let cases: &[(&str, usize, &str)] = &[
            ("knid = 'x'", 0, "there is no column knid"),
            ("kind = \"house\"", 7, "there is no column \"house\""),
            ("rowid = 1", 0, "there is no column rowid"),
            ("id IN (SELECT 1)", 7, "a sub-select is not allowed, a predicate sees one row"),
            ("id IN sqlite_master", 0, "the table sqlite_master cannot be read, a predicate sees one row"),
            ("EXISTS (SELECT 1 FROM sqlite_master)", 0, "the table sqlite_master cannot be read, a predicate sees one row"),
            ("active AND random() > 0", 11, "the function random() is not allowed"),
            ("kind < date('now')", 7, "the function date() is not allowed"),
            ("kind < CURRENT_DATE", 7, "the function current_date() is not allowed"),
            ("load_extension('x')", 0, "the function load_extension() is not allowed"),
            ("kind -> 'x'", 5, "the function ->() is not allowed"),
            ("kind REGEXP 'x'", 5, "no such function: REGEXP"),
            ("max(id) > 1", 0, "misuse of aggregate function max()"),
            ("id = ?1", 5, "parameters have no value here"),
            ("id = :x", 5, "parameters have no value here"),
            ("id = $x", 5, "parameters have no value here"),
            ("id = 1; DROP TABLE x", 6, "one expression only, without `;`"),
            ("id = 1) OR (1", 6, "this ) was never opened"),
            ("id = 1) UNION SELECT (1", 6, "this ) was never opened"),
            ("id = 1 -- x", 7, "a comment cannot stand here"),
            ("(id = 1", 0, "this ( is never closed"),
            ("kind = 'x", 7, "this ' is never closed"),
            ("", 0, "an empty expression"),
            ("id = = 1", 5, "near \"=\": syntax error"),
            ("kind = 'x' COLLATE german", 0, "no such collation sequence: german"),
        ];
        let wrong: Vec<_> = cases
            .iter()
            .map(|(sql, at, message)| (sql, (*at, (*message).to_owned()), refused(sql)))
            .filter(|case| case.1 != case.2)
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        let hint = PredicateChecker.check("knid = 'x'", COLUMNS).unwrap_err().hint;
        assert_eq!(hint.as_deref(), Some("did you mean kind?"));
        let hint = PredicateChecker.check("kind = \"house\"", COLUMNS).unwrap_err().hint;
        assert_eq!(hint.as_deref(), Some("a text stands in single quotes"));
    }

    fn predicate(sql: &str) -> Predicate {
        Predicate { sql: sql.into(), columns: PredicateChecker.check(sql, COLUMNS).unwrap() }
    }

    fn row(kind: Value, active: Value) -> Vec<Value> {
        vec![Value::Integer(7), kind, active, Value::Null, Value::text("Anna")]
    }

    #[test]
    fn r35_values_compare_as_stored() {
        let house = Evaluator::new(&predicate("kind = 'house'"), COLUMNS).unwrap();
        assert!(house.matches(&row(Value::text("house"), Value::Null)).unwrap());
        assert!(!house.matches(&row(Value::text("House"), Value::Null)).unwrap());
        assert!(!house.matches(&row(Value::Null, Value::Null)).unwrap());
        let five = Evaluator::new(&predicate("kind = 5"), COLUMNS).unwrap();
        assert!(five.matches(&row(Value::Real(5.0), Value::Null)).unwrap());
        assert!(!five.matches(&row(Value::text("5"), Value::Null)).unwrap());
        assert!(matches!(five.matches(&[]), Err(EvaluateError::ShortRow { .. })));
        assert!(Evaluator::new(&predicate("1"), COLUMNS).unwrap().matches(&row(Value::Null, Value::Null)).unwrap());
    }

    #[test]
    fn r35_row_by_row_and_by_set_agree() {
        let values = [
            Value::Null,
            Value::Integer(0),
            Value::Integer(5),
            Value::Real(5.0),
            Value::Real(0.5),
            Value::text("5"),
            Value::text("house"),
            Value::text("House"),
            Value::text("house "),
            Value::Text(vec![0xff, 0, 0x41]),
            Value::Blob(b"house".to_vec()),
            Value::text(""),
        ];
        let table = DockTable {
            name: "t".into(),
            columns: COLUMNS.iter().map(|name| DockColumn { name: (*name).into(), sent: true, collation: Collation::NoCase }).collect(),
            key: vec![0],
            key_is_rowid: true,
            object: Some(0),
            member_of: None,
            dangling: vec![],
            by_comparison: false,
            merge: Default::default(),
        };
        let store = Connection::open_in_memory().unwrap();
        store.execute_batch("CREATE TABLE d7(c0 INTEGER PRIMARY KEY, c1, c2, c3, c4)").unwrap();
        let mut rows = Vec::new();
        for (i, a) in values.iter().enumerate() {
            for (j, b) in values.iter().enumerate() {
                let row = vec![Value::Integer((i * 100 + j) as i64), a.clone(), b.clone(), Value::Integer(j as i64), Value::text("Anna")];
                store.execute("INSERT INTO d7 VALUES (?1, ?2, ?3, ?4, ?5)", rusqlite::params_from_iter(row.iter().map(SqlValue))).unwrap();
                rows.push(row);
            }
        }
        let expressions = [
            "kind = 'house'",
            "kind = active",
            "kind < active",
            "id = '5'",
            "id IN ('5', 5, 100)",
            "kind LIKE 'HOU%'",
            "kind COLLATE NOCASE = 'HOUSE'",
            "NOT kind",
            "kind || '' = active",
            "typeof(kind) = typeof(active)",
            "length(kind) > 3",
            "kind BETWEEN 0 AND 5",
            "id || '' = '5'",
            "+id = '0'",
            "name = 'anna'",
            "coalesce(kind, active, 1)",
            "kind IS active",
            "iif(kind, active, 0)",
            "id > '5'",
            "substr(kind, 1, 1) = 'h'",
            "CAST(kind AS INTEGER) = 5",
        ];
        for expression in expressions {
            let predicate = predicate(expression);
            let evaluator = Evaluator::for_table(&predicate, &table).unwrap();
            let one: Vec<i64> = rows
                .iter()
                .filter(|row| evaluator.matches(row).unwrap())
                .map(|row| match row[0] {
                    Value::Integer(id) => id,
                    _ => panic!("key"),
                })
                .collect();
            let mut statement = store.prepare(&format!("{} ORDER BY 1", select_rowids(&predicate, &table, "d7"))).unwrap();
            let set: Vec<i64> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
            assert_eq!(one, set, "{expression}");
        }
    }

    #[test]
    fn t8_random_expressions_never_panic() {
        let pieces = [
            "kind", " = ", "'", "\"", "(", ")", "1", "ä", " AND ", "SELECT ", "[", "]", "`", "$", "x'", " IN ", ",", "-", "/", "*", "\\",
            "\0", "max",
        ];
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..1_500 {
            let text: String = (0..random.usize(0..10)).map(|_| pieces[random.usize(0..pieces.len())]).collect();
            match PredicateChecker.check(&text, COLUMNS) {
                Err(error) => assert!(text.is_char_boundary(error.offset), "{text:?} {error:?}"),
                Ok(columns) => {
                    Evaluator::new(&Predicate { sql: text.clone(), columns }, COLUMNS).expect(&text);
                }
            }
        }
    }
}
