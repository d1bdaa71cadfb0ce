//! What SES says of the account: how much it takes, and whether it takes anything.
//!
//! `GetAccount` is asked now and then, and soon after an answer that speaks of the account. Where it
//! may not be asked (403) or does not exist (an emulator), time takes its place.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_sesv2::operation::get_account::GetAccountOutput;
use aws_sdk_sesv2::types::SendQuota;
use serde::Serialize;
use tokio::sync::{Notify, watch};

use super::Shared;
use super::classify::Problem;
use super::settings::Settings;
use crate::clock::{Clock, Timestamp};
use crate::event::{AccountChange, AccountChanged, AccountRefreshed};

/// How long a stop holds when the account cannot be asked.
const STOP: Duration = Duration::from_mins(10);
/// SES counts the recipients of so long.
const DAY: Duration = Duration::from_hours(24);

/// What is known of an account. Kept by [`keep_asking`] and by what attempts are told.
pub(super) struct Account {
    name: String,
    day_reserve: u64,
    every: Duration,
    state: Mutex<State>,
    changed: Arc<Notify>,
    /// Rung when the account is to be asked soon.
    ask: Notify,
}

/// What is known of an SES account, for people.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct AccountStatus {
    /// Whom it talks to.
    pub endpoint: String,
    /// Why nothing can be handed over now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanting: Option<String>,
    /// Whether it takes verified recipients only; `None`: not known.
    pub sandbox: Option<bool>,
    /// Whether it may send at all; `None`: not known.
    pub sending: Option<bool>,
    /// `HEALTHY`, `PROBATION` or `SHUTDOWN`.
    pub enforcement: Option<String>,
    /// Recipients in 24 hours; -1: no limit.
    pub max_24_hours: Option<f64>,
    /// Recipients in the last 24 hours, whoever sent to them; with what we have sent since.
    pub sent_24_hours: Option<f64>,
    /// What is left of the day's quota, without the reserve; `None`: not known, or no limit.
    pub left: Option<f64>,
    /// Recipients a second.
    pub max_send_rate: Option<f64>,
    /// When the account was last read.
    pub refreshed: Option<Timestamp>,
    /// Why it could not be read the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Default)]
struct State {
    known: Option<Known>,
    /// Recipients we sent to, ever.
    sent: u64,
    error: Option<String>,
    stop: Option<Stop>,
    /// Whether the account has been asked at all, with whatever answer.
    asked: bool,
    /// What was told last, to tell only of changes.
    told: Told,
}

/// The latest answer.
struct Known {
    at: Instant,
    wall: Timestamp,
    sending: bool,
    production: bool,
    enforcement: Option<String>,
    max: Option<f64>,
    sent: f64,
    rate: Option<f64>,
    /// [`State::sent`] when it was asked for: what came later is not in `sent`.
    sent_before: u64,
}

/// Nothing can be handed over, until the account says otherwise or the time is over.
#[derive(Clone, PartialEq, Debug)]
struct Stop {
    reason: &'static str,
    since: Instant,
    until: Instant,
}

#[derive(Clone, PartialEq, Debug, Default)]
struct Told {
    wanting: Option<String>,
    sandbox: Option<bool>,
    rate: Option<f64>,
    probation: bool,
}

impl Account {
    pub(super) fn new(settings: &Settings, changed: Arc<Notify>) -> Self {
        let told = Told { wanting: Some(NOT_ASKED.into()), ..Told::default() };
        Self {
            name: settings.name.clone(),
            day_reserve: settings.day_reserve,
            every: settings.account_every,
            state: Mutex::new(State { told, ..State::default() }),
            changed,
            ask: Notify::new(),
        }
    }

    /// What is known at `now`.
    pub(super) fn status(&self, now: Instant) -> AccountStatus {
        self.state().status(now, self.day_reserve)
    }

    /// So many recipients were sent to, or may have been.
    pub(super) fn sent(&self, recipients: usize, now: Instant) {
        let mut state = self.state();
        state.sent = state.sent.saturating_add(recipients as u64);
        self.tell(&mut state, now);
    }

    /// An answer said that nothing can be sent.
    pub(super) fn stopped(&self, reason: &'static str, now: Instant) {
        let mut state = self.state();
        state.stop = Some(Stop { reason, since: now, until: now + STOP });
        self.tell(&mut state, now);
        self.ask.notify_one();
    }

