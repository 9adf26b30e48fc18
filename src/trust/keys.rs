//! Ed25519 key pairs of the parties. A private key never leaves the machine that made it, and nothing prints it (T20).

use rcgen::{PKCS_ED25519, PublicKeyData, SignatureAlgorithm};
use std::fmt;

/// Length of a public key, in bytes.
pub const KEY_BYTES: usize = 32;
/// Beginning of a SubjectPublicKeyInfo of an Ed25519 key (RFC 8410); the key itself follows.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A key or certificate that cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The library refused; its text has no secret in it.
    #[error("{what}: {source}")]
    Certificate {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: rcgen::Error,
    },
    /// TLS does not take what it was given.
    #[error("{what}: {source}")]
    Tls {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: rustls::Error,
    },
    /// A text is not what it should be.
    #[error("{0}")]
    Text(String),
    /// The system gives no random numbers.
    #[error("no random numbers: {0}")]
    Random(String),
}

/// The public half of a party's key: by it the server knows a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; KEY_BYTES]);

impl PublicKey {
    /// Takes the key out of a SubjectPublicKeyInfo; `None` if that is of another kind.
    pub fn from_spki(spki: &[u8]) -> Option<PublicKey> {
        spki.strip_prefix(&SPKI_PREFIX)?.try_into().ok().map(PublicKey)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

/// A key pair. `Debug` shows the public half only.
pub struct KeyPair(pub(super) rcgen::KeyPair);

impl KeyPair {
    /// Makes a new one.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn generate() -> Result<KeyPair, TrustError> {
        let made = rcgen::KeyPair::generate_for(&PKCS_ED25519);
        Ok(KeyPair(made.map_err(|source| TrustError::Certificate { what: "make a key", source })?))
    }

    /// Reads a PKCS#8 key.
    ///
    /// # Errors
    /// It is none, or not of this kind.
    pub fn from_pkcs8(der: &[u8]) -> Result<KeyPair, TrustError> {
        let read = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der.into(), &PKCS_ED25519);
        Ok(KeyPair(read.map_err(|source| TrustError::Certificate { what: "read a private key", source })?))
    }

    /// Returns the key as PKCS#8. Secret.
    pub fn to_pkcs8(&self) -> Vec<u8> {
        self.0.serialize_der()
    }

    /// Returns the public half.
    pub fn public(&self) -> PublicKey {
        let mut key = [0; KEY_BYTES];
        key.copy_from_slice(self.0.public_key_raw());
        PublicKey(key)
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.public())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t20_a_key_survives_writing_and_reading_and_is_not_shown() {
        let pair = KeyPair::generate().unwrap();
        let read = KeyPair::from_pkcs8(&pair.to_pkcs8()).unwrap();
        assert_eq!(read.public(), pair.public());
        assert_eq!(PublicKey::from_spki(&pair.public().subject_public_key_info()), Some(pair.public()));
        assert_eq!(PublicKey::from_spki(&[0; 44]), None);
        assert_eq!(format!("{pair:?}"), format!("KeyPair({})", pair.public()));
        assert!(KeyPair::from_pkcs8(&[1, 2, 3]).is_err());
    }
}
