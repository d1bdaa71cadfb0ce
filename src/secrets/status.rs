//! What `postgate secrets status` shows of a secret: everything but what it says.

use serde::Serialize;

use super::keeper::{Keeper, Notes};
use super::settings::{Given, Source};
use crate::clock::{Clock, Timestamp};

/// How a secret is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct SecretStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Where it is read: `vault secret/keybuzz/smtp`.
    pub location: String,
    /// In a word.
    pub state: SecretState,
    /// Our number for what it says; grows with each change. 0: nothing yet.
    pub version: u64,
    /// The source's number: the version in Vault.
    pub source_version: Option<u64>,
    /// When it was last read.
    pub last_success: Option<Timestamp>,
    /// Seconds since then.
    pub age_seconds: Option<u64>,
    /// Seconds between two readings.
    pub refresh_seconds: u64,
    /// Why it could not be read the last time; nothing when it could.
    pub last_error: Option<String>,
    /// When our token for Vault ends; nothing without Vault, a token, or an end.
    pub vault_token_expires: Option<Timestamp>,
}

/// How a secret is, in a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretState {
    /// Read, at the last attempt.
    Current,
    /// Read, at the last attempt, and empty: the place wants no login.
    NoLogin,
    /// The last attempt failed; what was read before is used.
    Kept,
    /// Never read; the environment is used.
    Fallback,
    /// There is nothing; what needs it waits.
    Missing,
}

impl SecretState {
    /// The word for it, as in JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::NoLogin => "no-login",
            Self::Kept => "kept",
            Self::Fallback => "fallback",
            Self::Missing => "missing",
        }
    }
}

impl SecretStatus {
    pub(super) fn of(keeper: &Keeper, token_ends: Option<Timestamp>, clock: &dyn Clock) -> Self {
        let credentials = keeper.channel().borrow().clone();
        let notes = keeper.notes().borrow().clone();
        let state = match &credentials {
            None => SecretState::Missing,
            Some(_) if !notes.given => SecretState::Fallback,
            Some(_) if notes.error.is_some() => SecretState::Kept,
            Some(found) if found.is_anonymous() => SecretState::NoLogin,
            Some(_) => SecretState::Current,
        };
        let age = notes.success.map(|(at, _)| clock.now().saturating_duration_since(at).as_secs());
        Self {
            name: keeper.name.clone(),
            location: location(&keeper.settings.source),
            state,
            // The notes count on after a secret that was read elsewhere.
            version: credentials.as_ref().map_or(0, |found| found.version),
            source_version: notes.source_version,
            last_success: notes.success.map(|(_, at)| at),
            age_seconds: age,
            refresh_seconds: keeper.settings.refresh.as_secs(),
            last_error: last_error(&notes),
            vault_token_expires: token_ends,
        }
    }
}

fn last_error(notes: &Notes) -> Option<String> {
    let error = notes.error.as_ref()?;
    Some(match &notes.no_fallback {
        None => error.to_string(),
        Some(fallback) => format!("{error}; and no fallback: {fallback}"),
    })
}

/// Where a secret is, for people.
fn location(source: &Source) -> String {
    match source {
        Source::Vault { mount, path } => format!("vault {mount}/{path}"),
        Source::Parts(parts) => {
            let part = |(name, given): (&String, &Given)| match given {
                Given::Literal(_) => format!("{name} from the configuration"),
                Given::File(path) => format!("{name} from {}", path.display()),
                Given::Environment(variable) => format!("{name} from ${variable}"),
            };
            parts.iter().map(part).collect::<Vec<_>>().join(", ")
        }
    }
}
