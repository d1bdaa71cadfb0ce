//! The configuration: one TOML file, checked as a whole before anything is done with it.
//!
//! [`load`] reads the file, lays the environment over it and either gives a [`Config`] in which
//! every value is valid, or a [`Report`] of everything that is wrong. The modules below define
//! their own settings; the program fills them from here.

mod document;
mod files;
mod read;
mod read_route;
mod read_secret;
mod read_ses;
mod read_upstream;
mod report;
mod section;
mod units;
mod upstream;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use report::{Location, Problem, Report, Severity};
pub use units::{
    UnitError, duration as format_duration, parse_duration, rate as format_rate,
    size as format_size,
};
pub use upstream::{Maildir, Ses, Upstream, UpstreamKind};

use crate::mail::Mailbox;
use crate::policy::Backoff;
use crate::policy::networks::Networks;
use crate::policy::routing::Route;
use crate::server::ListenerSettings;
use crate::smtp::session::BareNewline;
use crate::{secrets, spool, telemetry};

/// Where the configuration is looked for when nothing else is said.
pub const DEFAULT_PATH: &str = "/etc/postgate/postgate.toml";

/// Where the operator knocks when nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/postgate/admin.sock";

/// Keys that are read once, at the start: the beginnings of their names.
const FIXED: [&str; 7] = [
    "listener.",
    "spool.",
    "limits.memory",
    "delivery.drain_timeout",
    "admin.",
    "metrics.",
    "log.format",
];

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our own name: greeting, EHLO in both directions, Received lines.
    pub hostname: String,
    /// Who may send.
    pub mynetworks: Networks,
    /// Whom `RCPT TO:<Postmaster>` means.
    pub postmaster: Mailbox,
    /// Where mail comes in. Never empty.
    pub listeners: Vec<ListenerSettings>,
    /// What a client may do.
    pub limits: Limits,
    /// What a Received line tells.
    pub received: Received,
    /// The queue on disk.
    pub spool: spool::Settings,
    /// When a deferred message is tried again.
    pub retry: Retry,
    /// How much is delivered at a time.
    pub delivery: Delivery,
    /// What a message can be handed to, in the order of the file. Never empty.
    pub upstreams: Vec<Upstream>,
    /// Which way messages take; the first that matches counts, and one matches everything.
    pub routes: Vec<Route>,
    /// Where passwords and keys come from. Holds every name that an upstream's `secret` has.
    pub secrets: secrets::Settings,
    /// The upstream whose attempts all fail, to try the fallback: `POSTGATE_FORCE_FAIL`.
    pub force_fail: Option<String>,
    /// The operator's door.
    pub admin: Admin,
    /// The metrics.
    pub metrics: Metrics,
    /// What is logged, and how.
    pub log: telemetry::Settings,
    effective: Vec<(String, String)>,
    given: BTreeSet<String>,
}

/// What a client may do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Octets of a message.
    pub max_message_size: u64,
    /// Recipients of a message.
    pub max_recipients: usize,
    /// Octets of a line of message text.
    pub max_text_line: usize,
    /// Connections at a time.
    pub max_connections: usize,
    /// Connections at a time from one address.
    pub max_connections_per_ip: usize,
    /// Errors in one session.
    pub max_errors: usize,
    /// Messages in one session.
    pub max_messages_per_connection: usize,
    /// Wait for a command.
    pub command_timeout: Duration,
    /// Wait for the next octets of a message.
    pub data_timeout: Duration,
    /// Received lines before a message counts as looping.
    pub max_hops: usize,
    /// Octets of all messages held in memory.
    pub memory: u64,
    /// What becomes of a bare CR or LF in message text.
    pub bare_newline: BareNewline,
}

/// What a Received line tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// The client's address.
    pub client_address: bool,
    /// The name the client gave.
    pub helo: bool,
}

