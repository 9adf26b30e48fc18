//! Letting a node in by files: what `session::enrol` asks and answers, sealed and signed, for those whom no line reaches.
//!
//! In the folder `_newcomers`: `to-server/_newcomers/KEY.enrol` is written by who wants to be let in, `to-node/_newcomers/KEY.granted` by the
//! server; KEY is the newcomer's public key in hex. The token is in the sealed part, so only the server that it names can read it.

use crate::base::ids::ServerId;
use crate::session::enrol::{Answer, ENROL_BYTES_MAX, Request};
use crate::session::letter::Way;
use crate::transport::carrier::{Carrier, CarrierError, NEWCOMERS};
use crate::transport::letters::MailError;
use crate::trust::keys::{KeyPair, PublicKey};
use crate::trust::letter::{self, Letter};
use crate::trust::token::Secret;

/// Longest file of this kind, in bytes.
const FILE_BYTES_MAX: u64 = ENROL_BYTES_MAX as u64 + 1_024;

fn request_name(key: &PublicKey) -> String {
    format!("{key}.enrol")
}

fn answer_name(key: &PublicKey) -> String {
    format!("{key}.granted")
}

fn heading(what: &str, server: ServerId, key: &PublicKey) -> Vec<u8> {
    format!("{what} {server} {key}").into_bytes()
}

/// Opens a file whose heading, sender and receiver are known; what is wrong is for people.
fn opened(bytes: &[u8], expected: &[u8], to: &KeyPair, from: &PublicKey) -> Result<Vec<u8>, String> {
    let letter = Letter::look(bytes).map_err(|fault| fault.to_string())?;
    if letter.heading() != expected {
        return Err("it is another one than its name says".to_owned());
    }
    letter.open(to, from).map_err(|fault| fault.to_string())
}

/// Asks to be let in.
///
/// # Errors
/// The carrier cannot be written, or the server's key is none.
pub fn ask(carrier: &dyn Carrier, server: ServerId, authority: &PublicKey, key: &KeyPair, secret: Secret) -> Result<(), MailError> {
    let request = Request::Enrol { secret, key: key.public() }.encode()?;
    let name = request_name(&key.public());
    // What lies there may be half, or hold another token.
    carrier.remove(Way::Up, NEWCOMERS, &name)?;
    let bytes = letter::seal(key, authority, &heading("enrol", server, &key.public()), &request)?;
    Ok(carrier.write(Way::Up, NEWCOMERS, &name, &bytes)?)
}

/// Takes back what was asked: this key is let in, or asks no more.
///
/// # Errors
/// The carrier cannot be written.
pub fn ask_no_more(carrier: &dyn Carrier, key: &PublicKey) -> Result<(), CarrierError> {
    carrier.remove(Way::Up, NEWCOMERS, &request_name(key))
}

/// Returns what the server has answered; `None` if nothing yet.
///
/// # Errors
/// The carrier cannot be read, or the answer is none of that server.
pub fn answer(carrier: &dyn Carrier, server: ServerId, authority: &PublicKey, key: &KeyPair) -> Result<Option<Answer>, MailError> {
    let name = answer_name(&key.public());
    let Some(bytes) = carrier.read(Way::Down, NEWCOMERS, &name, FILE_BYTES_MAX)? else { return Ok(None) };
    let content = opened(&bytes, &heading("granted", server, &key.public()), key, authority);
    let content = content.map_err(|why| CarrierError::Answer { place: carrier.place(), name, why })?;
    Ok(Some(Answer::decode(&content)?))
}

/// One who wants to be let in.
#[derive(Debug)]
pub struct Newcomer {
    /// Its key, by which the request is signed.
    pub key: PublicKey,
    /// What it asks, or what is wrong with that.
    pub request: Result<Request, String>,
}

/// Returns those who ask to be let in and have no answer yet.
///
/// # Errors
/// The carrier cannot be read.
pub fn waiting(carrier: &dyn Carrier, server: ServerId, authority: &KeyPair) -> Result<Vec<Newcomer>, CarrierError> {
    let answered = carrier.list(Way::Down, NEWCOMERS)?.files;
    let mut newcomers = Vec::new();
    for (name, bytes) in carrier.list(Way::Up, NEWCOMERS)?.files {
        let key =
            name.strip_suffix(".enrol").and_then(|text| hex::decode(text).ok()).and_then(|bytes| bytes.try_into().ok()).map(PublicKey);
        let Some(key) = key.filter(|key| request_name(key) == name && bytes <= FILE_BYTES_MAX) else { continue };
        if answered.iter().any(|(name, _)| *name == answer_name(&key)) {
            continue;
        }
        let Some(bytes) = carrier.read(Way::Up, NEWCOMERS, &name, FILE_BYTES_MAX)? else { continue };
        let request = opened(&bytes, &heading("enrol", server, &key), authority, &key).and_then(|content| {
            match Request::decode(&content).map_err(|error| error.to_string())? {
                Request::Enrol { key: asked, .. } if asked != key => Err("it is signed by another key than it asks for".to_owned()),
                request => Ok(request),
            }
        });
        newcomers.push(Newcomer { key, request });
    }
    Ok(newcomers)
}

/// Answers one who asked.
///
/// # Errors
/// The carrier cannot be written, or the newcomer's key is none.
pub fn reply(carrier: &dyn Carrier, server: ServerId, authority: &KeyPair, key: &PublicKey, answer: &Answer) -> Result<(), MailError> {
    let bytes = letter::seal(authority, key, &heading("granted", server, key), &answer.encode()?)?;
    Ok(carrier.write(Way::Down, NEWCOMERS, &answer_name(key), &bytes)?)
}

/// Deletes the answers to those who ask no more.
///
/// # Errors
/// The carrier cannot be read or written.
pub fn forget(carrier: &dyn Carrier) -> Result<(), CarrierError> {
    let asked = carrier.list(Way::Up, NEWCOMERS)?.files;
    for (name, _) in carrier.list(Way::Down, NEWCOMERS)?.files {
        let is_asked = name.strip_suffix(".granted").is_some_and(|key| asked.iter().any(|(name, _)| *name == format!("{key}.enrol")));
        if !is_asked {
            carrier.remove(Way::Down, NEWCOMERS, &name)?;
        }
    }
    Ok(())
}
