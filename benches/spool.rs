//! A spool with a million messages: how much memory, how long to open, how much disk while it
//! drains. Prints a Markdown table (`docs/benchmarks.md`).
//!
//! `POSTGATE_BENCH_MESSAGES` sets another number, `POSTGATE_BENCH_DIR` another place; it needs a
//! real disk with 3 kB for each message. Every phase is a process of its own, so that one's memory
//! is not counted as another's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    reason = "a measurement stops at the first thing that is not as it should be, and reads clocks"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use postgate::clock::{Clock, SystemClock};
use postgate::mail::{
    BodyKind, Client, Envelope, ForwardPath, Mailbox, Message, QueueId, ReversePath,
};
use postgate::spool::Room;
use postgate::spool::{SegmentLog, Settings, Settlement, Spool};

const BODY: usize = 2048;
const SESSIONS: u64 = 256;
const MIB: f64 = 1_048_576.0;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    let dir = std::env::var_os("POSTGATE_BENCH_DIR")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-spool"), PathBuf::from);
    match arguments.next().as_deref() {
        Some("fill") => run(fill(dir)),
        Some("open") => run(open_and_list(dir)),
        Some("drain") => run(drain(dir)),
        _ => all(&dir),
    }
}

fn all(dir: &Path) {
    if dir.exists() {
        fs::remove_dir_all(dir).unwrap();
    }
    fs::create_dir_all(dir).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
    println!("| {} messages of {BODY} octets | measured |\n|---|---|", messages());
    phase("fill", dir, "");
    phase("open", dir, "with a snapshot");
    fs::remove_dir_all(dir.join("snap")).unwrap();
    phase("open", dir, "without a snapshot");
    phase("drain", dir, "");
    fs::remove_dir_all(dir).unwrap();
}

fn phase(name: &str, dir: &Path, what: &str) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.arg(name).env("POSTGATE_BENCH_DIR", dir).env("POSTGATE_BENCH_WHAT", what);
    assert!(child.status().unwrap().success(), "{name}");
}

fn run(phase: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().unwrap().block_on(phase);
}

