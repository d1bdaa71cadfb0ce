//! Notes of claims that go on: what a crash cannot forget.

use super::*;
use crate::mail::RecipientStatus;
use crate::spool::conformance::failure;
use crate::spool::{Action, Claim};

const EIO: i32 = 5;

/// Marks the message of a claim; not stored yet.
fn mark(claim: &mut Claim) {
    claim.message.attempts += 1;
    let upstream = "ses".into();
    claim.message.status[0] = RecipientStatus::Unconfirmed { upstream, failure: failure() };
}

async fn attempts(log: &SegmentLog, id: QueueId) -> u32 {
    log.show(id).await.unwrap().unwrap().message.attempts
}

/// What a message that was noted and never settled is like after a restart.
async fn check_noted(path: &Path, noted: &Claim, state: QueueState) {
    let (log, recovered) = open(path);
    assert_eq!(recovered, Recovered { messages: 1, ..Recovered::default() });
    let entry = log.show(noted.message.id).await.unwrap().unwrap();
    assert_eq!((entry.state, entry.due), (state, Some(NOON)));
    assert_eq!(claim_one(&log, NOON).await.message, noted.message);
}

#[tokio::test]
async fn a_claim_is_forgotten_and_its_note_kept_over_a_restart() {
    for size in [5, INLINE_MAX + 1] {
        for state in [QueueState::Incoming, QueueState::Deferred] {
            let dir = directory();
            let (log, _) = open(dir.path());
            put(&log, 0, &vec![b'x'; size]).await.unwrap();
            let mut claim = claim_one(&log, NOON).await;
            if state == QueueState::Deferred {
                log.settle(&claim, Settlement::Deferred(NOON)).await.unwrap();
                claim = claim_one(&log, NOON).await;
            }
            mark(&mut claim);
            log.note(&claim).await.unwrap();
            mark(&mut claim);
            log.note(&claim).await.unwrap();
            log.close().await;
            check_noted(dir.path(), &claim, state).await;
            // The close took a snapshot: the log says the same.
            fs::remove_dir_all(dir.path().join("snap")).unwrap();
            check_noted(dir.path(), &claim, state).await;
        }
    }
}

#[tokio::test]
async fn a_claimed_message_is_copied_forward_with_its_note_and_can_be_noted_again() {
    let dir = directory();
    let (log, _) = open(dir.path());
    put(&log, 0, &[b'n'; 2000]).await.unwrap();
    let mut noted = claim_one(&log, NOON).await;
    mark(&mut noted);
    log.note(&noted).await.unwrap();
    for _ in 0..80 {
        put(&log, 0, &[b'x'; 3000]).await.unwrap();
        let claim = claim_one(&log, NOON).await;
        log.settle(&claim, Settlement::Finished).await.unwrap();
    }
    let in_use = || segment_files(dir.path()).iter().filter(|f| f.starts_with('0')).count();
    while in_use() > 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(attempts(&log, noted.message.id).await, 1);
    assert!(log.claim(Room::ENTRY, NOON, 1, Duration::from_mins(1)).await.unwrap().is_empty());
    mark(&mut noted);
    log.note(&noted).await.unwrap();
    drop(log);
    check_noted(dir.path(), &noted, QueueState::Incoming).await;
}

#[tokio::test]
async fn a_note_that_failed_leaves_the_message_as_it_was_and_the_claim_in_force() {
    let dir = directory();
    let (log, _, control) = open_faulty(dir.path());
    let id = put(&log, 0, b"x").await.unwrap();
    let mut claim = claim_one(&log, NOON).await;
    mark(&mut claim);
    // Written to the next segment when one sync fails.
    control.fail(1, 2, EIO);
    log.note(&claim).await.unwrap();
    assert_eq!(attempts(&log, id).await, 1);
    mark(&mut claim);
    control.fail(0, u64::MAX / 2, EIO);
    let failed = log.note(&claim).await;
    assert!(matches!(failed, Err(SpoolError::Io { .. })), "{failed:?}");
    let shown = log.show(id).await.unwrap().unwrap();
    assert_eq!((shown.state, shown.message.attempts), (QueueState::Active, 1));
    assert!(log.claim(Room::ENTRY, NOON, 1, Duration::from_mins(1)).await.unwrap().is_empty());
    control.heal();
    log.note(&claim).await.unwrap();
    assert_eq!(attempts(&log, id).await, 2);
    log.settle(&claim, Settlement::Finished).await.unwrap();
    drop(log);
    assert_eq!(open(dir.path()).1.messages, 0);
}

#[tokio::test]
#[expect(clippy::await_holding_lock, reason = "the disk waits for it, and no other task")]
async fn who_does_not_wait_for_a_note_settles_the_claim_once_it_is_written() {
    let dir = directory();
    let (log, _, control) = open_faulty(dir.path());
    let id = put(&log, 0, b"x").await.unwrap();
    let mut claim = claim_one(&log, NOON).await;
    mark(&mut claim);
    let paused = control.pause.lock().unwrap();
    tokio::select! {
        biased;
        noted = log.note(&claim) => panic!("{noted:?}"),
        () = tokio::task::yield_now() => {}
    }
    let released = Settlement::Released(Room(1), NOON);
    let early = log.settle(&claim, released).await;
    assert!(matches!(early, Err(SpoolError::InDelivery(i)) if i == id), "{early:?}");
    // Not even a lease that is over lets anyone else have it.
    let later = NOON.after(Duration::from_hours(1));
    assert!(log.claim(Room::ENTRY, later, 1, Duration::from_mins(1)).await.unwrap().is_empty());
    assert!(log.act(id, Action::Delete, later).await.is_err());
    drop(paused);
    while let Err(error) = log.settle(&claim, released).await {
        assert!(matches!(error, SpoolError::InDelivery(_)), "{error}");
        tokio::task::yield_now().await;
    }
    assert_eq!((attempts(&log, id).await, log.next_due(Room(1))), (1, Some(NOON)));
}
