//! Bits that flip and tails that are torn.

use std::path::PathBuf;

use super::*;
use crate::spool::Room;
use crate::spool::record::SEGMENT_HEADER;

/// A spool with three messages, its only segment's file, and where its records end.
async fn three(dir: &Path) -> (Vec<QueueId>, PathBuf, usize) {
    let (log, _) = open(dir);
    let mut stored = Vec::new();
    for n in 0..3 {
        stored.push(
            put(&log, n, format!("Subject: {n}\r\n\r\nbody {n}\r\n").as_bytes()).await.unwrap(),
        );
    }
    drop(log);
    let file = dir.join("seg/0000000001.seg");
    let end = fs::read(&file).unwrap().iter().rposition(|b| *b != 0).unwrap() + 1;
    (stored, file, end)
}

/// The messages that are there, whole.
async fn whole(log: &SegmentLog) -> Vec<QueueId> {
    let claims = log
        .claim(Room::ENTRY, NOON.after(Duration::from_secs(9)), 10, Duration::from_secs(1))
        .await;
    let mut whole = Vec::new();
    for claim in claims.unwrap() {
        let n = claim.message.received.since(NOON).as_millis();
        let body = octets(&log.body(&claim).await.unwrap());
        assert_eq!(body, format!("Subject: {n}\r\n\r\nbody {n}\r\n").as_bytes());
        whole.push(claim.message.id);
    }
    whole
}

#[tokio::test]
async fn a_flipped_octet_costs_at_most_the_record_it_is_in() {
    let dir = directory();
    let (stored, file, end) = three(dir.path()).await;
    let sound = fs::read(&file).unwrap();
    for at in 0..end {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x55;
        fs::write(&file, &bytes).unwrap();
        let (log, recovered) = open(dir.path());
        let found = whole(&log).await;
        let lost: Vec<_> = stored.iter().filter(|id| !found.contains(id)).collect();
        assert!(found.iter().all(|id| stored.contains(id)), "octet {at}");
        assert!(lost.len() <= 1, "octet {at}: {lost:?}");
        let noticed = !recovered.damage.is_empty() || recovered.torn_tail;
        assert!(lost.is_empty() || noticed || lost == [&stored[2]], "octet {at}: {recovered:?}");
        assert!(at >= SEGMENT_HEADER || lost.is_empty(), "octet {at}");
        drop(log);
        // What the segment header's damage and the quarantine left behind.
        let _ = fs::remove_dir_all(dir.path().join("quarantine"));
    }
}

