//! What the operator is shown of upstreams, messages and secrets, and what he does to upstreams.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::pauses::Pauses;
use super::reload::Live;
use crate::admin::{
    Connections, Handles, Intervention, May, Operation, Pause, Refused, SecretView, UpstreamView,
    Verdict,
};
use crate::clock::{Clock, SystemClock};
use crate::config;
use crate::delivery::plan::Fitness;
use crate::delivery::{Lane, Plan, lane};
use crate::mail::{Message, RecipientStatus};
use crate::policy::bucket::Rate;
use crate::secrets::{SecretState, SecretStatus, Secrets};
use crate::spool::Spool;

/// What the operator's door shows and does.
pub(super) fn handles(
    live: &Live,
    spool: &Arc<dyn Spool>,
    reload: mpsc::Sender<oneshot::Sender<Result<String, String>>>,
    clock: Arc<dyn Clock>,
) -> Handles {
    let plan = || Arc::clone(&live.plan);
    let (for_upstreams, for_operate, for_explain) = (plan(), plan(), plan());
    let (for_secrets, for_refresh) = (Arc::clone(&live.secrets), Arc::clone(&live.secrets));
    let (pauses, wake) = (Pauses::of(&live.config.spool.path), Arc::clone(&live.wake));
    Handles {
        spool: Arc::clone(spool),
        status: status(live, Arc::clone(spool), &*clock),
        upstreams: Arc::new(move || upstreams(&for_upstreams.load())),
        operate: Arc::new(move |name, wish| {
            let plan = for_operate.load();
            operate(&plan, name, wish)?;
            wake.notify_one();
            let forgotten = |e| format!("done, but a restart will not know of it: {e}");
            pauses.keep(&plan).map_err(|e| Refused::NotNow(forgotten(e)))
        }),
        explain: Arc::new(move |message| explain(&for_explain.load(), message)),
        secrets: Arc::new(move || secrets(&for_secrets.load())),
        refresh: Arc::new(move |name| refresh(&for_refresh.load(), name)),
        reload,
        clock,
    }
}

/// What `postgate status` shows, asked anew each time.
fn status(
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

/// Every upstream of a plan.
fn upstreams(plan: &Plan) -> Vec<UpstreamView> {
    plan.lanes().iter().map(|lane| upstream(plan, lane)).collect()
}

fn upstream(plan: &Plan, lane: &Lane) -> UpstreamView {
    let (now, wall) = (SystemClock.now(), SystemClock.wall());
    let (view, about) = (lane.view(now, wall), lane.upstream.about());
    let leads = |(route, mut lanes): (&crate::policy::routing::Route, _)| {
        fn here<'a>(lanes: &mut impl Iterator<Item = &'a Arc<Lane>>, lane: &Lane) -> bool {
            lanes.any(|one| one.name() == lane.name())
        }
        here(&mut lanes, lane).then(|| route.name.clone())
    };
    UpstreamView {
        name: lane.name().to_owned(),
        kind: about.kind.to_owned(),
        routes: plan.routes().filter_map(leads).collect(),
        breaker: view.condition.word.to_owned(),
        since: Some(view.condition.since),
        until_seconds: view.rests_for.map(|rest| rest.as_secs()),
        ramp: view.ramp,
        wanting: lane.upstream.standing().wanting,
        reason: view.condition.reason,
        last_failure: view.last_failure,
        paused: view
            .pin
            .map(|(reason, left)| Pause { reason, until_seconds: left.map(|left| left.as_secs()) }),
        forced: about.forced,
        connections: Connections { running: view.running, capacity: lane.limits.capacity },
        rate: view.rate.map(|Rate { per_second, .. }| config::format_rate(per_second)),
        sent: view.sent,
        failed: view.failed,
        account: about.account,
    }
}

/// Does what the operator wants to an upstream.
fn operate(plan: &Plan, name: &str, wish: Intervention) -> Result<(), Refused> {
    let lane = plan.lane(name).ok_or_else(|| Refused::NoUpstream(name.to_owned()))?;
    let reason = wish.reason.unwrap_or_default();
    let intervention = match wish.operation {
        Operation::Pause => lane::Intervention::Pause { lasting: wish.lasts, reason },
        Operation::Trip => lane::Intervention::Trip { lasting: wish.lasts, reason },
        Operation::Resume => lane::Intervention::Resume,
        Operation::Reset => lane::Intervention::Reset,
    };
    lane.intervene(intervention, SystemClock.now(), SystemClock.wall());
    Ok(())
}

