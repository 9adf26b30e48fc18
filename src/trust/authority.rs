//! The server's certificate authority. It signs what nodes and the server itself show in TLS, and the server's letters (`trust::letter`).
//!
//! A certificate says only that the authority has seen this key. Which node a key belongs to, and whether that node may come in, stands
//! in the server database, so that a node is cut off by one row there (T1) and no list of revoked certificates is needed.

use crate::base::ids::{NodeName, ServerId};
use crate::trust::identity::{self, Block};
use crate::trust::keys::{KeyPair, PublicKey, TrustError};
use crate::trust::token::Fingerprint;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PublicKeyData,
    SanType,
};
use rustls::pki_types::CertificateDer;
use std::fmt;
use time::{Duration, OffsetDateTime};

/// How long a certificate is good for, in seconds (90 days).
pub const CERTIFICATE_SECONDS: i64 = 90 * 24 * 60 * 60;
/// A certificate counts from so many seconds before it was made, for clocks that are a little behind (a day).
const BEFORE_SECONDS: i64 = 24 * 60 * 60;
/// The name that every server's certificate carries. A server is known by its authority, not by its address, so it can move.
pub const SERVER_NAME: &str = "server.dockmaster";

/// The authority of one server.
pub struct Authority {
    issuer: Issuer<'static, rcgen::KeyPair>,
    certificate: CertificateDer<'static>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", self.fingerprint())
    }
}

fn failed(what: &'static str) -> impl FnOnce(rcgen::Error) -> TrustError {
    move |source| TrustError::Certificate { what, source }
}

/// What is the same in the certificate of an authority each time it is described.
fn described() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.distinguished_name.push(DnType::CommonName, "Dockmaster server authority");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

impl Authority {
    /// Makes a new one. Its own certificate does not end: it is known by its fingerprint, and a wrong clock must not matter to it.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn generate() -> Result<Authority, TrustError> {
        let key = KeyPair::generate()?.0;
        let params = described();
        let certificate = params.self_signed(&key).map_err(failed("make the certificate of the authority"))?;
        Ok(Authority { issuer: Issuer::new(params, key), certificate: certificate.into() })
    }

    /// Reads what [`Authority::to_text`] wrote.
    ///
    /// # Errors
    /// The text lacks a part, or the parts do not belong together.
    pub fn from_text(text: &str) -> Result<Authority, TrustError> {
        let (key, certificates) = identity::read_blocks(text)?;
        let [certificate] = <[_; 1]>::try_from(certificates)
            .map_err(|found| TrustError::Text(format!("it has {} certificates where one is expected", found.len())))?;
        if identity::key_of(&certificate) != Some(key.public()) {
            return Err(TrustError::Text("its key and its certificate do not belong together".into()));
        }
        Ok(Authority { issuer: Issuer::new(described(), key.0), certificate })
    }

    /// Returns key and certificate as text. Secret.
    pub fn to_text(&self) -> String {
        identity::write_blocks(&[Block::Key(&self.issuer.key().serialize_der()), Block::Certificate(&self.certificate)])
    }

    /// Returns its key, by which the server signs letters too and opens those for it. Secret.
    ///
    /// # Errors
    /// Never in practice: it was read before.
    pub fn letter_key(&self) -> Result<KeyPair, TrustError> {
        KeyPair::from_pkcs8(&self.issuer.key().serialize_der())
    }

    /// Returns its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Returns what tokens carry of it.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Signs the key of a node. `now` in seconds since 1970.
    ///
    /// # Errors
    /// The library refuses.
    pub fn issue_to_node(
        &self,
        server: ServerId,
        node: &NodeName,
        key: &PublicKey,
        now: i64,
    ) -> Result<CertificateDer<'static>, TrustError> {
        let mut params = CertificateParams::default();
        let name = node_urn(server, node);
        params.subject_alt_names = vec![SanType::URI(name.try_into().map_err(failed("name a node in its certificate"))?)];
        params.distinguished_name.push(DnType::CommonName, node.as_str());
        self.issue(params, ExtendedKeyUsagePurpose::ClientAuth, key, now)
    }

    /// Makes a key and certificate for the server's end of sessions. `now` in seconds since 1970.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn issue_to_server(&self, now: i64) -> Result<(KeyPair, CertificateDer<'static>), TrustError> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec![SERVER_NAME.to_owned()]).map_err(failed("name the server in its certificate"))?;
        let certificate = self.issue(params, ExtendedKeyUsagePurpose::ServerAuth, &key.public(), now)?;
        Ok((key, certificate))
    }

    fn issue(
        &self,
        mut params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
        key: &impl PublicKeyData,
        now: i64,
    ) -> Result<CertificateDer<'static>, TrustError> {
        let now =
            OffsetDateTime::from_unix_timestamp(now).map_err(|error| TrustError::Text(format!("the clock of this machine: {error}")))?;
        params.not_before = now - Duration::seconds(BEFORE_SECONDS);
        params.not_after = now + Duration::seconds(CERTIFICATE_SECONDS);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let issued: Certificate = params.signed_by(key, &self.issuer).map_err(failed("sign a certificate"))?;
        Ok(issued.into())
    }
}

/// The name of a node in its certificate.
fn node_urn(server: ServerId, node: &NodeName) -> String {
    format!("urn:dock:{server}:{node}")
}

/// Returns the node that a certificate names; `None` if it names none of this server.
pub fn node_in(certificate: &CertificateDer<'_>, server: Option<ServerId>) -> Option<(ServerId, NodeName)> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    let named = parsed.valid_uri_names().find_map(|name| {
        let (id, node) = name.strip_prefix("urn:dock:")?.split_once(':')?;
        Some((id.parse::<ServerId>().ok()?, node.parse::<NodeName>().ok()?))
    })?;
    server.is_none_or(|server| server == named.0).then_some(named)
}