#[tokio::test]
async fn a_log_cut_off_anywhere_keeps_what_is_before_and_goes_on_there() {
    let dir = directory();
    let (stored, file, end) = three(dir.path()).await;
    let sound = fs::read(&file).unwrap();
    for at in (0..=end).rev() {
        fs::write(&file, &sound[..at]).unwrap();
        let (log, recovered) = open(dir.path());
        assert!(recovered.damage.is_empty(), "cut at {at}: {recovered:?}");
        let found = whole(&log).await;
        assert_eq!(found, stored[..found.len()], "cut at {at}");
        if at % 64 == 0 && at >= SEGMENT_HEADER {
            let new = put(&log, 7, b"Subject: 7\r\n\r\nbody 7\r\n").await.unwrap();
            drop(log);
            let (log, recovered) = open(dir.path());
            assert!(recovered.damage.is_empty() && !recovered.torn_tail, "cut at {at}");
            let again: Vec<_> = found.into_iter().chain([new]).collect();
            assert_eq!(whole(&log).await, again, "cut at {at}");
        }
        for name in segment_files(dir.path()).iter().filter(|n| n.as_str() > "0000000001.seg") {
            if name.starts_with('0') {
                fs::remove_file(dir.path().join("seg").join(name)).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn damage_in_the_middle_is_reported_and_copied_to_quarantine() {
    let dir = directory();
    let (stored, file, _) = three(dir.path()).await;
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(6).position(|w| w == b"body 1").unwrap();
    bytes[at] = b'B';
    fs::write(&file, &bytes).unwrap();
    let (log, recovered) = open(dir.path());
    assert_eq!(recovered.messages, 2);
    assert_eq!(recovered.damage.len(), 1);
    let damage = &recovered.damage[0];
    assert_eq!((damage.segment, damage.id), (1, Some(stored[1])));
    assert!(damage.range.contains(&(at as u64)));
    let name = format!("quarantine/0000000001-{}.bin", damage.range.start);
    let kept = fs::read(dir.path().join(name)).unwrap();
    let range = damage.range.start.try_into().unwrap()..damage.range.end.try_into().unwrap();
    assert_eq!(kept, &bytes[range]);
    assert_eq!(whole(&log).await, [stored[0], stored[2]]);
}

#[tokio::test]
async fn a_record_forged_inside_a_body_does_not_pass_when_its_container_is_damaged() {
    use crate::spool::record::{self, Header, Kind, Seed};
    let dir = directory();
    let (log, _) = open(dir.path());
    // A client does not know the salt, so it has to guess: here, that there is none.
    let victim = put(&log, 0, b"x").await.unwrap();
    let header = Header {
        kind: Kind::Done,
        state: QueueState::Sent,
        id: victim,
        due: NOON,
        body_len: 0,
        body_crc: 0,
    };
    let mut forged = Vec::new();
    for _ in 0..8 {
        forged.push(b' ');
        record::encode(&mut forged, Seed::new(0, 1), 9, &header, b"", b"");
    }
    put(&log, 0, &forged).await.unwrap();
    put(&log, 0, b"after").await.unwrap();
    drop(log);
    let file = dir.path().join("seg/0000000001.seg");
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(4).enumerate().filter(|(_, w)| *w == b"EPGV").nth(1).unwrap().0;
    bytes[at + 4] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let (log, recovered) = open(dir.path());
    assert_eq!(recovered.damage.len(), 1);
    assert_eq!(log.stats().messages(), 2);
    assert!(log.show(victim).await.unwrap().is_some());
}

#[tokio::test]
async fn a_body_that_rots_while_the_spool_is_open_is_noticed_when_it_is_read() {
    for size in [2000, 600_000] {
        let dir = directory();
        let (log, _) = open(dir.path());
        let id = put(&log, 0, &vec![b'x'; size]).await.unwrap();
        let claim = claim_one(&log, NOON).await;
        let big = dir.path().join(super::super::big::path(id));
        let file = if big.exists() { big } else { dir.path().join("seg/0000000001.seg") };
        let mut bytes = fs::read(&file).unwrap();
        let at = bytes.iter().position(|b| *b == b'x').unwrap();
        let at = bytes[at..].windows(9).position(|w| w == b"xxxxxxxxx").unwrap() + at;
        bytes[at] = b'y';
        fs::write(&file, &bytes).unwrap();
        let read = log.body(&claim).await;
        assert!(matches!(read, Err(SpoolError::Damaged(i)) if i == id), "{read:?}");
    }
}

#[tokio::test]
async fn a_segment_whose_damage_could_not_be_copied_is_not_reused() {
    let dir = directory();
    let (log, _) = open(dir.path());
    for n in 0..12 {
        put(&log, n, &[b'x'; 3000]).await.unwrap();
    }
    drop(log);
    fs::remove_dir_all(dir.path().join("snap")).unwrap();
    let first = dir.path().join("seg/0000000001.seg");
    let mut bytes = fs::read(&first).unwrap();
    bytes[3000] ^= 1;
    fs::write(&first, &bytes).unwrap();
    let drain = async |log: SegmentLog| {
        let later = NOON.after(Duration::from_secs(9));
        for claim in log.claim(Room::ENTRY, later, 100, Duration::from_secs(1)).await.unwrap() {
            log.settle(&claim, Settlement::Finished).await.unwrap();
        }
    };
    let (storage, control) = Faulty::new(dir.path().into());
    control.full.store(true, std::sync::atomic::Ordering::SeqCst);
    let (log, recovered) = SegmentLog::open_on(storage, settings(dir.path()), noon()).unwrap();
    assert_eq!((recovered.damage.len(), recovered.messages), (1, 11));
    drain(log).await;
    assert!(fs::read(&first).unwrap() == bytes, "it is all there is of the damage");
    let (log, recovered) = open(dir.path());
    assert_eq!(recovered.damage.len(), 1);
    put(&log, 0, b"x").await.unwrap();
    drop(log);
    assert!(dir.path().join("quarantine").is_dir() && !first.exists());
}

#[tokio::test]
async fn what_could_not_be_read_is_neither_reused_nor_written_over() {
    // The oldest, and the one that is written to.
    for number in [1, 4] {
        let dir = directory();
        let (log, _) = open(dir.path());
        for n in 0..16 {
            put(&log, n, &[b'x'; 3000]).await.unwrap();
        }
        drop(log);
        fs::remove_dir_all(dir.path().join("snap")).unwrap();
        let (storage, control) = Faulty::new(dir.path().into());
        *control.unreadable_in.lock().unwrap() = Some(format!("seg/000000000{number}.seg").into());
        let clock = Arc::new(ManualClock::new(NOON.after(Duration::from_secs(1))));
        let (log, recovered) = SegmentLog::open_on(storage, settings(dir.path()), clock).unwrap();
        assert!(recovered.messages < 16 && !recovered.damage.is_empty(), "{recovered:?}");
        // What can be read of it is delivered.
        let later = NOON.after(Duration::from_secs(9));
        let mut finished = 0;
        for claim in log.claim(Room::ENTRY, later, 100, Duration::from_secs(1)).await.unwrap() {
            log.settle(&claim, Settlement::Finished).await.unwrap();
            finished += 1;
        }
        for n in 0..3 {
            put(&log, n, &[b'y'; 3000]).await.unwrap();
        }
        drop(log);
        let (_, recovered) = open(dir.path());
        assert_eq!(recovered.messages, 16 - finished + 3, "{number}: {recovered:?}");
    }
}

#[tokio::test]
async fn where_there_is_damage_no_body_is_taken_for_an_orphan() {
    let dir = directory();
    let (log, _) = open(dir.path());
    let id = put(&log, 0, &vec![b'x'; 600_000]).await.unwrap();
    put(&log, 0, b"behind it").await.unwrap();
    drop(log);
    fs::remove_dir_all(dir.path().join("snap")).unwrap();
    let first = dir.path().join("seg/0000000001.seg");
    let sound = fs::read(&first).unwrap();
    let mut bytes = sound.clone();
    bytes[64 + 20] ^= 1;
    fs::write(&first, &bytes).unwrap();
    let (log, recovered) = open(dir.path());
    assert_eq!((recovered.messages, recovered.orphans), (1, 0));
    assert!(dir.path().join(crate::spool::big::path(id)).exists());
    drop(log);
    fs::write(&first, sound).unwrap();
    let (log, recovered) = open(dir.path());
    assert_eq!((recovered.messages, recovered.without_body.len()), (2, 0));
    assert_eq!(log.content(id).await.unwrap().len(), 600_000);
}
