//! What every store must do, as one suite that runs against each of them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Action, Claim, Room, Settlement, Spool, SpoolError, Stats};
use crate::clock::{ManualClock, Timestamp};
use crate::mail::{
    Blame, Body, EnhancedStatus, Failure, Handoff, Message, QueueId, QueueState, RecipientStatus,
    Refusal, Remedy, Stage,
};

/// When the tests take place.
pub(super) const NOON: Timestamp = Timestamp::from_millis(1_795_252_321_431);
const LEASE: Duration = Duration::from_mins(1);

/// Runs every check against the stores that `$open` makes, each under a name of its own.
macro_rules! conformance {
    ($open:expr) => {
        crate::spool::conformance::conformance!(@ $open;
            a_committed_message_is_claimed_with_what_was_committed
            a_dropped_draft_leaves_nothing
            claims_come_oldest_due_first_and_once
            new_and_deferred_mail_are_claimed_in_turns
            a_lapsed_lease_is_claimed_anew_and_the_old_claim_is_stale
            each_settlement_does_what_it_says
            a_released_message_is_as_before
            what_waits_in_a_room_is_claimed_there_and_nowhere_else
            each_room_takes_turns_of_its_own
            regrouping_puts_everything_back_to_the_entry
            a_message_out_of_a_room_comes_back_to_the_entry
            a_note_is_seen_at_once_and_the_claim_goes_on
            what_is_unconfirmed_is_confirmed_or_sent_again
            operators_actions_fit_the_state_or_are_refused
            a_claimed_message_is_left_alone_until_its_lease_is_over
            dead_letters_are_requeued_for_those_who_failed
            lists_are_pages_by_id
            next_due_and_wait_tell_of_every_change
            a_closed_spool_does_nothing_more
        );
    };
    (@ $open:expr; $($check:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $check() {
            let clock = std::sync::Arc::new(crate::clock::ManualClock::new(
                crate::spool::conformance::NOON,
            ));
            let (spool, _kept) = $open(std::sync::Arc::clone(&clock));
            crate::spool::conformance::$check(spool, clock).await;
        })*
    };
}
pub(super) use conformance;

/// A message with one recipient.
pub(super) fn message(id: QueueId, received_after: u64) -> Message {
    let received = NOON.after(Duration::from_millis(received_after));
    Message::sample(id, received, &["user@example.net"])
}

/// Stores a message that was received so many milliseconds after noon.
pub(super) async fn put(spool: &dyn Spool, after: u64, body: &[u8]) -> Result<QueueId, SpoolError> {
    let mut draft = spool.draft().await?;
    for chunk in body.chunks(100_000) {
        draft.write(Bytes::copy_from_slice(chunk)).await?;
    }
    let id = draft.id();
    draft.commit(message(id, after)).await?;
    Ok(id)
}

/// All octets of a body.
pub(super) fn octets(body: &Body) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let chunk = body.chunk(all.len() as u64, 100_000).unwrap();
        if chunk.is_empty() {
            return all;
        }
        all.extend_from_slice(&chunk);
    }
}

/// Claims the one message that is due.
pub(super) async fn claim_one(spool: &dyn Spool, now: Timestamp) -> Claim {
    let mut claims = spool.claim(Room::ENTRY, now, 2, LEASE).await.unwrap();
    assert_eq!(claims.len(), 1);
    claims.remove(0)
}

async fn state(spool: &dyn Spool, id: QueueId) -> Option<QueueState> {
    spool.show(id).await.unwrap().map(|e| e.state)
}

pub(super) fn failure() -> Failure {
    Failure {
        stage: Stage::Rcpt,
        blame: Blame::Recipient,
        handoff: Handoff::NotSent,
        remedy: Remedy::Time,
        reply: None,
        status: EnhancedStatus::new(5, 1, 1),
        detail: "unknown user".into(),
    }
}

