//! Where letters lie that no line carries: a folder, however it gets from one side to the other.
//!
//! Layout, below the place that a carrier is: `dockmaster-carrier.toml` says whose it is; `to-server/NODE/` holds the letters of that node and is
//! written by it alone, `to-node/NODE/` those for it and is written by the server alone. Whoever wrote a letter deletes it, nobody else does.
//! A letter has its final name only when it is whole, and no name is used twice. Without the marker nothing is written: a stick that is not
//! there, or a share that was unmounted, is no carrier (fault 28). Nothing outside the place is touched, and no link is followed (T11).

use crate::base::disk::{Disk, DiskError};
use crate::base::folder::{self, EntryKind};
use crate::base::ids::{CARRIER_NAME_TEXT, ServerId, is_carrier_name};
use crate::base::limits::{LETTER_PART_BYTES, LETTER_PART_BYTES_MAX, LETTER_PART_BYTES_MIN};
use crate::session::letter::Way;
use crate::transport::link::Timing;
use crate::transport::ssh_settings::SshSettings;
use data_encoding::BASE64;
use notify::Watcher;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use toml_edit::{DocumentMut, value};

/// Name of the file that says whose carrier it is.
pub const MARKER: &str = "dockmaster-carrier.toml";
/// Where nothing else is said: a letter that is gone and of which nothing was heard is written again after a day.
pub const RESEND_SECONDS: i64 = 24 * 3_600;
/// Where nothing else is said: a letter that is not whole is waited for so many seconds since something last came of it.
pub const PATIENCE_SECONDS: i64 = 600;
/// Layout of the marker.
const MARKER_VERSION: i64 = 1;
/// Most bytes that are read of a marker.
pub(super) const MARKER_BYTES_MAX: u64 = 4 << 10;
/// What can go wrong with a carrier.
#[derive(Debug, thiserror::Error)]
pub enum CarrierError {
    /// It is not there, or was never prepared.
    #[error("{place} has no {MARKER}: it is no carrier, or not there now")]
    NoMarker {
        /// The place.
        place: String,
    },
    /// Its marker says something that cannot be used.
    #[error("{place}: {MARKER}: {why}")]
    Marker {
        /// The place.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// It is another server's.
    #[error("{place} is a carrier of server {found}, not of {expected}")]
    Foreign {
        /// The place.
        place: String,
        /// The server that it is of.
        found: ServerId,
        /// Ours.
        expected: ServerId,
    },
    /// A file or folder of it.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The place is no folder of this machine, and no address either.
    #[error("{0}")]
    Address(String),
    /// What lies there is no answer of the server.
    #[error("{place}: {name} is no answer of its server: {why}")]
    Answer {
        /// The place.
        place: String,
        /// The file.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A name that was used already, on another machine.
    #[error("{} exists already and is never replaced", .path.display())]
    Taken {
        /// The name.
        path: PathBuf,
    },
    /// No line to the machine where it is.
    #[cfg(unix)]
    #[error(transparent)]
    Ssh(#[from] crate::transport::ssh::SshError),
    /// SFTP.
    #[cfg(unix)]
    #[error("{what}: {source}")]
    Sftp {
        /// What was tried.
        what: String,
        /// What is wrong.
        source: ssh2::Error,
    },
    /// Bytes over SFTP.
    #[error("{what}: {source}")]
    SftpIo {
        /// What was tried.
        what: String,
        /// What is wrong.
        source: std::io::Error,
    },
}

impl CarrierError {
    /// Whether the same may succeed later without anybody doing anything but bringing the carrier (exit code 3).
    pub fn is_passing(&self) -> bool {
        match self {
            CarrierError::NoMarker { .. } | CarrierError::Disk(_) | CarrierError::SftpIo { .. } => true,
            #[cfg(unix)]
            CarrierError::Sftp { .. } => true,
            #[cfg(unix)]
            CarrierError::Ssh(error) => error.is_passing(),
            _ => false,
        }
    }
}

/// What a carrier says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// Its name; both sides keep what they know of its letters under it.
    pub name: String,
    /// The server whose it is.
    pub server: ServerId,
    /// The certificate of that server's authority, for those who want to be let in: they know its fingerprint.
    pub authority: Vec<u8>,
    /// Size at which a letter goes on in another part, in bytes.
    pub part_bytes: u64,
    /// Most bytes of letters from one side to the other that lie there at once; 0 = as many as have room.
    pub room_bytes: u64,
    /// After so many seconds a letter that is gone and of which nothing was heard is written again.
    pub resend_seconds: i64,
    /// So many seconds a letter that is not whole, or whose files do not follow, is waited for since something last came of it.
    pub patience_seconds: i64,
}

impl Marker {
    /// Reads the text of a marker.
    ///
    /// # Errors
    /// What is wrong with which field.
    pub fn parse(text: &str) -> Result<Marker, String> {
        let document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| error.to_string())?;
        let number = |name: &str| document.get(name).and_then(toml_edit::Item::as_integer);
        match number("version") {
            Some(MARKER_VERSION) => {}
            found => return Err(format!("`version` is {found:?}, this program knows {MARKER_VERSION}")),
        }
        let name = document.get("name").and_then(toml_edit::Item::as_str).ok_or("`name` is missing")?;
        if !is_carrier_name(name) {
            return Err(format!("`name` is \"{name}\": {CARRIER_NAME_TEXT}"));
        }
        let server = document.get("server_id").and_then(toml_edit::Item::as_str).ok_or("`server_id` is missing")?;
        let server = server.parse().map_err(|error| format!("{error}"))?;
        let authority = document.get("authority").and_then(toml_edit::Item::as_str).unwrap_or_default();
        let authority = BASE64.decode(authority.as_bytes()).map_err(|error| format!("`authority`: {error}"))?;
        let part_bytes = number("part_bytes").and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(LETTER_PART_BYTES);
        if !(LETTER_PART_BYTES_MIN..=LETTER_PART_BYTES_MAX).contains(&part_bytes) {
            return Err(format!("`part_bytes` is {part_bytes}, allowed are {LETTER_PART_BYTES_MIN} to {LETTER_PART_BYTES_MAX}"));
        }
        let room_bytes = number("room_bytes").map_or(Ok(0), u64::try_from).map_err(|_| "`room_bytes` is negative")?;
        let seconds = |name: &str, default: i64| number(name).unwrap_or(default).max(0);
        let (resend_seconds, patience_seconds) = (seconds("resend_seconds", RESEND_SECONDS), seconds("patience_seconds", PATIENCE_SECONDS));
        Ok(Marker { name: name.to_owned(), server, authority, part_bytes, room_bytes, resend_seconds, patience_seconds })
    }

    /// Returns the text of the marker.
    pub fn to_text(&self) -> String {
        let mut document = DocumentMut::new();
        document["version"] = value(MARKER_VERSION);
        document["name"] = value(&self.name);
        document["server_id"] = value(self.server.to_string());
        document["authority"] = value(BASE64.encode(&self.authority));
        document["part_bytes"] = value(i64::try_from(self.part_bytes).unwrap_or(i64::MAX));
        document["room_bytes"] = value(i64::try_from(self.room_bytes).unwrap_or(i64::MAX));
        document["resend_seconds"] = value(self.resend_seconds);
        document["patience_seconds"] = value(self.patience_seconds);
        format!(
            "# This folder carries sealed letters between a Dockmaster server and its nodes. Keep this file: without it nothing is written here.\n{document}"
        )
    }
}

/// What lies in one folder of a carrier.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Ordinary files, by name, with their lengths in bytes.
    pub files: Vec<(String, u64)>,
    /// Names of what is none, and what it is: it is let alone.
    pub foreign: Vec<(String, &'static str)>,
}

/// The folder, beside those of the nodes, in which those write who want to be let in, and are answered. No node has such a name.
pub const NEWCOMERS: &str = "_newcomers";

/// A place where letters lie. Calls block.
pub trait Carrier: fmt::Debug + Send {
    /// Returns where it is, for people.
    fn place(&self) -> String;

