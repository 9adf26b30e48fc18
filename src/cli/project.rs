//! The definition, its settings and its server database together: what most commands of `dockmaster` begin with.

use crate::cli::config::{self, ConfigError, Loaded};
use crate::cli::sync_commands::known_hosts;
use crate::model::schema::Schema;
use crate::rules::check::{Checked, check};
use crate::rules::definition::{CarrierSettings, ServerSettings};
use crate::rules::problem::SourceFile;
use crate::rules::settings::settings;
use crate::store::predicate::PredicateChecker;
use crate::store::sqlite::ServerDatabase;
use std::path::{Path, PathBuf};

/// The settings of a definition, with its paths made absolute to where the file lies. Its rules were not looked at.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The main file of the definition.
    pub(crate) config: PathBuf,
    /// All its files.
    pub(crate) files: Vec<SourceFile>,
    /// `[server]`.
    pub(crate) server: ServerSettings,
    /// Where the server database is.
    pub(crate) database: PathBuf,
    /// Where the docking root is.
    pub(crate) root: PathBuf,
    /// Where the server's identity is.
    pub(crate) identity: PathBuf,
    /// `[carrier.NAME]`, with their paths made absolute.
    pub(crate) carriers: Vec<CarrierSettings>,
}

impl Settings {
    /// Finds and reads the definition.
    pub(crate) fn load(named: Option<&Path>) -> Result<Settings, ConfigError> {
        let Loaded { path, files } = config::load(named)?;
        let settings = settings(&files).map_err(|problems| ConfigError::Wrong { problems })?;
        let server = settings.server;
        let Some(database) = &server.database else { return Err(ConfigError::NoDatabase { path }) };
        let [database, root, identity] = [database, &server.root, &server.identity].map(|name| config::beside(&path, name));
        // systemd hands a service its secrets in a folder of their own (`LoadCredential=authority.pem:..`).
        let handed = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let identity = handed.filter(|folder| folder.join("authority.pem").is_file()).unwrap_or(identity);
        let carriers = settings.carriers.into_iter();
        let beside = |name: &str| config::beside(&path, name).display().to_string();
        let carriers = carriers.map(|carrier| CarrierSettings {
            path: if carrier.path.starts_with("sftp://") { carrier.path } else { beside(&carrier.path) },
            ssh: carrier.ssh.map(|file| file.map(|file| beside(&file))),
            ..carrier
        });
        let mut carriers: Vec<CarrierSettings> = carriers.collect();
        for carrier in carriers.iter_mut().filter(|carrier| carrier.path.starts_with("sftp://") && carrier.ssh[1].is_none()) {
            // Without a home nobody is known, and the carrier says so.
            carrier.ssh[1] = known_hosts(None).ok().map(|path| path.display().to_string());
        }
        Ok(Settings { config: path, files, server, database, root, identity, carriers })
    }
}

/// A definition that was checked against its server database.
#[derive(Debug)]
pub(crate) struct Project {
    /// Its settings.
    pub(crate) settings: Settings,
    /// The server database.
    pub(crate) database: ServerDatabase,
    /// Its schema.
    pub(crate) schema: Schema,
    /// What `check` found; may have problems.
    pub(crate) checked: Checked,
}

impl Project {
    /// Reads the definition and checks it against the database that it names.
    pub(crate) fn load(named: Option<&Path>) -> anyhow::Result<Project> {
        let settings = Settings::load(named)?;
        let database = ServerDatabase::open(&settings.database)?;
        let schema = database.schema()?;
        let checked = check(&settings.files, &schema, &PredicateChecker);
        Ok(Project { settings, database, schema, checked })
    }
}
