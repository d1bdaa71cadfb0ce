//! One upstream as the scheduler sees it: its breaker, its rate, and its places for attempts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::Timestamp;
use crate::event;
use crate::mail::{Blame, Failure, Outcome, RecipientOutcome, Remedy};
use crate::policy::breaker::{self, Pin, State};
use crate::policy::bucket::Rate;
use crate::policy::eligibility::Rules;
use crate::policy::{Breaker, Bucket};
use crate::upstream::Upstream;

/// An upstream, and what is known of its health. The health outlives a reload: see
/// [`take_over`](Self::take_over).
pub struct Lane {
    /// Where the mail goes.
    pub upstream: Arc<dyn Upstream>,
    /// What the configuration allows it.
    pub limits: Limits,
    refused: Box<dyn Fn() + Send + Sync>,
    health: Arc<Mutex<Health>>,
}

/// What the configuration allows an upstream.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Attempts at once. At least 1.
    pub capacity: usize,
    /// How much it is handed; less where it says so itself.
    pub rate: Option<Rate>,
    /// When it is given a rest.
    pub breaker: breaker::Settings,
    /// What it is known to refuse; `None`: nothing.
    pub rules: Option<Rules>,
}

/// What an upstream's past says of its future.
struct Health {
    breaker: Breaker,
    bucket: Bucket,
    running: usize,
    condition: Condition,
    last_failure: Option<String>,
    sent: u64,
    failed: u64,
}

/// What an operator is told of an upstream's health.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Condition {
    /// The breaker's state, or `waiting` while the upstream itself says that it can take nothing.
    pub word: &'static str,
    /// Since when.
    pub since: Timestamp,
    /// Why, unless it is well.
    pub reason: Option<String>,
}

/// Everything an operator may want to know of a lane.
#[derive(Clone, PartialEq, Debug)]
pub struct View {
    /// How it is.
    pub condition: Condition,
    /// For how long it surely stays so; `None` when that is not known.
    pub rests_for: Option<Duration>,
    /// Attempts at once while it comes back; `None`: no limit but its capacity.
    pub ramp: Option<usize>,
    /// What the operator said, and for how much longer.
    pub pin: Option<(String, Option<Duration>)>,
    /// Attempts under way.
    pub running: usize,
    /// How much it is handed at most.
    pub rate: Option<Rate>,
    /// Its own last fault; `None` once it works again.
    pub last_failure: Option<String>,
    /// Recipients handed over since the start.
    pub sent: u64,
    /// Attempts that failed by its fault since the start.
    pub failed: u64,
}

/// What an operator can do to a lane.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Intervention {
    /// Nothing goes there, for so long or until it is resumed.
    Pause {
        /// How long.
        lasting: Option<Duration>,
        /// Why.
        reason: String,
    },
    /// Takes a pause away.
    Resume,
    /// Opens the breaker as if the upstream had failed.
    Trip {
        /// How long until it is probed; `None`: as after failures.
        lasting: Option<Duration>,
        /// Why.
        reason: String,
    },
    /// Closes the breaker, whatever happened.
    Reset,
}

/// How many attempts may start now, and what a message does when there are no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Offer {
    /// Attempts that are admitted. Each is used, or withdrawn.
    pub(super) slots: usize,
    /// What the upstream is for those beyond.
    pub(super) beyond: Beyond,
}

/// What an upstream is for a message it has no place for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Beyond {
    /// Well, and busy: the message waits for it.
    Busy,
    /// Not well: the next upstream of the route may have the message.
    Down,
}

impl Lane {
    /// A lane in good health. `refused` is called when the upstream refused our login: the secret
    /// should be read again.
    pub fn new(
        upstream: Arc<dyn Upstream>,
        limits: Limits,
        refused: Box<dyn Fn() + Send + Sync>,
        now: Timestamp,
    ) -> Self {
        let condition = Condition { word: State::Closed.word(), since: now, reason: None };
        let health = Health {
            breaker: Breaker::new(limits.breaker),
            bucket: Bucket::default(),
            running: 0,
            condition,
            last_failure: None,
            sent: 0,
            failed: 0,
        };
        Self { upstream, limits, refused, health: Arc::new(Mutex::new(health)) }
    }

