//! The log on the disk: what survives being closed and opened, and what its directory holds.

mod damage;
mod faults;
mod limits;
mod model;
mod notes;
mod snapshots;
mod tools;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tempfile::TempDir;

use super::big::INLINE_MAX;
use super::conformance::{NOON, claim_one, conformance, message, octets, put};
use super::fault::{Control, Faulty};
use super::{
    MemorySpool, OpenError, Recovered, SegmentLog, Settings, Settlement, Spool, SpoolError,
};
use crate::clock::{Clock, ManualClock, Timestamp};
use crate::mail::{Message, QueueId, QueueState};
use crate::spool::Room;

/// A clock that stands at noon.
fn noon() -> Arc<dyn Clock> {
    Arc::new(ManualClock::new(NOON))
}

/// A spool of small segments without limits.
fn settings(path: &Path) -> Settings {
    Settings {
        allow_volatile: true,
        min_free: 0,
        segment_size: 16 << 10,
        ..Settings::new(path.into())
    }
}

fn directory() -> TempDir {
    let private = fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().prefix("spool").permissions(private).tempdir().unwrap()
}

fn open(path: &Path) -> (SegmentLog, Recovered) {
    SegmentLog::open(settings(path), noon()).unwrap()
}

fn open_faulty(path: &Path) -> (SegmentLog, Recovered, Arc<Control>) {
    let (storage, control) = Faulty::new(path.into());
    let (log, recovered) = SegmentLog::open_on(storage, settings(path), noon()).unwrap();
    (log, recovered, control)
}

