//! The sending side in virtual time: a spool in memory, upstreams that fail as told or by chance,
//! and a scheduler that is killed now and then. A failing seed is printed; run it alone with
//! `POSTGATE_SEED=n cargo test delivery::tests::whatever_happens`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Lane, Scheduler, Settings};
use crate::clock::{Clock, Timestamp};
use crate::mail::{
    Blame, Body, EnhancedStatus, Envelope, Failure, Handoff, Message, Outcome, QueueId, QueueState,
    RecipientOutcome, Remedy, Reply, Stage,
};
use crate::policy::{Backoff, Breaker, breaker};
use crate::spool::{MemorySpool, Spool};
use crate::upstream::{Leaving, Upstream};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const CAPACITY: usize = 4;

/// A clock that follows tokio's, which stands still until nobody has anything to do.
struct VirtualClock(tokio::time::Instant, Mutex<fastrand::Rng>);

impl Clock for VirtualClock {
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_millis(1_795_252_321_000).after(self.0.elapsed())
    }

    fn chance(&self) -> f64 {
        self.1.lock().unwrap().f64()
    }
}

/// What an upstream does with a message; the recipients it truly took are counted.
type Behaviour = Box<dyn Fn(&Envelope, &mut fastrand::Rng) -> Act + Send + Sync>;

struct Act {
    takes: Duration,
    recipients: Vec<RecipientOutcome>,
    /// Whether a recipient was taken although the outcome does not say so.
    taken_anyway: bool,
}

struct Scripted {
    behaviour: Mutex<Behaviour>,
    rng: Mutex<fastrand::Rng>,
    taken: Mutex<HashMap<String, usize>>,
    /// Recipients that may arrive twice: an answer was lost, or the process died in an attempt.
    ambiguous: Mutex<HashMap<String, usize>>,
    attempts: AtomicUsize,
    running: AtomicUsize,
    most: AtomicUsize,
}

/// Notices an attempt that was dropped in the middle.
struct Running<'a>(&'a Scripted, Vec<String>, bool);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        if !self.2 {
            self.0.may_come_twice(&self.1);
        }
    }
}

impl Scripted {
    fn may_come_twice(&self, recipients: &[String]) {
        count(&self.ambiguous, recipients);
    }
}

fn count(map: &Mutex<HashMap<String, usize>>, recipients: &[String]) {
    let mut map = map.lock().unwrap();
    for recipient in recipients {
        *map.entry(recipient.clone()).or_default() += 1;
    }
}

#[async_trait::async_trait]
impl Upstream for Scripted {
    fn name(&self) -> &'static str {
        "core"
    }

    async fn deliver(&self, envelope: &Envelope, _: &Body, _: &dyn Leaving, _: Instant) -> Outcome {
        let names: Vec<String> = envelope.recipients.iter().map(|r| r.path.to_string()).collect();
        self.attempts.fetch_add(1, Ordering::SeqCst);
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
        let mut guard = Running(self, names.clone(), false);
        let act = (self.behaviour.lock().unwrap())(envelope, &mut self.rng.lock().unwrap());
        tokio::time::sleep(act.takes / 2).await;
        for (name, outcome) in names.iter().zip(&act.recipients) {
            let sent = matches!(outcome, RecipientOutcome::Sent { .. });
            if sent || act.taken_anyway {
                count(&self.taken, std::slice::from_ref(name));
            }
            if act.taken_anyway {
                self.may_come_twice(std::slice::from_ref(name));
            }
        }
        // Dead between taking and telling: the classic duplicate.
        tokio::time::sleep(act.takes / 2).await;
        guard.2 = true;
        Outcome { recipients: act.recipients, ..Outcome::all(0, &sent()) }
    }
}

fn sent() -> RecipientOutcome {
    RecipientOutcome::Sent { reply: Reply::new(250, EnhancedStatus::new(2, 0, 0), "Ok") }
}

fn failure(blame: Blame, handoff: Handoff) -> Failure {
    let status = EnhancedStatus::new(4, 0, 0);
    let (stage, remedy) = (Stage::Rcpt, Remedy::Time);
    Failure { stage, blame, handoff, remedy, reply: None, status, detail: "test".into() }
}

fn down() -> RecipientOutcome {
    RecipientOutcome::Deferred(failure(Blame::Upstream, Handoff::NotSent))
}

fn bounced() -> RecipientOutcome {
    RecipientOutcome::Bounced(failure(Blame::Recipient, Handoff::NotSent))
}

fn lost() -> RecipientOutcome {
    RecipientOutcome::Unconfirmed(failure(Blame::Upstream, Handoff::Unknown))
}

