//! What happens, one type for each thing. This is the only place that logs or counts.
//!
//! A module that decides something fills in the type and calls `emit`. The keys are Postfix's words
//! (`queue_id`, `to`, `relay`, `delay`, `dsn`, `status`), so that an operator can guess them.
//! What a stranger may have chosen is recorded as a text, not as `%display`: the text format quotes
//! texts, so that no sender's name can look like another field. Severity is the operator's: a deferred delivery is news, not a warning.

mod delivering;
mod receiving;
mod running;
mod secrets;
mod storing;

use std::time::Duration;

use metrics::{Label, counter};

pub use delivering::{
    AccountChange, AccountChanged, AccountRefreshed, BreakerChanged, Dead, Delivery, DrainCut,
    RouteSwitched,
};
pub use receiving::{AcceptFailed, Disconnected, PeerRefused, Queued, Rejected};
pub use running::{AdminAction, ConfigWarnings, PausesLost, Reloaded, Started, Stopped, Stopping};
pub use secrets::{
    SecretChanged, SecretKept, SecretRead, SecretReadable, SecretUnreadable, VaultToken,
};
pub use storing::{SpoolDamage, SpoolFailed, SpoolOpened, SpoolSnapshotFailed, SpoolUnreadable};

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
        for result in ["sent", "deferred", "bounced", "refused", "unconfirmed"] {
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
