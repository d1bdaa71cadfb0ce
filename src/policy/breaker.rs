//! The circuit breaker of one upstream: closed admits, open refuses, half-open probes.
//!
//! It hears only of failures that are the upstream's own fault; a refused recipient says nothing
//! about the route. While it is open no message is tried, so none is blamed for the route.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// When it opens and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// This many failures within `window` open it. At least 1.
    pub failures: usize,
    /// See `failures`.
    pub window: Duration,
    /// How long it stays open at first; each failed probe doubles it.
    pub open_for: Duration,
    /// The longest it stays open.
    pub open_max: Duration,
    /// Messages tried at once when half-open. At least 1.
    pub probes: usize,
    /// After a probe has succeeded attempts at once are 1, 2, 4, ...: each step lasts so long.
    pub dwell: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            failures: 5,
            window: Duration::from_secs(30),
            open_for: Duration::from_secs(30),
            open_max: Duration::from_mins(10),
            probes: 1,
            dwell: Duration::from_secs(5),
        }
    }
}

/// What the operator says, whatever the upstream does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pin {
    /// Until when; `None`: until it is taken away.
    pub until: Option<Instant>,
    /// Why, in the operator's words.
    pub reason: String,
}

/// Whether attempts are admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Attempts are admitted.
    Closed,
    /// None is, until the time given.
    Open {
        /// When a probe will be admitted.
        until: Instant,
    },
    /// A few are, to see whether the upstream is back.
    HalfOpen,
    /// None is, until its credentials change: the login was refused.
    Held,
    /// None is, for the operator said so.
    Paused,
}

impl State {
    /// The word in status and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen => "half-open",
            Self::Held => "held",
            Self::Paused => "paused",
        }
    }
}

