//! One upstream, its breaker, and how many attempts it takes at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::event;
use crate::mail::{Blame, Failure, Outcome, RecipientOutcome};
use crate::policy::Breaker;
use crate::policy::breaker::State;
use crate::upstream::Upstream;

/// An upstream as the scheduler sees it.
pub struct Lane {
    /// The route that leads here.
    pub route: String,
    /// Where the mail goes.
    pub upstream: Arc<dyn Upstream>,
    /// Attempts at once. At least 1.
    pub capacity: usize,
    breaker: Mutex<Breaker>,
    last_failure: Mutex<Option<String>>,
}

impl Lane {
    /// A lane with a fresh breaker.
    pub fn new(
        route: String,
        upstream: Arc<dyn Upstream>,
        capacity: usize,
        breaker: Breaker,
    ) -> Self {
        Self {
            route,
            upstream,
            capacity: capacity.max(1),
            breaker: Mutex::new(breaker),
            last_failure: Mutex::default(),
        }
    }

    /// What the upstream's own last fault was; `None` once it works again.
    pub fn last_failure(&self) -> Option<String> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The breaker's state.
    pub fn state(&self, now: Instant) -> State {
        self.breaker().state(now)
    }

    /// How many attempts, at most `room`, may start now. Each must be answered by one call of
    /// [`heard`](Self::heard) or [`withdraw`](Self::withdraw).
    pub(super) fn admit(&self, room: usize, now: Instant) -> usize {
        let mut breaker = self.breaker();
        (0..room).take_while(|_| breaker.admit(now)).count()
    }

    /// Gives back admissions that were not used.
    pub(super) fn withdraw(&self, unused: usize) {
        let mut breaker = self.breaker();
        (0..unused).for_each(|_| breaker.withdrawn());
    }

    /// Notes that admitted attempts start.
    pub(super) fn started(&self, now: Instant) {
        let state = self.state(now);
        if state == State::HalfOpen {
            let upstream = self.upstream.name();
            event::BreakerChanged { upstream, to: state.word(), reason: None }.emit();
        }
    }

    /// Tells the breaker what came of an attempt.
    pub(super) fn heard(&self, outcome: &Outcome, now: Instant) {
        let mut breaker = self.breaker();
        let before = breaker.state(now);
        let failure = match verdict(outcome) {
            Verdict::Reached => {
                breaker.succeeded(now);
                None
            }
            Verdict::Failed(failure) => {
                breaker.failed(now, None);
                Some(failure)
            }
            Verdict::Ours => {
                breaker.withdrawn();
                None
            }
        };
        let after = breaker.state(now);
        drop(breaker);
        if failure.is_some() || after == State::Closed {
            let mut last = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
            *last = failure.map(ToString::to_string);
        }
        if before.word() != after.word() {
            let upstream = self.upstream.name();
            event::BreakerChanged { upstream, to: after.word(), reason: failure }.emit();
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // A panic while it was held cannot have left it half changed: its methods do not panic.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
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
    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::mail::{Body, EnhancedStatus, Envelope, Handoff, Remedy, Reply, Stage};
    use crate::policy::breaker::Settings;

    use crate::upstream::Leaving;
    struct Nowhere;

    #[async_trait::async_trait]
    impl Upstream for Nowhere {
        fn name(&self) -> &'static str {
            "nowhere"
        }

        async fn deliver(&self, _: &Envelope, _: &Body, _: &dyn Leaving, _: Instant) -> Outcome {
            Outcome::all(0, &failed(Blame::Local))
        }
    }

    fn failed(blame: Blame) -> RecipientOutcome {
        RecipientOutcome::Deferred(Failure {
            stage: Stage::Rcpt,
            blame,
            handoff: Handoff::NotSent,
            remedy: Remedy::Time,
            reply: None,
            status: EnhancedStatus::new(4, 0, 0),
            detail: String::new(),
        })
    }

    fn sent() -> RecipientOutcome {
        RecipientOutcome::Sent { reply: Reply::new(250, EnhancedStatus::new(2, 0, 0), "Ok") }
    }

    /// The breaker's state after one outcome, when one failure opens it.
    fn after(recipients: Vec<RecipientOutcome>) -> &'static str {
        let settings = Settings { failures: 1, ..Settings::default() };
        let lane = Lane::new("r".into(), Arc::new(Nowhere), 4, Breaker::new(settings));
        let now = SystemClock.now();
        assert_eq!(lane.admit(3, now), 3);
        lane.withdraw(2);
        lane.heard(&Outcome { recipients, ..Outcome::all(0, &sent()) }, now);
        lane.state(now).word()
    }

    #[test]
    fn only_the_upstreams_own_fault_opens_the_breaker() {
        assert_eq!(after(vec![failed(Blame::Upstream)]), "open");
        assert_eq!(after(vec![failed(Blame::Recipient), failed(Blame::Upstream)]), "open");
        assert_eq!(after(vec![sent(), failed(Blame::Upstream)]), "closed");
        assert_eq!(after(vec![failed(Blame::Recipient)]), "closed");
        assert_eq!(after(vec![failed(Blame::Message)]), "closed");
        assert_eq!(after(vec![failed(Blame::Local)]), "closed");
    }
}
