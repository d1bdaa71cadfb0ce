//! Requests to Vault.
//!
//! The requests and the envelope of the answers are vaultrs's; the way they travel is ours, for
//! what its own client does not promise: no redirect takes the token elsewhere, no answer is longer
//! than a megabyte, nothing comes from `VAULT_*` or proxy variables, and no error holds (or logs)
//! an answer.

use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use http::{HeaderValue, Request, Response, StatusCode};
use rustify::Endpoint;
use rustify::errors::ClientError;
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls_platform_verifier::Verifier;
use serde::de::DeserializeOwned;
use vaultrs::api::{EndpointMiddleware, EndpointResult};
use zeroize::{Zeroize, Zeroizing};

use crate::secret::Secret;
use crate::secrets::error::{FetchError, SettingsError};
use crate::secrets::settings::VaultSettings;

/// Octets an answer may have.
pub(super) const ANSWER_MAX: usize = 1024 * 1024;

/// Idle connections kept.
const IDLE_MAX: usize = 2;

/// The way to one Vault.
pub(super) struct Http {
    client: reqwest::Client,
    settings: VaultSettings,
    /// The authorities of `ca_file`, as they were.
    authorities: Vec<CertificateDer<'static>>,
}

/// What Vault answered, success or not.
pub(super) struct Answer {
    /// The HTTP status.
    pub(super) status: StatusCode,
    body: Zeroizing<Vec<u8>>,
}

impl Http {
    pub(super) fn new(settings: &VaultSettings) -> Result<Self, SettingsError> {
        check_address(&settings.address)?;
        if let Some(namespace) = &settings.namespace
            && HeaderValue::from_str(namespace).is_err()
        {
            return Err(SettingsError::Namespace(namespace.clone()));
        }
        let tls = |e: reqwest::Error| SettingsError::Tls(last(&e).to_string());
        let authorities = authorities(settings.ca_file.as_deref())?;
        let client = reqwest::ClientBuilder::new()
            .tls_backend_preconfigured(tls_config(&authorities)?)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .timeout(settings.timeout)
            .connect_timeout(settings.timeout)
            .pool_max_idle_per_host(IDLE_MAX)
            .build()
            .map_err(tls)?;
        Ok(Self { client, settings: settings.clone(), authorities })
    }

    /// Whether `other` would do the same.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.settings == other.settings && self.authorities == other.authorities
    }

    pub(super) fn address(&self) -> &str {
        &self.settings.address
    }

    /// One request, with this token if with one. Any status that Vault itself answers is an answer;
    /// what says that it cannot answer now is an error.
    pub(super) async fn ask<E: Endpoint>(
        &self,
        token: Option<&Secret>,
        endpoint: E,
    ) -> Result<Answer, FetchError> {
        let mut middle = EndpointMiddleware {
            token: token.map(|t| t.expose().to_owned()).unwrap_or_default(),
            version: "v1".to_owned(),
            wrap: None,
            namespace: self.settings.namespace.clone(),
        };
        let done = endpoint.with_middleware(&middle).exec(self).await;
        middle.token.zeroize();
        let mut response = done.map_err(|_| self.garbage("the request cannot be made"))?.response;
        if let Some(error) = response.extensions_mut().remove::<FetchError>() {
            return Err(error);
        }
        let status = response.status();
        let body = Zeroizing::new(response.into_body());
        self.unable(status).map_or(Ok(Answer { status, body }), Err)
    }

    /// What an answer says; it holds `T` as its data.
    pub(super) fn parse<T: DeserializeOwned>(
        &self,
        answer: &Answer,
    ) -> Result<EndpointResult<T>, FetchError> {
        // The parser's own error may quote the answer.
        serde_json::from_slice(&answer.body)
            .map_err(|_| self.garbage("it is not the JSON that Vault answers"))
    }

    /// The error for an answer that makes no sense.
    pub(super) fn garbage(&self, why: &'static str) -> FetchError {
        FetchError::Garbage { address: self.address().to_owned(), why }
    }

    /// The error for a status that is neither a success nor a known refusal.
    pub(super) fn failed(&self, status: StatusCode) -> FetchError {
        FetchError::Failed { address: self.address().to_owned(), status: status.as_u16() }
    }

    /// Whether the server says that it cannot answer, and why.
    fn unable(&self, status: StatusCode) -> Option<FetchError> {
        let address = self.address().to_owned();
        match status.as_u16() {
            503 => Some(FetchError::Sealed { address }),
            status @ (429 | 472 | 473) => Some(FetchError::Standby { address, status }),
            status @ 300..=399 => Some(FetchError::Redirected { address, status }),
            500..=599 => Some(self.failed(status)),
            _ => None,
        }
    }

    async fn exchange(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, FetchError> {
        let mut request = reqwest::Request::try_from(request)
            .map_err(|_| self.garbage("the request cannot be made"))?;
        if let Some(token) = request.headers_mut().get_mut("X-Vault-Token") {
            token.set_sensitive(true);
        }
        let mut got = self.client.execute(request).await.map_err(|e| self.broken(&e))?;
        let status = got.status();
        // Room for all of it at once: a buffer that grows leaves copies behind.
        let length = got.content_length().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let mut body = Zeroizing::new(Vec::with_capacity(length.clamp(8 * 1024, ANSWER_MAX)));
        while let Some(chunk) = got.chunk().await.map_err(|e| self.broken(&e))? {
            if body.len() + chunk.len() > ANSWER_MAX {
                return Err(self.garbage("it is longer than a megabyte"));
            }
            body.extend_from_slice(&chunk);
        }
        let mut response = Response::new(std::mem::take(&mut *body));
        *response.status_mut() = status;
        Ok(response)
    }

    fn broken(&self, error: &reqwest::Error) -> FetchError {
        let address = self.address().to_owned();
        if error.is_timeout() {
            return FetchError::Slow { address, limit: self.settings.timeout };
        }
        FetchError::Unreachable { address, why: last(error).to_string() }
    }
}

