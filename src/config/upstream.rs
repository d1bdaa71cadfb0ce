//! Upstreams: what a message can be handed to, and how we log in there.

use std::path::PathBuf;

use super::files;
use crate::secret::{Credentials, Secret};
use crate::upstream::smtp;

/// An upstream and its name.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// The name of its table: what logs and commands call it.
    pub name: String,
    /// What it is.
    pub kind: UpstreamKind,
}

/// What an upstream is.
#[derive(Clone, Debug)]
pub enum UpstreamKind {
    /// A smarthost.
    Smtp(Box<Smtp>),
    /// A Maildir.
    Maildir(Maildir),
}

/// A Maildir.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Maildir {
    /// Its directory.
    pub path: PathBuf,
}

/// A smarthost.
#[derive(Clone, Debug)]
pub struct Smtp {
    /// How to talk to it.
    pub settings: smtp::Settings,
    /// How we log in, if we do.
    pub auth: Option<Auth>,
}

/// How we log in (RFC 4954).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Auth {
    /// Where the user name comes from.
    pub username: Source,
    /// Where the password comes from. Never [`Source::Literal`].
    pub password: Source,
}

/// Where a part of the credentials comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// The configuration itself.
    Literal(String),
    /// An environment variable.
    Environment(String),
    /// The first line of a file.
    File(PathBuf),
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
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
}

impl Auth {
    /// Fetches user name and password; they are given this version.
    pub fn credentials(&self, version: u64) -> Result<Credentials, AuthError> {
        let username = self.username.fetch()?.expose().to_owned();
        Ok(Credentials::new(username, self.password.fetch()?, version))
    }
}

impl Source {
    fn fetch(&self) -> Result<Secret, AuthError> {
        match self {
            Self::Literal(text) => Ok(Secret::new(text.clone())),
            Self::Environment(name) => std::env::var(name)
                .map(Secret::new)
                .map_err(|_| AuthError::Environment(name.clone())),
            Self::File(path) => {
                let environment = super::environment();
                let real = files::expand(path, &environment).unwrap_or_else(|| path.clone());
                let text = std::fs::read_to_string(&real)
                    .map_err(|source| AuthError::File { path: real, source })?;
                let text = Secret::new(text);
                Ok(Secret::new(text.expose().lines().next().unwrap_or_default().to_owned()))
            }
        }
    }
}
