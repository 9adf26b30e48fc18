//! `remote-sync init | sync | watch`: the commands that talk to the server, or apply what it sent.

use crate::base::ids::NodeName;
use crate::base::limits::AWAIT_SECONDS_MAX;
use crate::cli::client_commands::DatabaseArgs;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{Output, bytes, count, some};
use crate::cli::sync_report;
use crate::client::applier::Applier;
use crate::client::carrier::{CarrierExchange, CarrierReport};
use crate::client::daemon;
use crate::client::exchange::{self, ExchangeOptions, SharedApplier};
use crate::client::folder::{ClientFolder, LockedFolder, RemoteConfig};
use crate::client::identity::{self, ServerDialer, Which};
use crate::client::init::{self, InitOptions};
use crate::client::init_by_letters::Place;
use crate::client::local_applier::{ApplyFault, LocalApplier};
use crate::client::report::{ExchangeError, Progress, ProgressEvent, SyncReport};
use crate::session::message::DEFAULT_PORT;
use crate::transport::carrier;
use crate::transport::letters::MailError;
use crate::transport::link::Timing;
use crate::transport::peer::{DialError, Dialer};
use crate::transport::proxy::Proxy;
use crate::transport::signals;
#[cfg(unix)]
use crate::transport::ssh::{SshAddress, SshDialer};
use crate::transport::ssh_settings::SshSettings;
use crate::trust::keys::PublicKey;
use crate::trust::token::Token;
use anyhow::Context as _;
use indicatif::ProgressBar;
use serde_json::json;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Arguments of `init`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Fetches the extract that the server makes for this node and puts it in place as DB. Cut off in the middle, the same \
command goes on where it was.

Examples:
  remote-sync init hq.example.com --token DM1-.... pos.db          the token is from `dockmaster node add`
  remote-sync init hq.example.com --token-file token.txt pos.db    it does not show in the list of processes then; - is stdin
  remote-sync init hq.example.com pos.db --replace --renew         begin anew with a new extract; no token is needed
  remote-sync init ssh://dock@hq.example.com --node POS-7 pos.db   over SSH, which proves both sides; see `dockmaster session --help`
  remote-sync init via:/media/stick --token DM1-.... pos.db        no network: asks on a carrier of the server; call it again when
                                                                   the carrier has been there

The key of this node is made here and stays here, in DB.sync/identity. With HTTPS_PROXY set, the way leads through that proxy.")]
pub(crate) struct InitArgs {
    /// Address of the server: host, host:port, ssh://USER@HOST:PORT, or via:PLACE for a carrier
    #[arg(value_name = "SERVER")]
    server: String,
    /// Lets this machine in, once, as the node that the token is for
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
    token: Option<String>,
    /// A file with the token; `-` reads it from stdin
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// Over SSH: the node that this key is, by the far side's authorized_keys
    #[arg(long, value_name = "NAME", conflicts_with_all = ["token", "token_file"])]
    node: Option<NodeName>,
    #[command(flatten)]
    ssh: SshArgs,
    /// Replace a database that has something in it; the old one is kept beside it
    #[arg(long)]
    replace: bool,
    /// Ask the server for a new extract, though one was fetched before
    #[arg(long)]
    renew: bool,
    /// The local database to make
    #[arg(value_name = "DB")]
    database: PathBuf,
}

/// How to get in over SSH.
#[derive(Debug, clap::Args)]
struct SshArgs {
    /// Over SSH: the file with the private key; without it the agent is asked, or the password used
    #[arg(long, value_name = "PATH")]
    ssh_key: Option<PathBuf>,
    /// Over SSH: the list of known hosts [default: ~/.ssh/known_hosts]
    #[arg(long, value_name = "PATH")]
    ssh_known_hosts: Option<PathBuf>,
    /// Over SSH: a file with the password of the account, or of the key
    #[arg(long, value_name = "PATH")]
    ssh_password_file: Option<PathBuf>,
}