/// When a deferred message is tried again.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Retry {
    /// The waits between attempts.
    pub backoff: Backoff,
    /// How long a message is tried.
    pub max_age: Duration,
}

/// How much is delivered at a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delivery {
    /// Messages.
    pub max_active: usize,
    /// How long a shutdown waits for them.
    pub drain_timeout: Duration,
    /// Whether `POSTGATE_FORCE_FAIL` may be set.
    pub allow_force_fail: bool,
}

/// The operator's door.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Admin {
    /// The unix socket.
    pub socket: PathBuf,
}

/// Where Prometheus asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metrics {
    /// Nowhere when `None`.
    pub listen: Option<SocketAddr>,
}

/// The environment of this process, as [`load`] wants it. What is not UTF-8 is left out.
pub fn environment() -> BTreeMap<String, String> {
    let utf8 = |(k, v): (std::ffi::OsString, std::ffi::OsString)| {
        Some((k.into_string().ok()?, v.into_string().ok()?))
    };
    std::env::vars_os().filter_map(utf8).collect()
}

/// Reads and checks the configuration in `file` under `environment`.
///
/// `Ok` carries the warnings, if there are any; `Err` everything that is wrong.
pub fn load(
    file: &Path,
    environment: &BTreeMap<String, String>,
) -> Result<(Config, Report), Report> {
    let source = std::fs::read_to_string(file).map_err(|e| Report::unreadable(file, &e))?;
    parse(file, &source, environment)
}

/// The operator's socket that `file` names, whatever else is wrong there: commands must reach a
/// running Postgate also while its configuration is being repaired, and from where its credentials
/// cannot be read. `None` when the file names none, cannot be read, or is no TOML.
pub fn socket(file: &Path, environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    let source = std::fs::read_to_string(file).ok()?;
    let (table, _) = document::parse(&source, environment).ok()?;
    let admin = table.find("admin").and_then(|entry| entry.node.table());
    admin?.find("socket")?.node.text().map(PathBuf::from)
}

/// Checks the configuration `source`; `file` is its name in the report.
pub fn parse(
    file: &Path,
    source: &str,
    environment: &BTreeMap<String, String>,
) -> Result<(Config, Report), Report> {
    let report = |problems| Report { file: file.into(), problems };
    let (table, mut misnamed) = document::parse(source, environment).map_err(report)?;
    let reading = section::Reading::new(source, environment);
    let config = read::config(&reading, &table);
    let section::Findings { mut problems, effective, given } = reading.finish();
    problems.append(&mut misnamed);
    let report = report(problems);
    match config {
        Some(config) if report.errors() == 0 => Ok((Config { effective, given, ..config }, report)),
        _ => Err(report),
    }
}

impl Config {
    /// Every key with its value in effect as TOML, defaults included, in the order they are read.
    pub fn effective(&self) -> impl Iterator<Item = (&str, &str)> {
        self.effective.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether a key, `upstreams.core.port`, was written; else its value is the default.
    pub fn is_given(&self, key: &str) -> bool {
        self.given.contains(key)
    }

    /// The keys that differ in `new` and take effect only at a restart: listeners, the spool, the
    /// admin socket, the log's format, the memory limit and the drain's time limit. Everything else
    /// can be reloaded.
    pub fn needs_restart(&self, new: &Self) -> Vec<String> {
        let old: BTreeMap<&str, &str> = self.effective().collect();
        let new: BTreeMap<&str, &str> = new.effective().collect();
        let keys = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
        let fixed = keys.filter(|key| FIXED.iter().any(|prefix| key.starts_with(prefix)));
        let mut changed: Vec<String> =
            fixed.filter(|key| old.get(*key) != new.get(*key)).map(ToString::to_string).collect();
        changed.sort();
        changed
    }

    /// The upstream of that name.
    pub fn upstream(&self, name: &str) -> Option<&Upstream> {
        self.upstreams.iter().find(|u| u.name == name)
    }
}
