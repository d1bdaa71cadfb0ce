//! Requests to SES, signed, and what went wrong with them.
//!
//! The SDK tries nothing again: SES has no idempotency token, and the queue knows better when to.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_config::SdkConfig;
use aws_credential_types::Credentials as AwsCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use aws_sdk_sesv2::config::retry::RetryConfig;
use aws_sdk_sesv2::config::timeout::TimeoutConfig;
use aws_sdk_sesv2::config::{
    BehaviorVersion, IdentityCache, Region, StalledStreamProtectionConfig,
};
use aws_sdk_sesv2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sesv2::operation::get_account::GetAccountOutput;
use aws_sdk_sesv2::operation::send_email::builders::SendEmailFluentBuilder;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use hyper_util::client::legacy::Error as HyperError;
use tokio::sync::{OnceCell, watch};

use super::classify::Problem;
use super::settings::{Settings, SettingsError};
use super::trust;
use crate::secret::Credentials;

/// Makes requests with the latest credentials.
pub(super) struct Client {
    region: Option<String>,
    endpoint: Option<String>,
    timeouts: TimeoutConfig,
    http: SharedHttpClient,
    /// `None`: those of the chain.
    secret: Option<FromSecret>,
    /// Found when it is first needed, for that may take requests of its own.
    chain: OnceCell<SdkConfig>,
    /// The client for the region in use.
    built: Mutex<Option<Regional>>,
}

/// A client for one region.
#[derive(Clone)]
struct Regional {
    region: String,
    client: aws_sdk_sesv2::Client,
}

impl Client {
    pub(super) fn new(
        settings: &Settings,
        credentials: watch::Receiver<Option<Arc<Credentials>>>,
    ) -> Result<Self, SettingsError> {
        if let Some(endpoint) = &settings.endpoint {
            check_endpoint(endpoint)?;
        }
        let plain = settings.endpoint.as_ref().is_some_and(|e| !is_https(e)) && settings.secret;
        let http = if plain {
            trust::http_client()
        } else {
            trust::https_client(settings.ca_file.as_deref())?
        };
        // A connection that is not there in time must be told from an answer that is not.
        let connect = settings.connect_timeout.min(settings.request_timeout / 2);
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(connect.max(Duration::from_millis(1)))
            .operation_timeout(settings.request_timeout)
            .build();
        Ok(Self {
            region: settings.region.clone(),
            endpoint: settings.endpoint.clone(),
            timeouts,
            http,
            secret: settings.secret.then_some(FromSecret(credentials)),
            chain: OnceCell::new(),
            built: Mutex::new(None),
        })
    }

    /// Whom it talks to, `email.eu-west-1.amazonaws.com` or the endpoint's `host:port`; a region
    /// that is not known yet is shown as `?`.
    pub(super) fn host(&self) -> String {
        if let Some((_, rest)) = self.endpoint.as_deref().and_then(|e| e.split_once("://")) {
            return rest.split('/').next().unwrap_or_default().to_owned();
        }
        let region = self.known_region().unwrap_or_else(|| "?".into());
        let china = if region.starts_with("cn-") { ".cn" } else { "" };
        format!("email.{region}.amazonaws.com{china}")
    }

    /// The host part of the Message-ID that SES puts on a message.
    pub(super) fn message_id_host(&self) -> String {
        match self.known_region().as_deref() {
            None | Some("us-east-1") => "email.amazonses.com".into(),
            Some(region) => format!("{region}.amazonses.com"),
        }
    }

    /// A request that can be filled in and sent.
    pub(super) async fn send_email(&self) -> Result<SendEmailFluentBuilder, Problem> {
        Ok(self.client().await?.send_email())
    }

    /// Asks for the account.
    pub(super) async fn account(&self) -> Result<GetAccountOutput, Problem> {
        let client = self.client().await?;
        client.get_account().send().await.map_err(|e| problem(&e))
    }

