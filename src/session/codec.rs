//! One message to bytes and back.
//!
//! Layout: kind (u16, little-endian), then the body. Most bodies are bincode (standard configuration: little-endian, variable-length
//! integers); those that must outlive a protocol version or be cheap are written by hand: the prefix of `Hello`, `Refused`, `Chunk`
//! and `UploadChunk`. A reader takes a message only if every byte of it is used and writing it again gives the same bytes, so there is one
//! spelling for each message (T21). Lengths are checked before anything is allocated (T8).

use crate::base::ids::{FileNo, Incarnation};
use crate::base::limits::{SESSION_CHUNK_BYTES, SESSION_MESSAGE_BYTES_MAX, SESSION_OFFER_FILES_MAX, VERIFY_BUCKETS_MAX, VERIFY_FOUND_MAX};
use crate::model::digest::TableOutcome;
use crate::session::message::{
    AppliedTo, ExtractOffer, Hello, Message, OfferedFile, Refusal, RefusalCode, Unavailable, Versions, Welcome, kind,
};
use crate::session::upload::{self, UploadMessage};
use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// First bytes of every `Hello`, of any version: a stranger is told from a node at once.
pub const MAGIC: [u8; 8] = *b"DOCKSESS";
/// Longest text in a message, in bytes.
pub const TEXT_BYTES_MAX: usize = 400;
/// Most features that a peer may list.
pub const FEATURES_MAX: usize = 64;

/// A message that cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Shorter than its fixed part.
    #[error("message of {bytes} bytes is cut off")]
    Short {
        /// Its length.
        bytes: usize,
    },
    /// Longer than any message may be.
    #[error("message of {bytes} bytes is longer than {max}")]
    Long {
        /// Its length.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
    /// Not the beginning of a session.
    #[error("the peer does not speak the Dockmaster protocol")]
    Magic,
    /// A kind that this program does not know and may not skip.
    #[error("message kind {0:#06x} is not known")]
    Kind(u16),
    /// The body is not of that kind.
    #[error("{kind}: {why}")]
    Body {
        /// Name of the kind.
        kind: &'static str,
        /// What is wrong.
        why: String,
    },
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<SESSION_MESSAGE_BYTES_MAX>()
}

/// Writes one message.
///
/// # Errors
/// The message breaks a limit, or is one that is never sent.
pub fn encode(message: &Message) -> Result<Bytes, CodecError> {
    let mut out = BytesMut::with_capacity(64);
    out.put_u16_le(message.kind());
    match message {
        Message::Hello(hello) => {
            let protocol = hello.protocol.unwrap_or(Versions::PROTOCOL);
            out.put_slice(&MAGIC);
            out.put_u16_le(protocol.min);
            out.put_u16_le(protocol.max);
            check_text("Hello", [&hello.program, &hello.node])?;
            check_count("Hello", hello.features.len(), FEATURES_MAX)?;
            put(&mut out, "Hello", hello.as_ref())?;
        }
        Message::Refused(refusal) => {
            check_text("Refused", [&refusal.text])?;
            out.put_u16_le(refusal.code.number());
            out.put_slice(refusal.text.as_bytes());
        }
        Message::Chunk { offset, bytes } => {
            check_count("Chunk", bytes.len(), SESSION_CHUNK_BYTES)?;
            out.reserve(8 + bytes.len());
            out.put_u64_le(*offset);
            out.put_slice(bytes);
        }
        Message::Welcome(welcome) => {
            check_text("Welcome", [&welcome.program, &welcome.server_name])?;
            check_count("Welcome", welcome.features.len(), FEATURES_MAX)?;
            put(&mut out, "Welcome", welcome.as_ref())?;
        }
        Message::Offer(files) => {
            check_count("Offer", files.len(), SESSION_OFFER_FILES_MAX)?;
            put(&mut out, "Offer", files)?;
        }
        Message::Bye(text) => {
            check_text("Bye", [text])?;
            put(&mut out, "Bye", text)?;
        }
        Message::Fetch { request, first, last, offset } => put(&mut out, "Fetch", &(request, first, last, offset))?,
        Message::Received { file } => put(&mut out, "Received", file)?,
        Message::Applied(applied) => put(&mut out, "Applied", applied)?,
        Message::Stopped(reason) => {
            check_text("Stopped", reason.as_ref())?;
            put(&mut out, "Stopped", reason)?;
        }
        Message::Compared(outcome) => {
            check_outcome(outcome)?;
            put(&mut out, "Compared", outcome.as_ref())?;
        }
        Message::Token(token) => put(&mut out, "Token", token)?,
        Message::NewToken(token) => put(&mut out, "NewToken", token)?,
        Message::TokenKept => {}
        Message::RequestExtract { renew } => put(&mut out, "RequestExtract", renew)?,
        Message::FetchExtract { request, incarnation, offset } => put(&mut out, "FetchExtract", &(request, incarnation, offset))?,
        Message::Ping(number) => put(&mut out, "Ping", number)?,
        Message::Pong(number) => put(&mut out, "Pong", number)?,
        Message::FileBegin { request, file, offset } => put(&mut out, "FileBegin", &(request, file, offset))?,
        Message::FileEnd { request, file } => put(&mut out, "FileEnd", &(request, file))?,
        Message::FetchEnd { request } => put(&mut out, "FetchEnd", request)?,
        Message::FileUnavailable { request, file, why } => put(&mut out, "FileUnavailable", &(request, file, why))?,
        Message::ExtractOffer(offer) => put(&mut out, "ExtractOffer", offer)?,
        Message::ExtractBegin { request, offset } => put(&mut out, "ExtractBegin", &(request, offset))?,
        Message::ExtractEnd { request } => put(&mut out, "ExtractEnd", request)?,
        Message::Upload(message) => message.write(&mut out)?,
        Message::Foreign(_) | Message::Ignored(_) => {
            return Err(CodecError::Body { kind: message.name(), why: "is never sent".into() });
        }
    }
    if out.len() > SESSION_MESSAGE_BYTES_MAX {
        return Err(CodecError::Long { bytes: out.len(), max: SESSION_MESSAGE_BYTES_MAX });
    }
    Ok(out.freeze())
}

