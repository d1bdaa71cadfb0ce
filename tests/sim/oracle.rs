//! What must be true after every history.

use std::collections::HashSet;
use std::ops::AddAssign;
use std::time::Duration;

use postgate::mail::{QueueState, RecipientStatus};
use postgate::policy::routing::Unconfirmed;

use crate::upstreams::{Book, Simulated, Weather};
use crate::world::{CAPACITY, DEAD, World};

/// What happened, to see that the histories are worth something.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) recipients: usize,
    pub(crate) by_core: usize,
    pub(crate) by_ses: usize,
    pub(crate) doubled_with_excuse: usize,
    pub(crate) bounced: usize,
    pub(crate) held: usize,
    pub(crate) kills: usize,
    pub(crate) reloads: usize,
    pub(crate) interventions: usize,
    pub(crate) outages: usize,
    pub(crate) logins_refused: usize,
    pub(crate) throttles: usize,
    pub(crate) pauses: usize,
    pub(crate) expired: usize,
    pub(crate) confirmed: usize,
    pub(crate) resent: usize,
}

impl Tally {
    pub(crate) fn counts(&self) -> [(&'static str, usize); 16] {
        [
            ("a recipient", self.recipients),
            ("mail by core", self.by_core),
            ("mail by ses", self.by_ses),
            ("a copy with an excuse", self.doubled_with_excuse),
            ("a bounce", self.bounced),
            ("a message held for the operator", self.held),
            ("a death of the process", self.kills),
            ("a reload", self.reloads),
            ("an operator's intervention", self.interventions),
            ("an outage", self.outages),
            ("a refused login", self.logins_refused),
            ("a throttled upstream", self.throttles),
            ("a paused account", self.pauses),
            ("a message that grew too old", self.expired),
            ("a confirmation by hand", self.confirmed),
            ("another sending by hand", self.resent),
        ]
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.recipients += other.recipients;
        self.by_core += other.by_core;
        self.by_ses += other.by_ses;
        self.doubled_with_excuse += other.doubled_with_excuse;
        self.bounced += other.bounced;
        self.held += other.held;
        self.kills += other.kills;
        self.reloads += other.reloads;
        self.interventions += other.interventions;
        self.outages += other.outages;
        self.logins_refused += other.logins_refused;
        self.throttles += other.throttles;
        self.pauses += other.pauses;
        self.expired += other.expired;
        self.confirmed += other.confirmed;
        self.resent += other.resent;
    }
}

/// Checks the promises; panics with the seed where one is broken.
pub(crate) async fn judge(seed: u64, world: &World, names: &[String], tally: &mut Tally) {
    let queue = world.queue().await;
    let (core, ses) = (world.core.book.lock().unwrap(), world.ses.book.lock().unwrap());
    let dead = world.dead.book.lock().unwrap();
    let mut accounted = HashSet::new();
    for entry in &queue {
        for (recipient, status) in entry.message.recipients() {
            let name = recipient.path.to_string();
            match (entry.state, status) {
                (_, RecipientStatus::Sent { .. }) => continue,
                (QueueState::Dead | QueueState::Held, RecipientStatus::Bounced { .. }) => {
                    tally.bounced += 1;
                    let by = if name.ends_with(DEAD) { &dead } else { &core };
                    let refused = by.refused.contains_key(&name);
                    assert!(
                        refused,
                        "seed {seed}: {name} bounced, and its first upstream never refused it"
                    );
                }
                (QueueState::Held, RecipientStatus::Unconfirmed { .. }) => {
                    tally.held += 1;
                    // The fallback may have it, and then said that it will not: who is to know?
                    let hold = world.choices.unconfirmed == Unconfirmed::Hold
                        || ses.refused.contains_key(&name);
                    assert!(hold, "seed {seed}: {name} is held, and the route says retry");
                }
                (state, status) => {
                    panic!(
                        "seed {seed}: {name} is left {} in state {}",
                        status.word(),
                        state.word()
                    )
                }
            }
            accounted.insert(name);
        }
    }
    for name in names {
        let first = if name.ends_with(DEAD) { &dead } else { &core };
        judge_one(seed, world, name, first, &ses, accounted.contains(name), tally);
    }
    tally.recipients += names.len();
    for (upstream, book) in [(&world.core, &core), (&world.ses, &ses), (&world.dead, &dead)] {
        bounds(seed, upstream, book, world.choices.max_active);
        logins(seed, upstream, book, tally);
        let had = |weather| book.weathers.iter().filter(|w| **w == weather).count();
        tally.outages += had(Weather::Down);
        tally.logins_refused += had(Weather::Locked);
        tally.throttles += had(Weather::Throttling);
        tally.pauses += had(Weather::Wanting);
    }
    rate(seed, world, &ses);
}

fn judge_one(
    seed: u64,
    world: &World,
    name: &str,
    core: &Book,
    ses: &Book,
    accounted: bool,
    tally: &mut Tally,
) {
    let of = |map: &std::collections::HashMap<String, usize>| map.get(name).copied().unwrap_or(0);
    let (by_core, by_ses) = (of(&core.copies), of(&ses.copies));
    let excuses = of(&core.excuses) + of(&ses.excuses);
    let said = world.said.lock().unwrap();
    let (arrived, resent) = (said.arrived.contains(name), of(&said.resent));
    // 1: what was acknowledged is delivered, or stands there to be seen, or the operator knew better.
    assert!(by_core + by_ses > 0 || accounted || arrived, "seed {seed}: {name} got nothing");
    // 3: never by two ways, whatever was lost and whoever died, but by the operator's word.
    assert!(by_core == 0 || by_ses == 0 || resent > 0, "seed {seed}: {name} came by both ways");
    assert!(
        by_core + by_ses <= 1 + excuses + resent,
        "seed {seed}: {name} got {by_core} and {by_ses}, {excuses} excused"
    );
    if world.choices.unconfirmed == Unconfirmed::Hold {
        assert!(
            by_core + by_ses <= 1 + resent,
            "seed {seed}: {name} came twice, and was to be held"
        );
    }
    // 4: what only the fallback refuses is delivered by the first.
    if name.starts_with("not-ses") {
        assert!(
            by_ses == 0 && (by_core > 0 || accounted || arrived),
            "seed {seed}: {name} waits for core"
        );
    }
    if name.starts_with("nobody") {
        assert!(
            by_core + by_ses == 0 && (accounted || arrived),
            "seed {seed}: {name} is a dead letter"
        );
    }
    tally.by_core += usize::from(by_core > 0);
    tally.by_ses += usize::from(by_ses > 0);
    tally.doubled_with_excuse += usize::from(by_core + by_ses > 1);
}

/// A refused login is not tried again and again with the same secret, or it would be locked out: but
/// for those on their way, what a process that knows nothing yet or an operator sends after them, and
/// one an hour.
fn logins(seed: u64, upstream: &Simulated, book: &Book, tally: &Tally) {
    let anew = book.starts.len() + tally.interventions;
    let hours = upstream.age().as_secs() / 3600 + 1;
    let most = CAPACITY * (1 + anew) + usize::try_from(hours).unwrap_or(usize::MAX);
    for (version, times) in &book.logins {
        let name = postgate::upstream::Upstream::name(upstream);
        assert!(*times <= most, "seed {seed}: {times} logins at {name} with secret {version}");
    }
}

/// 5: no more at once than was allowed.
fn bounds(seed: u64, upstream: &Simulated, book: &Book, max_active: usize) {
    use postgate::upstream::Upstream;
    let (name, standing) = (upstream.name(), upstream.standing());
    let allowed = CAPACITY.min(max_active);
    assert!(book.most_running <= allowed, "seed {seed}: {} attempts at {name}", book.most_running);
    assert!(
        book.most_recipients <= standing.max_recipients,
        "seed {seed}: {} recipients in an attempt at {name}",
        book.most_recipients
    );
}

/// 5: the fallback is never handed more than its rate, over any ten seconds; but for one second's
/// worth at once, and one attempt's debt, and these again for each new process.
fn rate(seed: u64, world: &World, ses: &Book) {
    let Some(rate) = world.choices.rate else { return };
    let window = Duration::from_secs(10);
    for (n, (from, _)) in ses.attempts.iter().enumerate() {
        let within = |at: Duration| at >= *from && at < *from + window;
        let attempts = ses.attempts[n..].iter().take_while(|(at, _)| within(*at));
        let handed: usize = attempts.map(|(_, recipients)| recipients).sum();
        let processes = 1 + ses.starts.iter().filter(|at| within(**at)).count();
        let burst = (rate.max(1.0) + 3.0) * processes as f64;
        let most = rate * window.as_secs_f64() + burst;
        assert!((handed as f64) <= most, "seed {seed}: {handed} in 10 s at {rate}/s to ses");
    }
}
