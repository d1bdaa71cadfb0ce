//! Which upstream may have a message now: the routes and lanes in force, and the decision.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Settings;
use super::lane::{Beyond, Lane, Offer};
use super::rooms::Wants;
use crate::clock::Timestamp;
use crate::mail::{Blame, Failure, Handoff, Message, RecipientStatus, Remedy, Stage};
use crate::policy::eligibility::{self, Ineligible, Today};
use crate::policy::routing::{self, Priority, Route, Unconfirmed};

/// The longest time until a message is looked at again of which some recipients rest and the others
/// wait for an upstream.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Everything that a reload swaps: how mail is sent, where to, and which way.
pub struct Plan {
    /// How.
    pub settings: Settings,
    lanes: Vec<Arc<Lane>>,
    routes: Vec<Route>,
    /// The lanes of each route.
    ways: Vec<Vec<usize>>,
}

/// A route names an upstream that has no lane, or there is no route at all.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The upstream.
    #[error("route \"{route}\" names the unknown upstream \"{upstream}\"")]
    Unknown {
        /// The route.
        route: String,
        /// What it names.
        upstream: String,
    },
    /// Mail that no route matches would wait for ever.
    #[error("the last route does not match everything")]
    NotAll,
}

/// What is to be done with a message now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Decision {
    /// Try these recipients, by their places, over this lane.
    Go(Way),
    /// Nothing can go; wait for this.
    Wait(Wants),
    /// Nothing is to be tried before this time.
    Later(Timestamp),
    /// Only the operator can go on.
    Hold,
    /// Nothing is pending any more.
    Over,
}

/// What an attempt is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Way {
    /// The route's place.
    pub(super) route: usize,
    /// The lane's place.
    pub(super) lane: usize,
    /// The recipients, by their places in the envelope.
    pub(super) places: Vec<usize>,
}

/// What an upstream is for one recipient of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fitness {
    /// It may have it.
    Eligible,
    /// It would refuse it.
    Ineligible(Ineligible),
    /// It has refused it.
    Refused(Failure),
    /// Another one may have it already; or this one, and the operator has to say.
    Unconfirmed,
}

impl Plan {
    /// A plan for these routes over these lanes.
    pub fn new(
        settings: Settings,
        routes: Vec<Route>,
        lanes: Vec<Arc<Lane>>,
    ) -> Result<Self, PlanError> {
        let lane = |name: &str| lanes.iter().position(|lane| lane.name() == name);
        let mut ways = Vec::with_capacity(routes.len());
        for route in &routes {
            let way = route.upstreams.iter().map(|name| {
                let unknown =
                    || PlanError::Unknown { route: route.name.clone(), upstream: name.clone() };
                lane(name).ok_or_else(unknown)
            });
            ways.push(way.collect::<Result<Vec<_>, _>>()?);
        }
        if routes.last().is_none_or(|route| route.when != routing::Match::default()) {
            return Err(PlanError::NotAll);
        }
        Ok(Self { settings, lanes, routes, ways })
    }

    /// A plan after a reload: what is known of upstreams that stay goes on.
    pub fn take_over(&mut self, before: &Self) {
        for lane in &mut self.lanes {
            let old = before.lanes.iter().find(|old| old.name() == lane.name());
            // A plan that is not in force yet is nobody else's.
            if let (Some(old), Some(lane)) = (old, Arc::get_mut(lane)) {
                lane.take_over(old);
            }
        }
    }

    /// The lanes.
    pub fn lanes(&self) -> &[Arc<Lane>] {
        &self.lanes
    }

    /// The lane of an upstream.
    pub fn lane(&self, upstream: &str) -> Option<&Arc<Lane>> {
        self.lanes.iter().find(|lane| lane.name() == upstream)
    }

