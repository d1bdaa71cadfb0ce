//! When an attempt starts, and how many run at once.
//!
//! The active set is bounded: a message is claimed only when there is room for its attempt and the
//! breaker admits it, so a dead upstream fills neither memory nor the set.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::attempt::Attempt;
use super::{Lane, Settings};
use crate::clock::Clock;
use crate::event;
use crate::policy::breaker::State;
use crate::spool::Room;
use crate::spool::Spool;

/// The longest sleep: a wall clock that was set, or a machine that was suspended, is noticed by then.
const SLEEP_MAX: Duration = Duration::from_secs(30);

/// The shortest sleep: what falls due within it is claimed together.
const TICK: Duration = Duration::from_millis(2);

/// The pause after the spool failed to give out work.
const CLAIM_AGAIN: Duration = Duration::from_secs(1);

/// Delivers what is due until told to stop.
pub struct Scheduler {
    /// Where messages come from.
    pub spool: Arc<dyn Spool>,
    /// How long a claim holds.
    pub lease: Duration,
    /// Time and chance.
    pub clock: Arc<dyn Clock>,
    /// Where messages go; swapped by a reload.
    pub lane: Arc<ArcSwap<Lane>>,
    /// How; swapped by a reload.
    pub settings: Arc<ArcSwap<Settings>>,
    /// Told after a swap: the old lane may have been resting, and the new one is not.
    pub reloaded: Arc<Notify>,
}

impl Scheduler {
    /// Runs until `shutdown`, then lets the attempts under way finish for as long as `drain`.
    pub async fn run(self, shutdown: CancellationToken, drain: Duration) {
        let mut attempts = JoinSet::new();
        while !shutdown.is_cancelled() {
            let pause = self.fill(&mut attempts).await;
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.spool.wait() => {}
                () = self.reloaded.notified() => {}
                Some(_) = attempts.join_next() => {}
                () = tokio::time::sleep(pause) => {}
            }
            while attempts.try_join_next().is_some() {}
        }
        let finish = async { while attempts.join_next().await.is_some() {} };
        if tokio::time::timeout(drain, finish).await.is_err() {
            event::DrainCut { attempts: attempts.len() }.emit();
        }
    }

    /// Starts as many attempts as there is room, admission and work for. Returns how long nothing
    /// will change by itself.
    async fn fill(&self, attempts: &mut JoinSet<()>) -> Duration {
        let lane = self.lane.load_full();
        let settings = **self.settings.load();
        let now = self.clock.now();
        let room = lane.capacity.min(settings.max_active.max(1)).saturating_sub(attempts.len());
        if room == 0 {
            return SLEEP_MAX;
        }
        let admitted = lane.admit(room, now);
        if admitted == 0 {
            return until_probe(lane.state(now), now);
        }
        let claims =
            match self.spool.claim(Room::ENTRY, self.clock.wall(), admitted, self.lease).await {
                Ok(claims) => claims,
                Err(error) => {
                    lane.withdraw(admitted);
                    event::SpoolFailed { queue_id: None, error: &error }.emit();
                    return CLAIM_AGAIN;
                }
            };
        lane.withdraw(admitted.saturating_sub(claims.len()));
        let pause = if claims.len() < admitted { self.until_due().max(TICK) } else { SLEEP_MAX };
        if !claims.is_empty() {
            lane.started(now);
        }
        for claim in claims {
            let attempt = Attempt {
                spool: Arc::clone(&self.spool),
                clock: Arc::clone(&self.clock),
                lane: Arc::clone(&lane),
                settings,
            };
            attempts.spawn(attempt.run(claim));
        }
        pause
    }

    fn until_due(&self) -> Duration {
        let due = self.spool.next_due(Room::ENTRY).map(|due| due.since(self.clock.wall()));
        due.map_or(SLEEP_MAX, |d| d.min(SLEEP_MAX))
    }
}

