//! How much an upstream is handed per second: a token bucket that may go into debt once.
//!
//! The bucket fills at the rate, up to what comes in within a second, but at least 1. An attempt
//! may start when a whole token is there, and takes what it costs. A message with fifty recipients
//! takes fifty at once, and the next waits until they are paid back; so no message is too large for
//! a small rate.
//!
//! **When the upstream says that it is asked too often** the bucket learns, as TCP does: the rate
//! is halved at once, down to a fiftieth, and grows back by a tenth of the whole every [`GROWTH`].
//! Besides nothing starts for a second, and for twice as long each time in a row: up to a minute.
//! The row ends when something was handed over after a pause and [`QUIET`] passed without a
//! complaint. A complaint during a pause is about what was handed over before it, and changes
//! nothing: ten attempts at once that are told to slow down are one lesson and not ten.

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
#[derive(Clone, Debug, Default)]
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
        let mut then = self.clone();
        then.fill(now);
        let mut at = now;
        // The rate grows while it waits: from step to step, of which there are few.
        while self.rate.is_some() && then.level < 1.0 - ROUNDING {
            let wait = Duration::try_from_secs_f64((1.0 - then.level) / then.speed());
            // A nanosecond more, for the one that may have been rounded off.
            let wait = wait.unwrap_or(Duration::MAX).saturating_add(Duration::from_nanos(1));
            let paid = now_and(at, wait);
            at = then.slowed.map_or(paid, |slowed| slowed.grows.min(paid));
            then.fill(at);
        }
        at
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
        let Some(at) = self.at.filter(|at| self.rate.is_some() && *at < until) else { return };
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::{Clock, SystemClock};

    const SECOND: Duration = Duration::from_secs(1);
    const MILLI: Duration = Duration::from_millis(1);

    fn rate(per_second: f64, of: Unit) -> Rate {
        Rate { per_second, of }
    }

    fn bucket(per_second: f64, of: Unit) -> (Bucket, Instant) {
        let (mut bucket, now) = (Bucket::default(), SystemClock.now());
        bucket.set_rate(Some(rate(per_second, of)), now);
        (bucket, now)
    }

    /// How many attempts start by `until` if each starts as soon as it may.
    fn started(bucket: &mut Bucket, from: Instant, until: Instant) -> u32 {
        let mut now = from;
        let mut count = 0;
        loop {
            now = bucket.ready(now);
            if now > until {
                return count;
            }
            bucket.take(1, now);
            count += 1;
        }
    }

    #[test]
    fn without_a_rate_everything_may_start() {
        let now = SystemClock.now();
        let mut bucket = Bucket::default();
        bucket.take(1_000_000, now);
        assert_eq!(bucket.ready(now), now);
    }

    #[test]
    fn what_comes_in_within_a_second_may_start_at_once_and_no_more() {
        for (per_second, burst) in [(14.0, 14), (1.0, 1), (0.1, 1), (2.5, 2)] {
            let (mut bucket, now) = bucket(per_second, Unit::Messages);
            assert_eq!(started(&mut bucket, now, now), burst, "{per_second}");
        }
        let (mut bucket, now) = bucket(14.0, Unit::Messages);
        for n in 1..=14 {
            assert_eq!(bucket.ready(now), now, "n = {n}");
            bucket.take(1, now);
        }
        let wait = bucket.ready(now) - now;
        assert!(wait.abs_diff(SECOND / 14) < Duration::from_micros(1), "{wait:?}");
        let before = now + (SECOND / 14).saturating_sub(MILLI);
        assert!(bucket.ready(before) > before);
    }

    #[test]
    fn the_rate_is_kept_over_a_long_time_and_rest_is_not_saved_up() {
        for per_second in [0.5, 1.0, 14.0, 333.3] {
            let (mut bucket, now) = bucket(per_second, Unit::Messages);
            let burst = started(&mut bucket, now, now);
            let later = now + SECOND * 60;
            let fill = started(&mut bucket, now, later);
            assert!((f64::from(fill) - per_second * 60.0).abs() <= 1.0, "{per_second}: {fill}");
            let rested = later + SECOND * 3600;
            assert!(started(&mut bucket, rested, rested) <= burst.max(1), "{per_second}");
        }
    }

    #[test]
    fn a_message_for_many_goes_at_once_and_the_next_waits_until_it_is_paid_back() {
        let (mut bucket, now) = bucket(14.0, Unit::Recipients);
        bucket.take(50, now);
        let wait = (bucket.ready(now) - now).as_secs_f64();
        assert!((wait - 37.0 / 14.0).abs() < 0.001, "{wait}");
        bucket.take(0, now);
        assert!(bucket.ready(now) > now + Duration::from_secs_f64(wait), "nothing is free");
        let (mut bucket, now) = self::bucket(14.0, Unit::Messages);
        bucket.take(50, now);
        assert_eq!(bucket.ready(now), now);
    }

    #[test]
    fn a_new_rate_holds_at_once_and_forgets_no_debt() {
        let (mut bucket, now) = bucket(1.0, Unit::Recipients);
        bucket.take(51, now);
        bucket.set_rate(Some(rate(10.0, Unit::Recipients)), now);
        let wait = (bucket.ready(now) - now).as_secs_f64();
        assert!((wait - 5.1).abs() < 0.001, "{wait}");
        bucket.set_rate(None, now);
        assert_eq!(bucket.ready(now), now);
    }

    #[test]
    fn a_rate_that_makes_no_sense_stops_nothing_for_ever() {
        for odd in [0.0, -1.0, f64::NAN, 1e-300] {
            let (mut bucket, now) = bucket(odd, Unit::Messages);
            bucket.take(1, now);
            let wait = bucket.ready(now) - now;
            assert!(wait > SECOND * 86_000 && wait < SECOND * 86_500, "{odd}: {wait:?}");
        }
    }

    /// How many start in the first nine seconds after a pause, before the rate grows.
    fn in_nine_seconds(bucket: &Bucket, now: Instant) -> u32 {
        let mut bucket = bucket.clone();
        let start = bucket.ready(now);
        started(&mut bucket, start, start + SECOND * 9)
    }

    #[test]
    fn a_complaint_halves_the_rate_and_it_grows_back_by_tenths() {
        let (mut bucket, now) = bucket(100.0, Unit::Messages);
        bucket.slower(now);
        let start = now + SECOND;
        assert_eq!(bucket.ready(now), start, "a pause of a second");
        assert_eq!(started(&mut bucket, start, start), 1, "and then one, not a burst");
        let mut from = start;
        for share in [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0] {
            let until = from + (SECOND * 10).saturating_sub(MILLI);
            let expected = share * 1000.0;
            let count = f64::from(started(&mut bucket, from, until));
            assert!((count - expected).abs() <= 2.0, "{share}: {count}");
            from += SECOND * 10;
        }
    }

    #[test]
    fn complaints_in_a_row_pause_for_longer_and_leave_a_fiftieth() {
        let (mut bucket, mut now) = bucket(100.0, Unit::Messages);
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            bucket.slower(now);
            let resumed = bucket.ready(now);
            assert_eq!(resumed - now, SECOND * seconds);
            bucket.take(1, resumed);
            now = resumed + QUIET.saturating_sub(MILLI);
        }
        bucket.slower(now);
        let count = in_nine_seconds(&bucket, now);
        assert!((9 * 2..=9 * 2 + 1).contains(&count), "{count} in 9 s at a share of 0.02");
    }

    #[test]
    fn the_row_ends_when_something_went_well_for_a_while() {
        for (quiet, used, pause) in [(9_999, true, 2), (10_000, true, 1), (10_001, false, 2)] {
            let (mut bucket, now) = bucket(100.0, Unit::Messages);
            bucket.slower(now);
            let resumed = bucket.ready(now);
            if used {
                bucket.take(1, resumed);
            }
            let now = resumed + Duration::from_millis(quiet);
            bucket.slower(now);
            assert_eq!(bucket.ready(now) - now, SECOND * pause, "{quiet} ms");
        }
    }

    #[test]
    fn complaints_during_a_pause_are_one_lesson() {
        let (mut bucket, now) = bucket(100.0, Unit::Messages);
        for n in 0..10 {
            bucket.slower(now + Duration::from_millis(n * 99));
        }
        assert_eq!(bucket.ready(now), now + SECOND);
        let mut again = self::bucket(100.0, Unit::Messages).0;
        again.set_rate(Some(rate(100.0, Unit::Messages)), now);
        again.slower(now);
        assert_eq!(in_nine_seconds(&bucket, now), in_nine_seconds(&again, now));
    }

    #[test]
    fn without_a_rate_a_complaint_pauses_and_a_later_rate_is_halved() {
        let (mut bucket, now) = (Bucket::default(), SystemClock.now());
        bucket.slower(now);
        assert_eq!(bucket.ready(now), now + SECOND);
        bucket.set_rate(Some(rate(100.0, Unit::Messages)), now + SECOND);
        assert_eq!(started(&mut bucket, now + SECOND, now + SECOND), 50);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn no_window_has_more_than_the_rate_a_burst_and_one_message(
            per_second in 0.1..200.0_f64,
            steps in proptest::collection::vec((0..3000_u64, 1..60_u32, 0..20_u8), 1..80),
        ) {
            let (mut bucket, mut now) = bucket(per_second, Unit::Recipients);
            let mut taken: Vec<(Instant, u32)> = Vec::new();
            for (wait, recipients, event) in steps {
                if event == 0 {
                    bucket.slower(now);
                }
                let ready = bucket.ready(now);
                prop_assert!(ready >= now);
                now = ready + Duration::from_millis(if event < 10 { 0 } else { wait });
                prop_assert_eq!(bucket.ready(now), now, "what is ready stays so");
                bucket.take(recipients as usize, now);
                taken.push((now, recipients));
            }
            let largest = f64::from(taken.iter().map(|(_, n)| *n).max().unwrap_or(0));
            for (i, (start, _)) in taken.iter().enumerate() {
                let mut sum = 0.0;
                for (at, recipients) in &taken[i..] {
                    sum += f64::from(*recipients);
                    let seconds = (*at - *start).as_secs_f64();
                    let most = per_second * seconds + per_second.max(1.0) + largest;
                    prop_assert!(sum <= most + 0.01, "{sum} in {seconds} s, {most} at most");
                }
            }
        }
    }
}