/// The same for every recipient, at once.
fn always(outcome: RecipientOutcome) -> Behaviour {
    Box::new(move |envelope, _| Act {
        takes: Duration::ZERO,
        recipients: vec![outcome.clone(); envelope.recipients.len()],
        taken_anyway: false,
    })
}

struct World {
    spool: MemorySpool,
    clock: Arc<VirtualClock>,
    upstream: Arc<Scripted>,
    stop: CancellationToken,
}

impl World {
    fn new(seed: u64, behaviour: Behaviour) -> Self {
        let rng = |n| Mutex::new(fastrand::Rng::with_seed(seed ^ n));
        let clock = Arc::new(VirtualClock(tokio::time::Instant::now(), rng(1)));
        let upstream = Arc::new(Scripted {
            behaviour: Mutex::new(behaviour),
            rng: rng(2),
            taken: Mutex::default(),
            ambiguous: Mutex::default(),
            attempts: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        });
        let spool = MemorySpool::new(Arc::clone(&clock) as _);
        Self { spool, clock, upstream, stop: CancellationToken::new() }
    }

    fn start(&self) -> JoinHandle<()> {
        let breaker = Breaker::new(breaker::Settings::default());
        let upstream = Arc::clone(&self.upstream) as _;
        let lane = Lane::new("default".into(), upstream, CAPACITY, breaker);
        let backoff = Backoff::try_new(MINUTE, 2.0, MINUTE * 60, 0.2).unwrap();
        let settings = Settings { max_active: 100, backoff, max_age: MINUTE * 60 * 48 };
        let scheduler = Scheduler {
            spool: Arc::new(self.spool.clone()),
            lease: MINUTE * 120,
            clock: Arc::clone(&self.clock) as _,
            lane: Arc::new(ArcSwap::from_pointee(lane)),
            settings: Arc::new(ArcSwap::from_pointee(settings)),
            reloaded: Arc::default(),
        };
        tokio::spawn(scheduler.run(self.stop.clone(), SECOND * 10))
    }

    fn act(&self, behaviour: Behaviour) {
        *self.upstream.behaviour.lock().unwrap() = behaviour;
    }

    async fn submit(&self, recipients: &[String]) -> QueueId {
        let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
        let mut draft = self.spool.draft().await.unwrap();
        let id = draft.id();
        draft.write(Bytes::from_static(b"Subject: x\r\n\r\n")).await.unwrap();
        let message = Message::sample(id, self.clock.wall(), &recipients);
        draft.commit(message).await.unwrap();
        id
    }

    async fn submit_many(&self, n: usize) -> Vec<String> {
        let names: Vec<String> = (0..n).map(|i| format!("r{i}@example.com")).collect();
        for name in &names {
            self.submit(std::slice::from_ref(name)).await;
        }
        names
    }

    fn taken(&self, name: &str) -> usize {
        self.upstream.taken.lock().unwrap().get(name).copied().unwrap_or(0)
    }

    fn attempts(&self) -> usize {
        self.upstream.attempts.load(Ordering::SeqCst)
    }
}