/// Reads one message. `bytes` is exactly one frame.
///
/// # Errors
/// Cut off, too long, of an unknown kind, with bytes left over, or not in its one spelling.
pub fn decode(bytes: &Bytes) -> Result<Message, CodecError> {
    if bytes.len() > SESSION_MESSAGE_BYTES_MAX {
        return Err(CodecError::Long { bytes: bytes.len(), max: SESSION_MESSAGE_BYTES_MAX });
    }
    let short = CodecError::Short { bytes: bytes.len() };
    let number = u16::from_le_bytes(fixed(bytes, 0).ok_or_else(|| short.clone())?);
    let body = bytes.slice(2..);
    let message = match number {
        kind::HELLO => {
            if fixed::<8>(&body, 0).ok_or_else(|| short.clone())? != MAGIC {
                return Err(CodecError::Magic);
            }
            let min = u16::from_le_bytes(fixed(&body, 8).ok_or_else(|| short.clone())?);
            let max = u16::from_le_bytes(fixed(&body, 10).ok_or_else(|| short.clone())?);
            let theirs = Versions { min, max };
            if theirs.common(Versions::PROTOCOL).is_none() {
                return Ok(Message::Foreign(theirs));
            }
            let mut hello: Hello = get("Hello", &body.slice(12..))?;
            hello.protocol = Some(theirs);
            Message::Hello(Box::new(hello))
        }
        kind::REFUSED => {
            let code = RefusalCode::from_number(u16::from_le_bytes(fixed(&body, 0).ok_or(short)?));
            let text = std::str::from_utf8(&body.slice(2..)).map(str::to_owned).map_err(|_| bad("Refused", "text is not UTF-8"))?;
            Message::Refused(Refusal::new(code, text))
        }
        kind::CHUNK => {
            let offset = u64::from_le_bytes(fixed(&body, 0).ok_or(short)?);
            let bytes = body.slice(8..);
            check_count("Chunk", bytes.len(), SESSION_CHUNK_BYTES)?;
            return Ok(Message::Chunk { offset, bytes });
        }
        kind::WELCOME => Message::Welcome(Box::new(get::<Welcome>("Welcome", &body)?)),
        kind::OFFER => Message::Offer(get::<Vec<OfferedFile>>("Offer", &body)?),
        kind::BYE => Message::Bye(get("Bye", &body)?),
        kind::FETCH => {
            let (request, first, last, offset) = get::<(u32, FileNo, Option<FileNo>, u64)>("Fetch", &body)?;
            Message::Fetch { request, first, last, offset }
        }
        kind::RECEIVED => Message::Received { file: get("Received", &body)? },
        kind::APPLIED => Message::Applied(get::<AppliedTo>("Applied", &body)?),
        kind::STOPPED => Message::Stopped(get("Stopped", &body)?),
        kind::COMPARED => Message::Compared(Box::new(get::<TableOutcome>("Compared", &body)?)),
        kind::TOKEN => Message::Token(get("Token", &body)?),
        kind::NEW_TOKEN => Message::NewToken(get("NewToken", &body)?),
        kind::TOKEN_KEPT if body.is_empty() => Message::TokenKept,
        kind::TOKEN_KEPT => return Err(bad("TokenKept", format!("{} bytes left over", body.len()))),
        kind::REQUEST_EXTRACT => Message::RequestExtract { renew: get("RequestExtract", &body)? },
        kind::FETCH_EXTRACT => {
            let (request, incarnation, offset) = get::<(u32, Incarnation, u64)>("FetchExtract", &body)?;
            Message::FetchExtract { request, incarnation, offset }
        }
        kind::PING => Message::Ping(get("Ping", &body)?),
        kind::PONG => Message::Pong(get("Pong", &body)?),
        kind::FILE_BEGIN => {
            let (request, file, offset) = get::<(u32, OfferedFile, u64)>("FileBegin", &body)?;
            Message::FileBegin { request, file, offset }
        }
        kind::FILE_END => {
            let (request, file) = get::<(u32, FileNo)>("FileEnd", &body)?;
            Message::FileEnd { request, file }
        }
        kind::FETCH_END => Message::FetchEnd { request: get("FetchEnd", &body)? },
        kind::FILE_UNAVAILABLE => {
            let (request, file, why) = get::<(u32, FileNo, Unavailable)>("FileUnavailable", &body)?;
            Message::FileUnavailable { request, file, why }
        }
        kind::EXTRACT_OFFER => Message::ExtractOffer(get::<ExtractOffer>("ExtractOffer", &body)?),
        kind::EXTRACT_BEGIN => {
            let (request, offset) = get::<(u32, u64)>("ExtractBegin", &body)?;
            Message::ExtractBegin { request, offset }
        }
        kind::EXTRACT_END => Message::ExtractEnd { request: get("ExtractEnd", &body)? },
        number if upload::kind::ALL.contains(&number) => Message::Upload(UploadMessage::read(number, &body)?),
        unknown if unknown >= kind::OPTIONAL_FROM => return Ok(Message::Ignored(unknown)),
        unknown => return Err(CodecError::Kind(unknown)),
    };
    // Variable-length integers have more than one spelling; only the one that we write is taken.
    if encode(&message)? != *bytes {
        return Err(bad(message.name(), "not in its canonical form"));
    }
    Ok(message)
}

