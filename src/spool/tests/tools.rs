//! The operators' tools, on real directories.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::mail::{BodyKind, Notify, Ret};
use crate::spool::Room;
use crate::spool::tools::archive::{self, ArchiveError, Outgoing};
use crate::spool::tools::{Progress, Reader, ToolError, Verdict, compact, restore, verify};
use crate::spool::{Action, Entry};

const LEASE: Duration = Duration::from_mins(1);

/// Counts.
#[derive(Default)]
struct Count(std::sync::Mutex<(u64, u64)>);

impl Progress for Count {
    fn total(&self, units: u64) {
        self.0.lock().unwrap().0 = units;
    }

    fn add(&self, units: u64) {
        self.0.lock().unwrap().1 += units;
    }
}

fn verdict(path: &Path) -> Verdict {
    verify(path, Arc::new(Count::default())).unwrap()
}

/// Every file with its content.
fn snapshot(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(snapshot(&path));
            files.insert(path, Vec::new());
        } else {
            let content = fs::read(&path).unwrap();
            files.insert(path, content);
        }
    }
    files
}

/// Makes opening read all of the log, as the tools do: it may have written down what is in it.
fn read_all(path: &Path) {
    let _ = fs::remove_dir_all(path.join("snap"));
}

fn flip(path: &Path, at: usize) {
    let mut octets = fs::read(path).unwrap();
    octets[at] ^= 1;
    fs::write(path, octets).unwrap();
}

/// A spool with small messages and a large one; the large one's id.
async fn filled(path: &Path) -> QueueId {
    let (log, _) = open(path);
    for n in 0..5 {
        put(&log, n, &[b'x'; 1000]).await.unwrap();
    }
    let big = put(&log, 5, &vec![b'y'; INLINE_MAX + 1]).await.unwrap();
    put(&log, 6, b"last").await.unwrap();
    big
}

#[tokio::test]
async fn verify_tells_what_opening_would_find_and_changes_nothing() {
    let truncate = |path: &Path, len: u64| {
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
    };
    for fault in ["none", "damage", "no body", "short body", "orphan", "no lock"] {
        let dir = directory();
        let big = filled(dir.path()).await;
        let body = dir.path().join(crate::spool::big::path(big));
        match fault {
            "damage" => flip(&dir.path().join("seg/0000000001.seg"), 64 + 1500),
            "no body" => fs::remove_file(&body).unwrap(),
            "short body" => truncate(&body, 7),
            "orphan" => {
                let other = body.with_file_name(format!("{}.eml", QueueId::from_u64(7)));
                fs::create_dir_all(dir.path().join("big/00")).unwrap();
                fs::write(dir.path().join("big/00").join(other.file_name().unwrap()), "x").unwrap();
            }
            "no lock" => fs::remove_file(dir.path().join("LOCK")).unwrap(),
            _ => {}
        }
        let before = snapshot(dir.path());
        let count = Arc::new(Count::default());
        let found = verify(dir.path(), Arc::clone(&count) as Arc<dyn Progress>).unwrap();
        assert_eq!(snapshot(dir.path()), before, "{fault}");
        let (total, done) = *count.0.lock().unwrap();
        assert!(total >= 16 << 10 && done >= 16 << 10, "{fault}: {done} of {total}");
        let sound = matches!(fault, "none" | "orphan" | "no lock");
        assert_eq!((found.is_sound(), found.segments), (sound, 1), "{fault}: {found:?}");
        read_all(dir.path());
        assert_eq!(found.recovered, open(dir.path()).1, "{fault}");
    }
}

#[tokio::test]
async fn verify_reads_the_body_files_too() {
    let dir = directory();
    let big = filled(dir.path()).await;
    flip(&dir.path().join(crate::spool::big::path(big)), INLINE_MAX / 2);
    let found = verdict(dir.path());
    assert_eq!((found.damaged_bodies.as_slice(), found.is_sound()), (&[big][..], false));
    assert!(found.recovered.damage.is_empty());
}

#[tokio::test]
async fn what_is_looked_at_is_not_written_to_meanwhile() {
    let dir = directory();
    filled(dir.path()).await;
    let (log, _) = open(dir.path());
    let own = std::process::id().to_string();
    for refused in [
        verify(dir.path(), Arc::new(Count::default())).map(|_| ()),
        compact(settings(dir.path()), noon(), &Count::default()).map(|_| ()),
    ] {
        let Err(ToolError::Open(OpenError::InUse { pid, .. })) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(pid, own);
    }
    drop(log);
    let reader = Reader::open(dir.path(), Arc::new(Count::default())).unwrap();
    assert!(matches!(SegmentLog::open(settings(dir.path()), noon()), Err(OpenError::InUse { .. })));
    drop(reader);
    open(dir.path());

    let nothing = directory();
    let refused = verify(nothing.path(), Arc::new(Count::default())).unwrap_err();
    assert!(refused.to_string().contains("no spool"), "{refused}");
    assert_eq!(fs::read_dir(nothing.path()).unwrap().count(), 0);
}