    /// An answer made it worth while to ask.
    pub(super) fn ask_soon(&self) {
        self.ask.notify_one();
    }

    /// The account was asked at `asked`, when `sent` recipients had been sent to.
    fn answered(
        &self,
        answer: Result<GetAccountOutput, Problem>,
        (asked, sent): (Instant, u64),
        clock: &dyn Clock,
    ) {
        let now = clock.now();
        let mut state = self.state();
        state.asked = true;
        match answer {
            Ok(answer) => {
                state.error = None;
                state.learn(&answer, (asked, sent), (now, clock.wall()));
                let known = state.known.as_ref();
                AccountRefreshed {
                    upstream: &self.name,
                    max: known.and_then(|k| k.max),
                    used: known.map(|k| k.sent),
                    rate: known.and_then(|k| k.rate),
                }
                .emit();
            }
            Err(problem) => {
                let error = problem.to_string();
                if state.error.as_ref() != Some(&error) {
                    self.event(AccountChange::Unreadable(&error));
                }
                state.error = Some(error);
            }
        }
        self.tell(&mut state, now);
    }

    /// Logs what is new, and wakes who waits for it.
    fn tell(&self, state: &mut State, now: Instant) {
        let status = state.status(now, self.day_reserve);
        let told = Told {
            wanting: status.wanting,
            sandbox: status.sandbox,
            rate: status.max_send_rate,
            probation: status.enforcement.as_deref() == Some("PROBATION"),
        };
        if told == state.told {
            return;
        }
        let before = std::mem::replace(&mut state.told, told.clone());
        match (&before.wanting, &told.wanting) {
            (a, b) if a == b => {}
            (_, Some(reason)) if reason == NOT_ASKED => {}
            (_, Some(reason)) => self.event(AccountChange::Stopped(reason)),
            (Some(reason), None) if reason == NOT_ASKED => {}
            (_, None) => self.event(AccountChange::Resumed),
        }
        if told.sandbox == Some(true) && before.sandbox != Some(true) {
            self.event(AccountChange::Sandbox);
        }
        if before.sandbox == Some(true) && told.sandbox == Some(false) {
            self.event(AccountChange::Production);
        }
        if told.probation && !before.probation {
            self.event(AccountChange::Probation);
        }
        self.changed.notify_one();
    }

