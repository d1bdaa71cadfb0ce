//! From the configuration to each module's own settings. Nothing is decided here.

use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use serde_json::json;
use tokio::sync::watch;

use super::reload::Live;
use crate::admin::{Probes, UpstreamView};
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Config, UpstreamKind};
use crate::delivery::{self, Lane, Limits as LaneLimits, Plan};
use crate::event;
use crate::mail::header;
use crate::policy::admission::Limits;
use crate::policy::routing::{self, Match, Route};
use crate::secret::Credentials;
use crate::server::{self, Policy};
use crate::smtp;
use crate::spool::{Spool, Stats};
use crate::upstream::Upstream;
use crate::upstream::maildir::{MaildirError, MaildirUpstream};
use crate::upstream::smtp::{SettingsError, SmtpUpstream};

/// A valid configuration that does not work on this machine.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A certificate cannot be used.
    #[error("{0}")]
    Tls(#[from] server::TlsError),
    /// A smarthost's certificate file cannot be used.
    #[error("upstream {name}: {source}")]
    Smarthost {
        /// The upstream's name.
        name: String,
        /// Why not.
        source: SettingsError,
    },
    /// A Maildir cannot be made.
    #[error("upstream {name}: {source}")]
    Maildir {
        /// The upstream's name.
        name: String,
        /// Why not.
        source: MaildirError,
    },
    /// The credentials cannot be read.
    #[error("upstream {name}: {source}")]
    Credentials {
        /// The upstream's name.
        name: String,
        /// Why not.
        source: config::LoginError,
    },
    /// Its way of sending is not here.
    #[error("upstream {0}: SES cannot be used yet")]
    Ses(String),
    /// The route leads nowhere; the configuration's check excludes it.
    #[error("no route names an upstream that exists")]
    NoRoute,
}

/// How many octets a message's header may have.
const HEADER_MAX: usize = 1024 * 1024;

/// How many refused clients are held at once to be told why, in total and for each peer.
const REFUSED_MAX: Limits = Limits { total: 100, per_peer: 4 };

/// How long a client may take for a TLS handshake.
const TLS_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a closed connection is kept for the client to read the last reply.
const LINGER: Duration = Duration::from_secs(2);

/// Messages handed to a Maildir at once: it is a disk.
const MAILDIR_CAPACITY: usize = 4;

/// What may come in. The listeners are those of `started`: they cannot be changed while running.
pub(super) fn policy(config: &Config, started: &Config) -> Result<Policy, BuildError> {
    let limits = &config.limits;
    let smtp = smtp::Settings {
        hostname: config.hostname.clone(),
        postmaster: config.postmaster.clone(),
        max_message_size: limits.max_message_size,
        max_recipients: limits.max_recipients,
        max_text_line: limits.max_text_line,
        max_errors: limits.max_errors,
        max_messages: limits.max_messages_per_connection,
        command_timeout: limits.command_timeout,
        data_timeout: limits.data_timeout,
        bare_newline: limits.bare_newline,
        starttls: false,
    };
    Ok(Policy {
        smtp: Arc::new(smtp),
        networks: config.mynetworks.clone(),
        header: header::Settings {
            hostname: config.hostname.clone(),
            max_header: HEADER_MAX,
            max_hops: limits.max_hops,
            show_address: config.received.client_address,
            show_helo: config.received.helo,
        },
        wanted_headers: routing::headers(&config.routes),
        limits: Limits { total: limits.max_connections, per_peer: limits.max_connections_per_ip },
        refused: REFUSED_MAX,
        tls: server::tls::load(&started.listeners)?,
        tls_timeout: TLS_TIMEOUT,
        linger: LINGER,
    })
}

/// Where mail goes: the first upstream of the one route.
pub(super) fn plan(config: &Config, login: Option<Credentials>) -> Result<Plan, BuildError> {
    let (route, upstream) = destination(config)?;
    let name = &upstream.name;
    let (made, capacity): (Arc<dyn Upstream>, usize) = match &upstream.kind {
        UpstreamKind::Smtp(smtp) => {
            // The login changes with a reload, and a reload makes a new upstream.
            let (_, login) = watch::channel(login.map(Arc::new));
            let smarthost = SmtpUpstream::new(smtp.as_ref().clone(), login)
                .map_err(|source| BuildError::Smarthost { name: name.clone(), source })?;
            (Arc::new(smarthost), smtp.pool.max_connections)
        }
        UpstreamKind::Ses(_) => return Err(BuildError::Ses(name.clone())),
        UpstreamKind::Maildir(maildir) => {
            let maildir = MaildirUpstream::new(name, &maildir.path, Arc::new(SystemClock))
                .map_err(|source| BuildError::Maildir { name: name.clone(), source })?;
            (Arc::new(maildir), MAILDIR_CAPACITY)
        }
    };
    let limits =
        LaneLimits { capacity, rate: upstream.rate, breaker: upstream.breaker, rules: None };
    let lane = Lane::new(made, limits, Box::new(|| {}), SystemClock.wall());
    let only = vec![name.clone()];
    let route = Route { when: Match::default(), upstreams: only, ..route.clone() };
    Plan::new(delivery(config), vec![route], vec![Arc::new(lane)]).map_err(|_| BuildError::NoRoute)
}

