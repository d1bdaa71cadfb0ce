//! One claim, from taking the body to settling what came of it.

use std::sync::Arc;
use std::time::Duration;

use super::{ATTEMPT_MAX, Lane, Settings};
use crate::clock::{Clock, Timestamp};
use crate::event;
use crate::mail::{
    Blame, EnhancedStatus, Failure, Handoff, Message, Outcome, QueueId, RecipientOutcome, Remedy,
    Stage,
};
use crate::spool::{Claim, Settlement, Spool, SpoolError};
use crate::upstream::Free;

/// The pause before a settlement that the spool could not write is tried again.
const SETTLE_AGAIN: Duration = Duration::from_secs(1);

/// What an attempt works with.
pub(super) struct Attempt {
    pub(super) spool: Arc<dyn Spool>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) lane: Arc<Lane>,
    pub(super) settings: Settings,
}

impl Attempt {
    /// Delivers the claimed message and settles the claim.
    pub(super) async fn run(self, mut claim: Claim) {
        let outcome = self.deliver(&claim).await;
        let places: Vec<usize> = claim.message.pending().collect();
        self.lane.heard(&outcome, self.clock.now());
        let now = self.clock.wall();
        let upstream = self.lane.upstream.name();
        event::Delivery {
            message: &claim.message,
            route: &self.lane.route,
            upstream,
            outcome: &outcome,
            delay: now.since(claim.message.received),
        }
        .emit();
        claim.message.record((upstream, true), &places, &outcome, now);
        let settlement = settlement(&mut claim.message, &self.settings, now, self.clock.chance());
        self.settle(&claim, settlement).await;
        if settlement == Settlement::Dead {
            event::Dead { message: &claim.message }.emit();
        }
    }

    async fn deliver(&self, claim: &Claim) -> Outcome {
        let places: Vec<usize> = claim.message.pending().collect();
        let envelope = claim.message.envelope_for(&places);
        match self.spool.body(claim).await {
            Ok(body) => {
                let deadline = self.clock.now() + ATTEMPT_MAX;
                self.lane.upstream.deliver(&envelope, &body, &Free, deadline).await
            }
            Err(error) => {
                event::SpoolFailed { queue_id: Some(claim.message.id), error: &error }.emit();
                Outcome::all(envelope.recipients.len(), &unreadable(&error))
            }
        }
    }

    /// Writes the settlement down, again and again if need be: what was delivered and is not
    /// written down would be delivered twice. Attempts that wait here hold their places, so a disk
    /// that takes no more settlements stops delivery by itself.
    async fn settle(&self, claim: &Claim, settlement: Settlement) {
        let id: QueueId = claim.message.id;
        while let Err(error) = self.spool.settle(claim, settlement).await {
            event::SpoolFailed { queue_id: Some(id), error: &error }.emit();
            match error {
                SpoolError::Stale(_) | SpoolError::NotFound(_) | SpoolError::Closed => return,
                _ => tokio::time::sleep(SETTLE_AGAIN).await,
            }
        }
    }
}

/// The outcome for a message whose body could not be read: a damaged one will not get better.
fn unreadable(error: &SpoolError) -> RecipientOutcome {
    let damaged = matches!(error, SpoolError::Damaged(_));
    let failure = Failure {
        stage: Stage::Storage,
        blame: Blame::Local,
        handoff: Handoff::NotSent,
        remedy: Remedy::Time,
        reply: None,
        status: EnhancedStatus::new(if damaged { 5 } else { 4 }, 3, 0),
        detail: error.to_string(),
    };
    if damaged { RecipientOutcome::Bounced(failure) } else { RecipientOutcome::Deferred(failure) }
}

/// What becomes of a message after an attempt.
fn settlement(
    message: &mut Message,
    settings: &Settings,
    now: Timestamp,
    chance: f64,
) -> Settlement {
    if now.since(message.received) >= settings.max_age {
        message.expire();
    }
    if message.is_pending() {
        Settlement::Deferred(now.after(settings.backoff.delay(message.attempts, chance)))
    } else if message.has_failed() {
        Settlement::Dead
    } else {
        Settlement::Finished
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::{RecipientStatus, Reply};
    use crate::policy::Backoff;

    const MINUTE: Duration = Duration::from_mins(1);

    fn settings() -> Settings {
        let backoff = Backoff::try_new(MINUTE, 2.0, MINUTE * 60, 0.0).unwrap();
        Settings { max_active: 10, backoff, max_age: MINUTE * 100 }
    }

    fn message(outcomes: Vec<RecipientOutcome>) -> Message {
        let recipients = vec!["a@example.com"; outcomes.len()];
        let id = QueueId::from_u64(1);
        let mut message = Message::sample(id, Timestamp::from_millis(0), &recipients);
        let outcome = Outcome { recipients: outcomes, ..Outcome::all(0, &deferred()) };
        message.record(
            ("core", true),
            &(0..recipients.len()).collect::<Vec<_>>(),
            &outcome,
            Timestamp::from_millis(1),
        );
        message
    }

    fn sent() -> RecipientOutcome {
        RecipientOutcome::Sent { reply: Reply::new(250, EnhancedStatus::new(2, 0, 0), "Ok") }
    }

    fn deferred() -> RecipientOutcome {
        unreadable(&SpoolError::Closed)
    }

    fn bounced() -> RecipientOutcome {
        unreadable(&SpoolError::Damaged(QueueId::from_u64(1)))
    }

    fn settle(outcomes: Vec<RecipientOutcome>, after: Duration) -> (Settlement, Message) {
        let mut message = message(outcomes);
        let now = Timestamp::from_millis(0).after(after);
        (settlement(&mut message, &settings(), now, 0.5), message)
    }

    #[test]
    fn a_message_is_finished_only_when_every_recipient_is_served() {
        assert_eq!(settle(vec![sent(), sent()], MINUTE).0, Settlement::Finished);
        let due = Timestamp::from_millis(0).after(MINUTE * 2);
        assert_eq!(settle(vec![sent(), deferred()], MINUTE).0, Settlement::Deferred(due));
        assert_eq!(settle(vec![sent(), bounced()], MINUTE).0, Settlement::Dead);
        assert_eq!(settle(vec![deferred(), bounced()], MINUTE).0, Settlement::Deferred(due));
    }

    #[test]
    fn what_is_pending_at_the_longest_age_expires_and_what_was_sent_stays_sent() {
        let almost = MINUTE * 99 + Duration::from_millis(59_999);
        assert!(matches!(settle(vec![deferred()], almost).0, Settlement::Deferred(_)));
        let (settlement, message) = settle(vec![sent(), deferred()], MINUTE * 100);
        assert_eq!(settlement, Settlement::Dead);
        let words: Vec<_> = message.status.iter().map(RecipientStatus::word).collect();
        assert_eq!(words, ["sent", "expired"]);
        assert_eq!(settle(vec![sent()], MINUTE * 100).0, Settlement::Finished);
    }
}