#[async_trait]
impl rustify::client::Client for Http {
    /// Never an error for rustify, which would log it: a failure travels as an extension.
    async fn send(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, ClientError> {
        Ok(self.exchange(request).await.unwrap_or_else(|error| {
            let mut response = Response::new(Vec::new());
            response.extensions_mut().insert(error);
            response
        }))
    }

    fn base(&self) -> &str {
        &self.settings.address
    }

    /// All statuses are answers; rustify's own puts the body of a refusal into an error.
    async fn execute(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, ClientError> {
        self.send(request).await
    }
}

/// vaultrs and rustify panic on addresses they can't take apart.
fn check_address(address: &str) -> Result<(), SettingsError> {
    let bad = |why| SettingsError::Address { address: address.to_owned(), why };
    let url = reqwest::Url::parse(address)
        .map_err(|_| bad("is no address; write https://vault.example:8200"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("must begin with https:// (or http://)"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(SettingsError::Address {
            address: "(hidden)".to_owned(),
            why: "must not hold a login",
        });
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(bad("must end after the port; /v1 and the path are added"));
    }
    Ok(())
}

fn authorities(ca_file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let Some(path) = ca_file else { return Ok(Vec::new()) };
    let bad = |why: String| SettingsError::CaFile { path: path.into(), why };
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|e| bad(e.to_string()))?;
    if found.is_empty() { Err(bad("holds no certificate".to_owned())) } else { Ok(found) }
}

/// The system's authorities and these.
fn tls_config(extra: &[CertificateDer<'static>]) -> Result<ClientConfig, SettingsError> {
    let extra = extra.iter().cloned();
    let failed = |e: rustls::Error| SettingsError::Tls(e.to_string());
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Verifier::new_with_extra_roots(extra, Arc::clone(&provider)).map_err(failed)?;
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// The innermost cause: what the system or TLS said. The outer ones repeat the address.
fn last<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_scheme_host_and_port() {
        for good in ["https://vault.example:8200", "http://127.0.0.1:8200/", "https://[::1]:8200"] {
            assert!(check_address(good).is_ok(), "{good}");
        }
        for bad in [
            "vault.example:8200",
            "",
            "https://",
            "ftp://vault.example",
            "https://vault.example/v1",
            "https://vault.example/?x",
            "mailto:x@y.example",
        ] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
        let login = check_address("https://me:hunter2@vault.example").unwrap_err();
        assert!(!login.to_string().contains("hunter2"));
    }
}