pub(super) async fn a_committed_message_is_claimed_with_what_was_committed(
    spool: Arc<dyn Spool>,
    _: Arc<ManualClock>,
) {
    let id = put(&*spool, 5, b"Subject: x\r\n\r\nhello\r\n").await.unwrap();
    let shown = spool.show(id).await.unwrap().unwrap();
    assert_eq!((shown.state, shown.due), (QueueState::Incoming, Some(message(id, 5).received)));
    assert!(spool.claim(Room::ENTRY, NOON, 10, LEASE).await.unwrap().is_empty(), "not due yet");
    assert_eq!(octets(&spool.content(id).await.unwrap()), b"Subject: x\r\n\r\nhello\r\n");
    let claim = claim_one(&*spool, NOON.after(LEASE)).await;
    assert_eq!(claim.message, Message { size: 21, ..message(id, 5) });
    let body = spool.body(&claim).await.unwrap();
    assert_eq!(octets(&body), b"Subject: x\r\n\r\nhello\r\n");
    let stats = spool.stats();
    assert_eq!((stats.active, stats.messages(), stats.bytes), (1, 1, 21));
    spool.settle(&claim, Settlement::Finished).await.unwrap();
    assert_eq!(spool.stats(), Stats::default());
    assert_eq!(state(&*spool, id).await, Some(QueueState::Sent));
    assert!(matches!(spool.content(id).await, Err(SpoolError::NotFound(i)) if i == id));
}

pub(super) async fn a_dropped_draft_leaves_nothing(spool: Arc<dyn Spool>, _: Arc<ManualClock>) {
    let mut draft = spool.draft().await.unwrap();
    draft.write(vec![b'x'; 700_000].into()).await.unwrap();
    let id = draft.id();
    drop(draft);
    assert_eq!(spool.stats().messages(), 0);
    assert_eq!(spool.show(id).await.unwrap(), None);
    assert!(put(&*spool, 0, b"").await.unwrap() > id, "an id is never given out twice");
}

pub(super) async fn claims_come_oldest_due_first_and_once(
    spool: Arc<dyn Spool>,
    _: Arc<ManualClock>,
) {
    let mut ids = Vec::new();
    for after in [30, 10, 20] {
        ids.push(put(&*spool, after, b"x").await.unwrap());
    }
    let now = NOON.after(Duration::from_secs(1));
    let first = spool.claim(Room::ENTRY, now, 2, LEASE).await.unwrap();
    let claimed: Vec<_> = first.iter().map(|c| c.message.id).collect();
    assert_eq!(claimed, [ids[1], ids[2]]);
    assert_eq!(claim_one(&*spool, now).await.message.id, ids[0]);
    assert!(spool.claim(Room::ENTRY, now, 10, LEASE).await.unwrap().is_empty());
    assert!(spool.claim(Room::ENTRY, now, 0, LEASE).await.unwrap().is_empty());
}

pub(super) async fn new_and_deferred_mail_are_claimed_in_turns(
    spool: Arc<dyn Spool>,
    _: Arc<ManualClock>,
) {
    let (mut deferred, mut fresh) = (Vec::new(), Vec::new());
    for after in 1..=6 {
        let id = put(&*spool, 0, b"x").await.unwrap();
        let claim = claim_one(&*spool, NOON).await;
        let due = NOON.after(Duration::from_millis(after));
        spool.settle(&claim, Settlement::Deferred(due)).await.unwrap();
        deferred.push(id);
    }
    for after in 100..103 {
        fresh.push(put(&*spool, after, b"x").await.unwrap());
    }
    let now = NOON.after(Duration::from_secs(1));
    let mut claimed = Vec::new();
    for limit in [1, 1, 3, 10] {
        let claims = spool.claim(Room::ENTRY, now, limit, LEASE).await.unwrap();
        claimed.extend(claims.iter().map(|c| c.message.id));
    }
    let turns = claimed.iter().map(|id| deferred.contains(id));
    let turns: Vec<_> = turns.take(6).collect();
    assert!(turns.windows(2).all(|pair| pair[0] != pair[1]), "{turns:?}");
    // Of each kind the oldest due first; what is left when the other kind is gone comes at once.
    for kind in [deferred, fresh] {
        let found: Vec<_> = claimed.iter().filter(|id| kind.contains(id)).copied().collect();
        assert_eq!(found, kind);
    }
}

