//! The identity of this server: its certificate authority, in the file `authority.pem` of a folder of its own (`[server] identity`). It
//! does not lie in the docking root, which can be lost and filled anew.
//!
//! Nodes know the server by it, and by nothing else. Which one it is stands in the server database too, so that one that was lost or
//! exchanged is noticed before nodes are turned away by the hundred.

use crate::base::disk::{Disk, DiskError};
use crate::store::sqlite::{ServerDatabase, StoreError};
use crate::trust::authority::Authority;
use crate::trust::keys::TrustError;
use crate::trust::token::Fingerprint;
use std::path::{Path, PathBuf};

/// The identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Nothing was deployed yet, or the file was deleted.
    #[error("{} is missing: this server has no identity", .0.display())]
    Missing(PathBuf),
    /// Nodes know this server by an identity that is gone.
    #[error("{} is missing, and nodes know this server by it ({fingerprint})", .path.display())]
    Lost {
        /// The file.
        path: PathBuf,
        /// What they know.
        fingerprint: String,
    },
    /// Another identity than the one that nodes know.
    #[error("{} is another identity ({found}) than the one by which nodes know this server ({expected})", .path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// Its fingerprint.
        found: String,
        /// What nodes know.
        expected: String,
    },
    /// The file cannot be understood.
    #[error("{}: {source}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: TrustError,
    },
    /// The file.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The server database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Keys or random numbers.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// Reads the identity and compares it with what the server database says of it.
///
/// # Errors
/// See `IdentityError`.
pub fn read(folder: &Path, database: &ServerDatabase) -> Result<Authority, IdentityError> {
    let path = file(folder);
    let known = database.authority()?;
    let text = match Disk::new().read_secret(&path) {
        Err(error) if error.is_not_found() => {
            return Err(match known {
                Some(fingerprint) => IdentityError::Lost { path, fingerprint },
                None => IdentityError::Missing(path),
            });
        }
        text => text?,
    };
    let authority = Authority::from_text(&text).map_err(|source| IdentityError::Damaged { path: path.clone(), source })?;
    let found = authority.fingerprint().to_string();
    match known {
        Some(expected) if expected != found => Err(IdentityError::Other { path, found, expected }),
        _ => Ok(authority),
    }
}

/// Returns by what nodes know this server. It stands in the server database, so that who gives out tokens need not read the private key.
///
/// # Errors
/// Nothing was deployed yet, or the database cannot be read.
pub fn known(folder: &Path, database: &ServerDatabase) -> Result<Fingerprint, IdentityError> {
    let text = database.authority()?.ok_or_else(|| IdentityError::Missing(file(folder)))?;
    Ok(text.parse().map_err(TrustError::Text)?)
}

/// Makes the identity if this server never had one, and keeps in the server database which one it is.
///
/// # Errors
/// As [`read`]: one that nodes know is never replaced.
pub fn ensure(folder: &Path, database: &ServerDatabase) -> Result<Fingerprint, IdentityError> {
    match read(folder, database) {
        Ok(authority) => {
            database.keep_authority(&authority.fingerprint().to_string())?;
            Ok(authority.fingerprint())
        }
        Err(IdentityError::Missing(_)) => make(folder, database),
        Err(error) => Err(error),
    }
}

/// Makes a new identity in place of the one that there was. Nodes that were let in by that one have to be let in again.
///
/// # Errors
/// The file or the server database cannot be written.
pub fn renew(folder: &Path, database: &ServerDatabase) -> Result<Fingerprint, IdentityError> {
    database.forget_authority()?;
    make(folder, database)
}

fn make(folder: &Path, database: &ServerDatabase) -> Result<Fingerprint, IdentityError> {
    let authority = Authority::generate()?;
    let fingerprint = authority.fingerprint();
    let (path, disk) = (file(folder), Disk::new());
    disk.ensure_folder(folder)?;
    // It stands beside a definition that may be under version control, and must not get there.
    disk.replace_with(folder, &folder.join(".gitignore"), b"*\n")?;
    // The file first: a database that names an authority of which there is no file would say that it was lost.
    disk.replace_with(folder, &path, authority.to_text().as_bytes())?;
    database.keep_authority(&fingerprint.to_string())?;
    Ok(fingerprint)
}

fn file(folder: &Path) -> PathBuf {
    folder.join("authority.pem")
}
