//! Being written.
use crate::rules::problem::{Problem, SourceFile};
/// Returns the file patterns that `include` names.
pub fn includes(_main: &SourceFile) -> Result<Vec<String>, Problem> {
    Ok(Vec::new())
}