/// The files below `seg/`.
fn segment_files(path: &Path) -> Vec<String> {
    let names = fs::read_dir(path.join("seg")).unwrap();
    let mut names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The ids in the queue.
async fn ids(log: &SegmentLog) -> Vec<QueueId> {
    log.list(None, 10_000).await.unwrap().iter().map(|e| e.message.id).collect()
}

mod on_disk {
    use super::*;

    fn fresh(clock: Arc<ManualClock>) -> (Arc<dyn Spool>, TempDir) {
        let dir = directory();
        let (log, _) = SegmentLog::open(settings(dir.path()), clock).unwrap();
        (Arc::new(log), dir)
    }

    conformance!(fresh);
}

mod in_memory {
    use super::*;

    fn fresh(clock: Arc<ManualClock>) -> (Arc<dyn Spool>, ()) {
        (Arc::new(MemorySpool::new(clock)), ())
    }

    conformance!(fresh);
}

#[tokio::test]
async fn bodies_on_both_sides_of_the_border_survive_and_only_large_ones_have_a_file() {
    let border = INLINE_MAX as u64;
    for (size, has_file) in
        [(0, false), (border - 1, false), (border, false), (border + 1, true), (3 * border, true)]
    {
        let dir = directory();
        let body: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let (log, _) = open(dir.path());
        let id = put(&log, 0, &body).await.unwrap();
        drop(log);
        let file = dir.path().join(super::big::path(id));
        assert_eq!(file.exists(), has_file, "{size}");
        let (log, recovered) = open(dir.path());
        assert_eq!((recovered.messages, recovered.orphans), (1, 0));
        let claim = claim_one(&log, NOON).await;
        assert_eq!(claim.message.size, size);
        let stored = log.body(&claim).await.unwrap();
        assert_eq!(stored.is_stored(), has_file);
        assert!(octets(&stored) == body, "{size}");
        log.settle(&claim, Settlement::Finished).await.unwrap();
        drop(log);
        assert!(!file.exists());
        assert_eq!(open(dir.path()).1.messages, 0);
    }
}

#[tokio::test]
async fn a_claim_is_forgotten_and_a_settlement_kept_over_a_restart() {
    let dir = directory();
    let (log, _) = open(dir.path());
    let (claimed, deferred, dead, done) = (
        put(&log, 0, b"a").await.unwrap(),
        put(&log, 1, b"b").await.unwrap(),
        put(&log, 2, b"c").await.unwrap(),
        put(&log, 3, b"d").await.unwrap(),
    );
    let now = NOON.after(Duration::from_secs(1));
    let mut claims = log.claim(Room::ENTRY, now, 4, Duration::from_mins(1)).await.unwrap();
    let later = NOON.after(Duration::from_mins(15));
    log.settle(&claims.remove(3), Settlement::Finished).await.unwrap();
    log.settle(&claims.remove(2), Settlement::Dead).await.unwrap();
    log.settle(&claims.remove(1), Settlement::Deferred(later)).await.unwrap();
    drop(log);
    let (log, recovered) = open(dir.path());
    assert_eq!(recovered, Recovered { messages: 3, ..Recovered::default() });
    let entries = log.list(None, 10).await.unwrap();
    let found: Vec<_> = entries.iter().map(|e| (e.message.id, e.state, e.due)).collect();
    let received = message(claimed, 0).received;
    assert_eq!(
        found,
        [
            (claimed, QueueState::Incoming, Some(received)),
            (deferred, QueueState::Deferred, Some(later)),
            (dead, QueueState::Dead, None)
        ]
    );
    assert_eq!(log.show(done).await.unwrap(), None);
}

#[tokio::test]
async fn drained_segments_are_reused_and_their_old_records_never_come_back() {
    let dir = directory();
    let (log, _) = open(dir.path());
    let body = vec![b'x'; 3000];
    for _ in 0..60 {
        put(&log, 0, &body).await.unwrap();
        let claim = claim_one(&log, NOON).await;
        log.settle(&claim, Settlement::Finished).await.unwrap();
    }
    let kept = put(&log, 0, b"kept").await.unwrap();
    let files = segment_files(dir.path());
    assert!(files.len() <= 2 + super::segment::SPARES + 1, "{files:?}");
    assert!(
        files.iter().any(|f| f.as_str() > "0000000010.seg" && !f.starts_with('s')),
        "{files:?}"
    );
    drop(log);
    let (log, recovered) = open(dir.path());
    assert_eq!(recovered, Recovered { messages: 1, ..Recovered::default() });
    assert_eq!(ids(&log).await, [kept]);
}

#[tokio::test]
async fn ids_are_not_reused_when_all_is_drained_and_the_clock_set_back() {
    let dir = directory();
    let mut last = QueueId::from_u64(0);
    for day in (0..4_u64).rev() {
        let at = Timestamp::from_millis(day * 86_400_000);
        let clock = Arc::new(ManualClock::new(at));
        let (log, _) = SegmentLog::open(settings(dir.path()), clock).unwrap();
        for _ in 0..12 {
            let id = put(&log, 0, &[b'x'; 3000]).await.unwrap();
            assert!(id > last);
            last = id;
            let claim = claim_one(&log, NOON).await;
            log.settle(&claim, Settlement::Finished).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_second_process_is_refused_until_the_first_lets_go() {
    let dir = directory();
    let (log, _) = open(dir.path());
    let refused = SegmentLog::open(settings(dir.path()), noon()).err().unwrap();
    assert!(matches!(refused, OpenError::InUse { .. }), "{refused}");
    drop(log);
    open(dir.path());
}

#[tokio::test]
async fn a_spool_of_another_version_or_without_format_is_left_untouched() {
    let dir = directory();
    let (log, _) = open(dir.path());
    put(&log, 0, b"x").await.unwrap();
    drop(log);
    let before = segment_files(dir.path());
    let format = fs::read(dir.path().join("FORMAT")).unwrap();
    for text in ["postgate-spool 2\nsalt 00000000\n", "", "postgate-spool 1\n"] {
        fs::write(dir.path().join("FORMAT"), text).unwrap();
        let refused = SegmentLog::open(settings(dir.path()), noon()).err().unwrap();
        assert!(matches!(refused, OpenError::Format { .. }), "{refused}");
    }
    fs::write(dir.path().join("FORMAT"), "postgate-spool 1\nsalt 00000001\n").unwrap();
    let refused = SegmentLog::open(settings(dir.path()), noon()).err().unwrap();
    assert!(matches!(refused, OpenError::Format { .. }), "{refused}");
    fs::remove_file(dir.path().join("FORMAT")).unwrap();
    assert!(SegmentLog::open(settings(dir.path()), noon()).is_err());
    assert_eq!(segment_files(dir.path()), before);
    fs::write(dir.path().join("FORMAT"), format).unwrap();
    assert_eq!(open(dir.path()).1.messages, 1);
}

#[tokio::test]
async fn foreign_files_are_left_alone_and_symbolic_links_not_followed() {
    let dir = directory();
    drop(open(dir.path()));
    let foreign = ["seg/notes.txt", "seg/1.seg", "seg/spare-x.seg", "big/readme", "README"];
    for name in foreign {
        fs::write(dir.path().join(name), "mine").unwrap();
    }
    let target = dir.path().join("target");
    fs::write(&target, "mine").unwrap();
    std::os::unix::fs::symlink(&target, dir.path().join("seg/0000000900.seg")).unwrap();
    let (log, _) = open(dir.path());
    put(&log, 0, b"x").await.unwrap();
    drop(log);
    for path in foreign.map(|n| dir.path().join(n)).iter().chain([&target]) {
        assert_eq!(fs::read(path).unwrap(), b"mine", "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_commits_share_a_few_syncs_and_each_is_durable() {
    let dir = directory();
    let (log, _, control) = open_faulty(dir.path());
    let log = Arc::new(log);
    put(&*log, 0, b"the first segment is there now").await.unwrap();
    let paused = control.pause.lock().unwrap();
    let tasks: Vec<_> = (0..64)
        .map(|n| {
            let log = Arc::clone(&log);
            tokio::spawn(async move { put(&*log, n, b"hello").await.unwrap() })
        })
        .collect();
    let before = control.syncs.load(std::sync::atomic::Ordering::SeqCst);
    while log.core.lanes.mail_waiting() < 64 {
        std::thread::yield_now();
    }
    drop(paused);
    let mut committed = Vec::new();
    for task in tasks {
        committed.push(task.await.unwrap());
    }
    let syncs = control.syncs.load(std::sync::atomic::Ordering::SeqCst) - before;
    // One for what the first of them found, and the rest together, a new segment or two between.
    assert!(syncs <= 8, "{syncs}");
    drop(log);
    let (log, _) = open(dir.path());
    committed.sort();
    assert_eq!(ids(&log).await[1..], committed);
}

#[tokio::test]
async fn a_draft_that_was_begun_and_a_body_without_its_message_leave_no_file() {
    let dir = directory();
    let (log, _) = open(dir.path());
    let mut draft = log.draft().await.unwrap();
    for _ in 0..8 {
        draft.write(vec![b'x'; 200_000].into()).await.unwrap();
    }
    let temporary = dir.path().join(super::big::path(draft.id())).with_extension("tmp");
    assert!(temporary.exists());
    drop(draft);
    assert!(!temporary.exists());
    let id = put(&log, 0, &vec![b'x'; 600_000]).await.unwrap();
    drop(log);
    let stored = dir.path().join(super::big::path(id));
    let orphan = dir.path().join(super::big::path(QueueId::from_u64(id.as_u64() + 1)));
    fs::copy(&stored, &orphan).unwrap();
    fs::copy(&stored, orphan.with_extension("tmp")).unwrap();
    let (log, recovered) = open(dir.path());
    assert_eq!((recovered.messages, recovered.orphans), (1, 2));
    assert!(!orphan.exists() && stored.exists());
    drop(log);
    fs::remove_file(&stored).unwrap();
    let (log, recovered) = open(dir.path());
    assert_eq!(recovered.without_body, [id]);
    assert_eq!(log.show(id).await.unwrap().unwrap().state, QueueState::Held);
}

#[tokio::test]
async fn octets_in_memory_are_bounded_over_all_drafts() {
    let dir = directory();
    let small = Settings { memory: 2 << 20, ..settings(dir.path()) };
    let (log, _) = SegmentLog::open(small, noon()).unwrap();
    let mut drafts = Vec::new();
    let refused = loop {
        let mut draft = log.draft().await.unwrap();
        match draft.write(vec![b'x'; INLINE_MAX].into()).await {
            Ok(()) => drafts.push(draft),
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, SpoolError::Busy));
    assert_eq!(drafts.len(), 4);
    drop(drafts.pop());
    put(&log, 0, &vec![b'x'; INLINE_MAX]).await.unwrap();
    put(&log, 0, &vec![b'x'; INLINE_MAX]).await.unwrap();
}

#[tokio::test]
async fn what_is_in_memory_is_read_at_once_and_all_else_by_waiting_for_the_disk() {
    let dir = directory();
    let (log, _, control) = open_faulty(dir.path());
    let waited = || control.waited.swap(0, Ordering::SeqCst);
    for (cold, body, waits) in [
        (false, b"short".to_vec(), 0),
        (true, b"short".to_vec(), 2),
        (false, vec![b'x'; INLINE_MAX], 0),
        (true, vec![b'x'; INLINE_MAX], 2),
    ] {
        control.cold.store(cold, Ordering::SeqCst);
        put(&log, 0, &body).await.unwrap();
        waited();
        let claim = claim_one(&log, NOON).await;
        assert_eq!(octets(&log.body(&claim).await.unwrap()), body);
        assert_eq!(waited(), waits, "{cold}, {} octets", body.len());
        log.settle(&claim, Settlement::Finished).await.unwrap();
    }
    // Long metadata takes long to decode, and a large body has a file of its own.
    control.cold.store(false, Ordering::SeqCst);
    let draft = log.draft().await.unwrap();
    let many = vec!["somebody@example.com"; 400];
    let wide = Message::sample(draft.id(), NOON, &many);
    draft.commit(wide).await.unwrap();
    waited();
    let claim = claim_one(&log, NOON).await;
    assert_eq!((claim.message.envelope.recipients.len(), waited()), (400, 2));
    log.settle(&claim, Settlement::Finished).await.unwrap();
    let large = vec![b'y'; INLINE_MAX + 1];
    put(&log, 0, &large).await.unwrap();
    let claim = claim_one(&log, NOON).await;
    waited();
    assert_eq!(octets(&log.body(&claim).await.unwrap()), large);
    assert!(waited() > 0);
}

#[tokio::test]
async fn a_short_piece_of_a_large_allocation_counts_with_all_of_it() {
    const MEMORY: usize = 2 << 20;
    let dir = directory();
    let small = Settings { memory: MEMORY as u64, ..settings(dir.path()) };
    let (log, _) = SegmentLog::open(small, noon()).unwrap();
    for (capacity, fits) in [(MEMORY - 1, true), (MEMORY, true), (MEMORY + 1, false)] {
        let mut piece = Vec::with_capacity(capacity);
        piece.push(b'x');
        let mut draft = log.draft().await.unwrap();
        let written = draft.write(piece.into()).await;
        assert_eq!(written.is_ok(), fits, "{capacity}: {written:?}");
    }
}

#[tokio::test]
async fn a_message_that_waits_does_not_keep_the_log_behind_it() {
    let dir = directory();
    let (log, _) = open(dir.path());
    let mut waiting = Vec::new();
    for size in [2000, 600_000] {
        waiting.push(put(&log, 0, &vec![b'w'; size]).await.unwrap());
        let mut claim = claim_one(&log, NOON).await;
        claim.message.attempts = 3;
        let later = NOON.after(Duration::from_mins(15));
        log.settle(&claim, Settlement::Deferred(later)).await.unwrap();
    }
    let claimed = put(&log, 0, b"in delivery all the while").await.unwrap();
    let held = claim_one(&log, NOON).await;
    for _ in 0..80 {
        put(&log, 0, &[b'x'; 3000]).await.unwrap();
        let claim = claim_one(&log, NOON).await;
        log.settle(&claim, Settlement::Finished).await.unwrap();
    }
    let in_use = || segment_files(dir.path()).iter().filter(|f| f.starts_with('0')).count();
    while in_use() > 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(log.show(claimed).await.unwrap().unwrap().state, QueueState::Active);
    log.settle(&held, Settlement::Finished).await.unwrap();
    drop(log);
    let (log, recovered) = open(dir.path());
    assert_eq!(recovered, Recovered { messages: 2, ..Recovered::default() });
    let later = NOON.after(Duration::from_mins(15));
    let claims = log.claim(Room::ENTRY, later, 10, Duration::from_mins(1)).await.unwrap();
    let found: Vec<_> = claims.iter().map(|c| (c.message.id, c.message.attempts)).collect();
    assert_eq!(found, waiting.iter().map(|id| (*id, 3)).collect::<Vec<_>>());
    for (claim, size) in claims.iter().zip([2000, 600_000]) {
        assert_eq!(octets(&log.body(claim).await.unwrap()), vec![b'w'; size]);
    }
}

#[tokio::test]
async fn a_log_full_of_live_mail_is_not_copied_round_and_round() {
    let dir = directory();
    let (log, _, control) = open_faulty(dir.path());
    let wide = |id| {
        let mut wide = message(id, 0);
        let many = vec![wide.envelope.recipients.remove(0); 100];
        wide.status = vec![wide.status.remove(0); 100];
        wide.envelope.recipients = many;
        wide
    };
    for _ in 0..20 {
        let draft = log.draft().await.unwrap();
        let wide = wide(draft.id());
        draft.commit(wide).await.unwrap();
    }
    let syncs = || control.syncs.load(std::sync::atomic::Ordering::SeqCst);
    let before = syncs();
    put(&log, 0, b"x").await.unwrap();
    put(&log, 0, b"y").await.unwrap();
    assert!(segment_files(dir.path()).len() > 5);
    assert!(syncs() - before <= 4, "one for each message, and for a segment");
}