    /// Reads whose it is.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    fn marker(&self) -> Result<Marker, CarrierError>;

    /// Makes it one, or changes what it says of itself.
    ///
    /// # Errors
    /// It is another server's, or cannot be written.
    fn set_marker(&self, marker: &Marker) -> Result<(), CarrierError>;

    /// Returns the folders of one way: a node's name each, or [`NEWCOMERS`].
    ///
    /// # Errors
    /// It cannot be read.
    fn folders(&self, way: Way) -> Result<Vec<String>, CarrierError>;

    /// Returns what lies there one way in one folder; nothing if there is no such folder.
    ///
    /// # Errors
    /// It cannot be read.
    fn list(&self, way: Way, folder: &str) -> Result<Listing, CarrierError>;

    /// Returns the bytes of a file, at most `max` and one more; `None` if it is not there.
    ///
    /// # Errors
    /// It cannot be read, or is no ordinary file.
    fn read(&self, way: Way, folder: &str, name: &str, max: u64) -> Result<Option<Vec<u8>>, CarrierError>;

    /// Writes a file: it is there whole and durable, or not at all.
    ///
    /// # Errors
    /// It cannot be written, or the name is taken.
    fn write(&self, way: Way, folder: &str, name: &str, bytes: &[u8]) -> Result<(), CarrierError>;

