//! A first database without a network: the node asks by a file on a carrier to be let in, and finds its extract in a letter there.
//!
//! The first call leaves the request; a later one, when the carrier has been at the server and is back, takes the answer and the extract. The
//! extract goes through the same session as over a line: its server's half is what the letter holds.

use crate::base::crash::{self, CrashPoint};
use crate::base::ids::NodeName;
use crate::client::folder::LockedFolder;
use crate::client::identity::{self, Asked, Which};
use crate::client::init::InitError;
use crate::client::report::ExchangeError;
use crate::session::letter::{Lying, Way};
use crate::session::message::{ExtractOffer, Message, Welcome};
use crate::transport::carrier::{self, Carrier, CarrierError, Marker};
use crate::transport::letters::{MailBox, MailError, Opened};
use crate::transport::link::{Link, LinkError, Timing};
use crate::transport::newcomers;
use crate::transport::peer::{Boxed, DialError, Dialer};
use crate::transport::ssh_settings::SshSettings;
use crate::transport::tcp;
use crate::trust::identity::{NodeIdentity, key_of};
use crate::trust::keys::PublicKey;
use crate::trust::token::Token;
use std::fmt;
use std::sync::Arc;

use crate::base::limits::SESSION_MESSAGE_BYTES_MAX;

/// Bytes that the line within this process holds.
const LINE_BYTES: usize = 256 << 10;

/// A place by which a node is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where the carrier is.
    pub place: String,
    /// For a place behind SFTP.
    pub ssh: SshSettings,
}

fn mail(error: impl Into<MailError>) -> InitError {
    InitError::Exchange(ExchangeError::Mail(error.into()))
}

fn dial(error: DialError) -> InitError {
    InitError::Exchange(ExchangeError::Dial(error))
}

impl Place {
    fn open(&self, timing: Timing) -> Result<Box<dyn Carrier>, CarrierError> {
        carrier::open(&self.place, &self.ssh, timing)
    }

    /// Has this folder let in, and finds the extract. Returns who the node is, and what plays the server of its session. Blocks.
    ///
    /// # Errors
    /// [`InitError::Waiting`] as long as the server has not answered; else what is wrong with carrier, token or letter.
    pub fn enter(
        &self,
        folder: &LockedFolder,
        token: Option<&Token>,
        timing: Timing,
    ) -> Result<(NodeName, PublicKey, Arc<dyn Dialer>), InitError> {
        let carrier = self.open(timing).map_err(mail)?;
        let marker = carrier.marker().map_err(mail)?;
        let waiting = |what| InitError::Waiting { place: self.place.clone(), what };
        let identity = match (identity::of(folder, Which::New).map_err(dial)?, token) {
            (Some(identity), _) => identity,
            (None, None) => return Err(InitError::NoToken(folder.database().to_owned())),
            (None, Some(token)) => match identity::enrol_by_file(folder, &*carrier, &marker, token).map_err(dial)? {
                Asked::Granted(identity) => *identity,
                Asked::Waiting => return Err(waiting("was asked to let this machine in")),
            },
        };
        if identity.server() != marker.server {
            return Err(mail(CarrierError::Foreign { place: self.place.clone(), found: marker.server, expected: identity.server() }));
        }
        let letter = extract_letter(&*carrier, &marker, &identity).map_err(mail)?;
        let letter = letter.ok_or_else(|| waiting("has let this machine in, and its extract is not here yet"))?;
        crash::at(CrashPoint::InitEntered);
        let (node, key) = (identity.node().clone(), identity.public());
        Ok((node, key, Arc::new(LetterDialer { place: self.clone(), identity: Arc::new(identity), letter })))
    }

    /// Takes the request away: the database is there.
    ///
    /// # Errors
    /// The carrier cannot be written.
    pub fn leave(&self, key: &PublicKey, timing: Timing) -> Result<(), CarrierError> {
        newcomers::ask_no_more(&*self.open(timing)?, key)
    }
}

fn mail_box<'a>(carrier: &'a dyn Carrier, marker: &Marker, identity: &'a NodeIdentity) -> Option<MailBox<'a>> {
    let peer = key_of(identity.authority())?;
    let (server, node, part_bytes) = (marker.server, identity.node(), marker.part_bytes);
    Some(MailBox { carrier, key: identity.key(), peer, server, node, writes: Way::Up, part_bytes })
}

