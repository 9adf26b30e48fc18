//! The folder beside a local database: `pos.db.sync/{inbox,outbox,tmp,quarantine}`, `remote-sync.toml`, `lock`.
//!
//! The path of the database is the handle for everything, so cron, service and user agree, and two databases need no names.
//! **Invariant**: whoever changes anything in the folder holds its lock, so two commands on one database never overlap.

use crate::base::disk::{Disk, DiskError};
use crate::base::folder;
use crate::base::ids::{FileNo, IdError, NodeName, ServerId};
use crate::base::lock::{Hold, Lock, Taken};
use crate::transport::ssh_settings::SshSettings;
use std::collections::BTreeSet;
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
    /// A file or folder of it.
    #[error(transparent)]
    Disk(#[from] DiskError),
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
        let entries = folder::list(&self.inbox())?;
        Ok(entries.iter().filter_map(|entry| FileNo::from_file_name(entry.name.to_str()?)).collect())
    }

    /// Makes the folder if needed and takes its lock until the result is dropped.
    ///
    /// # Errors
    /// `Busy` if another command holds it.
    pub fn lock(&self) -> Result<LockedFolder, FolderError> {
        let disk = Disk::new();
        for folder in [self.folder.clone(), self.inbox(), self.outbox(), self.tmp(), self.quarantine()] {
            disk.ensure_folder(&folder)?;
        }
        match Lock::take(&disk, &self.folder.join("lock"), Hold::Exclusive)? {
            Taken::Held(lock) => Ok(LockedFolder { folder: self.clone(), disk, _lock: lock }),
            Taken::Busy(holder) => Err(FolderError::Busy { database: self.database.clone(), holder }),
        }
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// `NoConfig` before init; `Config` names the field.
    pub fn read_config(&self) -> Result<RemoteConfig, FolderError> {
        let path = self.config_path();
        let text = match Disk::new().read_text(&path, CONFIG_BYTES_MAX) {
            Err(error) if error.is_not_found() => return Err(FolderError::NoConfig { path }),
            text => text?,
        };
        RemoteConfig::parse(&text).map_err(|why| FolderError::Config { path, why })
    }
}

/// A client folder whose lock is held.
#[derive(Debug)]
pub struct LockedFolder {
    folder: ClientFolder,
    disk: Disk,
    _lock: Lock,
}

impl Deref for LockedFolder {
    type Target = ClientFolder;
    fn deref(&self) -> &ClientFolder {
        &self.folder
    }
}

impl LockedFolder {
    /// Returns the disk handle that everything in the folder is written with.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Writes the configuration.
    ///
    /// # Errors
    /// The file cannot be written; the old one stands.
    pub fn write_config(&self, config: &RemoteConfig) -> Result<(), FolderError> {
        Ok(self.disk.replace_with(&self.tmp(), &self.config_path(), config.to_text().as_bytes())?)
    }
}

/// `remote-sync.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteConfig {
    /// Address of the server: `host:port`, `ssh://user@host:port`, or `via:` and the place of a carrier.
    pub server: String,
    /// Name of this node.
    pub node: NodeName,
    /// Server that the database belongs to; set by init, and no other server is talked to from then on.
    pub server_id: Option<ServerId>,
    /// Whether files are fetched; changes made here are sent all the same (MI-22).
    pub download: bool,
    /// For a server whose address begins with `ssh://`, or a carrier whose place begins with `sftp://`.
    pub ssh: SshSettings,
}

/// Layout of `remote-sync.toml`.
const CONFIG_VERSION: i64 = 1;
/// What it may hold.
const CONFIG_NAMES: [&str; 8] = ["version", "server", "node", "server_id", "download", "ssh_key", "ssh_known_hosts", "ssh_password_file"];
/// Most bytes that are read of it.
const CONFIG_BYTES_MAX: u64 = 64 << 10;

impl RemoteConfig {
    /// Reads the text of the file.
    ///
    /// # Errors
    /// A text that names the field, its value and what is wrong.
    pub fn parse(text: &str) -> Result<RemoteConfig, String> {
        let document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| error.to_string())?;
        for (name, _) in document.iter() {
            if !CONFIG_NAMES.contains(&name) {
                return Err(format!("`{name}` is not known here (known: {})", CONFIG_NAMES.join(", ")));
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
        let is_carrier = server.strip_prefix("via:").is_some_and(|place| !place.is_empty());
        if !is_carrier && server.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
            return Err(format!("`server` = \"{server}\" is not of the form host:port, ssh://user@host:port or via:PLACE"));
        }
        let path_of = |name: &str| Ok::<_, String>(text_of(name)?.map(PathBuf::from));
        let ssh = SshSettings {
            key: path_of("ssh_key")?,
            known_hosts: path_of("ssh_known_hosts")?,
            password_file: path_of("ssh_password_file")?,
        };
        if ssh != SshSettings::default() && !server.starts_with("ssh://") && !server.starts_with("via:sftp://") {
            return Err(format!("`ssh_..` is for a server that begins with ssh:// or via:sftp://, not for \"{server}\""));
        }
        let node = text_of("node")?.ok_or("`node` is missing")?.parse().map_err(wrong)?;
        let server_id = text_of("server_id")?.map(str::parse).transpose().map_err(wrong)?;
        let download = match document.get("download") {
            None => true,
            Some(item) => item.as_bool().ok_or("`download` must be true or false")?,
        };
        Ok(RemoteConfig { server, node, server_id, download, ssh })
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
        if !self.download {
            document["download"] = value(false);
        }
        let ssh = [("ssh_key", &self.ssh.key), ("ssh_known_hosts", &self.ssh.known_hosts), ("ssh_password_file", &self.ssh.password_file)];
        for (name, path) in ssh {
            if let Some(path) = path {
                document[name] = value(path.display().to_string());
            }
        }
        document.to_string()
    }
}

/// Returns `pos.db` + `.sync` = `pos.db.sync`.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    text.into()
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
        assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
        drop(held);
        folder.lock().unwrap();
    }

    #[test]
    fn the_configuration_survives_writing_and_reading() {
        let home = tempfile::tempdir().unwrap();
        let folder = ClientFolder::of(home.path().join("pos.db"));
        assert!(matches!(folder.read_config(), Err(FolderError::NoConfig { .. })));
        let config = RemoteConfig {
            server: "ssh://dock@127.0.0.1:22".into(),
            node: "SHOP-01".parse().unwrap(),
            server_id: Some(ServerId([9; 16])),
            download: false,
            ssh: SshSettings { key: Some("/srv/a b/id".into()), known_hosts: None, password_file: Some("p".into()) },
        };
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
            ("version = 1\nserver = \"a:1\"\nnode = \"A\"\nssh_key = \"id\"", "ssh_"),
            ("version = 1\nserver = \"a:1\"\nnode = \"A\"\ndownload = \"no\"", "download"),
        ] {
            let problem = RemoteConfig::parse(text).unwrap_err();
            assert!(problem.contains(named), "{text}: {problem}");
        }
    }
}
