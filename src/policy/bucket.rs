//! How much an upstream is handed per second: a token bucket that may go into debt once.
//!
//! A message with fifty recipients takes fifty tokens at once, and the next waits until they are
//! paid back; so no message is too large for a small rate.

use std::time::Instant;

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

/// What may be handed over now. Without a rate: everything.
#[derive(Debug, Default)]
pub struct Bucket {
    rate: Option<Rate>,
}

impl Bucket {
    /// Changes the rate; what was learned by [`slower`](Self::slower) stays.
    pub fn set_rate(&mut self, rate: Option<Rate>, _now: Instant) {
        self.rate = rate;
    }

    /// When the next attempt may start: now or earlier, when it may start now.
    pub fn ready(&self, now: Instant) -> Instant {
        now
    }

    /// An attempt for so many recipients starts.
    pub fn take(&mut self, _recipients: usize, _now: Instant) {}

    /// The upstream said that it is asked too often: halves the rate, which grows back slowly, and
    /// pauses for a moment that doubles with each such answer in a row.
    pub fn slower(&mut self, _now: Instant) {}
}
