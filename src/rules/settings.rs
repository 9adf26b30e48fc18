//! The settings of a definition alone, for commands that need to know where things are before any rule is looked at.

use crate::rules::definition::Settings;
use crate::rules::problem::{Problem, Report, SourceFile};
use crate::rules::reader;

/// Reads the settings.
///
/// # Errors
/// The files cannot be read so far that the settings are known: everything that is wrong with them.
pub fn settings(files: &[SourceFile]) -> Result<Settings, Vec<Problem>> {
    let mut report = Report::new(files);
    let definition = reader::read(files, &mut report);
    let (problems, _) = report.finish();
    if definition.settings.server.database.is_none() && !problems.is_empty() { Err(problems) } else { Ok(definition.settings) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, Vec<Problem>> {
        settings(&[SourceFile { name: "dockmaster.toml".into(), text: text.into() }])
    }

    #[test]
    fn a_wrong_rule_does_not_hide_the_settings_a_broken_file_does() {
        let wrong_rule = "version = 1\n[server]\ndatabase = 'hq.db'\n[object.a]\nvisible = 'nonsense ->'\n";
        assert_eq!(read(wrong_rule).unwrap().server.database.as_deref(), Some("hq.db"));
        let broken = read("version = 1\n[server\ndatabase = 'hq.db'\n").unwrap_err();
        assert_eq!((broken[0].file.as_str(), broken[0].line), ("dockmaster.toml", 2));
    }
}
