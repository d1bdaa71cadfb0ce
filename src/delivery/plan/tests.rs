//! Decisions, message by message.

use super::*;
use crate::clock::{Clock, SystemClock};
use crate::delivery::lane::{Intervention, Limits};
use crate::mail::{Body, EnhancedStatus, Envelope, Outcome, QueueId, ReversePath};
use crate::policy::Backoff;
use crate::policy::breaker;
use crate::policy::eligibility::Rules;
use crate::policy::routing::{Match, Pattern};
use crate::upstream::{Leaving, Standing, Upstream};

const WALL: Timestamp = Timestamp::from_millis(1_000);

struct Named(&'static str);

#[async_trait::async_trait]
impl Upstream for Named {
    fn name(&self) -> &str {
        self.0
    }

    fn standing(&self) -> Standing {
        Standing { max_recipients: 2, ..Standing::default() }
    }

    async fn deliver(&self, _: &Envelope, _: &Body, _: &dyn Leaving, _: Instant) -> Outcome {
        unreachable!("only decisions are made here")
    }
}

fn lane(name: &'static str, rules: Option<Rules>) -> Arc<Lane> {
    let limits = Limits { capacity: 1, rate: None, breaker: breaker::Settings::default(), rules };
    Arc::new(Lane::new(Arc::new(Named(name)), limits, Box::new(|| {}), WALL))
}

fn route(name: &str, recipient: Option<&str>, upstreams: &[&str]) -> Route {
    let recipient = recipient.map(|domain| Pattern::Domain(domain.into()));
    Route {
        name: name.into(),
        when: Match { recipient: recipient.into_iter().collect(), ..Match::default() },
        upstreams: upstreams.iter().map(ToString::to_string).collect(),
        unconfirmed: Unconfirmed::Retry,
        classes: Vec::new(),
    }
}

/// `core`, then `ses`, which cannot have the null sender.
fn plan(routes: Vec<Route>) -> Plan {
    let second = Duration::from_secs(1);
    let backoff = Backoff::try_new(second, 1.0, second, 0.0).unwrap();
    let settings = Settings { max_active: 10, backoff, max_age: second };
    let rules = crate::policy::eligibility::Rules::default();
    let lanes = vec![lane("core", None), lane("ses", Some(rules)), lane("other", None)];
    Plan::new(settings, routes, lanes).unwrap()
}

fn failover() -> Plan {
    plan(vec![route("default", None, &["core", "ses"])])
}

fn message(recipients: &[&str]) -> Message {
    Message::sample(QueueId::from_u64(1), Timestamp::from_millis(0), recipients)
}

fn pause(plan: &Plan, upstream: &str) {
    let pause = Intervention::Pause { lasting: None, reason: "test".into() };
    plan.lane(upstream).unwrap().intervene(pause, SystemClock.now(), WALL);
}

fn decide(plan: &Plan, message: &mut Message) -> Decision {
    let offers = Offers::of(plan, 10, SystemClock.now(), WALL);
    plan.decide(message, &offers, WALL)
}

fn go(lane: usize, places: &[usize]) -> Decision {
    Decision::Go(Way { route: 0, lane, places: places.to_vec() })
}

fn failure() -> Failure {
    let mut failure = unroutable(&Ineligible::NullSender);
    failure.status = EnhancedStatus::new(5, 6, 0);
    failure
}

fn unconfirmed(upstream: &str) -> RecipientStatus {
    RecipientStatus::Unconfirmed { upstream: upstream.into(), failure: failure() }
}

fn waits(ways: &[&[usize]]) -> Decision {
    let ways = ways.iter().map(|way| way.to_vec()).collect();
    Decision::Wait(Wants { priority: Priority::Normal, ways })
}

#[test]
fn the_first_upstream_has_it_unless_it_is_down_and_busy_is_not_down() {
    let plan = failover();
    assert_eq!(decide(&plan, &mut message(&["a@x"])), go(0, &[0]));
    let taken = plan.lane("core").unwrap().offer(1, SystemClock.now(), WALL);
    assert_eq!(taken.slots, 1);
    plan.lane("core").unwrap().start(1, SystemClock.now());
    assert_eq!(decide(&plan, &mut message(&["a@x"])), waits(&[&[0, 1]]));
    pause(&plan, "core");
    assert_eq!(decide(&plan, &mut message(&["a@x"])), go(1, &[0]));
    pause(&plan, "ses");
    assert_eq!(decide(&plan, &mut message(&["a@x"])), waits(&[&[0, 1]]));
}

#[test]
fn what_the_fallback_cannot_have_waits_for_the_first() {
    let plan = failover();
    pause(&plan, "core");
    let mut m = message(&["a@x"]);
    m.envelope.reverse_path = ReversePath::Null;
    assert_eq!(decide(&plan, &mut m), waits(&[&[0]]));
    let mut refused = message(&["a@x", "b@x"]);
    let outcome = Outcome::all(1, &crate::mail::RecipientOutcome::Bounced(failure()));
    refused.record(("ses", false), &[0], &outcome, WALL);
    assert_eq!(decide(&plan, &mut refused), go(1, &[1]));
    assert_eq!(refused.status[0].word(), "deferred", "a fallback never bounces");
}

#[test]
fn what_may_have_arrived_goes_nowhere_else() {
    let plan = failover();
    let mut m = message(&["a@x", "b@x"]);
    m.status[0] = unconfirmed("ses");
    assert_eq!(decide(&plan, &mut m), go(1, &[0]), "the same upstream, although core is well");
    pause(&plan, "ses");
    assert_eq!(decide(&plan, &mut m), go(0, &[1]));
    m.status[1] = unconfirmed("core");
    pause(&plan, "core");
    assert_eq!(decide(&plan, &mut m), waits(&[&[0], &[1]]));
    m.status = vec![unconfirmed("gone"); 2];
    assert_eq!(decide(&plan, &mut m), Decision::Hold, "its upstream is configured no more");
}

#[test]
fn what_may_have_arrived_is_asked_for_there_wherever_its_route_leads_today() {
    let plan = plan(vec![route("default", None, &["core", "other"])]);
    let mut m = message(&["a@x"]);
    m.status[0] = unconfirmed("ses");
    assert_eq!(decide(&plan, &mut m), go(1, &[0]));
    pause(&plan, "ses");
    assert_eq!(decide(&plan, &mut m), waits(&[&[1]]));
}

#[test]
fn it_may_be_the_operator_who_settles_what_is_unconfirmed() {
    let mut hold = route("default", None, &["core", "ses"]);
    hold.unconfirmed = Unconfirmed::Hold;
    let plan = plan(vec![hold]);
    let mut m = message(&["a@x", "b@x"]);
    m.status[0] = unconfirmed("core");
    assert_eq!(decide(&plan, &mut m), go(0, &[1]));
    m.status[1] = unconfirmed("core");
    assert_eq!(decide(&plan, &mut m), Decision::Hold);
}

#[test]
fn a_verdict_after_a_lost_answer_is_not_the_verdict_on_the_first_attempt() {
    let plan = failover();
    let mut m = message(&["a@x"]);
    m.status[0] = unconfirmed("ses");
    let outcome = Outcome::all(1, &crate::mail::RecipientOutcome::Bounced(failure()));
    m.record(("ses", false), &[0], &outcome, WALL);
    assert_eq!(m.status[0].word(), "unconfirmed");
    assert_eq!(decide(&plan, &mut m), Decision::Hold);
}

#[test]
fn recipients_take_their_own_routes_in_bounded_attempts() {
    let routes = vec![route("x", Some("x"), &["other"]), route("all", None, &["core", "ses"])];
    let plan = plan(routes);
    let mut m = message(&["a@x", "b@y", "c@x", "d@x"]);
    let way = Way { route: 0, lane: 2, places: vec![0, 2] };
    assert_eq!(decide(&plan, &mut m), Decision::Go(way), "two at a time");
    pause(&plan, "other");
    let way = Way { route: 1, lane: 0, places: vec![1] };
    assert_eq!(decide(&plan, &mut m), Decision::Go(way));
}

#[test]
fn what_rests_is_left_alone() {
    let plan = failover();
    let mut m = message(&["a@x", "b@x"]);
    let later = WALL.after(Duration::from_secs(9));
    m.rests = vec![(0, later)];
    assert_eq!(decide(&plan, &mut m), go(0, &[1]));
    m.rests.push((1, later.after(Duration::from_secs(1))));
    assert_eq!(decide(&plan, &mut m), Decision::Later(later));
}

#[test]
fn who_rests_is_looked_at_when_the_rest_is_over_whatever_the_others_wait_for() {
    let plan = failover();
    pause(&plan, "core");
    pause(&plan, "ses");
    let mut m = message(&["a@x", "b@x"]);
    for (rest, look) in [(29, 29), (30, 30), (31, 30)] {
        m.rests = vec![(0, WALL.after(Duration::from_secs(rest)))];
        let look = WALL.after(Duration::from_secs(look));
        assert_eq!(decide(&plan, &mut m), Decision::Later(look));
    }
}

#[test]
fn what_no_upstream_will_ever_have_is_over() {
    let plan = plan(vec![route("api", None, &["ses"])]);
    let mut m = message(&["a@x"]);
    m.envelope.reverse_path = ReversePath::Null;
    assert_eq!(decide(&plan, &mut m), Decision::Over);
    assert_eq!(m.status[0].word(), "bounced");
}

#[test]
fn a_plan_knows_its_upstreams_and_has_a_way_for_all() {
    let settings = failover().settings;
    let new = |routes| Plan::new(settings, routes, vec![lane("core", None)]).err();
    let unknown = vec![route("default", None, &["cor"])];
    assert!(matches!(new(unknown), Some(PlanError::Unknown { .. })));
    assert!(matches!(new(vec![route("x", Some("x"), &["core"])]), Some(PlanError::NotAll)));
    assert!(matches!(new(Vec::new()), Some(PlanError::NotAll)));
}