/// How long the breaker will admit nothing.
fn until_probe(state: State, now: Instant) -> Duration {
    match state {
        State::Open { until } => until.saturating_duration_since(now).min(SLEEP_MAX),
        // A probe is under way; its end wakes the scheduler.
        State::Closed | State::HalfOpen | State::Held | State::Paused => SLEEP_MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, Timestamp};
    use crate::mail::{
        Body, EnhancedStatus, Envelope, Message, Outcome, QueueState, RecipientOutcome, Reply,
    };
    use crate::policy::{Backoff, Breaker, breaker};
    use crate::spool::MemorySpool;
    use crate::upstream::{Leaving, Upstream};

    /// Takes everything, and stops the scheduler with the first message.
    struct Taker(CancellationToken);

    #[async_trait::async_trait]
    impl Upstream for Taker {
        fn name(&self) -> &'static str {
            "taker"
        }

        async fn deliver(
            &self,
            envelope: &Envelope,
            _: &Body,
            _: &dyn Leaving,
            _: Instant,
        ) -> Outcome {
            self.0.cancel();
            let reply = Reply::new(250, EnhancedStatus::new(2, 0, 0), "Ok");
            Outcome::all(envelope.recipients.len(), &RecipientOutcome::Sent { reply })
        }
    }

    async fn spool_with(messages: usize, clock: &Arc<dyn Clock>) -> Arc<dyn Spool> {
        let spool = MemorySpool::new(Arc::clone(clock));
        for _ in 0..messages {
            let draft = spool.draft().await.unwrap();
            let message = Message::sample(draft.id(), clock.wall(), &["a@example.com"]);
            draft.commit(message).await.unwrap();
        }
        Arc::new(spool)
    }

    /// A scheduler with `messages` due ones, and its spool.
    async fn scheduler(
        messages: usize,
        shutdown: CancellationToken,
    ) -> (Scheduler, Arc<dyn Spool>) {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Timestamp::from_millis(1)));
        let spool = spool_with(messages, &clock).await;
        let taker = Arc::new(Taker(shutdown));
        let breaker = Breaker::new(breaker::Settings::default());
        let second = Duration::from_secs(1);
        let backoff = Backoff::try_new(second, 1.0, second, 0.0).unwrap();
        let scheduler = Scheduler {
            spool: Arc::clone(&spool),
            lease: second,
            clock,
            lane: Arc::new(ArcSwap::from_pointee(Lane::new("r".into(), taker, 1, breaker))),
            settings: Arc::new(ArcSwap::from_pointee(Settings {
                max_active: 1,
                backoff,
                max_age: second,
            })),
            reloaded: Arc::default(),
        };
        (scheduler, spool)
    }

    /// The states of `messages` due ones after a run; the first delivered one ends it.
    async fn states_after(messages: usize, shutdown: CancellationToken) -> Vec<QueueState> {
        let (scheduler, spool) = scheduler(messages, shutdown.clone()).await;
        scheduler.run(shutdown, Duration::from_secs(1)).await;
        spool.list(None, 10).await.unwrap().into_iter().map(|entry| entry.state).collect()
    }

    #[tokio::test]
    async fn nothing_is_begun_once_it_was_told_to_stop() {
        let told = CancellationToken::new();
        told.cancel();
        assert_eq!(states_after(1, told).await, [QueueState::Incoming]);
    }

    #[tokio::test]
    async fn a_reload_wakes_it_though_the_old_lane_rests() {
        let told = CancellationToken::new();
        let (scheduler, spool) = scheduler(1, told.clone()).await;
        let (lane, reloaded) = (Arc::clone(&scheduler.lane), Arc::clone(&scheduler.reloaded));
        let mut resting = Breaker::new(breaker::Settings { failures: 1, ..Default::default() });
        resting.failed(scheduler.clock.now(), None);
        let fresh = lane.load_full();
        lane.store(Arc::new(Lane::new("r".into(), Arc::clone(&fresh.upstream), 1, resting)));
        let run = tokio::spawn(scheduler.run(told, Duration::from_secs(1)));
        // On one thread: the scheduler has looked and waits when this goes on.
        tokio::task::yield_now().await;
        assert_eq!(spool.stats().incoming, 1);
        lane.store(fresh);
        reloaded.notify_one();
        tokio::time::timeout(SLEEP_MAX / 2, run).await.unwrap().unwrap();
        assert_eq!(spool.stats().messages(), 0);
    }

    #[tokio::test]
    async fn what_was_begun_is_finished_and_nothing_more() {
        let left = states_after(3, CancellationToken::new()).await;
        assert_eq!(left, [QueueState::Incoming; 2]);
    }
}
