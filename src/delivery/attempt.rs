//! One claim, from the decision to settling what came of it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::plan::{Plan, Way};
use super::{ATTEMPT_MAX, Lane, Settings};
use crate::clock::{Clock, Timestamp};
use crate::event;
use crate::mail::{
    Blame, EnhancedStatus, Failure, Handoff, Message, Outcome, QueueId, RecipientOutcome,
    RecipientStatus, Remedy, Stage,
};
use crate::spool::{Claim, Settlement, Spool, SpoolError};
use crate::upstream::{Label, Leaving};

/// The pause before a settlement that the spool could not write is tried again.
const SETTLE_AGAIN: Duration = Duration::from_secs(1);

/// The longest pause of a message after a failure that was the upstream's: whether to ask that one
/// again is for its breaker to say, and where there is little mail it must soon hear enough failures.
const ROUTE_AGAIN: Duration = Duration::from_secs(5);

/// This many attempts in a row may come to nothing by the upstreams' fault; a message with more pauses
/// like one that is put off for its own sake.
const SUSPECT: u32 = 4;

/// What an attempt works with.
pub(super) struct Attempt {
    pub(super) spool: Arc<dyn Spool>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) plan: Arc<Plan>,
    pub(super) lane: Arc<Lane>,
    pub(super) way: Way,
}

impl Attempt {
    /// Delivers the claimed message to the recipients of the way and settles the claim.
    pub(super) async fn run(self, mut claim: Claim) {
        // What is refused with these credentials says nothing of others.
        let secret = self.lane.upstream.standing().secret;
        let outcome = self.deliver(&claim).await;
        let now = self.clock.wall();
        self.lane.heard(&outcome, secret, self.clock.now(), now);
        let by = (self.lane.name(), self.plan.is_authoritative(&self.way));
        event::Delivery {
            message: &claim.message,
            places: &self.way.places,
            route: self.plan.route(self.way.route).map_or("", |route| &route.name),
            upstream: by.0,
            authoritative: by.1,
            outcome: &outcome,
            delay: now.since(claim.message.received),
        }
        .emit();
        claim.message.record(by, &self.way.places, &outcome, now);
        let settings = &self.plan.settings;
        let well = self.lane.is_well(self.clock.now());
        let pause = pause(&outcome, &claim.message, well, settings, self.clock.chance());
        rest(&mut claim.message, &self.way.places, now.after(pause), now);
        let settlement = settlement(&mut claim.message, settings, now);
        settle(&*self.spool, &claim, settlement).await;
    }

    async fn deliver(&self, claim: &Claim) -> Outcome {
        let envelope = claim.message.envelope_for(&self.way.places);
        match self.spool.body(claim).await {
            Ok(body) => {
                let deadline = self.clock.now() + ATTEMPT_MAX;
                let leaving = Departure { attempt: self, claim };
                self.lane.upstream.deliver(&envelope, &body, &leaving, deadline).await
            }
            Err(error) => {
                event::SpoolFailed { queue_id: Some(claim.message.id), error: &error }.emit();
                Outcome::all(envelope.recipients.len(), &unreadable(&error))
            }
        }
    }
}

/// The moment before the content leaves: where it matters, the disk learns first who may have it.
struct Departure<'a> {
    attempt: &'a Attempt,
    claim: &'a Claim,
}

#[async_trait]
impl Leaving for Departure<'_> {
    fn label(&self) -> Option<Label> {
        let message = &self.claim.message;
        Some(Label { id: message.id, attempt: message.attempts + 1 })
    }

    async fn content_leaves(&self, refused: &[usize]) -> Result<(), String> {
        let Attempt { plan, way, spool, lane, .. } = self.attempt;
        if !plan.is_noted(way) {
            return Ok(());
        }
        let mut message = self.claim.message.clone();
        let taken = way.places.iter().enumerate().filter(|(at, _)| !refused.contains(at));
        for (_, place) in taken {
            if let Some(status) = message.status.get_mut(*place) {
                let upstream = lane.name().to_owned();
                *status = RecipientStatus::Unconfirmed { upstream, failure: interrupted() };
            }
        }
        let id = message.id;
        let noted = spool.note(&Claim { message, epoch: self.claim.epoch }).await;
        noted.map_err(|error| {
            event::SpoolFailed { queue_id: Some(id), error: &error }.emit();
            error.to_string()
        })
    }
}