/// Where the pending recipients of a message may go.
fn explain(plan: &Plan, message: &Message) -> Vec<Verdict> {
    message.pending().flat_map(|place| explain_one(plan, message, place)).collect()
}

fn explain_one(plan: &Plan, message: &Message, place: usize) -> Vec<Verdict> {
    let at = plan.route_of(message, place);
    let Some(route) = plan.route(at) else { return Vec::new() };
    let recipient = message.envelope.recipients.get(place);
    let recipient = recipient.map(|r| r.path.to_string()).unwrap_or_default();
    let mut taken = false;
    let verdict = |(lane, fitness): (&Arc<Lane>, Fitness)| {
        let (verdict, reason) = may(lane, fitness, message.status.get(place), &mut taken);
        Verdict {
            recipient: recipient.clone(),
            route: route.name.clone(),
            priority: route.priority(message).word().to_owned(),
            upstream: lane.name().to_owned(),
            verdict,
            reason,
        }
    };
    plan.candidates(message, place, at).into_iter().map(verdict).collect()
}

/// What an upstream is for a recipient; `taken` once one is found that would get it now.
fn may(
    lane: &Lane,
    fitness: Fitness,
    status: Option<&RecipientStatus>,
    taken: &mut bool,
) -> (May, Option<String>) {
    let condition = lane.view(SystemClock.now(), SystemClock.wall()).condition;
    let down = !condition.is_well();
    let there = matches!(status, Some(RecipientStatus::Unconfirmed { upstream, .. })
        if upstream == lane.name());
    // An operator need not say why.
    let rest = || match condition.reason.as_deref().filter(|why| !why.is_empty()) {
        Some(why) => format!("{}: {why}", condition.word),
        None => condition.word.to_owned(),
    };
    match fitness {
        Fitness::Eligible if there && down => {
            let why = format!("the answer was lost; it is asked again, but waits: {}", rest());
            (May::Unconfirmed, Some(why))
        }
        Fitness::Eligible if there => {
            (May::Unconfirmed, Some("the answer was lost; it is asked again".into()))
        }
        Fitness::Eligible if down => (May::Waits, Some(rest())),
        Fitness::Eligible if std::mem::replace(taken, true) => (May::Eligible, None),
        Fitness::Eligible => (May::Next, None),
        Fitness::Ineligible(why) => (May::Ineligible, Some(why.to_string())),
        Fitness::Refused(failure) => (May::Refused, Some(failure.to_string())),
        Fitness::Unconfirmed if there => {
            let cure = "the answer was lost; say `queue confirm` or `queue resend`";
            (May::Unconfirmed, Some(cure.into()))
        }
        Fitness::Unconfirmed => {
            (May::Ineligible, Some("another upstream may have it already".into()))
        }
    }
}

/// Every secret, without what is secret in it.
fn secrets(secrets: &Secrets) -> Vec<SecretView> {
    secrets.status().into_iter().map(secret).collect()
}

fn secret(status: SecretStatus) -> SecretView {
    let (state, from) = match status.state {
        SecretState::Current => ("current", status.location),
        SecretState::NoLogin => ("empty", status.location),
        SecretState::Kept => ("stale", status.location),
        SecretState::Fallback => ("stale", format!("environment, for {}", status.location)),
        SecretState::Missing => ("missing", status.location),
    };
    SecretView {
        name: status.name,
        from,
        version: status.source_version.or_else(|| Some(status.version).filter(|n| *n > 0)),
        read: status.last_success,
        state: state.to_owned(),
        reason: status.last_error,
    }
}

/// Has one secret, or all, read again.
fn refresh(secrets: &Secrets, name: Option<&str>) -> Result<(), Refused> {
    match name {
        None => secrets.refresh_all(),
        Some(name) if secrets.refresh(name) => {}
        Some(name) => return Err(Refused::NoSecret(name.to_owned())),
    }
    Ok(())
}