pub(super) async fn a_lapsed_lease_is_claimed_anew_and_the_old_claim_is_stale(
    spool: Arc<dyn Spool>,
    _: Arc<ManualClock>,
) {
    let id = put(&*spool, 0, b"x").await.unwrap();
    let old = claim_one(&*spool, NOON).await;
    let lapsed = NOON.after(LEASE);
    assert_eq!(spool.next_due(Room::ENTRY), Some(lapsed));
    let before = Timestamp::from_millis(lapsed.as_millis() - 1);
    assert!(spool.claim(Room::ENTRY, before, 10, LEASE).await.unwrap().is_empty());
    let new = claim_one(&*spool, lapsed).await;
    assert!(new.epoch > old.epoch);
    for settlement in
        [Settlement::Finished, Settlement::Dead, Settlement::Released(Room::ENTRY, NOON)]
    {
        let refused = spool.settle(&old, settlement).await;
        assert!(matches!(refused, Err(SpoolError::Stale(i)) if i == id));
    }
    spool.settle(&new, Settlement::Finished).await.unwrap();
    assert!(matches!(spool.settle(&old, Settlement::Finished).await, Err(SpoolError::Stale(_))));
}

pub(super) async fn each_settlement_does_what_it_says(spool: Arc<dyn Spool>, _: Arc<ManualClock>) {
    let id = put(&*spool, 0, b"x").await.unwrap();
    let mut claim = claim_one(&*spool, NOON).await;
    claim.message.attempts = 1;
    claim.message.status = vec![RecipientStatus::Deferred { failure: failure() }];
    let changed = claim.message.clone();
    let later = NOON.after(Duration::from_mins(5));
    spool.settle(&claim, Settlement::Deferred(later)).await.unwrap();
    let shown = spool.show(id).await.unwrap().unwrap();
    assert_eq!(
        (shown.state, shown.due, shown.message),
        (QueueState::Deferred, Some(later), changed)
    );
    assert!(spool.claim(Room::ENTRY, NOON, 10, LEASE).await.unwrap().is_empty());

    let claim = claim_one(&*spool, later).await;
    assert_eq!(claim.message.attempts, 1);
    spool.settle(&claim, Settlement::Dead).await.unwrap();
    let shown = spool.show(id).await.unwrap().unwrap();
    assert_eq!((shown.state, shown.due), (QueueState::Dead, None));
    assert_eq!((spool.next_due(Room::ENTRY), spool.stats().dead), (None, 1));
}

pub(super) async fn a_released_message_is_as_before(spool: Arc<dyn Spool>, _: Arc<ManualClock>) {
    let id = put(&*spool, 0, b"x").await.unwrap();
    let mut claim = claim_one(&*spool, NOON).await;
    claim.message.attempts = 9;
    let later = NOON.after(Duration::from_secs(5));
    spool.settle(&claim, Settlement::Released(Room::ENTRY, later)).await.unwrap();
    let shown = spool.show(id).await.unwrap().unwrap();
    assert_eq!((shown.state, shown.due), (QueueState::Incoming, Some(later)));
    assert_eq!(shown.message.attempts, 0);
    assert_eq!(claim_one(&*spool, later).await.message.id, id);
}

/// Claims all that is due and releases it into a room, due when it was.
async fn park(spool: &dyn Spool, room: Room, now: Timestamp) {
    for claim in spool.claim(Room::ENTRY, now, 99, LEASE).await.unwrap() {
        let due = claim.message.received;
        spool.settle(&claim, Settlement::Released(room, due)).await.unwrap();
    }
}

/// The messages of a room, claimed one by one.
async fn claimed(spool: &dyn Spool, room: Room, now: Timestamp) -> Vec<QueueId> {
    let mut ids = Vec::new();
    while let Some(claim) = spool.claim(room, now, 1, LEASE).await.unwrap().pop() {
        ids.push(claim.message.id);
    }
    ids
}

