//! TLS to an upstream: which certificate is accepted, and what was presented.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::settings::{Settings, SettingsError, TlsMode, Verify};

/// How to turn a connection to one upstream into TLS.
#[derive(Clone)]
pub(crate) struct Tls {
    /// mail-send takes one of these.
    pub(crate) connector: TlsConnector,
    /// The name to verify and to send as SNI, where the settings fix it.
    server_name: Option<String>,
    /// The certificates of the first handshake, leaf first; also of one that failed.
    pub(crate) presented: Arc<OnceLock<Vec<CertificateDer<'static>>>>,
}

impl Tls {
    /// What the settings ask for; `None` when it is not TLS.
    pub(crate) fn new(settings: &Settings) -> Result<Option<Self>, SettingsError> {
        if settings.tls == Some(TlsMode::None) {
            return Ok(None);
        }
        let name = settings.tls_server_name.as_deref().or(settings.host.as_deref());
        let server_name = name.map(without_dot);
        if let Some(name) = server_name.filter(|name| ServerName::try_from(*name).is_err()) {
            return Err(SettingsError::ServerName(name.into()));
        }
        let server_name = server_name.map(str::to_owned);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let presented = Arc::new(OnceLock::new());
        let verifier = Verifier {
            trust: Trust::new(settings, &provider)?,
            provider: Arc::clone(&provider),
            presented: Arc::clone(&presented),
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| SettingsError::Tls(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(Some(Self { connector: Arc::new(config).into(), server_name, presented }))
    }

    /// The name to verify and to send as SNI, on a connection to `host`.
    pub(crate) fn server_name<'a>(&'a self, host: &'a str) -> &'a str {
        self.server_name.as_deref().unwrap_or_else(|| without_dot(host))
    }
}

/// A name without the dot of the DNS root: certificates do not have it.
fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// What makes a certificate acceptable.
#[derive(Debug)]
enum Trust {
    /// A chain to an authority; or the very certificate, listed in `ca_file`.
    Authorities {
        chain: Arc<dyn ServerCertVerifier>,
        listed: Vec<CertificateDer<'static>>,
        check_name: bool,
    },
    /// The leaf's SHA-256.
    Fingerprint([u8; 32]),
    /// Nothing.
    Anything,
}

impl Trust {
    fn new(settings: &Settings, provider: &Arc<CryptoProvider>) -> Result<Self, SettingsError> {
        let check_name = match settings.verify {
            Verify::Full => true,
            Verify::CaOnly => false,
            Verify::Fingerprint(hash) => return Ok(Self::Fingerprint(hash)),
            Verify::None => return Ok(Self::Anything),
        };
        let Some(path) = &settings.ca_file else {
            let chain = rustls_platform_verifier::Verifier::new(Arc::clone(provider))
                .map_err(|e| SettingsError::Tls(e.to_string()))?;
            return Ok(Self::Authorities { chain: Arc::new(chain), listed: vec![], check_name });
        };
        let listed = certificates(path)?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(listed.iter().cloned());
        let chain = WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(provider))
            .build()
            .map_err(|e| SettingsError::Tls(format!("{}: {e}", path.display())))?;
        Ok(Self::Authorities { chain, listed, check_name })
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        match self {
            Self::Anything => Ok(()),
            Self::Fingerprint(wanted) if Sha256::digest(leaf).as_slice() == wanted => Ok(()),
            Self::Fingerprint(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
            Self::Authorities { listed, check_name, .. } if listed.contains(leaf) => {
                check_dates(leaf, now)?;
                if *check_name {
                    verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
                }
                Ok(())
            }
            Self::Authorities { chain, check_name, .. } => {
                match chain.verify_server_cert(leaf, intermediates, name, &[], now) {
                    // rustls looks at the name last, when the chain was found good.
                    Err(rustls::Error::InvalidCertificate(
                        CertificateError::NotValidForName
                        | CertificateError::NotValidForNameContext { .. },
                    )) if !check_name => Ok(()),
                    verdict => verdict.map(|_| ()),
                }
            }
        }
    }
}

/// A certificate that is trusted by itself: webpki would refuse it, for `openssl req -x509` marks
/// it as an authority. So its dates are checked here.
fn check_dates(leaf: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let (_, certificate) =
        X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
    let validity = certificate.validity();
    let time = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if time > validity.not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    if time < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    Ok(())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let failed = |source: io::Error| SettingsError::CaFile { path: path.into(), source };
    let pem = std::fs::read(path).map_err(failed)?;
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match list {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) => Err(failed(io::Error::other("no certificate in it"))),
        Err(e) => Err(failed(io::Error::other(e.to_string()))),
    }
}

/// Applies [`Trust`], and remembers what it saw.
#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
    presented: Arc<OnceLock<Vec<CertificateDer<'static>>>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.presented.get_or_init(|| {
            let rest = intermediates.iter().map(|c| c.clone().into_owned());
            std::iter::once(leaf.clone().into_owned()).chain(rest).collect()
        });
        self.trust.check(leaf, intermediates, name, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
