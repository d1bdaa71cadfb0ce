//! One secret, looked after: read again and again, and told to whoever uses it when it changes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::SecretSource;
use super::error::FetchError;
use super::fields::{self, Fetched};
use super::settings::SecretSettings;
use crate::clock::{Clock, Timestamp};
use crate::event;
use crate::secret::Credentials;

/// How often a secret is read at most because someone asks: a wrong password must not make every
/// refused message a request.
pub(super) const ASKED_MIN: Duration = Duration::from_secs(10);

/// The wait after a first failure. It doubles, up to the refresh interval.
const RETRY: Duration = Duration::from_secs(1);

/// Looks after one secret.
pub(super) struct Keeper {
    pub(super) name: String,
    pub(super) settings: SecretSettings,
    source: Box<dyn SecretSource>,
    clock: Arc<dyn Clock>,
    told: watch::Sender<Option<Arc<Credentials>>>,
    notes: watch::Sender<Notes>,
    asked: Notify,
}

/// What is known of a secret besides what it says.
#[derive(Clone, Default)]
pub(super) struct Notes {
    /// Attempts to read it that have begun.
    pub(super) begun: u64,
    /// Attempts that have ended.
    pub(super) ended: u64,
    /// Whether the source has ever given it.
    pub(super) given: bool,
    /// The last version number used, also by keepers before this one.
    pub(super) version: u64,
    /// The source's number.
    pub(super) source_version: Option<u64>,
    /// When it was last read.
    pub(super) success: Option<(Instant, Timestamp)>,
    /// Why it could not be read the last time.
    pub(super) error: Option<FetchError>,
    /// Why the environment does not help.
    pub(super) no_fallback: Option<FetchError>,
}

/// What a keeper leaves to the next one.
#[derive(Default)]
pub(super) struct Legacy {
    credentials: Option<Arc<Credentials>>,
    notes: Notes,
}

impl Keeper {
    pub(super) fn new(
        name: &str,
        settings: &SecretSettings,
        source: Box<dyn SecretSource>,
        clock: Arc<dyn Clock>,
        legacy: Legacy,
    ) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            settings: settings.clone(),
            source,
            clock,
            told: watch::Sender::new(legacy.credentials),
            notes: watch::Sender::new(legacy.notes),
            asked: Notify::new(),
        })
    }

    pub(super) fn channel(&self) -> watch::Receiver<Option<Arc<Credentials>>> {
        self.told.subscribe()
    }

    pub(super) fn notes(&self) -> watch::Receiver<Notes> {
        self.notes.subscribe()
    }

    /// Reads it as soon as may be.
    pub(super) fn ask(&self) {
        self.asked.notify_one();
    }

    /// For the next keeper: all there is, if that one reads the same; else no more than the version
    /// number, which must not be used twice.
    pub(super) fn legacy(&self, next: &SecretSettings) -> Legacy {
        let notes = self.notes.borrow().clone();
        let (begun, ended) = (0, 0);
        if self.settings.source == next.source && self.settings.fields == next.fields {
            let credentials = self.told.borrow().clone();
            return Legacy { credentials, notes: Notes { begun, ended, ..notes } };
        }
        Legacy { credentials: None, notes: Notes { version: notes.version, ..Notes::default() } }
    }

    /// Reads it, for ever.
    pub(super) async fn run(self: Arc<Self>) {
        event::SecretKept {
            name: &self.name,
            interval: self.settings.refresh,
            version: self.told.borrow().as_ref().map_or(0, |known| known.version),
            read: self.notes.borrow().success.map(|(_, at)| at),
        }
        .emit();
        let mut failures = 0;
        let mut answered: Option<tokio::time::Instant> = None;
        loop {
            failures = if self.attempt().await { 0 } else { failures + 1 };
            let wait = pause(self.settings.refresh, failures, self.clock.chance());
            let asked = async {
                self.asked.notified().await;
                if let Some(at) = answered {
                    tokio::time::sleep_until(at + ASKED_MIN).await;
                }
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = asked => answered = Some(tokio::time::Instant::now()),
            }
        }
    }

    async fn attempt(&self) -> bool {
        self.notes.send_modify(|notes| notes.begun += 1);
        let read = self.source.fetch().await.and_then(|fetched| {
            let found = fields::understand(&fetched, &self.settings.fields)?;
            Ok((fetched, found))
        });
        let good = read.is_ok();
        match read {
            Ok((fetched, found)) => self.succeeded(&fetched, found),
            Err(error) => self.failed(error),
        }
        self.notes.send_modify(|notes| notes.ended += 1);
        good
    }

    fn succeeded(&self, fetched: &Fetched, found: Credentials) {
        let now = (self.clock.now(), self.clock.wall());
        let was_bad = self.notes.borrow().error.is_some();
        self.notes.send_modify(|notes| {
            notes.given = true;
            notes.source_version = fetched.version;
            notes.success = Some(now);
            (notes.error, notes.no_fallback) = (None, None);
        });
        if was_bad {
            event::SecretReadable { name: &self.name }.emit();
        }
        event::SecretRead { name: &self.name, at: now.1 }.emit();
        self.tell(found, fetched.version);
    }

    /// What was read last stays; the environment helps while nothing was.
    fn failed(&self, error: FetchError) {
        let (given, news) = {
            let notes = self.notes.borrow();
            (notes.given, notes.error.as_ref() != Some(&error))
        };
        let mut no_fallback = None;
        if !given && !self.settings.fallback.is_empty() {
            match fields::from_environment(&self.settings.fallback) {
                Ok(found) => self.tell(found, None),
                Err(e) => no_fallback = Some(e),
            }
        }
        if news {
            let kept = self.told.borrow().is_some();
            event::SecretUnreadable { name: &self.name, error: &error, kept }.emit();
        }
        self.notes.send_modify(|notes| {
            notes.error = Some(error);
            notes.no_fallback = no_fallback;
        });
    }

    /// Tells it if it is news.
    fn tell(&self, mut found: Credentials, source_version: Option<u64>) {
        if self.told.borrow().as_ref().is_some_and(|known| known.says_the_same(&found)) {
            return;
        }
        let mut version = 0;
        self.notes.send_modify(|notes| {
            notes.version += 1;
            version = notes.version;
        });
        found.version = version;
        self.told.send_replace(Some(Arc::new(found)));
        let fallback = !self.notes.borrow().given;
        event::SecretChanged { name: &self.name, version, source_version, fallback }.emit();
    }
}

/// How long to wait after this many failures in a row; `chance` spreads it by a tenth.
fn pause(refresh: Duration, failures: u32, chance: f64) -> Duration {
    let wait = match failures {
        0 => refresh,
        n => refresh.min(RETRY.saturating_mul(2_u32.saturating_pow(n - 1))),
    };
    wait.mul_f64(0.9 + chance.clamp(0.0, 1.0) / 5.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_tried_again_sooner_and_at_last_as_often_as_refreshed() {
        let waits = |refresh| {
            let wait = |n| pause(Duration::from_secs(refresh), n, 0.5).as_secs();
            (0..8).map(wait).collect::<Vec<_>>()
        };
        assert_eq!(waits(60), [60, 1, 2, 4, 8, 16, 32, 60]);
        assert_eq!(waits(3), [3, 1, 2, 3, 3, 3, 3, 3]);
        assert_eq!(pause(Duration::from_mins(1), u32::MAX, 0.5).as_secs(), 60);
        assert_eq!(pause(Duration::from_secs(100), 0, 0.0).as_secs(), 90);
        assert_eq!(pause(Duration::from_secs(100), 0, 1.0).as_secs(), 110);
    }
}
