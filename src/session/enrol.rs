//! How a node is let in, and gets a new certificate: one request, one answer, on a line of its own (ALPN `dock-enrol`).
//!
//! Layout: as a message of a session, a frame each way. The request begins with its magic, so that it is never taken for something else.

use crate::session::codec::CodecError;
use crate::session::codec::TEXT_BYTES_MAX;
use crate::trust::keys::{KEY_BYTES, PublicKey};
use crate::trust::token::Secret;
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// First bytes of a request. The last one is the version of the layout.
pub const MAGIC: [u8; 8] = *b"DOCKENR\x01";
/// Longest request or answer, in bytes.
pub const ENROL_BYTES_MAX: usize = 4096;
/// Longest certificate, in bytes.
const CERTIFICATE_BYTES_MAX: usize = 2048;

/// What a node asks.
#[derive(Debug, Clone, Copy)]
pub enum Request {
    /// Let this key in by a token.
    Enrol {
        /// The secret of the token.
        secret: Secret,
        /// The key.
        key: PublicKey,
    },
    /// A new certificate for the key that this line has proved.
    Renew,
}

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Here is the certificate, in DER.
    Granted {
        /// The certificate.
        certificate: Vec<u8>,
    },
    /// No. One text for everything that may be wrong with a node or token (T18).
    Refused {
        /// Why, for people.
        text: String,
    },
}

#[derive(Serialize, Deserialize)]
enum Wire {
    Enrol { secret: [u8; 16], key: [u8; KEY_BYTES] },
    Renew,
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<ENROL_BYTES_MAX>()
}

fn bad(kind: &'static str, why: impl ToString) -> CodecError {
    CodecError::Body { kind, why: why.to_string() }
}

impl Request {
    /// Returns the bytes. Secret, if it has a token in it.
    ///
    /// # Errors
    /// Never in practice: its length is bounded.
    pub fn encode(&self) -> Result<Bytes, CodecError> {
        let wire = match self {
            Request::Enrol { secret, key } => Wire::Enrol { secret: secret.0, key: key.0 },
            Request::Renew => Wire::Renew,
        };
        let mut out = BytesMut::from(&MAGIC[..]);
        out.put_slice(&bincode::serde::encode_to_vec(wire, config()).map_err(|error| bad("Request", error))?);
        Ok(out.freeze())
    }

    /// Reads the bytes of one frame.
    ///
    /// # Errors
    /// Another beginning, cut off, or with bytes left over.
    pub fn decode(bytes: &[u8]) -> Result<Request, CodecError> {
        let body = bytes.strip_prefix(&MAGIC).ok_or(CodecError::Magic)?;
        Ok(match read::<Wire>("Request", body)? {
            Wire::Enrol { secret, key } => Request::Enrol { secret: Secret(secret), key: PublicKey(key) },
            Wire::Renew => Request::Renew,
        })
    }
}

impl Answer {
    /// Returns the bytes.
    ///
    /// # Errors
    /// A certificate or text is longer than may be.
    pub fn encode(&self) -> Result<Bytes, CodecError> {
        self.check()?;
        Ok(bincode::serde::encode_to_vec(self, config()).map_err(|error| bad("Answer", error))?.into())
    }

    /// Reads the bytes of one frame.
    ///
    /// # Errors
    /// Cut off, too long, or with bytes left over.
    pub fn decode(bytes: &[u8]) -> Result<Answer, CodecError> {
        let answer: Answer = read("Answer", bytes)?;
        answer.check()?;
        Ok(answer)
    }

    fn check(&self) -> Result<(), CodecError> {
        let (bytes, max) = match self {
            Answer::Granted { certificate } => (certificate.len(), CERTIFICATE_BYTES_MAX),
            Answer::Refused { text } => (text.len(), TEXT_BYTES_MAX),
        };
        if bytes > max { Err(CodecError::Long { bytes, max }) } else { Ok(()) }
    }
}

fn read<T: serde::de::DeserializeOwned>(kind: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > ENROL_BYTES_MAX {
        return Err(CodecError::Long { bytes: bytes.len(), max: ENROL_BYTES_MAX });
    }
    let (read, used) = bincode::serde::decode_from_slice::<T, _>(bytes, config()).map_err(|error| bad(kind, error))?;
    if used == bytes.len() { Ok(read) } else { Err(bad(kind, format!("{} bytes are left over", bytes.len() - used))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_survive_and_anything_shorter_or_longer_is_refused() {
        let request = Request::Enrol { secret: Secret([1; 16]), key: PublicKey([2; 32]) };
        let bytes = request.encode().unwrap();
        assert!(matches!(Request::decode(&bytes), Ok(Request::Enrol { secret, key }) if secret.0 == [1; 16] && key.0 == [2; 32]));
        assert!(!format!("{request:?}").contains("1, 1, 1"), "the secret is not shown");
        assert!(matches!(Request::decode(&Request::Renew.encode().unwrap()), Ok(Request::Renew)));
        for end in 0..bytes.len() {
            assert!(Request::decode(&bytes[..end]).is_err(), "{end}");
        }
        assert!(Request::decode(&[&bytes[..], &[0]].concat()).is_err());
        for answer in [Answer::Granted { certificate: vec![3; 400] }, Answer::Refused { text: "no".into() }] {
            let bytes = answer.encode().unwrap();
            assert_eq!(Answer::decode(&bytes).unwrap(), answer);
            assert!(Answer::decode(&bytes[..bytes.len() - 1]).is_err());
        }
        assert!(Answer::Granted { certificate: vec![0; CERTIFICATE_BYTES_MAX + 1] }.encode().is_err());
        // A length that is claimed and not there allocates nothing (T8).
        assert!(Answer::decode(&[0, 253, 255, 255, 255, 255, 255, 255, 255, 127]).is_err());
    }
}