    /// Deletes a file of ours.
    ///
    /// # Errors
    /// It cannot be deleted.
    fn remove(&self, way: Way, folder: &str, name: &str) -> Result<(), CarrierError>;

    /// Returns the folder to be watched, if the system can tell of changes there.
    fn watched(&self) -> Option<&Path> {
        None
    }
}

/// Checks that a carrier is of a server, and returns what it says of itself.
///
/// # Errors
/// It is not there, or another server's.
pub fn marker_of(carrier: &dyn Carrier, server: ServerId) -> Result<Marker, CarrierError> {
    let marker = carrier.marker()?;
    match marker.server == server {
        true => Ok(marker),
        false => Err(CarrierError::Foreign { place: carrier.place(), found: marker.server, expected: server }),
    }
}

/// Whether a carrier says just that of itself already.
///
/// # Errors
/// It is another server's, or cannot be read.
pub(super) fn says(carrier: &dyn Carrier, marker: &Marker) -> Result<bool, CarrierError> {
    match marker_of(carrier, marker.server) {
        Ok(found) => Ok(found == *marker),
        Err(CarrierError::NoMarker { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Has changes of one way of a carrier told; `None` where the system cannot tell of them.
pub fn watch(place: &Path, way: Way, told: impl Fn() + Send + 'static) -> Option<notify::RecommendedWatcher> {
    let on_event = move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            told();
        }
    };
    let mut watcher = notify::recommended_watcher(on_event).ok()?;
    watcher.watch(&place.join(way.folder()), notify::RecursiveMode::Recursive).ok()?;
    Some(watcher)
}

/// Opens the carrier at a place: a folder of this machine, or `sftp://USER@HOST:PORT/PATH`. `keys` are for the latter.
///
/// # Errors
/// No line, or the text is no address.
pub fn open(place: &str, keys: &SshSettings, timing: Timing) -> Result<Box<dyn Carrier>, CarrierError> {
    if !place.starts_with("sftp://") {
        return Ok(Box::new(FolderCarrier::at(place)));
    }
    open_sftp(place, keys, timing)
}

#[cfg(unix)]
fn open_sftp(place: &str, keys: &SshSettings, timing: Timing) -> Result<Box<dyn Carrier>, CarrierError> {
    let address = place.parse().map_err(CarrierError::Address)?;
    let keys = keys.to_keys().map_err(CarrierError::Address)?;
    Ok(Box::new(crate::transport::sftp::SftpCarrier::open(address, &keys, timing)?))
}

#[cfg(not(unix))]
fn open_sftp(place: &str, _: &SshSettings, _: Timing) -> Result<Box<dyn Carrier>, CarrierError> {
    Err(CarrierError::Address(format!("{place}: SFTP is not built for this system")))
}

/// A folder of this machine: a share, a stick, or one that something else keeps the same elsewhere.
#[derive(Debug)]
pub struct FolderCarrier {
    root: PathBuf,
    disk: Disk,
}

impl FolderCarrier {
    /// Returns the carrier that a folder is; touches nothing.
    pub fn at(root: impl Into<PathBuf>) -> FolderCarrier {
        FolderCarrier { root: root.into(), disk: Disk::shared() }
    }

    fn folder(&self, way: Way, folder: &str) -> PathBuf {
        self.root.join(way.folder()).join(folder)
    }

    /// Makes a folder below the place, step by step: none of the steps may be a link that leads out of it.
    fn ensure(&self, way: Way, folder: &str) -> Result<PathBuf, CarrierError> {
        self.disk.ensure_folder(&self.root.join(way.folder()))?;
        let folder = self.folder(way, folder);
        self.disk.ensure_folder(&folder)?;
        Ok(folder)
    }

    /// Whether a folder below the place is one, and no link.
    fn is_folder(path: &Path) -> bool {
        std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
    }

    fn is_reachable(&self, way: Way, folder: &str) -> bool {
        FolderCarrier::is_folder(&self.root.join(way.folder())) && FolderCarrier::is_folder(&self.folder(way, folder))
    }
}

fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CarrierError {
    let path = path.to_owned();
    move |source| DiskError::Io { operation, path, source }.into()
}

/// Whether a file has one name only: a second one may stand outside the place.
#[cfg(unix)]
fn has_one_name(metadata: &std::fs::Metadata) -> bool {
    std::os::unix::fs::MetadataExt::nlink(metadata) == 1
}

#[cfg(not(unix))]
fn has_one_name(_: &std::fs::Metadata) -> bool {
    true
}

impl Carrier for FolderCarrier {
    fn place(&self) -> String {
        self.root.display().to_string()
    }

    fn marker(&self) -> Result<Marker, CarrierError> {
        let path = self.root.join(MARKER);
        let text = match self.disk.read_text(&path, MARKER_BYTES_MAX) {
            Err(error) if error.is_not_found() => return Err(CarrierError::NoMarker { place: self.place() }),
            text => text?,
        };
        Marker::parse(&text).map_err(|why| CarrierError::Marker { place: self.place(), why })
    }

    fn set_marker(&self, marker: &Marker) -> Result<(), CarrierError> {
        if says(self, marker)? {
            return Ok(());
        }
        self.disk.ensure_folder(&self.root)?;
        for way in [Way::Up, Way::Down] {
            self.disk.ensure_folder(&self.root.join(way.folder()))?;
        }
        Ok(self.disk.replace_with(&self.root, &self.root.join(MARKER), marker.to_text().as_bytes())?)
    }

    fn folders(&self, way: Way) -> Result<Vec<String>, CarrierError> {
        let folder = self.root.join(way.folder());
        if !FolderCarrier::is_folder(&folder) {
            return Ok(Vec::new());
        }
        let entries = folder::list(&folder)?;
        let folders = entries.into_iter().filter(|entry| entry.kind == EntryKind::Folder);
        Ok(folders.filter_map(|entry| entry.name.into_string().ok()).collect())
    }

    fn list(&self, way: Way, folder: &str) -> Result<Listing, CarrierError> {
        let mut listing = Listing::default();
        if !self.is_reachable(way, folder) {
            return Ok(listing);
        }
        for entry in folder::list(&self.folder(way, folder))? {
            let name = entry.name.to_string_lossy().into_owned();
            let foreign = match entry.kind {
                EntryKind::File { bytes } => {
                    // It may have gone meanwhile.
                    let Ok(metadata) = std::fs::symlink_metadata(&entry.path) else { continue };
                    if has_one_name(&metadata) {
                        listing.files.push((name, bytes));
                        continue;
                    }
                    "a file with a second name"
                }
                EntryKind::Folder => "a folder",
                EntryKind::Other => "a link, or no file at all",
            };
            listing.foreign.push((name, foreign));
        }
        Ok(listing)
    }

    fn read(&self, way: Way, folder: &str, name: &str, max: u64) -> Result<Option<Vec<u8>>, CarrierError> {
        let path = self.folder(way, folder).join(name);
        let file = match self.disk.open(&path) {
            Err(error) if error.is_not_found() => return Ok(None),
            file => file?,
        };
        let mut bytes = Vec::new();
        file.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(io("read", &path))?;
        Ok(Some(bytes))
    }

    fn write(&self, way: Way, folder: &str, name: &str, bytes: &[u8]) -> Result<(), CarrierError> {
        let folder = self.ensure(way, folder)?;
        Ok(self.disk.put(&folder, &folder, name, bytes)?)
    }

    fn remove(&self, way: Way, folder: &str, name: &str) -> Result<(), CarrierError> {
        match self.is_reachable(way, folder) {
            true => Ok(self.disk.remove(&self.folder(way, folder).join(name))?),
            false => Ok(()),
        }
    }

    fn watched(&self) -> Option<&Path> {
        Some(&self.root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carrier() -> (tempfile::TempDir, FolderCarrier) {
        let home = tempfile::tempdir().unwrap();
        let carrier = FolderCarrier::at(home.path().join("stick"));
        (home, carrier)
    }

    fn marker(server: u8) -> Marker {
        Marker {
            name: "stick".into(),
            server: ServerId([server; 16]),
            authority: vec![1, 2],
            part_bytes: LETTER_PART_BYTES,
            room_bytes: 0,
            resend_seconds: RESEND_SECONDS,
            patience_seconds: 1,
        }
    }

    const NAME: &str = "0000000000000007-00001.last";

    #[test]
    fn fault28_a_place_without_its_marker_is_no_carrier_and_that_of_another_server_is_not_taken_over() {
        let (_home, carrier) = carrier();
        assert!(matches!(carrier.marker(), Err(CarrierError::NoMarker { .. })));
        carrier.set_marker(&marker(1)).unwrap();
        assert_eq!(marker_of(&carrier, ServerId([1; 16])).unwrap(), marker(1));
        assert!(matches!(marker_of(&carrier, ServerId([2; 16])), Err(CarrierError::Foreign { .. })));
        assert!(matches!(carrier.set_marker(&marker(2)), Err(CarrierError::Foreign { .. })));
        assert_eq!(carrier.marker().unwrap(), marker(1));
        for (text, named) in [
            ("version = 2", "version"),
            ("version = 1", "name"),
            ("version = 1\nname = '../x'", "letters"),
            ("version = 1\nname = 'x'\nserver_id = 'x'", "ServerId"),
        ] {
            assert!(Marker::parse(text).unwrap_err().contains(named), "{text}");
        }
        assert!(Marker::parse(&marker(1).to_text().replace("16777216", "1")).unwrap_err().contains("part_bytes"));
    }

    #[test]
    fn a_part_is_there_whole_and_its_name_is_not_used_twice() {
        let (_home, carrier) = carrier();
        carrier.set_marker(&marker(1)).unwrap();
        assert_eq!(carrier.list(Way::Up, "ANNA").unwrap(), Listing::default());
        carrier.write(Way::Up, "ANNA", NAME, b"first").unwrap();
        assert!(matches!(carrier.write(Way::Up, "ANNA", NAME, b"second"), Err(CarrierError::Disk(DiskError::Exists { .. }))));
        assert_eq!(carrier.read(Way::Up, "ANNA", NAME, 100).unwrap().as_deref(), Some(&b"first"[..]));
        assert_eq!(
            carrier.read(Way::Up, "ANNA", NAME, 2).unwrap().map(|bytes| bytes.len()),
            Some(3),
            "more than may be, and no more than one"
        );
        assert_eq!(carrier.read(Way::Down, "ANNA", NAME, 100).unwrap(), None);
        assert_eq!(carrier.folders(Way::Up).unwrap(), ["ANNA"]);
        carrier.remove(Way::Up, "ANNA", NAME).unwrap();
        assert_eq!(carrier.list(Way::Up, "ANNA").unwrap(), Listing::default());
    }

    #[cfg(unix)]
    #[test]
    fn t11_links_foreign_names_and_second_names_are_told_and_let_alone() {
        let (home, carrier) = carrier();
        carrier.set_marker(&marker(1)).unwrap();
        carrier.write(Way::Up, "ANNA", NAME, b"letter").unwrap();
        let folder = home.path().join("stick/to-server/ANNA");
        let secret = home.path().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        let name = |number: u64| format!("{number:016}-00001.last");
        std::os::unix::fs::symlink(&secret, folder.join(name(8))).unwrap();
        std::fs::hard_link(&secret, folder.join(name(9))).unwrap();
        std::fs::write(folder.join("holiday.jpg"), "x").unwrap();
        std::fs::write(folder.join(format!("{}.1-0.tmp", name(10))), "half").unwrap();
        let listing = carrier.list(Way::Up, "ANNA").unwrap();
        let half = format!("{}.1-0.tmp", name(10));
        assert_eq!(listing.files.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), [NAME, half.as_str(), "holiday.jpg"]);
        let foreign: Vec<&str> = listing.foreign.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(foreign, [name(8), name(9)]);
        assert!(carrier.read(Way::Up, "ANNA", &name(8), 100).is_err(), "a link is not followed");
        // A folder of ours that is a link is not gone through.
        let outside = home.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, home.path().join("stick/to-server/BERT")).unwrap();
        assert!(carrier.write(Way::Up, "BERT", NAME, b"x").is_err());
        assert_eq!(carrier.list(Way::Up, "BERT").unwrap(), Listing::default());
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }
}
