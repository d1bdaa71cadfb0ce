//! Snapshots: when they are taken, that they are used, and that none of them is believed.

use crate::spool::Room;
use std::path::PathBuf;

use super::*;

/// The snapshots of a spool, the oldest first.
fn snapshots(path: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(path.join("snap")).unwrap();
    let mut found: Vec<_> = found.map(|e| e.unwrap().path()).collect();
    found.sort();
    found
}

fn often(path: &Path) -> Settings {
    Settings { snapshot_every: 48 << 10, ..settings(path) }
}

/// A spool with two snapshots and mail after each, as if the power had gone. What is in it.
async fn two_and_a_tail(from: &Path, to: &Path) -> Vec<QueueId> {
    let (log, _) = SegmentLog::open(often(from), noon()).unwrap();
    let mut n = 0;
    while !from.join("snap").is_dir() || snapshots(from).len() < 2 {
        put(&log, n, &[b'x'; 3000]).await.unwrap();
        if n % 3 == 0 {
            let claim = claim_one_of(&log).await;
            log.settle(&claim, Settlement::Finished).await.unwrap();
        }
        n += 1;
        assert!(n < 100, "a snapshot every 48 KiB");
    }
    put(&log, n, b"the last").await.unwrap();
    let claim = claim_one_of(&log).await;
    log.settle(&claim, Settlement::Finished).await.unwrap();
    let expected = ids(&log).await;
    copy(from, to);
    expected
}

async fn claim_one_of(log: &SegmentLog) -> crate::spool::Claim {
    let now = NOON.after(Duration::from_secs(9));
    log.claim(Room::ENTRY, now, 1, Duration::from_mins(1)).await.unwrap().remove(0)
}

