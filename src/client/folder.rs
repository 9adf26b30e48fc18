//! The folder beside a local database: `pos.db.sync/{inbox,outbox,tmp,quarantine}`, `remote-sync.toml`, `lock`.
//!
//! The path of the database is the handle for everything, so cron, service and user agree, and two databases need no names.
//! **Invariant**: whoever changes anything in the folder holds its lock, so two commands on one database never overlap.

use crate::base::ids::{FileNo, IdError, NodeName, ServerId};
use crate::client::put::{self, PutError};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use toml_edit::{DocumentMut, value};

/// What can go wrong with the folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another command works on this database.
    #[error("{} is in use by {holder}", .database.display())]
    Busy {
        /// The database.
        database: PathBuf,
        /// Program, process and time, as it wrote them.
        holder: String,
    },
    /// There is no configuration.
    #[error("{} is missing: this database was never initialised", .path.display())]
    NoConfig {
        /// Where it should be.
        path: PathBuf,
    },
    /// The configuration cannot be used.
    #[error("{}: {why}", .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Field and what is wrong.
        why: String,
    },
    /// The operating system says so.
    #[error(transparent)]
    Put(#[from] PutError),
}

impl FolderError {
    /// Whether trying again later may help (exit code 3).
    pub fn is_passing(&self) -> bool {
        matches!(self, FolderError::Busy { .. })
    }
}

/// Paths that belong to one local database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFolder {
    database: PathBuf,
    folder: PathBuf,
}

impl ClientFolder {
    /// Returns the folder of a database; touches nothing.
    pub fn of(database: impl Into<PathBuf>) -> ClientFolder {
        let database = database.into();
        let folder = with_suffix(&database, ".sync");
        ClientFolder { database, folder }
    }

    /// Returns the local database.
    pub fn database(&self) -> &Path {
        &self.database
    }

    /// Returns the database that init builds before it takes the place of the old one.
    pub fn new_database(&self) -> PathBuf {
        with_suffix(&self.database, ".new")
    }

    /// Returns where init keeps the database that it replaced.
    pub fn replaced_database(&self) -> PathBuf {
        with_suffix(&self.database, ".before-init")
    }

    /// Returns the folder itself.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Returns where files from the server wait to be applied.
    pub fn inbox(&self) -> PathBuf {
        self.folder.join("inbox")
    }

    /// Returns where files for the server wait.
    pub fn outbox(&self) -> PathBuf {
        self.folder.join("outbox")
    }

    /// Returns where files are that are not whole.
    pub fn tmp(&self) -> PathBuf {
        self.folder.join("tmp")
    }

    /// Returns where damaged files are kept.
    pub fn quarantine(&self) -> PathBuf {
        self.folder.join("quarantine")
    }

