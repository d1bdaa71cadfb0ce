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

impl Condition {
    /// Whether mail goes there.
    pub fn is_well(&self) -> bool {
        self.word == State::Closed.word()
    }
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
    /// Recipients one attempt may have.
    pub(super) max_recipients: usize,
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

    /// The same upstream after a reload: what is known of its health goes on. One that is made anew is
    /// asked again, should it have refused a login: that may be another one.
    pub fn take_over(&mut self, before: &Self) {
        self.health = Arc::clone(&before.health);
        let mut health = self.health();
        health.breaker.reconfigure(self.limits.breaker);
        // Versions are counted for each secret: those of another one tell nothing.
        if !Arc::ptr_eq(&self.upstream, &before.upstream) {
            health.breaker.login_changed();
        }
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
            State::Closed if health.ramp(self.limits.capacity, now).is_none() => Beyond::Busy,
            _ => Beyond::Down,
        };
        let (slots, beyond) = if standing.wanting.is_some() {
            (0, Beyond::Down)
        } else if health.bucket.ready(now) > now {
            (0, beyond)
        } else {
            ((0..room).take_while(|_| health.breaker.admit(now)).count(), beyond)
        };
        drop(health);
        self.tell(changed);
        Offer { slots, beyond, max_recipients: standing.max_recipients.max(1) }
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
        let ready = Some(health.bucket.ready(now)).filter(|ready| *ready > now);
        let at = health.breaker.wakes(now).into_iter().chain(ready).min()?;
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
            ramp: health.ramp(self.limits.capacity, now),
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
    /// How many attempts at once it gets on its way back, while that is less than its capacity:
    /// from there on it is as busy as ever, and that is no reason to ask another one.
    fn ramp(&self, capacity: usize, now: Instant) -> Option<usize> {
        self.breaker.ramp(now).filter(|limit| *limit < capacity.max(1))
    }

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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::mail::{Body, EnhancedStatus, Envelope, Handoff, Reply, Stage};
    use crate::policy::bucket::Unit;
    use crate::upstream::{Leaving, Standing};

    const WALL: Timestamp = Timestamp::from_millis(1_000);

    /// An upstream that nobody asks.
    #[derive(Default)]
    struct Idle {
        secret: AtomicU64,
        wanting: Mutex<Option<String>>,
    }

    #[async_trait::async_trait]
    impl Upstream for Idle {
        fn name(&self) -> &'static str {
            "idle"
        }

        fn standing(&self) -> Standing {
            Standing {
                wanting: self.wanting.lock().unwrap().clone(),
                secret: self.secret.load(Ordering::SeqCst),
                ..Standing::default()
            }
        }

