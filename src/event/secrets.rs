//! What happens to secrets. Their names are told, never what they say.

use std::time::Duration;

use metrics::gauge;
use tracing::{debug, info, warn};

use crate::clock::Timestamp;

/// A secret is looked after from now on: its measurements exist before it is ever read.
#[derive(Debug)]
pub struct SecretKept<'a> {
    /// The secret's name.
    pub name: &'a str,
    /// How often it is read.
    pub interval: Duration,
    /// Our number for what is known already, after a reload; 0 while there is nothing.
    pub version: u64,
    /// When that was read.
    pub read: Option<Timestamp>,
}

impl SecretKept<'_> {
    /// Measures it.
    #[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are floating point")]
    pub fn emit(&self) {
        let label = [("secret", self.name.to_owned())];
        gauge!("postgate_secret_refresh_interval_seconds", &label).set(self.interval);
        let at = Duration::from_millis(self.read.map_or(0, Timestamp::as_millis));
        gauge!("postgate_secret_last_refresh_success_timestamp_seconds", &label).set(at);
        gauge!("postgate_secret_version", &label).set(self.version as f64);
    }
}

/// A secret was read from its source. That it said something new is [`SecretChanged`].
#[derive(Debug)]
pub struct SecretRead<'a> {
    /// The secret's name.
    pub name: &'a str,
    /// When.
    pub at: Timestamp,
}

impl SecretRead<'_> {
    /// Logs and measures it.
    pub fn emit(&self) {
        let label = [("secret", self.name.to_owned())];
        let at = Duration::from_millis(self.at.as_millis());
        gauge!("postgate_secret_last_refresh_success_timestamp_seconds", &label).set(at);
        debug!(event = "secret", secret = self.name, "secret read");
    }
}

/// A secret says something new, or something for the first time.
#[derive(Debug)]
pub struct SecretChanged<'a> {
    /// The secret's name.
    pub name: &'a str,
    /// Our number for what it says now.
    pub version: u64,
    /// The source's number, where it counts.
    pub source_version: Option<u64>,
    /// Whether it comes from the environment because the source has never given it.
    pub fallback: bool,
}

impl SecretChanged<'_> {
    /// Logs and measures it.
    #[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are floating point")]
    pub fn emit(&self) {
        let Self { name, version, source_version, fallback } = self;
        let label = [("secret", (*name).to_owned())];
        gauge!("postgate_secret_version", &label).set(*version as f64);
        info!(event = "secret", secret = name, version, source_version, fallback, "secret changed");
    }
}

/// A secret cannot be read, for another reason than the last time.
pub struct SecretUnreadable<'a> {
    /// The secret's name.
    pub name: &'a str,
    /// Why.
    pub error: &'a dyn std::fmt::Display,
    /// Whether there is an older one to go on with.
    pub kept: bool,
}

impl SecretUnreadable<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let Self { name, error, kept } = self;
        warn!(event = "secret", secret = name, kept, %error, "secret cannot be read");
    }
}

/// A secret can be read again.
#[derive(Debug)]
pub struct SecretReadable<'a> {
    /// The secret's name.
    pub name: &'a str,
}

impl SecretReadable<'_> {
    /// Logs it.
    pub fn emit(&self) {
        info!(event = "secret", secret = self.name, "secret can be read again");
    }
}

/// We have a token for Vault: a new one, or the old one for longer.
#[derive(Debug)]
pub struct VaultToken<'a> {
    /// Which Vault.
    pub address: &'a str,
    /// Whether it is the old one.
    pub renewed: bool,
    /// When it ends, if it does.
    pub ends: Option<Timestamp>,
}

impl VaultToken<'_> {
    /// Logs and measures it.
    pub fn emit(&self) {
        let Self { address, renewed, ends } = self;
        let end =
            ends.map_or(f64::INFINITY, |t| Duration::from_millis(t.as_millis()).as_secs_f64());
        gauge!("postgate_vault_token_expiry_timestamp_seconds").set(end);
        let ends = ends.map_or_else(|| "never".to_owned(), Timestamp::rfc3339);
        if *renewed {
            debug!(event = "vault", address, ends, "token renewed");
        } else {
            info!(event = "vault", address, ends, "logged in to Vault");
        }
    }
}