/// A breaker. Every admitted attempt must be answered by exactly one of
/// [`succeeded`](Self::succeeded), [`failed`](Self::failed) and [`withdrawn`](Self::withdrawn).
#[derive(Debug)]
pub struct Breaker {
    settings: Settings,
    state: State,
    /// Times of the failures within the window while closed, oldest first; at most `failures`.
    recent: VecDeque<Instant>,
    /// Probes on their way while half-open.
    probing: usize,
    /// How long the next opening lasts.
    open_for: Duration,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            state: State::Closed,
            recent: VecDeque::new(),
            probing: 0,
            open_for: settings.open_for,
        }
    }

    /// Its state at `now`: an open breaker whose time is over is half-open.
    pub fn state(&self, now: Instant) -> State {
        match self.state {
            State::Open { until } if now >= until => State::HalfOpen,
            state => state,
        }
    }

    /// Whether one more attempt may start; if so, it has.
    pub fn admit(&mut self, now: Instant) -> bool {
        self.state = self.state(now);
        match self.state {
            State::Closed => true,
            State::HalfOpen if self.probing < self.settings.probes.max(1) => {
                self.probing += 1;
                true
            }
            State::HalfOpen | State::Open { .. } | State::Held | State::Paused => false,
        }
    }

    /// An admitted attempt reached the upstream, whatever it said of the message.
    pub fn succeeded(&mut self, _now: Instant) {
        // A late success of an attempt from before the opening proves nothing newer than the
        // failures did; the probe decides.
        if matches!(self.state, State::HalfOpen) {
            self.state = State::Closed;
            self.probing = 0;
        }
        if matches!(self.state, State::Closed) {
            self.recent.clear();
            self.open_for = self.settings.open_for;
        }
    }

    /// An admitted attempt failed by the upstream's fault at `now`. A login that was refused with
    /// the credentials of version `refused` holds the breaker until they change.
    pub fn failed(&mut self, now: Instant, _refused: Option<u64>) {
        match self.state {
            State::Closed => {
                let window = self.settings.window;
                self.recent.retain(|t| now.saturating_duration_since(*t) < window);
                self.recent.push_back(now);
                if self.recent.len() >= self.settings.failures.max(1) {
                    self.open(now);
                }
            }
            State::HalfOpen => {
                self.open_for = (self.open_for * 2).min(self.settings.open_max);
                self.open(now);
            }
            State::Open { .. } | State::Held | State::Paused => {}
        }
    }

    /// An admitted attempt came to nothing for a reason of ours.
    pub fn withdrawn(&mut self) {
        self.probing = self.probing.saturating_sub(1);
    }

    /// The credentials' version is now this one.
    pub fn secret(&mut self, _version: u64, _now: Instant) {}

    /// The operator lets nothing through, or (with `None`) lets things take their course again.
    pub fn pause(&mut self, _pin: Option<Pin>) {}

    /// What the operator said, if it still holds.
    pub fn pin(&self, _now: Instant) -> Option<&Pin> {
        None
    }

    /// Attempts at once while the upstream comes back; `None`: no limit.
    pub fn ramp(&self, _now: Instant) -> Option<usize> {
        None
    }

    /// Opens it as if the upstream had failed, for so long or as it would.
    pub fn trip(&mut self, now: Instant, _open_for: Option<Duration>) {
        self.open(now);
    }

    /// Closes it, whatever was before; a pause stays.
    pub fn reset(&mut self) {
        self.state = State::Closed;
    }

    /// Takes new settings; the state stays.
    pub fn reconfigure(&mut self, settings: Settings) {
        self.settings = settings;
        self.open_for = self.open_for.clamp(settings.open_for, settings.open_max);
    }

    fn open(&mut self, now: Instant) {
        self.state = State::Open { until: now + self.open_for };
        self.recent.clear();
        self.probing = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker() -> (Breaker, Instant) {
        let settings = Settings {
            failures: 3,
            window: SECOND * 10,
            open_for: SECOND * 30,
            open_max: SECOND * 100,
            probes: 1,
            dwell: Duration::ZERO,
        };
        (Breaker::new(settings), crate::clock::Clock::now(&crate::clock::SystemClock))
    }

    fn fail(b: &mut Breaker, now: Instant, times: usize) {
        for _ in 0..times {
            assert!(b.admit(now));
            b.failed(now, None);
        }
    }

    #[test]
    fn it_opens_at_the_nth_failure_within_the_window() {
        let (mut b, t) = breaker();
        fail(&mut b, t, 2);
        assert!(b.admit(t), "n-1 failures leave it closed");
        b.failed(t, None);
        assert!(!b.admit(t));
        assert_eq!(b.state(t), State::Open { until: t + SECOND * 30 });
    }

    #[test]
    fn failures_farther_apart_than_the_window_do_not_open_it() {
        let (mut b, t) = breaker();
        for n in 0..20 {
            fail(&mut b, t + SECOND * 5 * n, 1);
        }
        assert_eq!(b.state(t + SECOND * 95), State::Closed);
    }

    #[test]
    fn a_success_forgets_the_failures_before_it() {
        let (mut b, t) = breaker();
        fail(&mut b, t, 2);
        assert!(b.admit(t));
        b.succeeded(t);
        fail(&mut b, t, 2);
        assert_eq!(b.state(t), State::Closed);
    }

    #[test]
    fn when_its_time_is_over_one_probe_decides() {
        let (mut b, t) = breaker();
        fail(&mut b, t, 3);
        assert!(!b.admit(t + Duration::from_millis(29_999)));
        assert!(b.admit(t + SECOND * 30));
        assert!(!b.admit(t + SECOND * 30), "only one probe at a time");
        b.succeeded(t);
        assert_eq!(b.state(t + SECOND * 30), State::Closed);
        fail(&mut b, t + SECOND * 40, 3);
        assert_eq!(b.state(t + SECOND * 40), State::Open { until: t + SECOND * 70 });
    }

    #[test]
    fn each_failed_probe_doubles_the_time_up_to_the_longest() {
        let (mut b, t) = breaker();
        fail(&mut b, t, 3);
        let mut now = t;
        for expected in [60, 100, 100] {
            let State::Open { until } = b.state(now) else { panic!("not open") };
            now = until;
            fail(&mut b, now, 1);
            assert_eq!(b.state(now), State::Open { until: now + SECOND * expected });
        }
    }

    #[test]
    fn late_news_from_before_the_opening_change_nothing() {
        let (mut b, t) = breaker();
        fail(&mut b, t, 3);
        b.succeeded(t);
        b.failed(t, None);
        assert_eq!(b.state(t), State::Open { until: t + SECOND * 30 });
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
}
