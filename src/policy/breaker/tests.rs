//! What opens it, what closes it, and for how long.

use super::*;
use crate::clock::{Clock, SystemClock};

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn settings() -> Settings {
    Settings {
        failures: 3,
        window: SECOND * 10,
        open_for: SECOND * 30,
        open_max: SECOND * 100,
        probes: 1,
        dwell: SECOND * 5,
        hold_probe: SECOND * 3600,
    }
}

fn breaker() -> (Breaker, Instant) {
    (Breaker::new(settings()), SystemClock.now())
}

fn fail(b: &mut Breaker, now: Instant, times: usize) {
    for _ in 0..times {
        assert!(b.admit(now));
        b.failed(now, None);
    }
}

fn succeed(b: &mut Breaker, now: Instant) {
    assert!(b.admit(now));
    b.succeeded(now);
}

/// How many more it admits now; they are withdrawn again.
fn room(b: &mut Breaker, now: Instant) -> usize {
    let admitted = (0..5000).take_while(|_| b.admit(now)).count();
    (0..admitted).for_each(|_| b.withdrawn());
    admitted
}

/// A breaker that opened, and was closed by a probe at the time returned.
fn returned() -> (Breaker, Instant) {
    let (mut b, t) = breaker();
    fail(&mut b, t, 3);
    let t = t + SECOND * 30;
    succeed(&mut b, t);
    (b, t)
}

#[test]
fn it_opens_at_the_nth_failure_within_the_window() {
    let (mut b, t) = breaker();
    fail(&mut b, t, 2);
    assert!(b.admit(t), "n-1 failures leave it closed");
    b.failed(t, None);
    assert!(!b.admit(t));
    assert_eq!(b.state(t), State::Open { until: t + SECOND * 30 });
    assert_eq!(b.wakes(t), Some(t + SECOND * 30));
}

#[test]
fn failures_farther_apart_than_the_window_do_not_open_it() {
    for (apart, opens) in [(4999, true), (5000, false), (5001, false)] {
        let (mut b, t) = breaker();
        for n in 0..3 {
            fail(&mut b, t + Duration::from_millis(apart) * n, 1);
        }
        let now = t + SECOND * 11;
        assert_eq!(b.state(now) != State::Closed, opens, "{apart} ms");
    }
}

#[test]
fn a_success_forgets_the_failures_before_it() {
    let (mut b, t) = breaker();
    fail(&mut b, t, 2);
    succeed(&mut b, t);
    fail(&mut b, t, 2);
    assert_eq!(b.state(t), State::Closed);
}

#[test]
fn when_its_time_is_over_one_probe_decides() {
    let (mut b, t) = breaker();
    fail(&mut b, t, 3);
    assert!(!b.admit(t + Duration::from_millis(29_999)));
    let t = t + SECOND * 30;
    assert!(b.admit(t));
    assert!(!b.admit(t), "only one probe at a time");
    assert_eq!(b.wakes(t), None, "an answer must come first");
    b.succeeded(t);
    assert_eq!((b.state(t), b.ramp(t)), (State::Closed, Some(1)));
}

#[test]
fn as_many_probes_run_as_were_asked_for() {
    let mut b = Breaker::new(Settings { probes: 3, ..settings() });
    let t = SystemClock.now();
    fail(&mut b, t, 3);
    let t = t + SECOND * 30;
    assert_eq!(room(&mut b, t), 3);
    for _ in 0..3 {
        assert!(b.admit(t));
    }
    b.succeeded(t);
    assert!(!b.admit(t), "the other two are running, and the ramp begins with one");
    b.succeeded(t);
    b.succeeded(t);
    assert_eq!(room(&mut b, t), 1);
}

#[test]
fn each_failed_probe_doubles_the_time_up_to_the_longest() {
    let (mut b, t) = breaker();
    fail(&mut b, t, 3);
    let mut now = t;
    for expected in [60, 100, 100] {
        now = b.wakes(now).unwrap();
        fail(&mut b, now, 1);
        assert_eq!(b.state(now), State::Open { until: now + SECOND * expected });
    }
}

#[test]
fn after_a_probe_attempts_at_once_double_step_by_step_while_they_succeed() {
    let (mut b, mut t) = returned();
    for step in 0..=10 {
        let limit = 1 << step;
        assert_eq!((room(&mut b, t), b.ramp(t)), (limit, Some(limit)));
        succeed(&mut b, t + Duration::from_millis(4999));
        assert_eq!(b.ramp(t), Some(limit), "a step lasts at least the dwell");
        t += SECOND * 5;
        assert_eq!(b.ramp(t), Some(limit), "time alone proves nothing");
        succeed(&mut b, t);
    }
    assert_eq!((room(&mut b, t), b.ramp(t)), (5000, None), "beyond 1024 there is no limit");
}

#[test]
fn one_failure_on_the_ramp_opens_it_for_twice_as_long() {
    let (mut b, t) = returned();
    succeed(&mut b, t + SECOND * 5);
    fail(&mut b, t + SECOND * 6, 1);
    assert_eq!(b.state(t + SECOND * 6), State::Open { until: t + SECOND * 66 });
    let t = t + SECOND * 66;
    succeed(&mut b, t);
    fail(&mut b, t, 1);
    assert_eq!(b.state(t), State::Open { until: t + SECOND * 100 }, "flapping costs more and more");
}

#[test]
fn at_the_end_of_the_ramp_everything_is_as_new() {
    let (mut b, mut t) = returned();
    while b.ramp(t).is_some() {
        succeed(&mut b, t);
        t += SECOND * 5;
    }
    fail(&mut b, t, 3);
    assert_eq!(b.state(t), State::Open { until: t + SECOND * 30 });
}

