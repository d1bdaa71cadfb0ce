//! Time and chance, the two things pure code may not fetch for itself.
//!
//! Layers 0 to 2 receive an [`Instant`], a [`Timestamp`] or a random draw as an argument. The layers
//! above read them from a [`Clock`], so that a test can hold time still. This file is the only one
//! that reads the operating system's clocks or draws random numbers.
#![expect(clippy::disallowed_methods, reason = "this is the module the ban points to")]

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A wall-clock time: whole milliseconds since 1970-01-01T00:00:00Z.
///
/// It is what the spool stores, so it survives a restart; it may jump when the system clock is set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The time `ms` milliseconds after the Unix epoch.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the Unix epoch.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// This time plus `d`, at most the end of time.
    pub fn after(self, d: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// RFC 3339 in UTC with milliseconds: `2026-11-21T09:12:01.431Z`.
    pub fn rfc3339(self) -> String {
        let d = civil(self);
        format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            d.year,
            d.month,
            d.day,
            d.hour,
            d.minute,
            d.second,
            self.0 % 1000
        )
    }

    /// RFC 5322 section 3.3 date-time in UTC: `Sat, 21 Nov 2026 09:12:01 +0000`.
    pub fn rfc5322(self) -> String {
        civil(self).to_rfc822()
    }
}

fn civil(at: Timestamp) -> mail_parser::DateTime {
    mail_parser::DateTime::from_timestamp(i64::try_from(at.as_secs()).unwrap_or(i64::MAX))
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

/// Where the running program reads time and draws chance.
pub trait Clock: Send + Sync + 'static {
    /// The monotonic clock, for timeouts and durations.
    fn now(&self) -> Instant;
    /// The wall clock, for what is stored or shown.
    fn wall(&self) -> Timestamp;
    /// A uniform draw from `0.0..1.0`, for jitter.
    fn chance(&self) -> f64;
}

/// The operating system's clocks and a thread-local generator.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn chance(&self) -> f64 {
        fastrand::f64()
    }
}

/// A clock that stands still until told to move; every draw is one half.
#[derive(Debug)]
pub struct ManualClock(Mutex<(Instant, Timestamp)>);

impl ManualClock {
    /// A clock that shows `wall` until [`advance`](Self::advance) is called.
    pub fn new(wall: Timestamp) -> Self {
        Self(Mutex::new((Instant::now(), wall)))
    }

    /// Moves both clocks forward by `d`.
    pub fn advance(&self, d: Duration) {
        let mut t = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *t = (t.0 + d, t.1.after(d));
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0
    }

    fn wall(&self) -> Timestamp {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).1
    }

    fn chance(&self) -> f64 {
        0.5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_prints_as_both_rfcs_write_it() {
        let t = Timestamp::from_millis(1_795_252_321_431);
        assert_eq!(t.rfc3339(), "2026-11-21T09:12:01.431Z");
        assert_eq!(t.rfc5322(), "Sat, 21 Nov 2026 09:12:01 +0000");
    }

    #[test]
    fn a_clock_set_back_gives_no_negative_age() {
        let (a, b) = (Timestamp::from_millis(5), Timestamp::from_millis(9));
        assert_eq!(a.since(b), Duration::ZERO);
        assert_eq!(b.since(a), Duration::from_millis(4));
    }
}