    /// The same upstream after a reload: what is known of its health goes on.
    pub fn take_over(&mut self, before: &Self) {
        self.health = Arc::clone(&before.health);
        self.health().breaker.reconfigure(self.limits.breaker);
    }

    /// The upstream's name.
    pub fn name(&self) -> &str {
        self.upstream.name()
    }

    /// Admits up to `most` attempts. Each must be answered by one call of [`start`](Self::start) and
    /// then [`heard`](Self::heard), or by [`withdraw`](Self::withdraw).
    pub(super) fn offer(&self, most: usize, now: Instant, wall: Timestamp) -> Offer {
        let standing = self.upstream.standing();
        let mut health = self.health();
        health.breaker.secret(standing.secret, now);
        health.bucket.set_rate(slower(self.limits.rate, standing.rate), now);
        let changed = health.observe(standing.wanting.as_deref(), now, wall);
        let room = most.min(self.limits.capacity.max(1).saturating_sub(health.running));
        let beyond = match health.breaker.state(now) {
            State::Closed if health.breaker.ramp(now).is_none() => Beyond::Busy,
            _ => Beyond::Down,
        };
        let offer = if standing.wanting.is_some() {
            Offer { slots: 0, beyond: Beyond::Down }
        } else if health.bucket.ready(now) > now {
            Offer { slots: 0, beyond }
        } else {
            let slots = (0..room).take_while(|_| health.breaker.admit(now)).count();
            Offer { slots, beyond }
        };
        drop(health);
        self.tell(changed);
        offer
    }

    /// Gives back admissions that were not used.
    pub(super) fn withdraw(&self, unused: usize) {
        let mut health = self.health();
        (0..unused).for_each(|_| health.breaker.withdrawn());
    }

    /// An admitted attempt for so many recipients starts. Returns whether the rate lets another one
    /// start now.
    pub(super) fn start(&self, recipients: usize, now: Instant) -> bool {
        let mut health = self.health();
        health.running += 1;
        health.bucket.take(recipients, now);
        health.bucket.ready(now) <= now
    }

    /// What came of an attempt that was made with the credentials of version `secret`.
    pub(super) fn heard(&self, outcome: &Outcome, secret: u64, now: Instant, wall: Timestamp) {
        let standing = self.upstream.standing();
        let verdict = verdict(outcome);
        let refused = matches!(&verdict, Verdict::Failed(f) if f.remedy == Remedy::Secret);
        let mut health = self.health();
        health.running = health.running.saturating_sub(1);
        health.sent += outcome.sent() as u64;
        match &verdict {
            Verdict::Reached => health.breaker.succeeded(now),
            Verdict::Ours => health.breaker.withdrawn(),
            // It works; we were too quick.
            Verdict::Failed(failure) if failure.remedy == Remedy::Slower => {
                health.bucket.slower(now);
                health.breaker.withdrawn();
            }
            // The credentials have changed since: this says nothing about the new ones.
            Verdict::Failed(_) if refused && standing.secret != secret => {
                health.breaker.withdrawn();
            }
            Verdict::Failed(_) => health.breaker.failed(now, refused.then_some(secret)),
        }
        match verdict {
            Verdict::Reached => health.last_failure = None,
            Verdict::Ours => {}
            Verdict::Failed(failure) => {
                health.failed += 1;
                health.last_failure = Some(failure.to_string());
            }
        }
        let changed = health.observe(standing.wanting.as_deref(), now, wall);
        drop(health);
        self.tell(changed);
        if refused {
            (self.refused)();
        }
    }

    /// Does what the operator says.
    pub fn intervene(&self, intervention: Intervention, now: Instant, wall: Timestamp) {
        let standing = self.upstream.standing();
        let mut health = self.health();
        match intervention {
            Intervention::Pause { lasting, reason } => {
                let until = lasting.map(|lasting| now + lasting);
                health.breaker.pause(Some(Pin { until, reason }));
            }
            Intervention::Resume => health.breaker.pause(None),
            Intervention::Trip { lasting, reason } => {
                health.breaker.trip(now, lasting);
                health.last_failure = Some(format!("tripped by the operator: {reason}"));
            }
            Intervention::Reset => {
                health.breaker.reset();
                health.last_failure = None;
            }
        }
        let changed = health.observe(standing.wanting.as_deref(), now, wall);
        drop(health);
        self.tell(changed);
    }

