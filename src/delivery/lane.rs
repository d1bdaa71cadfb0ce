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
}

impl Lane {
    /// A lane with a fresh breaker.
    pub fn new(
        route: String,
        upstream: Arc<dyn Upstream>,
        capacity: usize,
        breaker: Breaker,
    ) -> Self {
        Self { route, upstream, capacity: capacity.max(1), breaker: Mutex::new(breaker) }
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

    /// Tells the breaker what came of an attempt.
    pub(super) fn heard(&self, outcome: &Outcome, now: Instant) {
        let mut breaker = self.breaker();
        let before = breaker.state(now);
        let failure = match verdict(outcome) {
            Verdict::Reached => {
                breaker.succeeded();
                None
            }
            Verdict::Failed(failure) => {
                breaker.failed(now);
                Some(failure)
            }
            Verdict::Ours => {
                breaker.withdrawn();
                None
            }
        };
        let after = breaker.state(now);
        drop(breaker);
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
