//! A disk that fails at every call there is, once or for good.

use crate::spool::Room;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::*;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// What a client and the delivery were told.
#[derive(Default)]
struct Told {
    stored: BTreeSet<QueueId>,
    refused: BTreeSet<QueueId>,
    finished: BTreeSet<QueueId>,
    /// Their settlement failed: they may be there or not.
    unsure: BTreeSet<QueueId>,
}

/// A small life: a message that waits throughout, small and large ones, deliveries, some segments
/// and what is copied out of the first.
async fn live(log: &SegmentLog) -> Told {
    let mut told = Told::default();
    for n in 0..14_u64 {
        let size = if n == 3 { 600_000 } else { 7000 };
        if let Ok(mut draft) = log.draft().await {
            let id = draft.id();
            let written = draft.write(vec![b'x'; size].into()).await;
            let stored = match written {
                Ok(()) => draft.commit(message(id, 0)).await.is_ok(),
                Err(_) => false,
            };
            if stored {
                told.stored.insert(id)
            } else {
                told.refused.insert(id)
            };
        }
        if n % 2 == 0 {
            for claim in log.claim(Room::ENTRY, NOON, 2, Duration::from_mins(1)).await.unwrap() {
                let id = claim.message.id;
                if n == 0 {
                    let later = NOON.after(Duration::from_mins(1));
                    let _ = log.settle(&claim, Settlement::Deferred(later)).await;
                    continue;
                }
                match log.settle(&claim, Settlement::Finished).await {
                    Ok(()) => told.finished.insert(id),
                    Err(_) => told.unsure.insert(id),
                };
            }
        }
    }
    told
}

/// Lives with calls `from..to` failing, then opens the spool again on a sound disk. Gives back
/// whether a failing call was reached.
async fn survive(from: u64, to: u64, error: i32) -> bool {
    let dir = directory();
    let (log, _, control) = open_faulty(dir.path());
    let before = control.calls.load(std::sync::atomic::Ordering::SeqCst);
    control.fail(from, to, error);
    let told = live(&log).await;
    let reached = control.calls.load(std::sync::atomic::Ordering::SeqCst) - before > from;
    drop(log);
    control.heal();
    let (log, recovered) = open(dir.path());
    let context = format!("calls {from}..{to} fail with {error}: {recovered:?}");
    assert!(recovered.damage.is_empty() && recovered.without_body.is_empty(), "{context}");
    let found: BTreeSet<_> = ids(&log).await.into_iter().collect();
    for id in told.stored.difference(&told.finished).filter(|id| !told.unsure.contains(id)) {
        assert!(found.contains(id), "{id} is lost; {context}");
    }
    assert!(told.finished.is_disjoint(&found), "a finished message is back; {context}");
    if to == from + 1 {
        assert!(told.refused.is_disjoint(&found), "a refused message is there; {context}");
    }
    for claim in log
        .claim(Room::ENTRY, NOON.after(Duration::from_mins(1)), 100, Duration::from_mins(1))
        .await
        .unwrap()
    {
        let body = log.body(&claim).await.unwrap();
        assert_eq!(octets(&body).len() as u64, claim.message.size, "{context}");
        assert!(body.len() == 7000 || body.len() == 600_000, "{context}");
    }
    reached
}

#[tokio::test]
async fn a_single_failure_at_any_call_loses_nothing_and_what_was_refused_stays_away() {
    for error in [EIO, ENOSPC] {
        let mut n = 0;
        while survive(n, n + 1, error).await {
            n += 1;
        }
        assert!(n > 20, "{n} calls were tried");
    }
}

#[tokio::test]
async fn a_disk_that_fails_for_good_at_any_call_loses_nothing_that_was_acknowledged() {
    for error in [EIO, ENOSPC] {
        let mut n = 0;
        while survive(n, u64::MAX / 2, error).await {
            n += 1;
        }
        assert!(n > 20, "{n} calls were tried");
    }
}

#[tokio::test]
async fn after_a_failed_sync_the_segment_is_sealed_and_state_changes_go_to_the_next() {
    let dir = directory();
    let (log, _, control) = open_faulty(dir.path());
    let first = put(&log, 0, b"first").await.unwrap();
    let claim = claim_one(&log, NOON).await;
    control.fail(1, 2, EIO);
    log.settle(&claim, Settlement::Deferred(NOON)).await.unwrap();
    control.fail(1, 2, EIO);
    let refused = put(&log, 0, b"refused").await;
    assert!(matches!(refused, Err(SpoolError::Io { .. })), "{refused:?}");
    assert!(log.refusal().is_none(), "one failure is an accident");
    let second = put(&log, 0, b"second").await.unwrap();
    let logs = segment_files(dir.path()).iter().filter(|f| f.starts_with('0')).count();
    assert_eq!(logs, 3);
    drop(log);
    let (log, recovered) = open(dir.path());
    assert_eq!(recovered, Recovered { messages: 2, ..Recovered::default() });
    assert_eq!(ids(&log).await, [first, second]);
    assert_eq!(log.show(first).await.unwrap().unwrap().state, QueueState::Deferred);
}

