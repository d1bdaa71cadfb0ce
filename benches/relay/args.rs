//! What is measured, and how often.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use super::client::Way;
use super::peers::System;

/// Measures Postgate beside other relays, in turn, on this machine.
#[derive(Parser, Clone, Debug)]
#[command(name = "bench")]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Args {
    /// Only these subjects
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Subject>,
    /// Only these relays; those that are not installed are left out anyway
    #[arg(long, value_delimiter = ',')]
    pub systems: Vec<System>,
    /// Octets of a message
    #[arg(long, value_delimiter = ',', default_value = "1k,10k,100k,5m", value_parser = size)]
    pub sizes: Vec<usize>,
    /// Sessions at a time
    #[arg(long, value_delimiter = ',', default_value = "1,10,50,200")]
    pub sessions: Vec<usize>,
    /// How messages are handed over
    #[arg(long, value_delimiter = ',', default_value = "plain,pipelined,bdat")]
    pub ways: Vec<Way>,
    /// Repetitions; the median counts. With 0 nothing is measured, and what --keep has is shown
    #[arg(long, default_value_t = 3)]
    pub reps: usize,
    /// Seconds of load in a measurement
    #[arg(long, default_value_t = 4.0)]
    pub seconds: f64,
    /// Messages at most in a measurement
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    pub messages: u64,
    /// Seconds that anything may take before it is given up
    #[arg(long, default_value_t = 300)]
    pub limit: u64,
    /// Messages of a backlog
    #[arg(long, default_value_t = 100_000)]
    pub backlog: u64,
    /// Messages that are queued while new mail comes
    #[arg(long, default_value_t = 1_000_000)]
    pub queued: u64,
    /// Sessions that drip, and as many that do not read
    #[arg(long, default_value_t = 100)]
    pub slow: usize,
    /// Idle sessions
    #[arg(long, default_value_t = 10_000)]
    pub idle: usize,
    /// Uploads at a time, and octets of each
    #[arg(long, default_value_t = 200)]
    pub uploads: usize,
    #[arg(long, default_value = "25m", value_parser = size)]
    pub upload_size: usize,
    /// Where queues are: a disk with room, that the accounts of the relays may reach
    #[arg(long, env = "POSTGATE_BENCH_DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    pub dir: PathBuf,
    /// Append every figure to this file at once, and show all that is in it, of earlier runs too
    #[arg(long)]
    pub keep: Option<PathBuf>,
    /// Start Postgate with a spool that is new, not one that mail has gone through
    #[arg(long)]
    pub new_spool: bool,
    /// The aged spool, once there is one.
    #[arg(skip)]
    pub aged: Option<PathBuf>,
    /// Put the result into docs/benchmarks.md
    #[arg(long)]
    pub write: bool,
    /// A little of everything, of Postgate unless --systems: does the benchmark itself work?
    #[arg(long)]
    pub quick: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// A part of the benchmark.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Subject {
    /// How fast mail is stored while nothing is forwarded.
    Ingest,
    /// What a long queue costs new mail.
    Queued,
    /// From the first message in to the last at the smarthost.
    Through,
    /// The wait for the 250 under little load.
    Latency,
    /// The smarthost was away for a while.
    Backlog,
    /// Idle sessions, and large mail from many at once.
    Memory,
    /// What one route or client costs another.
    Fairness,
}

impl Args {
    /// With `quick`, so little that it takes seconds, even of a slow build.
    pub fn settled(mut self) -> Self {
        if self.quick {
            if self.systems.is_empty() {
                self.systems = vec![System::Postgate];
            }
            (self.sizes, self.sessions) = (vec![1024], vec![4]);
            (self.reps, self.new_spool) = (self.reps.min(1), true);
            (self.seconds, self.messages, self.limit) = (0.4, 100, 30);
            (self.backlog, self.queued, self.slow) = (100, 200, 10);
            (self.idle, self.uploads, self.upload_size) = (20, 2, 1 << 20);
        }
        self
    }

    pub fn wants(&self, subject: Subject) -> bool {
        self.only.is_empty() || self.only.contains(&subject)
    }

    /// The relays to measure.
    pub fn systems(&self) -> Vec<System> {
        let wanted = |s: &System| self.systems.is_empty() || self.systems.contains(s);
        System::ALL.into_iter().filter(|s| wanted(s) && s.version().is_some()).collect()
    }

    pub fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    pub fn limit(&self) -> Duration {
        Duration::from_secs(self.limit)
    }
}

/// `10k` and `5m` are KiB and MiB.
fn size(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.to_ascii_lowercase().strip_suffix(['k', 'm']) {
        Some(digits) if text.ends_with(['k', 'K']) => (digits.to_owned(), 1 << 10),
        Some(digits) => (digits.to_owned(), 1 << 20),
        None => (text.to_owned(), 1),
    };
    digits.parse::<usize>().map(|n| n * unit).map_err(|e| format!("{text}: {e}"))
}
