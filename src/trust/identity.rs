//! What a node shows of itself, and the text form of identities: PEM blocks in one file, so that one rename changes all of it at once.

use crate::base::ids::{NodeName, ServerId};
use crate::trust::authority;
use crate::trust::keys::{KeyPair, PublicKey, TrustError};
use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A part of an identity file.
pub(super) enum Block<'a> {
    /// A private key, PKCS#8.
    Key(&'a [u8]),
    /// A certificate.
    Certificate(&'a [u8]),
}

/// Returns the text of an identity file.
pub(super) fn write_blocks(blocks: &[Block<'_>]) -> String {
    let blocks: Vec<pem::Pem> = blocks
        .iter()
        .map(|block| match block {
            Block::Key(bytes) => pem::Pem::new("PRIVATE KEY", *bytes),
            Block::Certificate(bytes) => pem::Pem::new("CERTIFICATE", *bytes),
        })
        .collect();
    pem::encode_many_config(&blocks, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
}

/// Reads the key and the certificates of an identity file.
pub(super) fn read_blocks(text: &str) -> Result<(KeyPair, Vec<CertificateDer<'static>>), TrustError> {
    let (mut key, mut certificates) = (None, Vec::new());
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()) {
        let (kind, bytes) = section.map_err(|error| TrustError::Text(format!("it is no identity: {error}")))?;
        match kind {
            SectionKind::PrivateKey => key = Some(KeyPair::from_pkcs8(&bytes)?),
            SectionKind::Certificate => certificates.push(CertificateDer::from(bytes)),
            _ => return Err(TrustError::Text("it has a part that is neither a private key nor a certificate".into())),
        }
    }
    Ok((key.ok_or_else(|| TrustError::Text("it has no private key".into()))?, certificates))
}

/// Returns the key that a certificate is for; `None` if it is none of ours.
pub fn key_of(certificate: &CertificateDer<'_>) -> Option<PublicKey> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    PublicKey::from_spki(&parsed.subject_public_key_info())
}

/// A node that has been let in: its key, its certificate, and the authority of its server.
#[derive(Debug)]
pub struct NodeIdentity {
    key: KeyPair,
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    server: ServerId,
    node: NodeName,
}

impl NodeIdentity {
    /// Puts one together.
    ///
    /// # Errors
    /// The certificate is for another key, or names no node.
    pub fn new(key: KeyPair, certificate: CertificateDer<'static>, authority: CertificateDer<'static>) -> Result<NodeIdentity, TrustError> {
        if key_of(&certificate) != Some(key.public()) {
            return Err(TrustError::Text("its key and its certificate do not belong together".into()));
        }
        let named = authority::node_in(&certificate, None);
        let (server, node) = named.ok_or_else(|| TrustError::Text("its certificate names no node".into()))?;
        Ok(NodeIdentity { key, certificate, authority, server, node })
    }

    /// Reads what [`NodeIdentity::to_text`] wrote.
    ///
    /// # Errors
    /// The text lacks a part, or the parts do not belong together.
    pub fn from_text(text: &str) -> Result<NodeIdentity, TrustError> {
        let (key, certificates) = read_blocks(text)?;
        let [certificate, authority] = <[_; 2]>::try_from(certificates)
            .map_err(|found| TrustError::Text(format!("it has {} certificates where two are expected", found.len())))?;
        NodeIdentity::new(key, certificate, authority)
    }

    /// Returns the text of the file. Secret.
    pub fn to_text(&self) -> String {
        write_blocks(&[Block::Key(&self.key.to_pkcs8()), Block::Certificate(&self.certificate), Block::Certificate(&self.authority)])
    }

    /// Returns the same with another certificate for its key.
    ///
    /// # Errors
    /// The certificate is for another key, or another node.
    pub fn renewed(&self, certificate: CertificateDer<'static>) -> Result<NodeIdentity, TrustError> {
        let renewed = NodeIdentity::new(KeyPair::from_pkcs8(&self.key.to_pkcs8())?, certificate, self.authority.clone())?;
        match (&renewed.server, &renewed.node) == (&self.server, &self.node) {
            true => Ok(renewed),
            false => Err(TrustError::Text(format!("the server sent a certificate of {} for {}", renewed.node, self.node))),
        }
    }

    /// Returns the node.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Returns the server that let it in.
    pub fn server(&self) -> ServerId {
        self.server
    }

    /// Returns the certificate of that server's authority.
    pub fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    /// Returns its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Returns its key, by which it signs letters too and opens those for it. Secret.
    pub fn key(&self) -> &KeyPair {
        &self.key
    }

    /// Returns its public key.
    pub fn public(&self) -> PublicKey {
        self.key.public()
    }

    /// Returns the key in the form that TLS takes. Secret.
    pub(super) fn tls_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.to_pkcs8()).into()
    }
}

/// Returns the text of a file that holds a key without a certificate: one that asks to be let in. Secret.
pub fn key_text(key: &KeyPair) -> String {
    write_blocks(&[Block::Key(&key.to_pkcs8())])
}

/// Reads what [`key_text`] wrote.
///
/// # Errors
/// It is no key.
pub fn read_key(text: &str) -> Result<KeyPair, TrustError> {
    match read_blocks(text)? {
        (key, certificates) if certificates.is_empty() => Ok(key),
        _ => Err(TrustError::Text("it has a certificate where only a key is expected".into())),
    }
}