#[tokio::test(start_paused = true)]
async fn everything_due_is_delivered_once_and_not_all_at_a_time() {
    let slow = |envelope: &Envelope, _: &mut fastrand::Rng| Act {
        takes: SECOND,
        recipients: vec![sent(); envelope.recipients.len()],
        taken_anyway: false,
    };
    let world = World::new(0, Box::new(slow));
    let names = world.submit_many(100).await;
    let running = world.start();
    tokio::time::sleep(SECOND * 30).await;
    assert!(names.iter().all(|n| world.taken(n) == 1));
    assert_eq!(world.spool.stats().messages(), 0);
    assert_eq!(world.upstream.most.load(Ordering::SeqCst), CAPACITY);
    world.stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_is_down_costs_few_attempts_and_no_message() {
    let world = World::new(0, always(down()));
    let names = world.submit_many(500).await;
    let _running = world.start();
    tokio::time::sleep(MINUTE * 60).await;
    // Five failures, those under way with them, and a probe at 30 s, 90 s, 3.5 min, ... 10 min each.
    assert!(world.attempts() < 30, "{} attempts", world.attempts());
    assert_eq!(world.spool.stats().dead, 0);
    world.act(always(sent()));
    tokio::time::sleep(MINUTE * 75).await;
    assert!(names.iter().all(|n| world.taken(n) == 1));
}

#[tokio::test(start_paused = true)]
async fn a_refused_recipient_is_a_dead_letter_and_the_others_get_their_mail_once() {
    let world = World::new(
        0,
        Box::new(|envelope, _| Act {
            takes: SECOND,
            recipients: envelope
                .recipients
                .iter()
                .map(|r| if r.path.to_string().starts_with('b') { bounced() } else { sent() })
                .collect(),
            taken_anyway: false,
        }),
    );
    let names = ["a@x", "b@x", "c@x"].map(String::from);
    let id = world.submit(&names).await;
    let _running = world.start();
    tokio::time::sleep(MINUTE * 60).await;
    assert_eq!(names.each_ref().map(|n| world.taken(n)), [1, 0, 1]);
    assert_eq!(world.spool.show(id).await.unwrap().unwrap().state, QueueState::Dead);
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_attempts_finish_and_starts_none() {
    let world = World::new(
        0,
        Box::new(|envelope, _| Act {
            takes: SECOND * 5,
            recipients: vec![sent(); envelope.recipients.len()],
            taken_anyway: false,
        }),
    );
    world.submit_many(50).await;
    let running = world.start();
    tokio::time::sleep(SECOND).await;
    world.stop.cancel();
    running.await.unwrap();
    assert_eq!(world.attempts(), CAPACITY);
    assert_eq!(world.spool.stats().messages(), 50 - CAPACITY as u64);
}

/// An upstream in bad health: it fails in every way there is, for a while or for one message.
fn sick(clock: Arc<VirtualClock>) -> Behaviour {
    Box::new(move |envelope, rng| {
        let out = (clock.wall().as_secs() / 300).is_multiple_of(3);
        let mut taken_anyway = false;
        let roll = rng.u8(..100);
        let recipients = if out && roll < 95 {
            vec![down(); envelope.recipients.len()]
        } else if roll < 10 {
            taken_anyway = rng.bool();
            vec![lost(); envelope.recipients.len()]
        } else {
            let mut one = |name: String| match rng.u8(..100) {
                // The same recipients are always refused.
                _ if name.starts_with("bad") => bounced(),
                0..20 => RecipientOutcome::Deferred(failure(Blame::Recipient, Handoff::NotSent)),
                _ => sent(),
            };
            envelope.recipients.iter().map(|r| one(r.path.to_string())).collect()
        };
        Act { takes: Duration::from_millis(rng.u64(..20_000)), recipients, taken_anyway }
    })
}

/// One history: mail comes in, the upstream is sick, the process dies a few times, the upstream
/// recovers. Then every recipient was served or is a dead letter, and twice only by ambiguity.
async fn history(seed: u64) {
    let world = World::new(seed, always(sent()));
    world.act(sick(Arc::clone(&world.clock)));
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut names = Vec::new();
    for crash in 0..rng.usize(1..4) {
        let running = world.start();
        for n in 0..rng.usize(1..20) {
            let recipients: Vec<String> = (0..rng.usize(1..4))
                .map(|r| {
                    let word = if rng.u8(..10) == 0 { "bad" } else { "good" };
                    format!("{word}-{crash}-{n}-{r}@example.com")
                })
                .collect();
            world.submit(&recipients).await;
            names.extend(recipients);
            tokio::time::sleep(Duration::from_millis(rng.u64(..60_000))).await;
        }
        running.abort();
        let _ = running.await;
    }
    let heal = |envelope: &Envelope, _: &mut fastrand::Rng| Act {
        takes: SECOND,
        recipients: envelope
            .recipients
            .iter()
            .map(|r| if r.path.to_string().starts_with("bad") { bounced() } else { sent() })
            .collect(),
        taken_anyway: false,
    };
    world.act(Box::new(heal));
    let running = world.start();
    tokio::time::sleep(MINUTE * 60 * 12).await;
    world.stop.cancel();
    running.await.unwrap();
    let stats = world.spool.stats();
    assert_eq!(stats.messages(), stats.dead, "seed {seed}: something still waits");
    for name in names {
        let ambiguous = world.upstream.ambiguous.lock().unwrap().get(&name).copied().unwrap_or(0);
        let taken = world.taken(&name);
        if name.starts_with("bad") {
            assert!(taken <= ambiguous, "seed {seed}: {name} was refused and taken {taken} times");
        } else {
            assert!(taken >= 1, "seed {seed}: {name} got nothing");
            assert!(taken <= 1 + ambiguous, "seed {seed}: {name} got {taken}, {ambiguous} excused");
        }
    }
    assert!(world.upstream.most.load(Ordering::SeqCst) <= CAPACITY, "seed {seed}");
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_no_mail_is_lost_or_doubled_without_excuse() {
    match std::env::var("POSTGATE_SEED") {
        Ok(seed) => history(seed.parse().expect("POSTGATE_SEED is a number")).await,
        Err(_) => {
            for seed in 0..300 {
                history(seed).await;
            }
        }
    }
}
