//! The circuit breaker of one upstream: closed admits, open refuses, half-open probes.
//!
//! It hears only of failures that are the upstream's own fault; a refused recipient says nothing
//! about the route. While it is open no message is tried, so none is blamed for the route.
//!
//! **The way back** is a ramp: after a probe has succeeded the breaker is closed, and lets 1, 2, 4,
//! ... attempts run at once, each step for a while, so that an upstream that has just come back is
//! not thrown over by what has piled up. One failure on the ramp opens it again, for longer.
//!
//! **A refused login** holds it. Asking again with the same credentials can only be refused again,
//! and servers lock accounts or addresses out that do so (a handful of failures within minutes is
//! the usual rule). So it waits for other credentials; and, because servers also refuse right ones
//! while their own directory is away, tries one login every [`Settings::hold_probe`]. One an hour
//! is below every such rule.
//!
//! **Late answers.** An attempt that began before the breaker opened may end long after it closed
//! again, and says nothing new. Answers do not say which attempt they are for; only how many are on
//! their way is known. So a failure is taken for a late one's as long as one is out, and anything
//! else for a new one's. What this gets wrong delays a bad verdict until the late ones have ended,
//! or lets one more run for a late one that has; it opens no breaker whose upstream works again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Attempts at once above which a ramp is over and there is no limit any more.
const RAMP_MAX: usize = 1024;

/// When it opens and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// This many failures in a row within `window` open it. At least 1.
    pub failures: usize,
    /// See `failures`. Much longer than a connection may take to time out, or too little mail would
    /// never open it.
    pub window: Duration,
    /// How long it stays open at first; each failure of a probe or on the ramp doubles it.
    pub open_for: Duration,
    /// The longest it stays open.
    pub open_max: Duration,
    /// Messages tried at once when half-open. At least 1.
    pub probes: usize,
    /// After a probe has succeeded attempts at once are 1, 2, 4, ...: each step lasts at least so
    /// long.
    pub dwell: Duration,
    /// After a refused login one more is tried with the same credentials when so long has passed.
    pub hold_probe: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            failures: 3,
            window: Duration::from_mins(5),
            open_for: Duration::from_secs(30),
            open_max: Duration::from_mins(10),
            probes: 1,
            dwell: Duration::from_secs(5),
            hold_probe: Duration::from_hours(1),
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
    /// Attempts are admitted, on a ramp only some; see [`Breaker::ramp`].
    Closed,
    /// None is, until the time given.
    Open {
        /// When a probe will be admitted.
        until: Instant,
    },
    /// A few are, to see whether the upstream is back.
    HalfOpen,
    /// None is, until its credentials change or a long time has passed: the login was refused.
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
    phase: Phase,
    pin: Option<Pin>,
    /// The credentials' version, once it was told.
    secret: Option<u64>,
    /// Times of the failures within the window while closed, oldest first; at most `failures`.
    recent: VecDeque<Instant>,
    /// Attempts on their way that were admitted since it last opened.
    running: usize,
    /// Attempts on their way that were admitted before.
    late: usize,
    /// How long the next opening lasts.
    open_for: Duration,
}

/// How it stands, whatever the operator says.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed,
    /// Closed, but so many at once since then.
    Ramp {
        limit: usize,
        since: Instant,
    },
    Open {
        until: Instant,
    },
    HalfOpen {
        probes: usize,
    },
    /// The login was refused with the secret of this version.
    Held {
        refused: u64,
        until: Instant,
    },
}

