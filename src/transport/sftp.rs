//! A carrier behind SFTP: a place on another machine, where nothing of ours runs.
//!
//! Parts are written with as many requests on their way as libssh2 allows, so a round trip costs a part little; a name is final from the moment
//! on that it is there, and is never used again. What lies there by links is let alone, as in a folder of this machine.

use crate::session::letter::Way;
use crate::transport::carrier::{self, Carrier, CarrierError, Listing, MARKER, MARKER_BYTES_MAX, Marker};
use crate::transport::link::Timing;
use crate::transport::ssh::{self, SshAddress, SshKeys};
use ssh2::{ErrorCode, File, OpenFlags, OpenType, RenameFlags, Session, Sftp};
use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// SFTP's answer that a file is not there (SSH_FX_NO_SUCH_FILE).
const NO_SUCH_FILE: ErrorCode = ErrorCode::SFTP(2);
/// Bytes that are handed to libssh2 at once; it sends them as many requests without waiting for the answers.
const PIECE: usize = 4 << 20;

/// `sftp://USER@HOST[:PORT]/PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SftpAddress {
    /// The host and the account.
    pub host: SshAddress,
    /// The place there.
    pub path: PathBuf,
}

impl fmt::Display for SftpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sftp://{}@{}:{}{}", self.host.user, self.host.host, self.host.port, self.path.display())
    }
}

impl FromStr for SftpAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<SftpAddress, String> {
        let wrong = || format!("`{text}` is not of the form sftp://USER@HOST:PORT/PATH");
        let rest = text.strip_prefix("sftp://").ok_or_else(wrong)?;
        let (host, path) = rest.split_once('/').filter(|(_, path)| !path.is_empty()).ok_or_else(wrong)?;
        let host = format!("ssh://{host}").parse().map_err(|_| wrong())?;
        Ok(SftpAddress { host, path: Path::new("/").join(path) })
    }
}

/// A place behind SFTP.
pub struct SftpCarrier {
    address: SftpAddress,
    sftp: Sftp,
    /// Kept as long as it is used.
    _session: Session,
}

impl fmt::Debug for SftpCarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SftpCarrier({})", self.address)
    }
}

impl SftpCarrier {
    /// Connects. The host has to be one of `known_hosts`.
    ///
    /// # Errors
    /// No line, an unknown host, or the account takes neither key nor password.
    pub fn open(address: SftpAddress, keys: &SshKeys, timing: Timing) -> Result<SftpCarrier, CarrierError> {
        let session = ssh::session(&address.host, keys, timing)?;
        let opened = session.sftp();
        let sftp = opened.map_err(|source| CarrierError::Sftp { what: "open SFTP".into(), source })?;
        Ok(SftpCarrier { address, sftp, _session: session })
    }

    fn failed(&self, what: &str, path: &Path) -> impl FnOnce(ssh2::Error) -> CarrierError + use<> {
        let what = format!("{what} {} on {}", path.display(), self.address.host.host);
        move |source| CarrierError::Sftp { what, source }
    }

    fn failed_io(&self, what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> CarrierError + use<> {
        let what = format!("{what} {} on {}", path.display(), self.address.host.host);
        move |source| CarrierError::SftpIo { what, source }
    }

    fn folder(&self, way: Way, folder: &str) -> PathBuf {
        self.address.path.join(way.folder()).join(folder)
    }

    /// Whether a path is a folder, and no link.
    fn is_folder(&self, path: &Path) -> Result<bool, CarrierError> {
        match self.sftp.lstat(path) {
            Ok(found) => Ok(found.is_dir()),
            Err(error) if error.code() == NO_SUCH_FILE => Ok(false),
            Err(error) => Err(self.failed("look at", path)(error)),
        }
    }

    fn is_reachable(&self, way: Way, folder: &str) -> Result<bool, CarrierError> {
        Ok(self.is_folder(&self.address.path.join(way.folder()))? && self.is_folder(&self.folder(way, folder))?)
    }

    fn ensure(&self, folder: &Path) -> Result<(), CarrierError> {
        if self.is_folder(folder)? {
            return Ok(());
        }
        match self.sftp.mkdir(folder, 0o777) {
            // Somebody else made it meanwhile.
            Err(_) if self.is_folder(folder)? => Ok(()),
            made => made.map_err(self.failed("make folder", folder)),
        }
    }

    fn read_file(&self, path: &Path, max: u64) -> Result<Option<Vec<u8>>, CarrierError> {
        let mut file = match self.sftp.open(path) {
            Ok(file) => file,
            Err(error) if error.code() == NO_SUCH_FILE => return Ok(None),
            Err(error) => return Err(self.failed("open", path)(error)),
        };
        // Reads of this size have libssh2 ask ahead.
        let mut bytes = Vec::new();
        let mut piece = vec![0; PIECE];
        while (bytes.len() as u64) <= max {
            let wanted = usize::try_from(max.saturating_add(1) - bytes.len() as u64).unwrap_or(PIECE).min(PIECE);
            match file.read(&mut piece[..wanted]).map_err(self.failed_io("read", path))? {
                0 => break,
                read => bytes.extend_from_slice(&piece[..read]),
            }
        }
        Ok(Some(bytes))
    }

    /// Writes a file under a temporary name and gives it its own; `may_replace` what stands there.
    fn put(&self, path: &Path, bytes: &[u8], may_replace: bool) -> Result<(), CarrierError> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let tmp = path.with_file_name(format!("{name}.{}.tmp", std::process::id()));
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE;
        let opened = self.sftp.open_mode(&tmp, flags, 0o666, OpenType::File);
        let mut file = opened.map_err(self.failed("create", &tmp))?;
        for piece in bytes.chunks(PIECE) {
            file.write_all(piece).map_err(self.failed_io("write", &tmp))?;
        }
        durable(&mut file).map_err(self.failed("flush", &tmp))?;
        file.close().map_err(self.failed("close", &tmp))?;
        if !may_replace && self.sftp.lstat(path).is_ok() {
            self.remove_file(&tmp)?;
            return Err(CarrierError::Taken { path: path.to_owned() });
        }
        let flags = if may_replace { RenameFlags::OVERWRITE | RenameFlags::ATOMIC | RenameFlags::NATIVE } else { RenameFlags::empty() };
        match self.sftp.rename(&tmp, path, Some(flags)) {
            // Version 3 of SFTP replaces nothing.
            Err(_) if may_replace => {
                self.remove_file(path)?;
                self.sftp.rename(&tmp, path, None).map_err(self.failed("rename to", path))
            }
            renamed => renamed.map_err(self.failed("rename to", path)),
        }
    }

