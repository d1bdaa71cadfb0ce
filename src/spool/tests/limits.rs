//! What new mail meets when there is no room.

use crate::spool::Room;
use std::sync::atomic::Ordering;

use super::*;

fn is_full<T>(result: Result<T, SpoolError>) -> bool {
    matches!(result.err(), Some(SpoolError::Full(_)))
}

#[tokio::test]
async fn max_messages_holds_before_a_draft_and_at_its_commit() {
    let dir = directory();
    let limited = Settings { max_messages: 3, ..settings(dir.path()) };
    let (log, _) = SegmentLog::open(limited, noon()).unwrap();
    put(&log, 0, b"1").await.unwrap();
    put(&log, 0, b"2").await.unwrap();
    let (third, fourth) = (log.draft().await.unwrap(), log.draft().await.unwrap());
    let (a, b) = (message(third.id(), 0), message(fourth.id(), 0));
    third.commit(a).await.unwrap();
    assert!(is_full(fourth.commit(b).await));
    assert!(is_full(log.draft().await) && is_full(log.refusal().map_or(Ok(()), Err)));
    let claim = log.claim(Room::ENTRY, NOON, 1, Duration::from_mins(1)).await.unwrap().remove(0);
    log.settle(&claim, Settlement::Finished).await.unwrap();
    put(&log, 0, b"3").await.unwrap();
}

#[tokio::test]
async fn max_bytes_holds_to_the_octet() {
    let dir = directory();
    let limited = Settings { max_bytes: 10, ..settings(dir.path()) };
    let (log, _) = SegmentLog::open(limited, noon()).unwrap();
    assert!(is_full(put(&log, 0, &[b'x'; 11]).await));
    put(&log, 0, &[b'x'; 9]).await.unwrap();
    assert!(is_full(put(&log, 0, b"xx").await));
    put(&log, 0, b"x").await.unwrap();
    assert!(is_full(log.draft().await));
    assert_eq!(log.stats().bytes, 10);
}

#[tokio::test]
async fn a_low_disk_refuses_mail_before_it_is_received_and_service_resumes_by_itself() {
    let dir = directory();
    let (storage, control) = Faulty::new(dir.path().into());
    control.free.store(999, Ordering::SeqCst);
    let low = Settings { min_free: 1000, ..settings(dir.path()) };
    let (log, _) = SegmentLog::open_on(storage, low, noon()).unwrap();
    assert!(is_full(log.draft().await));
    control.free.store(1100, Ordering::SeqCst);
    while log.refusal().is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    put(&log, 0, b"x").await.unwrap();
}

#[tokio::test]
async fn on_a_full_disk_state_changes_go_on_and_mail_resumes_when_there_is_room() {
    let dir = directory();
    let (log, _, control) = open_faulty(dir.path());
    put(&log, 0, b"x").await.unwrap();
    control.full.store(true, Ordering::SeqCst);
    let mut stored = 1;
    let refused = loop {
        match put(&log, 0, &[b'x'; 1000]).await {
            Ok(_) => stored += 1,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, SpoolError::Full(_)), "{refused}");
    assert!(stored > 5, "the segment that is there is filled");
    let later = NOON.after(Duration::from_mins(1));
    for _ in 0..4 {
        // Each message's metadata anew: more than what is left of the current segment.
        for claim in log.claim(Room::ENTRY, NOON, 100, Duration::from_mins(1)).await.unwrap() {
            log.settle(&claim, Settlement::Deferred(NOON)).await.unwrap();
        }
        assert_eq!(log.stats().messages(), stored);
        if segment_files(dir.path()).iter().all(|f| f != "reserve.seg") {
            break;
        }
    }
    assert!(is_full(log.draft().await), "the reserve is not for mail");
    for claim in log.claim(Room::ENTRY, later, 100, Duration::from_mins(1)).await.unwrap() {
        log.settle(&claim, Settlement::Finished).await.unwrap();
    }
    assert_eq!(log.stats().messages(), 0);
    while log.refusal().is_some() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    put(&log, 0, b"a drained segment is the reserve now").await.unwrap();
    drop(log);
    assert_eq!(open(dir.path()).1.messages, 1);
}

#[tokio::test]
async fn a_spool_opens_on_a_full_disk_and_delivers_but_takes_no_mail() {
    let dir = directory();
    let (log, _, _) = open_faulty(dir.path());
    put(&log, 0, b"x").await.unwrap();
    drop(log);
    fs::remove_file(dir.path().join("seg/reserve.seg")).unwrap();
    let (storage, control) = Faulty::new(dir.path().into());
    control.full.store(true, Ordering::SeqCst);
    let (log, _) = SegmentLog::open_on(storage, settings(dir.path()), noon()).unwrap();
    assert!(is_full(log.draft().await));
    let claim = claim_one(&log, NOON).await;
    log.settle(&claim, Settlement::Finished).await.unwrap();
    control.full.store(false, Ordering::SeqCst);
    while log.refusal().is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    put(&log, 0, b"x").await.unwrap();
}

#[tokio::test]
async fn a_reserve_without_its_blocks_is_completed_when_there_is_room() {
    let dir = directory();
    drop(open_faulty(dir.path()));
    // As a crash leaves it that came between the file's name and its blocks.
    fs::write(dir.path().join("seg/reserve.seg"), b"").unwrap();
    let (storage, control) = Faulty::new(dir.path().into());
    control.full.store(true, Ordering::SeqCst);
    let (log, _) = SegmentLog::open_on(storage, settings(dir.path()), noon()).unwrap();
    assert!(is_full(log.draft().await));
    control.full.store(false, Ordering::SeqCst);
    let resumed = async {
        while log.refusal().is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), resumed).await.unwrap();
    put(&log, 0, b"x").await.unwrap();
}
