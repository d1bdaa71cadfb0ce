//! When to try again: exponential, with jitter.

use std::time::Duration;

/// How the pause between attempts grows. Valid by construction.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Backoff {
    initial: Duration,
    multiplier: f64,
    max: Duration,
    jitter: f64,
}

/// The settings make no backoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBackoff {
    /// The first pause is zero: a failing message would be tried without pause.
    #[error("initial must be longer than zero")]
    ZeroInitial,
    /// The longest pause is shorter than the first.
    #[error("max_interval must not be shorter than initial")]
    MaxBelowInitial,
    /// The pauses would shrink.
    #[error("multiplier must be a number from 1 to 100")]
    Multiplier,
    /// Jitter is a share of the pause.
    #[error("jitter must be a number from 0 to 1")]
    Jitter,
}

impl Backoff {
    /// Pauses of `initial`, `initial * multiplier`, ... up to `max`, each longer or shorter by up to
    /// the share `jitter`, so that messages that failed together do not come back together.
    pub fn try_new(
        initial: Duration,
        multiplier: f64,
        max: Duration,
        jitter: f64,
    ) -> Result<Self, InvalidBackoff> {
        if initial.is_zero() {
            return Err(InvalidBackoff::ZeroInitial);
        }
        if max < initial {
            return Err(InvalidBackoff::MaxBelowInitial);
        }
        if !(1.0..=100.0).contains(&multiplier) {
            return Err(InvalidBackoff::Multiplier);
        }
        if !(0.0..=1.0).contains(&jitter) {
            return Err(InvalidBackoff::Jitter);
        }
        Ok(Self { initial, multiplier, max, jitter })
    }

    /// The pause after the `attempts`-th failed attempt (the first is 1), given a draw from `0..1`.
    pub fn delay(&self, attempts: u32, chance: f64) -> Duration {
        let doublings = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.initial.as_secs_f64() * self.multiplier.powi(doublings);
        let pause = grown.min(self.max.as_secs_f64());
        let jittered = pause * (1.0 + self.jitter * (2.0 * chance - 1.0));
        Duration::from_secs_f64(jittered.max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn pauses_double_up_to_the_longest() {
        let b = Backoff::try_new(MINUTE, 2.0, MINUTE * 60, 0.0).unwrap();
        let minutes = |n| b.delay(n, 0.3).as_secs() / 60;
        assert_eq!([1, 2, 3, 6, 7, 8].map(minutes), [1, 2, 4, 32, 60, 60]);
        assert_eq!(b.delay(0, 0.0), MINUTE);
        assert_eq!(b.delay(u32::MAX, 0.999), MINUTE * 60);
    }

    #[test]
    fn jitter_spreads_by_its_share_at_both_edges_of_the_draw() {
        let b = Backoff::try_new(MINUTE, 2.0, MINUTE * 60, 0.2).unwrap();
        assert_eq!(b.delay(1, 0.0).as_secs(), 48);
        assert_eq!(b.delay(1, 0.5).as_secs(), 60);
        assert!(b.delay(1, 1.0).as_secs_f64() <= 72.0);
        let whole = Backoff::try_new(MINUTE, 2.0, MINUTE, 1.0).unwrap();
        assert_eq!(whole.delay(9, 0.0), Duration::ZERO);
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let new = Backoff::try_new;
        assert_eq!(new(Duration::ZERO, 2.0, MINUTE, 0.0), Err(InvalidBackoff::ZeroInitial));
        assert_eq!(new(MINUTE * 2, 2.0, MINUTE, 0.0), Err(InvalidBackoff::MaxBelowInitial));
        for m in [0.99, 100.1, f64::NAN, f64::INFINITY] {
            assert_eq!(new(MINUTE, m, MINUTE, 0.0), Err(InvalidBackoff::Multiplier), "{m}");
        }
        for j in [-0.1, 1.1, f64::NAN] {
            assert_eq!(new(MINUTE, 2.0, MINUTE, j), Err(InvalidBackoff::Jitter), "{j}");
        }
    }
}
