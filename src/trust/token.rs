//! Enrolment tokens: what an administrator gives to the person who sets a node up, once.
//!
//! A token is `DM1-` and one text of letters and digits: a secret of 128 bits, the fingerprint of the server's certificate authority, and
//! a check of both. So a node knows before it says anything whom it talks to, and a slip of the hand is told from a wrong token. The server
//! keeps the SHA-256 of the secret: over 128 random bits a slow hash gains nothing.

use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// What every token begins with.
const BEGINNING: &str = "DM1-";
/// Letters of the text, five bits each: no 0/O, 1/I/L to mistake.
const ALPHABET: &[u8; 32] = b"23456789ABCDEFGHJKMNPQRSTUVWXYZ_";
/// Bytes of secret, fingerprint and check: 80 letters.
const BYTES: usize = 16 + 32 + 2;
/// How long a token may be used, in seconds (a day).
pub const TOKEN_SECONDS: i64 = 24 * 60 * 60;

/// SHA-256 of the certificate of a server's authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Returns that of a certificate in DER.
    pub fn of(certificate: &[u8]) -> Fingerprint {
        Fingerprint(Sha256::digest(certificate).into())
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Fingerprint, String> {
        let bytes = hex::decode(text.replace(':', "")).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Fingerprint).ok_or_else(|| format!("`{text}` is no fingerprint"))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.0.iter().map(|byte| format!("{byte:02X}")).collect();
        f.write_str(&pairs.join(":"))
    }
}

/// The secret part of a token. `Debug` does not show it.
#[derive(Clone, Copy)]
pub struct Secret(pub [u8; 16]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// Returns what the server keeps of it, and looks it up by: who does not know the secret cannot steer its hash, so the time that the
    /// look-up takes tells nothing (T18).
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }
}

/// A whole token.
#[derive(Debug, Clone, Copy)]
pub struct Token {
    /// Proves that the administrator let this node in.
    pub secret: Secret,
    /// The authority of the server that it is for.
    pub server: Fingerprint,
}

impl Token {
    /// Makes a token for a server.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn generate(server: Fingerprint) -> Result<Token, getrandom::Error> {
        let mut secret = [0; 16];
        getrandom::fill(&mut secret)?;
        Ok(Token { secret: Secret(secret), server })
    }

    /// Returns the text. Secret: it is shown once, on the terminal of the administrator.
    pub fn reveal(&self) -> String {
        let mut bytes = [0; BYTES];
        bytes[..16].copy_from_slice(&self.secret.0);
        bytes[16..48].copy_from_slice(&self.server.0);
        let check = check(&bytes[..48]);
        bytes[48..].copy_from_slice(&check);
        let mut text = String::from(BEGINNING);
        for group in bytes.chunks(5) {
            let value = group.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
            for place in (0..8).rev() {
                text.push(char::from(ALPHABET[(value >> (place * 5) & 31) as usize]));
            }
        }
        text
    }
}

fn check(bytes: &[u8]) -> [u8; 2] {
    let hash = Sha256::digest(bytes);
    [hash[0], hash[1]]
}

/// Why a text is no token. Says nothing of the text itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Another beginning.
    #[error("a token begins with {BEGINNING}; `dockmaster node token NAME` gives one")]
    Beginning,
    /// Too short, too long, or other signs.
    #[error("a token has 80 letters and digits after {BEGINNING}, this has {0}: was it copied whole?")]
    Length(usize),
    /// A sign that tokens have not.
    #[error("sign {0} of the token is none that tokens have: was it copied right?")]
    Sign(usize),
    /// The check is wrong.
    #[error("the token was mistyped: its check does not fit")]
    Check,
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Token, TokenError> {
        let letters = text.trim().strip_prefix(BEGINNING).ok_or(TokenError::Beginning)?;
        if letters.len() != BYTES / 5 * 8 {
            return Err(TokenError::Length(letters.chars().count()));
        }
        let mut bytes = [0; BYTES];
        for (group, (letters, out)) in letters.as_bytes().chunks(8).zip(bytes.chunks_mut(5)).enumerate() {
            let mut value = 0u64;
            for (place, letter) in letters.iter().enumerate() {
                let found = ALPHABET.iter().position(|known| *known == letter.to_ascii_uppercase());
                value = value << 5 | found.ok_or(TokenError::Sign(group * 8 + place + 1))? as u64;
            }
            out.copy_from_slice(&value.to_be_bytes()[3..]);
        }
        if bytes[48..] != check(&bytes[..48]) {
            return Err(TokenError::Check);
        }
        let (mut secret, mut server) = ([0; 16], [0; 32]);
        secret.copy_from_slice(&bytes[..16]);
        server.copy_from_slice(&bytes[16..48]);
        Ok(Token { secret: Secret(secret), server: Fingerprint(server) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_writing_and_reading_in_either_case() {
        let token = Token::generate(Fingerprint([0xA5; 32])).unwrap();
        for text in [token.reveal(), format!(" DM1-{}\n", token.reveal()[4..].to_ascii_lowercase())] {
            let read: Token = text.parse().unwrap();
            assert_eq!((read.secret.0, read.server), (token.secret.0, token.server));
        }
        assert!(!format!("{token:?}").contains(&format!("{:?}", token.secret.0)));
        assert_eq!(token.server.to_string().parse(), Ok(token.server));
        assert!("A5:A5".parse::<Fingerprint>().is_err());
    }

    #[test]
    fn every_slip_of_the_hand_is_noticed() {
        let text = Token::generate(Fingerprint([7; 32])).unwrap().reveal();
        for place in 4..text.len() {
            let mut slip = text.clone().into_bytes();
            slip[place] = if slip[place] == b'7' { b'8' } else { b'7' };
            // Two bytes of check: one slip in 65,536 would pass, and would then be a wrong token.
            assert_eq!(String::from_utf8(slip).unwrap().parse::<Token>().err(), Some(TokenError::Check), "sign {place}");
        }
        assert_eq!(text[..80].parse::<Token>().err(), Some(TokenError::Length(76)));
        assert_eq!(format!("{}0", &text[..83]).parse::<Token>().err(), Some(TokenError::Sign(80)));
        assert_eq!("hello".parse::<Token>().err(), Some(TokenError::Beginning));
        assert_eq!(format!("DM1-{}", "é".repeat(40)).parse::<Token>().err(), Some(TokenError::Sign(1)));
    }
}