pub(super) async fn what_waits_in_a_room_is_claimed_there_and_nowhere_else(
    spool: Arc<dyn Spool>,
    _: Arc<ManualClock>,
) {
    let (one, two) = (Room(1), Room(2));
    let first = put(&*spool, 10, b"x").await.unwrap();
    let now = NOON.after(Duration::from_millis(20));
    park(&*spool, one, now).await;
    let second = put(&*spool, 5, b"x").await.unwrap();
    park(&*spool, two, now).await;
    assert_eq!(spool.next_due(Room::ENTRY), None);
    assert_eq!(spool.next_due(one), Some(message(first, 10).received));
    assert_eq!(spool.next_due(two), Some(message(second, 5).received));
    assert_eq!(state(&*spool, first).await, Some(QueueState::Incoming));
    assert_eq!(spool.stats().incoming, 2);
    assert!(claimed(&*spool, Room::ENTRY, now).await.is_empty());
    assert!(claimed(&*spool, one, NOON).await.is_empty(), "not due yet");
    assert_eq!(claimed(&*spool, one, now).await, [first]);
    assert_eq!(claimed(&*spool, two, now).await, [second]);
    // Who has them left the rooms; a lease that lapses does so at the entry.
    assert_eq!((spool.next_due(one), spool.next_due(two)), (None, None));
    assert_eq!(spool.next_due(Room::ENTRY), Some(now.after(LEASE)));
    assert_eq!(claimed(&*spool, Room::ENTRY, now.after(LEASE)).await, [first, second]);
}

pub(super) async fn each_room_takes_turns_of_its_own(spool: Arc<dyn Spool>, _: Arc<ManualClock>) {
    let rooms = [Room(1), Room(2)];
    let now = NOON.after(Duration::from_secs(1));
    let mut deferred = Vec::new();
    for room in rooms {
        for _ in 0..3 {
            deferred.push(put(&*spool, 0, b"x").await.unwrap());
            let claim = claim_one(&*spool, NOON).await;
            spool.settle(&claim, Settlement::Deferred(NOON)).await.unwrap();
            park(&*spool, room, NOON).await;
            put(&*spool, 1, b"x").await.unwrap();
            park(&*spool, room, now).await;
        }
    }
    let mut turns = [Vec::new(), Vec::new()];
    for _ in 0..6 {
        for (room, turns) in rooms.iter().zip(&mut turns) {
            let claim = spool.claim(*room, now, 1, LEASE).await.unwrap().remove(0);
            turns.push(deferred.contains(&claim.message.id));
        }
    }
    let by_turns = [false, true, false, true, false, true];
    assert_eq!(turns, [by_turns, by_turns]);
}

pub(super) async fn regrouping_puts_everything_back_to_the_entry(
    spool: Arc<dyn Spool>,
    _: Arc<ManualClock>,
) {
    let now = NOON.after(Duration::from_secs(1));
    let mut ids = Vec::new();
    for room in [3, 1, 2, 0] {
        ids.push(put(&*spool, u64::from(room), b"x").await.unwrap());
        park(&*spool, Room(room), NOON.after(Duration::from_millis(u64::from(room)))).await;
    }
    let claim = spool.claim(Room(2), now, 1, LEASE).await.unwrap().remove(0);
    let waiting = tokio::spawn({
        let spool = Arc::clone(&spool);
        async move { spool.wait().await }
    });
    spool.regroup();
    waiting.await.unwrap();
    assert_eq!(spool.next_due(Room::ENTRY), Some(NOON));
    assert!([1, 2, 3].iter().all(|room| spool.next_due(Room(*room)).is_none()));
    assert_eq!(claimed(&*spool, Room::ENTRY, now).await, [ids[3], ids[1], ids[0]]);
    // What is in delivery stays there.
    spool.settle(&claim, Settlement::Finished).await.unwrap();
    assert_eq!(spool.stats().messages(), 3);
}

