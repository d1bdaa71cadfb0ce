//! What a relay costs: processor, disk and memory of its process and all that come from it, as the
//! system counts them.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Of a second, in `stat`: USER_HZ is this wherever Linux runs.
const TICKS: f64 = 100.0;

/// What was used since the start. A process that has ended is in its parent's figures.
#[derive(Clone, Copy, Default, Debug)]
pub struct Usage {
    /// User and system, seconds.
    pub cpu: f64,
    /// Octets of the page cache that were to be sent to the disk: whole pieces of it, which may be
    /// larger than what was changed.
    pub written: f64,
}

impl Usage {
    pub fn of(root: u32) -> Self {
        let mut usage = Self::default();
        for (pid, fields) in tree(root) {
            // utime, stime and those of children that were waited for: 14 to 17 of proc(5).
            usage.cpu += (11..15).filter_map(|i| fields.get(i)).sum::<f64>() / TICKS;
            let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
            usage.written += field(&io, "write_bytes:");
        }
        usage
    }

    pub fn since(self, before: Self) -> Self {
        Self { cpu: self.cpu - before.cpu, written: self.written - before.written }
    }
}

/// Octets that the disk of this folder has written, for whomever, if it is one.
pub fn written_by_disk(folder: &Path) -> Option<f64> {
    let device = fs::metadata(folder).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    // The seventh field, in sectors of 512 octets whatever the disk has.
    Some(stat.split_whitespace().nth(6)?.parse::<f64>().ok()? * 512.0)
}

/// MiB in memory now; what processes share is divided among them (PSS).
pub fn memory(root: u32) -> f64 {
    let of = |pid: &u32| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        field(&rollup, "Pss:") / 1024.0
    };
    tree(root).keys().map(of).sum()
}

/// Looks at the memory once in a while; looking more often would itself be a load.
pub struct Watch {
    over: Arc<AtomicBool>,
    thread: JoinHandle<f64>,
}

impl Watch {
    pub fn start(root: u32) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut peak = 0.0_f64;
            while !ended.load(Ordering::Relaxed) {
                peak = peak.max(memory(root));
                let looked = Instant::now();
                while looked.elapsed() < Duration::from_secs(1) && !ended.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            peak.max(memory(root))
        });
        Self { over, thread }
    }

    /// The most that was seen, MiB.
    pub fn peak(self) -> f64 {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// The processes of this one, each with the numbers of its `stat` from the third field on.
fn tree(root: u32) -> HashMap<u32, Vec<f64>> {
    let mut all: HashMap<u32, Vec<f64>> = HashMap::new();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The second field is a name in parentheses that may hold anything.
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let numbers = rest.split_whitespace().map(|n| n.parse().unwrap_or(0.0)).collect();
        all.insert(pid, numbers);
    }
    let parents: HashMap<u32, u32> =
        all.iter().filter_map(|(pid, f)| Some((*pid, *f.get(1)? as u32))).collect();
    let belongs = |pid: &u32| {
        std::iter::successors(Some(*pid), |pid| parents.get(pid).copied()).any(|p| p == root)
    };
    all.retain(|pid, _| belongs(pid));
    all
}

/// The number after a name at the start of a line.
fn field(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}