impl Breaker {
    /// A closed breaker.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            phase: Phase::Closed,
            pin: None,
            secret: None,
            recent: VecDeque::new(),
            running: 0,
            late: 0,
            open_for: settings.open_for,
        }
    }

    /// Its state at `now`: an open breaker whose time is over is half-open.
    pub fn state(&self, now: Instant) -> State {
        if self.pin(now).is_some() {
            return State::Paused;
        }
        match self.phase(now) {
            Phase::Closed | Phase::Ramp { .. } => State::Closed,
            Phase::Open { until } => State::Open { until },
            Phase::HalfOpen { .. } => State::HalfOpen,
            Phase::Held { .. } => State::Held,
        }
    }

    /// How many attempts may run at once on the way back; `None` when it is not on it.
    pub fn ramp(&self, now: Instant) -> Option<usize> {
        match self.phase {
            Phase::Ramp { limit, .. } if self.pin(now).is_none() => Some(limit),
            _ => None,
        }
    }

    /// When time alone will make it admit again; `None` when it admits now, or when an answer,
    /// other credentials or the operator must come first.
    pub fn wakes(&self, now: Instant) -> Option<Instant> {
        let phase = match self.phase(now) {
            Phase::Open { until } | Phase::Held { until, .. } => Some(until),
            Phase::Closed | Phase::Ramp { .. } | Phase::HalfOpen { .. } => None,
        };
        match self.pin(now) {
            Some(pin) => pin.until.map(|until| phase.map_or(until, |phase| phase.max(until))),
            None => phase,
        }
    }

    /// Whether one more attempt may start; if so, it has.
    pub fn admit(&mut self, now: Instant) -> bool {
        self.phase = self.phase(now);
        let admitted = self.pin(now).is_none()
            && match self.phase {
                Phase::Closed => true,
                Phase::Ramp { limit, .. } => self.running < limit,
                Phase::HalfOpen { probes } => self.running < probes,
                Phase::Open { .. } | Phase::Held { .. } => false,
            };
        self.running += usize::from(admitted);
        admitted
    }

    /// An admitted attempt reached the upstream, whatever it said of the message.
    pub fn succeeded(&mut self, now: Instant) {
        if !self.is_new_ones() {
            return;
        }
        match self.phase {
            Phase::Closed => {
                self.recent.clear();
                self.open_for = self.settings.open_for;
            }
            Phase::HalfOpen { .. } => self.phase = Phase::Ramp { limit: 1, since: now },
            Phase::Ramp { limit, since } => self.climb(limit, since, now),
            Phase::Open { .. } | Phase::Held { .. } => {}
        }
    }

    /// An admitted attempt failed by the upstream's fault at `now`. A login that was refused with
    /// the credentials of version `refused` holds the breaker until they change; a refusal of
    /// others than those in force says nothing.
    pub fn failed(&mut self, now: Instant, refused: Option<u64>) {
        if self.late > 0 {
            self.late -= 1;
            return;
        }
        self.running = self.running.saturating_sub(1);
        if let Some(refused) = refused {
            if self.secret.is_none_or(|version| version == refused) {
                self.hold(refused, now);
            }
            return;
        }
        match self.phase {
            Phase::Closed => {
                let window = self.settings.window;
                self.recent.retain(|t| now.saturating_duration_since(*t) < window);
                self.recent.push_back(now);
                if self.recent.len() >= self.settings.failures.max(1) {
                    self.open(now, self.open_for);
                }
            }
            Phase::HalfOpen { .. } | Phase::Ramp { .. } => {
                self.open_for = self.open_for.saturating_mul(2).min(self.settings.open_max);
                self.open(now, self.open_for);
            }
            Phase::Open { .. } | Phase::Held { .. } => {}
        }
    }

    /// An admitted attempt came to nothing for a reason of ours.
    pub fn withdrawn(&mut self) {
        self.is_new_ones();
    }

    /// The credentials' version is now this one. Others than those that were refused are tried at
    /// once.
    pub fn secret(&mut self, version: u64, _now: Instant) {
        self.secret = Some(version);
        if matches!(self.phase, Phase::Held { refused, .. } if refused != version) {
            self.phase = Phase::HalfOpen { probes: self.settings.probes.max(1) };
        }
    }

    /// The login is made another way now, with whichever version: what was refused says nothing.
    pub fn login_changed(&mut self) {
        if matches!(self.phase, Phase::Held { .. }) {
            self.phase = Phase::HalfOpen { probes: self.settings.probes.max(1) };
        }
    }

    /// The operator lets nothing through, or (with `None`) lets things take their course again.
    pub fn pause(&mut self, pin: Option<Pin>) {
        self.pin = pin;
    }

    /// What the operator said, if it still holds.
    pub fn pin(&self, now: Instant) -> Option<&Pin> {
        self.pin.as_ref().filter(|pin| pin.until.is_none_or(|until| now < until))
    }

    /// Opens it as if the upstream had failed, for so long or as it would.
    pub fn trip(&mut self, now: Instant, open_for: Option<Duration>) {
        self.open(now, open_for.unwrap_or(self.open_for));
    }

    /// Closes it, whatever was before; a pause stays. Attempts that are on their way are late ones.
    pub fn reset(&mut self) {
        self.turn(Phase::Closed);
        self.open_for = self.settings.open_for;
    }

    /// Takes new settings; the state stays.
    pub fn reconfigure(&mut self, settings: Settings) {
        self.settings = settings;
        self.open_for = self.open_for.max(settings.open_for).min(settings.open_max);
    }

    /// The phase at `now`: when its time is over, being open or held ends in a probe.
    fn phase(&self, now: Instant) -> Phase {
        match self.phase {
            Phase::Open { until } if now >= until => {
                Phase::HalfOpen { probes: self.settings.probes.max(1) }
            }
            // More than one would be more than one refused login.
            Phase::Held { until, .. } if now >= until => Phase::HalfOpen { probes: 1 },
            phase => phase,
        }
    }

    /// Counts an answer that is no failure: for an attempt since the last opening, if one is out.
    fn is_new_ones(&mut self) -> bool {
        let new = self.running > 0;
        if new {
            self.running -= 1;
        } else {
            self.late = self.late.saturating_sub(1);
        }
        new
    }

    /// One more success on the ramp.
    fn climb(&mut self, limit: usize, since: Instant, now: Instant) {
        if now.saturating_duration_since(since) < self.settings.dwell {
            return;
        }
        if limit < RAMP_MAX {
            self.phase = Phase::Ramp { limit: limit * 2, since: now };
        } else {
            self.phase = Phase::Closed;
            self.open_for = self.settings.open_for;
        }
    }

    fn open(&mut self, now: Instant, open_for: Duration) {
        self.turn(Phase::Open { until: after(now, open_for) });
    }

    fn hold(&mut self, refused: u64, now: Instant) {
        self.turn(Phase::Held { refused, until: after(now, self.settings.hold_probe) });
    }

    /// A turn of things: what is on its way began before it.
    fn turn(&mut self, phase: Phase) {
        self.phase = phase;
        self.recent.clear();
        self.late += std::mem::take(&mut self.running);
    }
}

/// `now` and so long, or a year: nobody can wait for the end of time.
fn after(now: Instant, long: Duration) -> Instant {
    now.checked_add(long).unwrap_or_else(|| now + Duration::from_hours(24 * 365))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod walk;
