//! Finds and reads `dockmaster.toml`. The place decides nothing else: paths in the file are relative to the file.

use std::path::{Path, PathBuf};

/// Where the file is looked for when neither `--config` nor `DOCKMASTER_CONFIG` names it, in this order.
const PLACES: [&str; 2] = ["./dockmaster.toml", "/etc/dockmaster/dockmaster.toml"];

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
    fn a_named_file_is_not_replaced_by_another() {
        let folder = tempfile::tempdir().unwrap();
        let error = find(Some(&folder.path().join("other.toml"))).unwrap_err();
        assert!(matches!(error, ConfigError::Missing { path } if path.ends_with("other.toml")));
    }
}
