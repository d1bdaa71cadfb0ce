//! Two upstreams that keep a book of what they truly took.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use postgate::mail::{
    Blame, Body, EnhancedStatus, Envelope, Failure, Handoff, Outcome, RecipientOutcome, Remedy,
    Reply, Stage,
};
use postgate::policy::bucket::{Rate, Unit};
use postgate::upstream::{Leaving, Standing, Upstream};

/// What an upstream is like at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Weather {
    /// It takes mail; now and then something is put off, or an answer is lost.
    Fair,
    /// Nobody answers.
    Down,
    /// It takes connections and says nothing, or hangs up, before and after the final dot.
    Flaky,
    /// It refuses our login until the secret changes.
    Locked,
    /// It says that it is asked too often.
    Throttling,
    /// It says itself that it can take nothing.
    Wanting,
}

/// What an upstream did, apart from what it said.
#[derive(Default)]
pub(crate) struct Book {
    /// Copies of each recipient's mail.
    pub(crate) copies: HashMap<String, usize>,
    /// How often a recipient's mail may have come without our knowing: an answer was lost, or the
    /// process died between letting the content go and writing down what came of it.
    pub(crate) excuses: HashMap<String, usize>,
    /// Recipients it refused for good.
    pub(crate) refused: HashMap<String, usize>,
    /// Attempts, by when they began and for how many recipients.
    pub(crate) attempts: Vec<(Duration, usize)>,
    /// When a process started: what it hands over it has not learned from the one before.
    pub(crate) starts: Vec<Duration>,
    /// Logins refused, by the version of the secret.
    pub(crate) logins: HashMap<u64, usize>,
    pub(crate) most_running: usize,
    pub(crate) most_recipients: usize,
    pub(crate) weathers: Vec<Weather>,
}

pub(crate) struct Simulated {
    name: &'static str,
    max_recipients: usize,
    rate: Option<f64>,
    pub(crate) book: Mutex<Book>,
    pub(crate) weather: Mutex<Weather>,
    pub(crate) secret: AtomicU64,
    running: AtomicUsize,
    rng: Mutex<fastrand::Rng>,
    begun: tokio::time::Instant,
}

