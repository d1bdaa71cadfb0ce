//! Upstreams: what a message can be handed to, and how we log in there.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::files;
use crate::secret::{Credentials, Secret};

/// An upstream and its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upstream {
    /// The name of its table: what logs and commands call it.
    pub name: String,
    /// What it is.
    pub kind: UpstreamKind,
}

/// What an upstream is.
#[derive(Clone, PartialEq, Eq, Debug)]
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
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Smtp {
    /// A domain name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Connect to these instead of what the host's name resolves to. May be empty.
    pub addresses: Vec<IpAddr>,
    /// When TLS is used.
    pub tls: Tls,
    /// What of the certificate is checked.
    pub verify: Verify,
    /// The authorities that may have signed it; the system's when `None`.
    pub ca_file: Option<PathBuf>,
    /// The name the certificate must have, when it is not the host's.
    pub tls_server_name: Option<String>,
    /// How we log in, if we do.
    pub auth: Option<Auth>,
    /// How connections are kept.
    pub pool: Pool,
    /// How long each stage may take.
    pub timeouts: Timeouts,
}

/// When TLS is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tls {
    /// Never.
    None,
    /// When the server offers STARTTLS; in clear otherwise.
    Opportunistic,
    /// Always, by STARTTLS (RFC 3207).
    StartTls,
    /// Always, from the first octet (RFC 8314).
    Implicit,
}

/// What of the server's certificate is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verify {
    /// Chain and name.
    Full,
    /// The chain.
    CaOnly,
    /// That it is the one with this SHA-256.
    Fingerprint([u8; 32]),
    /// Nothing.
    None,
}

/// How we log in (RFC 4954).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Auth {
    /// Where the user name comes from.
    pub username: Source,
    /// Where the password comes from. Never [`Source::Literal`].
    pub password: Source,
    /// What may be used, in the order of preference. Never empty.
    pub mechanisms: Vec<Mechanism>,
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

/// A SASL mechanism.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mechanism {
    /// RFC 4616.
    Plain,
    /// The old one with two prompts.
    Login,
}

/// How connections are kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pool {
    /// Connections at a time.
    pub max_connections: usize,
    /// How long an unused one is kept.
    pub max_idle: Duration,
    /// Messages over one.
    pub max_messages: usize,
    /// How old one may become.
    pub max_age: Duration,
}

/// How long each stage of a delivery may take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// Name lookup, connection and TLS handshake, each.
    pub connect: Duration,
    /// The 220.
    pub greeting: Duration,
    /// The reply to a command.
    pub command: Duration,
    /// Each piece of the content.
    pub data: Duration,
    /// The reply to the final dot.
    pub end_of_data: Duration,
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
        Ok(Credentials { username, password: self.password.fetch()?, version })
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