/// Stores the messages, from many sessions at once.
async fn fill(dir: PathBuf) {
    let log = open(&dir);
    let before = resident();
    let (begun, worst) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let body = Bytes::from(vec![b'x'; BODY]);
    let sessions: Vec<_> = (0..SESSIONS)
        .map(|session| {
            let (log, body, worst) = (Arc::clone(&log), body.clone(), Arc::clone(&worst));
            tokio::spawn(async move {
                let count = messages() / SESSIONS + u64::from(session < messages() % SESSIONS);
                for _ in 0..count {
                    let mut draft = log.draft().await.unwrap();
                    draft.write(body.clone()).await.unwrap();
                    let (message, asked) = (message(draft.id()), Instant::now());
                    draft.commit(message).await.unwrap();
                    let waited = u64::try_from(asked.elapsed().as_micros()).unwrap();
                    worst.fetch_max(waited, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for session in sessions {
        session.await.unwrap();
    }
    let took = begun.elapsed();
    assert_eq!(log.stats().messages(), messages());
    let each = (resident() - before) as f64 / messages() as f64;
    row("stored", &format!("{:.0} messages/s", messages() as f64 / took.as_secs_f64()));
    row("longest wait for a 250", &format!("{:.0} ms", worst.load(Ordering::Relaxed) as f64 / 1e3));
    row("memory per queued message, just received", &format!("{each:.0} octets"));
    row("disk", &format!("{:.0} MiB", disk(&dir)));
    let begun = Instant::now();
    log.close().await;
    row("close, with its snapshot", &seconds(begun));
}

/// Opens the spool as it is and lists it.
async fn open_and_list(dir: PathBuf) {
    let what = std::env::var("POSTGATE_BENCH_WHAT").unwrap_or_default();
    let (before, begun) = (resident(), Instant::now());
    let log = open(&dir);
    row(&format!("open {what}"), &seconds(begun));
    assert_eq!(log.stats().messages(), messages());
    let each = (resident() - before) as f64 / messages() as f64;
    row(&format!("memory per queued message, opened {what}"), &format!("{each:.0} octets"));
    let begun = Instant::now();
    let mut page = log.list(None, 500).await.unwrap();
    row(&format!("first page of the list, opened {what}"), &seconds(begun));
    let mut listed = 0;
    while let Some(last) = page.last() {
        listed += page.len() as u64;
        page = log.list(Some(last.message.id), 500).await.unwrap();
    }
    assert_eq!(listed, messages());
    row(&format!("whole list, opened {what}"), &seconds(begun));
    // Killed, not closed: the next phase finds what this one found.
    std::process::exit(0);
}

/// Delivers everything, and looks at the disk meanwhile.
async fn drain(dir: PathBuf) {
    let log = open(&dir);
    let each = disk(&dir) / messages() as f64;
    let (begun, mut worst, mut next) = (Instant::now(), 0.0_f64, messages());
    loop {
        let now = SystemClock.wall();
        let claims = log.claim(Room::ENTRY, now, 512, Duration::from_mins(5)).await.unwrap();
        if claims.is_empty() {
            break;
        }
        let settling: Vec<_> = claims
            .into_iter()
            .map(|claim| {
                let log = Arc::clone(&log);
                tokio::spawn(async move { log.settle(&claim, Settlement::Finished).await.unwrap() })
            })
            .collect();
        for settled in settling {
            settled.await.unwrap();
        }
        let left = log.stats().messages();
        // At the end a few segments are all there is.
        if left <= next && left > messages() / 5 {
            worst = worst.max(disk(&dir) / (left as f64 * each));
            next = left - messages() / 100;
        }
    }
    let took = begun.elapsed();
    row("delivered", &format!("{:.0} messages/s", messages() as f64 / took.as_secs_f64()));
    row("disk over live octets while it drains, at worst", &format!("{worst:.2}"));
    row("disk when it is drained", &format!("{:.0} MiB", disk(&dir)));
    log.close().await;
}

fn open(dir: &Path) -> Arc<SegmentLog> {
    let settings =
        Settings { max_messages: u64::MAX, min_free: 0, ..Settings::new(dir.to_owned()) };
    let (log, recovered) = SegmentLog::open(settings, Arc::new(SystemClock)).unwrap();
    assert!(recovered.damage.is_empty());
    Arc::new(log)
}

fn message(id: QueueId) -> Message {
    let mailbox = |s: &str| Mailbox::parse(s.as_bytes()).unwrap();
    let envelope = Envelope {
        reverse_path: ReversePath::Mailbox(mailbox("app@example.com")),
        recipients: vec![ForwardPath(mailbox("user@example.net")).into()],
        body: BodyKind::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
    };
    let client =
        Client { address: "10.0.0.5".parse().unwrap(), helo: "app".into(), listener: "mta".into() };
    Message::new(id, SystemClock.wall(), client, envelope)
}

fn messages() -> u64 {
    std::env::var("POSTGATE_BENCH_MESSAGES").map_or(1_000_000, |n| n.parse().unwrap())
}

/// Octets of this process in memory, as the system counts them.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// MiB of disk that the spool has.
fn disk(dir: &Path) -> f64 {
    let mut blocks = 0;
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            // It may be gone meanwhile.
            let Ok(found) = entry.metadata() else { continue };
            if found.is_dir() {
                waiting.push(entry.path());
            }
            blocks += found.blocks();
        }
    }
    blocks as f64 * 512.0 / MIB
}

fn seconds(begun: Instant) -> String {
    format!("{:.3} s", begun.elapsed().as_secs_f64())
}

fn row(what: &str, measured: &str) {
    println!("| {what} | {measured} |");
}
