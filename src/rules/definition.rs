//! The definition as written: what the TOML says, each name and string with its place, before anything is resolved.
//!
//! `reader` fills these from text; `check` gives them meaning against a schema. Settings of the server are read here too,
//! since one file holds both.

use crate::base::limits::{SESSIONS_MAX, SESSIONS_PER_ADDRESS_MAX};
use crate::model::merge_rules::ConflictPolicy;
use crate::rules::problem::{At, Text};
use crate::rules::retention::Retention;

/// `[server]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSettings {
    /// Name of the server, as `status` prints it. Default `HQ`.
    pub name: String,
    /// Path of the server database; `None` if the file names none and the command line must.
    pub database: Option<String>,
    /// Address that the Synchronization Manager listens on. Default `127.0.0.1:40400`.
    pub listen: String,
    /// Docking root, relative to the file. Default `docking`.
    pub root: String,
    /// Folder of the server's identity, relative to the file. Default `identity`.
    pub identity: String,
    /// Command that is run, with the alert as JSON on its standard input, when something begins to need a person.
    pub alert_command: Option<String>,
    /// When a day begins for windows, minutes after midnight. Default 03:00.
    pub day_starts_minutes: u16,
    /// How often tables without triggers are compared, seconds. Default 10 minutes.
    pub compare_every_seconds: u32,
    /// How long delivered files are kept, and when a node is stale.
    pub retention: Retention,
    /// Most bytes per second that all sessions send together; `None` = as fast as the line is.
    pub send_bytes_per_second: Option<u64>,
    /// Below so many free bytes on the disk of the docking root routing pauses. Default 256 MB.
    pub min_free_bytes: u64,
    /// Most sessions at once. Default 512.
    pub sessions_max: usize,
    /// Most sessions at once from one address. Default 256.
    pub sessions_per_address: usize,
    /// What a refused unit means to the node's later ones. Default `hold`.
    pub merge_errors: MergeErrors,
}

impl Default for ServerSettings {
    fn default() -> ServerSettings {
        ServerSettings {
            name: "HQ".into(),
            database: None,
            listen: "127.0.0.1:40400".into(),
            root: "docking".into(),
            identity: "identity".into(),
            alert_command: None,
            day_starts_minutes: 180,
            compare_every_seconds: 600,
            retention: Retention::default(),
            send_bytes_per_second: None,
            min_free_bytes: 256 << 20,
            sessions_max: SESSIONS_MAX,
            sessions_per_address: SESSIONS_PER_ADDRESS_MAX,
            merge_errors: MergeErrors::default(),
        }
    }
}

/// What happens to the later units of a node when the server refuses one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MergeErrors {
    /// Those that depend on it wait with it, all others go on.
    #[default]
    Hold,
    /// All of them wait until a person has decided.
    Stop,
    /// So they do, and the node is disabled.
    DisableNode,
}

impl MergeErrors {
    /// Returns the mode of that spelling.
    pub fn from_name(name: &str) -> Option<MergeErrors> {
        match name {
            "hold" => Some(MergeErrors::Hold),
            "stop" => Some(MergeErrors::Stop),
            "disable-node" => Some(MergeErrors::DisableNode),
            _ => None,
        }
    }
}

/// Everything in the file that is not about rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// `[server]`.
    pub server: ServerSettings,
    /// `[carrier.NAME]`, in order.
    pub carriers: Vec<CarrierSettings>,
}

/// `[carrier.NAME]`: a place where letters lie for nodes that no line reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CarrierSettings {
    /// Its name.
    pub name: String,
    /// Where it is: a folder, relative to the file, or `sftp://USER@HOST:PORT/PATH`.
    pub path: String,
    /// For the latter: the file with the private key, the list of known hosts, a file with the password.
    pub ssh: [Option<String>; 3],
    /// Size at which a letter goes on in another part, in bytes. Default 16 MB.
    pub part_bytes: u64,
    /// Most bytes of letters to one node that are on their way at once; 0 = no limit, the default.
    pub room_bytes: u64,
    /// After so many seconds a letter that is gone from the place and of which nothing was heard is written again. Default a day.
    pub resend_seconds: i64,
    /// So many seconds a letter that is not whole, or whose files do not follow, is waited for since something last came of it. Default 10 minutes.
    pub patience_seconds: i64,
}