pub(super) async fn a_message_out_of_a_room_comes_back_to_the_entry(
    spool: Arc<dyn Spool>,
    _: Arc<ManualClock>,
) {
    let room = Room(u16::MAX);
    let id = put(&*spool, 0, b"x").await.unwrap();
    park(&*spool, room, NOON).await;
    let mut claim = spool.claim(room, NOON, 1, LEASE).await.unwrap().remove(0);
    claim.message.attempts = 1;
    claim.message.refusals =
        vec![Refusal { upstream: "ses".into(), recipients: vec![0], failure: failure() }];
    spool.settle(&claim, Settlement::Deferred(NOON)).await.unwrap();
    assert_eq!((spool.next_due(room), spool.next_due(Room::ENTRY)), (None, Some(NOON)));
    park(&*spool, room, NOON).await;
    let later = NOON.after(Duration::from_secs(1));
    spool.act(id, Action::Retry, later).await.unwrap();
    assert_eq!((spool.next_due(room), spool.next_due(Room::ENTRY)), (None, Some(later)));
    assert!(spool.show(id).await.unwrap().unwrap().message.refusals.is_empty());
    park(&*spool, room, later).await;
    spool.act(id, Action::Hold, later).await.unwrap();
    assert_eq!((spool.next_due(room), spool.next_due(Room::ENTRY)), (None, None));
    spool.act(id, Action::Release, later).await.unwrap();
    assert_eq!((spool.next_due(room), spool.next_due(Room::ENTRY)), (None, Some(later)));
}

pub(super) async fn a_note_is_seen_at_once_and_the_claim_goes_on(
    spool: Arc<dyn Spool>,
    _: Arc<ManualClock>,
) {
    let id = put(&*spool, 0, b"x").await.unwrap();
    let mut claim = claim_one(&*spool, NOON).await;
    for attempts in [1, 2] {
        claim.message.attempts = attempts;
        claim.message.status =
            vec![RecipientStatus::Unconfirmed { upstream: "ses".into(), failure: failure() }];
        spool.note(&claim).await.unwrap();
        let shown = spool.show(id).await.unwrap().unwrap();
        assert_eq!((shown.state, &shown.message), (QueueState::Active, &claim.message));
        assert_eq!(octets(&spool.body(&claim).await.unwrap()), b"x");
        assert!(claimed(&*spool, Room::ENTRY, NOON).await.is_empty());
        let acted = spool.act(id, Action::Delete, NOON).await;
        assert!(matches!(acted, Err(SpoolError::InDelivery(_))));
    }
    // When the lease lapses the note is what is found, in the state before the claim.
    let lapsed = NOON.after(LEASE);
    assert_eq!(spool.next_due(Room::ENTRY), Some(lapsed));
    let mut again = claim_one(&*spool, lapsed).await;
    assert_eq!(again.message, claim.message);
    for (old, nobody) in [(claim.epoch, id), (0, QueueId::from_u64(1))] {
        let mut stale = Claim { message: message(nobody, 0), epoch: old };
        stale.message.attempts = 7;
        assert!(matches!(spool.note(&stale).await, Err(SpoolError::Stale(i)) if i == nobody));
    }
    again.message.attempts = 3;
    spool.settle(&again, Settlement::Released(Room::ENTRY, lapsed)).await.unwrap();
    let shown = spool.show(id).await.unwrap().unwrap();
    assert_eq!((shown.state, shown.message.attempts), (QueueState::Incoming, 2));
    assert!(matches!(spool.note(&again).await, Err(SpoolError::Stale(_))), "it is settled");
    let again = claim_one(&*spool, lapsed).await;
    spool.note(&again).await.unwrap();
    spool.settle(&again, Settlement::Finished).await.unwrap();
    assert_eq!(spool.stats(), Stats::default());
}

