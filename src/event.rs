//! What happens, one type for each thing. This is the only place that logs or counts.
//!
//! A module that decides something fills in the type and calls `emit`. The keys are Postfix's words
//! (`queue_id`, `to`, `relay`, `delay`, `dsn`, `status`), so that an operator can guess them.
//! What a stranger may have chosen is recorded as a text, not as `%display`: the text format quotes
//! texts, so that no sender's name can look like another field. Severity is the operator's: a deferred delivery is news, not a warning.

use std::net::IpAddr;
use std::time::Duration;

use metrics::{Label, counter, gauge, histogram};
use tracing::{debug, error, info, warn};

use crate::mail::{Message, Outcome, QueueId, RecipientOutcome, Reply};

use crate::clock::Timestamp;

/// The words of an upstream's condition.
pub const CONDITIONS: [&str; 6] = ["closed", "open", "half-open", "held", "paused", "waiting"];

/// Makes every counter that these names lead to exist, at zero: a counter that appears with its
/// first event hides that event from `rate()`.
pub fn start_counting(listeners: &[&str], route: &str, upstreams: &[&str]) {
    for listener in listeners {
        let listener = ("listener", *listener);
        for name in [
            "postgate_smtp_refused_connections_total",
            "postgate_messages_received_total",
            "postgate_received_bytes_total",
        ] {
            add(name, &[listener], 0);
        }
        for class in ["4xx", "5xx"] {
            add("postgate_smtp_rejects_total", &[listener, ("class", class)], 0);
        }
    }
    let route = ("route", route);
    for upstream in upstreams {
        let label = ("upstream", *upstream);
        for result in ["sent", "deferred", "bounced", "unconfirmed"] {
            add("postgate_delivery_attempts_total", &[route, label, ("result", result)], 0);
        }
        for to in CONDITIONS {
            add("postgate_upstream_breaker_transitions_total", &[label, ("to", to)], 0);
        }
    }
    let ways = || upstreams.iter().copied().chain(["none"]);
    for (from, to) in ways().flat_map(|from| ways().map(move |to| (from, to))) {
        if from != to {
            add("postgate_route_switches_total", &[route, ("from", from), ("to", to)], 0);
        }
    }
    for result in ["ok", "failed"] {
        add("postgate_config_reloads_total", &[("result", result)], 0);
    }
    for name in [
        "postgate_dead_letters_total",
        "postgate_spool_errors_total",
        "postgate_spool_damaged_ranges_total",
    ] {
        add(name, &[], 0);
    }
}

fn count(name: &'static str, labels: &[(&'static str, &str)]) {
    add(name, labels, 1);
}

fn add(name: &'static str, labels: &[(&'static str, &str)], n: u64) {
    let labels: Vec<Label> =
        labels.iter().map(|(key, value)| Label::new(*key, (*value).to_owned())).collect();
    counter!(name, labels).increment(n);
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// A connection was refused in the greeting.
#[derive(Debug)]
pub struct PeerRefused<'a> {
    /// The listener's name.
    pub listener: &'a str,
    /// Who tried.
    pub peer: IpAddr,
    /// What it was told.
    pub reply: &'a Reply,
}

impl PeerRefused<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let Self { listener, peer, reply } = self;
        count("postgate_smtp_refused_connections_total", &[("listener", listener)]);
        warn!(event = "rejected", listener, client = %peer, reply = reply.to_string(), "client refused");
    }
}

/// A command or a message was refused.
#[derive(Debug)]
pub struct Rejected<'a> {
    /// The listener's name.
    pub listener: &'a str,
    /// Who tried.
    pub peer: IpAddr,
    /// What it was told.
    pub reply: &'a Reply,
}

impl Rejected<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let Self { listener, peer, reply } = self;
        let class = if reply.is_permanent() { "5xx" } else { "4xx" };
        count("postgate_smtp_rejects_total", &[("listener", listener), ("class", class)]);
        info!(event = "rejected", listener, client = %peer, reply = reply.to_string(), "rejected");
    }
}

/// A connection ended.
#[derive(Debug)]
pub struct Disconnected<'a> {
    /// The listener's name.
    pub listener: &'a str,
    /// Who it was.
    pub peer: IpAddr,
    /// Messages taken in it.
    pub messages: usize,
    /// Why it ended, if not by QUIT.
    pub reason: Option<&'a str>,
}

impl Disconnected<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let Self { listener, peer, messages, reason } = self;
        let reason = reason.unwrap_or("quit");
        debug!(event = "disconnected", listener, client = %peer, messages, reason, "disconnected");
    }
}

/// A message is on stable storage and its client is about to be told.
#[derive(Debug)]
pub struct Queued<'a> {
    /// The message.
    pub message: &'a Message,
    /// From the last octet to durable.
    pub commit: Duration,
}

