//! When an attempt starts, and how many run at once.
//!
//! The active set is bounded: messages are claimed only while an upstream has places for them, so a
//! dead one fills neither memory nor the set. What was claimed and cannot go is put into the room of
//! what it waits for, and is not looked at again before that is there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::attempt::{self, Attempt};
use super::plan::{Decision, Offers, Plan};
use super::rooms::{Rooms, Wants};
use crate::clock::{Clock, Timestamp};
use crate::event;
use crate::spool::{Claim, Room, Settlement, Spool, SpoolError};

/// The longest sleep: a wall clock that was set, or a machine that was suspended, is noticed by then.
const SLEEP_MAX: Duration = Duration::from_secs(30);

/// The shortest sleep: what falls due within it is claimed together.
const TICK: Duration = Duration::from_millis(2);

/// The pause after the spool failed to give out work.
const CLAIM_AGAIN: Duration = Duration::from_secs(1);

/// Messages that are looked at in one go, where priorities make it necessary to look at all.
const LOOK: usize = 256;

/// How often it is seen to that nothing waits in a room for longer than a message may wait.
const EXPIRE_EVERY: Duration = Duration::from_mins(1);

/// Delivers what is due until told to stop.
pub struct Scheduler {
    spool: Arc<dyn Spool>,
    lease: Duration,
    clock: Arc<dyn Clock>,
    plan: Arc<ArcSwap<Plan>>,
    wake: Arc<Notify>,
    rooms: Rooms,
    /// Whether new mail went before what waits in rooms, the last time there was a place.
    entry_first: bool,
    /// The plan the rooms are of, and which of its lanes were in a sandbox.
    current: Option<(Arc<Plan>, Vec<bool>)>,
    /// Where mail of each route goes first now.
    heads: HashMap<String, Option<String>>,
    expired: Option<Instant>,
}

impl Scheduler {
    /// A scheduler for what is in `spool`; a claim holds for `lease`.
    ///
    /// `wake` is to be told when the plan was swapped, and when an upstream says something new of
    /// itself: it may take mail now.
    pub fn new(
        spool: Arc<dyn Spool>,
        lease: Duration,
        clock: Arc<dyn Clock>,
        plan: Arc<ArcSwap<Plan>>,
        wake: Arc<Notify>,
    ) -> Self {
        let (rooms, heads) = (Rooms::default(), HashMap::new());
        let (current, expired) = (None, None);
        let entry_first = false;
        Self { spool, lease, clock, plan, wake, rooms, entry_first, current, heads, expired }
    }

