//! Letters: bytes that one party seals for another and signs, for carriers that nobody trusts.
//!
//! Layout: magic (8), length of the heading (u16, little-endian), heading, length of what is sealed (u32), the encapsulated key (32), the
//! ciphertext with its tag, the signature (64). It is sealed by RFC 9180 (X25519, HKDF-SHA256, ChaCha20-Poly1305; the heading is the
//! associated data) and signed by Ed25519 over everything before the signature. Both use the one key that a party has: X25519 keys follow from
//! it. The signature is looked at first; nothing is opened that its sender did not sign (T14).

use crate::trust::keys::{KEY_BYTES, KeyPair, PublicKey, TrustError};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};

/// First bytes of every letter. The last one is the version of the layout.
pub const MAGIC: [u8; 8] = *b"DOCKLET\x01";
/// Longest heading, in bytes.
pub const HEADING_BYTES_MAX: usize = 1024;
/// Most bytes that are sealed in one letter.
pub const SEALED_BYTES_MAX: usize = 80 << 20;
/// What sealing adds to the content, in bytes: the encapsulated key and the tag.
const SEAL_BYTES: usize = KEY_BYTES + 16;
const SIGNATURE_BYTES: usize = 64;
/// What the keys are used for here, and nowhere else.
const PURPOSE: &[u8] = b"dockmaster letter 1";

/// Why bytes are no letter for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LetterFault {
    /// Shorter than it says of itself: it may be on its way still.
    #[error("it is not whole")]
    Short,
    /// Something else.
    #[error("it is no letter")]
    Foreign,
    /// Not signed by the one that it should be from, or changed since.
    #[error("it is not signed by its sender, or was changed on its way")]
    Signature,
    /// Sealed for another.
    #[error("it is not sealed for us")]
    Sealed,
}

/// A letter whose parts were found; nothing of it is trusted yet.
#[derive(Debug, Clone, Copy)]
pub struct Letter<'a> {
    heading: &'a [u8],
    sealed: &'a [u8],
    signed: &'a [u8],
    signature: &'a [u8],
}

impl KeyPair {
    /// Returns the private key itself.
    fn signing(&self) -> Result<SigningKey, TrustError> {
        // PKCS#8 of RFC 8410, from the version on: algorithm, and the key in an octet string in an octet string.
        const BEFORE: [u8; 11] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
        let der = self.to_pkcs8();
        let seed = der.get(5..).and_then(|der| der.strip_prefix(&BEFORE)).and_then(|rest| rest.first_chunk::<KEY_BYTES>());
        let key = seed.map(SigningKey::from_bytes);
        key.filter(|key| key.verifying_key().to_bytes() == self.public().0)
            .ok_or_else(|| TrustError::Text("the private key is not of the expected form".to_owned()))
    }
}

/// Seals and signs a content. `heading` stays readable for everybody.
///
/// # Errors
/// A key is none, or heading or content are too long.
pub fn seal(from: &KeyPair, to: &PublicKey, heading: &[u8], content: &[u8]) -> Result<Vec<u8>, TrustError> {
    let failed = |what: &str| TrustError::Text(format!("seal a letter: {what}"));
    let is_long = heading.len() > HEADING_BYTES_MAX || content.len() > SEALED_BYTES_MAX - SEAL_BYTES;
    let lengths = u16::try_from(heading.len()).ok().zip(u32::try_from(SEAL_BYTES + content.len()).ok()).filter(|_| !is_long);
    let (heading_bytes, sealed_bytes) = lengths.ok_or_else(|| failed("it is too long"))?;
    let to = VerifyingKey::from_bytes(&to.0).map_err(|_| failed("the receiver has no valid key"))?;
    let to = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(to.to_montgomery().as_bytes()).map_err(|error| failed(&error.to_string()))?;
    let sealed = hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(&OpModeS::Base, &to, PURPOSE, content, heading);
    let (key, sealed) = sealed.map_err(|error| failed(&error.to_string()))?;
    let mut out = Vec::with_capacity(MAGIC.len() + 6 + heading.len() + SEAL_BYTES + content.len() + SIGNATURE_BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&heading_bytes.to_le_bytes());
    out.extend_from_slice(heading);
    out.extend_from_slice(&sealed_bytes.to_le_bytes());
    out.extend_from_slice(&key.to_bytes());
    out.extend_from_slice(&sealed);
    let signature = from.signing()?.sign(&[PURPOSE, &out].concat());
    out.extend_from_slice(&signature.to_bytes());
    Ok(out)
}

