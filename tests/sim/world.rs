//! The parts around the upstreams: clock, spool, plan, and the process that lives and dies.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use postgate::clock::{Clock, Timestamp};
use postgate::delivery::{LEASE, Lane, Limits, Plan, Scheduler, Settings};
use postgate::mail::{
    Body, BodyKind, Client, Envelope, ForwardPath, Mailbox, Message, QueueId, QueueState,
    ReversePath,
};
use postgate::policy::networks::Networks;
use postgate::policy::routing::{Class, Match, Pattern, Priority, Route, Unconfirmed};
use postgate::policy::{Backoff, breaker};
use postgate::spool::{
    Action, Claim, Draft, Entry, MemorySpool, Room, Settlement, Spool, SpoolError, Stats,
};
use postgate::upstream::Upstream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::upstreams::{Simulated, Weather};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_mins(1);
pub(crate) const HOUR: Duration = Duration::from_hours(1);

/// The domain whose route is dead.
pub(crate) const DEAD: &str = "dead.example.com";

/// Attempts at once, for each upstream.
pub(crate) const CAPACITY: usize = 4;

/// A clock that follows tokio's, which stands still until nobody has anything to do.
pub(crate) struct VirtualClock(tokio::time::Instant, Mutex<fastrand::Rng>);

impl VirtualClock {
    pub(crate) fn new(seed: u64) -> Self {
        let rng = Mutex::new(fastrand::Rng::with_seed(seed));
        Self(tokio::time::Instant::now(), rng)
    }
}

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

/// What was chosen for one history.
pub(crate) struct Choices {
    pub(crate) unconfirmed: Unconfirmed,
    /// The fallback's limit, recipients a second.
    pub(crate) rate: Option<f64>,
    pub(crate) max_active: usize,
    /// How long a message may wait: longer than any history is foul, or not.
    pub(crate) max_age: Duration,
    /// Whether some clients' mail goes first, and others' last.
    pub(crate) priorities: bool,
}

/// What the operator said of mail that may have arrived; true or not.
#[derive(Default)]
pub(crate) struct Said {
    pub(crate) arrived: HashSet<String>,
    /// Not arrived: how often.
    pub(crate) resent: HashMap<String, usize>,
}

pub(crate) struct World {
    pub(crate) spool: Mutex<MemorySpool>,
    pub(crate) clock: Arc<VirtualClock>,
    pub(crate) core: Arc<Simulated>,
    pub(crate) ses: Arc<Simulated>,
    /// Nobody answers there as long as the history lasts.
    pub(crate) dead: Arc<Simulated>,
    pub(crate) choices: Choices,
    pub(crate) said: Mutex<Said>,
    seed: u64,
}

