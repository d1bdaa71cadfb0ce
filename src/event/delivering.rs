//! What happens to mail on its way out, and to upstreams.

use std::time::Duration;

use metrics::histogram;
use tracing::{info, warn};

use super::{count, millis};
use crate::mail::{Message, Outcome, RecipientOutcome};

/// An attempt to deliver ended: one line for each recipient.
#[derive(Debug)]
pub struct Delivery<'a> {
    /// The message as it was before the attempt.
    pub message: &'a Message,
    /// The route's name.
    pub route: &'a str,
    /// The upstream's name.
    pub upstream: &'a str,
    /// The recipients it was for, by their places in the envelope.
    pub places: &'a [usize],
    /// Whether what it refuses for good is bounced; else only it will not have that.
    pub authoritative: bool,
    /// What came of it, for each of them.
    pub outcome: &'a Outcome,
    /// From acceptance to now.
    pub delay: Duration,
}

impl Delivery<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let m = self.message;
        let tried = self.places.iter().filter_map(|place| m.envelope.recipients.get(*place));
        for (recipient, outcome) in tried.zip(&self.outcome.recipients) {
            let (status, dsn, reply) = match outcome {
                RecipientOutcome::Sent { reply } => ("sent", reply.status(), reply.to_string()),
                RecipientOutcome::Deferred(f) => ("deferred", Some(f.status), f.to_string()),
                RecipientOutcome::Bounced(f) if !self.authoritative => {
                    ("refused", Some(f.status), f.to_string())
                }
                RecipientOutcome::Bounced(f) => ("bounced", Some(f.status), f.to_string()),
                RecipientOutcome::Unconfirmed(f) => ("unconfirmed", Some(f.status), f.to_string()),
            };
            let (route, upstream) = (("route", self.route), ("upstream", self.upstream));
            let result = ("result", status);
            count("postgate_delivery_attempts_total", &[route, upstream, result]);
            if status == "sent" {
                histogram!("postgate_message_latency_seconds", "route" => self.route.to_owned())
                    .record(self.delay);
            }
            info!(
                event = "delivery",
                queue_id = %m.id,
                message_id = m.message_id,
                from = m.envelope.reverse_path.to_string(),
                to = recipient.path.to_string(),
                route = self.route,
                upstream = self.upstream,
                relay = self.outcome.relay.as_deref().unwrap_or("none"),
                attempt = m.attempts + 1,
                status,
                dsn = dsn.map_or_else(|| "2.0.0".to_owned(), |d| d.to_string()),
                reply,
                delay_ms = millis(self.delay),
                connection_setup_ms = millis(self.outcome.connection_setup),
                transmission_ms = millis(self.outcome.transmission),
                tls = self.outcome.tls.as_deref().unwrap_or("none"),
                size = m.size,
                "delivery"
            );
        }
    }
}

/// A message was given up and is now a dead letter.
#[derive(Debug)]
pub struct Dead<'a> {
    /// The message.
    pub message: &'a Message,
}

impl Dead<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let m = self.message;
        count("postgate_dead_letters_total", &[]);
        let failed = m.status.iter().filter(|s| s.is_failed()).count();
        let reason = m.status.iter().filter(|s| s.is_failed()).find_map(|s| s.failure());
        warn!(
            event = "dead",
            queue_id = %m.id,
            message_id = m.message_id,
            from = m.envelope.reverse_path.to_string(),
            failed,
            reason = reason.map(ToString::to_string).unwrap_or_default(),
            "moved to the dead letters"
        );
    }
}

/// An upstream's breaker changed its state.
#[derive(Debug)]
pub struct BreakerChanged<'a> {
    /// The upstream's name.
    pub upstream: &'a str,
    /// Its new state: closed, open, half-open, held, paused or waiting.
    pub to: &'a str,
    /// Why it takes nothing; `None` when it is well.
    pub reason: Option<&'a str>,
}

