//! The load: many sessions on one thread, each as fast as the other side lets it, or at a pace.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::client::{Client, Content, Way};

/// Messages are numbered through the whole run, so that the sink can tell them apart.
static NUMBER: AtomicU64 = AtomicU64::new(1);

/// A number nobody else has.
pub fn number() -> u64 {
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// What is sent to whom.
#[derive(Clone)]
pub struct Load {
    pub to: SocketAddr,
    /// Where the recipients are.
    pub domain: &'static str,
    pub sessions: usize,
    /// Octets of a message.
    pub size: usize,
    pub way: Way,
    /// It ends after this many messages, or this time, whichever is first.
    pub messages: u64,
    pub time: Duration,
    /// Each session sends at this pace, whatever the replies take (open loop); else when it can.
    pub pace: Option<Duration>,
}

/// What came of it.
#[derive(Default)]
pub struct Loaded {
    /// Messages that got their 250.
    pub acknowledged: u64,
    /// From the first connection to the last 250.
    pub took: Duration,
    /// From the last octet of each message to its 250, sorted. Not every generator knows.
    pub waits: Vec<Duration>,
}

impl Loaded {
    pub fn rate(&self) -> f64 {
        self.acknowledged as f64 / self.took.as_secs_f64()
    }

    /// Milliseconds that this part of the messages waited at most.
    pub fn wait(&self, part: f64) -> f64 {
        let rank = (part * self.waits.len() as f64).ceil() as usize;
        let wait = self.waits.get(rank.saturating_sub(1).min(self.waits.len().saturating_sub(1)));
        wait.map_or(f64::NAN, |wait| wait.as_secs_f64() * 1e3)
    }
}

/// Sends it from a thread of its own, to its end. One session that fails ends all.
pub fn run(load: &Load) -> Result<Loaded, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(send(load.clone()))
}

async fn send(load: Load) -> Result<Loaded, String> {
    let begun = Instant::now();
    let budget = Arc::new(Budget::new(load.messages, begun + load.time));
    let content = Arc::new(Content::new(load.size));
    let mut sessions = JoinSet::new();
    for _ in 0..load.sessions {
        sessions.spawn(session(load.clone(), Arc::clone(&budget), Arc::clone(&content)));
    }
    let mut loaded = Loaded::default();
    while let Some(ended) = sessions.join_next().await {
        let (waits, last) = ended.unwrap()?;
        loaded.acknowledged += waits.len() as u64;
        loaded.waits.extend(waits);
        loaded.took = loaded.took.max(last.duration_since(begun));
    }
    loaded.waits.sort_unstable();
    Ok(loaded)
}

async fn session(
    load: Load,
    budget: Arc<Budget>,
    content: Arc<Content>,
) -> Result<(Vec<Duration>, Instant), String> {
    let (mut waits, mut last) = (Vec::new(), Instant::now());
    let mut ticks = load.pace.map(interval);
    if let Some(ticks) = &mut ticks {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    }
    let mut client = Client::hello(load.to).await?;
    let mut next = budget.take();
    while let Some(number) = next {
        // A message that had to wait for the one before it has waited, too. That our clock ticks late
        // is not the relay's doing.
        let mut late = Duration::ZERO;
        if let Some(ticks) = &mut ticks {
            let due = ticks.tick().await.into_std();
            late = last.saturating_duration_since(due);
        }
        next = budget.take();
        let wait = client.send(load.way, load.domain, number, &content, next).await?;
        waits.push(wait + late);
        last = Instant::now();
    }
    client.quit().await;
    Ok((waits, last))
}

/// Which messages are still to be sent.
struct Budget {
    left: AtomicU64,
    end: Instant,
}

impl Budget {
    fn new(messages: u64, end: Instant) -> Self {
        Self { left: AtomicU64::new(messages), end }
    }

    fn take(&self) -> Option<u64> {
        if Instant::now() >= self.end {
            return None;
        }
        let less = |left: u64| left.checked_sub(1);
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        taken.ok().map(|_| number())
    }
}