    /// Returns the configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.folder.join("remote-sync.toml")
    }

    /// Returns the numbers of the files in the inbox; other names are no files of ours.
    ///
    /// # Errors
    /// The inbox cannot be read.
    pub fn inbox_files(&self) -> Result<BTreeSet<FileNo>, FolderError> {
        let inbox = self.inbox();
        let at = |source| PutError { action: "read folder", path: inbox.clone(), source };
        let mut files = BTreeSet::new();
        for entry in fs::read_dir(&inbox).map_err(at)? {
            files.extend(entry.map_err(at)?.file_name().to_str().and_then(FileNo::from_file_name));
        }
        Ok(files)
    }

    /// Makes the folder if needed and takes its lock until the result is dropped.
    ///
    /// # Errors
    /// `Busy` if another command holds it.
    pub fn lock(&self) -> Result<LockedFolder, FolderError> {
        for folder in [self.folder.clone(), self.inbox(), self.outbox(), self.tmp(), self.quarantine()] {
            make_folder(&folder)?;
        }
        let path = self.folder.join("lock");
        let at = |action| PutError::at(action, &path);
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(at("open"))?;
        if !try_lock(&file).map_err(at("lock"))? {
            let mut holder = String::new();
            file.read_to_string(&mut holder).map_err(at("read"))?;
            let holder = if holder.trim().is_empty() { "another command".to_owned() } else { holder.trim().to_owned() };
            return Err(FolderError::Busy { database: self.database.clone(), holder });
        }
        let holder = format!("remote-sync (pid {}, since {})\n", std::process::id(), jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S"));
        file.set_len(0).and_then(|()| file.write_all(holder.as_bytes())).map_err(at("write"))?;
        Ok(LockedFolder { folder: self.clone(), _lock: file })
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// `NoConfig` before init; `Config` names the field.
    pub fn read_config(&self) -> Result<RemoteConfig, FolderError> {
        let path = self.config_path();
        match fs::read_to_string(&path) {
            Ok(text) => RemoteConfig::parse(&text).map_err(|why| FolderError::Config { path, why }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(FolderError::NoConfig { path }),
            Err(source) => Err(PutError { action: "read", path, source }.into()),
        }
    }
}

/// A client folder whose lock is held.
#[derive(Debug)]
pub struct LockedFolder {
    folder: ClientFolder,
    _lock: File,
}

impl Deref for LockedFolder {
    type Target = ClientFolder;
    fn deref(&self) -> &ClientFolder {
        &self.folder
    }
}

impl LockedFolder {
    /// Writes the configuration.
    ///
    /// # Errors
    /// The file cannot be written; the old one stands.
    pub fn write_config(&self, config: &RemoteConfig) -> Result<(), FolderError> {
        Ok(put::replace(&self.config_path(), config.to_text().as_bytes())?)
    }
}

/// `remote-sync.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteConfig {
    /// Address of the server, `host:port`.
    pub server: String,
    /// Name of this node.
    pub node: NodeName,
    /// Server that the database belongs to; set by init, and no other server is talked to from then on.
    pub server_id: Option<ServerId>,
}

/// Layout of `remote-sync.toml`.
const CONFIG_VERSION: i64 = 1;

impl RemoteConfig {
    /// Reads the text of the file.
    ///
    /// # Errors
    /// A text that names the field, its value and what is wrong.
    pub fn parse(text: &str) -> Result<RemoteConfig, String> {
        let document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| error.to_string())?;
        for (name, _) in document.iter() {
            if !["version", "server", "node", "server_id"].contains(&name) {
                return Err(format!("`{name}` is not known here (known: version, server, node, server_id)"));
            }
        }
        let text_of = |name: &str| match document.get(name) {
            None => Ok(None),
            Some(item) => item.as_str().map(Some).ok_or_else(|| format!("`{name}` must be a text in quotes")),
        };
        match document.get("version").and_then(toml_edit::Item::as_integer) {
            Some(CONFIG_VERSION) => {}
            Some(other) => return Err(format!("`version` is {other}, this program knows {CONFIG_VERSION}")),
            None => return Err("`version` is missing or no number".into()),
        }
        let wrong = |error: IdError| error.to_string();
        let server = text_of("server")?.ok_or("`server` is missing")?.to_owned();
        if server.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
            return Err(format!("`server` = \"{server}\" is not of the form host:port"));
        }
        let node = text_of("node")?.ok_or("`node` is missing")?.parse().map_err(wrong)?;
        let server_id = text_of("server_id")?.map(str::parse).transpose().map_err(wrong)?;
        Ok(RemoteConfig { server, node, server_id })
    }

    /// Returns the text of the file.
    pub fn to_text(&self) -> String {
        let mut document = DocumentMut::new();
        document["version"] = value(CONFIG_VERSION);
        document["server"] = value(&self.server);
        document["node"] = value(self.node.as_str());
        if let Some(server_id) = self.server_id {
            document["server_id"] = value(server_id.to_string());
        }
        document.to_string()
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    text.into()
}

fn make_folder(path: &Path) -> Result<(), PutError> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    match builder.create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done.map_err(PutError::at("create folder", path)),
    }
}

/// Returns whether the lock was free.
fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_command_on_the_same_database_is_told_who_holds_it() {
        let home = tempfile::tempdir().unwrap();
        let folder = ClientFolder::of(home.path().join("pos.db"));
        let held = folder.lock().unwrap();
        let refused = folder.lock().unwrap_err();
        assert!(refused.is_passing());
        assert!(refused.to_string().contains(&format!("pid {}", std::process::id())), "{refused}");
        drop(held);
        folder.lock().unwrap();
    }

    #[test]
    fn the_configuration_survives_writing_and_reading() {
        let home = tempfile::tempdir().unwrap();
        let folder = ClientFolder::of(home.path().join("pos.db"));
        assert!(matches!(folder.read_config(), Err(FolderError::NoConfig { .. })));
        let config =
            RemoteConfig { server: "127.0.0.1:40400".into(), node: "SHOP-01".parse().unwrap(), server_id: Some(ServerId([9; 16])) };
        folder.lock().unwrap().write_config(&config).unwrap();
        assert_eq!(folder.read_config().unwrap(), config);
    }

    #[test]
    fn a_wrong_configuration_names_the_field() {
        for (text, named) in [
            ("server = \"a:1\"\nnode = \"A\"", "version"),
            ("version = 2", "version"),
            ("version = 1\nnode = \"A\"", "server"),
            ("version = 1\nserver = \"nowhere\"\nnode = \"A\"", "server"),
            ("version = 1\nserver = \"a:1\"\nnode = \"a b\"", "node name"),
            ("version = 1\nserver = \"a:1\"\nnode = \"A\"\nserver_id = \"xy\"", "ServerId"),
            ("version = 1\nserver = \"a:1\"\nnode = \"A\"\nnod = \"B\"", "`nod`"),
            ("version = 1\nserver = 7\nnode = \"A\"", "server"),
        ] {
            let problem = RemoteConfig::parse(text).unwrap_err();
            assert!(problem.contains(named), "{text}: {problem}");
        }
    }
}
