//! Disks that change what they hold: the spool opens, sets aside what is damaged, delivers the rest,
//! and never delivers what was not sent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first thing that is not as it should be"
)]

#[path = "support/machine.rs"]
mod machine;
#[path = "support/spool.rs"]
mod spool;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use machine::{Image, Machine};
use postgate::mail::QueueId;
use postgate::spool::Recovered;
use spool::{Life, open, whole};

/// More than any record of these lives has.
const RECORD: usize = 4096;

/// A spool that was in use, as it is on the disk, and what is in it.
struct Used {
    image: Image,
    ids: BTreeSet<QueueId>,
}

/// What was done to it: from where to where in which file.
struct Spoiled {
    path: PathBuf,
    from: usize,
    to: usize,
}

impl Used {
    /// Some life; with snapshots or without.
    async fn new(seed: u64, snapshots: bool) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut life = Life::begin(Machine::new(seed));
        while life.len() < 60 {
            let what = random.u8(..);
            // Nothing large: its file is not part of the log.
            if !(60..62).contains(&what) {
                life.step(what, random.u8(..180)).await;
            }
        }
        life.restart().await;
        let image = life.machine.image().cut(1);
        let ids = life.ledger.lock().unwrap().ids();
        Self { image: if snapshots { image } else { image.without("snap") }, ids }
    }

    fn segments(&self) -> Vec<(PathBuf, usize)> {
        let is_segment = |path: &Path| {
            path.file_name().is_some_and(|n| n.to_str().is_some_and(|n| n.starts_with("000")))
                && path.starts_with("seg")
        };
        let files = self.image.files().filter(|(path, _)| is_segment(path));
        files.map(|(path, octets)| (path, octets.len())).collect()
    }

    /// The messages of which something lies in what was spoiled, or near it.
    fn hit(&self, spoiled: &Spoiled) -> BTreeSet<QueueId> {
        let (_, octets) = self.image.files().find(|(path, _)| *path == spoiled.path).unwrap();
        let to = (spoiled.to + RECORD).min(octets.len());
        let text = String::from_utf8_lossy(&octets[spoiled.from.saturating_sub(RECORD)..to]);
        self.ids.iter().filter(|id| text.contains(&id.to_string())).copied().collect()
    }

    /// Opens what is left; everything must be there but what was hit.
    async fn survives(&self, image: Image, spoiled: &[Spoiled], context: &str) -> Recovered {
        let machine = Machine::with(image, 1);
        let (log, recovered) = open(&machine);
        let found = match whole(&log).await {
            Ok(found) => found,
            Err(wrong) => panic!("{wrong}; {context}"),
        };
        let hit: BTreeSet<_> = spoiled.iter().flat_map(|s| self.hit(s)).collect();
        let lost: BTreeSet<_> = self.ids.difference(&found).copied().collect();
        assert!(lost.is_subset(&hit), "{lost:?} are lost, {hit:?} were hit; {context}");
        recovered
    }
}

#[test]
fn flipped_bits_and_zeroed_pages_cost_at_most_what_they_hit() {
    runtime().block_on(async {
        for seed in 0..120 {
            let mut random = fastrand::Rng::with_seed(seed);
            let used = Used::new(seed % 8, random.bool()).await;
            let (path, len) = random.choice(used.segments()).unwrap();
            let (from, to) = if random.bool() {
                let at = random.usize(..len);
                (at, at + 1)
            } else {
                let page = random.usize(..len / 4096) * 4096;
                (page, page + 4096)
            };
            let mut image = used.image.clone();
            let bit = 1 << random.u8(..8);
            image.spoil(&path, |octets| match to - from {
                1 => octets[from] ^= bit,
                _ => octets[from..to].fill(0),
            });
            let context = format!("seed {seed}: {} {from}..{to}", path.display());
            used.survives(image, &[Spoiled { path, from, to }], &context).await;
        }
    });
}

#[test]
fn a_truncated_segment_costs_what_was_cut_off_and_a_missing_one_what_was_in_it() {
    runtime().block_on(async {
        for seed in 0..60 {
            let mut random = fastrand::Rng::with_seed(seed);
            let used = Used::new(seed % 8, random.bool()).await;
            let segments = used.segments();
            let (path, len) = random.choice(segments.clone()).unwrap();
            let mut image = used.image.clone();
            let from = if random.bool() { 0 } else { random.usize(..len) };
            match from {
                0 => image.lose(&path),
                _ => image.spoil(&path, |octets| octets.truncate(from)),
            }
            let context = format!("seed {seed}: {} {from}..{len}", path.display());
            let within = path != segments[0].0 && path != segments.last().unwrap().0;
            let spoiled = [Spoiled { path, from, to: len }];
            let recovered = used.survives(image, &spoiled, &context).await;
            assert!(from > 0 || !within || !recovered.damage.is_empty(), "not told; {context}");
        }
    });
}

#[test]
fn damage_of_any_kind_in_many_places_never_keeps_the_spool_from_opening() {
    runtime().block_on(async {
        for seed in 0..60 {
            let mut random = fastrand::Rng::with_seed(seed);
            let used = Used::new(seed % 8, true).await;
            let files: Vec<_> = used.image.files().map(|(p, o)| (p, o.len())).collect();
            let mut image = used.image.clone();
            for _ in 0..random.u8(1..20) {
                let (path, len) = random.choice(files.clone()).unwrap();
                // Without FORMAT nothing is opened, and docs/spool.md says how to restore it.
                if path == Path::new("FORMAT") || len == 0 {
                    continue;
                }
                let (at, n) = (random.usize(..len), random.usize(1..5000));
                let octets: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(n).collect();
                image.spoil(&path, |o| {
                    let to = (at + n).min(o.len());
                    o[at..to].copy_from_slice(&octets[..to - at]);
                });
            }
            let machine = Machine::with(image, seed);
            let (log, recovered) = open(&machine);
            let found = whole(&log).await.unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
            let lost = used.ids.difference(&found).count();
            assert!(lost == 0 || noticed(&recovered, &log), "seed {seed}: {recovered:?}");
        }
    });
}

#[test]
fn foreign_files_are_neither_read_nor_touched() {
    runtime().block_on(async {
        let used = Used::new(3, true).await;
        let machine = Machine::with(used.image.clone(), 1);
        let names = ["seg/0000000001.seg.bak", "seg/notes", "snap/1.snap", "snap/x", "README"];
        for name in names {
            machine.put(Path::new(name), b"mine");
        }
        let (log, recovered) = open(&machine);
        assert_eq!(whole(&log).await.unwrap(), used.ids);
        assert!(recovered.damage.is_empty());
        drop(log);
        let image = machine.image();
        for name in names {
            let found = image.files().find(|(path, _)| path == Path::new(name)).unwrap();
            assert_eq!(found.1, b"mine", "{name}");
        }
    });
}

/// Whether someone is told: at the start, or now that every message was looked at.
fn noticed(recovered: &Recovered, log: &postgate::spool::SegmentLog) -> bool {
    use postgate::spool::Spool;
    !recovered.damage.is_empty() || recovered.torn_tail || log.stats().messages() > 0
}

fn runtime() -> Arc<tokio::runtime::Runtime> {
    Arc::new(tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap())
}
