//! How much an upstream is handed per second: a token bucket that may go into debt once.
//!
//! The bucket fills at the rate, up to what comes in within a second, but at least 1. An attempt may
//! start when a whole token is there, and takes what it costs. A message with fifty recipients takes
//! fifty at once, and the next waits until they are paid back; so no message is too large for a small
//! rate.
//!
//! **When the upstream says that it is asked too often** the bucket learns, as TCP does: the rate is
//! halved at once, down to a fiftieth, and grows back by a tenth of the whole every [`GROWTH`].
//! Besides nothing starts for a second, and for twice as long each time in a row: up to a minute. The
//! row ends when something was handed over after a pause and [`QUIET`] passed without a complaint. A
//! complaint during a pause is about what was handed over before it, and changes nothing: ten attempts
//! at once that are told to slow down are one lesson and not ten.

use std::time::{Duration, Instant};

/// How often a slowed rate grows.
const GROWTH: Duration = Duration::from_secs(10);
/// By which share of the whole rate.
const GROWN: f64 = 0.1;
/// The smallest share of the rate that is left.
const SHARE_MIN: f64 = 0.02;
/// The first pause of a row, and the longest.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_mins(1);
/// How long there must be no complaint after a pause for the row to end.
pub const QUIET: Duration = Duration::from_secs(10);
/// What a sum of fractions may lack to be whole.
const ROUNDING: f64 = 1e-6;
/// The smallest rate, one a day, and so the longest wait for a token.
const RATE_MIN: f64 = 1.0 / 86_400.0;

/// A limit.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rate {
    /// So many a second. More than 0.
    pub per_second: f64,
    /// Of what.
    pub of: Unit,
}

/// What a rate counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Messages, or attempts for some of a message's recipients.
    Messages,
    /// Recipients.
    Recipients,
}

/// What may be handed over now. Without a rate: everything, but for pauses.
#[derive(Debug, Default)]
pub struct Bucket {
    rate: Option<Rate>,
    /// Tokens at `at`; a debt when negative.
    level: f64,
    /// Up to when tokens have come in; `None` before the first rate.
    at: Option<Instant>,
    /// What complaints have left; `None`: everything.
    slowed: Option<Slowed>,
    row: Option<Row>,
}

/// A share of the rate.
#[derive(Clone, Copy, Debug)]
struct Slowed {
    share: f64,
    /// When it grows next.
    grows: Instant,
}

/// Complaints in a row.
#[derive(Clone, Copy, Debug)]
struct Row {
    pause: Duration,
    until: Instant,
    /// When something was handed over after the pause.
    resumed: Option<Instant>,
}

impl Bucket {
    /// Changes the rate; what was learned by [`slower`](Self::slower) stays, and so does a debt.
    pub fn set_rate(&mut self, rate: Option<Rate>, now: Instant) {
        self.fill(now);
        if self.rate.is_none() {
            self.level = f64::INFINITY;
        }
        self.rate = rate;
        self.level = self.level.min(self.burst());
        self.at = Some(now);
    }

    /// When the next attempt may start: now or earlier, when it may start now.
    pub fn ready(&self, now: Instant) -> Instant {
        let now = self.row.map_or(now, |row| row.until.max(now));
        if self.rate.is_none() {
            return now;
        }
        let mut then = Self { rate: self.rate, ..*self };
        then.fill(now);
        // The share grows while it waits: from step to step, of which there are few.
        loop {
            let missing = 1.0 - ROUNDING - then.level;
            if missing <= 0.0 {
                return then.at.unwrap_or(now);
            }
            let wait = Duration::try_from_secs_f64((missing + ROUNDING / 2.0) / then.speed());
            let paid = now_and(then.at.unwrap_or(now), wait.unwrap_or(Duration::MAX));
            match then.slowed {
                Some(slowed) if slowed.grows < paid => then.fill(slowed.grows),
                _ => return paid,
            }
        }
    }

    /// An attempt for so many recipients starts.
    pub fn take(&mut self, recipients: usize, now: Instant) {
        self.fill(now);
        let tokens = match self.rate.map(|rate| rate.of) {
            Some(Unit::Recipients) => u32::try_from(recipients.max(1)).unwrap_or(u32::MAX),
            Some(Unit::Messages) | None => 1,
        };
        if self.rate.is_some() {
            self.level -= f64::from(tokens);
        }
        if let Some(row) = self.row.as_mut().filter(|row| now >= row.until) {
            row.resumed.get_or_insert(now);
        }
    }

    /// The upstream said that it is asked too often: halves the rate, which grows back slowly, and
    /// pauses for a moment that doubles with each such answer in a row.
    pub fn slower(&mut self, now: Instant) {
        if self.row.is_some_and(|row| now < row.until) {
            return;
        }
        self.fill(now);
        let is_over = |row: &Row| {
            row.resumed.is_some_and(|start| now.saturating_duration_since(start) >= QUIET)
        };
        let last = self.row.filter(|row| !is_over(row));
        let pause = last.map_or(PAUSE, |row| row.pause.saturating_mul(2).min(PAUSE_MAX));
        let until = now_and(now, pause);
        self.row = Some(Row { pause, until, resumed: None });
        let share = self.slowed.map_or(1.0, |slowed| slowed.share);
        self.slowed =
            Some(Slowed { share: (share / 2.0).max(SHARE_MIN), grows: now_and(until, GROWTH) });
        // One is tried after the pause, not a burst.
        self.level = self.level.min(1.0);
    }

    /// Lets in what came in until `now`. A time before the last one changes nothing.
    fn fill(&mut self, now: Instant) {
        while let Some(slowed) = self.slowed.filter(|slowed| slowed.grows <= now) {
            self.pour(slowed.grows);
            let share = slowed.share + GROWN;
            let grows = now_and(slowed.grows, GROWTH);
            self.slowed = (share < 1.0).then_some(Slowed { share, grows });
        }
        self.pour(now);
    }

    /// Lets in what came in until `until` at the present speed. Nothing comes in during a pause.
    fn pour(&mut self, until: Instant) {
        let Some(at) = self.at.filter(|at| *at < until) else { return };
        let start = self.row.map_or(at, |row| row.until.max(at));
        let seconds = until.saturating_duration_since(start).as_secs_f64();
        self.level = (self.level + seconds * self.speed()).min(self.burst());
        self.at = Some(until);
    }

    /// Tokens a second.
    fn speed(&self) -> f64 {
        let share = self.slowed.map_or(1.0, |slowed| slowed.share);
        self.rate.map_or(f64::INFINITY, |rate| (rate.per_second * share).max(RATE_MIN))
    }

    /// The most tokens it holds.
    fn burst(&self) -> f64 {
        self.speed().max(1.0)
    }
}

/// `now` and so long, at most the longest wait there is.
fn now_and(now: Instant, long: Duration) -> Instant {
    now + long.min(Duration::from_hours(24 * 365))
}
