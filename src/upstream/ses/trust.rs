//! The HTTP client: its TLS, and whom it trusts.

use std::path::Path;
use std::time::Duration;

use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::settings::SettingsError;

/// An unused connection is closed after so long: sooner than the service does it, for a request on
/// a connection that is just being closed ends as unconfirmed.
const IDLE: Duration = Duration::from_secs(5);

/// A client for `http` and `https`.
///
/// The system's authorities are read when it is first used.
pub(super) fn https_client(ca_file: Option<&Path>) -> Result<SharedHttpClient, SettingsError> {
    let mut trusted = TrustStore::default();
    if let Some(path) = ca_file {
        trusted = trusted.with_pem_certificate(authorities(path)?);
    }
    let context = TlsContext::builder()
        .with_trust_store(trusted)
        .build()
        .map_err(|e| SettingsError::Tls(e.to_string()))?;
    Ok(Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .tls_context(context)
        .pool_idle_timeout(IDLE)
        .build_https())
}

/// A client that has no use for certificates, for an emulator.
pub(super) fn http_client() -> SharedHttpClient {
    Builder::new().pool_idle_timeout(IDLE).build_http()
}

/// The PEM text of a file, each certificate of which was looked at: the client panics at the first
/// request when there is a bad one.
fn authorities(path: &Path) -> Result<Vec<u8>, SettingsError> {
    let bad = |why: String| SettingsError::Certificate { path: path.into(), why };
    let pem = std::fs::read(path)
        .map_err(|source| SettingsError::CaFile { path: path.into(), source })?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| bad(e.to_string()))?;
        roots.add(certificate).map_err(|e| bad(e.to_string()))?;
    }
    if roots.is_empty() { Err(bad("no CERTIFICATE in it".into())) } else { Ok(pem) }
}
