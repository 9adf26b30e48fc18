//! Finds and reads `dockmaster.toml` and the files that it includes. Paths in it are relative to the file's folder, so the
//! working directory of whoever calls (cron, the service, a person) decides nothing.

use crate::rules::problem::{Problem, SourceFile};
use crate::rules::reader;
use std::path::{Path, PathBuf};

/// Where the file is looked for when neither `--config` nor `DOCKMASTER_CONFIG` names it, in this order.
const PLACES: [&str; 2] = ["dockmaster.toml", "/etc/dockmaster/dockmaster.toml"];

/// No usable configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The named file is not there.
    #[error("there is no {}", path.display())]
    Missing {
        /// The path that was named.
        path: PathBuf,
    },
    /// None was named and none lies in the usual places.
    #[error("no dockmaster.toml here, and none in /etc/dockmaster")]
    Nowhere,
    /// It is there and cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `include` names no file.
    #[error("{config}: include = [\"{pattern}\"] names no file")]
    IncludesNothing {
        /// The main file.
        config: String,
        /// The pattern.
        pattern: String,
    },
    /// It is there, and something is wrong in it.
    #[error("{}", problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
    Wrong {
        /// Everything that is wrong.
        problems: Vec<Problem>,
    },
    /// The file names no server database.
    #[error("{} names no database", path.display())]
    NoDatabase {
        /// The file.
        path: PathBuf,
    },
}

/// Returns the configuration file: the one named by `--config` or `DOCKMASTER_CONFIG`, else the first that exists.
pub fn find(named: Option<&Path>) -> Result<PathBuf, ConfigError> {
    match named {
        Some(path) if path.is_file() => Ok(path.to_owned()),
        Some(path) => Err(ConfigError::Missing { path: path.to_owned() }),
        None => PLACES.iter().map(PathBuf::from).find(|path| path.is_file()).ok_or(ConfigError::Nowhere),
    }
}

/// Returns the text of a file of the configuration.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

/// The definition as it lies on disk: the main file first.
#[derive(Debug)]
pub struct Loaded {
    /// The main file.
    pub path: PathBuf,
    /// All files with their text.
    pub files: Vec<SourceFile>,
}

/// Finds and reads the configuration file and what it includes.
pub fn load(named: Option<&Path>) -> Result<Loaded, ConfigError> {
    let path = find(named)?;
    let main = SourceFile { name: name_of(&path), text: read(&path)? };
    let mut files = Vec::new();
    let patterns = reader::includes(&main).map_err(|problem| ConfigError::Wrong { problems: vec![problem] })?;
    for pattern in patterns {
        let found = matching(&beside(&path, &pattern))?;
        if found.is_empty() {
            return Err(ConfigError::IncludesNothing { config: main.name, pattern });
        }
        for file in found {
            files.push(SourceFile { name: name_of(&file), text: read(&file)? });
        }
    }
    files.insert(0, main);
    Ok(Loaded { path, files })
}

/// The name by which messages call a file: as short as it is clear.
fn name_of(path: &Path) -> String {
    path.strip_prefix("./").unwrap_or(path).display().to_string()
}

/// Returns the files that a path with `*` in its last part stands for, sorted by name.
fn matching(pattern: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let wanted = pattern.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if !wanted.contains('*') {
        return Ok(if pattern.is_file() { vec![pattern.to_owned()] } else { Vec::new() });
    }
    let folder = pattern.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let unreadable = |source| ConfigError::Read { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if fits(&wanted, &entry.file_name().to_string_lossy()) && entry.path().is_file() {
            found.push(folder.join(entry.file_name()));
        }
    }
    found.sort();
    Ok(found)
}

/// Returns whether a file name fits a pattern in which `*` stands for any characters.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => {
            let Some(rest) = name.strip_prefix(before) else { return false };
            (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| fits(after, &rest[at..]))
        }
    }
}

/// Returns a path of the file `config`, which is relative to that file's folder.
pub fn beside(config: &Path, path: &str) -> PathBuf {
    match config.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.join(path),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_the_file() {
        assert_eq!(beside(Path::new("dockmaster.toml"), "hq.db"), Path::new("hq.db"));
        assert_eq!(beside(Path::new("/etc/dockmaster/dockmaster.toml"), "hq.db"), Path::new("/etc/dockmaster/hq.db"));
        assert_eq!(beside(Path::new("a/dockmaster.toml"), "/var/hq.db"), Path::new("/var/hq.db"));
    }

    #[test]
    fn stars_stand_for_any_characters() {
        for (pattern, name, expected) in
            [("*.toml", "a.toml", true), ("*.toml", "a.toml~", false), ("o*s*.toml", "orders.toml", true), ("a.toml", "b.toml", false)]
        {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn included_files_follow_the_main_file_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("dockmaster.toml", "version = 1\ninclude = [\"o*.toml\"]\n");
        write("o2.toml", "# two\n");
        write("o1.toml", "# one\n");
        let loaded = load(Some(&folder.path().join("dockmaster.toml"))).unwrap();
        let texts: Vec<&str> = loaded.files.iter().skip(1).map(|file| file.text.as_str()).collect();
        assert_eq!(texts, ["# one\n", "# two\n"]);
        write("dockmaster.toml", "version = 1\ninclude = [\"none*.toml\"]\n");
        assert!(matches!(load(Some(&folder.path().join("dockmaster.toml"))), Err(ConfigError::IncludesNothing { .. })));
    }

    #[test]
    fn a_named_file_is_not_replaced_by_another() {
        let folder = tempfile::tempdir().unwrap();
        let error = find(Some(&folder.path().join("other.toml"))).unwrap_err();
        assert!(matches!(error, ConfigError::Missing { path } if path.ends_with("other.toml")));
    }
}
