//! `carrier ...`: the places where letters lie for nodes that no line reaches (`[carrier.NAME]`).

use crate::base::ids::ServerId;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::output::{Output, bytes, table};
use crate::cli::project::Settings;
use crate::rules::definition::CarrierSettings;
use crate::server::carrier::open;
use crate::server::identity;
use crate::session::letter::Way;
use crate::store::sqlite::ServerDatabase;
use crate::transport::carrier::{Carrier, CarrierError, Marker, marker_of};
use crate::transport::letters::parts_of;
use crate::transport::link::Timing;
use serde_json::json;
use std::path::Path;

/// The subcommands of `carrier`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum CarrierCommand {
    /// Make a place a carrier of this server: without the file that this writes there, nothing is ever written to it
    #[command(after_help = PREPARE_HELP)]
    Prepare(PrepareArgs),
    /// List the carriers of the definition, whether they are there, and what lies on them
    List,
}

const PREPARE_HELP: &str = "\
A carrier is a folder that gets from here to the nodes and back by other means: a share, a stick, a folder that something else
keeps the same on several machines. In dockmaster.toml:

  [carrier.stick]
  path = \"/media/stick\"      # or \"sftp://drop@host:22/srv/letters\" with ssh_key = \"..\"; `serve` looks there for letters of nodes, and leaves its own

Then:
  dockmaster carrier prepare stick
  remote-sync sync pos.db --via /media/stick     on the node: reads what the server left, and leaves its own letter

Letters are sealed for their receiver and signed by their sender: who carries them can neither read nor change them.";

/// Arguments of `carrier prepare`.
#[derive(Debug, clap::Args)]
pub(crate) struct PrepareArgs {
    /// The carrier, as `[carrier.NAME]` names it
    #[arg(value_name = "NAME")]
    name: String,
}

/// Runs a subcommand.
pub(crate) fn carrier(named: Option<&Path>, command: &CarrierCommand, output: Output) -> Outcome {
    let settings = Settings::load(named)?;
    let server = ServerDatabase::open(&settings.database)?.identity()?.server_id;
    match command {
        CarrierCommand::Prepare(args) => prepare(&settings, server, args, output),
        CarrierCommand::List => list(&settings, server, output),
    }
}

fn prepare(settings: &Settings, server: ServerId, args: &PrepareArgs, output: Output) -> Outcome {
    let Some(carrier) = settings.carriers.iter().find(|carrier| carrier.name == args.name) else {
        let known: Vec<&str> = settings.carriers.iter().map(|carrier| carrier.name.as_str()).collect();
        let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has: {}", known.join(", ")) };
        anyhow::bail!("{} has no [carrier.{}] ({known})", settings.config.display(), args.name);
    };
    let authority = identity::read(&settings.identity, &ServerDatabase::open(&settings.database)?)?.certificate().to_vec();
    let marker = Marker {
        name: carrier.name.clone(),
        server,
        authority,
        part_bytes: carrier.part_bytes,
        room_bytes: carrier.room_bytes,
        resend_seconds: carrier.resend_seconds,
        patience_seconds: carrier.patience_seconds,
    };
    open(carrier, Timing::default())?.set_marker(&marker)?;
    if output.is_json() {
        output.json(json!({ "carrier": carrier.name, "path": carrier.path }))?;
    }
    output.say(format!("{} is a carrier of this server: {}", carrier.path, carrier.name))?;
    output.say("Next: `dockmaster serve` looks there; on a node: remote-sync sync DB --via PATH")?;
    Ok(Exit::Done)
}

/// Letters one way: how many parts, and their bytes.
fn lying(carrier: &dyn Carrier, way: Way) -> Result<(u64, u64), CarrierError> {
    let mut sum = (0, 0);
    for folder in carrier.folders(way)? {
        for (_, bytes) in parts_of(&carrier.list(way, &folder)?) {
            sum = (sum.0 + 1, sum.1 + bytes);
        }
    }
    Ok(sum)
}

fn state(settings: &CarrierSettings, server: ServerId) -> (String, Option<[(u64, u64); 2]>) {
    let looked = open(settings, Timing::default()).and_then(|carrier| {
        let marker = marker_of(&*carrier, server)?;
        let state = if marker.name == settings.name { "ready".to_owned() } else { format!("prepared as {}", marker.name) };
        Ok((state, [lying(&*carrier, Way::Up)?, lying(&*carrier, Way::Down)?]))
    });
    match looked {
        Ok((state, sums)) => (state, Some(sums)),
        Err(CarrierError::NoMarker { .. }) => ("not there, or not prepared".to_owned(), None),
        Err(CarrierError::Foreign { found, .. }) => (format!("of another server ({found})"), None),
        Err(error) => (error.to_string(), None),
    }
}

fn list(settings: &Settings, server: ServerId, output: Output) -> Outcome {
    let looked: Vec<_> = settings.carriers.iter().map(|carrier| (carrier, state(carrier, server))).collect();
    if output.is_json() {
        let carriers: Vec<_> = looked
            .iter()
            .map(|(carrier, (state, sums))| {
                let way = |at: usize| sums.map(|sums| json!({ "files": sums[at].0, "bytes": sums[at].1 }));
                json!({ "carrier": carrier.name, "path": carrier.path, "state": state, "to_server": way(0), "to_nodes": way(1) })
            })
            .collect();
        output.json(json!({ "carriers": carriers }))?;
        return Ok(Exit::Done);
    }
    if looked.is_empty() {
        output.say(format!("{} has no carriers; dockmaster carrier prepare --help tells how to have one", settings.config.display()))?;
        return Ok(Exit::Done);
    }
    let rows = looked.iter().map(|(carrier, (state, sums))| {
        let way = |at: usize| sums.map_or_else(String::new, |sums| format!("{} ({})", sums[at].0, bytes(sums[at].1)));
        vec![carrier.name.clone(), carrier.path.clone(), state.clone(), way(0), way(1)]
    });
    output.line(table(&["CARRIER", "PATH", "STATE", "TO SERVER", "TO NODES"], rows.collect(), &[]))?;
    Ok(Exit::Done)
}