/// An attempt under way, also one that is cut off by the death of the process.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Simulated {
    pub(crate) fn new(
        name: &'static str,
        max_recipients: usize,
        rate: Option<f64>,
        seed: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            max_recipients,
            rate,
            book: Mutex::default(),
            weather: Mutex::new(Weather::Fair),
            secret: AtomicU64::new(1),
            running: AtomicUsize::new(0),
            rng: Mutex::new(fastrand::Rng::with_seed(seed)),
            begun: tokio::time::Instant::now(),
        })
    }

    pub(crate) fn becomes(&self, weather: Weather) {
        *self.weather.lock().unwrap() = weather;
        self.book.lock().unwrap().weathers.push(weather);
        if weather == Weather::Fair {
            self.learns_a_secret();
        }
    }

    /// How long it has been there.
    pub(crate) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Other credentials come; they may be no better.
    pub(crate) fn learns_a_secret(&self) {
        self.secret.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn meets_a_new_process(&self) {
        self.book.lock().unwrap().starts.push(self.begun.elapsed());
    }

    fn weather(&self) -> Weather {
        *self.weather.lock().unwrap()
    }

    fn chance(&self, percent: u8) -> bool {
        self.rng.lock().unwrap().u8(..100) < percent
    }

    async fn pass(&self, most: u64) {
        let pause = self.rng.lock().unwrap().u64(..most.max(1));
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    /// Whether it refuses a recipient for good: always the same ones.
    pub(crate) fn refuses(&self, recipient: &str) -> bool {
        recipient.starts_with("nobody") || recipient.starts_with(&format!("not-{}", self.name))
    }

    /// The dialogue up to the content; `Err` is what comes of it when it does not come that far.
    async fn before_content(&self) -> Result<(), RecipientOutcome> {
        self.pass(2_000).await;
        match self.weather() {
            Weather::Down => Err(deferred(Stage::Connect, Blame::Upstream, Remedy::Time)),
            Weather::Flaky if self.chance(40) => {
                self.pass(60_000).await;
                Err(deferred(Stage::Greeting, Blame::Upstream, Remedy::Time))
            }
            Weather::Locked => {
                let version = self.secret.load(Ordering::SeqCst);
                *self.book.lock().unwrap().logins.entry(version).or_default() += 1;
                Err(deferred(Stage::Auth, Blame::Upstream, Remedy::Secret))
            }
            Weather::Throttling if self.chance(70) => {
                Err(deferred(Stage::Response, Blame::Upstream, Remedy::Slower))
            }
            _ => Ok(()),
        }
    }

    fn verdict(&self, recipient: &str) -> Option<RecipientOutcome> {
        if self.refuses(recipient) {
            let mut book = self.book.lock().unwrap();
            *book.refused.entry(recipient.to_owned()).or_default() += 1;
            return Some(RecipientOutcome::Bounced(failure(
                Stage::Rcpt,
                Blame::Recipient,
                Handoff::NotSent,
                Remedy::Time,
            )));
        }
        let greylisted = self.chance(5);
        greylisted.then(|| deferred(Stage::Rcpt, Blame::Recipient, Remedy::Time))
    }

    /// These may come once more without anyone's fault.
    pub(crate) fn excuse(&self, recipients: &[String]) {
        let mut book = self.book.lock().unwrap();
        for recipient in recipients {
            *book.excuses.entry(recipient.clone()).or_default() += 1;
        }
    }

    fn take(&self, recipients: &[String]) {
        let mut book = self.book.lock().unwrap();
        for recipient in recipients {
            *book.copies.entry(recipient.clone()).or_default() += 1;
        }
    }

    /// The content, and the answer to it.
    async fn content(&self, recipients: &[String]) -> RecipientOutcome {
        let lost = || {
            self.excuse(recipients);
            RecipientOutcome::Unconfirmed(failure(
                Stage::EndOfData,
                Blame::Upstream,
                Handoff::Unknown,
                Remedy::Time,
            ))
        };
        self.pass(3_000).await;
        let bad = self.weather() == Weather::Flaky;
        if self.chance(if bad { 30 } else { 1 }) {
            // It was never taken, and we cannot know.
            return lost();
        }
        self.take(recipients);
        self.pass(3_000).await;
        if self.chance(if bad { 30 } else { 2 }) {
            return lost();
        }
        let reply = Reply::new(250, EnhancedStatus::new(2, 0, 0), "Ok");
        RecipientOutcome::Sent { reply }
    }
}

#[async_trait]
impl Upstream for Simulated {
    fn name(&self) -> &str {
        self.name
    }

    fn standing(&self) -> Standing {
        let wanting = self.weather() == Weather::Wanting;
        Standing {
            wanting: wanting.then(|| "the account is paused".to_owned()),
            secret: self.secret.load(Ordering::SeqCst),
            rate: self.rate.map(|per_second| Rate { per_second, of: Unit::Recipients }),
            max_recipients: self.max_recipients,
            sandbox: false,
            rewrites_sender: false,
        }
    }

    async fn deliver(
        &self,
        envelope: &Envelope,
        _: &Body,
        leaving: &dyn Leaving,
        _: Instant,
    ) -> Outcome {
        let all: Vec<String> = envelope.recipients.iter().map(|r| r.path.to_string()).collect();
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        {
            let mut book = self.book.lock().unwrap();
            book.attempts.push((self.begun.elapsed(), all.len()));
            book.most_running = book.most_running.max(running);
            book.most_recipients = book.most_recipients.max(all.len());
        }
        let _running = Running(&self.running);
        let blank = Outcome::all(0, &deferred(Stage::Connect, Blame::Upstream, Remedy::Time));
        if let Err(outcome) = self.before_content().await {
            return Outcome { recipients: vec![outcome; all.len()], ..blank };
        }
        let verdicts: Vec<_> = all.iter().map(|name| self.verdict(name)).collect();
        let taken = all.iter().zip(&verdicts).filter(|(_, v)| v.is_none()).map(|(n, _)| n.clone());
        let taken: Vec<String> = taken.collect();
        let refused: Vec<usize> =
            (0..all.len()).filter(|place| verdicts[*place].is_some()).collect();
        let outcome = if taken.is_empty() {
            deferred(Stage::Data, Blame::Local, Remedy::Time)
        } else if leaving.content_leaves(&refused).await.is_err() {
            deferred(Stage::Storage, Blame::Local, Remedy::Time)
        } else {
            self.content(&taken).await
        };
        let recipients = verdicts.into_iter().map(|v| v.unwrap_or_else(|| outcome.clone()));
        Outcome { recipients: recipients.collect(), ..blank }
    }
}

fn failure(stage: Stage, blame: Blame, handoff: Handoff, remedy: Remedy) -> Failure {
    let status = EnhancedStatus::new(4, 0, 0);
    Failure { stage, blame, handoff, remedy, reply: None, status, detail: "simulated".into() }
}

fn deferred(stage: Stage, blame: Blame, remedy: Remedy) -> RecipientOutcome {
    RecipientOutcome::Deferred(failure(stage, blame, Handoff::NotSent, remedy))
}