pub(super) async fn what_is_unconfirmed_is_confirmed_or_sent_again(
    spool: Arc<dyn Spool>,
    _: Arc<ManualClock>,
) {
    let id = put(&*spool, 0, b"x").await.unwrap();
    for action in [Action::Confirm, Action::Resend] {
        let refused = spool.act(id, action, NOON).await;
        assert!(matches!(refused, Err(SpoolError::WrongState(_, "not unconfirmed"))));
    }
    assert_eq!(spool.next_due(Room::ENTRY), Some(NOON), "as before");
    let mut claim = claim_one(&*spool, NOON).await;
    let unconfirmed =
        vec![RecipientStatus::Unconfirmed { upstream: "ses".into(), failure: failure() }];
    claim.message.status.clone_from(&unconfirmed);
    spool.settle(&claim, Settlement::Held).await.unwrap();
    let shown = spool.show(id).await.unwrap().unwrap();
    assert_eq!(
        (shown.state, shown.due, spool.next_due(Room::ENTRY)),
        (QueueState::Held, None, None)
    );
    assert_eq!(shown.message.status, unconfirmed);

    let later = NOON.after(Duration::from_secs(1));
    spool.act(id, Action::Resend, later).await.unwrap();
    let shown = spool.show(id).await.unwrap().unwrap();
    assert_eq!((shown.state, shown.due), (QueueState::Deferred, Some(later)));
    assert_eq!(shown.message.status, [RecipientStatus::Queued]);

    let mut claim = claim_one(&*spool, later).await;
    claim.message.status = unconfirmed;
    claim.message.expire();
    spool.settle(&claim, Settlement::Dead).await.unwrap();
    spool.act(id, Action::Confirm, later).await.unwrap();
    assert_eq!(spool.stats(), Stats::default());
    let shown = spool.show(id).await.unwrap().unwrap();
    let RecipientStatus::Sent { upstream, reply, at } = &shown.message.status[0] else {
        panic!("{:?}", shown.message.status);
    };
    assert_eq!((shown.state, upstream.as_str(), *at), (QueueState::Sent, "ses", later));
    assert_eq!(reply.to_string(), "250 2.0.0 confirmed by the operator");
}

pub(super) async fn operators_actions_fit_the_state_or_are_refused(
    spool: Arc<dyn Spool>,
    _: Arc<ManualClock>,
) {
    use Action::{Delete, Hold, Release, Requeue, Retry};
    let later = NOON.after(Duration::from_mins(15));
    let id = put(&*spool, 5000, b"x").await.unwrap();
    let wrong =
        |r: Result<(), SpoolError>| matches!(r, Err(SpoolError::WrongState(i, _)) if i == id);

    spool.act(id, Retry, NOON).await.unwrap();
    assert_eq!(spool.next_due(Room::ENTRY), Some(NOON));
    assert!(wrong(spool.act(id, Release, NOON).await));
    assert!(wrong(spool.act(id, Requeue, NOON).await));
    spool.act(id, Hold, NOON).await.unwrap();
    let held = spool.show(id).await.unwrap().unwrap();
    assert_eq!((held.state, held.due, spool.next_due(Room::ENTRY)), (QueueState::Held, None, None));
    for action in [Hold, Retry, Requeue] {
        assert!(wrong(spool.act(id, action, NOON).await), "{action:?}");
    }
    assert!(spool.claim(Room::ENTRY, later, 10, LEASE).await.unwrap().is_empty());
    spool.act(id, Release, later).await.unwrap();
    assert_eq!(state(&*spool, id).await, Some(QueueState::Incoming), "never tried");
    let mut claim = claim_one(&*spool, later).await;
    claim.message.attempts = 1;
    spool.settle(&claim, Settlement::Deferred(later)).await.unwrap();
    spool.act(id, Hold, NOON).await.unwrap();
    spool.act(id, Release, NOON).await.unwrap();
    assert_eq!(state(&*spool, id).await, Some(QueueState::Deferred), "tried before");
    spool.act(id, Delete, NOON).await.unwrap();
    assert_eq!((state(&*spool, id).await, spool.stats().messages()), (None, 0));
    for action in [Retry, Hold, Release, Requeue, Delete] {
        let refused = spool.act(id, action, NOON).await;
        assert!(matches!(refused, Err(SpoolError::NotFound(i)) if i == id), "{action:?}");
    }
}

pub(super) async fn a_claimed_message_is_left_alone_until_its_lease_is_over(
    spool: Arc<dyn Spool>,
    _: Arc<ManualClock>,
) {
    let id = put(&*spool, 0, b"x").await.unwrap();
    let claim = claim_one(&*spool, NOON).await;
    for action in [Action::Hold, Action::Delete, Action::Retry] {
        let refused = spool.act(id, action, NOON).await;
        assert!(matches!(refused, Err(SpoolError::InDelivery(i)) if i == id), "{action:?}");
    }
    spool.act(id, Action::Delete, NOON.after(LEASE)).await.unwrap();
    assert!(matches!(spool.settle(&claim, Settlement::Finished).await, Err(SpoolError::Stale(_))));
    assert_eq!(spool.stats().messages(), 0);
}