impl<'a> Letter<'a> {
    /// Finds the parts of a letter.
    ///
    /// # Errors
    /// [`LetterFault::Short`] or [`LetterFault::Foreign`].
    pub fn look(bytes: &'a [u8]) -> Result<Letter<'a>, LetterFault> {
        let start = &bytes[..bytes.len().min(MAGIC.len())];
        if start != &MAGIC[..start.len()] {
            return Err(LetterFault::Foreign);
        }
        let length = |at: usize, count: usize| bytes.get(at..at + count).ok_or(LetterFault::Short);
        let heading_bytes = usize::from(u16::from_le_bytes(length(8, 2)?.try_into().map_err(|_| LetterFault::Short)?));
        if heading_bytes > HEADING_BYTES_MAX {
            return Err(LetterFault::Foreign);
        }
        let heading = length(10, heading_bytes)?;
        let at = 10 + heading_bytes;
        let sealed_bytes = u32::from_le_bytes(length(at, 4)?.try_into().map_err(|_| LetterFault::Short)?) as usize;
        if !(SEAL_BYTES..=SEALED_BYTES_MAX).contains(&sealed_bytes) {
            return Err(LetterFault::Foreign);
        }
        let sealed = length(at + 4, sealed_bytes)?;
        let end = at + 4 + sealed_bytes;
        let signature = length(end, SIGNATURE_BYTES)?;
        if bytes.len() != end + SIGNATURE_BYTES {
            return Err(LetterFault::Foreign);
        }
        Ok(Letter { heading, sealed, signed: &bytes[..end], signature })
    }

    /// Returns the heading, which anybody may have written as long as [`Letter::open`] has not said otherwise.
    pub fn heading(&self) -> &'a [u8] {
        self.heading
    }

    /// Returns the content, if `from` signed the letter and it is sealed for `to`.
    ///
    /// # Errors
    /// [`LetterFault::Signature`] or [`LetterFault::Sealed`].
    pub fn open(&self, to: &KeyPair, from: &PublicKey) -> Result<Vec<u8>, LetterFault> {
        let from = VerifyingKey::from_bytes(&from.0).map_err(|_| LetterFault::Signature)?;
        let signature = Signature::from_slice(self.signature).map_err(|_| LetterFault::Signature)?;
        from.verify_strict(&[PURPOSE, self.signed].concat(), &signature).map_err(|_| LetterFault::Signature)?;
        let to = to.signing().map_err(|_| LetterFault::Sealed)?.to_scalar_bytes();
        let to = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&to).map_err(|_| LetterFault::Sealed)?;
        let (key, sealed) = self.sealed.split_at(KEY_BYTES);
        let key = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(key).map_err(|_| LetterFault::Sealed)?;
        hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(&OpModeR::Base, &to, &key, PURPOSE, sealed, self.heading)
            .map_err(|_| LetterFault::Sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(bytes: &[u8], to: &KeyPair, from: &KeyPair) -> Result<Vec<u8>, LetterFault> {
        Letter::look(bytes)?.open(to, &from.public())
    }

    #[test]
    fn t14_a_letter_is_read_by_its_receiver_only_and_only_as_its_sender_wrote_it() {
        let (anna, bert, eve) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let bytes = seal(&anna, &bert.public(), b"to bert", b"the content").unwrap();
        assert_eq!(Letter::look(&bytes).unwrap().heading(), b"to bert");
        assert_eq!(opened(&bytes, &bert, &anna).unwrap(), b"the content");
        assert_eq!(opened(&bytes, &eve, &anna), Err(LetterFault::Sealed), "not for her");
        assert_eq!(opened(&bytes, &bert, &eve), Err(LetterFault::Signature), "not from her");
        assert!(!bytes.windows(11).any(|window| window == b"the content"));
        // Every bit that is flipped and every byte that is missing is noticed.
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(opened(&flipped, &bert, &anna).is_err(), "byte {at} bit {bit}");
            }
            assert_eq!(Letter::look(&bytes[..at]).unwrap_err(), LetterFault::Short, "{at}");
        }
        assert_eq!(Letter::look(&[&bytes[..], b"x"].concat()).unwrap_err(), LetterFault::Foreign);
        assert_eq!(Letter::look(b"something else").unwrap_err(), LetterFault::Foreign);
    }

    #[test]
    fn t8_a_length_that_is_claimed_allocates_nothing() {
        let bytes = [&MAGIC[..], &[0, 0], &[0xff; 4]].concat();
        assert_eq!(Letter::look(&bytes).unwrap_err(), LetterFault::Foreign);
        let (anna, bert) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        assert!(seal(&anna, &bert.public(), &[0; HEADING_BYTES_MAX + 1], b"").is_err());
    }
}