fn bad(kind: &'static str, why: impl Into<String>) -> CodecError {
    CodecError::Body { kind, why: why.into() }
}

fn fixed<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

pub(super) fn put<T: Serialize>(out: &mut BytesMut, kind: &'static str, body: &T) -> Result<(), CodecError> {
    let bytes = bincode::serde::encode_to_vec(body, config()).map_err(|error| bad(kind, error.to_string()))?;
    out.put_slice(&bytes);
    Ok(())
}

pub(super) fn get<T: DeserializeOwned>(kind: &'static str, body: &[u8]) -> Result<T, CodecError> {
    let (value, used) = bincode::serde::decode_from_slice::<T, _>(body, config()).map_err(|error| bad(kind, error.to_string()))?;
    if used != body.len() {
        return Err(bad(kind, format!("{} bytes left over", body.len() - used)));
    }
    Ok(value)
}

fn check_text<'a>(kind: &'static str, texts: impl IntoIterator<Item = &'a String>) -> Result<(), CodecError> {
    for text in texts {
        if text.len() > TEXT_BYTES_MAX {
            return Err(bad(kind, format!("text of {} bytes is longer than {TEXT_BYTES_MAX}", text.len())));
        }
    }
    Ok(())
}

fn check_outcome(outcome: &TableOutcome) -> Result<(), CodecError> {
    let kind = "Compared";
    check_text(kind, [&outcome.table, &outcome.problem])?;
    check_text(kind, outcome.found.iter().map(|found| &found.key))?;
    check_count(kind, outcome.buckets.len(), VERIFY_BUCKETS_MAX)?;
    check_count(kind, outcome.found.len(), VERIFY_FOUND_MAX)
}

fn check_count(kind: &'static str, count: usize, max: usize) -> Result<(), CodecError> {
    if count > max { Err(bad(kind, format!("{count} is more than {max}"))) } else { Ok(()) }
}
