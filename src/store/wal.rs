//! The event that says that some program has written to a database: a change of its write-ahead log.

use crate::base::step::Wake;
use notify::Watcher;
use std::path::{Path, PathBuf};

/// The folder of a database cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("watch {}: {source}", .folder.display())]
pub struct WatchError {
    /// The folder.
    pub folder: PathBuf,
    /// Why not.
    pub source: notify::Error,
}

/// Watches the folder of a database for changes of its write-ahead log, until the result is dropped.
///
/// # Errors
/// The system refuses, mostly since it watches too many.
pub fn watch(database: &Path, wake: Wake) -> Result<notify::RecommendedWatcher, WatchError> {
    let folder = database.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    let mut wal = database.file_name().unwrap_or_default().to_owned();
    wal.push("-wal");
    let failed = |source| WatchError { folder: folder.clone(), source };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // An error may mean lost events; looking once too often costs one query.
        let matters = event.map_or(true, |event| {
            !event.kind.is_access() && (event.need_rescan() || event.paths.iter().any(|path| path.file_name() == Some(&wal)))
        });
        if matters {
            wake.set();
        }
    })
    .map_err(failed)?;
    watcher.watch(&folder, notify::RecursiveMode::NonRecursive).map_err(failed)?;
    Ok(watcher)
}