fn copy(from: &Path, to: &Path) {
    for name in ["FORMAT", "seg", "snap", "big"] {
        let (from, to) = (from.join(name), to.join(name));
        if from.is_dir() {
            fs::create_dir_all(&to).unwrap();
            for entry in fs::read_dir(&from).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

/// Whether opening would see damage in the first record of the log: it does not when a snapshot
/// covers it.
fn reads_the_first_segment(path: &Path) -> bool {
    let first = segment_files(path).into_iter().find(|f| f.starts_with('0')).unwrap();
    let file = path.join("seg").join(first);
    let mut bytes = fs::read(&file).unwrap();
    bytes[80] ^= 1;
    fs::write(&file, &bytes).unwrap();
    !open(path).1.damage.is_empty()
}

#[tokio::test]
async fn opening_reads_the_newest_snapshot_and_what_came_after_it() {
    let (from, to) = (directory(), directory());
    let expected = two_and_a_tail(from.path(), to.path()).await;
    assert_eq!(snapshots(to.path()).len(), 2);
    let (log, recovered) = open(to.path());
    assert_eq!(ids(&log).await, expected);
    assert_eq!(recovered, Recovered { messages: expected.len() as u64, ..Recovered::default() });
    drop(log);
    assert!(!reads_the_first_segment(to.path()));
}

#[tokio::test]
async fn a_damaged_snapshot_gives_way_to_the_older_and_that_to_the_log_itself() {
    let (from, to) = (directory(), directory());
    let expected = two_and_a_tail(from.path(), to.path()).await;
    for left in [1, 0] {
        let newest = snapshots(to.path()).pop().unwrap();
        let mut bytes = fs::read(&newest).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        fs::write(&newest, &bytes).unwrap();
        let again = directory();
        copy(to.path(), again.path());
        let (log, recovered) = open(again.path());
        assert_eq!(ids(&log).await, expected, "{left} left");
        assert!(recovered.damage.is_empty());
        drop(log);
        let again = directory();
        copy(to.path(), again.path());
        assert_eq!(reads_the_first_segment(again.path()), left == 0);
        fs::remove_file(newest).unwrap();
    }
}

#[tokio::test]
async fn every_flipped_bit_of_a_snapshot_is_noticed_and_so_is_every_length() {
    let (from, to) = (directory(), directory());
    two_and_a_tail(from.path(), to.path()).await;
    let newest = snapshots(to.path()).pop().unwrap();
    let sound = fs::read(&newest).unwrap();
    let storage = crate::spool::storage::Disk::new(to.path().into());
    let name = newest.strip_prefix(to.path()).unwrap();
    let format = fs::read_to_string(to.path().join("FORMAT")).unwrap();
    let salt = u32::from_str_radix(format.trim().rsplit(' ').next().unwrap(), 16).unwrap();
    let read = || crate::spool::snapshot::read(&storage, name, salt).ok().flatten();
    assert!(read().is_some());
    assert!(crate::spool::snapshot::read(&storage, name, salt ^ 1).unwrap().is_none());
    for at in 0..sound.len() {
        let mut bytes = sound.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&newest, &bytes).unwrap();
        assert!(read().is_none(), "octet {at}");
        fs::write(&newest, &sound[..at]).unwrap();
        assert!(read().is_none(), "cut at {at}");
    }
}

#[tokio::test]
async fn a_snapshot_of_another_time_is_not_believed() {
    let (from, to, bare) = (directory(), directory(), directory());
    two_and_a_tail(from.path(), to.path()).await;
    // The segments of an hour ago, with the snapshots of now.
    for _ in 0..4 {
        let last = segment_files(to.path()).into_iter().rfind(|f| f.starts_with('0')).unwrap();
        fs::remove_file(to.path().join("seg").join(last)).unwrap();
    }
    copy(to.path(), bare.path());
    fs::remove_dir_all(bare.path().join("snap")).unwrap();
    let (log, recovered) = open(to.path());
    let (without, recovered_without) = open(bare.path());
    assert_eq!((ids(&log).await, recovered), (ids(&without).await, recovered_without));
}

#[tokio::test]
async fn a_snapshot_that_is_ahead_of_the_log_is_not_believed() {
    let dir = directory();
    let (log, _) = open(dir.path());
    for n in 0..3 {
        put(&log, n, b"x").await.unwrap();
    }
    let first_two = ids(&log).await[..2].to_vec();
    drop(log);
    assert_eq!(snapshots(dir.path()).len(), 1);
    // The segment of a moment ago: its last record was not written yet.
    let file = dir.path().join("seg/0000000001.seg");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.windows(4).rposition(|w| w == crate::spool::record::MAGIC).unwrap();
    bytes[last..].fill(0);
    fs::write(&file, bytes).unwrap();
    let (log, recovered) = open(dir.path());
    assert_eq!((recovered.messages, ids(&log).await), (2, first_two));
}

#[tokio::test]
async fn a_clean_close_leaves_a_snapshot_and_one_without_news_leaves_it_alone() {
    let dir = directory();
    let (log, _) = open(dir.path());
    put(&log, 0, b"x").await.unwrap();
    log.close().await;
    drop(log);
    let first = snapshots(dir.path());
    assert_eq!(first.len(), 1);
    drop(open(dir.path()));
    assert_eq!(snapshots(dir.path()), first);
    for n in 0..4 {
        let (log, recovered) = open(dir.path());
        assert_eq!(recovered.messages, 1 + n);
        put(&log, n, b"x").await.unwrap();
        drop(log);
    }
    assert_eq!(snapshots(dir.path()).len(), 2, "two are kept");
}

#[tokio::test]
async fn where_there_is_damage_no_snapshot_is_taken() {
    let dir = directory();
    let (log, _) = open(dir.path());
    for n in 0..20 {
        put(&log, n, &[b'x'; 3000]).await.unwrap();
    }
    drop(log);
    fs::remove_dir_all(dir.path().join("snap")).unwrap();
    assert!(reads_the_first_segment(dir.path()));
    let (log, recovered) = open(dir.path());
    assert_eq!((recovered.damage.len(), recovered.messages), (1, 19));
    put(&log, 0, b"x").await.unwrap();
    drop(log);
    assert!(snapshots(dir.path()).is_empty());
    assert_eq!(open(dir.path()).1.damage.len(), 1, "told again");
}

#[tokio::test]
async fn a_snapshot_that_can_not_be_written_costs_nothing() {
    let dir = directory();
    let (storage, control) = Faulty::new(dir.path().into());
    let (log, _) = SegmentLog::open_on(storage, settings(dir.path()), noon()).unwrap();
    put(&log, 0, b"x").await.unwrap();
    control.fail(0, u64::MAX / 2, 28);
    drop(log);
    control.heal();
    assert!(snapshots(dir.path()).is_empty());
    assert_eq!(open(dir.path()).1.messages, 1);
}