#[tokio::test]
async fn a_disk_that_keeps_failing_refuses_mail_and_resumes_when_it_is_well() {
    let dir = directory();
    let (log, _, control) = open_faulty(dir.path());
    put(&log, 0, b"x").await.unwrap();
    control.fail(0, u64::MAX / 2, EIO);
    assert!(put(&log, 0, b"x").await.is_err());
    assert!(put(&log, 0, b"x").await.is_err());
    assert!(matches!(log.refusal(), Some(SpoolError::Io { .. })));
    control.heal();
    while log.refusal().is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    put(&log, 0, b"x").await.unwrap();
    assert_eq!(log.stats().messages(), 2);
}

#[tokio::test]
async fn a_settlement_that_failed_can_be_tried_again() {
    let dir = directory();
    let (log, _, control) = open_faulty(dir.path());
    let id = put(&log, 0, b"x").await.unwrap();
    let claim = claim_one(&log, NOON).await;
    control.fail(0, u64::MAX / 2, EIO);
    let failed = log.settle(&claim, Settlement::Finished).await;
    assert!(matches!(failed, Err(SpoolError::Io { .. })), "{failed:?}");
    assert_eq!(log.show(id).await.unwrap().unwrap().state, QueueState::Active);
    assert!(log.claim(Room::ENTRY, NOON, 1, Duration::from_mins(1)).await.unwrap().is_empty());
    control.heal();
    log.settle(&claim, Settlement::Finished).await.unwrap();
    drop(log);
    assert_eq!(open(dir.path()).1.messages, 0);
}

#[tokio::test]
async fn a_message_that_cannot_be_read_for_a_moment_is_due_again_in_a_minute() {
    let dir = directory();
    let (log, _, control) = open_faulty(dir.path());
    let id = put(&log, 0, b"x").await.unwrap();
    control.unreadable.store(true, Ordering::SeqCst);
    assert!(log.claim(Room::ENTRY, NOON, 1, Duration::from_hours(2)).await.unwrap().is_empty());
    assert_eq!(log.next_due(Room::ENTRY), Some(NOON.after(Duration::from_mins(1))));
    control.unreadable.store(false, Ordering::SeqCst);
    assert_eq!(claim_one(&log, NOON.after(Duration::from_mins(1))).await.message.id, id);
}

#[tokio::test]
async fn a_drained_segment_whose_end_could_not_be_synced_is_given_back_later() {
    // The rename, or the sync of the directory after it.
    for call in 0..30 {
        let dir = directory();
        let (log, _, control) = open_faulty(dir.path());
        let mut failed = false;
        for n in 0..40 {
            if n == 10 {
                control.fail(call, call + 1, EIO);
            }
            failed |= put(&log, 0, &[b'x'; 3000]).await.is_err();
            let claims = log.claim(Room::ENTRY, NOON, 10, Duration::from_mins(1)).await.unwrap();
            for claim in claims {
                while log.settle(&claim, Settlement::Finished).await.is_err() {
                    failed = true;
                }
            }
        }
        let files = segment_files(dir.path());
        assert!(files.len() <= 6, "call {call}, {failed}: {files:?}");
    }
}

/// Three writes and a sync: whichever fails, nothing of the batch counts, though some is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_written_in_pieces_counts_as_a_whole_or_not_at_all() {
    for failing in 0..=4 {
        let dir = directory();
        let (storage, control) = Faulty::new(dir.path().into());
        let large = Settings { segment_size: 8 << 20, ..settings(dir.path()) };
        let (log, _) = SegmentLog::open_on(storage, large.clone(), noon()).unwrap();
        let log = Arc::new(log);
        let store = |n: u8, size: usize| {
            let log = Arc::clone(&log);
            tokio::spawn(async move { put(&*log, 0, &vec![n; size]).await })
        };
        store(0, 1).await.unwrap().unwrap();
        let paused = control.pause.lock().unwrap();
        let before = control.calls.load(Ordering::SeqCst);
        let first = store(0, 1);
        while control.calls.load(Ordering::SeqCst) < before + 2 {
            std::thread::yield_now();
        }
        let batch: Vec<_> = (1..=8).map(|n| store(n, 400_000)).collect();
        while log.core.lanes.mail_waiting() < 9 {
            std::thread::yield_now();
        }
        control.fail(failing, failing + 1, EIO);
        drop(paused);
        first.await.unwrap().unwrap();
        let mut stored = Vec::new();
        for task in batch {
            stored.extend(task.await.unwrap());
        }
        assert_eq!(stored.len(), if failing == 4 { 8 } else { 0 }, "call {failing} fails");
        drop(log);
        let (log, recovered) = SegmentLog::open(large, noon()).unwrap();
        let found = (recovered.messages, recovered.damage.len());
        assert_eq!(found, (2 + stored.len() as u64, 0), "call {failing} fails");
        for claim in log.claim(Room::ENTRY, NOON, 10, Duration::from_mins(1)).await.unwrap() {
            let body = octets(&log.body(&claim).await.unwrap());
            assert_eq!(body.len() as u64, claim.message.size);
            assert!(body.iter().all(|octet| *octet == body[0]));
        }
    }
}