/// A process: it can be stopped in order, or killed.
pub(crate) struct Process {
    plan: Arc<ArcSwap<Plan>>,
    wake: Arc<Notify>,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl World {
    pub(crate) fn new(seed: u64, choices: Choices) -> Self {
        let clock = Arc::new(VirtualClock::new(seed ^ 1));
        let spool = Mutex::new(MemorySpool::new(Arc::clone(&clock) as _));
        let core = Simulated::new("core", usize::MAX, None, seed ^ 2);
        let ses = Simulated::new("ses", 3, choices.rate, seed ^ 3);
        let dead = Simulated::new("dead", usize::MAX, None, seed ^ 5);
        dead.becomes(Weather::Down);
        Self { spool, clock, core, ses, dead, choices, said: Mutex::default(), seed }
    }

    pub(crate) fn spool(&self) -> MemorySpool {
        self.spool.lock().unwrap().clone()
    }

    /// A plan with lanes in good health.
    fn plan(&self) -> Plan {
        let backoff = Backoff::try_new(MINUTE, 2.0, HOUR, 0.2).unwrap();
        let max_active = self.choices.max_active;
        let settings = Settings { max_active, backoff, max_age: self.choices.max_age };
        let lane = |upstream: &Arc<Simulated>| {
            let breaker = breaker::Settings::default();
            let limits = Limits { capacity: CAPACITY, rate: None, breaker, rules: None };
            let upstream = Arc::clone(upstream) as Arc<dyn Upstream>;
            Arc::new(Lane::new(upstream, limits, Box::new(|| {}), self.clock.wall()))
        };
        let class = |priority, network: &str| {
            let clients = Networks::parse(&[network]).unwrap();
            Class { priority, clients, header: None }
        };
        let urgent = class(Priority::High, "10.0.0.0/28");
        let classes = vec![urgent, class(Priority::Low, "10.0.0.240/28")];
        let route = |name: &str, recipient, upstreams: &[&str]| Route {
            name: name.into(),
            when: Match { recipient, ..Match::default() },
            upstreams: upstreams.iter().map(ToString::to_string).collect(),
            unconfirmed: self.choices.unconfirmed,
            classes: if self.choices.priorities { classes.clone() } else { Vec::new() },
        };
        let dead = vec![Pattern::Domain(DEAD.into())];
        let routes =
            vec![route("dead", dead, &["dead"]), route("default", vec![], &["core", "ses"])];
        let lanes = vec![lane(&self.core), lane(&self.ses), lane(&self.dead)];
        Plan::new(settings, routes, lanes).unwrap()
    }

    /// Starts a process on what the last one left.
    pub(crate) fn start(&self) -> Process {
        for upstream in [&self.core, &self.ses, &self.dead] {
            upstream.meets_a_new_process();
        }
        let plan = Arc::new(ArcSwap::from_pointee(self.plan()));
        let (wake, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let rng = Mutex::new(fastrand::Rng::with_seed(self.seed ^ 4));
        let spool = Arc::new(Slow { spool: self.spool(), rng });
        let clock = Arc::clone(&self.clock) as _;
        let scheduler = Scheduler::new(spool, LEASE, clock, Arc::clone(&plan), Arc::clone(&wake));
        let running = tokio::spawn(scheduler.run(stop.clone(), HOUR));
        Process { plan, wake, stop, running }
    }

    /// The process is gone in the middle of whatever it did; only what was durable is left.
    pub(crate) async fn kill(&self, process: Process) {
        process.running.abort();
        let _ = process.running.await;
        let active: Vec<QueueId> = self
            .queue()
            .await
            .into_iter()
            .filter_map(|entry| (entry.state == QueueState::Active).then_some(entry.message.id))
            .collect();
        let reopened = self.spool().reopened();
        *self.spool.lock().unwrap() = reopened;
        for entry in self.queue().await.iter().filter(|e| active.contains(&e.message.id)) {
            for (recipient, status) in entry.message.recipients() {
                let name = [recipient.path.to_string()];
                match status.unconfirmed() {
                    Some("core") => self.core.excuse(&name),
                    Some("dead") => self.dead.excuse(&name),
                    Some(_) => self.ses.excuse(&name),
                    None => {}
                }
            }
        }
    }

    /// The process finishes what it has begun.
    pub(crate) async fn stop(&self, process: Process) {
        process.stop.cancel();
        process.running.await.unwrap();
    }

    /// Reads the configuration again: the lanes are others, their health is what it was.
    pub(crate) fn reload(&self, process: &Process) {
        let before = process.plan.load_full();
        let mut plan = self.plan();
        plan.take_over(&before);
        process.plan.store(Arc::new(plan));
        process.wake.notify_one();
    }

    pub(crate) fn lane(process: &Process, upstream: &str) -> Arc<Lane> {
        Arc::clone(process.plan.load().lane(upstream).unwrap())
    }

    pub(crate) fn nudge(process: &Process) {
        process.wake.notify_one();
    }

    /// A message for these recipients, whose names are used once only.
    pub(crate) async fn submit(&self, client: u8, recipients: &[String]) -> QueueId {
        let address = [10, 0, 0, client].into();
        submit(&self.spool(), self.clock.wall(), address, recipients, |_| {}).await
    }

    /// All that is in the queue.
    pub(crate) async fn queue(&self) -> Vec<Entry> {
        self.spool().list(None, usize::MAX).await.unwrap()
    }

    /// What an operator says; it may come too late or not fit. Returns whether it did.
    pub(crate) async fn act(&self, id: QueueId, action: Action) -> bool {
        self.spool().act(id, action, self.clock.wall()).await.is_ok()
    }

    /// What an operator says of what is unconfirmed.
    pub(crate) async fn say(&self, entry: &Entry, action: Action) -> bool {
        let unconfirmed = entry.message.recipients().filter(|(_, s)| s.unconfirmed().is_some());
        let names: Vec<_> = unconfirmed.map(|(r, _)| r.path.to_string()).collect();
        if !self.act(entry.message.id, action).await {
            return false;
        }
        let mut said = self.said.lock().unwrap();
        for name in names {
            if action == Action::Confirm {
                said.arrived.insert(name);
            } else {
                *said.resent.entry(name).or_default() += 1;
            }
        }
        true
    }
}

/// A spool that takes its time before and after everything, so that the process can die in between.
struct Slow {
    spool: MemorySpool,
    rng: Mutex<fastrand::Rng>,
}

impl Slow {
    async fn pass(&self) {
        let pause = self.rng.lock().unwrap().u64(..40);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

#[async_trait]
impl Spool for Slow {
    async fn draft(&self) -> Result<Box<dyn Draft>, SpoolError> {
        self.spool.draft().await
    }

    async fn claim(
        &self,
        room: Room,
        now: Timestamp,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<Claim>, SpoolError> {
        self.spool.claim(room, now, limit, lease).await
    }

    async fn body(&self, claim: &Claim) -> Result<Body, SpoolError> {
        self.pass().await;
        self.spool.body(claim).await
    }

    async fn content(&self, id: QueueId) -> Result<Body, SpoolError> {
        self.spool.content(id).await
    }

    async fn settle(&self, claim: &Claim, settlement: Settlement) -> Result<(), SpoolError> {
        if !matches!(settlement, Settlement::Released(..)) {
            self.pass().await;
        }
        self.spool.settle(claim, settlement).await
    }

    async fn note(&self, claim: &Claim) -> Result<(), SpoolError> {
        self.pass().await;
        self.spool.note(claim).await?;
        self.pass().await;
        Ok(())
    }

    fn next_due(&self, room: Room) -> Option<Timestamp> {
        self.spool.next_due(room)
    }

    fn regroup(&self) {
        self.spool.regroup();
    }

    async fn wait(&self) {
        self.spool.wait().await;
    }

    fn stats(&self) -> Stats {
        self.spool.stats()
    }

    fn refusal(&self) -> Option<SpoolError> {
        self.spool.refusal()
    }

    async fn list(&self, after: Option<QueueId>, limit: usize) -> Result<Vec<Entry>, SpoolError> {
        self.spool.list(after, limit).await
    }

    async fn show(&self, id: QueueId) -> Result<Option<Entry>, SpoolError> {
        self.spool.show(id).await
    }

    async fn act(&self, id: QueueId, action: Action, now: Timestamp) -> Result<(), SpoolError> {
        self.spool.act(id, action, now).await
    }

    async fn close(&self) {
        self.spool.close().await;
    }
}

/// Puts a message of an application into the spool, its metadata completed by `also`.
pub(crate) async fn submit(
    spool: &dyn Spool,
    now: Timestamp,
    address: IpAddr,
    recipients: &[impl AsRef<str>],
    also: impl FnOnce(&mut Message),
) -> QueueId {
    let mailbox = |text: &str| Mailbox::parse(text.as_bytes()).unwrap();
    let mut draft = spool.draft().await.unwrap();
    let id = draft.id();
    draft.write(Bytes::from_static(b"Subject: x\r\n\r\n")).await.unwrap();
    let envelope = Envelope {
        reverse_path: ReversePath::Mailbox(mailbox("app@example.com")),
        recipients: recipients.iter().map(|r| ForwardPath(mailbox(r.as_ref())).into()).collect(),
        body: BodyKind::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
    };
    let client = Client { address, helo: "app-7".into(), listener: "backends".into() };
    let mut message = Message::new(id, now, client, envelope);
    also(&mut message);
    draft.commit(message).await.unwrap();
    id
}