impl Queued<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let m = self.message;
        let listener = [("listener", m.client.listener.as_str())];
        count("postgate_messages_received_total", &listener);
        add("postgate_received_bytes_total", &listener, m.size);
        histogram!("postgate_spool_commit_duration_seconds").record(self.commit);
        info!(
            event = "queued",
            queue_id = %m.id,
            message_id = m.message_id,
            from = m.envelope.reverse_path.to_string(),
            nrcpt = m.envelope.recipients.len(),
            size = m.size,
            client = %m.client.address,
            helo = m.client.helo,
            listener = m.client.listener,
            commit_ms = millis(self.commit),
            "queued"
        );
    }
}

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

/// The spool is open.
#[derive(Debug)]
pub struct SpoolOpened<'a> {
    /// Its directory.
    pub path: &'a std::path::Path,
    /// Messages in it.
    pub messages: u64,
    /// Ranges that could not be read and were set aside.
    pub damaged: usize,
    /// Messages whose body is missing; they are held.
    pub without_body: usize,
    /// Whether the last, never acknowledged batch was cut off.
    pub torn_tail: bool,
}

impl SpoolOpened<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let Self { path, messages, damaged, without_body, torn_tail } = self;
        let path = path.display();
        if *damaged > 0 || *without_body > 0 {
            error!(event = "spool", %path, messages, damaged, without_body, torn_tail,
                "spool opened with damage; see quarantine/ in it");
        } else {
            info!(event = "spool", %path, messages, torn_tail, "spool opened");
        }
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

/// The spool could not do something.
pub struct SpoolFailed<'a> {
    /// Which message, if one.
    pub queue_id: Option<QueueId>,
    /// What went wrong.
    pub error: &'a dyn std::fmt::Display,
}

impl SpoolFailed<'_> {
    /// Logs it.
    pub fn emit(&self) {
        count("postgate_spool_errors_total", &[]);
        let queue_id = self.queue_id.map(|id| id.to_string()).unwrap_or_default();
        error!(event = "spool", queue_id, error = %self.error, "spool failed");
    }
}

/// A listener could not accept a connection; it goes on after a pause.
#[derive(Debug)]
pub struct AcceptFailed<'a> {
    /// The listener's name.
    pub listener: &'a str,
    /// What the system said.
    pub error: &'a std::io::Error,
}

impl AcceptFailed<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let Self { listener, error } = self;
        error!(event = "accept", listener, %error, "cannot accept connections");
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

/// A queued message could not be read from the spool.
pub struct SpoolUnreadable<'a> {
    /// The message.
    pub id: QueueId,
    /// What was wrong; a damaged message is held.
    pub error: &'a dyn std::fmt::Display,
}

impl SpoolUnreadable<'_> {
    /// Logs it.
    pub fn emit(&self) {
        count("postgate_spool_errors_total", &[]);
        let Self { id, error } = self;
        error!(event = "spool_unreadable", queue_id = %id, %error, "message can't be read");
    }
}

/// The state of the queue could not be written down; the next start takes longer.
pub struct SpoolSnapshotFailed<'a> {
    /// What was wrong.
    pub error: &'a dyn std::fmt::Display,
}

impl SpoolSnapshotFailed<'_> {
    /// Logs it.
    pub fn emit(&self) {
        let Self { error } = self;
        warn!(event = "spool_snapshot", %error, "no snapshot; the next start reads the whole log");
    }
}

/// A range of a segment did not hold what was written there.
pub struct SpoolDamage<'a> {
    /// The spool's directory.
    pub path: &'a std::path::Path,
    /// The segment.
    pub segment: u32,
    /// Where in it, in octets.
    pub range: std::ops::Range<u64>,
    /// The message, where that can still be told.
    pub id: Option<QueueId>,
}

impl SpoolDamage<'_> {
    /// Logs it.
    pub fn emit(&self) {
        count("postgate_spool_damaged_ranges_total", &[]);
        let Self { path, segment, range, id } = self;
        let (path, queue_id) = (path.display(), id.map(|id| id.to_string()).unwrap_or_default());
        let (start, end) = (range.start, range.end);
        error!(event = "spool_damage", %path, segment, start, end, queue_id,
            "damage in the spool; a copy is in quarantine/ where there was something to copy");
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

/// A secret is looked after from now on: its measurements exist before it is ever read.
#[derive(Debug)]
pub struct SecretKept<'a> {
    /// The secret's name.
    pub name: &'a str,
    /// How often it is read.
    pub interval: Duration,
}

impl SecretKept<'_> {
    /// Measures it.
    pub fn emit(&self) {
        let label = [("secret", self.name.to_owned())];
        gauge!("postgate_secret_refresh_interval_seconds", &label).set(self.interval);
        gauge!("postgate_secret_last_refresh_success_timestamp_seconds", &label).increment(0);
        gauge!("postgate_secret_version", &label).increment(0);
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
