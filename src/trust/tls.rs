//! What TLS is told to demand: version 1.3 only, one provider, no tickets, both sides shown and proved.

use crate::base::clock::now_seconds;
use crate::trust::authority::{Authority, CERTIFICATE_SECONDS, SERVER_NAME};
use crate::trust::identity::NodeIdentity;
use crate::trust::keys::TrustError;
use crate::trust::token::Fingerprint;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Lines for sessions (ALPN).
pub const SESSION: &[u8] = b"dock";
/// Lines on which a node is let in, or gets a new certificate.
pub const ENROL: &[u8] = b"dock-enrol";

/// The server makes itself a new certificate after so many seconds (a month).
const SERVER_RENEWAL_SECONDS: i64 = 30 * 24 * 60 * 60;
/// A node asks for a new certificate when so many seconds are left of it (a third).
const NODE_RENEWAL_SECONDS: i64 = CERTIFICATE_SECONDS / 3;
/// The one provider of cryptography. Another is chosen here and nowhere else.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn failed(what: &'static str) -> impl FnOnce(Error) -> TrustError {
    move |source| TrustError::Tls { what, source }
}

fn roots(authority: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, TrustError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).map_err(failed("trust the authority"))?;
    Ok(Arc::new(roots))
}

/// Returns what the server demands and shows.
///
/// # Errors
/// The authority is unusable.
pub fn server(authority: &Arc<Authority>) -> Result<ServerConfig, TrustError> {
    let verifier = node_certificates(authority.certificate())?;
    let leaf = Leaf { authority: Arc::clone(authority), current: Mutex::new(None) };
    leaf.current(now_seconds())?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed("set TLS 1.3"))?
        .with_client_cert_verifier(Arc::new(Node(verifier)))
        .with_cert_resolver(Arc::new(leaf));
    config.alpn_protocols = vec![SESSION.to_vec(), ENROL.to_vec()];
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// Returns what a node that was let in demands and shows; `alpn` is what the line is for.
///
/// # Errors
/// The identity is unusable.
pub fn node(identity: &NodeIdentity, alpn: &[u8]) -> Result<ClientConfig, TrustError> {
    let config = client(Arc::new(Server(server_certificates(identity.authority())?)))?
        .with_client_auth_cert(vec![identity.certificate().clone()], identity.tls_key())
        .map_err(failed("use the certificate of this node"))?;
    Ok(with_alpn(config, alpn))
}

/// Returns what a node demands that has nothing but a token: the authority that the token names, and no other.
///
/// # Errors
/// The provider is unusable.
pub fn newcomer(server: Fingerprint) -> Result<ClientConfig, TrustError> {
    let config = client(Arc::new(Pinned(server)))?.with_no_client_auth();
    Ok(with_alpn(config, ENROL))
}

fn client(
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, TrustError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed("set TLS 1.3"))?
        .dangerous()
        .with_custom_certificate_verifier(verifier))
}

fn with_alpn(mut config: ClientConfig, alpn: &[u8]) -> ClientConfig {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config
}

/// The name that servers show.
///
/// # Errors
/// Never, for the name is a constant; the library does not know that.
pub fn server_name() -> Result<ServerName<'static>, TrustError> {
    ServerName::try_from(SERVER_NAME).map_err(|error| TrustError::Text(error.to_string()))
}

/// What a clock has to say against a certificate that is sound otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Untimely {
    Ended,
    NotYet,
}

/// Checks a certificate by the clock, and if only the clock speaks against it, by the time that the certificate asks for.
///
/// Clocks of devices are wrong, by years when a battery is empty, and nothing here may depend on that (I6). Nor is anything lost by it: the key
/// is proved in any case; whether a node may come in stands in the server database; and who can steal the key of a server's certificate, which
/// is in its memory only, can steal that of its authority as well.
fn whenever<T>(now: UnixTime, verify: impl Fn(UnixTime) -> Result<T, Error>) -> Result<(T, Option<Untimely>), Error> {
    match verify(now) {
        Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            verify(not_after).map(|verified| (verified, Some(Untimely::Ended)))
        }
        Err(Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. })) => {
            verify(not_before).map(|verified| (verified, Some(Untimely::NotYet)))
        }
        verified => verified.map(|verified| (verified, None)),
    }
}

/// Checks a server's certificate, and says so if the clock of this machine is against it.
fn of_server(now: UnixTime, verify: impl Fn(UnixTime) -> Result<ServerCertVerified, Error>) -> Result<ServerCertVerified, Error> {
    let (verified, untimely) = whenever(now, verify)?;
    if let Some(untimely) = untimely {
        let clock = i64::try_from(now.as_secs()).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
        let clock = clock.map_or_else(|| "a time beyond all calendars".to_owned(), |time| time.to_string());
        let what = match untimely {
            Untimely::Ended => "has ended",
            Untimely::NotYet => "is not good yet",
        };
        tracing::warn!(
            "the clock of this machine shows {clock}, by which the certificate of the server {what}: one of the two clocks is wrong"
        );
    }
    Ok(verified)
}

