//! Upstreams: what a message can be handed to.

use std::path::PathBuf;

use crate::policy::{breaker, bucket, eligibility};
use crate::upstream::{ses, smtp};

/// An upstream and its name.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// The name of its table: what logs and commands call it.
    pub name: String,
    /// What it is.
    pub kind: UpstreamKind,
    /// What it logs in with: a name in [`Config::secrets`](super::Config::secrets).
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