    fn remove_file(&self, path: &Path) -> Result<(), CarrierError> {
        match self.sftp.unlink(path) {
            Err(error) if error.code() != NO_SUCH_FILE => Err(self.failed("delete", path)(error)),
            _ => Ok(()),
        }
    }

    fn entries(&self, folder: &Path) -> Result<Vec<(String, ssh2::FileStat)>, CarrierError> {
        let entries = self.sftp.readdir(folder).map_err(self.failed("list", folder))?;
        let mut entries: Vec<_> =
            entries.into_iter().filter_map(|(path, stat)| Some((path.file_name()?.to_string_lossy().into_owned(), stat))).collect();
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(entries)
    }
}

/// Flushes a file where the far side can do so when asked.
fn durable(file: &mut File) -> Result<(), ssh2::Error> {
    match file.fsync() {
        // Not every server knows how (SSH_FX_OP_UNSUPPORTED); the letter is written again if it is lost with the power.
        Err(error) if matches!(error.code(), ErrorCode::SFTP(8) | ErrorCode::Session(_)) => Ok(()),
        flushed => flushed,
    }
}

impl Carrier for SftpCarrier {
    fn place(&self) -> String {
        self.address.to_string()
    }

    fn marker(&self) -> Result<Marker, CarrierError> {
        let bytes = self.read_file(&self.address.path.join(MARKER), MARKER_BYTES_MAX)?;
        let bytes = bytes.ok_or_else(|| CarrierError::NoMarker { place: self.place() })?;
        Marker::parse(&String::from_utf8_lossy(&bytes)).map_err(|why| CarrierError::Marker { place: self.place(), why })
    }

    fn set_marker(&self, marker: &Marker) -> Result<(), CarrierError> {
        if carrier::says(self, marker)? {
            return Ok(());
        }
        self.ensure(&self.address.path)?;
        for way in [Way::Up, Way::Down] {
            self.ensure(&self.address.path.join(way.folder()))?;
        }
        self.put(&self.address.path.join(MARKER), marker.to_text().as_bytes(), true)
    }

    fn folders(&self, way: Way) -> Result<Vec<String>, CarrierError> {
        let folder = self.address.path.join(way.folder());
        if !self.is_folder(&folder)? {
            return Ok(Vec::new());
        }
        let entries = self.entries(&folder)?;
        Ok(entries.into_iter().filter(|(_, stat)| stat.is_dir()).map(|(name, _)| name).collect())
    }

    fn list(&self, way: Way, folder: &str) -> Result<Listing, CarrierError> {
        let mut listing = Listing::default();
        if !self.is_reachable(way, folder)? {
            return Ok(listing);
        }
        for (name, stat) in self.entries(&self.folder(way, folder))? {
            match () {
                () if stat.is_file() => listing.files.push((name, stat.size.unwrap_or(0))),
                () if stat.is_dir() => listing.foreign.push((name, "a folder")),
                () => listing.foreign.push((name, "a link, or no file at all")),
            }
        }
        Ok(listing)
    }

    fn read(&self, way: Way, folder: &str, name: &str, max: u64) -> Result<Option<Vec<u8>>, CarrierError> {
        self.read_file(&self.folder(way, folder).join(name), max)
    }

    fn write(&self, way: Way, folder: &str, name: &str, bytes: &[u8]) -> Result<(), CarrierError> {
        self.ensure(&self.address.path.join(way.folder()))?;
        let folder = self.folder(way, folder);
        self.ensure(&folder)?;
        self.put(&folder.join(name), bytes, false)
    }

    fn remove(&self, way: Way, folder: &str, name: &str) -> Result<(), CarrierError> {
        self.remove_file(&self.folder(way, folder).join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_sftp_name_account_host_and_place() {
        let address: SftpAddress = "sftp://drop@hq.example/srv/letters".parse().unwrap();
        assert_eq!((address.host.user.as_str(), address.host.port, address.path.to_str()), ("drop", 22, Some("/srv/letters")));
        assert_eq!(address.to_string(), "sftp://drop@hq.example:22/srv/letters");
        assert_eq!("sftp://drop@hq:2222/x".parse::<SftpAddress>().unwrap().host.port, 2222);
        for wrong in ["ssh://a@b/c", "sftp://a@b", "sftp://a@b/", "sftp://b/c", "/srv"] {
            assert!(wrong.parse::<SftpAddress>().unwrap_err().contains("sftp://USER@HOST"), "{wrong}");
        }
    }
}