    /// Whether mail may go there as things stand: not whether there is a place right now.
    pub(super) fn is_well(&self, now: Instant) -> bool {
        self.upstream.standing().wanting.is_none()
            && self.health().breaker.state(now) == State::Closed
    }

    /// How long nothing will change by itself; `None` when only an attempt's end can change it.
    pub(super) fn wakes_in(&self, now: Instant) -> Option<Duration> {
        let health = self.health();
        let at = match health.breaker.state(now) {
            State::Open { until } => Some(until),
            State::Paused => health.breaker.pin(now).and_then(|pin| pin.until),
            State::Closed | State::HalfOpen | State::Held => None,
        };
        let ready = Some(health.bucket.ready(now)).filter(|ready| *ready > now);
        let at = at.into_iter().chain(ready).min()?;
        Some(at.saturating_duration_since(now))
    }

    /// What is to be known of it.
    pub fn view(&self, now: Instant, wall: Timestamp) -> View {
        let standing = self.upstream.standing();
        let mut health = self.health();
        let changed = health.observe(standing.wanting.as_deref(), now, wall);
        let left = |until: Instant| until.saturating_duration_since(now);
        let view = View {
            condition: health.condition.clone(),
            rests_for: match health.breaker.state(now) {
                State::Open { until } => Some(left(until)),
                _ => None,
            },
            ramp: health.breaker.ramp(now),
            pin: health.breaker.pin(now).map(|pin| (pin.reason.clone(), pin.until.map(left))),
            running: health.running,
            rate: slower(self.limits.rate, standing.rate),
            last_failure: health.last_failure.clone(),
            sent: health.sent,
            failed: health.failed,
        };
        drop(health);
        self.tell(changed);
        view
    }

    fn tell(&self, changed: Option<Condition>) {
        if let Some(Condition { word, reason, .. }) = changed {
            let reason = reason.as_deref();
            event::BreakerChanged { upstream: self.name(), to: word, reason }.emit();
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        // A panic while it was held cannot have left it half changed: its methods do not panic.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    /// Notes how it is; the condition when that is another one than before.
    fn observe(
        &mut self,
        wanting: Option<&str>,
        now: Instant,
        since: Timestamp,
    ) -> Option<Condition> {
        let state = self.breaker.state(now);
        let (word, reason) = match (state, wanting) {
            (State::Paused, _) => {
                (state.word(), self.breaker.pin(now).map(|pin| pin.reason.clone()))
            }
            (_, Some(why)) => ("waiting", Some(why.to_owned())),
            (State::Closed, None) => (state.word(), None),
            (_, None) => (state.word(), self.last_failure.clone()),
        };
        if word == self.condition.word {
            self.condition.reason = reason;
            return None;
        }
        self.condition = Condition { word, since, reason };
        Some(self.condition.clone())
    }
}

/// The smaller of two limits. They count the same, or the configuration's counts.
fn slower(ours: Option<Rate>, theirs: Option<Rate>) -> Option<Rate> {
    match (ours, theirs) {
        (Some(a), Some(b)) if a.of == b.of && b.per_second < a.per_second => Some(b),
        (ours, theirs) => ours.or(theirs),
    }
}

/// What an attempt says about the upstream.
enum Verdict<'a> {
    /// It works: it took the mail, or judged it.
    Reached,
    /// It does not.
    Failed(&'a Failure),
    /// Nothing: we failed before asking it.
    Ours,
}

fn verdict(outcome: &Outcome) -> Verdict<'_> {
    let failures = || outcome.recipients.iter().filter_map(RecipientOutcome::failure);
    if failures().count() < outcome.recipients.len() {
        return Verdict::Reached;
    }
    match outcome.upstream_failure() {
        Some(failure) => Verdict::Failed(failure),
        None if failures().any(|f| f.blame != Blame::Local) => Verdict::Reached,
        None => Verdict::Ours,
    }
}
