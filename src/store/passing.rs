//! Faults that pass by themselves when something else does: a full disk, a process without file handles (faults 7 and 10).

use crate::base::handles;
use rusqlite::{Error as Sql, ErrorCode, ffi};
use std::error::Error;
use std::io;

/// Returns whether an error, or anything that caused it, is a full disk or a lack of file handles. Trying again later may succeed.
pub fn is_out_of_room(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if is_full(error) || error.downcast_ref::<io::Error>().is_some_and(handles::is_exhausted) {
            return true;
        }
        // SQLite does not say why a file could not be opened.
        if error.downcast_ref::<Sql>().and_then(Sql::sqlite_error_code) == Some(ErrorCode::CannotOpen) && handles::are_exhausted() {
            return true;
        }
        next = error.source();
    }
    false
}

/// Returns whether this very error is a full disk.
fn is_full(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    }
    let Some(Sql::SqliteFailure(failure, _)) = error.downcast_ref::<Sql>() else { return false };
    // The index of the WAL is a file that grows too.
    failure.code == ErrorCode::DiskFull || failure.extended_code == ffi::SQLITE_IOERR_SHMSIZE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::disk::DiskError;

    #[test]
    fn fault7_a_full_disk_is_found_behind_other_errors() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert!(is_out_of_room(&DiskError::Io { operation: "write", path: "x".into(), source: full }));
        let other = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(!is_out_of_room(&DiskError::Io { operation: "write", path: "x".into(), source: other }));
        assert!(is_out_of_room(&Sql::SqliteFailure(ffi::Error::new(ffi::SQLITE_FULL), None)));
        assert!(!is_out_of_room(&Sql::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), None)));
    }
}