/// What a letter with an extract begins with.
fn beginning(mail: &MailBox<'_>, letter: &Lying) -> Result<Option<(Welcome, ExtractOffer)>, CarrierError> {
    let Some(first) = letter.parts.first().filter(|_| letter.is_whole) else { return Ok(None) };
    let mut frames = match mail.open(*first)? {
        Opened::Content(frames) => frames,
        Opened::Later => return Ok(None),
        Opened::Spoiled(why) => {
            tracing::warn!("{why}");
            return Ok(None);
        }
    };
    if frames.receipt().is_err() {
        return Ok(None);
    }
    Ok(match (frames.next(), frames.next()) {
        (Some(Ok(Message::Welcome(welcome))), Some(Ok(Message::ExtractOffer(offer)))) => Some((*welcome, offer)),
        _ => None,
    })
}

/// Finds the newest letter with an extract.
fn extract_letter(carrier: &dyn Carrier, marker: &Marker, identity: &NodeIdentity) -> Result<Option<Lying>, CarrierError> {
    let Some(mail) = mail_box(carrier, marker, identity) else { return Ok(None) };
    for (letter, _) in mail.incoming()?.into_iter().rev() {
        if beginning(&mail, &letter)?.is_some() {
            return Ok(Some(letter));
        }
    }
    Ok(None)
}

/// Plays the server of a session that fetches the extract which a letter holds.
struct LetterDialer {
    place: Place,
    identity: Arc<NodeIdentity>,
    letter: Lying,
}

impl fmt::Debug for LetterDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LetterDialer({})", self.place.place)
    }
}

impl Dialer for LetterDialer {
    fn dial<'a>(&'a self, _: &'a str, timing: Timing) -> Boxed<'a, Result<Link, DialError>> {
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(LINE_BYTES);
            let (place, identity, letter) = (self.place.clone(), self.identity.clone(), self.letter.clone());
            tokio::task::spawn_blocking(move || {
                // The carrier blocks; the line is driven from this thread by a runtime of its own.
                let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => return tracing::error!("start a runtime: {error}"),
                };
                let played = runtime.block_on(play(&place, &identity, &letter, far, timing));
                if let Err(why) = played {
                    tracing::warn!("{}: {why}", place.place);
                }
            });
            Ok(tcp::line(near, SESSION_MESSAGE_BYTES_MAX, timing))
        })
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn play(
    place: &Place,
    identity: &NodeIdentity,
    letter: &Lying,
    line: tokio::io::DuplexStream,
    timing: Timing,
) -> Result<(), BoxError> {
    let mut link = tcp::line(line, SESSION_MESSAGE_BYTES_MAX, timing);
    let carrier = place.open(timing)?;
    let marker = carrier.marker()?;
    let mail = mail_box(&*carrier, &marker, identity).ok_or("the server's authority has no key")?;
    let (welcome, offer) = beginning(&mail, letter)?.ok_or("the letter with the extract went")?;
    loop {
        match link.incoming.receive().await {
            Ok(Message::Hello(_)) => link.outgoing.send(&Message::Welcome(Box::new(welcome.clone()))).await?,
            Ok(Message::RequestExtract { .. }) => link.outgoing.send(&Message::ExtractOffer(offer)).await?,
            Ok(Message::FetchExtract { request, .. }) => {
                link.outgoing.send(&Message::ExtractBegin { request, offset: 0 }).await?;
                for part in &letter.parts {
                    let Opened::Content(mut frames) = mail.open(*part)? else {
                        return Err(format!("{part} cannot be read any more").into());
                    };
                    if part.part == 1 {
                        frames.receipt()?;
                    }
                    for message in frames {
                        if let chunk @ Message::Chunk { .. } = message? {
                            link.outgoing.send(&chunk).await?;
                        }
                    }
                }
                link.outgoing.send(&Message::ExtractEnd { request }).await?;
            }
            Ok(Message::Ping(number)) => link.outgoing.send(&Message::Pong(number)).await?,
            Ok(Message::Bye(_)) | Err(LinkError::Closed) => break,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
    link.close().await;
    Ok(())
}
