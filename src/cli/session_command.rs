//! `session --stdio`: what sshd runs for a node (a forced command). It carries bytes between the node and the service, and nothing else.

use crate::base::ids::NodeName;
use crate::cli::exit::{Exit, Outcome};
use crate::cli::project::Settings;
use crate::server::door;
use crate::transport::ssh::GREETING;
use std::io::Write as _;
use std::net::Shutdown;
use std::path::Path;

/// Arguments of `session`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
sshd runs it, tied to the key of a node by a line of authorized_keys of the account that the service runs as:

  restrict,command=\"dockmaster session --stdio --node ANNA --config /srv/hq/dockmaster.toml\" ssh-ed25519 AAAA...

Whoever has that key is ANNA, and nothing but ANNA. The node calls with:

  remote-sync init ssh://ACCOUNT@HOST --node ANNA --ssh-key PATH anna.db

Ends with 3 while no service runs.")]
pub(crate) struct SessionArgs {
    /// Speak over standard input and output
    #[arg(long, required = true)]
    stdio: bool,
    /// The node that this key is
    #[arg(long, value_name = "NAME")]
    node: NodeName,
}

/// Carries the bytes of a session until either side ends.
pub(crate) fn session(named: Option<&Path>, args: &SessionArgs) -> Outcome {
    let settings = Settings::load(named)?;
    // `SSH_CONNECTION` is "client port server port"; it is for the log only.
    let peer = std::env::var("SSH_CONNECTION").unwrap_or_default();
    let service = door::enter(&settings.root, &args.node, peer.split(' ').next().unwrap_or_default())?;
    let (mut to_service, mut from_service) = (service.try_clone()?, service);
    let mut out = std::io::stdout().lock();
    out.write_all(&GREETING)?;
    out.flush()?;
    // It ends with the process: reading from standard input cannot be called off.
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let copied = std::io::copy(&mut std::io::stdin().lock(), &mut to_service);
        if let Err(error) = copied {
            tracing::debug!(%error, "standard input");
        }
        let _gone = to_service.shutdown(Shutdown::Write);
    })?;
    copy_each(&mut from_service, &mut out)?;
    Ok(Exit::Done)
}

/// Copies what the service says, each piece at once, until it has ended.
///
/// When nobody hears it any more the line was cut; what the node had sent before may still be in the pipe of standard input. To end
/// then would lose it, and the node would send it again (fault 23). So the service is heard to its end, which comes after all of that.
fn copy_each(from: &mut impl std::io::Read, to: &mut impl std::io::Write) -> std::io::Result<()> {
    let mut piece = [0; 64 << 10];
    let mut is_heard = true;
    loop {
        let count = from.read(&mut piece)?;
        if count == 0 {
            return Ok(());
        }
        if is_heard && let Err(error) = to.write_all(&piece[..count]).and_then(|()| to.flush()) {
            tracing::debug!(%error, "standard output");
            is_heard = false;
        }
    }
}