/// Which half of a sync to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Only {
    /// Send what was changed here
    Send,
    /// Fetch files into the inbox
    Receive,
    /// Apply what the inbox holds; needs no network
    Apply,
}

/// Arguments of `sync`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sends what was changed here, fetches what was changed elsewhere, and applies it. What the server made of your changes comes \
with this sync if you wait for it, else with a later one.

Examples:
  remote-sync sync pos.db
  remote-sync sync pos.db --wait 30       the server's answer comes with this sync, if it is ready within 30 s
  remote-sync sync pos.db --only send
  remote-sync sync pos.db --via /media/stick     no network: reads the letters that lie there, and leaves one for the server")]
pub(crate) struct SyncArgs {
    /// Do one half only
    #[arg(long, value_enum, value_name = "STEP")]
    only: Option<Only>,
    /// Fetch nothing; `download = false` in remote-sync.toml does so for every sync
    #[arg(long, conflicts_with = "only")]
    no_download: bool,
    /// Wait until the server has merged what was sent, at most so long
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=i64::from(AWAIT_SECONDS_MAX)))]
    wait: Option<u32>,
    /// By letters on a carrier of the server, instead of over a line: a folder, or sftp://USER@HOST:PORT/PATH; with
    /// `server = "via:PLACE"` in remote-sync.toml every sync does so
    #[arg(long, value_name = "PLACE", conflicts_with = "only")]
    via: Option<String>,
    #[command(flatten)]
    ssh: SshArgs,
    /// The local database
    #[arg(value_name = "DB")]
    database: PathBuf,
}

/// Makes the local database.
pub(crate) fn init(args: &InitArgs, output: Output) -> Outcome {
    let folder = ClientFolder::of(&args.database).lock()?;
    let (server, token, proxy) = (with_port(&args.server)?, token(args)?, proxy()?);
    let began = Instant::now();
    init::look(&folder, args.replace)?;
    let mut ssh = ssh_settings(&args.ssh, &folder)?;
    let mut letters: Option<(Place, PublicKey)> = None;
    let (node, dialer) = if is_ssh(&server) {
        (node_by_ssh(args, &folder)?, ssh_dialer(&ssh)?)
    } else if let Some(place) = via_of(&server) {
        if place.starts_with("sftp://") {
            ssh.known_hosts = Some(known_hosts(ssh.known_hosts)?);
        }
        let place = Place { place: place.to_owned(), ssh: ssh.clone() };
        let (node, key, dialer) = place.enter(&folder, token.as_ref(), Timing::default())?;
        letters = Some((place, key));
        (node, dialer)
    } else {
        init::enter(&folder, &server, token.as_ref(), proxy.as_ref(), Timing::default())?
    };
    let ssh = if is_ssh(&server) || server.starts_with("via:sftp://") { ssh } else { SshSettings::default() };
    let options = InitOptions { server, node, ssh, replace: args.replace, renew: args.renew, exchange: ExchangeOptions::new(dialer) };
    let mut bars = Bars::new(output);
    let report = init::init(&folder, &options, &mut bars)?;
    bars.finish();
    if let Some((place, key)) = &letters {
        place.leave(key, Timing::default()).map_err(MailError::from)?;
    }
    if output.is_json() {
        output.json(json!({
            "node": options.node.as_str(), "server": report.server_name, "incarnation": report.offer.incarnation.0,
            "unit": report.offer.unit.0, "bytes": report.offer.bytes, "replaced": report.replaced,
        }))?;
    } else {
        output.line(format!(
            "{} is ready: node {} of {}, extract {}, as of txn {}, {} fetched in {:.1} s.",
            args.database.display(),
            options.node,
            report.server_name,
            report.offer.incarnation,
            count(report.offer.unit.0),
            bytes(report.fetched),
            began.elapsed().as_secs_f32()
        ))?;
        if let Some(replaced) = &report.replaced {
            output.say(format!("The former database is kept as {}.", replaced.display()))?;
        }
        output.say(format!("Next: remote-sync sync {0}    or stay in step:  remote-sync watch {0}", args.database.display()))?;
    }
    Ok(Exit::Done)
}