    fn event(&self, change: AccountChange<'_>) {
        AccountChanged { upstream: &self.name, change }.emit();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why nothing is handed over before the first answer: the rate is not known.
const NOT_ASKED: &str = "the account was not asked for its quota yet";

impl State {
    fn status(&self, now: Instant, day_reserve: u64) -> AccountStatus {
        let known = self.known.as_ref();
        let (sent, left) = self.budget(now, day_reserve);
        AccountStatus {
            endpoint: String::new(),
            wanting: self.wanting(now, left),
            sandbox: known.map(|k| !k.production),
            sending: known.map(|k| k.sending),
            enforcement: known.and_then(|k| k.enforcement.clone()),
            max_24_hours: known.and_then(|k| k.max),
            sent_24_hours: sent,
            left,
            max_send_rate: known.and_then(|k| k.rate),
            refreshed: known.map(|k| k.wall),
            error: self.error.clone(),
        }
    }

    fn wanting(&self, now: Instant, left: Option<f64>) -> Option<String> {
        let stop = self.stop.as_ref().filter(|stop| now < stop.until);
        match stop {
            Some(stop) => Some(stop.reason.to_owned()),
            None if left.is_some_and(|left| left < 1.0) => Some(USED_UP.to_owned()),
            None if !self.asked => Some(NOT_ASKED.to_owned()),
            None => None,
        }
    }

    /// Recipients sent to in the last 24 hours, and how many more there may be.
    fn budget(&self, now: Instant, day_reserve: u64) -> (Option<f64>, Option<f64>) {
        // What is older says nothing: all of that has left the window.
        let fresh = |k: &&Known| now.saturating_duration_since(k.at) < DAY;
        let Some(known) = self.known.as_ref().filter(fresh) else { return (None, None) };
        let sent = known.sent + count(self.sent.saturating_sub(known.sent_before));
        let limit = known.max.filter(|max| *max >= 0.0);
        (Some(sent), limit.map(|max| (max - sent - count(day_reserve)).max(0.0)))
    }

    fn learn(
        &mut self,
        answer: &GetAccountOutput,
        (asked, sent_before): (Instant, u64),
        (now, wall): (Instant, Timestamp),
    ) {
        let quota = answer.send_quota();
        let known = Known {
            at: now,
            wall,
            sending: answer.sending_enabled(),
            production: answer.production_access_enabled(),
            enforcement: answer.enforcement_status().map(ToOwned::to_owned),
            max: quota.map(SendQuota::max24_hour_send),
            sent: quota.map_or(0.0, SendQuota::sent_last24_hours),
            rate: quota.map(SendQuota::max_send_rate),
            sent_before,
        };
        let shut = known.enforcement.as_deref() == Some("SHUTDOWN");
        let reason = match (known.sending, shut) {
            (_, true) => Some("Amazon has suspended this account"),
            (false, false) => Some("Amazon has paused sending for this account"),
            (true, false) => None,
        };
        match reason {
            Some(reason) => {
                let since = self.stop.as_ref().map_or(now, |stop| stop.since);
                self.stop = Some(Stop { reason, since, until: now + STOP });
            }
            // An answer to a question from before the stop knows nothing of it.
            None if self.stop.as_ref().is_some_and(|stop| stop.since > asked) => {}
            None => self.stop = None,
        }
        self.known = Some(known);
    }
}

const USED_UP: &str = "the day's quota is used up";

#[expect(clippy::cast_precision_loss, reason = "SES counts in floating point, too")]
const fn count(recipients: u64) -> f64 {
    recipients as f64
}

/// Asks for the account, again and again.
pub(super) async fn keep_asking(shared: Arc<Shared>) {
    let Shared { account, client, clock, settings, .. } = &*shared;
    let mut credentials = shared.credentials.clone();
    if settings.secret {
        let _ = credentials.wait_for(Option::is_some).await;
    }
    loop {
        let begun = (clock.now(), account.state().sent);
        let answer = client.account().await;
        account.answered(answer, begun, &**clock);
        // A fifth more or less, so that several nodes do not ask at once.
        let pause = account.every.mul_f64(0.8 + 0.4 * clock.chance());
        let least = account.every / 6;
        let until_end_of_stop = account.left_of_stop(clock.now()).unwrap_or(pause).max(least);
        let wake = tokio::time::sleep(pause.min(until_end_of_stop));
        // SES takes one such request a second of an account: asking soon is not asking at once.
        let soon = async {
            tokio::join!(account.ask.notified(), tokio::time::sleep(least));
        };
        tokio::select! {
            () = wake => {}
            () = soon => {}
            () = changes(&mut credentials) => account.changed.notify_one(),
        }
    }
}

/// Whether there are other credentials now; does not end when there will never be.
async fn changes<T>(credentials: &mut watch::Receiver<T>) {
    if credentials.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl Account {
    fn left_of_stop(&self, now: Instant) -> Option<Duration> {
        let state = self.state();
        let stop = state.stop.as_ref().filter(|stop| now < stop.until);
        stop.map(|stop| stop.until.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    fn account(reserve: u64) -> (Account, ManualClock) {
        let settings = Settings { day_reserve: reserve, ..super::super::settings::sample() };
        let clock = ManualClock::new(Timestamp::from_millis(1_795_252_321_431));
        (Account::new(&settings, Arc::default()), clock)
    }

    fn answer(max: f64, sent: f64) -> GetAccountOutput {
        let quota = SendQuota::builder()
            .max24_hour_send(max)
            .max_send_rate(14.0)
            .sent_last24_hours(sent)
            .build();
        GetAccountOutput::builder()
            .sending_enabled(true)
            .production_access_enabled(true)
            .enforcement_status("HEALTHY")
            .send_quota(quota)
            .build()
    }

    impl Account {
        fn told(&self, answer: GetAccountOutput, clock: &ManualClock) {
            let sent = self.state().sent;
            self.answered(Ok(answer), (clock.now(), sent), clock);
        }

        fn failed(&self, clock: &ManualClock) {
            let sent = self.state().sent;
            let problem = Problem::Refused { status: 404, code: None, message: String::new() };
            self.answered(Err(problem), (clock.now(), sent), clock);
        }

        fn wanting(&self, clock: &ManualClock) -> Option<String> {
            self.status(clock.now()).wanting
        }
    }

    #[test]
    fn nothing_is_sent_before_the_account_was_asked_whatever_it_answers() {
        let (a, clock) = account(0);
        assert_eq!(a.wanting(&clock).as_deref(), Some(NOT_ASKED));
        a.failed(&clock);
        assert_eq!(a.wanting(&clock), None);
        assert_eq!(a.status(clock.now()).max_send_rate, None);
    }

    #[test]
    fn the_days_quota_is_used_up_at_the_last_recipient_but_the_reserve() {
        for (max, sent, reserve, ours, wanting) in [
            (200.0, 100.0, 0, 99, false),
            (200.0, 100.0, 0, 100, true),
            (200.0, 100.0, 0, 101, true),
            (200.0, 100.0, 10, 89, false),
            (200.0, 100.0, 10, 90, true),
            (-1.0, 1e9, 10, 1_000_000, false),
            (0.0, 0.0, 0, 0, true),
        ] {
            let (a, clock) = account(reserve);
            a.told(answer(max, sent), &clock);
            a.sent(ours, clock.now());
            assert_eq!(a.wanting(&clock).is_some(), wanting, "{max} {sent} {reserve} {ours}");
        }
    }

    #[test]
    fn what_was_sent_before_the_question_is_not_counted_twice() {
        let (a, clock) = account(0);
        a.told(answer(200.0, 0.0), &clock);
        a.sent(150, clock.now());
        a.told(answer(200.0, 150.0), &clock);
        let status = a.status(clock.now());
        assert_eq!((status.sent_24_hours, status.left), (Some(150.0), Some(50.0)));
    }

    #[test]
    fn an_account_that_was_not_read_for_a_day_stops_nothing() {
        let (a, clock) = account(0);
        a.told(answer(200.0, 200.0), &clock);
        clock.advance(DAY.checked_sub(Duration::from_millis(1)).unwrap());
        assert!(a.wanting(&clock).is_some());
        clock.advance(Duration::from_millis(1));
        assert_eq!(a.wanting(&clock), None);
    }

    #[test]
    fn a_stop_holds_until_the_account_says_otherwise() {
        let (a, clock) = account(0);
        a.told(answer(200.0, 0.0), &clock);
        let before = (clock.now(), 0);
        clock.advance(Duration::from_secs(1));
        a.stopped("paused", clock.now());
        a.answered(Ok(answer(200.0, 0.0)), before, &clock);
        assert_eq!(a.wanting(&clock).as_deref(), Some("paused"), "the answer is older");
        let paused = |enabled| {
            let mut answer = answer(200.0, 0.0);
            answer.sending_enabled = enabled;
            answer
        };
        for _ in 0..5 {
            clock.advance(STOP / 10 * 9);
            a.told(paused(false), &clock);
            assert!(a.wanting(&clock).unwrap().contains("paused sending"));
        }
        a.told(paused(true), &clock);
        assert_eq!(a.wanting(&clock), None);
    }

    #[test]
    fn where_the_account_cannot_be_asked_a_stop_ends_with_time() {
        let (a, clock) = account(0);
        a.failed(&clock);
        a.stopped("paused", clock.now());
        clock.advance(STOP.checked_sub(Duration::from_millis(1)).unwrap());
        a.failed(&clock);
        assert!(a.wanting(&clock).is_some());
        clock.advance(Duration::from_millis(1));
        assert_eq!(a.wanting(&clock), None);
    }

    #[test]
    fn sandbox_enforcement_and_rate_are_shown() {
        let (a, clock) = account(0);
        let mut answer = answer(200.0, 0.0);
        answer.production_access_enabled = false;
        answer.enforcement_status = Some("PROBATION".into());
        a.told(answer.clone(), &clock);
        let status = a.status(clock.now());
        assert_eq!(status.sandbox, Some(true));
        assert_eq!(status.enforcement.as_deref(), Some("PROBATION"));
        assert_eq!(status.max_send_rate, Some(14.0));
        assert_eq!(status.wanting, None);
        answer.enforcement_status = Some("SHUTDOWN".into());
        a.told(answer, &clock);
        assert!(a.wanting(&clock).unwrap().contains("suspended"));
        assert!(serde_json::to_string(&a.status(clock.now())).unwrap().contains("SHUTDOWN"));
    }
}
