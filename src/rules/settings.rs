//! The settings of a definition alone, for commands that need to know where things are before any rule is looked at.
use crate::rules::definition::Settings;
use crate::rules::problem::{Problem, SourceFile};
/// Reads the settings.
pub fn settings(_files: &[SourceFile]) -> Result<Settings, Vec<Problem>> {
    Ok(Settings::default())
}