/// The whole definition as written.
#[derive(Debug, Clone, Default)]
pub struct Definition {
    /// Settings.
    pub settings: Settings,
    /// `reference = [..]`.
    pub reference: Vec<Text>,
    /// `[node]`, in order.
    pub attributes: Vec<RawAttribute>,
    /// `[object.X]`, in order.
    pub objects: Vec<RawObject>,
    /// `[model.X]`, in order.
    pub models: Vec<RawModel>,
    /// `[table.T]`, in order.
    pub tables: Vec<RawTable>,
}

/// One name under `[node]`.
#[derive(Debug, Clone)]
pub struct RawAttribute {
    /// Its name.
    pub name: Text,
    /// Its source.
    pub source: RawSource,
}

/// Where an attribute comes from.
#[derive(Debug, Clone)]
pub enum RawSource {
    /// `{ type = .., must_exist = .., many = .. }`
    Given {
        /// `integer` or `text`.
        kind: Option<Text>,
        /// `Table.column`.
        must_exist: Option<Text>,
        /// Several values.
        many: bool,
    },
    /// A path string.
    Path(Text),
}

/// `[object.X]`.
#[derive(Debug, Clone)]
pub struct RawObject {
    /// X.
    pub name: Text,
    /// Place of the heading.
    pub at: At,
    /// `table = ..`, if the primary table has another name.
    pub table: Option<Text>,
    /// Member tables.
    pub members: Vec<RawMember>,
    /// `direction`.
    pub direction: Option<Text>,
    /// `visible..`.
    pub rules: Vec<RawRule>,
    /// `window` of the whole object.
    pub window: Option<Text>,
    /// `writable`.
    pub writable: bool,
    /// `give_away`.
    pub give_away: bool,
    /// `dangling`.
    pub dangling: Vec<Text>,
    /// `conflict`.
    pub conflict: Option<Text>,
}

/// A member table.
#[derive(Debug, Clone)]
pub struct RawMember {
    /// The table.
    pub table: Text,
    /// Columns of the foreign key by which it travels, where it has several.
    pub on: Vec<Text>,
}

/// One visibility rule.
#[derive(Debug, Clone)]
pub struct RawRule {
    /// Its name, `visible` for the single unnamed one.
    pub name: Text,
    /// The rule string.
    pub rule: Text,
    /// `where`.
    pub predicate: Option<Text>,
    /// `window`.
    pub window: Option<Text>,
}

/// `[model.X]`.
#[derive(Debug, Clone)]
pub struct RawModel {
    /// X.
    pub name: Text,
    /// `only`.
    pub only: Option<Vec<Text>>,
    /// `without`.
    pub without: Vec<Text>,
}

/// `[table.T]`.
#[derive(Debug, Clone)]
pub struct RawTable {
    /// T.
    pub name: Text,
    /// `omit`.
    pub omit: Vec<Text>,
    /// `dangling`.
    pub dangling: Vec<Text>,
    /// `capture`.
    pub capture: Option<Text>,
    /// `keys`.
    pub keys: Option<Text>,
    /// `conflict`.
    pub conflict: Option<Text>,
    /// `delete`.
    pub delete: Option<Text>,
    /// `[table.T.column.C]`.
    pub columns: Vec<RawColumn>,
}

/// `[table.T.column.C]`.
#[derive(Debug, Clone)]
pub struct RawColumn {
    /// C.
    pub name: Text,
    /// `conflict`.
    pub conflict: Option<Text>,
    /// `direction`.
    pub direction: Option<Text>,
}

/// Where a conflict policy holds; the innermost wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConflictRule {
    /// The table.
    pub table: String,
    /// The column; `None` for the whole table.
    pub column: Option<String>,
    /// What to do.
    pub policy: ConflictPolicy,
}