fn server_certificates(authority: &CertificateDer<'static>) -> Result<Arc<WebPkiServerVerifier>, TrustError> {
    WebPkiServerVerifier::builder_with_provider(roots(authority)?, provider())
        .build()
        .map_err(|error| TrustError::Text(format!("check the server's certificate: {error}")))
}

fn node_certificates(authority: &CertificateDer<'static>) -> Result<Arc<dyn ClientCertVerifier>, TrustError> {
    WebPkiClientVerifier::builder_with_provider(roots(authority)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TrustError::Text(format!("check certificates of nodes: {error}")))
}

/// Says whether certificates of nodes, which were checked otherwise, are good at a time.
#[derive(Debug, Clone)]
pub struct Calendar(Arc<dyn ClientCertVerifier>);

impl Calendar {
    /// Judges certificates of an authority.
    ///
    /// # Errors
    /// The authority is unusable.
    pub fn of(authority: &Authority) -> Result<Calendar, TrustError> {
        Ok(Calendar(node_certificates(authority.certificate())?))
    }

    /// Whether a certificate is good at a time, in seconds since 1970.
    pub fn is_good(&self, certificate: &CertificateDer<'_>, now: i64) -> bool {
        self.0.verify_client_cert(certificate, &[], at(now)).is_ok()
    }
}

/// Whether a node should ask for a new certificate, for little is left of its own.
///
/// # Errors
/// The identity is unusable.
pub fn is_renewal_due(identity: &NodeIdentity, now: i64) -> Result<bool, TrustError> {
    let verifier = node_certificates(identity.authority())?;
    let verified = whenever(at(now + NODE_RENEWAL_SECONDS), |time| verifier.verify_client_cert(identity.certificate(), &[], time));
    Ok(matches!(verified, Ok((_, Some(Untimely::Ended)))))
}

fn at(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds.max(0).unsigned_abs()))
}

/// The server's own certificate, made anew from time to time, so that no service has to be started again for it.
#[derive(Debug)]
struct Leaf {
    authority: Arc<Authority>,
    current: Mutex<Option<(i64, Arc<CertifiedKey>)>>,
}

impl Leaf {
    fn current(&self, now: i64) -> Result<Arc<CertifiedKey>, TrustError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, certified)) = &*current
            && (0..SERVER_RENEWAL_SECONDS).contains(&(now - made))
        {
            return Ok(Arc::clone(certified));
        }
        let (key, certificate) = self.authority.issue_to_server(now)?;
        let key = PrivatePkcs8KeyDer::from(key.to_pkcs8()).into();
        // The authority goes along: a newcomer knows its fingerprint only.
        let chain = vec![certificate, self.authority.certificate().clone()];
        let certified = Arc::new(CertifiedKey::from_der(chain, key, &provider()).map_err(failed("use the server's certificate"))?);
        *current = Some((now, Arc::clone(&certified)));
        Ok(certified)
    }
}

impl ResolvesServerCert for Leaf {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current(now_seconds()).inspect_err(|error| tracing::error!("{error}")).ok()
    }
}

/// Checks signatures as the provider does: that has nothing to do with time.
macro_rules! signatures_as_usual {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            rustls::crypto::verify_tls12_signature(message, certificate, signature, &provider().signature_verification_algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            rustls::crypto::verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

/// Checks certificates of nodes. One that has ended is let through the handshake, for it may be renewed; sessions look at that.
#[derive(Debug)]
struct Node(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Node {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        whenever(now, |time| self.0.verify_client_cert(end_entity, intermediates, time)).map(|(verified, _)| verified)
    }

    signatures_as_usual!();
}

/// Checks the certificate of the server by the authority that let this node in.
#[derive(Debug)]
struct Server(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for Server {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        of_server(now, |time| self.0.verify_server_cert(end_entity, intermediates, name, ocsp, time))
    }

    signatures_as_usual!();
}

/// Takes the server whose authority a token names.
#[derive(Debug)]
struct Pinned(Fingerprint);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates.iter().find(|certificate| Fingerprint::of(certificate) == self.0);
        let Some(authority) = authority else {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        let verifier = server_certificates(&authority.clone().into_owned()).map_err(|error| Error::General(error.to_string()))?;
        of_server(now, |time| verifier.verify_server_cert(end_entity, &[], name, ocsp, time))
    }

    signatures_as_usual!();
}