/// What is on the disk of an attempt that has not come back, or never will.
fn interrupted() -> Failure {
    Failure {
        stage: Stage::EndOfData,
        blame: Blame::Local,
        handoff: Handoff::Unknown,
        remedy: Remedy::Time,
        reply: None,
        status: EnhancedStatus::new(4, 4, 2),
        detail: "the message has left, and no answer is known".into(),
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

/// How long the recipients of an attempt are left alone. An upstream that is not well any more is
/// not asked again by them: the next one can be, at once.
fn pause(
    outcome: &Outcome,
    message: &Message,
    well: bool,
    settings: &Settings,
    chance: f64,
) -> Duration {
    let theirs = outcome.recipients.iter().filter_map(RecipientOutcome::failure);
    let routes_fault = |f: &Failure| f.blame == Blame::Upstream && f.handoff == Handoff::NotSent;
    if theirs.clone().any(|f| !routes_fault(f)) || theirs.count() == 0 {
        return settings.backoff.delay(message.deferrals, chance);
    }
    let again =
        if well { settings.backoff.delay(1, chance).min(ROUTE_AGAIN) } else { Duration::ZERO };
    // It may be the message that upstreams choke on: if it were the first to be tried each time, the
    // breaker would close for nobody.
    let vain = message.history.iter().rev().take_while(|attempt| attempt.sent == 0).count();
    match u32::try_from(vain) {
        // From the third pause on: the breaker's own have grown by now, and this is to outlast them.
        Ok(vain) if vain > SUSPECT => again.max(settings.backoff.delay(vain - SUSPECT + 2, chance)),
        _ => again,
    }
}

/// Lets the recipients that were tried rest, when others of the message have not been.
fn rest(message: &mut Message, tried: &[usize], until: Timestamp, now: Timestamp) {
    let pending: Vec<usize> = message.pending().collect();
    message
        .rests
        .retain(|(place, until)| *until > now && pending.contains(place) && !tried.contains(place));
    let rests = tried.iter().filter(|place| pending.contains(place)).map(|place| (*place, until));
    message.rests.extend(rests);
}

/// What becomes of a message after an attempt.
fn settlement(message: &mut Message, settings: &Settings, now: Timestamp) -> Settlement {
    expire(message, settings, now);
    let due = message.pending().map(|place| message.rest(place)).min();
    match due {
        Some(due) => {
            // Those that are due with the message need no note of it.
            message.rests.retain(|(_, until)| *until > due);
            Settlement::Deferred(due.max(now))
        }
        None => over(message),
    }
}

/// What becomes of a message with nothing pending.
pub(super) fn over(message: &Message) -> Settlement {
    if message.has_failed() { Settlement::Dead } else { Settlement::Finished }
}

/// Gives up on what has waited for too long. Returns whether it has.
pub(super) fn expire(message: &mut Message, settings: &Settings, now: Timestamp) -> bool {
    let expired = now.since(message.waits_since()) >= settings.max_age;
    if expired {
        message.expire();
    }
    expired
}

/// Writes the settlement down, again and again if need be: what was delivered and is not
/// written down would be delivered twice. Attempts that wait here hold their places, so a disk
/// that takes no more settlements stops delivery by itself.
pub(super) async fn settle(spool: &dyn Spool, claim: &Claim, settlement: Settlement) {
    let id: QueueId = claim.message.id;
    while let Err(error) = spool.settle(claim, settlement).await {
        event::SpoolFailed { queue_id: Some(id), error: &error }.emit();
        match error {
            SpoolError::Stale(_) | SpoolError::NotFound(_) | SpoolError::Closed => return,
            _ => tokio::time::sleep(SETTLE_AGAIN).await,
        }
    }
    if settlement == Settlement::Dead {
        event::Dead { message: &claim.message }.emit();
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

    fn failure(blame: Blame, handoff: Handoff) -> Failure {
        let status = EnhancedStatus::new(4, 0, 0);
        let (stage, remedy) = (Stage::Rcpt, Remedy::Time);
        Failure { stage, blame, handoff, remedy, reply: None, status, detail: "test".into() }
    }

    fn sent() -> RecipientOutcome {
        RecipientOutcome::Sent { reply: Reply::new(250, EnhancedStatus::new(2, 0, 0), "Ok") }
    }

    fn deferred() -> RecipientOutcome {
        RecipientOutcome::Deferred(failure(Blame::Recipient, Handoff::NotSent))
    }

    fn down() -> RecipientOutcome {
        RecipientOutcome::Deferred(failure(Blame::Upstream, Handoff::NotSent))
    }

    fn lost() -> RecipientOutcome {
        RecipientOutcome::Unconfirmed(failure(Blame::Upstream, Handoff::Unknown))
    }

    fn bounced() -> RecipientOutcome {
        unreadable(&SpoolError::Damaged(QueueId::from_u64(1)))
    }

    fn message(recipients: usize) -> Message {
        let names = vec!["a@example.com"; recipients];
        Message::sample(QueueId::from_u64(1), Timestamp::from_millis(0), &names)
    }

    /// An attempt by the authoritative upstream for these recipients, so long after the receipt.
    fn attempt(
        message: &mut Message,
        tried: &[usize],
        outcomes: Vec<RecipientOutcome>,
        after: Duration,
    ) -> Settlement {
        let now = Timestamp::from_millis(0).after(after);
        let outcome = Outcome { recipients: outcomes, ..Outcome::all(0, &deferred()) };
        message.record(("core", true), tried, &outcome, now);
        let pause = pause(&outcome, message, true, &settings(), 0.5);
        rest(message, tried, now.after(pause), now);
        settlement(message, &settings(), now)
    }

    fn settle(outcomes: Vec<RecipientOutcome>, after: Duration) -> (Settlement, Message) {
        let mut message = message(outcomes.len());
        let all: Vec<usize> = (0..outcomes.len()).collect();
        (attempt(&mut message, &all, outcomes, after), message)
    }

    fn at(after: Duration) -> Timestamp {
        Timestamp::from_millis(0).after(after)
    }

    #[test]
    fn a_message_is_finished_only_when_every_recipient_is_served() {
        assert_eq!(settle(vec![sent(), sent()], MINUTE).0, Settlement::Finished);
        let due = Settlement::Deferred(at(MINUTE * 2));
        assert_eq!(settle(vec![sent(), deferred()], MINUTE).0, due);
        assert_eq!(settle(vec![sent(), bounced()], MINUTE).0, Settlement::Dead);
        assert_eq!(settle(vec![deferred(), bounced()], MINUTE).0, due);
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

    #[test]
    fn a_fault_of_the_route_is_over_soon_and_does_not_lengthen_the_pauses() {
        let mut m = message(1);
        for n in 0..SUSPECT {
            let settled = attempt(&mut m, &[0], vec![down()], MINUTE * n);
            assert_eq!(settled, Settlement::Deferred(at(MINUTE * n + ROUTE_AGAIN)));
        }
        let settled = attempt(&mut m, &[0], vec![deferred()], MINUTE * 5);
        assert_eq!(settled, Settlement::Deferred(at(MINUTE * 6)), "the first pause, not the fifth");
    }

    #[test]
    fn a_message_whose_attempts_all_fail_by_the_upstreams_fault_pauses_for_longer_and_longer() {
        let mut m = message(1);
        let seconds = [5, 5, 5, 5, 4 * 60, 8 * 60, 16 * 60, 32 * 60, 3600, 3600];
        for (n, pause) in seconds.into_iter().enumerate() {
            let settled = attempt(&mut m, &[0], vec![down()], MINUTE);
            let due = at(MINUTE + Duration::from_secs(pause));
            assert_eq!(settled, Settlement::Deferred(due), "{n}");
        }
    }

    #[test]
    fn a_lost_answer_is_asked_for_again_at_growing_pauses() {
        let mut m = message(1);
        for pause in [1, 2, 4] {
            let settled = attempt(&mut m, &[0], vec![lost()], MINUTE);
            assert_eq!(settled, Settlement::Deferred(at(MINUTE * (1 + pause))));
        }
    }

    #[test]
    fn recipients_that_were_not_tried_go_at_once_and_the_tried_ones_rest() {
        let mut m = message(3);
        let first = attempt(&mut m, &[0, 1], vec![sent(), deferred()], MINUTE);
        assert_eq!(first, Settlement::Deferred(at(MINUTE)));
        assert_eq!(m.rests, [(1, at(MINUTE * 2))]);
        let second = attempt(&mut m, &[2], vec![sent()], MINUTE);
        assert_eq!(second, Settlement::Deferred(at(MINUTE * 2)));
        assert_eq!(m.rests, [], "the one that is left is due with its message");
        assert_eq!(attempt(&mut m, &[1], vec![sent()], MINUTE * 2), Settlement::Finished);
    }
}