    /// Runs until `shutdown`, then lets the attempts under way finish for as long as `drain`.
    pub async fn run(mut self, shutdown: CancellationToken, drain: Duration) {
        let mut attempts = JoinSet::new();
        let wake = Arc::clone(&self.wake);
        while !shutdown.is_cancelled() {
            let pause = match self.fill(&mut attempts).await {
                Ok(pause) => pause.clamp(TICK, SLEEP_MAX),
                Err(error) => {
                    event::SpoolFailed { queue_id: None, error: &error }.emit();
                    CLAIM_AGAIN
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.spool.wait() => {}
                () = wake.notified() => {}
                Some(_) = attempts.join_next() => {}
                () = tokio::time::sleep(pause) => {}
            }
            while attempts.try_join_next().is_some() {}
        }
        let finish = async { while attempts.join_next().await.is_some() {} };
        if tokio::time::timeout(drain, finish).await.is_err() {
            event::DrainCut { attempts: attempts.len() }.emit();
        }
    }

    /// Starts as many attempts as there is room, admission and work for. Returns how long nothing
    /// will change by itself.
    async fn fill(&mut self, attempts: &mut JoinSet<()>) -> Result<Duration, SpoolError> {
        let plan = self.follow();
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let room = plan.settings.max_active.max(1).saturating_sub(attempts.len());
        let offers = Offers::of(&plan, room, now, wall);
        let mut round = Round { plan: &plan, offers, attempts, wall };
        self.tell_heads(&plan, now);
        let urgent = plan.has_priorities();
        let sorted = self.expire(&mut round, now).await?;
        let sorted = sorted && (!urgent || self.sort(&mut round).await?);
        // In turns with the rooms: neither does new mail wait for all that an outage left, nor that
        // for all new mail.
        if !urgent && round.places(None) > 0 {
            self.entry_first = !self.entry_first;
            if self.entry_first {
                self.serve(Room::ENTRY, None, &mut round).await?;
            }
        }
        for (room, wants) in self.rooms.in_order() {
            if round.places(Some(&wants)) > 0 {
                self.rooms.had_its_turn(&wants);
                self.serve(room, Some(&wants), &mut round).await?;
            }
        }
        if !urgent {
            self.serve(Room::ENTRY, None, &mut round).await?;
        }
        if !sorted {
            return Ok(Duration::ZERO);
        }
        let lanes = plan.lanes().iter().filter_map(|lane| lane.wakes_in(now)).min();
        // While nothing is offered, what falls due cannot go, and the end of an attempt wakes us.
        let looks = urgent || round.places(None) > 0;
        let due = looks.then(|| self.spool.next_due(Room::ENTRY)).flatten();
        let due = due.map(|due| due.since(wall));
        Ok(due.into_iter().chain(lanes).min().unwrap_or(SLEEP_MAX))
    }

    /// The plan in force. When it is another one, or an upstream may have other mail than before,
    /// all that waits is looked at anew.
    fn follow(&mut self) -> Arc<Plan> {
        let plan = self.plan.load_full();
        let sandboxes = plan.sandboxes();
        let same = |(current, then): &(Arc<Plan>, Vec<bool>)| {
            Arc::ptr_eq(current, &plan) && *then == sandboxes
        };
        if !self.current.as_ref().is_some_and(same) {
            self.rooms.clear();
            self.spool.regroup();
            self.current = Some((Arc::clone(&plan), sandboxes));
        }
        plan
    }

    /// Starts what waits in a room, as long as there are places for it.
    async fn serve(
        &mut self,
        room: Room,
        wants: Option<&Wants>,
        round: &mut Round<'_>,
    ) -> Result<(), SpoolError> {
        loop {
            let places = round.places(wants);
            if places == 0 {
                return Ok(());
            }
            let claims = self.spool.claim(room, round.wall, places, self.lease).await?;
            let mut moved = false;
            for claim in claims {
                moved |= self.start(claim, room, round).await;
            }
            // What came back to the room it was in would be claimed again and again.
            if !moved {
                return Ok(());
            }
        }
    }

    /// Starts an attempt for a claimed message, or puts it where it is to wait. Returns whether it
    /// is no longer where it was.
    async fn start(&mut self, mut claim: Claim, from: Room, round: &mut Round<'_>) -> bool {
        let way = match round.plan.decide(&mut claim.message, &round.offers, round.wall) {
            Decision::Go(way) => way,
            other => return self.put(claim, from, other, round).await,
        };
        let Some(lane) = round.plan.lanes().get(way.lane).map(Arc::clone) else { return false };
        round.offers.take(&way, self.clock.now());
        let (spool, clock) = (Arc::clone(&self.spool), Arc::clone(&self.clock));
        let attempt = Attempt { spool, clock, plan: Arc::clone(round.plan), lane, way };
        round.attempts.spawn(attempt.run(claim));
        true
    }

    /// Puts a message that cannot go where it is to wait, or where it ends. Returns whether that is
    /// not where it was.
    async fn put(
        &mut self,
        mut claim: Claim,
        from: Room,
        decision: Decision,
        round: &mut Round<'_>,
    ) -> bool {
        let over = attempt::expire(&mut claim.message, &round.plan.settings, round.wall);
        let (room, due) = match decision {
            Decision::Wait(wants) if !over => match self.rooms.of(&wants) {
                // The oldest goes first when its time comes.
                Some(room) => (room, claim.message.waits_since()),
                None => (Room::ENTRY, round.wall.after(SLEEP_MAX)),
            },
            Decision::Later(due) if !over => (Room::ENTRY, due),
            decision => {
                let held = !over && decision == Decision::Hold;
                let end = if held { Settlement::Held } else { attempt::over(&claim.message) };
                let spool = Arc::clone(&self.spool);
                round.attempts.spawn(async move { attempt::settle(&*spool, &claim, end).await });
                // However many end at once: each is in memory until it is written down.
                while round.attempts.len() > round.plan.settings.max_active.saturating_add(LOOK) {
                    round.attempts.join_next().await;
                }
                return true;
            }
        };
        attempt::settle(&*self.spool, &claim, Settlement::Released(room, due)).await;
        room != from || due > round.wall
    }

    /// Puts what is due into its rooms, so that the most urgent is known. Returns whether all was
    /// looked at.
    async fn sort(&mut self, round: &mut Round<'_>) -> Result<bool, SpoolError> {
        let claims = self.spool.claim(Room::ENTRY, round.wall, LOOK, self.lease).await?;
        let all = claims.len() < LOOK;
        for mut claim in claims {
            let decision = match round.plan.decide(&mut claim.message, &round.offers, round.wall) {
                Decision::Go(_) => Decision::Wait(round.plan.wants(&claim.message, round.wall)),
                other => other,
            };
            self.put(claim, Room::ENTRY, decision, round).await;
        }
        Ok(all)
    }

    /// Gives up on what has waited in a room for longer than a message may wait. The oldest of a
    /// room comes first: when it is young enough, all are. Returns whether all was looked at.
    async fn expire(&mut self, round: &mut Round<'_>, now: Instant) -> Result<bool, SpoolError> {
        let recently = |at: Instant| now.saturating_duration_since(at) < EXPIRE_EVERY;
        if self.expired.is_some_and(recently) {
            return Ok(true);
        }
        // While nothing is offered nobody looks at the entry, and mail would grow old there.
        if round.places(None) == 0 && !self.sort(round).await? {
            return Ok(false);
        }
        self.expired = Some(now);
        for (room, wants) in self.rooms.in_order() {
            let mut more = true;
            while more {
                more = false;
                // Two: the oldest of those that were never tried, and of those that were.
                for claim in self.spool.claim(room, round.wall, 2, self.lease).await? {
                    more |= self.put(claim, room, Decision::Wait(wants.clone()), round).await;
                }
            }
        }
        Ok(true)
    }

    /// Says so when the mail of a route goes another way than before.
    fn tell_heads(&mut self, plan: &Plan, now: Instant) {
        for (route, mut lanes) in plan.routes() {
            let to = lanes.find(|lane| lane.is_well(now)).map(|lane| lane.name());
            let known = self.heads.get(&route.name).map(Option::as_deref);
            if known == Some(to) {
                continue;
            }
            let from = known.unwrap_or_else(|| route.upstreams.first().map(String::as_str));
            if from != to {
                event::RouteSwitched { route: &route.name, from, to }.emit();
            }
            self.heads.insert(route.name.clone(), to.map(str::to_owned));
        }
    }
}

/// What one look at the queue works with.
struct Round<'a> {
    plan: &'a Arc<Plan>,
    offers: Offers<'a>,
    attempts: &'a mut JoinSet<()>,
    wall: Timestamp,
}

impl Round<'_> {
    /// How many of those who want this could go now; with `None`, of those of whom nothing is known.
    fn places(&self, wants: Option<&Wants>) -> usize {
        let ways = wants.map_or_else(|| self.plan.ways(), |wants| &wants.ways);
        self.offers.places(ways)
    }
}
