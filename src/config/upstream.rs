//! Upstreams: what a message can be handed to, and how we log in there.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Config;
use crate::policy::{breaker, bucket, eligibility};
use crate::secret::{Credentials, Secret};
use crate::secrets::{Given, Source};
use crate::upstream::{ses, smtp};

/// An upstream and its name.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// The name of its table: what logs and commands call it.
    pub name: String,
    /// What it is.
    pub kind: UpstreamKind,
    /// What it logs in with: a name in [`Config::secrets`].
    pub secret: Option<String>,
    /// When it is given a rest.
    pub breaker: breaker::Settings,
    /// How much it is handed per second; `None`: as much as it takes, or its provider allows.
    pub rate: Option<bucket::Rate>,
    /// Messages it is handed at once.
    pub max_connections: usize,
}

/// What an upstream is.
#[derive(Clone, PartialEq, Debug)]
pub enum UpstreamKind {
    /// A smarthost.
    Smtp(Box<smtp::Settings>),
    /// Amazon SES.
    Ses(Box<Ses>),
    /// A Maildir.
    Maildir(Maildir),
}

impl UpstreamKind {
    /// Whether it depends on a file that may have changed while this has not.
    pub fn reads_files(&self) -> bool {
        match self {
            Self::Smtp(smtp) => smtp.ca_file.is_some(),
            Self::Ses(ses) => ses.settings.ca_file.is_some(),
            Self::Maildir(_) => false,
        }
    }
}

/// Amazon SES.
#[derive(Clone, PartialEq, Debug)]
pub struct Ses {
    /// How to talk to it.
    pub settings: ses::Settings,
    /// What it is known to refuse.
    pub rules: eligibility::Rules,
}

/// A Maildir.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Maildir {
    /// Its directory.
    pub path: PathBuf,
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The variable is not there.
    #[error("the environment variable {0} is not set")]
    Environment(String),
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// They are not on this machine.
    #[error("the secret {0} is in Vault")]
    Vault(String),
    /// Neither is the secret; the configuration's check excludes it.
    #[error("there is no secret {0}")]
    Unknown(String),
}

impl Config {
    /// What an upstream logs in with, if it does, as far as that is on this machine; it is given
    /// this version.
    pub fn login(
        &self,
        upstream: &Upstream,
        version: u64,
    ) -> Result<Option<Credentials>, LoginError> {
        let Some(name) = &upstream.secret else { return Ok(None) };
        let unknown = || LoginError::Unknown(name.clone());
        match &self.secrets.secrets.get(name).ok_or_else(unknown)?.source {
            Source::Vault { .. } => Err(LoginError::Vault(name.clone())),
            Source::Parts(parts) => credentials(parts, version).map(Some),
        }
    }
}

fn credentials(parts: &BTreeMap<String, Given>, version: u64) -> Result<Credentials, LoginError> {
    let part = |name: &str| parts.get(name).map(fetch).transpose();
    let text = |name: &str| Ok(part(name)?.map(|secret| secret.expose().to_owned()));
    let password = part("password")?.unwrap_or_else(|| Secret::new(String::new()));
    let mut credentials =
        Credentials::new(text("username")?.unwrap_or_default(), password, version);
    credentials.session_token = part("session_token")?;
    let place = &mut credentials.place;
    place.host = text("host")?;
    place.port = text("port")?.and_then(|port| port.parse().ok());
    place.use_tls = text("use_tls")?.and_then(|word| word.parse().ok());
    place.from = text("from")?;
    place.region = text("region")?;
    Ok(credentials)
}

fn fetch(given: &Given) -> Result<Secret, LoginError> {
    match given {
        Given::Literal(text) => Ok(Secret::new(text.clone())),
        Given::Environment(name) => {
            std::env::var(name).map(Secret::new).map_err(|_| LoginError::Environment(name.clone()))
        }
        Given::File(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|source| LoginError::File { path: path.clone(), source })?;
            let text = Secret::new(text);
            Ok(Secret::new(text.expose().lines().next().unwrap_or_default().to_owned()))
        }
    }
}