    /// The routes, each with its lanes in order.
    pub fn routes(&self) -> impl Iterator<Item = (&Route, impl Iterator<Item = &Arc<Lane>>)> {
        let lanes = |way: &'_ Vec<usize>| {
            let way = way.clone();
            way.into_iter().filter_map(|lane| self.lanes.get(lane))
        };
        self.routes.iter().zip(self.ways.iter().map(lanes))
    }

    /// Whether who came first may have to wait for others: then everything that is due is looked at
    /// before anything goes.
    pub(super) fn has_priorities(&self) -> bool {
        self.routes.iter().any(|route| !route.classes.is_empty())
    }

    /// Whether each lane is in a sandbox: what may go there depends on it.
    pub(super) fn sandboxes(&self) -> Vec<bool> {
        self.lanes.iter().map(|lane| lane.upstream.standing().sandbox).collect()
    }

    /// The lanes of every route.
    pub(super) fn ways(&self) -> &[Vec<usize>] {
        &self.ways
    }

    /// The route at a place.
    pub fn route(&self, place: usize) -> Option<&Route> {
        self.routes.get(place)
    }

    /// Whether what this upstream refuses for good is refused for good.
    pub(super) fn is_authoritative(&self, way: &Way) -> bool {
        self.ways.get(way.route).and_then(|lanes| lanes.first()) == Some(&way.lane)
    }

    /// Whether it must be on the disk before the content leaves which upstream may have it: where
    /// another one would be asked after a crash, or nobody.
    pub(super) fn is_noted(&self, way: &Way) -> bool {
        let several = self.ways.get(way.route).is_some_and(|lanes| lanes.len() > 1);
        several || self.route(way.route).is_some_and(|r| r.unconfirmed == Unconfirmed::Hold)
    }

    /// The route of a recipient. There always is one: the last matches everything.
    pub fn route_of(&self, message: &Message, place: usize) -> usize {
        let recipient = message.envelope.recipients.get(place);
        let found = recipient.and_then(|r| routing::find(&self.routes, message, &r.path));
        found.unwrap_or_else(|| self.routes.len().saturating_sub(1))
    }

    /// The lanes of a recipient's route in their order, and what each is for it; where it may be
    /// already, the lane that may have it comes first.
    pub fn candidates(
        &self,
        message: &Message,
        place: usize,
        route: usize,
    ) -> Vec<(&Arc<Lane>, Fitness)> {
        let mut lanes = self.ways.get(route).cloned().unwrap_or_default();
        if let Some(RecipientStatus::Unconfirmed { upstream, .. }) = message.status.get(place)
            && let Some(there) = self.lanes.iter().position(|lane| lane.name() == upstream)
        {
            lanes.retain(|lane| *lane != there);
            lanes.insert(0, there);
        }
        let of = |lane| Some((self.lanes.get(lane)?, self.fitness(message, place, route, lane)));
        lanes.into_iter().filter_map(of).collect()
    }

    /// What a lane is for a recipient.
    fn fitness(&self, message: &Message, place: usize, route: usize, lane: usize) -> Fitness {
        let Some(there) = self.lanes.get(lane) else { return Fitness::Unconfirmed };
        let refusal = message.refusal(there.name(), place).cloned();
        if let Some(RecipientStatus::Unconfirmed { upstream, .. }) = message.status.get(place) {
            let retried = self.routes.get(route).map(|r| r.unconfirmed) == Some(Unconfirmed::Retry);
            let asked = upstream == there.name() && retried && refusal.is_none();
            return if asked { Fitness::Eligible } else { Fitness::Unconfirmed };
        }
        if let Some(failure) = refusal {
            return Fitness::Refused(failure);
        }
        // An authoritative upstream says itself whom it knows: its sandbox is no reason to ask
        // another one.
        let first = self.ways.get(route).and_then(|lanes| lanes.first()) == Some(&lane);
        let standing = there.upstream.standing();
        let sandbox = !first && standing.sandbox;
        let today = Today { sandbox, rewrites_sender: standing.rewrites_sender };
        let judged = match &there.limits.rules {
            Some(rules) => eligibility::judge(rules, message, place, today),
            None => Ok(()),
        };
        judged.map_or_else(Fitness::Ineligible, |()| Fitness::Eligible)
    }

    /// The lanes a recipient may go by: those of its route, and where it may be already the one
    /// that may have it, wherever the route leads today.
    fn ways_of(&self, message: &Message, place: usize, route: usize) -> Vec<usize> {
        let fit = |lane: &usize| self.fitness(message, place, route, *lane) == Fitness::Eligible;
        match message.status.get(place) {
            Some(RecipientStatus::Unconfirmed { .. }) => {
                (0..self.lanes.len()).filter(fit).collect()
            }
            _ => self.ways.get(route).into_iter().flatten().copied().filter(fit).collect(),
        }
    }

    /// When a message of these routes goes: as its most urgent recipient.
    fn priority(&self, message: &Message, routes: &[usize]) -> Priority {
        let of = |route: &usize| self.routes.get(*route).map(|route| route.priority(message));
        routes.iter().filter_map(of).min().unwrap_or_default()
    }

    /// Decides what is to be done with a message. Recipients nobody would take are bounced.
    pub(super) fn decide(
        &self,
        message: &mut Message,
        offers: &Offers<'_>,
        wall: Timestamp,
    ) -> Decision {
        let pending: Vec<usize> = message.pending().collect();
        let ready: Vec<usize> =
            pending.iter().copied().filter(|place| message.rest(*place) <= wall).collect();
        let mut go: Option<Way> = None;
        let mut stuck = true;
        for place in &ready {
            let route = self.route_of(message, *place);
            let way = self.ways_of(message, *place, route);
            if way.is_empty() {
                self.give_up(message, *place, route);
                continue;
            }
            stuck = false;
            match (offers.choose(&way), &mut go) {
                (Some(lane), None) => go = Some(Way { route, lane, places: vec![*place] }),
                (Some(lane), Some(go))
                    if (route, lane) == (go.route, go.lane)
                        && go.places.len() < offers.max_recipients(lane) =>
                {
                    go.places.push(*place);
                }
                _ => {}
            }
        }
        if let Some(way) = go {
            return Decision::Go(way);
        }
        let rests = pending.iter().map(|place| message.rest(*place)).filter(|rest| *rest > wall);
        match rests.min() {
            // In a room nobody would look at those who rest before what the others wait for is there.
            Some(rest) if !stuck => Decision::Later(rest.min(wall.after(LOOK_AGAIN))),
            None if !stuck => Decision::Wait(self.wants(message, wall)),
            // What is left rests, or is the operator's.
            Some(rest) => Decision::Later(rest),
            None if message.is_pending() => Decision::Hold,
            None => Decision::Over,
        }
    }

    /// What a message waits for, whatever is offered now.
    pub(super) fn wants(&self, message: &Message, wall: Timestamp) -> Wants {
        let ready = message.pending().filter(|place| message.rest(*place) <= wall);
        let places: Vec<(usize, usize)> =
            ready.map(|place| (place, self.route_of(message, place))).collect();
        let routes: Vec<usize> = places.iter().map(|(_, route)| *route).collect();
        let ways = places.iter().map(|(place, route)| self.ways_of(message, *place, *route));
        let mut ways: Vec<_> = ways.filter(|way| !way.is_empty()).collect();
        ways.sort();
        ways.dedup();
        Wants { priority: self.priority(message, &routes), ways }
    }

    /// A recipient that no upstream of its route will have is bounced, for the reason of the last
    /// that would not. What may have been delivered is not: it waits for the operator.
    fn give_up(&self, message: &mut Message, place: usize, route: usize) {
        if matches!(message.status.get(place), Some(RecipientStatus::Unconfirmed { .. })) {
            return;
        }
        let last = self.ways.get(route).and_then(|lanes| lanes.last());
        let reason = last.map(|lane| self.fitness(message, place, route, *lane));
        let failure = match reason {
            Some(Fitness::Refused(failure)) => failure,
            Some(Fitness::Ineligible(why)) => unroutable(&why),
            Some(Fitness::Eligible | Fitness::Unconfirmed) | None => return,
        };
        if let Some(status) = message.status.get_mut(place) {
            *status = RecipientStatus::Bounced { failure };
        }
    }
}