/// Every entry and its content.
async fn everything(path: &Path) -> Vec<(Entry, Vec<u8>)> {
    let (log, _) = open(path);
    let mut all = Vec::new();
    for entry in log.list(None, 10_000).await.unwrap() {
        let content = octets(&log.content(entry.message.id).await.unwrap());
        all.push((entry, content));
    }
    all
}

#[tokio::test]
async fn compact_keeps_every_message_as_it_is_and_gives_the_room_back() {
    let dir = directory();
    let (log, _) = open(dir.path());
    let big = put(&log, 0, &vec![b'y'; INLINE_MAX + 1]).await.unwrap();
    for n in 1..400 {
        put(&log, n, format!("message {n} {}", "x".repeat(900)).as_bytes()).await.unwrap();
    }
    let now = NOON.after(LEASE);
    let (mut kept, later) = (0, now.after(LEASE));
    for claim in log.claim(Room::ENTRY, now, 400, LEASE).await.unwrap() {
        let n = kept % 40;
        kept += 1;
        let settlement = match (n, claim.message.id == big) {
            (_, true) | (1, _) => Settlement::Deferred(later),
            (2, _) => Settlement::Dead,
            (3, _) => Settlement::Released(Room::ENTRY, NOON),
            _ => Settlement::Finished,
        };
        log.settle(&claim, settlement).await.unwrap();
    }
    log.act(big, Action::Hold, now).await.unwrap();
    drop(log);
    let before = everything(dir.path()).await;
    assert_eq!(before.len(), 31);

    let done = compact(settings(dir.path()), noon(), &Count::default()).unwrap();
    assert_eq!((done.messages, done.stuck), (31, None));
    assert!(done.after < done.before && done.after <= 4 * (16 << 10), "{done:?}");
    assert!(!segment_files(dir.path()).iter().any(|name| name.starts_with("spare")));
    assert!(segment_files(dir.path()).contains(&"reserve.seg".to_owned()));
    assert!(verdict(dir.path()).is_sound());
    assert_eq!(everything(dir.path()).await, before);

    let again = compact(settings(dir.path()), noon(), &Count::default()).unwrap();
    assert!(again.after <= done.after, "{again:?}");
    assert_eq!(everything(dir.path()).await, before);
}

#[tokio::test]
async fn compact_stops_at_what_it_cannot_read_and_loses_nothing() {
    let dir = directory();
    let (log, _) = open(dir.path());
    let first = put(&log, 0, &[b'z'; 3000]).await.unwrap();
    // Three segments: too few to be compacted by itself.
    for n in 1..12 {
        put(&log, n, &[b'x'; 3000]).await.unwrap();
    }
    let now = NOON.after(LEASE);
    for claim in log.claim(Room::ENTRY, now, 100, LEASE).await.unwrap() {
        if claim.message.id != first {
            log.settle(&claim, Settlement::Finished).await.unwrap();
        }
    }
    drop(log);
    // Damage that opening can't copy away keeps its segment.
    let oldest = dir.path().join("seg").join(&segment_files(dir.path())[0]);
    flip(&oldest, 64 + 3500);
    fs::write(dir.path().join("quarantine"), "in the way").unwrap();
    read_all(dir.path());
    let done = compact(settings(dir.path()), noon(), &Count::default()).unwrap();
    assert_eq!(done.stuck, Some(1), "{done:?}");
    assert!(oldest.exists());
    assert_eq!(everything(dir.path()).await.len(), 1);
}

/// A message with everything an envelope can have.
fn rich(id: QueueId, after: u64) -> crate::mail::Message {
    let mut message = message(id, after);
    message.envelope.body = BodyKind::EightBitMime;
    message.envelope.smtputf8 = true;
    message.envelope.ret = Some(Ret::Hdrs);
    message.envelope.envid = Some("QQ+2B314".into());
    message.envelope.recipients[0].notify = Some(Notify { delay: true, ..Notify::default() });
    message.envelope.recipients[0].orcpt = Some("rfc822;user+40x".into());
    message.message_id = "<a@b>".into();
    message.attempts = 3;
    message
}