        async fn deliver(&self, _: &Envelope, _: &Body, _: &dyn Leaving, _: Instant) -> Outcome {
            unreachable!("it is only looked at")
        }
    }

    struct World {
        idle: Arc<Idle>,
        lane: Lane,
        now: Instant,
        refreshed: Arc<AtomicUsize>,
    }

    fn world(rate: Option<f64>) -> World {
        let (idle, refreshed) = (Arc::new(Idle::default()), Arc::new(AtomicUsize::new(0)));
        let limits = Limits {
            capacity: 4,
            rate: rate.map(|per_second| Rate { per_second, of: Unit::Recipients }),
            breaker: breaker::Settings { failures: 1, ..Default::default() },
            rules: None,
        };
        let told = Arc::clone(&refreshed);
        let refused = Box::new(move || {
            told.fetch_add(1, Ordering::SeqCst);
        });
        let lane = Lane::new(Arc::clone(&idle) as _, limits, refused, WALL);
        World { idle, lane, now: SystemClock.now(), refreshed }
    }

    impl World {
        /// The lane's word after an attempt that came to this.
        fn attempt(&self, recipients: Vec<RecipientOutcome>) -> &'static str {
            let slots = self.lane.offer(1, self.now, WALL).slots;
            assert_eq!(slots, 1);
            self.lane.start(recipients.len(), self.now);
            let outcome = Outcome { recipients, ..Outcome::all(0, &sent()) };
            self.lane.heard(&outcome, 0, self.now, WALL);
            self.word()
        }

        fn word(&self) -> &'static str {
            self.lane.view(self.now, WALL).condition.word
        }
    }

    fn failed(blame: Blame, remedy: Remedy) -> RecipientOutcome {
        RecipientOutcome::Deferred(Failure {
            stage: Stage::Rcpt,
            blame,
            handoff: Handoff::NotSent,
            remedy,
            reply: None,
            status: EnhancedStatus::new(4, 0, 0),
            detail: "test".into(),
        })
    }

    fn sent() -> RecipientOutcome {
        RecipientOutcome::Sent { reply: Reply::new(250, EnhancedStatus::new(2, 0, 0), "Ok") }
    }

    #[test]
    fn only_the_upstreams_own_fault_opens_the_breaker() {
        let after = |outcomes| world(None).attempt(outcomes);
        let failed = |blame| failed(blame, Remedy::Time);
        assert_eq!(after(vec![failed(Blame::Upstream)]), "open");
        assert_eq!(after(vec![failed(Blame::Recipient), failed(Blame::Upstream)]), "open");
        assert_eq!(after(vec![sent(), failed(Blame::Upstream)]), "closed");
        assert_eq!(after(vec![failed(Blame::Recipient)]), "closed");
        assert_eq!(after(vec![failed(Blame::Message)]), "closed");
        assert_eq!(after(vec![failed(Blame::Local)]), "closed");
    }

    #[test]
    fn a_refused_login_is_told_and_holds_until_the_secret_changes() {
        let world = world(None);
        assert_eq!(world.attempt(vec![failed(Blame::Upstream, Remedy::Secret)]), "held");
        assert_eq!(world.refreshed.load(Ordering::SeqCst), 1);
        assert_eq!(world.lane.offer(4, world.now, WALL).beyond, Beyond::Down);
        world.idle.secret.store(1, Ordering::SeqCst);
        assert_eq!(world.lane.offer(4, world.now, WALL).slots, 1, "one probe");
    }

    #[test]
    fn a_login_refused_with_the_secret_of_before_says_nothing_of_this_one() {
        let world = world(None);
        world.idle.secret.store(1, Ordering::SeqCst);
        assert_eq!(world.attempt(vec![failed(Blame::Upstream, Remedy::Secret)]), "closed");
    }

    #[test]
    fn being_asked_too_often_slows_it_and_opens_nothing() {
        let world = world(Some(10.0));
        assert_eq!(world.attempt(vec![failed(Blame::Upstream, Remedy::Slower)]), "closed");
        let offer = world.lane.offer(4, world.now, WALL);
        assert_eq!((offer.slots, offer.beyond), (0, Beyond::Busy));
        assert!(world.lane.wakes_in(world.now).is_some());
    }

    #[test]
    fn places_are_given_up_to_the_capacity_and_come_back() {
        let world = world(None);
        let offer = world.lane.offer(9, world.now, WALL);
        assert_eq!((offer.slots, offer.beyond), (4, Beyond::Busy));
        world.lane.start(1, world.now);
        world.lane.withdraw(3);
        assert_eq!(world.lane.offer(9, world.now, WALL).slots, 3);
        world.lane.withdraw(3);
        world.lane.heard(&Outcome::all(1, &sent()), 0, world.now, WALL);
        assert_eq!(world.lane.offer(3, world.now, WALL).slots, 3);
    }

    #[test]
    fn what_the_upstream_lacks_makes_it_wait_and_says_why() {
        let world = world(None);
        *world.idle.wanting.lock().unwrap() = Some("sealed".into());
        let offer = world.lane.offer(4, world.now, WALL);
        assert_eq!((offer.slots, offer.beyond), (0, Beyond::Down));
        let condition = world.lane.view(world.now, WALL).condition;
        assert_eq!((condition.word, condition.reason.as_deref()), ("waiting", Some("sealed")));
        *world.idle.wanting.lock().unwrap() = None;
        assert_eq!(world.lane.offer(4, world.now, WALL).slots, 4);
    }

    #[test]
    fn the_operator_pauses_trips_and_resets() {
        let world = world(None);
        let at = |after| world.now + Duration::from_secs(after);
        let (lasting, reason) = (Some(Duration::from_mins(1)), "moving house".to_owned());
        let pause = Intervention::Pause { lasting, reason };
        world.lane.intervene(pause, world.now, WALL);
        assert_eq!(world.word(), "paused");
        assert_eq!(world.lane.wakes_in(world.now), lasting);
        assert_eq!(world.lane.view(at(60), WALL).condition.word, "closed");
        world.lane.intervene(Intervention::Resume, world.now, WALL);
        let trip = Intervention::Trip { lasting, reason: "drill".into() };
        world.lane.intervene(trip, world.now, WALL);
        assert_eq!(world.word(), "open");
        assert!(world.lane.view(world.now, WALL).condition.reason.unwrap().contains("drill"));
        world.lane.intervene(Intervention::Reset, world.now, WALL);
        assert_eq!(world.word(), "closed");
    }

    #[test]
    fn on_the_way_back_a_fallback_is_asked_only_as_long_as_that_is_what_limits() {
        let mut world = world(None);
        world.attempt(vec![failed(Blame::Upstream, Remedy::Time)]);
        world.now += Duration::from_secs(30);
        world.attempt(vec![sent()]);
        for (limit, beyond) in [(1, Beyond::Down), (2, Beyond::Down), (4, Beyond::Busy)] {
            let offer = world.lane.offer(9, world.now, WALL);
            assert_eq!((offer.slots, offer.beyond), (limit, beyond));
            world.lane.withdraw(offer.slots);
            let view = world.lane.view(world.now, WALL);
            assert_eq!(view.ramp, Some(limit).filter(|_| beyond == Beyond::Down));
            world.now += Duration::from_secs(5);
            world.attempt(vec![sent()]);
        }
    }

    #[test]
    fn a_reload_keeps_what_is_known() {
        let old = world(None);
        assert_eq!(old.attempt(vec![failed(Blame::Upstream, Remedy::Time)]), "open");
        let mut new = world(None);
        new.lane.take_over(&old.lane);
        assert_eq!(new.lane.view(old.now, WALL).condition.word, "open");
    }

    #[test]
    fn a_refused_login_is_held_over_a_reload_unless_the_upstream_is_made_anew() {
        let old = world(None);
        assert_eq!(old.attempt(vec![failed(Blame::Upstream, Remedy::Secret)]), "held");
        let limits = old.lane.limits.clone();
        let upstream = Arc::clone(&old.lane.upstream);
        let mut kept = Lane::new(upstream, limits, Box::new(|| {}), WALL);
        kept.take_over(&old.lane);
        assert_eq!(kept.view(old.now, WALL).condition.word, "held");
        let mut anew = world(None);
        anew.lane.take_over(&old.lane);
        assert_eq!(anew.word(), "half-open");
    }

    #[test]
    fn the_smaller_limit_counts() {
        let rate = |per_second| Some(Rate { per_second, of: Unit::Recipients });
        assert_eq!(slower(rate(10.0), rate(14.0)), rate(10.0));
        assert_eq!(slower(rate(20.0), rate(14.0)), rate(14.0));
        assert_eq!(slower(None, rate(14.0)), rate(14.0));
        assert_eq!(slower(rate(20.0), None), rate(20.0));
        let messages = Some(Rate { per_second: 1.0, of: Unit::Messages });
        assert_eq!(slower(messages, rate(0.5)), messages);
    }
}
