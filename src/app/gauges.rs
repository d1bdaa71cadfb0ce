//! What Prometheus and probes are shown.

use std::sync::Arc;

use metrics::{Gauge, counter, gauge};

use super::reload::Live;
use crate::admin::Probes;
use crate::clock::{Clock, SystemClock};
use crate::delivery::Plan;
use crate::event;
use crate::spool::{Spool, Stats};

/// What the door for Prometheus and probes shows.
pub(super) fn probes(live: &Live, spool: Arc<dyn Spool>) -> Probes {
    let listeners: Vec<&str> = live.config.listeners.iter().map(|l| l.name.as_str()).collect();
    let plan = live.plan.load();
    for (route, lanes) in plan.routes() {
        let upstreams: Vec<&str> = lanes.map(|lane| lane.name()).collect();
        event::start_counting(&listeners, &route.name, &upstreams);
    }
    let (numbers, dropped) = (live.telemetry.numbers(), live.telemetry.dropped());
    let (plan, for_refusal) = (Arc::clone(&live.plan), Arc::clone(&spool));
    Probes {
        metrics: Arc::new(move || {
            queue(&spool.stats());
            upstreams(&plan.load());
            let lost = u64::try_from(dropped.dropped_lines()).unwrap_or(u64::MAX);
            counter!("postgate_log_lines_dropped_total").absolute(lost);
            numbers()
        }),
        refusal: Arc::new(move || for_refusal.refusal().map(|e| e.to_string())),
    }
}

fn queue(queue: &Stats) {
    gauge!("postgate_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1);
    for (state, n) in [
        ("incoming", queue.incoming),
        ("active", queue.active),
        ("deferred", queue.deferred),
        ("held", queue.held),
        ("dead", queue.dead),
    ] {
        set(&gauge!("postgate_queue_messages", "state" => state), n);
    }
    set(&gauge!("postgate_queue_bytes"), queue.bytes);
}

fn upstreams(plan: &Plan) {
    let (now, wall) = (SystemClock.now(), SystemClock.wall());
    for lane in plan.lanes() {
        let view = lane.view(now, wall);
        let upstream = || lane.name().to_owned();
        for state in event::CONDITIONS {
            let labels = [("upstream", upstream()), ("state", state.to_owned())];
            let is = u64::from(state == view.condition.word);
            set(&gauge!("postgate_upstream_breaker_state", &labels), is);
        }
        let running = gauge!("postgate_upstream_attempts", "upstream" => upstream());
        set(&running, view.running as u64);
    }
    for (route, lanes) in plan.routes() {
        let well = lanes.filter(|lane| lane.view(now, wall).condition.is_well()).count();
        let labels = [("route", route.name.clone())];
        set(&gauge!("postgate_route_available_upstreams", &labels), well as u64);
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are floating point")]
fn set(gauge: &Gauge, value: u64) {
    gauge.set(value as f64);
}