fn export(path: &Path, to: &Path) -> usize {
    let reader = Reader::open(path, Arc::new(Count::default())).unwrap();
    archive::create(to).unwrap();
    let ids = reader.ids();
    for id in &ids {
        let (entry, body) = reader.read(*id).unwrap();
        let mut file = Outgoing::create(to, entry).unwrap();
        file.write_all(&body).unwrap();
        file.finish().unwrap();
    }
    archive::sync(to).unwrap();
    ids.len()
}

#[tokio::test]
async fn what_is_exported_is_imported_as_it_was_but_for_its_id() {
    let dir = directory();
    let (log, _) = open(dir.path());
    let large = vec![b'q'; 700_000];
    let contents: [&[u8]; 4] =
        [b"", b"no line end", b"\xff\x00\r\n.\r\nX-Envelope-To: <a@b>\r\n", &large];
    for (n, content) in contents.iter().enumerate() {
        let mut draft = log.draft().await.unwrap();
        draft.write(bytes::Bytes::from_static(b"A: b\r\n\r\n")).await.unwrap();
        draft.write(bytes::Bytes::copy_from_slice(content)).await.unwrap();
        let id = draft.id();
        draft.commit(rich(id, n as u64)).await.unwrap();
    }
    let now = NOON.after(LEASE);
    let mut claims = log.claim(Room::ENTRY, now, 3, LEASE).await.unwrap();
    log.settle(&claims.remove(0), Settlement::Deferred(now.after(LEASE))).await.unwrap();
    log.settle(&claims.remove(0), Settlement::Dead).await.unwrap();
    let held = claims.remove(0);
    log.settle(&held, Settlement::Released(Room::ENTRY, NOON)).await.unwrap();
    log.act(held.message.id, Action::Hold, now).await.unwrap();
    drop(log);
    let before = everything(dir.path()).await;
    let states: Vec<_> = before.iter().map(|(e, _)| e.state.word()).collect();
    assert_eq!(states, ["deferred", "dead", "held", "incoming"]);

    let to = tempfile::tempdir().unwrap();
    let to = to.path().join("new");
    assert_eq!(export(dir.path(), &to), 4);
    let eml = fs::read(to.join(format!("{}.eml", before[1].0.message.id))).unwrap();
    let head = format!(
        "X-Queue-Id: {}\r\nX-Envelope-From: <app@example.com>\r\n\
         X-Envelope-To: <user@example.net>\r\nA: b\r\n\r\nno line end",
        before[1].0.message.id
    );
    assert_eq!(String::from_utf8(eml).unwrap(), head);
    assert!(matches!(archive::create(&to), Err(ArchiveError::NotEmpty(_))));

    let other = directory();
    let (log, _) = open(other.path());
    for id in archive::names(&to).unwrap().waiting {
        let (entry, body) = archive::open(&to, id).unwrap();
        let new = restore(&log, &entry, &body, now).await.unwrap();
        let stored = log.show(new).await.unwrap().unwrap();
        assert_eq!(archive::fingerprint(&stored.message), archive::fingerprint(&entry.message));
        archive::mark(&to, id).unwrap();
    }
    drop(log);
    let names = archive::names(&to).unwrap();
    assert_eq!((names.waiting.len(), names.imported), (0, 4));
    let mut after = everything(other.path()).await;
    for ((entry, _), (old, _)) in after.iter_mut().zip(&before) {
        entry.message.id = old.message.id;
    }
    assert_eq!(after, before);
}

#[tokio::test]
async fn an_export_that_was_changed_is_not_imported() {
    let dir = directory();
    let (log, _) = open(dir.path());
    let id = put(&log, 0, b"A: b\r\n\r\nbody\r\n").await.unwrap();
    drop(log);
    let change = |kind: &str, f: &dyn Fn(String) -> String| {
        let to = tempfile::tempdir().unwrap();
        export(dir.path(), to.path());
        let path = to.path().join(format!("{id}.{kind}"));
        fs::write(&path, f(fs::read_to_string(&path).unwrap())).unwrap();
        archive::open(to.path(), id)
    };
    assert!(change("eml", &|text| text).is_ok());
    let changes: [(&str, &dyn Fn(String) -> String); 7] = [
        ("eml", &|text| text.replace("body", "b0dy")),
        ("eml", &|text| text + "\r\n"),
        ("eml", &|text| text.replace("user@example.net", "user@example.org")),
        ("eml", &|text| text[..20].into()),
        ("json", &|text| text.replace(&id.to_string(), "0000000000007")),
        ("json", &|text| text.replace("\"version\":1", "\"version\":2")),
        ("json", &|text| text[..20].into()),
    ];
    for (n, (kind, f)) in changes.into_iter().enumerate() {
        let opened = change(kind, f);
        assert!(matches!(opened, Err(ArchiveError::Broken { .. })), "{n}");
    }
}