#[test]
fn late_news_from_before_the_opening_change_nothing() {
    let (mut b, t) = breaker();
    for _ in 0..10 {
        assert!(b.admit(t));
    }
    (0..3).for_each(|_| b.failed(t, None));
    let opened = State::Open { until: t + SECOND * 30 };
    b.succeeded(t);
    b.failed(t, None);
    b.failed(t, Some(1));
    b.withdrawn();
    assert_eq!(b.state(t), opened);
    let t = t + SECOND * 30;
    assert!(b.admit(t));
    b.failed(t, None);
    assert_eq!(b.state(t), State::HalfOpen, "a time-out from before is not the probe's failure");
    b.succeeded(t);
    b.failed(t, None);
    assert_eq!(b.state(t), State::Closed, "nor one on the ramp");
    b.failed(t, None);
    fail(&mut b, t, 1);
    assert_ne!(b.state(t), State::Closed, "all late ones are known");
}

#[test]
fn a_withdrawn_probe_makes_room_for_another() {
    let (mut b, t) = breaker();
    fail(&mut b, t, 3);
    let t = t + SECOND * 30;
    assert!(b.admit(t));
    b.withdrawn();
    assert!(b.admit(t));
}

#[test]
fn a_refused_login_holds_it_until_the_secret_changes() {
    let (mut b, t) = breaker();
    b.secret(7, t);
    assert!(b.admit(t));
    b.failed(t, Some(7));
    let later = t + SECOND * 3599;
    b.secret(7, later);
    assert_eq!((b.state(later), b.admit(later)), (State::Held, false));
    b.secret(6, later);
    assert_eq!(b.state(later), State::HalfOpen, "another one, newer or not, is tried at once");
    succeed(&mut b, later);
    assert_eq!(b.ramp(later), Some(1));
}

#[test]
fn a_refused_login_is_tried_again_only_once_in_a_long_time() {
    let mut b = Breaker::new(Settings { probes: 5, ..settings() });
    let mut t = SystemClock.now();
    assert!(b.admit(t));
    b.failed(t, Some(7));
    for _ in 0..3 {
        assert_eq!(b.wakes(t), Some(t + SECOND * 3600));
        t += SECOND * 3600;
        assert_eq!(room(&mut b, t), 1);
        assert!(b.admit(t));
        b.failed(t, Some(7));
        assert_eq!(b.state(t), State::Held);
    }
    t += SECOND * 3600;
    succeed(&mut b, t);
    assert_eq!(b.state(t), State::Closed, "the server was wrong for a while");
}

#[test]
fn a_refusal_of_credentials_that_were_replaced_meanwhile_says_nothing() {
    let (mut b, t) = breaker();
    b.secret(1, t);
    assert!(b.admit(t) && b.admit(t));
    b.secret(2, t);
    b.failed(t, Some(1));
    assert_eq!(b.state(t), State::Closed);
    b.failed(t, Some(2));
    assert_eq!(b.state(t), State::Held);
}

#[test]
fn a_pause_holds_as_long_as_it_is_said_to() {
    let (mut b, t) = breaker();
    let pin = |until| Some(Pin { until, reason: "move".into() });
    b.pause(pin(Some(t + SECOND * 60)));
    let last = t + Duration::from_millis(59_999);
    assert_eq!((b.state(last), b.admit(last)), (State::Paused, false));
    assert_eq!((b.pin(last).unwrap().reason.as_str(), b.wakes(last)), ("move", b.wakes(t)));
    assert!(b.admit(t + SECOND * 60), "it ends by itself");
    b.pause(pin(None));
    assert_eq!((b.state(t + SECOND * 9999), b.wakes(t)), (State::Paused, None));
    b.pause(None);
    assert_eq!(b.state(t), State::Closed);
}

#[test]
fn what_happens_during_a_pause_counts() {
    let (mut b, t) = breaker();
    (0..3).for_each(|_| assert!(b.admit(t)));
    b.pause(Some(Pin { until: Some(t + SECOND * 10), reason: String::new() }));
    (0..3).for_each(|_| b.failed(t, None));
    assert_eq!((b.state(t), b.wakes(t)), (State::Paused, Some(t + SECOND * 30)));
    assert_eq!(b.state(t + SECOND * 10), State::Open { until: t + SECOND * 30 });
}

#[test]
fn an_operator_trips_and_resets_it() {
    let (mut b, t) = breaker();
    b.trip(t, None);
    assert_eq!(b.state(t), State::Open { until: t + SECOND * 30 });
    b.trip(t, Some(SECOND * 500));
    assert_eq!(b.state(t), State::Open { until: t + SECOND * 500 });
    b.trip(t, Some(Duration::MAX));
    assert!(!b.admit(t + SECOND * 86_400));
    b.reset();
    assert_eq!((b.state(t), b.ramp(t), room(&mut b, t)), (State::Closed, None, 5000));
    b.failed(t, Some(1));
    b.pause(Some(Pin { until: None, reason: String::new() }));
    b.reset();
    assert_eq!(b.state(t), State::Paused, "a pause stays");
    b.pause(None);
    assert_eq!(b.state(t), State::Closed, "what held it does not");
}

#[test]
fn new_settings_hold_from_the_next_opening_on() {
    let (mut b, t) = breaker();
    fail(&mut b, t, 3);
    b.reconfigure(Settings { open_for: SECOND * 40, open_max: SECOND * 50, ..settings() });
    assert_eq!(b.state(t), State::Open { until: t + SECOND * 30 });
    let t = t + SECOND * 30;
    fail(&mut b, t, 1);
    assert_eq!(b.state(t), State::Open { until: t + SECOND * 50 });
}