/// Longest text that is read where a token is expected, in bytes.
const TOKEN_BYTES_MAX: u64 = 1024;

/// Reads the token; it is never part of a message.
fn token(args: &InitArgs) -> anyhow::Result<Option<Token>> {
    let text = match (&args.token, &args.token_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) if path.as_os_str() == "-" => read_token(std::io::stdin().lock()).context("read the token from stdin")?,
        (None, Some(path)) => {
            let file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
            read_token(file).with_context(|| format!("read {}", path.display()))?
        }
        (None, None) => return Ok(None),
    };
    Ok(Some(text.parse()?))
}

fn read_token(from: impl std::io::Read) -> std::io::Result<String> {
    let mut text = String::new();
    from.take(TOKEN_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// The web proxy, by the variables of the environment that other programs read too.
fn proxy() -> anyhow::Result<Option<Proxy>> {
    let variable = |names: [&str; 2]| names.iter().find_map(|name| std::env::var(name).ok()).filter(|value| !value.trim().is_empty());
    let Some(url) = variable(["HTTPS_PROXY", "https_proxy"]) else { return Ok(None) };
    Proxy::new(&url, &variable(["NO_PROXY", "no_proxy"]).unwrap_or_default()).map(Some).map_err(anyhow::Error::msg)
}

/// The way to the server of a database.
fn exchange_options(folder: &LockedFolder, config: &RemoteConfig) -> anyhow::Result<ExchangeOptions> {
    Ok(ExchangeOptions::new(match is_ssh(&config.server) {
        true => ssh_dialer(&config.ssh)?,
        false => Arc::new(ServerDialer::new(folder, Which::Node, proxy()?)),
    }))
}

/// The place of a carrier, if a server is reached by one.
fn via_of(server: &str) -> Option<&str> {
    server.strip_prefix("via:")
}

fn is_ssh(server: &str) -> bool {
    server.starts_with("ssh://")
}

/// Settings that are named now, or else those that the database had. Paths hold wherever the next command is called.
fn ssh_settings(args: &SshArgs, folder: &ClientFolder) -> anyhow::Result<SshSettings> {
    let former = folder.read_config().map(|config| config.ssh).unwrap_or_default();
    let path = |named: &Option<PathBuf>, former: Option<PathBuf>| match named {
        Some(path) => std::path::absolute(path).with_context(|| format!("{}", path.display())).map(Some),
        None => Ok(former),
    };
    Ok(SshSettings {
        key: path(&args.ssh_key, former.key)?,
        known_hosts: path(&args.ssh_known_hosts, former.known_hosts)?,
        password_file: path(&args.ssh_password_file, former.password_file)?,
    })
}

fn node_by_ssh(args: &InitArgs, folder: &ClientFolder) -> anyhow::Result<NodeName> {
    if args.token.is_some() || args.token_file.is_some() {
        anyhow::bail!("over SSH the key of SSH lets this node in, no token: name the node with --node");
    }
    match &args.node {
        Some(node) => Ok(node.clone()),
        None => Ok(folder.read_config().context("over SSH the node is named: --node NAME")?.node),
    }
}

/// The list of known hosts: the one that is named, or else that of the user.
pub(crate) fn known_hosts(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    match named {
        Some(path) => Ok(path),
        None => {
            Ok(PathBuf::from(std::env::var_os("HOME").context("HOME is not set: name the list of known hosts")?).join(".ssh/known_hosts"))
        }
    }
}

#[cfg(unix)]
fn ssh_dialer(ssh: &SshSettings) -> anyhow::Result<Arc<dyn Dialer>> {
    let ssh = SshSettings { known_hosts: Some(known_hosts(ssh.known_hosts.clone())?), ..ssh.clone() };
    Ok(Arc::new(SshDialer::new(ssh.to_keys().map_err(anyhow::Error::msg)?)))
}

#[cfg(not(unix))]
fn ssh_dialer(_: &SshSettings) -> anyhow::Result<Arc<dyn Dialer>> {
    anyhow::bail!("SSH is not built for this system")
}

/// Gets in step once.
pub(crate) fn sync(args: &SyncArgs, output: Output) -> Outcome {
    let folder = ClientFolder::of(&args.database);
    // Before the lock, which makes the folder: a mistyped name leaves nothing behind.
    let config = folder.read_config()?;
    let folder = folder.lock()?;
    let applier = Arc::new(Mutex::new(LocalApplier::open(&folder)?));
    let began = Instant::now();
    let mut report = SyncReport::default();
    let sends = matches!(args.only, None | Some(Only::Send));
    let fetches = config.download && !args.no_download && matches!(args.only, None | Some(Only::Receive));
    if sends {
        // Whoever answers or not: what was changed up to now is one unit, and no longer part of the next.
        let uploads = lock(&applier).uploads();
        if let Some(uploads) = uploads {
            uploads.lock().unwrap_or_else(PoisonError::into_inner).cut().map_err(ExchangeError::Local)?;
        }
    }
    let via = args.via.as_deref().or_else(|| via_of(&config.server));
    if let (Some(_), Some(Only::Send | Only::Receive)) = (via, args.only) {
        anyhow::bail!("by letters both halves are one: leave --only out");
    }
    let mut ssh = ssh_settings(&args.ssh, &folder)?;
    if via.is_some_and(|via| via.starts_with("sftp://")) {
        ssh.known_hosts = Some(known_hosts(ssh.known_hosts)?);
    }
    let mut letters: Option<CarrierReport> = None;
    if args.only != Some(Only::Apply) {
        let options = ExchangeOptions {
            apply: args.only.is_none(),
            send: sends,
            receive: fetches,
            wait: args.wait.filter(|_| sends),
            ..match via {
                Some(_) => ExchangeOptions::new(Arc::new(ServerDialer::new(&folder, Which::Node, None))),
                None => exchange_options(&folder, &config)?,
            }
        };
        let shared: SharedApplier = applier.clone();
        loop {
            let mut bars = Bars::new(output);
            let round = match via {
                Some(place) => by_letters(&folder, &config, &shared, &options, (place, &ssh), &mut bars).map(|round| {
                    let sync = round.sync.clone();
                    letters = Some(letters.take().map_or(round.clone(), |former| former.and(&round)));
                    sync
                }),
                None => exchange::sync_once(&folder, &config, &shared, &options, &mut bars),
            };
            bars.finish();
            let round = round.map_err(|error| stopped_first(&applier, error))?;
            report = report.and(round);
            let again = lock(&applier).take_fetch_again();
            if again.is_empty() {
                break;
            }
            tracing::warn!(files = again.len(), "damaged in the inbox, fetched again");
        }
    }
    if matches!(args.only, None | Some(Only::Apply)) {
        lock(&applier).run()?;
    }
    let sent = sync_report::Sent::of(&report.sent, &applier, folder.database())?;
    let applier = lock(&applier);
    let total = applier.total();
    if output.is_json() {
        output.json(json!({
            "node": config.node.as_str(), "server": report.server_name, "files": report.files, "bytes": report.bytes,
            "units": total.units, "rows": total.rows, "applied_bytes": total.bytes, "applied_raw_bytes": total.raw_bytes, "applied_file": total.applied_file.0, "applied_unit": total.applied_unit.0,
            "staged_units": total.staged, "longest_pause_ms": total.longest_pause.as_millis() as u64, "sent": sent.json(),
            "letters": letters.as_ref().map(|letters| json!({ "read": letters.read, "left": letters.written, "all_read": letters.is_heard })),
        }))?;
        return Ok(sent.exit());
    }
    let took = began.elapsed().as_secs_f32();
    let received = match fetches {
        true => format!("Received {}, {}", some(report.files, "file", "files"), bytes(report.bytes)),
        false => "Nothing fetched".to_owned(),
    };
    // Small files gain nothing; then the figure would only puzzle.
    let ratio = match total.raw_bytes as f64 / (total.bytes.max(1) as f64) {
        ratio if ratio >= 1.05 => format!(" (compressed {ratio:.1} to 1)"),
        _ => String::new(),
    };
    // What other programs had to wait for; with small units nobody would notice.
    let pause = match total.staged {
        0 => String::new(),
        staged => {
            let units = some(staged, "large unit", "large units");
            format!(", {units} staged: other writers waited {:.1} s at most", total.longest_pause.as_secs_f32())
        }
    };
    let applied = format!("applied {}{ratio}{pause}", some(total.rows, "row", "rows"));
    let sent_text = sent.text();
    if let (Some(letters), Some(place)) = (&letters, via) {
        let (read, left) = (some(letters.read, "letter", "letters"), some(letters.written, "letter", "letters"));
        let at = count(total.applied_unit.0);
        output.line(format!("At txn {at} in {took:.1} s by {place}: read {read}, left {left}. {}{received}; {applied}.", sent.text()))?;
        if !letters.is_heard {
            output.say("What was left is on its way: the server has not said yet that it has read it.")?;
        }
        for line in sent.notes(args.wait) {
            output.say(line)?;
        }
        return Ok(sent.exit());
    }
    output.line(match args.only {
        None if fetches => {
            let (server, unit) = (&report.server_name, count(total.applied_unit.0));
            format!("In step with {server} at txn {unit} in {took:.1} s. {sent_text}{received}; {applied}.")
        }
        None => format!("At txn {} in {took:.1} s. {sent_text}{received}; {applied}.", count(total.applied_unit.0)),
        Some(Only::Send) => format!("{}Took {took:.1} s with {}.", sent.said(), report.server_name),
        Some(Only::Receive) => format!("{received} from {} in {took:.1} s; nothing applied.", report.server_name),
        Some(Only::Apply) => format!("At txn {}: {applied} in {took:.1} s.", count(total.applied_unit.0)),
    })?;
    for line in sent.notes(args.wait) {
        output.say(line)?;
    }
    Ok(sent.exit())
}

/// Gets in step by the letters of a carrier.
fn by_letters(
    folder: &LockedFolder,
    config: &RemoteConfig,
    applier: &SharedApplier,
    options: &ExchangeOptions,
    (place, ssh): (&str, &SshSettings),
    bars: &mut Bars,
) -> Result<CarrierReport, ExchangeError> {
    let identity = identity::of(folder, Which::Node)?.ok_or_else(|| DialError::NoIdentity(folder.path().join("identity/node.pem")))?;
    let carrier = carrier::open(place, ssh, options.timing).map_err(MailError::from)?;
    CarrierExchange::open(folder, config, applier, options, (&*carrier, &identity), bars)?.run()
}

/// Stays in step until Ctrl-C.
pub(crate) fn watch(args: &DatabaseArgs, output: Output) -> Outcome {
    let folder = ClientFolder::of(&args.database);
    // Before the lock, which makes the folder: a mistyped name leaves nothing behind.
    let config = folder.read_config()?;
    let folder = folder.lock()?;
    let applier = Arc::new(Mutex::new(LocalApplier::open(&folder)?));
    let shared: SharedApplier = applier.clone();
    if let Some(place) = via_of(&config.server) {
        anyhow::bail!("nobody can watch over letters: call `remote-sync sync` when {place} has been at the server");
    }
    let stop = signals::token()?;
    output.say(format!("{} stays in step with {}; Ctrl-C stops cleanly.", config.node, config.server))?;
    let options = ExchangeOptions { receive: config.download, ..exchange_options(&folder, &config)? };
    daemon::watch(&folder, &config, &shared, &options, &mut Told, &stop).map_err(|error| stopped_first(&applier, error))?;
    Ok(Exit::Done)
}

/// A stopped apply is why the exchange ended, and says more than the exchange does.
fn stopped_first(applier: &Mutex<LocalApplier>, error: ExchangeError) -> anyhow::Error {
    match &lock(applier).total().stopped {
        Some(stopped) => ApplyFault::Stopped(stopped.clone()).into(),
        None => error.into(),
    }
}

fn lock(applier: &Mutex<LocalApplier>) -> MutexGuard<'_, LocalApplier> {
    applier.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with_port(server: &str) -> anyhow::Result<String> {
    if let Some(place) = via_of(server) {
        let place = match place.starts_with("sftp://") {
            true => place.to_owned(),
            // It holds wherever the next command is called.
            false => std::path::absolute(place).with_context(|| place.to_owned())?.display().to_string(),
        };
        return Ok(format!("via:{place}"));
    }
    #[cfg(unix)]
    if is_ssh(server) {
        return Ok(server.parse::<SshAddress>().map_err(anyhow::Error::msg)?.to_string());
    }
    let has_port = server.rsplit_once(':').is_some_and(|(host, port)| !host.ends_with(':') && port.parse::<u16>().is_ok());
    Ok(if has_port { server.to_owned() } else { format!("{server}:{DEFAULT_PORT}") })
}

/// Progress of a command that ends, drawn as bars on stderr where that is a terminal.
struct Bars {
    output: Output,
    bar: Option<ProgressBar>,
    expected: u64,
    sending: Option<ProgressBar>,
    to_send: u64,
}

impl Bars {
    fn new(output: Output) -> Bars {
        Bars { output, bar: None, expected: 0, sending: None, to_send: 0 }
    }

    fn finish(&mut self) {
        for bar in [self.sending.take(), self.bar.take()].into_iter().flatten() {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bars {
    fn on(&mut self, event: &ProgressEvent) {
        match event {
            ProgressEvent::Offered { bytes, .. } => {
                self.expected += bytes;
                let output = self.output;
                self.bar.get_or_insert_with(|| output.progress("receive", 0)).set_length(self.expected);
            }
            ProgressEvent::Sending { bytes, .. } => {
                self.to_send += bytes;
                let output = self.output;
                self.sending.get_or_insert_with(|| output.progress("send", 0)).set_length(self.to_send);
            }
            ProgressEvent::SentBytes(bytes) => {
                if let Some(bar) = &self.sending {
                    bar.inc(*bytes);
                }
            }
            ProgressEvent::Bytes(bytes) => {
                if let Some(bar) = &self.bar {
                    bar.inc(*bytes);
                }
            }
            ProgressEvent::Extract { bytes, of } => {
                let output = self.output;
                let bar = self.bar.get_or_insert_with(|| output.progress("extract", *of));
                bar.set_position(*bytes);
            }
            ProgressEvent::ExtractWaiting => tracing::info!("the server is making the extract"),
            ProgressEvent::Damaged(file) => tracing::warn!("{} came damaged and is fetched again", file.file_name()),
            // From cron (`--quiet`) only what comes of it counts.
            ProgressEvent::Again { why, pause } if self.output.is_quiet() => {
                tracing::info!("{why}; next attempt in {:.1} s", pause.as_secs_f32());
            }
            ProgressEvent::Again { why, pause } => tracing::warn!("{why}; next attempt in {:.1} s", pause.as_secs_f32()),
            _ => {}
        }
    }
}

/// Progress of a command that runs on, told in the log.
struct Told;

impl Progress for Told {
    fn on(&mut self, event: &ProgressEvent) {
        match event {
            ProgressEvent::Connected { server, files } => {
                tracing::info!("connected to {server}, {} waiting", some(*files, "file", "files"))
            }
            ProgressEvent::Sent(file) => tracing::info!(%file, "sent, and durable on the server"),
            ProgressEvent::Applied(applied) => tracing::info!(file = %applied.file, "in step at txn {}", applied.unit),
            ProgressEvent::ApplyFailed(why) => tracing::error!("apply: {why}"),
            ProgressEvent::Damaged(file) => tracing::warn!("{} came damaged and is fetched again", file.file_name()),
            _ => {}
        }
    }
}
