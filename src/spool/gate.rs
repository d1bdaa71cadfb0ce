//! Whether new mail is taken: the limits, and the room on the disk. Pure.

use super::{Settings, SpoolError, Stats};

/// Sync failures in a row after which new mail is refused before it is received.
const FAILURES: u32 = 2;

/// What is known about the room there is.
#[derive(Debug)]
pub(super) struct Gate {
    min_free: u64,
    max_messages: u64,
    max_bytes: u64,
    low: bool,
    reserve: bool,
    failures: u32,
    failure: Option<SpoolError>,
    closed: bool,
}

impl Gate {
    /// The limits of the settings.
    pub(super) const fn new(settings: &Settings) -> Self {
        Self {
            min_free: settings.min_free,
            max_messages: settings.max_messages,
            max_bytes: settings.max_bytes,
            low: false,
            reserve: true,
            failures: 0,
            failure: None,
            closed: false,
        }
    }

    /// Why a new message is refused when `stats` is there already.
    pub(super) fn refusal(&self, stats: Stats) -> Option<SpoolError> {
        if self.closed {
            return Some(SpoolError::Closed);
        }
        if self.is_failing() {
            return self.failure.clone();
        }
        if self.low {
            return Some(SpoolError::Full("less than min_free is left on the disk"));
        }
        if stats.bytes >= self.max_bytes {
            return Some(SpoolError::Full("max_bytes is reached"));
        }
        self.admit(stats, 0).err()
    }

    /// Whether a message of `octets` that was received already may be added to `stats`.
    pub(super) fn admit(&self, stats: Stats, octets: u64) -> Result<(), SpoolError> {
        Err(SpoolError::Full(if stats.messages() >= self.max_messages {
            "max_messages is reached"
        } else if stats.bytes.saturating_add(octets) > self.max_bytes {
            "max_bytes is reached"
        } else if !self.reserve {
            "no room on the disk for the reserve"
        } else {
            return Ok(());
        }))
    }

    /// Whether the disk failed so often that no mail is received before it is well again.
    pub(super) const fn is_failing(&self) -> bool {
        self.failures >= FAILURES
    }

    /// So many octets are free. Low once below the mark, until a tenth more than it is free: mail
    /// must not flap between taken and refused.
    pub(super) const fn free(&mut self, octets: u64) {
        let enough = self.min_free.saturating_add(self.min_free / 10);
        self.low = octets < if self.low { enough } else { self.min_free };
    }

    /// Whether the disk is nearly full.
    pub(super) const fn is_low(&self) -> bool {
        self.low
    }

    /// Whether there is a reserve segment.
    pub(super) const fn reserve(&mut self, there: bool) {
        self.reserve = there;
    }

    /// A batch was not made durable.
    pub(super) fn failed(&mut self, error: SpoolError) {
        self.failures = self.failures.saturating_add(1);
        self.failure = Some(error);
    }

    /// A batch was made durable.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
        self.failure = None;
    }

    /// No more is taken.
    pub(super) const fn close(&mut self) {
        self.closed = true;
    }

    /// Whether it was closed.
    pub(super) const fn is_closed(&self) -> bool {
        self.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        Gate::new(&Settings {
            min_free: 1000,
            max_messages: 3,
            max_bytes: 100,
            ..Settings::new("/nowhere".into())
        })
    }

    fn stats(incoming: u64, bytes: u64) -> Stats {
        Stats { incoming, bytes, ..Stats::default() }
    }

    #[test]
    fn the_limits_hold_at_the_last_the_full_and_one_more() {
        let gate = gate();
        assert!(gate.refusal(stats(2, 0)).is_none());
        assert!(matches!(gate.refusal(stats(3, 0)), Some(SpoolError::Full(_))));
        assert!(matches!(gate.refusal(stats(4, 0)), Some(SpoolError::Full(_))));
        assert!(gate.refusal(stats(1, 99)).is_none());
        assert!(gate.refusal(stats(1, 100)).is_some());
        assert!(gate.admit(stats(1, 60), 40).is_ok());
        assert!(gate.admit(stats(1, 60), 41).is_err());
    }

    #[test]
    fn a_low_disk_refuses_until_a_tenth_more_is_free() {
        let mut gate = gate();
        let refused = |g: &Gate| g.refusal(Stats::default()).is_some();
        for (free, refuses) in
            [(1001, false), (1000, false), (999, true), (1000, true), (1099, true), (1100, false)]
        {
            gate.free(free);
            assert_eq!(refused(&gate), refuses, "{free}");
        }
    }

    #[test]
    fn one_failure_is_an_accident_and_two_in_a_row_refuse_mail_until_one_succeeds() {
        let mut gate = gate();
        gate.failed(SpoolError::Full("x"));
        assert!(gate.refusal(Stats::default()).is_none());
        gate.failed(SpoolError::Full("x"));
        assert!(gate.refusal(Stats::default()).is_some());
        gate.succeeded();
        assert!(gate.refusal(Stats::default()).is_none());
    }
}
