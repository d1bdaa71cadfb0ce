//! What an operator can set about a smarthost.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::secret::Place;

/// The port where neither the configuration nor the secret names one.
pub const DEFAULT_PORT: u16 = 25;

/// A smarthost and how to talk to it.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// The upstream's name in the configuration.
    pub name: String,
    /// The host's name, or an address. `None`: the secret says.
    pub host: Option<String>,
    /// The TCP port. `None`: the secret says, or else [`DEFAULT_PORT`].
    pub port: Option<u16>,
    /// Connect to these instead of looking `host` up; empty looks it up for each connection.
    pub address: Vec<IpAddr>,
    /// Whether and when the connection turns to TLS. `None`: the secret says, or else it must.
    pub tls: Option<TlsMode>,
    /// Which certificate is accepted.
    pub verify: Verify,
    /// PEM file of the authorities to trust **instead of** the system's. A server certificate that
    /// is itself in the file is trusted too (self-signed), its name and dates checked as usual.
    pub ca_file: Option<PathBuf>,
    /// The name the certificate must have, when it is not `host`.
    pub tls_server_name: Option<String>,
    /// Our name in EHLO.
    pub helo: String,
    /// AUTH mechanisms, the first that is offered is used.
    pub mechanisms: Vec<Mechanism>,
    /// Whether to log in. It is never done without TLS.
    pub auth_required: bool,
    /// How many connections, and for how long.
    pub pool: PoolSettings,
    /// How long to wait for what.
    pub timeouts: Timeouts,
}

impl Settings {
    /// A smarthost with default settings: STARTTLS required, certificate verified, no login.
    pub fn new(name: &str, host: &str, port: u16, helo: &str) -> Self {
        Self {
            name: name.into(),
            host: Some(host.into()),
            port: Some(port),
            address: Vec::new(),
            tls: Some(TlsMode::StartTls),
            verify: Verify::Full,
            ca_file: None,
            tls_server_name: None,
            helo: helo.into(),
            mechanisms: vec![Mechanism::Plain, Mechanism::Login],
            auth_required: false,
            pool: PoolSettings::default(),
            timeouts: Timeouts::default(),
        }
    }

    /// Where to connect and how, when the secret was asked for what the settings leave out. `None`
    /// when neither names a host.
    pub fn target(&self, secret: Option<&Place>) -> Option<Target> {
        let host = self.host(secret)?.to_owned();
        let port = self.port.or_else(|| secret?.port).unwrap_or(DEFAULT_PORT);
        let tls = self.tls.unwrap_or_else(|| match secret.and_then(|place| place.use_tls) {
            Some(false) => TlsMode::None,
            // Port 465 speaks TLS at once (RFC 8314); any other begins in clear.
            Some(true) | None if port == 465 => TlsMode::Implicit,
            Some(true) | None => TlsMode::StartTls,
        });
        Some(Target { host, port, tls })
    }

    /// The host of the [`target`](Self::target).
    pub fn host<'a>(&'a self, secret: Option<&'a Place>) -> Option<&'a str> {
        self.host.as_deref().or_else(|| secret?.host.as_deref())
    }
}

/// Where to connect, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// The host's name, or an address.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// Whether and when the connection turns to TLS.
    pub tls: TlsMode,
}

/// Whether and when a connection turns to TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsMode {
    /// Never.
    None,
    /// By STARTTLS where it is offered. Then it must succeed: there is no falling back to clear.
    Opportunistic,
    /// By STARTTLS (RFC 3207), or not at all.
    StartTls,
    /// From the first octet (RFC 8314), as on port 465.
    Implicit,
}

impl TlsMode {
    /// The word in the configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Opportunistic => "opportunistic",
            Self::StartTls => "starttls",
            Self::Implicit => "implicit",
        }
    }
}

/// Which certificate is accepted. The handshake's signature is checked in every case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verify {
    /// From a trusted authority, valid today, for the right name.
    Full,
    /// From a trusted authority and valid today, whatever its name.
    CaOnly,
    /// The one with this SHA-256 of its DER form.
    Fingerprint([u8; 32]),
    /// Any.
    None,
}

/// A SASL mechanism.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mechanism {
    /// PLAIN (RFC 4616).
    Plain,
    /// LOGIN, which servers offer for old clients.
    Login,
}

impl Mechanism {
    /// The name in EHLO and AUTH.
    pub const fn keyword(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Login => "LOGIN",
        }
    }
}

/// How many connections, and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolSettings {
    /// Connections at the same time, at least one. Default 8.
    pub max_connections: usize,
    /// A connection that was not used for this long is closed; keep it below the peer's own
    /// limit. Default 30 s.
    pub max_idle: Duration,
    /// Messages over one connection. Default 100.
    pub max_messages: u32,
    /// Age of a connection. Default 5 min.
    pub max_age: Duration,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            max_connections: 8,
            max_idle: Duration::from_secs(30),
            max_messages: 100,
            max_age: Duration::from_mins(5),
        }
    }
}

/// How long to wait for what. The attempt's own deadline holds besides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// Name look-up and TCP, shared among the addresses, and TLS. Default 30 s.
    pub connect: Duration,
    /// The 220 (RFC 5321 section 4.5.3.2.1 says 5 min). Default 60 s.
    pub greeting: Duration,
    /// A command's reply. Default 60 s.
    pub command: Duration,
    /// The sending of one block of the message. Default 3 min.
    pub data: Duration,
    /// The reply to the final dot. Too short a wait makes copies (RFC 1047). Default 10 min.
    pub end_of_data: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            greeting: Duration::from_mins(1),
            command: Duration::from_mins(1),
            data: Duration::from_mins(3),
            end_of_data: Duration::from_mins(10),
        }
    }
}

/// The settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The EHLO name is empty or not printable ASCII without blanks.
    #[error("helo name {0:?} is not a host name")]
    Helo(String),
    /// No host is named, and no secret may name one.
    #[error("no host is named")]
    Host,
    /// The name to verify is not a DNS name or an address.
    #[error("{0:?} is not a name a certificate can have")]
    ServerName(String),
    /// A login without a mechanism.
    #[error("a login is configured, but no AUTH mechanism")]
    NoMechanism,
    /// A pool of no connections.
    #[error("max_connections is zero")]
    NoConnections,
    /// The file of authorities cannot be read.
    #[error("cannot read ca_file {}: {source}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What the system or the parser said.
        source: io::Error,
    },
    /// TLS cannot be set up: no authorities in the file or on the system.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_fills_what_the_settings_leave_out_and_no_more() {
        let secret = Place {
            host: Some("other".into()),
            port: Some(465),
            use_tls: Some(true),
            ..Place::default()
        };
        let all = Settings::new("core", "core", 587, "gate");
        let target = |host: &str, port, tls| Some(Target { host: host.into(), port, tls });
        assert_eq!(all.target(Some(&secret)), target("core", 587, TlsMode::StartTls));
        let none = Settings { host: None, port: None, tls: None, ..all };
        assert_eq!(none.target(Some(&secret)), target("other", 465, TlsMode::Implicit));
        assert_eq!(none.target(Some(&Place::default())), None);
        assert_eq!(none.target(None), None);
        let on = |use_tls, port| Place { port, use_tls, ..secret.clone() };
        let tls = |place: Place| none.target(Some(&place)).map(|t| (t.port, t.tls));
        assert_eq!(tls(on(Some(true), Some(587))), Some((587, TlsMode::StartTls)));
        assert_eq!(tls(on(None, None)), Some((25, TlsMode::StartTls)));
        assert_eq!(tls(on(Some(false), Some(465))), Some((465, TlsMode::None)));
    }
}
