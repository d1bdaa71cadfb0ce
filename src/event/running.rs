//! What happens to the program as a whole, and what its operator does.

use tracing::{error, info, warn};

use super::count;
use crate::mail::QueueId;

/// The daemon takes mail.
#[derive(Debug)]
pub struct Started<'a> {
    /// Its version.
    pub version: &'a str,
}

impl Started<'_> {
    /// Logs it.
    pub fn emit(&self) {
        info!(event = "started", version = self.version, "taking mail");
    }
}

/// The daemon takes no more mail and finishes what it has begun.
#[derive(Debug)]
pub struct Stopping;

impl Stopping {
    /// Logs it.
    pub fn emit(&self) {
        info!(event = "stopping", "taking no more mail, finishing what was begun");
    }
}

/// The daemon is done; the spool is closed.
#[derive(Debug)]
pub struct Stopped;

impl Stopped {
    /// Logs it.
    pub fn emit(&self) {
        info!(event = "stopped", "stopped");
    }
}

/// A reload was asked for.
#[derive(Debug)]
pub struct Reloaded<'a> {
    /// What came of it; after an error the old configuration stays.
    pub result: &'a Result<String, String>,
}

impl Reloaded<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let result = if self.result.is_ok() { "ok" } else { "failed" };
        count("postgate_config_reloads_total", &[("result", result)]);
        match self.result {
            Ok(answer) => info!(event = "config", answer, "configuration reloaded"),
            Err(error) => error!(event = "config", error, "configuration kept: the new one is bad"),
        }
    }
}

/// The configuration is valid and something in it should be looked at.
pub struct ConfigWarnings<'a> {
    /// What.
    pub report: &'a dyn std::fmt::Display,
}

impl ConfigWarnings<'_> {
    /// Logs it.
    pub fn emit(&self) {
        warn!(event = "config", report = %self.report, "configuration has warnings");
    }
}

/// An operator asked for a change.
#[derive(Debug, Default)]
pub struct AdminAction<'a> {
    /// The user id of the process that asked; `None` when the system did not tell.
    pub uid: Option<u32>,
    /// What was asked for: `retry`, `delete`, `pause`, `reload` and so on.
    pub action: &'a str,
    /// Of which message, if of one.
    pub queue_id: Option<QueueId>,
    /// Of which upstream, if of one.
    pub upstream: Option<&'a str>,
    /// Of which secret, if of one.
    pub secret: Option<&'a str>,
    /// For how many seconds, if not for good.
    pub for_seconds: Option<u64>,
    /// Why, in the operator's words.
    pub reason: Option<&'a str>,
    /// Why it was not done; `None` when it was.
    pub error: Option<&'a str>,
}

impl AdminAction<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let Self { uid, action, queue_id, upstream, secret, for_seconds, reason, error } = *self;
        let queue_id = queue_id.map(|id| id.to_string());
        match error {
            None => info!(
                event = "admin",
                uid,
                action,
                queue_id,
                upstream,
                secret,
                for_seconds,
                reason,
                "done for an operator"
            ),
            Some(error) => warn!(
                event = "admin",
                uid, action, queue_id, upstream, secret, for_seconds, reason, error, "not done"
            ),
        }
    }
}

/// What operators had paused before the start cannot be understood.
pub struct PausesLost<'a> {
    /// Where it was put.
    pub kept: &'a std::path::Path,
    /// What is wrong with it.
    pub error: &'a dyn std::fmt::Display,
}

impl PausesLost<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let Self { kept, error } = self;
        let kept = kept.display();
        error!(event = "pauses", %kept, %error,
            "no upstream is paused any more: pause again what is to be paused");
    }
}