/// The credentials for [`plan`], where it needs some.
pub(super) fn login(config: &Config) -> Result<Option<Credentials>, BuildError> {
    let (_, upstream) = destination(config)?;
    config
        .login(upstream, 1)
        .map_err(|source| BuildError::Credentials { name: upstream.name.clone(), source })
}

fn destination(config: &Config) -> Result<(&Route, &config::Upstream), BuildError> {
    let route = config.routes.first().ok_or(BuildError::NoRoute)?;
    let upstream = route.upstreams.first().and_then(|name| config.upstream(name));
    Ok((route, upstream.ok_or(BuildError::NoRoute)?))
}

/// How mail is sent.
pub(super) fn delivery(config: &Config) -> delivery::Settings {
    delivery::Settings {
        max_active: config.delivery.max_active,
        backoff: config.retry.backoff,
        max_age: config.retry.max_age,
    }
}

/// What `postgate status` shows, asked anew each time.
pub(super) fn status(
    live: &Live,
    spool: Arc<dyn Spool>,
    clock: &dyn Clock,
) -> Arc<dyn Fn() -> serde_json::Value + Send + Sync> {
    let policy = Arc::clone(&live.policy);
    let dropped = live.telemetry.dropped();
    let since = clock.wall();
    Arc::new(move || {
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "hostname": policy.load().smtp.hostname,
            "since": since.rfc3339(),
            "accepting": spool.refusal().is_none(),
            "refusal": spool.refusal().map(|e| e.to_string()),
            "queue": spool.stats(),
            "log_lines_dropped": dropped.dropped_lines(),
        })
    })
}

/// The upstreams as `postgate upstream list` shows them.
pub(super) fn upstreams(
    live: &Live,
    clock: Arc<dyn Clock>,
) -> Arc<dyn Fn() -> Vec<UpstreamView> + Send + Sync> {
    let plan = Arc::clone(&live.plan);
    let one = move |lane: &Arc<Lane>| {
        let view = lane.view(clock.now(), clock.wall());
        UpstreamView {
            name: lane.name().into(),
            breaker: view.condition.word.into(),
            since: Some(view.condition.since),
            until_seconds: view.rests_for.map(|rest| rest.as_secs()),
            reason: view.condition.reason,
            last_failure: view.last_failure,
            sent: view.sent,
            failed: view.failed,
            ..UpstreamView::default()
        }
    };
    Arc::new(move || plan.load().lanes().iter().map(&one).collect())
}

/// What Prometheus and probes are shown.
pub(super) fn probes(live: &Live, spool: Arc<dyn Spool>) -> Probes {
    let listeners: Vec<&str> = live.config.listeners.iter().map(|l| l.name.as_str()).collect();
    let plan = live.plan.load();
    for (route, lanes) in plan.routes() {
        for lane in lanes {
            event::start_counting(&listeners, &route.name, lane.name());
        }
    }
    let (numbers, dropped) = (live.telemetry.numbers(), live.telemetry.dropped());
    let (plan, for_refusal) = (Arc::clone(&live.plan), Arc::clone(&spool));
    Probes {
        metrics: Arc::new(move || {
            let lost = u64::try_from(dropped.dropped_lines()).unwrap_or(u64::MAX);
            for lane in plan.load().lanes() {
                let view = lane.view(SystemClock.now(), SystemClock.wall());
                gauges(&spool.stats(), lane.name(), view.condition.word, lost);
            }
            numbers()
        }),
        refusal: Arc::new(move || for_refusal.refusal().map(|e| e.to_string())),
    }
}

/// What is measured when it is asked for.
#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are floating point")]
fn gauges(queue: &Stats, upstream: &str, breaker: &str, lost: u64) {
    gauge!("postgate_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1);
    for (state, n) in [
        ("incoming", queue.incoming),
        ("active", queue.active),
        ("deferred", queue.deferred),
        ("held", queue.held),
        ("dead", queue.dead),
    ] {
        gauge!("postgate_queue_messages", "state" => state).set(n as f64);
    }
    gauge!("postgate_queue_bytes").set(queue.bytes as f64);
    for state in ["closed", "open", "half-open"] {
        let labels = [("upstream", upstream.to_owned()), ("state", state.to_owned())];
        gauge!("postgate_upstream_breaker_state", &labels).set(u8::from(state == breaker));
    }
    counter!("postgate_log_lines_dropped_total").absolute(lost);
}
