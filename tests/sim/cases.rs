//! Single cases of who waits for what, with upstreams that do as they are told, in virtual time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use postgate::clock::Clock;
use postgate::delivery::lane::Intervention;
use postgate::delivery::{LEASE, Lane, Limits, Plan, Scheduler, Settings};
use postgate::mail::{
    Blame, Body, EnhancedStatus, Envelope, Failure, Handoff, Message, Outcome, QueueId, QueueState,
    RecipientOutcome, Remedy, Reply, Stage,
};
use postgate::policy::bucket::{Rate, Unit};
use postgate::policy::eligibility::Rules;
use postgate::policy::networks::Networks;
use postgate::policy::routing::{Class, Match, Pattern, Priority, Route, Unconfirmed};
use postgate::policy::{Backoff, breaker};
use postgate::spool::{Action, Entry, MemorySpool, Spool};
use postgate::upstream::{Leaving, Standing, Upstream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::world::{HOUR, MINUTE, SECOND, VirtualClock, submit};

/// An upstream that takes its time, and does with each recipient as its name says.
struct Told {
    name: &'static str,
    takes: Duration,
    standing: Mutex<Standing>,
    /// When it was asked for whom.
    asked: Mutex<Vec<(Duration, String)>>,
    running: Arc<Mutex<(usize, usize)>>,
    begun: tokio::time::Instant,
}

impl Told {
    fn outcome(&self, recipient: &str) -> RecipientOutcome {
        let failed = |blame| {
            RecipientOutcome::Deferred(Failure {
                stage: Stage::Rcpt,
                blame,
                handoff: Handoff::NotSent,
                remedy: Remedy::Time,
                reply: None,
                status: EnhancedStatus::new(4, 0, 0),
                detail: "as told".into(),
            })
        };
        let before = self.asked.lock().unwrap().iter().filter(|(_, r)| r == recipient).count();
        match recipient.split('-').next() {
            Some("greylisted") if before <= 1 => failed(Blame::Recipient),
            Some("full") => failed(Blame::Recipient),
            Some("choke") => failed(Blame::Upstream),
            _ => RecipientOutcome::Sent {
                reply: Reply::new(250, EnhancedStatus::new(2, 0, 0), "Ok"),
            },
        }
    }
}

#[async_trait]
impl Upstream for Told {
    fn name(&self) -> &str {
        self.name
    }

    fn standing(&self) -> Standing {
        self.standing.lock().unwrap().clone()
    }

    async fn deliver(&self, envelope: &Envelope, _: &Body, _: &dyn Leaving, _: Instant) -> Outcome {
        {
            let mut running = self.running.lock().unwrap();
            running.0 += 1;
            running.1 = running.1.max(running.0);
        }
        let names: Vec<_> = envelope.recipients.iter().map(|r| r.path.to_string()).collect();
        let at = self.begun.elapsed();
        self.asked.lock().unwrap().extend(names.iter().map(|name| (at, name.clone())));
        tokio::time::sleep(self.takes).await;
        self.running.lock().unwrap().0 -= 1;
        let recipients: Vec<_> = names.iter().map(|name| self.outcome(name)).collect();
        Outcome { recipients, ..Outcome::all(0, &self.outcome("x")) }
    }
}

/// A process with two upstreams, `core` and `ses`, each for its own time.
struct Bench {
    spool: MemorySpool,
    clock: Arc<VirtualClock>,
    plan: Arc<ArcSwap<Plan>>,
    wake: Arc<Notify>,
    upstreams: HashMap<&'static str, Arc<Told>>,
    running: Arc<Mutex<(usize, usize)>>,
    stop: CancellationToken,
}

/// How a bench differs from the usual one.
struct Setup {
    routes: Vec<Route>,
    capacity: usize,
    max_active: usize,
    max_age: Duration,
    takes: Duration,
    rate: Option<Rate>,
}

impl Setup {
    fn of(routes: Vec<Route>) -> Self {
        let (capacity, max_active, rate) = (4, 100, None);
        Self { routes, capacity, max_active, max_age: HOUR * 48, takes: SECOND, rate }
    }
}

fn route(name: &str, domain: Option<&str>, upstreams: &[&str]) -> Route {
    let recipient = domain.map(|domain| Pattern::Domain(domain.into())).into_iter().collect();
    Route {
        name: name.into(),
        when: Match { recipient, ..Match::default() },
        upstreams: upstreams.iter().map(ToString::to_string).collect(),
        unconfirmed: Unconfirmed::Retry,
        classes: Vec::new(),
    }
}

/// `core`, then `ses`.
fn failover() -> Vec<Route> {
    vec![route("default", None, &["core", "ses"])]
}

/// Mail for `x` only by `core`, all other by `ses`.
fn apart() -> Vec<Route> {
    vec![route("x", Some("x"), &["core"]), route("default", None, &["ses"])]
}

impl Bench {
    /// Builds it; nothing is delivered before [`start`](Self::start).
    fn new(setup: Setup) -> Self {
        let clock = Arc::new(VirtualClock::new(1));
        let running = Arc::new(Mutex::new((0, 0)));
        let told = |name| {
            Arc::new(Told {
                name,
                takes: setup.takes,
                standing: Mutex::default(),
                asked: Mutex::default(),
                running: Arc::clone(&running),
                begun: tokio::time::Instant::now(),
            })
        };
        let (core, ses) = (told("core"), told("ses"));
        let lane = |upstream: &Arc<Told>, rules| {
            let breaker = breaker::Settings::default();
            let limits = Limits { capacity: setup.capacity, rate: setup.rate, breaker, rules };
            let upstream = Arc::clone(upstream) as Arc<dyn Upstream>;
            Arc::new(Lane::new(upstream, limits, Box::new(|| {}), clock.wall()))
        };
        let backoff = Backoff::try_new(MINUTE, 2.0, HOUR, 0.0).unwrap();
        let settings = Settings { max_active: setup.max_active, backoff, max_age: setup.max_age };
        let senders = vec![Pattern::Domain("example.com".into())];
        let rules = Rules { senders, ..Rules::default() };
        let lanes = vec![lane(&core, None), lane(&ses, Some(rules))];
        let plan = Plan::new(settings, setup.routes, lanes).unwrap();
        Self {
            spool: MemorySpool::new(Arc::clone(&clock) as _),
            clock,
            plan: Arc::new(ArcSwap::from_pointee(plan)),
            wake: Arc::new(Notify::new()),
            upstreams: [("core", core), ("ses", ses)].into_iter().collect(),
            running,
            stop: CancellationToken::new(),
        }
    }

    fn start(self) -> Self {
        let (spool, clock) = (Arc::new(self.spool.clone()), Arc::clone(&self.clock) as _);
        let (plan, wake) = (Arc::clone(&self.plan), Arc::clone(&self.wake));
        let scheduler = Scheduler::new(spool, LEASE, clock, plan, wake);
        tokio::spawn(scheduler.run(self.stop.clone(), HOUR));
        self
    }

    async fn submit(&self, recipients: &[&str]) -> QueueId {
        self.submit_from("10.0.1.12", recipients).await
    }

    async fn submit_from(&self, client: &str, recipients: &[&str]) -> QueueId {
        let (now, client) = (self.clock.wall(), client.parse().unwrap());
        let from = |message: &mut Message| message.facts.from = vec!["app@example.com".into()];
        submit(&self.spool, now, client, recipients, from).await
    }

    fn says(&self, upstream: &str, standing: Standing) {
        *self.upstreams[upstream].standing.lock().unwrap() = standing;
        self.wake.notify_one();
    }

    fn pause(&self, upstream: &str) {
        let pause = Intervention::Pause { lasting: None, reason: "test".into() };
        self.intervene(upstream, pause);
    }

    fn intervene(&self, upstream: &str, intervention: Intervention) {
        let plan = self.plan.load();
        let lane = plan.lane(upstream).unwrap();
        lane.intervene(intervention, self.clock.now(), self.clock.wall());
        self.wake.notify_one();
    }

    /// For whom an upstream was asked, in order.
    fn asked(&self, upstream: &str) -> Vec<String> {
        self.upstreams[upstream].asked.lock().unwrap().iter().map(|(_, r)| r.clone()).collect()
    }

    async fn entry(&self, id: QueueId) -> Entry {
        self.spool.show(id).await.unwrap().unwrap()
    }

    async fn word(&self, id: QueueId, place: usize) -> &'static str {
        self.entry(id).await.message.status[place].word()
    }
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn a_recipient_that_rests_is_not_kept_back_by_one_whose_route_is_dead() {
    let bench = Bench::new(Setup::of(apart())).start();
    bench.pause("core");
    let id = bench.submit(&["user@x", "greylisted-1@y"]).await;
    pass(MINUTE * 2).await;
    assert_eq!(bench.word(id, 0).await, "queued", "its route is dead");
    assert_eq!(bench.word(id, 1).await, "sent", "its own route is well");
}

#[tokio::test(start_paused = true)]
async fn mail_grows_old_at_the_entry_also_while_nothing_is_offered() {
    for (age, state) in [(MINUTE * 58, QueueState::Incoming), (HOUR, QueueState::Dead)] {
        let bench = Bench::new(Setup { max_age: HOUR, ..Setup::of(failover()) });
        bench.pause("core");
        bench.pause("ses");
        let bench = bench.start();
        pass(MINUTE).await;
        let id = bench.submit(&["user@x"]).await;
        pass(age + MINUTE).await;
        assert_eq!(bench.entry(id).await.state, state);
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_the_same_place_takes_turns() {
    let routes = vec![route("x", Some("x"), &["core"]), route("default", None, &["core", "ses"])];
    let bench = Bench::new(Setup { capacity: 1, ..Setup::of(routes) }).start();
    bench.pause("core");
    bench.pause("ses");
    for n in 0..10 {
        bench.submit(&[&format!("a{n}@x")]).await;
        bench.submit(&[&format!("b{n}@y")]).await;
    }
    // A minute later all of them are in their rooms.
    pass(MINUTE * 2).await;
    bench.intervene("core", Intervention::Resume);
    pass(SECOND * 10).await;
    let of = |domain: &str| bench.asked("core").iter().filter(|r| r.ends_with(domain)).count();
    assert!(of("@x").abs_diff(of("@y")) <= 1, "{:?}", bench.asked("core"));
    assert!(of("@x") >= 4);
}

#[tokio::test(start_paused = true)]
async fn no_more_run_at_once_than_may_over_all_upstreams() {
    for (max_active, most) in [(1, 1), (7, 7), (8, 8), (9, 8)] {
        let bench = Bench::new(Setup { max_active, ..Setup::of(apart()) });
        for n in 0..10 {
            bench.submit(&[&format!("a{n}@x")]).await;
            bench.submit(&[&format!("b{n}@y")]).await;
        }
        let bench = bench.start();
        pass(MINUTE).await;
        assert_eq!(bench.asked("core").len() + bench.asked("ses").len(), 20);
        assert_eq!(bench.running.lock().unwrap().1, most, "of {max_active}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_ends_frees_what_waited_for_the_first_upstream() {
    let bench = Bench::new(Setup::of(failover()));
    bench.says("ses", Standing { sandbox: true, ..Standing::default() });
    bench.pause("core");
    let bench = bench.start();
    bench.submit(&["user@x"]).await;
    pass(MINUTE * 5).await;
    assert!(bench.asked("ses").is_empty());
    bench.says("ses", Standing::default());
    pass(SECOND * 2).await;
    assert_eq!(bench.asked("ses"), ["user@x"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_requeued_after_it_expired_has_all_its_time_again() {
    let bench = Bench::new(Setup { max_age: HOUR, ..Setup::of(failover()) }).start();
    let id = bench.submit(&["full-1@x"]).await;
    pass(HOUR * 3).await;
    assert_eq!(
        (bench.entry(id).await.state, bench.word(id, 0).await),
        (QueueState::Dead, "expired")
    );
    bench.pause("core");
    bench.pause("ses");
    bench.spool.act(id, Action::Requeue, bench.clock.wall()).await.unwrap();
    pass(MINUTE * 59).await;
    assert_eq!(bench.entry(id).await.state, QueueState::Deferred);
    pass(MINUTE * 3).await;
    assert_eq!(bench.entry(id).await.state, QueueState::Dead);
}

#[tokio::test(start_paused = true)]
async fn when_the_fallback_is_scarce_the_urgent_go_first() {
    let mut routes = failover();
    let class = |priority, network: &str| Class {
        priority,
        clients: Networks::parse(&[network]).unwrap(),
        header: None,
    };
    routes[0].classes =
        vec![class(Priority::High, "10.0.9.0/24"), class(Priority::Low, "10.0.1.0/24")];
    let rate = Some(Rate { per_second: 1.0, of: Unit::Recipients });
    let bench = Bench::new(Setup { rate, ..Setup::of(routes) }).start();
    bench.pause("core");
    for n in 0..50 {
        bench.submit_from("10.0.1.1", &[&format!("low-{n}@x")]).await;
        bench.submit_from("10.0.5.1", &[&format!("normal-{n}@x")]).await;
    }
    pass(SECOND * 10).await;
    let before = bench.asked("ses").len();
    for n in 0..5 {
        bench.submit_from("10.0.9.1", &[&format!("high-{n}@x")]).await;
    }
    pass(SECOND * 120).await;
    let asked = bench.asked("ses");
    let places = |word: &str| {
        let found = asked.iter().enumerate().filter(|(_, r)| r.starts_with(word));
        found.map(|(place, _)| place).collect::<Vec<_>>()
    };
    assert!(places("high").iter().all(|p| *p < before + 5 + 1), "{asked:?}");
    // Of those that waited together the normal ones went before all low ones but the first.
    let early = places("low").into_iter().filter(|p| *p < 50).count();
    assert!(early <= 1, "{asked:?}");
    assert_eq!(asked.len(), 105);
}

#[tokio::test(start_paused = true)]
async fn a_dead_route_delays_nobody_elses_mail() {
    let bench = Bench::new(Setup::of(apart())).start();
    bench.pause("core");
    for n in 0..2_000 {
        bench.submit(&[&format!("dead{n}@x")]).await;
    }
    for n in 0..50 {
        pass(SECOND).await;
        let name = format!("user-{n}@y");
        bench.submit(&[&name]).await;
        let at = bench.upstreams["ses"].begun.elapsed();
        pass(SECOND).await;
        let asked = bench.upstreams["ses"].asked.lock().unwrap();
        let (when, _) =
            asked.iter().find(|(_, r)| *r == name).expect("it is there within a second");
        let waited = when.saturating_sub(at);
        assert!(waited < Duration::from_millis(100), "{name} waited {waited:?}");
    }
    assert!(bench.asked("core").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_message_that_an_upstream_chokes_on_does_not_take_the_route_from_others() {
    let bench = Bench::new(Setup::of(apart())).start();
    bench.submit(&["choke-1@x"]).await;
    pass(MINUTE * 2).await;
    for n in 0..1_800 {
        bench.submit(&[&format!("user-{n}@x")]).await;
        pass(SECOND).await;
    }
    let asked = bench.asked("core");
    let sent = asked.iter().filter(|r| r.starts_with("user")).count();
    let choked = asked.len() - sent;
    assert!(sent > 1_700 && choked < 40, "{sent} were sent, and {choked} attempts choked");
}

#[tokio::test(start_paused = true)]
async fn new_mail_does_not_wait_for_all_that_an_outage_left() {
    let bench = Bench::new(Setup { capacity: 1, ..Setup::of(failover()) }).start();
    bench.pause("core");
    bench.pause("ses");
    for n in 0..100 {
        bench.submit(&[&format!("old{n}@x")]).await;
    }
    // A minute later all of them are in their room.
    pass(MINUTE * 2).await;
    bench.intervene("core", Intervention::Resume);
    pass(SECOND * 5).await;
    for n in 0..10 {
        bench.submit(&[&format!("new{n}@x")]).await;
    }
    pass(SECOND * 25).await;
    let of = |word: &str| bench.asked("core").iter().filter(|r| r.starts_with(word)).count();
    assert_eq!(of("new"), 10, "{:?}", bench.asked("core"));
    assert!(of("old") >= 14, "{:?}", bench.asked("core"));
}