pub(super) async fn dead_letters_are_requeued_for_those_who_failed(
    spool: Arc<dyn Spool>,
    _: Arc<ManualClock>,
) {
    let id = put(&*spool, 0, b"x").await.unwrap();
    let mut claim = claim_one(&*spool, NOON).await;
    claim.message.status = vec![
        RecipientStatus::Bounced { failure: failure() },
        RecipientStatus::Expired { failure: None, unconfirmed: None },
        RecipientStatus::Expired { failure: Some(failure()), unconfirmed: None },
        RecipientStatus::Unconfirmed { upstream: "core".into(), failure: failure() },
    ];
    spool.settle(&claim, Settlement::Dead).await.unwrap();
    for action in [Action::Retry, Action::Hold, Action::Release] {
        let refused = spool.act(id, action, NOON).await;
        assert!(matches!(refused, Err(SpoolError::WrongState(..))), "{action:?}");
    }
    spool.act(id, Action::Requeue, NOON).await.unwrap();
    let claim = claim_one(&*spool, NOON).await;
    let words: Vec<_> = claim.message.status.iter().map(RecipientStatus::word).collect();
    assert_eq!(words, ["deferred", "queued", "deferred", "unconfirmed"]);
}

pub(super) async fn lists_are_pages_by_id(spool: Arc<dyn Spool>, _: Arc<ManualClock>) {
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(put(&*spool, 0, b"x").await.unwrap());
    }
    let page = |after, limit| {
        let spool = Arc::clone(&spool);
        async move {
            let page = spool.list(after, limit).await.unwrap();
            page.iter().map(|e| e.message.id).collect::<Vec<_>>()
        }
    };
    assert_eq!(page(None, 2).await, ids[..2]);
    assert_eq!(page(Some(ids[1]), 2).await, ids[2..4]);
    assert_eq!(page(Some(ids[3]), 2).await, ids[4..]);
    assert!(page(Some(ids[4]), 2).await.is_empty() && page(None, 0).await.is_empty());
    assert_eq!(page(None, 100).await, ids);
}

pub(super) async fn next_due_and_wait_tell_of_every_change(
    spool: Arc<dyn Spool>,
    _: Arc<ManualClock>,
) {
    assert_eq!(spool.next_due(Room::ENTRY), None);
    let waiting = tokio::spawn({
        let spool = Arc::clone(&spool);
        async move { spool.wait().await }
    });
    let id = put(&*spool, 7, b"x").await.unwrap();
    waiting.await.unwrap();
    assert_eq!(spool.next_due(Room::ENTRY), Some(message(id, 7).received));
    let claim = claim_one(&*spool, NOON.after(LEASE)).await;
    spool.settle(&claim, Settlement::Released(Room::ENTRY, NOON)).await.unwrap();
    // The change came before the call, after the waiter last looked: it must not sleep.
    spool.wait().await;
    assert_eq!(spool.next_due(Room::ENTRY), Some(NOON));
}

pub(super) async fn a_closed_spool_does_nothing_more(spool: Arc<dyn Spool>, _: Arc<ManualClock>) {
    let id = put(&*spool, 0, b"x").await.unwrap();
    let claim = claim_one(&*spool, NOON).await;
    let draft = spool.draft().await.unwrap();
    spool.close().await;
    let closed = |e: Option<SpoolError>| matches!(e, Some(SpoolError::Closed));
    assert!(closed(spool.refusal()) && closed(spool.draft().await.err()));
    let late = message(draft.id(), 0);
    assert!(closed(draft.commit(late).await.err()));
    assert!(closed(spool.body(&claim).await.err()));
    assert!(closed(spool.settle(&claim, Settlement::Finished).await.err()));
    assert!(closed(spool.claim(Room::ENTRY, NOON, 1, LEASE).await.err()));
    assert!(closed(spool.act(id, Action::Delete, NOON).await.err()));
    assert!(closed(spool.show(id).await.err()) && closed(spool.list(None, 1).await.err()));
    spool.close().await;
}