fn unroutable(why: &Ineligible) -> Failure {
    Failure {
        stage: Stage::Routing,
        blame: Blame::Message,
        handoff: Handoff::NotSent,
        remedy: Remedy::Time,
        reply: None,
        status: why.status(),
        detail: why.to_string(),
    }
}

/// What the lanes of a plan take now. What is not used goes back when it is dropped.
pub(super) struct Offers<'a> {
    lanes: &'a [Arc<Lane>],
    by_lane: Vec<Offer>,
    /// How many attempts may start, over all lanes.
    left: usize,
}

impl<'a> Offers<'a> {
    /// Asks every lane for its places; up to `most` attempts may start over all of them.
    pub(super) fn of(plan: &'a Plan, most: usize, now: Instant, wall: Timestamp) -> Self {
        let by_lane = plan.lanes.iter().map(|lane| lane.offer(most, now, wall)).collect();
        Self { lanes: &plan.lanes, by_lane, left: most }
    }

    /// The lane that has a place for someone who may go this way; none when it is to wait.
    pub(super) fn choose(&self, way: &[usize]) -> Option<usize> {
        for lane in way {
            match self.by_lane.get(*lane)? {
                Offer { slots: 1.., .. } => return Some(*lane),
                Offer { beyond: Beyond::Busy, .. } => return None,
                Offer { beyond: Beyond::Down, .. } => {}
            }
        }
        None
    }

    /// How many attempts could start for those who may go by any of these ways.
    pub(super) fn places(&self, ways: &[Vec<usize>]) -> usize {
        let mut lanes: Vec<usize> = ways.iter().filter_map(|way| self.choose(way)).collect();
        lanes.sort_unstable();
        lanes.dedup();
        let slots =
            lanes.iter().filter_map(|lane| self.by_lane.get(*lane)).map(|offer| offer.slots);
        slots.sum::<usize>().min(self.left)
    }

    /// An attempt takes a place.
    pub(super) fn take(&mut self, way: &Way, now: Instant) {
        let (Some(lane), Some(offer)) = (self.lanes.get(way.lane), self.by_lane.get_mut(way.lane))
        else {
            return;
        };
        offer.slots = offer.slots.saturating_sub(1);
        if !lane.start(way.places.len(), now) {
            lane.withdraw(std::mem::take(&mut offer.slots));
        }
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.withdraw();
        }
    }

    /// Gives back what was not used.
    fn withdraw(&mut self) {
        for (lane, offer) in self.lanes.iter().zip(&mut self.by_lane) {
            lane.withdraw(std::mem::take(&mut offer.slots));
        }
    }

    fn max_recipients(&self, lane: usize) -> usize {
        self.by_lane.get(lane).map_or(1, |offer| offer.max_recipients)
    }
}

impl Drop for Offers<'_> {
    fn drop(&mut self) {
        self.withdraw();
    }
}