impl BreakerChanged<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let Self { upstream, to, reason } = self;
        let labels = [("upstream", *upstream), ("to", *to)];
        count("postgate_upstream_breaker_transitions_total", &labels);
        let reason = reason.unwrap_or_default();
        match *to {
            "closed" => info!(event = "breaker", upstream, to, "upstream takes mail again"),
            "half-open" => info!(event = "breaker", upstream, to, reason, "upstream is tried"),
            _ => warn!(event = "breaker", upstream, to, reason, "upstream takes no mail"),
        }
    }
}

/// The mail of a route goes another way now.
#[derive(Debug)]
pub struct RouteSwitched<'a> {
    /// The route's name.
    pub route: &'a str,
    /// The upstream it went to; `None`: nowhere.
    pub from: Option<&'a str>,
    /// The upstream it goes to now; `None`: nowhere, it waits.
    pub to: Option<&'a str>,
}

impl RouteSwitched<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let (from, to) = (self.from.unwrap_or("none"), self.to.unwrap_or("none"));
        let labels = [("route", self.route), ("from", from), ("to", to)];
        count("postgate_route_switches_total", &labels);
        warn!(event = "route", route = self.route, from, to, "mail goes another way");
    }
}

/// Attempts were still under way when the time to finish them was over.
#[derive(Debug)]
pub struct DrainCut {
    /// How many.
    pub attempts: usize,
}

impl DrainCut {
    /// Logs it.
    pub fn emit(&self) {
        let attempts = self.attempts;
        warn!(event = "drain", attempts, "stopped with attempts under way; they will be repeated");
    }
}

/// What Amazon SES says of an account has changed.
#[derive(Debug)]
pub struct AccountChanged<'a> {
    /// The upstream.
    pub upstream: &'a str,
    /// What is new.
    pub change: AccountChange<'a>,
}

/// What is new about an account.
#[derive(Debug)]
pub enum AccountChange<'a> {
    /// Nothing can be sent, for this reason.
    Stopped(&'a str),
    /// Mail can be sent again.
    Resumed,
    /// Only verified recipients are taken.
    Sandbox,
    /// Everybody is.
    Production,
    /// The account is under review.
    Probation,
    /// It could not be read, for this reason.
    Unreadable(&'a str),
}

impl AccountChanged<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let Self { upstream, change } = self;
        let to = match change {
            AccountChange::Stopped(reason) => {
                warn!(event = "account", upstream, reason, "nothing can be sent for now");
                "stopped"
            }
            AccountChange::Resumed => {
                info!(event = "account", upstream, "mail can be sent again");
                "resumed"
            }
            AccountChange::Sandbox => {
                warn!(event = "account", upstream, "in the sandbox: verified recipients only");
                "sandbox"
            }
            AccountChange::Production => {
                info!(event = "account", upstream, "out of the sandbox");
                "production"
            }
            AccountChange::Probation => {
                warn!(event = "account", upstream, "on probation: Amazon reviews the account");
                "probation"
            }
            AccountChange::Unreadable(reason) => {
                warn!(event = "account", upstream, reason, "quota and state cannot be read");
                "unreadable"
            }
        };
        count("postgate_upstream_account_changes_total", &[("upstream", *upstream), ("to", to)]);
    }
}

/// Amazon SES was asked for an account's quota. What is `None` it did not say.
#[derive(Debug)]
pub struct AccountRefreshed<'a> {
    /// The upstream.
    pub upstream: &'a str,
    /// Recipients in 24 hours; negative: no limit.
    pub max: Option<f64>,
    /// Recipients in the last 24 hours.
    pub used: Option<f64>,
    /// Recipients a second.
    pub rate: Option<f64>,
}

impl AccountRefreshed<'_> {
    /// Shows it in the metrics.
    pub fn emit(&self) {
        for (name, value) in [
            ("postgate_ses_quota_max", self.max),
            ("postgate_ses_quota_used", self.used),
            ("postgate_ses_send_rate_max", self.rate),
        ] {
            if let Some(value) = value {
                metrics::gauge!(name, "upstream" => self.upstream.to_owned()).set(value);
            }
        }
    }
}
