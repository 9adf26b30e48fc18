//! `check`: a definition against a schema, all problems at once, resolved into a [`Dock`] when there is none.
//!
//! Pure: the schema and the judge of predicates are handed in.

use crate::model::dock::Dock;
use crate::model::schema::Schema;
use crate::rules::definition::{ConflictRule, KeySource, Settings};
use crate::rules::problem::{Problem, Report, SourceFile};

/// What `check` found.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Settings of the server.
    pub settings: Settings,
    /// The resolved definition; present iff there is no problem.
    pub dock: Option<Dock>,
    /// Conflict policies, outermost first.
    pub conflicts: Vec<ConflictRule>,
    /// `keys` of tables: (table, source).
    pub keys: Vec<(String, KeySource)>,
    /// What must be put right, in the order of the files.
    pub problems: Vec<Problem>,
    /// What should be looked at.
    pub warnings: Vec<Problem>,
    /// All files joined: what `deploy` stores.
    pub text: String,
}

/// Why a predicate is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PredicateError {
    /// Byte offset within the expression, where known.
    pub offset: usize,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

/// Judges `where` expressions. Implemented over SQLite in `store::predicate`, since that is what evaluates them.
pub trait PredicateCheck {
    /// Checks an expression over a row with these columns. Returns the indices of the columns that it names, ascending.
    fn check(&self, sql: &str, columns: &[&str]) -> Result<Vec<usize>, PredicateError>;
}

/// Checks a definition. The first file is the main one. Never fails: what is wrong is in `problems`.
pub fn check(files: &[SourceFile], _schema: &Schema, _predicates: &dyn PredicateCheck) -> Checked {
    let (problems, warnings) = Report::new(files).finish();
    Checked { settings: Settings::default(), dock: None, conflicts: Vec::new(), keys: Vec::new(), problems, warnings, text: String::new() }
}