    /// A client for the region that holds now.
    async fn client(&self) -> Result<aws_sdk_sesv2::Client, Problem> {
        let region = self.region().await?;
        if let Some(built) = self.built().filter(|built| built.region == region) {
            return Ok(built.client);
        }
        let mut builder = aws_sdk_sesv2::Config::builder();
        builder.set_endpoint_url(self.endpoint.clone());
        let builder = builder
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region.clone()))
            .retry_config(RetryConfig::disabled())
            .timeout_config(self.timeouts.clone())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .http_client(self.http.clone());
        let config = if let Some(secret) = &self.secret {
            // The channel is the cache: a cache of the SDK's would go on signing with the old key.
            builder.credentials_provider(secret.clone()).identity_cache(IdentityCache::no_cache())
        } else {
            let chain = self.chain().await?.credentials_provider();
            let none = || Problem::NoCredentials("the AWS chain has none".into());
            builder
                .credentials_provider(chain.ok_or_else(none)?)
                .identity_cache(IdentityCache::lazy().build())
        };
        let client = aws_sdk_sesv2::Client::from_conf(config.build());
        let built = Regional { region, client: client.clone() };
        *self.built.lock().unwrap_or_else(PoisonError::into_inner) = Some(built);
        Ok(client)
    }

    fn built(&self) -> Option<Regional> {
        self.built.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The configuration's region, or the secret's, or the chain's.
    async fn region(&self) -> Result<String, Problem> {
        if let Some(secret) = &self.secret {
            secret.current().map_err(|e| Problem::NoCredentials(chain_of(&e)))?;
        }
        if let Some(region) = self.named_region() {
            return Ok(region);
        }
        let chain = self.chain().await?;
        chain.region().map(ToString::to_string).ok_or(Problem::NoRegion)
    }

    fn named_region(&self) -> Option<String> {
        self.region
            .clone()
            .or_else(|| self.secret.as_ref()?.0.borrow().clone()?.place.region.clone())
    }

    fn known_region(&self) -> Option<String> {
        self.named_region().or_else(|| Some(self.chain.get()?.region()?.to_string()))
    }

    /// Environment, profile, web identity, container, instance: what AWS tools look at, in order.
    async fn chain(&self) -> Result<&SdkConfig, Problem> {
        let find = || async {
            let loader = aws_config::defaults(BehaviorVersion::latest());
            let mut loader = loader.http_client(self.http.clone());
            if let Some(region) = self.named_region() {
                loader = loader.region(Region::new(region));
            }
            let found = loader.load().await;
            // What was not found is looked for again.
            if found.region().is_some() { Ok(found) } else { Err(Problem::NoRegion) }
        };
        self.chain.get_or_try_init(find).await
    }
}

/// The credentials of a secret's channel.
#[derive(Clone)]
struct FromSecret(watch::Receiver<Option<Arc<Credentials>>>);

impl FromSecret {
    fn current(&self) -> Result<AwsCredentials, CredentialsError> {
        let current = self.0.borrow().clone();
        let Some(c) = current else { return Err(CredentialsError::not_loaded("none yet")) };
        let token = c.session_token.as_ref().map(|token| token.expose().to_owned());
        Ok(AwsCredentials::new(
            c.username.clone(),
            c.password.expose().to_owned(),
            token,
            None,
            "postgate",
        ))
    }
}

impl fmt::Debug for FromSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FromSecret")
    }
}

impl ProvideCredentials for FromSecret {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(self.current())
    }
}

/// What an error of the SDK's means for the request: refused, never sent, or nobody knows.
pub(super) fn problem<E>(error: &SdkError<E, HttpResponse>) -> Problem
where
    E: ProvideErrorMetadata + Error + 'static,
{
    if let SdkError::ConstructionFailure(_) = error {
        return Problem::Unmade(chain_of(error));
    }
    if let SdkError::ServiceError(service) = error {
        return Problem::Refused {
            status: service.raw().status().as_u16(),
            code: service.err().code().map(ToOwned::to_owned),
            message: first_line(service.err().message().unwrap_or_default()),
        };
    }
    if let SdkError::ResponseError(odd) = error {
        let status = odd.raw().status().as_u16();
        if (400..500).contains(&status) {
            return Problem::Refused { status, code: None, message: String::new() };
        }
    }
    if sources(error).any(<dyn Error>::is::<CredentialsError>) {
        return Problem::NoCredentials(chain_of(error));
    }
    // The SDK calls a refused connection and a reset after the request the same.
    let connecting = |e: &&(dyn Error + 'static)| {
        e.downcast_ref::<HyperError>().is_some_and(HyperError::is_connect)
    };
    if let Some(connecting) = sources(error).find(connecting) {
        // What wraps it says no more than that it could not connect.
        return Problem::Unreachable(chain_of(connecting.source().unwrap_or(connecting)));
    }
    Problem::Lost(chain_of(error))
}

/// To a signature that is wrong AWS answers in the lines below what it would have signed, and that
/// has the session token in it.
fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

fn sources<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |e: &&'a (dyn Error + 'static)| (*e).source())
}

/// An error and what caused it, each said once.
fn chain_of(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for part in sources(error).map(ToString::to_string) {
        if text.is_empty() {
            text = part;
        } else if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
    }
    text
}

fn is_https(endpoint: &str) -> bool {
    endpoint.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
}

fn check_endpoint(endpoint: &str) -> Result<(), SettingsError> {
    let bad = || SettingsError::Endpoint(endpoint.to_owned());
    let uri: hyper::Uri = endpoint.parse().map_err(|_| bad())?;
    let known = matches!(uri.scheme_str(), Some("http" | "https"));
    let plain = uri.authority().is_some_and(|a| !a.host().is_empty() && !a.as_str().contains('@'));
    if known && plain { Ok(()) } else { Err(bad()) }
}
